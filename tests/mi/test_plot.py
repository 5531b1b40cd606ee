"""Pictures show the numbers that they are given."""

import math

import numpy as np
import pytest

import mi
from mi import plot


def pair(n=400):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(n)
    return x, 0.8 * x + 0.6 * rng.standard_normal(n)


def test_estimates_over_the_number_of_samples(tmp_path):
    x, y = pair()
    figure = plot.sample_size(x, y, ("gaussian", "ksg"), sizes=(100, 400), truth=0.5)
    (axes,) = figure.axes
    drawn = [bar.lines[0].get_ydata().tolist() for bar in axes.containers]
    for name, values in zip(("gaussian", "ksg"), drawn, strict=True):
        expected = [mi.estimate_mi(x[:k], y[:k], estimator=name).value for k in (100, 400)]
        assert values == pytest.approx(expected)
    ends = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert ends == pytest.approx(mi.estimate_mi(x[:100], y[:100], estimator="gaussian").interval)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["truth", "gaussian", "ksg"]
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="up to 400"):
        plot.sample_size(x, y, sizes=(500,))


def test_staircase():
    truth = np.repeat([1.0, 2.0], 50)
    figure = plot.staircase(truth, {"a": truth - 0.5, "b": truth, "c": 0 * truth}, smoothing=11)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["a", "b", "c"]
    place, mean = figure.axes[0].lines[1].get_data()
    assert place[0] == 5 and mean[0] == pytest.approx(0.5) and mean[-1] == pytest.approx(1.5)
    assert mean[place == 50 - 0.0][0] == pytest.approx(0.5 + 6 / 11)  # centred on the step
    with pytest.raises(ValueError, match="b: expected 100 values, got"):
        plot.staircase(truth, {"b": truth[:7]})
    with pytest.raises(ValueError, match="at least one curve"):
        plot.staircase(truth, {})


def test_matrix_of_pairs():
    x, y = pair()
    flag = (x > 0).astype(int)
    figure, matrix = plot.pairwise({"x": x, "y": y, "flag": flag}, quick=True)
    assert np.isnan(matrix.diagonal()).all()
    assert np.allclose(matrix, matrix.T, equal_nan=True)
    assert matrix[0, 1] == pytest.approx(mi.estimate_mi(y, x, quick=True).value)
    assert matrix[2, 0] == pytest.approx(math.log(2), abs=0.05)
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert f"{matrix[0, 1]:.2f}" in texts and len(figure.axes[0].texts) == 6
    with pytest.raises(ValueError, match="at least 2"):
        plot.pairwise({"x": x})
