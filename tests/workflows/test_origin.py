"""Workflows remember who wrote them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.errors import InvalidWorkflow, WorkflowNotFound
from py_code_mode.origin import is_as_strong, is_sandboxed
from py_code_mode.stores import MemoryStore
from py_code_mode.workflows import WorkflowLibrary
from py_code_mode.workflows.origin import with_origin, without_origin

SOURCE = '"""Greet."""\n\n\ndef run(name: str) -> str:\n    return f"hello {name}"\n'


@pytest.mark.parametrize(
    ("isolation", "origin", "expected"),
    [
        ("namespaces", "namespaces", True),
        ("bubblewrap", "namespaces", True),
        ("namespaces", "landlock", True),
        ("landlock", "namespaces", False),
        ("none", "landlock", False),
        ("in_process", "landlock", False),
        ("in_process", "unknown", False),
        ("namespaces", "unknown", True),
        ("unknown", "unknown", False),
        ("container", "container", True),
        ("container", "namespaces", False),
        ("in_process", "container", False),
        ("landlock", "container", False),
        ("namespaces", "container", True),
    ],
)
def test_weaker_isolation_is_told(isolation: str, origin: str, expected: bool) -> None:
    assert is_as_strong(isolation, origin) is expected


def test_what_no_sandbox_holds_needs_no_approval() -> None:
    assert not is_sandboxed("none")
    assert not is_sandboxed("in_process")
    assert all(map(is_sandboxed, ("namespaces", "bubblewrap", "landlock", "some plug-in")))


@given(st.text(), st.sampled_from(["namespaces", "landlock", "Odd word\n"]))
def test_text_comes_back_as_it_was(text: str, isolation: str) -> None:
    marked = with_origin("name", text, isolation)
    left, origin = without_origin(marked)
    assert left == text
    assert origin == (isolation if isolation.isalpha() else "unknown")


@pytest.mark.parametrize(
    "above", ["", "\n", "# Copyright\n\n", "#!/usr/bin/env python\n# x\n", "  "]
)
def test_line_is_found_below_other_comments(above: str) -> None:
    assert without_origin(above + with_origin("name", SOURCE, "landlock"))[1] == "landlock"


def test_line_that_was_edited_still_counts() -> None:
    marked = with_origin("name", SOURCE, "namespaces").replace(" (namespaces)", " (NAMESPACES)")
    assert without_origin(marked) == (SOURCE, "unknown")


def test_line_below_code_says_nothing() -> None:
    text = "x = 1\n" + with_origin("name", SOURCE, "namespaces")
    assert without_origin(text) == (text, None)


def test_users_own_file_has_no_origin() -> None:
    library = WorkflowLibrary(MemoryStore())
    entry = library.create("greet", SOURCE, "Greet")
    assert "origin" not in entry
    assert library.load("greet").origin is None


@pytest.mark.parametrize("description", ["", "Greet.", "Something else", 'With """ quotes'])
def test_origin_is_kept_with_the_workflow(description: str) -> None:
    store = MemoryStore()
    entry = WorkflowLibrary(store).create("greet", SOURCE, description, origin="namespaces")
    again = WorkflowLibrary(store)
    assert entry["origin"] == "namespaces"
    assert again.get("greet") == entry
    assert entry["source"] == SOURCE
    assert again.list()[0]["origin"] == "namespaces"
    assert again.search("greet")[0]["origin"] == "namespaces"
    first = store.read("greet.py").decode().partition("\n")[0]
    assert "py-code-mode workflows approve greet" in first


def test_code_cannot_write_itself_another_origin() -> None:
    store = MemoryStore()
    forged = with_origin("greet", SOURCE, "in_process")
    WorkflowLibrary(store).create("greet", forged, "", origin="namespaces")
    assert WorkflowLibrary(store).load("greet").origin == "namespaces"


def test_approved_workflow_is_the_users_own() -> None:
    library = WorkflowLibrary(MemoryStore())
    forged = with_origin("greet", SOURCE, "landlock")
    library.create("greet", forged, "", origin="namespaces")
    assert library.approve("greet")
    assert library.load("greet").origin is None
    assert library.load("greet").source == SOURCE
    assert not library.approve("greet")
    with pytest.raises(WorkflowNotFound):
        library.approve("gone")
    with pytest.raises(WorkflowNotFound):
        library.approve("../up")


def test_only_what_was_read_is_approved() -> None:
    library = WorkflowLibrary(MemoryStore())
    library.create("greet", SOURCE, "", origin="namespaces")
    with pytest.raises(InvalidWorkflow, match="changed meanwhile"):
        library.approve("greet", SOURCE + "# and more\n")
    assert library.load("greet").origin == "namespaces"
    assert library.approve("greet", SOURCE)


def test_description_can_be_approved_too() -> None:
    library = WorkflowLibrary(MemoryStore())
    entry = library.create("greet", SOURCE, "Other words", origin="namespaces")
    assert library.approve("greet", str(entry["source"]))
    assert library.load("greet").description == "Other words"


def test_faults_are_told_by_the_lines_of_the_file() -> None:
    store = MemoryStore()
    store.write("bad.py", with_origin("bad", "def run(:\n", "namespaces").encode())
    with pytest.raises(InvalidWorkflow, match="line 2"):
        WorkflowLibrary(store).load("bad")
