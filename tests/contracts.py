"""Rows that the contract tests run over: to cover a new thing, add its row."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from scipy import special, stats

from vi_jax import bounds, distributions, estimators
from vi_jax.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    FullNormal,
    Gamma,
    JointBernoulli,
    Mixture,
    Normal,
)
from vi_jax.model import Model
from vi_jax.models import linear_gaussian

# Compiling is most of the time that these tests take.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def examples(number):
    """Draws that are the same each time, in as long as they take."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


# ---------------------------------------------------------------- distributions


class DistributionRow(NamedTuple):
    """A distribution and what float64 says of it, on events that cover its support."""

    make: Callable[[], distributions.Distribution]  # in the current default dtype
    events: np.ndarray  # [m, ...], a fine grid or every outcome
    cell: float  # the volume of one event: sum of cell * p(event) is 1
    log_prob: np.ndarray  # [m], by scipy
    statistic: Callable  # event -> [s], whose mean is `mean()`


def _grid(half_width: float = 9.0, points: int = 241) -> tuple[np.ndarray, float]:
    line = np.linspace(-half_width, half_width, points)
    x, y = np.meshgrid(line, line, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], -1), float(line[1] - line[0]) ** 2


def _plain(x):
    return x


def normal_row(loc, scale) -> DistributionRow:
    events, cell = _grid()
    return DistributionRow(
        lambda: Normal(jnp.array(loc, float), jnp.array(scale, float)),
        events,
        cell,
        stats.norm(loc, scale).logpdf(events).sum(-1),
        _plain,
    )


def full_normal_row(loc, scale_tril) -> DistributionRow:
    events, cell = _grid()
    covariance = np.array(scale_tril) @ np.array(scale_tril).T
    return DistributionRow(
        lambda: FullNormal(jnp.array(loc, float), jnp.array(scale_tril, float)),
        events,
        cell,
        stats.multivariate_normal(loc, covariance).logpdf(events),
        _plain,
    )


def bernoulli_row(logits) -> DistributionRow:
    outcomes = np.stack(np.meshgrid(*[[0.0, 1.0]] * len(logits)), -1)
    events = outcomes.reshape(-1, len(logits))
    return DistributionRow(
        lambda: Bernoulli(jnp.array(logits, float)),
        events,
        1.0,
        stats.bernoulli(special.expit(logits)).logpmf(events).sum(-1),
        _plain,
    )


def categorical_row(logits) -> DistributionRow:
    return DistributionRow(
        lambda: Categorical(jnp.array(logits, float)),
        np.arange(len(logits)),
        1.0,
        special.log_softmax(logits),
        lambda x: jax.nn.one_hot(x, len(logits)),
    )


def joint_bernoulli_row(logits) -> DistributionRow:
    coins = len(logits).bit_length() - 1
    events = np.array([[i >> j & 1 for j in range(coins)] for i in range(len(logits))])
    return DistributionRow(
        lambda: JointBernoulli(jnp.array(logits, float)),
        events.astype(float),
        1.0,
        special.log_softmax(logits),
        _plain,
    )


def gamma_row(concentration, rate) -> DistributionRow:
    line = np.linspace(0, 40, 20_001)[1:]
    return DistributionRow(
        lambda: Gamma(jnp.array([concentration], float), jnp.array([rate], float)),
        line[:, None],
        float(line[1] - line[0]),
        stats.gamma(concentration, scale=1 / rate).logpdf(line),
        _plain,
    )


def beta_row(a, b) -> DistributionRow:
    line = np.linspace(0, 1, 5_001)[1:-1]
    return DistributionRow(
        lambda: Beta(jnp.array([a], float), jnp.array([b], float)),
        line[:, None],
        float(line[1] - line[0]),
        stats.beta(a, b).logpdf(line),
        _plain,
    )


def mixture_row(logits, loc, scale) -> DistributionRow:
    events, cell = _grid()
    each = stats.norm(np.array(loc), np.array(scale)).logpdf(events[:, None]).sum(-1)
    return DistributionRow(
        lambda: Mixture(
            jnp.array(logits, float),
            Normal(jnp.array(loc, float), jnp.array(scale, float)),
        ),
        events,
        cell,
        special.logsumexp(special.log_softmax(logits) + each, axis=-1),
        _plain,
    )


