import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.analysis.gate_ablation import ablatable, held_value, hold_gate, restore, with_plain_weights
from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.cells import cells

from .known_gates import INPUTS, UNITS, hear, make

SEQUENCES, STEPS = 11, 7
ROUNDING = 1e-13  # float64, through 7 steps of 2 layers
VALUES = np.array([0.0, 0.03, 0.5, 0.8, 1.0])
GATES = {"gru": ("reset", "update"), "lstm": ("input", "forget", "output"), "lstm_projected": ("input", "forget")}
SINGLE = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def random_inputs(dtype=torch.float64):
    return torch.randn(SEQUENCES, STEPS, INPUTS, dtype=dtype, generator=torch.Generator().manual_seed(1))


def clamped_step(weights, suffix, x, h, c, held):
    """The documented equations of one step ``(B, I)``, with the gates in ``held`` replaced by their constants."""
    gi = x @ weights[f"weight_ih{suffix}"].T + weights.get(f"bias_ih{suffix}", 0.0)
    gh = h @ weights[f"weight_hh{suffix}"].T + weights.get(f"bias_hh{suffix}", 0.0)

    def gate(name, logit):
        return held[name] if name in held else torch.sigmoid(logit)

    if len(weights[f"weight_ih{suffix}"]) == 3 * UNITS:
        (ir, iz, inew), (hr, hz, hn) = gi.chunk(3, 1), gh.chunk(3, 1)
        new = torch.tanh(inew + gate("reset", ir + hr) * hn)
        update = gate("update", -(iz + hz))
        return update * new + (1 - update) * h, c
    i, f, g, o = (gi + gh).chunk(4, 1)
    c = gate("forget", f) * c + gate("input", i) * torch.tanh(g)
    h = gate("output", o) * torch.tanh(c)
    return h @ weights[f"weight_hr{suffix}"].T if f"weight_hr{suffix}" in weights else h, c


def clamped_run(module, x, held):
    """Outputs of a stack, step by step; ``held`` is by cell and gate, the weights are those of the module as it is."""
    weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    for layer in range(module.num_layers):
        ways = []
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 1 + module.bidirectional]:
            h, c = x.new_zeros(len(x), module.proj_size or UNITS), x.new_zeros(len(x), UNITS)
            steps = [None] * STEPS
            for t in reversed(range(STEPS)) if "reverse" in suffix else range(STEPS):
                h, c = clamped_step(weights, suffix, x[:, t], h, c, held.get(suffix[1:], {}))
                steps[t] = h
            ways.append(torch.stack(steps, 1))
        x = torch.cat(ways, 2)
    return x


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", list(GATES))
def test_module_with_a_gate_held_is_the_loop_with_that_gate_clamped(kind, bidirectional):
    module, x = make(kind, 2, bidirectional=bidirectional, dtype=torch.float64), random_inputs()
    whole = module(x)[0]
    torch.testing.assert_close(whole, clamped_run(module, x, {}), rtol=0, atol=ROUNDING)
    for cell in cells(module):
        for gate in GATES[kind]:
            truth = clamped_run(module, x, {cell.name: {gate: torch.from_numpy(VALUES)}})
            before = hold_gate(module, cell, gate, VALUES)
            held = module(x)[0]
            restore(module, before)
            torch.testing.assert_close(held, truth, rtol=0, atol=ROUNDING, msg=f"{cell.name} {gate}")
            assert not torch.allclose(held, whole, atol=1e-4)
            assert torch.equal(module(x)[0], whole)


