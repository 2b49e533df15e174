"""``py-code-mode sessions``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import CorruptRecordError
from py_code_mode.journal import SessionIndex, SessionJournal, check_sessions, read_journal
from py_code_mode.journal.records import Run

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Invoke, OnTerminal
    from .conftest import Run as RunCommand

ONE = "0199c2a4-5f0e-7c1b-9d53-6d2f7e0c8a11"
TWO = "0199c2a4-5f0e-7c1b-9d53-6d2f7e0c8a12"


@pytest.fixture
def folder(base: Path) -> Path:
    return base / "sessions"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def write(folder: Path, name: str, *texts: str, created: float = 0.0, title: str = "") -> Path:
    with SessionJournal.create(folder, name, clock=lambda: created, title=title) as journal:
        for number, text in enumerate(texts, 1):
            journal.append(Run(run_id=number, code=text))
            journal.append(Run(run_id=number, status="ok", stdout=f"{text}\n", value=number))
    return folder / f"{name}.jsonl"


def test_listed_in_pages_the_newest_first(invoke: Invoke, folder: Path) -> None:
    write(folder, ONE, "x", created=1.0, title="first")
    write(folder, TWO, created=2.0, title="second")
    lines = invoke("sessions", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [TWO, ONE]
    assert lines[0].split("\t")[1:] == [
        "closed", "1970-01-01T00:00:02.000000Z", "1970-01-01T00:00:02.000000Z", "second",
    ]  # fmt: skip
    page = json.loads(invoke("sessions", "list", "--json", "--limit", "1").stdout)
    assert [each["session_id"] for each in page["sessions"]] == [TWO]
    rest = invoke("sessions", "list", "--json", "--cursor", page["cursor"])
    assert [each["session_id"] for each in json.loads(rest.stdout)["sessions"]] == [ONE]


def test_no_sessions_are_no_error(invoke: Invoke, folder: Path) -> None:
    assert invoke("sessions", "list").stderr == f"no sessions in {folder}\n"
    assert invoke("sessions", "search", "x").stderr == "nothing found\n"
    for command in ("check", "repair", ["prune", "--older-than", "1d"]):
        words = [command] if isinstance(command, str) else command
        assert invoke("sessions", *words).stderr == f"no sessions in {folder}\n"
    assert not folder.exists()
    folder.mkdir(parents=True)
    assert invoke("sessions", "check").stderr == "nothing is wrong\n"


def test_session_that_cannot_be_read_is_told_beside_the_others(
    invoke: Invoke, folder: Path
) -> None:
    write(folder, ONE, "x")
    (folder / f"{TWO}.jsonl").write_bytes(b"garbage\n")
    done = invoke("sessions", "list")
    assert done.stdout.startswith(f"{ONE}\t")
    assert TWO in done.stderr
    assert "Traceback" not in done.stderr


def test_shown_with_output_and_values(invoke: Invoke, folder: Path) -> None:
    write(folder, ONE, "print('hi')")
    done = invoke("sessions", "show", ONE)
    assert "```python\nprint('hi')\n```" in done.stdout
    assert json.loads(invoke("sessions", "show", ONE, "--json").stdout)["id"] == ONE


def test_damage_is_told_on_stderr_and_the_rest_is_shown(invoke: Invoke, folder: Path) -> None:
    path = write(folder, ONE, "first", "second")
    path.write_bytes(path.read_bytes().replace(b'"second"', b'"sec0nd"'))
    done = invoke("sessions", "show", ONE)
    assert "first" in done.stdout
    assert f"{path}:4:" in done.stderr


def test_searched_by_words(invoke: Invoke, folder: Path) -> None:
    write(folder, ONE, "alpha beta", "gamma")
    assert invoke("sessions", "search", "beta", "ALPHA").stdout.startswith(f"{ONE}\trun 1\t")
    (hit,) = json.loads(invoke("sessions", "search", "gamma", "--json").stdout)
    assert (hit["session_id"], hit["run_id"]) == (ONE, 2)


def test_what_a_session_holds_cannot_act_on_a_terminal(on_terminal: OnTerminal, here: Path) -> None:
    folder = here / ".code-mode" / "sessions"
    folder.parent.mkdir()
    evil = "\x1b]0;evil\x07\x1b[2J word"
    write(folder, ONE, evil, title=evil)
    for arguments in (["list"], ["show", ONE], ["search", "word"], ["export", ONE],
                      ["export", ONE, "--format", "html"]):  # fmt: skip
        status, shown = on_terminal("sessions", *arguments)
        assert status == 0
        assert "\x1b]" not in shown
        assert "\x1b[2J" not in shown
        assert "word" in shown


@pytest.mark.parametrize(
    ("kind", "extension", "begins"),
    [
        ("markdown", "md", "# "),
        ("json", "json", "{"),
        ("html", "html", "<!doctype html>"),
        ("ipynb", "ipynb", "{"),
    ],
)
def test_exported_to_a_file_or_stdout(
    invoke: Invoke, folder: Path, here: Path, kind: str, extension: str, begins: str
) -> None:
    write(folder, ONE, "print('é')")
    shown = invoke("sessions", "export", ONE, "--format", kind).stdout
    assert shown.startswith(begins)
    invoke("sessions", "export", ONE, "--output", f"x.{extension}")
    assert (here / f"x.{extension}").read_text("utf-8") == shown
    assert os.listdir(here) == [f"x.{extension}"]


def test_file_that_is_there_is_not_replaced_unless_forced(
    invoke: Invoke, folder: Path, here: Path
) -> None:
    write(folder, ONE, "x")
    (here / "x.md").write_text("mine")
    done = invoke("sessions", "export", ONE, "--output", "x.md", status=2)
    assert "x.md exists" in done.stderr
    assert (here / "x.md").read_text() == "mine"
    invoke("sessions", "export", ONE, "--output", "x.md", "--force")
    assert (here / "x.md").read_text().startswith("# ")
    assert os.listdir(here) == ["x.md"]


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "dead link"])
@pytest.mark.parametrize("force", [True, False])
def test_an_export_replaces_nothing_but_files(
    invoke: Invoke, folder: Path, here: Path, kind: str, force: bool
) -> None:
    # was: --force put a file in the place of /dev/full
    write(folder, ONE, "x")
    place = here / "place"
    match kind:
        case "device":
            place = here.parent / "null"
            place.symlink_to("/dev/null")
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case _:
            place.symlink_to("nowhere")
    before = what_it_is(place)
    options = ["--force"] if force else []
    done = invoke("sessions", "export", ONE, "--output", str(place), *options, status=2)
    assert "--force" not in done.stderr
    assert "place" in done.stderr or "null" in done.stderr
    assert what_it_is(place) == before


def what_it_is(place: Path) -> tuple[int, ...]:
    """All that ``lstat`` tells but when it was last looked at: following a link counts as that."""
    told = os.lstat(place)
    return (
        told.st_mode,
        told.st_ino,
        told.st_nlink,
        told.st_size,
        told.st_mtime_ns,
        told.st_ctime_ns,
    )


def test_an_export_that_cannot_be_written_names_the_file_that_was_asked_for(
    invoke: Invoke, folder: Path, here: Path
) -> None:
    write(folder, ONE, "x")
    done = invoke("sessions", "export", ONE, "--output", "none/x.md", status=2)
    assert done.stderr.startswith("py-code-mode: none/x.md: ")
    assert list(here.iterdir()) == []


def test_sessions_none_of_which_can_be_read_are_not_said_to_be_none(
    invoke: Invoke, folder: Path
) -> None:
    folder.mkdir(parents=True)
    (folder / f"{ONE}.jsonl").write_bytes(b"nonsense\n")
    assert f"no sessions that can be read in {folder}" in invoke("sessions", "list").stderr
    told = invoke("sessions", "check", status=1).stdout
    assert told.count(f"{ONE}.jsonl") == 1


def test_link_at_the_place_of_an_export_is_not_followed(
    invoke: Invoke, folder: Path, here: Path
) -> None:
    write(folder, ONE, "x")
    (here / "mine").write_text("mine")
    (here / "x.md").symlink_to("mine")
    invoke("sessions", "export", ONE, "--output", "x.md", status=2)
    invoke("sessions", "export", ONE, "--output", "x.md", "--force")
    assert (here / "mine").read_text() == "mine"
    assert not (here / "x.md").is_symlink()


def test_forked_and_checked(invoke: Invoke, folder: Path) -> None:
    write(folder, ONE, "first", "second")
    made = invoke("sessions", "fork", ONE, "--at", "1").stdout.strip()
    assert "first" in invoke("sessions", "show", made).stdout
    assert "second" not in invoke("sessions", "show", made).stdout
    assert invoke("sessions", "check").stderr == "nothing is wrong\n"
    assert json.loads(invoke("sessions", "fork", ONE, "--json").stdout)["parent"] == ONE
    assert "has no run 9" in invoke("sessions", "fork", ONE, "--at", "9", status=2).stderr


def test_check_fails_where_something_is_wrong(invoke: Invoke, folder: Path) -> None:
    path = write(folder, ONE, "first", "second")
    path.write_bytes(path.read_bytes().replace(b'"second"', b'"sec0nd"'))
    done = invoke("sessions", "check", status=1)
    (problem, *_) = check_sessions(folder)
    assert done.stdout.splitlines()[0].startswith(f"{path}:4:{problem.offset}: ")
    (told, *_) = json.loads(invoke("sessions", "check", ONE, "--json", status=1).stdout)
    assert (told["line"], told["offset"]) == (4, problem.offset)


def test_repair_says_what_it_did(invoke: Invoke, folder: Path) -> None:
    path = write(folder, ONE, "x")
    live = path.rename(folder / f"{ONE}.jsonl.__partial__")
    write(folder, TWO, "x").rename(folder / f"{TWO}.jsonl.__partial__")
    data = live.read_bytes()
    live.write_bytes(data[: data.rindex(b"\n", 0, -1) + 20])
    done = invoke("sessions", "repair")
    assert f"cut a part of a line off session {ONE}; it is in {folder}" in done.stderr
    assert f"closed session {TWO}" in done.stderr
    assert "made the index anew" in done.stderr
    assert json.loads(invoke("sessions", "repair", "--json").stdout)["cut"] == {}
    assert invoke("sessions", "check").stderr == "nothing is wrong\n"


def test_a_damaged_session_is_repaired_as_its_error_says(invoke: Invoke, folder: Path) -> None:
    path = write(folder, ONE, "first", "second")
    path.write_bytes(path.read_bytes().replace(b"first", b"fIrst", 1))
    with pytest.raises(CorruptRecordError) as raised:
        read_journal(path)
    assert "`py-code-mode sessions repair ID`" in str(raised.value)
    done = invoke("sessions", "repair", ONE)
    assert f"session {ONE} goes on without what is damaged in one place" in done.stderr
    assert len(read_journal(path).runs) == 2


def test_pruning_removes_large_values_that_no_session_has(invoke: Invoke, folder: Path) -> None:
    write(folder, ONE, "x")
    with SessionJournal.create(folder, TWO) as journal:
        left = journal.put_blob(b"left by a crash", "text/plain")
        journal.append(Run(run_id=1, status="ok", value=journal.put_blob(b"named", "text/plain")))
    for blob in (folder / ".blobs").glob("??/*"):
        os.utime(blob, (1, 1))
    invoke("sessions", "prune", "--older-than", "99999d", "--dry-run")
    assert journal.blobs.has(left)
    invoke("sessions", "prune", "--older-than", "99999d")
    assert not journal.blobs.has(left)
    assert list(check_sessions(folder)) == []


def test_pruned_by_age(invoke: Invoke, folder: Path) -> None:
    write(folder, ONE, "word")
    with SessionJournal.create(folder, TWO) as journal:
        journal.append(Run(run_id=1, code="word"))
        invoke("sessions", "search", "word")
        done = invoke("sessions", "prune", "--older-than", "30d", "--dry-run")
        assert (done.stdout, done.stderr) == (f"{ONE}\n", "1 session would be removed\n")
        assert (folder / f"{ONE}.jsonl").exists()
        done = invoke("sessions", "prune", "--older-than", "0m", "--json")  # TWO is live
        assert json.loads(done.stdout) == {"dry_run": False, "removed": [ONE]}
    assert not (folder / f"{ONE}.jsonl").exists()
    with SessionIndex(folder) as index:
        assert [hit.session_id for hit in index.search("word")] == [TWO]


def test_past_of_a_fork_is_not_pruned(invoke: Invoke, folder: Path) -> None:
    write(folder, ONE, "word")
    invoke("sessions", "fork", ONE)
    done = invoke("sessions", "prune", "--older-than", "30d")
    assert (done.stdout, done.stderr) == ("", "0 sessions removed\n")


def test_resumed_with_its_variables(run: RunCommand, here: Path) -> None:
    (here / ".code-mode" / "sessions").mkdir(parents=True)
    first = run("run", "-c", "x = 20; print('made')", "--executor", "in_process")
    assert first.returncode == 0, first.stderr
    (name,) = (
        path.name.removesuffix(".jsonl")
        for path in (here / ".code-mode" / "sessions").glob("*.jsonl")
    )
    (here / "more.py").write_text("x + 2\n")
    done = run("sessions", "resume", name, "more.py", "--executor", "in_process")
    assert (done.returncode, done.stdout) == (0, "22\n"), done.stderr
    done = run(
        "sessions", "resume", name, "-c", "x + 1", "--mode", "replay", "--json",
        "--executor", "in_process",
    )  # fmt: skip
    assert json.loads(done.stdout)["value"] == 21
    assert "run 3" in run("sessions", "search", "x + 1").stdout
    assert run("sessions", "resume", name).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nobody"], "Session not found: nobody"),
        (["export", "nobody"], "Session not found: nobody"),
        (["fork", "nobody"], "Session not found: nobody"),
        (["check", "nobody"], "Session not found: nobody"),
        (["resume", "nobody", "-c", "1", "--executor", "in_process"], "Session not found: nobody"),
        (["show", "../evil"], "cannot name a session"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "--cursor", "x"], "the cursor is not one"),
        (["search", ""], "must have a word"),
        (["search", "x" * 501], "at most 500 characters"),
        (["prune", "--older-than", "soon"], "'soon' is no age"),
        (["prune"], "--older-than"),
        (["export", "nobody", "--format", "pdf"], "pdf"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    invoke: Invoke, folder: Path, arguments: list[str], told: str
) -> None:
    folder.mkdir(parents=True)
    done = invoke("sessions", *arguments, status=2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
