"""Values handed from one real container to another, and to the notebook's own kernel."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dockml_magic
from dockml_magic import Environment, exchange, kept, segments
from dockml_magic.engine import DockerEngine
from dockml_magic.errors import ExchangeError, KernelDiedError, NoMemoryError
from dockml_magic.exchange import OwnKernel, hand_over
from tests.integration.conftest import Image, OpenNotebook, StartEnvironments
from tests.integration.notebook import IPYKERNELS, LONG_SLEEP, Notebook
from tests.waiting import interrupt_when, wait_until

BARE = "bare:3.11"
IMAGES = (
    "tensorflow:1.10.0-py27",
    BARE,
    "tensorflow:1.10.0",
    "bare:3.13",
    "bare:3.14",
    "bare:3.6",
    "bare:3.5",
    "ipykernel:5",
    "numpy:1.14.5-py35",
    "tensorflow:1.4.0",
    "pytorch:1.1.0",
)
OWN = "own"

MAKE = """
text, number = u'gr\\u00fc\\u00dfe \\U0001f600', 2 ** 70
value = {u'text': text, u'all': [1, number, None, True, 1.5, (1, 2), {1: b'\\xff'}], u'self': []}
value[u'self'].append(value[u'all'])
big = bytearray(b'ab' * 500000)
"""
SEEN = """
v = {value}
seen = [v[u'text'] == u'gr\\u00fc\\u00dfe \\U0001f600', v[u'all'][1] == 2 ** 70,
        v[u'all'][2:6] == [None, True, 1.5, (1, 2)], bytes(v[u'all'][6][1]) == b'\\xff',
        v[u'self'][0] is v[u'all'], {big} == bytearray(b'ab' * 500000)]
all(seen), seen
"""

Get = Callable[[str], Environment]


@pytest.fixture(scope="module")
def environments(start_environments: StartEnvironments) -> Iterator[dict[str, Environment]]:
    """One of each image, for all tests here."""
    with start_environments(*IMAGES) as environments:
        yield environments


@pytest.fixture
def bare(environments: dict[str, Environment]) -> Environment:
    return environments[BARE]


@pytest.fixture
def is_freed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Give what tells whether all memory of this test is free; what nobody uses goes in a moment."""
    before = set(exchange.KEEPER.pool._segments)
    monkeypatch.setattr(segments, "IDLE_TIME", 0.0)
    return lambda: before.issuperset(exchange.KEEPER.pool._segments)


# --- between all of them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *itertools.pairwise([*IMAGES, IMAGES[0]]),
        *itertools.pairwise([*IMAGES[::-1], IMAGES[-1]]),
    ],
)
def test_values_go_from_one_version_to_another(
    environments: dict[str, Environment], source: str, target: str
) -> None:
    one, other = environments[source], environments[target]
    one.run(MAKE)
    done = hand_over(one.side, other.side, {"value": "v_in", "big": "b_in"})
    assert done.shared
    assert other.run(SEEN.format(value="v_in", big="b_in")).text.startswith("(True")


@pytest.mark.parametrize("name", IMAGES)
def test_values_go_from_a_script_and_back(environments: dict[str, Environment], name: str) -> None:
    environment = environments[name]
    here: dict[str, Any] = {}
    exec(MAKE, here)
    environment.put("v_in", here["value"])
    environment.put("b_in", here["big"])
    assert environment.run(SEEN.format(value="v_in", big="b_in")).text.startswith("(True")
    here |= {"v": environment.get("v_in"), "b": environment.get("b_in")}
    exec(SEEN.format(value="v", big="b").rpartition("\nall")[0], here)
    assert all(here["seen"]), here["seen"]


def test_an_array_is_a_view_of_the_same_memory_and_read_only(
    environments: dict[str, Environment],
) -> None:
    one, other = environments["tensorflow:1.10.0"], environments["pytorch:1.1.0"]
    one.run("import numpy as np; a = np.arange(1 << 20, dtype='f4')")
    done = hand_over(one.side, other.side, {"a": "a"})
    assert done.types == {"a": "ndarray (1048576)"}
    assert other.run("float(a[-1]), a.flags.writeable, a.flags.owndata").text == (
        "(1048575.0, False, False)"
    )
    hand_over(one.side, other.side, {"a": "c"}, copy=True)
    assert other.run("c[0] = 7; float(c[0])").text == "7.0"
    assert other.run("float(a[0])").text == "0.0"


def test_nothing_but_the_names_changes_over_there(bare: Environment) -> None:
    bare.run("x = 1")
    names = "sorted(n for n in globals() if not n.startswith('_'))"
    before, counted = bare.run(names).text, int(bare.run("get_ipython().execution_count").text)
    bare.put("x", {"a": 2})
    assert bare.get("x") == {"a": 2}
    assert bare.run(names).text == before
    assert bare.run("get_ipython().execution_count").text == f"{counted + 2}"


