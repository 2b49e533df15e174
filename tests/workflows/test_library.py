"""Workflows in a store: what people edit is seen, what is broken hides nothing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import InvalidName, InvalidWorkflow, WorkflowNotFound
from py_code_mode.stores import FileStore, MemoryStore, Store
from py_code_mode.workflows import WorkflowLibrary

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """async def run(url: str) -> dict:
    import json
    response = tools.curl.get(url=url)
    return json.loads(response)
"""
URL = {"name": "url", "type": "str", "required": True, "default": None}


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return FileStore(tmp_path, "workflows") if request.param == "file" else MemoryStore()


@pytest.fixture
def library(store: Store) -> WorkflowLibrary:
    return WorkflowLibrary(store)


def test_created_workflow_is_got_and_listed(library: WorkflowLibrary) -> None:
    created = library.create(name="fetch_json", source=SOURCE, description="Fetch and parse JSON")
    facts = {"name": "fetch_json", "description": "Fetch and parse JSON", "parameters": [URL]}
    assert created == {**facts, "source": SOURCE}
    assert library.get("fetch_json") == created
    assert library.list() == [facts]
    assert library.load("fetch_json").source == SOURCE


def test_create_replaces(library: WorkflowLibrary) -> None:
    library.create("a", "def run(): return 1", "one")
    library.create("a", "def run(): return 2", "two")
    assert [found["description"] for found in library.list()] == ["two"]


def test_missing_workflow_is_none(library: WorkflowLibrary) -> None:
    assert library.list() == []
    assert library.get("nothing") is None
    assert library.delete("nothing") is False
    with pytest.raises(WorkflowNotFound, match="nothing"):
        library.load("nothing")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "list", "_x", "a\0", "", "x" * 500])
def test_unfit_name_is_refused_or_not_found(library: WorkflowLibrary, name: str) -> None:
    with pytest.raises(InvalidName):
        library.create(name, "def run(): ...", "x")
    assert library.get(name) is None
    assert library.delete(name) is False
    with pytest.raises(WorkflowNotFound):
        library.load(name)
    assert library.list() == []


def test_invalid_source_stores_nothing(library: WorkflowLibrary) -> None:
    library.create("a", SOURCE, "kept")
    with pytest.raises(InvalidWorkflow):
        library.create("a", "def run(:", "new")
    assert library.list()[0]["description"] == "kept"


def test_deleted_workflow_is_gone(library: WorkflowLibrary) -> None:
    library.create("a", SOURCE, "x")
    assert library.delete("a") is True
    assert library.get("a") is None
    assert library.delete("a") is False


def test_edit_by_hand_is_seen_at_the_next_call(tmp_path: Path) -> None:
    library = WorkflowLibrary(FileStore(tmp_path))
    path = tmp_path / "greet.py"
    for number in range(20):
        text = f'"""Greets {number:02}."""\n\ndef run(name: str = "{number:02}"): ...\n'
        path.write_text(text)
        found = library.get("greet")
        assert found is not None
        assert found["description"] == f"Greets {number:02}."
        assert found["source"] == text
        assert library.list()[0]["description"] == found["description"]
    path.unlink()
    assert library.list() == []


def test_edit_by_hand_of_a_created_file_is_seen(tmp_path: Path) -> None:
    library = WorkflowLibrary(FileStore(tmp_path))
    library.create("a", SOURCE, "Before")
    path = tmp_path / "a.py"
    path.write_text(path.read_text().replace('"""Before"""', "'After'").replace("url", "link"))
    found = library.get("a")
    assert found is not None
    assert found["description"] == "After"
    assert found["source"] == SOURCE.replace("url", "link")


def test_broken_file_is_listed_with_its_error_and_hides_nothing(tmp_path: Path) -> None:
    library = WorkflowLibrary(FileStore(tmp_path))
    library.create("good", SOURCE, "Good")
    (tmp_path / "bad.py").write_text("def run():\n    return (\n")
    (tmp_path / "latin.py").write_bytes(b"def run():\n    return '\xe9'\n")
    (tmp_path / "not-a-name.py").write_text("def run(): ...\n")
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder.py").mkdir()
    listed = {str(found["name"]): found.get("error") for found in library.list()}
    assert list(listed) == ["bad", "good", "latin", "link", "not-a-name"]
    assert listed["good"] is None
    assert str(listed["bad"]).startswith("line 2: ")
    assert listed["latin"] == "line 2: it is not UTF-8"
    assert "symbolic link" in str(listed["link"])
    assert "identifier" in str(listed["not-a-name"])
    found = library.get("bad")
    assert found is not None
    assert found["source"] == "def run():\n    return (\n"
    assert "error" in found
    with pytest.raises(InvalidWorkflow, match="line 2"):
        library.load("bad")
    assert library.delete("bad") is True


def test_search_ranks_and_follows_changes(library: WorkflowLibrary) -> None:
    library.create("fetch_json", SOURCE, "Fetch and parse JSON from a URL")
    library.create("count_words", "def run(text: str): ...", "Counts the words of a text")
    library.create("plot", "def run(): ...", "Draws a chart")
    names = [found["name"] for found in library.search("fetching urls")]
    assert names[0] == "fetch_json"
    assert [found["name"] for found in library.search("chart")] == ["plot"]
    assert "source" not in library.search("chart")[0]
    library.create("plot", "def run(): ...", "Paints a picture")
    assert library.search("chart") == []
    library.delete("plot")
    assert library.search("picture") == []
    assert len(library.search("fetch count words json", limit=1)) == 1
    assert library.search("") == []


def test_search_leaves_out_what_is_broken(tmp_path: Path) -> None:
    library = WorkflowLibrary(FileStore(tmp_path))
    (tmp_path / "broken.py").write_text("def run(:")
    assert library.search("broken") == []


def test_threads_may_share_a_library(library: WorkflowLibrary) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            name = f"w{number}_{turn % 3}"
            library.create(name, f"def run(): return {turn}", f"number {number}")
            assert library.get(name) is not None
            library.search("number")
            library.list()
            library.delete(name)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result(60)
    assert library.list() == []


def test_another_process_sees_what_was_created(tmp_path: Path) -> None:
    WorkflowLibrary(FileStore(tmp_path)).create("a", SOURCE, "Über")
    code = """
import sys
from py_code_mode.stores import FileStore
from py_code_mode.workflows import WorkflowLibrary
print(ascii(WorkflowLibrary(FileStore(sys.argv[1])).list()[0]["description"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == ascii("Über"), done.stderr
