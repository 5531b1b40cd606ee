"""Configurations: what is accepted, and the one line that everything else ends in."""

import json
import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from agents.core.config import (
    ConfigError,
    build,
    describe,
    field_docs,
    read_yaml,
    require,
    run_directory,
    save_yaml,
    to_dict,
)


@dataclass
class Optimiser:
    """A nested configuration."""

    rate: float = 1e-3
    """Step size."""
    clip: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.rate > 0, "rate", self.rate, "> 0")


@dataclass
class Base:
    """Fields that are inherited."""

    lr: float = 3e-4
    """Learning rate of all networks, with a documentation that is long enough to be wrapped on
    any terminal; eq. (7)."""
    total_timesteps: int = 1000
    """Environment steps."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass
class Settings(Base):
    """One field of every supported type."""

    run: str = "run"
    """Name."""
    note: str | None = None
    compile: bool = False
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    weights: tuple[float, ...] = (1.0, 0.5)
    pair: tuple[int, str] = (1, "a")
    batch: int | Literal["auto"] = "auto"
    critics: Literal[1, 2] = 2
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(rate=0.5))
    second: Optimiser | None = None
    env_kwargs: dict[str, Any] = field(default_factory=lambda: {"start": "easy"})
    scales: dict[str, float] = field(default_factory=dict)


@dataclass
class Required:
    """A field without default, and one that is derived."""

    size: int
    double: int = field(init=False)

    def __post_init__(self) -> None:
        """Fail with errors of other classes for some sizes."""
        self.double = 2 * self.size
        if self.size == 7:
            raise ValueError("seven\nis odd")


def error_of(function: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the ConfigError, after checking that it is one line."""
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 500
    return message


# --- what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("lr=1e-4", 1e-4),
        ("lr=3", 3.0),
        ("total_timesteps=1e6", 1_000_000),
        ("total_timesteps=5e5", 500_000),
        ("total_timesteps=1_000_000", 1_000_000),
        ("total_timesteps=-3", -3),
        ("device=cpu", "cpu"),
        ("run=3", "3"),
        ("run=003", "003"),
        ("run=1e3", "1e3"),
        ("run=on", "on"),
        ("run=null", "null"),
        ("run=", ""),
        ("run=a=b: [c", "a=b: [c"),
        ("note=null", None),
        ("note=", None),
        ("note=12", "12"),
        ("compile=true", True),
        ("hidden=[64, 1e2]", [64, 100]),
        ("hidden=[]", []),
        ("weights=[1, 2.5]", (1.0, 2.5)),
        ("pair=[2, 3]", (2, "3")),
        ("batch=32", 32),
        ("batch=auto", "auto"),
        ("critics=1", 1),
        ("optimiser.rate=2", Optimiser(2.0)),
        ("optimiser.clip=1", Optimiser(0.5, 1.0)),
        ("optimiser={clip: 1}", Optimiser(0.5, 1.0)),
        ("second.rate=2", Optimiser(2.0)),
        ("second=null", None),
        ("env_kwargs.start=hard", {"start": "hard"}),
        ("env_kwargs.a.b=[1, null]", {"start": "easy", "a": {"b": [1, None]}}),
        ("env_kwargs={k: 2}", {"start": "easy", "k": 2}),
        ("scales.reach=2", {"reach": 2.0}),
    ],
)
def test_overrides(override: str, value: object) -> None:
    key = override.split("=")[0].split(".")[0]
    config = build(Settings, overrides=[override])
    expected = {**vars(Settings()), key: value}
    assert vars(config) == expected
    assert type(getattr(config, key)) is type(value)


