"""The image picker: find an image, start it, look after what runs, all in one widget.

It is made of ordinary ipywidgets, whose callbacks run in the notebook's kernel: in its main thread, one
after the other with its cells, or in that of a subshell. With JupyterLab and ipykernel 7 it is both, for the
parts of one picker, so the callbacks take turns by a lock. What takes time (a pull, a start, a stop) has a
thread of its own, one at a time, and reports into the picker: the page, the cells and the Stop button stay
free. A second thread asks the engine for figures while environments run.
"""

from __future__ import annotations

import contextlib
import html
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol

import ipywidgets as widgets

from dockml_magic.catalogue import Image
from dockml_magic.container import describe_kernel
from dockml_magic.engine import ContainerStats
from dockml_magic.environment import Environment, Environments
from dockml_magic.errors import ConfigError, DockmlError, KernelError, PullStopped
from dockml_magic.fit import VERDICTS, Fit, judge
from dockml_magic.folders import current_folder
from dockml_magic.gpu import HostGpus, find_gpus
from dockml_magic.options import RunOptions, parse_words
from dockml_magic.planning import engine_for
from dockml_magic.project import find_project
from dockml_magic.pull import PullProgress, format_size
from dockml_magic.pull_view import PullWidget
from dockml_magic.selection import (
    FIT_MARKS,
    HEAD,
    Row,
    Selection,
    aligned,
    line_of,
    text_of,
    words_of,
)
from dockml_magic.warm import WarmEnvironments

log = logging.getLogger(__name__)

FIGURES_INTERVAL = 2.0
"""Seconds between two looks at what the environments use."""

_LOG_LINES = 200
_LIST_ROWS = 14

_MOST_ROWS = 200
"""Rows in the list: more than anybody looks through, and few enough to be drawn anew at every keystroke."""

