"""Using learned skills: as actions of another learner (`SkillEnv`), or to plan (`SkillPlanner`).

Shape letters: N environments, D observation features, Z skill size, P plans, H skills per plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.core.nets import RunningNorm, mlp
from envs.base import BatchedEnv

if TYPE_CHECKING:
    from agents.masd import MASD
    from agents.slim import SLIM


class SkillEnv(BatchedEnv):
    """An environment whose action is a skill, held for several steps of the environment below.

    The reward is the sum over those steps; `info` is the last step's, but `cost` is summed too.

    Skills that always move something cannot stop where they should. With `rest` the one who chooses
    may also choose none: then the action below is 0 for those steps, which is staying where one is
    under position or velocity control (as on the tabletop).

    Args:
        env: the environment below; its leading observation columns must be those the agent was
            trained on (as the tabletop's tasks arrange).
        agent: whose policy turns skills into actions; it acts deterministically and is not changed.
        hold: steps for which a skill is held.
        rest: offer a choice without a skill: a continuous action shorter than 1/2, or one more
            category.

    Raises:
        ValueError: the environment and the agent, or `hold` and the horizon, do not fit.
    """

    def __init__(
        self, env: BatchedEnv, agent: SLIM | MASD, hold: int = 2, rest: bool = False
    ) -> None:
        if env.device.type != agent.device.type:
            raise ValueError(
                f"SkillEnv: the agent is on {agent.device}, the environment on {env.device}"
            )
        trained, space = agent.env.single_observation_space, env.single_observation_space
        assert trained.shape and space.shape
        if space.shape[-1] < trained.shape[-1]:
            raise ValueError(
                f"SkillEnv: the agent reads {trained.shape[-1]} observation columns, "
                f"the environment has {space.shape[-1]}"
            )
        if hold < 1 or env.max_episode_steps % hold:
            raise ValueError(
                f"hold={hold}: expected a divisor of the horizon, {env.max_episode_steps} steps"
            )
        if getattr(agent, "codes", 1) > 1:
            raise ValueError("SkillEnv: expected one skill for the team, not one for each agent")
        size = agent.config.skill_size
        action: gym.Space[Any] = (
            gym.spaces.Discrete(size + rest)
            if agent.config.skill == "discrete"
            else gym.spaces.Box(-1.0, 1.0, (size,))
        )
        super().__init__(env.num_envs, space, action, env.device, env.rng.seed)
        self.env, self.agent, self.hold, self.rest = env, agent, hold, rest
        self.max_episode_steps = env.max_episode_steps // hold
        self.rng, self._width = env.rng, trained.shape[-1]

    def skills(self, action: Tensor) -> Tensor:
        """Skills [..., Z] of actions: a direction of length 1, one category of Z, or 0 to rest."""
        size = self.agent.config.skill_size
        if self.agent.config.skill == "discrete":
            return functional.one_hot(action, size + self.rest)[..., :size].float()
        skill = functional.normalize(action, dim=-1)
        return skill * (action.norm(dim=-1, keepdim=True) >= 0.5) if self.rest else skill

    def _restart(self, mask: Tensor) -> None:
        self.elapsed.masked_fill_(mask, 0)
        self.env._restart(mask)

    @torch.no_grad()
    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        env, state = self.env, {"skill": self.skills(action)}
        moving = state["skill"].any(-1, keepdim=True)
        total = torch.zeros(self.num_envs, device=self.device)
        cost, terminated = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool)
        info: dict[str, Any] = {}
        for _ in range(self.hold):
            low_level, _ = self.agent.act(env._observe()[..., : self._width], state, True)
            if self.rest:
                moving = moving.view(-1, *[1] * (low_level.dim() - 1))
                low_level = torch.where(moving, low_level, 0)
            reward, ended, info = env._advance(low_level)
            env.elapsed += 1
            total += torch.where(terminated, 0.0, reward)
            cost += info.get("cost", torch.zeros_like(cost))
            terminated |= ended
        if "cost" in info:
            info["cost"] = cost
        info.pop("reward_terms", None)  # of the last step only; the reward here is one sum
        return total, terminated, info

    def _observe(self) -> Tensor:
        return self.env._observe()

    def check(self) -> None:
        """See `BatchedEnv`."""
        self.env.check()

    def state_dict(self) -> dict[str, Any]:
        """The environment below, and the position in the episode."""
        mine = {"elapsed": self.elapsed.clone(), "ended": self._ended.clone()}
        return {"env": self.env.state_dict(), **mine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.env.load_state_dict(state["env"])
        self.elapsed.copy_(state["elapsed"])
        self._ended.copy_(state["ended"])


class SkillDynamics(nn.Module):
    """Predicts what holding a skill does: obs after `hold` steps from obs and skill.

    The skill-dynamics model of DADS (Sharma et al. 2020) as a regression; object displacement is
    among the predicted columns.

    Args:
        features: D.
        skill_size: Z.
        hidden: width of the two hidden layers.
    """

    def __init__(self, features: int, skill_size: int, hidden: int = 256) -> None:
        super().__init__()
        self.norm, self.change = RunningNorm(features), RunningNorm(features)
        self.network = mlp(features + skill_size, (hidden, hidden), features)

    def forward(self, obs: Tensor, skill: Tensor) -> Tensor:
        """Predicted obs after the skill, [..., D]."""
        change = self.network(torch.cat([self.norm(obs), skill], -1))
        scale = (self.change.variance + 1e-8).sqrt().float()
        return obs + change * scale + self.change.mean.float()

    def fit(
        self, obs: Tensor, skill: Tensor, next_obs: Tensor, steps: int, generator: torch.Generator
    ) -> float:
        """Train on transitions [B, ...]; returns the mean squared error in standard deviations."""
        self.norm.update(obs)
        self.change.update(next_obs - obs)
        inputs, target = torch.cat([self.norm(obs), skill], -1), self.change(next_obs - obs)
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        loss = torch.zeros(())
        for _ in range(steps):
            rows = torch.randint(len(obs), (512,), generator=generator, device=obs.device)
            loss = functional.mse_loss(self.network(inputs[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return loss.item()


class SkillPlanner:
    """Zero-shot control: the cross-entropy method over skills in a learned `SkillDynamics`.

    Nothing of the task is learned; its goal enters through `cost` alone.

    Args:
        agent: whose skills are planned over; continuous skills.
        env: where to learn the dynamics, e.g. `agent.make_eval_env(256)`.
        hold: steps for which a skill is held.
        rest: plans may contain rest; as the `SkillEnv` they are meant for.
        episodes: random-skill episodes of experience per environment.
        updates: gradient steps of the dynamics.
        seed: of the experience and the planner.
    """

    def __init__(
        self,
        agent: SLIM,
        env: BatchedEnv,
        hold: int = 2,
        rest: bool = False,
        episodes: int = 20,
        updates: int = 3000,
        seed: int = 0,
    ) -> None:
        if agent.config.skill != "sphere":
            raise ValueError("SkillPlanner: expected an agent with continuous skills")
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.skill_size = agent.config.skill_size
        skills = SkillEnv(env, agent, hold, rest)
        self._skills = skills.skills
        assert env.single_observation_space.shape
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.dynamics = SkillDynamics(
                env.single_observation_space.shape[0], self.skill_size
            ).to(env.device)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        obs, _ = skills.reset(seed=seed)
        for _ in range(episodes * skills.max_episode_steps):
            action = self._random(env.num_envs)
            following, _, _, _, info = skills.step(action)
            rows.append((obs, skills.skills(action), info["final_obs"]))
            obs = following
        data = [torch.cat(column) for column in zip(*rows, strict=True)]
        self.error = self.dynamics.fit(data[0], data[1], data[2], updates, self.generator)

    def _random(self, *shape: int) -> Tensor:
        """Actions within bounds, [*shape, Z], most of them long enough not to be rest."""
        noise = torch.randn(
            *shape, self.skill_size, generator=self.generator, device=self.generator.device
        )
        return noise.clamp(-1, 1)

    @torch.no_grad()
    def plan(
        self,
        obs: Tensor,
        cost: Callable[[Tensor], Tensor],
        horizon: int = 4,
        plans: int = 256,
        iterations: int = 4,
        elites: int = 24,
    ) -> Tensor:
        """The next action of the best plan for each row, [N, Z].

        Args:
            obs: [N, D], the columns the dynamics was learned on.
            cost: predicted observations [N, P, D] -> cost [N, P]; summed over the plan's steps.
            horizon: H.
            plans: P, candidates per iteration.
            iterations: of the cross-entropy method.
            elites: candidates the next iteration's distribution is fitted to.
        """
        n = len(obs)
        mean = torch.zeros(n, 1, horizon, self.skill_size, device=obs.device)
        std = torch.ones_like(mean)
        best = mean[:, 0, 0]
        for _ in range(iterations):
            noise = torch.randn(
                n, plans, horizon, self.skill_size, generator=self.generator, device=obs.device
            )
            candidates = (mean + std * noise).clamp(-1, 1)
            skills = self._skills(candidates)
            predicted = obs[:, None].expand(-1, plans, -1)
            total = torch.zeros(n, plans, device=obs.device)
            for step in range(horizon):
                predicted = self.dynamics(predicted, skills[:, :, step])
                total += cost(predicted)
            order = total.topk(elites, largest=False).indices
            chosen = candidates.gather(1, order[:, :, None, None].expand(-1, -1, *mean.shape[2:]))
            mean, std = chosen.mean(1, keepdim=True), chosen.std(1, keepdim=True) + 0.05
            best = chosen[:, 0, 0]
        return best
