"""Folders are removed whatever rights are left on them."""

import stat
import subprocess
import sys
from pathlib import Path

from py_code_mode.stores.folders import remove_tree


def test_missing_folder_is_removed_already(tmp_path: Path) -> None:
    assert remove_tree(tmp_path / "none")


def test_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(outside)

    assert remove_tree(tmp_path / "tree")
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500


def test_rights_taken_away_do_not_keep_it() -> None:
    # root may remove anything, so somebody else has to try
    code = """
import os, tempfile
from pathlib import Path
from py_code_mode.stores.folders import remove_tree
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
tree = Path(tempfile.mkdtemp())
inner = tree / "a" / "b"
inner.mkdir(parents=True)
(inner / "file").touch()
inner.chmod(0o500)
(tree / "a").chmod(0)
assert remove_tree(tree), "it is still there"
"""
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert tried.returncode == 0, tried.stderr
