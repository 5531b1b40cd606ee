"""The contract of every agent, and the one training loop.

Shape letters, here and in every agent: N environments, A agents, T time, B batch, D features,
U action features, Z skill or code size, K skills, clusters or critics.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import envs
from agents.core import parallel
from agents.core.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from agents.core.config import ConfigError, build, require, to_dict
from agents.core.evaluate import Episodes, evaluate
from agents.core.log import FiniteGuard, Mean, NonFiniteError
from agents.core.replay import Replay
from agents.core.structure import load_optimizer, require_like
from envs.base import BatchedEnv, to_tensor

if TYPE_CHECKING:
    from agents.core.run import Run

State = dict[str, Tensor]
"""What an agent carries from step to step (skill, hidden state): name -> [N, ...]."""


class Step(NamedTuple):
    """One step of all environments; the true successor of `obs` is `info["final_obs"]`."""

    obs: Tensor
    """[N, D]"""
    state: State
    """What the agent carried into the step."""
    action: Tensor
    """[N, U]"""
    reward: Tensor
    """[N]"""
    terminated: Tensor
    """bool [N]"""
    truncated: Tensor
    """bool [N]"""
    info: dict[str, Any]
    """The environment's; `info["final_info"]` is the context of the true successor."""
    context: dict[str, Tensor]
    """What went with `obs`: `BatchedEnv.context`."""


