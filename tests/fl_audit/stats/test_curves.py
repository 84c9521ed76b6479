"""ROC and AUC against scikit-learn, with heavy ties, and the checks on their input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from fl_audit.stats import auc, auc_ci, roc, tpr_at_fpr
from fl_audit.stats.checks import check_scores

Sample = tuple[NDArray[np.bool_], NDArray[np.float64]]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Up to 60 scores, at least one a side; half of the time from five values, so mostly ties."""
    n = draw(st.integers(2, 60))
    flags = draw(
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda f: any(f) and not all(f))
    )
    values = draw(
        st.sampled_from(
            [st.sampled_from([-2.0, -0.5, 0.0, 0.5, 7.0]), st.floats(-1e9, 1e9, width=32)]
        )
    )
    return np.array(flags), np.array(draw(st.lists(values, min_size=n, max_size=n)))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(samples())
def test_roc_and_auc_equal_scikit_learns(sample: Sample) -> None:
    is_member, scores = sample
    curve = roc(is_member, scores)
    fpr, tpr, thresholds = roc_curve(is_member, scores, drop_intermediate=False)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.fpr, fpr, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.tpr, tpr, rtol=0, atol=1e-15)
    assert auc(is_member, scores) == pytest.approx(roc_auc_score(is_member, scores), abs=1e-12)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(samples())
def test_auc_is_the_area_and_reversal_mirrors_it(sample: Sample) -> None:
    is_member, scores = sample
    curve = roc(is_member, scores)
    assert auc(is_member, scores) == pytest.approx(np.trapezoid(curve.tpr, curve.fpr), abs=1e-12)
    assert auc(is_member, -scores) == pytest.approx(1 - auc(is_member, scores), abs=1e-15)
    assert auc(~is_member, scores) == pytest.approx(1 - auc(is_member, scores), abs=1e-15)


def test_ties_give_one_point_and_half_a_win() -> None:
    is_member, scores = np.array([1, 1, 0, 0]), np.array([2.0, 1.0, 1.0, 0.0])
    curve = roc(is_member, scores)
    assert curve.thresholds.tolist() == [np.inf, 2.0, 1.0, 0.0]
    assert curve.tpr.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert curve.fpr.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert auc(is_member, scores) == 0.875  # three wins and a tie in four pairs
    assert auc(is_member, np.zeros(4)) == 0.5


def test_opposite_zeros_and_the_largest_floats_are_ordinary_scores() -> None:
    largest = np.finfo(np.float64).max
    is_member, scores = np.array([True, False, True, False]), np.array([0.0, -0.0, 1, -1]) * largest
    assert roc(is_member, scores).thresholds.tolist() == [np.inf, largest, 0.0, -largest]
    assert auc(is_member, scores) == 0.875


OK = np.array([True, False, True])
BAD_INPUT = [
    (OK, np.zeros(2), r"len\(scores\) = 2: must equal len\(is_member\) = 3"),
    (OK[None], np.zeros(3), "is_member.shape"),
    (OK, np.zeros((3, 1)), "scores.shape"),
    (OK.astype(float), np.zeros(3), "is_member.dtype = 'float64'.*is_member first"),
    (np.array([1, 0, 2]), np.zeros(3), r"is_member\[2\] = 2: must be 0 or 1"),
    (OK, np.array(["a", "b", "c"]), "scores.dtype"),
    (OK, np.array([1j, 0, 0]), "scores.dtype"),
    (OK, np.array([0.0, np.nan, np.nan]), r"scores\[1\] = nan: .*2 of 3.*Drop"),
    (OK, np.array([0.0, 0.0, -np.inf]), r"scores\[2\] = -inf: .*log space"),
    (np.zeros(3, bool), np.zeros(3), "number of members = 0"),
    (np.ones(3, bool), np.zeros(3), "number of non-members = 0"),
    (np.zeros(0, bool), np.zeros(0), "number of members = 0"),
]


@pytest.mark.parametrize(("is_member", "scores", "message"), BAD_INPUT)
def test_bad_input_is_refused_by_every_function(
    is_member: NDArray[np.bool_], scores: NDArray[np.float64], message: str
) -> None:
    for function in (roc, auc, auc_ci):
        with pytest.raises(ValueError, match=message):
            function(is_member, scores)
    with pytest.raises(ValueError, match=message):
        tpr_at_fpr(is_member, scores, 0.5)


def test_checked_input_is_bool_and_float64_and_not_the_callers() -> None:
    given_scores = np.array([1, 2, 3])
    flags, scores = check_scores(np.array([1, 0, 1], dtype=np.uint8), given_scores)
    assert flags.dtype == np.bool_
    assert scores.dtype == np.float64
    assert not np.shares_memory(scores, given_scores)
