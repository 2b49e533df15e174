from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
import yaml

from py_code_mode.errors import ToolArgumentError, ToolError, ToolFailed, ToolTimeout
from py_code_mode.tools.adapters import cli
from py_code_mode.tools.adapters.cli import CommandTool
from py_code_mode.tools.definition import read_command

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds for what takes a moment, on a machine that is busy too.
PATIENCE = 30.0
SHOW = "import sys, json; print(json.dumps(sys.argv[1:]))"
FACTS = (
    "import os, sys, json; print(json.dumps({'cwd': os.getcwd(), 'files': os.listdir(), "
    "'env': dict(os.environ), 'stdin': sys.stdin.read(), 'sid': os.getsid(0), 'pid': os.getpid()}))"
)


@pytest.fixture(autouse=True)
def nothing_leaks(own_temp_folder: Path) -> object:
    descriptors = len(os.listdir("/dev/fd"))
    children = set(psutil.Process().children())  # sandboxes that sessions of other tests left warm
    yield
    assert os.listdir(own_temp_folder) == []
    assert len(os.listdir("/dev/fd")) <= descriptors
    assert set(psutil.Process().children()) <= children


def tool(code: str, *, folder: Path | None = None, **definition: object) -> CommandTool:
    whole = {"name": "tool", "command": [sys.executable, "-I", "-c", code], **definition}
    return CommandTool(
        read_command("tool.yaml", yaml.safe_dump(whole, sort_keys=False).encode()), folder
    )


def shell(script: str, **definition: object) -> CommandTool:
    return tool("", folder=None, command=["/bin/sh", "-c", script], **definition)


async def argv(made: CommandTool, *args: object, **kwargs: object) -> list[str]:
    return json.loads(await made.call(None, args, kwargs))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Somebody else's zombie child is dead too.
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return True


async def until_dead(pid: int) -> None:
    with anyio.fail_after(PATIENCE):
        # A killed orphan is reaped by init, which tells nobody.
        while is_alive(pid):  # noqa: ASYNC110 - so there is no event to wait for
            await anyio.sleep(0.01)


# --- the command line ---------------------------------------------------------------------------

ALL: dict[str, object] = {
    "options": {
        "silent": {"type": "boolean", "short": "s"},
        "header": {"type": "array", "short": "H"},
        "proto": {"type": "string", "long": "proto"},
        "color": {"type": "string", "long": "color="},
        "count": {"type": "integer"},
        "size": {"type": "number", "short": "size"},
        "level": {"type": "integer", "long": "level", "default": 2},
    },
    "positional": [
        {"name": "url", "type": "string"},
        {"name": "rest", "type": "array"},
    ],
}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, []),
        ({"silent": True}, ["-s"]),
        ({"silent": False}, []),
        ({"silent": None}, []),
        ({"header": ["a: b", 1]}, ["-H", "a: b", "-H", "1"]),
        ({"header": ()}, []),
        ({"proto": "=http"}, ["--proto", "=http"]),
        ({"proto": ""}, ["--proto", ""]),
        ({"proto": "--evil"}, ["--proto=--evil"]),
        ({"header": ["-x"]}, ["-H-x"]),
        ({"color": "always"}, ["--color=always"]),
        ({"count": 3}, ["--count", "3"]),
        ({"count": 3.0}, ["--count", "3"]),
        ({"count": -3}, ["--count=-3"]),
        ({"size": 1.5}, ["-size", "1.5"]),
        ({"url": "u", "rest": ["a", "b"]}, ["u", "a", "b"]),
        ({"rest": ["a"], "url": "u", "silent": True}, ["-s", "u", "a"]),
        ({"url": "$(id) `id` ; id | * ~ \n"}, ["$(id) `id` ; id | * ~ \n"]),
        ({"url": "héé \udcff"}, ["héé \udcff"]),
    ],
)
async def test_arguments_become_words(kwargs: dict[str, object], expected: list[str]) -> None:
    words = await argv(tool(SHOW, schema=ALL), **kwargs)
    assert words[words.index("--level") :][:2] == ["--level", "2"]
    at = words.index("--level")
    assert words[:at] + words[at + 2 :] == expected


