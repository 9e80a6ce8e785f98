"""A run that is replayed from its checkpoints gives what it would have given had it been watched."""

import argparse
import os
import random
import shutil
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace as changed

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from rnn_callbacks import (
    FixedPointTracker,
    GateMonitor,
    GradientFlowMonitor,
    ProbeTracker,
    RepresentationTracker,
    WeightTrajectoryLogger,
)
from rnn_callbacks.compare.groups import find_groups
from rnn_callbacks.compare.runs import load_runs
from rnn_callbacks.replay import replay as replay_run
from rnn_callbacks.replay.checkpoints import CheckpointWarning, find_checkpoints, read_checkpoints
from rnn_callbacks.replay.command import add_arguments
from rnn_callbacks.replay.command import run as command
from rnn_callbacks.replay.from_config import replay_from_config
from rnn_callbacks.report import load
from rnn_callbacks.weight_snapshots import SnapshotFile

from .models import UNITS, Classifier, loader, make_data

OFTEN = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"}
CLOCKS = ("seconds", "overhead")  # tags that measure time
NOUNS = ("fixed_points", "gates", "probes", "representation", "weight_trajectory")


def watchers(*, closely=False):
    """One of each kind that can be replayed; if asked for with all that runs passes of its own."""
    more = ({"ablate": "mean"}, {}, {"causal": True}, {"loss_plane": 3}, {}) if closely else ({},) * 5
    kinds = (GateMonitor, FixedPointTracker, ProbeTracker, WeightTrajectoryLogger, RepresentationTracker)
    return [kind(**OFTEN, **options) for kind, options in zip(kinds, more, strict=True)]


def replay(checkpoints, model, callbacks, **options):
    """On this machine's CPU, over the data that the fixture `fit` validates with."""
    if options.get("datamodule") is None:
        options.setdefault("dataloaders", loader(seed=1))
    return replay_run(checkpoints, model, callbacks, accelerator="cpu", **options)


def keep_all(**options):
    return ModelCheckpoint(save_top_k=-1, **options)


def looks(folder, noun):
    """Every look by its file name."""
    return {path.name: load(str(path)) for path in sorted((folder / "rnn_callbacks" / noun).glob("*.npz"))}


def scalars_of(folder, suffix=""):
    """Every tag of the one event file with this ending: (step, value) of each of its points."""
    (path,) = [p for p in folder.glob("events*") if p.name.endswith(".replay") == (suffix == ".replay")]
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def network():
    return Classifier(layers=2, dropout=0.2)


@pytest.fixture
def train(fit):
    """Train as `fit` does, and save what a `ModelCheckpoint` is told to."""

    def run(*callbacks, **options):
        return fit(*callbacks, enable_checkpointing=True, **options)

    run.logs = fit.logs
    return run


