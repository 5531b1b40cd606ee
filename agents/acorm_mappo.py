"""ACORM on MAPPO (Hu et al. 2024, arXiv 2312.04819): roles for the actor, attention for the critic.

An actor π(a | e, z) reads its embedding and its role, shaped by the contrastive loss as in `acorm`.
The critic of agent i reads the memory of its observations and what the history of the state attends
to among the roles. PPO on sequences with clipped ratios (Yu et al. 2022).

As published, with these differences. The published pre-training, 150 updates of 32 episodes, does
not count in the curves; here it does (`pretrain`). There keys get gradients and the dead are
clustered; here only if `defects` says so. That contrastive steps are skipped there unless the last
episode of a batch is its longest has no counterpart: rollouts are of one length, and the critic's
memory at their start comes from the last update, whose parameters were one step older. Ours are,
besides, a first layer of E features and a last one after its memory in the embedding, as on QMIX;
an actor that begins nearly uniform; Huber's loss of values, of the dead as well, who share the
team's return; gradients clipped for policy and critic
apart; a step size that does not decay; the start of W; and a contrastive loss that is not divided
by 10, which Adam would undo.
Without roles and attention it is recurrent MAPPO: `python train.py recurrent-mappo`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.base import Agent, AgentConfig, State, Step
from agents.core.config import require
from agents.core.decomposition import Recurrent, team_sizes, win_rate
from agents.core.evaluate import Episodes
from agents.core.replay import Replay
from agents.core.returns import gae
from agents.core.roles import Across, Roles, StateAttention
from agents.core.structure import require_like

Batch = dict[str, Tensor]
Defect = Literal["key-gradient", "dead-agents"]


@dataclass
class ACORMMAPPOConfig(AgentConfig):
    """Settings of ACORM on MAPPO."""

    env: str = "combat/2s3z"
    """Environment id, see `python train.py list`; one with several agents and discrete actions."""
    num_envs: int = 32
    """Environments stepped together, N."""
    total_timesteps: int = 2_000_000
    """Environment steps, summed over the environments."""
    horizon: int = 60
    """Steps of every environment between two updates, T."""
    roles: bool = True
    """Whether actors read a role."""
    attention: bool = True
    """Whether critics read the history of the state and its attention, or the state alone."""
    small_attention: bool = False
    """The history has 64 features and A learnt queries, in place of A times 64."""
    embedding_size: int = 64
    """E."""
    role_size: int = 32
    """Z."""
    hidden: int = 96
    """Width of the actor's hidden layer."""
    critic_hidden: int = 128
    """Width of the critic's."""
    contrastive_interval: int = 16
    """Updates between two contrastive steps; 0 never takes any."""
    contrastive_lr: float = 5e-4
    """Adam's step size for the contrastive loss."""
    contrastive_embedding: bool = False
    """Whether the contrastive loss trains the embedding, too; see `acorm`."""
    clusters: int = 3
    """K, at most; there are never more than agents that are alive."""
    cluster_across: Across = "step"
    """Agents that are clustered together: of one step of one episode, or of the batch at a time."""
    key_rate: float = 0.005
    """Rate at which the key encoder follows, per update of the policy and per contrastive step."""
    pretrain: int = 150
    """First updates, which only take a step of the embedding, to predict the next observation, and
    a contrastive one; without roles there are none."""
    pretrain_lr: float = 1e-3
    """Adam's step size for the embedding in these."""
    lr: float = 5e-4
    """Adam's step size."""
    gamma: float = 0.99
    """Discount γ."""
    gae_lambda: float = 0.95
    """λ of the advantage estimate."""
    clip: float = 0.2
    """Clipping range of the ratio."""
    epochs: int = 5
    """Passes over the experience per update."""
    minibatches: int = 1
    """Gradient steps per pass; each takes whole sequences of some environments."""
    entropy: float = 0.015
    """Weight of the policy's entropy."""
    max_grad_norm: float = 10.0
    """Gradient clipping."""
    defects: list[Defect] = field(default_factory=list)
    """Mistakes of the published code to put back. `key-gradient`: keys get the gradient;
    `dead-agents`: the dead are clustered, too."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        sizes = ("horizon", "embedding_size", "role_size", "hidden", "critic_hidden", "clusters")
        for name in (*sizes, "epochs", "minibatches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lr", "contrastive_lr", "pretrain_lr", "max_grad_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("entropy", "contrastive_interval", "pretrain"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]")
        require(0 < self.clip < 1, "clip", self.clip, "in (0, 1)")
        require(0 < self.key_rate <= 1, "key_rate", self.key_rate, "in (0, 1]")
        fits = self.minibatches <= self.num_envs
        require(fits, "minibatches", self.minibatches, f"at most num_envs={self.num_envs}")
        require(
            self.roles or not self.attention, "attention", self.attention, "False without roles"
        )


class Critic(nn.Module):
    """V_i from the memory of o_i, the history of the state, and its attention to the roles.

    Args:
        features: D.
        states: S.
        agents: A.
        config: settings.
    """

    def __init__(self, features: int, states: int, agents: int, config: ACORMMAPPOConfig) -> None:
        super().__init__()
        self.body, size, self.attention = Recurrent(features, 64), states, None
        if config.attention:
            self.attention = StateAttention(
                states, agents, config.role_size, config.small_attention, "history"
            )
            size = self.attention.size
        self.head = nn.Sequential(
            nn.Linear(64 + size, config.critic_hidden),
            nn.ReLU(),
            nn.Linear(config.critic_hidden, 1),
        )

    def remember(
        self, obs: Tensor, state: Tensor, before: Batch, starts: Tensor | None = None
    ) -> Batch:
        """Memories after every step: `critic` [T, B, A, 64], `history` [T, B, H] with attention.

        Args:
            obs: [T, B, A, D].
            state: [T, B, S].
            before: memories before the first, [B, ...].
            starts: bool [T, B], steps that begin an episode.
        """
        memory = {"critic": self.body(obs, before["critic"], starts)}
        if self.attention is not None:
            memory["history"] = self.attention.remember(state, before["history"], starts)
        return memory

    def forward(self, memory: Batch, state: Tensor, role: Tensor | None) -> Tensor:
        """V_i [T, B, A]; roles get no gradient from here."""
        condition = state
        if self.attention is not None and role is not None:
            history = memory["history"]
            condition = self.attention.condition(history, history, role.detach())
        condition = condition[..., None, :].expand(*memory["critic"].shape[:-1], -1)
        return self.head(torch.cat([memory["critic"], condition], -1))[..., 0]


class Memories:
    """The critic's memories at the end of the last rollout; a part of an agent."""

    def __init__(self, values: Batch) -> None:
        self.values = values

    def state_dict(self) -> Batch:
        """Name -> [N, ...]."""
        return dict(self.values)

    def load_state_dict(self, state: Batch) -> None:
        """Continue from there.

        Raises:
            ValueError: of another number of environments, or other networks.
        """
        # Named as a replay's, which `Agent.load_state_dict` lets go with its environments.
        require_like(state, self.values, "replay's memory")
        self.values = {name: state[name].to(v.device) for name, v in self.values.items()}


