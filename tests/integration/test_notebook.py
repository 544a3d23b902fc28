"""Cells of a notebook in containers, as its front end sees them, with ipykernel 7 and 6 as host kernels."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.integration.conftest import Image, OpenNotebook
from tests.integration.notebook import (
    IPYKERNELS,
    LONG_SLEEP,
    Notebook,
    containers_of,
    holding_starts,
    python_with,
)
from tests.waiting import wait_until

PIP = "dockml/pip:3.11"
TF = "dockml/tensorflow:1.10.0"
TF_PY27 = "dockml/tensorflow:1.10.0-py27"
IPYKERNEL_5 = "dockml/ipykernel:5"

PROJECT = """
[environments.greeter]
image = "dockml/pip:3.11"
env = { GREETING = "hello from the project" }
"""

DIE = "import os, time; time.sleep(2); os.kill(os.getpid(), 9)"
SLEEP = "x = 42\nopen('sleeping', 'w').close()\nimport time\n" + LONG_SLEEP

KEEP_TRACEBACK = """
def keep(result):
    global kept
    if not result.success:
        kept = get_ipython()._last_traceback
        get_ipython().events.unregister("post_run_cell", keep)
get_ipython().events.register("post_run_cell", keep)
"""

NOTHING = "def load_ipython_extension(shell): pass\ndef unload_ipython_extension(shell): pass\n"

SNAPSHOT = """
def _snapshot():
    import json, signal, sys
    shell = get_ipython()
    kernel = shell.kernel
    state = {
        "kernel": sorted(vars(kernel)),
        "shell": sorted(vars(shell)),
        "handlers": {n: str(f) for n, f in {**kernel.shell_handlers, **kernel.control_handlers}.items()},
        "do": [str(getattr(kernel, n)) for n in dir(kernel) if n.startswith("do_")],
        "magics": {kind: sorted(names) for kind, names in shell.magics_manager.magics.items()},
        "registry": sorted(shell.magics_manager.registry),
        "events": {name: [str(f) for f in fs] for name, fs in shell.events.callbacks.items()},
        "cleanup": [str(f) for f in shell.input_transformers_cleanup],
        "post": [str(f) for f in shell.input_transformers_post],
        "ast": [str(f) for f in shell.ast_transformers],
        "run": [str(shell.run_code), str(shell.run_cell), str(shell.run_cell_async)],
        "hooks": [str(f) for f in (sys.displayhook, sys.excepthook, sys.stdout, sys.stderr)],
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
        + [str(kernel.saved_sigint_handler)],
        "shell channel": str(kernel.shell_stream._recv_callback),
        "completers": sorted(shell.strdispatchers["complete_command"].strs),
        "session": [kernel.session.session, kernel.session.key.decode()],
    }
    print(json.dumps(state))
_snapshot()
"""


@pytest.fixture(scope="module", params=IPYKERNELS)
def ipykernel(request: pytest.FixtureRequest) -> str:
    """The host kernel's ipykernel."""
    return str(request.param)


@pytest.fixture(scope="module")
def notebook(ipykernel: str, open_notebook: OpenNotebook) -> Iterator[Notebook]:
    """A notebook that many tests share; each test chooses its environment."""
    with open_notebook(ipykernel, PIP, TF, TF_PY27, IPYKERNEL_5, project=PROJECT) as notebook:
        yield notebook


@pytest.fixture
def fresh(ipykernel: str, workspace: Path, image: Image) -> Iterator[Notebook]:
    """A notebook of this test's own, where nothing is loaded."""
    image(PIP)
    with Notebook(workspace, python_with(ipykernel)) as notebook:
        yield notebook


def sleeping(notebook: Notebook, code: str = SLEEP) -> str:
    """Send a cell that sleeps, and return its id once it does."""
    mark = notebook.folder / "sleeping"
    mark.unlink(missing_ok=True)
    msg_id = notebook.send(code)
    wait_until(mark.exists, what="the cell to run")
    return msg_id


# --- output -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PIP, TF_PY27])
def test_streams_arrive_in_order(notebook: Notebook, name: str) -> None:
    notebook.use(name)
    cell = notebook.ok(
        "import sys\n"
        "for i in range(4):\n"
        "    for stream in sys.stdout, sys.stderr:\n"
        "        stream.write('%d\\n' % i); stream.flush()"
    )
    seen = [(content["name"], content["text"]) for content in cell.of("stream")]
    assert seen == [(name, f"{i}\n") for i in range(4) for name in ("stdout", "stderr")]


