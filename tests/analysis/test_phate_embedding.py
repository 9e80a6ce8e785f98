"""PHATE's picture against closed forms, what must not matter, and PHATE itself on the points behind the distances."""

import logging
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from scipy.spatial.distance import cdist

from rnn_callbacks.analysis import phate_embedding as module
from rnn_callbacks.analysis.phate_embedding import MOST, phate_embedding

POINTS, DIMENSIONS = 41, 97


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def distances(points):
    """Between all points of a path, read-only."""
    found = cdist(points, points)
    found.flags.writeable = False
    return found


def path_of(generator, points=POINTS):
    """As weights go in training: to a goal, each at its own rate, and a little about."""
    goal, rate = 10 * generator.normal(size=DIMENSIONS), generator.uniform(0.05, 1, DIMENSIONS)
    wander = generator.normal(size=(points, DIMENSIONS)).cumsum(0)
    return goal * (1 - np.exp(-rate * np.arange(points)[:, None])) + 0.05 * wander


def line(points):
    return np.arange(points, dtype=np.float64)[:, None]


def circle(points):
    angle = np.arange(points) * 2 * np.pi / points
    return np.stack([np.cos(angle), np.sin(angle)], 1)


@pytest.mark.parametrize("points, neighbours", [(7, 1), (11, 2), (17, 3), (41, 5), (113, 11)])
def test_embedding_is_that_of_phate_on_the_points_themselves(generator, points, neighbours):
    import phate

    path = path_of(generator, points)
    found = phate_embedding(distances(path))
    operator = phate.PHATE(knn=neighbours, mds_solver="smacof", n_pca=None, random_state=0, n_jobs=1, verbose=0)
    itself = operator.fit_transform(path)
    assert procrustes(itself, found.points)[2] < 1e-10
    signs = np.sign((itself * found.points).sum(0))
    scale = np.sqrt(points) / np.linalg.norm(itself)  # PHATE's picture shrinks with the number of points
    np.testing.assert_allclose(itself * signs * scale, found.points, atol=1e-8)


@pytest.mark.parametrize("points", [6, 7, 20, 50])
def test_straight_line_stays_in_order_from_left_to_right(points):
    assert (np.diff(phate_embedding(distances(line(points))).points[:, 0]) > 0).all()


@pytest.mark.parametrize("points", [20, 100, MOST])
def test_straight_line_is_a_bow_and_no_ring(points):
    """As the docstring warns."""
    found = phate_embedding(distances(line(points))).points
    wide, high = np.ptp(found, axis=0)
    assert found[-1, 0] - found[0, 0] > 0.99 * wide
    assert 0.1 < high / wide < 0.55


@pytest.mark.parametrize("points", [7, 11, 20, 101])
def test_circle_stays_a_circle_of_radius_one(points):
    found = phate_embedding(distances(circle(points))).points
    place = found @ [1, 1j]
    step = np.angle(np.roll(place, -1) / place)
    # The distances' symmetry is that of a regular polygon, and so is the layout's, to rounding.
    np.testing.assert_allclose(np.abs(place), 1, atol=1e-9)
    np.testing.assert_allclose(step * np.sign(step[0]), 2 * np.pi / points, atol=1e-9)


def test_points_are_centred_and_of_size_one(generator):
    for points in (7, POINTS, 113):
        found = phate_embedding(distances(path_of(generator, points)))
        assert (found.points.shape, found.points.dtype, found.why_not) == ((points, 2), np.float64, "")
        np.testing.assert_allclose(found.points.mean(0), 0, atol=1e-12)
        assert (found.points**2).sum(1).mean() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 7, 1e30, 1e300])
def test_scale_changes_nothing(generator, scale):
    apart = distances(path_of(generator))
    scaled = phate_embedding(apart * scale)
    np.testing.assert_allclose(scaled.points, phate_embedding(apart).points, atol=1e-9)
    assert scaled.connected


def test_order_decides_no_more_than_how_the_picture_is_reflected(generator):
    apart = distances(path_of(generator))
    order = generator.permutation(POINTS)
    found, permuted = phate_embedding(apart).points[order], phate_embedding(apart[np.ix_(order, order)]).points
    signs = np.sign((found * permuted).sum(0))
    np.testing.assert_allclose(permuted, found * signs, atol=1e-9)


