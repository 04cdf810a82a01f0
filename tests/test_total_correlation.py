"""The KL in three parts: exactly over n examples, and estimated from a batch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import special, stats

from vi_jax.distributions import FullNormal, Mixture, Normal
from vi_jax.evaluation import kl_split, split_rate
from vi_jax.total_correlation import (
    batch_kl_parts,
    minibatch_stratified,
    minibatch_weighted,
    permute_latents,
)

RNG = np.random.default_rng(0)
LOC, SCALE = RNG.normal(0, 1.2, (7, 3)), np.exp(RNG.normal(-0.7, 0.4, (7, 3)))
PRIOR_LOC, PRIOR_SCALE = np.array([0.2, -0.1, 0.0]), np.array([1.0, 0.8, 1.3])


def normal(loc, scale):
    return Normal(jnp.array(loc, float), jnp.array(scale, float))


def prior():
    return normal(PRIOR_LOC, PRIOR_SCALE)


@functools.cache
def fast(function, **options):
    return quick_jit(functools.partial(function, **options))


def near(estimate, expected, *, atmost):
    """Within 4 of its standard errors, which are small enough to mean something."""
    assert 0 < np.max(estimate.stderr) < atmost
    assert np.all(abs(estimate.value - expected) < 4 * estimate.stderr)


# ---------------------------------------------------------------------- exactly


def test_the_parts_of_a_gaussian_channel_are_those_of_its_gaussian_aggregate():
    """z = A x + s e, x ~ N(0, I), so that z ~ N(0, S), S = A A^T + diag(s^2).

    TC = -log det corr(S) / 2, I = (log det S - sum log s^2) / 2.
    """
    a, s, n = np.array([[0.9, 0.3], [1.1, -0.2]]), np.array([0.5, 0.7]), 900
    # Equally likely places of N(0, I), 30 x 30, so that q(z) is near its limit.
    line = stats.norm.ppf((np.arange(30) + 0.5) / 30)
    line /= line.std()
    x = np.stack(np.meshgrid(line, line), -1).reshape(n, 2)
    split = fast(kl_split, num_samples=4)(
        jax.random.key(0), normal(x @ a.T, np.tile(s, (n, 1))), normal([0, 0], [1, 1])
    )
    covariance = a @ a.T + np.diag(s**2)
    variance, log_det = np.diag(covariance), np.linalg.slogdet(covariance)[1]
    correlation = (np.log(variance).sum() - log_det) / 2
    assert correlation > 0.25
    near(split.total_correlation, correlation, atmost=0.02)
    information = (log_det - 2 * np.log(s).sum()) / 2
    near(split.mutual_information, information, atmost=0.02)
    marginal = (variance - 1 - np.log(variance)) / 2
    near(split.marginal_kl, marginal, atmost=0.01)
    near(split.dimension_wise_kl, marginal.sum(), atmost=0.01)


def test_the_parts_of_two_components_are_their_integrals():
    loc = np.array([[-0.8, 0.5], [1.1, -0.9]])
    scale = np.array([[0.5, 0.9], [1.2, 0.4]])
    p = stats.norm([0.3, -0.2], [1.5, 0.8])
    line = np.linspace(-9, 9, 401)
    cell = line[1] - line[0]
    z = np.stack(np.meshgrid(line, line, indexing="ij"), -1)  # [g, g, 2]
    # [2, g, g] densities of the components, [g, g] of the aggregate.
    joint = np.stack(
        [stats.norm(*q).pdf(z).prod(-1) for q in zip(loc, scale, strict=True)]
    )
    aggregate = joint.mean(0)
    marginals = [aggregate.sum(1 - j) * cell for j in (0, 1)]
    kl = lambda q, p: special.rel_entr(q, p).sum()
    information = np.mean([kl(q, aggregate) for q in joint]) * cell**2
    correlation = kl(aggregate, np.outer(*marginals)) * cell**2
    of_prior = p.pdf(np.stack([line, line], -1)).T
    marginal = np.array([kl(marginals[j], of_prior[j]) * cell for j in (0, 1)])
    assert 0.1 < correlation < np.log(2)
    split = fast(kl_split, num_samples=20_000)(
        jax.random.key(1), normal(loc, scale), normal([0.3, -0.2], [1.5, 0.8])
    )
    near(split.mutual_information, information, atmost=0.005)
    near(split.total_correlation, correlation, atmost=0.005)
    near(split.marginal_kl, marginal, atmost=0.01)
    near(split.rate, information + correlation + marginal.sum(), atmost=0.01)


SPLIT = functools.partial(fast, kl_split, num_samples=300, chunk=3)


def test_the_parts_add_up_to_the_rate_and_refine_the_two_of_split_rate():
    """With the same key the draws are those of `split_rate`."""
    with jax.enable_x64(True):
        q, p = normal(LOC, SCALE), prior()
        key = lambda: jax.random.key(2)
        split = SPLIT()(key(), q, p)
        two = fast(split_rate, num_samples=300)(key(), q, p)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-12)
        close(split.rate, two.rate)
        close(split.mutual_information, two.mutual_information)
        rest = split.total_correlation.value + split.dimension_wise_kl.value
        close(rest, two.aggregate_kl.value)
        close(split.mutual_information.value + rest, split.rate.value)
        close(split.marginal_kl.value.sum(), split.dimension_wise_kl.value)
        assert rest.dtype == jnp.float64
        ratio, shift = SCALE / PRIOR_SCALE, (LOC - PRIOR_LOC) / PRIOR_SCALE
        rate = 0.5 * (ratio**2 + shift**2 - 1 - 2 * np.log(ratio)).sum(1).mean()
        near(split.rate, rate, atmost=0.1)


def test_equal_posteriors_share_nothing_and_keep_all_their_kl():
    """Their aggregate is one diagonal Gaussian, which is the product of its latents."""
    with jax.enable_x64(True):
        same = normal(np.tile(LOC[0], (7, 1)), np.tile(SCALE[0], (7, 1)))
        split = SPLIT()(jax.random.key(3), same, prior())
        for part in (split.mutual_information, split.total_correlation):
            np.testing.assert_allclose(part, 0.0, atol=1e-13)
        np.testing.assert_allclose(split.dimension_wise_kl, split.rate, rtol=1e-12)


def test_latents_that_are_copies_share_all_they_say():
    """Far components along the diagonal: I = log n, TC = (d - 1) log n, d = 3."""
    with jax.enable_x64(True):
        loc = 1e3 * np.tile(np.arange(7)[:, None], (1, 3)) + LOC
        split = SPLIT()(jax.random.key(4), normal(loc, SCALE), prior())
        for part, times in (
            (split.mutual_information, 1),
            (split.total_correlation, 2),
        ):
            np.testing.assert_allclose(part.value, times * np.log(7), rtol=1e-12)


def test_the_split_is_for_diagonal_gaussians():
    key, q = jax.random.key(0), normal(LOC, SCALE)
    full = FullNormal(q.loc, jnp.tile(jnp.eye(3), (7, 1, 1)))
    for posteriors, p in ((full, prior()), (q, Mixture(jnp.zeros(7), q))):
        with pytest.raises(ValueError, match="diagonal Gaussians only"):
            kl_split(key, posteriors, p)
    with pytest.raises(ValueError, match=r"posteriors \[n, d\] and a prior \[d\]"):
        kl_split(key, prior(), prior())
    with pytest.raises(ValueError, match="examples must be at least 2, got 1"):
        kl_split(key, normal(LOC[:1], SCALE[:1]), prior())


# ------------------------------------------------------------------ from a batch


N, M = 5, 3  # all data, and a batch of them


def mean_densities(log_weights):
    """q(z) [N] and q(z_j) [N, d] at one z ~ q(z | x_i) for each i, and these z.

    As the parts of the first row say, averaged over all batches with x_i first.
    """
    others = lambda i: itertools.permutations(set(range(N)) - {i}, M - 1)
    batches = np.array([[(i, *r) for r in others(i)] for i in range(N)])  # [N, 12, M]
    z = LOC[:N] + SCALE[:N] * np.random.default_rng(1).normal(size=(N, 3))
    of_batch = functools.partial(batch_kl_parts, num_data=N, log_weights=log_weights)
    rows = jnp.array(np.tile(z[:, None], (1, M, 1)), float)
    over_batches = jax.vmap(lambda q, z: of_batch(q, prior(), z), in_axes=(0, None))
    q = normal(LOC[batches], SCALE[batches])
    parts = quick_jit(jax.vmap(over_batches))(q, rows)
    information, correlation, marginal = (np.asarray(a)[:, :, 0] for a in parts)
    log_q = stats.norm(LOC[:N], SCALE[:N]).logpdf(z).sum(-1)[:, None]
    log_p = stats.norm(PRIOR_LOC, PRIOR_SCALE).logpdf(z)[:, None]
    joint, latents = np.exp(log_q - information), np.exp(marginal + log_p)
    between = np.log(joint) - np.log(latents).sum(-1)
    np.testing.assert_allclose(correlation, between, rtol=1e-9, atol=1e-12)
    return joint.mean(1), latents.mean(1), z


def test_stratified_densities_are_unbiased_over_all_batches_and_weighted_are_not():
    with jax.enable_x64(True):
        stratified = mean_densities(minibatch_stratified)
        weighted = mean_densities(minibatch_weighted)
    z = stratified[-1]
    each = stats.norm(LOC[:N], SCALE[:N]).pdf(z[:, None])  # [i, j, d]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9)
    close(stratified[0], each.prod(-1).mean(1))
    close(stratified[1], each.mean(1))
    # q_i / (N M), and of every other example (M - 1) / (N - 1) times as much.
    share = np.where(np.eye(N), 1, (M - 1) / (N - 1))[:, :, None] / (N * M)
    close(weighted[0], (share * each.prod(-1, keepdims=True)).sum((1, 2)))
    close(weighted[1], (share * each).sum(1))
    assert np.all(weighted[0] < 0.7 * stratified[0])


def test_a_batch_of_all_data_is_exact_by_strata_and_log_n_off_by_weights():
    z = LOC + SCALE * RNG.normal(size=LOC.shape)
    n, d = LOC.shape
    log_q = stats.norm(LOC, SCALE).logpdf(z[:, None])  # [i, j, d]
    log_aggregate = special.logsumexp(log_q.sum(-1), 1) - np.log(n)
    log_marginals = special.logsumexp(log_q, 1) - np.log(n)
    own = np.diagonal(log_q).sum(0)
    exact = (
        own - log_aggregate,
        log_aggregate - log_marginals.sum(1),
        log_marginals - stats.norm(PRIOR_LOC, PRIOR_SCALE).logpdf(z),
    )
    with jax.enable_x64(True):
        rows = jnp.array(z, float)
        for log_weights, off in ((minibatch_stratified, 0), (minibatch_weighted, 1)):
            parts = fast(batch_kl_parts, num_data=n, log_weights=log_weights)(
                normal(LOC, SCALE), prior(), rows
            )
            for got, expected, times in zip(parts, exact, (1, d - 1, -1), strict=True):
                shifted = expected + off * times * np.log(n)
                np.testing.assert_allclose(got, shifted, rtol=1e-10, atol=1e-12)


def correlated(n):
    """Posteriors of n examples whose three latents share a cause."""
    rng = np.random.default_rng(1)
    cause = rng.normal(size=(n, 1))
    loc = 0.8 * cause + 0.5 * rng.normal(size=(n, 3))
    return loc, np.full((n, 3), 0.4)


def test_the_error_of_strata_shrinks_with_the_batch():
    """Against the exact parts at the same z, with 2048 draws for each batch size."""
    n = 512
    loc, scale = correlated(n)
    rng = np.random.default_rng(2)
    order = np.concatenate([rng.permutation(n) for _ in range(4)])
    z = loc[order] + scale[order] * rng.normal(size=(4 * n, 3))
    p = lambda: normal(np.zeros(3), np.ones(3))

    def parts(m):
        """(I, TC) of each draw, from batches of m."""
        batch = lambda a: jnp.array(a.reshape(-1, m, 3), float)
        q = Normal(batch(loc[order]), batch(scale[order]))
        of_batch = lambda q, z: batch_kl_parts(q, p(), z, num_data=n)
        got = quick_jit(jax.vmap(of_batch))(q, batch(z))
        return np.stack([np.ravel(got.mutual_information), np.ravel(got[1])])

    exact = parts(n)
    error = {m: parts(m) - exact for m in (8, 128)}
    for part in (0, 1):
        size = [np.sqrt((error[m][part] ** 2).mean()) for m in error]
        assert size[0] > 3 * size[1]
        bias = [abs(error[m][part].mean()) for m in error]
        assert bias[1] < 0.08 * exact[part].mean() < bias[0]


@pytest.mark.parametrize("log_weights", [minibatch_stratified, minibatch_weighted])
def test_a_batch_above_the_data_is_an_error(log_weights):
    with pytest.raises(ValueError, match="num_data, the size of the training set"):
        log_weights(8, 7)
    with pytest.raises(ValueError, match="a batch of at least"):
        log_weights(1 if log_weights is minibatch_stratified else 0, 7)


# ---------------------------------------------------------------- permuted latents


def test_permuted_latents_keep_each_latent_and_lose_what_they_share():
    n = 4000
    cause = np.random.default_rng(3).normal(size=n)
    z = jnp.array(np.stack([cause, cause + 100, -cause], 1), float)
    permuted = np.asarray(quick_jit(permute_latents)(jax.random.key(5), z))
    np.testing.assert_array_equal(np.sort(permuted, 0), np.sort(np.asarray(z), 0))
    left = np.corrcoef(permuted.T)[np.triu_indices(3, 1)] * np.sqrt(n)
    assert np.all(abs(left) < 4)  # standard errors; those of z are 63