def test_a_figure_drawn_in_the_container_is_displayed(notebook: Notebook) -> None:
    notebook.use(TF)
    cell = notebook.ok(
        "%matplotlib inline\nfrom matplotlib import pyplot\npyplot.plot([1, 2]); pyplot.show()"
    )
    (shown,) = cell.of("display_data")
    assert shown["data"]["image/png"].startswith("iVBORw0KGgo")


def test_a_display_is_updated_in_place(notebook: Notebook) -> None:
    notebook.use(PIP)
    cell = notebook.ok(
        "from IPython.display import clear_output, display\n"
        "shown = display('one', display_id=True); shown.update('two'); clear_output()"
    )
    kinds = [kind for kind, _ in cell.messages if kind not in ("status", "execute_input")]
    assert kinds == ["display_data", "update_display_data", "clear_output"]


def test_the_remote_traceback_is_shown_unchanged(notebook: Notebook) -> None:
    notebook.use(PIP)
    notebook.ok(KEEP_TRACEBACK)
    cell = notebook.run("def f():\n    return 1 / 0\nf()")
    (shown,) = cell.of("error")
    kept = notebook.ok("import json; print(json.dumps(kept))")
    assert shown["traceback"] == cell.reply["traceback"] == json.loads(kept.printed())
    assert (cell.reply["ename"], cell.reply["evalue"]) == ("ZeroDivisionError", "division by zero")
    assert f"In[{cell.reply['execution_count']}]" in cell.traceback


def test_counts_go_on_across_environments_as_if_all_cells_were_local(notebook: Notebook) -> None:
    first = notebook.ok("%docker_env local").reply["execution_count"] + 1
    places = [None, PIP, None, PIP, TF_PY27, IPYKERNEL_5, PIP, TF_PY27]
    for count, name in enumerate(places, first):
        cell = notebook.ok(f"%%docker_cell {name or 'local'}\nlen(In)")
        (input_,), (output,) = cell.of("execute_input"), cell.of("execute_result")
        assert {content["execution_count"] for content in (cell.reply, input_, output)} == {count}
    assert notebook.ok(f"%%docker_cell {PIP}\nsorted(Out)[-1]").result == str(first + 6)


def test_a_cell_that_stores_no_history_is_not_counted(notebook: Notebook) -> None:
    notebook.use(PIP)
    before = notebook.ok("1").reply["execution_count"]
    notebook.ok("2", store_history=False)
    silent = notebook.ok("3", silent=True)
    assert notebook.ok("4").reply["execution_count"] == before + 1
    assert not silent.of("execute_result")


def test_a_cell_that_ran_elsewhere_is_in_the_notebooks_history_when_the_next_one_runs_here(
    notebook: Notebook,
) -> None:
    notebook.use(PIP)
    counts = [notebook.ok(f"'elsewhere, {n}'").reply["execution_count"] for n in range(3)]
    look = f"%%docker_cell local\n%history {counts[0]}-{counts[-1]}"
    assert notebook.ok(look).printed() == "".join(f"'elsewhere, {n}'\n" for n in range(3))
    look = f"%%docker_cell local\n_i{counts[-1]}, In[{counts[0]}]"
    assert notebook.ok(look).result == repr(("'elsewhere, 2'", "'elsewhere, 0'"))


def test_a_cell_with_a_line_of_ours_is_in_the_notebooks_history_on_the_disk_without_another_one(
    notebook: Notebook,
) -> None:
    notebook.use(PIP)
    ask = "%%docker_cell local\nprint(get_ipython().history_manager.hist_file)"
    path = notebook.ok(ask).printed().strip()
    line = "%docker_env local\n'beside a line of ours'"
    notebook.ok(line)

    def is_written() -> bool:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as history:
            last = "SELECT source_raw FROM history ORDER BY session DESC, line DESC LIMIT 1"
            with suppress(sqlite3.OperationalError):  # it is locked
                return bool(history.execute(last).fetchone() == (line,))
        return False

    wait_until(is_written, what="the cell to be in the history's file")


def test_user_expressions_are_evaluated_in_the_environment(notebook: Notebook) -> None:
    notebook.use(PIP)
    reply = notebook.ok("x = 21", user_expressions={"double": "x * 2", "bad": "1 / 0"}).reply
    assert reply["user_expressions"]["double"]["data"]["text/plain"] == "42"
    assert reply["user_expressions"]["bad"]["ename"] == "ZeroDivisionError"


