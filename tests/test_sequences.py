"""Token sequences: networks, decoding and probabilities, against sums over all."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen

from vi_jax import (
    bounds,
    decoding,
    evaluation,
    likelihoods,
    models,
    networks,
    objectives,
    posteriors,
    priors,
)
from vi_jax.networks import gru
from vi_jax.sequences import END, PAD, UNKNOWN, pad, unpad, word_dropout

VOCABULARY, LENGTH = 5, 4
Z = np.array([0.5, -1.0])
transformer = functools.partial(
    networks.transformer_decoder, VOCABULARY, LENGTH, width=8, layers=2, heads=2
)
DECODERS = {
    "prefix": transformer(latent="prefix", slots=2),
    "memory": transformer(latent="memory", slots=2),
    "gru": networks.gru_decoder(VOCABULARY, width=6, layers=2),
}
ENCODERS = {
    "transformer": networks.transformer_encoder(
        VOCABULARY, LENGTH, 3, width=8, layers=2, heads=2
    ),
    "gru": networks.gru_encoder(VOCABULARY, 3, width=6),
}


def all_sequences() -> np.ndarray:
    """Every sequence that ends within LENGTH, and every beginning that does not."""
    found = set()
    for row in itertools.product(range(END, VOCABULARY), repeat=LENGTH):
        if END in row:
            cut = row.index(END) + 1
            row = row[:cut] + (PAD,) * (LENGTH - cut)
        found.add(row)
    return np.array(sorted(found), np.int32)


@functools.cache
def drawn_params(name: str):
    """Parameters far from zero, so that nothing holds by chance."""
    net = DECODERS[name]
    params = jax.jit(net.init)(jax.random.key(0), jnp.array(Z, jnp.float32))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        a + 0.5 * jax.random.normal(k, a.shape)
        for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


@functools.cache
def exact(name: str) -> np.ndarray:
    """log p(x | z) of all sequences."""
    tokens = likelihoods.tokens(DECODERS[name], LENGTH)
    given = tokens.apply(drawn_params(name), jnp.array(Z, jnp.float32))
    log_p = jax.jit(jax.vmap(given.log_prob))(all_sequences())
    return np.asarray(log_p, np.float64)


@pytest.mark.parametrize("name", DECODERS)
def test_the_probabilities_of_all_sequences_add_up_to_one(name):
    np.testing.assert_allclose(np.exp(exact(name)).sum(), 1.0, atol=2e-6)
    assert exact(name).std() > 1


@pytest.mark.parametrize("name", DECODERS)
def test_the_scores_of_a_place_depend_on_what_is_before_it_and_on_z(name):
    net, params = DECODERS[name], drawn_params(name)
    logits = jax.jit(net.logits)
    z, x = jnp.array(Z, jnp.float32), jnp.array([3, 4, 2, 3])
    before = logits(params, z, x)
    for place in range(LENGTH):
        changed = logits(params, z, x.at[place].set(1))
        differs = np.abs(changed - before).max(1) > 1e-4
        np.testing.assert_array_equal(differs, np.arange(LENGTH) > place)
    moved = logits(params, z + 0.3, x)
    assert (np.abs(moved - before).max(1) > 1e-4).all()


@pytest.mark.parametrize("name", DECODERS)
def test_with_a_cache_the_scores_are_the_same(name):
    net, params = DECODERS[name], drawn_params(name)
    z, x = jnp.array(Z, jnp.float32), jnp.array([3, 4, 2, 3])
    cache, first = jax.jit(net.start)(params, z)
    step, rows = jax.jit(net.step), [first]
    for token in x[:-1]:
        cache, row = step(params, cache, token)
        rows.append(row)
    expected = jax.jit(net.logits)(params, z, x)
    np.testing.assert_allclose(jnp.stack(rows), expected, atol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_draws_are_from_the_probabilities(name):
    """Pearson's chi-squared over all sequences; a chance of 1e-4 to fail if right."""
    tokens = likelihoods.tokens(DECODERS[name], LENGTH)
    given = tokens.apply(drawn_params(name), jnp.array(Z, jnp.float32))
    x = jax.jit(jax.vmap(given.sample))(jax.random.split(jax.random.key(5), 4000))
    rows = {tuple(row): i for i, row in enumerate(all_sequences().tolist())}
    counts = np.bincount([rows[tuple(row)] for row in x.tolist()], minlength=len(rows))
    expected = 4000 * np.exp(exact(name))
    often = expected > 5
    of_rare = lambda a: np.append(a[often], a[~often].sum())
    statistic = np.sum((of_rare(counts) - of_rare(expected)) ** 2 / of_rare(expected))
    assert scipy.stats.chi2.sf(statistic, often.sum()) > 1e-4


