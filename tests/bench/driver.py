"""``python -m tests.bench.driver``: a front end's server, which starts one kernel and runs cells in it.

Lines of JSON: an order on its standard input, the answer on its standard output. It runs in the
environment of whoever is measured, so that a peer's own provisioner is at hand, and is what is killed
where the notebook is to be killed. When its input ends, it shuts its kernel down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from queue import Empty
from typing import Any
from uuid import uuid4

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager

from tests.bench import outputs
from tests.bench.clients import connected, run_cell, until_heard, wait_for_reply

MARK = "/tmp/dockml-bench-mark"
"""A file inside, which stays where a restart is in place."""


class _OneKernel(KernelSpecManager):
    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        self._spec = spec

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return self._spec


class Driver:
    """One kernel, its manager and its client; every method is an order."""

    def __init__(self) -> None:
        self._manager: Any = None
        self._client: Any = None
        self._direct: Any = None
        self._held = contextlib.ExitStack()
        self._prefix = ""

    def start(
        self,
        *,
        spec: dict[str, Any],
        prelude: list[str],
        prefix: str,
        checked: bool,
        cwd: str,
        env: dict[str, str],
        connection_file: str,
    ) -> dict[str, Any]:
        """Start the kernel; `seconds` is how long until the first result of a cell."""
        self._prefix = prefix
        self._manager = KernelManager(
            kernel_name=spec["display_name"],
            kernel_spec_manager=_OneKernel(KernelSpec(**spec)),
            **({"connection_file": connection_file} if connection_file else {}),
        )
        began = time.perf_counter()
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # The id is what Jupyter's server gives each of its kernels; some provisioners need it.
        self._manager.start_kernel(cwd=cwd, env=env, kernel_id=str(uuid4()), **silent)
        self._connect()
        for code in prelude:
            run_cell(self._client, code)
        ran = run_cell(self._client, f"{prefix}1+1")
        seconds = time.perf_counter() - began
        if checked and ran.text != "2":
            raise RuntimeError(f"1+1 was answered with {ran.text!r}")
        return {"seconds": seconds, "pid": getattr(self._manager.provisioner, "pid", None)}

    def _connect(self) -> None:
        if self._client is not None:
            self._client.stop_channels()
        client: BlockingKernelClient = self._manager.client()
        client.start_channels(stdin=False, hb=False)
        self._client = client
        until_heard(client, self._manager.is_alive)

    def run(self, code: str, timeout: float = 120.0) -> dict[str, Any]:
        """Run a cell."""
        ran = run_cell(self._client, self._prefix + code, timeout)
        return {"seconds": ran.seconds, "stdout": ran.stdout, "text": ran.text}

    def connect_directly(self, info: dict[str, Any]) -> dict[str, Any]:
        """Connect a second client, to the kernel that this one's cells end in."""
        self._direct = self._held.enter_context(connected(info))
        return {}

    def cells(self, code: str, n: int, skip: int, *, directly: bool = False) -> dict[str, Any]:
        """Run a cell so often; the first ones do not count."""
        client, prefix = (self._direct, "") if directly else (self._client, self._prefix)
        seconds = [run_cell(client, prefix + code).seconds for _ in range(skip + n)]
        return {"seconds": seconds[skip:]}

    def output(self, kind: str, n: int, *, prepare: bool) -> dict[str, Any]:
        """Run a cell with much output."""
        if prepare:
            run_cell(self._client, outputs.prelude(kind, n))
        ran = run_cell(self._client, outputs.cell(kind, n))
        if not outputs.is_complete(kind, n, ran):
            raise RuntimeError(f"{n} {kind}: output was lost or reordered")
        return {"seconds": ran.seconds}

    def interrupt(self, limit: float) -> dict[str, Any]:
        """Interrupt a cell that sleeps; `seconds` is None where it slept on."""
        self.run("kept = 42", limit)
        code = "import time; print('asleep'); time.sleep(600)"
        msg_id = self._client.execute(self._prefix + code, allow_stdin=False)
        self._wait_for_word("asleep", 2.0)
        time.sleep(0.2)
        began = time.perf_counter()
        self._manager.interrupt_kernel()
        try:
            wait_for_reply(self._client, msg_id, limit)
        except Exception:  # noqa: BLE001 - queue.Empty, or what a peer's answer made of it
            return {"seconds": None, "kept": False}
        seconds = time.perf_counter() - began
        time.sleep(0.3)  # a kernel aborts what comes right behind an error
        try:
            self.run("assert kept == 42", limit)
        except Exception:  # noqa: BLE001 - it says what there is to say
            return {"seconds": seconds, "kept": False}
        return {"seconds": seconds, "kept": True}

    def _wait_for_word(self, word: str, patience: float) -> None:
        """Wait until a cell has printed a word, or for long enough: a peer may show output at the end."""
        deadline = time.monotonic() + patience
        with contextlib.suppress(Empty):
            while (left := deadline - time.monotonic()) > 0:
                if word in self._client.get_iopub_msg(timeout=left)["content"].get("text", ""):
                    return

    def restart(self, code: str) -> dict[str, Any]:
        """Restart, by a cell or as the front end's button does; `kept`: what was written inside is there."""
        self.run(f"open({MARK!r}, 'w').close(); kept = 42")
        began = time.perf_counter()
        if code:
            run_cell(self._client, code)
        else:
            self._manager.restart_kernel(now=False)  # as Jupyter's server does
            self._connect()
        run_cell(self._client, f"{self._prefix}1+1")
        seconds = time.perf_counter() - began
        look = f"import os; print('kept' in globals(), os.path.exists({MARK!r}))"
        said = self.run(f"{look}; os.path.exists({MARK!r}) and os.remove({MARK!r})")["stdout"]
        is_old, kept = (word == "True" for word in said.split())
        if is_old:
            raise RuntimeError("the kernel that answers afterwards is the old one")
        return {"seconds": seconds, "kept": kept}

    def stop(self, code: str = "") -> dict[str, Any]:
        """Stop, by a cell or as the front end's button does."""
        began = time.perf_counter()
        if code:
            run_cell(self._client, code)
            return {"seconds": time.perf_counter() - began}
        self._held.close()
        if self._client is not None:
            self._client.stop_channels()
        if self._manager is not None and self._manager.has_kernel:
            self._manager.shutdown_kernel(now=False)
        self._manager = self._client = None
        return {"seconds": time.perf_counter() - began}


def main() -> int:
    """Take orders until there are no more."""
    # What a terminal sends at Ctrl+C is the bench's, who ends this process by closing its input.
    # Not ignored, as its children would then ignore it, too.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a kernel's launcher prints
    driver = Driver()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(driver, order.pop("op"))(**order)
        except Exception as error:  # noqa: BLE001 - the bench decides what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
            if isinstance(error, Empty):
                answer = {"error": "no answer in time"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    with contextlib.suppress(Exception):
        driver.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
