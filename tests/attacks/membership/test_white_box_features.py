"""Features inside a model: gradients in closed form, norms against autograd, fixed projections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.membership.signals import true_log_probability
from attacks.membership.white_box_features import (
    FeatureMaker,
    Features,
    gradient_norms,
    minus_log_loss,
)
from attacks.membership.white_box_layers import Selection
from attacks.membership.white_box_probe import (
    Projection,
    own_parameters,
    record_activations,
    record_gradients,
)
from attacks.shadows.target import Task, ask, callable_target, module_target
from fl_audit.errors import InputError
from fl_audit.records import Records

SEED = 20_261_124


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 5, batch_first=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.cell(x)[0]
        answers: torch.Tensor = self.fc(states[:, -1])
        return answers


class Tied(nn.Module):
    """Reads with the weights that it writes with: one parameter of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4, 4)
        self.up = nn.Linear(4, 4)
        self.up.weight = self.down.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.up(torch.tanh(self.down(x)))
        return answers


def make(module: nn.Module) -> nn.Module:
    """Weights from a generator of their own."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return module


def make_records(shape: tuple[int, ...], *, classes: int = 3, n: int = 7) -> Records:
    rng = np.random.default_rng(SEED)
    inputs = rng.normal(size=(n, *shape)).astype(np.float32)
    return Records(np.arange(n), inputs, rng.integers(classes, size=n))


def make_features(
    module: nn.Module, records: Records, selection: Selection, **options: int | bool
) -> Features:
    target = module_target(module)
    settings = {"loss": True, "label": True, "num_records": len(records), "seed": 1, **options}
    logits = ask(target, records, Task("classification", int(records.labels.max()) + 1))
    return FeatureMaker(selection, **settings).features(target, records, logits)  # type: ignore[arg-type]


def by_autograd(module: nn.Module, records: Records, name: str) -> NDArray[np.float64]:
    """The definition, record by record."""
    found = []
    for x, y in zip(records.inputs, records.labels, strict=True):
        module.zero_grad()
        answer = module(torch.from_numpy(x)[None])
        nn.functional.cross_entropy(answer, torch.tensor([y])).backward()
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        found.append(gradient.double().numpy().copy())
    return np.stack(found)


def test_gradient_of_a_linear_model_is_residual_times_input() -> None:
    module, records = make(nn.Linear(4, 3)), make_records((4,))
    logits = ask(module_target(module), records, Task("classification", 3))
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    residual = p - np.eye(3)[records.labels]
    with_bias = np.concatenate([records.inputs, np.ones((7, 1))], axis=1)
    expected = residual[:, :, None] * with_bias[:, None, :]  # (p - y) x^T, and (p - y)
    norms = np.sqrt((expected**2).sum(axis=(1, 2)))
    found = make_features(module, records, Selection(gradients=("",)))
    np.testing.assert_allclose(
        found.blocks["gradient of the model"], expected / norms[:, None, None], atol=1e-6
    )
    np.testing.assert_allclose(found.scalars[:, 1], -np.log(norms), atol=1e-5)
    np.testing.assert_allclose(
        found.scalars[:, 0], -np.log(-true_log_probability(logits, records.labels)), rtol=1e-9
    )
    np.testing.assert_array_equal(found.blocks["label"].argmax(axis=1), records.labels)


@pytest.mark.parametrize(
    ("module", "shape", "name"),
    [
        (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
            (2, 4, 4),
            "0",
        ),
        (nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)), (5,), "3"),
        (nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), (5,), "1"),
        (Recurrent(), (6, 4), "cell"),
        (Tied(), (4,), "up"),
    ],
)
def test_gradients_are_those_of_autograd_in_eval_mode(
    module: nn.Module, shape: tuple[int, ...], name: str
) -> None:
    records = make_records(shape)
    module = make(module).eval()
    names = own_parameters(module, name)
    assert names
    ((rows, found),) = record_gradients(module, records, names)
    assert rows == slice(0, 7)
    for parameter in names:
        expected = by_autograd(module, records, parameter)
        np.testing.assert_allclose(found[parameter].numpy(), expected, atol=1e-6)


def test_gradient_norms_are_over_all_parameters_whatever_the_mode() -> None:
    module = make(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)))
    records = make_records((5,), n=300)  # more than one block
    names = [name for name, _ in module.named_parameters()]
    module.train()
    found = gradient_norms(module, records)
    assert module.training
    squares = [
        (by_autograd(module.eval(), records, name) ** 2).reshape(300, -1).sum(axis=1)
        for name in names
    ]
    np.testing.assert_allclose(found, np.sqrt(np.sum(squares, axis=0)), rtol=1e-5)
    assert found.dtype == np.float64


def test_gradient_of_a_regression_model_is_that_of_the_squared_error() -> None:
    module, plain = make(nn.Linear(4, 1)), make_records((4,), classes=1)
    wanted = np.arange(7, dtype=np.float32)
    records = Records(plain.ids, plain.inputs, plain.labels, wanted)
    with torch.no_grad():
        errors = module(torch.from_numpy(plain.inputs)).numpy()[:, 0] - wanted
    expected = 2 * np.abs(errors) * np.sqrt(1 + (plain.inputs**2).sum(axis=1))
    np.testing.assert_allclose(gradient_norms(module, records), expected, rtol=1e-5)


def test_norms_of_several_layers_come_with_that_of_all() -> None:
    module = make(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
    records = make_records((5,))
    found = make_features(module, records, Selection(gradients=("0", "2")), loss=False)
    norms = np.exp(-found.scalars)
    assert norms.shape == (7, 3)
    np.testing.assert_allclose(norms[:, 0], gradient_norms(module, records), rtol=1e-5)
    np.testing.assert_allclose(norms[:, 0] ** 2, norms[:, 1] ** 2 + norms[:, 2] ** 2, rtol=1e-5)


def test_an_output_is_taken_before_a_layer_changes_it_in_place() -> None:
    module = make(nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)))
    records = make_records((5,))
    weight, bias = (p.detach().double().numpy() for p in list(module.parameters())[:2])
    before = records.inputs @ weight.T + bias
    ((found),) = record_activations(module, records, ["0", "1"])
    np.testing.assert_allclose(found["0"].numpy(), before, atol=1e-5)
    np.testing.assert_allclose(found["1"].numpy(), np.maximum(before, 0), atol=1e-5)
    assert not module[0]._forward_hooks


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    with pytest.raises(InputError, match=r"output of layer 'cell'.*one tensor"):
        list(record_activations(make(Recurrent()), make_records((6, 4)), ["cell"]))


def test_without_layers_there_are_the_answers() -> None:
    module, records = make(nn.Linear(4, 3)), make_records((4,))
    found = make_features(module, records, Selection(), loss=False, label=False)
    assert list(found.blocks) == ["answers"]
    assert found.scalars.shape == (7, 0)  # as with layers: an insider sees the answers, too
    np.testing.assert_allclose(np.exp(found.blocks["answers"]).sum(axis=1), 1, rtol=1e-5)


def test_a_function_has_no_inside() -> None:
    records = make_records((4,))
    target = callable_target(lambda x: np.full((len(x), 3), 1 / 3))
    maker = FeatureMaker(Selection(("fc",)), loss=True, label=True, num_records=7, seed=1)
    with pytest.raises(InputError, match="gradients and activations need the model's weights"):
        maker.features(target, records, np.zeros((7, 3)))


def test_minus_log_loss_is_finite_and_ordered_where_the_loss_is_0_in_floats() -> None:
    phi = np.array([-800.0, -30.0, 0.0, 29.9, 30.1, 800.0])
    found = minus_log_loss(np.stack([phi, np.zeros(6)], axis=1), np.zeros(6, dtype=np.int64))
    np.testing.assert_allclose(found[[0, 2, 5]], [-np.log(800), -np.log(np.log(2)), 800])
    assert (np.diff(found) > 0).all()


def test_a_projection_keeps_norms_in_expectation() -> None:
    """Over 400 projections, the mean of the squared norm is that of the vector: z-test at 1e-6."""
    rng = np.random.default_rng(SEED)
    x = torch.from_numpy(rng.normal(size=(1, 50)).astype(np.float32))
    squares = np.array([float(Projection(50, 8, rng)(x).square().sum()) for _ in range(400)])
    error = squares.std(ddof=1) / np.sqrt(400)
    assert abs(squares.mean() - float(x.square().sum())) < 4.9 * error
    assert error < 0.05 * squares.mean()  # power: a factor of 1.3 would be seen


def test_large_layers_are_projected_alike_for_every_model() -> None:
    records = make_records((1200,))
    module = make(nn.Sequential(nn.Linear(1200, 16), nn.Tanh(), nn.Linear(16, 3)))
    maker = FeatureMaker(Selection(("0", "2")), loss=True, label=True, num_records=7, seed=1)
    target = module_target(module)
    logits = ask(target, records, Task("classification", 3))
    first = maker.features(target, records, logits)
    assert maker.projected == ["gradient of 0"]
    assert first.blocks["gradient of 0"].shape == (7, 16, 2048 // 16)  # outputs are kept
    again = maker.features(target, records.take([3]), logits[3:4])
    np.testing.assert_allclose(
        again.blocks["gradient of 0"][0], first.blocks["gradient of 0"][3], atol=1e-6
    )
    lengths = np.sqrt((first.blocks["gradient of 0"] ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(lengths, 1, atol=0.5)  # directions, about as long as before


def test_more_records_leave_fewer_numbers_for_each() -> None:
    module, records = make(nn.Sequential(nn.Linear(40, 10))), make_records((40,), classes=10)
    few = make_features(module, records, Selection(("0",)), num_records=1000)
    many = make_features(module, records, Selection(("0",)), num_records=2_000_000)
    assert few.blocks["gradient of 0"].shape == (7, 10, 41)
    assert many.blocks["gradient of 0"].shape == (7, 67)  # 512 MB over 2,000,000 records
