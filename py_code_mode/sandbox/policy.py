"""What a sandbox allows: files, network, limits, environment variables.

A `Policy` is a promise: whoever passes one gets exactly this or an error. It says nothing about how
a machine enforces it (`probe` does).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from py_code_mode.errors import ConfigError, brief
from py_code_mode.sandbox.hosts import HostPattern, is_allowed

Network = Literal["none", "open"] | tuple[HostPattern, ...]
Paths = Iterable[str | os.PathLike[str]]

GIB = 1 << 30
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|[KMGT]i?B)", re.IGNORECASE | re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Variables that choose what code a process loads; nobody passes these on by name.
_LOADING = re.compile(r"LD_.*|DYLD_.*|PYTHON.*|GLIBC_TUNABLES|GCONV_PATH|BASH_ENV|ENV")
#: Variables by which programs find a proxy.
_PROXY = re.compile(r"(?:https?|ftp|all|no)_proxy", re.IGNORECASE)
#: The least of what is counted: an interpreter opens files as it starts, and it and the process
#: that watches it are two.
_FEWEST: Mapping[str, int] = MappingProxyType({"open_files": 16, "processes": 2})
#: The most that a limit can be; one beyond is none, and is said by None.
MOST_BYTES = 1 << 60
_MOST_COUNTED = 1 << 30
_MOST_SECONDS = 1_000_000_000
#: Bytes of memory without which nothing runs: a worker that has numpy, pandas and pyarrow holds 57
#: MiB of its own before its first line of code.
LEAST_MEMORY = 64 << 20
_LIMITS = ("memory", "processes", "cpu", "file_size", "disk", "open_files")
_SIZES = ("memory", "file_size", "disk")


class _Default(int):
    """A default that can be told from the same number passed by a caller."""


@dataclass(frozen=True, slots=True, init=False)
class Policy:
    """What a sandboxed session may do. Without arguments: compute, in a folder of its own.

    The system and the session's environment can always be read, the session's workdir and its own
    /tmp always be written; nothing else of the host can be seen.

    A policy that is passed is required: what cannot be enforced is an error, before any code has
    run. That is always so for files, network and variables, and for each limit that was named. A
    limit that was not named has its default, which holds as far as the machine can; what it cannot
    hold is missing from the session's capabilities (``disk_limit``), and told by
    ``py-code-mode doctor``.

    Attributes:
        read: files and folders of the host that can be read, absolute, without symbolic links.
        write: the same for writing, and therefore reading.
        network: ``none``, ``open``, or the hosts that can be reached.
        env: names of the host's environment variables that are passed in. Where `network` lists
            hosts, those that name a proxy are refused: a session has one of its own then.
        memory: bytes of memory of the whole session, at least `LEAST_MEMORY`.
        processes: processes and threads at one time, with one of the sandbox's own, and with the
            copies that keep variables safe; at least 2.
        cpu: seconds of processor time of one process, at least 1.
        file_size: bytes of one file, and of one value held in memory for the host.
        disk: bytes that the session's files may take. Where they lie in memory they count as that
            too, and get three quarters of it at most.
        open_files: descriptors of one process.
        required: the names of the limits that were named; two policies that differ in nothing else
            are equal.

    None as a limit means no limit.
    """

    read: tuple[Path, ...]
    write: tuple[Path, ...]
    network: Network
    env: frozenset[str]
    memory: int | None
    processes: int | None
    cpu: float | None
    file_size: int | None
    disk: int | None
    open_files: int | None
    required: frozenset[str] = field(compare=False, repr=False)

    def __init__(
        self,
        *,
        read: Paths = (),
        write: Paths = (),
        network: Literal["none", "open"] | Iterable[str | HostPattern] = "none",
        env: Iterable[str] = (),
        memory: int | str | None = _Default(4 * GIB),
        processes: int | None = _Default(128),
        cpu: float | None = None,
        file_size: int | str | None = _Default(2 * GIB),
        disk: int | str | None = _Default(2 * GIB),
        open_files: int | None = _Default(1024),
        required: Iterable[str] | None = None,
    ) -> None:
        """Make a policy; sizes are bytes or texts such as ``"2GiB"``, paths are made absolute.

        Args:
            required: limits to require that were not named. `dataclasses.replace` names them all,
                and passes those that were.

        Raises:
            ConfigError: a value does not hold.
        """
        given: dict[str, object] = {
            "read": read, "write": write, "network": network, "env": env, "memory": memory,
            "processes": processes, "cpu": cpu, "file_size": file_size, "disk": disk,
            "open_files": open_files,
        }  # fmt: skip
        for name, value in _checked(given, "policy", Path.cwd()).items():
            object.__setattr__(self, name, value)
        self._check_proxies("policy")
        unnamed = {name for name in _LIMITS if isinstance(given[name], _Default)}
        if required is not None:  # every limit was passed, with or without a thought
            usual = Policy.__init__.__kwdefaults__ or {}
            unnamed = {name for name in _LIMITS if getattr(self, name) == usual[name]}
            unnamed -= set(required)
        wanted = set(_LIMITS) - unnamed
        named = {name for name in wanted if given[name] is not None}
        object.__setattr__(self, "required", frozenset(named))

    @classmethod
    def from_settings(cls, settings: object, *, source: str, folder: Path) -> Policy:
        """The policy that a ``policy:`` mapping of a config.yaml makes of the defaults.

        Args:
            settings: what YAML made of it.
            source: named in errors: the file.
            folder: what relative paths are relative to.

        Raises:
            ConfigError: a key is unknown or a value does not hold.
        """
        made = cls()._naming(_checked(_mapping(settings, source), source, folder))
        made._check_proxies(source)
        return made

    def strengthened_by(self, settings: object, *, source: str, folder: Path) -> Policy:
        """This policy, made stronger where the mapping is stronger, and never weaker.

        What the mapping does not name stays; where it asks for more than this policy allows, this
        policy holds.

        Raises:
            ConfigError: as from `from_settings`.
        """
        wanted = _checked(_mapping(settings, source), source, folder)
        return self.intersection(self._naming(wanted))

    def intersection(self, other: Policy) -> Policy:
        """What both allow."""
        changes: dict[str, Any] = {
            "read": _common_paths((*self.read, *self.write), (*other.read, *other.write)),
            "write": _common_paths(self.write, other.write),
            "network": _common_network(self.network, other.network),
            "env": self.env & other.env,
            "required": self.required | other.required,
        }
        if isinstance(changes["network"], tuple):
            changes["env"] = frozenset(word for word in changes["env"] if not _is_proxy(word))
        for name in _LIMITS:
            limit = min(_limit(self, name), _limit(other, name))
            changes[name] = None if limit == math.inf else limit
        # what can be written need not be named again
        changes["read"] = tuple(
            path for path in changes["read"] if not _is_beneath(path, changes["write"])
        )
        return self._with(changes)

    def stronger_or_equal(self, other: Policy) -> bool:
        """Whether everything this policy allows is allowed by `other` too.

        A limit that `other` requires must be required by this one.
        """
        return (
            all(_is_beneath(path, (*other.read, *other.write)) for path in self.read)
            and all(_is_beneath(path, other.write) for path in self.write)
            and _network_is_within(self.network, other.network)
            and self.env <= other.env
            and self.required >= other.required
            and all(_limit(self, name) <= _limit(other, name) for name in _LIMITS)
        )

    def allows_host(self, host: str, port: int) -> bool:
        """Whether the network part allows a connection; whether the host exists is not asked."""
        if isinstance(self.network, str):
            return self.network == "open"
        return is_allowed(self.network, host, port)

    def to_settings(self) -> dict[str, object]:
        """The policy as a mapping that `from_settings` reads back."""
        network = self.network
        if not isinstance(network, str):
            # a pattern of several ports is written as several patterns
            network = [word for pattern in network for word in str(pattern).split()]
        default = Policy()
        limits = {name: getattr(self, name) for name in _LIMITS}
        return {
            "read": [str(path) for path in self.read],
            "write": [str(path) for path in self.write],
            "network": network,
            "env": sorted(self.env),
            **{
                name: limit
                for name, limit in limits.items()
                if name in self.required or limit != getattr(default, name)
            },
        }

    def _check_proxies(self, source: str) -> None:
        refused = sorted(filter(_is_proxy, self.env))
        if refused and isinstance(self.network, tuple):
            raise ConfigError(
                source,
                f"`env`: {refused[0]} would take the place of the proxy by which a session reaches "
                "the hosts in `network`; the host's own proxy is used by that one",
            )

    def _naming(self, wanted: Mapping[str, object]) -> Policy:
        """This policy with what a mapping names; the limits among it are required."""
        kept = self.required - wanted.keys()
        named = {name for name in _LIMITS if wanted.get(name) is not None}
        return self._with({**wanted, "required": kept | named})

    def _with(self, changes: Mapping[str, object]) -> Policy:
        made = object.__new__(Policy)
        for each in fields(self):
            value = changes.get(each.name, getattr(self, each.name))
            object.__setattr__(made, each.name, value)
        return made


def parse_size(text: object) -> int:
    """Bytes of ``2GiB``, ``500 MB`` (a million each), or a plain number.

    Raises:
        ValueError: it is none of these, not above 0, or above `MOST_BYTES`.
    """
    size = 0
    if isinstance(text, int) and not isinstance(text, bool):
        size = int(text)
    elif isinstance(text, str):
        found = _SIZE.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"must be a size such as 2GiB or 500MB, not {brief(text)}")
        number, unit = float(found[1]), found[2].upper()
        power = "BKMGT".index(unit[0])
        size = int(min(number, MOST_BYTES + 1) * (1024 if "I" in unit else 1000) ** power)
    else:
        raise ValueError(f"must be a size such as 2GiB, or null for no limit, not {brief(text)}")
    if size <= 0:
        raise ValueError(f"must be above 0, not {brief(text)}; null means no limit")
    if size > MOST_BYTES:
        raise ValueError(f"must be at most {MOST_BYTES >> 40}TiB, or null for no limit")
    return size


def _size(value: object, least: int) -> int:
    size = parse_size(value)
    if size < least:
        raise ValueError(f"must be at least {least >> 20}MiB, with which a worker works at all")
    return size


def _mapping(settings: object, source: str) -> dict[str, object]:
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise ConfigError(source, "`policy` must be a mapping, such as `policy: {network: none}`")
    found = cast("Mapping[object, object]", settings)
    known = [each.name for each in fields(Policy) if each.compare]
    for key in found:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise ConfigError(source, f"`policy.{key}` is not a setting; {hint}")
    return {str(key): value for key, value in found.items()}


def _checked(given: Mapping[str, object], source: str, folder: Path) -> dict[str, object]:
    """The settings in the types of `Policy`'s fields."""
    found: dict[str, object] = {}
    for name, value in given.items():
        try:
            if name in ("read", "write"):
                found[name] = _paths(value, folder, is_writing=name == "write")
            elif name == "network":
                found[name] = _network(value)
            elif name == "env":
                found[name] = frozenset(_variable(word) for word in _list(value, "names"))
            elif value is None:
                found[name] = None
            elif name in _SIZES:
                found[name] = _size(value, LEAST_MEMORY if name == "memory" else 1)
            elif name == "cpu":
                found[name] = _seconds(value)
            else:
                found[name] = _count(value, _FEWEST[name])
        except ValueError as error:
            key = name if source == "policy" else f"policy.{name}"
            raise ConfigError(source, f"`{key}`: {error}") from error
    return found


