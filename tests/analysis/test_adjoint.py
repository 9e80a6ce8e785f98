"""The total gradient of every step against autograd through an unrolled loop, and torch's own gradient of biases."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.capture import Recorder
from rnn_callbacks.rebuild import flip

from .. import reference
from ..hear import calls_of
from ..reference_gradients import gradients, unrolled
from ..test_own_cells import PeepholeCell, PeepholeStack

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


def worst_error(found, loops):
    """Largest difference to what autograd left on the unrolled states, relative to a sequence's largest gradient."""
    worst = 0.0
    for cell in found:
        total = in_users_order(cell)
        for row, (states, outputs) in enumerate(loops):
            of_h, of_c = gradients(states[cell.trace.cell.name])
            true = torch.cat([of_h, of_c], 1) if cell.trace.cell.memory_size else of_h
            assert true.any()
            apart = (total[row, : len(outputs)] - true).abs().max() / true.abs().max()
            worst = max(worst, float(apart))
    return worst


def in_users_order(cell):
    """Total gradients ``(B, T, D)``, steps as the user counts them."""
    total = cell.total.transpose(0, 1)
    return flip(total, cell.trace.lengths) if cell.trace.cell.place.reverse else total


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

        assert worst_error(found, loops) <= TOLERANCE[dtype]
        for cell in found:
            assert cell.rebuild_error <= TOLERANCE[dtype]
            if bias:
                own = getattr(module, f"bias_hh_{cell.trace.cell.name}").grad
                assert (cell.bias.sum(0) - own).abs().max() <= 2 * TOLERANCE[dtype] * own.abs().max()
        handed = found[0].input_gradients.transpose(0, 1)
        if bidirectional:
            handed = handed + flip(found[1].input_gradients.transpose(0, 1), call.lengths)
        for row, length in enumerate(lengths):
            assert (handed[row, :length] - of_inputs[row, :length]).abs().max() <= TOLERANCE[dtype] * 10


# ---- closed forms ----------------------------------------------------------------------------------------------------


def elman(recurrent, dtype=torch.float64, **options):
    """An ``nn.RNN`` without inputs to speak of and with this recurrent matrix."""
    module = nn.RNN(INPUTS, len(recurrent), batch_first=True, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.weight_hh_l0.copy_(recurrent)
    return module


def orthogonal(units=UNITS):
    return torch.linalg.qr(torch.randn(units, units, generator=torch.Generator().manual_seed(7)).double())[0]


def recorded(module, run, **options):
    """The one call heard while ``run`` gave a loss, which then went backward."""
    with Recorder(module, gradients=True, **options) as recorder:
        loss = run()
    loss.backward()
    (call,) = calls_of(recorded_without_fault(recorder))
    return call


def recorded_without_fault(recorder):
    assert not recorder.faults
    return recorder


def from_last_step(module, direction, *, steps=STEPS, initial=None, impulses=3):
    """The only cell, where the loss is the last output along a direction and the inputs are zero."""
    dtype = module.weight_hh_l0.dtype
    x = torch.zeros(SEQUENCES, steps, INPUTS, dtype=dtype, requires_grad=True)
    call = recorded(module, lambda: (module(x, initial)[0][:, -1] @ direction.to(dtype)).sum())
    (cell,) = total_gradients(call, impulses=impulses)
    return cell


LAGS = torch.arange(STEPS, dtype=torch.float64)
EXACT = 1e-13  # a product of a dozen matrices of size 5 in float64
all_the_way = pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])


@all_the_way
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_scaled_rotation_scales_the_gradient_at_every_step(scale, nonlinearity):
    turn = scale * orthogonal()
    module, initial = elman(turn, nonlinearity=nonlinearity), None
    if nonlinearity == "relu":  # all units active: the bias holds the state at ones
        with torch.no_grad():
            module.bias_ih_l0.copy_(1 - turn.sum(1))
        initial = torch.ones(1, SEQUENCES, UNITS).double()
    direction = torch.arange(1.0, 1 + UNITS).double()
    cell = from_last_step(module, direction, initial=initial)
    expected = direction.norm() * scale ** LAGS.flip(0)
    assert (cell.total.norm(dim=2) / expected[:, None] - 1).abs().max() < EXACT
    assert (cell.sent / expected[:, None] - 1).abs().max() < EXACT
    assert (cell.received[1:] / (scale * expected[1:, None]) - 1).abs().max() < EXACT
    assert (cell.impulses.sizes - LAGS * math.log(scale)).abs().max() < EXACT
    assert cell.impulses.lags.tolist() == [STEPS - 1] * SEQUENCES
    assert not cell.direct[:-1].any()
    assert torch.equal(cell.direct[-1], direction.expand(SEQUENCES, -1))


