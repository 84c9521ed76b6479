"""The scenario: everything a simulated federation is, from one TOML file.

Unknown keys are refused with a suggestion; every error names the key, its value, the rule and the
remedy.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from fl_audit.errors import InputError, did_you_mean, shorten
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.randomness import derived_rng
from fl_audit.settings import apply_override
from fl_audit.threat_model import ThreatModel, threat_model
from fl_audit.trace import RecordingPolicy

_CHANGE = "Change it in the scenario file or with --set."


class Table(BaseModel):
    """Base of every table in a scenario."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Federation(Table):
    """How many clients train, how often, and how many of them each round."""

    clients: int = Field(default=5, ge=2)
    rounds: int = Field(default=6, ge=1)
    fraction: float = Field(default=1.0, gt=0, le=1, description="Share of clients each round")


class Data(Table):
    """Where records come from: a built-in name, a folder, a hub name, or "module:function"."""

    name: str = "digits"
    split: str = Field(default="train", description="Folder or hub: which split")
    input_column: str | None = Field(default=None, description="Folder or hub: found if null")
    label_column: str | None = Field(default=None, description="Folder or hub: found if null")
    user_column: str | None = Field(
        default=None, description="Folder or hub: whose each record is, for game.unit user"
    )
    settings: dict[str, JsonValue] = Field(
        default_factory=dict, description="module:function; text: words, length"
    )
    limit: int | None = Field(default=None, ge=1, description="Use at most so many records")
    examples_per_client: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=40, description='On average; "all" that the game leaves'
    )
    random_labels: bool = Field(
        default=False, description="Replace labels by random ones, to make clients memorise"
    )
    test: int = Field(default=200, ge=1, description="Records to measure utility on")


class Partition(Table):
    """How records are spread over clients (flwr-datasets partitioners)."""

    kind: Literal["iid", "dirichlet", "by-class"] = "iid"
    alpha: float = Field(default=0.5, gt=0, description="dirichlet: smaller is more uneven")
    classes_per_client: int = Field(default=2, ge=1, description="by-class")


class Canaries(Table):
    """Groups of candidates that are changed so that a model must memorise them to fit them."""

    mislabelled: int = Field(default=0, ge=0, description="Groups that get one wrong label")
    out_of_distribution: int = Field(
        default=0, ge=0, description="Groups whose records' values are shuffled, each in itself"
    )


class Game(Table):
    """The membership game: lots decide which of several like records is trained on."""

    members: int = Field(default=200, ge=1, description="At most; all there are if fewer")
    non_members_per_member: int = Field(
        default=1, ge=1, description="1 is a fair coin between two records of one class"
    )
    clients: list[int] | None = Field(default=None, description="Clients that hold candidates")
    auxiliary: int = Field(default=100, ge=0, description="Records the adversary has of its own")
    question: Literal["any", "client"] = Field(
        default="any",
        description='"any": did any client train on it? "client": did the client named with it?',
    )
    canaries: Canaries = Field(default=Canaries(), description="Groups beside the natural ones")
    unit: Literal["record", "user"] = Field(
        default="record", description='"user": the lot decides about all records of a person'
    )
    fresh_per_user: int = Field(
        default=4, ge=1, description="unit user: records of each person that are only asked about"
    )

    @property
    def num_canaries(self) -> int:
        """Groups of canaries of all kinds."""
        return self.canaries.mislabelled + self.canaries.out_of_distribution


class OpenTable(Table):
    """A table whose further keys are arguments of somebody else's code."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)  # typed, so checked: no NaN here


class Model(OpenTable):
    """The architecture: a built-in name with its settings, or "module:function"."""

    name: str = "mlp"

    @property
    def settings(self) -> dict[str, JsonValue]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class Training(LocalTraining):
    """Local training, with the clients that differ: `[training.clients.4]`."""

    clients: dict[int, dict[str, JsonValue]] = Field(default_factory=dict)

    def all(self) -> LocalTrainings:
        """The default and, complete, what differs from it."""
        base = self.model_dump(exclude={"clients"})
        return LocalTrainings(
            default=LocalTraining(**base),
            clients={
                k: LocalTraining.model_validate({**base, **v}) for k, v in self.clients.items()
            },
        )

    @model_validator(mode="after")
    def _clients_are_valid(self) -> Training:
        for client, table in self.clients.items():
            for key in table:
                if key not in LocalTraining.model_fields:
                    known = sorted(LocalTraining.model_fields)
                    raise InputError(
                        f"clients.{client}.{key}",
                        table[key],
                        "unknown key",
                        f"{did_you_mean(key, known)}Known keys here: {', '.join(known)}",
                    )
            base = self.model_dump(exclude={"clients"})
            try:
                LocalTraining.model_validate({**base, **table})
            except ValidationError as error:
                raise _explain(error, ("clients", client)) from error
        return self


class Named(OpenTable):
    """A class of Flower's by name, with its arguments."""

    name: str

    @property
    def arguments(self) -> dict[str, JsonValue]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class Threat(Table):
    """The adversary: a preset, with what it sees or knows replaced where given."""

    preset: str = "curious-server"
    sees: list[str] | None = None
    knows: list[str] | None = None
    controls: list[int] = Field(
        default_factory=list, description="Clients that belong to the adversary"
    )

    def model(self) -> ThreatModel:
        """The threat model."""
        return threat_model(self.preset, sees=self.sees, knows=self.knows, controls=self.controls)


