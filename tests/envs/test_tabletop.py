"""The tabletop: kinematics, determinism, safety flags, contacts, downstream tasks, both engines."""

from __future__ import annotations

import re
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from envs.base import SimulationError
from envs.mujoco import MjBatchSim, MujocoEnv
from envs.robots import ROBOTS, Panda, _quaternion
from envs.tabletop import BIN, HALF_SIZE, REACH_OF_START, TABLE, TASKS, Tabletop, make_tabletop

CONTROL_PERIOD = 0.05  # [s]


def make(num_envs: int = 2, **kwargs: Any) -> tuple[MujocoEnv, Tensor]:
    """An environment and its first observation [N, D]."""
    env = make_tabletop(num_envs, num_threads=kwargs.pop("num_threads", 1), **kwargs)
    return env, env.reset(seed=7)[0]


def table(env: MujocoEnv) -> Tabletop:
    """The environment's task."""
    assert isinstance(env.task, Tabletop)
    return env.task


def noise(env: MujocoEnv, steps: int, seed: int = 0) -> Tensor:
    """Random actions [steps, N, U] of which environment i's do not depend on N."""
    size = table(env).robot.action_size
    draws = [
        torch.rand(steps, size, generator=torch.Generator().manual_seed(seed + i))
        for i in range(env.num_envs)
    ]
    return 2 * torch.stack(draws, 1) - 1


def still(env: MujocoEnv, **components: float) -> Tensor:
    """The action [N, U] of doing nothing, apart from `x`, `y`, `z`, `turn` (yaw) and `grip`."""
    action = torch.zeros(env.num_envs, table(env).robot.action_size)
    for name, value in components.items():
        action[:, {"x": 0, "y": 1, "z": 2, "turn": -2, "grip": -1}[name]] = value
    return action


def put_object(env: MujocoEnv, position: Tensor, index: int = 0) -> None:
    """Let an object rest at `position` [N, 3] or [3] [m], unrotated."""
    joints = table(env).robot.joints
    row, row_v = joints + 7 * index, joints + 6 * index
    env.sim.qpos[:, row : row + 3] = position.to(env.sim.qpos.dtype)
    env.sim.qpos[:, row + 3 : row + 7] = torch.tensor([1.0, 0, 0, 0], dtype=env.sim.qpos.dtype)
    env.sim.qvel[:, row_v : row_v + 6] = 0


def go(env: MujocoEnv, target: tuple[float, float, float], steps: int, grip: float) -> Any:
    """Servo the tool to `target` [m]; returns the last step."""
    scale = 0.05 if table(env).robot.action_size == 5 else 0.03
    result = None
    for _ in range(steps):
        tool, _ = table(env).robot.tool(env.sim)
        action = still(env, grip=grip)
        action[:, :3] = (torch.tensor(target) - tool) / scale
        result = env.step(action.clamp(-1, 1))
    return result


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, through nested tuples and dicts."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)


def panda() -> tuple[MujocoEnv, Panda]:
    """One Panda, to look into."""
    env, _ = make(1, robot="panda")
    robot = table(env).robot
    assert isinstance(robot, Panda)
    return env, robot


# ---- kinematics of the Panda


def test_forward_kinematics_and_jacobian_match_mujoco() -> None:
    env, robot = panda()
    model = env.sim.model
    data, site = mujoco.MjData(model), model.site("tool").id
    rng = np.random.default_rng(0)
    for _ in range(20):
        data.qpos[:7] = rng.uniform(*model.jnt_range[:7].T)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        expected = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, data, expected[:3], expected[3:], site)
        pose, jacobian = robot._chain(torch.from_numpy(data.qpos[:7, None].copy()))
        np.testing.assert_allclose(pose[:3, 3, 0], data.site_xpos[site], atol=1e-10)
        np.testing.assert_allclose(pose[:3, :3, 0].ravel(), data.site_xmat[site], atol=1e-10)
        np.testing.assert_allclose(jacobian[..., 0], expected[:, :7], atol=1e-10)


