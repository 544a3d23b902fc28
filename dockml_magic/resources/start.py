"""What a container runs: `launch.py`, with the compiled code that an earlier start of the image has left.

Standard library only, for Python 2.7 to the newest; and nothing that is not there anyway when Python has started, as
the rest of the standard library is what there is compiled code of. Images as they come have none, and who runs in
them may write none: Python would compile 150 modules at each start, which takes as long as all the rest.

``start.py WORDS...`` is ``launch.py WORDS...``. The mounted folder has one file, or none yet::

    dockml code 1 <Python's magic number> <optimisation> <bytes of the index> <its CRC-32>\\n
    the index, as marshal has it: {path of the source: (mtime, size, begin, end, CRC-32), "": [paths]}
    the code of all modules, as marshal has it

The paths are those of what Python imports by itself when it starts, `site` and what .pth files need, before we can
serve it: the supervisor, which starts without `site`, writes that as Python's own files where it may, for the kernel's.

An entry counts for a source with this time and size, as one of Python's own files does. What does not fit or is damaged
is not there: Python compiles then. Python's ways to import are as they were when the kernel is ready, and no module has
a trace of this.
"""

import marshal
import sys
from binascii import crc32
from posix import listdir, mkdir, rename, stat

FOLDER = "/opt/dockml/compiled"

BEGUN = "begun"
"""In the runtime folder: what the supervisor of a first start has compiled, for the kernel, which needs it too."""

AHEAD = "ahead"
"""How files are called in there that have what is compiled for it while it already runs."""

MOST = 64 * 1024 * 1024
"""Bytes of code that are kept of an image."""

IS_OLD = sys.version_info < (3, 5)
"""Python 2.7, whose own imports are written in C."""

if IS_OLD:
    import imp


def head():
    """Return how a file of this interpreter begins; another one's code may be none for it."""
    if IS_OLD:
        magic = imp.get_magic()
    else:
        magic = machinery().MAGIC_NUMBER
    number = sum(byte << 8 * place for place, byte in enumerate(bytearray(magic)))
    return "dockml code 1 %d %d " % (number, sys.flags.optimize)


def machinery():
    return sys.modules["_frozen_importlib_external"]


def compiled(path):
    """Return the code of a source."""
    with open(path, "U" if IS_OLD else "rb") as file:
        source = file.read()
    return compile(source + "\n" if IS_OLD else source, path, "exec", 0, 1)


def checksum(data):
    return crc32(data) & 0xFFFFFFFF


def ahead(folder, path):
    """Return where the code of a source is that was compiled ahead."""
    return "%s/%s-%08x" % (folder, AHEAD, checksum(path if IS_OLD else path.encode("utf-8")))


