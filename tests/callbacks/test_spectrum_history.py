"""`SpectrumHistory`: eigenvalues of recurrent weights, look after look."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.callbacks.spectrum_history import EIGENVALUES, LOOKS, SpectrumHistory

from ..test_own_cells import PeepholeCell

INPUTS, UNITS = 3, 5
EXACT = 1e-12  # both roads are LAPACK's, in float64


def test_eigenvalues_and_sizes_are_those_of_every_gate():
    torch.manual_seed(0)
    module, history = nn.LSTM(INPUTS, UNITS, bidirectional=True), SpectrumHistory({})
    spectra = history.look({"rnn": module}, 4)
    assert list(spectra) == ["rnn.l0", "rnn.l0_reverse"]
    for cell, spectrum in spectra.items():
        weight = getattr(module, f"weight_hh_{cell.removeprefix('rnn.')}").detach().double().numpy()
        assert spectrum.parts == ("input", "forget", "cell", "output")
        assert spectrum.epochs.tolist() == [4]
        assert spectrum.eigenvalues.shape == (1, 4, UNITS)
        for number, part in enumerate(spectrum.parts):
            matrix = weight[number * UNITS : (number + 1) * UNITS]
            own, expected = spectrum.eigenvalues[0, number], np.linalg.eigvals(matrix)
            assert np.abs(own).tolist() == sorted(np.abs(own), reverse=True)
            assert own.sum() == pytest.approx(np.trace(matrix), rel=EXACT)
            assert np.sort(np.abs(own)) == pytest.approx(np.sort(np.abs(expected)), rel=EXACT)
            norm = np.linalg.norm(matrix, 2)
            sizes = [history.scalars[f"{cell}/{part}/{q}"] for q in ("spectral_radius", "spectral_norm", "stable_rank")]
            assert sizes == pytest.approx([np.abs(own).max(), norm, np.square(matrix).sum() / norm**2], rel=EXACT)


def test_of_many_units_the_largest_eigenvalues_are_kept():
    history = SpectrumHistory({})
    spectrum = history.look({"rnn": nn.RNN(INPUTS, EIGENVALUES + 7)}, 0)["rnn.l0"]
    assert spectrum.eigenvalues.shape == (1, 1, EIGENVALUES)
    assert history.scalars["rnn.l0/hidden/spectral_radius"] == np.abs(spectrum.eigenvalues).max()


def scaled(module, factor):
    with torch.no_grad():
        module.weight_hh_l0.copy_(factor * torch.eye(UNITS))


def test_looks_add_up_and_a_look_taken_again_takes_the_place_of_the_first():
    module, history = nn.RNN(INPUTS, UNITS), SpectrumHistory({})
    for epoch, factor in ((0, 1.0), (3, 2.0), (5, 3.0), (3, 4.0)):  # resumed from a checkpoint of the third epoch
        scaled(module, factor)
        spectrum = history.look({"rnn": module}, epoch)["rnn.l0"]
    assert spectrum.epochs.tolist() == [0, 3]
    assert spectrum.eigenvalues[:, 0, 0].tolist() == [1.0, 4.0]


def test_of_many_looks_some_go_and_the_others_stay_spread_over_the_run():
    module, history = nn.RNN(INPUTS, UNITS), SpectrumHistory({})
    for epoch in range(3 * LOOKS):
        scaled(module, epoch)
        spectrum = history.look({"rnn": module}, epoch)["rnn.l0"]
        assert len(spectrum.epochs) <= LOOKS
        assert spectrum.epochs[0] == 0
        assert spectrum.epochs[-1] == epoch
        assert spectrum.eigenvalues[:, 0, 0].tolist() == spectrum.epochs.tolist()
        assert len(spectrum.epochs) == min(epoch + 1, LOOKS)
        assert np.diff(spectrum.epochs).max(initial=1) <= 2 * (epoch // LOOKS + 1)


def test_a_history_goes_on_from_what_a_checkpoint_keeps():
    module, history, checkpoint = nn.GRU(INPUTS, UNITS), SpectrumHistory({}), io.BytesIO()
    first = history.look({"rnn": module}, 0)["rnn.l0"]
    torch.save(history.memory(), checkpoint)
    checkpoint.seek(0)
    again = SpectrumHistory(torch.load(checkpoint, weights_only=True)).look({"rnn": module}, 1)["rnn.l0"]
    assert again.epochs.tolist() == [0, 1]
    assert (again.eigenvalues == first.eigenvalues[[0, 0]]).all()


def test_nan_weights_and_cells_of_a_users_own_are_left_out_and_others_are_not():
    broken, history = nn.GRU(INPUTS, UNITS), SpectrumHistory({})
    modules = {"broken": broken, "own": PeepholeCell(INPUTS), "cell": nn.GRUCell(INPUTS, UNITS)}
    assert list(history.look(modules, 0)) == ["broken.l0", "cell.cell"]
    nn.init.constant_(broken.weight_hh_l0, float("nan"))
    assert list(history.look(modules, 1)) == ["cell.cell"]
    assert {tag.split(".")[0] for tag in history.scalars} == {"cell"}  # none of the look before
    nn.init.constant_(broken.weight_hh_l0, 0.0)
    spectrum = history.look(modules, 2)["broken.l0"]
    assert spectrum.epochs.tolist() == [0, 2]
    assert history.scalars["broken.l0/new/stable_rank"] == 0


def test_eigenvalues_are_the_weights_of_the_look_and_not_later_ones():
    module, history = nn.RNN(INPUTS, UNITS), SpectrumHistory({})
    scaled(module, 2.0)
    spectrum = history.look({"rnn": module}, 0)["rnn.l0"]
    scaled(module, 9.0)
    assert np.abs(spectrum.eigenvalues).max() == 2.0
