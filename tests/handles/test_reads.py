"""What is told of the handles that code reads."""

from __future__ import annotations

import sys

import pytest

from py_code_mode.handles.reads import MAX_CODE, reads_of

HANDLES = frozenset({"sales", "other", "top", "x", "f", "r"})


def parents(code: str, variable: str) -> set[str]:
    return set(reads_of(code, HANDLES.__contains__).of(variable) - {variable})


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("q = sales.head()", {"sales"}),
        ("# sales is not used\nmsg = 'other'\nq = 1", set[str]()),
        ("q = {'sales': f\"{other}\"}", {"other"}),
        ("q = db.sales(other=1)", set[str]()),
        ("p = other.head()\nq = sales.head()", {"sales"}),
        ("p = sales * 2\nq = p.head()", {"sales"}),
        ("q = sales.merge(other)\nq = 1", set[str]()),
        ("q = sales\nq += other", {"sales", "other"}),
        ("q = {}\nq['a'] = sales", {"sales"}),
        ("q = []\nfor n in sales: q.append(n)", {"sales"}),
        ("q = None\nif other: q = sales", {"sales", "other"}),
        ("(p, [q, *_]) = sales, other", {"sales", "other"}),
        ("p = (q := sales)", {"sales"}),
        ("print(sales, other)\nq = sales.head()", {"sales"}),
        ("import sales\nq = sales.head()", set[str]()),
        ("sales = load()\nq = sales.head()", set[str]()),
        ("q = await tools.curl.get(url=sales)", {"sales"}),
        ("with open(sales) as file: q = file.read()", {"sales"}),
        ("q = [r for r in sales]", {"sales"}),
        ("q = (lambda x: x + 1)(sales)", {"sales"}),
        ("def g(top):\n    x = top\n    return sales\nq = g(1)", {"sales"}),
        ("def f():\n    global q\n    q = sales\nf()", {"sales"}),
        ("class C:\n    rows = sales\nq = C()", {"sales"}),
        ("q = handles['sales'], handles.get('other')", {"sales", "other"}),
        ("sales = 1\nq = handles['sales']", {"sales"}),
        ("q = handles['unknown'], handles[top]", {"top"}),
        ("globals()['q'] = sales + x", {"sales", "x"}),
        ("q = sales +", set[str]()),
        ("%matplotlib inline\nq = sales", set[str]()),
        ("q = sales\0", set[str]()),
        ("", set[str]()),
    ],
)
def test_a_variable_is_made_from_what_its_statements_name(code: str, found: set[str]) -> None:
    assert parents(code, "q") == found


def test_a_variable_that_no_statement_binds_is_made_from_all_that_is_read() -> None:
    assert parents("p = sales\nother.head()", "_3") == {"sales", "other"}


def test_warnings_about_code_are_the_guests_to_tell() -> None:
    assert parents("q = sales, '\\d'", "q") == {"sales"}


@pytest.mark.parametrize(
    "code",
    [
        "q = sales" + " + 1" * 7_000,
        "q = " + "(" * 8_000 + "sales" + ")" * 8_000,
        "q = " + "-" * 16_000 + "sales",
        "q = sales" + ".a" * 16_000,
        "q = sales\n" + "#" * MAX_CODE,
    ],
)
def test_code_that_is_too_much_to_read_does_no_harm(code: str) -> None:
    assert parents(code, "q") in ({"sales"}, set[str]())


def test_what_is_told_takes_a_bounded_time() -> None:
    calls = 0

    def is_handle(name: str) -> bool:
        nonlocal calls
        calls += 1
        return True

    code = "\n".join(f"v{n}=v{n - 1}+h{n}" for n in range(MAX_CODE // 18))
    assert len(code) <= MAX_CODE
    reads = reads_of(code, is_handle)
    assert len(reads.all) > 1_000
    assert calls <= len(code)


def test_nothing_is_imported_or_executed() -> None:
    before = set(sys.modules)
    reads_of("import this\n1 / 0\nq = sales", HANDLES.__contains__)
    assert set(sys.modules) <= before  # the collector may take some of earlier tests
