"""The keeper: the first process of a sandboxed session, which starts the worker and outlives it.

It runs no code of the user's. It makes what the session has of its own (namespaces, files), starts
the worker, reaps whatever that leaves behind, watches the memory of them all, and tells the host of
the worker's end. When the host's end of its socket closes it ends, and all of the session with it:
in a pid namespace of its own the kernel sees to that, else it kills what it finds.

Messages on its socket (SOCK_SEQPACKET, one JSON object each) are described in `serve`.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import sys
import threading
from importlib import import_module
from time import monotonic, process_time

from . import walls
from .confine import Confinement, Kernel, confine, find_machine
from .errors import ConfinementFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

MAX_PLAN, MAX_FDS = 1 << 17, 8
#: Milliseconds between two looks at the memory of a session: while a run goes on, and else.
BUSY_PAUSE, IDLE_PAUSE = 10, 1000
#: Every so many looks the files held in memory without being mapped are counted too.
MEMFD_LOOKS = 5
#: Where the guest finds its way to the hosts it may reach.
PROXY_PORT = 3128
#: Seconds from SIGKILL to the end of all processes; only a fork bomb takes a part of it.
KILL_TIMEOUT = 2.0
#: Seconds between two looks at most, however long a look takes, and of processor time for being
#: exact in one: many maps make that slow, and must not make time for what is to be found.
MOST_PAUSE, MOST_EXACTNESS = 0.25, 0.1
#: Seconds that a process takes to end at most, once the kernel has chosen it to make room; and that
#: a run has then to end by itself, if it was not the worker.
_ENDING = RESPITE = 2.0
_NEVER = float("inf")
#: What the kernel holds for a file on a tmpfs, besides its content.
INODE_BYTES = 1024
_MEMFD = "/memfd:"
#: How willingly the kernel ends a worker where memory runs out, and one of its sleeping copies; a
#: keeper has what its host has (`man 5 proc`, oom_score_adj).
AWAKE, ASLEEP = 1000, 500
#: The name of a sleeping copy (branch.py).
_ASLEEP = b"sleeper"


def main(fd: int) -> None:
    """Keep one session, in a process that was started for it; its plan is the first message."""
    host = socket.socket(fileno=fd)
    body, group = receive(host)
    if not body:
        os._exit(0)
    plan = json.loads(body)
    if not plan["has_own_processes"]:
        walls.adopt_orphans()
    if not plan["command"]:
        import_module(".loop", __package__)  # for all its workers
    keep(host, plan, *group)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors; empty at the end."""
    body, fds, flags, _ = socket.recv_fds(sock, MAX_PLAN, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise OSError(f"a message of more than {MAX_PLAN} bytes or {MAX_FDS} descriptors")
    return body, fds


def keep(
    host: socket.socket, plan: dict[str, Any], entrance: int = -1, events: int = -1
) -> NoReturn:
    """Make what a session has of its own, and keep it; never returns.

    Args:
        host: the keeper's own socket.
        plan: what the host wants: see `_prepare` and `_become_worker`.
        entrance: what "0" is written to, to be in the session's control group; -1 for none.
        events: tells whom the kernel has ended in that group.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the worker alone
    try:
        walls.name_process("pcm-keeper")
        if entrance >= 0:
            _enter_group(entrance)
        listener = _prepare(plan)
        passed = [os.pidfd_open(os.getpid())]
        if listener is not None:
            passed.append(listener.detach())
        tell(host, {"t": "kept"}, passed)
        for fd in passed:
            os.close(fd)
        Keeper(host, plan, events).serve()
    except ConfinementFailed as error:
        tell(host, {"t": "failed", "step": error.step, "reason": error.reason})
    except OSError as error:
        tell(host, {"t": "failed", "step": "keeper", "reason": str(error)})
    os._exit(1)


def tell(host: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send the host a message, unless it is gone."""
    try:
        socket.send_fds(host, [json.dumps(message).encode()], fds)
    except OSError:
        return  # nobody listens any more: the next read says so


def _enter_group(entrance: int) -> None:
    """Be in the session's control group, before anything that belongs there is made."""
    try:
        os.write(entrance, b"0")
    except OSError as error:
        raise ConfinementFailed("control group", str(error), error.errno) from error
    finally:
        os.close(entrance)


def _prepare(plan: dict[str, Any]) -> socket.socket | None:
    """Make the session's own files; give the listener of its way to the network, if it has one."""
    files = plan["files"]
    if files is not None:
        walls.build_session_folders(files["size"], files["inodes"], files["covered"])
    if plan["has_own_network"]:
        walls.raise_loopback()
    if not plan["needs_listener"]:
        return None
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", PROXY_PORT))
    listener.listen(128)
    return listener


def _become_worker(plan: dict[str, Any], guest: int, out: int, err: int, report: int) -> NoReturn:
    """Serve the session's runs, confined; what fails before that goes to `report`."""
    try:
        os.setsid()
        walls.name_process("pcm-worker")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(out, 1)
        os.dup2(err, 2)
        close_all_but(guest, report)
        os.environ.update(plan["environment"])
        os.chdir(plan["workdir"])
        os.environ.pop("PWD", None)  # bubblewrap's, which is another folder
        if "numpy" in sys.modules:
            # its global generator is the only one that a copy shares with its siblings; without
            # an argument it would take ten times as long
            numpy: Any = sys.modules["numpy"]
            numpy.random.seed(memoryview(os.urandom(32)).cast("I").tolist())
        _set_priority_to_go("self", AWAKE)
        confine(Confinement(**_confinement(plan)))
        if plan["command"]:
            walls.die_with_parent()  # no pid namespace ends us, should the keeper be killed
            os.set_inheritable(guest, True)
            command = [*plan["command"], str(guest)]
            os.execve(command[0], command, os.environ)  # which closes `report`
        os.close(report)
    except ConfinementFailed as error:
        os.write(report, json.dumps({"step": error.step, "reason": error.reason}).encode())
        os._exit(1)
    except OSError as error:
        os.write(report, json.dumps({"step": "worker", "reason": str(error)}).encode())
        os._exit(1)
    try:
        from . import loop  # where workers execute a command the keeper needs none of it

        loop.serve(guest)
        # as an interpreter ends, but the image stays whole: to take it down takes long
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)
    finally:
        os._exit(0)  # never back into the keeper's own code


