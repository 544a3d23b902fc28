"""What a container can do to its host that is out for it: hostile images, and hostile code in a kernel.

The image's `sitecustomize` runs before our launcher does, and takes the supervisor's place: `EVIL` says how.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dockml_magic import compiled, folders
from dockml_magic.container import KernelContainer
from dockml_magic.engine import DockerEngine
from dockml_magic.errors import DockmlError, UntrustedProjectError
from dockml_magic.options import RunOptions
from dockml_magic.planning import make_plan
from tests.integration.conftest import (
    Image,
    Inspect,
    OpenNotebook,
    StartKernel,
)
from tests.integration.notebook import Notebook, not_before_it_is_told

BARE = "dockml/bare:3.11"
EVIL = "dockml/test-evil:3.11"

LIBRARY = r"""
import json, os, socket, sys, time
if "EVIL" in os.environ and b"start.py\0supervise" in open("/proc/self/cmdline", "rb").read():
    how = os.environ["EVIL"]
    server = socket.socket(socket.AF_UNIX)
    if how == "link":
        os.symlink(os.environ["VICTIM"], "/run/dockml/control")
        time.sleep(60)
    server.bind("/run/dockml/control")
    os.chmod("/run/dockml/control", 0o666)
    server.listen(8)
    connection, _ = server.accept()
    connection.recv(1000)
    report = {"python": "3.11.2", "executable": "/x", "machine": "x86_64", "libc": "glibc",
              "libc_version": "2.36", "kernel": "image", "ipykernel": "7.0"}
    def say(phase, **facts):
        state = {"generation": 1, "phase": phase, "report": dict(report, **facts), "exit": None}
        connection.sendall(json.dumps(state).encode() + b"\n")
    if how == "endless":
        while True:
            connection.sendall(b"x" * 65536)
    elif how == "deep":
        connection.sendall(b"[" * 100000 + b"\n")
    elif how == "traversal":
        say("need_bundle", libc="../../../../../..", libc_version="", machine="tmp")
    elif how == "steering":
        say("failed", problem="\x1b]52;c;cm0gLXJm\x07\x1b[2J\x1b[1;1HAll is well")
    elif how == "linked kernel":
        for port in range(1, 6):
            os.symlink(os.environ["VICTIM"], "/run/dockml/kernel-%d" % port)
        say("bound")
    time.sleep(60)
"""

SABOTAGE = """
import os
for name in ("launch.py", "connection.json"):
    os.unlink("/run/dockml/" + name)
    os.symlink({victim!r}, "/run/dockml/" + name)

"""


class Victim:
    """A socket of the host's, such as the engine's or an agent's, and whether anybody came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.visits: list[bytes] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.visits.append(connection.recv(1000))
            connection.close()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def victim(own_folders: Path) -> Iterator[Victim]:
    """Give a socket outside of all mounts."""
    found = Victim(own_folders / "victim")
    yield found
    found.close()


