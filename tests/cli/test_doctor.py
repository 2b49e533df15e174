"""``py-code-mode doctor``."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from .conftest import Invoke


def checks(text: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(text)["checks"]}


def test_tells_what_works_and_that_there_is_no_sandbox(invoke: Invoke) -> None:
    done = invoke("doctor")
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       worker: started in ") for line in lines)
    assert any(line.startswith("ok       uv: uv ") for line in lines)
    assert any(line.startswith("warning  sandbox: none in this version") for line in lines)


def test_json_has_every_check(invoke: Invoke) -> None:
    done = invoke("doctor", "--json")
    assert json.loads(done.stdout)["ok"] is True
    found = checks(done.stdout)
    assert {"host", "interpreters", "uv", "environments", "worker", "sandbox"} <= set(found)
    assert platform.python_version() in found["interpreters"]["text"]
    assert "process_isolation" in found["executor subprocess"]["text"]


def test_no_worker_is_a_problem_with_a_remedy(
    invoke: Invoke, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PY_CODE_MODE_CACHE", str(tmp_path / "cache"))
    done = invoke("doctor", status=1)
    assert "this happens once" in done.stderr
    found = checks(invoke("doctor", "--json", status=1).stdout)
    assert found["worker"]["level"] == "problem"
    assert found["worker"]["remedy"]


def test_index_that_does_not_answer_is_a_warning(invoke: Invoke, offline: None) -> None:
    found = checks(invoke("doctor", "--json", "--network").stdout)
    assert found["package index"]["level"] == "warning"


def test_faults_of_the_workspace_are_told(invoke: Invoke, base: Path) -> None:
    (base / "tools").mkdir(parents=True)
    (base / "tools" / "bad.yaml").write_text("command: [")
    (base / "requirements.txt").write_text("-e .\n")
    done = invoke("doctor")
    assert "tools/bad.yaml" in done.stdout
    assert "requirements.txt, line 1" in done.stdout
    (base / "config.yaml").write_text("nonsense: 1\n")
    assert "config.yaml" in invoke("doctor", status=1).stdout
