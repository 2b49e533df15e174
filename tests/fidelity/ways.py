"""The four ways in which a test module is run: two plain ones, and a session for each.

Every way starts a process of its own, with the same interpreter, variables, standard input and kind
of current directory as the one it is compared with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import anyio

from py_code_mode import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

Way: TypeAlias = Literal["plain", "worker", "thread", "in_process"]

#: Each way of a session, and the plain one that it must equal.
PAIRS: tuple[tuple[Way, Way], ...] = (("plain", "worker"), ("thread", "in_process"))
RUNNER = Path(__file__).with_name("runner.py").read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a module ended: the outcome of each test by id, or why there is none."""

    outcomes: Mapping[str, str]
    details: Mapping[str, str]
    failure: str | None = None


def cell(module: str, left_out: tuple[str, ...]) -> str:
    """Source whose last expression is the report of one module."""
    return f"{RUNNER}\n\nrun_module({module!r}, {left_out!r})\n"


_PLAIN = """{runner}

if __name__ == "__main__":
    import json, os
    sys.path.insert(0, os.getcwd())
    report = run_module({module!r}, {left_out!r})
    with open({path!r}, "w") as file:
        json.dump(report, file)
"""

#: The host program of both ways with a thread. It runs an event loop on its main thread, has loaded
#: the same libraries, and takes SIGINT, which tests send to the process, for itself.
_HOST = """import asyncio, json, signal, sys, threading
import anyio
from py_code_mode import Session
from py_code_mode.execution import in_process

async def by_thread(source):
    loop, done, variables = asyncio.get_running_loop(), asyncio.Event(), {{"__name__": "runner"}}
    def work():
        exec(source, variables)
        variables["report"] = variables["run_module"](*{arguments!r})
        loop.call_soon_threadsafe(done.set)
    threading.Thread(target=work, daemon=True).start()
    await done.wait()
    return variables["report"]

async def by_session(source):
    async with Session.inprocess({base!r}, timeout=None) as session:
        result = await session.run(source + "\\n\\nrun_module(*{arguments!r})")
        return result.value if result.is_ok else {{"failure": result.error}}

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    report = await {way}({runner!r})
    with open({path!r}, "w") as file:
        json.dump(report, file)

anyio.run(main)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all ways share: the worker's interpreter and variables, found out by asking one."""

    python: str
    variables: Mapping[str, str]

    @classmethod
    def make(cls) -> Bench:
        """Start a worker and ask."""

        async def ask() -> Bench:
            with tempfile.TemporaryDirectory(prefix="fidelity-") as base:
                async with Session.subprocess(base) as session:
                    result = await session.run("import os, sys\nsys.executable, dict(os.environ)")
                    python, variables = cast("tuple[str, dict[str, str]]", result.value)
                    return cls(python=python, variables=variables)

        return anyio.run(ask)

    def has_tests(self, module: str) -> bool:
        """Whether the worker's interpreter has this test module, and its data."""
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec('test.{module}') is None)"
        done = subprocess.run(
            [self.python, "-I", "-c", code], stderr=subprocess.DEVNULL, env=dict(self.variables)
        )
        return done.returncode == 0

    def run(self, way: Way, module: str, *, timeout: float, left_out: tuple[str, ...]) -> Report:
        """Run one module in one way; a way that gives no report says why."""
        if way == "worker":
            return anyio.run(_in_worker, cell(module, left_out), timeout)
        with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
            work = Path(folder, "work")
            work.mkdir()
            path = str(Path(folder, "report.json"))
            if way == "plain":
                python = self.python
                source = _PLAIN.format(runner=RUNNER, module=module, left_out=left_out, path=path)
            else:
                python = sys.executable
                source = _HOST.format(
                    arguments=(module, left_out),
                    base=folder,
                    way="by_thread" if way == "thread" else "by_session",
                    runner=RUNNER,
                    path=path,
                )
            return self._in_a_process(python, source, work, Path(path), timeout)

    def _in_a_process(
        self, python: str, source: str, work: Path, path: Path, timeout: float
    ) -> Report:
        child = subprocess.Popen(
            [python, "-I", "-c", source],
            cwd=work,
            env=dict(self.variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, errors = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return Report(outcomes={}, details={}, failure=f"took more than {timeout} s")
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # nothing of it is left
            child.wait()
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.close()
            child.stderr.close()
        if not path.exists():
            end = errors.decode(errors="replace")[-2000:]
            return Report(outcomes={}, details={}, failure=f"exit {child.returncode}: {end}")
        return _report(json.loads(path.read_text()))


def _report(value: object) -> Report:
    report = cast("dict[str, dict[str, str]]", value)
    if "failure" in report:
        return Report(outcomes={}, details={}, failure=str(report["failure"]))
    return Report(outcomes=report["outcomes"], details=report["details"])


async def _in_worker(source: str, timeout: float) -> Report:
    with tempfile.TemporaryDirectory(prefix="fidelity-") as base:
        async with Session.subprocess(base, timeout=timeout) as session:
            result = await session.run(source)
    if result.failure is not None:
        end = f"{result.error}\n{result.failure.traceback}\n{result.stderr[-2000:]}"
        return Report(outcomes={}, details={}, failure=end)
    return _report(result.value)


def differences(expected: Report, got: Report) -> dict[str, tuple[str, str]]:
    """Ids whose outcome differs, with both outcomes."""
    if expected.failure is not None or got.failure is not None:
        return {"(module)": (expected.failure or "ran", got.failure or "ran")}
    ids = {*expected.outcomes, *got.outcomes}
    pairs = {
        name: (expected.outcomes.get(name, "absent"), got.outcomes.get(name, "absent"))
        for name in sorted(ids)
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
