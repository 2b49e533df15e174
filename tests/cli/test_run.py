"""``py-code-mode run``, as people start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from py_code_mode.sandbox.probe import probe

from .conftest import COMMAND, LIMIT, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import OnTerminal, Run

PICTURE = """
class Picture:
    def _repr_png_(self):
        return b"\\x89PNG\\r\\n\\x1a\\n" + b"0" * 10
"""


def test_prints_output_and_then_the_value(run: Run) -> None:
    done = run("run", "-c", "print('hello')\n1 + 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n2\n", "")


def test_prints_nothing_for_none_and_repr_for_text(run: Run) -> None:
    assert run("run", "-c", "None").stdout == ""
    assert run("run", "-c", "'a\\nb'").stdout == "'a\\nb'\n"


def test_value_begins_on_a_line_of_its_own(run: Run) -> None:
    assert run("run", "-c", "print('x', end='')\n5").stdout == "x\n5\n"


def test_output_keeps_its_stream(run: Run) -> None:
    done = run("run", "-c", "import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_runs_a_file_as_main(run: Run, here: Path) -> None:
    (here / "script.py").write_text(
        "import inspect\n"
        "class C: pass\n"
        "if __name__ == '__main__':\n"
        "    print(__file__)\n"
        "    print(inspect.getsource(C), end='')\n"
    )
    done = run("run", "script.py")
    assert done.stdout == f"{here / 'script.py'}\nclass C: pass\n", done.stderr


def test_processes_that_a_file_starts_find_its_functions(run: Run, here: Path) -> None:
    if probe().backends[0] == "landlock":
        pytest.skip("a pool needs memory with a name, which this machine's sandboxes lack")
    (here / "script.py").write_text(
        "import multiprocessing\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(double, [1, 2]))\n"
    )
    done = run("run", "script.py")
    assert done.stdout == "[2, 4]\n"
    assert not done.stderr  # that a pipe is left open matters only to runs that follow


def test_file_may_declare_its_encoding(run: Run, here: Path) -> None:
    (here / "old.py").write_bytes("# coding: latin-1\r\nprint('é')\r\n".encode("latin-1"))
    assert run("run", "old.py").stdout == "é\n"


def test_reads_code_from_stdin(run: Run) -> None:
    assert run("run", "-", stdin="print(6 * 7)").stdout == "42\n"


@pytest.mark.parametrize(("code", "status"), [("3", 3), ("0", 0), ("256 + 4", 4), ("-1", 255)])
def test_status_is_what_the_code_exits_with(run: Run, code: str, status: int) -> None:
    done = run("run", "-c", f"import sys\nsys.exit({code})")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_exit_with_a_message_prints_it(run: Run) -> None:
    done = run("run", "-c", "import sys\nsys.exit('no such city')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "no such city\n")


def test_failure_prints_the_traceback_of_the_code_alone(run: Run) -> None:
    done = run("run", "-c", "x = 1\nx / 0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert '"<run 1>", line 2' in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert done.stderr.count("File ") == 1


def test_syntax_error_points_at_the_place(run: Run) -> None:
    done = run("run", "-c", "def f(:")
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
    assert "^" in done.stderr


def test_timeout_has_its_own_status_and_tells_the_place(run: Run) -> None:
    done = run("run", "--timeout", "0.5", "-c", "print('begun')\nwhile True:\n    pass")
    assert done.returncode == 124
    assert done.stdout == "begun\n"
    assert "line 3" in done.stderr or "line 2" in done.stderr
    assert "longer than 0.5 s" in done.stderr
    assert "KeyboardInterrupt" not in done.stderr


def test_timeout_error_of_the_code_is_a_failure(run: Run) -> None:
    assert run("run", "--timeout", "60", "-c", "raise TimeoutError('mine')").returncode == 1


def test_exception_that_is_named_as_ours_is_a_failure(run: Run) -> None:
    done = run("run", "-c", "class Interrupted(Exception): pass\nraise Interrupted('mine')")
    assert done.returncode == 1
    assert done.stderr.endswith("Interrupted: mine\n")


def test_config_gives_the_timeout(run: Run, here: Path) -> None:
    (here / ".code-mode").mkdir()
    (here / ".code-mode" / "config.yaml").write_text("timeout: 0.5\n")
    assert run("run", "-c", "while True: pass").returncode == 124


def test_death_of_the_worker_is_told(run: Run) -> None:
    done = run("run", "-c", "import os\nos._exit(7)")
    assert done.returncode == 1
    assert "exited with status 7" in done.stderr
    assert "variables are lost" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope.py"], "nope.py: No such file or directory"),
        (["-c", "1", "--executor", "nope"], "no executor named 'nope'"),
        (["-c", "1", "--timeout", "0"], "above 0 seconds"),
        (["-c", "1", "--timeout", "nan"], "above 0 seconds"),
        (["-c", "1", "--base", "script.py"], "is not a folder"),
        (["-c", "1", "--workdir", "gone"], "is not a folder"),
        (["-c", "1", "script.py"], "FILE"),
        (["broken.py"], "is not Python source"),
        ([], "FILE"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    run: Run, here: Path, arguments: list[str], told: str
) -> None:
    (here / "script.py").write_text("1")
    (here / "broken.py").write_bytes(b"'\xff'")
    done = run("run", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_config_is_one_sentence(run: Run, here: Path) -> None:
    (here / ".code-mode").mkdir()
    (here / ".code-mode" / "config.yaml").write_text("timeout: soon\n")
    done = run("run", "-c", "1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "config.yaml" in done.stderr


def test_in_process_gives_the_same(run: Run) -> None:
    done = run("run", "--executor", "in_process", "-c", "print('a')\n__name__, 2")
    assert (done.returncode, done.stdout) == (0, "a\n('__main__', 2)\n")


def test_workdir_is_private_unless_given(run: Run, here: Path) -> None:
    (here / "data.txt").write_text("seven")
    code = "open('data.txt').read()"
    assert run("run", "-c", code).returncode == 1
    assert run("run", "-c", code, "--workdir", ".").stdout == "'seven'\n"
    assert [path.name for path in here.iterdir()] == ["data.txt"]


def test_nearest_workspace_is_used(run: Run, here: Path) -> None:
    workflows = here.parent / ".code-mode" / "workflows"
    workflows.mkdir(parents=True)
    (workflows / "double.py").write_text("def run(x):\n    return 2 * x\n")
    assert run("run", "-c", "workflows.double(x=4)").stdout == "8\n"


# -- values and displays


def test_frame_is_a_plain_table_in_a_pipe(run: Run) -> None:
    done = run("run", "-c", "import pandas as pd\npd.DataFrame({'a': range(1000), 'b': 'x'})")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["a", "b"]
    assert lines[-1] == "[1,000 rows × 2 columns]"
    assert len(lines) < 60


def test_figures_are_saved_and_never_overwrite(run: Run, here: Path) -> None:
    (here / "figure-1.png").write_text("mine")
    done = run("run", "-c", f"{PICTURE}\ndisplay(Picture())\nPicture()")
    assert done.stderr == "saved figure-2.png\nsaved figure-3.png\n"
    assert (here / "figure-1.png").read_text() == "mine"
    assert (here / "figure-2.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.startswith("<__main__.Picture object")


def test_figures_go_where_they_are_told(run: Run, here: Path) -> None:
    done = run("run", "--figures", "a/b", "-c", f"{PICTURE}\ndisplay(Picture())")
    assert done.returncode == 0
    assert [path.name for path in (here / "a" / "b").iterdir()] == ["figure-1.png"]


def test_displayed_text_is_printed_in_its_place(run: Run) -> None:
    done = run("run", "-c", "display('first')\ndisplay([1])")
    assert done.stdout == "first\n[1]\n"


# -- JSON


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_json_is_one_object_with_all_of_the_result(run: Run) -> None:
    code = f"{PICTURE}\nprint('out')\ndisplay(Picture())\n{{'a': (1, 2.5, None)}}"
    done = run("run", "--json", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    found = report(done)
    assert found.pop("duration") > 0
    assert found == {
        "ok": True,
        "value": {"a": [1, 2.5, None]},
        "value_kind": "json",
        "stdout": "out\n",
        "stderr": "",
        "error": None,
        "failure": None,
        "state": "kept",
        "notes": [],
        "displays": [{"kinds": ["image/png", "text/plain"], "path": "figure-1.png", "text": None}],
        "run_id": 1,
    }


def test_json_of_a_failure(run: Run) -> None:
    done = run("run", "--json", "-c", "int('x')")
    assert (done.returncode, done.stderr) == (1, "")
    found = report(done)
    assert found["ok"] is False
    assert found["failure"]["type"] == "ValueError"
    assert found["failure"]["lineno"] == 1
    assert found["error"].startswith("ValueError: ")


@pytest.mark.parametrize(
    ("code", "type_name"),
    [
        ("import pandas as pd\npd.DataFrame({'a': [1]})", "pandas.DataFrame"),
        ("[float('nan')]", "list"),
        ("object()", "object"),
        ("{1: 2}", "dict"),
        ("'\\ud800'", None),
    ],
)
def test_json_describes_what_it_cannot_say(run: Run, code: str, type_name: str | None) -> None:
    found = report(run("run", "--json", "-c", code))
    if type_name is None:
        assert found["value"] == "\ud800"
    else:
        assert found["value_kind"] == "description"
        assert found["value"]["type"] == type_name


def test_json_errors_of_ours_are_a_sentence_on_stderr(run: Run) -> None:
    done = run("run", "--json", "-c", "1", "--executor", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


# -- signals and pipes


@pytest.fixture
def started(here: Path) -> Iterator[Any]:
    """Starts the command in a process group of its own; ended with the test."""
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=here,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**variables),
            start_new_session=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


LOOP = "print('running', flush=True)\nwhile True:\n    pass"


def workers_of(child: subprocess.Popen[str]) -> list[psutil.Process]:
    """The code's process and what stands around it, once the code runs."""
    assert child.stdout is not None
    assert child.stdout.readline()
    found = psutil.Process(child.pid).children(recursive=True)
    assert found
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def test_ctrl_c_interrupts_the_code_and_closes_the_session(started: Any) -> None:
    child = started("run", "-c", LOOP)
    workers = workers_of(child)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=LIMIT)
    assert child.returncode == 130
    assert '"<run 1>", line ' in said
    assert said.splitlines()[-1].startswith("Interrupted: the run was interrupted")
    assert gone(workers)


