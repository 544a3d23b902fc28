"""The kernelspec's argv: run a kernel for a front end that starts it by itself, as VS Code does.

`python -m dockml_magic.launch NAME [options] -f CONNECTION_FILE` serves the ports that the file names,
on 127.0.0.1. SIGINT interrupts the kernel, SIGTERM ends it; when this process is killed, the container ends
itself. A thin front on `KernelContainer`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from dockml_magic.container import PORT_NAMES, KernelContainer
from dockml_magic.engine import Engine
from dockml_magic.errors import ConfigError, DockmlError, PortTakenError
from dockml_magic.options import RunOptions, add_run_options, build_parser, options_from
from dockml_magic.planning import KernelPlan, engine_for, make_plan

_PARENT_INTERVAL = 1.0
_PORT_PATIENCE = 30.0
"""Seconds in which a killed predecessor's container gives its ports back."""


class _Ended(Exception):
    """SIGTERM came."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kernel until it ends; return its exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except DockmlError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (_Ended, KeyboardInterrupt):
        return 143


def _run(argv: Sequence[str]) -> int:
    parser = build_parser("python -m dockml_magic.launch", __doc__ or "")
    parser.add_argument("what", metavar="NAME")
    parser.add_argument("-f", dest="connection_file", required=True, metavar="FILE")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON")
    add_run_options(parser)
    parsed = parser.parse_args(list(argv))
    signal.signal(signal.SIGTERM, _raise_ended)
    info = _read_connection(Path(parsed.connection_file))
    options = options_from(parsed).over(RunOptions.from_json(parsed.options))
    if options.keep:
        raise ConfigError("A kernel of a front end cannot be kept.", hint="Leave --keep out.")
    engine = engine_for(options)
    plan = make_plan(parsed.what, options, Path.cwd(), engine=engine, tell=_tell, transport="tcp")
    plan = replace(plan, key=info["key"], host_ports=tuple(info[name] for name in PORT_NAMES))
    container = _start(engine, plan)
    try:
        signal.signal(signal.SIGINT, lambda signum, frame: container.signal(signal.SIGINT))
        parent = os.getppid()
        while (code := container.wait(_PARENT_INTERVAL)) is None:
            if os.getppid() != parent:  # whoever started us is gone
                return 0
        if code:
            sys.stderr.write(f"{container.death(container.state, 'The kernel ended')}\n")
        return code
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        container.remove()


def _start(engine: Engine, plan: KernelPlan) -> KernelContainer:
    deadline = time.monotonic() + _PORT_PATIENCE
    while True:
        container = KernelContainer(engine, plan, _tell)
        try:
            container.start()
        except PortTakenError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return container


def _read_connection(path: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads(path.read_text())
        if info["transport"] != "tcp" or not all(info[name] for name in (*PORT_NAMES, "key")):
            raise ConfigError(
                f"The connection file '{path}' does not name five TCP ports and a key.",
                hint="Front ends that use jupyter_client reach this kernel through its provisioner.",
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"The connection file '{path}' cannot be used: {error!r}.") from error
    return info


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _raise_ended(signum: int, frame: FrameType | None) -> None:
    raise _Ended


if __name__ == "__main__":
    sys.exit(main())
