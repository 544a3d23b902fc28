"""What a NAME comes to on this machine: the engine, the image (fetched if need be), GPUs, transport.

Decides and fetches; what is decided is a `KernelPlan`, which `container.py` runs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from dockml_magic import engine as engines
from dockml_magic import folders, labels
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
    ConfigError,
    EngineError,
    GpuUnavailableError,
    ImageUnavailableError,
    MountError,
    UnknownNameError,
)
from dockml_magic.fit import NVIDIA_SMI, image_facts, judge, parse_nvidia_smi, pick, requested
from dockml_magic.gpu import HostGpus, find_gpus
from dockml_magic.host_settings import build_args, read_host_settings
from dockml_magic.image_memory import ImageMemory
from dockml_magic.names import Choice, Fits, choose, suggest
from dockml_magic.options import AUTO, GpuRequest, RunOptions, parse_gpus
from dockml_magic.project import find_project
from dockml_magic.pull import PullProgress, check_room
from dockml_magic.spec import RUNTIME, ContainerSpec

log = logging.getLogger(__name__)

PYTHON_KERNELS = ("python", "python3")
"""Names for `--kernel` that ask for Python, from the bundle if need be."""

_KNOWN_ON_IPC = (*PYTHON_KERNELS, "ir")
"""Kernels tried over Unix sockets; those of other languages have been seen to hang on them."""

_MOST_GPUS = 20
"""Lines of `nvidia-smi`, one for each GPU, that are read."""

_NVIDIA_SMI_TIMEOUT = 30.0
"""Seconds that an engine on another machine may take to say which GPUs it has."""


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
        runtime = folders.runtime_root() / found.labels[labels.SESSION]
        if (
            found.status == "created"
            and _is_made_for(found, runtime, engine)
            and not folders.is_claimed(runtime)
        ):
            with contextlib.suppress(EngineError):  # another process was quicker
                engine.remove(found.id)
            folders.remove(runtime)


def _is_made_for(found: ContainerState, runtime: Path, engine: Engine) -> bool:
    """Tell whether a container is the one that we made for a runtime folder.

    Labels prove nothing: an image that was committed from a container of ours gives them to all of its
    containers. None of those mounts a folder that only this user can make.
    """
    if not engine.facts.shares_files:
        return found.name == f"dockml-{runtime.name}" and runtime.is_dir()
    return found.mounts.get(str(RUNTIME)) == str(runtime)


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
    gpus = _gpus_here(engine)
    choice, image = decide_here(name, options, folder, engine, gpus)
    return _settle_gpus(name, choice, engine, image, tell, gpus), image


def decide_here(
    name: str,
    options: RunOptions,
    folder: Path,
    engine: Engine,
    gpus: Callable[[], HostGpus] | None = None,
) -> tuple[Choice, ImageState | None]:
    """Return what `name` means in this folder, and its image if it is here; whether it can run is not asked.

    Raises
    ------
    UnknownNameError, MissingTagError, ConfigError
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
    image = engine.find_image(choice.reference)
    if image is None and not choice.is_known and ":" not in choice.reference:
        raise UnknownNameError(name, suggest(name, project, engine.local_references()))
    return choice, image


def _gpus_here(engine: Engine) -> Callable[[], HostGpus]:
    """Return how to get this machine's GPUs: asked for once, and only where somebody wants to know."""
    return functools.cache(find_gpus if engine.facts.shares_files else HostGpus)


def _fits(gpus: Callable[[], HostGpus]) -> Fits:
    """Return how well an image fits these GPUs."""

    def fits(image: Image) -> int:
        if not gpus().gpus:
            return 0
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
    if image is None or choice.options.pull == "always":
        if choice.doubt:
            tell(choice.doubt)
        fetch = _build if choice.dockerfile else _pull
        image = fetch(choice, folder, engine, tell)
    kernelspec = choice.options.kernel or ImageMemory.read(image.id).kernelspec
    return KernelPlan(
        choice=choice,
        image=image,
        workspace=folder,
        transport=choose_transport(transport, choice.options, kernelspec, engine),
        kernelspec=kernelspec,
    )


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
    return pull_image(choice.reference, engine, tell)


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


def table_of_containers(engine: Engine) -> Table:
    """Return this user's containers as a table to show."""
    rows = [
        [
            found.labels.get(labels.NAME, ""),
            found.image,
            found.status,
            found.started_at,
            found.labels.get(labels.WORKSPACE, ""),
            found.id[:12],
        ]
        for found in our_containers(engine)
    ]
    head = ["NAME", "IMAGE", "STATUS", "SINCE", "WORKSPACE", "CONTAINER ID"]
    return Table(head, rows, empty="You have no containers of dockml_magic.")
