"""The page of an audit of a trained model: what it says, and what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from fl_audit.report.html import render_html
from fl_audit.report.model import AuditReport
from fl_audit.report.verdict import verdict

Limits = tuple[float, float, float]
TextOf = Callable[[AuditReport], str]
ReadPage = Callable[[str], Any]
Spoil = Callable[[Any, str], Any]
NOTHING = "no leakage detected by this attack at this power"


def estimate(low: float, value: float, high: float, n: int = 400) -> dict[str, float]:
    return {"low": low, "value": value, "high": high, "confidence": 0.95, "n": n}


def histogram(*members: float) -> dict[str, list[float]]:
    edges = [i / len(members) for i in range(len(members) + 1)]
    return {"edges": edges, "members": list(members), "non_members": list(reversed(members))}


def metrics(auc: Limits = (0.6, 0.7, 0.8), **more: Any) -> dict[str, Any]:
    return {
        "num_members": 200,
        "num_non_members": 200,
        "metrics": {"auc": estimate(*auc), "tpr@fpr=0.1": estimate(0.05, 0.2, 0.4)} | more,
        "roc": {"fpr": [0, 0.1, 1], "tpr": [0, 0.4, 1]},
    }


def decisions(auc: float = 0.65) -> dict[str, Any]:
    return {
        "calibrated_on": "a shadow model",
        "prior": 0.5,
        "fpr": 0.01,
        "threshold": 1.25,
        "calibration_auc": estimate(auc - 0.05, auc, auc + 0.05, 480),
        "num_called": 33,
    }


def details(access: str = "confidences", **changes: Any) -> dict[str, Any]:
    exposed = {"label": 3, "score": 2.5, "probability": 0.875, "is_member": True}
    slices = [{"label": c, "num_members": 20, "num_non_members": 21} for c in (0, 1, 2)]
    aucs = [estimate(0.4, 0.5, 0.6, 41), estimate(0.7, 0.8, 0.9, 41), None]
    return {
        "access": access,
        "most_exposed": [{**exposed, "id": 77}, {**exposed, "id": 78}],
        "per_class": [{**s, "auc": a} for s, a in zip(slices, aucs, strict=True)],
        "histogram": histogram(0.1, 0.2, 0.7),
        "histogram_per_class": {str(c): histogram(0.5, 0.5) for c in (0, 1, 2)},
        **changes,
    }


def attack(label: str = "lira", **changes: Any) -> dict[str, Any]:
    return {
        "kind": "membership",
        "label": label,
        "attack": "lira",
        "seed": 0,
        "settings": {"num_shadow_models": 16},
        "requires": ["logits"],
        "knows": ["labels"],
        "reference": "https://arxiv.org/abs/2112.03570",
        "summary": "Likelihood ratio",
        "rounds": [],
        "notes": ["16 shadow models."],
        "result": metrics(balanced_accuracy=estimate(0.56, 0.64, 0.72)),
        "null": metrics((0.4, 0.5, 0.6)),
        "null_holds": True,
        "decisions": decisions(),
        "details": details(),
        "scores_file": f"{label}.parquet"[-200:],
        **changes,
    }


def of_level(label: str, access: str) -> dict[str, Any]:
    return attack(label, details=details(access))


def utility(label: int | None, **changes: Any) -> dict[str, Any]:
    return {
        "label": label,
        "train_accuracy": estimate(0.97, 0.99, 1.0, 200),
        "test_accuracy": estimate(0.86, 0.91, 0.95, 200),
        "accuracy_gap": estimate(0.01, 0.08, 0.14),
        "train_loss": estimate(0.05, 0.0659, 0.083, 200),
        "test_loss": estimate(0.18, 0.26, 0.34, 200),
        **changes,
    }


def pair(first: str, second: str) -> dict[str, Any]:
    found = {"both": 20, "only_first": 11, "only_second": 5, "neither": 164}
    return {"first": first, "second": second, **found}


GAIN = {
    "less": "labels",
    "more": "confidences",
    "less_attack": "gap",
    "more_attack": "lira",
    "gain": estimate(0.05, 0.125, 0.2),
}
MODEL: dict[str, Any] = {
    "target": "Sequential, 9,610 parameters",
    "task": "classification",
    "game": "of this model: its members against others",
    "notes": ["Audited in eval mode."],
    "num_members": 200,
    "num_non_members": 201,
    "num_null": 80,
    "num_auxiliary": 1317,
    "auxiliary_from": "a second data set",
    "trainer": "default trainer: adam",
    "shadow_models": {"online": 16, "offline": 8},
    "utility": [utility(None), utility(0), utility(1)],
    "gradient_norms": histogram(0.3, 0.7),
    "agreement": [pair("gap", "lira")],
    "agreement_fpr": 0.01,
    "gains": [GAIN],
}
RULES = {"decided_by": "rows as given", "non_members_per_member": 1, "groups": 9, "null_groups": 8}
REPORT: dict[str, Any] = {
    "run": {
        "title": "A model",
        "created": "2026-01-01T00:00:00+00:00",
        "state": "done",
        "seed": 7,
        "engine": "none: a trained model",
        "versions": {"fl-audit": "0.1.0"},
        "threat_model": {
            "who": "observer",
            "activity": "honest-but-curious",
            "sees": ["final-model"],
            "knows": ["labels"],
        },
        "strategy": {},
        "defence": {},
        "model": None,
        "data": {"num_classes": 3},
    },
    "trace": None,
    "game": {
        "rules": {**RULES, "notes": []},
        "num_candidates": 401,
        "num_null": 80,
        "num_auxiliary": 1317,
    },
    "attacks": [of_level("lira", "confidences"), of_level("gap", "labels")],
    "not_tested": [{"attack": "rmia", "summary": "Ratios", "needs": "logits"}],
    "model": MODEL,
}


def make_report(model: dict[str, Any] | None = None, **changes: Any) -> AuditReport:
    return AuditReport.model_validate({**REPORT, "model": {**MODEL, **(model or {})}, **changes})


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found is not None
    return found[0]


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(make_report())


@pytest.fixture
def text(page: str, read_page: ReadPage) -> str:
    found: str = read_page(page).text
    return found


def test_what_was_audited_is_said_with_every_figure_and_its_interval(text: str) -> None:
    assert "on a trained model, Sequential, 9,610 parameters :" in text
    assert "the privacy loss of this model: its members against others." in text
    assert "tell the 200 records it was trained on from 201 others" in text
    assert "80 records that nobody trained on" in text
    assert "1317 records: a second data set" in text
    assert "16 online (each trained on a random half of the audited records)" in text
    assert "8 offline (trained on auxiliary records only)" in text
    assert "how they were trained default trainer: adam" in text
    assert "Audited in eval mode." in text
    row = (
        "0.990 95 %: 0.970 to 1.000 n = 200 0.910 95 %: 0.860 to 0.950 n = 200 "
        "+0.080 95 %: +0.010 to +0.140 n = 400 0.0659 95 %: 0.05 to 0.083 n = 200 "
        "0.26 95 %: 0.18 to 0.34 n = 200"
    )
    for who in ("all", "class 0", "class 1"):
        assert f"{who} {row}" in text
    assert "How strongly each record pulls on the model" in text


def test_who_is_at_risk_is_said_record_by_record_and_class_by_class(text: str) -> None:
    assert "score is above 1.25" in text
    assert "33 of 400 records (200 members, 200 non-members)" in text
    assert "at most 1 % of records known to be no members" in text
    assert "of the non-members here that would be 2" in text
    assert "set on a shadow model" in text
    assert "AUC where it was set 0.650 95 %: 0.600 to 0.700 n = 480" in text
    assert "prior 0.5: probabilities hold" in text
    assert "1 77 3 2.5 0.875 2 78 3 2.5 0.875" in text
    assert "in 1 of 3 classes the whole interval lies above chance" in text
    first, second, last = "1 20 21 0.800 95 %: 0.700 to 0.900", "0 20 21 0.500", "2 20 21 too few"
    assert text.index(first) < text.index(second) < text.index(last)
    assert "77 3 1 2 of 2 gap, lira" in text
    assert "balanced accuracy 0.640 95 %: 0.560 to 0.720 n = 400" in text


def test_attacks_stand_by_access_and_what_more_of_it_gains(page: str, text: str) -> None:
    assert "+0.125 95 %: +0.050 to +0.200 n = 400 Labels only gap Confidences lira" in text
    results = section(page, "results")
    places = [results.index(word) for word in ("<b>Labels only</b>", ">gap<", "<b>Confidences</b>")]
    assert places == sorted(places)
    assert section(page, "curves").count('class="level"') == 3  # two levels, and what to compare to


def test_only_what_applies_to_a_model_is_on_its_page(page: str, text: str) -> None:
    assert "Done. 2 attacks" in text
    assert "fl-audit model audit.toml --out DIR" in text
    federated = [
        "Federation",
        "Local training",
        "Reconstructed records",
        "PSNR",
        "strategy",
        "scenario.toml",
    ]
    federated += ["planned", "rounds it could see", "What was recorded", "9 groups"]
    for word in federated:
        assert word not in text, word
    assert "Attacks that tamper with the training data or with training." in text
    assert "The last five are not in this version’s report." in text
    assert "Who: anybody who holds the released model, or anybody who may ask" in text
    assert text.count("a server that sees") == 0
    for term in ("generalisation gap", "balanced accuracy", "membership probability", "decision"):
        assert f"<dt>{term}" in page
    for term in ("access", "game", "shadow model", "auxiliary record", "null control"):
        assert f"<dt>{term}</dt>" in page


def test_a_federated_page_says_nothing_of_a_model(text_of: TextOf) -> None:
    run = {**REPORT["run"], "engine": "local", "planned_rounds": 6, "num_clients": 5}
    text = text_of(AuditReport.model_validate({**REPORT, "model": None, "run": run}))
    for word in ("What was audited", "generalisation gap", "audit.toml", "What more access gains"):
        assert word not in text
    assert "Who is at risk" in text
    assert "Local training" in text


def test_a_model_run_without_its_summary_is_still_no_federation(text_of: TextOf) -> None:
    text = text_of(AuditReport.model_validate({**REPORT, "model": None}))
    assert "This report was made without its description." in text
    assert "Federation" not in text


def test_nothing_loads_and_all_references_resolve(page: str, read_page: ReadPage) -> None:
    assert page == render_html(make_report())
    levels = ["labels", "confidences", "white box", "updates"]
    attacks = [of_level(f"a{i}", levels[i % 4]) for i in range(20)]
    for content in (page, render_html(make_report(attacks=attacks))):
        parsed = read_page(content)
        ids = parsed.values("id")
        assert len(ids) == len(set(ids))
        assert {v[1:] for v in parsed.values("href") if v.startswith("#")} <= set(ids)
        assert set(parsed.values("aria-labelledby")) <= set(ids)
        assert set(re.findall(r"url\(#([^)]*)\)", content)) <= set(ids)
        assert {tag for tag, _ in parsed.elements}.isdisjoint({"script", "iframe", "form", "img"})


def test_many_attacks_get_a_line_each_and_a_figure_for_each_level(read_page: ReadPage) -> None:
    few, some, many = (
        render_html(make_report(attacks=[of_level(f"a{i}", "labels") for i in range(n)]))
        for n in (4, 8, 9)
    )
    assert '<table class="plain overview"' not in few
    assert '<details class="attack-details results-all" open>' in some
    assert '<details class="attack-details results-all">' in many
    attacks = [of_level(f"a{i}", ("labels", "white box")[i % 2]) for i in range(9)]
    page = render_html(make_report(attacks=attacks))
    assert section(page, "curves").count('<figure class="card roc">') == 2
    text = read_page(section(page, "results")).text
    assert "a0 0.700 95 %: 0.600 to 0.800 0.200 95 %: 0.050 to 0.400 0.640" in text
    text = read_page(render_html(make_report(attacks=[attack(f"a{i}") for i in range(16)]))).text
    assert "The first 14 of 16 attacks are drawn" in text


def test_a_shadow_model_and_not_the_truth_says_which_attack_comes_first() -> None:
    weak = attack("weak", result=metrics((0.55, 0.6, 0.65)), decisions=decisions(0.75))
    strong = attack("strong", result=metrics((0.8, 0.9, 0.95)), decisions=decisions(0.7))
    risk = section(render_html(make_report(attacks=[strong, weak])), "risk")
    summaries = re.findall(r'<details class="attack-details risk"( open)?>\s*.*?label">(\w+)', risk)
    assert summaries == [(" open", "weak"), ("", "strong")]
    both = [{**a, "decisions": None} for a in (strong, weak)]
    both.insert(0, attack("blind", result=metrics((0.4, 0.5, 0.6)), decisions=None))
    risk = section(render_html(make_report(attacks=both)), "risk")
    assert re.findall(r'risk"(?: open)?>\s*.*?label">(\w+)', risk) == ["strong", "weak", "blind"]
    assert risk.count("may be chance.") == 1  # of "blind", which found nothing
    assert "at least two of the 2 attacks that found leakage" in risk
    assert "No decisions and no probabilities" in risk


def test_agreement_counts_both_and_only_and_says_what_it_leaves_out(
    page: str, read_page: ReadPage
) -> None:
    text = read_page(section(page, "risk")).text
    assert "Of 200 members, by each attack’s own decisions" in text
    assert "1 gap 31 20 +11 2 lira 20 +5 25" in text
    names = [f"a{i}" for i in range(23)]
    pairs = [pair(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    text = read_page(render_html(make_report({"agreement": pairs}))).text
    assert "The first 20 attacks; 3 more are compared in report.json." in text
    assert "20 a19 20 +5" in text
    assert "21 a20" not in text


OVER_MODELS = attack(
    result=metrics((0.4, 0.5, 0.6)),
    null=None,
    null_holds=None,
    decisions=None,
    details=details(
        per_class=[],
        histogram_per_class={},
        histogram={"edges": [0, 0.5, 1], "members": [0.25, 0.75], "non_members": [0, 0]},
    ),
)


@pytest.mark.parametrize(
    ("low", "sentence"),
    [(0.5, NOTHING), (0.501, "leaks membership of the most exposed record")],
)
def test_a_game_about_records_speaks_of_records(
    low: float, sentence: str, read_page: ReadPage
) -> None:
    found = metrics((0.4, 0.5, 0.6), auc_of_most_exposed=estimate(low, 0.9, 1, 16))
    report = make_report({"gains": [], "agreement": []}, attacks=[{**OVER_MODELS, "result": found}])
    assert verdict(report.attacks[0]) == sentence
    text = read_page(section(render_html(report), "risk")).text
    assert "a record’s figure is the AUC of the attack over these models" in text
    assert "Place Record Class AUC 1 77 3 2.500" in text
    assert "Share of records" in text
    assert "non-members" not in text


def test_balanced_accuracy_decides_no_verdict() -> None:
    found = metrics((0.4, 0.5, 0.6), balanced_accuracy=estimate(0.9, 0.95, 0.99))
    (record,) = make_report(attacks=[attack(result=found)]).attacks
    assert verdict(record) == NOTHING


def test_regression_has_losses_and_no_accuracies(text_of: TextOf) -> None:
    none = dict.fromkeys(("train_accuracy", "test_accuracy", "accuracy_gap"))
    changes = {"task": "regression", "utility": [utility(None, **none)]}
    one_class = details(per_class=details()["per_class"][:1], histogram_per_class={})
    text = text_of(make_report(changes, attacks=[attack(details=one_class)]))
    assert "Records Train loss, nats Test loss, nats all 0.0659 95 %: 0.05 to 0.083" in text
    assert "Train accuracy" not in text
    assert "By class" not in text


def test_a_bare_summary_says_what_is_missing(text_of: TextOf) -> None:
    bare: dict[str, Any] = {"utility": [], "gradient_norms": None, "agreement": [], "gains": []}
    bare |= {"agreement_fpr": None, "trainer": None, "shadow_models": {}, "notes": []}
    lonely = attack(details=None, decisions=None)
    text = text_of(make_report(bare, attacks=[lonely]))
    assert "shadow models none" in text
    assert "none were trained" in text
    assert "How well the model works Not measured." in text
    assert "so nothing is known of single records" in text
    assert "What more access gains" not in text
    two = text_of(make_report(bare, attacks=[lonely, of_level("gap", "labels")]))
    assert "What more access gains No figure:" in two


def spoiled(spoil: Spoil, text: str) -> str:
    levels = ["labels", "confidences", "white box"]
    attacks = [of_level(f"a{i}", levels[i % 3]) for i in range(9)]
    tree = spoil({**REPORT, "attacks": attacks}, text)
    tree["run"]["engine"] = "none: a trained model"
    tree["model"]["shadow_models"] = {text: 3}
    for record in tree["attacks"]:
        record["result"]["metrics"][text] = estimate(0.1, 0.2, 0.3)
    return render_html(AuditReport.model_validate(tree))


@pytest.fixture(scope="module")
def harmless(spoil: Spoil) -> str:
    return spoiled(spoil, "harmless")


def test_text_from_outside_stays_text(
    harmless: str, hostile: str, spoil: Spoil, read_page: ReadPage
) -> None:
    page = spoiled(spoil, hostile)
    assert read_page(page).elements == read_page(harmless).elements
    assert len(page) < len(harmless) + 400_000
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
