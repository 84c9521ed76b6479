"""One attack from request to result: candidates, null control, calibration, score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.decisions import Calibration
from attacks.devices import one_thread
from attacks.estimates import score_estimate
from attacks.features import round_features
from attacks.federated.rehearsal import Rehearsals, no_rehearsals
from attacks.persons import InRound
from attacks.reconstruction.resimulation import resimulation_note
from attacks.requests import AttackRequest
from attacks.risk import access_of
from attacks.scoring import score
from attacks.shadows.lab import Lab
from attacks.shadows.workshop import Mode
from fl_audit.attack_spec import AttackInput, AttackOutput, MembershipScores, Reconstructions
from fl_audit.errors import AuditError, InputError, clean_text
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.randomness import derived_rng
from fl_audit.records import Records
from fl_audit.results import AttackResult, UnavailableRecord, UnavailableResult
from fl_audit.threat_model import Knowledge, flag_names
from fl_audit.trace import TraceView

logger = logging.getLogger("fl_audit")
Known = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Rows whose membership is granted, and the answer."""


@dataclass(frozen=True, slots=True)
class Runner:
    """One attack: run on the candidates, run on the null, calibrate, score.

    Attributes:
        get_labs: Gives "candidates" and "null" -> what an attack on the model works with.
        rehearse: Gives shadow federations for candidates and the clients they are asked about.
    """

    request: AttackRequest
    view: TraceView
    auxiliary: Records | None
    seed: int
    device: str
    get_labs: Callable[[], Mapping[str, Lab]]
    rehearse: Callable[[Records, NDArray[np.int64] | None], Rehearsals | None] = no_rehearsals
    tick: Callable[[str, int, int], None] | None = None

    @property
    def labs(self) -> Mapping[str, Lab]:
        """Laboratories, for attacks on the model only."""
        return self.get_labs() if self.request.spec.is_on_model else {}

    def __call__(
        self,
        game: MembershipGame | None,
        truth: GameTruth | None,
        is_scored: NDArray[np.bool_] | None,
        left_out: Mapping[str, int] | None = None,
        in_round: InRound | None = None,
    ) -> AttackResult:
        """The result; `UnavailableResult` with the reason if the attack fails.

        Args:
            is_scored: Candidates to compute figures from; all if None.
            left_out: Why members are not among them, and how many for each reason.
            in_round: Candidates to compute a round's figures from; those of `is_scored` if None.
        """
        header = self.header()
        try:
            if self.request.spec.kind == "estimate":
                return self._estimate(game, truth, is_scored, header)
            if self.request.spec.kind == "membership":
                return self._membership(
                    game, truth, is_scored, header, left_out=left_out, in_round=in_round
                )
            granted = self._granted_labels(truth)
            output = self._run(None, "targets", labels=granted)
            output = self._checked(output, truth)
            features = round_features(self.view)
            return score(output, header, game=game, truth=truth, features=features)
        except AuditError as error:
            return unavailable(header, str(error))
        except Exception as error:
            logger.debug("attack %s failed", self.request.label, exc_info=True)
            return unavailable(header, f"the attack failed: {type(error).__name__}: {error}")

    def _checked(self, output: AttackOutput, truth: GameTruth | None) -> AttackOutput:
        """What was inverted was sent as assumed: one update is played again on its true records."""
        if truth is None or not isinstance(output, Reconstructions) or not output.targets:
            return output
        if Knowledge.LOCAL_TRAINING not in self.request.knows:  # nothing was assumed
            return output
        first = next((claim for claim in output.targets if claim.client >= 0), None)
        target = None if first is None else truth.targets.behind(first.round, first.client)
        if target is None:
            return output
        note = resimulation_note(self.view, target, rng=self._rng("resimulation"))
        return replace(output, notes=(*output.notes, note))

    def _granted_labels(
        self, truth: GameTruth | None
    ) -> Callable[[int, int], NDArray[np.int64] | None] | None:
        """Labels of the records behind updates, where the settings ask for them."""
        if truth is None or Knowledge.LABELS not in self.request.settings.also_knows:
            return None
        targets = truth.targets

        def labels(server_round: int, client: int) -> NDArray[np.int64] | None:
            found = targets.behind(server_round, client)
            return None if found is None else found.labels

        return labels

    def _estimate(
        self,
        game: MembershipGame | None,
        truth: GameTruth | None,
        is_scored: NDArray[np.bool_] | None,
        header: dict[str, Any],
    ) -> AttackResult:
        """The attack on the candidates, with what it is to guess taken out of them."""
        candidates = None if game is None else game.candidates
        masks = self.request.spec.masks
        if candidates is not None and masks is not None:
            candidates = masks(self.request.settings, candidates)
        asked = None if game is None else game.asked
        output = self._run(candidates, "candidates", asked=asked)
        return score_estimate(output, header, game=game, truth=truth, is_scored=is_scored)

    def _membership(
        self,
        game: MembershipGame | None,
        truth: GameTruth | None,
        is_scored: NDArray[np.bool_] | None,
        header: dict[str, Any],
        *,
        left_out: Mapping[str, int] | None,
        in_round: InRound | None,
    ) -> AttackResult:
        if game is None:
            raise InputError(
                "candidates",
                None,
                "a membership attack needs records to ask about",
                "Play a membership game (simulations do), or give audit_trace(game=...).",
            )
        if game.users is not None:
            _check_person_game(self.request)
        known = None
        if truth is not None and Knowledge.KNOWN_MEMBERS in self.request.knows:
            known = self._known(truth.is_member, is_scored, "candidates", width=_group_width(game))
            is_scored = _without(known, is_scored, len(truth.is_member))
        if self.request.spec.is_on_model:
            output, null = self._on_model(game, known)
        else:
            output, null = self._on_updates(game, known)
        # a shadow model's known members are records: they set no threshold for persons
        calibration, notes = self._calibration() if game.users is None else (None, [])
        return score(
            self._with_origin(output, notes),
            header,
            game=game,
            truth=truth,
            null=null,
            is_scored=is_scored,
            left_out=left_out,
            in_round=in_round,
            calibration=calibration,
            access=access_of(self.request.spec.requires),
        )

    def _on_updates(
        self, game: MembershipGame, known: Known | None
    ) -> tuple[AttackOutput, AttackOutput | None]:
        """Candidates and null in one run, so that what the attack fits is the same for both."""
        both = Records.concatenate([game.candidates, game.null])
        asked = None
        if game.asked is not None and game.null_asked is not None:
            asked = np.concatenate([game.asked, game.null_asked])
        users = None
        if game.users is not None and game.null_users is not None:
            users = np.concatenate([game.users, game.null_users])
        output = self._run(both, "candidates", known=known, asked=asked, users=users)
        return _split(output, len(game.candidates), len(game.null))

    def _on_model(
        self, game: MembershipGame, known: Known | None
    ) -> tuple[AttackOutput, AttackOutput | None]:
        """Candidates and null in one run, so that what the attack fits is the same for both."""
        if "candidates" not in self.labs:  # the attack says what is missing
            return self._run(game.candidates, "candidates", known=known), None
        own, null = self.labs["candidates"], self.labs["null"]
        both = replace(own, rows=np.concatenate([own.rows, null.rows]))
        output = self._run(both.candidates, "candidates", lab=both, known=known)
        return _split(output, len(own.rows), len(null.rows))

    def scores(self, lab: Lab, part: str) -> NDArray[np.float64]:
        """Scores of a laboratory's candidates."""
        output = self._run(lab.candidates, part, lab=lab)
        assert isinstance(output, MembershipScores)
        return output.scores

    def _with_origin(self, output: AttackOutput, notes: Sequence[str]) -> AttackOutput:
        """With notes on the models that were trained to compare with, and on the calibration."""
        if not isinstance(output, MembershipScores):
            return output
        mode, lab = getattr(self.request.settings, "mode", None), self.labs.get("candidates")
        if mode is not None and lab is not None:
            notes = [lab.workshop.origin(mode), *notes]
        return replace(output, notes=(*output.notes, *notes))

    def _calibration(self) -> tuple[Calibration | None, list[str]]:
        """The same attack on a shadow model whose members are known; or why there is none.

        An attack's scores stand without it, so nothing that goes wrong here takes them away.
        """
        lab = self.labs.get("candidates")
        if lab is None or lab.workshop.trainer is None:
            return None, []
        try:
            found = self._calibrate(lab)
        except Exception as error:
            logger.debug("attack %s: no calibration", self.request.label, exc_info=True)
            return None, [f"No probabilities and decisions: {clean_text(error, 300)}"]
        if found is None:
            return None, ["No probabilities and decisions: too few shadow models or known members."]
        return found, []

    def _calibrate(self, lab: Lab) -> Calibration | None:
        settings = self.request.settings
        mode = getattr(settings, "mode", None) or _calibration_mode(lab)
        played = lab.calibration(mode, getattr(settings, "num_shadow_models", 2))
        if played is None:
            return None
        task, is_member = played
        known, scored = None, np.ones(len(is_member), dtype=np.bool_)
        if Knowledge.KNOWN_MEMBERS in self.request.knows:
            known = self._known(is_member, None, "calibration")
            scored = _without(known, None, len(is_member))
        else:
            most = self.request.spec.most_calibration
            keep = np.sort(self._rng("calibration rows").permutation(len(is_member))[:most])
            task, is_member = replace(task, rows=task.rows[keep]), is_member[keep]
            scored = scored[keep]
        output = self._run(task.candidates, "calibration", lab=task, known=known)
        assert isinstance(output, MembershipScores)
        if len(np.unique(is_member[scored])) < 2:
            return None
        return Calibration(output.scores[scored], is_member[scored])

    def _known(
        self,
        is_member: NDArray[np.bool_],
        is_scored: NDArray[np.bool_] | None,
        part: str,
        *,
        width: int = 1,
    ) -> Known:
        """A share of the members, and as large a share of the non-members, that are granted.

        Args:
            width: Candidates in a group, of which one is a member. Whole groups are granted: a
                group of which one record is known gives the others away, and classes that are by
                chance commoner among known members would be rarer among those that are scored.
        """
        fraction = getattr(self.request.settings, "known_fraction", 0.5)
        rng = self._rng(f"known {part}")
        usable = np.ones(len(is_member), np.bool_) if is_scored is None else is_scored
        if width > 1:
            groups = rng.permutation(np.flatnonzero(usable.reshape(-1, width).all(axis=1)))
            chosen = np.sort(groups[: round(fraction * len(groups))])
            rows = (chosen[:, None] * width + np.arange(width)).reshape(-1)
            return rows, is_member[rows]
        sides = []
        for side in (is_member & usable, ~is_member & usable):
            own = rng.permutation(np.flatnonzero(side))
            sides.append(own[: round(fraction * len(own))])
        rows = np.sort(np.concatenate(sides))
        return rows, is_member[rows]

    def _run(
        self,
        candidates: Records | None,
        part: str,
        *,
        lab: Lab | None = None,
        known: Known | None = None,
        asked: NDArray[np.int64] | None = None,
        users: NDArray[np.int64] | None = None,
        labels: Callable[[int, int], NDArray[np.int64] | None] | None = None,
    ) -> AttackOutput:
        """The attack, with a generator of its own for (seed, label, part)."""
        spec = self.request.spec
        rehearsals = None
        if candidates is not None and spec.kind == "membership" and not spec.is_on_model:
            rehearsals = self.rehearse(candidates, asked)
        given = AttackInput(
            view=self.view,
            settings=self.request.settings,
            rng=self._rng(part),
            candidates=candidates,
            auxiliary=self.auxiliary,
            device=self.device,
            lab=lab or self.labs.get(part),
            known=known,
            asked=asked,
            users=users,
            rehearsals=rehearsals,
            labels=labels,
            tick=self.tick,
        )
        with one_thread():  # live and later, an attack gives the same bits
            return self.request.spec.run(given)

    def _rng(self, part: str) -> np.random.Generator:
        return derived_rng(self.seed, "attack", self.request.label, part)

    def header(self) -> dict[str, Any]:
        """The fields that every record of this attack shares."""
        spec = self.request.spec
        return {
            "label": self.request.label,
            "attack": spec.name,
            "seed": self.seed,
            "settings": self.request.settings.model_dump(mode="json"),
            "requires": flag_names(spec.sees(self.view.threat_model)),
            "knows": flag_names(self.request.knows),
            "reference": spec.reference,
            "summary": spec.summary,
            "rounds": list(self.view.rounds),
            "activity": spec.activity,
        }


