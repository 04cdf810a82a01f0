"""Maximum likelihood: the empirical log-likelihood, its closed-form maxima, its loss.

The mean of log p(x_i) over a data set is -H(data) - KL(data || p): to maximise the one
is to minimise the other.

The closed forms look at the values of the data where they are known, which is outside
jit and vmap; inside, bad values give nan or infinite parameters instead of an error.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.checks import at_least
from vi_jax.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    FullNormal,
    Normal,
)
from vi_jax.types import Array, Batch, Key, LossFn, Metrics, Params


def log_likelihood(d: Distribution, x: Array) -> Array:
    """The empirical log-likelihood, mean_i log d(x_i) over x [n, ...], [] in nats.

    Raises ValueError where n is 0.
    """
    if jnp.ndim(x) == 0 or len(x) == 0:
        raise ValueError(f"x must be [n, ...] with n at least 1, got {jnp.shape(x)}")
    return jnp.mean(jax.vmap(d.log_prob)(x))


def normal(x: Array) -> Normal:
    """The Normal of highest likelihood: loc = mean x_i, scale^2 = mean (x_i - loc)^2.

    x is [n, ...], n >= 2; the variance is divided by n. Raises ValueError where x is
    empty or not finite, or a column is constant: as its scale falls to 0 the likelihood
    grows without end.
    """
    x = _data(x)
    if len(x) == 1:
        raise ValueError("one point has no variance: at least 2 are needed")
    constant = jnp.max(x, 0) == jnp.min(x, 0)
    _refuse(
        constant,
        "the columns {} of x are constant, so their likelihood has no maximum: drop "
        "them, or fix their scale",
    )
    loc = jnp.mean(x, 0)
    width = jnp.max(abs(x - loc[None]), 0)  # with it no square over- or underflows
    u = (x - loc[None]) / width[None]
    return Normal(loc, width * jnp.sqrt(jnp.mean(u**2, 0)))


def full_normal(x: Array) -> FullNormal:
    """The FullNormal of highest likelihood: the mean and the covariance divided by n.

    x is [n, d], n > d. The factor comes from the QR decomposition of the standardised
    data, so the covariance, whose condition number is the square, is never formed.
    Raises ValueError as `normal` does, and where the covariance is not positive
    definite: n <= d, or columns that are linear combinations of others.
    """
    x = _data(x)
    if x.ndim != 2:
        raise ValueError(f"x must be [n, d], got {x.shape}")
    n, d = x.shape
    if n <= d:
        raise ValueError(
            f"the covariance of {n} points in {d} dimensions is not positive definite: "
            f"it takes at least {d + 1} points, or `normal`, or fewer columns"
        )
    each = normal(x)
    r = jnp.linalg.qr((x - each.loc[None]) / each.scale[None], mode="r") / n**0.5
    pivots = jnp.diagonal(r)  # what the columns before leave of each, its sign apart
    # What the rounding of x itself leaves of a column that is a combination of others.
    rounding = jnp.finfo(x.dtype).eps * jnp.max(jnp.max(abs(x), 0) / each.scale)
    _refuse(
        abs(pivots) <= 8 * rounding,
        "the covariance of x is not positive definite: the columns {} are linear "
        "combinations of those before them. Drop them, or use `normal`",
    )
    return FullNormal(each.loc, each.scale[:, None] * r.T * jnp.sign(pivots)[None, :])


def bernoulli(x: Array) -> Bernoulli:
    """The Bernoulli of highest likelihood: logits = log sum x_i - log sum (1 - x_i).

    x is [n, ...] of 0 and 1, or of means in between, such as grey values. Raises
    ValueError where x is empty, not finite or outside [0, 1], or where a column is all
    0 or all 1: its maximum lies at an infinite logit, at which log_prob is nan.
    """
    x = _data(x)
    _refuse(
        _of_row((x < 0) | (x > 1)),
        "the rows {} of x have values outside [0, 1]: scale them (bytes: x / 255)",
    )
    ones, zeros = jnp.sum(x, 0), jnp.sum(1 - x, 0)
    _refuse(
        (ones == 0) | (zeros == 0),
        "the columns {} of x are all 0 or all 1, so their logits are infinite: drop "
        "them, or append a row of 0s and one of 1s (Laplace's rule)",
    )
    return Bernoulli(jnp.log(ones) - jnp.log(zeros))


def categorical(x: Array, num_classes: int) -> Categorical:
    """The Categorical of highest likelihood: logits = log share of each class.

    x is int [n] in [0, num_classes). A class that was never seen gets the logit -inf:
    that is the maximum, and log_prob, kl and entropy are right there, but an unseen
    class in new data costs infinitely many nats. Appending jnp.arange(num_classes) to
    x, one point a class, avoids that (Laplace's rule).
    Raises ValueError where x is empty, no integers, or outside [0, num_classes).
    """
    x = jnp.asarray(x)
    if x.ndim != 1 or x.size == 0 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"x must be integers [n], n at least 1, got {x.dtype} {list(x.shape)}"
        )
    # Else the number of classes would wrap in a type of 8 bits.
    x = x.astype(jnp.promote_types(x.dtype, jnp.int32))
    _refuse(
        (x < 0) | (x >= num_classes),
        f"the labels at {{}} lie outside [0, {num_classes})",
    )
    counts = jnp.bincount(x, length=num_classes).astype(float)
    return Categorical(jnp.log(counts) - jnp.log(x.size))


class Moments(NamedTuple):
    """All that a Gaussian's likelihood knows of data x [n, D]."""

    mean: Array  # [D]
    root: Array  # [min(n, D), D], root^T root is the covariance, divided by n


def moments(x: Array) -> Moments:
    """The mean and a root of the covariance of x [n, D], without squaring: by QR.

    The small singular values of the root are good to 1e-7 of the largest in float32; an
    eigenvalue of a covariance matrix, their square, only to 1e-7 of the largest square.
    Raises ValueError where x is not [n, D] of at least two rows, has a NaN or an
    infinity (its place is named), or nothing varies.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise ValueError(
            f"x has shape {list(x.shape)}: it must be [n, D], n >= 2 examples by row"
        )
    finite = np.isfinite(x)
    if not finite.all():
        i, j = divmod(int(np.argmin(finite)), x.shape[1])
        raise ValueError(f"x[{i}, {j}] is {x[i, j]}: every number must be finite")
    if (x == x[:1]).all():
        raise ValueError("all rows of x are the same: nothing varies")
    x = jnp.asarray(x)
    # LAPACK has no half precision.
    return _moments(x.astype(jnp.promote_types(jnp.result_type(x, float), "float32")))


@jax.jit
def _moments(x: Array) -> Moments:
    mean = jnp.mean(x, 0)
    mean = mean + jnp.mean(x - mean[None], 0)  # what the first sum rounded off
    return Moments(mean, jnp.linalg.qr((x - mean[None]) / len(x) ** 0.5, mode="r"))


def ppca(x: Array, latents: int) -> Params:
    """The parameters of isotropic noise at which log p(x) over x [n, D] is greatest.

    mu = the mean, s^2 = the mean of the D - d smallest eigenvalues of the covariance
    (divided by n), W = U (Lambda - s^2 I)^(1/2) of the d largest: unique up to a
    rotation of the latents, which W leaves out by having orthogonal columns. Constant
    columns are allowed. For D > n too. x is data, not to be traced.
    Raises ValueError as `moments` and `check_latents` do.
    Ref: Tipping & Bishop 1999.
    """
    found = moments(x)
    check_latents(found.root, latents)
    return _closed_form(found, latents)


@functools.partial(jax.jit, static_argnums=1)
def _closed_form(found: Moments, latents: int) -> Params:
    _, singular, axes = jnp.linalg.svd(found.root, full_matrices=False)
    noise_var = jnp.sum(singular[latents:] ** 2) / (found.mean.size - latents)
    excess = jnp.maximum(singular[:latents] ** 2 - noise_var, 0.0)
    return {
        "weight": axes[:latents].T * jnp.sqrt(excess)[None, :],
        "mean": found.mean,
        "log_noise": 0.5 * jnp.log(noise_var),
    }


def check_latents(root: Array, latents: int) -> None:
    """Raise ValueError where as many latents leave no noise: p(x) has no maximum.

    root is that of `moments`; its rank is at most D, and n - 1.
    """
    at_least(1, latents=latents)
    rank = int(np.linalg.matrix_rank(np.asarray(root)))
    if latents >= rank:
        raise ValueError(
            f"latents is {latents}: it must be below {rank}, the number of directions "
            f"in which these data of {root.shape[1]} columns vary, so that some noise "
            "is left; pass fewer latents or more data"
        )


def _data(x: Array) -> Array:
    """x [n, ...] as floats of at least 32 bits, not empty and, where known, finite."""
    x = jnp.asarray(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"x must be [n, ...] and not empty, got {list(x.shape)}")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"x must be real, got {x.dtype}")
    x = x.astype(jnp.promote_types(jnp.result_type(x, float), jnp.float32))
    _refuse(
        _of_row(~jnp.isfinite(x)),
        f"the rows {{}} of x are not finite, as {x.dtype}: drop or correct them",
    )
    return x


def _of_row(bad: Array) -> Array:
    return jnp.any(bad.reshape(len(bad), -1), axis=1)


def _refuse(bad: Array, message: str) -> None:
    """Raise `message` with the places where `bad` holds, the first five by name."""
    if isinstance(bad, jax.core.Tracer) or not bad.any():
        return
    places = np.argwhere(np.atleast_1d(bad))
    named = [tuple(p) if len(p) != 1 else p[0] for p in places[:5].tolist()]
    dots = ", ..." if len(places) > 5 else ""
    raise ValueError(message.format("[" + ", ".join(map(str, named)) + dots + "]"))


def negative_log_likelihood(
    distribution: Callable[[Params], Distribution],
    *,
    preprocess: Callable[[Key, Batch], Array] = lambda key, batch: batch["x"],
) -> LossFn:
    """-mean_i log p(x_i; params) of a batch, in nats; lower is better.

    `distribution(params)` is the model's p(x), such as `ExactModel.marginal`;
    `preprocess(key, batch) -> x [n, ...]`. The metric is `log_likelihood`.
    """

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        value = log_likelihood(distribution(params), preprocess(key, batch))
        return -value, {"log_likelihood": value}

    return loss


def forward_kl_loss(
    target: Distribution, model: Callable[[Params], Distribution], *, num_samples: int
) -> LossFn:
    """KL(target || model) by samples of the target, in nats: covers its mass.

    Its gradient is that of maximum likelihood on fresh data. The batch is not used:
    `data.batches.no_data()` streams it. Raises ValueError below 1 sample.
    """
    at_least(1, num_samples=num_samples)

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        del batch
        x = jax.vmap(target.sample)(jax.random.split(key, num_samples))
        value = log_likelihood(target, x) - log_likelihood(model(params), x)
        return value, {"kl": value}

    return loss


def reverse_kl_loss(
    target: Distribution, model: Callable[[Params], Distribution], *, num_samples: int
) -> LossFn:
    """KL(model || target) by reparametrised samples of the model: seeks a mode.

    This is variational inference, in nats. The batch is not used:
    `data.batches.no_data()` streams it. Raises ValueError below 1 sample, or where
    samples of the model carry no gradient.
    """
    at_least(1, num_samples=num_samples)

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        del batch
        d = model(params)
        if not d.pathwise:
            raise ValueError(f"samples of {type(d).__name__} carry no gradient")
        x = jax.vmap(d.sample)(jax.random.split(key, num_samples))
        value = log_likelihood(d, x) - log_likelihood(target, x)
        return value, {"kl": value}

    return loss
