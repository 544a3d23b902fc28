"""A kernel in any image, without a network, as any user, and what the first start is remembered by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dockml_magic import folders, kernel_bundle
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image, StartKernel, write_wheel

FROM_IMAGE, FROM_BUNDLE = "image", "bundle"

any_image = pytest.mark.parametrize(
    ("name", "source", "ipykernel"),
    [
        ("dockml/tensorflow:1.10.0-py27", FROM_IMAGE, "4.10"),
        ("dockml/ipykernel:5", FROM_IMAGE, "5."),
        ("dockml/ipykernel:7", FROM_IMAGE, "7."),
        ("dockml/bare:3.5", FROM_BUNDLE, "5."),
        ("dockml/bare:3.6", FROM_BUNDLE, ""),
        ("dockml/bare:3.9", FROM_BUNDLE, ""),
        ("dockml/bare:3.11", FROM_BUNDLE, ""),
        ("dockml/bare:3.13", FROM_BUNDLE, ""),
        ("dockml/bare:3.14", FROM_BUNDLE, ""),
        ("dockml/entrypoint:3.11", FROM_BUNDLE, ""),
        ("dockml/broken:3.11", FROM_BUNDLE, ""),
    ],
    ids=lambda value: value.partition("/")[2] if "/" in value else None,
)


@any_image
def test_cells_run_without_a_network(
    start: StartKernel, image: Image, name: str, source: str, ipykernel: str
) -> None:
    kernel = start(image(name), "--network", "none")
    assert kernel.report["kernel"] == source
    assert kernel.report["ipykernel"].startswith(ipykernel)
    ran = kernel.ok("import sys\nsys.stdout.write('out'); sys.stderr.write('err')\n1 + 1")
    assert (ran.stdout, ran.stderr, ran.result) == ("out", "err", "2")
    failed = kernel.run("def inverse(x):\n    return 1 / x\ninverse(0)")
    assert failed.reply["ename"] == "ZeroDivisionError"
    assert "inverse" in failed.traceback
    ran.reply = {"status": "aborted"}
    while ran.reply["status"] == "aborted":  # an ipykernel before 6 does so just after an error
        ran = kernel.run(
            # In short steps: a signal in the moment before a long one is noticed when that is over.
            "import time\nprint('here')\nsys.stdout.flush()\nfor _ in range(500): time.sleep(0.1)",
            when_printed=kernel.manager.interrupt_kernel,
        )
    assert ran.reply.get("ename") == "KeyboardInterrupt", ran
    kernel.manager.restart_kernel(now=True)
    kernel.disconnect()
    assert kernel.ok("1 + 1").result == "2"


@any_image
def test_the_last_cell_before_a_restart_is_in_the_history(
    start: StartKernel, image: Image, name: str, source: str, ipykernel: str
) -> None:
    kernel = start(image(name), "--network", "none")
    changed = "get_ipython().history_manager.writeout_cache.__name__"
    assert kernel.ok(changed).result == "'write_later'"
    kernel.ok("'typed just before'")
    kernel.manager.restart_kernel(now=False)
    kernel.disconnect()
    assert kernel.ok("%history ~1/1-2").stdout == f"{changed}\n'typed just before'\n"


def test_python_2_cells_are_python_2(start: StartKernel, image: Image) -> None:
    kernel = start(image("dockml/tensorflow:1.10.0-py27"), "--network", "none")
    assert kernel.ok('print "old"').stdout == "old\n"


@pytest.mark.parametrize(
    "name",
    ["dockml/tensorflow:1.10.0-py27", "dockml/bare:3.6", "dockml/entrypoint:3.11"],
    ids=lambda name: name.partition("/")[2],
)
def test_a_user_whom_the_image_does_not_know_has_a_name_and_a_home(
    start: StartKernel, image: Image, name: str
) -> None:
    kernel = start(image(name), "--network", "none", "--user", "12345:12345")
    kernel.ok("import getpass, os")
    assert kernel.ok("os.getuid(), os.getgid(), os.getgroups()").result == "(12345, 12345, [12345])"
    assert kernel.ok("getpass.getuser()").result == "'user12345'"
    assert kernel.ok("os.path.expanduser('~') == os.environ['HOME']").result == "True"
    kernel.ok("open(os.path.expanduser('~/file'), 'w').close()")
    # By default, what IPython itself wants to write (history, profile) is in the home too.
    assert "Permission" not in kernel.run("get_ipython().history_manager.hist_file").stderr


def test_such_a_user_can_install_packages(
    start: StartKernel, image: Image, workspace: Path
) -> None:
    write_wheel(workspace)
    kernel = start(image("dockml/pip:3.11"), "--network", "none", "--user", "12345:12345")
    kernel.ok("%pip install --no-index ./tiny-1.0-py3-none-any.whl")
    assert kernel.ok("import tiny; tiny.answer").result == "42"


def test_a_bundle_is_built_once(
    start: StartKernel,
    image: Image,
    own_bundles: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start(image("dockml/bare:3.11")).ok("1")
    built = sorted(own_bundles.glob("cp311-*"))
    assert len(built) == 1

    def fail(*arguments: object) -> None:
        pytest.fail("pip was called again")

    monkeypatch.setattr(kernel_bundle, "_pip_download", fail)
    # Another image with the same Python, of which nothing is remembered yet, uses it too.
    start(image("dockml/bare:3.11")).ok("1")
    start(image("dockml/entrypoint:3.11")).ok("1")
    assert sorted(own_bundles.glob("cp311-*")) == built


def test_the_image_is_not_changed_by_the_bundle(start: StartKernel, image: Image) -> None:
    """What the image has keeps winning, and the bundle cannot be written to."""
    kernel = start(image("dockml/pip:3.11"))
    kernel.ok("import ipykernel, os, pip")
    assert kernel.ok("pip.__file__.startswith('/usr/local/lib')").result == "True"
    bundle = "os.path.dirname(ipykernel.__file__)"
    assert kernel.ok(f"{bundle}.startswith('/opt/dockml/bundles/')").result == "True"
    assert kernel.run(f"open({bundle} + '/new', 'w')").reply["ename"] == "OSError"


def test_no_output_is_lost_in_ten_starts(start: StartKernel, image: Image) -> None:
    for number in range(10):
        kernel = start(image("dockml/ipykernel:5"), "--network", "none")
        assert kernel.ok(f"print({number})").stdout == f"{number}\n"  # waits for the cell's idle
        kernel.stop()


@pytest.mark.parametrize(
    ("name", "source"), [("dockml/bare:3.11", FROM_BUNDLE), ("dockml/ipykernel:7", FROM_IMAGE)]
)
def test_what_the_first_start_found_is_remembered(
    start: StartKernel, image: Image, engine: DockerEngine, name: str, source: str
) -> None:
    path = memory_of(engine, image(name))
    first = start(image(name))
    assert path.is_file()
    second = start(image(name))
    told = json.loads(
        (second.manager.provisioner.container._runtime.shared / "config.json").read_text()
    )
    assert (told["interpreter"], told["kernel"]) == (first.report["executable"], source)
    # Only the first one has compiled code to leave.
    assert second.report == {n: v for n, v in first.report.items() if n != "compiled"}


@pytest.mark.parametrize("shares_files", [True, False], ids=["local", "far"])
def test_a_memory_that_is_wrong_by_now_is_replaced(
    start: StartKernel,
    image: Image,
    engine: DockerEngine,
    shares_files: bool,
    request: pytest.FixtureRequest,
) -> None:
    if not shares_files:
        request.getfixturevalue("far_engine")
    path = memory_of(engine, image("dockml/bare:3.11"))
    path.parent.mkdir()
    wrong = {"entry": "python", "interpreter": "/usr/local/bin/python", "kernel": FROM_IMAGE}
    path.write_text(json.dumps(wrong))
    assert start(image("dockml/bare:3.11")).report["kernel"] == FROM_BUNDLE
    assert json.loads(path.read_text())["kernel"] == FROM_BUNDLE


def memory_of(engine: DockerEngine, reference: str) -> Path:
    """Return the file in which the findings about an image are kept."""
    found = engine.find_image(reference)
    assert found is not None
    return folders.cache_root() / "images" / f"{found.id.removeprefix('sha256:')}.json"


@pytest.mark.parametrize("python", ["3.7", "3.8", "3.10", "3.12"])
def test_the_packages_for_a_python_that_no_image_here_has_can_be_downloaded(
    tmp_path: Path, python: str
) -> None:
    report = {
        "python": f"{python}.10",
        "libc": "glibc",
        "libc_version": "2.23",
        "machine": "x86_64",
    }
    if python in ("3.10", "3.12"):  # newer wheels need a newer C library
        report["libc_version"] = "2.31"
    pins = kernel_bundle.closure(python)
    kernel_bundle._download(pins, python, report, tmp_path / "wheels")
    assert len(list((tmp_path / "wheels").iterdir())) == len(pins)
