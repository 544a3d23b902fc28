"""The doctor on this machine: with its engine, without the right to it, with full disks, in a notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dockml_magic import labels
from dockml_magic.doctor import CHECKS
from dockml_magic.engine import ContainerState, DockerEngine
from tests.integration.conftest import Image, RunAs
from tests.integration.notebook import IPYKERNELS, Notebook, python_with

BARE = "dockml/bare:3.11"
DOCTOR = "from dockml_magic.cli import main; main(['doctor', '--json'])"

Findings = dict[str, list[dict[str, str]]]


def read(done: subprocess.CompletedProcess[str]) -> Findings:
    """Return the findings by their checks; the exit code must be that of them."""
    found: Findings = {}
    for finding in json.loads(done.stdout):
        found.setdefault(finding["check"], []).append(finding)
    fails = [f for findings in found.values() for f in findings if f["status"] == "fail"]
    assert done.returncode == int(bool(fails)), done.stderr
    assert not [f for f in fails if "check itself" in f["message"]]
    return found


def doctor(*before: str, **variables: str) -> Findings:
    """Run the command, behind other words where they are given."""
    command = [*before, sys.executable, "-c", DOCTOR]
    env = {**os.environ, **variables}
    return read(subprocess.run(command, env=env, capture_output=True, text=True, check=False))


def test_this_machine_and_its_engine_are_looked_at(engine: DockerEngine) -> None:
    found = doctor()
    assert list(found) == [check.name for check in CHECKS]
    (answers,) = found["engine"]
    assert answers["status"] == "ok"
    assert engine.facts.version in answers["message"]
    assert answers["message"].endswith("(DOCKER_HOST)")
    assert [f["status"] for f in found["rights"]] == ["ok"]
    assert str(engine.facts.root) in found["disk"][0]["message"]
    assert [f["status"] for f in found["localhost"]] == ["ok"]
    assert [f["status"] for f in found["kernels"]] == ["ok"]


def test_without_an_engine_the_rest_is_looked_at() -> None:
    found = doctor(DOCKER_HOST="unix:///nowhere/docker.sock")
    assert list(found) == [check.name for check in CHECKS]
    (answers,) = found["engine"]
    assert answers["status"] == "fail"
    assert "/nowhere/docker.sock does not exist" in answers["message"]
    assert answers["hint"].startswith("DOCKER_HOST leads there.")
    assert found["left-overs"][0]["status"] == "not checked"
    assert found["proxy"][0]["status"] != "not checked"


def test_a_user_who_may_not_use_the_engine_is_told_the_group(run_as: RunAs) -> None:
    (answers,) = read(run_as(12345, DOCTOR, may_use_docker=False))["engine"]
    assert answers["status"] == "fail"
    assert "may not use the Docker engine" in answers["message"]
    assert "usermod -aG" in answers["hint"]


def test_a_user_who_may_is_told_that_this_is_much(run_as: RunAs) -> None:
    found = read(run_as(12346, DOCTOR, may_use_docker=True))
    assert found["engine"][0]["status"] == "ok"
    assert "as much as root" in found["rights"][0]["message"]


@pytest.mark.parametrize(
    ("mount", "says"),
    [
        ("mount -t tmpfs -o size=64k tmpfs $0; head -c 90000 /dev/zero >$0/fill", "full, 0 B free"),
        ("mount -t tmpfs -o ro tmpfs $0", "Read-only file system."),
    ],
    ids=["full", "read-only"],
)
def test_a_cache_without_room_is_a_fail(mount: str, says: str, own_folders: Path) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can mount a small disk, with unshare of util-linux")
    cache = os.environ["XDG_CACHE_HOME"]
    script = f'{mount} 2>/dev/null; exec "$@"'
    found = doctor("unshare", "--mount", "sh", "-c", script, cache)
    (room,) = (f for f in found["disk"] if f["message"].startswith("cache: "))
    assert room["status"] == "fail"
    assert says in room["message"]
    assert "XDG_CACHE_HOME" in room["hint"]


def test_broken_settings_are_named_and_no_password_is_shown() -> None:
    found = doctor(
        HTTPS_PROXY="http://ada:hunter2@127.0.0.1:9",
        REQUESTS_CA_BUNDLE="/not/there.pem",
        PIP_INDEX_URL="ada:hunter2@pypi.example.com",
    )
    said = json.dumps(found)
    assert "hunter2" not in said
    statuses = [f["status"] for f in found["proxy"]]
    assert statuses == ["warn", "warn", "fail", "fail"]
    assert "/not/there.pem" in said


@pytest.mark.parametrize("ipykernel", IPYKERNELS)
def test_in_a_notebook_it_is_a_table_that_knows_the_containers(
    ipykernel: str,
    image: Image,
    workspace: Path,
    ours: Callable[[], list[ContainerState]],
) -> None:
    image(BARE)
    with Notebook(workspace, python_with(ipykernel)) as notebook:
        notebook.ok("%load_ext dockml_magic")
        notebook.use(BARE)
        well = notebook.ok("%docker_doctor")
        (shown,) = well.of("execute_result")
        assert "ok           engine          Docker" in shown["data"]["text/plain"]
        assert ">engine</td>" in shown["data"]["text/html"]
        (container,) = ours()
        assert f"{container.name}" not in shown["data"]["text/plain"]
        runtime = str(Path(container.mounts["/run/dockml"]).parent)
        assert container.labels[labels.SESSION] in runtime
        # As when a machine's temporary files are cleaned.
        Path(runtime).rename(f"{runtime}-away")
        lost = notebook.ok("%docker_doctor").of("execute_result")[0]["data"]["text/plain"]
        assert "runtime folder of a running container is gone" in " ".join(lost.split())
        assert container.name in lost
        Path(f"{runtime}-away").rename(runtime)
        assert notebook.ok("1 + 1").result == "2"
        assert "Could not" not in notebook.ok("%docker_stop").printed()
