"""Make sure that a Docker engine answers, starting one if we may.

Run as ``python -m tests.machine.engine ensure`` or ``... stop``. Standard library only, so that it
runs before anything is installed. Exit status: 0 an engine answers, 1 it would not start, 3 an
administrator is needed (what to ask for is printed).
"""

from __future__ import annotations

import argparse
import enum
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.machine.packages import NOT_ALLOWED, NotAllowed, install, privilege, say

PACKAGES = ("docker.io", "iptables", "tini")
DEFAULT_ENDPOINT = "unix:///var/run/docker.sock"
START_LIMIT = 60.0
STOP_LIMIT = 20.0
STATE = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "dockml-machine"
LOG = STATE / "dockerd.log"
PID = STATE / "dockerd.pid"


class Answer(enum.Enum):
    """What an endpoint did when it was asked."""

    YES = "answers"
    REFUSED = "is there, but this user may not use it"
    NO = "does not answer"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def endpoint() -> str:
    """Return the engine that Docker's own client would use: DOCKER_HOST, context, or default."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = os.environ.get("DOCKER_CONTEXT") or _read(folder / "config.json").get("currentContext")
    if not name or name == "default":
        return DEFAULT_ENDPOINT
    meta = folder / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    return _read(meta).get("Endpoints", {}).get("docker", {}).get("Host") or DEFAULT_ENDPOINT


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def ask(address: str) -> Answer:
    """Ask an endpoint whether it is alive."""
    url = urlsplit(address)
    if url.scheme == "unix":
        connection: http.client.HTTPConnection = _UnixConnection(url.path)
    elif url.scheme in ("tcp", "http") and not os.environ.get("DOCKER_TLS_VERIFY"):
        connection = http.client.HTTPConnection(url.hostname or "", url.port or 2375, timeout=5)
    else:
        return _ask_by_client()
    try:
        connection.request("GET", "/_ping")
        return Answer.YES if connection.getresponse().status == 200 else Answer.NO
    except PermissionError:
        return Answer.REFUSED
    except (OSError, http.client.HTTPException):
        return Answer.NO
    finally:
        connection.close()


def _ask_by_client() -> Answer:
    """Ask over SSH or TLS, which Docker's own client speaks and we do not."""
    client = shutil.which("docker")
    if client is None:
        return Answer.NO
    done = subprocess.run([client, "version"], check=False, capture_output=True, timeout=30)
    return Answer.YES if done.returncode == 0 else Answer.NO


def ensure() -> None:
    """Return once an engine answers.

    Raises
    ------
    NotAllowed
        Only an administrator, or whoever set DOCKER_HOST, can make one answer.
    RuntimeError
        The engine was started and did not come up; the message has the end of its log.
    """
    address = endpoint()
    answer = ask(address)
    if answer is Answer.YES:
        say(f"a Docker engine answers at {address}: nothing to do")
        return
    if answer is Answer.REFUSED:
        raise NotAllowed(_no_permission(address))
    if address != DEFAULT_ENDPOINT:
        raise NotAllowed(
            f"{address} (from DOCKER_HOST or the Docker context) does not answer:"
            " start that engine, or unset the setting"
        )
    root = privilege()
    if root is None:
        raise NotAllowed(
            "no Docker engine answers. Ask an administrator to run:\n"
            f"  apt-get install {' '.join(PACKAGES)}\n"
            "  systemctl enable --now docker\n"
            f"  usermod -aG docker {_user()}\n"
            "then log out and in again"
        )
    if shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        install(PACKAGES)
    if ask(address) is Answer.YES:  # some systems start what they install
        say(f"a Docker engine answers at {address}")
        return
    try:
        _start(root)
    except RuntimeError as error:
        # What a killed engine leaves (its containerd's pid file) is cleared by the first try.
        say(f"{error}\ntrying once more")
        _start(root)


def _user() -> str:
    """Return this user's name; a number that no file knows has none."""
    return os.environ.get("USER") or os.environ.get("LOGNAME") or "THIS-USER"


def _no_permission(address: str) -> str:
    return (
        f"the Docker engine at {address} is there, but {_user()} may not use it."
        f" Ask an administrator to run:\n  usermod -aG docker {_user()}\n"
        "then log out and in again"
    )


def _start(root: list[str]) -> None:
    daemon: subprocess.Popen[bytes] | None = None
    if Path("/run/systemd/system").is_dir():
        say("starting docker by systemd")
        subprocess.run([*root, "systemctl", "enable", "--now", "docker"], check=True)
    else:
        daemon = _start_daemon(root)
    began = time.monotonic()
    while time.monotonic() - began < START_LIMIT:
        answer = ask(DEFAULT_ENDPOINT)
        if answer is Answer.YES:
            say(f"the Docker engine answers after {time.monotonic() - began:.1f} s")
            return
        if answer is Answer.REFUSED:
            raise NotAllowed(_no_permission(DEFAULT_ENDPOINT))
        if daemon is not None and daemon.poll() is not None:
            break
        time.sleep(0.2)
    log = ["see: journalctl -u docker"]
    if daemon is not None:
        log = LOG.read_text(errors="replace").splitlines()[-20:]
    raise RuntimeError("\n".join(["the Docker engine did not come up", *log]))


def _start_daemon(root: list[str]) -> subprocess.Popen[bytes]:
    STATE.mkdir(parents=True, exist_ok=True)
    if _running() is None:  # left by one that was killed; its number may be another's by now
        PID.unlink(missing_ok=True)
    say(f"starting dockerd, log in {LOG}")
    path = f"PATH={os.environ['PATH']}:/usr/sbin:/sbin"  # a user's PATH may lack these
    with LOG.open("wb") as output:
        # A session of its own, so that it outlives this process and its terminal.
        return subprocess.Popen(
            [*root, "env", path, "dockerd", "--pidfile", str(PID)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _running() -> int | None:
    """Return the process number of the dockerd that `ensure` started, None where it is gone."""
    try:
        pid = int(PID.read_text())
        # The process may be gone and its number given to another; a dead one has no command line.
        ours = b"dockerd" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ValueError):
        return None
    return pid if ours else None


def stop() -> None:
    """Stop the dockerd that `ensure` started; containers and images stay on the disk."""
    pid = _running()
    if pid is None:
        say("no Docker engine of ours is running: nothing to do")
        return
    subprocess.run([*(privilege() or []), "kill", f"-{signal.SIGTERM.value}", str(pid)], check=True)
    began = time.monotonic()
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() - began > STOP_LIMIT:
            raise RuntimeError(f"dockerd (process {pid}) did not stop, see {LOG}")
        time.sleep(0.1)
    PID.unlink(missing_ok=True)
    say(f"dockerd (process {pid}) stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the subcommands."""
    parser = argparse.ArgumentParser(prog="tests.machine.engine", description=__doc__)
    parser.add_argument("command", choices=("ensure", "stop"))
    chosen = parser.parse_args(arguments).command
    try:
        {"ensure": ensure, "stop": stop}[chosen]()
    except NotAllowed as error:
        say(str(error))
        return NOT_ALLOWED
    except (RuntimeError, subprocess.SubprocessError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