@pytest.mark.parametrize("name", DECODERS)
def test_a_beam_of_all_beginnings_finds_the_likeliest_sequences(name):
    net, params = DECODERS[name], drawn_params(name)
    search = functools.partial(decoding.beam_search, length=LENGTH, num_beams=121)
    x, log_p = jax.jit(lambda p, z: search(net, p, z))(
        params, jnp.array(Z, jnp.float32)
    )
    order = np.argsort(-exact(name))
    np.testing.assert_allclose(log_p, exact(name)[order], atol=2e-5)
    # Neighbours in the list may be equal to rounding.
    np.testing.assert_array_equal(x[:3], all_sequences()[order[:3]])


def test_one_beam_is_greedy_and_without_a_cache_all_is_the_same():
    net, params = DECODERS["memory"], drawn_params("memory")
    z = jnp.array(Z, jnp.float32)
    given = likelihoods.tokens(net, LENGTH).apply(params, z)

    @jax.jit
    def both():
        beam, log_p = decoding.beam_search(net, params, z, length=LENGTH, num_beams=1)
        return beam[0], given.mean(), log_p[0], given.log_prob(beam[0])

    beam, mean, log_p, expected = both()
    np.testing.assert_array_equal(beam, mean)
    np.testing.assert_allclose(log_p, expected, atol=1e-5)
    slow = decoding.uncached(net, LENGTH)
    for choose in (decoding.sampled, decoding.nucleus(0.8)):
        draws = [
            jax.jit(
                jax.vmap(
                    lambda key, net=net, choose=choose: decoding.decode(
                        net, params, z, key, length=LENGTH, choose=choose
                    )
                )
            )(jax.random.split(jax.random.key(2), 30))
            for net in (net, slow)
        ]
        np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("name", DECODERS)
def test_padding_changes_no_probability(name):
    tokens = likelihoods.tokens(DECODERS[name], LENGTH)
    given = tokens.apply(drawn_params(name), jnp.array(Z, jnp.float32))
    for x in ([3, END], [4, 3, END], [END]):
        padded = jnp.array(x + [PAD] * (LENGTH - len(x)))
        together = jax.jit(given.log_prob)(padded)
        alone = jax.jit(given.log_prob)(jnp.array(x))
        np.testing.assert_allclose(together, alone, atol=1e-5)


