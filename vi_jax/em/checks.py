"""What a mixture can not be fitted to, and what it must not end as."""

import jax
import numpy as np

from vi_jax.checks import at_least
from vi_jax.models.gaussian_mixture import Covariance, scale_tril
from vi_jax.types import Params


class CollapsedComponentError(ValueError):
    """A component has shrunk onto a point, a line or a plane, or holds no point."""


def checked_data(x, num_components: int) -> np.ndarray:
    """x [n, D] in the default float type, if m components can be fitted to it.

    Raises ValueError that says why not.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"x must be [n, D], n and D at least 1, got shape {x.shape}")
    x = x.astype(jax.dtypes.canonicalize_dtype(float))
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        i, j = bad[0]
        raise ValueError(
            f"x has {len(bad)} entries that are not finite, the first {x[i, j]} in row "
            f"{i}, column {j}: remove or fill them"
        )
    _check_num_components(x, num_components)
    _check_columns(x)
    return x


def check_floor(floor: float) -> None:
    """Raise ValueError where the floor is not a positive, finite number."""
    if not 0 < floor < float("inf"):
        raise ValueError(
            f"floor is {floor}: without a positive limit on the variance a component "
            "can shrink onto one point, where the likelihood is infinite"
        )


def _check_num_components(x: np.ndarray, num_components: int) -> None:
    at_least(1, num_components=num_components)
    # Most often a few rows show that there are enough distinct ones.
    some = len(np.unique(x[: 10 * num_components], axis=0))
    distinct = some if some >= num_components else len(np.unique(x, axis=0))
    if distinct < num_components:
        raise ValueError(
            f"{num_components} components need as many distinct points: x has "
            f"{distinct} in {len(x)} rows"
        )


def _check_columns(x: np.ndarray) -> None:
    if len(x) == 1:
        raise ValueError("x has one point, which has no variance: give it more rows")
    constant = np.flatnonzero(np.ptp(x, axis=0) == 0)
    if constant.size:
        raise ValueError(
            f"constant columns {constant.tolist()}: their variance is 0, where the "
            "likelihood has no maximum; drop them"
        )
    with np.errstate(over="ignore", under="ignore"):
        variance = np.var(x, axis=0)
    limits = np.finfo(x.dtype)
    fits = (variance > 1e12 * limits.tiny) & (variance < 1e-12 * limits.max)
    if not fits.all():
        raise ValueError(
            f"columns {np.flatnonzero(~fits).tolist()} have a variance that is too "
            f"small or too large for {x.dtype}: change their unit"
        )


def complaint(
    params: Params, num_points: int, floor: float, covariance: Covariance
) -> str | None:
    """What is wrong with a fitted mixture: its first collapsed component, or None."""
    weight = np.exp(np.asarray(jax.nn.log_softmax(params["logits"]), float))
    least = _least_variance(params, covariance)
    for i, (w, v) in enumerate(zip(weight, least, strict=True)):
        # 1%: what the factor's rounding may add to a variance at its floor. A nan is
        # neither above nor below it.
        if not (w * num_points >= 1 and v > 1.01 * floor):
            return _message(i, w, v, num_points, floor)
    return None


def _least_variance(params: Params, covariance: Covariance) -> np.ndarray:
    """The variance of each component in the direction where it is least, [m]."""
    scale, num_components = params["scale"], len(params["loc"])
    if covariance in ("tied", "full"):
        roots = np.linalg.svd(np.asarray(scale_tril(scale), float), compute_uv=False)
    else:
        roots = np.exp(np.asarray(scale, float)).reshape(num_components, -1)
    return np.broadcast_to(np.min(roots, axis=-1) ** 2, num_components)


def _message(i: int, weight: float, least: float, n: int, floor: float) -> str:
    holds = f"component {i} (weight {weight:.2g}: {weight * n:.3g} of {n} points)"
    if weight * n < 1:
        fault = "holds less than one point"
    else:
        fault = f"has variance {least:.2g} in some direction, at the floor {floor:.2g}"
    return (
        f"{holds} has collapsed, it {fault}: use fewer components, a larger floor, "
        "covariance='diagonal' or 'tied', or remove duplicate rows and columns that "
        "are linear functions of others"
    )
