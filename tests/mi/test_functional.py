"""The formula sheet: known values, the one rule, numerics, chunks and processes."""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn import functional as F

from mi import functional as mif

RHO = 0.8
TRUTH = -0.5 * math.log(1 - RHO**2)
LOWER = {
    "infonce": mif.infonce,
    "dv": mif.dv,
    "nwj": mif.nwj,
    "tuba": functools.partial(mif.tuba, log_baseline=0.3),
    "ialpha": functools.partial(mif.ialpha, alpha=0.3, log_baseline=0.2),
    "jsd": mif.jsd,
    "smile": mif.smile,
    "wasserstein": mif.wasserstein,
    "club": mif.club,
    "l1out": mif.l1out,
    "own": functools.partial(mif.infonce, denominator="own"),
    "decoupled": functools.partial(mif.infonce, denominator="negatives"),
    "sum_in": functools.partial(mif.infonce, aggregate="sum_in"),
    "plug_in": mif.plug_in,
    **{
        d: functools.partial(mif.fdime, divergence=d)
        for d in ("kl", "gan", "hellinger", "shifted_log")
    },
}


def gaussian(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    uniform = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(n).double()
    x, e = torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).T
    return x, RHO * x + math.sqrt(1 - RHO**2) * e


def log_ratio(x, y):
    """Log p(y|x)/p(y), broadcasting."""
    v = 1 - RHO**2
    return -0.5 * math.log(v) - 0.5 * (y - RHO * x) ** 2 / v + 0.5 * y**2


@pytest.fixture(scope="module")
def exact():
    """Score matrix of the optimal critic."""
    x, y = gaussian(1024)
    return log_ratio(x[:, None], y)


@pytest.mark.parametrize(
    ("value", "truth", "tolerance"),
    [
        (mif.infonce, TRUTH, 0.03),
        (mif.dv, TRUTH, 0.03),
        (lambda s: mif.nwj(s + 1), TRUTH, 0.03),
        (mif.tuba, TRUTH, 0.03),
        (lambda s: mif.ialpha(s, alpha=0.5), TRUTH, 0.03),
        (lambda s: mif.flo(s, u=-s.diagonal()), TRUTH, 0.03),
        (mif.plug_in, TRUTH, 0.03),
        (lambda s: mif.smile(s, clip=20.0), TRUTH, 0.03),
        (mif.fdime, TRUTH, 0.03),
        (lambda s: mif.mine(s, running=torch.tensor(0.0)), TRUTH, 0.03),
        # E log q(y|x) - E⁻ log q(y|x) = ρ²/(1-ρ²); the marginal's terms cancel.
        (mif.club, RHO**2 / (1 - RHO**2), 0.1),
        (mif.l1out, TRUTH, 0.03),
    ],
)
def test_values_at_the_optimal_critic(exact, value, truth, tolerance):
    assert value(exact).item() == pytest.approx(truth, abs=tolerance)


@pytest.mark.parametrize("name", ["jsd", "kl", "gan", "hellinger", "shifted_log"])
def test_the_optimum_is_the_log_ratio(exact, name):
    """No constant shift or rescaling of the exact log-ratio does better."""
    best = LOWER[name](exact)
    for scale, shift in ((1, 0.3), (1, -0.3), (0.7, 0), (1.3, 0)):
        assert LOWER[name](exact * scale + shift) < best


def test_infonce_never_exceeds_log_k_and_is_cross_entropy():
    torch.manual_seed(0)
    for k in (2, 7, 50):
        scores = 100 * torch.randn(k, k)
        value = mif.infonce(scores)
        assert value <= math.log(k)
        assert value.item() == pytest.approx(
            math.log(k) - F.cross_entropy(scores, torch.arange(k)).item(), abs=1e-3
        )
    assert mif.infonce(1e4 * torch.eye(8)).item() == pytest.approx(math.log(8))


