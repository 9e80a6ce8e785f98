"""Geometry of known curves and walks, what must not matter, and scikit-learn's PCA of the weights themselves."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from rnn_callbacks.analysis.step_gram import PathSteps, path_steps
from rnn_callbacks.analysis.weight_trajectory import (
    COMPONENTS,
    path_components,
    squared_distances,
    weight_trajectory,
)

LONG = 307  # snapshots
FIRST = 6 / math.pi**2  # share of the first component of a long random walk


@pytest.fixture
def generator():
    return np.random.default_rng(11)


def trajectory(weights, **options):
    return weight_trajectory(path_steps(np.asarray(weights, dtype=np.float64), **options))


def components(points):
    return path_components(cdist(points, points, "sqeuclidean"))


def walk(generator, snapshots=41, parameters=97):
    return generator.normal(size=(snapshots, parameters)).cumsum(0)


def line(snapshots, direction=(3.0, 0.0, -4.0)):
    return np.arange(snapshots)[:, None] * np.array(direction) + 7


def circle(snapshots):
    """A whole turn, whose last point is its first."""
    angle = 2 * np.pi * np.arange(snapshots) / (snapshots - 1)
    return np.stack([np.cos(angle), np.sin(angle), 0 * angle + 5], 1)


def orthogonal_walk(squares):
    """Every step in a direction of its own."""
    return np.concatenate([np.zeros((1, len(squares))), np.diag(np.sqrt(squares))]).cumsum(0)


@pytest.mark.parametrize("snapshots", [2, 3, 43, LONG])
def test_straight_line_is_straight_and_has_one_component(snapshots):
    found = trajectory(line(snapshots))
    scalars, distance = found.scalars(), 5.0 * (snapshots - 1)
    assert scalars["distance"] == pytest.approx(distance, rel=1e-12)
    assert scalars["path_length"] == pytest.approx(distance, rel=1e-12)
    for name in ("straightness", "dimension", "explained"):
        assert scalars[name] == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(found.steps.cosines, 1, rtol=1e-12)
    np.testing.assert_allclose(found.from_start, 5.0 * np.arange(snapshots), rtol=1e-12)
    # Evenly spaced, so the scores are, from left to right; no rounding is shown as a second component.
    even = 5.0 * (np.arange(snapshots) - (snapshots - 1) / 2)
    np.testing.assert_allclose(found.components.scores[:, 0], even, rtol=1e-10, atol=1e-9)
    assert (found.components.scores[:, 1:] == 0).all()
    assert found.components.variances[0] == pytest.approx(25 * snapshots * (snapshots + 1) / 12, rel=1e-12)
    assert found.components.total == pytest.approx(found.components.variances[0], rel=1e-12)


@pytest.mark.parametrize("snapshots", [101, LONG])
def test_circle_has_two_equal_components_and_comes_back(snapshots):
    found = trajectory(circle(snapshots))
    # The first point counts twice, which is 3 in n points on the x axis.
    np.testing.assert_allclose(found.components.explained[:2], 0.5, atol=3 / snapshots)
    assert found.components.first_two == pytest.approx(1, rel=1e-12)
    assert found.components.dimension == pytest.approx(2, abs=1e-3)
    assert found.scalars()["distance"] == pytest.approx(0, abs=1e-7)  # half of the digits of the way
    assert found.straightness == pytest.approx(0, abs=1e-7)
    assert found.path_length == pytest.approx(2 * math.pi, rel=1e-3)
    np.testing.assert_allclose(found.steps.cosines, np.cos(2 * np.pi / (snapshots - 1)), rtol=1e-10)
    assert found.distances.max() == pytest.approx(2, rel=1e-3)


def test_open_circle_has_two_exactly_equal_components():
    found = trajectory(circle(42)[:-1])
    np.testing.assert_allclose(found.components.explained, [0.5, 0.5, *[0] * 8], atol=1e-12)
    assert found.components.dimension == pytest.approx(2, rel=1e-12)
    np.testing.assert_allclose(np.hypot(*found.components.scores[:, :2].T), 1, rtol=1e-12)


@pytest.mark.parametrize("snapshots", [2, 3, 11, 50, 200, LONG])
def test_components_of_a_random_walk_are_the_known_ones(snapshots):
    # Centred, its Gram matrix is the pseudo-inverse of the Laplacian of a chain of n nodes.
    found = trajectory(line(snapshots)).random
    k = np.arange(1, snapshots)
    known = 25 / (4 * np.sin(k * np.pi / (2 * snapshots)) ** 2)
    np.testing.assert_allclose(found.variances * (snapshots - 1), known[:COMPONENTS], rtol=1e-10)
    assert found.total * (snapshots - 1) == pytest.approx(known.sum(), rel=1e-10)
    assert found.dimension == pytest.approx(known.sum() ** 2 / (known**2).sum(), rel=1e-10)
    cosine = np.cos(np.pi * (np.arange(snapshots) + 0.5) / snapshots)
    assert abs(np.corrcoef(cosine, found.scores[:, 0])[0, 1]) == pytest.approx(1, rel=1e-10)


def test_first_component_of_a_long_random_walk_explains_six_over_pi_squared(generator):
    null = trajectory(line(499)).random
    np.testing.assert_allclose(null.explained[:3], FIRST / np.array([1, 4, 9]), rtol=1e-4)
    assert null.first_two == pytest.approx(0.76, abs=1e-3)
    assert null.dimension == pytest.approx(2.5, rel=1e-4)  # (sum of k^-2)^2 / sum of k^-4
    # A walk in P dimensions scatters about it by about .2 / sqrt(P), here .002.
    found = trajectory(walk(generator, 101, 10007))
    assert found.components.explained[0] == pytest.approx(FIRST, abs=0.01)
    np.testing.assert_allclose(found.components.explained, found.random.explained, atol=0.01)
    assert found.straightness == pytest.approx(found.random_straightness, rel=0.03)


def test_random_walk_beside_is_the_mean_of_walks_in_many_dimensions(generator):
    lengths = generator.uniform(0.2, 3, 22)
    null = trajectory(orthogonal_walk(lengths**2)).scalars()
    found = []
    for _ in range(40):
        steps = generator.normal(size=(22, 1009))
        steps *= (lengths / np.linalg.norm(steps, axis=1))[:, None]
        found.append(trajectory(np.concatenate([np.zeros((1, 1009)), steps]).cumsum(0)).scalars())
    for name in ("explained", "dimension", "straightness"):
        values = np.array([one[name] for one in found])
        assert values.std() < 0.1
        assert null[f"{name}_random"] == pytest.approx(values.mean(), abs=4 * values.std() / math.sqrt(40))


@pytest.mark.parametrize("most", [500, 60, 7])
@pytest.mark.parametrize("kind", ["walk", "swing", "line", "stops"])
def test_random_walk_beside_has_the_lengths_of_all_steps_also_of_those_not_drawn(generator, kind, most):
    path = walk(generator, 103, 5)
    path = {"walk": path, "swing": path[[0, 1] * 51], "line": line(103), "stops": path[np.minimum(range(103), 40)]}
    found = trajectory(path[kind], most=most)
    true = trajectory(orthogonal_walk(found.steps.squares), most=most)
    np.testing.assert_array_equal(true.steps.points, found.steps.points)
    for name in ("variances", "total", "dimension", "explained"):
        own, other = getattr(found.random, name), getattr(true.components, name)
        np.testing.assert_allclose(own, other, rtol=1e-9, atol=1e-9)
    assert found.random_straightness == pytest.approx(true.straightness, rel=1e-12)


def test_random_walk_beside_knows_nothing_of_directions(generator):
    steps = generator.normal(size=(40, 13)) + 0.5
    found = trajectory(steps.cumsum(0))
    turned = steps * generator.choice([-1, 1], 40)[:, None]
    other = trajectory(np.concatenate([steps[:1], turned[1:]]).cumsum(0))
    np.testing.assert_allclose(other.random.variances, found.random.variances, rtol=1e-10)
    assert other.random_straightness == pytest.approx(found.random_straightness, rel=1e-12)
    assert other.straightness < 0.6 * found.straightness
    # Equally long steps may also be taken in any order.
    steps /= np.linalg.norm(steps, axis=1)[:, None]
    one, permuted = (trajectory(order.cumsum(0)) for order in (steps, generator.permutation(steps)))
    np.testing.assert_allclose(one.random.variances, permuted.random.variances, rtol=1e-10)
    assert one.path_length == pytest.approx(permuted.path_length, rel=1e-12)


def low_rank(generator, snapshots, rank):
    return walk(generator, snapshots, rank) @ generator.normal(size=(rank, 37)) + 2


PATHS = {
    "walk": lambda g, n: walk(g, n),
    "around one point": lambda g, n: g.normal(size=(n, 97)),
    "to a goal": lambda g, n: 0.01 * walk(g, n) + 9 * np.exp(-np.arange(n)[:, None] * g.uniform(0.01, 0.3, 97)),
    "line": lambda g, n: line(n),
    "in two dimensions": lambda g, n: low_rank(g, n, 2),
    "in three dimensions": lambda g, n: low_rank(g, n, 3),
    "two parameters": lambda g, n: walk(g, n, 2),
    "one parameter": lambda g, n: walk(g, n, 1),
    "repeated points": lambda g, n: walk(g, n)[np.minimum(np.arange(n) // 3, n // 5)],
    "to and fro": lambda g, n: walk(g, 2)[np.arange(n) % 2],
    "one jump": lambda g, n: walk(g, 2)[(np.arange(n) == n - 1).astype(int)],
}


@pytest.mark.parametrize("snapshots", [5, 12, 41, 200, 201, LONG])
@pytest.mark.parametrize("kind", PATHS)
def test_components_are_those_of_scikit_learn(generator, kind, snapshots):
    weights = PATHS[kind](generator, snapshots)
    found = trajectory(weights).components
    referee = PCA(min(COMPONENTS, *weights.shape, snapshots - 1), svd_solver="full").fit(weights)
    shown, scores = referee.n_components_, referee.transform(weights)
    scale = referee.explained_variance_[0]
    assert found.scores.shape == (snapshots, min(COMPONENTS, snapshots - 1))
    np.testing.assert_allclose(found.variances[:shown], referee.explained_variance_, atol=1e-12 * scale)
    np.testing.assert_allclose(found.explained[:shown], referee.explained_variance_ratio_, atol=1e-12)
    signs = np.where((scores * found.scores[:, :shown]).sum(0) < 0, -1, 1)
    np.testing.assert_allclose(found.scores[:, :shown], scores * signs, atol=1e-8 * math.sqrt(scale))
    np.testing.assert_allclose(found.variances[shown:], 0, atol=1e-12 * scale)
    assert found.total == pytest.approx(weights.var(0, ddof=1).sum(), rel=1e-10)


def test_equally_distant_points_have_as_many_equal_components_as_there_can_be():
    for snapshots in (7, LONG):
        found = trajectory(np.eye(snapshots)).components
        np.testing.assert_allclose(found.variances, 1 / (snapshots - 1), rtol=1e-9)
        assert found.dimension == pytest.approx(snapshots - 1, rel=1e-9)


@pytest.mark.parametrize("kind", PATHS)
def test_same_path_gives_bit_identical_components(generator, kind):
    steps = path_steps(PATHS[kind](generator, LONG))
    one, other = weight_trajectory(steps).components, weight_trajectory(steps).components
    np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("parameters", [1, 2, 13, 97])
def test_dimension_is_the_participation_ratio_of_all_variances(generator, parameters):
    weights = walk(generator, 41, parameters) * generator.uniform(0.1, 3, parameters)
    variances = np.linalg.svd(weights - weights.mean(0), compute_uv=False) ** 2
    found = trajectory(weights).components
    assert found.dimension == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-10)
    assert found.first_two == pytest.approx(variances[:2].sum() / variances.sum(), rel=1e-10)


@pytest.mark.parametrize("most", [500, 40])
def test_distances_are_those_of_scipy(generator, most):
    weights = walk(generator, 131) + 5
    found = trajectory(weights, most=most)
    drawn = weights[found.steps.points]
    np.testing.assert_allclose(found.distances, cdist(drawn, drawn), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(found.distances, found.distances.T)
    np.testing.assert_array_equal(np.diagonal(found.distances), 0)
    np.testing.assert_array_equal(found.from_start, found.distances[0])


def late_small_steps(generator):
    """Far from the start, and then steps of a billionth of that."""
    steps = generator.normal(size=(60, 37))
    steps[30:] *= 1e-9
    return steps.cumsum(0)


@pytest.mark.parametrize("most", [500, 31])
def test_late_small_steps_keep_their_digits(generator, most):
    weights = late_small_steps(generator)
    found = trajectory(weights, most=most)
    late = np.flatnonzero(found.steps.points >= 30)
    drawn = weights[found.steps.points[late]]
    true = np.linalg.norm(drawn[:, None] - drawn[None], axis=2)
    off = ~np.eye(len(late), dtype=bool)
    assert true[off].max() < 1e-6 * found.from_start[-1]
    np.testing.assert_allclose(found.distances[np.ix_(late, late)][off], true[off], rtol=1e-10)
    # Products of the weights themselves know nothing of these steps, not even in double precision.
    gram = drawn @ drawn.T
    squared = np.diagonal(gram)[:, None] + np.diagonal(gram)[None] - 2 * gram
    assert np.abs(np.sqrt(np.maximum(squared, 0))[off] / true[off] - 1).max() > 1


def test_rotation_shift_and_useless_parameters_do_not_matter(generator):
    weights = walk(generator, 31, 13)
    found = trajectory(weights)
    rotation = np.linalg.qr(generator.normal(size=(13, 13)))[0]
    padded = np.concatenate([np.full((31, 5), 3.0), weights], axis=1)
    for same in (weights @ rotation, weights[:, generator.permutation(13)], weights + 9, padded):
        other = trajectory(same)
        np.testing.assert_allclose(other.distances, found.distances, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(other.components.scores, found.components.scores, atol=1e-8)
        np.testing.assert_allclose(other.components.variances, found.components.variances, rtol=1e-9)


def test_backwards_the_path_is_as_long_and_as_straight(generator):
    weights = walk(generator, 31, 13)
    there, back = trajectory(weights), trajectory(weights[::-1])
    for name in ("distance", "path_length", "straightness", "straightness_random", "dimension", "explained"):
        assert back.scalars()[name] == pytest.approx(there.scalars()[name], rel=1e-10)
    np.testing.assert_allclose(back.distances, there.distances[::-1, ::-1], rtol=1e-9, atol=1e-9)


# Beyond, squares are no numbers; single precision ends at 3e38.
@pytest.mark.parametrize("size", [1e-150, 1e-100, 1e-30, 1e30, 1e100, 1e150])
@pytest.mark.parametrize("snapshots", [7, LONG])
def test_unit_of_the_weights_does_not_matter(generator, snapshots, size):
    weights = walk(generator, snapshots, 13)
    found, scaled = trajectory(weights), trajectory(weights * size)
    lengths = ("distance", "step", "path_length")
    true = {name: value * (size if name in lengths else 1) for name, value in found.scalars().items()}
    assert scaled.scalars() == pytest.approx(true, rel=1e-9)
    np.testing.assert_allclose(scaled.components.scores / size, found.components.scores, atol=1e-7)
    np.testing.assert_allclose(scaled.random.explained, found.random.explained, rtol=1e-9)


def test_last_point_lies_to_the_right_and_pictures_of_a_growing_path_do_not_turn_over(generator):
    weights = walk(generator, 61, 997) + 2 * np.arange(61)[:, None] * generator.normal(size=997) ** 2
    before = None
    for snapshots in range(8, 62):
        scores = trajectory(weights[:snapshots]).components.scores[:, :2]
        assert scores[-1, 0] > scores[0, 0]
        assert scores[0, 1] > 0
        if before is not None:
            for axis in range(2):
                assert np.corrcoef(before[:, axis], scores[:-1, axis])[0, 1] > 0.9
        before = scores


ZERO = {
    "distance": 0.0,
    "relative_distance": 0.0,
    "step": 0.0,
    "relative_step": 0.0,
    "path_length": 0.0,
    "straightness": 0.0,
    "straightness_random": 0.0,
    "turning": 0.0,
    "dimension": 0.0,
    "dimension_random": 0.0,
    "explained": 0.0,
    "explained_random": 0.0,
}


@pytest.mark.parametrize("snapshots", [1, 2, 3, 23, LONG])
@pytest.mark.parametrize("weight", [0.0, 0.1, -1e30])
def test_weights_that_stand_still_have_zeros_for_all_numbers(snapshots, weight):
    found = trajectory(np.full((snapshots, 5), weight))
    assert found.scalars() == ZERO
    assert (found.distances == 0).all()
    assert found.components.scores.shape == found.random.scores.shape == (snapshots, min(COMPONENTS, snapshots - 1))
    for one in (found.components, found.random):
        assert (one.scores == 0).all()
        assert (one.explained == 0).all()


def test_numbers_are_those_of_the_latest_step_and_of_the_whole_path():
    weights = np.array([[3.0, 4.0], [3.0, 8.0], [6.0, 8.0], [6.0, 4.0]])
    scalars = trajectory(weights).scalars()
    assert list(scalars) == list(ZERO)
    variances = np.linalg.eigvalsh(np.cov(weights.T))
    true = {
        "distance": 3.0,
        "relative_distance": 0.6,
        "step": 4.0,
        "relative_step": 0.4,
        "path_length": 11.0,
        "straightness": 3 / 11,
        "straightness_random": math.sqrt(41) / 11,
        "turning": 0.0,
        "dimension": variances.sum() ** 2 / (variances**2).sum(),
        "explained": 1.0,
    }
    null = trajectory(orthogonal_walk([16, 9, 16])).components
    true |= {"dimension_random": null.dimension, "explained_random": null.first_two}
    assert scalars == pytest.approx(true, rel=1e-12, abs=1e-12)
    assert trajectory([[3.0, 4.0], [3.0, 8.0], [5.0, 10.0]]).scalars()["turning"] == pytest.approx(math.sqrt(0.5))
    assert trajectory([[0.0], [1.0], [3.0]]).scalars()["turning"] == 1
    assert trajectory([[0.0], [1.0], [-3.0]]).scalars()["turning"] == -1


def test_latest_step_and_path_length_are_those_of_all_snapshots_when_few_are_drawn(generator):
    weights = walk(generator, 101, 13)
    every, few = trajectory(weights).scalars(), trajectory(weights, most=7).scalars()
    for name in set(ZERO) - {"dimension", "dimension_random", "explained", "explained_random"}:
        assert few[name] == pytest.approx(every[name], rel=1e-10)


def test_part_that_began_at_zero_has_no_relative_distance():
    scalars = trajectory([[0.0, 0.0], [0.0, 2.0], [0.0, 3.0]]).scalars()
    assert (scalars["distance"], scalars["relative_distance"], scalars["relative_step"]) == (3.0, 0.0, 0.5)


def test_first_two_components_of_two_snapshots_explain_all():
    found = trajectory([[1.0, 2.0, 3.0], [1.0, 2.0, 5.0]])
    assert found.components.explained.tolist() == pytest.approx([1.0])
    assert found.components.first_two == pytest.approx(1)
    np.testing.assert_allclose(found.components.scores, [[-1.0], [1.0]], rtol=1e-12)
    assert found.components.variances.tolist() == pytest.approx([2.0])


def test_small_second_component_is_not_taken_for_rounding():
    even, small = np.arange(40.0), 1e-4 * np.cos(np.pi * np.arange(40))
    found = trajectory(np.stack([even, small], 1)).components
    true = np.linalg.eigvalsh(np.cov(np.stack([even, small])))[0]
    assert found.explained[1] < 1e-10
    assert found.variances[1] == pytest.approx(true, rel=1e-3)  # of a share of 1e-10, with noise of 1e-15


def test_components_of_points_need_only_their_distances(generator):
    points = generator.normal(size=(19, 3))
    found = components(points)
    np.testing.assert_allclose(cdist(found.scores, found.scores), cdist(points, points), atol=1e-8)
    np.testing.assert_allclose(found.scores.mean(0), 0, atol=1e-9)
    cross = found.scores.T @ found.scores / 18
    np.testing.assert_allclose(cross, np.diag(found.variances), atol=1e-9)


def test_nothing_is_written_to(generator):
    steps = path_steps(walk(generator))
    for array in (steps.points, steps.products, steps.squares, steps.adjacent, steps.norms):
        array.flags.writeable = False
    found = weight_trajectory(steps)
    squared = found.distances**2
    squared.flags.writeable = False
    path_components(squared)
    assert isinstance(found.steps, PathSteps)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 3)])
def test_products_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"products must be \(n - 1, n - 1\), got shape \("):
        squared_distances(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_are_refused(bad):
    products = np.eye(7)
    products[2, 3] = products[3, 2] = bad
    with pytest.raises(ValueError, match="products of steps must be finite; leave out the snapshots that hold NaN"):
        squared_distances(products)
