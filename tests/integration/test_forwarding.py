"""Messages on their way between a notebook's front end and kernels in containers: order, faults, floods."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import Image, OpenNotebook
from tests.integration.notebook import (
    IPYKERNELS,
    Cell,
    Notebook,
    not_before_it_is_told,
    python_with,
)
from tests.waiting import wait_until

PIP = "dockml/pip:3.11"
OTHER = "dockml/ipykernel:7"
WIDGETS = "dockml/widgets:3.11"
TF = "dockml/tensorflow:1.10.0"
TF_PY27 = "dockml/tensorflow:1.10.0-py27"

IGNORE_INTERRUPTS = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
open("ignoring", "w").close()
while True:
    time.sleep(0.1)
"""
SHOW = """
from IPython.display import display
for i in range({n}):
    display({{'text/plain': '%06d' % i + {size} * 'x'}}, raw=True)
"""
RAW_IOPUB = "get_ipython().kernel.iopub_socket.send_multipart({frames!r})"
ECHO = """
from ipykernel.comm import Comm
comm = Comm(target_name="jupyter.widget", data={{}})
def echo(message):
    buffers = [bytes(buffer)[::-1] for buffer in message["buffers"]][::-1]
    comm.send({{"from": "{name}", "data": message["content"]["data"],
               "lengths": [len(buffer) for buffer in message["buffers"]]}}, buffers=buffers)
comm.on_msg(echo)
"""
OTHER_KEY = "get_ipython().kernel.session.key = b'another key'"


@pytest.fixture(scope="module", params=IPYKERNELS)
def notebook(request: pytest.FixtureRequest, open_notebook: OpenNotebook) -> Iterator[Notebook]:
    """A notebook with two environments; the first is active in each test."""
    with open_notebook(request.param, PIP, OTHER, TF, TF_PY27) as notebook:
        notebook.use(OTHER, "--name", "other")
        notebook.use(PIP, "--name", "first")
        yield notebook


@pytest.fixture(autouse=True)
def active(notebook: Notebook) -> None:
    """Begin in the first environment."""
    notebook.use("first")


def run_all(notebook: Notebook, *cells: str) -> list[Cell]:
    """Send cells at once, as "Run All" does, and return them when the last one has ended."""
    return [notebook.finish(msg_id) for msg_id in notebook.send_all(*cells)]


def say(
    notebook: Notebook,
    comm_id: str,
    data: dict[str, Any],
    buffers: list[bytes],
    opens: str = "",
    wanted: str = "comm_",
) -> list[dict[str, Any]]:
    """Send a comm message (or open a comm) as a front end does; return what comes back, over comms or else."""
    client = notebook.client
    content = {"comm_id": comm_id, "data": data} | ({"target_name": opens} if opens else {})
    message = client.session.msg("comm_open" if opens else "comm_msg", content)
    client.session.send(client.shell_channel.socket, message, buffers=buffers)
    answers = []
    while True:
        answer = client.get_iopub_msg(timeout=30)
        if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        if answer["msg_type"].startswith(wanted):
            answers.append(answer)
        elif answer["content"].get("execution_state") == "idle":
            return answers


def start(notebook: Notebook, code: str) -> str:
    """Send a cell that calls `started()`, or makes that file, and return its id when it has."""
    mark = notebook.folder / "started"
    mark.unlink(missing_ok=True)
    notebook.ok("def started(): open('started', 'w').close()")
    cell = notebook.send(code, allow_stdin=True)
    wait_until(mark.exists, what="the cell to run")
    return cell


@contextmanager
def stalling_registry() -> Iterator[tuple[str, threading.Event]]:
    """A registry that is there and never sends a manifest."""
    was_asked, ended = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/v2/":
                was_asked.set()
                ended.wait(120)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815  # the name is the base class's

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", was_asked
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


# --- order ------------------------------------------------------------------------------------