@pytest.mark.anyio
async def test_positional_arguments_follow_the_schema() -> None:
    assert (await argv(tool(SHOW, schema=ALL), "u", "a", "b"))[2:] == ["u", "a", "b"]
    assert (await argv(tool(SHOW, schema=ALL), "u", ["a", "b"]))[2:] == ["u", "a", "b"]
    assert (await argv(tool(SHOW, schema=ALL), "u", silent=True)) == ["-s", "--level", "2", "u"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        (["-rf"], {}, "'url' cannot begin with '-'"),
        (["-"], {}, "'url' cannot begin with '-'"),
        (["u", "a", "--evil"], {}, "'rest' cannot begin with '-'"),
        ([], {"size": -1}, "'size' cannot begin with '-'"),
        (["a\0b"], {}, "NUL"),
        ([], {"proto": "a\0b"}, "NUL"),
        ([], {"proto": "\ud800"}, "lone surrogate"),
        ([], {"header": [float("inf")]}, "finite"),
        (["u"], {"url": "v"}, "'url' is given twice"),
        ([], {"rest": ["a"]}, "'rest' needs 'url' too"),
        ([], {"colour": "x"}, "did you mean 'color'?"),
        ([], {"count": "many"}, "'count' must be an integer"),
        ([], {"proto": "x" * 40_000_000}, "longer than the system allows"),
    ],
)
async def test_what_cannot_be_passed_safely_is_refused(
    args: list[object], kwargs: dict[str, object], reason: str
) -> None:
    with pytest.raises(ToolArgumentError) as caught:
        await argv(tool(SHOW, schema=ALL), *args, **kwargs)
    assert str(caught.value).startswith("tool tool: ")
    assert reason in str(caught.value)


@pytest.mark.anyio
async def test_too_many_positional_arguments_are_refused() -> None:
    with pytest.raises(ToolArgumentError, match="2 positional arguments were given; it takes u by"):
        await argv(tool(SHOW, schema={"positional": [{"name": "u"}]}), "a", "b")


@pytest.mark.anyio
async def test_with_dashdash_positional_values_may_begin_with_a_dash() -> None:
    assert (await argv(tool(SHOW, schema=ALL, dashdash=True), "-u"))[2:] == ["--", "-u"]
    assert await argv(tool(SHOW, schema=ALL, dashdash=True)) == ["--level", "2"]


@pytest.mark.anyio
async def test_a_recipe_presets_and_hides() -> None:
    made = tool(
        SHOW,
        schema=ALL,
        recipes={
            "get": {
                "description": "Get it",
                "preset": {"silent": True, "proto": "-x", "count": 1},
                "params": {"url": {"required": True}, "count": {}},
            }
        },
    )
    assert made.recipes == {"get": "Get it"}
    assert json.loads(await made.call("get", ["u"], {})) == [
        *("-s", "--proto=-x", "--count", "1", "--level", "2", "u")
    ]
    assert "5" in json.loads(await made.call("get", ["u"], {"count": 5}))
    with pytest.raises(ToolArgumentError, match=r"tool tool\.get: no argument named 'silent'"):
        await made.call("get", ["u"], {"silent": False})
    with pytest.raises(ToolArgumentError, match="'url' is missing"):
        await made.call("get", [], {"url": None})
    assert made.parameters("get")["required"] == ["url"]
    assert "required" not in made.parameters()


# --- where it runs ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_command_runs_in_an_empty_folder_with_next_to_no_environment(
    own_temp_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    monkeypatch.setenv("WANTED", "yes")
    monkeypatch.setenv("PATH", os.pathsep.join(["relative", ".", "", "/usr/bin", "/bin"]))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("HTTP_PROXY", "http://user:hush@proxy:1")
    facts = json.loads(await tool(FACTS, env=["WANTED", "UNSET"]).call(None, [], {}))
    assert facts["files"] == []
    assert Path(facts["cwd"]).parent == own_temp_folder
    assert facts["stdin"] == ""
    assert facts["sid"] == facts["pid"]
    assert "hush" not in json.dumps(facts)
    environment = facts["env"]
    assert environment["HOME"] == environment["TMPDIR"] == facts["cwd"]
    assert environment["PATH"] == "/usr/bin:/bin"
    assert (environment["WANTED"], environment["HTTPS_PROXY"]) == ("yes", "http://proxy:1")
    assert "UNSET" not in environment
    assert "HTTP_PROXY" not in environment


