"""What a kernel imports when it is needed and not while it starts, in real containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Image, StartKernel
from tests.integration.kernels import PATIENCE, Kernel

IPYKERNEL5 = "dockml/ipykernel:5"  # IPython 7, of the image
BUNDLE36 = "dockml/tensorflow:1.10.0"  # the same of the kernel bundle
BUNDLE39 = "dockml/bare:3.9"  # ipykernel 6, IPython 8, debugpy
IPYKERNEL7 = "dockml/ipykernel:7"  # IPython 9, which waits with jedi itself, debugpy
BUNDLE313 = "dockml/bare:3.13"

HAVE_DEBUGPY = (BUNDLE39, IPYKERNEL7, BUNDLE313)
HAVE_PUT_OFF_IPYTHON = (IPYKERNEL5, BUNDLE36, BUNDLE39)

LOADED = """
import sys
print([name for name in ("prompt_toolkit", "jedi", "debugpy", "pydevd") if name in sys.modules],
      sum("later" in str(type(finder)) for finder in sys.meta_path))
"""

EMBED = """
import types
import IPython, IPython.core
assert type(IPython) is not None and isinstance(IPython, types.ModuleType)
assert str(type(IPython)) == "<class 'module'>", type(IPython)
assert "embed" in dir(IPython) and "start_ipython" in dir(IPython)
from IPython.terminal.embed import InteractiveShellEmbed, embed
assert IPython.embed is embed and type(IPython) is types.ModuleType, type(IPython)
assert IPython.terminal.ipapp.TerminalIPythonApp.__name__ == "TerminalIPythonApp"
assert type(IPython.terminal) is types.ModuleType
try:
    IPython.nothing
except AttributeError as error:
    print(error)
"""

EMBED_IN_OTHER_WAYS = (
    "import IPython; f = IPython.embed; assert f.__module__ == 'IPython.terminal.embed'",
    "from IPython import embed; assert embed.__module__ == 'IPython.terminal.embed'",
    "import IPython; assert IPython.terminal.embed.InteractiveShellEmbed",
    "import IPython; assert IPython.terminal.interactiveshell.TerminalInteractiveShell",
    "import inspect, IPython; assert 'def embed(' in inspect.getsource(IPython.embed)",
)

STAR = "from IPython import *\nassert embed.__module__ == 'IPython.terminal.embed'"

JEDI = """
import jedi
import IPython.core.completer
assert IPython.core.completer.jedi is jedi
assert jedi.settings.case_insensitive_completion is False
assert "jedi.api.helpers" in sys.modules and "exec_module" not in vars(jedi.__loader__)
"""

DEBUGPYS = """
import builtins, os, sys
assert os.environ["PYDEVD_USE_FRAME_EVAL"] == "NO"
there = "here"
with open("other.py", "w") as file:
    file.write("print(there); there = 'there'")
breakpoint()
before = sys.breakpointhook
execfile("other.py")
print(there, execfile.__module__, sys.breakpointhook.__module__, "PYDEVD_DISABLE_FILE_VALIDATION" in os.environ)
"""


def loaded(kernel: Kernel) -> tuple[str, str]:
    """Return what a kernel has imported of what waits, and how many finders of ours it has."""
    names, _, finders = kernel.ok(LOADED).stdout.strip().rpartition(" ")
    return names, finders


def complete(kernel: Kernel, code: str) -> list[str]:
    """Return what a kernel completes code with."""
    reply = kernel.client.complete(code, reply=True, timeout=PATIENCE)
    matches: list[str] = reply["content"]["matches"]
    return matches


def ask_debugger(kernel: Kernel, command: str, **arguments: Any) -> dict[str, Any]:
    """Return the reply to a request of a front end's debugger."""
    request = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
    client = kernel.client
    message = client.session.msg("debug_request", request)
    client.control_channel.send(message)
    while True:
        reply = client.get_control_msg(timeout=PATIENCE)
        if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            content: dict[str, Any] = reply["content"]
            return content


@pytest.mark.parametrize("name", [*HAVE_PUT_OFF_IPYTHON, IPYKERNEL7, BUNDLE313])
def test_a_kernel_that_runs_cells_has_imported_none_of_it(
    start: StartKernel, image: Image, name: str
) -> None:
    kernel = start(image(name), "--network", "none")
    assert kernel.ok("1 + 1").result == "2"
    assert loaded(kernel)[0] == "[]"
    info = kernel.client.kernel_info(reply=True, timeout=PATIENCE)["content"]
    assert ("debugger" in info.get("supported_features", [])) == (name in (IPYKERNEL7, BUNDLE313))


@pytest.mark.parametrize("name", HAVE_PUT_OFF_IPYTHON)
def test_ipython_is_as_complete_as_ever(start: StartKernel, image: Image, name: str) -> None:
    kernel = start(image(name), "--network", "none")
    assert kernel.ok(EMBED).stdout == "module 'IPython' has no attribute 'nothing'\n"
    assert "prompt_toolkit" in loaded(kernel)[0]


