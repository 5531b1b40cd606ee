"""What is behind an agent and does not matter: a still, a video, another agent, or noise.

Every kind is a pool of pictures, somewhat larger than the window that shows them, and a cursor per
environment that walks through it: the window, the way through a clip and the clip are drawn anew
every `CHANGE_EVERY` steps, whatever the agent does (Bharadhwaj et al., "Information Prioritization
through Empowerment in Visual Model-based RL", arXiv 2204.08585, section 5).

Shape letters: N environments, K clips, F frames, P labels, R side of the picture and W of the
window [pixels].
"""

from __future__ import annotations

import functools
import math
import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from envs.base import CounterRNG
from envs.video import MAX_BYTES, Split, find_videos, load_clip

Background = Literal["none", "static", "video", "ghost", "noise"]
CHANGE_EVERY = 50
"""Steps after which a video or a ghost changes, as in the paper."""
PLAIN = (38, 42, 51)
"""RGB where there is no distractor."""
GRID = 4
"""The distractor's exact state is what it shows, as mean colours of GRID x GRID tiles."""
GHOSTS: dict[Split, int] = {"train": 8, "held-out": 2}
"""Recorded episodes of a ghost; those held out are others."""
GHOST_STEPS = 125
MANY = 2**31 - 1
"""More environments or control steps than anybody has."""

Recorded = tuple[Tensor, Tensor]
"""Pictures uint8 [K, F, 3, W, W], and the state that each shows, float32 [K, F, P]."""


def check_whole(name: str, value: Any, low: int, high: int, step: int = 1) -> int:
    """`value`, if it is an integer that an argument may be; True and False are none.

    Raises:
        ValueError: names the argument; not in `low` .. `high`, or no multiple of `step`.
    """
    try:
        number = operator.index(value)  # of any kind of integer
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high or number % step:
        kind = "an integer" if step == 1 else f"a multiple of {step}"
        raise ValueError(f"{name}={value!r}: expected {kind} in {low} .. {high}")
    return number


@dataclass
class Pictures:
    """A pool of clips.

    Attributes:
        frames: uint8 [F, 3, W + 2 margin, W + 2 margin].
        lengths: frames of each of the K clips, which follow each other, int64 [K].
        labels: float32 [F, P], the state that each frame shows; None where it is not known.
    """

    frames: Tensor
    lengths: Tensor
    labels: Tensor | None = None


def margin(window: int) -> int:
    """Pixels around the window by which a picture can be moved."""
    return window // 8


def noise_pictures(window: int, split: Split) -> Pictures:
    """One sheet of independent pixels, of which every step shows another part."""
    generator = torch.Generator().manual_seed(zlib.crc32(split.encode()))
    shape = (1, 3, 8 * window, 8 * window)
    sheet = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Pictures(sheet, torch.ones(1, dtype=torch.int64))


def video_pictures(window: int, split: Split, videos: str | Path | None) -> Pictures:
    """Clips of a folder or of packages, each of them and its mirror image.

    Raises:
        ValueError: together they are larger than `MAX_BYTES`; and see `envs.video`.
        ImportError: see `envs.video`.
    """
    paths = find_videos(videos, split)
    stamps = tuple((str(path), path.stat().st_mtime_ns) for path in paths)
    return _load(stamps, window + 2 * margin(window))


@functools.lru_cache(4)
def _load(stamps: tuple[tuple[str, int], ...], side: int) -> Pictures:
    clips, room = [], MAX_BYTES
    for path, _ in stamps:
        clips.append(load_clip(Path(path), side))
        room -= 2 * clips[-1].nbytes
        if room < 0:
            raise ValueError(
                f"videos: {len(clips)} of {len(stamps)} clips and their mirror images, {side} x "
                f"{side} pixels each, are more than {MAX_BYTES / 2**30:g} GiB already; expected "
                "fewer or shorter clips, or a smaller window"
            )
    clips += [clip[..., ::-1] for clip in clips]
    lengths = torch.tensor([len(clip) for clip in clips])
    return Pictures(torch.from_numpy(np.concatenate(clips)), lengths)


