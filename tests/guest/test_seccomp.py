"""The filter's decisions, by an interpreter of its own; no process is confined here."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from py_code_mode.guest import seccomp

X86, ARM = "x86_64", "aarch64"
ALLOWED = seccomp.ALLOW
KILLED = seccomp.KILL
REFUSED = seccomp.ERRNO | seccomp.EPERM
ABSENT = seccomp.ERRNO | seccomp.ENOSYS
PRETENDED = seccomp.ERRNO
NO_FAMILY = seccomp.ERRNO | seccomp.EAFNOSUPPORT
LOOSE = dict.fromkeys(
    ["inet", "unix_sockets", "private_files", "private_processes", "private_ipc"], True
)


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Interpret classic BPF as the kernel does; data is struct seccomp_data."""
    padded = [argument & (1 << 64) - 1 for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack(
        "=iIQ6Q", struct.unpack("=i", struct.pack("=I", number))[0], arch, 0, *padded
    )
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    for _ in range(len(steps)):  # no way back: a program ends within its length
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x20:
            assert k % 4 == 0
            assert k + 4 <= len(data)
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            at += k
        elif code == 0x15:
            at += yes if accumulator == k else no
        elif code == 0x35:
            at += yes if accumulator >= k else no
        elif code == 0x45:
            at += yes if accumulator & k else no
        elif code == 0x06:
            return k
        else:
            raise AssertionError(f"instruction {code:#x} is not used by this compiler")
    raise AssertionError("ran off the end")


def _x86(name: str, *arguments: int, **options: bool) -> int:
    program = seccomp.compile_filter(X86, **options)
    return decide(program, seccomp.ARCHITECTURES[X86], seccomp.numbers(X86)[name], *arguments)


def _x86_number(number: int, *arguments: int, **options: bool) -> int:
    program = seccomp.compile_filter(X86, **options)
    return decide(program, seccomp.ARCHITECTURES[X86], number, *arguments)


def _named(header: str) -> dict[str, int]:
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"no {path} here (linux-libc-dev)")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    return {name: int(number) for name, number in reversed(found)}


def test_every_x86_64_number_is_the_kernel_headers() -> None:
    header = _named("x86_64-linux-gnu/asm/unistd_64.h")
    for name, number in seccomp.numbers(X86).items():
        if number <= max(header.values()):
            assert header[name] == number, name


def test_every_aarch64_number_is_the_kernel_headers() -> None:
    header = _named("asm-generic/unistd.h")
    # spelled so in the 64-bit half of the header
    header["newfstatat"] = header.pop("fstatat")
    table = seccomp.numbers(ARM)
    for name, number in table.items():
        if number < header["syscalls"]:
            assert header[name] == number, name
    # what exists there and is allowed on x86_64 is not forgotten
    both = set(seccomp.numbers(X86)) & {name for name, number in header.items() if number < 451}
    assert both <= set(table)


def test_calls_newer_than_the_headers_have_the_same_number_on_both() -> None:
    x86, arm = seccomp.numbers(X86), seccomp.numbers(ARM)
    for name, number in x86.items():
        if number >= 424:
            assert arm[name] == number


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.compile_filter("riscv64")


@pytest.mark.parametrize("machine", [X86, ARM])
@pytest.mark.parametrize("options", [{}, LOOSE], ids=["strict", "loose"])
def test_the_kernels_own_checks_of_a_program_hold(machine: str, options: dict[str, bool]) -> None:
    program = seccomp.compile_filter(machine, **options)
    length = len(program) // 8
    assert 0 < length <= 4096
    for at in range(length):
        code, yes, no, k = struct.unpack_from("=HBBI", program, at * 8)
        if code in (0x15, 0x35, 0x45):
            assert at + 1 + max(yes, no) < length
        elif code == 0x05:
            assert at + 1 + k < length
    assert struct.unpack_from("=H", program, (length - 1) * 8)[0] == 0x06


