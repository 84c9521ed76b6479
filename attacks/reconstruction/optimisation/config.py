"""Settings of gradient inversion: one composable engine, every part chosen by name."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

ObjectiveName = Literal["euclidean", "cosine", "masked_cosine", "sign"]
LayerWeights = Literal["equal", "linear", "exponential"]
Start = Literal["normal", "uniform", "zeros", "patterned", "mean"]
Optimiser = Literal["auto", "adam", "lbfgs"]
Signed = Literal["no", "hard", "soft"]
Schedule = Literal["constant", "step", "cosine"]
Labels = Literal["inferred", "known", "joint"]
Statistics = Literal["none", "running", "inferred", "proxy"]
Precision = Literal["float32", "float64"]
Bounds = tuple[float | list[float], float | list[float]] | Literal["auto"] | None


class InversionConfig(BaseModel):
    """How inputs are searched whose gradient is the observed one.

    Raises:
        pydantic.ValidationError: If a field is unknown or impossible; `preset` raises an InputError
            that names the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    objective: ObjectiveName = "cosine"
    """What distance between gradients is: "euclidean" (squared, as a share of the observed one's),
    "cosine" (1 - cosine: blind to the scale, and so to clipping), "masked_cosine" (on coordinates
    that are not 0 in the observed one: what pruning left) or "sign" (the share of coordinates with
    the wrong sign, softened: for updates that are signs)."""
    layer_weights: LayerWeights = "equal"
    """How much parameters count, from the first to the last: alike, 1..n, or doubling from the
    last to the first (each is scaled to the largest being 1)."""
    drop_layers: list[str] = Field(default_factory=list)
    """Parameters left out of the objective, because a defence changed them."""

    total_variation: float = Field(default=0.0, ge=0)
    """Weight of the mean absolute difference of neighbouring pixels."""
    norm: float = Field(default=0.0, ge=0)
    """Weight of the mean square of the inputs."""
    batch_norm: float = Field(default=0.0, ge=0)
    """Weight of how far the batch's statistics at each BatchNorm layer are from `statistics`."""
    statistics: Statistics = "none"
    """Where BatchNorm statistics come from: the "running" ones of the received model, "inferred"
    from how the client's update moved them, or "proxy" inputs run through the model."""
    group_consistency: float = Field(default=0.0, ge=0)
    """Weight of the mean squared distance between restarts and their mean; needs restarts."""

    start: Start = "normal"
    """Inputs before the first step."""
    labels: Labels = "inferred"
    """Class labels: "inferred" from the last layer, "known" where the threat model grants it, or
    "joint": soft labels that are optimised together with the inputs."""

    optimiser: Optimiser = "auto"
    """"auto": L-BFGS where the model is smooth, otherwise Adam."""
    signed: Signed = "hard"
    """Adam on the sign of the gradient ("hard"), a soft sign of it ("soft"), or itself ("no")."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Adam's, in units of the inputs."""
    schedule: Schedule = "step"
    """"step": times 0.1 after 3/8, 5/8 and 7/8 of the iterations; "cosine": to 0."""
    warmup: int = Field(default=0, ge=0)
    """Iterations over which the learning rate rises from 0."""
    iterations: int = Field(default=2400, ge=1)
    """Evaluations of the objective's gradient, at most: Adam's steps, or those of L-BFGS with its
    line search."""
    restarts: int = Field(default=1, ge=1)
    """Searches from different starts; the one with the best objective is reported."""
    patience: int = Field(default=0, ge=0)
    """Stop if the best objective has not fallen by 1 % for so many iterations; 0: never."""
    tolerance: float = Field(default=0.0, ge=0)
    """Stop when the objective is below this."""
    box: bool = True
    """Keep inputs within `bounds`: after every step of Adam, and at the end."""
    bounds: Bounds = "auto"
    """Smallest and largest value of an input, or of each channel; None if that is not known.
    "auto": 0 and 1 where the attacker's own records lie between them, otherwise not known."""

    refine: int = Field(default=0, ge=0)
    """Steps of Levenberg-Marquardt after the search, at most."""
    refine_evaluations: int = Field(default=40_000, ge=1)
    """Products with the Jacobian that refinement may take, each the price of about one evaluation:
    a step takes one for each unknown where the Jacobian is formed (3,072 for a photograph of 32 x
    32), and otherwise at most 502 for each damping that it tries."""
    dense_limit: int = Field(default=3072, ge=1)
    """Unknowns up to which Levenberg-Marquardt forms the Jacobian; above, conjugate gradients."""
    precision: Precision = "float64"
    """Of the search, whatever the observed gradient's: 1 - cosine stalls at 2e-5 in float32."""
    frames: int = Field(default=0, ge=0)
    """Reconstructions on the way to keep, evenly spread."""

    @model_validator(mode="after")
    def _fits_together(self) -> InversionConfig:
        if isinstance(self.bounds, tuple) and not np.less(*self.bounds).all():
            raise ValueError(f"bounds {self.bounds} must rise")
        if self.batch_norm and self.statistics == "none":
            raise ValueError('batch_norm needs statistics: "running", "inferred" or "proxy"')
        if self.group_consistency and (self.restarts < 2 or self.optimiser == "lbfgs"):
            raise ValueError("group_consistency compares restarts: it needs Adam, restarts >= 2")
        if self.objective == "sign" and self.refine:
            raise ValueError("the sign objective is no sum of squares: it needs refine = 0")
        return self
