"""Networks as Components. The only part of vi_jax that imports flax.

`vi_jax.Component(init, apply)` is one of your own, of any library or none.
"""

from vi_jax.networks.conv import (
    broadcast_decoder as broadcast_decoder,
    conv_decoder as conv_decoder,
    conv_encoder as conv_encoder,
)
from vi_jax.networks.gru import gru_decoder as gru_decoder, gru_encoder as gru_encoder
from vi_jax.networks.linen import from_linen as from_linen
from vi_jax.networks.made import made as made
from vi_jax.networks.mlp import mlp as mlp
from vi_jax.networks.transformer import (
    transformer_decoder as transformer_decoder,
    transformer_encoder as transformer_encoder,
)
