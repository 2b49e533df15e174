"""Tests that end differently in a session, each with its reason."""

from __future__ import annotations

#: (way, id of the test) and why it may differ.
DIFFERENT: dict[tuple[str, str], str] = {}

#: By module, tests that are not run: the plain way, how their ids begin, and the reason.
LEFT_OUT: dict[str, tuple[tuple[str, str, str], ...]] = {}
