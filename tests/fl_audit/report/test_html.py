"""The page: what it says, that it says it the same way twice, and that it runs nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from fl_audit.factories import ModelSpec
from fl_audit.game import GameRules
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.report.html import render_html
from fl_audit.report.model import (
    AuditReport,
    GameSummary,
    NotTested,
    ReconstructionImage,
    RoundSummary,
    TraceSummary,
)
from fl_audit.report.verdict import verdict
from fl_audit.results import (
    Curve,
    Estimate,
    MembershipMetrics,
    MembershipRecord,
    ReconstructionRecord,
    UnavailableRecord,
)
from fl_audit.run_directory import Problem, RunManifest, ThreatModelRecord, Utility

PNG = (  # one grey pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
REFERENCE = "https://arxiv.org/abs/1709.01604"
SECTIONS = "results curves reconstructions seen setup problems not-tested reading".split()
NOTHING = "no leakage detected by this attack at this power"
VOID = {"meta", "link", "img", "br"}


def estimate(low: float, value: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, confidence=0.95, n=40)


def metrics(low: float, value: float, high: float) -> MembershipMetrics:
    return MembershipMetrics(
        num_members=20,
        num_non_members=20,
        metrics={"auc": estimate(low, value, high), "tpr@fpr=0.1": estimate(0, 0.2, 0.5)},
        refused={"tpr@fpr=0.01": "too few non-members"},
        roc=Curve(fpr=[0, 0.1, 1], tpr=[0, 0.4, 1]),
    )


CHANCE = metrics(0.4, 0.5, 0.6)
HEADER: dict[str, Any] = {
    "attack": "loss_threshold",
    "seed": 7,
    "settings": {"floor": 0.5},
    "requires": ["logits"],
    "knows": ["labels"],
    "reference": REFERENCE,
    "summary": "Members have lower loss",
    "rounds": [1, 2, 4],
}


def membership(
    result: MembershipMetrics | None, null: MembershipMetrics | None = CHANCE, **changes: Any
) -> MembershipRecord:
    fields = {**HEADER, "label": "by-loss", "scores_file": "by-loss.parquet", **changes}
    return MembershipRecord(**fields, result=result, null=null)


def reconstruction(
    found: dict[str, Estimate], guess: dict[str, Estimate], **changes: Any
) -> ReconstructionRecord:
    fields = {"label": "inversion", "num_targets": 6, "arrays_file": None, **changes}
    return ReconstructionRecord(**{**HEADER, **fields}, metrics=found, baseline=guess)


def make_report(
    *, run: dict[str, Any] | None = None, header: dict[str, Any] | None = None, **changes: Any
) -> AuditReport:
    """A complete report; `run` and `header` replace fields of the manifest and of the attacks."""
    header = header or {}
    manifest = {
        "title": "Demo",
        "created": "2026-01-01T00:00:00+00:00",
        "state": "done",
        "seed": 3,
        "engine": "local",
        "versions": {"fl-audit": "0.1.0", "flwr": "1.41.0"},
        "threat_model": ThreatModelRecord(
            who="server",
            activity="honest-but-curious",
            sees=["client-updates", "global-model"],
            knows=["labels"],
        ),
        "strategy": {"name": "FedAvg"},
        "defence": {"name": "none"},
        "model": ModelSpec(factory="simulations.models:mlp", settings={"hidden": 32}),
        "local_training": LocalTrainings(clients={4: LocalTraining(algorithm="fedsgd")}),
        "planned_rounds": 2,
        "num_clients": 5,
        "data": {"name": "digits", "examples_per_client": [40] * 5},
        "utility": [Utility(round=0, loss=2.3, accuracy=0.1), Utility(round=2, loss=None, accuracy=0.6)],
        "seconds": {"federation": 1.25},
    } | (run or {})  # fmt: skip
    fields: dict[str, Any] = {
        "trace": TraceSummary(digest="ab" * 32, rounds=[round_summary(1), round_summary(2)], megabytes=1.5),
        "game": GameSummary(
            rules=GameRules(decided_by="a fair coin", seed=3, non_members_per_member=1, groups=20, null_groups=20),
            num_candidates=40, num_null=40, num_auxiliary=100,
        ),
        "attacks": [
            membership(metrics(0.6, 0.7, 0.8), **header),
            reconstruction({"psnr_db": estimate(30, 40, 50)}, {"psnr_db": estimate(9, 10, 11)}, **header),
            UnavailableRecord(**{**HEADER, "label": "lira", **header}, reason="needs shadow models"),
        ],
        "images": {
            "inversion": [
                ReconstructionImage(round=1, client=4, reconstruction_png=PNG, original_png=PNG, baseline_png=None)
            ]
        },
        "not_tested": [NotTested(attack="cosine", summary="Updates point along gradients", needs="labels")],
    } | changes  # fmt: skip
    return AuditReport(run=RunManifest(**manifest), **fields)


def round_summary(number: int, state: str = "aggregated") -> RoundSummary:
    return RoundSummary(round=number, state=state, sampled=5, replied=4, failed=1)  # type: ignore[arg-type]


EMPTY: dict[str, Any] = {"trace": None, "game": None, "attacks": [], "images": {}, "not_tested": []}
UNKNOWN = {"model": None, "local_training": None, "planned_rounds": None, "num_clients": None,
           "data": {}, "utility": [], "seconds": {}, "strategy": {}, "defence": {}, "versions": {},
           "engine": "unknown", "state": "running"}  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of a page: its elements, ids and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []  # every element is closed, in order

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text = f"{self.text}{data}"

    def values(self, attribute: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name == attribute]


def text_of(report: AuditReport) -> str:
    return " ".join(Page(render_html(report)).text.split())


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "sentence", "tone"),
    [
        (metrics(0.501, 0.7, 0.8), "leaks membership", "leak"),
        (metrics(0.5, 0.7, 0.8), NOTHING, "none"),
        (metrics(0.4, 0.45, 0.5), NOTHING, "none"),
        (metrics(0.2, 0.3, 0.499), "below chance: check the sign or the setup", "doubt"),
        (None, "scores only: no truth to compare with", "silent"),
    ],
)
def test_limits_and_not_values_decide_what_a_membership_attack_found(
    result: MembershipMetrics | None, sentence: str, tone: str
) -> None:
    record = membership(result)
    assert verdict(record) == sentence
    page = render_html(make_report(attacks=[record]))
    assert f'class="verdict {tone}"><p>{sentence}</p>' in page


@pytest.mark.parametrize("null", [metrics(0.51, 0.6, 0.7), metrics(0.3, 0.4, 0.49)])
def test_a_null_control_off_chance_says_so_whatever_was_found(null: MembershipMetrics) -> None:
    for result in (metrics(0.6, 0.7, 0.8), CHANCE):
        record = membership(result, null)
        assert verdict(record).endswith("null control is off: do not trust this number")
        assert 'class="verdict doubt"' in render_html(make_report(attacks=[record]))


@pytest.mark.parametrize(
    ("found", "guess", "targets", "sentence", "tone"),
    [
        ((12.1, 20, 30), (8, 10, 12), 6, "training data reconstructed better than a guess", "leak"),
        ((12, 20, 30), (8, 10, 12), 6, "no better than a guess at this power", "none"),
        (None, None, 0, "made no claim", "silent"),
    ],
)
def test_a_reconstruction_counts_only_beyond_the_guess(
    found: tuple[float, float, float] | None,
    guess: tuple[float, float, float] | None,
    targets: int,
    sentence: str,
    tone: str,
) -> None:
    record = reconstruction(
        {} if found is None else {"psnr_db": estimate(*found)},
        {} if guess is None else {"psnr_db": estimate(*guess)},
        num_targets=targets,
    )
    assert verdict(record) == sentence
    page = render_html(make_report(attacks=[record]))
    assert f'class="verdict {tone}"><p>{sentence}</p>' in page


def test_an_attack_that_gave_nothing_says_why() -> None:
    assert "not available: needs shadow models" in text_of(make_report())


# --- content --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        make_report(),
        make_report(run={"state": "interrupted"}),
        make_report(run=UNKNOWN, **EMPTY),
        make_report(attacks=[membership(None, None)], images={}),
    ],
    ids=["done", "interrupted", "empty", "scores-only"],
)
def test_every_section_is_there_and_every_reference_resolves(report: AuditReport) -> None:
    page = Page(render_html(report))
    ids = page.values("id")
    assert [name for name in ids if name in SECTIONS] == SECTIONS
    assert len(ids) == len(set(ids))
    assert {v.removeprefix("#") for v in page.values("href") if v.startswith("#")} <= set(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert "Undefined" not in page.text
    assert "None" not in page.text.replace("None was noted.", "")


def test_numbers_stand_with_their_interval_their_control_and_their_n() -> None:
    text = text_of(make_report())
    assert "AUC found" not in text
    assert "AUC 0.700 95\u00a0%: 0.600 to 0.800 n\u00a0=\u00a040 0.500 95\u00a0%: 0.400" in text
    assert "PSNR 40.0\u00a0dB 95\u00a0%: 30.0\u00a0dB to 50.0\u00a0dB n\u00a0=\u00a040 10.0\u00a0dB" in text
    assert "TPR at FPR 0.01 refused: too few non-members" in text
    assert "20 members, 20 non-members" in text
    assert "rounds it could see 1–2, 4" in text


def test_who_could_run_an_attack_follows_from_what_it_needs() -> None:
    needs_updates = membership(CHANCE, requires=["client-updates"], knows=[])
    text = text_of(make_report(attacks=[needs_updates]))
    assert "Who: a server that sees each client’s update Sees: every client’s update" in text
    assert "Knows: nothing more" in text
    text = text_of(make_report(attacks=[membership(CHANCE)]))
    assert "or anybody who may ask the released model for logits" in text
    text = text_of(make_report(attacks=[membership(CHANCE, requires=["telepathy"])]))
    assert "Who: none of the built-in threat models Sees: telepathy" in text


def test_a_done_run_is_quiet_and_others_are_loud() -> None:
    page = render_html(make_report())
    assert 'class="state quiet"' in page
    assert "Done. 2 of 2 planned rounds recorded." in text_of(make_report())
    trace = TraceSummary(
        digest="ab", rounds=[round_summary(1), round_summary(2, "sent")], megabytes=0
    )
    for state, word in [
        ("interrupted", "Interrupted."),
        ("failed", "Failed."),
        ("running", "Not finished"),
        ("done", "Done."),  # and yet one round short
    ]:
        report = make_report(run={"state": state}, trace=trace)
        assert 'class="state loud"' in render_html(report)
        text = text_of(report)
        assert word in text
        assert "1 of 2 planned rounds recorded to the end." in text
        assert "Begun and not finished: round 2." in text


def test_what_was_not_tested_and_what_went_wrong_is_said() -> None:
    problem = Problem(where="recording", round=2, message="disk full")
    text = text_of(make_report(run={"problems": [problem]}))
    assert "1 problem noted during the run" in text
    assert "recording 2 disk full" in text
    assert "cosine: Updates point along gradients (needs labels)" in text
    assert "lira: asked for, and gave no figure" in text
    assert "Whether a defence’s claimed epsilon holds." in text
    assert "None was noted." in text_of(make_report())


def test_no_result_is_called_private_or_safe() -> None:
    for report in (make_report(), make_report(attacks=[membership(CHANCE)])):
        words = set(re.findall(r"[a-z]+", text_of(report).lower()))
        assert words.isdisjoint({"private", "safe", "secure", "proves", "guaranteed"})


def test_a_recording_is_not_said_to_be_repeatable() -> None:
    assert "fl-audit run scenario.toml --out DIR" in text_of(make_report())
    text = text_of(make_report(run={"engine": "unknown"}))
    assert "fl-audit run" not in text
    assert "fl-audit attack DIR --attack NAME" in text


# --- the page as a file ---------------------------------------------------------------------


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_html(make_report()) == render_html(make_report())


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page = render_html(make_report())
    assert (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    ) in page
    assert set(re.findall(r"\w+://[^\s\"<]*", page)) == {REFERENCE}
    assert not re.search(r"@import|url\((?!#)", page)
    parsed = Page(page)
    assert {"script", "iframe", "object", "embed", "form", "base"}.isdisjoint(parsed.tags)
    assert all(source.startswith("data:image/png;base64,") for source in parsed.values("src"))


@pytest.mark.parametrize(
    "reference",
    ["http://example.org", "javascript:alert(1)", "https://", 'https://x/" onclick="alert(1)',
     "https://x/ y", "Smith et al., 2020", "", "https://x/" + "a" * 400, "\u202ehttps://x"],
)  # fmt: skip
def test_only_plain_https_references_become_links(reference: str) -> None:
    page = Page(render_html(make_report(attacks=[membership(CHANCE, reference=reference)])))
    assert all(v.startswith(("#", "data:,")) for v in page.values("href"))
    assert page.values("onclick") == []


def test_what_is_no_png_does_not_become_a_picture() -> None:
    for content in ("", PNG + '" onerror="alert(1)', "PHN2Zz4=", PNG + "\n", "javascript:alert(1)"):
        image = ReconstructionImage(
            round=1, client=0, reconstruction_png=content, original_png=None, baseline_png=None
        )
        page = Page(render_html(make_report(images={"inversion": [image]})))
        assert "img" not in page.tags
        assert "not readable" in page.text
        assert "not known" in page.text


HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></svg><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u2066 \x1b[31mred\x00\x07",
    "$\\frac{$ _hidden %s",
    "A" * 1_000_000,
    "<" * 1_000_000,
]


def hostile_report(text: str) -> AuditReport:
    result = metrics(0.6, 0.7, 0.8)
    result = result.model_copy(update={"metrics": {**result.metrics, text: estimate(0, 1, 2)}})
    refused = {text: text}
    attacks = [
        membership(result, label=text, attack=text, summary=text, reference=text, notes=[text],
                   settings={text: [text, {text: text}]}, requires=[text], knows=[text],
                   scores_file=text),
        reconstruction({}, {}, label=text, refused=refused, arrays_file=text),
        UnavailableRecord(**{**HEADER, "label": text}, reason=text),
    ]  # fmt: skip
    image = ReconstructionImage(
        round=1, client=1, reconstruction_png=text, original_png=text, baseline_png=text
    )
    run = {"title": text, "created": text, "engine": text, "versions": {text: text, "fl-audit": text},
           "strategy": {"name": text, text: text}, "defence": {"name": text, text: text},
           "data": {"name": text, text: text}, "seconds": {text: 1.0},
           "model": ModelSpec(factory="a:b", settings={text: text}),
           "problems": [Problem(where=text, message=text)],
           "threat_model": ThreatModelRecord(who="server", activity="malicious", sees=[text], knows=[text])}  # fmt: skip
    game = GameSummary(
        rules=GameRules(decided_by=text, seed=0, non_members_per_member=1, groups=1, null_groups=0, notes=[text]),
        num_candidates=1, num_null=0, num_auxiliary=0,
    )  # fmt: skip
    return make_report(
        run=run,
        attacks=attacks,
        game=game,
        images={text: [image]},
        trace=TraceSummary(digest=text, rounds=[], megabytes=0),
        not_tested=[NotTested(attack=text, summary=text, needs=text)],
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_from_outside_stays_text(text: str) -> None:
    harmless = render_html(hostile_report("harmless"))
    page = render_html(hostile_report(text))
    # the same elements with the same attributes as with a harmless text: nothing broke out
    assert Page(page).tags == Page(harmless).tags
    assert [a[:2] for a in Page(page).attributes] == [a[:2] for a in Page(harmless).attributes]
    assert len(page) < len(harmless) + 200_000
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


def test_long_lists_are_cut_and_the_rest_is_counted() -> None:
    problems = [Problem(where="client", message=f"message {i}") for i in range(2_000)]
    text = text_of(make_report(run={"problems": problems}))
    assert "message 499" in text
    assert "message 500 " not in text
    assert "… and 1500 more, in report.json." in text
