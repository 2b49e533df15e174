"""What a sandbox refused is told with the policy entry that would allow it."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.guest.denied import MAX_LINE, explain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CLOSED: Mapping[str, Any] = {
    "visible": ["/usr", "/lib", "/srv/shown/deep", "/tmp/shown"],
    "writable": ["/tmp/shown/out"],
    "own": ["/work", "/tmp", "/home/user", "/dev/shm"],
    "network": "none",
}
LISTED = {**CLOSED, "network": ["api.github.com", "*.wikipedia.org:443"]}
OPEN = {**CLOSED, "network": "open"}


def os_error(number: int, *paths: object) -> OSError:
    first, second = (*paths, None, None)[:2]
    return OSError(number, os.strerror(number), first, None, second)


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("/data/big.csv", "/data"),
        ("/data", "/data"),
        ("/data/a/../b/c.csv", "/data/b"),
        ("/home/ann/table.csv", "/home/ann/table.csv"),
        ("/home/ann/project/table.csv", "/home/ann/project"),
        ("/home/ann/.ssh/id_ed25519", "/home/ann/.ssh/id_ed25519"),
        ("/etc/shadow", "/etc/shadow"),
        ("/mnt/x.csv", "/mnt/x.csv"),
        (b"/data/big.csv", "/data"),
        ("/usrlocal/big.csv", "/usrlocal"),
        ("/srv/shown/other.csv", "/srv/shown"),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EPERM])
def test_path_outside_names_the_entry(path: str, entry: str, number: int) -> None:
    line = explain(os_error(number, path), CLOSED)
    assert line is not None
    assert f"is outside this session's sandbox; a policy with read: [{entry}] would" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        os_error(errno.ENOENT, "/usr/share/missing"),
        os_error(errno.ENOENT, "/tmp/shown/missing.csv"),
        os_error(errno.EACCES, "/tmp/shown/out/mine"),
        os_error(errno.EACCES, "/tmp/mine"),
        os_error(errno.ENOENT, "relative.csv"),
        os_error(errno.ENOENT, "/srv"),  # on the way to what is shown
        os_error(errno.ENOENT, "/proc/1/environ"),
        os_error(errno.EACCES, "/dev/kmsg"),
        os_error(errno.ENOENT, 3),
        os_error(errno.ENOENT, "/nul\0byte"),
        os_error(errno.EISDIR, "/data"),
        os_error(errno.ENOENT),
        ValueError("/data"),
        KeyError("x"),
        OSError("only a text"),
        OSError(),
    ],
)
def test_what_the_sandbox_did_not_refuse_is_not_explained(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/usr")
    assert explain(error, CLOSED) is None


@pytest.mark.parametrize("path", ["/tmp/x.csv", "/work/x.csv", "/home/user/x.csv", "/tmp/a/b.csv"])
def test_folders_of_the_sessions_own_are_told_from_the_hosts(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/usr")
    line = explain(os_error(errno.ENOENT, path), CLOSED)
    assert line is not None
    assert "is this session's own, whatever the host has there; a policy with read: [" in line
    assert f"would show {path}, where" in line
    assert "[/tmp]" not in line


def test_what_is_missing_where_the_code_works_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = {**CLOSED, "own": [str(tmp_path)]}
    assert explain(os_error(errno.ENOENT, str(tmp_path / "x.csv")), facts) is None


def test_what_is_nearest_to_a_path_decides() -> None:
    """All below /tmp was taken for the session's own."""
    line = explain(os_error(errno.EROFS, "/tmp/shown/new.csv"), CLOSED)
    assert "read-only" in (line or "")
    assert "write: [/tmp/shown]" in (line or "")


def test_name_in_the_sessions_own_directory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = os_error(errno.ENOENT, "data.csv")
    line = explain(error, {**CLOSED, "own": [str(tmp_path)]}) or ""
    assert f"data.csv is not in {tmp_path}, the session's own directory" in line
    given = {**CLOSED, "own": [str(tmp_path.parent)], "writable": [str(tmp_path)]}
    assert explain(error, given) is None


def test_file_in_the_hosts_folder_of_temporary_ones_names_the_sessions() -> None:
    """A policy with the whole of /tmp was advised, which none can have."""
    facts = {**CLOSED, "own": ["/tmp/session/work"]}
    line = explain(os_error(errno.EACCES, "/tmp/g"), facts) or ""
    assert "temporary files are in tempfile.gettempdir()" in line
    assert "[/tmp/g]" in line
    assert explain(os_error(errno.EACCES, "/tmp/session/work/tmp/g"), facts) is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_writing_to_what_is_read_only_names_the_entry(number: int) -> None:
    line = explain(os_error(number, "/srv/shown/deep/out.csv"), CLOSED)
    assert line is not None
    assert "read-only" in line
    assert "write: [/srv/shown/deep]" in line


