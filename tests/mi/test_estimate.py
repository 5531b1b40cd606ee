"""The one call: routing, values, intervals, warnings, errors, the shell."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import mi
from mi.__main__ import main
from mi.channels import binary_entropy
from mi.estimators.gaussian import normal_scores
from mi.estimators.knn import knn
from mi.estimators.measures import MUTUAL, Estimate
from mi.neural import LEARNT, _learnt, cross_fitted, held_out, residual
from mi.objectives import PUBLISHED
from mi.table import objectives, table

RNG = np.random.default_rng


def pair(n=1000, rho=0.75, seed=0, d=1):
    rng = RNG(seed)
    x = rng.standard_normal((n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((n, d))


def gaussian_truth(rho, d=1):
    return -0.5 * d * math.log(1 - rho**2)


def sign_truth(rho):
    """I(X; sign Y) by quadrature."""
    slope = rho / math.sqrt(1 - rho**2)
    x = np.linspace(-8, 8, 4001)
    p = stats.norm.cdf(slope * x)
    uncertainty = [binary_entropy(float(v)) for v in p]
    return math.log(2) - float(np.trapezoid(stats.norm.pdf(x) * uncertainty, x))


def test_gaussian_pairs_whatever_their_container_and_marginals():
    x, y = pair()
    first = mi.estimate_mi(x, y)
    assert first.estimator == "student_copula"
    assert first.kind == "estimate"
    assert first.value == pytest.approx(gaussian_truth(0.75), abs=0.06)
    assert first.bits == pytest.approx(first.value / math.log(2))
    again = mi.estimate_mi(torch.from_numpy(np.exp(x[:, 0])), torch.from_numpy(y**3))
    assert again.value == pytest.approx(first.value)
    assert "nats ±" in str(first)


@pytest.mark.parametrize("noise", [0.1, 0.75])
def test_what_is_no_copula_is_noticed(noise):
    """Uniform x plus uniform noise: known in closed form, and no elliptical copula has it."""
    rng = RNG(0)
    x = rng.random(4000)
    y = x + rng.uniform(-noise, noise, 4000)
    # h(Y) of the trapezoid of two uniform densities, minus log 2ε.
    truth = noise - math.log(2 * noise) if noise <= 0.5 else 1 / (4 * noise)
    found = mi.estimate_mi(x, y)
    assert found.estimator == "copula + ksg"
    assert found.value == pytest.approx(truth, abs=0.05)
    assert abs(found.diagnostics["copula"] - truth) > 0.1


def test_routing():
    rng = RNG(0)
    x, y = pair(600)
    label = (x[:, 0] > 0).astype(np.int64)
    coin = rng.integers(2, size=600)
    many = rng.integers(40, size=(600, 2))
    wide = rng.standard_normal((600, 6))
    wide[:, 0] += 6 * coin
    censored = np.maximum(x, 0)
    for args, estimator, value, tolerance in (
        ((label, coin), "miller_madow", 0, 0.01),
        ((many[:, 0], many[:, 1]), "chao_shen", 0, 0.5),
        ((x, label), "ross", math.log(2), 0.03),
        ((coin, wide), "classifier", math.log(2), 0.05),
        ((censored, label), "mixed", math.log(2), 0.03),
        ((x, y, coin), "mixed", gaussian_truth(0.75), 0.15),
        ((x, y, rng.standard_normal(600)), "student_copula", gaussian_truth(0.75), 0.1),
    ):
        found = mi.estimate_mi(*args)
        assert found.estimator == estimator
        assert found.value == pytest.approx(value, abs=tolerance), estimator
        assert found.stderr > 0
    assert any("repeat" in w for w in mi.estimate_mi(censored, label).warnings)
    assert any("mixed" in w for w in mi.estimate_mi(censored, y, estimator="ksg").warnings)


DIRECT = [i for i in mi.list_estimators() if i.name not in {*LEARNT, "residual", "ccmi"}]


@pytest.mark.parametrize("info", DIRECT, ids=lambda i: i.name)
def test_every_listed_estimator_answers(info):
    x, y = pair(400)
    labels = [(v[:, 0] > 0).astype(np.int64) for v in (x, y)]
    args = {"discrete": labels, "real, discrete": [x, labels[1]]}.get(info.variables, [x, y])
    found = mi.estimate_mi(*args, estimator=info.name)
    signs = math.log(2) - binary_entropy(0.5 + math.asin(0.75) / math.pi)
    truth = {"discrete": signs, "real, discrete": sign_truth(0.75)}
    assert found.value == pytest.approx(truth.get(info.variables, gaussian_truth(0.75)), abs=0.08)
    assert found.kind == info.kind
    assert info.formula and info.reference
    third = (
        RNG(1).standard_normal(400) if info.variables != "discrete" else labels[0] * 0 + labels[1]
    )
    if info.conditional:
        assert math.isfinite(mi.estimate_mi(*args, third, estimator=info.name).value)
    else:
        with pytest.raises(ValueError, match="takes two variables"):
            mi.estimate_mi(*args, third, estimator=info.name)


@pytest.mark.parametrize(("rho", "d"), [(0.0, 2), (0.6, 1)])
def test_intervals_cover(rho, d):
    found = [mi.estimate_mi(*pair(300, rho, seed, d), estimator="gaussian") for seed in range(100)]
    covered = sum(f.interval[0] <= gaussian_truth(rho, d) <= f.interval[1] for f in found)
    assert 88 <= covered <= 100
    mean = np.mean([f.value for f in found])
    assert mean == pytest.approx(gaussian_truth(rho, d), abs=0.015)


def test_intervals_of_time_series_take_blocks():
    """Slow, correlated series: n samples are worth n (1 - φ²)/(1 + φ²) of their products."""
    phi, n, rho = 0.8, 600, 0.5
    truth, covered = gaussian_truth(rho), {1: 0, 40: 0}
    for seed in range(60):
        noise, series = RNG(seed).standard_normal((n + 50, 2)), np.zeros((n + 50, 2))
        noise[:, 1] = rho * noise[:, 0] + math.sqrt(1 - rho**2) * noise[:, 1]
        for t in range(1, n + 50):
            series[t] = phi * series[t - 1] + noise[t]
        for block in covered:
            found = mi.estimate_mi(*series[50:].T, estimator="gaussian", block=block)
            covered[block] += found.interval[0] <= truth <= found.interval[1]
    assert covered[1] <= 48  # 80 %, where 95 % are promised
    assert covered[40] >= 52
    x, y = pair(200)
    assert any("not blocks" in w for w in mi.estimate_mi(x, y, estimator="nwj", block=5).warnings)
    with pytest.raises(ValueError, match="block: expected 1 to half"):
        mi.estimate_mi(x, y, block=101)


def test_block_errors_are_those_of_the_bootstrap():
    rng = RNG(0)
    terms = np.convolve(rng.standard_normal(430), np.ones(20), "valid")
    starts = rng.integers(len(terms) - 30 + 1, size=(20_000, len(terms) // 30))
    blocks = np.lib.stride_tricks.sliding_window_view(terms, 30).mean(1)
    spread = blocks[starts].mean(1).std() * math.sqrt(starts.shape[1] * 30 / len(terms))
    assert Estimate(0.0, terms).block_stderr(30) == pytest.approx(spread, rel=0.02)
    assert Estimate(0.0, terms).stderr == pytest.approx(terms.std() / math.sqrt(len(terms)))


def test_self_consistency():
    """Symmetry, data processing, additivity (Song & Ermon 2020)."""
    x, y = pair(1500, d=2)
    both = mi.estimate_mi(x, y).value
    assert mi.estimate_mi(y, x).value == pytest.approx(both, abs=1e-6)
    assert mi.estimate_mi(x[:, :1], y).value < both
    assert both == pytest.approx(2 * gaussian_truth(0.75), abs=0.08)
    assert mi.estimate_mi(x, np.concatenate([y, y + 1e-3 * x], 1)).value > both - 0.1


def test_several_variables():
    rng = RNG(0)
    a, b = rng.integers(2, size=(2, 2000))
    assert mi.interaction_information(a, b, a ^ b).value == pytest.approx(math.log(2), abs=0.01)
    assert mi.interaction_information(a, a, a).value == pytest.approx(-math.log(2), abs=0.01)
    x = rng.multivariate_normal(np.zeros(3), 0.5 + 0.5 * np.eye(3), 2000)
    truth = -0.5 * math.log(np.linalg.det(0.5 + 0.5 * np.eye(3)))
    for estimator, tolerance in (("auto", 0.04), ("ksg", 0.08)):
        found = mi.total_correlation(list(x.T), estimator=estimator)
        assert found.value == pytest.approx(truth, abs=tolerance)
    with pytest.raises(ValueError, match="at least 2"):
        mi.total_correlation([x])


@pytest.mark.parametrize("estimator", ["gaussian", "ksg", "kde", "auto"])
def test_dual_total_correlation_and_o_information_of_gaussians(estimator):
    covariance = np.array([[1, 0.5, 0.3, 0], [0.5, 1, 0.4, 0], [0.3, 0.4, 1, 0.2], [0, 0, 0.2, 1]])
    x = RNG(0).multivariate_normal(np.zeros(4), covariance, 2000)

    def h(*kept):
        return 0.5 * math.log(np.linalg.det(covariance[np.ix_(kept, kept)]))

    joint = h(0, 1, 2, 3)
    rest = h(1, 2, 3) + h(0, 2, 3) + h(0, 1, 3) + h(0, 1, 2)
    dual, total = rest - 3 * joint, -joint
    tolerance = 0.03 if estimator == "gaussian" else 0.12
    found = mi.dual_total_correlation(list(x.T), estimator=estimator).value
    assert found == pytest.approx(dual, abs=tolerance)
    found = mi.o_information(list(x.T), estimator=estimator).value
    assert found == pytest.approx(total - dual, abs=tolerance)


def test_dual_total_correlation_and_o_information_of_bits():
    a, b = RNG(0).integers(2, size=(2, 4000))
    both = a ^ b
    assert mi.o_information([a, b, both]).value == pytest.approx(-math.log(2), abs=0.01)
    assert mi.o_information([a, a, a]).value == pytest.approx(math.log(2), abs=0.01)
    assert mi.dual_total_correlation([a, a, a]).value == pytest.approx(math.log(2), abs=0.01)
    dual = mi.dual_total_correlation([a, b, both]).value
    assert dual == pytest.approx(2 * math.log(2), abs=0.01)
    pair_ = mi.dual_total_correlation([a, a ^ (b & both)]).value
    assert pair_ == pytest.approx(mi.estimate_mi(a, a ^ (b & both)).value, abs=1e-9)
    with pytest.raises(ValueError, match="at least 3"):
        mi.o_information([a, b])


def test_a_thin_ridge_is_seen_by_the_local_correction():
    """Uniform x plus uniform noise of 1e-4, ε - log 2ε nats: KSG's boxes are far too wide."""
    rng, noise = RNG(0), 1e-4
    x = rng.random(2000)
    y = x + rng.uniform(-noise, noise, 2000)
    truth = noise - math.log(2 * noise)
    assert mi.estimate_mi(x, y, estimator="lnc").value == pytest.approx(truth, abs=0.4)
    assert mi.estimate_mi(x, y, estimator="ksg").value < truth - 2
    x, y = rng.standard_normal((2, 2000))
    assert abs(mi.estimate_mi(x, y, estimator="lnc").value) < 0.03


