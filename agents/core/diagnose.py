"""What datasets of tasks and codes of tasks hold: fitted Q, cards, information, maps.

Shape letters: K tasks, E episodes of a task, N = K·E rows, T steps, C codes.
"""

from __future__ import annotations

import copy
import csv
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

import mi
from agents.core.heads import Critics
from agents.core.offline import OfflineConfig, other_behaviour
from agents.core.plot import save_figure
from envs.data import MissingTierError, TaskData


def fitted_q(
    agent: Any,
    data: TaskData,
    state: dict[str, Tensor],
    steps: int,
    horizon: int,
    seed: int = 0,
    space: gym.Space | None = None,
) -> Tensor:
    """Returns of an agent on each task as its data alone tell, without a simulator, [K].

    Fitted Q evaluation (Paine et al. 2020) with one Q(s, a, t, z) for all tasks, conditioned on
    what the agent carries (its task code), and on the time, so that the value is that of a whole
    episode, not discounted: the mean over all recorded starts. What an action does is taken not to
    depend on the time, so that a transition counts at any time, and recorded episodes may be
    shorter than those that are judged. `state` is held.

    Args:
        agent: whose actions are judged.
        data: transitions of the tasks.
        state: what it plays with, [K·R, ...] each, R of every task, task by task; {} of an agent
            that carries nothing.
        steps: gradient steps.
        horizon: steps after which an episode is over.
        seed: of batches and network.
        space: of actions, where they are discrete.

    Warns:
        UserWarning: what the agent carries changes from step to step (a memory, a clock): it is
            judged as if every step were the first of an episode.
    """
    device = data.states.device
    count = int(space.n) if isinstance(space, gym.spaces.Discrete) else 0
    draw: Any = {
        "generator": torch.Generator(device).manual_seed(seed),
        "device": device,
    }
    rows = next(iter(state.values())).shape[0] // data.num_tasks if state else 1
    size = sum(value[0].numel() for value in state.values())
    seen = data.observations[data.mask].flatten(1).float()
    whole = data.returns[data.lengths > 0].abs().mean() * horizon / data.horizon
    scale = whole.clamp_min(1e-6)  # values are of order 1
    mean, std = seen.mean(0), seen.std(0).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inputs = seen.shape[-1] + size + (count or data.actions.shape[-1]) + 1
        critics = Critics(inputs, [128, 128]).to(device)
    target, optimizer = copy.deepcopy(critics), torch.optim.Adam(critics.parameters(), 1e-3)

    def value(q: Critics, obs: Tensor, action: Tensor, time: Tensor, carried: Any) -> Tensor:
        parts = [(obs.flatten(1).float() - mean) / std, time[:, None] / horizon]
        parts += [v.reshape(len(v), -1).float() for v in carried.values()]
        action = functional.one_hot(action.long(), count).float() if count else action
        return q(torch.cat(parts, -1), action)

    for _ in range(steps):
        task = torch.randint(data.num_tasks, (512,), **draw)
        episodes = (data.lengths > 0).sum(1)[task]
        episode = (torch.rand(512, **draw) * episodes).long()
        step = (torch.rand(512, **draw) * data.lengths[task, episode]).long()
        row = task * rows + torch.randint(rows, (512,), **draw)
        time = torch.randint(horizon, (512,), **draw)
        carried = {name: v[row] for name, v in state.items()}
        batch = data.gather(task, episode, step)
        with torch.no_grad():
            action, _ = agent.act(batch["next_observations"], carried, True)
            later = value(target, batch["next_observations"], action, time + 1.0, carried).mean(0)
            going = (1 - batch["terminations"]) * (time + 1 < horizon)
            goal = batch["rewards"] / scale + going * later
        q = value(critics, batch["observations"], batch["actions"], time.float(), carried)
        loss = (q - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(critics.parameters()), 0.05)
    exists = (data.lengths > 0).repeat(1, -(-rows // data.num_episodes))  # starts, then again
    found: Any = exists.nonzero()
    values, held = torch.zeros_like(exists, dtype=torch.float32), True
    for task, index in (part.unbind(1) for part in found.split(4096)):  # every row with a start
        first = data.states[task, index % data.num_episodes, 0]
        carried = {name: v[task * rows + index % rows] for name, v in state.items()}
        with torch.no_grad():
            action, after = agent.act(first, carried, True)
            zero = torch.zeros(len(first), device=device)
            values[task, index] = value(critics, first, action, zero, carried).mean(0)
        held = held and _same(after, carried)
    if not held:
        warnings.warn(
            "fqe: what the agent carries changes from step to step; it is judged as if every step "
            "were the first of an episode",
            stacklevel=2,
        )
    return values.sum(1) / exists.sum(1) * scale


def _same(after: dict[str, Any], before: dict[str, Tensor]) -> bool:
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def card(data: TaskData) -> list[dict[str, Any]]:
    """A row per task: parameters, episodes, steps, quantiles of the return, references."""
    rows = []
    for k, task_id in enumerate(data.task_ids.tolist()):
        exists = data.lengths[k] > 0
        returns = data.returns[k][exists]
        points = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], device=returns.device)
        names = ("min", "q25", "median", "q75", "max")
        quantiles = zip(names, returns.quantile(points).tolist(), strict=True)
        rows.append({
            "task_id": task_id,
            "split": "train" if bool(data.training[k]) else "test",
            "parameters": " ".join(f"{v:.5g}" for v in data.tasks[k].tolist()),
            "episodes": int(exists.sum()),
            "steps": int(data.lengths[k].sum()),
            "behaviours": len(data.behaviour[k][exists].unique()),
            **{f"return_{name}": v for name, v in quantiles},
            "reference_random": data.references[k, 0].item(),
            "reference_best": data.references[k, 1].item(),
        })  # fmt: skip
    return rows


