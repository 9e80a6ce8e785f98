"""What tests of `WeightTrajectoryLogger` share: a run's snapshots and reports, and the weights on a second road."""

import warnings

import lightning.pytorch as pl
import numpy as np
from sklearn.decomposition import PCA
from torch import nn

from rnn_callbacks import WeightTrajectoryLogger
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load
from rnn_callbacks.weight_snapshots import SnapshotFile

from ..models import CLASSES, UNITS, Classifier


def logger(**options):
    """Looks at every second epoch, without pictures: looking and logging take most of the time."""
    return WeightTrajectoryLogger(**{"every_n_epochs": 2, "figure_every_n_epochs": 99, "on_error": "raise"} | options)


class Large(Classifier):
    """So many weights that sketches of them are smaller."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(UNITS, 20_011), nn.Linear(20_011, CLASSES))


def folder(fit):
    """Of the latest run."""
    run = max(fit.logs.glob("version_*"), key=lambda path: int(path.name.removeprefix("version_")))
    return run / "rnn_callbacks" / "weight_trajectory"


def snapshots(fit, name="snapshots"):
    return SnapshotFile(folder(fit) / name)


def rows(file):
    return np.stack([file.row(k) for k in range(len(file))])


def times(file):
    return [(entry.epoch, entry.step) for entry in file.entries]


def values(file):
    return [entry.value for entry in file.entries]


def reports(fit):
    return [load(str(path)).report for path in sorted(folder(fit).glob("*.npz"))]


def watch(fit, *callbacks, **options):
    """A run, its trainer, and what was said in it."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer = fit(*callbacks, **options)
    return trainer, [str(w.message) for w in heard if issubclass(w.category, RecurrentHealthWarning)]


def numbers(trainer):
    """What was logged, but for how long it took."""
    found = {tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("weight_trajectory/")}
    return {tag: v for tag, v in found.items() if not tag.endswith(("/seconds", "/overhead"))}


class Keeps(pl.Callback):
    """Keeps all parameters after every epoch, or after every batch, on a road of its own."""

    def __init__(self, *, every_batch=False):
        self.every_batch = every_batch
        self.kept = []

    def keep(self, trainer, pl_module):
        named = pl_module.named_parameters()
        self.kept.append({name: p.detach().double().numpy().copy() for name, p in named})

    on_train_start = on_train_epoch_end = keep

    def on_train_batch_end(self, trainer, pl_module, *rest):
        if self.every_batch:
            self.keep(trainer, pl_module)

    def weights(self, *names, rows=slice(None)):
        """``(E, P)``, of some parameters, and of some of their rows; of all by default."""
        chosen = names or tuple(self.kept[0])
        return np.stack([np.concatenate([kept[name][rows].ravel() for name in chosen]) for kept in self.kept])


def naive(weights):
    """Every number of a path, straight from its weights ``(E, P)``."""
    steps = np.diff(weights, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    distance, path_length = np.linalg.norm(weights[-1] - weights[0]), lengths.sum()
    found = {
        "distance": distance,
        "relative_distance": distance / np.linalg.norm(weights[0]),
        "step": lengths[-1],
        "relative_step": lengths[-1] / np.linalg.norm(weights[-2]),
        "path_length": path_length,
        "straightness": distance / path_length,
        "turning": steps[-1] @ steps[-2] / lengths[-1] / lengths[-2],
    }
    walk = np.vstack([np.zeros(len(lengths)), np.cumsum(np.diag(lengths), axis=0)])
    for ending, points in (("", weights), ("_random", walk)):
        variances = PCA(svd_solver="full").fit(points).explained_variance_
        found["explained" + ending] = variances[:2].sum() / variances.sum()
        found["dimension" + ending] = variances.sum() ** 2 / np.square(variances).sum()
    return found | {"straightness_random": np.sqrt(np.square(lengths).sum()) / path_length}
