"""A package index of hand-made wheels in a folder, so that no test needs the network."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
MACHINE = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("PIP_", "UV_")) or name in PROXIES
}


@dataclass(frozen=True)
class Wheels:
    """A folder of wheels."""

    folder: Path

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        requires: Sequence[str] = (),
        extras: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Path:
        """Make a wheel whose module says its version; `files` are added as they are."""
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {need}" for need in requires]
        for extra, need in (extras or {}).items():
            lines += [f"Provides-Extra: {extra}", f'Requires-Dist: {need}; extra == "{extra}"']
        body = {
            f"{module}/__init__.py": f"version = {version!r}\n",
            f"{info}/METADATA": "\n".join(lines) + "\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            **(files or {}),
        }
        record = "".join(f"{path},,\n" for path in (*body, f"{info}/RECORD"))
        wheel = self.folder / f"{module}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in {**body, f"{info}/RECORD": record}.items():
                archive.writestr(path, text)
        return wheel


@pytest.fixture(scope="session")
def uv_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of this machine's uv, pip or user."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PY_CODE_MODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def wheels(
    clean_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uv_cache: Path
) -> Wheels:
    """The only index uv knows in this test."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("UV_CACHE_DIR", str(uv_cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    # If a mistake made uv ask an index all the same, it must not get through.
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return Wheels(folder)


@pytest.fixture
def index(wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package index this machine is set up for, in place of the folder of wheels."""
    for name in (*PROXIES, "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name)
    for name, value in MACHINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "30")


@dataclass(frozen=True)
class FakeUv:
    """A program in uv's place: it logs each call and hands on to the real one."""

    log: Path
    program: Path

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def count(self, subcommand: str) -> int:
        return sum(f" {subcommand} " in f"{call} " for call in self.calls())


@pytest.fixture
def logged_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeUv:
    import uv

    log, program = tmp_path / "uv.log", tmp_path / "logged-uv"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {uv.find_uv_bin()} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(program))
    return FakeUv(log, program)


@dataclass(frozen=True)
class StuckUv:
    """A program in uv's place that starts a child, says so, and then waits for ever."""

    program: Path
    pipe: int

    def wait_until_stuck(self, timeout: float = 30) -> tuple[int, int]:
        """The process ids of it and of its child, once both run."""
        import select

        text = b""
        while not text.endswith(b"\n"):
            assert select.select([self.pipe], [], [], timeout)[0], "uv was not started"
            text += os.read(self.pipe, 100)
        own, child = text.split()
        return int(own), int(child)


@pytest.fixture
def stuck_uv(tmp_path: Path) -> Iterator[StuckUv]:
    import uv

    fifo, program = tmp_path / "stuck", tmp_path / "stuck-uv"
    os.mkfifo(fifo)
    program.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *" venv "*) exec {uv.find_uv_bin()} "$@";; esac\n'
        f"sleep 600 & echo $$ $! > {fifo}; wait\n"
    )
    program.chmod(0o755)
    pipe = os.open(fifo, os.O_RDWR)
    yield StuckUv(program, pipe)
    os.close(pipe)
