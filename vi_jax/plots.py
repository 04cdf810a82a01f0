"""Pictures: functions that return a figure or draw into axes, and save nothing."""

import io
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vi_jax.types import Array


def image_grid(
    images: np.ndarray, *, columns: int, title: str = "", gap: int = 1
) -> Figure:
    """Images [n, h, w, c] in [0, 1], row by row, `columns` to a row.

    Raises ValueError where images are not of four axes, c is neither 1 nor 3, or there
    is no image or no column.
    """
    sheet = _sheet(images, columns, gap)
    rows, columns = _rows_and_columns(len(images), columns)
    figure = Figure(figsize=(columns * 0.55, rows * 0.55 + 0.3 * bool(title)), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1 - 0.3 * bool(title) / (rows * 0.55 + 0.3)))
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=9)
    return figure


def _rows_and_columns(n: int, columns: int) -> tuple[int, int]:
    columns = min(columns, n)
    return -(-n // columns), columns


def _sheet(images: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Images [n, h, w, c] in one, [h', w'] for c = 1 and else [h', w', c], on grey."""
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [n, h, w, 1 or 3], got {images.shape}")
    n, h, w, c = images.shape
    if n < 1 or columns < 1:
        raise ValueError(f"cannot lay out {n} images in {columns} columns")
    rows, columns = _rows_and_columns(n, columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 0.5)
    for i, image in enumerate(images):
        top, left = (i // columns) * (h + gap) + gap, (i % columns) * (w + gap) + gap
        sheet[top : top + h, left : left + w] = np.clip(image, 0, 1)
    return sheet[..., 0] if c == 1 else sheet


def named_rows(rows: Mapping[str, np.ndarray], *, gap: int = 1) -> Figure:
    """Rows of images [n, h, w, c] in [0, 1], one above another, each with its name.

    Latent traversals, or reconstructions against beta. Raises ValueError where there is
    no row, rows are not of one shape, or an image is none.
    """
    if len({np.shape(images) for images in rows.values()}) != 1:
        raise ValueError(
            f"rows must have one shape, got {[np.shape(a) for a in rows.values()]}"
        )
    n, h, w, _ = np.shape(next(iter(rows.values())))
    sheet = _sheet(np.concatenate(list(rows.values())), n, gap)
    size = 0.55 * n, 0.55 * len(rows) * h / w
    margin = 0.1 + 0.075 * max(len(name) for name in rows)
    figure = Figure(figsize=(size[0] + margin, size[1]), dpi=150)
    axes = figure.add_axes(
        (margin / (size[0] + margin), 0, size[0] / (size[0] + margin), 1)
    )
    axes.imshow(
        sheet,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
    )
    axes.set(xticks=[], yticks=[(i + 0.5) * (h + gap) for i in range(len(rows))])
    axes.set_yticklabels(list(rows), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def animation(
    frames: np.ndarray, *, columns: int, seconds: float = 0.1, zoom: int = 2
) -> bytes:
    """A GIF that plays frames [t, n, h, w, c] there and back: n images at each time.

    `zoom` repeats pixels. Raises ValueError as `image_grid`, where there is no frame,
    and where zoom is below 1 or seconds not positive.
    """
    if zoom < 1 or not seconds > 0:
        raise ValueError(f"needed: zoom >= 1, seconds > 0, got {zoom} and {seconds}")
    if not len(frames):
        raise ValueError("nothing to play: there is no frame")
    sheets = [_sheet(images, columns, gap=1) for images in frames]
    pictures = []
    for sheet in [*sheets, *sheets[-2:0:-1]]:
        pixels = np.rint(255 * sheet).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
        pictures.append(Image.fromarray(pixels))
    file = io.BytesIO()
    pictures[0].save(
        file,
        "gif",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 * seconds),
        loop=0,
    )
    return file.getvalue()


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


def latent_map(means: np.ndarray, label: np.ndarray) -> Figure:
    """The posterior means [n, 2] of n examples, coloured by their classes [n].

    Raises ValueError where means are not [n, 2] or label is not [n].
    """
    means, label = np.asarray(means), np.asarray(label)
    if means.ndim != 2 or means.shape[1] != 2 or label.shape != means.shape[:1]:
        raise ValueError(
            f"needed: means [n, 2] and label [n], got {means.shape} and {label.shape}"
        )
    figure = Figure(figsize=(5, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for i, y in enumerate(np.unique(label)):
        axes.scatter(*means[label == y].T, s=3, lw=0, color=f"C{i % 10}", label=str(y))
    axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    axes.legend(frameon=False, markerscale=4, bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def kl_bars(kl_per_latent: np.ndarray, *, title: str = "") -> Figure:
    """The rate of each latent [d], nats, the largest first; its number is below."""
    rates = np.asarray(kl_per_latent)
    order = np.argsort(-rates, kind="stable")
    figure = Figure(
        figsize=(1.2 + 0.16 * len(rates), 2.6), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    axes.bar(np.arange(len(rates)), rates[order], color="C0")
    axes.set_xticks(np.arange(len(rates)), [str(j) for j in order], fontsize=6)
    axes.set(xlabel="latent", ylabel="KL, nats", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def rate_distortion(
    rate: np.ndarray,
    distortion: np.ndarray,
    beta: np.ndarray,
    *,
    label: str = "models",
    **curves: tuple,
) -> Figure:
    """The models [m] of a sweep over beta in the plane of rate and distortion, nats.

    On the dashed lines the ELBO, -(rate + distortion), is one number: that of beta = 1
    is the best there, if the networks reach it, and the models of other beta lie above.
    `curves` are more of them, name=(rate, distortion).
    Ref: Alemi et al. 2018, arXiv:1711.00464.
    """
    rate, distortion, beta = (np.asarray(a) for a in (rate, distortion, beta))
    figure = Figure(figsize=(5.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    order = np.argsort(rate)
    axes.plot(rate[order], distortion[order], "o-", ms=4, lw=1.2, label=label)
    for name, (x, y) in curves.items():
        order = np.argsort(x)
        axes.plot(
            np.asarray(x)[order], np.asarray(y)[order], "o--", ms=3, lw=1, label=name
        )
    best = np.min(rate + distortion)
    ends = np.array([0.0, 1.08 * rate.max()])
    axes.plot(ends, best - ends, "k--", lw=0.8, label=f"ELBO = {-best:.1f}")
    for b, x, y in zip(beta, rate, distortion, strict=True):
        side = "β < 1" if b < 1 else "β > 1" if b > 1 else ""
        colour = {"β < 1": "C3", "β > 1": "C2", "": "k"}[side]
        axes.annotate(
            f"{b:g}", (x, y), (4, 4), textcoords="offset points", color=colour, size=8
        )
    axes.set(xlabel="rate, nats", ylabel="distortion, nats")
    axes.set(ylim=_around(distortion), xlim=ends)
    axes.legend(frameon=False)
    return figure


def score_histograms(
    panels: Mapping[str, Mapping[str, np.ndarray]], *, xlabel: str, columns: int = 5
) -> Figure:
    """Densities of scores [n] by their name, several over one another in each panel.

    The axis reaches from the least to the 99th percentile of the widest. Raises
    ValueError where there is no panel.
    """
    if not panels:
        raise ValueError("nothing to draw: there is no panel")
    rows, columns = _rows_and_columns(len(panels), columns)
    figure = Figure(
        figsize=(1 + 2.4 * columns, 0.6 + 1.8 * rows), dpi=120, layout="constrained"
    )
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, scores) in zip(every, panels.items(), strict=False):
        low = min(np.min(a) for a in scores.values())
        high = max(np.percentile(a, 99) for a in scores.values())
        bins = np.linspace(low, max(high, low + 1e-6), 50)
        for name, each in scores.items():
            axes.hist(each, bins, density=True, alpha=0.55, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_yticks([])
    for axes in every[len(panels) :]:
        axes.axis("off")
    every[0].legend(frameon=False, fontsize=8)
    figure.supxlabel(xlabel, fontsize=9)
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
    left.set_ylim(_around(_settled(bound), _settled(valid)))
    left.set(xlabel="step", ylabel="bound, nats (higher is better)")
    parts = {name: _series(records, name) for name in ("rate", "distortion")}
    for name, (step, values) in parts.items():
        right.plot(step, values, label=name, lw=1)
    right.set_ylim(_around(*(_settled(values) for _, values in parts.values())))
    right.set(xlabel="step", ylabel="nats")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _settled(values: np.ndarray) -> np.ndarray:
    return values[len(values) // 20 :]


def _around(*series: np.ndarray) -> tuple[float, float] | None:
    """The ends of an axis that shows what is finite, with a margin of its range."""
    values = np.concatenate(series)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    margin = 0.05 * np.ptp(values) + 1e-3
    return values.min() - margin, values.max() + margin


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