def test_a_gibibyte_does_not_pass_through_this_process(
    environments: dict[str, Environment], is_freed: Callable[[], bool]
) -> None:
    one, other = environments["tensorflow:1.10.0"], environments["tensorflow:1.4.0"]
    one.run("import numpy as np; a = np.ones(1 << 28, dtype='f4')")
    before = _resident()
    done = hand_over(one.side, other.side, {"a": "a"})
    assert done.shared
    assert done.bytes > 1 << 30
    assert _resident() - before < 50 << 20
    assert other.run("float(a[-1])").text == "1.0"
    one.run("del a")
    other.run("del a")
    wait_until(is_freed, what="the memory to be freed")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


# --- iterators --------------------------------------------------------------------------------

COUNT = """
import numpy as np
def count():
    for n in range(20):
        yield np.full(100000, n)
g = count()
"""


def test_a_generator_is_an_iterator_over_there(
    environments: dict[str, Environment], is_freed: Callable[[], bool]
) -> None:
    one, other = environments["tensorflow:1.10.0-py27"], environments["pytorch:1.1.0"]
    one.run(COUNT)
    hand_over(one.side, other.side, {"g": "g"})
    assert other.run("sum(int(a[0]) for a in g), list(g)").text == f"({sum(range(20))}, [])"
    own: dict[str, Any] = {}
    one.run("g = count()")
    hand_over(one.side, OwnKernel(own), {"g": "g"})
    assert [int(a[0]) for a in own["g"]] == list(range(20))
    other.put("g", (n * n for n in range(4)))
    assert other.run("list(g)").text == "[0, 1, 4, 9]"
    wait_until(is_freed, what="the memory to be freed")


# --- deaths and restarts ----------------------------------------------------------------------


@pytest.mark.parametrize("dies", ["source", "target"])
def test_memory_is_freed_when_a_kernel_is_killed_and_the_next_one_takes_values(
    environments: dict[str, Environment], is_freed: Callable[[], bool], dies: str
) -> None:
    one, other = environments["tensorflow:1.10.0"], environments["tensorflow:1.4.0"]
    one.run("import numpy as np; a = np.ones(1 << 20)")
    hand_over(one.side, other.side, {"a": "a"})
    time.sleep(2.5)
    assert not is_freed()  # the view has it
    killed = one if dies == "source" else other
    killed.kill()
    wait_until(lambda: not killed.is_alive, what="the kernel to be dead")
    if dies == "source":
        assert other.run("float(a.sum())").text == "1048576.0"
        other.run("del a")
    wait_until(is_freed, what="the memory to be freed")
    with pytest.raises(dockml_magic.errors.KernelError, match="not running any more"):
        hand_over(one.side, other.side, {"a": "a"})
    killed.restart()
    killed.put("x", b"x" * 100_000)
    assert killed.run("len(x)").text == "100000"


def test_a_kernel_that_dies_meanwhile_is_told_of(environments: dict[str, Environment]) -> None:
    environment = environments["bare:3.13"]
    environment.run("import os\ndef die():\n    yield 1\n    os._exit(3)\ng = die()")
    own: dict[str, Any] = {}
    hand_over(environment.side, OwnKernel(own), {"g": "g"})
    assert next(own["g"]) == 1
    with pytest.raises(RuntimeError, match=r"died \(exit code 3\)"):
        next(own["g"])
    environment.restart()
    environment.run("import os, time; x = 1")
    folder = Path(environment.run("os.getcwd()").text.strip("'"))
    busy = threading.Thread(target=_run_to_its_death, args=[environment])
    busy.start()
    wait_until((folder / "dying").exists, what="the cell to run")
    threading.Timer(1, (folder / "die").touch).start()
    with pytest.raises(KernelDiedError, match="exit code 4"):
        environment.get("x")
    busy.join()
    environment.restart()


def _run_to_its_death(environment: Environment) -> None:
    with contextlib.suppress(KernelDiedError):
        environment.run(
            "open('dying', 'w').close()\n"
            "while not os.path.exists('die'): time.sleep(0.05)\nos._exit(4)"
        )


# --- limits and other ways --------------------------------------------------------------------


def test_more_than_the_containers_limit_is_refused_and_its_kernel_lives(
    workspace: Path, image: Image, bare: Environment
) -> None:
    with dockml_magic.start(image(f"dockml/{BARE}"), "--memory", "300m") as small:
        small.run("x = b'x' * (200 << 20)")
        with pytest.raises(NoMemoryError, match=r"200 MiB more.*limit of 300 MiB") as refused:
            small.get("x")
        assert "--memory" in refused.value.hint
        with pytest.raises(NoMemoryError):
            hand_over(small.side, bare.side, {"x": "x"})
        assert small.run("len(x) >> 20").text == "200"
        small.run("x = bytes(20 << 20)")
        assert len(small.get("x")) == 20 << 20