def test_quaternions_match_mujoco_and_have_one_sign() -> None:
    rng = np.random.default_rng(1)
    for q in [*rng.normal(size=(50, 4)), *np.eye(4), [1e-9, 1, 0, 0], [-1e-9, 0, 0.6, 0.8]]:
        quaternion, matrix = np.asarray(q) / np.linalg.norm(q), np.empty(9)
        mujoco.mju_quat2Mat(matrix, quaternion)
        actual = _quaternion(torch.from_numpy(matrix.reshape(3, 3, 1)))[:, 0].numpy()
        assert actual[0] >= 0
        assert abs(actual @ quaternion) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("start", REACH_OF_START)
def test_every_start_is_in_reach_of_the_panda(start: str) -> None:
    env, robot = panda()
    near, far, low, high = REACH_OF_START[start]
    angle, radius, height = torch.meshgrid(
        torch.linspace(0, 2 * torch.pi, 73),
        torch.linspace(near, far, 7),
        torch.linspace(low, high, 7),
        indexing="ij",
    )
    position = torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1).view(-1, 3)
    joints = robot.start(env.sim, env.rng, position.double())
    pose, _ = robot._chain(joints[:, :7].T)
    assert (pose[:3, 3].T - position).abs().max() < 1e-6
    assert (pose[:3, :3] - torch.eye(3)[..., None]).abs().max() < 1e-6
    assert ((joints[:, :7] > robot._margin_low) & (joints[:, :7] < robot._margin_high)).all()


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("start", REACH_OF_START)
def test_the_tool_starts_where_it_should_and_stays_there(robot: str, start: str) -> None:
    env, obs = make(64, robot=robot, start=start)
    near, far, low, high = REACH_OF_START[start]
    tool, _ = table(env).robot.tool(env.sim)
    radius = tool[:, :2].norm(dim=1)
    assert (near - 1e-3 < radius).all() and (radius < far + 1e-3).all()
    assert (low - 1e-3 < tool[:, 2]).all() and (tool[:, 2] < high + 1e-3).all()
    for _ in range(5):
        info = env.step(still(env))[4]
    assert (table(env).robot.tool(env.sim)[0] - tool).norm(dim=1).max() < 1e-3
    # Nothing was inside anything else: the cubes have not moved.
    assert (info["object_position"] - obs[:, None, table(env).skill_columns]).abs().max() < 2e-3
    assert not info["contact"].any() and not info["cost"].any()


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_tool_goes_where_it_is_told(robot: str) -> None:
    env, _ = make(64, robot=robot, start="easy")
    scale, speed = 0.05 if robot == "gantry" else 0.03, 0.3
    arm = table(env).robot
    phase = 0.7 * torch.arange(64)
    worst = 0.0
    for t in range(40):
        direction = torch.stack([(phase + t / 8).cos(), (phase + t / 8).sin()], 1)
        action = still(env)
        action[:, :2] = direction * speed * CONTROL_PERIOD / scale
        target = arm.tool(env.sim)[0] + scale * action[:, :3]
        target = torch.clamp(target, arm.low, arm.high)
        info = env.step(action)[4]
        free = ~info["at_joint_limit"]  # the Panda's elbow folds only so far, close to its base
        assert free.float().mean() > 0.9
        error = (arm.tool(env.sim)[0] - target).norm(dim=1)
        worst = max(worst, float(error[free].max()))
    assert worst < 0.01


def test_the_panda_turns_its_hand_in_the_frame_of_the_world() -> None:
    env, obs = make(8, robot="panda", start="easy")
    for axis in range(3):
        env.reset(seed=axis)
        for _ in range(4):
            action = still(env)
            action[:, 3 + axis] = 0.5
            obs = env.step(action)[0]
        turn = 2 * torch.asin(obs[:, 20:23])  # of the quaternion; 4 · 0.125 rad, less the lag
        assert (turn[:, axis] > 0.25).all()
        assert (turn[:, [i for i in range(3) if i != axis]].abs() < 0.06).all()


# ---- observations


