"""Errors that guest code may catch, defined once for both sides.

The host re-exports them from `py_code_mode.errors`, where the whole tree is drawn. An error's
facts are its attributes and, by the same names, the parameters of its constructor: so it can be
sent as ``(class name, facts)`` and built anew on the other side (`to_facts`, `from_facts`).
Inside a session the classes are attributes of the namespaces that raise them
(``except tools.ToolError``).
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself is not imported: the worker's start is counted in ms
if TYPE_CHECKING:
    from typing import Any


class CodeModeError(Exception):
    """Root of every error this library raises."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    # KeyError's own __str__ quotes its argument; some of ours inherit it.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), to_facts(self)))


class InvalidName(CodeModeError, ValueError):
    """A name that cannot be used for what it was to name."""

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(f"{name!r} cannot name {kind}: {reason}")
        self.name, self.kind, self.reason = name, kind, reason


class NoActiveRun(CodeModeError, RuntimeError):
    """A call reached the host while no run was active, or from a run that is over."""

    def __init__(self, target: str) -> None:
        super().__init__(
            f"{target} was called while no run was active; calls from threads and child "
            "processes must end before their run does"
        )
        self.target = target


class CallFailed(CodeModeError, RuntimeError):
    """The host could not carry out a call, for a reason that is not the caller's."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target} failed: {reason}")
        self.target, self.reason = target, reason


class InvalidCall(CodeModeError, TypeError):
    """A call whose arguments do not fit, or of something that cannot be called."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target}: {reason}")
        self.target, self.reason = target, reason


class ValueNotPortable(CodeModeError, TypeError):
    """A value that cannot cross between guest and host without being altered."""

    def __init__(self, type_name: str, reason: str) -> None:
        super().__init__(f"a value of type {type_name} cannot cross: {reason}")
        self.type_name, self.reason = type_name, reason


class HandleError(CodeModeError):
    """A handle cannot be used as was asked."""


class HandleNotFound(HandleError, KeyError):
    """There is no handle, and no variable, of this name.

    Attributes:
        advice: what may help.
    """

    def __init__(
        self,
        name: str,
        advice: str = "values of earlier runs are kept for a while only: assign what you need to "
        "a variable",
    ) -> None:
        super().__init__(f"there is no value named {name!r}; {advice}")
        self.name, self.advice = name, advice


class HandlesFull(HandleError, MemoryError):
    """Guest code has put as much into handles as it may; nothing was put."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{name!r} was not put: {reason}; handles.delete(name) makes room, and artifacts keep "
            "data beyond the session"
        )
        self.name, self.reason = name, reason


class ConfinementFailed(CodeModeError):
    """A worker could not confine itself; it ran nothing.

    Attributes:
        step: the layer that failed, such as ``landlock``.
        errno: what the kernel answered; None where it was not asked.
    """

    def __init__(self, step: str, reason: str, errno: int | None = None) -> None:
        super().__init__(f"the worker could not confine itself at step {step!r}: {reason}")
        self.step, self.reason, self.errno = step, reason, errno


class ToolError(CodeModeError, RuntimeError):
    """A tool could not be found, called, or finished."""

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(f"tool {tool}: {reason}")
        self.tool, self.reason = tool, reason


class ToolNotFound(ToolError, LookupError):
    """No tool, or no recipe of a tool, has this name."""

    def __init__(self, tool: str, available: list[str]) -> None:
        known = ", ".join(available[:20]) or "none"
        super().__init__(tool, f"not found; available: {known}")
        self.available = available


class ToolArgumentError(ToolError, ValueError):
    """A tool's arguments do not fit its schema; nothing was run."""

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(tool, reason)


class ToolFailed(ToolError):
    """A tool ran and failed.

    Attributes:
        exit_code: of a command line tool; None for a Python tool; negative means a signal.
        stderr: the end of what the tool wrote to its standard error.
    """

    def __init__(
        self, tool: str, reason: str, exit_code: int | None = None, stderr: str = ""
    ) -> None:
        tail = f"\n{stderr.rstrip()}" if stderr.strip() else ""
        super().__init__(tool, reason + tail)
        self.reason, self.exit_code, self.stderr = reason, exit_code, stderr


class ToolTimeout(ToolError, TimeoutError):
    """A tool did not finish in its time; it was stopped. `timeout` is in seconds."""

    def __init__(self, tool: str, timeout: float) -> None:
        super().__init__(tool, f"did not finish within {timeout:g} s and was stopped")
        self.timeout = timeout


