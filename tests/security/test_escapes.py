"""The escape suite, as ``doctor`` runs it: nothing gets out, on a root host and an ordinary one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

import py_code_mode
from py_code_mode.cli.escapes import EscapeReport, Verdict, run_escapes
from py_code_mode.sandbox.escapes import GROUPS, all_attacks, cell
from py_code_mode.sandbox.probe import probe

#: Seconds for all passes as somebody else, who has first to fetch an environment of its own.
PATIENCE = 300.0
#: Seconds that one pass may take here, where other tests run at the same time.
SLOWEST_PASS = 200.0
UNPRIVILEGED = 65534
ATTACKS = {attack.name: attack for attack in all_attacks()}
#: What research had tried, and at least as many again.
FEWEST = 63 + 60
HELD = ("blocked:", "contained:")
_AS_SOMEBODY_ELSE = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import anyio
from py_code_mode.cli.escapes import run_escapes
from py_code_mode.errors import CodeModeError
from py_code_mode.sandbox.probe import probe
async def main():
    report = (await run_escapes()).to_json()
    groups = ("files", "network", "neighbours")
    others = [each for each in probe().backends if each not in ("none", report["backend"])]
    report["others"] = [(await run_escapes(each, groups=groups)).to_json() for each in others]
    return report
try:
    print(json.dumps(anyio.run(main)))
except CodeModeError as error:
    print(json.dumps({"error": str(error)}))
"""
pytestmark = pytest.mark.timeout(PATIENCE + 30)  # the first test that asks for a pass waits for it
_HOW_TO_INSTALL = ("PIP_", "SSL_CERT", "UV_")

needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or probe().backends[0] == "none", reason="there is no sandbox here"
)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of the suite."""

    verdicts: dict[str, str]
    left_out: dict[str, str]
    backend: str
    duration: float
    others: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def ours() -> Pass:
    return _run_as_we_are()


@pytest.fixture(scope="module", params=["as we are", "unprivileged"])
def passed(request: pytest.FixtureRequest) -> Pass:
    if request.param == "as we are":
        return _run_as_we_are()
    if os.geteuid() != 0:
        pytest.skip("that is what we are")
    return _pass_of(_run_as_somebody_else())


@cache
def _run_as_we_are() -> Pass:
    with start_blocking_portal() as portal:
        return _pass_of(portal.call(run_escapes).to_json())


def _pass_of(report: dict[str, Any]) -> Pass:
    return Pass(
        verdicts=_verdicts(report),
        left_out=report["left_out"],
        backend=report["backend"],
        duration=report["duration"],
        others={str(each["backend"]): _verdicts(each) for each in report.get("others", ())},
    )


def _verdicts(report: dict[str, Any]) -> dict[str, str]:
    attacks: list[dict[str, str]] = report["attacks"]
    return {each["name"]: each["text"] for each in attacks}


@cache
def _run_as_somebody_else() -> dict[str, Any]:
    """The suite in a process that is not root, with environments of its own."""
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(_HOW_TO_INSTALL)
    }
    variables.pop("UV_CACHE_DIR", None)
    with tempfile.TemporaryDirectory(prefix="code-mode-test-", dir="/tmp") as folder:
        os.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
        done = subprocess.run(
            [_interpreter(), "-I", "-B", "-c", _AS_SOMEBODY_ELSE, json.dumps(_paths())],
            cwd=folder,
            env={
                **variables,
                "HOME": folder,
                "PATH": "/usr/bin:/bin",
                "PY_CODE_MODE_CACHE": f"{folder}/cache",
                "TMPDIR": folder,
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            user=UNPRIVILEGED,
            group=UNPRIVILEGED,
            extra_groups=(),
        )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in report:
        pytest.skip(f"no session can be had as another user: {report['error']}")
    return report


def _paths() -> list[str]:
    package = Path(py_code_mode.__file__).parents[1]
    return [str(package), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]


def _interpreter() -> str:
    """One of our version that anybody may run."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            done = subprocess.run(
                [python, "-I", "-c", code],
                capture_output=True,
                text=True,
                timeout=30,
                cwd="/",
                user=UNPRIVILEGED,
                group=UNPRIVILEGED,
                extra_groups=(),
            )
        except OSError:
            continue
        if done.stdout.strip() == version:
            return python
    pytest.skip(f"no Python {version} that another user may run")


