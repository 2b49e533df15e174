"""Big values by name: they cross without becoming text, and a model sees what describes them."""

from __future__ import annotations

import anyio
import numpy as np
import pandas as pd

from py_code_mode import MemoryStorage, Session, SubprocessConfig, SubprocessExecutor


def trips() -> pd.DataFrame:
    """Two million trips, as a database or a file would give them."""
    numbers = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "zone": numbers.choice(["north", "south", "east", "west"], 2_000_000),
            "km": numbers.gamma(2.0, 3.0, 2_000_000),
            "fare": numbers.gamma(3.0, 5.0, 2_000_000),
        }
    )


async def main() -> None:
    executor = SubprocessExecutor(SubprocessConfig())
    async with Session(MemoryStorage(), executor) as session:
        # The value goes to the worker in shared memory, and is a variable there.
        name = await session.put("trips", trips(), semantics={"fare": "in euros, tips included"})

        # This is what a model should see of it: at most 300 tokens, always valid JSON.
        snapshot = session.handles.snapshot(name)
        print(f"{name}: {len(snapshot) / 4:.0f} tokens: {snapshot[:150]}…")

        # Code works on the name. Large variables that a run makes are handles, too.
        result = await session.run(
            "trips['rate'] = trips.fare / trips.km\nlong = trips[trips.km > 5]"
        )
        print("handles:", {name: shown.data["shape"] for name, shown in result.handles.items()})

        # They know where they come from, and cross back when somebody asks for them.
        origin = session.handles.info("long").origin
        if origin is not None:
            print("long was made by run", origin.run_id, "from", *origin.parents)
        long = await session.get("long")
        print("here:", long.shape if isinstance(long, pd.DataFrame) else None)

        # A handle outlives a reset and a crash.
        await session.run("import os; os._exit(1)")
        print("still there:", (await session.run("len(trips)")).value)


if __name__ == "__main__":
    anyio.run(main)
