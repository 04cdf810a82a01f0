"""How unusual one example is to a trained model, and where to draw the line.

A score is a function `(model, params, key, x, ...) -> []`, higher where x is more
anomalous. Entries of x that are NaN are missing; the scores by log p(x | z) leave them
out where the likelihood does, as those for tables do.
"""

import io
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_jax.checks import at_least
from vi_jax.distributions import Distribution, Normal
from vi_jax.divergences import has_closed_form_kl
from vi_jax.evaluation.gaps import best_posterior
from vi_jax.evaluation.likelihood import log_likelihood
from vi_jax.model import Model, analytic_terms, log_weight, sampled_terms
from vi_jax.types import Array, Key, Params


def reconstruction_error(model: Model, params: Params, key: Key, x: Array) -> Array:
    """|x - E[x' | z]|^2 at z, the mean of q(z | x), [], in the units of x squared.

    Missing entries are left out of the sum. The key is not used.
    Raises ValueError where the mean of p(x | z) is not shaped as x.
    """
    del key
    mean = model.likelihood(params, model.posterior(params, x).mean()).mean()
    if jnp.shape(mean) != jnp.shape(x):
        raise ValueError(
            f"x has shape {jnp.shape(x)} and the mean of p(x | z) {jnp.shape(mean)}: "
            "use a score by log p(x | z), such as `reconstruction_probability`"
        )
    return jnp.sum(jnp.where(jnp.isnan(x), 0.0, x - mean) ** 2)


def reconstruction_probability(
    model: Model, params: Params, key: Key, x: Array, *, num_samples: int = 10
) -> Array:
    """-(1 / L) sum_l log p(x | z_l), L = num_samples draws z_l ~ q(z | x), [], nats.

    The distortion of x. Raises ValueError where num_samples is below 1.
    Ref: An & Cho 2015, Variational autoencoder based anomaly detection using
    reconstruction probability.
    """
    z = _draws(key, model.posterior(params, x), num_samples)
    return -jnp.mean(jax.vmap(lambda z: model.likelihood(params, z).log_prob(x))(z))


def negative_elbo(
    model: Model, params: Params, key: Key, x: Array, *, num_samples: int = 10
) -> Array:
    """KL(q(z | x) || p(z)) - (1 / L) sum_l log p(x | z_l), z_l ~ q(z | x), [], nats.

    The KL is exact where it has a closed form, and of the same L = num_samples draws
    where it has none. Raises ValueError where num_samples is below 1.
    """
    q = model.posterior(params, x)
    return -_elbo(model, params, key, x, q, num_samples)


def negative_log_likelihood(
    model: Model, params: Params, key: Key, x: Array, *, num_samples: int = 100
) -> Array:
    """-log p(x), [], nats, by importance sampling with num_samples draws of q(z | x).

    Raises ValueError as `log_likelihood` does, whose `log_px` it is.
    Ref: Burda et al. 2016, arXiv:1509.00519.
    """
    return -log_likelihood(model, params, key, x, num_samples=num_samples).log_px


def latent_distance(model: Model, params: Params, key: Key, x: Array) -> Array:
    """The Mahalanobis distance of the mean of q(z | x) from the prior, [].

    sqrt(sum_j ((m_j - mu_j) / s_j)^2), p(z) = N(mu, diag(s^2)). The key is not used.
    Raises ValueError where the prior is no Normal.
    """
    del key
    prior = model.prior(params)
    if not isinstance(prior, Normal):
        raise ValueError(
            f"a distance in units of the prior needs a Normal, not a "
            f"{type(prior).__name__}: use another score"
        )
    away = (model.posterior(params, x).mean() - prior.loc) / prior.scale
    return jnp.sqrt(jnp.sum(away**2))


def likelihood_regret(
    model: Model,
    params: Params,
    key: Key,
    x: Array,
    *,
    num_steps: int = 100,
    step_samples: int = 4,
    num_samples: int = 32,
    learning_rate: float = 0.03,
) -> Array:
    """max_q ELBO(x; q) - ELBO(x; q(z | x)) over diagonal Gaussians q, [], nats.

    What the encoder, fitted to normal examples, loses on this one: its amortisation
    gap. q's own mean and scale are fitted by `best_posterior`, num_steps steps of
    step_samples draws. Xiao et al. fit the weights of the encoder to the one example
    instead, which costs more and can gain no more. Both ELBOs are of the same
    num_samples draws of noise, so that their difference is far less noisy than either.
    Raises ValueError as `best_posterior` does, or where num_samples is below 1.
    Ref: Xiao et al. 2020, arXiv:2003.02977.
    """
    key_best, key_elbo = jax.random.split(key)
    best = best_posterior(
        model,
        params,
        key_best,
        x,
        num_steps=num_steps,
        num_samples=step_samples,
        learning_rate=learning_rate,
    )
    # One vmap over both, not two calls: the draws are the same by construction.
    both = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), best, model.posterior(params, x)
    )
    elbo = jax.vmap(lambda q: _elbo(model, params, key_elbo, x, q, num_samples))(both)
    return elbo[0] - elbo[1]


