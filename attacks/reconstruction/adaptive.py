"""What an attacker that knows the defence does differently.

A defence that changes what is sent is judged by an attack that allows for the change: by one that
does not, almost any change looks like protection.

References:
    Balunovic et al., "Bayesian framework for gradient leakage", ICLR 2022 (the defended layer is
    left out). https://arxiv.org/abs/2111.04706
    Scheliga, Maeder, Seeland, "Dropout is NOT all you need", 2022. https://arxiv.org/abs/2208.04767
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.optimisation.config import InversionConfig
from fl_audit.errors import InputError

Defence = Literal["none", "soteria", "precode", "pruning", "sign", "noise", "clipping"]


def adapt(
    config: InversionConfig, defence: Defence, gradient: Mapping[str, NDArray[np.float64]]
) -> InversionConfig:
    """The config for gradients under a defence.

    "soteria": the dense layer whose weight gradient lost whole columns is left out. "precode": the
    layers in `drop_layers` are (the stochastic bottleneck's). "pruning": only what is not 0 is
    matched. "sign": signs are matched, without refinement. "clipping": the scale is not. "noise":
    as without; joining rounds averages it away.

    Raises:
        InputError: If the gradient shows no trace of the defence, or layers must be named.
    """
    changes: dict[str, object] = {}
    if defence == "soteria":
        changes["drop_layers"] = [*config.drop_layers, perturbed_layer(gradient)]
    if defence == "precode" and not config.drop_layers:
        raise InputError(
            "defence",
            defence,
            "its bottleneck must be named: from one gradient it cannot be told",
            "List its parameters in drop_layers.",
        )
    objective = {"pruning": "masked_cosine", "sign": "sign", "clipping": "cosine"}.get(defence)
    if objective is not None:
        changes["objective"] = objective
    if defence == "sign":  # no sum of squares: there is nothing to refine
        changes["refine"] = 0
    return InversionConfig.model_validate({**config.model_dump(), **changes})


def perturbed_layer(gradient: Mapping[str, NDArray[np.float64]]) -> str:
    """Name of the dense weight in which whole columns are 0, and the others are not.

    Raises:
        InputError: If there is none.
    """
    for name in reversed(list(gradient)):
        value = np.asarray(gradient[name])
        if value.ndim != 2 or not name.endswith("weight"):
            continue
        alive = value.any(axis=0)
        if alive.any() and not alive.all():
            return name
    raise InputError(
        "defence",
        "soteria",
        "no dense layer's gradient has columns that are 0",
        "The defence is not there; if it perturbs another layer, name that in drop_layers.",
    )
