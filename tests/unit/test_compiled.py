"""What an image's first start leaves: on the host, and in `resources/start.py` on every Python that is here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import compiled, folders, planning
from dockml_magic.container import KernelContainer
from dockml_magic.control import KernelState, NonsenseError, parse_state
from dockml_magic.folders import RuntimeFolder
from dockml_magic.host_settings import read_host_settings
from dockml_magic.image_memory import ImageMemory
from dockml_magic.options import RunOptions
from dockml_magic.spec import COMPILED
from tests.unit.fake_engine import FakeEngine
from tests.unit.test_container import ELSEWHERE, IMAGE
from tests.unit.test_supervisor import EXTREMES, VERSIONS, the_python

CODE = b"dockml code 1 and whatever else a container says"
DIGEST = hashlib.sha256(CODE).hexdigest()
IMAGE_ID = "sha256:0123"

Plan = Callable[..., planning.KernelPlan]


@pytest.fixture
def runtime() -> RuntimeFolder:
    """A runtime folder in which a container has left its code."""
    folder = RuntimeFolder(folders.runtime_root() / "0123456789ab")
    folder.make()
    (folder.shared / compiled.NAME).write_bytes(CODE)
    return folder


@pytest.fixture
def folder() -> Path:
    """An image's folder."""
    found = compiled.ensure_folder(IMAGE_ID)
    assert found is not None
    return found


def kept(folder: Path) -> list[bytes]:
    """Return what there is of an image; nothing else may be there, nor in the folder above."""
    assert [path.name for path in compiled.root().iterdir() if path.name.startswith(".")] == []
    return [path.read_bytes() for path in folder.iterdir()]


# --- what is taken from a container ---------------------------------------------------------------


def test_what_the_first_start_has_left_is_there_for_any_user_and_taken_away(
    runtime: RuntimeFolder, folder: Path
) -> None:
    old = os.umask(0o077)
    try:
        compiled.keep(folder, runtime, DIGEST)
    finally:
        os.umask(old)
    assert kept(folder) == [CODE]
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o755, 0o644)
    assert list(runtime.shared.iterdir()) == []


def put_link(path: Path) -> None:
    secret = path.parent.parent / "secret"
    secret.write_bytes(CODE)
    path.symlink_to(secret)


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_bytes(CODE)


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_changed(path: Path) -> None:
    path.write_bytes(CODE + b"!")


def put_nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize("put", [put_link, put_folder, put_pipe, put_changed, put_nothing])
def test_what_a_container_puts_in_its_place_is_not_taken(
    put: Callable[[Path], None], runtime: RuntimeFolder, folder: Path
) -> None:
    place = runtime.shared / compiled.NAME
    place.unlink()
    put(place)
    compiled.keep(folder, runtime, DIGEST)
    assert kept(folder) == []


def test_what_is_too_large_is_not_taken(
    runtime: RuntimeFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MOST_BYTES", len(CODE) - 1)
    compiled.keep(folder, runtime, DIGEST)
    assert kept(folder) == []


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "../" * 21 + "x", DIGEST.upper(), 7, None, [DIGEST]]
)
def test_a_digest_that_is_none_is_nonsense(digest: object) -> None:
    line = {"generation": 1, "phase": "starting", "exit": None, "report": {"compiled": digest}}
    with pytest.raises(NonsenseError):
        parse_state(json.dumps(line).encode())


