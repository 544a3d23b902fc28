"""Install the Debian packages that the tests need, or say what to ask an administrator for.

Run as ``python -m tests.machine.packages NAME...``. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

NOT_ALLOWED = 3
"""Exit status when only an administrator can go on."""


_NOT_AS_SERVICE = ("docker-registry",)
"""Packages of which we want the program, and not the service that Debian starts with it."""


class NotAllowed(Exception):
    """This user may not do that; the message says what to ask an administrator for."""


def say(text: str) -> None:
    """Print one line at once, so that a log shows it before the work that follows."""
    print(text, flush=True)


def privilege() -> list[str] | None:
    """Return the words to put before a command to run it as root, or None if we may not."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        return None
    done = subprocess.run([sudo, "-n", "true"], check=False, capture_output=True)
    return [sudo, "-n"] if done.returncode == 0 else None


def debian_like() -> bool:
    """Whether packages here are Debian's or a relative's, such as Ubuntu's."""
    return Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None


def missing(names: Iterable[str]) -> list[str]:
    """Return those of the packages that are not installed."""
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", name]
    done = subprocess.run(query, check=False, capture_output=True, text=True)
    return done.stdout == "installed"


def install(names: Sequence[str]) -> None:
    """Install the packages that are missing.

    Raises
    ------
    NotAllowed
        There is no apt-get here, or we are not root and sudo asks for a password.
    subprocess.CalledProcessError
        apt-get itself failed; it has printed why.
    """
    if not debian_like():
        raise NotAllowed(f"this is no Debian-like system: install {' '.join(names)} your own way")
    lacking = missing(names)
    if not lacking:
        return
    root = privilege()
    if root is None:
        raise NotAllowed(f"ask an administrator to run: apt-get install {' '.join(lacking)}")
    say(f"installing {' '.join(lacking)}")
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    # Another apt-get, such as the nightly one, may hold the lock for a while.
    apt = [*root, *environment, "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    subprocess.run([*apt, "update"], check=True)
    if Path("/run/systemd/system").is_dir():
        for name in set(lacking) & set(_NOT_AS_SERVICE):
            subprocess.run([*root, "systemctl", "mask", name], check=True)
    # The output of dpkg is long and of no use unless it fails.
    done = subprocess.run(
        [*apt, "install", "--yes", "--no-install-recommends", *lacking],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Install the packages named on the command line."""
    parser = argparse.ArgumentParser(prog="tests.machine.packages", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a Debian package")
    names = parser.parse_args(arguments).names
    try:
        install(names)
    except NotAllowed as error:
        say(str(error))
        return NOT_ALLOWED
    except subprocess.CalledProcessError as error:
        return error.returncode
    say(f"installed: {' '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
