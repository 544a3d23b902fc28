from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockml_magic.errors import ConfigError
from dockml_magic.parcels import LOCAL, Parcel, join_lists, parse_copy, parse_in, parse_out


def parcel(source: str, target: str, *names: tuple[str, str]) -> Parcel:
    return Parcel(source=source, target=target, names=dict(names))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("tf1.10:summary torch1.1:text", [parcel("tf1.10", "torch1.1", ("summary", "text"))]),
        ("summary torch1.1:text", [parcel(LOCAL, "torch1.1", ("summary", "text"))]),
        ("tf1.10:summary text", [parcel("tf1.10", LOCAL, ("summary", "text"))]),
        ("tf1.10:summary local:", [parcel("tf1.10", LOCAL, ("summary", "summary"))]),
        ("tf1.10:a,b torch1.1:", [parcel("tf1.10", "torch1.1", ("a", "a"), ("b", "b"))]),
        ("tf1.10:a,b torch1.1:x,y", [parcel("tf1.10", "torch1.1", ("a", "x"), ("b", "y"))]),
        (
            "a,tf1.10:b,c,local:d torch1.1:",
            [
                parcel(LOCAL, "torch1.1", ("a", "a"), ("d", "d")),
                parcel("tf1.10", "torch1.1", ("b", "b"), ("c", "c")),
            ],
        ),
        ("python:3.11-slim:x ./docker:x", [parcel("python:3.11-slim", "./docker", ("x", "x"))]),
        ("tensorflow-gpu==1.10:x torch==1.1:", [parcel("tensorflow-gpu==1.10", "torch==1.1", ("x", "x"))]),
    ],
)  # fmt: skip
def test_what_a_copy_says(line: str, meant: list[Parcel]) -> None:
    assert parse_copy(*line.split()) == meant


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["text,ids=vocab"], [parcel(LOCAL, "torch1.1", ("text", "text"), ("vocab", "ids"))]),
        (["text=tf1.10:summary"], [parcel("tf1.10", "torch1.1", ("summary", "text"))]),
        (["tf1.10:a,b"], [parcel("tf1.10", "torch1.1", ("a", "a"), ("b", "b"))]),
        (
            ["tf1.10:a", "b"],
            [
                parcel("tf1.10", "torch1.1", ("a", "a")),
                parcel(LOCAL, "torch1.1", ("b", "b")),
            ],
        ),
        (["x=tensorflow==1.10:y"], [parcel("tensorflow==1.10", "torch1.1", ("y", "x"))]),
        (["torch==1.2:y"], [parcel("torch==1.2", "torch1.1", ("y", "y"))]),
        (["a, b = c"], [parcel(LOCAL, "torch1.1", ("a", "a"), ("c", "b"))]),
        (["a,a"], [parcel(LOCAL, "torch1.1", ("a", "a"))]),
        ([], []),
    ],
)
def test_what_goes_in(words: list[str], meant: list[Parcel]) -> None:
    assert parse_in(words, "torch1.1") == meant


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["logits"], [parcel("torch1.1", LOCAL, ("logits", "logits"))]),
        (["scores=logits,ids"], [parcel("torch1.1", LOCAL, ("logits", "scores"), ("ids", "ids"))]),
        (["tf1.4:text=summary,b"], [parcel("torch1.1", "tf1.4", ("summary", "text"), ("b", "b"))]),
        (
            ["a,tf1.4:a"],
            [parcel("torch1.1", LOCAL, ("a", "a")), parcel("torch1.1", "tf1.4", ("a", "a"))],
        ),
    ],
)
def test_what_comes_out(words: list[str], meant: list[Parcel]) -> None:
    assert parse_out(words, "torch1.1") == meant