def test_a_classifier_given_a_third_variable():
    rng = RNG(0)
    z = rng.standard_normal((1200, 1))
    u, v = pair(1200, 0.8, seed=1)
    found = mi.estimate_mi(z + u, z + v, z, estimator="ccmi")
    assert found.value == pytest.approx(gaussian_truth(0.8), abs=0.1)
    none = mi.estimate_mi(z + u, z + rng.standard_normal((1200, 1)), z, estimator="ccmi")
    assert abs(none.value) < 0.04
    assert mi.estimate_mi(z + u, z + v, quick=True).value > found.value + 0.3  # what z explains
    with pytest.raises(ValueError, match="pass z"):
        mi.estimate_mi(u, v, estimator="ccmi")


def test_transfer_entropy_has_a_direction():
    rng = RNG(0)
    source, target = rng.standard_normal(3000), np.zeros(3000)
    noise = rng.standard_normal(3000)
    for t in range(1, 3000):
        target[t] = 0.5 * target[t - 1] + 0.5 * source[t - 1] + noise[t]
    forward = mi.transfer_entropy(source, target)
    assert forward.value == pytest.approx(0.5 * math.log(1.25), abs=0.025)
    assert abs(mi.transfer_entropy(target, source).value) < 0.01
    delayed = np.roll(source, -1)  # the influence now takes two steps
    assert abs(mi.transfer_entropy(delayed[:-1], target[:-1]).value) < 0.02
    longer = mi.transfer_entropy(np.roll(source, -1)[:-1], np.roll(target, 1)[:-1], k=3)
    assert longer.value > 0.08
    with pytest.raises(ValueError, match="of one length"):
        mi.transfer_entropy(source[:-1], target)