def test_twenty_thousand_lines_arrive_complete_and_in_order(notebook: Notebook) -> None:
    notebook.use(PIP)
    cell = notebook.ok("for i in range(20_000): print(i)")
    assert cell.printed() == "".join(f"{i}\n" for i in range(20_000))


def test_fifty_megabytes_arrive_whole(notebook: Notebook) -> None:
    notebook.use(PIP)
    cell = notebook.ok("print('0123456789' * 5_000_000)")
    assert cell.printed() == "0123456789" * 5_000_000 + "\n"


def test_what_a_thread_prints_after_its_cell_is_not_lost(notebook: Notebook) -> None:
    notebook.use(PIP)
    msg_id = notebook.send(
        "import threading, time\n"
        "def tick():\n"
        "    for i in range(5): time.sleep(0.1); print('tick', i, flush=True)\n"
        "threading.Thread(target=tick).start()"
    )
    notebook.finish(msg_id)
    notebook.ok("%docker_env local")
    notebook.wait_printed(msg_id, "tick 4\n")


# --- what belongs to the environment, and what is ours ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "shown"),
    [
        (TF_PY27, "print 'hi'", "hi\n"),
        (TF_PY27, "%%time\nprint 'hi'", "Wall time"),
        (PIP, "!echo $DOCKML_NO_SUCH_THING in $(ls -d /run/dockml)", "in /run/dockml"),
        (PIP, "%%time\nprint('hi')", "Wall time"),
        (PIP, "%%bash\n%docker_ps || echo in bash", "in bash"),
        (PIP, "%%writefile mine.py\n%docker_ps\n", "Writing mine.py"),
        (PIP, "%%capture c\nprint('kept')\n", ""),
        (PIP, "print('''\n%docker_stop\n''')", "\n%docker_stop\n"),
        (PIP, "if True:\n    print('indented')\n\n    print('still')", "indented\nstill\n"),
        (PIP, "%env GREETING=hey\n!echo $GREETING there", "hey there"),
        (PIP, "#!comment\n# %docker_env local\nprint('here')", "here"),
        (PIP, "\n\n%%time\nprint('blank lines first')", "Wall time"),
    ],
)
def test_a_cell_runs_in_the_environment_as_it_is(
    notebook: Notebook, name: str, code: str, shown: str
) -> None:
    notebook.use(name)
    cell = notebook.ok(code)
    assert shown in cell.printed().replace("\r\n", "\n")
    assert notebook.ok("__import__('os').path.exists('/run/dockml')").result == "True"


def test_the_other_lines_of_a_cell_run_where_its_docker_env_leads(notebook: Notebook) -> None:
    notebook.use(PIP)
    cell = notebook.ok(
        "import sys\n"
        "print('one', sys.version_info[0])\n"
        f"%docker_env {TF_PY27}\n"
        "import sys\n"
        "print 'two', sys.version_info[0]\n"
        "%docker_env local\n"
        "print('three', __import__('os').path.exists('/run/dockml'))\n"
        f"%docker_env {PIP}\n"
        "print('four')\n"
        "%docker_ps\n"
        "40 + 2\n"
        "%docker_env local"
    )
    said = [line for line in cell.printed().splitlines() if not line.startswith("Cells run")]
    assert said == ["one 3", "two 2", "three False", "four"]
    table, result = (content["data"]["text/plain"] for content in cell.of("execute_result"))
    assert f"* {PIP}" in table
    assert result == "42"
    assert notebook.ok("__import__('os').path.exists('/run/dockml')").result == "False"


def test_an_error_ends_the_cell_before_its_other_pieces(notebook: Notebook) -> None:
    notebook.use(PIP)
    cell = notebook.run("1 / 0\n%docker_env local\nprint('never')")
    assert cell.reply["ename"] == "ZeroDivisionError"
    assert "never" not in cell.printed()
    assert notebook.ok("__import__('os').path.exists('/run/dockml')").result == "True"


def test_load_env_and_code_may_stand_in_one_cell(fresh: Notebook) -> None:
    cell = fresh.ok(
        "here = 1\n"
        "%load_ext dockml_magic\n"
        f"%docker_env {PIP}\n"
        "print('here' in globals(), __import__('os').path.exists('/run/dockml'))\n"
        "%docker_env local\n"
        "print(here)\n"
        f"%docker_env {PIP}\n"
        "6 * 7"
    )
    said = [line for line in cell.printed().splitlines() if not line.startswith("Cells run")]
    assert said == ["False True", "1"]
    assert cell.result == "42"
    assert [content["execution_count"] for content in cell.of("execute_result")] == [1]
    assert fresh.ok("41 + 2").reply["execution_count"] == 2
    fresh.ok("%docker_env local")
    assert fresh.ok("here").result == "1"


