"""Groups of sequences that are planted, what must not matter, and scikit-learn as referee."""

import random

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import hadamard
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from rnn_callbacks.analysis.step_clusters import MARGIN, MOST, _cuts, _judge, _references, step_clusters

SEQUENCES, STEPS, UNITS = 61, 5, 13


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def clusters(states, counted=None):
    """At each step of ``(N, S, H)``, or at the one of ``(N, H)``."""
    states = states[:, None] if states.ndim == 2 else states
    return step_clusters(states, np.ones(states.shape[:2], bool) if counted is None else counted)


def groups_of(generator, count, sequences=SEQUENCES, units=UNITS):
    """States and groups, ten standard deviations or more from each other, in an order that is drawn."""
    member = generator.permutation(np.arange(sequences) % count)
    centres = np.linalg.qr(generator.normal(size=(units, units)))[0][:count] * 10
    return centres[member] + generator.normal(size=(sequences, units)) * 0.5, member


def splitting(generator, at):
    """One cloud until step `at`, four groups from there."""
    states = generator.normal(size=(SEQUENCES, STEPS, UNITS)) * 0.5
    found, _ = groups_of(generator, 4)
    states[:, at:] += found[:, None]
    return states


@pytest.mark.parametrize("at", [0, 2, 4])
def test_split_is_found_when_it_comes(generator, at):
    found = clusters(splitting(generator, at))
    assert found.count.tolist() == [1] * at + [4] * (STEPS - at)
    assert (found.silhouette[at:] > 0.7).all()
    np.testing.assert_array_equal(found.count > 1, found.silhouette > found.reference + MARGIN)


@pytest.mark.parametrize("count", [2, 3, 5, 7, MOST])
@pytest.mark.parametrize("units", [13, 101])
def test_groups_are_counted(generator, count, units):
    states, _ = groups_of(generator, count, 113, units)
    assert clusters(states).count.tolist() == [count]


def test_groups_on_a_line_are_counted(generator):
    """Where the reference is largest: .76 or less."""
    states = 10 * (np.arange(SEQUENCES) % 4) + generator.normal(size=SEQUENCES) * 0.5
    assert clusters(states[:, None]).count.tolist() == [4]


def test_groups_of_unlike_size_are_counted(generator):
    member = np.repeat(np.arange(4), [3, 7, 11, 40])
    states = 10 * np.eye(UNITS)[member] + generator.normal(size=(SEQUENCES, UNITS)) * 0.3
    assert clusters(states).count.tolist() == [4]


@pytest.mark.parametrize("units", [1, 2, 4, 8])
@pytest.mark.parametrize("sequences", [61, 127])
def test_one_cloud_is_one_cluster(generator, units, sequences):
    for draw in (generator.normal, generator.random):
        found = clusters(draw(size=(sequences, 11, units)))
        assert found.count.tolist() == [1] * 11
        assert (found.silhouette > 0).all()  # that of the best division nevertheless
    np.testing.assert_allclose(found.silhouette, found.reference, atol=1.5 * MARGIN)  # of a uniform cloud, as it says


def test_reference_falls_with_the_dimension_and_lies_between_whole_ones(generator):
    flat = generator.normal(size=(127, UNITS))
    found = [clusters(flat * (np.arange(UNITS) < size)).reference[0] for size in (1, 2, 4, 10)]
    assert (np.diff(found) < -0.03).all()
    assert found[0] == pytest.approx(_references(127)[0])
    # Two axes of which one is small are of between one and two dimensions: (1 + s)^2 / (1 + s^2), s a variance's share.
    two = np.stack([np.tile([1.0, 1, -1, -1], 16), np.tile([0.5, -0.5], 32)], 1)
    one, both = _references(64)[:2]
    assert clusters(two).reference[0] == pytest.approx(one + (1.25**2 / 1.0625 - 1) * (both - one), rel=1e-9)
    seven = hadamard(64)[:, 1:8].astype(float)  # as many axes, all alike
    assert clusters(seven).reference[0] == pytest.approx(np.mean(_references(64)[2:]), rel=1e-9)


