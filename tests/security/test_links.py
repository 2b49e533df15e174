"""What is granted to one session and lies where another may write: a link in its place."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.errors import ConfigError, ConfinementFailed
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.guest import walls
from py_code_mode.sandbox.policy import Policy
from py_code_mode.sandbox.view import view_of
from py_code_mode.session import Session
from py_code_mode.storage import MemoryStorage

from ..session_executors import require

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.sandbox.probe import Backend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes are Linux's")


@pytest.fixture(params=("namespaces", "bubblewrap", "landlock"))
def backend(request: pytest.FixtureRequest) -> Backend:
    asked: Backend = request.param
    require(asked)
    return asked


def _session(backend: Backend, **allowed: Any) -> Session:
    config = SubprocessConfig(backend=backend, policy=Policy(**allowed))
    return Session(MemoryStorage(), SubprocessExecutor(config))


@pytest.mark.anyio
@pytest.mark.parametrize("granted", ["data", "data/deep", "data/file"])
async def test_a_link_that_a_session_leaves_grants_nothing_to_another(
    backend: Backend, tmp_path: Path, granted: str
) -> None:
    """It had been followed: whoever could write above a granted path chose what was granted."""
    shared, secret = tmp_path / "shared", tmp_path / "secret"
    for folder in (shared / "data" / "deep", secret / "deep"):
        folder.mkdir(parents=True)
        (folder / "in").write_text("in it")
    for folder in (shared / "data", secret):
        (folder / "file").write_text(str(folder))
    other = _session(backend, read=[shared / granted])
    async with _session(backend, write=[shared]) as session:
        code = f"import os\nos.chdir('{shared}')\nos.rename('data', 'old')\n"
        swapped = await session.run(f"{code}os.symlink('{secret}', 'data')\nsorted(os.listdir())")
        assert swapped.value == ["data", "old"], swapped.error
    with pytest.raises(ConfigError, match="became a link"):
        await other.start()


def test_a_link_that_comes_after_the_look_is_not_followed(tmp_path: Path) -> None:
    real = tmp_path.resolve() / "real"
    (real / "deep").mkdir(parents=True)
    view = view_of([], Policy(read=[real / "deep"]))
    real.rename(real.with_name("moved"))
    real.symlink_to("moved")
    (source,) = (source for source, _, _ in view.trees if source.startswith(str(real)))
    with pytest.raises(ConfinementFailed, match="symbolic link"):
        walls.open_tree(source)
