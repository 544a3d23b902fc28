"""The engine: the only place that speaks to Docker, and the only importer of its SDK.

`Engine` is the contract; `DockerEngine` is the real one. Every exception of the SDK becomes one of
ours here, with what to do about it.
"""

from dockml_magic.engine.archives import make_archive
from dockml_magic.engine.builds import build_reference
from dockml_magic.engine.client import DockerEngine, connect
from dockml_magic.engine.contract import (
    ContainerState,
    ContainerStats,
    DiskUsage,
    Engine,
    EngineFacts,
    Exec,
    ImageState,
    NotStartableError,
    Stream,
    remove_container,
    wait_removed,
)
from dockml_magic.engine.endpoints import find_endpoint
from dockml_magic.engine.gpus import GpuRoute, gpu_route

__all__ = [
    "ContainerState",
    "ContainerStats",
    "DiskUsage",
    "DockerEngine",
    "Engine",
    "EngineFacts",
    "Exec",
    "GpuRoute",
    "ImageState",
    "NotStartableError",
    "Stream",
    "build_reference",
    "connect",
    "find_endpoint",
    "gpu_route",
    "make_archive",
    "remove_container",
    "wait_removed",
]
