"""Signals: equal to their definitions by way of probabilities, finite and ordered at extremes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from attacks.membership.signals import (
    SIGNALS,
    check_logits,
    confidence,
    is_right,
    load_signal,
    logit_confidence,
    logsumexp,
    negative_entropy,
    negative_modified_entropy,
    true_log_probability,
)
from fl_audit.errors import InputError, UnknownNameError

SEED = 20_261_123


def problem() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits of two models on 40 records, and labels."""
    rng = np.random.default_rng(SEED)
    return rng.normal(0, 3, (2, 40, 6)), rng.integers(6, size=40)


def true_probability(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    p: NDArray[np.float64] = special.softmax(logits, axis=-1)
    return np.stack([[model[r, y] for r, y in enumerate(labels)] for model in p])


def test_loss_is_the_log_of_the_true_classs_probability() -> None:
    logits, labels = problem()
    found = true_log_probability(logits, labels)
    np.testing.assert_allclose(found, np.log(true_probability(logits, labels)), rtol=1e-12)


def test_temperature_divides_the_logits() -> None:
    logits, labels = problem()
    expected = true_log_probability(logits / 3, labels)
    np.testing.assert_array_equal(true_log_probability(logits, labels, temperature=3.0), expected)


def test_logit_is_the_log_odds_of_the_true_class() -> None:
    logits, labels = problem()
    p = true_probability(logits, labels)
    np.testing.assert_allclose(logit_confidence(logits, labels), np.log(p / (1 - p)), rtol=1e-9)


def test_logit_is_exact_where_the_probability_rounds_to_one() -> None:
    logits = np.array([[40.0, 0.0, 0.0], [800.0, 0.0, 0.0], [0.0, 0.0, 800.0]])
    expected = [40 - np.log(2), 800 - np.log(2), -800.0]
    found = logit_confidence(logits, np.zeros(3, dtype=np.int64))
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_confidence_is_the_largest_probability() -> None:
    logits, labels = problem()
    expected = special.softmax(logits, axis=-1).max(axis=-1)
    np.testing.assert_allclose(confidence(logits, labels), expected, rtol=1e-12)


def test_entropy_is_scipys() -> None:
    logits, labels = problem()
    expected = -stats.entropy(special.softmax(logits, axis=-1), axis=-1)
    np.testing.assert_allclose(negative_entropy(logits, labels), expected, rtol=1e-10)


def test_modified_entropy_is_its_definition() -> None:
    logits, labels = problem()
    p = special.softmax(logits, axis=-1)
    is_true = np.arange(6) == labels[:, None]
    terms = np.where(is_true, (1 - p) * np.log(p), p * np.log(1 - p))
    found = negative_modified_entropy(logits, labels)
    np.testing.assert_allclose(found, terms.sum(axis=-1), rtol=1e-9)


@pytest.mark.parametrize("name", ["confidence", "entropy"])
def test_two_signals_need_no_label(name: str) -> None:
    logits, labels = problem()
    other = (labels + 1) % 6
    np.testing.assert_array_equal(SIGNALS[name](logits, labels), SIGNALS[name](logits, other))


@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_a_surer_right_answer_is_higher(name: str) -> None:
    logits = np.zeros((5, 4))
    logits[:, 2] = [0.0, 1.0, 3.0, 9.0, 20.0]
    values = SIGNALS[name](logits, np.full(5, 2))
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("name", sorted(SIGNALS))
@pytest.mark.parametrize("size", [700.0, 1e6])
def test_extreme_logits_give_finite_signals(name: str, size: float) -> None:
    logits = np.array([[size, 0.0, -size], [-size, size, 0.0], [size, size, size]])
    assert np.isfinite(SIGNALS[name](logits, np.zeros(3, dtype=np.int64))).all()


@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_leading_axes_are_kept_and_inputs_are_not_changed(name: str) -> None:
    logits, labels = problem()
    before = logits.copy()
    deep = SIGNALS[name](logits[None], labels)
    assert deep.shape == (1, 2, 40)
    np.testing.assert_array_equal(deep[0, 1], SIGNALS[name](logits[1], labels))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_a_constant_added_to_all_logits_changes_nothing(name: str) -> None:
    logits, labels = problem()
    np.testing.assert_allclose(
        SIGNALS[name](logits + 500, labels), SIGNALS[name](logits, labels), rtol=1e-6, atol=1e-12
    )


def test_logsumexp_of_all_classes_and_of_all_but_one() -> None:
    logits, labels = problem()
    np.testing.assert_allclose(logsumexp(logits), special.logsumexp(logits, axis=-1), rtol=1e-14)
    others = np.where(np.arange(6) == labels[:, None], -np.inf, logits)
    expected = special.logsumexp(others, axis=-1)
    np.testing.assert_allclose(logsumexp(logits, without=labels), expected, rtol=1e-14)


def test_right_is_the_largest_logit() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(is_right(logits, np.zeros(2, dtype=np.int64)), [1.0, 0.0])


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_name_the_record(bad: float) -> None:
    logits, labels = problem()
    logits[1, 17, 3] = bad
    with pytest.raises(InputError, match="logits of record 17"):
        check_logits(logits, labels)


@pytest.mark.parametrize("bad", [-1, 6])
def test_labels_that_are_no_class_name_the_record(bad: int) -> None:
    logits, labels = problem()
    labels[9] = bad
    with pytest.raises(InputError, match=f"label of record 9 = {bad}: must be a class from 0 to 5"):
        check_logits(logits, labels)


def test_one_row_a_record_is_needed() -> None:
    logits, labels = problem()
    with pytest.raises(InputError, match="one row a record"):
        check_logits(logits, labels[:-1])


# -- a user's signal -----------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fl_audit_test_signals.py").write_text(
        "import numpy as np\n"
        "def spread(logits, labels): return logits.max(-1) - logits.min(-1)\n"
        "def flat(logits, labels): return np.zeros(3)\n"
        "def nan(logits, labels): return np.full(logits.shape[:-1], np.nan)\n"
        "def broken(logits, labels): return labels['x']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "fl_audit_test_signals"


def test_a_users_function_is_asked(module: str) -> None:
    logits, labels = problem()
    found = load_signal(f"{module}:spread")(logits, labels)
    np.testing.assert_array_equal(found, np.ptp(logits, axis=-1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flat", r"gave shape \(3,\)"),
        ("nan", "a value not finite"),
        ("broken", "raised IndexError"),
    ],
)
def test_what_a_users_function_does_wrong_is_said(module: str, name: str, message: str) -> None:
    logits, labels = problem()
    with pytest.raises(InputError, match=message):
        load_signal(f"{module}:{name}")(logits, labels)


def test_unknown_names_are_refused() -> None:
    assert load_signal("entropy") is negative_entropy
    with pytest.raises(UnknownNameError, match="Did you mean 'entropy'"):
        load_signal("entrpy")
    with pytest.raises(InputError, match="cannot be imported"):
        load_signal("no_such_module:signal")


@pytest.mark.filterwarnings("error")
def test_a_diverged_model_gives_nan_without_a_warning() -> None:
    values = np.array([[np.inf, 0.0, np.inf], [np.nan, 0.0, 0.0]])
    assert np.isnan(true_log_probability(values, np.array([0, 0]))).all()
