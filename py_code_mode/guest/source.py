"""From the text of a cell to code objects, with its source kept for tracebacks and `inspect`."""

from __future__ import annotations

import _ast
import linecache
import re
from types import CodeType

from .imports import AfterImport

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Callable
    from types import ModuleType

_ONLY_AST = 0x0400  # ast.PyCF_ONLY_AST; the ast module itself costs the worker's start 3 ms
_TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_COROUTINE = 0x0080  # inspect.CO_COROUTINE
_FUTURE_FEATURES = 0x1FE0000  # all of __future__'s compiler flags

_IGNORED_MAGIC = re.compile(r"^([ \t]*)%matplotlib\b.*$", re.MULTILINE)


class Cell:
    """A compiled cell: statements, and the last expression where there is one."""

    __slots__ = ("body", "filename", "flags", "value")

    def __init__(
        self, filename: str, flags: int, body: CodeType | None, value: CodeType | None
    ) -> None:
        self.filename = filename
        self.flags = flags
        self.body = body
        self.value = value

    @property
    def is_async(self) -> bool:
        return any(code is not None and code.co_flags & _COROUTINE for code in self.parts)

    @property
    def parts(self) -> tuple[CodeType | None, CodeType | None]:
        return (self.body, self.value)

    @property
    def defines(self) -> bool:
        """Whether anything that outlives the run may refer to this source."""
        return any(
            code is not None and any(isinstance(const, CodeType) for const in code.co_consts)
            for code in self.parts
        )


def compile_cell(
    source: str, filename: str, *, flags: int = 0, main_name: str | None = None
) -> Cell:
    """Compile a cell as IPython does: a trailing expression gives the value, `;` hides it.

    Args:
        source: the cell's text.
        filename: what tracebacks call it.
        flags: future features that earlier cells switched on.
        main_name: read ``__name__`` as this, where the module's real name must differ (a session
            inside the host's process cannot own ``sys.modules["__main__"]``).

    Raises:
        SyntaxError: with the place; magics are named, with what to use instead.
    """
    remember(filename, source)
    flags |= _TOP_LEVEL_AWAIT
    try:
        tree = compile(source, filename, "exec", flags | _ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        cleaned = _IGNORED_MAGIC.sub(r"\1pass", source)
        if cleaned == source:
            raise _explain_magic(error) from None
        try:
            tree = compile(cleaned, filename, "exec", flags | _ONLY_AST, dont_inherit=True)
        except SyntaxError as second:
            raise _explain_magic(second) from None
    assert isinstance(tree, _ast.Module)
    if main_name is not None and "__name__" in source:
        tree = _read_name_as(tree, main_name)
    last = tree.body[-1] if tree.body else None
    value = None
    if isinstance(last, _ast.Expr) and not source.rstrip().endswith(";"):
        tree.body.pop()
        value = compile(_ast.Expression(last.value), filename, "eval", flags, dont_inherit=True)
    body = None
    if tree.body:
        body = compile(tree, filename, "exec", flags, dont_inherit=True)
        flags |= body.co_flags & _FUTURE_FEATURES
    return Cell(filename, flags & ~_TOP_LEVEL_AWAIT, body, value)


def _read_name_as(tree: ast.Module, main_name: str) -> ast.Module:
    import ast

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id == "__name__" and isinstance(node.ctx, ast.Load):
                return ast.copy_location(ast.Constant(main_name), node)
            return node

    return Rename().visit(tree)


def _explain_magic(error: SyntaxError) -> SyntaxError:
    """Say what to use instead, where the error is IPython syntax that only IPython knows."""
    line = (error.text or "").lstrip()
    advice = ""
    if line.startswith("!"):
        command = line[1:].split()
        if len(command) > 2 and command[0] in ("pip", "uv", "conda") and "install" in command:
            advice = f"'!' commands are not Python; call deps.add({command[-1]!r}) instead"
        else:
            advice = "'!' commands are not Python; call subprocess.run([...]) instead"
    elif line.startswith(("%pip", "%conda", "%uv")):
        advice = f"magics are not Python; call deps.add({line.split()[-1]!r}) instead"
    elif line.startswith("%"):
        advice = "IPython magics are not available; use plain Python (deps.add, subprocess, time)"
    if advice:
        error.msg = advice
        error.args = (advice, *error.args[1:])
    return error


def remember(filename: str, source: str) -> None:
    """Let tracebacks and `inspect` find this source."""
    lines = source.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    # mtime None: linecache.checkcache leaves the entry alone
    linecache.cache[filename] = (len(source), None, lines, filename)


def forget(filename: str) -> None:
    """Drop a source that nothing refers to any more."""
    linecache.cache.pop(filename, None)


def cell_mark(module_name: str) -> str:
    """How the file names of a module's cells end.

    Sources are kept by file name for the whole process, so sessions that share one must differ;
    what people are shown has the plain ``<run 3>``.
    """
    return ">" if module_name == "__main__" else f" of {module_name}>"


def forget_module(module_name: str) -> None:
    """Drop all sources of a session that is over."""
    _cell_modules.discard(module_name)
    mark = cell_mark(module_name)
    for filename in [name for name in linecache.cache if name.endswith(mark)]:
        forget(filename)


#: Modules whose classes have their source in cells.
_cell_modules: set[str] = set()
_is_wrapped = False


def find_classes_of(module_name: str) -> None:
    """Make `inspect.getsource` work on the classes of cells, without importing inspect ourselves.

    `inspect.getfile` knows only a module's single file; a session's module has one per run. So
    getfile is wrapped once: now, or when inspect is imported (many modules bring it along).
    """
    global _is_wrapped
    _cell_modules.add(module_name)
    if not _is_wrapped:
        _is_wrapped = True
        AfterImport("inspect", _wrap_getfile)


def _wrap_getfile(inspect: ModuleType) -> None:
    original: Callable[[object], str] = inspect.getfile

    def getfile(object: object) -> str:
        if isinstance(object, type) and getattr(object, "__module__", None) in _cell_modules:
            filename = _file_of_class(object)
            if filename:
                return filename
        return original(object)

    getfile.__module__, getfile.__qualname__ = original.__module__, original.__qualname__
    getfile.__doc__ = original.__doc__
    inspect.getfile = getfile  # pyright: ignore[reportAttributeAccessIssue]


def _file_of_class(cls: type) -> str | None:
    for member in vars(cls).values():
        code = getattr(getattr(member, "__func__", member), "__code__", None)
        if code is None or not code.co_filename.startswith("<run "):
            continue
        # co_qualname is new in 3.11; a function that was only assigned here is not ours to go by
        if getattr(code, "co_qualname", cls.__qualname__).startswith(cls.__qualname__):
            return str(code.co_filename)
    pattern = re.compile(rf"^[ \t]*class[ \t]+{re.escape(cls.__name__)}\b", re.MULTILINE)
    mark = cell_mark(cls.__module__)
    runs = [name for name in linecache.cache if name.startswith("<run ") and name.endswith(mark)]
    for filename in sorted(runs, key=_run_number, reverse=True):
        if pattern.search("".join(linecache.getlines(filename))):
            return filename
    return None


def _run_number(filename: str) -> int:
    number = filename.removeprefix("<run ").partition(" ")[0].rstrip(">")
    return int(number) if number.isdigit() else 0
