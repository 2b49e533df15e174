"""Artifacts come back equal and of the same type, as files people can open, whole or not at all."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from py_code_mode.artifacts import Artifacts
from py_code_mode.errors import ArtifactNotFound, InvalidArtifact, InvalidName, StoreError
from py_code_mode.results import Display, Handle, Snapshot
from py_code_mode.stores import FileStore, MemoryStore, Store
from py_code_mode.stores import file as file_store
from py_code_mode.testing.stores import UNFIT_NAMES

TIMEOUT = 60
PNG = b"\x89PNG\r\n\x1a\n\0\xff"


class Colour(enum.IntEnum):
    RED = 1


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return FileStore(tmp_path / "base", "artifacts") if request.param == "file" else MemoryStore()


@pytest.fixture
def artifacts(store: Store) -> Artifacts:
    return Artifacts(store)


def text_of(path: object) -> str:
    return Path(str(path)).read_text(encoding="utf-8")


def test_saved_artifact_is_listed_and_loaded(artifacts: Artifacts) -> None:
    info = artifacts.save(
        name="analysis_results",
        data={"repos": 42, "stars": 1000},
        description="GitHub analysis results",
        metadata={"by": ["me"], "n": 1},
    )
    assert artifacts.list() == [info]
    assert info["name"] == "analysis_results"
    assert info["description"] == "GitHub analysis results"
    assert info["metadata"] == {"by": ["me"], "n": 1}
    assert (info["type"], info["format"]) == ("dict", "json")
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(str(info["created_at"]))
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=1)
    assert artifacts.load("analysis_results") == {"repos": 42, "stars": 1000}
    assert artifacts.exists("analysis_results")
    json.dumps(info)


PLAIN: list[Any] = [
    None,
    True,
    0,
    -(2**70),
    10**3999,
    1.5,
    -0.0,
    math.inf,
    "",
    "line\r\nends\n stay \0 é 🙂",
    b"",
    b"\xff\0",
    [],
    {},
    [1, [2.0, None, {"a": "é", "$tuple": [1], "": {}}], "x"],
    list(range(50_000)),
]
TAGGED: list[Any] = [
    (),
    (1, (2,), [3]),
    {1: "a", (2, 3): "b", None: 1},
    {"set": {1, 2}, "frozen": frozenset("a")},
    1 + 2j,
    bytearray(b"x"),
    dt.datetime(2024, 2, 29, 12, 30, 15, 123456, dt.UTC),
    [dt.date(2024, 1, 1), dt.time(1, 2), dt.timedelta(1, 2, 3)],
    decimal.Decimal("1.00"),
    Path("/tmp/x"),
    "lone \ud800",
    10**5000,
    {"mean": np.float64(1.5), "n": np.int32(3)},
    [np.arange(3), (1,)][1:],
]


@pytest.mark.parametrize("value", [*PLAIN, *TAGGED], ids=lambda value: ascii(type(value).__name__))
def test_value_comes_back_equal_and_of_the_same_type(artifacts: Artifacts, value: Any) -> None:
    artifacts.save("a", value)
    back = artifacts.load("a")
    assert type(back) is type(value)
    assert back == value
    if not isinstance(value, int):
        assert repr(back) == repr(value)


def test_nan_comes_back(artifacts: Artifacts) -> None:
    artifacts.save("a", {"x": math.nan})
    assert math.isnan(artifacts.load("a")["x"])


def test_large_parts_inside_other_values_come_back(artifacts: Artifacts) -> None:
    value = (np.arange(100_000), {"t": pd.DataFrame({"x": range(10_000)})}, [0.5] * 1000)
    info = artifacts.save("a", value)
    back = artifacts.load("a")
    np.testing.assert_array_equal(back[0], value[0])
    pd.testing.assert_frame_equal(back[1]["t"], value[1]["t"])
    assert back[2] == value[2]
    assert int(str(info["size"])) > 800_000


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Colour.RED,
        {"c": Colour.RED},
        lambda: None,
        np.array([object()]),
        np.ma.masked_array([1]),
        pd.DataFrame({"x": [object()]}),
        pd.DataFrame({"x": [1, "a", (1, 2)]}),
        Handle(name="h", type_name="x", snapshot=Snapshot(data={})),
        Display(data={}),
        Display(data={"text/plain": "x"}, metadata={"a": (1,)}),  # pyright: ignore[reportArgumentType]
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_that_would_be_altered_is_refused(artifacts: Artifacts, value: object) -> None:
    artifacts.save("a", "old")
    with pytest.raises(InvalidArtifact, match="artifact 'a': "):
        artifacts.save("a", value)
    assert artifacts.load("a") == "old"


def test_refusal_says_what_to_do(artifacts: Artifacts) -> None:
    with pytest.raises(InvalidArtifact, match="convert it"):
        artifacts.save("a", object())


def test_value_in_itself_or_too_deep_is_refused(artifacts: Artifacts) -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(InvalidArtifact):
            artifacts.save("a", value)
    while deep:  # freed level by level
        deep = deep.pop()


ARRAYS = [
    np.arange(12, dtype="<i2").reshape(3, 4),
    np.asfortranarray(np.ones((3, 4))),
    np.array(1.5),
    np.zeros((0, 3), dtype=bool),
    np.array([1, 2], dtype=">f8"),
    np.array(["2024-01-01", "NaT"], dtype="M8[D]"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([b"ab", b"c"]),
    np.array(["é", ""]),
    np.array([1 + 2j, np.nan]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_array_comes_back(artifacts: Artifacts, array: np.ndarray[Any, Any]) -> None:
    info = artifacts.save("a", array)
    assert info["format"] == "npy"
    back = artifacts.load("a")
    assert type(back) is np.ndarray
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


FRAMES: dict[str, pd.DataFrame] = {
    "plain": pd.DataFrame(
        {"x": [1, 2], "y": [0.5, math.nan], "z": ["a", None], "b": [True, False]}
    ),
    "empty": pd.DataFrame(None),
    "no rows": pd.DataFrame({"x": pd.Series([], dtype="int8")}),
    "named index": pd.DataFrame({"x": [1]}, index=pd.Index(["r"], name="key")),
    "multi": pd.DataFrame(
        {"x": [1, 2]}, index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["k", "n"])
    ),
    "times": pd.DataFrame(
        {
            "t": pd.Series(["2024-01-01", None], dtype="datetime64[s]"),
            "z": pd.Series(["2024-01-01", None], dtype="datetime64[us, UTC]"),
        }
    ),
    "category": pd.DataFrame({"c": pd.Categorical(["a", "b", None], ["b", "a"], ordered=True)}),
    "nullable": pd.DataFrame({"i": pd.array([1, None], dtype="Int64")}),
    "period": pd.DataFrame({"p": pd.period_range("2024-01", periods=2, freq="M")}),
    "bytes": pd.DataFrame({"x": pd.Series([b"a", None], dtype=object)}),
    "freq": pd.DataFrame({"x": [1, 2]}, index=pd.date_range("2024", periods=2, freq="D")),
    "range": pd.DataFrame({"x": [1, 2]}, index=pd.RangeIndex(5, 1, -2)),
    "int columns": pd.DataFrame([[1, 2]]),
    "same names": pd.DataFrame([[1, 2]], columns=["a", "a"]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frame_comes_back_or_is_refused(artifacts: Artifacts, name: str) -> None:
    frame = FRAMES[name]
    try:
        artifacts.save("a", frame)
    except InvalidArtifact:
        assert name == "same names"
        return
    back = artifacts.load("a")
    pd.testing.assert_frame_equal(back, frame, check_column_type="equiv")
    assert [str(dtype) for dtype in back.dtypes] == [str(dtype) for dtype in frame.dtypes]
    if len(back) and len(back.columns):
        back.iloc[0, 0] = back.iloc[-1, 0]  # writable


def test_frame_is_a_file_that_arrow_opens(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1, 2], "y": ["a", "b"]})
    info = Artifacts(FileStore(tmp_path)).save("table", frame)
    assert info["type"] == "pandas.DataFrame"
    back = pd.read_feather(str(info["path"]))
    pd.testing.assert_frame_equal(back, frame)


@pytest.mark.parametrize(
    "display",
    [
        Display(data={"image/png": PNG}),
        Display(data={"text/plain": "<Figure>", "image/png": PNG}, metadata={"width": 3}),
        Display(data={"text/html": "<b>é</b>", "application/x-own": b"\0", "text/x-own": "t"}),
        Display(data={"a/b": b"same", "c/d": b"same"}),
    ],
    ids=range(4),
)
def test_display_comes_back(artifacts: Artifacts, display: Display) -> None:
    artifacts.save("chart", display)
    back = artifacts.load("chart")
    assert back == display
    assert list(back.data) == list(display.data)
    artifacts.save("chart", 1)
    artifacts.delete("chart")
    assert artifacts.list() == []


def test_path_is_the_file_to_open(tmp_path: Path) -> None:
    artifacts = Artifacts(FileStore(tmp_path))
    assert text_of(artifacts.save("report.md", "# é\r\n".replace("\r", ""))["path"]) == "# é\n"
    assert Path(str(artifacts.save("report.md", "x")["path"])).suffix == ".md"
    assert Path(str(artifacts.save("notes", "x")["path"])).suffix == ".txt"
    assert Path(str(artifacts.save("image.png", PNG)["path"])).read_bytes() == PNG
    info = artifacts.save("data.json", {"é": [1]})
    assert json.loads(text_of(info["path"])) == {"é": [1]}
    assert "é" in text_of(info["path"])
    assert Path(str(artifacts.save("v1.txt", {"a": 1})["path"])).suffix == ".json"
    chart = Display(data={"text/plain": "Figure", "image/png": PNG})
    assert Path(str(artifacts.save("chart", chart)["path"])).read_bytes() == PNG


def test_equal_contents_under_two_names_do_not_share_a_file(artifacts: Artifacts) -> None:
    artifacts.save("a", {"x": 1})
    artifacts.save("a.json", {"x": 1})
    artifacts.delete("a")
    assert artifacts.load("a.json") == {"x": 1}


def test_saving_again_replaces_everything(artifacts: Artifacts, store: Store) -> None:
    for value in ({"a": 1}, "text", b"bytes", {"a": 1}, {"a": 1}):
        artifacts.save("a", value, description=repr(value))
        assert artifacts.load("a") == value
        assert [info["description"] for info in artifacts.list()] == [repr(value)]
        assert len(store.names()) == 2


def test_missing_artifact_is_not_found(artifacts: Artifacts) -> None:
    assert not artifacts.exists("a")
    for act in (artifacts.load, artifacts.delete):
        with pytest.raises(ArtifactNotFound, match="no artifact named 'a'"):
            act("a")
    with pytest.raises(KeyError):
        artifacts.load("a")


def test_deleted_artifact_leaves_nothing(artifacts: Artifacts, store: Store) -> None:
    artifacts.save("a", Display(data={"text/plain": "x", "image/png": PNG}))
    artifacts.delete("a")
    assert store.names() == []
    assert artifacts.list() == []


@pytest.mark.parametrize(
    "name", [*UNFIT_NAMES, "x" * 151, "a.artifact.json", "a~0123456789abcdef.json"], ids=ascii
)
def test_unfit_name_is_refused_or_not_found(artifacts: Artifacts, store: Store, name: str) -> None:
    with pytest.raises(InvalidName):
        artifacts.save(name, 1)
    assert not artifacts.exists(name)
    for act in (artifacts.load, artifacts.delete):
        with pytest.raises(ArtifactNotFound):
            act(name)
    assert store.names() == []


def test_longest_name_is_stored(artifacts: Artifacts) -> None:
    name = "é" * 75
    artifacts.save(name, "x")
    assert [info["name"] for info in artifacts.list()] == [name]


@pytest.mark.parametrize("metadata", [{"a": (1,)}, {1: 2}, {"a": object()}, {"a": "\ud800"}])
def test_metadata_must_be_json(artifacts: Artifacts, metadata: Any) -> None:
    with pytest.raises(InvalidArtifact, match="metadata"):
        artifacts.save("a", 1, metadata=metadata)
    assert artifacts.list() == []


def test_description_must_be_text(artifacts: Artifacts) -> None:
    for description in (1, None, "\ud800"):
        with pytest.raises(InvalidArtifact, match="description"):
            artifacts.save("a", 1, description)  # pyright: ignore[reportArgumentType]


# -- by hand ------------------------------------------------------------------------------------


def test_file_put_there_by_hand_is_listed_and_loaded(tmp_path: Path) -> None:
    artifacts = Artifacts(FileStore(tmp_path))
    (tmp_path / "data.json").write_text('{"a": [1]}')
    (tmp_path / "report.md").write_text("# é", encoding="utf-8")
    (tmp_path / "latin.csv").write_bytes(b"\xe9")
    (tmp_path / "image.png").write_bytes(PNG)
    np.save(tmp_path / "array.npy", np.arange(3))
    pd.DataFrame({"x": [1]}).to_feather(tmp_path / "table.feather")
    (tmp_path / "folder").mkdir()
    assert [info["name"] for info in artifacts.list()] == [
        "array.npy",
        "data.json",
        "image.png",
        "latin.csv",
        "report.md",
        "table.feather",
    ]
    assert artifacts.load("data.json") == {"a": [1]}
    assert artifacts.load("report.md") == "# é"
    assert artifacts.load("latin.csv") == b"\xe9"
    assert artifacts.load("image.png") == PNG
    assert artifacts.load("array.npy").tolist() == [0, 1, 2]
    assert artifacts.load("table.feather")["x"].tolist() == [1]
    info = artifacts.list()[1]
    assert (info["size"], info["metadata"], info["description"]) == (10, {}, "")
    assert dt.datetime.fromisoformat(str(info["created_at"])).tzinfo is not None
    assert artifacts.exists("report.md")
    artifacts.delete("report.md")
    assert not (tmp_path / "report.md").exists()


def test_file_by_hand_and_save_of_one_name_replace_each_other(tmp_path: Path) -> None:
    artifacts = Artifacts(FileStore(tmp_path))
    (tmp_path / "report.md").write_text("by hand")
    artifacts.save("report.md", "saved")
    assert artifacts.load("report.md") == "saved"
    assert not (tmp_path / "report.md").exists()
    (tmp_path / "report.md").write_text("by hand again")
    assert artifacts.load("report.md") == "by hand again"
    assert len(artifacts.list()) == 1
    artifacts.delete("report.md")
    assert artifacts.list() == []
    assert not artifacts.exists("report.md")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    artifacts = Artifacts(FileStore(tmp_path))
    np.save(tmp_path / "evil.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidArtifact, match="allow_pickle"):
        artifacts.load("evil.npy")
    (tmp_path / "x.pkl").write_bytes(b"cos\nsystem\n.")
    assert artifacts.load("x.pkl") == b"cos\nsystem\n."


def test_data_edited_by_hand_is_loaded(tmp_path: Path) -> None:
    artifacts = Artifacts(FileStore(tmp_path))
    info = artifacts.save("a", {"x": 1})
    Path(str(info["path"])).write_text('{"x": 2}')
    assert artifacts.load("a") == {"x": 2}
    Path(str(info["path"])).write_text("{")
    with pytest.raises(InvalidArtifact, match="cannot be read as json"):
        artifacts.load("a")
    Path(str(info["path"])).unlink()
    with pytest.raises(InvalidArtifact, match="missing"):
        artifacts.load("a")
    assert "missing" in str(artifacts.list()[0]["error"])
    artifacts.delete("a")
    assert artifacts.list() == []


@pytest.mark.parametrize(
    "card",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"name": 1, "description": "", "metadata": [], "created_at": "", "format": "json",'
        ' "type": "", "files": [], "detail": {}}',
    ],
    ids=range(5),
)
def test_broken_card_is_listed_and_hides_nothing(tmp_path: Path, card: str) -> None:
    artifacts = Artifacts(FileStore(tmp_path))
    artifacts.save("good", 1)
    (tmp_path / "bad.artifact.json").write_text(card)
    listed = {str(info["name"]): info.get("error") for info in artifacts.list()}
    assert "malformed" in str(listed.pop("bad"))
    assert listed == {"good": None}
    with pytest.raises(InvalidArtifact, match="malformed"):
        artifacts.load("bad")
    artifacts.save("bad", 2)
    assert artifacts.load("bad") == 2


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "secret", "good.artifact.json"])
def test_card_cannot_name_foreign_files(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("1")
    root = tmp_path / "artifacts"
    artifacts = Artifacts(FileStore(root))
    info = artifacts.save("a", {"x": 1})
    card = root / "a.artifact.json"
    card.write_text(card.read_text().replace(Path(str(info["path"])).name, target))
    with pytest.raises(InvalidArtifact, match="not its own"):
        artifacts.load("a")
    artifacts.delete("a")
    assert (tmp_path / "secret").exists()


def test_link_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    (root / "link.txt").symlink_to("/etc/passwd")
    artifacts = Artifacts(FileStore(root))
    with pytest.raises(InvalidArtifact, match="symbolic link"):
        artifacts.load("link.txt")
    artifacts.save("link.txt", "mine")
    assert artifacts.load("link.txt") == "mine"


# -- whole or not at all ------------------------------------------------------------------------


def test_failed_save_keeps_the_old_artifact_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts(FileStore(tmp_path))
    artifacts.save("a", "old", "old one")
    names = sorted(os.listdir(tmp_path))
    rename = os.rename

    def fail_at_card(source: str, target: str, **where: int) -> None:
        if target.endswith(".artifact.json"):
            raise OSError(28, "No space left on device")
        rename(source, target, **where)

    with monkeypatch.context() as patch:
        patch.setattr(file_store.os, "rename", fail_at_card)
        with pytest.raises(StoreError, match="No space left"):
            artifacts.save("a", "new")
    assert sorted(os.listdir(tmp_path)) == names
    assert artifacts.load("a") == "old"


def test_loading_while_another_process_saves_sees_whole_values(tmp_path: Path) -> None:
    code = """
