"""Measures of a trained model, each over one example or an array of statistics."""

from vi_jax.evaluation.ais import (
    AisEstimate as AisEstimate,
    Annealing as Annealing,
    ais as ais,
    reverse_ais as reverse_ais,
    sigmoid_betas as sigmoid_betas,
    tune as tune,
)
from vi_jax.evaluation.bias_variance import (
    BiasVariance as BiasVariance,
    bias_variance as bias_variance,
)
from vi_jax.evaluation.exact import (
    ElboForms as ElboForms,
    elbo_forms as elbo_forms,
    exact_elbo as exact_elbo,
    log_weight_variance as log_weight_variance,
    variational_gap as variational_gap,
)
from vi_jax.evaluation.latents import active_units as active_units
from vi_jax.evaluation.likelihood import (
    LogLikelihood as LogLikelihood,
    log_likelihood as log_likelihood,
)
