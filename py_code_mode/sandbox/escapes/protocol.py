"""Frames that no guest of ours would send, down the worker's own socket to the host."""

from __future__ import annotations

import array
import fcntl
import gc
import json
import os
import socket
import struct
import sys

from .attempt import Contained, add, own_socket, rough

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_DESCRIPTOR, _BY_FD = 0b11 << 62, 1 << 63


class _Line:
    """The socket to the host, used without the port that owns it."""

    def __init__(self) -> None:
        ports = [one for one in gc.get_objects() if type(one).__name__ == "Port"]
        self.port: Any = next(one for one in ports if hasattr(one, "run_id"))
        self.run: int = self.port.run_id
        self.incarnation: int = self.port.incarnation
        self.socket = own_socket()

    def send(
        self, header: Any, sizes: Sequence[int] = (), body: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        if isinstance(header, dict):
            header = json.dumps({"inc": self.incarnation, **header}).encode()
        data = struct.pack("<II", len(header), len(sizes))
        data += struct.pack(f"<{len(sizes)}Q", *sizes) + header + body
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        sent = self.socket.sendmsg([data], [rights] if fds else [])
        self.socket.sendall(data[sent:])

    def call(self, number: int, space: str, method: str) -> dict[str, Any]:
        named = {"id": number, "ns": space, "method": method}
        return {"t": "call", "run": self.run, "args": [{}], **named}

    def done(self, **more: Any) -> dict[str, Any]:
        return {"t": "done", "run": self.run, "notes": [], **more}


def _sent() -> object:
    raise Contained("sent")  # the session must go on, and the host looks at itself


@rough
def send_garbage() -> object:
    _Line().socket.sendall(os.urandom(4096))
    return _sent()


@rough
def send_text() -> object:
    _Line().socket.sendall(b"GET / HTTP/1.1\r\nHost: planted\r\n\r\n" * 10)
    return _sent()


@rough
def claim_four_gigabytes() -> object:
    _Line().socket.sendall(struct.pack("<II", 0xFFFFFFFF, 0))
    return _sent()


@rough
def claim_many_segments() -> object:
    _Line().socket.sendall(struct.pack("<II", 2, 0xFFFFFFFF) + b"{}")
    return _sent()


@rough
def claim_a_huge_segment() -> object:
    _Line().socket.sendall(struct.pack("<IIQ", 2, 1, (1 << 62) - 1) + b"{}")
    return _sent()


@rough
def send_half_a_frame_and_leave() -> object:
    _Line().socket.sendall(struct.pack("<II", 1000, 0) + b'{"t":"done"')
    os._exit(0)


@rough
def send_half_a_frame_and_go_on() -> object:
    """What the worker sends next is then read as the rest of it."""
    _Line().socket.sendall(struct.pack("<II", 500, 0) + b'{"t":"done"')
    return _sent()


@rough
def send_deeply_nested_text() -> object:
    line = _Line()
    depth = 100_000
    text = b'{"t":"done","inc":%d,"run":%d,"notes":[],"value":' % (line.incarnation, line.run)
    line.send(text + b"[" * depth + b"]" * depth + b"}")
    return _sent()


@rough
def send_a_deep_value() -> object:
    line = _Line()
    value: Any = 1
    for _ in range(150):
        value = [value]
    line.send(line.done(value=value))
    return _sent()


@rough
def send_a_number_of_many_digits() -> object:
    line = _Line()
    header = b'{"t":"done","inc":%d,"run":%d,"notes":[],"value":1' % (line.incarnation, line.run)
    line.send(header + b"0" * 5_000_000 + b"}")
    return _sent()


@rough
def send_many_keys() -> object:
    line = _Line()
    line.send({"t": "done", "run": line.run, "notes": [], **{f"k{n}": n for n in range(100_000)}})
    return _sent()


@rough
def send_the_same_key_twice() -> object:
    line = _Line()
    line.send(b'{"t":"done","t":"ready","inc":1,"inc":2,"run":1,"pid":1,"python":[3,1,1]}')
    return _sent()


@rough
def send_text_that_is_no_text() -> object:
    line = _Line()
    line.send(b'{"t":"done","inc":%d,"run":%d,"notes":["\xff\xfe\xed\xa0\x80"]}' % (1, line.run))
    return _sent()


@rough
def send_numbers_that_are_none() -> object:
    line = _Line()
    line.send(b'{"t":"done","inc":%d,"run":NaN,"notes":[]}' % line.incarnation)
    return _sent()


def _frame(name: str, **fields: Any) -> None:
    def send() -> object:
        line = _Line()
        if fields.get("t") in ("call", "display", "done"):
            line.send({"run": line.run, **fields})
        else:
            line.send(fields)
        return _sent()

    add(name, send, is_rough=True)


def _done(name: str, **fields: Any) -> None:
    _frame(name, t="done", **{"notes": [], **fields})


_CLEAR = "\x1b[2J"
_DEEP = json.loads("[" * 400 + "]" * 400)

_frame("send_an_unknown_kind", t="shell", command="id")
_frame("send_no_kind_at_all")
_done("send_unknown_fields", __class__="os", planted=True)
_done("send_fields_of_other_types", notes="planted", value=[])
_frame("answer_what_was_not_asked", t="answer", id=1 << 62)
_frame("answer_with_an_error_of_any_class", t="answer", id=1,
       error={"type": "SystemExit", "facts": {}})  # fmt: skip
_done("end_a_run_of_the_future", run=1 << 62)
_done("end_a_run_of_the_past", run=0)
_done("speak_for_another_incarnation", inc=999, value="planted")
_frame("say_ready_again", t="ready", pid=1, python=[9, 9, 9])
_frame("call_a_method_of_the_host", t="call", id=1, ns="__class__", method="__init__", args=[{}])
_frame("call_with_arguments_that_are_none", t="call", id=1, ns="tools", method="list",
       args={"$x": 1})  # fmt: skip
_done("send_a_handle_with_a_path",
      handle={"name": "../../planted", "type": _CLEAR, "snapshot": {"a": _CLEAR}})  # fmt: skip
_done("send_a_snapshot_that_is_deep", handle={"name": "_1", "type": "x", "snapshot": {"a": _DEEP}})
_done("send_a_failure_of_a_terminals_commands", notes=[_CLEAR],
      failure={"type": _CLEAR, "message": _CLEAR, "traceback": _CLEAR, "lineno": -1})  # fmt: skip
_done("send_a_value_of_an_unknown_kind", value={"$pickle": "gASVAA=="})
_done("send_a_value_that_names_a_class", value={"$object": ["os.system", "id"]})
_done("send_a_tag_among_keys", value={"$set": [1], "planted": 1})
_done("send_a_set_of_lists", value={"$set": [[1], [2]]})
_done("send_a_path_as_a_value", value={"$path": "/etc/shadow"})
_done("send_a_segment_that_is_not_there", value={"$bytes": 7})
_done("send_a_frame_that_is_none", value={"$frame": ["numpy.ndarray", {}, [0]]})
_frame("show_what_is_no_display", t="display", data={"text/html": {"$x": 1}})
_frame("fall_asleep_without_a_socket", t="asleep", run=0, pid=2)
_frame("fall_asleep_as_the_keeper", t="asleep", run=0, pid=1)
_frame("fall_asleep_as_nobody", t="asleep", run=0, pid=-1)
_frame("fall_asleep_in_the_future", t="asleep", run=1 << 40, pid=2)
_frame("refuse_to_sleep_at_length", t="asleep", run=0, refused="x" * 5_000_000)


@rough
def end_a_run_twice() -> object:
    line = _Line()
    for value in ("planted", "planted again"):
        line.send(line.done(value=value))
    return _sent()


@rough
def use_the_number_of_a_call_twice() -> object:
    line = _Line()
    for _ in range(2):
        line.send(line.call(7_000_000, "tools", "list"))
    return _sent()


@rough
def call_thousands_of_times_at_once() -> object:
    line = _Line()
    for number in range(3000):
        line.send(line.call(8_000_000 + number, "deps", "list"))
    return _sent()


@rough
def never_read_the_answers() -> object:
    line = _Line()
    line.socket.settimeout(1.0)
    text = "x" * 60_000
    for number in range(4000):
        line.send(line.call(9_000_000 + number, "os", text))
    return _sent()


@rough
def pass_descriptors_that_no_frame_speaks_of() -> object:
    line = _Line()
    line.send(line.done(), fds=[0, 0, 0, 0])
    return _sent()


@rough
def pass_more_descriptors_than_a_frame_may() -> object:
    line = _Line()
    for _ in range(40):
        line.socket.sendmsg(
            [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 8))]
        )
    return _sent()


