"""``py-code-mode deps``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from py_code_mode.deps import Requirements
from py_code_mode.stores import FileStore

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Invoke


def test_listed_and_removed(invoke: Invoke, base: Path) -> None:
    base.mkdir()
    (base / "requirements.txt").write_text("httpx>=0.27  # HTTP\nrich\n-e .\n")
    done = invoke("deps", "list")
    assert done.stdout == "httpx>=0.27\nrich\n"
    assert "requirements.txt, line 3" in done.stderr
    assert json.loads(invoke("deps", "list", "--json").stdout) == ["httpx>=0.27", "rich"]
    invoke("deps", "remove", "httpx")
    assert (base / "requirements.txt").read_text() == "rich\n-e .\n"
    assert "not among" in invoke("deps", "remove", "httpx", status=1).stderr


def test_package_of_the_environment_is_there_already(invoke: Invoke, base: Path) -> None:
    assert invoke("deps", "add", "cloudpickle").stderr == "already present: cloudpickle\n"
    assert (base / "requirements.txt").read_text() == "cloudpickle\n"
    report = json.loads(invoke("deps", "sync", "--json").stdout)
    assert report["already_present"] == ["cloudpickle"]


def test_package_that_cannot_be_had_is_not_remembered(
    invoke: Invoke, base: Path, offline: None
) -> None:
    done = invoke("deps", "add", "surely-no-such-package==99.1", status=1)
    assert "surely-no-such-package" in done.stderr
    assert not (base / "requirements.txt").exists()


@pytest.mark.parametrize(
    "package", ["./folder", "git+https://example.org/x", "x; python_version>'3'"]
)
def test_what_is_no_plain_requirement_is_refused(invoke: Invoke, package: str) -> None:
    done = invoke("deps", "add", package, status=2)
    assert done.stderr.count("\n") == 1


def test_empty_workspace_is_told(invoke: Invoke) -> None:
    assert invoke("deps", "list").stderr.startswith("no requirements in ")
    assert invoke("deps", "sync").stderr == "nothing to install\n"


def test_what_sandboxed_code_added_is_told_and_approved(invoke: Invoke, base: Path) -> None:
    Requirements(FileStore(base)).add("cloudpickle", origin="namespaces")
    assert invoke("deps", "list").stdout == "cloudpickle\tnot approved (namespaces)\n"
    assert json.loads(invoke("deps", "list", "--json").stdout) == ["cloudpickle"]
    refused = invoke("run", "-c", "1", "--executor", "in_process", status=2)
    assert "py-code-mode deps approve cloudpickle" in refused.stderr
    done = invoke("deps", "approve", "CloudPickle")
    assert done.stderr == "approved package CloudPickle\n"
    assert json.loads(invoke("deps", "approve", "cloudpickle", "--json").stdout) == {"approved": []}
    assert invoke("deps", "list").stdout == "cloudpickle\n"
    assert invoke("run", "-c", "1", "--executor", "in_process").stdout == "1\n"


def test_only_what_is_there_can_be_approved(invoke: Invoke) -> None:
    assert "not among" in invoke("deps", "approve", "six", status=2).stderr


def test_run_installs_the_requirements_unless_told_not_to(
    invoke: Invoke, base: Path, offline: None
) -> None:
    base.mkdir()
    (base / "requirements.txt").write_text("surely-no-such-package==99.1\n")
    assert "surely-no-such-package" in invoke("run", "-c", "1", status=2).stderr
    assert invoke("run", "-c", "1", "--no-sync").stdout == "1\n"
