"""An agent's tool loop: a model writes code, a session runs it, the model reads what came back.

The model is scripted, so that the example runs anywhere: put a real one in its place. It is told
what `Session.instructions` gives, and offered one tool, `Session.as_tool`, with its JSON schema.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypedDict

import anyio

from py_code_mode import MemoryStorage, Session, SubprocessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator


class Message(TypedDict, total=False):
    """One message of the conversation, as most model APIs have it."""

    role: str
    content: str
    code: str  # what the assistant wants to be run; a real API calls this a tool call


class ScriptedModel:
    """Answers with the next line of a script; a real one would read the messages."""

    def __init__(self) -> None:
        self._script = self._answers()

    def complete(self, messages: list[Message], tools: list[dict[str, object]]) -> Message:
        return next(self._script)

    def _answers(self) -> Iterator[Message]:
        yield {"role": "assistant", "code": "cities = tools.cities()\nlen(cities), cities[0]"}
        # A mistake: the model reads the traceback and corrects itself; `cities` is still there.
        yield {"role": "assistant", "code": "max(cities, key=lambda city: city['people'])"}
        yield {"role": "assistant", "code": "max(cities, key=lambda city: city['population'])"}
        yield {"role": "assistant", "content": "Tokyo is the largest of the three."}


def cities() -> list[dict[str, object]]:
    """List cities with their population."""
    return [
        {"name": "Oslo", "population": 709_000},
        {"name": "Tokyo", "population": 14_178_000},
        {"name": "Lima", "population": 10_092_000},
    ]


async def main() -> None:
    model = ScriptedModel()
    async with Session(storage=MemoryStorage(), executor=SubprocessExecutor()) as session:
        session.add_tool(cities)
        run_python = session.as_tool()
        schema = run_python.json_schema
        print("offered:", json.dumps(schema)[:70], "…")

        messages: list[Message] = [
            {"role": "system", "content": await session.instructions()},
            {"role": "user", "content": "Which city is the largest?"},
        ]
        for _ in range(10):  # a bound: models may go round in circles
            answer = model.complete(messages, tools=[schema])
            messages.append(answer)
            if "code" not in answer:
                break
            print("\n>>>", answer["code"].replace("\n", "\n... "))
            output = await run_python(answer["code"])
            print(output)
            messages.append({"role": "tool", "content": output})

        print("\nanswer:", messages[-1].get("content"))


if __name__ == "__main__":
    anyio.run(main)
