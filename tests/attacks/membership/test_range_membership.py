"""Range membership: RMIA where the range is one point, scipy's trimmed mean, and the ranges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from attacks.membership.range_membership import (
    ATTACK,
    Settings,
    draw_samples,
    range_membership_scores,
)
from attacks.membership.rmia import ATTACK as RMIA
from attacks.shadows.lab import Lab
from attacks.shadows.workshop import Workshop
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.stats import auc_ci

SEED = 20_261_123
FALSE_FAILURE = 1e-6
CONFIDENCE = 1 - FALSE_FAILURE / 40  # false-failure rate of an interval over fresh seeds


def changed(lab: Lab, **settings: Any) -> NDArray[np.float32]:
    """Every sample of every candidate, shape (k, n, ...)."""
    samples = draw_samples(lab, Settings(**settings), np.random.default_rng(SEED))
    inputs = np.asarray(lab.candidates.inputs)
    return np.stack([inputs if change is None else change(inputs) for _, change in samples])


def as_images(lab: Lab) -> Lab:
    """The same records with inputs (1, 8, 8); its target is never asked."""
    old = lab.workshop.pool
    pool = Records(old.ids, old.inputs.reshape(-1, 1, 8, 8), old.labels)
    workshop = Workshop(
        pool, lab.workshop.num_audited, lab.task, trainer=None, train_size=1, seed=0
    )
    return replace(lab, workshop=workshop)


def test_trimming_drops_the_lowest_and_the_highest() -> None:
    scores = np.array([[5.0, 1.0], [1.0, 2.0], [3.0, 9.0], [2.0, 4.0], [4.0, 3.0]])
    np.testing.assert_array_equal(range_membership_scores(scores, trim_low=0.4), [4.0, 16 / 3])
    by_scipy = stats.trim_mean(scores, 0.2, axis=0)
    found = range_membership_scores(scores, trim_low=0.2, trim_high=0.2)
    np.testing.assert_allclose(found, by_scipy, rtol=1e-15)
    plain = range_membership_scores(scores, trim_low=0.0)
    np.testing.assert_allclose(plain, scores.mean(axis=0), rtol=1e-15)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_range_of_one_point_is_rmia(memorised: Any, mode: str) -> None:
    _, expected = memorised.run(RMIA, mode=mode, offline_a=0.33)
    _, output = memorised.run(ATTACK, mode=mode, num_samples=1)
    np.testing.assert_array_equal(output.scores, expected.scores)


def test_l2_samples_fill_the_ball_evenly(memorised: Any) -> None:
    """In units of the features' deviations, (length / radius) ** d is uniform."""
    lab = memorised.candidates
    inputs = np.asarray(lab.candidates.inputs)
    moved = changed(lab, range="l2", radius=2.0, num_samples=400)
    np.testing.assert_array_equal(moved[0], inputs)
    offsets = moved[1:].astype(np.float64) - inputs
    assert np.abs(offsets - offsets[:, :1]).max() < 1e-6, "every record is moved alike"
    deviations = np.asarray(lab.auxiliary.inputs).std(axis=0)
    varies = deviations > 0
    assert not offsets[:, :, ~varies].any()
    lengths = np.linalg.norm(offsets[:, 0, varies] / deviations[varies], axis=1)
    volumes = (lengths / 2.0) ** varies.sum()
    assert stats.kstest(volumes, "uniform").pvalue > FALSE_FAILURE
    assert stats.kstest(volumes**1.5, "uniform").pvalue < FALSE_FAILURE  # power


def test_missing_features_are_filled_from_one_auxiliary_record_a_sample(memorised: Any) -> None:
    lab = memorised.candidates
    inputs, auxiliary = (np.asarray(r.inputs) for r in (lab.candidates, lab.auxiliary))
    moved = changed(lab, range="missing", missing=0.5, num_samples=8)
    samples = draw_samples(lab, Settings(range="missing", missing=0.5), np.random.default_rng(SEED))
    assert len({key for key, _ in samples}) == 10
    filled = (moved != inputs).any(axis=(0, 1))
    assert 25 <= filled.sum() <= 32  # the rest of the 32 are constant over all records
    np.testing.assert_array_equal(
        moved[:, :, ~filled], np.broadcast_to(inputs, moved.shape)[:, :, ~filled]
    )
    for sample in moved:
        assert (sample[:, filled] == sample[0, filled]).all()
        assert (auxiliary[:, filled] == sample[0, filled]).all(axis=1).any()


