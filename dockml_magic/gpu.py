"""The GPUs of this host; the only importer of NVML."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dockml_magic.fit import Gpu


@dataclass(frozen=True, kw_only=True)
class HostGpus:
    """The GPUs that a notebook may use.

    Attributes
    ----------
    gpus : tuple of Gpu
        Empty where there is none.
    driver : str
        The driver's version, or "".
    why_none : str
        Why there is none, in a reader's words.
    limited_by : str
        The variable of the notebook's environment that hides others or parts of them, or "".
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    why_none: str = ""
    limited_by: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """One per GPU."""
        return tuple(gpu.name for gpu in self.gpus)


def find_gpus(environ: Mapping[str, str] = os.environ) -> HostGpus:
    """Ask the driver for this host's NVIDIA GPUs. A host without a driver is normal.

    Parameters
    ----------
    environ : mapping of str to str
        The notebook's variables, two of which can hide GPUs from it: see `visible_gpus`.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return HostGpus(why_none=f"no NVIDIA driver answers here ({error})")
    try:
        gpus = [_read_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return HostGpus(why_none=f"the NVIDIA driver does not answer ({error})")
    finally:
        pynvml.nvmlShutdown()
    if not gpus:
        return HostGpus(driver=driver, why_none="it has no NVIDIA GPU")
    visible, limited_by = visible_gpus(gpus, environ)
    return HostGpus(
        gpus=visible,
        driver=driver,
        why_none="" if visible else f"{limited_by}={environ[limited_by]!r} hides its GPUs",
        limited_by=limited_by,
    )


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """What a process uses of the GPUs.

    Attributes
    ----------
    memory : int
        Bytes, of all GPUs.
    utilisation : int or None
        Percent of the time in which a kernel of it ran, added up over the GPUs; None where the driver does not say.
    """

    memory: int = 0
    utilisation: int | None = None

    def __add__(self, other: GpuUse) -> GpuUse:
        both = [use for use in (self.utilisation, other.utilisation) if use is not None]
        return GpuUse(memory=self.memory + other.memory, utilisation=sum(both) if both else None)


def find_gpu_use() -> dict[int, GpuUse] | None:
    """Return what each process of this machine, by its number, uses of the GPUs; None without a GPU."""
    import pynvml

    used: dict[int, GpuUse] = {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        count = pynvml.nvmlDeviceGetCount()
        for index in range(count):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                use = GpuUse(memory=process.usedGpuMemory or 0)
                used[process.pid] = used.get(process.pid, GpuUse()) + use
            since = int((time.time() - _UTILISATION_WINDOW) * 1e6)
            samples: dict[int, int] = {}
            with contextlib.suppress(pynvml.NVMLError):  # none ran, or an old driver
                for sample in pynvml.nvmlDeviceGetProcessUtilization(handle, since):
                    samples[sample.pid] = sample.smUtil  # the latest comes last
            for pid, percent in samples.items():
                if pid in used:
                    used[pid] += GpuUse(utilisation=percent)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return used if count else None


_UTILISATION_WINDOW = 2.0
"""Seconds over which the driver is asked how busy a process was."""


def _read_gpu(nvml: Any, index: int) -> Gpu:
    """Return one GPU. What its driver does not support (MIG, the work of a part) is left open."""
    from dockml_magic.fit import Gpu, MigInstance  # here: `%load_ext` does without it

    def ask(otherwise: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except nvml.NVMLError:
            return otherwise

    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = ask(None, nvml.nvmlDeviceGetMemoryInfo, handle)
    work = ask(None, nvml.nvmlDeviceGetUtilizationRates, handle)
    is_cut = bool(ask((0, 0), nvml.nvmlDeviceGetMigMode, handle)[0])
    instances = []
    for number in range(ask(0, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) if is_cut else 0):
        part = ask(None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if part is None:  # a place where none was made
            continue
        of_part = ask(None, nvml.nvmlDeviceGetMemoryInfo, part)
        instances.append(
            MigInstance(
                index=number,
                uuid=_text(nvml.nvmlDeviceGetUUID(part)),
                memory_total=of_part.total if of_part else 0,
                memory_free=of_part.free if of_part else 0,
            )
        )
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        index=index,
        uuid=_text(ask("", nvml.nvmlDeviceGetUUID, handle)),
        compute_capability=".".join(
            map(str, ask((), nvml.nvmlDeviceGetCudaComputeCapability, handle))
        ),
        memory_total=memory.total if memory else 0,
        memory_free=memory.free if memory else 0,
        utilisation=work.gpu if work else None,
        mig=is_cut,
        instances=tuple(instances),
    )


def visible_gpus(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that the notebook's own programs would see, and the variable that hides others.

    CUDA_VISIBLE_DEVICES holds indices, beginnings of UUIDs, or UUIDs of MIG instances; the first entry that
    is none of these ends the list, and an empty one hides everything
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/ "CUDA Environment Variables"). Indices are taken as
    `nvidia-smi` counts, which is CUDA's order where GPUs are alike or CUDA_DEVICE_ORDER=PCI_BUS_ID.
    NVIDIA_VISIBLE_DEVICES is the container toolkit's: a notebook in a container has it.
    """
    shown = tuple(gpus)
    limited_by = ""
    toolkit = environ.get("NVIDIA_VISIBLE_DEVICES", "all").strip()
    if toolkit != "all":
        entries = [] if toolkit in ("", "none", "void") else toolkit.split(",")
        # In a container the driver shows just these already, and counts them anew from 0.
        if len(entries) != len(shown):
            shown, limited_by = tuple(_selected(shown, entries)), "NVIDIA_VISIBLE_DEVICES"
    if "CUDA_VISIBLE_DEVICES" in environ:
        chosen = tuple(_selected(shown, environ["CUDA_VISIBLE_DEVICES"].split(",")))
        if chosen != shown:
            shown, limited_by = chosen, "CUDA_VISIBLE_DEVICES"
    return shown, limited_by


def _selected(gpus: Sequence[Gpu], entries: Iterable[str]) -> list[Gpu]:
    """Return what entries name, in their order, up to the first that names nothing."""
    selected: list[Gpu] = []
    for entry in map(str.strip, entries):
        found = _named(gpus, entry)
        if found is None:
            break
        same = next((i for i, gpu in enumerate(selected) if gpu.index == found.index), None)
        if same is None:
            selected.append(found)
        elif found.mig:  # another instance of the same GPU
            both = (*selected[same].instances, *found.instances)
            selected[same] = replace(found, instances=both)
    return selected


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    """Return the GPU that an entry names, cut down to the MIG instance where it names one."""
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    if entry.startswith("GPU-"):
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        return matching[0] if len(matching) == 1 else None
    for gpu in gpus:
        for number, part in enumerate(gpu.instances):
            # A UUID or its beginning; the toolkit also writes GPU:INSTANCE.
            is_named = entry.startswith("MIG-") and part.uuid.startswith(entry)
            if is_named or entry == f"{gpu.index}:{number}":
                return replace(gpu, instances=(part,))
    return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
