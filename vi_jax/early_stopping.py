"""When to stop: after too many validations in a row that were no better than the best.

A fold over scores, without a clock or a file: an interrupted run repeats it from its
log.
"""

import math
from typing import NamedTuple


class EarlyStopping(NamedTuple):
    """What the validations so far say; begin with `EarlyStopping(patience, start)`."""

    patience: int  # validations in a row without a new best before it stops
    start: int  # the first step that counts, such as `schedules.settled(beta, ...)`
    best: float = -math.inf
    waited: int = 0  # validations since the best


def update(state: EarlyStopping, step: int, score: float) -> EarlyStopping:
    """The state after a validation at `step`; higher scores are better.

    What was seen before `start` counts neither as the best nor against the patience:
    while beta is below its end, a model may score high and be another objective's. A
    score that is nan is no better than any. Raises ValueError where the patience is
    below 1 or the start negative.
    """
    if state.patience < 1 or state.start < 0:
        raise ValueError(
            "needed: patience >= 1 and start >= 0, got "
            f"{state.patience} and {state.start}"
        )
    if step < state.start:
        return state
    if score > state.best:
        return EarlyStopping(state.patience, state.start, score)
    return EarlyStopping(state.patience, state.start, state.best, state.waited + 1)


def stops(state: EarlyStopping) -> bool:
    """Whether the patience has run out."""
    return state.waited >= state.patience
