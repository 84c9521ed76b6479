"""How well gradient inversion does on real photographs, as figures in dB.

    python tests/benchmarks/inversion.py [default] [reference] [refine] [fedavg]

Six photographs of 32 x 32 pixels, normalised with CIFAR-10's mean and standard deviation, label 3
of 10, which is known; LeNetZhu, untrained, eval mode, gradients in float32. PSNR on [0, 1], in
float64. Start: Gaussian noise from the net's seed. Figures are means over the photographs, for net
seeds 0-2, beside the prior-only baseline: the mean of the other five photographs.

default, reference: `second_order` without refinement within 500 gradient evaluations against
`inverting_gradients` with 2,400 iterations, at both initialisations.
refine: `second_order` with Levenberg-Marquardt, gradients in float64: share of images at 60 dB.
fedavg: four local steps on four tiles in an order that only the client knows, unrolled against read
as one gradient, same update, labels known as counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from attacks.reconstruction.metrics import psnr
from attacks.reconstruction.optimisation.engine import invert_gradients
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.simulation import OneGradient, pseudo_gradient
from attacks.reconstruction.resimulation import simulated_update
from fl_audit.local_training import LocalTraining
from fl_audit.stats import mean_ci
from simulations.data.builtin import photographs, tiles
from simulations.models import lenet_zhu

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
BOUNDS = tuple((((side - MEAN) / STD).flatten()).tolist() for side in (0.0, 1.0))
SHAPE = (3, 32, 32)
LABEL = 3
SEEDS = (0, 1, 2)


def main(parts: Sequence[str]) -> None:
    """Print one line a figure."""
    torch.set_num_threads(1)
    pictures = torch.stack([_resized(photo) for photo in photographs()])
    print(f"prior only: {np.mean([_prior(pictures, i) for i in range(len(pictures))]):.2f} dB")
    for initialisation in ("default", "reference"):
        if initialisation in parts:
            _line(pictures, initialisation, "second_order", iterations=500, refine=0)
            _line(pictures, initialisation, "inverting_gradients", iterations=2400)
    if "refine" in parts:
        _refined(pictures)
    if "fedavg" in parts:
        _fedavg()


def _line(pictures: torch.Tensor, initialisation: str, name: str, **changes: object) -> None:
    values, seconds, most = [], time.process_time(), 0
    for seed in SEEDS:
        for picture in pictures:
            model = _model(initialisation, seed)
            found, evaluations = _invert(model, picture, name, seed, **changes)
            values.append(psnr(found, picture.double().numpy()))
            most = max(most, evaluations)
        print(f"  {initialisation}, {name}, seed {seed}: {np.mean(values[-6:]):.2f} dB", flush=True)
    each = (time.process_time() - seconds) / len(values)
    print(
        f"{initialisation}, {name}: {mean_ci(np.array(values))} dB over {len(values)} inversions, "
        f"at most {most} evaluations, {each:.1f} s each",
        flush=True,
    )


def _refined(pictures: torch.Tensor) -> None:
    values = []
    for place, picture in enumerate(pictures):
        begin = time.process_time()
        model = _model("default", 0).double()
        found, _ = _invert(model, picture.double(), "second_order", 0)
        values.append(psnr(found, picture.double().numpy()))
        spent = time.process_time() - begin
        print(f"  refined, photograph {place}: {values[-1]:.1f} dB, {spent:.0f} s", flush=True)
    exact = sum(value >= 60 for value in values)
    print(f"refined, default, seed 0, float64: {exact} of {len(values)} at 60 dB or more")


def _fedavg() -> None:
    records = tiles().records
    for rate in (0.01, 0.1, 0.5):
        training = LocalTraining(learning_rate=rate, local_epochs=1, batch_size=1)
        results: dict[str, list[float]] = {"unrolled": [], "one gradient": []}
        for seed in range(5):
            rng = np.random.default_rng(seed)
            rows = rng.permutation(len(records))[:4]
            inputs = torch.from_numpy(records.inputs[rows])
            labels = torch.from_numpy(np.sort(rng.permutation(10)[:4]))
            model = _model("default", seed)
            update = simulated_update(model, inputs, labels, training, rate, rng=rng)
            gradient = pseudo_gradient(update, rate, 4)
            plan = LocalPlan(training, rate, 4)
            for name, own in (("unrolled", plan), ("one gradient", None)):
                found = invert_gradients(
                    model,
                    gradient,
                    input_shape=SHAPE,
                    labels=labels,
                    config=preset("fedavg_multi_step", bounds=(0.0, 1.0)),
                    generator=torch.Generator().manual_seed(seed),
                    plan=own,
                )
                results[name].append(_matched(found.inputs, inputs.double().numpy()))
        for name, values in results.items():
            print(
                f"fedavg, 4 steps, rate {rate}, {name}: {mean_ci(np.array(values))} dB", flush=True
            )


def _matched(found: np.ndarray, originals: np.ndarray) -> float:
    """Mean PSNR of the pairing with the least total error."""
    cost = np.array([[np.mean((a - b) ** 2) for b in originals] for a in found])
    rows, columns = linear_sum_assignment(cost)
    return float(
        np.mean([psnr(found[r], originals[c]) for r, c in zip(rows, columns, strict=True)])
    )


def _invert(
    model: torch.nn.Module, picture: torch.Tensor, name: str, seed: int, **changes: object
) -> tuple[np.ndarray, int]:
    like = next(model.parameters())
    names = tuple(n for n, _ in model.named_parameters())
    inputs = ((picture - MEAN) / STD)[None].to(like.dtype)
    gradient = OneGradient(model, names)(inputs, torch.tensor([LABEL]))
    result = invert_gradients(
        model,
        dict(zip(names, gradient, strict=True)),
        input_shape=SHAPE,
        labels=[LABEL],
        config=preset(name, bounds=BOUNDS, **changes),
        generator=torch.Generator().manual_seed(seed),
    )
    found = result.inputs[0] * STD.double().numpy() + MEAN.double().numpy()
    return found, result.evaluations


def _model(initialisation: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return lenet_zhu(input_shape=SHAPE, num_classes=10, initialisation=initialisation).eval()


def _prior(pictures: torch.Tensor, place: int) -> float:
    others = torch.cat([pictures[:place], pictures[place + 1 :]]).double().mean(0)
    return psnr(others.numpy(), pictures[place].double().numpy())


def _resized(photo: np.ndarray) -> torch.Tensor:
    small = Image.fromarray(photo).resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    main(sys.argv[1:] or ["default", "reference", "refine", "fedavg"])
