"""What is said at a run's end, and what is not."""

import logging
import re
import signal

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

import rnn_callbacks
from rnn_callbacks import FixedPointTracker, GateMonitor, GradientFlowMonitor, ProbeTracker
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.callbacks.summary import headline_cells
from rnn_callbacks.replay import replay

from ..models import Classifier, loader

CALLBACKS = [getattr(rnn_callbacks, name) for name in rnn_callbacks.__all__]
MOST = 12  # lines


@pytest.fixture
def said():
    """Blocks that were printed through Lightning's own channel, as lists of lines."""
    blocks = []

    class Keeps(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("What was seen"):
                blocks.append(record.getMessage().split("\n"))

    # Whichever of the two packages was imported last speaks for both.
    channels, handler = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning")], Keeps()
    levels = [channel.level for channel in channels]
    for channel in channels:
        channel.setLevel(logging.INFO)
        channel.addHandler(handler)
    yield blocks
    for channel, level in zip(channels, levels, strict=True):
        channel.removeHandler(handler)
        channel.setLevel(level)


def watch(callback, **options):
    return callback(every_n_epochs=1, figure_every_n_epochs=1000, on_error="raise", **options)


def words_of(block, title):
    """The rest of the one line with that title."""
    (found,) = [line[2:].removeprefix(title).strip() for line in block if line[2:].startswith(title + " ")]
    return found


class KeepsHeadlines(pl.Callback):
    def on_fit_start(self, trainer, pl_module):
        ours = [callback for callback in trainer.callbacks if hasattr(callback, "headlines")]
        self.found = {type(callback).__name__: callback.headlines() for callback in ours}


class Averages(Classifier):
    """Learns from all steps, so that every direction gets a gradient through time."""

    def forward(self, x):
        return self.head(self.norm(self.encoder.rnn(x)[0].mean(1)))


MODELS = {
    "gru": lambda: Averages("gru"),
    "lstm": lambda: Averages("lstm"),
    "rnn": lambda: Averages("rnn"),
    "two layers both ways": lambda: Averages("gru", layers=2, bidirectional=True),
}
CHEAP = {"ProbeTracker": {"shuffles": 2}, "FixedPointTracker": {"max_starts": 16}}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::rnn_callbacks.callbacks.guard.RecurrentHealthWarning")  # flags of so small a run
def test_headlines_are_logged_tags_that_can_be_put_into_words(fit, said, name):
    both_ways = name == "two layers both ways"
    kinds = [kind for kind in CALLBACKS if not (both_ways and kind is FixedPointTracker)]
    callbacks = [watch(kind, **CHEAP.get(kind.__name__, {})) for kind in kinds]
    kept = KeepsHeadlines()
    trainer = fit(*callbacks, kept, model=MODELS[name](), max_epochs=1)
    for callback in callbacks:
        headlines = kept.found[type(callback).__name__]
        assert 1 <= len(headlines) <= (4 if both_ways else 3)
        assert set(headlines) <= set(trainer.callback_metrics)
        for tag, words in headlines.items():
            thing, colon, what = words.format(value=float(trainer.callback_metrics[tag])).partition(": ")
            assert "" not in (thing, colon, what)
            assert words.format(value=0.123) != words.format(value=5.67)
    (block,) = said
    assert len(block) <= MOST
    assert [line.split()[0] for line in block[1 : 1 + len(callbacks)]] == [kind.__name__ for kind in kinds]
    assert max(map(len, block)) < 160


def test_the_words_carry_the_numbers_of_the_last_look(fit, said):
    trainer = fit(watch(GateMonitor), watch(ProbeTracker))
    (block,) = said
    assert re.fullmatch(r"What was seen in 2 epochs \(watching took .* of( the)? training( time)?\):", block[0])
    q50 = float(trainer.callback_metrics["gates/encoder.rnn.l0/timescale/q50"])
    assert words_of(block, "GateMonitor") == f"encoder.rnn: the median unit remembers {q50:.3g} steps"
    gain, share = (float(trainer.callback_metrics[f"probes/concepts/target/{name}"]) for name in ("gain", "share"))
    # One thing, named once.
    assert words_of(block, "ProbeTracker") == f"target: score {gain:+.2f} over controls, {share:.0%} readable"


def test_however_many_layers_and_callbacks_there_are_it_stays_short(fit, said):
    model = Classifier("gru", layers=9, bidirectional=True)
    names = [f"rnn{number}" for number in range(9)]
    for name in names:
        setattr(model.encoder, name, nn.GRU(3, 2))
    read = model.encoder.rnn.forward

    def forward(x):
        for name in names:
            getattr(model.encoder, name)(x)
        return read(x)

    model.forward = lambda x: model.head(model.norm(model.drop(forward(x)[0][:, -1])))
    fit(*(watch(GateMonitor, module=f"encoder.{name}") for name in names), model=model, max_epochs=1)
    (block,) = said
    assert len(block) <= MOST
    assert "and 3 more" in block[7]
    assert max(map(len, block[:8])) < 120


def test_of_many_cells_the_top_ones_speak():
    both_ways = nn.GRU(3, 5, 2, bidirectional=True)
    assert [called for called, _ in headline_cells({"a": nn.GRU(3, 5), "b": nn.LSTM(3, 5, 2)}).values()] == [
        "a", "b.l0", "b.l1",
    ]  # fmt: skip
    assert list(headline_cells({"a": both_ways, "b": nn.RNN(3, 5)})) == ["a.l1", "a.l1_reverse", "b.l0"]
    assert list(headline_cells({str(n): nn.RNN(3, 5) for n in range(7)})) == ["3.l0", "4.l0", "5.l0", "6.l0"]
    assert headline_cells({"a": nn.LSTM(3, 5)})["a.l0"][1].units == 5
    assert headline_cells({}) == {}


def test_a_callback_that_is_to_be_silent_is_left_out_and_all_of_them_print_nothing(fit, said):
    fit(watch(GateMonitor, summary=False), watch(GradientFlowMonitor), max_epochs=1)
    (block,) = said
    assert "in 1 epoch (" in block[0]
    assert words_of(block, "GradientFlowMonitor")
    assert not any("GateMonitor" in line for line in block)
    fit(watch(GateMonitor, summary=False), max_epochs=1)
    assert len(said) == 1


def test_where_nothing_was_seen_nothing_is_said(fit, said):
    with pytest.warns(RecurrentHealthWarning, match="saw nothing"):
        fit(GateMonitor(every_n_epochs=5))
    trainer = pl.Trainer(callbacks=[GateMonitor()], logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.validate(Classifier(), loader(), verbose=False)
    assert said == []


def test_a_replay_is_no_run(fit, said):
    fit(ModelCheckpoint(save_top_k=-1), enable_checkpointing=True, max_epochs=1)
    replay(fit.logs / "version_0", Classifier(), [watch(GateMonitor)], dataloaders=loader(seed=1), accelerator="cpu")
    assert said == []


def test_a_look_that_is_old_says_so(fit, said):
    fit(GateMonitor(every_n_epochs=2, figure_every_n_epochs=1000), max_epochs=3)
    (block,) = said
    assert "in 3 epochs (" in block[0]
    assert words_of(block, "GateMonitor").endswith("(after 2 epochs)")


class Breaks(pl.Callback):
    def __init__(self, fault, epoch=1):
        self.fault, self.epoch = fault, epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise self.fault


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("a mistake of the user's")])
def test_a_run_that_breaks_off_still_says_what_was_seen(fit, said, fault):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises((SystemExit, RuntimeError)):  # Lightning makes the one of the interrupt
        fit(watch(GateMonitor), Breaks(fault), max_epochs=4)
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
    (block,) = said
    assert block[0].startswith("What was seen in 1 epoch, before the run broke off (watching took")
    assert "(after" not in words_of(block, "GateMonitor")


