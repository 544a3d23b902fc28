"""Where a cell goes: to the notebook's own kernel, or to the active environment.

In a notebook (ipykernel 6 and 7) the host kernel's `do_execute`, `do_complete`, `do_inspect` and
`do_is_complete` are taken over as instance attributes; deleting them gives everything back. Below
these, ipykernel does what it always does: busy and idle, execution counts, aborting queued cells. A
comm that a container's kernel opens (a widget) gets a stand-in in the host's list of comms, which
sends its messages on. In a terminal there is no kernel object; an input transformer turns a routed
cell into calls of `Router.run_piece`.

A cell is never parsed as host Python. Lines that begin with `%docker_` are ours and run here; whatever
stands before and after them goes where cells go at that moment.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import zmq
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.page import page
from jupyter_client.session import DELIM, Session

from dockml_magic.environment import Environment, Environments, raise_remote_error
from dockml_magic.errors import DockmlError
from dockml_magic.names import LOCAL
from dockml_magic.relay import Relay, Sink, content_of

PREFIX = "%docker_"
CELL_MAGIC = "%%docker_cell"
_OURS = re.compile(r"%docker_|%(?:un|re)?load_ext\s+dockml_magic\b")
_COMPLETE_TIMEOUT = 5.0

_RUN_PIECE = "_dockml_run_piece"
"""The shell's attribute by which a transformed cell of a terminal calls `Router.run_piece`."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a cell: one of our own lines, or code between them."""

    code: str
    is_ours: bool


def split_cell(code: str) -> list[Piece]:
    """Return a cell as its pieces, in order.

    Our own lines are those that begin with `%docker_` (or load and unload us) at the left margin,
    outside a triple-quoted string; a backslash at their end continues them. A cell that begins with
    `%%docker_` is ours as a whole; another cell magic keeps its body.
    """
    if code.lstrip().startswith("%" + PREFIX):
        return [Piece(code=code, is_ours=True)]
    pieces: list[Piece] = []
    block: list[str] = []
    quotes = {"'''": 0, '"""': 0}
    in_cell_magic = False

    def end_block() -> None:
        if "".join(block).strip():
            pieces.append(Piece(code="".join(block), is_ours=False))
        block.clear()

    for line in code.splitlines(keepends=True):
        if pieces and pieces[-1].is_ours and not block and pieces[-1].code.endswith("\\"):
            pieces[-1] = Piece(code=f"{pieces[-1].code}\n{line.rstrip()}", is_ours=True)
            continue
        in_string = any(count % 2 for count in quotes.values())
        if not in_string and not in_cell_magic and _OURS.match(line):
            end_block()
            pieces.append(Piece(code=line.rstrip("\n"), is_ours=True))
            continue
        if not "".join(block).strip() and line.startswith("%%"):
            in_cell_magic = True
        for quote in quotes:
            quotes[quote] += line.count(quote)
        block.append(line)
    end_block()
    return pieces


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

    def publish(self, msg_type: str, topic: bytes, parts: Sequence[zmq.Frame | bytes]) -> None:
        """Sign and send; contents are passed on as they are, without a copy where they are large."""
        if msg_type == "error" and not self._errors:
            return
        if msg_type in ("comm_open", "comm_close"):
            self._note_comm(msg_type, content_of(parts))
        signature = self._session.sign(
            [part if isinstance(part, bytes) else part.buffer for part in parts[:4]]
        )
        self._kernel.iopub_socket.send_multipart([topic, DELIM, signature, *parts], copy=False)

    def _note_comm(self, msg_type: str, content: Mapping[str, Any]) -> None:
        """Keep the notebook's list of comms, by which it sends a widget's messages to its owner."""
        comms = self._kernel.comm_manager.comms
        if msg_type == "comm_open":
            comms[content["comm_id"]] = RemoteComm(content, self._environment)
        else:
            comms.pop(content["comm_id"], None)

    def ask(self, prompt: str, *, password: bool) -> str:
        """Ask the front end."""
        answer: str = self._kernel.getpass(prompt) if password else self._kernel.raw_input(prompt)
        return answer