@pytest.mark.parametrize(
    ("line", "options", "words"),
    [
        ("tf1.10:a, b, c torch1.1: --copy", (), ["tf1.10:a,b,c", "torch1.1:", "--copy"]),
        ("tf1.10 -i a, b -o c, d -e X=1, -w /", ("-i", "-o"),
         ["tf1.10", "-i", "a,b", "-o", "c,d", "-e", "X=1,", "-w", "/"]),
        ("-i", ("-i",), ["-i"]),
        ("", (), []),
    ],
)  # fmt: skip
def test_a_list_may_have_spaces_behind_its_commas(
    line: str, options: tuple[str, ...], words: list[str]
) -> None:
    assert join_lists(line.split(), options) == words


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("tf1.10:a,b", "torch1.1:x", r"2 values, 'torch1.1:x' has room for 1"),
        ("tf1.10:a", "torch1.1", r"'torch1.1' is not the name of a variable.*\n.*write 'torch1.1:'"),
        ("tf1.10:model.weights", "local:", r"Only variables are handed over"),
        ("tf1.10:", "local:", "(?i)a name is missing"),
        ("tf1.10:a,", "local:", "(?i)a name is missing"),
        (":a", "torch1.1:", "an environment is missing before the colon.\n.*'local'"),
        ("a", ":b", "an environment is missing before the colon"),
        ("tf1.10:a", "tf1.10:b", r"'a' would go from 'tf1.10' to 'tf1.10'.*\n.*b = a"),
        ("tf1.10:a", "tf1.10:a", "the same one"),
        ("a", "b", "from the notebook to the notebook"),
        ("tf1.10:a,tf1.4:a", "torch1.1:", "Two values would be called 'a' in 'torch1.1'"),
        ("tf1.10:a,b", "torch1.1:x,x", "Two values would be called 'x'"),
        ("tf1.10:a,a", "torch1.1:x,y", r"'a' would get two names in 'torch1.1'.*\n.*: y = x"),
        ("tf1.10:a", "torch1.1:class", "a word of Python's"),
        ("tf1.10:x=a", "torch1.1:", r"second word.*\n.*%docker_cp tf1.10:a torch1.1:x"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_copy_is_told(source: str, target: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_copy(source, target)
    caught.match(told)


def test_a_mistake_in_what_goes_in_or_out_is_told_with_how_to_write_it() -> None:
    with pytest.raises(ConfigError, match=r"-i text=tf1.10:summary"):
        parse_in(["tf1.10:text=summary"], "torch1.1")
    with pytest.raises(ConfigError, match=r"-o tf1.4:text=summary"):
        parse_out(["text=tf1.4:summary"], "torch1.1")
    with pytest.raises(ConfigError, match=r"Two values would be called 'x' in 'torch1.1'"):
        parse_in(["x=a", "x=tf1.10:b"], "torch1.1")
    with pytest.raises(ConfigError, match="the same one"):
        parse_in(["torch1.1:x"], "torch1.1")
    with pytest.raises(ConfigError, match="from the notebook to the notebook"):
        parse_out(["x"], LOCAL)


@pytest.mark.parametrize(
    ("parcel", "told"),
    [
        (parcel("a", "b", ("x", "y"), ("z", "z")), "a:x, z → b:y, z"),
        (parcel("a", "b", ("x", "x"), ("z", "z")), "a:x, z → b"),
        (parcel("a", LOCAL, ("x", "x")), "a:x → the notebook"),
        (parcel("a", LOCAL, ("x", "y")), "a:x → y"),
        (parcel(LOCAL, "b", ("x", "x")), "x → b"),
    ],
)
def test_a_parcel_is_told_as_one_would_type_it(parcel: Parcel, told: str) -> None:
    assert parcel.in_words == told


NAME = st.from_regex(r"[a-zé_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)
ENV = st.sampled_from(
    ["tf1.10", "torch1.1", "./docker", "a/b:1.1-py3", "localhost:5000/x:1", "tf==1.10", "mine"]
)


@given(
    ENV,
    st.lists(
        st.tuples(NAME, NAME), min_size=1, unique_by=(lambda pair: pair[0], lambda pair: pair[1])
    ),
    ENV,
)
def test_what_was_written_is_what_is_meant(
    source: str, names: list[tuple[str, str]], target: str
) -> None:
    olds, news = (",".join(part) for part in zip(*names, strict=True))
    if source == target:
        with pytest.raises(ConfigError, match="the same one"):
            parse_copy(f"{source}:{olds}", f"{target}:{news}")
        return
    meant = [Parcel(source=source, target=target, names=dict(names))]
    assert parse_copy(f"{source}:{olds}", f"{target}:{news}") == meant
    incoming = ",".join(f"{new}={source}:{old}" for old, new in names)
    assert parse_in([incoming], target) == meant
    outgoing = ",".join(f"{target}:{new}={old}" for old, new in names)
    assert parse_out([outgoing], source) == meant


SCRIBBLE = st.text(alphabet="ab1_.,:= é/\n'\0", max_size=20) | st.text(max_size=20)


@given(SCRIBBLE, SCRIBBLE)
def test_any_text_is_read_or_refused(one: str, other: str) -> None:
    for read in (
        lambda: parse_copy(one, other),
        lambda: parse_in([one, other], "tf1.10"),
        lambda: parse_out([one, other], "tf1.10"),
    ):
        try:
            parcels = read()
        except ConfigError:
            continue
        for parcel in parcels:
            assert parcel.source
            assert parcel.target
            assert parcel.source != parcel.target
            assert parcel.names
            assert all(name.isidentifier() for pair in parcel.names.items() for name in pair)
        targets = [(p.target, new) for p in parcels for new in p.names.values()]
        assert len(targets) == len(set(targets))
