"""What the options grant, in a real sandbox."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from py_code_mode.sandbox.probe import probe

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

BACKEND = probe().backends[0]
pytestmark = pytest.mark.skipif(BACKEND == "none", reason="there is no sandbox here")
#: What code gets that opens what it may not.
REFUSED = "PermissionError" if BACKEND == "landlock" else "FileNotFoundError"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.csv").write_text("seven")
    return folder


def test_host_is_hidden_but_for_what_is_granted(run: Run, data: Path) -> None:
    code = f"open('{data}/data.csv').read()"
    assert REFUSED in run("run", "-c", code).stderr
    assert run("run", "-c", code, "--read", str(data)).stdout == "'seven'\n"
    write = f"open('{data}/out.csv', 'w').write('x')"
    assert run("run", "-c", write, "--read", str(data)).returncode == 1
    assert run("run", "-c", write, "--write", str(data)).stdout == "1\n"
    assert (data / "out.csv").read_text() == "x"
    assert run("run", "-c", code, "--no-sandbox").stdout == "'seven'\n"


def test_script_reads_its_own_folder_and_nothing_above(run: Run, data: Path) -> None:
    (data.parent / "above.csv").write_text("secret")
    script = data / "script.py"
    script.write_text(
        "import pathlib\n"
        "here = pathlib.Path(__file__).parent\n"
        "print((here / 'data.csv').read_text())\n"
        "try: (here.parent / 'above.csv').read_text()\n"
        "except OSError as error: print(type(error).__name__)\n"
        "(here / 'data.csv').write_text('changed')\n"
    )
    done = run("run", str(script))
    assert done.stdout == f"seven\n{REFUSED}\n"
    assert done.returncode == 1
    assert (data / "data.csv").read_text() == "seven"
    assert run("run", str(script), "--memory", "1GiB").stdout == f"seven\n{REFUSED}\n"


def test_limit_that_this_machine_lacks_is_told_and_not_required(run: Run, data: Path) -> None:
    """Any of the options had been refused where files can have no common limit."""
    done = run("run", "-c", "1", "--read", str(data))
    note = "note: disk space is not limited on this machine; `py-code-mode doctor` tells why\n"
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr == (note if BACKEND == "landlock" else "")


def test_script_beside_its_workspace_does_not_see_it(run: Run, here: Path) -> None:
    tools = here / ".code-mode" / "tools"
    tools.mkdir(parents=True)
    (tools / "text.py").write_text("def shout(text: str) -> str:\n    return text.upper()\n")
    (here / "data.csv").write_text("seven")
    (here / "script.py").write_text(
        "import os\n"
        "here = os.path.dirname(__file__)\n"
        "print(open(f'{here}/data.csv').read(), tools.shout('x'))\n"
        "try: open(f'{here}/.code-mode/tools/text.py')\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    assert run("run", "script.py").stdout == f"seven X\n{REFUSED}\n"


def test_workspace_is_granted_by_no_option(run: Run, here: Path) -> None:
    (here / ".code-mode").mkdir()
    for option in ("--read", "--write", "--workdir"):
        done = run("run", "-c", "1", option, str(here))
        assert done.returncode == 2
        assert "which no sandbox may see" in done.stderr
        assert f"{option.lstrip('-')}: " in done.stderr


def test_workflow_written_in_the_sandbox_waits_for_approval_outside(run: Run) -> None:
    code = "workflows.create('plan', 'def run():\\n    return 42\\n', 'A plan')['origin']"
    assert run("run", "-c", code).stdout == f"{BACKEND!r}\n"
    assert run("workflows", "call", "plan").stdout == "42\n"
    for weaker in (["--no-sandbox"], ["--executor", "in_process"]):
        refused = run("workflows", "call", "plan", *weaker)
        assert refused.returncode == 1
        assert "py-code-mode workflows approve plan" in refused.stderr
    assert run("workflows", "approve", "plan", "--yes").returncode == 0
    assert run("workflows", "call", "plan", "--no-sandbox").stdout == "42\n"


def test_tools_that_the_code_leaves_in_a_new_workspace_are_not_run(run: Run, here: Path) -> None:
    code = (
        "import os\n"
        "os.makedirs('.code-mode/tools')\n"
        "open('.code-mode/tools/evil.py', 'w').write('open(\"/tmp/code-mode-evil\", \"x\")\\n')\n"
        "tools.list()"
    )
    done = run("run", "-c", code, "--workdir", ".")
    assert "is not trusted" in done.stderr
    assert (here / ".code-mode" / "tools" / "evil.py").exists()
    for command in (["tools", "list"], ["run", "-c", "tools.list()"]):
        done = run(*command)
        assert done.returncode == 2
        assert "while sandboxed code could write there" in done.stderr


PLANT = """
import os
for where, name, text in {files!r}:
    os.makedirs(where, exist_ok=True)
    open(f"{{where}}/{{name}}", "w").write(text)
