from __future__ import annotations

import inspect

import pytest

from dockml_magic import errors
from dockml_magic.errors import (
    ConfigError,
    DockmlError,
    EngineTooOldError,
    ImageUnavailableError,
    KernelDiedError,
    KernelStartTimeoutError,
    ProjectFileError,
    PullStopped,
    RemoteCellError,
    UnknownEnvironmentError,
    UnknownNameError,
)


def test_an_error_is_its_message_and_below_it_the_hint() -> None:
    error = ConfigError("'x' is not a size.", hint="Write 2g.")
    assert str(error) == "'x' is not a size.\nWrite 2g."
    assert (error.message, error.hint) == ("'x' is not a size.", "Write 2g.")


def test_without_a_hint_it_is_one_line() -> None:
    assert str(ConfigError("It is so.")) == "It is so."


def test_a_notebook_shows_two_lines_and_no_stack_of_ours() -> None:
    error = ConfigError("'x' is not a size.", hint="Write 2g.")
    assert error._render_traceback_() == ["ConfigError: 'x' is not a size.\nWrite 2g."]


def test_every_error_is_one_of_ours_and_public() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    interrupts = {name for name in errors.__all__ if name.endswith("Stopped")}
    assert set(errors.__all__) == found | interrupts
    assert all(issubclass(getattr(errors, name), errors.Stopped) for name in interrupts)
    for name in found:
        assert issubclass(getattr(errors, name), DockmlError)
        assert name.endswith("Error")


def test_a_stopped_pull_is_an_interrupt_that_nobody_catches_by_mistake() -> None:
    error = PullStopped("me/mine:1")
    assert isinstance(error, KeyboardInterrupt)
    assert not isinstance(error, Exception)
    assert error._render_traceback_() == [f"PullStopped: {error}"]
    assert len(str(error).splitlines()) == 2


def test_an_unknown_name_says_what_is_near() -> None:
    error = UnknownNameError("tf1.1", ["tf1.10", "tf1.4"])
    assert str(error).splitlines() == [
        "'tf1.1' is not a known name and no image here is called that.",
        "Did you mean 'tf1.10', 'tf1.4'? Any image reference works too, such as python:3.11-slim.",
    ]
    assert error.suggestions == ("tf1.10", "tf1.4")


def test_an_unknown_environment_says_what_runs() -> None:
    assert "(running: 'a', 'b')" in str(UnknownEnvironmentError("c", ["a", "b"]))
    assert "(running: none)" in str(UnknownEnvironmentError("c", []))


def test_a_project_error_says_where() -> None:
    assert str(ProjectFileError("/p", "a.b", "wrong.")) == "/p: a.b: wrong."
    assert str(ProjectFileError("/p", "a.b", "wrong.", line=7)) == "/p:7: a.b: wrong."
    assert str(ProjectFileError("/p", "", "wrong.", line=7, column=2)) == "/p:7:2: wrong."
    assert str(ProjectFileError("/p", "", "wrong.")) == "/p: wrong."


def test_an_old_engine_is_told_with_both_versions() -> None:
    assert str(EngineTooOldError("1.38", "1.41")).splitlines() == [
        "The Docker engine is too old: its API is 1.38, and 1.41 is the oldest that works.",
        "Update the engine: version 20.10 (December 2020) or newer.",
    ]


def test_an_image_error_names_the_reference() -> None:
    error = ImageUnavailableError("a/b:1", "it is not here.", hint="Pull it.")
    assert str(error) == "The image 'a/b:1' is not available: it is not here.\nPull it."


def test_a_death_shows_the_last_lines_of_the_log() -> None:
    error = KernelDiedError("It died.", hint="Look.", exit_code=1, log_tail="one\ntwo")
    assert str(error).splitlines() == [
        "It died.",
        "Look.",
        "Last lines of its log:",
        "  | one",
        "  | two",
    ]


def test_a_death_without_a_log_is_two_lines() -> None:
    assert str(KernelDiedError("It died.", hint="Look.")) == "It died.\nLook."


def test_a_timeout_of_ours_is_pythons_too() -> None:
    assert issubclass(KernelStartTimeoutError, TimeoutError)


def test_a_traceback_of_the_environment_is_shown_unchanged() -> None:
    lines = ["\x1b[0;31m-----\x1b[0m", "ZeroDivisionError  Traceback", "1/0"]
    error = RemoteCellError("ZeroDivisionError", "division by zero", lines)
    assert error._render_traceback_() == lines
    assert str(error) == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("evalue", "text"), [("", "Aborted"), ("why", "Aborted: why")])
def test_without_a_traceback_the_name_is_shown(evalue: str, text: str) -> None:
    assert RemoteCellError("Aborted", evalue, [])._render_traceback_() == [text]