@pytest.mark.parametrize(("robot", "first"), [("gantry", 22), ("panda", 42)])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objects", [1, 2, 3])
def test_observation_size(robot: str, first: int, task: str, objects: int) -> None:
    env, obs = make(1, robot=robot, task=task, objects=objects)
    count = table(env).objects
    columns = {"none": 0, "push": 6, "safe-push": 7, "sequence": 6 + count, "lift": 3, "place": 6}
    assert count == max(objects, 2 if task == "sequence" else 1)
    assert obs.shape == (1, first + 11 * (count - 1) + columns[task])
    assert env.single_observation_space.shape == obs.shape[1:]
    position = table(env).poses(env.sim)[0][0, :, :3]
    assert torch.equal(obs[0, table(env).skill_columns], position.flatten())


def test_the_panda_observes_its_tool_as_mujoco_does() -> None:
    env, _ = make(1, robot="panda", start="easy")
    for action in noise(env, 10):
        obs = env.step(action)[0][0]
    model, data = env.sim.model, mujoco.MjData(env.sim.model)
    data.qpos[:], data.qvel[:] = env.sim.qpos[0].numpy(), env.sim.qvel[0].numpy()
    mujoco.mj_forward(model, data)
    jacobian = np.zeros((6, model.nv))
    mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], model.site("tool").id)
    twist = jacobian @ data.qvel
    rotation = np.empty(4)
    mujoco.mju_mat2Quat(rotation, data.site("tool").xmat)
    np.testing.assert_allclose(obs[:9], data.qpos[:9], atol=1e-6)
    np.testing.assert_allclose(obs[9:16], data.qvel[:7], atol=1e-5)
    np.testing.assert_allclose(obs[16:19], data.site("tool").xpos, atol=1e-6)
    np.testing.assert_allclose(obs[19:23], rotation * np.sign(rotation[0]), atol=1e-6)
    np.testing.assert_allclose(obs[23:29], twist, atol=1e-5)
    np.testing.assert_allclose(obs[29:32], data.body("object0").xpos, atol=1e-6)


# ---- determinism


@pytest.mark.parametrize("robot", ROBOTS)
def test_random_actions_stay_finite(robot: str) -> None:
    env, _ = make(64, robot=robot, objects=2)
    for action in noise(env, 200):
        obs, reward, _, _, info = env.step(action)
        assert obs.isfinite().all() and reward.isfinite().all()
    assert info["reward_terms"].isfinite().all()
    assert obs.abs().max() < 100


@pytest.mark.parametrize("robot", ROBOTS)
def test_independent_of_threads_and_of_the_number_of_environments(robot: str) -> None:
    runs = []
    for num_envs, num_threads in ((13, 1), (13, 2), (5, 1)):
        env, first = make(num_envs, num_threads=num_threads, robot=robot, task="push", horizon=20)
        steps = [env.step(action)[:4] for action in noise(env, 30)]
        runs.append([first, *steps])
    assert_same(runs[0], runs[1])
    assert torch.equal(runs[0][0][:5], runs[2][0])
    for wide, narrow in zip(runs[0][1:], runs[2][1:], strict=True):
        assert_same([x[:5] for x in wide], list(narrow))


@pytest.mark.parametrize(
    ("robot", "task"), [*(("gantry", task) for task in TASKS), ("panda", "none"), ("panda", "push")]
)
def test_a_loaded_state_continues_bit_for_bit(robot: str, task: str) -> None:
    env, _ = make(4, robot=robot, task=task, objects=2)
    actions = noise(env, 80)
    for action in actions[:20]:
        env.step(action)
    saved = env.state_dict()
    fresh, _ = make(4, robot=robot, task=task, objects=2)
    fresh.step(actions[0])
    fresh.load_state_dict(saved)
    resets = 0
    for action in actions[20:]:
        step = env.step(action)
        assert_same(step, fresh.step(action))
        resets += int(step[3].sum())
    assert resets == 4


