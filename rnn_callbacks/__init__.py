"""Watch a recurrent network while it trains: what is it learning, and is it healthy?

The callbacks are resolved on first use, so that ``rnn_callbacks.analysis`` imports without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .callbacks.fixed_points import FixedPointTracker
    from .callbacks.gates import GateMonitor
    from .callbacks.gradient_flow import GradientFlowMonitor
    from .callbacks.probes import ProbeTracker
    from .callbacks.representation import RepresentationTracker
    from .callbacks.weight_trajectory import WeightTrajectoryLogger

__version__ = "0.1.0"
__all__ = [
    "FixedPointTracker",
    "GateMonitor",
    "GradientFlowMonitor",
    "ProbeTracker",
    "RepresentationTracker",
    "WeightTrajectoryLogger",
]

_HOMES = {
    "FixedPointTracker": ".callbacks.fixed_points",
    "GateMonitor": ".callbacks.gates",
    "GradientFlowMonitor": ".callbacks.gradient_flow",
    "ProbeTracker": ".callbacks.probes",
    "RepresentationTracker": ".callbacks.representation",
    "WeightTrajectoryLogger": ".callbacks.weight_trajectory",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
