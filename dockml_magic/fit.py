"""Whether an image can use these GPUs with this driver, said before gigabytes move.

Everything here is pure. `judge` gives the verdict, `pick` the freest GPU that fits, `image_facts` what
a reference alone says about an image. What the judgement rests on are tables in `resources/`, each row
with its source and how sure it is:

=====================  =========================================================================
framework_arch.csv     the GPUs that each framework build has code for
gpu_reports.csv        what people reported that this does not explain; asked first
cuda_driver.csv        the oldest driver for each CUDA
cuda_arch.csv          the GPUs that each CUDA has code for, for builds that nobody described
gpu_arch.csv           GPU names and their compute capability, where the driver does not say
=====================  =========================================================================

The rules: compiled code (SASS) runs on GPUs of the same major compute capability and an equal or higher
minor one, never across majors. PTX of a lower or equal capability is compiled by the driver at the
first start. See https://docs.nvidia.com/cuda/cuda-c-programming-guide/ (binary and PTX compatibility).
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from packaging.version import InvalidVersion, Version

from dockml_magic.options import GpuRequest

Verdict = Literal["fits", "slow first start", "not known", "will not run"]

VERDICTS: tuple[Verdict, ...] = ("fits", "slow first start", "not known", "will not run")
"""Best first."""

_QUERY = (
    "nvidia-smi --format=csv,noheader --query-gpu=name,memory.total,memory.free,driver_version,uuid"
)

NVIDIA_SMI = ("sh", "-c", f"{_QUERY},compute_cap || {_QUERY}")
"""What asks a machine for its GPUs; `parse_nvidia_smi` reads the answer. Older ones know no compute_cap."""

_MINOR_COMPATIBLE = 11
"""The first CUDA whose programs run on any driver of the same major version.

https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

_OLDEST_FORWARD = (10, 0)
"""The first CUDA with a compatibility package for older drivers of data-centre GPUs.

https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html
"""

_DATA_CENTRE = re.compile(
    r"\b(?:Tesla|GRID|T4|V100|P100|P40|P4|A100|A800|A40|A30|A16|A10G?|A2|L40S?|L4|H100|H200|H800|H20"
    r"|B100|B200|B300|GH200|GB200|GB300)\b"
)
"""Names of data-centre GPUs, the only ones that NVIDIA's compatibility package serves."""

_TF_CURE = "tf{version}-gpu"
_TORCH_CURE = "torch{version}-cu{cuda}"
_KEEP = (
    "To compile only once, keep the result: -v ~/.nv:/nv -e CUDA_CACHE_PATH=/nv "
    "-e CUDA_CACHE_MAXSIZE=4294967296"
)


_SURE = {
    "memory": " (From memory, without a source.)",
    "derived": " (Derived from its neighbours.)",
}


