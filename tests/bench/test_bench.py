"""The benchmark runs: smoke runs of its rows, whose times are not looked at."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from dockml_magic.labels import WORKSPACE
from tests.bench import peers
from tests.bench.__main__ import main
from tests.bench.images import LABEL
from tests.bench.sessions import ROOT
from tests.bench.table import US
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def _measured(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    rows = csv.DictReader(out.with_name(out.name + ".csv").read_text().splitlines())
    return {(row["figure"], row["who"]): row for row in rows}


def test_each_figure_has_the_floor_us_and_the_peers_in_table_csv_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    words = ["--quick", "--rows", "start,pass", "--peers", "envkernel,allthekernels"]
    assert main([*words, "--out", str(out)]) == 0
    found = _measured(out)
    image = "dockml/ipykernel:7"
    wanted = {
        f"name to first result, {image}": ("by hand, with the SDK", US, "envkernel 1.1.1"),
        f"`pass`, {image}": ("direct client", US, "envkernel 1.1.1", "allthekernels 1.2.0"),
    }
    printed, picture = capsys.readouterr().out, (tmp_path / "bench.svg").read_text()
    for title, everybody in wanted.items():
        assert title in printed
        for who in everybody:
            assert float(found[title, who]["median"]) > 0
            assert who in printed
            assert f">{who}</text>" in picture


def test_values_are_moved_by_us_and_by_files_in_every_direction(tmp_path: Path) -> None:
    out = tmp_path / "bench"
    main(["--quick", "--rows", "values", "--peers", "", "--out", str(out)])
    found = _measured(out)
    for way in ("notebook to container", "container to notebook", "container to container"):
        for who in (f"{US}, first", f"{US}, again", ".npy file by hand", "pickle file by hand"):
            assert float(found[f"1 MB float32, {way}", who]["median"]) > 0


def test_a_peer_that_cannot_be_installed_has_a_line_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    never = dataclasses.replace(peers.PEERS["sos"], requirements=("sos-notebook==0",))
    monkeypatch.setitem(peers.PEERS, "sos", never)
    main(["--quick", "--rows", "switch", "--peers", "sos"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "SoS" in line)
    assert "No matching distribution found for sos-notebook==0" in line


def test_ctrl_c_leaves_no_container_image_process_or_folder(tmp_path: Path) -> None:
    engine = docker.from_env()

    def made() -> list[str]:
        """Return what carries the folder of a run in ours."""
        api = engine.api
        rows = [
            *api.containers(all=True, filters={"label": LABEL}),
            *api.containers(all=True, filters={"label": WORKSPACE}),
            *api.images(filters={"label": LABEL}),
        ]
        labels = (row["Labels"] for row in rows)
        return [x for x in (n.get(LABEL) or n.get(WORKSPACE) for n in labels) if str(tmp_path) in x]

    command = [sys.executable, "-m", "tests.bench", "--rows", "start", "--peers", "dockernel"]
    bench = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, start_new_session=True
    )
    try:
        # dockernel's image and container have our label, which it knows nothing of.
        wait_until(lambda: len(made()) >= 2, timeout=120, what="an image and a container")
        os.killpg(bench.pid, signal.SIGINT)
        assert bench.wait(timeout=90) == 130
    finally:
        bench.kill()
    wait_until(lambda: not made(), what="all to be gone")
    assert not list(tmp_path.glob("dockml-bench-*"))

    def is_nobody_left() -> bool:
        try:
            os.killpg(bench.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_nobody_left, what="its processes to end")
