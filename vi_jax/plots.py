"""Pictures: functions that return a figure or draw into axes, and save nothing."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from vi_jax.types import Array


def image_grid(
    images: np.ndarray, *, columns: int, title: str = "", gap: int = 1
) -> Figure:
    """Images [n, h, w, c] in [0, 1], row by row, `columns` to a row.

    Raises ValueError where images are not of four axes, c is neither 1 nor 3, or there
    is no image or no column.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [n, h, w, 1 or 3], got {images.shape}")
    n, h, w, c = images.shape
    if n < 1 or columns < 1:
        raise ValueError(f"cannot lay out {n} images in {columns} columns")
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 0.5)
    for i, image in enumerate(images):
        top, left = (i // columns) * (h + gap) + gap, (i % columns) * (w + gap) + gap
        sheet[top : top + h, left : left + w] = np.clip(image, 0, 1)
    figure = Figure(figsize=(columns * 0.55, rows * 0.55 + 0.3 * bool(title)), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1 - 0.3 * bool(title) / (rows * 0.55 + 0.3)))
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=9)
    return figure


def beside(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Rows of `originals` [n, ...] and `reconstructions`, one pair after another."""
    both = np.stack([originals, reconstructions], axis=1)
    return both.reshape(-1, *originals.shape[1:])


def reliability(
    probs: dict[str, np.ndarray], label: np.ndarray, *, num_bins: int = 15
) -> Figure:
    """Accuracy against confidence, of each of several [n, c] for the same labels [n].

    The bins are of equally many examples; on the diagonal confidence is what it says.
    """
    figure = Figure(figsize=(4, 3.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    lowest = 1.0
    for name, each in probs.items():
        confidence, right = np.max(each, 1), np.argmax(each, 1) == label
        bins = np.array_split(np.argsort(confidence, kind="stable"), num_bins)
        x = [confidence[b].mean() for b in bins]
        y = [right[b].mean() for b in bins]
        axes.plot(x, y, "o-", ms=4, lw=1.2, label=name)
        lowest = min(lowest, *x, *y)
    axes.plot([lowest, 1], [lowest, 1], color="0.6", lw=1, ls="--")
    axes.set(xlabel="confidence", ylabel="accuracy")
    axes.legend(frameon=False)
    return figure


def training_curves(records: Sequence[dict[str, float]]) -> Figure:
    """The bound, and rate and distortion, against the step, from metrics.jsonl.

    The first twentieth of the run, where the bound climbs from very low, is left out of
    the range of the axes.
    """
    figure = Figure(figsize=(8, 3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    step, bound = _series(records, "bound")
    left.plot(step, bound, label="train (the objective)", lw=1)
    valid_step, valid = _series(records, "valid_bound")
    left.plot(valid_step, valid, "o-", ms=3, label="validation (IWAE-100)", lw=1)
    _limit(left, bound, valid)
    left.set(xlabel="step", ylabel="bound, nats (higher is better)")
    for name in ("rate", "distortion"):
        step, values = _series(records, name)
        right.plot(step, values, label=name, lw=1)
    right.set_ylim(0, 1.1 * max(_settled(values), default=1.0))
    right.set(xlabel="step", ylabel="nats")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _settled(values: np.ndarray) -> np.ndarray:
    later = values[len(values) // 20 :]
    return later[np.isfinite(later)]


def _limit(axes: Axes, *series: np.ndarray) -> None:
    settled = np.concatenate([_settled(values) for values in series])
    if settled.size:
        margin = 0.05 * np.ptp(settled) + 1e-3
        axes.set_ylim(settled.min() - margin, settled.max() + margin)


def _series(records: Sequence[dict[str, float]], name: str):
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)


def density(
    axes: Axes,
    log_prob: Callable[[Array], Array],
    box: tuple[float, float, float, float],
    *,
    filled: bool = True,
    color: str = "C0",
) -> None:
    """Contours of a density over the plane, log_prob [2] -> [], within a box.

    box is (left, right, bottom, top); the levels fall by factors of e from the peak.
    """
    left, right, bottom, top = box
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    points = np.stack([x.ravel(), y.ravel()], -1)
    heights = np.asarray(jax.jit(jax.vmap(log_prob))(points)).reshape(x.shape)
    levels = heights.max() + np.arange(-6.0, 0.0)
    if filled:
        axes.contourf(
            x, y, heights, [*levels, heights.max()], cmap="Blues", extend="min"
        )
    else:
        axes.contour(x, y, heights, levels, colors=color, linewidths=1, linestyles="-")


def ellipses(
    axes: Axes, loc: np.ndarray, covariance: np.ndarray, *, color: str = "k"
) -> None:
    """Draw the 2-sigma ellipses of m Gaussians, loc [m, 2], covariance [m, 2, 2]."""
    for center, matrix in zip(np.asarray(loc), np.asarray(covariance), strict=True):
        variances, directions = np.linalg.eigh(matrix)
        angle = np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))
        height, width = 4 * np.sqrt(variances)
        axes.add_patch(
            Ellipse(center, width, height, angle=angle, fill=False, ec=color, lw=1.5)
        )
        axes.plot(*center, "+", color=color, ms=7)
