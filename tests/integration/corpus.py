"""Cells of which a user must not be able to tell whether they ran in a kernel of their own or routed.

Each is one row of a table: what the front end sends, step by step, what it answers to questions, and what
comes after the end. They run in the order of the table, in one kernel, and most are both Python 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FRONT_END_COMM = "opened-by-the-front-end"
KERNEL_COMM = "opened-by-the-kernel"


@dataclass(frozen=True)
class Request:
    """A message of the front end.

    Parameters
    ----------
    msg_type : str
    content : mapping
    metadata : mapping
    buffers : sequence of bytes
    """

    msg_type: str
    content: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    buffers: Sequence[bytes] = ()

    @property
    def counts(self) -> bool:
        """The kernel raises its execution count."""
        return (
            self.msg_type == "execute_request"
            and self.content["store_history"]
            and not self.content["silent"]
        )

    @property
    def is_answered(self) -> bool:
        """A reply comes on the shell channel."""
        return not self.msg_type.startswith("comm_") or self.msg_type.endswith("_request")


def execute(code: str, *, metadata: Mapping[str, Any] | None = None, **content: Any) -> Request:
    """Return the request to run code, as JupyterLab sends it."""
    usual = {
        "code": code,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": True,
        "stop_on_error": True,
    }
    return Request("execute_request", {**usual, **content}, metadata or {})


Step = str | Request | list[Request]


@dataclass(frozen=True)
class Cell:
    """A cell, or a few that belong together.

    Parameters
    ----------
    name : str
    *steps : str, Request or list of Request
        Each is sent when what came before is done with; a list is sent at once.
    answers : sequence of str
        To the questions of the code, in order.
    ends_with : str
        What is printed last, where that is after the cell has ended.
    needs : str
        What only some environments have; "new" are kernels that answer this at all.
    figures : bool
        It prints how long something took.
    threads : bool
        Its lines come from threads, in any order.
    complains : bool
        A kernel logs what it thinks of this on stderr, at any time: that is left out.
    """

    name: str
    steps: tuple[tuple[Request, ...], ...]
    answers: Sequence[str] = ()
    ends_with: str = ""
    needs: str = ""
    figures: bool = False
    threads: bool = False
    complains: bool = False


def cell(name: str, *steps: Step, **more: Any) -> Cell:
    """Return a row of the table; code alone stands for an execute request."""
    sent: list[tuple[Request, ...]] = []
    for step in steps:
        if isinstance(step, str):
            sent.append((execute(step),))
        else:
            sent.append((step,) if isinstance(step, Request) else tuple(step))
    return Cell(name, tuple(sent), **more)


def ask(msg_type: str, **content: Any) -> Request:
    """Return any other request."""
    return Request(msg_type, content)


def comm(msg_type: str, comm_id: str, data: Any = None, *buffers: bytes, **more: Any) -> Request:
    """Return a front end's message for a widget."""
    content = {"comm_id": comm_id, "data": {} if data is None else data, **more}
    return Request(msg_type, content, buffers=buffers)


TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PRELUDE = (
    "from IPython.display import *\nimport getpass, logging, os, sys, threading, time, warnings"
)
"""What each kernel runs first, and again when its variables are gone."""
DOCUMENTED = "def documented(a, b=1):\n    'Its docstring.'\n    return a"
OPEN = f"""
try:
    from comm import create_comm
except ImportError:
    from ipykernel.comm import Comm as create_comm
c = create_comm(target_name='t', comm_id='{KERNEL_COMM}', data={{'a': 1}}, metadata={{'m': 1}},
                buffers=[bytes(bytearray(range(256))), b''])
"""
CLOSE = "c.close({'why': 'done'}, buffers=[b'bye'])"
ACCEPT = """
def opened(comm, message):
    global theirs
    theirs = comm
    print(message['content']['data'], len(message['buffers']))
    sys.stdout.flush()
    comm.on_msg(lambda m: comm.send({'got': m['content']['data']}, buffers=[b'pong']))
    comm.on_close(lambda m: sys.stdout.write(str(m['content']['data'])))
    comm.send({'hello': 1})
get_ipython().kernel.comm_manager.register_target('theirs', opened)
"""
"""It flushes: ipykernel 4 sends a comm's message at once, and what was printed before it when a timer says so."""
RAISE_LATE = "import time; time.sleep(1); 1/0"
"""An error at a time when all that was sent with it has arrived."""

