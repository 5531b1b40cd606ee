"""ACORM: attention-guided contrastive roles of a team (Hu et al., ICLR 2024, arXiv 2312.04819).

What an agent has seen becomes an embedding e, and that a role z = f(e). Agents whose embeddings are
in one cluster shall have roles that agree: max I(z; cluster), by InfoNCE with clustered positives.
QMIX mixes their utilities Q_i(o_i, z_i) by weights that depend on what the history of the state
attends to among the roles. `acorm-mappo` is the on-policy variant.

Faithful to the published code as its curves were made with it, except for its defects. Those are
mended here, and `defects` puts them back, so that their effect can be measured. What is ours are
the replay (the last step of an episode that is cut off has no successor there, so it is not
learnt), the start of W, and the switches `td_lambda`, `per_agent_epsilon`, `cluster_across` and
`attention=small`. Without roles it is QMIX, VDN or IQL: `python train.py qmix`.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.base import Agent, AgentConfig, State, Step
from agents.core.config import ConfigError, require
from agents.core.decomposition import (
    Independent,
    QMix,
    Sum,
    Utility,
    greedy,
    lambda_returns,
    previous_actions,
    team_sizes,
    win_rate,
)
from agents.core.evaluate import Episodes
from agents.core.parallel import everywhere
from agents.core.replay import Replay
from agents.core.roles import Across, Roles, StateAttention
from agents.core.structure import require_like

Batch = dict[str, Tensor]
Defect = Literal[
    "shared-target", "key-gradient", "rare-contrast", "lagged-action", "blind-target", "dead-agents"
]


@dataclass
class ACORMConfig(AgentConfig):
    """Settings of ACORM and of the value-decomposition methods without roles."""

    env: str = "combat/2s3z"
    """Environment id, see `python train.py list`; one with several agents and discrete actions."""
    num_envs: int = 8
    """Environments stepped together, N."""
    total_timesteps: int = 2_000_000
    """Environment steps, summed over the environments."""
    horizon: int = 25
    """Steps of every environment between two rounds of updates."""
    updates: int = 4
    """Gradient steps per round; the published code takes one per episode."""
    capacity: int = 300_000
    """Environment steps that are remembered, summed over the environments."""
    precision: Literal["float16", "float32"] = "float16"
    """Of remembered observations and states; the first holds values up to 65504."""
    batch_size: int = 32
    """Episodes per gradient step, B; learning begins when so many have ended."""
    roles: bool = True
    """Whether agents have roles; without, the utilities see observation and last action only."""
    joint_embedding: bool = False
    """The paper's Q(e, z), in place of the published code's Q(o, a, z) with a memory of its own."""
    embedding_size: int = 128
    """E."""
    role_size: int = 64
    """Z."""
    role_norm: bool = False
    """A layer norm before the role's sigmoid."""
    agent_id: bool = False
    """Whether the utility reads which agent it is, as is usual for QMIX."""
    hidden: int = 64
    """Width of the utility's recurrent network."""
    mixer: Literal["qmix", "vdn", "iql"] = "qmix"
    """How utilities become the team's: monotonic mixing, their sum, or not at all."""
    mixer_embedding: int = 32
    """Width of the mixing network."""
    hyper_hidden: int = 64
    """Width of the networks that set the mixer's weights."""
    attention: Literal["wide", "small", "none"] = "wide"
    """The mixer's condition: the state's GRU has A times 64 features, or 64 with A learnt queries;
    or the state alone."""
    mixer_reads: Literal["state", "history"] = "state"
    """Beside the attention: the encoded state (published code), or its history τ (paper)."""
    contrastive_interval: int = 100
    """Gradient steps between two contrastive ones; 0 never takes any."""
    contrastive_lr: float = 8e-4
    """Adam's step size for the contrastive loss."""
    contrastive_embedding: bool = False
    """Whether the contrastive loss trains the embedding, too. Off as in the published code, whose
    contrastive step computes the embedding without gradients and trains the role encoder and W
    only; the paper's loss, z = f(e), would reach it. TD and pre-training shape it either way."""
    clusters: int = 3
    """K, at most; there are never more than agents that are alive."""
    cluster_across: Across = "step"
    """Agents that are clustered together: of one step of one episode, or of the batch at a time."""
    key_rate: float = 0.005
    """Rate at which the key encoder follows, per contrastive step."""
    pretrain_embedding: int = 120
    """First gradient steps, which train the embedding to predict the next observation."""
    pretrain_lr: float = 1e-3
    """Adam's step size for these."""
    pretrain_roles: int = 100
    """Gradient steps after these that are contrastive only."""
    lr: float = 6e-4
    """Adam's step size for the TD loss."""
    lr_decay: float = 0.98
    """Factor of `lr` every 500 gradient steps."""
    gamma: float = 0.99
    """Discount γ."""
    reward_scale: float = 1.0
    """Factor of the rewards that are learnt from; JaxMARL takes 10 for QMIX on SMAX."""
    td_lambda: float = 0.0
    """λ of the targets; 0 is the paper's one-step target."""
    target_rate: float = 0.005
    """Rate at which the targets follow, 1 copies."""
    target_interval: int = 1
    """Gradient steps between two moves of the targets."""
    max_grad_norm: float = 10.0
    """Gradient clipping, of utilities with mixer and of roles."""
    epsilon: list[float] = field(default_factory=lambda: [1.0, 0.02])
    """Probability of a random action, at first and at last."""
    epsilon_steps: int = 80_000
    """Environment steps over which it falls."""
    per_agent_epsilon: bool = False
    """Each agent explores on its own; otherwise the whole team does, or nobody."""
    defects: list[Defect] = field(default_factory=list)
    """Mistakes of the published code to put back. `shared-target`: the target mixer reads the state
    through the networks that are trained; `key-gradient`: keys get the gradient; `rare-contrast`:
    no contrastive step unless the last episode of the batch is its longest; `lagged-action`:
    learning sees the action before the last; `blind-target`: the target's memory begins at t = 1;
    `dead-agents`: the dead are clustered, too."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        sizes = ("horizon", "updates", "capacity", "batch_size", "embedding_size", "role_size")
        sizes += ("hidden", "mixer_embedding", "hyper_hidden", "clusters", "target_interval")
        for name in (*sizes, "epsilon_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("contrastive_interval", "pretrain_embedding", "pretrain_roles"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("lr", "contrastive_lr", "pretrain_lr", "max_grad_norm", "reward_scale"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("key_rate", "target_rate", "lr_decay"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "in (0, 1]")
        require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        require(0 <= self.td_lambda <= 1, "td_lambda", self.td_lambda, "in [0, 1]")
        falling = len(self.epsilon) == 2 and 1 >= self.epsilon[0] >= self.epsilon[1] >= 0
        require(falling, "epsilon", self.epsilon, "two falling probabilities")
        alone = self.roles or (self.attention == "none" and not self.joint_embedding)
        require(alone, "roles", self.roles, "attention=none and no joint_embedding without roles")
        mixing = self.mixer == "qmix" or self.attention == "none"
        require(mixing, "attention", self.attention, "none unless mixer=qmix")


class Progress:
    """Gradient steps taken; a part of an agent."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, int]:
        """The count."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue counting.

        Raises:
            ValueError: the state is no count.
        """
        require_like(state, {"steps": 0}, "progress")
        if state["steps"] < 0:
            raise ValueError(f"progress: expected a count, got {state['steps']}"[:200])
        self.steps = state["steps"]


