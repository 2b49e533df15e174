"""What a sandbox keeps out, what survives a crash, and going back to where one was.

Run it with ``python examples/sandbox.py``; it needs Linux, and no container or root.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from py_code_mode import Policy, SandboxUnavailable, Session


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        (folder / "data" / "prices.csv").write_text("item,price\ntea,3\ncake,4\n")
        policy = Policy(read=[folder / "data"], memory="1GiB", processes=32)
        async with Session.subprocess(folder / "workspace", policy=policy) as session:
            await tour(session, folder)


async def tour(session: Session, folder: Path) -> None:
    # What the policy grants can be read; nothing else of this machine is there.
    result = await session.run(
        f"import pandas; prices = pandas.read_csv({str(folder / 'data' / 'prices.csv')!r})\n"
        "int(prices.price.sum())"
    )
    print("sum of the prices:", result.value)
    result = await session.run("open('/etc/shadow')")
    print(result.to_text())

    # Try two continuations of one state.
    checkpoint = await session.checkpoint()
    await session.run("prices['price'] *= 100")
    branch = await session.fork()
    async with branch:
        await session.rollback(checkpoint)
        code = "prices.price.tolist()"
        for name, one in (("here", session), ("in the branch", branch)):
            result = await one.run(code)
            print(f"{name}: {result.value}")

    # A crash costs the run, not the variables. (A copy is made when the session pauses.)
    await asyncio.sleep(0.1)
    result = await session.run("import os; os.abort()")
    print(result.state, "to run", result.restored_to)
    result = await session.run("len(prices)")
    print("rows still here:", result.value)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except SandboxUnavailable as error:
        print(error)
