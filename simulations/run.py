"""Running a scenario: federation, attacks, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from pydantic import JsonValue

from attacks.audit import audit_run, not_tested
from attacks.devices import choose_device
from attacks.requests import check_attacks, parse_attacks
from fl_audit.errors import InputError, UnknownNameError, clean_text, shorten
from fl_audit.files import write_text
from fl_audit.game import write_game
from fl_audit.report.build import build_report
from fl_audit.report.model import AuditReport
from fl_audit.run_directory import Problem, RunDirectory, RunManifest, ThreatModelRecord
from fl_audit.targets import write_targets
from fl_audit.verify import excused_rounds, verify_run
from fl_audit.versions import versions
from simulations.adversaries import check_adversary
from simulations.client_app import SCENARIO_KEY, make_client_app, shared_state
from simulations.client_facts import with_client_facts
from simulations.defences import build_strategy, local_trainings
from simulations.detection import detect
from simulations.engines.calls import RunConfig
from simulations.engines.local import run_local
from simulations.malicious_clients import check_malicious_clients
from simulations.malicious_server import check_malicious_server
from simulations.population import Population
from simulations.prototypes import save_prototypes
from simulations.quiet import quiet_flower
from simulations.rehearsals import rehearser_of
from simulations.scenario import AdversaryTable, Scenario, dump_scenario, load_scenario
from simulations.server_app import make_server_app
from simulations.shadows import shadow_trainer
from simulations.truth import candidate_uses, reconstruction_targets
from strategies.recorder import utc_now

Engine = Literal["local", "ray"]
Progress = Callable[[str, int, int], None]


class _Start(Protocol):
    """Runs a server app against copies of a client app."""

    def __call__(
        self,
        server_app: ServerApp,
        client_app: ClientApp,
        *,
        num_clients: int,
        run_config: RunConfig,
        seed: int,
    ) -> None: ...


def run_scenario(
    scenario: Scenario | str | Path,
    *,
    out: str | Path,
    engine: Engine = "local",
    overwrite: bool = False,
    resume: bool = False,
    ray_address: str | None = None,
    cpus_per_client: float | None = None,
    gpus_per_client: float | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Run a federation with its adversary, attack what was recorded, and write the report.

    Everything that can be refused is refused before the first round: unknown names, impossible
    values, attacks that the threat model does not grant.

    Args:
        scenario: A scenario, or the path of a TOML file.
        out: The run directory to create.
        engine: "local": in this process; "ray": Flower's simulation on Ray. Both give the same
            arrays.
        overwrite: Delete a run directory that stands at `out`.
        resume: Go on with the run at `out`: it is replayed from round 1, and each recorded round
            must come out the same. Creates the run if it never began.
        ray_address: "host:port" of an existing Ray cluster, for engine "ray".
        cpus_per_client: CPUs that Ray sets aside for a client at work; 1 by default.
        gpus_per_client: GPUs likewise; none by default.
        progress: Called with (what, done, total).

    Returns:
        The report, as written to `out`/report.json.

    Raises:
        InputError: If the scenario or `out` is refused, or the scenario to resume is another.
        ReplayError: If a replayed round differs from what was recorded.
        EngineError: If the engine failed; what was recorded is kept.
    """
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario)
    if overwrite and resume:
        raise InputError(
            "overwrite", True, "a run cannot be deleted and resumed", "Choose one of the two."
        )
    start = _engine(
        engine,
        ray_address=ray_address,
        cpus_per_client=cpus_per_client,
        gpus_per_client=gpus_per_client,
    )
    requests = parse_attacks(scenario.audit.attacks)
    check_attacks(requests, scenario.adversary_model())
    with quiet_flower():
        population, manifest = _prepare(scenario, engine)
        where = Path(out)
        run = (
            RunDirectory.resume(where)
            if resume
            else RunDirectory.create(where, overwrite=overwrite)
        )
        run.lock()
        try:
            _begin(scenario, run, manifest, population)
            seconds: dict[str, float] = {}
            with _stage("federation", seconds, run):
                if not (resume and _is_complete(run)):
                    server_app = partial(make_server_app, run, manifest, resume=resume)
                    _run_federation(scenario, server_app, start, progress)
            if scenario.adversary.name != "none":
                with _stage("detection", seconds, run):
                    _examine(run, scenario, population)
                    save_prototypes(run, scenario, population)
            with _stage("attacks", seconds, run):
                device = choose_device(scenario.device)
                audit_run(
                    run.path,
                    attacks=requests,
                    trust_model=True,
                    device=device,
                    trainer=shadow_trainer(scenario, scenario.audit.shadows),
                    rehearser=rehearser_of(scenario),
                    progress=progress,
                )
            with _stage("report", seconds, run):
                run.write_manifest(run.read_manifest().model_copy(update={"seconds": seconds}))
                report = build_report(run, not_tested=not_tested([r.spec.name for r in requests]))
                report.save(run.path)
            return report
        finally:
            run.release()