"""
TOOL = "def hi() -> str:\n    return 'ran on the host'\n"


def test_what_the_code_leaves_for_later_is_not_run_outside(run: Run, here: Path) -> None:
    """Workflows had not been looked at, nor any workspace but the session's own."""
    workflow = "def run():\n    return 'ran on the host'\n"
    files = [
        ("sub/.code-mode/tools", "hi.py", TOOL),
        (".other/tools", "hi.py", TOOL),
        (".other/workflows", "hi.py", workflow),
    ]
    done = run("run", "-c", PLANT.format(files=files), "--workdir", ".")
    assert done.returncode == 0, done.stderr
    for place in ("sub/.code-mode", ".other"):
        for command in (["tools", "call", "hi"], ["run", "-c", "tools.hi()", "--no-sandbox"]):
            done = run(*command, "--base", place)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"py-code-mode trust {here / place}" in done.stderr
    (here / ".other" / "tools" / "hi.py").unlink()
    (here / ".other" / "tools").rmdir()
    done = run("workflows", "call", "hi", "--no-sandbox", "--base", ".other")
    assert done.returncode == 2  # its settings, which asked for a sandbox, may have been taken away
    assert "while sandboxed code could write there" in done.stderr
    assert run("workflows", "call", "hi", "--base", ".other").stdout == "'ran on the host'\n"
    assert run("trust", ".").returncode == 0
    assert run("workflows", "call", "hi", "--no-sandbox", "--base", ".other").returncode == 0
    assert run("tools", "call", "hi", "--base", "sub/.code-mode").stdout == "ran on the host\n"


def test_policy_of_the_file_goes_with_what_the_options_grant(
    run: Run, here: Path, data: Path
) -> None:
    """It had been compared with the file's policy on top of the defaults, which grant nothing."""
    (here / ".code-mode").mkdir()
    (here / ".code-mode" / "config.yaml").write_text("policy: {memory: 1GiB}\n")
    (here / "script.py").write_text(f"print(open('{data}/data.csv').read())\n")
    (here / "beside.csv").write_text("beside")
    granted = run("run", "script.py", "--read", str(data))
    assert (granted.returncode, granted.stdout) == (0, "seven\n")
    (here / "script.py").write_text(f"print(open('{here}/beside.csv').read())\n")
    assert run("run", "script.py").stdout == "beside\n"
    refused = run("run", "script.py", "--memory", "2GiB")
    assert refused.returncode == 2
    assert "does not allow this" in refused.stderr


def test_command_tells_that_the_file_chose_no_isolation(run: Run, here: Path) -> None:
    (here / ".code-mode").mkdir()
    (here / ".code-mode" / "config.yaml").write_text("executor: in_process\n")
    done = run("run", "-c", "1")
    assert done.stdout == "1\n"
    assert "says `executor: in_process`: the code may do whatever you may" in done.stderr
    assert "note" not in run("run", "-c", "1", "--executor", "in_process").stderr


class Hello(BaseHTTPRequestHandler):
    """Says hello."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr is the test's."""


@pytest.mark.skipif(BACKEND == "landlock", reason="single hosts cannot be allowed here")
def test_listed_service_on_the_hosts_loopback_is_reached_by_ordinary_clients(run: Run) -> None:
    """NO_PROXY kept every client from the proxy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            for host in ("127.0.0.1", "localhost"):
                place = f"{host}:{server.server_port}"
                code = f"from urllib.request import urlopen\nurlopen('http://{place}').read()"
                done = run("run", "-c", code, "--allow-host", place)
                assert done.stdout == "b'hello'\n", done.stderr
            assert run("run", "-c", code, "--allow-host", "example.org").returncode == 1
        finally:
            server.shutdown()
            serving.join()
