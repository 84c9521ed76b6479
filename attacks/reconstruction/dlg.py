"""`dlg`: gradient inversion by the preset of that name (optimisation/presets.py)."""

from __future__ import annotations

from attacks.reconstruction.gradient_inversion import preset_attack

ATTACK, LOCAL_ATTACK = preset_attack(
    "dlg",
    reference="https://arxiv.org/abs/1906.08935",
    summary="Inputs and labels whose gradient is the observed one: squared distance, L-BFGS",
)