def test_reference_is_that_of_a_uniform_cloud():
    """Drawn anew: a margin of .1 is three of the standard deviations between draws."""
    generator = np.random.default_rng(7)
    for place, size in enumerate((1, 2, 4, 10)):
        cloud = generator.random((64, size))
        best = max(_judge(squareform(pdist(cloud)), labels)[0] for labels in divisions(cloud))
        assert _references(64)[place] == pytest.approx(best, abs=MARGIN)


@pytest.mark.parametrize("outliers", [1, 2])
def test_outlier_makes_no_cluster(generator, outliers):
    cloud = generator.normal(size=(SEQUENCES, UNITS))
    cloud[-outliers:] += 1000
    assert clusters(cloud).count.tolist() == [1]
    states, _ = groups_of(generator, 3)
    states[3 : 3 + outliers] -= 300
    assert clusters(states).count.tolist() == [3]
    same = np.ones((SEQUENCES, UNITS))
    same[7 : 7 + outliers] = 5
    found = clusters(same)
    assert (found.count[0], found.silhouette[0]) == (1, 0)


def test_three_sequences_are_no_outliers(generator):
    cloud = generator.normal(size=(SEQUENCES, UNITS))
    cloud[-3:] += 1000
    assert clusters(cloud).count.tolist() == [2]


@pytest.mark.parametrize("value", [0, 0.1, 1e5, -3e-20])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_states_that_are_the_same_are_one_cluster(generator, value, kind):
    states = np.full((SEQUENCES, STEPS, UNITS), value, kind)
    for each in (states, np.broadcast_to(states * generator.normal(size=UNITS).astype(kind), states.shape)):
        found = clusters(each)
        assert found.count.tolist() == [1] * STEPS
        assert found.silhouette.tolist() == found.reference.tolist() == [0] * STEPS


@pytest.mark.parametrize("apart, count", [(1e-5, 1), (1e-3, 2)])
def test_states_less_far_apart_than_is_seen_are_the_same(generator, apart, count):
    once = generator.normal(size=UNITS)
    states = once * (1 + apart * (np.arange(SEQUENCES) % 2)[:, None])
    assert clusters(states).count.tolist() == [count]


@pytest.mark.parametrize("tokens", [2, 3, 5, 11])
@pytest.mark.parametrize("noise", [0, 1e-9])
def test_few_distinct_states_are_as_many_clusters(generator, tokens, noise):
    value = generator.normal(size=(tokens, UNITS))[generator.permutation(np.arange(SEQUENCES) % tokens)]
    found = clusters(value + noise * generator.normal(size=value.shape))
    assert found.count.tolist() == [tokens]
    if tokens < 4:  # all variance is kept, so nothing is left to tell states of one token apart
        assert found.silhouette[0] == pytest.approx(1, abs=1e-4)


def test_more_clusters_than_are_looked_for_are_so_many(generator):
    value = np.eye(17)[np.arange(113) % 17]
    assert clusters(value).count[0] <= MOST
    line = np.exp(np.arange(17.0))[np.arange(113) % 17, None]
    assert clusters(line).count[0] <= MOST
    assert clusters(np.arange(113)[:, None] % 17 + 0.0).count.tolist() == [MOST]


def test_fewer_than_eight_sequences_have_no_clusters(generator):
    states = np.concatenate([splitting(generator, 0)] * 2, 1)
    counted = np.arange(SEQUENCES)[:, None] < np.array([0, 1, 4, 7, 8, 20, 61, 61, 61, 61])
    found = clusters(states, counted)
    for numbers in (found.count, found.silhouette, found.reference):
        np.testing.assert_array_equal(np.isnan(numbers), np.arange(10) < 4)
    assert found.count.tolist()[6:] == [4] * 4
    nothing = clusters(np.zeros((0, 3, UNITS)))
    assert np.isnan([nothing.count, nothing.silhouette, nothing.reference]).all()
    assert clusters(np.zeros((SEQUENCES, 0, UNITS))).count.shape == (0,)


