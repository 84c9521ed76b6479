"""Sums of updates: what a client, a coalition or a server behind secure aggregation sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_audit.errors import ObservationError
from fl_audit.files import Arrays
from fl_audit.threat_model import PRESETS, Knowledge, ThreatModel
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

COUNTS = {0: 10, 1: 30, 2: 60}


@pytest.fixture
def trace(tmp_path: Path) -> tuple[Trace, Arrays, dict[int, Arrays]]:
    """One round of weighted averaging over three clients; a fourth one fails."""
    rng = np.random.default_rng(20_261_125)
    model = {"w": rng.normal(size=(3, 4)).astype(np.float32), "count": np.array([1])}
    replies: dict[int, Arrays] = {
        client: {
            "w": model["w"] + rng.normal(size=(3, 4)).astype(np.float32),
            "count": model["count"],
        }
        for client in COUNTS
    }
    mean = sum(COUNTS[c] / 100 * replies[c]["w"].astype(np.float64) for c in COUNTS)
    writer = TraceWriter(tmp_path / "trace")
    writer.begin_round(1, model, [0, 1, 2, 3])
    sent = [Reply(c, replies[c], {"num-examples": COUNTS[c]}) for c in COUNTS]
    writer.add_replies(1, [*sent, Reply(3, None, error_code=1, error_reason="failed")])
    writer.end_round(1, {"w": np.asarray(mean, np.float32), "count": model["count"]}, {})
    writer.close()
    return Trace.open(tmp_path / "trace"), model, replies


def coalition(*clients: int) -> ThreatModel:
    return replace(PRESETS["coalition"], controls=clients)


def test_a_server_behind_secure_aggregation_sees_the_mean_update(
    trace: tuple[Trace, Arrays, dict[int, Arrays]],
) -> None:
    seen, model, replies = trace
    view = TraceView(seen, PRESETS["secure-aggregation-server"])
    update = view.sum_update(1)
    assert update is not None
    assert list(update) == ["w"]  # counters are not updates
    expected = sum(COUNTS[c] / 100 * (replies[c]["w"] - model["w"]) for c in COUNTS)
    np.testing.assert_allclose(update["w"], expected, atol=1e-6)
    assert view.honest_set(1) == 3


def test_a_coalition_subtracts_its_own_updates(
    trace: tuple[Trace, Arrays, dict[int, Arrays]],
) -> None:
    seen, model, replies = trace
    view = TraceView(seen, coalition(0))
    update = view.sum_update(1)
    assert update is not None
    expected = (0.3 * (replies[1]["w"] - model["w"]) + 0.6 * (replies[2]["w"] - model["w"])) / 0.9
    np.testing.assert_allclose(update["w"], expected, atol=1e-5)
    assert view.honest_set(1) == 2


def test_all_but_one_colluding_see_the_last_ones_update(
    trace: tuple[Trace, Arrays, dict[int, Arrays]],
) -> None:
    """An honest set of one is the curious server: secure aggregation hides nothing."""
    seen, model, replies = trace
    view = TraceView(seen, coalition(0, 2))
    update = view.sum_update(1)
    assert update is not None
    np.testing.assert_allclose(update["w"], replies[1]["w"] - model["w"], atol=1e-5)
    assert view.honest_set(1) == 1


def test_nobody_honest_leaves_nothing(trace: tuple[Trace, Arrays, dict[int, Arrays]]) -> None:
    view = TraceView(trace[0], coalition(0, 1, 2))
    assert view.sum_update(1) is None
    assert view.honest_set(1) == 0


def test_a_coalition_sees_its_own_updates_and_no_others(
    trace: tuple[Trace, Arrays, dict[int, Arrays]],
) -> None:
    view = TraceView(trace[0], coalition(0))
    assert view.client_update(1, 0)["w"].any()
    with pytest.raises(ObservationError, match="client-updates"):
        view.client_update(1, 1)


def test_weights_in_the_sum_must_be_known_to_subtract(
    trace: tuple[Trace, Arrays, dict[int, Arrays]],
) -> None:
    ignorant = replace(coalition(0), knows=Knowledge.LABELS)
    with pytest.raises(ObservationError, match="example-counts"):
        TraceView(trace[0], ignorant).sum_update(1)


def test_the_server_has_the_sum_and_not_only_the_step_that_came_of_it(tmp_path: Path) -> None:
    """A server optimizer or noise comes after the sum: the server's seat sees what came before."""
    rng = np.random.default_rng(20_261_125)
    model: Arrays = {"w": rng.normal(size=(3, 4)).astype(np.float32)}
    replies: dict[int, Arrays] = {
        client: {"w": model["w"] + rng.normal(size=(3, 4)).astype(np.float32)} for client in COUNTS
    }
    writer = TraceWriter(tmp_path / "trace")
    writer.begin_round(1, model, list(COUNTS))
    writer.add_replies(1, [Reply(c, replies[c], {"num-examples": COUNTS[c]}) for c in COUNTS])
    writer.end_round(1, {"w": rng.normal(size=(3, 4)).astype(np.float32)}, {})
    writer.close()
    seen = Trace.open(tmp_path / "trace")
    server = TraceView(seen, PRESETS["secure-aggregation-server"], averages=False)
    update = server.sum_update(1)
    assert update is not None
    expected = sum(COUNTS[c] / 100 * (replies[c]["w"] - model["w"]) for c in COUNTS)
    np.testing.assert_allclose(update["w"], expected, atol=1e-6)
    assert server.sum_caveat is None
    client = TraceView(seen, PRESETS["curious-client"], averages=False)
    step = client.sum_update(1)
    assert step is not None
    assert np.abs(step["w"] - expected).max() > 0.1
    assert client.sum_caveat is not None
    assert TraceView(seen, PRESETS["curious-client"]).sum_caveat is None
