"""What an engine and NVIDIA's toolkit say that is wrong, as our errors: what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dockml_magic.engine.answers import refusal_in
from dockml_magic.engine.contract import NotStartableError
from dockml_magic.errors import (
    ContainerNameTakenError,
    EngineError,
    EngineUnreachableError,
    GpuUnavailableError,
    ImageUnavailableError,
    PortTakenError,
)

if TYPE_CHECKING:
    import requests


def sentence(text: str) -> str:
    """Return the engine's text as one line."""
    return " ".join(str(text).split()).rstrip(".") + "."


def error_of(text: str, reference: str, name: str) -> EngineError:
    """Return our error for what the engine said."""
    said = sentence(text)
    lower = said.lower()
    if gpu_error := _gpu_error_of(said):
        return gpu_error
    if re.search(
        r"exec: .*(?:no such file or directory|permission denied)|executable file .*not found",
        lower,
    ):
        return NotStartableError(said)
    if match := re.search(
        r"(?:bind for|bind host port(?: for)?|listen tcp\d?) (\S*?:\d+)[:/ ].*(?:allocated|in use)",
        lower,
    ):
        return PortTakenError(
            f"The host port {match[1]} is in use already.",
            hint="Choose another host port: -p HOST:CONTAINER, or -p CONTAINER for any free one.",
        )
    if re.search(r"name \S+ is already in use", lower):
        return ContainerNameTakenError(
            f"Another container is called '{name}' already.",
            hint=f"Choose another --name, or remove it: docker rm -f {name}",
        )
    if re.search(r"network \S+ not found", lower):
        return EngineError(said, hint="See the networks with: docker network ls")
    if "no such image" in lower or "not found" in lower:
        return ImageUnavailableError(
            reference or "?", said, hint=f"Fetch it: docker pull {reference or 'REFERENCE'}"
        )
    if "unable to find user" in lower or "unable to find group" in lower:
        return EngineError(
            said, hint="Use numbers, or a name that is in the image: --user 1000:1000."
        )
    if "invalid container name" in lower:
        return EngineError(
            said, hint="Choose another --name: two or more letters, digits and _ . - only."
        )
    return EngineError(
        f"The Docker engine refused: {said}",
        hint="If it is about one of the options, correct it; else the engine's own log says more.",
    )


_NO_GPU = "Without GPU: --gpus none."

_GPU_ERRORS = (
    (
        r"could not select device driver|failed to discover GPU|AMD CDI spec not found"
        r"|unknown or invalid runtime name: nvidia|unknown runtime specified nvidia",
        "The engine cannot give GPUs to containers: its NVIDIA part is not installed.",
        "Ask for nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker` "
        f"and a restart of Docker. {_NO_GPU}",
    ),
    (
        r"unresolvable CDI devices? \S+|CDI device injection failed",
        "The engine does not know the GPU by CDI",
        "See the GPUs with: nvidia-ctk cdi list. If there are none, ask for: "
        f"nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml. {_NO_GPU}",
    ),
    (
        r"nvidia-container-.*unknown device",
        "There is no such GPU, or MIG instance of one",
        "See them with: nvidia-smi -L. Their indices and UUIDs go into --gpus device=; --gpus auto chooses.",
    ),
    (
        r"nvidia-container-.*\bmig\b",
        "The NVIDIA container toolkit refused a MIG instance",
        "See the instances with: nvidia-smi -L, and ask for one: --gpus device=MIG-…",
    ),
    (
        r"driver/library version mismatch",
        "The NVIDIA driver was updated, and the old one still runs.",
        f"Ask for a restart of this machine, or for the driver's modules to be loaded anew. {_NO_GPU}",
    ),
    (
        r"driver not loaded|libnvidia-ml|no adapters were found|load library failed|nvml error",
        "The NVIDIA driver does not run on the engine's machine",
        f"Check it with: nvidia-smi. {_NO_GPU}",
    ),
    (
        r"nvidia-container-(?:cli|runtime)|nvidia-ctk|nvidia-cdi-hook",
        "The NVIDIA container toolkit refused",
        f"Check the driver with: nvidia-smi. {_NO_GPU}",
    ),
)
"""What the engine and NVIDIA's toolkit say, and what we do; where ours is no whole sentence, theirs follows.

From moby's daemon/errors.go and daemon/devices_*.go, libnvidia-container's src/*.c, and the threads
docker/cli#2425, NVIDIA/nvidia-docker#1034 and #1442, FasterLivePortrait#116, fireshare#689.
"""


