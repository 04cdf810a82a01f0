"""Objectives where some labels are missing: the sum over classes in their place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vi_jax import bounds, estimators
from vi_jax.bounds import Bound
from vi_jax.estimators import Estimator
from vi_jax.model import Model, Terms, TermsFn, sampled_terms
from vi_jax.models import SemiSupervised
from vi_jax.objectives import per_example
from vi_jax.types import Array, Batch, Key, LossFn, Metrics, Params


def labelled_bound(
    model: SemiSupervised,
    params: Params,
    key: Key,
    x: Array,
    y: Array,
    *,
    bound: Bound = bounds.elbo,
    estimator: Estimator = estimators.reparam,
    num_samples: int = 1,
    terms: Callable[[Model, Array], TermsFn] = sampled_terms,
) -> tuple[Array, Terms]:
    """The bound on log p(x, y) of one example and its class, [], and its Terms [k].

    bound(log w) + log p(y), with the log-weights of the model given y. Options and
    errors are those of `objectives.per_example`.
    """
    one_hot = jax.nn.one_hot(y, model.log_prior.size)
    value, parts = per_example(
        model.given(one_hot),
        params,
        key,
        x,
        bound=bound,
        estimator=estimator,
        num_samples=num_samples,
        terms=terms,
    )
    return value + jnp.asarray(model.log_prior)[y], parts


def unlabelled_bound(
    model: SemiSupervised, params: Params, key: Key, x: Array, **options
) -> Array:
    """A bound on log p(x) of one example without a label, by the sum over classes, [].

    sum_y q(y | x) (bound_y - log q(y | x)) with bound_y on log p(x, y): below log p(x)
    in expectation for every lower bound, by KL(q(y | x) || p(y | x)) where the bound_y
    are exact. All classes at once, with a key for each; what does not depend on y is
    computed once. Options are those of `labelled_bound`.
    Ref: Kingma et al. 2014, arXiv:1406.5298, equation 7.
    """
    classes = jnp.arange(model.log_prior.size)

    def of_class(key: Key, y: Array) -> Array:
        return labelled_bound(model, params, key, x, y, **options)[0]

    keys = jax.random.split(key, classes.size)
    each = jax.vmap(of_class)(keys, classes)  # [c]
    log_q = jax.nn.log_softmax(model.classifier(params, x).logits)
    return jnp.sum(jnp.exp(log_q) * (each - log_q))


def semi_supervised_loss(
    model: SemiSupervised,
    *,
    preprocess: Callable[[Key, Batch], Array],
    alpha: float,
    fraction_labelled: float,
    **options,
) -> LossFn:
    """-(f mean(L + (alpha / f) log q(y | x)) + (1 - f) mean(U)), nats per example.

    L is `labelled_bound` of batch["labelled"] and U `unlabelled_bound` of
    batch["unlabelled"]; f is the fraction of the data that is labelled, whatever the
    shares of the batch, so that its expectation is the objective of Kingma et al. 2014,
    equation 9, divided by the number of examples: their alpha is per example of all
    data (0.1), so that a label weighs alpha / f. Either part may be missing, with f 0
    or 1. Metrics: `bound` (without the classifier's term), `log_q` (mean log q(y | x)
    of the labelled) and `accuracy` on them.
    Raises ValueError where alpha is negative or f outside [0, 1], and from the loss
    where f and the parts of the batch do not agree.
    """
    if not 0 <= alpha < float("inf") or not 0 <= fraction_labelled <= 1:
        raise ValueError(
            "needed: alpha >= 0 and fraction_labelled in [0, 1], got "
            f"{alpha} and {fraction_labelled}"
        )
    f = fraction_labelled
    needed = [n for n, share in (("labelled", f), ("unlabelled", 1 - f)) if share]

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        if missing := [name for name in needed if name not in batch]:
            raise ValueError(
                f"fraction_labelled is {f}, and the batch has no {missing[0]!r} part"
            )
        value, metrics = 0.0, {}
        for name in needed:
            part = batch[name]
            key_x, key_z, key = jax.random.split(key, 3)
            x = preprocess(key_x, part)
            keys = jax.random.split(key_z, len(x))
            if name == "unlabelled":
                one = lambda key, x: unlabelled_bound(model, params, key, x, **options)
                value += (1 - f) * jnp.mean(jax.vmap(one)(keys, x))
            else:
                one = lambda key, x, y: labelled_bound(
                    model, params, key, x, y, **options
                )[0]
                value += f * jnp.mean(jax.vmap(one)(keys, x, part["label"]))
                logits = jax.vmap(lambda x: model.classifier(params, x).logits)(x)
                metrics = _classified(logits, part["label"])
        objective = value + alpha * metrics.get("log_q", 0.0)
        return -objective, {"bound": value, **stop_gradient(metrics)}

    return loss


def _classified(logits: Array, label: Array) -> Metrics:
    log_q = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)
    right = jnp.argmax(logits, 1) == label
    return {"log_q": jnp.mean(log_q), "accuracy": jnp.mean(right)}
