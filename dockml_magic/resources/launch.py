"""What runs inside the container: a supervisor, and the kernel that it starts.

Standard library only, for Python 2.7 to the newest: this file is put into images as they are, and
never imports anything else of dockml_magic.

``launch.py supervise CONFIG`` is the container's first process. It starts the kernel as a child,
listens on the control channel, and keeps the container alive between two kernels, so that a restart happens in place.

The control channel is a stream of JSON lines, over a Unix socket in the runtime folder or over TCP.
The first line of the host is ``{"key": ...}``; from then on we send the whole state at every change::

    {"generation": 1, "phase": "bound", "report": {...}, "exit": null}

``phase`` is ``starting``, ``need_bundle`` (nothing in the image can be a kernel by itself), ``other_kernel`` (nothing
but the one kernelspec that the report names), ``bound`` (all five sockets listen), ``exited`` or ``failed`` (no
Python here can run a kernel, or the kernelspec asked for is not here). The host sends ``{"op": "start"}``,
``{"op": "signal", "signum": 2}``, ``{"op": "keep", "keep": true}``, ``{"op": "stop"}``, and ``{"op": "say"}`` to
hear the state once more, and with it that we are not frozen.

The channel is also the lease: when the last connection is gone and none comes back within the
grace time, the notebook is gone, however it went, and the container ends itself.

After ``{"op": "keep", "keep": true}`` it does not. Then we listen to what the kernel publishes and record it
while no notebook is attached (``{"op": "attach"}``, until ``{"op": "detach"}`` or its connection is gone). A
connection whose first line is ``{"key": ..., "op": "take"}`` is no lease: it gets what is recorded and what comes
from then on, each message as a line ``{"frames": [sizes]}`` and the bytes of its frames; and, whenever nothing
more is there and that is news, ``{"busy": true, "dropped": 0, "takes": true}``: whether a cell runs, how many messages
had no room, and whether it is this connection that gets the output (one at a time does, and none while a
notebook is attached).

``launch.py kernel CONFIG FD MODE`` is the kernel: it makes ipykernel importable, from the image itself
(MODE ``image``) or from the mounted bundle (``bundle``; ``any``: where the image has none), says on FD what it found,
and becomes ipykernel.
A kernel of another language is the ``argv`` of the image's own kernelspec (``spec``), started by the supervisor.

``launch.py exec CONFIG OPTIONS COMMAND...`` runs a command beside it, as the kernel's user.

``start.py``, which lies beside us, is what is really run: it has us use the compiled code of an earlier start. The
first start of an image leaves that behind: its kernel has a last word, ``record``, and reports the digest of what it
has written into the runtime folder, before anything runs there that is not the image's own.
"""

from __future__ import print_function

import collections
import errno
import io
import json
import os
import select
import signal
import socket
import string
import struct
import sys
import time

NO_KERNEL = 87
"""Exit code of a kernel process that found no ipykernel it can import."""

END_PATIENCE = 3.0
"""Seconds between SIGINT, SIGTERM and SIGKILL for a command that nobody waits for any more."""

FIRST_CONTACT = 60.0
"""Seconds to wait for the host's first connection."""

BOUND_CHECK = 0.003
"""Seconds between two looks at the kernel's sockets while it starts."""

CODE = globals().get("CODE")
"""The compiled code that start.py has, None where this script is run without it."""

OTHER_PYTHONS = ("python", "python3", "/opt/conda/bin/python", "/usr/local/bin/python3", "python2")

PYTHON_KERNELS = ("python", "python3")
"""Names of kernels that every image with a Python has, whether a kernelspec of that name is in it or not."""

JUPYTER_FOLDERS = ("/usr/local/share/jupyter", "/usr/share/jupyter", "/opt/conda/share/jupyter")

RECORDED = 16 * 1024 * 1024
"""Bytes of output that are recorded while no notebook is attached; the oldest make room for the newest."""

TAIL = 1.0
"""Seconds of output that are held while one is: what is on its way to a notebook when that is killed is lost there."""

UNRECORDED = ("status", "execute_input", "iopub_welcome", "shutdown_reply")

LONGEST_LINE = 1024 * 1024
"""Bytes of a line on the control channel."""

MOST_CONNECTIONS = 200
"""Connections at a time; select can do with 1024."""

LATER_IMPORTS = (
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "faulthandler",
    "sqlite3",
    "tornado.platform.asyncio",
)
"""What ipykernel of one version or another imports while it starts, when its own modules are there."""

AHEAD = """
    contextlib platform importlib warnings typing threading _weakrefset weakref pickle
    _compat_pickle random bisect importlib/_abc ast pathlib fnmatch urllib urllib/parse
    ipaddress inspect dis opcode linecache tokenize token numbers copy logging traceback
    textwrap pprint dataclasses logging/config logging/handlers queue heapq argparse gettext
    getopt codeop datetime shlex glob subprocess locale asyncio asyncio/base_events concurrent
    concurrent/futures concurrent/futures/_base ssl base64 asyncio/constants asyncio/coroutines
    asyncio/events contextvars asyncio/format_helpers asyncio/base_futures asyncio/exceptions
    asyncio/base_tasks asyncio/futures asyncio/protocols asyncio/sslproto asyncio/transports
    asyncio/log asyncio/staggered asyncio/locks asyncio/mixins asyncio/tasks asyncio/trsock
    asyncio/runners asyncio/queues asyncio/streams asyncio/subprocess asyncio/taskgroups
    asyncio/timeouts asyncio/threads asyncio/unix_events asyncio/base_subprocess
    asyncio/selector_events hashlib hmac html html/entities curses calendar decimal zoneinfo
    zoneinfo/_tzpath sysconfig zoneinfo/_common importlib/resources importlib/resources/_common
    tempfile shutil bz2 _compression lzma importlib/resources/abc importlib/resources/_adapters
    importlib/resources/_legacy ctypes ctypes/_endian _strptime getpass uuid importlib/metadata
    csv email zipfile importlib/metadata/_adapters email/message quopri email/utils
    email/_parseaddr email/charset email/base64mime email/quoprimime email/errors email/encoders
    email/_policybase email/header email/_encoded_words email/iterators importlib/metadata/_text
    importlib/metadata/_functools importlib/metadata/_meta importlib/metadata/_collections
    importlib/metadata/_itertools importlib/abc pdb cmd bdb code encodings/ascii encodings/idna
    stringprep encodings/latin_1 sqlite3 sqlite3/dbapi2 email/parser email/feedparser pty tty
    runpy ntpath concurrent/futures/process multiprocessing multiprocessing/context
    multiprocessing/process multiprocessing/reduction multiprocessing/connection
    multiprocessing/util concurrent/futures/thread asyncio/compat ctypes/util configparser imp
    urllib/request uu urllib/error urllib/response timeit cProfile profile optparse pstats
    distutils distutils/version
""".split()
"""What kernels import of Python's own after what we need, in about this order, in one version or another."""

