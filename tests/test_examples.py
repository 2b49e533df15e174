"""Each example runs to its end, as a reader would start it, and shows what it promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
#: Seconds for an example that may have to download its packages first.
PATIENCE = 300
#: What an example says when the package index is out of reach.
UNREACHABLE = "package index"

SHOWS = {
    "agent_loop.py": ("KeyError: 'people'", "'name': 'Tokyo'", "answer: Tokyo"),
    "async_session.py": (
        "value: 5.6",
        "error: ZeroDivisionError: division by zero in line 2",
        "variables: kept\nvalue: True",
        "error: GuestDied",
        "counts: {'to': 2, 'be': 2, 'or': 2, 'not': 3}",
    ),
    "handles.py": (
        '{"type":"pandas.DataFrame","shape":[2000000,3]',
        "handles: {'trips': [2000000, 4], 'long': [",
        "long was made by run 1 from trips",
        "still there: 2000000",
    ),
    "main_job.py": ("178 wines of 3 growers", "flavanoids", "workflow separation:", "chart:"),
    "sandbox.py": (
        "sum of the prices: 7",
        "would allow it",
        "here: [3, 4]",
        "in the branch: [300, 400]",
        "rows still here: 2",
    ),
    "streaming.py": ("stdout: price of b is 2.0", "stderr: done", "run 1: ok"),
}


def run_example(name: str, folder: Path) -> str:
    """Run a copy of an example beside a copy of the sample workspace; give what it prints."""
    (folder / "examples").mkdir()
    shutil.copy(EXAMPLES / name, folder / "examples")
    shutil.copytree(ROOT / ".code-mode", folder / ".code-mode")
    finished = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", str(Path("examples") / name)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if finished.returncode != 0:
        explain(name, finished.stdout + finished.stderr)
    assert "Warning" not in finished.stderr, finished.stderr
    return finished.stdout


def explain(name: str, output: str) -> NoReturn:
    if UNREACHABLE in output and "reach" in output:
        pytest.skip(f"no package index can be reached, and {name} needs one")
    pytest.fail(f"{name} failed:\n{output}")


def test_every_example_is_run_by_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWS)


@pytest.mark.timeout(PATIENCE + 30)
@pytest.mark.parametrize("name", sorted(SHOWS))
def test_example_shows_what_it_promises(name: str, tmp_path: Path) -> None:
    if name == "main_job.py":
        pytest.importorskip("sklearn", reason="the extra `examples` is not installed")
    output = run_example(name, tmp_path)
    for expected in SHOWS[name]:
        assert expected in output
    if name == "main_job.py":
        chart = Path(output.rpartition("chart: ")[2].strip())
        assert chart.read_bytes().startswith(b"\x89PNG\r\n")
        kept = tmp_path / "examples" / "output" / "main_job"
        assert (kept / "workflows" / "separation.py").exists()
        # the sample workspace itself stays what it was
        left = {path.name for path in (tmp_path / ".code-mode" / "artifacts").iterdir()}
        assert left <= {".gitkeep"}
