"""A run that goes on from a checkpoint sees what it would have seen without the break, whichever callback looks."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import rnn_callbacks
from rnn_callbacks import FixedPointTracker, GateMonitor, ProbeTracker, RepresentationTracker
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load

from .models import Classifier, loader, make_data, running_sum
from .test_laws import full

CALLBACKS = [getattr(rnn_callbacks, name) for name in rnn_callbacks.__all__]
COSTS = ("/seconds", "/overhead")
EPOCHS, STEPS_PER_EPOCH = 4, 3


class GoesOn(DataLoader):
    """A loader that is resumed where it was, as Lightning asks of those that are to be resumed within an epoch."""

    def __init__(self):
        super().__init__(make_data(8 * STEPS_PER_EPOCH), 8)
        self.done = 0

    def __iter__(self):
        batches = list(super().__iter__())
        first, self.done = self.done, 0
        for number, batch in enumerate(batches[first:], start=first + 1):
            self.done = number % len(batches)
            yield batch

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


class Saves(pl.Callback):
    """At the end of an epoch, after its validation, and within the next one."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (2, 1):
            trainer.save_checkpoint(self.folder / "within.ckpt")


def train(folder, name, *others, watchers, epochs=EPOCHS, **options):
    """Looks by noun and epoch."""
    pl.seed_everything(3, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[*watchers, *others], enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, enable_checkpointing=bool(others),
        logger=pl.loggers.TensorBoardLogger(folder, name="", version=name),
    )  # fmt: skip
    trainer.fit(Classifier("lstm"), GoesOn(), loader(seed=1), **options)
    found = {}
    for callback in CALLBACKS:
        for path in sorted((folder / name / "rnn_callbacks" / callback.noun).glob("epoch*.npz")):
            look = load(str(path))
            found[callback.noun, look.epoch] = look.report
    return found


def all_six():
    return [full(callback, "any", "lstm") for callback in CALLBACKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder):
    """A run that was never stopped, and those that went on from its checkpoints."""
    keeps = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    found = {"straight": train(folder, "straight", Saves(folder), keeps, watchers=all_six())}
    for name, checkpoint in (("end", "epoch=1.ckpt"), ("within", "within.ckpt")):
        found[name] = train(folder, name, watchers=all_six(), ckpt_path=folder / checkpoint)
    return found


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*, flag .*:rnn_callbacks.callbacks.guard.RecurrentHealthWarning",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create",
)


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: callback.__name__)
@pytest.mark.parametrize(("stopped", "epoch"), [("end", 2), ("end", 3), ("within", 2), ("within", 3)])
def test_a_resumed_run_sees_what_it_would_have_seen(runs, callback, stopped, epoch):
    one, other = (runs[name][callback.noun, epoch] for name in ("straight", stopped))
    before, after = one.scalars, other.scalars
    assert len(before) > 5
    assert set(before) == set(after)
    assert set(one.arrays) == set(other.arrays)
    if (stopped, epoch) == ("within", 2) and callback.hears_gradients:
        return  # of the epoch in which it was stopped it heard the rest
    different = {tag for tag in before if before[tag] != after[tag] and not tag.endswith(COSTS)}
    assert not different
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(other.arrays[name], array, err_msg=name)


# ---- what is in a checkpoint -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* this run goes on from a checkpoint in which no")  # as if there had been none
@pytest.mark.parametrize(
    "state",
    [
        lambda state: state | {"format": 0},
        lambda state: state | {"memory": dict.fromkeys(state["memory"], 5)},
        lambda state: state | {"memory": None},
    ],
    ids=["of another format", "with other contents", "with nothing"],
)
def test_what_another_version_has_left_is_not_read_and_said(runs, folder, tmp_path, state):
    saved = torch.load(folder / "epoch=1.ckpt", weights_only=True)
    titles = tuple(callback.__name__ for callback in CALLBACKS)
    unreadable = []
    for key, kept in saved["callbacks"].items():
        if key.startswith(titles):
            saved["callbacks"][key] = state(kept)
            if kept["memory"] or saved["callbacks"][key] != kept:
                unreadable.append(key.partition("{")[0])
    assert len(unreadable) >= len(CALLBACKS) - 1  # `GateMonitor` keeps nothing
    torch.save(saved, tmp_path / "other.ckpt")
    watchers = all_six()
    for watcher in watchers:
        watcher.on_error = "warn"
    with pytest.warns(RecurrentHealthWarning, match="what it had seen before this checkpoint cannot be read") as heard:
        found = train(tmp_path, "other", watchers=watchers, epochs=3, ckpt_path=tmp_path / "other.ckpt")
    said = [str(warning.message) for warning in heard]
    for callback in CALLBACKS:
        told = [words for words in said if words.startswith(f"{callback.__name__}: what it had seen")]
        assert len(told) == (callback.__name__ in unreadable)
        assert found[callback.noun, 2].scalars[f"{callback.noun}/failed_looks"] == 0


