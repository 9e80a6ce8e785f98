"""What finding and following fixed points costs, and whether they are the true ones, on trained flip-flop networks."""

import statistics
import tempfile
import time

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from examples.digits import DigitReader, Digits
from rnn_callbacks import FixedPointTracker
from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_history import begin, go_on
from rnn_callbacks.analysis.fixed_point_search import find_all_fixed_points, search
from rnn_callbacks.cells import cells

from ..flip_flop import BITS, flip_flop, train
from ..reference_dynamics import find_reference_points
from .gates import cpu

FAMILIES = ("rnn", "lstm", "gru")
SEEDS = {16: range(5), 64: range(5), 128: range(2)}


def visited(model):
    """Hidden states of 32 runs."""
    x, _ = flip_flop(32, 24, torch.Generator().manual_seed(9))
    with torch.no_grad():
        return model.rnn(x)[0].flatten(0, 1).double()


class Tracked:
    """A training whose fixed points are followed at every epoch."""

    def __init__(self, family, units, seed):
        self.history, self.seconds, self.counts = None, [], []
        self.births = self.deaths = self.late = self.changes = self.incomplete = 0
        self.model = train(family, units, seed, after_epoch=self.look)

    def look(self, epoch, model):
        states, inputs = visited(model), torch.zeros(BITS, dtype=torch.float64)
        start = time.process_time()
        equations = [equation_of(cell) for cell in cells(model.rnn)]
        if self.history is None:
            self.history, chapter = begin(equations, inputs, search(equations, inputs, [states]))
        else:
            self.history, chapter = go_on(self.history, equations, inputs, [states], seed=epoch)
        self.seconds.append(time.process_time() - start)
        self.counts.append(len(chapter.ids))
        self.births += chapter.count("birth")
        self.deaths += chapter.count("death")
        self.late += chapter.count("found late")
        self.changes += chapter.count("stability")
        self.incomplete += not chapter.skeleton.complete


def residual(module, states):
    """Largest speed q at states, computed by the module itself in float64."""
    module = module.double()
    h = torch.as_tensor(states)
    if isinstance(module, nn.LSTM):
        width = module.hidden_size
        state = (h[None, :, :width].contiguous(), h[None, :, width:].contiguous())
    else:
        state = h[None]
    with torch.no_grad():
        after = module(torch.zeros(len(h), 1, BITS, dtype=torch.float64), state)[1]
    after = torch.cat([part[0] for part in after], 1) if isinstance(after, tuple) else after[0]
    return float((after - h).square().sum(1).max() / 2)


def timed(function, rounds=5):
    function()
    return statistics.median(cpu(function) for _ in range(rounds))


