"""What a guest keeps of a session's handles."""

from __future__ import annotations

import pytest

from py_code_mode.guest.holdings import HELD_RESULTS, Holdings, sketch


def test_a_held_value_comes_before_a_variable_of_its_name() -> None:
    holdings = Holdings()
    holdings.variables["x"] = "variable"
    holdings.hold("x", "held")
    assert holdings.find("x") == "held"
    assert holdings.is_held("x")
    holdings.release("x")
    holdings.release("x")
    assert holdings.find("x") == "variable"
    with pytest.raises(KeyError):
        holdings.find("none")


def test_only_the_newest_results_are_held() -> None:
    holdings = Holdings()
    for number in range(HELD_RESULTS + 3):
        holdings.hold_result(f"_{number}", number)
    assert not holdings.is_held("_2")
    assert holdings.find("_3") == 3
    holdings.release("_3")
    holdings.hold_result("_new", "new")  # there is room for it again
    assert holdings.find("_4") == 4


def test_a_handle_takes_no_variable_from_the_user() -> None:
    holdings = Holdings()
    assert holdings.has_room("x", 1)
    value = ["of the host"]
    holdings.bind("x", value, 1)
    assert not holdings.has_room("x", 1)  # it is there, perhaps changed where it is
    assert holdings.has_room("x", 2)
    holdings.variables["x"] = ["of the user"]
    assert not holdings.has_room("x", 2)
    del holdings.variables["x"]
    assert holdings.has_room("x", 1)


def test_all_is_forgotten_with_the_namespace() -> None:
    holdings = Holdings()
    holdings.hold_result("_1", object())
    holdings.bind("x", 1, 1)
    holdings.forget()
    assert not holdings.is_held("_1")
    assert not holdings.has_room("x", 2)  # whose it is now is not known


def test_the_host_is_told_of_a_value_within_bounds() -> None:
    def fail(value: object) -> str:
        raise ZeroDivisionError

    hostile = type("T" * 5000, (), {"__repr__": fail})()
    told = sketch("x", hostile)
    assert told["name"] == "x"
    assert len(told["type"]) == 500
    assert len(str(told["snapshot"])) < 3000
