from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dockml_magic.gpu import HostGpus, find_gpus


class NVMLError(Exception):
    pass


def nvml(monkeypatch: pytest.MonkeyPatch, names: list[Any], **changes: Any) -> list[str]:
    """Put an NVML in place; return the list in which it notes that it was shut down."""
    ended: list[str] = []
    functions = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: ended.append("shut down"),
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetName": lambda i: names[i],
        "nvmlSystemGetDriverVersion": lambda: "550.54",
        **changes,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**functions))
    return ended


def refuse(*args: Any) -> Any:
    raise NVMLError("Driver Not Loaded")


def test_gpus_and_driver_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = nvml(monkeypatch, ["NVIDIA H200", b"Tesla K80"])
    assert find_gpus() == HostGpus(names=("NVIDIA H200", "Tesla K80"), driver="550.54")
    assert ended == ["shut down"]


def test_a_host_without_a_driver_is_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, [], nvmlInit=refuse)
    found = find_gpus()
    assert found.names == ()
    assert found.why_none == "no NVIDIA driver answers here (Driver Not Loaded)"


def test_a_driver_that_fails_is_told_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = nvml(monkeypatch, ["x"], nvmlDeviceGetName=refuse)
    assert "does not answer" in find_gpus().why_none
    assert ended == ["shut down"]


def test_a_driver_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, [])
    assert find_gpus() == HostGpus(driver="550.54", why_none="it has no NVIDIA GPU")
