"""When to stop: after too many validations in a row that were no better than the best.

A function of the scores, without a clock or a file: an interrupted run repeats it from
its log.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple


class EarlyStopping(NamedTuple):
    """The rule; `start` is where scores begin to count: `schedules.settled(beta, ...)`.

    While beta is below its end, a model may score high and be another objective's.
    """

    patience: int  # validations in a row without a new best before it stops
    start: int  # the first step that counts


def stops(rule: EarlyStopping, validations: Iterable[tuple[int, float]]) -> bool:
    """Whether the patience has run out after these (step, score), in their order.

    Higher scores are better, and one that is nan is no better than any. What was seen
    before `rule.start` counts neither as the best nor against the patience.
    Raises ValueError where the patience is below 1 or the start negative.
    """
    if rule.patience < 1 or rule.start < 0:
        raise ValueError(
            "needed: patience >= 1 and start >= 0, got "
            f"{rule.patience} and {rule.start}"
        )
    best, waited = -math.inf, 0
    for step, score in validations:
        if step >= rule.start:
            best, waited = (score, 0) if score > best else (best, waited + 1)
    return waited >= rule.patience
