"""Eigenvalues and singular values of each gate's recurrent matrix against NumPy's, in torch's order of rows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.gradient_flow import LONGEST
from rnn_callbacks.analysis.spectra import recurrent_sizes, recurrent_spectra
from rnn_callbacks.cells import Cell, Place, cells

from .known_gates import FAMILIES, INPUTS, PROJECTED, UNITS, make

PARTS = {
    "gru": ("reset", "update", "new"),
    "lstm": ("input", "forget", "cell", "output"),
    "lstm_projected": ("input", "forget", "cell", "output"),
    "rnn_tanh": ("hidden",),
    "rnn_relu": ("hidden",),
}


def cell_of(matrix):
    """An RNN with this recurrent matrix."""
    module = nn.RNN(INPUTS, len(matrix)).double()
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.as_tensor(matrix))
    return cells(module)[0]


def recurrent(matrix):
    """Its spectra."""
    return recurrent_spectra(cell_of(matrix))


def by_size(values):
    """Largest first; of a complex pair, which have one size, the lower one first."""
    return sorted(values, key=lambda value: (-round(abs(value), 9), value.imag))


@pytest.mark.parametrize("suffix", ["l0", "l1_reverse"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_eigenvalues_are_those_of_each_block_of_torchs_rows(kind, suffix):
    module = make(kind, 2, bidirectional=True).double()
    (cell,) = [cell for cell in cells(module) if cell.name == suffix]
    found = recurrent_spectra(cell)
    assert (found.cell, found.parts) == (suffix, PARTS[kind])
    weights = {name: value.detach().numpy() for name, value in module.named_parameters()}
    blocks = np.split(weights[f"weight_hh_{suffix}"], len(found.parts))
    if kind == "lstm_projected":
        blocks = [weights[f"weight_hr_{suffix}"] @ block for block in blocks]
    width = PROJECTED if kind == "lstm_projected" else UNITS
    assert found.eigenvalues.shape == (len(found.parts), width)
    for part, values, block in zip(found.parts, found.eigenvalues, blocks, strict=True):
        true = np.linalg.eigvals(-block if part == "update" else block)
        np.testing.assert_allclose(by_size(values), by_size(true), atol=1e-12)
        assert (np.diff(np.abs(values)) <= 1e-12).all()


def test_update_rows_of_a_gru_are_those_of_the_share_of_new_content():
    module = make("gru")
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(UNITS).repeat(3, 1))
    found = recurrent_spectra(cells(module)[0])
    assert found.eigenvalues[:, 0].tolist() == [1.0, -1.0, 1.0]
    assert found.radius.tolist() == [1.0, 1.0, 1.0]


def test_timescale_is_that_of_the_decay_of_each_eigenvalue():
    weights = [-0.5, 0.25, 0.0, 1.0, -1.5, 1 - 1e-9, 0.9]
    found = recurrent(np.diag(weights))
    assert found.radius.tolist() == [1.5]
    inverse = [math.log(2), math.log(4)]
    true = [LONGEST, LONGEST, LONGEST, -1 / math.log(0.9), 1 / inverse[0], 1 / inverse[1], 0.0]
    np.testing.assert_allclose(found.timescales, [true], rtol=1e-12)
    assert found.scalars() == {"hidden/spectral_radius": 1.5, "hidden/timescale": LONGEST}


def test_complex_pair_decays_with_its_modulus():
    found = recurrent(0.8 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]]))
    np.testing.assert_allclose(found.timescales, -1 / math.log(0.8), rtol=1e-12)
    np.testing.assert_allclose(np.sort(found.eigenvalues[0].imag), [-0.8 * np.sin(1), 0.8 * np.sin(1)], rtol=1e-12)


def test_matrix_of_zeros_has_no_radius_and_no_timescale():
    found = recurrent(np.zeros((UNITS, UNITS)))
    assert found.scalars() == {"hidden/spectral_radius": 0.0, "hidden/timescale": 0.0}
    assert (found.timescales == 0).all()


def test_scalars_name_radius_and_slowest_timescale_of_every_gate():
    module = make("lstm").double()
    with torch.no_grad():
        for number, block in enumerate(module.weight_hh_l0.chunk(4), 1):
            block.copy_(torch.diag(torch.tensor([0.1, 0.2 * number, -0.1, 0.0, 0.1])))
    found = recurrent_spectra(cells(module)[0]).scalars()
    true = {"input": 0.2, "forget": 0.4, "cell": 0.6, "output": 0.8}
    for part, radius in true.items():
        assert found.pop(f"{part}/spectral_radius") == pytest.approx(radius)
        assert found.pop(f"{part}/timescale") == pytest.approx(-1 / math.log(radius), rel=1e-6)
    assert found == {}


def test_single_step_cell_has_the_spectra_of_its_weights():
    module = nn.GRUCell(INPUTS, UNITS)
    whole = make("gru")
    with torch.no_grad():
        whole.weight_hh_l0.copy_(module.weight_hh)
    found, true = (recurrent_spectra(cells(one)[0]) for one in (module, whole))
    np.testing.assert_array_equal(found.eigenvalues, true.eigenvalues)


class Own(Cell):
    """A cell of the user's, of whose weights nothing is known."""

    gates, candidate = (), "output"

    def activations(self, inputs, hidden, memory=None):
        raise AssertionError

    def follow(self, inside, hidden, memory):
        raise AssertionError


