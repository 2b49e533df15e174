"""Policies: what they read, what they refuse, and that a file can only strengthen them."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.errors import ConfigError
from py_code_mode.sandbox.hosts import HostPattern
from py_code_mode.sandbox.policy import GIB, LEAST_MEMORY, Policy, parse_size

FILE = "config.yaml"


def _from_file(text: str, folder: Path) -> Policy:
    loaded: dict[str, object] = yaml.safe_load(text)
    return Policy.from_settings(loaded["policy"], source=FILE, folder=folder)


def test_without_arguments_nothing_of_the_host_is_allowed() -> None:
    policy = Policy()
    assert (policy.read, policy.write, policy.network, policy.env) == ((), (), "none", frozenset())
    assert None not in (policy.memory, policy.processes, policy.file_size, policy.disk)
    assert policy.open_files is not None
    assert not policy.allows_host("example.org", 443)


def test_a_workspace_file_is_read_as_the_design_shows_it(tmp_path: Path) -> None:
    policy = _from_file(
        'policy: {network: [api.github.com, "*.wikipedia.org:443"], read: [./data], memory: 2GiB, '
        "processes: 64, disk: 1GiB, cpu: 300}",
        tmp_path,
    )
    assert policy.read == (tmp_path.resolve() / "data",)
    assert policy.memory == 2 * GIB
    assert (policy.processes, policy.disk, policy.cpu) == (64, GIB, 300)
    assert policy.allows_host("api.github.com", 443)
    assert policy.allows_host("en.wikipedia.org", 443)
    assert not policy.allows_host("en.wikipedia.org", 80)
    assert policy.file_size == Policy().file_size  # what is not named is the default


def test_a_policy_is_frozen_hashable_and_can_be_pickled(tmp_path: Path) -> None:
    policy = Policy(read=[tmp_path], network=["a.example"], env=["LANG"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.memory = None  # type: ignore[misc]
    assert hash(policy) == hash(Policy(read=[str(tmp_path)], network=["a.example"], env=["LANG"]))
    assert pickle.loads(pickle.dumps(policy)) == policy
    again = Policy.from_settings(policy.to_settings(), source=FILE, folder=Path("/"))
    assert again == policy


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("1.5GiB", 3 << 29), ("64KiB", 65536),
        ("500MB", 500_000_000), ("1kB", 1000), ("1tib", 1 << 40), ("100B", 100), (4096, 4096),
    ],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["2G", "2", "GiB", "-1GiB", "0B", 0, -5, True, 1.5, "1e9B", "\u0661GiB", []]
)
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_size(text)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("memroy", "memory"),
        ("networks", "network"),
        ("reads", "read"),
        ("open-files", "open_files"),
        ("filesize", "file_size"),
        ("environment", "env"),
        ("zzz", "known: read, write"),
        (5, "known"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: object, near: str) -> None:
    with pytest.raises(ConfigError, match=near) as caught:
        Policy.from_settings({key: 1}, source=FILE, folder=Path("/"))
    assert caught.value.source == FILE
    assert str(key) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "read: ./data",
        "read: [5]",
        "read: ['']",
        'read: ["a\\0b"]',
        "read: {a: b}",
        "write: [/]",
        "network: api.github.com",
        "network: [5]",
        "network: [https://example.org]",
        "network: true",
        "network: null",
        "network: {allow: [a]}",
        "env: HOME",
        "env: [LD_PRELOAD]",
        "env: [PYTHONPATH]",
        "env: ['A=B']",
        "memory: 2G",
        "memory: 1MiB",
        "memory: 0",
        "memory: yes",
        "processes: 0",
        "processes: 1",
        "processes: 1" + "0" * 400,
        "memory: 1" + "0" * 400,
        "memory: 1" + "0" * 400 + "GiB",
        "memory: 2097152TiB",
        "file_size: 18446744073709551616",
        "disk: 1152921504606846977",
        "open_files: 1e300",
        "cpu: 1.0e+300",
        "cpu: 1" + "0" * 400,
        "cpu: 0.001",
        "processes: 1.5",
        "processes: many",
        "open_files: 3",
        "cpu: -1",
        "cpu: .nan",
        "cpu: .inf",
        "disk: []",
    ],
)
def test_a_value_that_does_not_hold_is_refused_and_named(text: str) -> None:
    settings: dict[str, object] = yaml.safe_load(text)
    with pytest.raises(ConfigError) as caught:
        Policy.from_settings(settings, source=FILE, folder=Path("/"))
    assert f"`policy.{next(iter(settings))}`" in str(caught.value)
    assert str(caught.value).startswith(FILE)


def test_a_value_that_is_large_is_shown_short() -> None:
    bomb: list[object] = ["x" * 1000]
    for _ in range(40):
        bomb = [bomb, bomb, bomb]
    for name in ("read", "write", "network", "env", "memory", "cpu", "processes"):
        with pytest.raises(ConfigError) as caught:
            Policy.from_settings({name: [bomb]}, source=FILE, folder=Path("/"))
        assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError) as caught:
        Policy(memory=10**9999)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy", "No_Proxy", "ALL_PROXY"])
def test_a_proxy_takes_not_the_place_of_the_sessions_own(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} would take the place of the proxy"):
        Policy(network=["example.org"], env=[name])
    settings: dict[str, object] = {"network": ["example.org"], "env": ["LANG", name]}
    with pytest.raises(ConfigError, match=name) as caught:
        Policy.from_settings(settings, source=FILE, folder=Path("/"))
    assert caught.value.source == FILE
    opened = Policy(network="open", env=["LANG", name])
    assert opened.env == {"LANG", name}
    stronger = {"network": ["example.org"]}
    made = opened.strengthened_by(stronger, source=FILE, folder=Path("/"))
    assert made.env == {"LANG"}


def test_a_policy_is_altered_as_data_is(tmp_path: Path) -> None:
    """It was a TypeError."""
    policy = Policy(read=[tmp_path], memory="1GiB", network=["example.org"])
    changed = replace(policy, network="none")
    assert changed == Policy(read=[tmp_path], memory="1GiB")
    assert changed.required == policy.required == {"memory"}
    assert replace(policy, disk="1GiB").required == {"memory", "disk"}
    assert replace(policy, memory=None).required == set()
    assert replace(Policy()).required == set()
    with pytest.raises(ConfigError):
        replace(policy, memory="1")


def test_a_policy_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a mapping"):
        Policy.from_settings(["a"], source=FILE, folder=Path("/"))


def test_an_argument_that_does_not_hold_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="`memory`"):
        Policy(memory="lots")


def test_null_is_no_limit_and_an_empty_mapping_the_default() -> None:
    assert Policy.from_settings({"memory": None}, source=FILE, folder=Path("/")).memory is None
    assert Policy.from_settings(None, source=FILE, folder=Path("/")) == Policy()


@pytest.mark.parametrize(
    ("text", "network"),
    [("none", "none"), ("off", "none"), ("no", "none"), ("open", "open"), ("[]", "none")],
)
def test_the_words_of_network(text: str, network: str) -> None:
    settings: dict[str, object] = yaml.safe_load(f"network: {text}")
    assert Policy.from_settings(settings, source=FILE, folder=Path("/")).network == network


def test_relative_paths_are_of_the_workspace_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    policy = Policy.from_settings(
        {"read": ["./link/../real/x", "link"]}, source=FILE, folder=tmp_path
    )
    real = tmp_path.resolve() / "real"
    assert policy.read == (real, real / "x")


def test_hosts_that_others_cover_are_left_out() -> None:
    policy = Policy(network=["a.example.org", "*.example.org", "b.example.org:443", "c.example"])
    assert [str(pattern) for pattern in policy.network] == ["*.example.org", "c.example"]


# -- what is required


def test_a_limit_is_required_where_it_was_named_and_only_there() -> None:
    assert Policy().required == frozenset()
    assert Policy(read=["/usr"], network="open", env=["LANG"]).required == frozenset()
    assert Policy(disk=Policy().disk, cpu=5).required == {"disk", "cpu"}
    assert Policy(disk=None).required == frozenset()  # there is nothing to hold
    named = Policy.from_settings({"processes": 5}, source=FILE, folder=Path("/"))
    assert named.required == {"processes"}


def test_a_limit_that_is_required_stays_so() -> None:
    caller = Policy(memory="1GiB")
    made = caller.strengthened_by({"disk": "2GiB", "memory": None}, source=FILE, folder=Path("/"))
    assert made.required == {"memory", "disk"}
    assert made.memory == GIB
    assert Policy().intersection(caller).required == caller.required
    assert pickle.loads(pickle.dumps(made)).required == made.required


def test_being_required_is_no_part_of_what_is_compared_or_shown() -> None:
    one, other = Policy(), Policy(disk=Policy().disk)
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other)
    assert "_Default" not in repr(one)


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    with pytest.raises(ConfigError, match="`memory`: must be at least 64MiB"):
        Policy(memory="1MiB")
    assert Policy(memory=LEAST_MEMORY).memory == LEAST_MEMORY


# -- stronger and weaker


def test_a_file_can_strengthen_what_the_caller_allowed(tmp_path: Path) -> None:
    caller = Policy(
        read=[tmp_path], write=[tmp_path / "out"], network=["*.example.org"], memory="4GiB",
        env=["LANG", "TZ"],
    )  # fmt: skip
    made = caller.strengthened_by(
        {
            "read": ["data"],
            "network": ["a.example.org:443", "b.example"],
            "memory": "1GiB",
            "env": ["TZ"],
        },
        source=FILE,
        folder=tmp_path,
    )
    assert tmp_path.resolve() / "data" in made.read
    assert [str(pattern) for pattern in made.network] == ["a.example.org:443"]
    assert (made.memory, made.env) == (GIB, frozenset({"TZ"}))
    assert made.write == caller.write  # what the file does not name stays
    assert made.stronger_or_equal(caller)


def test_a_file_cannot_weaken_what_the_caller_allowed(tmp_path: Path) -> None:
    caller = Policy(read=[tmp_path / "data"], memory="1GiB")
    made = caller.strengthened_by(
        {
            "read": ["/etc", "."],
            "write": ["data"],
            "network": "open",
            "memory": None,
            "env": ["SECRET"],
            "processes": 10_000,
        },
        source=FILE,
        folder=tmp_path,
    )
    assert made == caller


def test_a_link_of_the_workspace_does_not_lead_out_of_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "etc").symlink_to("/etc")
    caller = Policy(read=[tmp_path / "data"])
    made = caller.strengthened_by({"read": ["data/etc"]}, source=FILE, folder=tmp_path)
    assert made.read == ()


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [
        ({}, {"read": ["/a"]}),
        ({"read": ["/a/b"]}, {"read": ["/a"]}),
        ({"read": ["/a"]}, {"write": ["/a"]}),
        ({"write": ["/a/b"]}, {"write": ["/a"]}),
        ({}, {"network": ["a.example"]}),
        ({"network": ["a.example"]}, {"network": "open"}),
        ({"network": ["a.example:443"]}, {"network": ["a.example"]}),
        ({"network": ["a.x.org"]}, {"network": ["*.x.org", "b.example"]}),
        ({"memory": LEAST_MEMORY}, {"memory": None}),
        ({"disk": "2GiB"}, {}),  # the default, but required
        ({"cpu": 1.5}, {"cpu": 2}),
        ({"env": ["A"]}, {"env": ["A", "B"]}),
    ],
)
def test_which_policy_is_stronger(stronger: dict[str, Any], weaker: dict[str, Any]) -> None:
    one, other = Policy(**stronger), Policy(**weaker)
    assert one.stronger_or_equal(other)
    assert not other.stronger_or_equal(one)
    assert one.intersection(other) == other.intersection(one) == one


def test_names_that_only_begin_alike_are_other_folders() -> None:
    assert not Policy(read=["/data-secret"]).stronger_or_equal(Policy(read=["/data"]))


def test_ports_may_be_covered_by_several_patterns() -> None:
    one = Policy(network=["a.example:80"])
    both = Policy(network=["a.example:80", "a.example:443"])
    assert Policy(network=["a.example"]).stronger_or_equal(both)
    assert not Policy(network=["a.example"]).stronger_or_equal(one)


_folders = st.lists(st.sampled_from(["/a", "/a/b", "/a/b/c", "/d", "/d/e"]), max_size=3)
_policies = st.builds(
    Policy,
    read=_folders,
    write=_folders,
    network=st.one_of(
        st.sampled_from(["none", "open"]),
        st.lists(
            st.sampled_from(["x.org", "*.x.org", "a.x.org:443", "*.a.x.org:*", "10.0.0.1:22"]),
            max_size=3,
        ),
    ),
    env=st.sets(st.sampled_from(["A", "B"])),
    memory=st.sampled_from([None, LEAST_MEMORY, LEAST_MEMORY + 1]),
    disk=st.sampled_from([None, 1, 2]),
    cpu=st.sampled_from([None, 1, 2.5]),
)


@given(_policies, _policies)
def test_an_intersection_is_stronger_than_both(one: Policy, other: Policy) -> None:
    both = one.intersection(other)
    assert both.stronger_or_equal(one)
    assert both.stronger_or_equal(other)
    assert one.stronger_or_equal(one)
    if one.stronger_or_equal(other):
        assert one.stronger_or_equal(both)


@given(_policies)
def test_settings_are_read_back_as_they_were(policy: Policy) -> None:
    again = Policy.from_settings(policy.to_settings(), source=FILE, folder=Path("/"))
    assert again.stronger_or_equal(policy)
    assert policy.stronger_or_equal(again)
    assert again.required == policy.required


def test_patterns_can_be_given_as_they_are() -> None:
    pattern = HostPattern(host="a.example", ports=None)
    assert Policy(network=[pattern]).network == (pattern,)