STALLED = 30.0
"""Seconds that the kernel of a kept environment waits for a notebook that does not read its output."""


def now():
    """Return the seconds of a clock that nobody sets: a jump of the time of day must not end a lease."""
    # Python 2.7 has no time.monotonic; the last of os.times() counts from the machine's start, and no clock sets it.
    return time.monotonic() if hasattr(time, "monotonic") else os.times()[4]


def read_json(path):
    with io.open(path, encoding="utf-8") as file:  # whatever the image's locale is
        return json.load(file)


def find_program(name):
    """Return the path of a program, None where there is none (shutil.which is not in 2.7)."""
    folders = [""] if "/" in name else os.environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def oom_kills():
    """Return how often this container's memory limit has ended a process, 0 where unknown."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            with open(path) as file:
                for line in file:
                    word, _, count = line.partition(" ")
                    if word == "oom_kill":
                        return int(count)
        except (IOError, OSError, ValueError):
            continue
    return 0


def through_signals(call, *arguments):
    """Call again where a signal has come between, which Python 2.7 leaves to us."""
    while True:
        try:
            return call(*arguments)
        except (OSError, select.error) as error:
            if error.args[0] != errno.EINTR:
                raise


def collect(pid):
    """Wait for the end of a child that was killed."""
    try:
        through_signals(os.waitpid, pid, 0)
    except OSError:  # it is collected
        pass


def listening_ports():
    """Return the TCP ports that something in this container listens on."""
    ports = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path) as file:
                rows = file.readlines()[1:]
        except (IOError, OSError):
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == "0A":
                ports.add(int(columns[1].rpartition(":")[2], 16))
    return ports


def prefix():
    """Return `sys.prefix`, which in a virtual environment only `site` knows, and that has not run here."""
    found = os.path.dirname(os.path.dirname(sys.executable))
    return found if os.path.isfile(os.path.join(found, "pyvenv.cfg")) else sys.prefix


def kernelspecs(interpreters):
    """Return {name: kernel.json} of the kernels that Jupyter would find in this image, in its order."""
    home = os.path.join(os.path.expanduser("~"), ".local/share/jupyter")
    folders = os.environ.get("JUPYTER_PATH", "").split(os.pathsep)
    folders.append(os.environ.get("JUPYTER_DATA_DIR") or home)
    prefixes = [os.path.dirname(os.path.dirname(path)) for path in interpreters]
    folders += [os.path.join(prefix, "share/jupyter") for prefix in prefixes]
    found = {}
    for folder in filter(None, folders + list(JUPYTER_FOLDERS)):
        try:
            names = sorted(os.listdir(os.path.join(folder, "kernels")))
        except OSError:
            continue
        for name in names:
            resources = os.path.join(folder, "kernels", name)
            try:
                spec = read_json(os.path.join(resources, "kernel.json"))
            except (IOError, OSError, ValueError):
                continue
            if isinstance(spec, dict) and spec.get("argv"):
                spec["resource_dir"] = resources
                found.setdefault(name.lower(), spec)
    return found


def languages(specs):
    """Return {name: language} of kernelspecs."""
    return {name: specs[name].get("language") or "" for name in specs}


def mount_points():
    """Return the paths at which something is mounted."""
    try:
        with io.open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            found = [line.split(" ")[4] for line in file]
    except (IOError, OSError):
        return set()
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        found = [path.replace("\\" + code, character) for path in found]
    return set(found)


def take_over(home, uid, gid):
    """Give the home of an image that another user's container became to this one; mounts are left alone."""
    mounted = mount_points()
    if os.lstat(home).st_uid == uid or home in mounted:
        return
    try:
        os.chown(home, uid, gid)
    except OSError:  # a read-only image
        return
    for folder, folders, files in os.walk(home):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in mounted]
        for name in folders + files:
            path = os.path.join(folder, name)
            if path not in mounted:
                try:
                    os.lchown(path, uid, gid)
                except OSError:
                    pass


def become(user):
    """Go from root to the user who owns the notebook, who gets a name and a home where the image has none.

    Done here and not by the engine, which could not give an unknown uid a home it may write to.
    """
    import pwd

    uid, gid = user["uid"], user["gid"]
    try:
        known = pwd.getpwuid(uid)
        name, home = known.pw_name, known.pw_dir
    except KeyError:
        name, home = user["name"], user["home"]
        try:
            with open("/etc/passwd", "a") as file:
                file.write("%s:x:%d:%d::%s:/bin/sh\n" % (name, uid, gid, home))
        except (IOError, OSError):  # a read-only image: only the name is missing then
            pass
    if not os.path.isdir(home):
        try:
            os.makedirs(home)
            os.chown(home, uid, gid)
        except OSError:
            home = "/tmp"
    elif home == user["home"]:
        take_over(home, uid, gid)
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)
    for variable, value in (("HOME", home), ("USER", name), ("LOGNAME", name)):
        if variable not in user["given"]:
            os.environ[variable] = value


def would_block(error):
    """Tell whether a socket without blocking is only not ready."""
    return error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.EINPROGRESS)


