"""What one reconstructed update is worth: one number a measure, from all its records together.

Records of a batch are found or missed together, so an update is one trial. Shares count all the
originals of the update: a record that no claim was made about is not found. Distances are means
over the pairs of a reconstruction and an original.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.features import Features
from attacks.reconstruction import metrics
from attacks.rounding import apportion
from fl_audit.attack_spec import Reconstruction
from fl_audit.errors import AuditError
from fl_audit.records import Records
from fl_audit.targets import Target

Values = NDArray[np.float64]
Contents = Literal["numbers", "tokens", "table"]
_RECOVERED, _RECOGNISED = 30.0, 20.0  # dB from which a record counts as recovered, as recognised
MOST_GALLERY = 1000  # records that the true original is to be told from


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """What is the same for all updates of one result.

    Attributes:
        contents: What records are.
        in_unit_range: Whether all originals lie in [0, 1], as PSNR and SSIM need it.
        gallery: Other records, shape (g, ...); None where there are none to tell an original from.
        tolerance: For tables: how far off a value of each column may be, shape (columns,).
        features: Gives features of records; None leaves their distance out.
        labels_count: Whether labels are findings: they are none if the attack was granted them.
    """

    contents: Contents
    in_unit_range: bool
    gallery: Values | None
    tolerance: Values | None
    features: Features | None
    labels_count: bool


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One claim beside the truth.

    Attributes:
        rows: Reconstructions that are paired with an original, shape (p,).
        columns: The originals that belong to them, shape (p,).
        psnr_db: Of each pair, shape (p,), where it is defined.
        ssim: Likewise.
        figures: Measure: value of this update.
        right: Values of each pair that are right, shape (p, values), for tokens and tables.
    """

    claim: Reconstruction
    target: Target
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    psnr_db: Values | None = None
    ssim: Values | None = None
    figures: dict[str, float] = field(default_factory=dict)
    right: NDArray[np.bool_] | None = None

    @property
    def right_columns(self) -> Values | None:
        """Share of the originals in which each column is right, shape (columns,)."""
        if self.right is None:
            return None
        share: Values = self.right.sum(axis=0) / len(self.target.labels)
        return share

    @property
    def pairs(self) -> tuple[Values, Values]:
        """Reconstructions and originals that belong together, both (p, ...)."""
        assert self.claim.inputs is not None  # the callers' condition
        original = self.target.inputs.astype(np.float64)
        return self.claim.inputs[self.rows].astype(np.float64), original[self.columns]


def compare(claim: Reconstruction, target: Target, by: Yardstick) -> Compared:
    """Pair a claim's records with the originals, and measure what it got right.

    Raises:
        InputError: If reconstructions are not finite or of another shape than records.
        AuditError: If features cannot be computed.
    """
    nothing = np.empty(0, dtype=np.int64)
    paired = Compared(claim, target, nothing, nothing)
    if claim.inputs is not None:
        rows, columns = metrics.pair(
            claim.inputs.astype(np.float64),
            target.inputs.astype(np.float64),
            by_position=by.contents == "tokens",
        )
        paired = _measured(Compared(claim, target, rows, columns), by)
    figures = paired.figures | _token_set(claim, target)
    if by.labels_count:
        figures |= _label_overlap(claim, target)
        if claim.inputs is not None and claim.labels is not None:
            hits = int((claim.labels[paired.rows] == target.labels[paired.columns]).sum())
            figures["label_accuracy"] = hits / len(target.labels)
    return replace(paired, figures=figures)


def _measured(paired: Compared, by: Yardstick) -> Compared:
    """With the figures of the pairs. Without a pair, shares are 0 and there are no distances."""
    found, original = paired.pairs
    num, figures = len(paired.target.labels), dict[str, float]()
    peak = similarity = right = None
    if by.contents == "tokens":
        figures |= _sequences(found, original, num)
        right = _flat(found).round() == _flat(original)
    else:
        exact = metrics.largest_errors(found, original) < metrics.EXACT
        figures["exact"] = float(exact.sum()) / num
    if by.contents == "numbers" and by.in_unit_range:
        same = metrics.largest_errors(found, original) < metrics.EXACT_8BIT
        figures["exact_8bit"] = float(same.sum()) / num
    if by.contents == "table":
        assert by.tolerance is not None  # the scorer sets it for tables
        right = metrics.right_cells(_flat(found), _flat(original), by.tolerance)
        figures |= {
            "exact_cells": float(right.mean(axis=1).sum()) / num,
            "exact_rows": float(right.all(axis=1).sum()) / num,
        }
    elif by.contents == "numbers" and by.in_unit_range:
        peak, similarity, own = _pictures(found, original, num)
        figures |= own
    if by.gallery is not None:
        figures |= _identified(found, original, num, by)
    if by.features is not None and len(found):
        server_round = paired.claim.round
        figures["feature_distance"] = _feature_distance(server_round, found, original, by.features)
    return replace(paired, psnr_db=peak, ssim=similarity, figures=figures, right=right)


