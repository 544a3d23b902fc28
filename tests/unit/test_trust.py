"""What a project file asks for beyond its own folder, and how that is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import planning, trust
from dockml_magic.errors import UntrustedProjectError
from dockml_magic.options import RunOptions
from dockml_magic.project import user_images_file
from tests.unit.fake_engine import FakeEngine

IMAGE = "me/mine:1"
Plan = Callable[..., planning.KernelPlan]


def write(folder: Path, *lines: str, name: str = "x") -> None:
    text = "\n".join([f"[environments.{name}]", f'image = "{IMAGE}"', *lines, ""])
    (folder / "dockml.toml").write_text(text)


def asked(folder: Path, name: str = "x", **options: Any) -> tuple[str, ...]:
    """Return what is asked for; it is allowed then."""
    return planning.allow_project(name, RunOptions(**options), folder)


@pytest.mark.parametrize(
    "line",
    [
        "",
        'volumes = ["./models:/models"]',
        'with = ["pandas==0.24"]\nrequirements = "more.txt"',
        'volumes = [".:/all:ro", "./a/../b:/b"]',
        'env = { A = "1", B = "$SECRET" }',
        'env = ["A=1", "B="]',
        'publish = ["8501:8501", "127.0.0.1:80:80", "[::1]:81:81"]',
        'network = "none"',
        'network = "bridge"',
        'user = "1000:1000"',
        'ipc = "private"',
        'cap_drop = ["ALL"]',
        'security_opt = ["no-new-privileges"]',
        'ulimit = ["memlock=-1"]',
        'add_host = ["db:10.0.0.5"]',
        'gpus = "all"\nmemory = "4g"\ncpus = 2\nshm_size = "1g"\nworkdir = "/"',
    ],
)
def test_an_ordinary_project_asks_for_nothing(workspace: Path, line: str) -> None:
    (workspace / "more.txt").write_text("-r ./inner/two.txt\n-c held.txt\npandas")
    (workspace / "held.txt").touch()
    (workspace / "inner").mkdir()
    (workspace / "inner" / "two.txt").write_text("-r ../held.txt")
    write(workspace, line)
    assert asked(workspace) == ()


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ('volumes = ["/etc:/etc"]', "/etc, to read and write"),
        ('requirements = "/etc/hosts"', "/etc/hosts, to read as a list of packages"),
        ('volumes = ["/etc:/etc:ro"]', "/etc, to read"),
        ('volumes = ["..:/up"]', "{parent}, to read and write"),
        ('volumes = ["./link:/up"]', "{parent}, to read and write"),
        ('volumes = ["./link/../x:/up"]', "/x, to read and write"),
        ('volumes = ["~:/home"]', "{home}, to read and write"),
        (
            'volumes = ["/var/run/docker.sock:/s"]',
            "/docker.sock, to read and write (with the Docker engine's socket: root on this machine)",
        ),
        ('volumes = ["/:/host:ro"]', "/, to read (with the Docker engine's socket"),
        ('volumes = ["others:/data"]', "the volume 'others', to read and write"),
        ('env = ["AWS_SECRET_ACCESS_KEY"]', "the value of your variable AWS_SECRET_ACCESS_KEY"),
        ('publish = ["0.0.0.0:80:8080"]', "port 8080, to be reached from other machines"),
        ('publish = ["[::]:80:8080"]', "port 8080, to be reached from other machines"),
        ('publish = ["somewhere:80:8080"]', "port 8080, to be reached from other machines"),
        ("privileged = true", "--privileged"),
        ('cap_add = ["sys_admin"]', "the capability SYS_ADMIN"),
        ('security_opt = ["seccomp=unconfined"]', "--security-opt seccomp=unconfined"),
        ('security_opt = ["no-new-privileges=false"]', "no-new-privileges=false"),
        ('device = ["/dev/sda"]', "the device /dev/sda:/dev/sda:rwm"),
        ('network = "host"', "the network 'host': every service of this machine"),
        ('network = "container:db"', "the network 'container:db'"),
        ('network = "intranet"', "the network 'intranet'"),
        ('ipc = "host"', "shared memory of others (--ipc host)"),
        ('ipc = "container:db"', "shared memory of others"),
        ('user = "root"', "to run as 'root'"),
        ('user = "0:0"', "to run as '0:0'"),
        ('user = "00"', "to run as '00'"),
        ('user = "toor"', "to run as 'toor', which is root or may be"),
    ],
)
def test_what_goes_beyond_the_folder_is_named(workspace: Path, line: str, phrase: str) -> None:
    (workspace / "link").symlink_to(workspace.parent)
    write(workspace, line)
    (found,) = asked(workspace)
    home = Path.home().resolve()
    assert phrase.format(parent=workspace.parent.resolve(), home=home) in found


@pytest.mark.parametrize(
    "line", ["-r {0}/keys", "-c ../keys", "--constraint=./link", "-r more/nested.txt"]
)
def test_a_file_elsewhere_that_a_requirements_file_names_is_named(
    workspace: Path, engine: FakeEngine, plan: Plan, line: str
) -> None:
    """Its lines would be given to the image's own Python."""
    outside = workspace.parent.resolve()
    (outside / "keys").write_text("of-the-host")
    (workspace / "link").symlink_to("../keys")
    (workspace / "more").mkdir()
    (workspace / "more" / "nested.txt").write_text("-r ../link")
    (workspace / "all.txt").write_text(line.format(outside))
    write(workspace, 'requirements = "all.txt"')
    engine.add_image(IMAGE)
    error = refuse(plan)
    assert error.asked == (f"{outside}/keys, to read as a list of packages",)
    with pytest.raises(UntrustedProjectError):
        planning.plan_here("x", RunOptions(), workspace, engine)
    assert engine.specs == []
    assert asked(workspace) == error.asked
    assert planning.plan_here("x", RunOptions(), workspace, engine) is None  # it would be built
    # Another file is another question.
    (outside / "other").touch()
    (workspace / "all.txt").write_text("-r ../other")
    assert refuse(plan).asked == (f"{outside}/other, to read as a list of packages",)


