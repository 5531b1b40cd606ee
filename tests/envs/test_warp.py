"""`MjWarpSim` against C MuJoCo, and the ray tracer's pictures."""

from __future__ import annotations

import copy

import mujoco
import pytest
import torch
from torch import Tensor

from envs.base import SimulationError
from envs.mujoco import BatchedSim, MjBatchSim
from envs.warp import BACKGROUND, MjWarpSim, Renderer, default_capacities

# Two balls squeeze a blue cube that stands on a plane; a red mocap box is only there to be seen.
XML = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast">
    <flag autoreset="disable"/>
  </option>
  <visual>
    <headlight ambient=".5 .5 .5" diffuse=".5 .5 .5" specular="0 0 0"/>
  </visual>
  <worldbody>
    <camera name="front" pos="0 -1 .3" xyaxes="1 0 0 0 0 1" fovy="60"/>
    <camera name="top" pos="0 0 2" xyaxes="1 0 0 0 1 0"/>
    <geom type="plane" size="1 1 .1" rgba=".5 .5 .5 1"/>
    <body name="hand" pos="0 0 .05">
      <joint name="lift" type="slide" axis="0 0 1" range="0 .3" damping="5"/>
      <joint name="yaw" type="hinge" axis="0 0 1" range="-1 1" damping="1" armature=".1"/>
      <geom type="sphere" size=".01" pos="0 0 .1" mass=".2" contype="0" conaffinity="0"/>
      <body name="left" pos="-.05 0 0">
        <joint name="left" type="slide" axis="1 0 0" damping="5"/>
        <geom name="left" type="sphere" size=".02" mass=".1" friction="2"/>
        <site name="left" type="sphere" size=".03"/>
      </body>
      <body name="right" pos=".05 0 0">
        <joint name="right" type="slide" axis="-1 0 0" damping="5"/>
        <geom name="right" type="sphere" size=".02" mass=".1" friction="2"/>
      </body>
    </body>
    <body name="cube" pos="0 0 .03">
      <freejoint/>
      <geom type="box" size=".03 .03 .03" mass=".1" rgba="0 0 1 1"/>
    </body>
    <body name="goal" mocap="true" pos="0 .5 .3">
      <geom type="box" size=".2 .1 .2" contype="0" conaffinity="0" rgba="1 0 0 1"/>
    </body>
  </worldbody>
  <tendon>
    <fixed name="grip"><joint joint="left" coef="1"/><joint joint="right" coef="1"/></fixed>
  </tendon>
  <actuator>
    <position joint="lift" kp="200" kv="10"/>
    <motor tendon="grip"/>
  </actuator>
  <sensor>
    <touch site="left"/>
    <framepos objtype="body" objname="cube"/>
  </sensor>
