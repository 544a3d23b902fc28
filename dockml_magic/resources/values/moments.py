# -*- coding: utf-8 -*-
"""Dates, times and time zones on the wire: zones by name, with the offset beside."""

from __future__ import absolute_import, division, print_function, unicode_literals

import datetime
import importlib
import re
import sys

from . import plain
from .wire import INTS, TEXT, Builder, _must

_ZERO = datetime.timedelta(0)
# A name and no path: some libraries open what they are given.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,40}(/[A-Za-z0-9_+-]{1,40}){0,3}$")
_FAMILIES = ("zoneinfo", "dateutil", "pytz")


class FixedOffset(datetime.tzinfo):
    """What datetime.timezone is, for Pythons that have none."""

    def __init__(self, offset, name):
        self._offset = offset
        self._name = name

    def utcoffset(self, moment):
        return self._offset

    def tzname(self, moment):
        return str(self._name)

    def dst(self, moment):
        return _ZERO

    def __repr__(self):
        return str("FixedOffset(%r)" % self._name)

    def __eq__(self, other):
        return isinstance(other, FixedOffset) and self._offset == other._offset

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return hash(self._offset)


def microseconds(length):
    return (length.days * 86400 + length.seconds) * 10**6 + length.microseconds


# ---------------------------------------------------------------------------------------------
# Writing


def find_writer(value, kind):
    """Who writes a moment or a zone. Exact types only, but zones: a subclass is noted first."""
    if isinstance(value, datetime.tzinfo):
        return _write_zone
    return _WRITERS.get(kind)


def _write_timedelta(packer, value, number):
    return ["timedelta", [value.days, value.seconds, value.microseconds]]


def _write_date(packer, value, number):
    return ["date", [value.year, value.month, value.day]]


def _zone_items(packer, value, number):
    return [
        None
        if value.tzinfo is None
        else packer.element(value.tzinfo, number, plain.step(".tzinfo"))
    ]


def write_time(packer, value, number):
    detail = [value.hour, value.minute, value.second, value.microsecond, getattr(value, "fold", 0)]
    return ["time", detail, _zone_items(packer, value, number)]


def write_datetime(packer, value, number):
    offset = value.utcoffset()
    detail = [
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        getattr(value, "fold", 0),
        None if offset is None else microseconds(offset),
    ]
    return ["datetime", detail, _zone_items(packer, value, number)]


_WRITERS = {
    datetime.timedelta: _write_timedelta,
    datetime.date: _write_date,
    datetime.time: write_time,
    datetime.datetime: write_datetime,
}


def _write_zone(packer, value, number):
    return ["zone", zone_detail(packer, value)]


def zone_detail(packer, zone):
    """How a zone is called, and by whom."""
    name = name_of(zone)
    if name is not None:
        family = "zoneinfo" if hasattr(zone, "key") else type(zone).__module__.split(".")[0]
        return {"by": family, "name": name, "offset": None}
    try:
        offset = zone.utcoffset(None)
    except Exception:  # noqa: BLE001  (somebody else's)
        offset = None
    if offset is None:
        packer.note("time zone %s: its offset" % plain.short(zone))
        return {"by": "moment", "name": None, "offset": None}
    told = zone.tzname(None)
    told = None if told is None else plain.name_text(told)
    if told is not None and re.match("UTC([+-][0-9:]+)?$", told):
        told = None  # what any calls it
    return {"by": "fixed", "name": told, "offset": microseconds(offset)}


def is_name(text):
    return _NAME.match(text) is not None


def name_of(zone):
    """What others know a zone by, or None."""
    family = type(zone).__module__.split(".")[0]
    name = getattr(zone, "key", None)
    if name is None and family == "pytz":
        name = zone.zone
    elif name is None and family == "dateutil":
        name = _dateutil_name(zone)
    if name is None or not _NAME.match(plain.name_text(name)):
        return None
    return plain.name_text(name)


def _dateutil_name(zone):
    if type(zone).__name__ == "tzutc":
        return "UTC"
    path = getattr(zone, "_filename", None)
    if path is None:
        return None
    path = plain.name_text(path)
    return path.split("zoneinfo/", 1)[1] if "zoneinfo/" in path else path


# ---------------------------------------------------------------------------------------------
# Reading


def _read_zone(reader, node):
    return read_zone(reader, node[1])


