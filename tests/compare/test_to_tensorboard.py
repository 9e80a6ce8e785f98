import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rnn_callbacks.compare import compare
from rnn_callbacks.compare.to_tensorboard import OVERVIEW, write_tensorboard

from .known_runs import HOSTILE, run, series


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return found


def points(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_steps_are_epochs_with_the_last_value_of_each(tmp_path):
    one = run("a", {"loss": series([5, 4, 3, 2, np.nan], steps=[7, 8, 19, 20, 21], epochs=[0, 0, 1, 3, np.nan])})
    assert write_tensorboard(compare([one]), tmp_path / "new", {}) == tmp_path / "new"
    assert points(tmp_path / "new" / "a", "loss") == [(0, 4), (1, 3), (3, 2)]


def test_times_are_kept_where_they_are_known(tmp_path):
    runs = [run("a", {"loss": [1]}), run("b", {"loss": series([1], walls=False)})]
    write_tensorboard(compare(runs), tmp_path, {})
    assert [read(tmp_path / name).Scalars("loss")[0].wall_time for name in "ab"] == [1.5e9, 0]


def test_layers_have_the_names_that_all_share(tmp_path):
    runs = [run("a", {"gates/lstm.l0/forget/mean": [0.5]}), run("b", {"gates/gru.l0/update/mean": [0.5]})]
    write_tensorboard(compare(runs), tmp_path, {})
    tag = "gates/recurrent.l0/retention/mean"
    assert points(tmp_path / "a", tag) == points(tmp_path / "b", tag) == [(0, 0.5)]


def test_pictures_and_words_are_in_a_run_of_their_own(tmp_path):
    write_tensorboard(compare([run("a", {"loss": [1]})]), tmp_path, {"curves": Figure(figsize=(1, 1))})
    found = read(tmp_path / OVERVIEW)
    assert found.Tags()["images"] == ["comparison/curves"]
    assert found.Images("comparison/curves")[0].encoded_image_string.startswith(b"\x89PNG")
    (words,) = found.Tensors("comparison")
    assert b"One run, a" in words.tensor_proto.string_val[0]


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "old").write_text("")
    with pytest.raises(FileExistsError, match="already holds something; name a new folder for TensorBoard"):
        write_tensorboard(compare([run("a")]), tmp_path, {})
    with pytest.raises(FileExistsError, match="already holds something"):
        write_tensorboard(compare([run("a")]), tmp_path / "old", {})


@pytest.mark.parametrize("names", [("a b", "a_b", "A_B"), (OVERVIEW, "x"), ("..", "../../etc"), ("", "/"), ("é", "e")])
def test_runs_never_share_a_folder_and_never_leave_it(tmp_path, names):
    runs = [run(name, {"loss": [number]}) for number, name in enumerate(names)]
    write_tensorboard(compare(runs), tmp_path / "in" / "side", {})
    files = list(tmp_path.rglob("events*"))
    assert all(path.is_relative_to(tmp_path / "in" / "side") for path in files)
    assert len({path.parent for path in files}) == len(names) + 1
    values = [points(path.parent, "loss") for path in files if path.parent.name != OVERVIEW]
    assert sorted(values) == [[(0, number)] for number in range(len(names))]


def test_any_number_and_any_tag_can_be_written(tmp_path):
    epochs = np.array([0, 1, 2, 1e300])
    numbers = {HOSTILE: [1.0], "loss": series([1e300, np.nan, -1e300, 1], epochs=epochs), "epoch": [0]}
    write_tensorboard(compare([run("a", numbers)]), tmp_path, {})
    assert HOSTILE.replace("\ud800", "?") in read(tmp_path / "a").Tags()["scalars"]
    found = points(tmp_path / "a", "loss")
    assert [step for step, _ in found] == [0, 1, 2]
    assert found[0][1] == np.inf
    assert "epoch" not in read(tmp_path / "a").Tags()["scalars"]