def _list(value: object, of_what: str) -> list[object]:
    # an iterable object passed in Python is a list; a text is one by accident only
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | os.PathLike):
        return list(cast("Iterable[object]", value))
    raise ValueError(f"must be a list of {of_what}, not {brief(cast('object', value))}")


def _paths(value: object, folder: Path, *, is_writing: bool) -> tuple[Path, ...]:
    found: list[Path] = []
    for entry in _list(value, "paths"):
        is_path = isinstance(entry, os.PathLike)
        text = os.fspath(cast("os.PathLike[str]", entry)) if is_path else entry
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError(f"must be a list of paths; {brief(entry)} is none")
        try:
            # resolved now, so that a link cannot stand for a place it is not compared by
            path = (folder / Path(text).expanduser()).resolve()
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{brief(text)} cannot be resolved: {error}") from error
        if is_writing and path == Path(path.anchor):
            raise ValueError("the whole file system cannot be made writable; name folders")
        if path not in found:
            found.append(path)
    return tuple(sorted(found))


def _network(value: object) -> Network:
    if value is False:  # `network: off` and `no`, as YAML reads them
        return "none"
    if value == "none":
        return "none"
    if value == "open":
        return "open"
    if isinstance(value, str):
        raise ValueError(f"must be none, open, or a list of hosts such as [{value}]")
    found: set[HostPattern] = set()
    for entry in _list(value, "hosts, or none, or open"):
        if isinstance(entry, HostPattern):
            found.add(entry)
        elif isinstance(entry, str):
            found.add(HostPattern.parse(entry))
        else:
            raise ValueError(f"must be a list of hosts; {brief(entry)} is none (put it in quotes?)")
    return _simplest(found)


