"""Where a record's signal falls in a distribution of signals, and which signal is asked about.

The shares are of a population (P-attack) or of models that have not seen the record (R-attack).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator
from scipy.special import log_ndtr

from attacks.membership.shadow_settings import fewest
from attacks.membership.signals import SIGNALS, Signal, load_signal
from attacks.shadows.target import Task
from fl_audit.errors import InputError, UnknownNameError

Values = NDArray[np.float64]
LogOdds = Callable[[Values, Values, NDArray[np.bool_]], Values]
_TINY = 1e-30  # keeps a deviation above zero
_LEAST_DEVIATION = 1e-6  # of the pooled one: below it a fitted deviation is an accident
_MOST_DEVIATIONS = 1e100  # its square is still finite
_WITHOUT_LABELS = ("confidence", "entropy")


def known_signal(name: str) -> str:
    """Check the name of a signal; a user's `"module:function"` is imported only when it is used.

    Raises:
        UnknownNameError: If it is neither.
    """
    if ":" not in name and name not in SIGNALS:
        raise UnknownNameError("signal", name, [*SIGNALS, "module:function"])
    return name


SignalName = Annotated[str, AfterValidator(known_signal)]


def task_signal(name: str, task: Task) -> Signal:
    """A signal that means something for the task.

    Raises:
        InputError: If it asks how sure a regression model is, which such a model does not say.
    """
    if task.kind == "regression" and name in _WITHOUT_LABELS:
        raise InputError(
            "signal",
            name,
            "a regression model does not say how sure it is",
            "Use signal = 'loss', which is its squared error.",
        )
    return load_signal(name)


def rank_share(values: Values, population: Values) -> Values:
    """Share of the population with a lower value; equal ones count half (mid-rank).

    Between two neighbours of the population the share rises by less than half a record around that
    count, in proportion to where the value lies; beyond its largest (smallest) value it approaches
    1 (0) as a power of the distance, in units of the range of the outermost tenth. So it orders
    all values as they are, up to rounding.

    Args:
        values: Shape (n,).
        population: Shape (m,).

    Returns:
        Shares in [0, 1], shape (n,).

    Raises:
        InputError: If a value is not finite, or the population is empty.
    """
    _check_finite(values, "signal of record")
    _check_finite(population, "signal of population record")
    if population.size == 0:
        raise InputError(
            "population", 0, "needs at least one record", "Give auxiliary records to compare with."
        )
    ordered = np.sort(population)
    lower = np.searchsorted(ordered, values, side="left")
    until = np.searchsorted(ordered, values, side="right")
    last = len(ordered) - 1
    place = _Place(
        lower=lower.astype(np.float64),
        equal=(until - lower).astype(np.float64),
        size=np.full(len(values), float(len(ordered))),
        below=np.where(lower > 0, ordered[np.maximum(lower - 1, 0)], values),
        above=np.where(until <= last, ordered[np.minimum(until, last)], values),
    )
    share: Values = _counts(values, place, *_tail_ranges(ordered))[0] / len(ordered)
    return share


def linear_log_odds(values: Values, sample: Values, chosen: NDArray[np.bool_]) -> Values:
    """Log-odds of P(sample < value) by the empirical quantiles of each record, interpolated.

    The j-th smallest of k chosen values has P = (j - 1/2) / k (Hazen), those between it and the
    next lie on a straight line. Beyond the extremes, where every record would have the same P, the
    tail 1 / (2 k (1 + u)) orders records by their distance u, in units of the standard deviation
    pooled over records (with one value a record, that of the values over records).

    Args:
        values: Shape (n,).
        sample: k values for each record, shape (k, n).
        chosen: Which of them count, shape (k, n).

    Returns:
        Log-odds in nats, shape (n,), finite.

    Raises:
        InputError: If a value is not finite, or a record has nothing chosen.
    """
    _check_sample(values, sample, chosen, least=1)
    mean, _, pooled = _moments(sample, chosen)
    scale = next(s for s in (pooled, float(mean.std()), 1.0) if s > 0)
    is_lower, is_higher = chosen & (sample < values), chosen & (sample > values)
    lower, higher, size = (mask.sum(axis=0) for mask in (is_lower, is_higher, chosen))
    below = np.where(is_lower, sample, -np.inf).max(axis=0)
    above = np.where(is_higher, sample, np.inf).min(axis=0)
    place = _Place(
        lower=lower.astype(np.float64),
        equal=(size - lower - higher).astype(np.float64),
        size=size.astype(np.float64),
        below=np.where(lower > 0, below, values),
        above=np.where(higher > 0, above, values),
    )
    low, high = _counts(values, place, scale, scale)
    log_odds: Values = np.log(low) - np.log(high)
    return log_odds


def gaussian_log_odds(values: Values, sample: Values, chosen: NDArray[np.bool_]) -> Values:
    """Log-odds of P(sample < value) by a Gaussian fit to each record's chosen values.

    Mean and standard deviation are those of maximum likelihood (ddof 0), the latter at least 1e-6
    of the deviation pooled over records. Log-odds, because P rounds to 1 where members are.

    Args:
        values: Shape (n,).
        sample: k values for each record, shape (k, n).
        chosen: Which of them count, at least two a record, shape (k, n).

    Returns:
        Log-odds in nats, shape (n,), finite.

    Raises:
        InputError: If a value is not finite, or a record has fewer than two chosen.
    """
    _check_sample(values, sample, chosen, least=2)
    mean, deviation, pooled = _moments(sample, chosen)
    deviation = np.maximum(deviation, _LEAST_DEVIATION * pooled) + _TINY
    z = np.clip((values - mean) / deviation, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    log_odds: Values = log_ndtr(z) - log_ndtr(-z)
    return log_odds


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where values (n,) fall in a distribution of `size`: counts and neighbours, all (n,).

    A neighbour that does not exist is the value itself.
    """

    lower: Values
    equal: Values
    size: Values
    below: Values
    above: Values