@dataclass
class AgentConfig:
    """Settings every agent has."""

    env: str = "tabletop"
    """Environment id, see `python train.py list`."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, e.g. `env_kwargs.start=easy`; see `train.py list <env>`."""
    num_envs: int = 128
    """Environments stepped together, N."""
    seed: int = 0
    """Of the networks, the exploration and the environment."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` …; `auto` takes a GPU where there is one."""
    total_timesteps: int = 1_000_000
    """Environment steps, summed over the environments."""
    log_interval: int = 5
    """Updates between two rows of metrics."""
    checkpoint_interval: int = 10
    """Updates between two checkpoints."""
    eval_interval: int = 0
    """Updates between two evaluations during training; 0 evaluates only at the end."""
    eval_episodes: int = 256
    """Episodes of one evaluation."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: names the key, the value and what was expected.
        """
        for name in ("num_envs", "total_timesteps", "log_interval", "checkpoint_interval"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("num_envs", "device", "seed"):
            value = self.env_kwargs.get(name)
            require(name not in self.env_kwargs, f"env_kwargs.{name}", value, f"{name}= instead")
        require(self.eval_interval >= 0, "eval_interval", self.eval_interval, "at least 0")
        require(self.eval_episodes >= 1, "eval_episodes", self.eval_episodes, "at least 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "between 0 and 2^63 - 1")


class Stateful(Protocol):
    """A part of an agent: anything that can be saved and restored."""

    def state_dict(self) -> Any:
        """Everything that decides the part's future."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Continue where `state_dict` was taken."""
        ...


class Agent:
    """Learns, predicts, saves and loads; an algorithm fills in `build`, `act` and `update`.

    Names and signatures are Stable-Baselines3's, with tensors inside.

    Attributes:
        config: the settings, an instance of `Config`.
        parts: everything with a `state_dict`; save, load and resume go through it alone.
        rollout_steps: steps of every environment that one `collect` takes.

    Args:
        env: id of a registered environment, a `BatchedEnv`, or a gymnasium environment.
        config: settings; defaults if None.
        **overrides: single settings, e.g. `num_envs=64, lr=3e-4`.

    Raises:
        ConfigError: an unknown, ill-typed or out-of-range setting, or an unknown environment.
    """

    name: ClassVar[str]
    Config: ClassVar[type[AgentConfig]]
    score: ClassVar[str] = "return_mean"
    """The evaluation metric that decides which checkpoint is the best one."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Entries of the environment's context that `act` finds in its state, e.g. `avail_actions`."""

    def __init__(
        self,
        env: str | BatchedEnv | gym.Env | None = None,
        config: AgentConfig | None = None,
        **overrides: Any,
    ) -> None:
        if env is not None:
            overrides["env"] = env if isinstance(env, str) else _env_name(env)
        layers = [to_dict(config)] if config is not None else []
        self.config: Any = build(self.Config, layers, overrides)
        rank, self.processes = parallel.rank(), parallel.world()
        self.seed = _stable_hash(self.config.seed, rank) if rank else self.config.seed
        self.device = _device(self.config.device)
        self.env = self._make_env(env)
        if self.env.autoreset is not gym.vector.AutoresetMode.SAME_STEP:
            raise ConfigError(f"autoreset: agents need 'same-step', got {self.env.autoreset.name}")
        self.num_envs = self.env.num_envs
        self.num_timesteps = self.num_updates = 0
        self.parts: dict[str, Stateful] = {}
        self.rollout_steps = 1
        self.run: Run | None = None
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        with torch.random.fork_rng():  # networks draw from the global generator
            torch.manual_seed(self.config.seed)
            self.build()
        self.synchronised = None
        if self.processes > 1:
            self.synchronised = parallel.Synchronised(parallel.modules(self.parts))
        self.guard, self._metrics = FiniteGuard(), Mean()
        self._obs: Tensor | None = None  # None until training starts
        self._state: State = {}
        self._returns = torch.zeros(2, self.num_envs, device=self.device)  # so far; last finished
        self._returns[1] = torch.nan  # no episode has finished yet
        self._best_score = float("-inf")

    # ---- what an algorithm writes

    def build(self) -> None:
        """Create networks, optimisers and memory, and register them in `parts`."""
        raise NotImplementedError

    def initial_state(self, num_envs: int) -> State:
        """What is carried at the start of an episode, [num_envs, ...] each."""
        return {}

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Actions [N, U] for observations [N, D], and the state to carry on."""
        raise NotImplementedError

    def store(self, step: Step) -> None:
        """Remember one step of all environments."""
        raise NotImplementedError

    def update(self) -> dict[str, Tensor]:
        """Learn once; returns metrics as 0-d tensors."""
        raise NotImplementedError

    # ---- the training loop

    def learn(
        self,
        total_timesteps: int | None = None,
        callback: Callable[[Agent, dict[str, float]], bool | None] | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Collect, update, tick, until `num_timesteps` reaches `total_timesteps`.

        Args:
            total_timesteps: environment steps in all; the configured number if None.
            callback: called with the agent and the metrics at every log interval; returning False
                stops the training.
            progress_bar: show one.

        Returns:
            The agent.

        Raises:
            NonFiniteError: a NaN or infinity, with its source. A run directory then holds what
                repeats it, see `Run.crash`.
        """
        total = self.config.total_timesteps if total_timesteps is None else total_timesteps
        if self._obs is None:
            self._obs, _ = self.env.reset(seed=self.seed)
            self._state = self.initial_state(self.num_envs)
        started, first = time.perf_counter(), self.num_timesteps
        # None: no bar where nobody watches (a pipe, a log file).
        disable = None if progress_bar else True
        bar = tqdm(total=total, initial=first, disable=disable, unit="step")
        with bar, self._noting_crashes():
            while self.num_timesteps < total:
                self.collect()
                metrics = self.update()
                if self.synchronised is not None:
                    self.synchronised.average_buffers()
                self.num_updates += 1
                for name, value in metrics.items():
                    self.guard.watch(name, value)
                self._metrics.add(metrics)
                if self.device.type == "cpu":  # looking is free; elsewhere `_tick` looks
                    self.guard.check()
                bar.update(self.num_timesteps - bar.n)
                speed = (self.num_timesteps - first) / (time.perf_counter() - started)
                if not self._tick(speed, callback, bar, last=self.num_timesteps >= total):
                    break
        return self

    @contextmanager
    def _noting_crashes(self) -> Iterator[None]:
        try:
            yield
        except NonFiniteError as error:
            if self.run is None:
                raise
            hint = self.run.crash(str(error), self.num_timesteps)
            raise NonFiniteError(f"{error}; {hint}") from error

    @torch.no_grad()
    def collect(self) -> None:
        """Take `rollout_steps` steps in every environment."""
        assert self._obs is not None
        context = self.env.context()
        for _ in range(self.rollout_steps):
            obs, state = self._obs, self._state
            self.guard.watch("observation", obs)  # first: it would infect all that follows
            action, carried = self.act(obs, self.perceive(state, context), deterministic=False)
            self.guard.watch("action", action)
            if self.device.type == "cpu":
                self.guard.check()
            next_obs, reward, terminated, truncated, info = self.env.step(action)
            self.guard.watch("observation", info["final_obs"])
            self.guard.watch("reward", reward)
            self.store(Step(obs, state, action, reward, terminated, truncated, info, context))
            done = terminated | truncated
            self._obs, self._state = next_obs, self._restart(carried, done)
            context = {name: info[name] for name in context}
            running = self._returns[0] + reward.to(self._returns.dtype)
            self._returns = torch.stack(
                [torch.where(done, 0, running), torch.where(done, running, self._returns[1])]
            )
            self.num_timesteps += self.num_envs * self.processes

    def perceive(self, state: State, context: Mapping[str, Any]) -> State:
        """`state` with what `act` reads of the environment's context."""
        return state | {name: context[name] for name in self.reads if name in context}

    def _restart(self, state: State, mask: Tensor) -> State:
        """`state` with the rows in `mask` (bool [N]) replaced by fresh initial ones."""
        fresh = self.initial_state(mask.shape[0])
        return {k: torch.where(_expand(mask, v), fresh[k], v) for k, v in state.items()}

    def _tick(self, speed: float, callback: Any, bar: tqdm, last: bool) -> bool:
        """Log, evaluate, checkpoint, obey signals; False stops the training."""
        config, run = self.config, self.run

        def due(interval: int) -> bool:
            return interval > 0 and self.num_updates % interval == 0

        if run is not None and self.processes > 1:
            run.agree_to_stop()
        stop = run is not None and run.stop is not None
        going_on = True
        if last or due(config.log_interval) or due(config.eval_interval):
            self.guard.check()
            self.env.check()
            row = {"timesteps": self.num_timesteps, "updates": self.num_updates}
            row |= self._metrics.pop()
            finished = self._returns[1].nanmean().item()
            row |= {"return": finished} if math.isfinite(finished) else {}
            if due(config.eval_interval):
                row |= {f"eval/{k}": v for k, v in self.evaluate().items()}
            row["time/steps_per_second"] = speed
            if run is not None:
                line = "  ".join(f"{k} {v:.3g}" for k, v in self.headline(row).items())
                bar.write(f"{self.num_timesteps:>10,} steps  {line}  {speed:,.0f} steps/s")
                run.log(row)
                better = row.get(f"eval/{self.score}", float("-inf")) > self._best_score
                if better and self.learning:
                    self._best_score = row[f"eval/{self.score}"]
                    self._require_finite()
                    run.save(self.state_dict(), best=True)
            going_on = callback is None or callback(self, row) is not False
        if last or due(config.checkpoint_interval) or stop or not going_on:
            self._require_finite()
            if run is not None:
                run.save(self.state_dict())
        return going_on and not stop

    def _require_finite(self) -> None:
        """Raise rather than save or load an observation, network or optimiser with a NaN."""
        if self._obs is not None:
            self.guard.watch("observation", self._obs)  # what the next step begins with
        self.guard.check()
        for name, part in self.parts.items():
            tensors: list[Tensor] = []
            if isinstance(part, torch.nn.Module):
                tensors = [*part.parameters(), *part.buffers()]
            elif isinstance(part, torch.optim.Optimizer):
                values = [v for state in part.state.values() for v in state.values()]
                tensors = [v for v in values if isinstance(v, Tensor)]
            if tensors and not bool(torch.stack([v.isfinite().all() for v in tensors]).all()):
                raise NonFiniteError(f"{name}: NaN or infinity; expected finite values")

    @property
    def learning(self) -> bool:
        """Whether learning has begun, so that a checkpoint may be the best one."""
        return True

    def headline(self, row: Mapping[str, float]) -> dict[str, float]:
        """The few metrics of a row that the console shows."""
        return {"return": row["return"]} if "return" in row else {}

    # ---- use

    def predict(
        self,
        observation: np.ndarray | Tensor,
        state: State | None = None,
        episode_start: np.ndarray | Tensor | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | Tensor | None = None,
    ) -> tuple[Any, State]:
        """Actions for one observation or a batch, as SB3's `PolicyPredictor`.

        Args:
            observation: array or tensor, [D] or [N, D]; images [C, H, W] or [N, C, H, W], or as
                the gymnasium environment in which the agent trains gives them, e.g. [H, W, C].
            state: what the previous call returned; None starts afresh.
            episode_start: bool [N], rows that begin an episode.
            deterministic: the most likely action instead of a sample.
            action_masks: bool, available actions (`info["avail_actions"]`), for an agent and an
                environment that have them; the name is sb3-contrib's.

        Returns:
            Actions of the observation's kind and batch shape, and the state for the next call.

        Raises:
            ValueError: an observation of another shape or none at all, a state for another number
                of rows, or no `action_masks` where not every action is always available.
        """
        tensor = isinstance(observation, Tensor)
        obs = to_tensor(observation, "observation", self.device)
        space = self.env.single_observation_space
        if self.env.channels and obs.shape[-3:] != space.shape and obs.dim() in (3, 4):
            first = obs.movedim(self.env.channels - 3, -3)
            obs = first if first.shape[-3:] == space.shape else obs
        single = obs.shape == space.shape
        if not single and obs.shape[1:] != space.shape:
            raise ValueError(
                f"observation: expected shape {space.shape} or (n, *{space.shape}), "
                f"got {tuple(obs.shape)}"
            )
        obs = obs[None] if single else obs
        with torch.no_grad(), self.using(self._predict_generator):
            if state is None:
                state = self.initial_state(len(obs))
            elif any(len(value) != len(obs) for value in state.values()):
                raise ValueError(f"state: expected {len(obs)} rows, one per observation")
            elif episode_start is not None:
                start = torch.as_tensor(episode_start, device=self.device).reshape(-1)
                state = self._restart(state, start)
            masks = self._masks(action_masks, len(obs), single)
            action, state = self.act(obs, self.perceive(state, masks), deterministic)
        action = action[0] if single else action
        if isinstance(self.env.single_action_space, gym.spaces.Box):
            low, high = self.env.single_action_space.low, self.env.single_action_space.high
            action = action.clamp(
                torch.as_tensor(low, device=self.device), torch.as_tensor(high, device=self.device)
            )
        return (action if tensor else action.cpu().numpy()), state

    def _masks(self, masks: np.ndarray | Tensor | None, rows: int, single: bool) -> State:
        """`action_masks` as a context; {} for who does not read any."""
        if "avail_actions" not in self.reads or "avail_actions" not in self.env.context():
            return {}
        if masks is None:
            raise ValueError("action_masks: this environment needs them, see info['avail_actions']")
        tensor = torch.as_tensor(masks, dtype=torch.bool, device=self.device)
        tensor = tensor[None] if single else tensor
        expected = (rows, *self.env.context()["avail_actions"].shape[1:])
        if tensor.shape != expected:
            shape = tuple(tensor.shape)[single:]
            raise ValueError(f"action_masks: expected shape {expected[single:]}, got {shape}")
        return {"avail_actions": tensor}

    @property
    def _predict_generator(self) -> torch.Generator:
        """Its own generator, so that predicting between two updates does not change training."""
        if not hasattr(self, "_predict_rng"):
            self._predict_rng = torch.Generator(self.device).manual_seed(self.config.seed + 1)
        return self._predict_rng

    @contextmanager
    def using(self, generator: torch.Generator):
        """Draw from another generator for a while: evaluation must not disturb training."""
        kept, self.generator = self.generator, generator
        try:
            yield self
        finally:
            self.generator = kept

    def evaluate(
        self,
        env: BatchedEnv | gym.Env | None = None,
        episodes: int | None = None,
        deterministic: bool = True,
    ) -> dict[str, float]:
        """Metrics of whole episodes: `return_mean`, `return_std`, `episodes`, and the agent's own.

        A function of the parameters alone: environment and exploration are reseeded.

        Args:
            env: where to evaluate, a `BatchedEnv` or a gymnasium environment; a fresh copy of the
                training environment if None.
            episodes: how many, rounded up to whole batches; `eval_episodes` if None.
            deterministic: act without exploration.

        Raises:
            ConfigError: `env` is something else, or has other spaces than in training.
        """
        count: int = episodes or self.config.eval_episodes
        env = self.make_eval_env(count) if env is None else self._adopt(env)
        for name in ("single_observation_space", "single_action_space"):
            given, own = getattr(env, name).shape, getattr(self.env, name).shape
            if given != own:
                what = name.removeprefix("single_")
                raise ConfigError(f"env: expected {what} {own}, as in training, got {given}")
        generator = torch.Generator(self.device).manual_seed(self.config.seed + 2)
        with self.using(generator):
            return evaluate(self, env, count, self.config.seed + 2, deterministic)

    def episode_metrics(self, episodes: Episodes) -> dict[str, float]:
        """The agent's own evaluation metrics from complete episodes."""
        return {}

    def make_eval_env(self, num_envs: int, **kwargs: Any) -> BatchedEnv:
        """A fresh environment like the one this agent trains in; `kwargs` change its arguments.

        Raises:
            ConfigError: it has no such argument, or was passed as an object and has no id.
        """
        try:
            envs.find(self.config.env)
        except ValueError:
            raise ConfigError(
                f"env={self.config.env!r}: not a registered environment, so evaluation needs one: "
                "pass env="
            ) from None
        return self._made(num_envs, self.config.seed, {**self.config.env_kwargs, **kwargs})

    def report(self, directory: Path) -> dict[str, float]:
        """Evaluate and leave plots and videos in a run directory; returns the metrics."""
        from agents.core.plot import plot_metrics

        if (directory / "metrics.csv").exists():
            plot_metrics(directory / "metrics.csv", directory / "plots" / "learning.png")
        return self.evaluate()

    def cut_episodes(self) -> None:
        """The environments are reset: for memories of episodes, whose open ones never end."""

    # ---- save, load

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the agent's future, as a tree of tensors and plain values."""
        env_state = self.env.state_dict()  # may reset an environment that cannot be captured
        if not self.env.captures_state and self._obs is not None:
            self._obs = self.env.last_obs
            self._state = self.initial_state(self.num_envs)
            self._returns[0] = 0
            self.cut_episodes()
        return {
            "agent": self.name,
            "device": self.device.type,
            "config": to_dict(self.config),
            "num_timesteps": self.num_timesteps,
            "num_updates": self.num_updates,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": self.generator.get_state(),
            "env": env_state,
            "obs": self._obs,
            "state": self._state,
            "returns": self._returns,
            "metrics": self._metrics.state_dict(),
            "best_score": self._best_score if np.isfinite(self._best_score) else None,
        }

    def load_state_dict(self, tree: dict[str, Any], same_env: bool = True) -> None:
        """Continue exactly where `state_dict` was taken.

        The environment is continued too unless it is not the same one, has another number of rows
        or the checkpoint comes from another kind of device, whose simulation and random numbers do
        not carry over; then training goes on from freshly reset environments. So do all processes
        of `torchrun` but the first, whose environments a checkpoint holds. What a replay holds of
        an environment that is not the same one is forgotten: it fills again.

        Raises:
            ValueError: the tree belongs to another agent or to networks of other sizes.
        """
        if tree["agent"] != self.name:
            raise ValueError(f"holds agent {tree['agent']!r}, expected {self.name!r}")
        for name in ("num_timesteps", "num_updates"):
            if type(tree[name]) is not int or tree[name] < 0:
                raise ValueError(f"{name}: expected a count, got {tree[name]!r}"[:200])
        if not isinstance(tree["best_score"], float | int | None):
            raise ValueError(f"best_score: expected a number, got {tree['best_score']!r}"[:200])
        obs, started = tree["obs"], tree["obs"] is not None
        same_rows = len(tree["returns"][0]) == self.num_envs
        same_device = tree["device"] == self.device.type and parallel.rank() == 0
        goes_on = same_env and same_rows and same_device and started
        if goes_on:
            with self.using(torch.Generator(self.device)):  # whose draws nobody sees
                like = self.initial_state(self.num_envs)
            require_like(tree["state"], like, "state")
            require_like(tree["returns"], self._returns, "returns")
            shape: Any = (self.num_envs, *(self.env.single_observation_space.shape or ()))
            if getattr(obs, "shape", None) != shape:
                raise ValueError(f"obs: expected a tensor of shape {shape}")
            if self.env.single_observation_space.dtype == np.float32:
                require_like(obs, torch.empty(shape), "obs")
        for name, part in self.parts.items():
            if name not in tree["parts"]:
                raise ValueError(f"lacks the part {name!r} of agent {self.name!r}")
            if isinstance(part, Replay) and not same_env:
                part.clear()
                continue
            try:
                if isinstance(part, torch.optim.Optimizer):
                    load_optimizer(part, tree["parts"][name])
                else:
                    part.load_state_dict(tree["parts"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                if "replay" in str(error) and not (same_rows and same_env):
                    continue  # a memory of another number of environments; it fills again
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"part {name!r} does not fit: {reason}") from None
        self.num_timesteps, self.num_updates = tree["num_timesteps"], tree["num_updates"]
        self._best_score = float("-inf") if tree["best_score"] is None else tree["best_score"]
        if same_device:
            self.generator.set_state(tree["generator"].cpu())
        else:  # a generator's state does not move between kinds of devices
            self.generator.manual_seed(_stable_hash(self.seed, self.num_timesteps))
        self._metrics.load_state_dict(_to(tree["metrics"], self.device))
        if goes_on:
            self.env.load_state_dict(tree["env"])
            self._obs = obs.to(self.device)
            self._state = _to(tree["state"], self.device)
            self._returns = tree["returns"].to(self.device)
        elif started:
            self.cut_episodes()

    def save(self, path: str | Path) -> None:
        """Write a checkpoint (no pickle).

        An environment whose state cannot be captured begins new episodes (see `BatchedEnv`).

        Raises:
            CheckpointError: the file cannot be written; a previous file is left as it was.
            NonFiniteError: a network or optimiser has a NaN.
        """
        self._require_finite()
        save_checkpoint(path, self.state_dict())

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: str | BatchedEnv | gym.Env | None = None,
        device: str = "auto",
        **overrides: Any,
    ) -> Self:
        """The agent a checkpoint holds, ready to predict or to go on learning.

        Args:
            path: of the checkpoint.
            env: another environment than the one it was trained in. Another id, or `env_kwargs`,
                begin at a reset and with an empty replay; an object has to be able to go on where
                training stopped, unless it has another number of rows.
            device: where to put it.
            **overrides: settings to change, e.g. `num_envs=1`.

        Raises:
            CheckpointError: no readable checkpoint of this agent.
        """
        tree: Any = load_checkpoint(path)
        if not isinstance(tree, dict) or tree.get("agent") != cls.name:
            held = tree.get("agent") if isinstance(tree, dict) else None
            raise CheckpointError(path, f"holds agent {held!r}, expected {cls.name!r}")
        config = build(cls.Config, [tree["config"]], {"device": device, **overrides})
        agent = cls(env, config)
        before = build(cls.Config, [tree["config"]], {})
        same_id = not isinstance(env, str) or env == before.env
        agent.restore(tree, path, same_id and config.env_kwargs == before.env_kwargs)
        return agent

    def restore(self, tree: dict[str, Any], path: str | Path, same_env: bool = True) -> None:
        """`load_state_dict` of a checkpoint's tree, with errors that name the file.

        Raises:
            CheckpointError: the tree does not fit this agent.
        """
        try:
            self.load_state_dict(tree, same_env)
            self._require_finite()
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            RuntimeError,
        ) as error:
            raise CheckpointError(path, f"does not fit this agent: {error}") from None

    def _make_env(self, env: str | BatchedEnv | gym.Env | None) -> BatchedEnv:
        config = self.config
        if env is not None and not isinstance(env, str):
            return self._adopt(env)
        return self._made(config.num_envs, self.seed, config.env_kwargs)

    def _adopt(self, env: BatchedEnv | gym.Env) -> BatchedEnv:
        """An environment that was passed as an object."""
        if isinstance(env, BatchedEnv):
            if env.device.type != self.device.type:
                raise ConfigError(
                    f"device={self.config.device!r}: the environment is on {env.device}"
                )
            return env
        if isinstance(env, gym.Env):
            from envs.adapt import from_gymnasium

            try:
                return from_gymnasium(env, device=self.device, seed=self.seed)
            except ValueError as error:
                raise ConfigError(f"env={_env_name(env)}: {error}") from None
        expected = "a BatchedEnv or a gymnasium environment (gymnasium.Env)"
        raise ConfigError(f"env: expected {expected}, got {type(env).__name__}")

    def _made(self, num_envs: int, seed: int, arguments: Mapping[str, Any]) -> BatchedEnv:
        """The environment that the configuration names."""
        name = self.config.env
        try:
            return envs.make(name, num_envs, self.device, seed, **arguments)
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"env={name}: {error}") from None


def _env_name(env: BatchedEnv | gym.Env) -> str:
    """What the configuration calls an environment that was passed as an object."""
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(env).__name__


def _device(name: str) -> torch.device:
    if name == "auto":
        several = f"cuda:{parallel.local_rank()}" if parallel.world() > 1 else "cuda"
        return torch.device(several if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r}: expected auto, cpu, cuda or cuda:<index>") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: torch {torch.__version__} sees no CUDA device here")
    return device


def _stable_hash(*values: int) -> int:
    digest = hashlib.sha256(repr(values).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _expand(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))


def _to(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: _to(value, device) for key, value in tree.items()}
    return tree
