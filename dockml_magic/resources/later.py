"""What a kernel imports while it starts and mostly never needs: it is imported when it is needed.

IPython imports prompt_toolkit for `IPython.embed`, and jedi for its completer; ipykernel imports debugpy. Together
that is up to half of all that a start imports. Newer versions of theirs wait with it themselves.

While the modules of `WAITING` are imported, what they can do without has stand-ins in `sys.modules`. Then these
are gone from there, so that everybody else imports the real modules, and what has a stand-in gets the real thing as
soon as it is looked at. A finder waits for what has to be done with a module that somebody else imports first, and
goes when it has nothing more to wait for. What a version of theirs does otherwise is left as it is, and so is Python
before 3.5, whose modules cannot be told to wait.

Standard library only, for Python 3.5 to the newest; `launch.py` runs it, and no module of this name is there.
"""

import os
import sys
import threading

Module = type(sys)


class Waits(object):
    """In the place of what a module takes out of one that is not imported yet; keeps what is set on it."""


class StandIn(Module):
    """Takes a module's place for who imports it now and uses it later; whatever is looked up imports the real one."""

    def __getattr__(self, name):
        if name.startswith("__"):
            return Module.__getattribute__(self, name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(real(self.__name__), name)


def real(name):
    __import__(name)
    return sys.modules[name]


def put_off(has_module):
    """Import the modules of `WAITING`, without what they can do without; return what is to be called after all imports.

    Parameters
    ----------
    has_module : callable
        Tells whether there is a module, which is not imported.
    """
    if not (has_module("ipykernel") and has_module("IPython")):
        return lambda: None
    begun = []
    for who, needs, names, wait in WAITING:
        is_new = not any(name in sys.modules for name in [who] + list(names))
        if is_new and all(has_module(name) for name in needs):
            for name in names:
                sys.modules[name] = stand_in(name, names[name])
            begun.append((who, names, wait))
    try:
        # ipykernel before 6 has no debugger; to look for that imports ipykernel, and with it IPython.
        found = [(real(who), wait) for who, names, wait in begun if has_module(who)]
    finally:
        for who, names, wait in begun:
            for name in names:
                if isinstance(sys.modules.get(name), StandIn):
                    del sys.modules[name]

    def settle():
        for module, wait in found:
            wait(module)

    return settle


def stand_in(name, attributes):
    module = StandIn(name)
    for attribute in attributes:
        setattr(module, attribute, Waits())
    if "." not in name:  # who looks whether there is such a module asks the one that is imported
        from importlib.util import find_spec

        module.__spec__ = find_spec(name)
    return module


class Finder(object):
    """Has something done where a module is imported, and goes when that was done."""

    def __init__(self):
        self.hooks = {}

    def wait_for(self, name, hook):
        """Have `hook` called instead of the import of a module, with what really imports it."""
        self.hooks[name] = hook
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        if name not in self.hooks:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                self._hook(name, spec.loader)
                return spec
        return None

    def _hook(self, name, loader):
        def exec_module(module):
            del loader.exec_module  # it has its class's again
            self.hooks.get(name, call)(lambda: loader.exec_module(module))
            self.hooks.pop(name, None)
            if not self.hooks and self in sys.meta_path:
                sys.meta_path.remove(self)

        loader.exec_module = exec_module


def call(function):
    function()


FINDER = Finder()


# --- IPython.embed, and with it the terminal's IPython and prompt_toolkit ------------------------


class Package(Module):
    """A package of which a part is not imported yet: that is, when something is looked for and is not there.

    A module becomes one, and ceases to be one when all is imported.
    """

    def __getattr__(self, name):
        if not name.startswith("__") or name == "__all__":  # who imports * wants all there is
            complete()
        return Module.__getattribute__(self, name)

    def __dir__(self):
        complete()
        return sorted(vars(self))


Package.__module__, Package.__name__, Package.__qualname__ = "builtins", "module", "module"

INCOMPLETE = []
"""The packages; the first has no `embed` yet."""

COMPLETING = threading.RLock()


def wait_with_embed(package):
    if not isinstance(vars(package).get("embed"), Waits):
        return
    del package.embed
    for name in ("IPython", "IPython.terminal", "IPython.lib"):
        module = real(name)
        if type(module) is Module:
            module.__class__ = Package
            INCOMPLETE.append(module)


def complete():
    """Import what IPython would have imported itself."""
    with COMPLETING:
        packages, INCOMPLETE[:] = INCOMPLETE[:], []  # whatever that import looks for is not there
        if not packages:
            return
        try:
            vars(packages[0]).setdefault("embed", real("IPython.terminal.embed").embed)
        except BaseException:
            INCOMPLETE[:] = packages
            raise
        for module in packages:
            module.__class__ = Module


# --- jedi ---------------------------------------------------------------------------------------


def wait_with_jedi(completer):
    jedi = vars(completer).get("jedi")
    if not isinstance(jedi, StandIn):
        return

    def have_jedi(import_it):
        import_it()
        real("jedi.api.helpers")
        real("jedi.api.classes")
        vars(real("jedi").settings).update(vars(jedi.settings))
        completer.jedi = real("jedi")

    FINDER.wait_for("jedi", have_jedi)


# --- debugpy ------------------------------------------------------------------------------------


def wait_with_debugpy(debugger):
    waiting = [
        (module, name) for module, name in TAKEN if isinstance(vars(debugger).get(name), Waits)
    ]

    def have_real():
        for module, name in waiting:
            setattr(debugger, name, getattr(__import__(module, fromlist=[name]), name))

    explorer = vars(debugger).get("VariableExplorer")
    if explorer is None or len(waiting) != len(TAKEN):
        have_real()
        return
    make = explorer.__init__

    def __getattr__(self, name):
        if not name.startswith("__"):
            real("debugpy.server")
            make(self)  # what was made while it waited is empty
        return object.__getattribute__(self, name)

    explorer.__init__, explorer.__getattr__ = lambda self: None, __getattr__

    path = list(sys.path)  # without the workspace, as long as that is

    def have_debugpy(import_it):
        for name in STANDARD:
            import_from(path, name)
        users = [vars(owner).get(name) for owner, name, ours, before in put]
        # It would say into the cell's output that Python's own modules are frozen.
        silent = "PYDEVD_DISABLE_FILE_VALIDATION"
        is_silent = silent in os.environ
        os.environ.setdefault(silent, "1")
        try:
            import_it()
        finally:
            if not is_silent:
                os.environ.pop(silent, None)
        for (owner, name, ours, before), value in zip(put, users):
            if value is not ours or vars(owner).get(name) is ours:
                # It is somebody's own by now, or this version has none.
                setattr(owner, name, before if value is ours else value)
        explorer.__init__ = make
        have_real()

    # What debugpy leaves where everybody sees it.
    import builtins

    os.environ.setdefault("PYDEVD_USE_FRAME_EVAL", "NO")
    put = []
    for owner, name in ((builtins, "execfile"), (builtins, "runfile"), (sys, "breakpointhook")):
        ours = debugpys(owner, name)
        put.append((owner, name, ours, vars(owner).get(name)))
        setattr(owner, name, ours)
    FINDER.wait_for("debugpy.server", have_debugpy)


def import_from(path, name):
    """Import a module from where it would have been found at the start, and not a user's of the same name."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = None if name in sys.modules else PathFinder.find_spec(name, path)
    if spec is not None:
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


def debugpys(owner, name):
    """Return what imports debugpy and calls its function, which is there then."""

    def function(*args, **kwargs):
        if name == "execfile" and len(args) < 2:
            kwargs.setdefault("glob", sys._getframe(1).f_globals)  # its caller's
        real("debugpy.server")
        return getattr(owner, name)(*args, **kwargs)

    function.__name__ = function.__qualname__ = name
    return function


STANDARD = ("codeop", "code", "gzip", "html", "http", "pydoc", "socketserver", "xmlrpc")
"""What debugpy imports of Python's own, and refuses to do without."""

TAKEN = (
    ("debugpy.server", "api"),
    ("_pydevd_bundle", "pydevd_frame_utils"),
    ("_pydevd_bundle.pydevd_suspended_frames", "SuspendedFramesManager"),
    ("_pydevd_bundle.pydevd_suspended_frames", "_FramesTracker"),
)
"""What ipykernel takes out of debugpy."""

WAITING = (
    ("IPython", ["prompt_toolkit"], {"IPython.terminal.embed": ["embed"]}, wait_with_embed),
    (
        "IPython.core.completer",
        ["jedi", "parso"],
        {"jedi": ["settings"], "jedi.api": [], "jedi.api.helpers": [], "jedi.api.classes": []},
        wait_with_jedi,
    ),
    (
        "ipykernel.debugger",
        ["debugpy"],
        {
            "debugpy": [],
            "debugpy.server": ["api"],
            "_pydevd_bundle": ["pydevd_frame_utils"],
            "_pydevd_bundle.pydevd_suspended_frames": ["SuspendedFramesManager", "_FramesTracker"],
        },
        wait_with_debugpy,
    ),
)
"""Who imports; what has to be there; what gets stand-ins, and what is taken out of those; what is done then."""