TRANSFORMERS = sorted(DECODERS.keys() - {"gru"})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_one_token_more_than_the_length_is_right_and_two_are_an_error(name):
    net, params = DECODERS[name], drawn_params(name)
    z, key = jnp.array(Z, jnp.float32), jax.random.key(3)
    # The last token is predicted and not read, so that it needs no position.
    draw = lambda net, key: decoding.decode(net, params, z, key, length=LENGTH + 1)
    slow, keys = decoding.uncached(net, LENGTH + 1), jax.random.split(key, 1000)
    draws = jax.jit(jax.vmap(lambda key: [draw(net, key), draw(slow, key)]))
    drawn, expected = draws(keys)
    np.testing.assert_array_equal(drawn, expected)
    search = functools.partial(decoding.beam_search, net, params, z, num_beams=121)
    x, log_p = jax.jit(lambda: search(length=LENGTH + 1))()
    for found in (drawn, x):
        assert np.any(found[:, -1] != PAD), "some are of the whole length"
    given = likelihoods.tokens(net, LENGTH + 1).apply(params, z)
    expected = jax.jit(jax.vmap(given.log_prob))(x)
    np.testing.assert_allclose(log_p, expected, atol=2e-5)
    message = f"{LENGTH + 2} tokens are too many for a Transformer of length {LENGTH}"
    for call in (
        lambda: decoding.decode(net, params, z, key, length=LENGTH + 2),
        lambda: search(length=LENGTH + 2),
        lambda: net.logits(params, z, jnp.full(LENGTH + 2, 3)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_encoder_refuses_a_longer_sequence():
    encoder, x = ENCODERS["transformer"], jnp.full(LENGTH + 1, 3)
    params = encoder.init(jax.random.key(0), x[:LENGTH])
    with pytest.raises(ValueError, match=f"{LENGTH + 1} tokens are too many"):
        encoder.apply(params, x)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_token_beyond_the_vocabulary_is_no_other_to_an_encoder(name):
    encoder, x = ENCODERS[name], jnp.array([3, VOCABULARY - 1, END, PAD])
    params = encoder.init(jax.random.key(0), x)
    assert jnp.isfinite(encoder.apply(params, x)).all()
    assert jnp.isnan(encoder.apply(params, x.at[1].set(VOCABULARY))).all()


@pytest.mark.parametrize("name", DECODERS)
def test_a_token_beyond_the_vocabulary_is_no_other_to_a_decoder(name):
    net, params, z = DECODERS[name], drawn_params(name), jnp.array(Z, jnp.float32)
    logits = net.logits(params, z, jnp.array([3, VOCABULARY, 4, 3]))
    assert jnp.isnan(logits[2:]).all()
    # Under a Transformer's mask 0 times nan is nan: there the rows before it are too.
    assert name != "gru" or jnp.isfinite(logits[:2]).all()


def test_the_gru_is_flaxs_with_a_bias_for_every_gate():
    h, a, x = (
        jax.random.normal(jax.random.key(i), (n,)) for i, n in enumerate((4, 12, 9))
    )
    own = gru.Gru(4)
    dense = own.init(jax.random.key(3), h, a)["params"]["Dense_0"]
    dense["bias"] += jnp.linspace(-1, 1, 12)
    from_x = jax.random.normal(jax.random.key(4), (9, 12))
    of_h, of_x, bias = (
        jnp.split(b, 3, axis=-1) for b in (dense["kernel"], from_x, dense["bias"])
    )
    nothing = jnp.zeros(4)
    cell = {f"h{g}": {"kernel": k} for g, k in zip("rzn", of_h, strict=True)}
    cell |= {f"i{g}": {"kernel": k} for g, k in zip("rzn", of_x, strict=True)}
    cell["hn"]["bias"], cell["in"]["bias"] = bias[2], nothing
    cell["ir"]["bias"], cell["iz"]["bias"] = bias[:2]
    expected, _ = linen.GRUCell(4).apply({"params": cell}, h, x)
    found = own.apply({"params": {"Dense_0": dense}}, h, x @ from_x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_no_code(name):
    encoder = ENCODERS[name]
    params = jax.jit(encoder.init)(jax.random.key(0), jnp.array([3, END, PAD, PAD]))
    params = jax.tree.map(lambda a: a + 0.1, params)
    rows = [[3, END], [4, 2, END], [2, 4, 3, END]]
    batch = jnp.array([row + [PAD] * (LENGTH - len(row)) for row in rows])
    together = jax.jit(jax.vmap(lambda x: encoder.apply(params, x)))(batch)
    apply = jax.jit(encoder.apply)
    alone = [apply(params, jnp.array(row)) for row in rows]
    np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-5)
    assert np.abs(np.diff(together, axis=0)).max(1).min() > 1e-2
    # Order counts.
    other = apply(params, jnp.array([4, 2, 3, END]))
    assert np.abs(other - together[2]).max() > 1e-3


def test_a_marked_token_is_predicted_but_not_read():
    tokens = likelihoods.tokens(DECODERS["memory"], LENGTH)
    params, z = drawn_params("memory"), jnp.array(Z, jnp.float32)
    given = tokens.apply(params, z)
    x, read = jnp.array([3, 4, 2, END]), jnp.array([3, UNKNOWN, 2, END])
    logits = jax.jit(DECODERS["memory"].logits)(params, z, read)
    log_p = jax.vmap(decoding.next_log_probs)(logits)
    expected = sum(log_p[i, token] for i, token in enumerate(x.tolist()))
    log_p_of_x = jax.jit(given.log_prob)(x.at[1].set(-4))
    np.testing.assert_allclose(log_p_of_x, expected, atol=1e-5)
    for encoder in ENCODERS.values():
        weights = jax.jit(encoder.init)(jax.random.key(0), x)
        apply = jax.jit(encoder.apply)
        np.testing.assert_array_equal(
            apply(weights, x.at[1].set(-4)), apply(weights, x)
        )


def test_words_are_dropped_at_the_rate_and_the_end_never():
    x = jnp.tile(jnp.array([3, 4, END, PAD]), (5000, 1))
    marked = word_dropout(jax.random.key(0), x, 0.3)
    np.testing.assert_array_equal(abs(marked), x)
    share = np.mean(marked[:, :2] < 0)
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / 10_000)
    assert (marked[:, 2:] >= 0).all()


def test_the_nucleus_is_the_shortest_list_that_has_the_mass():
    p = np.array([0.0, 0.1, 0.45, 0.25, 0.2])
    log_p = jnp.log(jnp.array(p))

    def shares(choose):
        keys = jax.random.split(jax.random.key(0), 4000)
        drawn = jax.jit(jax.vmap(lambda key: choose(key, log_p)))(keys)
        return np.bincount(drawn, minlength=5) / 4000

    def expect(choose, q):
        # Four standard errors.
        assert (abs(shares(choose) - q) <= 4 * np.sqrt(q * (1 - q) / 4000)).all()

    expect(decoding.nucleus(0.45), np.array([0.0, 0, 1, 0, 0]))
    expect(decoding.nucleus(0.5), np.array([0.0, 0, 0.45, 0.25, 0]) / 0.7)
    expect(decoding.nucleus(0.75), np.array([0.0, 0, 0.45, 0.25, 0.2]) / 0.9)
    expect(decoding.sampled, p)
    expect(decoding.tempered(0.5), p**2 / np.sum(p**2))
    cold = np.array([0.0, 0, 0.45**2, 0.25**2, 0])
    expect(decoding.nucleus(0.8, temperature=0.5), cold / cold.sum())
    assert decoding.greedy(jax.random.key(0), log_p) == 2


def test_a_model_without_latents_has_log_p_of_x_for_every_bound():
    tokens = likelihoods.tokens(DECODERS["memory"], LENGTH)
    model = models.without_latents(tokens)
    x = jnp.array([3, 4, END, PAD])
    params = jax.jit(model.init)(jax.random.key(0), x)
    params = jax.tree.map(lambda a: a + 0.3, params)
    log_px = jax.jit(model.likelihood(params, jnp.zeros(0)).log_prob)(x)
    one = lambda bound: objectives.per_example(
        model, params, jax.random.key(1), x, bound=bound, num_samples=3
    )
    for bound in (bounds.elbo, bounds.iwae):
        value, terms = jax.jit(one, static_argnums=0)(bound)
        np.testing.assert_allclose(value, log_px, atol=1e-5)
        assert (terms.log_prior == 0).all() and (terms.log_post == 0).all()
    found = jax.jit(
        lambda key: evaluation.log_likelihood(model, params, key, x, num_samples=1)
    )(jax.random.key(1))
    np.testing.assert_allclose(found.log_px, log_px, atol=1e-5)


def test_importance_samples_of_a_vae_of_tokens_meet_the_sum_over_z():
    """One latent: log p(x) by quadrature over z; four standard errors."""
    model = models.vae(
        priors.standard_normal(1),
        posteriors.normal(networks.gru_encoder(VOCABULARY, 2, width=6)),
        likelihoods.tokens(DECODERS["memory"], LENGTH),
    )
    x = jnp.array([3, 4, END, PAD])
    params = jax.jit(model.init)(jax.random.key(0), x)
    decoder = jax.tree.map(lambda a: a + 0.3 * jnp.sign(a), params["likelihood"])
    params = {**params, "likelihood": decoder}
    z, w = np.polynomial.hermite_e.hermegauss(60)
    log_lik = jax.jit(
        jax.vmap(lambda z: model.likelihood(params, z[None]).log_prob(x))
    )(jnp.array(z, jnp.float32))
    assert np.ptp(log_lik) > 0.5
    log_px = np.log(np.sum(w / w.sum() * np.exp(np.asarray(log_lik, np.float64))))
    found = jax.jit(
        lambda key: evaluation.log_likelihood(
            model, params, key, x, num_samples=5000, chunk=500
        )
    )(jax.random.key(3))
    assert abs(found.log_px - log_px) < 4 * found.stderr


def test_sequences_are_padded_and_come_back():
    rows = [[3, 4], [2], [4, 4, 3]]
    x = pad(rows, 4)
    np.testing.assert_array_equal(
        x, [[3, 4, END, PAD], [2, END, PAD, PAD], [4, 4, 3, END]]
    )
    assert unpad(x) == rows
    assert unpad(np.array([[3, 4, 3, 4]])) == [[3, 4, 3, 4]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[3], []], "sequence 1 has 0 tokens"),
        ([[3], [3, 3, 3, 3]], "sequence 1 has 4 tokens: needed are 1 to 3"),
        ([[3], [3, 1]], "sequence 1 has the id 1"),
    ],
)
def test_what_is_no_sequence_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        pad(rows, 4)


