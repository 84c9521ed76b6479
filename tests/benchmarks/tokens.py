"""Exact recovery of texts from a transformer's gradient: ROUGE, whole texts, and seconds.

    python tests/benchmarks/tokens.py FOLDER [--batches 20] [--sizes 1 4] [--kinds float64 float32]

FOLDER holds AG News as parquet files (columns text, label; splits train and test). The vocabulary
is the 8,000 commonest words of the train split, texts are cut or padded to 32 tokens. The model is
the built-in `transformer` (pre-LN, causal, 2 layers, width 256, 4 heads, mean over tokens, no
dropout), untrained, in eval mode; net seed and batch differ for each of the batches. Kinds:
gradients in float64 (of a float64 model), in float32, and `update`: what one SGD step with
learning rate 0.1 leaves in float32 weights, which is what a recorded round shows. The batch size
is not told to the attack. ROUGE is the mean over batches of the mean over texts; found texts are
paired with the true ones so that most tokens agree, and a text that was not found counts 0.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.metrics import pair, rouge
from attacks.reconstruction.token_layers import read
from attacks.reconstruction.token_recovery import recover_tokens
from fl_audit.randomness import derived_rng
from simulations.data import Dataset, load_dataset
from simulations.models import model_spec, seeded
from simulations.scenario import Data, Model

LEARNING_RATE = 0.1


def gradients(
    model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, kind: str
) -> dict[str, NDArray[Any]]:
    """Gradients of the mean loss, or for `update` the step that they leave in the weights."""
    model.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    found = {}
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        step = weight.detach() - LEARNING_RATE * weight.grad - weight.detach()
        found[name] = (step if kind == "update" else weight.grad).numpy()
    return found


def batch(dataset: Dataset, kind: str, size: int, number: int) -> dict[str, float]:
    """One batch: ROUGE-1, ROUGE-2, share of whole texts, whether it is explained, and seconds."""
    spec = model_spec(Model(name="transformer"), dataset)
    model = seeded(spec, seed=number).eval()
    model = model.double() if kind == "float64" else model
    rng = derived_rng(number, "batch", size)
    rows = rng.choice(len(dataset.records), size, replace=False)
    inputs = torch.from_numpy(dataset.records.inputs[rows])
    found = gradients(model, inputs, torch.from_numpy(dataset.records.labels[rows]), kind)
    start = time.perf_counter()
    result = recover_tokens(read(model), found, roundings=float(kind == "update"))
    seconds = time.perf_counter() - start
    true = inputs.numpy().astype(np.float64)
    own, theirs = pair(result.sequences.astype(np.float64), true, by_position=True)
    pairs = [
        (result.sequences[i], true[j].astype(np.int64)) for i, j in zip(own, theirs, strict=True)
    ]
    return {
        "rouge_1": sum(rouge(a.tolist(), b.tolist(), size=1) for a, b in pairs) / size,
        "rouge_2": sum(rouge(a.tolist(), b.tolist(), size=2) for a, b in pairs) / size,
        "whole": sum(bool((a == b).all()) for a, b in pairs) / size,
        "too many": max(0, len(result.sequences) - size),
        "explained": float(result.is_whole),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--kinds", nargs="+", default=["float64", "float32", "update"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"words": 8000, "length": 32}
    dataset = load_dataset(Data(name=given.folder, settings=settings))
    for kind in given.kinds:
        for size in given.sizes:
            found = [batch(dataset, kind, size, number) for number in range(given.batches)]
            means = {name: np.mean([one[name] for one in found]) for name in found[0]}
            median = np.median([one["seconds"] for one in found])
            print(
                f"{kind:8s} batch {size}: ROUGE-1 {means['rouge_1']:.4f}, ROUGE-2 "
                f"{means['rouge_2']:.4f}, whole texts {means['whole']:.4f}, texts too many "
                f"{means['too many']:.2f}, explained {means['explained']:.2f}, "
                f"{len(found)} batches, median {median:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