_EXECUTE = [
    cell("expression", "6 * 7"),
    cell("print", "print('one'); print('two')"),
    cell("nothing", "None"),
    cell("empty cell", ""),
    cell("blanks only", " \n\t\n"),
    cell("comment only", "# nothing"),
    cell("several expressions", "1\n2\n3"),
    cell("semicolon", "6 * 7;"),
    cell("tabs and Windows line ends", "if True:\r\n\tprint('tab')\r\n"),
    cell("text beyond ASCII", "print(u'gr\u00fc\u00df \u4e16\u754c \U0001f40b'); u'\u00e9'"),
    cell("silent", execute("hidden = 1; print('printed'); 42", silent=True), "hidden"),
    cell("silent error", execute("1/0", silent=True), "'next'"),
    cell("without history", execute("41 + 1", store_history=False), "_", "7"),
    cell("error without history", execute("1/0", store_history=False), "8"),
    cell(
        "user expressions",
        execute(
            "x = 20",
            user_expressions={"good": "x + 1", "bad": "1/0", "unknown": "nobody", "syntax": "1 +"},
        ),
    ),
    cell("user expressions of an error", execute("1/0", user_expressions={"a": "1"})),
    cell("user expressions, silent", execute("", silent=True, user_expressions={"a": "1 + 1"})),
    cell(
        "metadata of the request",
        execute(
            "request = get_ipython().parent_header\n"
            "print(sorted(request['metadata'].items()))\n"
            "print(sorted(request['content'].items()))\n"
            "print(sorted(request), request['header']['msg_type'], request['header']['username'])",
            metadata={"cellId": "a-cell", "deletedCells": [], "recordTiming": True},
        ),
    ),
    cell("last results", "100", "200", "300", "print(_, __, ___)"),
    cell("last inputs", "a = 1", "b = 2", "print([_i, _ii])"),
    cell("result by number", "'kept'", "Out[get_ipython().execution_count - 1]"),
    cell("input by number", "'typed'", "In[get_ipython().execution_count - 1]"),
    cell("%history of what was typed", "'h1'", "'h2'", "%history -n -l 2"),
    cell("%recall", "'recalled'", "%recall"),
    cell("%rerun", "print('again')", "%rerun"),
    cell("count in the cell", "get_ipython().execution_count"),
    cell("variables of a new kernel", "%who_ls str"),
    cell(
        "folder, user and mask", "import getpass, os; os.getcwd(), getpass.getuser(), os.umask(18)"
    ),
    cell("names of environment variables", "import os; sorted(os.environ)"),
    cell(
        "streams and signals",
        "import signal, sys\n"
        "print([type(s).__name__ for s in (sys.stdin, sys.stdout, sys.stderr)], sys.stdout.encoding)\n"
        "signal.getsignal(signal.SIGINT).__name__, str(signal.getsignal(signal.SIGTERM))",
    ),
    cell("own lines in a string", "print('''\n%docker_env local\n''')"),
    cell(
        "own lines in a cell magic",
        "%%writefile own.txt\n%docker_env local\n",
        "!cat own.txt; rm own.txt",
    ),
    cell("deep recursion", "def f(n):\n    return n and 1 + f(n - 1)\nf(500)"),
    cell("a class and its repr", "class A(object):\n    def __repr__(self): return 'an A'\nA()"),
    cell("memory address in a result", "object()"),
    cell("redefinition across cells", "def f(): return 1", "f()", "def f(): return 2", "f()"),
    cell("formatted pretty", "{i: list(range(i)) for i in range(12)}"),
    cell("display hook replaced", "%precision 3", "3.14159265", "%precision", "3.14159265"),
    cell("last expression is a string of lines", "'a\\nb'"),
    cell("await", "import asyncio\nawait asyncio.sleep(0.01, 'waited')", needs="await"),
    cell(
        "gathered coroutines",
        "async def step(i):\n    await asyncio.sleep(0.01 * i); print(i); return i\n"
        "await asyncio.gather(*map(step, range(4)))",
        needs="await",
    ),
    cell(
        "async for and async with",
        "class C:\n"
        "    async def __aenter__(self): print('in')\n"
        "    async def __aexit__(self, *error): print('out')\n"
        "async def numbers():\n    for i in range(3): yield i\n"
        "async with C():\n    async for i in numbers(): print(i)",
        needs="await",
    ),
    cell("error in await", "async def bad(): raise KeyError('k')\nawait bad()", needs="await"),
    cell(
        "a task that goes on after its cell",
        "async def later():\n    await asyncio.sleep(0.3); print('the task is done')\n"
        "task = asyncio.ensure_future(later())",
        ends_with="the task is done",
        needs="await",
    ),
    cell("print statement", "print 'hi', 3", needs="python2"),
    cell("print statement in Python 3", "print 'hi', 3", needs="python3"),
]

