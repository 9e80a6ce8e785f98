import math

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.gates import BINS, LONGEST, gate_statistics
from rnn_callbacks.cells import cells

from .. import reference
from .known_gates import FAMILIES, INPUTS, UNITS, hear, make, pack, random_inputs, statistics, with_biases

BATCHES = ((2, 11), (7, 13))  # sequences and steps of two calls
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}  # of means over a few hundred numbers near 1


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_zero_weights_leave_every_gate_half_open(kind):
    found = statistics(with_biases(make(kind)), random_inputs(7, 11))
    assert found.rebuild_error == 0
    assert np.array_equal(found.mean[:-1], np.full((len(found.parts) - 1, UNITS), 0.5))
    assert not found.std.any()
    assert not found.closed[:-1].any()
    assert not found.open.any()
    assert (found.closed[-1] == 1).all()  # the candidate is tanh(0)
    assert (found.histogram[:-1, :, BINS // 2] == 77).all()
    np.testing.assert_allclose(found.timescale, 1 / math.log(2), rtol=1e-6)


@pytest.mark.parametrize(("bias", "closed", "opened"), [(-3.0, 1, 0), (-1.0, 0, 0), (1.0, 0, 0), (3.0, 0, 1)])
def test_forget_gate_without_weights_is_the_sigmoid_of_its_bias(bias, closed, opened):
    found = statistics(with_biases(make("lstm"), forget=bias), random_inputs(7, 11))
    forget = found.parts.index("forget")
    np.testing.assert_allclose(found.mean[forget], 1 / (1 + math.exp(-bias)), rtol=1e-6)
    assert (found.closed[forget] == closed).all()
    assert (found.open[forget] == opened).all()


@pytest.mark.parametrize("tau", [2.0, 10.0, 100.0])
def test_timescale_is_that_at_which_the_memory_fades(tau):
    module = with_biases(make("lstm"), forget=math.log(tau - 1))
    begin = torch.full((1, 7, UNITS), 0.8)
    found = statistics(module, random_inputs(7, 11), hx=(torch.zeros_like(begin), begin))
    share = 1 - 1 / tau
    np.testing.assert_allclose(found.timescale, -1 / math.log(share), rtol=1e-5)  # float32 logits, magnified by tau
    np.testing.assert_allclose(found.state_profile[2], 0.8 * share ** np.arange(1, 12), rtol=1e-5)


def test_timescale_of_a_gru_comes_from_what_its_update_gate_leaves():
    module = with_biases(make("gru"), z=math.log(9))
    found = statistics(module, random_inputs(7, 11), hx=torch.full((1, 7, UNITS), 0.8))
    np.testing.assert_allclose(found.mean[found.parts.index("update")], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found.timescale, -1 / math.log(0.9), rtol=1e-5)
    np.testing.assert_allclose(found.state_profile[0], 0.8 * 0.9 ** np.arange(1, 12), rtol=1e-5)


@pytest.mark.parametrize(("kind", "gate", "sign"), [("lstm", "forget", 1), ("gru", "update", -1)])
def test_timescale_of_an_alternating_gate_averages_logarithms(kind, gate, sign):
    # Retention alternates between 0.5 and 0.99. The truth is -2 / (ln 0.5 + ln 0.99) = 2.84; 1 / (1 - mean) is 3.92.
    module = with_biases(make(kind))
    with torch.no_grad():
        module.weight_ih_l0[UNITS : 2 * UNITS, 0] = 1.0  # torch's forget and z rows alike
    x = torch.zeros(7, 12, INPUTS)
    x[:, 1::2, 0] = math.log(0.99 / 0.01)
    found = statistics(module, x)
    np.testing.assert_allclose(found.timescale, -2 / (math.log(0.5) + math.log(0.99)), rtol=1e-6)
    np.testing.assert_allclose(found.mean[found.parts.index(gate)], 0.745 if sign > 0 else 0.255, rtol=1e-6)


@pytest.mark.parametrize("bias", [30.0, 200.0, 1e30])
def test_timescale_of_a_unit_that_forgets_nothing_is_the_longest_reported(bias):
    # log sigmoid(200) is exactly 0 in float32.
    found = statistics(with_biases(make("lstm"), forget=bias), random_inputs(2, 7))
    assert (found.timescale == LONGEST).all()


def test_quantiles_of_the_timescale_are_those_over_units():
    tau = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    forget = torch.special.logit(torch.exp(-1 / tau))
    scalars = statistics(with_biases(make("lstm"), forget=forget), random_inputs(2, 7)).scalars()
    named = [scalars[f"timescale/{name}"] for name in ("q10", "q50", "q90")]
    np.testing.assert_allclose(named, [1.4, 3.0, 4.6], rtol=1e-5)


def test_write_balance_is_what_is_written_over_what_is_forgotten():
    found = statistics(with_biases(make("lstm"), input=-1.0, forget=2.0), random_inputs(2, 7))
    np.testing.assert_allclose(found.write_balance, (1 + math.exp(2)) / (1 + math.exp(1)), rtol=1e-6)
    chrono = torch.rand(UNITS, generator=torch.Generator().manual_seed(0)) * 4
    found = statistics(with_biases(make("lstm"), input=-chrono, forget=chrono), random_inputs(2, 7))
    np.testing.assert_allclose(found.write_balance, 1.0, rtol=1e-5)
    assert not len(statistics(make("gru"), random_inputs(2, 7)).write_balance)


@pytest.mark.parametrize("cell", ["l0", "l0_reverse"])
@pytest.mark.parametrize("lengths", [(11, 11, 11), (4, 11, 1)])
def test_drift_of_an_integrator_is_what_it_adds_per_step_it_reads(cell, lengths):
    module = with_biases(make("lstm", bidirectional=True), input=40.0, forget=40.0, cell=0.1)
    with torch.no_grad():
        module.bias_ih_l0_reverse.copy_(module.bias_ih_l0)
    found = statistics(module, pack(random_inputs(3, 11), lengths), cell=cell)
    assert found.memory_drift == pytest.approx(math.tanh(0.1), rel=1e-5)  # c_t = (t + 1) tanh 0.1
    assert found.scalars()["memory/drift"] == found.memory_drift
    sizes = np.concatenate([np.arange(1, n + 1) for n in lengths]) * math.tanh(0.1)
    assert found.scalars()["memory/mean_abs"] == pytest.approx(sizes.mean(), rel=1e-5)
    assert found.memory_saturated == pytest.approx((np.tanh(sizes) > 0.9).mean())  # c = 1.4955, 1.5947 beside 1.4722


@pytest.mark.parametrize(("size", "share"), [((11.0, 13.0, -13.0), 2 / 5), ((-11.0, -13.0, 0.0), 1 / 5)])
def test_blown_up_counts_the_logits_beyond_twelve_on_either_side(size, share):
    module = with_biases(make("lstm"))
    with torch.no_grad():
        module.weight_ih_l0[:UNITS, 0] = torch.tensor([*size, 1.0, 0.0])
    x = torch.zeros(7, 10, INPUTS)
    x[:, :3, 0] = 1.0
    found = statistics(module, x)
    np.testing.assert_allclose(found.blown_up, [0.3 * share, 0, 0])  # input, forget, output


def test_gate_that_is_open_or_closed_has_two_peaks():
    module = with_biases(make("lstm"))
    with torch.no_grad():
        module.weight_ih_l0[3 * UNITS :, 0] = 1.0  # output
    x = torch.zeros(7, 10, INPUTS)
    x[:, :, 0] = -4.0
    x[:, :3, 0] = 4.0
    counts = statistics(module, x).histogram[2]
    assert (counts[:, 0] == 49).all()
    assert (counts[:, -1] == 21).all()
    assert not counts[:, 1:-1].any()


def test_relu_that_explodes_is_still_measured():
    # h_t = 1 + 10 h_{t-1}; at 30 steps 1e29, whose square float32 does not hold and whose bin no int32 can count.
    module = with_biases(make("rnn_relu"))
    with torch.no_grad():
        module.bias_ih_l0.fill_(1.0)
        module.weight_hh_l0.copy_(10 * torch.eye(UNITS))
    found = statistics(module, random_inputs(7, 30))
    truth = (10.0 ** np.arange(1, 31) - 1) / 9
    np.testing.assert_allclose(found.state_profile[0], truth, rtol=1e-5)
    np.testing.assert_allclose(found.mean[0], truth.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.std[0], truth.std(), rtol=1e-5)
    assert (found.histogram[0, :, -1] == 7 * 30).all()
    # All units are equal: their spread is rounding of the float64 sums, 1e-8 of the size.
    assert (found.state_profile[1] <= 1e-7 * truth).all()
    assert found.rebuild_error < found.tolerance
    assert found.scalars() == {"hidden/mean_abs": pytest.approx(truth.mean(), rel=1e-5), "hidden/near_zero": 0.0}


def test_single_step_of_a_single_unit_is_enough():
    for family in (nn.GRU, nn.LSTM, nn.RNN):
        torch.manual_seed(0)
        found = statistics(family(1, 1, batch_first=True), torch.randn(1, 1, 1))
        assert found.steps == 1
        assert not found.std.any()
        assert np.isfinite(list(found.scalars().values())).all()
        assert found.memory_drift == 0.0


def reference_steps(module, cell, x, lengths):
    """Of all steps, through the documented equations: position, steps read, parts (N, G + 1, H), h and c."""
    rows = []
    zeros = torch.zeros(len(cells(module)), x.shape[0], UNITS, dtype=x.dtype)
    for b, length in enumerate(lengths):
        found = reference.rebuild(module, x[b, :length], zeros[:, b, : cell.output_size], zeros[:, b])[0]
        for t, (gates, h, c) in enumerate(found[cell.name]):
            parts = torch.stack([gates[part] for part in cell.parts])
            parts[-1] = parts[-1].abs()
            rows.append((t, length - 1 - t if cell.place.reverse else t, parts.numpy(), h.numpy(), c.numpy()))
    return [np.array(column, dtype=float) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_statistics_are_those_of_the_documented_equations(kind, packed, dtype):
    module = make(kind, 2, bidirectional=True, dtype=dtype)
    xs = [2 * random_inputs(*size, dtype=dtype, seed=seed) for seed, size in enumerate(BATCHES)]
    lengths = [[1, 11], [5, 13, 2, 3, 7, 1, 4]] if packed else [[t] * b for b, t in BATCHES]
    heard = hear(module, *map(pack, xs, lengths)) if packed else hear(module, *xs)
    for name, trace in heard.items():
        check_against_reference(gate_statistics(trace, time_bins=3), module, trace[0].cell, xs, lengths)
        assert trace[0].cell.name == name


def check_against_reference(found, module, cell, xs, lengths):
    roads = [reference_steps(module, cell, *call) for call in zip(xs, lengths, strict=True)]
    times, read, parts, h, c = (np.concatenate(columns) for columns in zip(*roads, strict=True))
    close = {"rtol": ROUNDING[xs[0].dtype], "atol": ROUNDING[xs[0].dtype]}
    assert found.parts == cell.parts
    assert found.steps == len(times) == sum(map(sum, lengths))
    assert found.lengths.tolist() == [length for call in lengths for length in call]
    assert found.sequences == len(found.lengths)
    assert found.nonfinite == 0
    assert found.rebuild_error < found.tolerance
    np.testing.assert_allclose(found.mean, parts.mean(0), **close)
    np.testing.assert_allclose(found.std, parts.std(0), **close)
    assert (found.histogram.sum(-1) == found.steps).all()
    np.testing.assert_allclose(found.closed, (parts < 0.1).mean(0))
    np.testing.assert_allclose(found.open, (parts > 0.9).mean(0))
    for part, counts in enumerate(found.histogram):
        for unit in range(UNITS):
            clipped = np.minimum(parts[:, part, unit], 1)  # a relu's values beyond 1 are in the last bin
            assert counts[unit].tolist() == np.histogram(clipped, BINS, (0, 1))[0].tolist()
    logits = np.log(parts[:, :-1]) - np.log1p(-parts[:, :-1])
    np.testing.assert_allclose(found.blown_up, (abs(logits) > 12).mean((0, 2)))
    if cell.retention:
        kept = parts[:, cell.gates.index(cell.retention)]
        kept = kept if cell.retains_when_open else 1 - kept
        np.testing.assert_allclose(found.log_retention, np.log(kept).mean(0), **close)
    longest = max(map(max, lengths))
    assert found.unit_profile.shape == (len(cell.parts), UNITS, 3)
    for t in range(longest):
        at = times == t
        assert found.times[t] == at.sum()
        np.testing.assert_allclose(found.profile[:, t], parts[at].mean((0, 2)), **close)
        states = [h[at], c[at]] if cell.memory_size else [h[at]]
        truth = [moment for state in states for moment in (abs(state).mean(), state.std())]
        np.testing.assert_allclose(found.state_profile[:, t], truth, **close)
    for third in range(3):
        at = times * 3 // longest == third
        np.testing.assert_allclose(found.unit_profile[:, :, third], parts[at].mean(0), rtol=1e-5, atol=1e-6)
    if cell.memory_size:
        assert found.memory_saturated == pytest.approx((abs(np.tanh(c)) > 0.9).mean())
        assert found.memory_drift == pytest.approx(np.polyfit(read, abs(c).mean(1), 1)[0], abs=1e-6)


def test_spread_of_a_saturated_gate_is_that_of_float64():
    # f = sigmoid(8 + noise): mean 0.9997, std 2e-6. The mean of squares less the squared mean, in float32, is off by
    # 1e-7 and so says anything from 0 to 3e-4; what is left here is the grain of float32 near 1, 6e-8.
    module = with_biases(make("lstm"), forget=8.0)
    with torch.no_grad():
        module.weight_ih_l0[UNITS : 2 * UNITS, 0] = 0.01
    x = random_inputs(7, 211)
    logits = 8.0 + 0.01 * x[..., 0].double().numpy()
    truth = (1 / (1 + np.exp(-logits))).std()
    np.testing.assert_allclose(statistics(module, x).std[1], truth, rtol=0, atol=6e-8)
    assert 2e-6 < truth < 5e-6


def test_spread_of_states_that_hardly_differ_is_that_of_float64():
    # Memories near 50 that differ by 1e-3: float32 squares of them are 2500 with a grain of 2e-4.
    module = with_biases(make("lstm"), input=40.0, forget=40.0, cell=40.0)
    begin = torch.linspace(0, 1e-3, 7)[None, :, None].expand(1, 7, UNITS).contiguous()
    found = statistics(module, random_inputs(7, 53), hx=(torch.zeros_like(begin), begin))
    truth = begin[0, :, 0].double().std(correction=0)
    np.testing.assert_allclose(found.state_profile[3], truth, rtol=0, atol=4e-6)  # grain of float32 at 50
