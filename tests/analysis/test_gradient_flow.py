"""Credit, horizon and profiles of gradients through time, where they are known in closed form or from autograd."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from rnn_callbacks.analysis.adjoint import Impulses, total_gradients
from rnn_callbacks.analysis.gradient_flow import DEEPEST, FITTED, LONGEST, gradient_flow, horizon
from rnn_callbacks.capture import Recorder

from ..reference_gradients import gradients, unrolled
from .known_gates import INPUTS, UNITS, make, pack, with_biases

SEQUENCES, STEPS = 3, 23
EXACT = 1e-12  # of sums of logs in float64
LENGTHS = (4, 7, 1)
IDENTITY = torch.eye(UNITS, dtype=torch.float64)


def gradients_of(module, *inputs, loss=None, hx=None, impulses=8):
    """Gradients by cell over calls with these inputs, each a batch of its own; outputs are padded before the loss."""
    found = {}
    with Recorder(module, gradients=True) as recorder:
        for given in inputs:
            outputs, _ = module(given, hx)
            if isinstance(outputs, PackedSequence):
                outputs, _ = pad_packed_sequence(outputs, batch_first=True)
            (at_the_end if loss is None else loss)(outputs).backward()
            recorder.next_batch()
    assert not recorder.faults
    (tape,) = recorder.tapes.values()
    for call in tape.calls:
        for part in total_gradients(call, impulses=impulses):
            found.setdefault(part.trace.cell.name, []).append(part)
    return found


def flow_of(module, *inputs, cell="l0", **options):
    return gradient_flow(gradients_of(module, *inputs, **options)[cell])


def numbers(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at_the_end(outputs):
    return (outputs[:, -1] * numbers(*outputs[:, -1].shape).to(outputs)).sum()


def at_every_step(outputs):
    return (outputs * numbers(*outputs.shape).to(outputs)).sum()


def linear(recurrent, *, nonlinearity="tanh", dtype=torch.float64, **options):
    """An RNN that stays where its slope is 1: at zero with tanh, among positive numbers with relu."""
    module = nn.RNN(INPUTS, len(recurrent), nonlinearity=nonlinearity, batch_first=True, **options).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.zero_()
            if "weight_hh" in name:
                parameter.copy_(torch.as_tensor(recurrent))
            if "bias_ih" in name and nonlinearity == "relu":
                parameter.fill_(1.0)
    return module


def orthogonal(units=UNITS, seed=3):
    return torch.linalg.qr(numbers(units, units, seed=seed)).Q


def permutation():
    return IDENTITY.roll(2, 0)


def silence(sequences=SEQUENCES, steps=STEPS, dtype=torch.float64):
    return torch.zeros(sequences, steps, INPUTS, dtype=dtype)


ROADS = {"tanh at zero": ("tanh", orthogonal), "relu where all are active": ("relu", permutation)}


@pytest.mark.parametrize("loss", [at_the_end, at_every_step])
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("s", [0.5, 0.7, 0.95, 1.3])
def test_scaled_rotation_has_its_known_credit_wherever_the_loss_is(s, road, loss):
    nonlinearity, turn = ROADS[road]
    flow = flow_of(linear(s * turn(), nonlinearity=nonlinearity), silence(), loss=loss)
    np.testing.assert_allclose(flow.credit, np.arange(STEPS) * math.log(s), atol=EXACT)
    if s < 1:
        assert flow.horizon == pytest.approx(-1 / math.log(s), abs=1e-9)
        assert flow.reach == pytest.approx(min(math.log(0.01) / math.log(s), STEPS - 1), abs=1e-9)
        assert flow.growth == 1.0
    else:
        assert (flow.horizon, flow.reach) == (LONGEST, STEPS - 1)
        assert flow.growth == pytest.approx(s, abs=EXACT)
    assert flow.scalars()["gain"] == pytest.approx(s, abs=EXACT) if loss is at_the_end else True
    assert flow.memory.shape == (0,)


def test_single_precision_keeps_credit_far_below_its_smallest_number():
    flow = flow_of(linear(0.1 * permutation(), dtype=torch.float32), silence(steps=101, dtype=torch.float32))
    np.testing.assert_allclose(flow.credit, np.arange(101) * math.log(0.1), rtol=1e-6)


def test_rotation_without_shrinking_reaches_endlessly():
    flow = flow_of(linear(orthogonal()), silence())
    assert flow.horizon == LONGEST
    np.testing.assert_allclose(flow.credit, 0.0, atol=EXACT)
    assert flow.growth == pytest.approx(1.0, abs=EXACT)


@pytest.mark.parametrize("bias", [-1.0, 0.0, 3.0])
def test_lstm_without_weights_remembers_what_its_forget_bias_says(bias):
    module = with_biases(make("lstm"), forget=bias, cell=0.5).double()
    flow = flow_of(module, silence())
    kept = 1 / (1 + math.exp(-bias))
    np.testing.assert_allclose(flow.credit, np.arange(STEPS) * math.log(kept), atol=EXACT)
    assert flow.horizon == pytest.approx(-1 / math.log(kept), abs=1e-9)
    # Nothing leads from a hidden state to the next step, so that only the last one has a gradient of its own.
    assert (flow.hidden[:-1] == 0).all()
    np.testing.assert_allclose(flow.memory / flow.memory[-1], kept ** np.arange(STEPS)[::-1], rtol=EXACT)


@pytest.mark.parametrize("z", [-2.0, 1.0])
def test_gru_without_recurrent_weights_remembers_what_its_update_gate_keeps(z):
    module = with_biases(make("gru"), z=z, new=0.3).double()
    with torch.no_grad():
        module.weight_ih_l0[2 * UNITS :].normal_(generator=torch.Generator().manual_seed(2))
    flow = flow_of(module, numbers(SEQUENCES, STEPS, INPUTS))
    kept = 1 / (1 + math.exp(-z))
    np.testing.assert_allclose(flow.credit, np.arange(STEPS) * math.log(kept), atol=EXACT)
    assert flow.horizon == pytest.approx(-1 / math.log(kept), abs=1e-9)


def test_shift_register_forgets_all_after_as_many_steps_as_it_has_units():
    shift = IDENTITY.roll(1, 0).tril()
    flow = flow_of(linear(shift), silence(), loss=lambda outputs: outputs[:, -1].sum())
    left = (UNITS - np.arange(UNITS)) / UNITS
    np.testing.assert_allclose(flow.credit[:UNITS], np.log(left) / 2, atol=EXACT)
    assert (flow.credit[UNITS:] == DEEPEST).all()
    slope = np.linalg.lstsq(np.stack([np.arange(UNITS), np.ones(UNITS)], 1), np.log(left) / 2, rcond=None)[0][0]
    assert flow.horizon == pytest.approx(-1 / slope)
    assert flow.scalars()["first_over_last"] == 0.0


def test_matrix_far_from_normal_grows_before_it_shrinks():
    flow = flow_of(
        linear(torch.tensor([[0.9, 10.0], [0.0, 0.9]], dtype=torch.float64)),
        silence(steps=101),
        loss=lambda o: o[:, -1, 0].sum(),
    )
    lags = np.arange(101)
    true = np.log(np.hypot(0.9**lags, 10 * lags * 0.9 ** (lags - 1.0)))
    np.testing.assert_allclose(flow.credit, true, atol=EXACT)
    assert flow.growth == pytest.approx(np.hypot(0.9, 10))


def test_network_without_recurrence_has_no_horizon():
    flow = flow_of(linear(torch.zeros(UNITS, UNITS)), silence())
    assert flow.credit.tolist() == [0.0, *[DEEPEST] * (STEPS - 1)]
    assert (flow.horizon, flow.growth, flow.scalars()["gain"]) == (0.0, 1.0, 0.0)
    assert flow.reach == pytest.approx(math.log(0.01) / DEEPEST)


def test_loss_that_sends_no_gradient_is_described_as_such():
    flow = flow_of(make("lstm"), silence(dtype=torch.float32), loss=lambda outputs: 0.0 * outputs.sum())
    assert (flow.credit.tolist(), flow.heard.tolist()) == ([0.0], [0])
    assert (flow.reach, flow.growth) == (0.0, 1.0)
    # How far credit would reach is not known.
    assert flow.scalars() == {"gain": 0.0, "first_over_last": 0.0, "early_contribution": 0.0}


def test_loss_at_every_step_hides_vanishing_from_the_total_gradient_and_not_from_credit():
    s = 0.5
    flow = flow_of(linear(s * IDENTITY), silence(), loss=lambda outputs: outputs.sum())
    numbers = flow.scalars()
    assert numbers["first_over_last"] == pytest.approx((1 - s**STEPS) / (1 - s), rel=EXACT)
    assert numbers["horizon"] == pytest.approx(-1 / math.log(s))
    np.testing.assert_allclose(flow.credit, np.arange(STEPS) * math.log(s), atol=EXACT)
    remaining = STEPS - np.arange(STEPS)
    np.testing.assert_allclose(flow.hidden, math.sqrt(UNITS) * (1 - s**remaining) / (1 - s), rtol=EXACT)


def test_impulses_that_end_at_unlike_lags_are_chained_from_change_to_change():
    decays = 0.9, 0.5
    picks = IDENTITY[:2, None, :2]  # the first sequence asks for the first unit, ...
    flow = flow_of(linear(torch.diag(torch.tensor(decays, dtype=torch.float64))), silence(2, 7),
                   loss=lambda outputs: (outputs * picks).sum())  # fmt: skip
    # Impulses are at steps 6 and 5 of 7, and so are heard to lags 6 and 5.
    assert flow.heard.tolist() == [2, 2, 2, 2, 2, 2, 1]
    left = [math.log((0.9 ** (2 * k) + 0.5 ** (2 * k)) / 2) / 2 for k in range(6)]
    np.testing.assert_allclose(flow.credit, [*left, left[-1] + math.log(0.9)], atol=EXACT)


def test_credit_is_the_root_mean_square_of_changes_over_the_impulses_heard_at_both_lags():
    (part,) = gradients_of(linear(0.5 * IDENTITY), silence())["l0"]
    sizes = numbers(4, STEPS)
    lags = torch.tensor([3, -1, 5, 2])
    first = dataclasses.replace(part, impulses=Impulses(sizes, lags))
    second = dataclasses.replace(part, impulses=Impulses(sizes[:1] - 1, torch.tensor([4])))
    rows = [(sizes[0], 3), (sizes[2], 5), (sizes[3], 2), (sizes[0] - 1, 4)]
    true = [0.0]
    for lag in range(5):
        both = [row for row, longest in rows if longest >= lag + 1]
        after, before = (sum(math.exp(2 * row[k]) for row in both) for k in (lag + 1, lag))
        true.append(true[-1] + math.log(after / before) / 2)
    flow = gradient_flow([first, second])
    np.testing.assert_allclose(flow.credit, true, atol=EXACT)
    assert flow.heard.tolist() == [4, 4, 4, 3, 2, 1]


def test_nothing_that_is_left_counts_as_the_deepest_credit_and_not_as_no_number():
    (part,) = gradients_of(linear(0.5 * IDENTITY), silence())["l0"]
    sizes = torch.tensor([[0.0, -1.0, -torch.inf, -torch.inf], [0.0, -2.0, -3000.0, -torch.inf]], dtype=torch.float64)
    flow = gradient_flow([dataclasses.replace(part, impulses=Impulses(sizes, torch.tensor([3, 3])))])
    change = math.log((math.exp(-2) + math.exp(-4)) / 2) / 2
    np.testing.assert_allclose(flow.credit, [0.0, change, DEEPEST, DEEPEST], atol=EXACT)


def test_saturated_memory_gives_credit_that_is_a_number():
    # c counts up to 13; from 10 on tanh(c) is flat in float32, and dL/dc is 0 where the impulse starts, not before.
    module = with_biases(nn.LSTM(INPUTS, 1, batch_first=True), input=20.0, forget=20.0, cell=20.0)
    torch.nn.init.constant_(module.weight_hh_l0, 0.5)
    flow = flow_of(module, torch.zeros(1, 13, INPUTS), loss=lambda outputs: outputs[:, -1].sum())
    assert np.isfinite(flow.credit).all()


@pytest.mark.parametrize(
    ("credit", "true"),
    [
        ([0.0], 0.0),
        ([0.0, DEEPEST, DEEPEST], 0.0),
        ([0.0, -20.0], 1 / 20),  # below what is fitted, and still a number
        ([0.0, -1.0, -3.0], 1 / 1.5),  # least squares, not from end to end
        ([0.0, -0.5, 1.0], LONGEST),
        ([0.0, 0.0, 0.0], LONGEST),
        ([0.0, -1e-9], LONGEST),
        ([*-np.arange(9.0), -9.5, *[-9.5] * 50], 1.0),  # what is left below 1e-4 does not count
    ],
)
def test_horizon_follows_the_slope_of_what_still_trains_something(credit, true):
    assert horizon(np.array(credit)) == pytest.approx(true, abs=1e-12)


def test_last_lag_above_the_fitted_share_still_counts():
    edge = math.log(FITTED)
    assert horizon(np.array([0.0, edge, 100 * edge])) == pytest.approx(-1 / edge)
    steeper = horizon(np.array([0.0, -1.0, edge, 100 * edge]))
    assert steeper == pytest.approx(-2 / edge)


def with_credit(*credit):
    return dataclasses.replace(flow_of(linear(IDENTITY), silence(1, 2)), credit=np.array(credit))


def test_reach_lies_between_the_lags_around_one_hundredth():
    assert with_credit(0.0, -2.0, -6.0, 0.0).reach == pytest.approx(1 + (math.log(100) - 2) / 4)
    assert with_credit(0.0, -2.0, -4.0).reach == 2.0


def test_gain_of_a_whole_sequence_is_that_of_the_product_of_its_steps():
    flow = dataclasses.replace(with_credit(0.0), gain=np.array([0.0, 0.5, 8.0, 2.0]))
    assert flow.scalars()["gain"] == pytest.approx(2.0)  # the cube root of 8; nothing came to the first step


def test_growth_is_the_largest_per_step_over_any_stretch_from_the_impulse():
    assert with_credit(0.0, -2.0, 3.0, 3.6).growth == pytest.approx(math.exp(1.5))
    assert with_credit(0.0, -2.0, -1.0).growth == 1.0
    assert with_credit(0.0).growth == 1.0


def true_gradients(module, sequences, loss):
    """By cell and sequence, total gradients of h and c by position, from autograd through an unrolled loop."""
    loops = unrolled(copy.deepcopy(module), sequences)
    longest = max(map(len, sequences))
    padded = [torch.cat([o, o.new_zeros(longest - len(o), o.shape[1])]) for _, o in loops]
    loss(torch.stack(padded)).backward()
    return {cell: [gradients(states[cell]) for states, _ in loops] for cell in loops[0][0]}


def root_mean_square(rows, steps):
    """Over those of unlike length that were heard at each position."""
    found = []
    for t in range(steps):
        heard = [float(row[t].square().sum()) for row in rows if t < len(row)]
        found.append(math.sqrt(sum(heard) / len(heard)))
    return found


@pytest.mark.parametrize("cell", ["l0", "l0_reverse", "l1_reverse"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_profiles_of_ragged_sequences_are_those_of_autograd_at_positions_as_the_user_counts(kind, cell):
    module = make(kind, 2, bidirectional=True).double()
    x = numbers(SEQUENCES, 7, INPUTS)
    flow = flow_of(module, pack(x, LENGTHS), cell=cell, loss=at_every_step)
    sequences = [x[row, :length].clone().requires_grad_() for row, length in enumerate(LENGTHS)]
    true = true_gradients(module, sequences, at_every_step)[cell]
    np.testing.assert_allclose(flow.hidden, root_mean_square([h for h, _ in true], 7), rtol=1e-11)
    if kind == "lstm":
        np.testing.assert_allclose(flow.memory, root_mean_square([c for _, c in true], 7), rtol=1e-11)
    assert flow.times.tolist() == [3, 2, 2, 2, 1, 1, 1]
    assert (flow.lengths.tolist(), flow.sequences, flow.cell) == (list(LENGTHS), 3, cell)


def test_gain_is_what_a_step_hands_on_over_what_it_got_as_autograd_has_it():
    module, x = make("gru").double(), numbers(SEQUENCES, 7, INPUTS)
    weights = numbers(SEQUENCES, 7, UNITS)
    flow = flow_of(module, x, loss=at_every_step)
    true = true_gradients(module, [row.clone().requires_grad_() for row in x], at_every_step)["l0"]
    total = torch.stack([h for h, _ in true])
    handed = (total - weights)[:, :-1].square().sum((0, 2))  # the loss asks for the states with these weights
    np.testing.assert_allclose(flow.gain[1:], (handed / total[:, 1:].square().sum((0, 2))).sqrt(), rtol=1e-9)


def test_reverse_cell_fades_towards_the_end_of_each_sequence():
    s, sizes = 0.5, torch.tensor([3.0, 1.0, 7.0], dtype=torch.float64)
    module = linear(s * IDENTITY, bidirectional=True)
    flow = flow_of(module, pack(silence(3, 7), LENGTHS), cell="l0_reverse",
                   loss=lambda outputs: (outputs[:, 0, UNITS] * sizes).sum())  # fmt: skip
    heard = [sizes[torch.tensor(LENGTHS) > t].square().mean().sqrt().item() for t in range(7)]
    np.testing.assert_allclose(flow.hidden, s ** np.arange(7) * heard, rtol=EXACT)
    assert flow.scalars()["first_over_last"] == pytest.approx(s**6 / flow.hidden[0])  # in the order of reading
    assert flow.heard.tolist() == [3, 2, 2, 2, 1, 1, 1]
    assert flow.horizon == pytest.approx(-1 / math.log(s))


def test_gain_of_a_reverse_cell_is_the_same_where_a_shorter_sequence_ends():
    module = linear(0.5 * IDENTITY, bidirectional=True)
    flow = flow_of(module, pack(silence(2, 7), (4, 7)), cell="l0_reverse", loss=lambda o: o[:, 0, UNITS:].sum())
    np.testing.assert_allclose(flow.gain[:-1], 0.5, rtol=EXACT)  # 0.354 at step 4


def test_calls_of_unlike_length_are_described_like_one_call_of_all_sequences():
    module, x = make("lstm").double(), numbers(5, 7, INPUTS)
    lengths, weights = torch.tensor([4, 4, 7, 7, 7]), numbers(5, UNITS)
    rows = {4: slice(2), 7: slice(2, 5)}
    found = flow_of(module, x[:2, :4], x[2:], loss=lambda o: (o[:, -1] * weights[rows[o.shape[1]]]).sum())
    whole = flow_of(
        module, pack(x, lengths), loss=lambda outputs: (outputs[torch.arange(5), lengths - 1] * weights).sum()
    )
    for name in ("lengths", "times", "heard"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    for name in ("hidden", "memory", "gain", "credit"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-11)
    assert found.horizon == pytest.approx(whole.horizon)
    assert found.sequences == 5


def constant(s):
    """A relu network that stays at ``1 / (1 - s)`` in every unit when it starts there."""
    return linear(s * IDENTITY, nonlinearity="relu"), torch.full((1, 3, UNITS), 1 / (1 - s), dtype=torch.float64)


@pytest.mark.parametrize("steps", [6, 7])
def test_share_of_the_first_half_in_training_the_recurrent_matrix_is_a_geometric_sum(steps):
    s = 0.7
    module, start = constant(s)
    flow = flow_of(module, silence(3, steps), hx=start, loss=lambda outputs: outputs[:, -1].sum())
    left = steps - 1 - np.arange(steps)
    # |sum over sequences of delta h^T|, delta = s^k and h = 1 / (1 - s) in every unit.
    np.testing.assert_allclose(flow.contribution, 3 * s**left * UNITS / (1 - s), rtol=EXACT)
    early = (s ** (steps - steps // 2) - s**steps) / (1 - s**steps)
    assert flow.scalars()["early_contribution"] == pytest.approx(early, rel=EXACT)


def test_contributions_of_several_calls_add_up_at_positions_as_the_user_counts():
    s = 0.7
    module, start = constant(s)
    flow = flow_of(module, silence(3, 5), silence(3, 7), hx=start, loss=lambda outputs: outputs[:, -1].sum())
    five, seven = (s ** np.maximum(steps - 1 - np.arange(7), 0) * (np.arange(7) < steps) for steps in (5, 7))
    np.testing.assert_allclose(flow.contribution, 3 * UNITS / (1 - s) * (five + seven), rtol=EXACT)


def test_worst_rebuild_error_and_largest_tolerance_of_all_calls_are_kept():
    first, second = gradients_of(linear(IDENTITY), silence(), silence())["l0"]
    looser = dataclasses.replace(second.trace, tolerance=0.5)
    parts = [dataclasses.replace(first, rebuild_error=0.25), dataclasses.replace(second, trace=looser)]
    for order in (parts, parts[::-1]):
        flow = gradient_flow(order)
        assert (flow.rebuild_error, flow.tolerance) == (0.25, 0.5)


def test_nothing_to_describe_is_refused():
    with pytest.raises(ValueError, match="there are no gradients to describe"):
        gradient_flow([])