def test_a_docker_cell_runs_there_and_the_next_cell_where_it_did(notebook: Notebook) -> None:
    notebook.ok("%docker_env local\nwhere = 'here'")
    assert (
        notebook.ok(f"%%docker_cell {TF_PY27}\nprint 'two'; where = 'there'").printed() == "two\n"
    )
    assert notebook.ok("where").result == "'here'"
    notebook.use(PIP)
    assert notebook.ok("%%docker_cell local\nwhere").result == "'here'"
    assert notebook.ok(f"%%docker_cell {TF_PY27}\nwhere").result == "'there'"
    assert notebook.run("where").reply["ename"] == "NameError"


def test_three_environments_side_by_side_keep_their_variables(notebook: Notebook) -> None:
    names = [PIP, TF_PY27, IPYKERNEL_5]
    for name in names:
        notebook.ok(f"%docker_env {name}\nmine = {name!r}")
    for name in names:
        notebook.use(name)
        assert notebook.ok("mine").result == repr(name)


def test_docker_ps_lists_the_environments_and_docker_stop_ends_one(notebook: Notebook) -> None:
    notebook.use(PIP, "--name", "stoppable")
    table = notebook.ok("%docker_ps").of("execute_result")[0]["data"]
    assert "* stoppable" in table["text/plain"]
    assert "stoppable</td>" in table["text/html"]
    everywhere = notebook.ok("%docker_ps -a").result
    assert "stoppable" in everywhere
    assert str(notebook.folder) in everywhere
    before = set(containers_of(notebook.folder))
    assert "Cells run in the notebook's own kernel" in notebook.ok("%docker_stop").printed()
    assert len(before - set(containers_of(notebook.folder))) == 1
    assert "stoppable" not in notebook.ok("%docker_ps").result


def test_a_name_of_the_project_file_is_an_environment(notebook: Notebook) -> None:
    notebook.use("greeter")
    assert notebook.ok("!echo $GREETING").printed().strip() == "hello from the project"


def test_completion_inspection_and_completeness_are_the_environments(notebook: Notebook) -> None:
    notebook.ok(f"%docker_env {PIP}\nzebra_crossing = 1")
    assert notebook.ask("complete", "zebra_")["matches"] == ["zebra_crossing"]
    assert "int" in notebook.ask("inspect", "zebra_crossing")["data"]["text/plain"]
    assert notebook.ask("is_complete", "print 'hi'")["status"] == "invalid"
    assert "%docker_env" in notebook.ask("complete", "%docker_e")["matches"]
    assert "Start an environment" in notebook.ask("inspect", "%docker_env")["data"]["text/plain"]
    notebook.use(TF_PY27)
    assert notebook.ask("is_complete", "print 'hi'")["status"] == "complete"
    notebook.ok("%docker_env local")
    assert notebook.ask("complete", "zebra_")["matches"] == []


# --- questions, interrupts, restarts ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "question"),
    [
        (PIP, "input('name? ')"),
        (PIP, "__import__('getpass').getpass('name? ')"),
        (TF_PY27, "raw_input('name? ')"),
    ],
)
def test_a_cell_may_ask_the_user(notebook: Notebook, name: str, question: str) -> None:
    notebook.use(name)
    msg_id = notebook.send(f"str({question})", allow_stdin=True)
    assert notebook.answer("Ada") == "name? "
    assert notebook.finish(msg_id).result == "'Ada'"


def test_a_question_can_be_interrupted(notebook: Notebook) -> None:
    notebook.use(PIP)
    msg_id = notebook.send("input('name? ')", allow_stdin=True)
    notebook.wait_asked()
    notebook.interrupt()
    assert notebook.finish(msg_id).reply["ename"] == "KeyboardInterrupt"
    assert notebook.ok("1 + 1").result == "2"


@pytest.mark.parametrize("name", [TF_PY27, IPYKERNEL_5, PIP])
def test_interrupt_stops_the_remote_cell_and_keeps_its_variables(
    notebook: Notebook, name: str
) -> None:
    notebook.use(name)
    msg_id = sleeping(notebook)
    notebook.interrupt()
    assert notebook.finish(msg_id).reply["ename"] == "KeyboardInterrupt"
    assert notebook.ok("x").result == "42"


