"""Shapes of states against closed forms, what must not matter, and PCA and loops as second roads."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from rnn_callbacks.analysis.cka import geometry
from rnn_callbacks.analysis.representation import DEAD, representation

SEQUENCES, STEPS, UNITS = 43, 5, 7


@pytest.fixture
def generator():
    return np.random.default_rng(11)


def measured(states, counted=None):
    return representation(geometry(states, counted))


def mixed(generator, sequences=SEQUENCES, steps=STEPS, units=UNITS):
    """Correlated states about a mean that is not zero."""
    return generator.normal(size=(sequences, steps, units)) @ generator.normal(size=(units, units)) + 2


def corners(axes, units=UNITS):
    """Plus and minus one along each of the first axes: equal variances, mean zero."""
    return np.concatenate([np.eye(units)[:axes], -np.eye(units)[:axes]])


def ragged(sequences=SEQUENCES, steps=STEPS):
    return np.arange(steps) < 2 + np.arange(sequences)[:, None] % (steps - 1)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 3, UNITS])
def test_participation_ratio_of_equal_variances_is_their_number(axes):
    found = measured(corners(axes))
    assert found.participation_ratio == pytest.approx(axes, rel=1e-12)
    np.testing.assert_allclose(found.spectrum, [1 / axes] * axes + [0] * (UNITS - axes), atol=1e-15)
    assert found.variance == pytest.approx(1 / UNITS, rel=1e-12)


def test_participation_ratio_of_known_variances():
    points = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])  # variances 4.5 and 0.5
    found = measured(points + 10)
    assert found.participation_ratio == pytest.approx(25 / 20.5)
    np.testing.assert_allclose(found.spectrum, [4.5, 0.5])
    np.testing.assert_allclose(found.deviation, np.sqrt([4.5, 0.5]))
    assert found.components == 1
    assert found.mean_square == pytest.approx(102.5)


@pytest.mark.parametrize(
    "spectrum, components", [([8, 1.5, 0.5], 2), ([8.9, 1, 0.1], 2), ([9.1, 0.9], 1), ([5, 3, 2], 3)]
)
def test_components_are_those_that_hold_nine_tenths(spectrum, components):
    axes = np.diag(np.sqrt(spectrum))
    assert measured(np.concatenate([axes, -axes])).components == components


@pytest.mark.parametrize("axes, units", [(1, UNITS), (2, UNITS), (5, 31), (17, 31)])
def test_participation_ratio_of_one_step_is_hardly_biased_by_few_sequences(generator, axes, units):
    draws = np.zeros((SEQUENCES, 300, units))
    draws[..., :axes] = generator.normal(size=(SEQUENCES, 300, axes))
    found = measured(draws).participation_by_step
    # The square of an unbiased trace is itself 2 / (k n) too large: .05 for one dimension, less for more.
    assert found.mean() == pytest.approx(axes, rel=0.06)
    if axes == 17:
        assert measured(draws[:, :1]).participation_ratio < 14  # as the docstring warns


def test_sequences_that_are_alike_at_no_step_on_average_are_all_that_differs(generator):
    half = generator.normal(size=(SEQUENCES, STEPS, UNITS))
    assert measured(np.concatenate([half, -half])).between == pytest.approx(1, abs=1e-12)


def test_nothing_lies_between_sequences_that_are_all_the_same(generator):
    path = generator.normal(size=(1, STEPS, UNITS))
    assert measured(np.repeat(path, SEQUENCES, 0)).between == pytest.approx(0, abs=1e-15)
    assert measured(np.repeat(path, SEQUENCES, 0).astype(np.float32)).between == pytest.approx(0, abs=1e-15)


def test_share_between_sequences_of_a_constant_and_a_signal():
    signal = np.array([1.0, -1] * 4)[:, None, None]
    assert measured(np.repeat(signal + 3, STEPS, 1)).between == pytest.approx(0.1)


def test_unit_is_dead_below_a_hundredth_of_the_root_mean_square_deviation(generator):
    swing = np.array([1.0, -1.0])[:, None] * np.ones((1, UNITS))
    for factor, dead in ((0.9, True), (1.1, False)):
        states = swing.copy()
        typical = np.sqrt((UNITS - 1) / UNITS)
        states[:, 2] *= factor * DEAD * typical
        found = measured(states)
        assert found.dead.tolist() == [unit == 2 and dead for unit in range(UNITS)]
        assert found.scalars()["dead_units"] == pytest.approx(dead / UNITS)


def test_scalars_are_the_properties(generator):
    found = measured(mixed(generator))
    assert found.scalars() == {
        "participation_ratio": found.participation_ratio,
        "components": found.components,
        "variance": found.variance,
        "dead_units": 0.0,
        "between_sequences": found.between,
    }


# ---- second roads ----------------------------------------------------------------------------------------------------


def test_spectrum_is_that_of_principal_component_analysis(generator):
    states = mixed(generator)
    flat = states.reshape(-1, UNITS)
    referee = PCA().fit(flat)
    found = measured(states)
    np.testing.assert_allclose(found.spectrum, referee.explained_variance_ * (len(flat) - 1) / len(flat))
    np.testing.assert_allclose(found.deviation, flat.std(0))
    assert found.states == len(flat)
    assert found.components == np.argmax(np.cumsum(referee.explained_variance_ratio_) >= 0.9) + 1


def test_spectrum_of_fewer_states_than_units_ends_in_zeros(generator):
    found = measured(generator.normal(size=(3, 1, UNITS)))
    assert (found.spectrum >= 0).all()
    assert found.participation_ratio <= 2
    np.testing.assert_allclose(found.spectrum[2:], 0, atol=1e-15)


def naive_between(states, counted):
    total, square = 0.0, 0.0
    for step in range(states.shape[1]):
        rows = [states[n, step] for n in range(len(states)) if counted[n, step]]
        mean = sum(rows) / len(rows)
        total += sum(float(((row - mean) ** 2).sum()) for row in rows)
        square += sum(float((row**2).sum()) for row in rows)
    return total / square


def test_share_between_sequences_is_that_of_a_loop(generator):
    states = mixed(generator)
    for counted in (np.ones((SEQUENCES, STEPS), bool), ragged()):
        assert measured(states, counted).between == pytest.approx(naive_between(states, counted), rel=1e-12)


def test_participation_by_step_is_that_of_an_unbiased_loop(generator):
    """Against Song's U-statistic written with products of samples."""
    states = mixed(generator, sequences=13)
    for step, value in enumerate(measured(states).participation_by_step):
        centred = states[:, step] - states[:, step].mean(0)
        kernel = centred @ centred.T
        np.fill_diagonal(kernel, 0)
        n = len(kernel)
        squares = np.trace(kernel @ kernel) + kernel.sum() ** 2 / ((n - 1) * (n - 2))
        squares = (squares - 2 / (n - 2) * (kernel @ kernel).sum()) / (n * (n - 3))
        total = np.trace(np.cov(states[:, step].T))
        assert value == pytest.approx(np.clip(total**2 / squares, 1, UNITS), rel=1e-9)