def _elbo(
    model: Model, params: Params, key: Key, x: Array, q: Distribution, num_samples: int
) -> Array:
    z = _draws(key, q, num_samples)
    exact = has_closed_form_kl(q, model.prior(params))
    terms = (analytic_terms if exact else sampled_terms)(model, x)(params, q, z)
    return jnp.mean(jax.vmap(log_weight)(terms))


def _draws(key: Key, q: Distribution, num_samples: int) -> Array:
    at_least(1, num_samples=num_samples)
    return jax.vmap(q.sample)(jax.random.split(key, num_samples))


class Threshold(NamedTuple):
    """An alarm where a score is above `value`, and how often that is a false one."""

    value: float
    false_alarm_rate: float  # its mean over calibration sets; at most what was asked
    low: float  # the rate of this calibration set lies in [low, high] ...
    high: float  # ... with the confidence that was asked


def threshold(
    scores: np.ndarray, false_alarm_rate: float, *, confidence: float = 0.95
) -> Threshold:
    """The least line, from scores [n] of normal examples, with few enough false alarms.

    The k-th smallest score, k = ceil((n + 1) (1 - a)), a = false_alarm_rate. A new
    normal example, exchangeable with the n, is above it with probability at most
    (n + 1 - k) / (n + 1) <= a, whatever the distribution of scores, and exactly that
    where there are no ties. Given these n, the rate is Beta(n + 1 - k, k) where there
    are no ties, of which [low, high] is the central interval. The n examples must not
    be those that the model was fitted to. Runs outside jit.
    Raises ValueError where a or the confidence is not in (0, 1), scores are not [n] or
    have a NaN (its place is named), or n is too small for a: (n + 1) a < 1.
    Ref: Vovk et al. 2005, Algorithmic learning in a random world; Vovk 2012,
    arXiv:1209.2673 (the Beta).
    """
    from scipy import stats  # slow to import

    scores = _checked(scores)
    for name, value in (("rate", false_alarm_rate), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"the {name} must be between 0 and 1, got {value}")
    n = len(scores)
    # floor((n + 1) a), safe against a product such as 20 * 0.05 just below 1.
    above = min(n, math.floor((n + 1) * false_alarm_rate * (1 + 1e-12)))
    if above < 1:
        raise ValueError(
            f"{n} scores are too few for a false-alarm rate of {false_alarm_rate}: at "
            f"least {math.ceil(1 / false_alarm_rate) - 1} are needed"
        )
    k = n + 1 - above
    tail = (1 - confidence) / 2
    low, high = stats.beta.ppf([tail, 1 - tail], above, k).tolist()
    return Threshold(float(np.sort(scores)[k - 1]), above / (n + 1), low, high)


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1:
        raise ValueError(f"scores must be [n], got shape {list(scores.shape)}")
    if np.isnan(scores).any():
        raise ValueError(f"scores[{int(np.isnan(scores).argmax())}] is NaN")
    return scores


def code_length(image: np.ndarray) -> float:
    """The nats of an image, uint8 [h, w, c] with c of 1 or 3, as a lossless file.

    8 log 2 times the bytes of the PNG file beyond those of an image of one colour,
    which are the format's own. In the complexity-corrected score
    -log p(x) - code_length(x) it takes from a discrete model's code length what a code
    that knows nothing of the data needs too: an image that is simple, rather than
    like the training images, no longer passes for normal.
    Raises ValueError for another dtype or shape.
    Ref: Serra et al. 2020, arXiv:1909.11480.
    """
    image = np.asarray(image)
    fits = image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3)
    if not fits or not image.size:
        raise ValueError(
            f"needed: uint8 [h, w, 1] or [h, w, 3], got {image.dtype} "
            f"{list(image.shape)}"
        )
    own = _png_bytes(np.zeros_like(image))
    return 8 * math.log(2) * (_png_bytes(image) - own)


def _png_bytes(image: np.ndarray) -> int:
    from PIL import Image  # slow to import

    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        file, "png", optimize=True
    )
    return file.tell()
