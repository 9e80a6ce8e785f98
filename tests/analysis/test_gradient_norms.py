"""Sizes of parameter gradients, against torch's own norms in double precision and `math.frexp`, element by element."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.gradient_norms import ABSENT, GradientNorms, NormMeter, joined
from rnn_callbacks.analysis.gradient_sizes import HIGHEST, LOWEST, gradient_sizes, update_ratios

ROUNDING = 1e-6  # norms of float32 gradients are taken in float32
REAL = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def with_gradient(*shape, dtype=torch.float32, scale=1.0, seed=0):
    """A parameter whose gradient is random."""
    generator = torch.Generator().manual_seed(seed)
    parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
    kind = torch.complex128 if dtype.is_complex else torch.float64
    parameter.grad = (scale * torch.randn(shape, generator=generator, dtype=kind)).to(dtype)
    return parameter


def make_parameters():
    shapes = {"a": (3, 5), "b": (7,), "c": (), "d": (2, 3, 11)}
    return {name: with_gradient(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}


def true_norm(gradient):
    return torch.linalg.vector_norm(gradient.to(torch.complex128 if gradient.is_complex() else torch.float64)).item()


def true_norms(parameters):
    return [ABSENT if p.grad is None else true_norm(p.grad) for p in parameters.values()]


def make_meter(parameters, blocks=None, capacity=13):
    return NormMeter(parameters, {} if blocks is None else blocks, capacity)


def one_row(parameters, blocks=None, **options):
    meter = make_meter(parameters, blocks)
    meter.take(0, **options)
    return meter.drain()


def make_norms(norm, clipped=None, **options):
    norm = np.array(norm, dtype=float)
    names = tuple("pqrs"[: norm.shape[1]])
    fields = {"blocks": (), "block_norm": np.zeros((len(norm), 0))} | options
    clipped = norm if clipped is None else np.array(clipped, dtype=float)
    return GradientNorms(np.arange(len(norm)), names, norm=norm, clipped=clipped, **fields)


# ---- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64, torch.complex128], ids=str)
def test_norms_are_those_of_torch_in_double_precision(dtype):
    parameters = {"a": with_gradient(3, 5, dtype=dtype), "c": with_gradient(dtype=dtype, seed=1)}
    found = one_row(parameters)
    assert found.parameters == ("a", "c")
    tolerance = 1e-14 if dtype == torch.float64 else ROUNDING
    assert found.norm[0] == pytest.approx(true_norms(parameters), rel=tolerance)
    assert found.total[0] == pytest.approx(math.hypot(*true_norms(parameters)), rel=tolerance)


def test_second_and_later_rows_are_taken_as_the_first_was():
    # The first row makes the buffer; from then on plain float32 gradients go a shorter way.
    parameters = make_parameters()
    meter = make_meter(parameters, {"a": ["g0", "g1", "g2"]})
    expected = []
    for step in range(5):
        for parameter in parameters.values():
            parameter.grad += 1
        expected.append(true_norms(parameters))
        meter.take(step)
    found = meter.drain()
    assert found.norm == pytest.approx(np.array(expected), rel=ROUNDING)
    rows = parameters["a"].grad.norm(dim=1).tolist()
    assert found.block_norm[-1] == pytest.approx(rows, rel=ROUNDING)


def test_norm_of_half_precision_gradients_does_not_overflow():
    parameter = with_gradient(100, dtype=torch.float16)
    parameter.grad.fill_(3e4)
    assert parameter.grad.norm().isinf()
    found = one_row({"a": parameter})
    assert found.norm[0, 0] == pytest.approx(10 * 30000.0, rel=ROUNDING)


def test_precisions_may_be_mixed_and_may_change():
    parameters = {
        name: with_gradient(3, 5, dtype=dtype, seed=number)
        for number, (name, dtype) in enumerate(zip("abcd", REAL, strict=True))
    }
    meter = make_meter(parameters)
    expected = []
    held = parameters["b"].grad
    for step, dtype in enumerate([None, torch.float64, torch.float64]):
        parameters["b"].grad = None if dtype is None else held  # at first nothing needs a double-precision buffer
        expected.append(true_norms(parameters))
        meter.take(step)
    found = meter.drain()
    assert found.norm == pytest.approx(np.array(expected), rel=ROUNDING)
    assert found.norm[2, 1] == pytest.approx(true_norm(held), rel=1e-14)


def test_tiny_gradients_in_double_precision_are_not_lost():
    parameter = with_gradient(7, dtype=torch.float64, scale=1e-60)
    assert one_row({"a": parameter}).norm[0, 0] == pytest.approx(true_norm(parameter.grad), rel=1e-14)


def test_sparse_gradients_count_repeated_rows_once_and_added_up():
    embedding = nn.Embedding(11, 3, sparse=True)
    embedding(torch.tensor([2, 5, 2, 2])).square().sum().backward()
    assert embedding.weight.grad.is_sparse
    found = one_row({"a": embedding.weight})
    assert found.norm[0, 0] == pytest.approx(true_norm(embedding.weight.grad.to_dense()), rel=ROUNDING)
    meter = make_meter({"a": embedding.weight})
    meter.take(0)
    meter.take(1)
    assert meter.drain().norm[1] == found.norm[0]
    sizes = gradient_sizes({"a": embedding.weight.grad})
    assert sizes.elements[0] == 2 * 3  # the rows that are there


def test_a_conjugate_view_as_gradient_is_measured():
    parameter = with_gradient(3, 5, dtype=torch.complex64)
    parameter.grad = parameter.grad.conj()
    assert parameter.grad.is_conj()
    found = one_row({"a": parameter})
    assert found.norm[0, 0] == pytest.approx(true_norm(parameter.grad), rel=ROUNDING)
    assert gradient_sizes({"a": parameter.grad}).elements[0] == 2 * 3 * 5


def test_gradients_in_any_memory_layout_are_measured():
    parameter = nn.Parameter(torch.zeros(3, 5))
    parameter.grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).T
    meter = make_meter({"a": parameter}, {"a": ["g0", "g1", "g2"]})
    meter.take(0)
    meter.take(1)
    found = meter.drain()
    assert found.norm[:, 0] == pytest.approx([true_norm(parameter.grad)] * 2, rel=ROUNDING)
    assert found.block_norm == pytest.approx(np.array([parameter.grad.norm(dim=1).tolist()] * 2), rel=ROUNDING)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_gradients_of_gradients_can_be_measured():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    meter = make_meter({"a": parameter})
    for step in range(2):
        (parameter**3).sum().backward(create_graph=True)
        with torch.no_grad():
            meter.take(step)
        parameter.grad = None
    assert meter.drain().norm[:, 0] == pytest.approx([math.hypot(3, 12)] * 2, rel=ROUNDING)


def test_an_empty_gradient_has_norm_zero():
    assert one_row({"a": with_gradient(0, 5), "b": with_gradient(7)}).norm[0, 0] == 0


@pytest.mark.parametrize("absent", [{"a"}, {"a", "d"}, {"a", "b", "c", "d"}])
def test_parameters_without_gradient_are_absent_and_count_for_nothing(absent):
    parameters = make_parameters()
    meter = make_meter(parameters, {"a": ["g0", "g1", "g2"]})
    for step in range(3):  # with a row of all of them before, which the shorter way takes, and after
        kept = {name: p.grad for name, p in parameters.items()}
        for name in absent if step == 1 else ():
            parameters[name].grad = None
        meter.take(step)
        for name, parameter in parameters.items():
            parameter.grad = kept[name]
    found = meter.drain()
    whole = np.array(true_norms(parameters))
    there = np.array([name not in absent for name in parameters])
    assert found.norm == pytest.approx(np.stack([whole, np.where(there, whole, ABSENT), whole]), rel=ROUNDING)
    assert found.total[1] == pytest.approx(math.sqrt((whole[there] ** 2).sum()), rel=ROUNDING)
    assert found.block_norm[1].tolist() == [ABSENT] * 3
    assert (found.block_norm[[0, 2]] > 0).all()


def test_only_members_are_measured():
    parameters = make_parameters()
    meter = make_meter(parameters)
    members = frozenset({id(parameters["b"]), id(parameters["d"]), 0})
    meter.take(0)
    meter.take(1, members=members)
    meter.take_clipped(0, members=members)
    found = meter.drain()
    a, b, c, d = true_norms(parameters)
    assert found.norm == pytest.approx(np.array([[a, b, c, d], [ABSENT, b, ABSENT, d]]), rel=ROUNDING)
    assert found.clipped == pytest.approx(np.array([[ABSENT, b, ABSENT, d]] * 2), rel=ROUNDING)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_passes_through(value):
    parameters = make_parameters()
    meter = make_meter(parameters, {"a": ["g0", "g1", "g2"]})
    meter.take(0)
    parameters["a"].grad[1, 2] = value
    meter.take(1, limit=0.1)
    found = meter.drain()
    bad = abs(value)  # nan stays nan
    assert found.norm[1] == pytest.approx([bad, *true_norms(parameters)[1:]], rel=ROUNDING, nan_ok=True)
    assert found.total[1] == pytest.approx(bad, nan_ok=True)
    assert np.isfinite(found.block_norm[1]).tolist() == [True, False, True]
    assert found.finite.tolist() == [True, False]
    assert found.was_clipped.tolist() == [False, False]


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_blocks_are_the_rows_of_the_gates_and_make_up_the_whole():
    layer = nn.LSTM(3, 5)
    layer(torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0)))[0].square().sum().backward()
    gates = ["input", "forget", "cell", "output"]
    parameters = dict(layer.named_parameters())
    found = one_row(parameters, {"weight_hh_l0": gates})
    assert found.blocks == tuple(gates)
    rows = layer.weight_hh_l0.grad.split(5)
    assert found.block_norm[0] == pytest.approx([true_norm(part) for part in rows], rel=ROUNDING)
    assert found.norm[0] == pytest.approx(true_norms(parameters), rel=ROUNDING)
    assert math.hypot(*found.block_norm[0]) == pytest.approx(true_norm(layer.weight_hh_l0.grad), rel=ROUNDING)


def test_two_parameters_may_have_blocks_each_in_its_place():
    parameters = {"a": with_gradient(6, 5), "b": with_gradient(7, seed=1), "c": with_gradient(4, 3, seed=2)}
    blocks = {"c": ["c0", "c1"], "a": ["a0", "a1", "a2"]}
    meter = make_meter(parameters, blocks)
    meter.take(0)
    parameters["b"].grad = None
    meter.take(1)
    found = meter.drain()
    assert found.blocks == ("a0", "a1", "a2", "c0", "c1")
    parts = [*parameters["a"].grad.split(2), *parameters["c"].grad.split(2)]
    assert found.block_norm == pytest.approx(np.array([[true_norm(part) for part in parts]] * 2), rel=ROUNDING)
    assert found.norm[1] == pytest.approx(true_norms(parameters), rel=ROUNDING)


# ---- the buffer ------------------------------------------------------------------------------------------------------


def test_the_buffer_grows_beyond_its_capacity():
    parameter = with_gradient(3)
    meter = make_meter({"a": parameter}, capacity=2)
    full = []
    for step in range(11):
        parameter.grad = torch.tensor([3.0, 4.0, 0.0]) * step
        meter.take(5 + step)
        if step % 2:
            parameter.grad *= 0.5
            meter.take_clipped(step)
        full.append(meter.full)
    assert full == [False] + 10 * [True]
    assert len(meter) == 11
    found = meter.drain()
    assert found.steps.tolist() == list(range(5, 16))
    assert found.norm[:, 0].tolist() == [5.0 * step for step in range(11)]
    assert found.clipped[:, 0].tolist() == [5.0 * step * (0.5 if step % 2 else 1) for step in range(11)]


def test_what_is_absent_in_rows_beyond_the_capacity_is_absent():
    parameters = make_parameters()
    meter = make_meter(parameters, capacity=2)
    for step in range(5):
        if step == 2:
            parameters["b"].grad = None
        meter.take(step)
    assert (meter.drain().norm[:, 1] == ABSENT).tolist() == [False, False, True, True, True]


def test_the_first_gradient_may_come_after_many_rows_without():
    parameter = nn.Parameter(torch.zeros(3))
    meter = make_meter({"a": parameter}, capacity=2)
    for step in range(5):
        meter.take(step)
    parameter.grad = torch.ones(3)
    meter.take(5)
    found = meter.drain().norm[:, 0]
    assert found == pytest.approx([ABSENT] * 5 + [math.sqrt(3)], rel=ROUNDING)


def test_draining_begins_anew():
    parameters = make_parameters()
    meter = make_meter(parameters, capacity=2)
    for step in range(3):
        meter.take(step, limit=0.1)
        meter.take_clipped(step)
    meter.drain()
    assert len(meter) == 0
    assert not meter.full
    for parameter in list(parameters.values())[:2]:
        parameter.grad = None
    meter.take(9)
    found = meter.drain()
    assert found.steps.tolist() == [9]
    assert found.norm[0] == pytest.approx(true_norms(parameters), rel=ROUNDING)  # nothing is left of earlier rows
    assert found.clipped.tolist() == found.norm.tolist()


def test_draining_nothing_gives_no_rows_and_no_scalars():
    meter = make_meter(make_parameters(), {"a": ["g0", "g1", "g2"]})
    found = meter.drain()
    assert found.norm.shape == found.clipped.shape == (0, 4)
    assert found.block_norm.shape == (0, 3)
    assert found.total.shape == (0,)
    assert found.scalars() == {}


def test_stretches_are_joined_in_order():
    parameter = with_gradient(3)
    meter = make_meter({"a": parameter}, {"a": ["x", "y", "z"]})
    parts = []
    for stretch in range(3):
        for step in range(stretch + 1):
            parameter.grad = torch.tensor([1.0, 2.0, 2.0]) * (10 * stretch + step)
            meter.take(10 * stretch + step)
        parts.append(meter.drain())
    whole = joined(parts)
    assert whole.steps.tolist() == [0, 10, 11, 20, 21, 22]
    assert whole.norm[:, 0] == pytest.approx(3.0 * whole.steps, rel=ROUNDING)
    assert whole.block_norm[:, 1] == pytest.approx(2.0 * whole.steps, rel=ROUNDING)
    assert (whole.parameters, whole.blocks) == (("a",), ("x", "y", "z"))


def test_measuring_changes_no_gradient():
    parameters = make_parameters()
    before = {name: p.grad.clone() for name, p in parameters.items()}
    meter = make_meter(parameters, {"a": ["g0", "g1", "g2"]})
    for step in range(2):
        meter.take(step, limit=0.1)
        meter.take_clipped(step)
    gradient_sizes({name: p.grad for name, p in parameters.items()})
    meter.drain()
    assert all(torch.equal(p.grad, before[name]) for name, p in parameters.items())


# ---- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.01, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_by_norm_is_known_without_measuring(limit, dtype):
    parameters = {"a": with_gradient(3, 5, dtype=dtype), "b": with_gradient(7, dtype=dtype, seed=1)}
    parameters["c"] = nn.Parameter(torch.zeros(2))
    meter = make_meter(parameters)
    meter.take(0, limit=limit)
    torch.nn.utils.clip_grad_norm_(parameters.values(), limit)
    found = meter.drain()
    assert found.clipped[0] == pytest.approx(true_norms(parameters), rel=ROUNDING)
    assert found.clipped_total[0] == pytest.approx(min(limit, found.total[0]), rel=2e-6 / min(1.0, found.total[0]))
    assert found.was_clipped.tolist() == [limit < 2]


def test_only_what_belongs_to_the_optimizer_counts_for_its_clipping():
    parameters = make_parameters()
    mine = [parameters["b"], parameters["c"]]
    meter = make_meter(parameters)
    meter.take(0, members=frozenset(map(id, mine)), limit=0.1)
    torch.nn.utils.clip_grad_norm_(mine, 0.1)
    found = meter.drain()
    assert found.clipped[0, [1, 2]] == pytest.approx([true_norm(p.grad) for p in mine], rel=ROUNDING)
    assert found.clipped[0, [0, 3]].tolist() == [ABSENT, ABSENT]
    assert found.clipped_total[0] == pytest.approx(0.1, rel=1e-4)


def test_measured_clipping_is_what_was_measured():
    parameters = make_parameters()
    meter = make_meter(parameters)
    before = true_norms(parameters)
    for step in range(3):
        meter.take(step, limit=1e-3)
    torch.nn.utils.clip_grad_value_(parameters.values(), 0.3)
    meter.take_clipped(1)
    found = meter.drain()
    assert found.norm == pytest.approx(np.array([before] * 3), rel=ROUNDING)
    assert found.clipped[1] == pytest.approx(true_norms(parameters), rel=ROUNDING)
    assert found.clipped_total[[0, 2]] == pytest.approx([1e-3] * 2, rel=1e-3)  # 1e-6 is added to the norm


@pytest.mark.parametrize(("share", "clipped"), [(1.0, False), (0.9995, False), (0.9985, True), (0.0, True)])
def test_a_step_counts_as_clipped_from_a_thousandth_on(share, clipped):
    assert make_norms([[3.0, 4.0]], [[3.0 * share, 4.0 * share]]).was_clipped.tolist() == [clipped]


# ---- headline numbers ------------------------------------------------------------------------------------------------


def test_scalars_are_medians_over_the_steps():
    norms = make_norms(
        [[3.0, 4.0], [ABSENT, 1.0], [6.0, 8.0], [0.0, 0.0], [1.0, ABSENT]],
        [[3.0, 4.0], [ABSENT, 1.0], [0.6, 0.8], [0.0, 0.0], [1.0, ABSENT]],
        blocks=("m.l0/new", "m.l0/reset"),
        block_norm=np.array([[1.0, 9.0], [ABSENT, 7.0], [3.0, 8.0], [7.0, 5.0], [2.0, 6.0]]),
    )
    assert norms.total.tolist() == [5.0, 1.0, 10.0, 0.0, 1.0]
    assert norms.scalars() == pytest.approx(
        {
            "total/norm": 1.0,
            "total/norm_max": 10.0,
            "total/norm_clipped": 1.0,
            "total/clipped": 0.2,
            "total/non_finite": 0.0,
            "parameters/p/norm": 2.0,  # of 0, 1, 3 and 6
            "parameters/q/norm": 2.5,  # of 0, 1, 4 and 8
            "m.l0/new/norm": 2.5,
            "m.l0/reset/norm": 7.0,
        }
    )


def test_nan_counts_as_infinite_in_scalars():
    norms = make_norms([[math.nan, 1.0], [math.nan, 1.0], [2.0, math.inf]])
    found = norms.scalars()
    assert found["total/norm"] == found["total/norm_max"] == found["total/norm_clipped"] == math.inf
    assert found["parameters/p/norm"] == math.inf
    assert found["parameters/q/norm"] == 1.0
    assert found["total/non_finite"] == 1.0
    lone = make_norms([[1.0], [2.0], [math.nan]]).scalars()
    assert (lone["total/norm"], lone["total/norm_max"]) == (2.0, math.inf)
    assert lone["total/non_finite"] == pytest.approx(1 / 3)


def test_a_parameter_that_never_had_a_gradient_has_norm_zero():
    found = make_norms([[ABSENT, 1.0], [ABSENT, 2.0]]).scalars()
    assert found["parameters/p/norm"] == 0
    assert found["total/norm"] == 1.5


# ---- single elements -------------------------------------------------------------------------------------------------


def exponents_by_hand(values):
    """(zeros, subnormal, nan, infinite, counts) with the standard library's floats."""
    smallest = torch.finfo(values.dtype).smallest_normal
    counts = np.zeros(HIGHEST - LOWEST + 1, dtype=np.int64)
    zeros = subnormal = nan = infinite = 0
    for value in map(abs, values.flatten().double().tolist()):
        if math.isnan(value):
            nan += 1
        elif math.isinf(value):
            infinite += 1
        elif value == 0:
            zeros += 1
        elif value < smallest:
            subnormal += 1
        else:
            exponent = math.frexp(value)[1] - 1
            counts[min(max(exponent, LOWEST), HIGHEST) - LOWEST] += 1
    return zeros, subnormal, nan, infinite, counts


