import math

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.analysis.gate_phases import MOST_PHASES, PhaseSums
from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.cells import cells

from .known_gates import INPUTS, UNITS, hear, make, with_biases

SEQUENCES, STEPS, PARTS = 7, 11, 3
GRU = cells(make("gru"))[0]


def all_steps(sequences=SEQUENCES, steps=STEPS):
    """Row and position of every step, in no special order."""
    order = torch.randperm(sequences * steps, generator=torch.Generator().manual_seed(0))
    return order // steps, order % steps


def random_levels(*size, seed=0, dtype=torch.float32):
    return torch.rand(*size, PARTS, UNITS, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def phases_of(levels, labels):
    """Phases from gates ``(B, T, G + 1, H)`` of one batch."""
    sequences, times = all_steps(*levels.shape[:2])
    sums = PhaseSums(GRU, {0: labels})
    sums.add(levels[sequences, times], 0, sequences, times)
    return sums.result()


def anova(levels, labels):
    """Share of variance between groups by the textbook's sums of squares; ``levels (N, ...)``, ``labels (N,)``."""
    grand = levels.mean(0)
    groups = [levels[labels == k] for k in np.unique(labels)]
    between = sum(len(group) * (group.mean(0) - grand) ** 2 for group in groups)
    within = sum(((group - group.mean(0)) ** 2).sum(0) for group in groups)
    return between / (between + within), between.sum(-1) / (between + within).sum(-1)


def flat(levels, labels):
    return levels.flatten(0, 1).double().numpy(), labels.flatten().numpy()


def test_gate_that_is_the_phase_is_explained_by_it_and_an_unrelated_one_is_not():
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (SEQUENCES, STEPS))
    levels = random_levels(SEQUENCES, STEPS)
    levels[:, :, 1, 3] = labels.float()
    found = phases_of(levels, labels)
    assert found.eta_squared[1, 3] == pytest.approx(1.0, abs=1e-12)
    assert found.mean[:, 1, 3].tolist() == [0.0, 1.0]
    assert (np.delete(found.eta_squared.ravel(), UNITS + 3) < 0.5).all()


def test_shuffled_labels_explain_what_chance_does():
    # Under the null, eta^2 of N independent steps in K phases is Beta((K - 1) / 2, (N - K) / 2), its mean this one.
    torch.manual_seed(0)
    phases, sequences, steps = 5, 31, 37
    found = phases_of(random_levels(sequences, steps), torch.randint(0, phases, (sequences, steps)))
    steps_in_all = sequences * steps
    chance = (phases - 1) / (steps_in_all - 1)
    spread = math.sqrt(2 * (phases - 1)) / steps_in_all
    assert abs(found.eta_squared - chance).max() < 5 * spread  # 15 gates; a chi-squared's tail is longer than Gauss's
    assert abs(found.pooled - chance).max() < 5 * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("shape", [(SEQUENCES,), (SEQUENCES, 1), (SEQUENCES, STEPS)])
def test_shares_and_means_are_those_of_a_one_way_analysis_of_variance(shape, dtype):
    torch.manual_seed(3)
    labels = torch.randint(0, 3, shape)
    levels = random_levels(SEQUENCES, STEPS, dtype=dtype) + 0.1 * labels.view(SEQUENCES, -1, 1, 1)
    found = phases_of(levels, labels)
    x, y = flat(levels, labels.view(SEQUENCES, -1).expand(-1, STEPS))
    eta, pooled = anova(x, y)
    np.testing.assert_allclose(found.eta_squared, eta, rtol=1e-10)
    np.testing.assert_allclose(found.pooled, pooled, rtol=1e-10)
    assert found.counts.tolist() == np.bincount(y, minlength=3).tolist()
    np.testing.assert_allclose(found.mean, [x[y == k].mean(0) for k in range(3)], rtol=1e-12)
    assert found.scalars() == {
        f"{part}/phase_eta_squared": pytest.approx(share)
        for part, share in zip(("reset", "update", "new"), pooled, strict=True)
    }