def test_total_gradient_keeps_its_direction_in_time():
    # Backwards in time acts the transposed matrix; a rotation turned the wrong way has the same norms.
    turn, direction = orthogonal(), torch.arange(1.0, 1 + UNITS).double()
    cell = from_last_step(elman(turn), direction)
    for lag in range(STEPS):
        expected = torch.linalg.matrix_power(turn.T, lag) @ direction
        assert (cell.total[STEPS - 1 - lag] - expected).abs().max() < EXACT * expected.norm()


@pytest.mark.parametrize("bias", [-1.0, 0.0, 3.0])
def test_lstm_without_weights_forgets_the_gradient_by_its_forget_gate(bias):
    module = nn.LSTM(INPUTS, UNITS, batch_first=True).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_hh_l0[UNITS : 2 * UNITS] = bias
    direction = torch.arange(1.0, 1 + UNITS).double()
    cell = from_last_step(module, direction)
    of_h, of_c = cell.total.split(UNITS, dim=2)
    expected = torch.sigmoid(torch.tensor(bias).double()) ** LAGS.flip(0)  # c = 0, so dh/dc is the output gate, 1/2
    assert (of_c - expected[:, None, None] * direction / 2).abs().max() < EXACT * direction.norm()
    assert not of_h[:-1].any()
    decay = LAGS * math.log(1 / (1 + math.exp(-bias))) - math.log(2)
    assert (cell.impulses.sizes - decay).abs().max() < EXACT


def gru_with_gates(reset, keep):
    """A GRU whose gates its bias holds; 40 is open, -40 closed, to the last digit of float64."""
    torch.manual_seed(1)
    module = nn.GRU(INPUTS, UNITS, batch_first=True).double()
    with torch.no_grad():
        module.bias_ih_l0[:UNITS] = reset
        module.bias_ih_l0[UNITS : 2 * UNITS] = keep
    return module


def test_frozen_gru_hands_the_gradient_on_unchanged():
    direction = torch.arange(1.0, 1 + UNITS).double()
    initial = torch.full((1, SEQUENCES, UNITS), 0.3).double()
    cell = from_last_step(gru_with_gates(0.0, 40.0), direction, initial=initial)
    assert (cell.total - direction).abs().max() < EXACT
    assert cell.impulses.sizes.abs().max() < EXACT


def test_gru_with_open_gates_has_the_gradients_of_an_elman_network():
    gru, plain = gru_with_gates(40.0, -40.0), nn.RNN(INPUTS, UNITS, batch_first=True).double()
    new = slice(2 * UNITS, None)
    plain.load_state_dict({name: value[new] for name, value in gru.state_dict().items()})
    x, found = inputs_of(SEQUENCES, STEPS), []
    for module in (gru, plain):
        call = recorded(module, lambda module=module: (module(x)[0] ** 3).sum())
        found.append(total_gradients(call, inputs=True)[0])
    assert (found[0].total - found[1].total).abs().max() < EXACT * found[1].total.abs().max()
    assert (found[0].input_gradients - found[1].input_gradients).abs().max() < EXACT
    assert (found[0].bias[:, new] - found[1].bias).abs().max() < EXACT * found[1].bias.abs().max()
    assert found[0].bias[:, : 2 * UNITS].abs().max() < EXACT  # closed gates do not move
    assert (found[0].impulses.sizes - found[1].impulses.sizes).nan_to_num(0).abs().max() < EXACT


def test_shift_register_loses_one_unit_a_step_and_then_everything():
    shift = torch.diag(torch.ones(UNITS - 1), -1).double()
    cell = from_last_step(elman(shift), torch.ones(UNITS))
    squared = (UNITS - LAGS).clamp(min=0)
    assert torch.equal(cell.total.square().sum(2), squared.flip(0)[:, None].expand(-1, SEQUENCES))
    assert torch.equal(cell.impulses.sizes == -torch.inf, (squared == 0).expand(SEQUENCES, -1))
    held = squared > 0
    assert (cell.impulses.sizes[:, held] - (squared[held] / UNITS).log() / 2).abs().max() < EXACT


def test_non_normal_matrix_lets_the_gradient_grow_before_it_decays():
    steps = 53
    cell = from_last_step(elman(torch.tensor([[0.9, 10.0], [0.0, 0.9]])), torch.tensor([1.0, 0.0]), steps=steps)
    lags = torch.arange(steps).double()
    expected = torch.stack([0.9**lags, 10 * lags * 0.9 ** (lags - 1)], dim=1)
    assert (cell.total[:, 0].flip(0) - expected).abs().max() < EXACT * expected.max()
    assert (cell.impulses.sizes - expected.norm(dim=1).log()).abs().max() < EXACT
    assert cell.impulses.sizes[0].argmax() in (9, 10)  # k 0.9^k is largest at -1 / log 0.9 = 9.5


