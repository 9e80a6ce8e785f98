"""When callbacks look, what they share, and where it goes; tried with `GateMonitor`, true for all."""

import math
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from rnn_callbacks import GateMonitor
from rnn_callbacks.callbacks import company
from rnn_callbacks.callbacks.guard import Guard, RecurrentHealthWarning
from rnn_callbacks.report import load

from ..models import FEATURES, STEPS, UNITS, Classifier, loader

TAG = "gates/encoder.rnn.l0/update/mean"


def looks(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return [load(str(path)) for path in sorted((run / "rnn_callbacks" / "gates").glob("*.npz"))]


def events(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0, "histograms": 0})
    return accumulator.Reload()


def places(fit):
    return [(look.epoch, look.step) for look in looks(fit)]


def monitor(**options):
    """Without pictures, which would take most of the time."""
    return GateMonitor(**{"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"} | options)


# ---- when ------------------------------------------------------------------------------------------------------------


def test_a_look_follows_every_validation_and_none_the_sanity_check(fit):
    fit(monitor(), max_epochs=3, num_sanity_val_steps=2)
    assert places(fit) == [(0, 2), (1, 5), (2, 8)]


def test_validation_every_second_epoch_gives_a_look_every_second_epoch(fit):
    fit(monitor(), max_epochs=4, check_val_every_n_epoch=2)
    assert places(fit) == [(1, 5), (3, 11)]


def test_validation_within_an_epoch_gives_looks_within_the_epoch(fit):
    fit(monitor(), train=loader(32), max_epochs=1, val_check_interval=0.5)
    assert places(fit) == [(0, 1), (0, 3)]


