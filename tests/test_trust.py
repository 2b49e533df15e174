"""Whose tools may run on this machine."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest

from py_code_mode import (
    FileStorage,
    InProcessConfig,
    InProcessExecutor,
    MemoryStorage,
    Policy,
    Session,
)
from py_code_mode.errors import ConfigError, WorkspaceNotTrusted
from py_code_mode.trust import (
    check_trusted,
    check_unexposed,
    distrust,
    doubts,
    expose,
    exposed,
    record_file,
    trust,
    trusted,
    unexpose,
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
     '{"folders": [{"folder": 1, "owners": [], "shared": true}]}',
     '{"folders": [], "exposed": ["/x"]}', '{"folders": [], "exposed": [{"folder": "/x"}]}',
     '{"folders": [], "exposed": [{"folder": "/x", "since": 1, "until": 1, "open": {"a": "b"}}]}',
     '{"folders": [], "exposed": [{"folder": "/x", "since": 1, "until": 1, "open": []}]}'],
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Granting(InProcessConfig):
    """Has a policy, as those of sandboxes."""

    policy: Policy


MAKE = """
import pathlib
folder = pathlib.Path(".code-mode/tools")
folder.mkdir(parents=True)
(folder / "evil.py").write_text("def evil():\\n    return 'ran on the host'\\n")
"""


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of files are told apart however close; those of this file system do not lag."""
    monkeypatch.setattr("py_code_mode.trust._MARGIN", 20_000_000)


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
    with pytest.raises(WorkspaceNotTrusted, match="while sandboxed code could write there"):
        await Session(FileStorage(base), InProcessExecutor()).start()
    trust(base)
    async with Session(FileStorage(base), InProcessExecutor()) as session:
        assert (await session.run("tools.evil()")).value == "ran on the host"


WORKFLOW = "def run():\n    return 'ran on the host'\n"


@pytest.mark.anyio
@pytest.mark.parametrize("is_workdir", [True, False])
async def test_workflows_that_sandboxed_code_plants_wait_for_trust_outside(
    tmp_path: Path, is_workdir: bool
) -> None:
    """Only tools and the file of settings had been looked at."""
    base = tmp_path / "place" / ".code-mode"
    base.parent.mkdir()
    config = Granting(policy=Policy(write=[] if is_workdir else [base.parent]))
    workdir = base.parent if is_workdir else None
    async with Session(FileStorage(base), InProcessExecutor()) as session:
        async with Session(FileStorage(base), Sandboxed(config), workdir=workdir):
            (base / "workflows").mkdir(parents=True)
            (base / "workflows" / "total.py").write_text(WORKFLOW)
            (base / "requirements.txt").write_text("evil-package\n")
        with pytest.raises(WorkspaceNotTrusted):
            await Session(FileStorage(base), InProcessExecutor()).start()
        async with Session(FileStorage(base), Sandboxed()) as same:
            assert (await same.run("workflows.total()")).is_ok  # it has no more rights there
        for code in ("workflows.total()", "workflows.get('total')", "deps.sync()"):
            failure = (await session.run(code)).failure
            assert failure is not None
            assert "while sandboxed code could write there" in failure.message
        assert (await session.run("workflows.list()[0]['name']")).value == "total"
        trust(base)
        assert (await session.run("workflows.total()")).value == "ran on the host"


@pytest.mark.anyio
async def test_settings_that_sandboxed_code_takes_away_are_missed(base: Path) -> None:
    """Without the file, code would have run outside of the sandbox that it asks for."""
    (base / "tools" / "text.py").unlink()
    (base / "tools").rmdir()
    (base / "workflows").mkdir()
    async with Session(MemoryStorage(), Sandboxed(), workdir=base.parent):
        (base / "config.yaml").unlink()
    async with Session(FileStorage(base), Sandboxed()):
        pass
    with pytest.raises(WorkspaceNotTrusted):
        await Session(FileStorage(base), InProcessExecutor()).start()
    trust(base)
    async with Session(FileStorage(base), InProcessExecutor()):
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("where", [".", "sub", "sub/deeper"])
async def test_workspace_that_comes_to_be_where_code_could_write_is_doubted(
    tmp_path: Path, where: str
) -> None:
    """Only the session's own workspace had been doubted."""
    place, own = tmp_path / "place", tmp_path / "own"
    place.mkdir()
    planted = place / where / ".code-mode"
    async with Session(FileStorage(own), Sandboxed(), workdir=place):
        (planted / "tools").mkdir(parents=True)
        (planted / "tools" / "hi.py").write_text("def hi() -> int:\n    return 1\n")
        with pytest.raises(WorkspaceNotTrusted):
            check_trusted(planted)
    with pytest.raises(WorkspaceNotTrusted, match="while sandboxed code could write there"):
        check_trusted(planted)
    trust(planted)
    check_trusted(planted)