@pytest.mark.parametrize("machine", [X86, ARM])
def test_a_call_of_another_architecture_ends_the_process(machine: str) -> None:
    program = seccomp.compile_filter(machine, private_files=True)
    for arch in (0x40000003, 0x40000028, 0, seccomp.ARCHITECTURES[X86 if machine == ARM else ARM]):
        for number in (0, 1, 39, 60):
            assert decide(program, arch, number) == KILLED


@pytest.mark.parametrize("number", [0, 39, 101, 512, 547, 0x3FFFFFFF])
def test_an_x32_call_ends_the_process(number: int) -> None:
    assert _x86_number(0x40000000 | number, **LOOSE) == KILLED
    assert _x86_number(0xFFFFFFFF, **LOOSE) == KILLED


@pytest.mark.parametrize("machine", [X86, ARM])
def test_every_number_is_decided_and_what_is_not_named_is_refused(machine: str) -> None:
    program = seccomp.compile_filter(machine, **LOOSE)
    arch = seccomp.ARCHITECTURES[machine]
    named = set(seccomp.numbers(machine).values())
    for number in range(seccomp.LAST_KNOWN + 1):
        if number not in named:
            assert decide(program, arch, number) == REFUSED, number
    for number in (seccomp.LAST_KNOWN + 1, 500, 1000, 0x3FFFFFFF):
        assert decide(program, arch, number) == ABSENT


DANGEROUS = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "pidfd_getfd": 438, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
    "move_mount": 429, "open_tree": 428, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "mount_setattr": 442, "open_tree_attr": 467, "unshare": 272, "setns": 308,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248,
    "request_key": 249, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "swapon": 167, "swapoff": 168, "reboot": 169, "acct": 163,
    "quotactl": 179, "quotactl_fd": 443, "syslog": 103, "settimeofday": 164, "clock_settime": 227,
    "adjtimex": 159, "clock_adjtime": 305, "iopl": 172, "ioperm": 173, "modify_ldt": 154,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "vmsplice": 278, "fanotify_init": 300,
    "nfsservctl": 180, "lookup_dcookie": 212, "uselib": 134, "move_pages": 279, "mbind": 237,
    "set_mempolicy": 238, "migrate_pages": 256, "sethostname": 170, "setdomainname": 171,
    "vhangup": 153, "ustat": 136, "sysfs": 139, "_sysctl": 156, "process_madvise": 440,
    "memfd_secret": 447, "statmount": 457, "listmount": 458, "seccomp": 317,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
    "file_setattr": 469, "io_setup": 206,
}  # fmt: skip


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_calls_are_refused_by_the_loosest_filter(name: str) -> None:
    for first in (0, 1, 0xFFFFFFFF, 1 << 40):
        assert _x86_number(DANGEROUS[name], first, **LOOSE) == REFUSED


@pytest.mark.parametrize(
    "name",
    ["read", "mmap", "execve", "futex", "wait4", "memfd_create", "pidfd_open", "rseq", "kill"],
)
def test_ordinary_calls_pass_the_strictest_filter(name: str) -> None:
    assert _x86(name) == ALLOWED


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0x11, ALLOWED),  # fork: SIGCHLD
        (0x3D0F00, ALLOWED),  # a thread of glibc
        (0x1200011, ALLOWED),  # fork of glibc
        *[(1 << bit, REFUSED) for bit in (17, 25, 26, 27, 28, 29, 30)],
        (0x3D0F00 | 0x10000000, REFUSED),
    ],
)
def test_clone_makes_threads_and_processes_but_no_namespaces(flags: int, expected: int) -> None:
    assert _x86("clone", flags, **LOOSE) == expected


@pytest.mark.parametrize("name", ["clone3", "openat2"])
def test_calls_whose_arguments_cannot_be_read_seem_absent(name: str) -> None:
    assert _x86(name, **LOOSE) == ABSENT


@pytest.mark.parametrize("family", range(50))
def test_only_the_chosen_socket_families_can_be_made(family: int) -> None:
    for kind in (1, 2, 1 | 0o2000000, 2 | 0o4000):
        assert _x86("socket", family, kind) == NO_FAMILY
        unix = _x86("socket", family, kind, unix_sockets=True)
        assert unix == (ALLOWED if family == 1 else NO_FAMILY)
        inet = _x86("socket", family, kind, inet=True)
        assert inet == (ALLOWED if family in (2, 10) else NO_FAMILY)


