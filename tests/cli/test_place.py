"""What the options of a command say of where code runs, and what it may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from py_code_mode import Policy
from py_code_mode.cli.place import MAX_ENTRIES, Place, around, takes_place
from py_code_mode.errors import ConfigError
from py_code_mode.workspace import WorkspaceConfig, read_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / ".code-mode"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def said(base: Path, text: str = "") -> WorkspaceConfig:
    (base / "config.yaml").write_text(text)
    return read_config(base)


def options(
    place: Place, config: WorkspaceConfig, file: Path | None = None
) -> tuple[str, dict[str, Any]]:
    return place.executor_options(config, file)


def test_nothing_is_required_unless_it_is_asked_for(base: Path) -> None:
    assert options(Place(base=base), said(base)) == (
        "subprocess",
        {"default_timeout": None, "also_read": ()},
    )


def test_script_shows_its_folder_without_requiring_anything(base: Path, data: Path) -> None:
    script = data / "script.py"
    script.touch()
    _, found = options(Place(base=base), said(base), script)
    assert found["also_read"] == (data,)
    assert "policy" not in found


def test_options_require_a_policy(base: Path, data: Path) -> None:
    script = data / "deep" / "script.py"
    script.parent.mkdir()
    script.touch()
    grants: dict[str, object] = {"write": (data,), "network": ["example.org"], "memory": "1GiB"}
    _, found = options(Place(base=base, grants=grants), said(base), script)
    assert found["policy"] == Policy(
        read=[script.parent], write=[data], network=["example.org"], memory="1GiB"
    )


def test_files_policy_is_required_without_options(base: Path, data: Path) -> None:
    config = said(base, f"policy: {{network: [a.example, b.example], read: ['{data}']}}")
    _, found = options(Place(base=base), config)
    assert found["policy"] == Policy(network=["a.example", "b.example"], read=[data])


def test_options_choose_within_what_the_file_allows(base: Path, data: Path) -> None:
    config = said(base, f"policy: {{network: [a.example, b.example], read: ['{data}']}}")
    inner = data / "inner"
    inner.mkdir()
    place = Place(base=base, grants={"network": ["a.example"], "memory": "1GiB", "read": (inner,)})
    _, found = options(place, config)
    assert found["policy"] == Policy(network=["a.example"], read=[inner], memory="1GiB")


@pytest.mark.parametrize(
    ("grants", "option"),
    [
        ({"network": ["c.example"]}, "--allow-host"),
        ({"network": ["a.example", "c.example"]}, "--allow-host"),
        ({"read": ("/usr/share",)}, "--read"),
        ({"write": ("/usr/share",)}, "--write"),
        ({"memory": "9GiB"}, "--memory"),
    ],
)
def test_option_that_the_file_does_not_allow_is_an_error(
    base: Path, data: Path, grants: dict[str, object], option: str
) -> None:
    config = said(
        base,
        f"policy: {{network: [a.example], read: ['{data}'], write: ['{data}'], memory: 2GiB}}",
    )
    with pytest.raises(ConfigError, match=f"^{option}: .* does not allow this"):
        options(Place(base=base, grants=grants), config)


def test_script_of_which_the_file_allows_nothing_still_runs(base: Path, data: Path) -> None:
    other = data.parent / "other"
    other.mkdir()
    script = other / "script.py"
    script.touch()
    config = said(base, f"policy: {{read: ['{data}']}}")
    _, found = options(Place(base=base), config, script)
    assert found["policy"] == Policy(read=[data])
    assert "also_read" not in found


def test_without_a_sandbox(base: Path) -> None:
    place = Place(base=base, is_sandboxed=False)
    assert options(place, said(base))[1]["backend"] == "none"
    with pytest.raises(ConfigError, match="needs a sandbox"):
        options(place, said(base, "policy: {memory: 1GiB}"))
    elsewhere = Place(base=base, is_sandboxed=False, executor="container")
    with pytest.raises(ConfigError, match="only the subprocess executor"):
        options(elsewhere, said(base))
    here = Place(base=base, is_sandboxed=False, executor="in_process")
    assert options(here, said(base)) == ("in_process", {"default_timeout": None})


def test_no_policy_in_this_process(base: Path) -> None:
    place = Place(base=base, executor="in_process", grants={"memory": "1GiB"})
    with pytest.raises(ConfigError, match="--executor in_process"):
        options(place, said(base))


def test_granting_the_workspace_is_an_error(base: Path) -> None:
    place = Place(base=base, grants={"read": (base.parent,)})
    with pytest.raises(ConfigError, match=r"^--read: .* may see: name the folders"):
        options(place, said(base))


# -- the folder of a script


def test_folder_with_the_workspace_is_shown_without_it(base: Path, tmp_path: Path) -> None:
    project = base.parent
    script = project / "script.py"
    script.touch()
    (project / "data").mkdir()
    (tmp_path / "secret").touch()
    (project / "link").symlink_to(tmp_path / "secret")
    assert around(script, base) == (project / "data", script)
    base.rmdir()
    assert around(script, base) == (project,)


def test_folder_above_the_workspace_is_shown_without_the_way_to_it(
    base: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.touch()
    assert around(script, base) == (script,)


def test_folder_with_too_much_in_it_shows_the_script_alone(base: Path) -> None:
    script = base.parent / "script.py"
    script.touch()
    for number in range(MAX_ENTRIES + 1):
        (base.parent / f"{number}.csv").touch()
    assert around(script, base) == (script,)


def test_script_in_the_workspace_shows_nothing(base: Path) -> None:
    script = base / "workflows" / "script.py"
    script.parent.mkdir()
    script.touch()
    assert around(script, base) == ()


def test_script_in_a_home_folder_is_shown_alone(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = data / "home" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for folder in (home, home.parent):
        script = folder / "script.py"
        script.touch()
        assert around(script, base) == (script,)


def test_what_is_no_file_shows_nothing(base: Path, tmp_path: Path) -> None:
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert around(pipe, base) == ()
    assert around(tmp_path / "gone.py", base) == ()


# -- the options


def place_of(*arguments: str) -> Place:
    found: list[Place] = []
    app = typer.Typer()

    @app.command()
    @takes_place
    def command(place: Place, word: str = "") -> None:  # pyright: ignore[reportUnusedFunction]
        """Say nothing."""
        found.append(place)

    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    return found[0]


def test_options_become_a_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    place = place_of(
        "--read", a, "--read", b, "--write", b, "--allow-host", "x.example", "--memory", "1GiB",
        "--base", a, "--no-sync", "--timeout", "5", "--word", "w", "--workdir", b,
    )  # fmt: skip
    assert place == Place(
        base=tmp_path / "a",
        timeout=5.0,
        sync=False,
        workdir=tmp_path / "b",
        grants={
            "read": (tmp_path / "a", tmp_path / "b"),
            "write": (tmp_path / "b",),
            "network": ["x.example"],
            "memory": "1GiB",
        },
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--read", "gone"], "does not exist"),
        (["--write", "/"], "cannot be made writable"),
        (["--allow-host", "http://x.example/"], "--allow-host"),
        (["--memory", "much"], "must be a size"),
        (["--memory", "1GiB", "--no-sandbox"], "nothing is held to a policy"),
        (["--timeout", "0"], "above 0"),
    ],
)
def test_options_that_do_not_hold_are_wrong_usage(arguments: list[str], reason: str) -> None:
    from py_code_mode.cli.main import app

    done = CliRunner().invoke(app, ["run", "-c", "1", *arguments])
    assert done.exit_code == 2
    assert reason in " ".join(done.stderr.split())