@pytest.mark.anyio
async def test_memory_does_not_keep_a_session_from_being_remembered(tmp_path: Path) -> None:
    async with Session(MemoryStorage(), Sandboxed(), workdir=tmp_path) as session:
        (known,) = exposed()
        assert (known.folder, [*known.open]) == (tmp_path, [session.id])
    (known,) = exposed()
    assert not known.open
    assert known.until > known.since
    async with Session(MemoryStorage(), InProcessExecutor(), workdir=tmp_path / "other"):
        assert len(exposed()) == 1  # where there is no sandbox, nothing is doubted


@pytest.mark.anyio
async def test_folder_of_settings_that_cannot_be_written_is_told(
    tmp_path: Path, settings: Path
) -> None:
    await anyio.Path(settings).touch()  # in the way of the folder
    async with Session(MemoryStorage(), Sandboxed(), workdir=tmp_path) as session:
        notes = (await session.run("1")).notes
        assert any("will not be doubted" in note for note in notes)
    base = tmp_path / ".code-mode"
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's
        await Session(FileStorage(base), Sandboxed(), workdir=tmp_path).start()


@pytest.mark.anyio
async def test_sandboxed_code_does_not_work_where_the_workspace_is(base: Path) -> None:
    session = Session(FileStorage(base), Sandboxed(), workdir=base.parent)
    with pytest.raises(
        ConfigError,
        match=r"workdir: .* holds the workspace .*: name a folder beside it, such as .*/work",
    ):
        await session.start()
    async with Session(FileStorage(base), InProcessExecutor(), workdir=base.parent):
        pass  # in no sandbox there is nothing to keep apart


def expose_once(*folders: Path) -> None:
    expose(folders, "a session")
    unexpose("a session")


@pytest.mark.usefixtures("prompt")
def test_what_was_there_before_is_not_doubted(base: Path) -> None:
    wait_for_the_clock(base)
    expose_once(base.parent)
    check_trusted(base)
    (base / "tools" / "text.py").chmod(0o600)
    with pytest.raises(WorkspaceNotTrusted, match=r"text\.py was made"):
        check_trusted(base)


def wait_for_the_clock(folder: Path) -> None:
    """Wait until new files are newer than those there are, by far."""
    probe = folder.parent.parent / "clock"
    end = time.time_ns() + 100_000_000
    while not probe.exists() or probe.stat().st_ctime_ns < end:
        probe.touch()


def test_exposed_folder_is_doubted_until_it_is_trusted(base: Path) -> None:
    expose_once(base.parent)
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)
    distrust(base)
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)
    trust(base)
    check_trusted(base)
    (base / "tools" / "text.py").chmod(0o600)  # by now it can only be the user
    check_trusted(base)
    assert distrust(base)
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)


def test_trust_does_not_last_beyond_the_next_exposure(base: Path) -> None:
    expose([base.parent], "first")
    trust(base)
    check_trusted(base)
    (base / "tools" / "text.py").chmod(0o600)  # perhaps by the code that runs still
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)
    unexpose("first")
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)
    trust(base)
    check_trusted(base)
    expose_once(base.parent)
    check_trusted(base)  # nothing was changed since
    (base / "tools" / "text.py").chmod(0o644)
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)


