"""Which requirements are taken, and that a hand-written file stays as its author left it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from py_code_mode.deps import Requirements, parse
from py_code_mode.errors import InvalidRequirement
from py_code_mode.stores import FileStore, MemoryStore, Store

if TYPE_CHECKING:
    from pathlib import Path

FILE = "requirements.txt"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return FileStore(tmp_path / "base") if request.param == "file" else MemoryStore()


@pytest.fixture
def requirements(store: Store) -> Requirements:
    return Requirements(store)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("pandas", "pandas"),
        (" pandas >= 2.0 , <4 ", "pandas<4,>=2.0"),
        ("Foo.Bar_baz", "Foo.Bar_baz"),
        ("httpx[http2, cli]~=0.27", "httpx[cli,http2]~=0.27"),
        ("a===weird", "a===weird"),
        ("a==1.*", "a==1.*"),
        ("a!=1.5", "a!=1.5"),
    ],
)
def test_plain_requirement_is_taken(text: str, plain: str) -> None:
    assert str(parse(text)) == plain


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("pandas\nnumpy", "line break"),
        ("pandas\r", "line break"),
        ("pandas\0", "control character"),
        ("pandas\u2028numpy", "line break"),
        ("-r other.txt", "options"),
        ("--index-url=https://example.org", "options"),
        ("-e .", "options"),
        ("https://example.org/a.whl", "URLs"),
        ("a @ https://example.org/a.whl", "URLs"),
        ("a@file:///etc/passwd", "URLs"),
        ("git+https://example.org/a.git", "URLs"),
        ("a @ git+ssh://git@example.org/a.git", "URLs"),
        ("file:///tmp/a", "URLs"),
        ("./a", "paths"),
        ("../a", "paths"),
        ("/tmp/a", "paths"),
        ("a.whl/b", "paths"),
        ("~/a", "paths"),
        (".", "paths"),
        ("C:\\a", "paths"),
        ("pandas; python_version < '4'", "markers"),
        ("pandas>=2 --hash=sha256:00", "requirement"),
        ("pandas>>2", "requirement"),
        ("pandas numpy", "requirement"),
        ("pandas # comment", "requirement"),
        ("pandas==", "requirement"),
        ("日本語", "requirement"),
    ],
)
def test_anything_else_is_refused(requirements: Requirements, text: str, reason: str) -> None:
    with pytest.raises(InvalidRequirement, match=reason):
        parse(text)
    with pytest.raises(ValueError, match="requirement"):
        requirements.add(text)
    assert requirements.list() == []


def test_added_requirement_is_listed(requirements: Requirements, store: Store) -> None:
    assert requirements.list() == []
    assert requirements.add("pandas >= 2.0") is True
    assert requirements.add("numpy") is True
    assert requirements.list() == ["pandas>=2.0", "numpy"]
    assert store.read(FILE) == b"pandas>=2.0\nnumpy\n"


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        ("pandas", "pandas>=2", "pandas>=2"),
        ("pandas>=1", "Pandas>=2", "Pandas>=2"),
        ("foo-bar<1", "Foo.Bar==2", "Foo.Bar==2"),
        ("httpx", "httpx[http2]", "httpx[http2]"),
        ("pandas>=2", "pandas>=2", None),
        ("pandas >=2,<3", "pandas<3,>=2", None),
        ("pandas>=2", "pandas", None),
        ("foo_bar", "foo-bar", None),
    ],
)
def test_add_replaces_what_was_wanted_of_the_package(
    requirements: Requirements, store: Store, before: str, added: str, after: str | None
) -> None:
    store.write(FILE, f"first\n{before}\nlast\n".encode())
    assert requirements.add(added) is (after is not None)
    assert store.read(FILE).decode() == f"first\n{after or before}\nlast\n"


def test_comments_and_layout_stay(requirements: Requirements, store: Store) -> None:
    text = """# Data
pandas>=1  # tables
   # indented, ends with a backslash \\

numpy>=1,\\
  <3
-r other.txt
  pandas==1.5
requests @ https://example.org/r.whl  # theirs
last"""
    store.write(FILE, text.encode())
    assert requirements.add("pandas>=2") is True
    assert requirements.add("new") is True
    assert requirements.remove("NumPy") is True
    assert (
        store.read(FILE).decode()
        == """# Data
pandas>=2  # tables
   # indented, ends with a backslash \\

