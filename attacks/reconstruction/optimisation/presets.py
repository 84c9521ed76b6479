"""Presets: recipes of the literature, for comparison, and ours."""

from __future__ import annotations

from typing import Any

from attacks.reconstruction.optimisation.config import InversionConfig
from fl_audit.errors import UnknownNameError

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
        pydantic.ValidationError: If a field is unknown or impossible.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return InversionConfig.model_validate({**PRESETS[name], **changes})
