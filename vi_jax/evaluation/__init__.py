"""Measures of a trained model, each over one example or an array of statistics."""

from vi_jax.evaluation.ais import (
    AisEstimate as AisEstimate,
    Annealing as Annealing,
    ais as ais,
    reverse_ais as reverse_ais,
    sigmoid_betas as sigmoid_betas,
    tune as tune,
)
from vi_jax.evaluation.anomaly import (
    Threshold as Threshold,
    code_length as code_length,
    latent_distance as latent_distance,
    likelihood_regret as likelihood_regret,
    negative_elbo as negative_elbo,
    negative_log_likelihood as negative_log_likelihood,
    reconstruction_error as reconstruction_error,
    reconstruction_probability as reconstruction_probability,
    threshold as threshold,
)
from vi_jax.evaluation.bias_variance import (
    BiasVariance as BiasVariance,
    bias_variance as bias_variance,
)
from vi_jax.evaluation.classes import (
    class_log_joints as class_log_joints,
    expected_calibration_error as expected_calibration_error,
    fit_temperature as fit_temperature,
)
from vi_jax.evaluation.disentanglement import (
    Dci as Dci,
    dci as dci,
    explicitness as explicitness,
    latent_factor_information as latent_factor_information,
    mig as mig,
    modularity as modularity,
    sap as sap,
)
from vi_jax.evaluation.exact import (
    ElboForms as ElboForms,
    elbo_forms as elbo_forms,
    exact_elbo as exact_elbo,
    log_weight_variance as log_weight_variance,
    variational_gap as variational_gap,
)
from vi_jax.evaluation.gaps import (
    Gaps as Gaps,
    best_posterior as best_posterior,
    elbo_gaps as elbo_gaps,
)
from vi_jax.evaluation.gradients import (
    GradientMoments as GradientMoments,
    PowerLaw as PowerLaw,
    fit_power_law as fit_power_law,
    gradient_moments as gradient_moments,
    squared_snr as squared_snr,
)
from vi_jax.evaluation.intervention_scores import (
    beta_vae_score as beta_vae_score,
    factor_vae_score as factor_vae_score,
)
from vi_jax.evaluation.kl_split import (
    KlSplit as KlSplit,
    kl_split as kl_split,
)
from vi_jax.evaluation.latents import (
    RateSplit as RateSplit,
    active_units as active_units,
    aggregate_kl as aggregate_kl,
    collapse_report as collapse_report,
    kl_per_latent as kl_per_latent,
    mutual_information as mutual_information,
    split_rate as split_rate,
)
from vi_jax.evaluation.likelihood import (
    LogLikelihood as LogLikelihood,
    log_likelihood as log_likelihood,
)
from vi_jax.evaluation.model_selection import (
    across_seeds as across_seeds,
    lasso_similarity as lasso_similarity,
    spearman_similarity as spearman_similarity,
    udr as udr,
)
from vi_jax.evaluation.ranking import (
    Interval as Interval,
    mean_interval as mean_interval,
    ndcg_at as ndcg_at,
    recall_at as recall_at,
)
