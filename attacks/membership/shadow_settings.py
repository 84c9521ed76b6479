"""What attacks with shadow models share: their settings and checks."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.shadows.workshop import DEFAULT_SHADOWS
from fl_audit.attack_spec import AttackSettings
from fl_audit.errors import InputError


class ShadowSettings(AttackSettings):
    """Settings of an attack that compares with shadow models."""

    mode: Literal["online", "offline"] = Field(
        default="online",
        description="online: shadow models are also trained on audited records, drawn by lot "
        "without regard to their membership; offline: on auxiliary records only",
    )
    num_shadow_models: int = Field(default=DEFAULT_SHADOWS, ge=1)


def check_shadows(
    shadow_logits: NDArray[np.float64], in_shadow: NDArray[np.bool_], num_records: int
) -> None:
    """Refuse shadow answers that do not fit the records.

    Raises:
        InputError: Naming the shapes.
    """
    expected = (len(shadow_logits), num_records)
    if shadow_logits.ndim != 3 or in_shadow.shape != expected or in_shadow.dtype != np.bool_:
        raise InputError(
            "in_shadow",
            (in_shadow.shape, str(in_shadow.dtype)),
            f"must be booleans of shape {expected}, beside shadow logits (k, n, classes)",
            "Give one row a shadow model and one column a record.",
        )


def fewest(chosen: NDArray[np.bool_], side: str, *, least: int) -> int:
    """The smallest number of chosen models behind any record.

    Raises:
        InputError: If it is below `least`; names the record.
    """
    counts = chosen.sum(axis=0)
    worst = int(counts.argmin())
    if counts[worst] < least:
        raise InputError(
            f"{side}-models of record {worst}",
            int(counts[worst]),
            f"at least {least} are needed",
            "Train more shadow models, each on half of the records; or use mode = 'offline', which "
            "needs no in-models, or population, which needs no models at all.",
        )
    return int(counts[worst])