def ghost_pictures(frames: Tensor, labels: Tensor) -> Pictures:
    """Recorded episodes of another agent, uint8 [K, T, 3, W, W] and float32 [K, T, P]."""
    edge = margin(frames.shape[-1])
    plain = torch.tensor(PLAIN, dtype=torch.uint8).view(3, 1, 1)
    flat = functional.pad(frames.flatten(0, 1), (edge,) * 4)
    inside = functional.pad(torch.ones(frames.shape[-2:], dtype=torch.bool), (edge,) * 4)
    lengths = torch.full(frames.shape[:1], frames.shape[1])
    return Pictures(torch.where(inside, flat, plain), lengths, labels.flatten(0, 1))


def crop(frames: Tensor, index: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Windows of frames [F, C, S, S], [N, C, side, side], with one gather of rows of pixels.

    Args:
        frames: contiguous.
        index: of a frame, int64 [N].
        top: first row of the window, int64 [N].
        left: first column, int64 [N].
        side: of the window.
    """
    channels, size = frames.shape[1], frames.shape[-1]
    strips = frames.flatten().unfold(0, side, 1)  # at every pixel, the next ones; without a copy
    begin = (channels * size * index + top) * size + left
    plane = size * size * torch.arange(channels, device=frames.device)
    row = size * torch.arange(side, device=frames.device)
    rows = begin[:, None, None] + plane[:, None] + row
    return strips.index_select(0, rows.flatten()).view(-1, channels, side, side)


class _Actor(Protocol):
    num_envs: int
    max_episode_steps: int
    single_action_space: Any

    def reset(self, *, seed: int) -> Any: ...
    def step(self, actions: Tensor) -> Any: ...
    def record(self) -> tuple[Tensor, Tensor]: ...


def record(make: Callable[[int, int], _Actor], split: Split) -> Recorded:
    """Episodes of an agent that does something smooth at random, to be a ghost.

    Args:
        make: makes an environment of (number of rows, seed) whose `record` gives pictures of the
            agent alone, uint8 [K, 3, W, W], and its state, float32 [K, P].
        split: whose ghosts.
    """
    seed = zlib.crc32(f"ghost {split}".encode())  # no environment's own
    env = make(GHOSTS[split], seed)
    env.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (env.num_envs, *env.single_action_space.shape)
    action, frames = torch.zeros(shape), []
    for _ in range(min(GHOST_STEPS, env.max_episode_steps)):
        frames.append(env.record())
        action = 0.8 * action + 0.6 * torch.randn(shape, generator=generator)
        env.step(action)  # which clips it
    pictures, labels = zip(*frames, strict=True)
    return torch.stack(pictures, 1), torch.stack(labels, 1)


class Backdrop:
    """The pictures behind N agents.

    Args:
        kind: 'none'; 'static', one frame of a video per episode; 'video'; 'ghost', a recorded
            agent like the one in front; 'noise', independent pixels at every step.
        num_envs: N.
        size: R.
        window: W, the distractor is in the middle of the picture; None for all of it.
        split: pool of 'train', or 'held-out', which is never among the former.
        videos: folder; None for videos that ship inside packages.
        ghost: records another agent in pictures of W pixels.
        device: where the pool lives.

    Raises:
        ValueError: an unknown kind or split, a window larger than the picture, bad videos.
        ImportError: a package that has or decodes videos is missing.
    """

    def __init__(
        self,
        kind: Background,
        num_envs: int,
        size: int,
        window: int | None,
        split: Split,
        videos: str | Path | None,
        ghost: Callable[[int], Recorded],
        device: torch.device | str = "cpu",
    ) -> None:
        if kind not in get_args(Background):
            raise ValueError(f"background={kind!r}: expected one of {get_args(Background)}")
        if split not in get_args(Split):
            raise ValueError(f"split={split!r}: expected one of {get_args(Split)}")
        self.window = size if window is None else check_whole("window", window, 8, size, GRID)
        if kind == "ghost" and self.window < 16:
            raise ValueError(f"window={window}: expected at least 16 pixels for a ghost")
        if videos is not None and kind not in ("static", "video"):
            raise ValueError(
                f"videos: background={kind!r} shows none; expected 'static' or 'video'"
            )
        self.kind: Background = kind
        plain = torch.tensor(PLAIN, dtype=torch.uint8, device=device).view(1, 3, 1, 1)
        self._plain = plain.repeat(num_envs, 1, size, size)
        edge = (size - self.window) // 2
        self._inside = slice(edge, edge + self.window)
        self.cursor = torch.zeros(num_envs, 4, dtype=torch.int64, device=device)
        """Clip, phase of the way forth and back through it, top and left of the window."""
        self.fingerprint = torch.zeros(1, dtype=torch.int64, device=device)
        self._shown: Tensor | None = None  # the window, as long as the cursor stays
        if kind == "none":
            return
        if kind == "noise":
            pool = noise_pictures(self.window, split)
        elif kind == "ghost":
            pool = ghost_pictures(*ghost(self.window))
        else:
            pool = video_pictures(self.window, split, videos)
        self.fingerprint += zlib.adler32(pool.frames[..., ::5, ::5].numpy().tobytes())
        self._labels = None if pool.labels is None else pool.labels.to(device)
        self._first = (pool.lengths.cumsum(0) - pool.lengths).to(device)
        self._cycle = (2 * pool.lengths - 2).clamp(min=1).to(device)
        self._frames = pool.frames.to(device)
        self._places = self._frames.shape[-1] - self.window + 1

    def begin(self, rng: CounterRNG, mask: Tensor) -> None:
        """Draw what is shown first in the episodes of `mask`, bool [N]."""
        self._draw(rng, mask)

    def advance(self, rng: CounterRNG, elapsed: Tensor) -> None:
        """Go on by a frame; `elapsed` counts the steps of the episodes with this one, int64 [N].

        On the CPU it draws numbers only where some backdrop changes: draw others of a step before.
        """
        if self.kind in ("none", "static"):
            return
        if self.kind == "noise":
            self._draw(rng, torch.ones_like(elapsed, dtype=torch.bool))
            return
        self._shown = None
        clip, phase, top, left = self.cursor.unbind(1)
        self.cursor = torch.stack((clip, (phase + 1) % self._cycle[clip], top, left), 1)
        change = elapsed % CHANGE_EVERY == 0
        if change.device.type != "cpu" or bool(change.any()):  # looking is free on the CPU
            self._draw(rng, change)

    def _draw(self, rng: CounterRNG, mask: Tensor) -> None:
        self._shown = None
        if self.kind == "none":
            return
        unit = rng.uniform(4).double()  # in float32 a product could round up to its bound
        clip = (unit[:, 0] * len(self._first)).long()
        phase = (unit[:, 1] * self._cycle[clip]).long()
        place = (unit[:, 2:] * self._places).long()
        drawn = torch.cat((clip[:, None], phase[:, None], place), 1)
        self.cursor = torch.where(mask[:, None], drawn, self.cursor)

    def frame(self) -> Tensor:
        """Index of the frame in the pool, int64 [N]; -1 where nothing is shown."""
        if self.kind == "none":
            return torch.full_like(self.cursor[:, 0], -1)
        clip, phase = self.cursor[:, 0], self.cursor[:, 1]
        return self._first[clip] + torch.minimum(phase, self._cycle[clip] - phase)

    def shown(self) -> Tensor:
        """What is in the window, uint8 [N, 3, W, W]; not to be written."""
        if self._shown is None:
            _, _, top, left = self.cursor.unbind(1)
            self._shown = crop(self._frames, self.frame(), top, left, self.window)
        return self._shown

    def picture(self) -> Tensor:
        """Pictures uint8 [N, 3, R, R]; not to be written."""
        if self.kind == "none":
            return self._plain
        if self.window == self._plain.shape[-1]:
            return self.shown()
        picture = self._plain.clone()
        picture[..., self._inside, self._inside] = self.shown()
        return picture

    def state(self) -> Tensor:
        """What there is to know, float32 [N, D], fresh.

        ghost: its labels, and by how much it is shifted, in -1 .. 1. Else the colours (0 .. 1) of
        4 x 4 tiles of the window, [N, 48]. none: [N, 0].
        """
        if self.kind == "none":
            return torch.zeros(len(self._plain), 0, device=self._plain.device)
        if self._labels is not None:
            shift = 1 - 2 * self.cursor[:, 2:].float() / max(self._places - 1, 1)
            return torch.cat((self._labels[self.frame()], shift), 1)
        tile = self.window // GRID
        rows = self.shown().view(-1, 3, GRID, tile, self.window).sum(3, dtype=torch.int32)
        tiles = rows.view(-1, 3 * GRID, GRID, tile).sum(3)
        return tiles.flatten(1) / (255 * tile * tile)

    def live(self) -> dict[str, Tensor]:
        """What an environment's state must hold of it."""
        return {"cursor": self.cursor, "pictures": self.fingerprint}

    def check(self, state: dict[str, Any]) -> None:
        """Refuse the state of an environment that no environment here can be in.

        `BatchedEnv.load_state_dict` looks at names, types and shapes, but not at values.

        Raises:
            ValueError: an entry is no tensor or not finite, the pool has other pictures, or a
                cursor points out of it.
        """
        entries = state["state"]
        for name, value in entries.items():
            if not isinstance(value, Tensor):
                got = type(value).__name__
                raise ValueError(f"environment state {name!r}: expected a tensor, got {got}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"environment state {name!r}: expected finite numbers")
        saved = entries.get("pictures")
        if saved is not None and not torch.equal(saved.to(self.fingerprint), self.fingerprint):
            raise ValueError(
                "environment state: its backdrop has other pictures; expected the same background, "
                "window, split and videos"
            )
        cursor = entries.get("cursor")
        if self.kind == "none" or cursor is None or cursor.shape != self.cursor.shape:
            return
        cursor = cursor.to(self.cursor)
        clip, clips = cursor[:, 0], len(self._first)
        cycle = self._cycle[clip.clamp(0, clips - 1)]
        places = torch.full_like(cycle, self._places)
        ends = torch.stack((torch.full_like(cycle, clips), cycle, places, places), 1)
        wrong = ((cursor < 0) | (cursor >= ends)).any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"environment state 'cursor': {cursor[row].tolist()} in environment {row}; "
                f"expected clip, phase, top and left below {ends[row].tolist()}"
            )

    def refresh(self) -> None:
        """Look at the cursor again, which was written from outside."""
        self._shown = None


class Jitter:
    """A camera that shakes and light that changes: both wander, whatever the agent does.

    Five Ornstein-Uhlenbeck processes with a time of 20 steps: two shifts of the picture and the
    gain of each colour. (Ours, after the camera jitter of Wang et al., "Denoised MDPs", arXiv
    2206.15477.)

    Args:
        num_envs: N.
        camera: largest shift [pixels].
        colour: largest change of a colour's brightness, as a fraction of it.
        device: where its state lives.

    Raises:
        ValueError: out of range.
    """

    def __init__(
        self, num_envs: int, camera: int, colour: float, device: torch.device | str = "cpu"
    ) -> None:
        self.camera = check_whole("camera_jitter", camera, 0, 32)
        number = isinstance(colour, Real) and not isinstance(colour, bool)
        if not number or not 0 <= colour <= 1:
            raise ValueError(f"colour_jitter={colour!r}: expected a number in 0 .. 1")
        self.colour = float(colour)
        self.state = torch.zeros(num_envs, 5, device=device)

    def begin(self, rng: CounterRNG, mask: Tensor) -> None:
        """Draw the start of the episodes in `mask`, bool [N]."""
        if self:
            self.state = torch.where(mask[:, None], rng.normal(5), self.state)

    def advance(self, rng: CounterRNG) -> None:
        """Wander on."""
        if self:
            self.state = 0.95 * self.state + math.sqrt(1 - 0.95**2) * rng.normal(5)

    def values(self) -> Tensor:
        """Shifts of the picture down and to the right; red, green, blue; of the largest, ±1."""
        return (self.state / 2).clamp(-1, 1)

    def __bool__(self) -> bool:
        return self.camera > 0 or self.colour > 0

    def apply(self, picture: Tensor) -> Tensor:
        """The picture to be seen, uint8 [N, 4, R, R].

        Args:
            picture: uint8 [N, 4, R + 2 camera, R + 2 camera], RGB and coverage.
        """
        values = self.values()
        if self.camera:
            top, left = (self.camera * (1 - values[:, :2])).round().long().unbind(1)
            index = torch.arange(len(picture), device=picture.device)
            side = picture.shape[-1] - 2 * self.camera
            picture = crop(picture.contiguous(), index, top, left, side)
        if self.colour:
            gain = functional.pad(1 + self.colour * values[:, 2:], (0, 1), value=1.0)
            picture = (picture * gain[..., None, None]).clamp(0, 255).round().to(torch.uint8)
        return picture
