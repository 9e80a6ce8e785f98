"""The model's own validation loss on the plane of its path, computed on a copy of the model."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..analysis.loss_plane import LossPlane, NoPlaneError, plane_directions, plane_grid
from ..analysis.weight_trajectory import WeightTrajectory
from ..weight_snapshots import SnapshotFile
from .look import Look, rehearsal
from .rehearsed_loss import HeardBatch, validation_loss


def loss_plane(
    look: Look, path: WeightTrajectory, file: SnapshotFile, batches: list[HeardBatch], *, points: int
) -> LossPlane:
    """Loss around the path, through the last snapshot.

    Args:
        look: whose model and trainer.
        path: of all weights.
        file: exact snapshots.
        batches: validation batches on which the loss is computed.
        points: on each side of the grid.

    Raises:
        NoPlaneError: when the path has no plane, or no batch was heard.
        RuntimeError: when ``validation_step`` gives no loss.
    """
    x, y = plane_grid(path, points)
    if not batches:
        raise NoPlaneError("it needs a validation batch, and none was heard")
    model = rehearsal(look.pl_module)
    parameters: dict[str, Tensor] = {
        name.replace("_orig_mod.", ""): parameter for name, parameter in model.named_parameters()
    }
    names = list(dict.fromkeys(column.parameter for column in file.columns if column.width))
    centre, ways = _centre_and_ways(path, file, names, parameters)
    losses = np.empty((len(y), len(x)))
    here = path.components.scores[-1, :2]
    for (row, b), (column, a) in product(enumerate(y - here[1]), enumerate(x - here[0])):
        with torch.no_grad():
            for name, (first, second) in ways.items():
                parameters[name].copy_(centre[name] + float(a) * first + float(b) * second)
        losses[row, column] = validation_loss(look.trainer, model, batches, setting="loss_plane")
    return LossPlane(x, y, losses, path.components.scores[:, :2])


def _centre_and_ways(
    path: WeightTrajectory, file: SnapshotFile, names: list[str], parameters: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """By parameter: its weights in the last snapshot, and the two directions of the plane, where the model is."""
    last, at = file.row(len(file) - 1), 0
    centre: dict[str, Tensor] = {}
    ways: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        like = parameters[name]
        own = [number for number, column in enumerate(file.columns) if column.parameter == name]
        width = sum(file.columns[number].width for number in own)
        parts = [pair for number in own for pair in plane_directions(path, file.read_column(number, path.steps.points))]
        vectors = [last[at : at + width], *(np.concatenate(side) for side in zip(*parts, strict=True))]
        at += width
        shaped = [_shaped(vector, like) for vector in vectors]
        centre[name], ways[name] = shaped[0], (shaped[1], shaped[2])
    return centre, ways


def _shaped(vector: np.ndarray, like: Tensor) -> Tensor:
    """Numbers in torch's order as a tensor of a parameter's shape, where the parameter is."""
    numbers = torch.from_numpy(vector.astype(np.float64))
    if like.is_complex():
        numbers = torch.view_as_complex(numbers.view(*like.shape, 2))
    return numbers.view(like.shape).to(like.device, torch.promote_types(like.dtype, torch.float32))
