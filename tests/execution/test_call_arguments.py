"""What guest code gives to a tool arrives as it is, large data too, in every place of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from py_code_mode import MemoryStorage, Session, SubprocessExecutor

if TYPE_CHECKING:
    import pandas as pd

CALLS = {
    "by position": "tools.shape(frame)",
    "by name": "tools.shape(frame=frame)",
    "in both places": "tools.shape(frame, other=frame)",
    "beside plain values": "tools.shape(frame, note='x' * 100)",
}


@pytest.mark.anyio
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_frame_arrives_at_a_tool(call: str) -> None:
    # Positional and named arguments were decoded one after the other, and the data of the one kind
    # was then taken for data that belongs to nothing: the worker was ended.
    def shape(
        frame: pd.DataFrame, other: pd.DataFrame | None = None, note: str = ""
    ) -> tuple[int, int]:
        assert other is None or other.equals(frame)
        return frame.shape

    with anyio.fail_after(100):
        async with Session(MemoryStorage(), SubprocessExecutor()) as session:
            session.add_tool(shape)
            result = await session.run(
                f"import pandas as pd\nframe = pd.DataFrame({{'a': range(50_000)}})\n{call}"
            )
            assert result.error is None
            assert result.value == (50_000, 1)
            assert result.state == "kept"
