from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

import dockml_magic
from dockml_magic.fit import (
    VERDICTS,
    Gpu,
    ImageFacts,
    MigInstance,
    ReferenceFacts,
    capability_of,
    image_facts,
    judge,
    parse_nvidia_smi,
    pick,
    requested,
)
from dockml_magic.options import GpuRequest

RESOURCES = Path(dockml_magic.__file__).parent / "resources"
TABLES = ("cuda_arch", "cuda_driver", "framework_arch", "gpu_arch", "gpu_reports")


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RESOURCES / f"{name}.csv").read_text().splitlines()))


# --- the table of cases ---------------------------------------------------------------------------
#
# Verdicts are reasoned by hand from the rules and the reports; none was copied from what the code said.

FITS, SLOW, UNKNOWN, FAILS = VERDICTS

NEW = "580.65.06"
"""A driver that runs every CUDA up to 13.0, PTX included."""

GTX750 = "NVIDIA GeForce GTX 750 Ti"  # Maxwell 5.0
M940 = "GeForce 940M"  # Maxwell 5.0
K80 = "Tesla K80"  # Kepler 3.7
TITANX = "NVIDIA GeForce GTX TITAN X"  # Maxwell 5.2
P100 = "Tesla P100-PCIE-16GB"  # Pascal 6.0
GTX1080 = "NVIDIA GeForce GTX 1080 Ti"  # Pascal 6.1
V100 = "Tesla V100-SXM2-16GB"  # Volta 7.0
T4 = "Tesla T4"  # Turing 7.5
RTX2080 = "NVIDIA GeForce RTX 2080 Ti"  # Turing 7.5
A100 = "NVIDIA A100-SXM4-40GB"  # Ampere 8.0
RTX3080 = "NVIDIA GeForce RTX 3080"  # Ampere 8.6
RTX3090 = "NVIDIA GeForce RTX 3090"  # Ampere 8.6
RTX4090 = "NVIDIA GeForce RTX 4090"  # Ada 8.9
L40 = "NVIDIA L40"  # Ada 8.9
H100 = "NVIDIA H100 80GB HBM3"  # Hopper 9.0
B200 = "NVIDIA B200"  # Blackwell 10.0
RTX5080 = "NVIDIA GeForce RTX 5080"  # Blackwell 12.0
RTX5090 = "NVIDIA GeForce RTX 5090"  # Blackwell 12.0
GB10 = "NVIDIA GB10"  # Blackwell 12.1


def tf(tag: str) -> ImageFacts:
    return image_facts(f"tensorflow/tensorflow:{tag}")


def torch(version: str, cuda: str, cudnn: str = "8") -> ImageFacts:
    return image_facts(f"pytorch/pytorch:{version}-cuda{cuda}-cudnn{cudnn}-runtime")


def ngc(name: str, version: str = "", cuda: str = "") -> ImageFacts:
    """An image of NVIDIA's, whose framework and CUDA the catalogue knows and its tag does not say."""
    return ReferenceFacts(
        reference=f"nvcr.io/nvidia/{name}",
        framework=name.partition(":")[0],
        version=version,
        cuda=cuda,
    )


def tf1(month: str, cuda: str) -> ImageFacts:
    return ngc(f"tensorflow:{month}-tf1-py3", "1.15.5", cuda)


def other(framework: str, version: str, cuda: str) -> ImageFacts:
    return ReferenceFacts(reference="me/mine:1", framework=framework, version=version, cuda=cuda)


NGC = "ngc-tf1.15"
NGC_2212 = "nvcr.io/nvidia/tensorflow:22.12-tf1-py3"

