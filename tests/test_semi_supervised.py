"""Objectives with and without labels, against closed forms and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import quick_jit
from scipy import special
from sklearn.datasets import load_wine
from test_conditional import (
    CLASSES,
    WEIGHT,
    X,
    exact_given,
    exact_log_px,
)

from vi_jax import (
    bounds,
    estimators,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    schedules,
    training,
)
from vi_jax.data.labels import MISSING, keep_balanced, mixed
from vi_jax.distributions import Categorical
from vi_jax.divergences import kl
from vi_jax.model import analytic_terms
from vi_jax.models import SemiSupervised
from vi_jax.semi_supervised import (
    dropout,
    enumerated,
    gumbel_softmax,
    labelled_bound,
    random_shift,
    semi_supervised_loss,
    top_and_sampled,
    unlabelled_bound,
)

PRIOR = np.array([0.5, 0.2, 0.3])
LOGITS = np.array([0.3, -0.4, 1.0])  # of a classifier that is wrong
LOG_JOINT = np.array([exact_log_px(y) for y in range(CLASSES)]) + np.log(PRIOR)


def exact():
    """Exact given y; a classifier with free logits, the same for every x."""
    return SemiSupervised(
        init=None,
        given=exact_given,
        classifier=lambda params, x: Categorical(params["logits"]),
        log_prior=np.log(PRIOR),
    )


def exact_params(logits=LOGITS):
    return {"weight": jnp.array(WEIGHT, float), "logits": jnp.array(logits, float)}


def x_now():
    return jnp.array(X, float)


@pytest.mark.parametrize("y", range(CLASSES))
def test_the_labelled_bound_of_an_exact_model_is_log_p_of_x_and_y(y):
    value = quick_jit(functools.partial(labelled_bound, exact()))(
        exact_params(), jax.random.key(0), x_now(), y
    )
    np.testing.assert_allclose(value, LOG_JOINT[y], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"bound": bounds.iwae, "num_samples": 3}])
def test_the_unlabelled_bound_is_log_p_of_x_minus_what_the_classifier_lacks(options):
    """log p(x) with q(y | x) = p(y | x), else below by the KL between the two."""
    bound = quick_jit(functools.partial(unlabelled_bound, exact(), **options))
    log_px = special.logsumexp(LOG_JOINT)
    best = bound(exact_params(LOG_JOINT), jax.random.key(1), x_now())
    np.testing.assert_allclose(best, log_px, rtol=1e-5)
    q = special.softmax(LOGITS)
    lack = np.sum(special.rel_entr(q, special.softmax(LOG_JOINT)))
    assert lack > 0.1
    value = bound(exact_params(), jax.random.key(2), x_now())
    np.testing.assert_allclose(value, log_px - lack, rtol=1e-5)


def test_the_gradient_in_the_classifier_is_that_of_the_closed_form():
    bound = lambda logits: unlabelled_bound(
        exact(), {**exact_params(), "logits": logits}, jax.random.key(3), x_now()
    )
    got = quick_jit(jax.grad(bound))(jnp.array(LOGITS, float))
    q, log_q = special.softmax(LOGITS), special.log_softmax(LOGITS)
    signal = LOG_JOINT - log_q
    np.testing.assert_allclose(got, q * (signal - q @ signal), rtol=1e-4, atol=1e-6)


VALUES = np.array([-90.0, -95.0, -91.0, -120.0, -93.0])  # of f, in nats as they are
WIDE = np.array([1.0, 0.2, -0.5, -1.0, 0.6])


def estimates(class_mean, num=40_000):
    """Values and gradients in the logits of many draws, with f linear in y."""

    def of(logits, key):
        f = lambda y: y @ jnp.array(VALUES, float)
        return class_mean(key, jax.nn.log_softmax(logits), f)

    keys = jax.random.split(jax.random.key(12), num)
    run = jax.vmap(jax.value_and_grad(of), (None, 0))
    found = quick_jit(run)(jnp.array(WIDE, float), keys)
    return [np.asarray(a, np.float64) for a in found]


def closed_form():
    q = special.softmax(WIDE)
    return q @ VALUES, q * (VALUES - q @ VALUES)


@pytest.mark.parametrize("num_top", [1, 2, 3])
def test_the_top_classes_and_one_of_the_others_are_the_sum_on_average(num_top):
    """Value and gradient, |z| < 4.5 for each of six; the draw's share alone varies."""
    for got, expected in zip(
        estimates(top_and_sampled(num_top)), closed_form(), strict=True
    ):
        error = got.std(0) / len(got) ** 0.5
        assert np.all(error > 0) and np.all(error < 0.05)
        assert np.all(abs(got.mean(0) - expected) < 4.5 * error)