@rough
def pass_a_descriptor_with_a_result() -> object:
    line = _Line()
    line.send(line.done(value=None), [_DESCRIPTOR], fds=[0])
    return _sent()


@rough
def pass_a_folder_as_a_sleeper() -> object:
    return _pass_as_sleeper(os.open("/", os.O_RDONLY))


@rough
def pass_a_device_as_a_sleeper() -> object:
    return _pass_as_sleeper(os.open("/dev/zero", os.O_RDWR))


@rough
def pass_its_own_socket_as_a_sleeper() -> object:
    return _pass_as_sleeper(os.dup(_Line().socket.fileno()))


@rough
def pass_a_pipe_as_a_sleeper() -> object:
    return _pass_as_sleeper(os.pipe()[0])


@rough
def pass_the_host_as_a_sleeper() -> object:
    """The descriptor of the host's process that its socket gives away, back to the host."""
    return _pass_as_sleeper(_Line().socket.getsockopt(socket.SOL_SOCKET, 77))


@rough
def be_a_sleeper_that_never_answers() -> object:
    ours = _offer_sleeper(_Line())
    return _die_and_leave(lambda: ours.recv(1))


@rough
def be_a_sleeper_that_answers_with_the_host() -> object:
    """Woken, it names the host itself as the process that the host is to kill."""
    line = _Line()
    host = line.socket.getsockopt(socket.SOL_SOCKET, 77)
    ours = _offer_sleeper(line)

    def answer() -> None:
        _, control, _, _ = ours.recvmsg(4096, 256)
        fds = array.array("i")
        for _, _, data in control:
            fds.frombytes(data)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [host]))]
        for reply in ({"pid": 1}, {"t": "ready", "pid": 1, "python": [3, 11, 0]}):
            try:
                ours.sendmsg([json.dumps(reply).encode()], rights)
            except OSError:
                break
        if fds:
            guest = socket.socket(fileno=fds[0])
            header = json.dumps({"t": "ready", "inc": 99, "pid": 1, "python": [3, 11, 0]}).encode()
            guest.sendmsg([struct.pack("<II", len(header), 0) + header], rights)
            guest.recv(1 << 16)  # the run that comes is never answered
            guest.recv(1 << 16)

    return _die_and_leave(answer)