_STDIN = [
    cell("input", "name = input('Your name? ')\nname", answers=["Ada"], needs="python3"),
    cell("raw_input", "raw_input('Your name? ')", answers=["Ada"], needs="python2"),
    cell("input of Python 2", "input('A number? ')", answers=["6 * 7"], needs="python2"),
    cell("two inputs", "[input('a '), input('b ')]", answers=["1", "2"]),
    cell("input without a prompt", "input()", answers=["0"]),
    cell("empty answer", "input('? ')", answers=[""]),
    cell("answer beyond ASCII", "input('\u00bf? ')", answers=["'\u00fc\U0001f40b'"]),
    cell("end of file as an answer", "input('? ')", answers=["\x04"]),
    cell("getpass", "import getpass; getpass.getpass('Secret: ')", answers=["hunter2"]),
    cell("getpass to a stream", "import sys; getpass.getpass('S ', sys.stderr)", answers=["x"]),
    cell("input between outputs", "print('before'); y = input('? '); print(y)", answers=["1"]),
    cell("input and nobody to answer", execute("input('? ')", allow_stdin=False)),
    cell("getpass and nobody to answer", execute("getpass.getpass()", allow_stdin=False)),
    cell("input in a queue", [execute("input('1 ')"), execute("input('2 ')")], answers=["3", "4"]),
    cell("error after input", "int(input('? ')) / 0", answers=["5"]),
    cell(
        "post-mortem debugger",
        "def f(z):\n    return z / 0\nf(3)",
        "%debug",
        answers=["p z", "up", "q"],
    ),
    cell(
        "debugger in a function",
        "import pdb\ndef f(v):\n    pdb.set_trace()\n    return v + 1\nf(6)",
        answers=["p v", "c"],
    ),
]

_QUEUE = [
    cell(
        "queue aborted by an error",
        [execute(RAISE_LATE), *(execute(f"print({i})") for i in range(3))],
    ),
    cell("count after an abort", "'counted on'"),
    cell(
        "queue that goes on after an error",
        [
            execute(RAISE_LATE, stop_on_error=False),
            *(execute(f"print({i}); {i}", stop_on_error=False) for i in range(3)),
        ],
    ),
    cell("queue behind a silent error", [execute(RAISE_LATE, silent=True), execute("'ran'")]),
    cell("queue without an error", [execute(f"print({i}); {i}") for i in range(8)]),
    cell(
        "error in the middle of a queue",
        [execute("import time; time.sleep(1)"), *map(execute, ("1", "1/0", "2", "3"))],
    ),
    cell(
        "queue of mixed histories",
        [
            execute("'a'"),
            execute("'b'", store_history=False),
            execute("'c'", silent=True),
            execute("'d'"),
        ],
    ),
    cell(
        "other requests behind a cell",
        [
            execute("import time; time.sleep(0.2); queued = 5"),
            ask("complete_request", code="queue", cursor_pos=5),
            ask("inspect_request", code="queued", cursor_pos=6, detail_level=0),
            execute("queued"),
        ],
    ),
]

_PAYLOADS = [
    *(
        cell(code, DOCUMENTED, code)
        for code in (
            "documented?",
            "documented??",
            "?documented",
            "docu*?",
            "len?",
            "nobody?",
            "help(documented)",
            "%pinfo2 documented",
            "%pdoc documented",
            "%psource documented",
            "%page documented",
            "%quickref",
        )
    ),
    cell("%load", "x = open('a.py', 'w').write('loaded = 1\\n')", "%load a.py", "!rm a.py"),
    cell("%pycat", "x = open('b.py', 'w').write('b = 1\\n')", "%pycat b.py", "!rm b.py"),
    cell("next input", "get_ipython().set_next_input('x = 1')"),
    cell("replaced input", "get_ipython().set_next_input('y', True)"),
    cell("several payloads", "documented?\nget_ipython().set_next_input('x')\nlen?"),
]