def test_exposure_by_a_process_that_was_killed_ends_with_trust(base: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    expose([base.parent], "killed")
    record = json.loads(record_file().read_bytes())
    record["exposed"][0]["open"]["killed"] = killed.pid
    record_file().write_text(json.dumps(record))
    trust(base)
    (base / "tools" / "text.py").chmod(0o600)
    check_trusted(base)


def test_part_of_a_workspace_that_code_could_write_is_doubted(base: Path) -> None:
    expose_once(base / "tools")
    with pytest.raises(WorkspaceNotTrusted):
        check_trusted(base)
    check_trusted(base, [base / "config.yaml"])


def test_links_are_doubted_where_they_are_and_where_they_lead(base: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "sub").mkdir(parents=True)
    (place / "sub" / "text.py").write_text("")
    (base / "tools" / "more.py").symlink_to(place / "sub" / "text.py")
    (place / "link").symlink_to(base)
    (tmp_path / "to-link").symlink_to(place / "link")
    (place / "up").symlink_to(base.parent)
    check_trusted(place / "link")
    expose_once(place / "sub")  # what a tool leads to
    with pytest.raises(WorkspaceNotTrusted, match=r"sub/text\.py was made"):
        check_trusted(base)
    (base / "tools" / "more.py").unlink()
    check_trusted(base)
    expose_once(place)  # what leads to the workspace
    for link in (place / "link", place / "up"):
        os.utime(link, follow_symlinks=False)  # else they may be too old, where disks are slow
    check_trusted(base)
    for path in (place / "link", tmp_path / "to-link", place / "up" / base.name):
        with pytest.raises(WorkspaceNotTrusted, match=r"place/(link|up) was made"):
            check_trusted(path)


def test_links_in_a_circle_are_doubted_as_others(base: Path) -> None:
    """They were a RuntimeError."""
    expose_once(base)
    (base / "tools" / "one.py").symlink_to("two.py")
    (base / "tools" / "two.py").symlink_to("one.py")
    (base / "sessions").symlink_to("sessions")
    for parts in (None, [base / "sessions"]):
        with pytest.raises(WorkspaceNotTrusted):
            check_trusted(base, parts)
    with pytest.raises(WorkspaceNotTrusted):
        check_unexposed(base, base / "sessions")
    circle = base.parent / "circle"
    circle.symlink_to(circle)
    check_trusted(circle)


def test_folder_that_is_trusted_as_a_whole_is_forgotten(base: Path) -> None:
    expose_once(base.parent)
    trust(base.parent)
    assert exposed() == ()
    check_trusted(base)


def test_record_of_exposed_folders_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("py_code_mode.trust.MAX_EXPOSED", 4)
    expose_once(*[tmp_path / "gone" / str(number) for number in range(9)])
    assert len(exposed()) == 1
    many = [tmp_path / "a" / "b" / str(number) for number in range(9)]
    for folder in (*many, tmp_path / "c"):
        folder.mkdir(parents=True)
    for folder in many:
        expose_once(folder, folder)
    expose_once(tmp_path / "c")
    assert {each.folder for each in exposed()} <= {tmp_path / "a" / "b", *many, tmp_path / "c"}
    assert len(exposed()) <= 4
    for folder in many:
        base = folder / ".code-mode"
        base.mkdir()
        (base / "config.yaml").write_text("")
        with pytest.raises(WorkspaceNotTrusted):
            check_trusted(base)


@as_root
@pytest.mark.anyio
async def test_workflows_of_another_user_run_outside_of_a_sandbox_only_if_trusted(
    tmp_path: Path,
) -> None:
    """A workspace with nothing but workflows had been trusted whosever it was."""
    base = tmp_path / "theirs"
    (base / "workflows").mkdir(parents=True)
    (base / "workflows" / "total.py").write_text(WORKFLOW)
    for path in (base, base / "workflows", base / "workflows" / "total.py"):
        os.chown(path, OTHER, -1)
    async with Session(FileStorage(base), Sandboxed(), record=False) as session:
        assert (await session.run("workflows.total()")).is_ok
    async with Session(FileStorage(base), InProcessExecutor(), record=False) as session:
        failure = (await session.run("workflows.total()")).failure
        assert failure is not None
        assert f"belongs to uid {OTHER}" in failure.message
        assert trust(base).owners == {OTHER}
        assert (await session.run("workflows.total()")).value == "ran on the host"


@as_root
@pytest.mark.anyio
async def test_saved_state_of_another_user_is_not_loaded_here_unless_trusted(
    tmp_path: Path,
) -> None:
    """It is unpickled in this process."""
    base = tmp_path / "theirs"
    base.mkdir()
    storage = FileStorage(base)
    async with Session(storage) as session:
        await session.run("x = 1")
    for path in (base, *base.rglob("*")):
        os.chown(path, OTHER, -1)
    with pytest.raises(WorkspaceNotTrusted, match=f"belongs to uid {OTHER}"):
        await Session.resume(session.id, storage=storage).start()
    trust(base)
    async with Session.resume(session.id, storage=storage) as again:
        assert (await again.run("x")).value == 1