class AdversaryTable(OpenTable):
    """What a malicious server or malicious clients do; further keys are the behaviour's own."""

    name: str = "none"
    clients: list[int] = Field(
        default_factory=list, description="Clients it acts through (malicious clients)"
    )
    position: Literal["inside", "outside"] = Field(
        default="outside",
        description="Malicious clients: before (inside) or after (outside) their defence's mods",
    )

    @property
    def settings(self) -> dict[str, JsonValue]:
        """All keys but the declared ones."""
        return dict(self.model_extra or {})


class Faults(Table):
    """Clients that do not do as they are asked, drawn anew for each client and round."""

    drop_out: float = Field(default=0.0, ge=0, lt=1, description="Chance to fail in a round")
    straggler: float = Field(default=0.0, ge=0, lt=1, description="Chance to do part of the work")
    straggler_share: float = Field(
        default=0.5, gt=0, lt=1, description="Share of its steps that a straggler does"
    )


class Audit(Table):
    """Which attacks run, and when."""

    attacks: list[str | dict[str, JsonValue]] = Field(default_factory=list)
    shadows: Literal["federation", "central"] = Field(
        default="federation", description="How models to compare with are trained"
    )
    every: int = Field(
        default=0, ge=0, description="Also attack while training goes on, every so many rounds"
    )


class Scenario(Table):
    """A whole federation with its adversary."""

    title: str = "Federation"
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    federation: Federation = Federation()
    data: Data = Data()
    partition: Partition = Partition()
    game: Game = Game()
    model: Model = Model()
    training: Training = Training()
    strategy: Named = Named(name="FedAvg")
    defence: Named = Named(name="none")
    threat_model: Threat = Threat()
    adversary: AdversaryTable = AdversaryTable()
    recording: RecordingPolicy = RecordingPolicy()
    faults: Faults = Faults()
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _clients_and_rounds_exist(self) -> Scenario:
        last, rounds = self.federation.clients - 1, self.federation.rounds
        _refuse_bad_choice("game.clients", self.game.clients, "client", 0, last)
        _refuse_bad_choice("recording.clients", self.recording.clients, "client", 0, last)
        _refuse_bad_choice("recording.rounds", self.recording.rounds, "round", 1, rounds)
        trained = [*self.training.clients] or None
        _refuse_bad_choice("training.clients", trained, "client", 0, last)
        acting = [*self.adversary.clients] or None
        _refuse_bad_choice("adversary.clients", acting, "client", 0, last)
        controlled = [*self.threat_model.controls] or None
        _refuse_bad_choice("threat_model.controls", controlled, "client", 0, last)
        return self

    @model_validator(mode="after")
    def _game_can_be_played(self) -> Scenario:
        game = self.game
        if game.unit == "user" and game.num_canaries:
            raise InputError(
                "game.unit",
                game.unit,
                f"game.canaries are single records, and {game.num_canaries} are asked for",
                "Choose one of the two: leave game.canaries out, or set game.unit = 'record'.",
            )
        if game.unit == "user" and self.partition.kind != "iid":
            raise InputError(
                "partition.kind",
                self.partition.kind,
                "would tear persons apart: with game.unit 'user' it must be 'iid'",
                _CHANGE,
            )
        if self.data.random_labels and game.canaries.mislabelled:
            raise InputError(
                "game.canaries.mislabelled",
                game.canaries.mislabelled,
                "has no meaning with data.random_labels: every record is mislabelled already",
                "Set it to 0, or data.random_labels = false.",
            )
        return self

    def adversary_model(self) -> ThreatModel:
        """The threat model; clients that the adversary acts through are its own."""
        model = self.threat_model.model()
        own = {*model.controls, *self.adversary.clients}
        return replace(model, controls=tuple(sorted(own)))

    def honest_clients(self) -> list[int]:
        """Clients that are not the adversary's: those whose records are in question."""
        own = {*self.threat_model.controls, *self.adversary.clients}
        return [client for client in range(self.federation.clients) if client not in own]

    def seeds(self, *path: int | str) -> np.random.Generator:
        """A generator of its own for each place that draws: same seed and path, same numbers."""
        return derived_rng(self.seed, *path)