@pytest.mark.parametrize(
    ("kind", "protocol", "expected"),
    [
        (1, 6, ALLOWED),
        (2, 17, ALLOWED),
        (3, 1, REFUSED),  # raw
        (5, 0, REFUSED),  # SCTP
        (10, 0, REFUSED),  # packet
        (2, 1, seccomp.ERRNO | seccomp.EPROTONOSUPPORT),  # ping
        (1, 132, seccomp.ERRNO | seccomp.EPROTONOSUPPORT),  # SCTP
        (1, 262, seccomp.ERRNO | seccomp.EPROTONOSUPPORT),  # MPTCP
    ],
)
def test_ip_sockets_are_tcp_and_udp_only(kind: int, protocol: int, expected: int) -> None:
    assert _x86("socket", 2, kind, protocol, **LOOSE) == expected


def test_high_halves_of_int_arguments_do_not_mislead() -> None:
    assert _x86("socket", 1 << 32 | 1, 1, unix_sockets=True) == ALLOWED
    assert _x86("socket", 1 << 32 | 16, 3, **LOOSE) == NO_FAMILY
    assert _x86("ioctl", 0, 1 << 32 | 0x5412) == seccomp.ERRNO | seccomp.ENOTTY


@pytest.mark.parametrize(("kind", "strict"), [(1, ALLOWED), (5, ALLOWED), (2, REFUSED)])
def test_a_datagram_pair_needs_unix_sockets(kind: int, strict: int) -> None:
    assert _x86("socketpair", 1, kind | 0o2000000) == strict
    assert _x86("socketpair", 1, kind, unix_sockets=True) == ALLOWED
    assert _x86("socketpair", 30, kind, unix_sockets=True) == NO_FAMILY


@pytest.mark.parametrize("command", [0x5412, 0x541C, 0x540E, 0x8914, 0x8946, 0xAE00, 0xC0104320])
def test_dangerous_device_commands_are_refused(command: int) -> None:
    assert _x86("ioctl", 0, command, **LOOSE) == seccomp.ERRNO | seccomp.ENOTTY


@pytest.mark.parametrize("command", [0x5401, 0x5413, 0x541B, 0x5421, 0x5451, 0x40049409])
def test_ordinary_device_commands_are_allowed(command: int) -> None:
    assert _x86("ioctl", 0, command) == ALLOWED


@pytest.mark.parametrize("option", [22, 28, 31, 33, 35, 59, 62, 67, 0x59616D61])
def test_privileged_process_controls_are_refused(option: int) -> None:
    assert _x86("prctl", option, **LOOSE) == REFUSED


@pytest.mark.parametrize("option", [1, 4, 15, 36, 38, 0x53564D41])
def test_ordinary_process_controls_are_allowed(option: int) -> None:
    assert _x86("prctl", option) == ALLOWED


def test_personality_can_be_asked_only() -> None:
    assert _x86("personality", 0xFFFFFFFF) == ALLOWED
    assert _x86("personality", 0x0040000, **LOOSE) == REFUSED


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("chmod", (0, 0o4755)),
        ("fchmod", (3, 0o2755)),
        ("fchmodat", (-100, 0, 0o6755)),
        ("fchmodat2", (-100, 0, 0o4755, 0)),
        ("open", (0, 0o100, 0o4755)),
        ("openat", (-100, 0, 0o101, 0o2755)),
        ("openat", (-100, 0, 0o20200002, 0o4755)),
        ("creat", (0, 0o4755)),
        ("mkdir", (0, 0o2755)),
        ("mkdirat", (-100, 0, 0o2755)),
        ("mknod", (0, 0o104755)),
        ("mknodat", (-100, 0, 0o104755)),
    ],
)
def test_no_set_id_file_can_be_made(name: str, arguments: tuple[int, ...]) -> None:
    assert _x86(name, *arguments, **LOOSE) == REFUSED
    assert _x86(name, *arguments) == REFUSED