def test_a_state_from_before_the_format_was_written_is_read(runs, folder, tmp_path):
    saved = torch.load(folder / "epoch=1.ckpt", weights_only=True)
    states = [kept for kept in saved["callbacks"].values() if kept.pop("format", None) is not None]
    assert len(states) == len(CALLBACKS)
    torch.save(saved, tmp_path / "old.ckpt")
    watchers = all_six()
    train(tmp_path, "old", watchers=watchers, epochs=3, ckpt_path=tmp_path / "old.ckpt")
    assert [watcher.state_dict()["looks"] for watcher in watchers] == [3] * len(CALLBACKS)


# ---- two of a kind ---------------------------------------------------------------------------------------------------

TWO = {
    "modules": lambda: [GateMonitor(module="encoder.rnn"), GateMonitor()],
    "batches": lambda: [GateMonitor(), GateMonitor(observe="train")],
    "concepts": lambda: [ProbeTracker(concepts={"a": 1}), ProbeTracker(concepts={"b": running_sum})],
    "other concepts": lambda: [RepresentationTracker(), RepresentationTracker(concepts={"a": 1})],
    "contexts": lambda: [FixedPointTracker(), FixedPointTracker(contexts={"mean": "mean"})],
}


@pytest.mark.parametrize("apart", TWO)
def test_two_callbacks_of_a_kind_are_told_apart_by_their(apart):
    one, other = TWO[apart]()
    assert one.state_key != other.state_key
    pl.Trainer(accelerator="cpu", callbacks=[one, other], logger=False, enable_checkpointing=False)  # else it refuses
    again, _ = TWO[apart]()
    assert again.state_key == one.state_key


def test_two_that_would_log_under_the_same_names_are_said(fit):
    with pytest.warns(RecurrentHealthWarning, match="another GateMonitor watches encoder.rnn too, and both log under"):
        fit(GateMonitor(), GateMonitor(observe="train"), max_epochs=1)


def test_two_of_a_kind_keep_what_each_has_seen_and_spent(fit, tmp_path):
    def pair():
        options = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise", "shuffles": 1}
        return [ProbeTracker(concepts={"a": 1}, **options), ProbeTracker(concepts={"b": running_sum}, **options)]

    trainer = fit(*pair(), max_epochs=1)
    assert {"probes/seconds", "probes/part_2/seconds", "probes/part_2/failed_looks"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    a, b = pair()
    fit(a, b, ckpt_path=tmp_path / "one.ckpt")
    for watcher, concept in ((a, "a"), (b, "b")):
        courses = watcher.state_dict()["memory"]["courses"]
        assert {place.rpartition("|")[2] for place in courses} == {concept}
        assert all(course["epochs"] == [0, 1] for course in courses.values())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_concept_more_does_not_make_a_tracker_forget(fit, tmp_path):
    options = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise", "shuffles": 1}
    fit(ProbeTracker(concepts={"a": 1}, **options), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    tracker = ProbeTracker(concepts={"a": 1, "b": running_sum}, **options)
    fit(tracker, ckpt_path=tmp_path / "one.ckpt")
    epochs = {place.rpartition("|")[2]: c["epochs"] for place, c in tracker.state_dict()["memory"]["courses"].items()}
    assert epochs == {"a": [0, 1], "b": [1]}
