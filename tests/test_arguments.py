"""What cannot be meant is told by the argument's name, and before anything is done."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode import (
    FileStorage,
    InProcessConfig,
    InProcessExecutor,
    MemoryStorage,
    Session,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.errors import ExecutorInUse, InvalidName
from py_code_mode.results import ExecutionResult

if TYPE_CHECKING:
    from collections.abc import Callable

WORKSPACES = (Session.from_base, Session.subprocess, Session.inprocess)
OWN = MemoryStorage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A call with an argument that does not fit, and what has to be in the message."""

    call: Callable[..., object]
    given: dict[str, Any]
    named: str

    def __str__(self) -> str:
        return f"{self.call.__qualname__}({', '.join(f'{k}={v!r}' for k, v in self.given.items())})"


def _wrong(call: Callable[..., object], named: str | None = None, /, **given: object) -> Wrong:
    """Args: named: default: the argument's name."""
    return Wrong(call=call, given=given, named=named or next(iter(given)))


def _configs(**given: object) -> list[Wrong]:
    """Both configurations, and the sessions that make one."""
    made = (SubprocessConfig, InProcessConfig)
    of_session = [_of_workspace(make, **given) for make in WORKSPACES]
    return [*(_wrong(make, **given) for make in made), *of_session]


def _of_workspace(make: Callable[..., object], **given: object) -> Wrong:
    def call(**options: Any) -> object:
        return make(Path("nowhere"), **options)

    call.__qualname__ = make.__qualname__
    return _wrong(call, **given)


MAKING = [
    _wrong(Session, storage="a/path"),
    _wrong(Session, storage=FileStorage),
    _wrong(Session, "executor", storage=OWN, executor="subprocess"),
    _wrong(Session, "executor", storage=OWN, executor=SubprocessExecutor),
    _wrong(Session, "sync_deps_on_start", storage=OWN, sync_deps_on_start="no"),
    _wrong(Session, "record", storage=OWN, record="no"),
    _wrong(Session, "redact", storage=OWN, redact="password"),
    _wrong(Session, "workdir", storage=OWN, workdir=""),
    _wrong(Session, "workdir", storage=OWN, workdir="a\0b"),
    _wrong(Session, "workdir", storage=OWN, workdir="\ud800"),
    _wrong(Session, "workdir", storage=OWN, workdir=5),
    _wrong(FileStorage, base_path=5),
    _wrong(FileStorage, base_path=b"path"),
    _wrong(SubprocessExecutor, "config", config=InProcessConfig()),
    _wrong(SubprocessExecutor, config={"pool": 1}),
    _wrong(InProcessExecutor, config=SubprocessConfig()),
    _of_workspace(Session.from_base, policy={"network": "none"}),
    _of_workspace(Session.subprocess, policy={"network": "none"}),
    _wrong(SubprocessConfig, policy={"network": "none"}),
    *_configs(extra_deps=1),
    *_configs(extra_deps=[1]),
    *_configs(extra_deps="numpy"),
    *_configs(allow_runtime_deps="no"),
    *(_of_workspace(make, record=0) for make in WORKSPACES),
    *(_of_workspace(make, sync_deps_on_start="no") for make in WORKSPACES),
    _wrong(SubprocessConfig, tools_path=5),
    _wrong(SubprocessConfig, tools_path=""),
    _wrong(SubprocessConfig, also_read="/tmp"),
    _wrong(SubprocessConfig, also_read=(5,)),
    _wrong(SubprocessConfig, protect_bytes="1GiB"),
    _wrong(SubprocessConfig, protect_bytes=-1),
    _wrong(SubprocessConfig, cache_venv="no"),
    _wrong(SubprocessConfig, python_version=3.11),
    _wrong(SubprocessConfig, backend="docker"),
    _wrong(SubprocessConfig, protect=True),
    _wrong(SubprocessConfig, pool=True),
    _wrong(SubprocessConfig, pool=-1),
    _wrong(ExecutionResult().to_text, max_tokens=None),
    _wrong(ExecutionResult().to_text, max_tokens=-1),
]


