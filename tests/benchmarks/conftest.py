"""Selection, and the report that the benchmarks of one run share.

How fast it is, next to floors and peers measured in the same run:
``python -m pytest -m benchmark tests/benchmarks`` runs all of it (ten minutes), prints a table
and writes it to ``build/benchmarks.md`` and ``.json`` (``--benchmark-report`` names another place).
Without ``-m benchmark`` nothing here is selected.

The two sides of every comparison take turns, so that a machine that is busy for a while slows both:
quote the ratios, not the milliseconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_DEFAULT = _HERE.parent.parent / "build" / "benchmarks.md"
_report = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark-report",
        help="where the table goes (.md; a .json is written beside it); the environment variable "
        "PY_CODE_MODE_BENCHMARK_REPORT says the same",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_report] = Report()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Where a benchmark says what it found."""
    return pytestconfig.stash[_report]


@pytest.fixture(scope="session", autouse=True)
def bytecode_is_kept() -> Iterator[None]:
    """Have children write and use .pyc files, as installed programs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    report = config.stash[_report]
    if not report.rows:
        return
    # no such option where only a folder above was named
    named = config.getoption("--benchmark-report", None)
    path = Path(named or os.environ.get("PY_CODE_MODE_BENCHMARK_REPORT") or _DEFAULT)
    report.write(path)
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(report.to_markdown())
    terminalreporter.write_line(f"written to {path}")