class Subscriber(object):
    """Reads what a kernel publishes, as a ZeroMQ SUB socket would: ZMTP 3.0, https://rfc.zeromq.org/spec/23/."""

    GREETING = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
    READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 3) + b"SUB"
    MORE, LONG, COMMAND = 1, 2, 4

    def __init__(self, address):
        """Begin to connect; `address` is a path, or an IP and a port."""
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        Supervisor.set_fd(self.socket.fileno())
        code = self.socket.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(code, "cannot connect to the kernel")
        self.unsent = self.GREETING
        self.received = bytearray()
        self.is_greeted = False
        self.skip = 0  # bytes of a frame that is too large, still to come
        self.parts, self.size = [], 0

    def send(self):
        """Send what is to be said; called when the socket takes something."""
        self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def receive(self):
        """Return the messages that are complete by now: lists of frames, None for one that is too large.

        Raises EOFError when the kernel is gone, ValueError when it speaks something else.
        """
        try:
            data = self.socket.recv(262144)
        except (OSError, socket.error) as error:
            if would_block(error):
                return []
            raise EOFError
        if not data:
            raise EOFError
        if self.skip:
            skipped = min(self.skip, len(data))
            self.skip -= skipped
            data = data[skipped:]
        self.received += data
        if not self.is_greeted:
            if len(self.received) < len(self.GREETING):
                return []
            if self.received[0] != 0xFF or self.received[10] < 3:
                raise ValueError("not ZMTP 3")
            del self.received[: len(self.GREETING)]
            self.is_greeted = True
            # Not before: libzmq closes a connection where this comes in one piece with the greeting.
            command = struct.pack("BB", self.COMMAND, len(self.READY)) + self.READY
            subscribe_to_all = b"\0\x01\x01"
            self.unsent += command + subscribe_to_all
        return self._messages()

    def _messages(self):
        messages, place, received = [], 0, self.received
        while len(received) - place >= 2:
            flags, head = received[place], 2
            size = received[place + 1]
            if flags & self.LONG:
                head = 9
                if len(received) - place < head:
                    break
                (size,) = struct.unpack(">Q", bytes(received[place + 1 : place + 9]))
            is_message = not flags & self.COMMAND
            is_too_large = self.size + size > RECORDED
            if is_too_large and not is_message:
                raise ValueError("a command of %d bytes" % size)
            here = len(received) - place - head
            if is_too_large:
                self.skip = max(0, size - here)
                size = min(size, here)
            elif here < size:
                break
            if is_message:
                body = received[place + head : place + head + size]
                self._add(None if is_too_large else bytes(body))
                if not flags & self.MORE:
                    messages.append(self.parts)
                    self.parts, self.size = [], 0
            place += head + size
        del received[:place]
        return messages

    def _add(self, frame):
        if frame is None or self.parts is None:
            self.parts = None
            return
        self.parts.append(frame)
        self.size += len(frame) + 64  # no message is so many frames that these are too much

    def close(self):
        self.socket.close()


class Recorder(object):
    """What a kernel has published, as far as nobody has taken it; and whether a cell runs."""

    def __init__(self):
        self.subscriber = None
        self.messages = collections.deque()  # (when, as bytes to send)
        self.size = 0
        self.dropped = 0
        self.running = None  # the id of the cell
        self.retry_at = 0.0

    def open(self, connection):
        """Listen to the kernel of this connection."""
        self.close()
        self.retry_at = now() + 1.0
        if connection["transport"] == "ipc":
            address = "%s-%d" % (connection["ip"], connection["iopub_port"])
        else:
            address = ("127.0.0.1", connection["iopub_port"])
        try:
            self.subscriber = Subscriber(address)
        except (OSError, socket.error):
            pass

    def close(self):
        if self.subscriber is not None:
            self.subscriber.close()
            self.subscriber = None

    def receive(self, only_tail):
        """Take in what has arrived; without `only_tail` it is held until it is taken."""
        try:
            for parts in self.subscriber.receive():
                if parts is None:
                    self.dropped += not only_tail
                else:
                    self._take_in(parts)
        except (EOFError, ValueError, OSError, socket.error):
            self.close()
        self.trim(only_tail)

    def trim(self, only_tail):
        """Drop what has no room, or is none of anybody's business any more."""
        oldest = now() - TAIL
        while self.messages and (
            self.size > RECORDED or (only_tail and self.messages[0][0] < oldest)
        ):
            self.size -= len(self.messages.popleft()[1])
            self.dropped += not only_tail

    def clear(self):
        self.messages.clear()
        self.size = self.dropped = 0

    def pop(self):
        _, data = self.messages.popleft()
        self.size -= len(data)
        return data

    def _take_in(self, parts):
        try:
            frames = parts[parts.index(b"<IDS|MSG>") + 2 :]
            kind = json.loads(frames[0].decode("utf-8", "replace"))["msg_type"]
            if kind == "status":
                self._note_status(frames)
            if kind in UNRECORDED or len(frames) > 1000:
                return
            sizes = [len(frame) for frame in frames]
        except Exception:  # whatever a kernel says: it must not be our end
            return
        data = json.dumps({"frames": sizes}).encode("ascii") + b"\n" + b"".join(frames)
        self.messages.append((now(), data))
        self.size += len(data)

    def _note_status(self, frames):
        parent = json.loads(frames[1].decode("utf-8", "replace"))
        if parent.get("msg_type") != "execute_request":
            return
        state = json.loads(frames[3].decode("utf-8", "replace"))["execution_state"]
        if state == "busy":
            self.running = parent["msg_id"]
        elif state == "idle" and parent["msg_id"] == self.running:
            self.running = None


