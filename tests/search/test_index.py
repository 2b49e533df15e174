from __future__ import annotations

import threading

import pytest

from py_code_mode.search import FullText, Index, Overlap

TOOLS = [
    ("curl", "Make HTTP requests to a URL"),
    ("fetch_json", "Fetch and parse JSON"),
    ("gh", "The GitHub client: issues, pull requests"),
    ("resizeImage", "Make an image smaller"),
    ("requests", "Count what was asked for"),
]


@pytest.fixture(params=["full text", "overlap"])
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Index:
    if request.param == "overlap":
        monkeypatch.setattr(FullText, "is_available", staticmethod(lambda: False))
    elif not FullText.is_available():
        pytest.skip("this Python's SQLite has no FTS5")
    return Index(TOOLS)


def test_the_best_match_comes_first(index: Index) -> None:
    assert index.search("parse json", 10)[0] == "fetch_json"
    assert index.search("smaller image", 10) == ["resizeImage"]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("curl", "curl"),
        ("fetch_json", "fetch_json"),
        ("Fetch JSON", "fetch_json"),
        ("requests", "requests"),
        ("resizeImage", "resizeImage"),
    ],
)
def test_an_exact_name_comes_first(index: Index, query: str, name: str) -> None:
    assert index.search(query, 1) == [name]


@pytest.mark.parametrize("query", ["", "   ", "\"'()*:^-", "\0", "_"])
def test_a_query_without_words_finds_nothing(index: Index, query: str) -> None:
    assert index.search(query, 10) == []


@pytest.mark.parametrize(
    "query",
    [
        "json AND (",
        'json"',
        "json*",
        "text:json",
        "NEAR(json, 3)",
        "NOT json",
        "\udc80 json",
        "json\0",
    ],
)
def test_a_query_is_never_syntax(index: Index, query: str) -> None:
    assert "fetch_json" in index.search(query, 10)


def test_names_are_found_by_their_parts(index: Index) -> None:
    assert index.search("fetch", 10) == ["fetch_json"]
    assert index.search("resize", 10) == ["resizeImage"]


def test_a_word_with_capitals_inside_is_found_in_lower_case(index: Index) -> None:
    assert index.search("github", 10) == ["gh"]


def test_no_word_is_too_common_to_be_searched_for(index: Index) -> None:
    assert "fetch_json" in index.search("and", 10)


@pytest.mark.skipif(not FullText.is_available(), reason="this Python's SQLite has no FTS5")
def test_words_match_by_their_stem() -> None:
    assert Index(TOOLS).search("requesting", 10)[:1] != []
    assert Index(TOOLS).search("parsing", 10) == ["fetch_json"]


def test_the_limit_holds(index: Index) -> None:
    assert len(index.search("requests image json", 2)) == 2
    assert index.search("json", 0) == []
    assert index.search("json", -1) == []


def test_documents_with_odd_text_are_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [("odd", "a\0b \udc80 needle"), ("café", "naïve")]
    assert Index(documents).search("needle", 5) == ["odd"]
    assert Index(documents).search("cafe\u0301", 5) == ["café"]
    assert Overlap(documents).rank(["naïve"]) == [1]


def test_a_very_long_query_is_searched_by_its_first_words(index: Index) -> None:
    assert index.search("json " + " ".join(f"word{n}" for n in range(50_000)), 5) == ["fetch_json"]


def test_an_empty_index_finds_nothing() -> None:
    assert Index([]).search("json", 5) == []


def test_threads_may_search_one_index() -> None:
    index = Index([(f"tool_{n}", f"does job number{n}") for n in range(50)])
    wrong: list[str] = []

    def search(n: int) -> None:
        wrong.extend(
            str(n) for _ in range(50) if index.search(f"number{n}", 5)[:1] != [f"tool_{n}"]
        )

    threads = [threading.Thread(target=search, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert wrong == []
