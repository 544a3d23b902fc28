"""The workspace, and the options of `docker run`: what a cell sees and what the engine was told."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from dockml_magic.engine import DockerEngine
from dockml_magic.spec import ContainerSpec
from tests.integration.conftest import Image, Inspect, RunAs, StartKernel
from tests.integration.kernels import Kernel
from tests.ports import free_ports

SEE_FILE = "import os; os.path.exists({!r})"


@pytest.fixture
def any_image(image: Image) -> str:
    return image("dockml/ipykernel:7")


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


def environ_of(kernel: Kernel) -> dict[str, str]:
    """Return the environment of a kernel."""
    found = eval(kernel.ok("import os; dict(os.environ)").result)
    assert isinstance(found, dict)
    return found


# --- folders and files -----------------------------------------------------------------------------


def test_the_workspace_is_at_the_same_path_and_the_current_folder(
    start: StartKernel, any_image: str, workspace: Path
) -> None:
    (workspace / "data.txt").write_text("from the host")
    kernel = start(any_image)
    assert kernel.ok("import os; os.getcwd()").result == repr(str(workspace))
    assert kernel.ok("open('data.txt').read()").result == "'from the host'"
    kernel.ok("open('result.txt', 'w').write('from the container')")
    assert (workspace / "result.txt").read_text() == "from the container"


@pytest.mark.parametrize(
    "name",
    [
        "run 1: größer,dst=x",
        "-v",
        "'one' \"two\" $HOME `id` \\",
        "two\nlines\tand a tab",
        "%s {0} *?",
    ],
)
def test_a_workspace_may_be_called_anything(
    start: StartKernel, any_image: str, workspace: Path, name: str
) -> None:
    odd = workspace / name
    (odd / "da:ta").mkdir(parents=True)
    odd_value = "a 'b' \"c\"\n-d $HOME é"
    kernel = start(any_image, "-v", f"{odd}/da:ta:/da ta", "-e", f"ODD={odd_value}", cwd=str(odd))
    assert kernel.ok("import os; (os.environ['ODD'], os.path.isdir('/da ta'))").result == repr(
        (odd_value, True)
    )
    kernel.ok("open('file', 'w').close()")
    assert (odd / "file").exists()


def test_nothing_else_of_the_host_is_mounted(
    start: StartKernel, any_image: str, workspace: Path, inspect: Inspect
) -> None:
    (workspace.parent / "beside").touch()
    kernel = start(any_image)
    assert kernel.ok(SEE_FILE.format(str(workspace.parent / "beside"))).result == "False"
    targets = {mount["Destination"] for mount in inspect(kernel)["Mounts"]}
    assert targets == {str(workspace), "/run/dockml", "/opt/dockml/bundles", "/opt/dockml/compiled"}


@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("", (os.getuid(), os.getgid())),
        ("12345:23456", (12345, 23456)),
        ("12345", (12345, 0)),
        ("root", (0, 0)),
        ("nobody", (65534, 65534)),
    ],
)
def test_files_belong_to_the_user_of_the_kernel(
    start: StartKernel, any_image: str, workspace: Path, user: str, owner: tuple[int, int]
) -> None:
    workspace.chmod(0o777)
    kernel = start(any_image, *(["--user", user] if user else []))
    kernel.ok("open('file', 'w').close()")
    found = (workspace / "file").stat()
    assert (found.st_uid, found.st_gid) == owner


RUN_A_CELL = """
import sys
from dockml_magic import start
with start(sys.argv[1]) as environment:
    environment.run("import getpass, os; open('file', 'w').close(); os.mkdir('folder')")
    print(environment.run("getpass.getuser()").text)
