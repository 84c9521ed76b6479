"""The attacks there are: one literal, nothing imported until it is asked for.

Third parties add theirs by the entry-point group `fl_audit.attacks`
(`my_attack = "my_package.my_module:ATTACK"`).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from fl_audit.attack_spec import AttackSpec
from fl_audit.errors import InputError, UnknownNameError
from fl_audit.factories import load_attribute

ATTACKS = {
    "ascent_response": "attacks.federated.ascent_response:ATTACK",
    "attribute_inference": "attacks.federated.attribute_inference:ATTACK",
    "augmentation_consistency": "attacks.membership.augmentation_consistency:ATTACK",
    "base": "attacks.membership.base:ATTACK",
    "boundary_distance": "attacks.membership.boundary_distance:ATTACK",
    "calibration": "attacks.membership.calibration:ATTACK",
    "confidence": "attacks.membership.confidence:ATTACK",
    "cosine": "attacks.federated.cosine:ATTACK",
    "distillation": "attacks.membership.distillation:ATTACK",
    "dlg": "attacks.reconstruction.dlg:ATTACK",
    "embedding_rows": "attacks.federated.embedding_rows:ATTACK",
    "entropy": "attacks.membership.entropy:ATTACK",
    "fedavg_multi_step": "attacks.reconstruction.fedavg_multi_step:ATTACK",
    "federated_stacking": "attacks.federated.stacking:ATTACK",
    "fedmia": "attacks.federated.fedmia:ATTACK",
    "fishing": "attacks.reconstruction.fishing:ATTACK",
    "gap": "attacks.membership.gap:ATTACK",
    "gradient_difference": "attacks.federated.gradient_difference:ATTACK",
    "gradient_norm": "attacks.federated.gradient_norm:ATTACK",
    "gradient_regression": "attacks.federated.gradient_regression:ATTACK",
    "huang": "attacks.reconstruction.huang:ATTACK",
    "idlg": "attacks.reconstruction.idlg:ATTACK",
    "imprint": "attacks.reconstruction.imprint:ATTACK",
    "inverting_gradients": "attacks.reconstruction.inverting_gradients:ATTACK",
    "label_counts": "attacks.reconstruction.label_attack:ATTACK",
    "label_distribution": "attacks.federated.label_distribution:ATTACK",
    "linear_inversion": "attacks.reconstruction.linear:ATTACK",
    "lira": "attacks.membership.lira:ATTACK",
    "local_ascent_response": "attacks.federated.local_ascent_response:ATTACK",
    "local_cosine": "attacks.federated.cosine:LOCAL_ATTACK",
    "local_dlg": "attacks.reconstruction.dlg:LOCAL_ATTACK",
    "local_fedavg_multi_step": "attacks.reconstruction.fedavg_multi_step:LOCAL_ATTACK",
    "local_gradient_difference": "attacks.federated.gradient_difference:LOCAL_ATTACK",
    "local_gradient_norm": "attacks.federated.gradient_norm:LOCAL_ATTACK",
    "local_gradient_regression": "attacks.federated.gradient_regression:LOCAL_ATTACK",
    "local_huang": "attacks.reconstruction.huang:LOCAL_ATTACK",
    "local_idlg": "attacks.reconstruction.idlg:LOCAL_ATTACK",
    "local_inverting_gradients": "attacks.reconstruction.inverting_gradients:LOCAL_ATTACK",
    "local_label_counts": "attacks.reconstruction.label_attack:LOCAL_ATTACK",
    "local_label_distribution": "attacks.federated.label_distribution:LOCAL_ATTACK",
    "local_linear_inversion": "attacks.reconstruction.linear:LOCAL_ATTACK",
    "local_loss_series": "attacks.federated.loss_series:LOCAL_ATTACK",
    "local_second_order": "attacks.reconstruction.second_order:LOCAL_ATTACK",
    "local_spear": "attacks.reconstruction.spear_attack:LOCAL_ATTACK",
    "local_tabular": "attacks.reconstruction.tabular:LOCAL_ATTACK",
    "local_token_recovery": "attacks.reconstruction.tokens:LOCAL_ATTACK",
    "local_token_sets": "attacks.reconstruction.token_sets:LOCAL_ATTACK",
    "local_trajectory": "attacks.federated.trajectory:LOCAL_ATTACK",
    "loss_series": "attacks.federated.loss_series:ATTACK",
    "loss_threshold": "attacks.membership.loss_threshold:ATTACK",
    "loss_trajectory": "attacks.membership.loss_trajectory:ATTACK",
    "modified_entropy": "attacks.membership.modified_entropy:ATTACK",
    "multi_signal_lira": "attacks.membership.multi_signal_lira:ATTACK",
    "population": "attacks.membership.population:ATTACK",
    "property_inference": "attacks.federated.property_inference:ATTACK",
    "quantile_regression": "attacks.membership.quantile_regression:ATTACK",
    "range_membership": "attacks.membership.range_membership:ATTACK",
    "reference": "attacks.membership.reference:ATTACK",
    "relu_trap": "attacks.federated.relu_trap:ATTACK",
    "rmia": "attacks.membership.rmia:ATTACK",
    "row_space": "attacks.federated.row_space:ATTACK",
    "second_order": "attacks.reconstruction.second_order:ATTACK",
    "shadow": "attacks.membership.shadow:ATTACK",
    "source_inference": "attacks.federated.source_inference:ATTACK",
    "spear": "attacks.reconstruction.spear_attack:ATTACK",
    "stacking": "attacks.membership.stacking:ATTACK",
    "tabular": "attacks.reconstruction.tabular:ATTACK",
    "token_recovery": "attacks.reconstruction.tokens:ATTACK",
    "token_sets": "attacks.reconstruction.token_sets:ATTACK",
    "trajectory": "attacks.federated.trajectory:ATTACK",
    "user_membership": "attacks.federated.user_membership:ATTACK",
    "weight_traps": "attacks.reconstruction.weight_traps:ATTACK",
    "white_box": "attacks.membership.white_box:ATTACK",
}

_GROUP = "fl_audit.attacks"


@cache
def known_attacks() -> dict[str, str]:
    """Name -> "module:ATTACK", third parties included. Ours win where names clash."""
    return {e.name: e.value for e in entry_points(group=_GROUP)} | ATTACKS


def load_attack(name: str) -> AttackSpec:
    """Import one attack.

    Raises:
        UnknownNameError: If no attack has that name.
        InputError: If a third party's entry point is not an attack.
    """
    if name not in known_attacks():
        raise UnknownNameError("attack", name, known_attacks())
    path = known_attacks()[name]
    spec = load_attribute(path, f"attack {name!r}")
    if not isinstance(spec, AttackSpec):
        raise InputError(
            f"attack {name!r}",
            path,
            f"is a {type(spec).__name__}, not an AttackSpec",
            "Let the entry point name an fl_audit.attack_spec.AttackSpec.",
        )
    return spec
