"""Where a cell goes: to the notebook's own kernel, or to the active environment.

In a notebook (ipykernel 6 and 7) a `forwarding.ShellChannel` asks `Router.target` of each message which
kernel it belongs to; whole cells do not pass through here. A cell that has lines of ours runs in
the notebook's own kernel: its `do_execute` is taken over, as an instance attribute, and runs the cell piece
by piece. A comm that a container's kernel opens (a widget) gets a stand-in in the host's list of comms.
In a terminal there is no kernel object; an input transformer turns a routed cell into calls of
`Router.run_piece`.

A cell is never parsed as host Python. Lines that begin with `%docker_` are ours and run here; whatever
stands before and after them goes where cells go at that moment.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import secrets
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from types import FrameType
from typing import Any

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.page import page
from jupyter_client.session import Session

from dockml_magic.environment import Environment, Environments, raise_remote_error
from dockml_magic.errors import DockmlError, Stopped
from dockml_magic.forwarding import (
    ALL_COMM_TYPES,
    COMM_TYPES,
    UNDECIDED_TYPES,
    RefusedError,
    ShellChannel,
)
from dockml_magic.messages import Message
from dockml_magic.pieces import CELL_MAGIC, PREFIX, Piece, has_own_line, split_cell
from dockml_magic.relay import Relay, Sink

log = logging.getLogger(__name__)

_COMPLETE_TIMEOUT = 15.0
"""Seconds; the first time jedi parses for five, and longer on a busy machine."""
_DEBUG_TIMEOUT = 60.0

_PYTHONS_MATCHERS = (
    "IPCompleter.python_matcher",
    "IPCompleter.python_matches",
    "IPCompleter.python_func_kw_matcher",
)
"""What completes Python, as IPython calls it, and as older ones do."""

WIDGET_CONTROL = "jupyter.widget.control"
"""The target of a comm by which a front end asks for widgets' states; see ipywidgets' messages.md."""

_RUN_PIECE = "_dockml_run_piece"
"""The shell's attribute by which a transformed cell of a terminal calls `Router.run_piece`."""


class RemoteComm:
    """Stands in the notebook's list of comms for one that a kernel in a container has opened."""

    def __init__(self, content: Mapping[str, Any], environment: Environment) -> None:
        self.comm_id = content["comm_id"]
        self.target_name = content["target_name"]
        self.environment = environment

    def handle_msg(self, message: Mapping[str, Any]) -> None:
        """Pass a front end's message on to the owner; called by the notebook's comm manager."""
        self.environment.forward(message)

    handle_close = handle_msg


class KernelSink:
    """Publishes a container's messages as the notebook's own, under the parents they carry.

    Parameters
    ----------
    kernel : ipykernel.kernelbase.Kernel
        The notebook's own.
    environment : Environment
        Where the messages come from.
    errors : bool
        Publish errors too; not where the caller raises them.
    """

    def __init__(self, kernel: Any, environment: Environment, *, errors: bool = True) -> None:
        self._kernel = kernel
        self._environment = environment
        self._errors = errors
        self._session: Session = kernel.session

    def publish(self, message: Message) -> None:
        """Sign and send; contents are passed on as they are, without a copy where they are large."""
        if message.type == "error" and not self._errors:
            return
        if message.type in ALL_COMM_TYPES and not note_comm(
            self._kernel, self._environment, message
        ):
            return
        self._kernel.iopub_socket.send_multipart(message.said_by(self._session), copy=False)

    def ask(self, prompt: str, *, password: bool) -> str:
        """Ask the front end."""
        answer: str = self._kernel.getpass(prompt) if password else self._kernel.raw_input(prompt)
        return answer