def test_geometric_samples_are_within_their_bounds(memorised: Any) -> None:
    lab = as_images(memorised.candidates)
    inputs = np.asarray(lab.candidates.inputs)
    only_shifted = changed(lab, mirror=False, shift=1, angle=0.0, num_samples=30)
    np.testing.assert_array_equal(only_shifted[0], inputs)
    padded = np.pad(inputs, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    places = [padded[..., y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    met = [[np.array_equal(sample, place) for place in places] for sample in only_shifted]
    assert np.array(met).any(axis=1).all()
    assert np.array(met).any(axis=0).all()
    turned = changed(lab, mirror=False, shift=0, angle=3.0, num_samples=30)
    assert len({sample.tobytes() for sample in turned}) == 30
    assert np.abs(turned - inputs).max() < 0.6 < np.abs(turned - inputs[..., ::-1]).max()
    mirrored = changed(lab, mirror=True, shift=0, angle=0.0, num_samples=30)
    assert {sample.tobytes() for sample in mirrored} == {
        inputs.tobytes(),
        np.ascontiguousarray(inputs[..., ::-1]).tobytes(),
    }


@pytest.mark.parametrize("kind", ["geometric", "l2", "missing"])
def test_a_sample_is_the_same_for_any_block_of_records_and_named_by_what_it_does(
    memorised: Any, kind: str
) -> None:
    """Or else the target and a shadow model would be asked about different inputs."""
    lab = memorised.candidates if kind != "geometric" else as_images(memorised.candidates)
    settings = Settings(range=kind)
    first, again, other = (
        draw_samples(lab, settings, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert [key for key, _ in first] == [key for key, _ in again]
    assert not {key for key, _ in first if key} & {key for key, _ in other}
    inputs = np.asarray(lab.candidates.inputs)
    for (_, change), (_, same) in zip(first, again, strict=True):
        if change is not None and same is not None:
            parts = [same(inputs[i : i + 7]) for i in range(0, len(inputs), 7)]
            np.testing.assert_array_equal(change(inputs), np.concatenate(parts))


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_tuning_is_done_where_the_answer_is_known_anyway(memorised: Any, mode: str) -> None:
    """Its result is what the same shares give; and does not change with the target."""
    _, tuned = memorised.run(ATTACK, mode=mode, tune=True)
    chosen = tuned.notes[1].removeprefix("Tuned on a shadow model: ").rstrip(".").split(", ")
    shares = {name: float(value) for name, value in (part.split(" = ") for part in chosen)}
    _, output = memorised.run(ATTACK, mode=mode, **shares)
    np.testing.assert_array_equal(output.scores, tuned.scores)
    lab = memorised.candidates
    other = replace(lab, target=lab.workshop.shadows(mode, 16)[-1].target)
    _, elsewhere = replace(memorised, candidates=other).run(ATTACK, mode=mode, tune=True)
    assert elsewhere.notes == tuned.notes


def test_nothing_is_tuned_where_no_model_is_left(memorised: Any) -> None:
    _, output = memorised.run(ATTACK, mode="offline", num_shadow_models=1, tune=True)
    assert output.notes[1].startswith("Nothing tuned")


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("kind", ["l2", "missing"])
def test_null_candidates_look_alike(memorised: Any, kind: str, mode: str) -> None:
    is_member, output = memorised.run(ATTACK, part="null", range=kind, mode=mode)
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("kind", ["l2", "missing"])
def test_members_stand_out(memorised: Any, kind: str, mode: str) -> None:
    is_member, output = memorised.run(ATTACK, range=kind, mode=mode)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_bad_input_is_refused(memorised: Any) -> None:
    with pytest.raises(ValidationError, match="must be below 1"):
        Settings(trim_low=0.5, trim_high=0.5)
    with pytest.raises(InputError, match=r"range = 'geometric': needs images.*Use range = 'l2'"):
        memorised.run(ATTACK, range="geometric")
    alone = replace(memorised.candidates, population=np.arange(300, 310))
    with pytest.raises(InputError, match="auxiliary records = 10"):
        replace(memorised, candidates=alone).run(ATTACK)
    with pytest.raises(InputError, match="2 and 1 of k are dropped"):
        range_membership_scores(np.zeros((3, 5)), trim_low=0.7, trim_high=0.4)
    scores = np.zeros((3, 5))
    scores[1, 4] = np.nan
    with pytest.raises(InputError, match="sample scores of record 4"):
        range_membership_scores(scores)