def test_pairs_and_matrices_agree():
    torch.manual_seed(0)
    scores = torch.randn(3, 6, 6, dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.bool)
    pos = scores.diagonal(dim1=-2, dim2=-1)
    neg = scores[:, ~eye].view(3, 6, 5)
    weight = torch.randn(3, 6, 6, dtype=torch.float64)
    for name, bound in LOWER.items():
        if name == "l1out":
            neg_ = scores.mT[:, ~eye].view(3, 6, 5)
            torch.testing.assert_close(bound(scores), bound(pos=pos, neg=neg_))
            continue
        torch.testing.assert_close(bound(scores), bound(pos=pos, neg=neg), msg=name)
        torch.testing.assert_close(
            bound(scores, log_weight=weight),
            bound(pos=pos, neg=neg, log_weight=weight[:, ~eye].view(3, 6, 5)), msg=name,
        )  # fmt: skip


@pytest.mark.parametrize("name", list(LOWER))
def test_masked_samples_are_as_if_they_were_not_there(name):
    torch.manual_seed(0)
    bound, scores = LOWER[name], torch.randn(6, 6, dtype=torch.float64)
    keep = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool)
    smaller = scores[keep][:, keep]
    bad = scores.clone()
    bad[~keep], bad[:, ~keep] = math.nan, math.inf
    bad.requires_grad_()
    value = bound(bad, mask=keep, key_mask=keep)
    torch.testing.assert_close(value, bound(smaller))
    (grad,) = torch.autograd.grad(value, bad)
    assert torch.isfinite(grad).all()
    assert not grad[~keep].any() and not grad[:, ~keep].any()
    if name not in ("tuba", "ialpha", "l1out"):
        value = bound(scores, mask=keep, key_mask=keep, symmetric=True)
        torch.testing.assert_close(value, 0.5 * (bound(smaller) + bound(smaller.mT)))
    terms = bound(
        scores, mask=keep, reduction="none", **({"key_mask": keep} if name == "l1out" else {})
    )
    assert not terms[~keep].any()
    torch.testing.assert_close(bound(scores, mask=keep & False), torch.zeros(()).double())


@pytest.mark.parametrize("name", list(LOWER))
def test_gradients_are_right(name):
    torch.manual_seed(0)
    scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4, dtype=torch.float64)
    exclude = torch.zeros(4, 4, dtype=torch.bool)
    exclude[1, 2] = True
    assert torch.autograd.gradcheck(
        lambda s: LOWER[name](s, log_weight=weight, exclude=exclude), scores
    )


@pytest.mark.parametrize("name", list(LOWER))
def test_extreme_scores_and_half_precision(name):
    torch.manual_seed(0)
    exponential = name in ("nwj", "tuba", "kl", "hellinger", "ialpha", "decoupled")
    for size, dtype in ((1e4, torch.float32), (3.0, torch.bfloat16), (3.0, torch.float16)):
        if size > 100 and exponential:
            continue  # e^f is the value there: infinite because it is
        scores = (size * torch.randn(5, 5)).to(dtype).requires_grad_()
        positives = torch.eye(5, dtype=torch.bool)
        positives[2] = False  # a row without a positive
        value = LOWER[name](scores, positives=positives)
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value) and torch.isfinite(scores.grad).all()


