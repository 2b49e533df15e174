"""Syncs files that promise it soon, so that many lines share one sync."""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol

__all__ = ["GROUP_WINDOW", "Syncable", "sync_later"]

#: Seconds until a sync begins at the latest, where many lines share one.
GROUP_WINDOW = 0.05
_WINDOW = 0.8 * GROUP_WINDOW  # the rest is for the syncs of others


class Syncable(Protocol):
    """What promises a sync soon."""

    def sync_soon(self) -> None:
        """Never raises: an error is kept for the next one who writes."""


def sync_later(log: Syncable) -> None:
    """Have ``log.sync_soon()`` called once, by the thread that syncs, within `GROUP_WINDOW`."""
    _syncer.request(log)


class _Syncer:
    """Syncs the logs that promise it soon, all in one thread, which ends when it has no work."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[Syncable] = []
        self._is_running = False

    def request(self, log: Syncable) -> None:
        with self._changed:
            self._due.append(log)
            if self._is_running:
                self._changed.notify()
                return
            self._is_running = True
        try:
            threading.Thread(target=self._run, name="log sync", daemon=True).start()
        except RuntimeError:  # the interpreter is ending, or there is no thread to be had
            self._is_running = False
            self._sync_all()

    def _run(self) -> None:
        while True:
            time.sleep(_WINDOW)
            self._sync_all()
            with self._changed:
                if not self._due and not self._changed.wait_for(lambda: self._due, GROUP_WINDOW):
                    self._is_running = False
                    return

    def _sync_all(self) -> None:
        with self._changed:
            due, self._due = self._due, []
        for log in due:
            log.sync_soon()


_syncer = _Syncer()


def _after_fork() -> None:
    global _syncer
    _syncer = _Syncer()  # the thread stays with the parent


os.register_at_fork(after_in_child=_after_fork)