def test_info_is_not_overwritten_by_the_next_step() -> None:
    env, _ = make(2, start="easy", horizon=3)
    steps = []
    for action in noise(env, 6):
        info = env.step(action)[4]
        steps.append((info, {name: value.clone() for name, value in info.items()}))
    for info, copy in steps:
        assert_same(info, copy)


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_engine_is_mj_step(robot: str) -> None:
    model = Tabletop(robot, objects=2).model()
    sim = MjBatchSim(model, 2, num_threads=1)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(0)
    for _ in range(50):
        data.ctrl[:] = rng.uniform(*model.actuator_ctrlrange.T)
        sim.ctrl.copy_(torch.from_numpy(data.ctrl.copy()))
        for _ in range(Tabletop.frame_skip):
            mujoco.mj_step(model, data)
        sim.step(Tabletop.frame_skip)
        assert np.array_equal(sim.qpos[1].numpy(), data.qpos)
        assert np.array_equal(sim.qvel[1].numpy(), data.qvel)


@pytest.mark.parametrize("robot", ROBOTS)
def test_both_engines_agree(robot: str) -> None:
    batch, first = make(4, robot=robot, start="easy", task="push")
    warp, other = make(4, robot=robot, start="easy", task="push", backend="warp")
    torch.testing.assert_close(other, first, atol=1e-5, rtol=0)
    for _ in range(5):  # a cube that has just been put down is about to touch the table, or does
        batch.step(still(batch))
    for name in ("qpos", "qvel", "ctrl"):
        getattr(warp.sim, name).copy_(getattr(batch.sim, name))
    action = noise(batch, 1)[0]
    obs, reward, _, _, info = batch.step(action)
    other, other_reward, _, _, other_info = warp.step(action)
    torch.testing.assert_close(other, obs, atol=1e-4, rtol=0)
    torch.testing.assert_close(other_reward, reward, atol=1e-4, rtol=0)
    assert torch.equal(other_info["contact"], info["contact"])
    before = {name: value.clone() for name, value in other_info.items()}
    warp.sim.qpos.zero_()  # float32 like the observations: a view would follow
    assert_same(other_info, before)


# ---- safety


def test_no_constraint_is_violated_above_the_centre() -> None:
    for robot in ROBOTS:
        env, _ = make(4, robot=robot, start="easy")
        reward, info = go(env, (0.0, 0.0, 0.15), 10, grip=-1)[1::3]
        for flag in ("at_edge", "pressing", "off_table", "at_joint_limit"):
            assert not info[flag].any(), flag
        assert (info["speed"] < 1).all()
        assert not info["cost"].any()
        torch.testing.assert_close(reward, info["reward_terms"].sum(1))
        assert (info["reward_terms"][:, 1] == 0).all()


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("way", ["x", "y"])
def test_at_edge(robot: str, way: str) -> None:
    env, _ = make(1, robot=robot, start="easy")
    sideways = -1.0 if way == "x" else 1.0  # away from where the arm is at full stretch
    for _ in range(25):
        info = env.step(still(env, **{way: sideways}))[4]
    assert info["at_edge"].all()
    assert (info["reward_terms"][:, 1] <= -1).all()


@pytest.mark.parametrize("robot", ["gantry", "panda"])
def test_pressing_the_table(robot: str) -> None:
    env, _ = make(1, robot=robot, start="easy")
    put_object(env, torch.tensor([0.3, 0.3, HALF_SIZE]))
    above = go(env, (0.0, 0.0, 0.03), 15, grip=1)[4]
    assert not above["pressing"].any()
    pressed = go(env, (0.0, 0.0, -0.03), 10, grip=1)[4]
    assert pressed["pressing"].all()
    assert (pressed["cost"] >= 1).all()


def test_resting_on_the_table_is_not_pressing() -> None:
    env, _ = make(1, start="easy")
    put_object(env, torch.tensor([0.3, 0.3, HALF_SIZE]))
    info = go(env, (0.0, 0.0, 0.02), 15, grip=1)[4]
    assert not info["pressing"].any()
    assert not info["at_joint_limit"].any()


