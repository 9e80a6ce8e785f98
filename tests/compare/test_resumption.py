import itertools

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks.compare.event_files import read_events
from rnn_callbacks.compare.resumption import is_metric, merged

from .event_records import content, scalars


def file(began, numbers):
    """An event file of numbers by tag and step, a second for each step after it began."""
    return read_events(
        content(*(scalars(s, began + s, **{tag: v}) for tag, known in numbers.items() for s, v in known.items()))
    )


def of(value, *steps):
    return {step: float(value) for step in steps}


def found(*files):
    return {
        tag: dict(zip(known.steps.tolist(), known.values.tolist(), strict=True)) for tag, known in merged(files).items()
    }


def test_one_file_is_as_it_was_written():
    numbers = {"loss": {0: 1.0, 5: 2.0}, "epoch": {0: 0.0, 5: 1.0}}
    assert found(file(0, numbers)) == numbers
    assert merged([file(0, numbers)])["loss"].walls.tolist() == [0, 5]
    assert merged([file(0, numbers)])["loss"].epochs.tolist() == [0, 1]


def test_no_files_are_no_series():
    assert found() == {}
    assert found(file(0, {})) == {}


def test_a_resumed_run_replaces_all_that_came_after_its_checkpoint():
    first = file(
        0,
        {
            "loss": of(1, *range(0, 100, 10)),
            "gates/x/y": of(1, 40, 60, 80),
            "late": of(1, 80),
            "epoch": of(0, *range(0, 100, 10)),
        },
    )
    later = file(1000, {"loss": of(2, 60, 70), "epoch": of(1, 60, 70)})
    for files in itertools.permutations((first, later)):  # the order of their names says nothing
        both = found(*files)
        assert both["loss"] == of(1, 0, 10, 20, 30, 40, 50) | of(2, 60, 70)
        assert both["gates/x/y"] == of(1, 40)  # 60 and 80 have no value of the later run
        assert "late" not in both
        assert both["epoch"] == of(0, 0, 10, 20, 30, 40, 50) | of(1, 60, 70)


def test_a_run_that_is_resumed_twice_is_the_last_of_each_stretch():
    files = [file(1000 * n, {"loss": of(n, *range(begin, 100, 5))}) for n, begin in enumerate((0, 50, 20))]
    assert found(*files)["loss"] == of(0, 0, 5, 10, 15) | of(2, *range(20, 100, 5))


def test_a_run_that_began_again_has_only_its_last_training():
    again = file(1000, {"loss": of(2, 0, 1, 2), "epoch": of(0, 0, 1, 2)})
    assert found(file(0, {"loss": of(1, 0, 1, 2, 3), "epoch": of(0, 0, 1, 2, 3)}), again)["loss"] == of(2, 0, 1, 2)


def test_batches_of_an_evaluation_that_count_on_their_own_cut_nothing_off():
    """Lightning logs them without an epoch, and from 0 again in each process."""
    first = file(0, {"loss": of(1, *range(100)), "val_step": of(1, *range(30)), "epoch": of(0, *range(100))})
    later = file(1000, {"loss": of(2, *range(50, 150)), "val_step": of(2, *range(10)), "epoch": of(1, *range(50, 150))})
    both = found(first, later)
    assert both["loss"] == of(1, *range(50)) | of(2, *range(50, 150))
    assert both["val_step"] == of(2, *range(10))


@pytest.mark.parametrize("step", [0, 99, 100])
def test_an_evaluation_adds_what_the_training_did_not_log_and_changes_nothing(step):
    training = {"loss": of(1, *range(100)), "val": of(1, 49, 99), "val_step": of(1, *range(9)), "epoch": of(4, 0, 99)}
    extra = {"test": of(3, step), "test_step": of(3, *range(5))}
    evaluation = {"val": of(2, step), "val_step": of(2, *range(5)), "epoch": of(5, step)} | extra
    both = merged([file(0, training), file(1000, evaluation)])
    assert found(file(0, training), file(1000, evaluation)) == training | extra
    assert both["test"].epochs.tolist() == [4]  # Lightning says one more, as training is over


def test_an_evaluation_of_all_that_the_training_logged_changes_nothing_either():
    training = {"val": of(1, 9, 19), "epoch": {9: 0.0, 19: 1.0}}
    assert found(file(0, training), file(1000, {"val": of(2, 0), "epoch": of(0, 0)})) == training