def test_layers_in_order(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("lr: 1e-4\nrun: 7\noptimiser:\n  clip: 2\nenv_kwargs: {start: hard, n: 1}\n")
    layers = [{"lr": 1, "hidden": (3,)}, file, {"env_kwargs": {"n": 2}}]
    config = build(Settings, layers, ["env_kwargs.n=3", "device=cpu"])
    assert (config.lr, config.run, config.hidden, config.device) == (1e-4, "7", [3], "cpu")
    assert config.optimiser == Optimiser(0.5, 2.0)
    assert config.env_kwargs == {"start": "hard", "n": 3}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert build(Settings, [tmp_path / "empty.yaml"]) == Settings()


def test_overrides_from_python() -> None:
    config = build(
        Settings, overrides={"lr": 1, "optimiser": Optimiser(2.0), "env_kwargs.a": 1, "note": "7"}
    )
    assert type(config.lr) is float and config.optimiser == Optimiser(2.0)
    assert config.env_kwargs == {"start": "easy", "a": 1} and config.note == "7"
    assert error_of(build, Settings, (), {"lr": "3"}) == "lr: expected float, got '3'"
    assert error_of(build, Settings, (), {3: 1}).startswith("malformed override '3=1'")
    assert error_of(build, Settings, (), {"env_kwargs": {1: 2}}) == (
        "env_kwargs: key 1: expected a str"
    )
    assert error_of(build, Settings, (), {"lr": object()}) == (
        "lr: expected plain data, got a object"
    )
    assert error_of(build, Settings, (), {"lr": 10**5000}) == "lr: expected an int of 64 bits"
    refusal = "='${a}': interpolation is not supported"
    assert error_of(build, Settings, (), {"run": "${a}"}) == "run" + refusal
    assert error_of(build, Settings, (), {"env_kwargs": {"${a}": 1}}) == "env_kwargs: key" + refusal
    assert error_of(build, Settings, [{"note": "${a}"}]) == "Settings.note" + refusal
    cycle: list[Any] = []
    cycle.append(cycle)
    assert "nested too deeply" in error_of(build, Settings, (), {"hidden": cycle})


def test_instances_do_not_share_state() -> None:
    first = build(Settings)
    first.env_kwargs["x"] = 1
    first.hidden.append(1)
    assert build(Settings) == Settings()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lrr=1", "unknown key 'lrr' in Settings; did you mean 'lr'?"),
        (
            "optimiser.rat=1",
            "unknown key 'optimiser.rat' in Optimiser; did you mean 'optimiser.rate'?",
        ),
        ("optimiser.x=1", "unknown key 'optimiser.x' in Optimiser; expected rate, clip"),
        ("lr.x=1", "unknown key 'lr.x'; lr is float, not a mapping"),
        ("lr=abc", "lr: expected float, got 'abc'"),
        ("lr=true", "lr: expected float, got True"),
        ("lr=null", "lr: expected float, got None"),
        ("lr=nan", "lr: expected float, got 'nan'"),
        ("lr=.nan", "lr=nan: expected a finite number"),
        ("lr=1e999", "lr=inf: expected a finite number"),
        ("env_kwargs.a=[-.inf]", "env_kwargs.a[0]=-inf: expected a finite number"),
        ("lr=[1, 2]", "lr: expected float, got [1, 2]"),
        ("total_timesteps=true", "total_timesteps: expected int, got True"),
        ("total_timesteps=1.5", "total_timesteps: expected int, got 1.5"),
        ("total_timesteps=1e30", "total_timesteps: expected int, got 1e+30"),
        ("total_timesteps=99999999999999999999", "total_timesteps: expected an int of 64 bits"),
        (
            "total_timesteps=010",
            "total_timesteps: 010 is octal or base 60 in YAML, expected a decimal number or quotes",
        ),
        ("device=gpu", "device: expected one of 'auto', 'cpu', 'cuda', got 'gpu'"),
        ("critics=3", "critics: expected one of 1, 2, got 3"),
        ("critics=true", "critics: expected one of 1, 2, got True"),
        ("batch=many", "batch: expected int or one of 'auto', got 'many'"),
        ("compile=1", "compile: expected bool, got 1"),
        ("hidden=3", "hidden: expected list of int, got 3"),
        ("hidden=[3, a]", "hidden[1]: expected int, got 'a'"),
        ("pair=[1]", "pair: expected [int, str], got [1]"),
        ("optimiser=3", "optimiser: expected mapping, got 3"),
        ("optimiser=null", "optimiser: expected mapping, got None"),
        ("optimiser.rate=-1", "optimiser.rate=-1.0: expected > 0"),
        ("second.rate=0", "second.rate=0.0: expected > 0"),
        ("second.rate=x", "second.rate: expected float, got 'x'"),
        ("env_kwargs=[1]", "env_kwargs: expected mapping, got [1]"),
        ("env_kwargs={1: 2}", "env_kwargs: key 1: expected a str"),
        ("scales.a=b", "scales.a: expected float, got 'b'"),
        ("lr", "malformed override 'lr', expected key=value"),
        ("=1", "malformed override '=1', expected key=value"),
        ("env_kwargs..a=1", "malformed override 'env_kwargs..a=1', expected key=value"),
        ("run=${lr}", "run='${lr}': interpolation is not supported"),
        ("lr=${oc.env:HOME}", "lr='${oc.env:HOME}': interpolation is not supported"),
        ("env_kwargs.${a}=1", "key 'env_kwargs.${a}': interpolation is not supported"),
        ('env_kwargs.a="$\\x7bb}"', "env_kwargs.a: '${b}': interpolation is not supported"),
        ("env_kwargs=!!python/name:os.system x", "env_kwargs: YAML tags are not supported"),
        ("env_kwargs={a: &x 1, b: *x}", "env_kwargs: YAML anchors and aliases are not supported"),
        ("env_kwargs={a: 1, a: 2}", "env_kwargs: invalid YAML: found duplicate key a"),
        ("env_kwargs={a: 1", "env_kwargs: invalid YAML: expected ',' or '}', but got '<str"),
        ("env_kwargs=" + "[" * 5000, "env_kwargs: nested too deeply, expected at most 16 levels"),
        ("env_kwargs.<<=" + "{a: b}", None),
        ("run=\udcff", "run='\\udcff': expected UTF-8 text"),
        ("env\nx=1", "unknown key 'env\\nx' in Settings;"),
        ("run\x1b[0m=1", "unknown key 'run\\x1b[0m' in Settings;"),
        ("hidden=" + "9" * 5000, "hidden: invalid YAML: Exceeds the limit"),
    ],
)
def test_refusals(override: str, message: str | None) -> None:
    if message is None:
        assert build(Settings, overrides=[override]).env_kwargs["<<"] == {"a": "b"}
    else:
        assert error_of(build, Settings, (), [override]).startswith(message)