def _counts(
    values: Values, place: _Place, low_scale: float, high_scale: float
) -> tuple[Values, Values]:
    """How many lie below and above, (n,) each, both positive; together `size`."""
    is_alone = place.equal == 0
    is_lowest = is_alone & (place.lower == 0)
    is_highest = is_alone & (place.lower == place.size)
    is_between = is_alone & ~is_lowest & ~is_highest
    width = np.where(is_between, place.above - place.below, 1.0)
    part = np.where(is_between, (values - place.below) / width - 0.5, 0.0)
    low = place.lower + 0.5 * place.equal + part
    distance = np.where(
        is_lowest, (place.above - values) / low_scale, (values - place.below) / high_scale
    )
    tail = 0.5 / (1 + distance)
    tails = [is_lowest, is_highest]
    return (
        np.select(tails, [tail, place.size - tail], low),
        np.select(tails, [place.size - tail, tail], place.size - low),
    )


def _tail_ranges(ordered: Values) -> tuple[float, float]:
    """Ranges of the lowest and the highest tenth; of all where a tenth has none; 1 where all tie.

    Signals crowd at one end (log p at 0): only a scale of that end tells its records apart.
    """
    step = min(max(1, len(ordered) // 10), len(ordered) - 1)
    tenths = (ordered[step] - ordered[0], ordered[-1] - ordered[-1 - step])
    whole = ordered[-1] - ordered[0]
    low, high = (float(next(r for r in (tenth, whole, 1.0) if r > 0)) for tenth in tenths)
    return low, high


def _moments(sample: Values, chosen: NDArray[np.bool_]) -> tuple[Values, Values, float]:
    """Mean (n,) and deviation (n,) of each record, and the deviation pooled over records."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, sample, 0).sum(axis=0) / count
    squares = np.where(chosen, (sample - mean) ** 2, 0).sum(axis=0)
    freedom = max(1, int(count.sum()) - len(mean))  # each record's mean was estimated, too
    return mean, np.sqrt(squares / count), float(np.sqrt(squares.sum() / freedom))


def _check_sample(values: Values, sample: Values, chosen: NDArray[np.bool_], *, least: int) -> None:
    if sample.ndim != 2 or sample.shape[1:] != values.shape or chosen.shape != sample.shape:
        raise InputError(
            "signals",
            (values.shape, sample.shape, chosen.shape),
            "must have shapes (n,), (k, n), (k, n)",
            "Give one row a model and one column a record.",
        )
    _check_finite(values, "signal of record")
    _check_finite(np.where(chosen, sample, 0), "shadow models' signal of record")
    fewest(chosen, "out", least=least)


def _check_finite(values: Values, name: str) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        raise InputError(
            f"{name} {bad[0][-1]}",
            float(values[tuple(bad[0])]),
            "must be finite",
            "Check the model's answers on this record, and the function behind the signal.",
        )
