"""Actors as ONNX files, which need neither torch nor this package to act."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agents.core.config import ConfigError, require, to_dict
from agents.core.parallel import modules

if TYPE_CHECKING:
    from agents.base import Agent, State

TOLERANCE = 1e-4
"""Largest difference between torch's and the exported actions and states, relative to 1 + |x|."""
AGREEMENT = 0.99
"""Share of discrete actions that have to be the same: near ties, rounding may decide."""
FREE = torch.export.Dim.DYNAMIC


class Actor(nn.Module):
    """An agent's deterministic `act` on flat tensors, as an ONNX graph has them.

    `forward(observation, *carried, *context)` returns the action and what is carried on, in the
    order of `carried`: a skill, a task's code, a recurrent state.

    Args:
        agent: on the CPU.

    Attributes:
        carried: names of what is carried from step to step.
        context: names of what is read of the environment, such as `avail_actions`.
        inputs: names of the graph's inputs; what is carried as "x" goes in as "state_x".
        outputs: "action", and what is carried on, as "next_x".

    Raises:
        ConfigError: the agent acts at random, whatever it has learnt.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        prefill = getattr(agent.config, "prefill", 0)
        require(prefill < 10**12, "prefill", prefill, "an agent that does not only act at random")
        self._agent = [agent]  # in a list: an agent is no module
        self.parts = nn.ModuleList(modules(agent.parts))
        self.carried = list(agent.initial_state(1))
        self.context = [name for name in agent.reads if name in agent.env.context()]
        self.inputs = ["observation", *(f"state_{name}" for name in self.carried), *self.context]
        self.outputs = ["action", *(f"next_{name}" for name in self.carried)]
        space = agent.env.single_action_space
        self.bounds = None
        if isinstance(space, gym.spaces.Box):
            self.bounds = torch.as_tensor(space.low), torch.as_tensor(space.high)

    def forward(self, observation: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        state = dict(zip([*self.carried, *self.context], rest, strict=True))
        with _NoNoise():
            action, carried = self._agent[0].act(observation, state, True)
        if self.bounds is not None:
            action = action.clamp(*self.bounds)
        return action, *(carried[name] for name in self.carried)


class ContextEncoder(nn.Module):
    """The code of contexts that an agent plays with, for what its actor takes as `state_code`.

    `forward(observation, action, reward, next_observation, mask)`, [N, T, ...] each in the
    environment's units with the steps that exist, bool [N, T], returns the code [N, Z]; rows
    without a step get the code of no context.

    Args:
        agent: on the CPU, with `context_state`.
    """

    inputs: ClassVar = ["observation", "action", "reward", "next_observation", "mask"]
    outputs: ClassVar = ["state_code"]

    def __init__(self, agent: Any) -> None:
        super().__init__()
        self._agent = [agent]  # see `Actor`
        self.parts = nn.ModuleList(modules(agent.parts))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        *context, mask = inputs
        return (self._agent[0].context_state(tuple(context), mask, mask)["code"],)


class _NoNoise(TorchFunctionMode):
    """Zeros for normal noise: deterministic agents multiply it by zero."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if function is torch.randn:
            kwargs.pop("generator", None)
            return torch.zeros(*args, **kwargs)
        return function(*args, **kwargs)


