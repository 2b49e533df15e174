"""What an import brings along: little on the host, the standard library alone in the guest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from py_code_mode import guest
from py_code_mode.environments.interpreters import find_interpreter
from py_code_mode.errors import InterpreterNotFound

ROOT = Path(__file__).parent.parent
GUEST = Path(guest.__file__).parent
GUEST_VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
HEAVY = frozenset(
    {
        "IPython",
        "jsonschema",
        "matplotlib",
        "multiprocessing",
        "numpy",
        "pandas",
        "platformdirs",
        "pyarrow",
        "pytest",
        "rich",
        "typer",
        "uv",
        "yaml",
    }
)

LOADED = """
import json, sys
before = set(sys.modules)
{code}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""

IMPORT_GUEST = """
import importlib.util, json, sys

folder = {folder!r}
spec = importlib.util.spec_from_file_location(
    "a_guest", folder + "/__init__.py", submodule_search_locations=[folder]
)
package = sys.modules["a_guest"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
for name in {names!r}:
    importlib.import_module("a_guest." + name)
standard = {{*sys.stdlib_module_names, *sys.builtin_module_names, "a_guest", "__main__"}}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}} - standard)))
"""


def run_python(python: str, code: str, *options: str) -> list[str]:
    """What the code prints as JSON."""
    finished = subprocess.run(
        [python, *options, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize(
    "code",
    [
        "import py_code_mode",
        "from py_code_mode import Session, FileStorage; Session(FileStorage('nowhere'))",
        "from py_code_mode import Session; Session.subprocess('nowhere')",
        "from py_code_mode import Session; Session.inprocess('nowhere')",
    ],
)
def test_import_and_construction_load_no_heavy_library(code: str) -> None:
    assert HEAVY.isdisjoint(run_python(sys.executable, LOADED.format(code=code)))


def test_importing_the_package_alone_loads_almost_nothing() -> None:
    loaded = run_python(sys.executable, LOADED.format(code="import py_code_mode"))
    assert "anyio" not in loaded
    assert "asyncio" not in loaded


@pytest.mark.parametrize("version", GUEST_VERSIONS)
def test_guest_needs_the_standard_library_only(version: str) -> None:
    try:
        python = str(find_interpreter(version).path)
    except InterpreterNotFound:
        pytest.skip(f"there is no Python {version} here")
    names = sorted(path.stem for path in GUEST.glob("*.py") if not path.stem.startswith("__"))
    code = IMPORT_GUEST.format(folder=str(GUEST), names=names)
    # -I and -S: no site-packages, so that a third-party import would fail at once
    assert run_python(python, code, "-I", "-S", "-W", "error") == []
