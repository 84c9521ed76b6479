"""Imprint, read from gradients of a planted net and from recorded rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.audit import audit_run
from attacks.reconstruction.imprint import ATTACK, expected_share, read_imprints
from attacks.reconstruction.imprint_bins import bin_of, fit_imprints, imprint_of
from attacks.reconstruction.metrics import pair, psnr
from attacks.reconstruction.planted import has_equal_signals, plant_rows
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.results import ReconstructionResult
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Trace, TraceView
from simulations.models import mlp

SEED = 20_261_125
D, K, B = 192, 32, 6
BOUNDS = (np.zeros(D), np.ones(D))


class Planted:
    """A planted MLP on made-up records, and gradients of its batches."""

    def __init__(self, directions: int = 1) -> None:
        rng = np.random.default_rng(SEED)
        self.proxy = rng.beta(1, 2, (3000, D))
        labels = np.arange(3000) % 3
        fitted = fit_imprints(
            self.proxy, labels, K // directions, input_shape=(D,), directions=directions, rng=rng
        )
        rows = np.vstack([one.rows("cumulative")[0] for one in fitted])
        biases = np.concatenate([one.rows("cumulative")[1] for one in fitted])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = mlp(input_shape=[D], num_classes=10, hidden=[K])
        arrays = {name: value.numpy() for name, value in self.net.state_dict().items()}
        sent = plant_rows(arrays, rows, biases, proxy=self.proxy)
        self.net.load_state_dict({name: torch.from_numpy(value) for name, value in sent.items()})
        self.rows, self.biases = sent["1.weight"].astype(float), sent["1.bias"].astype(float)
        self.equal = has_equal_signals(sent, np.arange(K))

    def read(self, records: np.ndarray, rng: np.random.Generator, noise: float = 0.0) -> Any:
        labels = torch.from_numpy(rng.integers(10, size=len(records)))
        self.net.zero_grad()
        answers = self.net(torch.from_numpy(records.astype(np.float32)))
        nn.functional.cross_entropy(answers, labels).backward()  # type: ignore[no-untyped-call]
        parts = [p.grad.double().numpy() for p in self.net.parameters() if p.grad is not None]
        norm = float(np.sqrt(sum((part**2).sum() for part in parts)))
        sums = np.column_stack(parts[:2])
        sums = sums + rng.normal(0, noise * norm / np.sqrt(sum(p.size for p in parts)), sums.shape)
        rounding = (1e-6 * np.linalg.norm(sums, axis=1)) ** 2 / (D + 1)
        return read_imprints(
            self.rows, self.biases, sums, rounding, bounds=BOUNDS, equal=self.equal, rng=rng
        )


def _alone(planted: Planted, records: np.ndarray) -> np.ndarray:
    """Records that are alone in their bin, by the rows that were sent."""
    where = bin_of(imprint_of(planted.rows, planted.biases), records, K)
    return np.asarray(where[:, where.sum(axis=0) == 1].any(axis=1))


def test_exactly_the_records_that_are_alone_come_back() -> None:
    """As theory expects: 60 batches, two-sided level 1e-6 by Hoeffding (2 exp(-2 n t^2))."""
    planted, rng, found_share = Planted(), np.random.default_rng(SEED), []
    for _ in range(60):
        records = rng.beta(1, 2, (B, D))
        found = planted.read(records, rng)
        lone = _alone(planted, records)
        apart = np.abs(found.records[:, None] - records).max(axis=2)
        assert (apart.min(axis=0) < 1e-3).tolist() == lone.tolist()
        assert apart.min(axis=1).max() < 1e-3  # no mixture is claimed
        found_share.append(lone.mean())
    expected = expected_share(planted.rows, planted.biases, B, planted.proxy, equal=True, rng=rng)
    assert expected == pytest.approx((1 - 1 / K) ** (B - 1))
    assert abs(np.mean(found_share) - expected) < np.sqrt(np.log(2e6) / 120)


def test_two_directions_give_back_what_one_cannot() -> None:
    one, two, rng = Planted(1), Planted(2), np.random.default_rng(SEED)
    shares = []
    for _ in range(20):
        records = rng.beta(1, 2, (2 * B, D))
        shares.append([len(planted.read(records, rng).records) / (2 * B) for planted in (one, two)])
    single, double = np.mean(shares, axis=0)
    assert double > single + 0.1
    expected = expected_share(two.rows, two.biases, 2 * B, two.proxy, equal=True, rng=rng)
    assert expected is not None
    assert abs(double - expected) < 0.12


def test_noise_of_one_percent_leaves_recognisable_records() -> None:
    planted, rng, peaks = Planted(), np.random.default_rng(SEED), []
    for _ in range(10):
        records = rng.beta(1, 2, (B, D))
        found = planted.read(records, rng, noise=0.01).records
        own, true = pair(found, records)
        peaks += [psnr(found[a], records[b]) for a, b in zip(own, true, strict=True)]
    assert np.sum(np.array(peaks) > 20) > 0.5 * 10 * B


def test_a_gradient_of_nothing_but_noise_gives_no_record() -> None:
    """False-failure rate: 20 draws of 31 places to cut at about 1e-9 each."""
    planted, rng = Planted(), np.random.default_rng(SEED)
    for _ in range(20):
        sums = rng.normal(0, 0.1, (K, D + 1))
        found = read_imprints(
            planted.rows,
            planted.biases,
            sums,
            np.full(K, 1e-12),
            bounds=BOUNDS,
            equal=True,
            rng=rng,
        )
        assert len(found.records) == 0


def test_records_come_back_from_real_flower_rounds(imprint_run: Path) -> None:
    (result,) = audit_run(imprint_run, attacks=["imprint"])
    assert isinstance(result, ReconstructionResult), result.record
    expected = result.record.expected["recovered"]
    assert expected == pytest.approx((1 - 1 / 128) ** 3)
    measured = result.record.metrics["recovered"]
    assert measured.low < expected
    assert measured.value > 0.8
    assert result.record.activity == "malicious"


def test_an_imprint_in_front_of_a_convolutional_net(run_tables: Any) -> None:
    """Clamped rows, two directions; signals of all sizes."""
    run = run_tables(
        "imprint-conv",
        federation={"clients": 3, "rounds": 2},
        model={"name": "imprint", "inner": "convnet", "rows": 64, "activation": "clamp"},
        game={"members": 60, "auxiliary": 300},
        threat_model={"preset": "malicious-server"},
        adversary={"name": "imprint", "bins": "sparse", "directions": 2},
        training={"algorithm": "fedsgd", "batch_size": 4},
    )
    (result,) = audit_run(run, attacks=["imprint"])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.metrics["recovered"].value > 0.6
    assert result.record.expected["recovered"] > 0.9


def test_an_honest_federation_is_refused(fedsgd_run: Path) -> None:
    view = TraceView(Trace.open(fedsgd_run / "trace"), PRESETS["malicious-server"])
    given = AttackInput(view, ATTACK.settings(), np.random.default_rng(SEED))
    with pytest.raises(InputError, match="no client received a planted model"):
        ATTACK.run(given)


def test_rows_that_measure_nothing_in_common_are_refused() -> None:
    rng = np.random.default_rng(SEED)
    with pytest.raises(InputError, match="no two of them measure the same"):
        read_imprints(
            rng.normal(size=(5, D)),
            np.zeros(5),
            np.ones((5, D + 1)),
            np.zeros(5),
            bounds=BOUNDS,
            equal=True,
            rng=rng,
        )