@pytest.mark.parametrize("name", ["infonce", "doe", "flo", "ndoe", "tre"])
def test_learnt_estimators_are_cross_fitted(name):
    x, y = pair(1200)
    warnings, found = cross_fitted(name, x, y, 0, steps=120, batch_size=128, lr=3e-3)
    assert found.value == pytest.approx(gaussian_truth(0.75), abs=0.15)
    assert name != "infonce" or any("still falling" in w for w in warnings)
    assert not any("fitted to" in w for w in warnings)


def test_training_options_count_more_than_the_usual_ones():
    _, found = cross_fitted("infonce", *pair(200), 0, steps=10, lr=0.0)
    assert abs(found.value) < 0.1  # of 0.41: nothing was learnt


def test_a_network_finds_what_the_copula_misses_and_nothing_where_it_misses_nothing():
    x, y = pair(1500, d=2)
    squares = 2 * x**2 + y  # no correlation left between them, and much information
    found, gain = residual(normal_scores(x), normal_scores(squares), 0, steps=200)
    assert gain > 0
    assert found.value > 0.5 + mi.estimate_mi(x, squares, estimator="student_copula").value
    direct, gain = residual(normal_scores(x), normal_scores(y), 0, steps=60)
    assert gain <= 0
    assert direct.value == pytest.approx(2 * gaussian_truth(0.75), abs=0.12)
    quick = mi.estimate_mi(x, squares, quick=True)
    assert quick.estimator == "copula + ksg"
    assert "network" not in quick.diagnostics


