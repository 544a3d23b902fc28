"""Looking into environments, running commands in them, and images made of them, from a notebook and a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath

import pexpect
import pytest

from dockml_magic import labels
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import OpenNotebook
from tests.integration.notebook import PATIENCE, Notebook
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
PIP = "dockml/pip:3.11"
SECRET = "hunter2-a-secret"
DOCKML = [sys.executable, "-c", "from dockml_magic.cli import main; main()"]
REPORT = (
    "import getpass, os; print(os.getuid(), getpass.getuser(), os.environ['HOME'], os.getcwd())"
)


@pytest.fixture(scope="module")
def notebook(open_notebook: OpenNotebook) -> Iterator[Notebook]:
    """A notebook with the environment `tf-life`, shared by the tests."""
    with open_notebook("ipykernel7", BARE, folder="it's a workspace") as notebook:
        notebook.use(BARE, "--name", "tf-life", "-e", f"TOKEN={SECRET}")
        notebook.ok("%docker_env local")
        yield notebook


def test_a_command_runs_beside_the_kernel_as_the_kernel_does(notebook: Notebook) -> None:
    inside = notebook.ok(f"%%docker_cell tf-life\n{REPORT}").printed()
    cell = notebook.ok(f'%docker_exec tf-life python -c "{REPORT}"')
    assert cell.printed() == inside
    assert str(notebook.folder) in inside


def test_a_commands_words_are_its_own(notebook: Notebook) -> None:
    code = "import sys; print(sys.argv[1:])"
    words = "-h --help -f 'a  b' '' '$HOME' '*' -- --tail"
    cell = notebook.ok(f'%docker_exec tf-life python -c "{code}" {words}')
    assert cell.printed().strip() == repr(
        ["-h", "--help", "-f", "a  b", "", "$HOME", "*", "--", "--tail"]
    )


def test_a_commands_output_comes_as_it_is_written_on_both_streams(notebook: Notebook) -> None:
    code = "import sys, time; print('ä', flush=True); input() if 0 else time.sleep(600)"
    running = notebook.send(f'%docker_exec tf-life python -c "{code}"')
    notebook.wait_printed(running, "ä")
    notebook.interrupt()
    assert notebook.finish(running).reply["status"] == "error"
    cell = notebook.run("%docker_exec tf-life python -c \"import sys; sys.exit('oh no')\"")
    assert (cell.printed(), cell.printed("stderr")) == ("", "oh no\n")
    assert "ended with exit code 1" in cell.traceback
    assert cell.reply["ename"] == "CommandFailedError"


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ("no-such-program -x", 127, "no such program"),
        ("/etc/passwd", 126, "may not be run"),
        ("sh -c 'kill -9 $$'", 137, "killed (SIGKILL)"),
        ("sh -c 'kill -SEGV $$'", 139, "SIGSEGV ended it"),
    ],
)
def test_how_a_command_ended_is_told(notebook: Notebook, command: str, code: int, why: str) -> None:
    cell = notebook.run(f"%docker_exec tf-life {command}")
    assert f"exit code {code}" in cell.traceback
    assert why in cell.traceback
    assert "launch.py" not in cell.traceback


def test_dockers_options_of_a_command(notebook: Notebook) -> None:
    code = "import os; print(os.getuid(), os.getcwd(), os.environ['A'], os.environ['TOKEN'])"
    cell = notebook.ok(f'%docker_exec -u 1234:5 -w /tmp -e "A=1 2" tf-life python -c "{code}"')
    assert cell.printed() == f"1234 /tmp 1 2 {SECRET}\n"


def test_the_stop_button_ends_the_command_inside(notebook: Notebook) -> None:
    """Also one that does not listen to it, and what it has started."""
    stubborn = "trap '' INT TERM; (trap '' INT TERM; sleep 611) & echo up; sleep 612; sleep 613"
    running = notebook.send(f'%docker_exec tf-life sh -c "{stubborn}"')
    notebook.wait_printed(running, "up")
    wait_until(lambda: sleeping(notebook), what="the command to run")
    notebook.interrupt()
    cell = notebook.finish(running)
    assert cell.reply["ename"] == "CommandStopped"
    assert "was stopped" in cell.traceback
    assert "launch.py" not in cell.traceback
    wait_until(lambda: not sleeping(notebook))
    assert notebook.ok("%%docker_cell tf-life\n'the kernel goes on'").result


@pytest.mark.parametrize(
    ("command", "victim"),
    [("echo up; exec sleep 614", "pid"), ("echo up; sleep 614; true", "ppid")],
)
def test_a_command_that_is_killed_from_outside_is_told_and_leaves_nothing(
    notebook: Notebook, command: str, victim: str
) -> None:
    """It, or the launcher above it in the container, which can end nothing any more then."""
    before = processes(notebook)
    running = notebook.send(f"%docker_exec tf-life sh -c '{command}'")
    notebook.wait_printed(running, "up")
    kill_the_started(notebook, before, victim)
    cell = notebook.finish(running)
    assert cell.reply["ename"] == "CommandFailedError"
    assert [line.strip() for line in cell.traceback.splitlines()] == [
        f"CommandFailedError: 'sh -c {command}' in 'tf-life' ended with exit code 137.",
        "It was killed (SIGKILL): for memory, perhaps.",
    ]
    wait_until(lambda: processes(notebook).keys() <= before.keys(), what="nothing to be left")
    terminal = subprocess.Popen(
        [*DOCKML, "exec", "tf-life", "sh", "-c", command],
        cwd=notebook.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert terminal.stdout is not None
    assert terminal.stdout.readline() == "up\n"
    kill_the_started(notebook, before, victim)
    assert terminal.communicate(timeout=PATIENCE) == ("", "")
    assert terminal.returncode == 137
    wait_until(lambda: processes(notebook).keys() <= before.keys(), what="nothing to be left")
    assert notebook.ok("%%docker_cell tf-life\n'the kernel goes on'").result


def processes(notebook: Notebook) -> dict[int, tuple[int, str]]:
    """Return what runs in the container: its number on the host, its parent's, and its words."""
    command = ["docker", "top", container_of(notebook), "-o", "pid,ppid,args"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return {int(pid): (int(parent), words) for pid, parent, words in rows}


def kill_the_started(notebook: Notebook, before: Container[int], victim: str) -> None:
    """Kill the `sleep` or `sh` that a launcher has started, or that launcher."""
    launchers = {
        pid: words
        for pid, (_, words) in processes(notebook).items()
        if pid not in before and "launch.py exec" in words
    }
    ((pid, parent),) = (
        (pid, parent)
        for pid, (parent, words) in processes(notebook).items()
        if parent in launchers and pid not in launchers and "launch.py exec" not in words
    )
    subprocess.run(["kill", "-9", str({"pid": pid, "ppid": parent}[victim])], check=True)


def sleeping(notebook: Notebook) -> str:
    """Return the commands called sleep that run in the container."""
    command = ["docker", "top", container_of(notebook), "-o", "pid,args"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in listed.splitlines() if re.search(r"\bsleep \d+$", line))


def test_what_is_not_there_is_told(notebook: Notebook) -> None:
    cell = notebook.run("%docker_exec no-such-environment ls")
    assert cell.reply["ename"] == "UnknownContainerError"
    assert "'tf-life'" in cell.traceback
    cell = notebook.run("%docker_exec tf-life")
    assert "needs a command after 'tf-life'" in cell.traceback
    cell = notebook.run("%docker_exec ls")
    assert "needs a command after 'ls'" in cell.traceback


def test_a_log_is_shown_and_followed_until_it_is_stopped(notebook: Notebook) -> None:
    write = "open('/proc/1/fd/2', 'w').write({!r})"
    notebook.ok(f"%%docker_cell tf-life\n{write.format('one' + chr(10) + 'two' + chr(10))}")
    wait_until(
        lambda: notebook.ok("%docker_logs tf-life").printed().endswith("one\ntwo\n"),
        what="the engine to have copied it",
    )
    assert notebook.ok("%docker_logs tf-life --tail 1").printed() == "two\n"
    stamped = notebook.ok("%docker_logs -t -n 1 tf-life").printed()
    assert re.fullmatch(r"[\d-]+T[\d:.]+Z two\n", stamped)
    running = notebook.send("%docker_logs -f --tail 1 tf-life")
    notebook.wait_printed(running, "two")
    command = ["docker", "exec", container_of(notebook), "sh", "-c", "echo three >/proc/1/fd/2"]
    subprocess.run(command, check=True)
    notebook.wait_printed(running, "three")
    notebook.interrupt()
    assert notebook.finish(running).reply["status"] == "ok"


def container_of(notebook: Notebook) -> str:
    listed = subprocess.run(
        ["docker", "ps", "-q", "--filter", f"label={labels.WORKSPACE}={notebook.folder}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.strip()


def test_the_figures_of_an_environment(notebook: Notebook) -> None:
    table = notebook.ok("%docker_stats tf-life")
    text = table.result
    assert re.search(r"tf-life +\d+\.\d % +\d.* / \d.*B +\d+\.\d % +\d+ ", text)
    assert "<table>" in table.of("execute_result")[0]["data"]["text/html"]


def test_names_of_environments_are_completed(notebook: Notebook) -> None:
    for line in ("%docker_exec tf-", "%docker_logs tf-", "%docker_commit tf-", "%docker_stats tf-"):
        assert "tf-life" in notebook.ask("complete", line, len(line))["matches"]


def test_a_paused_environment_is_told(notebook: Notebook, engine: DockerEngine) -> None:
    container = container_of(notebook)
    engine._client.api.pause(container)
    try:
        cell = notebook.run("%docker_exec tf-life ls")
        assert cell.reply["ename"] == "ContainerNotRunningError"
        assert f"docker unpause {container[:12]}" in cell.traceback
        assert "paused" in notebook.ok("%docker_stats tf-life").result
        assert "one" in notebook.ok("%docker_logs tf-life").printed()
    finally:
        engine._client.api.unpause(container)


# --- from a terminal ------------------------------------------------------------------------------


class Shell:
    """`dockml shell` in a real terminal."""

    def __init__(self, notebook: Notebook, *words: str, size: tuple[int, int] = (33, 101)) -> None:
        self.process = pexpect.spawn(
            DOCKML[0],
            [*DOCKML[1:], "shell", *words],
            cwd=str(notebook.folder),
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=size,
            env={**os.environ, "TERM": "xterm-256color"},
        )

    def ask(self, line: str) -> str:
        """Type a line; return what it writes between two markers."""
        self.process.sendline(f"echo BE''GIN; {line}; echo E''ND")
        self.process.expect("BEGIN\r\n(.*?)END\r\n")
        return str(self.process.match.group(1)).strip()


def test_a_shell_is_a_real_terminal(notebook: Notebook) -> None:
    shell = Shell(notebook, "tf-life")
    assert shell.ask("stty size") == "33 101"
    shell.process.setwinsize(20, 60)
    wait_until(lambda: shell.ask("stty size") == "20 60")
    assert shell.ask("echo $TERM $0") == "xterm-256color /usr/bin/bash"
    uid = os.getuid()
    assert shell.ask("id -u; pwd").splitlines() == [str(uid), str(notebook.folder)]
    assert (
        shell.ask("python -c 'import sys; print(sys.stdin.isatty(), sys.stdout.isatty())'")
        == "True True"
    )
    shell.process.sendline("sleep 600")
    time.sleep(0.3)
    shell.process.sendintr()  # Ctrl-C is the command's, not ours
    shell.process.sendline("echo code=$?")
    shell.process.expect("code=130")
    shell.process.sendline("exit 7")
    shell.process.expect(pexpect.EOF)
    shell.process.close()
    assert shell.process.exitstatus == 7


def test_a_shell_may_be_another_program_and_gives_the_terminal_back(notebook: Notebook) -> None:
    outer = pexpect.spawn(
        "bash", ["--norc"], cwd=str(notebook.folder), encoding="utf-8", timeout=PATIENCE
    )
    outer.sendline("PS1='OUT''SIDE> '; stty -a | grep -o -e '-\\?icanon' -e '-\\?echo '")
    outer.expect("OUTSIDE> ")
    before = outer.before
    command = " ".join(f"'{word}'" for word in [*DOCKML, "shell", "tf-life", "python", "-q"])
    outer.sendline(command)
    outer.expect(">>> ")
    outer.sendline("6 * 7")
    outer.expect("42\r\n")
    outer.expect(">>> ")
    outer.sendeof()
    outer.expect("OUTSIDE> ")
    outer.sendline("stty -a | grep -o -e '-\\?icanon' -e '-\\?echo '")
    outer.expect("OUTSIDE> ")
    assert "icanon" in outer.before
    assert "-icanon" not in outer.before
    assert before.count("-icanon") == 0
    outer.close()


def test_a_shell_whose_terminal_goes_is_ended(notebook: Notebook) -> None:
    shell = Shell(notebook, "tf-life")
    shell.ask("true")
    shell.process.sendline("sleep 614")
    wait_until(lambda: "614" in sleeping(notebook))
    shell.process.ptyproc.fileobj.close()  # the window is closed: SIGHUP
    wait_until(lambda: "614" not in sleeping(notebook))
    wait_until(lambda: not shell.process.isalive())


def dockml(notebook: Notebook, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DOCKML, *words],
        cwd=notebook.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_without_a_terminal_there_is_no_shell(notebook: Notebook) -> None:
    done = dockml(notebook, "shell", "tf-life")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "A shell needs a terminal, and this is none."
    assert len(done.stderr.splitlines()) == 2


def test_a_command_from_a_terminal_has_the_commands_exit_code(notebook: Notebook) -> None:
    done = dockml(
        notebook, "exec", "-e", "A=b c", "tf-life", "sh", "-c", 'echo "$A"; echo -n x >&2; exit 9'
    )
    assert (done.returncode, done.stdout, done.stderr) == (9, "b c\n", "x")
    done = dockml(notebook, "exec", "nobody", "ls")
    assert done.returncode == 1
    assert "None of your environments is called 'nobody'" in done.stderr


def test_logs_and_figures_from_a_terminal(notebook: Notebook) -> None:
    assert dockml(notebook, "logs", "--tail", "1", "tf-life").returncode == 0
    table = dockml(notebook, "stats", "tf-life").stdout
    assert table.startswith("NAME ")
    assert "tf-life" in table


# --- images of environments -----------------------------------------------------------------------


@pytest.fixture
def reference(engine: DockerEngine) -> Iterator[str]:
    """A name for an image, removed after the test."""
    name = f"dockml/life-test:{os.getpid()}-{time.monotonic_ns()}"
    yield name
    for found in engine.list({}):
        if found.image == name:
            engine.remove(found.id)
    if engine.find_image(name):
        engine.remove_image(name, force=True)


def test_a_commit_has_what_was_installed_and_no_secret(
    notebook: Notebook, engine: DockerEngine, reference: str
) -> None:
    api = engine._client.api
    notebook.ok(
        "%%docker_cell tf-life\nopen('/tmp/made', 'w').write('yes'); open('mine', 'w').write('x')"
    )
    cell = notebook.ok(f"%docker_commit tf-life {reference} -m 'a reason' -a 'A. Uthor'")
    assert f"Start it with: %docker_env {reference}" in cell.printed()
    found, base = api.inspect_image(reference), api.inspect_image(BARE)
    assert found["Config"] == base["Config"]
    assert (found["Author"], found["Comment"]) == ("A. Uthor", "a reason")
    whole = json.dumps(found)
    for private in (
        SECRET,
        "dockml-magic",
        "launch.py",
        "start.py",
        str(os.environ.get("https_proxy") or "no-proxy"),
    ):
        assert private not in whole
    archive = b"".join(engine.save([reference]))
    assert SECRET.encode() not in archive
    notebook.use(reference, "--name", "from-commit")
    notebook.ok("%docker_env local")
    here = "%%docker_cell from-commit\nimport os; print(open('/tmp/made').read(), 'TOKEN' in os.environ)"
    assert notebook.ok(here).printed() == "yes False\n"
    refused = notebook.run(f"%docker_rmi {reference}")
    assert "by the environment 'from-commit' (running" in refused.traceback
    assert "%docker_rm -f" in refused.traceback
    notebook.ok("%docker_stop from-commit")
    assert f"Untagged: {reference}" in notebook.ok(f"%docker_rmi {reference}").printed()


UNSTEADY = """
import os, socket, threading
os.mkfifo('/var/tmp/a-fifo')
listening = socket.socket(socket.AF_UNIX); listening.bind('/var/tmp/a-socket'); listening.listen()
gone = open('/var/tmp/removed', 'w'); os.remove('/var/tmp/removed')
writes = threading.Event(); writes.set()
def write(n=0):
    with open('/var/tmp/grows', 'wb') as file:
        while writes.is_set():
            n += 1
            file.write(b'x' * 1000)
            open('/var/tmp/comes-and-goes-%d' % (n % 20), 'w').close()
            os.remove('/var/tmp/comes-and-goes-%d' % (n % 20))
threading.Thread(target=write, daemon=True).start()
open('/var/tmp/steady', 'w').write('steady')
"""


def test_a_commit_of_files_that_no_layer_can_hold_or_that_go_away_meanwhile(
    notebook: Notebook, engine: DockerEngine, reference: str
) -> None:
    """The container is paused for it, and a layer leaves sockets out."""
    notebook.ok(f"%%docker_cell tf-life\n{UNSTEADY}")
    notebook.ok(f"%docker_commit tf-life {reference}")
    stop = "writes.clear(); listening.close(); gone.close(); 6 * 7"
    assert notebook.ok(f"%%docker_cell tf-life\n{stop}").result == "42"
    container = engine._client.api.create_container(reference, ["true"])["Id"]
    try:
        assert engine.read_file(container, PurePosixPath("/var/tmp/steady")) == b"steady"
        assert engine.read_file(container, PurePosixPath("/var/tmp/removed")) is None
    finally:
        engine.remove(container)


def test_the_stop_button_ends_a_commit_and_leaves_no_image(
    notebook: Notebook, engine: DockerEngine, reference: str
) -> None:
    container = container_of(notebook)

    def status() -> str:
        return str(engine._client.api.inspect_container(container)["State"]["Status"])

    def images() -> set[str]:
        return {i["Id"] for i in engine._client.api.images(all=True, filters={"label": ours})}

    ours = f"{labels.COMMITS}={reference}"
    large = "open('/var/tmp/large', 'wb').write(os.urandom(400 << 20))"
    notebook.ok(f"%%docker_cell tf-life\nimport os\n{large}\nvariable = 42")
    running = notebook.send(f"%docker_commit tf-life {reference}")
    wait_until(lambda: status() == "paused", what="the engine to begin the commit")
    notebook.interrupt()
    cell = notebook.finish(running)
    assert cell.reply["ename"] == "CommitStopped"
    assert [line.strip() for line in cell.traceback.splitlines()] == [
        "CommitStopped: The commit of 'tf-life' was stopped: there will be no image.",
        "Its container is paused until the engine has done what it began; cells go on after that.",
    ]
    assert (
        notebook.ok("%%docker_cell tf-life\nos.remove('/var/tmp/large'); variable").result == "42"
    )
    assert status() == "running"
    wait_until(lambda: not images(), what="the unnamed image to be removed")
    assert engine.find_image(reference) is None


def test_a_name_that_is_none_is_refused_before_anything_is_done(notebook: Notebook) -> None:
    cell = notebook.run("%docker_commit tf-life 'Not A Name'")
    assert "'Not A Name' cannot be the name of an image" in cell.traceback


def test_an_environment_whose_kernel_is_dead_can_be_committed(
    notebook: Notebook, engine: DockerEngine, reference: str
) -> None:
    notebook.use(BARE, "--name", "dying")
    notebook.ok("open('/tmp/left', 'w').write('behind')")
    notebook.run("import os; os.kill(os.getpid(), 9)")
    notebook.ok(f"%docker_commit {reference}")
    notebook.ok("%docker_stop dying")
    container = engine._client.api.create_container(reference, ["true"])["Id"]
    try:
        assert engine.read_file(container, Path("/tmp/left")) == b"behind"  # type: ignore[arg-type]
    finally:
        engine.remove(container)


def test_an_image_is_built_started_and_removed(notebook: Notebook, reference: str) -> None:
    folder = notebook.folder / "built"
    folder.mkdir()
    step = "RUN echo with-$A >/made"
    (folder / "Dockerfile").write_text(f"FROM {BARE}\nARG A\n{step}\n")
    cell = notebook.ok(f"%docker_build -t {reference} --build-arg A=zwei built")
    assert step in cell.printed()
    assert f"Start it with: %docker_env {reference}" in cell.printed()
    notebook.use(reference, "--name", "of-build")
    assert notebook.ok("print(open('/made').read())").printed() == "with-zwei\n\n"
    notebook.ok("%docker_stop of-build")
    assert f"Untagged: {reference}" in notebook.ok(f"%docker_rmi {reference}").printed()
    cell = notebook.run(f"%docker_rmi {reference}")
    assert cell.reply["ename"] == "ImageUnavailableError"
