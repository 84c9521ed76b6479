"""Token recovery: whole texts from small nets, and no claim where there is nothing to recover."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.audit import audit_run
from attacks.reconstruction.token_layers import Reader, TextLayers, read
from attacks.reconstruction.token_recovery import RecoveredTokens, recover_tokens
from attacks.reconstruction.token_search import surest_first
from attacks.reconstruction.token_spans import InputSpan, input_span, layer_span
from fl_audit.errors import InputError
from fl_audit.results import ReconstructionResult
from simulations.text_models import TokenTransformer

SEED = 20_261_125
WIDTH, LENGTH, VOCABULARY = 64, 8, 300
Tokens = NDArray[np.int64]
Gradients = dict[str, NDArray[Any]]


class PaddingCounts(TokenTransformer):
    """The same model, but padding is a token like any other: the mean is over all positions."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        place = torch.arange(inputs.shape[1])
        sees = (place[:, None] >= place)[None, None]
        hidden = self.tokens(inputs.long()) + self.positions(place)
        for block in self.blocks:
            hidden = block(hidden, sees)
        logits: torch.Tensor = self.head(self.norm(hidden).mean(1))
        return logits


def net(
    kind: type[TokenTransformer] = TokenTransformer, *, seed: int = SEED, **settings: Any
) -> TokenTransformer:
    sizes = {"vocabulary": VOCABULARY, "length": LENGTH, "num_classes": 4, "width": WIDTH}
    torch.manual_seed(seed)
    return kind(**{**sizes, "heads": 4, "layers": 2, "causal": True, **settings}).eval()


def texts(num: int, seed: int = SEED) -> Tokens:
    """Texts of 5 to 8 tokens, padded; common tokens occur more than once."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice([*range(1, 10), *rng.integers(10, VOCABULARY, 60)], size=(num, LENGTH))
    tokens[np.arange(LENGTH) >= rng.integers(5, LENGTH + 1, size=(num, 1))] = 0
    return tokens


def gradients(model: nn.Module, tokens: Tokens) -> Gradients:
    labels = torch.arange(len(tokens)) % 4
    loss = nn.functional.cross_entropy(model(torch.from_numpy(tokens).float()), labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g.numpy() for n, g in zip(names, found, strict=True) if g is not None}


def same(found: Tokens, true: Tokens) -> bool:
    return sorted(found.tolist()) == sorted(true.tolist())


def words(tokens: Tokens) -> list[int]:
    return sorted(set(tokens.ravel().tolist()) - {0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 4])
def test_whole_texts_come_back(dtype: torch.dtype, size: int) -> None:
    model, true = net().to(dtype), texts(size)
    found = recover_tokens(read(model), gradients(model, true))
    assert same(found.sequences, true)
    assert found.tokens.tolist() == words(true)
    assert found.is_whole


def test_a_model_that_takes_one_length_only_is_run_at_that() -> None:
    model, true = net(), texts(3)
    reader = replace(read(model), takes_short=False)
    assert same(recover_tokens(reader, gradients(model, true)).sequences, true)


def stored(model: nn.Module, true: Tokens) -> Gradients:
    """What one step leaves in float32 weights."""
    return {
        name: ((w - np.float32(0.03) * g) - w)
        for name, g in gradients(model, true).items()
        for w in [model.get_parameter(name).detach().numpy()]
    }


def test_an_update_of_stored_weights_will_do_whatever_its_scale_and_sign() -> None:
    model, true = net(), texts(4)
    found = recover_tokens(read(model), stored(model, true), roundings=1.0)
    assert same(found.sequences, true)
    assert found.is_whole


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_several_steps_give_back_parts_and_nothing_false(rate: float) -> None:
    """What later steps add moves inputs out of their tolerance: tokens are missed, none made up."""
    model, true = net(width=128), texts(2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(2):
        step = gradients(model, true)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.sub_(torch.from_numpy(step[name]), alpha=rate)
    update = {n: (p.detach() - before[n]).numpy() for n, p in model.named_parameters()}
    model.load_state_dict(before)
    found = recover_tokens(read(model), update, roundings=2.0)
    assert not found.is_whole  # so the attacker knows that it cannot be sure
    assert set(found.tokens.tolist()) < set(words(true))
    assert len(found.tokens) >= 7
    for text in found.sequences:
        assert any((text[text != 0] == other[: np.sum(text != 0)]).all() for other in true)


def test_a_text_that_is_twice_in_the_batch_is_given_once() -> None:
    model, true = net(), texts(2)
    found = recover_tokens(read(model), gradients(model, np.concatenate([true, true[:1]])))
    assert same(found.sequences, true)


def test_padding_that_counts_is_recovered_as_a_token() -> None:
    model, true = net(PaddingCounts, width=96), texts(3)
    reader = read(model)
    assert reader.silent is None
    found = recover_tokens(reader, gradients(model, true))
    assert same(found.sequences, true)
    assert found.tokens.tolist() == words(true)


def test_tokens_that_see_what_is_behind_them_come_back_alone_or_as_a_set() -> None:
    model = net(causal=False)
    reader, true = read(model), texts(3)
    assert not reader.is_causal
    alone = recover_tokens(reader, gradients(model, true[:1]))
    assert same(alone.sequences, true[:1])
    several = recover_tokens(reader, gradients(model, true))
    assert not len(several.sequences)
    assert several.why is not None
    assert "behind them" in several.why
    assert set(words(true)) <= set(several.tokens.tolist())


def test_one_layer_is_enough_where_its_mlp_stands_behind_the_attention() -> None:
    model, true = net(layers=1), texts(3)
    reader = read(model)
    assert reader.layers.second == ("blocks.0.out",)
    assert same(recover_tokens(reader, gradients(model, true)).sequences, true)


def test_the_inputs_of_the_first_layer_are_normed_sums_of_embeddings() -> None:
    """Closed form: norm(e_v + pos_p) with the norm's own weights, for each token and position."""
    model, tokens = net(), texts(5)
    norm: Any = model.get_submodule("blocks.0.norm1")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(SEED))
    summed = model.tokens.weight[torch.from_numpy(tokens)] + model.positions.weight
    centred = (summed - summed.mean(-1, keepdim=True)).detach()
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    found = read(model).inputs(torch.from_numpy(tokens), "blocks.0.value")
    torch.testing.assert_close(found, scaled * norm.weight + norm.bias)