def test_growing_path_does_not_flip(generator):
    path = path_of(generator, 61)
    before = None
    for points in range(6, 62):
        found = phate_embedding(distances(path[:points])).points
        assert found[-1, 0] >= found[0, 0]
        assert found[0, 1] >= 0
        for axis in range(2 if before is not None else 0):
            assert np.corrcoef(before[:, axis], found[:-1, axis])[0, 1] > 0.5
        before = found


def test_reversed_path_is_reflected(generator):
    apart = distances(path_of(generator))
    found, back = phate_embedding(apart).points, phate_embedding(apart[::-1, ::-1]).points
    assert back[-1, 0] > back[0, 0]
    np.testing.assert_allclose(np.abs(back[::-1]), np.abs(found), atol=1e-9)


def test_points_that_stand_still_coincide_and_weigh_as_one(generator):
    path = path_of(generator)
    stays = np.concatenate([[0, 0, 0], np.arange(POINTS), [17, 5, 5], np.full(23, POINTS - 1)])
    once, found = phate_embedding(distances(path)), phate_embedding(distances(path[stays]))
    np.testing.assert_array_equal(found.points, once.points[stays])
    assert (found.neighbours, found.connected) == (once.neighbours, once.connected) == (5, True)


def test_distances_too_small_to_be_seen_are_no_distances(generator):
    path = path_of(generator, 7)
    found = phate_embedding(distances(np.concatenate([path, path[-1:] + 1e-10])))
    assert np.isfinite(found.points).all()
    apart = np.zeros((8, 8))
    apart[:7, :7] = distances(path) * 1e300 / distances(path).max()
    apart[7] = apart[:, 7] = apart[6, :8]
    apart[6, 7] = apart[7, 6] = 1e-30
    np.testing.assert_array_equal(*phate_embedding(apart).points[6:])


@pytest.mark.parametrize(
    "points, neighbours", [(6, 1), (9, 1), (10, 2), (14, 2), (15, 3), (19, 3), (20, 5), (59, 5), (60, 6), (113, 11)]
)
def test_neighbours_follow_the_number_of_distinct_points(generator, points, neighbours):
    path = path_of(generator, points)
    found = phate_embedding(distances(np.repeat(path, 3, axis=0)))
    assert found.neighbours == neighbours
    assert np.linalg.svd(found.points, compute_uv=False)[1] > 0.1  # no line


@pytest.mark.parametrize("points", [0, 1, 2, 5])
def test_few_points_have_no_picture(generator, points):
    for path in (path_of(generator, points), np.repeat(path_of(generator, points), 7 * (points > 1) or 1, axis=0)):
        found = phate_embedding(distances(path))
        assert found.why_not == f"PHATE needs at least 6 distinct points, got {points}: PCA alone"
        assert (found.points.shape, found.neighbours, found.connected) == ((0, 2), 0, True)


def test_path_that_never_moved_has_no_picture():
    found = phate_embedding(np.zeros((17, 17)))
    assert found.why_not == "nothing moved: all 17 points are the same"
    assert found.points.shape == (0, 2)


@pytest.fixture
def heard(capfd, monkeypatch):
    """What reaches the real streams: the logger was bound, when PHATE was imported, to what pytest had there then."""
    import phate  # noqa: F401

    for handler in logging.getLogger("graphtools").handlers:
        if type(handler) is logging.StreamHandler:
            monkeypatch.setattr(handler, "stream", sys.stdout)
    return capfd


