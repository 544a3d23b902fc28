"""Cells in containers from plain `ipython` in a terminal, where there is no kernel object."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.integration.conftest import Image
from tests.integration.notebook import LONG_SLEEP, PATIENCE, containers_of, holding_starts
from tests.machine.packages import install
from tests.waiting import wait_until

BARE = "dockml/bare:3.11"
TF_PY27 = "dockml/tensorflow:1.10.0-py27"
IPYTHON = [sys.executable, "-m", "IPython", "--no-banner", "--no-confirm-exit", "--colors=nocolor"]
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07)")


def plain(shown: str) -> str:
    """Return what a terminal shows, without colours and cursor movements."""
    return _ESCAPES.sub("", shown).replace("\r\n", "\n")


class Terminal:
    """IPython at a terminal: lines go in, text up to the next prompt comes out."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = pexpect.spawn(
            IPYTHON[0],
            [*IPYTHON[1:], *options],
            cwd=str(folder),
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(60, 200),
        )
        self.until_prompt()

    def end(self) -> None:
        """End it at once; pexpect's own way has a tenth of a second for that."""
        if self.process.isalive():
            self.process.kill(signal.SIGKILL)
        wait_until(lambda: not self.process.isalive(), what="IPython to end")
        self.process.close()

    def until_prompt(self) -> str:
        """Return what is shown up to the next prompt, without colours."""
        self.process.expect(r"(In \[\d+\]|   \.\.\.+): ")
        return plain(self.process.before or "")

    def run(self, *lines: str) -> str:
        """Type lines and return what the last one gave."""
        shown = ""
        for line in lines:
            self.process.sendline(line)
            shown = self.until_prompt().partition("\n")[2]
        return shown

    @property
    def is_at_home(self) -> bool:
        """Cells run on the host."""
        return "False" in self.run("__import__('os').path.exists('/run/dockml')")


@pytest.fixture
def terminal(workspace: Path, image: Image) -> Iterator[Terminal]:
    """IPython with the extension loaded."""
    image(BARE), image(TF_PY27)
    terminal = Terminal(workspace, "--simple-prompt")
    terminal.run("%load_ext dockml_magic")
    yield terminal
    terminal.end()


def test_cells_run_in_the_environment_and_show_as_local_ones(terminal: Terminal) -> None:
    assert f"Cells run in '{TF_PY27}'" in terminal.run(f"%docker_env {TF_PY27}")
    assert terminal.run("print 'hi'").strip() == "hi"
    assert terminal.run("40 + 2").strip() == "Out[4]: 42"
    assert "Out[5]: \n" in terminal.run("'a long line '.split() * 12")
    assert terminal.run("max(Out)").strip() == "Out[6]: 5"
    assert terminal.run("!echo in $(ls -d /run/dockml)").strip() == "in /run/dockml"
    error = terminal.run("1 / 0")
    assert "ZeroDivisionError: integer division or modulo by zero" in error
    assert "<ipython-input-8-" in error
    assert "dockml_magic" not in error
    terminal.run("%docker_env local")
    assert terminal.is_at_home


def test_multi_line_input_still_works(terminal: Terminal) -> None:
    for place in ("local", BARE, TF_PY27):
        terminal.run(f"%docker_env {place}")
        assert terminal.run("def f(x):", "    return x + 1", "", "f(1)").endswith(": 2\n\n")


def test_docker_lines_run_in_their_order_with_the_rest_of_the_cell(terminal: Terminal) -> None:
    here = terminal.run(
        f"%%docker_cell {BARE}", "import os; print(os.path.exists('/run/dockml'))", "", ""
    )
    assert here.strip() == "True"
    assert terminal.is_at_home
    here = terminal.run(f"%%docker_cell {BARE}", "1 / 0", "", "")
    assert here.count("ZeroDivisionError: ") == 1
    here = terminal.run("%%docker_cell local", "1 / 0", "", "")
    assert here.count("ZeroDivisionError: ") == 1
    terminal.run(f"%docker_env {BARE}", "s = '''", "%docker_env local", "'''")
    assert not terminal.is_at_home
    assert f"* {BARE}" in terminal.run("%docker_ps")


def test_what_a_cell_asks_of_its_front_end_is_done(terminal: Terminal) -> None:
    terminal.run(f"%docker_env {BARE}")
    assert "Return the absolute value" in terminal.run("abs?")


def test_a_cell_may_ask_at_the_terminal(terminal: Terminal) -> None:
    terminal.run(f"%docker_env {BARE}")
    terminal.process.sendline("'Hello ' + input('Who? ')")
    terminal.process.expect(r"\nWho\? ")
    assert "Hello Ada" in terminal.run("Ada")


def test_ctrl_c_stops_the_remote_cell_and_keeps_its_variables(terminal: Terminal) -> None:
    for name in (BARE, TF_PY27):
        terminal.run(f"%docker_env {name}")
        mark = terminal.folder / f"sleeping-{len(name)}"
        terminal.process.sendline(
            f"x = 42; open({mark.name!r}, 'w').close(); import time; {LONG_SLEEP}"
        )
        wait_until(mark.exists, what="the cell to run")
        terminal.process.sendintr()
        assert "KeyboardInterrupt" in terminal.until_prompt()
        assert terminal.run("x").endswith(": 42\n\n")


def test_ctrl_c_during_the_start_leaves_no_container(terminal: Terminal) -> None:
    terminal.process.sendline(f"%docker_env {BARE} {holding_starts(terminal.folder)}")
    wait_until(lambda: containers_of(terminal.folder), what="its container")
    terminal.process.sendintr()
    assert "StartStopped: The start of" in terminal.until_prompt()
    wait_until(lambda: not containers_of(terminal.folder), what="no container")
    assert terminal.is_at_home