_DISPLAYS = [
    cell("display", "display('shown', 3)"),
    cell("HTML", "HTML('<b>bold</b>')"),
    cell("PNG", f"import base64; Image(data=base64.b64decode('{TINY_PNG}'))"),
    cell("SVG", "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><g/></svg>')"),
    cell("JSON", "JSON({'a': [1, 2, {'b': None}]}, expanded=True)", needs="python3"),
    cell("LaTeX and Markdown", r"display(Latex('$\\int x$'), Math('x^2'), Markdown('*m*'))"),
    cell("JavaScript", "display(Javascript('1 + 1'))"),
    cell("Audio and iframe", "display(IFrame('https://example.org', 10, 10))"),
    cell(
        "raw data with metadata",
        "display({'text/plain': 'p', 'application/x+json': {'k': 1}}, raw=True,"
        " metadata={'application/x+json': {'m': [1]}})",
    ),
    cell(
        "all representations",
        "class All(object):\n"
        "    def _repr_html_(self): return '<i>a</i>'\n"
        "    def _repr_latex_(self): return '$a$'\n"
        "    def _repr_json_(self): return {'a': 1}\n"
        "    def _repr_png_(self): return b'\\x89PNG\\r\\n\\x1a\\n'\n"
        "    def _repr_pretty_(self, p, cycle): p.text('pretty')\n"
        "All()",
    ),
    cell(
        "mimebundle",
        "class Bundle(object):\n"
        "    def _repr_mimebundle_(self, include=None, exclude=None):\n"
        "        return {'text/plain': 'b', 'x/y': 'z'}, {'x/y': {'w': 1}}\n"
        "Bundle()",
    ),
    cell("a repr that raises", "class Bad(object):\n    def _repr_html_(self): 1/0\nBad()"),
    cell("a plain repr that raises", "class Worse(object):\n    def __repr__(self): 1/0\nWorse()"),
    cell(
        "update of a display",
        "display('first', display_id='d'); update_display('second', display_id='d')",
    ),
    cell("update from a later cell", "h = display('old', display_id='e')", "h.update('new')"),
    cell("update of what is not there", "update_display('x', display_id='never shown')"),
    cell("clear_output", "print('a'); clear_output(); print('b')"),
    cell("clear_output(wait=True)", "for i in range(3):\n    clear_output(wait=True); print(i)"),
    cell(
        "progress by clear_output and display",
        "for i in range(3):\n    clear_output(True); display(i)",
    ),
    cell("displays between prints", "for i in range(5):\n    print(i); display(i); print(-i)"),
    cell(
        "re-entrant display, 50 levels",
        "class Nested(object):\n"
        "    def __init__(self, n): self.n = n\n"
        "    def _repr_html_(self):\n"
        "        print('in', self.n)\n"
        "        if self.n: display(Nested(self.n - 1))\n"
        "        print('out', self.n)\n"
        "        return '<p>%d</p>' % self.n\n"
        "    def __repr__(self): return 'Nested(%d)' % self.n\n"
        "display(Nested(50))",
    ),
    cell(
        "a cell in a cell in a cell",
        "def run(n):\n"
        "    print('in', n)\n"
        "    if n: get_ipython().run_cell('run(%d)\\n%d' % (n - 1, n))\n"
        "run(5)",
    ),
    cell(
        "%%capture",
        "%%capture held\nimport sys\nprint('out')\nsys.stderr.write('err')\ndisplay(1)\n2",
        "held.stdout, held.stderr",
        "held.show()",
    ),
    cell("HTML, LaTeX and SVG magics", "%%html\n<b>h</b>", "%%latex\n$x$", "%%javascript\n1"),
    cell(
        "plot",
        "%matplotlib inline\nfrom matplotlib import pyplot\npyplot.plot([1, 2]);",
        needs="matplotlib",
    ),
    cell(
        "a plot and a text",
        "print('a'); pyplot.plot([1]); pyplot.show(); print('b')",
        needs="matplotlib",
    ),
    cell("an open figure and an error", "pyplot.plot([1]); 1/0", needs="matplotlib"),
    cell("no matplotlib", "%matplotlib inline", needs="no matplotlib"),
]

