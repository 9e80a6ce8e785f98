"""What a look reports: since when nothing changes, and no NaN where a reader would stumble over it."""

from dataclasses import replace

import numpy as np
import pytest

from rnn_callbacks.analysis.cka import Similarity, geometry
from rnn_callbacks.analysis.class_geometry import ClassGeometry
from rnn_callbacks.analysis.representation import representation
from rnn_callbacks.analysis.representation_findings import NEVER, SETTLED, SiteFindings
from rnn_callbacks.analysis.step_clusters import StepClusters

SEQUENCES, STEPS, UNITS = 11, 3, 5
NAN = np.nan


def findings(**changes):
    states = np.random.default_rng(0).normal(size=(SEQUENCES, STEPS, UNITS))
    classes = ClassGeometry(
        np.array([NAN, 0.1, 0.2, 0.7]), np.array([NAN, 0.4, 0.5, 0.9]), np.array([NAN, 0.3, 0.6, 1.0]), 2.5
    )
    whole = SiteFindings(
        shape=representation(geometry(states)),
        untrained=Similarity(0.8, np.array([0.9, NAN, 0.7])),
        untrained_end=0.6,
        previous=0.97,
        random=(0.2, 0.3),
        clusters=StepClusters(np.array([1.0, NAN, 4.0]), np.array([0.1, NAN, 0.8]), np.full(3, 0.3)),
        cluster_columns=np.array([0, 2]),
        classes={"digit": classes},
        epochs=np.array([-1, 0, 3]),
        matrix=np.array([[1, 0.5, 0.4], [0.5, 1, 0.96], [0.4, 0.96, 1]]),
        curves={},
    )
    return replace(whole, **changes)


def settled(row, epochs=(-1, 0, 2, 7)):
    """Epoch of looks of which the latest has this likeness to each."""
    matrix = np.eye(len(row))
    matrix[-1] = matrix[:, -1] = row
    return findings(epochs=np.array(epochs[: len(row)]), matrix=matrix).settled_epoch


@pytest.mark.parametrize(
    "row, epoch",
    [
        ([0.1, 0.2, 0.3, 1], 7),
        ([0.1, 0.2, 0.96, 1], 2),
        ([0.1, 0.96, 0.97, 1], 0),
        ([0.99, 0.96, 0.97, 1], -1),
        ([0.99, 0.2, 0.97, 1], 2),  # what was like it by chance does not count
        ([0.1, NAN, 0.97, 1], 2),
        ([0.1, 0.97, NAN, 1], 7),
        ([0.1, SETTLED, SETTLED - 1e-9, 1], 7),
        ([0.1, SETTLED, SETTLED, 1], 0),
        ([0.1, 1], 0),
    ],
)
def test_settled_is_the_first_look_from_which_on_all_are_like_the_latest(row, epoch):
    assert settled(row) == epoch


def test_settled_is_unknown_of_one_look_and_of_constant_states():
    assert settled([1.0], epochs=(0,)) == NEVER
    assert settled([NAN, NAN, NAN]) == NEVER
    assert "settled_epoch" not in findings(epochs=np.zeros(0, int), matrix=np.zeros((0, 0))).scalars()


def test_scalars_are_what_was_found():
    found = findings()
    assert found.scalars() == found.shape.scalars() | {
        "cka_untrained": 0.8,
        "cka_untrained_end": 0.6,
        "cka_previous": 0.97,
        "cka_random": 0.2,
        "settled_epoch": 0.0,
        "clusters": 4.0,
        "silhouette": 0.8,
        "digit/separation": 0.7,
        "digit/nearest_mean": 0.9,
        "digit/commitment": 2.5,
    }
    assert {type(value) for value in found.scalars().values()} == {float}


def test_scalars_leave_out_what_is_not_known():
    none = np.full(4, NAN)
    found = findings(
        untrained=None,
        untrained_end=NAN,
        previous=NAN,
        random=None,
        clusters=StepClusters(*[np.full(3, NAN)] * 3),
        classes={"digit": ClassGeometry(none, none, none, NAN), "empty": ClassGeometry(*[np.zeros(0)] * 3, NAN)},
        matrix=np.full((3, 3), NAN),
    )
    assert found.scalars() == found.shape.scalars() | {"settled_epoch": NEVER}
    assert findings(clusters=None, classes={}).scalars().keys() == findings().scalars().keys() - {
        "clusters", "silhouette", "digit/separation", "digit/nearest_mean", "digit/commitment"
    }  # fmt: skip


def test_similarity_that_is_not_finite_is_left_out():
    found = findings(untrained=Similarity(NAN, np.full(3, NAN)))
    assert "cka_untrained" not in found.scalars()


def test_arrays_hold_no_nan():
    found = findings(matrix=np.array([[NAN, NAN], [NAN, 1.0]]), epochs=np.array([-1, 0]))
    found = replace(found, shape=replace(found.shape, participation_by_step=np.array([NAN, 2.0, 3.0])))
    arrays = found.arrays()
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert arrays["cka_untrained_by_step"].tolist() == [0.9, 0, 0.7]
    assert arrays["clusters_by_step"].tolist() == [1, 0, 4]
    assert arrays["silhouette_by_step"].tolist() == [0.1, 0, 0.8]
    assert arrays["cluster_columns"].tolist() == [0, 2]
    assert arrays["digit/separation_by_step"].tolist() == [0, 0.1, 0.2, 0.7]
    assert arrays["digit/nearest_mean_by_step"].tolist() == [0, 0.4, 0.5, 0.9]
    assert arrays["digit/committed_by_step"].tolist() == [0, 0.3, 0.6, 1]
    assert arrays["participation_by_step"].tolist() == [0, 2, 3]
    assert arrays["cka_matrix"].tolist() == [[0, 0], [0, 1]]
    assert arrays["cka_epochs"].tolist() == [-1, 0]
    assert np.isnan(found.matrix[0, 0])  # the findings themselves are as they were


def test_arrays_of_what_was_not_measured_are_not_there():
    names = findings(untrained=None, clusters=None, classes={}).arrays().keys()
    assert names == {"spectrum", "deviation", "participation_by_step", "cka_epochs", "cka_matrix"}
