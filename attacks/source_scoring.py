"""Source inference beside the truth: how often the client that holds a record is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.paired import by_group, paired_gain
from fl_audit.errors import InputError
from fl_audit.estimates import Clients, SourceScores, Values
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.results import RoundEstimate
from fl_audit.stats import proportion, share_ci

Table = dict[str, NDArray[np.generic]]


def score_source(
    output: SourceScores,
    game: MembershipGame,
    truth: GameTruth | None,
    is_scored: NDArray[np.bool_],
) -> tuple[dict[str, Any], Table]:
    """Fields of the record, and the table: one row a candidate, with the guess and all scores.

    Raises:
        InputError: If the scores do not fit the candidates, or no member was used.
    """
    clients = np.asarray(output.clients, dtype=np.int64)
    if output.scores.shape != (len(clients), len(game.candidates)):
        raise InputError(
            "source scores",
            output.scores.shape,
            f"need one per client and candidate, ({len(clients)}, {len(game.candidates)})",
            "Give a score for each client that was seen and each candidate.",
        )
    guess = clients[output.scores.argmax(axis=0)]
    table: Table = {"id": game.candidates.ids, "label": game.candidates.labels, "guess": guess}
    table |= {
        f"score_{client}": row for client, row in zip(output.clients, output.scores, strict=True)
    }
    fields: dict[str, Any] = {
        "claim": "which client holds a record",
        "trial": "a member whose client trained on it (all its rounds together)",
        "metrics": {},
        "chance": {},
    }
    if truth is None:
        return fields, table
    is_right = guess == truth.client
    table |= {
        "client": truth.client,
        "is_member": truth.is_member,
        "is_scored": is_scored,
        "is_right": is_right,
    }
    members, others = truth.is_member & is_scored, ~truth.is_member & is_scored
    if not members.any():
        raise InputError(
            "members", 0, "no member went into a recorded update", "Record more rounds."
        )
    width = game.rules.non_members_per_member + 1
    fields["metrics"] = {"accuracy": proportion(int(is_right[members].sum()), int(members.sum()))}
    fields["chance"] = {"accuracy": 1 / len(clients), "gain_over_non_members": 0.0}
    fields["refused"] = {}
    if others.any():
        fields["null"] = {"accuracy": share_ci(by_group(is_right, others, width))}
        gain = paired_gain(by_group(is_right, members, width), by_group(is_right, others, width))
        fields["metrics"]["gain_over_non_members"] = gain
    else:
        del fields["chance"]["gain_over_non_members"]
    fields["timeline_metric"] = "accuracy"
    fields["timeline"] = _source_timeline(output.per_round, truth, members)
    fields["notes"] = [
        f"Chance is 1/{len(clients)}: {len(clients)} clients were seen. The control is the same "
        "attack on non-members of the same classes, and asks for the client that would have held "
        "them: what the classes of its data alone give away."
    ]
    return fields, table


def _source_timeline(
    per_round: Mapping[int, tuple[Clients, Values]],
    truth: GameTruth,
    members: NDArray[np.bool_],
) -> list[RoundEstimate]:
    """Accuracy of each round on the members that their client trained on in it."""
    timeline = []
    for number, (clients, scores) in sorted(per_round.items()):
        here = members & np.isin(truth.client, clients)
        if truth.uses is not None and number <= truth.uses.shape[1]:
            here &= truth.uses[:, number - 1]
        if here.any():
            right = np.asarray(clients)[scores.argmax(axis=0)] == truth.client
            figure = proportion(int(right[here].sum()), int(here.sum()))
            timeline.append(RoundEstimate(round=number, estimate=figure))
    return timeline
