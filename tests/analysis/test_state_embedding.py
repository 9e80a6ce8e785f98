"""Pictures of states against scikit-learn, what must not matter, and where earlier pictures lay."""

import random

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from sklearn.decomposition import PCA

from rnn_callbacks.analysis.phate_embedding import phate_embedding
from rnn_callbacks.analysis.state_embedding import embed_states

SEQUENCES, STEPS, UNITS = 5, 7, 3
EPOCHS = (-1, 2, 11)


@pytest.fixture
def generator():
    return np.random.default_rng(2)


def looks_of(generator, epochs=EPOCHS, shape=(SEQUENCES, STEPS, UNITS)):
    """Walks, each look larger than the one before, of unlike spread along the axes."""
    steps = generator.normal(size=(len(epochs), *shape)) * np.array([3, 2, 1])
    return list(zip(epochs, steps.cumsum(2), strict=True))


def flat(looks):
    return np.concatenate([states.reshape(-1, UNITS) for _, states in looks])


def assert_same_but_for_signs(one, other, atol=1e-9):
    one, other = one.reshape(-1, 2), other.reshape(-1, 2)
    np.testing.assert_allclose(one * np.sign((one * other).sum(0)), other, atol=atol)


# ---- PCA -------------------------------------------------------------------------------------------------------------


def test_components_are_those_of_all_looks_together(generator):
    looks = looks_of(generator)
    found = embed_states(looks, "pca")
    referee = PCA(2).fit(flat(looks))
    assert_same_but_for_signs(referee.transform(flat(looks)), found.points)
    np.testing.assert_allclose(found.explained, referee.explained_variance_ratio_)
    assert (found.epochs, found.method, found.remark) == (EPOCHS, "pca", "")
    assert (found.points.shape, found.points.dtype) == ((3, SEQUENCES, STEPS, 2), np.float64)


def test_distances_in_the_plane_are_kept_across_looks(generator):
    plane = looks_of(generator)
    turn = np.linalg.qr(generator.normal(size=(11, UNITS)))[0].T
    flattened = [(epoch, (states * [1, 1, 0]) @ turn + 5) for epoch, states in plane]
    found = embed_states(flattened, "pca")
    laid = found.points.reshape(-1, 2)
    np.testing.assert_allclose(pdist(laid), pdist(flat(plane)[:, :2]), atol=1e-9)
    assert sum(found.explained) == pytest.approx(1)


def test_rotation_of_the_units_changes_no_more_than_signs(generator):
    looks = looks_of(generator)
    turn = np.linalg.qr(generator.normal(size=(UNITS, UNITS)))[0]
    turned = [(epoch, states @ turn) for epoch, states in looks]
    for method in ("pca", "phate"):
        one, other = embed_states(looks, method), embed_states(turned, method)
        assert_same_but_for_signs(one.points, other.points, atol=1e-6)


@pytest.mark.parametrize("units", [1, 2])
def test_few_units_have_a_picture(generator, units):
    looks = [(epoch, states[..., :units]) for epoch, states in looks_of(generator)]
    found = embed_states(looks, "pca")
    assert np.isfinite(found.points).all()
    assert sum(found.explained) == pytest.approx(1)
    if units == 1:
        assert (found.points[..., 1] == 0).all()


# ---- PHATE -----------------------------------------------------------------------------------------------------------


def test_phate_lays_all_looks_out_together(generator):
    looks = looks_of(generator)
    found = embed_states(looks, "phate")
    assert (found.method, found.explained, found.remark) == ("phate", (0.0, 0.0), "")
    alone = phate_embedding(squareform(pdist(flat(looks))))
    np.testing.assert_allclose(found.points.reshape(-1, 2), alone.points, atol=1e-9)


def test_pieces_that_lie_far_apart_are_told(generator):
    looks = looks_of(generator)
    looks[1] = (2, looks[1][1] + 1000)
    assert embed_states(looks, "phate").remark == "in several pieces: gaps between them mean nothing"
    assert embed_states(looks, "pca").remark == ""


