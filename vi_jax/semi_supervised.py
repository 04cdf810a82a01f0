"""Objectives where some labels are missing: the sum over classes in their place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax.distributions import Categorical
from vi_jax.divergences import kl
from vi_jax.math import scale_gradient
from vi_jax.models import SemiSupervised
from vi_jax.objectives import UNTEMPERED, per_example
from vi_jax.schedules import Schedule, check_schedule
from vi_jax.types import Array, Batch, Key, LossFn, Metrics, Params

ClassMean = Callable[[Key, Array, Callable[[Array], Array]], Array]
"""(key, log q [c], f) -> an estimate of sum_y q(y) f(y), where f takes y one-hot."""


def enumerated(key: Key, log_q: Array, f: Callable[[Array], Array]) -> Array:
    """sum_y q(y) f(y), exactly, with f of all classes at once, []."""
    del key
    each = jax.vmap(f)(jnp.eye(log_q.size, dtype=log_q.dtype))  # [c]
    return jnp.sum(jnp.exp(log_q) * each)


def top_and_sampled(num_top: int) -> ClassMean:
    """sum_y q(y) f(y) from the `num_top` likeliest classes and one draw of the others.

    sum_top q_y (f_y - b) + r (f_s - b) + b with s ~ q restricted to the others, r their
    share of q, and b the mean of f over the top, which the sum does not depend on.
    Value and gradients are unbiased, those of q included, at num_top + 1 evaluations
    of f instead of c: where q is nearly certain, little is left to chance.
    Raises ValueError where num_top is not in [1, c).
    Ref: Liu et al. 2019, arXiv:1810.04777.
    """

    def mean(key: Key, log_q: Array, f: Callable[[Array], Array]) -> Array:
        if not 1 <= num_top < log_q.size:
            raise ValueError(
                f"num_top must be in [1, {log_q.size}), got {num_top}; "
                "`enumerated` takes all classes"
            )
        top = jax.lax.top_k(log_q, num_top)[1]
        others = stop_gradient(log_q).at[top].set(-jnp.inf)
        drawn = jax.random.categorical(key, others)
        # 1 / its probability among the others, for a q whose gradient is kept.
        weight = jnp.exp(jax.nn.logsumexp(others) - others[drawn])
        chosen = jnp.append(top, drawn)
        one_hot = jax.nn.one_hot(chosen, log_q.size, dtype=log_q.dtype)
        each, q = jax.vmap(f)(one_hot), jnp.exp(log_q[chosen])
        of_top = stop_gradient(q[:-1])
        baseline = jnp.sum(of_top * stop_gradient(each[:-1])) / jnp.sum(of_top)
        weights = q * jnp.ones_like(q).at[-1].set(weight)
        return jnp.sum(weights * (each - baseline)) + baseline

    return mean


def gumbel_softmax(temperature: float) -> ClassMean:
    """f at one relaxed draw of y, softmax((log q + g) / temperature), g Gumbel noise.

    One evaluation of f whatever the number of classes, but biased: f is evaluated
    between the classes, where the model given y means nothing, so that value and
    gradient are no bound's. Towards temperature 0 the value's bias vanishes and the
    gradient's variance grows without limit. Raises ValueError for a temperature <= 0.
    Ref: Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017, arXiv:1611.00712.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")

    def mean(key: Key, log_q: Array, f: Callable[[Array], Array]) -> Array:
        noise = jax.random.gumbel(key, log_q.shape, log_q.dtype)
        return f(jax.nn.softmax((log_q + noise) / temperature))

    return mean


def labelled_bound(
    model: SemiSupervised,
    params: Params,
    key: Key,
    x: Array,
    y: Array,
    **options,
) -> Array:
    """The bound on log p(x, y) of one example and its class, [].

    bound(log w) + log p(y), with the log-weights of the model given y; -inf for a y
    that is no class. The options are those of `objectives.per_example`, as its errors.
    """
    one_hot = jax.nn.one_hot(y, model.log_prior.size)
    value, _ = per_example(model.given(one_hot), params, key, x, **options)
    return value + Categorical(jnp.asarray(model.log_prior)).log_prob(y)


def unlabelled_bound(
    model: SemiSupervised,
    params: Params,
    key: Key,
    x: Array,
    *,
    q: Categorical | None = None,
    class_mean: ClassMean = enumerated,
    **options,
) -> Array:
    """A bound on log p(x) of one example without a label, by the sum over classes, [].

    sum_y q(y | x) bound_y - KL(q(y | x) || p(y)) with bound_y on log p(x | y): below
    log p(x) in expectation for every lower bound, by KL(q(y | x) || p(y | x)) where the
    bound_y are exact. The classes share their draws, so that the differences between
    them, all that the classifier learns from, are less noisy, at the price of a noisier
    gradient of the rest while the classes are undecided; what does not depend on y is
    computed once. `q` is the model's classifier by default, any other is as valid;
    `class_mean` is how the sum is taken.
    The options are those of `objectives.per_example`, as its errors.
    Ref: Kingma et al. 2014, arXiv:1406.5298, equation 7.
    """
    key_y, key_z = jax.random.split(key)
    q = model.classifier(params, x) if q is None else q

    def given(y: Array) -> Array:
        return per_example(model.given(y), params, key_z, x, **options)[0]

    log_q = jax.nn.log_softmax(q.logits)
    rate = kl(q, Categorical(jnp.asarray(model.log_prior, log_q.dtype)))
    return class_mean(key_y, log_q, given) - rate