def test_cells_sent_at_once_run_where_those_before_them_lead(notebook: Notebook) -> None:
    where = "import socket; print(socket.gethostname())"
    first, other = (notebook.ok(f"%%docker_cell {name}\n{where}") for name in ("first", "other"))
    assert first.printed() != other.printed()
    cells = run_all(
        notebook,
        where,
        "%docker_env other",
        where,
        "%docker_env local",
        "'here'",
        "%docker_env first",
        where,
    )
    assert [cell.printed() for cell in cells[::2]][:2] == [first.printed(), other.printed()]
    assert cells[4].result == "'here'"
    assert cells[6].printed() == first.printed()
    counts = [cell.reply["execution_count"] for cell in cells]
    assert counts == list(range(counts[0], counts[0] + len(cells)))


def test_cells_loaded_with_the_extension_at_once_run_in_order(
    workspace: Path, image: Image
) -> None:
    image(PIP)
    with Notebook(workspace, python_with(IPYKERNELS[0])) as notebook:
        cells = run_all(
            notebook,
            "%load_ext dockml_magic",
            f"%docker_env {PIP}",
            "seen = ['a']",
            "seen.append('b')",
            "print(seen)",
        )
        assert cells[-1].printed() == "['a', 'b']\n"


@pytest.mark.parametrize(
    "cells",
    [
        ["1 / 0", "%docker_env other", "print('not run')"],
        ["%docker_env no such name", "print('not run')"],
        ["%%docker_cell other\n1 / 0", "print('not run')"],
        ["%%docker_cell local\n1 / 0", "print('not run')"],
        ["import time; time.sleep(0.2); 1 / 0", "%docker_ps", "%%docker_cell local\n'not run'"],
    ],
)
def test_an_error_aborts_what_waits_in_whatever_kernel(
    notebook: Notebook, cells: list[str]
) -> None:
    failed, *others = run_all(notebook, *cells)
    assert failed.reply["status"] == "error"
    for other in others:
        assert other.reply["status"] == "aborted"
        assert [kind for kind, _ in other.messages] == ["status", "status"]
    assert notebook.ok("'next'").result == "'next'"


def test_cells_go_on_where_an_error_is_not_to_stop_them(notebook: Notebook) -> None:
    failing = notebook.send("1 / 0", stop_on_error=False)
    cells = [notebook.send(cell) for cell in ("%docker_env other", "'run'")]
    assert notebook.finish(failing).reply["status"] == "error"
    assert notebook.finish(cells[0]).reply["status"] == "ok"
    assert notebook.finish(cells[1]).result == "'run'"


def test_a_question_of_the_front_end_waits_behind_the_cell_that_runs(notebook: Notebook) -> None:
    cell = notebook.send("import time; time.sleep(0.5); late = 1")
    told = notebook.ask("kernel_info")
    assert notebook._cells[cell].is_idle or notebook.finish(cell).reply["status"] == "ok"
    assert told["implementation"] == "ipython"
    assert "late" in notebook.ask("complete", "lat", 3)["matches"]


# --- displays and comms -----------------------------------------------------------------------


def test_a_display_is_updated_from_another_environment(notebook: Notebook) -> None:
    shown = notebook.ok("from IPython.display import display\ndisplay('old', display_id='d')")
    updated = notebook.ok(
        "%%docker_cell other\nfrom IPython.display import update_display\n"
        "update_display('new', display_id='d')"
    )
    (before,), (after,) = shown.of("display_data"), updated.of("update_display_data")
    assert before["transient"] == after["transient"] == {"display_id": "d"}
    assert after["data"]["text/plain"] == "'new'"


