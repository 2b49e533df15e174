"""The probe tells what this machine can do, by trying, and leaves nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import py_code_mode
from py_code_mode.guest import confine
from py_code_mode.sandbox.probe import (
    DEADLINE,
    LAYERS,
    NAMESPACES,
    Layer,
    Probe,
    examine,
    probe,
    sandbox_user,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(py_code_mode.__file__).parents[1]
UNPRIVILEGED = 65534
#: More than enough for what is given a second and a half, on a machine that is busy.
PATIENCE = 20.0
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

_TELL = """
import sys, json
sys.path.insert(0, sys.argv[1])
from py_code_mode.sandbox.probe import examine
found = examine()
print(json.dumps({
    "layers": {x.name: [x.is_ok, x.error, x.detail, x.remedy] for x in found.layers},
    "backends": found.backends, "duration": found.duration, "uid": found.uid,
    "bubblewrap": found.bubblewrap, "text": [str(x) for x in found.layers],
}))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may use."""
    folder = Path(tempfile.mkdtemp(prefix="code-mode-test-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def _told(*before: str, python: str = sys.executable, **options: Any) -> dict[str, Any]:
    done = subprocess.run(
        [*before, python, "-I", "-c", _TELL, str(ROOT)],
        capture_output=True,
        text=True,
        timeout=30,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_layer_is_told_with_a_remedy_where_it_failed() -> None:
    found = examine()
    assert tuple(layer.name for layer in found.layers) == LAYERS
    for layer in found.layers:
        assert layer.is_ok != bool(layer.remedy), str(layer)
        assert layer.is_ok or layer.detail
    assert found.duration < PATIENCE
    assert found.backends[-1] == "none"
    assert set(found.failures) == {layer for layer in found.layers if not layer.is_ok}


def test_the_landlock_abi_is_the_kernels() -> None:
    kernel = confine.Kernel()
    assert examine().landlock_abi == kernel.landlock_abi()


def test_a_probe_is_done_once() -> None:
    assert probe() is probe()


def test_a_probe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        probe().landlock_abi = 99  # type: ignore[misc]


def test_nothing_is_left_of_a_probe() -> None:
    examine()
    left = [
        name for name in os.listdir(tempfile.gettempdir()) if name.startswith("code-mode-probe")
    ]
    assert left == []
    assert list(Path("/sys/fs/cgroup").glob("**/code-mode-probe-*")) == []
    assert "code-mode-probe" not in Path("/proc/self/mounts").read_text()


def test_an_unprivileged_user_gets_an_answer_of_its_own(open_folder: Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/usr/bin/python3"):
        pytest.skip("needs root and a system-wide interpreter")
    done = _told(
        python="/usr/bin/python3", user=UNPRIVILEGED, group=UNPRIVILEGED, extra_groups=(),
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(open_folder)}, cwd="/",
    )  # fmt: skip
    assert done["uid"] == UNPRIVILEGED
    assert done["duration"] < PATIENCE
    # binds them, if not us
    assert done["layers"]["rlimit_processes"][0]
    assert os.listdir(open_folder) == []


def test_the_limit_on_processes_is_told_not_to_bind_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    layer = examine()["rlimit_processes"]
    assert not layer.is_ok
    assert "uid 0" in layer.remedy


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
@pytest.mark.parametrize("capability", ["setuid", "setgid"])
def test_a_root_that_cannot_become_another_user_has_no_backend(capability: str) -> None:
    """It had found out only when a session's first process was to become that user."""
    if sandbox_user() is None or not probe()["other_user"].is_ok:
        pytest.skip("needs root, and a user to become")
    found = _told("setpriv", f"--bounding-set=-{capability}")
    ok, number, _, remedy = found["layers"]["other_user"]
    assert (ok, number) == (False, errno.EPERM)
    assert capability.upper() in remedy
    assert found["backends"] == ["none"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_forbidden_user_namespaces_are_told_with_the_switch() -> None:
    if not probe()["user_namespace"].is_ok:
        pytest.skip("needs user namespaces, to forbid them in one")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    found = _told("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    ok, number, _, remedy = found["layers"]["user_namespace"]
    assert (ok, number) == (False, errno.ENOSPC)
    assert "max_user_namespaces" in remedy
    assert not any(found["layers"][name][0] for name in NAMESPACES)
    if probe().landlock_abi >= confine.FULL_ABI:
        # as root of the outer namespace, bubblewrap may do without one of its own
        assert set(found["backends"]) - {"bubblewrap"} == {"landlock", "none"}


def test_where_all_is_forbidden_no_backend_is_left(tmp_path: Path) -> None:
    if "landlock" not in probe().backends:
        pytest.skip("needs Landlock and seccomp, to forbid all with them")
    plan = confine.Confinement(
        readable=["/"], executable=["/"], writable=[str(tmp_path), "/dev/null"]
    )
    confined = f"""
import sys, os
sys.path.insert(0, {str(ROOT)!r})
from py_code_mode.guest import confine
import json
confine.confine(confine.Confinement(**json.loads(sys.argv[1])))
os.execv(sys.executable, [sys.executable, "-I", "-c", *sys.argv[2:]])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", confined, json.dumps(plan.to_json()), _TELL, str(ROOT)],
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["backends"] == ["none"]
    assert {name for name, layer in found["layers"].items() if layer[0]} <= {
        "memfd_sealing", "other_user", "rlimit_processes",
    }  # fmt: skip
    assert "failed [EPERM]" in " ".join(found["text"])


# -- attempts that go wrong


def _with_attempts(folder: Path, code: str, deadline: float = DEADLINE) -> Probe:
    script = folder / "attempts.py"
    script.write_text(code)
    return examine(attempts=script, deadline=deadline)


def test_attempts_that_hang_are_ended_with_their_children(tmp_path: Path) -> None:
    code = """
import os, signal, json
print(json.dumps({"name": "landlock", "ok": True, "abi": 6}), flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork(); signal.pause()
"""
    started = time.monotonic()
    found = _with_attempts(tmp_path, code)
    assert time.monotonic() - started < PATIENCE
    assert found["landlock"].is_ok
    assert found.landlock_abi == 6
    assert not found["seccomp"].is_ok
    assert "no answer" in found["seccomp"].detail
    assert found.backends == ("none",)


@pytest.mark.parametrize(
    "code", ["raise SystemExit(3)", "print('{')", "print('[1]')", "import os; os.abort()"]
)
def test_attempts_that_break_count_as_failed(tmp_path: Path, code: str) -> None:
    found = _with_attempts(tmp_path, code)
    assert not any(found[name].is_ok for name in NAMESPACES)
    assert found.landlock_abi == 0


# -- bubblewrap


def _install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    # a root host runs it as another user, who does not get into this folder
    monkeypatch.setattr("py_code_mode.sandbox.probe.sandbox_user", lambda: None)
    program = folder / "bwrap"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return program


def test_a_bubblewrap_that_works_is_told_with_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = '[ "$1" = --version ] && echo "bubblewrap 0.9.9"; exit 0'
    program = _install(tmp_path, script, monkeypatch)
    found = examine()
    assert found.bubblewrap == "0.9.9"
    assert str(program) in found["bubblewrap"].detail
    assert "bubblewrap" in found.backends


def test_a_bubblewrap_that_fails_is_told_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = "echo 'bwrap: No permissions to create a new namespace'; exit 1"
    _install(tmp_path, script, monkeypatch)
    found = examine()
    assert found.bubblewrap is None
    assert "No permissions" in found["bubblewrap"].detail
    assert "bubblewrap" not in found.backends


def test_a_bubblewrap_that_hangs_does_not_hold_the_probe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _install(tmp_path, "exec sleep 60", monkeypatch)
    found = examine()
    assert not found["bubblewrap"].is_ok
    assert found.duration < PATIENCE


def test_no_bubblewrap_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    layer = examine()["bubblewrap"]
    assert (layer.is_ok, layer.error) == (False, errno.ENOENT)
    assert "install" in layer.remedy


def test_the_real_bubblewrap_is_tried() -> None:
    program = shutil.which("bwrap")
    if program is None:
        pytest.skip("bubblewrap is not installed")
    found = examine()
    version = subprocess.check_output([program, "--version"], text=True).split()[-1]
    assert found.bubblewrap in (None, version)


# -- what follows from it


def _made(abi: int = 7, **failed: int) -> Probe:
    layers = tuple(
        Layer(name=name, is_ok=name not in failed, error=failed.get(name)) for name in LAYERS
    )
    return Probe(layers=layers, landlock_abi=abi)


@pytest.mark.parametrize(
    ("probed", "backends"),
    [
        (_made(), ("namespaces", "bubblewrap", "landlock", "none")),
        (_made(user_namespace=1), ("bubblewrap", "landlock", "none")),
        (_made(network_namespace=1, bubblewrap=2), ("landlock", "none")),
        (_made(seccomp=22), ("none",)),
        (_made(abi=5), ("namespaces", "bubblewrap", "none")),
        (_made(abi=0, landlock=38, bubblewrap=2), ("none",)),
        (_made(overlayfs=1, cgroup_limits=13), ("namespaces", "bubblewrap", "landlock", "none")),
    ],
)
def test_backends_are_what_all_their_layers_allow(probed: Probe, backends: tuple[str, ...]) -> None:
    assert probed.backends == backends


def test_a_layer_is_told_in_a_sentence() -> None:
    layer = Layer(name="landlock", is_ok=False, error=38, detail="no such call", remedy="do this")
    assert str(layer) == "landlock: failed [ENOSYS]: no such call; do this"
    assert str(Layer(name="seccomp", is_ok=True, detail="x86_64")) == "seccomp: ok (x86_64)"
    with pytest.raises(KeyError):
        probe()["nothing"]


def test_asking_from_a_process_with_threads_is_safe() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert examine()["seccomp"].is_ok == probe()["seccomp"].is_ok
    finally:
        stop.set()
        thread.join(5)


def test_a_machine_is_tried_once_however_many_ask_and_again_where_it_did_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = probe()
    silent = _with_attempts(tmp_path, "import signal; signal.pause()", deadline=0.2)
    assert silent.backends != real.backends
    deadlines: list[float] = []

    def try_all(*, deadline: float = 0.0) -> Probe:
        deadlines.append(deadline)
        return real if deadline else silent

    module = sys.modules[examine.__module__]
    monkeypatch.setattr(module, "examine", try_all)
    examined: Any = vars(module)["_examined"]
    probe.cache_clear()
    examined.cache_clear()
    try:
        with ThreadPoolExecutor(8) as threads:
            found = {id(one.result()) for one in [threads.submit(probe) for _ in range(8)]}
        assert found == {id(real)}
        assert len(deadlines) == 2
    finally:
        probe.cache_clear()
        examined.cache_clear()
