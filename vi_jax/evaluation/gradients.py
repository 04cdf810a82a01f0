"""How noisy a gradient estimator is: its mean, variance and signal-to-noise ratio."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vi_jax.divergences import Estimate
from vi_jax.types import Array, Key


class GradientMoments(NamedTuple):
    """Moments of g = gradient(key) over keys; pytrees as g, with standard errors."""

    mean: Estimate  # E g of each coordinate
    variance: Estimate  # Var g of each coordinate, for one draw
    trace: Estimate  # [] for each leaf: the trace of its covariance


class PowerLaw(NamedTuple):
    """y = factor x^slope, all [], nan where y^2 was not found to be positive."""

    slope: Array
    low: Array  # end of the confidence interval of the slope
    high: Array
    factor: Array


def gradient_moments(
    gradient: Callable[[Key], Any],
    key: Key,
    *,
    num_draws: int = 10_000,
    chunk: int = 100,
) -> GradientMoments:
    """Mean and variance of gradient(key), a pytree, over num_draws independent keys.

    `chunk` draws are held at a time, so memory does not grow with num_draws. Mean and
    variance are the unbiased ones of all draws; the error of a variance, and of a
    trace, whose coordinates may depend on each other, is from their spread over chunks
    and assumes no distribution.
    Raises ValueError where chunk is below 2 or num_draws is not 2 chunks or more.
    """
    num_chunks, rest = divmod(num_draws, chunk) if chunk > 1 else (0, 0)
    if num_chunks < 2 or rest:
        raise ValueError(
            f"num_draws is {num_draws} and chunk {chunk}: num_draws must be a multiple "
            "of chunk, of 2 chunks or more, and chunk at least 2"
        )

    def of_chunk(i: Array) -> tuple[Any, Any, Any]:
        draws = jax.vmap(gradient)(jax.random.split(jax.random.fold_in(key, i), chunk))
        mean = jax.tree.map(lambda a: jnp.mean(a, 0), draws)
        variance = jax.tree.map(lambda a: jnp.var(a, 0, ddof=1), draws)
        return mean, variance, jax.tree.map(jnp.sum, variance)

    (mean, within, _), (between, *spread) = _welford(of_chunk, num_chunks)
    variance = jax.tree.map(
        lambda w, b: (num_chunks * (chunk - 1) * w + chunk * b) / (num_draws - 1),
        within,
        between,
    )
    error = lambda tree, n: jax.tree.map(lambda v: jnp.sqrt(v / n), tree)
    over_chunks = [error(tree, (num_chunks - 1) * num_chunks) for tree in spread]
    return GradientMoments(
        Estimate(mean, error(variance, num_draws)),
        Estimate(variance, over_chunks[0]),
        Estimate(jax.tree.map(jnp.sum, variance), over_chunks[1]),
    )


def _welford(f: Callable[[Array], Any], n: int) -> tuple[Any, Any]:
    """The mean of the pytrees f(0) ... f(n - 1), and the sum of squares about it."""

    def add(state: tuple[Any, Any], i: Array) -> tuple[tuple[Any, Any], None]:
        old, squares = state
        value = f(i)
        mean = jax.tree.map(lambda m, v: m + (v - m) / (i + 1), old, value)
        square = lambda s, v, m, new: s + (v - m) * (v - new)
        return (mean, jax.tree.map(square, squares, value, old, mean)), None

    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(f, jnp.arange(n)[0])
    )
    return jax.lax.scan(add, (zeros, zeros), jnp.arange(n))[0]


def squared_snr(mean: Estimate, variance: Array) -> Array:
    """The squared signal-to-noise ratio (E g)^2 / Var g of each coordinate, no unit.

    `mean` and `variance` [...] are of `gradient_moments`. The ratio is
    (mean^2 - stderr^2) / variance: the square of a noisy mean is too large by
    stderr^2, without which pure noise would seem to have a signal. Right on average
    (to 2 / num_draws of itself), so average it, over coordinates and repeats, before
    the root is taken; a single one may be below 0. Estimators that are unbiased for
    one gradient share the signal: `mean` may come from the least noisy of them.
    Ref: Rainforth et al. 2018, arXiv:1802.04537, equation 7.
    """
    return (mean.value**2 - mean.stderr**2) / variance


def fit_power_law(
    key: Key, x: Array, squares: Array, *, num_resamples: int = 2000
) -> PowerLaw:
    """The line through log y against log x, where y^2 is the mean of squares [r, m].

    x is [m]; row i of squares is all that repeat i says of y^2 at each x. The 95%
    interval is of the bootstrap over rows, the only unit that is independent: a row
    shares its parameters and its example over all x and coordinates. It covers 93%
    from 30 rows. nan where a mean square is not positive: take more draws.
    Raises ValueError on other shapes, r < 2 or m < 2. Ref: Efron 1979.
    """
    if squares.ndim != 2 or x.shape != squares.shape[1:] or min(squares.shape) < 2:
        raise ValueError(
            f"x and squares must be [m] and [r, m] with r and m at least 2, got "
            f"{x.shape} and {squares.shape}"
        )
    log_x = jnp.log(x.astype(squares.dtype))

    def fit(rows: Array) -> tuple[Array, Array]:
        log_y = 0.5 * jnp.log(jnp.mean(rows, 0))
        centred = log_x - jnp.mean(log_x)
        slope = centred @ log_y / (centred @ centred)
        return slope, jnp.exp(jnp.mean(log_y) - slope * jnp.mean(log_x))

    r = len(squares)
    resamples = jax.random.randint(key, (num_resamples, r), 0, r)
    slopes = jax.lax.map(lambda rows: fit(squares[rows])[0], resamples)
    low, high = jnp.quantile(slopes, jnp.array([0.025, 0.975], slopes.dtype))
    slope, factor = fit(squares)
    return PowerLaw(slope, low, high, factor)