# ---- what must not matter --------------------------------------------------------------------------------------------


def assert_alike(one, other, *, rel=1e-9):
    for name, value in one.scalars().items():
        assert other.scalars()[name] == pytest.approx(value, rel=rel), name
    np.testing.assert_allclose(one.participation_by_step, other.participation_by_step, rtol=rel)


def test_rotation_and_order_change_nothing_but_single_units(generator):
    states = mixed(generator)
    turn = np.linalg.qr(generator.normal(size=(UNITS, UNITS)))[0]
    found = measured(states)
    assert_alike(found, measured(states @ turn))
    assert_alike(found, measured(states[generator.permutation(SEQUENCES)]))
    units = generator.permutation(UNITS)
    np.testing.assert_allclose(measured(states[..., units]).deviation, found.deviation[units])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale_changes_only_what_has_a_scale(generator, scale, kind):
    states = mixed(generator).astype(kind)
    found, scaled = measured(states), measured((states * scale).astype(kind))
    assert scaled.variance == pytest.approx(found.variance * scale**2, rel=1e-5)
    assert scaled.mean_square == pytest.approx(found.mean_square * scale**2, rel=1e-5)
    np.testing.assert_allclose(scaled.deviation, found.deviation * scale, rtol=1e-5)
    for name in ("participation_ratio", "components", "dead_units", "between_sequences"):
        assert scaled.scalars()[name] == pytest.approx(found.scalars()[name], rel=1e-5)
    np.testing.assert_allclose(scaled.participation_by_step, found.participation_by_step, rtol=1e-5)


