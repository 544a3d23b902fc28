"""What is said and decided about GPUs before a container is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import planning
from dockml_magic.engine import EngineFacts
from dockml_magic.errors import GpuUnavailableError
from dockml_magic.fit import Gpu
from dockml_magic.gpu import HostGpus
from dockml_magic.options import RunOptions
from dockml_magic.planning import KernelPlan, choose_here, make_plan
from tests.unit.fake_engine import FakeEngine, Run

ELSEWHERE = EngineFacts(version="24", api="1.43", endpoint="tcp://gpu1:2376", shares_files=False)
TF = "tensorflow/tensorflow:2.3.0-gpu"
GB = 1024**3

GTX1080 = Gpu(name="NVIDIA GeForce GTX 1080", index=0, uuid="GPU-pascal", memory_free=2 * GB)
V100 = Gpu(name="Tesla V100-SXM2-16GB", index=1, uuid="GPU-volta", memory_free=9 * GB)
RTX3090 = Gpu(name="NVIDIA GeForce RTX 3090", index=2, uuid="GPU-ampere", memory_free=20 * GB)

Gpus = Callable[..., None]
Plan = Callable[..., KernelPlan]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Give a function that puts these GPUs into this machine."""

    def put(*found: Gpu, **facts: Any) -> None:
        host = HostGpus(gpus=found, driver="550.54.14", **facts)
        monkeypatch.setattr(planning, "find_gpus", lambda: host)

    return put


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def plan(engine: FakeEngine, workspace: Path, told: list[str]) -> Plan:
    def make(
        name: str, engine: FakeEngine = engine, judged: bool = False, **options: Any
    ) -> KernelPlan:
        engine.registry[TF] = engine.registry["tensorflow/tensorflow:1.10.0-gpu-py3"] = ("python",)
        return make_plan(
            name, RunOptions(**options), workspace, engine=engine, tell=told.append, judged=judged
        )

    return make


# --- is there a GPU -------------------------------------------------------------------------------


def test_a_gpu_name_without_gpu_says_so_and_names_the_twin(
    engine: FakeEngine, workspace: Path, gpus: Gpus
) -> None:
    gpus(why_none="it has no NVIDIA GPU")
    with pytest.raises(GpuUnavailableError) as caught:
        choose_here("tf1.10-gpu", RunOptions(), workspace, engine)
    assert str(caught.value).splitlines() == [
        "'tf1.10-gpu' needs an NVIDIA GPU, and this machine has none: it has no NVIDIA GPU.",
        "On the CPU: tf1.10. Or the same image without GPU: tf1.10-gpu --gpus none",
    ]


def test_a_gpu_name_with_a_gpu_or_without_asking_for_one_is_fine(
    engine: FakeEngine, workspace: Path, gpus: Gpus
) -> None:
    gpus(V100)
    assert choose_here("tf1.10-gpu", RunOptions(), workspace, engine)[0].wants_gpu
    gpus(why_none="no")
    choice, _ = choose_here("tf1.10-gpu", RunOptions(gpus="none"), workspace, engine)
    assert not choice.wants_gpu