</mujoco>
"""
CUBE = slice(4, 7)  # its position in qpos
N = 4
ALL = torch.ones(N, dtype=torch.bool)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(XML)


@pytest.fixture(scope="module")
def shared_sim(model: mujoco.MjModel) -> MjWarpSim:
    return MjWarpSim(model, N)


@pytest.fixture
def sim(shared_sim: MjWarpSim) -> MjWarpSim:
    shared_sim.reset(ALL)
    return shared_sim


def grasp(sim: BatchedSim) -> None:
    """Squeeze the cube, differently in every simulation."""
    reach = torch.tensor([0.0, 0.001, 0.002, 0.003]).to(sim.qpos)
    sim.qpos[:, 2:4] = reach[:, None]
    sim.qvel[:, 0] = 10 * reach
    sim.ctrl[:, 0] = 20 * reach
    sim.ctrl[:, 1] = 5


def assert_agrees_with_c(sim: MjWarpSim, reference: MjBatchSim) -> None:
    """One control step from equal states; later ones are chaotic."""
    reference.reset(ALL)
    for each in (sim, reference):
        grasp(each)
        for name in ("xpos", "xmat", "sensordata"):
            each.field(name)  # C MuJoCo fills what is bound before a step
        each.step(5, fresh=True)
    touch = reference.field("sensordata")[:, 0]
    assert (touch > 1).all()  # [N]: there was contact to disagree about
    torch.testing.assert_close(sim.qpos.double().cpu(), reference.qpos, atol=1e-4, rtol=0)
    for name in ("xpos", "xmat"):  # of the state now, not one physics step ago
        derived = sim.field(name).double().cpu()
        torch.testing.assert_close(derived, reference.field(name), atol=1e-4, rtol=0)
    sensors = sim.field("sensordata").double().cpu()
    torch.testing.assert_close(sensors[:, 0], touch, atol=0, rtol=1e-2)
    torch.testing.assert_close(sensors[:, 1:].float(), sim.qpos[:, CUBE].cpu())


def test_one_control_step_agrees_with_c_mujoco(sim: MjWarpSim, model: mujoco.MjModel) -> None:
    assert_agrees_with_c(sim, MjBatchSim(model, N, num_threads=1))


def test_derived_fields_lag_one_physics_step_unless_fresh(sim: MjWarpSim) -> None:
    sim.qpos[:, CUBE] = torch.tensor([0.3, 0.0, 0.5])
    sim.step(5)
    height = sim.field("xpos")[:, -2, 2]
    assert (height > sim.qpos[:, 6] + 1e-4).all()
    sim.forward()
    torch.testing.assert_close(height, sim.qpos[:, 6])


def test_views_are_live(sim: MjWarpSim) -> None:
    qpos, time = sim.qpos, sim.time
    qpos[:, CUBE] = torch.tensor([[0.3, 0.0, height] for height in (0.2, 0.4, 0.6, 0.8)])
    for _ in range(2):  # the second one is replayed
        sim.step(2)
    fallen = 0.5 * 9.81 * 0.02**2
    torch.testing.assert_close(
        qpos[:, 6], torch.tensor([0.2, 0.4, 0.6, 0.8]) - fallen, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(time, torch.full((N,), 0.02))
    assert sim.field("qpos").data_ptr() == qpos.data_ptr()


def test_reset_touches_only_masked_rows(sim: MjWarpSim, model: mujoco.MjModel) -> None:
    grasp(sim)
    sim.mocap_pos += 1
    sim.step(3)
    before = {name: value.clone() for name, value in sim.state().items()}
    mask = torch.tensor([True, False, False, True])
    sim.reset(mask)
    for name, value in sim.state().items():
        assert torch.equal(value[~mask], before[name][~mask]), name
    assert torch.equal(sim.qpos[mask], torch.tensor(model.qpos0).float().expand(2, -1))
    for value in (sim.qvel, sim.time, sim.ctrl):
        assert not value[mask].any()
    torch.testing.assert_close(sim.mocap_pos[mask][:, 0], torch.tensor([[0.0, 0.5, 0.3]] * 2))


def test_state_continues_identically(sim: MjWarpSim, model: mujoco.MjModel) -> None:
    grasp(sim)
    sim.field("qfrc_applied")[:, 4] = 0.3  # a push the user keeps up
    sim.step(5)
    saved = {name: value.clone() for name, value in sim.state().items()}
    sim.step(5)
    expected = {name: value.clone() for name, value in sim.state().items()}
    restored = MjWarpSim(model, N)
    for name, value in restored.state().items():
        value.copy_(saved[name])
    restored.step(5)
    for name, value in restored.state().items():
        assert torch.equal(value, expected[name]), name


def test_params_carry_their_derived_constants(model: mujoco.MjModel) -> None:
    sim = MjWarpSim(model, N)
    grasp(sim)
    sim.step(1)  # captured before there were parameters
    before = sim.qpos.clone()
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0])
    params = {
        name: scale.view(N, *[1] * getattr(model, name).ndim)
        * torch.tensor(getattr(model, name)).float()
        for name in ("body_mass", "body_inertia")
    }
    sim.set_params(params)
    assert torch.equal(sim.qpos, before)
    state = sim.state()
    for row, factor in enumerate(scale.tolist()):
        reference = copy.copy(model)
        reference.body_mass *= factor
        reference.body_inertia *= factor
        mujoco.mj_setConst(reference, mujoco.MjData(reference))
        for name in (
            *("body_mass", "body_subtreemass", "body_invweight0", "dof_invweight0"),
            *("tendon_invweight0", "actuator_acc0"),
        ):
            expected = torch.tensor(getattr(reference, name)).float()
            torch.testing.assert_close(
                state[f"model.{name}"][row], expected, atol=1e-5, rtol=1e-5, msg=f"{name} {row}"
            )
    # the graph captured earlier must not be replayed: one newton on the cube, F / m = a
    sim.reset(ALL)
    sim.qpos[:, 6] = 0.5
    sim.field("qfrc_applied")[:, 4] = 1.0
    sim.step(1)
    torch.testing.assert_close(sim.qvel[:, 4], 0.005 / (0.1 * scale))


def test_params_of_other_rows_and_fields_are_kept(model: mujoco.MjModel) -> None:
    sim = MjWarpSim(model, N)
    damping = torch.tensor(model.dof_damping).float().expand(N, -1)
    mask = torch.tensor([False, True, False, False])
    sim.set_params({"dof_damping": 2 * damping}, mask)
    sim.set_params({"geom_friction": torch.full((N, model.ngeom, 3), 0.5)})
    scale = torch.tensor([1.0, 2.0, 1.0, 1.0])
    torch.testing.assert_close(sim.state()["model.dof_damping"], scale[:, None] * damping)


def test_params_name_what_is_wrong(sim: MjWarpSim) -> None:
    with pytest.raises(ValueError, match=r"body_parentid.*cannot differ"):
        sim.set_params({"body_parentid": torch.zeros(N, 6)})
    with pytest.raises(ValueError, match=r"body_mass: expected shape \(4, 6\), got \(4, 1\)"):
        MjWarpSim(sim.model, N).set_params({"body_mass": torch.ones(N, 1)})


@pytest.mark.parametrize("limit", ["njmax", "nconmax"])
def test_overflow_is_reported_even_after_a_reset(model: mujoco.MjModel, limit: str) -> None:
    sim = MjWarpSim(model, N, njmax=5) if limit == "njmax" else MjWarpSim(model, N, nconmax=1)
    grasp(sim)
    sim.qpos[:3, CUBE] = torch.tensor([0.3, 0.0, 0.5])  # the last row alone has contacts
    sim.qpos[3, 6] = 0.029
    sim.step(1)
    sim.reset(ALL)
    # rows have their own constraints and share the contacts
    rows = r"1 of 4 .*\(3\)" if limit == "njmax" else r"4 of 4 .*\(0, 1, 2, 3\)"
    with pytest.raises(SimulationError, match=rf"{limit}=\d .*in {rows}"):
        sim.check_overflow()
    sim.check_overflow()  # each overflow is reported once


def test_default_capacities_hold_the_grasp(sim: MjWarpSim) -> None:
    assert default_capacities(sim.model) == (24, 24 * 4 + 2)
    grasp(sim)
    sim.step(5)
    sim.check_overflow()


def test_model_without_mocap_sensors_or_contacts() -> None:
    xml = "<mujoco><worldbody><body><joint/><geom size='.1'/></body></worldbody></mujoco>"
    sim = MjWarpSim(mujoco.MjModel.from_xml_string(xml), 2)
    assert sim.mocap_pos.shape == (2, 0, 3)
    assert sim.ctrl.shape == sim.field("sensordata").shape == (2, 0)
    for value in sim.state().values():
        value.copy_(value.clone())


def is_red(image: Tensor) -> Tensor:
    red, green, blue = image.int().unbind(0)
    return (red > 100) & (green < 50) & (blue < 50)


def is_blue(image: Tensor) -> Tensor:
    red, green, blue = image.int().unbind(0)
    return (blue > 100) & (green < 50) & (red < 50)


def place_for_picture(qpos: Tensor, mocap_pos: Tensor) -> None:
    """Red to the right, then to the left; the cube above, then below."""
    mocap_pos[:, 0] = torch.tensor([[0.4, 0.5, 0.3], [-0.4, 0.5, 0.3]])
    qpos[:, CUBE] = torch.tensor([[0.0, -0.6, 0.4], [0.0, -0.6, 0.2]])


@pytest.fixture(scope="module")
def pictures(model: mujoco.MjModel) -> Tensor:
    qpos = torch.tensor(model.qpos0).repeat(2, 1)  # float64, as C MuJoCo has it
    mocap_pos = torch.zeros(2, 1, 3)
    place_for_picture(qpos, mocap_pos)
    renderer = Renderer(model, 2, "front", (48, 64))
    first = renderer.render(torch.zeros_like(qpos), torch.zeros_like(mocap_pos))
    kept = first.clone()
    images = renderer.render(qpos, mocap_pos)
    assert torch.equal(first, kept)  # a picture is not overwritten by the next one
    return images


def test_picture_has_the_right_colours_at_the_right_places(pictures: Tensor) -> None:
    assert pictures.shape == (2, 3, 48, 64)
    assert pictures.dtype == torch.uint8
    right, left = is_red(pictures[0]), is_red(pictures[1])
    above, below = is_blue(pictures[0]), is_blue(pictures[1])
    for full, empty, pixels in (
        (right[:, 32:], right[:, :32], 100),
        (left[:, :32], left[:, 32:], 100),
        (above[:24], above[24:], 10),
        (below[24:], below[:24], 10),
    ):
        assert full.sum() > pixels
        assert not empty.any()


def test_picture_has_a_light_background_and_lit_floor(pictures: Tensor) -> None:
    expected = (255 * torch.tensor(BACKGROUND[:3])).int()
    assert (pictures[0, :, 0, 0].int() - expected).abs().max() <= 1
    assert pictures[0, :, -1, 0].min() > 60


def test_sim_renders_its_own_poses(pictures: Tensor, model: mujoco.MjModel) -> None:
    sim = MjWarpSim(model, 2)
    place_for_picture(sim.qpos, sim.mocap_pos)
    images = sim.render("front", (48, 64))
    assert torch.equal(images, pictures)
    with pytest.raises(ValueError, match=r"camera='back'.*\['front', 'top'\]"):
        sim.render("back", (48, 64))


@pytest.mark.parametrize("engine", [MjBatchSim, MjWarpSim])
def test_every_simulation_has_its_own_colours_and_camera(
    engine: type, model: mujoco.MjModel
) -> None:
    sim = engine(model, 2)
    place_for_picture(sim.qpos, sim.mocap_pos)
    before = sim.render("front", (48, 64))
    assert is_red(before[1]).sum() > 100
    rgba = torch.tensor(model.geom_rgba).repeat(2, 1, 1)
    rgba[1, -1] = torch.tensor([0, 0, 1, 1])  # the goal of the second one is blue
    position = torch.tensor(model.cam_pos).repeat(2, 1, 1)
    position[0, 0, 0] += 0.4  # the first one's camera moves right: the goal is in the middle
    fovy = torch.tensor(model.cam_fovy).repeat(2, 1)
    fovy[1, 0] = 30  # the second one's sees half as much
    sim.set_params({"geom_rgba": rgba})
    images = sim.render("front", (48, 64))
    assert torch.equal(images[0], before[0])
    assert torch.equal(is_blue(images[1]) & ~is_blue(before[1]), is_red(before[1]))
    sim.set_params({"cam_pos": position})
    columns = is_red(sim.render("front", (48, 64))[0]).any(0).nonzero()
    assert 31 <= columns.float().mean() <= 32
    sim.set_params({"cam_fovy": fovy, "geom_rgba": torch.tensor(model.geom_rgba).repeat(2, 1, 1)})
    closer = sim.render("front", (48, 64))[1]
    assert not is_red(closer)[:, 32:].any()  # what was left of the middle is out of sight by half
    assert is_red(closer).sum() > 1.3 * is_red(before[1]).sum()


def test_depth_and_segmentation(model: mujoco.MjModel) -> None:
    sim = MjBatchSim(model, 2)
    place_for_picture(sim.qpos, sim.mocap_pos)
    red = is_red(sim.render("front", (48, 64))[1])
    depth = sim.render("front", (48, 64), "depth")
    assert depth.shape == (2, 1, 48, 64)
    # the goal reaches from 10 cm before its centre to 10 cm behind; the camera is 1.5 m before it
    seen = depth[1, 0][red]
    assert abs(seen.min() - 1.4) < 1e-3
    assert abs(seen.median() - 1.4) < 1e-3
    assert seen.max() < 1.6
    what = sim.render("front", (48, 64), "segmentation")
    assert what.shape == (2, 2, 48, 64)
    goal = (what[1, 0] == model.ngeom - 1) & (what[1, 1] == mujoco.mjtObj.mjOBJ_GEOM.value)
    assert goal[red].all()
    assert red.sum() <= goal.sum() < 1.5 * red.sum()  # a side of it lies in the dark
    nothing = (what[1] == -1).all(0)
    assert nothing.any()
    assert (depth[1, 0][nothing] == 0).all()
    rgba = sim.render("front", (48, 64), "rgba")
    assert torch.equal(rgba[:, 3] == 0, (what == -1).all(1))
    assert set(rgba[:, 3].unique().tolist()) == {0, 255}
    assert torch.equal(rgba[:, :3], sim.render("front", (48, 64)))
    with pytest.raises(ValueError, match=r"kind='deep'.*'rgb', 'rgba', 'depth', 'segmentation'"):
        sim.render("front", (48, 64), "deep")  # type: ignore[arg-type]


@needs_cuda
def test_cuda_agrees_with_c_mujoco(model: mujoco.MjModel) -> None:
    assert_agrees_with_c(MjWarpSim(model, N, "cuda"), MjBatchSim(model, N, num_threads=1))


@needs_cuda
def test_cuda_follows_the_torch_stream_without_waiting(model: mujoco.MjModel) -> None:
    sim = MjWarpSim(model, N, "cuda")
    mask = torch.ones(N, dtype=torch.bool, device="cuda")
    ones, speed = torch.ones(N, device="cuda"), torch.zeros(N, device="cuda")
    for _ in range(2):
        sim.step(1)
        sim.reset(mask)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(50):
                sim.reset(mask)
                sim.qvel[:, 4].copy_(ones)
                sim.step(1)
                speed.copy_(sim.qvel[:, 4])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert bool((speed > 0.5).all())


@needs_cuda
def test_cuda_params_and_picture(pictures: Tensor, model: mujoco.MjModel) -> None:
    sim = MjWarpSim(model, 2, "cuda")
    sim.step(1)
    mass = torch.tensor(model.body_mass).float().cuda().repeat(2, 1)
    sim.set_params({"body_mass": torch.tensor([[1.0], [2.0]], device="cuda") * mass})
    sim.step(1)
    total = sim.state()["model.body_subtreemass"][:, 0]
    torch.testing.assert_close(total[1], 2 * total[0])
    place_for_picture(sim.qpos, sim.mocap_pos)
    images = sim.render("front", (48, 64)).cpu()
    differs = (images.int() - pictures.int()).abs().amax(1) > 2
    assert differs.float().mean() < 0.02  # edges may fall to the other side of a pixel
