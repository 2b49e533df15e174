"""What the host does when a guest asks: names that are paths, values that are options, and more."""

from __future__ import annotations

import gc
import os
import pathlib
import sys

from .attempt import FACTS, SERVICES, Contained, add, attack, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAMES = {
    "the_folder_above": "../planted",
    "a_folder_far_above": "../../../../../../../../tmp/planted",
    "a_folder_above_by_the_way": "a/../../planted",
    "an_absolute_path": "/tmp/planted",
    "a_home": "~/planted",
    "another_folders_separator": "..\\planted",
    "a_hidden_file": ".planted",
    "nothing": "",
    "the_folder_itself": ".",
    "a_nul_byte": "planted\0.txt",
    "a_line_break": "planted\nname",
    "an_escape_sequence": "\x1b]0;planted\x07",
    "a_reversed_extension": "planted\u202egnp.exe",
    "half_a_character": "planted\ud800",
    "too_many_characters": "p" * 5000,
    "a_variable": "$HOME/planted",
    "a_web_address": "file:///tmp/planted",
}


def _artifacts() -> Any:
    return SERVICES["artifacts"]


def _save(name: str) -> object:
    kept = refused(_artifacts().save, name, "planted")
    if "/" in name or "\\" in name or name.startswith("."):
        return kept
    _artifacts().delete(name)
    raise Contained("kept as a name among the others")


def _load(name: str) -> object:
    return refused(_artifacts().load, name)


def _create(name: str) -> object:
    return refused(SERVICES["workflows"].create, name, "def run():\n    return 1\n", "planted")


for _what, _name in _NAMES.items():
    add(f"save_an_artifact_named_{_what}", lambda name=_name: _save(name))
    add(f"create_a_workflow_named_{_what}", lambda name=_name: _create(name))
for _what in ("the_folder_above", "a_folder_far_above", "an_absolute_path", "a_web_address"):
    add(f"load_an_artifact_named_{_what}", lambda name=_NAMES[_what]: _load(name))


@attack
def load_the_hosts_secret_as_an_artifact() -> object:
    return refused(_artifacts().load, FACTS["secret"])


@attack
def load_a_tools_definition_as_an_artifact() -> object:
    return refused(_artifacts().load, "../tools/show.yaml")


@attack
def delete_the_hosts_secret_as_an_artifact() -> object:
    return refused(_artifacts().delete, FACTS["secret"])


@attack
def ask_for_the_hosts_secret_as_an_artifact() -> object:
    if _artifacts().exists(FACTS["secret"]):
        return "it is told that it exists"
    raise Contained("told that there is none")


@attack
def have_the_host_read_a_path() -> object:
    """A path that is saved must be a path when it is loaded, not the file."""
    got = _artifacts().save("path", str(pathlib.Path(FACTS["secret"])))
    if _artifacts().load("path") != FACTS["secret"]:
        return got
    _artifacts().delete("path")
    raise Contained("kept as a text")


@attack
def save_a_card_for_a_file_of_the_host() -> object:
    """An artifact's own card names the files that hold it."""
    name = "planted.artifact.json"
    card = (
        '{"name": "planted", "description": "", "metadata": {}, "created_at": "", "format": "text",'
        ' "type": "str", "detail": {}, "files": [{"name": "%s", "size": 1, "detail": {}}]}'
    )
    refused(lambda: _artifacts().save(name, card % FACTS["secret"]))
    return refused(_artifacts().load, "planted")


@attack
def save_an_object_that_runs_code_when_it_is_loaded() -> object:
    class Bomb:
        def __reduce__(self) -> Any:
            return (eval, (f"open({os.path.dirname(FACTS['secret'])!r} + '/planted', 'w')",))

    return refused(_artifacts().save, "bomb", Bomb())