def test_ipython_is_completed_whatever_is_looked_for(start: StartKernel, image: Image) -> None:
    kernel = start(image(BUNDLE39), "--network", "none")
    for code in (*EMBED_IN_OTHER_WAYS, STAR):
        kernel.manager.restart_kernel(now=True)
        kernel.disconnect()
        assert loaded(kernel)[0] == "[]"
        kernel.ok(code)
        assert "prompt_toolkit" in loaded(kernel)[0]


@pytest.mark.parametrize("name", [*HAVE_PUT_OFF_IPYTHON, IPYKERNEL7, BUNDLE313])
def test_completion_has_jedi(start: StartKernel, image: Image, name: str) -> None:
    kernel = start(image(name), "--network", "none")
    # Not imported by anybody: only jedi knows what is in there.
    assert complete(kernel, "import colorsys; colorsys.rgb_to_y") == ["rgb_to_yiq"]
    assert "'jedi'" in loaded(kernel)[0]


@pytest.mark.parametrize("name", HAVE_PUT_OFF_IPYTHON)
def test_jedi_is_what_ipython_makes_of_it_also_where_it_is_imported_first(
    start: StartKernel, image: Image, name: str
) -> None:
    kernel = start(image(name), "--network", "none")
    kernel.ok("from importlib.util import find_spec\nassert find_spec('jedi')")
    assert loaded(kernel) == ("[]", "1")
    kernel.ok(JEDI)
    assert loaded(kernel) == ("['jedi']", "1" if name in HAVE_DEBUGPY else "0")


@pytest.mark.parametrize("name", HAVE_DEBUGPY)
def test_what_debugpy_leaves_for_everybody_is_there(
    start: StartKernel, image: Image, workspace: Path, name: str
) -> None:
    kernel = start(image(name), "--network", "none")
    ran = kernel.ok("breakpoint()\n" + DEBUGPYS)
    assert (
        ran.stdout
        == "here\nthere _pydev_bundle._pydev_execfile debugpy._vendored.force_pydevd False\n"
    )
    assert ran.stderr == ""
    (workspace / "other.py").write_text("print('again')")
    assert kernel.ok("runfile('other.py')").stdout == "again\n"


def test_a_hook_of_the_users_own_stays(start: StartKernel, image: Image) -> None:
    kernel = start(image(IPYKERNEL7), "--network", "none")
    kernel.ok("import sys\ndef mine(*given): print('mine')\nsys.breakpointhook = mine")
    kernel.ok("import debugpy; print(debugpy.is_client_connected())")
    assert "'pydevd'" in loaded(kernel)[0]
    assert kernel.ok("breakpoint()").stdout == "mine\n"
    assert loaded(kernel)[1] == "0"


@pytest.mark.parametrize("name", HAVE_DEBUGPY)
def test_a_front_end_that_asks_what_it_may_debug_has_nothing_imported(
    start: StartKernel, image: Image, name: str
) -> None:
    kernel = start(image(name), "--network", "none")
    assert ask_debugger(kernel, "debugInfo")["body"]["isStarted"] is False
    assert loaded(kernel)[0] == "[]"
    kernel.ok("seen = 12345")
    for _ in range(2):
        reply = ask_debugger(kernel, "inspectVariables")
        assert reply["success"], reply
        values = {value["name"]: value["value"] for value in reply["body"]["variables"]}
        assert values["seen"] == "12345"
    assert "'pydevd'" in loaded(kernel)[0]
    for command, arguments in (("initialize", {"clientID": "x", "adapterID": "y"}), ("attach", {})):
        reply = ask_debugger(kernel, command, **arguments)
        assert reply["success"], reply
    assert json.dumps(ask_debugger(kernel, "debugInfo")["body"]["isStarted"]) == "true"


def test_a_module_of_the_users_own_does_not_get_into_the_debugger(
    start: StartKernel, image: Image, workspace: Path
) -> None:
    for name in ("code", "gzip", "http", "xmlrpc"):
        (workspace / f"{name}.py").write_text(f"mine = {name!r}")
    kernel = start(image(IPYKERNEL7), "--network", "none")
    kernel.ok("seen = 12345")
    assert ask_debugger(kernel, "inspectVariables")["success"]
    assert kernel.ok("import code; hasattr(code, 'InteractiveConsole')").result == "True"


def test_variables_can_be_inspected_once_debugging_has_begun(
    start: StartKernel, image: Image
) -> None:
    kernel = start(image(IPYKERNEL7), "--network", "none")
    kernel.ok("import debugpy; debugpy.is_client_connected(); seen = 12345")
    reply = ask_debugger(kernel, "inspectVariables")
    values = {value["name"]: value["value"] for value in reply["body"]["variables"]}
    assert values["seen"] == "12345"
