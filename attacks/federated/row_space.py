"""Row space of a dense layer: an update lies in the span of the inputs that it was made from.

A record that was trained on has no component outside the span; any other record has one, as long
as there are fewer examples behind the update than the layer has inputs. That holds for a client's
update, for the sum that secure aggregation or a client's seat shows, with any number of local SGD
steps, momentum and the proximal term, and with weight decay once its part is taken out.

References:
    The span: attacks/federated/spans.py. Weight decay: attacks/federated/row_space_decay.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import RoundSettings, notes_on
from attacks.federated.dense import dense_layer, first_dense_layer, layer_inputs
from attacks.federated.rounds import SUM, Source, chosen_rounds, round_updates
from attacks.federated.row_space_decay import fitted_multiple, granted_multiple, known_multiple
from attacks.federated.seats import Best, nearest_source
from attacks.federated.spans import RowSpace, residuals, rounding_level, span_of, with_bias
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import NOTHING_KNOWN, Knowledge, Observation
from fl_audit.trace import TraceView

Values = NDArray[np.float64]
Decay = Literal["auto", "known", "fitted", "none"]
How = Literal["known", "fitted", "none"]


class RowSpaceSettings(RoundSettings):
    """Which rounds and layer to use, and what is done about weight decay."""

    layer: str | None = None
    """Weight of a dense layer further in, whose inputs are taken at the model that was sent out:
    exact for one local step only. By default the first layer, which must be dense."""
    decay: Decay = "auto"
    """"known": from the local training; "fitted": by minimum rank; "none": not taken out; "auto":
    known if it is, else fitted, whichever leaves a rank gap."""

    @property
    def also_knows(self) -> Knowledge:
        """Known weight decay needs the local training, and examples for the number of steps."""
        if self.decay == "known":
            return Knowledge.LOCAL_TRAINING | Knowledge.EXAMPLE_COUNTS
        return NOTHING_KNOWN


@dataclass(frozen=True, slots=True, eq=False)
class _Update:
    """One layer's update in one round, of a client or of the honest set."""

    round: int
    client: int
    behind: tuple[int, ...]
    matrix: Values
    weights: Values
    level: float


@dataclass(slots=True, eq=False)
class _Found:
    """Scores so far, and what the updates were like."""

    best: Best = field(default_factory=Best)
    slacks: list[int] = field(default_factory=list)
    taken_out: Counter[str] = field(default_factory=Counter)
    noisy: int = 0
    full: int = 0
    zero: int = 0

    def add(self, update: _Update, space: RowSpace, inputs: Values) -> None:
        """Score the records by one span."""
        self.best.add(update.round, update.client, -residuals(space, inputs))
        self.slacks.append(space.slack)
        self.noisy += not space.has_gap


def row_space_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    layer: str | None = None,
    rounds: Sequence[int] | None = None,
    decay: Decay = "auto",
    source: Source | None = None,
) -> Values:
    """Score candidates by how little of them lies outside an update's row space.

    Args:
        asked: Client in question for each candidate, shape (n,); None: any client.
        layer: Weight of a dense layer further in; the first layer by default.
        rounds: Rounds to use; all by default.
        decay: How weight decay is taken out, see `RowSpaceSettings`.
        source: Each client's update, or the sum of the honest set's; by default the former where
            the view grants it.

    Returns:
        Scores in [-1, 0], shape (n,), higher = more likely a member: minus the smallest residual
        over clients and rounds, because one client in one round suffices.

    Raises:
        ObservationError: If the view does not grant the updates or the global model.
        InputError: If the model does not start with a dense layer, no update is in view, or none
            has a row space that leaves anything out.
    """
    source = source or nearest_source(view)
    found = _find(view, candidates, source=source, layer=layer, rounds=rounds, decay=decay)
    return found.best.scores(asked)


def _find(
    view: TraceView,
    candidates: Records,
    *,
    source: Source,
    layer: str | None,
    rounds: Sequence[int] | None,
    decay: Decay,
) -> _Found:
    found = _Found()
    for server_round in chosen_rounds(view, rounds):
        inputs, at = np.empty(0), None
        for model, update in _layer_updates(view, candidates, server_round, source, layer):
            if model is not at:  # one model for all, unless a malicious server sends several
                inputs, at = _inputs(view, candidates, model, layer), model
            if not update.matrix.any():
                found.zero += 1
                continue
            space, how = _span(view, update, decay)
            found.taken_out[how] += 1
            if space.rank == 0:  # nothing but decay
                found.zero += 1
            elif space.slack == 0:
                found.full += 1
            else:
                found.add(update, space, inputs)
    if not found.slacks:
        raise _nothing_to_score(view, source, found)
    return found


