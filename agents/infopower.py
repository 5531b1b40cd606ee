"""InfoPower: world models that encode first what the agent controls (Bharadhwaj et al., ICLR 2022).

A latent model z_t of pixels is learnt without reconstructing them (arXiv 2204.08585):

    max I(O_t; Z_t)  subject to  I(A_{t-1}; Z_t | Z_{t-1}), I(R_t; Z_t) large and
                                 I(i; Z_t | Z_{t-1}, A_{t-1}) small (forward information),

and a policy is learnt in imagination on the model's reward plus the empowerment of its actions.

This is a reconstruction from the paper's text; no code of it is public. It departs from the text
where the text defeats its purpose. (1) A recurrent state contains a_{t-1}, so q(a_{t-1} | z_t,
z_{t-1}) needs no look at the image: with `code=observation` z_t is a code of the image alone, and
`code=recurrent` is the published form. (2) ln q(a | z', z) alone rewards constant actions; from it
is taken ln p(a | z), learnt on the same data, and the policy's reward is clipped and annealed. (3)
I(A; Z' | Z) trains z as the outcome of actions only: as their start it would also grow by knowing
what they were chosen by, a distractor included. (4) Each term has a multiplier of its own;
`constraint=joint` is the published single λ. (5) One step may move less than a pixel:
`inverse_steps` takes the mean of several actions. Dreamer, CVRL, RePo and others are configurations
of this file (`configs/baselines`).
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
from agents.core.world import TanhGaussianPolicy, Unrolled, WorldModel, earlier, mean_since, take

MULTIPLIERS = (0.01, 10.0)
"""Bounds of λ, so that a target out of reach does not drown everything else."""
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
    """Updates between two checkpoints, last.ckpt and best.ckpt, each with the replay: 12 KiB a step
    at 64 x 64."""
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
    """What the contrast and the inverse model see of time t: z_t ~ q(z | o_t), or (h_t, z_t) with
    z_t ~ q(z | h_t, o_t) as published, which contains the action."""
    observation_weight: float = 1.0
    """Weight of I(O;Z)."""
    empowerment_weight: float = 0.3
    """First λ of I(A;Z'|Z) in the representation; 0 leaves the term out."""
    reward_weight: float = 1.0
    """First λ of I(R;Z)."""
    forward_weight: float = 0.03
    """First λ of the forward information KL(q(z_t|o_t) ‖ p(z_t|z_{t-1},a_{t-1}))."""
    constraint: Literal["separate", "joint", "none"] = "separate"
    """A multiplier for each term that has a target; the published single λ on their sum; or fixed
    weights. In all of them forward information below its target is free (free nats, ours)."""
    empowerment_target: float | None = 0.4
    """Empowerment to reach [nats per action dimension]; None keeps the weight fixed. Where a target
    is out of reach, λ ends at its bound and is a fixed weight, too."""
    reward_target: float | None = None
    """Reward information to reach [nats]; None keeps the weight fixed."""
    forward_target: float = 3.0
    """Largest forward information [nats], or the free nats."""
    joint_target: float = 0.0
    """c_0 of the sum of the three terms [nats], with constraint=joint."""
    multiplier_rate: float = 0.003
    """Change of log λ per gradient step for a violation as large as its target, or of 1 nat where
    that is 0; larger violations change it no faster."""
    inverse_steps: int = 1
    """The inverse model tells the mean of the k actions between z_{t-k} and z_t, k uniform up to
    this, after I(A_{t-k}, ..., A_{t-1}; Z_t | s_{t-k}), the empowerment of k steps (Klyubin et
    al. 2005). One of k actions alone is hidden by the others; their mean is not."""
    empowerment_reward: float = 0.1
    """Weight of ln q(a|z',z) - ln p(a|z) in the policy's reward at the start; 0 leaves it out. Both
    are of the replay's actions; less ln π it would be below 0 wherever π is sharper than those."""
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
    """Environment steps with uniformly random actions, in evaluation as well, before learning; no
    checkpoint of them is the best one."""
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
    entropy: float = 0.01
    """Weight of the policy's entropy, in reward per step and nat."""
    max_grad_norm: float = 100.0
    """Gradient clipping."""
    bfloat16: bool = True
    """Run the convolutions in bfloat16."""
    compile: bool = False
    """Compile the recurrent cell, which unrolling and imagination call once a step; for long runs:
    a trial of 80 steps took two minutes on two busy processors."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        counts = "inverse_steps empowerment_steps depth deter stoch units batch_size horizon"
        counts += " imagination_starts collect_steps gradient_steps"
        for name in counts.split():
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("model_lr", "policy_lr", "value_lr", "max_grad_norm", "forward_target"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        weights = "observation_weight empowerment_weight reward_weight forward_weight entropy"
        weights += " empowerment_reward empowerment_clip multiplier_rate prefill"
        for name in weights.split():
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("empowerment_target", "reward_target"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0, or null")
        require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        require(0 <= self.lam <= 1, "lam", self.lam, "in [0, 1]")
        length = self.batch_length
        require(length > self.inverse_steps, "batch_length", length, "more than inverse_steps")
        if self.constraint == "separate":
            for name in ("empowerment", "reward", "forward"):
                weight = getattr(self, f"{name}_weight")
                fixed = weight == 0 or getattr(self, f"{name}_target") is None
                low, high = MULTIPLIERS
                allowed = fixed or low <= weight <= high
                require(allowed, f"{name}_weight", weight, f"0, or {low} .. {high} as a first λ")
        # Its fit is weighted by it there; see `_update_model`.
        fits = self.code == "observation" or self.forward_weight > 0
        require(fits, "forward_weight", self.forward_weight, "above 0, for code=recurrent")


class InfoPower(Agent):
    """World model, inverse model, and actor-critic in imagination; see the module's docstring."""

    name = "infopower"
    Config = InfoPowerConfig

    def build(self) -> None:
        """World model, estimators, multipliers, policy π(a|s), value V(s), memory."""
        c, obs, act = self.config, self.env.single_observation_space, self.env.single_action_space
        if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 3 or obs.dtype != "uint8":
            raise ConfigError(f"env: InfoPower needs images uint8 [C, H, W], got {obs}")
        if not isinstance(act, gym.spaces.Box) or len(act.shape) != 1:
            raise ConfigError(f"env: InfoPower needs a continuous action [U], got {act}")
        span = act.high.astype("float64") - act.low
        if not ((span > 0) & (span < 1e30)).all():  # what maps them to (-1, 1) is float32
            raise ConfigError(f"env: InfoPower needs bounded actions, low < high, got {act}")
        if min(obs.shape[1:]) < 16:
            raise ConfigError(f"env: InfoPower needs images of at least 16 x 16 pixels, got {obs}")
        least = c.batch_length * self.num_envs
        why = f"at least {least}, batch_length={c.batch_length} of {self.num_envs} environments"
        require(c.replay_capacity >= least, "replay_capacity", c.replay_capacity, why)
        self.low, self.high = (torch.as_tensor(b, device=self.device) for b in (act.low, act.high))
        self.actions, self.features = len(act.low), c.deter + c.stoch
        recurrent = c.code == "recurrent"
        self.world = WorldModel(
            obs.shape, self.actions, c.depth, c.deter, c.stoch, c.units, recurrent,
            c.observation == "reconstruction", c.bfloat16,
        )  # fmt: skip
        if c.compile:
            self.world.rssm.advance = torch.compile(self.world.rssm.advance)
        start, code = self.features + c.inverse_steps, self.features if recurrent else c.stoch
        self.critic = mi.critics.SeparableCritic(  # bounded scores: NWJ has their exponentials
            code, self.world.encoder.size, c.units, similarity="cosine", temperature=0.1
        )
        self.contrast = CONTRAST.get(c.observation, mi.neural.InfoNCE)(self.critic)
        inverse, self.action_prior = (
            mi.critics.GaussianDecoder(size, self.actions, c.units, min_std=0.05)
            for size in (start + code, start)
        )
        self.empowerment = mi.VariationalEmpowerment(inverse)
        self.model = nn.ModuleList([self.world, self.contrast, self.empowerment, self.action_prior])
        hidden = [c.units, c.units]
        self.policy = TanhGaussianPolicy(mlp(self.features, hidden, 2 * self.actions, 0.01))
        self.value = mlp(self.features, hidden, 1, 0.01)
        self.multipliers = self._multipliers()
        fields = {"obs": (obs.shape, torch.uint8), "action": ((self.actions,), torch.float32)}
        fields |= {name: ((), torch.float32) for name in ("reward", "terminated", "first")}
        size = c.replay_capacity // self.num_envs
        self.replay = Replay(fields, size, self.num_envs, self.device)
        learnt = {"model": self.model, "policy": self.policy, "value": self.value}
        modules = learnt | {f"{name}_multiplier": m for name, m in self.multipliers.items()}
        for module in modules.values():
            module.to(self.device)
        self.optimizers = {
            name: torch.optim.Adam(
                module.parameters(), getattr(c, f"{name}_lr"), eps=1e-5, fused=True
            )
            for name, module in learnt.items()
        }
        self.parts = {**modules, "replay": self.replay}
        self.parts |= {f"{name}_optimizer": o for name, o in self.optimizers.items()}
        self.rollout_steps = c.collect_steps

    def _multipliers(self) -> dict[str, mi.Lagrangian]:
        """λ of each constrained term, as limits of costs."""
        c, limits = self.config, {}
        if c.constraint == "joint":
            limits["joint"] = (-c.joint_target, 1.0)
        elif c.constraint == "separate":
            limits["forward"] = (c.forward_target, c.forward_weight)
            least = self.actions * (c.empowerment_target or 0)
            limits["empowerment"] = (-least, c.empowerment_weight)
            limits["reward"] = (-(c.reward_target or 0), c.reward_weight)
            limits = {name: pair for name, pair in limits.items() if all(pair)}
        return {
            name: mi.Lagrangian(limit, weight, c.multiplier_rate, gain=0.0, bounds=MULTIPLIERS)
            for name, (limit, weight) in limits.items()
        }

    # ---- acting

    @property
    def learning(self) -> bool:
        """See `Agent`: not while actions are random."""
        return self.num_timesteps >= self.config.prefill

    def initial_state(self, num_envs: int) -> State:
        """Zero (h, z) and a, and that nothing has been seen yet."""
        zeros = {"features": self.features, "action": self.actions}
        state = {k: torch.zeros(num_envs, size, device=self.device) for k, size in zeros.items()}
        return state | {"first": torch.ones(num_envs, device=self.device)}

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Actions [N, U] of π(·|h, z) after filtering o_t into the state."""
        noise = self._noise(len(obs), self.config.stoch) * (not deterministic)
        features = self.world.filter(obs, state["features"], state["action"], noise)
        noise = self._noise(len(obs), self.actions) * (not deterministic)
        action, _ = self.policy.sample(self.policy.moments(features), noise)
        if not self.learning:
            action = 2 * torch.rand(noise.shape, generator=self.generator, device=self.device) - 1
        first = torch.zeros_like(state["first"])
        carried = {"features": features, "action": action, "first": first}
        return self.low + (action + 1) / 2 * (self.high - self.low), carried

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def store(self, step: Step) -> None:
        """A row is what an action led to; an episode's first observation only starts the filter."""
        action = (step.action - self.low) / (self.high - self.low) * 2 - 1
        self.replay.add(
            obs=step.info["final_obs"], action=action, reward=step.reward,
            terminated=step.terminated.float(), first=step.state["first"],
        )  # fmt: skip

    # ---- learning

    def update(self) -> dict[str, Tensor]:
        """A few gradient steps of the world model and of the behaviour; metrics of the last."""
        metrics: dict[str, Tensor] = {}
        c, stored = self.config, len(self.replay) // self.num_envs
        ready = self.learning and stored >= c.batch_length
        for _ in range(c.gradient_steps * ready):
            features, metrics = self._update_model(self.sample())
            metrics |= self._update_behaviour(features)
        return metrics

    def sample(self) -> dict[str, Tensor]:
        """Sequences of the memory, [B, T, ...] each; `first` where nothing precedes in them."""
        c = self.config
        batch = self.replay.sample_sequences(c.batch_size, c.batch_length, self.generator)
        first = batch["first"] > 0
        first[:, 0] = True
        return {**batch, "first": first}

    def _update_model(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The Lagrangian of the representation; returns features [B·T, D+Z] and metrics."""
        c = self.config
        seen, terms, fits = self.terms(batch)
        weight = self._weights(terms)
        # Free nats: the multiplier alone is too slow to keep the code from collapsing at once.
        forward = terms["forward"].clamp_min(c.forward_target)
        lagrangian = (
            c.observation_weight * terms["observation"]
            + weight["empowerment"] * terms["empowerment"]
            + weight["reward"] * terms["reward"]
            - weight["forward"] * forward
        )
        if c.code == "recurrent":
            # Here the fit reaches the codes through h: at full weight it would drown I(O;Z).
            fits = {**fits, "forward": weight["forward"] * fits["forward"]}
        self._descend("model", sum(fits.values()) - lagrangian)
        metrics = {f"information/{name}": value.detach() for name, value in terms.items()}
        metrics |= {f"multiplier/{name}": m.value.clone() for name, m in self.multipliers.items()}
        metrics |= {f"model/{name}": value.detach() for name, value in fits.items()}
        return seen.features.detach().flatten(0, 1), metrics

    def _weights(self, terms: dict[str, Tensor]) -> dict[str, Any]:
        """λ of each term after the dual step: ascent where its constraint is violated."""
        sign = {"empowerment": -1, "reward": -1, "forward": 1}
        weights = {name: getattr(self.config, f"{name}_weight") for name in sign}
        costs = {name: s * terms[name].detach() for name, s in sign.items()}
        parts = [cost for name, cost in costs.items() if weights[name] > 0]
        costs["joint"] = torch.stack([terms["forward"].new_zeros(()), *parts]).sum().detach()
        weights |= {name: m.update(costs[name]).clone() for name, m in self.multipliers.items()}
        joint = weights.pop("joint", None)
        return weights if joint is None else {k: joint * (w > 0) for k, w in weights.items()}

    def terms(
        self, batch: dict[str, Tensor]
    ) -> tuple[Unrolled, dict[str, Tensor], dict[str, Tensor]]:
        """The objective's terms [nats], and losses of models that only have to fit it.

        Args:
            batch: as `sample` gives.

        Returns:
            The unrolled sequence; `observation`, `empowerment`, `reward`, `forward` (0-d each),
            with gradients for the representation; negative log-likelihoods of the forward model,
            of the inverse model, of the action prior and of going on (0-d each).
        """
        seen = self.world.observe(batch, self._noise(*batch["first"].shape, self.config.stoch))
        assert seen.features.shape == (*batch["reward"].shape, self.features)
        follows = ~batch["first"]
        empowerment, fits = self._empowerment(seen, batch)
        terms = {
            "observation": self._observation_information(seen, batch["obs"]),
            "empowerment": empowerment,
            "reward": self.world.reward_information(seen.features, batch["reward"]),
            # E KL(q(z_t | o_t) || p(z_t | z_{t-1}, a_{t-1})) >= I(i; Z_t | Z_{t-1}, A_{t-1})
            "forward": mi.functional.vib_kl(*seen.posterior, *seen.prior.detach(), mask=follows),
        }
        fits |= {
            "forward": mi.functional.vib_kl(*seen.posterior.detach(), *seen.prior, mask=follows),
            "continues": self.world.continue_loss(seen.features, batch["terminated"]),
        }
        return seen, terms, fits

    def _code(self, features: Tensor) -> Tensor:
        """What stands for o_t in the bounds: z_t, or (h_t, z_t) as published."""
        return features if self.config.code == "recurrent" else features[..., self.config.deter :]

    def _observation_information(self, seen: Unrolled, obs: Tensor) -> Tensor:
        """Bound of I(O_t; Z_t), 0-d; in Dreamer the decoder's likelihood, a constant apart."""
        c, x, y = self.config, self._code(seen.features), seen.embedding
        if c.observation == "none":
            return y.new_zeros(())
        if c.observation == "reconstruction":
            return self.world.reconstruction(seen.features, obs)
        if c.negatives == "batch" or c.observation == "redundancy":
            x, y = x.flatten(0, 1), y.flatten(0, 1)
        if c.observation == "redundancy":
            return mi.functional.decorrelation(*self.critic.embed(x, y))
        return -self.contrast.loss(x, y)

    def _empowerment(
        self, seen: Unrolled, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """I(A; Z_t | s_{t-k}) of the mean of k actions, 0-d; losses of q(a|...) and p(a|...).

        An estimate: a lower bound for the actions' true density, but the Gaussian p that is learnt
        in its place says up to 0.18 nats per dimension too much where actions are uniform.
        """
        most, code = self.config.inverse_steps, self._code(seen.features)
        pairs = earlier(batch["first"], most, self.generator)
        action = mean_since(batch["action"], pairs, most)
        # Through the start, the bound without its prior's gradient would make z_{t-k} tell what the
        # actions came from.
        start = self._start(take(seen.features.detach(), pairs.start), pairs.steps)
        log_prior, mask = self.action_prior(start, action), pairs.mask
        # The policy's bonus needs the inverse model also where the representation does without.
        fits = {"inverse": self.empowerment.loss(start, action, code.detach(), mask=mask)}
        fits["action_prior"] = -(log_prior * mask).sum() / mask.sum().clamp_min(1)
        log_prior = log_prior.detach()
        return self.empowerment.information(start, action, code, log_prior, mask=mask), fits

    def _start(self, features: Tensor, steps: Tensor) -> Tensor:
        """What the inverse model knows besides the code: s_{t-k} and k."""
        which = functional.one_hot(steps - 1, self.config.inverse_steps)
        return torch.cat([features, which], -1)

    def _update_behaviour(self, features: Tensor) -> dict[str, Tensor]:
        """Policy and value on imagined λ-returns, by gradients through the model (Dreamer)."""
        c = self.config
        rows = torch.randint(
            len(features), (c.imagination_starts,), generator=self.generator, device=self.device
        )
        self.model.requires_grad_(False)
        self.value.requires_grad_(False)
        seen = self.world.imagine(self.policy, features[rows], c.horizon, self._noise)
        start = self._start(seen.states[:-1], torch.ones_like(seen.reward, dtype=torch.int64))
        log_prior, code = self.action_prior(start, seen.action), self._code(seen.states[1:])
        nats = self.empowerment.information(start, seen.action, code, log_prior, reduction="none")
        left = max(0.0, 1 - self.num_timesteps / c.empowerment_steps)
        bonus = c.empowerment_reward * left * nats.clamp(0, c.empowerment_clip)
        reward = seen.reward + bonus
        value = self._value(seen.states[1:])
        returns = lambda_returns(reward, value, c.gamma * seen.continues, c.lam)
        alive = torch.cat([torch.ones_like(reward[:1]), seen.continues[:-1]]).cumprod(0).detach()
        assert returns.shape == seen.log_prob.shape == alive.shape, (returns.shape, alive.shape)
        gain = (1 - c.gamma) * returns - c.entropy * seen.log_prob
        self._descend("policy", -(alive * gain).mean())
        self.model.requires_grad_(True)
        self.value.requires_grad_(True)
        error = (1 - c.gamma) * (self._value(seen.states[:-1].detach()) - returns.detach())
        value_loss = (alive * error.square()).mean()
        self._descend("value", value_loss)
        metrics = {"return": returns, "reward": seen.reward, "empowerment": nats, "bonus": bonus}
        metrics |= {"entropy": -seen.log_prob}
        means = {f"policy/{name}": value.detach().mean() for name, value in metrics.items()}
        return means | {"value/loss": value_loss.detach()}

    def _value(self, states: Tensor) -> Tensor:
        """V(s) [*]; the network says reward per step, which is of order 1 whatever γ is."""
        return self.value(states).squeeze(-1) / (1 - self.config.gamma)

    def _descend(self, part: str, loss: Any) -> None:
        """One clipped gradient step of a part."""
        optimizer = self.optimizers[part]
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
        optimizer.step()

    def headline(self, row: dict[str, float]) -> dict[str, float]:
        """See `Agent`."""
        names = ("return", "eval/return_mean", "information/empowerment", "information/forward")
        return {name.split("/")[-1]: row[name] for name in names if name in row}
