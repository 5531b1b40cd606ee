"""Generated data: what a tier is; the same from the same seed, interrupted or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
import train
from agents.core import generate as module
from agents.core.behaviour import TaskSAC, Trained
from agents.core.checkpoint import load_checkpoint
from agents.core.config import ConfigError
from agents.core.generate import DataConfig, Generator, generate
from agents.core.offline import OfflineConfig
from envs.data import TaskData, load, save
from envs.tasks import TaskFamily

SMALL: dict[str, Any] = {
    "updates": 40, "hidden": 8, "batch_size": 16, "episodes": 10, "finetune": 3,
}  # fmt: skip


def same(a: TaskData, b: TaskData) -> None:
    for name, value in vars(a).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(b, name), value, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tier of six goals, made by the command."""
    out = tmp_path_factory.mktemp("points")
    arguments = ["data", "point-robot", "tasks=6", "episodes=30", "tier=all", f"out={out}"]
    assert train.main(arguments) == 0
    return out


def test_tiers_of_point_robot(points: Path) -> None:
    returns = {tier: load(points, tier).returns.mean().item() for tier in module.TIERS}
    assert returns["random"] == pytest.approx(-10.06, abs=0.3)  # computed independently
    assert returns["expert"] == pytest.approx(-3.84, abs=0.4)  # the optimum, for six goals
    assert returns["random"] < returns["mixed"] < returns["expert"]
    half = (returns["random"] + returns["expert"]) / 2
    assert abs(returns["medium"] - half) < 1
    assert returns["ood"] < returns["mixed"]


def test_facts_of_a_tier(points: Path) -> None:
    data = load(points)
    assert data.family == "point-robot"
    assert data.task_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.training.tolist() == [True] * 3 + [False] * 3
    env = envs.make("point-robot", num_tasks=6)
    assert isinstance(env, TaskFamily)
    assert torch.equal(data.tasks, env.tasks)
    assert torch.equal(
        data.rewards, env.rewards(data.tasks[:, None, None], data.gather(*_all(data)))
    )
    assert (data.references[:, 0] < -8).all()
    assert (data.references[:, 1] > -5).all()
    score = data.normalise(data.returns.mean(1))
    assert (score > 0).all() and (score < 100).all()
    assert (data.behaviour[:, :3] == -1).all()  # 10 % random
    assert (data.behaviour[:, 3:] == data.task_ids[:, None]).all()
    assert data.checkpoint[:, 3:21].unique().tolist() == list(range(7))
    facts = json.loads((points / "corro/point-robot/namespace_metadata.json").read_text())
    assert (facts["train"], facts["test"]) == ([0, 1, 2], [3, 4, 5])


def _all(data: TaskData) -> tuple[torch.Tensor, ...]:
    sizes = (data.num_tasks, data.num_episodes, data.horizon)
    return tuple(torch.meshgrid(*map(torch.arange, sizes), indexing="ij"))


def test_ood_is_every_other_task_at_every_checkpoint(points: Path) -> None:
    data = load(points, "ood")
    for k in range(6):
        seen = set(zip(data.behaviour[k].tolist(), data.checkpoint[k].tolist(), strict=True))
        assert seen == {(j, c) for j in range(6) if j != k for c in range(7)}
    # who is sent to another goal goes there
    last = data.checkpoint[0] == 6
    goals = data.tasks[data.behaviour[0][last]]
    near = (data.states[0, last, -1] - goals).norm(dim=1)
    assert near.max() < 0.15