class Supervisor(object):
    """Starts kernels one after the other, reports on them, obeys the control channel."""

    def __init__(self, config_path):
        self.config_path = config_path
        self.config = read_json(config_path)
        self.connections = {}  # socket -> bytes received and not yet handled
        self.trusted = set()  # sockets that have sent the key
        self.state = {
            "generation": 0,
            "phase": "starting",
            "report": {},
            "exit": None,
            "kept": bool(self.config.get("keep")),
            "attached": 0,
        }
        self.kernel_pid = None
        self.report_fd = None
        self.report_bytes = b""
        self.attempts = []
        self.specs = {}
        self.kept = bool(self.config.get("keep"))
        self.attached = set()  # sockets of notebooks that read what the kernel publishes
        self.takers = {}  # socket -> what it is still to get
        self.taker = None  # the one of them that gets the output
        self.told = {}  # socket -> what it was last told of the cell that runs
        self.recorder = Recorder()
        self.deadline = now() + FIRST_CONTACT
        self.oom_before = 0
        self.env = {}
        self.cwd = None
        self.wake_read, self.wake_write = os.pipe()
        for fd in (self.wake_read, self.wake_write):
            self.set_fd(fd)
        self.stopping = False
        self.ahead_pid = None  # 0 where it has ended by itself
        self.begun = None  # what was compiled for us in a first start, as the kernel's is left
        self.lacked_bundle = (
            False  # the first kernel did, so the second is the first that runs anything
        )

    @staticmethod
    def set_fd(fd):
        import fcntl

        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)

    def listen(self):
        control = self.config["control"]
        if isinstance(control, int):
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((self.config.get("control_ip", "0.0.0.0"), control))
        else:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind(control)
            # The folder is closed to other users; the user in here may not be the one outside.
            os.chmod(control, 0o666)
        server.listen(8)
        server.setblocking(False)
        self.set_fd(server.fileno())
        return server

    def run(self):
        if self.config.get("user") and os.getuid() == 0:
            become(self.config["user"])
        # Written to by the C handler itself: a signal that comes just before select sleeps would
        # otherwise have to wait, with its Python handler, for the next event.
        signal.set_wakeup_fd(self.wake_write)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, self._on_sigint)
        server = self.listen()
        self.start_kernel()
        while not self.stopping:
            is_left = not self.trusted and not self.kept and now() > self.deadline
            readable = [server, self.wake_read] + list(self.connections)
            if self.report_fd is not None:
                readable.append(self.report_fd)
            subscriber = self._listen_to_kernel()
            if subscriber is not None:
                readable.append(subscriber.socket)
            try:
                ready, writable, _ = select.select(
                    readable, self._to_be_written(subscriber), [], self._patience()
                )
            except (OSError, select.error) as error:
                if error.args[0] == errno.EINTR:
                    continue
                raise
            # We may have been late, and somebody stands before the door.
            if is_left and not ready:
                break
            for item in ready:
                if item is server:
                    self._accept(server)
                elif item == self.wake_read:
                    self._drain_wake()
                elif item == self.report_fd:
                    self._read_report()
                elif subscriber is not None and item is subscriber.socket:
                    # In this round somebody may have said to keep nothing.
                    if subscriber is self.recorder.subscriber:
                        self.recorder.receive(self._is_being_read())
                elif item in self.connections:
                    self._receive(item)
            for item in writable:
                self._write(item)
            self._reap()
            self._check_bound()
        self._end_kernel()
        self._empty_folder()

    def _empty_folder(self):
        """Leave nothing in the runtime folder: nobody may be left outside who would do it."""
        folder = os.path.dirname(os.path.abspath(self.config_path))
        for name in os.listdir(folder):
            try:
                os.remove(os.path.join(folder, name))
            except OSError:
                pass

    def _patience(self):
        """Return how long select may sleep, None for ever."""
        if self.state["phase"] == "starting":
            return BOUND_CHECK
        if not self.trusted and not self.kept:
            return max(0.0, self.deadline - now()) + 0.01
        if self.kept and self.recorder.subscriber is None and self.state["phase"] == "bound":
            return 1.0
        return None

    # --- what the kernel of a kept environment publishes ---------------------------------------

    def _listen_to_kernel(self):
        """Return what reads the kernel's output, where it is to be read."""
        recorder = self.recorder
        is_bound = self.state["phase"] == "bound"
        if self.kept and is_bound and recorder.subscriber is None and now() >= recorder.retry_at:
            recorder.open(self.config["connection"])
        return recorder.subscriber

    def _is_being_read(self):
        """Tell whether a notebook gets the kernel's output, and nobody else is to get it from us."""
        return bool(self.attached) and self.taker is None

    def _to_be_written(self, subscriber):
        """Return the sockets that something is to be written to."""
        if subscriber is not None and subscriber.unsent:
            found = [subscriber.socket]
        else:
            found = []
        for connection in self.takers:
            if not self.takers[connection]:
                self.takers[connection] = self._next_for(connection)
            if self.takers[connection]:
                found.append(connection)
        return found

    def _next_for(self, connection):
        takes = connection is self.taker
        if takes and self.recorder.messages:
            return self.recorder.pop()
        told = {
            "busy": self.recorder.running is not None,
            "dropped": self.recorder.dropped if takes else 0,
            "takes": takes,
        }
        if self.told.get(connection) == told:
            return b""
        self.told[connection] = told
        return json.dumps(told).encode("ascii") + b"\n"

    def _write(self, item):
        subscriber = self.recorder.subscriber
        try:
            if subscriber is not None and item is subscriber.socket:
                subscriber.send()
            elif self.takers.get(item):
                sent = item.send(self.takers[item][:65536])
                self.takers[item] = self.takers[item][sent:]
        except (OSError, socket.error) as error:
            if would_block(error):
                return
            if item in self.takers:
                self._drop(item)
            else:
                self.recorder.close()

    def _attach(self, connection):
        self.attached.add(connection)
        self._count_attached()

    def _detach(self, connection):
        """Note that a notebook leaves, and has got all output but that of a cell that still runs."""
        self.recorder.trim(self._is_being_read())
        self.attached.discard(connection)
        if not self.attached and self.taker is None and self.recorder.running is None:
            self.recorder.clear()
        self._count_attached()

    def _count_attached(self):
        self.state["attached"] = len(self.attached)
        self.tell()

    def _keep(self, keep):
        self.kept = keep
        self.state["kept"] = keep
        if not keep:
            self.recorder.close()
            self.recorder.clear()
            self.recorder.running = None
        self.tell()

    # --- signals ------------------------------------------------------------------------------

    def _on_sigterm(self, signum, frame):
        self.stopping = True

    def _on_sigint(self, signum, frame):
        self.signal_kernel(signal.SIGINT)

    def _drain_wake(self):
        try:
            os.read(self.wake_read, 4096)
        except OSError:
            pass

    # --- the kernel process -------------------------------------------------------------------

    def start_kernel(self):
        """Start the next kernel: the remembered way first, then every way there is."""
        self.state["generation"] += 1
        if self.state["generation"] > 1:
            print("dockml: another kernel starts", file=sys.stderr)
            sys.stderr.flush()
        config = self.config
        first = config.get("interpreter") or sys.executable
        wanted = (config.get("kernelspec") or "").lower()
        interpreters = self._interpreters(first)
        self.specs = kernelspecs(interpreters)
        if wanted in self.specs:
            self.attempts = [(wanted, "spec")]
        elif wanted and wanted not in PYTHON_KERNELS:
            self.attempts = []
        elif config.get("kernel"):
            self.attempts = [(first, config["kernel"])]
        else:
            self.attempts = [(path, "image") for path in interpreters]
            self.attempts += [(path, "bundle") for path in interpreters]
        self.first_report = None
        is_python = bool(self.attempts) and self.attempts[0][1] != "spec"
        is_first = self.begun and is_python and config.get("records")
        if is_first:
            write_beside("begun", self.begun)
        self.begun = None
        if self.attempts:
            self._attempt()
            if is_first:
                self._compile_ahead()
        elif interpreters:
            self._fail({"problem": "no kernelspec '%s' in the image" % wanted})
        else:  # ours is in a folder that only root may enter, such as /root/miniconda3
            problem = "user %d may run no Python here, not even %s" % (os.getuid(), first)
            self._fail({"problem": problem})

    def _compile_ahead(self):
        """Have a process compile for the kernel, which imports meanwhile; if it has a processor of its own."""
        if os.sysconf("SC_NPROCESSORS_ONLN") < 2:
            return
        try:
            self.ahead_pid = os.fork()
        except OSError:  # a limit of processes
            return
        if self.ahead_pid == 0:
            try:
                os.setsid()
                # Where memory is short, it is the one that can be done without.
                with open("/proc/self/oom_score_adj", "w") as file:
                    file.write("1000")
                for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                    signal.signal(signum, signal.SIG_DFL)
                CODE.compile_ahead(beside("")[:-1], os.path.dirname(os.__file__), AHEAD)
            finally:
                os._exit(0)

    def _end_ahead(self):
        """End that, and remove what it has left: the kernel has imported all."""
        if self.ahead_pid is None:
            return
        if self.ahead_pid:  # it has not ended
            os.kill(self.ahead_pid, signal.SIGKILL)
            collect(self.ahead_pid)
        self.ahead_pid = None
        for name in os.listdir(beside("")):
            if name.startswith("ahead-"):
                remove_beside(name)

    def _fail(self, report):
        report = dict(report, kernelspecs=languages(self.specs))
        self.state.update(phase="failed", report=report, exit=None)
        self.tell()

    @staticmethod
    def _interpreters(first):
        found, seen = [], set()
        for name in (first,) + OTHER_PYTHONS:
            path = find_program(name)
            if path and os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                found.append(path)
        return found

    def _attempt(self):
        interpreter, mode = self.attempts.pop(0)
        self._remove_sockets()
        self.oom_before = oom_kills()
        read_fd, write_fd = os.pipe()
        self.set_fd(read_fd)
        env = dict(os.environ)
        env.update(self.env)
        try:
            pid = os.fork()
        except OSError as error:  # a limit of processes
            os.close(read_fd)
            os.close(write_fd)
            self._fail({"problem": "a process for it cannot be started: %s" % error.strerror})
            return
        if pid == 0:
            try:
                os.setsid()
                for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                    signal.signal(signum, signal.SIG_DFL)
                os.close(read_fd)
                if hasattr(os, "set_inheritable"):
                    os.set_inheritable(write_fd, True)
                if self.cwd and os.path.isdir(self.cwd):
                    os.chdir(self.cwd)
                try:
                    os.getcwd()
                except OSError:  # the workspace was removed outside; a Python does not start there
                    os.chdir("/")
                if mode == "spec":
                    self._become_spec(interpreter, env, write_fd)
                command = [
                    interpreter,
                    beside("start.py"),
                    "kernel",
                    self.config_path,
                    str(write_fd),
                    mode,
                ]
                if mode == "image" and self._may_be_bundle(interpreter):
                    command[-1] = "any"
                if (
                    self.config.get("records")
                    and self.state["generation"] <= 1 + self.lacked_bundle
                ):
                    command.append("record")
                os.execve(interpreter, command, env)
            except Exception as error:
                print("dockml: cannot start %s: %s" % (interpreter, error), file=sys.stderr)
            finally:
                os._exit(126)
        os.close(write_fd)
        self.kernel_pid = pid
        self.report_fd, self.report_bytes = read_fd, b""
        self.state.update(phase="starting", report={}, exit=None)
        self.tell()

    def _may_be_bundle(self, interpreter):
        """Tell whether the bundle is what comes next, so that a kernel without an ipykernel may take it at once."""
        return self.attempts == [(interpreter, "bundle")] and not self._only_other_kernel()

    def _become_spec(self, name, env, report_fd):
        """Say which kernelspec it is, and become its program, as jupyter_client would start it."""
        spec = self.specs[name]
        report = {
            "kernel": "spec",
            "kernelspec": name,
            "language": spec.get("language") or "",
            "interrupt_mode": spec.get("interrupt_mode") or "signal",
            "executable": spec["argv"][0],
        }
        os.write(report_fd, json.dumps(report).encode("utf-8"))
        os.close(report_fd)
        for variable, value in (spec.get("env") or {}).items():
            env[variable] = string.Template(value).safe_substitute(env)
        known = {
            "{connection_file}": self.config["connection_file"],
            "{resource_dir}": spec["resource_dir"],
            "{prefix}": prefix(),
        }
        argv = []
        for word in spec["argv"]:
            for field in known:
                word = word.replace(field, known[field])
            argv.append(word)
        os.execvpe(argv[0], argv, env)

    def _remove_sockets(self):
        for path in self._socket_paths():
            try:
                os.remove(path)
            except OSError:
                pass

    def _socket_paths(self):
        connection = self.config["connection"]
        if connection["transport"] != "ipc":
            return []
        names = ("shell", "iopub", "stdin", "control", "hb")
        return ["%s-%d" % (connection["ip"], connection[name + "_port"]) for name in names]

    def _read_report(self):
        try:
            chunk = os.read(self.report_fd, 65536)
        except OSError:
            return
        if chunk:
            self.report_bytes += chunk
            return
        os.close(self.report_fd)
        self.report_fd = None
        self._end_ahead()
        if self.report_bytes:
            self.state["report"] = json.loads(self.report_bytes.decode("utf-8"))
        if self.state["report"].get("compiled"):
            self.tell()  # to be fetched while the kernel goes on

    def _check_bound(self):
        if self.state["phase"] != "starting" or self.report_fd is not None:
            return
        connection = self.config["connection"]
        if connection["transport"] == "ipc":
            paths = self._socket_paths()
            if not all(os.path.exists(path) for path in paths):
                return
            for path in paths:
                try:
                    os.chmod(path, 0o666)
                except OSError:
                    pass
        else:
            names = ("shell", "iopub", "stdin", "control", "hb")
            if not listening_ports().issuperset(connection[name + "_port"] for name in names):
                return
        self.state["phase"] = "bound"
        self.tell()

    def _reap(self):
        """Collect every child that ended: ours, and orphans, as the container's first process must."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except OSError:
                return
            if pid == 0:
                return
            if pid == self.kernel_pid:
                self._kernel_ended(status)
            elif pid == self.ahead_pid:
                self.ahead_pid = 0

    def _kernel_ended(self, status):
        self.kernel_pid = None
        self.recorder.running, self.recorder.retry_at = None, 0.0
        while self.report_fd is not None:
            if not through_signals(select.select, [self.report_fd], [], [], 0)[0]:
                os.close(self.report_fd)
                self.report_fd = None
                break
            self._read_report()
        if self.stopping:  # that is no death to be told: the container ends
            return
        if os.WIFSIGNALED(status):
            code = 128 + os.WTERMSIG(status)
        else:
            code = os.WEXITSTATUS(status)
        never_ran = code == NO_KERNEL or (code == 126 and not self.state["report"])
        if self.state["phase"] == "starting" and never_ran:
            self.first_report = self.first_report or self.state["report"]
            if not self.attempts:
                self._fail(self.state["report"] or self.first_report)
            elif self.attempts[0][1] != "bundle":
                self._attempt()
            elif self._only_other_kernel():
                report = {"kernelspecs": self._only_other_kernel()}
                self.state.update(phase="other_kernel", report=report)
                self.tell()
            elif self._lacks_bundle():
                report = dict(self.first_report, kernelspecs=languages(self.specs))
                self.state.update(phase="need_bundle", report=report)
                self.lacked_bundle = True
                self.tell()
            else:
                self._attempt()
            return
        # Never to wait for: nobody may read what we write.
        if through_signals(select.select, [], [sys.stderr.fileno()], [], 0)[1]:
            print("dockml: the kernel has ended", file=sys.stderr)
            sys.stderr.flush()
        self.state["exit"] = {"code": code, "out_of_memory": oom_kills() > self.oom_before}
        self.state["phase"] = "exited"
        self.tell()

    def _only_other_kernel(self):
        """Return {name: language} of the image's one kernel of another language; empty without, or with several.

        An image with a kernel of its own that is not Python's is there for that language.
        """
        found = languages(self.specs)
        others = {name: found[name] for name in found if found[name].lower() != "python"}
        return others if len(others) == 1 and not self.config.get("kernelspec") else {}

    def _lacks_bundle(self):
        """Tell whether the bundle for the first interpreter that runs is not mounted yet."""
        index = bundle_index(self.config, self.first_report or {})
        return bool(index) and not os.path.isfile(index)

    def signal_kernel(self, signum):
        """Signal the kernel and what it started."""
        if self.kernel_pid is None:
            return
        if signum == signal.SIGINT:
            self.signal_kernel(signal.SIGCONT)  # a stopped process would not hear it
        try:
            os.killpg(self.kernel_pid, signum)
        except OSError:
            try:  # it has not made its process group yet
                os.kill(self.kernel_pid, signum)
            except OSError:
                pass

    def _end_kernel(self):
        self.signal_kernel(signal.SIGTERM)
        deadline = now() + 0.5
        while self.kernel_pid is not None and now() < deadline:
            time.sleep(0.01)
            self._reap()
        self.signal_kernel(signal.SIGKILL)

    # --- the control channel ------------------------------------------------------------------

    def _accept(self, server):
        try:
            connection, _ = server.accept()
        except (OSError, socket.error):
            return
        if len(self.connections) >= MOST_CONNECTIONS:
            strangers = [c for c in self.connections if c not in self.trusted]
            self._drop((strangers or [connection])[0])
            if not strangers:
                return
        connection.setblocking(False)
        self.set_fd(connection.fileno())
        self.connections[connection] = b""

    def _receive(self, connection):
        try:
            data = connection.recv(65536)
        except (OSError, socket.error) as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR):
                return
            data = b""
        if not data:
            self._drop(connection)
            return
        lines = (self.connections[connection] + data).split(b"\n")
        self.connections[connection] = lines.pop()
        if len(self.connections[connection]) > LONGEST_LINE:
            self._drop(connection)
            return
        for line in lines:
            try:
                message = json.loads(line.decode("utf-8"))
                self._obey(connection, message)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                self._drop(connection)
                return

    def _drop(self, connection):
        was_trusted = connection in self.trusted
        self.connections.pop(connection, None)
        self.trusted.discard(connection)
        self.takers.pop(connection, None)
        self.told.pop(connection, None)
        if connection is self.taker:
            self.taker = None
            self.recorder.dropped = 0
            self.recorder.trim(self._is_being_read())
        connection.close()
        if connection in self.attached:
            self.recorder.trim(self._is_being_read())
            self.attached.discard(connection)
            self._count_attached()
        if was_trusted and not self.trusted:
            self.deadline = now() + self.config["grace"]

    def _obey(self, connection, message):
        if connection in self.takers:
            return
        if connection not in self.trusted:
            if message.get("key") != self.config["key"]:
                self._drop(connection)
                return
            if message.get("op") == "take":
                self.takers[connection] = b""
                if self.taker is None and not self.attached:
                    self.taker = connection
                return
            self.trusted.add(connection)
            self._send(connection)
            return
        op = message["op"]
        if op == "signal":
            self.signal_kernel(int(message["signum"]))
        elif op == "start":
            try:
                self.config = read_json(self.config_path)
            except (IOError, OSError):  # somebody has wiped our folder: it is as it was
                pass
            self.env = message.get("env") or self.env
            self.cwd = message.get("cwd") or self.cwd
            if self.kernel_pid is None:
                self.start_kernel()
        elif op == "keep":
            self._keep(bool(message["keep"]))
        elif op == "attach":
            self._attach(connection)
        elif op == "detach":
            self._detach(connection)
        elif op == "say":
            self._send(connection)
        elif op == "stop":
            self.stopping = True

    def tell(self):
        for connection in list(self.trusted):
            self._send(connection)

    def _send(self, connection):
        try:
            connection.sendall(json.dumps(self.state).encode("utf-8") + b"\n")
        except (OSError, socket.error) as error:
            # Of one that has gone there may be a last word to read, and then its end.
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                self._drop(connection)


# --- the kernel ---------------------------------------------------------------------------------


def libc_name():
    """Return this interpreter's C library as wheels name it: ("glibc", "2.31") or ("musl", "")."""
    try:
        # 2 is _CS_GNU_LIBC_VERSION in glibc's confstr.h; Python 2.7 does not know it by name.
        name, _, version = (os.confstr(2) or "").partition(" ")
        return (name, version) if name == "glibc" else ("musl", "")
    except (AttributeError, ValueError, OSError):
        return "musl", ""


