"""Says which entry of a policy would allow what a sandbox has refused.

In a sandbox a path of the host that no policy grants does not exist, and without a network every
connection fails: what code gets is the kernel's own error, which does not tell why. Here it is told
in one line, from plain data; nothing is asked of the system.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

#: Of one line that is told.
MAX_LINE = 500
_MAX_LINKS = 20  # exceptions that led to one another
_FILE_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV)
#: What a socket says where nothing can be reached, and what it says of one that is not allowed.
_NETWORK_ERRORS = (errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EHOSTUNREACH, errno.ENETDOWN,
                   errno.EADDRNOTAVAIL)  # fmt: skip
#: Functions of Python that open a connection: an EPERM of theirs is about the network.
_CONNECTING = frozenset({"connect", "connect_ex", "create_connection", "sock_connect", "sendto"})
#: A sandbox has these of its own, and no policy grants what the host has there.
_KERNELS = ("/dev", "/proc", "/sys")
#: Folders that nobody should grant for the sake of one file.
_BROAD = frozenset(
    {"/", "/boot", "/etc", "/home", "/home/user", "/media", "/mnt", "/opt", "/root", "/run",
     "/srv", "/tmp", "/usr", "/var", "/var/tmp", "/work"}
)  # fmt: skip
_PROXY_REFUSAL = "403"


def explain(error: BaseException, facts: Mapping[str, Any]) -> str | None:
    """One line on why a sandbox refused what an uncaught error is about; None if it did not.

    The causes and contexts of the error are looked at too: libraries wrap what they get.

    Args:
        facts: what the sandbox shows, as plain data. ``visible``: paths that can be read;
            ``writable``: those that can be written to; ``own``: folders that can be, and are the
            session's own, whatever the host has there; ``network``: ``"none"``, ``"open"`` or a
            list of the hosts that can be reached.
    """
    try:
        for each in _chain(error):
            line = _of_file(each, facts) if isinstance(each, OSError) else None
            line = line or _of_network(each, facts)
            if line is not None:
                return _printable(line)
    except Exception:  # a user's own class whose attributes raise: then there is nothing to add
        return None
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, innermost last; groups are looked into."""
    waiting, seen = [error], 0
    while waiting and seen < _MAX_LINKS:
        each = waiting.pop(0)
        seen += 1
        yield each
        found: list[Any] = [each.__cause__, None if each.__suppress_context__ else each.__context__]
        # urllib's URLError and requests' errors hold what they got as an argument
        found += [getattr(each, "reason", None), getattr(each, "os_error", None), *each.args[:3]]
        found += list(getattr(each, "exceptions", ()))[:_MAX_LINKS]
        for linked in found:
            if isinstance(linked, BaseException) and linked is not each and linked not in waiting:
                waiting.append(linked)


# --- files


def _of_file(error: OSError, facts: Mapping[str, Any]) -> str | None:
    number = error.errno
    if number is None:  # made by a library, with a text only
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else None
        number = errno.EACCES if isinstance(error, PermissionError) else number
    if number not in _FILE_ERRORS:
        return None
    named = (error.filename, error.filename2)
    for name in named if named != (None, None) else _named(error):
        path = _absolute(name)
        if path is None:
            line = _of_relative(name, number, facts)
        else:
            line = None if _is_beneath(path, _KERNELS) else _of_path(path, number, facts)
        if line is not None:
            return line
    return None


def _of_path(path: str, number: int, facts: Mapping[str, Any]) -> str | None:
    kind, folder = _shown_by(path, facts)
    if kind == "writable":
        return None  # what is missing there is missing
    if kind == "own":
        if number != errno.ENOENT or path == folder or not _is_shared(folder):
            return None
        if _is_beneath(os.getcwd(), (folder,)):
            return None  # it is what the code calls its own
        return (
            f"{folder} is this session's own, whatever the host has there; a policy with read: "
            f"[{_entry(path)}] would show {path}, where the host has it"
        )
    if kind == "visible":
        if number not in (errno.EROFS, errno.EACCES, errno.EPERM):
            return None
        return (
            f"{path} is read-only in this session's sandbox; a policy with write: "
            f"[{_entry(path)}] would make it writable"
        )
    if _leads_to(path, facts):
        return None  # a folder on the way to what is shown: only that is in it
    if _is_beneath(path, ("/tmp",)) and number != errno.ENOENT:
        return (  # where the session has no /tmp of its own, and may neither read nor write there
            f"{path} is outside this session's sandbox, whose temporary files are in "
            f"tempfile.gettempdir(); a policy with read, or write: [{_entry(path)}] would allow "
            "it, where the host has it"
        )
    key = "write" if number == errno.EROFS else "read"
    return (
        f"{path} is outside this session's sandbox; a policy with {key}: [{_entry(path)}] "
        "would allow it, where the host has it"
    )


