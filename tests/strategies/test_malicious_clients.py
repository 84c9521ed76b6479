"""Malicious clients in a federation: where the lie goes in, and that it repeats."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import load_file

from attacks.federated.client_behaviours import Behaviour, Means, Scaling, SignFlip
from fl_audit.detection import read_detection
from fl_audit.errors import InputError
from fl_audit.report.build import read_results
from fl_audit.report.verdict import verdict
from fl_audit.results import ReconstructionRecord, UnavailableRecord
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import TraceView
from simulations.run import run_scenario
from simulations.scenario import parse_scenario
from strategies.curious import CuriousStrategy
from strategies.malicious_clients import malicious_mod

Run = Callable[..., Path]
MALICIOUS = {"preset": "malicious-client"}
CLIPPING = {
    "name": "DifferentialPrivacyClientSideFixedClipping",
    "noise_multiplier": 1e-9,
    "clipping_norm": 0.05,
}


def tables(**adversary: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "federation": {"clients": 3, "rounds": 2},
        "data": {"examples_per_client": 20},
        "game": {"members": 20},
        "threat_model": MALICIOUS,
    }
    return given | ({"adversary": adversary} if adversary else {})


def update(path: Path, server_round: int, client: int) -> dict[str, np.ndarray]:
    view = TraceView(RunDirectory.open(path).open_trace(), PRESETS["curious-server"])
    return dict(view.client_update(server_round, client))


def norm(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(a)) for a in arrays.values())))


@pytest.mark.parametrize(
    ("adversary", "factor"),
    [
        ({"name": "scaling", "factor": 3.0}, 3.0),
        ({"name": "sign_flip"}, -1.0),
        ({"name": "sign_flip", "strength": 2.0}, -2.0),
    ],
)
def test_the_recorded_update_is_multiplied(
    adversary: dict[str, Any], factor: float, run_tables: Run
) -> None:
    """In round 1 all start from one model, so the honest update is that of the honest run."""
    game = {"members": 20, "clients": [0, 2]}  # the same draws with and without the lie
    honest = run_tables("honest", **{**tables(), "game": game})
    lying = run_tables("lying", **{**tables(clients=[1], **adversary), "game": game})
    for name, expected in update(honest, 1, 1).items():
        np.testing.assert_allclose(update(lying, 1, 1)[name], factor * expected, atol=1e-6)
    for client in (0, 2):
        for name, expected in update(honest, 1, client).items():
            np.testing.assert_array_equal(update(lying, 1, client)[name], expected)


def test_inside_is_clipped_and_outside_is_not(run_tables: Run) -> None:
    norms = {}
    for position in ("inside", "outside"):
        path = run_tables(
            position,
            **tables(name="scaling", factor=40.0, clients=[0], position=position),
            defence=CLIPPING,
        )
        norms[position] = norm(update(path, 1, 0))
    assert norms["inside"] == pytest.approx(0.05, rel=1e-3)
    assert norms["outside"] == pytest.approx(40 * 0.05, rel=1e-3)


@pytest.mark.parametrize(
    "adversary",
    [
        {"name": "poison", "copies": 1, "label": "random"},
        {"name": "gradient_ascent", "steps": 2},
        {"name": "hitaj_gan", "steps": 5, "victim_class": 9},
    ],
)
def test_the_same_seed_gives_the_same_bytes(adversary: dict[str, Any], run_tables: Run) -> None:
    given = tables(clients=[0], **adversary)
    given["partition"] = {"kind": "by-class", "classes_per_client": 2}
    if adversary["name"] == "hitaj_gan":
        given["adversary"].pop("victim_class")
    one, two, other = (run_tables("twice", **given, seed=seed) for seed in (0, 0, 1))
    digests = [RunDirectory.open(path).open_trace().digest() for path in (one, two, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_gan_attack_is_replayed_and_scored(run_tables: Run) -> None:
    """The victim's help: at the trained models it draws the class, at the untrained it does not."""
    given = tables(name="hitaj_gan", clients=[0], steps=60)
    given["federation"] = {"clients": 3, "rounds": 8}
    given["data"] = {"examples_per_client": 80}
    given["partition"] = {"kind": "by-class", "classes_per_client": 5}
    run = RunDirectory.open(run_tables("gan", **given))
    (record,) = [r for r in read_results(run) if isinstance(r, ReconstructionRecord)]
    assert record.arrays_file is not None
    arrays = load_file(run.results / record.arrays_file)
    (place,) = [key.rpartition("/")[0] for key in arrays if key.endswith("/reconstruction")]
    (found, *_), (mean, *_) = arrays[f"{place}/reconstruction"], arrays[f"{place}/original"]
    assert correlation(found, mean) > correlation(arrays["unaided"], mean) + 0.2
    # one generator is one trial: shown beside both guesses, and not judged
    assert record.metrics == {}
    assert "mean of all auxiliary records 0." in record.refused["mean_correlation"]
    assert "unaided generator" in record.refused["called_victim"]
    assert (arrays["baseline"] != arrays["unaided"]).any()
    assert verdict(record) == "pictures shown, not judged"
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Mean of held-out records of the class" in text
    assert "What a client trained on" not in text
    assert "Original record" not in text
    assert re.search(r"<b>Who:</b>\s*a client that deviates from the protocol</span>", text)
    detection = read_detection(run)
    assert detection is not None
    assert detection.acts_through == [0]
    assert detection.watched == [1, 2]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def gan(**more: Any) -> dict[str, Any]:
    given = tables(name="hitaj_gan", clients=[0], steps=2)
    return given | {"partition": {"kind": "by-class", "classes_per_client": 5}} | more


