"""Runs one module of the interpreter's own `test` package and tells how each test ended.

The text of this file is the code that is compared: the source of a cell, of ``python -c``, of a
thread. So it needs the standard library only, and knows nothing of sessions.
"""

import io
import sys
import unittest
from typing import Any


class Outcomes(unittest.TestResult):
    """How each test ended, by its id: ok, fail, error, skip, expected, unexpected."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def note(self, test: Any, outcome: str, error: Any = None) -> None:
        name = test.id()
        # a failed subtest, or a failed clean-up, outweighs what came before
        if self.outcomes.get(name) not in ("fail", "error"):
            self.outcomes[name] = outcome
        if error is not None:
            self.details.setdefault(name, self._exc_info_to_string(error, test)[-3000:])  # type: ignore[attr-defined]

    def addSuccess(self, test: Any) -> None:
        self.note(test, "ok")

    def addFailure(self, test: Any, err: Any) -> None:
        self.note(test, "fail", err)

    def addError(self, test: Any, err: Any) -> None:
        self.note(test, "error", err)

    def addSkip(self, test: Any, reason: str) -> None:
        self.note(test, "skip")
        self.details.setdefault(test.id(), reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self.note(test, "expected")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.note(test, "unexpected")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.note(test, "fail" if issubclass(err[0], test.failureException) else "error", err)


def run_module(name: str, left_out: "tuple[str, ...]" = ()) -> "dict[str, dict[str, str]]":
    """Load ``test.<name>`` and run it quietly; skip the tests with an id in `left_out`."""
    import test.support as support

    support.use_resources = []  # no network, no audio, nothing that fills the disk
    support.verbose = 0
    suite = unittest.TestSuite()
    loaded = unittest.TestLoader().loadTestsFromName(f"test.{name}")

    def keep(tests: Any) -> None:
        for test in tests:
            if isinstance(test, unittest.TestSuite):
                keep(test)
            elif not test.id().startswith(left_out or "/"):
                suite.addTest(test)

    keep(loaded)
    result = Outcomes()
    # what tests print is not part of the outcome, but goes where prints go here
    suite.run(result)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.IOBase):
            stream.flush()
    return {"outcomes": result.outcomes, "details": result.details}
