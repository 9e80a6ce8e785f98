"""The total gradient of every step against autograd through an unrolled loop, and torch's own gradient of biases."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.capture import Recorder
from rnn_callbacks.rebuild import flip

from ..reference_gradients import gradients, unrolled

SEQUENCES, STEPS, INPUTS, UNITS, PROJECTED = 3, 7, 2, 5, 4
LENGTHS = torch.tensor([4, 7, 1])
FAMILIES = {
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "lstm projected": (nn.LSTM, {"proj_size": PROJECTED}),
    "rnn": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}  # relative to the largest gradient


def make(family, dtype=torch.float64, **options):
    torch.manual_seed(3)
    kind, more = FAMILIES[family]
    return kind(INPUTS, UNITS, **more, **options).to(dtype)


def heard(module, x, *, packed=False, initial=None, weigh=None):
    """The recorded call after a backward pass, and the input's own gradient."""
    x = x.clone().requires_grad_()
    given = x if module.batch_first else x.transpose(0, 1)
    if packed:
        given = pack_padded_sequence(given, LENGTHS, module.batch_first, enforce_sorted=False)
    with Recorder(module, gradients=True) as recorder:
        outputs, last = module(given, initial)
    if packed:
        outputs, _ = pad_packed_sequence(outputs, batch_first=True)
    elif not module.batch_first:
        outputs = outputs.transpose(0, 1)
    weigh(outputs, last).backward()
    assert not recorder.faults
    (tape,) = recorder.tapes.values()
    (call,) = tape.calls
    return call, x.grad


def weights_of_loss(module, dtype):
    generator = torch.Generator().manual_seed(5)
    width = (module.proj_size or UNITS) * (1 + module.bidirectional)
    cells = module.num_layers * (1 + module.bidirectional)
    shapes = (SEQUENCES, STEPS, width), (cells, SEQUENCES, module.proj_size or UNITS), (cells, SEQUENCES, UNITS)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


def states_of(last):
    return last if isinstance(last, tuple) else (last,)


CONFIGURATIONS = list(itertools.product((1, 3), *[(False, True)] * 4, TOLERANCE))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_total_gradients_equal_those_of_autograd_through_an_unrolled_loop(family):
    for layers, bidirectional, packed, batch_first, bias, dtype in CONFIGURATIONS:
        module = make(family, dtype, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias)
        x = torch.randn(SEQUENCES, STEPS, INPUTS, generator=torch.Generator().manual_seed(1), dtype=dtype)
        w_out, *w_last = weights_of_loss(module, dtype)
        lengths = LENGTHS.tolist() if packed else [STEPS] * SEQUENCES

        def weigh(outputs, last, w_out=w_out, w_last=w_last):
            weighted = (outputs.tanh() * w_out[:, : outputs.shape[1]]).sum()
            return weighted + sum((s * w).sum() for s, w in zip(states_of(last), w_last, strict=False))

        call, of_inputs = heard(module, x, packed=packed, weigh=weigh)
        found = total_gradients(call, impulses=2, inputs=True)

        sequences = [x[row, :length].clone().requires_grad_() for row, length in enumerate(lengths)]
        loss = 0.0
        loops = unrolled(copy.deepcopy(module), sequences)
        for row, (states, outputs) in enumerate(loops):
            loss = loss + (outputs.tanh() * w_out[row, : len(outputs)]).sum()
            for cell, (name, (hs, cs)) in enumerate(states.items()):
                end = 0 if name.endswith("reverse") else -1
                loss = loss + (hs[end] * w_last[0][cell, row]).sum()
                if module.mode == "LSTM":
                    loss = loss + (cs[end] * w_last[1][cell, row]).sum()
        loss.backward()

        for cell in found:
            total = cell.total.transpose(0, 1)
            total = flip(total, call.lengths) if cell.trace.cell.place.reverse else total
            for row, (states, _) in enumerate(loops):
                of_h, of_c = gradients(states[cell.trace.cell.name])
                true = torch.cat([of_h, of_c], 1) if cell.trace.cell.memory_size else of_h
                error = (total[row, : lengths[row]] - true).abs().max() / true.abs().max()
                assert error <= TOLERANCE[dtype]
            assert cell.rebuild_error <= TOLERANCE[dtype]
            if bias:
                own = getattr(module, f"bias_hh_{cell.trace.cell.name}").grad
                assert (cell.bias.sum(0) - own).abs().max() <= 2 * TOLERANCE[dtype] * own.abs().max()
        handed = found[0].input_gradients.transpose(0, 1)
        if bidirectional:
            handed = handed + flip(found[1].input_gradients.transpose(0, 1), call.lengths)
        for row, length in enumerate(lengths):
            assert (handed[row, :length] - of_inputs[row, :length]).abs().max() <= TOLERANCE[dtype] * 10
