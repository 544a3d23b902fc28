"""Carry the host's way to the package index into a build: index, certificates, proxy.

The files made here go into a stage that the final image is not made from, so nothing of the host
is left in it.
"""

from __future__ import annotations

import ast
import os
import ssl
import subprocess
import sys
from pathlib import Path

PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Only what old pips know too, and what means the same in a container: no local folders.
CARRIED = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries", "proxy")


def files() -> dict[str, bytes]:
    """Return the files of a build context's ``host`` folder: pip's settings and certificates."""
    settings = _settings()
    lines = ["[global]", "disable-pip-version-check = true"]
    for name in CARRIED:
        words = [word for word in settings.get(name, "").split() if not word.startswith("file:")]
        if words:
            lines.append(f"{name} = {' '.join(words)}")
    bundle = _certificates(settings)
    found = {}
    if bundle is not None:
        lines.append("cert = /host/ca.pem")
        found["host/ca.pem"] = bundle.read_bytes()
    found["host/pip.conf"] = "\n".join([*lines, ""]).encode()
    return found


def proxies() -> dict[str, str]:
    """Return the proxy variables, as build arguments that every builder knows by itself."""
    names = [form for name in PROXIES for form in (name, name.upper())]
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _settings() -> dict[str, str]:
    """Return pip's settings on the host; environment variables, which come first, win."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True
    ).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        name = name.removeprefix("default-")
        if section in ("global", "install", ":env:") and (section == ":env:" or name not in found):
            found[name] = ast.literal_eval(value)
    return found


def _certificates(settings: dict[str, str]) -> Path | None:
    """Return the host's certificate bundle; the one in an old pip may be too old to be of use."""
    named = [settings.get("cert"), *(os.environ.get(name) for name in CERTIFICATES)]
    named.append(ssl.get_default_verify_paths().cafile)
    paths = [Path(name) for name in named if name]
    return next((path for path in paths if path.is_file()), None)