def test_each_comm_is_with_the_kernel_that_opened_it_until_that_stops(notebook: Notebook) -> None:
    notebook.use(OTHER, "--name", "third")
    notebook.use("first")
    opened = {}
    for name in ("first", "third", "local"):
        cell = notebook.ok(f"%%docker_cell {name}\n" + ECHO.format(name=name))
        (content,) = cell.of("comm_open")
        opened[name] = content["comm_id"]
    assert set(opened.values()) <= set(notebook.ask("comm_info", "jupyter.widget")["comms"])
    for name, comm_id in opened.items():
        (echo,) = say(notebook, comm_id, {"n": 1}, [b"abc", b"\0\xff"])
        assert echo["content"]["data"] == {"from": name, "data": {"n": 1}, "lengths": [3, 2]}
        assert [bytes(buffer) for buffer in echo["buffers"]] == [b"\xff\0", b"cba"]
    stopped = notebook.ok("%docker_stop third")
    assert [content["comm_id"] for content in stopped.of("comm_close")] == [opened["third"]]
    left = notebook.ask("comm_info", "jupyter.widget")["comms"]
    assert opened["third"] not in left
    assert opened["first"] in left
    for name in ("first", "local"):
        notebook.ok(f"%%docker_cell {name}\ncomm.close()")


def test_all_widgets_states_come_from_their_one_owner_or_are_asked_for_one_by_one(
    notebook: Notebook,
) -> None:
    """What a page does that is loaded again: one comm for all states, closed where no kernel has them all."""
    control = "comm = None\ndef target(comm, message): comm.send({'all': 'states'})\n"
    control += "get_ipython().kernel.comm_manager.register_target('jupyter.widget.control', target)"
    notebook.ok(control)
    notebook.ok(ECHO.format(name="first"))
    (told,) = say(notebook, "control-1", {}, [], opens="jupyter.widget.control")
    assert told["content"]["data"] == {"all": "states"}
    notebook.ok("%%docker_cell other\n" + ECHO.format(name="other"))
    (told,) = say(notebook, "control-2", {}, [], opens="jupyter.widget.control")
    assert told["msg_type"] == "comm_close"
    for name in ("first", "other"):
        notebook.ok(f"%%docker_cell {name}\ncomm.close()")


WIDGETS_CELL = """
import ipywidgets
from tqdm.notebook import tqdm
button, out, bar = ipywidgets.Button(), ipywidgets.Output(), ipywidgets.IntProgress()
button.on_click(lambda b: print("clicked in", __import__("socket").gethostname()))
display(button, out, bar)
with out:
    print("captured")
for step in tqdm(range(3)):
    bar.value = step
ipywidgets.interact(lambda x: print("x is", x), x=(0, 10))
print("comm", button.comm.comm_id)
"""


def test_widgets_of_two_containers_work_side_by_side(notebook: Notebook, image: Image) -> None:
    image(WIDGETS)
    buttons = {}
    for name in ("left", "right"):
        notebook.use(WIDGETS, "--name", name)
        notebook.ok("%pip install -q tqdm")
        cell = notebook.ok(WIDGETS_CELL)
        models = [content["data"]["state"].get("_model_name") for content in cell.of("comm_open")]
        assert {"ButtonModel", "OutputModel", "IntProgressModel", "IntSliderModel"} <= set(models)
        states = [content["data"].get("state", {}) for content in cell.of("comm_msg")]
        assert any("msg_id" in state for state in states)  # by which a page fills an Output
        assert [state["value"] for state in states if "value" in state and state["value"] in (1, 2)]
        assert "captured" in cell.printed()
        buttons[name] = cell.printed().rpartition("comm ")[2].strip()
    notebook.use("first")
    hosts = set()
    for comm_id in buttons.values():
        click = {"method": "custom", "content": {"event": "click"}}
        printed = say(notebook, comm_id, click, [], wanted="stream")  # in one message or several
        hosts.add("".join(message["content"]["text"] for message in printed))
    assert len(hosts) == 2
    assert all(text.startswith("clicked in") for text in hosts)
    notebook.ok("%docker_stop left right")


# --- interrupts -------------------------------------------------------------------------------

