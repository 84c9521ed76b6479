"""Token sets: exactly the tokens that clients hold, and no claim where every row moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attacks.audit import audit_run
from fl_audit.results import AttackResult, ReconstructionResult


def attack(run: Path, name: str = "token_sets", **settings: Any) -> AttackResult:
    (result,) = audit_run(run, attacks=[{"name": name, **settings}], trust_model=True)
    return result


def record_of(result: AttackResult) -> Any:
    assert isinstance(result, ReconstructionResult), result.record
    return result.record


@pytest.mark.parametrize(
    ("name", "settings", "num"),
    [("token_sets", {}, 10), ("local_token_sets", {"seat": 1}, 2), ("local_token_sets", {}, 2)],
)
def test_tokens_of_many_steps_are_named_exactly(
    name: str, settings: dict[str, Any], num: int, text_run: Path
) -> None:
    record = record_of(attack(text_run, name, **settings))
    assert record.num_targets == num
    assert record.metrics["token_precision"].value == 1.0
    assert record.metrics["token_recall"].value == 1.0
    assert "exact" not in record.metrics  # no order is claimed


def test_weight_decay_is_taken_out(token_run: Path) -> None:
    record = record_of(attack(token_run, most_updates=4))
    assert record.num_targets == 4
    assert record.metrics["token_precision"].value == record.metrics["token_recall"].value == 1.0


def test_settings_choose_updates(text_run: Path) -> None:
    assert record_of(attack(text_run, rounds=[2], clients=[0, 3])).num_targets == 2
    assert "this client sent no usable update" in attack(text_run, clients=[9]).record.reason  # type: ignore[union-attr]
    assert "not the weight of an embedding" in attack(text_run, layer="head.weight").record.reason  # type: ignore[union-attr]


def test_noise_on_every_row_gives_no_claim(run_tables: Callable[..., Path]) -> None:
    run = run_tables(
        "noisy-text",
        federation={"rounds": 1},
        data={"name": "tests.text_federation:sequences"},
        model={"name": "tests.text_federation:mean_of_embeddings"},
        defence={
            "name": "DifferentialPrivacyServerSideFixedClipping",
            "noise_multiplier": 1.0,
            "clipping_norm": 1.0,
        },
        audit={"attacks": ["token_sets"]},
    )
    record = record_of(attack(run, "local_token_sets", seat=0))
    assert record.num_targets == 0
    assert any("1 updates are zero or move every row" in note for note in record.notes)


def test_a_model_without_embedding_is_refused(fedsgd_run: Path) -> None:
    assert "has no embedding" in attack(fedsgd_run).record.reason  # type: ignore[union-attr]
