"""InfoPower: world models that encode first what the agent controls (Bharadhwaj et al., ICLR 2022).

A latent model z_t of pixels is learnt without reconstructing them (arXiv 2204.08585):

    max I(O_t; Z_t)  subject to  I(A_{t-1}; Z_t | Z_{t-1}), I(R_t; Z_t) large and
                                 I(i; Z_t | Z_{t-1}, A_{t-1}) small (forward information),

and a policy is learnt in imagination on the model's reward plus the empowerment of its actions.

This is a reconstruction from the paper's text; no code of it is public. It departs from the text
where the text defeats its purpose. (1) A recurrent state contains a_{t-1}, so q(a_{t-1} | z_t, z_{t-1})
needs no look at the image: with `code=observation` z_t is a code of the image alone, and
`code=recurrent` is the published form. (2) ln q(a | z', z) alone rewards constant actions; the reward
is ln q - ln π, clipped and annealed, and in learning from old data a learnt p(a_{t-1} | z_{t-1}) takes
the place of π. (3) Each term has a multiplier of its own; `constraint=joint` is the published single
λ. (4) One step may move less than a pixel: `inverse_steps`. Dreamer, CVRL, RePo and others are
configurations of this file (`configs/baselines`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn import functional

import mi
from agents.base import Agent, AgentConfig, State, Step
from agents.core.config import ConfigError, require
from agents.core.nets import mlp
from agents.core.replay import Replay
from agents.core.returns import lambda_returns
from agents.core.world import (
    RSSM,
    ConvDecoder,
    ConvEncoder,
    TanhGaussianPolicy,
    Unrolled,
    pixels,
    symexp,
    symlog,
)

CONTRAST: dict[str, type[mi.MIEstimator]] = {
    "infonce": mi.neural.InfoNCE,
    "nwj": mi.neural.NWJ,
    "jsd": mi.neural.JSD,
}


@dataclass
class InfoPowerConfig(AgentConfig):
    """Settings of InfoPower."""

    env: str = "pixels/arm"
    """Environment id; its observations are images uint8 [C, H, W]."""
    num_envs: int = 16
    """Environments stepped together, N."""
    total_timesteps: int = 30_000
    """Environment steps, summed over the environments."""
    checkpoint_interval: int = 200
    """Updates between two checkpoints, which hold the replay."""
    eval_episodes: int = 16
    """Episodes of one evaluation."""
    observation: Literal["infonce", "nwj", "jsd", "reconstruction", "redundancy", "none"] = (
        "infonce"
    )
    """Bound of I(O;Z): contrastive (NWJ in the paper), the likelihood of a decoder (Dreamer),
    redundancy reduction (Barlow Twins, after R2-Dreamer), or none (RePo)."""
    negatives: Literal["batch", "sequence"] = "batch"
    """Other observations that contrast: all of the batch, or those of the same sequence, which a
    background alone cannot tell apart."""
    code: Literal["observation", "recurrent"] = "observation"
    """What the contrast and the inverse model see of time t: z_t ~ q(z | o_t), or (h_t, z_t) with z_t
    ~ q(z | h_t, o_t) as published, which contains the action."""
    observation_weight: float = 0.3
    """Weight of I(O;Z)."""
    empowerment_weight: float = 3.0
    """First λ of I(A;Z'|Z) in the representation; 0 leaves the term out."""
    reward_weight: float = 1.0
    """First λ of I(R;Z)."""
    forward_weight: float = 0.3
    """First λ of the forward information KL(q(z_t|o_t) ‖ p(z_t|z_{t-1},a_{t-1})); 0 leaves it out."""
    constraint: Literal["separate", "joint", "none"] = "separate"
    """A multiplier for each term that has a target; the published single λ on their sum; or fixed
    weights, with the forward information below its target free (free nats)."""
    empowerment_target: float | None = 1.0
    """Empowerment to reach [nats per action dimension]; None keeps the weight fixed."""
    reward_target: float | None = None
    """Reward information to reach [nats]; None keeps the weight fixed."""
    forward_target: float = 3.0
    """Largest forward information [nats], or the free nats."""
    joint_target: float = 0.0
    """c_0 of the sum of the three terms [nats], with constraint=joint."""
    multiplier_rate: float = 0.01
    """Change of log λ per gradient step for a violation as large as its target."""
    inverse_steps: int = 1
    """The inverse model sees up to so many steps between z_{t-k} and z_t, k uniform."""
    empowerment_reward: float = 0.1
    """Weight of ln q(a|z',z) - ln π(a|z) in the policy's reward at the start; 0 leaves it out."""
    empowerment_clip: float = 2.0
    """Range [0, c] to which that reward is clipped [nats]."""
    empowerment_steps: int = 30_000
    """Environment steps over which its weight falls linearly to 0."""
    depth: int = 16
    """Channels of the first convolution."""
    deter: int = 128
    """Size of the deterministic state h."""
    stoch: int = 16
    """Size of the stochastic code z."""
    units: int = 128
    """Width of the hidden layers."""
    batch_size: int = 16
    """Sequences per gradient step, B."""
    batch_length: int = 32
    """Steps of a sequence, T."""
    horizon: int = 15
    """Imagined steps, H."""
    imagination_starts: int = 128
    """States of the batch from which imagination starts."""
    collect_steps: int = 3
    """Steps of every environment between two updates."""
    gradient_steps: int = 8
    """Gradient steps per update."""
    prefill: int = 1000
    """Environment steps with uniformly random actions, in evaluation as well, before learning."""
    replay_capacity: int = 100_000
    """Environment steps kept, in uint8 on the device."""
    model_lr: float = 6e-4
    """Adam's step size for the world model."""
    policy_lr: float = 3e-4
    """Adam's step size for the policy."""
    value_lr: float = 3e-4
    """Adam's step size for the value."""
    gamma: float = 0.99
    """Discount γ."""
    lam: float = 0.95
    """λ of the λ-returns."""
    entropy: float = 1e-3
    """Weight of the policy's entropy [per nat]."""
    max_grad_norm: float = 100.0
    """Gradient clipping."""
    bfloat16: bool = True
    """Run the convolutions in bfloat16."""
    compile: bool = False
    """Compile the recurrent cell, which unrolling and imagination call once a step."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        counts = "inverse_steps empowerment_steps depth deter stoch units batch_size horizon"
        counts += " imagination_starts collect_steps gradient_steps"
        for name in counts.split():
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("model_lr", "policy_lr", "value_lr", "max_grad_norm", "forward_target"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("observation_weight", "empowerment_weight", "reward_weight", "forward_weight",
                     "empowerment_reward", "empowerment_clip", "multiplier_rate", "entropy"):  # fmt: skip
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("empowerment_target", "reward_target"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0, or null")
        for name in ("gamma", "lam"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        length, steps = self.batch_length, self.prefill // self.num_envs
        require(length > self.inverse_steps, "batch_length", length, "more than inverse_steps")
        require(steps >= length, "prefill", self.prefill, "num_envs * batch_length at least")
        capacity = self.replay_capacity
        require(capacity // self.num_envs >= length, "replay_capacity", capacity, "the same")


class InfoPower(Agent):
    """World model, inverse model, and actor-critic in imagination; see the module's docstring."""

    name = "infopower"
    Config = InfoPowerConfig
    score = "return_mean"

    def build(self) -> None:
        """World model, estimators, multipliers, policy π(a|s), value V(s), memory."""
        c, device = self.config, self.device
        obs, act = self.env.single_observation_space, self.env.single_action_space
        if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 3 or obs.dtype != "uint8":
            raise ConfigError(f"env: InfoPower needs images uint8 [C, H, W], got {obs}")
        if not isinstance(act, gym.spaces.Box) or len(act.shape) != 1:
            raise ConfigError(f"env: InfoPower needs a continuous action [U], got {act}")
        self.actions, recurrent = act.shape[0], c.code == "recurrent"
        self.low, self.high = (torch.as_tensor(b, device=device) for b in (act.low, act.high))
        features, code = c.deter + c.stoch, c.stoch + recurrent * c.deter
        encoder = ConvEncoder(obs.shape, c.depth, c.bfloat16)
        start = features + c.inverse_steps
        decoder = mi.critics.GaussianDecoder
        critic = mi.critics.SeparableCritic(code, encoder.size, similarity="cosine", temperature=0.1)
        self.world = nn.ModuleDict({
            "encoder": encoder,
            "rssm": RSSM(encoder.size, self.actions, c.deter, c.stoch, c.units, recurrent),
            "reward": decoder(features, 1, c.units, min_std=0.05),
            "continues": mlp(features, [c.units], 1),
            "inverse": decoder(start + code, self.actions, c.units, min_std=0.05),
            "action_prior": decoder(start, self.actions, c.units, min_std=0.05),
            "contrast": CONTRAST.get(c.observation, mi.neural.InfoNCE)(critic),
        })  # fmt: skip
        if c.observation == "reconstruction":
            self.world["decoder"] = ConvDecoder(features, obs.shape, c.depth, c.bfloat16)
        self.world.to(device)
        self.rssm: RSSM = self.world["rssm"]  # type: ignore[assignment]
        self.empowerment = mi.VariationalEmpowerment(self.world["inverse"])  # type: ignore[arg-type]
        if c.compile:
            self.rssm.advance = torch.compile(self.rssm.advance)
        network = mlp(features, [c.units, c.units], 2 * self.actions, output_gain=0.01)
        self.policy = TanhGaussianPolicy(network).to(device)
        self.value = mlp(features, [c.units, c.units], 1, output_gain=0.01).to(device)
        self.multipliers = {k: m.to(device) for k, m in self._multipliers().items()}
        modules = {"world": self.world, "policy": self.policy, "value": self.value}
        rates = {"world": c.model_lr, "policy": c.policy_lr, "value": c.value_lr}
        self.optimizers = {
            k: torch.optim.Adam(m.parameters(), rates[k], eps=1e-5) for k, m in modules.items()
        }
        fields = {"obs": (obs.shape, torch.uint8), "action": ((self.actions,), torch.float32)}
        fields |= {name: ((), torch.float32) for name in ("reward", "terminated", "first")}
        self.replay = Replay(fields, c.replay_capacity // self.num_envs, self.num_envs, device)
        self.parts = {**modules, "replay": self.replay}
        self.parts |= {f"{k}_multiplier": v for k, v in self.multipliers.items()}
        self.parts |= {f"{k}_optimizer": v for k, v in self.optimizers.items()}
        self.rollout_steps = c.collect_steps

    def _multipliers(self) -> dict[str, mi.Lagrangian]:
        """λ of each constrained term, as limits of costs."""
        c = self.config
        if c.constraint == "none":
            return {}
        if c.constraint == "joint":
            limits = {"joint": (-c.joint_target, 1.0)}
        else:
            wanted = {"empowerment": c.empowerment_target, "reward": c.reward_target}
            scale = {"empowerment": -self.actions, "reward": -1}
            limits = {k: (scale[k] * v, getattr(c, f"{k}_weight")) for k, v in wanted.items() if v}
            limits["forward"] = (c.forward_target, c.forward_weight)
        # Bounded, so that a target out of reach does not drown everything else.
        return {
            name: mi.Lagrangian(limit, first, c.multiplier_rate, gain=0.0, bounds=(0.01, 10.0))
            for name, (limit, first) in limits.items()
            if first > 0
        }

    # ---- acting

    def initial_state(self, num_envs: int) -> State:
        """Zero h, z and a, and that nothing has been seen yet."""
        sizes = {"deter": self.config.deter, "code": self.config.stoch, "action": self.actions}
        state = {k: torch.zeros(num_envs, v, device=self.device) for k, v in sizes.items()}
        return state | {"first": torch.ones(num_envs, device=self.device)}

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Actions [N, U] of π(·|h, z) after filtering o_t into the state."""
        deter = self.rssm.advance(state["deter"], state["code"], state["action"])
        posterior = self.rssm.posterior(self.world["encoder"](obs), deter)
        noise = self._noise(len(obs), self.config.stoch) * (not deterministic)
        features = torch.cat([deter, posterior.sample(noise)], -1)
        noise = self._noise(len(obs), self.actions)
        if self.num_timesteps < self.config.prefill:
            action = 2 * torch.rand(noise.shape, generator=self.generator, device=self.device) - 1
        else:
            action = self.policy.mode(features) if deterministic else self._sample(features, noise)
        deter, code = features.split([self.config.deter, self.config.stoch], -1)
        first = torch.zeros_like(state["first"])
        carried = {"deter": deter, "code": code, "action": action, "first": first}
        return self.low + (action + 1) / 2 * (self.high - self.low), carried

    def _sample(self, features: Tensor, noise: Tensor) -> Tensor:
        return self.policy.sample(features, noise)[0]

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def store(self, step: Step) -> None:
        """A row is what an action led to; an episode's first observation only starts the filter."""
        action = (step.action - self.low) / (self.high - self.low) * 2 - 1
        self.replay.add(
            obs=step.info["final_obs"], action=action.clamp(-1, 1), reward=step.reward,
            terminated=step.terminated.float(), first=step.state["first"],
        )  # fmt: skip

    # ---- learning

    def update(self) -> dict[str, Tensor]:
        """A few gradient steps of the world model and of the behaviour."""
        if self.num_timesteps < self.config.prefill:
            return {}
        metrics: dict[str, Tensor] = {}
        for _ in range(self.config.gradient_steps):
            batch = self.sample()
            features, metrics = self._update_world(batch)
            metrics |= self._update_behaviour(features)
        return metrics

    def sample(self) -> dict[str, Tensor]:
        """Sequences of the memory, [B, T, ...] each; `first` where nothing precedes in them."""
        c = self.config
        batch = self.replay.sample_sequences(c.batch_size, c.batch_length, self.generator)
        batch["first"] = batch["first"] > 0
        batch["first"][:, 0] = True
        return batch

    def _update_world(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The Lagrangian of the representation and its multipliers; returns features [B·T, D+Z]."""
        c = self.config
        seen, terms, fits = self.terms(batch)
        weights = self._weights(terms)
        forward = terms["forward"]
        if c.constraint != "separate":
            forward = forward.clamp_min(c.forward_target)  # free nats
        information = (
            c.observation_weight * terms["observation"]
            + weights["empowerment"] * terms["empowerment"]
            + weights["reward"] * terms["reward"]
            - weights["forward"] * forward
        )
        self._descend("world", sum(fits.values()) - information)
        metrics = {f"information/{name}": value.detach() for name, value in terms.items()}
        metrics |= {f"multiplier/{k}": m.value.clone() for k, m in self.multipliers.items()}
        metrics |= {f"model/{name}": value.detach() for name, value in fits.items()}
        return seen.features.detach().flatten(0, 1), metrics

    def _weights(self, terms: dict[str, Tensor]) -> dict[str, Any]:
        """λ of each term after the dual step: ascent where a constraint is violated."""
        c = self.config
        weights = {k: getattr(c, f"{k}_weight") for k in ("empowerment", "reward", "forward")}
        costs = {k: -terms[k].detach() for k in ("empowerment", "reward")}
        costs["forward"] = terms["forward"].detach()
        costs["joint"] = sum(cost for k, cost in costs.items() if weights[k])
        moved = {k: m.update(costs[k]) for k, m in self.multipliers.items()}
        if "joint" in moved:
            return {k: moved["joint"] * (v > 0) for k, v in weights.items()}
        return weights | moved

    def terms(
        self, batch: dict[str, Tensor]
    ) -> tuple[Unrolled, dict[str, Tensor], dict[str, Tensor]]:
        """The objective's information terms [nats], and losses of what only has to fit them.

        Args:
            batch: as `sample` gives.

        Returns:
            The unrolled sequence; `observation`, `empowerment`, `reward`, `forward` (0-d each), with
            gradients for the representation; negative log-likelihoods of the forward model, of the
            action prior and of continuing (0-d each).
        """
        c = self.config
        embedding = self.world["encoder"](batch["obs"])
        shape = (*batch["reward"].shape, c.stoch)
        seen = self.rssm.observe(embedding, batch["action"], batch["first"], self._noise(*shape))
        assert seen.features.shape == (*batch["reward"].shape, c.deter + c.stoch)
        prior, follows = seen.prior, ~batch["first"]
        fits = {"forward": self._kl(seen.posterior.detach(), prior, follows)}
        terms = {"forward": self._kl(seen.posterior, prior.detach(), follows)}
        terms["observation"] = self._observation_term(seen, embedding, batch["obs"])
        terms["empowerment"], fits["action_prior"] = self._empowerment_term(seen, batch)
        terms["reward"] = self._reward_term(seen.features, batch["reward"])
        fits["continues"] = functional.binary_cross_entropy_with_logits(
            self.world["continues"](seen.features).squeeze(-1), 1 - batch["terminated"]
        )
        return seen, terms, fits

    def _kl(self, posterior: Any, prior: Any, mask: Tensor) -> Tensor:
        """E KL(q(z_t | o_t) ‖ p(z_t | z_{t-1}, a_{t-1})) >= I(i; Z_t | Z_{t-1}, A_{t-1}), 0-d."""
        return mi.functional.vib_kl(*posterior, *prior, mask=mask)

    def _code(self, seen: Unrolled) -> Tensor:
        """What is said about o_t: z_t, or (h_t, z_t) as published."""
        return seen.features if self.config.code == "recurrent" else seen.code

    def _observation_term(self, seen: Unrolled, embedding: Tensor, obs: Tensor) -> Tensor:
        """Bound of I(O_t; Z_t), 0-d (a likelihood without its constant entropy in Dreamer)."""
        c, contrast = self.config, self.world["contrast"]
        if c.observation == "none":
            return embedding.new_zeros(())
        if c.observation == "reconstruction":
            error = self.world["decoder"](seen.features) - pixels(obs)
            return -0.5 * error.square().flatten(2).sum(-1).mean()
        x, y = self._code(seen), embedding
        if c.negatives == "batch" or c.observation == "redundancy":
            x, y = x.flatten(0, 1), y.flatten(0, 1)
        if c.observation == "redundancy":
            return mi.functional.decorrelation(*contrast.critic.embed(x, y))  # type: ignore[operator]
        return -contrast.loss(x, y)  # type: ignore[operator]

    def _empowerment_term(self, seen: Unrolled, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """I(A; Z_t | s_{t-k}) of the first of k actions, and the loss of p(a | s_{t-k}), 0-d each."""
        most, first = self.config.inverse_steps, batch["first"]
        time = torch.arange(first.shape[1], device=self.device)
        draw = torch.rand(first.shape, generator=self.generator, device=self.device)
        steps = (draw * most).long() + 1  # k
        origin = time - steps
        episode = first.cumsum(1)
        past = origin.clamp_min(0)
        mask = (origin >= 0) & (episode.gather(1, past) == episode)
        start = _take(seen.features, past)
        action = _take(batch["action"], past + 1)
        start = torch.cat([start, functional.one_hot(steps - 1, most)], -1)
        log_prior = self.world["action_prior"](start.detach(), action)
        nats = self.empowerment.information(
            start, action, self._code(seen), log_prior.detach(), mask=mask
        )
        return nats, -(log_prior * mask).sum() / mask.sum().clamp_min(1)

    def _reward_term(self, features: Tensor, reward: Tensor) -> Tensor:
        """I(R_t; Z_t) >= H(R) + E log q(r | z), with the entropy of a Gaussian as wide as R, 0-d."""
        head, target = self.world["reward"], symlog(reward)
        std = (target.var() + head.min_std**2).sqrt()  # type: ignore[operator]
        log_prior = torch.distributions.Normal(target.mean(), std).log_prob(target).mean()
        return mi.functional.barber_agakov(head(features, target[..., None]), log_prior)

    def _update_behaviour(self, features: Tensor) -> dict[str, Tensor]:
        """Policy and value on imagined λ-returns, by gradients through the model (Dreamer)."""
        c = self.config
        rows = torch.randint(
            len(features), (c.imagination_starts,), generator=self.generator, device=self.device
        )
        self.world.requires_grad_(False)
        self.value.requires_grad_(False)
        states, reward, discount, log_prob, nats = self.imagine(features[rows])
        bonus = nats.clamp(0, c.empowerment_clip)
        left = max(0.0, 1 - self.num_timesteps / c.empowerment_steps)
        value = self.value(states[1:]).squeeze(-1)
        total = reward + c.empowerment_reward * left * bonus
        returns = lambda_returns(total, value, discount, c.lam)
        alive = torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).cumprod(0).detach()
        assert returns.shape == log_prob.shape == alive.shape, (returns.shape, log_prob.shape)
        self._descend("policy", -(alive * (returns - c.entropy * log_prob)).mean())
        self.world.requires_grad_(True)
        self.value.requires_grad_(True)
        error = self.value(states[:-1].detach()).squeeze(-1) - returns.detach()
        value_loss = 0.5 * (alive * error.square()).mean()
        self._descend("value", value_loss)
        return {
            "policy/return": returns.detach().mean(), "policy/entropy": -log_prob.detach().mean(),
            "policy/reward": reward.detach().mean(), "policy/empowerment": nats.detach().mean(),
            "value/loss": value_loss.detach(),
        }  # fmt: skip

    def imagine(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Let π act in the model for H steps from features [M, D+Z].

        Returns:
            Features [H+1, M, D+Z]; and of each step, [H, M]: reward, discount γ p(continues),
            log π(a | s) and the empowerment's integrand ln q(a | s, z') - ln π(a | s) [nats].
        """
        c, states, actions, log_probs = self.config, [state], [], []
        for _ in range(c.horizon):
            noise = self._noise(len(state), self.actions)
            action, log_prob = self.policy.sample(state.detach(), noise)
            deter = self.rssm.advance(*state.split([c.deter, c.stoch], -1), action)
            code = self.rssm.prior(deter).sample(self._noise(len(state), c.stoch))
            state = torch.cat([deter, code], -1)
            states.append(state)
            actions.append(action)
            log_probs.append(log_prob)
        every, log_prob = torch.stack(states), torch.stack(log_probs)
        after, start = every[1:], every[:-1]
        one_step = functional.one_hot(start.new_zeros(start.shape[:-1]).long(), c.inverse_steps)
        nats = self.empowerment.information(
            torch.cat([start, one_step], -1), torch.stack(actions),
            after if c.code == "recurrent" else after[..., c.deter :], log_prob, reduction="none",
        )  # fmt: skip
        reward = symexp(self.world["reward"].moments(after)[0].squeeze(-1))  # type: ignore[operator]
        discount = c.gamma * torch.sigmoid(self.world["continues"](after).squeeze(-1))
        return every, reward, discount, log_prob, nats

    def _descend(self, part: str, loss: Any) -> None:
        """One clipped gradient step of a part."""
        optimizer, module = self.optimizers[part], self.parts[part]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), self.config.max_grad_norm)  # type: ignore[attr-defined]
        optimizer.step()

    def headline(self, row: dict[str, float]) -> dict[str, float]:
        """See `Agent`."""
        names = ("return", "eval/return_mean", "information/empowerment", "information/forward")
        return {name.split("/")[-1]: row[name] for name in names if name in row}


def _take(x: Tensor, time: Tensor) -> Tensor:
    """x [B, T, D] at the steps int64 [B, T], [B, T, D]."""
    return x.gather(1, time[..., None].expand(-1, -1, x.shape[-1]))
