"""The page about runs: its numbers, and what a real browser makes of it."""

import json
from pathlib import Path

import browser
import numpy as np
import pytest
import torch

import train
from agents.core.config import ConfigError, save_yaml
from agents.core.plot import plot_metrics, write_video
from agents.core.report import curve, find_runs, group, interval, iqm, report
from agents.core.run import Run

ROOT = Path(__file__).resolve().parents[2]


def write_run(directory: Path, seed: int, value: float, done: bool = True, **settings) -> None:
    """A run directory whose `score` rises to `value`."""
    directory.mkdir(parents=True)
    config = {"agent": "toy", "env": "maze", "seed": seed, "env_kwargs": {}, "lr": 0.1, **settings}
    save_yaml(config, directory / "config.yaml")
    rows = [f"{100 * i},{value * i / 10},{'' if i % 5 else i}" for i in range(1, 11)]
    (directory / "metrics.csv").write_text("\n".join(["timesteps,score,eval/rare", *rows]) + "\n")
    (directory / "starts.jsonl").write_text(
        json.dumps({"command": f"python train.py toy seed={seed}", "versions": {"torch": "9.9"}})
        + "\n"
    )
    if done:
        (directory / "done.json").write_text(json.dumps({"score": value, "random/score": 0.5}))


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed, value in enumerate([1.0, 2.0, 3.0, 4.0, 100.0]):
        write_run(tmp_path / "runs" / f"a{seed}", seed, value)
    write_run(tmp_path / "runs" / "b", 0, 7.0, lr=0.2, env_kwargs={"size": 3})
    write_run(tmp_path / "runs" / "c", 1, 9.0, done=False, lr=0.2, env_kwargs={"size": 3})
    write_run(tmp_path / "runs" / "<i>evil</i>", 0, 5.0, env="<b>other</b>", agent="<u>x</u>")
    first = tmp_path / "runs" / "a0"
    plot_metrics(first / "metrics.csv", first / "plots" / "skills.png")
    frames = torch.randint(0, 255, (12, 2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    write_video(first / "video" / "skills.mp4", frames.to(torch.uint8), 10)
    return tmp_path / "runs"


def test_iqm_by_hand():
    values = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [100.0, 5.0]])
    centre, low, high = iqm(values)
    assert centre.tolist() == [2.5, 5.0]  # the middle half of four
    assert low[0] < 2.5 < high[0]
    assert low[1] == high[1] == 5.0
    assert interval([2.0]) == "2"


def test_groups_are_seeds_of_one_setting_and_say_what_differs(runs):
    sections = group(find_runs([runs]))
    assert list(sections) == ["<b>other</b>", "maze"]
    one, two = sections["maze"]
    assert one.label == "toy env_kwargs={} env_kwargs.size=None lr=0.1"
    assert two.label == "toy env_kwargs=None env_kwargs.size=3 lr=0.2"
    assert [len(one.runs), len(two.runs), len(two.chosen)] == [5, 2, 1]


def test_curves_are_means_where_all_runs_have_values(runs):
    one = group(find_runs([runs]))["maze"][0]
    line = curve(one.chosen, "score", points=10)
    assert line is not None
    steps, centre, low, high = line
    assert (steps[0], steps[-1]) == (100, 1000)
    np.testing.assert_allclose(centre, 3.0 * steps / 1000)  # the mean of 2, 3, 4
    assert (low <= centre).all() and (centre <= high).all() and high[-1] > low[-1]
    rare = curve(one.chosen, "eval/rare")
    assert rare is not None
    assert rare[0][0] == 500  # from the first value on
    assert curve(one.chosen, "never") is None


def test_a_run_notes_every_start_and_its_versions(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py", "toy", "env_kwargs={a: 1}"])
    for _ in range(2):
        with Run(tmp_path / "run", "toy", {"seed": 1}):
            pass
    starts = find_runs([tmp_path])[0].starts
    assert [start["command"] for start in starts] == ["python train.py toy 'env_kwargs={a: 1}'"] * 2
    assert starts[0]["versions"]["torch"] == torch.__version__
    assert starts[0]["step"] == 0


def test_mistakes_are_one_line(tmp_path, capsys, runs):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([], "expected directories of runs"),
        ([str(tmp_path / "empty")], "no run in"),
        ([str(runs), "title=x"], "expected directories of runs"),
        ([str(runs), f"out={tmp_path}/no/such"], "expected a writable file"),
    ):
        assert train.main(["report", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
    with (runs / "a0" / "starts.jsonl").open("a") as file:
        file.write('{"time": "20')  # by a full disk
    report([runs])
    (runs / "a0" / "done.json").write_text("{")
    with pytest.raises(ConfigError, match="a0: cannot read the run"):
        report([runs])


def test_the_gallery_shows_every_result(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gallery

    (tmp_path / "runs").mkdir()
    gallery.main([str(tmp_path / "runs"), f"out={tmp_path / 'gallery.html'}"])  # no run yet
    text = (tmp_path / "gallery.html").read_text()
    pictures = list((ROOT / "benchmarks" / "results").glob("*/*.png"))
    assert len(pictures) >= 5
    assert text.count("data:image/png") == len(pictures)
    for name in gallery.TITLES:
        start = text.index(f"<h2 id={name}>")
        shown = text[start : text.index("<details>", start)]
        assert "<table>" in shown, name
    assert "145 [132, 169]" in text  # of SLIM's headline table
    acorm = text[text.index("<h2 id=acorm>") :]
    assert "win rate" in acorm[: acorm.index("</table>")]  # and not its speed
    assert 'href="' not in text.replace('href="http', "")
    assert gallery.first_table("# A\n\n## B\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nend") == (
        "B", "| a | b |\n|---|---|\n| 1 | 2 |\n",
    )  # fmt: skip


def test_a_browser_shows_all_of_it_and_loads_nothing(runs, tmp_path, capsys):
    """Pictures and videos decode, tables hold the numbers, texts stay texts, no request is made."""
    path = tmp_path / "page.html"
    assert train.main(["report", str(runs), f"out={path}"]) == 0
    assert "page.html: " in capsys.readouterr().out
    with browser.tab(path) as (page, requests):
        sizes = page.eval_on_selector_all("img", "all => all.map(x => x.naturalWidth)")
        assert len(sizes) == 3  # two environments' curves and one run's picture
        assert min(sizes) > 100
        page.wait_for_function("document.querySelector('video').readyState >= 2")
        video = page.eval_on_selector("video", "x => [x.videoWidth, x.videoHeight, x.duration]")
        assert video == [128, 64, 1.2]
        row = page.locator("tr", has=page.locator("td", has_text="score").first).first
        assert "3 [" in page.locator("tr:has(td:text-is('score'))").last.inner_text()
        assert row.is_visible()
        text = page.inner_text("body")
        for words in (
            "maze",
            "python train.py toy seed=4",
            "torch 9.9",
            "<b>other</b>",
            "unfinished",
        ):
            assert words in text, words
        assert page.locator("b, i, u").count() == 0
        assert requests == [path.as_uri()]


def test_a_browser_shows_the_gallery(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gallery

    path = tmp_path / "gallery.html"
    path.write_text(gallery.gallery([]))
    with browser.tab(path) as (page, requests):
        for name in gallery.TITLES:
            assert page.locator(f"h2#{name}").is_visible()
        videos = page.locator("video").count()
        ready = "[...document.querySelectorAll('video')].every(x => x.readyState >= 1)"
        page.wait_for_function(ready)
        assert videos == len(list((ROOT / "benchmarks" / "results").glob("*/*.mp4")))
        assert requests == [path.as_uri()]
