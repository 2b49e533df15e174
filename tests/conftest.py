"""What every test may use, what no test may leave behind, and what is told at the end.

After each test nothing of it may be left: child processes (grandchildren too), threads, open files,
tasks of the event loop, temporary folders.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

pytest.register_assert_rewrite(
    "py_code_mode.testing.executors",
    "py_code_mode.testing.session_stores",
    "py_code_mode.testing.stores",
)

# On a busy machine any example may take as long as one that is too slow; `timeout` bounds them all.
# The gate tries the same examples each time; `.ci/full` tries others.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, derandomize=not os.environ.get("PY_CODE_MODE_FULL")
)
hypothesis.settings.load_profile("unhurried")

#: How long what a test has ended may take to be gone.
PATIENCE = 10.0
_PAUSE = 0.01
#: Lines that the closing block spends on a failed test, and on all of them; and how long they are.
_LINES_EACH = 40
_LINES_IN_ALL = 300
_WIDTH = 400
_PLACE = re.compile(r"[^\s:]+:\d+: in ")
_LIBRARIES = sysconfig.get_path("purelib") + os.sep


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for temporary files of this test run only, so that what is left is of this run."""
    folder = tmp_path_factory.mktemp("tmp")
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    variable = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    yield folder
    module = sys.modules.get("py_code_mode.execution.zygote")
    if module is not None:
        module.close_zygotes()
        assert not _zygotes(), "a session has not let go of its zygote"
    tempfile.tempdir = before
    if variable is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = variable


@pytest.fixture
def own_temp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of one test are made, and nothing of anybody else."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def small_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests whose environment is soon made: it has few of the packages that others have."""
    from py_code_mode.environments import EnvironmentSpec

    small = functools.partial(EnvironmentSpec, packages=("cloudpickle",))
    monkeypatch.setattr("py_code_mode.execution.subprocess.EnvironmentSpec", small)


@pytest.fixture(scope="session", autouse=True)
def own_settings(temporary_folder: Path) -> Iterator[Path]:
    """Hide what the user of this machine trusts from tests, and them from it."""
    folder = temporary_folder / "settings"
    folder.mkdir()
    variable = os.environ.get("XDG_CONFIG_HOME")
    users = Path(variable) if variable else Path.home() / ".config"
    for path in users.iterdir() if os.access(users, os.R_OK | os.X_OK) else ():
        if path.name != "py-code-mode":
            (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CONFIG_HOME", str(folder))
        yield folder / "py-code-mode"


@pytest.fixture(autouse=True)
def nothing_is_remembered(own_settings: Path) -> Iterator[None]:
    """Let no test doubt what code of an earlier one could write to."""
    yield
    shutil.rmtree(own_settings, ignore_errors=True)


@dataclass(frozen=True)
class _Present:
    """What there is at one moment."""

    processes: frozenset[tuple[int, float, str]]
    threads: frozenset[threading.Thread]
    files: frozenset[tuple[int, str]]
    folders: frozenset[str]
    supervisors: int

    def beyond(self, before: _Present) -> list[str]:
        """What was not there before, in words."""
        found = [f"process {pid}: {what}" for pid, _, what in self.processes - before.processes]
        found += [f"thread {thread.name!r}" for thread in self.threads - before.threads]
        found += [f"file descriptor {fd}: {what}" for fd, what in self.files - before.files]
        found += [f"folder {folder}" for folder in self.folders - before.folders]
        if self.supervisors > before.supervisors:
            found.append("a supervisor task that somebody did not release")
        return found


def _zygotes() -> list[Any]:
    """Those of this process, which outlive the sessions that use them."""
    module = sys.modules.get("py_code_mode.execution.zygote")
    return list(vars(module)["_zygotes"].values()) if module is not None else []


def _processes() -> frozenset[tuple[int, float, str]]:
    walls = {zygote.process.pid for zygote in _zygotes()}
    found = _descendants() if sys.platform == "linux" else _children()
    return frozenset(
        entry
        for entry in found
        # a zygote, the one that takes over from it and what it makes for the next session outlive
        # sessions; multiprocessing keeps a process for the life of this one
        if entry[0] not in walls
        and not entry[2].startswith(("pcm-zygote ", "pcm-spare "))
        and "multiprocessing.resource_tracker" not in entry[2]
    )


def _children() -> Iterator[tuple[int, float, str]]:
    for child in psutil.Process().children(recursive=True):
        try:
            command = f"{child.name()} {' '.join(child.cmdline())}"
            yield child.pid, child.create_time(), command[:200]
        except psutil.NoSuchProcess:
            continue


#: Those that are not ours, and need not be looked at again; the two scans of a test would else read
#: every process of the machine.
_strangers: set[int] = set()


def _descendants() -> Iterator[tuple[int, float, str]]:
    """The same, in one pass, since it is done twice for each test; orphans of ours too."""
    parents: dict[int, int] = {}
    facts: dict[int, tuple[float, str]] = {}
    present = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}
    _strangers.intersection_update(present)
    for pid in sorted(present - _strangers):
        try:
            head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except OSError:
            continue  # it has just ended
        words = rest.split()
        parents[pid] = int(words[1])
        facts[pid] = float(words[19]), head.partition("(")[2]
    ours = {os.getpid()}
    for pid in parents:
        above: list[int] = []
        while pid in parents and pid not in ours:
            above.append(pid)
            pid = parents[pid]
        if pid in ours:
            ours.update(above)
    for pid, parent in parents.items():
        if pid in ours:
            continue
        if _is_orphan(pid):
            ours.add(pid)
        elif parent == 0 or parent in _strangers:  # not one of ours whose parent has just ended
            _strangers.add(pid)
    for pid in ours - {os.getpid()}:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        started, name = facts[pid]
        yield pid, started, f"{name} {command}"[:200]


