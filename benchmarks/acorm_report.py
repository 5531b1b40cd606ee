"""Pictures and the report of benchmarks/acorm.py."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from agents.core.plot import save_figure, write_video
from envs.adapt import can_render


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def interquartile(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Interquartile mean and its 95 % bootstrap interval; of one value that value."""

    def iqm(sample: np.ndarray) -> np.ndarray:
        ordered = np.sort(sample, -1)
        cut = ordered.shape[-1] // 4
        return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)

    resampled = np.random.default_rng(0).choice(values, (draws, len(values)))
    low, high = np.quantile(iqm(resampled), [0.025, 0.975])
    return float(iqm(values)), float(low), float(high)


# ---- pictures of one agent


@torch.no_grad()
def play(agent: Any, env: Any, seed: int, film: bool = False) -> dict[str, torch.Tensor]:
    """One greedy episode per row: everything seen, [T, N, ...] each; `frame` is of the last row."""
    obs, info = env.reset(seed=seed)
    state, going = agent.initial_state(env.num_envs), torch.ones(env.num_envs, dtype=torch.bool)
    seen: dict[str, list[torch.Tensor]] = {}

    def add(**values: torch.Tensor) -> None:
        for name, value in values.items():
            seen.setdefault(name, []).append(value.clone())

    while bool(going.any()):
        if film:
            add(frame=torch.as_tensor(env.render(1024))[-1])
        action, carried = agent.act(obs, agent.perceive(state, info), True)
        encoded = torch.nn.functional.one_hot(state["last"] + 1, agent.actions + 1)[..., 1:].float()
        add(
            seen=torch.cat([obs, encoded], -1), state=info["state"], alive=info["alive"],
            going=going, action=action,
        )  # fmt: skip
        obs, _, terminated, truncated, info = env.step(action)
        add(won=info["battle_won"] & going)
        going, state = going & ~(terminated | truncated), carried
    return {name: torch.stack(values) for name, values in seen.items()}


def draw(run: Path, results: Path) -> None:
    """roles.png (t-SNE) and attention.png; battle.mp4 of an episode that was won.

    The checkpoint is the one with the best evaluated return: win rates swing along a run.
    """
    import agents
    from agents.core.cluster import kmeans

    agent: Any = agents.load(run / "best.ckpt", device="cpu")
    env = agent.make_eval_env(16)
    played = play(agent, env, agent.config.seed + 5)
    embedding, _ = agent.roles.embed(played["seen"])
    role = agent.roles.encoder(embedding)
    counts = played["alive"] & played["going"][..., None]
    label = kmeans(embedding, agent.config.clusters, torch.Generator().manual_seed(0), counts)
    label = in_order(label, counts)
    won = played["won"].any(0)
    row = int(won.float().argmax())
    told = f"seed {agent.config.seed}, {int(won.sum())} of 16 greedy episodes won"
    draw_roles(role.detach(), label, counts, row, env, told, results / "roles.png")
    if "attention" in agent.networks:
        weights = agent.networks["attention"].weights(played["state"], role)[:, row]
        draw_attention(weights.detach(), counts[:, row], env, results / "attention.png")
    if bool(won.any()) and can_render(env):  # a row is the same whatever the number of rows
        film = play(agent, agent.make_eval_env(row + 1), agent.config.seed + 5, film=True)
        frames = film["frame"][: int(played["going"][:, row].sum())]
        write_video(results / "battle.mp4", where_it_happens(frames)[:, None], fps=8)