_COMMS = [
    cell(
        "comm of the kernel with buffers",
        OPEN,
        "c.send({'b': [2]}, metadata={'n': 2}, buffers=[b'\\x00\\xff' * 500000, b'end'])",
        ask("comm_info_request", target_name="t"),
        ask("comm_info_request", target_name="u"),
        CLOSE,
        ask("comm_info_request", target_name="t"),
    ),
    cell(
        "message to a comm of the kernel",
        OPEN,
        "@c.on_msg\n"
        "def got(message):\n"
        "    print(message['content']['data'], [bytes(b)[:4] for b in message['buffers']])\n"
        "    sys.stdout.flush()\n"
        "    c.send({'echo': message['content']['data']}, buffers=message['buffers'])",
        comm("comm_msg", KERNEL_COMM, {"v": "\u00fc"}, b"\x00\x80\xff" * 100000, b""),
        CLOSE,
    ),
    cell(
        "error in a callback of a comm",
        OPEN,
        "@c.on_msg\ndef got(message): raise LookupError('in a callback')",
        comm("comm_msg", KERNEL_COMM),
        CLOSE,
    ),
    cell(
        "output of a callback of a comm",
        OPEN,
        "@c.on_msg\ndef got(message): display('called back'); print(2)",
        comm("comm_msg", KERNEL_COMM),
        CLOSE,
    ),
    cell(
        "comm messages behind a busy cell",
        OPEN,
        "@c.on_msg\ndef got(message): print(message['content']['data'])",
        [
            execute("import time; time.sleep(0.2); print('busy')"),
            *(comm("comm_msg", KERNEL_COMM, {"i": i}) for i in range(5)),
            execute("print('behind')"),
        ],
        CLOSE,
    ),
    cell(
        "comm messages behind an error",
        OPEN,
        [execute(RAISE_LATE), comm("comm_msg", KERNEL_COMM, {"i": 1}), execute("'behind'")],
        CLOSE,
    ),
    cell(
        "comm of the kernel, closed by the front end",
        OPEN,
        "@c.on_close\ndef got(message): print(message['content']['data'])",
        comm("comm_close", KERNEL_COMM, {"why": "the page is gone"}),
        ask("comm_info_request", target_name="t"),
    ),
    cell(
        "message to a closed comm",
        OPEN,
        CLOSE,
        comm("comm_msg", KERNEL_COMM, {"late": 1}),
        needs="new",
        complains=True,
    ),
    cell(
        "comm of the front end",
        ACCEPT,
        comm("comm_open", FRONT_END_COMM, {"o": 1}, b"open", target_name="theirs"),
        comm("comm_msg", FRONT_END_COMM, {"m": 1}, b"ping"),
        ask("comm_info_request", target_name="theirs"),
        comm("comm_close", FRONT_END_COMM, {"c": 1}),
    ),
    cell(
        "comm of the front end, after its end",
        ACCEPT,
        comm("comm_open", FRONT_END_COMM, {"o": 1}, target_name="theirs"),
        comm("comm_close", FRONT_END_COMM, {"c": 1}),
        ask("comm_info_request", target_name="theirs"),
    ),
    cell(
        "comm of the front end, closed by the kernel",
        ACCEPT,
        comm("comm_open", FRONT_END_COMM, {"o": 1}, target_name="theirs"),
        "theirs.close({'k': 1})",
        ask("comm_info_request", target_name="theirs"),
    ),
    cell(
        "comm of the front end for nobody",
        comm("comm_open", "no-target", {}, target_name="not registered"),
    ),
]