def test_what_is_not_counted_does_not_count(generator):
    states = splitting(generator, 2)
    counted = generator.random((SEQUENCES, STEPS)) < 0.7
    states[~counted] = np.nan
    found = clusters(states, counted)
    assert found.count.tolist() == [1, 1, 4, 4, 4]
    for step in range(STEPS):
        alone = clusters(states[counted[:, step], step])
        assert [found.silhouette[step], found.reference[step]] == [alone.silhouette[0], alone.reference[0]]


def test_as_many_sequences_as_are_clustered_are_spread_evenly(generator):
    """Of more than 128: the last of ten blocks is another group, and is found."""
    states = generator.normal(size=(1280, UNITS)) * 0.5
    states[1152:] += 10
    assert clusters(states).count.tolist() == [2]
    assert clusters(np.roll(states, 128, 0)).count.tolist() == [2]
    chosen = np.linspace(0, 1279, 128).round().astype(int)
    np.testing.assert_array_equal(clusters(states).silhouette, clusters(states[chosen]).silhouette)


def orthonormal(generator, rows, columns):
    return np.linalg.qr(generator.normal(size=(columns, rows)))[0].T


@pytest.mark.parametrize("scale", [1e-20, 7, 1e20])
def test_scale_rotation_order_and_more_units_change_nothing(generator, scale):
    states = splitting(generator, 2)
    found = clusters(states)
    turned = scale * states[generator.permutation(SEQUENCES)] @ orthonormal(generator, UNITS, 17)
    again = clusters(turned)
    np.testing.assert_array_equal(again.count, found.count)
    np.testing.assert_allclose(again.silhouette, found.silhouette, atol=1e-9)
    np.testing.assert_allclose(again.reference, found.reference, atol=1e-9)
    padded = clusters(np.concatenate([states, np.full((SEQUENCES, STEPS, 3), 0.7)], 2))
    np.testing.assert_allclose(padded.silhouette, found.silhouette, atol=1e-9)


@pytest.mark.parametrize("kind, tolerance", [(np.float16, 1e-2), (np.float32, 1e-5)])
def test_precision_of_the_states_changes_little(generator, kind, tolerance):
    states = splitting(generator, 2).astype(kind)
    found, exact = clusters(states), clusters(states.astype(np.float64))
    np.testing.assert_array_equal(found.silhouette, exact.silhouette)
    np.testing.assert_allclose(
        found.silhouette, clusters(splitting(np.random.default_rng(3), 2)).silhouette, atol=tolerance
    )


def divisions(scores):
    """Of Ward's tree into 2, 3, ... clusters, as scipy cuts it."""
    tree = linkage(scores, "ward")
    return [fcluster(tree, count, "maxclust") - 1 for count in range(2, MOST + 1)]


def test_cuts_of_the_tree_are_scipys(generator):
    scores = generator.normal(size=(SEQUENCES, 3))
    found = _cuts(linkage(scores, "ward"), MOST)
    assert len(found) == MOST - 1
    for labels, expected in zip(found, divisions(scores), strict=True):
        pairs = set(zip(labels.tolist(), expected.tolist(), strict=True))
        assert len(pairs) == len(set(labels.tolist())) == len(set(expected.tolist()))


@pytest.mark.parametrize("count", [2, 4, 7])
def test_silhouette_is_scikit_learns(generator, count):
    """Of planted groups that overlap a little, with all principal components kept."""
    member = np.arange(SEQUENCES) % count
    states = 9 * np.eye(7)[member] + generator.normal(size=(SEQUENCES, 7))
    found = clusters(states)
    assert found.count.tolist() == [count]
    centred = states - states.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    kept = int(np.searchsorted(np.cumsum(singular**2) / (singular**2).sum(), 0.9)) + 1
    scores = left[:, :kept] * singular[:kept]
    start = np.stack([scores[member == code].mean(0) for code in range(count)])
    labels = KMeans(count, init=start, n_init=1).fit(scores).labels_
    assert found.silhouette[0] == pytest.approx(silhouette_score(scores, labels), abs=1e-9)


