"""Front ends that are no browser: programs that execute routed notebooks, and debuggers.

How they start a kernel of ours is in `test_kernelspecs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.integration.conftest import Image, StartKernel
from tests.integration.notebook import (
    IPYKERNELS,
    LONG_SLEEP,
    PATIENCE,
    Cell,
    Notebook,
    python_with,
)
from tests.integration.test_kernelspecs import notebook_of, run
from tests.integration.test_terminal import plain
from tests.waiting import wait_until

WIDGETS = "dockml/widgets:3.11"
BARE = "dockml/bare:3.11"
IN_BARE = ("%load_ext dockml_magic", f"%docker_env {BARE}")

SLIDER = """
import ipywidgets
slider = ipywidgets.IntSlider()
slider.observe(lambda change: print("moved to", change["new"]), "value")
display(slider)
""".strip()

GREET = """
def greet(name):
    loud = name.upper()
    return "Hello " + loud
""".strip()


# --- programs that execute a notebook from its first cell to the last ---------------------------


def test_papermill_gives_its_parameters_to_the_environment(workspace: Path, image: Image) -> None:
    image(BARE)
    notebook = notebook_of(
        "python3", *IN_BARE, "a = 1", "import os; a * 6, os.path.exists('/run/dockml')"
    )
    notebook.cells[2].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, workspace / "in.ipynb")
    run("papermill", "in.ipynb", "out.ipynb", "-p", "a", "7")
    done = nbformat.read(workspace / "out.ipynb", as_version=4)
    assert done.cells[-1].outputs[0].data["text/plain"] == "(42, True)"


def test_nbconvert_executes_a_routed_notebook(workspace: Path, image: Image) -> None:
    image(BARE)
    notebook = notebook_of("python3", *IN_BARE, "import os; os.path.exists('/run/dockml')")
    nbformat.write(notebook, workspace / "in.ipynb")
    run("jupyter", "nbconvert", "--to", "notebook", "--execute", "--output", "out", "in.ipynb")
    done = nbformat.read(workspace / "out.ipynb", as_version=4)
    assert done.cells[-1].outputs[0].data["text/plain"] == "True"
    assert [cell.execution_count for cell in done.cells] == [1, 2, 3]


def test_nbconvert_ends_with_the_error_of_a_routed_cell(workspace: Path, image: Image) -> None:
    image(BARE)
    nbformat.write(notebook_of("python3", *IN_BARE, "1 / 0", "2"), workspace / "in.ipynb")
    said = run("jupyter", "nbconvert", "--to", "notebook", "--execute", "in.ipynb", code=1)
    assert "ZeroDivisionError: division by zero" in plain(said)
    assert "Cell In[3], line 1" in plain(said)
    assert not (workspace / "in.nbconvert.ipynb").exists()


# --- what JupyterLab relies on -------------------------------------------------------------------


@pytest.mark.parametrize("ipykernel", IPYKERNELS)
def test_all_messages_are_of_one_session(workspace: Path, image: Image, ipykernel: str) -> None:
    """Where the session changes, JupyterLab takes it for a restart and drops what it has not shown yet."""
    with Notebook(workspace, python_with(ipykernel)) as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(image(BARE))
        client = notebook.client
        msg_id = client.execute("print(input('?')); display(1); 2", allow_stdin=True)
        messages = [client.get_stdin_msg(timeout=PATIENCE)]
        client.input("x")
        messages.append(client.get_shell_msg(timeout=PATIENCE))
        while messages[-1]["content"].get("execution_state") != "idle":
            messages.append(client.get_iopub_msg(timeout=PATIENCE))
        client.kernel_info()
        messages.append(client.get_shell_msg(timeout=PATIENCE))
        of_cell = [m["msg_type"] for m in messages if m["parent_header"].get("msg_id") == msg_id]
        assert {"stream", "display_data", "execute_result", "execute_reply"} < set(of_cell)
        assert len({message["header"]["session"] for message in messages}) == 1


def in_a_subshell(notebook: Notebook) -> Callable[[str, dict[str, Any]], str]:
    """Make a subshell; give a function that sends a message of a type and content there, and returns its id."""
    session = notebook.client.session
    notebook.client.control_channel.send(session.msg("create_subshell_request"))
    subshell = notebook.client.get_control_msg(timeout=PATIENCE)["content"]["subshell_id"]

    def send(kind: str, content: dict[str, Any]) -> str:
        message = session.msg(kind, content)
        message["header"]["subshell_id"] = subshell
        notebook.client.shell_channel.send(message)
        msg_id: str = message["header"]["msg_id"]
        notebook._cells[msg_id] = Cell()
        return msg_id

    return send


def test_a_cell_that_fails_in_a_subshell_aborts_none_of_the_main_one(workspace: Path) -> None:
    with Notebook(workspace, python_with("ipykernel7")) as notebook:
        notebook.ok("%load_ext dockml_magic")
        send = in_a_subshell(notebook)
        cells = notebook.send_all(
            "first = 1", "import os, time\nwhile not os.path.exists('go-on'): time.sleep(0.05)", "3"
        )
        notebook.finish(cells[0])
        failed = notebook.finish(send("execute_request", {"code": "1 / 0", "stop_on_error": True}))
        (workspace / "go-on").touch()
        assert failed.reply["ename"] == "ZeroDivisionError"
        assert [notebook.finish(cell).reply["status"] for cell in cells[1:]] == ["ok", "ok"]


@pytest.mark.parametrize("first", ["the main shell", "the subshell"])
def test_cells_of_both_shells_take_turns_in_a_container(
    workspace: Path, image: Image, first: str
) -> None:
    """As where a widget's button runs something there that a cell works in."""
    image(BARE)
    wait = "open('began', 'w').close()\nimport os, time\nwhile not os.path.exists('go-on'): time.sleep(0.05)\n"
    with Notebook(workspace, python_with("ipykernel7")) as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(BARE)
        send = in_a_subshell(notebook)
        shells = [notebook.send, lambda code: send("execute_request", {"code": code})]
        if first == "the subshell":
            shells.reverse()
        long = shells[0](wait + "'long'")
        wait_until((workspace / "began").exists, what="the first to run")
        short = shells[1]("'short'")
        (workspace / "go-on").touch()
        assert notebook.finish(long).result == "'long'"
        assert notebook.finish(short).result == "'short'"
        assert notebook.ok("'next'").result == "'next'"