def test_writing_outside_names_the_entry_for_writing() -> None:
    assert "write: [/data]" in (explain(os_error(errno.EROFS, "/data/new"), CLOSED) or "")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "Failed to open local file '/data/t.csv'. Detail: [errno 2] No such"),
        FileNotFoundError("No such file or directory (os error 2): /data/t.csv"),
        PermissionError('cannot open "/data/t.csv"'),
    ],
)
def test_path_in_a_librarys_text_is_found(error: OSError) -> None:
    line = explain(error, CLOSED)
    assert line is not None
    assert "/data/t.csv is outside" in line
    assert "read: [/data]" in line


@pytest.mark.parametrize(
    ("kind", "is_told"), [(-1, True), (socket.SOCK_STREAM | 0o4000, True), (socket.SOCK_RAW, False)]
)
def test_raw_sockets_are_allowed_by_no_entry(kind: int, is_told: bool) -> None:
    module: dict[str, Any] = {}
    source = "def __init__(type):\n    raise PermissionError(1, 'Operation not permitted')\n"
    exec(compile(source, "/usr/lib/python3/socket.py", "exec"), module)
    error = caught(lambda: module["__init__"](kind))
    assert (explain(error, CLOSED) is not None) is is_told


def test_second_path_is_looked_at() -> None:
    line = explain(os_error(errno.ENOENT, "/tmp/shown/a", "/data/b"), CLOSED)
    assert line is not None
    assert "/data/b is outside" in line


def test_cause_and_context_and_members_are_looked_at() -> None:
    inner = os_error(errno.ENOENT, "/data/x.csv")
    error = ValueError("cannot read the table")
    error.__cause__ = inner
    assert "/data" in (explain(error, CLOSED) or "")
    wrapped = RuntimeError("again")
    wrapped.__context__ = error
    assert "/data" in (explain(wrapped, CLOSED) or "")
    wrapped.__suppress_context__ = True
    assert explain(wrapped, CLOSED) is None
    assert "/data" in (explain(ExceptionGroup("several", [KeyError("a"), inner]), CLOSED) or "")


def test_errors_that_led_to_one_another_in_a_circle_are_no_trouble() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert explain(first, CLOSED) is None


def test_line_is_bounded_and_has_no_controls() -> None:
    line = explain(os_error(errno.ENOENT, "/data/\x1b[2J\n" + "x" * 9999), CLOSED)
    assert line is not None
    assert line.isprintable()
    assert len(line) <= MAX_LINE


def test_errors_whose_attributes_raise_are_left_alone() -> None:
    class Odd(Exception):
        @property
        def reason(self) -> object:
            raise RuntimeError("no")

    assert explain(Odd(), CLOSED) is None


def caught(action: Any) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def look_up(host: str) -> None:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize(
    "number", [errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EHOSTUNREACH, errno.ENETDOWN]
)
def test_no_network_names_the_entry(number: int) -> None:
    line = explain(os_error(number), CLOSED)
    assert line is not None
    assert "has no network; a policy with the host in network: [...] would" in line
    assert explain(os_error(number), OPEN) is None


def test_look_up_names_the_host() -> None:
    error = caught(lambda: look_up("api.github.com"))
    assert "a policy with network: [api.github.com] would" in (explain(error, CLOSED) or "")
    assert explain(error, OPEN) is None


def test_look_up_that_went_around_the_proxy_says_how_to_use_it() -> None:
    error = caught(lambda: look_up("api.github.com"))
    line = explain(error, LISTED) or ""
    assert "(api.github.com) went around the proxy" in line
    assert "trust_env=True" in line
    assert "*.wikipedia.org:443" in line


def test_refused_socket_counts_where_a_connection_was_made() -> None:
    def connect() -> None:
        class Sock:
            def connect(self, address: tuple[str, int]) -> None:
                raise os_error(errno.EPERM)

        Sock().connect(("1.2.3.4", 80))

    assert "1.2.3.4 cannot be reached" in (explain(caught(connect), CLOSED) or "")


def test_other_refusals_are_not_about_the_network() -> None:
    def kill() -> None:
        raise os_error(errno.EPERM)

    assert explain(caught(kill), CLOSED) is None
    assert explain(os_error(errno.ECONNREFUSED), CLOSED) is None
    assert explain(os_error(errno.ENETUNREACH, "/data/x"), LISTED) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OSError", "Tunnel connection failed: 403 Forbidden"),
        ("ProxyError", "403 Forbidden"),
        ("ClientHttpProxyError", "403, message='Forbidden', url='http://127.0.0.1:8'"),
    ],
)
def test_proxys_refusal_names_the_hosts(name: str, text: str) -> None:
    error = type(name, (OSError,), {})(text)
    line = explain(error, LISTED)
    assert line is not None
    assert "reaches only api.github.com, *.wikipedia.org:443" in line
    assert explain(error, OPEN) is None


def test_library_errors_that_hold_another_are_looked_into() -> None:
    import urllib.error

    error = urllib.error.URLError(caught(lambda: look_up("example.org")))
    assert "network: [example.org]" in (explain(error, CLOSED) or "")


def test_facts_may_be_missing() -> None:
    assert explain(os_error(errno.ENETUNREACH), {}) is None
    assert "outside" in (explain(os_error(errno.ENOENT, "/data/x"), {}) or "")
