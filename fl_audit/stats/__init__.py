"""Statistics of membership scores: pure functions on arrays, and every estimate with its interval.

Higher score = more likely a member. All rates are fractions.
"""

from fl_audit.stats.auc_interval import auc_ci
from fl_audit.stats.curves import RocCurve, auc, roc
from fl_audit.stats.differences import auc_gain_ci, difference
from fl_audit.stats.means import mean_ci, median_ci, share_ci
from fl_audit.stats.proportions import (
    balanced_accuracy_ci,
    clopper_pearson_interval,
    proportion,
    wilson_interval,
)
from fl_audit.stats.tpr import (
    UnresolvableFprError,
    min_non_members,
    resolving_non_members,
    tpr_at_fpr,
)

__all__ = [
    "RocCurve",
    "UnresolvableFprError",
    "auc",
    "auc_ci",
    "auc_gain_ci",
    "balanced_accuracy_ci",
    "clopper_pearson_interval",
    "difference",
    "mean_ci",
    "median_ci",
    "min_non_members",
    "proportion",
    "resolving_non_members",
    "roc",
    "share_ci",
    "tpr_at_fpr",
    "wilson_interval",
]
