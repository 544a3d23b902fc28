"""pandas on the wire and back."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pandas.testing as pdt
import pytest

from dockml_magic.resources.values import Refused, pack, unpack

N = 40


def over(value, **options):
    return unpack(pack([("x", value)]).to_bytes(), **options).values["x"]


COLUMNS = {
    "int": np.arange(N),
    "float": np.arange(N) / 3,
    "bool": np.arange(N) % 3 == 0,
    "str": [f"é{k}" for k in range(N)],
    "str with none": ["a", None] * (N // 2),
    "objects": pd.Series([None, "x", 1.5, [1]] * (N // 4), dtype=object),
    "texts": pd.Series(["x", None, float("nan"), "y\x00\n"] * (N // 4), dtype=object),
    "string": pd.Series(["a", None] * (N // 2), dtype="string"),
    "category": pd.Categorical(["u", None, "v", "u"] * (N // 4), categories=["v", "u", "w"], ordered=True),
    "day": pd.date_range("2020-01-01", periods=N),
    "day in s": pd.date_range("2020-01-01", periods=N).as_unit("s"),
    "zone": pd.date_range("2020-10-24", periods=N, freq="h", tz="Europe/Berlin"),
    "offset": pd.date_range("2020-10-24", periods=N, tz="+05:30"),
    "length": pd.to_timedelta(np.arange(N), unit="s"),
    "period": pd.period_range("2020-01", periods=N, freq="M"),
    "interval": pd.cut(np.arange(N), 3),
    "Int64": pd.Series([1, None] * (N // 2), dtype="Int64"),
    "boolean": pd.Series([True, None] * (N // 2), dtype="boolean"),
    "Float32": pd.Series([1.5, None] * (N // 2), dtype="Float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("length", [N, 3, 0])
def test_a_column_arrives_as_it_was(name, length):
    value = pd.DataFrame({name: COLUMNS[name]}).iloc[:length]
    found = over(value)
    pdt.assert_frame_equal(found, value)
    if value[name].dtype == object:
        # What is missing is the same None or nan.
        assert list(map(type, found[name])) == list(map(type, value[name]))
    pdt.assert_series_equal(over(value[name]), value[name])


def test_a_whole_table_arrives_as_it_was_and_its_numbers_are_views():
    value = pd.DataFrame(COLUMNS)
    packed = pack([("x", value)])
    found = unpack(packed.to_bytes())
    pdt.assert_frame_equal(found.values["x"], value)
    assert found.notes == packed.notes == []
    assert found.views
    private = over(value, copy=True)
    private.loc[0, "int"] = 7
    assert private.loc[0, "int"] == 7


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(3, 9, 2, name="n"),
        pd.Index(["a", "b", "c"], name="letter"),
        pd.Index(["a", 1, None], dtype=object),
        pd.Index([1.5, 2.5, 3.5]),
        pd.DatetimeIndex(["2020-01-01", "2020-01-05", "NaT"], name=("a", 1)),
        pd.date_range("2020-01-31", periods=3, freq="ME"),
        pd.timedelta_range("1h", periods=3, freq="h"),
        pd.CategoricalIndex(["u", "v", "u"]),
        pd.IntervalIndex.from_breaks([0, 1, 2, 3], closed="left"),
        pd.PeriodIndex(["2020Q1", "2020Q2", "2020Q4"], freq="Q"),
        pd.MultiIndex.from_tuples([("a", 1), ("b", None), ("a", 2)], names=["x", None]),
    ],
    ids=lambda index: type(index).__name__,
)
def test_an_index_arrives_as_it_was(index):
    found = over(index)
    pdt.assert_index_equal(found, index)
    assert getattr(found, "freq", None) == getattr(index, "freq", None)
    pdt.assert_frame_equal(
        over(pd.DataFrame({"a": [1, 2, 3]}, index=index)),
        pd.DataFrame({"a": [1, 2, 3]}, index=index),
    )
    across = pd.DataFrame([[1, 2.5, "x"]], columns=index)
    pdt.assert_frame_equal(over(across), across)


def test_tables_of_odd_shapes_arrive():
    for value in (
        pd.DataFrame(),
        pd.DataFrame(index=[1, 2]),
        pd.DataFrame(columns=["a", "b"]),
        pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]),
    ):
        pdt.assert_frame_equal(over(value), value)


def test_what_pandas_has_by_itself_arrives_as_it_was():
    values = [
        pd.Timestamp("2020-01-01 01:02:03.123456789"),
        pd.Timestamp("2020-10-25 01:30", tz="UTC").tz_convert("Europe/Berlin"),
        pd.Timestamp("9999-01-01").as_unit("s"),
        pd.Timedelta("1 days 00:00:01.000000001"),
        pd.Period("2020-01", "M"),
        pd.Interval(0, 1.5, closed="both"),
    ]
    for value in values:
        found = over(value)
        assert found == value
        assert type(found) is type(value)
        assert getattr(found, "tz", None) == getattr(value, "tz", None)
    assert over(pd.NaT) is pd.NaT
    assert over(pd.NA) is pd.NA
    array = pd.array([1, None])
    assert over(array).equals(array)


def test_shared_and_nested_objects_in_a_column_arrive():
    inner = {"a": [1]}
    value = pd.DataFrame({"o": [inner, inner, [pd.DataFrame({"b": [1]})]]})
    inner["table"] = value
    found = over(value)
    assert found["o"][0] is found["o"][1]
    assert found["o"][0]["table"] is found
    pdt.assert_frame_equal(found["o"][2][0], pd.DataFrame({"b": [1]}))


def test_a_refusal_names_the_column_and_the_row():
    with pytest.raises(Refused, match=r"^t\['model'\]\[1\] is of type object"):
        pack([("t", pd.DataFrame({"model": [1, object()]}))])


def test_without_pandas_a_table_is_a_dict_and_that_is_said():
    value = pd.DataFrame(
        {name: COLUMNS[name] for name in ("int", "str", "category", "zone", "Int64", "texts")}
    )
    code = (
        "import sys\n"
        "sys.modules['pandas'] = None\n"
        "from dockml_magic.resources.values import unpack\n"
        "found = unpack(sys.stdin.buffer.read())\n"
        "table = found.values['x']\n"
        "print([(name, list(column[:2])) for name, column in table.items()])\n"
        "print(found.notes)"
    )
    payload = pack([("x", value)]).to_bytes()
    ran = subprocess.run(
        [sys.executable, "-c", code], input=payload, capture_output=True, check=True, text=False
    )
    told = ran.stdout.decode()
    assert "('str', ['é0', 'é1'])" in told
    assert "('category', ['u', None])" in told
    assert "('Int64', [1, None])" in told
    assert "DataFrame: dict of its columns (no pandas here)" in told
