import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.gate_flags import RULES, check_thresholds, find_flags, scalar_names
from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.cells import Activations, Cell, Place, cells

from .known_gates import FAMILIES, INPUTS, UNITS, hear, make, statistics, with_biases

STEPS, BATCH, SEEDS = 40, 32, (0, 1, 2)
WIDE = 32  # units; the rules speak of shares of units


def raised(found, **thresholds):
    return {flag.name for flag in find_flags(found, thresholds) if flag.raised}


class Adder(nn.Module):
    """Says the sum of the two marked numbers of a sequence."""

    def __init__(self, family, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.rnn = family(2, WIDE, batch_first=True)
        self.head = nn.Linear(WIDE, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def make_sums(sequences, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(sequences, STEPS, 2, generator=generator)
    half = STEPS // 2
    marks = torch.randint(0, half, (2, sequences), generator=generator) + torch.tensor([[0], [half]])
    x[:, :, 1] = torch.zeros(sequences, STEPS).scatter_(1, marks.T, 1.0)
    return x, x.prod(2).sum(1, keepdim=True)


def train(model, *, rate, steps=100):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    x, y = make_sums(16 * BATCH, seed=1)
    for step in range(steps):
        rows = slice(step % 16 * BATCH, step % 16 * BATCH + BATCH)
        optimizer.zero_grad()
        (model(x[rows]) - y[rows]).square().mean().backward()
        optimizer.step()


def chrono(module, seed):
    """Tallec and Ollivier 2018: forget biases log(U(1, T - 1)), input biases minus those."""
    bias = torch.log(1 + (STEPS - 2) * torch.rand(WIDE, generator=torch.Generator().manual_seed(seed)))
    if isinstance(module, nn.LSTM):
        return with_biases(module, keep_weights=True, forget=bias, input=-bias)
    return with_biases(module, keep_weights=True, z=bias)


@pytest.mark.parametrize("seed", SEEDS[:2])  # each trains a network, for two seconds
@pytest.mark.parametrize("start", ["default", "chrono"])
@pytest.mark.parametrize("family", [nn.LSTM, nn.GRU])
def test_healthy_network_raises_no_flag_before_or_after_it_learns(family, start, seed):
    model = Adder(family, seed)
    if start == "chrono":
        chrono(model.rnn, seed)
    x, _ = make_sums(16, seed)
    found = statistics(model.rnn, x)
    assert raised(found) == set()
    if start == "chrono":  # the plain rule, half of a gate saturated, fires here: that is why it is none of ours
        assert max(found.open[:-1].mean(1).max(), found.closed[:-1].mean(1).max()) > 0.5
    train(model, rate=3e-3)
    assert raised(statistics(model.rnn, x)) == set()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("family", "gate", "bias", "flag"),
    [
        (nn.GRU, "z", -6.0, "overwritten"),
        (nn.GRU, "z", 6.0, "frozen"),
        (nn.LSTM, "forget", -4.0, "overwritten"),
        (nn.LSTM, "forget", 6.0, "frozen"),
        (nn.LSTM, "output", -6.0, "closed_output"),
        (nn.LSTM, "input", -6.0, "cannot_write"),
    ],
)
def test_gate_stuck_by_its_bias_raises_its_flag_and_no_other(family, gate, bias, flag, seed):
    model = Adder(family, seed)
    with_biases(model.rnn, keep_weights=True, **{gate: bias})
    x, _ = make_sums(16, seed)
    assert raised(statistics(model.rnn, x)) == {flag}


@pytest.mark.parametrize("family", [nn.LSTM, nn.GRU])
def test_learning_rate_that_is_far_too_large_raises_blown_up(family):
    model = Adder(family, 0)
    train(model, rate=0.5)
    assert "blown_up" in raised(statistics(model.rnn, make_sums(16, 0)[0]))


def test_steps_that_are_nan_raise_nonfinite_and_nothing_else():
    x, _ = make_sums(7, 0)
    x[:, 3:] = math.nan
    (flag,) = [flag for flag in find_flags(statistics(Adder(nn.LSTM, 0).rnn, x)) if flag.raised]
    assert (flag.name, flag.value) == ("nonfinite", pytest.approx(37 / 40))
    assert "92.50% of the steps hold NaN" in flag.meaning
    assert raised(statistics(Adder(nn.LSTM, 0).rnn, torch.full_like(x, math.nan))) == {"nonfinite"}


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_the_same_rules_are_applied_whether_or_not_something_finite_was_heard(kind):
    x = torch.randn(7, 11, INPUTS, generator=torch.Generator().manual_seed(0))
    heard, unheard = statistics(make(kind), x), statistics(make(kind), x * math.nan)
    names = {"blown_up", "frozen", "overwritten"} if "rnn" not in kind else set()
    names |= {"cannot_write", "closed_output"} if "lstm" in kind else set()
    assert {flag.name for flag in find_flags(heard)} == names | {"nonfinite"}
    assert {flag.name for flag in find_flags(unheard)} == names | {"nonfinite"}


@pytest.mark.parametrize(("steps", "flags"), [(3, set()), (4, {"frozen"})])
def test_sequence_too_short_to_forget_anything_is_not_frozen(steps, flags):
    found = statistics(with_biases(make("lstm"), forget=6.0), torch.zeros(7, steps, INPUTS))
    assert raised(found) == flags


def test_frozen_measures_the_timescale_in_lengths_of_the_median_sequence():
    found = statistics(with_biases(make("lstm"), forget=3.0), torch.zeros(7, 11, INPUTS))
    (flag,) = [flag for flag in find_flags(found) if flag.name == "frozen"]
    tau = 1 / math.log1p(math.exp(-3))
    assert flag.value == pytest.approx(tau / 11, rel=1e-5)
    assert not flag.raised  # 1.9 lengths
    assert "for 1.9 times the length of a sequence (11 steps)" in flag.meaning
    assert raised(found, frozen=1.8) == {"frozen"}


def test_unit_is_stuck_only_at_one_end_on_nearly_every_step_and_without_moving():
    found = statistics(with_biases(make("gru"), z=-5.0), torch.zeros(7, 11, INPUTS))
    assert raised(found) == {"overwritten"}
    update = found.parts.index("update")
    moving = found.std.copy()
    moving[update] = 0.03
    assert raised(dataclasses.replace(found, std=moving)) == set()
    counts = found.histogram.copy()
    counts[update, :, -1] -= 1  # of 77 steps
    counts[update, :, 0] += 1
    assert raised(dataclasses.replace(found, histogram=counts)) == set()


@pytest.mark.parametrize(("units", "flags"), [(2, set()), (3, {"cannot_write"})])
def test_half_of_the_units_is_enough_and_less_is_not(units, flags):
    bias = torch.zeros(UNITS)
    bias[:units] = -6.0  # of 5
    assert raised(statistics(with_biases(make("lstm"), input=bias), torch.zeros(7, 11, INPUTS))) == flags


def test_exactly_half_of_the_units_is_enough():
    module = with_biases(nn.LSTM(INPUTS, 2, batch_first=True), input=torch.tensor([-6.0, 0.0]))
    assert raised(statistics(module, torch.zeros(7, 11, INPUTS))) == {"cannot_write"}


def test_frozen_is_about_the_median_unit_and_not_about_a_few_that_never_forget():
    bias = torch.tensor([12.0, 11.0, 0.0, 0.0, 0.0])
    assert raised(statistics(with_biases(make("lstm"), forget=bias), torch.zeros(7, 11, INPUTS))) == set()
    bias[2] = 10.0
    assert raised(statistics(with_biases(make("lstm"), forget=bias), torch.zeros(7, 11, INPUTS))) == {"frozen"}


def test_threshold_of_none_switches_a_rule_off_and_a_number_moves_it():
    found = statistics(with_biases(make("gru"), z=-6.0), torch.zeros(7, 11, INPUTS))
    assert raised(found) == {"overwritten"}
    assert "overwritten" not in {flag.name for flag in find_flags(found, {"overwritten": None})}
    assert raised(found, overwritten=1.1) == set()
    # The timescale is 1 / log(1 + e^6) = 0.17 steps, a 66th of the length.
    assert raised(found, overwritten=None, frozen=0.01) == {"frozen"}


def test_rule_of_ones_own_compares_a_quantity_with_a_limit():
    found = statistics(with_biases(make("gru"), z=6.0), torch.zeros(7, 11, INPUTS))
    mean = 1 / (1 + math.exp(6))
    (flag,) = [flag for flag in find_flags(found, {"update_mean_below": 0.1}) if flag.name == "update_mean_below"]
    assert flag.raised
    assert (flag.value, flag.threshold) == (pytest.approx(mean, rel=1e-5), 0.1)
    assert flag.meaning == "update_mean is 0.00247, below the limit of 0.1 that was set."
    own = {"update_mean_above": 0.1, "reset_std_below": 0.0, "timescale_q50_above": 400.0, "reset_closed_above": 0.0}
    assert raised(found, frozen=None, **own) == {"timescale_q50_above"}
    assert raised(found, frozen=None, forget_mean_below=1.0) == set()  # a quantity of other cells


def test_thresholds_that_no_cell_could_meet_are_refused():
    both = [*cells(make("gru")), *cells(make("lstm"))]
    good = {
        "frozen": 3,
        "blown_up": None,
        "update_mean_below": 0.1,
        "memory_drift_above": 1.0,
        "new_saturated_above": 0.5,
    }
    check_thresholds(good, both)
    with pytest.raises(
        ValueError, match=r"'forget_mean_below' is none of overwritten, .* are new_mean_abs, new_near_zero"
    ):
        check_thresholds({"forget_mean_below": 0.1}, cells(make("gru")))
    for name in ("bogus", "update_mean", "update_mean_over", "_below", "update/mean_below", "rebuild_error_above"):
        with pytest.raises(ValueError, match=f"flags: '{name}' is none of overwritten, .*followed by _below or _above"):
            check_thresholds({name: 0.1}, both)
    for value in (True, math.nan, "0.1", [0.1]):
        with pytest.raises(ValueError, match="the threshold of 'frozen' must be a number or null, got"):
            check_thresholds({"frozen": value}, both)
    with pytest.raises(ValueError, match="'update_mean_below' needs a number; null only switches off a built-in rule"):
        check_thresholds({"update_mean_below": None}, both)


class Own(Cell):
    """A cell of the user's: no input gate, an update gate that keeps when open, and a candidate named like a gate."""

    gates, candidate, retention = ("forget", "update"), "output", "update"

    def activations(self, inputs, hidden, memory=None):
        return Activations(torch.stack([torch.zeros_like(inputs), inputs, inputs.tanh()], dim=1))

    def follow(self, inside, hidden, memory):
        after = torch.stack([memory] * len(hidden))
        return inside.candidate, after


def own_trace(inputs):
    (trace,) = hear(make("rnn_tanh"), torch.zeros(7, 11, INPUTS))["l0"]
    cell = Own(Place("l0"), input_size=UNITS, units=UNITS, memory_size=UNITS)
    x = torch.full((7, 11, UNITS), inputs)
    return dataclasses.replace(trace, cell=cell, inputs=x, hidden=x.tanh(), initial=torch.zeros(7, 2 * UNITS))


@pytest.mark.parametrize(("update", "flag"), [(-6.0, "overwritten"), (6.0, "frozen")])
def test_rules_follow_what_a_cell_of_the_user_says_its_gates_mean(update, flag):
    found = gate_statistics([own_trace(update)])
    assert raised(found) == {flag}
    assert {flag.name for flag in find_flags(found)} == {"overwritten", "frozen", "blown_up", "nonfinite"}


@pytest.mark.parametrize("kind", [*FAMILIES, "own"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_names_announced_for_a_cell_are_those_reported(kind):
    trace = own_trace(0.5) if kind == "own" else hear(make(kind), torch.randn(7, 11, INPUTS))["l0"][0]
    scalars = gate_statistics([trace]).scalars()
    assert set(scalars) == set(scalar_names(trace.cell))
    assert len(scalar_names(trace.cell)) == len(scalars)
    assert np.isfinite(list(scalars.values())).all()


def test_every_flag_says_what_was_seen():
    found = statistics(make("lstm"), torch.randn(7, 11, INPUTS, generator=torch.Generator().manual_seed(0)))
    flags = find_flags(found)
    assert [flag.name for flag in flags] == list(RULES)
    assert all("{" not in flag.meaning and flag.meaning.endswith(".") for flag in flags)
