"""The worker: reads requests from its socket, evaluates, answers.

Blocking I/O and no event loop of its own, so that the process can be forked between runs.
"""

from __future__ import annotations

import fcntl
import os
import sys

from . import displays, errors, proxies, values, wire
from .branch import Branches
from .evaluate import Interpreter
from .holdings import Holdings, sketch
from .port import HostGone, Interrupts, Port
from .streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .evaluate import Outcome

MAX_DISPLAYS = 200
_SIGKILL = 9  # the signal module takes milliseconds to import


class Worker:
    """Serves one session's requests on the main thread."""

    def __init__(self, fd: int) -> None:
        self._streams = Streams()
        self._interrupts = Interrupts()
        self._port = Port(fd, self._interrupts)
        self._holdings = Holdings()
        self._branches = Branches(self._port, self._streams, lambda: self._interpreter.globals)
        self._shown = 0
        self._overlay: str | None = None
        self._overlay_seen = 0

    def serve(self) -> None:
        header, _ = self._port.next_request()
        self._setup(header)
        while True:
            # a copy of this process that is woken goes on from here, without what was asked of it
            self._branches.rest()
            header, segments = self._port.next_request()
            kind = header["t"]
            if kind == "run":
                if not self._branches.before_run():
                    self._run(header)
                    self._branches.changed(header["run"])
            elif kind == "close":
                return
            elif kind == "checkpoint":
                self._branches.make(header["id"])
            else:
                self._exchange(header, segments)
                if kind in ("bind", "offer", "load", "reset"):
                    self._branches.changed(0 if kind == "reset" else None)

    def _setup(self, header: dict[str, Any]) -> None:
        self._port.incarnation = header["inc"]
        self._port.accepts = frozenset(header["accepts"])
        self._overlay = header["overlay"]
        sys.path.insert(0, os.getcwd())
        if self._overlay:
            sys.path.append(self._overlay)
        reserved = proxies.build(
            self._port, header["namespaces"], self._load_workflow, self._holdings
        )
        self._interpreter = Interpreter(
            "__main__", {**reserved, "display": self._display}, self._holdings
        )
        self._interpreter.shown = header["shown"]
        displays.hook_pyplot(lambda: self._show)
        self._branches.set_up(header["protect"], header["protect_bytes"])
        self._port.send_ready()

    def _load_workflow(self, name: str, source: str) -> Callable[..., object]:
        return self._interpreter.load_workflow(name, source)

    # -- runs

    def _run(self, header: dict[str, Any]) -> None:
        run_id = self._port.run_id = header["run"]
        self._shown = 0
        self._refresh_imports()
        self._streams.reopen()
        segments: list[wire.Buffer] = []
        done: dict[str, Any]
        try:
            self._interrupts.begin_run()
            try:
                outcome = self._interpreter.run(header["code"], run_id)
                if not self._port.is_ours:
                    self._leave_child(outcome)
                done = self._describe(outcome, run_id, segments)
            finally:
                self._interrupts.end_run()
        except KeyboardInterrupt:
            # a second one, while the first or the value was being described
            self._interrupts.end_run()
            segments.clear()
            done = {"failure": _failure("KeyboardInterrupt", "interrupted"), "notes": []}
        self._streams.flush()
        try:
            self._port.send({"t": "done", "run": run_id, **done}, segments)
        except (wire.WireError, OSError, MemoryError) as error:
            failure = _failure(type(error).__name__, f"the result could not be sent: {error}")
            self._port.send({"t": "done", "run": run_id, "failure": failure, "notes": []})

    def _leave_child(self, outcome: Outcome) -> None:
        """End a child that a cell forked and that came to the cell's end, as Python would."""
        if outcome.failure is not None:
            print(outcome.failure["traceback"], end="", file=sys.stderr)
        self._streams.flush()
        os._exit(0 if outcome.failure is None else 1)

    def _describe(
        self, outcome: Outcome, run_id: int, segments: list[wire.Buffer]
    ) -> dict[str, Any]:
        done: dict[str, Any] = {"notes": outcome.notes}
        if outcome.made:
            done["made"] = outcome.made
        if outcome.gone:
            done["gone"] = outcome.gone
        if outcome.failure is not None:
            done["failure"] = outcome.failure
        elif outcome.value is not None:
            try:
                done["value"] = values.encode(
                    outcome.value, segments, accepts=self._port.accepts, for_wire=True
                )
            except errors.ValueNotPortable:
                segments.clear()
                done["handle"] = self._hold(outcome.value, run_id)
        # a value that crosses says all there is to show
        for bundle in displays.of_result(outcome.value if "handle" in done else None):
            self._show(bundle)
        return done

    def _hold(self, value: object, run_id: int) -> dict[str, Any]:
        """Keep a value that cannot cross; give its name and description."""
        name = f"_{run_id}"
        self._holdings.hold_result(name, value)
        return sketch(name, value)

    def _display(self, *objects: object) -> None:
        """Show objects richly: figures, images, HTML, or their text."""
        for object in objects:
            self._show(displays.display_bundle(object))

    def _show(self, bundle: Mapping[str, object]) -> None:
        self._shown += 1
        if self._shown > MAX_DISPLAYS:
            if self._shown == MAX_DISPLAYS + 1:
                print(f"[more than {MAX_DISPLAYS} displays: the others are left out]")
            return
        segments: list[wire.Buffer] = []
        tree = values.encode(dict(bundle), segments)
        self._port.send({"t": "display", "run": self._port.run_id, "data": tree}, segments)

    def _refresh_imports(self) -> None:
        """See packages that were installed between two runs."""
        if self._overlay is None:
            return
        try:
            changed = os.stat(self._overlay).st_mtime_ns
        except OSError:
            return
        if changed != self._overlay_seen:
            import importlib

            self._overlay_seen = changed
            importlib.invalidate_caches()

    # -- between runs

    def _exchange(self, header: dict[str, Any], segments: list[wire.Buffer]) -> None:
        answer: dict[str, Any] = {"t": "answer", "id": header["id"]}
        out: list[wire.Buffer] = []
        try:
            kind = header["t"]
            if kind == "reset":
                self._interpreter.reset()
            elif kind in ("bind", "offer"):
                answer["value"] = self._bind(header, segments)
            elif kind == "fetch":
                value = self._holdings.find(header["name"])
                answer["value"] = values.encode(
                    value,
                    out,
                    limit=header["limit"],
                    accepts=self._port.accepts,
                    for_wire=True,
                )
            elif kind == "release":
                self._holdings.release(header["name"])
            elif kind == "save":
                saved = self._interpreter.save(header["limit"])
                answer["value"] = [saved.types, saved.skipped]
                out += saved.parts
            elif kind == "load":
                answer["value"] = self._interpreter.load(segments)
            else:
                raise errors.InvalidCall("exchange", f"this worker does not know {kind!r}")
        except errors.CodeModeError as error:
            out.clear()
            answer["error"] = {"type": type(error).__name__, "facts": errors.to_facts(error)}
        except KeyError as error:
            answer["error"] = {"type": "KeyError", "facts": {"name": str(error.args[0])}}
        except Exception as error:  # user types (__del__, __hash__) run here: the worker goes on
            out.clear()
            reason = f"{type(error).__name__}: {error}"
            answer["error"] = {
                "type": "CallFailed",
                "facts": {"target": header["t"], "reason": reason},
            }
        try:
            self._port.send(answer, out)
        except (wire.WireError, OSError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
            facts = {"target": header["t"], "reason": reason}
            self._port.send(
                {"t": "answer", "id": header["id"], "error": {"type": "CallFailed", "facts": facts}}
            )

    def _bind(self, header: dict[str, Any], segments: list[wire.Buffer]) -> bool:
        """Make a value of the host's a variable; False where that would take one from the user."""
        name, version = header["name"], header["version"]
        if header["t"] == "offer" and not self._holdings.has_room(name, version):
            return False
        value = values.decode(header["value"], segments, writable=True, trusts_sender=True)
        self._interpreter.bind(name, value, version)
        return True


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"type": kind, "message": message, "traceback": "", "lineno": None}


def _die_with(lifeline: int) -> None:
    """Have the kernel kill this process group when the host's end of a pipe closes.

    A host that is killed with -9 can tell nobody, and a cell that loops reads no socket. The pipe
    signals its owner when the other end closes (`man 2 fcntl`: F_SETOWN, F_SETSIG), whatever the
    process is doing; nothing is ever written to it.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, 10, _SIGKILL)  # F_SETSIG
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)


def main(fd: int, lifeline: int = -1) -> None:
    """Serve the session at the other end of the socket `fd` until it closes."""
    sys.argv = [""]
    if lifeline >= 0 and sys.platform == "linux":
        _die_with(lifeline)
    serve(fd)


def serve(fd: int) -> None:
    """The same in a process that somebody else looks after."""
    try:
        Worker(fd).serve()
    except HostGone:
        # threads and atexit handlers of user code must not keep a worker alive that nobody uses
        os._exit(0)