def guess(
    claim: Reconstruction,
    auxiliary: Records,
    contents: Contents,
    *,
    granted: NDArray[np.int64] | None = None,
) -> Reconstruction:
    """What an attacker with auxiliary records would say of as much, without the update.

    The mean record (of sequences: the usual token of each place), the usual class, the usual mix of
    classes, the tokens that most records hold.

    Args:
        granted: Labels that the attack was told, shape (n,): the guess has the mean record of each.
    """
    inputs = counts = labels = tokens = None
    known = np.asarray(auxiliary.inputs[:])
    mix = np.bincount(auxiliary.labels, minlength=1)
    if claim.inputs is not None:
        inputs = np.repeat(_usual(known, contents)[None], len(claim.inputs), axis=0)
        for row, label in enumerate([] if granted is None else granted[: len(inputs)]):
            if (auxiliary.labels == label).any():
                inputs[row] = _usual(known[auxiliary.labels == label], contents)
    if claim.label_counts is not None:
        shares = np.bincount(auxiliary.labels, minlength=len(claim.label_counts)).astype(np.float64)
        counts = apportion(shares, int(claim.label_counts.sum()))
    if claim.labels is not None:
        labels = np.full(len(claim.labels), int(mix.argmax()), dtype=np.int64)
    if claim.tokens is not None:
        held = [np.unique(sequence.astype(np.int64)) for sequence in known]
        counted = np.bincount(np.concatenate(held)) if held else np.zeros(1, dtype=np.int64)
        counted[metrics.PADDING] = 0
        usual = np.argsort(-counted, kind="stable")[: len(claim.tokens)]
        tokens = np.sort(usual[counted[usual] > 0])
    return Reconstruction(
        claim.round, claim.client, inputs, counts, labels, tokens, behind=claim.behind
    )


def _usual(known: NDArray[np.float32], contents: Contents) -> Values:
    if contents != "tokens":
        mean: Values = known.mean(axis=0, dtype=np.float64)
        return mean
    flat = _flat(known.astype(np.float64)).astype(np.int64)
    places = [float(np.bincount(column).argmax()) for column in flat.T]
    return np.asarray(places).reshape(known.shape[1:])


def _pictures(
    found: Values, original: Values, num: int
) -> tuple[Values, Values | None, dict[str, float]]:
    """PSNR and, of pictures, SSIM of each pair; and the update's figures from them."""
    peak = np.array([metrics.psnr(a, b) for a, b in zip(found, original, strict=True)])
    figures = {
        "recovered": float((peak > _RECOVERED).sum()) / num,
        "recovered_20": float((peak > _RECOGNISED).sum()) / num,
    }
    if not len(peak):
        return peak, None, figures
    figures["psnr_db"] = float(peak.mean())
    if original.ndim != 4 or metrics.ssim_sigma(*original.shape[2:]) is None:
        return peak, None, figures
    similarity = metrics.ssim(found, original)
    return peak, similarity, figures | {"ssim": float(similarity.mean())}


def _sequences(found: Values, original: Values, num: int) -> dict[str, float]:
    own, true = (_flat(tokens).round().astype(np.int64) for tokens in (found, original))
    both = list(zip(own, true, strict=True))
    return {
        "exact": float((own == true).all(axis=1).sum()) / num,
        "exact_tokens": sum(metrics.right_tokens(a, b) for a, b in both) / num,
        "rouge_1": sum(metrics.rouge(a.tolist(), b.tolist(), size=1) for a, b in both) / num,
        "rouge_2": sum(metrics.rouge(a.tolist(), b.tolist(), size=2) for a, b in both) / num,
    }


def _identified(found: Values, original: Values, num: int, by: Yardstick) -> dict[str, float]:
    assert by.gallery is not None  # the caller's condition
    by_position = by.contents == "tokens"
    ranks, first = metrics.gallery_ranks(found, original, by.gallery, by_position=by_position)
    share = {"re_identified@1": float(first.sum()) / num}
    return share | {"median_rank": float(np.median(ranks))} if len(ranks) else share


def _feature_distance(
    server_round: int, found: Values, original: Values, features: Features
) -> float:
    """Distance of features over the norm of the original's, mean over pairs; 0 = the same."""
    own, true = features(server_round, found), features(server_round, original)
    norms = np.linalg.norm(true, axis=1)
    off = np.linalg.norm(own - true, axis=1)
    return float(np.mean(off / np.where(norms > 0, norms, 1.0)))


def _label_overlap(claim: Reconstruction, target: Target) -> dict[str, float]:
    """Share of labels counted rightly; counting more than there are does not help."""
    if claim.label_counts is None:
        return {}
    size = max(len(claim.label_counts), int(target.labels.max()) + 1)
    true = np.bincount(target.labels, minlength=size)
    claimed = np.pad(claim.label_counts, (0, size - len(claim.label_counts)))
    total = max(int(claimed.sum()), len(target.labels))
    return {"label_overlap": float(np.minimum(true, claimed).sum()) / total}


def _token_set(claim: Reconstruction, target: Target) -> dict[str, float]:
    if claim.tokens is None:
        return {}
    precision, recall = metrics.set_scores(claim.tokens, target.inputs.round().astype(np.int64))
    share = {"token_recall": recall}
    return {"token_precision": precision, **share} if len(claim.tokens) else share


def _flat(records: Values) -> Values:
    return records.reshape(len(records), int(np.prod(records.shape[1:])))


def try_features(features: Features, server_round: int, inputs: Values) -> str | None:
    """Why features cannot be computed; None if they can."""
    try:
        features(server_round, inputs[:1])
    except AuditError as error:
        return str(error)
    return None
