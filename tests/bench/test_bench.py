"""The benchmark runs: a smoke run of its main rows, whose figures are not looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.bench import peers
from tests.bench.__main__ import main
from tests.images import build

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    build.build(["dockml/bare:3.11", "dockml/ipykernel:7", "dockml/tensorflow:1.10.0"])


def test_the_benchmark_prints_and_writes_a_row_for_each_figure_and_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    words = ["--quick", "--rows", "start,pass", "--peers", "allthekernels", "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "bench.md").read_text()
    for text in ("start", "`pass` routed", "what relaying adds", "allthekernels 1.2.0"):
        assert text in printed
        assert text in written
    assert (tmp_path / "bench.csv").read_text().count("allthekernels") == 2


def test_a_peer_that_cannot_be_installed_has_a_row_that_says_why_and_meets_no_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    never = dataclasses.replace(peers.PEERS["allthekernels"], requirements=("allthekernels==0",))
    monkeypatch.setitem(peers.PEERS, "allthekernels", never)
    main(["--quick", "--rows", "pass", "--peers", "allthekernels"])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "allthekernels" in line)
    assert "No matching distribution found for allthekernels==0" in row
    assert "| NO " in row
