"""Shared targets: trained once a session, read by many tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="fl-audit-tests-"))

FEDSGD = ["linear_inversion", "label_counts"]
MEMBERSHIP = ["row_space", "cosine", "loss_threshold"]


@pytest.fixture(scope="session")
def run_tables(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a scenario given as tables; return its run directory."""
    from simulations.run import run_scenario
    from simulations.scenario import parse_scenario

    def run(name: str, **tables: Any) -> Path:
        out = tmp_path_factory.mktemp(name) / "run"
        run_scenario(parse_scenario(tables), out=out)
        return out

    return run


@pytest.fixture(scope="session")
def digits_run(run_tables: Callable[..., Path]) -> Path:
    """The digits federation of the standard protocol: FedAvg, 40 examples a client, 6 rounds."""
    return run_tables("digits", audit={"attacks": MEMBERSHIP})


@pytest.fixture(scope="session")
def memorising_run(run_tables: Callable[..., Path]) -> Path:
    """Strong memorisation: random labels, 30 local epochs, 8 rounds."""
    return run_tables(
        "memorising",
        federation={"rounds": 8},
        data={"random_labels": True},
        game={"question": "client"},
        training={"local_epochs": 30},
        audit={"attacks": MEMBERSHIP},
    )


@pytest.fixture(scope="session")
def ascent_run(run_tables: Callable[..., Path]) -> Path:
    """A malicious server climbs the loss of the targets that each client is asked about."""
    return run_tables(
        "ascent",
        game={"question": "client"},
        threat_model={"preset": "malicious-server"},
        adversary={"name": "gradient_ascent"},
        audit={"attacks": ["ascent_response"]},
    )


@pytest.fixture(scope="session")
def trap_run(run_tables: Callable[..., Path]) -> Path:
    """A malicious server sets traps for the targets that each client is asked about."""
    return run_tables(
        "trap",
        game={"question": "client"},
        threat_model={"preset": "malicious-server"},
        adversary={"name": "relu_trap"},
        audit={"attacks": ["relu_trap"]},
    )


def _planted(run_tables: Callable[..., Path], name: str, rounds: int, batch: int) -> Path:
    """FedSGD clients that a malicious server sends planted models to."""
    return run_tables(
        name,
        federation={"clients": 3, "rounds": rounds},
        game={"members": 60, "auxiliary": 300},
        threat_model={"preset": "malicious-server"},
        adversary={"name": name, **({} if name == "imprint" else {"batch": batch})},
        training={"algorithm": "fedsgd", "batch_size": batch},
    )


@pytest.fixture(scope="session")
def imprint_run(run_tables: Callable[..., Path]) -> Path:
    """Nine batches of four digits that went through an imprint of 128 bins."""
    return _planted(run_tables, "imprint", rounds=3, batch=4)


@pytest.fixture(scope="session")
def quantile_traps_run(run_tables: Callable[..., Path]) -> Path:
    """Nine batches of four digits that went through 128 quantile traps."""
    return _planted(run_tables, "quantile_traps", rounds=3, batch=4)


@pytest.fixture(scope="session")
def fishing_run(run_tables: Callable[..., Path]) -> Path:
    """Ninety single digits, while a malicious server fishes for one class a round."""
    return _planted(run_tables, "fishing", rounds=30, batch=1)


@pytest.fixture
def fedsgd_copy(fedsgd_run: Path, tmp_path: Path) -> Path:
    """A copy of `fedsgd_run` to change, without what other tests' attacks left in it."""
    run = tmp_path / "run"
    shutil.copytree(fedsgd_run, run)
    for path in (run / "results").iterdir():
        if path.stem not in FEDSGD:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


@pytest.fixture(scope="session")
def fedsgd_run(run_tables: Callable[..., Path]) -> Path:
    """Five FedSGD clients with one example a round, ten rounds: 50 single digits."""
    return run_tables(
        "fedsgd",
        federation={"rounds": 10},
        training={"algorithm": "fedsgd", "batch_size": 1},
        audit={"attacks": FEDSGD},
    )


@pytest.fixture(scope="session")
def inversion_run(run_tables: Callable[..., Path]) -> Path:
    """Three FedSGD clients with one digit a round and a small smooth net: nine single digits."""
    return run_tables(
        "inversion",
        federation={"clients": 3, "rounds": 3},
        data={"examples_per_client": 10},
        game={"members": 10},
        model={"name": "lenet_zhu"},
        training={"algorithm": "fedsgd", "batch_size": 1},
    )


@pytest.fixture(scope="session")
def table_run(run_tables: Callable[..., Path]) -> Path:
    """Three FedSGD clients with one row of a table a round: nine single rows."""
    return run_tables(
        "table",
        federation={"clients": 3, "rounds": 3},
        data={"name": "tests.table_federation:rows", "examples_per_client": 20},
        game={"members": 20},
        model={"name": "mlp", "hidden": [40]},
        training={"algorithm": "fedsgd", "batch_size": 1},
    )


@pytest.fixture(scope="session")
def text_run(run_tables: Callable[..., Path]) -> Path:
    """The standard federation on sequences of tokens, with an embedding in front."""
    return run_tables(
        "text",
        federation={"rounds": 2},
        data={"name": "tests.text_federation:sequences"},
        model={"name": "tests.text_federation:mean_of_embeddings"},
        audit={"attacks": ["embedding_rows"]},
    )


@pytest.fixture(scope="session")
def token_run(run_tables: Callable[..., Path]) -> Path:
    """FedSGD with one sequence a round on a small transformer, with weight decay; ten rounds."""
    return run_tables(
        "tokens",
        federation={"rounds": 10, "clients": 3},
        data={"name": "tests.text_federation:sequences", "test": 20},
        model={"name": "transformer", "vocabulary": 2000, "width": 64},
        training={"algorithm": "fedsgd", "batch_size": 1, "weight_decay": 0.01},
        audit={"attacks": ["token_sets"]},
    )


@pytest.fixture(scope="session")
def client_ascent_run(run_tables: Callable[..., Path]) -> Path:
    """Strong memorisation, with a client that climbs the loss of all targets each round."""
    return run_tables(
        "client-ascent",
        federation={"rounds": 8},
        data={"random_labels": True},
        training={"local_epochs": 30},
        game={"clients": [1, 2, 3, 4]},
        threat_model={"preset": "malicious-client"},
        adversary={"name": "gradient_ascent", "clients": [0]},
    )
