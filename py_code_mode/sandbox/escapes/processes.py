"""Reading, stopping and steering processes that are not its own, the keeper above all."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
from contextlib import contextmanager

from .attempt import FACTS, Contained, add, attack, call, child, own_socket, read, rough

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

_KEEPER = 1
_SO_PEERPIDFD, _SO_PASSPIDFD = 77, 76


def _vector() -> Any:
    target = ctypes.create_string_buffer(16)
    return ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(target), 16), 16)


def _on_each(what: str, pid: Any) -> None:
    """The same attacks on a process outside, by its number there, and on the keeper."""

    def each(name: str, function: Callable[[int], object]) -> None:
        add(f"{name}_{what}", lambda: function(pid()))

    # fmt: off
    each("read_the_environment_of", lambda pid: read(f"/proc/{pid}/environ"))
    each("read_the_memory_of", lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    each("write_the_memory_of", lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDWR))
    each("read_the_layout_of", lambda pid: read(f"/proc/{pid}/maps"))
    each("see_the_descriptors_of", _descriptors)
    each("open_a_descriptor_of", lambda pid: os.open(f"/proc/{pid}/fd/0", os.O_RDWR))
    each("copy_memory_from", lambda pid: call(310, pid, _vector(), 1, _vector(), 1, 0))
    each("copy_memory_to", lambda pid: call(311, pid, _vector(), 1, _vector(), 1, 0))
    each("attach_to", lambda pid: call(101, 16, pid, 0, 0))
    each("seize", lambda pid: call(101, 0x4206, pid, 0, 0))
    each("take_a_descriptor_of", lambda pid: call(438, os.pidfd_open(pid), 1, 0))
    each("enter_the_namespaces_of", lambda pid: call(308, os.pidfd_open(pid), 0x20000))
    each("compare_with", lambda pid: call(312, os.getpid(), pid, 1, 0, 0))
    each("limit_the_files_of", lambda pid: _limit(pid, resource.RLIMIT_NOFILE))
    each("limit_the_processor_time_of", lambda pid: _limit(pid, resource.RLIMIT_CPU))
    each("slow", lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19) or "slowed")
    each(
        "idle", lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)) or "idled"
    )
    each("pin", lambda pid: os.sched_setaffinity(pid, {0}) or "pinned")
    each("starve_of_disk", lambda pid: call(251, 1, pid, 3 << 13) or "starved")
    each("advise", lambda pid: call(440, os.pidfd_open(pid), _vector(), 1, 21, 0) or "advised")
    each("migrate", lambda pid: call(256, pid, 1, _vector(), _vector()))
    each("reap_the_memory_of", lambda pid: call(448, os.pidfd_open(pid), 0))
    each("kill", lambda pid: os.kill(pid, signal.SIGKILL) or "killed")
    each("stop", lambda pid: os.kill(pid, signal.SIGSTOP) or "stopped")
    each("kill_a_thread_of", lambda pid: call(234, pid, pid, int(signal.SIGKILL)) or "killed")
    each(
        "queue_a_signal_to", lambda pid: call(129, pid, int(signal.SIGKILL), _vector()) or "queued"
    )
    each("kill_by_descriptor", lambda pid: call(424, os.pidfd_open(pid), 9, None, 0) or "killed")
    each("have_a_signal_sent_to", _own_by)
    # fmt: on


def _descriptors(pid: int) -> object:
    # their numbers are told to processes of the same user; what they are is not
    return [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]


def _limit(pid: int, which: int) -> object:
    return resource.prlimit(pid, which, (3, 3))


def _own_by(pid: int) -> object:
    """A socket's owner is sent a signal when something arrives."""
    one, other = socket.socketpair()
    with one, other:
        fcntl.fcntl(one, fcntl.F_SETOWN, pid)
        fcntl.fcntl(one, 10, int(signal.SIGKILL))  # F_SETSIG
        fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        other.send(b"x")
        raise Contained("asked for; the kernel checks when it sends")  # the host looks


_on_each("a_process_of_the_host", lambda: FACTS["victim"])
_on_each("the_keeper", lambda: _KEEPER)


@attack
def kill_the_host() -> object:
    os.kill(FACTS["host"], signal.SIGKILL)
    return "killed"


@attack
def kill_the_zygote() -> object:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and read(f"/proc/{entry}/comm").strip() == b"pcm-zygote":
            os.kill(int(entry), signal.SIGKILL)
            return "killed"
    raise Contained("it cannot be seen")


@attack
def slow_all_processes_of_its_user() -> object:
    os.setpriority(os.PRIO_USER, os.getuid(), 19)
    if os.getpriority(os.PRIO_PROCESS, _KEEPER) == 19:
        return "the keeper is slowed"
    raise Contained("its own only")


@attack
def slow_the_group_of_its_keeper() -> object:
    os.setpriority(os.PRIO_PGRP, _KEEPER, 19)
    return "slowed"


@attack
def see_other_processes() -> object:
    found = {entry: read(f"/proc/{entry}/comm") for entry in os.listdir("/proc") if entry.isdigit()}
    strange = [
        name
        for name in found.values()
        if not name.startswith((b"pcm-keeper", b"pcm-worker", b"sleeper", b"python", b"bwrap"))
    ]
    if len(found) > 10 or strange:
        return found
    raise Contained(f"only {len(found)}")