def test_a_container_with_little_memory_gives_values_of_all_sizes_one_after_the_other(
    workspace: Path, image: Image
) -> None:
    """What is kept of one, to be used again, counts for the container that wrote it: it makes room for the next."""
    with dockml_magic.start(image(f"dockml/{BARE}"), "--memory", "300m") as small:
        for size in (100, 100, 220, 40, 90, 200, 20, 60, 140):
            small.run(f"x = bytes({size} << 20)")  # of no memory, as long as nobody writes to it
            assert len(small.get("x")) == size << 20


@pytest.mark.parametrize("python", ["bare:3.6", "tensorflow:1.10.0-py27"])
def test_a_value_that_does_not_fit_into_the_containers_limit_is_refused_and_its_kernel_lives(
    workspace: Path, image: Image, python: str
) -> None:
    """Text and bytes are copied as they arrive, out of memory that counts for who wrote it."""
    with dockml_magic.start(image(f"dockml/{python}"), "--memory", "300m") as small:
        small.run("x = 1")
        for value in (bytes(280 << 20), "x" * (280 << 20)):
            with pytest.raises(NoMemoryError, match=r"280 MiB more.*limit of 300 MiB"):
                small.put("x", value)
        assert small.run("x").text == "1"
        small.put("x", bytes(60 << 20))
        assert small.run("len(x) >> 20").text == "60"


def test_an_engine_that_shares_no_files_hands_over_piece_by_piece(
    far_engine: DockerEngine, image: Image, workspace: Path, bare: Environment
) -> None:
    with dockml_magic.start(image("dockml/tensorflow:1.10.0-py27")) as far:
        far.run(MAKE)
        done = hand_over(far.side, bare.side, {"value": "far_v", "big": "far_b"})
        assert not done.shared
        assert bare.run(SEEN.format(value="far_v", big="far_b")).text.startswith("(True")
        hand_over(bare.side, far.side, {"far_v": "v2", "far_b": "b2"})
        assert far.run(SEEN.format(value="v2", big="b2")).text.startswith("(True")
        far.put("x", bytes(20 << 20))
        assert far.run("len(x) >> 20").text == "20"
        far.run("g = (n for n in range(3))")
        assert list(far.get("g")) == [0, 1, 2]
        with pytest.raises(ExchangeError, match="iterator"):
            far.put("g", iter([1]))


def test_an_interrupt_stops_what_a_kernel_does_for_a_hand_over_piece_by_piece(
    far_engine: DockerEngine, image: Image, workspace: Path
) -> None:
    with dockml_magic.start(image(f"dockml/{BARE}")) as far:
        far.run(
            "import time\ndef slow():\n    open('/tmp/asked', 'w').close()\n"
            f"    {LONG_SLEEP}\n    yield\n"
            "slowly = slow(); after = 'alive'"
        )
        values = far.get("slowly")
        container = far_engine._client.containers.get(far._container.container_id)
        thread = interrupt_when(lambda: container.exec_run(["ls", "/tmp/asked"]).exit_code == 0)
        with pytest.raises(KeyboardInterrupt):
            next(values)
        thread.join()
        assert far.get("after") == "alive"


def test_over_tcp_memory_is_shared_all_the_same(image: Image, workspace: Path) -> None:
    with dockml_magic.start(image(f"dockml/{BARE}"), "--transport", "tcp") as environment:
        assert environment.put("x", b"x" * (1 << 20)).shared
        assert environment.get("x") == b"x" * (1 << 20)


def test_another_user_in_there_can_hand_over(image: Image, workspace: Path) -> None:
    with dockml_magic.start(image(f"dockml/{BARE}"), "--user", "1234:1234") as environment:
        assert environment.put("x", b"x" * (1 << 20)).shared
        assert environment.get("x") == b"x" * (1 << 20)


def test_two_notebooks_that_share_an_environment_both_hand_over(
    image: Image, workspace: Path
) -> None:
    words = (image(f"dockml/{BARE}"), "--keep", "--name", "shared1")
    one = dockml_magic.start(*words)
    try:
        other = dockml_magic.start(*words)
        for n, environment in enumerate((one, other, one)):
            environment.put(f"x{n}", b"x" * (100_000 + n))
        assert len(other.get("x0")) == 100_000
        assert len(one.get("x1")) == 100_001
        other.detach()
        one.put("last", 1)
    finally:
        for found in kept.all_kept():
            kept.remove(found, force=True)
        one.detach()