def test_the_stop_button_works_where_a_subshell_has_loaded_the_extension(
    workspace: Path, image: Image
) -> None:
    """As a widget's callback does that makes an `ImagePicker`."""
    image(BARE)
    with Notebook(workspace, python_with("ipykernel7")) as notebook:
        load = {"code": "%load_ext dockml_magic", "stop_on_error": True}
        assert (
            notebook.finish(in_a_subshell(notebook)("execute_request", load)).reply["status"]
            == "ok"
        )
        notebook.use(BARE)
        cell = notebook.send(f"open('sleeping', 'w').close(); import time; {LONG_SLEEP}")
        wait_until((workspace / "sleeping").exists, what="the cell to run")
        notebook.interrupt()
        assert notebook.finish(cell).reply["ename"] == "KeyboardInterrupt"


def test_what_a_widget_prints_comes_before_idle_also_where_messages_take_a_subshell(
    workspace: Path, image: Image
) -> None:
    """As JupyterLab sends them to an ipykernel 7: after idle it listens no more."""
    image(WIDGETS)
    with Notebook(workspace, python_with("ipykernel7")) as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(WIDGETS)
        cell = notebook.ok(SLIDER)
        slider = next(
            content["comm_id"]
            for content in cell.of("comm_open")
            if content["data"]["state"].get("_model_name") == "IntSliderModel"
        )
        data = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
        send = in_a_subshell(notebook)
        moved = notebook.wait(
            send("comm_msg", {"comm_id": slider, "data": data}), lambda cell: cell.is_idle
        )
        assert moved.printed() == "moved to 7\n"
        assert notebook.ok("slider.value").result == "7"


