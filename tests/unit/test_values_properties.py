"""Any value made of Python's own types arrives as it was, with what it shares."""

import datetime
import string
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dockml_magic.resources.values import pack, unpack

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs", "L"]))
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.datetimes()
    | st.datetimes(timezones=st.timezones())
    | st.timedeltas(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=10,
)
anything = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=20,
)


@QUIET
@given(anything)
def test_a_value_arrives_as_it_was(value):
    payload = pack([("x", value)])
    assert payload.total == len(payload.to_bytes())
    found = unpack(payload.to_bytes())
    assert found.values == {"x": value}
    assert found.notes == payload.notes == []
    assert types_in(found.values["x"]) == types_in(value)


@QUIET
@given(st.lists(st.text() | st.integers() | st.floats(allow_nan=False), min_size=25, max_size=80))
def test_many_of_one_type_arrive_as_they_were(values):
    for only in (
        values,
        [x for x in values if type(x) is str],
        [x for x in values if type(x) is int],
    ):
        found = unpack(pack([("x", only)]).to_bytes()).values["x"]
        assert found == only
        assert list(map(type, found)) == list(map(type, only))


@QUIET
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=40))
def test_what_is_shared_or_goes_in_circles_arrives_so(edges):
    """Ten containers that hold each other at random."""
    nodes: list[Any] = [[] if k % 2 else {} for k in range(10)]
    for source, target, wrapped in edges:
        value = (nodes[target],) if wrapped else nodes[target]
        if source % 2:
            nodes[source].append(value)
        else:
            nodes[source][len(nodes[source])] = value
    found = unpack(pack([("x", nodes)]).to_bytes()).values["x"]
    assert shape(found) == shape(nodes)


@QUIET
@given(
    st.lists(
        st.tuples(st.text(string.ascii_letters, min_size=1), anything),
        unique_by=lambda pair: pair[0],
    )
)
def test_several_values_arrive_under_their_names(pairs):
    assert unpack(pack(pairs).to_bytes()).values == dict(pairs)


def test_the_zone_of_each_moment_is_kept():
    from zoneinfo import ZoneInfo

    moments = [
        datetime.datetime(2020, 10, 25, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin"))
        for fold in (0, 1)
    ]
    found = unpack(pack([("x", moments)]).to_bytes()).values["x"]
    assert [m.utcoffset() for m in found] == [m.utcoffset() for m in moments]
    assert all(m.tzinfo.key == "Europe/Berlin" for m in found)


def types_in(value: Any) -> Any:
    """The types of a value and its parts, in their order; of sets without one."""
    if isinstance(value, dict):
        return dict, [(types_in(k), types_in(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_in(part) for part in value]
    return type(value)


def shape(nodes: list[Any]) -> list[Any]:
    """Who holds whom, by place."""
    place = {id(node): k for k, node in enumerate(nodes)}

    def told(value: Any) -> Any:
        return ("tuple", place[id(value[0])]) if isinstance(value, tuple) else place[id(value)]

    return [
        [told(v) for v in (node.values() if isinstance(node, dict) else node)] for node in nodes
    ]