CASES: dict[str, tuple[ImageFacts, str, str, str, str]] = {
    # TensorFlow 1 on GPUs of its time: 7.0 SASS and PTX 7.0 (rules of the notes: Pascal, Volta, Turing fine)
    "tf1.4 Pascal P100": (tf("1.4.0-gpu-py3"), P100, NEW, FITS, ""),
    "tf1.4 Pascal 1080 Ti": (tf("1.4.0-gpu-py3"), GTX1080, NEW, FITS, ""),
    # CUDA 8 knows no Volta: PTX of 6.1 is compiled
    "tf1.4 V100, tensorflow#14701": (tf("1.4.0-gpu-py3"), V100, NEW, SLOW, "tf1.5-gpu"),
    "tf1.4 Turing": (tf("1.4.0-gpu-py3"), T4, NEW, SLOW, "tf1.5-gpu"),
    "tf1.5 V100": (tf("1.5.0-gpu-py3"), V100, NEW, FITS, ""),
    "tf1.10 K80": (tf("1.10.0-gpu-py3"), K80, "470.57.02", FITS, ""),
    "tf1.10 GTX 1080 Ti": (tf("1.10.0-gpu-py3"), GTX1080, NEW, FITS, ""),
    "tf1.10 P100 (6.0)": (tf("1.10.0-gpu-py3"), P100, "384.81", FITS, ""),
    "tf1.10 V100": (tf("1.10.0-gpu-py3"), V100, NEW, FITS, ""),
    "tf1.10 Turing runs the 7.0 cubin": (tf("1.10.0-gpu-py3"), RTX2080, NEW, FITS, ""),
    "tf1.15 T4": (tf("1.15.5-gpu-py3"), T4, NEW, FITS, ""),
    "tf1.13 TITAN X (5.2)": (tf("1.13.1-gpu-py3"), TITANX, NEW, FITS, ""),
    # Maxwell 5.0 has no SASS there; what they ran was compiled from older PTX, for minutes
    "tf1.8 940M, tensorflow#18652": (tf("1.8.0-gpu-py3"), M940, NEW, SLOW, ""),
    "tf2.0 850M (5.0), tensorflow#30256": (tf("2.0.0-gpu-py3"), GTX750, NEW, SLOW, "tf2.5-gpu"),
    # TensorFlow 1 on Ampere and newer
    "tf1.12 RTX 30, tensorflow#42958": (tf("1.12.0-gpu-py3"), RTX3080, NEW, FAILS, NGC),
    "tf1.10 RTX 3090 (the known trap)": (tf("1.10.0-gpu-py3"), RTX3090, NEW, FAILS, NGC),
    "tf1.4 RTX 3090": (tf("1.4.0-gpu-py3"), RTX3090, NEW, FAILS, NGC),
    "tf1.13 RTX 3090, saliency#25: wrong output": (tf("1.13.1-gpu"), RTX3090, NEW, FAILS, NGC),
    "tf1.14 RTX 3090, tensorflow#44200: 30-90 min": (tf("1.14.0-gpu"), RTX3090, NEW, SLOW, NGC),
    "tf1.15 RTX 3090, saliency#25: hangs": (tf("1.15.0-gpu-py3"), RTX3090, NEW, FAILS, NGC),
    "tf1.15 A100": (tf("1.15.0-gpu-py3"), A100, NEW, FAILS, NGC),
    "tf1.15 RTX 4090": (tf("1.15.0-gpu-py3"), RTX4090, NEW, FAILS, NGC),
    # a driver of the 470 branch runs CUDA 11.8 by minor-version compatibility, and not 12.1
    "tf1.10 RTX 3090, old driver: an older month": (
        tf("1.10.0-gpu-py3"), RTX3090, "470.57.02", FAILS, NGC_2212),
    "tf1.15 RTX 5090: no TensorFlow 1 at all": (tf("1.15.0-gpu-py3"), RTX5090, NEW, FAILS, "ngc-tf2"),
    "NVIDIA's TF 1 of 2018 (CUDA 10) on RTX 3090": (
        ngc("tensorflow:18.10-py3", "1.10.0", "10.0"), RTX3090, NEW, FAILS, NGC),
    "NVIDIA's TF 1 of 2018 on V100": (
        ngc("tensorflow:18.10-py3", "1.10.0", "10.0"), V100, NEW, FITS, ""),
    # the cure: NVIDIA's TensorFlow 1
    "saliency#25, cured by nvidia-tensorflow": (tf1("20.12", "11.1"), RTX3090, NEW, FITS, ""),
    "ngc-tf1 21.11 A100": (tf1("21.11", "11.4"), A100, NEW, FITS, ""),
    "ngc-tf1 22.12 RTX 3090": (tf1("22.12", "11.8"), RTX3090, NEW, FITS, ""),
    "ngc-tf1 22.12 RTX 3090, driver 470": (tf1("22.12", "11.8"), RTX3090, "470.57.02", FITS, ""),
    "ngc-tf1 22.05 RTX 4090, NVIDIA/tensorflow#96": (tf1("22.05", "11.6"), RTX4090, NEW, UNKNOWN, NGC),
    "ngc-tf1 22.10 RTX 4090, NVIDIA/tensorflow#96": (tf1("22.10", "11.8"), RTX4090, NEW, FITS, ""),
    "ngc-tf1 23.03 H100, NVIDIA/tensorflow#116": (tf1("23.03", "12.1"), H100, NEW, UNKNOWN, ""),
    "ngc-tf1 23.03 V100: README lists 8.0 and 9.0": (tf1("23.03", "12.1"), V100, NEW, UNKNOWN, ""),
    "ngc-tf1 23.03 RTX 5090": (tf1("23.03", "12.1"), RTX5090, NEW, FAILS, "ngc-tf2"),
    # TensorFlow 2
    "tf2.1 RTX 3090, tensorflow#48069": (tf("2.1.0-gpu-py3"), RTX3090, NEW, SLOW, "tf2.4-gpu"),
    "tf2.1 RTX 3060 Ti, tensorflow#45635": (
        tf("2.1.0-gpu"), "NVIDIA GeForce RTX 3060 Ti", NEW, SLOW, "tf2.4-gpu"),
    "tf2.3 RTX 3080, tensorflow#48450": (tf("2.3.0-gpu"), RTX3080, NEW, SLOW, "tf2.4-gpu"),
    "tf2.3 RTX 30, tensorflow#45089": (tf("2.3.1-gpu"), RTX3090, NEW, SLOW, "tf2.4-gpu"),
    "tf2.3 RTX 4090, NVIDIA/tensorflow#96": (tf("2.3.0-gpu"), RTX4090, NEW, SLOW, "tf2.4-gpu"),
    "tf2.4 sm_86 runs the 8.0 cubin, tensorflow#48069": (tf("2.4.1-gpu"), RTX3090, NEW, FITS, ""),
    "tf2.4 A100": (tf("2.4.1-gpu"), A100, NEW, FITS, ""),
    "tf2.4 GTX 750 Ti (5.0): no SASS, PTX too new": (tf("2.4.1-gpu"), GTX750, NEW, FAILS, "tf2.5-gpu"),
    "tf2.6 T4": (tf("2.6.0-gpu"), T4, NEW, FITS, ""),
    "tf2.8 RTX 3090: PTX 8.0": (tf("2.8.0-gpu"), RTX3090, NEW, SLOW, "tf2.4-gpu"),
    # PTX needs a driver as new as the toolkit (11.2: 460.27), minor-version compatibility is not enough
    "tf2.8 RTX 3090, driver of minor compatibility": (
        tf("2.8.0-gpu"), RTX3090, "455.23", FAILS, "tf2.4-gpu"),
    "tf2.8 T4, driver of minor compatibility": (tf("2.8.0-gpu"), T4, "450.80.02", FITS, ""),
    "tf2.12 H100, tensorflow#60739": (tf("2.12.0-gpu"), H100, NEW, SLOW, "ngc-tf2"),
    "tf2.13 L40, tensorflow#60739": (tf("2.13.0-gpu"), L40, NEW, SLOW, "tf2.14-gpu"),
    "tf2.13 K80": (tf("2.13.0-gpu"), K80, "470.57.02", FITS, ""),
    "tf2.14 K80: 5.0 is the lowest": (tf("2.14.0-gpu"), K80, "470.57.02", FAILS, "tf2.13-gpu"),
    "tf2.14 RTX 3090": (tf("2.14.0-gpu"), RTX3090, NEW, FITS, ""),
    "tf2.15 found or not, tensorflow#62412": (tf("2.15.0-gpu"), RTX3090, NEW, UNKNOWN, "tf2.16-gpu"),
    "tf2.15 on H100, tensorflow#62320, and #62412": (tf("2.15.0-gpu"), H100, NEW, UNKNOWN, "ngc-tf2"),
    "tf2.16 H100: PTX 9.0": (tf("2.16.1-gpu"), H100, NEW, SLOW, "ngc-tf2"),
    "tf2.17 RTX 4090 has 8.9": (tf("2.17.0-gpu"), RTX4090, NEW, FITS, ""),
    "tf2.17 GTX 750 Ti: 5.0 dropped": (tf("2.17.0-gpu"), GTX750, NEW, FAILS, "tf2.16-gpu"),
    "tf2.18 finds no GPU, tensorflow#81344": (tf("2.18.0-gpu"), RTX4090, NEW, FAILS, "tf2.17-gpu"),
    "tf2.19 finds no GPU, tensorflow#85689": (tf("2.19.0-gpu"), A100, NEW, FAILS, "tf2.17-gpu"),
    "tf2.19 jupyter, tensorflow/build#217": (
        tf("2.19.0-gpu-jupyter"), T4, NEW, FAILS, "tf2.17-gpu"),
    "tf2.20 finds no GPU, tensorflow#94593": (tf("2.20.0-gpu"), V100, NEW, FAILS, "tf2.17-gpu"),
    "tf2.20, tensorflow/build#221": (tf("2.20.0-gpu"), H100, NEW, FAILS, "ngc-tf2"),
    "tf2.21 may find it": (tf("2.21.0-gpu"), RTX4090, NEW, UNKNOWN, "tf2.17-gpu"),
    "tf2.19 RTX 5080, tensorflow#97387": (tf("2.19.0-gpu"), RTX5080, NEW, FAILS, "ngc-tf2"),
    "tf2.20 RTX 50, tensorflow#99592": (tf("2.20.0-gpu"), RTX5090, NEW, FAILS, "ngc-tf2"),
    "tf2.16 RTX 5080, tensorflow#101746": (tf("2.16.2-gpu"), RTX5080, NEW, FAILS, "ngc-tf2"),
    "tf2.17 B200: not reported": (tf("2.17.0-gpu"), B200, NEW, UNKNOWN, "ngc-tf2"),
    "NVIDIA's tf2 of 25.02 on RTX 5080, tensorflow#99592": (
        ngc("tensorflow:25.02-tf2-py3", "2.17", "12.8"), RTX5080, NEW, FITS, ""),
    "NVIDIA's tf2 of 25.02 on H200, NVIDIA/tensorflow#116": (
        ngc("tensorflow:25.02-tf2-py3", "2.17", "12.8"), "NVIDIA H200", NEW, FITS, ""),
    "latest-gpu says no version": (tf("latest-gpu"), RTX4090, NEW, UNKNOWN, ""),
    # PyTorch: SASS, and PTX only up to 1.5
    "torch1.1 cu100 RTX 2080 Ti": (torch("1.1.0", "10.0", "7.5"), RTX2080, NEW, FITS, ""),
    "torch1.1 cu100 V100": (torch("1.1.0", "10.0", "7.5"), V100, "410.48", FITS, ""),
    "torch1.1 cu90 RTX 2080 Ti, pytorch#20860": (
        torch("1.1.0", "9.0", "7"), RTX2080, NEW, FAILS, "torch1.1-cu100"),
    "torch0.4 cu90 RTX 2080 Ti, pytorch#16034": (
        image_facts("pytorch/pytorch:0.4.1-cuda9-cudnn7-runtime"), RTX2080, NEW, FAILS, "torch1.0-cu100"),
    "torch1.0 cu90 RTX 2080 Ti, pytorch#16034": (
        torch("1.0.0", "9.0", "7"), RTX2080, NEW, FAILS, "torch1.0-cu100"),
    "torch1.2 cu100 RTX 3080, pytorch#51351": (
        torch("1.2", "10.0", "7"), RTX3080, NEW, FAILS, "torch1.7-cu110"),
    "torch1.4 cu101 RTX 30, deepsvg#14": (torch("1.4", "10.1", "7"), RTX3090, NEW, FAILS, "torch1.7-cu110"),
    "torch1.6 cu101 T4 runs the 7.0 cubin": (torch("1.6.0", "10.1", "7"), T4, NEW, FITS, ""),
    "torch1.7 cu110 RTX 3090 runs the 8.0 cubin": (torch("1.7.0", "11.0"), RTX3090, NEW, FITS, ""),
    "torch1.8 cu111 GTX 1080 Ti: 5.0 is another major": (
        torch("1.8.0", "11.1"), GTX1080, NEW, FAILS, "torch1.8-cu102"),
    "torch1.9 cu102 RTX 3090, pytorch#45028": (
        torch("1.9.0", "10.2", "7"), RTX3090, NEW, FAILS, "torch1.9-cu111"),
    "torch1.12 cu102 A100, pytorch#45028": (
        torch("1.12.0", "10.2", "7"), A100, NEW, FAILS, "torch1.12-cu113"),
    "torch1.10 cu102 T4 runs the 7.0 cubin": (torch("1.10.0", "10.2", "7"), T4, NEW, FITS, ""),
    "torch1.13 cu117 H100": (torch("1.13.1", "11.7"), H100, NEW, FAILS, "torch2.1-cu118"),
    "torch1.13 cu116 RTX 4090 runs the 8.6 cubin": (torch("1.13.1", "11.6"), RTX4090, NEW, FITS, ""),
    "torch2.0 cu117 H100": (torch("2.0.1", "11.7"), H100, NEW, FAILS, "torch2.1-cu118"),
    "torch2.1 cu121 H100": (torch("2.1.0", "12.1"), H100, NEW, FITS, ""),
    "torch2.1 cu121 K80": (torch("2.1.0", "12.1"), K80, "530.30.02", FAILS, "torch2.1-cu118"),
    "torch2.5 cu121 RTX 5070 Ti, pytorch#153928": (
        torch("2.5.1", "12.1", "9"), "NVIDIA GeForce RTX 5070 Ti", NEW, FAILS, "torch2.7-cu128"),
    "torch2.6 cu126 RTX 5090": (torch("2.6.0", "12.6", "9"), RTX5090, NEW, FAILS, "torch2.7-cu128"),
    "torch2.7 cu128 RTX 5090": (torch("2.7.0", "12.8", "9"), RTX5090, NEW, FITS, ""),
    "torch2.7 cu128 GB10 runs the 12.0 cubin": (torch("2.7.0", "12.8", "9"), GB10, NEW, FITS, ""),
    "torch2.7 cu128 B200": (torch("2.7.0", "12.8", "9"), B200, NEW, FITS, ""),
    "torch2.8 cu128 GTX 1080 Ti, ComfyUI-Nvidia-Docker#61": (
        torch("2.8.0", "12.8", "9"), GTX1080, NEW, FAILS, "torch2.8-cu126"),
    "torch2.8 cu128 TITAN X": (torch("2.8.0", "12.8", "9"), TITANX, NEW, FAILS, "torch2.8-cu126"),
    "torch2.8 cu126 GTX 1080 Ti runs 6.0": (torch("2.8.0", "12.6", "9"), GTX1080, NEW, FITS, ""),
    "torch2.9 cu130 V100: CUDA 13 dropped Volta": (
        torch("2.9.0", "13.0", "9"), V100, NEW, FAILS, "torch2.9-cu126"),
    "torch without a known CUDA": (other("pytorch", "2.1.0", ""), RTX3090, NEW, UNKNOWN, "torch2.1-cu118"),
    # drivers
    "CUDA 10.0 has no minor compatibility": (
        torch("1.1.0", "10.0", "7.5"), GTX1080, "390.46", FAILS, ""),
    "CUDA 9.0 on the first driver that has it": (tf("1.10.0-gpu-py3"), GTX1080, "384.81", FITS, ""),
    "CUDA 9.0 on an older driver": (tf("1.10.0-gpu-py3"), GTX1080, "375.26", FAILS, "tf1.4-gpu"),
    "CUDA 11.3 by minor compatibility": (torch("1.12.0", "11.3"), RTX3090, "455.23", FITS, ""),
    "CUDA 12.4 by minor compatibility": (torch("2.4.0", "12.4", "9"), RTX3090, "525.60.13", FITS, ""),
    "CUDA 12.1 on a driver for 11": (
        torch("2.1.0", "12.1"), RTX3090, "470.57.02", FAILS, "torch2.1-cu118"),
    "nvidia-container-toolkit#152: CUDA 12.8, driver 525": (
        torch("2.7.0", "12.8", "9"), RTX3090, "525.60.13", FITS, ""),
    "CUDA 13 on a driver for 12": (
        torch("2.9.0", "13.0", "9"), RTX4090, "570.26", FAILS, "torch2.9-cu126"),
    "a data-centre GPU may bridge it": (torch("2.1.0", "12.1"), A100, "470.57.02", UNKNOWN, "torch2.1-cu118"),
    "no bridge to a GPU that CUDA 13 dropped": (
        torch("2.9.0", "13.0", "9"), V100, "550.54.14", FAILS, "torch2.9-cu126"),
    "no bridge before CUDA 10": (tf("1.10.0-gpu-py3"), V100, "375.26", FAILS, ""),
    "a new driver runs an old CUDA": (tf("1.4.0-gpu-py3"), P100, "595.45.04", FITS, ""),
    "no driver version: taken for new": (torch("2.1.0", "12.1"), RTX3090, "", FITS, ""),
    # frameworks of which only the CUDA is known
    "mxnet cu101 GTX 1080 Ti": (other("mxnet", "1.5.0", "10.1"), GTX1080, NEW, FITS, ""),
    "mxnet cu92 T4 runs 7.0": (other("mxnet", "1.5.0", "9.2"), T4, NEW, FITS, ""),
    "mxnet cu101 RTX 3090": (other("mxnet", "1.5.0", "10.1"), RTX3090, NEW, UNKNOWN, ""),
    "paddle cu112 RTX 3090": (other("paddle", "2.2.2", "11.2"), RTX3090, NEW, FITS, ""),
    "paddle cu112 RTX 4090 runs 8.6": (other("paddle", "2.2.2", "11.2"), RTX4090, NEW, FITS, ""),
    "anything on CUDA 13 and Pascal": (other("", "", "13.0"), GTX1080, NEW, FAILS, ""),
    "anything on CUDA 12 and Kepler": (other("", "", "12.4"), K80, "550.54.14", FAILS, ""),
    "a CUDA newer than our table": (other("pytorch", "2.13.0", "13.3"), RTX4090, "600.10", FITS, ""),
    "nothing known": (other("", "", ""), RTX3090, NEW, UNKNOWN, ""),
    "rapids on Pascal": (other("rapids", "25.02", "12.8"), GTX1080, NEW, FAILS, ""),
    "rapids on Volta": (other("rapids", "25.02", "12.8"), V100, NEW, FITS, ""),
    "NVIDIA's pytorch with Blackwell": (ngc("pytorch:25.01-py3", "2.6.0a0", "12.8"), RTX5090, NEW, FITS, ""),
    "NVIDIA's pytorch before Blackwell": (
        ngc("pytorch:24.07-py3", "2.4.0a0", "12.5"), RTX5090, NEW, UNKNOWN, ""),
    "a GPU nobody knows": (torch("2.1.0", "12.1"), "NVIDIA X1 Prototype", NEW, UNKNOWN, ""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("image", "gpu", "driver", "verdict", "instead"), CASES.values(), ids=CASES
)
def test_the_fit_of(image: ImageFacts, gpu: str, driver: str, verdict: str, instead: str) -> None:
    fit = judge(image, [Gpu(name=gpu)], driver)
    assert (fit.verdict, fit.instead) == (verdict, instead), fit


@pytest.mark.parametrize(
    ("image", "gpu", "driver", "verdict", "instead"), CASES.values(), ids=CASES
)
def test_a_fit_is_one_sentence_with_a_reason(
    image: ImageFacts, gpu: str, driver: str, verdict: str, instead: str
) -> None:
    fit = judge(image, [Gpu(name=gpu)], driver)
    assert fit.reason.endswith((".", "'."))
    assert not re.search(r"\. [A-Z]", fit.reason)
    assert instead in fit.cure
    assert "None" not in fit.reason + fit.cure


def test_what_no_driver_cures_is_not_blamed_on_the_driver() -> None:
    fit = judge(torch("2.9.0", "13.0", "9"), [Gpu(name=GTX1080)], "550.54.14")
    assert "none for this one (6.1)" in fit.reason
    assert "driver" not in fit.reason + fit.cure


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 80


# --- several GPUs ---------------------------------------------------------------------------------


def gpu(name: str, index: int = 0, free: int = 0, **facts: object) -> Gpu:
    return replace(
        Gpu(name=name, index=index, uuid=f"GPU-{index}", memory_free=free * 1024**3), **facts
    )


def test_the_best_of_different_gpus_counts_and_is_named() -> None:
    fit = judge(tf("2.17.0-gpu"), [gpu(K80), gpu(RTX4090, 1), gpu(RTX5090, 2)], NEW)
    assert fit.verdict == FITS
    assert fit.gpu == gpu(RTX4090, 1)
    assert [one.verdict for one in fit.each] == [FAILS, FITS, FAILS]
    assert fit.lines("tf2.17-gpu") == [
        "GPU 0 (Tesla K80): will not run; GPU 2 (NVIDIA GeForce RTX 5090): will not run. "
        "Best on GPU 1 (NVIDIA GeForce RTX 4090), which --gpus device=1 asks for."
    ]


def test_nothing_is_told_where_all_is_well() -> None:
    assert judge(tf("2.17.0-gpu"), [gpu(RTX4090), gpu(A100, 1)], NEW).lines("tf2.17-gpu") == []


def test_what_is_told_is_the_verdict_and_the_cure() -> None:
    assert judge(tf("1.10.0-gpu-py3"), [gpu(RTX3090)], NEW).lines("tf1.10-gpu") == [
        "tf1.10-gpu on GPU 0 (NVIDIA GeForce RTX 3090): will not run. TensorFlow 1.10.0: it does "
        "not work on GPUs newer than Turing, whose code the cuBLAS and cuDNN of its CUDA lack.",
        "Use ngc-tf1.15. It is TensorFlow 1.15, with tf.contrib, by NVIDIA.",
    ]


def test_a_verdict_from_memory_says_so() -> None:
    fit = judge(tf("2.3.0-gpu"), [gpu(RTX3090)], NEW)
    assert fit.sure == "memory"
    assert "(From memory, without a source.)" in fit.lines("tf2.3-gpu")[0]


def test_an_image_for_the_cpu_fits_everywhere() -> None:
    assert judge(replace(tf("1.10.0-py3"), gpu=False), [], "").verdict == FITS


def test_without_a_gpu_nothing_runs() -> None:
    fit = judge(tf("2.17.0-gpu"), [], "")
    assert (fit.verdict, fit.gpu, fit.each) == (FAILS, None, ())


def test_what_the_driver_says_of_a_gpu_counts_before_its_name() -> None:
    odd = Gpu(name="Graphics Device", compute_capability="8.6")
    assert judge(torch("1.7.0", "11.0"), [odd], NEW).verdict == FITS


# --- MIG and --gpus auto --------------------------------------------------------------------------

PARTS = (
    MigInstance(index=0, uuid="MIG-a", memory_free=5 * 1024**3),
    MigInstance(index=1, uuid="MIG-b", memory_free=10 * 1024**3),
)


def test_a_gpu_in_mig_mode_needs_instances() -> None:
    fit = judge(torch("2.1.0", "12.1"), [gpu(A100, mig=True)], NEW)
    assert fit.verdict == FAILS
    assert "instances" in fit.cure
    assert (
        judge(torch("2.1.0", "12.1"), [gpu(A100, mig=True, instances=PARTS)], NEW).verdict == FITS
    )


@pytest.mark.parametrize(
    ("gpus", "device"),
    [
        ([gpu(RTX3090, 0, 10), gpu(RTX3090, 1, 20)], "GPU-1"),
        ([gpu(RTX3090, 0, 20, utilisation=90), gpu(RTX3090, 1, 20, utilisation=5)], "GPU-1"),
        ([gpu(RTX3090, 0, 20), gpu(K80, 1, 24)], "GPU-0"),
        ([gpu(RTX3090, 0, 20), gpu(A100, 1, 30, mig=True, instances=PARTS)], "GPU-0"),
        ([gpu(RTX3090, 0, 8), gpu(A100, 1, 30, mig=True, instances=PARTS)], "MIG-b"),
        ([gpu(RTX3090, 0, 8, uuid="")], "0"),
    ],
    ids=["memory", "work", "fit", "whole", "part", "without uuid"],
)
def test_auto_takes_the_freest_gpu_that_fits(gpus: list[Gpu], device: str) -> None:
    picked = pick(torch("2.1.0", "12.1"), gpus, NEW)
    assert picked is not None
    assert picked.device == device


def test_auto_takes_a_slow_one_only_where_none_fits_at_once() -> None:
    slow, fast = gpu(RTX3090, 0, 24), gpu(V100, 1, 4)
    picked = pick(tf("2.3.0-gpu"), [slow, fast], NEW)
    assert picked is not None
    assert picked.device == "GPU-1"
    picked = pick(tf("2.3.0-gpu"), [slow], NEW)
    assert picked is not None
    assert picked.device == "GPU-0"


def test_auto_takes_none_where_none_fits() -> None:
    assert pick(tf("1.10.0-gpu-py3"), [gpu(RTX3090)], NEW) is None
    assert pick(tf("1.10.0-gpu-py3"), [], NEW) is None


def test_auto_says_what_it_took() -> None:
    picked = pick(torch("2.1.0", "12.1"), [gpu(RTX3090, 1, 20, utilisation=5)], NEW)
    assert picked is not None
    assert picked.description == "GPU 1 (NVIDIA GeForce RTX 3090), 20.0 GB free, 5 % at work"


@pytest.mark.parametrize(
    ("request_", "indices"),
    [
        (GpuRequest(count=-1), [0, 1, 2]),
        (GpuRequest(count=2), [0, 1]),
        (GpuRequest(device_ids=("2", "0")), [2, 0]),
        (GpuRequest(device_ids=("GPU-1",)), [1]),
        (GpuRequest(device_ids=("2:0",)), [2]),
        (GpuRequest(device_ids=("MIG-b",)), [2]),
        (GpuRequest(device_ids=("7",)), []),
    ],
)
def test_a_request_means_these_gpus(request_: GpuRequest, indices: list[int]) -> None:
    gpus = [gpu(K80), gpu(RTX3090, 1), gpu(A100, 2, mig=True, instances=PARTS)]
    assert [one.index for one in requested(request_, gpus)] == indices


# --- what an image is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "facts"),
    [
        ("tensorflow/tensorflow:1.10.0-gpu-py3", ("tensorflow", "1.10.0", "")),
        ("docker.io/tensorflow/tensorflow:2.17.0-gpu", ("tensorflow", "2.17.0", "")),
        ("tensorflow/tensorflow:latest-gpu", ("tensorflow", "", "")),
        ("tensorflow/tensorflow", ("tensorflow", "", "")),
        ("pytorch/pytorch:1.1.0-cuda10.0-cudnn7.5-runtime", ("pytorch", "1.1.0", "10.0")),
        ("pytorch/pytorch:0.4_cuda9_cudnn7", ("pytorch", "0.4", "9.0")),
        ("cnstark/pytorch:1.13.1-py3.9.12-cuda11.7.1-ubuntu20.04", ("pytorch", "1.13.1", "11.7")),
        ("mxnet/python:1.4.1_gpu_cu100_py2", ("mxnet", "1.4.1", "10.0")),
        ("mxnet/python:1.4.1_gpu_cu92", ("mxnet", "1.4.1", "9.2")),
        ("paddlepaddle/paddle:2.2.2-gpu-cuda11.2-cudnn8", ("paddle", "2.2.2", "11.2")),
        ("rapidsai/base:25.12-cuda12-py3.12", ("rapids", "25.12", "12.0")),
        ("nvcr.io/nvidia/tensorflow:22.12-tf1-py3", ("tensorflow", "", "")),
        ("me/mine:1.0", ("", "1.0", "")),
        ("localhost:5000/mine@sha256:" + 64 * "0", ("", "", "")),
    ],
)
def test_a_reference_says(reference: str, facts: tuple[str, str, str]) -> None:
    found = image_facts(reference)
    assert (found.framework, found.version, found.cuda) == facts
    assert found.reference == reference


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", "8.6"),
        ("NVIDIA RTX 6000 Ada Generation", "8.9"),
        ("Quadro RTX 6000", "7.5"),
        ("NVIDIA L4", "8.9"),
        ("NVIDIA L40S", "8.9"),
        ("NVIDIA A100 80GB PCIe", "8.0"),
        ("NVIDIA A10G", "8.6"),
        ("NVIDIA GH200 480GB", "9.0"),
        ("GeForce GTX TITAN X", "5.2"),
        ("NVIDIA TITAN X (Pascal)", "6.1"),
        ("NVIDIA TITAN V", "7.0"),
        ("Quadro M2000M", "5.0"),
        ("A100D something", ""),
    ],
)
def test_a_gpus_name_says(name: str, capability: str) -> None:
    assert capability_of(name) == capability