@rough
def be_a_sleeper_that_answers_with_garbage() -> object:
    ours = _offer_sleeper(_Line())
    ours.send(b"\xff" * 4000)
    ours.send(b'{"pid": 1, "planted": true}')
    return _die_and_leave(lambda: ours.recv(1))


@rough
def be_thousands_of_sleepers() -> object:
    line = _Line()
    line.socket.settimeout(2.0)
    for _ in range(2000):
        _offer_sleeper(line).close()
    return _sent()


def _offer_sleeper(line: _Line) -> socket.socket:
    """Say that there is a sleeper; its end of the socket by which it is woken."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        line.send(_asleep(line), [_DESCRIPTOR], fds=[theirs.fileno()])
    return ours


def _die_and_leave(act: Callable[[], object]) -> object:
    """End the worker, and have a child that it leaves behind do something."""
    if os.fork() == 0:
        os.setsid()
        act()
        os._exit(0)
    os.kill(os.getpid(), 9)
    return "still there"


def _asleep(line: _Line) -> dict[str, Any]:
    return {"t": "asleep", "id": None, "run": 0, "pid": os.getpid()}


def _pass_as_sleeper(fd: int) -> object:
    line = _Line()
    line.send(_asleep(line), [_DESCRIPTOR], fds=[fd])
    return _sent()


@rough
def pass_memory_that_can_still_shrink() -> object:
    """Whoever maps it is killed by SIGBUS when it does."""
    line = _Line()
    made = os.memfd_create("planted", os.MFD_ALLOW_SEALING)
    size = 20 << 20
    os.ftruncate(made, size)
    line.send(line.done(value={"$bytes": 0}), [size | _BY_FD], fds=[made])
    os.ftruncate(made, 0)
    return _sent()


@rough
def pass_memory_of_another_size() -> object:
    line = _Line()
    line.send(line.done(value={"$bytes": 0}), [(1 << 40) | _BY_FD], fds=[_sealed(4096)])
    return _sent()


@rough
def pass_memory_that_is_all_holes() -> object:
    """A file of holes costs its sender nothing, and whoever copies it all of it."""
    line = _Line()
    size = 30 << 20
    files = [_sealed(size) for _ in range(8)]
    for _ in range(4):
        display = {"text/plain": {"$str": 0}, "text/html": {"$str": 1}}
        line.send(
            {"t": "display", "run": line.run, "data": display}, [size | _BY_FD] * 8, fds=files
        )
    return _sent()


@rough
def pass_a_file_as_memory() -> object:
    line = _Line()
    with open("file", "w+b") as file:
        file.truncate(1 << 20)
        line.send(line.done(value={"$bytes": 0}), [(1 << 20) | _BY_FD], fds=[file.fileno()])
    return _sent()


@rough
def pass_a_pipe_as_memory() -> object:
    line = _Line()
    line.send(line.done(value={"$bytes": 0}), [4096 | _BY_FD], fds=[os.pipe()[0]])
    return _sent()


def _sealed(size: int) -> int:
    made = os.memfd_create("planted", os.MFD_ALLOW_SEALING)
    os.ftruncate(made, size)
    fcntl.fcntl(made, 1033, 0x000F)
    return made


@rough
def close_its_socket() -> object:
    line = _Line()
    line.socket.shutdown(socket.SHUT_RDWR)
    return _sent()


@rough
def stop_reading_forever() -> object:
    line = _Line()
    line.socket.shutdown(socket.SHUT_RD)
    return _sent()


@rough
def have_a_child_speak_for_it() -> object:
    line = _Line()
    if os.fork() == 0:
        os.setsid()
        try:
            for _ in range(1000):
                line.send({"t": "display", "run": line.run, "data": {"text/plain": "planted"}})
        except OSError:
            os._exit(1)
        os._exit(0)
    return _sent()


@rough
def replace_the_guests_own_functions() -> object:
    """The guest's code is the user's to break: nothing of the host relies on it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("_") and hasattr(module, "pack") and hasattr(module, "send_some"):
            broken: Any = module
            broken.send_some = _send_nonsense
            return _sent()
    raise Contained("they were not found")


def _send_nonsense(sock: Any, buffers: Any, fds: Any) -> int:
    return sock.send(b"\xff" * 64)