def test_a_users_attack_may_have_the_label_of_the_gan(run_tables: Run) -> None:
    attack = {"name": "loss_threshold", "label": "hitaj_gan"}
    run = RunDirectory.open(run_tables("label", **gan(audit={"attacks": [attack]})))
    assert {r.label: r.attack for r in read_results(run)} == {
        "hitaj_gan": "loss_threshold",
        "hitaj_gan-2": "hitaj_gan",
    }
    assert (run.results / "hitaj_gan-2.safetensors").is_file()


@pytest.mark.parametrize("auxiliary", [0, 30])
def test_without_auxiliary_records_the_guess_is_the_unaided_generator(
    auxiliary: int, run_tables: Run
) -> None:
    game = {"members": 20, "auxiliary": auxiliary}
    run = RunDirectory.open(run_tables("auxiliary", **gan(game=game)))
    (record,) = read_results(run)
    assert isinstance(record, ReconstructionRecord)
    is_there = "mean of all auxiliary records" in record.refused["mean_correlation"]
    assert is_there == (auxiliary > 0)
    assert verdict(record) == "pictures shown, not judged"


@pytest.mark.parametrize("recording", [{"record": "none"}, {"record": "targets", "rounds": [2]}])
def test_a_gan_without_its_received_models_is_not_replayed(
    recording: dict[str, Any], run_tables: Run
) -> None:
    run = RunDirectory.open(run_tables("unkept", **gan(recording=recording)))
    (record,) = read_results(run)
    assert isinstance(record, UnavailableRecord)
    assert "cannot be replayed" in record.reason
    assert run.read_manifest().state == "done"


def refuses(match: str, **changes: Any) -> None:
    with pytest.raises(InputError, match=match):
        run_scenario(parse_scenario(tables() | changes), out="/nonexistent/never/made")


def test_what_cannot_work_is_refused_before_the_first_round() -> None:
    refuses("adversary.clients.*none is named", adversary={"name": "poison"})
    refuses(
        "factr.*Did you mean 'factor'", adversary={"name": "scaling", "clients": [0], "factr": 2}
    )
    refuses("adversary.copies", adversary={"name": "poison", "clients": [0], "copies": 0})
    refuses(
        "malicious-client",
        adversary={"name": "scaling", "clients": [0]},
        threat_model={"preset": "curious-server"},
    )
    refuses(
        "malicious-client",
        adversary={"name": "scaling", "clients": [0]},
        threat_model={"preset": "malicious-server"},
    )
    refuses("no such class", adversary={"name": "hitaj_gan", "clients": [0], "victim_class": 33})
    refuses("must not own it", adversary={"name": "hitaj_gan", "clients": [0], "victim_class": 1},
            data={"examples_per_client": 200})  # fmt: skip


# -- the mod alone --------------------------------------------------------------------------------


def no_means(context: Context) -> Means:
    return Means(model=dict, targets=None, own=None, num_classes=0, retrain=None)  # type: ignore[arg-type]


def mod_of(behaviour: Behaviour, **options: Any) -> Any:
    return malicious_mod(
        behaviour,
        means=no_means,
        draws=lambda number, client, context: np.random.default_rng([number, client]),
        **options,
    )


def test_any_flower_app_can_carry_the_mod(federate: Callable[..., Any], tmp_path: Path) -> None:
    """Only the clients that are named lie; the metrics stay as they were."""
    paths = {}
    for name, mods in (
        ("honest", None),
        ("lying", [mod_of(Scaling(factor=2.0), clients={3})]),
        ("flipped", [mod_of(SignFlip(), clients={3})]),
    ):
        paths[name] = tmp_path / name
        strategy = CuriousStrategy(FedAvg(fraction_evaluate=0.0), trace=paths[name])
        federate(strategy, rounds=1, mods=mods)
    views = {
        name: TraceView(RunDirectory.open(path).open_trace(), PRESETS["curious-server"])
        for name, path in paths.items()
    }
    liar = _node(views["honest"])
    for name, factor in (("lying", 2.0), ("flipped", -1.0)):
        for client in views["honest"].clients(1):
            expected = views["honest"].client_update(1, client)["w"]
            found = views[name].client_update(1, client)["w"]
            times = factor if client == liar else 1.0
            np.testing.assert_allclose(found, times * expected, atol=1e-6)
            assert views[name].num_examples(1, client) == views["honest"].num_examples(1, client)


def _node(view: TraceView) -> int:
    """Client 3 says that it has 13 examples."""
    (node,) = [c for c in view.clients(1) if view.num_examples(1, c) == 13]
    return node
