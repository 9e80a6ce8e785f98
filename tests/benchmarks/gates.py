"""What `GateMonitor` costs, against a forward pass, against a step-by-step loop, and in a training run."""

import statistics
import subprocess
import sys
import tempfile
import time

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import GateMonitor
from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.capture import Recorder
from rnn_callbacks.figures.gates import draw_gates
from rnn_callbacks.rebuild import ROWS, chunks, traces
from rnn_callbacks.sinks import log_figures

from .. import reference, test_rebuild

SEQUENCES, STEPS, FEATURES, UNITS = 64, 100, 64, 128
ROUNDS = 21


def cpu(function):
    begin = time.process_time()
    function()
    return time.process_time() - begin


def alternate(rounds=ROUNDS, **functions):
    """Median CPU seconds of each function, measured in turn."""
    taken = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(cpu(function))
    return {name: statistics.median(values) for name, values in taken.items()}


def recorded(family, steps=STEPS):
    torch.manual_seed(0)
    module = family(FEATURES, UNITS, batch_first=True)
    x = torch.randn(SEQUENCES, steps, FEATURES)
    with Recorder(module) as recorder, torch.no_grad():
        module(x)
    (call,) = recorder.tapes[family.__name__.lower()].calls
    return module, x, call


def errors():
    """Largest difference from a step-by-step loop, over a sample of all configurations."""
    worst = {torch.float32: 0.0, torch.float64: 0.0}
    for number, (kind, config) in enumerate((k, c) for k in test_rebuild.KINDS for c in test_rebuild.GRID[::6]):
        for dtype in worst:
            layers, both, layout, bias, given = config
            module, x, h0, c0, lengths = test_rebuild.make_case(kind, dtype, layers, both, layout, bias, given, number)
            with Recorder(module) as recorder:
                test_rebuild.run(module, x, h0, c0, lengths, layout, given)
            (call,) = recorder.tapes[type(module).__name__.lower()].calls
            worst[dtype] = max(worst[dtype], test_rebuild.differences(module, call, x, h0, c0, lengths, ROWS))
    return worst


def gates_only(call):
    """All gates and candidates of all steps, and the hidden states rebuilt from them."""
    for trace in traces(call):
        for _ in chunks(trace):
            pass


def published_loop(module, x):
    """How gates are published elsewhere: one sequence, one step at a time, then statistics over everything."""
    found = {}
    for sequence in x:
        h, c = torch.zeros(UNITS), torch.zeros(UNITS)
        for step in sequence:
            named, h, c = reference.step(module, 0, "", step, h, c)
            for gate, value in named.items():
                found.setdefault(gate, []).append(value)
    for values in found.values():
        values = torch.stack(values)
        values.mean(0), values.std(0), (values < 0.1).float().mean(0), (values > 0.9).float().mean(0)
        values.histc(20, 0, 1)


MEMORY = """
import torch
from torch import nn
from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.capture import Recorder
from rnn_callbacks.rebuild import traces
torch.set_num_threads(1)
def status(key):  # MB; Linux
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
module, x = nn.{family}(64, 128, batch_first=True), torch.randn(64, {steps}, 64)
small = torch.randn(64, 20, 64)
def watch(x):
    recorder = Recorder(module)
    recorder.open()
    with torch.no_grad():
        out = module(x)
    recorder.close()
    return recorder, out
def analyse(recorder):
    for call in recorder.tapes[module.__class__.__name__.lower()].calls:
        for trace in traces(call):
            gate_statistics([trace])
analyse(watch(small)[0])
recorder, out = watch(x)
held = sum(recorder._bytes.values()) / 2**20
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
analyse(recorder)
print(held, held + status("VmHWM") - before)
"""


def memory(family):
    """MB held beside what the forward pass returned: by the recording, and at the peak of its analysis."""
    code = MEMORY.format(family=family, steps=1000)
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return [float(value) for value in out]