class WorkflowError(CodeModeError):
    """A workflow could not be found, read, stored or run."""


class WorkflowNotFound(WorkflowError, LookupError):
    """No workflow has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no workflow named {name!r}; workflows.list() shows those that exist")
        self.name = name


class InvalidWorkflow(WorkflowError, ValueError):
    """A workflow's source cannot be used; nothing was stored or run."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"workflow {name!r}: {reason}")
        self.name, self.reason = name, reason


class WorkflowNotApproved(WorkflowError, PermissionError):
    """Sandboxed code wrote the workflow, and this session's isolation is weaker than its was."""

    def __init__(self, name: str, origin: str, isolation: str) -> None:
        super().__init__(
            f"workflow {name!r} was written by sandboxed code ({origin}), and this session's "
            f"isolation is weaker ({isolation}): its owner has to read it (py-code-mode workflows "
            f"show {name}) and approve it (py-code-mode workflows approve {name}) first"
        )
        self.name, self.origin, self.isolation = name, origin, isolation


class WorkflowTooDeep(WorkflowError, RecursionError):
    """Workflows invoked one another more deeply than the limit."""

    def __init__(self, name: str, limit: int) -> None:
        super().__init__(f"workflow {name!r}: invoked more than {limit} levels deep")
        self.name, self.limit = name, limit


class ArtifactError(CodeModeError):
    """An artifact could not be found, read or stored."""


class ArtifactNotFound(ArtifactError, KeyError):
    """No artifact has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no artifact named {name!r}; artifacts.list() shows those that exist")
        self.name = name


class InvalidArtifact(ArtifactError, ValueError):
    """Data that cannot be stored as an artifact, or stored bytes that cannot be read back."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"artifact {name!r}: {reason}")
        self.name, self.reason = name, reason


class DependencyError(CodeModeError):
    """A dependency could not be declared or installed."""


class InvalidRequirement(DependencyError, ValueError):
    """A requirement that is not a plain ``name[extras]`` with version bounds."""

    def __init__(self, requirement: str, reason: str) -> None:
        super().__init__(f"requirement {requirement!r}: {reason}")
        self.requirement, self.reason = requirement, reason


class RuntimeDepsDisabled(DependencyError, PermissionError):
    """`deps.add` and `deps.remove` are refused: the session has ``allow_runtime_deps=False``."""

    def __init__(self, action: str) -> None:
        super().__init__(
            f"deps.{action} is refused: this session was made with allow_runtime_deps=False; "
            "list the package in requirements.txt and sync, or ask the session's owner"
        )
        self.action = action


class DependencyNotAllowed(DependencyError, PermissionError):
    """`deps.add` is refused: the workspace lists what code may add, and this is not on the list."""

    def __init__(self, package: str, allowed: list[str]) -> None:
        known = ", ".join(allowed[:20]) or "nothing"
        super().__init__(
            f"deps.add is refused for {package!r}: code of this workspace may add {known}"
            f"{', …' if len(allowed) > 20 else ''}. The workspace's owner can add the entry "
            f"{package} to `deps.allow` in config.yaml"
        )
        self.package, self.allowed = package, allowed


def _tree(root: type) -> dict[str, type]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            found.update(_tree(child))
    return found


#: Every class of this module by name.
GUEST_ERRORS: dict[str, type] = _tree(CodeModeError)


def _rebuild(kind: Any, facts: dict[str, Any]) -> Any:
    return kind(**facts)


def to_facts(error: CodeModeError) -> dict[str, Any]:
    """The facts an error of this module was built from, as plain JSON values."""
    code = type(error).__init__.__code__
    names = code.co_varnames[1 : code.co_argcount]
    return {name: getattr(error, name) for name in names}


def from_facts(name: str, facts: dict[str, Any]) -> CodeModeError:
    """Build the error again; an unknown name or misfitting facts become a `CodeModeError`."""
    kind = GUEST_ERRORS.get(name)
    try:
        if kind is not None:
            error = kind(**facts)
            assert isinstance(error, CodeModeError)
            return error
    except Exception:
        pass  # facts of a newer peer, or forged ones: what there is of a message must do
    return CodeModeError(str(facts.get("message") or facts.get("reason") or name))