def test_duplicate_and_missing() -> None:
    message = error_of(build, Settings, (), ["lr=1", "run=a", "lr=2"])
    assert message == "lr='2': expected one override of lr, got two"
    assert error_of(build, Required) == "size: expected int, got nothing"
    assert error_of(build, Required, (), ["double=1"]) == (
        "unknown key 'double' in Required; expected size"
    )
    config = build(Required, overrides=["size=2"])
    assert config.double == 4 and build(Required, [to_dict(config)]) == config
    assert error_of(build, Required, (), ["size=7"]) == "Required: seven is odd"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr: 1\nlrr: 2\n", "unknown key 'lrr' in Settings; did you mean 'lr'?"),
        (b"lr: abc\n", "lr: expected float, got 'abc'"),
        (b"run: 1.0\n", "run: expected str, got 1.0"),
        (b"lr: 1\nlr: 2\n", "{}:2: invalid YAML: found duplicate key lr"),
        (b"lr: 1\nrun: [a\n", "{}:3: invalid YAML: expected ',' or ']', but got '<stream end>'"),
        (b"lr: 1\n\trun: 2\n", "{}:2: invalid YAML: found character '\\t' that cannot start any"),
        (b"a: 1\n---\nb: 2\n", "{}:2: invalid YAML: but found another document"),
        (b"- 1\n", "{}: expected a mapping at the top, got [1]"),
        (b"lr\n", "{}: expected a mapping at the top, got 'lr'"),
        (b"3\n", "{}: expected a mapping at the top, got 3"),
        (b"lr: 1\nrun: ${oc.env:HOME}\n", "{}:2: '${oc.env:HOME}': interpolation is not supported"),
        (b"${a}: 1\n", "{}:1: '${a}': interpolation is not supported"),
        (b"lr: !!python/object/apply:os.system [ls]\n", "{}:1: YAML tags are not supported"),
        (b"env_kwargs: !x {}\n", "{}:1: YAML tags are not supported"),
        (b"hidden: &a [1]\nweights: *a\n", "{}:1: YAML anchors and aliases are not supported"),
        (b"lr: 1\ntotal_timesteps: 1:30\n", "{}:2: 1:30 is octal or base 60 in YAML, expected"),
        (b"env_kwargs: {1: 2}\n", "{}.env_kwargs: key 1: expected a str"),
        (b"lr: .inf\n", "{}.lr=inf: expected a finite number"),
        (b"a: " + b"{a: " * 1000, "{}:1: nested too deeply, expected at most 16 levels"),
        (b"a: " + b"[" * 200_000, "{}:1: nested too deeply, expected at most 16 levels"),
        (b"\xff\xfe\x00", "{}: invalid YAML: 'utf-8' codec can't decode"),
        (b"lr: \x00", "{}: invalid YAML: "),
        (b"#" * 300_000, "{}: expected at most 256 KiB of YAML"),
    ],
)
def test_yaml_refusals(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    assert error_of(build, Settings, [file]).startswith(message.replace("{}", str(file), 1))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert error_of(read_yaml, missing) == f"{missing}: cannot read: No such file or directory"
    assert error_of(read_yaml, tmp_path) == f"{tmp_path}: cannot read: Is a directory"


def test_require() -> None:
    require(True, "lr", 1, "> 0")
    assert error_of(require, math.nan > 0, "lr", math.nan, "> 0") == "lr=nan: expected > 0"
    assert len(error_of(require, False, "a\nb", "x" * 1000, "less")) < 120


# --- output --------------------------------------------------------------------------------------


def test_yaml_round_trip(tmp_path: Path) -> None:
    file, random_ = tmp_path / "c.yaml", random.Random(0)
    texts = [
        "1e-4",
        "010",
        "on",
        "null",
        "~",
        "",
        " a ",
        "a: b",
        "- x",
        "x\n",
        "\n\nx\n\n",
        "'\"\\",
    ]
    texts += [
        "é\u2028\x85\t",
        "1:30",
        "#c",
        "???",
        "=",
        "[",
        "2020-01-01",
        "x" * 300,
        "!!a",
        "\0\x1b",
    ]
    texts += ["".join(random_.choices(" \n\t:#-'\"\\{}[]ab01.eé", k=9)) for _ in range(60)]
    numbers = [0.1, 1e300, 5e-324, -0.0, 2.0, 1e16, 1e-7]
    numbers += [random_.uniform(-1, 1) * 10 ** random_.randrange(-30, 30) for _ in range(30)]
    for text in texts:
        config = build(Settings, overrides={"run": text, "env_kwargs": {"k": [text], text: 1}})
        save_yaml(config, file)
        assert build(Settings, [file]) == config, repr(text)
    for number in numbers:
        config = build(Settings, overrides={"lr": number, "env_kwargs": {"x": number}})
        save_yaml(config, file)
        assert build(Settings, [file]) == config, number
    assert os.listdir(tmp_path) == ["c.yaml"]


def test_save_yaml_extra_and_failures(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    save_yaml(Settings(), file, {"agent": "slim", "versions": {"torch": "2.13"}})
    content = read_yaml(file)
    assert content.pop("agent") == "slim" and content.pop("versions") == {"torch": "2.13"}
    assert content == to_dict(Settings())
    assert error_of(save_yaml, Settings(), file, {"lr": 1}) == "lr=1: expected no field of Settings"
    gone = tmp_path / "gone" / "c.yaml"
    assert (
        error_of(save_yaml, Settings(), gone) == f"{gone}: cannot write: No such file or directory"
    )


def test_to_dict_is_json() -> None:
    content = json.loads(json.dumps(to_dict(Settings()), allow_nan=False))
    assert content == to_dict(Settings())
    assert content["weights"] == [1.0, 0.5] and content["optimiser"] == {"rate": 0.5, "clip": None}
    assert build(Settings, [content]) == Settings()


def test_field_docs_and_describe() -> None:
    docs = field_docs(Settings)
    assert docs["run"] == "Name." and docs["total_timesteps"] == "Environment steps."
    assert docs["lr"].endswith("wrapped on any terminal; eq. (7).")
    assert set(docs) == {"lr", "total_timesteps", "run"}
    for width in (70, 100, 160):
        lines = describe(Settings, width).splitlines()
        assert max(map(len, lines)) <= width
        (rate,) = [line.split() for line in lines if line.startswith("optimiser.rate")]
        assert rate == ["optimiser.rate", "float", "0.5", "Step", "size."]
    names = [line.split()[0] for line in lines if line[0] != " "]
    assert names[:5] == ["lr", "total_timesteps", "device", "run", "note"]
    lines = describe(Settings, 160).splitlines()
    assert {
        line.index(doc) for line in lines for doc in ("Name.", "Step size.") if doc in line
    } == {lines[0].index("Learning")}
    assert field_docs(dataclass(type("Bare", (), {"__annotations__": {"a": int}}))) == {}
    assert "required" in describe(Required)


# --- run directories -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        ([], "runs/slim-tabletop"),
        (["seed=1", "lr=3e-4"], "runs/slim-tabletop/lr=3e-4/seed=1"),
        (["z=1", "seed=1", "b=2"], "runs/slim-tabletop/b=2,z=1/seed=1"),
        (["device=cpu", "run=x", "env=tabletop", "seed=0"], "runs/slim-tabletop/seed=0"),
        ({"seed": 3, "env_kwargs.start": "b"}, "runs/slim-tabletop/env_kwargs.start=b/seed=3"),
    ],
)
def test_run_directory(overrides: Any, path: str) -> None:
    assert run_directory("slim", "tabletop", overrides) == Path(path)