def facts():
    """Return what decides which bundle fits."""
    libc, libc_version = libc_name()
    return {
        "python": "%d.%d.%d" % sys.version_info[:3],
        "executable": sys.executable,
        "machine": os.uname()[4],
        "libc": libc,
        "libc_version": libc_version,
        "wide_unicode": sys.maxunicode > 0xFFFF,
    }


def bundle_index(config, report):
    """Return the path of the bundle's list of distributions, for an interpreter with these facts."""
    if not report.get("python"):
        return ""
    name = "cp%s-%s%s-%s" % (
        "".join(report["python"].split(".")[:2]),
        report["libc"],
        report["libc_version"],
        report["machine"],
    )
    return os.path.join(config["bundles"], name, "bundle.json")


def version_tuple(text):
    """Return the leading numbers of a version: enough to tell whether it is too old."""
    numbers = []
    for part in text.split("."):
        digits = ""
        for char in part:
            if not char.isdigit():
                break
            digits += char
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def installed_distributions():
    """Return {normalised name: version} of what this image has, from the names of its metadata."""
    found = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension in (".dist-info", ".egg-info", ".egg"):
                parts = stem.split("-")
                if len(parts) > 1:
                    found.setdefault(parts[0].lower().replace("-", "_").replace(".", "_"), parts[1])
    return found