def test_an_error_of_ours_is_two_or_three_lines(terminal: Terminal) -> None:
    shown = terminal.run("%docker_env no-such-name").strip()
    assert shown.startswith("UnknownNameError: ")
    assert len(shown.splitlines()) in (2, 3)


def test_unload_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.run(f"%docker_env {BARE}", "%unload_ext dockml_magic")
    assert containers_of(terminal.folder) == []
    assert terminal.is_at_home
    assert "not found" in terminal.run("%docker_ps")


@pytest.mark.parametrize("end", ["exit", "kill -9"])
def test_the_end_of_ipython_leaves_nothing(terminal: Terminal, end: str) -> None:
    terminal.run(f"%docker_env {BARE}")
    assert len(containers_of(terminal.folder)) == 1
    if end == "exit":
        terminal.process.sendline("exit")
        terminal.process.expect(pexpect.EOF)
        assert terminal.process.wait() == 0
    else:
        terminal.process.kill(9)
    wait_until(lambda: not containers_of(terminal.folder), what="no container")


def test_a_script_of_ipython_may_use_the_magics(workspace: Path, image: Image) -> None:
    image(BARE)
    (workspace / "script.ipy").write_text(
        "import os\n"
        "%load_ext dockml_magic\n"
        f"%docker_env {BARE}\n"
        "import os\n"
        "print('there', os.path.exists('/run/dockml'))\n"
        "%docker_env local\n"
        "print('here', os.path.exists('/run/dockml'))\n"
    )
    done = subprocess.run(
        [*IPYTHON, "script.ipy"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert [line for line in done.stdout.splitlines() if "here " in line] == [
        "there True",
        "here False",
    ]


class Screen:
    """A terminal of tmux in which IPython shows its real prompt: keys go in, a picture comes out."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(socket)]
        command = " ".join(IPYTHON)
        self._do("new-session", "-d", "-x", "120", "-y", "50", "-c", str(folder), command)

    def _do(self, *words: str, check: bool = True) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=check)
        return done.stdout

    def press(self, *keys: str) -> None:
        """Press keys that tmux has names for."""
        self._do("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a line and press Enter."""
        self._do("send-keys", "-l", text)
        self.press("Enter")

    @property
    def shown(self) -> str:
        """All that is on the screen, without the empty lines."""
        return "\n".join(line for line in self._do("capture-pane", "-p").splitlines() if line)

    def wait_for(self, text: str) -> None:
        """Return once a text is on the screen."""
        try:
            wait_until(lambda: text in self.shown, what=f"{text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}, but the screen shows\n{self.shown}") from None

    def complete(self, text: str) -> None:
        """Press Tab until a text is on the screen: the first answer may come later than is waited for."""
        for _ in range(2):
            self.press("Tab")
            with contextlib.suppress(AssertionError):
                wait_until(lambda: text in self.shown, timeout=20.0)
                return
        self.press("Tab")
        self.wait_for(text)

    def end(self) -> None:
        """End it as closing the window does, if it is there still."""
        self._do("kill-server", check=False)


@pytest.fixture
def screen(workspace: Path, image: Image, own_folders: Path) -> Iterator[Screen]:
    """IPython in tmux, in an environment."""
    if shutil.which("tmux") is None:
        install(["tmux"])
    image(BARE)
    screen = Screen(workspace, own_folders / "tmux")
    screen.wait_for("In [1]:")
    screen.type("%load_ext dockml_magic")
    screen.wait_for("In [2]:")
    screen.type(f"%docker_env {BARE}")
    screen.wait_for("In [3]:")
    yield screen
    screen.end()


def test_at_the_real_prompt_cells_are_edited_run_and_stopped_as_local_ones(
    screen: Screen, workspace: Path
) -> None:
    screen.type("def f(x):")
    screen.type("return x + 1, __import__('os').path.exists('/run/dockml')")  # indented for us
    screen.press("Enter")
    screen.wait_for("In [4]:")
    screen.type("f(41)")
    screen.wait_for("Out[4]: (42, True)")
    screen.wait_for("In [5]:")
    screen.type("input('Who? ') * 2")
    screen.wait_for("\nWho?")
    screen.type("Ada")
    screen.wait_for("Out[5]: 'AdaAda'")
    screen.wait_for("In [6]:")
    screen.type(f"open('sleeping', 'w').close(); import time; {LONG_SLEEP}")
    wait_until((workspace / "sleeping").exists, what="the cell to run")
    screen.press("C-c")
    screen.wait_for("KeyboardInterrupt")
    screen.wait_for("In [7]:")
    screen.type("f(1)")
    screen.wait_for("Out[7]: (2, True)")


def test_tab_at_the_real_prompt_completes_our_magics(screen: Screen) -> None:
    screen.press("-l", "%docker_rest")
    screen.press("Tab")
    screen.wait_for("In [3]: %docker_restart")


def test_tab_at_the_real_prompt_completes_what_the_container_knows(screen: Screen) -> None:
    screen.type("import collections; only_over_there = collections.OrderedDict(a=1)")
    screen.wait_for("In [4]:")
    screen.press("-l", "only_ov")
    screen.complete("In [4]: only_over_there")
    screen.press("-l", ".move_to")
    screen.complete("In [4]: only_over_there.move_to_end")


def test_closing_the_window_leaves_nothing(screen: Screen, workspace: Path) -> None:
    assert len(containers_of(workspace)) == 1
    screen.press("-l", "x")  # something is being typed
    screen.end()
    wait_until(lambda: not containers_of(workspace), what="no container")