def note_comm(kernel: Any, environment: Environment, message: Message) -> bool:
    """Keep a notebook's list of comms, which says whose each one is; return whether this is the environment's.

    The notebook's own, and those of other environments, are not a container's to open anew, speak for, or close.
    """
    comms = kernel.comm_manager.comms
    comm_id = message.content.get("comm_id", "")
    known = comms.get(comm_id)
    if known is not None and getattr(known, "environment", None) is not environment:
        log.warning("%r sent a %s for a comm that is not its own", environment.name, message.type)
        return False
    if message.type == "comm_open":
        comms[comm_id] = RemoteComm(message.content, environment)
    elif message.type == "comm_close":
        comms.pop(comm_id, None)
    return True


class TerminalSink:
    """Shows a container's messages in a terminal."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell

    def publish(self, message: Message) -> None:
        """Print it; errors are shown by whoever gets the reply."""
        msg_type, content = message.type, message.content
        if msg_type == "stream":
            stream = sys.stdout if content["name"] == "stdout" else sys.stderr
            stream.write(content["text"])
            stream.flush()
        elif msg_type == "execute_result":
            text = content["data"].get("text/plain", "")
            sys.stdout.write(f"Out[{self._shell.displayhook.prompt_count}]: ")
            sys.stdout.write(("\n" if "\n" in text else "") + text + "\n")
        elif msg_type in ("display_data", "update_display_data"):
            self._shell.display_pub.publish(data=content["data"], metadata=content["metadata"])
        elif msg_type == "clear_output":
            self._shell.display_pub.clear_output(wait=content["wait"])  # type: ignore[no-untyped-call]

    def ask(self, prompt: str, *, password: bool) -> str:
        """Ask at the terminal."""
        if password:
            import getpass

            return getpass.getpass(prompt)
        return input(prompt)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a piece of a cell runs.

    Attributes
    ----------
    environment : Environment or None
        None is the notebook's own kernel.
    fetch : callable
        Called when the piece has run there and raised nothing: it may bring values back.
    """

    environment: Environment | None
    fetch: Callable[[], None] = lambda: None