TF_LOOP = """
import tensorflow as tf
x = tf.Variable(tf.zeros([200, 200]))
step = tf.assign(x, tf.matmul(x, x))
session = tf.Session()
session.run(tf.global_variables_initializer())
started()
while True: session.run(step)
"""
SLEEP = "touch started; exec sleep 600"
"""Says itself that it runs: an interrupt between `fork` and `exec` is Python's, twice, and may be lost."""

TIMES = """
import time
for times in range(2):
    try:
        started()
        for _ in range(6000): time.sleep(0.1)
    except KeyboardInterrupt:
        print("one", flush=True)
        for _ in range(600): time.sleep(0.1)  # the second one comes while the first is being dealt with
"""


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        (PIP, "started()\nwhile True: pass"),
        (PIP, f"import subprocess; subprocess.call(['sh', '-c', {SLEEP!r}])"),
        (PIP, f"!{SLEEP}"),
        (PIP, "started()\ninput()"),
        (TF, TF_LOOP),
        (TF_PY27, "started()\nraw_input()"),
        (TF_PY27, f"import subprocess; subprocess.call(['sh', '-c', {SLEEP!r}])"),
    ],
)
def test_an_interrupt_ends_what_a_cell_waits_for(
    notebook: Notebook, reference: str, code: str
) -> None:
    notebook.use(reference, "--name", reference.partition(":")[2])
    cell = start(notebook, code)
    notebook.interrupt()
    # Python ignores what is raised in a `__del__`, and TensorFlow has many: then one presses the button again.
    swallowed = 0
    while not notebook.wait(
        cell,
        lambda c, n=swallowed: c.is_idle or c.printed("stderr").count("Exception ignored in") > n,
    ).is_idle:
        swallowed += 1
        notebook.interrupt()
    ended = notebook.finish(cell)
    if not code.startswith("!"):  # IPython's own way with it is to go on
        assert ended.reply["status"] == "error"
        assert ended.reply["ename"] == "KeyboardInterrupt"
    assert "started" in notebook.ok("print(started.__name__)").printed()


def test_a_second_interrupt_while_the_first_is_dealt_with_arrives_too(notebook: Notebook) -> None:
    cell = start(notebook, TIMES)
    notebook.interrupt()
    notebook.wait_printed(cell, "one")
    notebook.interrupt()
    assert notebook.finish(cell).reply["ename"] == "KeyboardInterrupt"
    assert notebook.ok("'next'").result == "'next'"


def test_an_interrupt_ends_a_pull_that_does_not_go_on(notebook: Notebook) -> None:
    with stalling_registry() as (address, was_asked):
        cell = notebook.send(f"%docker_env {address}/some/image:1")
        assert was_asked.wait(60)
        notebook.interrupt()
        ended = notebook.finish(cell)
    assert ended.reply["ename"] == "PullStopped"
    assert notebook.ok("'where it was'").result == "'where it was'"


# --- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%dock", "%docker_env"),
        ("%", "%docker_env"),
        ("%docker_env fi", "first"),
        ("%docker_env tf1.10-", "tf1.10-gpu"),
        ("%docker_env dockml/ipy", OTHER),
        ("%docker_env x --shm", "--shm-size"),
        ("%docker_stop ot", "other"),
        ("%%docker_cell lo", "local"),
    ],
)
def test_our_magics_and_names_are_completed(notebook: Notebook, line: str, expected: str) -> None:
    assert expected in notebook.ask("complete", line, len(line))["matches"]


def test_magics_of_the_environment_are_completed_beside_ours(notebook: Notebook) -> None:
    notebook.ok("from IPython.core.magic import register_line_magic\n"
                "@register_line_magic\ndef donkey(line): pass")  # fmt: skip
    matches = notebook.ask("complete", "%do", 3)["matches"]
    assert {"%donkey", "%docker_ps"} <= set(matches)


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames", [[b"nonsense"], [b"t", b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"{}"], [b"\xff" * 99]]
)
def test_a_message_that_is_none_ends_the_cell_with_an_error_and_nothing_else(
    notebook: Notebook, frames: list[bytes]
) -> None:
    with not_before_it_is_told(notebook) as waits:
        cell = notebook.run(RAW_IOPUB.format(frames=frames) + waits)
    assert "sent a message that cannot be used" in cell.traceback
    assert len(cell.traceback.splitlines()) <= 3
    assert notebook.ok("'next'").result == "'next'"


