"""Calls that only a privileged process has a use for, and ways to become one."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal

from .attempt import add, attack, call, child, rough

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BUFFER = ctypes.create_string_buffer(256)


def _raw(name: str, number: int, *arguments: Any) -> None:
    add(name, lambda: call(number, *arguments))


# -- mounts and namespaces
_raw("mount", 165, b"t", b"/tmp", b"tmpfs", 0, None)
_raw("mount_proc", 165, b"t", b"/tmp", b"proc", 0, None)
_raw("bind_the_root", 165, b"/", b"/tmp", None, 4096, None)
_raw("remount_to_write", 165, None, b"/usr", None, 32 | 4096, None)
_raw("umount", 166, b"/usr", 2)
_raw("umount_the_cover_of_a_folder", 166, b"/proc", 2)
_raw("open_tree", 428, -100, b"/", 1)
_raw("open_tree_with_attributes", 467, -100, b"/", 1, _BUFFER, 32)
_raw("move_mount", 429, -100, b"/", -100, b"/mnt", 0)
_raw("fsopen", 430, b"tmpfs", 0)
_raw("fspick", 433, -100, b"/", 0)
_raw("mount_setattr", 442, -100, b"/", 0, _BUFFER, 32)
_raw("list_mounts", 458, _BUFFER, _BUFFER, 16, 0)
_raw("stat_mounts", 457, _BUFFER, _BUFFER, 256, 0)
_raw("pivot_root", 155, b".", b".")
_raw("chroot", 161, b".")
for _name, _flag in (
    ("user", 0x10000000), ("user_and_mount", 0x10020000), ("mount", 0x20000), ("net", 0x40000000),
    ("pid", 0x20000000), ("ipc", 0x08000000), ("uts", 0x04000000), ("cgroup", 0x02000000),
    ("time", 0x80),
):  # fmt: skip
    _raw(f"unshare_{_name}", 272, _flag)
_raw("setns", 308, 0, 0)
_raw("clone3", 435, ctypes.create_string_buffer(b"\0\0\0\x10" + bytes(84), 88), 88)

# -- keys, tracing, and programs in the kernel
_raw("keyctl", 250, 0, -3, 1)
_raw("join_a_keyring", 250, 1, b"planted")
_raw("add_key", 248, b"user", b"planted", b"x", 1, -3)
_raw("request_key", 249, b"user", b"planted", None, -3)
_raw("io_uring_setup", 425, 8, _BUFFER)
_raw("io_uring_register", 427, 0, 0, _BUFFER, 0)
_raw("asynchronous_io", 206, 8, _BUFFER)
_raw("perf_event_open", 298, _BUFFER, 0, -1, -1, 0)
_raw("load_a_kernel_program", 321, 5, _BUFFER, 64)
_raw("make_a_kernel_map", 321, 0, _BUFFER, 64)
_raw("userfaultfd", 323, 1)
_raw("memfd_secret", 447, 0)
_raw("fanotify_init", 300, 0, 0)
_raw("lookup_dcookie", 212, 0, _BUFFER, 256)
_raw("rewrite_a_landlock_rule", 445, 0, 1, _BUFFER, 0)
_raw("another_landlock_ruleset", 444, _BUFFER, 8, 0)
_raw("lsm_set_self_attr", 460, 100, _BUFFER, 16, 0)

# -- the machine
_raw("kexec_load", 246, 0, 0, None, 0)
_raw("kexec_file_load", 320, 0, 0, 0, b"", 0)
_raw("init_module", 175, _BUFFER, 16, b"")
_raw("finit_module", 313, 0, b"", 0)
_raw("delete_module", 176, b"planted", 0)
_raw("acct", 163, b"/nowhere")
_raw("swapon", 167, b"/nowhere", 0)
_raw("swapoff", 168, b"/nowhere")
_raw("quotactl", 179, 0, None, 0, None)
_raw("reboot", 169, 0, 0, 0, None)
_raw("settimeofday", 164, None, None)
_raw("clock_settime", 227, 99, _BUFFER)
_raw("adjtimex", 159, _BUFFER)
_raw("sethostname", 170, b"planted", 7)
_raw("setdomainname", 171, b"planted", 7)
_raw("read_the_kernel_log", 103, 3, _BUFFER, 256)
_raw("clear_the_kernel_log", 103, 5, None, 0)
_raw("hang_up_the_terminal", 153)
_raw("iopl", 172, 3)
_raw("ioperm", 173, 0x80, 1, 1)
_raw("modify_ldt", 154, 0, _BUFFER, 16)
_raw("kernel_modules_by_sysfs", 139, 3)
_raw("ustat", 136, 0, _BUFFER)
_raw("nfsservctl", 180, 0, None, None)

# -- memory
_raw("vmsplice", 278, 1, None, 0, 0)
_raw("mbind", 237, 0, 0, 0, None, 0, 0)
_raw("set_mempolicy", 238, 0, None, 0)
_raw("move_pages", 279, 0, 0, None, None, None, 0)
_raw("remap_file_pages", 216, 0, 0, 0, 0, 0)
_raw("set_the_heaps_place", 157, 35, 1, 0, 0, 0)

# -- privileges
_raw("no_address_randomisation", 135, 0x0040000)
_raw("map_the_first_page", 135, 0x0100000)
_raw("another_filter", 317, 1, 0, _BUFFER)
_raw("a_listener_for_calls", 317, 1, 8, _BUFFER)
_raw("a_filter_by_prctl", 157, 22, 2, _BUFFER, 0, 0)
_raw("allow_tracers", 157, 0x59616D61, -1, 0, 0, 0)
_raw("keep_capabilities", 157, 8, 1, 0, 0, 0)
_raw("set_securebits", 157, 28, 0x2F, 0, 0, 0)
_raw("ambient_capability", 157, 47, 2, 21, 0, 0)
_raw("speculation_controls", 157, 53, 0, 4, 0, 0)
_raw("io_flusher", 157, 57, 1, 0, 0, 0)
_raw("core_scheduling", 157, 62, 1, 0, 0, 0)
_raw("become_root", 105, 0)
_raw("become_the_group_root", 106, 0)
_raw("a_call_of_the_future", 470, 0)
_raw("a_call_far_away", 100_000, 0)
_raw("a_removed_call", 183, 0, 0, 0)


@attack
def become_another_user() -> object:
    os.setresuid(12345, 12345, 12345)
    return "became"


@attack
def become_root_for_files() -> object:
    before = call(122, 0xFFFFFFFF)
    call(122, 0)
    if call(122, 0xFFFFFFFF) != before:
        return "became"
    raise PermissionError("the kernel kept its user")


@attack
def join_other_groups() -> object:
    os.setgroups([0, 4, 6])
    return "joined"


@attack
def regain_capabilities() -> object:
    header = ctypes.create_string_buffer(b"\x22\x05\x08\x20" + bytes(4), 8)
    return call(126, header, ctypes.create_string_buffer(b"\xff" * 24, 24))


@attack
def clone_into_a_user_namespace() -> object:
    return _clone_with(0x10000000)


@attack
def clone_into_a_mount_namespace() -> object:
    return _clone_with(0x20000)


def _clone_with(flags: int) -> object:
    made = call(56, flags | int(signal.SIGCHLD), 0, 0, 0, 0)
    if made == 0:
        os._exit(0)
    os.waitpid(made, 0)
    return "cloned"


@attack
def become_root_by_a_map_of_users() -> object:
    def act() -> None:
        ctypes.CDLL(None, use_errno=True).unshare(0x10000000)
        with open("/proc/self/uid_map", "w") as file:
            file.write("0 1000 1\n")

    status = child(act)
    if status in (1, 2):
        raise PermissionError("no map was written")
    return status


@attack
def push_into_a_terminal() -> object:
    return fcntl.ioctl(0, 0x5412, b"x")


@attack
def push_into_a_terminal_by_a_high_half() -> object:
    """The kernel reads 32 bits of the command; a filter that compares 64 is fooled."""
    return call(16, 0, 0x1_0000_5412, b"x")


@attack
def paste_into_a_console() -> object:
    return fcntl.ioctl(0, 0x541C, b"\3")


@attack
def take_a_terminal() -> object:
    return fcntl.ioctl(0, 0x540E, 1)


@attack
def ask_a_file_system_for_a_snapshot() -> object:
    opened = os.open(".", os.O_RDONLY)
    try:
        return fcntl.ioctl(opened, 0x50009417, bytearray(4096))  # BTRFS_IOC_SNAP_CREATE_V2
    finally:
        os.close(opened)


@attack
def make_a_file_unchangeable() -> object:
    with open("file", "w") as file:
        return fcntl.ioctl(file.fileno(), 0x40086602, b"\x10" + bytes(7))  # FS_IOC_SETFLAGS


@attack
def get_a_namespace_of_its_parent() -> object:
    opened = os.open("/proc/self/ns/user", os.O_RDONLY)
    try:
        return fcntl.ioctl(opened, 0xB702)  # NS_GET_PARENT
    finally:
        os.close(opened)


@attack
def get_the_next_mount_namespace() -> object:
    opened = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        return fcntl.ioctl(opened, 0x8010B70C, bytes(16))  # NS_MNT_GET_NEXT
    finally:
        os.close(opened)


@rough
def call_what_only_a_probe_may() -> object:
    """Not filtered since Linux 6.14: the kernel itself ends whoever else calls it."""
    return call(335)
