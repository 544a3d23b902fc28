from __future__ import annotations

import random
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dockml_magic.errors import ConfigError
from dockml_magic.requirements import (
    Extras,
    from_folder,
    hide_private,
    parse_packages,
    read_extras,
    why_pip_failed,
)

FOLDER = Path("/project")


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("pandas", ("pandas",)),
        (" pandas==0.24 ", ("pandas==0.24",)),
        ("pandas==0.24 numpy<1.17", ("pandas==0.24", "numpy<1.17")),
        ("pandas==0.24,numpy", ("pandas==0.24", "numpy")),
        ("pandas, numpy , scipy", ("pandas", "numpy", "scipy")),
        ("pandas>=0.24,<0.25 numpy", ("pandas>=0.24,<0.25", "numpy")),
        ("pandas >= 0.24, < 0.25", ("pandas >= 0.24, < 0.25",)),
        ("numpy >= 1, < 2, pandas", ("numpy >= 1, < 2", "pandas")),
        ("requests[socks,security]==2.0", ("requests[socks,security]==2.0",)),
        ("enum34; python_version < '3.4'", ("enum34; python_version < '3.4'",)),
        (
            "mine @ https://example.com/mine-1-py3-none-any.whl",
            ("mine @ https://example.com/mine-1-py3-none-any.whl",),
        ),
        ("-r requirements.txt", ("-r requirements.txt",)),
        ("--requirement=more/requirements.txt", ("-r more/requirements.txt",)),
        ("-rrequirements.txt", ("-r requirements.txt",)),
        ("-r a folder/of mine.txt", ("-r a folder/of mine.txt",)),
    ],
)
def test_what_with_takes(text: str, entries: tuple[str, ...]) -> None:
    assert parse_packages(text) == entries


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("", "nothing is named", "--with pandas==0.24"),
        (" , ", "nothing is named", "--with pandas==0.24"),
        ("pandas=0.24", "--with pandas=0.24: not a requirement", "Did you mean pandas==0.24?"),
        ("pandas==", "--with pandas==: not a requirement", "Write it as pip does"),
        ("pandas 0.24", "not a requirement", "Write it as pip does"),
        ("--index-url=http://x/", "this option of pip cannot stand here", "PIP_INDEX_URL"),
        ("-e .", "this option of pip", "PIP_INDEX_URL"),
        ("./mine.whl", "a path of this machine", "Dockerfile"),
        ("mine-1.0-py3-none-any.whl", "a path of this machine", "Dockerfile"),
        ("https://ann:secret@x/y z", r"https://\*\*\*\*@x/y: not a requirement", "as pip does"),
        ("pandas;rm -rf /", "not a requirement", "as pip does"),
        ("$(id)", "not a requirement", "as pip does"),
        ("pandas\n--index-url http://x/", "not a requirement|option of pip", ""),
    ],
)
def test_what_with_refuses(text: str, problem: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_packages(text)
    assert hint in caught.value.hint


def test_any_mix_of_requirements_is_taken_apart_as_it_was_put_together() -> None:
    chance = random.Random(5)
    names = ["pandas", "numpy", "a.b-c", "X_1", "requests[socks, security]", "py3-thing"]
    versions = [
        "",
        "==1.0",
        ">=1,<2",
        " >= 1, < 2",
        "~=1.4.2",
        "!=1.5,==1.*",
        "==2.0+cu100",
        "<2rc1",
    ]
    for _ in range(2000):
        wanted = tuple(
            chance.choice(names) + chance.choice(versions) for _ in range(chance.randint(1, 5))
        )
        text = wanted[0]
        for part in wanted[1:]:
            text += chance.choice([" ", ",", ", ", "  ", " , "]) + part
        assert parse_packages(text) == wanted, text
        assert all(Requirement(part) for part in parse_packages(text))


def extras(files: dict[str, str], *packages: str) -> Extras:
    def read(path: Path) -> str:
        name = str(path.relative_to(FOLDER))
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    return read_extras(packages or ("-r requirements.txt",), FOLDER, read)


def test_a_file_is_read_as_pip_reads_it() -> None:
    found = extras(
        {
            "requirements.txt": "# ours\npandas==0.24  # why\n\nnumpy \\\n  --hash=sha256:00 \\\n"
            "  --hash=sha256:11\n--extra-index-url https://x/simple\n-r more/two.txt\n-c held.txt\n"
            "mine @ https://x/mine.zip#egg=mine\n",
            "more/two.txt": "scipy\n-r three.txt\npandas==0.24",
            "more/three.txt": "tqdm",
            "held.txt": "six==1.0\n# no\nnumpy<1.17",
        },
        "first",
        "-r requirements.txt",
    )
    assert found.lines == (
        "--extra-index-url https://x/simple",
        "first",
        "pandas==0.24",
        "numpy --hash=sha256:00 --hash=sha256:11",
        "scipy",
        "tqdm",
        "mine @ https://x/mine.zip#egg=mine",
    )
    assert found.constraints == ("six==1.0", "numpy<1.17")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "'/project/requirements.txt' cannot be read: No such file"),
        ({"requirements.txt": "-r gone.txt"}, "'/project/gone.txt' cannot be read"),
        ({"requirements.txt": "a\n\n-e ."}, r"/project/requirements\.txt:3: '-e \.' is of this machine"),
        ({"requirements.txt": "a \\\n--hash=x\n./b.whl"}, r"txt:3: '\./b\.whl' is of this machine"),
        ({"requirements.txt": "-f wheels"}, "txt:1: '-f wheels' is of this machine"),
        ({"requirements.txt": "-r requirements.txt"}, "names itself"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told(files: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        extras(files)


def test_a_package_in_the_place_of_a_file_is_told_where_it_belongs() -> None:
    with pytest.raises(ConfigError, match=r"cannot be read") as told:
        extras({}, "-r tabulate==0.9.0")
    assert 'with = ["tabulate==0.9.0"]' in told.value.hint


def test_where_files_lie_is_said_with_links_followed(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("up.txt", "absolute.txt", "linked.txt"):
        (tmp_path / name).write_text(name.removesuffix(".txt"))
    (folder / "link.txt").symlink_to("../linked.txt")
    (folder / "all.txt").write_text(f"-r ../up.txt\n-c {tmp_path}/absolute.txt\n-r ./link.txt\n")
    (folder / "loop.txt").symlink_to("loop.txt")
    found = read_extras(["-r all.txt", "-r ../up.txt", "six"], folder, Path.read_text)
    assert found.lines == ("up", "linked", "six")
    root = tmp_path.resolve()
    assert found.files == (
        ("-r all.txt", root / "project" / "all.txt"),
        ("-r all.txt", root / "up.txt"),
        ("-r all.txt", root / "absolute.txt"),
        ("-r all.txt", root / "linked.txt"),
        ("-r ../up.txt", root / "up.txt"),
    )
    assert found == Extras(lines=found.lines, constraints=found.constraints)
    with pytest.raises(ConfigError, match=r"loop\.txt' cannot be read"):
        read_extras(["-r loop.txt"], folder, Path.read_text)
    (folder / "more").mkdir()
    (folder / "more" / "self.txt").write_text("-r ../more/self.txt")
    with pytest.raises(ConfigError, match="names itself"):
        read_extras(["-r more/self.txt"], folder, Path.read_text)


def test_a_page_of_links_may_be_named() -> None:
    line = "--find-links https://download.pytorch.org/whl/torch_stable.html"
    assert extras({"requirements.txt": line}).lines == (line,)


def test_a_file_that_is_no_text_is_told() -> None:
    def read(path: Path) -> str:
        return b"\xff".decode()

    with pytest.raises(ConfigError, match="it is not text in UTF-8"):
        read_extras(["-r x"], FOLDER, read)


def test_a_layer_is_called_by_what_is_in_it() -> None:
    one = Extras(lines=("a", "b"), constraints=("c==1", "d==2"))
    assert one.reference("sha256:1").startswith("dockml/with:")
    same = Extras(lines=("b", "a"), constraints=("d==2", "c==1"))
    assert one.reference("sha256:1") == same.reference("sha256:1")
    others = [
        one.reference("sha256:2"),
        Extras(lines=("a",), constraints=("c==1", "d==2")).reference("sha256:1"),
        Extras(lines=("a", "b"), constraints=("c==1",)).reference("sha256:1"),
        Extras(lines=("a", "b", "c==1", "d==2")).reference("sha256:1"),
    ]
    assert len({one.reference("sha256:1"), *others}) == 5


def test_in_a_line_it_is_short_and_without_passwords() -> None:
    assert str(Extras(lines=("a", "b==1"))) == "a, b==1"
    text = str(Extras(lines=("x @ https://ann:secret@h/x.whl", *"abcdefghijklmnopqrstuvwxyz")))
    assert text.startswith("x @ https://****@h/x.whl, a, b")
    assert (len(text), text[-1]) == (60, "…")
    assert hide_private("git+ssh://git@h/x and http://h/@x") == "git+ssh://****@h/x and http://h/@x"


def test_the_variables_that_a_file_names_are_known() -> None:
    line = "--index-url https://${USER_OF_IT}:${PASSWORD}@h/ ${PASSWORD} $HOME ${lower}"
    assert Extras(lines=(line,)).variables == ("USER_OF_IT", "PASSWORD")


def test_a_files_path_does_not_depend_on_the_folder() -> None:
    assert from_folder(["a==1", "-r x.txt", "-r /y.txt"], Path("/here")) == (
        "a==1",
        "-r /here/x.txt",
        "-r /y.txt",
    )


NONE = "ERROR: No matching distribution found for {}"


@pytest.mark.parametrize(
    ("output", "why", "hint"),
    [
        (
            "ERROR: Could not find a version that satisfies the requirement tinny (from versions: none)\n"
            + NONE.format("tinny"),
            "the index has no tinny for Python 3.6",
            "Is the name spelled as on PyPI",
        ),
        (
            "Could not find a version that satisfies the requirement pandas==7 (from versions: 0.1, 1.0, 1.1.5)\n"
            "No matching distribution found for pandas==7 (from -r /run/dockml/requirements.txt (line 1))",
            "there is no pandas==7 for Python 3.6",
            "The newest there are for this Python: 0.1, 1.0, 1.1.5.",
        ),
        (
            "ERROR: Ignored the following versions that require a different python version: 2.0 Requires-Python >=3.8\n"
            "ERROR: Could not find a version that satisfies the requirement pandas>=2 (from versions: none)\n"
            + NONE.format("pandas>=2"),
            "no version of pandas that is asked for is for Python 3.6",
            "an image with another Python",
        ),
        (
            "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError("
            "'<pip>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')'\n"
            + NONE.format("pandas"),
            "pip does not reach the index",
            "https_proxy",
        ),
        (
            "WARNING: Retrying after connection broken by 'ProxyError('Cannot connect to proxy.', OSError("
            "'Tunnel connection failed: 407 Proxy Authentication Required'))'\n" + NONE.format("x"),
            "the index, or the proxy, refused",
            "user and password",
        ),
        (
            "after connection broken by 'ProxyError('Cannot connect to proxy.', NewConnectionError())'",
            "the proxy does not answer",
            "http_proxy",
        ),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
            "self signed certificate'))\n" + NONE.format("x"),
            "pip does not trust the index's certificate",
            "PIP_CERT",
        ),
        ("ERROR: HTTP error 403 while getting https://x/", "the index, or the proxy, refused", "password"),
        ("OSError: [Errno 28] No space left on device", "the engine's disk is full", "docker system df"),
        ("ERROR: ResolutionImpossible: for help visit", "contradict each other", "let pip choose"),
        ("Invalid requirement: 'x y'", "does not understand", "older pip"),
        (
            "error: command 'gcc' failed with exit status 1\n  ERROR: Failed building wheel for scipy",
            "has to be compiled",
            "a wheel for Python 3.6",
        ),
        ("ERROR: Package 'x' requires a different Python: 3.6.1 not in '>=3.8'", "not for this Python", "3.6"),
        ("something else", "pip failed", "The last lines"),
    ],
)  # fmt: skip
def test_what_pip_says_becomes_what_to_do(output: str, why: str, hint: str) -> None:
    found = why_pip_failed(output, "3.6")
    assert why in found[0]
    assert hint in found[1]
