"""A VAE of a table as an outlier detector of scikit-learn; needs vi_jax[applications].

from vi_jax.detector import VAEDetector
flags = VAEDetector(contamination=0.01).fit(normal_rows).predict(rows)  # 1 or -1
"""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vi_jax import networks, objectives, posteriors, priors, tabular
from vi_jax.data import tables
from vi_jax.data.batches import padded
from vi_jax.evaluation import anomaly
from vi_jax.model import Model, analytic_terms
from vi_jax.models import vae
from vi_jax.types import Array, Key, Params

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "the detector needs scikit-learn: pip install 'vi_jax[applications]'"
    ) from error

ROWS_AT_A_TIME = 256  # scored in one program; the last block is filled up

# Name -> (the score, whether it takes num_samples).
SCORES = {
    "negative_log_likelihood": (anomaly.negative_log_likelihood, True),
    "negative_elbo": (anomaly.negative_elbo, True),
    "reconstruction_probability": (anomaly.reconstruction_probability, True),
    "likelihood_regret": (anomaly.likelihood_regret, True),
    "reconstruction_error": (anomaly.reconstruction_error, False),
    "latent_distance": (anomaly.latent_distance, False),
}


class _Shape(NamedTuple):
    """All that decides which program runs, but for the number of rows."""

    num_logits: tuple[int, ...]
    latents: int
    hidden: tuple[int, ...]