def test_one_learnt_estimator_by_name():
    x, y = pair(200)
    found = mi.estimate_mi(x, y, estimator="jsd")
    assert found.estimator == "jsd"
    assert 0 < found.value < 1


def test_bad_data_is_named():
    x, y = pair(100)
    bad = y.copy()
    bad[3] = math.nan
    for args, message in (
        ((x, bad), "y: column 0 holds values that are not finite"),
        ((np.ones((100, 2)), y), "x: column 0 is constant"),
        ((np.ones(100, dtype=int), y), "x: column 0 is constant"),
        ((x, y[:50]), r"as many samples of each variable, got \[100, 50\]"),
        ((x[:5], y[:5]), "at least 20 samples"),
        ((x[:, :, None], y), r"x: expected numbers \[N\] or \[N, d\]"),
        ((np.array(["a"] * 100), y), "x: expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            mi.estimate_mi(*args)
    for name, message in (("kgs", "expected 'auto' or one of"), ("nsb", "integers are discrete")):
        with pytest.raises(ValueError, match=message):
            mi.estimate_mi(x, y, estimator=name)


def test_repeats_and_leaves_global_generators_alone():
    x, y = pair(300)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert mi.estimate_mi(x, y) == mi.estimate_mi(x, y)
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()


def test_from_the_shell(tmp_path, capsys):
    x, y = pair(300)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y, z=RNG(5).standard_normal(300))
    assert main([str(path), "x", "y"]) == 0
    assert "nats ±" in capsys.readouterr().out
    assert main([str(path), "x", "y", "--given", "z", "--bits"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(0.6, abs=0.2)
    assert main([str(path), "x", "y", "--samples", "100"]) == 0
    assert "100 of 300 samples" in capsys.readouterr().err
    for arguments, message in (
        (["no/such-v0", "x", "y"], "neither an .npz file nor a local Minari dataset"),
        ([str(path), "x", "q"], "no array 'q', only ['x', 'y', 'z']"),
        ([str(tmp_path / "none.npz"), "x", "y"], "no such file"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, "-m", "mi", str(path), "x", "y", "--estimator", "ksg"], text=True,
        capture_output=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "by ksg" in done.stdout


def test_of_a_minari_dataset(tmp_path, monkeypatch, capsys):
    """A dictionary of observations, two episodes; the next step is the action plus noise."""
    gymnasium, minari = pytest.importorskip("gymnasium"), pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng, buffers, pairs = RNG(0), [], []
    box = gymnasium.spaces.Box(-10, 10, (1,), np.float64)
    for seed in range(2):
        action = rng.standard_normal((300, 1)).clip(-9, 9)
        place = np.zeros((301, 1))
        place[1:] = (action + rng.standard_normal((300, 1))).clip(-9, 9)
        done = np.arange(300) == 299
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=seed, seed=seed, observations={"place": list(place)}, actions=list(action),
                rewards=[0.0] * 300, terminations=list(done), truncations=[False] * 300,
            )
        )  # fmt: skip
        pairs.append((action, place[1:]))
    minari.create_dataset_from_buffers(
        "test/steps-v0", buffers, observation_space=gymnasium.spaces.Dict(place=box),
        action_space=box,
    )  # fmt: skip
    arguments = ["test/steps-v0", "actions", "next_observations/place", "--bits"]
    assert main(arguments) == 0
    printed = float(capsys.readouterr().out)
    direct = mi.estimate_mi(*(np.concatenate(v) for v in zip(*pairs, strict=True))).bits
    assert printed == pytest.approx(direct, abs=1e-5)
    assert printed == pytest.approx(0.5, abs=0.15)
    assert main(["test/steps-v0", "actions", "place"]) == 2
    assert "'observations/place', 'next_observations/place'" in capsys.readouterr().err


def test_intervals_reach_as_far_as_the_samples_still_move_the_value():
    """Edges in six dimensions: neighbours fall short by far more than their sampling error."""
    rng = np.random.default_rng(0)
    x = rng.random((2000, 3))
    y = x + rng.uniform(-0.3, 0.3, x.shape)
    truth = 3 * (0.3 - math.log(0.6))
    found = mi.estimate_mi(x, y, quick=True)
    low, high = found.interval
    assert found.estimator == "copula + ksg" and found.value + 5 * found.stderr < truth
    assert found.value - low == pytest.approx(1.96 * found.stderr, rel=1e-3)
    assert high - found.value > 3 * (found.value - low)
    assert "biased" in found.warnings[-1]
    plain = mi.estimate_mi(*pair(2000, 0.7), quick=True)
    middle = sum(plain.interval) / 2
    assert plain.estimator == "student_copula" and middle == pytest.approx(plain.value)


def test_bins_say_when_they_are_too_many():
    x = RNG(0).standard_normal((2, 600, 6))
    assert "too high" in mi.estimate_mi(*x, estimator="binned").warnings[0]
    assert not mi.estimate_mi(*x[:, :, :3], estimator="binned").warnings


def test_a_learning_curve_says_what_the_network_lacks():
    """The held-out bound has grown since half of the samples; the drift is what that foretells."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1600, 2))
    y = rng.choice([-1.0, 1.0], (1600, 1)) * x + 0.3 * rng.standard_normal(x.shape)
    found, _ = residual(x / x.std(0), y / y.std(0), 0, steps=100, folds=2)
    fit = next(held_out(x / x.std(0), y / y.std(0), 2, 0))
    less, _ = _learnt(fit[0][:400], fit[1][:400], fit[2], fit[3], 100, 0, 0)
    gained = found.pointwise[:800].mean() - less.mean().item()
    assert gained > 0.02
    assert found.drift == pytest.approx(gained / (math.sqrt(2) - 1), rel=1e-3)


def test_neighbours_in_many_dimensions_are_less_sure_than_their_terms():
    """Holmes & Nemenman: the spread of 12 estimates in 30 + 30 dimensions."""
    rng = np.random.default_rng(0)
    found = [knn(list(rng.standard_normal((2, 1500, 30))), MUTUAL, 5) for _ in range(12)]
    real = np.std([f.value for f in found], ddof=1)
    terms = np.mean([f.pointwise.std() / math.sqrt(1500) for f in found])
    said = math.sqrt(np.mean([f.stderr**2 for f in found]))
    assert terms < 0.8 * real
    assert 0.7 * real < said < 1.6 * real


def test_the_tables_in_the_readme_are_the_registries():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert table() in readme
    assert objectives() in readme


def test_what_published_objectives_need_exists():
    assert len(PUBLISHED) == 32
    assert sum(p.only_primitive for p in PUBLISHED) == 3
    for p in PUBLISHED:
        assert p.use or p.only_primitive
        for name in p.objects:
            found = mi
            for part in name.split("."):
                found = getattr(found, part)
            assert found.__doc__, name
