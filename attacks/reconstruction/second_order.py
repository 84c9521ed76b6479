"""`second_order`: gradient inversion by the preset of that name (optimisation/presets.py)."""

from __future__ import annotations

from attacks.reconstruction.gradient_inversion import preset_attack

ATTACK, LOCAL_ATTACK = preset_attack(
    "second_order",
    reference="https://doi.org/10.1007/978-0-387-40065-5",
    summary="Inputs whose gradient points the same way: L-BFGS, then Levenberg-Marquardt",
)
