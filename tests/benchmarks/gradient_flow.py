"""What `GradientFlowMonitor` costs, against a backward pass, against autograd through a loop, and in a training run."""

import subprocess
import sys
import tempfile

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from rnn_callbacks import GradientFlowMonitor
from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.analysis.gradient_findings import CellFlow
from rnn_callbacks.analysis.gradient_flow import gradient_flow
from rnn_callbacks.analysis.gradient_norms import NormMeter
from rnn_callbacks.analysis.lyapunov import lyapunov_exponents
from rnn_callbacks.analysis.spectra import recurrent_spectra
from rnn_callbacks.capture import Recorder
from rnn_callbacks.figures.gradient_flow import draw_gradient_flow
from rnn_callbacks.rebuild import traces
from rnn_callbacks.sinks import log_figures

from .gates import FEATURES, SEQUENCES, STEPS, UNITS, Regression, alternate, cpu, train

FEW = 8


def heard(family, few):
    """A module, a loss whose backward pass is to be timed, and what was heard of its first sequences."""
    torch.manual_seed(0)
    module = family(FEATURES, UNITS, batch_first=True)
    x, weights = torch.randn(SEQUENCES, STEPS, FEATURES), torch.randn(SEQUENCES, STEPS, UNITS)

    def loss():
        return (module(x)[0] * weights).sum()

    with Recorder(module, gradients=True, max_sequences=few) as recorder:
        found = loss()
    found.backward()
    (call,) = recorder.tapes[family.__name__.lower()].calls
    return module, loss, call, x, weights


def unrolled(module, x, weights):
    """Total gradients by autograd: a step of torch's own at a time, every state asked for its gradient."""
    family = {nn.GRU: torch.gru_cell, nn.LSTM: torch.lstm_cell, nn.RNN: torch.rnn_tanh_cell}[type(module)]
    own = (module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0)
    state = torch.zeros(len(x), UNITS)
    state = (state, state) if family is torch.lstm_cell else state
    loss, states = 0.0, []
    for step, weight in zip(x.unbind(1), weights.unbind(1), strict=True):
        state = family(step, state, *own)
        hidden = state[0] if isinstance(state, tuple) else state
        states.append(hidden)
        loss = loss + (hidden * weight).sum()
    return torch.autograd.grad(loss, states)