def has_module(name):
    """Tell whether the image has a module, without importing it."""
    try:
        from importlib.util import find_spec
    except ImportError:  # Python 2.7
        import imp

        try:
            imp.find_module(name)
            return True
        except ImportError:
            return False
    return find_spec(name) is not None


def add_bundle(config):
    """Put on sys.path what the image lacks (at the end) or has too old (in front)."""
    index = bundle_index(config, facts())
    if not os.path.isfile(index):
        raise ImportError("no kernel bundle for this Python")
    installed = installed_distributions()
    too_old, missing = [], []
    for entry in read_json(index)["distributions"]:
        folder = str(os.path.join(os.path.dirname(index), entry["folder"]))  # 2.7 wants no unicode
        version = installed.get(entry["name"])
        if version is None or entry["name"] == "ipykernel":
            missing.append(folder)
        elif version_tuple(version) < version_tuple(entry["at_least"]):
            too_old.append(folder)
    if "ipykernel" in installed:  # the image's own is broken, or it would have been used
        too_old.extend(folder for folder in missing if os.path.basename(folder) == "ipykernel")
    sys.path[:0] = too_old
    sys.path.extend(folder for folder in missing if folder not in too_old)
    for name in [name for name in sys.modules if name.split(".")[0] == "ipykernel"]:
        del sys.modules[name]


