"""The magics of values, between namespaces of this process: what they say and refuse, and what arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import dockml_magic
from dockml_magic import planning
from dockml_magic.errors import (
    ConfigError,
    KernelError,
    NameMissingError,
    UnknownEnvironmentError,
    ValueRefusedError,
)
from dockml_magic.exchange import OwnKernel
from tests.unit.fake_engine import FakeEngine

Magic = Callable[[str], Any]


class Elsewhere:
    """An environment whose kernel is a namespace of this process."""

    is_kept = False
    waits_for_kernel = False

    def __init__(self, name: str, **values: Any) -> None:
        self.name = name
        self.values: dict[str, Any] = {"In": [], "get_ipython": None, "_private": 1, **values}
        self.is_alive = True
        self.side = OwnKernel(self.values)
        self.side.title = f"'{name}'"

    def request(self, kind: str, content: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        assert (kind, content["code"], content["silent"]) == ("execute_request", "", True)
        found = {
            name: {"status": "ok", "data": {"text/plain": repr(eval(expression, self.values))}}
            for name, expression in content["user_expressions"].items()
        }
        return {"status": "ok", "user_expressions": found}

    @property
    def own(self) -> dict[str, Any]:
        """What it was given."""
        hidden = ("In", "get_ipython", "_private", "__builtins__")
        return {name: value for name, value in self.values.items() if name not in hidden}

    def close_side(self) -> None: ...

    def raise_if_not_stoppable(self) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def shell(ipython: InteractiveShell, workspace: Path) -> Iterator[InteractiveShell]:
    """The shell with the extension, `text` and `ids` in it."""
    dockml_magic.load_ipython_extension(ipython)
    before = set(ipython.user_ns)
    ipython.user_ns.update(text="a text", ids=[1, 2])
    yield ipython
    for name in set(ipython.user_ns) - before:
        del ipython.user_ns[name]
    dockml_magic.unload_ipython_extension(ipython)


@pytest.fixture
def magic(shell: InteractiveShell) -> Magic:
    return lambda line: shell.run_line_magic("docker_cp", line)


@pytest.fixture
def tf(shell: InteractiveShell) -> Elsewhere:
    return added(shell, Elsewhere("tf1.10", summary=["one", "two"], vocab={"one": 1}))


@pytest.fixture
def torch(shell: InteractiveShell) -> Elsewhere:
    return added(shell, Elsewhere("torch1.1"))


def added(shell: InteractiveShell, environment: Elsewhere) -> Elsewhere:
    shell._dockml_magics.environments.add(environment)  # type: ignore[attr-defined]
    return environment


def test_a_value_goes_from_one_environment_to_another(
    magic: Magic, tf: Elsewhere, torch: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    magic("tf1.10:summary torch1.1:text")
    assert torch.own == {"text": ["one", "two"]}
    said = capsys.readouterr().out
    assert said.startswith("tf1.10:summary → torch1.1:text  (list, ")
    assert said.endswith(" B)\n")


def test_several_go_to_the_notebook_and_from_it(
    magic: Magic, shell: InteractiveShell, tf: Elsewhere, torch: Elsewhere
) -> None:
    magic("tf1.10:summary,vocab local:")
    assert shell.user_ns["summary"] == ["one", "two"]
    assert shell.user_ns["vocab"] == {"one": 1}
    magic("text, ids torch1.1:x, y")
    assert torch.own == {"x": "a text", "y": [1, 2]}


def test_from_several_at_once(magic: Magic, tf: Elsewhere, torch: Elsewhere) -> None:
    magic("text,tf1.10:vocab torch1.1:")
    assert torch.own == {"text": "a text", "vocab": {"one": 1}}


def test_what_is_not_as_it_was_is_told_below(
    magic: Magic, shell: InteractiveShell, tf: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("import enum\nclass Colour(enum.Enum):\n    RED = 3\nred = Colour.RED")
    capsys.readouterr()
    magic("red tf1.10:")
    assert tf.values["red"] == 3
    first, note = capsys.readouterr().out.splitlines()
    assert first.startswith("red → tf1.10  (int, ")
    assert note.startswith("  ")
    assert "Colour" in note
    magic("-q red tf1.10:")
    assert capsys.readouterr().out == ""


def test_a_large_array_is_read_only_and_a_copy_is_not(
    magic: Magic, shell: InteractiveShell, tf: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("import numpy\nlarge = numpy.zeros(100_000)\nsmall = numpy.zeros(10)")
    capsys.readouterr()
    magic("large,small tf1.10:")
    assert capsys.readouterr().out.endswith(", 800 kB, read-only)\n")
    assert not tf.values["large"].flags.writeable
    magic("--copy large tf1.10:")
    assert "read-only" not in capsys.readouterr().out
    assert tf.values["large"].flags.writeable
    magic("small tf1.10:")
    assert "read-only" not in capsys.readouterr().out
    assert tf.values["small"].flags.writeable


def test_all_that_is_missing_is_named_with_what_may_be_meant(
    magic: Magic, tf: Elsewhere, torch: Elsewhere
) -> None:
    with pytest.raises(NameMissingError, match=r"'summry', 'nothing' in 'tf1\.10'") as caught:
        magic("tf1.10:summry,vocab,nothing torch1.1:")
    assert caught.value.hint == "Did you mean summary? Nothing was handed over."
    assert torch.own == {}


def test_who_has_what_the_notebook_lacks_is_told(
    magic: Magic, tf: Elsewhere, torch: Elsewhere
) -> None:
    with pytest.raises(NameMissingError, match="in the notebook's own kernel") as caught:
        magic("summary,vocab torch1.1:")
    assert "tf1.10:summary,vocab" in caught.value.hint


@pytest.mark.parametrize("line", ["text,lost torch1.1:", "text,tf1.10:lost torch1.1:"])
def test_nothing_gets_there_where_something_cannot(
    magic: Magic, shell: InteractiveShell, tf: Elsewhere, torch: Elsewhere, line: str
) -> None:
    torch.values["text"] = "as it was"
    shell.user_ns["lost"] = tf.values["lost"] = [{"deep": object()}]
    with pytest.raises(ValueRefusedError, match=r"lost\[0\]\['deep'\] is of type object"):
        magic(line)
    assert torch.own == {"text": "as it was"}


def test_both_environments_have_to_run(magic: Magic, tf: Elsewhere) -> None:
    with pytest.raises(UnknownEnvironmentError, match=r"%docker_env torch1\.1"):
        magic("tf1.10:summary torch1.1:")
    with pytest.raises(UnknownEnvironmentError, match="No environment called 'x'"):
        magic("x:summary tf1.10:")
    tf.is_alive = False
    with pytest.raises(KernelError, match=r"'tf1\.10' does not run.*\n.*%docker_env tf1\.10"):
        magic("text tf1.10:")
    assert "text" not in tf.values


def test_a_word_that_is_an_environment_too_is_asked_about(
    magic: Magic, shell: InteractiveShell, tf: Elsewhere
) -> None:
    analysis = added(shell, Elsewhere("analysis"))
    with pytest.raises(ConfigError, match=r"'analysis:'.*'local:analysis'"):
        magic("tf1.10:summary analysis")
    with pytest.raises(ConfigError, match="'local:'"):
        magic("tf1.10:summary local")
    shell.user_ns["own"] = 1
    with pytest.raises(ConfigError, match="'analysis:'"):
        magic("own analysis")
    magic("tf1.10:summary local:analysis")
    assert shell.user_ns["analysis"] == ["one", "two"]
    assert analysis.own == {}


def test_a_cell_takes_values_and_gives_them(
    shell: InteractiveShell, tf: Elsewhere, torch: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"-i words=tf1\.10:summary"):
        shell.run_cell_magic("docker_cell", "local -i tf1.10:words=summary", "1")
    shell.run_cell_magic(
        "docker_cell",
        "local -i words=tf1.10:summary, vocab -o torch1.1:x=both, vocab",
        "both = [words, vocab]",
    )
    assert torch.own == {"x": [["one", "two"], {"one": 1}], "vocab": {"one": 1}}
    assert [said.partition("  (")[0] for said in capsys.readouterr().out.splitlines()] == [
        "tf1.10:summary, vocab → words, vocab",
        "both, vocab → torch1.1:x, vocab",
    ]


def test_a_cell_that_raises_gives_nothing(shell: InteractiveShell, torch: Elsewhere) -> None:
    with pytest.raises(ZeroDivisionError):
        shell.run_cell_magic("docker_cell", "local -q -o torch1.1:x", "x = 1\n1 / 0")
    assert torch.own == {}


def test_what_a_cell_did_not_make_is_missing(shell: InteractiveShell, torch: Elsewhere) -> None:
    with pytest.raises(NameMissingError, match="'y' in the notebook's own kernel"):
        shell.run_cell_magic("docker_cell", "local -o torch1.1:x,y", "x = 1")
    assert torch.own == {}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("-i nothing", NameMissingError),
        ("-i other:text", UnknownEnvironmentError),
        ("-o other:text", UnknownEnvironmentError),
        ("-i text,", ConfigError),
        ("-i text -o 1x", ConfigError),
    ],
)
def test_nothing_is_started_for_a_cell_that_cannot_have_its_values(
    shell: InteractiveShell,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(planning.engines, "connect", lambda name: engine)
    with pytest.raises(error):
        shell.run_cell_magic("docker_cell", f"tf1.13 {options}", "1")
    assert engine.specs == []


@pytest.mark.parametrize(
    ("line", "among", "not_among"),
    [
        ("%docker_cp te", ["text"], ["summary", "print"]),
        ("%docker_cp t", ["tf1.10:", "torch1.1:", "text"], []),
        ("%docker_cp tf1.10:s", ["summary"], ["text"]),
        ("%docker_cp tf1.10:", ["summary", "vocab"], ["text", "print", "get_ipython", "%%time"]),
        ("%docker_cp tf1.10:summary,v", ["vocab"], []),
        ("%docker_cp tf1.10:summary to", ["torch1.1:"], []),
        ("%docker_cp local:", ["text", "ids"], ["summary", "In", "exit"]),
        ("%docker_cp --", ["--copy", "--quiet"], ["text"]),
        ("%%docker_cell torch1.1 -i te", ["text"], ["summary"]),
        ("%%docker_cell torch1.1 -i text,x=tf1.10:v", ["vocab"], []),
        ("%%docker_cell tf1.10 -o su", ["summary"], ["text"]),
        ("%%docker_cell tf1.10 -o ", ["summary", "torch1.1:"], ["text"]),
        ("%%docker_cell tf1.10 -", ["-i", "-o"], []),
        ("%%docker_cell gone -o ", ["torch1.1:"], ["text"]),
    ],
)
def test_names_and_environments_are_completed(
    shell: InteractiveShell,
    tf: Elsewhere,
    torch: Elsewhere,
    line: str,
    among: list[str],
    not_among: list[str],
) -> None:
    with provisionalcompleter():
        matches = [match.text for match in shell.Completer.completions(line, len(line))]
    assert set(among) <= set(matches)
    assert not set(not_among) & set(matches)
