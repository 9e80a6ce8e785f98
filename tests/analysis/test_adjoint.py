"""The total gradient of every step against autograd through an unrolled loop, and torch's own gradient of biases."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import Activations, Cell, Place, cells
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
PROJECTIONS = "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
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


GRID = list(itertools.product((1, 3), *[(False, True)] * 4))
# All in double precision; in single every third, which has both values of each option.
CONFIGURATIONS = [(*one, torch.float64) for one in GRID] + [(*one, torch.float32) for one in GRID[::3]]


@pytest.mark.filterwarnings(PROJECTIONS)
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
    (call,) = calls_of(recorder)
    return call


def from_last_step(module, direction, *, steps=STEPS, initial=None, impulses=3):
    """The only cell, where the loss is the last output along a direction and the inputs are zero."""
    dtype = module.weight_hh_l0.dtype
    x = torch.zeros(SEQUENCES, steps, INPUTS, dtype=dtype, requires_grad=True)
    call = recorded(module, lambda: (module(x, initial)[0][:, -1] @ direction.to(dtype)).sum())
    (cell,) = total_gradients(call, impulses=impulses)
    return cell


LAGS = torch.arange(STEPS, dtype=torch.float64)
EXACT = 1e-13  # a product of a dozen matrices of size 5 in float64


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
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
    matrix = torch.tensor([[0.9, 10.0], [0.0, 0.9]], dtype=torch.float64)
    cell = from_last_step(elman(matrix), torch.tensor([1.0, 0.0]), steps=steps)
    lags = torch.arange(steps).double()
    expected = torch.stack([0.9**lags, 10 * lags * 0.9 ** (lags - 1)], dim=1)
    assert (cell.total[:, 0].flip(0) - expected).abs().max() < EXACT * expected.max()
    assert (cell.impulses.sizes - expected.norm(dim=1).log()).abs().max() < EXACT
    assert cell.impulses.sizes[0].argmax() == 9  # k 0.9^(k - 1) is the same at 9 and 10, 0.9^k is not


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
    assert cell.impulses.sizes[:, 0].abs().max() < 1e-6


# ---- sizes that must not matter --------------------------------------------------------------------------------------


def inputs_of(*shape, seed=1):
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("factor", [1e20, 1e-20])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_scale_of_the_loss_does_not_change_impulses(family, factor):
    one, other = scaled(family, factor)
    assert torch.equal(one.impulses.lags, other.impulses.lags)
    heard = one.impulses.sizes > -torch.inf
    assert torch.equal(heard, other.impulses.sizes > -torch.inf)
    # The factor is rounded, and with it every product: a few parts in 1e7.
    assert (one.impulses.sizes - other.impulses.sizes)[heard].abs().max() < 1e-5


@pytest.mark.parametrize("factor", [1e20, 1e-20])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["total", "direct", "bias", "sent", "received", "contribution"])
@pytest.mark.filterwarnings(PROJECTIONS)
def test_scale_of_the_loss_scales_gradients_where_single_precision_has_no_squares(family, factor, part):
    one, other = (getattr(cell, part).double() for cell in scaled(family, factor))
    assert (one - other / factor).abs().max() < 1e-5 * one.abs().max()


def scaled(family, factor):
    """The same cell in float32, once with the loss multiplied by a factor."""
    module, x, found = make(family, torch.float32, batch_first=True), inputs_of(SEQUENCES, STEPS).float(), []
    for scale in (1.0, factor):
        call = recorded(module, lambda scale=scale: (module(x)[0] ** 2).sum() * scale)
        found.append(total_gradients(call)[0])
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
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
    assert (none.total - some.total).abs().max() < EXACT  # other kernels for one row than for two
    assert some.impulses.sizes.shape == (2, STEPS)
    assert none.input_gradients is None


# ---- against autograd ------------------------------------------------------------------------------------------------


def unrolled_loss(module, x, loss, *, initial=None):
    """Every state of a copy of the module, after a backward pass from a loss of outputs and last states."""
    loops = unrolled(copy.deepcopy(module), [row.clone().requires_grad_() for row in x], initial)
    outputs = torch.stack([rows for _, rows in loops])
    loss(outputs, *last_of(module, loops)).backward()
    return loops


def last_of(module, loops):
    """Last hidden states and memories, ``(C, B, P)`` and ``(C, B, H)``, as the module returns them."""
    last = []
    for kind in range(2):
        per_cell = [
            torch.stack([states[name][kind][0 if name.endswith("reverse") else -1] for states, _ in loops])
            for name in loops[0][0]
        ]
        last.append(torch.stack(per_cell))
    return last if module.mode == "LSTM" else last[:1]


def loss_of_module(module, x, loss, *, initial=None):
    outputs, last = module(x, initial)
    return loss(outputs, *states_of(last))


TIGHT = 1e-14  # as for float64 above
LOSSES = {
    "of everything": lambda outputs, *last: (outputs**3).sum() + sum((state**2).sum() for state in last),
    "of h_n": lambda outputs, h, *c: (h**2).sum(),
    "of the last memory": lambda outputs, h, *c: ((c or [h])[0] ** 2).sum(),
    "of the last output": lambda outputs, *last: (outputs[:, -1] ** 2).sum(),
    "of one output in the middle": lambda outputs, *last: outputs[1, 3].sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_total_gradients_equal_autograd_for_a_loss(family, loss):
    module, x = make(family, num_layers=2, batch_first=True), inputs_of(SEQUENCES, STEPS)
    call = recorded(module, lambda: loss_of_module(module, x, LOSSES[loss]))
    loops = unrolled_loss(module, x, LOSSES[loss])
    found = total_gradients(call)
    if loss == "of one output in the middle":
        assert not any(cell.total[:, [0, 2]].any() for cell in found)
        assert found[1].impulses.lags.tolist() == [-1, 3, -1]  # of the top layer only 3 is heard
        assert (found[1].impulses.sizes[[0, 2]] == -torch.inf).all()
        assert (found[1].impulses.sizes[1] > -torch.inf).tolist() == [True] * 4 + [False] * 3
        loops, found = loops[1:2], [only_sequence(cell, 1) for cell in found]
    assert worst_error(found, loops) <= TIGHT


def only_sequence(cell, row):
    rows = slice(row, row + 1)
    return dataclasses.replace(cell, total=cell.total[:, rows])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_total_gradients_equal_autograd_from_a_given_state(family):
    module, x = make(family, num_layers=2, bidirectional=True, batch_first=True), inputs_of(SEQUENCES, STEPS)
    width, generator = module.proj_size or UNITS, torch.Generator().manual_seed(11)
    h0, c0 = (torch.randn(4, SEQUENCES, size, generator=generator).double() for size in (width, UNITS))
    given = (h0, c0) if module.mode == "LSTM" else h0
    call = recorded(module, lambda: loss_of_module(module, x, LOSSES["of everything"], initial=given))
    of_each = [(h0[:, row], c0[:, row]) for row in range(SEQUENCES)]
    loops = unrolled_loss(module, x, LOSSES["of everything"], initial=of_each)
    assert worst_error(total_gradients(call), loops) <= TIGHT


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_total_gradients_equal_autograd_without_a_batch(family, batch_first):
    module, x = make(family, num_layers=2, bidirectional=True, batch_first=batch_first), inputs_of(1, STEPS)
    call = recorded(module, lambda: loss_of_module(module, x[0], LOSSES["of everything"]))
    loops = unrolled_loss(module, x, LOSSES["of everything"])
    assert worst_error(total_gradients(call), loops) <= TIGHT


def test_calls_of_unrelated_inputs_in_a_batch_keep_their_gradients_apart():
    module = make("lstm", num_layers=2, batch_first=True)
    model = nn.ModuleDict({"rnn": module})
    several = inputs_of(SEQUENCES, STEPS), inputs_of(2, 11, seed=2)
    with Recorder(model, gradients=True) as recorder:
        recorder.next_batch()
        sum(loss_of_module(module, x, LOSSES["of everything"]) for x in several).backward()
    for call, x in zip(calls_of(recorder), several, strict=True):
        found = total_gradients(call)
        assert not any(cell.joined for cell in found)
        assert worst_error(found, unrolled_loss(module, x, LOSSES["of everything"])) <= TIGHT


@pytest.mark.parametrize("detach", [False, True], ids=["connected", "truncated"])
@pytest.mark.parametrize("sizes", [(1,) * STEPS, (1, 4, 2)], ids=["steps", "chunks"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_sequence_read_in_parts_has_the_gradients_of_autograd(family, sizes, detach):
    module, x = make(family, num_layers=2, batch_first=True), inputs_of(SEQUENCES, STEPS)
    width = module.proj_size or UNITS
    shape = [(2, SEQUENCES, width), (2, SEQUENCES, UNITS)][: 1 + (module.mode == "LSTM")]

    def run():
        state, loss = [torch.zeros(*size).double() for size in shape], 0.0
        for part in x.split(sizes, dim=1):
            outputs, state = module(part, tuple(state) if module.mode == "LSTM" else state[0])
            state = [s.detach() if detach else s for s in states_of(state)]
            loss = loss + LOSSES["of everything"](outputs)
        return loss + (state[0] ** 2).sum()

    call = recorded(module, run)
    found = total_gradients(call, impulses=SEQUENCES)
    initial = [(torch.zeros(2, width).double(), torch.zeros(2, UNITS).double())] * SEQUENCES
    pieces, loss = [], 0.0
    twin = copy.deepcopy(module)
    for part in x.split(sizes, dim=1):
        pieces.append(unrolled(twin, [row.requires_grad_() for row in part.clone()], initial))
        last = last_of(nn.LSTM(1, 1), pieces[-1])
        initial = [tuple(s[:, row].detach() if detach else s[:, row] for s in last) for row in range(SEQUENCES)]
        loss = loss + LOSSES["of everything"](torch.stack([rows for _, rows in pieces[-1]]))
    (loss + sum((h**2).sum() for h, _ in initial)).backward()
    loops = []
    for row in range(SEQUENCES):
        states = {
            name: tuple([s for piece in pieces for s in piece[row][0][name][kind]] for kind in range(2))
            for name in ("l0", "l1")
        }
        loops.append((states, torch.cat([piece[row][1] for piece in pieces])))
    assert worst_error(found, loops) <= TIGHT

    assert all(cell.joined for cell in found)
    if not detach:  # The second road for all that autograd does not tell: the same sequence read at once.
        whole = recorded(module, lambda: loss_of_module(module, x, lambda o, h, *c: (o**3).sum() + (h**2).sum()))
        for cell, other in zip(found, total_gradients(whole, impulses=SEQUENCES), strict=True):
            assert not other.joined
            for name in ("total", "sent", "received", "bias", "contribution"):
                mine, theirs = getattr(cell, name), getattr(other, name)
                assert (mine - theirs).abs().max() < EXACT * theirs.abs().max(), name


@pytest.mark.parametrize("detach", [False, True], ids=["connected", "truncated"])
@pytest.mark.parametrize("sizes", [(1,) * STEPS, (1, 4, 2)], ids=["steps", "chunks"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_impulses_go_from_part_to_part_unless_the_user_detaches_the_state(family, sizes, detach):
    module, x = make(family, batch_first=True), inputs_of(SEQUENCES, STEPS)

    def run():
        state = None
        for part in x.split(sizes, dim=1):
            if detach and state is not None:
                state = tuple(s.detach() for s in state) if module.mode == "LSTM" else state.detach()
            outputs, state = module(part, state)
        return LOSSES["of the last output"](outputs)

    (cell,) = total_gradients(recorded(module, run))
    (whole,) = total_gradients(recorded(module, lambda: loss_of_module(module, x, LOSSES["of the last output"])))
    # Only the last step's direct gradient is the same either way: at the end of a part, what comes back through the
    # state is direct too. The first sequence starts from the last step.
    reach = sizes[-1] if detach else STEPS
    assert cell.impulses.lags[0] == whole.impulses.lags[0] == STEPS - 1
    assert (cell.impulses.sizes[0, :reach] - whole.impulses.sizes[0, :reach]).abs().max() < EXACT
    assert (cell.impulses.sizes[0, reach:] == -torch.inf).all()


CELLS = [nn.RNNCell, nn.GRUCell, nn.LSTMCell]


def loop_over(cell, x, between=lambda t, state: state):
    """All hidden states and memories of a user's loop, ``(T,)`` tensors of one graph each that keep their gradients."""
    pair = not isinstance(cell, (nn.RNNCell, nn.GRUCell))
    state = torch.full((2, len(x), UNITS), 0.2).double()
    state = tuple(state) if pair else state[0]
    kept = []
    for t, step in enumerate(x.unbind(1)):
        state = cell(step, state)
        kept.append(states_of(state))
        for part in states_of(state):
            part.retain_grad()
        state = between(t, state)
    return [list(part) for part in zip(*kept, strict=True)]


