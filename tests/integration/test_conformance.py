"""`jupyter_kernel_test`, the protocol's own suite, on kernels in containers: chosen in the launcher, and routed to.

All its tests run, each against every kernel here. The one that cannot apply everywhere is `IopubWelcomeTests`:
the welcome message came with ipykernel 7, so it is asked of the one kernel here that has it.

Two things of the suite are made independent of how fast the machine is, and check the same as before: it waits
0.1 s for each message of a cell, and takes 0.1 s of silence for the end of what was said before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

# Not by their names: pytest would take them for tests of this module.
import jupyter_kernel_test
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_kernel_test.msgspec_v5 import validate_message

from dockml_magic.engine import DockerEngine
from tests.integration.conftest import Image, variables_of_its_own
from tests.integration.kernels import PATIENCE, Kernel
from tests.integration.notebook import Notebook, containers_of, python_with
from tests.waiting import wait_until

PYTHON_27 = "dockml/tensorflow:1.10.0-py27"
PYTHON_36 = "dockml/bare:3.6"
PYTHON_311 = "dockml/bare:3.11"

WHERE = (
    "import os, sys; print('%s %d.%d' % ((os.path.exists('/.dockerenv'),) + sys.version_info[:2]))"
)


class _Conforms(jupyter_kernel_test.KernelTests):
    """The suite's samples, in words that every Python since 2.7 and every IPython since 5 understands."""

    __test__ = False

    image_name: ClassVar[str]
    python: ClassVar[str]
    folder: ClassVar[Path]

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; sys.stderr.write('test\\n');"
    completion_samples: ClassVar = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import itertoo", "matches": {"itertools"}},
    ]
    complete_code_samples: ClassVar = ["1", "print('hello')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples: ClassVar = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples: ClassVar = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('on purpose')"
    code_execute_result: ClassVar = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data: ClassVar = [
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
        {
            "code": "from IPython.display import Math, display; display(Math('x^2'))",
            "mime": "text/latex",
        },
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        """Leave it to `_client`, which knows our fixtures."""

    @classmethod
    def tearDownClass(cls) -> None:
        """Leave it to `_client`."""

    @classmethod
    def started(cls) -> AbstractContextManager[tuple[KernelManager, BlockingKernelClient]]:
        """Start what is tested, and end it on leaving."""
        raise NotImplementedError

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _client(
        cls,
        engine: DockerEngine,
        image: Image,
        lasting_cache: Path,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[None]:
        """Start one kernel for all tests of the class, in folders of its own."""
        image(cls.image_name)
        cls.folder = tmp_path_factory.mktemp("conformance")
        own = tmp_path_factory.mktemp("own") / "own"
        with (
            variables_of_its_own(own, engine, lasting_cache) as variables,
            mock.patch.dict("os.environ", variables),
            cls.started() as (cls.km, cls.kc),
        ):
            yield
        wait_until(lambda: not containers_of(cls.folder), what="no container to be left")

    def execute_helper(self, *arguments: Any, **keywords: Any) -> Any:
        """Run a cell as the suite does, with patience for every one of its messages."""
        channel = self.kc.iopub_channel
        get_msg = channel.get_msg

        def get_patiently(timeout: float) -> dict[str, Any]:
            return get_msg(timeout=PATIENCE)

        with mock.patch.object(channel, "get_msg", get_patiently):
            return super().execute_helper(*arguments, **keywords)

    def history_helper(self, *arguments: Any, **keywords: Any) -> Any:
        """Ask for history as the suite does, and write out the 0 that IPython gives for the session it is in."""
        reply = super().history_helper(*arguments, **keywords)
        for entry in reply["content"]["history"]:
            entry[0] = entry[0] or keywords["session"]
        return reply

    def flush_channels(self) -> None:
        """Take and check what was said before, as the suite does: until an answer shows that no more will come."""
        asked = self.kc.kernel_info()
        answered: str | None = None
        while answered != asked:
            message = self.kc.get_shell_msg(timeout=PATIENCE)
            validate_message(message)
            answered = message["parent_header"]["msg_id"]
        busy, was_idle = set(), False
        while busy or not was_idle:
            message = self.kc.get_iopub_msg(timeout=PATIENCE)
            if message["msg_type"] == "iopub_welcome":  # newer than the suite's list of messages
                continue
            validate_message(message)
            if message["msg_type"] == "status":
                parent = message["parent_header"].get("msg_id")
                if message["content"]["execution_state"] == "busy":
                    busy.add(parent)
                elif message["content"]["execution_state"] == "idle":
                    busy.discard(parent)
                    was_idle = was_idle or parent == asked

    def test_it_is_the_python_of_the_container(self) -> None:
        """Ours: without it all others would pass in the notebook's own kernel too."""
        self.flush_channels()
        _, messages = self.execute_helper(WHERE)
        printed = "".join(message["content"]["text"] for message in messages)
        assert printed == f"True {self.python}\n"


# --- a kernel chosen in the launcher --------------------------------------------------------------


class _LauncherKernel(_Conforms):
    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
        kernel = Kernel.of(cls.image_name, *cls.options).start(cwd=str(cls.folder))
        try:
            yield kernel.manager, kernel.client
        finally:
            kernel.stop()


class TestPython27(_LauncherKernel):
    """ipykernel 4.10, the image's own."""

    __test__ = True
    image_name, python = PYTHON_27, "2.7"


class TestPython36(_LauncherKernel):
    """ipykernel 5.5, the bundle's."""

    __test__ = True
    image_name, python = PYTHON_36, "3.6"


class TestPython311(_LauncherKernel):
    """ipykernel 7, the bundle's."""

    __test__ = True
    image_name, python = PYTHON_311, "3.11"


class TestPython311OverTcp(_LauncherKernel):
    """The same over published ports."""

    __test__ = True
    image_name, python, options = PYTHON_311, "3.11", ("--transport", "tcp")


class TestWelcome(jupyter_kernel_test.IopubWelcomeTests):
    """What ipykernel 7 sends to a new subscriber; 4, 5 and 6 do not, by their protocol version."""

    support_iopub_welcome = True

    @classmethod
    def setUpClass(cls) -> None:
        """Leave it to `_started`."""

    @classmethod
    def tearDownClass(cls) -> None:
        """Leave it to `_started`."""

    @pytest.fixture(autouse=True)
    def _started(self, image: Image, workspace: Path) -> Iterator[None]:
        kernel = Kernel.of(image(PYTHON_311)).start(cwd=str(workspace))
        self.km, self.kc = kernel.manager, kernel.manager.client()
        get_message = self.kc.get_iopub_msg

        def get_our_own() -> dict[str, Any]:
            """Leave out the welcome of the provisioner, who listens too: every subscriber hears every welcome.

            And that the kernel starts, which it may say as we come.
            """
            while True:
                message = get_message(timeout=PATIENCE)
                is_start = message["content"].get("execution_state") == "starting"
                if message["content"].get("subscription") != "kernel." and not is_start:
                    return message

        # The test is over before the thread of a heartbeat has begun.
        start = partial(self.kc.start_channels, hb=False)
        with (
            mock.patch.object(self.kc, "get_iopub_msg", get_our_own),
            mock.patch.object(self.kc, "start_channels", start),
        ):
            yield
        self.kc.stop_channels()
        kernel.stop()


# --- a kernel that a notebook routes to -------------------------------------------------------------


class _Routed(_Conforms):
    ipykernel: ClassVar[str] = "ipykernel7"

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
        with Notebook(cls.folder, python_with(cls.ipykernel)) as notebook:
            notebook.ok("%load_ext dockml_magic")
            notebook.use(cls.image_name)
            yield notebook.manager, notebook.client


class TestRoutedToPython27(_Routed):
    """A host kernel of ipykernel 7, cells in ipykernel 4."""

    __test__ = True
    image_name, python = PYTHON_27, "2.7"


class TestRoutedToPython311(_Routed):
    """The same generation on both sides."""

    __test__ = True
    image_name, python = PYTHON_311, "3.11"


class TestRoutedFromIpykernel6(_Routed):
    """The other generation of host kernels."""

    __test__ = True
    image_name, python, ipykernel = PYTHON_311, "3.11", "ipykernel6"
