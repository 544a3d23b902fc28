"""What `resources/later.py` makes of modules that are laid out as it knows them, and of others."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

import dockml_magic
from tests.unit.test_supervisor import the_python

LATER = Path(dockml_magic.__file__).parent / "resources" / "later.py"

KNOWN = {
    "IPython/__init__.py": "from .terminal.embed import embed\nfrom .core import completer\n",
    "IPython/core/__init__.py": "",
    "IPython/core/completer.py": "try:\n    import jedi\n    jedi.settings.case_insensitive_completion = False\n"
    "    import jedi.api.helpers\n    import jedi.api.classes\n    HAS = True\nexcept ImportError:\n    HAS = False\n",
    "IPython/lib/__init__.py": "",
    "IPython/terminal/__init__.py": "",
    "IPython/terminal/embed.py": "import prompt_toolkit\ndef embed(): pass\nclass Shell: pass\n",
    "prompt_toolkit/__init__.py": "",
    "parso.py": "",
    "jedi/__init__.py": "from . import settings\nScript = 'real'\n",
    "jedi/settings.py": "case_insensitive_completion = True\n",
    "jedi/api/__init__.py": "",
    "jedi/api/helpers.py": "",
    "jedi/api/classes.py": "",
    "ipykernel/__init__.py": "import IPython\n",
    "ipykernel/debugger.py": "from debugpy.server import api\nfrom _pydevd_bundle import pydevd_frame_utils\n"
    "from _pydevd_bundle.pydevd_suspended_frames import SuspendedFramesManager, _FramesTracker\n"
    "class VariableExplorer:\n    def __init__(self):\n        self.manager = SuspendedFramesManager()\n",
    "debugpy/__init__.py": "",
    "debugpy/server/__init__.py": "import sys, builtins\nsys.breakpointhook = builtins.runfile = lambda: 'real'\n",
    "debugpy/server/api.py": "",
    "_pydevd_bundle/__init__.py": "",
    "_pydevd_bundle/pydevd_frame_utils.py": "",
    "_pydevd_bundle/pydevd_suspended_frames.py": "def SuspendedFramesManager(): return 'real'\n_FramesTracker = 1\n",
}

BEGIN = """
import sys, importlib.util
sys.path.insert(0, {folder!r})
later = {{"__name__": "later"}}
exec(open({later!r}).read(), later)
def has_module(name): return importlib.util.find_spec(name) is not None
settle = later["put_off"](has_module)
import ipykernel
try: import ipykernel.debugger as debugger
except ImportError: pass
settle()
import IPython, types
from IPython.core import completer
def there(*names): return [name for name in names if name in sys.modules]
"""


@pytest.fixture(params=["3.6", "3.9", "3.11", "3.13"])
def python(request: pytest.FixtureRequest) -> str:
    return the_python(request.param)


def run(
    python: str, folder: Path, code: str, changes: Mapping[str, str | None] | None = None
) -> None:
    """Run code where these modules are, after what a start does."""
    for name, text in {**KNOWN, **(changes or {})}.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    script = BEGIN.format(folder=str(folder), later=str(LATER)) + code
    done = subprocess.run([python, "-S", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_known_waits_and_is_whole_when_it_is_needed(python: str, tmp_path: Path) -> None:
    code = """
assert there("prompt_toolkit", "jedi", "jedi.api", "debugpy", "_pydevd_bundle", "IPython.terminal.embed") == []
explorer = debugger.VariableExplorer()
assert completer.HAS and completer.jedi.Script == "real"
import jedi
assert completer.jedi is jedi and jedi.settings.case_insensitive_completion is False
assert there("jedi.api.helpers", "jedi.api.classes") and not there("debugpy", "prompt_toolkit")
assert IPython.embed is IPython.terminal.embed.embed and type(IPython) is types.ModuleType
assert explorer.manager == "real" and debugger.VariableExplorer().manager == "real"
assert sys.breakpointhook() == "real" and runfile() == "real"
assert not hasattr(__builtins__, "execfile") or execfile is None
assert debugger.api is sys.modules["debugpy.server.api"]
assert not [finder for finder in sys.meta_path if "later" in str(type(finder))]
"""
    run(python, tmp_path, code)


def test_what_takes_more_gets_it(python: str, tmp_path: Path) -> None:
    code = """
assert IPython.Shell is sys.modules["IPython.terminal.embed"].Shell
assert IPython.embed is IPython.terminal.embed.embed
assert completer.Script == "real" and completer.jedi.Script == "real"
"""
    changes = {
        "IPython/__init__.py": "from .terminal.embed import embed, Shell\n",
        "IPython/core/completer.py": "import jedi\nfrom jedi import Script\n",
    }
    run(python, tmp_path, code, changes)


def test_other_versions_are_left_as_they_are(python: str, tmp_path: Path) -> None:
    code = """
assert there("debugpy.server.api", "_pydevd_bundle.pydevd_suspended_frames", "prompt_toolkit", "jedi") == [
    "debugpy.server.api"]
assert type(IPython) is types.ModuleType and debugger.api is sys.modules["debugpy.server.api"]
assert not [finder for finder in sys.meta_path if "later" in str(type(finder))]
"""
    changes = {
        "IPython/__init__.py": "",
        "IPython/core/completer.py": "import importlib.util\nassert importlib.util.find_spec('jedi').loader\n",
        "ipykernel/debugger.py": "from debugpy.server import api\n",
    }
    run(python, tmp_path, code, changes)


def test_what_is_not_installed_is_missed_as_ever(python: str, tmp_path: Path) -> None:
    code = """
assert completer.HAS is False and "debugger" not in globals()
assert not hasattr(sys, "breakpointhook") or sys.breakpointhook is sys.__breakpointhook__
"""
    gone = {name: None for name in KNOWN if name.startswith(("jedi/", "debugpy/"))}
    run(python, tmp_path, code, gone)


def test_an_error_of_an_import_that_waited_is_raised_where_it_is_needed(
    python: str, tmp_path: Path
) -> None:
    code = """
for _ in range(2):
    try:
        IPython.embed
        raise SystemExit("there is no error")
    except ValueError as error:
        assert str(error) == "broken"
"""
    run(python, tmp_path, code, {"IPython/terminal/embed.py": "raise ValueError('broken')\n"})
