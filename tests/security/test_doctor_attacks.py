"""``py-code-mode doctor`` tells what came of the escape suite."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from py_code_mode.cli import escapes
from py_code_mode.cli.escapes import EscapeReport, Verdict
from py_code_mode.cli.main import app

if TYPE_CHECKING:
    from pathlib import Path


def _report(*texts: str) -> EscapeReport:
    return EscapeReport(
        backend="namespaces",
        uid=os.geteuid(),
        verdicts=tuple(
            Verdict(name=f"attack {number}", group="files", text=text)
            for number, text in enumerate(texts)
        ),
        duration=9.8,
        left_out={"another": "a control group"},
    )


@pytest.mark.parametrize(
    ("texts", "is_ok", "shown"),
    [
        (["blocked: EPERM", "contained: x"], True, "2 attacks, 0 got out, 9.8 s"),
        (["blocked: EPERM", "ESCAPED: \x1b[2J"], False, "attack 1: ESCAPED"),
    ],
)
def test_doctor_tells_what_got_out(
    texts: list[str], is_ok: bool, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def attack() -> EscapeReport:
        return _report(*texts)

    monkeypatch.setattr(escapes, "run_escapes", attack)
    done = CliRunner().invoke(app, ["doctor", "--base", str(tmp_path)])
    assert done.exit_code == (0 if is_ok else 1), done.output
    assert shown in done.output
    assert "1 not tried" in done.output
    found = CliRunner().invoke(app, ["doctor", "--base", str(tmp_path), "--json"])
    told = json.loads(found.stdout)
    assert told["ok"] is is_ok
    assert told["escapes"]["ok"] is is_ok
    assert told["checks"][-1]["name"] == "escape suite"
    assert len(told["escapes"]["attacks"]) == len(texts)


def test_doctor_attacks_nothing_unless_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escapes, "run_escapes", None)
    done = CliRunner().invoke(app, ["doctor", "--base", str(tmp_path), "--no-escapes"])
    assert done.exit_code == 0, done.output
    assert "escape suite" not in done.output
