"""``py-code-mode doctor``."""

from __future__ import annotations

import json
import platform
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode import Capability, SubprocessExecutor
from py_code_mode.cli.doctor import layer_checks, sandbox_check
from py_code_mode.deps import Requirements
from py_code_mode.environments import Environment
from py_code_mode.sandbox.probe import LAYERS, Layer, Probe, probe
from py_code_mode.stores import FileStore

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Invoke


def checks(text: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(text)["checks"]}


def test_tells_what_works(invoke: Invoke) -> None:
    done = invoke("doctor", "--no-escapes")
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       worker: started in ") for line in lines)
    assert any(line.startswith("ok       uv: uv ") for line in lines)


def test_tells_which_sandbox_a_session_gets_and_what_each_layer_said(invoke: Invoke) -> None:
    found = checks(invoke("doctor", "--no-escapes", "--json").stdout)
    best = probe().backends[0]
    assert found["sandbox"]["text"].startswith(f"{best}: ")
    assert found["sandbox backend"]["text"].startswith(best)
    for layer in probe().layers:
        told = found[f"layer {layer.name}"]
        if layer.is_ok:
            assert told["level"] == "ok"
        else:
            assert layer.detail in told["text"]
            assert told["remedy"] == layer.remedy or "not needed here" in told["text"]


@pytest.mark.parametrize(
    ("isolation", "lacks", "level", "words"),
    [
        ("namespaces", set[str](), "ok", "files of the host are hidden, no network"),
        ("landlock", {Capability.DISK_LIMIT}, "warning", "not enforced here: disk space"),
        ("none", SubprocessExecutor.offers, "warning", "may do whatever your user may"),
    ],
)
def test_says_what_is_enforced(isolation: str, lacks: set[str], level: str, words: str) -> None:
    check = sandbox_check(isolation, SubprocessExecutor.offers - lacks)
    assert check.level == level
    assert words in check.text


def test_failed_layers_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tuple(
        Layer(name=name, is_ok=name != "landlock", error=38, detail="why", remedy="do this")
        for name in LAYERS
    )
    monkeypatch.setattr("py_code_mode.sandbox.probe.probe", lambda: Probe(layers=layers))
    found = {check.name: check for check in layer_checks()}
    assert found["layer landlock"].text == "failed [ENOSYS]: why"
    assert (found["layer landlock"].level, found["layer landlock"].remedy) == ("warning", "do this")


def test_json_has_every_check(invoke: Invoke) -> None:
    done = invoke("doctor", "--no-escapes", "--json")
    assert json.loads(done.stdout)["ok"] is True
    found = checks(done.stdout)
    assert {"host", "interpreters", "uv", "environments", "worker", "sandbox"} <= set(found)
    assert platform.python_version() in found["interpreters"]["text"]
    assert "process_isolation" in found["executor subprocess"]["text"]


def test_no_worker_is_a_problem_with_a_remedy(
    invoke: Invoke, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PY_CODE_MODE_CACHE", str(tmp_path / "cache"))
    done = invoke("doctor", "--no-escapes", status=1)
    assert "this happens once" in done.stderr
    found = checks(invoke("doctor", "--no-escapes", "--json", status=1).stdout)
    assert found["worker"]["level"] == "problem"
    assert found["worker"]["remedy"]


def test_index_that_does_not_answer_is_a_warning(invoke: Invoke, offline: None) -> None:
    found = checks(invoke("doctor", "--no-escapes", "--json", "--network").stdout)
    assert found["package index"]["level"] == "warning"


def test_faults_of_the_workspace_are_told(invoke: Invoke, base: Path) -> None:
    (base / "tools").mkdir(parents=True)
    (base / "tools" / "bad.yaml").write_text("command: [")
    (base / "requirements.txt").write_text("-e .\n")
    done = invoke("doctor", "--no-escapes")
    assert "tools/bad.yaml" in done.stdout
    assert "requirements.txt, line 1" in done.stdout
    (base / "config.yaml").write_text("nonsense: 1\n")
    assert "config.yaml" in invoke("doctor", "--no-escapes", status=1).stdout


def test_what_sandboxed_code_left_is_told_with_how_to_approve_it(
    invoke: Invoke, base: Path
) -> None:
    Requirements(FileStore(base)).add("cloudpickle>=1", origin="namespaces")
    done = invoke("doctor", "--no-escapes")
    assert "the requirement cloudpickle>=1 was added by sandboxed code (namespaces)" in done.stdout
    assert "-> py-code-mode deps approve cloudpickle, if you want it" in done.stdout


def test_backend_that_could_not_get_at_the_environment_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was offered, and refused to start."""
    found = probe()
    monkeypatch.setattr(
        "py_code_mode.sandbox.probe.probe",
        lambda: SimpleNamespace(
            backends=("namespaces", "landlock"),
            layers=(),
            landlock_gaps=(),
            duration=found.duration,
            uid=0,
        ),
    )
    monkeypatch.setattr("py_code_mode.execution.sandbox.sandbox_user", lambda: 65534)
    tmp_path.chmod(0o700)
    environment = Environment(
        python=tmp_path / "bin" / "python",
        version=(3, 11, 2),
        site_packages=tmp_path,
        search_path=(),
        key="",
    )
    assert "namespaces; also: landlock (" in next(layer_checks()).text
    text = next(layer_checks(environment)).text
    assert "also" not in text
    assert "not landlock: " in text
    assert f"{tmp_path}/bin/python cannot be read by user 65534" in text