@attack
def save_bytes_that_run_code_when_they_are_unpickled() -> object:
    data = (
        b"cposix\nsystem\n(S'touch " + os.path.dirname(FACTS["secret"]).encode() + b"/planted'\ntR."
    )
    for name in ("bomb.pkl", "bomb.npy", "bomb.parquet", "bomb.json"):
        try:
            _artifacts().save(name, data)
            _artifacts().load(name)
            _artifacts().delete(name)
        except Exception as error:
            raise Contained(f"refused: {error}"[:100]) from None
    raise Contained("came back as the bytes they are")


@attack
def metadata_that_changes_the_host() -> object:
    found = _artifacts().save("meta", "x", "d", {"__class__": "os", "__proto__": {"a": 1}})
    _artifacts().delete("meta")
    raise Contained(f"kept as data: {sorted(found)}"[:150])


@attack
def a_workflow_whose_text_hides_what_it_does() -> object:
    source = "def run():\n    return 1 #\u202e\n"
    SERVICES["workflows"].create("hidden", source, "\x1b[2Jplanted\x1b]0;x\x07")
    listed = str(SERVICES["workflows"].list())
    SERVICES["workflows"].delete("hidden")
    raise Contained(f"kept with its origin: {'origin' in listed}")


@attack
def a_workflow_that_is_run_by_the_host() -> object:
    """What is created must only ever be compiled where it is run, and that is inside."""
    path = os.path.dirname(FACTS["secret"]) + "/planted"
    source = f"import os\nopen({path!r}, 'w')\ndef run():\n    return os.getpid()\n"
    SERVICES["workflows"].create("host_side", source, "planted")
    try:
        return refused(SERVICES["workflows"].invoke, "host_side")
    finally:
        SERVICES["workflows"].delete("host_side")


_PACKAGES = {
    "an_option": "--index-url=http://127.0.0.1:1/",
    "an_option_and_a_name": "--extra-index-url http://127.0.0.1:1/ planted",
    "a_short_option": "-r/etc/passwd",
    "an_option_in_a_line_below": "planted\n--index-url http://127.0.0.1:1/",
    "an_address": "https://127.0.0.1:1/planted.whl",
    "an_address_of_a_name": "planted @ http://127.0.0.1:1/planted.whl",
    "a_file": "planted @ file:///tmp/planted.whl",
    "a_path": "/tmp/planted.whl",
    "a_path_from_here": "./planted",
    "a_repository": "git+https://127.0.0.1:1/planted",
    "a_repository_by_command": "planted @ git+ext::sh -c touch% /tmp/planted",
    "a_marker": "planted; python_version > '0'",
    "a_variable": "${HOME}",
    "a_nul_byte": "planted\0",
    "an_environment": "planted --target /tmp",
    "a_response_file": "@/etc/passwd",
}
for _what, _name in _PACKAGES.items():
    add(f"add_a_package_by_{_what}", lambda name=_name: refused(SERVICES["deps"].add, name))


@attack
def add_a_package_that_is_no_text() -> object:
    return refused(SERVICES["deps"].add, ["planted", "--index-url", "http://127.0.0.1:1/"])


# -- tools


def _show(**given: Any) -> object:
    """The tool runs `cat --`: an option that got through would change what it prints."""
    try:
        shown = SERVICES["tools"].show(**given)
    except Exception as error:
        raise Contained(f"refused: {type(error).__name__}: {error}"[:150]) from None
    return shown


for _what, _value in {
    "an_option": "--version",
    "a_short_option": "-n",
    "two_dashes": "--",
    "an_option_with_a_value": "--output=/tmp/planted",
    "an_option_after_a_space": " --version",
    "a_nul_byte": "/dev/null\0--version",
    "a_command": "; touch /tmp/planted",
    "a_command_in_backticks": "`touch /tmp/planted`",
    "a_command_in_dollars": "$(touch /tmp/planted)",
    "a_pipe": "| touch /tmp/planted",
    "a_redirection": "> /tmp/planted",
    "a_pattern": "/etc/pass*",
    "a_home": "~/.ssh/id_rsa",
    "a_line_break": "x\ntouch /tmp/planted",
    "half_a_character": "\ud800",
    "too_much": "x" * 3_000_000,
    "no_text": {"a": 1},
    "a_list": ["--version", "/etc/passwd"],
}.items():
    add(f"give_a_tool_{_what}", lambda value=_value: _show(name=value))


