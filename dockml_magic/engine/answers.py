"""What an engine's answers say, and how labels are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests


def refusal_in(response: requests.Response) -> str:
    """Return what an engine says that refuses a request."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text or f"unexpected HTTP status: {response.status_code}"


def label_filter(wanted: Mapping[str, str]) -> list[str]:
    """Return labels as the API takes them; "" stands for any value."""
    return [f"{label}={value}" if value else label for label, value in wanted.items()]


def references_of(image: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of an image, sorted."""
    return tuple(sorted(tag for tag in image.get("RepoTags") or () if "<" not in tag))


def mounts_in(found: Mapping[str, Any]) -> dict[str, str]:
    """Return what an engine says of a container's mounts."""
    return {m["Destination"]: m.get("Source", "") for m in found.get("Mounts") or ()}
