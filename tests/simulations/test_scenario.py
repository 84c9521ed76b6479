"""Scenarios: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_audit.errors import AuditError
from simulations.scenario import dump_scenario, load_scenario, parse_scenario


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"federation": {"rouds": 3}}, r"federation.rouds = 3: unknown key.*Did you mean 'rounds'"),
        ({"federatoin": {}}, r"federatoin.*unknown key.*Did you mean 'federation'"),
        ({"federation": {"clients": 1}}, r"federation.clients = 1: .*greater than or equal to 2"),
        ({"federation": {"rounds": "many"}}, r"federation.rounds = 'many'.*integer"),
        ({"federation": {"fraction": 0}}, r"federation.fraction = 0: .*greater than 0"),
        ({"training": {"learning_rate": float("nan")}}, r"training.learning_rate.*finite"),
        ({"training": {"clients": {"2": {"lr": 1}}}}, r"^training.clients.2.lr = 1: unknown key"),
        (
            {"training": {"clients": {"2": {"learning_rat": 1}}}},
            r"training.clients.2.learning_rat = 1: unknown key. Did you mean 'learning_rate'",
        ),
        (
            {"training": {"clients": {"7": {}}}},
            r"^training.clients = \[7\]: client 7 does not",
        ),
        ({"game": {"clients": [9]}}, r"^game.clients = \[9\]: client 9 does not exist"),
        ({"adversary": {"clients": [9]}}, r"^adversary.clients = \[9\]: client 9 does not exist"),
        (
            {"threat_model": {"controls": [7]}},
            r"^threat_model.controls = \[7\]: client 7 does not exist",
        ),
        (
            {"game": {"unit": "user", "canaries": {"mislabelled": 2}}},
            r"^game.unit = 'user': game.canaries are single records, and 2",
        ),
        (
            {"game": {"unit": "user"}, "partition": {"kind": "dirichlet"}},
            r"^partition.kind = 'dirichlet': would tear persons apart",
        ),
        (
            {"game": {"canaries": {"mislabelled": 2}}, "data": {"random_labels": True}},
            r"^game.canaries.mislabelled = 2: has no meaning",
        ),
        ({"recording": {"clients": [0]}}, r"^recording.record = 'all': clients and rounds do not"),
        ({"recording": {"record": "targets"}}, r"^recording.record = 'targets': needs clients"),
        ({"game": {"clients": [0, 0]}}, r"must name at least one client, each once"),
        ({"game": {"clients": []}}, r"must name at least one client, each once"),
        (
            {"recording": {"record": "targets", "clients": [99]}},
            r"^recording.clients = \[99\]: client 99 does not.*clients are 0 to 4",
        ),
        (
            {"recording": {"record": "targets", "rounds": [50]}},
            r"^recording.rounds = \[50\]: round 50 .*federation.rounds = 6, so rounds are 1 to 6",
        ),
        ({"recording": {"record": "targets", "rounds": [0]}}, r"round 0 does not exist"),
        (
            {"recording": {"record": "targets", "clients": []}},
            r"^recording.clients = \[\]: must name at least one client",
        ),
        (
            {"recording": {"record": "targets", "rounds": [1, 1]}},
            r"^recording.rounds = \[1, 1\]: must name at least one round, each once",
        ),
        ({"strategy": {"name": "FedAdam", "eta": float("inf")}}, r"strategy.eta = inf.*finite"),
        ({"defence": {"name": "x", "z": [float("nan")]}}, r"defence.z.list.0 = nan.*finite"),
        ({"model": {"name": "mlp", "width": float("nan")}}, r"model.width = nan.*finite"),
        (
            {"training": {"clients": {"2": {"algorithm": "sgd"}}}},
            r"^training.clients.2.algorithm = 'sgd': input should be",
        ),
        ({"partition": {"kind": "random"}}, r"partition.kind = 'random'"),
        ({"seed": -1}, r"seed = -1"),
    ],
)
def test_bad_scenarios_are_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditError, match=message):
        parse_scenario(tables)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"data": {"name": "digts"}}, "unknown data set 'digts'. Did you mean 'digits'"),
        ({"model": {"name": "mpl"}}, "unknown model 'mpl'. Did you mean 'mlp'"),
        ({"model": {"name": "mlp", "hiden": [3]}}, "no such setting. Did you mean 'hidden'"),
        ({"model": {"name": "mlp", "hidden": [0.5]}}, "refuses these settings"),
        ({"model": {"name": "no.such:thing"}}, "cannot be imported"),
        ({"strategy": {"name": "FedAvgg"}}, "unknown strategy 'FedAvgg'. Did you mean 'FedAvg'"),
        ({"strategy": {"name": "FedAdam", "etta": 1}}, "Did you mean 'eta'"),
        ({"strategy": {"name": "FedAdam", "eta": "x"}}, "strategy.eta = 'x': .*valid number"),
        ({"strategy": {"name": "FedAdam", "eta": True}}, "strategy.eta = True: .*valid number"),
        (
            {"strategy": {"name": "Krum", "num_malicious_nodes": 0.5}},
            "strategy.num_malicious_nodes = 0.5: .*integer",
        ),
        (
            {"strategy": {"name": "FedAvg", "train_metrics_aggr_fn": "sum"}},
            "strategy.train_metrics_aggr_fn = 'sum': .*callable",
        ),
        (
            {
                "defence": {
                    "name": "DifferentialPrivacyServerSideFixedClipping",
                    "noise_multiplier": "1",
                    "clipping_norm": 1.0,
                }
            },
            "defence.noise_multiplier = '1': .*valid number",
        ),
        ({"model": {"name": "mlp", "num_classes": 3}}, "the data set decides it"),
        ({"model": {"name": "convnet", "groups": 0}}, "must be at least 1"),
        ({"defence": {"name": "dp"}}, "unknown defence 'dp'"),
        ({"strategy": {"name": "FedAvg", "min_available_nodes": 9}}, "decides this elsewhere"),
        ({"strategy": {"name": "FedAvg", "weighted_by_key": "n"}}, "decides this elsewhere"),
        (
            {
                "defence": {
                    "name": "DifferentialPrivacyServerSideFixedClipping",
                    "noise_multiplier": 1.0,
                    "clipping_norm": 1.0,
                    "num_sampled_clients": 2,
                }
            },
            "num_sampled_clients = 2: the scenario decides this elsewhere",
        ),
        ({"defence": {"name": "none", "z": 1}}, "takes no settings"),
        (
            {"defence": {"name": "DifferentialPrivacyServerSideFixedClipping"}},
            "refuses these arguments",
        ),
        ({"threat_model": {"preset": "server"}}, "unknown threat model 'server'"),
        ({"threat_model": {"sees": ["everything"]}}, "unknown observation 'everything'"),
        ({"audit": {"attacks": ["nope"]}}, "unknown attack 'nope'"),
        (
            {"audit": {"attacks": ["row_space"]}, "threat_model": {"preset": "model-user"}},
            "does not grant aggregate, global-model",
        ),
        ({"federation": {"clients": 4000}}, "records left after"),
        ({"data": {"examples_per_client": 3}, "federation": {"clients": 600}}, "records left"),
        ({"data": {"test": 5000}}, "data.test = 5000"),
        (
            {"partition": {"kind": "by-class", "classes_per_client": 11}},
            "flwr-datasets cannot make",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tables: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from simulations.run import run_scenario

    with pytest.raises(AuditError, match=message):
        run_scenario(parse_scenario(tables), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overrides_win_and_are_toml(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[federation]\nrounds = 9\n")
    scenario = load_scenario(path, ["federation.rounds=3", "audit.attacks=['cosine']", "title=Hi"])
    assert scenario.federation.rounds == 3
    assert scenario.audit.attacks == ["cosine"]
    assert scenario.title == "Hi"


@pytest.mark.parametrize(
    ("text", "message"), [("seed = ", "not valid TOML"), (None, "cannot be read")]
)
def test_unreadable_files_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AuditError, match=message):
        load_scenario(path)


def test_a_dumped_scenario_reads_back_equal(tmp_path: Path) -> None:
    scenario = parse_scenario(
        {
            "title": 'A "quoted" \\ title\nwith émigré lines',
            "training": {"clients": {"3": {"algorithm": "fedsgd"}}},
            "audit": {"attacks": ["row_space", {"name": "cosine", "layers": ["1.weight"]}]},
            "model": {"name": "mlp", "hidden": [8, 4]},
        }
    )
    path = tmp_path / "s.toml"
    path.write_text(dump_scenario(scenario), encoding="utf-8")
    assert load_scenario(path) == scenario


def test_each_place_draws_numbers_of_its_own() -> None:
    scenario = parse_scenario({"seed": 4})
    paths = [("client", 1, 2), ("client", 2, 1), ("population",), ("population", 0), ("model",)]
    draws = [scenario.seeds(*path).integers(2**62) for path in paths]
    assert len(set(draws)) == len(draws)
    assert scenario.seeds("client", 1, 2).integers(2**62) == draws[0]
