"""Cosine between a client's update and a candidate's gradient.

In a wide network near a good minimum, gradients of different examples are nearly orthogonal, so
an update -lr * (sum of members' gradients) has a positive cosine with the negative gradient of a
member and none with that of a non-member.

References:
    Li, Li, Ribeiro, "Effective passive membership inference attacks in federated learning against
    overparameterized models", ICLR 2023.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.gradients import Gradients, per_example_gradients
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView


class Settings(AttackSettings):
    """Which parameters to compare."""

    layers: list[str] | None = None
    """Parameter names, as in the model's state; all by default."""


def cosine_scores(
    view: TraceView,
    candidates: Records,
    *,
    layers: list[str] | None = None,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Cosine of each candidate's negative gradient with client updates.

    For each client the mean over the rounds it took part in; then the largest over clients,
    because any client may be the one that holds the record.

    Returns:
        Scores in [-1, 1], shape (n,); higher = more likely a member.

    Raises:
        ObservationError: If the view grants no client updates or global model.
        InputError: If no client sent a usable, non-zero update ("no signal"), or a layer is
            unknown.
    """
    totals: dict[int, NDArray[np.float64]] = {}
    counts: dict[int, int] = {}
    for server_round in view.rounds:
        for client, cosines in _round_cosines(view, server_round, candidates, layers, device):
            totals[client] = totals.get(client, 0) + cosines
            counts[client] = counts.get(client, 0) + 1
    if not totals:
        raise InputError(
            "client updates",
            "none",
            "no client sent a usable, non-zero update: there is no signal to score",
            "Check the trace: the clients failed, sent NaN, or returned the model unchanged.",
        )
    means = np.stack([totals[client] / counts[client] for client in sorted(totals)])
    scores: NDArray[np.float64] = means.max(axis=0)
    return scores


def _round_cosines(
    view: TraceView, server_round: int, candidates: Records, layers: list[str] | None, device: str
) -> list[tuple[int, NDArray[np.float64]]]:
    arrays = view.global_model(server_round)
    module = view.architecture()
    names = _names(module, layers)
    directions = {}
    for client in view.clients(server_round):
        update = _flat_update(view, server_round, client, names)
        norm = float(np.linalg.norm(update))  # float64: the square of an update may be huge
        if norm > 0:
            directions[client] = torch.from_numpy(update / norm).float()
    if not directions or not all(np.isfinite(arrays[name]).all() for name in names):
        return []
    matrix = torch.stack(list(directions.values())).to(device)  # (m, d), rows of length 1
    cosines = np.empty((len(directions), len(candidates)))
    for rows, gradients in per_example_gradients(module, arrays, candidates, device=device):
        flat = _flat(gradients, names)
        norms = flat.double().norm(dim=1).clamp_min(torch.finfo(flat.dtype).tiny)
        cosines[:, rows] = (-(matrix @ flat.T).double() / norms).cpu().numpy()
    return list(zip(directions, cosines, strict=True))


def _flat_update(
    view: TraceView, server_round: int, client: int, names: list[str]
) -> NDArray[np.float64]:
    update = view.client_update(server_round, client)
    return np.concatenate([update[name].ravel() for name in names])


def _flat(gradients: Gradients, names: list[str]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten(1) for name in names], dim=1)


def _names(module: torch.nn.Module, layers: list[str] | None) -> list[str]:
    known = [name for name, _ in module.named_parameters()]
    unknown = [name for name in layers or [] if name not in known]
    if unknown:
        raise InputError(
            "layers", unknown[0], "the model has no such parameter", f"It has: {', '.join(known)}"
        )
    return layers or known


def _run(given: AttackInput) -> MembershipScores:
    scores = cosine_scores(
        given.view,
        require_candidates(given),
        layers=given.settings.layers,
        device=given.device,
    )
    return MembershipScores(scores, tuple(given.view.unusable))


ATTACK = AttackSpec(
    name="cosine",
    kind="membership",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://openreview.net/forum?id=QsCSLPP55Ku",
    summary="A client's update points along the gradients of its own records",
    settings=Settings,
)
