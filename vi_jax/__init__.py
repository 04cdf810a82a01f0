"""From maximum likelihood to modern variational autoencoders, as pure JAX functions.

import vi_jax
vi_jax.bounds.iwae(log_w)                      # [k] log-weights -> nats
vi_jax.models.vae(prior, posterior, likelihood)  # a record of pure functions
"""

import importlib

from vi_jax import (
    aggressive as aggressive,
    bounds as bounds,
    data as data,
    decoding as decoding,
    disentangling as disentangling,
    distributions as distributions,
    divergences as divergences,
    early_stopping as early_stopping,
    em as em,
    estimators as estimators,
    evaluation as evaluation,
    likelihoods as likelihoods,
    maximum_likelihood as maximum_likelihood,
    models as models,
    networks as networks,
    objectives as objectives,
    posteriors as posteriors,
    priors as priors,
    quadrature as quadrature,
    schedules as schedules,
    semi_supervised as semi_supervised,
    sequences as sequences,
    sharding as sharding,
    sweep as sweep,
    tabular as tabular,
    total_correlation as total_correlation,
    training as training,
)
from vi_jax.key_functions import (
    log_normal as log_normal,
    negative_elbo_bound as negative_elbo_bound,
    sample_gaussian as sample_gaussian,
)
from vi_jax.model import (
    ExactModel as ExactModel,
    Model as Model,
    Terms as Terms,
    generate as generate,
    infer as infer,
    interpolate as interpolate,
    log_joint as log_joint,
    log_weight as log_weight,
    reconstruct as reconstruct,
    traverse as traverse,
)
from vi_jax.types import Component as Component

__version__ = "0.1.0"


def __getattr__(name: str):
    """The modules that few need, and that take long to load, at their first use."""
    if name in ("plots", "detector", "evaluator", "resumable", "checkpoints"):
        return importlib.import_module(f"vi_jax.{name}")
    raise AttributeError(f"module 'vi_jax' has no attribute {name!r}")