def test_shift_changes_only_what_is_about_zero(generator):
    states = mixed(generator)
    found, moved = measured(states), measured(states + 100)
    np.testing.assert_allclose(moved.spectrum, found.spectrum, rtol=1e-9)
    np.testing.assert_allclose(moved.participation_by_step, found.participation_by_step, rtol=1e-9)
    assert moved.between < 0.1 * found.between


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, 1e9])
def test_what_is_not_counted_does_not_matter(generator, rubbish):
    states, counted = mixed(generator), ragged()
    found = measured(states, counted)
    spoilt = np.where(counted[..., None], states, rubbish)
    assert_alike(found, measured(spoilt, counted), rel=1e-12)
    assert found.states == counted.sum()
    if not np.isfinite(rubbish):
        assert_alike(found, measured(spoilt), rel=1e-12)


def test_padding_with_sequences_that_do_not_count_changes_nothing(generator):
    states = mixed(generator)
    padded = np.concatenate([states, np.full((3, STEPS, UNITS), np.nan)])
    assert_alike(measured(states), measured(padded), rel=1e-12)


def test_single_precision_is_right_to_its_rounding(generator):
    states = mixed(generator)
    assert_alike(measured(states), measured(states.astype(np.float32)), rel=1e-4)


def test_states_are_not_written_to(generator):
    states = mixed(generator)
    states.flags.writeable = False
    measured(states)


# ---- nothing to measure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 3000.0])
def test_constant_states_have_no_dimension(value, kind):
    found = measured(np.full((SEQUENCES, STEPS, UNITS), value, kind))
    assert found.scalars() == {"variance": 0.0, "dead_units": 0.0, "between_sequences": pytest.approx(0, abs=1e-15)}
    assert np.isnan(found.participation_by_step).all()


def test_one_state_has_neither_variance_nor_neighbours():
    found = measured(np.ones((1, 1, UNITS)))
    assert found.scalars() == {"variance": 0.0, "dead_units": 0.0}
    assert np.isnan([found.between, found.participation_ratio, found.components, *found.participation_by_step]).all()


def test_step_of_fewer_than_four_sequences_has_no_participation_ratio(generator):
    counted = np.ones((SEQUENCES, STEPS), bool)
    counted[3:, 2] = counted[4:, 3] = False
    found = measured(mixed(generator), counted).participation_by_step
    assert np.isnan(found).tolist() == [False, False, True, False, False]
    assert ((found >= 1) & (found <= UNITS))[[0, 1, 3, 4]].all()


def test_no_finite_state_is_refused():
    with pytest.raises(ValueError, match="there is no finite state to measure"):
        measured(np.full((SEQUENCES, STEPS, UNITS), np.nan))


def test_what_lies_between_sequences_is_a_share_where_some_have_ended():
    states = np.array([[[1.0], [0.0]], [[-1.0], [0.0]]])
    found = representation(geometry(states, np.array([[True, True], [True, False]])))
    assert found.between == pytest.approx(1)  # the one that goes on is where both are on average


def test_one_large_unit_leaves_the_others_alive():
    states = np.random.default_rng(0).normal(size=(31, 3, 7)) * np.array([1000.0, 1, 1, 1, 1, 1, 1])
    assert representation(geometry(states)).scalars()["dead_units"] == 0


def test_a_constant_large_unit_hides_no_other():
    states = np.random.default_rng(0).normal(size=(31, 3, 7)).astype(np.float32)
    states[..., 0] = 1e5
    found = representation(geometry(states))
    assert found.dead.tolist() == [True] + [False] * 6
    assert found.variance == pytest.approx(6 / 7, rel=0.2)


def test_states_that_differ_by_rounding_are_constant():
    states = np.full((11, 3, 5), 0.1, np.float32)
    states[::2] = np.nextafter(np.float32(0.1), np.float32(1))
    assert representation(geometry(states)).scalars()["variance"] == 0