def raise_refusal(response: requests.Response, reference: str = "") -> None:
    """Raise our error where an engine refuses a request."""
    if not response.ok:
        raise error_of(refusal_in(response), reference, "")


def _gpu_error_of(said: str) -> GpuUnavailableError | None:
    """Return our error where a text of the engine is about GPUs."""
    if match := re.search(r"unsatisfied condition: cuda ?>= ?(\d+\.\d+)", said, re.IGNORECASE):
        from dockml_magic.fit import oldest_driver  # here: `%load_ext` does without it

        needed = oldest_driver(match[1])
        return GpuUnavailableError(
            f"The NVIDIA driver is older than this image's CUDA {match[1]} asks for.",
            hint=f"A driver of {needed} or newer runs it, or choose an image with an older CUDA. The check can "
            f"be skipped, and the CUDA may work: -e NVIDIA_DISABLE_REQUIRE=1. {_NO_GPU}",
        )
    if "unsatisfied condition" in said or "please update your driver" in said:
        return GpuUnavailableError(
            f"The NVIDIA driver or GPU is not what this image asks for: {said}",
            hint=f"Choose an image with an older CUDA, or ask for a newer driver. {_NO_GPU}",
        )
    for pattern, message, hint in _GPU_ERRORS:
        if re.search(pattern, said, re.IGNORECASE):
            whole = message.endswith(".")
            return GpuUnavailableError(message if whole else f"{message}: {said}", hint=hint)
    return None


def unreachable(endpoint: str, error: Exception) -> EngineUnreachableError:
    """Return why no engine answers, and what to do."""
    text = str(error)
    path = Path(urlsplit(endpoint).path)
    if "Permission denied" in text or "PermissionError" in text:
        return EngineUnreachableError(
            f"You may not use the Docker engine: no permission for {path}.",
            hint="Ask your administrator to run: sudo usermod -aG docker $USER\n"
            "Then log out and in again (a new login is needed), and restart Jupyter.",
        )
    if endpoint.startswith("unix:") and not path.exists():
        return EngineUnreachableError(
            f"No Docker engine here: {path} does not exist.",
            hint="Install one (Debian, Ubuntu: sudo apt-get install docker.io) or start it "
            "(sudo systemctl start docker). Another engine: --engine, or DOCKER_HOST.",
        )
    if "Connection refused" in text or "ConnectionRefusedError" in text:
        return EngineUnreachableError(
            f"The Docker engine is not running: {endpoint} refuses connections.",
            hint="Start it: sudo systemctl start docker",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        found = re.search(r"certificate verify failed: ([^(\")]+)", text)
        return EngineUnreachableError(
            f"The certificate of the Docker engine at {endpoint} is not one to trust"
            f"{': ' + found.group(1).strip() if found else ''}.",
            hint="ca.pem in the folder of DOCKER_CERT_PATH (~/.docker) has to be the authority that signed it.",
        )
    if "Read timed out" in text:
        return EngineUnreachableError(
            f"The Docker engine at {endpoint} takes requests and does not answer them: it hangs.",
            hint="What runs goes on. Look after it: systemctl status docker; sudo journalctl -u docker. If it does "
            "not recover: sudo systemctl restart docker, which ends containers.",
        )
    return EngineUnreachableError(
        f"The Docker engine does not answer at {endpoint}: {sentence(text)}",
        hint="Is it running? Check with: docker version",
    )