class Regression(pl.LightningModule):
    """A GRU of the size that the aims are stated for."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(FEATURES, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 1)

    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self.head(self.rnn(x)[0][:, -1])[:, 0], y)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def train(callbacks, folder, epochs):
    pl.seed_everything(0, verbose=False)
    x = torch.randn(40 * SEQUENCES, STEPS, FEATURES)
    data = TensorDataset(x, x[:, ::10, 0].sum(1))
    held = TensorDataset(*data[: 4 * SEQUENCES])
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=TensorBoardLogger(folder), callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    begin = time.process_time()
    trainer.fit(Regression(), DataLoader(data, SEQUENCES), DataLoader(held, SEQUENCES))
    return time.process_time() - begin


def rows():
    """(what, measured, aim), one after the other."""
    worst = errors()
    yield "gates against a step-by-step loop, float32, 100 configurations", f"{worst[torch.float32]:.1e}", "2e-6"
    yield "the same, float64", f"{worst[torch.float64]:.1e}", "1e-14"

    for family, aim in ((nn.GRU, "0.75"), (nn.LSTM, ""), (nn.RNN, "")):
        module, x, call = recorded(family)

        def forward(module=module, x=x):
            with torch.no_grad():
                module(x)

        taken = alternate(
            forward=forward,
            gates=lambda call=call: gates_only(call),
            everything=lambda call=call: gate_statistics(traces(call)),
        )
        name, ms = family.__name__, taken["forward"] * 1000
        ratio = taken["gates"] / taken["forward"]
        yield f"{name} B64 T100 H128: all gates and rebuilt states / forward ({ms:.1f} ms)", f"{ratio:.2f}", aim
        ratio = taken["everything"] / taken["forward"]
        yield f"{name}: the same with all statistics / forward", f"{ratio:.2f}", ""
        if family is not nn.RNN:
            with torch.no_grad():
                loop = statistics.median(cpu(lambda m=module, x=x: published_loop(m, x)) for _ in range(3))
            yield (
                f"{name}: one-sequence-at-a-time loop / ours, statistics included",
                (f"{loop / taken['everything']:.0f} times"),
                "20 times",
            )
            both = taken["everything"] + taken["forward"]
            yield f"{name}: the same, a forward pass of its own counted to ours", f"{loop / both:.0f} times", ""
            heard, peak = memory(name)
            yield (
                f"{name} B64 T1000 H128: peak memory beside the forward's (recording alone)",
                (f"{peak:.0f} ({heard:.0f}) MB"),
                "50 MB",
            )

        with tempfile.TemporaryDirectory() as folder:
            found = [gate_statistics([trace]) for trace in traces(call)]
            trainer = pl.Trainer(logger=TensorBoardLogger(folder), accelerator="cpu", enable_progress_bar=False)
            drawn = alternate(
                rounds=7,
                figure=lambda f=found, t=trainer, d=folder: log_figures(
                    t, {"gates/rnn": lambda: draw_gates("rnn", f)}, d, noun="gates", epoch=0, step=0
                ),
            )
        yield f"{name}: one figure, drawn, logged and kept as PNG", f"{drawn['figure'] * 1000:.0f} ms", "150 ms"

    with tempfile.TemporaryDirectory() as folder:
        train([], folder, epochs=1)
        watched, plain, shares, pictures, looks = [], [], [], [], 0
        for _ in range(2):
            plain.append(train([], folder, epochs=10))
            monitor = GateMonitor()
            watched.append(train([monitor], folder, epochs=10))
            schedule = monitor._schedule
            training = watched[-1] - schedule.numbers.spent - schedule.figures.spent
            shares.append(schedule.numbers.spent / training)
            pictures.append(schedule.figures.spent / training)
            looks = monitor._looks
        what = f"default GateMonitor in a training of {statistics.mean(plain):.0f} s, {looks} looks in 10 epochs"
        yield f"{what}: share of time, numbers", f"{max(shares):.2%}", "1 %"
        yield "the same: pictures", f"{max(pictures):.2%}", ""
        ratio = statistics.mean(watched) / statistics.mean(plain)
        yield "the same: CPU time of the watched run / of the unwatched one, two pairs", f"{ratio:.3f}", ""
