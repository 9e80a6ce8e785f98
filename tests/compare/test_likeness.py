"""CKA between runs."""

import numpy as np
import pytest

from rnn_callbacks.analysis.cka import cka, fingerprint, geometry
from rnn_callbacks.compare import compare, load_runs
from rnn_callbacks.compare.field_report import field_report
from rnn_callbacks.compare.likeness import likeness_in_words, likeness_of_runs
from rnn_callbacks.compare.page import page
from rnn_callbacks.report import Report, save
from rnn_callbacks.sinks import save_report

from .known_runs import write_run

SEQUENCES, STEPS = 23, 3


def states(seed, units, *, like=None, noise=0.0):
    """States of a network; or those of another one, turned, with noise."""
    generator = np.random.default_rng(seed)
    if like is None:
        return generator.normal(size=(SEQUENCES, STEPS, units))
    turn = np.linalg.qr(generator.normal(size=(units, units)))[0][: like.shape[2]]
    return like @ turn + noise * generator.normal(size=(SEQUENCES, STEPS, units))


def look(folder, found, *, epoch=1, layer="rnn.l0/hidden", audience="a", noun="representation"):
    """What a look of a tracker leaves."""
    print_ = fingerprint(geometry(found)).astype(np.float16)
    arrays = {f"{noun}/{layer}/fingerprint": print_, f"{noun}/audience": np.array(audience)}
    save_report(Report({}, arrays), str(folder), noun="representation", epoch=epoch, step=10 * epoch + 9)


@pytest.fixture
def runs(tmp_path):
    """Folders of runs: two seeds of one configuration, which are alike, and one of another, wider one."""
    first = states(0, 5)
    of = {
        "gru-0": first,
        "gru-1": states(1, 7, like=first, noise=0.2),
        "lstm-0": states(2, 11, like=first, noise=1.5),
    }
    for name, found in of.items():
        cell, seed = name.split("-")
        ends = [1.0, 0.5 + 0.1 * len(cell) + 0.01 * int(seed)]  # runs that are alike count once
        write_run(tmp_path / name, {"val_loss": ends}, {"cell": cell, "seed": int(seed)})
        look(tmp_path / name, found)
    return tmp_path, of


def test_it_is_the_cka_of_the_states(runs):
    folder, of = runs
    (found,) = likeness_of_runs(compare(load_runs(str(folder))))
    assert (found.place, found.epoch, found.runs) == ("rnn.l0/hidden", 1, (0, 1, 2))
    expected = [[cka(geometry(a), geometry(b)).cka for b in of.values()] for a in of.values()]
    # Kept in half precision: 5e-4 of each of 759 numbers, at random.
    assert found.cka == pytest.approx(np.array(expected), abs=1e-3)


def test_configurations_are_told_from_seeds_in_words(runs):
    folder, _ = runs
    comparison = compare(load_runs(str(folder)))
    (found,) = likeness_of_runs(comparison)
    between, within = found.between((0, 1), (2,)), found.between((0, 1), (0, 1))
    assert between.tolist() == [found.cka[0, 2], found.cka[1, 2]]
    assert within.tolist() == [found.cka[0, 1]]
    said = likeness_in_words(comparison, found)
    assert said == [
        f"rnn.l0/hidden, epoch 1: CKA between runs of cell=gru: {within[0]:.2f}",
        "rnn.l0/hidden, epoch 1: CKA between cell=gru and cell=lstm: "
        f"{between.mean():.2f} ({between.min():.2f} to {between.max():.2f})",
    ]
    assert said[0] in field_report(comparison)
    assert "How alike are the states of the runs?" in page(comparison)


def test_the_last_epoch_that_all_looked_at_is_taken(runs):
    folder, of = runs
    for name in of:
        look(folder / name, states(5, 5), epoch=0)
    look(folder / "gru-0", states(9, 5), epoch=4)
    look(folder / "gru-1", states(8, 5), epoch=3)
    (found,) = likeness_of_runs(compare(load_runs(str(folder))))
    assert found.epoch == 1
    assert found.cka[0, 1] == pytest.approx(cka(geometry(of["gru-0"]), geometry(of["gru-1"])).cka, abs=1e-3)


def test_runs_that_heard_other_sequences_are_left_out(runs):
    folder, of = runs
    look(folder / "gru-0", of["gru-0"], audience="b")
    (found,) = likeness_of_runs(compare(load_runs(str(folder))))
    assert found.runs == (1, 2)


def test_states_of_other_steps_are_not_compared(runs):
    folder, of = runs
    look(folder / "gru-0", of["gru-0"][:, :2])
    assert likeness_of_runs(compare(load_runs(str(folder)))) == []


def test_a_layer_that_each_run_calls_differently_is_one(runs):
    folder, of = runs
    for name, found in of.items():
        for old in (folder / name / "rnn_callbacks").rglob("*.npz"):
            old.unlink()
        look(folder / name, found, layer=f"{name[:-2]}.l0/hidden")
        write_run(folder / name, {f"gates/{name[:-2]}.l0/timescale/q50": [1.0, 2.0]}, None)
    (found,) = likeness_of_runs(compare(load_runs(str(folder))))
    assert found.place == "recurrent.l0/hidden"
    assert found.runs == (0, 1, 2)


def test_looks_of_several_trackers_in_one_run_are_taken_together(runs):
    folder, of = runs
    for name, found in of.items():
        print_ = fingerprint(geometry(found[:, ::-1])).astype(np.float16)
        report = Report({}, {"representation/other.l0/hidden/fingerprint": print_})
        save_report(report, str(folder / name), noun="representation", epoch=1, step=19, part=2)
    found = likeness_of_runs(compare(load_runs(str(folder))))
    assert [one.place for one in found] == ["rnn.l0/hidden", "other.l0/hidden"]


@pytest.mark.parametrize("left", [0, 1])
def test_fewer_than_two_runs_with_looks_say_nothing(runs, left):
    folder, of = runs
    for name in list(of)[left:]:
        for old in (folder / name / "rnn_callbacks").rglob("*.npz"):
            old.unlink()
    comparison = compare(load_runs(str(folder)))
    assert likeness_of_runs(comparison) == []
    assert "How alike are the states" not in page(comparison)


def test_a_damaged_look_is_a_problem_of_its_run(runs):
    folder, _ = runs
    (path,) = (folder / "gru-0" / "rnn_callbacks").rglob("*.npz")
    path.write_bytes(b"damaged")
    found = load_runs(str(folder))
    (likeness,) = likeness_of_runs(compare(found))
    assert likeness.runs == (1, 2)
    assert any(path.name in problem for problem in found[0].problems)


def test_looks_without_a_fingerprint_say_nothing(runs):
    folder, of = runs
    for name in of:
        (path,) = (folder / name / "rnn_callbacks").rglob("*.npz")
        save(Report({}, {"representation/audience": np.array("a")}), str(path), epoch=1, step=19)
    assert likeness_of_runs(compare(load_runs(str(folder)))) == []
