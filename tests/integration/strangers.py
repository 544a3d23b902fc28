"""What is not ours, and must never be touched: containers, an image, a volume and a network that look like ours.

They carry the labels of our containers, as those of an image do that was committed from one, with this user's number.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import docker.errors

from dockml_magic import labels
from dockml_magic.engine import DockerEngine

_STATE = ("Status", "Pid", "StartedAt")


class Strangers:
    """Running, stopped, paused and never started containers of somebody else, and what else they have.

    Parameters
    ----------
    engine : DockerEngine
        Where they live.
    image : str
        What they run.
    """

    def __init__(self, engine: DockerEngine, image: str) -> None:
        self._client = engine._client
        self.name = f"stranger-{secrets.token_hex(4)}"
        self.session = secrets.token_hex(6)
        self.labels = {
            labels.VERSION: "0.1",
            labels.NAME: image,
            labels.WORKSPACE: "/somewhere",
            labels.USER: str(os.getuid()),
            labels.SESSION: self.session,
        }
        self.volume = self._client.volumes.create(self.name, labels=self.labels)
        self.network = self._client.networks.create(self.name, labels=self.labels)
        self.containers = {
            how: self._client.containers.create(
                image,
                ["python", "-c", "import time; time.sleep(100000)"],
                name=f"{self.name}-{how}",
                labels=self.labels,
                volumes={self.name: {"bind": "/data", "mode": "rw"}},
                network=self.name,
            )
            for how in ("running", "stopped", "paused", "created")
        }
        for how in ("running", "stopped", "paused"):
            self.containers[how].start()
        self.containers["stopped"].kill()
        self.containers["paused"].pause()
        self.image = self.containers["created"].commit(self.name)

    def snapshot(self, *, states: bool = True) -> dict[str, Any]:
        """Return all that would show that somebody touched them; without `states`, also the engine by its end."""
        for container in self.containers.values():
            container.reload()
        return {
            **{
                how: [
                    container.id,
                    container.name,
                    container.labels,
                    {key: container.attrs["State"][key] for key in _STATE if states},
                    container.attrs["RestartCount"],
                    sorted(container.attrs["NetworkSettings"]["Networks"]),
                ]
                for how, container in self.containers.items()
            },
            "image": self._client.images.get(self.name).id,
            "volume": self._client.volumes.get(self.name).attrs["CreatedAt"],
            "network": self._client.networks.get(self.name).id,
        }

    def remove(self) -> None:
        """Remove them."""
        for container in self.containers.values():
            with contextlib.suppress(docker.errors.NotFound):  # somebody did touch it
                container.remove(force=True)
        self._client.images.remove(self.name)
        self.network.remove()
        self.volume.remove()


@contextmanager
def untouched_strangers(
    engine: DockerEngine, image: str, *, outlive_engine: bool = True
) -> Iterator[Strangers]:
    """Give strangers; fail if anything has happened to one of them by the end.

    Unless they outlive an engine that is stopped, they may have ended with it.
    """
    strangers = Strangers(engine, image)
    try:
        before = strangers.snapshot(states=outlive_engine)
        yield strangers
        assert strangers.snapshot(states=outlive_engine) == before
    finally:
        strangers.remove()
