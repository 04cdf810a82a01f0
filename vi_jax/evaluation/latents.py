"""What the latents of a trained model carry."""

import jax.numpy as jnp

from vi_jax.types import Array

ACTIVE_VARIANCE = 0.01


def active_units(means: Array) -> Array:
    """Which latents vary with x: Var_x E_q[z | x] > 0.01, bool [d] from means [n, d].

    Ref: Burda et al. 2016, arXiv:1509.00519, section 5.
    """
    return jnp.var(means, axis=0) > ACTIVE_VARIANCE
