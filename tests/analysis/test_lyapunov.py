"""Exponents against closed forms, determinants, and how explicit Jacobians stretch volumes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.lyapunov import COLLAPSED, lyapunov_exponents
from rnn_callbacks.cells import Cell, Place, cells
from rnn_callbacks.rebuild import flip

from .known_gates import FAMILIES, INPUTS, UNITS, hear, make, pack

SEQUENCES, STEPS = 3, 13
LENGTHS = (11, 13, 4)
EXACT = 1e-12


def numbers(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(units=UNITS, seed=3):
    return torch.linalg.qr(numbers(units, units, seed=seed)).Q


def at_zero(recurrent, steps=STEPS, *, sequences=SEQUENCES, dtype=torch.float64):
    """The trace of a tanh network that rests at zero, where its Jacobian is its recurrent matrix."""
    module = nn.RNN(INPUTS, len(recurrent), batch_first=True).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.weight_hh_l0.copy_(recurrent)
    return hear(module, torch.zeros(sequences, steps, INPUTS, dtype=dtype))["l0"]


def jacobians(trace, row):
    """Of every step of one sequence, ``(T, D, D)``, by automatic differentiation of the cell's own step."""
    state, found = trace.initial[row : row + 1], []
    for x in trace.inputs[row, : trace.lengths[row]]:
        step = torch.autograd.functional.jacobian(lambda s, x=x: trace.cell.step(x[None], s)[0], state)
        found.append(step[:, 0])
        with torch.no_grad():
            state = trace.cell.step(x[None], state)
    return torch.stack(found)


def log_volumes(tangents):
    """Of the spans of the first 1, 2, ... columns."""
    return torch.stack([torch.linalg.svdvals(tangents[:, : k + 1]).log().sum() for k in range(tangents.shape[1])])


def wild(kind, dtype=torch.float64):
    """A module whose steps neither keep all directions apart by little nor by too much for one long product."""
    module = make(kind).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5 if kind == "rnn_relu" else 2.0)
        if kind == "rnn_relu":  # all units active: where one is off, nothing is left of its direction
            module.bias_ih_l0.fill_(9.0)
    return module


@pytest.mark.parametrize("warm_up", [0.0, 0.5])
@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_scaled_rotation_stretches_every_direction_alike(s, warm_up):
    found = lyapunov_exponents(at_zero(s * turn()), warm_up=warm_up)
    np.testing.assert_allclose(found.exponents, [math.log(s)] * UNITS, atol=EXACT)
    np.testing.assert_allclose(found.by_sequence, math.log(s) * np.ones((SEQUENCES, UNITS)), atol=EXACT)
    assert found.scalars() == {"lyapunov": found.exponents[0]}
    assert found.steps == SEQUENCES * (STEPS - int(warm_up * STEPS))
    assert found.cell == "l0"


def test_units_on_their_own_have_the_logs_of_their_weights_largest_first():
    weights = [0.5, 0.9, 0.2, 0.7, 0.3]
    found = lyapunov_exponents(at_zero(torch.diag(torch.tensor(weights, dtype=torch.float64)), 211), warm_up=0.5)
    # The directions of 0.9 and 0.7 part by (7 / 9)^105 before anything counts.
    np.testing.assert_allclose(found.exponents, np.log(sorted(weights, reverse=True)), atol=1e-9)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("kind", FAMILIES)
def test_all_exponents_add_up_to_the_mean_log_of_the_determinant(kind):
    (trace,) = hear(wild(kind), pack(numbers(SEQUENCES, STEPS, INPUTS), LENGTHS))["l0"]
    found = lyapunov_exponents([trace], count=97, warm_up=0.0)
    logs = [jacobians(trace, row).det().abs().log() for row in range(SEQUENCES)]
    assert found.exponents.shape == (trace.cell.state_size,)
    # Up to 16 nats between directions, and more where a stretch is steeper than the last, leave 7 digits of 16.
    np.testing.assert_allclose(found.by_sequence.sum(1), [log.mean() for log in logs], rtol=1e-6)
    assert found.exponents.sum() == pytest.approx(float(torch.cat(logs).mean()), rel=1e-6)
    assert found.steps == sum(LENGTHS)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("warm_up", [0.0, 0.24])
