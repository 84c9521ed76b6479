"""`idlg`: gradient inversion by the preset of that name (optimisation/presets.py)."""

from __future__ import annotations

from attacks.reconstruction.gradient_inversion import preset_attack

ATTACK, LOCAL_ATTACK = preset_attack(
    "idlg",
    reference="https://arxiv.org/abs/2001.02610",
    summary="As dlg, with the label read off the last layer first",
)