def test_an_evaluation_before_the_training_is_its_first_value():
    before = file(0, {"val": of(9, 0), "epoch": of(0, 0)})
    training = file(1000, {"val": of(1, 49, 99), "loss": of(1, *range(100)), "epoch": of(0, *range(100))})
    assert found(before, training)["val"] == of(9, 0) | of(1, 49, 99)


def test_a_run_resumed_for_one_more_logging_goes_on():
    first = file(0, {"loss": of(1, 9, 19), "val": of(1, 9, 19), "epoch": {9: 0.0, 19: 1.0}})
    more = file(1000, {"loss": of(2, 29), "val": of(2, 29), "epoch": of(2, 29)})
    assert found(first, more)["loss"] == of(1, 9, 19) | of(2, 29)


def test_files_of_one_logging_each_are_all_there():
    files = [file(1000 * n, {"loss": of(n, 10 * n), "epoch": of(n, 10 * n)}) for n in range(5)]
    assert found(*files)["loss"] == {10 * n: float(n) for n in range(5)}


def test_files_with_other_tags_stand_side_by_side():
    assert found(file(0, {"a": of(1, 0, 5, 9)}), file(100, {"b": of(2, 0, 1)})) == {
        "a": of(1, 0, 5, 9),
        "b": of(2, 0, 1),
    }


def test_files_without_a_time_are_put_together_too():
    nowhen = read_events(content(*(scalars(step, np.nan, loss=2.0) for step in (5, 6))))
    assert found(nowhen, file(0, {"loss": of(1, 0, 1)}))["loss"] == of(1, 0, 1) | of(2, 5, 6)


def test_metrics_are_what_the_model_logged():
    assert is_metric("val/loss")
    assert not any(map(is_metric, ("gates/x/y", "epoch", "hp_metric", "weight_trajectory/rnn/speed", "step")))


class Small(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def loss(self, batch, name):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log(name, loss, on_step=True, on_epoch=True)
        return loss

    def training_step(self, batch, index):
        return self.loss(batch, "train")

    def validation_step(self, batch, index):
        self.loss(batch, "val")

    def test_step(self, batch, index):
        self.loss(batch, "test")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_real_training_resumed_tested_and_validated_is_one_path(tmp_path):
    def data():
        return DataLoader(TensorDataset(torch.ones(20, 2)), 5)

    def trainer(epochs):
        return pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=TensorBoardLogger(tmp_path, version=0), log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        )  # fmt: skip

    torch.manual_seed(0)
    model, first = Small(), trainer(2)
    first.fit(model, data(), data())
    first.save_checkpoint(tmp_path / "two.ckpt")
    first.test(model, data(), verbose=False)
    trainer(4).fit(Small(), data(), data(), ckpt_path=tmp_path / "two.ckpt")
    last = trainer(5)
    last.fit(Small(), data(), data(), ckpt_path=tmp_path / "two.ckpt")  # once more from the same checkpoint
    trainer(1).validate(model, data(), verbose=False)
    paths = sorted(tmp_path.glob("lightning_logs/version_0/events*"))
    assert len(paths) == 5
    both = merged([read_events(path.read_bytes()) for path in paths])
    assert both["train_step"].steps.tolist() == list(range(20))
    assert both["train_step"].epochs.tolist() == [step // 4 for step in range(20)]
    assert both["val_epoch"].steps.tolist() == [3, 7, 11, 15, 19]
    assert both["val_epoch"].epochs.tolist() == [0, 1, 2, 3, 4]
    assert (np.diff(both["train_step"].values) < 0).all()  # as of one descent
    assert both["test_epoch"].steps.tolist() == [8]


def test_a_replay_adds_what_is_not_there_and_changes_nothing():
    run = file(0, {"epoch": of(0, 9) | of(1, 19), "val_loss": of(2, 9) | of(1, 19)})
    numbers = {"val_loss": of(7, 9), "gates/a/mean": of(3, 9), "gates/seconds": of(1, 9), "gates/overhead": of(1, 9)}
    series = merged([run], [file(100, {"epoch": of(4, 9), **numbers})])
    assert series.keys() == {"epoch", "val_loss", "gates/a/mean"}
    assert series["val_loss"].values.tolist() == [2, 1]
    assert (series["gates/a/mean"].steps.tolist(), series["gates/a/mean"].epochs.tolist()) == ([9], [4])
    alone = merged([], [file(100, numbers)])
    assert alone["val_loss"].values.tolist() == [7]
    assert np.isnan(alone["val_loss"].epochs).all()
