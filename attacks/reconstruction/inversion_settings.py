"""Settings of gradient inversion on recorded updates: which updates, and how to search."""

from __future__ import annotations

from copy import copy
from typing import Any, Literal

from pydantic import Field, create_model

from attacks.reconstruction.adaptive import Defence
from attacks.reconstruction.observed import UpdateSettings
from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.presets import PRESETS
from fl_audit.threat_model import NOTHING_KNOWN, Knowledge


class InversionSettings(UpdateSettings, InversionConfig):
    """Which updates, and how to search; the defaults are the preset's."""

    most_updates: int | None = Field(default=8, ge=1)
    """Updates to invert, in the order of rounds and clients; each takes seconds to minutes."""
    max_batch: int = Field(default=16, ge=1)
    """Larger batches are left alone, and a note says so."""
    batch_size: int | None = Field(default=None, ge=1)
    """Records behind each update, where the client's own count is not granted; by default what
    local training says (one step of FedSGD), or else estimated from the gradient."""
    input_shape: list[int] | None = None
    """Of one input; by default that of the adversary's own auxiliary records."""
    mode: Literal["train", "eval"] = "train"
    """Mode of the client's model: clients train in training mode, which matters to BatchNorm and
    dropout only."""
    unroll: bool = False
    """Unroll the client's local steps; otherwise its update is read as one gradient."""
    epoch_prior: float = Field(default=0.1, ge=0)
    """With `unroll` and several epochs: weight of the distance between epochs' mean inputs."""
    orders: int = Field(default=24, ge=1)
    """With `unroll` and several steps: orders of labels to try; the client's is not known."""
    defence: Defence = "none"
    """The defence that the attack adapts to: "soteria", "precode", "pruning", "sign", "noise" or
    "clipping"."""
    join_rounds: bool = False
    """Search one batch for all of a client's rounds together: for clients that use the same data
    each round. It averages noise away."""
    hopeless_too: bool = False
    """Also search where the feasibility check says that it is hopeless."""

    @property
    def also_knows(self) -> Knowledge:
        """Known labels must be granted."""
        return Knowledge.LABELS if self.labels == "known" else NOTHING_KNOWN

    def config(self) -> InversionConfig:
        """The engine's part of the settings."""
        names = InversionConfig.model_fields
        return InversionConfig.model_validate({name: getattr(self, name) for name in names})


def preset_settings(
    name: str, base: type[InversionSettings] = InversionSettings, **changes: Any
) -> type[InversionSettings]:
    """Settings whose defaults are a preset's.

    Args:
        changes: Defaults of settings that are not the engine's.
    """
    defaults = {**PRESETS[name], **changes}
    fields: dict[str, Any] = {}
    for key, value in defaults.items():
        field = copy(base.model_fields[key])  # with its bounds
        field.default = value
        fields[key] = (field.annotation, field)
    made: Any = create_model(
        f"{name.title().replace('_', '')}Settings",
        __base__=base,
        __doc__=f"Settings of {name}: the defaults are its recipe.",
        **fields,
    )
    found: type[InversionSettings] = made
    return found