def test_run_directories_are_safe_and_distinct() -> None:
    values = ["1", "1.0", "/", "..", "../../x", "a,b=1", "[1, 2]", "[1,2]", "", " ", "_", "é", "~"]
    values += ["x" * n for n in (80, 117, 118, 119, 200, 201)] + [
        "\n",
        "\0",
        "\udcff",
        "$HOME",
        "*",
    ]
    requests: list[tuple[str, str, dict[str, str]]] = [("a", "b", {})]
    for value in values:
        requests += [("a", "b", {"k": value}), ("a", "b", {"seed": value}), ("a", value, {})]
        requests += [("a", "b", {"k": value, "l": "1"}), ("a", "b", {"k": "1", "seed": value})]
    requests += [
        ("a", "b", {"k": "1,l=2"}),
        ("a", "b", {"k": "1", "l": "2"}),
        ("a", "b", {"k=1,l": "2"}),
    ]
    requests += [("a-b", "c", {}), ("a", "b-c", {})]
    requests = [r for i, r in enumerate(requests) if r not in requests[:i]]
    paths = [run_directory(*request) for request in requests]
    assert len({str(path).casefold() for path in paths}) == len(requests)
    for path in paths:
        assert path.parts[0] == "runs" and 2 <= len(path.parts) <= 4 and not path.is_absolute()
        for part in path.parts:
            assert part != ".." and len(part) <= 120 and part.isascii() and part.isprintable()
            assert not set(part) & set(" /\\:*?\"'<>|$&;`")
    assert run_directory("a", "b", {"x": "1", "y": "2"}) == run_directory("a", "b", ["y=2", "x=1"])
    assert error_of(run_directory, "a", "b", ["lr"]).startswith("malformed override 'lr'")
    assert "expected one override of lr" in error_of(run_directory, "a", "b", ["lr=1", "lr=2"])


