"""The keeper that holds containers while a notebook's kernel is restarted, without containers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dockml_magic import handover


def test_a_keeper_goes_on_where_the_kernel_was_ended_by_force_before_it_was_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as the kernel's end does
    path, connection_file = tmp_path / "containers", tmp_path / "kernel.json"
    path.write_text("[]")
    connection_file.touch()
    looks: list[bool] = []

    def state() -> SimpleNamespace:
        looks.append(True)
        connection_file.unlink()  # nobody comes any more
        return SimpleNamespace(phase="bound")

    class Channel:
        state = property(lambda _: state())
        was_stopped = False

        def stop(self) -> None:
            self.was_stopped = True

    channel = Channel()
    monkeypatch.setattr(handover, "_channels", lambda _: [channel])
    monkeypatch.setattr(handover, "_LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writing))
    handover.keep(path, connection_file, os.getpid())
    os.close(writing)
    assert looks == [True]
    assert channel.was_stopped
    assert not path.exists()