def version(fit):
    return sorted(fit.logs.glob("version_*"))[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A watched run of three epochs with a checkpoint of each, for tests that only read it."""
    folder = tmp_path_factory.mktemp("run")
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=pl.loggers.TensorBoardLogger(folder.parent, name="", version=folder.name),
        callbacks=[*watchers(closely=True), keep_all(save_last=True)],
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = network()
    trainer.fit(model, loader(shuffle=True), loader(seed=1))
    return folder


@pytest.fixture
def initial():
    """The network that `run` began with."""
    pl.seed_everything(0, verbose=False)
    return network()


@pytest.fixture(scope="module")
def replayed(run, tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    into = tmp_path_factory.mktemp("into") / "new"
    assert replay(run / "checkpoints", network(), watchers(closely=True), folder=into, model_is_start=True) == str(into)
    return into


# ---- as if it had been watched ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("noun", NOUNS)
def test_numbers_and_names_are_those_of_the_watched_run(run, replayed, noun):
    live, past = looks(run, noun), looks(replayed, noun)
    assert list(live) == list(past)
    assert len(live) == 3
    for name, look in live.items():
        other = past[name]
        assert (look.epoch, look.step) == (other.epoch, other.step)
        assert look.report.scalars.keys() == other.report.scalars.keys()
        for tag, value in look.report.scalars.items():
            assert tag.rpartition("/")[2] in CLOCKS or value == other.report.scalars[tag], tag
        assert look.report.arrays.keys() == other.report.arrays.keys()
        for tag, array in look.report.arrays.items():
            np.testing.assert_array_equal(array, other.report.arrays[tag], err_msg=tag)
        for tag, histogram in look.report.histograms.items():
            np.testing.assert_array_equal(histogram.counts, other.report.histograms[tag].counts)
        assert look.report.texts == other.report.texts


def test_the_path_of_the_weights_is_that_of_the_watched_run(run, replayed):
    live, past = (SnapshotFile(f / "rnn_callbacks" / "weight_trajectory" / "snapshots") for f in (run, replayed))
    assert live.entries == past.entries
    assert [entry.epoch for entry in past.entries] == [-1, 0, 1, 2]
    for row in range(4):
        np.testing.assert_array_equal(live.row(row), past.row(row))


def test_the_models_own_metrics_and_ours_are_logged_when_they_were(run, replayed):
    live, past = scalars_of(run), scalars_of(replayed, ".replay")
    assert set(past) == {tag for tag in live if tag != "hp_metric"}
    for tag in ("val_loss", "gates/encoder.rnn.l0/update/mean", "weight_trajectory/total/distance", "epoch"):
        # Lightning keeps what is logged in float32; ours went to TensorBoard directly.
        assert dict(past[tag]) == pytest.approx(dict(live[tag]), rel=1e-6)
    assert [step for step, _ in past["val_loss"]] == [2, 5, 8]


def test_where_the_untrained_network_was_heard_briefly_it_is_the_same_to_rounding(train, tmp_path):
    train(ProbeTracker(**OFTEN), keep_all())
    pl.seed_everything(0, verbose=False)
    replay(version(train) / "checkpoints", Classifier(), [ProbeTracker(**OFTEN)], folder=tmp_path / "new")
    live, past = looks(version(train), "probes"), looks(tmp_path / "new", "probes")
    assert list(live) == list(past)
    for name in live:
        for tag, value in live[name].report.scalars.items():
            if tag.rpartition("/")[2] not in CLOCKS:
                assert past[name].report.scalars[tag] == pytest.approx(value, abs=1e-4), tag


@pytest.mark.parametrize("at", ["train epoch end", "validation end", "steps", "after fit", "accumulated"])
def test_the_moment_is_known_however_a_checkpoint_came_to_be_saved(train, tmp_path, at):
    options = {
        "train epoch end": {"save_on_train_epoch_end": True},
        "validation end": {"save_on_train_epoch_end": False},
        "steps": {"every_n_train_steps": 3},
        "accumulated": {"save_on_train_epoch_end": False},
        "after fit": None,
    }[at]
    saved = [] if options is None else [keep_all(dirpath=tmp_path / "saved", **options)]
    more = {"accumulate_grad_batches": 2} if at == "accumulated" else {}
    trainer = train(GateMonitor(**OFTEN), *saved, **more)
    if options is None:
        trainer.save_checkpoint(tmp_path / "saved" / "end.ckpt")
    replay(tmp_path / "saved", Classifier(), [GateMonitor(**OFTEN)], folder=tmp_path / "new")
    live, past = looks(version(train), "gates"), looks(tmp_path / "new", "gates")
    assert list(past) == list(live)[1 if at == "after fit" else 0 :]


class TwoOptimizers(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.encoder, self.head)]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


def test_several_optimizers_are_counted_once(train, tmp_path):
    train(GateMonitor(**OFTEN), keep_all(), model=TwoOptimizers)
    replay(version(train) / "checkpoints", TwoOptimizers(), [GateMonitor(**OFTEN)], folder=tmp_path / "new")
    assert list(looks(tmp_path / "new", "gates")) == list(looks(version(train), "gates"))


def test_every_checkpoint_is_looked_at_and_the_first_and_the_last_are_drawn(run, initial, tmp_path):
    replay(run / "checkpoints", initial, [GateMonitor(every_n_epochs=2)], folder=tmp_path / "new")
    assert [look.epoch for look in looks(tmp_path / "new", "gates").values()] == [0, 1, 2]
    drawn = sorted((tmp_path / "new" / "rnn_callbacks" / "gates" / "figures").glob("*.png"))
    assert [path.name.partition("epoch=")[2][:4] for path in drawn] == ["0000", "0002"]


def test_pictures_are_drawn_as_often_as_was_asked_for(run, initial, tmp_path):
    replay(run / "checkpoints", initial, [GateMonitor(figure_every_n_epochs=2)], folder=tmp_path / "new")
    drawn = list((tmp_path / "new" / "rnn_callbacks" / "gates" / "figures").glob("*.png"))
    assert ["epoch=0001" in path.name for path in drawn] == [True]


class Clock(Classifier):
    """Notes what it can know of the run."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_validation_epoch_end(self):
        self.log("late_val_loss", float(self.current_epoch))
        self.seen.append((self.current_epoch, self.global_step))


def test_the_model_knows_which_epoch_and_step_it_is(train, tmp_path):
    train(keep_all(), model=Clock, num_sanity_val_steps=0)
    live = torch.load(next((version(train) / "checkpoints").glob("epoch=1*")), weights_only=True)["global_step"]
    model = Clock()
    path = WeightTrajectoryLogger(monitor="late_val_loss", **OFTEN)
    replay(version(train) / "checkpoints", model, [path], folder=tmp_path / "new")
    assert model.seen == [(0, 0), (0, live // 2), (1, live)]
    file = SnapshotFile(tmp_path / "new" / "rnn_callbacks" / "weight_trajectory" / "snapshots")
    assert [entry.value for entry in file.entries] == [0.0, 1.0]  # what a model logs last is known too


# ---- where the path begins -------------------------------------------------------------------------------------------


def path_of(folder):
    return [
        (e.epoch, e.step) for e in SnapshotFile(folder / "rnn_callbacks" / "weight_trajectory" / "snapshots").entries
    ]


def test_without_the_weights_it_began_with_the_path_begins_at_the_first_checkpoint(run, tmp_path):
    replay(run / "checkpoints", network(), [WeightTrajectoryLogger(**OFTEN)], folder=tmp_path / "new")
    assert path_of(tmp_path / "new") == [(0, 3), (1, 6), (2, 9)]
    first = next(iter(looks(tmp_path / "new", "weight_trajectory").values()))
    assert first.report.scalars["weight_trajectory/total/path_length"] == 0


@contextmanager
def info(caplog):
    """What Lightning's channel says; the package that was imported last has it."""
    with caplog.at_level("INFO", logger="lightning.pytorch"), caplog.at_level("INFO", logger="pytorch_lightning"):
        yield


def test_what_is_replayed_is_said_and_whether_its_start_is_known(run, initial, tmp_path, caplog):
    def told(given, **options):
        caplog.clear()
        with info(caplog):
            replay(given, initial, [GateMonitor(**OFTEN)], folder=tmp_path / "new", overwrite=True, **options)
        return caplog.messages

    (words,) = told(run / "checkpoints")
    assert words.startswith("Replaying 3 checkpoints of epochs 0 to 2. The weights that training began with are not")
    (words,) = told(run / "checkpoints" / "last.ckpt", model_is_start=True)
    assert words.startswith(
        "Replaying 1 checkpoint of epoch 2. The run is taken to have begun with the weights that the"
    )


def test_a_checkpoint_of_step_0_is_the_start_and_the_untrained_network(train, run, initial, tmp_path, caplog):
    class SaveFirst(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "all" / "zero.ckpt")

    train(SaveFirst(), keep_all(dirpath=tmp_path / "all"), model=network())
    torch.manual_seed(9)
    other = network()
    with info(caplog):
        replay(tmp_path / "all", other, watchers(), folder=tmp_path / "other")
    assert caplog.messages[0] == "Replaying 2 checkpoints of epochs 0 to 1."
    again = torch.load(tmp_path / "all" / "zero.ckpt", weights_only=True)["state_dict"]
    initial.load_state_dict(again)
    late = sorted((tmp_path / "all").glob("epoch*"))
    replay(late, initial, watchers(), folder=tmp_path / "seeded", model_is_start=True)
    assert path_of(tmp_path / "other") == path_of(tmp_path / "seeded") == [(-1, 0), (0, 3), (1, 6)]
    for noun in ("probes", "weight_trajectory"):
        one, two = (looks(tmp_path / name, noun) for name in ("other", "seeded"))
        assert list(one) == list(two)
        for name in one:
            assert {t: v for t, v in one[name].report.scalars.items() if t.rpartition("/")[2] not in CLOCKS} == {
                t: v for t, v in two[name].report.scalars.items() if t.rpartition("/")[2] not in CLOCKS
            }


def test_a_checkpoint_from_before_training_alone_is_refused(train, tmp_path):
    trainer = train(max_epochs=0)
    trainer.save_checkpoint(tmp_path / "zero.ckpt")
    with pytest.raises(ValueError, match="was saved before training, and nothing later"):
        replay(tmp_path / "zero.ckpt", Classifier(), [GateMonitor()])


# ---- nobody is disturbed ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling")
def test_model_generators_and_files_are_left_as_they_were(run, initial, tmp_path):
    initial.head.eval()
    assert not initial.hparams  # from now on Lightning has an attribute for them
    initial.norm.requires_grad_(False)
    state = {name: value.clone() for name, value in initial.state_dict().items()}
    modes = [module.training for module in initial.modules()]
    attributes = [sorted(module.__dict__) for module in initial.modules()]
    hooks = [len(module._forward_hooks) for module in initial.modules()]
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    replay(run / "checkpoints", initial, watchers(), folder=tmp_path / "new", dataloaders=loader(seed=1, shuffle=True))
    assert all(torch.equal(value, state[name]) for name, value in initial.state_dict().items())
    assert [module.training for module in initial.modules()] == modes
    assert [len(module._forward_hooks) for module in initial.modules()] == hooks
    assert [sorted(module.__dict__) for module in initial.modules()] == attributes
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files
    events, results = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert events.startswith("events.out.tfevents")
    assert results == "rnn_callbacks"
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == draws[1:]  # noqa: NPY002


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling")
def test_a_shuffled_loader_gives_every_checkpoint_the_same_sequences(run, initial, tmp_path, caplog):
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt")
    later = torch.load(tmp_path / "a.ckpt", weights_only=True)
    later["global_step"] += 3
    later["loops"]["fit_loop"]["epoch_progress"]["current"] = {"ready": 4, "processed": 4, "completed": 3, "started": 4}
    torch.save(later, tmp_path / "b.ckpt")  # the same weights an epoch later
    few = GateMonitor(max_sequences=5, **OFTEN)
    with info(caplog):
        replay(
            tmp_path,
            initial,
            [few, ProbeTracker(**OFTEN)],
            folder=tmp_path / "new",
            dataloaders=loader(seed=1, shuffle=True),
        )
    assert not [words for words in caplog.messages if "untrained layers" in words]  # and the untrained network too
    one, two = looks(tmp_path / "new", "gates").values()
    for tag, array in one.report.arrays.items():
        np.testing.assert_array_equal(array, two.report.arrays[tag])


class Data(pl.LightningDataModule):
    """As in Lightning's own examples, with sets that only a fit has, split by chance."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def setup(self, stage):
        self.calls.append(stage)
        if stage == "fit":
            self.rest, self.held = torch.utils.data.random_split(make_data(48), [24, 24])

    def train_dataloader(self):
        return DataLoader(self.rest, 8)

    def val_dataloader(self):
        return DataLoader(self.held, 8)


def test_data_are_set_up_once_as_for_the_fit_and_split_as_then(train, tmp_path):
    class Split(Data):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 0.5, batch[1]]

    train(GateMonitor(**OFTEN), keep_all(), datamodule=Split())
    pl.seed_everything(0, verbose=False)
    model, data = Classifier(), Split()
    replay(version(train) / "checkpoints", model, [GateMonitor(**OFTEN)], datamodule=data, folder=tmp_path / "new")
    assert data.calls == ["fit"]
    assert "setup" not in vars(data)
    for name, look in looks(version(train), "gates").items():
        other = looks(tmp_path / "new", "gates")[name].report.arrays
        assert all(np.array_equal(array, other[tag]) for tag, array in look.report.arrays.items())


class BuiltLate(Classifier):
    """Its layers are there only when a trainer asks for them."""

    def __init__(self):
        super().__init__()
        del self.encoder.rnn
        self.made = []

    def setup(self, stage):
        self.made.append(str(stage))
        self.head = torch.nn.Linear(UNITS, 2)

    def configure_model(self):
        if not hasattr(self.encoder, "rnn"):
            self.encoder.rnn = torch.nn.GRU(3, UNITS, batch_first=True)


def test_a_model_may_be_built_in_setup_and_configure_model(train, tmp_path):
    train(GateMonitor(**OFTEN), keep_all(), model=BuiltLate)
    model = BuiltLate()
    replay(version(train) / "checkpoints", model, [GateMonitor(**OFTEN)], folder=tmp_path / "new")
    assert model.made == ["TrainerFn.FITTING"]
    assert list(looks(tmp_path / "new", "gates")) == list(looks(version(train), "gates"))
    other = BuiltLate()
    other.encoder.rnn = torch.nn.GRU(3, 7, batch_first=True)
    with pytest.raises(ValueError, match=r"does not fit this BuiltLate.*rnn.weight_ih_l0 is \(15, 3\)"):
        replay(version(train) / "checkpoints", other, None, folder=tmp_path / "other")


class Several(Classifier):
    """Two validation loaders, of dicts."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", super().forward(batch["x"]).square().mean())

    def training_step(self, batch, batch_idx):
        return super().forward(batch["x"]).square().mean()


def dicts(seed):
    return DataLoader([{"x": x, "y": y} for x, y in make_data(16, seed)], 8)


@pytest.mark.filterwarnings("ignore:total, flag unmoved.* encoder.rnn.weight_hh_l0_reverse")  # true: see `Classifier`
def test_packed_bidirectional_dict_batches_and_several_loaders(train, tmp_path):
    def make():
        return Several("gru", packed=True, bidirectional=True)

    train(GateMonitor(**OFTEN), keep_all(), model=make(), train=dicts(0), validate=[dicts(1), dicts(2)])
    with pytest.warns(CheckpointWarning) as said:
        replay(version(train) / "checkpoints", make(), None, folder=tmp_path / "new", dataloaders=[dicts(1), dicts(2)])
    told = [str(warning.message) for warning in said if warning.category is CheckpointWarning]
    assert len(told) == 2  # once each, and no traceback
    assert "FixedPointTracker is left out" in told[0]
    assert "bidirectional" in told[0]
    assert "ProbeTracker is left out: there are no concepts to probe" in told[1]
    for name, look in looks(version(train), "gates").items():
        other = looks(tmp_path / "new", "gates")[name].report.arrays
        assert all(np.array_equal(array, other[tag]) for tag, array in look.report.arrays.items())
    assert not (tmp_path / "new" / "rnn_callbacks" / "probes").exists()


class WithMore(Classifier):
    """Keeps something of its own, and puts it where it belongs, as users of moving averages do."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["average"] = {k: torch.zeros_like(v) for k, v in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = checkpoint["average"]


def test_a_model_may_choose_other_weights_from_the_checkpoint(train, tmp_path):
    train(keep_all(), model=WithMore, max_epochs=1)
    replay(version(train) / "checkpoints", WithMore(), [GateMonitor(**OFTEN)], folder=tmp_path / "new")
    (look,) = looks(tmp_path / "new", "gates").values()
    assert look.report.scalars["gates/encoder.rnn.l0/update/mean"] == 0.5  # of a GRU of zeros


# ---- which checkpoints -----------------------------------------------------------------------------------------------


def test_files_folders_and_patterns_are_put_in_order_and_taken_once(run):
    given = [run / "checkpoints" / "epoch=2-step=9.ckpt", run, run / "checkpoints", f"{run}/checkpoints/epoch=0*"]
    found = read_checkpoints(find_checkpoints(given))
    assert [c.path.name for c in found] == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt", "epoch=2-step=9.ckpt"]
    assert [(c.epoch, c.step, c.global_step) for c in found] == [(0, 2, 3), (1, 5, 6), (2, 8, 9)]


def test_names_say_nothing_of_the_order(run, tmp_path):
    for old, new in (("epoch=0-step=3", "z"), ("epoch=1-step=6", "y"), ("epoch=2-step=9", "x"), ("last", "last")):
        shutil.copy(run / "checkpoints" / f"{old}.ckpt", tmp_path / f"{new}.ckpt")
    assert [c.path.stem for c in read_checkpoints(find_checkpoints([tmp_path]))] == ["z", "y", "x"]


def test_what_stands_for_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none.ckpt: expected a file, a folder"):
        find_checkpoints([tmp_path / "none.ckpt"])
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        find_checkpoints([tmp_path])


def test_a_checkpoint_in_pieces_is_refused(run, tmp_path):
    (tmp_path / "pieces.ckpt").mkdir()
    (tmp_path / "pieces.ckpt" / ".metadata").touch()
    for given in (tmp_path, tmp_path / "pieces.ckpt"):
        with pytest.raises(ValueError, match=r"is a folder: a checkpoint in pieces.*consolidate_checkpoint"):
            find_checkpoints([given])


def test_twins_with_other_weights_are_told(run, tmp_path):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content, tmp_path / "a.ckpt")
    content["state_dict"]["head.bias"] += 1
    torch.save(content, tmp_path / "b.ckpt")
    with pytest.warns(
        CheckpointWarning, match=r"b.ckpt is left out: a.ckpt was saved at the same step \(9\), with other"
    ):
        (found,) = read_checkpoints(find_checkpoints([tmp_path]))
    assert found.path.name == "a.ckpt"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [cut, lambda p: p.write_bytes(b""), lambda p: p.write_text("hello")])
def test_a_damaged_checkpoint_is_named_and_left_out(run, initial, tmp_path, damage):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "epoch=1-step=6.ckpt")
    with pytest.warns(CheckpointWarning, match=r"epoch=1-step=6.ckpt is left out, because it cannot be read"):
        replay(tmp_path / "checkpoints", initial, [GateMonitor(**OFTEN)])
    assert [look.epoch for look in looks(tmp_path, "gates").values()] == [0, 2]
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path)
    with pytest.warns(CheckpointWarning), pytest.raises(ValueError, match="none of the 4 checkpoints can be read"):
        replay(tmp_path / "checkpoints", initial, [GateMonitor()], overwrite=True)
    assert looks(tmp_path, "gates")  # what was there is not thrown away for nothing


def test_weights_alone_are_refused(initial, tmp_path):
    torch.save({"state_dict": initial.state_dict()}, tmp_path / "weights.ckpt")
    with pytest.raises(
        ValueError, match=r"weights.ckpt is no checkpoint of a Lightning trainer: it has no epoch and no"
    ):
        replay(tmp_path, initial, [GateMonitor()])
    torch.save([1], tmp_path / "weights.ckpt")
    with (
        pytest.warns(CheckpointWarning, match="holds a list, expected a dict"),
        pytest.raises(ValueError, match="none of the 1"),
    ):
        replay(tmp_path, initial, [GateMonitor()])


def test_a_pickle_is_read_only_where_that_was_asked_for(run, initial, tmp_path, monkeypatch):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content | {"hyper_parameters": argparse.Namespace(units=5)}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"odd.ckpt holds objects of argparse.Namespace.*trusted=True"):
        replay(tmp_path, initial, [GateMonitor()])
    replay(tmp_path, initial, [GateMonitor(**OFTEN)], trusted=True, folder=tmp_path / "new")
    assert len(looks(tmp_path / "new", "gates")) == 1
    monkeypatch.delattr(argparse, "Namespace")
    with (
        pytest.warns(CheckpointWarning, match="AttributeError: .*Namespace"),
        pytest.raises(ValueError, match="none of"),
    ):
        replay(tmp_path, initial, [GateMonitor(**OFTEN)], trusted=True, folder=tmp_path / "new", overwrite=True)


def test_a_checkpoint_of_an_accelerator_is_read_without_one(run, initial, tmp_path, monkeypatch):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(content, tmp_path / "gpu.ckpt")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "gpu.ckpt", weights_only=True)  # as saved, it asks for one
    replay(tmp_path, initial, [GateMonitor(**OFTEN)], folder=tmp_path / "new")
    assert len(looks(tmp_path / "new", "gates")) == 1


def test_a_format_of_before_and_one_without_progress_are_read(run, tmp_path):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["loops"]
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    (found,) = read_checkpoints(find_checkpoints([tmp_path]))
    assert (found.epoch, found.step) == (2, 8)


class Asks(Classifier):
    def __init__(self, units=UNITS):
        super().__init__()
        self.save_hyperparameters()
        self.extra = torch.nn.Linear(units, 3)


def test_weights_of_another_model_are_refused_before_the_first_pass(train, tmp_path):
    class NoPass(Asks):
        def validation_step(self, batch, batch_idx):
            raise AssertionError("a pass was run")

    train(keep_all(), model=Asks, max_epochs=1)
    saved = version(train) / "checkpoints"
    match = (
        r"epoch=0-step=3.ckpt does not fit this NoPass: extra.weight is \(3, 5\) and should be \(3, 11\)\. "
        "It was saved by a model with units=5"
    )
    with pytest.raises(ValueError, match=match):
        replay(saved, NoPass(11), [GateMonitor()], folder=tmp_path / "new")
    with pytest.raises(ValueError, match=r"extra.weight is in it and not in the model; extra.bias is in it"):
        replay(saved, Classifier(), [GateMonitor()], folder=tmp_path / "new")
    model = NoPass()
    model.more = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"more.weight is missing"):
        replay(saved, model, [GateMonitor()], folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    lenient = Classifier()
    lenient.strict_loading = False
    replay(saved, lenient, [GateMonitor(**OFTEN)], folder=tmp_path / "new")


def test_weights_of_a_compiled_model_fit_one_that_is_not(run, initial, tmp_path):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"] = {k.replace("encoder", "encoder._orig_mod"): v for k, v in content["state_dict"].items()}
    torch.save(content, tmp_path / "compiled.ckpt")
    replay(tmp_path, initial, [GateMonitor(**OFTEN)], folder=tmp_path / "new")
    live = looks(run, "gates")["epoch=0002-step=00000008.npz"].report.arrays
    past = looks(tmp_path / "new", "gates")["epoch=0002-step=00000008.npz"].report.arrays
    assert all(np.array_equal(array, past[tag]) for tag, array in live.items())


# ---- which callbacks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", [GradientFlowMonitor(), GateMonitor(observe="train")])
def test_who_listens_to_training_is_refused_by_name(callback, run, initial):
    with pytest.raises(ValueError, match=f"{type(callback).__name__} would hear nothing: training batches"):
        replay(run / "checkpoints", initial, [GateMonitor(), callback])


def test_other_callbacks_are_refused(run, initial):
    with pytest.raises(TypeError, match="must be rnn_callbacks' own, got ModelCheckpoint"):
        replay(run / "checkpoints", initial, [ModelCheckpoint()])


def test_settings_that_cannot_be_met_are_refused(run, initial, tmp_path):
    with pytest.raises(MisconfigurationException, match="no recurrent module is called 'no'"):
        replay(run / "checkpoints", initial, [GateMonitor("no")], folder=tmp_path / "new")
    with pytest.raises(
        MisconfigurationException, match="replay runs the validation over each checkpoint, and there is"
    ):
        replay(run / "checkpoints", initial, [GateMonitor()], folder=tmp_path / "new", dataloaders=None)
    assert not (tmp_path / "new").exists()


def test_where_nothing_can_be_set_up_that_is_said(train, tmp_path):
    class Plain(pl.LightningModule):
        validation_step = configure_optimizers = lambda self, *args: None

        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(2, 2)

    content = {"state_dict": Plain().state_dict(), "epoch": 0, "global_step": 3}
    torch.save(content, tmp_path / "plain.ckpt")
    with (
        pytest.warns(CheckpointWarning) as said,
        pytest.raises(ValueError, match="no callback can be set up for this model"),
    ):
        replay(tmp_path, Plain(), None, folder=tmp_path / "new")
    assert "GateMonitor is left out: found no recurrent module in Plain" in str(said[0].message)


def test_callbacks_can_be_used_again_for_another_run(run, initial, tmp_path):
    callbacks = watchers()
    for name in ("one", "two"):
        replay(run / "checkpoints", initial, callbacks, folder=tmp_path / name, model_is_start=True)
    assert all(callback.every_n_epochs == 1 for callback in callbacks)
    for noun in NOUNS:
        one, two = (looks(tmp_path / name, noun) for name in ("one", "two"))
        assert list(one) == list(two)
        for name, look in one.items():
            for tag, value in look.report.scalars.items():
                assert tag.rpartition("/")[2] in CLOCKS or value == two[name].report.scalars[tag]


# ---- where results go ------------------------------------------------------------------------------------------------


@pytest.fixture
def unwatched(run, tmp_path):
    """What a run without callbacks leaves."""
    shutil.copytree(run, tmp_path / "old", ignore=shutil.ignore_patterns("rnn_callbacks"))
    return tmp_path / "old"


def test_a_run_that_has_metrics_keeps_them_and_gets_ours_beside(unwatched, initial):
    before = {path: path.read_bytes() for path in unwatched.rglob("*") if path.is_file()}
    assert replay(unwatched / "checkpoints", initial, [GateMonitor(**OFTEN)]) == str(unwatched)
    assert {path: path.read_bytes() for path in before} == before
    new = [
        path.relative_to(unwatched).parts[0] for path in unwatched.rglob("*") if path not in before and path.is_file()
    ]
    (events,) = {name for name in new if name != "rnn_callbacks"}
    assert events.startswith("events.out.tfevents.")
    assert events.endswith(".replay")
    logged = scalars_of(unwatched, ".replay")
    assert "val_loss" not in logged
    assert all(tag == "epoch" or tag.startswith("gates/") for tag in logged)


def test_results_that_are_there_are_kept_unless_told(unwatched, initial):
    note = unwatched / "rnn_callbacks" / "gradient_flow" / "epoch=0000-step=00000002.npz"
    note.parent.mkdir(parents=True)
    note.touch()
    with pytest.raises(FileExistsError, match="already has what was seen while the run was training"):
        replay(unwatched / "checkpoints", initial, [GateMonitor(**OFTEN)])
    replay(unwatched / "checkpoints", initial, [GateMonitor(**OFTEN)], overwrite=True)
    with pytest.raises(FileExistsError, match=r"already has results of a replay.*those of gates \(overwrite=True"):
        replay(unwatched / "checkpoints", initial, [GateMonitor(**OFTEN)])
    replay(unwatched / "checkpoints" / "last.ckpt", initial, [GateMonitor(**OFTEN)], overwrite=True)
    assert [look.epoch for look in looks(unwatched, "gates").values()] == [2]
    assert len(list(unwatched.glob("events*"))) == 2  # the run's and ours
    assert note.exists()  # it cannot be had again


def test_elsewhere_results_go_beside_the_checkpoints_with_what_the_run_was_set_to(train, tmp_path):
    train(keep_all(dirpath=tmp_path / "kept"), model=Asks, max_epochs=1, logger=CSVLogger(tmp_path))
    given = [tmp_path / "kept"]
    assert replay(given, Asks(), [GateMonitor(**OFTEN)]) == str(tmp_path / "replayed" / "kept")
    settings = yaml.safe_load((tmp_path / "replayed" / "kept" / "hparams.yaml").read_text())
    assert settings == {"units": UNITS}
    (tmp_path / "replayed" / "kept" / "hparams.yaml").write_text("units: 1")  # somebody's
    replay(given, Asks(), [GateMonitor(**OFTEN)], overwrite=True)
    assert (tmp_path / "replayed" / "kept" / "hparams.yaml").read_text() == "units: 1"
    assert "val_loss" in scalars_of(tmp_path / "replayed" / "kept", ".replay")


def test_checkpoints_of_several_folders_need_a_place(run, initial, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "more")
    given = [run / "checkpoints" / "epoch=0-step=3.ckpt", tmp_path / "more" / "epoch=1-step=6.ckpt"]
    with pytest.raises(ValueError, match=r"lie in 2 folders.*A replay is of one run"):
        replay(given, initial, [GateMonitor()])
    replay(given, initial, [GateMonitor(**OFTEN)], folder=tmp_path / "new")
    assert len(looks(tmp_path / "new", "gates")) == 2


def test_a_replay_that_breaks_off_leaves_nothing_open(run, initial, tmp_path):
    class Breaks(Classifier):
        def on_validation_epoch_start(self):
            if self.current_epoch == 1:
                raise RuntimeError("broken off")

    model, callback = Breaks(layers=2, dropout=0.2), GateMonitor(**OFTEN)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="broken off"):
        replay(run / "checkpoints", model, [callback], folder=tmp_path / "new")
    assert not callback.watched
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- by a configuration ----------------------------------------------------------------------------------------------


class Pupil(Classifier):
    """What a configuration can build."""

    def __init__(self, family: str = "gru", dropout: float = 0.0) -> None:
        super().__init__(family, dropout=dropout)
        self.save_hyperparameters()


class Lessons(pl.LightningDataModule):
    def __init__(self, sequences: int = 24) -> None:
        super().__init__()
        self.sequences = sequences

    def train_dataloader(self):
        return loader(self.sequences, shuffle=True)

    def val_dataloader(self):
        return loader(self.sequences, seed=1)


HERE = {"model": f"{__name__}.Pupil", "data": f"{__name__}.Lessons"}
GATES = {"class_path": "rnn_callbacks.GateMonitor", "init_args": {"figure_every_n_epochs": 99}}
PATH = {"class_path": "rnn_callbacks.WeightTrajectoryLogger", "init_args": {"figure_every_n_epochs": 99}}
SETTINGS = {
    "seed_everything": 3,
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": [GATES, PATH],
    },
    "model": {"family": "lstm"},
    "data": {"sequences": 16},
}


@pytest.fixture
def cli_run(tmp_path, monkeypatch):
    """A run that Lightning's command line trained, with the configuration that it saved."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    (tmp_path / "by_hand.yaml").write_text(yaml.safe_dump(SETTINGS))
    options = ["fit", "--config", str(tmp_path / "by_hand.yaml"), "--trainer.default_root_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # LightningCLI's own use of jsonargparse
        LightningCLI(Pupil, Lessons, args=options)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    return tmp_path / "lightning_logs" / "version_0"


def by_config(config, checkpoints, **options):
    return replay_from_config(config, checkpoints, accelerator="cpu", **options)


def test_a_saved_configuration_builds_the_run_again(cli_run, tmp_path):
    before = torch.get_rng_state()
    into = tmp_path / "new"
    assert by_config(cli_run / "config.yaml", cli_run / "checkpoints", folder=into, **HERE) == str(into)
    live, past = looks(cli_run, "gates"), looks(into, "gates")
    assert list(past) == list(live)[-1:]  # the checkpoint that ModelCheckpoint kept
    (name,) = past
    assert all(np.array_equal(a, past[name].report.arrays[t]) for t, a in live[name].report.arrays.items())
    assert past[name].report.scalars["gates/encoder.rnn.l0/forget/mean"]  # an LSTM
    live, past = (SnapshotFile(f / "rnn_callbacks" / "weight_trajectory" / "snapshots") for f in (cli_run, into))
    assert live.entries[::2] == past.entries  # from the very weights it began with
    np.testing.assert_array_equal(live.row(0), past.row(0))
    assert past.facts["seed"] == "3"
    assert "PL_GLOBAL_SEED" not in os.environ
    assert torch.equal(before, torch.get_rng_state())
    assert sorted(path.name for path in into.iterdir() if "tfevents" not in path.name) == [
        "hparams.yaml",
        "rnn_callbacks",
    ]


def test_a_configuration_with_classes_needs_no_names(cli_run, tmp_path, caplog):
    whole = SETTINGS | {
        "seed_everything": True,  # any seed: nobody knows where the run began
        "model": {"class_path": HERE["model"], "init_args": {"family": "lstm"}},
        "data": {"class_path": HERE["data"], "init_args": {"sequences": 16}},
        "ckpt_path": None,
        "optimizer": {"class_path": "torch.optim.Adam"},
    }
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({"fit": whole}))
    with caplog.at_level("INFO"):
        by_config(tmp_path / "whole.yaml", cli_run / "checkpoints", folder=tmp_path / "new")
    assert not caplog.records
    assert path_of(tmp_path / "new") == [(1, 4)]


def test_callbacks_that_a_configuration_adds_are_understood(cli_run, tmp_path):
    added = SETTINGS["trainer"] | {"callbacks": [GATES], "callbacks+": [PATH, {"class_path": "EarlyStopping"}]}
    (tmp_path / "added.yaml").write_text(yaml.safe_dump(SETTINGS | {"trainer": added}))
    by_config(tmp_path / "added.yaml", cli_run / "checkpoints", folder=tmp_path / "new", **HERE)
    made = sorted(path.name for path in (tmp_path / "new" / "rnn_callbacks").iterdir())
    assert made == ["gates", "weight_trajectory"]


def test_the_trainer_of_a_configuration_is_not_needed(cli_run, tmp_path):
    gates = {"class_path": "GateMonitor", "init_args": {"figure_every_n_epochs": 99, "max_sequences": 11}}
    trainer = {
        "accelerator": "tpu",
        "strategy": "fsdp",
        "devices": 64,
        "logger": {"class_path": "nowhere.Logger"},
        "limit_val_batches": 1,
        "precision": "64-true",
        "callbacks": [{"class_path": "nowhere.Callback"}, {"class_path": "EarlyStopping"}, gates],
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(SETTINGS | {"trainer": trainer}))
    by_config(tmp_path / "other.yaml", cli_run / "checkpoints", folder=tmp_path / "new", **HERE)
    (look,) = looks(tmp_path / "new", "gates").values()
    assert look.report.scalars["gates/encoder.rnn.l0/rebuild_error"] < 1e-12  # in double precision
    assert len(look.report.arrays["gates/encoder.rnn.l0/lengths"]) == 8  # sequences of the first batch alone


def test_who_needs_training_is_left_out_of_a_configuration_and_told(cli_run, tmp_path):
    alone = SETTINGS["trainer"] | {"callbacks": {"class_path": "GradientFlowMonitor"}}
    (tmp_path / "flow.yaml").write_text(yaml.safe_dump(SETTINGS | {"trainer": alone}))
    with pytest.warns(CheckpointWarning, match="GradientFlowMonitor is left out: training batches") as said:
        by_config(tmp_path / "flow.yaml", cli_run / "checkpoints", folder=tmp_path / "new", **HERE)
    assert len([w for w in said if w.category is CheckpointWarning]) == 1
    made = sorted(path.name for path in (tmp_path / "new" / "rnn_callbacks").iterdir())
    assert made == [
        "fixed_points",
        "gates",
        "probes",
        "representation",
        "weight_trajectory",
    ]  # what is looked at where nothing is named


WRONG = {
    "no class": ({}, {}, r'has settings of the model and not its class.*--model package\.module\.Class'),
    "no data class": ({}, {"model": HERE["model"]}, "has settings of the data and not its class"),
    "data without settings": ({"data": {}}, {"model": HERE["model"]}, "has settings of the data and not its class"),
    "no model": ({"model": None}, {"data": HERE["data"]}, "has no model: name it"),
    "unknown class": ({}, HERE | {"model": f"{__name__}.Nobody"}, "model: cannot import .*Nobody"),
    "unknown setting": ({"model": {"width": 3}}, HERE, "cannot be followed: .*width"),
    "unknown setting of ours": (
        {"trainer": {"callbacks": [{"class_path": "rnn_callbacks.GateMonitor", "init_args": {"gates": 1}}]}},
        HERE,
        "cannot be followed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_configuration_that_cannot_be_followed_says_why(tmp_path, mistake):
    pytest.importorskip("jsonargparse")
    changes, options, message = WRONG[mistake]
    settings = {key: value for key, value in (SETTINGS | changes).items() if value is not None}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=message):
        by_config(tmp_path / "wrong.yaml", tmp_path, **options)


def test_what_is_no_configuration_is_refused(tmp_path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "odd.yaml").write_text("- [1")
    with pytest.raises(ValueError, match=r"odd.yaml cannot be read as YAML"):
        by_config(tmp_path / "odd.yaml", tmp_path)
    (tmp_path / "odd.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="is no configuration of Lightning's command line"):
        by_config(tmp_path / "odd.yaml", tmp_path)


def test_without_jsonargparse_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rnn-callbacks\[cli\]'"):
        by_config(tmp_path / "any.yaml", tmp_path)


def options_of(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*map(str, arguments), "--accelerator", "cpu"])


def test_the_command_says_where_results_are_and_nothing_else(cli_run, capfd, monkeypatch):
    shutil.rmtree(cli_run / "rnn_callbacks")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])  # noqa: PTH109
    told = options_of(cli_run / "checkpoints", "--model", HERE["model"], "--data", HERE["data"])
    with warnings.catch_warnings():
        assert command(told) == 0
    out, err = capfd.readouterr()
    assert out == f"Results lie in {cli_run}\nTo see them:  tensorboard --logdir {cli_run}\n"
    assert err == ""
    with warnings.catch_warnings():
        assert command(told) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"rnn-callbacks replay: {cli_run} already has results of a replay")
    assert "Traceback" not in err


