"""`WeightTrajectoryLogger` in a real run: which snapshots there are, what is logged of them, and what is said."""

import re
import resource
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader

from rnn_callbacks import WeightTrajectoryLogger
from rnn_callbacks.callbacks.trajectory_report import unmoved
from rnn_callbacks.weight_snapshots import SnapshotFile

from ..models import CLASSES, FEATURES, UNITS, Classifier, StepClassifier, loader, make_data
from ..test_own_cells import PeepholeCell
from .weight_paths import Keeps, Large, folder, logger, naive, numbers, reports, rows, snapshots, times, values, watch

EXACT = 1e-9  # of sums of squares in float64 over a few hundred float32 numbers
LOGGED = 1e-6  # Lightning keeps metrics in float32
GATES = {"lstm": ("input", "forget", "cell", "output"), "gru": ("reset", "update", "new"), "rnn": ("hidden",)}


class Ends(Classifier):
    """The last state is the logit; no batch norm and no head."""

    def __init__(self, rnn=None):
        super().__init__()
        self.encoder.rnn = rnn or nn.GRU(FEATURES, UNITS, batch_first=True)
        del self.norm, self.drop, self.head

    def forward(self, x):
        return self.encoder.rnn(x)[0][:, -1, :CLASSES]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", GATES)
def test_every_number_is_that_of_the_weights_themselves(fit, family):
    keeps = Keeps()
    trainer = fit(logger(), keeps, model=Classifier(family), max_epochs=4)
    found = reports(fit)[-1].scalars
    gates = GATES[family]
    cell = [name for name in keeps.kept[0] if name.startswith("encoder.rnn.")]
    places = {"total": (), "encoder.rnn.l0": cell, "head": ("head.weight", "head.bias")}
    places["norm"] = ("norm.weight", "norm.bias")
    for place, names in places.items():
        expected = naive(keeps.weights(*names))
        own = (
            expected
            if place == "total"
            else {k: expected[k] for k in expected if f"weight_trajectory/{place}/{k}" in found}
        )
        assert len(own) == (12 if place == "total" else 6)
        for key, value in own.items():
            assert found[f"weight_trajectory/{place}/{key}"] == pytest.approx(value, rel=EXACT), (place, key)
    for number, gate in enumerate(gates):
        expected = naive(keeps.weights(*cell, rows=slice(number * UNITS, (number + 1) * UNITS)))
        for key in ("relative_distance", "relative_step", "turning"):
            tag = f"weight_trajectory/encoder.rnn.l0/{gate}/{key}"
            assert found[tag] == pytest.approx(expected[key], rel=EXACT)
        matrix = keeps.kept[-1]["encoder.rnn.weight_hh_l0"][number * UNITS : (number + 1) * UNITS]
        singular = np.linalg.svd(matrix, compute_uv=False)
        sizes = {
            "spectral_norm": singular[0],
            "stable_rank": np.square(matrix).sum() / singular[0] ** 2,
            "spectral_radius": np.abs(np.linalg.eigvals(matrix)).max(),
        }
        for key, value in sizes.items():
            assert found[f"weight_trajectory/encoder.rnn.l0/{gate}/{key}"] == pytest.approx(value, rel=EXACT)
    assert numbers(trainer) == pytest.approx({k: v for k, v in found.items() if k in numbers(trainer)}, rel=LOGGED)
    assert found["weight_trajectory/snapshots"] == 5
    arrays = reports(fit)[-1].arrays
    norms = np.linalg.norm(keeps.weights(), axis=1)
    assert arrays["weight_trajectory/total/norms"] == pytest.approx(norms, rel=EXACT)
    assert arrays["weight_trajectory/epochs"].tolist() == [-1, 0, 1, 2, 3]
    assert arrays["weight_trajectory/steps"].tolist() == [0, 3, 6, 9, 12]


class Total(Ends):
    """A submodule is called as all weights together are."""

    def __init__(self):
        super().__init__()
        self.total = nn.Linear(UNITS, CLASSES)

    def forward(self, x):
        return self.total(self.encoder.rnn(x)[0][:, -1])