def test_share_is_that_behind_the_f_statistic_of_scipy():
    torch.manual_seed(4)
    labels = torch.randint(0, 3, (SEQUENCES, STEPS))
    levels = random_levels(SEQUENCES, STEPS) + 0.2 * labels[:, :, None, None]
    x, y = flat(levels, labels)
    ratio = f_oneway(*(x[y == k] for k in range(3))).statistic * 2 / (len(x) - 3)  # between / within
    np.testing.assert_allclose(phases_of(levels, labels).eta_squared, ratio / (1 + ratio), rtol=1e-9)


def test_steps_with_negative_labels_do_not_count():
    torch.manual_seed(5)
    labels, levels = torch.randint(0, 3, (SEQUENCES, STEPS)), random_levels(SEQUENCES, STEPS)
    labels[:, ::2] = torch.tensor([-1, -100, -7, -1, -1, -1])
    levels[:, ::2] = 1e6
    found = phases_of(levels, labels)
    x, y = flat(levels[:, 1::2], labels[:, 1::2])
    np.testing.assert_allclose(found.eta_squared, anova(x, y)[0], rtol=1e-10)
    assert found.counts.sum() == len(y)


@pytest.mark.parametrize(
    "labels", [{}, {0: torch.full((SEQUENCES,), -100)}, {1: torch.zeros(SEQUENCES, dtype=torch.long)}]
)
def test_without_a_counted_step_there_is_no_scalar(labels):
    sums = PhaseSums(GRU, labels)
    sums.add(random_levels(SEQUENCES * STEPS), 0, *all_steps())
    found = sums.result()
    assert found.scalars() == {}
    assert not found.counts.any()
    assert not found.mean.any()
    assert not found.eta_squared.any()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_labels_may_be_integers_of_any_width(dtype):
    torch.manual_seed(6)
    labels, levels = torch.randint(0, 2, (SEQUENCES, STEPS)), random_levels(SEQUENCES, STEPS)
    found, truth = phases_of(levels, labels.to(dtype)), phases_of(levels, labels)
    assert np.array_equal(found.eta_squared, truth.eta_squared)


def test_phase_without_steps_changes_nothing():
    torch.manual_seed(7)
    labels, levels = torch.randint(0, 2, (SEQUENCES, STEPS)), random_levels(SEQUENCES, STEPS)
    found, gapped = phases_of(levels, labels), phases_of(levels, 3 * labels)
    np.testing.assert_allclose(gapped.eta_squared, found.eta_squared, rtol=1e-12)
    assert (gapped.counts[[1, 2]] == 0).all()
    assert not gapped.mean[[1, 2]].any()


def test_renaming_phases_and_shifting_gates_leave_the_shares_alone():
    torch.manual_seed(8)
    labels, levels = torch.randint(0, 3, (SEQUENCES, STEPS)), random_levels(SEQUENCES, STEPS, dtype=torch.float64)
    found, turned = phases_of(levels, labels), phases_of(5.0 - 2 * levels, 2 - labels)
    np.testing.assert_allclose(turned.eta_squared, found.eta_squared, rtol=1e-10)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.7300000190734863, 1.0])
def test_gate_that_never_moves_is_explained_by_nothing(level):
    torch.manual_seed(9)
    labels = torch.randint(0, 3, (SEQUENCES, STEPS))
    found = phases_of(torch.full((SEQUENCES, STEPS, PARTS, UNITS), level, dtype=torch.float64), labels)
    assert not found.eta_squared.any()
    assert not found.pooled.any()
    assert (found.mean == level).all()


def test_gate_that_moves_by_a_billionth_is_measured_as_well_as_any():
    # Without a centre near the gate, squares of 0.9 leave 1e-16, and the variance here is 1e-21.
    torch.manual_seed(10)
    labels, levels = torch.randint(0, 3, (SEQUENCES, STEPS)), random_levels(SEQUENCES, STEPS, dtype=torch.float64)
    # 1e-10 of a number near 1 keeps 6 digits in float64.
    near_one = phases_of(0.9 + 1e-10 * levels, labels)
    np.testing.assert_allclose(near_one.eta_squared, phases_of(levels, labels).eta_squared, rtol=1e-4)


