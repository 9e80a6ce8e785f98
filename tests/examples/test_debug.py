"""The letters, the faults, and the claims about them: each of them can fail."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from examples import debug
from examples.debug import (
    BEFORE,
    FIRST_QUESTION,
    KEPT,
    LETTERS,
    MOVED,
    REACH,
    READ,
    STEPS,
    UNLABELLED,
    Reader,
    Seen,
    claims,
)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take longer than the rest of a small run."""

    def sparing(callback, **asked):
        return callback(**asked | {"figure_every_n_epochs": 98})

    for name in (
        "GateMonitor",
        "GradientFlowMonitor",
        "ProbeTracker",
        "RepresentationTracker",
        "WeightTrajectoryLogger",
    ):
        monkeypatch.setattr(debug, name, partial(sparing, getattr(debug, name)))


def test_letters_are_as_they_are_described():
    symbols, said = debug.letters(997, torch.Generator().manual_seed(0))
    asked, read = symbols[..., LETTERS] > 0, symbols.argmax(2)
    assert not asked[:, :FIRST_QUESTION].any()
    assert asked[:, FIRST_QUESTION:].float().mean().item() == pytest.approx(0.4, abs=0.02)  # of 6979 steps
    assert torch.equal(said[~asked], read[~asked])
    assert torch.equal(said[asked], read[:, :1].expand(-1, STEPS)[asked])


def test_shifted_labels_are_those_of_the_next_step_and_are_found_one_step_later():
    symbols, said = debug.letters(13, torch.Generator().manual_seed(0))
    again, early = debug.letters(13, torch.Generator().manual_seed(0), shifted=True)
    assert torch.equal(symbols, again)
    assert torch.equal(early[:, :-1], said[:, 1:])
    assert early[:, -1].eq(UNLABELLED).all()
    assert torch.equal(debug.answer_before((again, early)), debug.answer((symbols, said)))


def test_a_detached_state_hands_back_no_credit():
    symbols, _ = debug.letters(7, torch.Generator().manual_seed(0))
    for fault in ("none", "detached_state"):
        symbols = symbols.detach().requires_grad_()
        Reader(fault)(symbols)[:, -1].sum().backward()
        assert bool(symbols.grad[:, :-1].any()) == (fault == "none")


def test_frozen_gates_let_nothing_in():
    symbols, _ = debug.letters(7, torch.Generator().manual_seed(0))
    model = Reader("frozen_gates")
    nn.init.zeros_(model.readout.bias)
    assert model(symbols).abs().max() == 0  # 1 - z is rounded to zero


# ---- claims ----------------------------------------------------------------------------------------------------------

HEALTHY = Seen({KEPT: 0.2, REACH: 13.0, MOVED: 4.0, BEFORE: 1.0}, (), 1.0, 1e-4)
ILL = {
    "frozen_gates": Seen({KEPT: 1e6}, ("frozen", "missing"), 0.3, 1.1),
    "large_lr": Seen({MOVED: 5000.0}, ("blown_up",), 0.3, 47.0),
    "detached_state": Seen({REACH: 0.01}, ("vanishing",), 0.3, 0.2),
    "shifted_labels": Seen({BEFORE: 1.0, READ: 0.6}, ("missing",), 0.6, 1.0),
    "none": HEALTHY,
}


def held(seen):
    return [claim.holds for claim in claims(seen)]


def test_all_claims_hold_where_each_fault_shows():
    assert held(ILL) == [True] * 5
    assert held({"none": HEALTHY}) == [True]


@pytest.mark.parametrize("fault", list(debug.SIGNS))
def test_a_fault_without_its_flag_or_number_or_harm_is_not_claimed(fault):
    one = ILL[fault]
    wrong = [one._replace(raised=("lazy",)), one._replace(numbers={}), one._replace(error=2e-4)]
    wrong += [one._replace(numbers={tag: 5.0 if tag == REACH else 0.5 for tag in one.numbers})]
    wrong += [one._replace(numbers={**one.numbers, READ: 1.0})] if fault == "shifted_labels" else []
    for seen in wrong:
        assert held({fault: seen, "none": HEALTHY}) == [False, True]
    flag = debug.SIGNS[fault][0]
    assert held({fault: one, "none": HEALTHY._replace(raised=(flag,))}) == [False, False]


def test_a_network_that_is_not_mended_is_not_claimed_to_be():
    for wrong in (
        HEALTHY._replace(right=0.9),
        HEALTHY._replace(numbers={REACH: 3.0}),
        HEALTHY._replace(raised=("dead",)),
    ):
        assert held({"none": wrong}) == [False]


def test_a_run_that_is_too_short_fails(tmp_path, capsys):
    options = ["--fault", "shifted_labels", "--epochs", "2", "--sequences", "64", "--logs", str(tmp_path)]
    assert debug.main(options) == 1
    said = capsys.readouterr().out
    assert re.search(r"shifted_labels +[\d.]+ steps", said)
    assert re.findall(r"  (holds|FAILS)  (\w+)", said) == [("FAILS", "shifted_labels"), ("FAILS", "mended")]
    assert "missing" in said  # at the last epoch a required concept is asked for