_STYLE = """<style>
.dockml-picker {
  max-width: 62rem; padding: 4px 2px 8px; color: var(--jp-ui-font-color1, inherit);
  font-family: var(--jp-ui-font-family, inherit); font-size: var(--jp-ui-font-size1, 13px);
  --dockml-muted: var(--jp-ui-font-color2, GrayText); --dockml-line: var(--jp-border-color2, GrayText);
  --dockml-code: var(--jp-code-font-family, monospace); --dockml-gap: 12px;
}
.dockml-picker .widget-html, .dockml-picker .widget-html-content {
  line-height: 1.5; margin: 0; height: auto; min-height: 0; font-size: inherit; color: inherit;
}
.dockml-picker .widget-html-content { width: 100%; }
.dockml-picker .dockml-row { gap: 8px var(--dockml-gap); flex-flow: row wrap; align-items: flex-end; }
.dockml-picker .dockml-row > * { margin: 0; }
.dockml-picker .dockml-field {
  flex-direction: column; align-items: stretch; height: auto; gap: 2px; overflow: visible;
}
.dockml-picker .dockml-field > .widget-label {
  width: auto; height: 18px; line-height: 18px; margin: 0; text-align: left; padding: 0;
  color: var(--dockml-muted); font-size: var(--jp-ui-font-size0, 11px);
}
.dockml-picker .dockml-field > input, .dockml-picker .dockml-field > select {
  flex: 0 0 auto; width: 100%; height: var(--jp-widgets-inline-height, 28px); margin: 0;
}
.dockml-picker .widget-dropdown { position: relative; }
.dockml-picker .widget-dropdown > select { background-image: none; padding-right: 20px; }
.dockml-picker .widget-dropdown::after {
  content: ""; position: absolute; right: 9px; bottom: 12px; width: 5px; height: 5px; pointer-events: none;
  border: solid currentColor; border-width: 0 1.5px 1.5px 0; transform: rotate(45deg); opacity: 0.7;
}
.dockml-picker > .widget-vbox:empty, .dockml-picker > .widget-html:has(> .widget-html-content:empty) { display: none; }
.dockml-picker .dockml-list { flex: 1 0 auto; flex-direction: column; height: auto; margin: 0; width: 100%; }
.dockml-picker .dockml-list > .widget-label {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
}
.dockml-picker .dockml-list > select {
  flex: 0 0 auto; width: 100%; height: 226px; box-sizing: border-box; margin: 0 0 6px; padding: 0;
  overflow-x: hidden; overflow-y: auto; font: 12px/16px var(--dockml-code);
  color: inherit; background: var(--jp-layout-color1, Field);
  border: 1px solid var(--dockml-line); border-radius: 0;
}
.dockml-picker .dockml-list > select > option { padding: 0 8px; height: 16px; min-height: 0; box-sizing: border-box; }
.dockml-picker .dockml-head {
  font: 12px/1.8 var(--dockml-code); color: var(--dockml-muted); white-space: pre; padding: 0 9px; overflow: hidden;
}
.dockml-picker .dockml-top { display: flex; justify-content: space-between; align-items: baseline; gap: 1em; }
.dockml-picker .dockml-title { font-size: var(--jp-ui-font-size2, 16px); font-weight: 600; }
.dockml-picker .dockml-muted { color: var(--dockml-muted); }
.dockml-picker code, .dockml-picker pre, .dockml-picker .dockml-line {
  font-family: var(--dockml-code); font-size: 12px; color: inherit; background: none; padding: 0;
}
.dockml-picker .dockml-details { overflow-wrap: anywhere; padding-left: 4px; }
.dockml-picker .dockml-details > div { margin-bottom: 6px; }
.dockml-picker .dockml-facts {
  display: grid; grid-template-columns: max-content 1fr; gap: 1px 12px;
}
.dockml-picker .dockml-facts > :nth-child(odd) { color: var(--dockml-muted); }
.dockml-picker .dockml-good { color: var(--jp-success-color0, inherit); }
.dockml-picker .dockml-fair { color: var(--jp-warn-color0, inherit); }
.dockml-picker .dockml-bad { color: var(--jp-error-color1, inherit); }
.dockml-picker .dockml-line {
  width: 100%; height: var(--jp-widgets-inline-height, 28px); box-sizing: border-box; padding: 0 8px;
  border: 1px solid var(--dockml-line); background: var(--jp-layout-color2, transparent);
}
.dockml-picker .dockml-log {
  border-left: 3px solid var(--dockml-line); padding: 2px 0 2px 10px; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 14em; overflow-y: auto;
}
.dockml-picker .dockml-section {
  border-top: 1px solid var(--dockml-line); padding-top: 8px; margin-top: 4px; font-weight: 600;
}
.dockml-picker .jupyter-button { margin: 0; }
.dockml-picker .dockml-row > .widget-text:not(.dockml-field) > input { height: 24px; }
.dockml-picker .dockml-row > .widget-text:not(.dockml-field) > .widget-label { color: var(--dockml-muted); }
.dockml-picker input:focus-visible, .dockml-picker select:focus-visible, .dockml-picker button:focus-visible {
  outline: 2px solid var(--jp-brand-color1, Highlight); outline-offset: -1px;
}
</style>"""


P = ParamSpec("P")


def _in_turn(
    method: Callable[Concatenate[ImagePicker, P], None],
) -> Callable[Concatenate[ImagePicker, P], None]:
    """Have what chooses, or shows what is chosen, take turns with all else that does in other threads.

    The last one to come sees what all before it have chosen, and shows that.
    """

    @wraps(method)
    def in_turn(self: ImagePicker, /, *args: P.args, **keywords: P.kwargs) -> None:
        with self._choosing:
            method(self, *args, **keywords)

    return in_turn


class Notebook(Protocol):
    """What a picker needs of the notebook it is in: `magics.DockerMagics` is one."""

    environments: Environments
    warm: WarmEnvironments

    def switch_to(
        self,
        name: str,
        options: RunOptions,
        *,
        tell: Callable[[str], None],
        begun: Callable[[Environment], None],
    ) -> None:
        """Do what `%docker_env NAME` does. Called in a thread of the picker's."""