def hard_values(dtype):
    """Random numbers of every magnitude that the type knows, all its powers of two and the numbers just beside them."""
    facts = torch.finfo(dtype)
    low, high = math.log2(facts.tiny) - 60, math.log2(facts.max)
    powers = torch.arange(math.floor(low), math.floor(high) + 1, dtype=torch.float64).exp2().to(dtype)
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(997, generator=generator, dtype=torch.float64) * (high - low) + low
    signs = torch.randint(0, 2, (997,), generator=generator) * 2 - 1
    zero, infinity = torch.zeros(1, dtype=dtype), torch.full((2,), math.inf, dtype=dtype)
    beside = [torch.nextafter(powers, zero), torch.nextafter(powers, infinity[:1])] if powers.element_size() > 2 else []
    edges = torch.tensor([0.0, -0.0, math.nan, -math.nan, facts.tiny, -facts.tiny, facts.max, facts.min]).to(dtype)
    if dtype == torch.float64:
        edges[4:] = torch.tensor([facts.tiny, -facts.tiny, facts.max, facts.min], dtype=dtype)
    return torch.cat([powers, -powers, *beside, (spread.exp2() * signs).to(dtype), edges, infinity, -infinity])


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_exponents_are_exact(dtype):
    values = hard_values(dtype)
    zeros, subnormal, nan, infinite, counts = exponents_by_hand(values)
    assert min(zeros, subnormal, nan, infinite) >= 2
    found = gradient_sizes({"a": values, "b": values[: len(values) // 2]})
    assert found.parameters == ("a", "b")
    assert found.elements.tolist() == [len(values), len(values) // 2]
    assert (found.zeros[0], found.subnormal[0], found.nan[0], found.infinite[0]) == (zeros, subnormal, nan, infinite)
    assert found.counts.shape == (2, HIGHEST - LOWEST + 1)
    assert found.counts[0].tolist() == counts.tolist()
    everything = found.counts.sum(1) + found.zeros + found.subnormal + found.nan + found.infinite
    assert everything.tolist() == found.elements.tolist()
    assert found.zero_share[0] == pytest.approx(zeros / len(values))


def test_exponents_beyond_the_ends_are_put_at_the_ends():
    values = torch.tensor([2.0**-300, 2.0**-127, 2.0**-126, 2.0**127, 2.0**128, 2.0**300], dtype=torch.float64)
    counts = gradient_sizes({"a": values}).counts[0]
    assert [counts[0], counts[1], counts[-2], counts[-1]] == [2, 1, 1, 2]


def test_scalars_empty_and_transposed_gradients_are_counted():
    values = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 5),
        "turned": torch.arange(6.0).view(2, 3).T,
        "complex": torch.tensor([3 + 4j, 0j]),
    }
    found = gradient_sizes(values)
    assert found.elements.tolist() == [1, 0, 6, 4]
    assert found.zeros.tolist() == [0, 0, 1, 2]
    assert found.zero_share.tolist() == [0, 0, 1 / 6, 0.5]
    assert found.counts[:, -LOWEST : -LOWEST + 3].tolist() == [[0, 1, 0], [0, 0, 0], [1, 2, 2], [0, 1, 1]]


def test_no_gradients_at_all_give_an_empty_table():
    found = gradient_sizes({})
    assert found.parameters == ()
    assert found.counts.shape == (0, HIGHEST - LOWEST + 1)
    assert found.zero_share.shape == found.elements.shape == (0,)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_update_ratio_is_the_change_relative_to_the_weights_before():
    before = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([2.0, 0.0], dtype=torch.float64)}
    after = {"a": nn.Parameter(torch.tensor([[3.0, 5.0]])), "b": before["b"] * 3, "c": torch.ones(1)}
    assert update_ratios(before, after) == pytest.approx({"a": 0.2, "b": 2.0})


def test_update_ratio_of_zero_weights_is_zero():
    assert update_ratios({"a": torch.zeros(3)}, {"a": torch.ones(3)}) == {"a": 0.0}
    assert update_ratios({}, {"a": torch.ones(3)}) == {}


def test_update_ratio_of_half_precision_weights_does_not_overflow():
    before = torch.full((100,), 2e4, dtype=torch.float16)
    assert before.norm().isinf()
    found = update_ratios({"a": before}, {"a": before * 1.5})
    assert found["a"] == pytest.approx(0.5, rel=1e-3)
