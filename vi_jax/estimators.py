"""Gradient estimators: a number whose value is the bound, and a choice of gradient.

Every estimator is called as `(bound, terms, params, q, z, *, beta) -> []` with
`terms` a `TermsFn`, q the posterior and z its samples, leading with [k]. They differ in
where they stop the gradient, and by construction agree on the value (`enumeration`: on
its expectation).

| | posterior | bound | gradient |
|---|---|---|---|
| `reparam`, `dreg` | pathwise | any | unbiased |
| `stl` | pathwise | ELBO, or k = 1 | unbiased |
| `score` | any | any | unbiased |
| `vimco` | any, k >= 2 | any | unbiased, less variance |
| `enumeration` | discrete, few outcomes | ELBO | exact |
| `straight_through` | straight-through | any | biased |
| `wake_sleep` | any | IWAE | another objective for q |
| `paired(q_bound, ...)` | as its estimator | any two | one bound for p, another for q |
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax import bounds
from vi_jax.bounds import Bound
from vi_jax.distributions import Distribution, StraightThroughBernoulli, is_continuous
from vi_jax.math import scale_gradient, with_gradient_of
from vi_jax.model import TermsFn, log_weight
from vi_jax.quadrature import nodes
from vi_jax.types import Array, Latents, Params

Estimator = Callable[..., Array]


def _require_pathwise(q: Distribution, name: str) -> None:
    if not q.pathwise:
        few = "" if is_continuous(q) else "(or, for few outcomes, `enumeration`) "
        raise ValueError(
            f"`{name}` differentiates through samples, and samples of "
            f"{type(q).__name__} carry no gradient: use `vimco` or `score` {few}or a "
            "posterior whose samples do, such as Normal"
        )


def _num_samples(z: Latents) -> int:
    return jax.tree.leaves(z)[0].shape[0]


def _is_mean(bound: Bound, k: int) -> bool:
    """Whether it is known to be the mean of log_w: f' is constant, and f'' is 0."""
    return bound is bounds.elbo or (bound is bounds.iwae and k == 1)


def _log_weights(terms: TermsFn, beta: float | Array):
    """(params, q, z) -> log_w [k]."""
    one = lambda t: log_weight(t, beta)
    return lambda params, q, z: jax.vmap(one)(terms(params, q, z))