def _is_orphan(pid: int) -> bool:
    """Whether a process whose parent is gone is of this test run: the temporary folder tells.

    A parent that takes orphans in (man 2 prctl, PR_SET_CHILD_SUBREAPER) would alter what the tests
    see of their own children.
    """
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"TMPDIR={tempfile.gettempdir()}".encode() in variables


def _threads() -> frozenset[threading.Thread]:
    return frozenset(
        thread
        for thread in threading.enumerate()
        if not thread.daemon or thread.name.startswith(("session", "guest"))
    )


def _files() -> frozenset[tuple[int, str]]:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return frozenset()
    found: set[tuple[int, str]] = set()
    kept: set[int] = set()
    for zygote in _zygotes():
        kept |= {zygote.control.fileno(), zygote.said, vars(zygote.scratch)["_lock"]}
    for entry in os.listdir(folder):
        if int(entry) in kept:
            continue
        try:
            target = os.readlink(folder / entry)
        except OSError:
            continue  # the descriptor that lists the folder
        # what a library keeps open of its own for the life of the process, such as fonts
        if not target.startswith(("/dev/", "/proc/", "/sys/", _LIBRARIES)):
            found.add((int(entry), target))
    return frozenset(found)


def _folders() -> frozenset[str]:
    root = tempfile.gettempdir()
    kept = {zygote.scratch.packages.parent.name for zygote in _zygotes()}
    found = {name for name in os.listdir(root) if name.startswith("code-mode-")}
    return frozenset(found - kept)


def _supervisors() -> int:
    module = sys.modules.get("py_code_mode.execution.supervisor")
    return len(vars(module)["_supervisors"]) if module is not None else 0


def _present() -> _Present:
    return _Present(_processes(), _threads(), _files(), _folders(), _supervisors())


@pytest.fixture(autouse=True)
def nothing_is_left(temporary_folder: Path) -> Iterator[None]:
    """Fail a test that leaves something behind."""
    before = _present()
    yield
    until = time.monotonic() + PATIENCE
    left = _present().beyond(before)
    while left and time.monotonic() < until:
        gc.collect()
        time.sleep(_PAUSE)
        left = _present().beyond(before)
    assert not left, "left behind: " + "; ".join(left)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Have asynchronous tests fail that leave tasks on the event loop."""
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _leaving_no_tasks(pyfuncitem.obj)
    return (yield)


def _leaving_no_tasks(test: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> Any:
        before = asyncio.all_tasks()
        result = await test(*args, **kwargs)
        left = asyncio.all_tasks() - before
        if left:
            await asyncio.wait(left, timeout=PATIENCE)
        left = [task.get_name() for task in left if not task.done()]
        assert not left, f"tasks left on the event loop: {left}"
        return result

    return run


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, object, object]:
    """Tell last what failed and what was skipped, briefly: of long output often the end is kept."""
    answer = yield
    write = terminalreporter.write_line
    skipped: list[pytest.TestReport] = terminalreporter.getreports("skipped")
    if skipped:
        terminalreporter.section("skipped, by reason")
        reasons = Counter(_reason(report) for report in skipped)
        for reason, count in reasons.most_common():
            write(f"{count:5} {reason}")
    failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    if failed:
        terminalreporter.section("failed, in brief")
        share = max(_LINES_IN_ALL // len(failed), 2)  # at the least its name and what was wrong
        for report in failed:
            for line in _in_brief(report)[: min(share, _LINES_EACH)]:
                write(line[:_WIDTH])
    return answer


def _reason(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return reason.removeprefix("Skipped: ")


def _in_brief(report: pytest.TestReport | pytest.CollectReport) -> list[str]:
    """Which test failed, what it said, and the lines of ours that led there."""
    during = "" if report.when in ("call", "collect") else f" ({report.when})"
    lines = report.longreprtext.splitlines()
    most = _LINES_EACH - 10
    # of a group of exceptions there are none, and its last lines say what was wrong
    said = [line for line in lines if line.startswith("E ")][:most] or lines[-most:]
    places = [line for line in lines if _PLACE.match(line) and "site-packages" not in line]
    return [f"FAILED{during} {report.nodeid}", *said, *places[-9:]]
