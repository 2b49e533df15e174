"""Which system calls a confined worker may make, as a classic BPF program for seccomp(2).

An allow-list: what is not named here is refused, so a call that a newer kernel brings is refused
too. Calls of another architecture and of the x32 ABI end the process, since their numbers mean
other calls. Pure functions, no system call: the host can compile, tests can interpret the result.

A call is refused with EPERM, and with ENOSYS where a library has a fallback for "not known here":
clone3 and openat2, whose arguments lie in memory that a filter cannot read, and any call newer
than this table.
"""

from __future__ import annotations

import functools
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, Mapping, Tuple

    Instruction = Tuple[int, int, int, int]
    Block = Tuple[Instruction, ...]

#: AUDIT_ARCH_* by what uname calls the machine (linux/audit.h).
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMNS = {"x86_64": 1, "aarch64": 2}
#: The newest call this table has an opinion on; what is newer is answered ENOSYS.
LAST_KNOWN = 469

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_*
EPERM, ENOSYS, ENOTTY, EPROTONOSUPPORT, EAFNOSUPPORT = 1, 38, 25, 93, 97
_LOAD, _AND, _JUMP, _JUMP_EQUAL, _JUMP_GE, _JUMP_SET, _RETURN = (
    0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06,
)  # fmt: skip
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, linux/seccomp.h
_X32 = 0x40000000
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS

