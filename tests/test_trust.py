"""Whose tools may run on this machine."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from py_code_mode import FileStorage, InProcessConfig, InProcessExecutor, MemoryStorage, Session
from py_code_mode.errors import ConfigError, WorkspaceNotTrusted
from py_code_mode.trust import (
    check_trusted,
    distrust,
    doubts,
    expose,
    exposed,
    record_file,
    trust,
    trusted,
)

if TYPE_CHECKING:
    from pathlib import Path

OTHER = 54321
pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners here")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of settings of our own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path / "settings"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / ".code-mode"
    (folder / "tools").mkdir(parents=True)
    (folder / "tools" / "text.py").write_text("def shout(text: str) -> str:\n    return text\n")
    (folder / "config.yaml").write_text("timeout: 9\n")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


PARTS = [".", "config.yaml", "tools", "tools/text.py"]


def test_own_workspace_is_trusted_without_a_word(base: Path) -> None:
    check_trusted(base)
    assert doubts(base) == ()
    assert not record_file().exists()


@as_root
@pytest.mark.parametrize("part", PARTS)
def test_what_another_user_owns_is_refused(base: Path, part: str) -> None:
    os.chown(base / part, OTHER, -1)
    with pytest.raises(WorkspaceNotTrusted) as caught:
        check_trusted(base)
    assert f"{base / part} belongs to uid {OTHER}" in str(caught.value)
    assert f"py-code-mode trust {base}" in str(caught.value)
    assert isinstance(caught.value, PermissionError)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bits", [stat.S_IWOTH, stat.S_IWOTH | stat.S_ISVTX])
def test_what_everybody_may_write_is_refused(base: Path, part: str, bits: int) -> None:
    (base / part).chmod((base / part).stat().st_mode | bits)
    with pytest.raises(WorkspaceNotTrusted, match="can be written by everybody"):
        check_trusted(base)


@as_root
def test_what_a_group_may_write_is_refused_unless_it_is_our_own(base: Path) -> None:
    tools = base / "tools"
    tools.chmod(0o775)
    check_trusted(base)  # root's group has nobody else in it
    os.chown(tools, -1, OTHER)
    with pytest.raises(WorkspaceNotTrusted, match=f"can be written by the group {OTHER}"):
        check_trusted(base)


@as_root
def test_programs_beside_the_tools_are_looked_at(base: Path) -> None:
    (base / "tools" / "bin").mkdir()
    script = base / "tools" / "bin" / "run.sh"
    script.write_text("#!/bin/sh\n")
    check_trusted(base)
    os.chown(script, OTHER, -1)
    with pytest.raises(WorkspaceNotTrusted, match=r"run\.sh"):
        check_trusted(base)


@as_root
def test_link_counts_by_what_it_leads_to(base: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    (base / "tools" / "run.sh").symlink_to(script)
    (base / "tools" / "gone.sh").symlink_to(tmp_path / "gone")
    check_trusted(base)
    os.chown(script, OTHER, -1)
    with pytest.raises(WorkspaceNotTrusted, match=r"tools/run\.sh"):
        check_trusted(base)


@as_root
def test_folder_of_which_nothing_is_used_may_be_anybodys(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "artifacts").mkdir(parents=True)
    os.chown(folder, OTHER, -1)
    check_trusted(folder)
    check_trusted(tmp_path / "missing")


@as_root
def test_trust_holds_for_the_owners_there_are_now(base: Path) -> None:
    os.chown(base / "tools" / "text.py", OTHER, -1)
    made = trust(base)
    assert made.owners == {OTHER}
    assert not made.is_shared
    check_trusted(base)
    assert trusted() == (made,)
    os.chown(base / "config.yaml", OTHER + 1, -1)
    with pytest.raises(WorkspaceNotTrusted, match=rf"config\.yaml belongs to uid {OTHER + 1}"):
        check_trusted(base)
    (base / "config.yaml").unlink()
    (base / "tools").chmod(0o777)  # nobody said that others may write
    with pytest.raises(WorkspaceNotTrusted, match="everybody"):
        check_trusted(base)
    assert trust(base).is_shared
    check_trusted(base)


def test_trust_is_taken_back(base: Path) -> None:
    base.chmod(0o777)
    trust(base)
    check_trusted(base)
    assert distrust(base)
    assert not distrust(base)
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)


def test_trust_is_of_the_place_that_a_link_leads_to(base: Path, tmp_path: Path) -> None:
    base.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(base)
    assert trust(link).folder == base.resolve()
    check_trusted(base)
    check_trusted(link)


def test_what_is_not_there_cannot_be_trusted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        trust(tmp_path / "gone")


def test_record_is_the_users_alone(base: Path) -> None:
    base.chmod(0o777)
    trust(base)
    assert stat.S_IMODE(record_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(record_file().parent.stat().st_mode) == 0o700
    record_file().chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by everybody"):
        check_trusted(base)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"folders": 1}', '{"folders": [{"folder": "/x", "owners": ["a"]}]}',
     '{"folders": [{"folder": "/x", "owners": [true], "shared": true}]}',
     '{"folders": [{"folder": 1, "owners": [], "shared": true}]}'],
)  # fmt: skip
def test_record_that_cannot_be_read_trusts_nothing(base: Path, text: str) -> None:
    base.chmod(0o777)
    trust(base)
    record_file().write_text(text)
    with pytest.raises(ConfigError, match="cannot be read; remove it"):
        check_trusted(base)


def test_record_keeps_the_folders_that_others_trust_meanwhile(base: Path, tmp_path: Path) -> None:
    more = [tmp_path / name for name in ("b", "a")]
    for folder in more:
        folder.mkdir()
        trust(folder)
    trust(base)
    assert [each.folder for each in trusted()] == sorted([base, *more])
    entries = json.loads(record_file().read_bytes())["folders"]
    assert len(entries) == 3


@pytest.mark.anyio
async def test_session_of_a_doubted_workspace_does_not_start(base: Path) -> None:
    (base / "tools").chmod(0o777)
    session = Session.inprocess(base)
    with pytest.raises(WorkspaceNotTrusted):
        await session.start()
    trust(base)
    async with Session.inprocess(base) as session:
        assert (await session.run("tools.shout('x')")).value == "x"


@pytest.mark.anyio
async def test_tool_that_comes_to_be_doubted_is_not_read(base: Path) -> None:
    async with Session(FileStorage(base), InProcessExecutor()) as session:
        assert [tool["name"] for tool in await session.list_tools()] == ["shout"]
        evil = base / "tools" / "evil.py"
        evil.write_text("raise SystemExit\n")
        evil.chmod(0o666)
        with pytest.raises(WorkspaceNotTrusted):
            await session.list_tools()
        result = await session.run("tools.list()")
        assert result.failure is not None
        assert "not trusted" in result.failure.message


@pytest.mark.anyio
async def test_folder_of_tools_given_by_the_program_is_looked_at(base: Path) -> None:
    tools = base / "tools"
    tools.chmod(0o777)
    config = InProcessConfig(tools_path=tools)
    with pytest.raises(WorkspaceNotTrusted):
        await Session(MemoryStorage(), InProcessExecutor(config)).start()
    trust(tools)
    async with Session(MemoryStorage(), InProcessExecutor(config)) as session:
        assert len(await session.list_tools()) == 1


class Sandboxed(InProcessExecutor):
    """Says that there is a sandbox."""

    @property
    def isolation(self) -> str:
        return "namespaces"


MAKE = """
import pathlib
folder = pathlib.Path(".code-mode/tools")
folder.mkdir(parents=True)
(folder / "evil.py").write_text("def evil():\\n    return 'ran on the host'\\n")
"""


@pytest.mark.anyio
async def test_tools_that_sandboxed_code_makes_are_used_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / ".code-mode"
    async with Session(FileStorage(base), Sandboxed(), workdir=tmp_path) as session:
        assert (await session.run("tools.list()")).value == []
        assert (await session.run(MAKE)).is_ok
        for code in ("tools.list()", "tools.evil()"):
            result = await session.run(code)
            assert result.failure is not None
            assert "while sandboxed code could write there" in result.failure.message
        with pytest.raises(WorkspaceNotTrusted):  # nor by those who come while it is open
            await Session(FileStorage(base), InProcessExecutor()).start()
    assert exposed() == {base.resolve()}
    with pytest.raises(WorkspaceNotTrusted, match="while sandboxed code could write there"):
        await Session(FileStorage(base), InProcessExecutor()).start()
    trust(base)
    assert exposed() == frozenset()
    async with Session(FileStorage(base), InProcessExecutor()) as session:
        assert (await session.run("tools.evil()")).value == "ran on the host"


@pytest.mark.anyio
async def test_workspace_without_tools_is_left_undoubted(tmp_path: Path) -> None:
    base = tmp_path / ".code-mode"
    async with Session(FileStorage(base), Sandboxed(), workdir=tmp_path) as session:
        await session.save_artifact("kept", 1)
        assert exposed() == {base.resolve()}
    assert base.exists()
    assert exposed() == frozenset()


@pytest.mark.anyio
async def test_sandboxed_code_does_not_work_where_the_workspace_is(base: Path) -> None:
    session = Session(FileStorage(base), Sandboxed(), workdir=base.parent)
    with pytest.raises(ConfigError, match=r"workdir: .* holds the workspace"):
        await session.start()
    async with Session(FileStorage(base), InProcessExecutor(), workdir=base.parent):
        pass  # in no sandbox there is nothing to keep apart


def test_exposed_folder_is_doubted_until_it_is_trusted(base: Path) -> None:
    expose(base)
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)
    distrust(base)
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)
    trust(base)
    check_trusted(base)