def test_the_architecture_is_found_out() -> None:
    reader = read(net())
    assert reader.layers.first == ("blocks.0.query", "blocks.0.key", "blocks.0.value")
    assert reader.layers.second == ("blocks.1.query", "blocks.1.key", "blocks.1.value")
    assert (reader.length, reader.vocabulary, reader.silent) == (LENGTH, VOCABULARY, 0)
    assert reader.is_causal
    assert reader.takes_short


def test_named_layers_are_used() -> None:
    model, true = net(), texts(2)
    layers = TextLayers(("blocks.0.value",), ("blocks.1.value",))
    found = recover_tokens(read(model, layers=layers), gradients(model, true))
    assert same(found.sequences, true)
    query = TextLayers(("blocks.0.query",), ("blocks.1.value",))
    found = recover_tokens(read(model, layers=query), gradients(model, true))
    assert not same(found.sequences, true)  # the first token's query gets no gradient


def no_claim(found: RecoveredTokens) -> str:
    assert not len(found.sequences)
    assert not len(found.tokens)
    assert found.why is not None
    return found.why


def test_nothing_to_find_gives_no_claim() -> None:
    """Noise, zeros, a span of nothing in particular, and another model's gradient."""
    model, rng = net(), np.random.default_rng(SEED)
    reader, real = read(model), gradients(model, texts(2))
    noise = {n: rng.normal(size=g.shape) for n, g in real.items()}
    assert "too little outside" in no_claim(recover_tokens(reader, noise))
    zeros = {n: np.zeros_like(g) for n, g in real.items()}
    assert "no gradient" in no_claim(recover_tokens(reader, zeros))
    flat = {
        n: rng.normal(size=(len(g), 20)) @ rng.normal(size=(20, g.shape[1]))
        for n, g in real.items()
        if g.ndim == 2
    }
    assert "no token" in no_claim(recover_tokens(reader, flat))
    others = gradients(net(seed=SEED + 1), texts(2))
    assert "no token" in no_claim(recover_tokens(reader, others))


def test_more_tokens_than_the_model_is_wide_give_no_claim() -> None:
    """A layer norm takes out a dimension: rank 31 of 32 is full, and everything would fit."""
    model = net(width=32, heads=2)
    found = recover_tokens(read(model), gradients(model, texts(40)))
    assert found.rank == 31
    assert "as many tokens as the model is wide" in no_claim(found)


def test_more_prefixes_than_the_model_is_wide_leave_only_tokens() -> None:
    """Few different tokens, many different prefixes: the first span has room, the second none."""
    model, rng = net(width=32, heads=2), np.random.default_rng(SEED)
    true = rng.integers(1, 3, size=(30, LENGTH))
    found = recover_tokens(read(model), gradients(model, true))
    assert not len(found.sequences)
    assert found.why is not None
    assert "fit by chance" in found.why
    assert found.tokens.tolist() == [1, 2]


