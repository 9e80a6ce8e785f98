"""Numbers and settings in the summaries of an event file."""

from __future__ import annotations

from typing import Any

SESSION = "_hparams_/session_start_info"
SCALARS = "scalars"  # the plugin's name


def is_number(value: Any) -> bool:
    """Whether a summary may be a scalar: a plain one, or one that the plugin of other writers wraps in a tensor."""
    kind = value.WhichOneof("value")
    return kind == "simple_value" or (
        kind == "tensor"
        and value.metadata.plugin_data.plugin_name in (SCALARS, "")
        and not value.tensor.tensor_shape.unknown_rank
        and all(dim.size == 1 for dim in value.tensor.tensor_shape.dim)
    )


def unwrapped(tensor: Any) -> float | None:
    """The number in a tensor that says of itself to hold one; None where it does not."""
    from tensorboard.util.tensor_util import make_ndarray  # rarely needed

    try:
        array = make_ndarray(tensor)
        return float(array.reshape(())) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError):  # another type, or another count
        return None


def session(value: Any) -> dict[str, Any]:
    """Hyperparameters as `SummaryWriter.add_hparams` and Lightning write them."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # rarely needed, slow to import

    info = HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info
    kinds = {"number_value", "string_value", "bool_value"}
    return {
        name: getattr(entry, kind)
        for name, entry in sorted(info.hparams.items())
        if (kind := entry.WhichOneof("kind")) in kinds
    }
