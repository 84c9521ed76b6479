"""Population attack: shares counted directly, globally, per class and per group; and on targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import rankdata

from attacks.membership.population import ATTACK, Settings, population_scores
from attacks.membership.signals import SIGNALS
from attacks.shadows.lab import Lab
from attacks.shadows.target import Target, Task
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.stats import auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
WAYS: list[dict[str, Any]] = [{}, {"per": "class"}, {"signal": "modified_entropy"}]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Functions that a user might name."""
    (tmp_path / "fl_audit_test_groups.py").write_text(
        "import numpy as np\n"
        "def small(inputs, labels): return labels < 5\n"
        "def positive(inputs, labels): return labels > 0\n"
        "def by_label(inputs, labels): return labels\n"
        "def dark(inputs, labels): return (inputs.sum(axis=1) < 19.5).astype(int)\n"
        "def each(inputs, labels): return np.arange(len(labels))\n"
        "def real(inputs, labels): return labels / 2\n"
        "def short(inputs, labels): return labels[1:]\n"
        "def broken(inputs, labels): return 1 / 0\n"
        "def margin(logits, labels): return np.sort(logits)[..., -1] - np.sort(logits)[..., -2]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "fl_audit_test_groups"


def regression_lab() -> Lab:
    """A model that answers the input itself; targets are elsewhere."""
    rng = np.random.default_rng(SEED)
    inputs = rng.normal(size=(60, 1)).astype(np.float32)
    targets = (inputs[:, 0] + rng.normal(size=60)).astype(np.float32)
    labels = np.zeros(60, dtype=np.int64)
    pool = Records(np.arange(60), inputs, labels, targets)
    workshop = Workshop(pool, 20, Task("regression", 2), trainer=None, train_size=10, seed=0)
    return Lab(workshop, Target(lambda x: x), np.arange(20), np.arange(20, 60))


def run_on(lab: Lab, **settings: Any) -> NDArray[np.float64]:
    rng = np.random.default_rng(SEED)
    given = AttackInput(view=None, settings=Settings(**settings), rng=rng, lab=lab)  # type: ignore[arg-type]
    output = ATTACK.run(given)
    assert isinstance(output, MembershipScores)
    return output.scores


# -- arithmetic ----------------------------------------------------------------------------------


def test_score_is_the_share_with_a_lower_signal() -> None:
    population = np.array([1.0, 2.0, 2.0, 3.0])
    np.testing.assert_array_equal(population_scores(np.array([2.0, 3.0]), population), [0.5, 0.875])


def test_groups_are_ranked_in_their_own_population() -> None:
    """A constant added to one group's signals changes nothing."""
    rng = np.random.default_rng(SEED)
    values, population = rng.normal(size=40), rng.normal(size=300)
    own, theirs = rng.integers(3, size=40), rng.integers(3, size=300)
    groups = (own, theirs)
    scores = population_scores(values, population, groups=groups)
    for group in range(3):
        alone = population_scores(values[own == group], population[theirs == group])
        np.testing.assert_array_equal(scores[own == group], alone)
    moved = population_scores(
        values + 9 * (own == 1), population + 9 * (theirs == 1), groups=groups
    )
    np.testing.assert_allclose(moved, scores, atol=1e-12)


def test_scores_of_groups_compare() -> None:
    """Each is 1 minus a false-positive rate, so non-members' are uniform in every group."""
    rng = np.random.default_rng(SEED)
    theirs, own = rng.integers(2, size=20_000), rng.integers(2, size=4000)
    population = rng.normal(size=20_000) * (1 + 9 * theirs) + 5 * theirs
    values = rng.normal(size=4000) * (1 + 9 * own) + 5 * own
    scores = population_scores(values, population, groups=(own, theirs))
    for group in range(2):
        # the share of about 2,000 has deviation 0.0074, the threshold's of 10,000 included: over
        # five of them, so the false-failure rate is below 1e-6
        assert abs(np.mean(scores[own == group] > 0.9) - 0.1) < 6 * np.sqrt(0.09 / 1800)


def test_a_group_with_too_few_records_is_named_with_the_remedy() -> None:
    groups = (np.array([0, 7]), np.repeat([0, 7, 8], [10, 9, 1]))
    with pytest.raises(InputError, match=r"class 7 = 9: at least 10 .* per = \"global\""):
        population_scores(np.zeros(2), np.arange(20.0), groups=groups, kind="class")
    groups[0][1] = 0  # a class that nobody asks about may be small
    assert len(population_scores(np.zeros(2), np.arange(20.0), groups=groups)) == 2


# -- on targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", sorted(SIGNALS))
def test_global_ranks_records_as_their_signal_does(overfitted: Any, signal: str) -> None:
    _, output = overfitted.run(ATTACK, signal=signal)
    lab = overfitted.candidates
    values = SIGNALS[signal](lab.logits(), lab.candidates.labels)
    np.testing.assert_array_equal(rankdata(output.scores), rankdata(values))


@pytest.mark.parametrize("settings", WAYS)
def test_null_candidates_look_alike(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, output = memorised.run(ATTACK, part="null", **settings)
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("settings", WAYS)
def test_members_stand_out(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, output = memorised.run(ATTACK, **settings)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_groups_by_label_are_classes(memorised: Any, module: str) -> None:
    by_class = memorised.run(ATTACK, per="class")[1]
    by_label = memorised.run(ATTACK, per="group", group_by=f"{module}:by_label")[1]
    np.testing.assert_array_equal(by_class.scores, by_label.scores)
    assert "each record with its own class" in by_class.notes[0]


@pytest.mark.parametrize("name", ["small", "dark"])
def test_users_groups_may_use_labels_and_inputs(memorised: Any, module: str, name: str) -> None:
    found = memorised.run(ATTACK, per="group", group_by=f"{module}:{name}")[1].scores
    assert not np.array_equal(found, memorised.run(ATTACK)[1].scores)


def test_a_users_signal_is_asked(memorised: Any, module: str) -> None:
    _, output = memorised.run(ATTACK, signal=f"{module}:margin")
    top = np.sort(memorised.candidates.logits(), axis=1)
    np.testing.assert_array_equal(rankdata(output.scores), rankdata(top[:, -1] - top[:, -2]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("each", "population records of group"),
        ("real", "one integer a record"),
        ("short", "one integer a record"),
        ("broken", "raised ZeroDivisionError"),
        ("missing", "cannot be imported"),
    ],
)
def test_bad_groups_say_what_is_wrong(memorised: Any, module: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        memorised.run(ATTACK, per="group", group_by=f"{module}:{name}")


def test_regression_records_rank_by_squared_error() -> None:
    lab = regression_lab()
    records = lab.candidates
    assert records.targets is not None
    error = np.abs(records.inputs[:, 0] - records.targets)
    np.testing.assert_array_equal(rankdata(run_on(lab)), rankdata(-error))


def test_regression_has_groups_by_target_but_no_classes(module: str) -> None:
    lab = regression_lab()
    with pytest.raises(InputError, match="a regression has no classes"):
        run_on(lab, per="class")
    grouped = run_on(lab, per="group", group_by=f"{module}:positive")
    both = [(r.inputs[:, 0], np.asarray(r.targets)) for r in (lab.candidates, lab.auxiliary)]
    own, theirs = (targets > 0 for _, targets in both)
    errors = [np.abs(answers - targets) for answers, targets in both]
    for group in (False, True):
        lower = errors[0][own == group, None] < errors[1][theirs == group]
        np.testing.assert_allclose(
            grouped[own == group], lower.mean(axis=1), rtol=0, atol=0.5 / lower.shape[1]
        )
    with pytest.raises(InputError, match="does not say how sure"):
        run_on(lab, signal="entropy")


def test_too_few_auxiliary_records_are_refused(memorised: Any) -> None:
    lab = memorised.candidates
    few = Lab(lab.workshop, lab.target, lab.rows, lab.population[:19])
    with pytest.raises(InputError, match="auxiliary records = 19"):
        run_on(few)


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"per": "group"}, {"group_by": "a:b"}, {"per": "class", "group_by": "a:b"}]
)
def test_groups_and_their_function_go_together(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="go together"):
        Settings(**settings)


def test_an_unknown_signal_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="Did you mean 'entropy'"):
        Settings(signal="entrpy")