def state_of_generators():
    _, key, position, *_ = np.random.get_state()  # noqa: NPY002
    return key.tolist(), position, random.getstate(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("method", ["phate", "pca"])
def test_same_seed_same_picture_and_no_generator_is_touched(generator, method):
    looks = looks_of(generator)
    for _, states in looks:
        states.flags.writeable = False
    before = state_of_generators()
    first, again = (embed_states(looks, method, seed=3).points for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert state_of_generators() == before


FRESH = """
import numpy as np, matplotlib
from rnn_callbacks.analysis.state_embedding import embed_states
settings = lambda: {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
before = settings()
found = embed_states([(0, np.random.default_rng(0).normal(size=(3, 7, 5)))], "phate")
assert found.method == "phate"
assert settings() == before
"""


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_few_distinct_states_fall_back_on_components_with_a_remark(generator, distinct):
    states = generator.normal(size=(distinct, 1, UNITS)).repeat(3, 1)
    found = embed_states([(4, states)], "phate")
    assert found.method == "pca"
    few = f"PHATE needs at least 6 distinct points, got {distinct}: PCA alone"
    assert found.remark == ("nothing moved: all 3 points are the same" if distinct == 1 else few)
    np.testing.assert_allclose(found.points, embed_states([(4, states)], "pca").points)


def test_one_point_lies_in_the_middle():
    found = embed_states([(0, np.full((1, 1, UNITS), 7.0))], "phate")
    assert found.points.tolist() == [[[[0.0, 0.0]]]]
    assert (found.method, found.explained) == ("pca", (0.0, 0.0))
    assert found.remark == "PHATE needs at least 6 distinct points, got 1: PCA alone"


def test_duplicates_coincide(generator):
    looks = looks_of(generator)
    looks.append((12, looks[-1][1]))
    for method in ("phate", "pca"):
        points = embed_states(looks, method).points
        np.testing.assert_allclose(points[-1], points[-2], atol=1e-12)


@pytest.mark.parametrize("method", ["phate", "pca"])
def test_steps_that_are_not_there_are_left_out(generator, method):
    looks = looks_of(generator)
    looks[1][1][2, 4:, 1] = np.nan
    looks[2][1][0, 0] = np.inf
    gone = np.zeros((3, SEQUENCES, STEPS), bool)
    gone[1, 2, 4:] = gone[2, 0, 0] = True
    found = embed_states(looks, method)
    np.testing.assert_array_equal(np.isnan(found.points).all(-1), gone)
    assert np.isfinite(found.points[~gone]).all()
    if method == "pca":
        there = np.stack([states for _, states in looks])[~gone]
        assert_same_but_for_signs(PCA(2).fit_transform(there), found.points[~gone])


def test_look_without_a_finite_state_is_empty(generator):
    looks = looks_of(generator)
    looks[0][1][:] = np.nan
    found = embed_states(looks, "pca").points
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1:]).all()


def test_half_precision_is_taken(generator):
    looks = looks_of(generator)
    halved = [(epoch, states.astype(np.float16)) for epoch, states in looks]
    one, other = (
        embed_states(looks, "pca"),
        embed_states(halved, "pca", known=dict(zip(EPOCHS, embed_states(looks, "pca").points, strict=True))),
    )
    np.testing.assert_allclose(one.points, other.points, atol=0.05)


# ---- earlier pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("method", ["phate", "pca"])
def test_picture_is_reflected_as_an_earlier_one_was(generator, method, signs):
    looks = looks_of(generator)
    plain = embed_states(looks, method).points
    known = {EPOCHS[1]: plain[1] * signs}
    np.testing.assert_allclose(embed_states(looks, method, known=known).points, plain * signs, atol=1e-9)


@pytest.mark.parametrize("angle", [0.3, 2.0, -1.2])
def test_picture_of_phate_is_turned_as_an_earlier_one_was_that_of_components_is_not(generator, angle):
    looks = looks_of(generator)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    plain = embed_states(looks, "phate").points
    found = embed_states(looks, "phate", known={EPOCHS[0]: plain[0] @ turn + 3, 99: plain[1]}).points
    np.testing.assert_allclose(found, plain @ turn, atol=1e-9)
    components = embed_states(looks, "pca").points
    turned = embed_states(looks, "pca", known={EPOCHS[0]: components[0] @ turn}).points
    np.testing.assert_allclose(np.abs(turned), np.abs(components), atol=1e-9)


def test_picture_with_a_further_look_lies_as_the_one_before(generator):
    looks = looks_of(generator)
    before = embed_states(looks[:2], "pca")
    known = {epoch: -points for epoch, points in zip(before.epochs, before.points, strict=True)}
    after = embed_states(looks, "pca", known=known)
    for axis in range(2):
        assert np.corrcoef(-before.points[..., axis].ravel(), after.points[:2, ..., axis].ravel())[0, 1] > 0


def test_earlier_picture_of_other_looks_or_of_one_state_changes_nothing(generator):
    looks = looks_of(generator)
    plain = embed_states(looks, "pca").points
    one = np.full_like(plain[0], np.nan)
    one[0, 0] = -plain[0, 0, 0]
    for known in ({99: -plain[0]}, {EPOCHS[0]: one}, {EPOCHS[0]: np.full_like(plain[0], np.nan)}, {}, None):
        np.testing.assert_array_equal(embed_states(looks, "pca", known=known).points, plain)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_looks_must_be_of_one_shape(generator):
    looks = looks_of(generator)
    looks[1] = (2, looks[1][1][:, 1:])
    with pytest.raises(ValueError, match=r"states of one shape \(Q, S, H\), got \[\(5, 6, 3\), \(5, 7, 3\)\]"):
        embed_states(looks, "pca")
    with pytest.raises(ValueError, match=r"states of one shape \(Q, S, H\), got \[\(5, 7\)\]"):
        embed_states([(0, np.zeros((5, 7)))], "pca")
    with pytest.raises(ValueError, match=r"states of one shape \(Q, S, H\), got \[\]"):
        embed_states([], "pca")


def test_no_finite_state_is_refused():
    with pytest.raises(ValueError, match="there is no finite state to embed"):
        embed_states([(0, np.full((SEQUENCES, STEPS, UNITS), np.nan))], "phate")


def test_more_states_than_phate_takes_fall_back_on_pca_and_say_so():
    looks = [(0, np.random.default_rng(0).normal(size=(17, 59, 3)))]
    found = embed_states(looks, "phate")
    assert found.method == "pca"
    assert found.remark == "PHATE takes up to 1000 states, got 1003: PCA alone"
