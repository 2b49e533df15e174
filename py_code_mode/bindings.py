"""Handles as variables of the guest: bound when put, and again after a reset, a crash, a rollback.

A value is made ready to send once, its large parts as sealed memory; binding it again sends the
same memory and copies nothing. The guest maps it privately, so what code does to a variable stays
the guest's.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from py_code_mode.codecs.values import SharedValue, share_value
from py_code_mode.errors import CodeModeError, ExecutorClosed, GuestDied, HandleNotFound
from py_code_mode.execution.executor import Bind, Capability, Executor, Fetch, Offer
from py_code_mode.execution.supervisor import to_the_end
from py_code_mode.execution.worker import HEAVY
from py_code_mode.guest.variables import is_large
from py_code_mode.handles import Origin
from py_code_mode.handles.info import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from py_code_mode.handles import SessionHandles
    from py_code_mode.handles.info import Semantics

#: Bytes of values kept ready to be sent again; beyond, those sent longest ago are made anew.
MAX_SHARED = 1 << 30


class Bindings:
    """Keeps a session's handles bound in its guest.

    Used between runs only, by one task at a time.
    """

    def __init__(self, handles: SessionHandles, executor: Executor) -> None:
        self._handles = handles
        self._executor = executor
        self._is_live = Capability.LIVE_VALUES in executor.capabilities
        #: with the version of the handle that each is the value of
        self._shared: OrderedDict[str, tuple[int, SharedValue]] = OrderedDict()
        self._shared_bytes = 0
        #: the handles that are variables
        self._bound: set[str] = set()
        self._is_stale = False
        self._notes: list[str] = []

    async def put(
        self,
        name: str,
        value: object,
        *,
        overwrite: bool = False,
        semantics: Semantics | None = None,
    ) -> str:
        """Make a value a handle and, where its name is free, a variable; gives the name used.

        Cancelled, either nothing has changed, or all of it was done first.

        Raises:
            CodeModeError: the guest cannot build it. Either way nothing has changed.
        """
        ready = await self._ready(value)
        used = name

        async def keep() -> None:
            nonlocal used
            put = partial(
                self._handles.put,
                name,
                value,
                overwrite,
                semantics=semantics,
                origin=Origin(kind="put"),
            )
            used = await self._keep(put, name, value, ready, overwrite=overwrite)

        # Of a handle that a cancelled put leaves, nobody would know; and a guest that was told to
        # bind a variable cannot be told not to.
        await to_the_end(keep)
        return used

    async def _keep(
        self, put: Callable[[], str], name: str, value: object, ready: object, *, overwrite: bool
    ) -> str:
        try:
            undo = await self._undo_of(name) if overwrite else None
            used = await anyio.to_thread.run_sync(put) if is_large(value, HEAVY) else put()
        except BaseException:
            if isinstance(ready, SharedValue):
                ready.close()
            raise
        self._forget_unused()
        if isinstance(ready, SharedValue):
            self._keep_shared(used, ready)
        was_bound = used in self._bound
        self._bind(used)  # should this guest die now, the next one gets it
        try:
            if not await self._send(used, ready, replaces=overwrite):
                self._bound.discard(used)
        except (GuestDied, ExecutorClosed):
            raise
        except CodeModeError:
            if undo is not None:
                await anyio.to_thread.run_sync(undo)
            else:
                self._handles.delete(used)
            if not was_bound or undo is None:
                self._bound.discard(used)
            self._forget_unused()
            raise
        return used

    def know(self, name: str, value: object, *, semantics: Semantics | None = None) -> None:
        """Keep the value of a handle whose variable the guest has already."""
        self._handles.put(name, value, True, semantics=semantics, origin=Origin(kind="put"))
        self._bind(name)

    def is_bound(self, name: str) -> bool:
        """Whether the handle is a variable, too."""
        return name in self._bound

    async def _undo_of(self, name: str) -> Callable[[], object] | None:
        """What brings back the handle that is about to be replaced."""
        if not self._handles.is_here(name):
            return None
        info = self._handles.info(name)
        before = await anyio.to_thread.run_sync(self._handles.get, name)
        put = partial(self._handles.put, semantics=info.semantics, origin=info.origin)
        return partial(put, name, before, True)

    async def get(self, name: str) -> object:
        """The variable of this name; where there is none, or it is another's, the handle's value.

        Raises:
            HandleNotFound: there is neither.
            ValueNotPortable: the value would not cross unaltered.
        """
        name = key_of(name)
        is_here = self._handles.is_here(name)
        if not is_here or name in self._bound:
            try:
                return await self._executor.exchange(Fetch(name))
            except HandleNotFound:
                if not is_here:
                    raise
        return await anyio.to_thread.run_sync(self._handles.get, name)

    def expire(self) -> None:
        """Take note that the guest has other variables than before; see `renew`."""
        self._is_stale = True

    async def renew(self) -> list[str]:
        """Bind what the guest has lost of the handles that were variables.

        Returns:
            what its user should know: handles that cannot be bound any more.
        """
        if not self._is_stale:
            return []
        self._forget_unused()
        for name in sorted(self._bound):
            try:
                await self._send(name, await self._ready_again(name), replaces=False)
            except (GuestDied, ExecutorClosed):
                raise
            except CodeModeError as error:
                # it must not keep the session from going on
                self._bound.discard(name)
                self._notes.append(f"handle {name} is no variable any more: {error}")
        self._is_stale = False
        # Kept until here: whoever asks again after a cancellation is told all of it.
        notes, self._notes = self._notes, []
        return notes

    def take_over(self, origin: Bindings) -> None:
        """Know what is bound in a guest that is a copy of another session's."""
        for name in origin._bound:
            self._bind(name)
        self._is_stale = origin._is_stale

    def close(self) -> None:
        """Let go of all memory that was kept ready."""
        while self._shared:
            self._drop_shared(next(iter(self._shared)))

    def _bind(self, name: str) -> None:
        self._bound.add(name)
        self._handles.follow(name)

    async def _send(self, name: str, ready: object, *, replaces: bool) -> bool:
        message = (Bind if replaces else Offer)(name, ready, self._handles.version(name))
        return bool(await self._executor.exchange(message))

    async def _ready(self, value: object) -> object:
        """A value as it is sent: itself, where guest and host are one process."""
        if self._is_live:
            return value
        share = partial(share_value, value, allow_pickle=True)
        return await anyio.to_thread.run_sync(share) if is_large(value, HEAVY) else share()

    async def _ready_again(self, name: str) -> object:
        if name in self._shared:
            self._shared.move_to_end(name)
            return self._shared[name][1]
        ready = await self._ready(await anyio.to_thread.run_sync(self._handles.get, name))
        if isinstance(ready, SharedValue):
            self._keep_shared(name, ready)
        return ready

    def _keep_shared(self, name: str, shared: SharedValue) -> None:
        self._shared[name] = self._handles.version(name), shared
        self._shared_bytes += shared.nbytes
        self._handles.follow(name)
        while self._shared_bytes > MAX_SHARED and len(self._shared) > 1:
            self._drop_shared(next(iter(self._shared)))

    def _drop_shared(self, name: str) -> None:
        _, shared = self._shared.pop(name)
        self._shared_bytes -= shared.nbytes
        shared.close()

    def _forget_unused(self) -> None:
        """Let go of what there is beside handles that were deleted or have another value now.

        Guest code, and the user of `session.handles`, do that without telling.
        """
        for name in self._handles.take_outdated():
            if name in self._shared and self._shared[name][0] != self._handles.version(name):
                self._drop_shared(name)
            if not self._handles.is_here(name):
                self._bound.discard(name)
            elif name in self._bound:
                self._handles.follow(name)
