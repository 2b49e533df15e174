"""An executor that runs nothing: for tests of code that uses a session.

```python
executor = FakeExecutor({"1 + 1": 2, "boom": ZeroDivisionError("division by zero")})
async with Session(MemoryStorage(), executor) as session:
    result = await my_agent(session)
assert executor.seen == ["1 + 1"]
```
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from py_code_mode.environments.base import Environment, host_environment
from py_code_mode.errors import ExecutorClosed, HandleNotFound
from py_code_mode.execution.executor import (
    Bind,
    Call,
    Capability,
    Exchange,
    Executor,
    ExecutorConfig,
    Fetch,
    Offer,
    OnEvent,
    RunOutcome,
    RunRequest,
    Save,
    SavedState,
    Setup,
)
from py_code_mode.results import Failure, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: What a script gives for a cell: the value, an exception that the cell raised, a whole outcome, or
#: a function of the code that gives one of these.
Scripted: TypeAlias = "object | BaseException | RunOutcome | Callable[[str], object]"


class FakeExecutor(Executor):
    """Answers each cell from a script; keeps what it was asked in `seen`.

    Args:
        script: what each cell gives, by its exact text.
        default: what every other cell gives; may be a function of the code.
        config: as for any executor.
    """

    name = "fake"
    offers = frozenset(
        {Capability.TIMEOUT, Capability.RESET, Capability.EXCHANGE, Capability.LIVE_VALUES}
    )

    def __init__(
        self,
        script: Mapping[str, Scripted] | None = None,
        default: Scripted = None,
        config: ExecutorConfig | None = None,
    ) -> None:
        self._script = dict(script or {})
        self._default = default
        self._config = config or ExecutorConfig()
        self._state = "not started"
        #: the code of every run, in order
        self.seen: list[str] = []
        #: what was bound with `Session.put`, and is given by `Session.get`
        self.variables: dict[str, object] = {}

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        return cls(config=ExecutorConfig(**options))

    @property
    def config(self) -> ExecutorConfig:
        return self._config

    @property
    def environment(self) -> Environment:
        return host_environment()

    async def start(self, setup: Setup, call: Call) -> frozenset[str]:
        if self._state != "not started":
            raise ExecutorClosed(self.name, self._state)
        self._state = "started"
        return self.capabilities

    def _check_started(self) -> None:
        if self._state != "started":
            raise ExecutorClosed(self.name, self._state)

    async def run(self, request: RunRequest, on_event: OnEvent | None = None) -> RunOutcome:
        self._check_started()
        self.seen.append(request.code)
        given = self._script.get(request.code, self._default)
        if callable(given) and not isinstance(given, type):
            given = given(request.code)
        outcome = given if isinstance(given, RunOutcome) else _outcome(given)
        self.state, self.restored_to = outcome.state, outcome.restored_to
        if on_event is not None:
            if outcome.stdout:
                await _tell(on_event, Output("stdout", outcome.stdout))
            if outcome.stderr:
                await _tell(on_event, Output("stderr", outcome.stderr))
        return replace(outcome)

    async def exchange(self, message: Exchange) -> object:
        self._check_started()
        match message:
            case Bind(name, value):
                self.variables[name] = value
                return True
            case Offer(name, value):
                return self.variables.setdefault(name, value) is value
            case Fetch(name):
                if name not in self.variables:
                    raise HandleNotFound(name)
                return self.variables[name]
            case Save():
                return SavedState(parts=[b""], types={}, skipped={})
            case _:
                return None

    async def interrupt(self) -> bool:
        self._check_started()
        return False

    async def reset(self) -> None:
        self._check_started()
        self.variables.clear()

    async def close(self) -> None:
        self._state = "closed"


async def _tell(on_event: OnEvent, event: Output) -> None:
    from inspect import isawaitable

    given = on_event(event)
    if isawaitable(given):
        await given


def _outcome(given: object) -> RunOutcome:
    if isinstance(given, BaseException):
        return RunOutcome(failure=Failure(type=type(given).__name__, message=str(given)))
    return RunOutcome(value=given)
