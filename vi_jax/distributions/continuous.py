"""Densities over real events: Gaussians, and what lives on half-lines and intervals."""

from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, gammaln

from vi_jax.distributions.base import LOG_2PI, register
from vi_jax.types import Array, Key


@register
class Normal:
    """Gaussian with independent coordinates, N(loc, diag(scale^2)), any event shape."""

    loc: Array
    scale: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        noise = jax.random.normal(key, jnp.shape(self.loc), jnp.result_type(self.loc))
        # A scale of more coordinates would give them all one draw.
        return self.loc + jnp.broadcast_to(self.scale, jnp.shape(self.loc)) * noise

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.loc])
        u = (x - self.loc) / self.scale
        return jnp.sum(-0.5 * u**2 - jnp.log(self.scale) - 0.5 * LOG_2PI)

    def mean(self) -> Array:
        return self.loc


@register
class FullNormal:
    """Gaussian N(loc, L L^T): loc [d], lower-triangular L = scale_tril [d, d]."""

    loc: Array
    scale_tril: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        noise = jax.random.normal(key, self.loc.shape, self.loc.dtype)
        return self.loc + self.scale_tril @ noise

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.loc])
        # A product, not a solve: under vmap over x the inverse is taken once.
        eye = jnp.eye(x.size, dtype=self.scale_tril.dtype)
        inverse = jax.scipy.linalg.solve_triangular(self.scale_tril, eye, lower=True)
        u = inverse @ (x - self.loc)
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.scale_tril)))
        return -0.5 * jnp.sum(u**2) - log_det - 0.5 * x.size * LOG_2PI

    def mean(self) -> Array:
        return self.loc


@register
class Gamma:
    """Independent Gamma(concentration, rate), any event shape; events are positive.

    In float32 the least event is 1e-38, to which a concentration below 0.05 rounds a
    part of its draws that matters.
    """

    concentration: Array
    rate: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        chex.assert_equal_shape([self.concentration, self.rate])
        x = jax.random.gamma(key, self.concentration) / self.rate
        return jnp.maximum(x, jnp.finfo(x.dtype).tiny)  # where it is rounded to 0

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.concentration, self.rate])
        a, b = self.concentration, self.rate
        log_norm = gammaln(a) - a * jnp.log(b)
        return jnp.sum((a - 1) * jnp.log(x) - b * x - log_norm)

    def mean(self) -> Array:
        return self.concentration / self.rate


@register
class Beta:
    """Independent Beta(a, b), any event shape; events lie strictly between 0 and 1.

    In float32 the greatest event is 1 - 6e-8, to which b below 0.3 rounds a part of its
    draws that matters. (The least is 1e-38: small a is no such matter.)
    """

    a: Array
    b: Array
    pathwise: ClassVar[bool] = True

    def sample(self, key: Key) -> Array:
        x = jax.random.beta(key, self.a, self.b)
        limits = jnp.finfo(x.dtype)
        return jnp.clip(x, limits.tiny, 1 - limits.epsneg)  # where it is rounded there

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.a, self.b])
        powers = (self.a - 1) * jnp.log(x) + (self.b - 1) * jnp.log1p(-x)
        return jnp.sum(powers - betaln(self.a, self.b))

    def mean(self) -> Array:
        return self.a / (self.a + self.b)