def test_all_but_one_class_and_a_draw_of_the_last_are_the_exact_sum():
    for class_mean in (top_and_sampled(4), enumerated):
        for got, expected in zip(estimates(class_mean, 3), closed_form(), strict=True):
            np.testing.assert_allclose(
                got, np.broadcast_to(expected, got.shape), rtol=1e-4
            )


def test_a_relaxed_class_is_right_for_a_linear_f_only_as_it_grows_cold():
    """At 0.01 within 4.5 standard errors of the sum, at 2 more than 20 off it."""
    expected, _ = closed_form()
    for temperature, right in ((0.01, True), (2.0, False)):
        got, _ = estimates(gumbel_softmax(temperature))
        z = abs(got.mean() - expected) / (got.std() / len(got) ** 0.5)
        assert z < 4.5 if right else z > 20


@pytest.mark.parametrize("class_mean", [top_and_sampled(1), top_and_sampled(2)])
def test_a_drawn_class_leaves_the_bound_as_it_is_on_average(class_mean):
    """On a model whose bound_y are exact: |z| < 4.5."""
    bound = lambda key: unlabelled_bound(
        exact(), exact_params(), key, x_now(), class_mean=class_mean
    )
    keys = jax.random.split(jax.random.key(13), 20_000)
    got = np.asarray(quick_jit(jax.vmap(bound))(keys), np.float64)
    q = special.softmax(LOGITS)
    lack = np.sum(special.rel_entr(q, special.softmax(LOG_JOINT)))
    error = max(got.std() / len(got) ** 0.5, 1e-6)
    expected = special.logsumexp(LOG_JOINT) - lack
    assert abs(got.mean() - expected) < 4.5 * error + 1e-5 * abs(expected)


def test_any_distribution_over_the_classes_serves_as_q():
    """With the exact p(y | x) in the place of a wrong classifier: log p(x)."""
    q = Categorical(jnp.array(LOG_JOINT, float))
    value = quick_jit(functools.partial(unlabelled_bound, exact(), q=q))(
        exact_params(), jax.random.key(2), x_now()
    )
    np.testing.assert_allclose(value, special.logsumexp(LOG_JOINT), rtol=1e-5)


def network_model():
    """A small M2 whose every part is a network; the posterior is not exact."""
    conditional = models.conditional_vae(
        posteriors.normal(networks.mlp([], 4)),
        posteriors.normal(networks.mlp([5], 4)),
        likelihoods.bernoulli(networks.mlp([5], 6)),
    )
    classifier = networks.mlp([4], CLASSES)
    return models.m2(conditional, classifier, PRIOR)


@functools.cache
def network_params():
    params = quick_jit(network_model().init)(jax.random.key(4), jnp.ones(6))
    noise = lambda leaf, key: leaf + 0.3 * jax.random.normal(key, leaf.shape)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return jax.tree.unflatten(tree, map(noise, leaves, keys))


IMAGES = np.random.default_rng(1).integers(0, 2, (4, 6)).astype(np.float32)
LABELS = np.array([2, 0, 1, 1])