def test_opening_without_making_ignores_what_the_mode_register_holds() -> None:
    assert _x86("openat", -100, 0, 0, 0o7777) == ALLOWED
    assert _x86("open", 0, 2, 0o7777) == ALLOWED
    assert _x86("openat", -100, 0, 0o100, 0o644) == ALLOWED


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o10600, ALLOWED), (0o100600, ALLOWED), (0o600, ALLOWED), (0o140600, ALLOWED),
     (0o60600, REFUSED), (0o20000, REFUSED)],
)  # fmt: skip
def test_no_device_can_be_made(mode: int, expected: int) -> None:
    assert _x86("mknod", 0, mode, **LOOSE) == expected
    assert _x86("mknodat", -100, 0, mode, **LOOSE) == expected


@pytest.mark.parametrize("name", ["chmod", "fchmod", "utimensat", "utimes", "utime", "futimesat"])
def test_modes_and_times_of_shared_files_are_changed_in_name_only(name: str) -> None:
    assert _x86(name) == PRETENDED
    assert _x86(name, private_files=True) == ALLOWED


@pytest.mark.parametrize(
    "name", ["chown", "fchownat", "setxattr", "setxattrat", "inotify_add_watch"]
)
def test_owners_and_attributes_of_shared_files_cannot_be_changed(name: str) -> None:
    assert _x86(name) == REFUSED
    assert _x86(name, private_files=True) == ALLOWED


@pytest.mark.parametrize(
    ("name", "own", "foreign"),
    [
        ("sched_setaffinity", (0,), (1234,)),
        ("sched_setscheduler", (0,), (1234,)),
        ("sched_setattr", (0,), (1234,)),
        ("setpriority", (0, 0), (0, 1234)),
        ("setpriority", (0, 0), (2, 0)),
        ("ioprio_set", (1, 0), (1, 1234)),
        ("ioprio_set", (1, 0), (3, 0)),
        ("prlimit64", (0, 7, 0x1000), (1234, 7, 0x1000)),
        ("prlimit64", (1234, 7, 0), (1234, 7, 1 << 32)),
    ],
)
def test_other_processes_are_not_tuned(
    name: str, own: tuple[int, ...], foreign: tuple[int, ...]
) -> None:
    assert _x86(name, *own) == ALLOWED
    assert _x86(name, *foreign) == REFUSED
    # with walls too what belongs to a user cannot be: the keeper has the same one
    of_user = (name, foreign[0]) in (("setpriority", 2), ("ioprio_set", 3))
    expected = REFUSED if of_user else ALLOWED
    assert _x86(name, *foreign, private_processes=True) == expected


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sched_setaffinity", (1,)),
        ("sched_setparam", (1,)),
        ("sched_setscheduler", (1,)),
        ("sched_setattr", (1,)),
        ("setpriority", (0, 1)),
        ("setpriority", (1, 1)),
        ("ioprio_set", (1, 1)),
        ("prlimit64", (1, 7, 0x1000)),
    ],
)
def test_the_process_that_watches_over_memory_is_not_tuned(
    name: str, arguments: tuple[int, ...]
) -> None:
    """A guest limited its keeper to 3 files, after which that could not look at anything."""
    assert _x86(name, *arguments, private_processes=True) == REFUSED
    assert _x86(name, *arguments) == REFUSED


@pytest.mark.parametrize("name", ["shmget", "shmat", "semop", "msgsnd", "mq_open"])
def test_shared_memory_and_queues_need_a_namespace(name: str) -> None:
    assert _x86(name) == REFUSED
    assert _x86(name, private_ipc=True) == ALLOWED


def test_the_same_name_is_decided_alike_on_both_machines() -> None:
    programs = {machine: seccomp.compile_filter(machine) for machine in (X86, ARM)}
    x86, arm = seccomp.numbers(X86), seccomp.numbers(ARM)
    for name in set(x86) & set(arm):
        for arguments in ((0,), (1, 1), (2, 0x5412, 3), (0x10000000, 0, 0o4755)):
            decisions = {
                decide(programs[machine], seccomp.ARCHITECTURES[machine], table[name], *arguments)
                for machine, table in ((X86, x86), (ARM, arm))
            }
            assert len(decisions) == 1, name