KEEP = torch.tensor([[1.0], [0.0], [1.0]]).double()
BETWEEN = {
    "handed on": lambda t, s: s,
    "reset at times": lambda t, s: s * KEEP if t == 3 else s,
    "one unit reset": lambda t, s: s * (torch.arange(UNITS) != 2) if t == 3 else s,
    "decaying": lambda t, s: 0.7 * s,
    "truncated": lambda t, s: s.detach() if t == 3 else s,
    "decayed where it is truncated": lambda t, s: (0.7 * s).detach() if t == 3 else s,
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("family", CELLS)
def test_total_gradients_of_a_users_loop_equal_those_of_autograd(family, between):
    torch.manual_seed(3)
    cell, x, change = family(INPUTS, UNITS).double(), inputs_of(SEQUENCES, STEPS), BETWEEN[between]

    def step_on(t, state):
        return tuple(change(t, s) for s in state) if isinstance(state, tuple) else change(t, state)

    with Recorder(cell, gradients=True) as recorder:
        hidden, *memory = loop_over(cell, x, step_on)
    (sum((h**3).sum() for h in hidden) + sum((part[-1] ** 2).sum() for part in memory)).backward()
    (call,) = calls_of(recorder)
    (found,) = total_gradients(call, impulses=SEQUENCES)
    true = torch.cat([torch.stack([s.grad for s in part]) for part in (hidden, *memory)], dim=2)
    assert (found.total - true).abs().max() <= TIGHT * true.abs().max()
    assert (found.bias.sum(0) - cell.bias_hh.grad).abs().max() <= TIGHT * cell.bias_hh.grad.abs().max()
    anchors = found.impulses.lags.tolist()
    assert found.changed == (between == "decaying")
    assert anchors == ([-1, -1, -1] if found.changed else [6, 5, 4])
    if found.changed:  # what goes through a change that nobody hears is not known
        return
    stops = {
        "handed on": [0, 0, 0],
        "reset at times": [0, 4, 0],
        "one unit reset": [0, 0, 0],
        "truncated": [4, 4, 4],
        "decayed where it is truncated": [4, 4, 4],  # a cut is known, whatever was done to the state
    }
    for sizes, anchor, stop in zip(found.impulses.sizes, anchors, stops[between], strict=True):
        assert (sizes > -torch.inf).tolist() == [lag <= anchor - stop for lag in range(STEPS)]


def test_own_cell_called_per_sequence_has_the_gradients_of_autograd():
    torch.manual_seed(0)
    module, x = PeepholeStack().double(), inputs_of(SEQUENCES, STEPS).requires_grad_()
    given = torch.randn(2, 4, SEQUENCES, UNITS, generator=torch.Generator().manual_seed(1)).double()
    call = recorded(module, lambda: loss_of_module(module, x, LOSSES["of everything"], initial=tuple(given)))
    found = total_gradients(call, impulses=2, inputs=True)
    assert (of_inputs(found) - x.grad).abs().max() <= TIGHT * 10
    assert found[0].bias.shape == (SEQUENCES, 0)
    assert not found[0].contribution.any()
    assert all(cell.rebuild_error < TIGHT for cell in found)


@pytest.mark.parametrize("family", CELLS)
def test_total_gradients_of_a_loop_over_one_sequence_without_a_batch_equal_those_of_autograd(family):
    torch.manual_seed(3)
    cell, x = family(INPUTS, UNITS).double(), inputs_of(STEPS)
    state, loss = None, 0.0
    with Recorder(cell, gradients=True) as recorder:
        for step in x:
            state = cell(step, state)
            loss = loss + sum((part**3).sum() for part in states_of(state))
    loss.backward()
    (found,) = total_gradients(*calls_of(recorder))
    assert (found.bias[0] - cell.bias_hh.grad).abs().max() <= TIGHT * cell.bias_hh.grad.abs().max()


class OneOperation(torch.autograd.Function):
    """A step of an LSTM whose hidden state and memory come out of one node of the graph, as on a GPU."""

    @staticmethod
    def forward(ctx, *given):
        ctx.save_for_backward(*given)
        return torch.lstm_cell(given[0], given[1:3], *given[3:])

    @staticmethod
    def backward(ctx, *gradients):
        with torch.enable_grad():
            given = [part.detach().requires_grad_() for part in ctx.saved_tensors]
            after = torch.lstm_cell(given[0], given[1:3], *given[3:])
            return torch.autograd.grad(after, given, gradients)


class FusedLSTMCell(nn.LSTMCell):
    def forward(self, input, hx):
        return OneOperation.apply(input, *hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


def test_step_of_a_single_operation_has_the_gradients_of_one_of_many():
    torch.manual_seed(3)
    x, found = inputs_of(SEQUENCES, STEPS), []
    for family in (nn.LSTMCell, FusedLSTMCell):
        torch.manual_seed(3)
        cell = family(INPUTS, UNITS).double()
        with Recorder(cell, gradients=True) as recorder:
            hidden, memory = loop_over(cell, x)
        (sum((h**3).sum() for h in hidden) + (memory[-1] ** 2).sum()).backward()
        found.append(total_gradients(*calls_of(recorder))[0])
        assert (found[-1].bias.sum(0) - cell.bias_hh.grad).abs().max() <= TIGHT * cell.bias_hh.grad.abs().max()
    for name in ("total", "sent", "received", "direct", "contribution"):
        one, other = (getattr(cell, name) for cell in found)
        assert (one - other).abs().max() <= EXACT * one.abs().max(), name


PARTLY = {
    "both": lambda h, c: (h, c),
    "hidden state alone": lambda h, c: (h, 0 * c),
    "memory alone": lambda h, c: (0 * h, c),
    "hidden state, memory detached": lambda h, c: (h, c.detach()),
    "memory, hidden state detached": lambda h, c: (h.detach(), c),
}


@pytest.mark.parametrize("handed_on", PARTLY)
def test_impulse_goes_back_by_the_part_of_an_lstms_state_that_the_user_hands_on(handed_on):
    torch.manual_seed(3)
    cell, x = nn.LSTMCell(INPUTS, UNITS).double(), inputs_of(SEQUENCES, STEPS)
    with Recorder(cell, gradients=True) as recorder:
        hidden, memory = loop_over(cell, x, lambda t, state: PARTLY[handed_on](*state) if t == 3 else state)
    (hidden[-1] ** 2).sum().backward()
    (found,) = total_gradients(*calls_of(recorder))
    true = torch.stack([c.grad for c in memory]).norm(dim=2).log() - hidden[-1].grad.norm(dim=1).log()
    assert (found.impulses.sizes[0] - true[:, 0].flip(0)).abs().max() < EXACT


class Leaky(Cell):
    """``h' = h + (tanh(W x + U h) - h) / 4``: a cell of a user's own without a memory."""

    gates = ()
    candidate = "new"

    def __init__(self, module, place):
        super().__init__(place, input_size=INPUTS, units=UNITS)
        self.w = module.w.weight.detach().clone()

    def activations(self, inputs, hidden, memory=None):
        return Activations((torch.cat([inputs, hidden], dim=1) @ self.w.T).tanh()[:, None])

    def follow(self, inside, hidden, memory):
        return hidden + (inside.candidate - hidden) / 4, hidden.new_zeros(*hidden.shape[:2], 0)


class LeakyCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(INPUTS + UNITS, UNITS, bias=False)

    def forward(self, x, h):
        return h + (self.w(torch.cat([x, h], dim=1)).tanh() - h) / 4


class LeakyLayer(LeakyCell):
    batch_first = True

    def forward(self, x, hx=None):
        h, shown = x.new_zeros(len(x), UNITS), []
        for step in x.unbind(1):
            h = super().forward(step, h)
            shown.append(h)
        return torch.stack(shown, dim=1), h[None]


@cells.register
def _(module: LeakyCell):
    return (Leaky(module, Place("cell", stepwise=True)),)


@cells.register
def _(module: LeakyLayer):
    return (Leaky(module, Place("l0")),)


def test_own_cell_without_a_memory_has_the_gradients_of_autograd_called_either_way():
    torch.manual_seed(3)
    layer, cell = LeakyLayer().double(), LeakyCell().double()
    cell.load_state_dict(layer.state_dict())
    x = inputs_of(SEQUENCES, STEPS).requires_grad_()
    with Recorder(cell, gradients=True) as recorder:
        h, states = x.new_zeros(SEQUENCES, UNITS), []
        for step in x.unbind(1):
            h = cell(step, h)
            h.retain_grad()
            states.append(h)
    (sum((state**3).sum() for state in states) + (h**2).sum()).backward()
    (stepped,) = total_gradients(*calls_of(recorder), inputs=True)
    true = torch.stack([state.grad for state in states])
    call = recorded(layer, lambda: loss_of_module(layer, x.detach(), LOSSES["of everything"]))
    (whole,) = total_gradients(call, inputs=True)
    for found in (stepped, whole):
        assert (found.total - true).abs().max() <= TIGHT * true.abs().max()
        assert (of_inputs([found]) - x.grad).abs().max() <= TIGHT * x.grad.abs().max()
        assert found.rebuild_error < TIGHT
    assert (stepped.sent - whole.sent).abs().max() <= EXACT * true.abs().max()
    assert (stepped.received - whole.received).abs().max() <= EXACT * true.abs().max()


def test_own_cell_with_a_memory_called_per_step_is_refused():
    torch.manual_seed(0)
    cell = PeepholeCell(INPUTS).double()
    with Recorder(cell, gradients=True) as recorder:
        hidden, _ = loop_over(cell, inputs_of(SEQUENCES, STEPS))
    hidden[-1].sum().backward()
    with pytest.raises(ValueError, match="gradient of its memory apart from that of its hidden state"):
        total_gradients(*calls_of(recorder))


# ---- dropout, limits, parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("family", [nn.GRU, nn.LSTM, nn.RNN])
def test_dropout_between_layers_lets_through_what_it_let_through(family, bidirectional, packed):
    torch.manual_seed(5)
    module = family(INPUTS, UNITS, 3, dropout=0.4, batch_first=True, bidirectional=bidirectional).double()
    x = inputs_of(SEQUENCES, STEPS).requires_grad_()

    def run():
        given = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False) if packed else x
        outputs, last = module(given)
        outputs = pad_packed_sequence(outputs, batch_first=True)[0] if packed else outputs
        return LOSSES["of everything"](outputs, *states_of(last))

    call = recorded(module, run)
    found = total_gradients(call, inputs=True)
    assert (of_inputs(found) - x.grad).abs().max() <= TIGHT * 10 * x.grad.abs().max()
    for cell in found:
        own = getattr(module, f"bias_hh_{cell.trace.cell.name}").grad
        assert (cell.bias.sum(0) - own).abs().max() <= TIGHT * 10 * own.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_contribution_is_the_size_of_what_a_step_adds_to_the_gradient_of_its_weights(family):
    few, module = 2, make(family, bidirectional=True, batch_first=True)
    x, generator = inputs_of(SEQUENCES, STEPS), torch.Generator().manual_seed(2)
    width = module.proj_size or UNITS
    weights = torch.randn(SEQUENCES, STEPS, 2 * width, generator=generator).double()
    h0, c0 = (torch.randn(2, SEQUENCES, size, generator=generator).double() for size in (width, UNITS))

    def run():
        packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
        outputs, _ = module(packed, (h0, c0) if module.mode == "LSTM" else h0)
        return (pad_packed_sequence(outputs, batch_first=True)[0] * weights).sum()

    found = total_gradients(recorded(module, run), impulses=few)
    for cell, suffix in zip(found, ("", "_reverse"), strict=True):
        steps = [copy.deepcopy(module) for _ in range(STEPS)]  # so that every step has weights of its own
        loss = 0.0
        for row in range(few):
            h, c = (state[int(bool(suffix)), row] for state in (h0, c0))
            order = range(int(LENGTHS[row]))
            for t in reversed(order) if suffix else order:
                _, h, c = reference.step(steps[t], 0, suffix, x[row, t], h, c)
                loss = loss + h @ weights[row, t].chunk(2)[bool(suffix)]
        for step in steps:
            step.zero_grad()
        loss.backward()
        true = torch.stack([getattr(step, f"weight_hh_l0{suffix}").grad.norm() for step in steps])
        # A root of sums of products: what is zero comes out as the root of its rounding.
        assert (cell.contribution - true).abs().max() < 1e-7 * true.max()


def test_gradients_of_the_first_sequences_of_a_batch_are_theirs():
    module, x = make("gru", num_layers=2, bidirectional=True, batch_first=True), inputs_of(SEQUENCES, STEPS)
    part = recorded(module, lambda: loss_of_module(module, x, LOSSES["of everything"]), max_sequences=2)
    whole = recorded(module, lambda: loss_of_module(module, x, LOSSES["of everything"]))
    assert [boundary.complete for call in (part, whole, whole.head(2)) for boundary in call.boundaries] == [
        False,
        True,
        False,
    ]
    loops = unrolled_loss(module, x, LOSSES["of everything"])[:2]
    for call in (part, whole.head(2)):
        assert worst_error(total_gradients(call), loops) <= TIGHT


def test_sequences_that_leave_a_decoder_early_have_no_gradient_after():
    module, x = make("lstm", num_layers=2, batch_first=True), inputs_of(SEQUENCES, STEPS)

    def run():
        state, loss = None, 0.0
        for t, running in enumerate((3, 3, 2, 2, 2, 1, 1)):
            if state is not None:
                state = tuple(s[:, :running].contiguous() for s in state)
            outputs, state = module(x[:running, t : t + 1], state)
            loss = loss + (outputs**3).sum()
        return loss

    found = total_gradients(recorded(module, run))
    lengths = [7, 5, 2]
    loops = unrolled(copy.deepcopy(module), [x[row, :length] for row, length in enumerate(lengths)])
    sum((outputs**3).sum() for _, outputs in loops).backward()
    assert worst_error(found, loops) <= TIGHT
    for row, length in enumerate(lengths):
        assert not any(cell.total[length:, row].any() for cell in found)


def test_rebuild_error_is_the_worst_of_all_groups():
    module, x = make("gru", batch_first=True), inputs_of(211, 41)  # five groups of 49 sequences or less
    call = recorded(module, lambda: (module(x)[0] ** 2).sum())
    assert total_gradients(call)[0].rebuild_error < EXACT
    for row in (0, 97, 210):
        outputs = call.outputs.clone()
        outputs[row, -1] = 2.0  # the states of a GRU stay within 1
        (cell,) = total_gradients(dataclasses.replace(call, outputs=outputs))
        assert 0.5 <= cell.rebuild_error <= 1.5


def test_impulses_are_spread_over_the_second_half_of_the_sequences():
    module, x = make("gru", batch_first=True), inputs_of(7, 41)
    call = recorded(module, lambda: (module(x)[0] ** 2).sum())
    (cell,) = total_gradients(call, impulses=5)
    assert cell.impulses.lags.tolist() == [40, 36, 32, 28, 24]
    assert cell.impulses.sizes.shape == (5, 41)
    for sizes, lag in zip(cell.impulses.sizes, cell.impulses.lags.tolist(), strict=True):
        assert abs(sizes[0]) < EXACT
        assert (sizes > -torch.inf).tolist() == [step <= lag for step in range(41)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings(PROJECTIONS)
def test_impulse_is_the_gradient_of_a_loss_of_that_step_alone(family):
    module, x = make(family, batch_first=True), inputs_of(2, 41)  # more than two stretches of 16
    call = recorded(module, lambda: (module(x)[0] ** 2).sum())
    (cell,) = total_gradients(call, impulses=2)
    anchors = cell.impulses.lags.tolist()

    def alone(outputs, *last):
        size = [2 * outputs[row, t].detach().norm() for row, t in enumerate(anchors)]
        return sum((outputs[row, t] ** 2).sum() / size[row] for row, t in enumerate(anchors))

    for row, (states, _) in enumerate(unrolled_loss(module, x, alone)):
        kind = gradients(states["l0"])[module.mode == "LSTM"]
        true = kind.norm(dim=1)[: anchors[row] + 1].flip(0).log()
        assert (cell.impulses.sizes[row, : anchors[row] + 1] - true).abs().max() < 1e-12


def test_call_recorded_without_gradients_has_none():
    module, x = make("gru", batch_first=True), inputs_of(SEQUENCES, STEPS)
    with Recorder(module) as recorder:
        module(x)
    with pytest.raises(ValueError, match="has no gradients: record it with Recorder"):
        total_gradients(*calls_of(recorder))
