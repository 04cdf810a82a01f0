"""Measures of a trained model, each over one example or an array of statistics."""

from vi_jax.evaluation.exact import (
    ElboForms as ElboForms,
    elbo_forms as elbo_forms,
    exact_elbo as exact_elbo,
    variational_gap as variational_gap,
)
from vi_jax.evaluation.latents import active_units as active_units
from vi_jax.evaluation.likelihood import (
    LogLikelihood as LogLikelihood,
    log_likelihood as log_likelihood,
)