@pytest.mark.parametrize("name", [BARE, "tensorflow:1.10.0-py27", "ipykernel:5"])
def test_many_in_a_row_do_not_fill_the_kernels_queue_and_no_output_is_lost(
    environments: dict[str, Environment], name: str
) -> None:
    environment = environments[name]
    environment.run("from __future__ import print_function; import threading; x = 1")
    environment.run("threading.Timer(0.3, print, ['late']).start()")
    for _ in range(700):  # two messages each, which nobody reads in a script
        assert environment.get("x") == 1
    assert "late" in environment.run("pass").stdout


def test_what_waits_for_a_busy_kernel_gets_its_turn(bare: Environment) -> None:
    mark = Path(bare.run("import os; os.getcwd()").text.strip("'"), "busy")
    code = f"import time; open({str(mark)!r}, 'w').close(); time.sleep(1); late = 5"
    busy = threading.Thread(target=bare.run, args=[code])
    busy.start()
    wait_until(mark.exists, what="the cell to run")
    assert bare.get("late") == 5
    busy.join()
    mark.unlink()


# --- in notebooks -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=IPYKERNELS)
def notebook(request: pytest.FixtureRequest, open_notebook: OpenNotebook) -> Iterator[Notebook]:
    """A notebook with two environments, a and b; its cells run in its own kernel."""
    image = f"dockml/{BARE}"
    with open_notebook(request.param, image) as notebook:
        for name in ("aa", "bb"):
            notebook.use(image, "--name", name)
        notebook.use("local")
        notebook.ok(
            "envs = get_ipython().magics_manager.registry['DockerMagics'].environments\n"
            "from dockml_magic.exchange import OwnKernel, hand_over\n"
            "own = OwnKernel(globals())\n"
            "a, b = envs.get('aa'), envs.get('bb')"
        )
        yield notebook


@pytest.fixture
def local(notebook: Notebook) -> Iterator[Notebook]:
    yield notebook
    notebook.use("local")


def test_a_notebook_hands_over(local: Notebook) -> None:
    local.ok("x = {'n': 1}; big = bytes(1 << 20)")
    local.ok("assert hand_over(own, a.side, {'x': 'x', 'big': 'big'}).shared")
    local.use("aa")
    assert local.ok("x, len(big) >> 20").result == "({'n': 1}, 1)"
    local.ok("x['n'] += 1")
    local.use("local")
    cell = local.ok("hand_over(a.side, b.side, {'x': 'y'}); hand_over(b.side, own, {'y': 'z'}); z")
    assert cell.result == "{'n': 2}"


def test_a_routed_cell_goes_on_with_an_iterator_of_another_environment_and_of_the_notebook(
    local: Notebook,
) -> None:
    local.use("aa")
    local.ok("g = (print('made', n) or bytes([n]) * 100000 for n in range(10))")
    local.use("local")
    local.ok("h = (n * n for n in range(5))")
    local.ok("hand_over(a.side, b.side, {'g': 'g'}); hand_over(own, b.side, {'h': 'h'})")
    local.use("bb")
    assert local.ok("sum(v[0] for v in g), list(h)").result == "(45, [0, 1, 4, 9, 16])"


def test_the_stop_button_ends_the_wait_for_a_value_and_not_anothers_cell(
    local: Notebook,
) -> None:
    for name in ("busy", "go-on"):
        (local.folder / name).unlink(missing_ok=True)
    local.ok(
        "import threading\n"
        "code = '''import os, time; x = 1; open('busy', 'w').close()\n"
        "while not os.path.exists('go-on'): time.sleep(0.05)\nx = 2'''\n"
        "busy = threading.Thread(target=a.run, args=[code])\n"
        "busy.start()"
    )
    wait_until((local.folder / "busy").exists, what="the cell to run")
    cell = local.send("x = 'before'; print('asks', flush=True); x = a.get('x')")
    try:
        local.wait_printed(cell, "asks")
        time.sleep(0.5)
        local.interrupt()
        assert local.finish(cell).reply["ename"] == "KeyboardInterrupt"
    finally:
        (local.folder / "go-on").touch()
    assert local.ok("x").result == "'before'"
    assert local.ok("busy.join(); a.get('x')").result == "2"


def test_the_stop_button_ends_what_a_kernel_does_for_a_hand_over(local: Notebook) -> None:
    local.use("aa")
    local.ok(
        f"import time\ndef slow():\n    yield 1\n    {LONG_SLEEP}\nslowly = slow()\nafter = 'alive'"
    )
    local.use("local")
    local.ok("hand_over(a.side, own, {'slowly': 'slowly'}); assert next(slowly) == 1")
    cell = local.send("print('asks', flush=True); next(slowly)")
    local.wait_printed(cell, "asks")
    time.sleep(0.5)
    local.interrupt()
    assert local.finish(cell).reply["ename"] == "KeyboardInterrupt"
    assert local.ok("a.get('after')").result == "'alive'"
