"""Several processes: the same numbers as in one, and nobody waits for somebody who does not come."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

import rnn_callbacks
from rnn_callbacks import FixedPointTracker, GateMonitor, ProbeTracker, RepresentationTracker
from rnn_callbacks.callbacks.ranks import own_share
from rnn_callbacks.report import load

from ..models import STEPS, Classifier, half_of_sequence, loader, make_data, running_sum

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")

CALLBACKS = [getattr(rnn_callbacks, name) for name in rnn_callbacks.__all__]


def two():
    return {"strategy": DDPStrategy(process_group_backend="gloo", start_method="fork"), "devices": 2}


class Plain(Classifier):
    """Without batch norm, whose averages are each process's own, the training of two is that of one."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.Identity()


class InOrder(pl.LightningDataModule):
    """The same sequences in the same order for any number of processes; Lightning's own sampler would shuffle them."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def deal(self, sequences, seed):
        data, many = make_data(sequences, seed), torch.distributed.is_initialized()
        sampler = DistributedSampler(data, shuffle=False) if many else None
        return DataLoader(data, self.batch_size, sampler=sampler)

    def train_dataloader(self):
        return self.deal(40, 0)

    def val_dataloader(self):
        return self.deal(SEQUENCES, 1)


def looks(fit, noun):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return [load(str(path)).report for path in sorted((run / "rnn_callbacks" / noun).glob("*.npz"))]


def quiet(callback, **options):
    return callback(every_n_epochs=1, figure_every_n_epochs=99, on_error="raise", **options)


SEQUENCES = 41  # odd, so that Lightning gives the second process one sequence twice
LOOKING = {
    "gates": lambda: quiet(GateMonitor, phases=half_of_sequence, max_sequences=29),
    "fixed points": lambda: quiet(FixedPointTracker, contexts=["mean"], max_sequences=100),
    "probes": lambda: quiet(ProbeTracker, concepts={"target": 1, "sum": running_sum}, shuffles=2),
    "representation": lambda: quiet(RepresentationTracker, concepts={"target": 1}, embedding=None),
}
COSTS = ("/seconds", "/overhead")
# The two trainings part by rounding: about 1e-6 of the weights; clustering, ranks of singular values and medians of few
# units pass it on, enlarged.
NEAR = {"rtol": 2e-3, "atol": 2e-4}


@pytest.mark.parametrize("observe", ["validation", "train"])
@pytest.mark.parametrize("name", LOOKING)
def test_two_processes_see_what_one_sees_on_the_same_data(fit, name, observe):
    found = []
    for processes, batch_size in (({}, 8), (two(), 4)):
        watcher = LOOKING[name]()
        watcher.observe = observe
        torch.manual_seed(0)
        fit(watcher, model=Plain("lstm"), datamodule=InOrder(batch_size), **processes)
        found.append(looks(fit, watcher.noun))
    one, both = found
    assert len(one) == len(both) == 2
    for before, after in zip(one, both, strict=True):
        assert set(before.scalars) == set(after.scalars)
        for tag, value in before.scalars.items():
            if not tag.endswith(COSTS):
                np.testing.assert_allclose(after.scalars[tag], value, **NEAR, err_msg=tag)
        for key, counts in before.histograms.items():
            assert after.histograms[key].counts.sum() == counts.counts.sum()
            assert np.abs(after.histograms[key].counts - counts.counts).sum() <= 0.01 * counts.counts.sum()


class Uneven(IterableDataset):
    """A stream that each process cuts for itself: the second has fewer sequences."""

    def __init__(self, *sequences):
        self.sequences = sequences

    def __iter__(self):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return iter(make_data(self.sequences[rank], seed=rank))


class Quiet(Classifier):
    """Logs nothing of its own."""

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def test_processes_with_unlike_shares_do_not_wait_for_each_other(fit):
    watchers = [quiet(GateMonitor), quiet(ProbeTracker, shuffles=1), quiet(RepresentationTracker, embedding=None)]
    fit(*watchers, model=Quiet(), validate=DataLoader(Uneven(24, 5), 8), **two())
    # How the stream is cut nobody knows, so rank zero keeps to its own.
    assert [len(report.arrays["gates/encoder.rnn.l0/lengths"]) for report in looks(fit, "gates")] == [24, 24]
    assert [report.scalars["probes/sequences"] for report in looks(fit, "probes")] == [24, 24]


@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_run_that_stops_early_by_one_of_our_numbers_stops_everywhere(fit, callback):
    class Check(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            mine = {tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith(callback.noun)}
            assert len(mine) > 3
            assert mine == trainer.strategy.broadcast(mine, src=0)
            assert trainer.current_epoch == 2

    stop = EarlyStopping(f"{callback.noun}/failed_looks", patience=1, min_delta=1.0)
    fit(quiet(callback), stop, Check(), max_epochs=5, **two())
    assert len(looks(fit, callback.noun)) == 2  # one file for each look


# Those that take states batch by batch have not heard the last epoch, in one process neither.
@pytest.mark.parametrize("callback", [callback for callback in CALLBACKS if not callback.takes_batches])
def test_a_run_that_stops_between_looks_is_looked_at_where_it_stopped(fit, callback):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    options = {"max_overhead": 1e-9, "figure_every_n_epochs": 99, "on_error": "raise"}
    fit(callback(**options), Stop(), max_epochs=9, **two())
    run = sorted(fit.logs.glob("version_*"))[-1]
    names = sorted(path.name for path in (run / "rnn_callbacks" / callback.noun).glob("epoch*.npz"))
    assert [load(str(run / "rnn_callbacks" / callback.noun / name)).epoch for name in names] in ([0, 2], [0, 1, 2])


def test_a_fault_that_is_to_stop_the_training_stops_all_processes(fit, monkeypatch):
    monkeypatch.setattr(GateMonitor, "analyse", lambda self, look: 1 / 0)
    with pytest.raises(Exception, match=r"ZeroDivisionError|division by zero"):
        fit(quiet(GateMonitor), **two())


def test_what_another_process_could_not_hand_over_is_said(fit, monkeypatch):
    def broken(self):
        raise OSError("no way")

    monkeypatch.setattr(GateMonitor, "heard", broken)
    with pytest.raises(Exception, match=r"another rank could not hand over what it heard.*no way"):
        fit(quiet(GateMonitor), **two())


class Lengths(Classifier):
    """Sequences as long as their process says."""

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return super().validation_step((x[:, : STEPS - 2 * self.global_rank], y), batch_idx)


@pytest.mark.filterwarnings("ignore:.* sequences differ in length between processes")
@pytest.mark.parametrize("callback", [ProbeTracker, RepresentationTracker])
def test_where_processes_read_other_steps_rank_zero_keeps_to_its_own_and_says_so(fit, callback, capfd):
    class Ask(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            print(f"alone: {trainer.callbacks[0]._taking.alone}, {sorted(trainer.callbacks[0]._guard.said)}")

    fit(callback(every_n_epochs=1, figure_every_n_epochs=99), Ask(), model=Lengths(), validate=loader(40), **two())
    assert [report.scalars[f"{callback.noun}/sequences"] for report in looks(fit, callback.noun)] == [20, 20]
    assert "alone: True, ['alone'" in capfd.readouterr().out


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_strategies_that_cut_weights_to_pieces_are_refused(callback, kind):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    # Lightning makes them on a GPU only, and one of them not without a package of its own.
    trainer._accelerator_connector.strategy = kind.__new__(kind)
    message = rf'{callback.__name__} needs whole (weights|gradients), and {kind.__name__} .*strategy="ddp"'
    with pytest.raises(MisconfigurationException, match=message):
        callback().setup(trainer, Classifier(), "fit")


@pytest.mark.parametrize(
    ("rank", "sequences", "data", "share"),
    [(0, 29, 100, 15), (1, 29, 100, 14), (0, 29, 5, 3), (1, 29, 5, 2), (1, 1, 100, 0)],
)
def test_first_sequences_are_shared_out_as_lightning_deals_them(rank, sequences, data, share):
    sampler = DistributedSampler(make_data(data), num_replicas=2, rank=rank, shuffle=False)
    dealt = list(sampler)[:share]
    assert all(index < sequences for index in dealt)

    class Trainer:
        world_size, global_rank, is_global_zero = 2, rank, rank == 0

    loaders = DataLoader(make_data(data), sampler=sampler)
    assert own_share(sequences, Trainer(), loaders) == share
    assert own_share(sequences, Trainer(), {"a": [loaders]}) == share
    assert own_share(sequences, Trainer(), DataLoader(make_data(data))) == (sequences if rank == 0 else 0)
    assert own_share(sequences, Trainer(), None) == (sequences if rank == 0 else 0)