@pytest.mark.parametrize("wrong", MAKING, ids=str)
def test_what_cannot_be_meant_is_told_as_it_is_made(wrong: Wrong) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{wrong.named}\b"):
        wrong.call(**wrong.given)


USING: list[tuple[str, dict[str, Any], str]] = [
    ("run", {"code": 5}, "code"),
    ("run", {"code": "ran = True", "on_output": 5}, "on_output"),
    ("run", {"code": "ran = True", "timeout": "5"}, "timeout"),
    ("rollback", {"checkpoint": "x"}, "checkpoint"),
    ("search_tools", {"query": None}, "query"),
    ("search_tools", {"query": "echo", "limit": "x"}, "limit"),
    ("search_workflows", {"query": None}, "query"),
    ("search_workflows", {"query": "echo", "limit": None}, "limit"),
    ("put", {"name": "x", "value": 1, "overwrite": "no"}, "overwrite"),
    ("instructions", {"max_tokens": None}, "max_tokens"),
    ("instructions", {"max_tokens": "100"}, "max_tokens"),
    ("save_artifact", {"name": "x", "data": 1, "metadata": 5}, ".*metadata"),
    ("add_tool", {"name": 5}, "name"),
    ("add_tool", {"description": 5}, "description"),
    ("add_tool", {"tags": [5]}, "tags"),
    ("add_tool", {"tags": "http"}, "tags"),
    ("add_tool", {"tags": 5}, "tags"),
]


def _made(where: str) -> Session:
    if where == "in_process":
        return Session(MemoryStorage())
    return Session(MemoryStorage(), SubprocessExecutor())


async def _call(session: Session, method: str, given: dict[str, Any]) -> None:
    done = getattr(session, method)(**given)
    if inspect.isawaitable(done):
        await done


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["in_process", "subprocess"])
async def test_what_cannot_be_meant_is_told_before_it_is_done(where: str) -> None:
    async with _made(where) as session:
        for method, given, named in USING:
            if method == "rollback" and not session.supports("checkpoint"):
                continue
            if method == "add_tool":
                given = {"function": lambda: 1, "name": "fine", **given}
            with pytest.raises((TypeError, ValueError), match=rf"^{named}\b"):
                await _call(session, method, given)
        assert not (await session.run("'ran' in globals()")).value
        assert await session.list_tools() == []
        assert await session.search_tools("fine") == []
        with pytest.raises(KeyError, match="no value named"):
            await session.get("\ud800")
        with pytest.raises(InvalidName, match="a name is a str, not int"):
            await session.put(5, 1)  # pyright: ignore[reportArgumentType]


def test_paths_may_be_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = SubprocessConfig(tools_path="./tools", also_read=("a", tmp_path))  # pyright: ignore[reportArgumentType]
    assert config.tools_folder == tmp_path / "tools"
    assert config.also_read == (Path("a"), tmp_path)
    assert SubprocessConfig(extra_deps=["six"]).extra_deps == ("six",)  # pyright: ignore[reportArgumentType]


def test_what_is_given_is_told_however_large_it_is() -> None:
    with pytest.raises(TypeError, match=r"^pool: must be a number") as caught:
        SubprocessConfig(pool=[[0] * 1000] * 1000)  # pyright: ignore[reportArgumentType]
    assert len(str(caught.value)) < 500


@pytest.mark.anyio
@pytest.mark.parametrize("make", [InProcessExecutor, SubprocessExecutor])
async def test_another_sessions_executor_is_left_alone(
    make: Callable[[], InProcessExecutor | SubprocessExecutor],
) -> None:
    """The second session's failed start ended the worker of the first."""
    executor = make()
    async with Session(MemoryStorage(), executor) as first:
        await first.run("x = 1")
        second = Session(MemoryStorage(), executor)
        with pytest.raises(ExecutorInUse, match=f"belongs to another session \\({first.id}\\)"):
            await second.start()
        await second.close()
        await Session(MemoryStorage(), executor).close()
        assert (await first.run("x")).value == 1
