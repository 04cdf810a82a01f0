"""Signal-to-noise ratio and variance of every gradient estimator, bound and k.

    python -m experiments.estimator_variance
    python -m experiments.estimator_variance --draws 40 --run-dir runs/variance_quick

The linear-Gaussian model of Rainforth et al. 2018, arXiv:1802.04537, section 4: p(z) =
N(mu, I), p(x | z) = N(z, I) and q(z | x) = N(A x + b, 2/3 I), in 20 dimensions, where
mu, A and b are those that are best for 1024 data, each entry moved by N(0, 0.01^2). A
gradient is of one example. "Inference" is b: the gradient of A is that of b times x, so
it has the same signal-to-noise ratio, and |x|^2 times the variance. "Generative" is mu.

The ratio is |E g| / sd(g) of one draw of g, its root mean square over coordinates and
repeats, each of other parameters and another example. Theory, for IWAE and large k:
k^-1/2 for inference with `reparam`, k^1/2 with `dreg` and for the generative part. The
signal of `reparam` is soon too small for its own draws; it is the one that `dreg`
measures: both are unbiased for one gradient, and a chi-squared test says if they agree.

Expect slopes of -0.496 [-0.500, -0.492] (`reparam`), 0.490 [0.485, 0.494] (`dreg`) and
0.501 [0.496, 0.505] (generative), and at k = 64 a gradient of b whose variance is 1.11
with `reparam`, 0.15 with `vimco` and 0.0002 with `dreg`; 6 minutes on 2 cores.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from vi_jax import bounds, estimators, objectives, runs
from vi_jax.bounds import Bound
from vi_jax.commands import clear_errors
from vi_jax.distributions import Normal
from vi_jax.divergences import Estimate
from vi_jax.estimators import Estimator, score
from vi_jax.evaluation import (
    GradientMoments,
    fit_power_law,
    gradient_moments,
    squared_snr,
)
from vi_jax.model import Model
from vi_jax.types import Array, Key, Params

NUM_DATA, NUM_LATENTS = 1024, 20
PERTURBATION = 0.01
CHUNK = 20  # gradients held at a time
PARTS = {"inference": "b", "generative": "mu"}
MIWAE = functools.partial(bounds.miwae, groups=4)
BOUNDS = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "miwae, 4 groups": MIWAE,
    "ciwae, mix 0.5": functools.partial(bounds.ciwae, mix=0.5),
    "renyi, alpha 0.5": functools.partial(bounds.renyi, alpha=0.5),
    "tvo, 3 steps": functools.partial(bounds.tvo, betas=(0.0, 0.1, 0.3, 1.0)),
}


def piwae(bound, *args, **options):
    """IWAE for the generative parameters, MIWAE in 4 groups for inference."""
    if bound is not bounds.iwae:
        raise ValueError("PIWAE is a pairing with IWAE")
    return estimators.paired(MIWAE, estimators.reparam)(bound, *args, **options)


BEST_CONSTANT = "score, best constant"
ESTIMATORS = {
    "reparam": estimators.reparam,
    "stl": estimators.stl,
    "dreg": estimators.dreg,
    "score": estimators.score,
    BEST_CONSTANT: estimators.score,
    "vimco (leave one out)": estimators.vimco,
    "wake_sleep *": estimators.wake_sleep,
    "piwae *": piwae,
}
PATHWISE = ("reparam", "dreg")
TABLE_K = (1, 4, 16, 64)
CURVE_K = (1, 4, 16, 64, 256, 1024)
FIT_FROM = 64  # the slopes are a law for large k


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The knobs of the run, all of them part of what the run folder stands for."""

    draws: int = 200
    """Gradients of each estimator, bound, k and repeat; a multiple of 20, from 40."""
    repeats: int = 32
    """Perturbations of the parameters, each with an example of its own."""
    seed: int = 0
    """Of the data, the perturbations and every gradient."""


class Problem(NamedTuple):
    params: Params  # leaves lead with [r], the repeats
    x: Array  # [r, d]


# By bound and k: moments of {estimator: {part: [r, d]}}.
Measured = dict[tuple[str, int], GradientMoments]


def optimum(key: Key, mean: Array) -> Params:
    """The best parameters for data of this mean [d], perturbed."""
    best = {"mu": mean, "A": jnp.eye(mean.size, dtype=mean.dtype) / 2, "b": mean / 2}
    keys = dict(zip(best, jax.random.split(key, len(best)), strict=True))
    noise = lambda k, leaf: PERTURBATION * jax.random.normal(k, leaf.shape, leaf.dtype)
    return jax.tree.map(lambda leaf, k: leaf + noise(k, leaf), best, keys)


