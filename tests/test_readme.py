"""What the README says is so: its code runs, its tables and its picture of the tree are true."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from py_code_mode import ExecutionResult
from py_code_mode.execution.executor import Capability
from py_code_mode.execution.in_process import InProcessExecutor
from py_code_mode.execution.subprocess import SubprocessExecutor
from py_code_mode.namespaces import Namespaces
from py_code_mode.workspace import read_config

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = ("README.md", "executors/README.md", "CHANGELOG.md")
PATIENCE = 300


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def rows(section: str) -> Iterator[tuple[str, ...]]:
    """The rows of the first table of a section, without its head."""
    _, found, text = README.partition(f"\n## {section}\n")
    assert found, f"there is no section {section!r}"
    table = re.findall(r"^\|(.*)\|$", text.partition("\n## ")[0], re.MULTILINE)
    for line in table[2:]:
        yield tuple(cell.strip() for cell in line.split("|"))


@pytest.mark.timeout(PATIENCE + 30)
@pytest.mark.parametrize("code", blocks("python"))
def test_code_prints_what_its_comments_say(code: str, tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if "package index cannot be reached" in finished.stderr:
        pytest.skip("no package index can be reached")
    if "this machine cannot enforce" in finished.stderr:
        pytest.skip("this machine has no sandbox")
    assert finished.returncode == 0, finished.stderr
    expected = re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert expected
    assert finished.stdout.splitlines() == expected


def test_configuration_is_valid(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "config.yaml").write_text(block, "utf-8")
    said = read_config(tmp_path)
    assert (said.executor, said.timeout) == ("subprocess", 60)
    assert read_config(ROOT / ".code-mode") == said


def test_commands_name_files_and_extras_that_exist() -> None:
    job, tests = blocks("sh")[:2]
    assert "examples/main_job.py" in job
    assert (ROOT / "examples/main_job.py").is_file()
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in re.findall(r'"\.\[(\w+)\]"', job + tests):
        assert re.search(rf"^{extra} = \[", settings, re.MULTILINE)
    # what the gate runs is what the page says
    assert "python -m pytest" in tests
    assert "python -m pytest" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_command_line_has_the_commands_shown() -> None:
    shown = [line for line in blocks("sh")[2].splitlines() if line]
    for line in shown:
        command, _, comment = line.partition("#")
        words = shlex.split(command)
        assert words[0] == "py-code-mode"
        group = words[1]
        described = run_cli(group, "--help")
        names = re.findall(r"\w+", comment.partition(":")[2]) if f"{group}:" in comment else []
        for name in names:
            assert re.search(rf"^  {name} ", described, re.MULTILINE), f"{group} {name}"


def run_cli(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "py_code_mode", *arguments],
        env={**os.environ, "COLUMNS": "100"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_result_fields_exist() -> None:
    known = {field.name for field in fields(ExecutionResult)} | {"is_ok", "to_text"}
    told = {
        re.sub(r"\(.*\)", "", name)
        for row in rows("What a run gives")
        for name in re.findall(r"`([^`]+)`", row[0])
    }
    assert told <= known
    assert {"value", "stdout", "error", "is_ok", "state", "displays", "failure"} <= told


def test_namespaces_are_those_of_the_table() -> None:
    told = {row[0].strip("`"): row[1] for row in rows("What code finds")}
    table = Namespaces.describe()
    assert set(told) == {*table, "display"}
    for name, described in table.items():
        for method in described["methods"]:
            assert method["name"] in told[name], f"{name}.{method['name']} is not told"


def test_capabilities_are_those_of_the_executors() -> None:
    told: set[str] = set()
    for first, in_process, subprocess_ in rows("Executors"):
        capability = first.partition("`")[2].partition("`")[0]
        told.add(capability)
        assert (in_process == "yes") == (capability in InProcessExecutor.offers), capability
        assert (subprocess_ == "yes") == (capability in SubprocessExecutor.offers), capability
    assert told == {
        value for name, value in vars(Capability).items() if name.isupper() and value is not None
    }


def test_picture_of_the_tree_is_true() -> None:
    (picture,) = (block for block in blocks("") if "py_code_mode/" in block)
    inside = set(re.findall(r"^[├└]── (\S+)", picture, re.MULTILINE))
    for name in re.findall(r"^\w\S*|^\.\S+", picture, re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "py_code_mode").iterdir()
        if not path.name.startswith("__") and path.name != "py.typed"
    }
    assert inside == there


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), link


def test_readme_is_a_page_that_people_read() -> None:
    assert len(README.splitlines()) < 420
