"""Pictures and videos a run leaves behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from agents.core.log import read_metrics


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without touching pyplot's global state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def plot_metrics(metrics: Path, path: Path) -> None:
    """One small panel per logged metric over environment steps."""
    columns = read_metrics(metrics)
    steps = columns.pop("timesteps")
    names = [n for n in columns if n != "updates" and not n.startswith("time/")]
    width = 4
    height = max(1, math.ceil(len(names) / width))
    figure = Figure(figsize=(3 * width, 2.1 * height), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(height, width, i + 1)
        values = np.array(columns[name])
        logged = np.isfinite(values)
        axes.plot(np.array(steps)[logged], values[logged], linewidth=1)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def plot_skills(panels: Mapping[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Where each skill moves the object: displacement, coloured by the skill.

    Args:
        panels: title -> (displacement [E, 2] [m], skill [E, Z]).
        path: of the PNG.
    """
    figure = Figure(figsize=(5 * len(panels), 5), layout="constrained")
    extent = max(0.1, max(float(moved.abs().max()) for moved, _ in panels.values())) * 1.05
    for i, (title, (moved, skill)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        moved, skill = moved.cpu(), skill.cpu()
        if skill.shape[1] == 2:
            hue = (torch.atan2(skill[:, 1], skill[:, 0]) / (2 * math.pi)) % 1
        else:
            hue = skill.argmax(1) / skill.shape[1]
        colours = colormaps["hsv"](hue.numpy())
        zeros = np.zeros(len(moved))
        axes.quiver(
            zeros, zeros, *moved.T.numpy(), color=colours, angles="xy", scale_units="xy", scale=1,
            width=0.002, alpha=0.35,
        )  # fmt: skip
        axes.scatter(*moved.T.numpy(), c=colours, s=14, zorder=3)
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        axes.set_xlabel("displacement x [m]")
        axes.set_ylabel("displacement y [m]")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    figure.suptitle("Final displacement of the object; the colour is the skill")
    save_figure(figure, path)


def plot_team(paths: Tensor, path: Path) -> None:
    """How the agents of a team move under each skill, one panel per skill, a colour per agent.

    Args:
        paths: positions [T, K, E, A, 2] [m] of E episodes of each of K skills.
        path: of the PNG.
    """
    paths = paths.cpu()
    count = paths.shape[1]
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    extent = max(0.1, float(paths.abs().max())) * 1.05
    figure = Figure(figsize=(3 * columns, 3 * rows + 0.4), layout="constrained")
    for k in range(count):
        axes = figure.add_subplot(rows, columns, k + 1)
        for agent in range(paths.shape[3]):
            x, y = paths[:, k, :, agent].permute(2, 0, 1).numpy()
            colour = colormaps["tab10"](agent % 10)
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
            axes.scatter(x[0, :1], y[0, :1], color=colour, marker="x", s=30)
            axes.scatter(x[-1], y[-1], color=colour, s=20, zorder=3)
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", title=f"skill {k}")
        axes.grid(alpha=0.3)
    figure.suptitle("Paths of the agents [m] from one start (x) to the end (o)")
    save_figure(figure, path)


def write_video(path: Path, frames: Tensor, fps: int) -> None:
    """Write frames uint8 [T, N, 3, H, W] as an MP4 with the N environments in a grid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps, count, _, height, width = frames.shape
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    grid = torch.full((steps, rows * columns, 3, height, width), 255, dtype=torch.uint8)
    grid[:, :count] = frames.cpu()
    if count > 1:  # a line between neighbours: backgrounds are often white
        grid[..., -1, :] = grid[..., -1] = 190
    grid = grid.view(steps, rows, columns, 3, height, width).permute(0, 1, 4, 2, 5, 3)
    images = grid.reshape(steps, rows * height, columns * width, 3).numpy()
    with imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=16) as writer:
        for image in images:
            writer.append_data(image)  # type: ignore[attr-defined]