def jump(generator, stay=POINTS // 2):
    path = path_of(generator)
    path[stay:] += 1000
    return path


def test_jump_is_told_without_a_word(generator, heard):
    with np.errstate(all="raise"):
        found = phate_embedding(distances(jump(generator)))
    assert not found.connected
    assert found.points.shape == (POINTS, 2)
    left, right = found.points[: POINTS // 2, 0], found.points[POINTS // 2 :, 0]
    assert left.max() < right.min()
    assert phate_embedding(distances(path_of(generator))).connected
    assert heard.readouterr() == ("", "")


def test_short_stretch_far_away_is_linked_to_all(generator):
    """As the docstring warns."""
    apart = distances(jump(generator, POINTS - 5))
    found = phate_embedding(apart)
    assert found.connected
    assert np.abs(found.points[-5:, 0]).max() < found.points[:-5, 0].max()
    assert not phate_embedding(distances(jump(generator, POINTS - 6))).connected


def test_short_path_that_wanders_falls_apart_without_a_jump(generator):
    """As the docstring warns."""
    walks = [distances(generator.normal(size=(9, DIMENSIONS)).cumsum(0)) for _ in range(40)]
    # Three standard deviations of 40 draws about .55.
    assert np.mean([phate_embedding(apart).connected for apart in walks]) == pytest.approx(0.45, abs=0.24)


def test_equal_distances_have_a_picture():
    assert np.isfinite(phate_embedding(1 - np.eye(POINTS)).points).all()


def test_steps_over_many_orders_of_magnitude_have_a_picture():
    with np.errstate(all="raise"):
        found = phate_embedding(distances(10.0 ** -np.arange(0, 160, 8)[:, None]))
    assert np.isfinite(found.points).all()


def numpy_state():
    _, key, position, *_ = np.random.get_state()  # noqa: NPY002
    return key.tolist(), position


def test_same_seed_same_picture_and_no_generator_is_touched(generator):
    apart = distances(path_of(generator))
    before = apart.copy(), numpy_state(), random.getstate(), torch.get_rng_state()
    first, again, other = (phate_embedding(apart, seed=seed).points for seed in (0, np.int64(0), 5))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, other, atol=1e-9)
    np.testing.assert_array_equal(apart, before[0])
    assert numpy_state() == before[1]
    assert random.getstate() == before[2]
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.parametrize("level", [logging.DEBUG, 37])
def test_level_of_the_logger_is_given_back(generator, heard, level):
    logger = logging.getLogger("graphtools")
    kept = logger.level
    try:
        logger.setLevel(level)
        phate_embedding(distances(path_of(generator)))
        assert logger.level == level
    finally:
        logger.setLevel(kept)
    assert heard.readouterr() == ("", "")


FRESH = """
import importlib.util, sys, warnings
spec = importlib.util.spec_from_file_location("module", {path!r})
sys.modules["module"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert not {{"phate", "matplotlib"}} & set(sys.modules)
import matplotlib, numpy as np
settings = lambda: {{key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}}
before, drawn = np.random.get_state()[1].copy(), settings()
points = np.arange(41.0) + 1000 * (np.arange(41) > 20)
found = module.phate_embedding(np.abs(points[:, None] - points))
assert not found.connected and found.points.shape == (41, 2)
assert settings() == drawn
assert (np.random.get_state()[1] == before).all()
"""


def test_first_call_prints_nothing_and_leaves_matplotlib_alone():
    """In a process of its own, where PHATE is imported by the call; warnings are errors there, too."""
    script = FRESH.format(path=module.__file__)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_as_many_points_as_are_allowed_and_no_more(generator):
    path = path_of(generator, MOST + 1)
    assert np.isfinite(phate_embedding(distances(path[:-1])).points).all()
    with pytest.raises(ValueError, match="distances must be of at most 1000 points, got 1001: thin the path first"):
        phate_embedding(distances(path))


@pytest.mark.parametrize("shape", [(7,), (7, 11), (7, 7, 1)])
def test_distances_must_be_square(shape):
    with pytest.raises(ValueError, match=r"distances must be \(n, n\), got shape \(7,"):
        phate_embedding(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_distances_must_be_finite(generator, value):
    apart = cdist(*[path_of(generator)] * 2)
    apart[3, 5] = apart[5, 3] = value
    with pytest.raises(ValueError, match="distances must be finite, 2 of 1681 are not"):
        phate_embedding(apart)


def test_distances_must_not_be_negative(generator):
    apart = cdist(*[path_of(generator)] * 2)
    apart[3, 5] = apart[5, 3] = -0.25
    with pytest.raises(ValueError, match=r"distances must not be negative, got -0\.25"):
        phate_embedding(apart)


def test_points_must_be_where_they_are(generator):
    apart = cdist(*[path_of(generator)] * 2)
    apart[3, 3] = 0.25
    with pytest.raises(ValueError, match=r"distances must be 0 from a point to itself, got up to 0\.25"):
        phate_embedding(apart)


def test_distances_must_be_symmetric_but_for_rounding(generator):
    apart = cdist(*[path_of(generator)] * 2)
    apart *= 1000 / apart.max()
    rounded = apart.copy()
    rounded[3, 5] += 1e-6
    np.testing.assert_allclose(phate_embedding(rounded).points, phate_embedding(apart).points, atol=1e-5)
    apart[3, 5] += 7
    with pytest.raises(ValueError, match=r"distances must be symmetric, got some that differ by 0\.007 of the largest"):
        phate_embedding(apart)