@attack
def get_a_descriptor_of_the_host_from_its_socket() -> object:
    with _descriptor_of_the_host() as got:
        call(424, got, 0, None, 0)
        return "could have sent it a signal"


@attack
def take_a_descriptor_of_the_host_by_its_socket() -> object:
    with _descriptor_of_the_host() as got:
        return call(438, got, 0, 0)


@attack
def enter_the_hosts_namespaces_by_its_socket() -> object:
    with _descriptor_of_the_host() as got:
        return call(308, got, 0x20000)


@attack
def ask_a_descriptor_about_the_host() -> object:
    with _descriptor_of_the_host() as got:
        return fcntl.ioctl(got, 0xC040FF0B, bytes(64))  # PIDFD_GET_INFO


@attack
def get_a_namespace_from_a_descriptor_of_the_host() -> object:
    with _descriptor_of_the_host() as got:
        return fcntl.ioctl(got, 0xFF04)  # PIDFD_GET_MNT_NAMESPACE


@contextmanager
def _descriptor_of_the_host() -> Generator[int, None, None]:
    """The kernel names the other end's process to whoever asks (Linux 6.5, `man 7 unix`)."""
    with own_socket() as sock:
        got = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    try:
        yield got
    finally:
        os.close(got)


@attack
def attach_shared_memory_of_the_host() -> object:
    return call(29, FACTS["segment"], 16, 0)


@attack
def make_shared_memory() -> object:
    return call(29, 0x5EC2E7, 4096, 0o1666)


@attack
def make_a_semaphore_for_others() -> object:
    return call(64, 0x5EC2E7, 1, 0o1666)


@attack
def make_a_message_queue() -> object:
    made = call(240, b"planted", os.O_CREAT | os.O_RDWR, 0o666, None)
    os.close(made)
    call(241, b"planted")
    raise Contained("a queue of its own namespace")


@attack
def trace_itself_by_the_keeper() -> object:
    def ask() -> None:
        call(101, 0, 0, 0, 0)
        raise SystemError  # unlike an error of the system, a success

    status = child(ask)
    if status == 2:
        raise PermissionError("PTRACE_TRACEME was refused")
    return status


@attack
def write_a_core_file() -> object:
    """A crash must not leave its memory with a handler of the host's."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0:
        return resource.getrlimit(resource.RLIMIT_CORE)
    raise Contained("the hard limit is 0")


@attack
def raise_a_limit() -> object:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard * 2))
    except ValueError as error:
        raise PermissionError(str(error)) from error
    return "raised"


@attack
def lift_the_memory_limit() -> object:
    unlimited = resource.RLIM_INFINITY
    if resource.getrlimit(resource.RLIMIT_DATA)[1] == unlimited:
        return "there was none"
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (unlimited, unlimited))
    except ValueError as error:
        raise PermissionError(str(error)) from error
    return "lifted"


@attack
def be_scheduled_before_all_others() -> object:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    return "done"


@attack
def be_nicer_than_allowed() -> object:
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "done"


@attack
def call_by_the_x32_abi() -> object:
    return _must_die(lambda: call(0x40000000 | 39))


@attack
def mount_by_the_x32_abi() -> object:
    return _must_die(lambda: call(0x40000000 | 165, b"t", b"/tmp", b"tmpfs", 0, None))


@attack
def call_by_the_32_bit_gate() -> object:
    return _must_die(lambda: _gate(20))  # getpid


@attack
def unshare_by_the_32_bit_gate() -> object:
    return _must_die(lambda: _gate(310))


def _gate(number: int) -> None:
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # xor ebx, ebx; mov eax, number; int 0x80; ret
    code.write(b"\x31\xdb\xb8" + struct.pack("<i", number) + b"\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()


def _must_die(act: Any) -> object:
    if os.uname().machine != "x86_64":
        raise Contained("not tried: x86_64 has it")
    status = child(act)
    if status == -signal.SIGSYS:
        raise Contained("the kernel ended the process")
    return f"went through: {status}"


# -- what may end the worker


@rough
def kill_everything_it_can() -> object:
    os.kill(-1, signal.SIGKILL)
    raise Contained("its own processes only")


@rough
def stop_everything_it_can() -> object:
    if os.fork() == 0:
        os.setsid()
        os.kill(-1, signal.SIGSTOP)
        os._exit(0)
    while True:
        signal.pause()


@rough
def kill_its_parent() -> object:
    os.kill(os.getppid(), signal.SIGKILL)
    return "killed"


@rough
def kill_its_group() -> object:
    os.killpg(0, signal.SIGKILL)
    return "still there"


@rough
def kill_itself() -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    return "still there"


@rough
def crash() -> object:
    ctypes.string_at(0)
    return "still there"


@rough
def overflow_the_stack() -> object:
    import sys

    sys.setrecursionlimit(1 << 30)
    nested: Any = []
    for _ in range(2_000_000):
        nested = [nested]
    return repr(nested)[:1]


@rough
def leave_without_a_word() -> object:
    os._exit(0)


@rough
def outlive_its_worker() -> object:
    """A child that has made itself a stranger; the host looks whether it is still there."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(15, FACTS["name"][-15:].encode(), 0, 0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            while True:
                signal.pause()
        os._exit(0)
    os._exit(1)


@rough
def wait_for_all_children() -> object:
    """Sleeping copies are nobody's children here."""
    try:
        found = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        raise Contained("there are none") from None
    return found
