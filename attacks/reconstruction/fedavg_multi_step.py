"""`fedavg_multi_step`: gradient inversion by the preset of that name (optimisation/presets.py)."""

from __future__ import annotations

from attacks.reconstruction.gradient_inversion import preset_attack

ATTACK, LOCAL_ATTACK = preset_attack(
    "fedavg_multi_step",
    reference="https://arxiv.org/abs/2206.12395",
    summary="Inputs whose unrolled local training gives the observed update",
    unroll=True,
)