"""


def test_files_of_an_ordinary_user_belong_to_them(
    any_image: str, workspace: Path, run_as: RunAs
) -> None:
    os.chown(workspace, 12345, 12345)
    done = run_as(12345, RUN_A_CELL, any_image, may_use_docker=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "'someone'\n"
    for name in ("file", "folder"):
        assert ((workspace / name).stat().st_uid, (workspace / name).stat().st_gid) == (
            12345,
            12345,
        )


def test_a_strict_umask_does_no_harm(start: StartKernel, any_image: str, workspace: Path) -> None:
    workspace.chmod(0o777)
    before = os.umask(0o077)
    try:
        kernel = start(any_image, "--user", "nobody")
    finally:
        os.umask(before)
    assert kernel.ok("1 + 1").result == "2"


def test_a_volume_is_mounted_as_asked(start: StartKernel, any_image: str, workspace: Path) -> None:
    for name in ("open", "closed"):
        (workspace / name).mkdir()
        (workspace / name / "file").write_text(name)
    absolute = workspace / "open"
    kernel = start(any_image, "-v", f"{absolute}:/open", "-v", "./closed:/closed:ro")
    assert kernel.ok("open('/open/file').read(), open('/closed/file').read()").result == (
        "('open', 'closed')"
    )
    kernel.ok("open('/open/new', 'w').write('1')")
    assert (workspace / "open" / "new").read_text() == "1"
    refused = kernel.run("open('/closed/new', 'w')")
    assert "Read-only file system" in refused.reply["evalue"]


def test_the_working_directory_is_the_one_asked_for_also_after_a_restart(
    start: StartKernel, any_image: str
) -> None:
    kernel = start(any_image, "-w", "/var/tmp")
    assert kernel.ok("import os; os.getcwd()").result == "'/var/tmp'"
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert kernel.ok("import os; os.getcwd()").result == "'/var/tmp'"


# --- variables and settings --------------------------------------------------------------------------


def test_variables_are_set_as_docker_run_sets_them(
    start: StartKernel, any_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HOST", "host's value")
    monkeypatch.delenv("NOT_THERE", raising=False)
    kernel = start(
        any_image, "-e", "SET=a=b c", "-e", "FROM_HOST", "-e", "NOT_THERE", "-e", "EMPTY="
    )
    found = environ_of(kernel)
    assert (found["SET"], found["FROM_HOST"], found["EMPTY"]) == ("a=b c", "host's value", "")
    assert "NOT_THERE" not in found


def test_proxies_ca_bundle_and_pip_settings_go_in_and_nothing_else(
    start: StartKernel, any_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "company.pem"
    bundle.write_text("the company's certificates")
    bundle.chmod(0o600)
    settings = {
        "https_proxy": "http://proxy.example:3128",
        "no_proxy": "localhost,.example",
        "PIP_INDEX_URL": "https://pypi.example/simple",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    kernel = start(any_image, "--user", "12345:12345")
    found = environ_of(kernel)
    assert {name: found[name] for name in settings} == settings
    assert found["HTTPS_PROXY"] == settings["https_proxy"]
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        read = kernel.ok(f"open(os.environ[{variable!r}]).read()").result
        assert read == '"the company\'s certificates"'
    assert "AWS_SECRET_ACCESS_KEY" not in found
    assert "XDG_CACHE_HOME" not in found
    assert "secret" not in found.values()


def test_what_the_user_sets_wins_over_what_is_carried_in(
    start: StartKernel, any_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert environ_of(start(any_image, "-e", "https_proxy=other"))["https_proxy"] == "other"


# --- the network --------------------------------------------------------------------------------------

SERVE = """
import http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"from the container")
    def log_message(self, *words): pass