_ERRORS = [
    cell("error", "1/0"),
    cell(
        "error in a nested function",
        "def f():\n    def g():\n        return {}['k']\n    return g()",
        "f()",
    ),
    cell(
        "chained errors",
        "try:\n    1/0\nexcept ZeroDivisionError as error:\n    raise KeyError('k') from error",
        needs="python3",
    ),
    cell("error while another is handled", "try:\n    1/0\nexcept ZeroDivisionError:\n    {}['k']"),
    cell(
        "error without a context",
        "try:\n    1/0\nexcept Exception:\n    raise KeyError('k') from None",
        needs="python3",
    ),
    cell("syntax error", "a = = 1"),
    cell("indentation error", "if 1:\nprint(2)"),
    cell("open bracket", "print((1, 2"),
    cell("NUL in the code", "x = '\0'", needs="new"),
    cell("KeyboardInterrupt", "raise KeyboardInterrupt"),
    cell("SystemExit", "import sys; sys.exit(3)"),
    cell("SystemExit with a text", "raise SystemExit('over')"),
    cell("GeneratorExit", "raise GeneratorExit"),
    cell("an exception of one's own", "class Own(Exception): pass\nraise Own('mine', 2)"),
    cell("error beyond ASCII", "raise ValueError(u'gr\u00fc\u00df \U0001f40b')"),
    cell("error of many lines", "raise ValueError('a\\n' * 50)"),
    cell("endless recursion", "def f(): return f()\nf()"),
    cell(
        "exception group",
        "raise ExceptionGroup('g', [KeyError(1), ValueError(2)])",
        needs="python3",
    ),
    cell(
        "an error that renders itself",
        "class R(Exception):\n    def _render_traceback_(self): return ['rendered', 'here']\nraise R",
    ),
    cell("%xmode and %tb", "%xmode Plain", "1/0", "%tb", "%xmode Context"),
    cell("error of an unknown magic", "%nonesuch 1", "%%nonesuch\n2"),
    cell(
        "error of a magic's arguments", "%cd /not/there", "%run not_there.py", "%load not_there.py"
    ),
    cell("assertion", "assert 1 == 2, 'not equal'"),
    cell(
        "error in a thread",
        "import threading\nt = threading.Thread(target=lambda: 1/0, name='T'); t.start(); t.join()",
    ),
    cell(
        "custom exception handler",
        "def handler(*a, **k): print('handled')\n"
        "get_ipython().set_custom_exc((ValueError,), handler)\nraise ValueError",
        "1/0",
        "get_ipython().set_custom_exc((), None)",
    ),
]

_MAGICS = [
    cell("%time", "%time 1 + 1", figures=True),
    cell("%%time", "%%time\nprint('timed')\n5", figures=True),
    cell("%%timeit", "%%timeit -n1 -r1\nprint('timed')", figures=True),
    cell("%%bash", "%%bash\necho from bash\nexit 0"),
    cell("%%bash that fails", "%%bash\necho failing\nexit 3"),
    cell("%%sh with an output", "%%sh --out caught\necho kept", "caught"),
    cell("shell line", "!echo hello"),
    cell("shell line that fails", "!exit 3", "_exit_code"),
    cell("shell line with a variable", "who = 'you'\n!echo hello $who {1 + 1}"),
    cell("shell line into a variable", "lines = !printf 'a\\nb\\n'\nlines"),
    cell("shell line of colours", "!printf '\\033[1mbold\\033[0m\\rover\\n'"),
    cell("shell line not of UTF-8", "!printf 'a\\377b\\n'"),
    cell(
        "%%writefile and %run",
        "%%writefile made.py\nprint('made'); made = 3",
        "%run made.py",
        "made",
        "!rm made.py",
    ),
    cell("%cd", "%cd /usr", "%pwd", "%cd -", "%cd"),
    cell("back to the folder", "import os; os.chdir(_dh[0])", "%pwd"),
    cell("%env", "%env A_NAME=a value", "import os; os.environ['A_NAME']"),
    cell("%pip list", "%pip list --disable-pip-version-check"),
    cell("%who", "%who_ls int", "%who function"),
    cell("%lsmagic", "print(str(get_ipython().run_line_magic('lsmagic', '')))"),
    cell("%alias", "%alias greet echo greetings", "greet"),
    cell("automagic", "pwd"),
    cell("%config", "%config IPCompleter.greedy"),
    cell("%%python", "%%python3\nprint('another python')", needs="python3"),
    cell(
        "a magic of one's own",
        "from IPython.core.magic import register_cell_magic\n"
        "@register_cell_magic\ndef shout(line, cell): print(cell.upper()); return line",
        "%%shout 1\nhi",
    ),
    cell(
        "events",
        "def after(*a): print('after')\nget_ipython().events.register('post_execute', after)",
        "1",
        "get_ipython().events.unregister('post_execute', after)",
    ),
    cell(
        "%load_ext", "%load_ext autoreload", "%autoreload 2", "%autoreload 0", "%load_ext not_there"
    ),
    cell("%reset", "gone = 1", "%reset -f", "gone", PRELUDE),
]

