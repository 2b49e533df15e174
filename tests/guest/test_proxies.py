"""The namespaces as guest code sees them."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from py_code_mode.errors import ToolNotFound, WorkflowTooDeep
from py_code_mode.guest.evaluate import Interpreter
from py_code_mode.guest.holdings import Holdings
from py_code_mode.guest.proxies import MAX_DEPTH, build
from py_code_mode.namespaces import Namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Host:
    """Answers calls from a table, and keeps them."""

    def __init__(self, answers: Mapping[tuple[str, str], Any]) -> None:
        self.answers = dict(answers)
        self.calls: list[tuple[object, ...]] = []

    def call(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        self.calls.append((namespace, method, tuple(args), dict(kwargs)))
        answer = self.answers.get((namespace, method))
        return answer(*args, **kwargs) if callable(answer) else answer

    async def call_async(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        await anyio.lowlevel.checkpoint()
        return self.call(namespace, method, args, kwargs)


def namespaces(host: Host) -> dict[str, Any]:
    def load(name: str, source: str) -> Callable[..., object]:
        return interpreter.load_workflow(name, source)

    made: dict[str, Any] = build(host, Namespaces.describe(), load, Holdings())
    interpreter = Interpreter("_proxies_under_test", made)
    interpreter.close()
    return made


def test_calls_of_tools_carry_name_recipe_and_arguments() -> None:
    host = Host({})
    tools = namespaces(host)["tools"]
    tools.curl(url="x")
    tools.curl.get("y", flag=True)
    tools["odd name"].call_sync()
    tools.curl.list()
    assert host.calls == [
        ("tools", "curl", (), {"url": "x"}),
        ("tools", "curl.get", ("y",), {"flag": True}),
        ("tools", "odd name", (), {}),
        ("tools", "recipes", ("curl",), {}),
    ]


@pytest.mark.parametrize("name", ["_private", "__len__", "_repr_html_", "_ipython_display_"])
@pytest.mark.parametrize("namespace", ["tools", "workflows", "artifacts", "deps"])
def test_private_names_stay_in_the_guest(namespace: str, name: str) -> None:
    host = Host({})
    assert not hasattr(namespaces(host)[namespace], name)
    assert host.calls == []


def test_dir_lists_methods_and_what_is_stored() -> None:
    answers: dict[tuple[str, str], Any] = {
        ("tools", "names"): ["curl"],
        ("tools", "recipes"): [{"name": "get"}],
        ("workflows", "list"): [{"name": "flow"}],
    }
    made = namespaces(Host(answers))
    assert {"curl", "list", "search"} <= set(dir(made["tools"]))
    assert set(dir(made["tools"].curl)) >= {"get", "list", "call_async", "call_sync"}
    assert {"flow", "invoke", "invoke_async", "create"} <= set(dir(made["workflows"]))
    assert {"save", "load", "exists"} <= set(dir(made["artifacts"]))


def test_methods_show_signature_and_doc() -> None:
    made = namespaces(Host({}))
    doc = made["artifacts"].save.__doc__
    assert doc.startswith("artifacts.save(name: str, data: Any, description: str")
    assert made["tools"].ToolNotFound is ToolNotFound
    assert "save" in repr(made["artifacts"])


def test_namespaces_do_not_pickle() -> None:
    for namespace in namespaces(Host({})).values():
        with pytest.raises(TypeError, match="belongs to this session"):
            pickle.dumps(namespace)


SOURCES = {
    "add": "def run(a, b=1):\n    return a + b\n",
    "slow": "import asyncio\nasync def run(x):\n    await asyncio.sleep(0)\n    return x * 2\n",
    "outer": "def run(x):\n    return workflows.add(x) + workflows.slow(x)\n",
    "deep": "def run():\n    return workflows.deep()\n",
    "bad": "def run():\n    x = 1\n    return x / 0\n",
    "leaky": "def run():\n    global state\n    state = globals().get('state', 0) + 1\n"
    "    return state, sorted(n for n in globals() if not n.startswith('_'))\n",
}


@pytest.fixture
def workflows() -> Any:
    return namespaces(Host({("workflows", "source"): SOURCES.__getitem__}))["workflows"]


def test_workflows_run_in_the_guest_by_name_and_by_invoke(workflows: Any) -> None:
    assert workflows.add(1, b=5) == 6
    assert workflows.invoke("add", 1) == 2
    assert workflows.slow(x=4) == 8
    assert workflows.outer(3) == 4 + 6


def test_argument_called_name_reaches_the_workflow(workflows: Any) -> None:
    SOURCES["named"] = "def run(name):\n    return name\n"
    assert workflows.invoke("named", name="x") == "x"


@pytest.mark.anyio
async def test_workflows_run_inside_asynchronous_code(workflows: Any) -> None:
    assert await workflows.invoke_async("slow", x=1) == 2
    assert await workflows.slow.call_async(2) == 4
    assert workflows.slow(3) == 6
    assert workflows.outer(3) == 10


def test_workflow_has_fresh_globals_with_the_namespaces(workflows: Any) -> None:
    first = workflows.leaky()
    assert first == workflows.leaky()
    assert first[0] == 1
    assert {"tools", "workflows", "artifacts", "deps"} <= set(first[1])


def test_workflow_that_never_ends_in_depth_is_an_error(workflows: Any) -> None:
    with pytest.raises(WorkflowTooDeep, match=str(MAX_DEPTH)):
        workflows.deep()
    assert workflows.add(1) == 2


def test_traceback_of_a_workflow_names_it(workflows: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        workflows.bad()
    entry = caught.traceback[-1]
    assert entry.frame.code.raw.co_filename.startswith("<workflow bad")
    assert entry.lineno + 1 == 3
