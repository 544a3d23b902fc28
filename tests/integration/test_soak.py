"""Five hundred things that happen to three environments in a notebook, in random order, faults among them.

After each of them the world must be what we believe: the engine has the containers that the notebook knows,
no runtime folder is left of others, variables are what they were, and the notebook's own kernel answers.
The seed is printed; ``DOCKML_SOAK_SEED=… pytest tests/integration/test_soak.py`` runs the same again.
"""

from __future__ import annotations

import ast
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dockml_magic.folders import RuntimeFolder, runtime_root
from tests.integration.conftest import Image
from tests.integration.notebook import Cell, Notebook, python_with
from tests.waiting import wait_until

ACTIONS = int(os.environ.get("DOCKML_SOAK_ACTIONS", "500"))
NAMES = tuple(f"{name}-{os.getpid()}" for name in ("ann", "bob", "cid"))
"""Of this process alone: they are names of containers, too, and another soak may run beside."""
BELIEF = """%%docker_cell local
_found = get_ipython()._dockml_magics.environments
print({e.name: [e.container_id, e.is_alive, e.container.session] for e in _found if e.container})
"""
COUNT = "n = globals().get('n', 0) + 1\nprint('n is', n)"
SLEEP = "import time\nprint('sleeping', flush=True)\nwhile True:\n    time.sleep(0.05)"


@dataclass
class Known:
    """What an environment must be by now.

    Attributes
    ----------
    phase : str
        "alive", "dead" (its container lives), "gone", or "waiting" for a kernel. Of one that no notebook is attached
        to: "alive", or "stopped".
    n : int
        What it has counted to.
    kept : str
        "" where it ends with its notebook, "stays" where it was started with --keep, "later" after %docker_keep.
    container, session : str
        What it was seen to be.
    is_left : bool
        Its container is there, though "gone": it has ended, and stays.
    """

    phase: str = "alive"
    n: int = 0
    kept: str = ""
    container: str = ""
    session: str = ""
    is_left: bool = False


