"""What an attack declares about itself, what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fl_audit.errors import InputError
from fl_audit.estimates import EstimateOutput
from fl_audit.records import Records
from fl_audit.threat_model import (
    NOTHING_KNOWN,
    NOTHING_SEEN,
    Activity,
    Knowledge,
    Observation,
    ThreatModel,
)
from fl_audit.trace.view import TraceView

Kind = Literal["membership", "estimate", "reconstruction", "synthetic"]


class AttackSettings(BaseModel):
    """Base of an attack's settings table; the attack's own fields follow in a subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def also_knows(self) -> Knowledge:
        """What the adversary must know for these settings, besides what the attack always needs."""
        return NOTHING_KNOWN


@dataclass(frozen=True, slots=True, eq=False)
class AttackInput:
    """Everything an attack may use. None of it tells who is a member.

    Attributes:
        view: What the threat model grants of the trace.
        settings: An instance of the attack's `settings` class.
        rng: The attack's own generator, seeded from the run's seed and the attack's label.
        candidates: The records to score (membership attacks).
        auxiliary: Records of the same distribution, none of them audited; None unless granted.
        device: "cpu" or "cuda".
        lab: For attacks on the model: `attacks.shadows.lab.require_lab(given)` gives it, typed.
        known: Rows of candidates whose membership the adversary knows, and the answer; None
            unless KNOWN_MEMBERS is granted.
        asked: Client in question for each candidate, shape (n,): did *this* client train on it?
            None: did any client?
        users: Person that each candidate belongs to, shape (n,), in games about persons: was
            *this person's* data in the federation? None in games about records.
        rehearsals: Gives shadow federations with known members: use
            `attacks.federated.rehearsal.require_rehearsals(given, num)`. None where the run cannot
            be played again.
        labels: For reconstruction: (round, client) -> classes of the records behind an update,
            shape (b,), or None where they are not recorded. None unless LABELS is granted and the
            attack's settings ask for it.
        tick: Called with (what, done, at most) as a long search goes on; None if nobody watches.
    """

    view: TraceView
    settings: Any
    rng: np.random.Generator
    candidates: Records | None = None
    auxiliary: Records | None = None
    device: str = "cpu"
    lab: Any = None
    known: tuple[NDArray[np.int64], NDArray[np.bool_]] | None = None
    asked: NDArray[np.int64] | None = None
    users: NDArray[np.int64] | None = None
    rehearsals: Any = None
    labels: Callable[[int, int], NDArray[np.int64] | None] | None = None
    tick: Callable[[str, int, int], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MembershipScores:
    """One score per candidate, shape (n,), float64; higher = more likely a member.

    Attributes:
        per_round: Round: the scores that this round alone gives, for attacks on single rounds.
    """

    scores: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    per_round: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """What one client update of one round gave back.

    Attributes:
        round: Server round of the update.
        client: Client that sent it; -1 for the sum of the honest set's.
        inputs: Reconstructed model inputs, shape (b, ...), or None if the attack gives none.
            Sequences of tokens are token numbers, shape (b, length).
        label_counts: Reconstructed number of examples per class, shape (classes,), or None.
        labels: Class of each reconstructed input, shape (b,), or None.
        tokens: Tokens that the data holds, ascending, whatever their place; or None.
        behind: Clients whose updates are in the sum, where `client` is -1.
        objective: The attacker's objective over the iterations that led here, shape (steps,).
        frames: Reconstructions on the way, shape (t, b, ...), or None.
        confidence: How sure the attacker is of each reconstructed input (or value of it), in
            [0, 1], broadcastable to `inputs`; or None.
    """

    round: int
    client: int
    inputs: NDArray[np.float64] | None = None
    label_counts: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    tokens: NDArray[np.int64] | None = None
    behind: tuple[int, ...] = ()
    objective: NDArray[np.float64] | None = None
    frames: NDArray[np.float64] | None = None
    confidence: NDArray[np.float64] | None = None


Tried = tuple[int, int, tuple[int, ...]]
"""An update that was attacked: round, client (-1 for a sum), and the clients behind it."""


@dataclass(frozen=True, slots=True, eq=False)
class Reconstructions:
    """All claims of a reconstruction attack, at most one an update.

    Attributes:
        tried: Updates that the attack had in its hands: those with a claim, and those that gave
            nothing for a reason that lies in the data (a mixture, nothing fired, not confirmed, a
            search in vain). In shares of originals the latter count as 0. Updates that settings,
            or a limit of size, kept out are not tried. None: the claims alone.
        expected: Metric: the value that theory expects of it here, before the truth is looked at.
        contents: What inputs are: numbers (pictures among them), tokens, or rows of a table.
    """

    targets: tuple[Reconstruction, ...]
    notes: tuple[str, ...] = ()
    expected: Mapping[str, float] = field(default_factory=dict)
    contents: Literal["numbers", "tokens", "table"] = "numbers"
    tried: tuple[Tried, ...] | None = None

    @property
    def unclaimed(self) -> tuple[Tried, ...]:
        """Updates that were tried and gave no claim."""
        claimed = {(claim.round, claim.client) for claim in self.targets}
        return tuple(one for one in self.tried or () if one[:2] not in claimed)


AttackOutput = MembershipScores | Reconstructions | EstimateOutput


@dataclass(frozen=True, slots=True)
class AttackSpec:
    """An attack: its name, what it needs, and the function that runs it.

    Attributes:
        name: Registry name, `snake_case`.
        kind: What it gives back.
        requires: What its adversary must see.
        prefers: What it uses besides where the threat model grants it.
        knows: What its adversary must know.
        run: Pure function from what it is given to what it found.
        reference: Where the method comes from (URL or citation).
        summary: One line for tables.
        settings: Its settings table, with defaults for every field.
        activity: "malicious" if its adversary must have changed something in the federation.
        most_calibration: Records of a shadow task that thresholds and probabilities are set on;
            fewer for attacks that ask the model often.
        masks: For attacks that guess what stands in a record: takes it out, given the settings,
            before the attack gets the candidates.
    """

    name: str
    kind: Kind
    requires: Observation
    run: Callable[[AttackInput], AttackOutput]
    reference: str
    summary: str
    knows: Knowledge = NOTHING_KNOWN
    prefers: Observation = NOTHING_SEEN
    settings: type[AttackSettings] = AttackSettings
    activity: Activity = "honest-but-curious"
    most_calibration: int = 2000
    masks: Callable[[Any, Records], Records] | None = None

    def sees(self, threat_model: ThreatModel) -> Observation:
        """What it uses under a threat model that grants what it requires."""
        return self.requires | (self.prefers & ~threat_model.missing(self.prefers))

    @property
    def is_on_model(self) -> bool:
        """Whether it attacks one released model, and not what a federation sends."""
        on_model = Observation.FINAL_MODEL | Observation.LOGITS | Observation.LABELS_ONLY
        return self.kind == "membership" and not self.requires & ~on_model


def check_member_scores(
    scores: NDArray[np.float64], expected: int, label: str, *, may_tie: bool = False
) -> None:
    """Refuse scores of the wrong shape or with values that cannot be ranked.

    Raises:
        InputError: Naming the first offending record.
    """
    if scores.shape != (expected,):
        raise InputError(
            label,
            scores.shape,
            f"an attack gives one score per candidate ({expected},)",
            "Return a float64 array with one entry per candidate.",
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise InputError(
            label,
            float(scores[bad[0]]),
            f"score of candidate row {bad[0]} is not finite",
            "Scores must be finite; check the trace for NaN updates.",
        )
    if (
        not may_tie and expected > 1 and (scores == scores[0]).all()
    ):  # would read as AUC 0.5, as if it were safe
        raise InputError(
            label,
            float(scores[0]),
            "every candidate has this one score, so there is no signal",
            "Check the trace for updates that overflow, the model for equal answers to all inputs, "
            "and the settings for a threshold that no record passes (rmia: a smaller gamma).",
        )