_REQUESTS = [
    cell(
        "completion",
        "completed_one = 1; completed_two = 'x'",
        ask("complete_request", code="completed_", cursor_pos=10),
        ask("complete_request", code="completed_two.up", cursor_pos=16),
        ask("complete_request", code="print(1)\nimport o", cursor_pos=17),
        ask("complete_request", code="%tim", cursor_pos=4),
        ask("complete_request", code="u'\U0001f40b'; completed_o", cursor_pos=17),
        ask("complete_request", code="import loggin", cursor_pos=13),
        ask("complete_request", code="nobody_at_all", cursor_pos=13),
    ),
    cell(
        "inspection",
        "def looked_at(a, b=1):\n    'Its docstring.'\n    return a",
        ask("inspect_request", code="looked_at(", cursor_pos=10, detail_level=0),
        ask("inspect_request", code="looked_at", cursor_pos=9, detail_level=1),
        ask("inspect_request", code="nobody_at_all", cursor_pos=13, detail_level=0),
        ask("inspect_request", code="%timeit", cursor_pos=7, detail_level=0),
    ),
    *(
        cell(f"is {name} complete", ask("is_complete_request", code=code))
        for name, code in (
            ("an expression", "1 + 1"),
            ("a block", "for i in range(3):\n    print(i)"),
            ("a bracket", "f((1,"),
            ("nonsense", "a = = 1"),
            ("a line of Python 2", "print 'hi'"),
            ("a cell magic", "%%bash\necho"),
            ("nothing", ""),
        )
    ),
    cell(
        "history",
        "needle_in_history = 1",
        "needle_in_history",
        *(
            ask(
                "history_request",
                hist_access_type="search",
                pattern="needle*",
                n=5,
                unique=unique,
                raw=True,
                output=output,
                session=0,
                start=0,
                stop=0,
            )
            for unique, output in ((False, False), (True, False), (False, True))
        ),
        ask(
            "history_request",
            hist_access_type="range",
            session=0,
            start=-2,
            stop=0,
            raw=True,
            output=False,
        ),
        ask(
            "history_request",
            hist_access_type="range",
            session=0,
            start=-2,
            stop=0,
            raw=True,
            output=True,
        ),
        ask("history_request", hist_access_type="tail", n=2, raw=True, output=False),
    ),
    cell(
        "history of cells that failed",
        "1/0  # needle_failed",
        ask(
            "history_request",
            hist_access_type="search",
            pattern="*needle_failed",
            n=5,
            raw=True,
            output=False,
        ),
    ),
]