def test_leave_one_out_where_one_term_dominates():
    f = torch.tensor([[0.0, 50.0, 1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    among = torch.tensor([[True, True, True, False]])
    total, others = mif._leave_one_out(f, among)
    assert total.item() == pytest.approx(50)
    expected = [np_lse(50, 1), np_lse(0, 1), np_lse(0, 50)]
    assert others[0, :3].tolist() == pytest.approx(expected, abs=1e-12)
    others[0, :3].sum().backward()
    assert torch.isfinite(f.grad).all()


def np_lse(a, b):
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def test_several_positives():
    torch.manual_seed(0)
    s = torch.randn(5, 7)
    positives = torch.zeros(5, 7, dtype=torch.bool)
    positives[:, 0], positives[:3, 4], positives[4] = True, True, False
    log_all = torch.logsumexp(s, 1)
    out, inside, own = [], [], []
    for i in range(4):
        p = positives[i].nonzero()[:, 0]
        n = (~positives[i]).nonzero()[:, 0]
        out.append((s[i, p] - log_all[i]).mean() + math.log(7))
        inside.append(torch.logsumexp(s[i, p], 0) - math.log(len(p)) - log_all[i] + math.log(7))
        each = [
            s[i, j] - torch.logsumexp(torch.cat([s[i, [j]], s[i, n]]), 0) + math.log(len(n) + 1)
            for j in p
        ]
        own.append(torch.stack(each).mean())
    for options, rows in (
        ({}, out),
        ({"aggregate": "sum_in"}, inside),
        ({"denominator": "own"}, own),
    ):
        value = mif.infonce(s, positives=positives, **options)
        assert value.item() == pytest.approx(torch.stack(rows).mean().item(), abs=1e-5)


def test_acorm_shaped_loss_equals_the_loops():
    """[B, T, N, N] with clusters and a mask of time steps, sum inside the log."""
    torch.manual_seed(0)
    scores, cluster = torch.randn(2, 3, 4, 4), torch.randint(2, (2, 3, 4))
    alive = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    same = cluster[..., :, None] == cluster[..., None, :]
    value = mif.infonce(
        scores, positives=same, aggregate="sum_in", mask=alive[..., None].expand(2, 3, 4)
    )
    terms = []
    for b, t in alive.nonzero().tolist():
        for i in range(4):
            share = same[b, t, i]
            if share.all():
                continue  # everybody is a positive: nothing to tell apart
            logits = scores[b, t, i]
            terms.append(logits[share].exp().mean().log() - logits.exp().mean().log())
    assert value.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)


def test_targets_and_priors():
    torch.manual_seed(0)
    s, index = torch.randn(5, 4, dtype=torch.float64), torch.randint(4, (5,))
    value = mif.infonce(s, targets=index)
    assert value.item() == pytest.approx(math.log(4) - F.cross_entropy(s, index).item())
    soft = torch.rand(5, 4, dtype=torch.float64).softmax(-1)
    value = mif.infonce(s, targets=soft)
    assert value.item() == pytest.approx(math.log(4) - F.cross_entropy(s, soft).item())
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64).log()
    value = mif.infonce(s, targets=index, log_prior=prior)  # logit adjustment, as information
    expected = -F.cross_entropy(s + prior, index) - prior[index].mean()
    assert value.item() == pytest.approx(expected.item())
    labels, keys = torch.tensor([0, 0, 1, 2]), torch.randn(5, 4, dtype=torch.float64)
    classes = mif.class_scores(keys, labels, 4)
    assert classes[:, 0].tolist() == pytest.approx(keys[:, :2].exp().mean(1).log().tolist())
    assert torch.isfinite(mif.infonce(classes, targets=torch.zeros(5).long()))


def test_conditioning_by_exclusion_is_the_mean_over_groups():
    torch.manual_seed(0)
    s, group = torch.randn(8, 8), torch.tensor([0, 1] * 4)
    value = mif.infonce(s, exclude=mif.other_condition(group))
    parts = [mif.infonce(s[group == g][:, group == g]) for g in (0, 1)]
    assert value.item() == pytest.approx(torch.stack(parts).mean().item(), abs=1e-6)


def test_gradient_of_mine_uses_the_running_partition():
    scores = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    running = torch.tensor(0.7, dtype=torch.float64)
    (grad,) = torch.autograd.grad(mif.mine(scores, running=running), scores)
    other = (
        mif.plug_in(scores) - (mif.nwj(scores + 1) - mif.plug_in(scores) - 1).neg() / running.exp()
    )
    (expected,) = torch.autograd.grad(other, scores)
    torch.testing.assert_close(grad, expected)


def test_bad_input_is_named():
    s = torch.zeros(3, 3)
    for call, message in (
        (lambda: mif.infonce(), "infonce: expected either `scores`"),
        (lambda: mif.nwj(s, pos=s[0], neg=s), "nwj: expected either"),
        (lambda: mif.nwj(pos=s, neg=s), "expected pos"),
        (lambda: mif.dv(torch.zeros(4, 3)), "without a diagonal"),
        (lambda: mif.dv(s, targets=s.softmax(-1)), "soft `targets`"),
        (lambda: mif.infonce(s, symmetric=True, log_prior=s[0]), "symmetric"),
        (lambda: mif.tuba(s, symmetric=True), "symmetric"),
        (lambda: mif.ialpha(s, alpha=0.0), "alpha"),
        (lambda: mif.fdime(s, divergence="chi"), "divergence"),  # type: ignore[arg-type]
        (lambda: mif.contrast(s, s[:2]), "at least as many keys"),
        (lambda: mif.infonce(s, reduction="max"), "reduction"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_discrete_infomax_is_the_information_of_a_channel():
    flip = 0.1
    logits = torch.tensor([[1 - flip, flip], [flip, 1 - flip]]).log()
    truth = math.log(2) + flip * math.log(flip) + (1 - flip) * math.log(1 - flip)
    for marginal in ("entropy", "kl_uniform"):  # equal where the classes are balanced
        assert mif.discrete_infomax(logits, marginal=marginal).item() == pytest.approx(truth)
    padded = torch.cat([logits, torch.tensor([[9.0, 0.0]])])
    mask = torch.tensor([True, True, False])
    assert mif.discrete_infomax(padded, mask=mask).item() == pytest.approx(truth)
    assert mif.discrete_infomax(padded, mask=mask & False).item() == 0


def test_vib_and_barber_agakov():
    mean, std = torch.randn(7, 3), torch.rand(7, 3) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.5, 2.0)).sum(-1)
    assert mif.vib_kl(mean, std, 0.5, 2.0).item() == pytest.approx(expected.mean().item(), abs=1e-5)
    log_q = torch.tensor([-1.0, -2.0, 7.0])
    value = mif.barber_agakov(log_q, -3.0, mask=torch.tensor([True, True, False]))
    assert value.item() == pytest.approx(1.5)


def test_elbo_terms_sum_to_the_divergence_and_find_the_code():
    """Eight inputs with distant codes: information log 8 per sample, wherever the codes lie."""
    torch.manual_seed(0)
    mean, std = 10 * torch.randn(8, 2), torch.full((8, 2), 0.1)
    z = mean + std * torch.randn(8, 2)
    parts = mif.elbo_terms(z, mean, std, 8)
    normal = torch.distributions.Normal
    whole = (normal(mean, std).log_prob(z) - normal(0.0, 1.0).log_prob(z)).sum(-1).mean()
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-4)
    # Minibatch-weighted sampling with N = B divides by N B: log 64 of the sum over one match.
    assert parts.information.item() == pytest.approx(math.log(64), abs=0.1)