@pytest.mark.parametrize("units", [1, 2, 5])
def test_silhouette_is_no_less_than_that_of_many_random_starts(generator, units):
    """scikit-learn's k-means with ten starts and every number of clusters, judged by its own silhouette."""
    states = generator.normal(size=(SEQUENCES, units)) + 2.5 * (np.arange(SEQUENCES) % 3)[:, None]
    states = np.linalg.svd(states - states.mean(0), full_matrices=False)
    states = states[0] * states[1]
    kept = int(np.searchsorted(np.cumsum(states.var(0)) / states.var(0).sum(), 0.9)) + 1
    states = states[:, :kept]
    best = 0.0
    for count in range(2, MOST + 1):
        labels = KMeans(count, n_init=10, random_state=0).fit(states).labels_
        if np.bincount(labels).min() > 2:
            best = max(best, silhouette_score(states, labels))
    # Ward's method and k-means from there lose at most a little against a search.
    assert clusters(states).silhouette[0] > best - 0.03


def test_silhouette_of_labels_is_scikit_learns_without_the_outliers(generator):
    scores = generator.normal(size=(SEQUENCES, 3))
    distances = squareform(pdist(scores))
    labels = np.concatenate([np.arange(SEQUENCES - 3) % 4 + 1, [0, 5, 5]])
    kept = labels % 5 > 0
    silhouette, count = _judge(distances, labels)
    assert count == 4
    assert silhouette == pytest.approx(silhouette_score(scores[kept], labels[kept]), abs=1e-12)
    assert _judge(distances, np.arange(SEQUENCES) // 60) == (0.0, 1)


def test_points_that_all_coincide_have_no_silhouette():
    assert _judge(np.zeros((7, 7)), np.array([0, 0, 0, 1, 1, 1, 1])) == (0.0, 2)


@pytest.mark.parametrize("states", [np.eye(23), np.eye(8), np.arange(41.0)[:, None] % 2, 1 - np.eye(31)])
def test_ties_are_no_trouble(states):
    found = clusters(states)
    assert np.isfinite([found.count, found.silhouette, found.reference]).all()


def numpy_state():
    _, key, position, *_ = np.random.get_state()  # noqa: NPY002
    return key.tolist(), position


def test_same_states_same_clusters_and_no_generator_is_touched(generator):
    states = splitting(generator, 2)
    states.flags.writeable = False
    before = states.copy(), numpy_state(), random.getstate(), torch.get_rng_state()
    first, again = clusters(states), clusters(states)
    _references.cache_clear()
    anew = clusters(states)
    for each in (again, anew):
        np.testing.assert_array_equal(
            [each.count, each.silhouette, each.reference], [first.count, first.silhouette, first.reference]
        )
    np.testing.assert_array_equal(states, before[0])
    assert numpy_state() == before[1]
    assert random.getstate() == before[2]
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.parametrize(
    "states, counted", [((7, 3), (7, 3)), ((7, 5, 3), (5, 7)), ((7, 5, 3), (7,)), ((7, 5, 3, 2), (7, 5))]
)
def test_states_and_counted_must_fit(states, counted):
    with pytest.raises(ValueError, match=r"states must be \(N, S, H\) and counted \(N, S\), got \(7, .*\) and \("):
        step_clusters(np.zeros(states), np.ones(counted, bool))


@pytest.mark.parametrize("sequences", [17, 20, 33, 40])
@pytest.mark.parametrize("units", [1, 2, 4])
def test_few_sequences_of_one_cloud_are_rarely_called_two(sequences, units):
    states = np.random.default_rng(0).random((sequences, 30, units))
    count = step_clusters(states, np.ones(states.shape[:2], bool)).count
    assert np.mean(count > 1) <= 0.1