def test_a_cache_that_cannot_be_written_is_done_without(
    runtime: RuntimeFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    compiled.keep(folder, runtime, DIGEST)
    assert kept(folder) == []
    shutil.rmtree(compiled.root())
    compiled.root().touch()  # a file is in its place
    assert compiled.ensure_folder(IMAGE_ID) is None
    compiled.keep(folder, runtime, DIGEST)
    compiled.forget(IMAGE_ID)


def test_what_another_version_of_ours_has_left_goes(runtime: RuntimeFolder, folder: Path) -> None:
    (folder / "0.0.1.code").write_bytes(b"old")
    assert compiled.is_wanted(folder, RunOptions(), ())
    compiled.keep(folder, runtime, DIGEST)
    assert kept(folder) == [CODE]
    assert not compiled.is_wanted(folder, RunOptions(), ())


def test_two_notebooks_that_start_an_image_at_once_leave_one_whole_file(folder: Path) -> None:
    contents = [bytes([number]) * 3_000_000 for number in (1, 2)]
    seen: set[bytes] = set()

    def start(number: int) -> None:
        made = RuntimeFolder(folders.runtime_root() / f"{number}23456789abc")
        made.make()
        for _ in range(20):
            (made.shared / compiled.NAME).write_bytes(contents[number])
            compiled.keep(folder, made, hashlib.sha256(contents[number]).hexdigest())

    threads = [threading.Thread(target=start, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for path in folder.iterdir():
            seen.add(path.read_bytes())
    assert seen | set(kept(folder)) <= set(contents)
    assert len(kept(folder)) == 1


def test_only_so_many_images_have_some_and_those_started_last(
    runtime: RuntimeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MOST_IMAGES", 2)
    made = [compiled.ensure_folder(f"sha256:{number}") for number in range(4)]
    for age, folder in enumerate(made):
        assert folder is not None
        (folder / "0.1.0.code").write_bytes(b"x")
        os.utime(folder, (time.time() - 100 * age,) * 2)
    assert compiled.ensure_folder("sha256:3") == made[3]  # a start: it is the youngest now
    ours = compiled.ensure_folder(IMAGE_ID)
    assert ours is not None
    compiled.keep(ours, runtime, DIGEST)
    # The folders stay, as containers may have them mounted.
    left = {folder.name: len(list(folder.iterdir())) for folder in compiled.root().iterdir()}
    assert left == {"0": 0, "1": 0, "2": 0, "3": 1, "0123": 1}


# --- which start leaves it, and which has it --------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "variables", "is_wanted"),
    [
        (RunOptions(), (), True),
        (RunOptions(), ("JPY_SESSION_NAME",), True),
        (RunOptions(gpus="all", memory=2**30, user="1000:100", packages=("attrs",)), (), True),
        (
            RunOptions(cap_add=("SYS_PTRACE",), network="none", keep=True, kernel="python3"),
            (),
            True,
        ),
        (RunOptions(volumes=("./lib:/usr/lib/python3/dist-packages",)), (), False),
        (RunOptions(env=("LD_PRELOAD=/proc/self/cwd/x.so",)), (), False),
        (RunOptions(env=("PATH=/proc/self/cwd:/usr/bin",)), (), False),
        (RunOptions(env=("PYTHONPATH",)), (), False),
        (RunOptions(env=("ANYTHING=1",)), (), False),
        (RunOptions(env=("TF_CPP_MIN_LOG_LEVEL=2", "OMP_NUM_THREADS")), (), True),
        (RunOptions(env=("TF_CPP_MIN_LOG_LEVEL=2", "LD_AUDIT=x.so")), (), False),
        (RunOptions(env=("TF_=2",)), (), False),
        (RunOptions(), ("CUDA_VISIBLE_DEVICES",), True),
        (RunOptions(workdir="/models"), (), True),
        (RunOptions(user="jovyan"), (), False),
        (RunOptions(), ("PYTHONPATH",), False),
        (RunOptions(), ("JPY_SESSION_NAME", "LD_LIBRARY_PATH"), False),
    ],
)
def test_a_start_in_which_something_of_the_users_may_run_leaves_none(
    options: RunOptions, variables: tuple[str, ...], is_wanted: bool, folder: Path
) -> None:
    assert compiled.is_wanted(folder, options, variables) is is_wanted


def test_an_option_is_harmless_only_where_we_say_so() -> None:
    known = {field.name for field in dataclasses.fields(RunOptions)}
    assert known - compiled.HARMLESS == {"env", "volumes", "user"}
    assert known >= compiled.HARMLESS


def begun(engine: FakeEngine, plan: planning.KernelPlan) -> tuple[KernelContainer, dict[str, Any]]:
    """Return a container that was planned and has its files, and its configuration."""
    container = KernelContainer(engine, plan, print)
    runtime = RuntimeFolder(folders.runtime_root() / container.session)
    container._make_runtime(runtime)
    container._find_compiled()
    container._write_files(ImageMemory())
    config = json.loads((runtime.shared / "config.json").read_text())
    return container, config


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "MINE"])
def test_a_start_with_a_variable_of_a_project_file_leaves_none(
    engine: FakeEngine, plan: Plan, name: str
) -> None:
    engine.add_image(IMAGE)
    _, config = begun(engine, plan(env=(f"{name}=/proc/self/cwd/x.so",)))
    assert config["records"] is False
    _, config = begun(engine, replace(plan(), env={name: "/proc/self/cwd/x.so"}))
    assert config["records"] is False


def test_what_goes_into_every_container_keeps_no_start_from_leaving_it(
    engine: FakeEngine, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_image(IMAGE)
    for name in ("https_proxy", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    container, config = begun(engine, plan())
    container._settings = read_host_settings()
    assert {"HTTPS_PROXY", "PIP_INDEX_URL", "LANG"} <= set(container._spec("python").env)
    container._find_compiled()
    assert (config["records"], container._records) == (True, True)


def test_the_first_start_leaves_code_and_the_second_has_it(engine: FakeEngine, plan: Plan) -> None:
    image = engine.add_image(IMAGE)
    first, config = begun(engine, plan())
    assert config["records"] is True
    assert first.runtime is not None
    (first.runtime.shared / compiled.NAME).write_bytes(CODE)
    state = KernelState(generation=1, report={"compiled": DIGEST})
    assert first._has_left_code(state)
    first._keep_code(state)
    assert not first._has_left_code(state)  # what it says later is after the user's own code
    second, config = begun(engine, plan())
    assert config["records"] is False
    (mount,) = [mount for mount in second._spec("python").mounts if mount.target == COMPILED]
    assert mount.read_only
    assert mount.host_path == compiled.root() / image.id.removeprefix("sha256:")
    assert kept(mount.host_path) == [CODE]


def test_code_that_a_kernel_says_unasked_that_it_has_left_is_not_taken(
    engine: FakeEngine, plan: Plan, folder: Path
) -> None:
    engine.add_image(IMAGE)
    container, config = begun(engine, plan(env=("PYTHONPATH=/work/lib",)))
    assert config["records"] is False
    assert not container._has_left_code(KernelState(generation=1, report={"compiled": DIGEST}))


def test_an_engine_that_does_not_share_our_files_has_none(plan: Plan) -> None:
    far = FakeEngine(facts=ELSEWHERE)
    far.add_image(IMAGE)
    container, config = begun(far, plan(engine=far))
    assert config["records"] is False
    assert not any(mount.target == COMPILED for mount in container._spec("python").mounts)
    assert not compiled.root().exists()


def test_where_there_is_no_room_a_start_goes_on_without(engine: FakeEngine, plan: Plan) -> None:
    engine.add_image(IMAGE)
    compiled.root().parent.mkdir(parents=True, exist_ok=True)
    compiled.root().touch()
    container, config = begun(engine, plan())
    assert config["records"] is False
    assert not any(mount.target == COMPILED for mount in container._spec("python").mounts)


def test_a_kernel_that_does_not_come_up_has_the_code_of_its_image_left_anew(
    engine: FakeEngine, plan: Plan
) -> None:
    image = engine.add_image(IMAGE)
    ImageMemory("python", "/usr/bin/python", "image").write(image.id)
    folder = compiled.ensure_folder(image.id)
    assert folder is not None
    (folder / compiled._name()).write_bytes(CODE)
    container, _ = begun(engine, plan())
    assert container._prepare_another_way(KernelState(generation=1, phase="exited"))
    assert kept(folder) == []


def test_the_launcher_has_the_same_time_in_each_container_and_another_one_another(
    engine: FakeEngine, plan: Plan
) -> None:
    engine.add_image(IMAGE)
    times = []
    for _ in range(2):
        container, _config = begun(engine, plan())
        assert container.runtime is not None
        times.append((container.runtime.shared / "launch.py").stat().st_mtime)
    assert times[0] == times[1] < time.time() - 365 * 24 * 3600
    container._write({"launch.py": b"another"})
    assert (container.runtime.shared / "launch.py").stat().st_mtime != times[0]


# --- start.py ---------------------------------------------------------------------------------------

LAUNCH = """
import hashlib, io, json, os, sys
sys.path.insert(0, os.environ["IMAGE"])
before = vars(__import__("importlib.machinery").machinery.SourceFileLoader).copy() if sys.version_info > (3,) else None
found = {}
for name in ("plain", "package", "package.part", "broken"):
    try:
        module = __import__(name)
        module = sys.modules[name]
        found[name] = {
            "value": module.value,
            "trace": [repr(getattr(module, word, None)).partition(" at 0x")[0] for word in TRACES],
            "line": module.function.__code__.co_filename,
        }
    except ImportError as error:
        found[name] = str(error)
code = CODE.stop()
if code is not None:
    name = "0.code" if sys.argv[1] == "kernel" else os.environ.get("BEGUN", "0.code")
    with io.open(os.path.join(os.environ["LEFT"], name), "wb") as file:
        file.write(code)
if sys.version_info > (3,):
    loader = vars(__import__("importlib.machinery").machinery.SourceFileLoader)
    assert "get_code" not in loader, loader
    assert "<locals>" not in loader["_cache_bytecode"].__qualname__
assert not any("Old" in type(finder).__name__ for finder in sys.meta_path)
print(json.dumps([found, sys.dont_write_bytecode, getattr(sys, "pycache_prefix", None), CODE.data == b""]))
""".replace(
    "TRACES",
    '("__file__", "__cached__", "__path__", "__package__", "__name__", "__loader__", "__spec__")',
)

SOURCES = {
    "plain.py": "value = 'A'\ndef function(): pass\n",
    "package/__init__.py": "value = 'A'\ndef function(): pass\n",
    "package/part.py": "from . import value as above\nvalue = above + 'A'\ndef function(): pass\n",
    "broken.py": "raise ImportError('no A')\n",
}


class Place:
    """Stands for an image and its containers: modules, start.py with a script of ours, the mounted folder."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.image, self.left, scripts = folder / "image", folder / "left", folder / "scripts"
        for part in (self.image, self.left, scripts):
            part.mkdir()
        text = (Path(compiled.__file__).parent / "resources" / "start.py").read_text()
        assert text.count(str(COMPILED)) == 1
        (scripts / "start.py").write_text(text.replace(str(COMPILED), str(self.left)))
        self.launcher = scripts / "launch.py"
        self.launcher.write_text(LAUNCH)
        self.start_script = scripts / "start.py"
        self.write("A")

    def write(self, letter: str, mtime: float = 1_600_000_000.25) -> None:
        """Write the modules, all with one time, and of one size whatever the letter is."""
        for name, text in SOURCES.items():
            path = self.image / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text.replace("A", letter))
            os.utime(path, (mtime, mtime))

    def start(self, *words: str, kind: str = "kernel", **env: str) -> Any:
        """Run the script as a kernel is, or another kind; return what it has found."""
        command = [self.python, str(self.start_script), kind, "config", "7", "image"]
        done = subprocess.run(
            [*command, *words],
            env={"IMAGE": str(self.image), "LEFT": str(self.left), "PATH": os.defpath, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    def values(self, *words: str, kind: str = "kernel", **env: str) -> dict[str, str]:
        found, *_ = self.start(*words, kind=kind, **env)
        return {
            name: entry["value"] if isinstance(entry, dict) else entry
            for name, entry in found.items()
        }

    @property
    def pack(self) -> Path:
        return self.left / "0.code"

    @property
    def own_files(self) -> list[Path]:
        """What Python has written itself."""
        return [path for path in self.image.rglob("*.py?") if path.suffix in (".pyc", ".pyo")]


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(the_python(request.param), tmp_path)


def of_letter(letter: str) -> dict[str, str]:
    return {
        "plain": letter,
        "package": letter,
        "package.part": letter * 2,
        "broken": f"no {letter}",
    }


on_each_python = pytest.mark.parametrize("place", VERSIONS, indirect=True)
on_extremes = pytest.mark.parametrize("place", EXTREMES, indirect=True)


@on_each_python
def test_what_one_start_has_compiled_the_next_one_has_and_python_writes_none(place: Place) -> None:
    assert place.values("record") == of_letter("A")
    assert place.pack.stat().st_size > 1000
    # Whether a module is compiled anew shows where the source says something else by now.
    place.write("B")
    assert place.values() == of_letter("A")
    assert place.own_files == []


@on_each_python
def test_a_source_that_was_changed_is_compiled_anew(place: Place) -> None:
    place.values("record")
    place.write("B", mtime=1_600_000_000.75)
    assert place.values() == of_letter("B")


@on_each_python
def test_modules_have_no_trace_of_it(place: Place) -> None:
    without = place.start()
    for path in place.own_files:
        path.unlink()
    recording = place.start("record")
    assert place.own_files == []
    assert place.start() == recording == without


@on_each_python
def test_a_damaged_file_only_means_that_python_compiles(place: Place) -> None:
    place.values("record")
    whole = place.pack.read_bytes()
    size = len(whole)
    places = [0, 5, 14, 20, 30, 60, *range(100, size, size // 8), size - 1]
    damaged = [whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :] for n in places]
    cut = [b"", whole[: size // 2], whole[:-1], whole[:40], b"\0" * size, whole + whole]
    for content in [*damaged, *cut]:
        place.pack.write_bytes(content)
        assert place.values() == of_letter("A")


@on_each_python
def test_code_of_another_optimisation_is_not_used(place: Place) -> None:
    place.values("record")
    place.write("B")
    assert place.values(PYTHONOPTIMIZE="1") == of_letter("B")
    assert place.values() == of_letter("A")


def test_code_of_another_python_is_not_used(tmp_path: Path) -> None:
    place = Place(the_python("3.11"), tmp_path)
    place.values("record")
    place.write("B")
    for other in ("2.7", "3.9", "3.13"):
        place.python = the_python(other)
        assert place.values() == of_letter("B")


@on_extremes
def test_more_than_one_file_or_a_folder_in_its_place_is_done_without(place: Place) -> None:
    place.values("record")
    place.write("B")
    (place.left / "1.code").write_bytes(place.pack.read_bytes())
    assert place.values() == of_letter("B")
    for path in (place.pack, place.left / "1.code"):
        path.unlink()
    place.pack.mkdir()
    assert place.values() == of_letter("B")


@on_extremes
def test_images_that_are_not_to_be_written_to_by_python_leave_it_too(place: Place) -> None:
    _, dont_write, *_ = place.start("record", PYTHONDONTWRITEBYTECODE="1")
    assert dont_write is True
    place.write("B")
    assert place.values() == of_letter("A")


@on_extremes
def test_what_the_image_has_compiled_is_not_kept_twice(place: Place) -> None:
    place.values()
    assert len(place.own_files) >= 3
    place.values("record")
    assert b"launch.py" in place.pack.read_bytes()
    assert b"plain.py" not in place.pack.read_bytes()
    assert place.values() == of_letter("A")


@on_extremes
def test_the_launcher_itself_is_kept(place: Place) -> None:
    place.values("record")
    found = place.launcher.stat()
    # As large and as old, but it could not even be read.
    place.launcher.write_text("(" * found.st_size)
    os.utime(place.launcher, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert place.values() == of_letter("A")


@on_each_python
def test_what_the_supervisor_has_compiled_the_kernel_takes_and_leaves_too(place: Place) -> None:
    begun = place.start_script.with_name("begun")
    assert place.values(kind="supervise", BEGUN=str(begun)) == of_letter("A")
    assert begun.stat().st_size > 1000
    assert place.own_files == []
    place.write("B")
    assert place.values("record") == of_letter("A")
    begun.unlink()
    assert place.values() == of_letter("A")


@on_extremes
def test_what_lies_in_the_runtime_folder_is_not_used_later(place: Place) -> None:
    begun = place.start_script.with_name("begun")
    place.values(kind="supervise", BEGUN=str(begun))
    place.write("B")
    for kind in ("kernel", "supervise", "exec"):
        assert place.values(kind=kind) == of_letter("B")
        for path in [*place.own_files, *place.left.iterdir()]:
            path.unlink()


def boots(place: Place, *words: str, **env: str) -> str:
    """Start one whose `sitecustomize` imports a module of the image; return which one that was."""
    (place.image / "sitecustomize.py").write_text("import plain")
    os.utime(place.image / "sitecustomize.py", (1_600_000_000, 1_600_000_000))
    return place.values(*words, PYTHONPATH=str(place.image), **env)["plain"]


def supervise(place: Place, **env: str) -> None:
    """Start a supervisor as a container does, without `site`."""
    command = [place.python, "-S", str(place.start_script), "supervise", "config"]
    env |= {"IMAGE": str(place.image), "LEFT": str(place.left), "PATH": os.defpath}
    subprocess.run(command, env=env, capture_output=True, check=True)


@on_each_python
def test_what_python_imports_before_us_the_supervisor_writes_for_it(place: Place) -> None:
    assert boots(place, "record", PYTHONDONTWRITEBYTECODE="1") == "A"
    supervise(place, PYTHONDONTWRITEBYTECODE="1")
    assert place.own_files == []
    supervise(place)
    names = {path.name.partition(".")[0] for path in place.own_files}
    assert names == {"plain", "sitecustomize"}
    place.write("B")
    assert boots(place, PYTHONDONTWRITEBYTECODE="1") == "A"
    assert list(place.image.rglob("*.dockml")) == []


@on_each_python
def test_it_writes_nothing_of_another_source_and_nothing_twice(place: Place) -> None:
    boots(place, "record", PYTHONDONTWRITEBYTECODE="1")
    place.write("B", mtime=1_500_000_000)
    supervise(place)
    assert {path.name.partition(".")[0] for path in place.own_files} == {"sitecustomize"}
    assert boots(place, PYTHONDONTWRITEBYTECODE="1") == "B"
    (file,) = place.own_files
    file.write_bytes(b"somebody's")
    supervise(place)
    assert file.read_bytes() == b"somebody's"


@on_extremes
def test_where_nothing_can_be_written_it_starts_all_the_same(place: Place) -> None:
    boots(place, "record", PYTHONDONTWRITEBYTECODE="1")
    for folder in ("__pycache__", "plain.pyc.dockml", "sitecustomize.pyc.dockml"):
        if folder == "__pycache__":
            (place.image / folder).touch()
        else:
            (place.image / folder).mkdir()
    supervise(place)
    assert place.own_files == []


def compile_ahead(place: Place, *modules: str) -> None:
    """Compile modules as the supervisor has it done for a kernel that starts."""
    code = "import sys; found = {'__name__': 'start'}; exec(open(sys.argv[1]).read(), found)"
    words = [str(place.start_script), str(place.start_script.parent), str(place.image), *modules]
    code += "; found['Code']().compile_ahead(sys.argv[2], sys.argv[3], sys.argv[4:])"
    subprocess.run([place.python, "-c", code, *words], check=True)


@on_each_python
def test_what_is_compiled_ahead_of_a_kernel_is_used_and_kept(place: Place) -> None:
    scripts = place.start_script.parent
    compile_ahead(place, "plain", "package", "not/there", "package/part")
    assert len(list(scripts.glob("ahead-*"))) == 3
    assert place.own_files == []
    place.write("B")
    known = of_letter("A") | {"broken": "no B"}
    assert place.values(kind="kernel") == of_letter("B")  # it is for a first start alone
    for path in place.own_files:
        path.unlink()
    assert place.values("record") == known
    for path in scripts.glob("ahead-*"):
        path.unlink()
    assert place.values() == known


@on_extremes
def test_what_was_compiled_ahead_and_fits_no_more_is_compiled(place: Place) -> None:
    scripts = place.start_script.parent
    compile_ahead(place, "plain")
    (file,) = scripts.glob("ahead-*")
    place.write("B", mtime=1_500_000_000)
    assert place.values("record") == of_letter("B")
    content = file.read_bytes()
    place.write("C")
    for damaged in (b"", content[: len(content) // 2], b"{0"):
        file.write_bytes(damaged)
        place.pack.unlink()
        assert place.values("record") == of_letter("C")


@on_each_python
def test_a_standard_library_that_only_site_knows_is_found(place: Place, tmp_path: Path) -> None:
    # An old virtualenv has few of Python's own modules; its `site` adds the folder with the others.
    (tmp_path / "json.py").write_text(
        "import sys\n"
        "if 'site' not in sys.modules: raise ImportError('no json')\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['json']\n"
        "import json\n"
    )
    place.launcher.write_text("import json, sys; print(json.dumps('site' in sys.modules))")
    command = [place.python, "-S", str(place.start_script), "supervise", "config"]
    for env, needs in (({"PYTHONPATH": str(tmp_path)}, True), ({}, False)):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) is needs


@on_extremes
def test_without_a_folder_nothing_is_recorded_by_a_supervisor(place: Place) -> None:
    place.left.rmdir()
    assert place.values(kind="supervise", BEGUN="/nonexistent/begun") == of_letter("A")
    assert place.own_files == []


@on_extremes
def test_a_word_of_a_command_is_no_order_to_record(place: Place) -> None:
    command = [place.python, str(place.start_script), "exec", "config", "{}", "record"]
    env = {"IMAGE": str(place.image), "LEFT": str(place.left), "PATH": os.defpath}
    subprocess.run(command, env=env, capture_output=True, check=True)
    assert not place.pack.exists()
    assert place.own_files == []