def test_a_kernel_that_signs_with_another_key_is_not_believed(notebook: Notebook) -> None:
    notebook.use(PIP, "--name", "forger", "--transport", "tcp")
    assert "its signature is wrong" in notebook.run(OTHER_KEY).traceback
    assert notebook.ok("%%docker_cell local\n1 + 1").result == "2"
    notebook.ok("%docker_stop forger")
    assert notebook.ok("%docker_env first\n'next'").result == "'next'"


HANDLED = """
import time
try:
    started()
    for _ in range(6000): time.sleep(0.1)
except KeyboardInterrupt:
    print("stopped early")
"""


def test_an_interrupt_that_a_cell_has_handled_is_none_of_the_next_one(notebook: Notebook) -> None:
    patience = (
        "%%docker_cell local\nimport dockml_magic.forwarding as f; f._INTERRUPT_PATIENCE = {}"
    )
    notebook.ok(patience.format(0.5))
    try:
        cell = start(notebook, HANDLED)
        behind = notebook.send("time.sleep(2); print('whole')")
        notebook.interrupt()
        handled, whole = notebook.finish(cell), notebook.finish(behind)
    finally:
        notebook.ok(patience.format(10.0))
    assert (handled.reply["status"], handled.printed()) == ("ok", "stopped early\n")
    assert (whole.reply["status"], whole.printed()) == ("ok", "whole\n")
    assert whole.printed("stderr") == ""


KEEPS_ITS_REPLY = """
import threading
kernel = get_ipython().kernel
send = kernel.session.send
def keep(stream, kind, content=None, *more, **named):
    if kind != "execute_reply":
        return send(stream, kind, content, *more, **named)
    kernel.session.send = send
    if {seconds}:
        global sending
        sending = threading.Timer({seconds}, send, (stream, kind, content) + more, named)
        sending.start()
    return {{"content": content}}
kernel.session.send = keep
"""


@pytest.mark.parametrize("name", [PIP, TF])
def test_a_cell_whose_reply_is_lost_ends_and_one_whose_reply_is_late_has_it(
    notebook: Notebook, name: str
) -> None:
    """The kernel has not come to send it, where the next cell keeps the interpreter's lock."""
    notebook.use(name, "--name", "late")
    lost = notebook.run(KEEPS_ITS_REPLY.format(seconds=0))
    assert (lost.reply["status"], lost.reply["ename"]) == ("error", "KeyboardInterrupt")
    late = notebook.send(KEEPS_ITS_REPLY.format(seconds=8))
    behind = notebook.send("sending.join(); print('behind')", stop_on_error=False)
    assert notebook.finish(late).reply["status"] == "ok"
    assert notebook.finish(behind).printed() == "behind\n"
    assert notebook.ok("6 * 7").result == "42"
    notebook.ok("%docker_stop late")


STOPS_BEHIND_A_BUSY_CELL = """%%docker_cell local
import threading, time
import dockml_magic.forwarding as forwarding
patience, forwarding._REPLY_PATIENCE = forwarding._REPLY_PATIENCE, 0.3
environments = get_ipython()._dockml_magics.environments
stopping = threading.Thread(target=environments.stop, args=["gone"])
stopping.start()
ends = time.monotonic() + 3
while time.monotonic() < ends: pass
stopping.join()
forwarding._REPLY_PATIENCE = patience
"""


