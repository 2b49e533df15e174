"""The command lines with which bubblewrap builds walls (`man 1 bwrap`), from a view of the host.

Pure: text in, text out. Two shapes: around a zygote, whose sessions make namespaces of their own in
there, and around a single session.

All of a session's files lie on one file system, its root, whose size is the policy's `disk`: the
folders that a session has of its own are folders of it, so each of them may take what is left. What
else of that root could be written to, Landlock forbids.

``--die-with-parent`` is not among the options: it means the thread that started bubblewrap, not the
process (`man 2 PR_SET_PDEATHSIG`), and the host's threads come and go. What runs inside ends when
its socket to the host closes, and a zygote with bubblewrap, too.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from py_code_mode.guest.walls import DEVICES, MOUNT_POINTS, USER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from py_code_mode.sandbox.view import View

#: Folders of a session on its own file system, with their modes.
_OWN = (("/dev/shm", 0o1777), ("/home/user", 0o755), ("/tmp", 0o1777), ("/work", 0o755))
_SMALL = 4 << 20  # of a root that nobody writes to
_ZYGOTE_TMP = 64 << 20


def find() -> str | None:
    """Where it is installed."""
    return shutil.which("bwrap")


def around_zygote(
    program: str,
    view: View,
    *,
    overlays: str,
    files: Mapping[str, int],
    shares_network: bool,
) -> list[str]:
    """A wall in which further namespaces can be made; the command to run in it follows.

    Args:
        program: bubblewrap's own path.
        overlays: the host's folder of all sessions' packages.
        files: descriptors with the contents of `walls.FILES`, by name; read once.
        shares_network: be in the host's network.
    """
    return [
        *_namespaces(program, shares_network=shares_network),
        *("--size", str(_SMALL), "--tmpfs", "/"),
        *(word for point in MOUNT_POINTS for word in ("--dir", f"/{point}")),
        *("--perms", "1777", "--size", str(_ZYGOTE_TMP), "--tmpfs", "/tmp"),
        *_contents(view, files),
        *("--ro-bind", overlays, "/overlays"),
        *("--remount-ro", "/"),
        "--",
    ]


def around_session(
    program: str,
    view: View,
    *,
    packages: str,
    files: Mapping[str, int],
    shares_network: bool,
    size: int | None,
) -> list[str]:
    """A wall around one session, whose first process is the command that follows.

    Args:
        program: bubblewrap's own path.
        packages: the host's folder of the session's packages.
        files: descriptors with the contents of `walls.FILES`, by name; read once.
        shares_network: be in the host's network.
        size: bytes of all its files; None means half of the memory.
    """
    limit = ("--size", str(size)) if size is not None else ()
    return [
        *_namespaces(program, shares_network=shares_network),
        *(*limit, "--tmpfs", "/"),
        *(word for path, mode in _OWN for word in ("--perms", f"{mode:o}", "--dir", path)),
        *_contents(view, files),
        *("--ro-bind", packages, "/packages"),
        "--",
    ]


def _namespaces(program: str, *, shares_network: bool) -> Sequence[str]:
    # of the user namespace --unshare-all only tries
    words = (program, "--unshare-all", "--unshare-user", "--uid", str(USER), "--gid", str(USER))
    network = ("--share-net",) if shares_network else ()
    return (*words, *network, "--hostname", "sandbox", "--as-pid-1", "--chdir", "/")


def _contents(view: View, files: Mapping[str, int]) -> list[str]:
    words: list[str] = []
    for name, fd in files.items():
        words += ["--perms", "0644", "--file", str(fd), f"/etc/{name}"]
    for source, place, is_writable in view.trees:  # folders before what lies in them
        words += ["--bind" if is_writable else "--ro-bind", source, place]
    shown = [f"{place}/" for _, place, _ in view.trees]
    for place, target in view.links:
        if not place.startswith(tuple(shown)):  # there it is already
            words += ["--symlink", target, place]
    words += ["--proc", "/proc"]
    for name in DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        words += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    return words
