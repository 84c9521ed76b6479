"""Boundary distance: how far from a record does the model change its answer? Labels are enough.

Training moves the boundary away from members, so they lie farther from it.

References:
    Choquette-Choo, Tramèr, Carlini, Papernot, "Label-Only Membership Inference Attacks", ICML 2021,
    section 3. https://arxiv.org/abs/2007.14321
    Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE
    S&P 2020, Algorithm 2. https://arxiv.org/abs/1904.02144
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from sklearn.metrics.pairwise import euclidean_distances

from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation

Points = NDArray[np.float32]
Rows = NDArray[np.int64]
Classes = Callable[[Points], NDArray[np.int64]]
_QUERY_BYTES = 1 << 22  # inputs of one query: 4 MB; more is slower, for want of cache
_BISECTIONS = 10  # to 0.1 % of the distance, far below the estimate's own error
_HALVINGS = 12  # of a step, before the point stays where it is


class Settings(AttackSettings):
    """What a scenario may set: `{name = "boundary_distance", iterations = 20}`."""

    iterations: int = Field(default=10, ge=1, le=200)
    evaluations: int = Field(
        default=50, ge=2, le=10_000, description="Queries for step 1; sqrt(t) as many for step t"
    )
    initial: int = Field(default=10, ge=0, le=1000, description="Starting points that are noise")
    clip: tuple[float, float] | None = Field(
        default=None, description="Bounds of the inputs asked about; null: those of the candidates"
    )

    @field_validator("clip")
    @classmethod
    def _in_order(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and clip[0] >= clip[1]:
            raise ValueError("the first number of clip must be the smaller one")
        return clip


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryScores:
    """Signed distances to the boundary, and what they cost.

    Attributes:
        scores: L2, in units of the inputs, shape (n,); higher = more likely a member.
        queries_each: Inputs that the model was asked about, on average over records.
        is_reached: False where no input on the other side was found, shape (n,).
    """

    scores: NDArray[np.float64]
    queries_each: float
    is_reached: NDArray[np.bool_]


def boundary_distance_scores(
    classes: Classes,
    inputs: Points,
    labels: NDArray[np.int64],
    *,
    rng: np.random.Generator,
    iterations: int = 10,
    evaluations: int = 50,
    initial: int = 10,
    clip: tuple[float, float] | None = None,
) -> BoundaryScores:
    """Distance to the boundary of the true class's region; negative for records outside of it.

    HopSkipJump on all records at once. From the nearest known input on the other side (noise, or
    another candidate), bisect to the boundary; then repeat: estimate the boundary's normal there
    from the answers to random small changes, step along it, halving the step until the point is on
    the other side, and bisect again. What is found on the way is an upper bound on the distance;
    the nearest is returned. The random changes are the same for all records, so that a record's
    score does not depend on its luck.

    A record that is answered rightly scores its distance to an input answered otherwise; one
    answered wrongly scores minus its distance to an input answered with its label. Where no such
    input is known, the largest distance that `clip` has room for stands for it.

    Args:
        classes: The model: inputs (m, ...), float32, to classes (m,).
        inputs: Records, shape (n, ...). Features should be on comparable scales.
        labels: True classes, shape (n,).
        iterations: Steps along the boundary.
        evaluations: Queries a record for the first normal; sqrt(t) times as many for the t-th.
        initial: Inputs of uniform noise among the starting points.
        clip: Smallest and largest input to ask about; None: of the records, feature by feature,
            or of all pixels together for images (channels, height, width).

    Returns:
        Scores and their cost: about 1250 queries a record by default.

    Raises:
        InputError: If a record lies outside of `clip`.
    """
    records = np.array(inputs, dtype=np.float32).reshape(len(inputs), -1)
    bounds = _bounds(records, clip, is_image=inputs.ndim == 4)
    model = _Model(classes, inputs, labels, bounds=bounds)
    points, is_reached = _starting_points(model, records, initial, rng)
    room = np.abs(records - bounds[:, None]).max(axis=0)
    distances = np.linalg.norm(room.astype(np.float64), axis=1)
    rows = np.flatnonzero(is_reached)
    here, points = records[rows], points[rows]
    points, gaps = _bisect(model, here, points, rows)
    distances[rows] = gaps
    for t in range(1, iterations + 1):
        normals = _normals(model, points, rows, gaps, round(evaluations * t**0.5), rng=rng)
        points = _step(model, points, rows, normals, gaps / t**0.5)
        points, gaps = _bisect(model, here, points, rows)
        distances[rows] = np.minimum(distances[rows], gaps)
    signed = np.where(model.is_inside, distances, -distances)
    return BoundaryScores(signed, model.num_queries / max(1, len(records)), is_reached)


class _Model:
    """The model as this attack sees it: is a point on the other side than its record?"""

    def __init__(
        self, classes: Classes, inputs: Points, labels: NDArray[np.int64], *, bounds: Points
    ) -> None:
        self._classes, self._shape, self.labels = classes, inputs.shape[1:], labels
        self.low, self.high = bounds
        self.num_queries = 0
        self.is_inside = np.zeros(len(labels), dtype=np.bool_)  # until the records are asked about

    def answers(self, points: Points) -> NDArray[np.int64]:
        self.num_queries += len(points)
        shaped = points.reshape(-1, *self._shape)
        size = self.rows_at_once(points.shape[1])
        parts = [self._classes(shaped[i : i + size]) for i in range(0, len(points), size)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def crossed(self, points: Points, rows: Rows) -> NDArray[np.bool_]:
        """Whether each point lies beyond the boundary, seen from the record in `rows`."""
        beyond: NDArray[np.bool_] = (self.answers(points) == self.labels[rows]) != self.is_inside[
            rows
        ]
        return beyond

    @staticmethod
    def rows_at_once(num_features: int) -> int:
        return max(1, _QUERY_BYTES // (4 * max(1, num_features)))


def _bounds(records: Points, clip: tuple[float, float] | None, *, is_image: bool) -> Points:
    """Smallest and largest value of each feature, shape (2, d)."""
    size = records.shape[1]
    if clip is None:
        axis = None if is_image else 0
        ends = records.min(axis=axis), records.max(axis=axis)
        return np.stack([np.broadcast_to(end, size) for end in ends])
    bounds = np.repeat(np.array(clip, dtype=np.float32)[:, None], size, axis=1)
    outside = np.flatnonzero(((records < bounds[0]) | (records > bounds[1])).any(axis=1))
    if outside.size:
        row = records[outside[0]]
        raise InputError(
            f"record {outside[0]}",
            (float(row.min()), float(row.max())),
            f"must lie within clip = {clip}",
            "Give clip in units of the inputs that the model sees, or leave it out.",
        )
    return bounds


def _starting_points(
    model: _Model, records: Points, initial: int, rng: np.random.Generator
) -> tuple[Points, NDArray[np.bool_]]:
    """The nearest input beyond each record's boundary, of noise and all records; and if any is."""
    noise = rng.random((initial, records.shape[1]), dtype=np.float32)
    known = np.concatenate([model.low + noise * (model.high - model.low), records])
    answers = model.answers(known)
    model.is_inside = answers[initial:] == model.labels
    nearest = np.zeros(len(records), dtype=np.int64)
    is_reached = np.zeros(len(records), dtype=np.bool_)
    for rows in _blocks(len(records), model.rows_at_once(len(known))):
        squares = euclidean_distances(records[rows], known, squared=True)
        is_right = answers == model.labels[rows, None]
        squares[is_right == model.is_inside[rows, None]] = np.inf
        nearest[rows] = squares.argmin(axis=1)
        is_reached[rows] = np.isfinite(squares).any(axis=1)
    return known[nearest], is_reached


