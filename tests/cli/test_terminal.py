"""What a guest's text becomes before a terminal gets it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.cli.terminal import Screen, complain, printable, say, show_source, show_table

SAFE = {"\n", "\t"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b[38;5;8mgrey", "\x1b[38;5;8mgrey"),
        ("\x1b[38;2;8;8;8mgrey", "\x1b[38;2;8;8;8mgrey"),
        ("\x1b[8mhidden", "\\x1b[8mhidden"),
        ("\x1b[0;08mhidden", "\\x1b[0;08mhidden"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("over\rwritten", "over\\x0dwritten"),
        ("line\r\n", "line\n"),
        ("a\x08b\x7f", "a\\x08b\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("naïve 漢字 🙂", "naïve 漢字 🙂"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3", "👨\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("pay\u200bpal pay\u200dpal", "pay\\u200bpal pay\\u200dpal"),
        ("a\u2060b\ufeffc\xadd", "a\\u2060b\\ufeffc\\xadd"),
        ("\u200fabc\u061c\u2067", "\\u200fabc\\u061c\\u2067"),
        ("a\U000e0041\U000e0042", "a\\U000e0041\\U000e0042"),
        ("a\ufe01b\U000e0100", "a\\ufe01b\\U000e0100"),
        ("lone \udc80", "lone \\udc80"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x1b]8;;http://x\x1b\\y", "\\x1b]8;;http://x\\x1b\\y"),
        ("\x1bP+q544e\x1b\\", "\\x1bP+q544e\\x1b\\"),
        ("\x9d52;c;x\x9c\x90\x98", "\\x9d52;c;x\\x9c\\x90\\x98"),
        ("\x1b[?1049h\x1bc\x1b(0\x05", "\\x1b[?1049h\\x1bc\\x1b(0\\x05"),
        ("\x1b[38;8mhidden", "\\x1b[38;8mhidden"),
        ("\x1b[8:1mhidden", "\\x1b[8:1mhidden"),
        ("\x1b[38;05;08mgrey", "\x1b[38;05;08mgrey"),
    ],
)
def test_colours_stay_and_the_rest_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_colours_can_be_left_out() -> None:
    assert printable("\x1b[1;31mred\x1b[0m", colours=False) == "red"


@given(st.text(alphabet=st.sampled_from("\x1b[]0;8m\r\n\t\x07\x9bab")))
def test_nothing_but_colours_is_left(text: str) -> None:
    shown = printable(text, colours=False)
    assert all(char.isprintable() or char in SAFE for char in shown)


class Terminal(io.StringIO):
    """A terminal that is no descriptor."""

    def isatty(self) -> bool:
        return True


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_pieces_give_the_same_as_the_whole(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text = "a\x1b[31mred\x1b[0m b\r\nc\x1b[2Jd\r"
    terminal = Terminal()
    screen = Screen(terminal)
    for at in range(0, len(text), size):
        await screen.write(text[at : at + size])
    await screen.finish()
    assert terminal.getvalue() == printable(text) + "\x1b[0m"


def test_no_line_of_code_can_be_painted_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal, file = Terminal(), io.StringIO()
    source = "# \x1b[30;40m\nimport os\r# \x1b[2K\n"
    show_source(source, terminal)
    assert terminal.getvalue() == "# \\x1b[30;40m\nimport os\\x0d# \\x1b[2K\n"
    show_source(source, file)
    assert file.getvalue() == source


HOSTILE = "\x1b]0;title\x07\u202e\x9b2J\rname\x1b[31m"


def test_lines_of_ours_have_no_controls_where_they_are_piped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say(f"saved {HOSTILE}")
    complain(f"artifact {HOSTILE}: gone")
    show_table(("name",), [[HOSTILE], [f"two\nlines\t{HOSTILE}"]], "none")
    show_table(("name",), [], f"nothing in {HOSTILE}")
    told = capsys.readouterr()
    for line in (told.out + told.err).splitlines():
        assert line.isprintable()
