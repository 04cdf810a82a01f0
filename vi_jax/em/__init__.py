"""Expectation maximisation: exact coordinate ascent on the ELBO, compiled."""

from vi_jax.em.checks import CollapsedComponentError as CollapsedComponentError
from vi_jax.em.gaussian_mixture import (
    MixtureFit as MixtureFit,
    VariationalFit as VariationalFit,
    fit_gaussian_mixture as fit_gaussian_mixture,
    gaussian_mixture_start as gaussian_mixture_start,
    gaussian_mixture_steps as gaussian_mixture_steps,
    variational_em as variational_em,
)
from vi_jax.em.kmeans import kmeans_plus_plus as kmeans_plus_plus
from vi_jax.em.linear_gaussian import (
    LinearPosterior as LinearPosterior,
    fit_linear_gaussian as fit_linear_gaussian,
    linear_gaussian_steps as linear_gaussian_steps,
)
from vi_jax.em.loop import Fit as Fit, Steps as Steps, em as em
