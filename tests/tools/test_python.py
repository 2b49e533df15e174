from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import gc
import inspect
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import anyio
import anyio.lowlevel
import pytest

from py_code_mode.errors import (
    InvalidCall,
    InvalidName,
    ToolArgumentError,
    ToolError,
    ToolFailed,
)
from py_code_mode.tools.adapters.python import FunctionTool, load_file
from py_code_mode.tools.adapters.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal as OnlyForCheckers

#: Seconds for what takes a moment, on a machine that is busy too.
PATIENCE = 30.0
THREADS = Threads()


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def made(function: Callable[..., object], **facts: Any) -> FunctionTool:
    return FunctionTool(function, THREADS, **facts)


def greet(name: str, times: int = 1, *, loud: bool = False) -> str:
    """Say hello
    to somebody.

    More about it.

    Args:
        name: who is greeted,
            by full name.
        times (int): how often.

    Returns:
        loud: not a parameter here.
    """
    return " ".join([f"hello {name}{'!' if loud else ''}"] * times)


def test_signature_and_docstring_describe_the_tool() -> None:
    tool = made(greet)
    assert (tool.name, tool.description) == ("greet", "Say hello to somebody.")
    assert tool.parameters() == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "who is greeted, by full name."},
            "times": {"type": "integer", "description": "how often.", "default": 1},
            "loud": {"type": "boolean", "default": False},
        },
        "additionalProperties": False,
        "required": ["name"],
    }


def annotated(
    a: float | None = None,
    b: Optional[str] = None,  # noqa: UP045 - the old spelling is what is tested
    c: list[int] = [],  # noqa: B006
    d: dict[str, float] = {},  # noqa: B006
    e: Literal["x", "y"] = "x",
    f: Color = Color.RED,
    g: Annotated[int, "how many"] = 1,
    h: OnlyForCheckers | None = None,
    i: object = object(),
    j: tuple[str, ...] = (),
    k: float = float("inf"),
    **rest: int,
) -> None: ...


def test_annotations_become_json_schema() -> None:
    schema = made(annotated).parameters()
    assert schema["properties"] == {
        "a": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
        "b": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "c": {"type": "array", "items": {"type": "integer"}, "default": []},
        "d": {"type": "object", "additionalProperties": {"type": "number"}, "default": {}},
        "e": {"enum": ["x", "y"], "default": "x"},
        "f": {"enum": ["red", "blue"], "default": "red"},
        "g": {"type": "integer", "description": "how many", "default": 1},
        "h": {"default": None},
        "i": {},
        "j": {"type": "array", "items": {"type": "string"}},
        "k": {"type": "number"},
    }
    assert schema["additionalProperties"] is True


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        (["Ann"], {}, "hello Ann"),
        ([], {"name": "Ann", "times": 2}, "hello Ann hello Ann"),
        (["Ann", 1], {"loud": True}, "hello Ann!"),
    ],
)
async def test_arguments_are_bound_as_python_does(
    args: list[object], kwargs: dict[str, object], expected: str
) -> None:
    assert await made(greet).call(None, args, kwargs) == expected


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ([], {}, "missing a required argument: 'name'; it takes (name: "),
        (["Ann", 1, True], {}, "too many positional arguments"),
        (["Ann"], {"name": "Bob"}, "multiple values for argument 'name'"),
        (["Ann"], {"tims": 1}, "unexpected keyword argument 'tims'"),
        ([1], {}, "'name' must be a string, not 1 (int)"),
        (["Ann"], {"times": "2"}, "'times' must be an integer, not '2' (str)"),
        (["Ann"], {"times": True}, "'times' must be an integer, not True (bool)"),
        (["Ann"], {"loud": 1}, "'loud' must be a boolean, not 1 (int)"),
        (["Ann"], {"times": None}, "'times' must be an integer, not None"),
    ],
)
async def test_wrong_arguments_are_refused_before_the_call(
    args: list[object], kwargs: dict[str, object], reason: str
) -> None:
    with pytest.raises(ToolArgumentError) as caught:
        await made(greet).call(None, args, kwargs)
    assert str(caught.value).startswith("tool greet: ")
    assert reason in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kwargs", "accepted"),
    [
        ({"a": 1}, True),
        ({"a": None}, True),
        ({"a": "1"}, False),
        ({"b": 1}, False),
        ({"c": "anything"}, True),
        ({"e": "y"}, True),
        ({"e": "z"}, False),
        ({"f": "green"}, False),
        ({"h": "anything"}, True),
        ({"k": 1}, True),
        ({"k": True}, False),
        ({"other": 1}, True),
    ],
)
async def test_only_what_is_plainly_wrong_is_refused(
    kwargs: dict[str, object], accepted: bool
) -> None:
    if accepted:
        assert await made(annotated).call(None, [], kwargs) is None
    else:
        with pytest.raises(ToolArgumentError):
            await made(annotated).call(None, [], kwargs)


