"""A workspace: what is in it, where it is, and that it stays inside its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from py_code_mode.errors import ConfigError, StoreError
from py_code_mode.storage import FileStorage, MemoryStorage, StorageBackend


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StorageBackend:
    return FileStorage(tmp_path / "base") if request.param == "file" else MemoryStorage()


def fill(storage: StorageBackend) -> None:
    storage.get_workflow_library().create("w", "def run(): ...", "A workflow")
    storage.get_artifact_store().save("a", {"x": 1})
    storage.get_deps_store().add("pandas>=2")
    storage.get_tool_store().write("curl.yaml", b"name: curl\n")


def test_new_workspace_is_empty(storage: StorageBackend) -> None:
    assert storage.get_workflow_library().list() == []
    assert storage.get_artifact_store().list() == []
    assert storage.get_deps_store().list() == []
    assert storage.get_tool_store().names() == []


def test_libraries_keep_what_they_are_given(storage: StorageBackend) -> None:
    fill(storage)
    assert storage.get_workflow_library().get("w") is not None
    assert storage.get_artifact_store().load("a") == {"x": 1}
    assert storage.get_deps_store().list() == ["pandas>=2"]
    assert storage.get_tool_store().read("curl.yaml") == b"name: curl\n"


def test_libraries_are_the_same_at_every_call(storage: StorageBackend) -> None:
    assert storage.get_workflow_library() is storage.get_workflow_library()
    assert storage.get_artifact_store() is storage.get_artifact_store()
    assert storage.get_deps_store() is storage.get_deps_store()
    assert storage.get_tool_store() is storage.get_tool_store()


def test_memory_storages_share_nothing() -> None:
    one, two = MemoryStorage(), MemoryStorage()
    fill(one)
    test_new_workspace_is_empty(two)


def test_missing_folder_is_made_at_the_first_write_only(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "base"
    storage = FileStorage(base)
    test_new_workspace_is_empty(storage)
    assert not (tmp_path / "deep").exists()
    storage.get_deps_store().add("pandas")
    assert sorted(name for name in os.listdir(base) if name[0] != ".") == ["requirements.txt"]
    fill(storage)
    assert sorted(name for name in os.listdir(base) if name[0] != ".") == [
        "artifacts",
        "requirements.txt",
        "tools",
        "workflows",
    ]


def test_base_path_is_absolute_and_home_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert FileStorage("~/.code-mode").base_path == tmp_path / ".code-mode"
    assert FileStorage(Path("data")).base_path == tmp_path / "data"
    assert FileStorage(base_path=tmp_path).base_path == tmp_path


def test_repr_names_the_folder(tmp_path: Path) -> None:
    assert repr(FileStorage(tmp_path)) == f"FileStorage(base_path={str(tmp_path)!r})"
    assert repr(MemoryStorage()).startswith("<MemoryStorage")


def test_files_of_people_are_found(tmp_path: Path) -> None:
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "hello.py").write_text('"""Hello."""\n\ndef run(): ...\n')
    (tmp_path / "requirements.txt").write_text("# mine\nnumpy\n")
    storage = FileStorage(tmp_path)
    assert [found["name"] for found in storage.get_workflow_library().list()] == ["hello"]
    assert storage.get_deps_store().list() == ["numpy"]


def test_workspace_whose_folders_are_links_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    base = tmp_path / "base"
    base.mkdir()
    for folder in ("tools", "workflows", "artifacts"):
        (base / folder).symlink_to(outside)
    (base / "requirements.txt").symlink_to(outside / "requirements.txt")
    storage = FileStorage(base)
    for act in (
        lambda: storage.get_workflow_library().create("w", "def run(): ...", ""),
        lambda: storage.get_artifact_store().save("a", 1),
        lambda: storage.get_deps_store().add("pandas"),
        lambda: storage.get_tool_store().write("x", b""),
    ):
        with pytest.raises(StoreError, match="link"):
            act()
    assert os.listdir(outside) == []


def test_importing_and_making_a_storage_loads_nothing_heavy() -> None:
    code = """
import sys
from py_code_mode.storage import FileStorage
FileStorage("x")
heavy = {"numpy", "pandas", "pyarrow", "packaging", "yaml", "jsonschema", "sqlite3", "anyio"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(ConfigError, match=r"`\.` is the current folder"):
        FileStorage("")
