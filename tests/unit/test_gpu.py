from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dockml_magic.fit import Gpu, MigInstance
from dockml_magic.gpu import HostGpus, find_gpus, visible_gpus

GB = 1024**3


class NVMLError(Exception):
    pass


def refuse(*args: Any) -> Any:
    raise NVMLError("Not Supported")


def nvml(monkeypatch: pytest.MonkeyPatch, names: list[Any], **changes: Any) -> list[str]:
    """Put an NVML in place, with functions of the real one's shape; return the list in which it notes its end.

    A handle is the GPU's index; that of a MIG instance is (index, number). By default the first GPU's
    driver supports nothing that an old one does not.
    """
    ended: list[str] = []
    functions = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: ended.append("shut down"),
        "nvmlSystemGetDriverVersion": lambda: "550.54",
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetName": lambda i: names[i],
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetCudaComputeCapability": lambda i: (9, 0),
        "nvmlDeviceGetMemoryInfo": lambda i: SimpleNamespace(
            total=80 * GB, free=70 * GB, used=10 * GB
        ),
        "nvmlDeviceGetUtilizationRates": lambda i: SimpleNamespace(gpu=30, memory=20),
        "nvmlDeviceGetMigMode": lambda i: [0, 0],
        "nvmlDeviceGetMaxMigDeviceCount": lambda i: 0,
        "nvmlDeviceGetMigDeviceHandleByIndex": refuse,
        **changes,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**functions))
    return ended


def test_several_different_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = nvml(
        monkeypatch,
        ["NVIDIA H200", b"Tesla K80"],
        nvmlDeviceGetCudaComputeCapability=lambda i: [(9, 0), (3, 7)][i],
        nvmlDeviceGetUUID=lambda i: [b"GPU-h", "GPU-k"][i],
    )
    found = find_gpus({})
    assert (found.driver, found.why_none, found.limited_by) == ("550.54", "", "")
    assert found.names == ("NVIDIA H200", "Tesla K80")
    assert found.gpus[0] == Gpu(
        name="NVIDIA H200",
        index=0,
        uuid="GPU-h",
        compute_capability="9.0",
        memory_total=80 * GB,
        memory_free=70 * GB,
        utilisation=30,
    )
    assert (found.gpus[1].index, found.gpus[1].compute_capability) == (1, "3.7")
    assert ended == ["shut down"]


def test_what_a_gpu_does_not_support_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(
        monkeypatch,
        ["Tesla K40"],
        nvmlDeviceGetUUID=refuse,
        nvmlDeviceGetCudaComputeCapability=refuse,
        nvmlDeviceGetMemoryInfo=refuse,
        nvmlDeviceGetUtilizationRates=refuse,
        nvmlDeviceGetMigMode=refuse,
    )
    assert find_gpus({}).gpus == (Gpu(name="Tesla K40"),)


def test_mig_instances_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    def instance(i: int, number: int) -> tuple[int, int]:
        return (i, number) if number in (0, 2) else refuse()

    nvml(
        monkeypatch,
        ["NVIDIA A100"],
        nvmlDeviceGetMigMode=lambda i: [1, 1],
        nvmlDeviceGetMaxMigDeviceCount=lambda i: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=instance,
        nvmlDeviceGetUUID=lambda handle: "GPU-a" if handle == 0 else f"MIG-{handle[1]}",
        nvmlDeviceGetUtilizationRates=refuse,
    )
    gpu = find_gpus({}).gpus[0]
    assert gpu.mig
    assert gpu.instances == (
        MigInstance(index=0, uuid="MIG-0", memory_total=80 * GB, memory_free=70 * GB),
        MigInstance(index=2, uuid="MIG-2", memory_total=80 * GB, memory_free=70 * GB),
    )


def test_a_host_without_a_driver_is_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_loaded() -> None:
        raise NVMLError("Driver Not Loaded")

    nvml(monkeypatch, [], nvmlInit=not_loaded)
    found = find_gpus({})
    assert found.names == ()
    assert found.why_none == "no NVIDIA driver answers here (Driver Not Loaded)"


def test_a_driver_that_fails_is_told_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = nvml(monkeypatch, ["x"], nvmlDeviceGetName=refuse)
    assert "does not answer" in find_gpus({}).why_none
    assert ended == ["shut down"]


def test_a_driver_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, [])
    assert find_gpus({}) == HostGpus(driver="550.54", why_none="it has no NVIDIA GPU")


def test_gpus_that_are_hidden_from_the_notebook_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml(monkeypatch, ["first", "second"])
    found = find_gpus({"CUDA_VISIBLE_DEVICES": "1"})
    assert (found.names, found.limited_by) == (("second",), "CUDA_VISIBLE_DEVICES")
    found = find_gpus({"CUDA_VISIBLE_DEVICES": ""})
    assert found.gpus == ()
    assert found.why_none == "CUDA_VISIBLE_DEVICES='' hides its GPUs"


# --- CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES ------------------------------------------------

PARTS = (MigInstance(index=0, uuid="MIG-aa"), MigInstance(index=1, uuid="MIG-bb"))
GPUS = (
    Gpu(name="first", index=0, uuid="GPU-8932f937"),
    Gpu(name="second", index=1, uuid="GPU-8a55e0b1"),
    Gpu(name="third", index=2, uuid="GPU-c0ffee00", mig=True, instances=PARTS),
)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("0,1,2", ["first", "second", "third"]),
        ("1", ["second"]),
        ("1, 0", ["second", "first"]),
        ("GPU-89", ["first"]),
        ("GPU-c0ffee00,0", ["third", "first"]),
        ("GPU-8", []),  # the beginning of two
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,7,1", ["first"]),  # what is not there ends the list
        ("0,-1,1", ["first"]),
        ("MIG-bb", ["third"]),
    ],
)
def test_cuda_visible_devices(value: str, names: list[str]) -> None:
    shown, limited_by = visible_gpus(GPUS, {"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.name for gpu in shown] == names
    assert limited_by == ("" if len(names) == 3 else "CUDA_VISIBLE_DEVICES")


def test_a_mig_instance_alone_is_shown() -> None:
    [gpu], _ = visible_gpus(GPUS, {"CUDA_VISIBLE_DEVICES": "MIG-bb"})
    assert gpu.instances == PARTS[1:]
    [gpu], _ = visible_gpus(GPUS, {"CUDA_VISIBLE_DEVICES": "MIG-bb,MIG-aa"})
    assert gpu.instances == PARTS[::-1]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("all", ["first", "second", "third"]),
        ("0,1,2", ["first", "second", "third"]),
        ("5,6,7", ["first", "second", "third"]),  # counted anew in a container
        ("none", []),
        ("void", []),
        ("", []),
        ("GPU-8a55e0b1", ["second"]),
        ("2:1", ["third"]),
    ],
)
def test_nvidia_visible_devices(value: str, names: list[str]) -> None:
    shown, limited_by = visible_gpus(GPUS, {"NVIDIA_VISIBLE_DEVICES": value})
    assert [gpu.name for gpu in shown] == names
    assert limited_by == ("" if len(names) == 3 else "NVIDIA_VISIBLE_DEVICES")


def test_without_variables_everything_is_shown() -> None:
    assert visible_gpus(GPUS, {}) == (GPUS, "")