def _begin(
    scenario: Scenario, run: RunDirectory, manifest: RunManifest, population: Population
) -> None:
    """Write what is known before the first round. To resume, it must be what stands there."""
    if run.scenario_file.is_file():
        refuse_other_scenario(load_scenario(run.scenario_file), scenario)
    if not run.manifest_file.is_file():
        run.write_manifest(manifest)  # first: from here on, the run can be resumed
    write_text(run.scenario_file, dump_scenario(scenario))
    truth = replace(population.truth, uses=candidate_uses(scenario, population))
    write_game(run, population.game, truth)
    write_targets(run.truth / "targets", reconstruction_targets(scenario, population))


def refuse_other_scenario(recorded: Scenario, wanted: Scenario) -> None:
    """Refuse to go on with a run of another scenario.

    Raises:
        InputError: Naming the first key that differs, with both values.
    """
    found = _difference(recorded.model_dump(), wanted.model_dump())
    if found is None:
        return
    key, before, now = found
    began = "without it" if before is _ABSENT else f"with {shorten(before)}"
    raise InputError(
        f"scenario key {key!r}",
        None if now is _ABSENT else now,
        f"the run to resume was begun {began}",
        "Resume with the scenario.toml in the run directory, or run anew elsewhere.",
    )


_ABSENT = object()


