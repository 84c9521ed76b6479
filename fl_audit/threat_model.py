"""Who attacks, what they see, and what they know: the question every audit starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Flag, auto
from typing import Literal

from fl_audit.errors import ObservationError, UnknownNameError

Adversary = Literal["server", "client", "coalition", "observer"]
Activity = Literal["honest-but-curious", "malicious"]


class Observation(Flag):
    """What an adversary sees. What one sight implies is in `IMPLIES`."""

    CLIENT_UPDATES = auto()  # every client's reply, each round
    AGGREGATE = auto()  # only what the clients' updates sum to, each round
    GLOBAL_MODEL = auto()  # the broadcast model, each round
    FINAL_MODEL = auto()  # weights of the released model
    LOGITS = auto()  # answers of the released model, as real numbers
    LABELS_ONLY = auto()  # answers of the released model, as classes
    SYNTHETIC_TABLE = auto()  # a table generated from the training data


class Knowledge(Flag):
    """What an adversary knows besides what it sees."""

    LABELS = auto()  # the labels of the candidates
    LOCAL_TRAINING = auto()  # learning rate, local steps, batch size
    EXAMPLE_COUNTS = auto()  # how many examples each client trained on
    AUXILIARY_DATA = auto()  # records of the same distribution, none of them audited
    KNOWN_MEMBERS = auto()  # a share of the target's members and non-members
    BUFFERS = auto()  # non-trainable state, such as batch-norm statistics


NOTHING_SEEN = Observation(0)
NOTHING_KNOWN = Knowledge(0)

IMPLIES = {
    Observation.CLIENT_UPDATES: Observation.AGGREGATE,
    Observation.GLOBAL_MODEL: Observation.FINAL_MODEL,
    Observation.FINAL_MODEL: Observation.LOGITS,
    Observation.LOGITS: Observation.LABELS_ONLY,
}
"""Whoever sees the key sees the value too (a sum can be taken, a model can be queried)."""


def flag_names(flags: Flag) -> list[str]:
    """Names of the set flags in the spelling of scenario files: `CLIENT_UPDATES` is
    "client-updates"."""
    return [flag.name.lower().replace("_", "-") for flag in flags if flag.name]


def parse_observations(names: list[str]) -> Observation:
    """Observation flags from their names in a scenario file."""
    flags = Observation(0)
    for name in names:
        flags |= Observation[_member(name, Observation, "observation")]
    return flags


def parse_knowledge(names: list[str]) -> Knowledge:
    """Knowledge flags from their names in a scenario file."""
    flags = Knowledge(0)
    for name in names:
        flags |= Knowledge[_member(name, Knowledge, "knowledge")]
    return flags


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """One adversary: who it is, what it does, sees and knows.

    Attributes:
        controls: Clients that belong to the adversary. It sees what they send, and subtracts it
            from sums: what is left comes from the *honest set*.
    """

    who: Adversary
    activity: Activity = "honest-but-curious"
    sees: Observation = NOTHING_SEEN
    knows: Knowledge = NOTHING_KNOWN
    controls: tuple[int, ...] = ()

    def missing(self, wanted: Observation) -> Observation:
        """The part of `wanted` that this adversary does not see, after implications."""
        return wanted & ~_closure(self.sees)

    def _remedy(self, requires: Observation, knows: Knowledge) -> str:
        sees, known = flag_names(self.missing(requires)), flag_names(knows & ~self.knows)
        tables = {"threat_model.sees": sees, "threat_model.knows": known}
        parts = [f"{', '.join(map(repr, f))} to {table}" for table, f in tables.items() if f]
        return f"Add {' and '.join(parts)}"

    def require(
        self,
        name: str,
        requires: Observation,
        knows: Knowledge = NOTHING_KNOWN,
        activity: Activity = "honest-but-curious",
    ) -> None:
        """Refuse `name` unless everything it needs is granted.

        Raises:
            ObservationError: Naming each missing flag.
        """
        if activity == "malicious" and self.activity != "malicious":
            # sums are what clients see, too
            fit = "server" if Observation.CLIENT_UPDATES in requires else "client"
            raise ObservationError(
                name,
                "needs a malicious adversary",
                f"the threat model ({self.who}) is honest-but-curious: it changes nothing",
                f'Choose a malicious preset, such as threat_model.preset = "malicious-{fit}".',
            )
        missing = flag_names(self.missing(requires)) + flag_names(knows & ~self.knows)
        if missing:
            raise ObservationError(
                name,
                f"needs {' + '.join(missing)}",
                f"the threat model ({self.who}, {self.activity}) does not grant "
                f"{', '.join(missing)}",
                f"{self._remedy(requires, knows)} if the adversary really has it, or leave the "
                "attack out.",
            )


_SERVER_KNOWS = (
    Knowledge.LABELS
    | Knowledge.LOCAL_TRAINING
    | Knowledge.EXAMPLE_COUNTS
    | Knowledge.AUXILIARY_DATA
    | Knowledge.KNOWN_MEMBERS
    | Knowledge.BUFFERS
)

_CLIENT_KNOWS = Knowledge.LABELS | Knowledge.LOCAL_TRAINING | Knowledge.AUXILIARY_DATA
_KNOWS_ITS_WEIGHT = _CLIENT_KNOWS | Knowledge.EXAMPLE_COUNTS  # to subtract its own updates
_SERVER_SEES = Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL
_CLIENT_SEES = Observation.AGGREGATE | Observation.GLOBAL_MODEL

PRESETS = {
    "curious-server": ThreatModel("server", sees=_SERVER_SEES, knows=_SERVER_KNOWS),
    "malicious-server": ThreatModel("server", "malicious", sees=_SERVER_SEES, knows=_SERVER_KNOWS),
    "secure-aggregation-server": ThreatModel(
        "server", sees=Observation.AGGREGATE | Observation.GLOBAL_MODEL, knows=_SERVER_KNOWS
    ),
    "curious-client": ThreatModel("client", sees=_CLIENT_SEES, knows=_CLIENT_KNOWS),
    "malicious-client": ThreatModel(
        "client", "malicious", sees=_CLIENT_SEES, knows=_KNOWS_ITS_WEIGHT
    ),
    "coalition": ThreatModel(
        "coalition", sees=_CLIENT_SEES, knows=_KNOWS_ITS_WEIGHT | Knowledge.KNOWN_MEMBERS
    ),
    "model-holder": ThreatModel(
        "observer",
        sees=Observation.FINAL_MODEL,
        knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA | Knowledge.KNOWN_MEMBERS,
    ),
    "model-user": ThreatModel(
        "observer",
        sees=Observation.LOGITS,
        knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    ),
    "label-user": ThreatModel(
        "observer",
        sees=Observation.LABELS_ONLY,
        knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    ),
}


def threat_model(
    preset: str,
    *,
    sees: list[str] | None = None,
    knows: list[str] | None = None,
    controls: Sequence[int] = (),
) -> ThreatModel:
    """A preset threat model, with what it sees, knows or controls replaced where given.

    Raises:
        UnknownNameError: If the preset, an observation or a knowledge flag is unknown.
    """
    if preset not in PRESETS:
        raise UnknownNameError("threat model", preset, PRESETS)
    model = PRESETS[preset]
    if sees is not None:
        model = replace(model, sees=parse_observations(sees))
    if knows is not None:
        model = replace(model, knows=parse_knowledge(knows))
    return replace(model, controls=tuple(sorted(set(controls))))


def _closure(flags: Observation) -> Observation:
    for cause, effect in IMPLIES.items():  # ordered: one pass follows a chain
        if cause in flags:
            flags |= effect
    return flags


def _member(name: str, flags: type[Flag], kind: str) -> str:
    member = name.upper().replace("-", "_")
    if member not in flags.__members__:
        raise UnknownNameError(kind, name, flag_names(~flags(0)))
    return member
