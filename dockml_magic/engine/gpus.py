"""How an engine gives GPUs to containers: by device requests, by CDI, or by the nvidia runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dockml_magic.engine.contract import EngineFacts
from dockml_magic.options import GpuRequest

GpuRoute = Literal["device-requests", "cdi", "runtime"]


def gpu_route(facts: EngineFacts) -> GpuRoute:
    """Return how this engine gives GPUs to containers.

    CDI where the engine says that it has found NVIDIA's devices, as then nothing can be missing. The nvidia
    runtime where it is registered and the hook is not installed (a snap's engine does not see it). Else
    device requests, which is what `docker run --gpus` sends, and whose errors say what is missing.
    """
    if facts.cdi_gpus:
        return "cdi"
    if "nvidia" in facts.runtimes and facts.gpu_hook is False:
        return "runtime"
    return "device-requests"


def ask_for_gpus(request: GpuRequest, route: GpuRoute) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a request adds to the host configuration and to the container's environment."""
    devices = request.device_ids or (
        ("all",) if request.count < 0 else tuple(map(str, range(request.count)))
    )
    if route == "runtime":
        return {"runtime": "nvidia"}, {"NVIDIA_VISIBLE_DEVICES": ",".join(devices)}
    if route == "cdi":
        ids = [f"{_CDI_GPU}={device}" for device in devices]
        return {"device_requests": [{"Driver": "cdi", "DeviceIDs": ids}]}, {}
    return {
        "device_requests": [
            {
                "Driver": "",
                "Count": request.count,
                "DeviceIDs": list(request.device_ids),
                "Capabilities": [["gpu"]],
                "Options": {},
            }
        ]
    }, {}


_CDI_GPU = "nvidia.com/gpu"
"""The kind of NVIDIA's devices in CDI files (https://github.com/cncf-tags/container-device-interface)."""

_GPU_HOOKS = ("nvidia-container-runtime-hook", "nvidia-cdi-hook")
"""What an engine looks for on its PATH as it starts (moby, daemon/nvidia_linux.go)."""


def find_cdi_gpus(info: Mapping[str, Any], *, look: bool) -> tuple[str, ...]:
    """Return the NVIDIA GPUs that an engine knows by CDI.

    Engines from 28.2 on list what they found. Older ones say only in which folders they look, where CDI is
    switched on; with `look` so do we.
    """
    listed = [device.get("ID", "") for device in info.get("DiscoveredDevices") or ()]
    if listed or not look:
        return tuple(name for name in listed if name.startswith(_CDI_GPU))
    for folder in info.get("CDISpecDirs") or ():
        for path in sorted(Path(folder).glob("*.*")):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.suffix in (".yaml", ".json") and _CDI_GPU in path.read_text():
                    return (f"{_CDI_GPU}=all",)
    return ()


def has_gpu_hook() -> bool:
    """Tell whether an engine of this machine finds NVIDIA's hook."""
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    return any(shutil.which(hook, path=path) for hook in _GPU_HOOKS)