def test_cell_of_the_user_has_no_known_spectra():
    assert recurrent_spectra(Own(Place("l0"), input_size=INPUTS, units=UNITS)) is None
    assert recurrent_sizes(Own(Place("l0"), input_size=INPUTS, units=UNITS)) is None


@pytest.mark.parametrize("suffix", ["l0", "l1_reverse"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_singular_values_are_those_of_each_block_of_torchs_rows(kind, suffix):
    module = make(kind, 2, bidirectional=True).double()
    (cell,) = [cell for cell in cells(module) if cell.name == suffix]
    found = recurrent_sizes(cell)
    assert (found.cell, found.parts) == (suffix, PARTS[kind])
    weights = {name: value.detach().numpy() for name, value in module.named_parameters()}
    blocks = np.split(weights[f"weight_hh_{suffix}"], len(found.parts))
    if kind == "lstm_projected":
        blocks = [weights[f"weight_hr_{suffix}"] @ block for block in blocks]
    true = np.linalg.svd(np.stack(blocks), compute_uv=False)
    np.testing.assert_allclose(found.singular_values, true, rtol=1e-10)
    assert found.singular_values.dtype == np.float64
    scalars = found.scalars()
    for part, block in zip(found.parts, blocks, strict=True):
        norm = np.linalg.norm(block, 2)
        assert scalars.pop(f"{part}/spectral_norm") == pytest.approx(norm)
        assert scalars.pop(f"{part}/stable_rank") == pytest.approx(np.linalg.norm(block) ** 2 / norm**2)
    assert scalars == {}


def test_singular_values_stretch_as_much_as_eigenvalues_at_least():
    for kind in FAMILIES:
        cell = cells(make(kind))[0]
        assert (recurrent_sizes(cell).norm >= recurrent_spectra(cell).radius - 1e-12).all()


@pytest.mark.parametrize("size", [1.0, 0.3, 1e-200, 1e200])
def test_stable_rank_is_the_number_of_directions_that_are_stretched_alike(size):
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.normal(size=(UNITS, UNITS)))[0]
    outer = np.outer(generator.normal(size=UNITS), generator.normal(size=UNITS))
    some = np.diag([2.0, 2, 1, 0, 0])
    ranks = [(rotation, UNITS), (np.eye(UNITS), UNITS), (outer, 1), (some, 2.25), (rotation @ some @ rotation, 2.25)]
    for matrix, rank in ranks:
        found = recurrent_sizes(cell_of(size * matrix))
        assert found.stable_rank.tolist() == pytest.approx([rank], rel=1e-9)
        assert found.norm.tolist() == pytest.approx([size * np.linalg.norm(matrix, 2)], rel=1e-9)


def test_matrix_of_zeros_has_no_size_and_no_rank():
    found = recurrent_sizes(cell_of(np.zeros((UNITS, UNITS))))
    assert found.scalars() == {"hidden/spectral_norm": 0.0, "hidden/stable_rank": 0.0}


def test_single_precision_weights_are_measured_in_double():
    cell = cells(make("lstm"))[0]
    found = recurrent_sizes(cell)
    block = cell.weights.hh.double().numpy()[:UNITS]
    np.testing.assert_allclose(found.singular_values[0], np.linalg.svd(block, compute_uv=False), rtol=1e-12)