def test_kernel_measures_see_dependence():
    torch.manual_seed(0)
    x, noise = torch.randn(2, 300, 1)
    for measure in (mif.hsic, mif.renyi):
        dependent, independent = measure(x, x + 0.1 * noise), measure(x, noise)
        assert dependent > 4 * abs(independent)
    assert abs(mif.hsic(x, noise)) < 5e-3
    assert mif.kernel_joint_entropy(x, noise) > mif.kernel_joint_entropy(x, x)
    assert mif.decorrelation(x, x) > mif.decorrelation(x, noise)
    circle = F.normalize(torch.randn(200, 2), dim=-1)
    assert mif.uniformity(circle) > mif.uniformity(circle[:1] + 0.01 * circle)
    assert mif.alignment(circle, circle) == 0
    y = x.clone().requires_grad_()
    (mif.hsic(x, y) + mif.renyi(x[:50], y[:50]) + mif.kernel_joint_entropy(x, y)).backward()
    assert torch.isfinite(y.grad).all()


def test_gradient_penalty_is_zero_for_a_unit_slope_only():
    x, y, other = torch.randn(3, 20, 2)
    unit = lambda a, b: (a[:, 0] + b[:, 1]) / math.sqrt(2)  # noqa: E731
    assert mif.gradient_penalty(unit, x, y, other).item() == pytest.approx(0, abs=1e-10)
    steep = mif.gradient_penalty(lambda a, b: 3 * unit(a, b), x, y, other)
    assert steep.item() == pytest.approx(4, abs=1e-4)


