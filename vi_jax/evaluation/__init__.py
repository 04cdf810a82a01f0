"""Measures of a trained model, each over one example or an array of statistics."""

from vi_jax.evaluation.latents import active_units as active_units
from vi_jax.evaluation.likelihood import (
    LogLikelihood as LogLikelihood,
    log_likelihood as log_likelihood,
)
