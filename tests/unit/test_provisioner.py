from __future__ import annotations

import asyncio
import os
import sys
import threading
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from dockml_magic.errors import KernelError
from dockml_magic.provisioner import PROVISIONER_NAME, DockerProvisioner, _given_env


@pytest.fixture
def provisioner() -> DockerProvisioner:
    """One that has started nothing."""
    return DockerProvisioner(kernel_id="k", kernel_spec=KernelSpec(), name="tf1.10", options={})


def test_variables_that_the_host_has_too_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_HOST", "1")
    env = {**os.environ, "GIVEN": "2"}
    assert _given_env(env) == {"GIVEN": "2"}
    assert _given_env(env | {"OF_THE_HOST": "changed"}) == {"GIVEN": "2", "OF_THE_HOST": "changed"}


@pytest.mark.parametrize("name", ["PATH", "HOME", "PYTHONPATH", "JPY_PARENT_PID", "VIRTUAL_ENV"])
def test_variables_that_lead_to_a_place_on_the_host_are_not_given(name: str) -> None:
    assert _given_env({name: "/somewhere/else"}) == {}


def test_nothing_given_is_nothing() -> None:
    assert _given_env({}) == {}


def test_jupyter_finds_the_provisioner_by_its_name() -> None:
    (found,) = entry_points(group="jupyter_client.kernel_provisioners", name=PROVISIONER_NAME)
    assert found.load() is DockerProvisioner
    factory = KernelProvisionerFactory.instance()
    config = {"provisioner_name": PROVISIONER_NAME, "config": {}}
    spec = KernelSpec(metadata={"kernel_provisioner": config}, argv=[sys.executable])
    assert factory.is_provisioner_available(spec)


def test_before_a_start_there_is_no_process(provisioner: DockerProvisioner) -> None:
    async def ask() -> None:
        assert not provisioner.has_process
        assert await provisioner.poll() == 0
        assert await provisioner.wait() == 0
        await provisioner.send_signal(2)
        await provisioner.kill()
        await provisioner.terminate()
        await provisioner.shutdown_requested()
        await provisioner.cleanup()

    asyncio.run(ask())


class _Container:
    """Stands for one whose kernel ends with code 3 when it was asked to, or never."""

    def __init__(self, *, ends: bool = True, stays: bool = False) -> None:
        self.ends, self.stays = ends, stays
        self.waited, self.asked = threading.Event(), threading.Event()

    def wait(self, timeout: float) -> int | None:
        self.waited.set()
        return 3 if self.ends else None

    def ask_to_end(self) -> None:
        self.asked.set()


def test_a_container_is_asked_to_end_when_its_kernel_has_and_not_only_when_somebody_looks(
    provisioner: DockerProvisioner,
) -> None:
    provisioner.container = container = _Container()
    asyncio.run(provisioner.shutdown_requested())
    assert container.asked.wait(10)
    assert asyncio.run(provisioner.poll()) == 3


@pytest.mark.parametrize(
    ("container", "restart"),
    [(_Container(), True), (_Container(stays=True), False), (_Container(ends=False), False)],
    ids=["restart", "stays", "kernel lives on"],
)
def test_a_container_is_not_asked_to_end(
    provisioner: DockerProvisioner, container: _Container, restart: bool
) -> None:
    provisioner.container = container
    asyncio.run(provisioner.shutdown_requested(restart=restart))
    if not (restart or container.stays):
        assert container.waited.wait(10)
    assert not container.asked.wait(0.1)


def test_a_start_that_succeeds_as_it_is_given_up_leaves_nothing(
    provisioner: DockerProvisioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    is_starting, may_end = threading.Event(), threading.Event()

    class Container:
        def __init__(self, *_: object) -> None: ...

        def start(self) -> None:
            is_starting.set()
            may_end.wait(30)

        def abandon(self) -> None:
            done.append("abandoned")
            may_end.set()

        def end(self) -> None:
            done.append("ended")

    monkeypatch.setattr("dockml_magic.provisioner.KernelContainer", Container)
    monkeypatch.setattr("dockml_magic.provisioner.engine_for", lambda options: None)
    provisioner._plan = SimpleNamespace(choice=SimpleNamespace(options=None))  # type: ignore[assignment]

    async def launch() -> None:
        starting = asyncio.ensure_future(provisioner.launch_kernel([]))
        await asyncio.to_thread(is_starting.wait, 30)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(launch())
    assert done == ["abandoned", "ended"]
    assert not provisioner.has_process


def test_a_kernel_without_a_container_cannot_be_adopted(provisioner: DockerProvisioner) -> None:
    info = {
        "kernel_id": "k",
        "connection_info": {"key": "x"},
        "name": "tf1.10",
        "options": {},
        "workspace": "/",
        "container": None,
    }
    with pytest.raises(KernelError, match="no container"):
        asyncio.run(provisioner.load_provisioner_info(info))
