"""From a population to its parts: members, non-members, null control, auxiliary records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.population import TaskName, rows_of, to_records
from fl_audit.errors import InputError
from fl_audit.randomness import derived_rng
from fl_audit.records import Records

_NULL_SHARE = 0.1  # of the records that are neither members nor non-members, at most
_LEAST_NULL = 60  # fewer say little
_NULL_OF_CANDIDATES = 0.2  # shadow models train on half of both: a large null makes them too large


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The parts of a population, one after the other in one pool.

    Attributes:
        pool: Candidates, then null candidates, then auxiliary records.
        is_member: The truth about the candidates, shape (n,).
        null_is_member: Lots drawn for the null candidates, none of which was trained on.
        auxiliary_from: Where auxiliary records come from, for the report.
    """

    pool: Records
    is_member: NDArray[np.bool_]
    null_is_member: NDArray[np.bool_]
    auxiliary_from: str
    notes: list[str] = field(default_factory=list)

    @property
    def num_audited(self) -> int:
        """Candidates and null candidates."""
        return len(self.is_member) + len(self.null_is_member)


def split_population(
    population: Records,
    members: Any,
    non_members: Any,
    auxiliary: Any,
    *,
    seed: int,
    task: TaskName | None,
) -> Split:
    """Split a population; what is not given is drawn by lot.

    Raises:
        InputError: If parts overlap, an index is out of range, a second data set holds audited
            records, or no non-member is left.
    """
    rng = derived_rng(seed, "split")
    total = len(population)
    own = rows_of(members, total, "members")
    others = None if non_members is None else rows_of(non_members, total, "non_members")
    _refuse_overlap(own, others, "members", "non_members")
    second = None
    inside: NDArray[np.int64] | None = None
    if auxiliary is not None:
        inside, second = _auxiliary(auxiliary, total, population, task)
        _refuse_overlap(own, inside, "members", "auxiliary")
        _refuse_overlap(others, inside, "non_members", "auxiliary")
    taken = [part for part in (own, others, inside) if part is not None]
    rest = np.setdiff1d(np.arange(total), np.concatenate(taken))
    rest = rng.permutation(rest)
    others, rest = _non_members(others, rest, len(own), given=auxiliary is not None)
    num_null = _num_null(len(own) + len(others), len(rest), shared=auxiliary is None)
    null, rest = rest[:num_null], rest[num_null:]
    where = "a second data set" if second is not None else "records of the population, as given"
    if auxiliary is None:
        inside, where = np.sort(rest), "the rest of the population, drawn by lot"
    candidates = np.concatenate([own, np.sort(others)])
    parts = [population.take(candidates), population.take(np.sort(null))]
    if second is not None:
        offset = np.int64(total)  # ids stay unique
        parts.append(Records(second.ids + offset, second.inputs, second.labels, second.targets))
    elif inside is not None:
        parts.append(population.take(inside))
    lots = rng.permutation(np.arange(num_null) < num_null // 2)
    notes = [] if num_null else ["No record is left for a null control."]
    is_member = np.arange(len(candidates)) < len(own)
    pool = Records.concatenate(parts)
    notes += _compared(pool, len(own), len(candidates), num_null, is_second=second is not None)
    return Split(pool, is_member, lots, where, notes)


def _compared(
    pool: Records, num_members: int, num_candidates: int, num_null: int, *, is_second: bool
) -> list[str]:
    """A note on records that stand in more than one part, by their content.

    Raises:
        InputError: If a second data set holds audited records: models to compare with would be
            trained on them, as if it were known that the target was not.
    """
    contents = _contents(pool)
    num_audited = num_candidates + num_null
    audited = set(contents[:num_audited])
    both = [row for row in range(num_audited, len(pool)) if contents[row] in audited]
    if is_second and both:
        first = pool.ids[contents.index(contents[both[0]])]
        raise InputError(
            "auxiliary",
            int(first),
            f"{len(both)} of its records are audited ones, this record of the population first",
            "Leave out of it what is also a member, a non-member or a null control.",
        )
    ends = [num_members, num_candidates, num_audited]
    part_of = np.searchsorted(ends, np.arange(len(pool)), side="right")
    where: dict[bytes, set[int]] = {}
    for content, part in zip(contents, part_of, strict=True):
        where.setdefault(content, set()).add(int(part))
    count = sum(len(where[content]) > 1 for content in contents)
    if not count:
        return []
    return [
        f"{count} records have a copy (same input and label) in another part: members, "
        "non-members, null control or auxiliary records. Copies blur who is a member."
    ]


def _contents(records: Records) -> list[bytes]:
    """A digest of each record's input and label, or target."""
    wanted = records.labels if records.targets is None else records.targets
    found = []
    for rows in records.blocks():
        inputs = np.asarray(records.inputs[rows], dtype=np.float32) + np.float32(0)  # -0 is 0
        for one, label in zip(inputs, wanted[rows] + wanted.dtype.type(0), strict=True):
            sha = hashlib.sha256(np.ascontiguousarray(one).data)
            sha.update(label.tobytes())
            found.append(sha.digest())
    return found


def _non_members(
    others: NDArray[np.int64] | None, rest: NDArray[np.int64], num_members: int, *, given: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if others is not None:
        return others, rest
    count = min(num_members, len(rest) if given else len(rest) // 2)
    if count == 0:
        raise InputError(
            "non_members",
            0,
            "every record of the population is a member or auxiliary",
            "Add records that the model was not trained on.",
        )
    return rest[:count], rest[count:]


def _num_null(num_candidates: int, num_rest: int, *, shared: bool) -> int:
    """An even number of null candidates; `shared`: the rest is also the auxiliary set."""
    most = max(int(_NULL_SHARE * num_rest), min(_LEAST_NULL, num_rest // 2)) if shared else num_rest
    wanted = min(most, max(_LEAST_NULL, int(_NULL_OF_CANDIDATES * num_candidates)))
    return wanted - wanted % 2


def _auxiliary(
    auxiliary: Any, total: int, population: Records, task: TaskName | None
) -> tuple[NDArray[np.int64] | None, Records | None]:
    """Rows of the population, or a second data set of the same shape."""
    is_rows = isinstance(auxiliary, list | range) or getattr(auxiliary, "ndim", 0) == 1
    if is_rows:
        return rows_of(auxiliary, total, "auxiliary"), None
    kind: TaskName = "classification" if population.targets is None else "regression"
    second = to_records(auxiliary, name="auxiliary", task=task or kind)
    if second.input_shape != population.input_shape:
        raise InputError(
            "auxiliary",
            second.input_shape,
            f"its inputs must have the population's shape {population.input_shape}",
            "Preprocess both alike.",
        )
    return None, second


def _refuse_overlap(
    first: NDArray[np.int64] | None,
    second: NDArray[np.int64] | None,
    first_name: str,
    second_name: str,
) -> None:
    if first is None or second is None:
        return
    both = np.intersect1d(first, second)
    if both.size:
        raise InputError(
            f"{first_name}, {second_name}",
            int(both[0]),
            f"{len(both)} records stand in both, this one first",
            "A record is one or the other: mend the indices.",
        )