def _of_relative(name: object, number: int, facts: Mapping[str, Any]) -> str | None:
    """What is missing in the session's directory may be in the user's, where it is another one."""
    if not isinstance(name, str) or not name or number != errno.ENOENT or name.startswith("/"):
        return None
    here = os.getcwd()
    if _shown_by(here, facts)[0] != "own":
        return None
    return (
        f"{name} is not in {here}, the session's own directory, where no file of the host is; a "
        "policy with read: [...] shows one by its full path, and workdir a folder to work in"
    )


def _shown_by(path: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """What shows a path, and how: the place that is nearest to it decides."""
    found = ("", "")
    for kind in ("own", "visible", "writable"):
        for folder in _paths(facts, kind):
            if _is_beneath(path, (folder,)) and len(folder) >= len(found[1]):
                found = (kind, folder)
    return found


def _is_shared(folder: str) -> bool:
    """Whether people have files there by this name, which nobody has of a session's own."""
    return folder in ("/tmp", "/home/user", "/dev/shm", "/work")


def _named(error: OSError) -> list[str]:
    """The path that a text is about, as those of pyarrow and polars are."""
    import re

    found = re.search(r"""["'](/[^"'\n]+)["']|(?:^|\s)(/[^\s"',;]+)""", _text(error))
    return [found[1] or found[2]] if found else []


def _absolute(name: object) -> str | None:
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str) or not name.startswith("/") or "\0" in name:
        return None
    return os.path.normpath(name)


def _paths(facts: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(os.path.normpath(path) for path in facts.get(key) or ())


def _is_beneath(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _leads_to(path: str, facts: Mapping[str, Any]) -> bool:
    shown = [path for kind in ("visible", "writable", "own") for path in _paths(facts, kind)]
    return any(_is_beneath(each, (path,)) for each in shown)


def _entry(path: str) -> str:
    """What to put in the policy: the file's folder, unless much else is in there."""
    folder = os.path.dirname(path)
    is_home = os.path.dirname(folder) in ("/home", "/Users")
    is_broad = folder in _BROAD or is_home or os.path.basename(folder).startswith(".")
    return path if is_broad else folder


# --- network


def _of_network(error: BaseException, facts: Mapping[str, Any]) -> str | None:
    network = facts.get("network", "open")
    if network == "open":
        return None
    if isinstance(network, str):
        if not _is_refused(error):
            return None
        host = _host(error)
        what = f"{host} cannot be reached" if host else "nothing can be reached"
        entry = f"network: [{host}]" if host else "the host in network: [...]"
        return (
            f"{what}: this session's sandbox has no network; a policy with {entry} would allow it"
        )
    hosts = ", ".join(str(host) for host in list(network)[:5])
    hosts += ", …" if len(list(network)) > 5 else ""
    if _is_proxys(error):
        return (
            f"this session's sandbox reaches only {hosts}; a policy with the host in network: "
            "[...] would allow it"
        )
    if not _is_refused(error):
        return None
    host = _host(error)
    about = f" ({host})" if host else ""
    return (
        f"this connection{about} went around the proxy by which this session's sandbox reaches "
        f"{hosts}: use a client that obeys HTTPS_PROXY (with aiohttp: ClientSession(trust_env="
        "True)), or a policy that allows the host"
    )


def _is_refused(error: BaseException) -> bool:
    """Whether a connection or a look-up failed as it does without a network."""
    if type(error).__name__ in ("gaierror", "herror"):
        return True
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    if error.errno in _NETWORK_ERRORS:
        return True
    return error.errno in (errno.EPERM, errno.EACCES) and _was_connecting(error)


def _is_proxys(error: BaseException) -> bool:
    """Whether the proxy refused: clients tell it in words of their own."""
    text = f"{type(error).__name__} {_text(error)}".lower()
    return _PROXY_REFUSAL in text and ("tunnel" in text or "proxy" in text)


def _was_connecting(error: BaseException) -> bool:
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        # the innermost call is of C code, which has no frame: the names that its caller uses tell
        if code.co_name in _CONNECTING or not _CONNECTING.isdisjoint(code.co_names):
            return True
        if os.path.basename(code.co_filename) == "socket.py":
            kind = step.tb_frame.f_locals.get("type", -1)
            # no policy allows raw sockets
            return not isinstance(kind, int) or kind == -1 or kind & 0xF in (1, 2)
        step = step.tb_next
    return False


def _host(error: BaseException) -> str:
    """The host, where the frames that failed still know it."""
    step, found = error.__traceback__, ""
    own = getattr(error, "host", None)  # aiohttp's
    if type(own) is str and _is_host(own):
        return own
    while step is not None:
        names = step.tb_frame.f_locals
        for name in ("host", "address", "server_hostname"):
            value: Any = names.get(name)
            value = value[0] if value.__class__ is tuple and value else value
            if type(value) is str and _is_host(value):
                found = value
        step = step.tb_next
    return found


def _is_host(text: str) -> bool:
    return 0 < len(text) <= 253 and all(char.isalnum() or char in "-._:[]" for char in text)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_LINE]
    except Exception:  # a user's own __str__
        return ""


def _printable(line: str) -> str:
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    return shown if len(shown) <= MAX_LINE else f"{shown[: MAX_LINE - 1]}…"
