"""Augmentation consistency: how many changed copies of a record are still answered rightly?

Close to a member a model keeps its answer; close to a non-member it errs sooner. Strongest on
models that were trained on such copies.

References:
    Choquette-Choo, Tramèr, Carlini, Papernot, "Label-Only Membership Inference Attacks", ICML 2021,
    section 3. https://arxiv.org/abs/2007.14321
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.preprocessing import StandardScaler

from attacks.shadows.lab import require_lab
from attacks.shadows.workshop import Transform
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation

_QUERY_BYTES = 1 << 22  # inputs of one query: 4 MB; more is slower, for want of cache


class Settings(AttackSettings):
    """What a scenario may set: `{name = "augmentation_consistency", kind = "noise"}`."""

    kind: Literal["auto", "image", "noise"] = Field(
        default="auto", description="auto: image for inputs (channels, height, width), else noise"
    )
    mirror: bool = Field(default=True, description="Image: left to right")
    shift: int = Field(default=2, ge=0, le=16, description="Image: pixels, down plus across")
    angle: float = Field(default=5.0, ge=0, le=180, description="Image: degrees, both ways")
    noise: float = Field(default=0.3, gt=0, description="Noise: in a feature's own deviations")
    num: int = Field(default=20, ge=1, le=10_000, description="Noise: copies")


def augmentation_consistency_scores(
    answers: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of a record's copies that are answered with its label.

    Args:
        answers: Classes of q copies of each record, shape (q, n).
        labels: True classes, shape (n,).

    Returns:
        Scores in [0, 1], shape (n,); higher = more likely a member. Equal shares tie.

    Raises:
        InputError: If there is no copy, or not one answer for each label.
    """
    if answers.ndim != 2 or len(answers) == 0 or answers.shape[1] != len(labels):
        raise InputError(
            "answers",
            answers.shape,
            f"must have shape (copies, {len(labels)}), with at least one copy",
            "Give one row of classes for each copy.",
        )
    share: NDArray[np.float64] = (answers == labels).mean(axis=0)
    return share


def image_transform(
    *, mirror: bool = False, down: int = 0, across: int = 0, angle: float = 0.0
) -> Transform:
    """Mirror images (n, channels, height, width), then shift, then rotate them.

    Args:
        down, across: Pixels; what comes in from outside repeats the edge.
        angle: Degrees, counter-clockwise about the centre, between pixels linearly.
    """

    def apply(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = inputs.shape[-2:]
        changed = inputs[..., ::-1] if mirror else inputs
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - across, 0, width - 1)
        moved = np.ascontiguousarray(changed[..., rows[:, None], columns])
        return _rotated(moved, angle) if angle else moved

    return apply


def shifted(offset: NDArray[np.float32]) -> Transform:
    """Add the same offset, of the shape of one input, to every record."""
    return lambda inputs: inputs + offset


def feature_deviations(records: Records) -> NDArray[np.float64]:
    """Standard deviation of each feature over records, in the shape of one input."""
    scaler = StandardScaler()
    for rows in records.blocks():
        block = np.asarray(records.inputs[rows])
        scaler.partial_fit(block.reshape(len(block), -1).astype(np.float64))
    deviations: NDArray[np.float64] = np.sqrt(scaler.var_).reshape(records.input_shape)
    return deviations


def require_images(shape: Sequence[int], name: str, value: str, *, instead: str) -> None:
    """Refuse inputs that are no images.

    Raises:
        InputError: If `shape` is not (channels, height, width).
    """
    if len(shape) != 3:
        raise InputError(
            name,
            value,
            f"needs images (channels, height, width); inputs have shape {tuple(shape)}",
            f"Use {name} = {instead!r}.",
        )


def _rotated(images: NDArray[np.float32], angle: float) -> NDArray[np.float32]:
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # torch's coordinates run from -1 to 1 along both sides, whatever their lengths
    matrix = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    whole = matrix.expand(len(images), 2, 3)
    grid = torch.nn.functional.affine_grid(whole, list(images.shape), align_corners=False)
    turned: NDArray[np.float32] = torch.nn.functional.grid_sample(
        torch.from_numpy(images), grid, padding_mode="border", align_corners=False
    ).numpy()
    return turned


def _image_copies(settings: Settings) -> list[Transform]:
    """The record itself, then mirrored, shifted every way up to `shift` pixels, and rotated."""
    reach = range(-settings.shift, settings.shift + 1)
    shifts = [(y, x) for y in reach for x in reach if 0 < abs(y) + abs(x) <= settings.shift]
    copies = [image_transform()]
    if settings.mirror:
        copies.append(image_transform(mirror=True))
    copies += [image_transform(down=y, across=x) for y, x in shifts]
    if settings.angle:
        copies += [image_transform(angle=sign * settings.angle) for sign in (-1, 1)]
    return copies


def _noisy_copies(
    settings: Settings, deviations: NDArray[np.float64], rng: np.random.Generator
) -> list[Transform]:
    """The record itself, then copies with noise that is the same for all records."""
    scale = settings.noise * deviations
    noise = (scale * rng.standard_normal(scale.shape) for _ in range(settings.num))
    return [shifted(np.zeros(1, np.float32)), *(shifted(n.astype(np.float32)) for n in noise)]


def _answers(
    classes: Callable[[NDArray[np.float32]], NDArray[np.int64]],
    records: Records,
    copies: list[Transform],
) -> NDArray[np.int64]:
    """Classes of every copy of every record, (q, n); inputs are read once."""
    answers = np.empty((len(copies), len(records)), dtype=np.int64)
    for rows in records.blocks(num_bytes=_QUERY_BYTES):
        inputs = np.asarray(records.inputs[rows])
        for number, copy in enumerate(copies):
            answers[number, rows] = classes(copy(inputs))
    return answers


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    records = lab.candidates
    is_image = len(records.input_shape) == 3
    kind = settings.kind if settings.kind != "auto" else "image" if is_image else "noise"
    if kind == "image":
        require_images(records.input_shape, "kind", kind, instead="noise")
        copies = _image_copies(settings)
    else:
        lab.require_population()
        copies = _noisy_copies(settings, feature_deviations(lab.auxiliary), given.rng)
    answers = _answers(lab.classes, records, copies)
    scores = augmentation_consistency_scores(answers, records.labels)
    return MembershipScores(scores, notes=(f"{len(copies)} queries a record ({kind}).",))


ATTACK = AttackSpec(
    name="augmentation_consistency",
    kind="membership",
    requires=Observation.LABELS_ONLY,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2007.14321",
    summary="Members are still answered rightly when shifted, rotated or noisy, by labels alone",
    settings=Settings,
)