def reparam(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """The reparameterization trick: differentiate bound(log_w) through z, [].

    Unbiased for any bound. Raises ValueError where q is not pathwise.
    Ref: Kingma & Welling 2014, arXiv:1312.6114.
    """
    _require_pathwise(q, "reparam")
    return bound(_log_weights(terms, beta)(params, q, z))


def stl(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """Sticking the landing: `reparam` without the score of q, whose mean is 0, [].

    The gradient vanishes, sample by sample, where q is the exact posterior. Unbiased
    for the ELBO, and for k = 1, where a bound that may bend in its log_w is left to
    `dreg`. Raises ValueError for k > 1 and another function than `bounds.elbo` itself,
    and where q is not pathwise.
    Ref: Roeder et al. 2017, arXiv:1703.09194.
    """
    _require_pathwise(q, "stl")
    k = _num_samples(z)
    if bound is not bounds.elbo and k > 1:
        raise ValueError(
            "`stl` is biased for multi-sample bounds other than the ELBO, and knows it "
            "as `bounds.elbo` itself only: pass that, or use `dreg`, which is its "
            "unbiased form for any bound"
        )
    if not _is_mean(bound, k):
        return dreg(bound, terms, params, q, z, beta=beta)
    return bound(_log_weights(terms, beta)(params, stop_gradient(q), z))


def dreg(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """Doubly reparameterized gradients, for any bound f and any beta, [].

    With l = log_w, the gradient is sum_i f'_i dl_i along the parameters of p, plus
    sum_i (f'_i - beta f''_ii) dl_i along the path z(q): the score of q, reparameterized
    once more, is where f'' comes from. For IWAE and beta = 1 the second weight is the
    squared normalised weight; for the ELBO this is `stl`. Stopping z or the parameters,
    rather than "encoder" or "decoder", keeps shared parameters right.
    Raises ValueError where q is not pathwise.
    Ref: Tucker et al. 2019, arXiv:1810.04152; Bauer & Mnih 2021, arXiv:2101.11046.
    """
    _require_pathwise(q, "dreg")
    if _is_mean(bound, _num_samples(z)):
        # The two passes below are one.
        return stl(bound, terms, params, q, z, beta=beta)
    log_w = _log_weights(terms, beta)
    at = stop_gradient(log_w(params, q, z))
    first, second = jax.grad(bound)(at), jnp.diagonal(jax.hessian(bound)(at))
    # One pass back: what it brings to z_i carries f'_i, and is rescaled there. Where
    # f'_i is 0, as for a weight that underflows, nothing comes.
    ratio = (first - beta * second) / jnp.where(first == 0, 1.0, first)
    z = jax.vmap(lambda z, r: jax.tree.map(lambda a: scale_gradient(a, r), z))(z, ratio)
    log_w = log_w(params, stop_gradient(q), z)
    # Of an impossible sample the weight is 0, but 0 times -inf is nan.
    surrogate = jnp.vdot(first, jnp.where(first == 0, 0.0, log_w))
    return with_gradient_of(bound(at), surrogate)


def _log_q(q: Distribution, z: Latents) -> Array:
    """log q(z_i) [k], whose gradient is the score."""
    return jax.vmap(lambda z: jnp.sum(q.log_prob(z)))(stop_gradient(z))


def score(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
    baseline: float | Array = 0.0,
) -> Array:
    """The score function (REINFORCE): (bound - baseline) sum_i dlog q(z_i), [].

    Unbiased for any q and any bound, but of large variance: use `vimco` where k >= 2.
    A `baseline` [] that does not depend on z lowers it; one that is learned, b(x;
    params), is moved towards the bound by -(bound - baseline)^2 / 2 in the gradient.
    Ref: Williams 1992; Mnih & Gregor 2014, arXiv:1402.0030.
    """
    value = bound(_log_weights(terms, beta)(params, q, stop_gradient(z)))
    signal = stop_gradient(value) - baseline
    log_q = jnp.sum(_log_q(q, z))
    surrogate = value + stop_gradient(signal) * log_q - 0.5 * signal**2
    return with_gradient_of(value, surrogate)


def vimco(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """The score function with a leave-one-out baseline for each sample, any bound, [].

    The signal of sample i is bound(l) - bound(l with l_i replaced by the mean of the
    others); for the ELBO, (l_i - mean of the others) / k. Unbiased for any q.
    Raises ValueError for k = 1, which leaves no others.
    Ref: Mnih & Rezende 2016, arXiv:1602.06725; Kool et al. 2019 (the ELBO).
    """
    k = _num_samples(z)
    if k < 2:
        raise ValueError(
            "`vimco` takes its baseline from the other samples and needs k >= 2: use "
            "`score` with a baseline"
        )
    log_w = _log_weights(terms, beta)(params, q, stop_gradient(z))
    at = stop_gradient(log_w)
    others = jnp.where(jnp.eye(k, dtype=bool), 0.0, at[None]).sum(1) / (k - 1)
    without = jnp.where(jnp.eye(k, dtype=bool), others[:, None], at[None])  # [k, k]
    baselines = jax.vmap(bound)(without)
    # Where no other sample is possible there is none.
    signals = bound(at) - jnp.where(baselines > -jnp.inf, baselines, 0.0)
    value = bound(log_w)
    return with_gradient_of(value, value + signals @ _log_q(q, z))


def enumeration(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """The exact ELBO and its exact gradient, a sum over every outcome of q, [].

    The samples z are not used. Raises ValueError for another bound than `bounds.elbo`
    itself, and where q has no finite list of outcomes or more than 2^20.
    """
    del z
    if bound is not bounds.elbo:
        raise ValueError(
            "`enumeration` is for `bounds.elbo` itself: use `vimco` for other bounds"
        )
    if is_continuous(q):
        other = "reparam" if q.pathwise else "vimco"
        raise ValueError(
            f"{type(q).__name__} has no finite list of outcomes: use `{other}`"
        )
    outcomes, probabilities = nodes(q)
    log_w = _log_weights(terms, beta)(params, q, outcomes)
    return jnp.sum(probabilities * jnp.where(probabilities > 0, log_w, 0.0))


def straight_through(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """The gradient of a relaxed coin at the value of the hard one: biased, [].

    The value is the bound; the bias of the gradient falls, and its variance rises, with
    the temperature of q. A posterior of such coins is

    Component(net.init, lambda params, x: StraightThroughBernoulli(
        net.apply(params, x), jnp.float32(0.5)))

    Raises ValueError where q is not straight-through.
    Ref: Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017, arXiv:1611.00712.
    """
    if not isinstance(q, StraightThroughBernoulli):
        raise ValueError(
            "`straight_through` needs a posterior whose samples carry the relaxed "
            f"gradient, StraightThroughBernoulli, not {type(q).__name__}"
        )
    return bound(_log_weights(terms, beta)(params, q, z))


def wake_sleep(
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """Reweighted wake-sleep: p climbs the IWAE bound, q falls on KL(p(z | x) || q), [].

    With normalised weights w: sum_i w_i dlog p(x, z_i) for p, sum_i w_i dlog q(z_i) for
    q, which is not the gradient of the bound (the wake-phase update of q, consistent in
    k). Any q. Raises ValueError for another bound than `bounds.iwae` itself.
    Ref: Bornschein & Bengio 2015, arXiv:1406.2751; Le et al. 2019, arXiv:1805.10469.
    """
    if bound is not bounds.iwae:
        raise ValueError(
            "`wake_sleep` is for `bounds.iwae` itself: use `vimco` for other bounds"
        )
    log_w, z = _log_weights(terms, beta), stop_gradient(z)
    at_p = log_w(params, stop_gradient(q), z)
    weights = stop_gradient(jax.nn.softmax(at_p))
    possible = jnp.where(weights > 0, at_p, 0.0)
    return with_gradient_of(bound(at_p), weights @ (possible + _log_q(q, z)))


def paired(q_bound: Bound, estimator: Estimator) -> Estimator:
    """An estimator whose value is its bound, but where q climbs another: PIWAE.

    The parameters of p(x, z) follow the bound that the estimator is called with, and
    what reaches q and its samples follows `estimator` on `q_bound`. PIWAE is
    `paired(partial(bounds.miwae, groups=g), reparam)` on `bounds.iwae`.
    Ref: Rainforth et al. 2018, arXiv:1802.04537, section 4.
    """

    return functools.partial(climb_two, q_bound, estimator)


def climb_two(
    q_bound: Bound,
    estimator: Estimator,
    bound: Bound,
    terms: TermsFn,
    params: Params,
    q: Distribution,
    z: Latents,
    *,
    beta: float | Array = 1.0,
) -> Array:
    """What `paired` returns, with its arguments before an estimator's."""
    log_w = _log_weights(terms, beta)
    generative = bound(log_w(params, stop_gradient(q), stop_gradient(z)))
    fixed = stop_gradient(params)
    inference = estimator(q_bound, terms, fixed, q, z, beta=beta)
    return with_gradient_of(generative, generative + inference)
