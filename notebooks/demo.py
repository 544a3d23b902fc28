"""Execute the notebooks on real containers and show what ran where: `make demo`.

Run as `python -m notebooks.demo` from the project's folder. The images the notebooks need are built
first (`tests.images`), by an engine that is installed or started where that is allowed (`tests.machine`).
With `--in-place` the committed notebooks are written anew, with their outputs.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from tests.images import build
from tests.machine import engine

HERE = Path(__file__).parent
IMAGES = {
    "01_three_frameworks": [
        "dockml/tensorflow:1.4.0",
        "dockml/tensorflow:1.10.0",
        "dockml/pytorch:1.1.0",
    ],
    "02_find_an_image": ["dockml/tensorflow:1.10.0", "dockml/pytorch:1.1.0"],
    "03_environments": ["dockml/pip:3.11"],
    "04_pipeline": [
        "dockml/tensorflow:1.4.0",
        "dockml/tensorflow:1.10.0",
        "dockml/pytorch:1.1.0",
    ],
}
_ENV = re.compile(r"^%docker_env\s+(\S+)", re.MULTILINE)
_CELL = re.compile(r"^%%docker_cell\s+(\S+)")
_TIMEOUT = 600


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook at `path`, executed in its own folder by the kernel it names."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute()
    return notebook


def places(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """Yield each code cell with the name of the environment it ran in."""
    current = "local"
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if match := _CELL.match(cell.source):
            yield match[1], cell
            continue
        if names := _ENV.findall(cell.source):
            current = names[-1]
        yield current, cell


def table(notebook: nbformat.NotebookNode) -> str:
    """Return what ran where, with times, as text."""
    lines = [f"{'cell':>4}  {'where':<10} {'seconds':>7}  first line"]
    for number, (place, cell) in enumerate(places(notebook), 1):
        times = cell.metadata["execution"]
        began, ended = (
            datetime.fromisoformat(times[key].replace("Z", "+00:00"))
            for key in ("iopub.execute_input", "shell.execute_reply")
        )
        first = cell.source.splitlines()[0][:60]
        lines.append(f"{number:>4}  {place:<10} {(ended - began).total_seconds():>7.2f}  {first}")
    return "\n".join(lines)


def without_traces(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook as it is committed: with outputs, without the times and widgets of this run."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def main() -> int:
    """Build, execute, report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-place", action="store_true", help="write the notebooks anew")
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder of the results"
    )
    options = parser.parse_args()
    print("1/3  A Docker engine")
    if code := engine.main(["ensure"]):
        return code
    for name, images in IMAGES.items():
        print(f"2/3  The images of {name}")
        build.build(images)
        print(f"3/3  Executing {name}.ipynb")
        began = time.monotonic()
        try:
            notebook = execute(HERE / f"{name}.ipynb")
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            return 1
        print(table(notebook))
        print(
            f"{name} took {time.monotonic() - began:.1f} s in all, this kernel's own start included."
        )
        options.out.mkdir(parents=True, exist_ok=True)
        page, _ = HTMLExporter().from_notebook_node(notebook)
        (options.out / f"{name}.html").write_text(page, encoding="utf-8")
        if options.in_place:
            nbformat.write(without_traces(notebook), HERE / f"{name}.ipynb")
        print(f"The result as a page: {(options.out / name).resolve()}.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