class ACORMMAPPO(Agent):
    """Roles by contrast, on-policy; see the module's docstring."""

    name = "acorm-mappo"
    Config = ACORMMAPPOConfig
    reads = ("avail_actions",)

    def build(self) -> None:
        """Roles, actor, critic, optimisers, memory."""
        config, env = self.config, self.env
        self.agents, self.features, self.actions = team_sizes(env, self.name)
        context, flat = env.context(), self.agents * self.features
        self.states = context["state"].shape[1] if "state" in context else flat
        self.roles = Roles(
            self.features, config.embedding_size, config.role_size, self.features + self.agents,
            bounded=False,
        ).to(self.device)  # fmt: skip
        self.roles.key_encoder.requires_grad_("key-gradient" in config.defects)
        inputs = config.embedding_size + config.role_size * config.roles
        self.actor = nn.Sequential(
            nn.Linear(inputs, config.hidden), nn.ReLU(), nn.Linear(config.hidden, self.actions)
        ).to(self.device)
        nn.init.orthogonal_(self.actor[2].weight, 0.01)  # type: ignore[arg-type]
        self.critic = Critic(self.features, self.states, self.agents, config).to(self.device)
        roles = self.roles
        embedding = [*roles.body.parameters(), *roles.output.parameters()]
        encoder = list(roles.encoder.parameters()) if config.roles else []
        policy = [*embedding, *encoder, *self.actor.parameters()]
        self.groups = [policy, list(self.critic.parameters())]
        self.optimizer = torch.optim.Adam(
            [p for group in self.groups for p in group], config.lr, eps=1e-5, fused=True
        )
        contrast = [*encoder, *roles.contrast.parameters()]
        contrast += embedding if config.contrastive_embedding else []
        contrast += [p for p in roles.key_encoder.parameters() if p.requires_grad]
        self.contrastive = torch.optim.Adam(contrast, config.contrastive_lr, fused=True)
        decoding = [*embedding, *roles.decoder.parameters()]
        self.pretraining = torch.optim.Adam(decoding, config.pretrain_lr, fused=True)
        self.before = Memories(self._no_memories())
        self.parts |= {
            "roles": roles, "actor": self.actor, "critic": self.critic, "before": self.before,
            "optimizer": self.optimizer, "contrastive_optimizer": self.contrastive,
            "pretraining_optimizer": self.pretraining,
        }  # fmt: skip
        self.rollout_steps, self.memory = config.horizon, self._memory()

    def _no_memories(self) -> Batch:
        shape, device = (self.num_envs, self.agents, 64), self.device
        values = {"critic": torch.zeros(shape, device=device)}
        if self.critic.attention is not None:
            width = self.critic.attention.history.hidden_size
            values["history"] = torch.zeros(self.num_envs, width, device=device)
        return values

    def _memory(self) -> Replay:
        agents = self.agents
        shapes: dict[str, tuple[int, ...]] = {
            "obs": (agents, self.features), "next_obs": (agents, self.features),
            "state": (self.states,), "next_state": (self.states,), "reward": (),
            "embedding": (agents, self.config.embedding_size),
        }  # fmt: skip
        fields = {name: (shape, torch.float32) for name, shape in shapes.items()}
        fields |= {
            "available": ((agents, self.actions), torch.uint8), "alive": ((agents,), torch.uint8),
            "starts": ((), torch.uint8), "ended": ((), torch.uint8),
            "action": ((agents,), torch.int64),
        }  # fmt: skip
        return Replay(fields, self.config.horizon, self.num_envs, self.device)

    # ---- acting

    def initial_state(self, num_envs: int) -> State:
        """Memory of the embedding [num_envs, A, E]; `fresh` marks the first step of an episode."""
        shape = (num_envs, self.agents, self.config.embedding_size)
        fresh = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        return {"embedding": torch.zeros(shape, device=self.device), "fresh": fresh}

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Sampled or most likely actions among those available, int64 [N, A]."""
        embedding, memory = self.roles.embed(obs[None], state["embedding"])
        logits = self._logits(embedding, self._role(embedding), state.get("avail_actions"))[0]
        if not deterministic:
            uniform = torch.rand(logits.shape, generator=self.generator, device=self.device)
            logits = logits - torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))  # Gumbel's
        return logits.argmax(-1), {
            "embedding": memory,
            "fresh": torch.zeros_like(state["fresh"]),
        }

    def _role(self, embedding: Tensor) -> Tensor | None:
        return self.roles.encoder(embedding) if self.config.roles else None

    def _logits(self, embedding: Tensor, role: Tensor | None, available: Tensor | None) -> Tensor:
        """Log-probabilities up to a constant, [..., U]; what is not available has none."""
        x = embedding if role is None else torch.cat([embedding, role], -1)
        logits = self.actor(x)
        return logits if available is None else logits.masked_fill(~available, -1e9)

    def store(self, step: Step) -> None:
        """See `Agent`."""
        info, context, obs = step.info, step.context, step.obs
        everyone = torch.ones(obs.shape[:2], dtype=torch.bool, device=self.device)
        everything = everyone[..., None].expand(-1, -1, self.actions)
        final = info["final_obs"]
        self.memory.add(
            obs=obs, next_obs=final, state=context.get("state", obs.flatten(1)),
            next_state=info.get("final_info", {}).get("state", final.flatten(1)),
            reward=step.reward, embedding=step.state["embedding"], starts=step.state["fresh"],
            available=context.get("avail_actions", everything), action=step.action,
            alive=context.get("alive", everyone), ended=step.terminated + 2 * step.truncated,
        )  # fmt: skip

    # ---- learning

    def update(self) -> dict[str, Tensor]:
        """Of the embedding and the roles at first, of everything ever after."""
        config, batch = self.config, self.memory.steps()
        for name in ("available", "alive", "starts"):
            batch[name] = batch[name].bool()
        before = {"embedding": batch["embedding"][0], **self.before.values}
        batch |= self._advantages(batch, before)
        pretraining = config.roles and self.num_updates < config.pretrain
        metrics = self._pretrain(batch, before) if pretraining else self._improve(batch, before)
        interval, turn = config.contrastive_interval, self.num_updates + 1
        if config.roles and interval and (pretraining or turn % interval == 0):
            metrics |= self._contrast(batch, before)
        self.memory.clear()
        return metrics

    def _improve(self, batch: Batch, before: Batch) -> dict[str, Tensor]:
        """Epochs of clipped policy gradients on sequences."""
        config, sums = self.config, {}
        for _ in range(config.epochs):
            order = torch.randperm(self.num_envs, generator=self.generator, device=self.device)
            for rows in order.tensor_split(config.minibatches):
                losses = self._losses(
                    {name: value[:, rows] for name, value in batch.items()},
                    {name: value[rows] for name, value in before.items()},
                )
                loss = losses["policy/loss"] + losses["critic/loss"]
                self._descend(loss - config.entropy * losses["policy/entropy"], self.optimizer)
                sums = {k: sums.get(k, 0) + v.detach() for k, v in losses.items()}
        if config.roles:
            self.roles.follow(config.key_rate)
        steps = config.epochs * config.minibatches
        return {name: value / steps for name, value in sums.items()}

    def _descend(self, loss: Tensor, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        loss.backward()
        groups = (
            self.groups if optimizer is self.optimizer else [optimizer.param_groups[0]["params"]]
        )
        for group in groups:
            nn.utils.clip_grad_norm_(group, self.config.max_grad_norm)
        optimizer.step()

    @torch.no_grad()
    def _advantages(self, batch: Batch, before: Batch) -> Batch:
        """Standardised advantages, returns, log-probabilities so far, [T, N, A] each."""
        config, starts = self.config, batch["starts"]
        memory = self.critic.remember(batch["obs"], batch["state"], before, starts)
        hidden = self.roles.body(batch["obs"], before["embedding"], starts)
        embedding = self.roles.output(hidden)
        role = self._role(embedding)
        value = self.critic(memory, batch["state"], role)
        following = self._next_value(batch, memory, hidden)
        reward = batch["reward"][..., None].expand_as(value)
        advantage = gae(
            reward, value, following, (batch["ended"] == 1).float(), (batch["ended"] > 0).float(),
            config.gamma, config.gae_lambda,
        )  # fmt: skip
        returns, alive = advantage + value, batch["alive"]
        living = advantage[alive]
        advantage = (advantage - living.mean()) / (living.std(correction=0) + 1e-8)
        old = self._logits(embedding, role, batch["available"]).log_softmax(-1)
        old = old.gather(-1, batch["action"][..., None])[..., 0]
        going = (batch["ended"][-1] == 0).float()
        self.before.values = {
            name: v[-1] * going.view(-1, *[1] * (v.dim() - 2)) for name, v in memory.items()
        }
        return {"advantage": advantage, "returns": returns, "old": old}

    def _next_value(self, batch: Batch, memory: Batch, hidden: Tensor) -> Tensor:
        """V_i of every step's true successor, [T, N, A]: one step on from each memory."""
        flat = {name: v.flatten(0, 1) for name, v in memory.items()}
        obs, state = (batch[name].flatten(0, 1)[None] for name in ("next_obs", "next_state"))
        after = self.critic.remember(obs, state, flat)
        role = self._role(self.roles.embed(obs, hidden.flatten(0, 1))[0])
        return self.critic(after, state, role)[0].view(hidden.shape[:-1])

    def _losses(self, batch: Batch, before: Batch) -> dict[str, Tensor]:
        """Clipped policy loss (Schulman et al. 2017, eq. 7), value loss, entropy of the living."""
        config, alive = self.config, batch["alive"]
        embedding = self.roles.output(
            self.roles.body(batch["obs"], before["embedding"], batch["starts"])
        )
        role = self._role(embedding)
        log_prob = self._logits(embedding, role, batch["available"]).log_softmax(-1)
        entropy = -(log_prob.exp() * log_prob).sum(-1)
        chosen = log_prob.gather(-1, batch["action"][..., None])[..., 0]
        memory = self.critic.remember(batch["obs"], batch["state"], before, batch["starts"])
        value = self.critic(memory, batch["state"], role)
        assert chosen.shape == value.shape == batch["old"].shape, (chosen.shape, value.shape)
        log_ratio, advantage = chosen - batch["old"], batch["advantage"]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        count = alive.sum().clamp_min(1)

        def mean(x: Tensor) -> Tensor:
            return (x * alive).sum() / count

        return {
            "policy/loss": -mean(torch.minimum(ratio * advantage, clipped * advantage)),
            # Of the dead as well: advantages before a death bootstrap from their values.
            "critic/loss": functional.huber_loss(value, batch["returns"]),
            "policy/entropy": mean(entropy),
            "policy/kl": mean(ratio - 1 - log_ratio),
        }

    def _contrast(self, batch: Batch, before: Batch) -> dict[str, Tensor]:
        """One contrastive step: roles of a cluster together, those of others apart."""
        config = self.config
        with torch.set_grad_enabled(config.contrastive_embedding):
            memory = self.roles.body(batch["obs"], before["embedding"], batch["starts"])
            embedding = self.roles.output(memory)
        alive = batch["alive"]
        counts = torch.ones_like(alive) if "dead-agents" in config.defects else alive
        loss = self.roles.contrastive_loss(
            embedding, counts, config.clusters, self.generator, config.cluster_across,
            "key-gradient" not in config.defects,
        )  # fmt: skip
        self._descend(loss, self.contrastive)
        self.roles.follow(config.key_rate)
        return {"roles/information": -loss.detach()}

    def _pretrain(self, batch: Batch, before: Batch) -> dict[str, Tensor]:
        """One step of the embedding towards predicting the next observation, and who it is."""
        memory = self.roles.body(batch["obs"], before["embedding"], batch["starts"])
        embedding, going = self.roles.output(memory), batch["ended"] == 0
        loss = self.roles.decoding_loss(embedding, batch["next_obs"], going)
        self._descend(loss, self.pretraining)
        return {"embedding/loss": loss.detach()}

    # ---- evaluation

    def episode_metrics(self, episodes: Episodes) -> dict[str, float]:
        """`win_rate`, where there is something to win."""
        return win_rate(episodes)
