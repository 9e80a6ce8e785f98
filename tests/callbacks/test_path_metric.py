"""`PathMetric` in a real run: which number says how good the network was at each snapshot."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.nn import functional as F

from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.callbacks.path_metric import PathMetric
from rnn_callbacks.callbacks.trajectory_report import path_times

from ..models import Classifier
from .weight_paths import logger, reports, snapshots, values


class Notes(pl.Callback):
    """Keeps the validation loss, and the loss of every training step."""

    def __init__(self):
        self.validation, self.training = [], []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validation.append(trainer.callback_metrics["val_loss"].item())

    def on_train_batch_end(self, trainer, pl_module, outputs, *rest):
        self.training.append(outputs["loss"].item())


class Scored(Classifier):
    """Logs a score that rises and falls, is NaN once, and one of the training itself."""

    def validation_step(self, batch, batch_idx):
        self.log("score", [0.5, 0.9, float("nan"), 0.7][self.current_epoch])
        return super().validation_step(batch, batch_idx)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("fitted", loss, on_step=False, on_epoch=True)
        return loss


def thirds(losses):
    """Means of three batches each."""
    return [sum(losses[k : k + 3]) / 3 for k in range(0, len(losses), 3)]


def found(fit):
    file = snapshots(fit)
    return file.facts["metric"], file.facts["mode"], values(file)


def test_by_default_it_is_the_validation_loss(fit):
    notes = Notes()
    fit(logger(), notes, model=Scored, max_epochs=2)
    metric, mode, own = found(fit)
    assert (metric, mode) == ("val_loss", "min")
    assert own == [None, *notes.validation]


@pytest.mark.parametrize("every", [None, 2])
def test_without_validation_it_is_the_training_loss_since_the_snapshot_before(fit, every):
    notes = Notes()
    fit(logger(snapshot_every_n_steps=every), notes, validate=[])
    metric, mode, own = found(fit)
    assert (metric, mode) == ("training loss", "min")
    t = notes.training
    parts = [t[:3], t[3:]] if every is None else [t[:2], t[2:3], t[3:4], t[4:]]
    assert own[0] is None
    assert own[1:] == pytest.approx([sum(part) / len(part) for part in parts], rel=1e-6)


def test_within_epochs_it_is_the_training_loss_although_there_is_validation(fit):
    fit(logger(snapshot_every_n_steps=2))
    assert found(fit)[:2] == ("training loss", "min")


OTHERS = {
    "early stopping": lambda path: EarlyStopping("score", mode="max", check_finite=False),
    "checkpoints": lambda path: ModelCheckpoint(path, monitor="score", mode="max"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_another_callback_monitors_is_taken_from_it_with_its_mode(fit, tmp_path, name):
    other = OTHERS[name](tmp_path)
    fit(logger(every_n_epochs=4), other, model=Scored, max_epochs=4, enable_checkpointing=name == "checkpoints")
    metric, way, own = found(fit)
    assert (metric, way) == ("score", "max")
    assert own == pytest.approx([None, 0.5, 0.9, None, 0.7])
    assert path_times(snapshots(fit)).best == 2
    arrays = reports(fit)[-1].arrays
    assert arrays["weight_trajectory/has_value"].tolist() == [False, True, True, False, True]
    assert arrays["weight_trajectory/values"] == pytest.approx([0, 0.5, 0.9, 0, 0.7])


def test_how_far_the_weights_went_says_nothing_of_how_good_they_are(fit):
    fit(logger(every_n_epochs=1), EarlyStopping("weight_trajectory/total/step", patience=9))
    assert found(fit)[:2] == ("val_loss", "min")


def test_what_is_asked_for_is_taken_before_what_others_monitor(fit):
    notes = Notes()
    fit(logger(monitor="fitted", mode="max"), EarlyStopping("score", check_finite=False), notes, model=Scored)
    metric, mode, own = found(fit)
    assert (metric, mode) == ("fitted", "max")
    assert own[1:] == pytest.approx(thirds(notes.training), rel=1e-6)


def test_a_mode_of_ones_own_is_kept_beside_anothers_monitor(fit):
    fit(logger(mode="max"), EarlyStopping("val_loss", mode="min"), model=Scored)
    assert found(fit)[:2] == ("val_loss", "max")


def test_a_metric_that_never_comes_leaves_snapshots_without_a_value(fit):
    with pytest.warns(RecurrentHealthWarning, match="monitor='no such thing' was not logged .* there are: val_loss"):
        fit(logger(monitor="no such thing"))
    assert found(fit) == ("no such thing", "min", [None, None, None])
    times = path_times(snapshots(fit))
    assert times.best is None
    assert times.metric == "no such thing"


class Silent(Classifier):
    """Optimizes by hand and returns nothing."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()

    def validation_step(self, batch, batch_idx):
        torch.zeros(1)


def test_a_model_that_says_no_loss_has_a_path_without_values(fit):
    fit(logger(), model=Silent)
    assert found(fit) == ("training loss", "min", [None, None, None])


def test_a_validation_that_is_to_come_is_waited_for(fit):
    notes = Notes()
    fit(logger(), notes, model=Scored, max_epochs=4, check_val_every_n_epoch=2)
    metric, _, own = found(fit)
    assert metric == "val_loss"
    first, second = notes.validation
    assert own == [None, None, first, first, second]


class Chatty(Classifier):
    """Logs a loss of training and none of validation."""

    def validation_step(self, batch, batch_idx):
        self.log("score", 0.5)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("a_loss", loss, on_step=False, on_epoch=True)
        return loss


def test_a_logged_loss_of_training_is_not_taken_for_one_of_validation(fit):
    fit(logger(), model=Chatty)
    assert found(fit)[0] == "training loss"


def test_with_snapshots_within_epochs_it_is_the_training_loss_even_if_validation_comes_first(fit):
    fit(logger(snapshot_every_n_steps=5))
    assert found(fit)[0] == "training loss"


def test_snapshots_within_an_epoch_have_no_metric_of_another(fit):
    notes = Notes()
    fit(logger(snapshot_every_n_steps=2, monitor="val_loss"), notes)
    first, second = notes.validation
    assert [(e.step, e.value) for e in snapshots(fit).entries] == [
        (0, None), (2, None), (3, first), (4, None), (6, second)
    ]  # fmt: skip


def test_losses_heard_before_a_checkpoint_count_after_it():
    def metric(memory):
        return PathMetric(None, None, within_epochs=True, noun="weight_trajectory", memory=memory)

    whole, half = metric({}), metric({})
    for loss in (1.0, 2.0):
        whole.hear(torch.tensor(loss))
        half.hear(torch.tensor(loss))
    rest = metric(half.memory())
    for heard in (whole, rest):
        heard.hear(torch.tensor(6.0))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    assert whole.value(trainer) == rest.value(trainer) == 3.0
