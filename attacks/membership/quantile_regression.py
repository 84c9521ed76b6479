"""Quantile regression: is the model surer of the record than of its like that it never saw?

What a non-member's signal should be is learned from its inputs and label on the population, so
that hard records are judged by a lower standard than easy ones, without shadow models.

References:
    Bertran et al., "Scalable Membership Inference Attacks via Quantile Regression", NeurIPS 2023.
    https://arxiv.org/abs/2307.03694
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict

from attacks.membership.quantiles import SignalName, task_signal
from attacks.membership.signals import check_logits
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation

Regressor = Literal["gaussian", "quantile"]
_LEAST_POPULATION = 50  # records: fewer predict nothing
_FOLDS = 3
_FLOOR = 1e-6  # of the deviation, in units of the signal
_MOST_PCA = 1000  # records that principal components are found from
_MOST_PLAIN = 256  # numbers of an input that are taken as they are


class Settings(AttackSettings):
    """What a scenario may set: `{name = "quantile_regression", regressor = "quantile"}`."""

    regressor: Regressor = Field(
        default="gaussian", description="A mean and a deviation; or one quantile"
    )
    quantile: float = Field(
        default=0.95, gt=0, lt=1, description='Of regressor = "quantile": share of non-members'
    )
    signal: SignalName = Field(default="logit", description='A signal, or "module:function"')
    num_components: int = Field(
        default=32, ge=1, description="Principal components of inputs with more numbers than 256"
    )


def quantile_regression_scores(
    target: NDArray[np.float64],
    features: NDArray[np.float64],
    population: NDArray[np.float64],
    population_features: NDArray[np.float64],
    *,
    regressor: Regressor = "gaussian",
    quantile: float = 0.95,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """How far the target's signal lies above what its features predict for a non-member.

    "gaussian": in predicted standard deviations above the predicted mean; the deviation is
    predicted, too, from the residuals of records that were left out of the fit. "quantile": in
    units of the signal, above the predicted quantile; zero is that quantile's threshold.

    Args:
        target: The target's signal on n records, shape (n,); higher = more like a member.
        features: Of the n records, shape (n, d).
        population: The target's signal on m records that it was not trained on, shape (m,).
        population_features: Of the m records, shape (m, d).
        quantile: Share of non-members below the threshold.
        rng: Of folds and regressors.

    Returns:
        Scores, shape (n,); higher = more likely a member.

    Raises:
        InputError: If shapes do not fit or the population has fewer than 50 records.

    References:
        Bertran et al., NeurIPS 2023. https://arxiv.org/abs/2307.03694
    """
    _check(target, features, population, population_features)
    if regressor == "quantile":
        model = _boosted(rng, loss="quantile", quantile=quantile)
        above: NDArray[np.float64]
        above = target - model.fit(population_features, population).predict(features)
        return above
    mean = _boosted(rng)
    folds = KFold(_FOLDS, shuffle=True, random_state=int(rng.integers(2**32)))
    left_out = cross_val_predict(mean, population_features, population, cv=folds)
    residual = np.abs(population - left_out)
    # a normal variable's absolute deviation has mean sqrt(2 / pi); it is fitted instead of the
    # square because a few large residuals would rule the squares
    spread = _boosted(rng).fit(population_features, residual)
    floor = max(_FLOOR, 0.25 * float(residual.mean()))  # trees may predict a spread below zero
    deviation = np.sqrt(np.pi / 2) * np.maximum(spread.predict(features), floor)
    expected = mean.fit(population_features, population).predict(features)
    scores: NDArray[np.float64] = (target - expected) / deviation
    return scores


def _check(
    target: NDArray[np.float64],
    features: NDArray[np.float64],
    population: NDArray[np.float64],
    population_features: NDArray[np.float64],
) -> None:
    for name, rows, signal in (
        ("features", features, target),
        ("population_features", population_features, population),
    ):
        if rows.ndim != 2 or len(rows) != len(signal) or rows.shape[1] != features.shape[1]:
            raise InputError(
                name,
                rows.shape,
                f"must have shape ({len(signal)}, d), with the same d on both sides",
                "Give one row of features a record, in the order of its signals.",
            )
    if len(population) < _LEAST_POPULATION:
        raise InputError(
            "population",
            len(population),
            f"needs at least {_LEAST_POPULATION} records to learn from",
            "Give more auxiliary records, or use population, which needs fewer.",
        )


def _boosted(rng: np.random.Generator, **changes: object) -> HistGradientBoostingRegressor:
    """Trees until a tenth of the population, which is held out, is predicted no better."""
    return HistGradientBoostingRegressor(
        max_iter=150,
        max_leaf_nodes=15,
        min_samples_leaf=40,
        early_stopping=True,
        random_state=int(rng.integers(2**32)),
        **changes,
    )


class _Features:
    """Inputs and label as numbers a regressor can learn from; large inputs by components.

    Args:
        population: What principal components are found from: at most 1000 records, by lot.
    """

    def __init__(
        self, population: Records, num_components: int, num_classes: int, rng: np.random.Generator
    ) -> None:
        self._num_classes = num_classes
        self._components: PCA | None = None
        if int(np.prod(population.input_shape)) > _MOST_PLAIN:
            chosen = np.sort(rng.permutation(len(population))[:_MOST_PCA])
            inputs = _flat(population.inputs[chosen])
            most = min(num_components, len(chosen), inputs.shape[1])
            self._components = PCA(most, random_state=int(rng.integers(2**32))).fit(inputs)

    def __call__(self, records: Records) -> NDArray[np.float64]:
        blocks = []
        for rows in records.blocks():
            inputs = _flat(records.inputs[rows])
            blocks.append(
                inputs if self._components is None else self._components.transform(inputs)
            )
        if records.targets is not None:
            label = records.targets[:, None].astype(np.float64)
        else:
            label = np.eye(self._num_classes)[records.labels]
        return np.concatenate([np.concatenate(blocks), label], axis=1)


def _flat(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(inputs, dtype=np.float64).reshape(len(inputs), -1)


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    lab.require_population(_LEAST_POPULATION)
    candidates, population = lab.candidates, lab.auxiliary
    signal = task_signal(settings.signal, lab.task)
    answers, others = lab.logits(), lab.population_logits()
    check_logits(answers, candidates.labels)
    check_logits(others, population.labels)
    features = _Features(population, settings.num_components, lab.task.num_classes, given.rng)
    scores = quantile_regression_scores(
        signal(answers, candidates.labels),
        features(candidates),
        signal(others, population.labels),
        features(population),
        regressor=settings.regressor,
        quantile=settings.quantile,
        rng=given.rng,
    )
    return MembershipScores(scores, notes=(f"{len(population)} records of the population.",))


ATTACK = AttackSpec(
    name="quantile_regression",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2307.03694",
    summary="The target's confidence against what the record's inputs predict for non-members",
    settings=Settings,
)