def task_information(data: TaskData, samples: int = 200, seed: int = 0) -> dict[str, float]:
    """What transitions say about the task [nats], by cross-fitted classifiers (lower bounds).

    Returns:
        `data/I(task;s,a)`: how much the behaviour alone gives away, the trap of encoders;
        `data/I(task;r,s'|s,a)`: what the task's answer adds, by the chain rule; a difference of two
        lower bounds, hence an estimate; `data/overlap`: the share of (s, a) that do not give their
        task away, 1 - accuracy of the classifier.
    """
    generator = torch.Generator(data.states.device).manual_seed(seed)
    task = torch.arange(data.num_tasks, device=data.states.device)
    batch = data.sample_transitions(task, samples, generator)
    label = functional.one_hot(task.repeat_interleave(samples), data.num_tasks).float()
    chosen = torch.cat([batch["observations"], batch["actions"]], -1).flatten(0, 1)
    change = batch["next_observations"] - batch["observations"]
    answer = torch.cat([batch["rewards"][..., None], change], -1).flatten(0, 1)
    before = mi.decode(chosen, label, seed=seed)
    after = mi.decode(torch.cat([chosen, answer], -1), label, seed=seed)
    return {
        "data/I(task;s,a)": before.nats,
        "data/I(task;r,s'|s,a)": after.nats - before.nats,
        "data/overlap": 1 - before.accuracy,
    }


def code_information(code: Tensor, task: Tensor, behaviour: Tensor, seed: int = 0) -> dict:
    """What codes [C, Z] say about the task and about whose policy acted, int64 [C] each [nats].

    Returns:
        `code/I(z;task)`, to be high, and `code/I(z;behaviour)`, to be low: lower bounds by
        cross-fitted classifiers.
    """
    values = {}
    for name, label in (("task", task), ("behaviour", behaviour)):
        _, index = label.unique(return_inverse=True)
        one_hot = functional.one_hot(index).float()
        values[f"code/I(z;{name})"] = mi.decode(code, one_hot, seed=seed).nats
    return values


