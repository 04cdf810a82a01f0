"""Builders of `Model` records."""

from vi_jax.models.linear_gaussian import linear_gaussian as linear_gaussian
from vi_jax.models.vae import vae as vae
