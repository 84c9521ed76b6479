"""The ray engine: the same arrays as `local`, on an existing cluster, and clear about dead workers.

One small Ray cluster is started for all tests of this file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from attacks.audit import audit_run
from attacks.shadows.trainers import DefaultTrainer
from attacks.shadows.training import Job, TrainingConfig, fresh_builder
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from simulations import client_app
from simulations.engines.ray import EngineError
from simulations.run import run_scenario
from simulations.scenario import parse_scenario

PORT = 26379
ATTACKS = [
    "row_space",
    "cosine",
    "loss_series",
    "gradient_regression",
    "local_gradient_norm",
    "loss_threshold",
]
FEDAVG: dict[str, Any] = {
    "federation": {"rounds": 2, "clients": 4},
    "data": {"examples_per_client": 20},
    "audit": {"attacks": ATTACKS},
}
DP: dict[str, Any] = {
    **FEDAVG,
    "federation": {"rounds": 3, "clients": 4, "fraction": 0.5},
    "defence": {
        "name": "DifferentialPrivacyClientSideAdaptiveClipping",
        "noise_multiplier": 0.1,
    },
}


DROPOUT: dict[str, Any] = {**FEDAVG, "model": {"name": "dropout_model_for_ray:build"}}
DROPOUT_MODEL = """
from math import prod
from torch import nn

def build(*, input_shape, num_classes):
    linear = nn.Linear(prod(input_shape), num_classes)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster of its own on loopback; ended afterwards."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "dropout_model_for_ray.py").write_text(DROPOUT_MODEL)
    sys.path.append(str(folder))
    ray = Path(sys.executable).with_name("ray")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    own = tempfile.mkdtemp(prefix="ray")  # the default one would point later runs to this cluster
    start = [ray, "start", "--head", f"--port={PORT}", "--num-cpus=2", "--include-dashboard=false",
             "--node-ip-address=127.0.0.1", "--disable-usage-stats",
             f"--temp-dir={own}"]  # fmt: skip
    process = subprocess.Popen(
        [*start, "--block"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for_port(PORT, process)
        yield f"127.0.0.1:{PORT}"
    finally:  # by its pid: `ray stop` would end every Ray of this machine
        process.terminate()
        process.communicate(timeout=60)
        sys.path.remove(str(folder))
        shutil.rmtree(own)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the cluster ended before it was up"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            time.sleep(2)  # the port opens before the node has joined
            return
        time.sleep(0.2)
    raise AssertionError("the cluster did not start")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray_address": "127.0.0.1:1"}, "ray_address = '127.0.0.1:1': nothing answers there"),
        ({"ray_address": "head-node"}, "must be host:port"),
        ({"ray_address": ":6379"}, "must be host:port"),
        ({"ray_address": "localhost:99999"}, "must be host:port"),
        ({"cpus_per_client": 0.0}, "cpus_per_client = 0.0: must be above 0"),
        ({"cpus_per_client": float("nan")}, "must be above 0"),
        ({"gpus_per_client": -1.0}, "gpus_per_client = -1.0: must be 0 or more"),
    ],
)
def test_what_ray_cannot_do_is_refused_at_once_and_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=message):
        run_scenario(parse_scenario(FEDAVG), out=tmp_path / "run", engine="ray", **options)
    assert time.monotonic() - start < 30
    assert not (tmp_path / "run").exists()


def test_ray_starts_afresh_and_what_a_client_gets_of_the_machine_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import simulations.engines.ray as engine

    asked: list[dict[str, Any]] = []

    def run_simulation(*_: object, backend_config: dict[str, Any]) -> None:
        assert backend_config["init_args"]["address"] == "local"  # never a cluster found by chance
        asked.append(backend_config["client_resources"])
        raise RuntimeError("enough")

    monkeypatch.setattr(engine, "run_simulation", run_simulation)
    with pytest.raises(EngineError, match="enough"):
        run_scenario(
            parse_scenario(FEDAVG),
            out=tmp_path / "run",
            engine="ray",
            cpus_per_client=2.0,
            gpus_per_client=0.5,
        )
    assert asked == [{"num_cpus": 2.0, "num_gpus": 0.5}]


@pytest.mark.parametrize(
    "tables", [FEDAVG, DP, DROPOUT], ids=["FedAvg, all", "DP, half", "dropout"]
)
def test_ray_and_local_give_the_same_arrays_and_scores(
    tables: dict[str, Any], cluster: str, tmp_path: Path
) -> None:
    scenario = parse_scenario(tables)
    local = run_scenario(scenario, out=tmp_path / "local")
    ray = run_scenario(scenario, out=tmp_path / "ray", engine="ray", ray_address=cluster)
    assert local.trace is not None
    assert ray.trace is not None
    assert ray.run.problems == []
    assert ray.trace.digest == local.trace.digest
    assert ray.attacks == local.attacks
    for name in ATTACKS:
        scores = []
        for engine in ("local", "ray"):
            (result,) = audit_run(
                tmp_path / engine, attacks=[name], folder="again", trust_model=True
            )
            assert isinstance(result, MembershipResult)
            scores.append(result.scores)
        assert (scores[0] == scores[1]).all()


def test_a_dead_worker_stops_the_run_clearly_and_it_can_be_resumed(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = parse_scenario(FEDAVG)
    out = tmp_path / "run"
    with pytest.raises(EngineError, match=r"worker died.*--resume"):
        run_with(scenario, out, cluster, monkeypatch)
    run = RunDirectory.open(out)
    assert run.read_manifest().state == "failed"
    assert any("worker died" in p.message for p in run.read_manifest().problems)
    undisturbed = run_scenario(scenario, out=tmp_path / "other")
    resumed = run_scenario(scenario, out=out, resume=True)
    assert resumed.trace is not None
    assert undisturbed.trace is not None
    assert resumed.trace.digest == undisturbed.trace.digest


def run_with(scenario: Any, out: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on Ray with an app whose second round kills its worker."""
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    import simulations.run as run_module

    real = client_app.make_client_app(scenario)

    class Dying(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            config = message.content.config_records.get("config")
            is_second = config is not None and config["server-round"] == 2
            if is_second and context.node_config["partition-id"] == 1:
                os._exit(1)
            return real(message, context)

    monkeypatch.setattr(run_module, "make_client_app", lambda _: Dying())
    try:
        run_scenario(scenario, out=out, engine="ray", ray_address=cluster)
    finally:
        monkeypatch.undo()


def test_shadow_models_train_as_ray_tasks_with_the_same_bits(cluster: str) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 1, 4)).astype(np.float32)
    records = Records(np.arange(20), inputs, rng.integers(2, size=20))
    work = [Job(records, seed) for seed in range(3)]
    build = fresh_builder(nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(6, 2)))
    config = TrainingConfig(epochs=1)

    def weights(**options: Any) -> list[bytes]:
        found: dict[int, nn.Module] = {}
        DefaultTrainer(build, config, **options).train(work, found.__setitem__)
        return [
            b"".join(t.numpy().tobytes() for t in found[number].state_dict().values())
            for number in range(3)
        ]

    assert weights(ray_address=cluster) == weights(workers=1)
