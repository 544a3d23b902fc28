from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dockml_magic.errors import ImageUnavailableError
from dockml_magic.pull import (
    LayerProgress,
    PullMeter,
    PullProgress,
    check_room,
    format_seconds,
    format_size,
    nearest_tags,
    pull_error,
    split_reference,
)

STREAMS = Path(__file__).parent / "streams"
FIRST, SECOND, THIRD, FOURTH, FIFTH = (
    "a850645e61b6",
    "39d4f2c0f8e2",
    "0dd1c092a975",
    "4d678aa44a11",
    "8723a0f8b5b7",
)
SIZES = {FIRST: 1149, SECOND: 2000807, THIRD: 3001117, FOURTH: 2000810, FIFTH: 110}


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> PullMeter:
    return PullMeter("me/mine:1", clock=clock)


def recorded(name: str) -> Iterator[dict[str, Any]]:
    """Give the events that Docker 20.10 sent."""
    for line in (STREAMS / f"{name}.jsonl").read_text().splitlines():
        yield json.loads(line)


def event(status: str, layer: str = FIRST, **detail: Any) -> dict[str, Any]:
    return {"status": status, "id": layer, "progressDetail": detail}


# --- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "host", "repository", "tag"),
    [
        ("python", "docker.io", "library/python", "latest"),
        ("python:3.11", "docker.io", "library/python", "3.11"),
        ("pytorch/pytorch:1.1", "docker.io", "pytorch/pytorch", "1.1"),
        ("docker.io/a/b", "docker.io", "a/b", "latest"),
        ("index.docker.io/a/b:1", "docker.io", "a/b", "1"),
        ("docker.io/python", "docker.io", "library/python", "latest"),
        ("nvcr.io/nvidia/tensorflow:20.06-tf1-py3", "nvcr.io", "nvidia/tensorflow", "20.06-tf1-py3"),
        ("localhost/a", "localhost", "a", "latest"),
        ("localhost:5000/a:1", "localhost:5000", "a", "1"),
        ("[::1]:5000/a/b:1", "[::1]:5000", "a/b", "1"),
        ("a/b@sha256:0123", "docker.io", "a/b", "sha256:0123"),
        ("a/b:1@sha256:0123", "docker.io", "a/b", "sha256:0123"),
    ],
)  # fmt: skip
def test_a_reference_is_taken_apart_with_dockers_defaults(
    reference: str, host: str, repository: str, tag: str
) -> None:
    name = split_reference(reference)
    assert (name.host, name.repository, name.tag) == (host, repository, tag)


# --- how far it is --------------------------------------------------------------------------------


def test_before_the_registry_answers_nothing_is_known(meter: PullMeter, clock: Clock) -> None:
    progress = meter.progress()
    assert progress == PullProgress(reference="me/mine:1")
    assert (progress.phase, progress.total, progress.fraction) == ("asking", None, None)
    assert str(progress) == "asking the registry"
    clock.now += 42
    assert str(meter.progress()) == "asking the registry (42 s)"


def test_a_recorded_pull_goes_from_nothing_to_all(meter: PullMeter) -> None:
    seen = []
    for found in recorded("five_layers"):
        meter.take(found)
        seen.append(meter.progress())
    phases = [progress.phase for progress in seen]
    assert list(dict.fromkeys(phases)) == ["asking", "downloading", "unpacking", "done"]
    assert [layer.id for layer in seen[-1].layers] == [FIRST, SECOND, THIRD, FOURTH, FIFTH]
    assert {layer.phase for layer in seen[-1].layers} == {"done"}
    assert seen[-1].total == seen[-1].done == sum(SIZES.values())
    assert all(a.done <= b.done for a, b in itertools.pairwise(seen))
    unpacking = [progress.fraction or 0.0 for progress in seen if progress.phase == "unpacking"]
    assert unpacking == sorted(unpacking)
    assert unpacking[-1] == 1.0


