from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import anyio
import pytest

from py_code_mode.errors import (
    InvalidName,
    StoreError,
    ToolArgumentError,
    ToolError,
    ToolNotFound,
)
from py_code_mode.stores.file import FileStore
from py_code_mode.stores.memory import MemoryStore
from py_code_mode.tools.registry import RECHECK_AFTER, ToolRegistry

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.stores.store import Store

#: Seconds for what takes a moment, on a machine that is busy too.
PATIENCE = 30.0
ECHO = f"""
name: echo
description: Print words
command: [{sys.executable}, -I, -c, "import sys; print(*sys.argv[1:])"]
tags: [text]
schema:
  options: {{upper: {{type: boolean, description: In capitals}}}}
  positional: [{{name: word, type: string, required: true}}]
recipes:
  hello: {{description: Greet the world, preset: {{word: hello}}}}
""".encode()
MATH = b'''
def double(n: int) -> int:
    """Twice a number."""
    return 2 * n
'''


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    store = MemoryStore() if request.param == "memory" else FileStore(tmp_path / "tools")
    store.write("echo.yaml", ECHO)
    store.write("math.py", MATH)
    store.write("_shared.py", b"def hidden(): ...")
    store.write("notes.txt", b"not a tool")
    return store


@pytest.fixture
def registry(store: Store, clock: Clock) -> ToolRegistry:
    return ToolRegistry(store, clock=clock)


@pytest.mark.anyio
async def test_tools_are_listed(registry: ToolRegistry) -> None:
    listed = await registry.list()
    assert [entry["name"] for entry in listed] == ["double", "echo"]
    assert listed[1] == {
        "name": "echo",
        "description": "Print words",
        "tags": ["text"],
        "recipes": [{"name": "hello", "description": "Greet the world"}],
        "parameters": {
            "type": "object",
            "properties": {
                "upper": {"type": "boolean", "description": "In capitals"},
                "word": {"type": "string"},
            },
            "additionalProperties": False,
            "required": ["word"],
        },
    }
    assert await registry.names() == ["double", "echo"]
    assert await registry.problems() == ()


@pytest.mark.anyio
async def test_a_tool_is_described_with_its_recipes(registry: ToolRegistry) -> None:
    described = await registry.describe("echo")
    assert described["recipes"] == [
        {
            "name": "hello",
            "description": "Greet the world",
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        }
    ]
    with pytest.raises(ToolNotFound, match="available: double, echo"):
        await registry.describe("ecko")


@pytest.mark.anyio
async def test_what_is_listed_may_be_changed_by_whoever_asked(registry: ToolRegistry) -> None:
    (entry, _) = await registry.list()
    parameters = entry["parameters"]
    assert isinstance(parameters, dict)
    parameters.clear()
    assert (await registry.list())[0]["parameters"] != {}


@pytest.mark.anyio
async def test_tools_are_called(registry: ToolRegistry) -> None:
    assert await registry.call("double", None, [4], {}) == 8
    assert await registry.call("echo", None, ["hi"], {"upper": True}) == "--upper hi\n"
    assert await registry.call("echo", "hello", [], {}) == "hello\n"


@pytest.mark.anyio
async def test_what_is_not_there_is_told_with_what_is(registry: ToolRegistry) -> None:
    with pytest.raises(ToolNotFound, match="tool nope: not found; available: double, echo"):
        await registry.call("nope", None, [], {})
    with pytest.raises(ToolNotFound, match=r"tool echo\.nope: not found; available: echo\.hello"):
        await registry.call("echo", "nope", [], {})
    with pytest.raises(ToolNotFound, match=r"tool double\.x: not found; available: none"):
        await registry.call("double", "x", [], {})
    with pytest.raises(ToolArgumentError):
        await registry.call("echo", "hello", ["there"], {})


@pytest.mark.anyio
async def test_tools_are_searched(registry: ToolRegistry) -> None:
    assert [entry["name"] for entry in await registry.search("greet somebody")] == ["echo"]
    assert [entry["name"] for entry in await registry.search("numbers")] == ["double"]
    assert [entry["name"] for entry in await registry.search("capitals")] == ["echo"]
    assert await registry.search("") == []
    assert len(await registry.search("print twice", 1)) == 1


@pytest.mark.anyio
async def test_an_edit_is_seen_by_the_next_listing_and_search(
    registry: ToolRegistry, store: Store
) -> None:
    await registry.list()
    store.write("echo.yaml", ECHO.replace(b"Print words", b"Shout loudly"))
    assert (await registry.search("shout"))[0]["name"] == "echo"
    store.delete("math.py")
    assert await registry.names() == ["echo"]


@pytest.mark.anyio
async def test_a_call_sees_an_edit_after_a_second_at_most(
    registry: ToolRegistry, store: Store, clock: Clock
) -> None:
    assert await registry.call("double", None, [4], {}) == 8
    store.write("math.py", MATH.replace(b"2 *", b"200 *"))
    assert await registry.call("double", None, [4], {}) == 8
    clock.now += RECHECK_AFTER + 0.01
    assert await registry.call("double", None, [4], {}) == 800


@pytest.mark.anyio
async def test_a_new_tool_can_be_called_at_once(registry: ToolRegistry, store: Store) -> None:
    await registry.list()
    store.write("new.py", b"def fresh(): return 1")
    assert await registry.call("fresh", None, [], {}) == 1