def _difference(
    before: Mapping[Any, Any], now: Mapping[Any, Any]
) -> tuple[str, object, object] | None:
    """The first key, dotted, that two nested tables differ in, and its values."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = _difference(old, new)
            if inner is not None:
                return f"{key}.{inner[0]}", *inner[1:]
        return str(key), old, new
    return None


def _examine(run: RunDirectory, scenario: Scenario, population: Population) -> None:
    """Write what clients could have noticed. If that fails, the run goes on and says so."""
    try:
        detect(run, scenario, population)
    except Exception as error:  # the trace stands, and attacks on it are worth a look
        logging.getLogger("fl_audit").debug("detection failed", exc_info=True)
        run.detection_file.unlink(missing_ok=True)  # of an earlier attempt
        why = clean_text(f"not examined: {type(error).__name__}: {error}")
        manifest = run.read_manifest()
        problems = [*manifest.problems, Problem(where="detection", message=why)]
        run.write_manifest(manifest.model_copy(update={"problems": problems}))


def _is_complete(run: RunDirectory) -> bool:
    """Whether every round of this run is recorded and whole."""
    manifest = run.read_manifest()
    if manifest.state != "done" or not run.trace.is_dir():
        return False
    return not excused_rounds(manifest) and not verify_run(run)


def _engine(engine: Engine, **options: Any) -> _Start:
    """The function that runs apps on an engine."""
    given = {name: value for name, value in options.items() if value is not None}
    if engine == "ray":
        from simulations.engines.ray import ray_engine  # Ray is slow to import

        return ray_engine(**given)
    if engine != "local":
        raise UnknownNameError("engine", engine, get_args(Engine))
    for name, value in given.items():
        raise InputError(name, value, "engine 'local' uses no Ray", "Choose engine 'ray'.")
    return run_local


def _prepare(scenario: Scenario, engine: Engine) -> tuple[Population, RunManifest]:
    """Build everything once, so that what cannot work fails before anything is written."""
    choose_device(scenario.device)
    build_strategy(scenario.strategy, scenario.defence, scenario.federation)
    check_adversary(scenario.adversary)
    _, population, spec = shared_state(scenario.model_dump_json())
    check_malicious_server(scenario, population.game, spec)
    check_malicious_clients(scenario, population, spec)
    population = with_client_facts(population, parse_attacks(scenario.audit.attacks))
    manifest = RunManifest(
        title=scenario.title,
        created=utc_now(),
        seed=scenario.seed,
        engine=engine,
        versions=versions(),
        threat_model=ThreatModelRecord.of(scenario.adversary_model()),
        strategy=scenario.strategy.model_dump(mode="json"),
        defence=scenario.defence.model_dump(mode="json"),
        adversary=_behaviour(scenario.adversary),
        model=spec,
        local_training=local_trainings(scenario),
        recording=scenario.recording,
        planned_rounds=scenario.federation.rounds,
        num_clients=scenario.federation.clients,
        data={
            "name": scenario.data.name,
            "random_labels": scenario.data.random_labels,
            "partition": scenario.partition.kind,
            "examples_per_client": [len(records) for records in population.clients],
            "input_shape": list(population.dataset.input_shape),
            "num_classes": population.dataset.num_classes,
            "fraction": scenario.federation.fraction,
        },
    )
    return population, manifest


def _behaviour(adversary: AdversaryTable) -> dict[str, JsonValue]:
    """What an active adversary does, for run.json; empty if there is none."""
    if adversary.name == "none":
        return {}
    of_clients = set() if adversary.clients else {"clients", "position"}
    return adversary.model_dump(mode="json", exclude=of_clients)


def _run_federation(
    scenario: Scenario,
    server_app: Callable[..., ServerApp],
    start: _Start,
    progress: Progress | None,
) -> None:
    rounds = scenario.federation.rounds

    def on_round(server_round: int) -> None:
        if progress is not None:
            progress("federation", server_round, rounds)

    if progress is not None:
        progress("federation", 0, rounds)
    start(
        server_app(on_round=on_round),
        make_client_app(scenario),
        num_clients=scenario.federation.clients,
        run_config={SCENARIO_KEY: scenario.model_dump_json()},
        seed=scenario.seed,
    )


@contextmanager
def _stage(name: str, seconds: dict[str, float], run: RunDirectory) -> Iterator[None]:
    """Time a stage; if it ends early, say so in run.json, where the report finds it."""
    start = time.perf_counter()
    try:
        yield
    except BaseException as error:
        if run.manifest_file.exists():
            _note_end(run, name, error)
        raise
    finally:
        seconds[name] = round(time.perf_counter() - start, 3)


def _note_end(run: RunDirectory, stage: str, error: BaseException) -> None:
    manifest = run.read_manifest()
    is_interrupt = isinstance(error, KeyboardInterrupt)
    why = clean_text(f"{type(error).__name__}: {error}")
    problems = list(manifest.problems)
    if is_interrupt or not any(why in problem.message for problem in problems):  # or known already
        what = "interrupted" if is_interrupt else f"failed: {why}"
        problems.append(Problem(where=stage, message=clean_text(f"{stage} {what}")))
    state = "interrupted" if is_interrupt else "failed"
    try:
        run.write_manifest(manifest.model_copy(update={"state": state, "problems": problems}))
    except OSError:  # it must not hide the error that ended the stage
        logging.getLogger("fl_audit").exception("cannot write run.json")
