"""A session that was killed in the middle of a run: all of it can be seen, and it comes back."""

# nbformat has no types.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import anyio
import pytest

from py_code_mode import FileStorage, Session, SubprocessConfig, SubprocessExecutor
from py_code_mode.sandbox.probe import probe

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run

PATIENCE = 60.0

SESSION = """
import sys, threading
import anyio
from py_code_mode import FileStorage, Session, SubprocessConfig, SubprocessExecutor

PICTURE = (
    "import base64\\n"
    "class Figure:\\n"
    "    def __init__(self, n): self.n = n\\n"
    "    def _repr_png_(self):\\n"
    "        return base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "YPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==')"
)

def roll(sides: int) -> int:
    "Roll a die."
    return sides // 2

def stop() -> None:
    "Never return."
    print(session.id, flush=True)
    threading.Event().wait()

async def main() -> None:
    global session
    executor = SubprocessExecutor(SubprocessConfig(backend="namespaces"))
    async with Session(FileStorage(sys.argv[1]), executor) as session:
        session.add_tool(roll)
        session.add_tool(stop)
        await session.run("import json\\nlog = []\\nfound = {}")
        await session.run(PICTURE)
        for number in range(10):
            await session.run(f"log.append({number}); display(Figure({number}))")
        for number in range(5):
            await session.run(f"found[{number}] = tools.roll(sides={number + 4})")
        for number in range(3):
            await session.run(f"print('needle', {number}); 1 / 0")
        checkpoint = await session.checkpoint()
        await session.run("log.append('undone'); tools.roll(sides=100)")
        await session.rollback(checkpoint)
        for number in range(9):
            await session.run(f"def later(n={number}): return n + len(log)")
        await session.run("log = 'half'; tools.stop()")

anyio.run(main)
"""
VARIABLES = "log, found, later(), Figure(3).n, json.dumps(found)"
EXPECTED = (
    list(range(10)),
    {number: (number + 4) // 2 for number in range(5)},
    18,
    3,
    '{"0": 2, "1": 2, "2": 3, "3": 3, "4": 4}',
)


def killed(base: Path) -> str:
    """Have a process run a session and be killed in the 31st run; gives the session's id."""
    place = {**os.environ, "TMPDIR": str(base.parent)}
    command = [sys.executable, "-c", SESSION, str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=place) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        process.kill()
    return name


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook after every cell of it has run, away from this user's own settings."""
    import nbformat

    path = folder / "executed.ipynb"
    nbformat.write(notebook, path)
    names = ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
    own = {name: str(folder / name) for name in names}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path)],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return nbformat.read(path, as_version=4)


async def resumed(base: Path, name: str, mode: Literal["restore", "replay"]) -> Any:
    executor = SubprocessExecutor(SubprocessConfig(backend="namespaces"))
    with anyio.fail_after(PATIENCE):
        async with Session.resume(
            name, storage=FileStorage(base), executor=executor, mode=mode
        ) as session:
            result = await session.run(VARIABLES)
            assert result.is_ok, result.failure
            return result.value, result.notes


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    "namespaces" not in probe().backends, reason="this machine allows no namespaces"
)
def test_killed_session_is_seen_searched_exported_and_resumed(
    run: Run, tmp_path: Path, here: Path
) -> None:
    import nbformat

    base = tmp_path / "base"
    base.mkdir()
    name = killed(base)

    def sessions(*arguments: str) -> str:
        done = run("sessions", *arguments, "--base", str(base))
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert name[:8] in sessions("list")
    shown = sessions("show", name)
    assert "ZeroDivisionError" in shown
    assert "crashed" in shown
    assert name[:8] in sessions("search", "needle")

    sessions("export", name, "--format", "ipynb", "--output", str(here / "killed.ipynb"))
    notebook: Any = nbformat.read(here / "killed.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert "undone" not in json.dumps(
        [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    )
    assert "image/png" in json.dumps(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(f"print(({VARIABLES}))"))
    assert executed(notebook, tmp_path).cells[-1].outputs[0].text.strip() == repr(EXPECTED)

    for kind in ("markdown", "json", "html"):
        text = sessions("export", name, "--format", kind, "--output", "-")
        assert "needle" in text
    value, notes = anyio.run(resumed, base, name, "restore")
    assert value == EXPECTED
    assert any("resumed without run 31" in note for note in notes)
    assert anyio.run(resumed, base, name, "replay") == (EXPECTED, ())
    assert "restore" in sessions("show", name) or "reopen" in sessions("show", name)
