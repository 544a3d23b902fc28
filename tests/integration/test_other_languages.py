"""Kernels of other languages that an image carries: R, as a kernel and routed; and any, by its kernelspec."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from nbclient import NotebookClient

from dockml_magic.container import PORT_NAMES
from dockml_magic.engine import DockerEngine
from dockml_magic.errors import ConfigError, KernelDiedError, KernelMissingError
from dockml_magic.provisioner import DockerProvisioner
from dockml_magic.spec import ContainerSpec
from tests.integration.conftest import (
    Image,
    Inspect,
    OpenNotebook,
    StartKernel,
)
from tests.integration.kernels import Kernel
from tests.integration.notebook import (
    IPYKERNELS,
    PATIENCE,
    Notebook,
    containers_of,
    never_taken_for_dead,
)
from tests.integration.test_any_image import memory_of
from tests.integration.test_argv_launcher import answers, argv_for
from tests.ports import free_ports
from tests.waiting import wait_until

R = "dockml/r:4"
PNG = "iVBORw0KGgo"

both_transports = pytest.mark.parametrize("transport", ["ipc", "tcp"])

Messages = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def r(image: Image) -> str:
    """An image with R, its Jupyter kernel, and no ipykernel."""
    return image(R)


def run(kernel: Kernel, code: str) -> tuple[Mapping[str, Any], Messages]:
    """Run a cell and return its reply and all that was published under it."""
    published: Messages = []
    reply = kernel.client.execute_interactive(
        code,
        output_hook=lambda message: published.append((message["msg_type"], message["content"])),
        allow_stdin=False,
        timeout=PATIENCE,
    )
    return reply["content"], published


def printed(published: Messages, name: str) -> str:
    """Return a stream's text, which may come in pieces."""
    streams = (content for kind, content in published if kind == "stream")
    return "".join(content["text"] for content in streams if content["name"] == name)


def shown(published: Messages) -> list[dict[str, Any]]:
    """Return what was displayed: a dict of MIME types each. R's kernel shows values this way too."""
    return [content["data"] for kind, content in published if kind == "display_data"]


def reply_to(kernel: Kernel, request: str, *arguments: Any) -> dict[str, Any]:
    """Send a request that is not a cell; return the content of its reply."""
    msg_id = getattr(kernel.client, request)(*arguments)
    while True:
        message = kernel.client.get_shell_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") == msg_id:
            content: dict[str, Any] = message["content"]
            return content


# --- R as a kernel --------------------------------------------------------------------------------


@both_transports
def test_r_cells_run_and_the_front_end_is_told_of_r(
    start: StartKernel, r: str, inspect: Inspect, transport: str
) -> None:
    kernel = start(r, "--kernel", "ir", "--transport", transport)
    reply, published = run(kernel, "cat('out\\n'); message('err'); 41 + 1")
    assert reply["status"] == "ok"
    assert printed(published, "stdout").strip() == "out"
    assert printed(published, "stderr").strip() == "err"
    assert [data["text/plain"] for data in shown(published)] == ["[1] 42"]
    report = kernel.report
    assert (report["kernel"], report["kernelspec"], report["language"]) == ("spec", "ir", "R")
    info = reply_to(kernel, "kernel_info")["language_info"]
    reply, published = run(kernel, "cat(R.version$major, R.version$minor, sep = '.')")
    assert (info["name"], info["version"]) == ("R", printed(published, "stdout"))
    bindings = inspect(kernel)["NetworkSettings"]["Ports"].values()
    addresses = {binding["HostIp"] for of_port in bindings for binding in of_port or []}
    assert addresses == ({"127.0.0.1"} if transport == "tcp" else set())


def test_an_r_plot_is_displayed(start: StartKernel, r: str) -> None:
    reply, published = run(start(r, "--kernel", "ir"), "plot(1:10)")
    assert reply["status"] == "ok"
    (data,) = shown(published)
    assert data["image/png"].startswith(PNG)


def test_an_r_error_is_shown_and_the_kernel_goes_on(start: StartKernel, r: str) -> None:
    kernel = start(r, "--kernel", "ir")
    reply, published = run(kernel, "f <- function(x) stop('no good'); kept <- 1\nf(2)")
    assert (reply["status"], "no good" in reply["evalue"]) == ("error", True)
    (error,) = [content for kind, content in published if kind == "error"]
    assert "f(2)" in "\n".join(error["traceback"])
    assert run(kernel, "cat(kept)")[1][-2][1]["text"] == "1"