@pytest.mark.anyio
async def test_numpy_numbers_are_numbers() -> None:
    import numpy as np

    def add(a: int, b: float) -> float:
        return a + b

    assert await made(add).call(None, [np.int64(1), np.float32(2)], {}) == 3


@pytest.mark.anyio
async def test_a_value_becomes_the_member_of_an_enumeration() -> None:
    def paint(color: Color) -> Color:
        return color

    assert await made(paint).call(None, ["blue"], {}) is Color.BLUE
    assert await made(paint).call(None, [Color.RED], {}) is Color.RED


@pytest.mark.anyio
async def test_an_async_function_runs_in_the_loop_and_a_plain_one_beside_it() -> None:
    async def here() -> tuple[int, object]:
        return threading.get_ident(), asyncio.get_running_loop()

    def beside() -> int:
        return threading.get_ident()

    own = threading.get_ident()
    assert await made(here).call(None, [], {}) == (own, asyncio.get_running_loop())
    assert await made(beside).call(None, [], {}) != own


@pytest.mark.anyio
async def test_many_shapes_of_callables_are_tools() -> None:
    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def add(self, n: int) -> int:
            return self.base + n

        async def __call__(self, n: int) -> int:
            return self.base + n

    async def later(n: int) -> int:
        return n

    def wrapped(function: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(function)
        def wrapper(*args: object, **kwargs: object) -> object:
            return function(*args, **kwargs)

        return wrapper

    adder = Adder(1)
    assert await made(adder.add).call(None, [1], {}) == 2
    assert await made(adder, name="adder").call(None, [1], {}) == 2
    assert await made(functools.partial(adder.add, 2), name="three").call(None, [], {}) == 3
    assert await made(functools.partial(later, n=2), name="two").call(None, [], {}) == 2
    assert await made(wrapped(later)).call(None, [5], {}) == 5
    with pytest.raises(ToolArgumentError):
        await made(adder, name="adder").call(None, ["x"], {})


def test_what_cannot_be_a_tool_is_refused() -> None:
    with pytest.raises(InvalidCall, match="pass name="):
        made(functools.partial(greet))
    with pytest.raises(InvalidCall, match="cannot be a tool"):
        made(5, name="five")  # pyright: ignore[reportArgumentType] - that is the test
    for name in ("list", "_private", "a b", "for", "call_async", "ToolError"):
        with pytest.raises(InvalidName):
            made(greet, name=name)


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad value"), "ValueError: bad value"),
        (KeyError("k"), "KeyError: 'k'"),
        (StopIteration(1), "StopIteration: 1"),
        (SystemExit(3), "SystemExit: 3"),
        (ToolArgumentError("inner", "no"), "tool inner: no"),
    ],
)
async def test_what_a_tool_raises_becomes_a_tool_error(
    error: BaseException, text: str, is_async: bool
) -> None:
    def fail() -> None:
        raise error

    async def fail_later() -> None:
        raise error

    if is_async and isinstance(error, StopIteration):
        return  # Python itself makes it a RuntimeError
    with pytest.raises(ToolError) as caught:
        await made(fail_later if is_async else fail, name="fail").call(None, [], {})
    if isinstance(error, ToolError):
        assert caught.value is error
        assert str(caught.value) == text
    else:
        assert isinstance(caught.value, ToolFailed)
        assert str(caught.value) == f"tool fail: {text}"
        assert caught.value.__cause__ is error
        assert caught.value.exit_code is None


@pytest.mark.anyio
async def test_a_plain_function_may_end_with_any_exception() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(ToolFailed, match="KeyboardInterrupt"):
        await made(interrupt).call(None, [], {})


@pytest.mark.anyio
async def test_a_plain_function_sees_context_and_may_run_its_own_loop() -> None:
    variable = contextvars.ContextVar[str]("variable")
    variable.set("seen")

    def nested() -> str:
        async def inner() -> str:
            await anyio.lowlevel.checkpoint()
            return variable.get()

        return anyio.run(inner) + asyncio.run(inner())

    assert await made(nested).call(None, [], {}) == "seenseen"


@pytest.mark.anyio
async def test_a_cancelled_plain_function_is_left_to_end_by_itself() -> None:
    started, may_end, ended = anyio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow() -> None:
        loop.call_soon_threadsafe(started.set)
        may_end.wait(2 * PATIENCE)
        ended.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            no_arguments: dict[str, object] = {}
            tasks.start_soon(made(slow).call, None, (), no_arguments)
            await started.wait()
            tasks.cancel_scope.cancel()
    assert not ended.is_set()
    may_end.set()
    assert ended.wait(PATIENCE)