def test_enumeration_is_monte_carlo_over_classes_within_its_error():
    """40,000 draws of y ~ q(y | x), each with draws of its own: |z| < 4."""
    model, params, x = network_model(), network_params(), jnp.array(IMAGES[0])

    def sampled(key):
        key_y, key_z = jax.random.split(key)
        q = model.classifier(params, x)
        y = q.sample(key_y)
        return labelled_bound(model, params, key_z, x, y) - q.log_prob(y)

    enumerated = lambda key: unlabelled_bound(model, params, key, x)
    draw = lambda f, seed: np.asarray(
        quick_jit(jax.vmap(f))(jax.random.split(jax.random.key(seed), 40_000))
    )
    a, b = draw(sampled, 6), draw(enumerated, 7)
    error = np.hypot(a.std(), b.std()) / len(a) ** 0.5
    assert error < 0.03
    assert abs(a.mean() - b.mean()) < 4 * error
    assert b.std() < a.std()


def loss_of(f, alpha=0.1, **options):
    return semi_supervised_loss(
        network_model(),
        preprocess=lambda key, batch: batch["image"],
        alpha=alpha,
        fraction_labelled=f,
        **options,
    )


def batch_of(*names):
    parts = {
        "labelled": {"image": jnp.array(IMAGES), "label": jnp.array(LABELS)},
        "unlabelled": {"image": jnp.array(IMAGES[:3])},
    }
    return {"step": 0} | {name: parts[name] for name in names}


def averaged(loss, batch, num=20_000):
    """The mean over keys of the loss, with its standard error."""
    keys, params = jax.random.split(jax.random.key(8), num), network_params()
    run = jax.vmap(lambda key: loss(params, key, batch)[0])
    values = np.asarray(quick_jit(run)(keys))
    return values.mean(), values.std() / num**0.5


def test_all_labelled_it_is_the_conditional_vae_plus_the_classifier():
    """And log p(y): |z| < 4, since the draws differ."""
    got, error = averaged(loss_of(1.0, alpha=0.7), batch_of("labelled"))
    conditional = objectives.batch_loss(
        network_model().given,
        preprocess=lambda key, batch: batch["image"],
        context=lambda batch: jax.nn.one_hot(batch["label"], CLASSES),
    )
    batch = {"step": 0, **batch_of("labelled")["labelled"]}
    plain, plain_error = averaged(conditional, batch)
    logits = jax.vmap(lambda x: network_model().classifier(network_params(), x).logits)
    log_q = special.log_softmax(np.asarray(logits(IMAGES), float), 1)
    expected = plain - np.mean(np.log(PRIOR)[LABELS])
    expected -= 0.7 * np.mean(log_q[np.arange(4), LABELS])
    both = np.hypot(error, plain_error)
    assert both < 0.03 and abs(got - expected) < 4 * both


def test_with_no_label_it_is_the_bound_of_the_marginal_model():
    got, error = averaged(loss_of(0.0), batch_of("unlabelled"))
    one = lambda key, x: -unlabelled_bound(network_model(), network_params(), key, x)
    keys = jax.random.split(jax.random.key(9), (3, 20_000))
    run = jax.vmap(jax.vmap(one, (0, None)))
    values = np.asarray(quick_jit(run)(keys, jnp.array(IMAGES[:3])))
    both = np.hypot(error, values.mean(0).std() / 20_000**0.5)
    assert both < 0.04 and abs(got - values.mean()) < 4 * both


def test_the_parts_weigh_as_their_shares_of_the_data_not_of_the_batch():
    batch = batch_of("labelled", "unlabelled")
    got, error = averaged(loss_of(0.25, alpha=0.0), batch)
    parts = [
        averaged(loss_of(f, alpha=0.0), batch_of(name))
        for f, name in ((1.0, "labelled"), (0.0, "unlabelled"))
    ]
    expected = 0.25 * parts[0][0] + 0.75 * parts[1][0]
    both = np.hypot(error, np.hypot(parts[0][1], parts[1][1]))
    assert abs(got - expected) < 4 * both
    assert abs(parts[0][0] - parts[1][0]) > 15 * both


