"""What a wall shows: the needed and the granted, with the links that lead there, nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from py_code_mode import ConfigError, Policy
from py_code_mode.sandbox.view import View, view_of

if TYPE_CHECKING:
    from pathlib import Path


def places(view: View) -> dict[str, bool]:
    return {place: is_writable for _, place, is_writable in view.trees}


def test_the_system_is_shown_and_cannot_be_written() -> None:
    shown = places(view_of([], Policy()))
    assert shown["/usr"] is False
    assert not any(shown.values())
    for hidden in ("/root", "/home", "/var", "/run", "/etc", "/", "/boot", "/srv"):
        assert hidden not in shown
    for secret in ("/etc/passwd", "/etc/shadow", "/etc/ssh"):
        assert secret not in shown


def test_what_is_granted_is_shown_with_its_owner(tmp_path: Path) -> None:
    read, write = tmp_path / "read", tmp_path / "write"
    for folder in (read, write):
        folder.mkdir()
    view = view_of([], Policy(read=[read], write=[write]))
    assert places(view)[str(read)] is False
    assert places(view)[str(write)] is True
    assert view.writable == (str(write),)
    assert view.owners[str(read)] == (os.getuid(), read.stat().st_gid)


def test_a_folder_above_what_a_session_has_of_its_own_is_refused() -> None:
    """`/home` failed as it was mounted."""
    with pytest.raises(ConfigError, match="/home/user in it is the session's own; name folders"):
        view_of([], Policy(read=["/home"]))


def test_a_folder_to_work_in_can_be_written(tmp_path: Path) -> None:
    assert places(view_of([], Policy(), tmp_path))[str(tmp_path)] is True


def test_links_on_the_way_to_what_is_needed_are_made_again(tmp_path: Path) -> None:
    real = tmp_path / "versions" / "3.11" / "bin"
    real.mkdir(parents=True)
    (real / "python").write_text("")
    (tmp_path / "current").symlink_to("versions/3.11")
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "python").symlink_to(tmp_path / "current" / "bin" / "python")
    view = view_of([tmp_path / "env" / "python", tmp_path / "versions"], Policy())
    links = dict(view.links)
    assert links[str(tmp_path / "env" / "python")] == str(tmp_path / "current" / "bin" / "python")
    assert links[str(tmp_path / "current")] == "versions/3.11"
    assert str(tmp_path / "versions") in places(view)


def test_a_loop_of_links_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert str(tmp_path / "a") not in places(view_of([tmp_path / "a"], Policy()))


def test_what_lies_in_a_shown_folder_is_not_shown_twice(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    shown = places(view_of([], Policy(read=[tmp_path, inner])))
    assert str(tmp_path) in shown
    assert str(inner) not in shown
    shown = places(view_of([], Policy(read=[tmp_path], write=[inner])))
    assert shown[str(inner)] is True


def test_grants_beneath_a_sessions_own_folders_are_shown_on_top(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    view = view_of([], Policy(read=[data]))
    is_covered = str(data).startswith(("/tmp/", "/work/", "/home/user/", "/dev/shm/"))
    assert (str(data) in view.covered) == is_covered


@pytest.mark.parametrize("path", ["/", "/tmp", "/proc/self", "/dev/null", "/work"])
def test_what_a_sandbox_has_of_its_own_cannot_be_granted(path: str) -> None:
    if not os.path.exists(path):
        pytest.skip(f"there is no {path} here")
    with pytest.raises(ConfigError, match="cannot be granted"):
        view_of([], Policy(read=[path]))


def test_a_grant_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        view_of([], Policy(read=[tmp_path / "missing"]))


def test_names_of_hosts_are_shown_only_with_an_open_network() -> None:
    assert "/etc/resolv.conf" not in places(view_of([], Policy()))
    if os.path.exists("/etc/resolv.conf"):
        assert "/etc/resolv.conf" in places(view_of([], Policy(), names=True))


def test_equal_views_can_share_a_zygote(tmp_path: Path) -> None:
    one, other = (view_of([tmp_path], Policy(read=[tmp_path])) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
