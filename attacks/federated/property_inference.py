"""Property inference: does a client's data have a property, which need not be the task's?

Passive attack of Melis et al.: from each round's model the adversary makes updates of its own, on
auxiliary records with and without the property, trains a classifier on them, and applies it to the
updates that clients sent. A client's score is the mean log-odds over its rounds. Classifiers that
learnt shuffled labels are the null: they show what the direction of an update alone gives away.

References:
    Melis et al., "Exploiting unintended feature leakage in collaborative learning", S&P 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from attacks.federated.answers import RoundSettings, no_signal
from attacks.federated.properties import checked_name, has_property
from attacks.federated.rounds import chosen_rounds
from attacks.federated.simulated import Features, simulate_update
from fl_audit.attack_spec import AttackInput, AttackSpec
from fl_audit.errors import InputError
from fl_audit.estimates import PropertyScores
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

Values = NDArray[np.float64]
_LEAST = 5  # auxiliary records with, and without: fewer make no variety of updates
_INVERSE_PENALTY = 0.1  # of the logistic regression: there are more features than updates
_EVENNESS = (0.3, 30.0)  # concentrations that the mixes of classes are drawn with


class PropertySettings(RoundSettings):
    """Which property, and how the adversary learns what it looks like."""

    property: Annotated[str, AfterValidator(checked_name)] = "class:0"
    """"class:3", or "module:function" from Records to a bool array: imported, so trust it."""
    num_updates: int = Field(default=40, ge=4, le=10_000)
    """Updates made with the property each round, and as many without."""
    low_share: float = Field(default=0.1, gt=0, le=1)
    """Least share of records with the property in an update made with it."""
    high_share: float = Field(default=0.6, gt=0, le=1)
    """Largest share; shares are drawn evenly in between."""
    min_share: float = Field(default=0.0, ge=0, lt=1)
    """A client counts as having the property if more than this share of its records has."""
    sketch: int = Field(default=128, ge=1)
    """Places that all layers but the last are projected to."""
    num_null: int = Field(default=20, ge=2, le=10_000)
    """Classifiers with shuffled labels."""


def property_inference(
    view: TraceView,
    auxiliary: Records,
    settings: PropertySettings,
    *,
    rng: np.random.Generator,
    device: str = "cpu",
) -> PropertyScores:
    """Log-odds that the data behind each update has the property, and the same from null models.

    Raises:
        ObservationError: If the view does not grant each client's updates.
        InputError: If the auxiliary records do not show the property, or no update is usable.
    """
    deck = _Deck(auxiliary, has_property(settings.property, auxiliary), settings)
    module = view.architecture()
    features = Features(settings.sketch, rng=rng)
    scores: dict[tuple[int, int], float] = {}
    null: list[dict[tuple[int, int], float]] = [{} for _ in range(settings.num_null)]
    silent = []
    for number in chosen_rounds(view, settings.rounds):
        for received, clients in view.received_groups(number):
            for training, size, alike in _alike(view, number, clients):
                updates = {c: dict(view.client_update(number, c)) for c in alike}
                moved = {c: u for c, u in updates.items() if any(v.any() for v in u.values())}
                silent += [f"round {number}, client {c}" for c in alike if c not in moved]
                if not moved:
                    continue
                made, labels = deck.updates(
                    module, received, training, number, size, features, rng, device
                )
                observed = np.stack([features(update) for update in moved.values()])
                for table, target in [
                    (scores, labels),
                    *((t, rng.permutation(labels)) for t in null),
                ]:
                    odds = _log_odds(made, target, observed)
                    table |= {(number, c): float(o) for c, o in zip(moved, odds, strict=True)}
    if not scores:
        raise no_signal()
    notes = list(view.unusable)
    if silent:
        notes.append(f"Zero updates say nothing: {'; '.join(silent)}.")
    return PropertyScores(settings.property, scores, tuple(null), settings.min_share, tuple(notes))


@dataclass(frozen=True, slots=True, eq=False)
class _Deck:
    """Auxiliary records with and without the property, dealt into the data of made-up clients."""

    records: Records
    has: NDArray[np.bool_]
    settings: PropertySettings

    def __post_init__(self) -> None:
        for wanted, word in ((True, "with"), (False, "without")):
            count = int((self.has == wanted).sum())
            if count < _LEAST:
                raise InputError(
                    "property",
                    self.settings.property,
                    f"{count} of {len(self.has)} auxiliary records are {word} it, and {_LEAST} are "
                    "needed to learn what it looks like",
                    "Raise game.auxiliary, or choose a property that is neither rarer nor more "
                    "common.",
                )
        if self.settings.low_share > self.settings.high_share:
            raise InputError(
                "low_share",
                self.settings.low_share,
                f"must not exceed high_share = {self.settings.high_share}",
                "Exchange the two.",
            )

    def updates(
        self,
        module: Any,
        received: Mapping[str, NDArray[np.generic]],
        training: LocalTraining,
        number: int,
        size: int,
        features: Features,
        rng: np.random.Generator,
        device: str,
    ) -> tuple[Values, NDArray[np.bool_]]:
        """Features of made-up updates, and whether each was made with the property."""
        labels = np.arange(2 * self.settings.num_updates) % 2 == 0
        rows = []
        for label in labels:
            data = self.records.take(self._deal(size, bool(label), rng))
            made = simulate_update(
                module, received, data, training, server_round=number, rng=rng, device=device
            )
            rows.append(features(made))
        return np.stack(rows), labels

    def _deal(self, size: int, label: bool, rng: np.random.Generator) -> NDArray[np.int64]:
        """Records of one made-up client, drawn with replacement within each kind."""
        share = rng.uniform(self.settings.low_share, self.settings.high_share) if label else 0.0
        count = max(1, round(share * size)) if label else 0
        chosen = rng.choice(np.flatnonzero(self.has), size=count)
        rest = np.flatnonzero(~self.has)
        # the others in mixes from even to a few classes only, because clients may be so
        evenness = np.exp(rng.uniform(*np.log(_EVENNESS)))
        classes, place = np.unique(self.records.labels[rest], return_inverse=True)
        weights = rng.dirichlet(np.full(len(classes), evenness))[place] + 1e-9
        others = rng.choice(rest, size=size - count, p=weights / weights.sum())
        return np.concatenate([chosen, others]).astype(np.int64)


def _alike(
    view: TraceView, number: int, clients: Sequence[int]
) -> list[tuple[LocalTraining, int, list[int]]]:
    """Clients that train alike, with the median of how many examples they have."""
    groups: dict[str, list[int]] = {}
    for client in clients:
        groups.setdefault(view.local_training(client).model_dump_json(), []).append(client)
    return [
        (
            view.local_training(alike[0]),
            max(2, round(float(np.median([view.num_examples(number, c) for c in alike])))),
            alike,
        )
        for alike in groups.values()
    ]


def _log_odds(made: Values, labels: NDArray[np.bool_], observed: Values) -> Values:
    """Logistic regression's log-odds on observed updates."""
    scaler = StandardScaler().fit(made)
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000)
    model.fit(scaler.transform(made), labels)
    result: Values = model.decision_function(scaler.transform(observed))
    return result


def _run(given: AttackInput) -> PropertyScores:
    if given.auxiliary is None:
        raise InputError(
            "auxiliary",
            None,
            "records like the clients' are needed to make updates with and without the property",
            "Set game.auxiliary (400 or more are better), and let the threat model know "
            "auxiliary-data.",
        )
    return property_inference(
        given.view, given.auxiliary, given.settings, rng=given.rng, device=given.device
    )


ATTACK = AttackSpec(
    name="property_inference",
    kind="estimate",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LOCAL_TRAINING | Knowledge.EXAMPLE_COUNTS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/1805.04049",
    summary="Updates made with and without a property teach which clients' data has it",
    settings=PropertySettings,
)
