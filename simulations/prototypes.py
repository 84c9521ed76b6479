"""What a GAN attack drew: the malicious client's generator, replayed from the trace and scored.

The generator depends on the received models and on draws of (seed, round, client) alone, so nothing
has to be smuggled out of the client: the replay gives its pictures, byte for byte.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from attacks.audit import save_result
from attacks.federated.client_behaviours import HitajGan, Turn
from attacks.federated.gan import generate
from fl_audit.files import private_directory
from fl_audit.records import Records
from fl_audit.results import Estimate, ReconstructionRecord, ReconstructionResult
from fl_audit.run_directory import RunDirectory
from fl_audit.stats import mean_ci, proportion
from fl_audit.threat_model import PRESETS
from fl_audit.trace import TraceView
from simulations.client_app import shared_state
from simulations.malicious_clients import client_behaviour
from simulations.population import Population
from simulations.scenario import Scenario

LABEL = "hitaj_gan"
_DRAWN = 100  # pictures that are scored
_SHOWN = 4  # pictures that are kept for the report
_MAX_ITERATIONS = 2000

Pictures = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Drawings:
    """What one malicious client can draw after the last round it took part in."""

    client: int
    victim_class: int
    last_round: int
    pictures: Pictures
    unaided: Pictures


def save_prototypes(
    run: RunDirectory, scenario: Scenario, population: Population
) -> ReconstructionResult | None:
    """Replay, score and save what the GAN attack of a scenario drew; None without such an attack.

    Metrics, beside a generator that had as many steps at the first round's model, before anybody
    trained: `called_victim`, share of pictures that a classifier of real, held-out records calls
    the victim class; `mean_correlation`, Pearson correlation of a picture with the mean of the
    held-out records of that class. One client's pictures come from one generator: their interval
    is over pictures of this run, not over runs.

    Raises:
        TraceError: If the trace cannot be read.
    """
    behaviour = client_behaviour(scenario.adversary)
    if not isinstance(behaviour, HitajGan):
        return None
    drawn = [
        found
        for client in scenario.adversary.clients
        if (found := _draw(run, scenario, population, behaviour, client)) is not None
    ]
    judge = _judge(population.test)
    metrics = _metrics([(d.pictures, d.victim_class) for d in drawn], judge, population.test)
    baseline = _metrics([(d.unaided, d.victim_class) for d in drawn], judge, population.test)
    arrays: dict[str, NDArray[np.generic]] = {}
    for found in drawn:
        place = f"round_{found.last_round:04d}/client_{found.client}"
        arrays[f"{place}/reconstruction"] = found.pictures[:_SHOWN]
        mean = _class_mean(population.test, found.victim_class)
        arrays[f"{place}/original"] = np.repeat(mean[None], _SHOWN, axis=0)
        arrays["baseline"] = found.unaided[0]
    record = ReconstructionRecord(
        label=LABEL,
        attack=LABEL,
        seed=scenario.seed,
        settings=behaviour.model_dump(mode="json"),
        requires=["global-model"],
        knows=[],
        reference="https://arxiv.org/abs/1702.07464",
        summary="A malicious client draws a class that it does not own",
        rounds=sorted({d.last_round for d in drawn}),
        notes=_notes(drawn, population),
        num_targets=len(drawn),
        metrics=metrics,
        baseline=baseline,
        refused={} if metrics else {"called_victim": "the held-out records lack the victim class"},
        arrays_file=f"{LABEL}.safetensors" if arrays else None,
    )
    result = ReconstructionResult(record, arrays)
    save_result(result, private_directory(run.results))
    return result


def replay(
    run: RunDirectory, scenario: Scenario, behaviour: HitajGan, *, client: int, victim_class: int
) -> tuple[int, Pictures] | None:
    """(last round, pictures) of a client's generator; None if it took part in no round."""
    spec = shared_state(scenario.model_dump_json())[2]
    build = spec.builder(trusted=True)  # a scenario's author names this code
    trace = run.open_trace()
    view = TraceView(trace, PRESETS["curious-client"], model=build)
    memory: MutableMapping[str, NDArray[np.generic]] = {}
    shape = tuple(shared_state(scenario.model_dump_json())[1].dataset.input_shape)
    last: tuple[int, Pictures] | None = None
    for number in view.rounds:
        if not _trained(trace.round(number), client):
            continue
        rng = scenario.seeds("adversary", number, client)
        turn = Turn(number, view.received(number, client), {}, rng, memory)
        net, generator = behaviour.draw(turn, build, victim_class=victim_class, input_shape=shape)
        last = number, generate(net, _DRAWN, generator=generator).astype(np.float64)
    return last


