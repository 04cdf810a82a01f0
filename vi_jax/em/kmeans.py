"""k-means++ sampling: the start of a mixture, compiled."""

import jax
import jax.numpy as jnp

from vi_jax.types import Array, Key


def kmeans_plus_plus(key: Key, x: Array, num_centers: int) -> Array:
    """m rows of x [n, D], each drawn by its squared distance to those before, [m, D].

    P(row i) = d_i^2 / sum_j d_j^2, where d_i is the distance to the nearest row drawn
    so far; the first is uniform. No point comes twice while there is another one.
    Ref: Arthur & Vassilvitskii 2007.
    """
    key_first, key_rest = jax.random.split(key)
    first = x[jax.random.randint(key_first, (), 0, len(x))]

    def draw(nearest: Array, i: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(key_rest, i)
        center = x[jax.random.categorical(key, jnp.log(nearest))]
        return jnp.minimum(nearest, _squared_distance(x, center)), center

    start = _squared_distance(x, first)
    _, others = jax.lax.scan(draw, start, jnp.arange(num_centers - 1))
    return jnp.concatenate([first[None], others])


def _squared_distance(x: Array, center: Array) -> Array:
    return jnp.sum((x - center[None]) ** 2, axis=1)
