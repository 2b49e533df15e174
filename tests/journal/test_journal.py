"""The writer of a journal: one at a time, each record once, nothing that was to be taken out."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat as modes
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from py_code_mode.errors import (
    CorruptRecordError,
    JournalWriteError,
    SchemaVersionError,
    SessionClosedError,
    SessionExistsError,
    SessionLockedError,
    SessionNotFoundError,
)
from py_code_mode.journal.journal import SessionJournal, recover
from py_code_mode.journal.loader import meta, read_journal
from py_code_mode.journal.records import (
    MAX_INLINE,
    Chunk,
    Event,
    Foreign,
    InvalidRecord,
    Recovery,
    Reopen,
    Run,
    decode_dict,
)

from ..faulty_files import FaultyFiles, HalfWritten


def codes(path: str | Path) -> list[str]:
    return [run.code for run in read_journal(path).runs]


def test_session_is_partial_while_it_lasts_and_final_after(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "sessions"
    journal = SessionJournal.create(folder, "a", title="t", metadata={"k": (1,)})
    live, final = folder / "a.jsonl.__partial__", folder / "a.jsonl"
    assert journal.append(Run(run_id=1, code="1 + 1")) == journal.last_seq == 1
    journal.flush()
    assert live.exists()
    assert not read_journal(live).is_closed
    journal.close("done", cumulative_usage={"total": 3})
    journal.close()
    assert not live.exists()
    found = read_journal(final)
    assert found.is_closed
    assert found.trailer is not None
    assert found.trailer.status == "done"
    assert found.trailer.final_seq == 1
    assert found.trailer.counts == {"header": 1, "run": 1}
    assert found.trailer.cumulative_usage == {"total": 3}
    assert found.header.title == "t"
    assert found.header.metadata == {"k": {"$tuple": [1]}}
    assert found.header.runtime["python"]
    assert modes.S_IMODE(final.stat().st_mode) == 0o600
    assert modes.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"
    assert json.loads((folder / ".layout.json").read_text()) == {"layout_version": 1}


def test_every_record_has_its_number_and_time(tmp_path: Path) -> None:
    moments = iter([10.0, 10.0, 5.0, -100.0, 1e12, 20.0])
    journal = SessionJournal.create(tmp_path, "a", clock=lambda: next(moments))
    for n in range(3):
        journal.append(Run(run_id=n))
    journal.abandon()
    found = read_journal(journal.path)
    assert [record.seq for record in found.records] == [0, 1, 2, 3]
    assert [record.ts[:4] for record in found.records] == ["1970", "1970", "1969", "1970"]


def test_record_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    bad: list[Any] = [
        Run(run_id="1"),  # type: ignore[arg-type]
        Run(run_id=1, code=None),  # type: ignore[arg-type]
        Chunk(kind="robot", payload={}),  # type: ignore[arg-type]
        {"record_type": "note"},
        {"record_type": "run"},
        {},
        Foreign(record_type="note", data={}),
    ]
    for record in bad:
        with pytest.raises(InvalidRecord):
            journal.append(record)
    assert journal.append(Run(run_id=1)) == 1
    journal.close()
    assert len(read_journal(tmp_path / "a.jsonl").records) == 3


def test_mapping_keeps_keys_that_nobody_knows(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    line = b'{"seq":77,"ts":"t","record_type":"run","run_id":1,"later":{"$float":"nan"}}'
    journal.append(decode_dict(line), is_plain=True)
    journal.append(Foreign(record_type="x-mine", data={"a": {1}}))
    journal.close()
    lines = Path(journal.path).read_bytes().splitlines()
    assert json.loads(lines[1])["later"] == {"$float": "nan"}
    assert json.loads(lines[1])["seq"] == 1
    assert json.loads(lines[2])["a"] == {"$set": [1]}


def test_compare_and_append_refuses_what_is_out_of_date(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "a") as journal:
        assert journal.append(Run(run_id=1), expected_seq=1) == 1
        with pytest.raises(JournalWriteError, match="seq 2, not 1"):
            journal.append(Run(run_id=1), expected_seq=1)


@pytest.mark.parametrize(
    "text", ["\u2028\u2029\x85", "\ud800", "\0", "e\N{COMBINING ACUTE ACCENT}"]
)
def test_any_text_goes_through(tmp_path: Path, text: str) -> None:
    with SessionJournal.create(tmp_path, "a", title=text) as journal:
        journal.append(Run(run_id=1, code=text, stdout=text, value={text: text}))
    found = read_journal(tmp_path / "a.jsonl")
    assert found.header.title == found.run(1).code == found.run(1).stdout == text
    assert found.run(1).value == {text: text}
    assert len(Path(journal.path).read_bytes().decode().splitlines()) == 3


# --- taking out what must not be written


def test_redact_sees_everything_before_it_is_written(tmp_path: Path) -> None:
    secret = "s3cr3t"

    def redact(record: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(record).replace(secret, "***"))

    large = secret + "x" * MAX_INLINE
    journal = SessionJournal.create(tmp_path, "a", metadata={"key": secret}, redact=redact)
    journal.append(Run(run_id=1, code=f"k = '{secret}'"))
    journal.append(Run(run_id=1, status="ok", value=large, stdout=secret))
    journal.append({"record_type": "x-mine", "deep": [{"a": secret}]})
    journal.close(metadata={"key": secret})
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes()
    found = read_journal(tmp_path / "a.jsonl")
    assert found.expand(found.run(1).value).startswith("***x")
    assert found.header.metadata == {"key": "***"}


def test_redact_that_fails_or_changes_what_a_record_is_writes_nothing(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = []

    def redact(record: dict[str, Any]) -> dict[str, Any]:
        change = changes.pop() if changes else {}
        return {**record, **change["values"]} if change else record

    journal = SessionJournal.create(tmp_path, "a", redact=redact)
    changes.append({"no values": {}})
    with pytest.raises(JournalWriteError, match="redact raised KeyError"):
        journal.append(Run(run_id=1))
    for change in ({"run_id": 2}, {"record_type": "event", "kind": "x"}, {"code": 7}):
        changes.append({"values": change})
        with pytest.raises(JournalWriteError, match="redact"):
            journal.append(Run(run_id=1))
    journal.close()
    assert len(read_journal(tmp_path / "a.jsonl").records) == 2


# --- going on


def test_closed_session_is_reopened_and_closed_again(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "a") as journal:
        journal.append(Run(run_id=1, code="1"))
    with SessionJournal.reopen(tmp_path, "a", reason="more", mode="replay") as again:
        assert again.recovered is None
        assert again.path.endswith(".__partial__")
        again.append(Run(run_id=2, code="2"))
    found = read_journal(tmp_path / "a.jsonl")
    assert codes(tmp_path / "a.jsonl") == ["1", "2"]
    kinds = [record.record_type for record in found.records]
    assert kinds == ["header", "run", "trailer", "reopen", "run", "trailer"]
    reopened = found.records[3]
    assert isinstance(reopened, Reopen)
    assert (reopened.reason, reopened.mode) == ("more", "replay")
    assert found.trailer is not None
    assert found.trailer.counts["run"] == 2


def test_abandoned_session_is_recovered(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    journal.append(Chunk(kind="user", payload={}, index=0))
    path = Path(journal.path)
    journal.abandon()
    journal.abandon()
    with path.open("ab") as file:
        file.write(b'{"torn')
    with SessionJournal.reopen(tmp_path, "a") as again:
        assert again.recovered is not None
        assert again.recovered.dropped_bytes == 6
        assert again.next_seq == 4
    found = read_journal(tmp_path / "a.jsonl")
    assert [type(record) for record in found.records[2:4]] == [Recovery, Reopen]
    assert found.trailer is not None
    assert found.trailer.final_chunk_count == 1
    assert found.problems == ()


def test_context_abandons_when_its_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError), SessionJournal.create(tmp_path, "a"):
        raise KeyError
    assert (tmp_path / "a.jsonl.__partial__").exists()
    assert meta(tmp_path / "a.jsonl.__partial__").status == "open"


def test_session_is_made_once(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    with pytest.raises(SessionExistsError):
        SessionJournal.create(tmp_path, "a")
    with pytest.raises(SessionLockedError):
        SessionJournal.reopen(tmp_path, "a")
    journal.close()
    with pytest.raises(SessionExistsError):
        SessionJournal.create(tmp_path, "a")
    with pytest.raises(SessionNotFoundError):
        SessionJournal.reopen(tmp_path, "b")
    assert len(read_journal(tmp_path / "a.jsonl").records) == 2


def test_session_whose_writer_died_in_the_header_was_never_begun(tmp_path: Path) -> None:
    SessionJournal.create(tmp_path, "a").abandon()
    path = tmp_path / "a.jsonl.__partial__"
    for size in (0, 10, path.stat().st_size - 1):
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        with pytest.raises(SessionNotFoundError):
            SessionJournal.reopen(tmp_path, "a")
        SessionJournal.create(tmp_path, "a").abandon()


def test_foreign_and_newer_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    contents: list[tuple[bytes, type[Exception]]] = [
        (b'{"record_type":"header","schema_version":9,"id":"a"}\n', SchemaVersionError),
        (
            b'{"record_type":"header","schema_version":1,"id":"a","created_at":""}\n',
            SchemaVersionError,
        ),
        (b"something else\n", CorruptRecordError),
        (b'{"record_type":"header","schema_version":2,"id":"a"}\n', CorruptRecordError),
    ]
    for content, error in contents:
        path.write_bytes(content)
        with pytest.raises(error):
            SessionJournal.reopen(tmp_path, "a")
        assert path.read_bytes() == content


def test_folder_of_a_newer_layout_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".layout.json").write_text('{"layout_version": 2}')
    with pytest.raises(SchemaVersionError, match="layout 2"):
        SessionJournal.create(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == [".layout.json"]


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    journal.close()
    for act in (lambda: journal.append(Run(run_id=1)), journal.flush):
        with pytest.raises(SessionClosedError, match="closed"):
            act()


def test_interrupted_close_is_finished(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    journal.close()
    final, live = tmp_path / "a.jsonl", tmp_path / "a.jsonl.__partial__"
    final.rename(live)
    assert read_journal(live).is_closed
    assert recover(tmp_path, "a") == final
    assert recover(tmp_path, "a") == final
    assert read_journal(final).is_closed
    SessionJournal.create(tmp_path, "b").abandon()
    assert recover(tmp_path, "b").name == "b.jsonl.__partial__"


# --- a disk that fails


def test_full_disk_at_close_leaves_it_open_to_be_tried_again(tmp_path: Path) -> None:
    files = HalfWritten(20)
    journal = SessionJournal.create(tmp_path, "a", files=files)
    journal.append(Run(run_id=1, code="1"))
    files.is_full = True
    for _ in range(3):
        with pytest.raises(JournalWriteError, match="Make room") as caught:
            journal.close()
        assert not caught.value.is_final
    assert not read_journal(journal.path).is_closed
    files.is_full = False
    journal.append(Run(run_id=2, code="2"))
    journal.close()
    assert codes(tmp_path / "a.jsonl") == ["1", "2"]


def test_rename_that_fails_at_close_is_tried_again(tmp_path: Path) -> None:
    files = FaultyFiles()
    journal = SessionJournal.create(tmp_path, "a", files=files)
    files.fail_next("rename", errno.EIO)
    with pytest.raises(JournalWriteError):
        journal.close()
    journal.close()
    assert [record.record_type for record in read_journal(tmp_path / "a.jsonl").records] == [
        "header",
        "trailer",
    ]


def test_failed_sync_is_final_until_it_is_reopened(tmp_path: Path) -> None:
    files = FaultyFiles()
    journal = SessionJournal.create(tmp_path, "a", files=files)
    files.fail_next("fdatasync", errno.EIO)
    journal.append(Run(run_id=1))
    with pytest.raises(JournalWriteError) as caught:
        journal.flush()
    assert caught.value.is_final
    with pytest.raises(JournalWriteError):
        journal.append(Run(run_id=2))
    journal.abandon()
    SessionJournal.reopen(tmp_path, "a").close()


def test_real_full_disk_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """On a small file system of its own, where this may be made; else with a limit of file size."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        journal = SessionJournal.create(small, "a")
        (small / "filler").write_bytes(b"x" * 100_000)
        acknowledged = _append_until_full(journal)
        assert len(read_journal(journal.path).runs) == acknowledged
        with pytest.raises(JournalWriteError):
            journal.append(Run(run_id=5000, status="ok", value="y" * 100_000))  # a blob
        (small / "filler").unlink()
        journal.append(Run(run_id=2000, code="after"))
        journal.close()
        found = read_journal(small / "a.jsonl")
        assert [run.run_id for run in found.runs] == [*range(acknowledged), 2000]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _append_until_full(journal: SessionJournal) -> int:
    for n in range(1000):
        try:
            journal.append(Run(run_id=n, code="x" * 3000))
        except JournalWriteError as error:
            if error.is_final or "No space" not in str(error):
                raise
            return n
    raise AssertionError("it never got full")


