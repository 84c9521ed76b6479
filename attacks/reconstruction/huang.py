"""`huang`: gradient inversion by the preset of that name (optimisation/presets.py)."""

from __future__ import annotations

from attacks.reconstruction.gradient_inversion import preset_attack

ATTACK, LOCAL_ATTACK = preset_attack(
    "huang",
    reference="https://arxiv.org/abs/2112.00059",
    summary="As inverting_gradients, with BatchNorm statistics and stronger smoothing",
)