# --- nvidia-smi -----------------------------------------------------------------------------------


def test_nvidia_smi_is_read() -> None:
    text = (
        "NVIDIA A100-SXM4-40GB, 40960 MiB, 40000 MiB, 550.54.14, GPU-aa, 8.0\n"
        "Tesla T4, 15360 MiB, 100 MiB, 550.54.14, GPU-bb, 7.5\n"
    )
    gpus, driver = parse_nvidia_smi(text)
    assert driver == "550.54.14"
    assert gpus[1] == Gpu(
        name="Tesla T4",
        index=1,
        uuid="GPU-bb",
        compute_capability="7.5",
        memory_total=15360 * 1024**2,
        memory_free=100 * 1024**2,
    )


def test_an_old_nvidia_smi_that_knows_no_compute_capability_is_read() -> None:
    text = (
        'Field "compute_cap" is not a valid field to query.\n\n'
        "Tesla K80, 11441 MiB, [N/A], 450.80.02, GPU-cc\n"
    )
    gpus, driver = parse_nvidia_smi(text)
    assert (driver, len(gpus), gpus[0].compute_capability) == ("450.80.02", 1, "")
    assert (gpus[0].memory_total, gpus[0].memory_free) == (11441 * 1024**2, 0)


@pytest.mark.parametrize("text", ["", "No devices were found", "NVIDIA-SMI has failed because …"])
def test_an_nvidia_smi_without_gpus_gives_none(text: str) -> None:
    assert parse_nvidia_smi(text) == ((), "")


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_source(name: str) -> None:
    rows = table(name)
    assert rows
    for row in rows:
        assert row["source"].strip()
        assert None not in row, row
        assert None not in row.values(), row
        assert row.get("confidence", "seen") in ("seen", "memory", "derived")


