"""What facts mean. Each case is a machine that somebody has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dockml_magic.diagnosis import (
    Architecture,
    BundleFacts,
    BundleSight,
    EngineSight,
    Finding,
    GpuSight,
    JupyterSight,
    KernelFacts,
    LeftSight,
    NetworkSettings,
    Place,
    Reach,
    Room,
    SocketFacts,
    judge_architecture,
    judge_bundles,
    judge_disk,
    judge_engine,
    judge_gpu,
    judge_jupyter,
    judge_kernels,
    judge_left_overs,
    judge_localhost,
    judge_proxy,
    judge_registry,
    judge_rights,
    redact,
    secrets_in,
    size,
)
from dockml_magic.engine import EngineFacts
from dockml_magic.fit import Gpu
from dockml_magic.gpu import HostGpus

SOCKET = "unix:///var/run/docker.sock"
FACTS = EngineFacts(
    version="28.2.2",
    api="1.50",
    endpoint=SOCKET,
    shares_files=True,
    architecture="amd64",
    gpu_hook=False,
)
GIB = 1024**3
MIB = 1024**2


def statuses(findings: Sequence[Finding]) -> list[str]:
    return [finding.status for finding in findings]


def only(findings: Sequence[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def everything_said(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{finding.message}\n{finding.hint}" for finding in findings)


# --- engine ---------------------------------------------------------------------------------------


def test_an_engine_that_answers_is_named_with_version_and_place() -> None:
    found = only(judge_engine(EngineSight(endpoint=SOCKET, facts=FACTS)))
    assert found == Finding("ok", f"Docker 28.2.2, API 1.50, answers at {SOCKET}")


@pytest.mark.parametrize("by", ["DOCKER_HOST", "--engine", "Docker context 'work'"])
def test_who_names_the_engine_is_said(by: str) -> None:
    sight = EngineSight(endpoint=SOCKET, said_by=by, facts=FACTS)
    assert only(judge_engine(sight)).message.endswith(f"({by})")
    gone = only(judge_engine(replace(sight, facts=None, message="Gone.", hint="Start it.")))
    assert gone.status == "fail"
    assert by in gone.hint


def test_a_rootless_engine_is_named_as_one() -> None:
    sight = EngineSight(endpoint=SOCKET, facts=replace(FACTS, rootless=True), user="ada")
    assert "rootless: its containers' root is ada" in only(judge_engine(sight)).message


def test_podman_is_named_as_what_it_is() -> None:
    facts = replace(FACTS, product="podman", version="4.3.1", api="1.41")
    found = only(judge_engine(EngineSight(endpoint=SOCKET, facts=facts)))
    assert found.status == "warn"
    assert found.message.startswith("podman 4.3.1, API 1.41")


def test_docker_desktop_is_named_and_that_it_shares_no_files() -> None:
    facts = replace(FACTS, product="Docker Desktop", system="Docker Desktop", shares_files=False)
    answers, shares = judge_engine(EngineSight(endpoint=SOCKET, facts=facts))
    assert answers.status == "ok"
    assert answers.message.startswith("Docker Desktop 28.2.2")
    assert shares.status == "warn"
    assert "the notebook's folder is not mounted" in shares.message


DENIED = SocketFacts(path=Path("/var/run/docker.sock"), exists=True, group="docker")


def denied(socket: SocketFacts) -> Finding:
    return only(
        judge_engine(EngineSight(endpoint=SOCKET, socket=socket, user="ada", message="?", hint="?"))
    )


def test_one_who_is_in_no_group_is_told_what_to_ask_for() -> None:
    found = denied(DENIED)
    assert found.status == "fail"
    assert found.message == (
        "ada may not use the Docker engine: /var/run/docker.sock is for group 'docker'."
    )
    assert "sudo usermod -aG docker ada" in found.hint


def test_a_group_that_is_not_active_until_the_next_login_is_recognised() -> None:
    found = denied(replace(DENIED, is_member=True))
    assert "this session began before that" in found.message
    assert "Log out and in again" in found.hint
    assert "newgrp docker" in found.hint
    assert "usermod" not in found.hint


def test_a_socket_for_root_alone_needs_a_group_first() -> None:
    found = denied(replace(DENIED, group=""))
    assert "for root alone" in found.message
    assert "groupadd -f docker" in found.hint


@pytest.mark.parametrize(
    "socket", [None, replace(DENIED, exists=False), replace(DENIED, is_usable=True)]
)
def test_elsewhere_the_engines_own_error_counts(socket: SocketFacts | None) -> None:
    sight = EngineSight(endpoint=SOCKET, socket=socket, message="It is too old.", hint="Update.")
    assert only(judge_engine(sight)) == Finding("fail", "It is too old.", "Update.")


def test_other_engines_on_the_machine_are_offered() -> None:
    other = "unix:///run/user/1000/podman/podman.sock"
    sight = EngineSight(endpoint=SOCKET, message="None.", hint="Install one.", others=(other,))
    found = only(judge_engine(sight))
    assert found.hint.splitlines() == [
        f"Another engine's socket is here: export DOCKER_HOST={other}",
        "Install one.",
    ]


@pytest.mark.parametrize(
    ("changes", "engine", "status", "says"),
    [
        ({"is_root": True}, {}, "ok", "You are root."),
        ({"socket": replace(DENIED, has_group=True)}, {}, "ok", "by group 'docker'"),
        ({"socket": replace(DENIED, group="")}, {}, "ok", "by the rights of /var/run/docker.sock"),
        ({}, {"rootless": True}, "ok", "The engine is ada's own."),
        ({}, {"endpoint": "tcp://10.0.0.1:2375"}, "warn", "without TLS"),
        ({"has_tls": True}, {"endpoint": "tcp://10.0.0.1:2376"}, "ok", "with a certificate"),
    ],
)
def test_rights(
    changes: Mapping[str, object], engine: Mapping[str, object], status: str, says: str
) -> None:
    facts = replace(FACTS, **engine)  # type: ignore[arg-type]
    sight = replace(EngineSight(endpoint=SOCKET, facts=facts, user="ada"), **changes)  # type: ignore[arg-type]
    found = only(judge_rights(sight))
    assert found.status == status
    assert says in found.message


# --- architecture ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "engine", "emulators", "status", "says"),
    [
        ("x86_64", "amd64", (), "ok", "amd64"),
        ("x86_64", "x86_64", (), "ok", "amd64"),
        ("x86_64", "", (), "ok", "This machine is amd64"),
        ("aarch64", "amd64", (), "warn", "this one is arm64"),
        ("x86_64", "arm64", ("qemu-x86_64",), "warn", "this one is amd64"),
        ("aarch64", "arm64", (), "warn", "do not start"),
        ("aarch64", "arm64", ("qemu-arm", "qemu-x86_64"), "warn", "slowly"),
        ("aarch64", "arm64", ("qemu-s390x",), "warn", "do not start"),
    ],
)
def test_architecture(
    machine: str, engine: str, emulators: tuple[str, ...], status: str, says: str
) -> None:
    found = only(
        judge_architecture(Architecture(machine=machine, engine=engine, emulators=emulators))
    )
    assert found.status == status
    assert says in found.message
    assert bool(found.hint) == (status != "ok")


def test_a_machine_without_emulation_is_told_how_to_get_it() -> None:
    found = only(judge_architecture(Architecture(machine="aarch64", engine="arm64")))
    assert "tonistiigi/binfmt --install amd64" in found.hint


# --- disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "free", "status"),
    [
        ("engine", 50 * GIB, "ok"),
        ("engine", 9 * GIB, "warn"),
        ("engine", 99 * MIB, "fail"),
        ("engine", 0, "fail"),
        ("engine", None, "not checked"),
        ("cache", GIB, "ok"),
        ("cache", 400 * MIB, "warn"),
        ("cache", 0, "fail"),
        ("runtime", GIB, "ok"),
        ("runtime", MIB, "warn"),
        ("runtime", 0, "fail"),
        ("shm", GIB, "ok"),
        ("shm", MIB, "warn"),
        ("shm", 0, "warn"),
    ],
)
def test_room(what: str, free: int | None, status: str) -> None:
    found = only(judge_disk([Room(what=what, path="/there", free=free, total=100 * GIB)]))
    assert found.status == status
    assert "/there" in found.message
    assert bool(found.hint) == (status in ("warn", "fail"))


@pytest.mark.parametrize(
    ("left", "inodes", "status"),
    [(0, 1000000, "fail"), (999, 1000000, "warn"), (1000, 1000000, "ok"), (0, 0, "ok")],
)
def test_a_disk_may_be_full_of_files_and_not_of_bytes(left: int, inodes: int, status: str) -> None:
    room = Room(what="engine", path="/there", free=50 * GIB, inodes_free=left, inodes=inodes)
    found = only(judge_disk([room]))
    assert found.status == status
    assert ("inodes" in found.message) == (status != "ok")


@pytest.mark.parametrize(
    ("what", "status"), [("cache", "fail"), ("runtime", "fail"), ("shm", "warn")]
)
def test_a_folder_that_we_may_not_write_to_is_named_with_why(what: str, status: str) -> None:
    room = Room(what=what, path="/there", free=GIB, problem="Read-only file system.")
    found = only(judge_disk([room]))
    assert found.status == status
    assert "/there: Read-only file system." in found.message


def test_every_room_has_its_line() -> None:
    rooms = [Room(what=what, path="/a", free=50 * GIB) for what in ("engine", "cache", "shm")]
    assert statuses(judge_disk(rooms)) == ["ok", "ok", "ok"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (152_000_000, "152 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes_are_written_as_docker_writes_them(count: int, text: str) -> None:
    assert size(int(count)) == text


# --- registry -------------------------------------------------------------------------------------

HUB = "https://registry-1.docker.io"
MIRROR = "https://mirror.example.com/"


def reach(hub: str = "", mirror: str | None = None, **more: object) -> list[Finding]:
    places = [Place(url=HUB, problem=hub)]
    if mirror is not None:
        places.insert(0, Place(url=MIRROR, is_mirror=True, problem=mirror))
    return judge_registry(Reach(places=tuple(places), **{"engine": FACTS, **more}))  # type: ignore[arg-type]


def test_docker_hub_answers() -> None:
    assert reach() == [Finding("ok", "Docker Hub answers this machine.")]
    assert reach(engine=None) == [Finding("ok", "Docker Hub answers this machine.")]


def test_a_machine_without_a_network_can_go_on_with_what_it_has() -> None:
    found = only(reach("its name is not known."))
    assert found.status == "warn"
    assert "Images that are here start." in found.message
    assert "dockml images --local" in found.hint
    assert "registry-mirrors" in found.hint


def test_a_mirror_makes_docker_hub_unnecessary() -> None:
    mirror, hub = reach("no connection.", "")
    assert mirror == Finding("ok", f"The engine's mirror {MIRROR} answers.")
    assert hub.status == "ok"
    assert "Pulls go through the mirror" in hub.message


def test_a_mirror_that_does_not_answer_is_named_with_where_to_correct_it() -> None:
    mirror, hub = reach("", "no answer within 4 seconds.")
    assert statuses([mirror, hub]) == ["warn", "ok"]
    assert MIRROR in mirror.message
    assert "daemon.json" in mirror.hint
    assert statuses(reach("no connection.", "no connection.")) == ["warn", "warn"]


def test_an_engine_without_the_hosts_proxy_is_told() -> None:
    found = only(reach(host_proxy="http://proxy:3128"))
    assert found.status == "warn"
    assert "the engine pulls without a proxy" in found.message
    assert "sudo systemctl edit docker" in found.hint
    with_mirror = reach(mirror="", host_proxy="http://proxy:3128")
    assert statuses(with_mirror) == ["ok", "ok"]


def test_the_engines_own_proxy_is_named() -> None:
    engine = replace(FACTS, proxies={"HTTPS_PROXY": "http://other:3128"})
    found = only(reach(engine=engine, host_proxy="http://proxy:3128"))
    assert found == Finding(
        "ok", "Docker Hub answers this machine. The engine's own proxy is http://other:3128."
    )
    gone = only(reach("no connection.", engine=engine))
    assert "http://other:3128" in gone.hint
    assert "docker pull hello-world" in gone.hint


def test_a_certificate_that_is_not_trusted_has_its_own_advice() -> None:
    assert "REQUESTS_CA_BUNDLE" in only(reach("its certificate is not trusted.")).hint


# --- proxies, CA bundles, pip ---------------------------------------------------------------------

GOOD = {
    "http_proxy": "http://proxy:3128",
    "HTTP_PROXY": "http://proxy:3128",
    "no_proxy": "localhost,127.0.0.1",
}


def proxy(proxies: Mapping[str, str] = {}, **more: Mapping[str, str]) -> list[Finding]:
    return judge_proxy(NetworkSettings(proxies=proxies, **more))


def test_settings_that_fit_are_shown() -> None:
    assert only(proxy()) == Finding("ok", "No proxy is set.")
    assert only(proxy(GOOD)) == Finding("ok", "http_proxy is http://proxy:3128.")
    index = {"index-url": "https://pypi.example.com/simple"}
    assert only(proxy(pip=index)).message.endswith(
        "pip's index is https://pypi.example.com/simple."
    )


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"HTTP_PROXY": "http://other:3128"}, "warn", "programs take one or the other"),
        ({"NO_PROXY": "localhost"}, "warn", "programs take one or the other"),
        ({"no_proxy": ""}, "warn", "does not except localhost and 127.0.0.1"),
        ({"no_proxy": "localhost,.example.com"}, "warn", "does not except 127.0.0.1"),
        ({"https_proxy": "proxy:3128"}, "warn", "without http://"),
        ({"https_proxy": "http://"}, "fail", "no URL"),
        ({"https_proxy": "http://proxy:port"}, "fail", "no URL"),
        ({"https_proxy": "http://localhost:3128"}, "warn", "the container itself"),
        ({"https_proxy": "http://127.0.0.1:3128"}, "warn", "the container itself"),
        ({"https_proxy": "http://[::1]:3128"}, "warn", "the container itself"),
    ],
)
def test_proxies_that_do_not_work(changes: Mapping[str, str], status: str, says: str) -> None:
    found = only(proxy({**GOOD, **changes}))
    assert found.status == status
    assert says in found.message
    assert found.hint


def test_what_is_set_twice_is_told_once() -> None:
    local = {"http_proxy": "http://localhost:1", "HTTP_PROXY": "http://localhost:1"}
    assert only(proxy({**GOOD, **local})).message.startswith("http_proxy")


def test_everything_may_be_excepted_from_the_proxy() -> None:
    assert only(proxy({**GOOD, "no_proxy": "*"})).status == "ok"


def test_no_proxy_keeps_what_it_has() -> None:
    found = only(proxy({**GOOD, "no_proxy": ".example.com"}))
    assert found.hint.endswith(".example.com,localhost,127.0.0.1")


def test_a_ca_bundle_that_is_not_there_is_a_fail() -> None:
    found = only(proxy(missing_files={"REQUESTS_CA_BUNDLE": "/etc/company.pem"}))
    assert found.status == "fail"
    assert "REQUESTS_CA_BUNDLE leads to '/etc/company.pem'" in found.message
    assert found.hint.endswith("unset REQUESTS_CA_BUNDLE")


@pytest.mark.parametrize(
    ("pip", "status", "says"),
    [
        ({"index-url": "pypi.example.com/simple"}, "fail", "no URL"),
        ({"index-url": "https://"}, "fail", "no URL"),
        ({"extra-index-url": "https://a/simple ftp://b/simple"}, "fail", "ftp://b/simple"),
        ({"index-url": "http://pypi.example.com/simple"}, "warn", "no trusted-host"),
        ({"index-url": "http://a:81/", "trusted-host": "a:80"}, "warn", "no trusted-host"),
        ({"index-url": "http://a:81/", "trusted-host": "b a:81"}, "ok", "pip's index"),
        ({"index-url": "http://a/", "trusted-host": "a"}, "ok", "pip's index"),
        ({"index-url": "http://localhost:3141/"}, "ok", "pip's index"),
        ({"index-url": "file:///srv/wheels"}, "ok", "pip's index"),
    ],
)
def test_pips_index(pip: Mapping[str, str], status: str, says: str) -> None:
    found = only(proxy(pip=pip))
    assert found.status == status
    assert says in found.message


def test_every_problem_has_its_line() -> None:
    found = proxy({"http_proxy": "proxy:3128", "HTTPS_PROXY": "http://"}, missing_files={"A": "/a"})
    assert sorted(statuses(found)) == ["fail", "fail", "warn", "warn"]


# --- GPUs -----------------------------------------------------------------------------------------

A100 = HostGpus(gpus=(Gpu(name="NVIDIA A100"),), driver="535.104")
NONE = HostGpus(why_none="no NVIDIA driver answers here (NVML Shared Library Not Found)")


@pytest.mark.parametrize(
    ("gpus", "has_card", "engine", "status", "says"),
    [
        (NONE, False, FACTS, "ok", "None: this machine has no NVIDIA GPU"),
        (NONE, False, None, "ok", "None"),
        (NONE, True, FACTS, "fail", "An NVIDIA card is here, but no NVIDIA driver answers"),
        (A100, True, replace(FACTS, gpu_hook=True), "ok", "by NVIDIA's hook"),
        (A100, True, replace(FACTS, gpu_hook=None), "ok", "by NVIDIA's hook"),
        (A100, True, replace(FACTS, cdi_gpus=("nvidia.com/gpu=all",)), "ok", "by CDI"),
        (A100, True, replace(FACTS, runtimes=("runc", "nvidia")), "ok", "by the nvidia runtime"),
        (A100, True, FACTS, "fail", "its NVIDIA part is not installed"),
        (A100, True, replace(FACTS, shares_files=False), "not checked", "another"),
    ],
)
def test_gpus(
    gpus: HostGpus, has_card: bool, engine: EngineFacts | None, status: str, says: str
) -> None:
    found = only(judge_gpu(GpuSight(gpus=gpus, has_card=has_card, engine=engine)))
    assert found.status == status
    assert says in found.message


def test_gpus_without_an_engine_are_shown_and_the_rest_is_not_checked() -> None:
    card, rest = judge_gpu(GpuSight(gpus=A100, has_card=True))
    assert card == Finding("ok", "NVIDIA A100, driver 535.104.")
    assert rest.status == "not checked"


def test_what_hides_gpus_is_named() -> None:
    hidden = HostGpus(driver="535", why_none="CUDA_VISIBLE_DEVICES='' hides its GPUs",
                      limited_by="CUDA_VISIBLE_DEVICES")  # fmt: skip
    found = only(judge_gpu(GpuSight(gpus=hidden, has_card=True, engine=FACTS)))
    assert found.status == "warn"
    assert "unset CUDA_VISIBLE_DEVICES" in found.hint
    part = replace(A100, limited_by="CUDA_VISIBLE_DEVICES")
    engine = replace(FACTS, gpu_hook=True)
    assert (
        "limited by CUDA_VISIBLE_DEVICES"
        in only(judge_gpu(GpuSight(gpus=part, engine=engine))).message
    )


def test_several_gpus_are_counted() -> None:
    gpus = replace(A100, gpus=A100.gpus * 4)
    engine = replace(FACTS, gpu_hook=True)
    assert only(judge_gpu(GpuSight(gpus=gpus, engine=engine))).message.startswith("4 x NVIDIA A100")


def test_a_missing_toolkit_comes_with_how_to_get_it() -> None:
    hint = only(judge_gpu(GpuSight(gpus=A100, has_card=True, engine=FACTS))).hint
    assert "nvidia-ctk runtime configure --runtime=docker" in hint
    assert "--gpus none" in hint


# --- bundles, left-overs --------------------------------------------------------------------------

WHOLE = BundleFacts(name="cp311-glibc2.36-x86_64", size=105_000_000)
HALF = BundleFacts(name=".cp36-glibc2.31-x86_64-abc", is_whole=False)


def test_bundles_are_listed_with_what_they_take() -> None:
    found = only(judge_bundles(BundleSight(bundles=(WHOLE,))))
    assert found == Finding("ok", "1 built, 105 MB: cp311-glibc2.36-x86_64.")
    assert only(judge_bundles(BundleSight())).message.startswith("None is built yet")


def test_what_was_not_built_to_the_end_is_named() -> None:
    _, half = judge_bundles(BundleSight(bundles=(WHOLE, HALF)))
    assert half.status == "warn"
    assert HALF.name in half.message
    assert "dockml prune" in half.hint


@pytest.mark.parametrize(("bundles", "status"), [((), "fail"), ((WHOLE,), "warn")])
def test_without_pip_no_bundle_can_be_built(bundles: tuple[BundleFacts, ...], status: str) -> None:
    found = judge_bundles(BundleSight(bundles=bundles, has_pip=False, python="/py"))
    assert found[-1].status == status
    assert "/py -m ensurepip" in found[-1].hint


def test_nothing_left_over_is_well() -> None:
    assert only(judge_left_overs(LeftSight(running=2))) == Finding(
        "ok", "Nothing is left behind. Your containers that run: 2."
    )


def test_what_nobody_uses_is_counted() -> None:
    found = only(judge_left_overs(LeftSight(things={"containers": 2, "run folder": 1}, bytes=1500)))
    assert found.status == "warn"
    assert "2 containers, 1 run folder; about 1.5 kB" in found.message
    assert "dockml prune" in found.hint


def test_a_container_that_cannot_be_reached_is_named() -> None:
    found = only(judge_left_overs(LeftSight(stranded=("dockml-1", "dockml-2"), running=2)))
    assert found.status == "warn"
    assert "docker rm -f dockml-1 dockml-2" in found.hint


# --- Jupyter --------------------------------------------------------------------------------------

JUPYTER = JupyterSight(
    versions={"ipykernel": "7.4.0", "jupyter_client": "8.10.0", "ipywidgets": "8.1.9"},
    python="/env/bin/python",
)


def with_version(name: str, version: str) -> JupyterSight:
    return replace(JUPYTER, versions={**JUPYTER.versions, name: version})


def test_a_jupyter_as_it_should_be_shows_its_versions() -> None:
    found = only(judge_jupyter(JUPYTER))
    assert found.status == "ok"
    assert "ipykernel 7.4.0, jupyter_client 8.10.0, ipywidgets 8.1.9" in found.message


@pytest.mark.parametrize(
    ("sight", "status", "says", "do"),
    [
        (with_version("ipykernel", ""), "warn", "ipykernel is not", "-m pip install ipykernel"),
        (with_version("ipykernel", "6.28.0"), "fail", "older than 6.29", "install -U 'ipykernel"),
        (with_version("jupyter_client", "7.4.9"), "fail", "older than 8", "'jupyter_client>=8'"),
        (with_version("jupyter_client", ""), "fail", "is not in this", "'jupyter_client>=8'"),
        (with_version("ipywidgets", "7.8.5"), "fail", "older than 8", "'ipywidgets>=8'"),
        (replace(JUPYTER, has_provisioner=False), "fail", "not registered", "--force-reinstall"),
        (replace(JUPYTER, has_widgets_in_lab=False), "warn", "as a table", "jupyterlab_widgets"),
        (
            replace(JUPYTER, other_jupyter="/usr/bin/jupyter", other_python="/usr/bin/python3"),
            "warn",
            "/usr/bin/jupyter",
            "/env/bin/python -m jupyterlab",
        ),
    ],
)
def test_jupyter(sight: JupyterSight, status: str, says: str, do: str) -> None:
    found = only(judge_jupyter(sight))
    assert found.status == status
    assert says in found.message
    assert do in found.hint


def test_a_version_that_is_none_is_not_held_against_it() -> None:
    assert only(judge_jupyter(with_version("ipykernel", "from source"))).status == "ok"


def test_kernels_that_can_start_are_counted_and_the_others_named() -> None:
    good = KernelFacts(name="dockml-tf1.10", folder="/a")
    bad = KernelFacts(name="dockml-old", folder="/b c", problem="its Python is gone: /old/python")
    assert only(judge_kernels([])) == Finding("ok", "None of ours.")
    assert only(judge_kernels([good])) == Finding("ok", "1 of ours: dockml-tf1.10.")
    well, gone = judge_kernels([good, bad])
    assert well.status == "ok"
    assert gone.status == "fail"
    assert "dockml-old: its Python is gone" in gone.message
    assert "rm -r '/b c'" in gone.hint
    assert statuses(judge_kernels([bad])) == ["fail"]


# --- localhost ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "status"),
    [
        (["127.0.0.1"], "ok"),
        (["::1", "127.0.0.1"], "ok"),
        (["::1"], "warn"),
        ([], "fail"),
        (["127.0.0.1", "10.0.0.7"], "fail"),
        (["fe80::1%eth0"], "fail"),
    ],
)
def test_localhost(addresses: list[str], status: str) -> None:
    found = only(judge_localhost(addresses))
    assert found.status == status
    assert bool(found.hint) == (status != "ok")


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:secret@proxy:3128 is it", "http://***@proxy:3128 is it"),
        ("https://token@pypi.example.com/simple", "https://***@pypi.example.com/simple"),
        ("http://ada:p@ss/w0rd@proxy:3128", "http://***@proxy:3128"),
        ("no URL at all", "no URL at all"),
        ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
    ],
)
def test_users_and_passwords_of_urls_are_left_out(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_secrets_of_settings_are_left_out_wherever_they_stand() -> None:
    secrets = secrets_in(["ada:hunter2@proxy:3128", "https://tok3n@a/ https://b/", "http://plain"])
    assert secrets == {"ada:hunter2", "hunter2", "tok3n"}
    assert redact("proxy says: bad password hunter2 of ada:hunter2", secrets) == (
        "proxy says: bad password *** of ***"
    )


def test_no_judgement_shows_a_password_that_redaction_would_miss() -> None:
    proxies = {"http_proxy": "http://ada:hunter2@localhost:1", "HTTPS_PROXY": "ada:hunter2@b:1"}
    pip = {"index-url": "http://ada:hunter2@pypi.example.com/"}
    secrets = secrets_in([*proxies.values(), *pip.values()])
    said = everything_said(judge_proxy(NetworkSettings(proxies=proxies, pip=pip)))
    assert "hunter2" in said
    assert "hunter2" not in redact(said, secrets)
