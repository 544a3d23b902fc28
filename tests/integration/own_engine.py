"""A second engine, that tests may stop, kill and start again. The one that everybody uses is left alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dockml_magic.engine import DockerEngine, connect
from tests.waiting import wait_for_engine

_LEFT = ("pid", "sock", "sock.ttrpc")


class OwnEngine:
    """A dockerd with data, containerd and a network of its own; its containers have no network.

    Parameters
    ----------
    folder : Path
        For all of it; its path must be short.
    live_restore : bool
        Containers outlive it.
    """

    def __init__(self, folder: Path, *, live_restore: bool) -> None:
        self.folder = folder
        self.endpoint = f"unix://{folder}/docker.sock"
        self._settings = folder / "daemon.json"
        self._settings.write_text(json.dumps({"live-restore": live_restore}))
        self._process: subprocess.Popen[bytes] | None = None
        self.had_when_killed: set[str] = set()
        """The ids of its containers when it was last killed, which it may fail to remove when it is back."""

    def start(self) -> DockerEngine:
        """Start it; return once it answers."""
        # One that was killed, and its containerd with it, leaves these; the numbers may be others' by now.
        for left in ("docker.sock", "pid", *(f"exec/containerd/containerd.{e}" for e in _LEFT)):
            (self.folder / left).unlink(missing_ok=True)
        dockerd = [
            *("dockerd", "--config-file", str(self._settings), "--host", self.endpoint),
            *("--pidfile", str(self.folder / "pid"), "--data-root", str(self.folder / "data")),
            *("--exec-root", str(self.folder / "exec"), "--shutdown-timeout", "5"),
            *("--bridge=none", "--iptables=false", "--ip-forward=false"),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # In a network of its own, as it would remove the first engine's bridge.
                ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *dockerd],
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
                stdout=log,
                stderr=log,
            )
        process = self._process
        wait_for_engine(process, self.folder / "docker.sock")
        assert process.poll() is None, (self.folder / "log").read_text()[-2000:]
        return connect(self.endpoint)

    def load(self, reference: str) -> None:
        """Give it an image of the first engine."""
        save = ["docker", "--host", "unix:///var/run/docker.sock", "save", reference]
        if "DOCKER_HOST" in os.environ:
            save[1:3] = []
        with subprocess.Popen(save, stdout=subprocess.PIPE) as saving:
            load = ["docker", "--host", self.endpoint, "load", "--quiet"]
            subprocess.run(load, stdin=saving.stdout, stdout=subprocess.DEVNULL, check=True)
        assert saving.returncode == 0

    def signal(self, signum: signal.Signals) -> None:
        """Signal it, and wait for its end where it ends of that."""
        assert self._process is not None
        if signum == signal.SIGKILL:
            self.had_when_killed = set(self.docker("ps", "-aq", "--no-trunc").split())
        self._process.send_signal(signum)
        if signum in (signal.SIGTERM, signal.SIGKILL):
            self._process.wait(90)
            self._process = None

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it hang: connections are taken, and nothing is answered."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """The end of what it has written."""
        return (self.folder / "log").read_text(errors="replace")[-20_000:]

    def docker(self, *words: str) -> str:
        """Do something by hand."""
        command = ["docker", "--host", self.endpoint, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def close(self) -> None:
        """End it, its containers, and a containerd that it may have left."""
        if self._process is None:
            self.start()
        if left := self.docker("ps", "-aq").split():
            self.docker("rm", "-f", *left)
        self.signal(signal.SIGTERM)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for path in reversed([path for path in mounts if path.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", path], check=True)


@contextlib.contextmanager
def own_engine(folder: Path, *references: str, live_restore: bool) -> Iterator[OwnEngine]:
    """Give an engine that has these images."""
    engine = OwnEngine(folder, live_restore=live_restore)
    engine.start()
    try:
        for reference in references:
            engine.load(reference)
        yield engine
    finally:
        engine.close()