class ACORM(Agent):
    """Roles by contrast, values by attention; see the module's docstring."""

    name = "acorm"
    Config = ACORMConfig
    reads = ("avail_actions",)

    def build(self) -> None:
        """Roles, utilities, mixer, their targets, optimisers, memory."""
        config = self.config
        self.agents, self.features, self.actions = team_sizes(self.env, self.name)
        longest = self.env.max_episode_steps
        if longest < sys.maxsize:  # else nobody knows
            # One more of each: a full memory has lost some of its oldest episodes' steps.
            each = math.ceil(config.batch_size / self.num_envs) + 1
            least = longest * each * self.num_envs
            why = f"batch_size={config.batch_size} episodes of {longest} steps"
            expected = f"at least {least}, {why} from {self.num_envs} environments"
            require(config.capacity >= least, "capacity", config.capacity, expected)
        context = self.env.context()
        flat = self.agents * self.features
        self.states = context["state"].shape[1] if "state" in context else flat
        seen = self.features + self.actions
        networks: dict[str, nn.Module] = {}
        utility_inputs, condition = seen + self.agents * config.agent_id, self.states
        if config.roles:
            self.roles = Roles(
                seen, config.embedding_size, config.role_size, self.features + self.agents,
                norm=config.role_norm,
            ).to(self.device)  # fmt: skip
            utility_inputs += config.role_size
            self.parts["roles"] = self.roles
        if config.attention != "none":
            networks["attention"] = attention = StateAttention(
                self.states, self.agents, config.role_size, config.attention == "small",
                config.mixer_reads,
            )  # fmt: skip
            condition = attention.size
        if config.joint_embedding:
            inputs = config.embedding_size + config.role_size + self.agents * config.agent_id
            networks["utility"] = nn.Sequential(
                nn.Linear(inputs, config.hidden), nn.ReLU(), nn.Linear(config.hidden, self.actions)
            )
        else:
            networks["utility"] = Utility(utility_inputs, config.hidden, self.actions)
        mixers = {"vdn": Sum, "iql": Independent}
        networks["mixer"] = (
            QMix(self.agents, condition, config.mixer_embedding, config.hyper_hidden)
            if config.mixer == "qmix"
            else mixers[config.mixer]()
        )
        self.networks = nn.ModuleDict(networks).to(self.device)
        self.targets = copy.deepcopy(self.networks).requires_grad_(False)
        self.progress, self.memory = Progress(), self._memory()
        half = ("obs", "state") if config.precision == "float16" else ()
        self.largest = {name: torch.zeros((), device=self.device) for name in half}
        self._optimizers()
        self.parts |= {
            "networks": self.networks, "targets": self.targets, "progress": self.progress,
            "memory": self.memory, **{f"{k}_optimizer": v for k, v in self.optimizers.items()},
        }  # fmt: skip
        self.rollout_steps = config.horizon

    def _memory(self) -> Replay:
        agents, half = self.agents, getattr(torch, self.config.precision)
        index = torch.uint8 if self.actions <= 256 else torch.int16
        fields = {
            "obs": ((agents, self.features), half), "state": ((self.states,), half),
            "action": ((agents,), index), "available": ((agents, self.actions), torch.uint8),
            "alive": ((agents,), torch.uint8), "ended": ((), torch.uint8),
            "reward": ((), torch.float32),
        }  # fmt: skip
        return Replay(fields, max(1, self.config.capacity // self.num_envs), self.num_envs,
                      self.device)  # fmt: skip

    def _optimizers(self) -> None:
        config = self.config

        def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
            return torch.optim.Adam(list(parameters), lr, fused=True)

        self.optimizers = {"value": adam(self.networks.parameters(), config.lr)}
        if not config.roles:
            return
        roles = self.roles
        roles.key_encoder.requires_grad_("key-gradient" in config.defects)
        embedding = [*roles.body.parameters(), *roles.output.parameters()]
        encoder = list(roles.encoder.parameters())
        contrast = [*encoder, *roles.contrast.parameters()]
        contrast += embedding if config.contrastive_embedding else []
        contrast += [p for p in roles.key_encoder.parameters() if p.requires_grad]
        self.optimizers |= {
            "roles": adam([*embedding, *encoder], config.lr),
            "contrastive": adam(contrast, config.contrastive_lr),
            "pretraining": adam([*embedding, *roles.decoder.parameters()], config.pretrain_lr),
        }

    # ---- acting

    def initial_state(self, num_envs: int) -> State:
        """Last actions int64 [num_envs, A] (-1: none yet), memories [num_envs, A, ·]."""
        shape, config, device = (num_envs, self.agents), self.config, self.device
        state = {"last": torch.full(shape, -1, device=device)}
        if config.roles:
            state["embedding"] = torch.zeros(*shape, config.embedding_size, device=device)
        if not config.joint_embedding:
            state["hidden"] = torch.zeros(*shape, config.hidden, device=device)
        return state

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Greedy or ε-greedy actions among those available, int64 [N, A]."""
        encoded = functional.one_hot(state["last"] + 1, self.actions + 1)[..., 1:]
        seen = torch.cat([obs, encoded.to(obs.dtype)], -1)[None]
        role, embedding, carried = None, None, {}
        if self.config.roles:
            embedding, carried["embedding"] = self.roles.embed(seen, state["embedding"])
            role = self.roles.encoder(embedding)
        q, hidden = self._utility(self.networks, seen, embedding, role, state.get("hidden"))
        if hidden is not None:
            carried["hidden"] = hidden
        available = state.get("avail_actions")
        available = torch.ones_like(q[0], dtype=torch.bool) if available is None else available
        action = greedy(q[0], available)
        if not deterministic:
            action = self._explore(action, available)
        return action, carried | {"last": action}

    def _explore(self, action: Tensor, available: Tensor) -> Tensor:
        """Random available actions with probability ε, for the whole team or agent by agent."""
        config, (first, last) = self.config, self.config.epsilon
        share = min(1.0, self.num_timesteps / config.epsilon_steps)
        draws = torch.rand(available.shape, generator=self.generator, device=self.device)
        shape = action.shape if config.per_agent_epsilon else (len(action), 1)
        coin = torch.rand(shape, generator=self.generator, device=self.device)
        random = draws.masked_fill(~available, -1).argmax(-1)
        return torch.where(coin < first + share * (last - first), random, action)

    def _utility(
        self,
        networks: nn.ModuleDict,
        seen: Tensor,
        embedding: Tensor | None,
        role: Tensor | None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Q_i [T, B, A, U] and its memory [B, A, H], if it has one."""
        inputs = [embedding if self.config.joint_embedding else seen]
        inputs += [role] if role is not None else []
        if self.config.agent_id:
            identity = torch.eye(self.agents, device=self.device)
            inputs.append(identity.expand(*seen.shape[:-1], -1))
        x = torch.cat(inputs, -1)  # type: ignore[arg-type]
        if self.config.joint_embedding:
            return networks["utility"](x), None
        return networks["utility"](x, hidden)

    def store(self, step: Step) -> None:
        """See `Agent`."""
        context, obs = step.context, step.obs
        everyone = torch.ones(obs.shape[:2], dtype=torch.bool, device=self.device)
        everything = everyone[..., None].expand(-1, -1, self.actions)
        state = context.get("state", obs.flatten(1))
        self.guard.watch("state", state)
        for name, largest in self.largest.items():
            value = {"obs": obs, "state": state}[name].float()
            self.largest[name] = torch.maximum(largest, torch.linalg.vector_norm(value, math.inf))
        self.memory.add(
            obs=obs,
            state=state,
            action=step.action,
            available=context.get("avail_actions", everything),
            alive=context.get("alive", everyone),
            ended=step.terminated + 2 * step.truncated,
            reward=step.reward,
        )

    def cut_episodes(self) -> None:
        """See `Agent`."""
        self.memory.end("ended", 2)

    # ---- learning

    def update(self) -> dict[str, Tensor]:
        """Gradient steps on whole episodes, as soon as there are enough of them."""
        self._require_room()
        if not everywhere(self.memory.count_episodes("ended") >= self.config.batch_size):
            return {}
        values: dict[str, list[Tensor]] = {}
        for _ in range(self.config.updates):
            for name, value in self._learn(self._sample()).items():
                values.setdefault(name, []).append(value)
        return {name: torch.stack(value).mean() for name, value in values.items()}

    def _require_room(self) -> None:
        """Raise if the memory's precision has made an infinity of what it was given; waits."""
        most = torch.finfo(getattr(torch, self.config.precision)).max
        for name, value in self.largest.items():
            if most < (largest := value.item()) < math.inf:  # infinities have been watched
                raise ConfigError(
                    f"precision={self.config.precision}: {name!r} reaches {largest:g}, expected at "
                    f"most {most:g}; take float32, or scale it"
                )

    def _sample(self) -> Batch:
        """Episodes [T, B, ...]; `learnt` marks their steps, but for a last one that was cut off."""
        batch, mask = self.memory.sample_episodes(self.config.batch_size, self.generator, "ended")
        batch = {k: v.transpose(0, 1).contiguous() for k, v in (batch | {"mask": mask}).items()}
        mask = batch["mask"]
        action = batch["action"].long()
        lag = 2 if "lagged-action" in self.config.defects else 1
        obs, cut = batch["obs"].float(), batch["ended"] == 2
        return {
            "obs": obs, "state": batch["state"].float(), "reward": batch["reward"],
            "seen": torch.cat([obs, previous_actions(action, self.actions, lag)], -1),
            "action": action, "available": batch["available"].bool(), "cut": cut,
            "alive": batch["alive"].bool() & mask[..., None], "mask": mask,
            "going": (batch["ended"] != 1).float(), "learnt": mask & ~cut,
        }  # fmt: skip

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step: of the embedding at first, of roles then, of values ever after."""
        config, step = self.config, self.progress.steps
        self.progress.steps += 1
        if config.roles:
            if step < config.pretrain_embedding:
                return self._pretrain(batch)
            step -= config.pretrain_embedding
            contrastive = config.pretrain_roles if config.contrastive_interval else 0
            if step < contrastive:
                return self._contrast(batch)
            step -= contrastive
        loss, metrics = self._td_loss(batch)
        self._descend(loss, ("value", "roles"), config.lr * config.lr_decay ** (step // 500))
        if (step + 1) % config.target_interval == 0:
            self._move_targets()
        interval = config.contrastive_interval
        if config.roles and interval and (step + 1) % interval == 0:
            metrics |= self._contrast(batch)
        return metrics

    def _descend(self, loss: Tensor, names: tuple[str, ...], lr: float | None = None) -> None:
        optimizers = [self.optimizers[name] for name in names if name in self.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
                group["lr"] = group["lr"] if lr is None else lr
            optimizer.step()

    def _td_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """[r + γ Q_tot⁻(s', argmax Q_i) - Q_tot(s, a)]², double Q-learning; 0-d, and metrics."""
        config, seen, role, embedding = self.config, batch["seen"], None, None
        if config.roles:
            embedding, _ = self.roles.embed(seen)
            role = self.roles.encoder(embedding)
        q, _ = self._utility(self.networks, seen, embedding, role)
        chosen = q.gather(-1, batch["action"][..., None])[..., 0]
        total = self._mix(self.networks, chosen, batch["state"], role)
        with torch.no_grad():
            target = self._target(batch, q, embedding, role)
        weight = batch["learnt"][..., None].float()
        assert total.shape == target.shape, (total.shape, target.shape)
        count = weight.expand_as(total).sum().clamp_min(1)
        loss = ((total - target).square() * weight).sum() / count
        mean = (total.detach() * weight).sum() / count
        return loss, {"value/loss": loss.detach(), "value/mean": mean}

    def _target(
        self, batch: Batch, q: Tensor, embedding: Tensor | None, role: Tensor | None
    ) -> Tensor:
        """What Q_tot should be, [T, B, 1] (or [T, B, A] of iql)."""
        config, blind = self.config, "blind-target" in self.config.defects
        parts = [None if v is None else v[int(blind) :] for v in (batch["seen"], embedding, role)]
        value, _ = self._utility(self.targets, *parts)  # type: ignore[arg-type]
        value = torch.cat([torch.zeros_like(value[: int(blind)]), value])
        best = greedy(q, batch["available"])[..., None]
        value = self._mix(self.targets, value.gather(-1, best)[..., 0], batch["state"], role)
        following = torch.cat([value[1:], torch.zeros_like(value[:1])])  # of t + 1
        reward = config.reward_scale * batch["reward"][..., None]
        return lambda_returns(
            reward, following, batch["going"], batch["cut"], config.gamma, config.td_lambda
        )

    def _mix(
        self, networks: nn.ModuleDict, q: Tensor, state: Tensor, role: Tensor | None
    ) -> Tensor:
        """Q_tot of the chosen Q_i [T, B, A]."""
        condition = networks["attention"](state, role) if "attention" in networks else state
        return networks["mixer"](q, condition)

    @torch.no_grad()
    def _move_targets(self) -> None:
        pairs = zip(self.targets.parameters(), self.networks.parameters(), strict=True)
        for target, value in pairs:
            target.lerp_(value, self.config.target_rate)
        if "shared-target" in self.config.defects and "attention" in self.networks:
            for name in ("state", "history"):
                online = getattr(self.networks["attention"], name)
                getattr(self.targets["attention"], name).load_state_dict(online.state_dict())

    def _contrast(self, batch: Batch) -> dict[str, Tensor]:
        """One contrastive step: roles of a cluster together, those of others apart."""
        config = self.config
        if "rare-contrast" in config.defects and not bool(batch["mask"][-1, -1]):
            return {}
        with torch.set_grad_enabled(config.contrastive_embedding):
            embedding, _ = self.roles.embed(batch["seen"])
        counts = batch["alive"]
        if "dead-agents" in config.defects:
            counts = batch["mask"][..., None].expand_as(counts)
        loss = self.roles.contrastive_loss(
            embedding, counts, config.clusters, self.generator, config.cluster_across,
            "key-gradient" not in config.defects,
        )  # fmt: skip
        self._descend(loss, ("contrastive",))
        self.roles.follow(config.key_rate)
        return {"roles/information": -loss.detach()}

    def _pretrain(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the embedding towards predicting the next observation, and who it is."""
        embedding, _ = self.roles.embed(batch["seen"])
        following = batch["obs"].roll(-1, 0)
        known = torch.cat([batch["mask"][1:], torch.zeros_like(batch["mask"][:1])])
        loss = self.roles.decoding_loss(embedding, following, known)
        self._descend(loss, ("pretraining",))
        return {"embedding/loss": loss.detach()}

    # ---- evaluation

    def episode_metrics(self, episodes: Episodes) -> dict[str, float]:
        """`win_rate`, where there is something to win."""
        return win_rate(episodes)

    def headline(self, row: dict[str, float]) -> dict[str, float]:
        """See `Agent`."""
        names = ("return", "value/loss", "roles/information", "eval/win_rate")
        return {name.split("/")[-1]: row[name] for name in names if name in row}