@pytest.mark.parametrize(
    "place", [(TABLE + 0.01, 0.0, HALF_SIZE), (0.0, -TABLE - 0.01, HALF_SIZE), (0.6, 0.0, -0.07)]
)
def test_off_table(place: tuple[float, float, float]) -> None:
    env, _ = make(2, objects=2)
    put_object(env, torch.tensor(place), index=1)
    info = env.step(still(env))[4]
    assert info["off_table"].tolist() == [[False, True]] * 2
    assert info["cost"].tolist() == [1, 1]


def test_too_fast() -> None:
    env, _ = make(2, start="easy")
    env.sim.qvel[0, 0] = 4.0
    info = env.step(still(env))[4]
    assert (info["speed"] > 1).tolist() == [True, False]
    assert info["cost"].tolist() == [1, 0]


def test_at_joint_limit() -> None:
    env, _ = make(1, robot="panda", start="easy")
    before = False
    for _ in range(30):
        info = env.step(still(env, turn=1))[4]
        before |= not info["at_joint_limit"].any()
    assert before and info["at_joint_limit"].all()


# ---- touching


@pytest.mark.parametrize("robot", ROBOTS)
def test_grasp_and_lift(robot: str) -> None:
    env, _ = make(2, robot=robot, start="easy", task="lift", horizon=200)
    put_object(env, torch.tensor([0.0, 0.0, HALF_SIZE]))
    info = go(env, (0.0, 0.0, 0.12), 15, grip=-1)[4]
    assert not info["contact"].any() and not info["grasp"].any()
    info = go(env, (0.0, 0.0, 0.02), 15, grip=-1)[4]
    assert not info["grasp"].any() and not info["lifted"].any()
    info = go(env, (0.0, 0.0, 0.02), 8, grip=1)[4]
    assert info["contact"].all() and info["grasp"].all()
    assert not info["lifted"].any() and not info["success"].any()
    info = go(env, (0.0, 0.0, 0.15), 15, grip=1)[4]
    assert info["grasp"].all() and info["lifted"].all() and info["success"].all()
    info = go(env, (0.0, 0.0, 0.15), 10, grip=-1)[4]
    assert not info["lifted"].any() and not info["success"].any()


@pytest.mark.parametrize("robot", ROBOTS)
def test_push(robot: str) -> None:
    env, _ = make(2, robot=robot, start="easy", horizon=200)
    put_object(env, torch.tensor([0.2, 0.2, HALF_SIZE]))
    go(env, (-0.1, 0.0, 0.1), 15, grip=1)
    go(env, (-0.1, 0.0, 0.03), 10, grip=1)
    put_object(env, torch.tensor([0.0, 0.0, HALF_SIZE]))
    touched = False
    for _ in range(25):
        info = go(env, (0.1, 0.0, 0.03), 1, grip=1)[4]
        touched |= bool(info["contact"].all())
    assert touched
    assert (info["object_position"][:, 0, 0] > 0.08).all()
    assert (info["object_position"][:, 0, 2] < HALF_SIZE + 0.005).all()


# ---- downstream tasks


def goal(env: MujocoEnv, index: int = 0) -> Tensor:
    """Where an object rests on a goal [N, 3]."""
    position = env.sim.mocap_pos[:, index].clone()
    position[:, 2] = HALF_SIZE
    return position


@pytest.mark.parametrize("task", ["push", "safe-push"])
def test_success_of_push(task: str) -> None:
    env, _ = make(2, task=task)
    for offset, expected in ((0.06, False), (0.04, True), (0.0, True)):
        put_object(env, goal(env) + torch.tensor([0.0, offset, 0.0]))
        obs, reward, _, _, info = env.step(still(env))
        assert info["success"].tolist() == [expected] * 2
        task_reward = float(expected) - offset
        assert info["reward_terms"][:, 2].tolist() == pytest.approx([task_reward] * 2, abs=2e-3)
        torch.testing.assert_close(reward, info["reward_terms"] @ torch.tensor([0.1, 0, 1]))
        torch.testing.assert_close(obs[:, 22:25], goal(env).float() - info["object_position"][:, 0])