def test_a_run_that_stops_early_counts_what_it_did(fit, said):
    class Stops(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            trainer.should_stop = trainer.current_epoch == 2

    fit(GateMonitor(figure_every_n_epochs=1000), Stops(), max_epochs=50)
    (block,) = said
    assert "in 3 epochs (" in block[0]
    assert "(after" not in words_of(block, "GateMonitor")


def test_steps_are_counted_where_no_epoch_came_to_its_end(fit, said):
    with pytest.raises(RuntimeError, match="a mistake"):
        fit(watch(GateMonitor), Breaks(RuntimeError("a mistake"), epoch=0), val_check_interval=1)
    (block,) = said
    assert block[0].startswith("What was seen in 1 step, before the run broke off (")


@pytest.mark.filterwarnings("ignore:encoder.rnn.*, flag (update|reset)_mean_above")
def test_flags_are_named_with_their_places(fit, said):
    fit(watch(GateMonitor), watch(GradientFlowMonitor))
    assert words_of(said[0], "flags raised") == "none at the last look"
    rules = {"update_mean_above": 0.0, "reset_mean_above": 0.0}
    fit(watch(GateMonitor, flags=rules), model=Classifier("gru", layers=4))
    where = "(encoder.rnn.l0, encoder.rnn.l1 and 2 more)"
    assert words_of(said[1], "flags raised") == f"update_mean_above {where}, reset_mean_above {where}"


@pytest.mark.filterwarnings("ignore:GateMonitor failed and training goes on")
def test_failed_looks_are_said_plainly(fit, said, monkeypatch):
    analyse = GateMonitor.analyse
    monkeypatch.setattr(GateMonitor, "analyse", lambda self, look: analyse(self, look) if look.epoch < 1 else 1 / 0)
    fit(GateMonitor(every_n_epochs=1, figure_every_n_epochs=1000), max_epochs=3)
    assert words_of(said[0], "GateMonitor").endswith("steps (after 1 epoch)")
    assert words_of(said[0], "failed looks") == "GateMonitor 2; a warning above says why"
    monkeypatch.setattr(GateMonitor, "analyse", lambda self, look: 1 / 0)
    fit(GateMonitor(every_n_epochs=1))
    assert words_of(said[1], "GateMonitor") == "looked, and measured none of its main numbers"


def test_it_says_where_to_look(fit, said, tmp_path):
    fit(watch(GateMonitor), logger=TensorBoardLogger(tmp_path, name="my runs"), max_epochs=1)
    assert words_of(said[0], "numbers and pictures") == f"{tmp_path}/my runs/version_0/rnn_callbacks"
    assert words_of(said[0], "charts, flags explained") == f"tensorboard --logdir '{tmp_path}/my runs'"
    fit(watch(GateMonitor), logger=False, max_epochs=1)
    assert words_of(said[1], "numbers and pictures") == f"{tmp_path}/lightning_logs/version_0/rnn_callbacks"
    fit(watch(GateMonitor), fast_dev_run=True)
    assert not any("tensorboard" in line for line in said[1] + said[2])
    assert not any("rnn_callbacks" in line for line in said[2])
    assert len(said[2]) == 3
