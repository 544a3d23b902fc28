"""The GPUs of this host; the only importer of NVML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HostGpus:
    """What NVML says.

    Attributes
    ----------
    names : tuple of str
        One per GPU, empty where there is none.
    driver : str
        The driver's version, or "".
    why_none : str
        Why there is none, in a reader's words.
    """

    names: tuple[str, ...] = ()
    driver: str = ""
    why_none: str = ""


def find_gpus() -> HostGpus:
    """Ask the driver for this host's NVIDIA GPUs. A host without a driver is normal."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return HostGpus(why_none=f"no NVIDIA driver answers here ({error})")
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = tuple(_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return HostGpus(why_none=f"the NVIDIA driver does not answer ({error})")
    finally:
        pynvml.nvmlShutdown()
    return HostGpus(names=names, driver=driver, why_none="" if names else "it has no NVIDIA GPU")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