def prepare_home():
    """Give a user without rights in the image a place for `pip install`, on sys.path from now on."""
    import site

    home = os.environ.get("HOME")
    if not home or os.getuid() == 0 or hasattr(sys, "real_prefix"):
        return
    if getattr(sys, "base_prefix", sys.prefix) != sys.prefix or not site.ENABLE_USER_SITE:
        return
    try:
        from sysconfig import get_paths

        if os.access(get_paths()["purelib"], os.W_OK):
            return
        folder = site.getusersitepackages()
        if not os.path.isdir(folder):
            os.makedirs(folder)
    except (OSError, KeyError):
        return
    site.addsitedir(folder)
    os.environ.setdefault("PIP_USER", "1")
    scripts = os.path.join(site.getuserbase(), "bin")
    os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", os.defpath)


def log_crashes():
    """Have Python write to the container's log where it crashed.

    What C code writes to descriptor 2 is lost then: ipykernel 6 and newer read it from a pipe.
    """
    try:
        import faulthandler
    except ImportError:  # Python 2.7
        return
    faulthandler.enable(os.fdopen(os.dup(2), "w"), all_threads=False)


def wait_not_for_ever(iopub, patience=STALLED):
    """Let a kernel that several notebooks share wait so long for one that does not read, and not longer.

    That one loses output then, until it reads again; the others go on.
    """
    import zmq

    socket, send = iopub.socket, iopub._really_send
    socket.setsockopt(zmq.SNDTIMEO, int(patience * 1000))

    def really_send(msg, *args, **kwargs):
        try:
            send(msg, *args, **kwargs)
            socket.setsockopt(zmq.SNDTIMEO, int(patience * 1000))
        except zmq.Again:
            socket.setsockopt(zmq.SNDTIMEO, 0)  # somebody waits so long once, not for every message
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            try:
                send(msg, *args, **kwargs)
            finally:
                socket.setsockopt(zmq.XPUB_NODROP, 1)

    iopub._really_send = really_send


def write_history_later(history, patience=0.1):
    """Have IPython write its history to the disk once for all cells of a moment.

    It does so for each one, in a thread that takes a fifth of an empty cell's CPU time, and has the lock that the next
    cell needs until the disk has it.
    """
    import threading

    thread, write = getattr(history, "save_thread", None), getattr(history, "writeout_cache", None)
    names = [name for name in ("_stop_now", "stop_now") if hasattr(thread, name)]
    if not names or write is None:
        return

    def write_later(*args, **kwargs):
        if threading.current_thread() is thread:
            until = now() + patience
            while now() < until and not getattr(thread, names[0]):
                time.sleep(0.02)
        write(*args, **kwargs)

    history.writeout_cache = write_later


def beside(name):
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)


