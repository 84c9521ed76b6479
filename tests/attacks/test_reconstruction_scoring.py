"""Claims beside the truth and beside a guess: every figure worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attacks.reconstruction_measures import guess
from attacks.reconstruction_scoring import score_reconstruction
from fl_audit.attack_spec import Reconstruction, Reconstructions
from fl_audit.errors import InputError
from fl_audit.game import GameRules, GameTruth, MembershipGame
from fl_audit.records import Records
from fl_audit.report.verdict import verdict
from fl_audit.results import ReconstructionResult
from fl_audit.targets import ClientTargets, Target, Targets, targets_of

RULES = GameRules(decided_by="lot", non_members_per_member=1, groups=1, null_groups=0)
HEADER: dict[str, Any] = {
    "label": "x",
    "attack": "x",
    "seed": 0,
    "settings": {},
    "requires": [],
    "knows": [],
    "reference": "https://example.org",
    "summary": "",
    "rounds": [1],
}
RNG = np.random.default_rng(20_261_125)
NONE = np.zeros(0, dtype=np.bool_)


def records(inputs: Any, labels: Any = None) -> Records:
    array = np.asarray(inputs, dtype=np.float32)
    classes = np.zeros(len(array), np.int64) if labels is None else np.asarray(labels)
    return Records(np.arange(len(array)), array, classes)


def game(auxiliary: Records, candidates: Records | None = None) -> MembershipGame:
    nothing = auxiliary.take([])
    return MembershipGame(RULES, candidates or nothing, nothing, auxiliary, num_classes=4)


def scored(
    claims: Any, targets: Any, auxiliary: Records | None = None, **more: Any
) -> ReconstructionResult:
    fields = {k: more.pop(k) for k in ("contents", "expected", "tried") if k in more}
    header = HEADER | {k: more.pop(k) for k in ("knows",) if k in more}
    held = targets if isinstance(targets, Targets) else targets_of(targets)
    return score_reconstruction(
        Reconstructions(tuple(claims), **fields),
        header,
        game=None if auxiliary is None else game(auxiliary),
        truth=GameTruth(NONE, np.zeros(0, np.int64), NONE, held),
        **more,
    )


def target(server_round: int, inputs: Any, labels: Any = None, client: int = 0) -> Target:
    own = records(inputs, labels)
    return Target(server_round, client, own.inputs, own.labels)


def values(result: ReconstructionResult) -> dict[str, float]:
    return {name: estimate.value for name, estimate in result.record.metrics.items()}


ORIGINALS = np.array([[0.0, 0], [1, 1], [0.5, 0]])
ONE, TWO = target(1, ORIGINALS, [0, 1, 1]), target(2, ORIGINALS, [0, 1, 1])


def test_order_does_not_matter_and_an_update_is_one_trial() -> None:
    claims = [Reconstruction(n, 0, ORIGINALS[[2, 0, 1]], np.array([1, 2])) for n in (1, 2)]
    result = scored(claims, [ONE, TWO])
    metrics = result.record.metrics
    for name, value in {"psnr_db": 150, "exact": 1, "recovered": 1, "label_overlap": 1}.items():
        assert metrics[name].value == value
        assert metrics[name].n == 2
    assert metrics["psnr_db"].high == 150
    found = result.arrays["round_0001/client_0/reconstruction"]
    assert (found == result.arrays["round_0001/client_0/original"]).all()


def test_a_record_without_a_claim_counts_as_not_found() -> None:
    """PSNR is of the pairs; every share is of all originals."""
    off = ORIGINALS[[1]] - 0.05  # 26 dB: recognised, not recovered
    claims = [
        Reconstruction(1, 0, np.concatenate([ORIGINALS[[0]], off])),
        Reconstruction(2, 0, np.empty((0, 2))),
    ]
    result = scored(claims, [ONE, TWO])
    metrics = result.record.metrics
    assert metrics["recovered"].value == pytest.approx((1 / 3 + 0) / 2)
    assert metrics["recovered_20"].value == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["exact"].value == pytest.approx(1 / 6)
    assert metrics["exact"].n == 2
    psnr = (150 - 20 * np.log10(0.05)) / 2
    assert result.record.refused["psnr_db"].endswith(f"found: {psnr:.4g}")
    assert result.arrays["round_0001/client_0/psnr_db"].shape == (2,)
    assert result.arrays["round_0001/client_0/original"].shape == (3, 2)  # all of them are shown


def test_more_claims_than_originals_cannot_lower_or_raise_a_share_above_one() -> None:
    many = np.concatenate([ORIGINALS, np.full((5, 2), 0.2)])
    result = scored([Reconstruction(n, 0, many) for n in (1, 2)], [ONE, TWO])
    assert values(result)["recovered"] == 1
    assert result.arrays["round_0001/client_0/reconstruction"].shape == (8, 2)


def test_the_guess_is_paired_and_measured_in_the_same_way() -> None:
    auxiliary = records([[0.2, 0], [0.8, 0]], [1, 1])
    claims = [Reconstruction(n, 0, ORIGINALS[[1]], np.array([0, 3])) for n in (1, 2)]
    record = scored(claims, [ONE, TWO], auxiliary).record
    assert record.baseline["psnr_db"].value == 150  # the mean (0.5, 0) is the third original
    assert record.baseline["recovered"].value == pytest.approx(1 / 3)
    assert record.baseline["label_overlap"].value == pytest.approx(2 / 3)  # all of class 1
    assert record.metrics["label_overlap"].value == pytest.approx(2 / 3)
    assert verdict(record) == "no better than a guess at this power"


def test_claiming_many_of_every_class_is_no_overlap() -> None:
    record = scored([Reconstruction(1, 0, label_counts=np.array([3, 3]))], [ONE]).record
    assert record.metrics["label_overlap"].value == pytest.approx(3 / 6)
    beyond = scored([Reconstruction(1, 0, label_counts=np.array([1]))], [ONE]).record
    assert beyond.metrics["label_overlap"].value == pytest.approx(1 / 3)


def test_a_sum_is_compared_with_all_that_its_clients_used() -> None:
    used = np.array([[True, True, False], [True, True, True]])
    clients = [
        ClientTargets(c, ORIGINALS.astype(np.float32) / (c + 1), np.array([0, 1, 1]), used)
        for c in (0, 1)
    ]
    union = np.concatenate([ORIGINALS[:2], ORIGINALS[:2] / 2])
    claim = Reconstruction(1, -1, union, np.array([2, 2]), behind=(0, 1))
    result = scored([claim], Targets(clients))
    assert values(result)["exact"] == values(result)["label_overlap"] == 1
    assert result.arrays["round_0001/sum/original"].shape == (4, 2)
    half = scored([Reconstruction(1, -1, union[:2], behind=(0, 1))], Targets(clients))
    assert values(half)["exact"] == 0.5
    unknown = scored([Reconstruction(1, -1, union, behind=(0, 1, 9))], Targets(clients))
    assert unknown.record.metrics == {}
    assert "round_0001/sum/original" not in unknown.arrays


def test_updates_without_a_truth_are_kept_and_said() -> None:
    claims = [Reconstruction(1, 0, ORIGINALS), Reconstruction(3, 7, np.zeros((1, 2)))]
    result = scored(claims, [ONE])
    assert result.record.num_targets == 2
    assert "Of 1 updates the truth is not known" in result.record.notes[0]
    assert "round_0003/client_7/reconstruction" in result.arrays
    bare = score_reconstruction(
        Reconstructions((claims[1],)), HEADER, game=None, truth=None, features=None
    )
    assert bare.record.metrics == bare.record.refused == {}
    assert verdict(bare.record) == "claims only: no truth to compare with"


def test_two_claims_about_one_update_are_refused() -> None:
    with pytest.raises(InputError, match="one claim about an update"):
        scored([Reconstruction(1, 0, ORIGINALS)] * 2, [ONE])


def test_data_outside_the_unit_range_have_no_psnr() -> None:
    result = scored([Reconstruction(1, 0, ORIGINALS - 1)], [target(1, ORIGINALS - 1)])
    assert values(result)["exact"] == 1
    assert "recovered" not in result.record.metrics
    assert "[0, 1]" in result.record.refused["psnr_db"]


def test_pictures_have_ssim_and_tiny_ones_say_why_not() -> None:
    for side, has in ((8, True), (2, False)):
        pictures = RNG.random((2, 1, side, side)).astype(np.float32)
        targets = [target(n, pictures[[n - 1]]) for n in (1, 2)]
        claims = [Reconstruction(t.round, 0, t.inputs.astype(np.float64)) for t in targets]
        result = scored(claims, targets)
        assert ("ssim" in result.record.metrics) is has
        assert ("too small" in result.record.refused.get("ssim", "")) is not has
        if has:
            assert result.record.metrics["ssim"].value == pytest.approx(1)


def test_labels_are_counted_of_paired_records_and_of_all_originals() -> None:
    """Records and labels are right or wrong apart: the pairing goes by inputs."""
    claim = Reconstruction(1, 0, ORIGINALS[[1, 0]], labels=np.array([1, 1]))
    record = scored([claim], [ONE], records([[0.2, 0.2]] * 3, [1, 1, 0])).record
    assert record.metrics["label_accuracy"].value == pytest.approx(1 / 3)
    guessed = record.baseline["label_accuracy"].value  # class 1 for the two nearest to the guess
    assert guessed in (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_labels_that_were_granted_are_no_finding() -> None:
    """And a guess knows them, too: it has the mean record of each class."""
    auxiliary = records([[0.0, 0], [1, 1], [0.5, 0]], [0, 1, 1])
    claims = [
        Reconstruction(n, 0, ORIGINALS, np.array([1, 2]), labels=np.array([0, 1, 1]))
        for n in (1, 2)
    ]
    record = scored(claims, [ONE, TWO], auxiliary, knows=["labels"]).record
    assert not {"label_accuracy", "label_overlap"} & set(record.metrics)
    assert "granted" in record.refused["label_accuracy"]
    assert record.baseline["exact"].value == pytest.approx(1 / 3)  # class 0 has this one record


def test_theory_stands_beside_what_was_measured() -> None:
    result = scored([Reconstruction(1, 0, ORIGINALS)], [ONE], expected={"recovered": 0.896})
    assert result.record.expected == {"recovered": 0.896}


def test_tokens_by_hand() -> None:
    originals = [[5, 6, 7, 0], [8, 9, 0, 0]]
    targets = [target(n, originals, [0, 1]) for n in (1, 2)]
    found = np.array([[8.0, 9, 4, 0], [5, 6, 7, 0]])
    claims = [Reconstruction(n, 0, found, tokens=np.array([5, 6, 11, 12])) for n in (1, 2)]
    auxiliary = records([[5, 9, 9, 0], [5, 9, 3, 0], [5, 6, 9, 0]])
    record = scored(claims, targets, auxiliary, contents="tokens").record
    assert {n: pytest.approx(e.value) for n, e in record.metrics.items()} == {
        "exact": 1 / 2,
        "exact_tokens": 1.0,
        "rouge_1": (1 + 4 / 5) / 2,
        "rouge_2": (1 + 2 / 3) / 2,
        "token_precision": 2 / 4,
        "token_recall": 2 / 5,
        "re_identified@1": 1.0,
    }
    assert {"psnr_db", "ssim", "feature_distance"} & set(record.refused) == set()
    # the guess says 5 9 9 twice: of one original the first token is right, of the other the second
    assert record.baseline["exact_tokens"].value == pytest.approx((1 / 3 + 1 / 2) / 2)
    # 5 and 9 are in all three records, 3 and 6 in one each
    assert record.baseline["token_precision"].value == pytest.approx(3 / 4)


def test_tables_by_cell_row_and_column() -> None:
    known = [[0, 10, 0.0], [1, 20, 2.0]]  # a flag, a count, a measure of deviation 1
    originals = [[1, 12, 0.5], [0, 18, 1.5]]
    found = np.array([[0.9, 12.4, 0.55], [0.2, 17, 1.5]])
    record = scored(
        [Reconstruction(n, 0, found) for n in (1, 2)],
        [target(n, originals) for n in (1, 2)],
        records(known),
        contents="table",
    ).record
    assert record.metrics["exact_cells"].value == pytest.approx(5 / 6)
    assert record.metrics["exact_rows"].value == pytest.approx(1 / 2)
    assert [c.found.value for c in record.columns] == [1, 0.5, 1]
    assert [c.baseline.value for c in record.columns if c.baseline] == [0, 0, 0]
    assert "psnr_db" not in record.metrics


def test_the_true_original_is_told_from_the_others() -> None:
    auxiliary = records(RNG.random((30, 5)))
    originals = RNG.random((8, 5))
    targets = [target(n, originals[[n - 1]]) for n in range(1, 9)]
    near = originals + RNG.normal(scale=0.01, size=originals.shape)
    claims = [Reconstruction(n, 0, near[[n - 1]]) for n in range(1, 9)]
    record = scored(claims, targets, auxiliary).record
    assert record.metrics["re_identified@1"].value == 1
    assert record.metrics["median_rank"].value == 1
    assert record.beats_guess("median_rank")  # lower is better here
    assert record.baseline["re_identified@1"].value < 0.5
    assert "Ranks are among 38 records" in " ".join(record.notes)


def test_one_update_gives_its_values_and_no_interval() -> None:
    record = scored([Reconstruction(1, 0, ORIGINALS)], [ONE]).record
    assert record.metrics["exact"].low == pytest.approx(0.025)
    assert record.refused["psnr_db"] == "an interval needs 2 updates or more; found: 150"
    assert record.refused["median_rank"] == "an interval needs 6 updates or more; found: 1"


def test_the_distance_of_features_is_relative_to_the_original() -> None:
    claims = [Reconstruction(n, 0, ORIGINALS[1:] * (1.07 + n / 50)) for n in (1, 2)]
    targets = [target(n, ORIGINALS[1:]) for n in (1, 2)]
    auxiliary = records([[0.2, 0.2]] * 2)
    record = scored(claims, targets, auxiliary, features=lambda _, inputs: 3 * inputs).record
    assert record.metrics["feature_distance"].value == pytest.approx(0.1)
    assert record.beats_guess("feature_distance")

    def unknown(_: int, inputs: Any) -> Any:
        raise InputError("model", None, "nobody knows it", "Say which.")

    record = scored(claims, targets, auxiliary, features=unknown).record
    assert "nobody knows it" in record.refused["feature_distance"]


def test_what_led_to_a_claim_is_kept_in_its_order() -> None:
    """The second reconstruction fits no original: it comes last, and so does all it brings."""
    found = np.array([[0.5, 0], [0.8, 0.2], [1, 1]])
    claim = Reconstruction(
        1,
        0,
        found,
        labels=np.array([7, 8, 9]),
        objective=np.array([3.0, 1.0]),
        frames=np.stack([found * 0.1, found]),
        confidence=np.array([[0.7], [0.8], [0.9]]),
    )
    arrays = scored([claim], [target(1, found[[2, 0]], [9, 7])]).arrays
    own = {name.rpartition("/")[2]: array for name, array in arrays.items()}
    np.testing.assert_array_equal(own["reconstruction"], found[[0, 2, 1]])
    np.testing.assert_array_equal(own["original"], found[[0, 2]])
    assert own["labels"].tolist() == [7, 9, 8]
    assert own["original_labels"].tolist() == [7, 9]
    np.testing.assert_array_equal(own["frames"][1], own["reconstruction"])
    assert own["confidence"][:, 0].tolist() == [0.7, 0.9, 0.8]
    assert own["objective"].tolist() == [3, 1]
    assert own["psnr_db"].tolist() == [150, 150]


def test_the_guess_says_as_much_as_the_claim() -> None:
    auxiliary = records([[0.0, 1], [1, 1], [1, 1]], [0, 2, 2])
    claim = Reconstruction(1, 5, np.zeros((4, 2)), np.array([3, 0, 0, 0]), np.zeros(4, np.int64))
    said = guess(claim, auxiliary, "numbers")
    assert said.inputs is not None
    assert said.label_counts is not None
    assert said.labels is not None
    np.testing.assert_allclose(said.inputs, [[2 / 3, 1]] * 4)
    assert said.label_counts.tolist() == [1, 0, 2, 0]
    assert said.labels.tolist() == [2, 2, 2, 2]


def test_rows_of_as_many_values_take_the_shape_of_records() -> None:
    """What a dense layer receives is flat, and so is what is read off its gradient."""
    pictures = RNG.random((2, 1, 4, 4)).astype(np.float32)
    flat = pictures.reshape(2, 16).astype(np.float64)
    claim = Reconstruction(1, 0, flat, frames=flat[None], confidence=np.ones((2, 1)))
    result = scored([claim], [target(1, pictures)])
    assert values(result)["exact"] == 1
    assert result.arrays["round_0001/client_0/reconstruction"].shape == (2, 1, 4, 4)
    assert result.arrays["round_0001/client_0/frames"].shape == (1, 2, 1, 4, 4)
    assert result.arrays["round_0001/client_0/confidence"].shape == (2, 1, 4, 4)
    with pytest.raises(InputError, match="a record of this client has shape"):
        scored([Reconstruction(1, 0, flat[:, :15])], [target(1, pictures)])


def test_an_update_tried_in_vain_counts_as_nothing_found() -> None:
    """Two sums of three records; one record is found in one, nothing in the other: 1 of 6."""
    used = np.ones((2, 3), np.bool_)
    held = Targets([ClientTargets(4, ORIGINALS.astype(np.float32), np.array([0, 1, 1]), used)])
    claim = Reconstruction(1, -1, ORIGINALS[[1]], np.array([0, 1]), behind=(4,))
    auxiliary = records([[0.2, 0], [0.8, 0]], [1, 1])
    more = {"tried": ((1, -1, (4,)), (2, -1, (4,))), "expected": {"recovered": 0.2}}
    record = scored([claim], held, auxiliary, **more).record
    assert (record.num_targets, record.num_tried) == (1, 2)
    for name in ("recovered", "recovered_20", "exact", "exact_8bit", "re_identified@1"):
        assert (record.metrics[name].value, record.metrics[name].n) == (pytest.approx(1 / 6), 2)
    assert record.metrics["label_overlap"].value == pytest.approx(1 / 6)
    assert record.refused["psnr_db"].endswith("found: 150")  # of the one claim alone
    assert record.baseline["recovered"].value == pytest.approx(1 / 6)  # (0.5, 0), and no guess
    assert record.leading == "recovered"
    assert "1 of 2 updates that were tried gave no claim" in " ".join(record.notes)
    alone = scored([claim], held, auxiliary).record
    assert alone.metrics["recovered"].value == pytest.approx(1 / 3)


def test_a_claim_about_an_update_that_was_not_tried_is_refused() -> None:
    with pytest.raises(InputError, match="that was tried"):
        scored([Reconstruction(1, 0, ORIGINALS)], [ONE], tried=((2, 0, (0,)),))


def test_tokens_without_a_sequence_are_no_sequence() -> None:
    """One claim gives the sequence, one its tokens alone, and one update gives nothing."""
    targets = [target(n, [[5, 6, 7, 0]]) for n in (1, 2, 3)]
    tokens = np.array([5, 6, 8])
    claims = [
        Reconstruction(1, 0, np.array([[5.0, 6, 7, 0]]), tokens=tokens),
        Reconstruction(2, 0, tokens=tokens),
    ]
    tried = tuple((n, 0, (0,)) for n in (1, 2, 3))
    found = scored(claims, targets, contents="tokens", tried=tried).record.metrics
    assert found["rouge_1"].value == found["exact"].value == pytest.approx(1 / 3)
    assert found["token_recall"].value == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert (found["token_precision"].value, found["token_precision"].n) == (pytest.approx(2 / 3), 2)


def test_exact_has_a_criterion_for_float64_and_one_for_8_bits() -> None:
    """Errors 1e-7, 1e-5 and 0.003: one is below 1e-6, two are below 1/510 = 0.00196."""
    errors = np.array([[1e-7, 0], [-1e-5, 0], [0, 0.003]])
    found = values(scored([Reconstruction(1, 0, ORIGINALS + errors)], [ONE]))
    assert found["exact"] == pytest.approx(1 / 3)
    assert found["exact_8bit"] == pytest.approx(2 / 3)
    beyond = values(scored([Reconstruction(1, 0, ORIGINALS * 2)], [target(1, ORIGINALS * 2)]))
    assert "exact_8bit" not in beyond
