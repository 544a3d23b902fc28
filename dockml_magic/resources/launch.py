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

``launch.py kernel CONFIG FD MODE`` is the kernel: it makes ipykernel importable, from the image itself
(MODE ``image``) or from the mounted bundle (``bundle``), says on FD what it found, and becomes ipykernel.
A kernel of another language is the ``argv`` of the image's own kernelspec (``spec``), started by the supervisor.
"""

from __future__ import print_function

import errno
import io
import json
import os
import select
import signal
import socket
import string
import sys
import time

NO_KERNEL = 87
"""Exit code of a kernel process that found no ipykernel it can import."""

FIRST_CONTACT = 60.0
"""Seconds to wait for the host's first connection."""

BOUND_CHECK = 0.003
"""Seconds between two looks at the kernel's sockets while it starts."""

OTHER_PYTHONS = ("python", "python3", "/opt/conda/bin/python", "/usr/local/bin/python3", "python2")

PYTHON_KERNELS = ("python", "python3")
"""Names of kernels that every image with a Python has, whether a kernelspec of that name is in it or not."""

JUPYTER_FOLDERS = ("/usr/local/share/jupyter", "/usr/share/jupyter", "/opt/conda/share/jupyter")


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
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)
    for variable, value in (("HOME", home), ("USER", name), ("LOGNAME", name)):
        if variable not in user["given"]:
            os.environ[variable] = value


class Supervisor(object):
    """Starts kernels one after the other, reports on them, obeys the control channel."""

    def __init__(self, config_path):
        self.config_path = config_path
        self.config = read_json(config_path)
        self.connections = {}  # socket -> bytes received and not yet handled
        self.trusted = set()  # sockets that have sent the key
        self.state = {"generation": 0, "phase": "starting", "report": {}, "exit": None}
        self.kernel_pid = None
        self.report_fd = None
        self.report_bytes = b""
        self.attempts = []
        self.specs = {}
        self.kept = bool(self.config.get("keep"))
        self.deadline = now() + FIRST_CONTACT
        self.oom_before = 0
        self.env = {}
        self.cwd = None
        self.wake_read, self.wake_write = os.pipe()
        for fd in (self.wake_read, self.wake_write):
            self._set_fd(fd)
        self.stopping = False

    @staticmethod
    def _set_fd(fd):
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
        self._set_fd(server.fileno())
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
            if not self.trusted and not self.kept and now() > self.deadline:
                break
            readable = [server, self.wake_read] + list(self.connections)
            if self.report_fd is not None:
                readable.append(self.report_fd)
            try:
                ready = select.select(readable, [], [], self._patience())[0]
            except (OSError, select.error) as error:
                if error.args[0] == errno.EINTR:
                    continue
                raise
            for item in ready:
                if item is server:
                    self._accept(server)
                elif item == self.wake_read:
                    self._drain_wake()
                elif item == self.report_fd:
                    self._read_report()
                elif item in self.connections:
                    self._receive(item)
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
        return None

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
        if self.attempts:
            self._attempt()
        elif interpreters:
            self._fail({"problem": "no kernelspec '%s' in the image" % wanted})
        else:  # ours is in a folder that only root may enter, such as /root/miniconda3
            problem = "user %d may run no Python here, not even %s" % (os.getuid(), first)
            self._fail({"problem": problem})

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
        self._set_fd(read_fd)
        env = dict(os.environ)
        env.update(self.env)
        pid = os.fork()
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
                command = [interpreter, os.path.abspath(__file__), "kernel", self.config_path]
                os.execve(interpreter, command + [str(write_fd), mode], env)
            except Exception as error:
                print("dockml: cannot start %s: %s" % (interpreter, error), file=sys.stderr)
            finally:
                os._exit(126)
        os.close(write_fd)
        self.kernel_pid = pid
        self.report_fd, self.report_bytes = read_fd, b""
        self.state.update(phase="starting", report={}, exit=None)
        self.tell()

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
            "{prefix}": sys.prefix,
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
        if self.report_bytes:
            self.state["report"] = json.loads(self.report_bytes.decode("utf-8"))

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

    def _kernel_ended(self, status):
        self.kernel_pid = None
        while self.report_fd is not None:
            if not select.select([self.report_fd], [], [], 0)[0]:
                os.close(self.report_fd)
                self.report_fd = None
                break
            self._read_report()
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
                self.tell()
            else:
                self._attempt()
            return
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
        connection.setblocking(False)
        self._set_fd(connection.fileno())
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
        connection.close()
        if was_trusted and not self.trusted:
            self.deadline = now() + self.config["grace"]

    def _obey(self, connection, message):
        if connection not in self.trusted:
            if message.get("key") != self.config["key"]:
                self._drop(connection)
                return
            self.trusted.add(connection)
            self._send(connection)
            return
        op = message["op"]
        if op == "signal":
            self.signal_kernel(int(message["signum"]))
        elif op == "start":
            self.config = read_json(self.config_path)
            self.env = message.get("env") or self.env
            self.cwd = message.get("cwd") or self.cwd
            if self.kernel_pid is None:
                self.start_kernel()
        elif op == "keep":
            self.kept = bool(message["keep"])
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
        except (OSError, socket.error):
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
        if mode == "bundle":
            add_bundle(config)
        import zmq
        from ipykernel import __version__
        from ipykernel.kernelapp import IPKernelApp
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
    if not config.get("drops", True):
        # The one reader waits for its own reader: then this kernel has to wait too, and not drop output.
        app.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
    app.start()


if __name__ == "__main__":
    if sys.argv[1] == "kernel":
        run_kernel(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        Supervisor(sys.argv[2]).run()