def test_batches_of_unlike_width_add_up():
    torch.manual_seed(11)
    sizes = {0: (2, 5), 1: (7, 11), 4: (3, 2)}
    labels = {n: torch.randint(0, 3, size) for n, size in sizes.items()}
    levels = {n: random_levels(*size, seed=n) for n, size in sizes.items()}
    sums = PhaseSums(GRU, labels)
    for n, size in sizes.items():
        sequences, times = all_steps(*size)
        half = len(times) // 2  # in two pieces, as chunks come
        for rows in (slice(half), slice(half, None), slice(0)):
            sums.add(levels[n][sequences, times][rows], n, sequences[rows], times[rows])
    x = np.concatenate([flat(levels[n], labels[n])[0] for n in sizes])
    y = np.concatenate([flat(levels[n], labels[n])[1] for n in sizes])
    np.testing.assert_allclose(sums.result().eta_squared, anova(x, y)[0], rtol=1e-10)


@pytest.mark.parametrize("lengths", [None, (4, 11, 1)])
@pytest.mark.parametrize("name", ["l0", "l0_reverse"])
def test_labels_meet_the_steps_they_belong_to_in_either_direction(name, lengths):
    # The update gate is a function of the present input alone, and the label says which input it was.
    module = with_biases(make("gru", bidirectional=True))
    with torch.no_grad():
        module.weight_ih_l0[UNITS : 2 * UNITS, 0] = 2.0
        module.weight_ih_l0_reverse[UNITS : 2 * UNITS, 0] = 2.0
    torch.manual_seed(12)
    labels = {0: torch.randint(0, 2, (3, STEPS)), 1: torch.randint(0, 2, (3, STEPS))}
    inputs = [
        torch.zeros(3, STEPS, INPUTS).index_fill(2, torch.tensor(0), 1.0) * y[:, :, None] for y in labels.values()
    ]
    if lengths:
        inputs = [pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False) for x in inputs]
    heard = hear(module, *inputs)[name]
    sums = PhaseSums(heard[0].cell, labels)
    gate_statistics(heard, phases=sums)
    found = sums.result()
    assert found.cell == name
    np.testing.assert_allclose(found.eta_squared[1], 1.0, rtol=1e-12)
    np.testing.assert_allclose(found.mean[0, 1], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.mean[1, 1], 1 / (1 + math.exp(2)), rtol=1e-6)  # update is 1 - z
    assert found.counts.sum() == 2 * sum(lengths or (STEPS,) * 3)


def test_steps_left_out_as_nan_are_in_no_phase():
    x = torch.randn(SEQUENCES, STEPS, INPUTS, generator=torch.Generator().manual_seed(0))
    x[2, 4:] = math.nan
    heard = hear(make("gru"), x)["l0"]
    sums = PhaseSums(heard[0].cell, {0: torch.arange(STEPS).expand(SEQUENCES, -1)})
    gate_statistics(heard, phases=sums)
    assert sums.result().counts.tolist() == [7] * 4 + [6] * 7
    assert np.isfinite(sums.result().eta_squared).all()


def test_labels_that_are_no_phases_are_refused():
    for labels, got in (
        (torch.zeros(7), r"torch.float32 of shape \(7,\)"),
        (torch.zeros(7, dtype=torch.complex64), r"torch.complex64 of shape \(7,\)"),
        (torch.zeros(7, 11, 2, dtype=torch.long), r"torch.int64 of shape \(7, 11, 2\)"),
        (torch.tensor(3), r"torch.int64 of shape \(\)"),
    ):
        with pytest.raises(ValueError, match=rf"phases must be integers of shape \(B,\) or \(B, T\), got {got}"):
            PhaseSums(GRU, {0: labels})
    PhaseSums(GRU, {0: torch.tensor([MOST_PHASES - 1])})
    with pytest.raises(ValueError, match="phases must be numbers from 0 to 63, got one as large as 64"):
        PhaseSums(GRU, {0: torch.tensor([MOST_PHASES])})


@pytest.mark.parametrize(("shape", "steps"), [((6,), STEPS), ((6, 11), STEPS), ((7, 10), STEPS)])
def test_labels_too_few_for_the_steps_are_refused(shape, steps):
    sums = PhaseSums(GRU, {0: torch.zeros(shape, dtype=torch.long)})
    with pytest.raises(
        ValueError, match=r"must label every sequence and step of a batch, got shape .* sequence 6 at step 10"
    ):
        sums.add(random_levels(SEQUENCES * steps), 0, *all_steps())