def _simplest(patterns: Iterable[HostPattern]) -> Network:
    """Without what others cover, in one order; no host at all is ``none``."""
    found = set(patterns)
    kept = [
        pattern
        for pattern in found
        if not any(other != pattern and other.covers(pattern) for other in found)
    ]
    return tuple(sorted(kept, key=str)) or "none"


def _variable(word: object) -> str:
    if not isinstance(word, str) or not _VARIABLE.fullmatch(word):
        raise ValueError(f"must be a list of names of variables; {brief(word)} is none")
    if _LOADING.fullmatch(word):
        raise ValueError(f"{word} chooses what code is loaded and cannot be passed in")
    return word


def _is_proxy(word: str) -> bool:
    return _PROXY.fullmatch(word) is not None


def _seconds(value: object) -> float:
    is_flag = isinstance(value, bool)
    if isinstance(value, int | float) and not is_flag and 1 <= value <= _MOST_SECONDS:
        return value
    raise ValueError(
        f"must be seconds from 1 to {_MOST_SECONDS}, or null for no limit, not {brief(value)}"
    )


def _count(value: object, least: int) -> int:
    is_flag = isinstance(value, bool)
    if isinstance(value, int) and not is_flag and least <= value <= _MOST_COUNTED:
        return int(value)
    raise ValueError(
        f"must be a number from {least} to {_MOST_COUNTED}, or null for no limit, not "
        f"{brief(value)}"
    )


