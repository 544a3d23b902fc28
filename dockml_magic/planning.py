"""What a NAME comes to on this machine: the engine, the image (fetched if need be), GPUs, transport.

Decides and fetches; what is decided is a `KernelPlan`, which `container.py` runs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dockml_magic import engine as engines
from dockml_magic import folders, labels, trust
from dockml_magic._version import __version__
from dockml_magic.catalogue import Image
from dockml_magic.display import Table, show_pull
from dockml_magic.engine import (
    ContainerState,
    Engine,
    ImageState,
    build_reference,
)
from dockml_magic.errors import (
    CommitStopped,
    ConfigError,
    EngineError,
    GpuUnavailableError,
    ImageInUseError,
    ImageUnavailableError,
    MountError,
    ProjectFileError,
    UnknownContainerError,
    UnknownNameError,
)
from dockml_magic.folders import RuntimeFolder
from dockml_magic.gpu import HostGpus, find_gpus
from dockml_magic.host_settings import build_args, read_host_settings
from dockml_magic.image_memory import ImageMemory
from dockml_magic.names import Choice, Fits, choose, suggest
from dockml_magic.options import AUTO, GpuRequest, RunOptions, parse_env, parse_gpus
from dockml_magic.project import LOCK_NAME, Project, find_project, is_dockerfile
from dockml_magic.pull import (
    PullProgress,
    check_reference,
    check_room,
    format_size,
    split_reference,
)
from dockml_magic.requirements import Extras, hide_private, read_extras
from dockml_magic.spec import RUNTIME, ContainerSpec

if TYPE_CHECKING:
    from dockml_magic.lock import Lock, LockedEnvironment, Now

log = logging.getLogger(__name__)

_SHORTEST_ID = 4
"""Digits of a container's id that are taken for one."""

_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")

PYTHON_KERNELS = ("python", "python3")
"""Names for `--kernel` that ask for Python, from the bundle if need be."""

_KNOWN_ON_IPC = (*PYTHON_KERNELS, "ir")
"""Kernels tried over Unix sockets; those of other languages have been seen to hang on them."""

_MOST_GPUS = 20
"""Lines of `nvidia-smi`, one for each GPU, that are read."""

_NVIDIA_SMI_TIMEOUT = 30.0
"""Seconds that an engine on another machine may take to say which GPUs it has."""

_LONGEST_FILE = 4 << 20
"""Bytes of a requirements file."""