@pytest.mark.anyio
async def test_files_that_did_not_change_are_not_run_again(
    registry: ToolRegistry, store: Store
) -> None:
    store.write(
        "count.py", b"calls = []\ndef count() -> int:\n    calls.append(1)\n    return len(calls)"
    )
    assert await registry.call("count", None, [], {}) == 1
    await registry.list()
    store.write("echo.yaml", ECHO + b"\n")
    await registry.list()
    assert await registry.call("count", None, [], {}) == 2


@pytest.mark.anyio
async def test_a_broken_file_is_reported_by_name_and_line_and_hides_no_other(
    registry: ToolRegistry, store: Store
) -> None:
    store.write("broken.yaml", b"name: broken\ncommand: x\ntimeout: soon\n")
    store.write("worse.py", b"\n\n1/0\n")
    assert await registry.names() == ["double", "echo"]
    told = [str(problem) for problem in await registry.problems()]
    assert told == [
        "broken.yaml, line 3: 'timeout' must be a number of seconds above 0, or null for no limit",
        "worse.py, line 3: could not be loaded: ZeroDivisionError: division by zero",
    ]
    with pytest.raises(ToolError, match=r"cannot be used: broken\.yaml, line 3: 'timeout' must"):
        await registry.call("broken", None, [], {})
    store.write("broken.yaml", b"name: broken\ncommand: 'true'\n")
    store.delete("worse.py")
    assert await registry.problems() == ()
    assert await registry.call("broken", None, [], {}) == ""


@pytest.mark.anyio
async def test_of_two_tools_with_one_name_the_first_is_kept_and_both_files_named(
    registry: ToolRegistry, store: Store
) -> None:
    store.write("zz.py", b"\n\ndef echo(): ...\n")
    (problem,) = await registry.problems()
    assert (problem.source, problem.line) == ("zz.py", 3)
    assert "echo.yaml" in problem.reason
    assert "zz.py" in problem.reason
    assert (await registry.describe("echo"))["description"] == "Print words"


@pytest.mark.anyio
async def test_an_added_function_is_a_tool(registry: ToolRegistry) -> None:
    async def ping() -> str:
        """Answer."""
        return "pong"

    registry.add(ping)
    registry.add(ping, name="ping2", description="Again", tags=["net"])
    assert await registry.call("ping", None, [], {}) == "pong"
    assert await registry.names() == ["double", "echo", "ping", "ping2"]
    described = await registry.describe("ping2")
    assert (described["description"], described["tags"]) == ("Again", ["net"])
    assert [entry["name"] for entry in await registry.search("answer")] == ["ping"]
    with pytest.raises(InvalidName, match="added by this name already"):
        registry.add(ping)


@pytest.mark.anyio
async def test_an_added_function_goes_before_a_file(registry: ToolRegistry) -> None:
    registry.add(lambda: "mine", name="echo")
    assert await registry.call("echo", None, [], {}) == "mine"
    (problem,) = await registry.problems()
    assert problem.source == "echo.yaml"
    assert "a function that the program added" in problem.reason


@pytest.mark.anyio
async def test_without_a_store_there_are_only_added_tools() -> None:
    registry = ToolRegistry()
    assert await registry.list() == []
    with pytest.raises(ToolNotFound, match="available: none"):
        await registry.call("x", None, [], {})

    def same(n: object) -> object:
        return n

    registry.add(same)
    assert await registry.call("same", None, [[1]], {}) == [1]


@pytest.mark.anyio
async def test_a_file_that_cannot_be_read_is_a_problem_until_it_can() -> None:
    class Flaky(MemoryStore):
        is_broken = True

        def read(self, name: str) -> bytes:
            if self.is_broken and name == "math.py":
                raise StoreError(name, "the disk is on fire")
            return super().read(name)

    store = Flaky()
    store.write("math.py", MATH)
    store.write("echo.yaml", ECHO)
    registry = ToolRegistry(store)
    assert await registry.names() == ["echo"]
    assert "on fire" in (await registry.problems())[0].reason
    store.is_broken = False
    assert await registry.names() == ["double", "echo"]


@pytest.mark.anyio
async def test_a_slow_file_blocks_neither_the_loop_nor_adding(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, may_end = threading.Event(), threading.Event()
    events = SimpleNamespace(started=started, may_end=may_end)
    monkeypatch.setitem(sys.modules, "slow_tool_events", events)
    store.write(
        "slow.py",
        b"from slow_tool_events import started, may_end\n"
        b"started.set(); may_end.wait()\n"
        b"def slow(): return 1\n",
    )
    registry = ToolRegistry(store)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(registry.list)
            try:
                assert await anyio.to_thread.run_sync(started.wait, PATIENCE)
                registry.add(lambda: 2, name="added")
            finally:
                may_end.set()
    assert await registry.call("slow", None, [], {}) == 1
    assert await registry.call("added", None, [], {}) == 2


@pytest.mark.anyio
async def test_many_callers_at_once_load_the_files_once(
    registry: ToolRegistry, store: Store
) -> None:
    store.write("one.py", b"import itertools\nn = itertools.count(1)\ndef one(): return next(n)\n")
    results: list[object] = []

    async def call() -> None:
        results.append(await registry.call("one", None, [], {}))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(call)
    assert sorted(results, key=str) == sorted(range(1, 51), key=str)