def test_an_interrupt_at_any_moment_of_a_mixed_cell_leaves_it_ended(notebook: Notebook) -> None:
    notebook.use(PIP)
    mixed = "print('asks', flush=True)\n%docker_ps\nimport time; time.sleep(0.02)\n%docker_ps\n"
    for moment in range(24):
        cell = notebook.send(mixed * 2)
        notebook.wait_printed(cell, "asks")
        time.sleep(0.004 * moment)
        notebook.interrupt()
        # Its reply may be lost: an interrupt that meets ipykernel as it sends one takes it, there as here.
        notebook.wait(cell, lambda cell: cell.is_idle)
        notebook.run("%%docker_cell local\n0")  # whose thread has met the interrupt by then
        assert notebook.ok("6 * 7").result == "42"


def test_an_interrupt_that_comes_before_a_piece_has_begun_stops_the_cell(
    notebook: Notebook,
) -> None:
    notebook.use(PIP)
    notebook.ok("first = second = 0")
    notebook.ok(
        "%%docker_cell local\n"
        "import os, signal\n"
        "session = get_ipython()._dockml_magics.environments.active._relay.session\n"
        "send = session.send\n"
        "def interrupted_before(*words, **more):\n"
        "    session.send = send\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return send(*words, **more)\n"
        "session.send = interrupted_before"
    )
    cell = notebook.run("first = 1\n%docker_ps\nsecond = 1")
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert notebook.ok("second").result == "0"


def test_an_interrupt_before_the_first_piece_ends_the_cell_with_a_reply(notebook: Notebook) -> None:
    notebook.use(PIP)
    notebook.ok(
        "%%docker_cell local\n"
        "typed = get_ipython().history_manager\n"
        "def interrupted(*words):\n"
        "    del typed.store_inputs\n"
        "    raise KeyboardInterrupt\n"
        "typed.store_inputs = interrupted"
    )
    assert notebook.run("1\n%docker_ps").reply["ename"] == "KeyboardInterrupt"
    assert notebook.ok("1 + 1").result == "2"


def test_the_stop_button_works_where_a_cell_that_awaits_has_loaded_the_extension(
    fresh: Notebook,
) -> None:
    fresh.ok("import asyncio\nawait asyncio.sleep(0)\n%load_ext dockml_magic")
    fresh.use(PIP)
    cell = sleeping(fresh)
    fresh.interrupt()
    assert fresh.finish(cell).reply["ename"] == "KeyboardInterrupt"


def test_an_interrupt_between_cells_disturbs_nothing(notebook: Notebook) -> None:
    notebook.use(PIP)
    notebook.interrupt()
    notebook.run("%%docker_cell local\n0")  # whose thread has met the interrupt by then
    assert notebook.ok("1 + 1").result == "2"


@pytest.mark.parametrize("magic", ["%docker_env", "%%docker_cell"])
def test_an_interrupt_during_the_start_leaves_no_container(fresh: Notebook, magic: str) -> None:
    fresh.ok("%load_ext dockml_magic")
    msg_id = fresh.send(f"{magic} {PIP} {holding_starts(fresh.folder)}\n1")
    wait_until(lambda: containers_of(fresh.folder), what="its container")
    fresh.interrupt()
    stopped = fresh.finish(msg_id)
    assert stopped.reply["ename"] == "StartStopped"
    assert [line.strip() for line in stopped.traceback.splitlines()] == [
        f"StartStopped: The start of '{PIP}' was stopped.",
        "What is kept is as it was; nothing else is left.",
    ]
    wait_until(lambda: not containers_of(fresh.folder), what="no container")
    assert fresh.ok("1 + 1").result == "2"
    assert "No environment runs" in fresh.ok("%docker_ps").result


def test_what_pip_installed_outlives_a_restart(notebook: Notebook) -> None:
    notebook.use(PIP)
    notebook.ok("gone = 1\n%pip install --quiet --disable-pip-version-check iniconfig==2.0.0")
    notebook.ok("%docker_restart")
    assert notebook.ok("import iniconfig; iniconfig.__name__").result == "'iniconfig'"
    assert notebook.run("gone").reply["ename"] == "NameError"