def test_the_classifier_weighs_alpha_and_the_metrics_say_what_it_does():
    """Whatever f: alpha is per example of all data."""
    batch = batch_of("labelled", "unlabelled")
    run = lambda alpha: quick_jit(loss_of(0.25, alpha=alpha))(
        network_params(), jax.random.key(10), batch
    )
    (without, _), (value, metrics) = run(0.0), run(0.7)
    np.testing.assert_allclose(value - without, -0.7 * metrics["log_q"], rtol=1e-5)
    np.testing.assert_allclose(metrics["bound"], -without, rtol=1e-6)
    logits = jax.vmap(lambda x: network_model().classifier(network_params(), x).logits)
    logits = np.asarray(logits(IMAGES))
    assert metrics["accuracy"] == np.mean(logits.argmax(1) == LABELS)
    log_q = special.log_softmax(logits, 1)[np.arange(4), LABELS]
    np.testing.assert_allclose(metrics["log_q"], log_q.mean(), rtol=1e-5)


def test_a_table_with_three_labels_a_class_is_learned_from_its_other_rows():
    """scikit-learn's wines, 13 columns: less than half the labels' own error."""
    x, y = load_wine(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    conditional = models.conditional_vae(
        posteriors.normal(networks.mlp([], 4)),
        posteriors.normal(networks.mlp([16], 4)),
        likelihoods.normal(networks.mlp([16], 13)),
    )
    model = models.m2(conditional, networks.mlp([], 3), np.full(3, 1 / 3))
    label = keep_balanced(y, 9, num_classes=3, seed=0)
    adam = training.adam(5e-3, num_steps=600)

    def error(share, unlabelled_size):
        how = {"labelled_size": 9, "unlabelled_size": unlabelled_size, "seed": 0}
        loss = semi_supervised_loss(
            model,
            preprocess=lambda key, batch: batch["x"],
            alpha=0.3,
            fraction_labelled=share,
            trust=schedules.linear(200, total_steps=600),
        )
        start = training.init_state(model.init(jax.random.key(0), x[0]), adam)
        steps = {"seed": 0, "num_steps": 600, "scan_steps": 600}
        stream = mixed({"x": x}, label, **how)
        ((state, _),) = training.fit(loss, adam, start, stream, **steps)
        logits = jax.vmap(lambda x: model.classifier(state.params, x).logits)(x)
        hidden = label == MISSING
        return np.mean(np.asarray(logits).argmax(1)[hidden] != y[hidden])

    assert error(0.1, 60) < min(0.08, 0.5 * error(1.0, 0))


def test_beta_tempers_the_rate_of_z_under_every_class():
    """By the closed form of KL(q(z | x, y) || p(z)), whose weight is beta."""
    model, params, x = network_model(), network_params(), jnp.array(IMAGES)

    def rates(x):  # [classes]
        of = lambda y: model.given(y)
        return jax.vmap(lambda y: kl(of(y).posterior(params, x), of(y).prior(params)))(
            jnp.eye(3)
        )

    rate = np.asarray(jax.vmap(rates)(x))  # [n, classes]
    weight = np.asarray(
        jax.nn.softmax(jax.vmap(lambda x: model.classifier(params, x))(x).logits)
    )
    expected = {
        "labelled": rate[np.arange(len(x)), LABELS].mean(),
        "unlabelled": (weight * rate).sum(1)[:3].mean(),
    }
    for name, f in (("labelled", 1.0), ("unlabelled", 0.0)):

        def bound(beta, f=f, name=name):
            terms = {"terms": analytic_terms, "beta": lambda step: beta}
            loss = loss_of(f, **terms)
            return loss(params, jax.random.key(5), batch_of(name))[1]["bound"]

        tempered, whole = bound(0.25), bound(1.0)
        np.testing.assert_allclose(tempered - whole, 0.75 * expected[name], rtol=1e-4)


def test_without_trust_the_classifier_learns_from_labels_alone():
    """And the rest of the model from all, as it does with trust."""
    grads = [
        quick_jit(jax.grad(lambda p, b, loss=loss: loss(p, jax.random.key(11), b)[0]))(
            network_params(), batch
        )
        for loss, batch in (
            (loss_of(0.25, trust=lambda step: 0.0 * step), both_parts()),
            (loss_of(0.25), both_parts()),
            (loss_of(1.0), batch_of("labelled")),
        )
    ]
    without, trusting, labels_alone = grads
    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, without["classifier"], labels_alone["classifier"])
    for name in ("prior", "posterior", "likelihood"):
        jax.tree.map(same, without[name], trusting[name])
    far = lambda a, b: np.max(abs(a - b))
    apart = jax.tree.map(far, without["classifier"], trusting["classifier"])
    assert max(jax.tree.leaves(apart)) > 1e-2


