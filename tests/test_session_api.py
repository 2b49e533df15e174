"""The Session API reference, row by row: signatures, defaults, keys, None and False cases."""

from __future__ import annotations

import inspect
import os
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest

from py_code_mode import (
    ArtifactNotFound,
    ExecutionResult,
    FileStorage,
    InProcessConfig,
    InProcessExecutor,
    Policy,
    Session,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.errors import RuntimeDepsDisabled, SessionClosed

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

Make: TypeAlias = "Callable[..., Session]"

TIMEOUT = 120.0
MADE: dict[str, Make] = {
    "from_base": Session.from_base,
    "subprocess": Session.subprocess,
    "inprocess": Session.inprocess,
}


def redact(record: dict[str, Any]) -> dict[str, Any]:
    return record


#: What each keyword of a constructor is set to, and where it has to arrive.
PASSED: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "timeout": (7.0, lambda session: session._executor.config.default_timeout),
    "extra_deps": (("tomli",), lambda session: session._executor.config.extra_deps),
    "allow_runtime_deps": (False, lambda session: session._executor.config.allow_runtime_deps),
    "sync_deps_on_start": (True, lambda session: session._sync_deps_on_start),
    "python_version": ("3.13", lambda session: session._executor.config.python_version),
    "cache_venv": (False, lambda session: session._executor.config.cache_venv),
    "policy": (Policy(processes=7), lambda session: session._executor.config.policy),
    "backend": ("landlock", lambda session: session._executor.config.backend),
    "protect": ("off", lambda session: session._executor.config.protect),
    "pool": (3, lambda session: session._executor.config.pool),
    "workdir": (Path("/tmp").resolve(), lambda session: session._given_workdir),
    "record": (False, lambda session: session._is_recorded),
    "redact": (redact, lambda session: session._redact),
}


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        (name, keyword)
        for name, make in MADE.items()
        for keyword in list(inspect.signature(make).parameters)[1:]
    ],
)
def test_every_constructor_passes_every_keyword_on(tmp_path: Path, name: str, keyword: str) -> None:
    if keyword == "policy":  # which needs an executor that can keep it
        (tmp_path / "config.yaml").write_text("executor: subprocess")
    given, arrived = PASSED[keyword]
    assert arrived(MADE[name](tmp_path, **{keyword: given})) == given
    assert arrived(MADE[name](tmp_path)) != given