def test_an_error_aborts_the_cells_that_wait(notebook: Notebook) -> None:
    notebook.use(PIP)
    failing, waiting = notebook.send_all("1 / 0", "2")
    assert notebook.finish(failing).reply["status"] == "error"
    assert notebook.finish(waiting).reply["status"] == "aborted"
    assert notebook.ok("3").result == "3"


@pytest.mark.parametrize("rescue", ["%docker_restart", f"%docker_env {PIP} --name mortal"])
def test_a_kernel_that_dies_is_told_and_can_be_brought_back(
    notebook: Notebook, rescue: str
) -> None:
    notebook.use(PIP, "--name", "mortal")
    died = notebook.run("print('last words', flush=True)\n" + DIE)
    assert died.printed() == "last words\n"
    assert died.reply["ename"] == "KernelDiedError"
    assert "The kernel of 'mortal' died (exit code 137, SIGKILL)" in died.traceback
    after = notebook.run("1 + 1")
    assert "'mortal' is not running any more (exit code 137)." in after.traceback
    assert notebook.ok("%%docker_cell local\n1 + 1").result == "2"
    notebook.ok(rescue)
    assert notebook.ok("1 + 1").result == "2"


# --- errors of ours --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("%docker_env no-such-name", "UnknownNameError"),
        ("%docker_env tf1.10-gpu", "GpuUnavailableError"),
        ("%docker_env dockml/nopython:1", "KernelMissingError"),
        (f"%docker_env {PIP} --memory much", "ConfigError"),
        (f"%docker_env {PIP} --no-such-option", "ConfigError"),
        ("%docker_env 'open quote", "ConfigError"),
        ("%docker_stop nobody", "NoSuchEnvironmentError"),
        ("%docker_restart", "ConfigError"),
        ("%%docker_cell\n1", "ConfigError"),
        ("%%docker_cell no-such-name\n1", "UnknownNameError"),
    ],
)
def test_an_error_of_ours_is_two_or_three_lines(
    notebook: Notebook, image: Image, line: str, error: str
) -> None:
    image("dockml/nopython:1")
    notebook.ok("%docker_env local")
    before = set(containers_of(notebook.folder))
    cell = notebook.run(line)
    assert cell.reply["ename"] == error
    assert cell.traceback.startswith(f"{error}: ")
    assert len(cell.traceback.splitlines()) in (2, 3)
    assert set(containers_of(notebook.folder)) == before
    assert notebook.ok("1 + 1").result == "2"


# --- giving everything back ------------------------------------------------------------------------


def test_unload_gives_everything_back_as_it_was(fresh: Notebook) -> None:
    (fresh.folder / "nothing.py").write_text(NOTHING)  # IPython's own part in loading and unloading
    for line in ("%load_ext nothing", "%unload_ext nothing", "1 + 1"):
        fresh.ok(line)
    before = json.loads(fresh.ok(SNAPSHOT).printed())
    fresh.ok("%load_ext dockml_magic")
    fresh.use(PIP)
    fresh.run("1 / 0")
    fresh.ok("%unload_ext dockml_magic")
    assert containers_of(fresh.folder) == []
    assert json.loads(fresh.ok(SNAPSHOT).printed()) == before
    assert "UsageError" in fresh.run("%docker_ps").printed("stderr")
    fresh.ok("%load_ext dockml_magic")
    fresh.use(PIP)
    assert fresh.ok("__import__('os').path.exists('/run/dockml')").result == "True"


def test_docker_env_local_gives_everything_back_as_it_was(fresh: Notebook) -> None:
    fresh.ok("%load_ext dockml_magic")
    before = json.loads(fresh.ok(SNAPSHOT).printed())
    fresh.use(PIP)
    fresh.run("1 / 0")
    fresh.ok("%docker_env local")
    assert json.loads(fresh.ok(SNAPSHOT).printed()) == before


@pytest.mark.parametrize(
    "end",
    [lambda notebook: notebook.manager.shutdown_kernel(), Notebook.kill],
    ids=["shutdown", "kill -9"],
)
def test_ending_the_notebook_ends_its_containers(
    fresh: Notebook, end: Callable[[Notebook], None]
) -> None:
    fresh.ok("%load_ext dockml_magic")
    fresh.use(PIP)
    fresh.use(PIP, "--name", "second")
    sleeping(fresh)
    assert len(containers_of(fresh.folder)) == 2
    end(fresh)
    wait_until(lambda: not containers_of(fresh.folder), what="no container to be left")
