"""What is told of values that are neither data nor containers: code, errors, models, pictures."""

# Values are Any: narrowed by their class, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from .outline import Budget
from .reprs import MISSING, among, attributes, bounded_repr, clean, find, is_a, lookup, member, mro
from .tables import attempt
from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any

    from .sketch import Sketch

_KINDS = 8  # classes, axes and the like that are told
_DOC = 200  # characters of a docstring's first line


def tell_object(sketch: Sketch, value: Any) -> None:
    kind: type = type(value)
    for module, name, tell in (
        ("sklearn.base", "BaseEstimator", _model),
        ("PIL.Image", "Image", _image),
        ("matplotlib.figure", "Figure", _figure),
        ("matplotlib.axes._base", "_AxesBase", _axes),
        ("polars", "LazyFrame", _lazy_frame),
    ):
        if is_a(kind, module, name):
            attempt(lambda tell=tell: tell(sketch, value))
            return
    if issubclass(kind, (FunctionType, BuiltinFunctionType, MethodType)):
        _function(sketch, value)
    elif issubclass(kind, type):
        _class(sketch, value)
    elif issubclass(kind, ModuleType):
        _module(sketch, value)
    elif issubclass(kind, BaseException):
        _exception(sketch, value)
    else:
        sketch.tell("repr", sketch.outline.reprs.of(value), 600)


def _function(sketch: Sketch, value: Any) -> None:
    if issubclass(type(value), MethodType):
        value = value.__func__
    if type(value) is FunctionType:
        sketch.put("signature", clean(_signature(value), 400))
        _doc(sketch, value.__doc__)
    elif type(value) is BuiltinFunctionType:
        text: Any = getattr(value, "__text_signature__", None)
        if text is not None:
            text = text.replace("($module, ", "(").replace("($self, ", "(")
        sketch.put("signature", clean(f"{value.__qualname__}{text or '(…)'}", 400))
        _doc(sketch, value.__doc__)


def _signature(function: Any) -> str:
    """How a function is called, from its code alone; defaults that are not plain are ``…``."""
    code = function.__code__
    names = code.co_varnames
    positional = list(names[: code.co_argcount])
    defaults = _defaults(function)
    # from 3.14 on, asking for annotations runs code
    hints: Any = function.__annotations__ if sys.version_info < (3, 14) else {}

    def shown(name: str) -> str:
        hint: Any = dict.get(hints, name)
        if issubclass(type(hint), type):
            hint = type_name(hint).rpartition(".")[2]
        text = f"{name}: {hint}" if type(hint) is str else name
        if name not in defaults:
            return text
        default = defaults[name]
        plain = default is None or among(type(default), (bool, int, float, str))
        return f"{text}={bounded_repr(default, 40) if plain else '…'}"

    parts = [shown(name) for name in positional]
    if code.co_posonlyargcount:
        parts.insert(code.co_posonlyargcount, "/")
    following = code.co_argcount + code.co_kwonlyargcount
    if code.co_flags & 0x04:  # *args
        parts.append("*" + names[following])
        following += 1
    elif code.co_kwonlyargcount:
        parts.append("*")
    parts += [shown(name) for name in names[code.co_argcount :][: code.co_kwonlyargcount]]
    if code.co_flags & 0x08:  # **kwargs
        parts.append("**" + names[following])
    prefix = "async " if code.co_flags & 0x280 else ""  # a coroutine, an asynchronous generator
    back: Any = dict.get(hints, "return")
    back = type_name(back).rpartition(".")[2] if issubclass(type(back), type) else back
    arrow = f" -> {back}" if type(back) is str else ""
    return f"{prefix}{function.__qualname__}({', '.join(parts)}){arrow}"


def _defaults(function: Any) -> dict[str, Any]:
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    # the defaults are those of the last ones
    found = dict(zip(reversed(positional), reversed(function.__defaults__ or ()), strict=False))
    return {**found, **(function.__kwdefaults__ or {})}


def _doc(sketch: Sketch, doc: Any) -> None:
    if type(doc) is str and doc.strip():
        sketch.tell("doc", doc[:5000].strip().splitlines()[0], _DOC)


def _class(sketch: Sketch, value: Any) -> None:
    sketch.tell("name", type_name(value), 200)
    bases = [type_name(base) for base in mro(value)[1:-1]]
    if bases:
        sketch.tell("bases", bases[:_KINDS], 300)
    own: Any = type.__dict__["__dict__"].__get__(value)
    if is_a(value, "enum", "Enum") and type(own.get("_member_map_")) is dict:
        choices = {
            str(name): member(choice, "_value_") for name, choice in own["_member_map_"].items()
        }
        sketch.tell("members", choices)
        return
    start = lookup(value, "__init__")
    if type(start) is FunctionType:
        sketch.put("signature", clean(_signature(start), 400))
    _doc(sketch, own.get("__doc__"))
    names = [
        name
        for base in mro(value)[:-1]
        for name, item in type.__dict__["__dict__"].__get__(base).items()
        if type(name) is str and name[:1] != "_"
        and among(type(item), (FunctionType, classmethod, staticmethod, property))
    ]  # fmt: skip
    if names:
        sketch.tell("methods", list(dict.fromkeys(names)), 300)


