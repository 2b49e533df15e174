"""Host patterns: what they mean, what they refuse, and how they compare."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.sandbox.hosts import DEFAULT_PORTS, HostPattern, is_allowed


def _matches(pattern: str, host: str, port: int = 443) -> bool:
    return HostPattern.parse(pattern).matches(host, port)


@pytest.mark.parametrize(
    ("pattern", "host", "port"),
    [
        ("api.github.com", "api.github.com", 443),
        ("api.github.com", "api.github.com", 80),
        ("API.GitHub.com.", "api.github.COM", 443),
        ("api.github.com", "api.github.com.", 443),
        ("*.wikipedia.org:443", "en.wikipedia.org", 443),
        ("*.wikipedia.org", "a.b.c.wikipedia.org", 443),
        ("localhost:8000", "localhost", 8000),
        ("db.internal:*", "db.internal", 5432),
        ("10.0.0.1:8080", "10.0.0.1", 8080),
        ("[::1]:443", "::1", 443),
        ("[::1]", "0:0:0:0:0:0:0:1", 443),
        ("2001:db8::1", "[2001:DB8::1]", 443),
        ("10.0.0.1", "::ffff:10.0.0.1", 443),
        ("bücher.example", "xn--bcher-kva.example", 443),
        ("xn--bcher-kva.example", "BÜCHER.example", 443),
        ("straße.de", "xn--strae-oqa.de", 443),
        ("*.bücher.example", "www.bücher.example", 443),
        ("_sip.example.org", "_sip.example.org", 443),
    ],
)
def test_what_a_pattern_means(pattern: str, host: str, port: int) -> None:
    assert _matches(pattern, host, port)


@pytest.mark.parametrize(
    ("pattern", "host", "port"),
    [
        ("api.github.com", "api.github.com", 22),
        ("api.github.com:443", "api.github.com", 80),
        ("api.github.com", "xapi.github.com", 443),
        ("api.github.com", "api.github.com.evil.org", 443),
        ("api.github.com", "evil.org/api.github.com", 443),
        ("api.github.com", "api.github.com\n", 443),
        ("api.github.com", "api.github.com\0.evil.org", 443),
        ("api.github.com", "api.github.com..", 443),
        ("api.github.com", "user@api.github.com", 443),
        ("api.github.com", "api.github.com:443", 443),
        ("api.github.com", "", 443),
        ("*.wikipedia.org", "wikipedia.org", 443),
        ("*.wikipedia.org", "xwikipedia.org", 443),
        ("*.wikipedia.org", ".wikipedia.org", 443),
        ("*.wikipedia.org", "a..wikipedia.org", 443),
        ("*.wikipedia.org", "en.wikipedia.org.evil.org", 443),
        ("*.wikipedia.org", "*.wikipedia.org", 443),
        ("10.0.0.1", "10.0.0.1.evil.org", 443),
        ("127.0.0.1", "127.1", 443),
        ("127.0.0.1", "0x7f.0.0.1", 443),
        ("127.0.0.1", "0177.0.0.1", 443),
        ("127.0.0.1", "2130706433", 443),
        ("127.0.0.1", "１２７.0.0.1", 443),
        ("127.0.0.1", "localhost", 443),
        ("[fe80::1]", "fe80::1%eth0", 443),
        ("straße.de", "strasse.de", 443),
        ("bücher.example", "bucher.example", 443),
        ("a.example", "a。evil.example", 443),
    ],
)
def test_what_a_pattern_does_not_mean(pattern: str, host: str, port: int) -> None:
    assert not _matches(pattern, host, port)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://example.org", "host only"),
        ("example.org/path", "host only"),
        ("user@example.org", "user name"),
        ("*", "network: open"),
        ("*.org", "top-level"),
        ("*example.org", "whole labels"),
        ("a.*.example.org", "not a host name"),
        ("*.*.example.org", "whole labels"),
        ("*.10.0.0.1", "addresses"),
        ("", "not a host name"),
        (".", "not a host name"),
        ("-a.example", "not a host name"),
        ("a b.example", "not a host name"),
        ("example.org:0", "port"),
        ("example.org:65536", "port"),
        ("example.org:http", "port"),
        ("example.org:", "port"),
        ("example.org:４４３", "port"),
        ("[::1", "IPv6"),
        ("[::1]443", "IPv6"),
        ("[example.org]:443", "IPv6"),
        ("127.1", "plain form"),
        ("0x7f000001", "plain form"),
        ("xn--a.example", "not a host name"),
        ("a" * 64 + ".example", "not a host name"),
        (".".join(["a" * 60] * 5), "not a host name"),
        ("fe80::1%eth0", "not a host name"),
    ],
)
def test_what_is_no_pattern_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HostPattern.parse(text)


@pytest.mark.parametrize(
    "text", ["a.example", "*.a.example:443", "a.example:*", "[::1]", "[::1]:8080", "10.0.0.1:80"]
)
def test_a_pattern_is_written_as_it_is_read(text: str) -> None:
    assert str(HostPattern.parse(text)) == text
    assert HostPattern.parse(str(HostPattern.parse(text))) == HostPattern.parse(text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.example", "a.example", "a.example"),
        ("a.example", "b.example", None),
        ("a.example:443", "a.example", "a.example:443"),
        ("a.example:443", "a.example:80", None),
        ("*.example.org", "a.example.org", "a.example.org"),
        ("*.example.org:443", "a.example.org", "a.example.org:443"),
        ("*.example.org", "example.org", None),
        ("*.example.org", "*.b.example.org", "*.b.example.org"),
        ("*.example.org", "*.example.com", None),
        ("*.a.example.org:*", "*.example.org:22", "*.a.example.org:22"),
        ("10.0.0.1:*", "10.0.0.1", "10.0.0.1"),
    ],
)
def test_what_two_patterns_have_in_common(one: str, other: str, expected: str | None) -> None:
    wanted = None if expected is None else HostPattern.parse(expected)
    assert HostPattern.parse(one).intersection(HostPattern.parse(other)) == wanted
    assert HostPattern.parse(other).intersection(HostPattern.parse(one)) == wanted


_names = st.sampled_from(["x.org", "a.x.org", "b.a.x.org", "y.org", "10.0.0.1"])
_patterns = st.builds(
    HostPattern,
    host=_names,
    is_wildcard=st.booleans(),
    ports=st.sampled_from([None, DEFAULT_PORTS, frozenset({443}), frozenset({22, 443})]),
).filter(lambda pattern: not (pattern.is_wildcard and pattern.host[0] == "1"))


@given(_patterns, _patterns, _names, st.sampled_from([22, 80, 443, 5432]))
def test_an_intersection_means_what_both_mean(
    one: HostPattern, other: HostPattern, host: str, port: int
) -> None:
    both = one.intersection(other)
    meant = both is not None and both.matches(host, port)
    assert meant == (one.matches(host, port) and other.matches(host, port))
    if one.covers(other):
        assert not other.matches(host, port) or one.matches(host, port)


def test_one_pattern_of_many_is_enough() -> None:
    patterns = [HostPattern.parse(text) for text in ("a.example", "*.b.example:8443")]
    assert is_allowed(patterns, "x.b.example", 8443)
    assert not is_allowed(patterns, "x.b.example", 443)
    assert not is_allowed([], "a.example", 443)