# --- debuggers ----------------------------------------------------------------------------------


class Debugger:
    """A front end's debugger, which speaks the Debug Adapter Protocol with the kernel.

    Parameters
    ----------
    client : BlockingKernelClient
    """

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client
        self._count = 0
        self.ask("initialize", clientID="test", adapterID="python", pathFormat="path")
        self.ask("attach")

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request that must succeed; return the body of its reply."""
        self._count += 1
        content = {
            "type": "request",
            "seq": self._count,
            "command": command,
            "arguments": arguments,
        }
        message = self._client.session.msg("debug_request", content)
        self._client.control_channel.send(message)
        while True:
            reply = self._client.get_control_msg(timeout=PATIENCE)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                assert reply["content"].get("success"), reply["content"]
                body: dict[str, Any] = reply["content"].get("body", {})
                return body

    def break_at(self, code: str, line: int) -> None:
        """Set a breakpoint in a cell that is still to be run."""
        path = self.ask("dumpCell", code=code)["sourcePath"]
        source = {"path": path}
        set_ = self.ask("setBreakpoints", source=source, breakpoints=[{"line": line}])
        assert [point["verified"] for point in set_["breakpoints"]] == [True]
        self.ask("configurationDone")

    def wait_until_stopped(self, msg_id: str) -> int:
        """Return the thread in which a cell that runs has stopped."""
        while True:
            message = self._client.get_iopub_msg(timeout=PATIENCE)
            content = message["content"]
            if message["msg_type"] == "debug_event" and content["event"] == "stopped":
                return int(content["body"]["threadId"])
            is_of_cell = message["parent_header"].get("msg_id") == msg_id
            assert not (is_of_cell and content.get("execution_state") == "idle"), "it did not stop"

    def variables(self, thread: int) -> dict[str, str]:
        """Return the local variables where a thread has stopped."""
        frame = self.ask("stackTrace", threadId=thread)["stackFrames"][0]
        scope = self.ask("scopes", frameId=frame["id"])["scopes"][0]
        found = self.ask("variables", variablesReference=scope["variablesReference"])["variables"]
        return {variable["name"]: variable["value"] for variable in found}


@pytest.fixture(
    params=[
        WIDGETS,  # ipykernel and debugpy of the image
        "dockml/bare:3.9",  # and of the kernel bundle
        "dockml/bare:3.13",
        *IPYKERNELS,
    ]
)
def client(
    request: pytest.FixtureRequest, start: StartKernel, workspace: Path, image: Image
) -> Iterator[BlockingKernelClient]:
    """A client of a kernel of ours, or of a notebook whose cells run in a container."""
    image(WIDGETS)
    if request.param in IPYKERNELS:
        with Notebook(workspace, python_with(request.param)) as notebook:
            notebook.ok("%load_ext dockml_magic")
            notebook.use(WIDGETS)
            yield notebook.client
    else:
        yield start(image(request.param)).client


def test_a_breakpoint_stops_inside_the_container(client: BlockingKernelClient) -> None:
    debugger = Debugger(client)
    debugger.break_at(GREET, line=3)
    client.execute(GREET, reply=True, timeout=PATIENCE)
    msg_id = client.execute(
        "import os; greet('you'), os.path.exists('/run/dockml')", allow_stdin=False
    )
    thread = debugger.wait_until_stopped(msg_id)
    variables = debugger.variables(thread)
    assert (variables["name"], variables["loud"]) == ("'you'", "'YOU'")
    debugger.ask("continue", threadId=thread)
    while (message := client.get_iopub_msg(timeout=PATIENCE))["msg_type"] != "execute_result":
        assert message["msg_type"] != "error", message["content"]
    assert message["content"]["data"]["text/plain"] == "('Hello YOU', True)"
    debugger.ask("disconnect", restart=False, terminateDebuggee=True)