def test_noise_moves_inputs_by_no_more_than_their_tolerance() -> None:
    """64 inputs, each missed with probability 1e-6 at most, less than 1e-8 with the reserve of
    1.5 for uneven rounding: false-failure rate below 1e-6. A wrong prefix must stay outside."""
    model, true = net(width=128).double(), texts(8)
    reader, rng = read(model), np.random.default_rng(SEED)
    inputs = reader.inputs(torch.from_numpy(true), "blocks.1.value").numpy()[true != 0]
    matrix = gradients(model, true)["blocks.1.value.weight"]
    size = 1e-7 * float(np.linalg.norm(matrix, 2))
    noisy = matrix + size * rng.normal(size=matrix.shape)
    span = input_span(noisy, rtol=1e-7, rounding=1e-16, floor=size)
    assert span is not None
    assert span.noise == pytest.approx(size, rel=0.1)
    assert span.holds(inputs).all()
    assert (span.distances(inputs) > span.tolerances(inputs) / 100).any()  # it is not just wide
    swapped = true.copy()
    swapped[:, :2] = true[:, 1::-1]  # another order, so other prefixes
    other = reader.inputs(torch.from_numpy(swapped), "blocks.1.value").numpy()
    changed = (swapped[:, 0] != true[:, 0]) & (true[:, 2] != 0)
    assert not span.holds(other[changed, 2]).any()


def test_the_chance_that_anything_fits_has_a_closed_form() -> None:
    """In three dimensions the part of a random direction along an axis is uniform in [-1, 1]."""
    axes = np.eye(3)
    span = InputSpan(axes[:, :2], axes[:, 2:], np.ones(2), noise=0.0, rounding=1.0)
    others = np.random.default_rng(SEED).normal(size=(50, 3))
    assert span.chance(others) == pytest.approx(0.01)  # the largest tolerance
    others[:, 2] = 0.0  # inputs never point there: all of them fit
    assert span.chance(others) == 1.0


def test_of_too_many_texts_the_surest_are_kept() -> None:
    model, true = net(), texts(3)
    reader = read(model)
    span = layer_span(
        model, reader.layers.second, gradients(model, true[:2]), rtol=1e-7, roundings=0.0
    )
    assert span is not None
    ordered = surest_first(reader, span, true[[2, 0, 1]])
    assert same(ordered[:2], true[:2])
    found = recover_tokens(reader, gradients(model, true), batch_size=2)
    assert len(found.sequences) == 2
    assert not found.is_whole


def test_no_more_prefixes_are_claimed_than_the_rank_allows() -> None:
    """With 60 of 63 dimensions taken a false text fits, too: the surest ones fill the rank."""
    model, true = net(), texts(10, seed=5)
    found = recover_tokens(read(model), stored(model, true), roundings=1.0)
    assert found.explained <= found.rank
    assert found.dropped
    assert not found.is_whole
    assert same(found.sequences, true)


class Bag(nn.Module):
    """An embedding, and no dense layer that takes single tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.embedding(inputs.long()).mean(1))
        return logits


def bad_layers(reader: Reader) -> None:
    read(reader.module, layers=TextLayers(("blocks.0.value", "blocks.1.value")))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda _: read(nn.Linear(3, 2)), "it has no embedding"),
        (lambda _: read(Bag()), "no position embedding"),
        (lambda _: read(Bag(), length=5), "none of its dense layers"),
        (lambda r: read(r.module, length=LENGTH + 1), r"refuses tokens of shape \[1, 9\]"),
        (bad_layers, r"first = \['blocks.0.value', 'blocks.1.value'\]"),
        (lambda r: recover_tokens(r, {}), r"gradient of 'blocks.0.query.weight' = None"),
        (
            lambda r: recover_tokens(r, {"blocks.0.query.weight": np.zeros((3, 2))}),
            r"\(3, 2\): the model's weight has shape \(64, 64\)",
        ),
        (
            lambda r: recover_tokens(
                r,
                {
                    f"blocks.0.{n}.weight": np.full((64, 64), np.nan)
                    for n in ("query", "key", "value")
                },
            ),
            "must be a matrix of finite numbers",
        ),
    ],
)
def test_bad_input_is_named(act: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        act(read(net()))


@pytest.mark.parametrize("name", ["token_recovery", "local_token_recovery"])
def test_a_recorded_round_gives_back_its_texts(name: str, token_run: Path) -> None:
    """From the server's seat and from a client's, with weight decay that is taken out."""
    settings = {"seat": 0} if name.startswith("local_") else {"most_updates": 10}
    (result,) = audit_run(token_run, attacks=[{"name": name, **settings}])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.num_targets == 10
    for metric in ("exact", "rouge_1", "rouge_2", "token_precision", "token_recall"):
        assert result.record.metrics[metric].value == 1.0, metric
    assert any("account for the whole rank" in note for note in result.record.notes)


def test_a_model_of_pictures_is_refused(fedsgd_run: Path) -> None:
    (result,) = audit_run(fedsgd_run, attacks=["token_recovery"])
    assert "it has no embedding" in result.record.reason  # type: ignore[union-attr]
