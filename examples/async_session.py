"""What results tell: variables stay, errors are results, a timeout keeps the variables."""

from __future__ import annotations

import anyio

from py_code_mode import MemoryStorage, Session, SubprocessConfig, SubprocessExecutor


async def main() -> None:
    executor = SubprocessExecutor(SubprocessConfig(default_timeout=30))
    async with Session(storage=MemoryStorage(), executor=executor) as session:
        # Variables stay; the value of the last expression comes back as the object it is.
        await session.run("import statistics; numbers = [2, 3, 5, 7, 11]")
        result = await session.run("statistics.mean(numbers)")
        print("value:", result.value)

        # What the code does wrong is in the result, with a traceback of its own lines.
        result = await session.run("total = sum(numbers)\ntotal / 0")
        print("error:", result.error, "in line", result.failure.lineno if result.failure else None)

        # A timeout returns control; the code is interrupted and the variables are kept.
        result = await session.run("while True: total += 1", timeout=0.5)
        print("error:", result.error, "- variables:", result.state)
        result = await session.run("total > 28")
        print("value:", result.value)

        # A process that dies does not cost the session, and in a sandbox not even the variables.
        result = await session.run("import os; os._exit(3)")
        print("error:", result.error, "- variables:", result.state)

        # Values go in and out between runs.
        await session.put("words", ["to", "be", "or", "not"])
        await session.run("counts = {word: len(word) for word in words}")
        print("counts:", await session.get("counts"))


if __name__ == "__main__":
    anyio.run(main)