def _bisect(
    model: _Model, records: Points, points: Points, rows: Rows
) -> tuple[Points, NDArray[np.float64]]:
    """Move points towards their records until just beyond the boundary; and how far they are."""
    ways = points.astype(np.float64) - records
    near, far = np.zeros((len(rows), 1)), np.ones((len(rows), 1))
    found = points.copy()
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        trial = (records + middle * ways).astype(np.float32)
        crossed = model.crossed(trial, rows)
        far[crossed], near[~crossed] = middle[crossed], middle[~crossed]
        found[crossed] = trial[crossed]
    return found, np.linalg.norm(found.astype(np.float64) - records, axis=1)


def _normals(
    model: _Model,
    points: Points,
    rows: Rows,
    gaps: NDArray[np.float64],
    num: int,
    *,
    rng: np.random.Generator,
) -> Points:
    """Unit normals of the boundary at points on it, towards the other side, shape (n, d).

    Monte Carlo (the paper's equation 16): the mean change, weighted by where it led to, less the
    mean over changes. A change is about as long, along the normal, as a bisection leaves open.
    """
    count, size = points.shape
    at_once = min(num, model.rows_at_once(size))
    lengths = (gaps * size**0.5 / 2**_BISECTIONS).astype(np.float32)
    total, beyond = np.zeros((2, count, size), dtype=np.float32)
    num_beyond = np.zeros(count)
    for changes in _blocks(num, at_once):
        units = rng.standard_normal((changes.stop - changes.start, size), dtype=np.float32)
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        for own in _blocks(count, max(1, model.rows_at_once(size) // len(units))):
            here = points[own, None]
            asked = np.clip(here + lengths[own, None, None] * units, model.low, model.high)
            flat = asked.reshape(-1, size)
            crossed = model.crossed(flat, np.repeat(rows[own], len(units))).reshape(-1, len(units))
            moved = asked - here  # clipped: not always `units`
            total[own] += moved.sum(axis=1)
            beyond[own] += np.matmul(crossed[:, None].astype(np.float32), moved)[:, 0]
            num_beyond[own] += crossed.sum(axis=1)
    share = (num_beyond / num)[:, None].astype(np.float32)
    one_sided = (share == 0) | (share == 1)  # the weights less their mean would all be zero
    normals: Points = np.where(one_sided, (2 * share - 1) * total, beyond - share * total)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.float32(1e-30))
    return normals


def _step(
    model: _Model, points: Points, rows: Rows, normals: Points, steps: NDArray[np.float64]
) -> Points:
    """Move along the normals, by steps that are halved until they end beyond the boundary."""
    moved = points.copy()
    left = np.arange(len(rows))
    for halving in range(_HALVINGS):
        lengths = (steps[left] / 2**halving).astype(np.float32)
        trial = np.clip(points[left] + lengths[:, None] * normals[left], model.low, model.high)
        crossed = model.crossed(trial, rows[left])
        moved[left[crossed]] = trial[crossed]
        left = left[~crossed]
    return moved


def _blocks(num: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    candidates = lab.candidates
    found = boundary_distance_scores(
        lab.classes,
        np.asarray(candidates.inputs),
        candidates.labels,
        rng=given.rng,
        **settings.model_dump(),
    )
    notes = [f"{found.queries_each:.0f} queries a record."]
    lost = int((~found.is_reached).sum())
    if lost:
        notes.append(
            f"{lost} records as far as clip has room: nothing beyond their boundary found."
        )
    return MembershipScores(found.scores, notes=tuple(notes))


ATTACK = AttackSpec(
    name="boundary_distance",
    kind="membership",
    requires=Observation.LABELS_ONLY,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/2007.14321",
    summary="Members lie farther from the decision boundary, measured by labels alone",
    settings=Settings,
    most_calibration=200,
)