def test_an_environment_behind_one_that_was_stopped_while_the_notebook_was_busy_is_heard(
    notebook: Notebook,
) -> None:
    """The picker stops it so; with ipykernel 6 the busy thread is the one that has to let go of its sockets."""
    for _ in range(3):
        notebook.use(PIP, "--name", "gone")
        notebook.ok("1 + 1")
        notebook.ok(STOPS_BEHIND_A_BUSY_CELL)
        notebook.use(PIP, "--name", "next")
        assert notebook.ok("6 * 7").result == "42"
        notebook.ok("%docker_stop next")


STOPS = """%%docker_cell local
import os, threading, time
def stop():
    while not os.path.exists("begun"):
        time.sleep(0.05)
    get_ipython()._dockml_magics.environments.stop("ends")
stopping = threading.Thread(target=stop)
stopping.start()
"""
SLEEPS = "%%docker_cell ends\nopen('begun', 'w').close(); import time; time.sleep(600)"


def test_another_thread_stops_an_environment_in_the_middle_of_a_cell(notebook: Notebook) -> None:
    """As the picker's button does; of cells with lines of ours the notebook's main thread waits for the end."""
    for _ in range(2):
        notebook.use(PIP, "--name", "ends")
        (notebook.folder / "begun").unlink(missing_ok=True)
        notebook.ok(STOPS)
        assert "The kernel was stopped." in notebook.run(SLEEPS).traceback
        notebook.ok("%%docker_cell local\nstopping.join()")
        assert "ends" not in notebook.ok("%docker_ps").result
        notebook.use("first")
        assert notebook.ok("'goes on'").result == "'goes on'"


ASKS_AND_DIES = """
import os, threading, time
def die():
    while not os.path.exists("die"):
        time.sleep(0.05)
    os.kill(os.getpid(), 9)
threading.Thread(target=die).start()
input("?")
"""


def test_an_answer_is_not_for_a_kernel_that_died_as_it_asked(notebook: Notebook) -> None:
    notebook.use(PIP, "--name", "asks")
    for _ in range(5):
        cell = notebook.send(ASKS_AND_DIES, allow_stdin=True)
        assert notebook.wait_asked() == "?"
        (notebook.folder / "die").touch()
        assert notebook.finish(cell).reply["ename"] == "KernelDiedError"
        (notebook.folder / "die").unlink()
        own = notebook.send("%%docker_cell local\ninput('own?')", allow_stdin=True)
        assert notebook.answer("typed") == "own?"
        assert notebook.finish(own).result == "'typed'"
        notebook.ok("%docker_restart asks")
    notebook.ok("%docker_stop asks")


def test_a_kernel_that_ignores_interrupts_can_be_ended(
    notebook: Notebook,
) -> None:
    notebook.use(PIP, "--name", "deaf")
    cell = notebook.send(IGNORE_INTERRUPTS)
    wait_until((notebook.folder / "ignoring").exists, what="the cell to run")
    (notebook.folder / "ignoring").unlink()
    notebook.interrupt()
    notebook.wait(cell, lambda cell: "has not reacted to the interrupt" in cell.printed("stderr"))
    notebook.interrupt()
    ended = notebook.finish(cell)
    assert "did not react to the interrupts, and was ended" in ended.traceback
    assert notebook.ok("%docker_restart deaf\n'new'").result == "'new'"
    notebook.ok("%docker_stop deaf")


@pytest.mark.parametrize("reference", [PIP, TF_PY27])
def test_a_front_end_that_reads_slowly_gets_all_and_the_memory_is_bounded(
    notebook: Notebook, reference: str
) -> None:
    notebook.use(reference, "--name", "flood")
    host = psutil.Process(notebook.pid)
    before = host.memory_info().rss
    cell = notebook.send(SHOW.format(n=4000, size=50_000))
    grown = 0
    for _ in range(6):
        time.sleep(0.5)
        grown = max(grown, host.memory_info().rss - before)
    done = notebook.finish(cell)
    numbers = [content["data"]["text/plain"][:6] for content in done.of("display_data")]
    assert numbers == [f"{i:06d}" for i in range(4000)]
    assert grown < 120e6  # of 200 MB
    notebook.ok("%docker_stop flood")