@pytest.mark.anyio
async def test_abandoned_calls_are_bounded() -> None:
    threads = Threads(2)
    may_end = threading.Event()
    loop = asyncio.get_running_loop()

    def slow() -> None:
        loop.call_soon_threadsafe(started.set)
        may_end.wait(2 * PATIENCE)

    for _ in range(2):
        started = anyio.Event()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(threads.run, "slow", slow)
                await started.wait()  # one that has not begun is not abandoned for long
                tasks.cancel_scope.cancel()
    with pytest.raises(ToolError, match="2 earlier calls"):
        await threads.run("slow", lambda: None)
    may_end.set()
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                assert await threads.run("quick", lambda: 7) == 7
                break
            except ToolError:
                await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_calls_beyond_the_limit_wait_their_turn() -> None:
    threads = Threads(2)
    lock, running, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(threads.run, "work", work)
    assert (running, most <= 2) == (0, True)


def test_one_tool_serves_several_loops_in_turn() -> None:
    tool = made(greet)
    for _ in range(3):
        assert asyncio.run(tool.call(None, ["Ann"], {})) == "hello Ann"


def test_quick_calls_do_not_pile_up_threads() -> None:
    async def main() -> None:
        for _ in range(300):
            await THREADS.run("quick", lambda: None)

    asyncio.run(main())
    before = threading.active_count()
    asyncio.run(main())
    assert threading.active_count() <= before


# --- files --------------------------------------------------------------------------------------

FILE = b'''
"""A file of tools."""
from __future__ import annotations
import json
from dataclasses import dataclass
from os.path import join

@dataclass
class Point:
    x: int
    y: int = 0

def point(x: int) -> Point:
    """Make a point."""
    return Point(x)

async def later(x: int) -> int:
    return _double(x)

later.tags = ["write"]

def _double(x):
    return 2 * x
'''


def load(text: bytes) -> tuple[dict[str, FunctionTool], list[tuple[int | None, str]]]:
    tools, problems = load_file("mine.py", "/somewhere/mine.py", text, THREADS)
    assert all(problem.source == "mine.py" for problem in problems)
    return {tool.name: tool for tool in tools}, [(p.line, p.reason) for p in problems]


@pytest.mark.anyio
async def test_public_functions_of_a_file_are_tools() -> None:
    tools, problems = load(FILE)
    assert (list(tools), problems) == (["point", "later"], [])
    assert tools["point"].description == "Make a point."
    assert (tools["point"].source, tools["point"].line) == ("mine.py", 13)
    assert tools["later"].tags == ("write",)
    assert await tools["later"].call(None, [2], {}) == 4
    made_point = await tools["point"].call(None, [1], {})
    assert pickle.loads(pickle.dumps(made_point)) == made_point
    assert "x: int" in inspect.getsource(type(made_point))


def test_all_names_what_is_a_tool() -> None:
    tools, problems = load(
        b"__all__ = ['join', '_hidden', 'b']\nfrom os.path import join\nb = len\n"
        b"def _hidden(): ...\ndef other(): ...\n"
    )
    assert list(tools) == ["join", "b"]
    assert [line for line, _ in problems] == [4]
    assert load(b"__all__ = ['gone']")[1] == [
        (None, "__all__ lists 'gone', which the file does not define")
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"def f(:\n  pass", 1, "not valid Python: invalid syntax"),
        (b"x = 1\n\nraise ValueError('no')\n", 3, "could not be loaded: ValueError: no"),
        (b"import sys\nsys.exit(1)", 2, "could not be loaded: SystemExit: 1"),
        (b"\nimport no_such_module_x", 2, "could not be loaded: ModuleNotFoundError"),
        (b"x = '\xff'", None, "not valid Python"),
        (b"a\0b", None, "not valid Python"),
    ],
)
def test_a_broken_file_is_told_with_its_line(text: bytes, line: int | None, reason: str) -> None:
    tools, ((found, told),) = load(text)
    assert tools == {}
    assert reason in told
    if line is not None:
        assert found == line


def test_one_bad_function_hides_no_other() -> None:
    tools, problems = load(b"def good(): ...\ndef list(): ...\n")
    assert list(tools) == ["good"]
    assert problems[0][0] == 2


def test_a_files_module_goes_with_its_tools() -> None:
    before = {name for name in sys.modules if name.startswith("_py_code_mode_tools")}
    tools, _ = load(FILE)
    load(b"raise ValueError")
    during = {name for name in sys.modules if name.startswith("_py_code_mode_tools")}
    assert len(during - before) == 1
    del tools
    gc.collect()
    assert {name for name in sys.modules if name.startswith("_py_code_mode_tools")} <= before