def export(agent: Agent, path: Path) -> dict[str, Any]:
    """Write an agent's deterministic actor and compare it with torch; returns its description.

    Of an agent that reads contexts, `<path's name>-context.onnx` gets the encoder beside it, see
    `ContextEncoder`; `description["context"]` is its file.

    The file's metadata hold the description as JSON under `infomax-rl`: agent, environment,
    settings, versions, inputs and outputs, and for everything that is carried its value at the
    start of an episode (for a skill: an example).

    Args:
        agent: on the CPU.
        path: the ONNX file.

    Raises:
        ConfigError: the extra `onnx` is not installed, the file cannot be written, or the exported
            actor acts differently.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"export: needs {error.name}: pip install 'infomax-rl[onnx]'") from None
    steps = agent.num_timesteps  # `_acting` counts on
    with torch.no_grad(), _acting(agent):
        actor = Actor(agent).eval()
        examples = _examples(agent, actor)
        description = _describe(agent, steps, actor, examples[0], ["n"])
        fresh = agent.initial_state(1)
        description["initial"] = {f"state_{n}": _compact(fresh[n][0]) for n in actor.carried}
        description["difference"] = _write(path, actor, examples, {0: FREE}, description)
        if getattr(agent.config, "code", None) == "context":
            beside = path.with_name(f"{path.stem}-context{path.suffix}")
            encoder, contexts = ContextEncoder(agent).eval(), _contexts(agent)
            about = _describe(agent, steps, encoder, contexts[0], ["n", "t"])
            difference = _write(beside, encoder, contexts, {0: FREE, 1: FREE}, about)
            description["context"] = str(beside)
            description["difference"] = max(description["difference"], difference)
    return description


def _write(
    path: Path,
    model: Actor | ContextEncoder,
    examples: list[list[Tensor]],
    free: dict[int, Any],
    about: dict[str, Any],
) -> float:
    """Write a model with what there is to say of it; its largest difference from torch's.

    It gets its name, which a good one may have, only once it agrees with torch.
    """
    import onnx
    import onnxruntime

    program = _to_onnx(model, examples[0], free)
    entry = program.metadata_props.add()
    entry.key, entry.value = "infomax-rl", json.dumps(about)
    unchecked = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        onnx.save(program, str(unchecked))
        session = onnxruntime.InferenceSession(str(unchecked), providers=["CPUExecutionProvider"])
        difference = max(_compare(session, model, example) for example in examples)
        unchecked.replace(path)
    except OSError as error:
        raise ConfigError(f"out={path}: {error.strerror}; expected a writable file") from None
    finally:
        with contextlib.suppress(OSError):
            unchecked.unlink()
    return difference


@contextlib.contextmanager
def _acting(agent: Agent) -> Iterator[None]:
    """Past the steps that an agent begins with at random, and in float32, for a while."""
    steps = agent.num_timesteps
    low = [
        m for part in modules(agent.parts) for m in part.modules() if hasattr(m, "low_precision")
    ]
    kept: list[Any] = [m.low_precision for m in low]
    agent.num_timesteps = max(steps, getattr(agent.config, "prefill", 0))
    for module in low:
        module.low_precision = False  # type: ignore[assignment]
    try:
        with agent.using(torch.Generator().manual_seed(agent.config.seed)):
            yield
    finally:
        agent.num_timesteps = steps
        for module, value in zip(low, kept, strict=True):
            module.low_precision = value


def _examples(agent: Agent, actor: Actor, steps: int = 5) -> list[list[Tensor]]:
    """Inputs of the actor along some steps in the agent's environment, and one with one row."""
    obs, _ = agent.env.reset(seed=agent.config.seed)
    state: State = agent.initial_state(agent.num_envs)
    examples = []
    for _ in range(steps):
        context = agent.env.context()
        rest = [state[n] for n in actor.carried] + [context[n] for n in actor.context]
        examples.append([x.clone() for x in (obs, *rest)])
        action, *carried = actor(*examples[-1])
        obs, _, terminated, truncated, _ = agent.env.step(action)
        state = agent._restart(
            dict(zip(actor.carried, carried, strict=True)), terminated | truncated
        )
    return [*examples, [x[:1] for x in examples[-1]]]


def _contexts(agent: Any) -> list[list[Tensor]]:
    """Inputs of the encoder: random contexts of two lengths; in both, a row has no step."""
    generator = torch.Generator().manual_seed(agent.config.seed)
    size = agent.env.single_observation_space.shape[0]
    examples = []
    for rows, steps in ((3, 7), (2, 12)):
        obs = torch.randn(rows, steps + 1, size, generator=generator)
        space = agent.env.single_action_space
        action = torch.rand(rows, steps, *space.shape, generator=generator)
        action = torch.as_tensor(space.low) + action * torch.as_tensor(space.high - space.low)
        reward = torch.randn(rows, steps, generator=generator)
        length = torch.arange(rows)[:, None] * (steps // 2)  # none, half, all
        mask = torch.arange(steps) < length
        examples.append([obs[:, :-1], action, reward, obs[:, 1:], mask])
    return examples


def _to_onnx(model: Actor | ContextEncoder, example: list[Tensor], free: dict[int, Any]) -> Any:
    """The graph, some of whose dimensions are free."""
    example = [torch.cat([x, x, x])[:3] for x in example]  # one row would be taken for a constant
    every = tuple(dict(free) for _ in example)
    shapes = (every[0], every[1:]) if isinstance(model, Actor) else (every,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model, tuple(example), dynamo=True, verbose=False,
            input_names=model.inputs, output_names=model.outputs, dynamic_shapes=shapes,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _describe(
    agent: Agent, steps: int, model: Actor | ContextEncoder, example: list[Tensor], free: list[str]
) -> dict[str, Any]:
    """What a file says of itself; `free` names the dimensions of any length."""
    shapes = {n: [*free, *x.shape[len(free) :]] for n, x in zip(model.inputs, example, strict=True)}
    return {
        "agent": agent.name,
        "config": to_dict(agent.config),
        "timesteps": steps,
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "onnx", "gymnasium")},
        "inputs": shapes,
        "outputs": list(model.outputs),
    }


def _compact(value: Tensor) -> Any:
    """A tensor as a nested list, or as one number where all of it is."""
    first = value.reshape(-1)[0]
    return first.item() if bool((value == first).all()) else value.tolist()


def _compare(session: Any, actor: Actor | ContextEncoder, example: list[Tensor]) -> float:
    """The largest difference of the two, relative to 1 + |x|.

    Raises:
        ConfigError: it is larger than `TOLERANCE`, or discrete actions differ.
    """
    given = {i.name for i in session.get_inputs()}
    feed = {n: x.numpy() for n, x in zip(actor.inputs, example, strict=True) if n in given}
    names = [output.name for output in session.get_outputs()]
    largest = 0.0
    for name, ours, theirs in zip(names, actor(*example), session.run(None, feed), strict=True):
        expected = ours.numpy()
        if expected.dtype.kind == "f":
            error = np.abs(expected - theirs) / (1 + np.abs(expected))
            difference, allowed = float(error.max(initial=0.0)), TOLERANCE
            largest = max(largest, difference)
        else:
            difference, allowed = float((expected != theirs).mean()), 1 - AGREEMENT
        if not difference <= allowed:
            raise ConfigError(f"export: {name} differs from torch's by {difference:.3g}")
    return largest