DISTRIBUTIONS = {
    "normal": normal_row([0.3, -1.2], [0.5, 1.1]),
    "full_normal": full_normal_row([0.7, -0.4], [[0.8, 0.0], [-0.9, 0.6]]),
    "bernoulli": bernoulli_row([-1.3, 0.4, 2.2]),
    "categorical": categorical_row([0.2, -1.0, 1.5, 0.7]),
    "joint_bernoulli": joint_bernoulli_row([0.3, -1.0, 0.8, 1.4]),
    # Smooth at the ends of their support, so that sums over a grid are integrals.
    "gamma": gamma_row(4.5, 1.3),
    "beta": beta_row(4.2, 6.1),
    "mixture": mixture_row(
        [0.1, 1.2, -0.5],
        [[0.0, 1.0], [-2.0, 0.5], [3.0, -1.0]],
        [[0.7, 0.5], [0.6, 1.1], [0.4, 0.9]],
    ),
}

# (q, p) of one family, far enough apart that KL(q || p) and KL(p || q) differ.
KL_PAIRS = {
    "normal": (DISTRIBUTIONS["normal"], normal_row([-0.2, 0.1], [0.9, 0.7])),
    "full_normal": (
        DISTRIBUTIONS["full_normal"],
        full_normal_row([0.1, 0.5], [[1.1, 0.0], [0.4, 0.9]]),
    ),
    "bernoulli": (DISTRIBUTIONS["bernoulli"], bernoulli_row([0.6, -0.3, 1.0])),
    "categorical": (
        DISTRIBUTIONS["categorical"],
        categorical_row([-0.4, 0.9, 0.3, 0.0]),
    ),
    "joint_bernoulli": (
        DISTRIBUTIONS["joint_bernoulli"],
        joint_bernoulli_row([-0.1, 0.5, 1.1, -0.6]),
    ),
    "gamma": (DISTRIBUTIONS["gamma"], gamma_row(8.0, 1.6)),
    "beta": (DISTRIBUTIONS["beta"], beta_row(5.0, 4.0)),
    "normal_and_full": (DISTRIBUTIONS["normal"], DISTRIBUTIONS["full_normal"]),
    "bernoulli_and_joint": (
        bernoulli_row([-1.3, 0.4]),
        DISTRIBUTIONS["joint_bernoulli"],
    ),
}

# ----------------------------------------------------------------------- bounds


class BoundRow(NamedTuple):
    """A bound and its definition in float64, by scipy."""

    bound: bounds.Bound
    naive: Callable[[np.ndarray], float]


def _naive_iwae(w: np.ndarray) -> float:
    return special.logsumexp(w) - np.log(len(w))


def _naive_tvo(w: np.ndarray) -> float:
    means = [special.softmax(beta * w) @ w for beta in TVO_BETAS[:-1]]
    return np.diff(TVO_BETAS) @ means


TVO_BETAS = (0.0, 0.1, 0.3, 1.0)


def _naive_renyi(alpha: float) -> Callable[[np.ndarray], float]:
    return lambda w: _naive_iwae((1 - alpha) * w) / (1 - alpha)


def _renyi_row(alpha: float) -> BoundRow:
    return BoundRow(functools.partial(bounds.renyi, alpha=alpha), _naive_renyi(alpha))


BOUNDS = {
    "elbo": BoundRow(bounds.elbo, np.mean),
    "iwae": BoundRow(bounds.iwae, _naive_iwae),
    "renyi_half": _renyi_row(0.5),
    "renyi_minus_1": _renyi_row(-1.0),
    "renyi_2": _renyi_row(2.0),
    "ciwae": BoundRow(
        functools.partial(bounds.ciwae, mix=0.3),
        lambda w: 0.3 * np.mean(w) + 0.7 * _naive_iwae(w),
    ),
    "cubo": BoundRow(bounds.cubo, lambda w: _naive_iwae(2 * w) / 2),
    "tvo": BoundRow(functools.partial(bounds.tvo, betas=TVO_BETAS), _naive_tvo),
}

# ------------------------------------------------------------------- estimators

ESTIMATORS = {
    "reparam": estimators.reparam,
    "stl": estimators.stl,
    "dreg": estimators.dreg,
}


def is_valid(estimator: str, bound: str, k: int) -> bool:
    """Whether the estimator is unbiased for that bound; elsewhere it must raise."""
    return estimator != "stl" or bound == "elbo" or k == 1


# --------------------------------------------------------- linear-Gaussian bench

# d = 2 latents, D = 3 observed, nothing symmetric.
WEIGHT = np.array([[0.9, -0.4], [0.3, 0.7], [-0.5, 0.2]])
MEAN = np.array([0.4, -0.2, 0.1])
LOG_NOISE = np.array([-0.3, 0.1, -0.5])
X = np.array([1.1, -0.6, 0.3])
EXACT = linear_gaussian(2)


