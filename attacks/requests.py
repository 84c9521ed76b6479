"""Attacks as they are asked for: by name, or by a table of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from attacks.registry import load_attack
from fl_audit.attack_spec import AttackSettings, AttackSpec
from fl_audit.errors import InputError, did_you_mean
from fl_audit.threat_model import Knowledge, ThreatModel


@dataclass(frozen=True, slots=True)
class AttackRequest:
    """An attack as asked for: which, with what settings, under what label."""

    label: str
    spec: AttackSpec
    settings: AttackSettings

    @property
    def knows(self) -> Knowledge:
        """What the adversary must know, with these settings."""
        return self.spec.knows | self.settings.also_knows


Wanted = str | Mapping[str, Any] | AttackRequest


def parse_attacks(wanted: Wanted | Sequence[Wanted]) -> list[AttackRequest]:
    """Attacks by name, or by a table with `name`, optionally `label`, and settings; or one alone.

    The same attack may appear several times; labels are made unique by "-2", "-3", ...

    Raises:
        UnknownNameError: If there is no such attack.
        InputError: If a setting is unknown or impossible.
    """
    requests: list[AttackRequest] = []
    several = [wanted] if isinstance(wanted, str | Mapping | AttackRequest) else wanted
    for item in several:
        request = item if isinstance(item, AttackRequest) else _parse_attack(item)
        taken = {r.label for r in requests}
        label, number = request.label, 2
        while label in taken:
            label, number = f"{request.label}-{number}", number + 1
        requests.append(AttackRequest(label, request.spec, request.settings))
    return requests


def check_attacks(requests: Sequence[AttackRequest], threat_model: ThreatModel) -> None:
    """Refuse attacks that this adversary cannot run, before anything runs.

    Raises:
        ObservationError: Naming the attack and each missing flag.
    """
    for request in requests:
        spec = request.spec
        threat_model.require(
            f"attack {request.label!r}", spec.requires, request.knows, spec.activity
        )


def _parse_attack(item: str | Mapping[str, Any]) -> AttackRequest:
    table = {"name": item} if isinstance(item, str) else dict(item)
    if "name" not in table:
        raise InputError(
            "attack", table, "a table of settings must name its attack", 'Add name = "...".'
        )
    name = str(table.pop("name"))
    label = str(table.pop("label", name))
    plain = label.translate({ord(character): None for character in "-_. "})
    if not plain.isalnum() or label != label.strip():
        raise InputError(
            "attack label",
            label,
            "must be letters, digits, '-', '_', '.' and spaces inside",
            "It names the result's file.",
        )
    spec = load_attack(name)
    try:
        return AttackRequest(label, spec, spec.settings.model_validate(table))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = sorted(spec.settings.model_fields)
        is_unknown = first["type"] == "extra_forbidden"
        guess = did_you_mean(key, known) if is_unknown else ""
        raise InputError(
            f"attack {name!r} setting {key!r}",
            first["input"],
            "unknown setting" if is_unknown else first["msg"].removeprefix("Value error, "),
            f"{guess}It takes: {', '.join(known) or 'no settings'}",
        ) from error
