"""Attribute inference beside the truth, and always beside an imputer that saw no update."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.paired import by_group, paired_gain
from fl_audit.errors import InputError
from fl_audit.estimates import AttributeGuesses
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.results import Estimate
from fl_audit.stats import proportion

Table = dict[str, NDArray[np.generic]]


def score_attribute(
    output: AttributeGuesses,
    game: MembershipGame,
    truth: GameTruth | None,
    is_scored: NDArray[np.bool_],
) -> tuple[dict[str, Any], Table]:
    """Fields of the record, and the table: one row a candidate, with the true bin.

    The original value stands in the game's candidates; the attack got them without it.
    """
    true = _true_bins(output, game)
    names = ("combined", "update", "imputed")
    guesses: Table = {name: np.asarray(getattr(output, name)) for name in names}
    for name, guess in guesses.items():
        if guess.shape != true.shape:
            raise InputError(
                f"attribute guesses, {name}",
                guess.shape,
                f"need one for each candidate, {true.shape}",
                "Guess a bin for every candidate.",
            )
    table: Table = {"id": game.candidates.ids, "label": game.candidates.labels, "true": true}
    table |= guesses
    table |= {f"score_{b}": output.scores[:, b] for b in range(output.scores.shape[1])}
    fields: dict[str, Any] = {
        "claim": "an unknown value of a member’s record",
        "trial": "a member whose client trained on it (all its rounds together)",
        "metrics": {},
        "chance": {},
    }
    if truth is None:
        return fields, table
    table |= {"is_member": truth.is_member, "is_scored": is_scored}
    right = {name: guess == true for name, guess in guesses.items()}
    members, others = truth.is_member & is_scored, ~truth.is_member & is_scored
    fields["metrics"] = _figures(right, members)
    fields["null"] = _figures(right, others)
    imputed = right["imputed"][members]
    fields["baseline"] = {
        "accuracy": proportion(int(imputed.sum()), int(members.sum())),
        "accuracy_of_update_alone": proportion(int(imputed.sum()), int(members.sum())),
    }
    width = game.rules.non_members_per_member + 1
    sides = [by_group(right["update"], side, width) for side in (members, others)]
    if others.any() and len(sides[0]) > 1:
        fields["metrics"]["update_alone_gain_over_non_members"] = paired_gain(*sides)
    # the first alone may be what the model knows of everybody, the second what an imputer knows
    deciding = ("gain_over_imputer", "update_alone_gain_over_non_members")
    fields["chance"] = {name: 0.0 for name in deciding if name in fields["metrics"]}
    sizes = np.bincount(true[members], minlength=output.scores.shape[1])
    fields["notes"] = [
        f"Value {output.attribute} in {len(sizes)} bins, with {sizes.tolist()} members in them; "
        f"inner edges {np.round(output.edges, 4).tolist()}.",
        "The baseline is an imputer that saw no model; the control is the same attack on "
        "non-members. `accuracy` is that of the guess from imputer and updates together.",
    ]
    return fields, table


def _true_bins(output: AttributeGuesses, game: MembershipGame) -> NDArray[np.int64]:
    flat = game.candidates.inputs[:].reshape(len(game.candidates), -1)
    return np.searchsorted(output.edges, flat[:, output.attribute].astype(np.float64), side="right")


def _figures(right: dict[str, NDArray[np.bool_]], chosen: NDArray[np.bool_]) -> dict[str, Estimate]:
    if chosen.sum() <= 1:
        return {}
    own = {name: values[chosen].astype(np.float64) for name, values in right.items()}
    return {
        "accuracy": proportion(int(own["combined"].sum()), len(own["combined"])),
        "accuracy_of_update_alone": proportion(int(own["update"].sum()), len(own["update"])),
        "gain_over_imputer": paired_gain(own["combined"], own["imputed"]),
        "update_alone_gain_over_imputer": paired_gain(own["update"], own["imputed"]),
    }
