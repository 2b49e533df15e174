"""Environments are made once, whole or not at all, and then only looked up."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
import uv

from py_code_mode.environments import (
    DEFAULT_PACKAGES,
    Environment,
    EnvironmentSpec,
    cache_root,
    host_environment,
    realise,
)
from py_code_mode.environments.uv import IndexUnreachable
from py_code_mode.errors import ConfigError, EnvironmentFailed, InvalidRequirement

if TYPE_CHECKING:
    from tests.environments.conftest import FakeUv, StuckUv, Wheels

pytestmark = pytest.mark.anyio

SPEC = EnvironmentSpec(packages=("demo-a", "demo-b"))

# Another process that makes the environment, with the program of argv[1] in uv's place.
DRIVER = """
import json, sys, anyio, uv
from py_code_mode.environments import EnvironmentSpec, realise
uv.find_uv_bin = lambda: sys.argv[1]
found = anyio.run(realise, EnvironmentSpec(packages=("demo-a", "demo-b")))
print(json.dumps([found.key, dict(found.packages)]))
"""


@pytest.fixture(autouse=True)
def two_packages(wheels: Wheels) -> None:
    wheels.add("demo-a", "1.0")
    wheels.add("demo-b", "2.0", requires=["demo-a>=1"])


def start_driver(program: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def say(environment: Environment, code: str) -> str:
    said = subprocess.run(
        [environment.python, "-I", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return said.stdout.strip()


async def test_first_use_makes_what_was_asked() -> None:
    found = await realise(SPEC)
    assert say(found, "import demo_a, demo_b; print(demo_a.version, demo_b.version)") == "1.0 2.0"
    assert say(found, "import demo_a; print(demo_a.__file__)").startswith(str(found.site_packages))
    assert dict(found.packages) == {"demo-a": "1.0", "demo-b": "2.0"}
    assert found.version == sys.version_info[:3]
    assert found.folder is not None
    assert found.folder.parent == cache_root()
    assert json.loads((found.folder / "environment.json").read_text())["packages"] == dict(
        found.packages
    )
    assert list(found.site_packages.glob("demo_a/__pycache__/*.pyc")), "not compiled"


async def test_later_uses_do_not_run_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    first = await realise(SPEC)

    def refused() -> str:
        raise AssertionError("uv was run")

    monkeypatch.setattr(uv, "find_uv_bin", refused)
    assert await realise(SPEC) == first
    # Another order and another spelling of the same.
    assert await realise(EnvironmentSpec(packages=("demo-b", " demo-a "))) == first


async def test_second_use_in_a_process_takes_less_than_a_millisecond() -> None:
    first = await realise(SPEC)
    times: list[float] = []
    for _ in range(51):
        started = time.perf_counter()
        assert await realise(SPEC) is first
        times.append(time.perf_counter() - started)
    assert statistics.median(times) < 0.001


async def test_removed_environment_is_made_again() -> None:
    first = await realise(SPEC)
    assert first.folder is not None
    (first.folder / "environment.json").unlink()
    (first.site_packages / "demo_a" / "__init__.py").unlink()
    again = await realise(SPEC)
    assert say(again, "import demo_a; print(demo_a.version)") == "1.0"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}', '{"packages": 1}'])
async def test_damaged_record_counts_as_half_made(text: str) -> None:
    first = await realise(SPEC)
    assert first.folder is not None
    (first.folder / "environment.json").write_text(text)
    assert await realise(SPEC) == first


async def test_twenty_tasks_make_it_once(logged_uv: FakeUv) -> None:
    found: list[Environment] = []

    async def one() -> None:
        found.append(await realise(SPEC))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
    assert len(found) == 20
    assert len({each.key for each in found}) == 1
    assert logged_uv.count("venv") == 1


async def test_processes_make_it_once(logged_uv: FakeUv) -> None:
    drivers = [start_driver(logged_uv.program) for _ in range(3)]
    with anyio.fail_after(100):
        here = await realise(SPEC)
        for driver in drivers:
            out, _ = await anyio.to_thread.run_sync(lambda child=driver: child.communicate())
            assert driver.returncode == 0
            assert json.loads(out) == [here.key, dict(here.packages)]
    assert logged_uv.count("venv") == 1


async def test_maker_killed_half_way_is_followed_by_another(stuck_uv: StuckUv) -> None:
    driver = start_driver(stuck_uv.program)
    pids = await anyio.to_thread.run_sync(stuck_uv.wait_until_stuck)
    driver.kill()
    driver.communicate()
    # The uv it had started lives on and may still write: nobody may begin until it is gone.
    with anyio.move_on_after(0.5) as waited:
        await realise(SPEC)
    assert waited.cancelled_caught
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(60):
        found = await realise(SPEC)
    assert say(found, "import demo_b; print(demo_b.version)") == "2.0"


async def test_cancelled_maker_leaves_nothing(
    stuck_uv: StuckUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = uv.find_uv_bin
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(stuck_uv.program))
    processes: list[psutil.Process] = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(realise, SPEC)
            pids = await anyio.to_thread.run_sync(stuck_uv.wait_until_stuck)
            processes = [psutil.Process(pid) for pid in pids]
            group.cancel_scope.cancel()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert [path.suffix for path in cache_root().iterdir()] == [".lock"]
    monkeypatch.setattr(uv, "find_uv_bin", real)
    with anyio.fail_after(60):
        await realise(SPEC)


@pytest.mark.parametrize("native", [False, True], ids=["anyio", "asyncio"])
async def test_cancellation_at_any_moment_leaves_it_whole_or_missing(native: bool) -> None:
    import asyncio

    for step in range(12):
        delay = step * 0.012
        if native:
            try:
                await asyncio.wait_for(realise(SPEC), delay)
            except TimeoutError:
                pass  # what is tested is what it leaves
        else:
            with anyio.move_on_after(delay):
                await realise(SPEC)
        for folder in cache_root().glob("py*"):
            whole = (folder / "environment.json").exists()
            assert folder.suffix == ".lock" or whole, f"half-made after {delay} s"
            if folder.suffix != ".lock":
                (folder / "environment.json").unlink()  # so that the next has work to do
    with anyio.fail_after(60):
        await realise(SPEC)
    me = psutil.Process()
    assert not [child for child in me.children() if "uv" in Path(child.name()).name]


async def test_waiting_task_can_be_cancelled_while_another_makes_it(
    stuck_uv: StuckUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(stuck_uv.program))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(realise, SPEC)
            await anyio.to_thread.run_sync(stuck_uv.wait_until_stuck)
            with anyio.move_on_after(0.2) as waited:
                await realise(SPEC)
            assert waited.cancelled_caught
            group.cancel_scope.cancel()


async def test_no_network_and_no_cache_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:s3cret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    with anyio.fail_after(60), pytest.raises(IndexUnreachable) as caught:
        await realise(SPEC)
    text = str(caught.value)
    assert "not in uv's cache and the package index cannot be reached" in text
    assert "s3cret" not in text
    assert [path.suffix for path in cache_root().iterdir()] == [".lock"]


async def test_package_that_does_not_exist_is_named() -> None:
    with anyio.fail_after(60), pytest.raises(EnvironmentFailed, match="no-such-package") as caught:
        await realise(EnvironmentSpec(packages=("no-such-package",)))
    assert not isinstance(caught.value, IndexUnreachable)


@pytest.mark.parametrize(
    "text",
    [
        "--index-url=http://host",
        " -r/etc/passwd",
        "/etc",
        "./here",
        "two words",
        "",
        "demo-a @ file:///tmp/x",
        "demo-a; python_version > '3'",
        "demo-a\n--pre",
    ],
)
async def test_what_is_no_plain_requirement_never_reaches_uv(text: str, logged_uv: FakeUv) -> None:
    with pytest.raises(InvalidRequirement):
        await realise(EnvironmentSpec(packages=(text,)))
    assert logged_uv.calls() == []


async def test_unusable_python_is_refused() -> None:
    with pytest.raises(ConfigError):
        await realise(EnvironmentSpec(python="3.8", packages=()))


async def test_cache_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PY_CODE_MODE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFailed, match="PY_CODE_MODE_CACHE"):
        await realise(SPEC)


async def test_shared_environment_stays_when_removed() -> None:
    found = await realise(SPEC)
    await found.remove()
    assert found.python.exists()


async def test_private_environments_are_apart_and_removed(wheels: Wheels, uv_cache: Path) -> None:
    private = EnvironmentSpec(packages=SPEC.packages, private=True)
    first, second = await realise(private), await realise(private)
    assert first.folder is not None
    assert first.folder != second.folder
    # A guest may write into its own copy: the wheel in uv's cache must not change with it.
    module = first.site_packages / "demo_a" / "__init__.py"
    module.write_text("version = 'changed'\n")
    assert say(second, "import demo_a; print(demo_a.version)") == "1.0"
    assert module.stat().st_nlink == 1
    await first.remove()
    assert not first.folder.exists()
    assert say(second, "import demo_a; print(demo_a.version)") == "1.0"
    await second.remove()
    await second.remove()
    assert list((cache_root() / "private").iterdir()) == []


async def test_private_environment_of_a_killed_process_is_swept() -> None:
    private = EnvironmentSpec(packages=("demo-a",), private=True)
    code = (
        "import os, anyio\nfrom py_code_mode.environments import EnvironmentSpec, realise\n"
        f"anyio.run(realise, {private!r})\nos.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join(sys.path)
    killed = await anyio.run_process(
        [sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert killed.returncode == -signal.SIGKILL
    folder = cache_root() / "private"
    assert len(list(folder.iterdir())) == 2
    mine = await realise(private)
    assert {path.name for path in folder.iterdir()} == {
        mine.python.parent.parent.name,
        f"{mine.python.parent.parent.name}.lock",
    }
    await mine.remove()


async def test_pips_refusal_of_any_index_is_kept(logged_uv: FakeUv) -> None:
    with pytest.raises(EnvironmentFailed):
        await realise(EnvironmentSpec(packages=("demo-missing",)))
    installs = [call for call in logged_uv.calls() if " pip install " in call]
    assert len(installs) == 2
    assert all(" --no-index " in call for call in installs)


async def test_pips_settings_reach_uv_and_no_file(
    monkeypatch: pytest.MonkeyPatch, wheels: Wheels, tmp_path: Path
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        f"[global]\nno-index = true\nfind-links = {wheels.folder}\n"
        "index-url = http://user:s3cret@127.0.0.1:9/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    found = await realise(SPEC)
    assert say(found, "import demo_a; print(demo_a.version)") == "1.0"
    for path in cache_root().rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"s3cret" not in path.read_bytes(), path


async def test_other_pythons_of_this_machine_get_environments_of_their_own() -> None:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    names = sorted(path.name for path in root.glob("3.1[0-9].*"))
    others = [name for name in names if name != ".".join(map(str, sys.version_info[:3]))]
    if not others:
        pytest.skip("only one Python on this machine")
    for name in others:
        found = await realise(EnvironmentSpec(python=name, packages=("demo-a",)))
        asked = "import sys, demo_a; print('.'.join(map(str, sys.version_info[:3])))"
        assert say(found, asked) == name


async def test_host_environment_is_what_this_process_sees() -> None:
    found = host_environment()
    assert Path(sys.executable) == found.python
    assert found.packages["anyio"]
    assert found.folder is None


@pytest.mark.network
@pytest.mark.usefixtures("index")
async def test_default_packages_come_from_the_index() -> None:
    try:
        with anyio.fail_after(100):
            found = await realise(EnvironmentSpec())
    except (TimeoutError, IndexUnreachable) as error:
        pytest.skip(f"no package index: {type(error).__name__}")
    assert set(DEFAULT_PACKAGES) <= found.packages.keys()
    assert say(found, "import numpy, pandas, pyarrow, cloudpickle; print('ok')") == "ok"