def test_a_file_elsewhere_that_the_user_types_needs_no_trust(
    workspace: Path, engine: FakeEngine
) -> None:
    (workspace.parent / "mine.txt").touch()
    (workspace / "all.txt").write_text("pandas")
    write(workspace, 'requirements = "all.txt"')
    engine.add_image(IMAGE)
    options = RunOptions(packages=("-r ../mine.txt",))
    assert planning.plan_here("x", options, workspace, engine) is None
    assert asked(workspace, packages=options.packages) == ()


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:3128", "http://proxy.example.com:3128", ""])
@pytest.mark.parametrize(
    ("lines", "options", "asks"),
    [
        (['with = ["pandas"]'], {}, True),
        ([], {"packages": ("pandas",)}, True),
        (['with = ["pandas"]'], {"image": "me/typed:1"}, True),
        ([], {}, False),
        ([], {"packages": ("pandas",), "image": "me/typed:1"}, False),
    ],
)
def test_the_hosts_network_for_packages_is_named(
    workspace: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch,
    proxy: str, lines: list[str], options: dict[str, Any], *, asks: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("https_proxy", proxy)
    write(workspace, *lines)
    for reference in (IMAGE, "me/typed:1"):
        engine.add_image(reference)
    typed = RunOptions(**options)
    if asks and "127.0.0.1" in proxy:
        with pytest.raises(
            UntrustedProjectError, match="the network 'host' while packages are installed, as your"
        ):
            planning.plan_here("x", typed, workspace, engine)
        assert asked(workspace, **options) == (trust.INSTALL_NETWORK,)
    else:
        assert asked(workspace, **options) == ()
    planning.plan_here("x", typed, workspace, engine)


def test_an_image_that_a_project_file_names_is_not_run_in_the_hosts_network_unasked(
    workspace: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:3141/simple")
    (workspace / "dockml.toml").write_text('[images."tf1.10"]\nreference = "evil/image:1"\n')
    assert asked(workspace, "tf1.10", packages=("pandas",)) == (trust.INSTALL_NETWORK,)
    assert asked(workspace, "torch1.13", packages=("pandas",)) == ()
    assert asked(workspace, "tf1.10") == ()


def test_the_hosts_network_for_packages_is_asked_for_once_wherever_the_proxy_is(
    engine: FakeEngine, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for beside it stays the same when one comes home from a company with a proxy."""
    engine.add_image(IMAGE)
    write(workspace, 'with = ["pandas"]', 'network = "host"')

    def start() -> None:
        planning.plan_here("x", RunOptions(), workspace, engine)

    planning.allow_project("x", RunOptions(), workspace)
    start()
    monkeypatch.setenv("https_proxy", "http://localhost:3128")
    with pytest.raises(UntrustedProjectError):
        start()
    planning.allow_project("x", RunOptions(), workspace)
    start()
    monkeypatch.delenv("https_proxy")
    start()
    write(workspace, 'with = ["pandas"]', 'network = "host"', "privileged = true")
    with pytest.raises(UntrustedProjectError):
        start()


def test_a_dockerfile_outside_of_the_project_is_named(workspace: Path) -> None:
    (workspace / "link").symlink_to(workspace.parent)
    for text in ("../Dockerfile", "./link/Dockerfile", "./inside/Dockerfile"):
        path = workspace / "dockml.toml"
        path.write_text(f'[environments.x]\nimage = "{text}"\n')
        outside = "inside" not in text
        assert asked(workspace) == (
            (f"build {workspace.parent.resolve()}/Dockerfile, with what is in its folder",)
            if outside
            else ()
        )


def test_another_users_file_above_our_folder_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /tmp, where anybody can put one, with an image of theirs under a name that we use."""
    (workspace / "dockml.toml").write_text('[images."tf1.10"]\nreference = "evil/image:1"\n')
    mine = workspace / "mine"
    mine.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert asked(workspace, "tf1.10") == ()  # a folder of theirs, which we were given
    if os.geteuid() == 0:
        os.chown(mine, 4711, 4711)
        os.chown(workspace / "dockml.toml", 4712, 4712)
        (found,) = asked(mine, "tf1.10")
        assert "it belongs to user 4712" in found
        assert asked(mine, "torch1.13") == ()


# --- allowed or not -------------------------------------------------------------------------------


def refuse(plan: Plan, name: str = "x") -> UntrustedProjectError:
    with pytest.raises(UntrustedProjectError) as caught:
        plan(name)
    return caught.value


def test_nothing_is_fetched_or_started_until_it_is_allowed(
    engine: FakeEngine, plan: Plan, workspace: Path
) -> None:
    engine.registry[IMAGE] = ("python3",)
    write(workspace, 'network = "host"', 'volumes = ["/etc:/etc:ro"]')
    error = refuse(plan)
    assert engine.pulled == []
    assert str(error) == (
        f"'x' of {workspace / 'dockml.toml'} asks for more than its own folder:\n"
        "  - /etc, to read\n"
        "  - the network 'host': every service of this machine\n"
        "If you trust whoever wrote it, allow exactly this: "
        "%docker_env x --trust   (or in a terminal: dockml trust x)"
    )
    assert planning.allow_project("x", RunOptions(), workspace) == error.asked
    assert plan("x").choice.options.network == "host"


@pytest.mark.parametrize(
    "line", ['volumes = ["/etc:/etc"]', 'volumes = ["/usr:/etc:ro"]', 'network = "host"']
)
def test_a_change_asks_again(engine: FakeEngine, plan: Plan, workspace: Path, line: str) -> None:
    engine.add_image(IMAGE)
    write(workspace, 'volumes = ["/etc:/etc:ro"]')
    planning.allow_project("x", RunOptions(), workspace)
    write(workspace, 'volumes = ["/etc:/etc:ro"]', 'memory = "4g"')
    plan("x")
    write(workspace, line)
    refuse(plan)


def test_one_environment_and_one_file_are_allowed_and_no_other(
    engine: FakeEngine, plan: Plan, workspace: Path
) -> None:
    engine.add_image(IMAGE)
    write(workspace, 'network = "host"')
    planning.allow_project("x", RunOptions(), workspace)
    write(workspace, 'network = "host"', name="y")
    refuse(plan, "y")
    inner = workspace / "inner"
    inner.mkdir()
    write(inner, 'network = "host"')
    with pytest.raises(UntrustedProjectError):
        planning.make_plan("x", RunOptions(), inner, engine=engine, tell=print)


def test_what_the_user_types_needs_no_trust(
    engine: FakeEngine, plan: Plan, workspace: Path
) -> None:
    engine.add_image(IMAGE)
    write(workspace)
    assert plan("x", network="host", volumes=("/etc:/etc",), privileged=True)


def test_what_is_allowed_is_the_users_own_file(workspace: Path) -> None:
    write(workspace, 'network = "host"')
    before = os.umask(0)
    try:
        planning.allow_project("x", RunOptions(), workspace)
    finally:
        os.umask(before)
    path = user_images_file().with_name("trusted.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["trusted.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "[" * 100_000, "\x00"])
def test_a_file_that_is_none_allows_nothing(
    engine: FakeEngine, plan: Plan, workspace: Path, text: str
) -> None:
    engine.add_image(IMAGE)
    write(workspace, 'network = "host"')
    path = user_images_file().with_name("trusted.json")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    refuse(plan)
    planning.allow_project("x", RunOptions(), workspace)
    plan("x")


def test_a_file_that_others_may_write_allows_nothing(
    engine: FakeEngine, plan: Plan, workspace: Path
) -> None:
    engine.add_image(IMAGE)
    write(workspace, 'network = "host"')
    planning.allow_project("x", RunOptions(), workspace)
    user_images_file().with_name("trusted.json").chmod(0o666)
    refuse(plan)


def test_a_file_cannot_make_up_lines_of_ours(
    engine: FakeEngine, plan: Plan, workspace: Path
) -> None:
    engine.add_image(IMAGE)
    write(workspace, 'network = "x\\n\\u001b[2JNothing else is asked for."')
    said = str(refuse(plan))
    assert "  - the network 'x \\x1b[2JNothing else is asked for.'\n" in said
    assert len(said.splitlines()) == 3
