"""The scorer of reconstructions: claims beside the records behind the update, and beside a guess.

One update is one trial. The guess sees auxiliary records and no update, and is paired with the
originals in the same way: only what goes beyond it comes from the update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.features import Features
from attacks.reconstruction import metrics
from attacks.reconstruction_arrays import shown_arrays
from attacks.reconstruction_figures import estimates, gains, leading
from attacks.reconstruction_measures import (
    MOST_GALLERY,
    Compared,
    Values,
    Yardstick,
    compare,
    guess,
    try_features,
)
from fl_audit.attack_spec import Reconstruction, Reconstructions
from fl_audit.errors import InputError
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.records import Records
from fl_audit.results import ColumnFigure, ReconstructionRecord, ReconstructionResult
from fl_audit.stats import share_ci
from fl_audit.targets import Target
from fl_audit.threat_model import Knowledge, flag_names

Scored = list[tuple[Reconstruction, Target]]


def score_reconstruction(
    output: Reconstructions,
    header: Mapping[str, Any],
    *,
    game: MembershipGame | None,
    truth: GameTruth | None,
    features: Features | None = None,
) -> ReconstructionResult:
    """Score what a reconstruction attack said.

    Args:
        output: Its claims, at most one an update. Updates that it tried in vain count as 0 in every
            share, and as 0 for the guess, which says as much as the claim.
        header: The fields that every record shares.
        game: What attackers were shown: the guess and the gallery come from it.
        truth: Without it claims are kept, and no figure is given.
        features: Gives a round's model's features of records; None leaves their distance out.

    Raises:
        InputError: If two claims are about one update, or a claim does not fit the records.
    """
    _check(output)
    shapes = [] if game is None else [game.candidates.input_shape]
    output = replace(output, targets=tuple(_shaped(claim, shapes) for claim in output.targets))
    scored = _evened(_scored(output.targets, truth))
    by, refused = _yardstick(output, scored, header, game=game, features=features)
    compared = [compare(claim, target, by) for claim, target in scored]
    empty = _scored(_nothing_claimed(output, scored), truth)
    counted = [*compared, *(compare(claim, target, by) for claim, target in empty)]
    auxiliary = None if game is None or not len(game.auxiliary) else game.auxiliary
    guessed = [] if auxiliary is None else _guessed([*scored, *empty], auxiliary, by)
    figures, theirs = [one.figures for one in counted], [one.figures for one in guessed]
    (found, why), gained = estimates(figures), gains(figures, theirs)
    arrays = shown_arrays(output, compared, auxiliary)
    record = ReconstructionRecord(
        **header,
        notes=[*output.notes, *_notes(output, counted, by)],
        num_targets=len(output.targets),
        num_tried=len(output.targets) + len(output.unclaimed),
        metrics=found,
        baseline=estimates(theirs)[0],
        gain=gained,
        leading=leading(output, gained),
        refused=refused | why,
        expected=dict(output.expected),
        contents=output.contents,
        columns=_columns(counted, guessed, output.contents),
        arrays_file=f"{header['label']}.safetensors" if arrays else None,
    )
    return ReconstructionResult(record, arrays)


def _check(output: Reconstructions) -> None:
    seen: set[tuple[int, int]] = set()
    tried = None if output.tried is None else {one[:2] for one in output.tried}
    for claim in output.targets:
        if tried is not None and (claim.round, claim.client) not in tried:
            raise InputError(
                "reconstruction",
                (claim.round, claim.client),
                "a claim is about an update (round, client) that was tried",
                "Put it into `tried`.",
            )
        if (claim.round, claim.client) in seen:
            raise InputError(
                "reconstruction",
                (claim.round, claim.client),
                "an attack makes one claim about an update (round, client)",
                "Choose by the attack's own objective, or join the records.",
            )
        seen.add((claim.round, claim.client))


def _shaped(claim: Reconstruction, shapes: Sequence[tuple[int, ...]]) -> Reconstruction:
    """A claim in the shape of records: a dense layer's inputs come as rows of as many values."""
    found = claim.inputs
    if found is None or not shapes or found.shape[1:] == shapes[0]:
        return claim
    if int(np.prod(found.shape[1:])) != int(np.prod(shapes[0])):
        return claim  # refused where it is compared
    frames, confidence = claim.frames, claim.confidence
    if frames is not None:
        frames = frames.reshape(*frames.shape[:2], *shapes[0])
    if confidence is not None:
        confidence = np.broadcast_to(confidence, found.shape).reshape(len(found), *shapes[0])
    shaped = found.reshape(len(found), *shapes[0])
    return replace(claim, inputs=shaped, frames=frames, confidence=confidence)