def test_wrong_networks_and_choices_are_errors():
    for rate in (2.0, -0.1, np.nan):
        with pytest.raises(ValueError, match="word dropout must be in"):
            word_dropout(jax.random.key(0), jnp.ones(3, jnp.int32), rate)
    with pytest.raises(ValueError, match="heads must divide"):
        networks.transformer_decoder(5, 4, width=10, heads=4)
    with pytest.raises(ValueError, match="'prefix' or 'memory'"):
        networks.transformer_decoder(5, 4, latent="added")
    with pytest.raises(ValueError, match="at least 1"):
        networks.transformer_encoder(5, 4, 0)
    with pytest.raises(ValueError, match="at least 1"):
        networks.gru_decoder(5, layers=0)
    with pytest.raises(ValueError, match="at least 1"):
        networks.gru_encoder(0, 3)
    for mass, temperature in ((0.0, 1.0), (1.1, 1.0), (0.5, 0.0)):
        with pytest.raises(ValueError, match="mass in"):
            decoding.nucleus(mass, temperature=temperature)
    with pytest.raises(ValueError, match="num_beams"):
        decoding.beam_search(DECODERS["gru"], {}, jnp.zeros(2), length=3, num_beams=0)
    for length in (0, -1):
        with pytest.raises(ValueError, match="length must be at least 1"):
            how = {"length": length, "num_beams": 1}
            decoding.beam_search(DECODERS["gru"], {}, jnp.zeros(2), **how)
        with pytest.raises(ValueError, match="length must be at least 1"):
            key = jax.random.key(0)
            decoding.decode(DECODERS["gru"], {}, jnp.zeros(2), key, length=length)