server = http.server.HTTPServer(("0.0.0.0", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""


def bindings_of(inspected: dict[str, Any]) -> list[tuple[str, int]]:
    """Return where port 8000 is published."""
    ports = inspected["NetworkSettings"]["Ports"]["8000/tcp"]
    return [(port["HostIp"], int(port["HostPort"])) for port in ports]


def test_a_published_port_is_reached_on_the_loopback_address_only(
    start: StartKernel, any_image: str, inspect: Inspect, free_port: int
) -> None:
    kernel = start(any_image, "-p", f"{free_port}:8000")
    assert bindings_of(inspect(kernel)) == [("127.0.0.1", free_port)]
    kernel.ok(SERVE)
    connection = http.client.HTTPConnection("127.0.0.1", free_port)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"from the container"
    connection.close()


def test_a_port_without_a_host_port_gets_a_free_one(
    start: StartKernel, any_image: str, inspect: Inspect
) -> None:
    [(address, port)] = bindings_of(inspect(start(any_image, "-p", "8000")))
    assert address == "127.0.0.1"
    assert port > 0


def test_an_address_that_is_given_is_taken(
    start: StartKernel, any_image: str, inspect: Inspect, free_port: int
) -> None:
    kernel = start(any_image, "-p", f"0.0.0.0:{free_port}:8000")
    assert bindings_of(inspect(kernel)) == [("0.0.0.0", free_port)]


def test_network_none_has_no_way_out(start: StartKernel, any_image: str, inspect: Inspect) -> None:
    kernel = start(any_image, "--network", "none")
    assert inspect(kernel)["HostConfig"]["NetworkMode"] == "none"
    assert kernel.ok("import os; os.listdir('/sys/class/net')").result == "['lo']"


def test_network_host_is_the_hosts(start: StartKernel, any_image: str, inspect: Inspect) -> None:
    kernel = start(any_image, "--network", "host")
    assert inspect(kernel)["HostConfig"]["NetworkMode"] == "host"
    assert kernel.ok("import socket; socket.gethostname()").result == repr(socket.gethostname())


# --- limits and names ---------------------------------------------------------------------------------


def test_limits_and_the_name_are_the_engines(
    start: StartKernel, any_image: str, inspect: Inspect, tmp_path: Path
) -> None:
    name = f"dockml-test-{tmp_path.name}-{os.getpid()}"
    kernel = start(
        any_image, "--memory", "256m", "--cpus", "0.5", "--shm-size", "64m", "--name", name
    )
    found = inspect(kernel)
    limits = found["HostConfig"]
    assert limits["Memory"] == limits["MemorySwap"] == 256 * 1024**2
    assert limits["NanoCpus"] == 500_000_000
    assert limits["ShmSize"] == 64 * 1024**2
    assert found["Name"] == f"/{name}"
    shm = kernel.ok("import os; s = os.statvfs('/dev/shm'); s.f_blocks * s.f_frsize")
    assert int(shm.result) == 64 * 1024**2


def test_shared_memory_is_large_enough_for_a_data_loader_by_default(
    start: StartKernel, any_image: str, inspect: Inspect
) -> None:
    assert inspect(start(any_image))["HostConfig"]["ShmSize"] == 2 * 1024**3


# --- rights ---------------------------------------------------------------------------------------

RIGHTS = """
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status"))
import os, resource; (status["NoNewPrivs"], int(status["CapEff"], 16), os.getuid())
"""


def test_a_container_gets_no_rights_beyond_dockers_own_and_its_user_has_none(
    start: StartKernel, any_image: str, inspect: Inspect
) -> None:
    kernel = start(any_image, "--user", "1234:1234")
    told = inspect(kernel)["HostConfig"]
    assert not told["Privileged"]
    assert not told["CapAdd"]
    assert not told["Devices"]
    assert told["SecurityOpt"] == ["no-new-privileges=true"]
    assert told["NetworkMode"] == "default"
    assert (told["PidMode"], told["IpcMode"]) == ("", "private")
    assert kernel.ok(RIGHTS).result == "('1', 0, 1234)"


BOUND = """
def bound(process):
    (line,) = [line for line in open("/proc/%s/status" % process) if line.startswith("CapBnd:")]
    return [bit for bit in range(64) if int(line.split()[1], 16) >> bit & 1]
print(bound(1), bound("self"))
"""


def test_nothing_in_the_container_of_an_ordinary_user_has_more_than_the_launcher_needs(
    start: StartKernel, any_image: str
) -> None:
    # CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID; NET_BIND_SERVICE, NET_RAW: as linux/capability.h has them.
    needed = [0, 1, 3, 5, 6, 7, 10, 13]
    kernel = start(any_image, "--user", "1234:1234")
    assert kernel.ok(BOUND).stdout == f"{needed} {needed}\n"
    kernel = start(any_image, "--user", "1234:1234", "--cap-add", "MKNOD", "--cap-drop", "KILL")
    others = [0, 1, 3, 6, 7, 10, 13, 27]
    assert kernel.ok(BOUND).stdout == f"{others} {others}\n"


def test_root_that_is_asked_for_has_dockers_own_capabilities(
    start: StartKernel, any_image: str
) -> None:
    kernel = start(any_image, "--user", "0")
    dockers = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]
    assert kernel.ok(BOUND).stdout == f"{dockers} {dockers}\n"


LIKE_PING = """
import os, shutil, struct
for name, bit in (("like-ping", 13), ("like-a-server", 10)):
    path = "/usr/local/bin/" + name
    shutil.copy("/bin/true", path)
    os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 1 << bit, 0, 0, 0))
"""
"""Programs that ask for NET_RAW and NET_BIND_SERVICE, as `setcap cap_net_raw+ep` has them do it."""


def test_programs_that_ask_for_capabilities_run_as_they_do_in_docker(
    start: StartKernel, any_image: str
) -> None:
    kernel = start(any_image, "--user", "1234:1234", "--cap-add", "SETFCAP")
    as_root = ["docker", "exec", "-u", "0", kernel.container_id, "python3", "-c", LIKE_PING]
    subprocess.run(as_root, check=True, capture_output=True)
    for program in ("like-ping", "like-a-server"):
        assert kernel.ok(f"import subprocess; subprocess.call('{program}')").result == "0"


def test_rights_and_limits_that_are_asked_for_reach_the_engine(
    start: StartKernel, any_image: str, inspect: Inspect, tmp_path: Path
) -> None:
    words = """--cap-add SYS_PTRACE --cap-drop NET_RAW --device /dev/null:/dev/mine:r --ulimit nofile=512:512
        --add-host db:10.0.0.5 --ipc shareable --security-opt no-new-privileges=false
        --security-opt seccomp=unconfined"""
    kernel = start(any_image, *words.split())
    told = inspect(kernel)["HostConfig"]
    assert (told["CapAdd"], told["CapDrop"]) == (["SYS_PTRACE"], ["NET_RAW"])
    assert told["SecurityOpt"] == ["seccomp=unconfined"]
    assert told["IpcMode"] == "shareable"
    assert kernel.ok(RIGHTS).result.startswith("('0', ")
    assert kernel.ok("resource.getrlimit(resource.RLIMIT_NOFILE)").result == "(512, 512)"
    assert kernel.ok(
        "os.path.exists('/dev/mine'), '10.0.0.5' in open('/etc/hosts').read()"
    ).result == ("(True, True)")


def test_the_engine_is_asked_for_a_privileged_container(
    engine: DockerEngine, any_image: str, tmp_path: Path
) -> None:
    """Not started: where the engine is in a container itself, it may not give such rights."""
    spec = ContainerSpec(
        image=any_image,
        name=f"dockml-{tmp_path.name}",
        entrypoint=("true",),
        user="0:0",
        workdir=PurePosixPath("/"),
        labels={},
        env={},
        privileged=True,
        security_opt=(),
    )
    container = engine.create(spec)
    try:
        told = engine._client.api.inspect_container(container)["HostConfig"]
    finally:
        engine.remove(container)
    assert told["Privileged"]
