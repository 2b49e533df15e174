"""The host's codec: errors of its own, nothing of the guest's, and values that are shared."""

import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from py_code_mode.codecs.values import (
    EXCHANGE_LIMIT,
    SharedValue,
    decode_value,
    encode_value,
    share_value,
)
from py_code_mode.errors import ProtocolViolation, ValueNotPortable
from py_code_mode.guest import values
from py_code_mode.guest.segments import MEMFD_THRESHOLD, Sealed
from py_code_mode.guest.wire import MAX_FDS, FrameReader, WireError, pack

from ..sample_values import ONLY_IN_PYTHON, SAMPLES, same


def sent(tree: object, segments: Any) -> tuple[Any, list[Any]]:
    """What comes out at the other end."""
    buffers, fds = pack(json.dumps(tree).encode(), segments)
    (frame,) = FrameReader().feed(b"".join(map(bytes, buffers)), fds)
    return json.loads(frame.header), frame.segments


def bound(shared: SharedValue) -> Any:
    """The value as a guest has it."""
    tree, segments = sent(shared.tree, shared.segments)
    return values.decode(tree, segments, writable=True, trusts_sender=True)


def held() -> tuple[int, int]:
    """Descriptors, and mappings of sealed memory, that this process has."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("memfd:code-mode")
    return len(os.listdir("/proc/self/fd")), maps


@pytest.mark.parametrize("name", SAMPLES)
def test_values_come_back_or_are_refused(name: str) -> None:
    value = SAMPLES[name]()
    if name in ONLY_IN_PYTHON:
        with pytest.raises(ValueNotPortable, match=ONLY_IN_PYTHON[name]):
            encode_value(value)
        return
    assert same(decode_value(*sent(*encode_value(value)), writable=True), value)


def test_writable_arrays_are_copied_only_where_they_must_be() -> None:
    import numpy as np

    tree, segments = encode_value(np.arange(10_000))
    (segment,) = segments
    body: Any = segment
    frozen: Any = decode_value(tree, [bytes(body)])
    assert not frozen.flags.writeable
    owned: Any = decode_value(tree, [bytes(body)], writable=True)
    owned[0] = 7
    shared = bytearray(body)
    view: Any = decode_value(tree, [shared], writable=True)
    view[0] = 7
    assert shared[0] == 7


def test_garbage_is_a_violation() -> None:
    for tree in ({"$nope": 1}, {"$bytes": 0}, {"$frame": ["array"]}, object()):
        with pytest.raises(ProtocolViolation):
            decode_value(tree, [])


def test_what_this_side_lacks_is_no_violation() -> None:
    with pytest.raises(ValueNotPortable, match="Nowhere"):
        decode_value({"$zone": ["zone", "Nowhere/Land"]}, [])


def test_what_cannot_cross_is_refused() -> None:
    with pytest.raises(ValueNotPortable):
        encode_value(object())
    with pytest.raises(ValueNotPortable, match="too large"):
        encode_value(b"x" * 100, limit=10)
    with pytest.raises(ValueNotPortable, match="too large"):
        share_value(b"x" * 100, limit=10)


def test_more_than_the_limit_is_a_violation() -> None:
    tree, segments = encode_value(b"x" * 10_000)
    with pytest.raises(ProtocolViolation, match="10000 bytes; the limit is 9999"):
        decode_value(tree, segments, limit=9999)
    assert decode_value(tree, segments, limit=10_000) == b"x" * 10_000


def test_what_is_asked_for_by_name_may_be_larger_than_a_result() -> None:
    import numpy as np

    value = np.ones(10_000_000)
    with pytest.raises(ValueNotPortable, match="too large"):
        encode_value(value)
    tree, segments = sent(*encode_value(value, limit=EXCHANGE_LIMIT))
    with pytest.raises(ProtocolViolation, match="80000000 bytes"):
        decode_value(tree, segments)
    back: Any = decode_value(tree, segments, limit=EXCHANGE_LIMIT)
    assert back.sum() == 10_000_000


def test_a_hundred_frames_of_ten_megabytes_cross_at_once() -> None:
    import numpy as np
    import pandas as pd

    before = held()
    value = {f"part {n}": pd.DataFrame(np.full((125_000, 10), float(n))) for n in range(100)}
    shared = share_value(value)
    assert shared.nbytes == 10**9
    back = bound(shared)
    shared.close()
    assert list(back) == list(value)
    assert all(back[f"part {n}"].iloc[-1, -1] == n for n in range(100))
    back["part 7"].iloc[0, 0] = 5.0
    assert back["part 6"].iloc[-1, -1] == 6.0
    assert value["part 7"].iloc[0, 0] == 7.0
    assert held()[1] - before[1] <= MAX_FDS
    del back
    assert held() == before


# -- shared values


@pytest.mark.parametrize("name", SAMPLES)
def test_shared_values_are_bound_as_they_are(name: str) -> None:
    value = SAMPLES[name]()
    shared = share_value(value, allow_pickle=True)
    try:
        assert shared.is_pickled == (name in ONLY_IN_PYTHON)
        assert same(bound(shared), value)
        assert same(bound(shared), value)
    finally:
        shared.close()


def test_each_guest_writes_to_a_copy_of_its_own() -> None:
    import numpy as np
    import pandas as pd

    value = pd.DataFrame(np.zeros((1_000_000, 3)))
    shared = share_value(value)
    first, second = bound(shared), bound(shared)
    first.iloc[0, 0] = 1.0
    second.iloc[0, 0] = 2.0
    value.iloc[0, 0] = 3.0
    third = bound(shared)
    shared.close()
    assert [frame.iloc[0, 0] for frame in (first, second, third, value)] == [1.0, 2.0, 0.0, 3.0]


def test_a_shared_value_is_what_it_was_when_it_was_shared() -> None:
    value = {"small": bytearray(b"x" * 5000), "large": bytearray(b"x" * MEMFD_THRESHOLD)}
    shared = share_value(value)
    value["small"][0] = value["large"][0] = 0
    back = bound(shared)
    shared.close()
    assert back["small"][0] == back["large"][0] == ord("x")


def test_sharing_leaves_neither_descriptors_nor_mappings() -> None:
    import numpy as np

    before = held()
    shared = share_value([np.ones(1_000_000), {"a": np.ones(100)}])
    (sealed,) = [one for one in shared.segments if isinstance(one, Sealed)]
    assert held()[0] == before[0] + 1
    several = [bound(shared) for _ in range(20)]
    assert held()[0] == before[0] + 1
    shared.close()
    shared.close()
    assert sealed.fd == -1
    with pytest.raises(WireError, match="closed"):
        bound(shared)
    assert several[-1][0].sum() == 1_000_000
    del several
    assert held() == before
    dropped = share_value(np.ones(1_000_000))
    del dropped
    assert held() == before, "nobody can close what nobody has"


def test_one_value_is_shared_by_several_threads() -> None:
    import numpy as np

    shared = share_value(np.arange(100_000.0))
    wrong: list[object] = []

    def bind() -> None:
        for _ in range(20):
            back = bound(shared)
            back[0] = 5.0
            if back.sum() != 5.0 + sum(range(100_000)):
                wrong.append(back)

    threads = [threading.Thread(target=bind) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()
    assert not wrong


def test_pickle_is_shared_only_where_it_is_allowed() -> None:
    value = {1, *"text"}, threading.Lock
    with pytest.raises(ValueNotPortable):
        share_value(value)
    shared = share_value(value, allow_pickle=True)
    assert bound(shared) == value
    with pytest.raises(ValueNotPortable, match="pickled"):
        share_value(threading.Lock(), allow_pickle=True)
    with pytest.raises(ValueNotPortable, match="too large"):
        share_value([object, b"x" * 1000], limit=500, allow_pickle=True)


def test_the_host_never_takes_a_pickle(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trap"),)

    shared = share_value(Trap(), allow_pickle=True)
    tree, segments = sent(shared.tree, shared.segments)
    with pytest.raises(ProtocolViolation, match="pickle"):
        decode_value(tree, segments, limit=EXCHANGE_LIMIT)
    assert not list(tmp_path.iterdir())


def test_a_library_the_guest_lacks_is_named() -> None:
    import numpy as np

    with pytest.raises(ValueNotPortable, match="does not have numpy"):
        encode_value(np.ones(2), accepts=frozenset())
