from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dockml_magic import host_settings
from dockml_magic.host_settings import HostSettings, read_host_settings

INSIDE = "/run/dockml/ca-bundle.pem"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a host whose every pip file is below `tmp_path`."""
    monkeypatch.setattr(host_settings, "_SITE_WIDE", tmp_path / "etc" / "pip.conf")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    return {"HOME": str(tmp_path / "home")}


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("[global]", *lines)))
    return path


def test_an_ordinary_host_gives_nothing(host: dict[str, str]) -> None:
    more = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": "/x", "LD_PRELOAD": "/x"}
    assert read_host_settings(host | more) == HostSettings()


def test_locale_and_terminal_are_carried(host: dict[str, str]) -> None:
    given = {"LANG": "de_DE.UTF-8", "LC_ALL": "C", "TZ": "Europe/Berlin", "TERM": "xterm"}
    assert read_host_settings(host | given).env == given


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
def test_a_proxy_is_carried_in_both_spellings(host: dict[str, str], name: str) -> None:
    env = read_host_settings(host | {name: "http://proxy:3128"}).env
    assert env == {"https_proxy": "http://proxy:3128", "HTTPS_PROXY": "http://proxy:3128"}


def test_the_small_spelling_of_a_proxy_wins_as_in_curl(host: dict[str, str]) -> None:
    env = read_host_settings(host | {"no_proxy": "small", "NO_PROXY": "large"}).env
    assert env == {"no_proxy": "small", "NO_PROXY": "small"}


def test_an_empty_proxy_is_none(host: dict[str, str]) -> None:
    assert read_host_settings(host | {"http_proxy": ""}).env == {}


def test_pips_variables_are_carried(host: dict[str, str]) -> None:
    given = {
        "PIP_INDEX_URL": "https://pypi.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://a.example https://b.example",
        "PIP_TRUSTED_HOST": "pypi.example",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    assert read_host_settings(host | given).env == given


def test_what_leads_to_a_file_of_the_host_is_left_out(host: dict[str, str]) -> None:
    given = {
        "PIP_INDEX_URL": "file:///srv/wheels",
        "PIP_EXTRA_INDEX_URL": "/srv/wheels https://a.example file:///srv",
        "PIP_FIND_LINKS": "/srv/wheels",
        "PIP_CACHE_DIR": "/srv/cache",
    }
    assert read_host_settings(host | given).env == {"PIP_EXTRA_INDEX_URL": "https://a.example"}


def test_pips_files_are_read_in_pips_order(host: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "etc/pip.conf", "index-url = https://etc", "timeout = 1", "retries = 1")
    write(tmp_path / "home/.pip/pip.conf", "timeout = 2", "retries = 2")
    write(tmp_path / "home/.config/pip/pip.conf", "retries = 3", "proxy = http://user")
    write(tmp_path / "venv/pip.conf", "proxy = http://venv")
    assert read_host_settings(host).env == {
        "PIP_INDEX_URL": "https://etc",
        "PIP_TIMEOUT": "2",
        "PIP_RETRIES": "3",
        "PIP_PROXY": "http://venv",
    }


def test_a_variable_wins_over_pips_files(host: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "home/.config/pip/pip.conf", "index-url = https://file")
    env = read_host_settings(host | {"PIP_INDEX_URL": "https://variable"}).env
    assert env == {"PIP_INDEX_URL": "https://variable"}


def test_the_config_home_of_the_user_is_used(host: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "xdg/pip/pip.conf", "index-url = https://xdg")
    env = read_host_settings(host | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}).env
    assert env == {"PIP_INDEX_URL": "https://xdg"}


def test_a_file_that_is_named_stands_for_the_users_own(
    host: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path / "etc/pip.conf", "retries = 1", "timeout = 1")
    write(tmp_path / "home/.config/pip/pip.conf", "index-url = https://user")
    named = write(tmp_path / "named.conf", "timeout = 9")
    env = read_host_settings(host | {"PIP_CONFIG_FILE": str(named)}).env
    assert env == {"PIP_RETRIES": "1", "PIP_TIMEOUT": "9"}


def test_with_dev_null_pip_reads_no_file(host: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "etc/pip.conf", "index-url = https://etc")
    assert read_host_settings(host | {"PIP_CONFIG_FILE": "/dev/null"}).env == {}


def test_lists_on_several_lines_and_underscores_are_pips_way_too(
    host: dict[str, str], tmp_path: Path
) -> None:
    lines = ("extra_index_url =", "    https://a.example", "    https://b.example")
    write(tmp_path / "venv/pip.conf", *lines)
    env = read_host_settings(host).env
    assert env == {"PIP_EXTRA_INDEX_URL": "https://a.example https://b.example"}


@pytest.mark.parametrize("text", ["no section", "[global]\nindex-url", "[install]\ntimeout = 1"])
def test_a_file_that_pip_would_complain_about_is_left_to_pip(
    host: dict[str, str], tmp_path: Path, text: str
) -> None:
    write(tmp_path / "venv/pip.conf").write_text(text)
    assert read_host_settings(host) == HostSettings()


def test_a_percent_sign_is_only_that(host: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "venv/pip.conf", "index-url = https://user:p%40ss@example/simple")
    env = read_host_settings(host).env
    assert env == {"PIP_INDEX_URL": "https://user:p%40ss@example/simple"}


@pytest.mark.parametrize(
    "variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"]
)
def test_a_ca_bundle_goes_along_for_every_tool(
    host: dict[str, str], tmp_path: Path, variable: str
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    settings = read_host_settings(host | {variable: str(bundle)})
    assert settings.ca_bundle == bundle
    assert settings.env == {
        "SSL_CERT_FILE": INSIDE,
        "REQUESTS_CA_BUNDLE": INSIDE,
        "CURL_CA_BUNDLE": INSIDE,
        "PIP_CERT": INSIDE,
    }


def test_a_ca_bundle_of_pips_files_goes_along(host: dict[str, str], tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    write(tmp_path / "venv/pip.conf", f"cert = {bundle}")
    assert read_host_settings(host).ca_bundle == bundle


def test_a_ca_bundle_that_is_not_there_is_left_out(host: dict[str, str], tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", tmp_path):
        assert read_host_settings(host | {"SSL_CERT_FILE": str(path)}) == HostSettings()
