"""How uv is run, and with which settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
import uv

from py_code_mode.environments.uv import (
    IndexUnreachable,
    pip_settings,
    run_uv,
    uv_settings,
    without_credentials,
)
from py_code_mode.errors import ConfigError, EnvironmentFailed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.environments.conftest import StuckUv

pytestmark = pytest.mark.usefixtures("clean_settings")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a user with no settings."""
    return {"HOME": str(tmp_path), "PATH": "/bin", "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- settings -----------------------------------------------------------------------------------


def test_pip_files_and_variables_are_read_in_pips_order(
    home: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path / "xdg/pip/pip.conf", "[global]\nindex-url = https://a/simple\ntimeout = 9\n")
    assert pip_settings(home)["index-url"] == "https://a/simple"
    write(tmp_path / ".pip/pip.conf", "[global]\nindex_url = https://b/simple\n")
    assert pip_settings(home)["index-url"] == "https://b/simple"
    write(
        tmp_path / ".config/pip/pip.conf",
        "[install]\nindex-url = https://d/simple\n[global]\nindex-url = https://c/simple\n",
    )
    assert pip_settings(home)["index-url"] == "https://d/simple"
    chosen = write(tmp_path / "chosen.conf", "[global]\nindex-url = https://e/100%\n")
    named = {**home, "PIP_CONFIG_FILE": str(chosen)}
    assert pip_settings(named)["index-url"] == "https://e/100%"
    assert pip_settings({**named, "PIP_INDEX_URL": "https://f"})["index-url"] == "https://f"
    assert "index-url" not in pip_settings({**home, "PIP_CONFIG_FILE": os.devnull})


def test_pips_settings_become_uvs(home: dict[str, str], tmp_path: Path) -> None:
    links = tmp_path / "my, wheels"
    links.mkdir()
    found = uv_settings(
        {
            **home,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": "https://one/simple",
            "PIP_EXTRA_INDEX_URL": f"https://two/simple file://{tmp_path} file:///gone",
            "PIP_FIND_LINKS": f"https://three/wheels {tmp_path} {tmp_path / 'gone'}",
            "PIP_CERT": "/etc/certificates.pem",
            "PIP_TRUSTED_HOST": "one two:8080",
        }
    ).environment
    assert found["UV_DEFAULT_INDEX"] == "https://one/simple"
    assert found["UV_INDEX"] == f"https://two/simple {tmp_path.as_uri()}"
    assert found["UV_INDEX_STRATEGY"] == "unsafe-first-match"
    assert found["UV_FIND_LINKS"] == f"https://three/wheels,{tmp_path.as_uri()}"
    assert found["SSL_CERT_FILE"] == "/etc/certificates.pem"
    assert found["UV_INSECURE_HOST"] == "one two:8080"
    assert not [name for name in found if name.startswith("PIP_")]


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX"])
def test_uvs_own_index_wins(name: str, home: dict[str, str]) -> None:
    own = {**home, name: "https://mine/simple"}
    pip = {"PIP_INDEX_URL": "https://pip", "PIP_FIND_LINKS": "https://l"}
    found = uv_settings({**own, **pip}).environment
    assert {key: value for key, value in found.items() if key.startswith("UV_")} == {
        name: "https://mine/simple",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def test_pips_refusal_of_any_index_reaches_installs_before_their_operands(
    home: dict[str, str],
) -> None:
    found = uv_settings({**home, "PIP_NO_INDEX": "1"})
    assert found.command("uv", ("pip", "install", "--", "x"))[-5:] == [
        *("pip", "install", "--no-index", "--", "x")
    ]
    assert "--no-index" not in found.command("uv", ("venv", "--", "x"))
    assert not uv_settings({**home, "PIP_NO_INDEX": "1", "UV_INDEX": "https://mine"}).no_index


def test_uvs_configuration_file_wins(home: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / ".config/uv/uv.toml", '[[index]]\nurl = "https://mine/simple"\n')
    found = uv_settings({**home, "PIP_INDEX_URL": "https://pip/simple"}).environment
    assert "UV_DEFAULT_INDEX" not in found


def test_certificates_of_the_user_win(home: dict[str, str]) -> None:
    found = uv_settings({**home, "SSL_CERT_FILE": "/mine.pem", "PIP_CERT": "/pip.pem"}).environment
    assert found["SSL_CERT_FILE"] == "/mine.pem"


def test_uv_gets_nothing_else_of_this_process(home: dict[str, str]) -> None:
    found = uv_settings(
        {
            **home,
            "API_KEY": "s3cret",
            "VIRTUAL_ENV": "/venv",
            "UV_PYTHON": "3.9",
            "UV_OVERRIDE": "x",
            "UV_HTTP_TIMEOUT": "5",
            "https_proxy": "http://proxy",
        }
    ).environment
    assert {"HOME", "PATH", "UV_HTTP_TIMEOUT", "https_proxy"} <= found.keys()
    assert not {"API_KEY", "VIRTUAL_ENV", "UV_PYTHON", "UV_OVERRIDE"} & found.keys()


def test_unreadable_pip_configuration_is_named_and_not_quoted(
    home: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / ".config/pip/pip.conf", "index-url = https://u:s3cret@host\n")
    with pytest.raises(ConfigError) as caught:
        uv_settings(home)
    assert str(path) in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://user:p%40ss@host/simple now", "at https://host/simple now"),
        ("https://token@host, http://host2/a@b", "https://host, http://host2/a@b"),
        ("mail me@host", "mail me@host"),
        ("'https://u:p@w@host/x'", "'https://host/x'"),
    ],
)
def test_credentials_leave_urls(text: str, clean: str) -> None:
    assert without_credentials(text) == clean


# --- running ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_uv_answers() -> None:
    answer = await run_uv("--version", timeout=30)
    assert answer.is_ok
    assert answer.stdout.startswith("uv ")


@pytest.mark.anyio
async def test_cancelled_caller_kills_uv_and_its_children(
    stuck_uv: StuckUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(stuck_uv.program))
    processes: list[psutil.Process] = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(run_uv, "pip", "install")
            pids = await anyio.to_thread.run_sync(stuck_uv.wait_until_stuck)
            processes = [psutil.Process(pid) for pid in pids]
            group.cancel_scope.cancel()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.anyio
async def test_uv_that_takes_too_long_is_stopped(
    stuck_uv: StuckUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(stuck_uv.program))
    with anyio.fail_after(60):
        answer = await run_uv("pip", "install", timeout=0.3)
    assert not answer.is_ok
    assert "did not finish within 0.3 s" in answer.stderr


@pytest.mark.anyio
async def test_unreachable_index_is_told_from_other_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:s3cret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    target = ("pip", "install", "--target", str(tmp_path / "target"))
    with anyio.fail_after(60):
        answer = await run_uv(*target, "--", "no-such-package")
        wrong = await run_uv(*target, "--", "not a requirement")
    error = answer.failure("it", "cannot be had")
    assert isinstance(error, IndexUnreachable)
    assert "cannot be reached" in str(error)
    assert "s3cret" not in str(error)
    assert not wrong.is_unreachable


def test_missing_uv_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("uv")

    monkeypatch.setattr(uv, "find_uv_bin", missing)
    with pytest.raises(EnvironmentFailed, match="pip install uv"):
        anyio.run(run_uv, "--version")