class Router:
    """Sends each cell of one notebook where it belongs.

    Parameters
    ----------
    shell : InteractiveShell
        The notebook's own.
    environments : Environments
        What runs, and which one is active.
    cell_target : callable
        Takes the line of a `%%docker_cell` and returns where the cell runs, in an environment that was started where it
        did not run yet; None where the line only asked for help.
    """

    def __init__(
        self,
        shell: InteractiveShell,
        environments: Environments,
        cell_target: Callable[[str], Place | None],
    ) -> None:
        self.shell = shell
        self.environments = environments
        self._cell_target = cell_target
        self.kernel: Any = getattr(shell, "kernel", None)
        self._taken: list[str] = []
        self._channel: ShellChannel | None = None
        self._splits_this_cell = False
        self._terminal = f"dockml-terminal-{secrets.token_hex(6)}"

    # --- taking over and giving back ----------------------------------------------------------

    def install(self) -> None:
        """Take over. Undone by `uninstall`."""
        if self.kernel is None:
            self.shell.input_transformers_cleanup.insert(0, self._transform)
            setattr(self.shell, _RUN_PIECE, self.run_piece)
            self.shell.Completer.custom_matchers.append(self._match)
            return
        for name in ("do_execute", "do_complete", "do_debug_request", "do_shutdown"):
            original = getattr(self.kernel, name)
            setattr(self.kernel, name, getattr(self, f"_{name}")(original))
            self._taken.append(name)
        if getattr(self.kernel, "shell_stream", None) is not None:
            self._channel = ShellChannel(self.kernel, self.target, self._note_comm)
            self._channel.install()
            self._own_sigint = self._when_interrupted_idle(self._interrupt)

    def uninstall(self) -> None:
        """Give everything back as it was."""
        if self.kernel is None:
            self.shell.input_transformers_cleanup.remove(self._transform)
            delattr(self.shell, _RUN_PIECE)
            self.shell.Completer.custom_matchers.remove(self._match)
        for name in self._taken:
            delattr(self.kernel, name)
        self._taken.clear()
        if self._channel is not None:
            self._channel.uninstall()
            self._channel = None
            self._when_interrupted_idle(self._own_sigint)

    # --- a notebook's kernel ------------------------------------------------------------------

    def target(self, message: Message) -> Environment | None:
        """Return whose a front end's message is, None for the notebook's own kernel."""
        if message.type in COMM_TYPES:
            comm = self.kernel.comm_manager.comms.get(message.content.get("comm_id"))
            return comm.environment if isinstance(comm, RemoteComm) else None
        if message.type == "comm_open":
            return self._target_of_open(message)
        environment = self.environments.active
        if message.type not in UNDECIDED_TYPES or environment is None or not environment.is_alive:
            return None
        code = str(message.content.get("code", ""))
        if message.type == "complete_request":
            is_ours = _may_become_ours(code, message.content.get("cursor_pos", len(code)))
        elif message.type == "inspect_request":
            is_ours = code.lstrip("%").startswith("docker_")
        else:
            is_ours = has_own_line(code)
        return None if is_ours else environment

    def _target_of_open(self, message: Message) -> Environment | None:
        """Return which kernel a front end's new comm is for: this one if it has the target.

        Over `jupyter.widget.control` a page that was loaded again asks for the states of all widgets at
        once. One kernel knows its own only; where several have widgets, `ShellChannel` closes the comm, and
        the page asks each widget.
        """
        active = self.environments.active
        if message.content.get("target_name") != WIDGET_CONTROL:
            is_own = message.content.get("target_name") in self.kernel.comm_manager.targets
            return None if is_own or active is None or not active.is_alive else active
        comms = list(self.kernel.comm_manager.comms.values())
        owners = {
            comm.environment if isinstance(comm, RemoteComm) else None
            for comm in comms
            if getattr(comm, "target_name", "").startswith("jupyter.widget")
        }
        if len(owners) > 1:
            raise RefusedError
        return owners.pop() if owners else None

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Pass SIGINT on to the container that works while this process has nothing to do."""
        if self._channel is not None:
            self._channel.interrupt()

    def _when_interrupted_idle(self, handler: Any) -> Any:
        """Set what SIGINT does between this kernel's cells; return what it did."""
        now = signal.getsignal(signal.SIGINT)
        idle = getattr(self.kernel, "saved_sigint_handler", now)
        # While a cell runs it is Python's own handler, ipykernel's where it awaits, or one of the cell's.
        if now != idle:
            self.kernel.saved_sigint_handler = handler
        elif threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        else:  # a subshell's; it is for the main thread to set
            self.kernel.io_loop.add_callback(signal.signal, signal.SIGINT, handler)
        return idle

    def _note_comm(self, environment: Environment, message: Message) -> bool:
        return note_comm(self.kernel, environment, message)

    def _do_execute(self, original: Callable[..., Awaitable[dict[str, Any]]]) -> Callable[..., Any]:
        async def do_execute(
            code: str,
            silent: bool,
            store_history: bool = True,
            user_expressions: Mapping[str, str] | None = None,
            allow_stdin: bool = False,
            **more: Any,
        ) -> dict[str, Any]:
            pieces = split_cell(code)
            if self.environments.active is None and not self._must_split(pieces):
                with self._splitting():
                    return self._seen(
                        await original(
                            code, silent, store_history, user_expressions, allow_stdin, **more
                        )
                    )
            count = self.shell.execution_count
            reply: dict[str, Any] = {"status": "ok", "user_expressions": {}, "payload": []}
            stores = store_history and not silent
            try:
                if stores and self.shell.history_manager is not None:
                    # IPython looks at the last input when one of our lines displays a result.
                    ours = "\n".join(piece.code for piece in pieces if piece.is_ours)
                    with (
                        self._channel.writing_later() if self._channel else contextlib.nullcontext()
                    ):
                        self.shell.history_manager.store_inputs(
                            count, ours if len(pieces) > 1 else code, code
                        )
                for piece in pieces:
                    is_last = piece is pieces[-1]
                    content = {
                        "code": piece.code,
                        "silent": silent,
                        "store_history": store_history and is_last,
                        "user_expressions": (user_expressions or {}) if is_last else {},
                        "allow_stdin": allow_stdin,
                        "stop_on_error": True,
                    }
                    place, content["code"] = self._target(piece)
                    if place.environment is not None:
                        reply = self._execute_remotely(place.environment, content, count)
                    elif content["code"]:
                        with self._splitting(), self._counting_as(count):
                            reply = await original(
                                content["code"],
                                silent,
                                False,
                                content["user_expressions"],
                                allow_stdin,
                                **more,
                            )
                    if reply["status"] != "ok":
                        break
                    if place.environment is not None and not is_last:
                        place.environment.raise_missed_interrupt()
                    place.fetch()
            except (DockmlError, KeyboardInterrupt) as error:  # the latter at any moment
                reply = self._error_reply(error)
            except Exception as error:
                # Whatever it is: ipykernel would send no reply, and the cell never end.
                log.exception("a cell")
                reply = self._error_reply(error)
            if stores:
                self.shell.execution_count = count + 1
            reply["execution_count"] = count
            return self._seen(reply)

        return do_execute

    @contextmanager
    def _counting_as(self, count: int) -> Iterator[None]:
        """Let the piece that runs here show `count` in what it displays, and in its tracebacks.

        IPython 9 counts a cell after it was compiled and before it runs, older ones when it has run; neither
        does for a piece, which is not stored.
        """
        ahead = self.shell.execution_count - self.shell.displayhook.prompt_count
        shell = self.shell

        class Counts(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> ast.AST:
                shell.execution_count = count + ahead
                return node

        counts = Counts()
        shell.ast_transformers.append(counts)
        try:
            yield
        finally:
            shell.ast_transformers.remove(counts)
            shell.execution_count = count

    def _seen(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a cell that ran here; where it failed, those behind it are aborted.

        No interrupt disturbs it from here on: what ipykernel 7 does then is to send the reply, part by part.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.kernel.saved_sigint_handler)
        if reply["status"] == "error" and self._channel is not None:
            self._channel.own_cell_failed()
        return reply

    @staticmethod
    def _must_split(pieces: Sequence[Piece]) -> bool:
        """Tell whether a cell has to do with environments while none is active."""
        if len(pieces) > 1:
            return any(piece.is_ours for piece in pieces)
        return bool(pieces) and pieces[0].code.lstrip().startswith(CELL_MAGIC)

    def _target(self, piece: Piece) -> tuple[Place, str]:
        """Return where a piece runs, and what of it; "" where it only asked for help."""
        if not piece.is_ours:
            return Place(environment=self.environments.active), piece.code
        line, _, body = piece.code.lstrip().partition("\n")
        words = line.split(maxsplit=1)
        if words[0] != CELL_MAGIC:
            return Place(environment=None), piece.code
        place = self._cell_target(words[1] if len(words) > 1 else "")
        return (place, body) if place is not None else (Place(environment=None), "")

    @contextmanager
    def _splitting(self) -> Iterator[None]:
        """Note that the cell that runs here was looked at by us."""
        self._splits_this_cell = True
        try:
            yield
        finally:
            self._splits_this_cell = False

    def _execute_remotely(
        self,
        environment: Environment,
        content: Mapping[str, Any],
        count: int,
    ) -> dict[str, Any]:
        """Run code there."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.kernel._allow_stdin = content["allow_stdin"]
        header = self.kernel.get_parent("shell")["header"]
        return environment.execute(header, content, self._sink(environment), count=count)

    def _error_reply(self, error: Exception | KeyboardInterrupt) -> dict[str, Any]:
        """Publish an error of ours as the cell's, and return the reply that says so.

        An interrupt that came before the cell was sent is one too: a front end waits for a reply.
        """
        told: dict[str, Any] = {"ename": type(error).__name__, "evalue": "", "traceback": []}
        if isinstance(error, DockmlError):
            told |= {"evalue": error.message, "traceback": error._render_traceback_()}
        elif isinstance(error, Stopped):
            told |= {"evalue": str(error), "traceback": error._render_traceback_()}
        elif isinstance(error, Exception):
            line = f"{type(error).__name__}: {error}"
            told |= {"evalue": str(error), "traceback": [line]}
        self.kernel.send_response(self.kernel.iopub_socket, "error", told)
        return {"status": "error", "user_expressions": {}, "payload": [], **told}

    def _sink(self, environment: Environment, *, errors: bool = True) -> Sink:
        if self.kernel is None:
            return TerminalSink(self.shell)
        return KernelSink(self.kernel, environment, errors=errors)

    def show(self, environment: Environment, messages: Sequence[Message]) -> None:
        """Show, below the cell that runs now, what a kernel has published while nobody was attached."""
        sink = self._sink(environment)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for message in messages:
            if self.kernel is not None:
                message.replace_parent(self.kernel.get_parent("shell").get("header", {}))
            elif message.type == "error":  # elsewhere, whoever gets the reply shows it
                sys.stderr.write("\n".join(message.content["traceback"]) + "\n")
            sink.publish(message)

    # --- between the cells --------------------------------------------------------------------

    def watch(self, environment: Environment, relay: Relay) -> Callable[[], None]:
        """Let an environment's messages pass; return how to stop that."""
        channel = self._channel
        if channel is None:  # a terminal shows them with the next cell
            return lambda: None
        relay.has_comm = lambda comm_id: isinstance(
            self.kernel.comm_manager.comms.get(comm_id), RemoteComm
        )
        channel.open(environment, relay)

        def stop() -> None:
            channel.close(environment)
            comms = self.kernel.comm_manager.comms
            for comm_id, comm in list(comms.items()):
                if isinstance(comm, RemoteComm) and comm.environment is environment:
                    del comms[comm_id]
                    closing = {"comm_id": comm_id, "data": {}}
                    self.kernel.send_response(self.kernel.iopub_socket, "comm_close", closing)

        return stop

    def _do_complete(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def do_complete(code: str, cursor_pos: int) -> Any:
            """Complete our own lines, among the magics of the active environment."""
            if _is_ours(code, cursor_pos):
                with self._read_as_no_python():
                    own = original(code, cursor_pos)
                return {**own, "metadata": {}}
            own = original(code, cursor_pos)
            environment = self.environments.active
            if environment is None or not environment.is_alive:
                return own
            content = {"code": code, "cursor_pos": cursor_pos}
            theirs = environment.request("complete_request", content, _COMPLETE_TIMEOUT)
            try:
                return own if theirs is None else _merged(own, theirs)
            except (LookupError, TypeError, AttributeError):  # no completions at all
                return own

        return do_complete

    @contextmanager
    def _read_as_no_python(self) -> Iterator[None]:
        """Have nothing completed with what one of our lines would be as Python."""
        completer = self.shell.Completer
        before = completer.use_jedi, completer.disable_matchers
        completer.use_jedi = False
        completer.disable_matchers = [*completer.disable_matchers, *_PYTHONS_MATCHERS]
        try:
            yield
        finally:
            completer.use_jedi, completer.disable_matchers = before

    def _do_debug_request(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def do_debug_request(request: Mapping[str, Any]) -> Any:
            """Let a front end debug what runs in the active environment; on the control channel's loop."""
            environment = self.environments.active
            if environment is None or not environment.is_alive:
                return await original(request)
            failed = {
                "type": "response",
                "request_seq": request.get("seq", 0),
                "seq": 0,
                "success": False,
                "command": request.get("command", ""),
            }
            try:
                reply = await asyncio.to_thread(environment.debug, request, _DEBUG_TIMEOUT)
            except DockmlError as error:
                return {**failed, "message": error.message}
            return reply or {**failed, "message": f"'{environment.name}' does not answer."}

        return do_debug_request

    @property
    def connection_file(self) -> str:
        """Where the notebook's own kernel is reached; "" in a terminal, and where nobody can restart it."""
        return str(getattr(getattr(self.kernel, "parent", None), "abs_connection_file", ""))

    def _do_shutdown(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def do_shutdown(restart: bool) -> Any:
            """Keep the environments for the kernel that comes after this one; on the control channel's loop."""
            if self._channel is not None:
                self._channel.store_typed()
            if restart and self.connection_file:
                with contextlib.suppress(
                    DockmlError, OSError
                ):  # the kernel has to end all the same
                    self.environments.hand_over(self.connection_file)
            return original(restart)

        return do_shutdown

    # --- one cell, by a magic -----------------------------------------------------------------

    def run_cell(
        self, environment: Environment, code: str, *, is_last: bool = True
    ) -> dict[str, Any]:
        """Run code as (a part of) the cell that runs now; return its reply's content.

        Only the last part is kept in the history over there, which has one entry for a count.
        """
        content = {
            "code": code,
            "silent": False,
            "store_history": is_last,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": True,
        }
        count = self.shell.displayhook.prompt_count
        if self.kernel is not None:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            content["allow_stdin"] = self.kernel._allow_stdin
            header = self.kernel.get_parent("shell")["header"]
        else:
            header = {
                "msg_id": f"{self._terminal}-{id(content)}-{count}",
                "session": self._terminal,
                "username": "user",
                "version": "5.3",
                "date": datetime.now(timezone.utc),
            }
        reply = environment.execute(
            header, content, self._sink(environment, errors=False), count=count
        )
        if self.kernel is None:
            self._act_on(reply.get("payload", []))
        return reply

    def run_piece(self, code: str, *, is_last: bool) -> None:
        """Run code where cells go at this moment, as (a part of) the cell that runs now.

        Raises
        ------
        RemoteCellError
            If it raises there.
        """
        environment = self.environments.active
        if environment is None:
            self.run_locally(code)
        else:
            raise_remote_error(self.run_cell(environment, code, is_last=is_last))
            if not is_last:
                environment.raise_missed_interrupt()

    def run_locally(self, code: str) -> None:
        """Run code in the notebook's own kernel, inside of the cell that runs now; raise its error."""
        result = self.shell.run_cell(code)  # type: ignore[no-untyped-call]
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            error._render_traceback_ = list  # it has been shown
            raise error

    def run_rest_of_cell(self, line: str) -> None:
        """Run what stands after one of our lines, in a cell that was not split.

        That is the case where `%load_ext dockml_magic` stands in the same cell: it began before we
        were there. The lines that this runs do not run here any more.
        """
        running = self.shell.displayhook.exec_result
        if self._splits_this_cell or running is None:
            return
        pieces = split_cell(running.info.raw_cell)
        for i, piece in enumerate(pieces):
            words = piece.code.replace("\\\n", " ").split()
            if piece.is_ours and words == [PREFIX + "env", *line.split()]:
                for later in pieces[i + 1 :]:
                    if later.is_ours:
                        self.run_locally(later.code)
                    else:
                        self.run_piece(later.code, is_last=later is pieces[-1])
                self._skip_the_rest_here()
                return

    def _skip_the_rest_here(self) -> None:
        """Let IPython run no further statement of the current cell."""

        async def skip(*args: Any, **more: Any) -> bool:
            return False

        def run_again(*args: Any) -> None:
            del self.shell.run_code
            self.shell.events.unregister("post_run_cell", run_again)

        self.shell.run_code = skip  # type: ignore[method-assign]
        self.shell.events.register("post_run_cell", run_again)

    # --- a terminal ---------------------------------------------------------------------------

    def _transform(self, lines: list[str]) -> list[str]:
        """Turn a routed cell into calls of `run_piece`; called by IPython for every cell."""
        self._splits_this_cell = True
        code = "".join(lines)
        pieces = split_cell(code)
        has_env_line = len(pieces) > 1 and any(piece.is_ours for piece in pieces)
        if self.environments.active is None and not has_env_line:
            return lines
        if len(pieces) == 1 and pieces[0].is_ours:
            return lines
        call = f"get_ipython().{_RUN_PIECE}({{!r}}, is_last={{}})\n"
        return [
            piece.code + "\n" if piece.is_ours else call.format(piece.code, piece is pieces[-1])
            for piece in pieces
        ]

    @context_matcher(identifier="dockml_magic")  # type: ignore[untyped-decorator]
    def _match(self, context: CompletionContext) -> SimpleMatcherResult:
        """Complete with what the active environment knows; called by IPython's completer."""
        lines = context.full_text.split("\n")[: context.cursor_line]
        cursor = sum(len(line) + 1 for line in lines) + context.cursor_position
        if _is_ours(context.full_text, cursor):
            # Among others, which would be completed as Python, IPython asks for these anyway: here, only for them.
            names = self.shell.Completer.dispatch_custom_completer(context.token) or []
            return {"completions": [SimpleCompletion(text=n) for n in names], "suppress": True}
        environment = self.environments.active
        reply = None
        if environment is not None and environment.is_alive:
            content = {"code": context.full_text, "cursor_pos": cursor}
            reply = environment.request("complete_request", content, _COMPLETE_TIMEOUT)
        if reply is None:
            return {"completions": []}
        try:
            start, matches = int(reply["cursor_start"]), [str(match) for match in reply["matches"]]
        except (LookupError, TypeError, ValueError):
            return {"completions": []}
        own_magics = _may_become_ours(context.full_text, cursor)
        return {
            "completions": [SimpleCompletion(text=match) for match in matches],
            "matched_fragment": context.full_text[start:cursor],
            "suppress": not own_magics,
        }

    def _act_on(self, payload: Sequence[Mapping[str, Any]]) -> None:
        """Do what a reply asks of a front end, which a terminal is itself."""
        for item in payload:
            if item["source"] == "page":
                page(_text_of(item.get("data")))
            elif item["source"] == "set_next_input":
                self.shell.set_next_input(
                    str(item.get("text", "")), replace=bool(item.get("replace"))
                )
            elif item["source"] == "ask_exit":
                self.shell.ask_exit()  # type: ignore[attr-defined]  # every terminal has it

    # IPython asks transformers without side effects whether a cell is complete; this one would
    # call every cell complete.
    _transform.has_side_effects = True  # type: ignore[attr-defined]


def _text_of(data: Any) -> str:
    """Return the plain text of what is displayed, "" where there is none."""
    text = data.get("text/plain", "") if isinstance(data, dict) else ""
    return text if isinstance(text, str) else ""


def _line_until(code: str, cursor: int) -> str:
    return code[code.rfind("\n", 0, cursor) + 1 : cursor]


def _is_ours(code: str, cursor: int) -> bool:
    """Tell whether one of our lines is being typed, past its name."""
    line = _line_until(code, cursor)
    return line.startswith((PREFIX, "%" + PREFIX)) and " " in line


def _may_become_ours(code: str, cursor: int) -> bool:
    """Tell whether what is being typed may become one of our lines, or is one."""
    line = _line_until(code, cursor)
    name = line.removeprefix("%%").removeprefix("%")
    return line.startswith("%") and (name.startswith("docker_") or "docker_".startswith(name))


def _merged(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an environment's completions with ours among them, which this kernel has found."""
    ours = [match for match in own["matches"] if match.lstrip("%").startswith("docker_")]
    if own.get("cursor_start") != theirs.get("cursor_start"):
        return dict(own if ours else theirs)
    matches = sorted({*theirs["matches"], *ours})
    types = theirs.get("metadata", {}).get("_jupyter_types_experimental", [])
    added = [
        item
        for item in own.get("metadata", {}).get("_jupyter_types_experimental", [])
        if item["text"] in ours
    ]
    metadata = {"_jupyter_types_experimental": [*types, *added]} if types else {}
    return {**theirs, "matches": matches, "metadata": metadata}