class Code(object):
    """The compiled code of this image: used, and at its first start kept."""

    def __init__(self):
        self.data = b""
        self.index = {}
        self.kept = None  # {path: (mtime, size, code)} while it is recorded
        self.folder = None  # with what is compiled ahead
        self.boot = []  # the paths of those that Python imports before us
        self.undo = []

    # --- what is there ------------------------------------------------------------------------

    def read_folder(self, folder):
        """Read the file in a folder, if there is one; tell whether the folder is there and empty."""
        try:
            names = listdir(folder)
        except OSError:
            return False
        if len(names) == 1:
            self.read("%s/%s" % (folder, names[0]))
        return not names

    def read(self, path):
        """Read a file, if it is for us."""
        try:
            with open(path, "rb") as file:
                line = file.readline(200)
                begin = head().encode("ascii")
                size, crc = map(int, line[len(begin) :].split())
                index = file.read(size)
                if line.startswith(begin) and checksum(index) == crc:
                    self.index = marshal.loads(index)
                    self.data = file.read()
        except Exception:  # no file, another Python's, a damaged one
            self.index = {}

    def find(self, path):
        """Return the code of a source, None where there is none or it is another one's."""
        try:
            mtime, size, data = self._find(path) if path in self.index else self._find_ahead(path)
            if self.kept is not None:
                self.kept[path] = (mtime, size, data)
            return marshal.loads(data)
        except Exception:
            return None

    def _find(self, path):
        mtime, size, begin, end, crc = self.index[path]
        found = stat(path)
        data = self.data[begin:end]
        if (found.st_mtime, found.st_size) != (mtime, size) or checksum(data) != crc:
            raise ValueError(path)
        return mtime, size, data

    # --- what is compiled for a first start while that goes on --------------------------------

    def compile_ahead(self, folder, library, names):
        """Leave the code of modules that a kernel will import, one file each; the last ones first."""
        for name in reversed(names):
            for path in ("%s/%s.py" % (library, name), "%s/%s/__init__.py" % (library, name)):
                try:
                    found = stat(path)
                    data = marshal.dumps(compiled(path))
                    entry = (head(), path, found.st_mtime, found.st_size, data)
                    place = ahead(folder, path)
                    with open(place + ".new", "wb") as file:
                        file.write(marshal.dumps(entry))
                    rename(place + ".new", place)
                except Exception:  # not in this version
                    pass

    def _find_ahead(self, path):
        if self.folder is None:
            raise KeyError(path)
        with open(ahead(self.folder, path), "rb") as file:
            begin, source, mtime, size, data = marshal.loads(file.read())
        found = stat(path)
        if (begin, source, mtime, size) != (head(), path, found.st_mtime, found.st_size):
            raise ValueError(path)
        return mtime, size, data

    def script(self, path):
        """Return the code of a script of ours, which is nobody's module."""
        found = self.find(path)
        if found is None:
            found = compiled(path)
            if self.kept is not None:
                self._keep(path, marshal.dumps(found))
        return found

    # --- what Python imports before us --------------------------------------------------------

    def keep_boot(self):
        """Keep that, and what the supervisor has compiled: it starts without most of that."""
        for path in self.index:
            self.find(path)
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None) or ""
            if IS_OLD and path.endswith(("c", "o")):
                path = path[:-1]
            elif (
                not IS_OLD
                and type(getattr(module, "__loader__", None)) is not machinery().SourceFileLoader
            ):
                continue
            if not path.endswith(".py") or path == __file__:
                continue
            try:
                self._keep(path, marshal.dumps(compiled(path)))
                self.boot.append(path)
            except Exception:  # no source, or no longer
                pass

    def write_boot(self):
        """Write that as Python would have, had it been started with `site` as this user."""
        if sys.dont_write_bytecode:
            return
        magic = imp.get_magic() if IS_OLD else machinery().MAGIC_NUMBER
        for path in self.index.get("", ()):
            try:
                mtime, size, data = self._find(path)
                words = [int(mtime), size][: 1 if IS_OLD else 2]
                if sys.version_info >= (3, 7):
                    words.insert(0, 0)
                header = bytearray(word >> bits & 255 for word in words for bits in (0, 8, 16, 24))
                write_own(path, magic + bytes(header) + data)
            except Exception:  # it is another file by now, or nothing can be written there
                pass

    # --- what Python imports ------------------------------------------------------------------

    def use(self):
        """Have Python import what is there; see `stop`."""
        if IS_OLD:
            if self.index or self.kept is not None:
                self._use_finder()
            return
        loader = machinery().SourceFileLoader
        get_code = loader.get_code

        def get_known_code(self_, fullname):
            code = self.find(self_.path) if type(self_) is loader else None
            return get_code(self_, fullname) if code is None else code

        if self.index or self.folder:
            loader.get_code = get_known_code
            self.undo.append(lambda: delattr(loader, "get_code"))  # it was inherited

    def record(self):
        """Keep what Python compiles from now on and what of ours it takes; to be called before `use`, see `stop`."""
        self.kept = {}
        if IS_OLD:
            return
        loader = machinery().SourceFileLoader
        cache, writes = loader._cache_bytecode, sys.dont_write_bytecode
        header = 12 if sys.version_info < (3, 7) else 16

        def keep(self_, source_path, bytecode_path, data):
            self._keep(source_path, bytes(data[header:]))

        def undo():
            loader._cache_bytecode, sys.dont_write_bytecode = cache, writes

        loader._cache_bytecode, sys.dont_write_bytecode = keep, False
        self.undo.append(undo)

    def write_none(self):
        """Let Python write no files of its own; see `stop`. Who records would not see what is in those."""
        writes = sys.dont_write_bytecode
        self.undo.append(lambda: setattr(sys, "dont_write_bytecode", writes))
        sys.dont_write_bytecode = True

    def _keep(self, path, data):
        try:
            found = stat(path)
            self.kept[path] = (found.st_mtime, found.st_size, data)
        except OSError:
            pass

    def _use_finder(self):
        finder = OldFinder(self)
        sys.meta_path.insert(0, finder)
        self.undo.append(lambda: sys.meta_path.remove(finder))

    def stop(self):
        """Give Python its own ways back; return what was recorded, as a file has it, or None."""
        for undo in self.undo:
            undo()
        self.undo = []
        kept, self.kept, self.index, self.data = self.kept, None, {}, b""
        self.folder = None
        if kept is None or sum(len(entry[2]) for entry in kept.values()) > MOST:
            return None
        index, place = {"": [path for path in self.boot if path in kept]}, 0
        for path in kept:
            mtime, size, data = kept[path]
            index[path] = (mtime, size, place, place + len(data), checksum(data))
            place += len(data)
        listed = marshal.dumps(index)
        line = "%s%d %d\n" % (head(), len(listed), checksum(listed))
        return b"".join([line.encode("ascii"), listed] + [kept[path][2] for path in kept])