def test_ctrl_c_ends_code_that_does_not_listen(started: Any) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    child = started("run", "-c", deaf + LOOP)
    workers = workers_of(child)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=LIMIT)
    assert child.returncode == 130
    assert "variables are lost" in said
    assert gone(workers)


def test_sigterm_closes_the_session(started: Any) -> None:
    child = started("run", "-c", LOOP)
    workers = workers_of(child)
    child.terminate()
    assert child.wait(LIMIT) == 143
    assert gone(workers)


def test_kill_of_the_command_leaves_no_worker(started: Any, here: Path) -> None:
    # what is killed cannot remove its temporary folder: it gets one that the test removes
    child = started("run", "-c", LOOP, TMPDIR=str(here))
    workers = workers_of(child)
    child.kill()
    child.wait(LIMIT)
    assert gone(workers)


def test_reader_that_leaves_ends_it_quietly(started: Any) -> None:
    child = started("run", "-c", LOOP.replace("    pass", "    print('y' * 1000)"))
    workers = workers_of(child)
    child.stdout.close()
    assert child.wait(LIMIT) == 141
    assert child.stderr.read() == ""
    assert gone(workers)
    child.stdout = None


def test_ctrl_c_works_while_nobody_reads(started: Any) -> None:
    child = started("run", "-c", LOOP.replace("    pass", "    print('y' * 1000)"))
    workers = workers_of(child)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=LIMIT)
    assert child.returncode == 130
    assert gone(workers)