@pytest.mark.parametrize("weight", [0.7, -1.8])
def test_gradient_of_a_scalar_network_is_the_product_of_its_slopes(weight):
    module = nn.RNN(1, 1, batch_first=True).double()
    with torch.no_grad():
        module.weight_hh_l0.fill_(weight)
    x = inputs_of(SEQUENCES, STEPS)[..., :1]
    call = recorded(module, lambda: module(x)[0][:, -1].sum())
    (cell,) = total_gradients(call)
    slopes = weight * (1 - call.outputs[..., 0].T ** 2)  # (T, B), of each step
    expected = torch.stack([slopes[t + 1 :].prod(0) for t in range(STEPS)])
    assert (cell.total[..., 0] - expected).abs().max() < EXACT * expected.abs().max()
    assert (cell.impulses.sizes - expected.abs().log().T.flip(1)).abs().max() < EXACT


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_impulses_stay_exact_where_single_precision_ends(scale):
    steps = 211  # 0.5^210 is 6e-64 and 4^210 is 3e126; float32 ends at 1e-45 and 3e38
    direction = torch.arange(1.0, 1 + UNITS)
    module = elman(scale * orthogonal().float(), torch.float32)
    cell = from_last_step(module, direction, steps=steps)
    expected = torch.arange(steps) * math.log(scale)
    # Rounding of the matrix, 1e-7 a step, and of the product leaves some 1e-6 of each step's own log.
    assert (cell.impulses.sizes[:, 1:] / expected[1:] - 1).abs().max() < 1e-5
    assert not cell.impulses.sizes[:, 0].abs().max() > 1e-6


# ---- sizes that must not matter --------------------------------------------------------------------------------------


def inputs_of(*shape, seed=1):
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("factor", [1e20, 1e-20])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_scale_of_the_loss_does_not_change_impulses_and_scales_the_rest(family, factor):
    module, x, found = make(family, torch.float32, batch_first=True), inputs_of(SEQUENCES, STEPS).float(), []
    for scale in (1.0, factor):
        call = recorded(module, lambda scale=scale: (module(x)[0] ** 2).sum() * scale)
        found.append(total_gradients(call)[0])
    one, other = found
    assert torch.equal(one.impulses.lags, other.impulses.lags)
    heard = one.impulses.sizes > -torch.inf
    assert torch.equal(heard, other.impulses.sizes > -torch.inf)
    # The factor is rounded, and with it every product: a few parts in 1e7.
    assert (one.impulses.sizes - other.impulses.sizes)[heard].abs().max() < 1e-5
    for name in ("total", "sent", "received", "contribution", "bias", "direct"):
        mine, theirs = getattr(one, name).double(), getattr(other, name).double() / factor
        assert (mine - theirs).abs().max() < 1e-5 * mine.abs().max(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_many_sequences_of_many_steps_are_taken_in_groups_and_stretches(family):
    sequences, steps = 211, 41  # 2048 rows are 49 sequences; 16 steps are a stretch
    module = make(family, num_layers=2, bidirectional=True, batch_first=True)
    lengths = torch.randint(1, steps + 1, (sequences,), generator=torch.Generator().manual_seed(2))
    lengths[17] = steps
    x = inputs_of(sequences, steps).requires_grad_()

    def run():
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return (pad_packed_sequence(module(packed)[0], batch_first=True)[0] ** 2).sum()

    call = recorded(module, run)
    with_impulses, without = (total_gradients(call, impulses=few, inputs=True) for few in (5, 0))
    assert len(with_impulses[0].impulses.sizes) == 5
    for one, other in zip(with_impulses, without, strict=True):
        largest = one.total.abs().max()
        assert (one.total - other.total).abs().max() <= EXACT * largest
        assert (one.sent - other.sent).abs().max() <= EXACT * largest
        assert (one.received - other.received).abs().max() <= EXACT * largest
        own = getattr(module, f"bias_hh_{one.trace.cell.name}").grad
        assert one.bias.shape == (sequences, len(own))
        assert (one.bias.sum(0) - own).abs().max() <= 10 * EXACT * own.abs().max()
    assert (of_inputs(with_impulses) - x.grad).abs().max() <= EXACT * x.grad.abs().max()


def of_inputs(found):
    """Gradient of a module's inputs ``(B, T, I)``, from all cells of its lowest layer."""
    whole = 0
    for cell in found:
        if cell.trace.cell.place.layer == 0:
            handed = cell.input_gradients.transpose(0, 1)
            handed = flip(handed, cell.trace.lengths) if cell.trace.cell.place.reverse else handed
            valid = torch.arange(handed.shape[1]) < cell.trace.lengths[:, None]
            whole = whole + handed * valid[..., None]
    return whole


def test_no_impulses_are_followed_where_none_are_wanted():
    module, x = make("lstm", batch_first=True), inputs_of(SEQUENCES, STEPS)
    call = recorded(module, lambda: (module(x)[0] ** 2).sum())
    (none,), (some,) = total_gradients(call, impulses=0), total_gradients(call, impulses=2)
    assert none.impulses.sizes.shape == (0, STEPS)
    assert none.impulses.lags.shape == (0,)
    assert not none.contribution.any()
    assert torch.equal(none.total, some.total)
    assert some.impulses.sizes.shape == (2, STEPS)
    assert none.input_gradients is None