def write_beside(name, content):
    """Write a file into the runtime folder, for any user; leave none, and say so, where there is no room."""
    try:
        with open(beside(name), "wb") as file:
            file.write(content)
        os.chmod(beside(name), 0o644)
        return True
    except (IOError, OSError):
        remove_beside(name)
        return False


def remove_beside(name):
    try:
        os.remove(beside(name))
    except OSError:
        pass


def put_off_imports():
    """Have what a kernel hardly ever needs imported when it does; return what is to be called after all imports."""
    if CODE is None or sys.version_info < (3, 5):
        return lambda: None
    later = {"__name__": "later"}
    eval(CODE.script(beside("later.py")), later)
    return later["put_off"](has_module)


def stop_using_code(config, report):
    """Import what will be imported while the compiled code is there; leave what was recorded, and report it."""
    for name in LATER_IMPORTS:
        try:
            __import__(name)
        except Exception:  # not in this version, or not in this image
            pass
    code = CODE.stop()
    if code is None:
        return
    import hashlib

    remove_beside("begun")
    if is_path_the_images(config) and write_beside("compiled", code):
        report["compiled"] = hashlib.sha256(code).hexdigest()


def is_path_the_images(config):
    """Tell whether Python looks for modules nowhere but in the image and in the kernel bundle."""
    mounted = [path for path in mount_points() if path not in ("/", config["bundles"])]
    for folder in sys.path:
        for path in mounted:
            if (folder + "/").startswith(path + "/") or path.startswith(folder + "/"):
                return False
    return True


def run_kernel(config_path, report_fd, mode):
    """Become ipykernel."""
    config = read_json(config_path)
    sys.path[:] = [
        entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))
    ]
    report = facts()
    prepare_home()
    log_crashes()
    try:
        if mode == "any":
            lacks = not has_module("ipykernel") and os.path.isfile(bundle_index(config, report))
            mode = "bundle" if lacks else "image"
        if mode == "bundle":
            add_bundle(config)
        import zmq

        settle = put_off_imports()
        from ipykernel import __version__
        from ipykernel.kernelapp import IPKernelApp

        if CODE is not None:
            stop_using_code(config, report)
        settle()
    except Exception as error:
        report["problem"] = "%s: %s" % (type(error).__name__, error)
        os.write(report_fd, json.dumps(report).encode("utf-8"))
        sys.exit(NO_KERNEL)
    report.update(ipykernel=__version__, kernel=mode)
    os.write(report_fd, json.dumps(report).encode("utf-8"))
    os.close(report_fd)
    # With a parent, and that is process 1, ipykernel does not fill the log with its greeting.
    own = ["-f", config["connection_file"], "--IPKernelApp.parent_handle=1"]
    sys.argv = ["ipykernel_launcher"] + own + config["extra_arguments"]
    app = IPKernelApp.instance()
    app.initialize()
    write_history_later(getattr(getattr(app, "shell", None), "history_manager", None))
    if not config.get("drops", True):
        # The one reader waits for its own reader: then this kernel has to wait too, and not drop output.
        app.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
        if config.get("shared"):
            wait_not_for_ever(app.iopub_thread)
    app.start()


def kernel_python(config_path):
    """Return the interpreter of the kernel that runs, this one where there is none."""
    for pid in os.listdir("/proc"):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as file:
                words = file.read().decode("utf-8", "replace").split("\0")
        except (IOError, OSError):
            continue
        if words[2:4] == ["kernel", config_path]:
            return words[0]
    return sys.executable


def run_command(config_path, options, command):
    """Run a command as the kernel's user would, and return its exit code.

    With the option ``lease``, standard input is not the command's: when it ends, nobody waits any more, and the
    command is ended. Without it we become the command.
    """
    given = options.get("given") or []
    user = read_json(config_path).get("user")
    if options.get("become") and user and os.getuid() == 0:
        if os.isatty(0):
            os.fchown(0, user["uid"], -1)
        become(dict(user, given=list(user["given"]) + given))
    if options.get("become") and "python" not in options:
        # What pip does by itself depends on the interpreter: let it be the kernel's.
        python = kernel_python(config_path)
        options = dict(options, python=python)
        if python != sys.executable and os.access(python, os.X_OK):
            words = [os.path.abspath(__file__), "exec", config_path, json.dumps(options)]
            os.execv(python, [python] + words + command)
    if options.get("become"):
        prepare_home()
    if options.get("shell"):
        command = [find_program("bash") or find_program("sh") or "sh"]
    if not options.get("lease"):
        become_command(command)
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        Supervisor.set_fd(fd)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        become_command(command)
    has_ended = guard_group(pid)
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    watched, patience = [0, wake_read], None
    while True:
        try:
            ready = select.select(watched, [], [], patience)[0]
        except (OSError, select.error) as error:
            if error.args[0] != errno.EINTR:
                raise
            ready = []
        if wake_read in ready:
            os.read(wake_read, 4096)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if (0 in ready and not os.read(0, 4096)) or (patience and not ready):
            watched, patience = [wake_read], END_PATIENCE
            if signals:
                kill_group(pid, signals.pop(0))
    if patience:
        kill_group(pid, signal.SIGKILL)  # what it has left
    try:
        os.write(has_ended, b".")
    except OSError:  # somebody has killed the guard
        pass
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def guard_group(group):
    """Have a process kill a group if this one is killed, which can do nothing then; return what to tell its end to."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # the command's output ends without us
            os.dup2(null, fd)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        if not os.read(read, 1):
            kill_group(group, signal.SIGKILL)
        os._exit(0)
    os.close(read)
    return write


def become_command(command):
    """Become a program, or end as a shell does that cannot find it or may not run it."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print("exec: %s: %s" % (command[0], os.strerror(error.errno)), file=sys.stderr)
        sys.stderr.flush()
        os._exit(127 if error.errno == errno.ENOENT else 126)


def kill_group(pid, signum):
    try:
        os.killpg(pid, signum)
    except OSError:
        pass


if __name__ == "__main__":
    begun = None
    if CODE is not None and sys.argv[1] != "kernel":
        begun = CODE.stop()  # all that they import is there
    if sys.argv[1] == "kernel":
        run_kernel(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1] == "exec":
        sys.exit(run_command(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:]))
    else:
        supervisor = Supervisor(sys.argv[2])
        supervisor.begun = begun
        supervisor.run()
