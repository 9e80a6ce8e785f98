"""`random_twin`: other random networks that have in common with the first whatever is not chance."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.cka import cka, geometry
from rnn_callbacks.callbacks.random_twins import random_twin
from rnn_callbacks.cells import cells

FEATURES, UNITS, SEQUENCES, STEPS = 3, 7, 61, 5
KINDS = {
    "gru": (lambda: nn.GRU(FEATURES, UNITS), 3),
    "lstm": (lambda: nn.LSTM(FEATURES, UNITS), 4),
    "rnn": (lambda: nn.RNN(FEATURES, UNITS), 1),
    "two-way stack": (lambda: nn.GRU(FEATURES, UNITS, 2, bidirectional=True), 3),
    "gru cell": (lambda: nn.GRUCell(FEATURES, UNITS), 3),
    "lstm cell": (lambda: nn.LSTMCell(FEATURES, UNITS), 4),
    "rnn cell": (lambda: nn.RNNCell(FEATURES, UNITS), 1),
    "no bias": (lambda: nn.LSTM(FEATURES, UNITS, bias=False), 4),
    "projected": (lambda: nn.LSTM(FEATURES, UNITS, proj_size=2), 4),
    "double": (lambda: nn.GRU(FEATURES, UNITS).double(), 3),
}


def made(kind="gru"):
    torch.manual_seed(0)
    return KINDS[kind][0]()


def weights_of(found):
    """By cell and name."""
    names = ("ih", "hh", "bias_ih", "bias_hh", "hr")
    every = {(cell.name, name): getattr(cell.weights, name) for cell in found for name in names}
    return {key: value.detach() for key, value in every.items() if value is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_keeps_its_singular_values_and_its_biases(kind):
    module, gates = made(kind), KINDS[kind][1]
    before, after = weights_of(cells(module)), weights_of(random_twin(module, seed=0))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].dtype is value.dtype
        parts = 1 if key[1] == "hr" else gates
        for one, other in zip(value.chunk(parts), after[key].chunk(parts), strict=True):
            assert not torch.equal(one, other) or not one.any(), key
            assert torch.equal(one.flatten().sort().values, other.flatten().sort().values), key
            if value.dim() == 2:  # permutations are orthogonal; rounding of the decomposition
                assert torch.linalg.svdvals(other).numpy() == pytest.approx(torch.linalg.svdvals(one).numpy(), abs=1e-5)


def test_rows_and_columns_of_matrices_are_shuffled_each_on_its_own():
    before, after = (w["l0", "hh"].chunk(3) for w in map(weights_of, (cells(made()), random_twin(made(), seed=0))))
    orders = []
    for one, other in zip(before, after, strict=True):
        rows = [row.sort().values.tolist() for row in one]
        order = [rows.index(row.sort().values.tolist()) for row in other]
        columns = [column.sort().values.tolist() for column in one.T]
        across = [columns.index(column.sort().values.tolist()) for column in other.T]
        assert sorted(order) == sorted(across) == list(range(UNITS))
        orders += [order, across]
    assert len({tuple(order) for order in orders}) == 6


def states_of(found, x):
    """Through torch's own layer, ``(B, T, H)``."""
    layer = nn.GRU(FEATURES, UNITS, batch_first=True)
    weights = weights_of(found)
    with torch.no_grad():
        for name, part in zip(layer.state_dict(), ("ih", "hh", "bias_ih", "bias_hh"), strict=True):
            layer.get_parameter(name).copy_(weights["l0", part])
        return layer(x)[0].numpy()


def test_twins_represent_what_they_read_in_another_way_than_the_network_and_each_other():
    x = torch.randn(SEQUENCES, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
    networks = [cells(made()), *(random_twin(made(), seed=seed) for seed in range(3))]
    shapes = [geometry(states_of(found, x)) for found in networks]
    assert cka(shapes[0], geometry(states_of(cells(made()), x))).cka == pytest.approx(1)
    for place, one in enumerate(shapes):
        for other in shapes[:place]:
            assert 0.1 < cka(one, other).cka < 0.99


def test_the_same_seed_gives_the_same_twin_and_another_seed_another():
    first, again, other = (weights_of(random_twin(made(), seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first)


def test_neither_the_module_nor_any_random_state_is_touched():
    module = made("two-way stack")
    before = copy.deepcopy(module.state_dict())
    gradients = [p.requires_grad for p in module.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    random_twin(module, seed=0)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == gradients
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])  # noqa: NPY002


def test_what_a_user_did_to_single_gates_stays():
    module = made("lstm")
    with torch.no_grad():
        module.bias_hh_l0[UNITS : 2 * UNITS] = 3.0  # of the forget gate
        module.weight_hh_l0.copy_(torch.eye(UNITS).repeat(4, 1))
    after = weights_of(random_twin(module, seed=0))
    assert (after["l0", "bias_hh"][UNITS : 2 * UNITS] == 3).all()
    for gate in after["l0", "hh"].chunk(4):
        assert torch.equal(gate @ gate.T, torch.eye(UNITS))
