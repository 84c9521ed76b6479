"""The transformer: sizes, what padding and later tokens can do, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from fl_audit.errors import InputError
from simulations.models import transformer


def model(length: int = 6, **settings: Any) -> torch.nn.Module:
    torch.manual_seed(20_261_125)
    small = {"vocabulary": 50, "width": 16, "heads": 2, **settings}
    return transformer(input_shape=[length], num_classes=3, **small).eval()


def tokens(num: int, length: int = 6) -> torch.Tensor:
    drawn = np.random.default_rng(20_261_125).integers(1, 50, size=(num, length))
    return torch.from_numpy(drawn).float()


def inputs_of_layer_2(net: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    layer = net.get_submodule("blocks.1.value")
    hook = layer.register_forward_pre_hook(lambda _, values: caught.append(values[0].detach()))
    net(given)
    hook.remove()
    return caught[0]


def test_the_number_of_parameters_is_that_of_the_parts() -> None:
    """Embeddings, 2 blocks of 12 d^2 + 13 d (with biases and two norms), a norm, and the head."""
    net = transformer(input_shape=[32], num_classes=4)
    d = 256
    parts = (8002 + 32) * d + 2 * (12 * d**2 + 13 * d) + 2 * d + 4 * (d + 1)
    assert sum(p.numel() for p in net.parameters()) == parts


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal: bool) -> None:
    net, given = model(causal=causal), tokens(3)
    given[:, 4:] = 0
    torch.testing.assert_close(net(given), net(given[:, :4]))
    assert torch.isfinite(net(torch.zeros(1, 6))).all()


def test_only_without_the_mask_do_later_tokens_change_earlier_places() -> None:
    given = tokens(1)
    changed = given.clone()
    changed[0, -1] = 1 + given[0, -1] % 49
    for causal in (True, False):
        net = model(causal=causal)
        before, after = inputs_of_layer_2(net, given), inputs_of_layer_2(net, changed)
        assert torch.equal(before[:, :-1], after[:, :-1]) is causal
        assert not torch.equal(before[:, -1], after[:, -1])


def test_attention_is_that_of_torch() -> None:
    net = model()
    block: Any = net.get_submodule("blocks.0")
    hidden = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    normed = block.norm1(hidden)
    query, key, value = (
        layer(normed).unflatten(-1, (2, 8)).transpose(1, 2)
        for layer in (block.query, block.key, block.value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    middle = hidden + block.out(mixed.transpose(1, 2).flatten(2))
    expected = middle + block.mlp(block.norm2(middle))
    sees = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(block(hidden, sees), expected)


def test_it_has_gradients_for_each_record_and_second_derivatives() -> None:
    net, given = model(), tokens(3)
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = functional_call(net, w, (x.unsqueeze(0),))
        return logits.square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(weights, given)
    alone = grad(loss)(weights, given[1])
    torch.testing.assert_close(each["blocks.0.value.weight"][1], alone["blocks.0.value.weight"])
    (first,) = torch.autograd.grad(
        net(given).square().sum(), [net.get_parameter("head.weight")], create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), [net.get_parameter("blocks.0.query.weight")])
    assert second.any()


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ([1, 8, 8], {}, "needs sequences of tokens"),
        ([6], {"heads": 3}, "must divide the width, 16"),
        ([6], {"layers": 0}, "model.layers = 0: must be at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    shape: list[int], settings: dict[str, Any], message: str
) -> None:
    small = {"vocabulary": 50, "width": 16, "heads": 2, **settings}
    with pytest.raises(InputError, match=message):
        transformer(input_shape=shape, num_classes=3, **small)