class ImageFacts(Protocol):
    """What is known of an image; an entry of the catalogue is one.

    Attributes
    ----------
    framework : str
        "tensorflow", "pytorch", … or "" where it is not known.
    version : str
        Of the framework, or "".
    cuda : str
        "10.0", or "".
    reference : str
        What the engine pulls.
    gpu : bool
        Built for an NVIDIA GPU.
    """

    @property
    def framework(self) -> str:
        """Return its word in the tables."""

    @property
    def version(self) -> str:
        """Return it as the framework writes it."""

    @property
    def cuda(self) -> str:
        """Return major and minor."""

    @property
    def reference(self) -> str:
        """Return it with its tag."""

    @property
    def gpu(self) -> bool:
        """Tell whether a start asks for GPUs."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """The facts that a reference alone tells; an `ImageFacts`."""

    reference: str
    framework: str = ""
    version: str = ""
    cuda: str = ""
    gpu: bool = True


@dataclass(frozen=True, kw_only=True)
class MigInstance:
    """A part of a GPU that is one for programs (https://docs.nvidia.com/datacenter/tesla/mig-user-guide/).

    Attributes
    ----------
    index : int
        Among the instances of its GPU.
    memory_total, memory_free : int
        Bytes.
    """

    index: int
    uuid: str
    memory_total: int = 0
    memory_free: int = 0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of a machine.

    Attributes
    ----------
    name : str
        As the driver calls it: "NVIDIA GeForce RTX 3090".
    index : int
        As `nvidia-smi` counts.
    uuid : str
        Or "".
    compute_capability : str
        "8.6", or "" where the driver does not say: then the name does.
    memory_total, memory_free : int
        Bytes; 0 where it is not known.
    utilisation : int or None
        Per cent of the last moments in which it worked.
    mig : bool
        It is cut into instances, and only they can be used.
    instances : tuple of MigInstance
        Those.
    """

    name: str
    index: int = 0
    uuid: str = ""
    compute_capability: str = ""
    memory_total: int = 0
    memory_free: int = 0
    utilisation: int | None = None
    mig: bool = False
    instances: tuple[MigInstance, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """What `--gpus device=` takes for it: itself, or its MIG instances."""
        if self.mig:
            return tuple(part.uuid for part in self.instances)
        return (self.uuid or str(self.index),)

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


@dataclass(frozen=True, kw_only=True)
class GpuFit:
    """The verdict for one of several GPUs."""

    gpu: Gpu
    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether an image can use a machine's GPUs.

    Attributes
    ----------
    verdict : str
        One of `VERDICTS`: that of the GPU it fits best.
    reason : str
        Why, in one sentence.
    cure : str
        What to do about it, or "".
    instead : str
        The NAME, or reference, to use instead that fits; "" where none is known.
    gpu : Gpu or None
        The GPU it fits best.
    each : tuple of GpuFit
        Every GPU's verdict.
    sure : str
        "seen" in a source, from "memory", or "derived" from neighbours; "" where nothing is known.
    """

    verdict: Verdict
    reason: str
    cure: str = ""
    instead: str = ""
    gpu: Gpu | None = None
    each: tuple[GpuFit, ...] = ()
    sure: str = ""

    def lines(self, name: str) -> list[str]:
        """Return what a user who asked for `name` should know before it starts; nothing where all is well."""
        told = []
        if self.verdict != "fits":
            where = f" on {self.gpu}" if self.gpu else ""
            told.append(f"{name}{where}: {self.verdict}. {self.reason}{_SURE.get(self.sure, '')}")
            if self.cure:
                told.append(self.cure)
        worse = [one for one in self.each if one.verdict != self.verdict]
        if worse:
            others = "; ".join(f"{one.gpu}: {one.verdict}" for one in worse)
            told.append(
                f"{others}. Best on {self.gpu}, which --gpus device={self.gpu_index} asks for."
            )
        return told

    @property
    def gpu_index(self) -> int:
        """The index of the GPU it fits best."""
        return self.gpu.index if self.gpu else 0


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The device that `--gpus auto` came to.

    Attributes
    ----------
    gpu : Gpu
        The GPU, or that of the MIG instance.
    device : str
        For `--gpus device=`.
    description : str
        For the user.
    """

    gpu: Gpu
    device: str
    description: str


@dataclass(frozen=True, kw_only=True)
class _Build:
    """What the tables are asked about; `version` is a month (22.10) for "ngc-tf1"."""

    title: str
    maker: str
    version: tuple[int, int] | None
    cuda: tuple[int, int] | None
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What the tables are asked for."""

    capability: tuple[int, int]
    driver: str
    data_centre: bool


@dataclass(frozen=True, kw_only=True)
class _Finding:
    verdict: Verdict
    reason: str
    cure: str = ""
    instead: str = ""
    sure: str = ""


# --- which GPUs -----------------------------------------------------------------------------------


def parse_nvidia_smi(text: str) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs and the driver's version in what `NVIDIA_SMI` printed; lines of anything else are skipped."""
    gpus: list[Gpu] = []
    driver = ""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) not in (5, 6):
            continue
        name, total, free, driver, uuid = (cell.strip() for cell in row[:5])
        capability = row[5].strip() if len(row) == 6 else ""
        gpus.append(
            Gpu(
                name=name,
                index=len(gpus),
                uuid=uuid,
                compute_capability=capability if _pair(capability) else "",
                memory_total=_mebibytes(total),
                memory_free=_mebibytes(free),
            )
        )
    return tuple(gpus), driver


def _mebibytes(text: str) -> int:
    """Return "24576 MiB" in bytes, 0 for "[N/A]"."""
    match = re.match(r"(\d+) MiB", text)
    return int(match[1]) * 1024**2 if match else 0


def requested(request: GpuRequest, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return those of a machine's GPUs that a request means; devices that are not there are left out."""
    if request.device_ids:
        return tuple(
            gpu
            for device in request.device_ids
            for gpu in gpus
            if device.partition(":")[0] == str(gpu.index)
            or any(known.startswith(device) for known in (gpu.uuid, *gpu.devices))
        )
    return tuple(gpus if request.count < 0 else gpus[: request.count])


# --- the verdict ----------------------------------------------------------------------------------


def judge(image: ImageFacts, gpus: Sequence[Gpu], driver: str) -> Fit:
    """Return whether `image` can use one of `gpus`, why, and what to do where it cannot.

    Parameters
    ----------
    image : ImageFacts
        What is known of the image.
    gpus : sequence of Gpu
        The machine's, or those that are asked for.
    driver : str
        The version of its NVIDIA driver; "" is taken for one that is new enough.
    """
    if not image.gpu:
        return Fit(verdict="fits", reason="It runs on the CPU.", sure="seen")
    if not gpus:
        return Fit(verdict="will not run", reason="There is no NVIDIA GPU.", sure="seen")
    build = _build_of(image)
    found = [(gpu, _finding_for(build, gpu, driver)) for gpu in gpus]
    gpu, best = min(found, key=lambda pair: VERDICTS.index(pair[1].verdict))
    return Fit(
        verdict=best.verdict,
        reason=best.reason,
        cure=best.cure,
        instead=best.instead,
        gpu=gpu,
        each=tuple(GpuFit(gpu=g, verdict=f.verdict, reason=f.reason) for g, f in found),
        sure=best.sure,
    )


def pick(image: ImageFacts, gpus: Sequence[Gpu], driver: str) -> Pick | None:
    """Return the freest GPU that fits, or MIG instance of one: most free memory, then least work.

    None where none fits. One that fits slowly is taken only where none fits at once.
    """
    candidates = [
        (VERDICTS.index(one.verdict), -free, one.gpu.utilisation or 0, picked)
        for one in judge(image, gpus, driver).each
        if one.verdict != "will not run"
        for free, picked in _picks_of(one.gpu)
    ]
    return min(candidates, key=lambda candidate: candidate[:3])[3] if candidates else None


def _picks_of(gpu: Gpu) -> Iterable[tuple[int, Pick]]:
    """Yield what can be asked for of a GPU, and its free bytes."""
    work = "" if gpu.utilisation is None else f", {gpu.utilisation} % at work"
    if not gpu.mig:
        words = f"{gpu}, {_gigabytes(gpu.memory_free)} free{work}"
        yield gpu.memory_free, Pick(gpu=gpu, device=gpu.devices[0], description=words)
    for part in gpu.instances:
        words = f"MIG instance {part.index} of {gpu}, {_gigabytes(part.memory_free)} free"
        yield part.memory_free, Pick(gpu=gpu, device=part.uuid, description=words)


def _gigabytes(count: int) -> str:
    return f"{count / 1024**3:.1f} GB"


def _finding_for(build: _Build, gpu: Gpu, driver: str) -> _Finding:
    if gpu.mig and not gpu.instances:
        return _Finding(
            verdict="will not run",
            reason=f"{gpu} is in MIG mode and has no instances, so no program can use it.",
            cure="Ask for instances (nvidia-smi mig -cgi …, -C), or for MIG mode to be switched off.",
            sure="seen",
        )
    capability = _pair(gpu.compute_capability or capability_of(gpu.name))
    if capability is None:
        return _Finding(
            verdict="not known",
            reason=f"Neither the driver nor our table says what kind of GPU '{gpu.name}' is.",
        )
    data_centre = _DATA_CENTRE.search(gpu.name) is not None
    return _finding(build, _Target(capability=capability, driver=driver, data_centre=data_centre))


@functools.cache
def _finding(build: _Build, target: _Target) -> _Finding:
    """Return the finding for a GPU, with a cure."""
    found = _verdict_on(build, target)
    if found.verdict == "fits":
        return found
    instead = _first_runnable(found.instead, target.driver) or _nearest_fitting(build, target)
    cures = [f"Use {instead}." if instead else "", found.cure]
    return _Finding(
        verdict=found.verdict,
        reason=found.reason,
        cure=" ".join(cure for cure in cures if cure),
        instead=instead,
        sure=found.sure,
    )


@functools.cache
def _verdict_on(build: _Build, target: _Target) -> _Finding:
    """Return the verdict: by the driver, then by reports, then by what the build has code for.

    What no driver cures is said before that the driver is too old.
    """
    row = _row_of(build)
    cuda = build.cuda or (_pair(row["cuda"].split()[0]) if row and row["cuda"] else None)
    if cuda is not None and _driver_state(cuda, target.driver) == "too old":
        with_a_new_one = _verdict_on(build, replace(target, driver=""))
        is_hopeless = with_a_new_one.verdict == "will not run"
        return with_a_new_one if is_hopeless else _driver_too_old(cuda, target)
    for report in _rows("gpu_reports"):
        if _is_about(report, build, target.capability, cuda):
            verdict = next(v for v in VERDICTS if v == report["verdict"])
            return _Finding(
                verdict=verdict,
                reason=f"{build.title}: {report['reason']}.",
                cure=" ".join(
                    filter(None, [report["cure"], _KEEP if verdict == "slow first start" else ""])
                ),
                instead=report["instead"],
                sure=report["confidence"],
            )
    if row is None:
        return _by_toolkit(build, cuda, target.capability)
    return _by_code(build, row, cuda, target)


def _by_code(
    build: _Build,
    row: Mapping[str, str],
    cuda: tuple[int, int] | None,
    target: _Target,
) -> _Finding:
    """Return the verdict by what a build that somebody described has code for."""
    capability = target.capability
    this, sure = _text(capability), row["confidence"]
    if native := _native(row["sass"], capability):
        return _Finding(
            verdict="fits",
            reason=f"{build.title} has code for GPUs of compute capability {native}, "
            f"which runs on this one ({this}).",
            sure=sure,
        )
    ptx = _pair(row["ptx"])
    if ptx is not None and ptx <= capability:
        if cuda is not None and _driver_state(cuda, target.driver) == "minor":
            return _Finding(
                verdict="will not run",
                reason=f"{build.title} has no code for this GPU ({this}), only PTX, and to compile "
                f"that the driver ({target.driver}) is too old.",
                cure=_driver_cure(_driver_row(cuda)["min_linux_driver"]),
                sure=sure,
            )
        toolkit = _toolkit(cuda) if cuda else None
        old = toolkit is not None and not _native(toolkit["sm_list"], capability)
        return _Finding(
            verdict="slow first start",
            reason=f"{build.title} has no code for this GPU ({this}), so the driver compiles PTX for "
            f"{_text(ptx)} at the first start, which takes minutes, up to half an hour"
            + ("; its cuBLAS and cuDNN are older than this GPU too." if old else "."),
            cure=_KEEP,
            sure=sure,
        )
    if row["complete"] == "no":
        return _Finding(
            verdict="not known",
            reason=f"{build.title} has code for {_listed(row['sass'])} at least; whether for this GPU "
            f"({this}) too was not reported.",
            sure=sure,
        )
    return _Finding(
        verdict="will not run",
        reason=f"{build.title} has code for GPUs of compute capability {_listed(row['sass'])} and none "
        f"for this one ({this}): 'no kernel image is available for execution on the device'.",
        sure=sure,
    )


def _by_toolkit(
    build: _Build, cuda: tuple[int, int] | None, capability: tuple[int, int]
) -> _Finding:
    """Return the verdict by the abilities of the image's CUDA, where its build is not described."""
    row = _toolkit(cuda) if cuda else None
    if row is None:
        return _Finding(
            verdict="not known", reason=f"What {build.title} was built for was not reported."
        )
    assert cuda is not None
    this = _text(capability)
    if _native(row["sm_list"], capability):
        return _Finding(
            verdict="fits",
            reason=f"CUDA {_text(cuda)} has code for this GPU ({this}).",
            sure="derived",
        )
    if capability < _known_pair(row["min_compute_capability"]):
        return _Finding(
            verdict="will not run",
            reason=f"CUDA {_text(cuda)} has no code for GPUs as old as this one ({this}): "
            f"{row['min_compute_capability']} is the lowest.",
            cure="An image with an older CUDA can.",
            sure="seen",
        )
    return _Finding(
        verdict="not known",
        reason=f"CUDA {_text(cuda)} is older than this GPU ({this}): at best it starts slowly.",
        cure="An image with a newer CUDA is the safe way.",
        sure="derived",
    )


def _driver_too_old(cuda: tuple[int, int], target: _Target) -> _Finding:
    needed = _driver_row(cuda)["min_linux_driver_minor_compat"]
    reason = f"The driver ({target.driver}) is older than CUDA {_text(cuda)} needs ({needed})"
    verdict: Verdict = "will not run"
    if target.data_centre and cuda >= _OLDEST_FORWARD:
        reason += "; on a data-centre GPU NVIDIA's compatibility package may bridge that"
        verdict = "not known"
    return _Finding(verdict=verdict, reason=f"{reason}.", cure=_driver_cure(needed), sure="seen")


def _driver_cure(needed: str) -> str:
    return f"A driver of {needed} or newer runs it."


# --- cures ----------------------------------------------------------------------------------------


def _first_runnable(candidates: str, driver: str) -> str:
    """Return the first of "NAME@CUDA NAME@CUDA" whose CUDA this driver runs, or ""."""
    for candidate in candidates.split():
        name, _, cuda = candidate.partition("@")
        if _driver_state(_known_pair(cuda), driver) != "too old":
            return name
    return ""


def _nearest_fitting(build: _Build, target: _Target) -> str:
    """Return the name of the version nearest to that of `build` that fits, or "".

    The same version with another CUDA is nearest, then the newer of two neighbours. TensorFlow's 1 and 2
    are two languages: no neighbour of one is in the other.
    """
    if build.version is None:
        return ""
    candidates = _candidates(build.maker)
    if build.maker == "tensorflow":
        candidates = [c for c in candidates if c.version and c.version[0] == build.version[0]]
    versions = sorted({c.version for c in candidates if c.version} | {build.version})
    here = versions.index(build.version)

    def distance(candidate: _Build) -> tuple[int, bool, tuple[int, int]]:
        assert candidate.version is not None
        assert candidate.cuda is not None
        steps = versions.index(candidate.version) - here
        return abs(steps), steps < 0, candidate.cuda

    for candidate in sorted(candidates, key=distance):
        if _verdict_on(candidate, target).verdict == "fits":
            return candidate.title
    if build.maker == "tensorflow" and build.version >= (2, 0):
        return _NVIDIA_TF2.title if _verdict_on(_NVIDIA_TF2, target).verdict == "fits" else ""
    return ""


_NVIDIA_TF2 = _Build(title="ngc-tf2", maker="ngc-tensorflow", version=(2, 17), cuda=(12, 8))
"""nvcr.io/nvidia/tensorflow:25.02-tf2-py3, for Hopper and Blackwell (NVIDIA/tensorflow#116)."""


@functools.cache
def _candidates(maker: str) -> Sequence[_Build]:
    """Return the builds of a maker that the catalogue has by name; their titles are the names."""
    found = []
    for row in _rows("framework_arch"):
        if row["framework"] != maker:
            continue
        for version in row["images"].split():
            cuda = row["cuda"].split()[0]
            name = _TF_CURE if maker == "tensorflow" else _TORCH_CURE
            found.append(
                _Build(
                    title=name.format(version=version, cuda=cuda.replace(".", "")),
                    maker=maker,
                    version=_pair(version),
                    cuda=_pair(cuda),
                    reference=f"{maker}/{maker}:",
                )
            )
    return found


# --- the tables -----------------------------------------------------------------------------------


@functools.cache
def _rows(table: str) -> tuple[Mapping[str, str], ...]:
    file = importlib.resources.files("dockml_magic") / "resources" / f"{table}.csv"
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def _is_about(
    report: Mapping[str, str],
    build: _Build,
    capability: tuple[int, int],
    cuda: tuple[int, int] | None,
) -> bool:
    below = _pair(report["cuda_below"])
    return (
        report["framework"] == build.maker
        and build.version is not None
        and _known_pair(report["first"]) <= build.version <= _known_pair(report["last"])
        and report["reference"] in build.reference
        and (below is None or (cuda is not None and cuda < below))
        and _known_pair(report["min_capability"]) <= capability
        and capability <= _known_pair(report["max_capability"])
    )


@functools.cache
def _row_of(build: _Build) -> Mapping[str, str] | None:
    """Return the row of `framework_arch.csv` that describes a build, None where none does.

    TensorFlow has one CUDA per version; PyTorch has several, so there the image must say which.
    """
    for row in _rows("framework_arch"):
        if row["framework"] != build.maker or build.version is None:
            continue
        if not _known_pair(row["first"]) <= build.version <= _known_pair(row["last"]):
            continue
        if build.maker != "pytorch" or (build.cuda and _text(build.cuda) in row["cuda"].split()):
            return row
    return None


def _driver_row(cuda: tuple[int, int]) -> Mapping[str, str]:
    """Return the row of `cuda_driver.csv`: of this CUDA, or of the newest older one."""
    rows = _rows("cuda_driver")
    older = [row for row in rows if _known_pair(row["cuda_version"]) <= cuda]
    return older[-1] if older else rows[0]


def oldest_driver(cuda: str) -> str:
    """Return the oldest driver that runs programs of a CUDA such as "12.4", PTX included."""
    return _driver_row(_known_pair(cuda))["min_linux_driver"]


@functools.cache
def _driver_state(cuda: tuple[int, int], driver: str) -> str:
    """Return "own" (as new as the CUDA itself), "minor" (same major: no PTX), or "too old"."""
    try:
        here = Version(driver)
    except InvalidVersion:
        return "own"
    row = _driver_row(cuda)
    if here >= Version(row["min_linux_driver"]):
        return "own"
    if cuda[0] >= _MINOR_COMPATIBLE and here >= Version(row["min_linux_driver_minor_compat"]):
        return "minor"
    return "too old"


@functools.cache
def _toolkit(cuda: tuple[int, int]) -> Mapping[str, str] | None:
    """Return the row of `cuda_arch.csv`: of this CUDA, or of the newest older one of its major version."""
    rows = [
        row
        for row in _rows("cuda_arch")
        if (version := _known_pair(row["cuda_version"])) <= cuda and version[0] == cuda[0]
    ]
    return rows[-1] if rows else None


@functools.cache
def capability_of(name: str) -> str:
    """Return the compute capability of a GPU by its name alone: "8.6", or "" where no pattern has it.

    The longest pattern wins: a "GeForce RTX 3080 Ti Laptop GPU" is a "GeForce RTX 3080 Ti".
    """
    found = [
        row
        for row in _rows("gpu_arch")
        if re.search(
            rf"(?<!\w){re.escape(row['gpu_name_pattern'])}(?!\w)", name, flags=re.IGNORECASE
        )
    ]
    best = max(found, key=lambda row: len(row["gpu_name_pattern"]), default=None)
    return best["compute_capability"] if best else ""


def _native(sass: str, capability: tuple[int, int]) -> str:
    """Return the highest of "7.0 8.0" (or "70 80") whose compiled code runs, or ""."""
    runs = [
        listed
        for text in sass.split()
        if (listed := _capability(text))[0] == capability[0] and listed[1] <= capability[1]
    ]
    return _text(max(runs)) if runs else ""


def _capability(text: str) -> tuple[int, int]:
    """Return "8.6", or "86" as compilers write it, as numbers."""
    return _known_pair(text) if "." in text else (int(text[:-1]), int(text[-1]))


@functools.cache
def _pair(version: str) -> tuple[int, int] | None:
    """Return major and minor of a version, None where it is not one."""
    try:
        parsed = Version(version)
    except InvalidVersion:
        return None
    return parsed.major, parsed.minor


def _known_pair(version: str) -> tuple[int, int]:
    pair = _pair(version)
    assert pair is not None, version
    return pair


def _text(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"


def _listed(sass: str) -> str:
    return ", ".join(sass.split())


# --- what an image is -----------------------------------------------------------------------------

_TITLES = {"tensorflow": "TensorFlow", "pytorch": "PyTorch", "mxnet": "MXNet", "rapids": "RAPIDS"}
_REPOSITORIES = {
    "tensorflow/tensorflow": "tensorflow",
    "nvcr.io/nvidia/tensorflow": "tensorflow",
    "pytorch/pytorch": "pytorch",
    "ghcr.io/pytorch/pytorch": "pytorch",
    "cnstark/pytorch": "pytorch",
    "anibali/pytorch": "pytorch",
    "nvcr.io/nvidia/pytorch": "pytorch",
    "mxnet/python": "mxnet",
    "paddlepaddle/paddle": "paddle",
    "rapidsai/base": "rapids",
    "nvcr.io/nvidia/rapidsai/base": "rapids",
    "nvcr.io/nvidia/jax": "jax",
}
_NVIDIA = ("nvcr.io/nvidia/", "ghcr.io/nvidia/")
"""NVIDIA's own builds, which are not those of the frameworks."""

_MONTH = re.compile(r":(\d\d\.\d\d)")


def image_facts(reference: str, *, gpu: bool = True) -> ReferenceFacts:
    """Return what a reference alone says: tensorflow/tensorflow:1.10.0-gpu-py3 is TensorFlow 1.10.0."""
    repository, _, tag = reference.partition("@")[0].removeprefix("docker.io/").partition(":")
    framework = _REPOSITORIES.get(repository, "")
    version = re.match(r"v?(\d+(?:\.\d+)+)", tag)
    cuda = re.search(r"cu(?:da)?-?(\d+(?:\.\d+)?)", tag)
    is_month = repository.startswith(_NVIDIA) and framework != "rapids"
    return ReferenceFacts(
        reference=reference,
        framework=framework,
        version="" if version is None or is_month else version[1],
        cuda=_cuda_in(cuda[1]) if cuda else "",
        gpu=gpu,
    )


def _cuda_in(text: str) -> str:
    """Return what stands in a tag as a CUDA: "10.2", "102" and "92" with their dot, "9" and "12" with .0."""
    if "." in text:
        return text
    whole = len(text) == 1 or (len(text) == 2 and text[0] == "1")
    return f"{text}.0" if whole else f"{text[:-1]}.{text[-1]}"


def _build_of(image: ImageFacts) -> _Build:
    """Return what to ask the tables about this image."""
    framework, version = image.framework.lower(), _pair(image.version)
    title = _TITLES.get(framework, image.framework.capitalize()) or "this image"
    if version:
        title += f" {image.version}"
    if image.cuda:
        title += f" (CUDA {image.cuda})"
    maker = framework
    if any(image.reference.startswith(prefix) for prefix in _NVIDIA):
        month = _MONTH.search(image.reference)
        if "-tf1-" in image.reference and month:
            maker, version = "ngc-tf1", _pair(month[1])
            title = f"NVIDIA's TensorFlow 1.15 of {month[1]}"
        elif framework == "tensorflow" and version and version[0] == 1:
            pass  # before 2020: CUDA 10 and older, whose reports hold for every build
        elif framework != "rapids":
            maker = f"ngc-{framework}"
            title = f"NVIDIA's build of {title}"
    return _Build(
        title=title,
        maker=maker,
        version=version,
        cuda=_pair(image.cuda),
        reference=image.reference,
    )