@torch.no_grad()
@pytest.mark.parametrize("kind", list(SINGLE))
def test_single_step_cell_with_a_gate_held_is_the_step_with_that_gate_clamped(kind):
    torch.manual_seed(0)
    module = SINGLE[kind](INPUTS, UNITS, dtype=torch.float64)
    weights = {name: weight.clone() for name, weight in module.named_parameters()}
    x, h, c = (torch.randn(SEQUENCES, size, dtype=torch.float64) for size in (INPUTS, UNITS, UNITS))
    for gate in GATES[kind]:
        truth = clamped_step(weights, "", x, h, c, {gate: torch.from_numpy(VALUES)})
        before = hold_gate(module, cells(module)[0], gate, VALUES)
        found = module(x, h if kind == "gru" else (h, c))
        restore(module, before)
        torch.testing.assert_close(found if kind == "gru" else found[0], truth[0], rtol=0, atol=ROUNDING)
        assert all(torch.equal(weight, weights[name]) for name, weight in module.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", list(GATES))
def test_held_gate_is_at_its_value_on_every_step_and_alone(kind, dtype):
    module, x = make(kind, bidirectional=True, dtype=dtype), 10 * random_inputs(dtype)
    lengths = torch.arange(SEQUENCES) % STEPS + 1
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    free = {name: gate_statistics(heard) for name, heard in hear(module, packed).items()}
    for gate in GATES[kind]:
        before = hold_gate(module, cells(module)[1], gate, VALUES)
        held = {name: gate_statistics(heard) for name, heard in hear(module, packed).items()}
        restore(module, before)
        at = held["l0_reverse"].parts.index(gate)
        # 1e-7: sigmoid of the logit, in float32; at the ends sigmoid(-40) and sigmoid(40).
        np.testing.assert_allclose(held["l0_reverse"].mean[at], VALUES, rtol=0, atol=1e-7)
        assert not held["l0_reverse"].std[at].any()
        assert (np.delete(held["l0_reverse"].std, at, axis=0) > 0).all()
        assert np.array_equal(held["l0"].mean, free["l0"].mean)  # the other direction is untouched


@pytest.mark.parametrize("kind", list(GATES))
def test_restore_gives_back_every_weight(kind):
    module = make(kind, 2, bidirectional=True)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    for cell in cells(module):
        for gate in cell.gates:
            kept = hold_gate(module, cell, gate, held_value("one", VALUES))
            changed = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
            suffix = f"_{cell.name}"
            assert changed == {f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            restore(module, kept)
            assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())


def test_gates_are_held_at_their_means_closed_or_open():
    assert np.array_equal(held_value("mean", VALUES), VALUES)
    assert np.array_equal(held_value("zero", VALUES), np.zeros(UNITS))
    assert np.array_equal(held_value("one", VALUES), np.ones(UNITS))


@torch.no_grad()
@pytest.mark.parametrize("kind", list(GATES))
def test_module_without_biases_is_the_same_with_biases_of_zero(kind):
    module, x = make(kind, 2, bias=False, bidirectional=True, dtype=torch.float64).eval(), random_inputs()
    plain = with_plain_weights(module)
    assert torch.equal(plain(x)[0], module(x)[0])
    assert plain.bias
    assert not plain.training
    held = {"l1": {"input" if "input" in GATES[kind] else "reset": torch.from_numpy(VALUES)}}
    truth = clamped_run(module, x, held)
    hold_gate(plain, cells(plain)[2], next(iter(held["l1"])), VALUES)
    torch.testing.assert_close(plain(x)[0], truth, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(module(x)[0], clamped_run(module, x, {}), rtol=0, atol=ROUNDING)  # its own copy


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, weight_norm], ids=["parametrization", "hook"])
@pytest.mark.parametrize("kind", list(GATES))
def test_gate_of_a_weight_normalised_module_can_be_held(kind, normalise):
    module, x = make(kind, 2, dtype=torch.float64), random_inputs()
    bare = copy.deepcopy(module)
    normalise(module, "weight_hh_l0")
    plain = with_plain_weights(module)
    torch.testing.assert_close(plain(x)[0], module(x)[0], rtol=0, atol=ROUNDING)
    gate = GATES[kind][-1]
    hold_gate(plain, cells(plain)[0], gate, VALUES)
    truth = clamped_run(bare, x, {"l0": {gate: torch.from_numpy(VALUES)}})
    torch.testing.assert_close(plain(x)[0], truth, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(module(x)[0], bare(x)[0], rtol=0, atol=ROUNDING)


@torch.no_grad()
def test_subclass_with_a_constructor_of_its_own_can_be_made_plain():
    class Small(nn.GRU):
        def __init__(self):
            super().__init__(INPUTS, UNITS, bias=False, batch_first=True)

    module = Small()
    x = random_inputs(torch.float32)
    assert torch.equal(with_plain_weights(module)(x)[0], module(x)[0])
    cell = nn.LSTMCell(INPUTS, UNITS, bias=False)
    assert torch.equal(with_plain_weights(cell)(x[0])[0], cell(x[0])[0])


def test_plain_module_is_left_as_it_is():
    for module in (make("gru"), make("lstm_projected", 2, bidirectional=True), nn.LSTMCell(INPUTS, UNITS)):
        assert with_plain_weights(module) is module


def test_gates_of_torch_lstm_and_gru_can_be_held_and_no_others():
    assert all(map(ablatable, (make("gru"), make("lstm"), nn.GRUCell(2, 3), nn.LSTMCell(2, 3))))
    assert ablatable(parametrizations.weight_norm(make("gru"), "weight_hh_l0"))
    assert not any(map(ablatable, (make("rnn_tanh"), nn.RNNCell(2, 3), nn.Linear(2, 3))))


def test_gate_that_a_cell_has_not_is_refused():
    module = make("gru")
    with pytest.raises(ValueError, match="gate must be one of reset, update, got 'forget'"):
        hold_gate(module, cells(module)[0], "forget", VALUES)
    with pytest.raises(ValueError, match="gate must be one of reset, update, got 'new'"):
        hold_gate(module, cells(module)[0], "new", VALUES)
