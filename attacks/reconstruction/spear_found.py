"""Examples found so far in a gradient, and what is left without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.spear_layer import Evidence, Mask, Values, mask_of, parallel_rows

_NEW = 1e-6  # what must tell a mask or an input from those that are known, relative
_SHARED = 1e-5  # cosine of a direction with what may be added to another example's mask
_ALIKE = 1e-3  # distance of a mask from what also vanishes where another does, if it is that
_SAME_READING = 1e-3  # distance of a direction from what neurons gave, relative, if it is that
_LONE = 3  # neurons that an input was read off at count as agreeing with its mask
_VAGUE = 0.05  # error, relative to the largest value, above which an input is not known


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Inputs that were found, and how far to trust them.

    Attributes:
        directions: Shape (k, rank), at input scale.
        masks: Shape (rank, k), at the scale at which rows times masks are signals.
        errors: Standard deviation of an input value's error, shape (k,).
        is_sure: Whether nothing else fits, and errors are small beside the input, shape (k,). In a
            batch that is not all explained, only inputs that single neurons gave, too, can be.
        is_likely: The same, but for examples that are not found and may be part of it, shape (k,).
        is_adopted: Whether it was known from another layer, shape (k,).
    """

    directions: Values
    masks: Values
    errors: Values
    is_sure: NDArray[np.bool_]
    is_likely: NDArray[np.bool_]
    is_adopted: NDArray[np.bool_]