def both_parts():
    return batch_of("labelled", "unlabelled")


def test_the_classifier_alone_sees_the_corrupted_input():
    blank = lambda key, x: jnp.zeros_like(x)
    _, metrics = quick_jit(loss_of(0.25, corrupt=blank))(
        network_params(), jax.random.key(10), both_parts()
    )
    logits = network_model().classifier(network_params(), jnp.zeros(6)).logits
    log_q = special.log_softmax(np.asarray(logits, float))[LABELS]
    np.testing.assert_allclose(metrics["log_q"], log_q.mean(), rtol=1e-5)
    q = Categorical(logits)
    bound = lambda corrupt: quick_jit(loss_of(0.0, corrupt=corrupt))(
        network_params(), jax.random.key(10), batch_of("unlabelled")
    )[1]["bound"]
    key, x = jax.random.key(10), jnp.array(IMAGES[:3])
    key_z = jax.random.split(jax.random.split(key, 4)[1], 3)
    of = lambda key, x: unlabelled_bound(network_model(), network_params(), key, x, q=q)
    expected = jnp.mean(quick_jit(jax.vmap(of))(key_z, x))
    np.testing.assert_allclose(bound(blank), expected, rtol=1e-5)


def test_dropout_keeps_the_mean():
    """|z| < 4.5 for each of three entries."""
    keys = jax.random.split(jax.random.key(14), 20_000)
    x = jnp.array([1.0, -2.0, 0.5])
    seen = np.asarray(quick_jit(jax.vmap(lambda key: dropout(0.3)(key, x)))(keys))
    np.testing.assert_allclose(np.mean(seen == 0, 0), 0.3, atol=0.015)
    error = seen.std(0) / len(seen) ** 0.5
    assert np.all(abs(seen.mean(0) - x) < 4.5 * error)


def test_shifts_move_the_image_and_all_are_as_likely():
    """A single bright pixel tells where it went: |z| < 4.5 for each of 25 shifts."""
    image = np.zeros((8, 6, 2), np.float32)
    image[3, 2, 1] = 1.0
    shift = random_shift(image.shape, 2)
    keys = jax.random.split(jax.random.key(15), 20_000)
    x = jnp.array(image.ravel())
    moved = np.asarray(quick_jit(jax.vmap(lambda key: shift(key, x)))(keys))
    places = moved.reshape(-1, *image.shape).sum(0)
    assert np.all(moved.sum(1) == 1) and np.all(places[..., 0] == 0)
    counts = places[1:6, 0:5, 1]
    z = (counts - 800) / (20_000 * 0.04 * 0.96) ** 0.5
    assert np.all(abs(z) < 4.5) and counts.sum() == 20_000
    edge = jnp.zeros(image.shape).at[0, 0, 0].set(1.0).ravel()  # may leave, never wrap
    keys = jax.random.split(jax.random.key(16), 20_000)
    left = np.asarray(quick_jit(jax.vmap(lambda key: shift(key, edge)))(keys))
    left = left.reshape(-1, *image.shape).sum(0)
    assert left[:3, :3].sum() == left.sum() and 0 < left.sum() < 20_000


