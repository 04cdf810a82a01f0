"""Drawing token sequences from a causal network, one token after another.

Written for one z; `vmap` over z and keys makes many. `choose(key, log_p [v]) -> token`
is how a token is taken: `sampled` (from the model itself), `greedy`, `tempered`,
`nucleus`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vi_jax.checks import at_least
from vi_jax.sequences import END, PAD
from vi_jax.types import Array, Key, Latents, Params, SequenceNetwork

Choose = Callable[[Key, Array], Array]
"""(key, log-probabilities [v]) -> token, int32 []."""


def without_pad(logits: Array) -> Array:
    """Logits [v] of what may come next: PAD is no token, and gets -inf."""
    return jnp.where(jnp.arange(logits.size) == PAD, -jnp.inf, logits)


def next_log_probs(logits: Array) -> Array:
    """log p(token | those before), [v]."""
    return jax.nn.log_softmax(without_pad(logits))


def sampled(key: Key, log_p: Array) -> Array:
    """A draw from the model's own probabilities."""
    return jax.random.categorical(key, log_p)


def greedy(key: Key, log_p: Array) -> Array:
    """The likeliest token."""
    del key
    return jnp.argmax(log_p)


def tempered(temperature: float) -> Choose:
    """Draws from p^(1 / temperature), renormalised; below 1 it is sharper.

    Raises ValueError where temperature is not positive and finite.
    """
    return nucleus(1.0, temperature=temperature)


def nucleus(mass: float, *, temperature: float = 1.0) -> Choose:
    """Draws from the likeliest tokens that together have at least `mass`.

    They are the shortest such list, taken after the temperature. Raises ValueError
    where mass is outside (0, 1] or temperature not positive and finite.
    Ref: Holtzman et al. 2020, arXiv:1904.09751.
    """
    tiny = float(jnp.finfo(jnp.float32).tiny)  # neither it nor its inverse may be 0
    if not 0 < mass <= 1 or not tiny < temperature < 1 / tiny:
        raise ValueError(
            "needed: mass in (0, 1] and a finite temperature > 0, got "
            f"{mass} and {temperature} (for temperature 0 there is `greedy`)"
        )

    def choose(key: Key, log_p: Array) -> Array:
        # From the top: a low temperature must not make all of them -inf.
        log_p = jax.nn.log_softmax((log_p - jnp.max(log_p)) / temperature)
        falling, tokens = jax.lax.top_k(log_p, log_p.size)
        p = jnp.exp(falling)
        before = jnp.cumsum(p) - p  # the mass of those that are likelier
        # All of them where mass is 1: rounding must not cut the tail.
        kept = (before < mass) | (mass == 1.0)
        return tokens[jax.random.categorical(key, jnp.where(kept, falling, -jnp.inf))]

    return choose


def decode(
    network: SequenceNetwork,
    params: Params,
    z: Latents,
    key: Key,
    *,
    length: int,
    choose: Choose = sampled,
) -> Array:
    """A sequence given z, int32 [length]: tokens, END, then PAD; cut where it is long.

    Each token costs one step of the network, which keeps what the earlier ones left.
    Raises ValueError where length is below 1 or more than the network can score.
    """
    _check_length(network, params, z, length)

    def step(carry, i: Array):
        cache, logits, ended = carry
        key_i = jax.random.fold_in(key, i)
        token = jnp.where(ended, PAD, choose(key_i, next_log_probs(logits)))
        cache, logits = network.step(params, cache, token)
        return (cache, logits, ended | (token == END)), token.astype(jnp.int32)

    start = (*network.start(params, z), jnp.zeros((), bool))
    return jax.lax.scan(step, start, jnp.arange(length))[1]


def beam_search(
    network: SequenceNetwork,
    params: Params,
    z: Latents,
    *,
    length: int,
    num_beams: int,
) -> tuple[Array, Array]:
    """The likeliest sequences found, [num_beams, length], and their log-probabilities.

    At every place the num_beams best beginnings are kept; the first row is the best.
    With num_beams = 1 it is `greedy`. Raises ValueError where num_beams is below 1, and
    as `decode`.
    """
    at_least(1, num_beams=num_beams)
    _check_length(network, params, z, length)
    repeat = lambda a: jnp.broadcast_to(a, (num_beams, *a.shape))
    cache, logits = jax.tree.map(repeat, network.start(params, z))
    # One beam to begin with: the others, being equal, must not crowd it out.
    log_p = jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf)
    x = jnp.full((num_beams, length), PAD, jnp.int32)

    def step(i: Array, carry):
        cache, logits, log_p, x, ended = carry
        vocabulary = logits.shape[-1]
        of_next = jax.vmap(next_log_probs)(logits)
        # A sequence that has ended goes on with PAD, at no cost.
        only_pad = jnp.where(jnp.arange(vocabulary) == PAD, 0.0, -jnp.inf)
        of_next = jnp.where(ended[:, None], only_pad[None], of_next)
        log_p, best = jax.lax.top_k(jnp.ravel(log_p[:, None] + of_next), num_beams)
        parent, token = best // vocabulary, best % vocabulary
        cache = jax.tree.map(lambda a: a[parent], cache)
        cache, logits = jax.vmap(lambda c, token: network.step(params, c, token))(
            cache, token
        )
        x = x[parent].at[:, i].set(token.astype(jnp.int32))
        return cache, logits, log_p, x, ended[parent] | (token == END)

    start = (cache, logits, log_p, x, jnp.zeros(num_beams, bool))
    _, _, log_p, x, _ = jax.lax.fori_loop(0, length, step, start)
    return x, log_p


def _check_length(
    network: SequenceNetwork, params: Params, z: Latents, length: int
) -> None:
    at_least(1, length=length)
    # Its steps cannot know: the place is no number when they are traced.
    tokens = jax.ShapeDtypeStruct((length,), jnp.int32)
    jax.eval_shape(network.logits, params, z, tokens)


def uncached(network: SequenceNetwork, length: int) -> SequenceNetwork:
    """The same network, which at every step reads the whole sequence once more.

    What a decoder without a cache of keys and values does: for comparison only.
    """

    def start(params: Params, z: Latents):
        x = jnp.full(length + 1, PAD, jnp.int32)
        return (z, x, jnp.zeros((), int)), network.logits(params, z, x[:length])[0]

    def step(params: Params, cache, token: Array):
        z, x, place = cache
        x = x.at[place].set(token)
        place = jnp.minimum(place + 1, length - 1)
        return (z, x, place), network.logits(params, z, x[:length])[place]

    return SequenceNetwork(network.init, network.logits, start, step)