def _trained(index: Any, client: int) -> bool:
    """Whether a client answered in a round: a failed call leaves the generator as it was."""
    reply = index.reply(client)
    return reply is not None and reply.error_code is None


def _draw(
    run: RunDirectory,
    scenario: Scenario,
    population: Population,
    behaviour: HitajGan,
    client: int,
) -> Drawings | None:
    own, classes = population.clients[client], population.dataset.num_classes
    victim, _ = behaviour.classes(own, classes)
    found = replay(run, scenario, behaviour, client=client, victim_class=victim)
    if found is None:
        return None
    view = TraceView(run.open_trace(), PRESETS["curious-client"])
    rounds = len(view.rounds)
    first = view.received(view.rounds[0], client)
    rng = scenario.seeds("adversary", "unaided", client)
    longer = behaviour.model_copy(update={"steps": behaviour.steps * rounds})
    build = shared_state(scenario.model_dump_json())[2].builder(trusted=True)
    net, generator = longer.draw(
        Turn(view.rounds[0], first, {}, rng, {}),
        build,
        victim_class=victim,
        input_shape=population.dataset.input_shape,
    )
    unaided = generate(net, _DRAWN, generator=generator).astype(np.float64)
    return Drawings(client, victim, found[0], found[1], unaided)


def _judge(held_out: Records) -> LogisticRegression | None:
    """A classifier of real records that nobody trained on; None if they are of one class."""
    if len(np.unique(held_out.labels)) < 2:
        return None
    flat = np.asarray(held_out.inputs[:]).reshape(len(held_out), -1)
    return LogisticRegression(max_iter=_MAX_ITERATIONS).fit(flat, held_out.labels)


def _metrics(
    drawn: list[tuple[Pictures, int]], judge: LogisticRegression | None, held_out: Records
) -> dict[str, Estimate]:
    called, correlations = [], []
    for pictures, victim in drawn:
        if judge is None or not (held_out.labels == victim).any():
            continue
        flat = pictures.reshape(len(pictures), -1)
        called += (judge.predict(flat) == victim).tolist()
        mean = _class_mean(held_out, victim).ravel()
        correlations += [_correlation(picture, mean) for picture in flat]
    if not called:
        return {}
    return {
        "called_victim": proportion(int(sum(called)), len(called)),
        "mean_correlation": mean_ci(np.asarray(correlations), bounds=(-1.0, 1.0)),
    }


def _notes(drawn: list[Drawings], population: Population) -> list[str]:
    notes = ["The baseline is a generator of as many steps at the untrained model."]
    auxiliary = population.game.auxiliary
    for found in drawn:
        if not (population.test.labels == found.victim_class).any():
            continue
        mean = _class_mean(population.test, found.victim_class)
        distance = float(np.linalg.norm((found.pictures - mean).reshape(len(found.pictures), -1),
                                        axis=1).mean())  # fmt: skip
        text = (
            f"Client {found.client} drew class {found.victim_class}: mean distance to the class "
            f"mean {distance:.3g}"
        )
        if len(auxiliary):
            guess = np.asarray(auxiliary.inputs[:]).mean(axis=0, dtype=np.float64)
            text += (
                f"; the mean of all auxiliary records lies {np.linalg.norm(guess - mean):.3g} "
                f"away, and correlates with it at {_correlation(guess.ravel(), mean.ravel()):.2f}"
            )
        notes.append(text + ".")
    return notes


def _class_mean(records: Records, label: int) -> Pictures:
    rows = np.flatnonzero(records.labels == label)
    mean: Pictures = np.asarray(records.take(rows).inputs[:]).mean(axis=0, dtype=np.float64)
    return mean


def _correlation(one: Pictures, other: Pictures) -> float:
    """Pearson correlation; 0 if one of them is constant."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / size, -1, 1)) if size > 0 else 0.0