def _scored(claims: Sequence[Reconstruction], truth: GameTruth | None) -> Scored:
    if truth is None:
        return []
    pairs = [(c, truth.targets.behind(c.round, c.client, c.behind)) for c in claims]
    return [(_shaped(c, [t.inputs.shape[1:]]), t) for c, t in pairs if t is not None]


def _evened(scored: Scored) -> Scored:
    """Claims that give tokens alone, where others give sequences too, have found no sequence."""
    if all(claim.inputs is None for claim, _ in scored):
        return scored
    return [
        (c if c.inputs is not None else replace(c, inputs=_no_records(t)), t) for c, t in scored
    ]


def _no_records(target: Target) -> Values:
    return np.zeros((0, *target.inputs.shape[1:]))


def _nothing_claimed(output: Reconstructions, scored: Scored) -> list[Reconstruction]:
    """For updates that were tried in vain: empty claims, of what the attack claims elsewhere."""
    if not scored:
        return []
    claims, none_found = [claim for claim, _ in scored], _no_records(scored[0][1])
    none = np.zeros(0, dtype=np.int64)
    has_labels = any(claim.labels is not None for claim in claims)
    return [
        Reconstruction(
            server_round,
            client,
            none_found if any(c.inputs is not None for c in claims) else None,
            none if any(c.label_counts is not None for c in claims) else None,
            none if has_labels else None,
            none if any(c.tokens is not None for c in claims) else None,
            behind=behind,
        )
        for server_round, client, behind in output.unclaimed
    ]


def _guessed(scored: Scored, auxiliary: Records, by: Yardstick) -> list[Compared]:
    """The guess in place of each claim, with the labels that the attack was granted, if it was."""
    return [
        compare(
            guess(
                claim,
                auxiliary,
                by.contents,
                granted=None if by.labels_count else target.labels,
            ),
            target,
            by,
        )
        for claim, target in scored
    ]


def _yardstick(
    output: Reconstructions,
    scored: Scored,
    header: Mapping[str, Any],
    *,
    game: MembershipGame | None,
    features: Features | None,
) -> tuple[Yardstick, dict[str, str]]:
    """What to measure with, and why some measures cannot be given."""
    refused: dict[str, str] = {}
    rebuilt = [(claim, target) for claim, target in scored if claim.inputs is not None]
    originals = [target.inputs for _, target in rebuilt]
    in_unit = all(float(o.min()) >= 0 and float(o.max()) <= 1 for o in originals)
    if rebuilt and output.contents == "numbers":
        refused |= _refused_pictures(originals[0].shape, in_unit=in_unit)
    granted = set(flag_names(Knowledge.LABELS)) & set(header["knows"])
    if granted and any(c.labels is not None or c.label_counts is not None for c, _ in scored):
        refused["label_accuracy"] = "the attack was granted the labels: they are no finding"
    gallery = _gallery(game, originals) if rebuilt else None
    if rebuilt and gallery is None:
        refused["re_identified@1"] = "there is no other record to tell the original from"
    if output.contents == "tokens" or not rebuilt:
        features = None
    elif features is not None:
        inputs = originals[0].astype(np.float64)
        reason = try_features(features, rebuilt[0][0].round, inputs)
        if reason is not None:
            refused["feature_distance"], features = f"no features of the model: {reason}", None
    tolerance = None
    if output.contents == "table" and rebuilt:
        tolerance = _tolerance(game, originals)
    yardstick = Yardstick(output.contents, in_unit, gallery, tolerance, features, not granted)
    return yardstick, refused


