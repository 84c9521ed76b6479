"""Whether a client could have noticed the adversary: from a recorded run to detection.json."""

from __future__ import annotations

from attacks.devices import choose_device
from attacks.federated.detect import DEFAULT, Limits, could_notice
from attacks.federated.rounds import record_losses
from fl_audit.detection import Detection, DetectionFinding, write_detection
from fl_audit.files import Arrays
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Trace, TraceView
from simulations.client_app import shared_state
from simulations.population import Population
from simulations.scenario import Scenario

_NOTES = (
    "Models that differ between clients are noticed only by clients that compare them over a "
    "channel which the server does not control.",
    "No finding means that these checks see nothing at their limits, not that nothing was there.",
)
_NOT_KEPT = (
    "The recording policy, or its cap, did not keep every model that honest clients received: "
    "what was not kept was neither looked at nor compared."
)


def detect(
    run: RunDirectory, scenario: Scenario, population: Population, *, limits: Limits = DEFAULT
) -> Detection:
    """Look at every model that an honest client received, as that client could have.

    Args:
        run: A recorded run; detection.json is written into it.
            Models that it did not keep are named, not examined.
        population: What each client trains on: the loss is taken on its own records.
        limits: Where an observation becomes a finding.

    Returns:
        What was written.

    Raises:
        TraceError: If the trace cannot be read.
    """
    _, _, spec = shared_state(scenario.model_dump_json())
    trace = run.open_trace()
    view = TraceView(trace, PRESETS["curious-server"], model=spec.builder(trusted=True))
    module, device = view.architecture(), choose_device(scenario.device)
    liars = set(scenario.adversary.clients)
    received: dict[int, dict[int, Arrays]] = {}
    not_examined: dict[int, list[int]] = {}
    losses: dict[int, dict[int, float]] = {}
    for number in trace.rounds:
        honest = [client for client in _sampled(trace, number) if client not in liars]
        kept = [c for c in honest if trace.received(number, c) is not None]
        if len(kept) < len(honest):
            not_examined[number] = [client for client in honest if client not in kept]
        if not kept:
            continue
        received[number] = {client: view.received(number, client) for client in kept}
        losses[number] = {
            client: float(
                record_losses(module, model, population.clients[client], device=device).mean()
            )
            for client, model in received[number].items()
        }
    found = could_notice(received, losses, limits=limits)
    detection = Detection(
        adversary=scenario.adversary.name,
        acts_through=sorted(liars),
        watched=sorted({client for clients in received.values() for client in clients}),
        rounds=list(received),
        findings=[
            DetectionFinding(
                check=f.check, round=f.round, client=f.client, what=f.what, value=f.value
            )
            for f in found
        ],
        not_examined=not_examined,
        notes=[*_NOTES, *([_NOT_KEPT] if not_examined else [])],
    )
    write_detection(run, detection)
    return detection


def _sampled(trace: Trace, server_round: int) -> list[int]:
    return sorted(trace.round(server_round).sampled)
