"""Distributions over one example, as pytrees that hold their parameters.

Each has `sample(key) -> event`, `log_prob(event) -> []` in nats summed over the event,
`mean()`, and the class constant `pathwise`: whether a sample carries the gradient of
the parameters. `vmap` adds samples and batches. `register` makes one of your own.
"""

from vi_jax.distributions.autoregressive import (
    AutoregressiveBernoulli as AutoregressiveBernoulli,
)
from vi_jax.distributions.base import (
    LOG_2PI as LOG_2PI,
    Distribution as Distribution,
    register as register,
)
from vi_jax.distributions.columns import MixedColumns as MixedColumns
from vi_jax.distributions.continuous import (
    Beta as Beta,
    FullNormal as FullNormal,
    Gamma as Gamma,
    Normal as Normal,
)
from vi_jax.distributions.counts import Multinomial as Multinomial
from vi_jax.distributions.discrete import (
    Bernoulli as Bernoulli,
    Categorical as Categorical,
    JointBernoulli as JointBernoulli,
    StraightThroughBernoulli as StraightThroughBernoulli,
    binary_states as binary_states,
)
from vi_jax.distributions.mixture import (
    Mixture as Mixture,
    is_continuous as is_continuous,
)
from vi_jax.distributions.pixels import (
    ContinuousBernoulli as ContinuousBernoulli,
    DiscretizedLogistic as DiscretizedLogistic,
    DiscretizedLogisticMixture as DiscretizedLogisticMixture,
    PixelCategorical as PixelCategorical,
    bits_per_dim as bits_per_dim,
)
from vi_jax.distributions.sequences import TokenSequence as TokenSequence
