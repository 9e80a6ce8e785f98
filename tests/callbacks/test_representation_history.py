"""`SiteHistory`: what is kept of the looks, how large it may grow, and that a checkpoint gives it back."""

import numpy as np
import pytest
import torch

from rnn_callbacks.analysis.cka import cka, fingerprint, geometry
from rnn_callbacks.callbacks.representation_history import BEFORE, FOLD, MOST_LOOKS, MOST_SCENES, SiteHistory

SEQUENCES, STEPS, UNITS = 256, 16, 512
SMALL = 13, 3, 5  # sequences, steps, units: no folding


def print_of(shape, seed):
    return fingerprint(geometry(np.random.default_rng(seed).normal(size=shape).astype(np.float32)))


def scene_of(shape=(4, 3, 5), value=0.0):
    return np.full(shape, value, np.float16)


def test_no_more_than_fifty_megabytes_are_held_after_many_looks():
    history = SiteHistory({})
    size = STEPS * SEQUENCES * (SEQUENCES - 1) // 2
    generator = np.random.default_rng(0)
    whole = [generator.normal(size=size).astype(np.float16) for _ in range(3)]
    history.untrained = history.latest = whole[0]
    history.untrained_end = whole[0][: size // STEPS]
    for epoch in range(BEFORE, 109):
        history.add_print(epoch, whole[epoch % 3])
        history.add_scene(epoch, scene_of((480 // 3 // STEPS, STEPS, UNITS)))
    assert history.nbytes <= 50e6
    held = sum(fold.nbytes for fold in history.folds) + sum(scene.nbytes for scene in history.scenes.values())
    assert history.nbytes == held + (2 * size + size // STEPS) * 2
    assert held == MOST_LOOKS * FOLD * 2 + MOST_SCENES * 10 * STEPS * UNITS * 2


def test_of_many_looks_the_first_and_the_last_stay_and_the_others_lie_evenly():
    history = SiteHistory({})
    for epoch in range(BEFORE, 3 * MOST_LOOKS):
        history.add_print(epoch, print_of(SMALL, epoch + 1))
        history.add_scene(epoch, scene_of(value=epoch))
        assert len(history.epochs) == len(history.folds) <= MOST_LOOKS
        assert history.epochs[0] == BEFORE
        assert history.epochs[-1] == epoch
        assert len(history.scenes) <= MOST_SCENES
        assert next(iter(history.scenes)) == BEFORE
        assert list(history.scenes)[-1] == epoch
    assert history.epochs == sorted(history.epochs)
    assert np.diff(history.epochs).max() <= 8  # where all were alike, three
    assert np.diff(list(history.scenes)).max() <= 4 * 3 * MOST_LOOKS / MOST_SCENES
    kept = dict(zip(history.epochs, history.folds, strict=True))
    assert all(
        np.array_equal(fold, print_of(SMALL, epoch + 1).astype(np.float16))
        for epoch, fold in kept.items()
        if epoch % 20 == 0
    )
    assert all((scene == epoch).all() for epoch, scene in history.scenes.items())


def test_exactly_the_look_goes_whose_neighbours_are_closest():
    history = SiteHistory({})
    epochs = [*range(0, 20 * MOST_LOOKS, 20)]
    epochs[7] = epochs[6] + 1  # the one before it has neighbours 21 apart, all others 40
    for epoch in [*epochs, 20 * MOST_LOOKS]:
        history.add_print(epoch, print_of(SMALL, epoch))
    assert len(history.epochs) == MOST_LOOKS
    assert set(epochs) - set(history.epochs) == {epochs[6]}


@pytest.mark.parametrize(("shape", "rounding"), [(SMALL, 2e-3), ((101, 7, 11), 0.03)], ids=["whole", "folded"])
def test_the_matrix_is_the_cka_of_every_look_with_every_other(shape, rounding):
    """Rounding: half precision where nothing is folded; three of the errors of folds, .008, and half precision."""
    generator = np.random.default_rng(0)
    first, other = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    looks = [geometry(first + drift * (other - first)) for drift in (0.0, 0.2, 0.5, 1.0)]
    history = SiteHistory({})
    for epoch, look in enumerate(looks):
        history.add_print(epoch, fingerprint(look))
    matrix = history.matrix()
    known = np.array([[cka(one, another).cka for another in looks] for one in looks])
    assert np.ptp(known) > 0.8
    assert matrix == pytest.approx(known, abs=rounding)
    assert np.array_equal(matrix, matrix.T)
    assert matrix.diagonal() == pytest.approx(1, abs=1e-12)
    assert all(len(fold) <= FOLD for fold in history.folds)


def test_without_looks_the_matrix_is_empty():
    history = SiteHistory({})
    assert history.matrix().shape == (0, 0)
    assert history.nbytes == 0
    epochs, values = history.curve("cka_previous")
    assert epochs.shape == values.shape == (0,)


def test_looks_at_other_sequences_begin_anew():
    history = SiteHistory({})
    for epoch in range(3):
        history.add_print(epoch, print_of(SMALL, epoch))
        history.add_scene(epoch, scene_of())
    history.drawn["pca"] = {0: np.zeros((4, 3, 2))}
    history.add_print(3, print_of((12, 3, 5), 3))
    history.add_scene(3, scene_of((5, 3, 5)))
    assert history.epochs == [3]
    assert history.matrix() == pytest.approx(np.ones((1, 1)))
    assert list(history.scenes) == [3]
    assert history.drawn == {}


def test_curves_leave_out_what_is_not_known():
    history = SiteHistory({"curves": [{"epoch": 0.0, "a": 0.5}, {"epoch": 2.0}, {"epoch": 5.0, "a": 0.25}]})
    epochs, values = history.curve("a")
    assert epochs.tolist() == [0, 5]
    assert values.tolist() == [0.5, 0.25]
    assert history.curve("b")[0].size == 0


def test_a_checkpoint_gives_everything_back(tmp_path):
    history = SiteHistory({})
    for epoch in range(BEFORE, 3):
        history.add_print(epoch, print_of(SMALL, epoch + 1))
        history.add_scene(epoch, scene_of(value=epoch))
        history.curves.append({"epoch": float(epoch), "cka_previous": 0.5})
    history.untrained, history.untrained_end = (print_of(SMALL, seed).astype(np.float16) for seed in (7, 8))
    history.latest = print_of(SMALL, 9).astype(np.float16)
    history.random = 0.25, 0.5
    history.drawn = {"pca": {0: np.ones((4, 3, 2)), 2: np.full((4, 3, 2), np.nan)}}
    torch.save(history.memory(), tmp_path / "history.pt")
    again = SiteHistory(torch.load(tmp_path / "history.pt", weights_only=True))
    assert again.epochs == history.epochs == [-1, 0, 1, 2]
    assert np.array_equal(again.matrix(), history.matrix())
    assert again.curves == history.curves
    assert tuple(again.random) == history.random
    for name in ("untrained", "untrained_end", "latest"):
        assert np.array_equal(getattr(again, name), getattr(history, name)), name
    assert list(again.scenes) == list(history.scenes)
    assert all(np.array_equal(again.scenes[epoch], scene) for epoch, scene in history.scenes.items())
    assert list(again.drawn["pca"]) == [0, 2]
    assert np.array_equal(again.drawn["pca"][2], history.drawn["pca"][2], equal_nan=True)
    assert again.nbytes == history.nbytes


def test_an_empty_history_survives_a_checkpoint(tmp_path):
    torch.save(SiteHistory({}).memory(), tmp_path / "history.pt")
    again = SiteHistory(torch.load(tmp_path / "history.pt", weights_only=True))
    assert again.epochs == []
    assert again.random is None
    assert again.latest.size == again.untrained.size == 0
