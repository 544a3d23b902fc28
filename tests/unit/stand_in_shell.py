# Python 2.7 has none of the newer ways.
# ruff: noqa: UP004, UP018, UP031
"""A stand-in for a kernel in which values are asked for: does what IPython and ipykernel do, one after the other.

It runs on Python 2.7 to the newest. Each line of its input is JSON: ``run`` is code, ``expression`` an expression,
``message`` the type of one with ``content`` and ``buffers``. Each line that it writes is the expression's text, what
was raised, or the content and the buffers of a reply.
"""

import base64
import json
import os
import sys
import types


class Shell(object):
    def __init__(self):
        self.user_ns = {"__name__": "__main__"}
        self.kernel = self.session = self
        self.shell_handlers = {}

    def push(self, values):
        self.user_ns.update(values)

    def send(self, stream, msg_type, content, parent, ident, buffers):
        stream.update(type=msg_type, content=content, buffers=[encoded(b) for b in buffers])


def encoded(piece):
    return base64.b64encode(piece).decode("ascii")


def main():
    shell = Shell()
    sys.modules["IPython"] = types.ModuleType(str("IPython"))
    sys.modules["IPython"].get_ipython = lambda: shell
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while True:
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            continue
        if not line:
            return
        asked = json.loads(line)
        try:
            if "run" in asked:
                exec(asked["run"], shell.user_ns)
                told = {"text": repr(None)}
            elif "expression" in asked:
                told = {"text": repr(eval(asked["expression"], shell.user_ns, shell.user_ns))}
            else:
                pieces = [memoryview(base64.b64decode(piece)) for piece in asked["buffers"]]
                parent = {"content": asked["content"], "buffers": pieces}
                told = {}
                shell.shell_handlers[asked["message"]](told, None, parent)
        except BaseException as error:  # noqa: BLE001
            told = {"raised": "%s: %s" % (type(error).__name__, error)}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


main()