def read_zone(reader, detail):
    """The zone; its name as text where it is unknown here; None for one that only a moment knew."""
    _must(
        isinstance(detail, dict) and set(detail) == {"by", "name", "offset"}, "a time zone is none"
    )
    name, offset = detail["name"], detail["offset"]
    _must(name is None or isinstance(name, TEXT) and len(name) <= 200, "a time zone is none")
    if detail["by"] == "moment":
        return None
    if detail["by"] == "fixed":
        return fixed(offset, name)
    _must(
        detail["by"] in _FAMILIES and name is not None and _NAME.match(name), "a time zone is none"
    )
    for family in (detail["by"],) + _FAMILIES:
        zone = _zone_of(family, name)
        if zone is not None:
            return zone
    if name == "UTC":
        return fixed(0, None)
    reader.note("time zone %s is not known here: its offset" % name)
    return name


def _zone_of(family, name):
    try:
        if family == "zoneinfo":
            return importlib.import_module("zoneinfo").ZoneInfo(name)
        if family == "pytz":
            return importlib.import_module("pytz").timezone(str(name))
        module = importlib.import_module("dateutil.tz")
        return module.tzutc() if name == "UTC" else module.gettz(str(name))
    except Exception:  # noqa: BLE001  (not here, or not in its data)
        return None


def fixed(offset, name):
    """A zone with one offset, in microseconds."""
    _must(type(offset) in INTS and -86400 * 10**6 < offset < 86400 * 10**6, "an offset is none")
    if sys.version_info < (3, 7):
        offset = offset // (60 * 10**6) * 60 * 10**6  # it knows whole minutes
    length = datetime.timedelta(microseconds=offset)
    if hasattr(datetime, "timezone"):
        if name is None:
            return datetime.timezone.utc if not offset else datetime.timezone(length)
        return datetime.timezone(length, name)
    if name is None:
        minutes = abs(offset) // (60 * 10**6)
        name = (
            "UTC"
            if not offset
            else "UTC%s%02d:%02d" % ("-" if offset < 0 else "+", minutes // 60, minutes % 60)
        )
    return FixedOffset(length, name)


def _zone_value(reader, node):
    items = node[2]
    _must(isinstance(items, list) and len(items) == 1, "a time zone is none")
    return reader.value(items[0])


def _read_time(reader, node):
    hour, minute, second, micro, fold = plain.small_ints(node[1], 5)
    value = datetime.time(hour, minute, second, micro)
    zone = _zone_value(reader, node)
    if isinstance(zone, datetime.tzinfo):
        value = value.replace(tzinfo=zone)
    return value.replace(fold=1) if fold == 1 and hasattr(value, "fold") else value


def _read_datetime(reader, node):
    detail = node[1]
    _must(isinstance(detail, list) and len(detail) == 9, "a datetime is none")
    numbers = plain.small_ints(detail[:8], 8)
    value = datetime.datetime(*numbers[:7])
    if numbers[7] == 1 and hasattr(value, "fold"):
        value = value.replace(fold=1)
    zone = _zone_value(reader, node)
    offset = detail[8]
    if offset is None and zone is None:
        return value
    _must(zone is None or isinstance(zone, (TEXT, datetime.tzinfo)), "a time zone is none")
    return in_zone(reader, value, zone, offset)


def in_zone(reader, value, zone, offset):
    """A naive datetime in its zone, if that has this offset then; else with the offset only."""
    if isinstance(zone, datetime.tzinfo):
        if offset is None:
            return value.replace(tzinfo=zone)
        _must(type(offset) in INTS and abs(offset) < 86400 * 10**6, "an offset is none")
        length = datetime.timedelta(microseconds=offset)
        if hasattr(zone, "localize"):  # pytz: a zone is one of many with one offset each
            found = zone.fromutc(value - length)
            if found.replace(tzinfo=None) != value:
                found = None
        else:
            found = value.replace(tzinfo=zone)
        if found is not None and found.utcoffset() == length:
            return found
        reader.note("time zone %s has other rules here: the offset" % plain.short(zone))
    return value.replace(tzinfo=fixed(offset, None))


BUILDERS = {
    "timedelta": Builder(lambda reader, node: datetime.timedelta(*plain.small_ints(node[1], 3))),
    "date": Builder(lambda reader, node: datetime.date(*plain.small_ints(node[1], 3))),
    "time": Builder(_read_time),
    "datetime": Builder(_read_datetime),
    "zone": Builder(_read_zone),
}
