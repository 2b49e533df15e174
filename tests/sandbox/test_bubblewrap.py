"""Command lines of bubblewrap: what they show, in which order, and that it takes them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from py_code_mode.execution.launch import wall_files
from py_code_mode.sandbox import bubblewrap
from py_code_mode.sandbox.policy import Policy
from py_code_mode.sandbox.probe import probe, sandbox_user
from py_code_mode.sandbox.view import View, view_of

VIEW = View(
    trees=(
        ("/usr", "/usr", False),
        ("/real/data", "/data", False),
        ("/home/me/out", "/data/out", True),
    ),
    links=(("/bin", "usr/bin"), ("/usr/local/python", "../bin/python3")),
)


def _session(view: View = VIEW, *, size: int | None = 1 << 20, network: bool = False) -> list[str]:
    return bubblewrap.around_session(
        "/usr/bin/bwrap",
        view,
        packages="/somewhere/packages",
        files={"passwd": 7},
        shares_network=network,
        size=size,
    )


def _place(words: list[str], *wanted: str) -> int:
    """Where these words stand in a row."""
    found = [
        index for index in range(len(words)) if tuple(words[index : index + len(wanted)]) == wanted
    ]
    assert len(found) == 1, (wanted, words)
    return found[0]


def test_what_is_granted_is_shown_and_what_lies_in_it_after_it() -> None:
    words = _session()
    outer = _place(words, "--ro-bind", "/real/data", "/data")
    inner = _place(words, "--bind", "/home/me/out", "/data/out")
    assert outer < inner
    _place(words, "--ro-bind", "/somewhere/packages", "/packages")
    _place(words, "--file", "7", "/etc/passwd")
    assert words[-1] == "--"


def test_a_link_that_a_shown_folder_has_is_not_made_again() -> None:
    words = _session()
    _place(words, "--symlink", "usr/bin", "/bin")
    assert "/usr/local/python" not in words


def test_a_session_has_one_file_system_of_the_size_of_its_limit() -> None:
    words = _session(size=12345)
    mounted = _place(words, "--size", "12345", "--tmpfs", "/")
    assert words.count("--tmpfs") == 1
    for folder in ("/tmp", "/work", "/home/user", "/dev/shm"):
        assert mounted < _place(words, "--dir", folder)
    assert "--size" not in _session(size=None)


def test_namespaces_are_required_and_the_network_is_shared_on_demand_only() -> None:
    for words in (_session(), _session(network=True)):
        assert {"--unshare-all", "--unshare-user", "--as-pid-1"} <= set(words)
    assert "--share-net" not in _session()
    assert "--share-net" in _session(network=True)


def test_the_root_around_a_zygote_cannot_be_written_to() -> None:
    words = bubblewrap.around_zygote(
        "/usr/bin/bwrap", VIEW, overlays="/overlays-of-all", files={"passwd": 7},
        shares_network=False,
    )  # fmt: skip
    assert words[-3:] == ["--remount-ro", "/", "--"]
    _place(words, "--ro-bind", "/overlays-of-all", "/overlays")
    for point in ("/proc", "/session", "/packages", "/work"):
        _place(words, "--dir", point)


def test_it_takes_the_command_line(tmp_path: Path) -> None:
    program = bubblewrap.find()
    if program is None or not probe()["bubblewrap"].is_ok:
        pytest.skip(str(probe()["bubblewrap"]))
    user = sandbox_user()
    if user is not None:
        tmp_path = Path("/usr/share")  # the folders of tests are root's
    view = view_of([], Policy(), names=True)
    script = (
        "echo $$ $(id -u) $(pwd) $(hostname); ls -a /; cat /etc/passwd; "
        "df -k --output=size / /tmp | tail -n +2; echo x > /usr/x; test -w /packages || echo closed"
    )
    with wall_files() as files:
        words = bubblewrap.around_session(
            program, view, packages=str(tmp_path), files=files, shares_network=True, size=1 << 20
        )
        done = subprocess.run(
            [*words, "/bin/sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=30,
            pass_fds=tuple(files.values()),
            user=user,
            group=user,
            extra_groups=None if user is None else (),
            env={"PATH": "/usr/bin:/bin"},
        )
    first, *others = map(str.strip, done.stdout.splitlines())
    assert first == "1 1000 / sandbox", done.stderr
    assert any(line.startswith("user:x:1000:1000") for line in others)
    assert others.count("1024") == 2
    assert "Read-only file system" in done.stderr
    assert "closed" in others
    assert not os.path.exists("/usr/x")