def exact_params() -> dict:
    """Parameters of EXACT in the current default dtype."""
    return {
        "weight": jnp.array(WEIGHT, float),
        "mean": jnp.array(MEAN, float),
        "log_noise": jnp.array(LOG_NOISE, float),
    }


def exact_log_px(x: np.ndarray = X) -> np.ndarray:
    """log N(x; mu, W W^T + N), by scipy."""
    covariance = WEIGHT @ WEIGHT.T + np.diag(np.exp(2 * LOG_NOISE))
    return stats.multivariate_normal(MEAN, covariance).logpdf(x)


def exact_posterior() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, b, S) of p(z | x) = N(A x + b, S), from the joint's covariance blocks."""
    marginal = WEIGHT @ WEIGHT.T + np.diag(np.exp(2 * LOG_NOISE))
    gain = WEIGHT.T @ np.linalg.inv(marginal)
    return gain, -gain @ MEAN, np.eye(2) - gain @ WEIGHT


def _wrong_posterior(params: dict, x: jax.Array) -> Normal:
    q = params["q"]
    return Normal(q["gain"] @ x + q["offset"], jnp.exp(q["log_scale"]))


def wrong_params() -> dict:
    """Parameters of WRONG: an amortised posterior that is off in every entry."""
    gain, offset, covariance = exact_posterior()
    return {
        **exact_params(),
        "q": {
            "gain": jnp.array(gain + [[0.1, -0.05, 0.1], [0.0, 0.1, -0.1]], float),
            "offset": jnp.array(offset + [0.2, -0.15], float),
            "log_scale": jnp.array(
                0.5 * np.log(np.diag(covariance)) + [0.15, 0.05], float
            ),
        },
    }


WRONG = Model(EXACT.init, EXACT.prior, _wrong_posterior, EXACT.likelihood)


def _shared_prior(params: dict) -> Normal:
    return Normal(params["loc"], jnp.exp(params["log_scale"]))


def _shared_posterior(params: dict, x: jax.Array) -> Normal:
    loc = params["loc"] + params["gain"] @ x
    return Normal(loc, jnp.exp(params["log_scale"] + params["log_ratio"]))


def shared_params() -> dict:
    """Parameters of SHARED: loc and log_scale serve the prior and the posterior."""
    return {
        **exact_params(),
        "loc": jnp.array([0.2, -0.3], float),
        "log_scale": jnp.array([0.1, -0.2], float),
        "gain": jnp.array([[0.4, 0.1, -0.2], [-0.2, 0.3, 0.1]], float),
        "log_ratio": jnp.array([-0.2, -0.1], float),
    }


SHARED = Model(EXACT.init, _shared_prior, _shared_posterior, EXACT.likelihood)

MODELS = {"own": (WRONG, wrong_params), "shared": (SHARED, shared_params)}


def exact_elbo(model: Model, params: dict, x: jax.Array, beta) -> jax.Array:
    """E_q log p(x | z) - beta KL(q || p) of a model above, written out by hand."""
    q, p = model.posterior(params, x), model.prior(params)
    noise = jnp.exp(params["log_noise"])
    residual = x - params["weight"] @ q.loc - params["mean"]
    square = residual**2 + params["weight"] ** 2 @ q.scale**2
    log_lik = -0.5 * jnp.sum(square / noise**2 + 2 * jnp.log(noise) + np.log(2 * np.pi))
    ratio = (q.scale / p.scale) ** 2
    kl = 0.5 * jnp.sum(ratio + ((q.loc - p.loc) / p.scale) ** 2 - 1 - jnp.log(ratio))
    return log_lik - beta * kl


def z_scores(draws: np.ndarray, expected=0.0) -> np.ndarray:
    """(mean - expected) / standard error, over axis 0; inf where it cannot be 0."""
    draws = np.asarray(draws, np.float64)
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    # What rounding can do to a quantity that does not vary is no evidence.
    difference = draws.mean(0) - np.asarray(expected, np.float64)
    difference = np.where(abs(difference) < 1e-6, 0.0, difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / error)


def tree_z_scores(draws, expected=None) -> np.ndarray:
    """`z_scores` of every leaf of a pytree of draws, as one vector."""
    if expected is None:
        expected = jax.tree.map(lambda leaf: 0.0, draws)
    scores = jax.tree.map(z_scores, draws, expected)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(scores)])