_normal = lambda loc, variance: Normal(loc, jnp.full_like(loc, variance**0.5))
MODEL = Model(
    init=optimum,
    prior=lambda params: _normal(params["mu"], 1.0),
    posterior=lambda params, x: _normal(params["A"] @ x + params["b"], 2 / 3),
    likelihood=lambda params, z: _normal(z, 1.0),
)


def problem(key: Key, knobs: Knobs) -> Problem:
    """Data from the model, and for each repeat an example and perturbed parameters."""
    key_mu, key_x, key_params = jax.random.split(key, 3)
    mu = jax.random.normal(key_mu, (NUM_LATENTS,))
    noise = jax.random.normal(key_x, (NUM_DATA, NUM_LATENTS))
    x = mu[None] + 2**0.5 * noise  # z ~ N(mu, I), x ~ N(z, I)
    keys = jax.random.split(key_params, knobs.repeats)
    params = jax.vmap(optimum, (0, None))(keys, jnp.mean(x, 0))
    return Problem(params, x[: knobs.repeats])


def gradient(
    params: Params, x: Array, key: Key, bound: Bound, estimator: Estimator, k: int
) -> dict[str, Array]:
    """One draw of the gradient of a bound, [d] for each part."""

    def value(free: Params) -> Array:
        at = {**params, **free}
        return objectives.per_example(
            MODEL, at, key, x, bound=bound, estimator=estimator, num_samples=k
        )[0]

    found = jax.grad(value)({name: params[name] for name in PARTS.values()})
    return {part: found[name] for part, name in PARTS.items()}


def best_constant(
    knobs: Knobs, params: Params, x: Array, key: Key, bound: Bound, k: int
) -> Array:
    """The baseline b at which the trace of the variance of `score` is least, [].

    The gradient is g - b s with s the score of q, so that b = Cov(g, s) / Var s; draws
    of its own, so that no estimator knows the noise it is measured with.
    """

    def pilot(key: Key) -> dict[str, Array]:
        at = lambda baseline: gradient(
            params, x, key, bound, functools.partial(score, baseline=baseline), k
        )["inference"]
        g, shifted = jax.vmap(at)(jnp.array([0.0, 1.0]))
        return {"g": g, "s": g - shifted, "g - s": shifted}

    moments = gradient_moments(pilot, key, num_draws=knobs.draws, chunk=CHUNK)
    trace = moments.trace.value
    return (trace["g"] + trace["s"] - trace["g - s"]) / 2 / trace["s"]


def measure(
    key: Key, knobs: Knobs, of: Problem, bound: Bound, names: Sequence[str], k: int
) -> GradientMoments:
    """Moments of {estimator: {part: [r, d]}}, and of reparam - dreg."""

    def one(key: Key, params: Params, x: Array) -> GradientMoments:
        key_pilot, key = jax.random.split(key)
        chosen = {name: ESTIMATORS[name] for name in names}
        if BEST_CONSTANT in names:
            constant = best_constant(knobs, params, x, key_pilot, bound, k)
            chosen[BEST_CONSTANT] = functools.partial(score, baseline=constant)

        def draw(key: Key) -> dict[str, dict[str, Array]]:
            # The same samples for all: what differs is the estimator.
            found = {
                name: gradient(params, x, jax.random.clone(key), bound, chosen[name], k)
                for name in names
            }
            if set(PATHWISE) <= set(names):
                pair = [found[name] for name in PATHWISE]
                found["difference"] = jax.tree.map(jnp.subtract, *pair)
            return found

        return gradient_moments(draw, key, num_draws=knobs.draws, chunk=CHUNK)

    keys = jax.random.split(key, knobs.repeats)
    each = jax.jit(lambda *inputs: jax.lax.map(lambda i: one(*i), inputs))
    return jax.device_get(each(keys, of.params, of.x))


def undefined(of: Problem, bound: Bound, k: int) -> dict[str, str]:
    """The estimators that refuse this bound and k, and why, in their own words."""
    params, x = jax.tree.map(lambda leaf: leaf[0], of)
    reasons = {}
    for name, estimator in ESTIMATORS.items():
        try:
            one = lambda key, e=estimator: gradient(params, x, key, bound, e, k)
            jax.eval_shape(one, jax.random.key(0))
        except ValueError as error:
            reasons[name] = str(error)
    return reasons