def rows():
    """(what, measured, aim), one after the other."""
    runs = {
        (family, units, seed): Tracked(family, units, seed)
        for units, seeds in SEEDS.items()
        for family in FAMILIES
        for seed in seeds
    }
    right, worst, doubles, agreed, compared = 0, 0.0, 0, 0, 0
    for (_family, units, seed), run in runs.items():
        (cell,) = cells(run.model.rnn)
        found = find_all_fixed_points(cell, visited(run.model), seed=100 + seed)
        points = found.points
        right += np.bincount(points.unstable, minlength=4).tolist() == [8, 12, 6, 1] and found.index_sum == 1
        apart = np.linalg.norm(points.states[:, None] - points.states[None], axis=2) + 9 * np.eye(len(points))
        doubles += int((apart < 1e-3).any())
        worst = max(worst, residual(run.model.rnn, points.states))
        if units == 16:
            truth = np.asarray(find_reference_points(run.model.rnn.float(), torch.zeros(BITS)).states)
            gaps = np.linalg.norm(truth[:, None] - points.states[None], axis=2)
            agreed += len(truth) == len(points) and bool((gaps.min(0) < 1e-6).all() and (gaps.min(1) < 1e-6).all())
            compared += 1
        run.model.float()
    yield f"flip-flop networks (3 cells, H 16, 64, 128) with exactly 8+12+6+1 found, of {len(runs)}", str(right), "all"
    yield f"the same: equal to an independent finder's, H 16, of {compared}", str(agreed), "all"
    yield "the same: networks with duplicates", str(doubles), "0"
    yield "the same: largest q, by the module itself in float64", f"{worst:.0e}", "1e-20"

    aims = {
        ("rnn", 16): "10 ms",
        ("lstm", 16): "20 ms",
        ("gru", 16): "16 ms",
        ("rnn", 64): "50 ms",
        ("lstm", 64): "80 ms",
    }
    for family, units in [*aims, ("gru", 64)]:
        seconds = [s for (f, u, _), run in runs.items() if (f, u) == (family, units) for s in run.seconds[1:]]
        measured = f"{1e3 * statistics.mean(seconds):.0f} ({1e3 * statistics.median(seconds):.0f}) ms"
        what = f"{family.upper()}-{units}: CPU per tracked epoch, mean over a training of 24 epochs (median)"
        yield what, measured, aims.get((family, units), "")
    for units in (16, 64):
        chosen = [run for (_, u, _), run in runs.items() if u == units]
        for name in ("births", "deaths", "late", "changes", "incomplete"):
            counts = [getattr(run, name) for run in chosen]
            common = max(set(counts), key=counts.count)
            exact = f"{common} in {counts.count(common)}/{len(counts)}" + (
                "" if len(set(counts)) == 1 else f", up to {max(counts)}"
            )
            aim = {"births": "26", "deaths": "0", "late": "0"}.get(name, "") if units == 16 else ""
            yield f"events in training, H {units}, 3 cells x 5 seeds: {name}", exact, aim

    aims = {("rnn", 64): "0.07", ("lstm", 64): "0.09", ("gru", 64): "0.08", ("rnn", 128): "0.19", ("lstm", 128): "0.26"}
    for (family, units), aim in aims.items():
        model = runs[family, units, 0].model
        (cell,), states = cells(model.rnn), visited(model)
        whole = timed(lambda cell=cell, states=states: find_all_fixed_points(cell, states))
        points = find_all_fixed_points(cell, states).points
        jacobians = equation_of(cell)
        drive = jacobians.drive_of(torch.zeros(1, BITS, dtype=torch.float64))
        at = torch.as_tensor(points.states)
        spectra = timed(lambda j=jacobians, d=drive, a=at: torch.linalg.eigvals(j.jacobian(d, a)))
        what = f"{family.upper()}-{units}: cold search, CPU s, without eigenvalues (with)"
        yield what, f"{whole - spectra:.3f} ({whole:.3f})", aim
    torch.manual_seed(0)
    module = nn.GRU(BITS, 512, batch_first=True)
    with torch.no_grad():
        states = module(torch.randn(32, 24, BITS))[0].flatten(0, 1).double()
    (cell,) = cells(module)
    yield (
        "GRU-512, untrained: cold search, CPU s",
        f"{timed(lambda: find_all_fixed_points(cell, states), 3):.2f}",
        "1.5",
    )

    for cell_name in ("gru", "lstm"):
        with tempfile.TemporaryDirectory() as folder:
            tracker = FixedPointTracker()
            pl.seed_everything(0, verbose=False)
            trainer = pl.Trainer(
                max_epochs=60, accelerator="cpu", logger=TensorBoardLogger(folder), callbacks=[tracker],
                enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            )  # fmt: skip
            trainer.fit(DigitReader(cell_name), Digits())
            schedule = tracker._schedule
            training = schedule.training_seconds
            numbers, pictures = schedule.numbers.spent / training, schedule.figures.spent / training
            what = (
                f"default tracker on digits, {cell_name}, {training:.0f} s, {tracker._looks} looks: numbers (pictures)"
            )
            yield what, f"{numbers:.1%} ({pictures:.1%})", "2 %"