class TerminalSink:
    """Shows a container's messages in a terminal."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell

    def publish(self, msg_type: str, topic: bytes, parts: Sequence[zmq.Frame | bytes]) -> None:
        """Print it; errors are shown by whoever gets the reply."""
        content = content_of(parts)
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


class Router:
    """Sends each cell of one notebook where it belongs.

    Parameters
    ----------
    shell : InteractiveShell
        The notebook's own.
    environments : Environments
        What runs, and which one is active.
    cell_target : callable
        Takes the line of a `%%docker_cell` and returns the environment it names (started where it
        did not run yet), "local", or "" where the line only asked for help.
    """

    def __init__(
        self,
        shell: InteractiveShell,
        environments: Environments,
        cell_target: Callable[[str], Environment | str],
    ) -> None:
        self.shell = shell
        self.environments = environments
        self._cell_target = cell_target
        self.kernel: Any = getattr(shell, "kernel", None)
        self._taken: list[str] = []
        self._streams: list[Any] = []
        self._sleep = getattr(self.kernel, "_execute_sleep", 0.0)
        self._is_remote = False
        self._splits_this_cell = False

    # --- taking over and giving back ----------------------------------------------------------

    def install(self) -> None:
        """Take over. Undone by `uninstall`."""
        if self.kernel is None:
            self.shell.input_transformers_cleanup.insert(0, self._transform)
            setattr(self.shell, _RUN_PIECE, self.run_piece)
            return
        for name in ("do_execute", "do_complete", "do_inspect", "do_is_complete"):
            original = getattr(self.kernel, name)
            setattr(self.kernel, name, getattr(self, f"_{name}")(original))
            self._taken.append(name)
        streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
        for stream in streams:
            if hasattr(stream, "_flush_pending"):
                stream.flush = self._flush(stream, stream.flush)
                self._streams.append(stream)

    def uninstall(self) -> None:
        """Give everything back as it was."""
        if self.kernel is None:
            self.shell.input_transformers_cleanup.remove(self._transform)
            delattr(self.shell, _RUN_PIECE)
        for name in self._taken:
            delattr(self.kernel, name)
        self._taken.clear()
        for stream in self._streams:
            del stream.flush
        self._streams.clear()
        if self.kernel is not None:
            self._set_remote(is_remote=False)

    # --- a notebook's kernel ------------------------------------------------------------------

    def _set_remote(self, *, is_remote: bool) -> None:
        """Note whether the whole cell runs elsewhere: its reply need not wait for output of ours."""
        self._is_remote = is_remote
        self.kernel._execute_sleep = 0.0 if is_remote else self._sleep

    def _flush(self, stream: Any, original: Callable[[], None]) -> Callable[[], None]:
        """Return a stream's `flush` that has nothing to wait for where nothing was written.

        ipykernel calls it four times per cell, and each waits for the publishing thread. What we
        publish goes through that thread too, so the order is kept.
        """

        def flush() -> None:
            pending = stream._flush_pending or stream._subprocess_flush_pending
            if pending or not self._is_remote:
                original()

        return flush

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
            is_remote = self.environments.active is not None
            self._set_remote(is_remote=is_remote and not any(piece.is_ours for piece in pieces))
            if not is_remote and not self._must_split(pieces):
                with self._splitting():
                    return await original(
                        code, silent, store_history, user_expressions, allow_stdin, **more
                    )
            count = self.shell.execution_count
            # IPython 9 counts a cell before it runs, and older ones after; a piece must show `count`.
            ahead = count - self.shell.displayhook.prompt_count
            reply: dict[str, Any] = {"status": "ok", "user_expressions": {}, "payload": []}
            stores = store_history and not silent
            history = self.shell.history_manager
            unstored = [code] if stores else []

            def store() -> None:
                if history is not None and unstored:
                    history.store_inputs(count, code, unstored.pop())

            for i, piece in enumerate(pieces):
                is_last = i == len(pieces) - 1
                content = {
                    "code": piece.code,
                    "silent": silent,
                    "store_history": store_history and is_last,
                    "user_expressions": (user_expressions or {}) if is_last else {},
                    "allow_stdin": allow_stdin,
                    "stop_on_error": True,
                }
                try:
                    environment, content["code"] = self._target(piece)
                except (DockmlError, KeyboardInterrupt) as error:
                    reply = self._error_reply(error)
                    break
                if environment is not None:
                    reply = self._execute_remotely(environment, content, count, store)
                elif content["code"]:
                    self.shell.execution_count = count + ahead
                    try:
                        with self._splitting():
                            reply = await original(
                                content["code"],
                                silent,
                                False,
                                content["user_expressions"],
                                allow_stdin,
                                **more,
                            )
                    finally:
                        self.shell.execution_count = count
                if reply["status"] != "ok":
                    break
            store()
            if stores:
                self.shell.execution_count = count + 1
            reply["execution_count"] = count
            return reply

        return do_execute

    @staticmethod
    def _must_split(pieces: Sequence[Piece]) -> bool:
        """Tell whether a cell has to do with environments while none is active."""
        if len(pieces) > 1:
            return any(piece.is_ours for piece in pieces)
        return bool(pieces) and pieces[0].code.lstrip().startswith(CELL_MAGIC)

    def _target(self, piece: Piece) -> tuple[Environment | None, str]:
        """Return where a piece runs (None: here), and what of it; "" where it only asked for help."""
        if not piece.is_ours:
            return self.environments.active, piece.code
        line, _, body = piece.code.lstrip().partition("\n")
        words = line.split(maxsplit=1)
        if words[0] != CELL_MAGIC:
            return None, piece.code
        where = self._cell_target(words[1] if len(words) > 1 else "")
        if isinstance(where, Environment):
            return where, body
        return None, body if where == LOCAL else ""

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
        meanwhile: Callable[[], None],
    ) -> dict[str, Any]:
        """Run code there; an error of ours becomes the cell's error, as one of the code would."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.kernel._allow_stdin = content["allow_stdin"]
        header = self.kernel.get_parent("shell")["header"]
        try:
            return environment.execute(
                header, content, self._sink(environment), count=count, meanwhile=meanwhile
            )
        except (DockmlError, KeyboardInterrupt) as error:
            return self._error_reply(error)

    def _error_reply(self, error: DockmlError | KeyboardInterrupt) -> dict[str, Any]:
        """Publish an error of ours as the cell's, and return the reply that says so.

        An interrupt that came before the cell was sent is one too: a front end waits for a reply.
        """
        told: dict[str, Any] = {"ename": type(error).__name__, "evalue": "", "traceback": []}
        if isinstance(error, DockmlError):
            told |= {"evalue": error.message, "traceback": error._render_traceback_()}
        self.kernel.send_response(self.kernel.iopub_socket, "error", told)
        return {"status": "error", "user_expressions": {}, "payload": [], **told}

    def _sink(self, environment: Environment, *, errors: bool = True) -> Sink:
        if self.kernel is None:
            return TerminalSink(self.shell)
        return KernelSink(self.kernel, environment, errors=errors)

    # --- between the cells --------------------------------------------------------------------

    def watch(self, environment: Environment, relay: Relay) -> Callable[[], None]:
        """Pass on what an environment says while no cell runs; return how to stop that."""
        if self.kernel is None:  # a terminal shows it with the next cell
            return lambda: None
        loop = self.kernel.io_loop.asyncio_loop
        descriptor = relay.fileno
        loop.add_reader(descriptor, relay.drain, self._sink(environment))

        def stop() -> None:
            loop.remove_reader(descriptor)
            comms = self.kernel.comm_manager.comms
            for comm_id, comm in list(comms.items()):
                if isinstance(comm, RemoteComm) and comm.environment is environment:
                    del comms[comm_id]
                    closing = {"comm_id": comm_id, "data": {}}
                    self.kernel.send_response(self.kernel.iopub_socket, "comm_close", closing)

        return stop

    def _do_complete(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def do_complete(code: str, cursor_pos: int) -> Any:
            line = code[code.rfind("\n", 0, cursor_pos) + 1 : cursor_pos]
            if line.startswith(("%docker", "%%docker")):
                return original(code, cursor_pos)
            content = {"code": code, "cursor_pos": cursor_pos}
            return self._ask_or("complete_request", content, lambda: original(code, cursor_pos))

        return do_complete

    def _do_inspect(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def do_inspect(code: str, cursor_pos: int, detail_level: int = 0, *more: Any) -> Any:
            content = {"code": code, "cursor_pos": cursor_pos, "detail_level": detail_level}
            if code.lstrip("%").startswith("docker_"):
                return original(code, cursor_pos, detail_level, *more)
            return self._ask_or(
                "inspect_request", content, lambda: original(code, cursor_pos, detail_level, *more)
            )

        return do_inspect

    def _do_is_complete(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def do_is_complete(code: str) -> Any:
            return self._ask_or("is_complete_request", {"code": code}, lambda: original(code))

        return do_is_complete

    def _ask_or(self, msg_type: str, content: Mapping[str, Any], local: Callable[[], Any]) -> Any:
        """Ask the active environment, or the notebook's own kernel where none is active."""
        environment = self.environments.active
        if environment is None or not environment.is_alive:
            return local()
        reply = environment.request(msg_type, content, _COMPLETE_TIMEOUT)
        return reply if reply is not None else local()

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
                "msg_id": f"dockml-{id(content)}-{count}",
                "session": "dockml-terminal",
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

    def _act_on(self, payload: Sequence[Mapping[str, Any]]) -> None:
        """Do what a reply asks of a front end, which a terminal is itself."""
        for item in payload:
            if item["source"] == "page":
                page(item["data"].get("text/plain", ""))
            elif item["source"] == "set_next_input":
                self.shell.set_next_input(item["text"], replace=item.get("replace", False))
            elif item["source"] == "ask_exit":
                self.shell.ask_exit()  # type: ignore[attr-defined]  # every terminal has it

    # IPython asks transformers without side effects whether a cell is complete; this one would
    # call every cell complete.
    _transform.has_side_effects = True  # type: ignore[attr-defined]