@pytest.mark.anyio
async def test_what_a_command_leaves_is_removed(own_temp_folder: Path) -> None:
    await shell("mkdir -p a/b; touch a/b/c; chmod 500 a/b; chmod 000 a; ln -s / root").call(
        None, [], {}
    )
    assert os.listdir(own_temp_folder) == []
    assert os.listdir("/") != []


@pytest.mark.anyio
async def test_a_relative_program_is_found_beside_its_definition(tmp_path: Path) -> None:
    script = tmp_path / "hello.sh"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    assert await tool("", folder=tmp_path, command="./hello.sh").call(None, [], {}) == "hello\n"
    with pytest.raises(ToolError, match="absolute path or a name"):
        await tool("", command="./hello.sh").call(None, [], {})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("command", "reason"),
    [("no-such-program-x", "is not on the PATH"), ("/no/such/program", "is not there")],
)
async def test_a_missing_program_is_told_clearly(command: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        await tool("", command=command).call(None, [], {})


@pytest.mark.anyio
async def test_a_program_that_cannot_be_started_is_told_clearly(tmp_path: Path) -> None:
    script = tmp_path / "broken"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(ToolError, match="could not be started"):
        await tool("", command=str(script)).call(None, [], {})


# --- how it ends --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_failure_has_the_exit_code_and_the_end_of_stderr() -> None:
    made = shell("echo out; for i in $(seq 2000); do echo line $i >&2; done; exit 7")
    with pytest.raises(ToolFailed) as caught:
        await made.call(None, [], {})
    assert caught.value.exit_code == 7
    assert caught.value.stderr.endswith("line 2000\n")
    assert len(caught.value.stderr.encode()) <= 2048
    assert str(caught.value).startswith("tool tool: exited with status 7\n")


@pytest.mark.anyio
async def test_a_failure_told_on_stdout_is_shown() -> None:
    with pytest.raises(ToolFailed, match="status 1; its output ends: no such thing"):
        await shell("echo no such thing; exit 1").call(None, [], {})


@pytest.mark.anyio
async def test_a_command_ended_by_a_signal_says_which() -> None:
    with pytest.raises(ToolFailed, match="was ended by SIGSEGV") as caught:
        await shell("kill -SEGV $$").call(None, [], {})
    assert caught.value.exit_code == -11


@pytest.mark.anyio
async def test_stderr_of_a_command_that_succeeds_is_no_output() -> None:
    assert await shell("echo noise >&2; echo fine").call(None, [], {}) == "fine\n"


@pytest.mark.anyio
async def test_output_that_is_not_utf8_is_still_text() -> None:
    assert await shell(r"printf 'a\377b'").call(None, [], {}) == "a\ufffdb"


@pytest.mark.anyio
async def test_huge_output_is_cut_and_says_so() -> None:
    made = tool("import sys; sys.stdout.write('x' * 50_000_000)")
    text = await made.call(None, [], {})
    kept, _, note = text.partition("\n")
    assert kept == "x" * (1 << 20)
    assert note == "[48,951,424 bytes left out; the first 1,048,576 are kept]"


@pytest.mark.anyio
async def test_output_is_not_cut_within_a_character() -> None:
    made = tool("import sys; sys.stdout.buffer.write('é'.encode() * 10)", max_output=5)
    assert (await made.call(None, [], {})).startswith("éé\n[15 bytes left out")


async def ids_of_stopped(make: Callable[[float], CommandTool], file: Path) -> list[int]:
    """Call a tool, with a timeout that it runs into; gives the process ids that it has written.

    A busy machine may start it later than the shortest timeouts are.
    """
    for timeout in (0.5, 2.0, 8.0, PATIENCE):
        stopped = pytest.raises(ToolTimeout, match=f"within {timeout:g} s and was stopped")
        with anyio.fail_after(timeout + PATIENCE), stopped:
            await make(timeout).call(None, [], {})
        if ids := ids_in(file):
            return ids
    raise AssertionError("the command never began")


def ids_in(file: Path) -> list[int]:
    """Process ids that a command writes as one line; none until it is whole."""
    text = file.read_text() if file.exists() else ""
    return [int(pid) for pid in text.split()] if text.endswith("\n") else []


@pytest.mark.anyio
async def test_a_command_that_takes_too_long_is_stopped_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $$ $! > {pids}; wait"
    command, child = await ids_of_stopped(lambda timeout: shell(script, timeout=timeout), pids)
    assert not is_alive(command)
    await until_dead(child)


@pytest.mark.anyio
async def test_a_command_that_ignores_being_asked_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}}\\n')\n"
        "while True: print('x' * 1000)"
    )
    (command,) = await ids_of_stopped(lambda timeout: tool(code, timeout=timeout), pids)
    assert not is_alive(command)


