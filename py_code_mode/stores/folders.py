"""Folders that others have written to, and how to be rid of them."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def remove_tree(folder: Path) -> bool:
    """Remove a folder, also where its owner has taken rights from himself; False if it stays.

    Links are removed, not followed. Blocking.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        _give_rights(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return not os.path.lexists(folder)


def _give_rights(folder: Path) -> None:
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                continue
            os.chmod(path, 0o700)
            with os.scandir(path) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # gone meanwhile, or another's: rmtree does what it can