def test_r_completes_inspects_and_knows_what_is_complete(start: StartKernel, r: str) -> None:
    kernel = start(r, "--kernel", "ir")
    run(kernel, "zebra_crossing <- 1")
    assert "zebra_crossing" in reply_to(kernel, "complete", "zebra_c")["matches"]
    assert reply_to(kernel, "inspect", "zebra_crossing")["found"]
    assert reply_to(kernel, "is_complete", "f <- function(")["status"] == "incomplete"
    assert reply_to(kernel, "is_complete", "1 + 1")["status"] == "complete"


def test_r_asks_the_user(start: StartKernel, r: str) -> None:
    client = start(r, "--kernel", "ir").client
    msg_id = client.execute("cat('hello', readline('name? '))", allow_stdin=True)
    assert client.get_stdin_msg(timeout=PATIENCE)["content"]["prompt"] == "name? "
    client.input("Ada")
    printed = ""
    while (message := client.get_iopub_msg(timeout=PATIENCE))["content"].get(
        "execution_state"
    ) != "idle" or message["parent_header"]["msg_id"] != msg_id:
        printed += message["content"].get("text", "")
    assert printed == "hello Ada"


@both_transports
@pytest.mark.parametrize("busy", ["Sys.sleep(600)", "while (TRUE) {}"])
def test_interrupt_ends_the_r_cell_and_not_the_kernel(
    start: StartKernel, r: str, transport: str, busy: str
) -> None:
    kernel = start(r, "--kernel", "ir", "--transport", transport)
    kernel.ok("kept <- 1")
    ran = kernel.run(
        f"cat('here\\n'); flush.console(); {busy}; cat('not reached')",
        when_printed=kernel.manager.interrupt_kernel,
    )
    assert ran.stdout == "here\n"
    assert ran.reply["status"] == "abort"  # so says R's kernel; there is no error to show
    assert kernel.ok("cat(kept)").stdout == "1"


@both_transports
def test_restart_of_r_is_in_place(
    start: StartKernel, r: str, inspect: Inspect, transport: str
) -> None:
    kernel = start(r, "--kernel", "ir", "--transport", transport)
    before = inspect(kernel)
    kernel.ok("variable <- 1; cat('kept', file = '/var/tmp/file')")
    for now in (True, False):
        kernel.manager.restart_kernel(now=now)
        kernel.disconnect()
        assert kernel.ok("cat(exists('variable'))").stdout == "FALSE"
        assert kernel.ok("cat(readLines('/var/tmp/file', warn = FALSE))").stdout == "kept"
    assert inspect(kernel)["Id"] == before["Id"]
    assert inspect(kernel)["State"]["StartedAt"] == before["State"]["StartedAt"]


def test_the_death_of_r_is_seen_and_told(start: StartKernel, r: str) -> None:
    kernel = start(r, "--kernel", "ir")
    kernel.client.execute("cat('last words\\n', file = stderr()); tools::pskill(Sys.getpid(), 9)")
    wait_until(lambda: not kernel.manager.is_alive(), timeout=PATIENCE)
    provisioner = kernel.manager.provisioner
    assert isinstance(provisioner, DockerProvisioner)
    container = provisioner.container
    assert container is not None
    assert container.poll() == 137
    error = container.death(container.state, "The kernel died")
    assert "exit code 137, SIGKILL" in error.message
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert kernel.ok("cat(1 + 1)").stdout == "2"


def test_r_is_the_user_of_the_notebook_and_works_in_the_workspace(
    start: StartKernel, r: str, workspace: Path
) -> None:
    kernel = start(r, "--kernel", "ir", "--network", "none", "--user", "12345:12345")
    workspace.chmod(0o777)
    kernel.ok("cat('written', file = 'file'); cat('x', file = '~/file')")
    assert kernel.ok("cat(Sys.info()[['user']])").stdout == "user12345"
    assert (workspace / "file").read_text() == "written"
    assert (workspace / "file").stat().st_uid == 12345


def test_an_engine_without_our_files_runs_r(
    start: StartKernel, r: str, far_engine: DockerEngine
) -> None:
    kernel = start(r)
    assert kernel.manager.transport == "tcp"
    assert kernel.ok("cat(1 + 1)").stdout == "2"


# --- which kernel runs ----------------------------------------------------------------------------