def test_the_same_seed_is_the_same_data_whatever_was_there(points: Path, tmp_path: Path) -> None:
    arguments = {"tasks": 6, "episodes": 30, "out": str(tmp_path)}
    generate("point-robot", DataConfig(**arguments))
    for tier in ("mixed", "ood"):
        same(load(tmp_path, tier, cache=False), load(points, tier))
    shutil.rmtree(tmp_path / "corro/point-robot/task-002-mixed-v0")
    returns = generate("point-robot", DataConfig(**arguments))  # makes the missing one alone
    same(load(tmp_path), load(points))
    assert returns["mixed"] == pytest.approx(load(points).returns.mean().item())
    other = DataConfig(**arguments, seed=1)
    with pytest.raises(ConfigError, match=r"seed=1: .* holds data of seed=0; give another out="):
        generate("point-robot", other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["half-cheetah"], "'half-cheetah' is no family of tasks"),
        (["ant-dirr"], "unknown environment 'ant-dirr'; did you mean 'ant-dir'?"),
        (["ant-dir", "tier=good"], "tier='good': expected some of random, medium"),
        (["ant-dir", "tasks=1"], "tasks=1: expected >= 2"),
        ([], "data: expected a family"),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["data", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_interrupted_training_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOTS", 4)
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    returns = generate("half-cheetah-dir", DataConfig(**SMALL, out=whole))
    learn, calls = TaskSAC.learn, []

    def interrupted(self: TaskSAC, *arguments: Any) -> None:
        learn(self, *arguments)
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TaskSAC, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate("half-cheetah-dir", DataConfig(**SMALL, out=broken))
    monkeypatch.setattr(TaskSAC, "learn", learn)
    assert generate("half-cheetah-dir", DataConfig(**SMALL, out=broken)) == returns
    for tier in ("mixed", "ood"):
        same(load(broken, tier), load(whole, tier))
    data = load(whole)
    assert data.training.all()  # two tasks are not divided
    env = envs.make("half-cheetah-dir", 1)
    assert isinstance(env, TaskFamily)
    expected = env.rewards(data.tasks[:, None, None], data.gather(*_all(data)))
    torch.testing.assert_close(data.rewards, expected, rtol=0, atol=1e-4)


def test_single_tasks_of_hopper_param(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SNAPSHOTS", 4)
    config = DataConfig(**SMALL, tasks=2, out=str(tmp_path), tier="ood")
    generate("hopper-param", config)
    generator = Generator("hopper-param", config)
    behaviours = generator.train()  # nothing is left to train
    assert isinstance(behaviours, Trained)
    assert behaviours.checkpoints == 8
    assert load(tmp_path, "ood").checkpoint.unique().tolist() == list(range(8))
    learnt = [
        load_checkpoint(tmp_path / f"corro/hopper-param/behaviours/single-{k:03d}.ckpt")
        for k in range(2)
    ]
    weights = [tree["sac"]["policy.network.0.weight"] for tree in learnt]  # type: ignore[index, call-overload]
    assert not torch.equal(*weights)
    # rows are acted by their own networks, in any company
    obs, task = torch.randn(6, 12), torch.rand(6, 41)
    ids, stage = torch.tensor([0, 1, 0, 1, 1, 0]), torch.tensor([7, 7, 0, 3, 7, 3])
    still = torch.zeros(6)
    together = behaviours.act(obs, task, ids, stage, still, torch.Generator())
    for i in range(6):
        row = slice(i, i + 1)
        alone = behaviours.act(
            obs[row], task[row], ids[row], stage[row], still[row], torch.Generator()
        )
        torch.testing.assert_close(alone, together[row])
    assert not torch.allclose(
        behaviours.act(obs, task, 1 - ids, stage, still, torch.Generator())[:2], together[:2]
    )


class Limp:
    """A behaviour that does nothing."""

    checkpoints = 1

    def act(
        self, obs: torch.Tensor, task: Any, task_id: Any, checkpoint: Any, noise: Any,
        generator: Any,
    ) -> torch.Tensor:  # fmt: skip
        return torch.zeros(len(obs), 6)


def test_an_episode_ends_where_the_walker_falls(tmp_path: Path) -> None:
    generator = Generator("walker-param", DataConfig(**SMALL, tasks=3, out=str(tmp_path)))
    task = torch.full((4,), 2)
    data = generator.rollout(Limp(), task, task, 0 * task, 0 * task + module.SAMPLE, 0)
    data.tier = "medium"
    assert (data.lengths < 200).all()  # who does nothing falls within 3.2 s
    last = (data.lengths - 1)[..., None]
    assert data.terminations.gather(2, last).all() and data.terminations.sum() == 4
    assert (data.states[..., 1].gather(2, last + 1) <= 0.5).all()
    assert (data.states[..., 1].gather(2, last) > 0.5).all()
    assert (data.rewards * ~data.mask == 0).all()
    assert (data.velocity * ~data.mask[..., None] == 0).all()
    save(data, tmp_path / "alone")
    read = load(tmp_path / "alone", "medium")
    assert read.task_ids.tolist() == [2]
    assert torch.equal(read.lengths, data.lengths)
    assert torch.equal(read.rewards, data.rewards[:, :, : read.horizon])


def test_one_sac_learns_all_goals_of_point_robot() -> None:
    """By relabelling alone: it must beat whoever does not look at the task (-7.87)."""
    env = envs.make("point-robot", 40, seed=1)
    assert isinstance(env, TaskFamily)
    torch.set_num_threads(1)
    learner = TaskSAC(env, [64, 64], 128, 1, True, 4, 20_000, 0.95)
    learner.act_randomly(20)
    learner.learn(1000)
    obs, info = env.reset(seed=0)
    total = torch.zeros(40)
    with torch.no_grad():
        for _ in range(env.max_episode_steps):
            x = torch.cat([learner.norm(obs), info["task"]], 1)
            obs, reward, _, _, info = env.step(learner.sac.policy.mode(x))
            total += reward
    assert total.mean() > -7.87


def test_data_of_another_version_are_not_continued(tmp_path: Path) -> None:
    config = DataConfig(tasks=2, episodes=2, out=str(tmp_path))
    generate("point-robot", config)
    file = tmp_path / "corro/point-robot/namespace_metadata.json"
    older = module.VERSION - 1
    file.write_text(json.dumps(json.loads(file.read_text()) | {"generator_version": older}))
    words = f"generator_version={module.VERSION}: .* of generator_version={older}; give another"
    with pytest.raises(ConfigError, match=words):
        generate("point-robot", config)


def test_a_behaviour_that_never_improves_is_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator("half-cheetah-dir", DataConfig(**SMALL, out=str(tmp_path)))
    returns = torch.linspace(0, -2, module.SNAPSHOTS + 1)
    monkeypatch.setattr(module, "load_checkpoint", lambda file: {"returns": returns})
    (generator.behaviours / "returns.ckpt").touch()
    with pytest.warns(UserWarning, match="no snapshot beats the untrained one"):
        assert generator._chosen(generator._learner()) == [0] * len(module.LEVELS)
    returns[5], returns[9] = 1, 2
    assert generator._chosen(generator._learner()) == [0, 5, 5, 5, 9, 9, 9]


def test_out_may_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DataConfig(out="~/data").out == str(tmp_path / "data")
    config = OfflineConfig("~/data", out="~/report")
    assert (config.dataset, config.out) == (str(tmp_path / "data"), str(tmp_path / "report"))
