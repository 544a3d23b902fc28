"""Where the engine is, and whether that is on this system."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dockml_magic.errors import EngineUnreachableError

if TYPE_CHECKING:
    import docker


def find_endpoint(name: str | None) -> tuple[str, str]:
    """Return where the engine is, and what says so: an endpoint as given, the environment, or a context.

    Raises
    ------
    EngineUnreachableError
        If there is no such context.
    """
    from docker import ContextAPI
    from docker.context.config import get_current_context_name

    if name and "://" in name:
        return name, "--engine"
    if name is None and (host := os.environ.get("DOCKER_HOST")):
        return host, "DOCKER_HOST"
    wanted = name or os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    context = ContextAPI.get_context(wanted)
    if context is None:
        known = ", ".join(f"'{c.name}'" for c in ContextAPI.contexts())
        raise EngineUnreachableError(
            f"There is no Docker context called '{wanted}'.", hint=f"Known: {known}."
        )
    endpoint = str(context.Host or "unix:///var/run/docker.sock")
    said_by = "" if wanted == "default" else f"Docker context '{wanted}'"
    return endpoint.replace("http+unix://", "unix://"), said_by


def tls_settings(name: str | None) -> dict[str, Any]:
    """Return the TLS settings of the environment, as docker.from_env reads them."""
    if name is not None or not os.environ.get("DOCKER_TLS_VERIFY"):
        return {}
    from docker.utils import kwargs_from_env

    tls = kwargs_from_env().get("tls")
    if tls is None:
        return {}
    plain = tls.configure_client

    def configure(client: docker.APIClient) -> None:
        plain(client)
        merge = client.merge_environment_settings

        def merge_settings(
            url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
        ) -> Mapping[str, Any]:
            # requests takes REQUESTS_CA_BUNDLE, a company's authorities for the web, before the engine's own.
            own = client.verify if verify is None else verify
            return merge(url, proxies, stream, own, cert)

        vars(client)["merge_environment_settings"] = merge_settings

    vars(tls)["configure_client"] = configure
    return {"tls": tls}


def does_share_files(endpoint: str, info: Mapping[str, Any]) -> bool:
    """Tell whether the engine runs on this very system, so that our paths are its paths.

    Docker Desktop and Colima answer on a local socket too, from inside a virtual machine with a kernel
    and a name of its own; a notebook in a container that was given the socket has another name.
    """
    return (
        endpoint.startswith("unix:")
        and "Docker Desktop" not in str(info.get("OperatingSystem"))
        and info.get("KernelVersion") in (platform.release(), None)
        and info.get("Name") in (socket.gethostname(), platform.node())
    )
