"""What a GAN attack drew: the malicious client's generator, replayed from the trace and shown.

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
from attacks.requests import parse_attacks
from fl_audit.errors import AuditError, clean_text
from fl_audit.files import private_directory
from fl_audit.records import Records
from fl_audit.results import (
    ReconstructionRecord,
    ReconstructionResult,
    UnavailableRecord,
    UnavailableResult,
)
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import TraceView
from simulations.client_app import shared_state
from simulations.malicious_clients import client_behaviour
from simulations.population import Population
from simulations.scenario import Scenario

NAME = "hitaj_gan"
_DRAWN = 100  # pictures that the figures are means of
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
) -> ReconstructionResult | UnavailableResult | None:
    """Replay and save what the GAN attack of a scenario drew; None without such an attack.

    Pictures of one generator hardly differ, so each client is one trial: figures have no interval,
    and nothing is judged. The primary figure is Pearson's correlation of a picture with the mean of
    the held-out records of the victim class; beside it, the share of pictures that a classifier of
    real, held-out records calls that class. Both stand beside what anybody has without the
    federation: a generator that had as many steps at the first round's model, before anybody
    trained, and the mean of the auxiliary records.
    """
    behaviour = client_behaviour(scenario.adversary)
    if not isinstance(behaviour, HitajGan):
        return None
    header = _header(scenario, behaviour)
    result: ReconstructionResult | UnavailableResult
    try:
        drawn = [
            found
            for client in scenario.adversary.clients
            if (found := _draw(run, scenario, population, behaviour, client)) is not None
        ]
        result = _result(header, drawn, population)
    except AuditError as error:  # a model that the client received was not kept, for example
        reason = f"what it drew cannot be replayed: {clean_text(error)}"
        result = UnavailableResult(UnavailableRecord(**header, rounds=[], reason=reason))
    save_result(result, private_directory(run.results))
    return result


def _header(scenario: Scenario, behaviour: HitajGan) -> dict[str, Any]:
    """The fields of the record whatever comes out; no attack of the scenario has its label."""
    taken = {request.label for request in parse_attacks(scenario.audit.attacks)}
    label, number = NAME, 2
    while label in taken:
        label, number = f"{NAME}-{number}", number + 1
    return {
        "label": label,
        "attack": NAME,
        "seed": scenario.seed,
        "settings": behaviour.model_dump(mode="json"),
        "requires": ["global-model"],
        "knows": [],
        "activity": "malicious",
        "who": "client",
        "reference": "https://arxiv.org/abs/1702.07464",
        "summary": "A malicious client draws a class that it does not own",
    }


def _result(
    header: dict[str, Any], drawn: list[Drawings], population: Population
) -> ReconstructionResult:
    guess = _mean(population.game.auxiliary)
    arrays: dict[str, NDArray[np.generic]] = {}
    for found in drawn:
        place = f"round_{found.last_round:04d}/client_{found.client}"
        arrays[f"{place}/reconstruction"] = found.pictures[:_SHOWN]
        mean = _class_mean(population.test, found.victim_class)
        if mean is not None:
            arrays[f"{place}/original"] = np.repeat(mean[None], _SHOWN, axis=0)
        arrays["unaided"] = found.unaided[0]
        arrays["baseline"] = found.unaided[0] if guess is None else guess
    record = ReconstructionRecord(
        **header,
        of="class",
        rounds=sorted({d.last_round for d in drawn}),
        notes=_notes(drawn, population.test, guess),
        num_targets=len(drawn),
        metrics={},
        baseline={},
        refused=_not_judged(drawn, population.test, guess),
        arrays_file=f"{header['label']}.safetensors" if arrays else None,
    )
    return ReconstructionResult(record, arrays)


def replay(
    run: RunDirectory, scenario: Scenario, behaviour: HitajGan, *, client: int, victim_class: int
) -> tuple[list[int], Pictures] | None:
    """(rounds it trained in, pictures) of a client's generator; None if it took part in no round.

    Raises:
        TraceError: If a model that it received was not kept.
    """
    spec = shared_state(scenario.model_dump_json())[2]
    build = spec.builder(trusted=True)  # a scenario's author names this code
    trace = run.open_trace()
    view = TraceView(trace, PRESETS["curious-client"], model=build)
    memory: MutableMapping[str, NDArray[np.generic]] = {}
    shape = tuple(shared_state(scenario.model_dump_json())[1].dataset.input_shape)
    rounds: list[int] = []
    pictures: Pictures | None = None
    for number in trace.rounds:
        if not _trained(trace.round(number), client):
            continue
        rng = scenario.seeds("adversary", number, client)
        turn = Turn(number, view.received(number, client), {}, rng, memory)
        net, generator = behaviour.draw(turn, build, victim_class=victim_class, input_shape=shape)
        pictures = generate(net, _DRAWN, generator=generator).astype(np.float64)
        rounds.append(number)
    return None if pictures is None else (rounds, pictures)


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
    rounds, pictures = found
    view = TraceView(run.open_trace(), PRESETS["curious-client"])
    first = view.received(1, client)
    rng = scenario.seeds("adversary", "unaided", client)
    longer = behaviour.model_copy(update={"steps": behaviour.steps * len(rounds)})
    build = shared_state(scenario.model_dump_json())[2].builder(trusted=True)
    net, generator = longer.draw(
        Turn(1, first, {}, rng, {}),
        build,
        victim_class=victim,
        input_shape=population.dataset.input_shape,
    )
    unaided = generate(net, _DRAWN, generator=generator).astype(np.float64)
    return Drawings(client, victim, rounds[-1], pictures, unaided)


def _judge(held_out: Records) -> LogisticRegression | None:
    """A classifier of real records that nobody trained on; None if they are of one class."""
    if len(np.unique(held_out.labels)) < 2:
        return None
    flat = np.asarray(held_out.inputs[:]).reshape(len(held_out), -1)
    return LogisticRegression(max_iter=_MAX_ITERATIONS).fit(flat, held_out.labels)


def _not_judged(drawn: list[Drawings], held_out: Records, guess: Pictures | None) -> dict[str, str]:
    """The figures in words, beside both guesses: they have no interval."""
    judge = _judge(held_out)
    why = "One generator is one trial, so there is no interval and no verdict."
    found = {"mean_correlation": [why], "called_victim": [why]}
    for one in drawn:
        mean = _class_mean(held_out, one.victim_class)
        if mean is None:
            for lines in found.values():
                lines.append(f"Client {one.client}: no held-out record is of the victim class.")
            continue
        pictures = {"found": one.pictures, "unaided generator": one.unaided}
        if guess is not None:
            pictures["mean of all auxiliary records"] = guess[None]
        near = {n: _mean_correlation(p, mean) for n, p in pictures.items()}
        found["mean_correlation"].append(_sentence(one.client, near))
        if judge is not None:
            share = {n: _share_called(judge, p, one.victim_class) for n, p in pictures.items()}
            found["called_victim"].append(_sentence(one.client, share))
    return {name: " ".join(lines) for name, lines in found.items()} if drawn else {}


def _sentence(client: int, figures: dict[str, float]) -> str:
    return f"Client {client}: {', '.join(f'{name} {v:.2f}' for name, v in figures.items())}."


def _share_called(judge: LogisticRegression, pictures: Pictures, label: int) -> float:
    return float((judge.predict(pictures.reshape(len(pictures), -1)) == label).mean())


def _mean_correlation(pictures: Pictures, mean: Pictures) -> float:
    flat = pictures.reshape(len(pictures), -1)
    return float(np.mean([_correlation(picture, mean.ravel()) for picture in flat]))


def _notes(drawn: list[Drawings], held_out: Records, guess: Pictures | None) -> list[str]:
    notes = [
        "An unaided generator has as many steps at the untrained model. Whoever has records like "
        "the clients' has their mean without any federation."
    ]
    for found in drawn:
        mean = _class_mean(held_out, found.victim_class)
        if mean is None:
            continue
        distance = float(np.linalg.norm((found.pictures - mean).reshape(len(found.pictures), -1),
                                        axis=1).mean())  # fmt: skip
        text = (
            f"Client {found.client} drew class {found.victim_class}: mean distance to the class "
            f"mean {distance:.3g}"
        )
        if guess is not None:
            away = float(np.linalg.norm(guess - mean))
            text += f"; the mean of all auxiliary records lies {away:.3g} away"
        notes.append(text + ".")
    return notes


def _class_mean(records: Records, label: int) -> Pictures | None:
    """None if no record is of the class."""
    return _mean(records.take(np.flatnonzero(records.labels == label)))


def _mean(records: Records) -> Pictures | None:
    """The mean input; None without any."""
    if not len(records):
        return None
    mean: Pictures = np.asarray(records.inputs[:]).mean(axis=0, dtype=np.float64)
    return mean


def _correlation(one: Pictures, other: Pictures) -> float:
    """Pearson correlation; 0 if one of them is constant."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / size, -1, 1)) if size > 0 else 0.0
