"""A repr is bounded in length and time; looking at an object without it runs none of its code."""

import _thread
import collections
import decimal
import signal
import threading
import time
from typing import Any

import pytest

from py_code_mode.guest.reprs import (
    MISSING,
    Reprs,
    attributes,
    bounded_repr,
    is_a,
    member,
)


class Raises:
    def __repr__(self) -> str:
        raise SystemExit("no repr")


class Endless:
    def __repr__(self) -> str:
        return repr(self)


class Long:
    def __repr__(self) -> str:
        return "long " * 1_000_000


class NotText:
    def __repr__(self) -> Any:
        return 5


class Busy:
    """Its repr never returns, but runs bytecode: it can be stopped."""

    asked = 0
    stopped = threading.Event()

    def __repr__(self) -> str:
        Busy.asked += 1
        try:
            while True:
                pass
        finally:
            Busy.stopped.set()


class Stuck:
    """Its repr waits in C until it is let go."""

    def __init__(self) -> None:
        self.let_go = _thread.allocate_lock()
        self.let_go.acquire()

    def __repr__(self) -> str:
        self.let_go.acquire()
        return "late"


def test_what_a_repr_does_wrong_is_said() -> None:
    assert "raises SystemExit" in bounded_repr(Raises())
    assert "raises RecursionError" in bounded_repr(Endless())
    assert "raises TypeError" in bounded_repr(NotText())
    assert "characters" in bounded_repr(Long(), 100)
    assert len(bounded_repr(Long(), 100)) < 160
    assert bounded_repr(1 << 100_000) == "<int of 100,001 bits>"


def test_an_interrupt_passes_through_a_repr_that_is_waited_for() -> None:
    class Stops:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounded_repr(Stops())
    # asked apart it is the object's own, no interrupt
    assert "raises KeyboardInterrupt" in Reprs().of(Stops())


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals go to the main one"
)
def test_a_real_interrupt_ends_the_waiting() -> None:
    stopped = threading.Event()

    class Interrupts:
        def __repr__(self) -> str:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            try:
                while True:
                    pass
            finally:
                stopped.set()

    with pytest.raises(KeyboardInterrupt):
        Reprs().of(Interrupts())
    assert stopped.wait(5)


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_repr_that_never_ends_costs_a_moment_and_is_stopped(is_inside: bool) -> None:
    Busy.stopped.clear()
    reprs = Reprs()
    began = time.monotonic()
    text = reprs.of(collections.deque([Busy()]) if is_inside else Busy())
    assert "did not end within 0.25 s" in text
    assert time.monotonic() - began < 5
    assert Busy.stopped.wait(5)


def test_all_reprs_of_one_snapshot_share_the_patience() -> None:
    Busy.asked = 0
    reprs = Reprs()
    texts = [reprs.of(Busy()) for _ in range(20)]
    assert Busy.asked == 1
    assert "did not end" in texts[0]
    assert all(text.endswith("Busy>") for text in texts[1:])


def test_a_repr_that_cannot_be_stopped_goes_on_and_that_is_said() -> None:
    stuck = Stuck()
    text = Reprs().of(stuck)
    assert text.endswith("did not end within 0.25 s, and goes on>")
    names = [thread.name for thread in threading.enumerate()]
    assert any(name.startswith("repr of") and name.endswith("Stuck") for name in names)
    stuck.let_go.release()
    for thread in threading.enumerate():
        if thread.name.endswith("Stuck"):
            thread.join(5)
            assert not thread.is_alive()


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    reprs = Reprs()
    for _ in range(20):
        assert reprs.of(collections.deque([1])) == "deque([1])"
    assert threading.active_count() == before


def test_a_repr_sees_the_settings_of_the_thread_that_asks() -> None:
    class Precise:
        def __repr__(self) -> str:
            return str(decimal.getcontext().prec)

    with decimal.localcontext() as context:
        context.prec = 7
        assert Reprs().of(Precise()) == "7"


def test_where_no_thread_can_be_started_the_class_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert "was not asked" in Reprs().of(NotText())


def test_instances_are_read_without_their_code() -> None:
    class Hidden:
        __slots__ = ("__dict__", "slot")

        def __init__(self) -> None:
            self.plain = 1
            self.slot = 2

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    class Planted:
        __dict__ = property(lambda self: {"a": 1})  # type: ignore[assignment]

    value = Hidden.__new__(Hidden)
    object.__setattr__(value, "plain", 1)
    object.__setattr__(value, "slot", 2)
    assert attributes(value) == {"plain": 1}
    assert (member(value, "plain"), member(value, "slot")) == (1, 2)
    assert member(value, "other") is MISSING
    assert attributes(Planted()) is None
    assert attributes(5) is None


def test_a_class_that_lies_about_itself_is_not_believed() -> None:
    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            raise AssertionError

        def __subclasscheck__(cls, subclass: type) -> bool:
            raise AssertionError

        def mro(cls) -> list[type]:
            return super().mro()

    Lie = Meta("DataFrame", (), {"__module__": "pandas"})
    assert not is_a(Lie, "pandas", "DataFrame")
    assert is_a(decimal.Decimal, "decimal", "Decimal")
    assert not is_a(int, "no_such_module", "int")