def test_the_total_is_unknown_until_each_layer_has_said_its_size(meter: PullMeter) -> None:
    meter.take(event("Pulling fs layer"))
    meter.take(event("Pulling fs layer", SECOND))
    meter.take(event("Downloading", current=100, total=1000))
    progress = meter.progress()
    assert (progress.done, progress.total, progress.fraction) == (100, None, None)
    assert not progress.is_settled
    assert str(progress) == "100 B of more than 1.0 kB"
    meter.take(event("Downloading", SECOND, current=500, total=5000))
    progress = meter.progress()
    assert (progress.done, progress.total, progress.fraction) == (600, 6000, 0.1)
    assert progress.is_settled


def test_with_the_manifest_the_total_is_known_at_once(meter: PullMeter) -> None:
    meter.expect(SIZES)
    assert meter.progress().total == sum(SIZES.values())
    assert not meter.progress().is_settled  # what is here already is not said yet
    for i, layer in enumerate(SIZES):
        meter.take(event("Already exists" if i < 2 else "Pulling fs layer", layer))
    progress = meter.progress()
    assert progress.is_settled
    assert progress.total == SIZES[THIRD] + SIZES[FOURTH] + SIZES[FIFTH]
    assert [str(layer) for layer in progress.layers[:3]] == [
        "here already",
        "here already",
        "waiting, 3.0 MB",
    ]


@pytest.mark.parametrize("before", range(0, 43, 3))
def test_a_manifest_that_comes_late_changes_nothing_but_what_was_unknown(
    meter: PullMeter, before: int
) -> None:
    events = list(recorded("five_layers"))
    for found in events[:before]:
        meter.take(found)
    was = meter.progress().done
    meter.expect(SIZES)
    assert meter.progress().total == sum(SIZES.values())
    assert meter.progress().done == was
    for found in events[before:]:
        meter.take(found)
    progress = meter.progress()
    assert progress.done == progress.total == sum(SIZES.values())


def test_a_download_that_was_cut_goes_on_where_it_was(meter: PullMeter) -> None:
    words = []
    done = []
    for found in recorded("cut_twice"):
        meter.take(found)
        progress = meter.progress()
        [third] = [layer for layer in progress.layers if layer.id == THIRD] or [None]
        if third and third.retry_in:
            words.append(str(third))
        if third:
            done.append(third.done)
    assert words[0] == "failed, next try in 5 s"
    assert len(set(words)) == 10
    assert done == sorted(done)
    assert done[-1] == SIZES[THIRD]


def test_an_image_that_is_up_to_date_downloads_nothing(meter: PullMeter) -> None:
    meter.expect(SIZES)
    meter.take({"status": "Pulling from me/mine", "id": "1"})
    meter.take({"status": "Status: Image is up to date for me/mine:1"})
    progress = meter.progress()
    assert progress.is_complete
    assert (progress.done, progress.total, progress.fraction) == (0, 0, 1.0)
    assert str(progress) == "nothing to download in 0.0 s"


def test_containerds_seconds_of_unpacking_are_no_bytes(meter: PullMeter) -> None:
    meter.take(event("Downloading", current=1000, total=1000))
    meter.take(event("Download complete"))
    meter.take(event("Extracting", current=7, units="s"))
    [layer] = meter.progress().layers
    assert (layer.phase, layer.unpacked, layer.total) == ("unpacking", 0, 1000)


def test_what_is_no_layer_is_none(meter: PullMeter) -> None:
    meter.take({"status": "Pulling from me/mine", "id": "1"})
    meter.take({"status": "something of a registry", "id": "WARNING"})
    meter.take({"status": "Digest: sha256:0123"})
    meter.take({})
    assert meter.progress().layers == ()


# --- speed ----------------------------------------------------------------------------------------


@pytest.fixture
def loads(meter: PullMeter, clock: Clock) -> Callable[[float, int], PullProgress]:
    """Give a function that lets time pass and bytes come: ``loads(seconds, bytes)``."""
    arrived = 0

    def load(seconds: float, size: int) -> PullProgress:
        nonlocal arrived
        arrived += size
        clock.now += seconds
        meter.take(event("Downloading", current=arrived, total=100_000_000))
        return meter.progress()

    return load


def test_the_speed_is_that_of_the_last_seconds(loads: Callable[[float, int], PullProgress]) -> None:
    assert loads(0, 0).speed is None
    for _ in range(10):
        progress = loads(1, 1_000_000)
    assert progress.speed == pytest.approx(1_000_000)
    assert progress.seconds_left == pytest.approx(90)
    assert str(progress) == "10 MB of 100 MB, 1.0 MB/s, 1 min 30 s left"
    for _ in range(6):
        progress = loads(1, 3_000_000)
    assert progress.speed == pytest.approx(3_000_000)