def test_output_appears_while_the_code_runs(started: Any, here: Path) -> None:
    fifo = here / "go"
    os.mkfifo(fifo)
    code = f"print('first', flush=True)\nopen({str(fifo)!r}).read()"
    child = started("run", "-c", code, "--read", str(fifo))
    assert child.stdout.readline() == "first\n"  # the code waits for us: it cannot have ended
    fifo.write_text("on")
    assert child.communicate(timeout=LIMIT)[0] == "'on'\n"


# -- on a terminal


def test_terminal_gets_colours_and_nothing_else_it_would_obey(on_terminal: OnTerminal) -> None:
    status, shown = on_terminal("run", "-c", r"print('\x1b[31mred\x1b[2J\x1b]0;title\x07\rover')")
    assert status == 0
    assert shown == "\x1b[31mred\\x1b[2J\\x1b]0;title\\x07\\x0dover\n\x1b[0m"


def test_pipe_gets_the_bytes_as_they_are(run: Run) -> None:
    assert run("run", "-c", r"print('\x1b[31mred\x07')").stdout == "\x1b[31mred\x07\n"


def test_no_color_is_respected(on_terminal: OnTerminal) -> None:
    assert on_terminal("run", "-c", r"print('\x1b[31mred')", NO_COLOR="1") == (0, "red\n")


def test_terminal_gets_frames_as_bounded_tables(on_terminal: OnTerminal) -> None:
    code = (
        "import pandas as pd\n"
        "pd.DataFrame({f'c{i}': ['[red]x[/] \\x1b[2J'] * 500 for i in range(20)})"
    )
    status, shown = on_terminal("run", "-c", code, NO_COLOR="1", COLUMNS="300")
    assert status == 0
    assert "500 rows × 20 columns" in shown
    assert "[red]x[/] \\x1b[2J" in shown
    assert "c0" in shown
    assert "c10" not in shown
    assert len(shown.splitlines()) < 60