def test_derangement_has_no_fixed_point_and_is_fair():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([mif.derangement(4, generator=generator) for _ in range(3000)])
    assert (draws != torch.arange(4)).all()
    assert torch.equal(draws.sort(1).values, torch.arange(4).expand(3000, 4))
    share = (draws[:, 0, None] == torch.arange(1, 4)).float().mean(0)
    assert share.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("extra", [0, 9])
def test_chunks_equal_the_whole(symmetric, extra):
    if symmetric and extra:
        pytest.skip("a queue has no partners")
    torch.manual_seed(0)
    x, y = torch.randn(37, 8), torch.randn(37 + extra, 8)
    results = []
    for chunk in (None, 5, 64):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        t = torch.tensor(0.3, requires_grad=True)
        value = mif.contrast(a, b, temperature=t, cosine=True, symmetric=symmetric, chunk=chunk)
        results.append([value, *torch.autograd.grad(2 * value, [a, b, t])])
    a, b = (F.normalize(v, dim=-1) for v in (x, y))
    dense = mif.infonce(a @ b.T / 0.3, symmetric=symmetric)
    assert results[0][0].item() == pytest.approx(dense.item(), abs=1e-5)
    for other in results[1:]:
        for left, right in zip(results[0], other, strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_ntxent_is_the_cross_entropy_of_simclr():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 4)
    z = F.normalize(torch.cat([x, y]), dim=-1)
    logits = (z @ z.T / 0.5).fill_diagonal_(-math.inf)
    loss = F.cross_entropy(logits, torch.arange(12).roll(6))
    assert mif.ntxent(x, y).item() == pytest.approx(math.log(11) - loss.item(), abs=1e-5)


def test_infonce_is_at_most_the_log_of_the_candidates_whatever_the_scores():
    torch.manual_seed(0)
    for trial in range(200):
        rows, keys = (int(v) for v in torch.randint(2, 12, (2,)))
        size = 10.0 ** (4 * torch.rand(()).item() - 1)
        scores = size * torch.randn(rows, keys)
        positives = torch.rand(rows, keys) < 0.3
        exclude = (torch.rand(rows, keys) < 0.3) & ~positives
        there = torch.rand(keys) < 0.9
        aggregate = ("mean_out", "sum_in")[trial % 2]
        terms = mif.infonce(
            scores, positives=positives, exclude=exclude, key_mask=there, aggregate=aggregate,
            reduction="none",
        )  # fmt: skip
        candidates = (there & ~exclude).sum(1)
        assert (terms <= candidates.clamp_min(1).log() + 1e-5).all()
        weighted = mif.infonce(scores, positives=positives, weight=torch.rand(rows))
        assert weighted <= math.log(keys) + 1e-5


def everything(x, y):
    """Every differentiable function of the sheet, of embeddings [N, d]."""
    scores, index = x @ y.T, torch.arange(len(x))
    std = torch.nn.functional.softplus(y) + 0.1
    values = [bound(scores) for bound in LOWER.values()]
    values += [
        mif.infonce(scores, symmetric=True),
        mif.jsd(scores, focal=2.0),
        mif.infonce(scores, targets=scores.detach().float().softmax(-1)),
        mif.infonce(mif.class_scores(scores, index % 4, 4), targets=index % 4),
        mif.infonce(pos=(x * y).sum(-1), neg=scores),
        mif.mine(scores, running=torch.tensor(0.3)),
        mif.flo(scores, u=(x - y).mean(-1)),
        mif.barber_agakov((x * y).sum(-1), -1.0),
        mif.vib_kl(x, std),
        mif.discrete_infomax(x),
        mif.discrete_infomax(x, marginal="kl_uniform"),
        mif.alignment(x, y),
        mif.uniformity(x),
        mif.kernel_joint_entropy(x, y),
        mif.hsic(x, y),
        mif.renyi(x, y),
        mif.kernel_cca(x, y, ridge=0.3),
        mif.decorrelation(x, y),
        mif.linear_erasure(x, y[:, :2]).square().mean(),
        *mif.elbo_terms(x, y, std, 100, [4, 4]),
        mif.ntxent(x, y),
        mif.contrast(x, y),
        mif.contrast(x, y, symmetric=True, chunk=4, cosine=True, temperature=0.5),
    ]
    return torch.stack([v.float() for v in values])


