"""The loss around the path of a real run, computed on a copy of the model."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.decomposition import PCA
from torch import nn

from rnn_callbacks.callbacks.gradient_report import NO_NUMBER

from ..models import Classifier
from .weight_paths import Large, logger, reports, rows, snapshots, watch

POINTS = 3
PLANE = "weight_trajectory/loss_plane"


def planes(fit):
    """Of every look that had one: x, y, losses, and the path in the same coordinates."""
    found = [report.arrays for report in reports(fit) if f"{PLANE}/x" in report.arrays]
    path = "weight_trajectory/total/scores"
    return [(a[f"{PLANE}/x"], a[f"{PLANE}/y"], a[f"{PLANE}/losses"], a[path][:, :2]) for a in found]


def at_last(plane):
    x, y, losses, path = plane
    return losses[np.flatnonzero(y == path[-1, 1]).item(), np.flatnonzero(x == path[-1, 0]).item()]


class Own(pl.Callback):
    """The model's own validation loss on each batch, and everything that must stay as it is."""

    def on_validation_epoch_start(self, trainer, pl_module):
        self.losses = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, *rest):
        self.losses.append(outputs.item())

    def on_train_epoch_end(self, trainer, pl_module):
        self.state = {name: t.clone() for name, t in pl_module.state_dict().items()}
        self.modes = [m.training for m in pl_module.modules()]

    def on_train_end(self, trainer, pl_module):
        assert all(torch.equal(t, self.state[name]) for name, t in pl_module.state_dict().items())
        assert [m.training for m in pl_module.modules()] == self.modes


@pytest.mark.parametrize("batches", [1, 2, 9])
def test_the_loss_at_the_last_snapshot_is_the_models_own_on_the_same_batches(fit, batches):
    own = Own()
    fit(own, logger(loss_plane=POINTS, loss_plane_batches=batches, every_n_epochs=1), max_epochs=3)
    (plane,) = planes(fit)  # at the end alone
    assert plane[2].shape == (POINTS, POINTS)
    assert at_last(plane) == pytest.approx(np.mean(own.losses[:batches]), rel=1e-6)
    assert plane[2].min() < plane[2].max()
    assert np.isfinite(plane[2]).all()


class Bowl(Classifier):
    """Its loss is half the squared distance of all weights from a place, so it is known on every plane."""

    def __init__(self):
        super().__init__("lstm")
        generator = torch.Generator().manual_seed(7)
        self.goal = {name: torch.randn(p.shape, generator=generator) for name, p in self.named_parameters()}

    def loss(self):
        return 0.5 * sum((p - self.goal[name]).square().sum() for name, p in self.named_parameters())

    def training_step(self, batch, batch_idx):
        return self.loss() + super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        loss = self.loss()
        self.log("val_loss", loss)
        return loss


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_loss_that_is_known_everywhere_is_found_on_the_plane(fit, precision):
    class Cast(Bowl):
        def forward(self, x):
            return super().forward(x.to(self.head.weight.dtype))

    trainer = fit(logger(loss_plane=5, loss_plane_batches=1), model=Cast, max_epochs=4, precision=precision)
    (plane,) = planes(fit)
    x, y, losses, path = plane
    file = snapshots(fit)
    weights = rows(file).astype(np.float64)
    axes = PCA(2).fit(weights).components_
    axes *= np.sign(((weights - weights.mean(0)) @ axes.T * path).sum(0))[:, None]  # which way is up is a convention
    order = dict.fromkeys(column.parameter for column in file.columns)
    goal = torch.cat([trainer.lightning_module.goal[name].flatten() for name in order]).double().numpy()
    for row, b in enumerate(y):
        for column, a in enumerate(x):
            there = weights[-1] + (a - path[-1, 0]) * axes[0] + (b - path[-1, 1]) * axes[1]
            expected = 0.5 * np.square(there - goal).sum()
            assert losses[row, column] == pytest.approx(expected, rel=1e-5 if precision[:2] == "32" else 1e-9)


def test_a_parameter_that_was_thawed_is_moved_along_too(fit):
    class Thaws(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.head.requires_grad_(trainer.current_epoch > 0)

    own = Own()
    fit(Thaws(), own, logger(loss_plane=POINTS), max_epochs=4)
    assert {column.parameter for column in snapshots(fit).columns[-2:]} == {"head.weight", "head.bias"}
    assert at_last(planes(fit)[-1]) == pytest.approx(np.mean(own.losses), rel=1e-6)


class Empty(Classifier):
    """A parameter without numbers, as a layer of width 0 has."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0))


@pytest.mark.filterwarnings("ignore:total, flag unmoved")
def test_a_parameter_without_numbers_is_left_where_it_is(fit):
    own = Own()
    fit(own, logger(loss_plane=POINTS), model=Empty)
    assert at_last(planes(fit)[-1]) == pytest.approx(np.mean(own.losses), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch.compile's own
def test_a_compiled_module_is_found_under_its_name(fit):
    model, own = Classifier(), Own()
    model.head = torch.compile(model.head, backend="eager")
    fit(own, logger(loss_plane=POINTS), model=model)
    assert at_last(planes(fit)[-1]) == pytest.approx(np.mean(own.losses), rel=1e-6)


def test_a_path_without_a_plane_is_said_and_the_rest_of_the_look_is_there(fit):
    _, said = watch(fit, logger(loss_plane=POINTS, on_error="warn", every_n_epochs=1), max_epochs=1)
    assert len(said) == 1
    assert "three snapshots that do not lie on a line" in said[0]
    assert planes(fit) == []
    assert reports(fit)[-1].scalars["weight_trajectory/snapshots"] == 2


class Speechless(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("accuracy", 1.0)


def test_a_model_that_says_no_validation_loss_is_told_so(fit):
    with pytest.raises(RuntimeError, match="loss_plane needs a validation_step that returns its loss, or logs one"):
        fit(logger(loss_plane=POINTS), model=Speechless)


def test_sketches_taken_for_want_of_room_have_no_plane_and_that_is_said(fit):
    _, said = watch(fit, logger(loss_plane=POINTS, max_megabytes=0.1), model=Large)
    assert len(said) == 1
    assert 'no loss plane is drawn: loss_plane needs the weights themselves: write storage="exact".' in said[0]
    assert planes(fit) == []


@pytest.mark.parametrize(("every", "options"), [(1, {}), (1, {"check_on_train_epoch_end": False}), (4, {}), (None, {})])
def test_a_run_that_is_stopped_early_has_its_plane_wherever_looks_are_due(fit, every, options):
    stop = EarlyStopping("val_loss", patience=1, min_delta=10.0, **options)
    own = Own()
    fit(own, stop, logger(loss_plane=POINTS, every_n_epochs=every), max_epochs=9)
    assert len(snapshots(fit)) == 3
    assert at_last(planes(fit)[-1]) == pytest.approx(np.mean(own.losses), rel=1e-6)


def test_a_loss_that_is_no_number_is_saved_as_such(fit):
    class Cliff(Classifier):
        def validation_step(self, batch, batch_idx):
            loss = super().validation_step(batch, batch_idx)
            far = (self.head.weight - self.home).norm() > 1e-6 if hasattr(self, "home") else False
            return torch.full_like(loss, float("nan")) if far else loss

        def on_validation_end(self):
            self.home = self.head.weight.detach().clone()

    fit(logger(loss_plane=POINTS), model=Cliff)
    (plane,) = planes(fit)
    assert np.isfinite(plane[2]).all()  # saved arrays are finite
    assert (plane[2] == NO_NUMBER).sum() == POINTS**2 - 1
    assert at_last(plane) < 2