async def until_written(file: Path) -> list[int]:
    with anyio.fail_after(PATIENCE):
        while not (ids := ids_in(file)):  # noqa: ASYNC110 - another process writes it
            await anyio.sleep(0.01)
    return ids


NOTHING: dict[str, object] = {}


@pytest.mark.anyio
async def test_a_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    made = shell(f"trap '' TERM; sleep 600 & echo $$ $! > {pids}; wait; sleep 600")
    started: list[int] = []
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.call, None, (), NOTHING)
            started += await until_written(pids)
            assert all(is_alive(pid) for pid in started)
            tasks.cancel_scope.cancel()
    assert not is_alive(started[0])
    await until_dead(started[1])


@pytest.mark.anyio
async def test_a_call_cancelled_at_once_starts_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shell(f"touch {mark}").call, None, (), NOTHING)
            tasks.cancel_scope.cancel()
    assert not mark.exists()


@pytest.mark.anyio
async def test_a_child_that_keeps_the_pipe_open_does_not_hold_the_call(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    made = shell(f"sleep 600 & echo $! > {pids}; echo done")
    with anyio.fail_after(PATIENCE):
        assert await made.call(None, [], {}) == "done\n"
    await until_dead(int(pids.read_text()))


@pytest.mark.anyio
async def test_a_child_that_left_the_group_does_not_hold_the_call(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    escape = (
        f"import os, subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        f"open({str(pids)!r}, 'w').write(str(p.pid)); print('done', flush=True); os._exit(0)"
    )
    try:
        with anyio.fail_after(PATIENCE):
            assert await tool(escape).call(None, [], {}) == "done\n"
    finally:
        os.kill(int(pids.read_text()), 9)


@pytest.mark.anyio
async def test_without_pidfd_calls_end_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", refuse)
    pids = tmp_path / "pids"
    with anyio.fail_after(PATIENCE):
        made = shell(f"sleep 600 & echo $! > {pids}; echo done")
        assert await made.call(None, [], {}) == "done\n"
        await until_dead(int(pids.read_text()))
        with pytest.raises(ToolTimeout):
            await shell("sleep 600", timeout=0.1).call(None, [], {})
        with pytest.raises(ToolFailed, match="status 3"):
            await shell("exit 3").call(None, [], {})


@pytest.mark.anyio
async def test_what_a_child_writes_just_after_the_command_ended_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "DRAIN_GRACE", PATIENCE)
    made = shell("(sleep 0.1; echo later) & echo first")
    assert await made.call(None, [], {}) == "first\nlater\n"


@pytest.mark.anyio
async def test_many_calls_run_side_by_side() -> None:
    made = tool(SHOW, schema={"positional": [{"name": "n", "type": "integer"}]})
    results: dict[int, str] = {}

    async def call(n: int) -> None:
        results[n] = await made.call(None, [n], {})

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for n in range(40):
                tasks.start_soon(call, n)
    assert results == {n: f'["{n}"]\n' for n in range(40)}


def test_it_works_in_event_loops_of_several_threads() -> None:
    made = shell("echo hello")
    results: list[str] = []

    def run() -> None:
        results.append(anyio.run(made.call, None, (), NOTHING))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == ["hello\n"] * 4
