"""Packages that one session adds, and what happens when adding goes wrong."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import pytest
import uv

from py_code_mode.environments import (
    Environment,
    EnvironmentSpec,
    Overlay,
    host_environment,
    realise,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.environments.conftest import FakeUv, StuckUv, Wheels

pytestmark = pytest.mark.anyio


@pytest.fixture
async def base(wheels: Wheels) -> Environment:
    """An environment that has `base-lib` 1.0; the index also has 2.0."""
    wheels.add("base-lib", "1.0", extras={"plot": "plotter>=1", "loop": "base-lib[loop]"})
    environment = await realise(EnvironmentSpec(packages=("base-lib",)))
    wheels.add("base-lib", "2.0")
    wheels.add("plotter", "1.5")
    wheels.add("simple", "1.0")
    wheels.add("simple", "2.0", files={"simple/new.py": "x = 1\n"})
    wheels.add("needs-base", "1.0", requires=["base-lib", "simple"])
    wheels.add("needs-new-base", "1.0", requires=["base-lib>=2"])
    return environment


@pytest.fixture
def overlay(base: Environment, tmp_path: Path) -> Overlay:
    return Overlay(tmp_path / "overlay", base)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stamps(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())


def nothing_beside(overlay: Overlay) -> bool:
    return not list(overlay.folder.parent.glob(f".{overlay.folder.name}.*"))


def say(overlay: Overlay, code: str) -> str:
    start = f"import sys; sys.path.append({str(overlay.folder)!r}); {code}"
    said = subprocess.run(
        [overlay.environment.python, "-I", "-c", start],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return said.stdout.strip()


async def test_added_package_can_be_imported(overlay: Overlay) -> None:
    report = await overlay.install(["simple"])
    assert report == {
        "installed": ["simple"],
        "already_present": [],
        "failed": [],
        "errors": {},
    }
    assert say(overlay, "import simple; print(simple.version)") == "2.0"
    assert overlay.list() == [("simple", "2.0")]
    assert nothing_beside(overlay)


async def test_base_is_neither_altered_nor_copied(overlay: Overlay, base: Environment) -> None:
    assert base.folder is not None
    before = contents(base.folder)
    report = await overlay.install(["needs-base"])
    assert report["installed"] == ["needs-base"]
    assert overlay.list() == [("needs-base", "1.0"), ("simple", "2.0")]
    assert contents(base.folder) == before


async def test_version_of_the_base_binds(overlay: Overlay) -> None:
    report = await overlay.install(["needs-new-base", "base-lib>=2"])
    assert report["failed"] == ["needs-new-base", "base-lib>=2"]
    assert "base-lib" in report["errors"]["needs-new-base"]
    assert overlay.list() == []
    assert nothing_beside(overlay)


@pytest.mark.parametrize(
    "text", ["base-lib", "Base_Lib", "base-lib>=1,<2", "base-lib==1.0", "base-lib[loop]"]
)
async def test_what_the_base_has_is_present_without_running_uv(
    text: str, overlay: Overlay, logged_uv: FakeUv
) -> None:
    report = await overlay.install([text])
    assert report["already_present"] == [text]
    assert logged_uv.calls() == []


async def test_missing_extra_of_a_present_package_is_installed(overlay: Overlay) -> None:
    report = await overlay.install(["base-lib[plot]"])
    assert report["installed"] == ["base-lib[plot]"]
    assert overlay.list() == [("plotter", "1.5")]
    again = await overlay.install(["base-lib[plot]"])
    assert again["already_present"] == ["base-lib[plot]"]


async def test_one_failure_does_not_stop_the_others(overlay: Overlay) -> None:
    asked = ["no-such-package", "simple==1.0", "base-lib", "--pre", "plotter", "two words"]
    report = await overlay.install(asked)
    assert report["installed"] == ["simple==1.0", "plotter"]
    assert report["already_present"] == ["base-lib"]
    assert report["failed"] == ["no-such-package", "--pre", "two words"]
    assert set(report["errors"]) == set(report["failed"])
    assert "no-such-package" in report["errors"]["no-such-package"]
    assert overlay.list() == [("plotter", "1.5"), ("simple", "1.0")]


@pytest.mark.parametrize(
    "text",
    ["--index-url=http://h", "-e.", "simple @ file:///x", "simple; python_version>'3'", "/etc", ""],
)
async def test_what_is_no_plain_requirement_never_reaches_uv(
    text: str, overlay: Overlay, logged_uv: FakeUv
) -> None:
    report = await overlay.install([text])
    assert report["failed"] == [text]
    assert report["errors"][text]
    assert logged_uv.calls() == []


async def test_requirements_follow_the_end_of_options(overlay: Overlay, logged_uv: FakeUv) -> None:
    await overlay.install(["simple"])
    for call in logged_uv.calls():
        options, _, operands = call.partition(" -- ")
        assert operands.startswith("simple"), call
        assert "--only-binary :all:" in options


async def test_other_version_replaces_the_one_there(overlay: Overlay) -> None:
    await overlay.install(["simple==2.0"])
    assert (overlay.folder / "simple" / "new.py").exists()
    report = await overlay.install(["simple==1.0"])
    assert report["installed"] == ["simple==1.0"]
    assert overlay.list() == [("simple", "1.0")]
    assert not (overlay.folder / "simple" / "new.py").exists()
    assert say(overlay, "import simple; print(simple.version)") == "1.0"


async def test_package_there_stays_as_it_is_when_another_needs_it(overlay: Overlay) -> None:
    await overlay.install(["simple==1.0"])
    await overlay.install(["needs-base"])
    assert ("simple", "1.0") in overlay.list()


async def test_packages_may_share_a_folder(overlay: Overlay, wheels: Wheels) -> None:
    wheels.add("part-one", files={"shared/one.py": "x = 1\n"})
    wheels.add("part-two", files={"shared/two.py": "x = 2\n"})
    await overlay.install(["part-one"])
    await overlay.install(["part-two"])
    assert say(overlay, "import shared.one, shared.two; print(shared.two.x)") == "2"
    await overlay.remove("part-one")
    assert await overlay.apply_removals() == ["part-one"]
    assert sorted(path.name for path in (overlay.folder / "shared").glob("*.py")) == ["two.py"]


async def test_package_without_a_wheel_is_refused_unless_builds_are_allowed(
    overlay: Overlay, wheels: Wheels
) -> None:
    import io
    import tarfile

    with tarfile.open(wheels.folder / "sourced-1.0.tar.gz", "w:gz") as archive:
        for name, text in {
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "make"\n'
            'backend-path = ["."]\n[project]\nname = "sourced"\nversion = "1.0"\n',
            "PKG-INFO": "Metadata-Version: 2.1\nName: sourced\nVersion: 1.0\n",
            "make.py": SDIST_BACKEND,
        }.items():
            member = tarfile.TarInfo(f"sourced-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    report = await overlay.install(["sourced"])
    assert report["failed"] == ["sourced"]
    assert overlay.list() == []
    built = await overlay.install(["sourced"], allow_builds=True)
    assert built["installed"] == ["sourced"], built["errors"]
    assert say(overlay, "import sourced; print(sourced.x)") == "1"


SDIST_BACKEND = """
import os, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "sourced-1.0-py3-none-any.whl"
    info = "sourced-1.0.dist-info"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("sourced.py", "x = 1\\n")
        text = "Metadata-Version: 2.1\\nName: sourced\\nVersion: 1.0\\n"
        wheel.writestr(info + "/METADATA", text)
        wheel.writestr(
            info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        )
        wheel.writestr(info + "/RECORD", "")
    return name