def norm_share():
    """Medians of CPU seconds of a training step without and with the meter, of which the meter's own part."""
    model = Regression()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batch = torch.randn(SEQUENCES, STEPS, FEATURES), torch.randn(SEQUENCES)
    blocks = {"rnn.weight_hh_l0": ("reset", "update", "new")}
    meter = NormMeter(dict(model.named_parameters()), blocks, 50)
    seconds = []

    def step(watch):
        optimizer.zero_grad()
        model.loss(batch).backward()
        if watch:
            if meter.full:
                meter.drain()
            seconds.append(cpu(lambda: meter.take(0)))
        optimizer.step()

    taken = alternate(rounds=60, plain=lambda: step(False), watched=lambda: step(True))
    return taken["plain"], taken["watched"], sorted(seconds)[len(seconds) // 2]


MEMORY = """
import torch
from torch import nn
from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.capture import Recorder
torch.set_num_threads(1)
def status(key):  # MB; Linux
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
module, x = nn.{family}(64, 128, batch_first=True), torch.randn(64, {steps}, 64)
def watch(x, few):
    recorder = Recorder(module, gradients=True, max_sequences=few)
    recorder.open()
    out = module(x)[0]
    out.square().mean().backward()
    recorder.close()
    return recorder
def analyse(recorder):
    for call in recorder.tapes[module.__class__.__name__.lower()].calls:
        total_gradients(call)
analyse(watch(x[:, :20], 64))
recorder = watch(x, {few})
held = sum(recorder._bytes.values()) / 2**20
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
analyse(recorder)
print(len(recorder.tapes[module.__class__.__name__.lower()].calls[0].lengths), held + status("VmHWM") - before)
"""


def memory(family, few):
    """Sequences recorded, and MB held at the peak of their analysis beside what the backward pass left."""
    code = MEMORY.format(family=family, steps=1000, few=few)
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return int(out[0]), float(out[1])


def rows():
    """(what, measured, aim), one after the other."""
    plain, watched, own = norm_share()
    what = f"norms of all parameters and gates, share of a training step (GRU B64 T100 H128, {plain * 1e3:.0f} ms)"
    yield what, f"{own / plain:.2%}", "0.1 %"
    yield "the same: CPU time of a watched step / of an unwatched one", f"{watched / plain:.4f}", ""

    for family in (nn.GRU, nn.LSTM, nn.RNN):
        module, loss, call, x, weights = heard(family, FEW)
        _, _, whole, _, _ = heard(family, SEQUENCES)
        backward = []

        def time_backward(loss=loss, backward=backward):
            found = loss()
            backward.append(cpu(found.backward))

        taken = alternate(
            rounds=15,
            backward=time_backward,
            adjoint=lambda call=call: total_gradients(call, impulses=0),
            impulses=lambda call=call: total_gradients(call),
            everything=lambda whole=whole: total_gradients(whole),
            loop=lambda m=module, x=x, w=weights: unrolled(m, x[:FEW], w[:FEW]),
            lyapunov=lambda call=call: lyapunov_exponents(traces(call)),
        )
        name, once = family.__name__, sorted(backward)[len(backward) // 2]
        yield f"{name} B64 T100 H128: adjoint on 8 sequences / backward ({once * 1e3:.1f} ms)", (
            f"{taken['adjoint'] / once:.2f}"
        ), "0.15"  # fmt: skip
        yield f"{name}: the same with impulses and contributions / backward", f"{taken['impulses'] / once:.2f}", ""
        yield f"{name}: all 64 sequences, as the self-check needs / backward", f"{taken['everything'] / once:.2f}", ""
        ratio = taken["loop"] / taken["adjoint"]
        yield f"{name}: autograd through a loop over the same 8 sequences / adjoint", f"{ratio:.1f} times", "5 times"
        ratio = taken["lyapunov"] / once
        yield f"{name}: 8 leading exponents along 8 sequences / backward", f"{ratio:.2f}", "0.3"
        if family is not nn.RNN:
            kept, megabytes = memory(name, FEW)
            yield f"{name} B64 T1000 H128: peak memory above the backward's, {kept} sequences", (
                f"{megabytes:.0f} MB"
            ), "80 MB"  # fmt: skip
            kept, megabytes = memory(name, SEQUENCES)
            yield f"{name}: the same, all that the limit of 32 MB lets in ({kept})", f"{megabytes:.0f} MB", "80 MB"
        (part,) = total_gradients(call)
        found = CellFlow(gradient_flow([part]), lyapunov_exponents(traces(call)), recurrent_spectra(part.trace.cell))
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(logger=TensorBoardLogger(folder), accelerator="cpu", enable_progress_bar=False)
            drawn = alternate(
                rounds=7,
                figure=lambda f=found, t=trainer, d=folder: log_figures(
                    t,
                    {"gradient_flow/rnn": lambda: draw_gradient_flow("rnn", [f])},
                    d,
                    noun="gradient_flow",
                    epoch=0,
                    step=0,
                ),
            )
        yield f"{name}: one figure, drawn, logged and kept as PNG", f"{drawn['figure'] * 1000:.0f} ms", ""

    with tempfile.TemporaryDirectory() as folder:
        train([], folder, epochs=1)
        pairs = []
        for _ in range(2):
            unwatched = train([], folder, epochs=12)
            monitor = GradientFlowMonitor()
            taken = train([monitor], folder, epochs=12)
            schedule = monitor._schedule
            training = taken - schedule.numbers.spent - schedule.figures.spent
            pairs.append((unwatched, taken, schedule.numbers.spent / training, schedule.figures.spent / training))
        mean = sum(pair[0] for pair in pairs) / 2
        what = f"default GradientFlowMonitor in a training of {mean:.0f} s, {monitor._looks} looks in 12 epochs"
        yield f"{what}: share of time, numbers", f"{max(pair[2] for pair in pairs):.2%}", "2 %"
        yield "the same: pictures", f"{max(pair[3] for pair in pairs):.2%}", ""
        ratio = sum(pair[1] for pair in pairs) / sum(pair[0] for pair in pairs)
        yield "the same: CPU time of the watched run / of the unwatched one, two pairs", f"{ratio:.3f}", ""
