"""`inverting_gradients`: the preset of that name (optimisation/presets.py)."""

from __future__ import annotations

from attacks.reconstruction.gradient_inversion import preset_attack

ATTACK, LOCAL_ATTACK = preset_attack(
    "inverting_gradients",
    reference="https://arxiv.org/abs/2003.14053",
    summary="Inputs whose gradient points the same way: cosine, total variation, Adam on signs",
)