@pytest.mark.parametrize("name", MADE)
def test_every_constructor_takes_what_session_takes(name: str) -> None:
    of_session = set(inspect.signature(Session).parameters) - {"storage", "executor"}
    assert of_session <= set(inspect.signature(MADE[name]).parameters)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A workspace with one of each."""
    folder = tmp_path / "base"
    (folder / "tools").mkdir(parents=True)
    (folder / "tools" / "echo.yaml").write_text(
        "name: echo\n"
        "description: Say words again\n"
        "command: echo\n"
        "tags: [text]\n"
        "schema:\n"
        "  positional: [{name: words, type: string, required: true}]\n"
    )
    (folder / "tools" / "numbers.py").write_text(
        'def double(x: int) -> int:\n    """Double a number."""\n    return 2 * x\n'
    )
    (folder / "workflows").mkdir()
    (folder / "workflows" / "twice.py").write_text(
        '"""Call a tool twice."""\n\n\ndef run(x: int) -> int:\n'
        "    return tools.double(x) + tools.double(x)\n"
    )
    return folder


@pytest.fixture(params=["inprocess", "subprocess"])
def make(request: pytest.FixtureRequest) -> Make:
    return MADE[request.param]


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of wheels, the only index there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")) and name != "UV_CACHE_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("alpha", "beta"):
        # what one in-process session imported, the process keeps
        monkeypatch.delitem(sys.modules, f"code_mode_{name}", raising=False)
        module, info = f"code_mode_{name}", f"code_mode_{name}-1.0.dist-info"
        body = {
            f"{module}.py": "value = 42\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: code-mode-{name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        body[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*body, f"{info}/RECORD"))
        with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
            for path, text in body.items():
                archive.writestr(path, text)
    return folder


async def value(session: Session, code: str) -> Any:
    result = await session.run(code)
    assert result.is_ok, result.failure
    return result.value


# -- Convenience Constructors


def parameters(function: Callable[..., object]) -> dict[str, tuple[str, object]]:
    kinds = {
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
    }
    found = inspect.signature(function).parameters.values()
    return {p.name: (kinds[p.kind], p.default) for p in found if p.name != "self"}


EMPTY = inspect.Parameter.empty
COMMON: dict[str, tuple[str, object]] = {
    "extra_deps": ("keyword", None),
    "allow_runtime_deps": ("keyword", True),
    "sync_deps_on_start": ("keyword", False),
    "workdir": ("keyword", None),
    "record": ("keyword", None),
    "redact": ("keyword", None),
}


def test_from_base_has_the_documented_signature() -> None:
    assert parameters(Session.from_base) == {
        "base": ("positional", EMPTY),
        "timeout": ("keyword", 30.0),
        **COMMON,
        "policy": ("keyword", None),
    }


def test_subprocess_has_the_documented_signature() -> None:
    assert parameters(Session.subprocess) == {
        "base_path": ("positional", EMPTY),
        "timeout": ("keyword", 60.0),
        **COMMON,
        "python_version": ("keyword", None),
        "cache_venv": ("keyword", True),
        "policy": ("keyword", None),
        "backend": ("keyword", "auto"),
        "protect": ("keyword", "idle"),
        "pool": ("keyword", 0),
    }


def test_inprocess_has_the_documented_signature() -> None:
    assert parameters(Session.inprocess) == {
        "base_path": ("positional", EMPTY),
        "timeout": ("keyword", 30.0),
        **COMMON,
    }


def test_direct_constructor_has_the_documented_parameters() -> None:
    found = parameters(Session.__init__)
    assert {name: found[name] for name in list(found)[:3]} == {
        "storage": ("positional", EMPTY),
        "executor": ("positional", None),
        "sync_deps_on_start": ("positional", False),
    }
    assert all(kind == "keyword" for kind, _ in list(found.values())[3:])


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("start", {}),
        ("close", {}),
        ("reset", {}),
        ("run", {"code": EMPTY, "timeout": None}),
        ("supports", {"capability": EMPTY}),
        ("supported_capabilities", {}),
        ("list_tools", {}),
        ("search_tools", {"query": EMPTY, "limit": 10}),
        ("list_workflows", {}),
        ("search_workflows", {"query": EMPTY, "limit": 5}),
        ("get_workflow", {"name": EMPTY}),
        ("add_workflow", {"name": EMPTY, "source": EMPTY, "description": EMPTY}),
        ("remove_workflow", {"name": EMPTY}),
        ("list_artifacts", {}),
        ("save_artifact", {"name": EMPTY, "data": EMPTY, "description": "", "metadata": None}),
        ("load_artifact", {"name": EMPTY}),
        ("delete_artifact", {"name": EMPTY}),
        ("list_deps", {}),
        ("add_dep", {"package": EMPTY}),
        ("remove_dep", {"package": EMPTY}),
        ("sync_deps", {}),
    ],
)
def test_method_has_the_documented_signature(method: str, wanted: dict[str, object]) -> None:
    function = getattr(Session, method)
    found = {name: default for name, (_, default) in parameters(function).items()}
    assert dict(list(found.items())[: len(wanted)]) == wanted
    if method != "run":  # which has on_output, too
        assert found == wanted
    sync = method in ("supports", "supported_capabilities")
    assert inspect.iscoroutinefunction(function) is not sync


@pytest.mark.parametrize("constructor", ["from_base", "subprocess", "inprocess"])
async def test_constructors_find_tools_workflows_artifacts_and_requirements(
    base: Path, constructor: str
) -> None:
    (base / "requirements.txt").write_text("numpy>=1\n")
    (base / "artifacts").mkdir()
    async with MADE[constructor](base) as session:
        assert {tool["name"] for tool in await session.list_tools()} == {"echo", "double"}
        assert [workflow["name"] for workflow in await session.list_workflows()] == ["twice"]
        assert await session.list_artifacts() == []
        assert await session.list_deps() == ["numpy>=1"]
        assert await value(session, "workflows.twice(x=4)") == 16


@pytest.mark.parametrize("constructor", ["from_base", "subprocess", "inprocess"])
async def test_constructors_take_a_missing_folder_as_text_and_make_nothing(
    tmp_path: Path, constructor: str
) -> None:
    async with MADE[constructor](str(tmp_path / "missing")) as session:
        assert await session.list_tools() == []
        assert await session.list_deps() == []
        assert await value(session, "1 + 1") == 2
    assert not (tmp_path / "missing").exists()


async def test_constructors_expand_the_home_folder(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    async with Session.inprocess("~/base") as session:
        assert [workflow["name"] for workflow in await session.list_workflows()] == ["twice"]


def test_from_base_runs_in_this_process_unless_the_workspace_says_otherwise(base: Path) -> None:
    assert not Session.from_base(base).supports("process_isolation")
    assert Session.subprocess(base).supports("process_isolation")
    assert not Session.inprocess(base).supports("process_isolation")


async def test_timeout_of_a_constructor_is_the_default_of_its_runs(base: Path, make: Make) -> None:
    async with make(base, timeout=0.3) as session:
        result = await session.run("while True: pass")
        assert not result.is_ok
        assert result.error is not None
        assert result.error.startswith("TimeoutError: ")


@pytest.mark.parametrize("constructor", ["from_base", "subprocess", "inprocess"])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"extra_deps": "six"}, TypeError, r"must be a tuple such as \('six',\)"),
        ({"timeout": 0}, ValueError, "timeout must be above 0"),
        ({"timeout": -1}, ValueError, "timeout must be above 0"),
        ({"timeout": float("nan")}, ValueError, "timeout must be above 0"),
        ({"timeout": "5"}, TypeError, "timeout must be seconds"),
        ({"timeout": True}, TypeError, "timeout must be seconds"),
    ],
)
def test_constructor_refuses_what_no_run_could_use(
    base: Path, constructor: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """A text was read as a tuple of letters, and a timeout of 0 refused by the first run."""
    with pytest.raises(error, match=text):
        getattr(Session, constructor)(base, **options)
    if constructor == "subprocess":
        with pytest.raises(error, match=text):
            Session.subprocess(base, policy=Policy(), **options)


async def test_constructors_take_a_workdir(base: Path, make: Make, tmp_path: Path) -> None:
    """It could be given to Session() alone."""
    folder = tmp_path / "given"
    async with make(base, workdir=folder) as session:
        if session.supports("process_isolation"):
            code = "import os; open('made', 'w').close(); os.getcwd()"
            assert await value(session, code) == str(folder)
            assert (folder / "made").exists()
    assert folder.is_dir()


async def test_subprocess_uses_the_python_version_asked_for(base: Path) -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    async with Session.subprocess(base, python_version=version) as session:
        found = await value(session, "import sys; sys.version_info[:2]")
        assert tuple(found) == sys.version_info[:2]


async def test_direct_constructor_uses_what_it_is_given(base: Path, tmp_path: Path) -> None:
    tools = tmp_path / "other tools"
    tools.mkdir()
    (tools / "own.py").write_text('def own() -> int:\n    """One."""\n    return 1\n')
    storage = FileStorage(base_path=base)
    executor = SubprocessExecutor(config=SubprocessConfig(tools_path=tools))
    async with Session(storage=storage, executor=executor) as session:
        assert session.storage is storage
        assert [tool["name"] for tool in await session.list_tools()] == ["own"]
        assert await value(session, "tools.own()") == 1


async def test_direct_constructor_defaults_to_the_in_process_executor(base: Path) -> None:
    async with Session(FileStorage(base)) as session:
        assert session.supported_capabilities() == set(InProcessExecutor.offers)
        assert await value(session, "workflows.twice(1)") == 4


# -- Lifecycle Methods


async def test_start_and_close_by_hand(base: Path, make: Make) -> None:
    session = make(base)
    with pytest.raises(SessionClosed):
        await session.run("1")
    await session.start()
    await session.start()
    try:
        assert await value(session, "1 + 1") == 2
    finally:
        await session.close()
    await session.close()
    await session.aclose()
    with pytest.raises(SessionClosed):
        await session.run("1")
    with pytest.raises(SessionClosed):
        await session.start()
    for method in (session.list_tools, session.list_artifacts, session.reset, session.list_deps):
        with pytest.raises(SessionClosed):
            await method()


async def test_reset_clears_variables_and_keeps_namespaces(base: Path, make: Make) -> None:
    async with make(base) as session:
        await session.run("x = 42")
        await session.reset()
        result = await session.run("x")
        assert result.error == "NameError: name 'x' is not defined"
        assert await value(session, "tools.double(2)") == 4


# -- Code Execution


async def test_run_gives_value_stdout_error_and_is_ok(base: Path, make: Make) -> None:
    async with make(base) as session:
        result = await session.run("print('hello')\n6 * 7")
        assert isinstance(result, ExecutionResult)
        assert (result.value, result.stdout, result.error, result.is_ok) == (
            42,
            "hello\n",
            None,
            True,
        )
        result = await session.run("1 / 0")
        assert (result.value, result.is_ok) == (None, False)
        assert result.error == "ZeroDivisionError: division by zero"
        assert result.run_id == 2


async def test_timeout_of_run_overrides_the_default(base: Path, make: Make) -> None:
    async with make(base, timeout=None) as session:
        result = await session.run("while True: pass", timeout=0.3)
        assert result.error is not None
        assert "0.3 s" in result.error
        result = await session.run("while True: pass", 0.3)
        assert result.state == "kept"


async def test_example_of_the_reference_works(base: Path, make: Make) -> None:
    async with make(base) as session:
        result = await session.run(
            "\nimport json\ndata = tools.echo(words='{\"public_repos\": 8}')\n"
            'json.loads(data)["public_repos"]\n'
        )
        assert result.value == 8, result.error


# -- Capability Query


@pytest.mark.parametrize(
    ("constructor", "has", "lacks"),
    [
        (
            "subprocess",
            {"timeout", "process_isolation", "reset", "deps_install"},
            {"container_isolation"},
        ),
        (
            "inprocess",
            {"timeout", "reset", "deps_install"},
            {"process_isolation", "container_isolation", "network_isolation"},
        ),
    ],
)
async def test_supports_and_supported_capabilities(
    base: Path, constructor: str, has: set[str], lacks: set[str]
) -> None:
    session = MADE[constructor](base)
    for _ in range(2):  # before the start, and after it
        found = session.supported_capabilities()
        assert type(found) is set
        assert has <= found
        assert not lacks & found
        assert all(session.supports(name) for name in found)
        assert not any(session.supports(name) for name in lacks | {"no such thing"})
        await session.start()
    await session.close()


# -- Tools Methods


async def test_list_tools_gives_name_description_and_tags(base: Path, make: Make) -> None:
    async with make(base) as session:
        tools = {tool["name"]: tool for tool in await session.list_tools()}
        assert tools["echo"]["description"] == "Say words again"
        assert tools["echo"]["tags"] == ["text"]
        assert tools["double"]["description"] == "Double a number."
        assert {tool["name"] for tool in await value(session, "tools.list()")} == set(tools)


async def test_search_tools_finds_by_words_within_the_limit(base: Path, make: Make) -> None:
    async with make(base) as session:
        assert [tool["name"] for tool in await session.search_tools("double numbers")] == ["double"]
        assert len(await session.search_tools("say double", limit=1)) == 1
        assert await session.search_tools("zebra") == []
        found = await value(session, "tools.search('say words')")
        assert [tool["name"] for tool in found] == ["echo"]


# -- Workflows Methods


async def test_list_workflows_gives_summaries_without_source(base: Path, make: Make) -> None:
    async with make(base) as session:
        (entry,) = await session.list_workflows()
        assert entry["name"] == "twice"
        assert entry["description"] == "Call a tool twice."
        assert "parameters" in entry
        assert "source" not in entry


async def test_search_workflows_finds_by_words_within_the_limit(base: Path) -> None:
    async with Session.inprocess(base) as session:
        found = await session.search_workflows("calling tools twice")
        assert [entry["name"] for entry in found] == ["twice"]
        for number in range(7):
            await session.add_workflow(f"w{number}", "def run(): pass", "feed the zebra")
        assert len(await session.search_workflows("zebra")) == 5
        assert len(await session.search_workflows("zebra", limit=2)) == 2


async def test_get_workflow_gives_the_source_or_none(base: Path, make: Make) -> None:
    async with make(base) as session:
        entry = await session.get_workflow("twice")
        assert entry is not None
        assert {"name", "description", "parameters", "source"} <= set(entry)
        assert "def run(x: int)" in entry["source"]
        assert await session.get_workflow("missing") is None


async def test_add_workflow_persists_and_remove_workflow_tells_if_it_was_there(
    base: Path, make: Make
) -> None:
    async with make(base) as session:
        entry = await session.add_workflow(
            name="greet",
            source="async def run(name: str) -> str:\n    return 'hello ' + name\n",
            description="Greet somebody",
        )
        assert entry["name"] == "greet"
        assert await value(session, "workflows.greet(name='you')") == "hello you"
        assert await value(session, "await workflows.greet.call_async('you')") == "hello you"
    async with make(base) as session:
        found = await session.get_workflow("greet")
        assert found is not None
        assert found["description"] == "Greet somebody"
        assert await session.remove_workflow("greet") is True
        assert await session.remove_workflow("greet") is False
        assert await session.get_workflow("greet") is None


# -- Artifacts Methods


async def test_artifacts_are_saved_listed_loaded_and_deleted(base: Path, make: Make) -> None:
    data = {"repos": 42, "stars": [1000, None, 1.5]}
    async with make(base) as session:
        saved = await session.save_artifact(
            name="analysis", data=data, description="GitHub results", metadata={"by": "me"}
        )
        assert saved["name"] == "analysis"
        (entry,) = await session.list_artifacts()
        assert {"name", "path", "description", "metadata", "created_at"} <= set(entry)
        assert (entry["description"], entry["metadata"]) == ("GitHub results", {"by": "me"})
        assert await session.load_artifact("analysis") == data
        assert await value(session, "artifacts.load('analysis')") == data
        await value(session, "artifacts.save('from inside', [1, 2])")
        assert await session.load_artifact("from inside") == [1, 2]
        nothing: object = await session.delete_artifact("analysis")
        assert nothing is None
        with pytest.raises(ArtifactNotFound):
            await session.load_artifact("analysis")
        with pytest.raises(ArtifactNotFound):
            await session.delete_artifact("analysis")


# -- Dependencies Methods


async def test_add_dep_installs_and_remove_dep_forgets(
    base: Path, make: Make, wheels: Path
) -> None:
    async with make(base) as session:
        await session.run("x = 1")
        report = await session.add_dep("code-mode-alpha>=1.0")
        assert {"installed", "already_present", "failed"} <= set(report)
        assert len(report["installed"]) == 1
        assert report["failed"] == []
        assert await value(session, "import code_mode_alpha; x + code_mode_alpha.value") == 43
        assert await session.list_deps() == ["code-mode-alpha>=1.0"]
        assert (await session.add_dep("code-mode-alpha>=1.0"))["already_present"]
        report = await session.remove_dep("code-mode-alpha")
        assert {"removed", "not_found", "failed", "removed_from_config"} <= set(report)
        assert report["removed_from_config"]
        assert await session.list_deps() == []
        report = await session.remove_dep("code-mode-alpha-missing")
        assert report["not_found"]
        await session.reset()


async def test_add_dep_that_fails_says_so(base: Path, make: Make, wheels: Path) -> None:
    async with make(base) as session:
        report = await session.add_dep("code-mode-missing")
        assert report["failed"]
        assert not report["installed"]
        assert await session.list_deps() == []


async def test_sync_deps_installs_what_is_configured(base: Path, make: Make, wheels: Path) -> None:
    (base / "requirements.txt").write_text("code-mode-alpha\n")
    async with make(base, extra_deps=("code-mode-beta",)) as session:
        assert not (await session.run("import code_mode_alpha")).is_ok
        report = await session.sync_deps()
        assert {"installed", "already_present", "failed"} <= set(report)
        assert len(report["installed"]) == 2
        assert await value(session, "import code_mode_alpha, code_mode_beta; 1") == 1
        assert len((await session.sync_deps())["already_present"]) == 2


async def test_sync_deps_on_start_installs_before_the_first_run(
    base: Path, make: Make, wheels: Path
) -> None:
    (base / "requirements.txt").write_text("code-mode-beta\n")
    async with make(base, sync_deps_on_start=True) as session:
        assert await value(session, "import code_mode_beta; code_mode_beta.value") == 42
    storage = FileStorage(base)
    executor = InProcessExecutor(InProcessConfig())
    async with Session(storage, executor, True) as session:
        assert await value(session, "import code_mode_beta; code_mode_beta.value") == 42


async def test_runtime_deps_can_be_refused(base: Path, make: Make, wheels: Path) -> None:
    (base / "requirements.txt").write_text("code-mode-alpha\n")
    async with make(base, allow_runtime_deps=False) as session:
        with pytest.raises(RuntimeDepsDisabled):
            await session.add_dep("code-mode-beta")
        with pytest.raises(RuntimeDepsDisabled):
            await session.remove_dep("code-mode-alpha")
        for code in ("deps.add('code-mode-beta')", "deps.remove('code-mode-alpha')"):
            result = await session.run(code)
            assert result.failure is not None
            assert result.failure.type == "RuntimeDepsDisabled"
        assert (await session.sync_deps())["installed"]


# -- Properties


async def test_storage_gives_the_backend_and_its_libraries(base: Path, make: Make) -> None:
    async with make(base) as session:
        assert isinstance(session.storage, FileStorage)
        library = session.storage.get_workflow_library()
        assert [entry["name"] for entry in library.list()] == ["twice"]
        assert session.storage.get_artifact_store().list() == []
        assert session.storage.get_deps_store() is session.storage.get_deps_store()


# -- Context Manager


async def test_context_manager_starts_and_closes(base: Path, make: Make) -> None:
    with anyio.fail_after(TIMEOUT):
        async with make(base) as session:
            assert await value(session, "1") == 1
        with pytest.raises(SessionClosed):
            await session.run("1")
        with pytest.raises(ZeroDivisionError):
            async with make(base) as session:
                raise ZeroDivisionError
        with pytest.raises(SessionClosed):
            await session.run("1")