@attack
def give_a_tool_an_option_it_does_not_have() -> object:
    return _show(name="nothing", version=True)


@attack
def give_a_tool_an_option_by_its_flag() -> object:
    return _show(name="nothing", **{"--version": True})


@attack
def give_a_tool_an_option_of_another_type() -> object:
    return _show(name="nothing", number="--version")


@attack
def give_a_tool_an_environment() -> object:
    return _show(name="nothing", env={"LD_PRELOAD": "/tmp/planted.so"})


@attack
def call_a_tool_that_is_not_there() -> object:
    return refused(SERVICES["tools"].sh, c="touch /tmp/planted")


@attack
def call_a_private_method_of_the_host() -> object:
    tools = SERVICES["tools"]
    return refused(lambda: tools.__getattr__("_registry")())


# -- frames that no proxy would send


def _port() -> Any:
    """The guest's end of the socket, which all code in the worker can find."""
    for found in gc.get_objects():
        if type(found).__name__ == "Port" and hasattr(found, "run_id"):
            return found
    raise Contained("it was not found")


for _space, _method in (
    ("tools", "__class__"), ("tools", "_registry"), ("tools", "../show"), ("tools", "show.nothing"),
    ("artifacts", "_artifacts"), ("artifacts", "__init__"), ("artifacts", "_store.write"),
    ("deps", "_dependencies"), ("workflows", "_library"), ("handles", "get"), ("session", "run"),
    ("__import__", "os"), ("", ""), ("os", "system"), ("deps", "call"), ("tools", "call"),
):  # fmt: skip
    add(
        f"call_{_space or 'nothing'}.{_method or 'nothing'}",
        lambda space=_space, method=_method: refused(_port().call, space, method, ["id"], {}),
    )


@attack
def call_with_arguments_that_do_not_fit() -> object:
    return refused(_port().call, "artifacts", "save", [1, 2, 3, 4, 5, 6], {"self": 1, "x": 2})


@attack
def call_with_the_names_of_the_host() -> object:
    return refused(_port().call, "artifacts", "save", [], {"self": None, "name": "x", "data": 1})


# -- what is shown


@attack
def show_a_page_with_a_script() -> object:
    class Page:
        def _repr_html_(self) -> str:
            return "</iframe><script>planted()</script><img src=x onerror='planted()'>"

    SERVICES["display"](Page())
    raise Contained("shown; the frame must hold it")  # the host looks at what it would show


@attack
def show_a_picture_with_a_script() -> object:
    class Picture:
        def _repr_svg_(self) -> str:
            script = "<script>planted()</script>"
            return f"<svg xmlns='http://www.w3.org/2000/svg' onload='planted()'>{script}</svg>"

    SERVICES["display"](Picture())
    raise Contained("shown; the frame must hold it")


@attack
def print_what_a_terminal_obeys() -> object:
    clipboard = "\x1b]52;c;cGxhbnRlZA==\x07"
    title, screen, device = "\x1b]0;planted\x07", "\x1b[2J\x1b[8m", "\x1bP0;1|planted\x1b\\\x9b31m"
    sys.stdout.write(title + screen + device + clipboard + "\u202e\n")
    raise Contained("printed; the terminal must not obey")


@attack
def raise_an_error_that_a_terminal_obeys() -> object:
    class Planted(Exception):
        pass

    Planted.__name__ = Planted.__qualname__ = "\x1b]0;planted\x07"
    sys.stderr.write(repr(Planted("\x1b[2J")) + "\n")
    raise Contained("printed; the terminal must not obey")
