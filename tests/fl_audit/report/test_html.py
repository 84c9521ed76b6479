"""The page: what it says, that it says it the same way twice, and that it runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from fl_audit.detection import Detection, DetectionFinding
from fl_audit.report.html import render_html
from fl_audit.report.model import AuditReport
from fl_audit.report.verdict import verdict

PNG = (  # one grey pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
REFERENCE = "https://arxiv.org/abs/1709.01604"
NOTHING = "no leakage detected by this attack at this power"
Limits = tuple[float, float, float]
TextOf = Callable[[AuditReport], str]
ReadPage = Callable[[str], Any]
Spoil = Callable[[Any, str], Any]


def estimate(limits: Limits) -> dict[str, float]:
    low, value, high = limits
    return {"value": value, "low": low, "high": high, "confidence": 0.95, "n": 40}


def scored(auc: Limits) -> dict[str, Any]:
    return {
        "num_members": 20,
        "num_non_members": 30,
        "metrics": {"auc": estimate(auc), "tpr@fpr=0.1": estimate((0, 0.2, 0.5))},
        "refused": {"tpr@fpr=0.01": "too few non-members"},
        "roc": {"fpr": [0, 0.1, 1], "tpr": [0, 0.4, 1]},
    }


LEAKS, AT_CHANCE = scored((0.6, 0.7, 0.8)), scored((0.4, 0.5, 0.6))


def attack(kind: str, label: str, **changes: Any) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "membership": {
            "result": LEAKS,
            "null": AT_CHANCE,
            "null_holds": True,
            "scores_file": "loss.parquet",
        },
        "reconstruction": {
            "num_targets": 6,
            "metrics": {"psnr_db": estimate((30, 40, 50))},
            "baseline": {"psnr_db": estimate((9, 10, 11))},
            "gain": {"psnr_db": estimate((20, 30, 40)), "ssim": estimate((-0.1, 0.1, 0.3))},
            "leading": "psnr_db",
            "arrays_file": None,
        },
        "unavailable": {"reason": "needs shadow models"},
    }
    shared = {
        "label": label,
        "attack": "loss_threshold",
        "seed": 7,
        "settings": {"floor": 0.5},
        "requires": ["logits"],
        "knows": ["labels"],
        "reference": REFERENCE,
        "summary": "Members have lower loss",
        "rounds": [1, 2, 4],
        "notes": ["A note"],
    }
    return {"kind": kind, **shared, **own[kind], **changes}


def membership(**changes: Any) -> dict[str, Any]:
    return attack("membership", "by-loss", **changes)


def reconstruction(**changes: Any) -> dict[str, Any]:
    return attack("reconstruction", "inversion", **changes)


RUN: dict[str, Any] = json.loads("""{
    "title": "Demo", "created": "2026-01-01T00:00:00+00:00", "state": "done", "seed": 3,
    "engine": "local", "versions": {"fl-audit": "0.1.0", "flwr": "1.41.0"},
    "threat_model": {"who": "server", "activity": "honest-but-curious",
                     "sees": ["client-updates", "global-model"], "knows": ["labels"]},
    "strategy": {"name": "FedAvg"}, "defence": {"name": "none"},
    "model": {"factory": "simulations.models:mlp", "settings": {"hidden": 32}},
    "local_training": {"clients": {"4": {"algorithm": "fedsgd"}}},
    "planned_rounds": 2, "num_clients": 5,
    "data": {"name": "digits", "examples_per_client": [40, 40, 40, 40, 40]},
    "utility": [{"round": 0,
                 "loss": {"value": 2.3, "low": 2.2, "high": 2.4, "confidence": 0.95, "n": 200},
                 "accuracy": {"value": 0.1, "low": 0, "high": 0.2, "confidence": 0.95, "n": 9}},
                {"round": 2, "loss": null,
                 "accuracy": {"value": 0.6, "low": 0.5, "high": 0.7, "confidence": 0.95, "n": 9}}],
    "problems": [{"where": "recording", "round": 2, "message": "disk full"}],
    "seconds": {"federation": 1.25}
}""")
REPORT: dict[str, Any] = json.loads("""{
    "trace": {"digest": "abcd", "megabytes": 1.5, "rounds": [
        {"round": 1, "state": "aggregated", "sampled": 5, "replied": 5, "kept": 5, "failed": 0},
        {"round": 2, "state": "aggregated", "sampled": 5, "replied": 4, "kept": 4, "failed": 1}]},
    "game": {"num_candidates": 40, "num_null": 40, "num_auxiliary": 100,
             "rules": {"decided_by": "a fair coin", "non_members_per_member": 1,
                       "groups": 20, "null_groups": 20, "notes": ["A rule"]}},
    "not_tested": [{"attack": "cosine", "summary": "Updates point home", "needs": "labels"}]
}""") | {
    "attacks": [membership(), reconstruction(), attack("unavailable", "lira")],
    "images": {
        "inversion": [
            {"round": 1, "client": 4, "reconstruction_png": PNG, "original_png": PNG}
            | {"baseline_png": None}
        ]
    },
}
EMPTY: dict[str, Any] = {"trace": None, "game": None, "attacks": [], "images": {}, "not_tested": []}
UNKNOWN: dict[str, Any] = {
    **dict.fromkeys(["model", "local_training", "planned_rounds", "num_clients"]),
    **{name: {} for name in ("data", "seconds", "strategy", "defence", "versions")},
    **{"utility": [], "problems": [], "engine": "unknown", "state": "running"},
}


def make_report(run: dict[str, Any] | None = None, **changes: Any) -> AuditReport:
    """A small report; `run` replaces fields of the manifest, `changes` those of the report."""
    return AuditReport.model_validate({**REPORT, **changes, "run": {**RUN, **(run or {})}})


@pytest.fixture(scope="module")
def demo_page() -> str:
    return render_html(make_report())


@pytest.fixture
def demo_text(demo_page: str, read_page: ReadPage) -> str:
    text: str = read_page(demo_page).text
    return text


@pytest.mark.parametrize(
    ("record", "sentence", "tone"),
    [
        (membership(result=scored((0.501, 0.7, 0.8))), "leaks membership", "leak"),
        (membership(result=scored((0.5, 0.7, 0.8))), NOTHING, "none"),
        (membership(result=scored((0.4, 0.45, 0.5))), NOTHING, "none"),
        (
            membership(result=scored((0.2, 0.3, 0.499))),
            "below chance: check the sign or the setup",
            "doubt",
        ),
        (membership(result=None), "scores only: no truth to compare with", "silent"),
        (reconstruction(), "training data reconstructed better than a guess", "leak"),
        (
            reconstruction(gain={"psnr_db": estimate((0, 20, 40))}),
            "no better than a guess at this power",
            "none",
        ),
        (  # another measure that is better does not decide
            reconstruction(leading="ssim"),
            "no better than a guess at this power",
            "none",
        ),
        (
            reconstruction(leading="token_recall", gain={"token_recall": estimate((0.1, 0.2, 1))}),
            "leaks tokens of the training data: better than a guess",
            "leak",
        ),
        (
            reconstruction(
                leading="label_overlap", gain={"label_overlap": estimate((0.1, 0.2, 1))}
            ),
            "leaks training labels: better than a guess",
            "leak",
        ),
        (reconstruction(leading=None), "not compared with a guess update by update", "silent"),
        (reconstruction(num_targets=0, metrics={}), "made no claim", "silent"),
        (attack("unavailable", "lira"), "not available: needs shadow models", "silent"),
    ],
)
def test_limits_and_not_values_decide_the_verdict(
    record: dict[str, Any], sentence: str, tone: str
) -> None:
    report = make_report(attacks=[record])
    assert verdict(report.attacks[0]) == sentence
    assert f'class="verdict {tone}"><p>{sentence}</p>' in render_html(report)


@pytest.mark.parametrize("null", [(0.51, 0.6, 0.7), (0.3, 0.4, 0.49)])
def test_a_null_control_off_chance_says_so_whatever_was_found(null: Limits) -> None:
    attacks = [
        membership(result=found, null=scored(null), null_holds=False)
        for found in (LEAKS, AT_CHANCE)
    ]
    report = make_report(attacks=attacks)
    for record in report.attacks:
        assert verdict(record).endswith("null control is off: do not trust this number")
    assert render_html(report).count('class="verdict doubt"') == 2


@pytest.mark.parametrize(
    "report",
    [
        make_report(),
        make_report({"state": "interrupted"}),
        make_report(UNKNOWN, **EMPTY),
        make_report(attacks=[membership(result=None, null=None)], images={}),
    ],
    ids=["done", "interrupted", "empty", "scores-only"],
)
def test_every_section_is_there_and_every_reference_resolves(
    report: AuditReport, read_page: ReadPage
) -> None:
    page = read_page(render_html(report))
    ids = page.values("id")
    wanted = "results curves risk reconstructions seen setup problems not-tested reading"
    assert " ".join(name for name in ids if name in wanted.split()) == wanted
    assert len(ids) == len(set(ids))
    assert {v[1:] for v in page.values("href") if v.startswith("#")} <= set(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert "None" not in page.text.replace("None was noted.", "")


def test_numbers_stand_with_their_interval_their_control_and_their_n(demo_text: str) -> None:
    interval = "95 %: 0.600 to 0.800 n = 40"
    assert f"AUC 0.700 {interval} 0.500 95 %: 0.400 to 0.600" in demo_text
    assert "PSNR, dB 40.0 95 %: 30.0 to 50.0" in demo_text
    assert "TPR at FPR 0.01 refused: too few non-members" in demo_text
    assert "20 members, 30 non-members" in demo_text
    assert "rounds it could see 1–2, 4" in demo_text


def test_who_could_run_an_attack_follows_from_what_it_needs(
    demo_text: str, text_of: TextOf
) -> None:
    attacks = [
        membership(requires=["client-updates"], knows=[]),
        membership(requires=["telepathy"], knows=["labels"]),
    ]
    text = text_of(make_report(attacks=attacks))
    assert "Who: a server that sees each client’s update Sees: every client’s" in text
    assert "Knows: nothing more" in text
    assert "Who: none of the built-in threat models Sees: telepathy" in text
    assert "or anybody who may ask the released model for logits" in demo_text


@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"requires": ["client-updates"]}, "a server that deviates from the protocol"),
        ({"requires": ["global-model"], "who": "client"}, "a client that deviates from the"),
    ],
)
def test_what_only_a_malicious_adversary_can_do_names_no_curious_one(
    changes: dict[str, Any], who: str, text_of: TextOf
) -> None:
    text = text_of(make_report(attacks=[membership(knows=[], activity="malicious", **changes)]))
    assert f"Who: {who}" in text
    assert "Who: a server that sees" not in text


def test_pictures_of_a_class_are_shown_and_not_judged(text_of: TextOf) -> None:
    refused = {"mean_correlation": "one generator is one trial"}
    shown = reconstruction(**{"of": "class", "metrics": {}, "baseline": {}, "refused": refused})
    report = make_report(attacks=[shown])
    assert verdict(report.attacks[0]) == "pictures shown, not judged"
    text = text_of(report)
    assert "one generator is one trial" in text
    records = make_report(attacks=[shown | {"of": "records"}])
    assert verdict(records.attacks[0]) == "too few records to give a figure"


def test_a_finished_run_is_quiet_and_any_other_is_loud(demo_text: str, read_page: ReadPage) -> None:
    assert "Done. 2 of 2 planned rounds recorded." in demo_text
    assert 'class="state quiet"' in render_html(make_report())
    trace = deepcopy(REPORT["trace"])
    trace["rounds"][1]["state"] = "sent"
    words = {"interrupted": "Interrupted.", "failed": "Failed.", "running": "Not finished"}
    for state, word in {**words, "done": "Done."}.items():  # done, and yet one round short
        page = render_html(make_report({"state": state, "utility": []}, trace=trace, attacks=[]))
        assert 'class="state loud"' in page
        assert f"{word}" in read_page(page).text
        assert "1 of 2 planned rounds recorded to the end." in read_page(page).text
        assert "Begun and not finished: round 2." in read_page(page).text


def test_what_was_not_tested_and_what_went_wrong_is_said(demo_text: str, text_of: TextOf) -> None:
    assert "1 problem noted during the run" in demo_text
    assert "recording 2 disk full" in demo_text
    assert "cosine : Updates point home (needs labels)" in demo_text
    assert "lira : asked for, and gave no figure" in demo_text
    assert "Whether a defence’s claimed epsilon holds." in demo_text
    assert "The last four are not in this version’s report." in demo_text
    assert "shadow-model attacks" not in demo_text.lower()  # there are some now
    assert "None was noted." in text_of(make_report({"problems": []}))


def test_no_result_is_called_private_or_safe(demo_text: str, text_of: TextOf) -> None:
    for text in (demo_text, text_of(make_report(attacks=[membership(result=AT_CHANCE)]))):
        words = set(re.findall("[a-z]+", text.lower()))
        assert words.isdisjoint({"private", "safe", "secure", "proves", "guaranteed"})


def test_a_recording_is_not_said_to_be_repeatable(demo_text: str, text_of: TextOf) -> None:
    assert "fl-audit run scenario.toml --out DIR" in demo_text
    text = text_of(make_report({"engine": "unknown"}))
    assert "fl-audit run" not in text
    assert "fl-audit attack DIR --attack NAME" in text


def test_long_lists_are_cut_and_the_rest_is_counted(text_of: TextOf) -> None:
    problems = [{"where": "client", "message": f"message {i}"} for i in range(2_000)]
    text = text_of(make_report({"problems": problems}))
    assert "message 499" in text
    assert "message 500 " not in text
    assert "… and 1500 more, in report.json." in text


def test_nothing_is_loaded_nothing_runs_and_the_bytes_are_the_same_again(
    read_page: ReadPage,
) -> None:
    page = render_html(make_report())
    assert page == render_html(make_report())
    assert (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    ) in page
    assert set(re.findall(r"\w+://[^\s\"<]*", page)) == {REFERENCE}
    assert not re.search(r"@import|url\((?!#)", page)
    parsed = read_page(page)
    banned = {"script", "iframe", "object", "embed", "form", "base", "video", "audio"}
    assert banned.isdisjoint(tag for tag, _ in parsed.elements)
    assert parsed.values("src") == [f"data:image/png;base64,{PNG}"] * 2


def test_only_plain_https_references_become_links(read_page: ReadPage) -> None:
    bad = ["http://example.org", "javascript:alert(1)", "https://", 'https://x/" onclick="a()']
    bad += ["https://x/ y", "Smith et al., 2020", "", "https://x/" + "a" * 400, "//x.org"]
    attacks = [membership(reference=reference) for reference in bad]
    page = read_page(render_html(make_report(attacks=attacks)))
    assert all(address.startswith(("#", "data:,")) for address in page.values("href"))
    assert page.values("onclick") == []


def test_what_is_no_png_does_not_become_a_picture(read_page: ReadPage) -> None:
    bad = ["", PNG + '" onerror="alert(1)', "PHN2Zz4=", PNG + "\n", "javascript:alert(1)"]
    shared = {"round": 1, "client": 0, "original_png": None, "baseline_png": None}
    images = [{**shared, "reconstruction_png": content} for content in bad]
    page = read_page(render_html(make_report(images={"inversion": images})))
    assert "img" not in [tag for tag, _ in page.elements]
    assert page.text.count("not readable") == len(bad)
    assert page.text.count("not known") == 2 * len(bad)


def spoiled(spoil: Spoil, text: str) -> str:
    tree = spoil({**REPORT, "run": RUN}, text)
    tree["images"] = {text: tree["images"]["inversion"]}
    return render_html(AuditReport.model_validate(tree))


@pytest.fixture(scope="module")
def harmless(spoil: Spoil) -> str:
    return spoiled(spoil, "harmless")


def test_text_from_outside_stays_text(
    harmless: str, hostile: str, spoil: Spoil, read_page: ReadPage
) -> None:
    page = spoiled(spoil, hostile)
    # the same elements with the same attributes as with a harmless text: nothing broke out
    assert read_page(page).elements == read_page(harmless).elements
    assert len(page) < len(harmless) + 200_000
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


def test_rounds_and_canaries_have_sections_where_there_are_any(text_of: TextOf) -> None:
    part = {"result": LEAKS, "null": AT_CHANCE}
    rounds = [{"round": n, "auc": estimate((0.5, 0.61, 0.7))} for n in (1, 2)]
    text = text_of(make_report(attacks=[membership(slices={"mislabelled": part}, timeline=rounds)]))
    assert "Leakage over rounds" in text
    assert "0.610" in text
    assert "Natural records and canaries" in text
    assert "mislabelled 0.700 95 %: 0.600 to 0.800" in text
    plain = text_of(make_report())
    assert "Leakage over rounds" not in plain
    assert "canaries" not in plain


def test_the_adversary_what_it_did_and_whether_a_client_could_have_noticed(
    text_of: TextOf,
) -> None:
    report = make_report()
    rounds = [] if report.trace is None else report.trace.rounds
    trace = report.trace and report.trace.model_copy(
        update={
            "rounds": [r.model_copy(update={"honest_set": 3 + i}) for i, r in enumerate(rounds)]
        }
    )
    threat = report.run.threat_model.model_copy(update={"controls": [1, 4]})
    behaviour = {"name": "isolation", "victims": [0]}
    run = report.run.model_copy(update={"threat_model": threat, "adversary": behaviour})
    finding = DetectionFinding(
        check="models-differ", round=2, client=0, what="2 different models", value=2
    )
    detection = Detection(
        adversary="isolation", acts_through=[], watched=[0, 2], rounds=[1, 2], findings=[finding]
    )
    changes = {"run": run, "trace": trace, "detection": detection}
    text = text_of(report.model_copy(update=changes))
    assert "controls clients 1, 4" in text
    assert "honest set 3 to" in text
    assert "did isolation; victims = [0]" in text
    assert "Only together: 1 finding" in text
    assert "2 different models" in text
    silent = detection.model_copy(update={"findings": []})
    assert "No check fired." in text_of(report.model_copy(update={**changes, "detection": silent}))
    assert "Could a client have noticed" not in text_of(report)