def dropout(rate: float) -> Callable[[Key, Array], Array]:
    """Noise for a classifier's input: each entry 0 with this rate, else x / (1 - rate).

    Raises ValueError where rate is outside [0, 1). Ref: Srivastava et al. 2014.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the dropout rate must be in [0, 1), got {rate}")

    def corrupt(key: Key, x: Array) -> Array:
        return x * jax.random.bernoulli(key, 1 - rate, x.shape) / (1 - rate)

    return corrupt


def random_shift(
    shape: tuple[int, int, int], most: int
) -> Callable[[Key, Array], Array]:
    """Noise for a classifier's input: the image [h w c] moved by up to `most` pixels.

    Every whole shift down to -most and up to most, along each axis, is as likely; what
    comes in is 0. Raises ValueError where most is negative, or no less than a side.
    """
    if not 0 <= most < min(shape[:2]):
        raise ValueError(f"a shift must be in [0, {min(shape[:2])}), got {most}")

    def corrupt(key: Key, x: Array) -> Array:
        image = jnp.pad(x.reshape(shape), ((most, most), (most, most), (0, 0)))
        start = jax.random.randint(key, (2,), 0, 2 * most + 1)
        moved = jax.lax.dynamic_slice(image, (*start, jnp.zeros_like(start[0])), shape)
        return moved.reshape(x.shape)

    return corrupt


def semi_supervised_loss(
    model: SemiSupervised,
    *,
    preprocess: Callable[[Key, Batch], Array],
    alpha: float,
    fraction_labelled: float,
    corrupt: Callable[[Key, Array], Array] = lambda key, x: x,
    trust: Schedule = UNTEMPERED,
    beta: Schedule = UNTEMPERED,
    class_mean: ClassMean = enumerated,
    **options,
) -> LossFn:
    """-(f mean(L) + (1 - f) mean(U) + alpha mean log q(y | x)), in nats per example.

    L is `labelled_bound` of batch["labelled"] and U `unlabelled_bound` of
    batch["unlabelled"], and the last mean is over the labelled. With f the fraction of
    the data that is labelled, whatever the shares of the batch, its expectation is the
    objective of Kingma et al. 2014, equation 9, divided by the number of examples:
    their alpha is per example of all data (0.1), so that a label weighs alpha / f. A
    larger f weighs the labelled images more. Either part may be missing, with f 0 or 1.
    `corrupt(key, x)` is the noise that the classifier sees x through, in training only.
    `trust` scales, as a function of batch["step"], the gradient of U in the classifier:
    at 0 it learns from labels alone, while the model learns what the classes look like.
    `beta`, likewise of the step, tempers the KL of z, and that of y not. The other
    options are those of `objectives.per_example`.
    Metrics: `bound` (without the classifier's term), `log_q` (mean log q(y | x) of the
    labelled) and `accuracy` on them.
    Raises ValueError where alpha is negative or f outside [0, 1], and from the loss
    where f and the parts of the batch do not agree.
    """
    if not 0 <= alpha < float("inf") or not 0 <= fraction_labelled <= 1:
        raise ValueError(
            "needed: alpha >= 0 and fraction_labelled in [0, 1], got "
            f"{alpha} and {fraction_labelled}"
        )
    check_schedule(trust)
    check_schedule(beta)
    f = fraction_labelled
    needed = [n for n, share in (("labelled", f), ("unlabelled", 1 - f)) if share]

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        if missing := [name for name in needed if name not in batch]:
            raise ValueError(
                f"fraction_labelled is {f}, and the batch has no {missing[0]!r} part"
            )
        trusted = trust(batch["step"])
        how = {"beta": beta(batch["step"]), **options}

        def unlabelled(key: Key, key_q: Key, x: Array) -> Array:
            logits = model.classifier(params, corrupt(key_q, x)).logits
            q = Categorical(scale_gradient(logits, trusted))
            return unlabelled_bound(
                model, params, key, x, q=q, class_mean=class_mean, **how
            )

        def labelled(key: Key, x: Array, y: Array) -> Array:
            return labelled_bound(model, params, key, x, y, **how)

        value, metrics = 0.0, {}
        for name in needed:
            part = batch[name]
            key_x, key_z, key_q, key = jax.random.split(key, 4)
            x = preprocess(key_x, part)
            keys, keys_q = (jax.random.split(k, len(x)) for k in (key_z, key_q))
            if name == "unlabelled":
                value += (1 - f) * jnp.mean(jax.vmap(unlabelled)(keys, keys_q, x))
            else:
                value += f * jnp.mean(jax.vmap(labelled)(keys, x, part["label"]))
                seen = jax.vmap(corrupt)(keys_q, x)
                logits = jax.vmap(lambda x: model.classifier(params, x).logits)(seen)
                metrics = _classified(logits, part["label"])
        objective = value + alpha * metrics.get("log_q", 0.0)
        return -objective, {"bound": value, **stop_gradient(metrics)}

    return loss


def _classified(logits: Array, label: Array) -> Metrics:
    log_q = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)
    right = jnp.argmax(logits, 1) == label
    return {"log_q": jnp.mean(log_q), "accuracy": jnp.mean(right)}