def measure(
    agent: Any, data: TaskData, config: OfflineConfig, out: Path | None
) -> dict[str, float]:
    """The data's card and information, and the codes' where the agent has any."""
    metrics = task_information(data) if data.num_tasks > 1 else {}
    if out is not None:
        rows = card(data)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "card.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if not hasattr(agent, "context_state") or data.num_tasks < 2:
        return metrics
    codes = {"iid": codes_of(agent, data, 64, config.seed)}
    with suppress(MissingTierError):
        other = other_behaviour(config.dataset, data)
        codes["ood-behaviour"] = codes_of(agent, other, 64, config.seed)
        metrics |= code_information(*codes["ood-behaviour"])
    if out is not None:
        plot_codes(out / "codes.png", data, codes)
    return metrics


@torch.no_grad()
def codes_of(agent: Any, data: TaskData, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of random contexts [K·count, Z], their tasks and whose policy acted, [K·count] each."""
    device = data.states.device
    generator = torch.Generator(device).manual_seed(seed)
    task = torch.arange(data.num_tasks, device=device)[:, None].expand(-1, count)
    episodes = (data.lengths > 0).sum(1)[:, None]
    unit = torch.rand(task.shape, generator=generator, device=device)
    episode = (unit * episodes).long()
    steps = torch.arange(data.horizon, device=device)
    batch = data.gather(task[..., None], episode[..., None], steps)
    names = ("observations", "actions", "rewards", "next_observations")
    context = tuple(batch[name].flatten(0, 1) for name in names)
    mask = data.mask[task, episode].flatten(0, 1)
    label, acted = task.flatten(), data.behaviour[task, episode].flatten()
    code = agent.context_state(context, mask, data.tasks[label])["code"]
    return code, label, acted


def plot_codes(path: Path, data: TaskData, codes: dict[str, tuple[Tensor, ...]]) -> None:
    """Codes on their two main axes, a panel per kind of context, coloured by the task's parameter.

    With two parameters the colour is the angle, else the first parameter.
    """
    every = torch.cat([c[0] for c in codes.values()])
    centre = every.mean(0)
    axes_of = torch.linalg.svd(every - centre, full_matrices=False)[2][:2]
    colour = data.tasks[:, 0] if data.tasks.shape[1] else torch.arange(data.num_tasks).float()
    if data.tasks.shape[1] == 2:
        colour = torch.atan2(data.tasks[:, 1], data.tasks[:, 0])
    figure = Figure(figsize=(5 * len(codes), 4.5), layout="constrained")
    for i, (name, (code, label, *_)) in enumerate(codes.items()):
        axes = figure.add_subplot(1, len(codes), i + 1)
        flat = (code - centre) @ axes_of.T
        x, y = functional.pad(flat, (0, 2 - flat.shape[1])).T.cpu().numpy()  # codes of one number
        shown = axes.scatter(x, y, c=colour[label].cpu().numpy(), s=6, cmap="viridis")
        axes.set_title(f"contexts: {name}")
        figure.colorbar(shown, ax=axes, label="task parameter")
    save_figure(figure, path)


def plot_scores(path: Path, data: TaskData, returns: Tensor, names: Sequence[str]) -> None:
    """Mean return of every task, a line per checkpoint, between the references where known."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(data.references[:, 1].cpu().numpy(), kind="stable")
    x = np.arange(data.num_tasks)
    for name, each in zip(names, returns.mean(2).cpu().numpy(), strict=True):
        axes.plot(x, each[order], marker="o", markersize=3, label=name)
    for column, name in enumerate(("random", "best known")):
        reference = data.references[:, column].cpu().numpy()[order]
        if np.isfinite(reference).all():
            axes.plot(x, reference, color="grey", linestyle=("--", ":")[column], label=name)
    axes.set(xlabel="task, by the best known return", ylabel="return")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