#: Name, number on x86_64, number on aarch64 of every call that a rule below names.
_NUMBERS = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -,
lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, ioctl 16 29, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124,
mremap 25 216, msync 26 227, mincore 27 232, madvise 28 233, shmget 29 194, shmat 30 196,
shmctl 31 195, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -,
setitimer 38 103, getpid 39 172, sendfile 40 71, socket 41 198, connect 42 203, accept 43 202,
sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, shutdown 48 210, bind 49 200,
listen 50 201, getsockname 51 204, getpeername 52 205, socketpair 53 199, setsockopt 54 208,
getsockopt 55 209, clone 56 220, fork 57 -, vfork 58 -, execve 59 221, exit 60 93, wait4 61 260,
kill 62 129, uname 63 160, semget 64 190, semop 65 193, semctl 66 191, shmdt 67 197,
msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, fcntl 72 25, flock 73 32,
fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78 -, getcwd 79 17,
chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -,
unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52, chown 92 -, fchown 93 55,
lchown 94 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165,
sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, setuid 105 146, setgid 106 144,
geteuid 107 175, getegid 108 177, setpgid 109 154, getppid 110 173, getpgrp 111 -,
setsid 112 157, setreuid 113 145, setregid 114 143, getgroups 115 158, setgroups 116 159,
setresuid 117 147, getresuid 118 148, setresgid 119 149, getresgid 120 150, getpgid 121 155,
setfsuid 122 151, setfsgid 123 152, getsid 124 156, capget 125 90, capset 126 91,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigqueueinfo 129 138, rt_sigsuspend 130 133,
sigaltstack 131 132, utime 132 -, mknod 133 -, personality 135 92, statfs 137 43, fstatfs 138 44,
getpriority 140 141, setpriority 141 140, sched_setparam 142 118, sched_getparam 143 121,
sched_setscheduler 144 119, sched_getscheduler 145 120, sched_get_priority_max 146 125,
sched_get_priority_min 147 126, sched_rr_get_interval 148 127, mlock 149 228, munlock 150 229,
mlockall 151 230, munlockall 152 231, prctl 157 167, arch_prctl 158 -, setrlimit 160 164,
sync 162 81, gettid 186 178, readahead 187 213, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12,
flistxattr 196 13, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, tkill 200 130,
time 201 -, futex 202 98, sched_setaffinity 203 122, sched_getaffinity 204 123,
epoll_create 213 -, getdents64 217 61, set_tid_address 218 96, restart_syscall 219 128,
semtimedop 220 192, fadvise64 221 223, timer_create 222 107, timer_settime 223 110,
timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -,
epoll_ctl 233 21, tgkill 234 131, utimes 235 -, get_mempolicy 239 236, mq_open 240 180,
mq_unlink 241 181, mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184,
mq_getsetattr 245 185, waitid 247 95, ioprio_set 251 30, ioprio_get 252 31, inotify_init 253 -,
inotify_add_watch 254 27, inotify_rm_watch 255 28, openat 257 56, mkdirat 258 34, mknodat 259 33,
fchownat 260 54, futimesat 261 -, newfstatat 262 79, unlinkat 263 35, renameat 264 38,
linkat 265 37, symlinkat 266 36, readlinkat 267 78, fchmodat 268 53, faccessat 269 48,
pselect6 270 72, ppoll 271 73, set_robust_list 273 99, get_robust_list 274 100, splice 275 76,
tee 276 77, sync_file_range 277 84, utimensat 280 88, epoll_pwait 281 22, signalfd 282 -,
timerfd_create 283 85, eventfd 284 -, fallocate 285 47, timerfd_settime 286 86,
timerfd_gettime 287 87, accept4 288 242, signalfd4 289 74, eventfd2 290 19, epoll_create1 291 20,
dup3 292 24, pipe2 293 59, inotify_init1 294 26, preadv 295 69, pwritev 296 70,
rt_tgsigqueueinfo 297 240, recvmmsg 299 243, prlimit64 302 261, syncfs 306 267, sendmmsg 307 269,
unshare 272 97,
getcpu 309 168, sched_setattr 314 274, sched_getattr 315 275, renameat2 316 276, seccomp 317 277,
getrandom 318 278, memfd_create 319 279, execveat 322 281, membarrier 324 283, mlock2 325 284,
copy_file_range 326 285, preadv2 327 286, pwritev2 328 287, pkey_mprotect 329 288,
pkey_alloc 330 289, pkey_free 331 290, statx 332 291, rseq 334 293, pidfd_send_signal 424 424,
pidfd_open 434 434, clone3 435 435, close_range 436 436, openat2 437 437, faccessat2 439 439,
epoll_pwait2 441 441, futex_waitv 449 449, cachestat 451 451, fchmodat2 452 452,
map_shadow_stack 453 453, futex_wake 454 454, futex_wait 455 455, futex_requeue 456 456,
mseal 462 462, setxattrat 463 463, getxattrat 464 464, listxattrat 465 465,
removexattrat 466 466
"""

_CLONE_THREAD = 0x10000
_NAMESPACES = 0x7E020000  # CLONE_NEW*; CLONE_NEWTIME lies in the exit signal and clone ignores it
_UNIX, _INET, _INET6 = 1, 2, 10
_STREAM, _DGRAM, _SEQPACKET = 1, 2, 5
_TCP, _UDP = 6, 17
_SET_ID = 0o6000
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000

#: ioctl commands: terminals (not TIOCSTI, TIOCLINUX, TIOCSCTTY), descriptors, reflinks, and reading
#: the names and addresses of network interfaces.
_IOCTLS = (
    0x5401, 0x5402, 0x5403, 0x5404, 0x5405, 0x5406, 0x5407, 0x5408, 0x5409, 0x540B,  # TCGETS ...
    0x540F, 0x5410, 0x5411, 0x5413, 0x5414,  # TIOCGPGRP SPGRP OUTQ GWINSZ SWINSZ
    0x541B, 0x5421, 0x5422, 0x5429, 0x5450, 0x5451, 0x5452, 0x5460,  # FIONREAD FIONBIO NOTTY FIO*
    0x80045430, 0x40045431, 0x5441,  # TIOCGPTN TIOCSPTLCK TIOCGPTPEER
    0x40049409, 0x4020940D, 0xC0189436, 0x80086601, 0x00000002,  # FICLONE* FIDEDUPERANGE GETFLAGS
    0x8910, 0x8912, 0x8913, 0x8915, 0x8919, 0x891B, 0x8921, 0x8927, 0x8933,  # SIOCGIF*
)  # fmt: skip

#: prctl options: names, signals, dumpable, timers, memory labels, and asking about privileges.
_PRCTLS = (
    1, 2, 3, 4, 15, 16, 21, 23, 27, 29, 30, 36, 37, 38, 39, 40, 41, 42, 47, 51, 52, 56, 64, 66,
    0x53564D41, 0x41555856,
)  # fmt: skip

#: arch_prctl: FS and GS, CPUID, AMX permission, shadow stacks.
_ARCH_PRCTLS = (
    0x1001, 0x1002, 0x1003, 0x1004, 0x1011, 0x1021, 0x1022, 0x1023, 0x3001, 0x5001, 0x5002, 0x5003,
    0x5005,
)  # fmt: skip

_SYSV_AND_QUEUES = (
    "shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semtimedop", "semctl", "msgget",
    "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive",
    "mq_notify", "mq_getsetattr",
)  # fmt: skip
#: Metadata of files that Landlock does not see. Changing modes, with the mode's position:
_MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
_TIMES = ("utime", "utimes", "futimesat", "utimensat")
_OWNERS_AND_ATTRIBUTES = (
    "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat",
    "removexattr", "lremovexattr", "fremovexattr", "removexattrat", "inotify_add_watch",
)  # fmt: skip


@functools.lru_cache(maxsize=None)
def numbers(machine: str) -> Mapping[str, int]:
    """The call numbers of the table for a machine; calls it lacks are left out.

    Raises:
        ValueError: there is no table for this machine.
    """
    if machine not in ARCHITECTURES:
        known = " and ".join(sorted(ARCHITECTURES))
        raise ValueError(f"no system call table for {machine!r}; there are tables for {known}")
    column = _COLUMNS[machine]
    rows = (row.split() for row in _NUMBERS.split(","))
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


@functools.lru_cache(maxsize=None)  # a zygote compiles once for all its workers
def compile_filter(
    machine: str,
    *,
    inet: bool = False,
    unix_sockets: bool = False,
    private_files: bool = False,
    private_processes: bool = False,
    private_ipc: bool = False,
) -> bytes:
    """The filter as an array of struct sock_filter, ready for seccomp(2).

    Each option loosens what another wall already holds; the defaults are for a process that has
    Landlock and this filter only.

    Args:
        inet: IP sockets may be made, since a network namespace, or nothing, is to limit them.
        unix_sockets: Unix sockets may be made and connected, since none of the host's can be
            reached by path. Connected pairs can always be made.
        private_files: no file of the host whose owner we are can be reached: modes, owners and
            times may be changed. Otherwise changing modes and times is answered with success and
            does nothing (Landlock does not see these calls, ordinary code cannot bear their
            failure), owners and attributes with EPERM.
        private_processes: other processes of our user are out of reach (pid namespace), so
            priorities and limits may be set by pid, except those of process 1.
        private_ipc: System V memory and message queues are our own (ipc namespace).
    """
    known = numbers(machine)
    allow: Block = (_give(ALLOW),)
    refuse: Block = (_give(ERRNO | EPERM),)
    absent: Block = (_give(ERRNO | ENOSYS),)
    pretend: Block = (_give(ERRNO | 0),)
    decisions: dict[str, Block] = dict.fromkeys(known, allow)

    decisions["clone"] = _no_bits(0, _NAMESPACES) + allow
    decisions["clone3"] = decisions["openat2"] = absent
    # in the table for the numbers only
    decisions["seccomp"] = decisions["unshare"] = refuse
    decisions["ioctl"] = _one_of(1, _IOCTLS, ENOTTY) + allow
    decisions["prctl"] = _one_of(0, _PRCTLS) + allow
    decisions["personality"] = _one_of(0, (0, 0xFFFFFFFF)) + allow
    if "arch_prctl" in known:
        decisions["arch_prctl"] = _one_of(0, _ARCH_PRCTLS) + allow

    families = ((_UNIX,) if unix_sockets else ()) + ((_INET, _INET6) if inet else ())
    # SOCK_SEQPACKET of the IP families is SCTP
    kinds = (_STREAM, _DGRAM) if inet else (_STREAM, _DGRAM, _SEQPACKET)
    decisions["socket"] = (_give(ERRNO | EAFNOSUPPORT),)
    if families:
        decisions["socket"] = (
            _one_of(0, families, EAFNOSUPPORT)
            + _one_of(1, kinds, mask=0xF)
            + _one_of(2, (0, _TCP, _UDP), EPROTONOSUPPORT)
            + allow
        )
    # one datagram socket of a pair can still send to any path
    pairs = (_STREAM, _DGRAM, _SEQPACKET) if unix_sockets else (_STREAM, _SEQPACKET)
    decisions["socketpair"] = (
        _one_of(0, (_UNIX,), EAFNOSUPPORT) + _one_of(1, pairs, mask=0xF) + allow
    )

    # No set-id file may be made where the host can see it, as systemd's RestrictSUIDSGID= has it.
    for name, (flags, mode) in {"open": (1, 2), "openat": (2, 3)}.items():
        if name in known:
            checked = _no_bits(mode, _SET_ID)
            decisions[name] = _if_bits(flags, _O_CREAT | _O_TMPFILE, checked) + allow
    for name, mode in {"creat": 1, "mkdir": 1, "mkdirat": 2}.items():
        if name in known:
            decisions[name] = _no_bits(mode, _SET_ID) + allow
    for name, mode in {"mknod": 1, "mknodat": 2}.items():
        if name in known:
            regular_fifo_socket = _one_of(mode, (0, 0o100000, 0o010000, 0o140000), mask=0o170000)
            decisions[name] = regular_fifo_socket + _no_bits(mode, _SET_ID) + allow
    last = allow if private_files else pretend
    for name, mode in _MODES.items():
        if name in known:
            decisions[name] = _no_bits(mode, _SET_ID) + last
    if not private_files:
        decisions.update({name: pretend for name in _TIMES if name in known})
        decisions.update({name: refuse for name in _OWNERS_AND_ATTRIBUTES if name in known})

    if not private_processes:
        for name in ("sched_setaffinity", "sched_setparam", "sched_setscheduler", "sched_setattr"):
            decisions[name] = _one_of(0, (0,)) + allow
        decisions["setpriority"] = _one_of(0, (0,)) + _one_of(1, (0,)) + allow
        decisions["ioprio_set"] = _one_of(0, (1,)) + _one_of(1, (0,)) + allow
        decisions["prlimit64"] = _unless_both(0, 2) + allow
        # by itself it changes nothing; it tells whether there are threads, where /proc does not
        decisions["unshare"] = _one_of(0, (_CLONE_THREAD,)) + allow
    else:
        # process 1 watches over the memory of all of us, and runs as our user
        for name in ("sched_setaffinity", "sched_setparam", "sched_setscheduler", "sched_setattr"):
            decisions[name] = _other_than(0, 1) + allow
        decisions["setpriority"] = _one_of(0, (0, 1)) + _other_than(1, 1) + allow  # not by user
        decisions["ioprio_set"] = _one_of(0, (1, 2)) + _other_than(1, 1) + allow
        decisions["prlimit64"] = _other_than(0, 1) + allow
    if not private_ipc:
        decisions.update(dict.fromkeys(_SYSV_AND_QUEUES, refuse))

    return _assemble(machine, {known[name]: block for name, block in decisions.items()})


def _assemble(machine: str, decisions: dict[int, Block]) -> bytes:
    refuse: Block = (_give(ERRNO | EPERM),)
    absent: Block = (_give(ERRNO | ENOSYS),)
    kill: Block = (_give(KILL),)
    spans: list[tuple[int, Block]] = []
    for number in range(LAST_KNOWN + 1):
        block = decisions.get(number, refuse)
        if not spans or spans[-1][1] != block:
            spans.append((number, block))
    spans.append((LAST_KNOWN + 1, absent))
    if machine == "x86_64":
        spans.append((_X32, kill))
    program = (
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        _give(KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_search(spans),
    )
    assert len(program) <= _MOST_INSTRUCTIONS
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _search(spans: list[tuple[int, Block]]) -> Block:
    """A binary search over the numbers at which the decision changes."""
    if len(spans) == 1:
        return spans[0][1]
    middle = len(spans) // 2
    below, above = _search(spans[:middle]), _search(spans[middle:])
    first = spans[middle][0]
    if len(below) <= 0xFF:  # how far a conditional jump reaches
        return ((_JUMP_GE, len(below), 0, first), *below, *above)
    return ((_JUMP_GE, 0, 1, first), (_JUMP, 0, 0, len(below)), *below, *above)


# Every block either returns or falls through to what follows it, so blocks can be put in a row.
# An argument is compared by its lower 32 bits where the kernel reads an int or the lower half only.


def _give(result: int) -> Instruction:
    return (_RETURN, 0, 0, result)


def _argument(position: int, half: int = 0) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * position + 4 * half)


def _one_of(
    position: int, values: Iterable[int], errno: int = EPERM, mask: int | None = None
) -> Block:
    wanted = tuple(values)
    masked: Block = ((_AND, 0, 0, mask),) if mask is not None else ()
    tests = tuple(
        (_JUMP_EQUAL, len(wanted) - index, 0, value) for index, value in enumerate(wanted)
    )
    return (_argument(position), *masked, *tests, _give(ERRNO | errno))


def _other_than(position: int, value: int, errno: int = EPERM) -> Block:
    return (_argument(position), (_JUMP_EQUAL, 0, 1, value), _give(ERRNO | errno))


def _no_bits(position: int, bits: int, errno: int = EPERM) -> Block:
    return (_argument(position), (_JUMP_SET, 0, 1, bits), _give(ERRNO | errno))


def _if_bits(position: int, bits: int, then: Block) -> Block:
    return (_argument(position), (_JUMP_SET, 0, len(then), bits), *then)


def _unless_both(first: int, pointer: int) -> Block:
    """Refuse if the int `first` is not 0 and `pointer` is not NULL."""
    return (
        _argument(first),
        (_JUMP_EQUAL, 5, 0, 0),
        _argument(pointer),
        (_JUMP_EQUAL, 0, 2, 0),
        _argument(pointer, half=1),
        (_JUMP_EQUAL, 1, 0, 0),
        _give(ERRNO | EPERM),
    )