# --- fuzz ----------------------------------------------------------------------------------------

FRAGMENTS = [*"{}[]:,-'\"#&*!|>%@`=?\n\t .~$01", "lr", "hidden", "optimiser", "rate", "env_kwargs"]
FRAGMENTS += [
    "1e-4",
    "null",
    "true",
    ".nan",
    "${",
    "}",
    "!!python/name:os.system",
    "<<: ",
    "---\n",
    "é",
]
FRAGMENTS += ["\0", "\x85", "\udcff", "9" * 400, "[" * 40, "a" * 50, "0x1F", "second", "run", ": "]


def test_fuzz(tmp_path: Path) -> None:
    random_, file = random.Random(0), tmp_path / "c.yaml"
    keys = [
        "lr",
        "run",
        "hidden",
        "optimiser.rate",
        "env_kwargs.a",
        "second",
        "batch",
        "pair",
        "scales",
    ]
    counts = {"valid": 0, "refused": 0}
    for i in range(750):
        text = "".join(random_.choices(FRAGMENTS, k=random_.randrange(1, 8)))
        layers, overrides = [], []
        if i % 3 == 0:
            mapping = f"{random_.choice(keys).split('.')[0]}: " if i % 2 else ""
            file.write_bytes((mapping + text).encode("utf-8", "surrogateescape"))
            layers = [file]
        else:
            overrides = [f"{random_.choice(keys)}={text}" if i % 3 == 1 else text]
        try:
            config = build(Settings, layers, overrides)
        except ConfigError as error:
            counts["refused"] += 1
            assert str(error).isprintable() and len(str(error)) <= 500, (layers, overrides)
        else:
            counts["valid"] += 1
            json.dumps(to_dict(config), allow_nan=False)
            save_yaml(config, file)
            assert build(Settings, [file]) == config
    print(counts)
    assert counts["refused"] > 500 and counts["valid"] > 25