def where_it_happens(frames: torch.Tensor, margin: int = 32) -> torch.Tensor:
    """The part of a film [T, 3, H, W] in which something changes, and a margin [pixel] around."""
    moves = (frames != frames[0]).any(1).any(0)  # [H, W]
    sides = []
    for axis in (1, 0):
        where = moves.any(axis).nonzero()
        low, high = int(where.min()) - margin, int(where.max()) + margin
        low = max(low, 0)
        high = min(low + -(-(high - low) // 16) * 16, moves.shape[1 - axis])  # of whole blocks
        sides.append(slice(low, high))
    return frames[:, :, sides[0], sides[1]]


def in_order(label: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Clusters [..., A] numbered by their first agents: K-means numbers them anew every step."""
    same = (label[..., None] == label[..., None, :]) & counts[..., None, :]
    first = same.float().argmax(-1)  # of the agents in the cluster
    begins = (first == torch.arange(label.shape[-1])) & counts
    return begins.cumsum(-1).gather(-1, first) - 1


CLUSTERS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def draw_roles(
    role: Any, label: Any, counts: Any, row: int, env: Any, told: str, path: Path
) -> None:
    """t-SNE of all roles of 16 episodes by type, cluster and time; and one episode's clusters."""
    from sklearn.manifold import TSNE

    time, _, agents_ = counts.shape
    kept = counts.flatten().nonzero().flatten()
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:800]]
    points = TSNE(2, random_state=0, init="pca").fit_transform(role.flatten(0, 2)[kept].numpy())
    kinds = env.teams[0]
    types = sorted(set(kinds))
    kind = torch.tensor([types.index(k) for k in kinds]).expand_as(counts).flatten()[kept]
    when = torch.arange(time)[:, None, None].expand_as(counts).flatten()[kept]
    figure = Figure(figsize=(16, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(3, 1))
    for i, (title, value, names) in enumerate((
        ("type of unit", kind, types),
        ("cluster of its step, by its first agent", label.flatten()[kept], None),
        ("step of the episode", when, None),
    )):  # fmt: skip
        axes = figure.add_subplot(grid[0, i])
        axes.set(title=title, xticks=[], yticks=[])
        if i == 2:
            drawn = axes.scatter(*points.T, c=value.numpy(), s=8, cmap="viridis")
            figure.colorbar(drawn, ax=axes)
            continue
        for j in value.unique().tolist():
            chosen = points[(value == j).numpy()]
            name, colour = (names[j] if names else f"cluster {j + 1}"), CLUSTERS[j]
            axes.scatter(*chosen.T, color=colour, s=8, label=name)
        axes.legend(markerscale=2)
    axes = figure.add_subplot(grid[1, :])
    length = int(counts[:, row].any(-1).sum())
    shown = torch.where(counts[:length, row], label[:length, row], -1).T.numpy()
    colours = ListedColormap(["#ffffff", *CLUSTERS])
    axes.imshow(
        shown + 1, cmap=colours, vmin=-0.5, vmax=len(CLUSTERS) + 0.5, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.set_yticks(range(agents_), [f"{kind} {i}" for i, kind in enumerate(kinds)])
    axes.set(xlabel="step", title="clusters along one episode (white: dead)")
    figure.suptitle(f"t-SNE of the roles of {agents_} agents, {told}")
    save_figure(figure, path)


def draw_attention(weights: Any, counts: Any, env: Any, path: Path) -> None:
    """Attention of the state's queries (rows) to the agents' roles, mean of the heads."""
    length = max(1, int(counts.any(-1).sum()))
    steps = np.linspace(0, length - 1, min(6, length)).astype(int)
    figure = Figure(figsize=(2.3 * len(steps) + 1, 3.2), layout="constrained")
    names = [f"{kind} {i}" for i, kind in enumerate(env.teams[0])]
    mean = weights[torch.as_tensor(steps)].mean(1).numpy()
    panels = figure.subplots(1, len(steps), squeeze=False)[0]
    for i, (t, axes) in enumerate(zip(steps, panels, strict=True)):
        drawn = axes.imshow(mean[i], vmin=0, vmax=mean.max(), cmap="viridis")
        axes.set_title(f"step {t}", fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        queries = [f"query {j}" for j in range(len(names))]
        axes.set_yticks(range(len(names)) if i == 0 else [], queries if i == 0 else [], fontsize=7)
        for j, alive in enumerate(counts[t].tolist()):
            axes.get_xticklabels()[j].set_color("black" if alive else "#bbbbbb")
    figure.colorbar(drawn, ax=panels.tolist(), shrink=0.8)
    figure.suptitle(
        "Attention of the mixer's queries to the agents' roles, mean of the heads (grey: dead)",
        fontsize=10,
    )
    save_figure(figure, path)


# ---- report


def write_report(results: Path) -> None:
    """REPORT.md and learning-<scale>.png."""
    lines = ["# ACORM, measured", "", "Generated by `python benchmarks/acorm.py report`.", ""]
    speed = read(results / "speed.csv")
    if speed:
        lines += speed_table(speed)
    for scale in ("cpu", "cpu-long", "cpu-smax", "mappo", "jaxmarl", "jaxmarl-half", "paper"):
        curves, final = (read(results / f"{n}-{scale}.csv") for n in ("curves", "final"))
        if curves:
            lines += learning_tables(scale, curves, final)
            if any(float(row["win_rate"]) > 0 for row in curves):  # else there is nothing to see
                draw_curves(curves, results / f"learning-{scale}.png")
                lines += [f"![win rates](learning-{scale}.png)", ""]
    captions = {
        "roles.png": "Roles of one trained agent", "attention.png": "What its mixer attends to",
    }  # fmt: skip
    for name, caption in captions.items():
        if (results / name).exists():
            lines += [f"{caption}:", "", f"![{caption.lower()}]({name})", ""]
    notes = results / "NOTES.md"
    lines += [notes.read_text()] if notes.exists() else []
    (results / "REPORT.md").write_text("\n".join(lines).rstrip("\n") + "\n")


def speed_table(rows: list[dict[str, str]]) -> list[str]:
    lines = [
        "## Speed", "",
        "CPU-seconds at the sizes of 2s3z, 32 episodes of 120 steps, one thread. *Loops* is the "
        "published structure (Python loops over time, one K-means per step) in the same run; "
        "*published* are the published code's times, measured once on another day.", "",
        "| operation | ours | loops | ratio | published | ratio | bar |", "|---" * 7 + "|",
    ]  # fmt: skip
    for row in rows:

        def cell(name: str, row: dict[str, str] = row) -> str:
            return f"{float(row[name]):.3g}" if row[name] else ""

        names = ("ours", "loops", "times_loops", "published", "times_published", "bar")
        lines.append(f"| {row['operation']} | " + " | ".join(map(cell, names)) + " |")
    return [*lines, ""]


def grouped(rows: list[dict[str, str]], *names: str) -> dict[Any, list[dict[str, str]]]:
    groups: dict[Any, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[n] for n in names), []).append(row)
    return groups


def learning_tables(
    scale: str, curves: list[dict[str, str]], final: list[dict[str, str]]
) -> list[str]:
    """Final win rates and areas under the curves, one table per map."""
    lines = [f"## Learning on `combat` (not SMAC), `scale={scale}`", ""]
    head = (
        "| method | seeds | win rate at the end | mean win rate of the curve | return at the end | "
        "parameters | gradient steps | CPU-seconds |"
    )
    for (name,), rows in grouped(final, "map").items():
        steps = int(rows[0]["env_steps"])
        lines += [f"### {name}, {steps:,} environment steps", "", head, "|---" * 8 + "|"]
        for (method,), runs in grouped(rows, "method").items():
            own = [r for r in curves if r["map"] == name and r["method"] == method]
            area = [
                float(np.mean([float(r["win_rate"]) for r in c]))
                for c in grouped(own, "seed").values()
            ]
            cells = [method, str(len(runs))]
            for values in ([float(r["win_rate"]) for r in runs], area,
                           [float(r["return_mean"]) for r in runs]):  # fmt: skip
                middle, low, high = interquartile(np.array(values))
                spread = f" [{low:.2f}, {high:.2f}]" if len(values) > 1 else ""
                cells.append(f"{middle:.2f}{spread}")
            cells += [f"{int(runs[0]['parameters']):,}", runs[0]["gradient_steps"]]
            cells.append(f"{np.mean([float(r['cpu_seconds']) for r in runs]):.0f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    note = (
        "Interquartile means (of three seeds: means) with 95 % bootstrap intervals where there is "
        "more than one seed; one seed is an illustration."
    )
    return [*lines, note, ""]


def draw_curves(curves: list[dict[str, str]], path: Path) -> None:
    """Win rates over environment steps, one panel per map."""
    maps = grouped(curves, "map")
    figure = Figure(figsize=(5.5 * len(maps), 3.8), layout="constrained")
    for i, ((name,), rows) in enumerate(maps.items()):
        axes = figure.add_subplot(1, len(maps), i + 1)
        for j, ((method,), own) in enumerate(grouped(rows, "method").items()):
            points = []
            for (steps,), at in grouped(own, "timesteps").items():
                rates = np.array([float(r["win_rate"]) for r in at])
                points.append((float(steps), *interquartile(rates)))
            x, middle, low, high = np.array(sorted(points)).T
            colour = colormaps["tab10"](j)
            axes.plot(x, middle, color=colour, label=method)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=name, xlabel="environment steps", ylabel="win rate", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save_figure(figure, path)