LIMITED = """
import resource, sys
from py_code_mode.errors import JournalWriteError
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.records import Run
journal = SessionJournal.create(sys.argv[1], "a", durability="process")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
count = 0
try:
    while True:
        journal.append(Run(run_id=count, code="x" * 3000))
        count += 1
except JournalWriteError as error:
    assert not error.is_final, error
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(Run(run_id=-1))
journal.close()
print(count)
"""


def test_file_that_may_not_grow_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    runs = read_journal(tmp_path / "a.jsonl").runs
    assert [run.run_id for run in runs] == [*range(int(done.stdout)), -1]


# --- several writers


def test_threads_append_each_record_once(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    numbers: list[int] = []

    def write(start: int) -> None:
        for n in range(40):
            value = "x" * (MAX_INLINE + 10) if n % 10 == 0 else n
            numbers.append(journal.append(Run(run_id=start + n, status="ok", value=value)))

    threads = [threading.Thread(target=write, args=(100 * t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    journal.close()
    assert sorted(numbers) == list(range(1, 321))
    found = read_journal(tmp_path / "a.jsonl")
    assert len(found.runs) == 320
    assert found.problems == ()


def test_forked_child_cannot_write(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            journal.append(Run(run_id=1))
        except SessionClosedError:
            journal.close()
            journal.abandon()
            code = 0
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    journal.append(Run(run_id=2))
    journal.close()
    assert [run.run_id for run in read_journal(tmp_path / "a.jsonl").runs] == [2]


HOLDER = """
import sys
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.records import Run
journal = SessionJournal.create(sys.argv[1], "a")
journal.append(Run(run_id=1, code="held"))
print("held", flush=True)
sys.stdin.read()
"""


def test_session_of_another_process_is_locked_until_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SessionLockedError):
            SessionJournal.reopen(tmp_path, "a")
        with pytest.raises(SessionExistsError):
            SessionJournal.create(tmp_path, "a")
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
    SessionJournal.reopen(tmp_path, "a").close()
    assert codes(tmp_path / "a.jsonl") == ["held"]


def test_append_that_is_interrupted_after_its_line_was_written_counts(tmp_path: Path) -> None:
    """A KeyboardInterrupt may come between the write and what notes it."""
    journal = SessionJournal.create(tmp_path, "a")
    log: Any = vars(journal)["_log"]
    append = log.append

    def interrupted(body: bytes) -> int:
        append(body)
        raise KeyboardInterrupt

    log.append = interrupted
    with pytest.raises(KeyboardInterrupt):
        journal.append(Event(kind="put"))
    del log.append
    assert journal.append(Event(kind="dep")) == 2
    journal.close()
    found = read_journal(tmp_path / "a.jsonl")
    assert [event.kind for event in found.events] == ["put", "dep"]


# --- sizes


def test_large_journal_is_reopened_by_its_end_alone(tmp_path: Path) -> None:
    size = (1 << 30) if os.environ.get("PY_CODE_MODE_FULL") else (128 << 20)
    journal = SessionJournal.create(tmp_path, "a", durability="process")
    journal.append(Run(run_id=1, code="x" * 5_000))
    line = Path(journal.path).read_bytes().splitlines(keepends=True)[1]
    with Path(journal.path).open("ab") as file:  # not numbered well, which reopening never sees
        block = line * (1 + (4 << 20) // len(line))
        for _ in range(size // len(block)):
            file.write(block)
    journal.abandon()
    before = psutil.Process().io_counters().read_chars  # pyright: ignore[reportAttributeAccessIssue]
    SessionJournal.reopen(tmp_path, "a", durability="process").abandon()
    read = psutil.Process().io_counters().read_chars - before  # pyright: ignore[reportAttributeAccessIssue]
    assert read < 4 << 20


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("end", ["close", "abandon"])
def test_a_journal_that_was_reopened_lazily_for_nothing_is_as_it_was(
    tmp_path: Path, end: str, is_closed: bool
) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    journal.append(Run(run_id=1))
    if is_closed:
        journal.close()
    else:
        journal.abandon()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("a.*")}
    again = SessionJournal.reopen(tmp_path, "a", is_lazy=True)
    again.append_later(Event(kind="resume"))
    getattr(again, end)()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("a.*")} == before


def test_what_was_to_come_before_the_next_record_does(tmp_path: Path) -> None:
    SessionJournal.create(tmp_path, "a").close()
    with SessionJournal.reopen(tmp_path, "a", is_lazy=True) as again:
        again.append_later(Event(kind="resume"))
        again.append(Run(run_id=1))
    kinds = [record.record_type for record in read_journal(tmp_path / "a.jsonl").records]
    assert kinds == ["header", "trailer", "reopen", "event", "run", "trailer"]


def test_a_journal_that_was_reopened_in_part_counts_as_open(tmp_path: Path) -> None:
    SessionJournal.create(tmp_path, "a").close()
    files = FaultyFiles({1: errno.ENOSPC}, only=["write"])
    again = SessionJournal.reopen(tmp_path, "a", is_lazy=True, files=files)
    again.append_later(Event(kind="resume"))
    with pytest.raises(JournalWriteError):
        again.begin()
    again.close()
    (path,) = tmp_path.glob("a.*")
    assert path.name.endswith("__partial__")
    assert not read_journal(path).is_closed
