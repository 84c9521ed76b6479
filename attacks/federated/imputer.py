"""An imputer: guesses an unknown value from the rest of a record, without any model or update.

Whatever an attack on updates gets right beyond it, the updates gave away.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fl_audit.records import Records

Kind = Literal["best", "logistic", "boosting"]
_FOLDS = 3


def impute(
    auxiliary: Records,
    bins: NDArray[np.int64],
    candidates: Records,
    *,
    attribute: int,
    num_bins: int,
    kind: Kind = "best",
    seed: int,
) -> NDArray[np.float64]:
    """P(bin | other values, label) of each candidate, shape (n, num_bins), rows sum to 1.

    Args:
        auxiliary: Complete records to learn from.
        bins: Bin of the attribute in each of them.
        candidates: Records whose attribute is not looked at.
        attribute: Place of the value in the flattened input.
        kind: "logistic" regression, gradient "boosting", or "best": whichever does better in
            cross-validation on the auxiliary records.
        seed: For the boosting's draws.
    """
    known, asked = (_rest(records, attribute, auxiliary) for records in (auxiliary, candidates))
    found = np.zeros((len(candidates), num_bins))
    present = np.unique(bins)
    if len(present) == 1:
        found[:, present[0]] = 1.0
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # folds with few records of a bin
        model = _model(kind, known, bins, seed).fit(known, bins)
        found[:, model.classes_] = model.predict_proba(asked)
    result: NDArray[np.float64] = found
    return result


def _rest(records: Records, attribute: int, auxiliary: Records) -> NDArray[np.float64]:
    """All values but the attribute, and the class as indicators."""
    flat = records.inputs[:].reshape(len(records), -1).astype(np.float64)
    classes = np.unique(auxiliary.labels)
    return np.hstack([np.delete(flat, attribute, axis=1), records.labels[:, None] == classes])


def _model(kind: Kind, known: NDArray[np.float64], bins: NDArray[np.int64], seed: int) -> Any:
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=500))
    boosting = HistGradientBoostingClassifier(
        max_iter=60, min_samples_leaf=5, early_stopping=False, random_state=seed
    )
    if kind != "best":
        return logistic if kind == "logistic" else boosting
    folds = min(_FOLDS, int(np.bincount(bins)[np.unique(bins)].min()))
    if folds < _FOLDS:  # too few records of a bin to hold some out
        return logistic
    skills = [float(cross_val_score(m, known, bins, cv=folds).mean()) for m in (logistic, boosting)]
    return logistic if skills[0] >= skills[1] else boosting
