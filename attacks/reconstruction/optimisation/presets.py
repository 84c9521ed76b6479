"""Presets: recipes of the literature, for comparison, and ours."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from attacks.reconstruction.optimisation.config import InversionConfig
from fl_audit.errors import InputError, UnknownNameError, did_you_mean

PRESETS: dict[str, dict[str, Any]] = {
    # Zhu, Liu, Han, NeurIPS 2019: squared distance, L-BFGS, labels searched with the inputs
    "dlg": {
        "objective": "euclidean",
        "labels": "joint",
        "optimiser": "lbfgs",
        "iterations": 500,
        "box": False,
    },
    # Zhao, Mopuri, Bilen, 2020: the label is read off, the rest as DLG
    "idlg": {
        "objective": "euclidean",
        "labels": "inferred",
        "optimiser": "lbfgs",
        "iterations": 500,
        "box": False,
    },
    # Geiping et al., NeurIPS 2020: cosine, total variation, Adam on signs
    "inverting_gradients": {
        "objective": "cosine",
        "total_variation": 1e-4,
        "optimiser": "adam",
        "signed": "hard",
        "learning_rate": 0.1,
        "schedule": "step",
        "iterations": 2400,
        "precision": "float32",
    },
    # Huang et al., NeurIPS 2021: as before, with BatchNorm statistics and more smoothing
    "huang": {
        "objective": "cosine",
        "total_variation": 0.052,
        "batch_norm": 0.00016,
        "statistics": "running",
        "optimiser": "adam",
        "signed": "hard",
        "learning_rate": 0.1,
        "schedule": "step",
        "iterations": 2400,
        "precision": "float32",
    },
    # Dimitrov et al., TMLR 2022: local steps unrolled, epochs apart and alike on average
    "fedavg_multi_step": {
        "objective": "cosine",
        "total_variation": 1e-6,
        "optimiser": "auto",
        "signed": "hard",
        "learning_rate": 0.1,
        "schedule": "step",
        "iterations": 1000,
    },
    # ours: the cosine in float64, L-BFGS with a line search, then Levenberg-Marquardt
    "second_order": {
        "objective": "cosine",
        "optimiser": "lbfgs",
        "iterations": 500,
        "refine": 12,
    },
    # Vero et al. (TabLeak), ICML 2023: softmax over categories, a pool of restarts
    "tabular": {
        "objective": "cosine",
        "optimiser": "adam",
        "signed": "no",
        "learning_rate": 0.06,
        "schedule": "constant",
        "iterations": 1500,
        "restarts": 15,
        "start": "normal",
        # what is searched has no bounds: numbers in units of their own, and logits of categories
        "box": False,
        "bounds": None,
    },
}


def preset(name: str, **changes: Any) -> InversionConfig:
    """The config of a preset, with fields replaced where given.

    Raises:
        UnknownNameError: If there is no such preset.
        InputError: If a field is unknown or impossible, naming the first.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    try:
        return InversionConfig.model_validate({**PRESETS[name], **changes})
    except ValidationError as error:
        raise _refusal(name, error) from error


def _refusal(name: str, error: ValidationError) -> InputError:
    """The first error in the words of every other one."""
    first = error.errors(include_url=False)[0]
    known = sorted(InversionConfig.model_fields)
    if not first["loc"]:  # fields that contradict each other: the rule names them
        what, value = f"preset {name!r}", "its settings"
        return InputError(what, value, _rule(first["msg"]), "Change one of them.")
    key = ".".join(str(part) for part in first["loc"])
    is_unknown = first["type"] == "extra_forbidden"
    guess = did_you_mean(key, known) if is_unknown else ""
    return InputError(
        f"preset {name!r}, {key}",
        first["input"],
        "unknown setting" if is_unknown else _rule(first["msg"]),
        f"{guess}Settings: {', '.join(known)}.",
    )


def _rule(message: str) -> str:
    plain = message.removeprefix("Value error, ").removeprefix("Input ")
    return plain[:1].lower() + plain[1:]
