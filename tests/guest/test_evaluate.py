"""The evaluation of cells, without a worker around it."""

from __future__ import annotations

import linecache
import sys
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.guest.evaluate import MAX_MESSAGE, MAX_TRACEBACK, Interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "_interpreter_under_test"


@pytest.fixture
def interpreter() -> Iterator[Interpreter]:
    made = Interpreter(NAME, {"tools": "the tools"})
    yield made
    made.close()
    assert NAME not in sys.modules


def failure(interpreter: Interpreter, code: str, run_id: int = 1) -> dict[str, Any]:
    found = interpreter.run(code, run_id).failure
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("code", "value"),
    [("1 + 1", 2), ("1;", None), ("x = 1", None), ("", None), ("'a'\n\n# end", "a")],
)
def test_value_of_the_last_expression(interpreter: Interpreter, code: str, value: object) -> None:
    outcome = interpreter.run(code, 1)
    assert (outcome.value, outcome.failure) == (value, None)


def test_name_reads_as_main_though_the_module_has_another(interpreter: Interpreter) -> None:
    assert interpreter.run("__name__", 1).value == "__main__"
    assert interpreter.run("class A: pass\nA.__module__", 2).value == NAME


def test_reset_puts_reserved_names_back(interpreter: Interpreter) -> None:
    interpreter.run("from __future__ import annotations\nx = 1\ntools = 2\n5", 1)
    interpreter.reset()
    assert interpreter.run("tools", 2).value == "the tools"
    assert failure(interpreter, "x")["type"] == "NameError"
    interpreter.run("def f(x: undefined_name = 1): pass", 3)
    assert failure(interpreter, "def f(x: undefined_name): pass")["type"] == "NameError"


def test_sources_of_small_runs_are_not_kept(interpreter: Interpreter) -> None:
    def kept() -> int:
        return sum(name.startswith("<run ") for name in linecache.cache)

    before = kept()
    for number in range(100):
        interpreter.run("x = 1\nx + 1", number)
    assert kept() == before
    interpreter.run("def f(): return 1", 500)
    assert kept() == before + 1
    interpreter.close()
    assert kept() == before


def test_long_messages_and_tracebacks_are_shortened_in_the_middle(
    interpreter: Interpreter,
) -> None:
    found = failure(interpreter, "raise ValueError('a' * 10**6 + 'end')")
    assert len(found["message"]) < MAX_MESSAGE + 100
    assert len(found["traceback"]) < MAX_TRACEBACK + 100
    assert found["message"].endswith("end")
    assert "characters left out" in found["message"]


def test_interrupt_while_waiting_shows_where_the_cell_was(interpreter: Interpreter) -> None:
    code = (
        "import asyncio\n"
        "async def outer():\n"
        "    await inner()\n"
        "async def inner():\n"
        "    def stop(): raise KeyboardInterrupt\n"
        "    asyncio.get_running_loop().call_soon(stop)\n"
        "    try: await asyncio.sleep(600)\n"
        "    finally: seen.append('cleaned up')\n"
        "seen = []\n"
        "await outer()\n"
    )
    found = failure(interpreter, code)
    assert found["type"] == "KeyboardInterrupt"
    assert found["lineno"] == 7
    for line in ("line 10, in <module>", "line 3, in outer", "line 7, in inner"):
        assert line in found["traceback"]
    assert "evaluate.py" not in found["traceback"]
    assert interpreter.run("seen", 2).value == ["cleaned up"]


def test_lone_surrogates_in_messages_become_escapes(interpreter: Interpreter) -> None:
    found = failure(interpreter, "raise ValueError('\\ud800')")
    assert found["message"] == "\\ud800"
    assert found["traceback"].isascii()


def test_our_errors_are_shown_without_our_module(interpreter: Interpreter) -> None:
    from py_code_mode.guest.errors import ToolNotFound

    interpreter.globals["error"] = ToolNotFound("x", [])
    found = failure(interpreter, "raise error")
    assert found["traceback"].endswith("\nToolNotFound: tool x: not found; available: none\n")


def test_exit_is_no_failure_and_a_status_is(interpreter: Interpreter) -> None:
    assert interpreter.run("raise SystemExit(0)", 1).failure is None
    assert failure(interpreter, "raise SystemExit(2)")["type"] == "SystemExit"


def test_pending_tasks_are_noted_by_name(interpreter: Interpreter) -> None:
    outcome = interpreter.run(
        "import asyncio\n"
        "t = [asyncio.create_task(asyncio.sleep(600), name=f'n{i}') for i in range(12)]\n"
        "await asyncio.sleep(0)",
        1,
    )
    (note,) = outcome.notes
    assert note.startswith("cancelled 12 asyncio task(s)")
    assert "n0, " in note
    assert note.endswith("…")