def measure_all(knobs: Knobs) -> tuple[Measured, dict[tuple[str, int], dict[str, str]]]:
    """Every bound at the k of the table, and IWAE at those of the curves."""
    key_problem, key = jax.random.split(jax.random.key(knobs.seed))
    of = problem(key_problem, knobs)
    measured, refused = {}, {}
    pairs = [(name, k) for name in BOUNDS for k in TABLE_K]
    pairs += [("iwae", k) for k in CURVE_K if k not in TABLE_K]
    for (name, k), own in zip(pairs, jax.random.split(key, len(pairs)), strict=True):
        if k in TABLE_K:
            refused[name, k] = undefined(of, BOUNDS[name], k)
        names = [e for e in ESTIMATORS if e not in refused.get((name, k), {})]
        names = names if k in TABLE_K else PATHWISE
        if names:
            measured[name, k] = measure(own, knobs, of, BOUNDS[name], names, k)
    return measured, refused


def curves(measured: Measured) -> dict[str, Any]:
    """The ratios for IWAE at each k, and the slopes of their logarithms."""

    def squares(mean_of: str, name: str, part: str) -> np.ndarray:  # [r, m]
        def at(m: GradientMoments) -> np.ndarray:
            mean = Estimate(*(leaf[mean_of][part] for leaf in m.mean))
            return squared_snr(mean, m.variance.value[name][part]).mean(-1)

        return np.stack([at(measured["iwae", k]) for k in CURVE_K], -1)

    return {
        "inference, reparam": curve(squares("dreg", "reparam", "inference"), -0.5),
        "inference, dreg": curve(squares("dreg", "dreg", "inference"), 0.5),
        "generative": curve(squares("reparam", "reparam", "generative"), 0.5),
    }


def curve(squares: np.ndarray, theory: float) -> dict[str, Any]:
    """One curve of squared ratios [r, m], and its slope from k = FIT_FROM on."""
    k = np.array(CURVE_K)
    large = k >= FIT_FROM
    fitted = jnp.asarray(k[large]), jnp.asarray(squares[:, large])
    law = fit_power_law(jax.random.key(0), *fitted)
    snr = np.sqrt(squares.mean(0))
    stderr = squares.std(0, ddof=1) / len(squares) ** 0.5 / (2 * snr)
    law = {name: float(value) for name, value in law._asdict().items()}
    return {"snr": snr.tolist(), "stderr": stderr.tolist(), **law, "theory": theory}


def agreement(measured: Measured) -> dict[int, float]:
    """Whether `reparam` and `dreg` have one mean, by k: z of chi-squared, for IWAE."""
    scores = {}
    for k in CURVE_K:
        mean = measured["iwae", k].mean
        value, stderr = (leaf["difference"]["inference"] for leaf in mean)
        chi2 = np.sum((value / stderr) ** 2)
        scores[k] = float((chi2 - value.size) / (2 * value.size) ** 0.5)
    return scores


def table(measured: Measured, refused: dict) -> list[dict[str, Any]]:
    """Trace of the covariance of one draw, mean over these repeats; or the reason."""
    rows = []
    for (bound, k), reasons in refused.items():
        for name in ESTIMATORS:
            row: dict[str, Any] = {"bound": bound, "k": k, "estimator": name}
            if name in reasons:
                row["undefined"] = reasons[name]
            else:
                value, stderr = (leaf[name] for leaf in measured[bound, k].trace)
                for part in PARTS:
                    row[part] = float(value[part].mean())
                    error = np.sqrt(np.sum(stderr[part] ** 2)) / len(stderr[part])
                    row[f"{part}_stderr"] = float(error)
            rows.append(row)
    return rows


