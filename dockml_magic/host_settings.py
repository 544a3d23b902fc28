"""The host's settings that follow the user into containers: proxies, CA bundle, pip, locale, the terminal's kind.

Never the whole environment: a short list of names. What points to a file or folder of the host
(other than the CA bundle, which is carried as a file) stays out, as it would not be there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockml_magic.spec import RUNTIME

CA_FILE = "ca-bundle.pem"
"""Name of the CA bundle in the runtime folder."""

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_PIP = (
    "index-url",
    "extra-index-url",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
    "disable-pip-version-check",
)
_SITE_WIDE = Path("/etc/pip.conf")
_OTHER = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "TERM")


@dataclass(frozen=True, kw_only=True)
class HostSettings:
    """What is carried in.

    Attributes
    ----------
    env : dict of str to str
        Variables for the container.
    ca_bundle : Path or None
        The host's CA bundle, if the host was told to use one of its own.
    """

    env: dict[str, str] = field(default_factory=dict)
    ca_bundle: Path | None = None


def read_host_settings(environ: Mapping[str, str] = os.environ) -> HostSettings:
    """Return the settings of this host, from its environment and pip's configuration files."""
    env = {name: environ[name] for name in _OTHER if environ.get(name)}
    for name in _PROXIES:
        value = environ.get(name) or environ.get(name.upper())
        if value:
            env[name] = env[name.upper()] = value
    pip = _pip_config(environ)
    for option in _PIP:
        variable = "PIP_" + option.upper().replace("-", "_")
        value = environ.get(variable) or pip.get(option, "")
        urls = [word for word in value.split() if not word.startswith(("file:", "/"))]
        if urls:
            env[variable] = " ".join(urls)
    bundle = next((environ[v] for v in _CA_VARIABLES if environ.get(v)), pip.get("cert", ""))
    if not bundle or not Path(bundle).is_file():
        return HostSettings(env=env)
    env |= dict.fromkeys(_CA_VARIABLES, str(RUNTIME / CA_FILE))
    return HostSettings(env=env, ca_bundle=Path(bundle))


def build_args(settings: HostSettings) -> dict[str, str]:
    """Return what a build of a Dockerfile gets: the proxies, and pip's settings for one that declares them.

    A CA bundle stays out: it is a file, which a build does not have.
    """
    return {
        name: value
        for name, value in settings.env.items()
        if name.lower() in _PROXIES or (name.startswith("PIP_") and name not in _CA_VARIABLES)
    }


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what pip would go by: its variables over its files, by the options' names."""
    variables = {name: environ.get("PIP_" + name.upper().replace("-", "_"), "") for name in _PIP}
    return _pip_config(environ) | {name: value for name, value in variables.items() if value}


def _pip_config(environ: Mapping[str, str]) -> dict[str, str]:
    """Return pip's [global] settings, read in pip's order: site-wide, user, this environment."""
    home = Path(environ.get("HOME", "~")).expanduser()
    config = environ.get("XDG_CONFIG_HOME") or home / ".config"
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:  # pip reads none at all then
        return {}
    files = [_SITE_WIDE]
    if not named or not Path(named).exists():  # it stands for the user's own
        files += [home / ".pip" / "pip.conf", Path(config) / "pip" / "pip.conf"]
    files += [Path(sys.prefix) / "pip.conf", Path(named or os.devnull)]
    import configparser  # here: `%load_ext` does without it

    parser = configparser.RawConfigParser()
    try:
        parser.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # pip will say so in its own words
        return {}
    if not parser.has_section("global"):
        return {}
    return {key.replace("_", "-"): value for key, value in parser["global"].items()}