def _limit(policy: Policy, name: str) -> float:
    limit: float | None = getattr(policy, name)
    return math.inf if limit is None else limit


def _is_beneath(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _common_paths(one: Iterable[Path], other: Iterable[Path]) -> tuple[Path, ...]:
    first, second = tuple(one), tuple(other)
    found = {path for path in first if _is_beneath(path, second)}
    found |= {path for path in second if _is_beneath(path, first)}
    return tuple(sorted(found))


def _common_network(one: Network, other: Network) -> Network:
    if one == "open":
        return other
    if other == "open":
        return one
    if isinstance(one, str) or isinstance(other, str):
        return "none"
    pairs = (mine.intersection(theirs) for mine in one for theirs in other)
    return _simplest(pattern for pattern in pairs if pattern is not None)


def _network_is_within(inner: Network, outer: Network) -> bool:
    if outer == "open" or inner == "none":
        return True
    if isinstance(inner, str) or isinstance(outer, str):
        return False
    return all(_is_covered(pattern, outer) for pattern in inner)


def _is_covered(pattern: HostPattern, by: Iterable[HostPattern]) -> bool:
    """Also where one pattern's ports are covered by several others."""
    covering = [other for other in by if _same_ports(other, pattern).covers(pattern)]
    if pattern.ports is None:
        return any(other.ports is None for other in covering)
    covered: set[int] = set()
    for other in covering:
        covered |= pattern.ports if other.ports is None else other.ports
    return pattern.ports <= covered


def _same_ports(pattern: HostPattern, as_in: HostPattern) -> HostPattern:
    return HostPattern(host=pattern.host, is_wildcard=pattern.is_wildcard, ports=as_in.ports)
