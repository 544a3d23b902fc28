"""The benchmark runs: a smoke run of its main rows, whose figures are not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.__main__ import main
from tests.images import build


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_benchmark_prints_and_writes_a_row_for_each_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build.build(["dockml/bare:3.11", "dockml/ipykernel:7", "dockml/tensorflow:1.10.0"])
    assert main(["--quick", "--rows", "start,pass", "--out", str(tmp_path / "bench")]) == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "bench.md").read_text()
    for figure in ("start", "`pass` routed"):
        assert figure in printed
        assert figure in written
    assert (tmp_path / "bench.csv").read_text().count("\n") > 2