-r other.txt
requests @ https://example.org/r.whl  # theirs
last
new
"""
    )
    assert requirements.list() == ["pandas>=2", "last", "new"]


def test_line_ends_and_foreign_bytes_stay(requirements: Requirements, store: Store) -> None:
    store.write(FILE, b"\xef\xbb\xbf# caf\xe9\r\na\r\nb\xff\r\n")
    assert requirements.list() == ["a"]
    assert [problem.line for problem in requirements.problems()] == [3]
    requirements.add("c")
    requirements.add("a>1")
    assert store.read(FILE) == b"# caf\xe9\r\na>1\r\nb\xff\r\nc\r\n"


def test_unusable_lines_are_reported_and_hide_nothing(
    requirements: Requirements, store: Store
) -> None:
    store.write(FILE, b"a\n--index-url https://example.org\n\nb; os_name == 'nt'\nc\n./d\\\n/e\n")
    assert requirements.list() == ["a", "c"]
    problems = requirements.problems()
    assert [(problem.line, problem.text) for problem in problems] == [
        (2, "--index-url https://example.org"),
        (4, "b; os_name == 'nt'"),
        (6, "./d/e"),
    ]
    assert str(problems[1]).startswith("requirements.txt, line 4: \"b; os_name == 'nt'\": markers")


def test_file_that_ends_in_a_backslash_is_read(requirements: Requirements, store: Store) -> None:
    store.write(FILE, b"a\nb\\")
    assert requirements.list() == ["a", "b"]


def test_remove_takes_every_line_of_the_package(requirements: Requirements, store: Store) -> None:
    store.write(FILE, b"foo-bar>1\nother\nFoo_Bar<3\n")
    assert requirements.remove("foo.bar") is True
    assert requirements.remove("foo.bar") is False
    assert requirements.list() == ["other"]
    with pytest.raises(InvalidRequirement):
        requirements.remove("../other")


def test_asking_makes_no_file(tmp_path: Path) -> None:
    requirements = Requirements(FileStore(tmp_path / "base"))
    requirements.list()
    requirements.problems()
    requirements.remove("a")
    assert not (tmp_path / "base").exists()


def test_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("a\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / FILE).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic link"):
        Requirements(FileStore(tmp_path / "base")).add("b")
    assert (tmp_path / "outside").read_text() == "a\n"


def test_processes_adding_at_once_lose_nothing(tmp_path: Path) -> None:
    code = """
import sys
from py_code_mode.deps import Requirements
from py_code_mode.stores import FileStore
requirements = Requirements(FileStore(sys.argv[1]))
for number in range(30):
    assert requirements.add(f"p{sys.argv[2]}-{number}")
    if number % 3 == 0:
        assert requirements.remove(f"p{sys.argv[2]}-{number}")
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)])
        for number in range(2)
    ]
    for child in children:
        assert child.wait(60) == 0
    wanted = {f"p{child}-{number}" for child in range(2) for number in range(30) if number % 3}
    assert set(Requirements(FileStore(tmp_path)).list()) == wanted
    assert len(Requirements(FileStore(tmp_path)).list()) == len(wanted)


# -- what sandboxed code adds


def written(store: Store) -> str:
    return store.read(FILE).decode()


def test_what_sandboxed_code_adds_is_marked_until_it_is_approved(
    requirements: Requirements, store: Store
) -> None:
    requirements.add("numpy>=2")
    assert requirements.add("Six", origin="namespaces")
    assert requirements.origins() == {"numpy>=2": None, "Six": "namespaces"}
    assert requirements.list() == ["numpy>=2", "Six"]
    assert "py-code-mode deps approve Six" in written(store)
    assert requirements.approve("six")
    assert written(store) == "numpy>=2\nSix\n"
    assert not requirements.approve("six")


def test_only_what_is_there_can_be_approved(requirements: Requirements) -> None:
    with pytest.raises(InvalidRequirement, match="not among the requirements"):
        requirements.approve("six")


def test_sandboxed_code_does_not_take_over_what_its_user_wrote(
    requirements: Requirements, store: Store
) -> None:
    store.write(FILE, b"six>=1  # for old code\r\n")
    assert not requirements.add("six", origin="namespaces")
    assert not requirements.add("six>=1", origin="namespaces")
    assert written(store) == "six>=1  # for old code\r\n"
    assert requirements.add("six==1.0", origin="landlock")
    assert requirements.origins() == {"six==1.0": "landlock"}
    assert written(store).startswith("six==1.0  # for old code  # py-code-mode: added by")
    assert written(store).endswith("\r\n")
    requirements.approve("six")
    assert written(store) == "six==1.0  # for old code\r\n"


def test_sandboxed_code_cannot_take_its_mark_away(requirements: Requirements) -> None:
    for text in ("six==1.0", "six", "six==1.0", "six>=1"):
        requirements.add(text, origin="namespaces")
        assert None not in requirements.origins().values()
    requirements.remove("six")
    requirements.add("six", origin="namespaces")
    assert requirements.origins() == {"six": "namespaces"}


@pytest.mark.parametrize("asked", ["six", "six==1.0", "six>=1"])
def test_what_the_user_asks_for_is_the_users_as_they_wrote_it(
    requirements: Requirements, store: Store, asked: str
) -> None:
    requirements.add("six==1.0", origin="namespaces")
    assert requirements.add(asked)
    assert written(store) == f"{asked}\n"


@pytest.mark.parametrize(
    ("comment", "origin"),
    [
        ("# py-code-mode: added by sandboxed code (container)", "container"),
        ("# mine # py-code-mode: added by sandboxed code (no word)", "unknown"),
        ("# py-code-mode: added by sandboxed code", "unknown"),
        ("# added by me", None),
    ],
)
def test_marks_are_read_as_they_stand(
    requirements: Requirements, store: Store, comment: str, origin: str | None
) -> None:
    store.write(FILE, f"six \\\n  >=1 {comment}\n".encode())
    assert requirements.origins() == {"six>=1": origin}
    assert requirements.approve("six") is (origin is not None)
    assert requirements.origins() == {"six>=1": None}


def test_what_is_written_twice_is_the_users(requirements: Requirements, store: Store) -> None:
    store.write(FILE, b"six # py-code-mode: added by sandboxed code (namespaces)\nsix\n")
    assert requirements.origins() == {"six": None}