class ImagePicker:
    """A widget to find an image and start it, and to look after what runs.

    Where no widgets are shown it is a table of images and the lines that start them.

    Parameters
    ----------
    text : str
        What the filter begins with: a NAME, or words.
    notebook : Notebook, optional
        Whose environments; by default this notebook's. The extension is loaded for that.

    Raises
    ------
    ConfigError
        Outside of IPython.

    Examples
    --------
    >>> ImagePicker("tf1.10-gpu")  # doctest: +SKIP
    """

    def __init__(self, text: str = "", *, notebook: Notebook | None = None) -> None:
        self._notebook = notebook or _this_notebook()
        self._environments = self._notebook.environments
        self._folder = current_folder()
        self._gpus = find_gpus()
        self._selection = self._read_images()
        self._found: list[Row] = []
        self._lines: list[str] = []
        self._working = threading.Lock()
        self._stopping = threading.Event()
        self._starting: Environment | None = None
        self._closed = threading.Event()
        self._choosing = threading.RLock()
        self._showing = threading.RLock()
        self._rows: dict[Environment, _EnvironmentRow] = {}
        self._is_shown = False
        self._is_looking = False
        self._build()
        self._show_top()
        self._filter.value = text
        self._find()
        if self._trouble:
            self._say(self._trouble, is_error=True)
        self._show_environments()
        self._environments.changed.append(self._show_environments)

    def _read_images(self) -> Selection:
        """Ask the engine and the project file what there is."""
        self._trouble = ""
        local: list[str] = []
        try:
            local = engine_for(RunOptions()).local_references()
        except DockmlError as error:
            self._trouble = str(error)
        gpus = self._gpus

        def fit(image: Image) -> Fit:
            return judge(image, gpus.gpus, gpus.driver)

        self._local = local
        return Selection(
            find_project(self._folder),
            local,
            fit,
            lambda image: -VERDICTS.index(fit(image).verdict) if gpus.gpus else 0,
        )

    # --- what it is made of -------------------------------------------------------------------

    def _build(self) -> None:
        self._filter = _field(
            widgets.Text(
                description="Find", placeholder="tf1.10-gpu, or words: torch cu118 py3.10"
            ),
            "2 1 18rem",
        )
        frameworks = [("Any", ""), *self._selection.frameworks()]
        self._framework = _field(widgets.Dropdown(description="Framework", options=frameworks))
        self._version = _field(
            widgets.Dropdown(description="Version", options=[("Any", "")], disabled=True),
            "0 1 6rem",
        )
        self._processor = _field(
            widgets.Dropdown(
                description="Built for",
                options=[("GPU or CPU", ""), ("GPU", "gpu"), ("CPU", "cpu")],
            ),
            "0 1 8rem",
        )
        self._only_here = widgets.Checkbox(
            description="Only what is here", indent=False, layout=widgets.Layout(width="auto")
        )
        self._top = _text()
        self._list = widgets.Select(
            description="Images",
            rows=_LIST_ROWS,
            layout=widgets.Layout(width="100%", height="auto"),
        )
        self._list.add_class("dockml-list")
        head = _text(f"<div class='dockml-head' aria-hidden='true'>{aligned(HEAD)}</div>")
        self._details = _text()
        self._details.layout.flex = "1 1 15rem"
        self._gpu_choice = _field(
            widgets.Dropdown(description="GPUs", options=self._gpu_options()), "1 1 10rem"
        )
        self._memory = _field(
            widgets.Text(description="Memory limit", placeholder="none; such as 8g"), "1 1 8rem"
        )
        self._ports = _field(
            widgets.Text(description="Ports", placeholder="none; such as 8501:8501"), "1 1 10rem"
        )
        workspace = _text(
            "<span class='dockml-muted'>Workspace, at the same path in the container</span><br>"
            f"<code>{html.escape(str(self._folder))}</code>"
        )
        workspace.layout.flex = "2 1 16rem"
        self._start = _button("Start", "Start it; the next cells run there", self._start_chosen)
        self._start.button_style = "primary"
        self._stop = _button("Cancel", "Stop the pull or the start", self._give_up)
        self._stop.layout.display = "none"
        self._line = _text()
        self._line.layout.flex = "1 1 16rem"
        self._readiness = _text()
        self._readiness.layout.display = "none"
        self._readiness.layout.align_self = "center"
        self._progress = widgets.VBox()
        self._log = _text()
        self._running = widgets.VBox(layout=widgets.Layout(grid_gap="8px"))
        self._running_title = _text("<div class='dockml-section'>Running environments</div>")
        self._gpu_figures = _text()
        self._own_kernel = _EnvironmentRow(
            "local",
            _button(
                "Switch", "Run the next cells in the notebook's own kernel", self._use_own_kernel
            ),
        )
        # JupyterLab takes the arrow keys from a list, for its own cells, and leaves them to a number.
        self._number = widgets.BoundedIntText(
            description="Row",
            tooltip="The row that is chosen; the arrow keys change it",
            min=0,
            max=0,
        )
        self._number.layout = widgets.Layout(width="7.5rem", margin="0")
        self._number.style.description_width = "auto"
        self._count = _text()
        foot = _line_up(self._number, self._count)
        foot.layout.align_items = "center"
        list_box = widgets.VBox([head, self._list, foot], layout=widgets.Layout(flex="0 1 36rem"))
        body = _line_up(list_box, self._details)
        body.layout.align_items = "stretch"
        self._box = widgets.VBox(
            [
                widgets.HTML(_STYLE, layout=widgets.Layout(display="none")),
                self._top,
                _line_up(
                    self._filter, self._framework, self._version, self._processor, self._only_here
                ),
                body,
                _line_up(self._gpu_choice, self._memory, self._ports, workspace),
                _line_up(self._start, self._stop, self._line, self._readiness),
                self._progress,
                self._log,
                self._running,
            ],
            layout=widgets.Layout(grid_gap="10px", overflow="hidden"),
        )
        self._box.add_class("dockml-picker")
        for chooser in (self._filter, self._version, self._processor, self._only_here):
            chooser.observe(self._find, "value")
        self._framework.observe(self._choose_framework, "value")
        self._list.observe(self._show_row, "index")
        self._number.observe(self._choose_row, "value")
        for option in (self._gpu_choice, self._memory, self._ports):
            option.observe(self._show_line, "value")

    def _gpu_options(self) -> list[tuple[str, str]]:
        options = [("As the image needs", ""), ("None", "none")]
        if self._gpus.gpus:
            options += [("All", "all"), ("The freest that fits", "auto")]
            options += [
                (f"{gpu.index}: {gpu.name}", f"device={gpu.index}") for gpu in self._gpus.gpus
            ]
        return options

    # --- finding ------------------------------------------------------------------------------

    @_in_turn
    def _choose_framework(self, _: Any) -> None:
        versions = self._selection.versions(self._framework.value)
        with self._version.hold_sync():
            self._version.options = [
                ("Any", ""),
                *((v, v) for v in versions if self._framework.value),
            ]
            self._version.disabled = not self._framework.value
        self._find()

    @_in_turn
    def _find(self, _: Any = None) -> None:
        """Show what meets the filter; called at every keystroke."""
        found = self._selection.find(
            self._filter.value,
            framework=self._framework.value,
            version=self._version.value or "",
            gpu={"gpu": True, "cpu": False}.get(self._processor.value),
            only_here=self._only_here.value,
        )
        chosen = 0 if found and self._filter.value.strip() else None
        if found != self._found or self._list.index != chosen:
            self._found = found
            with self._list.hold_sync(), _silent(self._list, self._show_row, "index"):
                self._list.options = [row.label for row in found[:_MOST_ROWS]]
                self._list.index = chosen
            self._show_row()
        shown = f" · the first {_MOST_ROWS} are shown" if len(found) > _MOST_ROWS else ""
        self._count.value = (
            f"<span class='dockml-muted' role='status'>of {len(found)}{shown}</span>"
        )

    @_in_turn
    def _choose_row(self, _: Any) -> None:
        self._list.index = self._number.value - 1 if self._number.value else None

    def _show_top(self) -> None:
        here = sum(row.is_here for row in self._selection.rows)
        gpus = ", ".join(gpu.name for gpu in self._gpus.gpus) or "no NVIDIA GPU"
        said = f"{len(self._selection.rows)} images · {here} here · {html.escape(gpus)}"
        self._top.value = (
            "<div class='dockml-top'><span class='dockml-title' role='heading' aria-level='2'>Images</span>"
            f"<span class='dockml-muted'>{said}</span></div>"
        )

    @property
    def _chosen(self) -> Row | None:
        index, found = self._list.index, self._found  # another thread may find others
        return found[index] if index is not None and index < len(found) else None

    @_in_turn
    def _show_row(self, _: Any = None) -> None:
        row = self._chosen
        with self._number.hold_sync(), _silent(self._number, self._choose_row, "value"):
            self._number.max = min(len(self._found), _MOST_ROWS)
            self._number.value = 0 if self._list.index is None else self._list.index + 1
        if row is None:
            nothing = "Choose an image." if self._found else "No image is called so."
            self._details.value = f"<div class='dockml-details dockml-muted'>{nothing}</div>"
        else:
            self._details.value = _details(row, self._size_of(row), self._gpus)
        self._show_line()

    def _size_of(self, row: Row) -> int:
        if not row.is_here:
            return 0
        with contextlib.suppress(DockmlError):
            image = engine_for(RunOptions()).find_image(row.image.reference)
            return image.size if image else 0
        return 0

    # --- starting -----------------------------------------------------------------------------

    def _words(self) -> list[str]:
        return words_of(
            gpus=self._gpu_choice.value, memory=self._memory.value, ports=self._ports.value
        )

    @_in_turn
    def _show_line(self, _: Any = None) -> None:
        row = self._chosen
        self._start.disabled = row is None or self._working.locked()
        line = line_of(row.name, self._words()) if row else ""
        self._line.value = (
            "<input class='dockml-line' readonly aria-label='The line that does the same, to copy' "
            f"title='The line that does the same, to copy' value='{html.escape(line)}'>"
            if line
            else ""
        )
        self._warm_chosen()
        self._show_readiness()

    def _asked(self) -> tuple[str, RunOptions]:
        """Return what Start would start, "" where nothing is chosen, or something is half typed."""
        if (row := self._chosen) is not None:
            with contextlib.suppress(ConfigError):
                return row.name, parse_words("%docker_env", self._words())
        return "", RunOptions()

    @_in_turn
    def _warm_chosen(self) -> None:
        """Have what is chosen wait ready, if its image is here and this is looked at; see `warm`."""
        if not self._is_shown or self._working.locked():
            return
        row = self._chosen
        is_here = row is not None and row.is_here and not self._closed.is_set()
        name, options = self._asked() if is_here else ("", RunOptions())
        self._notebook.warm.pick(name, options, self._folder)

    def _show_readiness(self) -> None:
        """Say whether what is chosen waits warm; called in whatever thread changed that."""
        with self._showing:
            waiting = self._notebook.warm.find(*self._asked())
            kind, mark = ("good", "● ") if waiting and waiting.is_ready else ("muted", "")
            word = (
                f"<span class='dockml-{kind}' role='status'>{mark}{waiting.status}</span>"
                if waiting
                else ""
            )
            self._readiness.value = word
            self._readiness.layout.display = None if word else "none"

    def _start_chosen(self) -> None:
        row = self._chosen
        if row is None:
            return
        words = self._words()

        def start() -> None:
            line = line_of(row.name, words)
            self._say(line)
            options = parse_words("%docker_env", words)
            self._notebook.switch_to(row.name, options, tell=_Teller(self), begun=self._note_start)

        self._work(start, can_stop=True, after=self._look_at_images)

    def _look_at_images(self) -> None:
        """Show what images are here now, where that has changed."""
        if set(engine_for(RunOptions()).local_references()) != set(self._local):
            selection = self._read_images()
            with self._choosing:
                self._selection = selection
                self._show_top()
                self._find()

    def _note_start(self, environment: Environment) -> None:
        self._starting = environment
        if self._stopping.is_set():
            environment.abandon()

    def _give_up(self) -> None:
        self._stopping.set()
        self._stop.disabled = True
        starting = self._starting  # which another thread sets back
        if starting is not None:
            starting.abandon()

    def _work(
        self,
        work: Callable[[], None],
        *,
        can_stop: bool = False,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Do something that takes time, in a thread of its own; `after` it, the next may begin already."""
        if not self._working.acquire(blocking=False):
            self._say("Wait until what was begun is done.")
            return
        try:
            self._stopping.clear()
            self._lines.clear()
            self._stop.disabled = False
            self._stop.layout.display = None if can_stop else "none"
            self._show_line()
            threading.Thread(
                target=self._do, args=(work, after), name="dockml-picker", daemon=True
            ).start()
        except BaseException:
            self._working.release()
            raise

    def _do(self, work: Callable[[], None], after: Callable[[], None]) -> None:
        try:
            with self._errors_said():
                work()
        finally:
            self._starting = None
            self._stop.layout.display = "none"
            self._working.release()
        with self._errors_said():
            self._show_line()
            self._show_environments()
            after()

    @contextlib.contextmanager
    def _errors_said(self) -> Iterator[None]:
        """Say what fails in a thread, which has nobody else to tell it to."""
        try:
            yield
        except (DockmlError, PullStopped) as error:
            self._say(str(error), is_error=not self._stopping.is_set())
        except Exception as error:
            log.debug("the picker failed", exc_info=True)
            self._say(f"{type(error).__name__}: {error}", is_error=True)

    def _say(self, text: str, *, is_error: bool = False) -> None:
        """Add to the picker's own log: a cell's output is none of ours."""
        first, *rest = html.escape(text.rstrip()).split("\n")
        self._lines += [f"<span class='dockml-bad'>{first}</span>" if is_error else first, *rest]
        del self._lines[:-_LOG_LINES]
        lines = "\n".join(self._lines)
        self._log.value = f"<div class='dockml-log' role='log' tabindex='0'>{lines}</div>"

    # --- what runs ----------------------------------------------------------------------------

    def _show_environments(self) -> None:
        """Show the environments there are; called in whatever thread changed them."""
        with self._showing:
            active = self._environments.active
            environments = list(self._environments)
            for environment in [e for e in self._rows if e not in environments]:
                _close(self._rows.pop(environment).box)
            for environment in environments:
                row = self._rows.get(environment)
                if row is None:
                    row = self._rows[environment] = self._row_of(environment)
                row.show(_about(environment), is_active=environment is active)
            self._own_kernel.show("the notebook's own kernel", is_active=active is None)
            rows = [self._rows[environment].box for environment in environments]
            shown = [self._running_title, *rows, self._own_kernel.box, self._gpu_figures]
            if not environments:
                shown = []
            if list(self._running.children) != shown:  # keeps the focus where it is
                self._running.children = shown
            self._show_readiness()
        self._look_at_figures()

    def _row_of(self, environment: Environment) -> _EnvironmentRow:
        name = environment.name
        return _EnvironmentRow(
            name,
            _button(
                "Switch",
                f"Run the next cells in {name}",
                lambda: self._work(lambda: self._switch(name)),
            ),
            _button(
                "Restart",
                f"Restart the kernel of {name}: its variables go",
                lambda: self._work(lambda: self._restart(name)),
            ),
            _button(
                "Logs",
                f"Show the log of {name}",
                lambda: self._work(lambda: self._show_log(environment)),
            ),
            _button(
                "Stop",
                f"Stop {name}: its variables are gone",
                lambda: self._work(lambda: self._end(name)),
            ),
        )

    def _use_own_kernel(self) -> None:
        self._environments.active = None

    def _switch(self, name: str) -> None:
        self._notebook.switch_to(name, RunOptions(), tell=_Teller(self), begun=self._note_start)

    def _restart(self, name: str) -> None:
        self._environments.restart(name)
        self._say(f"Restarted {name!r}.")

    def _end(self, name: str) -> None:
        self._environments.stop(name)
        self._say(f"Stopped {name!r}.")

    def _show_log(self, environment: Environment) -> None:
        text = environment.engine.logs(environment.container_id, _LOG_LINES)
        self._say(text or f"{environment.name!r} has written nothing to its log.")

    # --- figures ------------------------------------------------------------------------------

    def _look_at_figures(self) -> None:
        """Ask for figures every few seconds, from now on, while there is something to ask about."""
        with self._showing:
            if not self._is_shown or self._is_looking or not self._rows or self._closed.is_set():
                return
            self._is_looking = True
        threading.Thread(target=self._watch, name="dockml-figures", daemon=True).start()

    def _watch(self) -> None:
        before: dict[str, ContainerStats] = {}
        while True:
            with self._showing:
                rows = dict(self._rows)
                if not rows or self._closed.is_set():
                    self._is_looking = False
                    return
            try:
                for environment, row in rows.items():
                    row.show_figures(environment, before)
                if self._gpus.gpus:
                    self._gpu_figures.value = _gpu_figures(find_gpus())
                self._show_environments()
            except Exception:  # of something that ends just now; the next look is another
                log.debug("figures", exc_info=True)
            self._closed.wait(FIGURES_INTERVAL)

    # --- showing ------------------------------------------------------------------------------

    def __str__(self) -> str:
        """Return what is found as a table, with the lines that start it."""
        return text_of(self._found)

    __repr__ = __str__

    def _repr_mimebundle_(self, **keywords: Any) -> Mapping[str, Any]:
        """Show the widget, and the table where there are none (IPython's own hook)."""
        self._is_shown = True
        self._look_at_figures()
        self._warm_chosen()
        shown: Mapping[str, Any] = self._box._repr_mimebundle_(**keywords)
        return {**shown, "text/plain": str(self)}

    def close(self) -> None:
        """Take it away. What it started runs on."""
        self._closed.set()
        self._give_up()
        with self._choosing:
            self._notebook.warm.pick("", RunOptions(), self._folder)
        with contextlib.suppress(ValueError):
            self._environments.changed.remove(self._show_environments)
        _close(self._box)


class _Teller:
    """Speaks to the user of a picker, and shows pulls in it; a `display.ShowsPulls`."""

    def __init__(self, picker: ImagePicker) -> None:
        self._picker = picker

    def __call__(self, line: str) -> None:
        self._picker._say(line)  # noqa: SLF001  # a part of it

    def pull_view(self) -> _PullView:
        return _PullView(self._picker)


class _PullView:
    """Shows a pull in a picker, and ends it when the user gives up."""

    def __init__(self, picker: ImagePicker) -> None:
        self._picker = picker
        self._widget: PullWidget | None = None

    def show(self, progress: PullProgress) -> None:
        if self._picker._stopping.is_set():  # noqa: SLF001
            raise PullStopped(progress.reference)
        if self._widget is None:
            self._widget = PullWidget()
            self._picker._progress.children = [self._widget.box]  # noqa: SLF001
        self._widget.show(progress)

    def say(self, line: str) -> None:
        self._picker._say(line)  # noqa: SLF001

    def end(self, line: str) -> None:
        if self._widget is not None:
            self._picker._progress.children = []  # noqa: SLF001
            self._widget.close()
        if line:
            self.say(line)


class _EnvironmentRow:
    """One environment, or the notebook's own kernel, with what can be done to it."""

    def __init__(self, name: str, switch: widgets.Button, *others: widgets.Button) -> None:
        self._name = name
        self._switch = switch
        self._label = _text(flex="1 1 18rem")
        self._figures = _text(flex="0 1 14rem")
        buttons = widgets.HBox([switch, *others])
        buttons.layout = widgets.Layout(grid_gap="4px", flex="0 0 15.5rem")
        self.box = _line_up(self._label, self._figures, buttons)
        self.box.layout.align_items = "center"

    def show(self, about: str, *, is_active: bool) -> None:
        """Show what it is, and whether cells run there."""
        mark = "<span class='dockml-good'>● cells run here</span>" if is_active else ""
        self._label.value = (
            f"<b>{html.escape(self._name)}</b> {mark}<br>"
            f"<span class='dockml-muted'>{html.escape(about)}</span>"
        )
        self._switch.disabled = is_active

    def show_figures(self, environment: Environment, before: dict[str, ContainerStats]) -> None:
        """Ask the engine what it uses, and show it; `before` keeps the last answers."""
        stats = None
        with contextlib.suppress(DockmlError):
            stats = environment.engine.stats(environment.container_id)
        if stats is None:
            self._figures.value = ""
            return
        last = before.get(environment.container_id)
        before[environment.container_id] = stats
        busy = f"CPU {stats.cpu_percent(last):.0f} %" if last else "CPU …"
        memory = f"{format_size(stats.memory)} of {format_size(stats.memory_limit)}"
        self._figures.value = f"<span class='dockml-muted'>{busy} · {memory}</span>"


def _this_notebook() -> Notebook:
    """Return the magics of the notebook that this runs in; the extension is loaded if it was not."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None:
        raise ConfigError(
            "An ImagePicker needs a notebook, or IPython.",
            hint="In a script, start what you know by name: dockml_magic.start(NAME)",
        )
    assert shell.extension_manager is not None
    shell.extension_manager.load_extension("dockml_magic")
    notebook: Notebook = shell.magics_manager.registry["DockerMagics"]
    return notebook


def _about(environment: Environment) -> str:
    """Return what is to be said of an environment besides its name."""
    state = "kept" if environment.waits_for_kernel else "dead"
    with contextlib.suppress(KernelError):  # it ends just now
        if environment.is_alive:
            state = describe_kernel(environment.report).partition(",")[0]
    image = "" if environment.reference == environment.name else f" · {environment.reference}"
    return state + image


def _details(row: Row, size: int, gpus: HostGpus) -> str:
    """Return what is known of an image, in HTML."""
    image = row.image
    where = (
        "in it"
        if image.has_ipykernel == "yes"
        else "from the bundle"
        if image.has_ipykernel
        else ""
    )
    sure = {
        "seen": "the tag was seen in a source",
        "derived": "derived from its neighbours; not seen",
    }
    facts = {
        "Python": image.python,
        "CUDA": image.cuda,
        "cuDNN": image.cudnn,
        "System": image.base_os,
        "Kernel": where,
        "Size": format_size(size) if size else "" if row.is_here else "not here: is pulled first",
        "Source": image.source,
        "How sure": sure[image.sure] if image.source else "nothing is known of it",
        "Not confirmed": ", ".join(image.unsure),
    }
    cells = "".join(
        f"<span>{name}</span><span>{html.escape(value)}</span>"
        for name, value in facts.items()
        if value
    )
    parts = [
        _title(image),
        _fit_in_words(row.fit, gpus) if image.gpu else "",
        f"<span class='dockml-bad'>{html.escape(image.broken)}</span>" if image.broken else "",
        f"<div class='dockml-facts'>{cells}</div>",
        f"<span class='dockml-muted'>{html.escape(image.notes)}</span>" if image.notes else "",
    ]
    shown = "".join(f"<div>{part}</div>" for part in parts if part)
    return f"<div class='dockml-details'>{shown}</div>"


def _title(image: Image) -> str:
    reference = f"<code>{html.escape(image.reference)}</code>"
    is_named = image.title not in ("", image.reference)
    return f"<b>{html.escape(image.title)}</b><br>{reference}" if is_named else reference


def _fit_in_words(fit: Fit, gpus: HostGpus) -> str:
    kind = {"fits": "good", "will not run": "bad"}.get(fit.verdict, "fair")
    reason = fit.reason if gpus.gpus else f"No GPU: {gpus.why_none}."
    return (
        f"<span class='dockml-{kind}'>{FIT_MARKS[fit.verdict]}</span>"
        f"<br>{html.escape(' '.join(filter(None, [reason, fit.cure])))}"
    )


def _gpu_figures(gpus: HostGpus) -> str:
    """Return how busy this machine's GPUs are, in HTML."""
    lines = []
    for gpu in gpus.gpus:
        used = (
            f"{format_size(gpu.memory_total - gpu.memory_free)} of {format_size(gpu.memory_total)}"
        )
        work = "" if gpu.utilisation is None else f"{gpu.utilisation} % · "
        lines.append(f"{gpu}: {work}{used}")
    return f"<span class='dockml-muted'>{'<br>'.join(map(html.escape, lines))}</span>"


# --- small parts ----------------------------------------------------------------------------------


def _text(value: str = "", *, flex: str | None = None) -> widgets.HTML:
    return widgets.HTML(value, layout=widgets.Layout(flex=flex, margin="0"))


def _button(description: str, tooltip: str, act: Callable[[], None]) -> widgets.Button:
    button = widgets.Button(
        description=description, tooltip=tooltip, layout=widgets.Layout(width="auto")
    )
    button.on_click(lambda _: act())
    return button


def _field(widget: Any, flex: str = "1 1 9rem") -> Any:
    """Give a chooser its label above, and its share of the row."""
    widget.layout = widgets.Layout(flex=flex, width="auto")
    widget.add_class("dockml-field")
    return widget


def _line_up(*children: widgets.Widget) -> widgets.HBox:
    row = widgets.HBox(children)
    row.add_class("dockml-row")
    return row


@contextlib.contextmanager
def _silent(widget: widgets.Widget, handler: Callable[..., None], name: str) -> Iterator[None]:
    """Change a widget without its handler being called."""
    widget.unobserve(handler, name)
    try:
        yield
    finally:
        widget.observe(handler, name)


def _close(widget: widgets.Widget) -> None:
    """Close a widget and what is in it."""
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()