# -- what the suite finds


@needs_sandbox
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gets_nowhere(ours: Pass, name: str) -> None:
    if name in ours.left_out:
        pytest.skip(f"withstood only with {ours.left_out[name]}")
    assert ours.verdicts[name].startswith(HELD), ours.verdicts[name]


@needs_sandbox
@pytest.mark.parametrize("group", GROUPS)
def test_no_attack_of_a_group_gets_anywhere(passed: Pass, group: str) -> None:
    names = [name for name, attack in ATTACKS.items() if attack.group == group]
    tried = {name: passed.verdicts[name] for name in names if name not in passed.left_out}
    if not tried:
        needed = sorted({passed.left_out[name] for name in names})
        pytest.skip(f"withstood only with {', '.join(needed)}")
    assert not {name: text for name, text in tried.items() if not text.startswith(HELD)}


@needs_sandbox
def test_the_host_is_as_it_was(passed: Pass) -> None:
    looked_at = {name: text for name, text in passed.verdicts.items() if name not in ATTACKS}
    assert len(looked_at) > len(GROUPS)
    wrong = {name: text for name, text in looked_at.items() if not text.startswith("contained:")}
    assert not wrong


@needs_sandbox
def test_most_attacks_are_withstood(passed: Pass) -> None:
    assert passed.backend != "none"
    assert len(passed.verdicts) >= FEWEST
    # a shared machine is slower than the one that doctor promises 20 s for
    assert passed.duration < SLOWEST_PASS


@needs_sandbox
def test_what_stands_in_for_the_best_sandbox_holds_too(passed: Pass) -> None:
    wrong = {
        (backend, name): text
        for backend, verdicts in passed.others.items()
        for name, text in verdicts.items()
        if not text.startswith(HELD)
    }
    assert not wrong


# -- the suite itself


def test_an_attack_is_of_one_group_and_says_what_it_needs() -> None:
    assert len(ATTACKS) >= FEWEST
    assert {attack.group for attack in ATTACKS.values()} == set(GROUPS)
    assert {attack.needs for attack in ATTACKS.values()} == {
        "",
        "a control group",
        "files of its own",
    }


def test_what_is_sent_to_a_guest_is_code_of_every_python_of_a_guest() -> None:
    compile(cell(GROUPS, {"secret": "/x"}), "cell", "exec")


def test_what_gets_out_is_told_apart_from_what_could_not_be_tried() -> None:
    def verdict(text: str) -> Verdict:
        return Verdict(name="x", group="files", text=text)

    report = EscapeReport(
        backend="namespaces",
        uid=0,
        verdicts=tuple(map(verdict, ("blocked: EPERM", "contained: x", "ESCAPED: x", "BROKEN: x"))),
        duration=1.0,
    )
    assert [each.text for each in report.escaped] == ["ESCAPED: x", "BROKEN: x"]
    assert str(report) == "4 attacks, 2 got out, 1.0 s (namespaces, uid 0)"
    assert report.to_json()["ok"] is False


def test_an_attack_that_works_is_an_escape() -> None:
    """The attacks are attacks: outside a sandbox most of the harmless ones succeed."""
    harmless = ("read_the_hosts_environment", "see_other_processes")
    code = (
        "tools = workflows = artifacts = deps = display = None\n"
        + cell(["files", "processes"], {"variable": "CANARY"})
        + f"\nprint(verdicts({harmless!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        env={"CANARY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ESCAPED") == len(harmless), done.stdout