def test_gpus_asked_for_by_option_on_a_machine_without_are_the_engines_business(
    plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(why_none="no")
    assert plan(TF, gpus="all").choice.options.gpus == "all"
    assert told[0] == f"pulling {TF}"


# --- does the image run on it ---------------------------------------------------------------------


def test_what_will_not_run_is_refused_before_the_pull_with_the_cure(
    engine: FakeEngine, plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(RTX3090)
    with pytest.raises(GpuUnavailableError) as caught:
        plan("tf1.10-gpu")
    assert str(caught.value).splitlines() == [
        "'tf1.10-gpu' will not run on GPU 2 (NVIDIA GeForce RTX 3090): TensorFlow 1.10.0 (CUDA 9.0): it does not "
        "work on GPUs newer than Turing, whose code the cuBLAS and cuDNN of its CUDA lack.",
        "Use ngc-tf1.15. It is TensorFlow 1.15, with tf.contrib, by NVIDIA.",
        "To try it nevertheless: tf1.10-gpu --gpus all. On the CPU: tf1.10. Or the same image without "
        "GPU: tf1.10-gpu --gpus none",
    ]
    assert engine.pulled == told == []


def test_gpus_that_are_asked_for_are_given_with_a_warning(
    engine: FakeEngine, plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(RTX3090)
    assert plan("tf1.10-gpu", gpus="all").choice.options.gpus == "all"
    assert told[0].startswith("tf1.10-gpu on GPU 2 (NVIDIA GeForce RTX 3090): will not run.")
    assert told[1].startswith("Use ngc-tf1.15.")
    assert told[2].startswith("pulling")


def test_only_the_gpus_that_are_asked_for_count(plan: Plan, gpus: Gpus, told: list[str]) -> None:
    gpus(V100, RTX3090)
    plan(TF, gpus="device=GPU-volta")
    plan(TF, gpus="device=1")
    assert not [line for line in told if "will not run" in line]


def test_a_slow_start_is_told_every_time(
    engine: FakeEngine, plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(RTX3090)
    engine.add_image(TF)
    plan(TF, gpus="all")
    assert told[0].startswith(f"{TF} on GPU 2 (NVIDIA GeForce RTX 3090): slow first start.")
    assert told[1].startswith("Use tf2.4-gpu.")


def test_what_is_not_known_is_told_before_a_pull_only(
    engine: FakeEngine, plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(RTX3090)
    engine.registry["me/mine:1"] = ("python",)
    plan("me/mine:1", gpus="all")
    assert "not known" in told[0]
    told.clear()
    plan("me/mine:1", gpus="all")
    assert told == []


def test_a_gpu_on_which_it_does_not_run_is_named_beside_the_one_on_which_it_does(
    plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(RTX3090, V100)
    assert plan("tf1.10-gpu").choice.wants_gpu
    assert told[0] == (
        "GPU 2 (NVIDIA GeForce RTX 3090): will not run. Best on GPU 1 (Tesla V100-SXM2-16GB), "
        "which --gpus device=1 asks for."
    )


def test_who_was_told_already_is_not_told_again(plan: Plan, gpus: Gpus, told: list[str]) -> None:
    gpus(RTX3090)
    plan(TF, gpus="all", judged=True)
    assert told[0] == f"pulling {TF}"


# --- which GPU ------------------------------------------------------------------------------------


def test_auto_asks_for_the_freest_gpu_that_fits_and_says_so(
    plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(GTX1080, V100, RTX3090)
    for name in ("tf1.10-gpu", TF):
        choice = plan(name, gpus="auto").choice
        assert choice.options.gpus == "device=GPU-volta"
        assert told[0] == "--gpus auto: GPU 1 (Tesla V100-SXM2-16GB), 9.0 GB free"
        told.clear()


def test_auto_warns_where_the_best_is_slow(plan: Plan, gpus: Gpus, told: list[str]) -> None:
    gpus(RTX3090)
    assert plan(TF, gpus="auto").choice.options.gpus == "device=GPU-ampere"
    assert "slow first start" in told[0]
    assert told[2].startswith("--gpus auto: GPU 2")


def test_auto_is_refused_where_none_fits_or_is_there(plan: Plan, gpus: Gpus) -> None:
    gpus(RTX3090)
    with pytest.raises(GpuUnavailableError, match="will not run on GPU 2"):
        plan("tf1.10-gpu", gpus="auto")
    gpus(why_none="no")
    with pytest.raises(GpuUnavailableError, match="needs an NVIDIA GPU"):
        plan(TF, gpus="auto")


def test_gpus_that_are_hidden_from_the_notebook_are_not_asked_for_by_a_name(
    plan: Plan, gpus: Gpus, told: list[str]
) -> None:
    gpus(V100, limited_by="CUDA_VISIBLE_DEVICES")
    choice = plan("tf1.10-gpu").choice
    assert (choice.options.gpus, choice.wants_gpu) == ("device=GPU-volta", False)
    assert told[0].startswith("CUDA_VISIBLE_DEVICES leaves GPU 1 (Tesla V100-SXM2-16GB)")
    assert plan("tf1.10-gpu", gpus="all").choice.options.gpus == "all"


# --- an engine on another machine -----------------------------------------------------------------

PROGRAMS = ("python", "sh")


def elsewhere(output: str, exit_code: int = 0) -> FakeEngine:
    engine = FakeEngine(ELSEWHERE, behave=lambda spec: Run(output, exit_code))
    engine.add_image("tensorflow/tensorflow:1.10.0-gpu-py3", programs=PROGRAMS)
    return engine


def test_an_engine_elsewhere_is_asked_through_a_container_that_is_gone_after(
    plan: Plan, gpus: Gpus
) -> None:
    gpus(why_none="no")  # here: of no interest
    engine = elsewhere("NVIDIA GeForce RTX 3090, 24576 MiB, 24000 MiB, 550.54.14, GPU-x, 8.6\n")
    with pytest.raises(GpuUnavailableError, match="will not run on GPU 0"):
        plan("tf1.10-gpu", engine=engine)
    assert engine.containers == []
    [spec] = engine.specs
    assert "nvidia-smi" in spec.entrypoint[-1]
    assert spec.gpus is not None


def test_auto_works_elsewhere(plan: Plan) -> None:
    engine = elsewhere("Tesla V100, 16000 MiB, 9000 MiB, 550.54.14, GPU-x, 7.0\n")
    assert plan("tf1.10-gpu", engine=engine, gpus="auto").choice.options.gpus == "device=GPU-x"


@pytest.mark.parametrize("programs", [PROGRAMS, ("python",)], ids=["says nothing", "cannot"])
def test_an_engine_elsewhere_that_does_not_say_is_believed(
    plan: Plan, told: list[str], programs: tuple[str, ...]
) -> None:
    engine = elsewhere("sh: 1: nvidia-smi: not found", 127)
    engine.add_image("tensorflow/tensorflow:1.10.0-gpu-py3", programs=programs)
    assert plan("tf1.10-gpu", engine=engine).choice.wants_gpu
    assert told == []
    assert engine.containers == []


def test_nothing_is_started_elsewhere_of_an_image_that_is_missing_or_to_look_only(
    plan: Plan, workspace: Path
) -> None:
    engine = FakeEngine(ELSEWHERE)
    assert plan("tf1.10-gpu", engine=engine).choice.wants_gpu
    assert engine.specs == []
    assert choose_here("tf1.10-gpu", RunOptions(), workspace, elsewhere(""))[0].wants_gpu
