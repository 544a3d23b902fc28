from __future__ import annotations

import random

import pytest

from dockml_magic import toml

VALUES = [
    "1",
    '"# no comment, [no.table] and a = 1"',
    "'''\n[no.table]\nkey = 1\n'''",
    '"""\nkey = 1\n\n# [a]\n"""',
    "[\n  1,\n\n  # key = 1\n  2,\n]",
    '{ x = 1, "y.z" = [1, 2] }',
    "2020-01-01T00:00:00",
]
KEYS = ["key", "other", "with-dash", "_under", '"quo.ted"', "'sin gle'", '"üñi"', "1234", '"a\\"b"']
SPACE = ["", "\n", "# a comment\n", "  # key = 1\n\n"]


def plain(key: str) -> str:
    return next(iter(toml.loads(f"{key} = 1")))


@pytest.mark.parametrize("seed", range(150))
def test_each_entry_of_a_text_is_found_at_its_line(seed: int) -> None:
    chance = random.Random(seed)
    end = chance.choice(["\n", "\r\n"])
    text, wanted = "", {}
    tables = chance.sample(KEYS, 3)
    for table in ["", *tables]:
        text += chance.choice(SPACE)
        above: tuple[str, ...] = ()
        if table:
            inner = chance.choice(["", chance.choice(KEYS)])
            above = (plain(table), plain(inner)) if inner else (plain(table),)
            wanted[above] = text.count("\n") + 1
            wanted[above[:1]] = text.count("\n") + 1
            text += f"[{table}{'.' + inner if inner else ''}]\n"
        for key in chance.sample([k for k in KEYS if table or k not in tables], 3):
            text += chance.choice(SPACE)
            dotted = chance.choice(["", chance.choice(KEYS)])
            for keys in {(plain(key),), (plain(key), *([plain(dotted)] if dotted else []))}:
                wanted[(*above, *keys)] = text.count("\n") + 1
            indent = chance.choice(["", "  ", "\t"])
            text += f"{indent}{key}{' . ' + dotted if dotted else ''} = {chance.choice(VALUES)}\n"
    text = text.replace("\n", end).removesuffix(chance.choice(["", end]))
    for keys, line in wanted.items():
        assert toml.line_of(text, keys) == line, (keys, text)
    assert toml.line_of(text, ("none of them",)) is None
    assert toml.line_of(text + "\n[", next(iter(wanted))) is None


def test_a_long_text_is_read_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"[table{n}]\nkey = 1\n" for n in range(2000))
    count = 0

    def loads(part: str) -> dict[str, object]:
        nonlocal count
        count += 1
        return original(part)

    original = toml.loads
    monkeypatch.setattr(toml, "loads", loads)
    assert toml.line_of(text, ("table1234", "key")) == 2470
    assert count < 20


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("environments", "x"), "environments.x"),
        (("images", "tf1.10", "a b"), 'images."tf1.10"."a b"'),
        (("",), '""'),
        (('a"b\\',), r'"a\"b\\"'),
    ],
)
def test_keys_are_written_as_toml_has_them(keys: tuple[str, ...], text: str) -> None:
    assert toml.dotted(keys) == text
    data = toml.loads(f"{text} = 1")
    for key in keys:
        data = data[key]
    assert data == 1