def test_validation_every_n_steps_of_an_endless_stream_gives_looks(fit):
    class Stream(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(STEPS, FEATURES), torch.tensor(0)

    fit(
        monitor(), train=DataLoader(Stream(), 4), max_epochs=None, max_steps=6, val_check_interval=2,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    assert [step for _, step in places(fit)] == [1, 3, 5]


def test_a_period_of_epochs_is_kept(fit):
    fit(monitor(every_n_epochs=2), max_epochs=5)
    assert [epoch for epoch, _ in places(fit)] == [1, 3]


def test_training_batches_are_heard_where_asked_for(fit):
    fit(monitor(observe="train"), validate=[], max_epochs=2)
    assert places(fit) == [(0, 2), (1, 5)]


def test_training_batches_with_dropout_between_layers_are_rebuilt_as_they_were(fit):
    trainer = fit(monitor(observe="train"), model=Classifier("lstm", layers=3, dropout=0.4), validate=[])
    errors = [float(v) for tag, v in trainer.callback_metrics.items() if tag.endswith("rebuild_error")]
    assert len(errors) == 3
    assert max(errors) < 2e-6  # without the replayed dropout it is about 0.1


def test_validation_is_not_heard_where_training_batches_were_asked_for(fit):
    fit(monitor(observe="train"), train=loader(8), validate=loader(24), max_epochs=1)
    assert looks(fit)[0].report.histograms["gates/encoder.rnn.l0/update"].counts.sum() == 8 * STEPS * UNITS


def test_the_last_epoch_is_looked_at_whatever_the_budget(fit):
    fit(GateMonitor(max_overhead=1e-9), max_epochs=5)
    assert [epoch for epoch, _ in places(fit)] == [0, 4]


@pytest.mark.parametrize(("epochs", "times"), [(2, 0), (4, 1)])
def test_rare_looks_are_announced_once_where_there_are_epochs_between(fit, monkeypatch, epochs, times):
    words = []
    monkeypatch.setattr(company, "rank_zero_info", words.append)
    fit(GateMonitor(max_overhead=1e-9, figure_every_n_epochs=99), max_epochs=epochs)
    assert len([text for text in words if "spaced out" in text and "GateMonitor not;" in text]) == times


def test_a_run_that_stops_early_is_looked_at_where_it_stopped(fit):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    fit(GateMonitor(max_overhead=1e-9), Stop(), max_epochs=9)
    assert places(fit) == [(0, 2), (2, 8)]
    assert [event.step for event in events(fit).Scalars(TAG)] == [2, 8]


def test_fast_dev_run_looks_and_leaves_no_file(fit, tmp_path):
    trainer = fit(monitor(figure_every_n_epochs=1), fast_dev_run=True)
    assert TAG in trainer.callback_metrics
    assert not list(tmp_path.rglob("*.npz"))
    assert not list(tmp_path.rglob("*.png"))


def test_trainer_validate_and_test_are_left_alone(fit):
    trainer = fit(monitor())
    before = places(fit)
    trainer.validate(trainer.lightning_module, loader(), verbose=False)
    assert places(fit) == before


def test_one_callback_can_watch_two_runs(fit):
    callback = monitor()
    fit(callback)
    assert len(looks(fit)) == 2
    fit(callback)
    assert len(looks(fit)) == 2
    assert len(list(fit.logs.glob("version_*"))) == 2


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_an_empty_validation_loader_is_said_at_the_end(fit):
    with (
        pytest.warns(RecurrentHealthWarning, match="saw nothing: no validation batch was heard"),
        pytest.warns(UserWarning, match="zero"),
    ):
        fit(GateMonitor(), validate=DataLoader(loader(0).dataset, 4), max_epochs=1)


def test_a_period_that_no_validation_meets_is_said_at_the_end(fit):
    with pytest.warns(RecurrentHealthWarning, match=r"saw nothing: .* in an epoch that is due \(every_n_epochs=2\)"):
        fit(monitor(every_n_epochs=2), max_epochs=5, check_val_every_n_epoch=3)


def test_what_was_said_in_one_run_is_said_again_in_the_next():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")  # Python's own: the same words from the same line only once
        for _ in range(2):
            guard = Guard("GateMonitor", "gates/failed_looks", "warn")
            guard.say("key", "words")
            guard.say("key", "words")
    assert [str(warning.message) for warning in heard] == ["words", "words"]


def test_a_module_that_is_never_called_is_named(fit):
    class Spare(Classifier):
        def __init__(self):
            super().__init__()
            self.spare = nn.LSTM(FEATURES, UNITS)

    with pytest.warns(RecurrentHealthWarning, match="spare is left out; it was not called"):
        trainer = fit(monitor(), model=Spare)
    assert TAG in trainer.callback_metrics
    assert not any("spare" in tag for tag in trainer.callback_metrics)


class Meddles(pl.Callback):
    """Changes the weights after each validation batch, as an averaging callback does."""

    def on_validation_batch_end(self, trainer, pl_module, *args):
        with torch.no_grad():
            pl_module.encoder.rnn.weight_hh_l0 += 0.05


def test_weights_that_change_between_hearing_and_looking_do_not_matter(fit):
    # The equations are copied when a batch is heard; with the weights of the look the error would be 1e-2.
    trainer = fit(monitor(), Meddles(), num_sanity_val_steps=0)
    assert trainer.callback_metrics["gates/encoder.rnn.l0/rebuild_error"] < 1e-6


def test_a_module_whose_states_do_not_follow_from_its_weights_is_refused(fit):
    class Scaled(nn.GRU):
        def forward(self, x, hx=None):
            out, last = super().forward(x, hx)
            return 0.9 * out, last

    class Odd(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder.rnn = Scaled(FEATURES, UNITS, batch_first=True)

    with pytest.warns(RecurrentHealthWarning, match="cannot be rebuilt from its weights"):
        trainer = fit(monitor(), model=Odd)
    assert trainer.callback_metrics["gates/encoder.rnn.l0/rebuild_error"] > 1e-3
    assert TAG not in trainer.callback_metrics


class TwoLayers(Classifier):
    """Two recurrent modules, one after the other."""

    def __init__(self):
        super().__init__()
        self.second = nn.GRU(UNITS, UNITS, batch_first=True)

    def forward(self, x):
        return self.head(self.norm(self.second(self.encoder.rnn(x)[0])[0][:, -1]))


def test_a_module_that_cannot_be_read_does_not_silence_the_others(fit):
    class Odd(nn.GRU):
        def forward(self, x, hx=None):
            out, last = super().forward(x, hx)
            return out, last[..., :2]

    class OneOdd(TwoLayers):
        def __init__(self):
            super().__init__()
            self.encoder.rnn = Odd(FEATURES, UNITS, batch_first=True)

    with pytest.warns(RecurrentHealthWarning, match="listening to encoder.rnn failed"):
        trainer = fit(monitor(on_error="warn"), model=OneOdd)
    assert 0 < trainer.callback_metrics["gates/second.l0/update/mean"] < 1
    assert trainer.callback_metrics["gates/failed_looks"] == 2


def test_a_default_device_of_the_users_own_is_not_used(fit):
    class Elsewhere(pl.Callback):
        """Another default device, in force while the callbacks after this one look."""

        def on_validation_epoch_end(self, trainer, pl_module):
            torch.set_default_device("meta")

    class Back(Classifier):
        """Lightning keeps what is logged on the default device, and on this one nothing can be kept."""

        def log_dict(self, *values, **options):
            torch.set_default_device(None)
            super().log_dict(*values, **options)

    try:
        trainer = fit(Elsewhere(), monitor(), model=Back, num_sanity_val_steps=0)
    finally:
        torch.set_default_device(None)
    assert 0 < trainer.callback_metrics[TAG] < 1


def test_modules_made_in_the_models_own_setup_are_found(fit):
    class Late(Classifier):
        def setup(self, stage):
            self.late = nn.GRU(FEATURES, UNITS, batch_first=True)

        def forward(self, x):
            return super().forward(x) + self.late(x)[0].sum() * 0

    trainer = fit(monitor(module="late"), model=Late)
    assert "gates/late.l0/update/mean" in trainer.callback_metrics


def test_hooks_are_gone_after_an_exception_in_the_middle_of_a_look(fit):
    class Fails(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            assert pl_module.encoder.rnn._forward_hooks
            raise KeyError("the user's")

    model = Classifier()
    with pytest.raises(KeyError, match="the user's"):
        fit(monitor(), Fails(), model=model, num_sanity_val_steps=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_text_said_once_is_not_said_again_after_a_resume(fit, tmp_path):
    class Frozen(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder.rnn.bias_ih_l0.data[UNITS : 2 * UNITS] = 9.0

    with pytest.warns(RecurrentHealthWarning, match="flag frozen"):
        trainer = fit(monitor(), model=Frozen)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    trainer = fit(monitor(), model=Frozen, max_epochs=4, ckpt_path=tmp_path / "run.ckpt")  # a warning would raise
    assert trainer.callback_metrics["gates/encoder.rnn.l0/flags/frozen"] == 1


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_resumed_within_an_epoch_listens_to_the_rest_of_it(fit, tmp_path):
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    fit(monitor(observe="train"), Saves(), train=loader(32), validate=[], max_epochs=1)
    fit(monitor(observe="train"), train=loader(32), validate=[], max_epochs=1, ckpt_path=tmp_path / "middle.ckpt")
    assert places(fit) == [(0, 3)]
    assert looks(fit)[0].report.histograms["gates/encoder.rnn.l0/update"].counts.sum() == 2 * 8 * STEPS * UNITS


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
def test_a_resumed_run_goes_on_looking(fit, tmp_path):
    fit(monitor(), ModelCheckpoint(tmp_path / "kept"), max_epochs=2, enable_checkpointing=True)
    (checkpoint,) = (tmp_path / "kept").glob("*.ckpt")
    fit(monitor(), max_epochs=4, ckpt_path=checkpoint)
    assert places(fit) == [(2, 8), (3, 11)]


# ---- who may use the numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_train_end", [None, True, False])
def test_early_stopping_can_monitor_a_gate(fit, at_train_end):
    stop = EarlyStopping(TAG, mode="max", patience=1, min_delta=10.0, check_on_train_epoch_end=at_train_end)
    trainer = fit(monitor(), stop, max_epochs=9)
    assert trainer.current_epoch == 2
    assert stop.best_score == pytest.approx(looks(fit)[0].report.scalars[TAG])


def test_a_monitored_tag_is_there_at_every_epoch_whatever_the_budget(fit):
    # Between looks Lightning would repeat the old value, and EarlyStopping take it for no improvement.
    stop = EarlyStopping(TAG, patience=99)
    fit(GateMonitor(max_overhead=1e-9), stop, max_epochs=4)
    assert [epoch for epoch, _ in places(fit)] == [0, 1, 2, 3]


def test_a_period_that_leaves_a_monitored_tag_out_is_said(fit):
    with pytest.warns(RecurrentHealthWarning, match="every_n_epochs=2 leaves epochs without it"):
        fit(monitor(every_n_epochs=2), EarlyStopping(TAG, strict=False), max_epochs=2)


def test_model_checkpoint_can_monitor_a_gate(fit, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", monitor=TAG, mode="min")
    fit(monitor(), keep, max_epochs=3, enable_checkpointing=True)
    assert keep.best_model_score == pytest.approx(min(look.report.scalars[TAG] for look in looks(fit)))


def test_two_callbacks_of_one_class_share_what_they_hear(fit):
    a, b = monitor(module="encoder.rnn", max_sequences=5), monitor(module="second", max_sequences=9)
    hooks = []

    class Counts(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, *args):
            hooks.append(len(pl_module.second._forward_hooks))

    trainer = fit(a, b, Counts(), model=TwoLayers, num_sanity_val_steps=0, max_epochs=1)
    assert hooks == [1, 1, 0]  # 9 sequences are heard after two batches of 8
    assert {"gates/encoder.rnn.l0/update/mean", "gates/second.l0/update/mean"} <= set(trainer.callback_metrics)
    lengths = [look.report.arrays[f"gates/{m}.l0/lengths"] for look, m in zip(looks(fit), ["second"], strict=False)]
    assert [len(length) for length in lengths] == [9]


# ---- where it goes ---------------------------------------------------------------------------------------------------


def test_pictures_scalars_histograms_and_texts_share_lightnings_step(fit):
    with pytest.warns(RecurrentHealthWarning, match="update_mean is 0"):
        fit(monitor(figure_every_n_epochs=1, flags={"update_mean_above": 0.0}), max_epochs=2, accumulate_grad_batches=2)
    found = events(fit)
    lightnings = [event.step for event in found.Scalars("val_loss")]
    assert lightnings == [1, 3]
    assert [event.step for event in found.Scalars(TAG)] == lightnings
    assert [event.step for event in found.Images("gates/encoder.rnn")] == lightnings
    assert [event.step for event in found.Histograms("gates/encoder.rnn.l0/update")] == lightnings
    text = found.Tensors("gates/encoder.rnn.l0/flags/update_mean_above/text_summary")
    assert [event.step for event in text] == lightnings
    assert b"above the limit of 0" in text[0].tensor_proto.string_val[0]


def test_the_histogram_holds_the_raw_counts(fit):
    fit(monitor(), max_epochs=1)
    (event,) = events(fit).Histograms("gates/encoder.rnn.l0/update")
    steps = 24 * STEPS * UNITS
    counts = looks(fit)[0].report.histograms["gates/encoder.rnn.l0/update"].counts
    assert counts.sum() == steps
    assert event.histogram_value.num == steps
    assert sum(event.histogram_value.bucket) == steps


def test_tensorboard_opens_with_a_curated_page(fit):
    fit(monitor())
    assert "custom_scalars__config__" in events(fit).Tags()["tensors"]


def test_pictures_lie_beside_the_numbers(fit):
    fit(monitor(figure_every_n_epochs=2), max_epochs=4)
    run = sorted(fit.logs.glob("version_*"))[-1]
    names = [path.name for path in sorted((run / "rnn_callbacks" / "gates" / "figures").iterdir())]
    assert names == [f"encoder.rnn-epoch={e:04d}-step={s:08d}.png" for e, s in ((1, 5), (3, 11))]


def test_several_loggers_all_get_the_scalars(fit, tmp_path):
    loggers = [TensorBoardLogger(fit.logs.parent, name="logs"), CSVLogger(tmp_path, name="csv")]
    fit(monitor(), logger=loggers)
    assert TAG in events(fit).Tags()["scalars"]
    (table,) = tmp_path.glob("csv/*/metrics.csv")
    assert TAG in table.read_text()


def test_without_a_logger_numbers_go_to_the_root_folder_one_version_per_run(fit, tmp_path):
    for version in (0, 1):
        trainer = fit(monitor(), logger=False)
        folder = tmp_path / "lightning_logs" / f"version_{version}" / "rnn_callbacks" / "gates"
        assert len(list(folder.glob("*.npz"))) == 2
        assert TAG in trainer.callback_metrics


def test_a_remote_log_folder_is_written_through_fsspec(fit):
    import fsspec

    trainer = fit(monitor(figure_every_n_epochs=1), logger=TensorBoardLogger("memory://remote", name="run"))
    paths = fsspec.filesystem("memory").glob("/remote/run/version_0/rnn_callbacks/gates/**")
    assert sum(path.endswith(".npz") for path in paths) == 2
    assert sum(path.endswith(".png") for path in paths) == 2
    assert not [path for path in paths if path.endswith(".part")]
    saved = load("memory:/" + next(path for path in sorted(paths) if path.endswith("5.npz")))
    assert saved.report.scalars[TAG] == pytest.approx(float(trainer.callback_metrics[TAG]))


# ---- precision and ranks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_other_precisions_are_watched(fit, precision):
    class Casting(Classifier):
        def forward(self, x):
            return super().forward(x.to(self.head.weight.dtype))

    trainer = fit(monitor(), model=Casting("gru", layers=2), precision=precision)
    error = trainer.callback_metrics["gates/encoder.rnn.l1/rebuild_error"]
    assert error < (1e-12 if precision == "64-true" else 3e-2)
    assert 0 < trainer.callback_metrics["gates/encoder.rnn.l1/update/mean"] < 1


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_reported_and_never_logged(fit, value):
    class Poisoned(Classifier):
        def forward(self, x):
            return super().forward(torch.where(torch.arange(STEPS)[:, None] >= 4, value, x))

    with pytest.warns(RecurrentHealthWarning, match=r"flag nonfinite: .*% of the steps hold NaN or infinite"):
        trainer = fit(monitor(), model=Poisoned)
    tags = {tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("gates/")}
    assert tags["gates/encoder.rnn.l0/flags/nonfinite"] == 1
    assert np.isfinite(list(tags.values())).all()


def test_nan_weights_are_reported_and_never_logged(fit):
    class Broken(Classifier):
        def on_validation_epoch_start(self):
            torch.nn.init.constant_(self.encoder.rnn.weight_hh_l0, math.nan)

    with pytest.warns(RecurrentHealthWarning, match="flag nonfinite: 100.00% of the steps"):
        trainer = fit(monitor(), model=Broken)
    tags = {tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("gates/")}
    assert np.isfinite(list(tags.values())).all()


def test_a_smaller_last_batch_is_counted_as_what_it_is(fit):
    fit(monitor(), validate=loader(19, seed=1), max_epochs=1)
    report = looks(fit)[0].report
    assert report.histograms["gates/encoder.rnn.l0/reset"].counts.sum() == 19 * STEPS * UNITS


def test_the_same_first_sequences_are_heard_at_every_look(fit):
    fit(monitor(max_sequences=10), max_epochs=3, validate=loader(24, 4, seed=1))
    assert [len(look.report.arrays["gates/encoder.rnn.l0/lengths"]) for look in looks(fit)] == [10, 10, 10]
