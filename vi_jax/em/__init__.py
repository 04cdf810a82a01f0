"""Expectation maximisation: exact coordinate ascent on the ELBO, compiled."""

from vi_jax.em.loop import Fit as Fit, Steps as Steps, em as em