def test_an_image_with_no_ipykernel_and_one_kernelspec_is_for_that_language(
    start: StartKernel, r: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[ContainerSpec] = []
    create = DockerEngine.create

    def noted(engine: DockerEngine, spec: ContainerSpec) -> str:
        created.append(spec)
        return create(engine, spec)

    monkeypatch.setattr(DockerEngine, "create", noted)
    first = start(r)
    assert first.report["kernelspec"] == "ir"
    assert first.ok("cat(1 + 1)").stdout == "2"
    report = first.report
    first.stop()
    created.clear()
    again = start(r)
    assert again.report == report
    assert len(created) == 1  # it is remembered


def test_a_memory_of_a_kernelspec_that_is_wrong_by_now_is_replaced(
    start: StartKernel, r: str, engine: DockerEngine
) -> None:
    path = memory_of(engine, r)
    path.parent.mkdir()
    path.write_text(json.dumps({"entry": "python3", "kernelspec": "julia"}))
    assert start(r).report["kernelspec"] == "ir"
    assert json.loads(path.read_text())["kernelspec"] == "ir"


def test_such_an_image_runs_python_when_asked(start: StartKernel, r: str) -> None:
    kernel = start(r, "--kernel", "python")
    assert kernel.report["kernel"] == "bundle"
    assert kernel.ok("1 + 1").result == "2"
    kernel.stop()
    assert start(r).report["kernelspec"] == "ir"  # what was asked for once is no habit


@pytest.mark.parametrize("name", [R, "dockml/ipykernel:7"])
def test_a_kernelspec_that_is_not_there_is_told_with_those_that_are(
    start: StartKernel, image: Image, name: str
) -> None:
    with pytest.raises(KernelMissingError, match="has no kernel 'julia'") as caught:
        start(image(name), "--kernel", "julia")
    assert ("ir (R)" if name == R else "python3 (python)") in caught.value.hint


def test_an_image_without_any_python_says_that_one_is_needed(
    start: StartKernel, image: Image
) -> None:
    with pytest.raises(KernelMissingError, match="has no Python") as caught:
        start(image("dockml/nopython:1"), "--kernel", "ir")
    assert "apt-get install python3" in caught.value.hint


# --- any kernelspec -------------------------------------------------------------------------------


@pytest.fixture
def otherlang(image: Image, workspace: Path) -> tuple[str, ...]:
    """A name and options for an image with a kernel of a language that nobody knows, as Jupyter finds it.

    It is ipykernel under another name, interrupted by a message.
    """
    folder = workspace / "jupyter" / "kernels" / "other-lang"
    folder.mkdir(parents=True)
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Other",
        "language": "other",
        "interrupt_mode": "message",
        "env": {"GIVEN": "${GREETING}, {resource_dir}"},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    name = image("dockml/ipykernel:7")
    return (name, "-e", f"JUPYTER_PATH={workspace}/jupyter", "-e", "GREETING=hello")


def test_a_kernelspec_runs_with_its_env_over_tcp(
    start: StartKernel, otherlang: tuple[str, ...], inspect: Inspect
) -> None:
    kernel = start(*otherlang, "--kernel", "other-lang")
    assert kernel.manager.transport == "tcp"
    assert kernel.ok("import os; os.environ['GIVEN']").result == "'hello, {resource_dir}'"
    bindings = inspect(kernel)["NetworkSettings"]["Ports"].values()
    assert {binding["HostIp"] for of_port in bindings for binding in of_port} == {"127.0.0.1"}


@both_transports
def test_a_kernel_that_wants_its_interrupt_as_a_message_gets_one(
    start: StartKernel, otherlang: tuple[str, ...], transport: str
) -> None:
    kernel = start(*otherlang, "--kernel", "other-lang", "--transport", transport)
    # What comes as a signal would be ignored.
    kernel.ok(
        "import signal; given = []; signal.signal(signal.SIGUSR1, lambda *a: given.append(1))"
    )
    ran = kernel.run(
        # Not one long sleep: Python does not notice a signal that comes just before it begins.
        "import time; print('here', flush=True)\nwhile True: time.sleep(0.1)",
        when_printed=kernel.manager.interrupt_kernel,
    )
    assert ran.reply["ename"] == "KeyboardInterrupt"
    assert kernel.ok("1 + 1").result == "2"


def test_without_a_port_a_kernel_that_is_not_known_on_ipc_is_refused_until_ipc_is_asked_for(
    start: StartKernel, otherlang: tuple[str, ...]
) -> None:
    options = (*otherlang, "--kernel", "other-lang", "--network", "none")
    with pytest.raises(ConfigError, match="--network none") as caught:
        start(*options)
    assert "--transport ipc" in caught.value.hint
    assert start(*options, "--transport", "ipc").ok("1 + 1").result == "2"


def test_an_images_own_ipykernel_comes_before_other_languages(
    start: StartKernel, otherlang: tuple[str, ...]
) -> None:
    assert start(*otherlang).report["kernel"] == "image"


def test_a_kernelspec_whose_program_is_missing_says_so(
    start: StartKernel, otherlang: tuple[str, ...], workspace: Path
) -> None:
    file = workspace / "jupyter" / "kernels" / "other-lang" / "kernel.json"
    file.write_text(json.dumps({"argv": ["julia-99"], "display_name": "J", "language": "julia"}))
    with pytest.raises(KernelDiedError, match="ended while it started") as caught:
        start(*otherlang, "--kernel", "other-lang")
    assert "cannot start other-lang" in caught.value.log_tail
    assert "No such file" in caught.value.log_tail


# --- the launcher's kernels -----------------------------------------------------------------------


def test_a_notebook_in_r_is_executed_by_the_kernel_that_was_installed(
    r: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "prefix"
    monkeypatch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
    dockml = [str(Path(sys.prefix) / "bin" / "dockml"), "kernels"]
    words = ["install", r, "--kernel", "ir", "--prefix", str(prefix)]
    subprocess.run([*dockml, *words], check=True)
    (folder,) = (prefix / "share" / "jupyter" / "kernels").iterdir()
    spec = json.loads((folder / "kernel.json").read_text())
    assert (spec["language"], spec["display_name"]) == ("R", f"R in {r} (Docker)")
    listed = subprocess.run([*dockml, "list"], check=True, capture_output=True, text=True).stdout
    assert folder.name in listed
    cells = [nbformat.v4.new_code_cell(code) for code in ("x <- 20 + 1", "cat(2 * x)", "plot(x)")]
    kernelspec = {key: spec[key] for key in ("display_name", "language")} | {"name": folder.name}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec})
    NotebookClient(
        book, timeout=PATIENCE, resources={"metadata": {"path": str(workspace)}}
    ).execute()
    assert book.metadata.language_info["name"] == "R"
    assert [cell.execution_count for cell in book.cells] == [1, 2, 3]
    assert book.cells[1].outputs[0].text == "42"
    assert book.cells[2].outputs[0].data["image/png"].startswith(PNG)


