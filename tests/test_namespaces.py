"""The table of names, and how the guest's calls are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from py_code_mode import InProcessExecutor, MemoryStorage, Session
from py_code_mode.errors import InvalidCall
from py_code_mode.guest.errors import GUEST_ERRORS
from py_code_mode.namespaces import Namespaces

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@pytest.fixture
async def namespaces(anyio_backend: str) -> AsyncGenerator[Namespaces]:
    async with Session(MemoryStorage(), InProcessExecutor()) as session:
        yield vars(session)["_namespaces"]


def test_table_names_every_documented_method() -> None:
    table = Namespaces.describe()
    methods = {
        name: {method["name"] for method in entry["methods"]} for name, entry in table.items()
    }
    assert methods["tools"] >= {"list", "search"}
    assert methods["workflows"] >= {"list", "search", "get", "create", "delete"}
    assert methods["artifacts"] >= {"list", "save", "load", "delete", "exists"}
    assert methods["deps"] >= {"list", "add", "remove", "sync"}
    for entry in table.values():
        assert entry["doc"]
        assert set(entry["errors"]) <= set(GUEST_ERRORS)
        assert all(method["doc"] and method["signature"] for method in entry["methods"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("namespace", "method", "args", "says"),
    [
        ("nothing", "list", (), "no such method"),
        ("artifacts", "missing", (), "no such method"),
        ("artifacts", "__init__", (), "no such method"),
        ("artifacts", "_artifacts", (), "no such method"),
        ("artifacts", "methods", (), "no such method"),
        ("artifacts", "load", (), "missing a required argument"),
        ("artifacts", "load", ("a", "b", "c"), "too many positional"),
    ],
)
async def test_call_that_does_not_fit_is_refused(
    namespaces: Namespaces, namespace: str, method: str, args: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InvalidCall, match=says):
        await namespaces.call(namespace, method, args, {})


@pytest.mark.anyio
async def test_calls_reach_the_services(namespaces: Namespaces) -> None:
    await namespaces.call("artifacts", "save", ("a", [1]), {"description": "d"})
    assert await namespaces.call("artifacts", "load", ("a",), {}) == [1]
    assert await namespaces.call("artifacts", "exists", (), {"name": "b"}) is False