def _refused_pictures(shape: tuple[int, ...], *, in_unit: bool) -> dict[str, str]:
    if not in_unit:
        return {
            "psnr_db": "originals do not all lie in [0, 1], so there is no peak to compare with: "
            "`exact` and the rank in the gallery stand for it"
        }
    if len(shape) == 4 and metrics.ssim_sigma(*shape[2:]) is None:
        return {"ssim": f"pictures of {shape[2]} x {shape[3]} pixels are too small for a window"}
    return {}


def _gallery(
    game: MembershipGame | None, originals: Sequence[NDArray[np.float32]]
) -> Values | None:
    """At most `MOST_GALLERY` different records, evenly from all that the scorer has."""
    shape = originals[0].shape[1:]
    parts: list[Any] = [o for o in originals if o.shape[1:] == shape]
    if game is not None:
        own = (game.candidates, game.null, game.auxiliary)
        parts += [records.inputs for records in own if records.input_shape == shape]
    ends = np.cumsum([len(part) for part in parts])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(int(ends[-1]), MOST_GALLERY)).round())
    rows = chosen.astype(np.int64)
    which = np.searchsorted(ends, rows, side="right")
    picked = [
        np.asarray(part[rows[which == place] - (ends[place] - len(part))])
        for place, part in enumerate(parts)
    ]
    gallery = np.concatenate(picked).astype(np.float64)
    differ = (gallery != gallery[0]).any()
    return gallery if differ else None


def _tolerance(game: MembershipGame | None, originals: Sequence[NDArray[np.float32]]) -> Values:
    known = np.concatenate(list(originals))
    if game is not None and len(game.auxiliary) > 1:
        known = np.asarray(game.auxiliary.inputs[:])
    return metrics.column_tolerance(known.reshape(len(known), -1).astype(np.float64))


def _columns(
    compared: Sequence[Compared], guessed: Sequence[Compared], contents: str
) -> list[ColumnFigure]:
    """Figures of each column of a table."""
    own = [one.right_columns for one in compared if one.right_columns is not None]
    theirs = [one.right_columns for one in guessed if one.right_columns is not None]
    if not own or contents != "table":
        return []
    found, control = np.array(own), np.array(theirs)
    return [
        ColumnFigure(
            column=column,
            found=share_ci(np.clip(found[:, column], 0, 1)),
            baseline=share_ci(np.clip(control[:, column], 0, 1)) if theirs else None,
        )
        for column in range(found.shape[1])
    ]


def _notes(output: Reconstructions, compared: Sequence[Compared], by: Yardstick) -> list[str]:
    notes = []
    vain, rest = len(output.unclaimed), len(output.targets) + len(output.unclaimed) - len(compared)
    if vain:
        notes.append(
            f"{vain} of {len(output.targets) + vain} updates that were tried gave no claim. Shares "
            "of records, tokens and labels count them as 0; distances are of what was claimed."
        )
    if compared and rest:
        notes.append(f"Of {rest} updates the truth is not known: they are not scored.")
    paired = [one for one in compared if one.claim.inputs is not None]
    if not paired:
        return notes
    found, given = sum(len(one.rows) for one in paired), sum(len(o.target.labels) for o in paired)
    if output.contents != "tokens" and found:
        worst = max(float(metrics.largest_errors(*o.pairs).max(initial=0)) for o in paired)
        notes.append(f"Largest absolute error of any input value: {worst:.2g}.")
    notes.append(f"{found} records were compared with the {given} behind these updates.")
    if by.gallery is not None:
        notes.append(f"Ranks are among {len(by.gallery)} records that the auditor has.")
    return notes