def test_safe_push_refuses_success_once_the_budget_is_spent() -> None:
    env, _ = make(2, task="safe-push", objects=2)
    successes, left = [], []
    for _ in range(6):
        put_object(env, goal(env))
        put_object(env, torch.tensor([0.6, 0.0, -0.07]), index=1)  # one violation per step
        obs, _, _, _, info = env.step(still(env))
        successes.append(info["success"].all().item())
        left.append(obs[0, -1].item())
    assert successes == [True] * 5 + [False]
    assert left == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, -0.2], abs=1e-6)
    env.reset()
    put_object(env, goal(env))
    assert env.step(still(env))[4]["success"].all()


def test_sequence_needs_the_order() -> None:
    env, _ = make(2, task="sequence")
    away = torch.tensor([[0.35, 0.35, HALF_SIZE], [-0.35, -0.35, HALF_SIZE]])
    stages = []
    for on_goal in ((False, True), (False, True), (True, False), (False, False), (False, True)):
        for i in range(2):
            put_object(env, goal(env, i) if on_goal[i] else away[i], index=i)
        obs, _, _, _, info = env.step(still(env))
        stages.append((obs[0, -2:].tolist(), info["success"].all().item()))
    first, second, finished = [1, 0], [0, 1], [0, 0]
    assert stages == [
        (first, False),
        (first, False),
        (second, False),
        (second, False),
        (finished, True),
    ]


def test_success_of_place() -> None:
    env, _ = make(2, task="place")
    outcomes = []
    for x, z in ((0.0, HALF_SIZE), (BIN[0], 0.2), (BIN[0], HALF_SIZE)):
        put_object(env, torch.tensor([x, 0.0, z]))
        outcomes.append(env.step(still(env))[4]["success"].tolist())
    assert outcomes == [[False] * 2, [False] * 2, [True] * 2]


def test_an_object_in_the_air_is_not_a_successful_lift() -> None:
    env, _ = make(2, task="lift")
    put_object(env, torch.tensor([0.0, 0.0, 0.15]))
    info = env.step(still(env))[4]
    assert info["lifted"].all() and not info["success"].any()


def test_reward_scale_multiplies_its_term_only() -> None:
    plain, _ = make(4, task="push", start="easy")
    scaled, _ = make(4, task="push", start="easy", reward_scale={"safety": 10.0})
    for env in (plain, scaled):
        put_object(env, torch.tensor([0.6, 0.0, -0.07]))
    expected = plain.step(still(plain))[4]["reward_terms"]
    actual = scaled.step(still(scaled))[4]["reward_terms"]
    assert (expected[:, 1] < 0).all()
    torch.testing.assert_close(actual, expected * torch.tensor([1.0, 10.0, 1.0]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"robot": "ur5"}, "robot='ur5': expected one of gantry, panda"),
        ({"task": "pull"}, f"task='pull': expected one of {', '.join(TASKS)}"),
        ({"start": "medium"}, "start='medium': expected one of easy, hard"),
        ({"objects": 4}, "objects=4: expected one of 1, 2, 3"),
        ({"horizon": 0}, "horizon=0: expected at least 1"),
        (
            {"reward_scale": {"reech": 2.0}},
            "reward_scale: unknown term 'reech', expected some of ('reach', 'safety')",
        ),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_tabletop(1, **kwargs)


def test_mujoco_that_gives_up_is_a_simulation_error():
    """A stack of boxes in 4 kB of memory: the error says which simulation, and what to do."""
    boxes = "".join(
        f'<body pos="0 0 {0.05 + 0.1 * i}"><freejoint/><geom type="box" size=".05 .05 .05"/></body>'
        for i in range(4)
    )
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><size memory="4K"/><worldbody><geom type="plane" size="1 1 1"/>{boxes}'
        "</worldbody></mujoco>"
    )
    with pytest.raises(SimulationError, match=r"3 of 3 simulations.*out of memory.*increase"):
        MjBatchSim(model, 3).step(5)