import itertools, select, sys
from py_code_mode.artifacts import Artifacts
from py_code_mode.stores import FileStore
artifacts = Artifacts(FileStore(sys.argv[1]))
for turn in itertools.count():
    artifacts.save("a", [turn] * 1000, metadata={"turn": turn})
    if select.select([sys.stdin], [], [], 0)[0]:
        print(turn)
        break
"""
    artifacts = Artifacts(FileStore(tmp_path))
    artifacts.save("a", [-1] * 1000, metadata={"turn": -1})
    seen: set[int] = set()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        # As many as it takes: how the two take turns is the kernel's affair.
        while len(seen) < 30 and child.poll() is None:
            value = artifacts.load("a")
            assert len(value) == 1000
            assert len(set(value)) == 1
            seen.add(value[0])
        last, _ = child.communicate(timeout=TIMEOUT)
    assert child.returncode == 0
    assert artifacts.load("a") == [int(last)] * 1000


def test_processes_saving_and_deleting_at_once_corrupt_nothing(tmp_path: Path) -> None:
    code = """
import sys
from py_code_mode.artifacts import Artifacts
from py_code_mode.errors import ArtifactNotFound
from py_code_mode.stores import FileStore
artifacts = Artifacts(FileStore(sys.argv[1]))
for turn in range(40):
    artifacts.save("shared", {"by": sys.argv[2], "turn": turn})
    artifacts.save(f"own{sys.argv[2]}_{turn}", turn)
    try:
        value = artifacts.load("shared")
        # another process may have come to its end already
        assert set(value) == {"by", "turn"} or value == {"by": "the end"}, value
        if turn % 3 == 0:
            artifacts.delete("shared")
    except ArtifactNotFound:
        pass
    assert not [info for info in artifacts.list() if "error" in info]
