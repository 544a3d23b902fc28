"""The compiled code that an image's first start leaves, in real containers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dockml_magic import compiled, folders, kernel_bundle
from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image, Inspect, StartKernel
from tests.integration.kernels import Kernel

SEEN = """
import json, sys
found = [sys.dont_write_bytecode, getattr(sys, "pycache_prefix", None)]
found.append([str(finder) for finder in sys.meta_path if "OldFinder" in str(finder)])
try:
    from importlib.machinery import SourceFileLoader
    found.append(sorted(name for name in ("get_code", "_cache_bytecode") if "start.py" in str(
        getattr(getattr(SourceFileLoader, name), "__code__", ""))))
except ImportError:
    found.append([])
print(json.dumps(found))
"""
"""What a user could see of how Python imports."""

WRITTEN = """
import os
def is_written(module):
    return os.path.exists(getattr(module, "__cached__", None) or module.__file__.replace(".pyc", ".py") + "c")
import json, socket, tokenize  # the supervisor's and the kernel's
import mailbox, mine  # nobody's, and the user's own
print([is_written(module) for module in (json, socket, tokenize, mailbox, mine)])
"""
"""Python, as root, writes what it has to compile: so that shows what was there."""


def file_of(engine: DockerEngine, reference: str) -> Path | None:
    """Return the file with an image's compiled code."""
    image = engine.find_image(reference)
    assert image is not None
    return next((compiled.root() / image.id.removeprefix("sha256:")).iterdir(), None)


def answers(kernel: Kernel) -> None:
    assert kernel.ok("1 + 1").result == "2"


@pytest.mark.parametrize(
    "name",
    ["dockml/bare:3.11", "dockml/tensorflow:1.10.0", "dockml/tensorflow:1.10.0-py27"],
    ids=lambda name: name.partition("/")[2],
)
def test_what_the_first_start_compiles_the_second_has_and_the_user_sees_none_of_it(
    start: StartKernel,
    image: Image,
    engine: DockerEngine,
    inspect: Inspect,
    workspace: Path,
    name: str,
) -> None:
    (workspace / "mine.py").write_text("")
    first = start(image(name), "--user", "0:0", "--network", "none")
    file = file_of(engine, name)
    assert file is not None
    code = file.read_bytes()
    assert len(code) > 500_000
    seen = first.ok(SEEN).stdout
    assert first.ok("import os; os.listdir('/run/dockml').count('compiled')").result == "0"
    second = start(image(name), "--user", "0:0", "--network", "none")
    assert second.ok(SEEN).stdout == seen == "[false, null, [], []]\n"
    assert second.ok(WRITTEN).stdout == "[False, False, False, True, True]\n"
    # Restarted in the container, it is used as well, and what a container says by then is not taken.
    first.manager.restart_kernel(now=True)
    first.disconnect()
    assert first.ok(WRITTEN).stdout == "[False, False, False, True, True]\n"
    assert file.read_bytes() == code
    (mount,) = [m for m in inspect(second)["Mounts"] if m["Destination"] == "/opt/dockml/compiled"]
    assert (mount["Source"], mount["RW"]) == (str(file.parent), False)
    refused = second.run("open('/opt/dockml/compiled/x', 'w')")
    assert "Read-only" in refused.traceback


def test_damaged_code_and_code_that_raises_do_not_keep_an_image_from_starting(
    start: StartKernel, image: Image, engine: DockerEngine
) -> None:
    first = start(image("dockml/bare:3.11"), "--network", "none")
    answers(first)
    assert engine.logs(first.container_id, 50).strip() == ""
    file = file_of(engine, "dockml/bare:3.11")
    assert file is not None
    code = file.read_bytes()
    for damaged in (code[: len(code) // 2], code.replace(b"e", b"E"), b"\0" * len(code)):
        file.write_bytes(damaged)
        answers(start(image("dockml/bare:3.11"), "--network", "none"))


def test_a_start_that_has_to_make_the_bundle_leaves_it_too(
    start: StartKernel,
    image: Image,
    engine: DockerEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    bundles = folders.bundles_root()
    answers(start(image("dockml/bare:3.11"), "--network", "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    made: list[Path] = []

    def copied(report: Mapping[str, Any], folder: Path, *_: Any) -> Path:
        made.append(Path(shutil.copytree(bundles, folder, dirs_exist_ok=True)))
        return folder / kernel_bundle.bundle_name(report)

    monkeypatch.setattr("dockml_magic.container.ensure_bundle", copied)
    answers(start(image("dockml/bare:3.11"), "--network", "none"))
    assert made
    assert file_of(engine, "dockml/bare:3.11") is not None


def test_a_start_in_which_something_of_the_users_may_run_leaves_none(
    start: StartKernel, image: Image, engine: DockerEngine, workspace: Path
) -> None:
    (workspace / "sitecustomize.py").write_text("")
    path = ("-e", f"PYTHONPATH={workspace}", "--network", "none")
    answers(start(image("dockml/bare:3.11"), *path))
    assert file_of(engine, "dockml/bare:3.11") is None
    preload = ("-e", "LD_PRELOAD=/proc/self/cwd/mine.so", "--network", "none")
    answers(start(image("dockml/bare:3.11"), *preload))
    assert file_of(engine, "dockml/bare:3.11") is None
    volume = ("-v", f"{workspace}:/usr/local/lib/python3.11/site-packages", "--network", "none")
    answers(start(image("dockml/bare:3.11"), *volume))
    assert file_of(engine, "dockml/bare:3.11") is None