@dataclass(frozen=True, kw_only=True)
class KernelPlan:
    """A kernel to start: where, from what image, over which transport.

    Attributes
    ----------
    choice : Choice
        What NAME came to.
    image : ImageState
        The image, which is here.
    workspace : Path
        The folder to mount and work in.
    transport : str
        "ipc" or "tcp".
    host_ports : tuple of int
        TCP: the host's ports for shell, iopub, stdin, control and heartbeat where somebody else
        chose them; empty lets the engine choose.
    key : str
        The connection's key, and the control channel's.
    exclusive : bool
        Nobody but us is at the other end. Messages through Unix sockets in a folder that only this user
        can enter are not signed then; and the kernel waits for a slow reader, and drops nothing.
    extra_arguments : tuple of str
        For ipykernel.
    env : mapping of str to str
        Variables that `start_kernel` was given.
    kernelspec : str
        The image's kernelspec to run; "" is Python's, or what the image is found to be for.
    kept : bool
        Its container stays when it ends, and several notebooks may share it.
    """

    choice: Choice
    image: ImageState
    workspace: Path
    transport: str
    host_ports: tuple[int, ...] = ()
    key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    exclusive: bool = False
    extra_arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    kernelspec: str = ""
    kept: bool = False

    def is_alike(self, other: KernelPlan) -> bool:
        """Tell whether a start by the other one comes to the same kernel, as far as plans say it.

        Keys and ports are each start's own.
        """
        mine, theirs = (
            (p.image.id, p.workspace, p.transport, p.kernelspec, p.kept, p.choice.options)
            for p in (self, other)
        )
        return mine == theirs

    def to_json(self) -> dict[str, Any]:
        """Return what another process has to know of a container that was made by this plan; plain JSON."""
        choice = self.choice
        return {
            "choice": {
                "name": choice.name,
                "reference": choice.reference,
                "title": choice.title,
                "options": choice.options.to_json(),
                "base": choice.base,
                "extras": {
                    "lines": choice.extras.lines,
                    "constraints": choice.extras.constraints,
                }
                if choice.extras
                else None,
            },
            "image": {"id": self.image.id, "architecture": self.image.architecture},
            "workspace": str(self.workspace),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KernelPlan:
        """Return what `to_json` gave."""
        choice = dict(data["choice"])
        choice["options"] = RunOptions.from_json(choice["options"])
        if extras := choice.get("extras"):
            choice["extras"] = Extras(
                lines=tuple(extras["lines"]), constraints=tuple(extras["constraints"])
            )
        return cls(
            choice=Choice(**choice),
            image=ImageState(**data["image"]),
            workspace=Path(data["workspace"]),
            **{name: data[name] for name in _PLAIN},
        )


_PLAIN = ("transport", "key", "exclusive", "kernelspec", "kept")

_engines: dict[str, Engine] = {}


def engine_for(options: RunOptions) -> Engine:
    """Return the engine for these options, connected once per process and endpoint."""
    key = options.engine or "{DOCKER_HOST}|{DOCKER_CONTEXT}".format_map(
        {name: os.environ.get(name, "") for name in ("DOCKER_HOST", "DOCKER_CONTEXT")}
    )
    if key not in _engines:
        _engines[key] = engines.connect(options.engine)
        _remove_never_started(_engines[key])
    return _engines[key]


def _remove_never_started(engine: Engine) -> None:
    """Remove what a process left that was killed between creating a container and starting it.

    Every other container of ours ends itself; one that never ran cannot.
    """
    for found in our_containers(engine):
        session = found.labels[labels.SESSION]
        if found.status != "created" or not folders.SESSION.fullmatch(session):
            continue
        runtime = RuntimeFolder(folders.runtime_root() / session)
        if _is_made_for(found, runtime, engine) and not folders.is_claimed(runtime.path):
            with contextlib.suppress(EngineError):  # another process was quicker
                engine.remove(found.id)
            runtime.remove()


def _is_made_for(found: ContainerState, runtime: RuntimeFolder, engine: Engine) -> bool:
    """Tell whether a container is the one that we made for a runtime folder.

    Labels prove nothing: an image that was committed from a container of ours gives them to all of its
    containers. None of those mounts a folder that only this user can make.
    """
    if not engine.facts.shares_files:
        return found.name == f"dockml-{runtime.path.name}" and runtime.path.is_dir()
    return found.mounts.get(str(RUNTIME)) == str(runtime.shared)


def choose_here(
    name: str,
    options: RunOptions,
    folder: Path,
    engine: Engine,
    tell: Callable[[str], None] | None = None,
) -> tuple[Choice, ImageState | None]:
    """Return what `name` means in this folder and on this machine, and its image if it is here.

    Fetches nothing. Without `tell`, nothing is started either, which an engine on another machine would have
    to do to say which GPUs it has.

    Raises
    ------
    UnknownNameError, GpuUnavailableError, MountError, ConfigError
    """
    if not folder.is_dir():
        raise MountError(
            f"The workspace '{folder}' does not exist.",
            hint="Create the folder, or start from one that exists.",
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise MountError(
            f"The name of the workspace '{folder}' is not UTF-8, and Docker takes no other.",
            hint="Rename the folder.",
        ) from error
    gpus = _gpus_here(engine)
    choice, image = decide_here(name, options, folder, engine, gpus)
    return _settle_gpus(name, choice, engine, image, tell, gpus), image


def decide_here(
    name: str,
    options: RunOptions,
    folder: Path,
    engine: Engine,
    gpus: Callable[[], HostGpus] | None = None,
    *,
    use_lock: bool = True,
) -> tuple[Choice, ImageState | None]:
    """Return what `name` means in this folder, and its image if it is here; whether it can run is not asked.

    Raises
    ------
    UnknownNameError, MissingTagError, ConfigError, ImageUnavailableError
    """
    project = find_project(folder)
    choice = choose(
        name,
        options,
        project,
        is_here=lambda reference: engine.find_image(reference) is not None,
        fits=_fits(gpus or _gpus_here(engine)),
    )
    if choice.dockerfile:
        choice = replace(choice, reference=build_reference(_find_dockerfile(choice, folder)))
    choice = _with_packages(choice, folder)
    if use_lock and (lock := read_lock(project)) and name in lock.environments:
        choice = _hold(choice, name, options, project, lock.environments[name], engine)
    image = engine.find_image(choice.reference)
    if image is None and not choice.is_known and ":" not in choice.reference:
        raise UnknownNameError(name, suggest(name, project, engine.local_references()))
    return choice, image


def _with_packages(choice: Choice, folder: Path) -> Choice:
    """Return a choice with what is to be installed on top, its files read."""
    packages = choice.options.packages
    return replace(choice, extras=read_extras(packages, folder, _read_text)) if packages else choice


def _hold(
    choice: Choice,
    name: str,
    options: RunOptions,
    project: Project,
    locked: LockedEnvironment,
    engine: Engine,
) -> Choice:
    """Return a choice with the image and the versions that the lock has, as far as it holds."""
    if options.image:
        note = f"--image: {LOCK_NAME} is not used for this start"
        return replace(choice, notes=(note,))
    assert project.path is not None
    from dockml_magic.lock import compare

    verdict = compare(locked, _now(choice, name, project, engine, locked))
    notes = [verdict.told(name, project.path.name, LOCK_NAME)]
    extras = choice.extras
    if extras is not None and verdict.holds_versions:
        if options.packages:
            notes.append(f"--with: the versions in {LOCK_NAME} are not used for this start")
        else:
            extras = replace(extras, constraints=(*extras.constraints, *locked.versions))
    reference = choice.reference
    if verdict.holds_image and not locked.is_built:
        is_anew = choice.options.pull == "always"
        reference = locked.reference
        if locked.digest and (is_anew or not verdict.is_here):
            reference = locked.digest
        elif not verdict.is_here:
            reference = locked.id
            if engine.find_image(reference) is None:
                raise ImageUnavailableError(
                    locked.reference,
                    f"{LOCK_NAME} has one that was only on the machine where it was locked "
                    f"({locked.id[:19]}…), and no registry has it.",
                    hint=f"Lock what there is now: dockml lock {name}. Or start without the lock: "
                    f"%docker_env {name} --image {locked.image}",
                )
    return replace(choice, reference=reference, extras=extras, notes=tuple(filter(None, notes)))


def _now(
    choice: Choice,
    name: str,
    project: Project,
    engine: Engine,
    locked: LockedEnvironment | None = None,
) -> Now:
    """Return what the project file says of an environment, and what this machine has of it.

    What a name comes to may differ between machines, by their GPUs; where there is a lock, what it has is meant.
    """
    assert project.path is not None
    from dockml_magic.lock import Now

    entry = project.environments[name]
    asked = entry.image or name
    if is_dockerfile(asked):
        asked = f"./{os.path.relpath(asked, project.path.parent)}"
    extras = read_extras(entry.packages, project.path.parent, _read_text)
    here = engine.find_image(locked.reference if locked else choice.reference)
    return Now(
        entry=project.entries[name],
        image=asked,
        reference=choice.reference,
        requirements=tuple(sorted(map(hide_private, extras.lines))),
        constraints=tuple(sorted(extras.constraints)),
        here=(here.id, *here.digests) if here else (),
    )


def read_lock(project: Project) -> Lock | None:
    """Return the project's lock, None where there is none.

    Raises
    ------
    ProjectFileError
        If it cannot be read or understood.
    """
    path = project.lock_path
    if path is None or not path.is_file():
        return None
    from dockml_magic.lock import parse_lock

    try:
        return parse_lock(path, _read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectFileError(str(path), "", f"cannot be read: {error}.") from error


def lock_environments(
    names: Sequence[str], folder: Path, engine: Engine, tell: Callable[[str], None]
) -> Lock:
    """Write the lock of a project: what its environments come to now. Images and packages are fetched if need be.

    Parameters
    ----------
    names : sequence of str
        The environments; none are all of the project. What the lock says of the others stays.
    folder : Path
        Where the project file is looked for.
    engine : Engine
        Where they will run.
    tell : callable
        Gets lines for the user.
    """
    project, names = _project_with(names, folder)
    assert project.lock_path is not None
    known = {} if len(names) == len(project.environments) else _known_environments(project)
    for name in names:
        tell(f"{name}:")
        known[name] = _locked(name, project, folder, engine, tell)
    from dockml_magic.lock import Lock, write_lock

    lock = Lock(path=project.lock_path, environments=known)
    scratch = lock.path.with_name(f".{lock.path.name}.{os.getpid()}")
    try:
        scratch.write_text(write_lock(lock), encoding="utf-8")
        scratch.replace(lock.path)
    except OSError as error:
        raise ConfigError(f"'{lock.path}' cannot be written: {error.strerror}.") from error
    tell(f"wrote {lock.path}")
    return lock


def check_lock(names: Sequence[str], folder: Path, engine: Engine) -> list[str]:
    """Return in lines what has moved since the lock was written; nothing is fetched."""
    project, names = _project_with(names, folder)
    assert project.path is not None
    lock = read_lock(project)
    if lock is None:
        return [f"{project.path.parent} has no {LOCK_NAME}. Write it with: dockml lock"]
    from dockml_magic.lock import compare

    said = []
    for name in names:
        if name not in lock.environments:
            said.append(f"{name}: it is not in {LOCK_NAME}. Add it with: dockml lock {name}")
            continue
        choice, _ = decide_here(name, RunOptions(), folder, engine, use_lock=False)
        verdict = compare(
            lock.environments[name], _now(choice, name, project, engine, lock.environments[name])
        )
        if told := verdict.told(name, project.path.name, LOCK_NAME):
            said.append(f"{name}: {told}")
    if len(names) == len(project.environments):
        gone = sorted(set(lock.environments) - set(names))
        said += [f"{name}: it is in {LOCK_NAME}, and not in {project.path.name}" for name in gone]
    return said


def _project_with(names: Sequence[str], folder: Path) -> tuple[Project, list[str]]:
    """Return the project, and which of its environments are meant."""
    project = find_project(folder)
    if project.path is None or not project.environments:
        raise ConfigError(
            f"No project file of '{folder}' names an environment.",
            hint='A lock is of environments. In dockml.toml: [environments.ner] and image = "tf1.4"',
        )
    for name in names:
        if name not in project.environments:
            known = ", ".join(project.environments)
            raise ConfigError(
                f"'{name}' is not an environment of {project.path}.", hint=f"Known: {known}."
            )
    return project, list(dict.fromkeys(names or project.environments))


def _known_environments(project: Project) -> dict[str, LockedEnvironment]:
    """Return what the lock says of the environments that the project still has."""
    lock = read_lock(project)
    found = lock.environments if lock else {}
    return {name: locked for name, locked in found.items() if name in project.environments}


def _locked(
    name: str, project: Project, folder: Path, engine: Engine, tell: Callable[[str], None]
) -> LockedEnvironment:
    """Return what an environment comes to now."""
    choice, image = decide_here(name, RunOptions(), folder, engine, use_lock=False)
    check_trust(name, choice, folder)
    image = _fetch(choice, image, folder, engine, tell)
    from dockml_magic.layers import ensure_layer, list_packages
    from dockml_magic.lock import LockedEnvironment

    top = image
    if choice.extras is not None:
        top = ensure_layer(
            image, choice.reference, choice.extras, engine, tell, _given(choice.options)
        )
    inventory = list_packages(top, choice.reference, engine)
    now = _now(choice, name, project, engine)
    locked = LockedEnvironment(
        entry=now.entry,
        image=now.image,
        reference=choice.reference,
        digest=_digest(choice.reference, image.digests),
        id=image.id,
        platform=f"linux/{image.architecture}",
        python=inventory.python,
        requirements=now.requirements,
        constraints=now.constraints,
        packages=inventory.packages,
    )
    if choice.extras is not None:
        # A start from the lock is told these versions, which this layer has.
        held = (*choice.extras.constraints, *locked.versions)
        engine.tag(top.id, replace(choice.extras, constraints=held).reference(image.id))
    tell(f"{locked.reference}, Python {locked.python}, {len(locked.packages)} packages")
    if not locked.digest and not locked.is_built:
        tell("no registry is known to have this image: another machine will not get it by the lock")
    return locked


def _digest(reference: str, digests: Sequence[str]) -> str:
    """Return the digest by which an image is known where it is from."""
    origin = split_reference(reference)
    for digest in digests:
        name = split_reference(digest)
        if (name.host, name.repository) == (origin.host, origin.repository):
            return digest
    return digests[0] if digests else ""


def _given(options: RunOptions) -> dict[str, str]:
    """Return the variables that a container is given, with this machine's values where options name only them."""
    return dict(pair for text in options.env if (pair := parse_env(text, os.environ)))


def _read_text(path: Path) -> str:
    """Return a requirements file's text; a device or a pipe, which may never end, is none."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    with path.open("rb") as file:
        text = file.read(_LONGEST_FILE + 1)
    if len(text) > _LONGEST_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return text.decode("utf-8")


def with_extras(
    choice: Choice, image: ImageState | None, engine: Engine
) -> tuple[Choice, ImageState | None]:
    """Return what `choose_here` found with the extra packages on top: that layer, and its image if it is here.

    As long as the image below is not here, nobody can say what the layer is called.
    """
    if choice.extras is None or image is None:
        return choice, image
    reference = choice.extras.reference(image.id)
    return replace(choice, reference=reference, base=choice.reference), engine.find_image(reference)


def _gpus_here(engine: Engine) -> Callable[[], HostGpus]:
    """Return how to get this machine's GPUs: asked for once, and only where somebody wants to know."""
    return functools.cache(find_gpus if engine.facts.shares_files else HostGpus)


def _fits(gpus: Callable[[], HostGpus]) -> Fits:
    """Return how well an image fits these GPUs."""

    def fits(image: Image) -> int:
        if not gpus().gpus:
            return 0
        from dockml_magic.fit import judge  # here: `%load_ext` does without it

        return _FIT[judge(replace(image, gpu=True), gpus().gpus, gpus().driver).verdict]

    return fits


_FIT: Mapping[str, int] = {"fits": 2, "slow first start": 1, "not known": 0, "will not run": -1}


def _settle_gpus(
    name: str,
    choice: Choice,
    engine: Engine,
    image: ImageState | None,
    tell: Callable[[str], None] | None,
    gpus_here: Callable[[], HostGpus],
) -> Choice:
    """Say whether the image can use the GPUs that it will get, and decide which where that is ours to do.

    It is where the name asks for them, and with `--gpus auto`. An image that will not run is refused then; GPUs
    that the user asks for themselves (`--gpus all`) they get, with a warning.
    """
    asked = choice.options.gpus
    request = GpuRequest(count=-1) if choice.wants_gpu else parse_gpus(asked) if asked else None
    if request is None:
        return choice
    from dockml_magic.fit import image_facts, judge, pick, requested  # here, as above

    is_ours = choice.wants_gpu or asked == AUTO
    if engine.facts.shares_files:
        found = gpus_here()
        if is_ours and not found.gpus:
            raise GpuUnavailableError(
                f"'{name}' needs an NVIDIA GPU, and this machine has none: {found.why_none}.",
                hint=_on_the_cpu(name, choice),
            )
    else:
        found = _gpus_of_engine(engine, choice.reference) if image and tell else HostGpus()
    gpus = found.gpus if is_ours else requested(request, found.gpus)
    if not gpus:
        return choice  # only the engine can say more
    # GPUs are asked for, whatever the image was built for.
    facts = replace(choice.image, gpu=True) if choice.image else image_facts(choice.reference)
    picked = pick(facts, gpus, found.driver) if asked == AUTO else None
    fit = judge(facts, [picked.gpu] if picked else gpus, found.driver)
    if is_ours and fit.verdict == "will not run":
        raise GpuUnavailableError(
            f"'{name}' will not run on {fit.gpu}: {fit.reason}",
            hint="\n".join(
                filter(
                    None,
                    [
                        fit.cure,
                        f"To try it nevertheless: {name} --gpus all. {_on_the_cpu(name, choice)}",
                    ],
                )
            ),
        )
    # What nobody knows is worth a line before gigabytes move, and none at every start after it.
    if tell and not (fit.verdict == "not known" and image):
        for line in fit.lines(name):
            tell(line)
    if picked:
        device = picked.device
        told = f"--gpus {AUTO}: {picked.description}"
    elif choice.wants_gpu and found.limited_by:
        device = ",".join(device for gpu in gpus for device in gpu.devices)
        told = f"{found.limited_by} leaves {', '.join(map(str, gpus))}: others are not asked for"
    else:
        return choice
    if tell:
        tell(told)
    return replace(
        choice, options=replace(choice.options, gpus=f"device={device}"), wants_gpu=False
    )


def _on_the_cpu(name: str, choice: Choice) -> str:
    same = f"he same image without GPU: {name} --gpus none"
    return f"On the CPU: {choice.cpu_twin}. Or t{same}" if choice.cpu_twin else f"T{same}"


def _gpus_of_engine(engine: Engine, reference: str) -> HostGpus:
    """Ask an engine that is not on this machine for its GPUs, through a container of an image that is there."""
    from dockml_magic.fit import NVIDIA_SMI, parse_nvidia_smi  # here, as above

    spec = ContainerSpec(
        image=reference,
        name=f"dockml-gpus-{secrets.token_hex(6)}",
        entrypoint=NVIDIA_SMI,
        user="0:0",
        workdir=PurePosixPath("/"),
        labels={labels.VERSION: __version__, labels.USER: str(os.getuid())},
        env={"NVIDIA_DRIVER_CAPABILITIES": "utility"},
        gpus=GpuRequest(count=-1),
        network="none",
        auto_remove=False,  # its output is read after its end
    )
    container_id = ""
    try:
        container_id = engine.create(spec)
        engine.start(container_id)
        engine.wait(container_id, _NVIDIA_SMI_TIMEOUT)
        gpus, driver = parse_nvidia_smi(engine.logs(container_id, _MOST_GPUS))
    except EngineError as error:
        log.info("the engine does not say which GPUs it has: %s", error)
        return HostGpus(why_none=error.message)
    finally:
        if container_id:
            engine.remove(container_id)
    return HostGpus(gpus=gpus, driver=driver)


def _find_dockerfile(choice: Choice, folder: Path) -> Path:
    """Return the Dockerfile that was named, or the one in the folder that was."""
    path = folder / Path(choice.dockerfile).expanduser()
    found = path / "Dockerfile" if path.is_dir() else path
    if not found.is_file():
        raise ConfigError(
            f"There is no Dockerfile '{found}'.",
            hint="Name a Dockerfile, or a folder with one. An image of that name has no ./ before it.",
        )
    return found.resolve()


def local_references() -> list[str] | None:
    """Return the images that the engine has, None where no engine answers."""
    try:
        return engine_for(RunOptions()).local_references()
    except EngineError:
        return None


def make_plan(
    name: str,
    options: RunOptions,
    folder: Path,
    *,
    engine: Engine,
    tell: Callable[[str], None],
    transport: str | None = None,
    judged: bool = False,
) -> KernelPlan:
    """Decide what to start for `name`, and fetch its image where it is missing.

    Parameters
    ----------
    name : str
        As the user typed it.
    options : RunOptions
        As the user typed them.
    folder : Path
        The notebook's folder: the workspace, and where the project file is looked for.
    engine : Engine
        Where it will run.
    tell : callable
        Gets a line for the user when something takes time.
    transport : str, optional
        Where the caller can only do one.
    judged : bool
        The user was told whether the GPUs fit, and `options` has what was decided about them.

    Raises
    ------
    UnknownNameError, ImageUnavailableError, GpuUnavailableError, MountError, ConfigError
    """
    choice, image = choose_here(name, options, folder, engine, None if judged else tell)
    check_trust(name, choice, folder)
    if not judged:
        for note in choice.notes:
            tell(note)
    image = _fetch(choice, image, folder, engine, tell)
    if choice.extras is not None:
        from dockml_magic.layers import ensure_layer

        layer = ensure_layer(
            image, choice.reference, choice.extras, engine, tell, _given(choice.options)
        )
        choice, image = with_extras(choice, image, engine)[0], layer
    return _plan(choice, image, folder, engine, transport)


def plan_here(name: str, options: RunOptions, folder: Path, engine: Engine) -> KernelPlan | None:
    """Decide the same without a word, None where something would have to be pulled, built or installed.

    See `make_plan` for the parameters and for what is raised.
    """
    choice, image = choose_here(name, options, folder, engine)
    check_trust(name, choice, folder)
    choice, image = with_extras(choice, image, engine)
    if image is None or choice.options.pull == "always":
        return None
    return _plan(choice, image, folder, engine)


def _plan(
    choice: Choice, image: ImageState, folder: Path, engine: Engine, transport: str | None = None
) -> KernelPlan:
    kernelspec = choice.options.kernel or ImageMemory.read(image.id).kernelspec
    return KernelPlan(
        choice=choice,
        image=image,
        workspace=folder,
        transport=choose_transport(transport, choice.options, kernelspec, engine),
        kernelspec=kernelspec,
    )


def check_trust(name: str, choice: Choice, folder: Path) -> None:
    """Raise `UntrustedProjectError` where the project file asks for what the user has not allowed."""
    project = find_project(folder)
    trust.check(project, name, _asked_beyond(project, name, choice, folder))


def _asked_beyond(project: Project, name: str, choice: Choice, folder: Path) -> tuple[str, ...]:
    """Return what the project file asks for beyond its own folder, with this machine's proxies and index."""
    on_host = False
    if choice.extras is not None:
        from dockml_magic.layers import needs_this_machine

        on_host = needs_this_machine(read_host_settings().env)
    return trust.widening(project, name, choice, folder, installs_on_host=on_host)


def allow_project(name: str, options: RunOptions, folder: Path) -> tuple[str, ...]:
    """Allow what the project file asks for, for an environment; return what that is.

    Raises
    ------
    ConfigError, UnknownNameError
        If there is no such environment, or a file with its packages cannot be read.
    """
    project = find_project(folder)
    choice = _with_packages(choose(name, options, project), folder)
    asked = _asked_beyond(project, name, choice, folder)
    if asked:
        trust.allow(project, name, asked)
    return asked


def choose_transport(only: str | None, options: RunOptions, kernelspec: str, engine: Engine) -> str:
    """Return how to reach a kernel, "ipc" or "tcp"; `only` where the caller can do but one."""
    knows_ipc = not kernelspec or kernelspec in _KNOWN_ON_IPC
    shares_files = engine.facts.shares_files
    chosen = only or options.transport or ("ipc" if shares_files and knows_ipc else "tcp")
    if chosen == "ipc" and not shares_files:
        raise ConfigError(
            "--transport ipc needs an engine on this machine.", hint="Leave --transport out."
        )
    if chosen == "tcp" and options.network in ("none", "host"):
        untried = shares_files and not knows_ipc and not (only or options.transport)
        raise ConfigError(
            f"--network {options.network} leaves no port for a kernel over TCP"
            + (f", and '{kernelspec}' is not known to work without." if untried else "."),
            hint="Try --transport ipc, or choose another --network."
            if untried
            else "Leave --transport out, or choose another --network.",
        )
    return chosen


def _fetch(
    choice: Choice,
    image: ImageState | None,
    folder: Path,
    engine: Engine,
    tell: Callable[[str], None],
) -> ImageState:
    """Return the image of a choice, which is pulled or built unless it is here."""
    if image is not None and choice.options.pull != "always":
        return image
    if choice.doubt:
        tell(choice.doubt)
    fetch = _build if choice.dockerfile else _pull
    return fetch(choice, folder, engine, tell)


def _build(choice: Choice, folder: Path, engine: Engine, tell: Callable[[str], None]) -> ImageState:
    tell(f"building {choice.reference} from {choice.dockerfile}")
    engine.build(
        _find_dockerfile(choice, folder),
        choice.reference,
        build_args(read_host_settings()),
        tell,
        pull=choice.options.pull == "always",
    )
    image = engine.find_image(choice.reference)
    if image is None:
        raise ImageUnavailableError(
            choice.reference, "the engine does not have it after the build."
        )
    return image


def _pull(choice: Choice, _: Path, engine: Engine, tell: Callable[[str], None]) -> ImageState:
    if choice.options.pull == "never":
        raise ImageUnavailableError(
            choice.reference, "it is not here, and --pull is never.", hint="Leave --pull out."
        )
    asked = choice.options.image or choice.name
    try:
        return pull_image(choice.reference, engine, tell)
    except ImageUnavailableError as error:
        if "@" in choice.reference and choice.reference != asked:
            error.hint = (
                f"It is the one that {LOCK_NAME} has. {error.hint}\nTo lock what there is now: "
                f"dockml lock {choice.name}. To start without the lock: --image {asked}"
            )
        raise


def build_image(
    engine: Engine,
    path: Path,
    *,
    dockerfile: Path | None = None,
    tag: str = "",
    args: Sequence[str] = (),
    pull: bool = False,
    tell: Callable[[str], None],
) -> str:
    """Build a Dockerfile as `docker build` does, and return the name of the image.

    Parameters
    ----------
    engine : Engine
        Who builds.
    path : Path
        A folder, or a Dockerfile in one.
    dockerfile : Path, optional
        The Dockerfile, where it is not PATH's own.
    tag : str
        The image's name; "" names it as `%docker_env PATH` looks for it.
    args : sequence of str
        As `--build-arg`.
    pull : bool
        Fetch the base anew.
    tell : callable
        Gets the lines of the build.

    Raises
    ------
    ConfigError, ImageBuildError
    """
    found = dockerfile or (path / "Dockerfile" if path.is_dir() else path)
    if not found.is_file():
        raise ConfigError(
            f"There is no Dockerfile '{found}'.",
            hint="Name a folder with one, a Dockerfile, or both: -f DOCKERFILE FOLDER",
        )
    context = path if path.is_dir() else path.parent
    if not tag and (args or dockerfile):
        raise ConfigError(
            "With --build-arg or -f, the image needs a name of its own.",
            hint="Give it one: -t NAME",
        )
    reference = check_reference(tag) if tag else build_reference(found.resolve())
    given = dict(pair for text in args if (pair := parse_env(text, os.environ)))
    engine.build(
        found.resolve(),
        reference,
        {**build_args(read_host_settings()), **given},
        tell,
        pull=pull,
        context=context.resolve(),
    )
    return reference


def pull_for(
    name: str, options: RunOptions, folder: Path, *, engine: Engine, tell: Callable[[str], None]
) -> ImageState:
    """Fetch the image that `name` stands for, also where it is here, as `docker pull` does.

    See `make_plan` for the parameters, `pull_image` for what is raised.
    """
    project = find_project(folder)
    choice = choose(name, options, project)
    is_reference = choice.is_known or ":" in choice.reference
    if not is_reference and engine.find_image(choice.reference) is None:
        raise UnknownNameError(name, suggest(name, project, engine.local_references()))
    return pull_image(choice.reference, engine, tell)


def pull_image(reference: str, engine: Engine, tell: Callable[[str], None]) -> ImageState:
    """Fetch an image in sight of the reader.

    Parameters
    ----------
    reference : str
        The image.
    engine : Engine
        Who fetches it.
    tell : callable
        Gets lines; one that is a `display.ShowsPulls` shows how far it is.

    Raises
    ------
    ImageUnavailableError
        If it cannot be had, or has no room.
    PullStopped
        For an interrupt. Raise it in the view's `show` to stop a pull from elsewhere.
    """
    facts = engine.facts
    is_checked = False

    def check(progress: PullProgress) -> None:
        nonlocal is_checked
        if progress.is_settled and not is_checked and facts.root is not None:
            is_checked = True
            with contextlib.suppress(OSError):  # a folder that only root may look into
                if warning := check_room(progress, shutil.disk_usage(facts.root).free, facts.root):
                    view.say(warning)
        view.show(progress)

    with show_pull(reference, tell) as view:
        engine.pull(reference, check)
    image = engine.find_image(reference)
    if image is None:
        raise ImageUnavailableError(
            reference, "the engine does not have it after the pull.", hint="Try once more."
        )
    if facts.architecture and image.architecture not in ("", facts.architecture):
        tell(
            f"{reference} is built for {image.architecture}, and this engine's machine is "
            f"{facts.architecture}: it runs by emulation, slowly, or not at all"
        )
    return image


def our_containers(engine: Engine) -> list[ContainerState]:
    """Return this user's containers, of every notebook."""
    return engine.list({labels.SESSION: "", labels.USER: str(os.getuid())})


def look_up_container(name: str, engine: str | None) -> tuple[Engine, ContainerState]:
    """Return the container that `name` means in this folder, inspected, and the engine that has it; see below."""
    where = engine_for(RunOptions(engine=engine))
    found = find_container(name, where, Path.cwd())
    return where, where.inspect(found.id) or found


def find_container(name: str, engine: Engine, workspace: Path) -> ContainerState:
    """Return the one of this user's containers that `name` means.

    An environment's name, in this workspace before others; else a container's own name; else an id, or how
    one begins (4 digits and more).

    Raises
    ------
    UnknownContainerError
        If there is none.
    ConfigError
        If there are several, or it is somebody else's.
    """
    ours = our_containers(engine)
    same_name = [found for found in ours if found.labels.get(labels.NAME) == name]
    here = [found for found in same_name if found.labels.get(labels.WORKSPACE) == str(workspace)]
    by_id = len(name) >= _SHORTEST_ID
    matches = (
        here
        or same_name
        or [found for found in ours if found.name == name]
        or [found for found in ours if by_id and found.id.startswith(name)]
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        which = "\n".join(
            f"  {found.id[:12]}  {found.labels.get(labels.NAME, '')}, {found.status}, "
            f"of {found.labels.get(labels.WORKSPACE, '')}"
            for found in matches
        )
        raise ConfigError(
            f"'{name}' is the name of {len(matches)} of your environments:\n{which}",
            hint="Say which by its id.",
        )
    stranger = engine.inspect(name) if _CONTAINER_NAME.fullmatch(name) else None
    if stranger is None:
        raise UnknownContainerError(name, (found.labels.get(labels.NAME, "") for found in ours))
    if labels.SESSION in stranger.labels and labels.USER in stranger.labels:
        raise ConfigError(
            f"The container '{name}' belongs to another user (uid {stranger.labels[labels.USER]}).",
            hint="It is left alone. See yours with: %docker_ps -a",
        )
    raise ConfigError(
        f"The container '{name}' is not one of dockml_magic's, and is left alone.",
        hint=f"Use docker itself for it, as in: docker logs {name}",
    )


def commit_container(
    engine: Engine,
    container: ContainerState,
    reference: str,
    *,
    message: str = "",
    author: str = "",
    tell: Callable[[str], None],
) -> ImageState:
    """Make an image of a container of ours; see `Engine.commit`.

    Raises
    ------
    ConfigError
        If `reference` cannot be the name of an image.
    EngineError
        If the engine cannot do it.
    CommitStopped
        For an interrupt: there is no image, also none without a name.
    """
    check_reference(reference)
    name = container.labels.get(labels.NAME, container.name)
    try:
        image = engine.commit(container.id, reference, message=message, author=author)
    except KeyboardInterrupt:
        raise CommitStopped(name) from None
    tell(
        f"{name!r} is now the image {reference}, {format_size(image.size)}. "
        f"Start it with: %docker_env {reference}"
    )
    return image


def find_local_image(name: str, engine: Engine, folder: Path) -> str:
    """Return the reference of the image that `name` means and the engine has.

    Raises
    ------
    ImageUnavailableError
        If it has none.
    """
    if engine.find_image(name) is not None:
        return name
    with contextlib.suppress(ConfigError):
        choice, image = decide_here(name, RunOptions(), folder, engine)
        if image is not None:
            return choice.reference
    if any(found.labels.get(labels.NAME) == name for found in our_containers(engine)):
        raise ImageUnavailableError(
            name,
            "an environment is called so, and no image.",
            hint=f"Make an image of it first: %docker_commit {name} IMAGE",
        )
    import difflib  # here: `%load_ext` does without it

    near = difflib.get_close_matches(name, engine.local_references(), 3, 0.4)
    raise ImageUnavailableError(
        name,
        "it is not on this machine.",
        hint=f"A file to write to is named with: -o {name}"
        if name.endswith((".tar", ".gz", ".tgz", ".xz", ".zst"))
        else (f"Did you mean {', '.join(near)}? " if near else "")
        + "See what is here with: %docker_images --local",
    )


def remove_image(reference: str, engine: Engine, *, force: bool = False) -> list[str]:
    """Remove an image as `docker rmi` does, and return what went.

    Raises
    ------
    ImageInUseError
        If containers use it: the message says which, the hint in which order to remove.
    """
    try:
        return engine.remove_image(reference, force=force)
    except ImageInUseError as error:
        image = engine.find_image(reference)
        users = [found for found in engine.list({}) if image and found.image_id == image.id]
        if not users:
            raise
        mine = {found.id for found in our_containers(engine)}
        names = [_called(found, is_ours=found.id in mine) for found in users]
        steps = [
            f"%docker_rm {'-f ' if found.status == 'running' else ''}{found.id[:12]}"
            if found.id in mine
            else f"docker rm {'-f ' if found.status == 'running' else ''}{found.name}"
            for found in users
        ]
        raise ImageInUseError(
            reference,
            f"by {', '.join(names)}.",
            hint="\n".join(["First, if nobody needs them any more:", *steps, "then:"])
            + f"\n%docker_rmi {reference}",
        ) from error


def _called(container: ContainerState, *, is_ours: bool) -> str:
    """Return a container as a reader knows it."""
    if is_ours:
        name = container.labels.get(labels.NAME, "")
        where = container.labels.get(labels.WORKSPACE, "")
        return f"the environment '{name}' ({container.status}, of {where})"
    return f"the container '{container.name}' ({container.status})"


def table_of_containers(engine: Engine, kept: Collection[str] = ()) -> Table:
    """Return this user's containers as a table to show; `kept` are the ids of those that are kept."""
    ours = our_containers(engine)
    warm = {found.id: memory for found in ours if (memory := _warm_memory(found)) is not None}
    takes = ", ".join(
        f"{found.labels.get(labels.NAME, '')} ({format_size(warm[found.id])})"
        for found in ours
        if found.id in warm
    )
    rows = [
        [
            found.labels.get(labels.NAME, ""),
            found.image,
            "warm" if found.id in warm else found.status,
            found.started_at,
            found.labels.get(labels.WORKSPACE, ""),
            "yes" if found.id in kept else "",
            found.id[:12],
        ]
        for found in ours
    ]
    head = ["NAME", "IMAGE", "STATUS", "SINCE", "WORKSPACE", "KEPT", "CONTAINER ID"]
    note = (
        f"Warm, so that %docker_env NAME takes no time in their notebooks: {takes}." if warm else ""
    )
    return Table(head, rows, empty="You have no containers of dockml_magic.", note=note)


def _warm_memory(found: ContainerState) -> int | None:
    """Return what one takes that waits to be asked for, None where it does not wait, or nobody knows."""
    session = found.labels[labels.SESSION]
    if found.status != "running" or not folders.SESSION.fullmatch(session):
        return None
    try:
        return int((folders.runtime_root() / session / folders.WARM_FILE).read_text())
    except (OSError, ValueError):
        return None
