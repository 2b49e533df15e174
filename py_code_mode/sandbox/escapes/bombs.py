"""Taking more than the policy gives, until the session or the host gives way."""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading

from .attempt import FACTS, KEPT, SERVICES, Contained, child, disk_bomb, hidden_bomb, rough

TYPE_CHECKING = False

_MIB = 1 << 20
_PIECE = b"x" * _MIB


def _memory() -> int:
    """Mebibytes that each memory bomb goes for: half as much again as the session may have."""
    return FACTS["memory"] * 3 // 2 // _MIB


def _wait() -> None:
    """Give whoever watches the memory a second to see it."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    select.select((), (), (), 1.2)


def _over() -> object:
    _wait()
    return f"held {_memory()} MiB for a second"


# -- memory


@rough
def fill_memory_with_one_object() -> object:
    return len(bytearray(_memory() * _MIB))


@rough
def fill_memory_with_many_objects() -> object:
    for _ in range(_memory()):
        KEPT.extend([bytearray(_PIECE)])
    return _over()


@rough
def fill_memory_with_a_list() -> object:
    grown = [0]
    while len(grown) * 8 < _memory() * _MIB:
        grown += grown
    return _over()


@rough
def fill_memory_with_an_array() -> object:
    try:
        import numpy
    except ImportError:
        raise Contained("not tried: there is no numpy") from None
    KEPT.append(numpy.ones(_memory() * _MIB // 8))
    return _over()


@rough
def fill_memory_with_anonymous_maps() -> object:
    for _ in range(_memory()):
        made = mmap.mmap(-1, _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        made.write(_PIECE)
        KEPT.append(made)
    return _over()


@rough
def fill_memory_with_shared_maps() -> object:
    made = mmap.mmap(-1, _memory() * _MIB)
    KEPT.append(made)
    for _ in range(_memory()):
        made.write(_PIECE)
    return _over()


@hidden_bomb
def fill_memory_with_shared_maps_that_are_let_go() -> object:
    """Pages that no process maps any more stay, as long as the map is there."""
    made = mmap.mmap(-1, _memory() * _MIB)
    KEPT.append(made)
    for at in range(0, _memory() * _MIB, 16 * _MIB):
        made[at : at + 16 * _MIB] = _PIECE * 16
        made.madvise(mmap.MADV_DONTNEED, at, 16 * _MIB)
    return _over()


@hidden_bomb
def fill_memory_with_the_zero_device() -> object:
    opened = os.open("/dev/zero", os.O_RDWR)
    made = mmap.mmap(opened, _memory() * _MIB)
    KEPT.append(made)
    for at in range(0, _memory() * _MIB, 16 * _MIB):
        made[at : at + 16 * _MIB] = _PIECE * 16
        made.madvise(mmap.MADV_DONTNEED, at, 16 * _MIB)
    return _over()


@rough
def fill_memory_with_memory_files() -> object:
    for _ in range(_memory() // 16):
        made = os.memfd_create("bomb")
        KEPT.append(made)
        for _ in range(16):
            os.write(made, _PIECE)
    return _over()


@hidden_bomb
def fill_memory_with_memory_files_in_a_socket() -> object:
    """A descriptor that is under way is in no process's list."""
    one, other = socket.socketpair()
    KEPT.extend((one, other))
    for _ in range(_memory() // 16):
        made = os.memfd_create("bomb")
        for _ in range(16):
            os.write(made, _PIECE)
        fds = array.array("i", [made])
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        os.close(made)
    return _over()


@rough
def fill_memory_with_memory_files_that_are_mapped_only() -> object:
    for _ in range(_memory() // 16):
        made = os.memfd_create("bomb")
        for _ in range(16):
            os.write(made, _PIECE)
        KEPT.append(mmap.mmap(made, 4096))
        os.close(made)
    return _over()


@rough
def fill_memory_in_children() -> object:
    share = FACTS["memory"] // _MIB // 4
    ready, tell = os.pipe()
    for _ in range(12):
        if os.fork() == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            kept = [bytearray(_PIECE) for _ in range(share)]
            os.write(tell, b"x")
            signal.pause()
            os._exit(len(kept) & 1)
    for _ in range(12):
        os.read(ready, 1)
    return _over()


@rough
def fill_memory_in_programs() -> object:
    share = FACTS["memory"] // 4
    fill = f"x = bytearray({share}); x[::4096] = b'x' * len(x[::4096])"
    code = f"import signal; {fill}; signal.pause()"
    started = [subprocess.Popen([sys.executable, "-I", "-S", "-c", code]) for _ in range(12)]
    signal.setitimer(signal.ITIMER_REAL, 0)
    for one in started:
        one.wait()
    raise Contained("they were ended")


@disk_bomb
def fill_memory_with_temporary_files() -> object:
    return _fill_disk("/tmp", 16)


@disk_bomb
def fill_memory_with_shared_memory_files() -> object:
    return _fill_disk("/dev/shm", 16)


@rough
def fill_memory_with_a_compressed_text() -> object:
    import zlib

    packed = zlib.compress(bytes(64 * _MIB))
    for _ in range(_memory() // 64):
        KEPT.extend([zlib.decompress(packed)])
    return _over()


@hidden_bomb
def fill_memory_with_sockets() -> object:
    total = 0
    for _ in range(2000):
        pair = socket.socketpair()
        KEPT.extend(pair)
        for end in pair:
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            try:
                while True:
                    total += end.send(_PIECE[:65536])
            except BlockingIOError:
                continue
        if total > _memory() * _MIB:
            return _over()
    return total


@rough
def fill_memory_with_pipes() -> object:
    import fcntl

    total = 0
    for _ in range(2000):
        reading, writing = os.pipe2(os.O_NONBLOCK)
        KEPT.extend((reading, writing))
        size = fcntl.fcntl(writing, 1031, _MIB)  # F_SETPIPE_SZ
        total += os.write(writing, _PIECE[:size])
        if total > _memory() * _MIB:
            return _over()
    return total


@rough
def fill_memory_with_threads() -> object:
    threading.stack_size(64 * _MIB)
    for _ in range(1000):
        thread = threading.Thread(target=signal.pause, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Contained(str(error)) from None
    return "1000 threads"


@rough
def lock_memory() -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(3):
        raise OSError(ctypes.get_errno(), "mlockall")
    KEPT.append(bytearray(64 * _MIB))
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit[1] == resource.RLIM_INFINITY:
        return limit
    raise Contained(f"up to {limit[0]} bytes")


@rough
def hide_behind_a_slow_look() -> object:
    """Many maps make looking at a process slow, and a bomb needs a moment only."""
    share = _memory() // 4
    ready, tell = os.pipe()
    for _ in range(4):
        if os.fork() == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            maps = mmap.mmap(-1, 80 * _MIB, flags=flags, prot=mmap.PROT_READ)
            for at in range(0, 80 * _MIB, 8192):
                maps.madvise(mmap.MADV_NOHUGEPAGE, at, 4096)
            kept = [bytearray(_PIECE) for _ in range(share)]
            os.write(tell, b"x")
            signal.pause()
            os._exit(len(kept) & 1)
    os.close(tell)
    for _ in range(4):
        if not os.read(ready, 1):
            raise Contained("the copies got no memory")
    held = _over()
    if os.waitpid(-1, os.WNOHANG)[0]:
        raise Contained("a copy was ended to make room")  # by the kernel: the rest is within
    return held


# -- processes


@rough
def fork_without_end() -> object:
    for _ in range(2000):
        try:
            if os.fork() == 0:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.pause()
                os._exit(0)
        except BlockingIOError as error:
            raise Contained(str(error)) from None
    return "2000 processes"


@rough
def fork_in_every_child() -> object:
    if os.fork() == 0:
        os.setsid()
        signal.setitimer(signal.ITIMER_REAL, 0)
        while True:
            try:
                os.fork()
            except OSError:
                continue
    select.select((), (), (), 0.3)
    raise Contained("up to the limit")  # the session must go on


@rough
def fork_in_a_shell() -> object:
    subprocess.Popen(["/bin/sh", "-c", "f() { f | f & }; f"], stderr=subprocess.DEVNULL)
    select.select((), (), (), 0.3)
    raise Contained("up to the limit")


@rough
def use_all_process_numbers() -> object:
    seen: set[int] = set()
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        seen.add(pid)
    raise Contained(f"{len(seen)} numbers of its own namespace")


@rough
def hold_every_processor() -> object:
    for _ in range(8):
        if os.fork() == 0:
            os.setsid()
            signal.setitimer(signal.ITIMER_REAL, 0)
            while True:
                continue
    select.select((), (), (), 0.2)
    raise Contained("until the run's processes are ended")


# -- files


def _fill_disk(folder: str, file_size: int) -> object:
    for number in range(2 * FACTS["disk"] // _MIB // file_size + 2):
        with open(os.path.join(folder, f"bomb-{number}"), "wb") as file:
            for _ in range(file_size):
                file.write(_PIECE)
    return f"{2 * FACTS['disk'] // _MIB} MiB"


@disk_bomb
def fill_the_disk() -> object:
    return _fill_disk(".", 16)


@disk_bomb
def fill_the_home() -> object:
    return _fill_disk(os.path.expanduser("~"), 16)


@rough
def fill_the_disk_with_one_file() -> object:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return _write_too_large_a_file()


@rough
def end_by_writing_too_large_a_file() -> object:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return _write_too_large_a_file()


def _write_too_large_a_file() -> object:
    with open("bomb", "wb") as file:
        for _ in range(2 * FACTS["file_size"] // _MIB):
            file.write(_PIECE)
    return "a larger file than allowed"


@rough
def fill_the_disk_with_holes() -> object:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open("bomb", "wb") as file:
        file.truncate(1 << 40)
    return "a file of a tebibyte"


@disk_bomb
def reserve_the_disk() -> object:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for number in range(100):
        with open(f"bomb-{number}", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 16 * _MIB)
    return "1600 MiB"


@disk_bomb
def fill_the_disk_with_deleted_files() -> object:
    for _ in range(2 * FACTS["disk"] // _MIB // 16 + 2):
        file = open("bomb", "wb")  # noqa: SIM115
        KEPT.append(file)
        os.unlink("bomb")
        for _ in range(16):
            file.write(_PIECE)
    return "more than the disk has"


@disk_bomb
def fill_the_disk_with_empty_files() -> object:
    os.mkdir("many")
    folder = os.open("many", os.O_RDONLY)
    for number in range(600_000):
        os.mknod(str(number), dir_fd=folder)
    return "600000 files"


@disk_bomb
def fill_the_disk_with_folders() -> object:
    for _ in range(3_000):
        os.mkdir("deeper")
        os.chdir("deeper")
    raise Contained("3000 folders in each other; nobody else has to walk through them")


@disk_bomb
def fill_the_disk_with_attributes() -> object:
    with open("file", "w"):
        pass
    for number in range(100_000):
        os.setxattr("file", f"user.{number}", b"x" * 60_000)
    return "6 GB of attributes"


# -- descriptors and output


@rough
def open_files_without_end() -> object:
    while len(KEPT) < 100_000:
        KEPT.append(os.dup(0))
    return len(KEPT)


@rough
def send_descriptors_without_end() -> object:
    """Descriptors under way count for the user, whom a host may share with its sandboxes."""
    one, other = socket.socketpair()
    KEPT.extend((one, other))
    one.setblocking(False)
    for number in range(100_000):
        fds = array.array("i", [0] * 100)
        try:
            one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        except BlockingIOError:
            one, other = socket.socketpair()
            one.setblocking(False)
            KEPT.extend((one, other))
        if number > 5000:
            return number
    return "without end"


@rough
def watch_files_without_end() -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(100_000):
        made = libc.inotify_init1(0)
        if made < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
    return "100000"


@rough
def make_timers_without_end() -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    made = ctypes.c_void_p()
    for _ in range(1_000_000):
        if libc.timer_create(0, None, ctypes.byref(made)):
            raise OSError(ctypes.get_errno(), "timer_create")
    return "1000000"


@rough
def queue_signals_without_end() -> object:
    def act() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
        for number in range(1_000_000):
            if libc.sigqueue(os.getpid(), signal.SIGRTMIN, number):
                raise OSError(ctypes.get_errno(), "sigqueue")
        raise SystemError

    status = child(act)
    if status == 1:
        return "1000000 signals"
    raise Contained(f"the kernel's limit ({status})")


@rough
def print_without_end() -> object:
    line = "x" * 65535 + "\n"
    for _ in range(1500):
        sys.stdout.write(line)
    raise Contained("100 MB printed; what is kept is bounded")


@rough
def complain_without_end() -> object:
    for _ in range(1000):
        os.write(2, b"y" * 65536)
    raise Contained("66 MB printed; what is kept is bounded")


@rough
def print_between_runs() -> object:
    if os.fork() == 0:
        os.setsid()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for _ in range(800):
            os.write(1, b"z" * 65536)
        os._exit(0)
    raise Contained("what is kept is bounded")


@rough
def show_without_end() -> object:
    from .attempt import Contained

    for _ in range(400):
        SERVICES["display"]("x" * 200_000)
    raise Contained("what is kept is bounded")


@rough
def return_too_much() -> object:
    raise Contained(str(len("x" * (100 << 20))))


@rough
def raise_too_much() -> object:
    class Long(Exception):
        def __str__(self) -> str:
            return "x" * (50 << 20)

    raise Contained(str(len(str(Long()))))


@rough
def use_processor_time_without_end() -> object:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY:
        return "there is no limit"
    signal.setitimer(signal.ITIMER_REAL, 0)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    if hard - spent.ru_utime > 3:
        raise Contained(f"a limit of {soft} s")
    while True:
        continue
