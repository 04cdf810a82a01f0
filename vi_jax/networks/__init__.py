"""Networks as Components. The only part of vi_jax that imports flax."""

from vi_jax.networks.conv import (
    broadcast_decoder as broadcast_decoder,
    conv_decoder as conv_decoder,
    conv_encoder as conv_encoder,
)
from vi_jax.networks.linen import from_linen as from_linen
from vi_jax.networks.mlp import mlp as mlp