def _confinement(plan: dict[str, Any]) -> dict[str, Any]:
    """What the worker is to enforce on itself.

    Where the session has no user namespace of its own the limit on processes is one on all that its
    user has on this machine (`man 2 getrlimit`, RLIMIT_NPROC): what is there already comes on top.
    """
    found: dict[str, Any] = plan["confinement"]
    if found["memory"] is not None and not plan["command"]:
        found = {**found, "memory": found["memory"] + _reserved()}
    if plan["has_own_processes"] or found["processes"] is None:
        return found
    user = found["user"][0] if found["user"] else os.getuid()
    allowed: int = found["processes"]
    # others may end and so make room for more of ours, which `Keeper` would have to kill
    spare = min(8, allowed // 8)
    return {**found, "processes": allowed + _count_tasks(_processes_of(user)) - spare}


def _reserved() -> int:
    """Address space that counts as data and is not in use: allocators take a gigabyte at once."""
    with open("/proc/self/status", "rb") as file:
        found = {line.split(b":")[0]: line for line in file}
    return max(0, _kibibytes(found[b"VmData"]) - _kibibytes(found[b"RssAnon"]))


def _set_priority_to_go(process: int | str, score: int) -> None:
    """Say who is to be ended first where a session, or the whole machine, runs out of memory.

    Without a control group what no process maps (files that only a descriptor on its way holds,
    buffers of sockets) can fill a machine. A worker cannot take this back, since it may not write
    to /proc.
    """
    with open(f"/proc/{process}/oom_score_adj", "w") as file:
        file.write(str(score))


def close_all_but(*kept: int) -> None:
    """Close every descriptor above 2 but these."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


class Keeper:
    """Reaps, watches, and answers the host."""

    def __init__(self, host: socket.socket, plan: dict[str, Any], events: int) -> None:
        self._host = host
        self._plan = plan
        self._memory: int | None = plan["memory"]
        self._has_own_processes: bool = plan["has_own_processes"]
        self._has_own_files: bool = plan["has_own_files"]
        self._most_tasks: int | None = (
            None if self._has_own_processes else plan["confinement"]["processes"]
        )
        self._watches = self._memory is not None or self._most_tasks is not None
        self._watched: set[int] = set()
        self._spared: set[int] = set()
        self._limit: str | None = None
        self._is_admitted = False
        self._pause = IDLE_PAUSE
        self._next_look = monotonic() + IDLE_PAUSE / 1000
        self._looks = 0
        self._memfds = 0
        self._events = events
        self._kills = 0
        self._killed = -_ENDING  # when the kernel was last seen to have made room
        self._respite = _NEVER  # until when the run that goes on since then may do so
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)

    def serve(self) -> NoReturn:
        """Answer messages until the host ends.

        ``admit`` shows the session's packages and gives up the right to change mounts; answered by
        ``admitted``. ``worker`` starts one, with its socket, output and error as descriptors;
        answered by ``started`` with a pidfd. ``adopt`` names a copy that was woken and is a worker
        from now on; answered by ``adopted``, with a pidfd if there is such a process. ``spare``
        names the sleeping copies, which a limit leaves alone; ``clear`` ends all processes but
        those it names and theirs, and is answered by ``cleared``. ``end_forks`` ends what a run
        has forked that was told to stop, as far as it is still the worker's own code. ``busy`` and
        ``idle`` set how often memory is looked at. To the host: ``kept`` with a pidfd of the
        keeper and the listener, if there is one; ``exited`` with the status of a worker, the limit
        for which it was killed, if it was, and what of the memory files held then; ``failed``, with
        which it ends.
        """
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        poll = select.poll()
        poll.register(self._host, select.POLLIN)
        poll.register(reading, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(self._until_next_look())}
            if reading in ready:
                drain(reading)
            self._reap()
            if self._host.fileno() in ready:
                self._answer()
            if self._watches and monotonic() >= self._next_look:
                self._look()

    def _until_next_look(self) -> int | None:
        if not self._watches:
            return None
        return max(0, int((self._next_look - monotonic()) * 1000) + 1)

    def _answer(self) -> None:
        try:
            body, fds = receive(self._host)
        except OSError:
            body, fds = b"", []
        if not body:
            self._end()
        message = json.loads(body)
        kind = message["t"]
        if kind == "busy":
            self._has_killed()  # what was between two runs is not this one's
            self._pause = BUSY_PAUSE
            self._next_look = min(self._next_look, monotonic() + BUSY_PAUSE / 1000)
        elif kind == "idle":
            self._pause = IDLE_PAUSE
            self._respite = _NEVER
        elif kind == "worker":
            self._start_worker(fds)
        elif kind == "adopt":
            self._adopt(message["pid"])
        elif kind == "spare":
            before, self._spared = self._spared, set(message["pids"])
            for pid in self._spared - before:
                self._give_priority(pid, ASLEEP)
        elif kind == "clear":
            spared = set(message["pids"])
            for pid in message["pids"]:
                spared.update(_descendants(pid))
            if message["shared"]:
                # another worker's copy may be so new that the host has not heard of it
                spared.update(
                    pid for pid in self._processes() if _name_and_start(pid)[0] == _ASLEEP
                )
            self._kill_all(spared)
            tell(self._host, {"t": "cleared"})
        elif kind == "end_forks":
            self._end_forks(message["since"])
            tell(self._host, {"t": "cleared"})
        elif kind == "admit" and not self._is_admitted:
            self._admit(message["packages"])
        for fd in fds:
            os.close(fd)

    def _start_worker(self, fds: Sequence[int]) -> None:
        report, told = os.pipe()
        worker = os.fork()
        if worker == 0:
            guest, out, err = fds
            _become_worker(self._plan, guest, out, err, told)
        os.close(told)
        with open(report, "rb") as pipe:
            said = pipe.read(4096)  # it ends when the worker is confined
        if said:
            failure = json.loads(said)
            raise ConfinementFailed(failure["step"], failure["reason"])
        pidfd = os.pidfd_open(worker)
        self._watched.add(worker)
        tell(self._host, {"t": "started", "pid": worker}, [pidfd])
        os.close(pidfd)

    def _adopt(self, pid: int) -> None:
        try:
            _must_be_child(pid)
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError):
            tell(self._host, {"t": "adopted", "pid": pid})
            return
        self._watched.add(pid)
        self._give_priority(pid, AWAKE)
        tell(self._host, {"t": "adopted", "pid": pid}, [pidfd])
        os.close(pidfd)

    def _give_priority(self, pid: int, score: int) -> None:
        try:
            _must_be_child(pid)
            _set_priority_to_go(pid, score)
        except (OSError, OverflowError):
            return  # it has just ended, or the guest has made it up

    def _end_forks(self, since: float) -> None:
        """End what forked off a worker since then (boot time), if it is no other program by now.

        The worker alone was interrupted: its forks are in the middle of the same cell.
        """
        since -= 0.05  # ticks are coarse
        kept = self._watched | self._spared
        names = {_name_and_start(pid)[0] for pid in self._watched}
        until = monotonic() + KILL_TIMEOUT
        while monotonic() < until:
            found = {pid: _name_and_start(pid) for pid in self._processes() if pid not in kept}
            forks = [pid for pid, (name, start) in found.items() if name in names and start > since]
            if not forks:
                return
            for pid in forks:
                _kill(pid)
            os.sched_yield()
            self._reap()

    def _admit(self, packages: str | None) -> None:
        self._is_admitted = True
        try:
            walls.show_packages(packages)
            kernel = Kernel()
            kernel.forgo_new_privileges()
            kernel.empty_bounding_set()
            kernel.drop_capabilities(find_machine())
        except OSError as error:
            raise ConfinementFailed("packages", str(error), error.errno) from error
        tell(self._host, {"t": "admitted"})

    def _end(self) -> NoReturn:
        if not self._has_own_processes:
            self._kill_all(set())
        os._exit(0)

    # -- processes

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._watched:
                self._watched.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                limit, self._limit = self._limit, None
                if limit is None and code == -signal.SIGKILL and self._has_killed():
                    limit = "memory"
                    self._killed = -_ENDING  # it is explained
                files = self._bytes_of_files() if limit == "memory" else 0
                exited = {"t": "exited", "pid": pid, "status": code, "limit": limit, "files": files}
                tell(self._host, exited)
            elif pid in self._spared and os.WIFSIGNALED(status):
                self._has_killed()  # a sleeping copy made room, perhaps not enough of it

    def _processes(self) -> list[int]:
        """All of the session except this one."""
        own = os.getpid()
        if self._has_own_processes:
            return [
                int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own
            ]
        return _descendants(own)

    def _kill_all(self, spared: set[int]) -> None:
        until = monotonic() + KILL_TIMEOUT
        while monotonic() < until:  # a process may fork while it is being killed
            left = [pid for pid in self._processes() if pid not in spared and _is_alive(pid)]
            if not left:
                return
            for pid in left:
                _kill(pid)
            os.sched_yield()
            self._reap()

    # -- memory

    def _look(self) -> None:
        """Kill the session's processes where they are too many, or hold too much memory."""
        started = monotonic()
        before = self._kills
        self._has_killed()
        if self._kills > before and self._pause == BUSY_PAUSE:
            # one of them only, and perhaps not the one it was about: whoever waits for that one may
            # say so, but none are to fill the same memory again and again
            self._respite = min(self._respite, started + RESPITE)
        limit = self._limit_hit()
        if limit is None and started >= self._respite:
            limit = "memory"
        if limit is not None:
            self._respite = _NEVER
            if self._limit is not None:
                self._end()  # they are dead already and it is still too much: let go of all
            self._limit = limit
            self._kill_all(self._spared)
        # many processes take long to look at: never more than a twentieth of a processor
        taken = min(MOST_PAUSE, 20 * (monotonic() - started))
        self._next_look = max(started + self._pause / 1000, monotonic() + taken)

    def _has_killed(self) -> bool:
        """Whether the kernel has just ended one of the group for its memory."""
        if self._events >= 0:
            before, self._kills = self._kills, count_kills(self._events)
            if self._kills > before:
                self._killed = monotonic()
        return monotonic() < self._killed + _ENDING

    def _limit_hit(self) -> str | None:
        processes = self._processes()
        if self._most_tasks is not None and self._most_tasks < _count_tasks(processes):
            return "processes"
        if self._memory is not None and self._is_over(self._memory, processes):
            return "memory"
        return None

    def _bytes_of_files(self) -> int:
        """What the session's files take of its memory."""
        if not self._has_own_files:
            return 0
        status = os.statvfs("/tmp")  # all of them are on one file system, in memory
        content = (status.f_blocks - status.f_bfree) * status.f_frsize
        return content + (status.f_files - status.f_ffree) * INODE_BYTES

    def _is_over(self, allowed: int, processes: list[int]) -> bool:
        self._looks += 1
        files = self._bytes_of_files()
        if self._memfds or self._looks % MEMFD_LOOKS == 0 or self._pause == IDLE_PAUSE:
            self._memfds = _memfds(processes)
        files += self._memfds
        # quick and too high: what processes share counts for each of them
        if files + sum(map(_resident, processes)) <= allowed:
            return False
        if files + sum(map(_summed, processes)) <= allowed:
            return False
        # not the clock's time: others may hold the processors
        until = process_time() + MOST_EXACTNESS
        for pid in processes:
            files += _proportional(pid, until)
            if files > allowed or process_time() > until:
                return True
        return False


def _must_be_child(pid: int) -> None:
    """Raise OSError where this is none of ours: a pid may be the guest's word."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def count_kills(events: int) -> int:
    """How many processes of a control group the kernel has ended because it was full.

    Args:
        events: the group's file that tells.
    """
    for line in os.pread(events, 4096, 0).split(b"\n"):
        words = line.split()
        if len(words) == 2 and words[0] == b"oom_kill":
            return int(words[1])
    return 0


def _processes_of(user: int) -> list[int]:
    """Every process of a user of this machine."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == user:
                    found.append(int(name))
            except OSError:
                continue  # it has just ended
    return found


def _count_tasks(processes: Sequence[int]) -> int:
    """Their threads, each of which counts as one of its user's processes."""
    facts = (_stat(pid)[1] for pid in processes)
    return sum(int(words[17]) for words in facts if words)


def drain(fd: int) -> None:
    """Read away what is in a pipe that does not block; each signal has left a byte."""
    try:
        while os.read(fd, 4096):
            continue
    except BlockingIOError:
        return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself


def _stat(pid: int) -> tuple[bytes, list[bytes]]:
    """A process's name, and what /proc/PID/stat says from its state on; nothing if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, rest = file.read().rpartition(b")")
    except OSError:
        return b"", []
    return head.partition(b"(")[2], rest.split()


def _is_alive(pid: int) -> bool:
    words = _stat(pid)[1]
    return bool(words) and words[0] not in (b"Z", b"X")


def _name_and_start(pid: int) -> tuple[bytes, float]:
    """What a process is called, and when it was started, in seconds since the machine was."""
    name, words = _stat(pid)
    if not words or words[0] in (b"Z", b"X"):
        return b"", 0.0
    return name, int(words[19]) / os.sysconf("SC_CLK_TCK")


def _descendants(pid: int) -> list[int]:
    """Every process below one, by /proc; those that its own orphans are, too."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            words = _stat(int(name))[1]
            if words:
                parents.setdefault(int(words[1]), []).append(int(name))
    found: list[int] = []
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def _resident(pid: int) -> int:
    """Bytes of a process's memory that no file on a disk is behind, shared ones included."""
    return _lines_of(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:"))


def _summed(pid: int) -> int:
    """The same, where a page that n processes share counts 1/n; the kernel adds up."""
    return _lines_of(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:"))


def _lines_of(path: str, names: tuple[bytes, ...]) -> int:
    """The sum of these lines of a file of a process; 0 where that has ended."""
    try:
        with open(path, "rb") as file:
            return sum(_kibibytes(line) for line in file if line.startswith(names))
    except OSError:
        return 0


def _proportional(pid: int, until: float) -> int:
    """The same exactly, where files in memory count not at all; given up at a processor time."""
    total = 0
    counts, field = True, b"Pss:"
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                if line[:1] in b"0123456789abcdef":
                    if process_time() > until:
                        break
                    words = line.split(maxsplit=5)
                    name = words[5] if len(words) > 5 else b""
                    # a file's pages are counted by whoever holds the file; ours are the copies
                    is_file = name.startswith(b"/") and not name.startswith(b"/dev/zero")
                    field = b"Private_Dirty:" if is_file else b"Pss:"
                    counts = not (is_file and words[1][3:4] == b"s")
                elif counts and line.startswith(field):
                    total += _kibibytes(line)
    except OSError:
        return total
    return total


def _kibibytes(line: bytes) -> int:
    return int(line.split()[1]) << 10


def _memfds(processes: Sequence[int]) -> int:
    """Bytes of files that are held in memory by descriptors alone."""
    sizes: dict[int, int] = {}
    for pid in processes:
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            try:
                if os.readlink(f"{folder}/{name}").startswith(_MEMFD):
                    status = os.stat(f"{folder}/{name}")
                    sizes[status.st_ino] = status.st_blocks * 512
            except OSError:
                continue
    return sum(sizes.values())