class VAEDetector(OutlierMixin, BaseEstimator):
    """Rows are outliers where a VAE fitted to the training rows finds them unlikely.

    Columns are numbers, or integer codes of categories; NaN is a missing value, whose
    term is left out of log p(x | z). Fit it to normal rows where there are such, or to
    rows with a few outliers among them. A text table goes through `data.tables` first.

    Parameters:
        anomaly_score: A name in `SCORES`, of `vi_jax.evaluation.anomaly`.
        latents: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder's are the reverse.
        num_steps: Steps of Adam, on rows drawn with replacement.
        batch_size: Rows in a step.
        learning_rate: Of Adam at the start; it falls to 0 along a cosine.
        num_samples: Draws of q(z | x) for each row that is scored.
        contamination: Share of the training rows beyond `offset_`, in (0, 0.5].
        kinds: None where all columns are continuous, or for each one "continuous",
            "binary" or "categorical".
        unseen: "error", or "missing" to take a category that no training row had for a
            missing value.
        random_state: Seed of the initial parameters and of every draw.

    Attributes after `fit`: schema_ (`TableSchema`), params_ (of `model`), loss_ (minus
    the ELBO in nats a row, its mean over the last tenth of the steps), offset_ and
    n_features_in_. Every row is scored with the same draws of noise, so that its score
    depends on nothing but the row. The network keeps the shape that `fit` gave it:
    another `latents` or `hidden` counts from the next `fit` on.
    """

    def __init__(
        self,
        *,
        anomaly_score: str = "negative_log_likelihood",
        latents: int = 8,
        hidden: Sequence[int] = (64, 64),
        num_steps: int = 2000,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        num_samples: int = 50,
        contamination: float = 0.1,
        kinds: Sequence[tables.Kind] | None = None,
        unseen: str = "error",
        random_state: Any = None,
    ):
        self.anomaly_score = anomaly_score
        self.latents = latents
        self.hidden = hidden
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.num_samples = num_samples
        self.contamination = contamination
        self.kinds = kinds
        self.unseen = unseen
        self.random_state = random_state

    def fit(self, X, y=None) -> "VAEDetector":
        """Fit the schema, the VAE and `offset_` to the rows X [n, columns], n >= 2.

        Raises ValueError for a parameter out of its range or a column of missing values
        alone, FloatingPointError where training does not stay finite.
        """
        del y
        self._check()
        X = self._rows(X, reset=True, ensure_min_samples=2)
        self.schema_ = tables.fit_schema(X, kinds=self._kinds(X.shape[1]))
        hidden = tuple(int(width) for width in self.hidden)
        self._shape = _Shape(self.schema_.num_logits, int(self.latents), hidden)
        x = tables.encode(self.schema_, X)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        key_init, key_train = jax.random.split(jax.random.key(seed))
        train = _trainer(self._shape, int(self.batch_size))
        params, loss = train(
            key_init,
            key_train,
            _filled_up(x),
            len(x),
            int(self.num_steps),
            float(self.learning_rate),
        )
        self.params_, self.loss_ = jax.tree.map(np.asarray, params), float(loss)
        if not np.isfinite(self.loss_):
            raise FloatingPointError(
                f"the loss is {self.loss_} after {self.num_steps} steps: pass a lower "
                "learning_rate"
            )
        percent = 100.0 * self.contamination
        self.offset_ = float(np.percentile(self._score_encoded(x), percent))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the score of each row [n]: lower where it is more of an outlier."""
        check_is_fitted(self)
        X = self._rows(X, reset=False)
        return self._score_encoded(tables.encode(self.schema_, X, unseen=self.unseen))

    def decision_function(self, X) -> np.ndarray:
        """score_samples(X) - offset_, [n]: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X) -> np.ndarray:
        """-1 for outliers and 1 for others, int [n]."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def calibrate(self, X, false_alarm_rate: float) -> anomaly.Threshold:
        """Set `offset_` so that new normal rows are flagged at most at this rate.

        X [n, columns] are normal rows that `fit` has not seen: the scores of training
        rows are better than those of new ones. Returns and raises as
        `evaluation.threshold` does.
        """
        found = anomaly.threshold(-self.score_samples(X), false_alarm_rate)
        self.offset_ = -found.value
        return found

    def model(self) -> Model:
        """The VAE over one encoded row, whose parameters are `params_`.

        With `tables.encode(detector.schema_, rows)` for `tabular.impute` and all else
        that a Model is good for.
        """
        check_is_fitted(self)
        return _model(self._shape)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _rows(self, X, **options) -> np.ndarray:
        return validate_data(
            self, X, dtype=np.float64, ensure_all_finite="allow-nan", **options
        )

    def _check(self) -> None:
        if self.anomaly_score not in SCORES:
            raise ValueError(
                f"anomaly_score is {self.anomaly_score!r}, needed is one of {[*SCORES]}"
            )
        for name in ("latents", "num_steps", "batch_size", "num_samples"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if not 0 < self.contamination <= 0.5:
            raise ValueError(
                f"contamination must be in (0, 0.5], got: {self.contamination}"
            )
        if self.unseen not in ("error", "missing"):
            raise ValueError(f"unseen is {self.unseen!r}, not 'error' or 'missing'")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")

    def _kinds(self, num_columns: int) -> dict[str, tables.Kind]:
        kinds = ["continuous"] * num_columns if self.kinds is None else [*self.kinds]
        if len(kinds) != num_columns:
            raise ValueError(f"{len(kinds)} kinds for {num_columns} columns")
        return {f"x{j}": kind for j, kind in enumerate(kinds)}

    def _score_encoded(self, x: np.ndarray) -> np.ndarray:
        sampled = SCORES[self.anomaly_score][1]
        how = self.anomaly_score, int(self.num_samples) if sampled else None
        program = _scorer(self._shape, *how)
        parts = [
            np.asarray(program(self.params_, rows), np.float64)[mask]
            for rows, mask in padded(x, batch_size=ROWS_AT_A_TIME)
        ]
        return -np.concatenate(parts)


@functools.cache
def _model(shape: _Shape) -> Model:
    hidden, back = list(shape.hidden), list(shape.hidden)[::-1]
    encoder = networks.mlp(hidden, 2 * shape.latents)
    decoder = networks.mlp(back, tabular.num_outputs(shape.num_logits))
    return vae(
        priors.standard_normal(shape.latents),
        posteriors.normal(tabular.of_rows(encoder, shape.num_logits)),
        tabular.mixed_columns(decoder, shape.num_logits),
    )


# Programs are kept by what they depend on: detectors of one shape compile once, also
# for other numbers of rows, of steps and other learning rates, which are data to them.
@functools.cache
def _trainer(shape: _Shape, batch_size: int) -> Callable[..., tuple[Params, Array]]:
    model = _model(shape)
    loss = objectives.batch_loss(
        model, preprocess=lambda key, batch: batch["x"], terms=analytic_terms
    )
    adam = optax.scale_by_adam()

    @jax.jit
    def train(
        key_init: Key, key: Key, x: Array, n: Array, num_steps: Array, rate: Array
    ) -> tuple[Params, Array]:
        params = model.init(key_init, x[0])

        def step(t: Array, carry: tuple) -> tuple:
            params, moments, late = carry
            key_rows, key_loss = jax.random.split(jax.random.fold_in(key, t))
            rows = jax.random.randint(key_rows, (batch_size,), 0, n)
            batch = {"x": x[rows], "step": t}
            (value, _), grads = jax.value_and_grad(loss, has_aux=True)(
                params, key_loss, batch
            )
            updates, moments = adam.update(grads, moments)
            size = rate * 0.5 * (1 + jnp.cos(jnp.pi * t / num_steps))
            params = jax.tree.map(lambda p, u: p - size * u, params, updates)
            return params, moments, late + jnp.where(t >= first_late, value, 0.0)

        first_late = num_steps - jnp.maximum(num_steps // 10, 1)
        start = params, adam.init(params), jnp.zeros(())
        params, _, late = jax.lax.fori_loop(0, num_steps, step, start)
        return params, late / (num_steps - first_late)

    return train


@functools.cache
def _scorer(
    shape: _Shape, score: str, num_samples: int | None
) -> Callable[[Params, Array], Array]:
    options = {} if num_samples is None else {"num_samples": num_samples}
    one = functools.partial(SCORES[score][0], _model(shape), **options)
    key = lambda: jax.random.key(0)
    return jax.jit(lambda params, x: jax.vmap(lambda row: one(params, key(), row))(x))


def _filled_up(x: np.ndarray) -> np.ndarray:
    """x [n, columns] with rows of zeros up to the next power of two, never drawn."""
    size = 1 << (len(x) - 1).bit_length()
    return np.pad(x, ((0, max(size, 256) - len(x)), (0, 0)))
