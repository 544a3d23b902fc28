# Python 2.7 has none of the newer ways.
# ruff: noqa: UP004, UP018, UP031
"""A stand-in for a kernel in which values are asked for: evaluates expressions as IPython does, one after the other.

It runs on Python 2.7 to the newest. Each line of its input is JSON: ``run`` is code, ``expression`` an expression
with ``buffers``. Each line that it writes is the expression's text, or what was raised.
"""

import base64
import json
import os
import sys
import types


class Shell(object):
    def __init__(self):
        self.user_ns = {"__name__": "__main__"}
        self.kernel = self
        self._parent_header = {}

    def push(self, values):
        self.user_ns.update(values)


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
                text = repr(None)
            else:
                pieces = [base64.b64decode(piece) for piece in asked["buffers"]]
                shell._parent_header = {"buffers": [memoryview(piece) for piece in pieces]}
                text = repr(eval(asked["expression"], shell.user_ns, shell.user_ns))
            told = {"text": text}
        except BaseException as error:  # noqa: BLE001
            told = {"raised": "%s: %s" % (type(error).__name__, error)}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


main()
