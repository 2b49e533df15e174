"""Plain values cross unaltered or are refused, and nothing a peer sends can do harm."""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import copy
import datetime as dt
import json
import math
import random
import subprocess
import sys
import time
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py_code_mode.guest.errors import ValueNotPortable
from py_code_mode.guest.values import (
    EXCHANGE_LIMIT,
    MAX_DEPTH,
    MAX_NODES,
    InvalidValue,
    MissingHere,
    decode,
    encode,
)


def wire(value: object) -> tuple[Any, list[bytes]]:
    """Tree and segments as they arrive: through JSON text and copied bytes."""
    segments: list[Any] = []
    tree = encode(value, segments)
    text = json.dumps(tree)
    arrived = msgspec.json.decode(text)
    assert json.loads(msgspec.json.encode(tree)) == json.loads(text)
    return arrived, [bytes(segment) for segment in segments]


def round_trip(value: object) -> Any:
    return decode(*wire(value))


def same(a: Any, b: Any) -> bool:
    """Equality that knows nan, the sign of zero, types at every level and the order of keys."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (
            a == b and math.copysign(1, a) == math.copysign(1, b)
        )
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple):
        pair: Any = (a, b)
        return len(pair[0]) == len(pair[1]) and all(map(same, *pair))
    if isinstance(a, dict):
        left: Any = a
        return same(list(left.items()), list(b.items()))
    if isinstance(a, Decimal):
        return repr(a) == repr(b)
    return bool(a == b)


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
PLAIN: list[object] = [
    None, True, False, 0, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**64, -(2**70), 7**9000,
    0.0, -0.0, 1.5, 1e300, 5e-324, 1e22, math.inf, -math.inf, math.nan,
    "", "text", "nul \0 and \u2028", "🐍", "\ud800", "a\udfff" * 3000, "é" * 10_000, "x" * 4096,
    b"", b"\0\xff", b"x" * 100_000, bytearray(b"abc"), bytearray(b"y" * 9000),
    [], [1, "a", None], [1] * 500, [2**63] + [1] * 100, [0.5] * 500, [math.nan, -0.0] * 100,
    [f"{n} é🐍" for n in range(40_000)], ["\ud800" * 40_000] * 9, ["", "x" * 300_000, *"abcdefg"],
    {"keys" * 9 + str(n): "v" for n in range(9000)}, tuple(f"{n:060}" for n in range(6000)),
    ["s"] * 200, ["\ud800"] * 100, ["x" * 5000, "y"], [True, None], [True] * 100, [1, True, 1.0],
    {}, {"a": 1}, {"b": 1, "a": 2}, {1: "int", "1": "str"}, {"$int": "7"}, {"$": 1, "b": 2},
    {"\ud800": 1}, {None: 1, (1, 2): [3], 1.5: {}}, {str(i): i for i in range(300)},
    {i: str(i) for i in range(300)}, {"": 0}, {"k" * 5000: 1},
    (), (1,), ((1, "a"), [()]), tuple(range(100)), set(), {1, "a"}, frozenset({1, (2, 3)}),
    {frozenset({1}), frozenset()}, set(range(1000)),
    1 + 2j, complex(math.nan, -0.0), range(0), range(10, 0, -3), range(2**80),
    slice(None), slice(1, "a", 2.5), ...,
    dt.date(1, 1, 1), dt.time(23, 59, 59, 999999), dt.time(1, 2, tzinfo=dt.UTC, fold=1),
    dt.datetime(2024, 2, 29, 12, 30, 1, 5), dt.datetime(9999, 12, 31, tzinfo=dt.UTC),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5, microseconds=1))),
    dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "named")),
    dt.timedelta(-1, 5, 7), dt.timedelta.max, dt.UTC, BERLIN,
    Decimal("1.10"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity"), Decimal("-0"),
    Decimal("1E+999999"), Fraction(-1, 3), Fraction(10**300, 7),
    uuid.UUID(int=1), Path("/tmp/x"), Path(), PurePosixPath("a/b"), PureWindowsPath("c:\\x"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_value_comes_back_with_its_type(value: object) -> None:
    assert same(round_trip(value), value)
    assert same(round_trip([value, {"k": value}]), [value, {"k": value}])


def test_zone_name_and_fold_come_back() -> None:
    value = round_trip(dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1))
    assert (value.tzinfo.key, value.fold, value.utcoffset()) == (
        "Europe/Berlin",
        1,
        dt.timedelta(hours=1),
    )


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.binary(max_size=20)
    | st.complex_numbers()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.just(BERLIN))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.fractions()
)
KEYS = st.text(max_size=5) | st.integers() | st.booleans() | st.tuples(st.integers(), st.text())
NESTED: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(KEYS, inner, max_size=6)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(KEYS, max_size=6)
        | st.frozensets(KEYS, max_size=6)
    ),
    max_leaves=30,
)


@settings(max_examples=200)
@given(NESTED)
def test_nested_values_come_back(value: object) -> None:
    assert same(round_trip(value), value)


class Sub(int):
    pass


class Text(str):
    pass


class Hostile(type):
    """A metaclass whose methods must not be reached."""

    def __hash__(cls) -> int:
        raise AssertionError("user code was called")

    def __eq__(cls, other: object) -> bool:
        raise AssertionError("user code was called")

    def __instancecheck__(cls, instance: object) -> bool:
        raise AssertionError("user code was called")


class Untouchable(metaclass=Hostile):
    def __repr__(self) -> str:
        raise AssertionError("user code was called")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("user code was called")

    def __hash__(self) -> int:
        return 1

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("user code was called")


@pytest.mark.parametrize(
    "value",
    [object(), Sub(1), Text("a"), len, int, Exception("x"), iter([]), memoryview(b"a"),
     dt.datetime(2020, 1, 1, tzinfo=type("Zone", (dt.tzinfo,), {})()), NotImplemented],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_else_is_refused_wherever_it_is(value: object) -> None:
    for whole in (value, [value], [1] * 100 + [value], {"a": (value,)}, {1: value}):
        with pytest.raises(ValueNotPortable):
            encode(whole, [])


def test_encoding_calls_no_user_code() -> None:
    value = Untouchable()
    for whole in (value, [value], [value, 1], {value}, {value: 1}, {"a": value}, (1, [value])):
        with pytest.raises(ValueNotPortable, match="Untouchable"):
            encode(whole, [])


def test_cycles_and_depth_are_refused_at_once() -> None:
    loop: list[object] = []
    loop += [loop, loop]
    table: dict[str, object] = {}
    table.update(a=table, b=table)
    deep: object = 0
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    for value in (loop, table, deep):
        with pytest.raises(ValueNotPortable, match="itself"):
            encode(value, [])


def test_the_deepest_value_that_is_sent_is_received() -> None:
    for wrap in (lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}):
        value: object = 0
        for _ in range(MAX_DEPTH):
            value = wrap(value)
        assert same(round_trip(value), value)


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_NODES == 2_000_000
    monkeypatch.setattr("py_code_mode.guest.values.MAX_NODES", 10_000)
    shared: object = 0
    for _ in range(40):
        shared = [shared, shared]
    for value in (shared, [0] * 10_001, dict.fromkeys(range(10_000))):
        with pytest.raises(ValueNotPortable, match="too large"):
            encode(value, [])
    for value in ("x" * 2000, b"x" * 2000, [b"x" * 600, "y" * 600], {"a" * 2000: 1}):
        with pytest.raises(ValueNotPortable, match="too large"):
            encode(value, [], limit=1000)
    encode([b"x" * 400, "y" * 400], [], limit=1000)
    with pytest.raises(ValueNotPortable, match="too large"):
        encode(Fraction(1, 3**20_000), [])


def test_what_would_make_too_long_a_json_text_is_refused_whatever_the_limit() -> None:
    small = [{"a": "x" * 4000, "b": 1} for _ in range(17_000)]
    with pytest.raises(ValueNotPortable, match="of small values"):
        encode(small, [], limit=EXCHANGE_LIMIT)
    texts = ["x" * 4000 for _ in range(17_000)]
    with pytest.raises(ValueNotPortable, match="too large"):
        encode(texts, [])
    segments: list[Any] = []
    tree = encode(texts, segments, limit=EXCHANGE_LIMIT)
    assert decode(tree, segments) == texts


def test_members_that_share_a_hash_are_refused_on_both_sides() -> None:
    crowd = [k * (2**61 - 1) for k in range(1, 200)]
    for value in (set(crowd), frozenset(crowd), dict.fromkeys(crowd)):
        with pytest.raises(ValueNotPortable, match="hash"):
            encode(value, [])
    tree = [{"$int": f"{k:x}"} for k in crowd]
    for attack in ({"$set": tree}, {"$frozenset": tree}, {"$dict": [tree, [0] * len(tree)]}):
        with pytest.raises(InvalidValue, match="hash"):
            decode(attack, [])


@pytest.mark.parametrize(
    "tree",
    [
        {"$nope": 1}, {"$int": "7"}, {"$int": "0x" + "f" * 20}, {"$int": " " + "f" * 20},
        {"$int": 7}, {"$int": None}, {"$float": "1.5"}, {"$float": []}, 2**53 + 1, math.nan,
        math.inf, (1,), b"x", object(), {1: 2}, {"a": 1, "$b": 2}, {"$int": "f" * 20, "a": 1},
        {"$tuple": 1}, {"$tuple": {"a": 1}}, {"$set": [1, 1]}, {"$set": [1, True]}, {"$set": [[]]},
        {"$frozenset": [{"$set": []}]}, {"$dict": [[1], []]}, {"$dict": [[1, 1], [2, 3]]},
        {"$dict": [[[]], [1]]}, {"$dict": [1]}, {"$dict": 5}, {"$ints": "AAA="}, {"$ints": 0},
        {"$str": "!!"}, {"$str": "AA"}, {"$str": "/w=="}, {"$bytes": -1}, {"$bytes": True},
        {"$bytes": 1.0}, {"$bytes": "AAAA" * 4000}, {"$complex": [1, 2]}, {"$complex": [1.0]},
        {"$range": [0, 1, 0]}, {"$range": [0, 1]}, {"$range": ["a", 1, 1]}, {"$slice": [1]},
        {"$ellipsis": 1}, {"$date": [2023, 2, 29]}, {"$date": [2**40, 1, 1]}, {"$date": [1.0, 1,
        1]},
        {"$date": [True, 1, 1]}, {"$datetime": [1, 1, 1, 25, 0, 0, 0, None, 0]},
        {"$datetime": [2020, 1, 1, 0, 0, 0, 0, ["offset", 86400, 0, None], 0]},
        {"$datetime": [2020, 1, 1, 0, 0, 0, 0, None, 2]}, {"$datetime": []},
        {"$time": [1, 1, 1, 1, ["zone", "../../../etc/passwd"], 0]},
        {"$zone": ["zone", "/etc/passwd"]}, {"$zone": ["zone", "a\0b"]}, {"$zone": None},
        {"$zone": ["zone", "Nowhere/Land"]}, {"$zone": ["zone", "Europe"]}, {"$zone": {"a": 1}},
        {"$timedelta": [10**10, 0, 0]}, {"$decimal": "abc"}, {"$decimal": 1},
        {"$decimal": "1E+99999999999999999999"}, {"$fraction": [2, 4]}, {"$fraction": [1, 0]},
        {"$fraction": [1, -3]}, {"$fraction": [1, {"$int": "f" * 5000}]}, {"$uuid": "zz"},
        {"$uuid": "{" + "0" * 30 + "}"}, {"$path": 1}, {"$frame": None}, {"$frame": []},
        {"$frame": ["nope"]}, {"$frame": [[]]}, {"$texts": []}, {"$texts": "YWJj"},
        {"$texts": ["YWJj", "AgAAAAAAAAA="]}, {"$texts": ["YWJj", "BAAAAAAAAAA="]},
        {"$texts": ["YWJj", "//////////8EAAAAAAAAAA=="]}, {"$texts": ["/w==", "AQAAAAAAAAA="]},
        {"$texts": ["YWJj", "AwAAAA=="]}, {"$texts": ["YWJj"]}, {"$tuple": {"$texts": [0, 1]}},
    ],
    ids=lambda tree: ascii(tree)[:50],
)  # fmt: skip
def test_what_encode_never_makes_is_invalid(tree: Any) -> None:
    for whole in (tree, [tree], {"k": tree}):
        with pytest.raises(InvalidValue):
            decode(whole, [])


def test_segments_are_used_exactly_once() -> None:
    assert decode({"$bytes": 0}, [b"abc"]) == b"abc"
    for tree, segments in (
        (1, [b"abc"]),
        ({"$bytes": 1}, [b"abc"]),
        ([{"$bytes": 0}, {"$bytes": 0}], [b"abc"]),
        ({"$bytes": 0}, [b"abc", b"def"]),
    ):
        with pytest.raises(InvalidValue):
            decode(tree, segments)


def test_nesting_that_no_value_has_is_invalid() -> None:
    for step in (lambda v: [v], lambda v: {"a": v}, lambda v: {"$tuple": v}):
        tree: Any = []
        for _ in range(5000):
            tree = step(tree)
        with pytest.raises(InvalidValue):
            decode(tree, [])


def test_a_zone_unknown_here_is_no_attack() -> None:
    with pytest.raises(MissingHere, match="Nowhere/Land"):
        decode({"$zone": ["zone", "Nowhere/Land"]}, [])


JUNK: list[Any] = [
    None, True, -1, 0, 1, 2**40, 1.5, "", "a", "$int", "AAAA", "nan", "\ud800", [], [[]], {},
    {"a": 1},
    {"$bytes": 0}, {"$tuple": []}, {"$int": "f" * 30}, {"$set": [[]]}, ["offset", 0, 0, None],
]  # fmt: skip


def mutate(rng: random.Random, tree: Any) -> Any:
    """Replace, drop, repeat or rename something somewhere in a copy of `tree`."""
    tree = [copy.deepcopy(tree)]
    node: Any = tree
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            break
        place = rng.choice(places)
        child = node[place]
        if isinstance(child, dict | list) and child and rng.random() < 0.85:
            node = child
            continue
        match rng.randrange(4):
            case 0:
                del node[place]
            case 1 if isinstance(node, list):
                node.append(child)
            case 2 if isinstance(node, dict):
                node[rng.choice(["$tuple", "$set", "$int", "$bytes", "x", "$frame"])] = node.pop(
                    place
                )
            case _:
                node[place] = copy.deepcopy(rng.choice(JUNK))
        break
    return tree[0] if tree else None


def test_mutated_values_are_valid_or_invalid_and_nothing_else() -> None:
    rng = random.Random(2)
    sources = [wire(value) for value in [*PLAIN, PLAIN[:80]]]
    invalid = 0
    for _ in range(3000):
        tree, segments = rng.choice(sources)
        for _ in range(rng.randrange(1, 4)):
            tree = mutate(rng, tree)
        bodies = [
            body if rng.random() < 0.5 else rng.randbytes(rng.randrange(40)) for body in segments
        ]
        try:
            decode(tree, bodies)
        except InvalidValue:
            invalid += 1
    assert invalid > 1000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("x" * 1_000_000, 0.002),
        (list(range(100_000)), 0.010),
        ([i * 0.1 for i in range(100_000)], 0.010),
    ],
    ids=["1 MB of text", "100k ints", "100k floats"],
)
@pytest.mark.benchmark
def test_common_shapes_are_quick(value: object, seconds: float) -> None:
    best = math.inf
    for _ in range(20):
        start = time.perf_counter()
        segments: list[Any] = []
        encode(value, segments)
        best = min(best, time.perf_counter() - start)
    assert best < seconds


def test_import_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import py_code_mode.guest.values, py_code_mode.guest.displays\n"
        "new = set(sys.modules) - before\n"
        "print(sorted(new & {'inspect', 'datetime', 'decimal', 'uuid', 'pathlib', 'numpy',"
        "'pandas', 'pyarrow', 'asyncio', 'dataclasses', 'enum', 'zoneinfo', 'msgspec'}))"
    )
    # -S: what the environment's .pth files import is not ours
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    # enum, through re, comes with json and typing
    assert found.stdout.strip() in ("[]", "['enum']")
