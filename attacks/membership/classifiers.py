"""Learning from shadow models, whose members are known, what a member looks like."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from attacks.shadows.lab import Lab
from attacks.shadows.workshop import Mode
from fl_audit.errors import InputError

Kind = Literal["logistic", "forest", "boosting", "mlp", "knn", "svm"]
_LEAST_SHARE = 1e-15  # keeps log-odds finite where a classifier answers 0 or 1
_MOST_NEIGHBOURS = 100


def known_task(lab: Lab, mode: Mode, num: int, *, instead: str) -> tuple[Lab, NDArray[np.bool_]]:
    """The same task with a shadow model as target, and which of its candidates are members.

    Args:
        instead: What to use where there are too few shadow models, for the message.

    Raises:
        InputError: If there are too few shadow models, or records whose membership is known.
    """
    shadows = lab.shadows(mode, num, instead=instead)
    played = lab.calibration(mode, num)
    if played is None:
        raise InputError(
            "records to learn from",
            len(lab.rows if mode == "online" else lab.population),
            f"too few of them are members and non-members of one of {len(shadows)} shadow models: "
            "20 of each are needed",
            f"Give more records and an even num_shadow_models, or use {instead}.",
        )
    return played


def fit_log_odds(
    kind: Kind,
    features: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    *,
    at: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Fit a classifier and ask it: log-odds of membership, or an SVM's distance to its border.

    Args:
        kind: Which classifier, with scikit-learn's defaults unless the code says otherwise.
        features: What it learns from, shape (m, d).
        is_member: Which of them are members, shape (m,).
        at: What it is asked about, shape (n, d).
        rng: Its random state.

    Returns:
        Shape (n,); higher = more likely a member.

    Raises:
        InputError: If shapes do not fit, or all records that it learns from are of one kind.
    """
    if features.ndim != 2 or len(features) != len(is_member) or at.shape[1:] != features.shape[1:]:
        raise InputError(
            "features",
            (features.shape, at.shape),
            f"must have shapes ({len(is_member)}, d) and (n, d)",
            "Give both sides the same features, one row a record.",
        )
    check_both_kinds(is_member)
    model = _classifier(kind, len(features), int(rng.integers(2**32)))
    model.fit(features, is_member)
    if hasattr(model, "decision_function"):
        margin: NDArray[np.float64] = model.decision_function(at)
        return margin
    share = np.clip(model.predict_proba(at)[:, 1], _LEAST_SHARE, 1 - _LEAST_SHARE)
    odds: NDArray[np.float64] = np.log(share) - np.log1p(-share)
    return odds


def check_both_kinds(is_member: NDArray[np.bool_]) -> None:
    """Refuse records to learn from that are all members, or all non-members.

    Raises:
        InputError: Saying how many are members.
    """
    if is_member.all() or not is_member.any():
        raise InputError(
            "known members",
            int(is_member.sum()),
            f"all {len(is_member)} records to learn from are of one kind",
            "Give records that the shadow models were trained on, and others.",
        )


def _classifier(kind: Kind, num: int, state: int) -> Any:
    match kind:
        case "forest":  # leaves of one record each would only answer 0 or 1
            return RandomForestClassifier(200, min_samples_leaf=5, random_state=state)
        case "boosting":
            return HistGradientBoostingClassifier(max_iter=50, random_state=state)
        case "logistic":
            model: Any = LogisticRegression(max_iter=1000)
        case "mlp":  # well regularised: there are few features, and they are noisy
            model = MLPClassifier((32,), alpha=1.0, max_iter=2000, tol=1e-3, random_state=state)
        case "knn":
            model = KNeighborsClassifier(min(num, _MOST_NEIGHBOURS, 1 + int(np.sqrt(num))))
        case "svm":
            model = SVC(random_state=state)
        case _:
            raise InputError("classifier", kind, "unknown", "Use 'logistic', for example.")
    return make_pipeline(StandardScaler(), model)