def test_a_download_that_stands_still_says_so(loads: Callable[[float, int], PullProgress]) -> None:
    loads(0, 1_000_000)
    for _ in range(7):
        progress = loads(1, 0)
    assert progress.speed == 0
    assert progress.seconds_left is None
    assert str(progress) == "1.0 MB of 100 MB, nothing comes"


def test_a_failed_download_says_when_it_is_tried_again(
    loads: Callable[[float, int], PullProgress], meter: PullMeter
) -> None:
    loads(0, 1_000_000)
    loads(1, 1_000_000)
    meter.take(event("Retrying in 5 seconds"))
    assert str(meter.progress()) == "2.0 MB of 100 MB, the registry failed, next try in 5 s"


def test_while_it_is_unpacked_layers_are_counted(meter: PullMeter) -> None:
    meter.expect({FIRST: 1000, SECOND: 3000})
    for layer in (FIRST, SECOND):
        meter.take(event("Download complete", layer))
    meter.take(event("Pull complete"))
    progress = meter.progress()
    assert str(progress) == "4.0 kB here, unpacking: 1 of 2 layers"
    assert progress.fraction == 0.25


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "0 B"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_960, "10 kB"),
        (999_600, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_are_in_powers_of_1000(size: float | None, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (3661, "1 h 1 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# --- room -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "says"), [(3000, ""), (2999, "may not fit"), (2000, "may not")])
def test_a_disk_with_little_room_is_told(free: int, says: str) -> None:
    layer = LayerProgress(id=FIRST, total=1000)
    progress = PullProgress(reference="me/mine:1", layers=(layer,))
    warning = check_room(progress, free, Path("/var/lib/docker"))
    assert says in warning
    assert bool(says) == bool(warning)


def test_a_disk_without_room_is_an_error_with_both_figures() -> None:
    layer = LayerProgress(id=FIRST, total=1_000_000_000)
    progress = PullProgress(reference="me/mine:1", layers=(layer,))
    with pytest.raises(ImageUnavailableError, match=r"2\.0 GB unpacked, and 1\.5 GB") as caught:
        check_room(progress, 1_500_000_000, Path("/var/lib/docker"))
    assert "docker image prune" in caught.value.hint
    assert "/var/lib/docker" in caught.value.message


# --- why it failed --------------------------------------------------------------------------------

HUB = "tensorflow/tensorflow:1.10.0"
OTHER = "registry.example.com:5443/team/image:1"
PLATFORM = "no matching manifest for linux/arm64/v8 in the manifest list entries"


@pytest.mark.parametrize(
    ("said", "reason", "hint"),
    [
        # Docker 20.10 said these in the tests of tests/integration/test_pull.py.
        ("manifest for {} not found: manifest unknown: manifest unknown", "has no tag '", "spelling"),
        ("manifest unknown", "has no tag '", "spelling"),
        ("name unknown", "does not show it to you", "docker login"),
        ("unauthorized", "does not show it to you", "docker login"),
        ("denied", "does not show it to you", "docker login"),
        ('Head "http://x/v2/y/manifests/1": no basic auth credentials', "not show it", "docker login"),
        ("toomanyrequests: You have reached your pull rate limit.", "rate limit", "docker login"),
        ("received unexpected HTTP status: 500 Internal Server Error", "failed: received", "later"),
        ("received unexpected HTTP status: 502 Bad Gateway", "failed: received", "later"),
        (
            "error pulling image configuration: download failed after attempts=6: received unexpected "
            "HTTP status: 500 Internal Server Error",
            "failed: error pulling",
            "later",
        ),
        (
            "error parsing HTTP 403 response body: invalid character '<' looking for beginning of "
            'value: "<html>Blocked by company policy</html>"',
            "a proxy before it",
            "ask for an exception",
        ),
        ("unknown blob", "failed: unknown blob", "later"),
        ("unexpected EOF", "does not reach", "HTTPS_PROXY"),
        (
            'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on '
            "10.0.0.53:53: dial udp 10.0.0.53:53: connect: network is unreachable",
            "does not reach",
            "HTTPS_PROXY",
        ),
        ('Get "https://x:5/v2/": dial tcp 10.9.9.1:5: connect: connection refused', "reach", "PROXY"),
        ('Get "https://x/v2/": x509: certificate signed by unknown authority', "not trust", "certificate"),
        (
            'Get "https://x/v2/": tls: failed to verify certificate: x509: certificate signed by unknown '
            "authority",
            "not trust",
            "certificate",
        ),
        ('Get "https://x/v2/": tls: first record does not look like a TLS handshake', "plain HTTP", "insecure"),
        (
            'Get "https://x/v2/": http: server gave HTTP response to HTTPS client',
            "plain HTTP",
            '"insecure-registries": \\["',
        ),
        (PLATFORM, "not built for this engine's machine: no matching", "docker manifest inspect"),
        # These are from documents.
        (
            "pull access denied for x, repository does not exist or may require 'docker login': denied: "
            "requested access to the resource is denied",
            "does not show it to you",
            "docker login",
        ),
        (
            "toomanyrequests: You have reached your unauthenticated pull rate limit. "
            "https://www.docker.com/increase-rate-limit",
            "rate limit",
            "docker login",
        ),
        ('Get "https://registry-1.docker.io/v2/": net/http: TLS handshake timeout', "reach", "PROXY"),
        (
            'Get "https://registry-1.docker.io/v2/": net/http: request canceled while waiting for '
            "connection (Client.Timeout exceeded while awaiting headers)",
            "does not reach",
            "HTTPS_PROXY",
        ),
        (
            "Get \"https://x/v2/\": x509: certificate has expired or is not yet valid: current time is after",
            "clock",
            "date",
        ),
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "disk is full", "prune"),
        (
            "failed to register layer: Error processing tar file(exit status 1): write /x: no space left "
            "on device",
            "disk is full",
            "data-root",
        ),
        ("invalid reference format", "invalid reference format", "small letters"),
        (
            "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 "
            "support is disabled by default",
            "before 2017",
            "newer tag",
        ),
        ("something new", "something new", "journalctl"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reference", [HUB, OTHER])
def test_what_the_engine_says_of_a_pull_comes_with_its_cure(
    reference: str, said: str, reason: str, hint: str
) -> None:
    error = pull_error(reference, said.format(reference) if "{}" in said else said)
    assert isinstance(error, ImageUnavailableError)
    assert error.reference == reference
    assert f"'{reference}'" in error.message
    assert reason in error.message
    assert re.search(hint, error.hint)
    assert 2 <= len(str(error).splitlines()) <= 3
    assert not {"{", "}"} & set(str(error))


def test_a_mirror_is_spoken_of_for_docker_hub_only() -> None:
    said = 'Get "https://x/v2/": net/http: TLS handshake timeout'
    assert '"registry-mirrors": ["https://' in pull_error(HUB, said).hint
    assert "mirror" not in pull_error(OTHER, said).hint


def test_the_registry_to_log_in_to_is_named() -> None:
    assert pull_error(OTHER, "denied").hint.endswith("docker login registry.example.com:5443")
    assert pull_error(HUB, "denied").hint.endswith("docker login")


def test_the_place_of_a_registrys_certificate_is_named() -> None:
    said = "x509: certificate signed by unknown authority"
    assert "/etc/docker/certs.d/registry.example.com:5443/ca.crt" in pull_error(OTHER, said).hint
    assert "update-ca-certificates" in pull_error(HUB, said).hint


def test_an_unknown_tag_comes_with_the_nearest() -> None:
    tags = ["1.10.0-py3", "1.10.1", "latest", "1.10.0-gpu-py3", "2.0.0"]
    error = pull_error(HUB, "manifest unknown", tags)
    assert error.hint.startswith("The nearest tags are: 1.10.0-gpu-py3, 1.10.0-py3, 1.10.1")
    assert "latest" not in error.hint


def test_tags_that_go_on_as_the_wanted_one_come_first() -> None:
    assert nearest_tags("1.1", ["1.11", "1.1.0-cuda10", "1.10"])[0] == "1.1.0-cuda10"
    assert nearest_tags("1.1", []) == []