@dataclass(slots=True)
class Found:
    """Examples found so far.

    Attributes:
        masks: One for each.
        directions: Of those whose input is known by itself, at input scale; None for others.
        adopted: Whether the input is known from the next layer.
    """

    masks: list[Mask] = field(default_factory=list)
    directions: list[Values | None] = field(default_factory=list)
    adopted: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.masks)

    def is_open(self, seen: Evidence) -> bool:
        """Whether an example is missing, or not sure."""
        return len(self) < seen.rank or not self.solution(seen).is_sure.all()

    def vectors(self, rank: int) -> Values:
        """Columns of A that are known, shape (rank, k)."""
        return np.array([mask.vector for mask in self.masks]).reshape(-1, rank).T

    def known(self, rank: int) -> tuple[Values, Values, NDArray[np.int64]]:
        """Directions (k, rank), masks (rank, k) and places of examples whose input is known."""
        places = [place for place, d in enumerate(self.directions) if d is not None]
        directions = np.array([self.directions[place] for place in places]).reshape(-1, rank)
        where = np.array(places, dtype=np.int64)
        return directions, self.vectors(rank)[:, where], where

    def add(self, mask: Mask, direction: Values | None, *, is_adopted: bool = False) -> bool:
        """Keep an example unless it is known; say whether anything is new."""
        rank = len(mask.vector)
        directions, _, _ = self.known(rank)
        if direction is not None and len(directions):
            apart = np.linalg.norm(directions - direction, axis=1)
            if (apart <= _NEW * np.linalg.norm(direction)).any():
                return False
        if mask.others.shape[1] and direction is not None:
            mask = _without(mask, direction, directions)
        vectors = self.vectors(rank)
        if is_independent(vectors, mask.vector):
            self.masks.append(mask)
            self.directions.append(direction)
            self.adopted.append(is_adopted)
            return True
        same = np.flatnonzero(np.abs(mask.vector @ vectors) > 1 - _NEW)
        if direction is None or not same.size or self.directions[same[0]] is not None:
            return False
        self.directions[same[0]] = direction  # a mask that was found by sampling
        return True

    def remainder(self, seen: Evidence, omit: Iterable[int] = ()) -> Values:
        """Rows without the examples whose inputs are known, shape (n, rank).

        Args:
            omit: Places of examples to leave in.
        """
        directions, masks, places = self.known(seen.rank)
        taken_out = ~np.isin(places, list(omit))
        directions, masks = directions[taken_out], masks[:, taken_out]
        if not len(directions):
            return seen.rows
        taken = masks @ np.linalg.solve(directions @ masks, directions)
        result: Values = seen.rows - seen.rows @ taken
        return result

    def solution(self, seen: Evidence) -> Solution:
        """What can be said of inputs: of all with all masks, else of those known by themselves.

        With all masks, their inverse gives the directions, and better than single neurons do.
        """
        directions, masks, places = self.known(seen.rank)
        is_vague = any(mask.others.shape[1] for mask in self.masks)
        if len(places) == seen.rank and is_vague:
            masks = _inverse(directions)
        elif len(self) == seen.rank:
            masks, places = self.vectors(seen.rank), np.arange(seen.rank)
            directions = _inverse(masks)
        directions = seen.scaled(directions)
        scale = np.einsum("ib,bi->i", directions, masks)
        spreads = [self.masks[place].spread for place in places]
        errors = _errors(seen, spreads, directions, scale)
        sizes = np.abs(seen.inputs(directions)).max(axis=1)
        is_near = errors <= _VAGUE * sizes
        settled, whole = self._is_settled(seen, directions, places)
        pairs = zip(seen.inputs(directions), masks.T, strict=True)
        agrees = np.array([seen.agrees(example, mask) for example, mask in pairs], dtype=np.bool_)
        is_explained = len(places) == seen.rank and bool(agrees.all())
        trusted = is_explained | self._is_read_off(seen, directions, places, agrees)
        return Solution(
            directions,
            masks / scale,
            errors,
            is_sure=settled & whole & is_near & agrees & trusted,
            is_likely=settled & is_near & agrees,
            is_adopted=np.array(self.adopted, dtype=np.bool_)[places],
        )

    def _is_read_off(
        self,
        seen: Evidence,
        directions: Values,
        places: NDArray[np.int64],
        agrees: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Examples whose direction is known by itself, too, and is no mixture's, shape (k,).

        Neurons that two examples turn on are parallel, too, if these send back signals in one
        ratio. With two classes all do: the last layer's signals are multiples of (1, -1). Then
        parallel neurons are left over that are no example's, and none is trusted.
        """
        if parallel_rows(self.remainder(seen, omit=places[~agrees])):
            return np.zeros(len(places), dtype=np.bool_)
        read_off = np.zeros(len(places), dtype=np.bool_)
        for own, place in enumerate(places):
            direction = self.directions[place]
            if direction is not None:
                apart = np.linalg.norm(seen.scaled(direction) - directions[own])
                read_off[own] = apart <= _SAME_READING * np.linalg.norm(directions[own])
        return read_off

    def _is_settled(
        self, seen: Evidence, directions: Values, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Examples that their own mask confirms and no other mask leaves open, shape (k,).

        And those that no example which is not found may be part of, shape (k,).
        """
        settled, whole = np.ones((2, len(places)), dtype=np.bool_)
        vectors = self.vectors(seen.rank)[:, places]
        for own, place in enumerate(places):
            if self.adopted[place]:
                continue
            agreeing = 0 if self.directions[place] is None else _LONE
            mask = mask_of(seen, directions[own], agreeing=agreeing)
            if mask is None:
                settled[own] = False
                continue
            loose = _loose(mask, vectors[:, own])
            if not loose.shape[1]:
                continue
            whole[own] = len(places) == seen.rank
            settled &= ~_is_open(vectors, directions, own, mask, loose)
        adopted = np.array(self.adopted, dtype=np.bool_)[places]
        return settled | adopted, whole | adopted


def _loose(mask: Mask, vector: Values) -> Values:
    """What may be added to a mask at any weight, and what it has but should not, as columns."""
    null = np.column_stack([mask.vector, mask.others])
    outside = vector - null @ (null.T @ vector)
    length = float(np.linalg.norm(outside))
    if length <= _ALIKE:
        return mask.others
    result: Values = np.column_stack([mask.others, outside / length])
    return result


def _is_open(
    vectors: Values, directions: Values, own: int, mask: Mask, loose: Values
) -> NDArray[np.bool_]:
    """Examples that change with what may be added to one's mask, shape (k,).

    Those whose directions are not orthogonal to it; and those whose masks it is, since their
    directions are mixtures already.
    """
    along = (directions[own] @ loose) / (directions[own] @ mask.vector)
    free = loose - np.outer(mask.vector, along)
    free /= np.linalg.norm(free, axis=0)
    weights = np.abs(directions @ free).max(axis=1) / np.linalg.norm(directions, axis=1)
    null, _ = np.linalg.qr(np.column_stack([mask.vector, loose]))
    apart = np.linalg.norm(vectors - null @ (null.T @ vectors), axis=0)
    fits_too: NDArray[np.bool_] = (weights > _SHARED) | (apart < _ALIKE)
    fits_too[own] = False
    return fits_too


def _inverse(matrix: Values) -> Values:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def is_independent(vectors: Values, vector: Values) -> bool:
    """Whether a vector of length 1 is outside the span of columns, beyond rounding."""
    if vectors.shape[1] == 0:
        return True
    basis, _ = np.linalg.qr(vectors)
    return float(np.linalg.norm(vector - basis @ (basis.T @ vector))) > _NEW


def _without(mask: Mask, direction: Values, known: Values) -> Mask:
    """Of several masks that would do, the one that leaves known examples out, if there is one."""
    choice = np.column_stack([mask.vector, mask.others])
    _, size, right = np.linalg.svd(known @ choice, full_matrices=True)
    full = np.zeros(len(right))
    full[: len(size)] = size
    free = right[full <= _NEW * max(1.0, full.max(initial=0.0))].T
    vector = choice @ (free @ (free.T @ (choice.T @ direction)))
    length = float(np.linalg.norm(vector))
    if length == 0:
        return mask
    vector /= length
    left, spans, _ = np.linalg.svd(choice - np.outer(vector, vector @ choice), full_matrices=False)
    return replace(mask, vector=vector, others=left[:, spans > 0.5])


def _errors(seen: Evidence, spreads: list[Values], directions: Values, scale: Values) -> Values:
    """Standard deviation of each input's error from the gradient's noise, to first order."""
    pinv = np.linalg.pinv(seen.rows) / seen.noise  # of the rows at their own scale
    variance = np.square((directions @ pinv) * seen.noise).sum(axis=1)
    sizes = np.abs(seen.inputs(directions)).max(axis=1)
    for spread, size, length in zip(spreads, sizes, scale, strict=True):
        mixed = np.einsum("ib,bc,ic->i", directions, spread, directions)
        variance += mixed * (size / length) ** 2
    result: Values = np.sqrt(variance)
    return result
