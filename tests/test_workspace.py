"""Finding and reading a workspace's configuration."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import pytest

from py_code_mode import (
    FileStorage,
    InProcessExecutor,
    Policy,
    Session,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.errors import ConfigError
from py_code_mode.workspace import WorkspaceConfig, check_apart, find_workspace, read_config

from .zygotes import executor_of

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
        ("policy:", WorkspaceConfig(policy={})),
        ("policy: {memory: 1GiB}", WorkspaceConfig(policy={"memory": "1GiB"})),
        ("deps: {allow: []}", WorkspaceConfig(allowed_deps=())),
        ("deps: {allow: [numpy, types-*]}", WorkspaceConfig(allowed_deps=("numpy", "types-*"))),
        ("deps: {allow: null}", WorkspaceConfig()),
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("policy: [1]", "must be a mapping"),
        ("policy: {memmory: 1}", "did you mean `memory`"),
        ("policy: {memory: much}", "policy.memory"),
        ("deps: numpy", "must be a mapping"),
        ("deps: {deny: [numpy]}", "known: allow"),
        ("deps: {allow: numpy}", "must be a list"),
        ("deps: {allow: ['numpy>=2']}", "versions are not compared"),
        ("deps: {allow: [1]}", "not the name of a package"),
        ("deps: {allow: ['[a-z]*']}", "not the name of a package"),
        ("tools: {deny: [x]}", "approval rules are not enforced"),
        ("sandbox: 1", "known: deps, executor, policy, timeout"),
        ("executor: ''", "`executor` must be a name"),
        ("executor: ' '", "`executor` must be a name"),
        ("timeout: 0", "above 0"),
        ("timeout: .nan", "above 0"),
        ("timeout: .inf", "null for no limit"),
        ("timeout: yes", "above 0"),
        ("timeout: 1" + "0" * 400, "a number of 1329 bits"),
        ("timeout: 1" + "0" * 5000, "is not YAML"),
        ("timeout: 2024-99-99", "is not YAML"),
        ("timeout: 5\ntimeout: 9", "'timeout' is given twice, in line 2"),
        ("policy: {memory: 1GiB, read: [], memory: 9GiB}", "'memory' is given twice"),
        ("policy: &a {memory: 1GiB, read: [*a]}", "must be a list of paths"),
        ("? [a, b]\n: 1", "is not YAML"),
        ("a: " * 5000 + "1", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("timeout: 1 #" + "x" * (1 << 20), "the limit is 1048576"),
    ],
)
def test_what_does_not_hold_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        read_config(tmp_path)
    assert reason in str(caught.value)


def test_yaml_that_grows_as_it_is_shown_is_refused_in_a_few_words(tmp_path: Path) -> None:
    """The message was made of the whole."""
    for key in ("timeout", "executor", "policy", "deps"):
        text = "\n".join([f"{key}:", *(f"- &a{n} [{_aliases(n)}]" for n in range(30))])
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_config(tmp_path)
        assert len(str(caught.value)) < 600


def _aliases(number: int) -> str:
    return ", ".join([f"*a{number - 1}" if number else "x"] * 9)


def test_pipe_in_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    """Every command hung."""
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="it is no regular file"):
        read_config(tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / ".code-mode"
    folder.mkdir(parents=True)
    (folder.parent / "data").mkdir()
    return folder


def write(base: Path, text: str) -> WorkspaceConfig:
    (base / "config.yaml").write_text(text)
    return read_config(base)


def test_files_policy_is_required_as_it_is(base: Path) -> None:
    said = write(base, "policy: {read: [./data], network: [example.org], memory: 1GiB}")
    policy = said.required_policy()
    assert policy == Policy(read=[base.parent / "data"], network=["example.org"], memory="1GiB")
    assert WorkspaceConfig().required_policy() is None


def test_file_makes_a_passed_policy_stronger_and_never_weaker(base: Path) -> None:
    said = write(base, "policy: {network: open, memory: 1GiB, write: [./data]}")
    data = base.parent / "data"
    passed = Policy(read=[data], network=["example.org"], memory="8GiB", processes=5)
    policy = said.required_policy(passed)
    assert policy == Policy(read=[data], network=["example.org"], memory="1GiB", processes=5)
    assert said.required_policy(Policy(memory="64MiB")) == Policy(memory="64MiB")


@pytest.mark.parametrize("path", [".", "..", "./.code-mode", "./.code-mode/artifacts", "./link"])
@pytest.mark.parametrize("key", ["read", "write"])
def test_workspace_is_never_granted(base: Path, path: str, key: str) -> None:
    (base.parent / "link").symlink_to(base)
    with pytest.raises(ConfigError, match="which no sandbox may see"):
        write(base, f"policy: {{{key}: ['{path}']}}")
    with pytest.raises(ConfigError, match="which no sandbox may see"):
        check_apart([base.parent / path], base)


def test_neighbours_of_the_workspace_may_be_granted(base: Path) -> None:
    check_apart([base.parent / "data", base.parent / ".code-mode-2"], base)


def config_of(session: Session) -> SubprocessConfig:
    config = executor_of(session).config
    assert isinstance(config, SubprocessConfig)
    return config


def test_policy_reaches_the_executor(base: Path) -> None:
    policy = Policy(memory="1GiB")
    session = Session.subprocess(base, policy=policy, backend="landlock", protect="always", pool=2)
    config = config_of(session)
    assert (config.policy, config.backend) == (policy, "landlock")
    assert (config.protect, config.pool) == ("always", 2)
    assert config_of(Session.subprocess(base)).policy is None


def test_files_policy_reaches_the_executor(base: Path) -> None:
    write(base, "executor: subprocess\npolicy: {memory: 1GiB}")
    assert config_of(Session.subprocess(base)).policy == Policy(memory="1GiB")
    assert config_of(Session.from_base(base)).policy == Policy(memory="1GiB")
    stronger = Session.from_base(base, policy=Policy(cpu=5))
    assert config_of(stronger).policy == Policy(memory="1GiB", cpu=5)


@pytest.mark.parametrize("text", ["policy: {memory: 1GiB}", "executor: in_process\npolicy:"])
def test_no_policy_is_promised_for_code_in_this_process(base: Path, text: str) -> None:
    write(base, text)
    for make in (Session.from_base, Session.inprocess):
        with pytest.raises(ConfigError, match="code in this process cannot be held to one"):
            make(base)


def test_policy_passed_for_code_in_this_process_is_an_error(base: Path) -> None:
    with pytest.raises(ConfigError, match="policy: a policy is required"):
        Session.from_base(base, policy=Policy())


@pytest.mark.anyio
async def test_executor_made_by_hand_has_to_keep_the_files_policy(base: Path) -> None:
    write(base, "policy: {memory: 1GiB}")
    storage = FileStorage(base)
    with pytest.raises(ConfigError, match="cannot be held"):
        await Session(storage, InProcessExecutor()).start()
    with pytest.raises(ConfigError, match="executor was given none"):
        await Session(storage, SubprocessExecutor()).start()
    weaker = SubprocessExecutor(SubprocessConfig(policy=Policy(memory="2GiB")))
    with pytest.raises(ConfigError, match="a weaker one"):
        await Session(storage, weaker).start()


@pytest.mark.anyio
@pytest.mark.parametrize("is_policy", [True, False])
async def test_executor_made_by_hand_may_not_show_the_workspace(
    base: Path, is_policy: bool
) -> None:
    above = base.parent
    config = (
        SubprocessConfig(policy=Policy(read=[above]))
        if is_policy
        else (SubprocessConfig(also_read=(above,)))
    )
    with pytest.raises(ConfigError, match="which no sandbox may see"):
        await Session(FileStorage(base), SubprocessExecutor(config)).start()