_OUTPUT = [
    cell("without a newline", "import sys; x = sys.stdout.write('no newline')"),
    cell("flushed prints", "for i in range(20):\n    print(i); sys.stdout.flush()"),
    cell(
        "both streams by turns",
        "for i in range(20):\n    for s in sys.stdout, sys.stderr:\n"
        "        s.write('%d\\n' % i); s.flush()",
    ),
    cell("warnings", "import warnings; warnings.warn('careful')"),
    cell("logging", "import logging\nlogging.warning('logged')\nlogging.error('and %s', 'more')"),
    cell(
        "logged exception",
        "try:\n    1/0\nexcept ZeroDivisionError:\n    logging.exception('caught')",
    ),
    cell("a line of 10 MB", "print('x' * 10000000)"),
    cell("a result of 3 MB", "'y' * 3000000"),
    cell("a display of 10 MB", "display(HTML('z' * 10000000))"),
    cell("an error of 1 MB", "raise ValueError('w' * 1000000)"),
    cell("a cell of 1 MB", "text = '" + "v" * 1000000 + "'\nlen(text)", needs="python3"),
    cell("20,000 lines", "for i in range(20000): print(i)"),
    cell(
        "10,000 displays",
        # A kernel drops what its socket's queue of 1000 has no room for: give that time to be sent.
        "for i in range(10000):\n    display(i)\n    if i % 250 == 0: time.sleep(0.02)",
        needs="new",
    ),
    cell("500 displays between prints", "for i in range(500):\n    print(i); display(i)"),
    cell(
        "colours, returns, bells and NULs",
        "print('\\x1b[31mred\\x1b[0m 10%\\r20%\\r\\n\\x07\\x00\\x08\\x0c.')",
    ),
    cell("controls in a result", "'\\x1b[31m\\x00\\r\\u2028'", "u'\\u2028\\ufeff\\ufffe'"),
    cell("separators in an output", "print(u'\\u2028\\u2029\\ufeff\\ufffe\\x85')"),
    cell(
        "a lone surrogate",
        "print('\\ud800'); sys.stdout.flush()",
        "'on it goes'",
        needs="new",
        complains=True,
    ),
    cell("a surrogate for a byte", "print('a\\udc80b')", "'on it goes'", needs="new"),
    cell("surrogates in a result", "'\\udc80\\ud800'", needs="python3"),
    cell("surrogates in a display", "display(HTML('\\udc80'))", "'on it goes'", needs="new"),
    cell("a surrogate in an error", "raise ValueError('a\\udc80b')", "'on it goes'", needs="new"),
    cell(
        "a lone surrogate in an error",
        "raise ValueError('a\\ud800b')",
        "'on it goes'",
        needs="new",
    ),
    cell(
        "surrogates in the code", execute("s = 'a\udc80b'\nlen(s)"), "'on it goes'", needs="python3"
    ),
    cell(
        "a surrogate in a user expression",
        execute("s = 'a\\udc80b'", user_expressions={"s": "print(s)", "h": "HTML(s)"}),
        "'on it goes'",
        needs="new",
    ),
    cell(
        "bytes to sys.stdout.buffer", "sys.stdout.buffer.write(b'\\xff\\xfe\\n')", needs="python3"
    ),
    cell(
        "bytes to the file descriptor",
        "import os, time\nos.write(1, b'a\\xffb\\n'); time.sleep(0.5)",
    ),
    cell(
        "a child's output", "import subprocess\nsubprocess.call(['echo', 'child']); time.sleep(0.5)"
    ),
    cell(
        "not a number, infinite",
        "display({'application/json': {'a': float('nan'), 'b': float('inf')}}, raw=True)",
    ),
    cell(
        "what JSON has no word for",
        "display({'application/json': {1: {2, 3}}}, raw=True)",
        "'on it goes'",
    ),
    cell("bytes in a display", "display({'image/png': b'\\x00\\xff'}, raw=True)"),
    cell(
        "8 threads",
        "import threading\n"
        "def work(n):\n    for i in range(200): sys.stdout.write('%d-%d\\n' % (n, i))\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()",
        threads=True,
    ),
    cell(
        "a thread that goes on after its cell",
        "def later():\n"
        "    time.sleep(2); sys.stdout.write('late\\n'); display('late')\n"
        "    sys.stdout.write('the thread is done\\n')\n"
        "threading.Thread(target=later).start()",
        ends_with="the thread is done",
    ),
    cell(
        "a thread that goes on under other cells",
        "go_on = threading.Event()\n"
        "def later():\n"
        "    go_on.wait(60); sys.stdout.write('from the first\\n')\n"
        "t = threading.Thread(target=later); t.start()",
        "go_on.set(); t.join(); time.sleep(0.4); print('from the second')",
        "t.join()",
    ),
    cell(
        "a child process that prints",
        "import os\nchild = os.fork()\n"
        "if not child:\n    print('from the child'); sys.stdout.flush(); os._exit(0)\n"
        "os.waitpid(child, 0); time.sleep(0.5); print('from the parent')",
    ),
    cell(
        "stdout replaced",
        "class Upper(object):\n"
        "    def write(self, text): old.write(text.upper())\n    def flush(self): old.flush()\n"
        "old, sys.stdout = sys.stdout, Upper()\nprint('loud')\nsys.stdout = old",
        "print('as before')",
    ),
    cell(
        "printed by an object's end",
        "class End(object):\n    def __del__(self): print('ended')\ne = End(); del e",
    ),
    cell(
        "messages of one's own",
        "k = get_ipython().kernel\n"
        "sent = k.session.send(k.iopub_socket, 'stream', {'name': 'odd', 'text': 't'}, parent=k._parent_header"
        " if not hasattr(k, 'get_parent') else k.get_parent(), metadata={'m': 1}, buffers=[b'\\x00\\x01'])",
    ),
]

CORPUS = [
    *_EXECUTE,
    *_STDIN,
    *_QUEUE,
    *_PAYLOADS,
    *_DISPLAYS,
    *_COMMS,
    *_ERRORS,
    *_MAGICS,
    *_REQUESTS,
    *_OUTPUT,
]
