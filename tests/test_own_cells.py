"""Cells that a user registers, called per sequence or per step."""

import pytest
import torch
from torch import nn

from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import Activations, Cell, Place, cells
from rnn_callbacks.rebuild import chunks, traces

from .hear import calls_of, hear, rebuild_error

SEQUENCES, STEPS, INPUTS, UNITS = 3, 7, 2, 5
ROUNDING = 2e-6  # of a few dozen additions of numbers near 1 in float32


class Peephole(Cell):
    """An LSTM whose gates see the memory (Gers & Schmidhuber 2000): input and forget the old one, output the new."""

    gates = ("input", "forget", "output")
    candidate = "cell"
    retention = "forget"
    gates_read_memory = True

    def __init__(self, core, place):
        super().__init__(place, input_size=core.w.in_features - UNITS, units=UNITS, memory_size=UNITS)
        self.w, self.b, self.peep = (t.detach().clone() for t in (core.w.weight, core.w.bias, core.peep))

    def activations(self, inputs, hidden, memory=None):
        i, f, o, g = (torch.cat([inputs, hidden], dim=1) @ self.w.T + self.b).chunk(4, dim=1)
        i, f, g = i + self.peep[0] * memory, f + self.peep[1] * memory, g.tanh()
        o = o + self.peep[2] * (f.sigmoid() * memory + i.sigmoid() * g)
        return Activations(torch.stack([i, f, o, g], dim=1))

    def follow(self, inside, hidden, memory):
        i, f, o = inside.logits.sigmoid().unbind(-2)
        memories = []
        for write, keep, new in zip(i, f, inside.candidate, strict=True):
            memory = keep * memory + write * new
            memories.append(memory)
        memories = torch.stack(memories)
        return o * memories.tanh(), memories


class PeepholeCore(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.w, self.peep = nn.Linear(inputs + UNITS, 4 * UNITS), nn.Parameter(torch.randn(3, UNITS))

    def step(self, x, h, c):
        i, f, o, g = self.w(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        c = torch.sigmoid(f + self.peep[1] * c) * c + torch.sigmoid(i + self.peep[0] * c) * torch.tanh(g)
        return torch.sigmoid(o + self.peep[2] * c) * torch.tanh(c), c


class PeepholeCell(PeepholeCore):
    """Called once per step, as nn.LSTMCell."""

    def forward(self, x, hx):
        return self.step(x, *hx)


class PeepholeStack(nn.Module):
    """Two layers, both ways, called once per sequence, as nn.LSTM with batch_first."""

    batch_first = True

    def __init__(self):
        super().__init__()
        self.cores = nn.ModuleList(PeepholeCore(width) for width in (INPUTS, INPUTS, 2 * UNITS, 2 * UNITS))

    def forward(self, x, hx=None):
        h, c = torch.zeros(2, 4, len(x), UNITS) if hx is None else hx
        last = []
        for layer in range(2):
            ways = []
            for row in (2 * layer, 2 * layer + 1):
                state, shown = (h[row], c[row]), []
                for step in x.unbind(1) if row % 2 == 0 else x.flip(1).unbind(1):
                    state = self.cores[row].step(step, *state)
                    shown.append(state[0])
                last.append(torch.stack(state))
                shown = torch.stack(shown, dim=1)
                ways.append(shown if row % 2 == 0 else shown.flip(1))
            x = torch.cat(ways, dim=2)
        return x, torch.stack(last, dim=1).unbind(0)


@cells.register
def _(module: PeepholeCell):
    return (Peephole(module, Place("cell", stepwise=True)),)


@cells.register
def _(module: PeepholeStack):
    places = [Place(f"l{layer}{'_reverse' * way}", layer, bool(way)) for layer in range(2) for way in range(2)]
    return tuple(Peephole(core, place) for core, place in zip(module.cores, places, strict=True))


@pytest.mark.parametrize("rows", [1, 1024])
def test_cell_of_a_users_own_is_rebuilt_when_called_per_sequence(rows):
    torch.manual_seed(0)
    module, x = PeepholeStack(), torch.randn(SEQUENCES, STEPS, INPUTS)
    call = hear(module, x, (torch.randn(4, SEQUENCES, UNITS), torch.randn(4, SEQUENCES, UNITS)))
    assert [cell.name for cell in call.cells] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert rebuild_error(call, rows) < ROUNDING
    ends = [list(chunks(trace, rows))[-1] for trace in traces(call)]
    for row, end in enumerate(ends):  # the memory reached is the one that the module gave back
        last = end.memory[-SEQUENCES:]
        assert (last - call.final[row, :, UNITS:]).abs().max() < ROUNDING


@pytest.mark.parametrize("rows", [1, 1024])
def test_cell_of_a_users_own_is_rebuilt_when_called_per_step(rows):
    torch.manual_seed(0)
    module, x = PeepholeCell(INPUTS), torch.randn(SEQUENCES, STEPS, INPUTS)
    state, seen = (torch.randn(SEQUENCES, UNITS), torch.randn(SEQUENCES, UNITS)), []
    with Recorder(module) as recorder, torch.no_grad():
        for step in x.unbind(1):
            state = module(step, state)
            seen.append(state)
    (call,) = calls_of(recorder)
    assert rebuild_error(call, rows) < ROUNDING
    (trace,) = traces(call)
    for chunk in chunks(trace, rows):
        truth = torch.stack([c for _, c in seen], dim=1)[chunk.sequences, chunk.times]
        assert (chunk.memory - truth).abs().max() < ROUNDING