def test_a_front_end_that_runs_the_argv_gets_r_on_the_ports_it_chose(
    r: str, workspace: Path
) -> None:
    """The first start of the image: what it is for is not known yet, and the ports are taken twice."""
    file = workspace / "connection.json"
    ports = dict(zip(PORT_NAMES, free_ports(5), strict=True))
    connection = {"ip": "127.0.0.1", "transport": "tcp", "signature_scheme": "hmac-sha256"}
    file.write_text(json.dumps({**connection, **ports, "key": "a key"}))
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    with subprocess.Popen(argv_for(r, file)) as process:
        try:
            never_taken_for_dead(client)
            client.start_channels()
            wait_until(lambda: answers(client), timeout=PATIENCE, what="the kernel to answer")
            client.wait_for_ready(timeout=PATIENCE)
            reply = client.execute_interactive("1 + 1", timeout=PATIENCE)["content"]
            assert reply["status"] == "ok"
        finally:
            client.stop_channels()
            process.terminate()
            process.wait(timeout=PATIENCE)
    assert containers_of(workspace) == []


# --- R cells in a Python notebook -----------------------------------------------------------------


@pytest.fixture(scope="module", params=IPYKERNELS)
def notebook(request: pytest.FixtureRequest, open_notebook: OpenNotebook) -> Iterator[Notebook]:
    """A notebook that the tests below share, with R running."""
    with open_notebook(request.param, R) as notebook:
        notebook.use(R, "--kernel", "ir")
        yield notebook


@pytest.fixture
def in_r(notebook: Notebook) -> Notebook:
    """The same, its cells running in R."""
    notebook.use(R)
    return notebook


def test_a_start_tells_what_runs(notebook: Notebook) -> None:
    cell = notebook.use(R, "--kernel", "ir", "--fresh")
    assert "ipykernel" not in cell.printed()
    assert f"'{R}'" in cell.printed()
    assert "R " in cell.printed()


def test_routed_r_cells_print_show_values_and_plot(in_r: Notebook) -> None:
    cell = in_r.ok("cat('out\\n'); 41 + 1")
    assert cell.printed() == "out\n"
    (value,) = cell.of("display_data")
    assert value["data"]["text/plain"] == "[1] 42"
    (plot,) = in_r.ok("plot(1:10)").of("display_data")
    assert plot["data"]["image/png"].startswith(PNG)