def _module(sketch: Sketch, value: Any) -> None:
    own = attributes(value) or {}
    sketch.tell("name", own.get("__name__"), 100)
    if type(own.get("__version__")) is str:
        sketch.tell("version", own["__version__"], 40)
    _doc(sketch, own.get("__doc__"))
    names = [name for name in own if type(name) is str and name[:1] != "_"]
    sketch.put("public_names", len(names))


def _exception(sketch: Sketch, value: Any) -> None:
    own: Any = BaseException.__dict__
    sketch.tell("args", own["args"].__get__(value), 600)
    cause = own["__cause__"].__get__(value)
    if cause is not None:
        sketch.put("cause", clean(type_name(type(cause)), 80))
    trace = own["__traceback__"].__get__(value)
    for _ in range(1000):  # to where it was raised
        if trace is None or trace.tb_next is None:
            break
        trace = trace.tb_next
    if trace is not None:
        sketch.put("raised_in", f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}")


def _model(sketch: Sketch, value: Any) -> None:
    """A model of scikit-learn's kind: what it was made with, and what it has learnt."""
    start = lookup(type(value), "__init__")
    code: Any = getattr(start, "__code__", None) if type(start) is FunctionType else None
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount] if code else ()
    params = {name: item for name in names if (item := member(value, name)) is not MISSING}
    defaults = _defaults(start) if code else {}
    own = attributes(value) or {}
    learnt = [
        (name, item) for name, item in own.items()
        if type(name) is str and name[-1:] == "_" and name[:1] != "_"
    ]  # fmt: skip
    sketch.put("fitted", bool(learnt))
    changed = {
        name: item for name, item in params.items()
        if not (name in defaults and _is_same(item, defaults[name]))
    }  # fmt: skip
    if changed:
        sketch.tell("params", changed, sketch.left // 2)
    if len(changed) < len(params):
        sketch.put("default_params", len(params) - len(changed))
    told = sketch.outline.fields(learnt, len(learnt), sketch.room("attributes"))
    if told:
        sketch.put("attributes", told)


def _is_same(item: Any, default: Any) -> bool:
    """Whether two parameters are equal, told without their own code."""
    if item is default:
        return True
    if type(item) is not type(default) or not among(type(item), (bool, int, float, str)):
        return False
    return item == default


def _image(sketch: Sketch, value: Any) -> None:
    own = attributes(value) or {}
    width, height = own["_size"]
    sketch.put("size", [int(width), int(height)])
    sketch.tell("mode", own.get("_mode"), 40)
    form = own.get("format", lookup(type(value), "format"))
    if type(form) is str:
        sketch.tell("format", form, 40)
    info: Any = own.get("info")
    if type(info) is dict and info:
        sketch.tell("info", info, 200)


def _figure(sketch: Sketch, value: Any) -> None:
    figure: Any = find("matplotlib.figure", "Figure")
    sketch.put("inches", [float(f"{side:.4g}") for side in figure.get_size_inches(value)])
    title: Any = attributes(value) or {}
    title = title.get("_suptitle")
    if title is not None:
        sketch.tell("title", title.get_text(), 100)
    every = figure.get_axes(value)
    sketch.put("axes_count", len(every))
    told: list[Any] = []
    budget = Budget(sketch.room("axes") - 2)
    for axes in every[:_KINDS]:
        if not budget.push(told, _of_axes(sketch, axes)):
            break
    sketch.put("axes", told)
    sketch.leave_out("axes", len(every) - len(told), ".axes")


def _axes(sketch: Sketch, value: Any) -> None:
    for key, fact in _of_axes(sketch, value).items():
        sketch.put(key, fact)


def _of_axes(sketch: Sketch, axes: Any) -> dict[str, Any]:
    """What is written on axes, what is drawn in them and between which values."""
    kind: Any = find("matplotlib.axes._base", "_AxesBase")
    plain: Any = find("matplotlib.axes._axes", "Axes") or kind
    own = attributes(axes) or {}
    found: dict[str, Any] = {}
    for key, text in (
        ("title", plain.get_title(axes)),
        ("x", own["xaxis"].get_label_text()),
        ("y", own["yaxis"].get_label_text()),
    ):
        if text:
            found[key] = sketch.outline.text(text, 80, 80)
    for key, ends in (("xlim", kind.get_xlim(axes)), ("ylim", kind.get_ylim(axes))):
        found[key] = [float(f"{end:.6g}") for end in ends]
    drawn = [type_name(type(item)).rpartition(".")[2] for item in own.get("_children", ())]
    found["drawn"] = {name: drawn.count(name) for name in list(dict.fromkeys(drawn))[:_KINDS]}
    legend = own.get("legend_")
    if legend is not None:
        labels = [text.get_text() for text in legend.get_texts()[:10]]
        found["legend"] = [sketch.outline.text(text, 40, 40) for text in labels]
    return found


def _lazy_frame(sketch: Sketch, value: Any) -> None:
    """The columns that a query would give; it is not run, though files may be looked into."""
    frame: Any = find("polars", "LazyFrame")
    schema = sketch.outline.reprs.within("LazyFrame", lambda: frame.collect_schema(value))
    columns: list[Any] = []
    budget = Budget(sketch.room("columns") - 2)
    for name, dtype in schema.items():
        entry = {"name": sketch.outline.text(name, 60, 60), "dtype": clean(str(dtype), 80)}
        if not budget.push(columns, entry):
            break
    sketch.put("columns", columns)
    sketch.leave_out("columns", len(schema) - len(columns), ".collect_schema()")
    sketch.put("lazy", "not run; .collect() runs it")
