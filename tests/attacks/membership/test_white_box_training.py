"""Training of attack networks: what they find, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks.membership.white_box_features import Features
from attacks.membership.white_box_network import Base, Scale
from attacks.membership.white_box_training import NetworkConfig, train_networks
from fl_audit.stats import auc

SEED = 20_261_125


def make_features(
    n: int, *, signal: float, has_loss: bool = True
) -> tuple[Features, NDArray[np.bool_]]:
    """Half are members; their loss is a bit lower, and their gradients point a way."""
    rng = np.random.default_rng(SEED)
    is_member = np.arange(n) % 2 == 0
    scalars = rng.normal(size=(n, 1)) + 0.5 * is_member[:, None]
    gradient = rng.normal(size=(n, 3, 5)).astype(np.float32)
    gradient[:, 0, :] += signal * np.where(is_member, 1, -1)[:, None]
    blocks = {"gradient": gradient, "label": np.eye(4, dtype=np.float32)[np.arange(n) % 4 // 2]}
    return Features(scalars[:, : int(has_loss)], blocks), is_member


def test_what_only_the_gradient_tells_is_found() -> None:
    features, is_member = make_features(400, signal=0.4)
    known, rest = np.arange(200), np.arange(200, 400)
    model = train_networks(
        features.take(known), is_member[known], NetworkConfig(), rng=np.random.default_rng(SEED)
    )
    by_loss = auc(is_member[rest], features.scalars[rest, 0])
    assert model.epoch > 0
    assert auc(is_member[rest], model.scores(features.take(rest))) > by_loss + 0.1


def test_where_there_is_only_the_loss_the_order_is_that_of_the_loss() -> None:
    features, is_member = make_features(120, signal=0)
    model = train_networks(
        features, is_member, NetworkConfig(epochs=10), rng=np.random.default_rng(SEED)
    )
    assert model.epoch == 0
    np.testing.assert_array_equal(
        np.argsort(model.scores(features)), np.argsort(features.scalars[:, 0])
    )


def test_without_a_scalar_the_network_scores_alone() -> None:
    features, is_member = make_features(60, signal=0, has_loss=False)
    model = train_networks(
        features, is_member, NetworkConfig(epochs=5), rng=np.random.default_rng(SEED)
    )
    assert model.epoch > 0
    assert len(np.unique(model.scores(features))) == 60


def test_no_network_corrects_a_record_that_it_was_trained_on() -> None:
    features, is_member = make_features(60, signal=0.7, has_loss=False)
    model = train_networks(
        features, is_member, NetworkConfig(epochs=2), rng=np.random.default_rng(SEED)
    )
    own = model.learners[model.fold[7]].correction(features)[7]
    everyone = np.mean([learner.correction(features) for learner in model.learners], axis=0)
    same_as = np.full(60, -1)
    same_as[3] = 7
    part = features.take(np.where(np.arange(60) == 3, 7, np.arange(60)))
    scores = model.scores(part, same_as)
    np.testing.assert_allclose(scores[3], model.share * own, rtol=1e-6)
    np.testing.assert_allclose(scores[4:], model.share * everyone[4:], rtol=1e-6)
    assert abs(own - everyone[7]) > 1e-4
    assert sorted(np.bincount(model.fold)) == [15, 15, 15, 15]
    left_out = model.learners[0]
    assert set(left_out.own) == set(np.flatnonzero(model.fold != 0))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_same_generator_same_bytes(optimizer: str) -> None:
    features, is_member = make_features(60, signal=0.7, has_loss=False)
    config = NetworkConfig(optimizer=optimizer, epochs=3, validation=0.5)  # type: ignore[arg-type]
    first, second, other = (
        train_networks(features, is_member, config, rng=np.random.default_rng(seed))
        .scores(features)
        .tobytes()
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize(("validation", "num"), [(0.5, 2), (0.25, 4), (0.1, 10)])
def test_every_known_record_is_left_out_once(validation: float, num: int) -> None:
    features, is_member = make_features(60, signal=0)
    config = NetworkConfig(epochs=1, validation=validation)
    model = train_networks(features, is_member, config, rng=np.random.default_rng(SEED))
    assert len(model.learners) == num


def test_scale_is_of_the_training_records_only() -> None:
    features, _ = make_features(50, signal=0)
    scale = Scale.of(features)
    np.testing.assert_allclose(scale.scalars(features).mean(), 0, atol=1e-12)
    np.testing.assert_allclose(scale.scalars(features).std(), 1, rtol=1e-12)
    far = Features(features.scalars + 1000, {n: b + 1000 for n, b in features.blocks.items()})
    *blocks, scalars = scale.tensors(far)
    assert all(float(x.max()) == 5 for x in [*blocks, scalars])  # clipped for the network,
    assert scale.scalars(far).min() > 100  # and not for the base, whose order must stay


def test_a_number_that_never_varies_keeps_its_unit() -> None:
    features, _ = make_features(50, signal=0)
    features.blocks["label"][:, 3] = 0
    scaled = Scale.of(features).tensors(features)[1]
    np.testing.assert_array_equal(scaled[:, 3].numpy(), 0)


def test_the_base_never_reverses_the_loss() -> None:
    scalars = np.linspace(-1.7, 1.7, 40)[:, None]
    is_member = np.arange(40) >= 20
    assert Base.of(scalars, is_member).slope > 1
    reversed_ = Base.of(scalars, ~is_member)
    assert reversed_.slope == 0.1
    assert (np.diff(reversed_(scalars)) > 0).all()