def _calibration_mode(lab: Lab) -> Mode:
    """For attacks that train nothing: not on audited records, where there are enough others."""
    shop = lab.workshop
    return "offline" if shop.num_auxiliary >= 2 * shop.train_size else "online"


def _split(
    output: AttackOutput, num: int, num_null: int
) -> tuple[AttackOutput, AttackOutput | None]:
    """What an attack said about the candidates, and about the null candidates that follow them."""
    if not isinstance(output, MembershipScores) or output.scores.shape != (num + num_null,):
        return output, None  # refused by the scorer
    per_round = {number: scores[:num] for number, scores in output.per_round.items()}
    on_null = MembershipScores(output.scores[num:]) if num_null else None
    return replace(output, scores=output.scores[:num], per_round=per_round), on_null


def _group_width(game: MembershipGame) -> int:
    """Candidates in a group of which a lot chose one; 1 where nobody drew lots."""
    width = game.rules.non_members_per_member + 1
    return width if game.rules.groups * width == len(game.candidates) else 1


def _without(
    known: Known | None,
    is_scored: NDArray[np.bool_] | None,
    num: int,
) -> NDArray[np.bool_]:
    """What figures are computed from: not the records whose membership was granted."""
    scored = np.ones(num, dtype=np.bool_) if is_scored is None else is_scored.copy()
    if known is not None:
        scored[known[0]] = False
    return scored


def _check_person_game(request: AttackRequest) -> None:
    """Refuse attacks that train on the candidates, or are told of some: candidates are fresh.

    Raises:
        InputError: Naming the attack.
    """
    trains = hasattr(request.settings, "num_shadow_models")
    if trains or Knowledge.KNOWN_MEMBERS in request.spec.knows:
        raise InputError(
            request.label,
            "game.unit = 'user'",
            "this attack compares with models trained on the very records it is asked about, and "
            "of a person it is asked about records that nobody trained on",
            "Use user_membership or another attack without shadow models and known members, or "
            "set game.unit = 'record'.",
        )


def unavailable(header: Mapping[str, Any], reason: str) -> UnavailableResult:
    """The result of an attack that gave no number, and why."""
    return UnavailableResult(UnavailableRecord(**header, reason=clean_text(reason)))