def test_routed_r_cells_have_the_notebooks_execution_counts(in_r: Notebook) -> None:
    in_r.use("local")
    first = in_r.ok("1").reply["execution_count"]
    in_r.use(R)  # counts as a cell of the notebook, and not of R
    for more, code in enumerate(("1", "stop('no')", "x <- 1"), start=2):
        cell = in_r.run(code, stop_on_error=False)
        (said,) = cell.of("execute_input")
        assert (said["execution_count"], cell.reply["execution_count"]) == (first + more,) * 2
    in_r.use("local")
    assert in_r.ok("2").reply["execution_count"] == first + 6


def test_a_routed_r_error_is_shown(in_r: Notebook) -> None:
    cell = in_r.run("f <- function(x) stop('no good')\nf(2)")
    assert cell.reply["status"] == "error"
    assert "no good" in cell.traceback
    assert "f(2)" in cell.traceback


@pytest.mark.parametrize("busy", ["Sys.sleep(600)", "while (TRUE) {}"])
def test_the_stop_button_ends_a_routed_r_cell(in_r: Notebook, busy: str) -> None:
    in_r.ok("kept <- 1")
    msg_id = in_r.send(f"cat('here\\n'); flush.console(); {busy}; cat('not reached')")
    in_r.wait_printed(msg_id, "here")
    in_r.interrupt()
    cell = in_r.finish(msg_id)
    assert cell.printed() == "here\n"
    assert cell.reply["status"] != "ok"
    assert "KernelDiedError" not in cell.traceback, cell.traceback
    assert in_r.ok("cat(kept)").printed() == "1"


@pytest.mark.parametrize("end", ["stop('no')", "Sys.sleep(600)"])
def test_r_cells_behind_one_that_failed_or_was_stopped_are_aborted(
    in_r: Notebook, end: str
) -> None:
    """R's kernel aborts them itself, and says no idle for them."""
    in_r.ok("kept <- 1")
    go_on = in_r.folder / "go-on"
    go_on.unlink(missing_ok=True)
    msg_id = in_r.send(
        "while (!file.exists('go-on')) Sys.sleep(0.1)\n"
        f"cat('here\\n'); flush.console(); Sys.sleep(0.5); {end}"
    )
    behind = in_r.send("kept <- 2")
    time.sleep(1)  # it is there by then
    go_on.touch()
    in_r.wait_printed(msg_id, "here")
    if "600" in end:
        in_r.interrupt()
    assert in_r.finish(msg_id).reply["status"] != "ok"
    assert in_r.finish(behind).reply["status"] == "aborted"
    assert in_r.ok("cat(kept)").printed() == "1"


def test_completion_inspection_and_completeness_are_rs(in_r: Notebook) -> None:
    in_r.ok("zebra_crossing <- 1")
    assert "zebra_crossing" in in_r.ask("complete", "zebra_c")["matches"]
    assert in_r.ask("inspect", "zebra_crossing")["found"]
    assert in_r.ask("is_complete", "f <- function(")["status"] == "incomplete"
    assert in_r.ask("is_complete", "x <- 'a'")["status"] == "complete"


def test_a_routed_r_cell_asks_the_user(in_r: Notebook) -> None:
    msg_id = in_r.send("cat('hello', readline('name? '))", allow_stdin=True)
    assert in_r.answer("Ada") == "name? "
    assert in_r.finish(msg_id).printed() == "hello Ada"


def test_one_cell_in_r_and_the_next_in_python(in_r: Notebook) -> None:
    in_r.use("local")
    in_r.ok("x = 'python'")
    assert in_r.ok(f"%%docker_cell {R}\nx <- 'r'; cat(x)").printed() == "r"
    assert in_r.ok("print(x)").printed() == "python\n"


def test_restart_of_a_routed_r_is_in_place(in_r: Notebook) -> None:
    in_r.ok("variable <- 1; cat('kept', file = '/var/tmp/file')")
    in_r.ok("%docker_restart")
    assert in_r.ok("cat(exists('variable'))").printed() == "FALSE"
    assert in_r.ok("cat(readLines('/var/tmp/file', warn = FALSE))").printed() == "kept"


def test_the_list_of_environments_tells_the_language(in_r: Notebook) -> None:
    assert R in in_r.ok("%docker_ps").result