artifacts.save("shared", {"by": "the end"})
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)])
        for number in range(3)
    ]
    for child in children:
        assert child.wait(TIMEOUT) == 0
    artifacts = Artifacts(FileStore(tmp_path))
    assert len(artifacts.list()) == 121
    assert not [info for info in artifacts.list() if "error" in info]
    assert artifacts.load("shared") == {"by": "the end"}
    assert len(FileStore(tmp_path).names()) == 242


def test_killed_saver_leaves_whole_artifacts_and_its_rest_is_cleared(tmp_path: Path) -> None:
    code = """
import sys
from py_code_mode.artifacts import Artifacts
from py_code_mode.stores import FileStore
artifacts = Artifacts(FileStore(sys.argv[1]))
turn = 0
while True:
    turn += 1
    artifacts.save("a", [turn] * 50_000)
    print("saved", flush=True)
"""
    for turn in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(3 + turn):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=TIMEOUT)
        artifacts = Artifacts(FileStore(tmp_path))
        assert len(set(artifacts.load("a"))) == 1
        assert [info["name"] for info in artifacts.list()] == ["a"]
        artifacts.save("b", turn)
        assert len(FileStore(tmp_path).names()) == 4
        artifacts.delete("b")


def test_orphaned_data_is_no_artifact(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.write("a~0123456789abcdef.json", b"1")
    artifacts = Artifacts(store)
    assert artifacts.list() == []
    artifacts.save("b", 1)
    assert "a~0123456789abcdef.json" not in store.names()