def _refuse_bad_choice(
    key: str, chosen: Sequence[int] | None, what: str, first: int, last: int
) -> None:
    """None chooses all; anything else must name what is there."""
    if chosen is None:
        return
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(key, [*chosen], f"must name at least one {what}, each once", _CHANGE)
    for number in chosen:
        if not first <= number <= last:
            raise InputError(
                key,
                [*chosen],
                f"{what} {number} does not exist: federation.{what}s = {last + 1 - first}, so "
                f"{what}s are {first} to {last}",
                _CHANGE,
            )


def load_scenario(source: Path | str, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario from a TOML file.

    Args:
        source: The file.
        overrides: `key=value` pairs; keys are dotted (`federation.rounds`), values are TOML, and
            plain text where they are not.

    Raises:
        InputError: If the file cannot be read, a key is unknown or a value impossible.
    """
    path = Path(source)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "scenario", str(path), f"cannot be read ({error})", "Give the path of a TOML file."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            "scenario", str(path), f"is not valid TOML ({error})", "Mend the file at that place."
        ) from error
    for override in overrides:
        apply_override(tables, override)
    return parse_scenario(tables)


def parse_scenario(tables: Mapping[str, Any]) -> Scenario:
    """A scenario from nested tables.

    Raises:
        InputError: Naming the first key that is unknown or has an impossible value.
    """
    try:
        return Scenario.model_validate(tables)
    except ValidationError as error:
        raise _explain(error) from error


def _explain(error: ValidationError, at: tuple[int | str, ...] = ()) -> InputError:
    """The first error in our words; `at` is where the validated table stands in the scenario."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    path = [str(part) for part in (*at, *first["loc"])]
    if isinstance(cause, InputError):  # of a validator of ours, which names a key of its table
        return InputError(".".join([*path, cause.name]), cause.value, cause.rule, cause.remedy)
    if first["type"] == "finite_number" and path[-1] == "float":
        path.pop()  # which kind of JSON value it is
    where = ".".join(path) or "scenario"
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        guess = did_you_mean(str(first["loc"][-1]), known)
        return InputError(
            where, first["input"], "unknown key", f"{guess}Known keys here: {', '.join(known)}"
        )
    message = first["msg"].removeprefix("Value error, ")
    return InputError(
        where,
        "..." if isinstance(first["input"], dict) else first["input"],
        message[0].lower() + message[1:],
        _CHANGE,
    )


def _known_keys(path: Sequence[int | str]) -> list[str]:
    table: type[BaseModel] = Scenario
    for name in path:
        field = table.model_fields.get(str(name))
        if field is None or not isinstance(field.annotation, type):
            return sorted(LocalTraining.model_fields)  # training.clients.N
        if not issubclass(field.annotation, BaseModel):
            return sorted(LocalTraining.model_fields)
        table = field.annotation
    return sorted(table.model_fields)


def dump_scenario(scenario: Scenario) -> str:
    """The scenario as TOML, complete with defaults."""
    return dump_toml(scenario)


def dump_toml(table: BaseModel) -> str:
    """Any table as TOML, complete with defaults."""
    return "\n".join(_toml("", table.model_dump(exclude_none=True))).strip() + "\n"


def _toml(prefix: str, table: Mapping[str, Any]) -> list[str]:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping)}
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{_toml_key(key)}"
            lines += ["", f"[{name}]", *_toml(f"{name}.", value)]
    return lines


def _toml_key(key: object) -> str:
    text = str(key)
    bare = text.isascii() and text.replace("-", "").replace("_", "").isalnum()
    return text if bare else _toml_value(text)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool | int | float | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    raise InputError("scenario", shorten(value), "has no TOML form", "Use plain values.")
