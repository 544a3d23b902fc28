"""The committed notebooks say what they say when they are run again."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from notebooks import demo
from tests.images import build

_VARIES = [
    (re.compile(r"  +"), "  "),
    (re.compile(r"building the kernel bundle for Python [\d.]+, once; this takes a moment\n"), ""),
    (re.compile(r"ready in [\d.]+ s"), "ready in N s"),
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"[\d.]+ (%|[kMG]?B)(?= |$|[,.)])"), r"N \1"),
    (re.compile(r"N %  (\d+)  ID"), "N %  N  ID"),
    (re.compile(r"(loss|step +\d+ +loss) [\d.]+( -> [\d.]+)?"), r"\1 N"),
    (re.compile(r"Python 3\.\d+\.\d+ in the notebook"), "Python 3 in the notebook"),
    (re.compile(r"own kernel \| [\d.]+"), "own kernel | N"),
]


def _said(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Return what each cell said, without what differs from run to run.

    Of a cell with the tag "learned", whose words are a trained model's, only what kinds of output there are: other
    processors round otherwise.
    """
    return [
        [
            output.output_type if "learned" in cell.metadata.get("tags", ()) else _plain(output)
            for output in _joined(cell.outputs)
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring pieces of one stream: where they are cut depends on timing."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1] = nbformat.from_dict({**joined[-1], "text": joined[-1].text + output.text})
        else:
            joined.append(output)
    return joined


def _plain(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        text = f"{output.name}: {output.text}"
    elif output.output_type == "error":
        text = f"{output.ename}: {output.evalue}"
    else:
        text = f"{sorted(output.data)}: {output.data.get('text/markdown') or output.data['text/plain']}"
    for pattern, instead in _VARIES:
        text = pattern.sub(instead, text)
    return text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", demo.IMAGES)
def test_a_notebook_run_again_says_the_same(name: str) -> None:
    build.build(demo.IMAGES[name])
    path = Path(demo.HERE) / f"{name}.ipynb"
    assert _said(demo.execute(path)) == _said(nbformat.read(path, as_version=4))


@pytest.mark.parametrize(
    "path", sorted(Path(demo.HERE).glob("*.ipynb")), ids=lambda path: path.stem
)
def test_every_notebook_is_committed_executed_and_is_part_of_the_demo(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert path.stem in demo.IMAGES