class Tied(Ends):
    """Two layers read with one matrix."""

    def __init__(self):
        super().__init__()
        self.second = nn.GRU(FEATURES, UNITS, batch_first=True)
        self.second.weight_hh_l0 = self.encoder.rnn.weight_hh_l0

    def forward(self, x):
        return super().forward(x) + self.second(x)[0][:, -1, :CLASSES]


class Own(Ends):
    """A cell of the user's own, in a loop."""

    def __init__(self):
        super().__init__(PeepholeCell(FEATURES))

    def forward(self, x):
        state = (x.new_zeros(len(x), UNITS), x.new_zeros(len(x), UNITS))
        for step in x.unbind(1):
            state = self.encoder.rnn(step, state)
        return state[0][:, :CLASSES]


class Cast(Ends):
    def forward(self, x):
        return super().forward(x.to(self.encoder.rnn.weight_hh_l0.dtype)).float()


def compiled():
    model = Ends()
    model.encoder.rnn = torch.compile(model.encoder.rnn, backend="eager")
    return model


PROJECTED = {"num_layers": 2, "bidirectional": True, "proj_size": 4, "batch_first": True}
CELLS = ["l0", "l0_reverse", "l1", "l1_reverse"]
KINDS = {
    "projected stack": (lambda: Ends(nn.LSTM(FEATURES, UNITS, **PROJECTED)), {}, [f"encoder.rnn.{c}" for c in CELLS]),
    "cell in a loop": (StepClassifier, {}, ["encoder.rnn.cell", "norm", "head"]),
    "own cell": (Own, {}, ["encoder.rnn"]),
    "double": (Cast, {"precision": "64-true"}, ["encoder.rnn.l0"]),
    "half": (Cast, {"precision": "bf16-true"}, ["encoder.rnn.l0"]),
    "compiled module": (compiled, {}, ["encoder.rnn.l0"]),
    "compiled model": (lambda: torch.compile(Ends(), backend="eager"), {}, ["encoder.rnn.l0"]),
    "tied": (Tied, {}, ["encoder.rnn.l0", "second.l0"]),
    "called total": (Total, {}, ["encoder.rnn.l0", "total_"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_every_kind_of_model_is_followed(fit, kind):
    make, options, places = KINDS[kind]
    keeps = Keeps()
    options = {"validate": []} | options
    _, said = watch(fit, logger(flags={"unmoved": None}), keeps, model=make(), **options)
    assert said == []
    found = reports(fit)[-1].scalars
    if kind == "half":  # steps of half precision are not rounded again
        assert snapshots(fit).dtype == np.float32
    for key, value in naive(keeps.weights()).items():
        assert found[f"weight_trajectory/total/{key}"] == pytest.approx(value, rel=EXACT)
    tagged = {tag.split("/")[1] for tag in found if tag.endswith("/straightness")}
    assert tagged == {"total", *places}
    # Places are apart and together all there is.
    steps = [reports(fit)[-1].arrays[f"weight_trajectory/{place}/lengths"] for place in places]
    whole = reports(fit)[-1].arrays["weight_trajectory/total/lengths"]
    assert np.square(steps).sum(0) == pytest.approx(np.square(whole), rel=EXACT)
    radii = [tag for tag in found if tag.endswith("/spectral_radius")]
    assert len(radii) == {"projected stack": 16, "cell in a loop": 4, "own cell": 0, "tied": 6}.get(kind, 3)


def test_distances_of_sketches_are_those_of_the_weights_to_what_is_stated(fit):
    keeps = Keeps()
    fit(logger(storage="sketch"), keeps, model=Ends(nn.LSTM(FEATURES, 67, batch_first=True)), max_epochs=2)
    file = snapshots(fit)
    assert file.row_width(len(file.columns)) < keeps.weights().shape[1]
    report, expected = reports(fit)[-1], naive(keeps.weights())
    for key in ("distance", "step", "path_length", "relative_distance"):
        found = report.scalars[f"weight_trajectory/total/{key}"]
        assert found == pytest.approx(expected[key], rel=0.044)  # four standard errors of 1.1 %
        assert found != pytest.approx(expected[key], rel=1e-6)
    assert "exact to 1.1%" in report.texts["weight_trajectory/summary"]


# ---- when ------------------------------------------------------------------------------------------------------------


class TwoOptimizers(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = F.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return [torch.optim.SGD(self.encoder.parameters(), 0.1), torch.optim.SGD(self.head.parameters(), 0.1)]


# Of three batches in an epoch: period, options of the trainer, and the snapshots (epoch, batches that were over).
PERIODS = {
    "every step": (1, {}, [(-1, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]),
    "every second": (2, {}, [(-1, 0), (0, 2), (0, 3), (1, 4), (1, 6)]),
    "longer than an epoch": (5, {}, [(-1, 0), (0, 3), (1, 5), (1, 6)]),
    "stopped within an epoch": (2, {"max_epochs": -1, "max_steps": 4}, [(-1, 0), (0, 2), (0, 3), (1, 4)]),
    "two optimizers": (2, {"model": TwoOptimizers}, [(-1, 0), (0, 2), (0, 3), (1, 4), (1, 6)]),
}


@pytest.mark.parametrize("name", PERIODS)
def test_snapshots_are_taken_every_so_many_steps_and_once_at_the_end_of_an_epoch(fit, name):
    every, options, expected = PERIODS[name]
    keeps = Keeps(every_batch=True)
    fit(logger(snapshot_every_n_steps=every, flags={"unmoved": None}), keeps, **options)
    file = snapshots(fit)
    assert times(file) == expected
    after = [0, 1, 2, 3, 5, 6, 7]  # where in `kept` lies what a number of batches led to: epochs' ends are kept too
    assert (rows(file) == keeps.weights()[[after[step] for _, step in expected]]).all()


def test_batches_that_are_accumulated_are_one_step(fit):
    keeps = Keeps(every_batch=True)
    fit(logger(snapshot_every_n_steps=1), keeps, train=loader(40), accumulate_grad_batches=2)
    file = snapshots(fit)
    assert times(file) == [(-1, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]
    assert (rows(file) == keeps.weights()[[0, 2, 4, 6, 8, 10, 12]]).all()


def test_a_run_that_stops_early_has_its_last_snapshot_and_look(fit):
    stop = EarlyStopping("val_loss", patience=1, min_delta=10.0)
    fit(WeightTrajectoryLogger(max_overhead=1e-9, figure_every_n_epochs=99, on_error="raise"), stop, max_epochs=9)
    assert times(snapshots(fit)) == [(-1, 0), (0, 3), (1, 6)]
    assert [report.scalars["weight_trajectory/snapshots"] for report in reports(fit)] == [2, 3]


def temporary():
    return set(Path(tempfile.gettempdir()).glob("rnn_callbacks-*"))


def test_fast_dev_run_leaves_no_file(fit, tmp_path):
    before = temporary()
    trainer = fit(logger(every_n_epochs=1), fast_dev_run=True)
    assert numbers(trainer)["weight_trajectory/snapshots"] == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert temporary() == before


def test_a_run_without_batches_is_no_path(fit):
    _, said = watch(fit, logger(), limit_train_batches=0)
    assert said == []
    assert not list(fit.logs.rglob("snapshots*"))


@pytest.mark.parametrize(("error", "root"), [(KeyboardInterrupt, None), (ArithmeticError, "memory://broken")])
def test_a_run_that_breaks_off_leaves_its_path_whole(fit, error, root):
    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 5:
                raise error

    before, keeps = temporary(), Keeps()
    options = {} if root is None else {"logger": False, "default_root_dir": root}
    with pytest.raises((SystemExit, ArithmeticError)):
        fit(logger(), keeps, Breaks(), **options)
    if root is None:
        assert (rows(snapshots(fit)) == keeps.weights()).all()
    else:
        import fsspec

        files = fsspec.filesystem("memory")
        assert {Path(path).name for path in files.find("/broken")} >= {"snapshots.bin", "snapshots.jsonl"}
        files.rm("/broken", recursive=True)
    assert len(keeps.kept) == 2
    assert temporary() == before


# ---- resuming --------------------------------------------------------------------------------------------------------

SAVED = {
    "validation": {"monitor": "val_loss", "save_on_train_epoch_end": False},
    "epoch": {"save_on_train_epoch_end": True},
    "steps": {"every_n_train_steps": 3},
    "last": {"every_n_train_steps": 4},  # step of an epoch
}
RESUMED = [  # period of snapshots, and the checkpoints from which to go on; with the last one into the same folder too
    (None, True, ["validation-step=4", "validation-step=12", "epoch-step=4", "last-step=4", "steps-step=6"]),
    (3, True, ["validation-step=4"]),
    (3, False, ["epoch-step=4", "last-step=4", "steps-step=6"]),
]


def same_batches():
    """Four times the same batch, so that a run resumed within an epoch goes on as it would have."""
    return DataLoader(ConcatDataset([make_data(8)] * 4), 8)


@pytest.mark.parametrize(("every", "validated", "resumed"), RESUMED)
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(fit, tmp_path, every, validated, resumed):
    options = {"train": same_batches(), "max_epochs": 3, "validate": None if validated else []}
    saves = [
        ModelCheckpoint(tmp_path, filename=f"{name}-{{step}}", save_top_k=-1, **kind)
        for name, kind in SAVED.items()
        if validated or name != "validation"
    ]
    watcher = logger(snapshot_every_n_steps=every, every_n_epochs=3)
    whole = numbers(fit(watcher, *saves, enable_checkpointing=True, **options))
    uninterrupted = snapshots(fit)
    path, expected, entries = uninterrupted.path, rows(uninterrupted), uninterrupted.entries
    assert len(entries) == (4 if every is None else 7)
    same = {"logger": pl.loggers.TensorBoardLogger(fit.logs.parent, name="logs", version=0)}
    for name, where in [*((name, {}) for name in resumed), (resumed[-1], same)]:
        checkpoint = tmp_path / f"{name}.ckpt"
        assert torch.load(checkpoint, weights_only=True)["callbacks"]
        again = fit(watcher, ckpt_path=checkpoint, **options, **where)
        assert numbers(again) == pytest.approx(whole, rel=LOGGED), name
        file = SnapshotFile(path) if where else snapshots(fit)
        assert (rows(file) == expected).all(), name
        assert times(file) == [(entry.epoch, entry.step) for entry in entries]
        # Lightning forgets the latest validation, so snapshots within an epoch that was resumed have no value.
        known = [number for number, value in enumerate(values(file)) if value is not None]
        assert len(known) == len(entries) - 1 or (every, validated) == (3, True)
        assert [values(file)[k] for k in known] == pytest.approx([entries[k].value for k in known], rel=LOGGED), name


def test_a_resumed_run_whose_snapshots_are_gone_says_where_its_path_begins(fit, tmp_path):
    fit(logger(), ModelCheckpoint(tmp_path / "kept"), enable_checkpointing=True)
    (checkpoint,) = (tmp_path / "kept").glob("*.ckpt")
    for path in folder(fit).glob("snapshots.*"):
        path.unlink()
    _, said = watch(fit, logger(), ckpt_path=checkpoint, max_epochs=4)
    assert len(said) == 1
    assert re.search(
        r"snapshots of the run so far are not at .*/snapshots any more, so the path begins at step 6", said[0]
    )
    assert times(snapshots(fit)) == [(1, 6), (2, 9), (3, 12)]


def test_a_second_fit_of_a_trainer_goes_on_with_the_path(fit):
    watcher, keeps = logger(), Keeps()
    trainer = fit(watcher, keeps)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(trainer.lightning_module, loader(), loader(seed=1))
    assert times(snapshots(fit)) == [(-1, 0), (0, 3), (1, 6), (2, 9), (3, 12)]
    assert (rows(snapshots(fit)) == np.delete(keeps.weights(), 3, axis=0)).all()  # kept twice: the second start
    fit(watcher)  # another run
    assert times(snapshots(fit)) == [(-1, 0), (0, 3), (1, 6)]


# ---- weights that stand still, come later, or are none ---------------------------------------------------------------


class Plain(Classifier):
    """Momentum would go on moving what is frozen, weight decay what is not in the loss."""

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


class Switch(pl.Callback):
    """Freezes or thaws a part when the third epoch begins."""

    def __init__(self, name, *, trainable):
        self.name, self.trainable = name, trainable

    def on_train_epoch_start(self, trainer, pl_module):
        part = pl_module.get_submodule(self.name) if "." not in self.name else pl_module.encoder.rnn.bias_hh_l0
        if trainer.current_epoch == 2:
            part.requires_grad_(self.trainable)
            if self.trainable:
                parameters = part.parameters() if isinstance(part, nn.Module) else [part]
                trainer.optimizers[0].add_param_group({"params": list(parameters)})


def test_a_parameter_that_is_frozen_half_way_stands_still_and_is_no_fault(fit):
    keeps = Keeps()
    _, said = watch(fit, logger(), Switch("head", trainable=False), keeps, model=Plain, max_epochs=4)
    assert said == []
    found, expected = reports(fit)[-1], keeps.weights("head.weight", "head.bias")
    assert found.scalars["weight_trajectory/head/relative_step"] == 0
    assert found.scalars["weight_trajectory/head/turning"] == 0
    distance = np.linalg.norm(expected[-1] - expected[0]) / np.linalg.norm(expected[0])
    assert found.scalars["weight_trajectory/head/relative_distance"] == pytest.approx(distance, rel=EXACT)
    assert found.scalars["weight_trajectory/total/flags/unmoved"] == 0


@pytest.mark.parametrize("name", ["head", "encoder.rnn.bias_hh_l0"])
def test_a_parameter_that_is_thawed_half_way_joins_the_path_where_it_stood(fit, name):
    model, keeps = Plain(), Keeps()
    (model.head if name == "head" else model.encoder.rnn.bias_hh_l0).requires_grad_(False)
    _, said = watch(fit, logger(), Switch(name, trainable=True), keeps, model=model, max_epochs=4)
    assert said == []
    file = snapshots(fit)
    assert times(file) == [(-1, 0), (0, 3), (1, 6), (2, 9), (3, 12)]
    assert all(value is not None for value in values(file)[1:])
    order = dict.fromkeys(column.parameter for column in file.columns)
    expected = keeps.weights(*order)
    assert (rows(file) == expected).all()
    found = reports(fit)[-1]
    for key, value in naive(expected).items():
        assert found.scalars[f"weight_trajectory/total/{key}"] == pytest.approx(value, rel=EXACT)
    norms = np.linalg.norm(expected, axis=1)
    assert found.arrays["weight_trajectory/total/norms"] == pytest.approx(norms, rel=EXACT)


class Spare(Plain):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 3)


def test_a_parameter_that_never_moves_is_named(fit):
    _, said = watch(fit, logger(), model=Spare, max_epochs=2)
    assert len(said) == 1
    assert "total, flag unmoved: trainable, and have not moved at all: spare.weight, spare.bias" in said[0]
    assert reports(fit)[-1].scalars["weight_trajectory/total/flags/unmoved"] == 1


class Still(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_weights_that_stand_still_have_numbers_all_the_same(fit):
    fit(logger(flags={"unmoved": None}), model=Still)
    found = reports(fit)[-1].scalars
    still = ("distance", "step", "path_length", "straightness", "turning", "explained", "dimension", "explained_random")
    assert [found[f"weight_trajectory/total/{key}"] for key in still] == [0] * len(still)
    assert np.isfinite(list(found.values())).all()


class Poison(pl.Callback):
    """Weights are NaN where an epoch ends, between two of these callbacks."""

    def __init__(self, epochs, *, cure):
        self.epochs, self.cure = epochs, cure

    def on_train_epoch_end(self, trainer, pl_module):
        weight = pl_module.encoder.rnn.weight_hh_l0
        if trainer.current_epoch in self.epochs:
            with torch.no_grad():
                if not self.cure:
                    Poison.good = weight[0, 0].item()
                weight[0, 0] = Poison.good if self.cure else float("nan")


def test_nan_weights_are_said_once_and_left_out_and_the_path_goes_on(fit):
    keeps, sick = Keeps(), (1, 2)
    callbacks = [Poison(sick, cure=False), logger(on_error="warn"), Poison(sick, cure=True), keeps]
    trainer, said = watch(fit, *callbacks, max_epochs=4)
    assert said == [
        "WeightTrajectoryLogger: the snapshot after step 6 is left out of the path (encoder.rnn.weight_hh_l0 holds NaN "
        "or infinity). Training goes on; more of them are only counted, in weight_trajectory/failed_looks."
    ]
    assert times(snapshots(fit)) == [(-1, 0), (0, 3), (3, 12)]
    assert (rows(snapshots(fit)) == keeps.weights()[[0, 1, 4]]).all()
    assert numbers(trainer)["weight_trajectory/failed_looks"] == 2


def test_a_path_that_ends_in_nan_is_looked_at_up_to_there(fit):
    _, said = watch(fit, Poison((1,), cure=False), logger(on_error="warn", snapshot_every_n_steps=1))
    assert [words.split(" is left out")[0] for words in said] == ["WeightTrajectoryLogger: the snapshot after step 6"]
    found = reports(fit)[-1].scalars
    assert found["weight_trajectory/snapshots"] == 6
    assert "weight_trajectory/encoder.rnn.l0/new/spectral_radius" not in found
    assert np.isfinite(list(found.values())).all()


def test_nan_weights_stop_the_run_where_that_was_asked_for(fit):
    with pytest.raises(ValueError, match="weight_hh_l0 holds NaN or infinity"):
        fit(Poison((0,), cure=False), logger())


# ---- the disk --------------------------------------------------------------------------------------------------------


class Full(pl.Callback):
    """In the second epoch no file may grow beyond what the snapshots take now."""

    def __init__(self, *, begin):
        self.begin = begin

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            (path,) = Path(trainer.default_root_dir).rglob("snapshots.bin")
            most = path.stat().st_size + 100 if self.begin else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def test_a_disk_that_fills_is_said_and_training_goes_on_as_it_would_have(fit):
    plain = fit(logger=False, max_epochs=4).lightning_module.state_dict()
    keeps, watcher = Keeps(), logger(on_error="warn", every_n_epochs=4)
    trainer, said = watch(fit, Full(begin=True), watcher, Full(begin=False), keeps, logger=False, max_epochs=4)
    assert len(said) == 1
    assert re.match(r"WeightTrajectoryLogger: the snapshot after step 6 could not be written \(.*too large", said[0])
    assert all(
        torch.equal(a, b) for a, b in zip(plain.values(), trainer.lightning_module.state_dict().values(), strict=True)
    )
    (path,) = Path(trainer.default_root_dir).rglob("snapshots.bin")
    file = SnapshotFile(path.with_suffix(""))
    assert times(file) == [(-1, 0), (0, 3), (2, 9), (3, 12)]
    assert (rows(file) == keeps.weights()[[0, 1, 3, 4]]).all()
    assert numbers(trainer)["weight_trajectory/failed_looks"] == 1


def test_a_folder_that_cannot_be_written_is_said_and_training_goes_on_as_it_would_have(fit):
    plain = fit().lightning_module.state_dict()
    run = fit.logs / "version_1"
    run.mkdir()
    (run / "rnn_callbacks").write_text("a file where the folder should be")
    trainer, said = watch(
        fit, logger(on_error="warn"), logger=pl.loggers.TensorBoardLogger(run.parent.parent, "logs", 1)
    )
    assert "WeightTrajectoryLogger keeps its snapshots in" in said[0]
    assert "cannot be written to now: Not a directory" in said[0]
    assert all(
        torch.equal(a, b) for a, b in zip(plain.values(), trainer.lightning_module.state_dict().values(), strict=True)
    )


# ---- who else is there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "ours_first"), [("ema", True), ("ema", False), ("swa", True), ("swa", False), ("swa without norms", True)]
)
def test_snapshots_are_the_trained_weights_and_not_their_averages(fit, other, ours_first):
    class Trained(pl.Callback):
        """Weights right after each step."""

        def __init__(self):
            self.kept = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step > len(self.kept):  # batch norms are renewed in an epoch without steps
                weights = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
                self.kept.append(weights.numpy().copy())

    trained = Trained()
    if other == "ema":
        averaging = EMAWeightAveraging(decay=0.5)
    else:
        averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    both = [logger(every_n_epochs=4), averaging]
    both = both if ours_first else both[::-1]
    trainer = fit(*both, trained, model=Ends if "without" in other else Classifier, max_epochs=4)
    file = snapshots(fit)
    assert [entry.epoch for entry in file.entries] == [-1, 0, 1, 2, 3]
    assert (rows(file)[1:] == np.stack(trained.kept)[[2, 5, 8, 11]]).all()
    last = torch.cat([p.detach().flatten() for p in trainer.lightning_module.parameters()]).numpy()
    assert not np.allclose(last, file.row(4))  # the averages were real


class Two(Ends):
    def __init__(self):
        super().__init__()
        self.second = nn.LSTM(UNITS, UNITS, batch_first=True)

    def forward(self, x):
        return self.second(self.encoder.rnn(x)[0])[0][:, -1, :CLASSES]


def test_two_loggers_of_two_modules_keep_two_files(fit):
    fit(logger(module="encoder.rnn"), logger(module="second"), model=Two)
    first, second = snapshots(fit), snapshots(fit, "snapshots-part=2")
    assert times(first) == times(second) == [(-1, 0), (0, 3), (1, 6)]
    assert (rows(first) == rows(second)).all()
    assert {column.part for column in first.columns} == {*(f"encoder.rnn.l0/{g}" for g in GATES["gru"]), "second"}
    assert {column.part for column in second.columns} == {*(f"second.l0/{g}" for g in GATES["lstm"]), "encoder.rnn"}
    assert len(reports(fit)) == 2


class Reduced(Classifier):
    """Logs a metric of training that all ranks must reduce together."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("fitted", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("monitor", [None, "fitted"])
def test_two_ranks_agree_and_rank_zero_writes(fit, monitor):
    class Check(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            mine = {
                tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("weight_trajectory/")
            }
            assert len(mine) > 40
            assert mine == trainer.strategy.broadcast(mine, src=0)

    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    stop = EarlyStopping("weight_trajectory/total/path_length", mode="min", patience=1)
    fit(
        logger(snapshot_every_n_steps=1, loss_plane=2, every_n_epochs=1, monitor=monitor),
        stop,
        Check(),
        model=Reduced,
        strategy=strategy,
        devices=2,
        max_epochs=5,
    )
    assert times(snapshots(fit)) == [(-1, 0), (0, 1), (0, 2), (1, 3), (1, 4)]
    assert len(list(fit.logs.rglob("snapshots*.bin"))) == 1


# ---- misuse ----------------------------------------------------------------------------------------------------------

MISUSE = {
    "steps of zero": (
        {"snapshot_every_n_steps": 0},
        "snapshot_every_n_steps must be a whole number from 1 or None, got 0",
    ),
    "half a point": ({"loss_plane": 2.5}, "loss_plane must be a whole number from 2 or None, got 2.5"),
    "no batch": ({"loss_plane_batches": 0}, "loss_plane_batches must be a whole number from 1, got 0"),
    "unknown storage": ({"storage": "ram"}, "storage must be one of 'auto', 'exact', 'sketch', got 'ram'"),
    "unknown mode": ({"mode": "best"}, "mode must be one of 'min', 'max', None, got 'best'"),
    "no room": ({"max_megabytes": 0}, "max_megabytes must be a number above 0, got 0"),
    "room of words": ({"max_megabytes": "10"}, "max_megabytes must be a number above 0, got '10'"),
    "true is no room": ({"max_megabytes": True}, "max_megabytes must be a number above 0, got True"),
    "nan is no room": ({"max_megabytes": float("nan")}, "max_megabytes must be a number above 0, got nan"),
    "negative seed": ({"seed": -1}, "seed must be a whole number from 0, got -1"),
    "true is no seed": ({"seed": True}, "seed must be a whole number from 0, got True"),
    "list of flags": ({"flags": ["unmoved"]}, "flags must be a dict of thresholds by name, got ['unmoved']"),
    "unknown flag": ({"flags": {"stuck": 1}}, "stuck"),
    "no cosine": ({"flags": {"oscillating": -2}}, "the threshold of 'oscillating' is a cosine, from -1 to 1, got -2"),
    "plane of sketches": ({"loss_plane": 3, "storage": "sketch"}, 'leave out storage="sketch"'),
    "unknown monitor": ({"monitor": 3}, "monitor must be a name or None, got 3"),
}


@pytest.mark.parametrize("mistake", MISUSE)
def test_misuse_is_said_before_training(fit, mistake):
    settings, message = MISUSE[mistake]
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        fit(logger(**settings))
    assert not list(fit.logs.rglob("snapshots*"))


def test_a_loss_plane_without_validation_is_refused_before_training(fit):
    with pytest.raises(MisconfigurationException, match="loss_plane computes the validation loss, and this run has no"):
        fit(logger(loss_plane=3), validate=[])


def test_settings_are_stored_as_given():
    flags = {"unmoved": None}
    watcher = WeightTrajectoryLogger("a", snapshot_every_n_steps=3, monitor="m", mode="max", flags=flags, seed=5)
    assert (watcher.module, watcher.snapshot_every_n_steps, watcher.monitor, watcher.mode) == ("a", 3, "m", "max")
    assert watcher.flags is flags
    assert (watcher.seed, watcher.storage, watcher.max_megabytes, watcher.loss_plane) == (5, "auto", 1000, None)


def test_too_little_room_is_said_and_sketches_are_kept(fit, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    fit(logger(max_megabytes=0.1), model=Large)
    assert snapshots(fit).facts["sketch"] is not None
    assert "would take more than max_megabytes=0.1, so it keeps sketches" in caplog.text


def test_snapshots_that_are_lost_to_the_end_are_counted_in_the_log(fit):
    trainer, said = watch(fit, Poison((1, 2, 3), cure=False), logger(on_error="warn", every_n_epochs=1), max_epochs=4)
    assert len([words for words in said if "is left out of the path" in words]) == 1
    assert times(snapshots(fit)) == [(-1, 0), (0, 3)]
    assert numbers(trainer)["weight_trajectory/failed_looks"] == 3


def test_a_path_that_swings_is_warned_about_once_and_flagged_in_every_part(fit):
    steps = {"snapshot_every_n_steps": 1, "every_n_epochs": 3}
    trainer, said = watch(fit, logger(flags={"oscillating": 1.0}, **steps), max_epochs=3)
    raised = {tag.split("/")[1] for tag, v in numbers(trainer).items() if tag.endswith("flags/oscillating") and v}
    assert raised == {"total", "encoder.rnn.l0", "norm", "head"}
    assert [words.split(":")[0] for words in said] == ["total, flag oscillating"]


def test_one_snapshot_alone_says_nothing_of_what_has_moved(fit):
    fit(logger(every_n_epochs=1), max_epochs=1)
    file = snapshots(fit)
    names = {column.parameter for column in file.columns}
    assert unmoved(file, names) == []
    file.cut(1)
    assert unmoved(file, names) == []