def test_classes_cost_at_most_linearly_and_what_they_share_once():
    """XLA's count: the image's matrix once, the decoder's once a class."""

    def flops(num):
        conditional = models.conditional_vae(
            models.fixed(priors.standard_normal(2)),
            posteriors.normal(networks.mlp([50], 4)),
            likelihoods.bernoulli(networks.mlp([50], 2000)),
        )
        model = models.m2(conditional, networks.mlp([4], num), np.full(num, 1 / num))
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(2000))
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
        of = lambda key, x: unlabelled_bound(model, params, key, x)
        lowered = quick_jit(of).lower(jax.random.key(0), jnp.ones(2000))
        return lowered.compile().cost_analysis()["flops"]

    decoder, encoder = 2 * 50 * 2000, 2 * 50 * 2000
    two, ten = flops(2), flops(10)
    assert 2 * decoder + encoder < two < 1.2 * (2 * decoder + encoder)
    assert 10 * decoder + encoder < ten < 1.2 * (10 * decoder + encoder)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"alpha": -0.1}, "alpha >= 0"),
        ({"alpha": np.inf}, "alpha >= 0"),
        ({"f": 1.5}, r"fraction_labelled in \[0, 1\]"),
        ({"f": np.nan}, r"fraction_labelled in \[0, 1\]"),
    ],
)
def test_wrong_weights_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        loss_of(**{"f": 0.5, **wrong})


@pytest.mark.parametrize("y", [-1, 3])
def test_a_label_that_is_no_class_is_impossible(y):
    x = x_now()
    bound = labelled_bound(exact(), exact_params(), jax.random.key(0), x, jnp.array(y))
    assert bound == -jnp.inf


def test_wrong_batches_and_models_are_errors():
    for name, other in (("labelled", "unlabelled"), ("unlabelled", "labelled")):
        with pytest.raises(ValueError, match=f"batch has no '{other}' part"):
            loss_of(0.5)(network_params(), jax.random.key(0), batch_of(name))
    conditional, classifier = network_model().given, networks.mlp([], CLASSES)
    for probs in ([1.0], [[0.25, 0.25], [0.25, 0.25]], [1.0, 0.0], [1.5, -0.5]):
        with pytest.raises(ValueError, match="2 or more positive numbers"):
            models.m2(conditional, classifier, probs)
    with pytest.raises(ValueError, match="must sum to 1"):
        models.m2(conditional, classifier, [0.5, 0.6])
    two = models.m2(conditional, classifier, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"logits \(3,\) for 2 classes"):
        two.init(jax.random.key(0), jnp.ones(6))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: unlabelled_with(top_and_sampled(0)), r"num_top must be in \[1, 3\)"),
        (lambda: unlabelled_with(top_and_sampled(3)), r"num_top must be in \[1, 3\)"),
        (lambda: gumbel_softmax(0.0), "temperature must be positive"),
        (lambda: random_shift((8, 6, 1), 6), r"a shift must be in \[0, 6\)"),
        (lambda: random_shift((8, 6, 1), -1), r"a shift must be in \[0, 6\)"),
        (lambda: dropout(1.0), r"dropout rate must be in \[0, 1\)"),
    ],
)
def test_wrong_choices_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def unlabelled_with(class_mean):
    key = jax.random.key(0)
    return unlabelled_bound(
        exact(), exact_params(), key, x_now(), class_mean=class_mean
    )


def test_options_reach_the_bound_of_every_class():
    options = {"bound": bounds.iwae, "estimator": estimators.stl, "num_samples": 2}
    with pytest.raises(ValueError, match="use `dreg`"):
        unlabelled_bound(exact(), exact_params(), jax.random.key(0), x_now(), **options)
