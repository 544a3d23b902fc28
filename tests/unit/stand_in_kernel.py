# Python 2.7 has none of the newer ways.
# ruff: noqa: PTH110, PTH109, PTH123, UP024, UP031
"""A stand-in for `ipykernel.kernelapp`: binds five sockets, notes what happens, obeys a few words.

The tests of the supervisor copy it into a package called ipykernel. It runs on Python 2.7 to the
newest. Its words come as extra arguments: ``dies`` before it binds, ``stubborn`` when asked to end,
``orphan`` leaves a grandchild to whoever takes it, ``no-iopub`` leaves that socket to somebody else.
"""

import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys

NAMES = ("shell", "iopub", "stdin", "control", "hb")


def note(**event):
    with open(os.environ["STAND_IN_EVENTS"], "a") as file:
        file.write(json.dumps(event) + "\n")


def bind(connection, names):
    sockets = []
    for name in names:
        port = connection[name + "_port"]
        if connection["transport"] == "ipc":
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind("%s-%d" % (connection["ip"], port))
        else:
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
        server.listen(1)
        sockets.append(server)
    return sockets


def leave_orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            while os.path.exists(os.environ["STAND_IN_EVENTS"] + ".wait"):
                pass
        os._exit(0)


def wait_for_signals(woken):
    """Run the handlers of the signals that come, and never return.

    `signal.pause` would sleep through one that comes just before it; a byte in a pipe stays there.
    """
    while True:
        try:
            select.select([woken], [], [])
            os.read(woken, 4096)
        except (OSError, select.error) as error:
            if error.args[0] != errno.EINTR:
                raise


class IPKernelApp:
    @classmethod
    def instance(cls):
        return cls()

    @classmethod
    def launch_instance(cls):
        app = cls.instance()
        app.initialize()
        app.start()

    def initialize(self):
        pass

    def start(self):
        import ipykernel
        import zmq

        words = sys.argv[1:]
        with open(words[words.index("-f") + 1]) as file:
            connection = json.load(file)
        if "dies" in words:
            os._exit(3)
        woken, waker = os.pipe()
        fcntl.fcntl(waker, fcntl.F_SETFL, os.O_NONBLOCK)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGINT, lambda signum, frame: note(event="interrupted"))
        signal.signal(signal.SIGUSR1, lambda signum, frame: os._exit(7))
        if "stubborn" in words:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "orphan" in words:
            leave_orphan()
        note(
            event="started",
            pid=os.getpid(),
            cwd=os.getcwd(),
            given=os.environ.get("STAND_IN_GIVEN"),
            path=sys.path,
            origin={"ipykernel": ipykernel.__file__, "zmq": zmq.__file__},
        )
        self.sockets = bind(connection, [n for n in NAMES if "no-" + n not in words])
        wait_for_signals(woken)