def test_the_command_needs_a_configuration(run, capsys):
    assert command(options_of(run / "checkpoints")) == 2
    assert "there is no <run>/config.yaml beside these checkpoints: name one with --config" in capsys.readouterr().err


def test_a_run_that_was_replayed_keeps_its_own_numbers_in_a_comparison(train, tmp_path):
    """In its own folder, where its metrics must stay, or in another, where it must not pass for another seed."""
    train(keep_all(), max_epochs=2)
    folder = version(train)
    before = load_runs(folder)[0]
    replay(folder / "checkpoints", Classifier(), [GateMonitor(**OFTEN)], folder=tmp_path / "elsewhere")
    other, own = load_runs(folder, tmp_path / "elsewhere")  # by their names
    assert other.replayed
    assert not own.replayed
    assert "val_loss" in before.metrics
    own.hyperparameters = other.hyperparameters = {"units": 5}
    own.series["train_loss"] = own.series["val_loss"]  # which no checkpoint knows
    (group,) = find_groups([own, other])
    assert group.distinct == (0,)
    stranger = changed(other, series={tag: changed(s, values=s.values + 1) for tag, s in other.series.items()})
    assert find_groups([own, stranger])[0].distinct == (0, 1)

    replay(folder / "checkpoints", Classifier(), [GateMonitor(**OFTEN)])
    (after,) = load_runs(folder)
    assert after.replayed
    for tag in before.series:
        np.testing.assert_array_equal(after.series[tag].values, before.series[tag].values)
        np.testing.assert_array_equal(after.series[tag].epochs, before.series[tag].epochs)
    seen = after.series["gates/encoder.rnn.l0/timescale/q50"]
    assert seen.epochs.tolist() == [0, 1]
    assert seen.steps.tolist() == before.series["val_loss"].steps.tolist()
    assert not {"gates/seconds", "gates/overhead"} & set(after.series)
