"""Behaviour policies of a family of tasks: scripted, or one SAC that is told the task.

The published data come from one SAC per task (CORRO, appendix; hours for each). Here a single
policy π(a | s, task) serves all tasks, which is ours: where tasks differ in reward alone, every
transition is relabelled exactly with fresh tasks in every batch; where they differ in the body, the
parameters are an input, and a short fine-tuning makes policies of single tasks.

Shape letters: N environments, K tasks, C checkpoints, B batch, D observation features, P task
parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from agents.core.checkpoint import load_checkpoint, save_checkpoint
from agents.core.heads import SAC, Batch, SquashedGaussian
from agents.core.nets import RunningNorm
from agents.core.replay import Replay
from envs.point import STEP
from envs.tasks import TaskFamily

LR = 1e-3
"""Adam's step size."""

Policy = tuple[RunningNorm, SquashedGaussian]
"""A policy and the normaliser of the observations it reads."""


class Behaviours(Protocol):
    """Policies of K tasks at C stages of their training."""

    checkpoints: int

    def act(
        self, obs: Tensor, task: Tensor, task_id: Tensor, checkpoint: Tensor, noise: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """Actions [N, U].

        Args:
            obs: [N, D].
            task: parameters of the task whose policy acts, [N, P].
            task_id: that task, int64 [N].
            checkpoint: which of its checkpoints, int64 [N].
            noise: 0 acts without noise, 1 samples from the policy, [N].
            generator: of the draws.
        """
        ...


class Scripted:
    """Point-robot: straight to the goal, mixed with uniform noise whose share ε falls.

    a = (1 - ε) clip((goal - s) / 0.1, -1, 1) + ε u, u ~ U[-1, 1); checkpoint c of C has
    ε = 1 - c / (C - 1). `noise` 0 leaves the noise out.
    """

    def __init__(self, checkpoints: int) -> None:
        self.checkpoints = checkpoints

    def act(
        self, obs: Tensor, task: Tensor, task_id: Tensor, checkpoint: Tensor, noise: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """See `Behaviours`."""
        share = (1 - checkpoint / (self.checkpoints - 1))[:, None]
        uniform = 2 * torch.rand(obs.shape, generator=generator) - 1
        straight = ((task - obs) / STEP).clamp(-1, 1)
        return (1 - share) * straight + share * noise[:, None] * uniform


class Trained:
    """Checkpoints of a `TaskSAC`, and where there are some, policies of single tasks behind them.

    Args:
        policies: π(a | s, task) of each checkpoint, with its normaliser.
        single: for each task its fine-tuned policy, the last checkpoint; may be empty.
    """

    def __init__(
        self,
        policies: list[Policy],
        single: list[Policy],
    ) -> None:
        self.policies, self.single = policies, single
        self.checkpoints = len(policies) + bool(single)

    @torch.no_grad()
    def act(
        self, obs: Tensor, task: Tensor, task_id: Tensor, checkpoint: Tensor, noise: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """See `Behaviours`; a loop over networks, not over environments."""
        mean, log_std = torch.empty(0), torch.empty(0)
        for rows, (norm, policy) in self._networks(task_id, checkpoint):
            moments = policy.moments(torch.cat([norm(obs[rows]), task[rows]], 1))
            if not len(mean):
                mean, log_std = (m.new_zeros(len(obs), m.shape[1]) for m in moments)
            mean[rows], log_std[rows] = moments
        draw = torch.randn(mean.shape, generator=generator)
        return (mean + noise[:, None] * log_std.exp() * draw).tanh()

    def _networks(self, task_id: Tensor, checkpoint: Tensor) -> Iterator[tuple[Tensor, Any]]:
        """Rows, and the network that acts in them."""
        for c in checkpoint.unique().tolist():
            rows = checkpoint == c
            if c < len(self.policies):
                yield rows, self.policies[c]
                continue
            for k in task_id[rows].unique().tolist():
                yield rows & (task_id == k), self.single[k]


class TaskSAC:
    """SAC over (observation, task), on all tasks at once.

    Args:
        env: rows of the family's tasks.
        hidden: widths.
        batch_size: B.
        seed: of everything random in it.
        relabel: sample fresh tasks for every batch and compute its rewards; for families whose
            tasks differ in reward alone.
        gradient_steps: updates after each step of all environments.
        capacity: transitions remembered.
        gamma: discount γ.
    """

    def __init__(
        self,
        env: TaskFamily,
        hidden: list[int],
        batch_size: int,
        seed: int,
        relabel: bool,
        gradient_steps: int,
        capacity: int,
        gamma: float,
    ) -> None:
        torch.manual_seed(seed)
        self.env, self.batch_size, self.relabel = env, batch_size, relabel
        self.gradient_steps, self.updates = gradient_steps, 0
        features = env.single_observation_space.shape[0]  # type: ignore[index]
        actions = env.single_action_space.shape[0]  # type: ignore[index]
        parameters = len(env.task_names)
        self.norm = RunningNorm(features)
        self.sac = SAC(features + parameters, actions, hidden, gamma=gamma)
        self.optimizers = [
            torch.optim.Adam(parameters, LR, fused=True)
            for parameters in (self.sac.critic_parameters(), self.sac.actor_parameters())
        ]
        self.generator = torch.Generator().manual_seed(seed)
        self.obs, _ = env.reset(seed=seed)
        fields = {
            "obs": ((features,), torch.float32),
            "next_observations": ((features,), torch.float32),
            "actions": ((actions,), torch.float32),
            "task": ((parameters,), torch.float32),
            "reward": ((), torch.float32),
            "terminated": ((), torch.float32),
            "velocity": ((env.velocity_size,), torch.float32),
        }
        self.replay = Replay(fields, -(-capacity // env.num_envs), env.num_envs)

    # ---- learning

    def act_randomly(self, steps: int) -> None:
        """Uniform actions to begin with."""
        for _ in range(steps):
            self.step(None)

    def learn(self, updates: int, progress: Callable[[int], Any] = lambda count: None) -> None:
        """Act and update, `updates` times."""
        done = 0
        while done < updates:
            self.step((self.norm, self.sac.policy))
            count = min(self.gradient_steps, updates - done)
            for _ in range(count):
                self.update()
            done += count
            progress(count)
        self.updates += updates

    @torch.no_grad()
    def step(self, policy: Policy | None) -> None:
        """One step of all environments, remembered; uniform actions without a policy."""
        env, task = self.env, self.env.parameters
        if policy is None:
            shape = (env.num_envs, *env.single_action_space.shape)  # type: ignore[misc]
            action = 2 * torch.rand(shape, generator=self.generator) - 1
        else:
            x = torch.cat([policy[0](self.obs), task], 1)
            action, _ = policy[1].sample(x, self.generator)
        obs, reward, terminated, _, info = env.step(action)
        self.norm.update(self.obs)
        self.replay.add(
            obs=self.obs,
            next_observations=info["final_obs"],
            actions=action,
            task=task,
            reward=reward,
            terminated=terminated.float(),
            velocity=env.velocity(info),
        )
        self.obs = obs

    def update(self) -> None:
        """One step of critics, policy and temperature."""
        rows = self.replay.sample(self.batch_size, self.generator)
        task, reward = rows["task"], rows["reward"]
        if self.relabel:
            task = self.env.sample_tasks(torch.rand(task.shape, generator=self.generator)).float()
            reward = self.env.rewards(task, rows)
        x, x_next = (
            torch.cat([self.norm(rows[name]), task], 1) for name in ("obs", "next_observations")
        )
        batch = Batch(x, rows["actions"], reward, x_next, rows["terminated"])
        critic, actor = self.optimizers
        self._descend(critic, self.sac.critic_loss(batch, self.generator)[0])
        self.sac.critics.requires_grad_(False)  # the actor's step needs no gradient of theirs
        self._descend(actor, self.sac.actor_loss(batch, self.generator)[0])
        self.sac.critics.requires_grad_(True)
        self.sac.follow()

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # ---- state

    def save(self, path: Path) -> None:
        """Write everything, so that training can go on."""
        tree = {
            "updates": self.updates,
            "networks": self.networks(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "replay": self.replay.state_dict(),
            "env": self.env.state_dict(),
            "obs": self.obs,
        }
        save_checkpoint(path, tree)

    def load(self, path: Path) -> None:
        """Continue where `save` was called."""
        tree: Any = load_checkpoint(path)
        self.updates, self.obs = tree["updates"], tree["obs"]
        self.load_networks(tree["networks"])
        self.replay.load_state_dict(tree["replay"])
        self.env.load_state_dict(tree["env"])
        for optimizer, state in zip(self.optimizers, tree["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.generator.set_state(tree["generator"])

    def networks(self) -> dict[str, Any]:
        """Normaliser, policy and critics: a checkpoint of the behaviour."""
        return {"norm": self.norm.state_dict(), "sac": self.sac.state_dict()}

    def load_networks(self, networks: dict[str, Any]) -> None:
        """Take over what `networks` gave."""
        self.norm.load_state_dict(networks["norm"])
        self.sac.load_state_dict(networks["sac"])

    def policy_of(self, path: Path) -> Policy:
        """The policy in a file of `networks`."""
        networks: Any = load_checkpoint(path)
        norm, policy = copy.deepcopy(self.norm), copy.deepcopy(self.sac.policy)
        norm.load_state_dict(networks["norm"])
        prefix = "policy."
        policy.load_state_dict(
            {k[len(prefix) :]: v for k, v in networks["sac"].items() if k.startswith(prefix)}
        )
        return norm, policy
