"""Rasterised tasks: pictures, ground truth, distractors that nobody controls, rewards, state."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor

import envs
from envs.adapt import to_gymnasium
from envs.backdrop import CHANGE_EVERY, PLAIN
from envs.base import BatchedEnv
from envs.pixels import AGENT_COLOUR, TARGET_COLOUR, Rasteriser

IDS = ["pixels/arm", "pixels/cartpole", "pixels/point"]
BACKGROUNDS = ["static", "video", "ghost", "noise"]


def play(env: Any, actions: Tensor) -> list[Any]:
    return [env.step(action) for action in actions]


def actions(env: Any, steps: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs, *env.single_action_space.shape)
    return torch.rand(shape, generator=generator) * 2 - 1


# ---- the rasteriser


def test_a_capsule_covers_its_area() -> None:
    """Against geometry: area π r² + 2 r l, one pixel of blur, nothing outside of it."""
    raster = Rasteriser(128, 1.0)
    x0, y0, x1, y1, radius = -0.4, 0.1, 0.35, -0.3, 0.15
    coverage = raster.coverage(torch.tensor([[[x0, y0, x1, y1, radius]]]))[0, 0]
    area = math.pi * radius**2 + 2 * radius * math.hypot(x1 - x0, y1 - y0)
    assert float(coverage.sum()) * (2 / 128) ** 2 == pytest.approx(area, rel=5e-3)
    for row, column in ((10, 20), (57, 60), (64, 64), (80, 90), (127, 0)):
        x, y = ((column + 0.5) / 64 - 1, 1 - (row + 0.5) / 64)
        t = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        t = min(max(t, 0), 1)
        gap = math.hypot(x - x0 - t * (x1 - x0), y - y0 - t * (y1 - y0)) - radius
        expected = min(max(0.5 - gap * 64, 0), 1)
        assert float(coverage[row, column]) == pytest.approx(expected, abs=1e-4)


def test_a_union_is_drawn_once_and_rows_are_apart() -> None:
    raster = Rasteriser(32, 1.0)
    disk = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.3])
    other = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.2])
    both = raster.coverage(torch.stack((torch.stack((disk, disk)), torch.stack((disk, other)))))
    alone = raster.coverage(disk.view(1, 1, 5))
    assert torch.equal(both[:1], alone)
    assert torch.equal(both[1:], torch.maximum(alone, raster.coverage(other.view(1, 1, 5))))


def test_the_picture_of_a_known_state() -> None:
    env: Any = envs.make("pixels/arm")
    env.reset(seed=0)
    env.state = torch.tensor([[0.0, math.pi / 2, 0.0, 0.0]])  # to the right, then upwards
    env.target = torch.tensor([[-0.6, -0.6]])
    picture = env._observe()[0].permute(1, 2, 0)

    def at(x: float, y: float) -> tuple[int, ...]:
        row, column = (round((v + 1.2) / 2.4 * 64 - 0.5) for v in (-y, x))
        return tuple(picture[row, column].tolist())

    assert at(0.02, 0.02) == at(0.5, 0.02) == at(0.5, 0.45) == AGENT_COLOUR
    assert at(-0.6, -0.6) == TARGET_COLOUR
    assert at(0.02, 0.5) == at(0.6, -0.6) == at(-0.5, 0.0) == PLAIN


# ---- ground truth and the task


@pytest.mark.parametrize("id", ["pixels/arm", "pixels/point"])
def test_an_action_is_seen(id: str) -> None:
    """One step moves the body by two pixels at least, once it is moving."""
    env: Any = envs.make(id, num_envs=4)
    env.reset(seed=1)
    action = torch.ones(4, *env.single_action_space.shape)
    env.step(action)
    before = env.capsules()[:, -1, 2:4]
    obs, _, _, _, info = env.step(action)
    assert (env.capsules()[:, -1, 2:4] - before).norm(dim=1).min() > 2 * env._raster.pixel
    assert info["controllable"].shape[0] == 4
    assert obs.dtype == torch.uint8 and obs.shape == (4, 3, 64, 64)


@pytest.mark.parametrize("background", ["none", *BACKGROUNDS])
def test_nobody_controls_the_distractor(background: str) -> None:
    """Other actions, the same distractor; what is controllable differs."""
    one, two = (
        envs.make("pixels/cartpole", num_envs=2, seed=4, background=background) for _ in range(2)
    )
    one.reset()
    two.reset()
    a = play(one, actions(one, 60, seed=0))
    b = play(two, actions(two, 60, seed=1))
    for (_, _, _, _, x), (_, _, _, _, y) in zip(a, b, strict=True):
        assert torch.equal(x["distractor"], y["distractor"])
        assert torch.equal(x["frame"], y["frame"])
    assert not torch.equal(a[-1][4]["controllable"], b[-1][4]["controllable"])


def test_ground_truth_is_that_of_the_picture() -> None:
    """Tiles of the window are what one computes from the picture, where no agent is."""
    env: Any = envs.make("pixels/point", num_envs=3, background="video", window=32)
    env.reset(seed=2)
    env.state[:, :2], env.target[:] = 1.0, 1.0  # out of the window
    obs, info = env._observe(), env.context()
    window = obs[:, :, 16:48, 16:48].float().view(3, 3, 4, 8, 4, 8).mean((3, 5)) / 255
    torch.testing.assert_close(info["distractor"], window.flatten(1))
    assert (obs[:, :, :16, :32].permute(0, 2, 3, 1) == torch.tensor(PLAIN)).all()


def test_the_ghost_is_another_agent_of_the_same_kind() -> None:
    """Its label is a pose, and where the agent is away from it, the picture shows that pose."""
    env: Any = envs.make("pixels/point", num_envs=8, background="ghost")
    env.reset(seed=0)
    env.state[:, :2], env.target[:] = -1.1, -1.1
    obs, info = env._observe(), env.context()
    x, y, down, right = info["distractor"].unbind(1)
    colour = torch.tensor(AGENT_COLOUR).view(3, 1, 1)
    for row in range(8):
        column = (x[row] / 2.4 + 0.5) * 64 + 8 * right[row]
        line = (0.5 - y[row] / 2.4) * 64 + 8 * down[row]
        if 4 < column < 60 and 4 < line < 50:
            assert (obs[row, :, int(line), int(column)] == colour.flatten()).all()


@pytest.mark.parametrize("id", IDS)
def test_rewards_are_best_at_the_goal_and_sparse_only_there(id: str) -> None:
    dense, sparse = (envs.make(id, num_envs=2, sparse=s, action_repeat=1) for s in (False, True))
    rewards = []
    for env in (dense, sparse):
        e: Any = env
        e.reset(seed=0)
        e.state[0], e.state[1] = e.state.new_zeros(4), e.state.new_tensor([0.0, 2.5, 0.0, 0.0])
        if id == "pixels/arm":
            e.target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        if id == "pixels/point":
            e.target = torch.tensor([[0.0, 0.0], [-0.9, -0.9]])
        rewards.append(env.step(torch.zeros(2, e.actions))[1])
    assert rewards[0][0] > 0.99 > rewards[0][1] > 0
    assert rewards[1].tolist() == [1.0, 0.0]


def test_repeats_add_rewards_and_shorten_episodes() -> None:
    once, four = (envs.make("pixels/arm", action_repeat=k, seed=5) for k in (1, 4))
    assert (once.max_episode_steps, four.max_episode_steps) == (1000, 250)
    once.reset()
    four.reset()
    action = torch.tensor([[0.7, -0.3]])
    summed = sum(once.step(action)[1] for _ in range(4))
    obs, reward, *_ = four.step(action)
    torch.testing.assert_close(reward, summed)
    assert torch.equal(obs, once._observe())


def test_duration_is_an_episodes() -> None:
    env = envs.make("pixels/point", num_envs=2, action_repeat=8, duration=20)
    assert (env.max_episode_steps, envs.make("pixels/point").max_episode_steps) == (3, 250)
    env.reset(seed=0)
    ends = [env.step(torch.zeros(2, 2))[3].tolist() for _ in range(4)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    long: dict[str, Any] = {"duration": 1600, "action_repeat": 1200, "background": "ghost"}
    assert envs.make("pixels/point", size=16, **long).max_episode_steps == 2


def test_a_controller_swings_the_pole_up() -> None:
    """The task can be solved: energy until it is nearly up, then a linear controller."""
    env: Any = envs.make("pixels/cartpole", num_envs=4, action_repeat=1)
    env.reset(seed=0)
    reward = torch.zeros(4)
    for _ in range(1000):
        x, angle, v, spin = env.state.unbind(1)
        angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        energy = 0.5 * (2 * 0.5 / 3) * spin.square() + 9.81 * (angle.cos() - 1) / 2
        pump = torch.sign(-spin * angle.cos()) * (energy * -0.8).clamp(-0.6, 0.6) - 0.1 * x
        hold = 4 * angle + 0.9 * spin + 0.1 * x + 0.25 * v
        action = torch.where(angle.abs() < 0.5, hold, pump).float()
        reward += env.step(action[:, None])[1]
    assert reward.min() > 600, reward


@pytest.mark.parametrize("id", ["pixels/arm", "pixels/point"])
def test_a_controller_reaches_the_target(id: str) -> None:
    """Straight towards it (the arm by the transpose of its Jacobian); doing nothing is no way."""
    env, idle = (envs.make(id, num_envs=16, sparse=True, seed=1) for _ in range(2))
    env.reset()
    idle.reset()
    for step in range(100):
        error = env.target - env.capsules()[:, -1, 2:4].float()
        if id == "pixels/arm":
            first, second = (env.link * env.pose(env.state).float()).split(2, 1)
            turned = [torch.stack((-v[:, 1], v[:, 0]), 1) for v in (first + second, second)]
            error = torch.stack([(t * error).sum(1) for t in turned], 1) * 3
        rewards = env.step(5 * error)[1], idle.step(0 * error)[1]
        assert step > 0 or rewards[0].mean() < 3
    assert rewards[0].mean() > 3.5  # of 4
    assert rewards[1].mean() < 1


# ---- videos and windows


def test_a_video_changes_every_fifty_steps_and_runs_in_between() -> None:
    env: Any = envs.make("pixels/point", num_envs=32, background="video")
    env.reset(seed=0)
    cursors = []
    for action in actions(env, 2 * CHANGE_EVERY + 2):
        cursors.append(env.backdrop.cursor.clone())
        frame = env.backdrop.frame()
        env.step(action)
        assert ((env.backdrop.frame() - frame).abs()[env.elapsed % CHANGE_EVERY != 0] == 1).all()
    for t in range(1, len(cursors)):
        same = (cursors[t][:, [0, 2, 3]] == cursors[t - 1][:, [0, 2, 3]]).all(1)
        assert bool(same.all()) if t % CHANGE_EVERY else int(same.sum()) < 16
    assert len(torch.stack(cursors)[:, :, 0].unique()) == 4  # two clips and their mirror images


def test_a_still_stays_and_noise_never_does() -> None:
    for background, repeats in (("static", True), ("noise", False)):
        env = envs.make("pixels/point", num_envs=4, background=background)
        _, info = env.reset(seed=0)
        for step in play(env, actions(env, 60)):
            same = (step[4]["distractor"] == info["distractor"]).all(1)
            assert bool(same.all()) == repeats and (repeats or not bool(same.any()))


@pytest.mark.parametrize("background", ["video", "ghost", "noise"])
def test_held_out_pictures_are_others(background: str) -> None:
    train, held = (
        envs.make("pixels/arm", background=background, split=split)
        for split in ("train", "held-out")
    )
    seen, unseen = (
        {frame.tobytes() for frame in e.backdrop._frames.numpy()} for e in (train, held)
    )
    assert len(unseen) and seen.isdisjoint(unseen)
    with pytest.raises(ValueError, match="its backdrop has other pictures"):
        held.load_state_dict(train.state_dict())


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("window", [32, 40, None])
def test_backgrounds_keep_the_contract(background: str, window: int | None) -> None:
    env: Any = envs.make("pixels/point", 2, background=background, window=window)
    outside, _ = env.reset(seed=0)
    inside = outside
    if window is not None:
        edge = (64 - window) // 2
        inside = outside[:, :, edge:-edge, edge:-edge]
        rim = outside.clone()
        rim[:, :, edge:-edge, edge:-edge] = torch.tensor(PLAIN, dtype=torch.uint8).view(3, 1, 1)
        plain = (rim.permute(0, 2, 3, 1) == torch.tensor(PLAIN)).all(-1).float().mean()
        assert plain > 0.95  # but for the agent and the target
    assert inside.float().std() > 5
    if window is None:
        envs.check("pixels/point", steps=12, num_envs=2, background=background)


def test_a_run_goes_on_from_its_state() -> None:
    """In another process, as it were: in front of a video that has changed before."""
    env, other = (envs.make("pixels/arm", 3, seed=s, background="video", window=40) for s in (7, 8))
    env.reset()
    play(env, actions(env, CHANGE_EVERY + 5))
    other.reset()  # and has shown something else
    other.load_state_dict(env.state_dict())
    assert torch.equal(env._observe(), other._observe())
    later = actions(env, CHANGE_EVERY, seed=1)
    for a, b in zip(play(env, later), play(other, later), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert torch.equal(a[4]["distractor"], b[4]["distractor"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pictures", 3, r"'pictures': expected a tensor, got int"),
        ("cursor", [[0, 0, 0, 0], [9, 0, 0, 0]], r"'cursor': \[9, 0, 0, 0\] in environment 1; exp"),
        ("cursor", [[8, 0, 0, 0], [0, 0, 0, 0]], r"'cursor': .* below \[8, 248, 5, 5\]"),
        ("cursor", [[0, 248, 0, 0], [0, 0, 0, 0]], r"'cursor': \[0, 248, 0, 0\] in environment 0"),
        ("cursor", [[0, 0, 0, 5], [0, 0, 0, 0]], r"'cursor': \[0, 0, 0, 5\]"),
        ("cursor", [[0, -7, 0, 0], [0, 0, 0, 0]], r"'cursor': \[0, -7, 0, 0\]"),
        ("body", math.nan, r"'body': expected finite numbers"),
        ("target", -math.inf, r"'target': expected finite numbers"),
    ],
)
def test_a_state_that_cannot_be_is_refused(name: str, value: Any, message: str) -> None:
    """Before anything changes."""
    env: Any = envs.make("pixels/arm", 2, background="ghost", size=16)
    env.reset(seed=0)
    state = env.state_dict()
    if isinstance(value, float):
        state["state"][name][1, 0] = value
    else:
        state["state"][name] = torch.tensor(value) if isinstance(value, list) else value
    env.step(torch.ones(2, 2))
    before = env.state_dict()
    with pytest.raises(ValueError, match=r"^environment state " + message):
        env.load_state_dict(state)
    after = env.state_dict()
    assert all(torch.equal(after["state"][k], v) for k, v in before["state"].items())
    assert torch.equal(after["elapsed"], before["elapsed"])


def test_a_row_is_the_same_in_a_large_batch() -> None:
    few, many = (envs.make("pixels/cartpole", n, seed=3, background="noise") for n in (2, 33))
    few.reset()
    many.reset()
    for action in actions(many, 60):
        a, b = few.step(action[:2]), many.step(action)
        assert torch.equal(a[0], b[0][:2]) and torch.equal(a[1], b[1][:2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"background": "movie"}, r"background='movie': expected one of \('none', 'static'"),
        ({"split": "test"}, r"split='test': expected one of \('train', 'held-out'\)"),
        ({"background": "noise", "window": 80}, r"window=80: expected a multiple of 4 in 8 .. 64"),
        ({"background": "noise", "window": 30}, r"window=30: expected a multiple of 4"),
        ({"background": "ghost", "videos": "x"}, r"videos: background='ghost' shows none"),
        ({"size": 1000}, r"size=1000: expected a multiple of 4 in 16 .. 512"),
        ({"background": "ghost", "window": 12}, r"window=12: expected at least 16 pixels for a g"),
        ({"background": "video", "videos": "~nobody/x"}, r"videos='~nobody/x': expected a folder"),
        ({"action_repeat": 0}, r"action_repeat=0: expected an integer in 1 .. 1000"),
        ({"action_repeat": 2.0}, r"action_repeat=2.0: expected an integer"),
        ({"action_repeat": True}, r"action_repeat=True: expected an integer"),
        ({"num_envs": 2.0}, r"num_envs=2.0: expected an integer in 1 .. "),
        ({"num_envs": -1}, r"num_envs=-1: expected an integer in 1 .. "),
        ({"size": 64.0}, r"size=64.0: expected a multiple of 4 in 16 .. 512"),
        ({"size": "64"}, r"size='64': expected a multiple of 4"),
        ({"window": "32"}, r"window='32': expected a multiple of 4 in 8 .. 64"),
        ({"background": "noise", "window": 32.0}, r"window=32.0: expected a multiple of 4"),
        ({"duration": 0}, r"duration=0: expected an integer in 1 .. "),
        ({"duration": "100"}, r"duration='100': expected an integer"),
        ({"duration": math.inf}, r"duration=inf: expected an integer"),
        ({"duration": math.nan}, r"duration=nan: expected an integer"),
        ({"duration": 10.5}, r"duration=10.5: expected an integer"),
        ({"duration": 10**30}, r"duration=1000000000000000000000000000000: expected an integer"),
        ({"sparse": "no"}, r"sparse='no': expected True or False"),
        ({"background": "video", "videos": 3}, r"videos=3: expected a folder of videos"),
        ({"background": "video", "videos": ""}, r"videos='': expected a folder of videos"),
        ({"backgroud": "video"}, r"no argument 'backgroud'; did you mean 'background'\?"),
    ],
)
def test_bad_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make("pixels/arm", **wrong)


def test_checkers_of_both_libraries_pass_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(to_gymnasium(envs.make("pixels/arm", background="ghost"), "rgb_array"))
        sb3_check_env(to_gymnasium(envs.make("pixels/point", background="noise")))


@pytest.mark.parametrize(
    ("id", "background"), [("pixels/arm", "ghost"), ("pixels/cartpole", "noise"), (IDS[2], "none")]
)
def test_a_step_never_looks_at_values_away_from_the_cpu(
    id: str, background: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on 'meta' have no values: any branch on one, copy to the host or index raises."""
    monkeypatch.setattr(BatchedEnv, "_synchronise", lambda _: None)  # which outside a step may look
    env: Any = envs.make(id, 8, device="meta", background=background, window=32)
    env.reset(seed=0)
    env._clock[:] = env.max_episode_steps - 2
    for _ in range(3):
        obs, *_, info = env.step(torch.empty(8, env.actions, device="meta"))
        assert obs.device.type == info["distractor"].device.type == "meta"
    assert env._clock.tolist() == [1] * 8  # the host knew when to begin the next episode


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("id", IDS)
def test_a_gpu_draws_what_the_cpu_draws(id: str) -> None:
    one, two = (
        envs.make(id, 16, device=device, background="ghost", seed=3) for device in ("cpu", "cuda")
    )
    one.reset()
    two.reset()
    for action in actions(one, 60):
        a, b = one.step(action), two.step(action.cuda())
        assert (a[0].int() - b[0].cpu().int()).abs().float().mean() < 0.1
        torch.testing.assert_close(a[1], b[1].cpu())


def test_other_resolutions_show_the_same() -> None:
    """84 pixels, scaled down, are nearly the picture of 28."""
    large, small = (envs.make("pixels/arm", size=s, seed=1) for s in (84, 28))
    a = torch.nn.functional.avg_pool2d(large.reset()[0].float(), 3)
    b = small.reset()[0].float()
    assert (a - b).abs().mean() < 2
    assert np.asarray(large.single_observation_space.shape).tolist() == [3, 84, 84]
