"""Python's own types on the wire and back."""

import collections
import datetime
import decimal
import functools
import io
import math
import re
import threading
import types

import numpy
import pandas
import pytest

from dockml_magic.resources.values import Refused, pack, unpack


def over(value):
    return unpack(pack([("x", value)]).to_bytes()).values["x"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**63,
        -(10**6000),
        1.5,
        float("inf"),
        1e300,
        1 + 2j,
        "",
        "é😀\x00\n",
        "\ud83d\ude00",
        "x" * 5000,
        b"",
        b"\xff" * 5000,
        bytearray(b"ab"),
        [],
        [1, [2, []]],
        list(range(100)),
        [0.5] * 100,
        ["é\n", "\x00"] * 50,
        (1, "a"),
        {},
        {1: "a", ("b", 2): {}, None: 1.5},
        {1, "a", 2.5, (1, 2), frozenset({3})},
        frozenset({"a"}),
        range(5, 2**80, 7),
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter("abca"),
        collections.deque([1, 2], maxlen=2),
        decimal.Decimal("-1.50E+7"),
        datetime.date(2020, 2, 29),
        datetime.datetime(2020, 2, 29, 1, 2, 3, 4),  # noqa: DTZ001
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.time(1, 2, 3, 4),
        datetime.timedelta(-1, 2, 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_arrives_as_it_was(value):
    found = over(value)
    assert found == value
    assert type(found) is type(value)


def test_a_minus_zero_and_a_nan_arrive():
    assert math.copysign(1, over(-0.0)) == -1
    assert math.isnan(over(float("nan")))


def test_what_is_shared_or_contains_itself_arrives_so():
    inner = [1]
    inner.append(inner)
    values = unpack(pack([("a", inner), ("b", {"c": (inner,)})]).to_bytes()).values
    assert values["a"][1] is values["a"]
    assert values["b"]["c"][0] is values["a"]


def test_a_refusal_names_the_place_and_the_type_and_what_to_do():
    with pytest.raises(Refused) as refused:
        pack([("summary", {"model": [object]})])
    assert refused.value.message == (
        "summary['model'][0] is of type type, which cannot be handed over."
    )
    assert refused.value.hint
    assert str(refused.value) == f"{refused.value.message} {refused.value.hint}"


async def later():
    pass


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: lambda: 1, "Define it"),
        (threading.Lock, "Make one"),
        (lambda: threading.Thread(target=print), "Make one"),
        (lambda: functools.partial(print, 1), "Define it"),
        (lambda: types.SimpleNamespace(a=1), "vars("),
        (lambda: numpy.random.default_rng(1), "bit_generator.state"),
        (lambda: numpy.random.RandomState(1), "get_state()"),
        (lambda: pandas.DataFrame({"a": [1]}).dtypes, "str("),
        (lambda: {"a": 1}.keys(), "list("),
        (lambda: io.StringIO("a"), ".read()"),
        (lambda: re.compile("a"), ".pattern"),
    ],
)
def test_a_refusal_says_what_to_do_with_what_is_no_value(make, hint):
    with pytest.raises(Refused) as refused:
        pack([("x", make())])
    assert hint in refused.value.hint


def test_a_coroutine_is_to_be_awaited():
    coroutine = later()
    with pytest.raises(Refused) as refused:
        pack([("x", coroutine)])
    coroutine.close()
    assert "Await it" in refused.value.hint
