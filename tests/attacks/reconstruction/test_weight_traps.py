"""Weight traps: rows that few records fire, and what comes out of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.reconstruction.peeling import Peeled
from attacks.reconstruction.weight_traps import ATTACK, fires, quantile_rows, read_traps, trap_rows
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.results import ReconstructionResult, UnavailableResult
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Trace, TraceView

SEED = 20_261_125
D, B = 60, 8
BOUNDS = (np.zeros(D), np.ones(D))


def _read(rows: np.ndarray, biases: np.ndarray, records: np.ndarray, noise: float = 0.0) -> Peeled:
    rng = np.random.default_rng(SEED)
    signals = rng.choice([-0.1, 0.1], len(records))
    fired = fires(rows, biases, records)
    sums = (fired * signals[:, None]).T @ np.column_stack([records, np.ones(len(records))])
    sums = sums + rng.normal(0, noise, sums.shape)
    rounding = np.full(len(rows), 1e-20)
    return read_traps(rows, biases, sums, rounding, bounds=BOUNDS, equal=True, rng=rng)


def test_published_quantiles_fire_for_one_record_in_a_batch() -> None:
    """Share of 5,000 fresh records over 200 rows: deviation below 0.002 from both samples."""
    rng = np.random.default_rng(SEED)
    proxy = rng.random((5000, D))
    rows, biases = quantile_rows(200, proxy, B, spread=False, rng=rng)
    assert fires(rows, biases, rng.random((5000, D))).mean() == pytest.approx(1 / B, abs=0.012)


def test_spread_quantiles_range_from_rare_to_often_and_some_are_silent() -> None:
    rng = np.random.default_rng(SEED)
    proxy = rng.random((5000, D))
    shares = fires(*quantile_rows(200, proxy, B, rng=rng), proxy).mean(axis=0)
    assert (shares == 0).sum() == 2
    assert shares[1] == pytest.approx(0.5 / B, rel=0.05)
    assert shares[-1] == pytest.approx(0.3, rel=0.05)


def test_scaling_of_inputs_does_not_matter_to_quantiles() -> None:
    rng = np.random.default_rng(SEED)
    proxy, fresh = rng.random((2000, D)), rng.random((500, D))
    fired = []
    for scale, shift in ((1.0, 0.0), (4.0, -2.0)):
        drawn = np.random.default_rng(1)
        rows, biases = quantile_rows(50, scale * proxy + shift, B, rng=drawn)
        fired.append(fires(rows, biases, scale * fresh + shift))
    assert (fired[0] == fired[1]).mean() > 0.999


def test_trap_weights_are_half_negative_and_the_others_smaller() -> None:
    rows, biases = trap_rows(20, D, scale=0.9, rng=np.random.default_rng(SEED))
    assert ((rows < 0).sum(axis=1) == D // 2).all()
    positive, negative = np.where(rows > 0, rows, 0).sum(axis=1), np.where(rows < 0, -rows, 0)
    np.testing.assert_allclose(positive, 0.9 * negative.sum(axis=1))
    assert not biases.any()


def _flat_and_rich(n: int, rng: np.random.Generator) -> np.ndarray:
    """Records of all contrasts: the flat ones fire no row that is rare."""
    contrast = rng.uniform(0.05, 1.0, (n, 1))
    made: np.ndarray = 0.5 + contrast * (rng.random((n, D)) - 0.5)
    return made


def test_the_spread_gives_back_flat_records_too() -> None:
    """Twenty batches, 150 rows; nothing but records is claimed."""
    rng = np.random.default_rng(SEED)
    proxy, found = _flat_and_rich(3000, rng), []
    batches = [_flat_and_rich(2 * B, rng) for _ in range(20)]
    for spread in (True, False):
        rows, biases = quantile_rows(150, proxy, 2 * B, spread=spread, rng=rng)
        recovered = []
        for records in batches:
            claims = _read(rows, biases, records).records
            apart = np.abs(claims[:, None] - records).max(axis=2)
            assert (apart.min(axis=1) < 1e-6).mean() > 0.95
            recovered.append((apart.min(axis=0) < 1e-6).mean())
        found.append(np.mean(recovered))
    assert found[0] > found[1] + 0.1
    assert found[0] > 0.8


def test_rows_that_nothing_fired_give_no_claim() -> None:
    """Noise of 1e-3 on every row; false-failure rate about 150 x 1e-9."""
    rng = np.random.default_rng(SEED)
    rows, biases = quantile_rows(150, rng.random((500, D)), B, rng=rng)
    for noise in (0.0, 1e-3):
        assert len(_read(rows, biases - 100.0, rng.random((B, D)), noise).records) == 0


def test_records_come_back_from_real_flower_rounds(quantile_traps_run: Path) -> None:
    (result,) = audit_run(quantile_traps_run, attacks=["weight_traps"])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.metrics["recovered"].value > 0.9
    assert result.record.expected["recovered"] > 0.9
    assert "read out of 9 updates" in " ".join(result.record.notes)


def test_an_honest_federation_and_an_imprint_are_refused(
    fedsgd_run: Path, imprint_run: Path
) -> None:
    view = TraceView(Trace.open(fedsgd_run / "trace"), PRESETS["malicious-server"])
    given = AttackInput(view, ATTACK.settings(), np.random.default_rng(SEED))
    with pytest.raises(InputError, match="no client received a planted model"):
        ATTACK.run(given)
    (result,) = audit_run(imprint_run, attacks=["weight_traps"])
    assert isinstance(result, UnavailableResult)
    assert "these are no traps" in result.record.reason


def test_quantiles_need_records() -> None:
    rng = np.random.default_rng(SEED)
    with pytest.raises(InputError, match="at least 2 records"):
        quantile_rows(10, np.ones((1, D)), B, rng=rng)