@pytest.fixture(scope="module")
def evil(engine: DockerEngine, image: Image, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give an image whose Python is not what it seems."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "evil.py").write_text(LIBRARY)
    (folder / "Dockerfile").write_text(
        f"FROM {image(BARE)}\nWORKDIR /usr/local/lib/python3.11\nCOPY evil.py .\n"
        "RUN echo 'import evil' >> string.py\n"
    )
    engine.build(folder / "Dockerfile", EVIL, {}, print)
    return EVIL


@pytest.fixture
def fail(evil: str, workspace: Path) -> Callable[..., DockmlError]:
    """Give a function that starts a kernel of that image, which fails; returns the error."""

    def start_and_fail(how: str, *env: str) -> DockmlError:
        options = RunOptions(env=(f"EVIL={how}", *env))
        from dockml_magic.planning import engine_for

        engine = engine_for(options)
        plan = make_plan(evil, options, workspace, engine=engine, tell=print)
        container = KernelContainer(engine, plan, print)
        with pytest.raises(DockmlError) as caught:
            container.start()
        assert list(folders.runtime_root().iterdir()) == []
        return caught.value

    return start_and_fail


def test_a_line_without_an_end_ends_the_start_and_fills_no_memory(
    fail: Callable[..., DockmlError],
) -> None:
    before = psutil.Process().memory_info().rss
    assert "a line without an end" in fail("endless").message
    assert psutil.Process().memory_info().rss - before < 100e6


@pytest.mark.parametrize("how", ["deep", "traversal"])
def test_what_no_supervisor_says_ends_the_start(fail: Callable[..., DockmlError], how: str) -> None:
    before = set(folders.bundles_root().iterdir())
    error = fail(how)
    assert "not to be trusted" in error.message
    assert "Traceback" not in str(error)
    assert set(folders.bundles_root().iterdir()) == before


def test_a_report_does_not_steer_the_terminal(fail: Callable[..., DockmlError]) -> None:
    said = str(fail("steering"))
    assert "\\x1b]52;c;cm0gLXJm\\x07" in said
    assert "\x1b" not in said
    assert "\x07" not in said


def test_a_link_in_the_place_of_the_control_socket_leads_nowhere(
    fail: Callable[..., DockmlError], victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dockml_magic.container.START_TIMEOUT", 3.0)
    assert "did not answer" in fail("link", f"VICTIM={victim.path}").message
    assert victim.visits == []


def test_links_in_the_place_of_a_kernels_sockets_lead_nowhere(
    fail: Callable[..., DockmlError], victim: Victim
) -> None:
    error = fail("linked kernel", f"VICTIM={victim.path}")
    assert "says that its kernel listens, and it does not" in error.message
    assert victim.visits == []


def test_links_in_the_runtime_folder_have_no_file_of_the_host_overwritten(
    image: Image, start: StartKernel, tmp_path: Path
) -> None:
    kernel = start(image(BARE))
    precious = tmp_path / "precious"
    precious.write_text("mine")
    precious.chmod(0o600)
    kernel.ok(SABOTAGE.format(victim=str(precious)))
    kernel.disconnect()
    kernel.manager.restart_kernel(now=True)  # ours, as it does not come up, writes its files anew
    assert precious.read_text() == "mine"
    assert precious.stat().st_mode & 0o777 == 0o600
    assert kernel.ok("print('works')").stdout == "works\n"


def test_only_what_was_asked_for_is_mounted_and_no_key_is_to_be_seen(
    image: Image, start: StartKernel, inspect: Inspect, workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    kernel = start(image(BARE), "-v", f"{tmp_path / 'data'}:/data:ro")
    found = inspect(kernel)
    container = kernel.manager.provisioner.container
    mounts = {m["Destination"]: (m["Source"], m["RW"]) for m in found["Mounts"]}
    assert mounts == {
        str(workspace): (str(workspace), True),
        "/run/dockml": (str(container._runtime.shared), True),
        "/opt/dockml/bundles": (str(folders.bundles_root()), False),
        "/opt/dockml/compiled": (
            str(compiled.root() / found["Image"].removeprefix("sha256:")),
            False,
        ),
        "/data": (str(tmp_path / "data"), False),
    }
    assert container.plan.key
    assert container.plan.key not in str(found)
    listed = "import os; print(sorted(os.listdir('/run/dockml')))"
    inside = eval(kernel.ok(listed).stdout)
    assert {"config.json", "connection.json", "control", "launch.py"} <= set(inside)
    # And nothing of what is beside it out here.
    assert "shared" not in inside


# --- hostile code in a notebook's environment -----------------------------------------------------

HELPERS = """
import json
from IPython import get_ipython
shell = get_ipython()
kernel = shell.kernel
def publish(kind, content, parent=None, buffers=None):
    parent = kernel.get_parent() if parent is None else parent
    kernel.session.send(kernel.iopub_thread, kind, content, parent=parent, buffers=buffers,
                        ident=b"evil")
"""
OPEN_COMM = """
try:
    from comm import create_comm
except ImportError:
    from ipykernel.comm import Comm as create_comm
ours = create_comm(target_name="ours", data={{}})
got = []
ours.on_msg(lambda message: got.append(message["content"]["data"]))
ours.on_close(lambda message: got.append("closed"))
print(ours.comm_id)
"""


@pytest.fixture(scope="module")
def notebook(open_notebook: OpenNotebook) -> Iterator[Notebook]:
    """Give a notebook with an environment in which hostile code runs."""
    with open_notebook("ipykernel7", BARE) as notebook:
        notebook.use(BARE)
        notebook.ok(HELPERS)
        yield notebook


def lives(notebook: Notebook) -> bool:
    return notebook.ok("print(6 * 7)").printed() == "42\n"


def test_a_comm_of_the_notebooks_own_kernel_is_not_a_containers(notebook: Notebook) -> None:
    comm_id = notebook.ok("%%docker_cell local\n" + OPEN_COMM.format()).printed().strip()
    seen = notebook.ok(
        f"for kind in ('comm_open', 'comm_msg', 'comm_close'):\n"
        f"    publish(kind, {{'comm_id': {comm_id!r}, 'target_name': 'x', 'data': {{}}}})\n"
        "publish('comm_open', {'comm_id': 'its own', 'target_name': 'x', 'data': {}})"
    )
    told = [(kind, c["comm_id"]) for kind, c in seen.messages if kind.startswith("comm_")]
    assert told == [("comm_open", "its own")]
    message = notebook.client.session.msg(
        "comm_msg", {"comm_id": comm_id, "data": {"for": "the notebook"}}
    )
    notebook.client.shell_channel.send(message)
    got = notebook.ok("%%docker_cell local\nprint(got)").printed()
    assert got == "[{'for': 'the notebook'}]\n"


def test_output_of_a_container_goes_into_its_own_cells_only(notebook: Notebook) -> None:
    foreign = notebook.send("%docker_env")  # runs in the notebook's own kernel
    notebook.finish(foreign)
    forged = {"header": {"msg_id": foreign, "msg_type": "execute_request"}}
    forging = (
        f"parent = {forged['header']!r}\n"
        "for content in ({'name': 'stdout', 'text': 'forged'},):\n"
        "    publish('stream', content, parent=parent)\n"
        "publish('status', {'execution_state': 'dead'})\n"
        "publish('shutdown_reply', {'restart': False})\n"
        "publish('stream', {'name': 'stdout', 'text': 'mine'})"
    )
    seen = notebook.ok(forging)
    assert seen.printed() == "mine"
    assert {c["execution_state"] for c in seen.of("status")} == {"busy", "idle"}
    assert not seen.of("shutdown_reply")
    assert lives(notebook)
    assert "forged" not in notebook._cells[foreign].printed()


def test_payloads_neither_end_the_notebook_nor_open_its_files(notebook: Notebook) -> None:
    reply = notebook.ok(
        "write = shell.payload_manager.write_payload\n"
        "write({'source': 'ask_' + 'ex' + 'it', 'keepkernel': False}, single=False)\n"
        "write({'source': 'edit_magic', 'filename': '/etc/passwd'}, single=False)\n"
        "write({'source': 'set_next_input', 'text': 'x = 1', 'replace': False}, single=False)"
    ).reply
    assert [item["source"] for item in reply["payload"]] == ["set_next_input"]
    assert lives(notebook)


DEEP = "b'[' * 50_000 + b']' * 50_000"


@pytest.mark.parametrize(
    "frames",
    [
        f"[b'x', b'<IDS|MSG>', b'', {DEEP}, b'{{}}', b'{{}}', b'{{}}']",
        f"[b'x', b'<IDS|MSG>', b'', b'{{}}', {DEEP}, b'{{}}', b'{{}}']",
        "[b'x', b'<IDS|MSG>', b'', b'{\"msg_type\": [], \"msg_id\": {}}', b'{}', b'{}', b'{}']",
        "[b'x']",
        "[b'x', b'<IDS|MSG>', b'', b'x' * 2_000_000, b'{}', b'{}', b'{}']",
    ],
    ids=["deep header", "deep parent", "no types", "no message", "long header"],
)
def test_frames_that_are_no_message_are_told_and_the_notebook_lives(
    notebook: Notebook, frames: str
) -> None:
    with not_before_it_is_told(notebook) as waits:
        cell = notebook.run(f"kernel.iopub_thread.send_multipart({frames}){waits}")
    assert cell.reply["status"] == "error"
    assert "a message that cannot be used" in cell.traceback
    assert lives(notebook)


def test_a_count_that_no_kernel_reaches_is_not_the_notebooks(notebook: Notebook) -> None:
    cell = notebook.run("shell.execution_count = 2_000_000_000")
    shown = notebook.run("%%docker_cell local\nget_ipython().execution_count")
    assert int(shown.result) < 1000
    notebook.run("%docker_restart")
    notebook.ok(HELPERS)
    assert cell.reply["status"] in ("ok", "error")
    assert lives(notebook)


def test_a_message_that_is_too_large_is_told_and_fills_no_memory(notebook: Notebook) -> None:
    process = psutil.Process(notebook.pid)
    before = process.memory_info().rss
    with not_before_it_is_told(notebook) as waits:
        cell = notebook.run(
            "publish('display_data', {'data': {}, 'metadata': {}}, buffers=[bytes(520 * 1024**2)])"
            + waits
        )
    assert "a message of more than 512 MiB, which is refused" in cell.traceback
    assert process.memory_info().rss - before < 200e6
    assert lives(notebook)


# --- a hostile project file -----------------------------------------------------------------------


def test_a_project_file_that_asks_for_more_is_refused_until_it_is_allowed(
    notebook: Notebook, image: Image, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the host")
    project = notebook.folder / "dockml.toml"
    project.write_text(
        f'[environments.wide]\nimage = "{image(BARE)}"\nvolumes = ["{tmp_path}:/secret:ro"]\n'
    )
    refused = notebook.run("%docker_env wide")
    assert f"asks for more than its own folder:\n  - {tmp_path}, to read\n" in refused.traceback
    assert "%docker_env wide --trust" in refused.traceback
    notebook.ok("%docker_env wide --trust")
    assert notebook.ok("print(open('/secret/secret').read())").printed() == "of the host\n"
    notebook.ok("%docker_stop wide")
    project.write_text(project.read_text().replace(":ro", ""))
    assert "to read and write" in notebook.run("%docker_env wide").traceback
    notebook.use(image(BARE))


def test_a_kernel_of_the_launcher_refuses_such_a_file_too(
    image: Image, start: StartKernel, workspace: Path, ours: Callable[[], list[object]]
) -> None:
    (workspace / "dockml.toml").write_text(
        f'[environments.wide]\nimage = "{image(BARE)}"\nnetwork = "host"\n'
    )
    with pytest.raises(UntrustedProjectError, match="every service of this machine"):
        start("wide")
    assert not ours()
