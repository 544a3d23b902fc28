"""Python 3.5, which nobody has installed any more, where its image cannot be pulled.

panda3d makes executables of games. So its wheel for Python 3.5 has CPython's interpreter in an executable without a
program, `deploy-stub`, and all extension modules beside it. Here that becomes ``python3.5`` again: `main.c` is the main
that it lacks. The library that is written in Python is that of Python 3.6, without what 3.5 cannot read and with what
3.5 does not have. So what is tested in it is the real interpreter of 3.5: its syntax, its built-in types, its extension
modules; not its library.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from tests.machine import packages

VERSION = "3.5"
FULL = "3.5.10"
WHEEL = "panda3d==1.10.16"
SOURCES = (Path(__file__), Path(__file__).with_name("main.c"))
"""What decides what comes out."""

_ENTRIES = '''

class _Entries:
    """What the library of 3.6 expects of scandir."""

    def __init__(self, entries):
        self._entries = entries

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    close = __exit__


_scandir = scandir


def scandir(path="."):
    return _Entries(_scandir(path))
'''

CHANGES = (
    ("_collections_abc.py", "async def _ag(): yield\n_ag = _ag()\nasync_generator = type(_ag)\ndel _ag\n", ""),
    ("_collections_abc.py", "AsyncGenerator.register(async_generator)\n", ""),
    (
        "types.py",
        "async def _ag():\n    yield\n_ag = _ag()\nAsyncGeneratorType = type(_ag)\n",
        "AsyncGeneratorType = type('async_generator', (), {})\n",
    ),
    ("ast.py", "from _ast import *\n", "from _ast import *\nclass Constant(AST):\n    pass\n"),
    ("base64.py", "b2a_base64(s, newline=False)", "b2a_base64(s)[:-1]"),
    ("os.py", "sys.getfilesystemencodeerrors()", "'surrogateescape'"),
    ("ssl.py", "import _SSLContext, MemoryBIO, SSLSession\n", "import _SSLContext, MemoryBIO\nSSLSession = None\n"),
    ("ssl.py", "HAS_NPN, HAS_ALPN, HAS_TLSv1_3\n", "HAS_NPN, HAS_ALPN\nHAS_TLSv1_3 = False\n"),
    ("hashlib.py", "'blake2b', 'blake2s',\n", ""),
    ("hashlib.py", "'sha3_224', 'sha3_256', 'sha3_384', 'sha3_512',\n", ""),
    ("hashlib.py", "'shake_128', 'shake_256')", ")"),
)  # fmt: skip
"""File of the library, what is in it, and what is to be there instead."""


def assemble(library: Path, target: Path) -> None:
    """Make a folder such as /usr/local with Python 3.5 of the library of 3.6.

    Raises
    ------
    CalledProcessError
        If the wheel cannot be had, or the main not be made.
    NotAllowed
        If there is no compiler here, and only an administrator can install one.
    """
    packages.install(("gcc", "libc6-dev", "patchelf"))
    folder = target / "lib" / "python3.5"
    shutil.copytree(library, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder / "lib-dynload")
    (folder / "lib-dynload").mkdir()
    (target / "bin").mkdir(exist_ok=True)
    program = target / "bin" / "python3.5"
    with tempfile.TemporaryDirectory() as scratch, _wheel(Path(scratch)) as wheel:
        for name in wheel.namelist():
            place, _, file = name.rpartition("/")
            if place == "deploy_libs":
                where = folder if file.endswith(".py") else folder / "lib-dynload"
                (where / file).write_bytes(wheel.read(name))
            elif file == "deploy-stub":
                program.write_bytes(wheel.read(name))
    (folder / "_sysconfigdata.py").rename(folder / "_sysconfigdata_m_linux_.py")
    main = target / "bin" / "libpython3.5main.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", main, SOURCES[1]], check=True)
    subprocess.run(["patchelf", "--add-needed", main.name, program], check=True)
    program.chmod(0o755)
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to(program.name)
    for path in folder.rglob("*.py"):
        _change(path, str(path.relative_to(folder)))
    with (folder / "os.py").open("a", encoding="utf-8") as file_of_os:
        file_of_os.write(_ENTRIES)


def _wheel(folder: Path) -> zipfile.ZipFile:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    command += ["--python-version", "3.5", "--abi", "cp35m", "--platform", "manylinux1_x86_64"]
    subprocess.run([*command, "--only-binary", ":all:", WHEEL], check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def _change(path: Path, name: str) -> None:
    """Rewrite a module of 3.6 so that 3.5 can read it and has all that it asks for."""
    text = before = path.read_text(encoding="utf-8", errors="surrogateescape")
    for file, old, new in CHANGES:
        if file == name:
            if old not in text:
                raise ValueError(f"{name} of Python 3.6 is not what it was: {old!r} is not in it")
            text = text.replace(old, new)
    text = text.replace(", source=self)", ")")  # of warnings.warn
    if re.search(r"""\bf['"]""", text):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none any more
            tree = _WithoutFStrings().visit(ast.parse(text))
        text = ast.unparse(ast.fix_missing_locations(tree))
    if text != before:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")


class _WithoutFStrings(ast.NodeTransformer):
    """Has str.format do what an f-string does."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Call:
        text, values = "", []
        for part in node.values:
            if isinstance(part, ast.Constant):
                text += str(part.value).replace("{", "{{").replace("}", "}}")
                continue
            assert isinstance(part, ast.FormattedValue)
            conversion = "" if part.conversion < 0 else f"!{chr(part.conversion)}"
            spec = ""
            if isinstance(part.format_spec, ast.JoinedStr):
                (constant,) = part.format_spec.values
                assert isinstance(constant, ast.Constant)
                spec = f":{constant.value}"
            text += f"{{{conversion}{spec}}}"
            values.append(self.visit(part.value))
        format_ = ast.Attribute(value=ast.Constant(text), attr="format", ctx=ast.Load())
        return ast.Call(func=format_, args=values, keywords=[])
