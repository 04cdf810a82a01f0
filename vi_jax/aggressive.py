"""Aggressive updates of the encoder, against posterior collapse early in training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vi_jax.types import Array, Params

ENCODER = "posterior"


class _AggressiveState(NamedTuple):
    count: Array  # int32 [], the steps done
    inner: optax.OptState


def aggressive_encoder(
    optimizer: optax.GradientTransformation, *, every: int, until: int
) -> optax.GradientTransformation:
    """`optimizer`, in whose first `until` steps only one in `every` moves the decoder.

    params["posterior"] moves in every step, the rest in steps every - 1, 2 every - 1,
    ... and in all from `until` on, so that q(z | x) can follow p(z | x) before the
    decoder has learned to do without z. The paper instead moves the encoder alone until
    its objective no longer rises, and ends when the mutual information does; here both
    are numbers, and a step stays one step. The decoder's moments see every gradient.
    With averaging, wrap this: `averaging(aggressive_encoder(...), decay)`.
    Raises ValueError where every is below 2 or until below every, and from `init` where
    the parameters are not {"posterior": ..., more}.
    Ref: He et al. 2019, arXiv:1901.05534.
    """
    if every < 2 or until < every:
        raise ValueError(
            f"needed: every >= 2 and until >= every, got {every} and {until}"
        )

    def init(params: Params) -> _AggressiveState:
        if not isinstance(params, dict) or ENCODER not in params or len(params) < 2:
            raise ValueError(
                f'aggressive updates need parameters {{"{ENCODER}": ..., more}}, as '
                "`models.vae` has them"
            )
        return _AggressiveState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(grads, state: _AggressiveState, params: Params = None):
        updates, inner = optimizer.update(grads, state.inner, params)
        moves = (state.count >= until) | (state.count % every == every - 1)
        held = jax.tree.map(lambda u: jnp.where(moves, u, 0), updates)
        updates = {**held, ENCODER: updates[ENCODER]}
        return updates, _AggressiveState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)
