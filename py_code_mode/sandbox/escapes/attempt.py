"""What an attack is made with: the list of them, system calls, and what came of it in words."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

#: Seconds that one attack may take before it counts as held.
PATIENCE = 2.0
MOST_TEXT = 200
#: What the host has told about itself: paths, pids, ports; never a secret.
FACTS: dict[str, Any] = {}
#: The namespaces of the session under attack.
SERVICES: dict[str, Any] = {}
ATTACKS: dict[str, Attack] = {}
#: What an attack holds until its verdict: objects, and descriptors by number.
KEPT: list[Any] = []

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Contained(Exception):
    """The attack did something, and it stayed inside; the text says what."""


class Hung(Exception):
    """The attack did not end by itself."""


class Attack:
    """One attack.

    Attributes:
        name: unique; what is tried, in words.
        group: the module it is in.
        is_rough: may end the worker, or take what all of it needs: tried in a run of its own, after
            which the session must go on.
        needs: what must be there to withstand it, beyond what every sandbox has.
    """

    __slots__ = ("function", "group", "is_rough", "name", "needs")

    def __init__(
        self, function: Callable[[], object], name: str, *, is_rough: bool, needs: str
    ) -> None:
        self.function, self.is_rough, self.needs = function, is_rough, needs
        self.group = function.__module__.rpartition(".")[2]
        self.name = name


#: What some attacks are withstood by: a file system of the session's own, which has a size; and a
#: control group, which alone counts memory that no process maps.
OWN_FILES, CONTROL_GROUP = "files of its own", "a control group"


def attack(function: Callable[[], object]) -> Callable[[], object]:
    """An attack that leaves the worker as it is."""
    return add(function.__name__, function)


def rough(function: Callable[[], object]) -> Callable[[], object]:
    """An attack that may end the worker."""
    return add(function.__name__, function, is_rough=True)


def disk_bomb(function: Callable[[], object]) -> Callable[[], object]:
    """A rough attack on the session's limit of files."""
    return add(function.__name__, function, is_rough=True, needs=OWN_FILES)


def hidden_bomb(function: Callable[[], object]) -> Callable[[], object]:
    """A rough attack with memory that no process maps."""
    return add(function.__name__, function, is_rough=True, needs=CONTROL_GROUP)


def add(
    name: str, function: Callable[[], object], *, is_rough: bool = False, needs: str = ""
) -> Callable[[], object]:
    """An attack by a name of its own."""
    if name in ATTACKS:
        raise ValueError(f"two attacks are called {name}")
    ATTACKS[name] = Attack(function, name, is_rough=is_rough, needs=needs)
    return function


def verdicts(names: Iterable[str]) -> dict[str, str]:
    """Try attacks, one after the other; what came of each, as this side sees it."""
    before = signal.signal(signal.SIGALRM, _give_up)
    found: dict[str, str] = {}
    try:
        for name in names:
            found[name] = _verdict(ATTACKS[name])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return found


def _give_up(number: int, frame: object) -> None:
    raise Hung


def _verdict(tried: Attack) -> str:
    own = os.getpid()
    try:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        gained = tried.function()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Contained as error:
        return f"contained: {error}"[:MOST_TEXT]
    except Hung:
        return f"contained: nothing in {PATIENCE:g} s"
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        return f"blocked: {name}"
    except MemoryError:
        return "blocked: MemoryError"
    except Exception as error:
        return f"BROKEN: {type(error).__name__}: {error}"[:MOST_TEXT]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.getpid() != own:
            os._exit(0)  # a copy that an attack made and did not end
        while KEPT:
            kept = KEPT.pop()
            if isinstance(kept, int):
                os.close(kept)
    return f"ESCAPED: {gained!r}"[:MOST_TEXT]


def call(number: int, *arguments: Any) -> int:
    """A system call by its number on x86_64; the error as `OSError`."""
    if os.uname().machine != "x86_64":
        raise Contained("not tried: its number is known for x86_64 only")
    ctypes.set_errno(0)
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    answer: int = _libc.syscall(ctypes.c_long(number), *words)
    if answer < 0:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))
    return answer


def text(fact: str) -> str:
    """A fact that is a text."""
    return str(FACTS[fact])


def read(path: str) -> bytes:
    """The beginning of a file."""
    with open(path, "rb") as file:
        return file.read(4000)


def own_socket() -> socket.socket:
    """A copy of the worker's socket, which leads to the host."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            is_socket = os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
        except OSError:
            continue
        if is_socket:
            return socket.socket(fileno=os.dup(int(entry)))
    raise Contained("it has no socket")


def child(act: Callable[[], object]) -> int:
    """Do something in a child; gives its exit status, or the negative signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            act()
            status = 0
        except OSError:
            status = 2
        except MemoryError:
            status = 3
        finally:
            os._exit(status)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except Hung:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def refused(what: Callable[..., object], *arguments: Any, **named: Any) -> str:
    """Ask the host for what it must refuse; the name of its error.

    Raises:
        Contained: it refused.
    """
    try:
        gained = what(*arguments, **named)
    except Hung:
        raise
    except Exception as error:
        raise Contained(f"refused: {type(error).__name__}: {error}"[:MOST_TEXT]) from None
    return repr(gained)
