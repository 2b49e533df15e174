"""Which of the configured packages a session installs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.deps import Requirements
from py_code_mode.deps.dependencies import Dependencies
from py_code_mode.environments.base import host_environment
from py_code_mode.environments.overlay import Overlay
from py_code_mode.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio


class Installed(Overlay):
    """Remembers what it was to install."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, host_environment())
        self.asked: list[str] = []

    async def install(self, requirements: Sequence[str], *, allow_builds: bool = False) -> Any:
        self.asked += requirements
        return {"installed": [*requirements], "already_present": [], "failed": [], "errors": {}}


@pytest.fixture
def overlay(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


@pytest.fixture
def requirements() -> Requirements:
    made = Requirements(MemoryStore())
    made.add("numpy")
    made.add("six==1.0", origin="namespaces")
    return made


@pytest.mark.parametrize("isolation", ["none", "in_process", "landlock", "some_plugin"])
async def test_what_sandboxed_code_added_is_not_installed_where_code_has_more_rights(
    requirements: Requirements, overlay: Installed, isolation: str
) -> None:
    """A sandboxed guest had chosen what an unsandboxed session imports the next time."""
    dependencies = Dependencies(requirements, overlay, isolation=isolation)
    report = await dependencies.sync()
    assert overlay.asked == ["numpy"]
    assert report["failed"] == ["six==1.0"]
    assert "py-code-mode deps approve six" in report["errors"]["six==1.0"]
    requirements.approve("six")
    assert (await dependencies.sync())["failed"] == []
    assert overlay.asked == ["numpy", "numpy", "six==1.0"]


@pytest.mark.parametrize("isolation", ["namespaces", "bubblewrap", None])
async def test_it_is_installed_where_code_has_no_more_rights(
    requirements: Requirements, overlay: Installed, isolation: str | None
) -> None:
    report = await Dependencies(requirements, overlay, isolation=isolation).sync()
    assert (overlay.asked, report["failed"]) == (["numpy", "six==1.0"], [])


async def test_what_the_session_was_given_needs_no_approval(
    requirements: Requirements, overlay: Installed
) -> None:
    dependencies = Dependencies(requirements, overlay, extra=["six==1.0"], isolation="none")
    assert (await dependencies.sync())["failed"] == []
    assert overlay.asked == ["numpy", "six==1.0"]


async def test_what_is_added_remembers_who_asked(overlay: Installed) -> None:
    requirements = Requirements(MemoryStore())
    dependencies = Dependencies(requirements, overlay, isolation="namespaces")
    await dependencies.add("six", origin="namespaces")
    await dependencies.add("rich")
    assert requirements.origins() == {"six": "namespaces", "rich": None}