@dataclass
class World:
    """A notebook, its environments as they must be, and how quickly it answered."""

    folder: Path
    image: str
    dice: random.Random
    notebook: Notebook = field(init=False)
    known: dict[str, Known] = field(default_factory=dict)
    away: dict[str, Known] = field(default_factory=dict)
    active: str | None = None
    slow: list[float] = field(default_factory=list)

    def open(self) -> None:
        self.notebook = Notebook(self.folder, python_with("ipykernel7"))
        self.notebook.__enter__()
        self.notebook.ok("%load_ext dockml_magic")

    # --- what a user does -------------------------------------------------------------------------

    def use(self, name: str, *options: str) -> None:
        line = " ".join(["%docker_env", self.image, "--name", name, *options])
        known = self.known.get(name)
        if known is not None and known.phase == "alive" and options and not known.kept:
            self.assert_told(self.notebook.run(line))
            return
        self.notebook.ok(line)
        self.active = name
        if known is not None and known.phase in ("alive", "waiting"):
            known.phase = "alive"
        elif known is not None and known.kept and (known.phase == "dead" or known.is_left):
            self.known[name] = Known(kept=known.kept)
        elif name in self.away:
            self.come_back(name)
        else:
            self.known[name] = Known(kept="stays" if options else "")

    def use_and_keep(self, name: str) -> None:
        self.use(name, "--keep")

    def come_back(self, name: str) -> None:
        back = self.away.pop(name)
        self.known[name] = Known(n=back.n if back.phase == "alive" else 0, kept=back.kept)

    def fresh(self, name: str) -> None:
        self.notebook.ok(f"%docker_env {self.image} --name {name} --fresh")
        self.away.pop(name, None)
        self.known[name], self.active = Known(), name

    def keep(self, name: str) -> None:
        known = self.known[name]
        if known.phase == "alive":
            self.notebook.ok(f"%docker_keep {name}")
            known.kept = known.kept or "later"

    def start(self, name: str) -> None:
        cell = self.notebook.run(f"%docker_start {name}")
        known, away = self.known.get(name), self.away.get(name)
        if known is not None and known.phase != "alive" and known.is_left:
            self.known[name] = Known(kept=known.kept)
        elif away is not None and away.phase == "stopped":
            self.come_back(name)
        elif (known is not None and known.phase == "gone") or (known is None and away is None):
            self.assert_told(cell)
        elif known is None or known.kept or known.phase == "alive":
            assert "runs already" in cell.printed(), cell
        else:
            self.assert_told(cell)

    def remove(self, name: str) -> None:
        self.notebook.ok(f"%docker_rm -f {name}")
        self.away.pop(name, None)
        self.known.pop(name, None)
        self.active = None if self.active == name else self.active

    def go_home(self) -> None:
        self.notebook.ok("%docker_env local")
        self.active = None

    def count(self, name: str) -> None:
        cell = self.cell(name, COUNT)
        known = self.known[name]
        if known.phase == "waiting":
            known.phase = "alive"
        if known.phase == "alive":
            known.n += 1
            assert cell.printed().endswith(f"n is {known.n}\n"), cell
        else:
            self.assert_told(cell)

    def count_here(self) -> None:
        if self.active is None:
            assert self.notebook.ok("40 + 2").result == "42"
            return
        cell = self.notebook.run(COUNT)
        known = self.known[self.active]
        if known.phase == "alive":
            known.n += 1
            assert cell.printed() == f"n is {known.n}\n", cell
        else:
            self.assert_told(cell)

    def stop(self, name: str) -> None:
        self.notebook.ok(f"%docker_stop {name}")
        stopped = self.known.pop(name, None) or self.away.pop(name)
        self.active = None if self.active == name else self.active
        if stopped.kept == "stays" and (stopped.phase != "gone" or stopped.is_left):
            self.away[name] = Known("stopped", kept="stays", container=stopped.container)

    def restart(self, name: str) -> None:
        known = self.known[name]
        cell = self.notebook.ok(f"%docker_restart {name}")
        is_new = known.phase == "gone" and not known.is_left
        assert ("in a new container" in cell.printed()) == is_new, cell
        self.known[name] = Known(kept="" if is_new and known.kept == "later" else known.kept)

    def interrupt(self, name: str) -> None:
        if self.phase(name) != "alive":
            return
        cell = self.notebook.send(f"%%docker_cell {name}\n{SLEEP}")
        self.notebook.wait_printed(cell, "sleeping")
        self.notebook.interrupt()
        assert "KeyboardInterrupt" in self.notebook.finish(cell).traceback

    def fail(self, name: str) -> None:
        cell = self.cell(name, "1 / 0")
        if self.phase(name) == "waiting":
            self.known[name].phase = "alive"
        if self.phase(name) == "alive":
            assert "ZeroDivisionError" in cell.traceback
        else:
            self.assert_told(cell)

    def mistake(self) -> None:
        line = self.dice.choice(
            ["%docker_stop nobody", "%docker_env tf99.9", "%docker_env x --memory lots"]
        )
        self.assert_told(self.notebook.run(line))

    def list_all(self) -> None:
        shown = str(self.notebook.ok("%docker_ps").messages)
        assert all(name in shown for name in self.known)
        self.notebook.ok("%docker_ps -a")

    # --- what happens to them ---------------------------------------------------------------------

    def container_is_killed(self, name: str) -> None:
        if self.phase(name) != "gone":
            self.kill(name)

    def container_is_killed_under_a_cell(self, name: str) -> None:
        if self.phase(name) == "alive":
            cell = self.notebook.send(f"%%docker_cell {name}\n{SLEEP}")
            self.notebook.wait_printed(cell, "sleeping")
            self.kill(name, cell)

    def kill(self, name: str, cell: str = "") -> None:
        known = self.known[name]
        words = self.dice.choice([("kill",), ("rm", "-f")])
        self.docker(*words, known.container)
        if cell:
            self.assert_told(self.notebook.finish(cell))
        known.is_left = known.kept == "stays" and words == ("kill",)
        self.end(name, "gone")

    def kernel_is_killed(self, name: str) -> None:
        if self.phase(name) == "alive":
            cell = self.cell(name, "import os\nos.kill(os.getpid(), 9)")
            self.assert_told(cell)
            self.end(name, "dead")

    def container_is_paused(self, name: str) -> None:
        if self.phase(name) == "alive":
            self.docker("pause", self.known[name].container)
            if self.dice.random() < 0.3 and self.known[name].kept != "stays":
                self.stop(name)
                return
            self.notebook.ok("%docker_ps")
            self.docker("unpause", self.known[name].container)
            self.count(name)

    def notebook_is_restarted(self) -> None:
        self.part()
        self.notebook.restart()
        self.notebook.ok("%load_ext dockml_magic")
        self.known = {name: Known("waiting") for name, k in self.known.items() if k.phase != "gone"}

    def notebook_is_killed(self) -> None:
        self.part()
        for name in [name for name, known in self.known.items() if known.phase == "gone"]:
            self.stop(name)
        self.notebook.kill()
        self.notebook.__exit__(None, None, None)
        self.known = {}
        left = {known.container for known in self.away.values()}
        wait_until(lambda: set(self.containers()) == left, what="the notebook's containers to end")
        self.open()

    def part(self) -> None:
        """See what is kept go away from its notebook, which is about to end."""
        self.active = None
        for name in [name for name, known in self.known.items() if known.kept]:
            if self.known[name].phase != "alive":
                self.remove(name)
            else:
                self.away[name] = self.known.pop(name)

    # --- what must hold ---------------------------------------------------------------------------

    def check(self) -> None:
        began = time.perf_counter()
        believed = self.belief()
        self.slow.append(time.perf_counter() - began)
        assert set(believed) == set(self.known)
        for name, known in self.known.items():
            known.container, is_alive, known.session = believed[name]
            assert is_alive == (known.phase == "alive"), name
        every = [*self.known.values(), *self.away.values()]
        there = {known.container for known in every if known.phase != "gone" or known.is_left}
        try:
            wait_until(lambda: set(self.containers()) == there, what="the containers we believe in")
        except AssertionError:
            print(f"here: {self.known}\nelsewhere: {self.away}\nreally: {self.containers()}")
            print(self.docker("ps", "-a", "--no-trunc"))
            raise
        live = {known.session for known in every if known.phase not in ("gone", "stopped")}
        may_be = {known.session for known in every}
        wait_until(lambda: live <= set(self.folders()) <= may_be, what=f"no folder but {may_be}")

    def containers(self) -> list[str]:
        label = f"label=io.github.dockml-magic.workspace={self.folder}"
        return self.docker("ps", "-aq", "--no-trunc", "--filter", label).split()

    def folders(self) -> list[str]:
        """Return the runtime folders in which a container has something; others are removed in time."""
        shared = [(path.name, RuntimeFolder(path).shared) for path in runtime_root().iterdir()]
        return [name for name, folder in shared if _has_something(folder)]

    # --- small parts ------------------------------------------------------------------------------

    def phase(self, name: str) -> str:
        return self.known[name].phase if name in self.known else ""

    def end(self, name: str, phase: str) -> None:
        self.known[name].phase = phase
        wait_until(lambda: not self.belief()[name][1], what=f"the end of {name} to be noticed")

    def belief(self) -> dict[str, list[Any]]:
        found = ast.literal_eval(self.notebook.ok(BELIEF).printed())
        assert isinstance(found, dict)
        return found

    def cell(self, name: str, code: str) -> Cell:
        return self.notebook.run(f"%%docker_cell {name}\n{code}")

    def assert_told(self, cell: Cell) -> None:
        """A problem is two or three lines, and none of them of our code."""
        assert cell.reply["status"] == "error"
        assert "dockml_magic/" not in cell.traceback, cell.traceback
        assert cell.traceback

    @staticmethod
    def docker(*words: str) -> str:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True)
        return done.stdout

    def choices(self) -> list[tuple[int, Callable[..., None], tuple[str, ...]]]:
        """Return what can happen now, and how often it does."""
        some = self.dice.choice(NAMES)
        found: list[tuple[int, Callable[..., None], tuple[str, ...]]] = [
            (18, self.use, (some,)),
            (12, self.count_here, ()),
            (3, self.go_home, ()),
            (6, self.use_and_keep, (some,)),
            (2, self.fresh, (some,)),
            (3, self.start, (some,)),
            (3, self.mistake, ()),
            (3, self.list_all, ()),
            (3, self.notebook_is_restarted, ()),
            (2, self.notebook_is_killed, ()),
        ]
        if self.known:
            name = self.dice.choice(sorted(self.known))
            found += [
                (20, self.count, (name,)),
                (5, self.stop, (name,)),
                (3, self.keep, (name,)),
                (2, self.remove, (name,)),
                (5, self.restart, (name,)),
                (5, self.interrupt, (name,)),
                (3, self.fail, (name,)),
                (4, self.container_is_killed, (name,)),
                (3, self.container_is_killed_under_a_cell, (name,)),
                (4, self.kernel_is_killed, (name,)),
                (3, self.container_is_paused, (name,)),
            ]
        if self.away:
            name = self.dice.choice(sorted(self.away))
            found += [(4, self.use, (name,)), (2, self.stop, (name,)), (2, self.remove, (name,))]
        return found

    def act(self) -> None:
        """Let one of them happen, and hold the world against what we believe."""
        choices = self.choices()
        [(_, do, words)] = self.dice.choices(choices, [weight for weight, _, _ in choices])
        print(" ".join([do.__name__, *words]))
        do(*words)
        self.check()


def _has_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:  # none, or none any more
        return False


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("strangers")
def test_the_world_is_what_we_believe_after_each_of_500_actions(
    workspace: Path, image: Image
) -> None:
    seed = os.environ.get("DOCKML_SOAK_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"DOCKML_SOAK_SEED={seed}")
    world = World(workspace, image("dockml/bare:3.11"), random.Random(seed))
    world.open()
    try:
        for _ in range(ACTIONS):
            world.act()
        print(f"slowest answers: {sorted(world.slow)[-5:]} s")
    finally:
        world.notebook.__exit__(None, None, None)
        for container in world.containers():  # what is kept, and what is on its way already
            subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=False)
        wait_until(lambda: not world.containers(), what="no container to be left")