def test_autocast():
    """Half-precision scores cost their own rounding, and nothing more."""
    torch.manual_seed(0)
    x, y = 0.5 * torch.randn(2, 16, 8)
    a = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        low = everything(a, y)
    low.sum().backward()
    assert a.grad is not None and torch.isfinite(a.grad).all()
    whole = everything(x, y)
    assert ((low - whole).abs() < 0.02 * (1 + whole.abs())).all(), (low - whole).tolist()


def test_compiles_to_one_graph():
    torch.manual_seed(0)
    x, y = 0.5 * torch.randn(2, 16, 8)
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    values = everything(a, y), compiled(b, y)
    torch.testing.assert_close(*values, atol=1e-4, rtol=1e-4)
    grads = [torch.autograd.grad(v.sum(), w)[0] for v, w in zip(values, (a, b), strict=True)]
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-3)


MEASURE = """
import re, torch
from mi import functional
torch.set_num_threads(1)
rows = {rows}
def kilobytes(name):  # of this process; the peak of ru_maxrss would be the parent's, if larger
    return int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
x, y = torch.randn(rows, 128, requires_grad=True), torch.randn(65_536, 128, requires_grad=True)
functional.contrast(x[:64], y[:128]).backward()  # what the first call of everything costs
x.grad = y.grad = None
before = kilobytes("VmRSS")
functional.contrast(x, y, temperature=0.1).backward()
print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.parametrize("rows", [512, pytest.param(65_536, marks=pytest.mark.full)])
def test_memory_of_many_negatives(rows):
    """65,536 negatives of size 128: within 256 MB beyond the inputs, gradients included."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(rows=rows)], text=True, capture_output=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 256


def _rank(rank: int, folder: str, symmetric: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{symmetric}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    x, y = torch.randn(2, 12, 4)
    whole = [v.clone().requires_grad_() for v in (x, y)]
    mine = [v.chunk(2)[rank].clone().requires_grad_() for v in (x, y)]
    mif.contrast(*whole, symmetric=symmetric).backward()
    value = mif.contrast(*mine, symmetric=symmetric, gather=True)
    value.backward()
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    expected = mif.contrast(*(v.detach() for v in whole), symmetric=symmetric)
    torch.testing.assert_close(total / 2, expected)
    for part, full in zip(mine, whole, strict=True):  # DDP averages: each process's share is twice
        torch.testing.assert_close(part.grad / 2, full.grad.chunk(2)[rank])
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("symmetric", [False, True])
def test_gathered_over_processes_equals_one_process(tmp_path, symmetric):
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(_rank, (str(tmp_path), symmetric), nprocs=2)  # type: ignore[attr-defined]


PLAIN = {
    **LOWER,
    "mine": functools.partial(mif.mine, running=torch.tensor(0.3)),
    "flo": functools.partial(mif.flo, u=torch.linspace(-1, 1, 7, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_square_matrix_is_the_general_case(name):
    """Values, pointwise terms and gradients of the fast path are those of explicit positives."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(7, 7, generator=generator, dtype=torch.float64)
    for reduction in ("mean", "none"):
        both = [scores.clone().requires_grad_() for _ in range(2)]
        plain = PLAIN[name](both[0], reduction=reduction)
        general = PLAIN[name](both[1], reduction=reduction, positives=torch.eye(7) > 0)
        torch.testing.assert_close(plain, general)
        plain.sum().backward(), general.sum().backward()
        torch.testing.assert_close(both[0].grad, both[1].grad)


def test_a_positive_that_overflows_leaves_the_negatives_alone():
    scores = torch.zeros(5, 5).fill_diagonal_(1e3)
    assert mif.fdime(scores, divergence="kl").item() == pytest.approx(1000)
    assert mif.nwj(scores).item() == pytest.approx(1000 - math.exp(-1))


def test_one_pair_without_others_counts_nothing():
    for bound in (mif.dv, mif.nwj, mif.jsd, mif.smile, mif.club, mif.fdime):
        assert bound(torch.ones(1, 1)).item() == 0