def write_own(path, content):
    """Write the file in which Python keeps a source's code, unless there is one."""
    if IS_OLD:
        own = path + ("o" if sys.flags.optimize else "c")
    else:
        own = machinery().cache_from_source(path)
    try:
        stat(own)
        return
    except OSError:
        pass
    try:
        mkdir(own.rpartition("/")[0])
    except OSError:  # it is there
        pass
    with open(own + ".dockml", "wb") as file:
        file.write(content)
    rename(own + ".dockml", own)


class OldFinder(object):
    """Imports sources in Python 2.7, as PEP 302 has it; whatever else there is, Python's own imports find."""

    def __init__(self, code):
        self.code = code
        self.found = {}  # {module: (path of the source, folder of the package or None)}

    def find_module(self, fullname, path=None):
        try:
            file, found, (_, _, kind) = imp.find_module(fullname.rpartition(".")[2], path)
        except ImportError:
            return None
        if file:
            file.close()
        if kind == imp.PKG_DIRECTORY:
            place = (found + "/__init__.py", found)
        elif kind == imp.PY_SOURCE:
            place = (found, None)
        else:
            return None
        if not self._is_ours(place[0]):
            return None
        self.found[fullname] = place
        return self

    def _is_ours(self, path):
        if self.code.kept is None:
            return path in self.code.index
        try:
            stat(path + "c")
        except OSError:
            return True
        return False

    def load_module(self, fullname):
        path, folder = self.found.pop(fullname)
        code = self.code.find(path)
        if code is None:
            code = compiled(path)
            if self.code.kept is not None:
                self.code._keep(path, marshal.dumps(code))
        module = sys.modules.setdefault(fullname, imp.new_module(fullname))
        module.__file__ = path
        if folder is not None:
            module.__path__ = [folder]
        try:
            eval(code, module.__dict__)
        except BaseException:
            sys.modules.pop(fullname, None)
            raise
        return sys.modules[fullname]


def find_library():
    """Have the standard library on `sys.path`; where that is not known but by `site`, an old virtualenv's."""
    try:
        import json  # noqa: F401
    except ImportError:
        import site

        site.main()


def main():
    """Become `launch.py`."""
    beside = __file__.rpartition("/")[0] or "."
    path = "%s/launch.py" % beside
    code = Code()
    is_empty = code.read_folder(FOLDER)
    if sys.flags.no_site:
        code.write_boot()
    is_kernel = sys.argv[1] == "kernel"
    if is_kernel and sys.argv[-1] == "record":
        code.read("%s/%s" % (beside, BEGUN))
        code.record()
        code.keep_boot()
        code.folder = beside
    elif is_empty and sys.argv[1] == "supervise":
        code.record()
    elif not is_kernel:
        code.write_none()
    code.use()
    if sys.flags.no_site:
        find_library()
    sys.argv[0] = path
    eval(code.script(path), {"__name__": "__main__", "__file__": path, "CODE": code})


if __name__ == "__main__":
    main()
