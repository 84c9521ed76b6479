"""fl-audit: what does this federation leak, to whom, and does the claimed defence hold?

The façade: each name is imported when it is first used, so that `import fl_audit` needs neither
torch nor Flower.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "audit_model": "attacks.model_audit:audit_model",
    "audit_run": "attacks.audit:audit_run",
    "audit_trace": "attacks.audit:audit_trace",
    "run_scenario": "simulations.run:run_scenario",
    "run_seeds": "simulations.repeat:run_seeds",
    "ModelProxy": "attacks.model_audit:ModelProxy",
    "ModelSpec": "fl_audit.factories:ModelSpec",
    "Records": "fl_audit.records:Records",
    "Estimate": "fl_audit.results:Estimate",
    "ThreatModel": "fl_audit.threat_model:ThreatModel",
    "Trace": "fl_audit.trace:Trace",
    "TraceView": "fl_audit.trace:TraceView",
    "AuditReport": "fl_audit.report.model:AuditReport",
    "CuriousStrategy": "strategies.curious:CuriousStrategy",
}

if TYPE_CHECKING:
    from attacks.audit import audit_run, audit_trace
    from attacks.model_audit import ModelProxy, audit_model
    from fl_audit.factories import ModelSpec
    from fl_audit.records import Records
    from fl_audit.report.model import AuditReport
    from fl_audit.results import Estimate
    from fl_audit.threat_model import ThreatModel
    from fl_audit.trace import Trace, TraceView
    from simulations.repeat import run_seeds
    from simulations.run import run_scenario
    from strategies.curious import CuriousStrategy

__all__ = [
    "AuditReport",
    "CuriousStrategy",
    "Estimate",
    "ModelProxy",
    "ModelSpec",
    "Records",
    "ThreatModel",
    "Trace",
    "TraceView",
    "audit_model",
    "audit_run",
    "audit_trace",
    "run_scenario",
    "run_seeds",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fl_audit' has no attribute {name!r}")
    from fl_audit.siblings import check_siblings

    check_siblings()
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
