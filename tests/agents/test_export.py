"""Exported actors act as torch's do, for whoever has only the file."""

import json
from pathlib import Path

import pytest
import torch
from test_corro import scripted

import train
from agents import AGENTS, ConfigError
from agents.core import config as configuration
from agents.core import export as exporting
from agents.core.export import Actor, export
from agents.core.parallel import modules
from envs.data import load, save

onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="needs the extra `onnx`")

ROOT = Path(__file__).resolve().parents[2]
TINY = {  # settings of configs/smoke/<agent>.yaml suit its baselines
    "acorm": "combat/3m", "acorm-mappo": "combat/3m", "infopower": "pixels/point",
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for tier in ("mixed", "ood"):
        save(scripted(tier), folder)
    return str(folder)


def make(name: str, dataset: str, *overrides: str):
    """A tiny agent of a name of `train.py`, whose parameters are far from their first values."""
    layers, kind = train._layers(name)
    smoke = configuration.read_yaml(ROOT / "configs" / "smoke" / f"{kind}.yaml")
    smoke.pop("agent")
    smoke |= {"num_envs": 4} | ({"dataset": dataset} if kind == "corro" else {})
    if kind in TINY:
        smoke["env"] = TINY[kind]
    config = configuration.build(AGENTS[kind].Config, [*layers, smoke], overrides)
    agent = AGENTS[kind](config=config)
    if kind == "corro":  # it learns the scale of actions from its data
        agent.learn(20)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # otherwise all actions are nearly zero, or the same
        for module in modules(agent.parts):
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def follow(path: Path, agent, steps: int = 4) -> None:
    """Act by the file and what its metadata say alone, beside `predict`."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["infomax-rl"])
    assert about["agent"] == agent.name
    given = {i.name for i in session.get_inputs()}
    kinds = {
        "tensor(float)": torch.float32,
        "tensor(int64)": torch.int64,
        "tensor(bool)": torch.bool,
    }
    types = {i.name: i.type for i in session.get_inputs()}
    obs, _ = agent.env.reset(seed=5)
    rows = len(obs)
    carried = {}
    for name, value in about["initial"].items():
        kind = kinds[types.get(name, "tensor(float)")]
        start = torch.as_tensor(value, dtype=kind)
        carried[name] = start.expand(rows, *about["inputs"][name][1:]).clone()
    state = {name.removeprefix("state_"): value for name, value in carried.items()}
    actions, generator = [], torch.Generator().manual_seed(4)
    for _ in range(steps):
        if obs.is_floating_point():
            obs = obs + 3 * torch.randn(obs.shape, generator=generator)
        context = {k: agent.env.context()[k] for k in about["inputs"] if k == "avail_actions"}
        feed = {"observation": obs, **carried, **context}
        result = session.run(None, {k: v.numpy() for k, v in feed.items() if k in given})
        out = dict(zip(about["outputs"], map(torch.as_tensor, result), strict=True))
        masks = context.get("avail_actions")
        action, state = agent.predict(obs, state, deterministic=True, action_masks=masks)
        torch.testing.assert_close(out["action"], action, atol=2e-4, rtol=2e-4)
        for name, value in state.items():
            torch.testing.assert_close(out[f"next_{name}"], value, atol=2e-4, rtol=2e-4)
        carried = {name: out[name.replace("state_", "next_", 1)] for name in about["initial"]}
        obs = agent.env.step(action)[0]
        actions.append(action.float())
    assert float(torch.stack(actions).flatten(0, 1).std(0).max()) > 0  # it reads what it is given


SOME = [
    ("slim", []), ("masd", []), ("acorm", []), ("acorm-mappo", []), ("corro", []),
    ("infopower", ["bfloat16=false"]),
]  # fmt: skip
BASELINES = sorted(p.stem for p in (ROOT / "configs/baselines").glob("*.yaml"))


@pytest.mark.parametrize(("name", "overrides"), SOME, ids=lambda value: str(value))
def test_an_exported_actor_acts_as_torchs(name, overrides, dataset, tmp_path):
    agent = make(name, dataset, *overrides)
    if name == "slim":  # statistics other than a fresh normaliser's
        agent.norm.update(agent.env.reset(seed=1)[0])
    kept = agent.generator.get_state().clone(), agent.num_timesteps
    description = export(agent, tmp_path / "actor.onnx")
    assert description["difference"] < 1e-4
    assert torch.equal(agent.generator.get_state(), kept[0])
    assert agent.num_timesteps == description["timesteps"] == kept[1]
    for key, fresh in agent.initial_state(1).items():
        value = torch.as_tensor(description["initial"][f"state_{key}"], dtype=fresh.dtype)
        value = value.expand_as(fresh[0])[None]
        if key == "skill":  # drawn: another one, as long
            value, fresh = value.norm(), fresh.norm()
        torch.testing.assert_close(value, fresh)
    if name == "infopower":
        agent.num_timesteps = agent.config.prefill
    follow(tmp_path / "actor.onnx", agent)


def test_an_exported_encoder_gives_the_code_of_a_context(dataset, tmp_path):
    """For whoever has only the two files: any number of rows and steps, and none at all."""
    agent = make("corro", dataset)
    description = export(agent, tmp_path / "actor.onnx")
    assert description["context"] == str(tmp_path / "actor-context.onnx")
    session = onnxruntime.InferenceSession(description["context"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["infomax-rl"])
    assert about["inputs"] == {
        "observation": ["n", "t", 2], "action": ["n", "t", 2], "reward": ["n", "t"],
        "next_observation": ["n", "t", 2], "mask": ["n", "t"],
    }  # fmt: skip
    data, generator = load(dataset), torch.Generator().manual_seed(0)
    episodes = data.sample_episodes(torch.arange(data.num_tasks), 1, generator)
    names = ("observations", "actions", "rewards", "next_observations")
    context = [episodes[name][:, 0, :9] for name in names]
    mask = torch.arange(9) < torch.tensor([[9], [4], [0]])
    feed = [value[:3].numpy() for value in (*context, mask)]
    (code,) = session.run(["state_code"], dict(zip(about["inputs"], feed, strict=True)))
    expected = agent.context_state(tuple(x[:3] for x in context), mask, mask)["code"]
    torch.testing.assert_close(torch.as_tensor(code), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected[2], agent.net.prior)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n in BASELINES if n != "random"])
def test_every_baseline_exports(name, dataset, tmp_path):
    assert export(make(name, dataset), tmp_path / "actor.onnx")["difference"] < 1e-4


def test_a_difference_is_noticed(dataset, tmp_path, monkeypatch):
    agent = make("slim", dataset)
    export(agent, tmp_path / "actor.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "actor.onnx"))
    actor = Actor(agent)
    with torch.no_grad():
        examples = exporting._examples(agent, actor)
        assert exporting._compare(session, actor, examples[0]) < 1e-4
        kept, act = agent.policy.mean[-1].bias.clone(), agent.act
        agent.policy.mean[-1].bias.add_(0.01)
        with pytest.raises(ConfigError, match=r"action differs from torch's by 0\."):
            exporting._compare(session, actor, examples[0])
        agent.policy.mean[-1].bias.fill_(torch.nan)
        with pytest.raises(ConfigError, match="action differs from torch's by nan"):
            exporting._compare(session, actor, examples[0])
        agent.policy.mean[-1].bias.copy_(kept)
        monkeypatch.setattr(agent, "act", lambda *a: (act(*a)[0], {"skill": -a[1]["skill"]}))
        with pytest.raises(ConfigError, match=r"next_skill differs from torch's by [01]\."):
            exporting._compare(session, actor, examples[0])
        monkeypatch.undo()
    before = (tmp_path / "actor.onnx").read_bytes()
    differs = ConfigError("export: action differs")
    monkeypatch.setattr(exporting, "_compare", lambda *a: (_ for _ in ()).throw(differs))
    with pytest.raises(ConfigError, match="action differs"):
        export(agent, tmp_path / "actor.onnx")
    assert (tmp_path / "actor.onnx").read_bytes() == before  # a good one stays
    assert len(list(tmp_path.iterdir())) == 1


def test_the_command(dataset, tmp_path, capsys, monkeypatch):
    checkpoint = tmp_path / "seed=1" / "last.ckpt"  # as in a run's directory
    checkpoint.parent.mkdir()
    make("slim", dataset).save(checkpoint)
    assert train.main(["export", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    for words in ("state_skill", "next_skill", "last.onnx: slim after 0 steps", "as torch's up to"):
        assert words in out
    assert checkpoint.with_suffix(".onnx").exists()
    assert train.main(["export", "--help"]) == 0
    assert "state_<name>" in capsys.readouterr().out
    wrong = [
        ([], "expected one checkpoint"),
        ([str(tmp_path / "no.ckpt")], "no.ckpt: no such checkpoint"),
        ([str(checkpoint), f"out={tmp_path}/no/a.onnx"], "out=" ),
        ([str(checkpoint), "opset=3"], "expected one checkpoint"),
    ]  # fmt: skip
    for arguments, message in wrong:
        assert train.main(["export", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert train.main(["export", str(checkpoint)]) == 2
    assert "export: needs onnxruntime: pip install 'infomax-rl[onnx]'" in capsys.readouterr().err


def test_an_agent_that_only_acts_at_random_has_no_actor(dataset, tmp_path):
    with pytest.raises(ConfigError, match="prefill=1000000000000"):
        export(make("infopower", dataset, "prefill=1000000000000"), tmp_path / "actor.onnx")
