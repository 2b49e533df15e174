"""The table of names, and how the guest's calls are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from py_code_mode import FileStorage, InProcessExecutor, MemoryStorage, Session
from py_code_mode.artifacts import Artifacts
from py_code_mode.deps import Requirements
from py_code_mode.deps.dependencies import Dependencies
from py_code_mode.environments import Overlay
from py_code_mode.environments.base import host_environment
from py_code_mode.errors import DependencyNotAllowed, InvalidCall, WorkflowNotApproved
from py_code_mode.guest.errors import GUEST_ERRORS
from py_code_mode.handles import SessionHandles
from py_code_mode.namespaces import Namespaces
from py_code_mode.stores import MemoryStore
from py_code_mode.tools.registry import ToolRegistry
from py_code_mode.workflows import WorkflowLibrary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path


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


SOURCE = "def run():\n    return 1\n"
ONLY_READ = ("get", "source")


def namespaces_of(
    library: WorkflowLibrary,
    isolation: str,
    *,
    folder: Path | None = None,
    allowed: Sequence[str] | None = None,
    requirements: Requirements | None = None,
) -> Namespaces:
    from pathlib import Path

    requirements = requirements or Requirements(MemoryStore())
    requirements.add("Configured_Package>=1")
    overlay = Overlay(folder or Path("unused"), host_environment())
    return Namespaces(
        tools=ToolRegistry(),
        workflows=library,
        artifacts=Artifacts(MemoryStore()),
        deps=Dependencies(requirements, overlay, isolation=isolation, extra=["extra.dep"]),
        handles=SessionHandles(),
        isolation=isolation,
        allowed_deps=allowed,
    )


async def call(found: Namespaces, name: str, method: str, *args: object) -> object:
    return await found.call(name, method, args, {})


@pytest.mark.anyio
@pytest.mark.parametrize("author", ["namespaces", "bubblewrap", "landlock", "some_plugin"])
@pytest.mark.parametrize("reader", ["none", "in_process"])
async def test_workflow_of_a_sandboxed_guest_is_not_run_with_more_rights(
    author: str, reader: str
) -> None:
    library = WorkflowLibrary(MemoryStore())
    await call(namespaces_of(library, author), "workflows", "create", "evil", SOURCE, "")
    outside = namespaces_of(library, reader)
    for method in ONLY_READ:
        with pytest.raises(WorkflowNotApproved, match="workflows approve evil") as caught:
            await call(outside, "workflows", method, "evil")
        assert isinstance(caught.value, PermissionError)
        assert await call(namespaces_of(library, author), "workflows", method, "evil")
    listed = await outside.workflows.list()
    assert listed[0]["origin"] == author
    library.approve("evil")
    assert await call(outside, "workflows", "source", "evil") == SOURCE


@pytest.mark.anyio
async def test_host_itself_reads_any_workflow_and_writes_its_own() -> None:
    library = WorkflowLibrary(MemoryStore())
    sandboxed = namespaces_of(library, "namespaces")
    await call(sandboxed, "workflows", "create", "theirs", SOURCE, "")
    await sandboxed.workflows.create("ours", SOURCE, "")
    outside = namespaces_of(library, "in_process")
    theirs = await outside.workflows.get("theirs")
    assert theirs is not None
    assert theirs["origin"] == "namespaces"
    assert await call(outside, "workflows", "source", "ours") == SOURCE


@pytest.mark.anyio
async def test_guest_that_overwrites_a_users_workflow_becomes_its_author() -> None:
    library = WorkflowLibrary(MemoryStore())
    library.create("ours", SOURCE, "")
    await call(namespaces_of(library, "landlock"), "workflows", "create", "ours", SOURCE, "")
    with pytest.raises(WorkflowNotApproved):
        await call(namespaces_of(library, "none"), "workflows", "source", "ours")


@pytest.mark.anyio
async def test_guest_cannot_name_an_origin() -> None:
    found = namespaces_of(WorkflowLibrary(MemoryStore()), "namespaces")
    with pytest.raises(InvalidCall):
        await found.call("workflows", "create", ("a", SOURCE, ""), {"origin": None})
    with pytest.raises(InvalidCall, match="no such method"):
        await call(found, "workflows", "approve", "a")


@pytest.mark.anyio
@pytest.mark.parametrize("guests", ["in_process", "none"])
async def test_guest_without_a_sandbox_leaves_no_mark(guests: str) -> None:
    library = WorkflowLibrary(MemoryStore())
    await call(namespaces_of(library, guests), "workflows", "create", "a", SOURCE, "")
    assert library.load("a").origin is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("allowed", "package", "name"),
    [
        ([], "numpy", "numpy"),
        (["pandas"], "Numpy>=2", "numpy"),
        (["types-*"], "typesx", "typesx"),
        (["a?"], "abc", "abc"),
        (["num_py"], "numpy[extra]", "numpy"),
    ],
)
async def test_guest_adds_only_what_is_allowed(allowed: list[str], package: str, name: str) -> None:
    found = namespaces_of(WorkflowLibrary(MemoryStore()), "namespaces", allowed=allowed)
    with pytest.raises(DependencyNotAllowed) as caught:
        await call(found, "deps", "add", package)
    assert caught.value.package == name
    assert f"the entry {name} to `deps.allow`" in str(caught.value)
    assert isinstance(caught.value, PermissionError)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("allowed", "package"),
    [
        (["Types_*"], "types.PyYAML==6"),
        (["a?c"], "abc"),
        (["*"], "anything"),
        ([], "configured.package"),
        ([], "Extra-Dep"),
        (["zope.*"], "zope-interface"),
    ],
)
async def test_names_are_compared_as_an_index_does(allowed: list[str], package: str) -> None:
    found = namespaces_of(WorkflowLibrary(MemoryStore()), "namespaces", allowed=allowed)
    assert await found.dependencies.refused(package, allowed) is None


@pytest.mark.anyio
async def test_host_itself_adds_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = namespaces_of(WorkflowLibrary(MemoryStore()), "namespaces", allowed=[])
    seen: list[str] = []

    async def install(wanted: list[str]) -> dict[str, object]:
        seen.extend(wanted)
        return {"failed": [], "installed": wanted}

    monkeypatch.setattr(vars(found.dependencies)["_overlay"], "install", install)
    await found.deps.add("numpy")
    assert seen == ["numpy"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("isolation", "origin"), [("namespaces", "namespaces"), ("none", None), ("in_process", None)]
)
async def test_what_a_sandboxed_guest_adds_is_marked(
    monkeypatch: pytest.MonkeyPatch, isolation: str, origin: str | None
) -> None:
    async def install(wanted: list[str]) -> dict[str, object]:
        return {"failed": [], "installed": wanted}

    requirements = Requirements(MemoryStore())
    found = namespaces_of(WorkflowLibrary(MemoryStore()), isolation, requirements=requirements)
    monkeypatch.setattr(vars(found.dependencies)["_overlay"], "install", install)
    await call(found, "deps", "add", "theirs")
    await found.deps.add("ours")
    assert requirements.origins() == {"Configured_Package>=1": None, "theirs": origin, "ours": None}


class Sandboxed(InProcessExecutor):
    """Says that there is a sandbox."""

    @property
    def isolation(self) -> str:
        return "namespaces"


@pytest.mark.anyio
async def test_workflow_of_sandboxed_code_is_refused_by_a_session_without(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    async with Session(storage, Sandboxed()) as session:
        made = await session.run("workflows.create('plan', 'def run():\\n    return 1\\n', '')")
        assert made.is_ok, made.error
        assert (await session.run("workflows.plan()")).value == 1
    async with Session(storage, InProcessExecutor()) as session:
        for code in ("workflows.plan()", "workflows.invoke('plan')", "workflows.get('plan')"):
            refused = await session.run(code)
            assert refused.failure is not None
            assert refused.failure.type == "WorkflowNotApproved"
            assert "py-code-mode workflows approve plan" in refused.failure.message
        caught = (
            "try:\n    workflows.plan()\nexcept workflows.WorkflowNotApproved as e:\n    x = e.name"
        )
        assert (await session.run(f"{caught}\nx")).value == "plan"
        storage.get_workflow_library().approve("plan")
        assert (await session.run("workflows.plan()")).value == 1


@pytest.mark.anyio
async def test_files_list_of_packages_binds_the_guest_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("deps: {allow: [types-*]}")
    async with Session(FileStorage(tmp_path), InProcessExecutor()) as session:
        refused = await session.run("deps.add('numpy>=1')")
        assert refused.failure is not None
        assert refused.failure.type == "DependencyNotAllowed"
        assert "may add types-*" in refused.failure.message
        seen = "try:\n    deps.add('x')\nexcept deps.DependencyNotAllowed as e:\n    x = e.allowed"
        assert (await session.run(f"{seen}\nx")).value == ["types-*"]