"""


# --- removing -----------------------------------------------------------------------------------


async def test_removal_waits_for_reset(overlay: Overlay) -> None:
    await overlay.install(["simple", "plotter"])
    report = await overlay.remove("Simple")
    assert report == {"removed": ["Simple"], "not_found": [], "failed": [], "errors": {}}
    assert overlay.list() == [("plotter", "1.5")]
    assert say(overlay, "import simple; print(simple.version)") == "2.0"
    assert await overlay.apply_removals() == ["simple"]
    assert [path.name for path in overlay.folder.iterdir() if "simple" in path.name] == []
    assert overlay.list() == [("plotter", "1.5")]
    assert await overlay.apply_removals() == []
    assert nothing_beside(overlay)


async def test_removal_of_what_is_not_there_is_said(overlay: Overlay) -> None:
    await overlay.install(["simple"])
    assert (await overlay.remove("plotter"))["not_found"] == ["plotter"]
    assert (await overlay.remove("base-lib"))["failed"] == ["base-lib"]
    assert (await overlay.remove("--all"))["failed"] == ["--all"]
    assert (await overlay.remove("simple"))["removed"] == ["simple"]
    assert (await overlay.remove("simple"))["not_found"] == ["simple"]


async def test_package_added_again_before_reset_stays(overlay: Overlay) -> None:
    await overlay.install(["simple"])
    await overlay.remove("simple")
    assert (await overlay.install(["simple"]))["installed"] == ["simple"]
    assert await overlay.apply_removals() == []
    assert overlay.list() == [("simple", "2.0")]


async def test_what_is_marked_comes_back_when_another_needs_it(overlay: Overlay) -> None:
    await overlay.install(["simple"])
    await overlay.remove("simple")
    await overlay.install(["needs-base"])
    assert await overlay.apply_removals() == []
    assert overlay.list() == [("needs-base", "1.0"), ("simple", "2.0")]


async def test_removal_that_fails_removes_nothing(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    from py_code_mode.errors import EnvironmentFailed

    await overlay.install(["simple", "plotter"])
    await overlay.remove("simple")
    await overlay.remove("plotter")
    before = contents(overlay.folder)
    real, done = os.replace, 0

    def failing(source: Path, target: Path) -> None:
        nonlocal done
        done += 1
        if done == 9:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(EnvironmentFailed, match="No space left"):
        await overlay.apply_removals()
    monkeypatch.setattr(os, "replace", real)
    assert contents(overlay.folder) == before
    assert await overlay.apply_removals() == ["plotter", "simple"]


async def test_installation_that_fails_half_way_changes_nothing(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    await overlay.install(["simple==1.0"])
    before = contents(overlay.folder)
    real, done = os.replace, 0

    def failing(source: Path, target: Path) -> None:
        nonlocal done
        done += 1
        if done == 12:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    report = await overlay.install(["simple==2.0"])
    assert "No space left" in report["errors"]["simple==2.0"]
    assert contents(overlay.folder) == before
    assert nothing_beside(overlay)


async def test_record_cannot_lead_out_of_the_folder(overlay: Overlay, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_text("keep")
    await overlay.install(["simple"])
    record = overlay.folder / "simple-2.0.dist-info" / "RECORD"
    record.write_text(f"../precious,,\n{outside},,\n.,,\n{record.read_text()}")
    await overlay.remove("simple")
    await overlay.apply_removals()
    assert outside.read_text() == "keep"
    assert overlay.list() == []


# --- cancellation, network ----------------------------------------------------------------------


async def test_cancelled_installation_changes_nothing(
    overlay: Overlay, stuck_uv: StuckUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = uv.find_uv_bin
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(stuck_uv.program))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(overlay.install, ["simple"])
            await anyio.to_thread.run_sync(stuck_uv.wait_until_stuck)
            group.cancel_scope.cancel()
    assert overlay.list() == []
    assert nothing_beside(overlay)
    monkeypatch.setattr(uv, "find_uv_bin", real)
    assert (await overlay.install(["simple"]))["installed"] == ["simple"]


async def test_cancellation_at_any_moment_leaves_whole_packages(overlay: Overlay) -> None:
    for step in range(14):
        with anyio.move_on_after(step * 0.015):
            await overlay.install(["needs-base"])
        assert nothing_beside(overlay)
        for name, version in overlay.list():
            stem = name.replace("-", "_")
            assert say(overlay, f"import {stem}; print({stem}.version)") == version
            await overlay.remove(name)
        await overlay.apply_removals()


async def test_installations_at_the_same_time_all_hold(overlay: Overlay) -> None:
    async with anyio.create_task_group() as group:
        for name in ("simple", "plotter", "needs-base", "simple"):
            group.start_soon(overlay.install, [name])
    assert [name for name, _ in overlay.list()] == ["needs-base", "plotter", "simple"]


async def test_unreachable_index_fails_all_at_once(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch, logged_uv: FakeUv, tmp_path: Path
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    asked = ["no-such-one", "no-such-two", "no-such-three"]
    report = await overlay.install(asked)
    assert report["failed"] == asked
    assert "cannot be reached" in report["errors"]["no-such-two"]
    assert len(logged_uv.calls()) == 2


# --- in this process ----------------------------------------------------------------------------


async def test_host_environment_is_never_altered(
    wheels: Wheels, tmp_path: Path, logged_uv: FakeUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.add("simple", "2.0")
    wheels.add("uses-anyio", "1.0", requires=["anyio>=1", "simple"])
    wheels.add("wants-other-anyio", "1.0", requires=["anyio<1"])
    before = stamps(host_environment().site_packages)
    overlay = Overlay(tmp_path / "overlay", host_environment())
    present = await overlay.install(["anyio"])
    assert present["already_present"] == ["anyio"]
    assert logged_uv.calls() == []
    report = await overlay.install(["uses-anyio", "wants-other-anyio"])
    assert report["installed"] == ["uses-anyio"]
    assert report["failed"] == ["wants-other-anyio"]
    assert overlay.list() == [("simple", "2.0"), ("uses-anyio", "1.0")]
    assert stamps(host_environment().site_packages) == before
    monkeypatch.setattr(sys, "path", [*sys.path, str(overlay.folder)])
    # The overlay itself on sys.path does not make its packages the host's.
    again = Overlay(overlay.folder, host_environment())
    assert (await again.remove("simple"))["removed"] == ["simple"]
    assert importlib.metadata.version("simple") == "2.0"


async def test_package_only_this_process_can_see_is_not_installed_again(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in on PYTHONPATH, of a version that no index has."""
    info = tmp_path / "plugins" / "plugin_lib-7.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-lib\nVersion: 7\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(info.parent)])
    wheels.add("uses-plugin", requires=["plugin-lib>=5"])
    overlay = Overlay(tmp_path / "overlay", host_environment())
    report = await overlay.install(["uses-plugin", "plugin-lib"])
    assert report["installed"] == ["uses-plugin"], report["errors"]
    assert report["already_present"] == ["plugin-lib"]
    assert overlay.list() == [("uses-plugin", "1.0")]


@pytest.mark.network
@pytest.mark.usefixtures("index")
async def test_real_package_keeps_the_base_as_it_is(tmp_path: Path) -> None:
    from py_code_mode.environments.uv import IndexUnreachable

    try:
        with anyio.fail_after(100):
            base = await realise(EnvironmentSpec(packages=("python-dateutil",)))
            overlay = Overlay(tmp_path / "overlay", base)
            report = await overlay.install(["tabulate", "pandas"])
    except (TimeoutError, IndexUnreachable) as error:
        pytest.skip(f"no package index: {type(error).__name__}")
    if any("the package index cannot be reached" in text for text in report["errors"].values()):
        pytest.skip("no package index any more")
    assert report["installed"] == ["tabulate", "pandas"], report["errors"]
    assert "python-dateutil" not in dict(overlay.list())
    assert say(overlay, "import pandas, tabulate; print('ok')") == "ok"
