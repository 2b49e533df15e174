"""Events while a run goes on: output, calls of tools, and displays, as they happen."""

from __future__ import annotations

import anyio

from py_code_mode import Called, MemoryStorage, Output, Session, Shown

CODE = """
import sys

for item in ["a", "b", "c"]:
    print("price of", item, "is", tools.price(item=item))
print("done", file=sys.stderr)
display("that was all")
"""


def price(item: str) -> float:
    """Look up the price of an item."""
    return {"a": 1.5, "b": 2.0}.get(item, 9.99)


def show(event: Output | Shown | Called) -> None:
    """Print one event; a coroutine function would do too, and while it is slow the code waits."""
    match event:
        case Output(kind, text):
            print(f"{kind}: {text.rstrip()}")
        case Called(namespace, method):
            print(f"call: {namespace}.{method}")
        case Shown(display):
            print(f"display: {display.text}")


async def main() -> None:
    async with Session(storage=MemoryStorage()) as session:
        session.add_tool(price)
        result = await session.run(CODE, on_output=show)
        print(f"run {result.run_id}: {'ok' if result.is_ok else result.error}")


if __name__ == "__main__":
    anyio.run(main)