def _layer_updates(
    view: TraceView, candidates: Records, server_round: int, source: Source, layer: str | None
) -> Iterator[tuple[Mapping[str, NDArray[Any]], _Update]]:
    """The layer's update of each client or of the sum, with the model it started from."""
    for model, updates in round_updates(view, server_round, source):
        if layer is None:
            weight, bias = first_dense_layer(model, candidates.inputs.shape[1:])
        else:
            weight, bias = dense_layer(model, layer)
        before = model[weight]
        if not np.isfinite(before).all():
            continue
        weights = with_bias(before, None if bias is None else model[bias])
        for client, update in updates.items():
            behind = view.summed(server_round) if client == SUM else (client,)
            matrix = with_bias(update[weight], None if bias is None else update[bias])
            if np.isfinite(matrix).all():
                level = rounding_level(before)
                yield model, _Update(server_round, client, behind, matrix, weights, level)


def _inputs(
    view: TraceView, candidates: Records, model: Mapping[str, NDArray[Any]], layer: str | None
) -> Values:
    """What the layer sees of each candidate, shape (n, in)."""
    if layer is None:
        return np.asarray(candidates.inputs, dtype=np.float64).reshape(len(candidates), -1)
    return layer_inputs(view.architecture(), model, layer, candidates.inputs)


def _span(view: TraceView, update: _Update, decay: Decay) -> tuple[RowSpace, How]:
    """The span with the fewest assumptions about weight decay that leaves a rank gap.

    Without a gap: the estimate under noise, known decay taken out.
    """
    first: tuple[RowSpace, How] | None = None
    for how, multiple in _multiples(view, update, decay):
        rest = update.matrix - multiple * update.weights
        if not rest.any():
            return RowSpace(np.zeros((rest.shape[1], 0)), has_gap=True), how
        space = span_of(rest, update.level)
        if space.has_gap:
            return space, how
        first = first or (space, how)
    if first is None:  # asked to fit, and nothing fits
        return span_of(update.matrix, update.level), "none"
    return first


def _multiples(view: TraceView, update: _Update, decay: Decay) -> Iterator[tuple[How, float]]:
    known: float | None = None
    if decay == "known":
        known = known_multiple(view, update.round, update.behind)
    elif decay == "auto":
        known = granted_multiple(view, update.round, update.behind)
    if known:
        yield "known", known
    if decay in ("auto", "none") or known == 0:
        yield "none", 0.0
    if decay == "fitted" or (decay == "auto" and known != 0):
        fitted = fitted_multiple(update.matrix, update.weights, update.level)
        if fitted is not None:
            yield "fitted", fitted


def _nothing_to_score(view: TraceView, source: Source, found: _Found) -> InputError:
    name = "client updates" if source == "clients" else "sums of updates"
    if found.full or found.zero:
        return InputError(
            name,
            f"{found.full} of full rank, {found.zero} zero",
            "no update leaves a dimension out, so there is no rank gap and no signal to score by",
            "There are more examples behind them than the layer has inputs, or nobody trained.",
        )
    if source == "clients" and view.unusable:
        return InputError(
            name,
            0,
            f"no client sent a usable one: {view.unusable[0]}",
            "Mend the clients, or record rounds in which some answer.",
        )
    return InputError(
        name,
        0,
        "none is in view: the recording policy kept none"
        + ("" if source == "clients" else ", or no round made a new model"),
        "Record with recording.record = 'all', or with the clients and rounds in question.",
    )


def _notes(found: _Found, source: Source) -> tuple[str, ...]:
    notes = [
        "Each client's own update was used."
        if source == "clients"
        else "Only sums of updates are granted, so it says nothing of single clients.",
        f"Rank slack (dimensions left out) from {min(found.slacks)} to {max(found.slacks)}.",
    ]
    for how in ("known", "fitted"):
        if found.taken_out[how]:
            notes.append(f"Weight decay was taken out of {found.taken_out[how]} updates ({how}).")
    if found.noisy:
        notes.append(
            f"No rank gap in {found.noisy} of {len(found.slacks)} updates: their rank was "
            "estimated under noise, and scores are not exact."
        )
    if found.full:
        notes.append(f"{found.full} updates have full rank and say nothing.")
    if found.zero:
        notes.append(f"{found.zero} updates are zero and say nothing.")
    return tuple(notes)


def _run(given: AttackInput) -> MembershipScores:
    settings, source = given.settings, nearest_source(given.view)
    found = _find(
        given.view,
        require_candidates(given),
        source=source,
        layer=settings.layer,
        rounds=settings.rounds,
        decay=settings.decay,
    )
    clients = tuple(sorted(found.best.clients))
    return MembershipScores(
        found.best.scores(given.asked),
        (*_notes(found, source), *notes_on(given.view, clients)),
        found.best.per_round(given.asked),
    )


ATTACK = AttackSpec(
    name="row_space",
    kind="membership",
    requires=Observation.AGGREGATE | Observation.GLOBAL_MODEL,
    prefers=Observation.CLIENT_UPDATES,
    run=_run,
    reference="https://arxiv.org/abs/1305.5870",
    summary="The first dense layer's update spans exactly the inputs that it was made from",
    settings=RowSpaceSettings,
)
