"""The scorer of estimates: what was inferred about clients and records, beside the truth.

What one trial is differs from attack to attack and stands in each record. Several rounds of one
record or one client are never several trials: they are put together before anything is counted.
Figures hold for the federation that was run; how they vary between federations is seen over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.attribute_scoring import score_attribute
from attacks.label_scoring import score_labels
from attacks.property_scoring import score_property
from attacks.source_scoring import score_source
from fl_audit.errors import InputError
from fl_audit.estimates import AttributeGuesses, LabelShares, PropertyScores, SourceScores
from fl_audit.game import NATURAL, GameTruth, MembershipGame
from fl_audit.results import EstimateRecord, EstimateResult


def score_estimate(
    output: Any,
    header: Mapping[str, Any],
    *,
    game: MembershipGame | None,
    truth: GameTruth | None,
    is_scored: NDArray[np.bool_] | None = None,
) -> EstimateResult:
    """Score what an attack of kind "estimate" gave back.

    Args:
        output: One of `fl_audit.estimates`.
        header: The fields that every record shares.
        game: What attackers were shown.
        truth: The truth; without it everything is kept and no figure is given.
        is_scored: Candidates whose group's member was really trained on; all by default.

    Raises:
        InputError: If the output is none of these, or does not fit the candidates.
    """
    fields: dict[str, Any]
    if isinstance(output, LabelShares):
        fields, table = score_labels(output, game, truth)
    elif isinstance(output, PropertyScores):
        fields, table = score_property(output, truth)
    elif isinstance(output, SourceScores | AttributeGuesses):
        assert game is not None  # neither attack runs without candidates
        scored = np.ones(len(game.candidates), np.bool_) if is_scored is None else is_scored
        if game.kinds is not None:
            scored = scored & (game.kinds == NATURAL)  # canaries are no average
        if isinstance(output, SourceScores):
            fields, table = score_source(output, game, truth, scored)
        else:
            fields, table = score_attribute(output, game, truth, scored)
    else:
        raise InputError(
            str(header["label"]),
            type(output).__name__,
            'an attack of kind "estimate" gives back one of fl_audit.estimates',
            "Return SourceScores, LabelShares, PropertyScores or AttributeGuesses.",
        )
    fields["notes"] = [*output.notes, *fields.get("notes", [])]
    if truth is None:
        fields["refused"] = {"every figure": "no truth to compare with"}
    record = EstimateRecord(**header, table_file=f"{header['label']}.parquet", **fields)
    return EstimateResult(record, table)
