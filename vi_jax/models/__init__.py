"""Builders of `Model` and `ExactModel` records."""

from vi_jax.models.conditional import (
    Conditional as Conditional,
    at_context as at_context,
    conditional_vae as conditional_vae,
    fixed as fixed,
    moved as moved,
)
from vi_jax.models.gaussian_mixture import gaussian_mixture as gaussian_mixture
from vi_jax.models.hierarchical import (
    Chain as Chain,
    hierarchical_vae as hierarchical_vae,
)
from vi_jax.models.language_model import without_latents as without_latents
from vi_jax.models.linear_gaussian import linear_gaussian as linear_gaussian
from vi_jax.models.semi_supervised import (
    SemiSupervised as SemiSupervised,
    m2 as m2,
)
from vi_jax.models.sigmoid_belief_network import (
    sigmoid_belief_network as sigmoid_belief_network,
)
from vi_jax.models.vae import vae as vae
