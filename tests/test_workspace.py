"""Finding and reading a workspace's configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import ConfigError
from py_code_mode.workspace import WorkspaceConfig, find_workspace, read_config

if TYPE_CHECKING:
    from pathlib import Path


def test_nearest_workspace_is_found_from_a_folder_below(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / ".code-mode").mkdir()
    assert find_workspace(deep) == tmp_path / ".code-mode"
    (tmp_path / "a" / ".code-mode").mkdir()
    assert find_workspace(deep) == tmp_path / "a" / ".code-mode"
    (deep / ".code-mode").write_text("a file is no workspace")
    assert find_workspace(deep) == tmp_path / "a" / ".code-mode"


def test_missing_or_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_config(tmp_path) == WorkspaceConfig()
    assert read_config(tmp_path / "missing") == WorkspaceConfig()
    (tmp_path / "config.yaml").write_text("")
    assert read_config(tmp_path) == WorkspaceConfig()


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("timeout: 60", WorkspaceConfig(timeout=60.0)),
        ("timeout: 0.5", WorkspaceConfig(timeout=0.5)),
        ("timeout: null", WorkspaceConfig(timeout=math.inf)),
        ("executor: subprocess", WorkspaceConfig(executor="subprocess")),
    ],
)
def test_settings_are_read(tmp_path: Path, text: str, config: WorkspaceConfig) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path) == config


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