def picture(result: dict[str, Any]) -> Figure:
    """Ratio against k with its slopes, and variance against k, for IWAE."""
    figure = Figure(figsize=(10.5, 3.9), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    k = np.array(CURVE_K)
    large = k[k >= FIT_FROM]
    for i, (name, c) in enumerate(result["snr"].items()):
        label = f"{name}: slope {c['slope']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"
        style = {"fmt": "o", "ms": 4, "color": f"C{i}"}
        left.errorbar(k, c["snr"], 2 * np.array(c["stderr"]), **style)
        left.plot(large, c["factor"] * large ** c["slope"], color=f"C{i}", label=label)
        # Through the last point, where the law of large k is nearest.
        left.plot(k, c["snr"][-1] * (k / k[-1]) ** c["theory"], "k--", lw=0.8)
    left.lines[-1].set_label("theory: slopes -1/2 and 1/2")
    for i, name in enumerate(ESTIMATORS):
        cells = [r for r in result["variance"] if r["estimator"] == name]
        cells = [r for r in cells if r["bound"] == "iwae" and "inference" in r]
        if len(cells) < 2:  # stl, which k = 1 alone allows
            continue
        points = [[r["k"] for r in cells], [r["inference"] for r in cells]]
        right.plot(*points, "o-", color=f"C{i}", ms=4, label=name.removesuffix(" *"))
    left.set(ylabel="|mean| / sd of one gradient", title="Signal-to-noise ratio, IWAE")
    right.set(ylabel="trace of covariance, gradient of b", title="Variance, IWAE")
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel="samples k")
        ax.grid(alpha=0.3)
    left.set_ylim(top=4e3)  # room for the legend
    left.legend(frameon=False, fontsize=8, loc="upper left")
    right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def run(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """Measure and draw into `run_dir`; a finished folder is left as it is."""
    # Wrong knobs are an error before there is a folder.
    if knobs.draws < 2 * CHUNK or knobs.draws % CHUNK:
        raise ValueError(f"draws is {knobs.draws}: use 40, 60, 80, ...")
    if not 2 <= knobs.repeats <= NUM_DATA:
        raise ValueError(f"repeats is {knobs.repeats}: it must be 2 to {NUM_DATA}")
    work = lambda: compare(knobs, run_dir)
    return runs.once(run_dir, "estimator_variance", knobs, work)


def compare(knobs: Knobs, run_dir: Path) -> dict[str, Any]:
    """Measure and draw; what result.json holds."""
    start = time.perf_counter()
    measured, refused = measure_all(knobs)
    result = {
        **dataclasses.asdict(knobs),
        "k": CURVE_K,
        "fit_from": FIT_FROM,
        "snr": curves(measured),
        "reparam_agrees_with_dreg_z": agreement(measured),
        "variance": table(measured, refused),
    }
    runs.write_picture(run_dir / "estimator_variance.png", picture(result))
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def show(result: dict[str, Any], run_dir: Path) -> None:
    print(f"|mean| / sd of one gradient of IWAE, its slope from k = {FIT_FROM} on, 95%")
    print(f"{'k':20}{''.join(f'{k:9}' for k in CURVE_K)}{'slope':>9}{'theory':>24}")
    for name, c in result["snr"].items():
        ratios = "".join(f"{snr:9.4f}" for snr in c["snr"])
        interval = f"[{c['low']:.3f}, {c['high']:.3f}]"
        print(f"{name:20}{ratios}{c['slope']:9.3f} {interval:>16}{c['theory']:7.1f}")
    scores = result["reparam_agrees_with_dreg_z"].values()
    print("The means of reparam and dreg agree: z =", *(f"{z:.1f}" for z in scores))
    show_variance(result["variance"])
    print(f"{result['seconds']} s; {run_dir}")


def show_variance(rows: list[dict[str, Any]]) -> None:
    reasons = list(dict.fromkeys(r["undefined"] for r in rows if "undefined" in r))

    def cell(row: dict[str, Any], part: str) -> str:
        if "undefined" in row:
            return f"[{reasons.index(row['undefined']) + 1}]".rjust(9)
        return f"{row[part]:9.3g}"

    head = "".join(f"{k:9}" for k in TABLE_K)
    print("Trace of the covariance of one gradient; [n] is undefined, for reason n")
    print(f"{'k':22}{head} |{head}")
    for bound in BOUNDS:
        print(f"{bound:22}{'inference':>36} |{'generative':>36}")
        for name in ESTIMATORS:
            found = [r for r in rows if (r["bound"], r["estimator"]) == (bound, name)]
            parts = ["".join(cell(r, part) for r in found) for part in PARTS]
            print(f"  {name:20}{' |'.join(parts)}")
    print("* climbs another objective with q: not the gradient of the bound")
    for i, reason in enumerate(reasons, 1):
        print(f"[{i}] {reason}")


def main(
    knobs: Annotated[Knobs, tyro.conf.OmitArgPrefixes],
    run_dir: Path = Path("runs/estimator_variance"),
) -> None:
    """Measure the noise of every gradient estimator, with a table and a picture."""
    with clear_errors():
        show(run(knobs, run_dir), run_dir)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.estimator_variance", description=__doc__)