@pytest.mark.parametrize("kind", FAMILIES)
def test_leading_exponents_say_how_products_of_jacobians_stretch_volumes(kind, warm_up):
    (trace,) = hear(wild(kind), pack(numbers(SEQUENCES, STEPS, INPUTS), LENGTHS))["l0"]
    count, skipped = 3, int(warm_up * STEPS)
    found = lyapunov_exponents([trace], count=count, warm_up=warm_up, seed=7)
    assert found.exponents.shape == (count,)
    start = torch.linalg.qr(numbers(SEQUENCES, trace.cell.state_size, count, seed=7)).Q
    sums = np.zeros(count)
    for row, length in enumerate(LENGTHS):
        tangents, before = start[row], 0.0
        for step, jacobian in enumerate(jacobians(trace, row)):
            tangents = jacobian @ tangents
            if step + 1 == skipped:
                before = log_volumes(tangents)
        grown = np.diff(log_volumes(tangents) - before, prepend=0.0)
        np.testing.assert_allclose(found.by_sequence[row], grown / (length - skipped), rtol=1e-6)
        sums += grown
    exponents = sorted(sums / (sum(LENGTHS) - 3 * skipped), reverse=True)
    np.testing.assert_allclose(found.exponents, exponents, rtol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_long_run_has_the_exponents_of_explicit_jacobians_whatever_the_start(kind):
    (trace,) = hear(wild(kind), numbers(1, 499, INPUTS))["l0"]
    found = lyapunov_exponents([trace], count=2, warm_up=0.2)
    tangents, sums = torch.eye(trace.cell.state_size, dtype=torch.float64)[:, :2], torch.zeros(2).double()
    for step, jacobian in enumerate(jacobians(trace, 0)):
        tangents, stretch = torch.linalg.qr(jacobian @ tangents)
        if step >= 99:
            sums += stretch.diagonal().abs().log()
    # Directions that part by 0.1 nats per step still differ by e^-10 after the warm-up.
    np.testing.assert_allclose(found.exponents, sums / 400, atol=1e-3)


def test_sequence_that_ends_within_the_warm_up_is_left_out():
    lengths = (11, 13, 4)
    (trace,) = hear(make("gru").double(), pack(numbers(SEQUENCES, STEPS, INPUTS), lengths))["l0"]
    found = lyapunov_exponents([trace], count=2, warm_up=0.39)
    assert found.by_sequence.shape == (2, 2)
    assert found.steps == (11 - 5) + (13 - 5)
    mean = (6 * found.by_sequence[0] + 8 * found.by_sequence[1]) / 14
    np.testing.assert_allclose(found.exponents, sorted(mean, reverse=True), rtol=1e-12)


def steep(spread, steps, dtype, units=7):
    """Rotated so that no direction is an axis; exponents from 0 down to minus the spread."""
    basis, exponents = turn(units, seed=11), -torch.linspace(0, spread, units, dtype=torch.float64)
    return at_zero(basis @ exponents.exp().diag() @ basis.T, steps, sequences=1, dtype=dtype), exponents


@pytest.mark.parametrize("spread", [2.0, 3.5, 5.0, 7.9])
def test_single_precision_keeps_the_tail_of_a_wide_spectrum(spread):
    single, exponents = steep(spread, 97, torch.float32)
    double, _ = steep(spread, 97, torch.float64)
    found, true = (lyapunov_exponents(trace, warm_up=0.1).exponents for trace in (single, double))
    # e^-8 between directions leaves 4 of single precision's 7 digits: 4e-4 at worst, 3e-5 measured.
    np.testing.assert_allclose(found, true, atol=1e-4)
    np.testing.assert_allclose(lyapunov_exponents(double, warm_up=0.7).exponents, exponents, atol=1e-3)


def test_spectrum_wider_than_double_precision_in_ten_steps_is_kept():
    trace, exponents = steep(12.0, 97, torch.float64)
    np.testing.assert_allclose(lyapunov_exponents(trace, warm_up=0.7).exponents, exponents, atol=1e-9)


@pytest.mark.parametrize("spread", [2.6, 3.5, 5.0])
def test_end_of_the_warm_up_loses_no_direction(spread):
    found, true = (
        lyapunov_exponents(steep(spread, 23, dtype)[0]).exponents for dtype in (torch.float32, torch.float64)
    )
    np.testing.assert_allclose(found, true, atol=1e-3)  # 0.05 to 0.2 measured


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_direction_of_which_nothing_is_left_has_collapsed_and_harms_no_other(dtype):
    dead = torch.zeros(UNITS, UNITS, dtype=torch.float64)
    assert (lyapunov_exponents(at_zero(dead, dtype=dtype)).exponents == COLLAPSED).all()
    dead[:2, :2] = 0.5 * turn(2)
    found = lyapunov_exponents(at_zero(dead, dtype=dtype), warm_up=0.0, count=UNITS)
    assert (found.exponents[2:] == COLLAPSED).all()
    late = lyapunov_exponents(at_zero(dead, dtype=dtype), warm_up=0.5, count=UNITS)
    np.testing.assert_allclose(late.exponents[:2], math.log(0.5), atol=1e-6)
    assert (late.exponents[2:] == COLLAPSED).all()
    assert (late.by_sequence[:, 2:] == COLLAPSED).all()
    shift = torch.eye(UNITS, dtype=torch.float64).roll(1, 0).tril()
    assert (lyapunov_exponents(at_zero(shift, dtype=dtype)).exponents == COLLAPSED).all()


@pytest.mark.parametrize(("gain", "chaotic"), [(0.5, False), (3.0, True)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_network_is_chaotic_with_strong_weights_and_forgets_with_weak_ones(gain, chaotic, seed):
    units = 61
    module = nn.RNN(INPUTS, units, batch_first=True, bias=False)
    with torch.no_grad():
        module.weight_hh_l0.copy_(gain / math.sqrt(units) * numbers(units, units, seed=seed))
        module.weight_ih_l0.zero_()
    start = numbers(1, 2, units).float()
    (trace,) = hear(module, torch.zeros(2, 151, INPUTS), hx=start)["l0"]
    largest = lyapunov_exponents([trace], count=1, warm_up=0.3).exponents[0]
    assert (largest > 0.1) == chaotic
    if not chaotic:  # at rest at zero the recurrent matrix is the Jacobian; complex pairs come round slowly
        radius = np.abs(np.linalg.eigvals(module.weight_hh_l0.detach().numpy())).max()
        assert largest == pytest.approx(math.log(radius), abs=0.02)


def test_reverse_cell_is_followed_in_the_order_in_which_it_reads():
    module, x = make("gru", bidirectional=True).double(), numbers(SEQUENCES, STEPS, INPUTS)
    forward = make("gru").double()
    names = [name for name, _ in forward.named_parameters()]
    forward.load_state_dict({name: module.state_dict()[f"{name}_reverse"] for name in names})
    turned = flip(x, torch.tensor(LENGTHS))
    (trace,) = hear(module, pack(x, LENGTHS))["l0_reverse"]
    (true,) = hear(forward, pack(turned, LENGTHS))["l0"]
    found = lyapunov_exponents([trace])
    assert found.cell == "l0_reverse"
    np.testing.assert_allclose(found.by_sequence, lyapunov_exponents([true]).by_sequence, rtol=1e-9)


class Own(nn.Module):
    """A module of the user's around one of torch's."""

    batch_first = True

    def __init__(self, core):
        super().__init__()
        self.hidden = [core]  # from named_modules

    def forward(self, x, hx=None):
        return self.hidden[0](x, hx)


class OwnCell(Cell):
    """Steps as the cell within, and says nothing of its weights."""

    def __init__(self, within):
        sizes = {name: getattr(within, name) for name in ("input_size", "units", "output_size", "memory_size")}
        super().__init__(Place("l0"), **sizes)
        self.gates, self.candidate, self._within = within.gates, within.candidate, within

    def activations(self, inputs, hidden, memory=None):
        return self._within.activations(inputs, hidden, memory)

    def follow(self, inside, hidden, memory):
        return self._within.follow(inside, hidden, memory)


@cells.register
def _(module: Own):
    return (OwnCell(cells(module.hidden[0])[0]),)


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh"])
def test_cell_of_the_user_has_the_exponents_of_the_same_equations_built_in(kind):
    core, x = make(kind).double(), numbers(SEQUENCES, STEPS, INPUTS)
    own = lyapunov_exponents(hear(Own(core), x)["l0"], count=4)
    built_in = lyapunov_exponents(hear(core, x)["l0"], count=4)
    np.testing.assert_allclose(own.by_sequence, built_in.by_sequence, rtol=1e-9)


def test_first_sequences_over_several_calls_are_followed_and_no_more():
    module, x = make("gru").double(), numbers(5, STEPS, INPUTS)
    traces = hear(module, x[:3], x[3:])["l0"]
    found = lyapunov_exponents(traces, sequences=4, warm_up=0.0)
    assert found.steps == 4 * STEPS
    first = lyapunov_exponents(traces[:1], warm_up=0.0)
    second = lyapunov_exponents(traces[1:], sequences=1, warm_up=0.0)
    np.testing.assert_array_equal(found.by_sequence, np.concatenate([first.by_sequence, second.by_sequence]))


def test_same_seed_gives_the_same_exponents_and_another_seed_others():
    traces = hear(make("lstm"), numbers(SEQUENCES, STEPS, INPUTS).float())["l0"]
    state = torch.get_rng_state()
    first, again, other = (lyapunov_exponents(traces, seed=seed).by_sequence for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_to_follow_is_refused():
    traces = hear(make("gru"), torch.zeros(SEQUENCES, STEPS, INPUTS))["l0"]
    with pytest.raises(ValueError, match="there are no steps to follow"):
        lyapunov_exponents([])
    with pytest.raises(ValueError, match="there are no steps to follow"):
        lyapunov_exponents(traces, sequences=0)
    with pytest.raises(ValueError, match="there are no steps to follow"):
        lyapunov_exponents(traces, warm_up=1.0)
