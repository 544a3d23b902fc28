"""Lists what is installed in a Python: run by it, it writes JSON. Standard library only, Python 2.7 to the newest.

It reads the folders of packages itself: importlib.metadata is not in old Pythons, pkg_resources not in every image.
"""

from __future__ import print_function

import io
import json
import os
import platform
import re
import sys


def headers_of(path):
    """Return the name and version in a METADATA or PKG-INFO file, None for what it does not say."""
    found = {}
    try:
        with io.open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():  # the description follows
                    break
                word, colon, value = line.partition(":")
                if colon and word.lower() in ("name", "version"):
                    found.setdefault(word.lower(), value.strip())
    except (IOError, OSError):
        pass
    return found.get("name"), found.get("version")


def metadata_in(folder):
    """Give the files that describe the packages of a folder."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    for entry in entries:
        path = os.path.join(folder, entry)
        if entry.endswith(".dist-info"):
            yield os.path.join(path, "METADATA")
        elif entry.endswith(".egg-info"):
            yield os.path.join(path, "PKG-INFO") if os.path.isdir(path) else path
        elif entry.endswith(".egg") and os.path.isdir(path):
            yield os.path.join(path, "EGG-INFO", "PKG-INFO")


def packages():
    """Return {name: version}; of two of a name the one that an import finds."""
    found = {}
    for folder in sys.path[1:]:  # without our own
        for path in metadata_in(folder):
            name, version = headers_of(path)
            if name and version:
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return found


if __name__ == "__main__":
    print(json.dumps({"python": platform.python_version(), "packages": packages()}))