def test_drivers_are_versions_and_grow_with_cuda() -> None:
    rows = table("cuda_driver")
    versions = [Version(row["cuda_version"]) for row in rows]
    drivers = [Version(row["min_linux_driver"]) for row in rows]
    assert versions == sorted(versions)
    assert drivers == sorted(drivers)
    for row in rows:
        compatible = Version(row["min_linux_driver_minor_compat"])
        assert compatible <= Version(row["min_linux_driver"]) or row["cuda_version"] == "11.0"


def test_toolkits_list_what_lies_between_their_ends() -> None:
    for row in table("cuda_arch"):
        listed = [Version(f"{sm[:-1]}.{sm[-1]}") for sm in row["sm_list"].split()]
        assert listed == sorted(listed)
        assert listed[0] == Version(row["min_compute_capability"])
        assert listed[-1] == Version(row["max_compute_capability"])


def test_builds_are_ranges_of_versions_and_no_two_rows_are_of_one() -> None:
    taken: set[tuple[str, str, str]] = set()
    for row in table("framework_arch"):
        assert Version(row["first"]) <= Version(row["last"])
        assert row["complete"] in ("yes", "no")
        for capability in [*row["sass"].split(), *row["ptx"].split()]:
            assert re.fullmatch(r"\d+\.\d", capability)
        for version in row["images"].split():
            assert Version(row["first"]) <= Version(version) <= Version(row["last"])
        for cuda in row["cuda"].split():
            assert (row["framework"], row["first"], cuda) not in taken
            taken.add((row["framework"], row["first"], cuda))


def test_reports_are_of_a_range_and_reach_a_verdict() -> None:
    for row in table("gpu_reports"):
        assert row["verdict"] in VERDICTS
        assert row["verdict"] != FITS
        assert Version(row["first"]) <= Version(row["last"])
        assert Version(row["min_capability"]) <= Version(row["max_capability"])
        assert not row["reason"].endswith(".")
        assert row["cure"] == "" or row["cure"].endswith(".")
        for candidate in row["instead"].split():
            assert re.fullmatch(r"\S+@\d+\.\d+", candidate)


def test_gpus_have_a_capability_and_are_listed_once() -> None:
    rows = table("gpu_arch")
    assert all(re.fullmatch(r"\d+\.\d", row["compute_capability"]) for row in rows)
    assert len({row["gpu_name_pattern"] for row in rows}) == len(rows)
