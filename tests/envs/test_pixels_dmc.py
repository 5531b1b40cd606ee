"""Suite tasks from pixels: cut-outs, ground truth, jitter, resume, renderers and what they lack."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import envs
from envs import gl
from envs.backdrop import CHANGE_EVERY, PLAIN

WALKER = "pixels/dmc/walker-stand"


def make(id: str = WALKER, num_envs: int = 2, **settings: Any) -> Any:
    """Pictures of 32 pixels, which are quick."""
    return envs.make(id, num_envs, **{"size": 32, "num_threads": 1, **settings})


def play(env: Any, steps: int, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shape = (env.num_envs, *env.single_action_space.shape)
    return [env.step(torch.rand(shape, generator=generator) * 2 - 1) for _ in range(steps)]


def seen(env: Any) -> Tensor:
    """Where the agent is in the picture, bool [N, R, R]."""
    return env.sim.render(env._camera, (env._side, env._side), "rgba", shadows=False)[:, 3] > 0


def test_every_task_of_the_suite_has_a_picture() -> None:
    names = [id.removeprefix("dmc/") for id in envs.ENVS if id.startswith("dmc/")]
    assert len(names) == 19
    assert {f"pixels/dmc/{name}" for name in names} <= set(envs.ENVS)


def test_the_contract_is_kept() -> None:
    """One task, all distractors; physics and rewards of the others are checked in test_suite."""
    settings: dict[str, Any] = {"size": 16, "background": "noise", "num_threads": 1}
    settings |= {"camera_jitter": 2, "colour_jitter": 0.3}
    envs.check("pixels/dmc/cartpole-swingup", steps=8, num_envs=2, **settings)


def test_the_agent_is_in_front_and_the_rest_is_the_backdrop() -> None:
    """Every pixel is the agent's own, as without a backdrop, or the backdrop's."""
    env = make(background="noise")
    obs, info = env.reset(seed=1)
    mask = seen(env)
    assert 0.01 < mask.float().mean() < 0.3
    alone = env.sim.render(env._camera, (32, 32), "rgb", shadows=False)
    expected = torch.where(mask[:, None], alone, env.backdrop.picture())
    assert torch.equal(obs, expected)
    assert info["distractor"].shape == (2, 48)
    segments = env.sim.render(env._camera, (32, 32), "segmentation")[:, 0]
    assert torch.equal(segments >= 0, mask)  # the mask is the segmentation, without planes


def test_without_a_background_there_is_a_floor() -> None:
    plain, noise = make(background="none"), make(background="noise")
    plain.reset(seed=1)
    noise.reset(seed=1)
    assert (seen(plain) & ~seen(noise)).float().mean() > 0.1
    assert not bool((seen(noise) & ~seen(plain)).any())


def test_physics_and_rewards_are_those_of_the_suite() -> None:
    """With repeats, whose rewards are added, and observations as ground truth."""
    env, state = make(action_repeat=3, seed=2), envs.make("dmc/walker-stand", 2, seed=2)
    env.reset()
    state.reset()
    assert env.max_episode_steps == 334
    for obs, reward, _, _, info in play(env, 4):
        assert obs.dtype == torch.uint8 and obs.shape == (2, 3, 32, 32)
        last = (reward, info["controllable"])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        action = torch.rand(2, 6, generator=generator) * 2 - 1
        results = [state.step(action) for _ in range(3)]
    torch.testing.assert_close(last[0], sum(r[1] for r in results))
    assert torch.equal(last[1], results[-1][0])


def test_nobody_controls_the_distractor() -> None:
    settings: dict[str, Any] = {"background": "video", "camera_jitter": 3, "colour_jitter": 0.5}
    one, two = make(seed=3, **settings), make(seed=3, **settings)
    one.reset()
    two.reset()
    for a, b in zip(play(one, CHANGE_EVERY + 2, 0), play(two, CHANGE_EVERY + 2, 1), strict=True):
        assert torch.equal(a[4]["distractor"], b[4]["distractor"])
    assert not torch.equal(a[4]["controllable"], b[4]["controllable"])
    assert a[4]["distractor"].shape == (2, 53)


def test_a_row_does_not_see_when_the_backdrop_of_another_changes() -> None:
    settings: dict[str, Any] = {"background": "ghost", "size": 16, "camera_jitter": 2, "seed": 7}
    one, two = (make("pixels/dmc/cartpole-swingup", n, **settings) for n in (1, 2))
    one.reset()
    two.reset()
    two.elapsed[1] = CHANGE_EVERY - 3
    for _ in range(5):
        a, b = one.step(torch.zeros(1, 1)), two.step(torch.zeros(2, 1))
        assert torch.equal(a[4]["distractor"], b[4]["distractor"][:1])


def has(renderer: str) -> bool:
    try:
        gl._context(renderer, 16).free()
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("renderer", ["ray", "egl", "osmesa"])
def test_a_camera_that_could_shake_shows_what_a_still_one_does(renderer: str) -> None:
    """As large, and no limb cut off: a wider lens makes room for the shifts."""
    if renderer != "ray" and not has(renderer):
        pytest.skip(f"no {renderer} here")
    settings: dict[str, Any] = {"background": "noise", "num_envs": 1, "renderer": renderer}
    still, shaky = (make(camera_jitter=j, **settings) for j in (0, 8))
    expected, _ = still.reset(seed=4)
    shaky.reset(seed=4)
    shaky.jitter.state[:] = 0
    obs = shaky._observe()
    assert (obs.int() - expected.int()).abs().float().mean() < 0.5
    assert (seen(shaky)[:, 8:-8, 8:-8] == seen(still)).float().mean() > 0.995
    for env in (still, shaky):
        env.close()


def test_a_shaking_camera_shifts_the_agent() -> None:
    """The cut-out is the still camera's, moved down and right by what ground truth says; the
    backdrop stays."""
    env = make(background="noise", camera_jitter=4)
    env.reset(seed=4)
    env.jitter.state[0], env.jitter.state[1] = 0.0, torch.tensor([2.0, -2.0, 0, 0, 0])
    obs = env._observe()
    whole = env.sim.render(env._camera, (40, 40), "rgba", shadows=False)
    for row, (top, left) in enumerate(((4, 4), (0, 8))):
        cut = whole[row, :, top : top + 32, left : left + 32]
        expected = torch.where(cut[3] > 0, cut[:3], env.backdrop.picture()[row])
        assert torch.equal(obs[row], expected)


def test_changing_light_scales_the_colours() -> None:
    env = make(background="none", colour_jitter=0.5)
    env.reset(seed=4)
    env.jitter.state[:] = torch.tensor([0, 0, 2.0, 0, -9.0])
    shown = env._observe()[seen(env)[:, None].expand(-1, 3, -1, -1)].view(-1).float()
    env.jitter.state[:] = 0
    plain = env._observe()
    gain = torch.tensor([1.5, 1.0, 0.5]).view(3, 1, 1)
    scaled = (plain * gain).clamp(max=255).round()
    expected = scaled[seen(env)[:, None].expand(-1, 3, -1, -1)]
    assert torch.equal(shown, expected)


def test_the_ghost_is_another_robot() -> None:
    """Its pool shows robots on plain ground, with the state of each; held-out ones are others."""
    env = make("pixels/dmc/cartpole-swingup", background="ghost", size=16)
    _, info = env.reset(seed=0)
    assert info["distractor"].shape == (2, 7)  # 5 observations, 2 shifts
    frames, labels = env.backdrop._frames, env.backdrop._labels
    assert frames.shape == (8 * 125, 3, 20, 20) and labels.shape == (8 * 125, 5)
    robot = (frames != torch.tensor(PLAIN, dtype=torch.uint8).view(3, 1, 1)).any(1)
    assert 0.002 < robot.float().mean() < 0.3
    assert labels[:, 0].std() > 0.1  # it moves about


def test_a_ghost_has_no_target_and_no_start_of_an_environment() -> None:
    """Only what is to be reached is red; a label has no more than what is shown."""
    env = make("pixels/dmc/reacher-easy", background="ghost", size=48)
    frames, labels = env.backdrop._frames, env.backdrop._labels
    plain = make("pixels/dmc/reacher-easy", num_envs=8, size=48)
    obs, info = plain.reset(seed=0)
    red = [(x[:, 0] - x[:, 1] > 80) & (x[:, 1] - x[:, 2] < 15) for x in (obs.int(), frames.int())]
    assert red[0].flatten(1).any(1).all() and not red[1].any()
    assert labels.shape[1] == 4  # two angles, two velocities
    starts = labels.view(8, 125, 4)[:, 0, :2]
    assert (info["controllable"][:, None, :2] - starts).abs().amax(-1).min() > 1e-3


def test_a_run_goes_on_from_its_state() -> None:
    settings: dict[str, Any] = {"background": "video", "camera_jitter": 2, "window": 20}
    env, other = make(seed=5, **settings), make(seed=6, **settings)
    env.reset()
    play(env, 7)
    other.reset()  # and has shown something else
    other.load_state_dict(env.state_dict())
    assert torch.equal(env._observe(), other._observe())
    for a, b in zip(play(env, 5, 1), play(other, 5, 1), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert torch.equal(a[4]["distractor"], b[4]["distractor"])
    with pytest.raises(ValueError, match="its backdrop has other pictures"):
        make(background="video", camera_jitter=2, window=20, split="held-out").load_state_dict(
            env.state_dict()
        )


def test_a_state_that_cannot_be_is_refused() -> None:
    env = make("pixels/dmc/cartpole-swingup", background="noise", size=16, camera_jitter=2)
    env.reset(seed=0)
    for name in ("jitter", "rows"):
        state, before = env.state_dict(), env.state_dict()
        state["state"][name][1, 1] = float("nan")
        with pytest.raises(ValueError, match=f"environment state '{name}': expected finite"):
            env.load_state_dict(state)
        after = env.state_dict()["state"]
        assert all(torch.equal(after[k], v) for k, v in before["state"].items())


@pytest.mark.skipif(not has("egl"), reason="no EGL here")
@pytest.mark.parametrize("task", ["walker-stand", "finger-turn_easy"])
def test_opengl_and_the_ray_tracer_agree(task: str) -> None:
    """On where the agent is (intersection over union above 0.98), and nearly on its colours."""
    ray, egl = (
        make(f"pixels/dmc/{task}", 4, size=84, background="noise", renderer=renderer)
        for renderer in ("ray", "egl")
    )
    a, b = ray.reset(seed=0)[0], egl.reset(seed=0)[0]
    backdrop = ray.backdrop.picture()
    assert torch.equal(backdrop, egl.backdrop.picture())
    one, two = (a != backdrop).any(1), (b != backdrop).any(1)
    assert (one & two).sum() / (one | two).sum() > 0.98
    both = (one & two)[:, None].expand_as(a)
    assert (a[both].float() - b[both].float()).abs().mean() < 12
    egl.close()


@pytest.mark.parametrize("renderer", ["egl", "osmesa"])
def test_a_missing_library_is_named(renderer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    library = {"egl": "libEGL", "osmesa": "libOSMesa"}[renderer]
    with pytest.raises(
        ImportError, match=rf"{library}.*apt-get install.*renderer='ray' needs only"
    ):
        make(renderer=renderer)


def test_a_process_that_has_another_opengl_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(ImportError, match=r"'osmesa': PYOPENGL_PLATFORM is 'egl'.*a new process"):
        make(renderer="osmesa")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"renderer": "vulkan"}, r"renderer='vulkan': expected one of \('ray', 'egl', 'osmesa'\)"),
        ({"camera": "front"}, r"camera='front': expected one of \['side', 'back'\]"),
        ({"size": 30}, r"size=30: expected a multiple of 4"),
        ({"size": 32.0}, r"size=32.0: expected a multiple of 4"),
        ({"num_envs": -1}, r"num_envs=-1: expected an integer in 1 .. "),
        ({"action_repeat": 0}, r"action_repeat=0: expected an integer in 1 .. 1000"),
        ({"action_repeat": 2.0}, r"action_repeat=2.0: expected an integer in 1 .. 1000"),
        ({"action_repeat": True}, r"action_repeat=True: expected an integer"),
        ({"camera_jitter": -1}, r"camera_jitter=-1: expected an integer in 0 .. 32"),
        ({"camera_jitter": 2.5}, r"camera_jitter=2.5: expected an integer in 0 .. 32"),
        ({"camera_jitter": True}, r"camera_jitter=True: expected an integer"),
        ({"colour_jitter": 2}, r"colour_jitter=2: expected a number in 0 .. 1"),
        ({"colour_jitter": float("nan")}, r"colour_jitter=nan: expected a number"),
        ({"colour_jitter": "x"}, r"colour_jitter='x': expected a number"),
        ({"colour_jitter": True}, r"colour_jitter=True: expected a number"),
        ({"window": 64}, r"window=64: expected a multiple of 4 in 8 .. 32"),
        ({"background": "sky"}, r"background='sky': expected one of"),
    ],
)
def test_bad_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)
