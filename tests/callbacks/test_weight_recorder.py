"""Snapshots of models: the trainable weights, bit for bit, on the path that led to them and on no other."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from rnn_callbacks.analysis.count_sketch import SIZE, CountSketch
from rnn_callbacks.callbacks.weight_recorder import NotFiniteError, WeightRecorder
from rnn_callbacks.capture import recurrent_modules
from rnn_callbacks.weight_snapshots import Entry, SnapshotFile

from ..test_weight_snapshots import files_up_to

WIDE = 97 * 181 + 181  # numbers of `Wide`, 181 in its bias


class Reader(nn.Module):
    def __init__(self, units=5, **options):
        super().__init__()
        self.rnn = nn.LSTM(3, units, **options)
        self.norm = nn.BatchNorm1d(units)
        self.head = nn.Linear(units, 2, **options)


class Wide(nn.Module):
    """More weights than a fold has numbers."""

    def __init__(self, **options):
        super().__init__()
        self.layer = nn.Linear(97, 181, **options)
        self.late = nn.Linear(7, 3)


def make(kind=Reader, seed=0, **options):
    torch.manual_seed(seed)
    return kind(**options)


def move(model, seed):
    """An optimizer's step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype))


def recorder(model, path=None, *, resumed=None, step=0, **options):
    found = WeightRecorder(model, recurrent_modules(model), **options)
    if path is not None:
        found.begin(path, resumed=resumed, step=step)
    return found


def weights(model):
    """All trainable weights as float64, which holds every number of every precision here."""
    rows = [p.detach() for p in model.parameters() if p.requires_grad]
    rows = [torch.view_as_real(p) if p.is_complex() else p for p in rows]
    return np.concatenate([np.empty(0), *(p.double().reshape(-1).numpy() for p in rows)])


def walk(model, path, steps, **options):
    """A run with a snapshot at 0, 10, 20, ...: its recorder, and the weights at each."""
    found, true = recorder(model, path, **options), []
    for number in range(steps):
        if number:
            move(model, number)
        found.take(epoch=number - 1, step=10 * number)
        true.append(weights(model))
    return found, np.array(true)


def rows(file):
    return np.array([file.row(k) for k in range(len(file))])


def steps_of(file):
    return [entry.step for entry in file.entries]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weight_trajectory" / "snapshots"


# ---- what is in a snapshot -------------------------------------------------------------------------------------------

PRECISIONS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_snapshot_is_the_parameters_bit_for_bit(path, dtype):
    model = make().to(dtype)
    found, true = walk(model, path, 3)
    assert found.file.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_array_equal(rows(SnapshotFile(path)), true)
    assert (found.exact, found.distance_error) == (True, 0.0)


def test_one_parameter_in_double_precision_makes_the_file_so_even_if_it_thaws_later(path):
    model = make()
    model.head.double().requires_grad_(False)
    found, _ = walk(model, path, 1)
    model.head.requires_grad_(True)
    admitted(found)
    found.take(epoch=0, step=1)
    np.testing.assert_array_equal(found.file.row(1), weights(model))


def test_complex_parameter_is_its_real_and_imaginary_parts(path):
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([[1 + 2j, 3 - 4j]]))
    model.v = nn.Parameter(torch.tensor([5 + 6j]).conj())  # which torch conjugates when it is read
    found = recorder(model, path)
    found.take(epoch=0, step=0)
    assert found.file.row(0).tolist() == [1, 2, 3, -4, 5, -6]


def test_parameter_that_lies_across_its_storage_is_read_in_order(path):
    model = nn.Module()
    whole = torch.arange(30.0).reshape(5, 6)
    model.transposed = nn.Parameter(whole.t())
    model.stepped = nn.Parameter(whole[1:, ::2])
    model.expanded = nn.Parameter(torch.tensor([7.0]).expand(3))
    found = recorder(model, path)
    found.take(epoch=0, step=0)
    np.testing.assert_array_equal(
        found.file.row(0), [*whole.numpy().T.ravel(), *whole.numpy()[1:, ::2].ravel(), 7, 7, 7]
    )


def test_gates_of_a_snapshot_are_read_by_name(path):
    model = make(bias=False)
    found, _ = walk(model, path, 1)
    (a, b) = found.file.read("rnn.l0/forget", np.array([0]))
    np.testing.assert_array_equal(a[0], model.rnn.weight_ih_l0.detach()[5:10].flatten())
    np.testing.assert_array_equal(b[0], model.rnn.weight_hh_l0.detach()[5:10].flatten())
    (head,) = found.file.read("head", np.array([0]))
    np.testing.assert_array_equal(head[0], model.head.weight.detach().flatten())


def test_frozen_parameters_are_left_out_and_named(path):
    model = make()
    model.head.requires_grad_(False)
    found, true = walk(model, path, 2)
    assert found.frozen == ["head.weight", "head.bias"] == SnapshotFile(path).facts["frozen"]
    assert found.trainable == {name for name, _ in model.named_parameters() if not name.startswith("head")}
    assert {column.parameter for column in found.file.columns} == found.trainable
    np.testing.assert_array_equal(rows(found.file), true)


def test_buffers_are_no_weights(path):
    found, _ = walk(make(), path, 1)
    names = {column.parameter for column in found.file.columns}
    assert not any("running" in name or "tracked" in name for name in names)
    assert {"norm.weight", "norm.bias"} <= names


def test_tied_parameters_count_once(path):
    model = make()
    model.same = nn.Linear(5, 2)
    model.same.weight = model.head.weight
    model.rnn_again = model.rnn
    found, true = walk(model, path, 1)
    names = list(dict.fromkeys(column.parameter for column in found.file.columns))
    assert "same.weight" not in names
    assert not any(name.startswith("rnn_again") for name in names)
    np.testing.assert_array_equal(found.file.row(0), true[0])


def test_compiled_model_has_the_columns_of_the_plain_one(path):
    model = make()
    found, _ = walk(model, path, 1)
    compiled = recorder(torch.compile(model, backend="eager"), path.with_name("compiled"))
    assert compiled.file.columns == found.file.columns
    assert compiled.frozen == found.frozen


def test_parameter_without_numbers_is_no_obstacle(path):
    model = make()
    model.none = nn.Parameter(torch.empty(0, 3))
    _, true = walk(model, path, 2)
    np.testing.assert_array_equal(rows(SnapshotFile(path)), true)


@pytest.mark.parametrize("storage", ["auto", "exact", "sketch"])
def test_model_of_which_all_is_frozen_has_an_empty_path_that_resumes(path, storage):
    model = make().requires_grad_(False)
    found, _ = walk(model, path, 2, storage=storage)
    assert found.file.nbytes == 0
    assert steps_of(recorder(model, path, step=10, storage=storage).file) == [0, 10]


def test_snapshot_leaves_the_model_as_it_was(path):
    model = make()
    model.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16).t())
    before = {name: (p, p.detach().clone(), p.stride(), p._version) for name, p in model.named_parameters()}
    attributes = set(vars(model))
    walk(model, path, 1)
    for name, parameter in model.named_parameters():
        same, values, stride, version = before[name]
        assert parameter is same
        assert torch.equal(parameter, values)
        assert (parameter.stride(), parameter._version, parameter.grad) == (stride, version, None)
    assert set(vars(model)) == attributes


def test_seed_of_the_run_is_noted(path, monkeypatch):
    monkeypatch.setitem(os.environ, "PL_GLOBAL_SEED", "17")
    found, _ = walk(make(), path, 1)
    assert SnapshotFile(path).facts == found.file.facts
    assert found.file.facts == {"storage": "auto", "sketch": None, "seed": "17", "frozen": []}


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", ["exact", "sketch"])
@pytest.mark.parametrize("where", ["rnn.weight_ih_l0", "head.bias"])
def test_weight_that_is_not_finite_is_refused_and_the_path_goes_on_after_it(path, value, storage, where):
    model = make()
    found, true = walk(model, path, 2, storage=storage)
    place = model.get_parameter(where).detach().view(-1)
    before = place[-1].item()
    place[-1] = value
    with pytest.raises(NotFiniteError, match=rf"{where} holds NaN or infinity"):
        found.take(epoch=2, step=20)
    np.testing.assert_array_equal(rows(SnapshotFile(path)), true)
    place[-1] = before
    found.take(epoch=3, step=30)
    assert steps_of(SnapshotFile(path)) == [0, 10, 30]
    np.testing.assert_array_equal(rows(found.file), true[[0, 1, 1]])


def test_largest_numbers_are_finite(path):
    model = nn.Module()
    model.w = nn.Parameter(torch.full((3,), torch.finfo(torch.float32).max))
    recorder(model, path).take(epoch=0, step=0)
    assert SnapshotFile(path).row(0).tolist() == model.w.tolist()


def test_parameter_that_is_gone_is_said(path):
    model = make()
    found, true = walk(model, path, 1)
    prune.l1_unstructured(model.head, "weight", amount=0.5)  # head.weight is head.weight_orig from now on
    with pytest.raises(ValueError, match=r"parameter head\.weight is gone, so the path of the weights ends here"):
        found.take(epoch=0, step=10)
    np.testing.assert_array_equal(rows(SnapshotFile(path)), true)


@pytest.mark.parametrize("rows_now", [1, 3])
def test_parameter_of_another_size_is_said(path, rows_now):
    model = make()
    found, true = walk(model, path, 1)
    model.head.weight = nn.Parameter(torch.ones(rows_now, 5))
    with pytest.raises(ValueError, match=r"parameter head\.weight has another shape now, so the path of the weights"):
        found.take(epoch=0, step=10)
    np.testing.assert_array_equal(rows(SnapshotFile(path)), true)


def test_parameter_that_was_replaced_by_one_like_it_is_followed(path):
    model = make()
    found, _ = walk(model, path, 1)
    model.head.weight = nn.Parameter(torch.full((2, 5), 8.0))
    found.take(epoch=0, step=10)
    np.testing.assert_array_equal(found.file.row(1), weights(model))


# ---- parameters that come later --------------------------------------------------------------------------------------


def admitted(recorder, step=-7):
    """Names of the parameters that join; no snapshot is of this step."""
    before = {column.parameter for column in recorder.file.columns}
    wanted = recorder.admit(epoch=3, step=step)
    names = list(dict.fromkeys(c.parameter for c in recorder.file.columns if c.parameter not in before))
    assert wanted == (Entry(3, step, None, 0) if names else None)
    return names


def test_a_snapshot_of_the_step_at_which_a_parameter_thaws_is_to_be_taken_again(path):
    model = make()
    model.head.requires_grad_(False)
    found, _ = walk(model, path, 2)
    last = found.file.entries[-1]
    model.head.requires_grad_(True)
    assert found.admit(epoch=3, step=last.step) == last
    assert len(found.file) == 1
    found.take(epoch=last.epoch, step=last.step)
    np.testing.assert_array_equal(found.file.row(1), weights(model))
    assert found.file.entries[-1].columns == len(found.file.columns)


@pytest.mark.parametrize("storage", ["exact", "sketch"])
def test_thawed_parameters_join_and_stand_still_before(path, storage):
    model = make()
    model.rnn.requires_grad_(False)
    found, _ = walk(model, path, 2, storage=storage)
    assert admitted(found) == []
    model.rnn.requires_grad_(True)
    assert admitted(found) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"]
    assert admitted(found) == []
    joined = model.rnn.weight_ih_l0.detach()[:5].flatten().clone()
    found.take(epoch=0, step=10)
    move(model, 9)
    found.take(epoch=1, step=20)
    (columns, *_) = found.file.read("rnn.l0/input", np.arange(4))
    np.testing.assert_array_equal(columns[:3], np.tile(joined, (3, 1)))
    np.testing.assert_array_equal(columns[3], model.rnn.weight_ih_l0.detach()[:5].flatten())


def test_parameters_that_freeze_half_way_stand_still(path):
    model = make()
    found, true = walk(model, path, 2)
    model.head.requires_grad_(False)
    assert admitted(found) == []
    found.take(epoch=1, step=20)
    np.testing.assert_array_equal(found.file.row(2), true[1])
    assert found.frozen == ["head.weight", "head.bias"]


def test_lazy_parameters_join_when_they_have_a_shape(path):
    model = make()
    model.late = nn.LazyLinear(2)
    found = recorder(model, path)
    found.take(epoch=-1, step=0)
    assert not any(column.parameter.startswith("late") for column in found.file.columns)
    assert admitted(found) == found.frozen == []
    model.late(torch.ones(1, 7))
    assert admitted(found) == ["late.weight", "late.bias"]
    found.take(epoch=0, step=10)
    np.testing.assert_array_equal(found.file.row(1)[-16:], weights(model)[-16:])
    np.testing.assert_array_equal(found.file.row(0), found.file.row(1))


def test_reparametrized_weights_are_those_that_are_trained(path):
    model = make()
    parametrizations.weight_norm(model.head)
    found, true = walk(model, path, 2)
    np.testing.assert_array_equal(rows(found.file), true)
    assert {column.part for column in found.file.columns if column.parameter.startswith("head")} == {"head"}


# ---- how much room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_run_that_just_fits_is_kept_exactly_and_one_that_does_not_as_a_sketch(path, dtype):
    model = make(Wide).to(dtype)
    size = sum(p.numel() for p in model.parameters()) * (8 if dtype == torch.float64 else 4) * 11
    fits = recorder(model, path, expected=11, max_megabytes=size / 1e6)
    beyond = recorder(model, path.with_name("beyond"), expected=11, max_megabytes=(size - 1) / 1e6)
    assert (fits.exact, beyond.exact) == (True, False)
    assert beyond.distance_error == pytest.approx((2 * SIZE) ** -0.5)
    assert beyond.file.facts["sketch"] == {"seed": 0, "size": SIZE}
    assert beyond.file.dtype == np.float64


@pytest.mark.parametrize("storage", ["exact", "sketch"])
def test_storage_that_was_asked_for_does_not_depend_on_the_room(path, storage):
    for number, size in enumerate((1e-9, 1e9)):
        found, _ = walk(make(Wide), path.with_name(str(number)), 3, storage=storage, max_megabytes=size, expected=9)
        assert found.exact == (storage == "exact")


def test_sketch_of_short_parts_is_the_weights_themselves(path):
    model = make(Wide)
    found, _ = walk(model, path, 2, storage="sketch")
    assert [column.width for column in found.file.columns] == [SIZE, 181, 21, 3]
    (bias,) = list(found.file.read("layer", np.array([1])))[-1]
    np.testing.assert_array_equal(bias, model.layer.bias.detach())


def test_sketch_keeps_distances_to_what_is_said(path):
    model = make(Wide)
    found, true = walk(model, path, 9, storage="sketch", seed=3)
    folded = rows(found.file)
    ratios = np.linalg.norm(np.diff(folded, axis=0), axis=1) / np.linalg.norm(np.diff(true, axis=0), axis=1)
    np.testing.assert_allclose(ratios, 1, atol=4 * found.distance_error)
    assert (ratios != 1).all()


def test_runs_with_one_seed_share_a_space_and_others_do_not(path):
    model = make(Wide)
    (a, _), (b, _), (c, _) = (
        walk(model, path.with_name(name), 1, storage="sketch", seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    np.testing.assert_array_equal(a.file.row(0), b.file.row(0))
    assert (a.file.row(0) != c.file.row(0)).mean() > 0.3


def test_two_layers_of_one_shape_have_signs_of_their_own(path):
    model = make(Wide)
    model.again = nn.Linear(97, 181)
    model.again.load_state_dict(model.layer.state_dict())
    found, _ = walk(model, path, 1, storage="sketch")
    a, b = (next(found.file.read(part, np.array([0])))[0] for part in ("layer", "again"))
    assert (a != b).mean() > 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_path_that_outgrows_its_room_goes_on_as_the_sketch_taken_from_the_start(path, dtype):
    size = WIDE * (8 if dtype == torch.float64 else 4)
    found = {}
    for name, options in (("grown", {"max_megabytes": 4.5 * size / 1e6}), ("start", {"storage": "sketch"})):
        model = make(Wide).to(dtype)
        model.late.requires_grad_(False)
        found[name], _ = walk(model, path.with_name(name), 3, seed=7, **options)
        found[name].file.note(metric="val_loss")
        model.late.requires_grad_(True)
        admitted(found[name])
        for number in range(3, 7):
            if number > 3:
                move(model, number)
            assert found[name].exact == (name == "grown" and number < 5)
            found[name].take(epoch=number, step=10 * number, value=number / 8)
    grown, start = found["grown"].file, found["start"].file
    np.testing.assert_array_equal(rows(grown), rows(start))
    np.testing.assert_array_equal(rows(SnapshotFile(path.with_name("grown"))), rows(start))
    assert [(e.epoch, e.step, e.value) for e in grown.entries] == [(e.epoch, e.step, e.value) for e in start.entries]
    assert grown.columns == start.columns
    assert grown.facts == SnapshotFile(path.with_name("grown")).facts == start.facts | {"storage": "auto"}
    assert {file.name for file in path.parent.glob("grown*")} == {"grown.bin", "grown.jsonl"}


def test_disk_that_fills_amid_folding_leaves_the_exact_path_and_nothing_else(path):
    model = make(Wide)
    found, true = walk(model, path, 5)
    with files_up_to(100_000), pytest.raises(OSError, match="File too large"):
        found._fold_file()  # three of five rows
    assert found.exact
    np.testing.assert_array_equal(rows(SnapshotFile(path)), true)
    found.max_bytes = 1
    assert {file.name for file in path.parent.iterdir()} == {"snapshots.bin", "snapshots.jsonl"}
    found.take(epoch=4, step=50)
    assert (found.exact, len(SnapshotFile(path))) == (False, 6)


def test_room_is_only_outgrown_by_more_bytes_than_it_has(path):
    model = make(Wide)
    size = sum(p.numel() for p in model.parameters()) * 4
    found = recorder(model, path, max_megabytes=3 * size / 1e6)
    for number in range(4):
        found.take(epoch=number, step=number)
        assert found.exact == (number < 3)


def test_fold_is_that_of_each_piece_under_the_name_it_is_known_by(path):
    model = make(Wide)
    found, _ = walk(model, path, 1, storage="sketch", seed=5)
    true = CountSketch(5).fold(model.layer.weight.detach().numpy().ravel(), f"layer.weight[0:{97 * 181}]")
    np.testing.assert_array_equal(found.file.row(0)[:SIZE], true)


# ---- which path is gone on with ------------------------------------------------------------------------------------


def test_run_from_the_start_begins_anew(path):
    walk(make(), path, 3)
    assert len(recorder(make(), path).file) == 0


@pytest.mark.parametrize("storage", ["auto", "exact", "sketch"])
@pytest.mark.parametrize("resumed", [True, False])
def test_run_that_goes_on_in_its_folder_has_the_path_of_one_that_never_stopped(path, storage, resumed):
    whole, _ = walk(make(Wide), path.with_name("whole"), 5, storage=storage)
    model = make(Wide)
    walk(model, path, 3, storage=storage)
    again = recorder(model, path, resumed=path if resumed else None, step=20, storage=storage)
    assert steps_of(again.file) == [0, 10, 20]
    for number in (3, 4):
        move(model, number)
        again.take(epoch=number - 1, step=10 * number)
    np.testing.assert_array_equal(rows(again.file), rows(whole.file))
    assert again.file.entries == whole.file.entries


def test_run_that_goes_on_in_another_folder_takes_a_copy_and_leaves_the_old_path(path, tmp_path):
    model = make()
    _, true = walk(model, path, 3)
    again = recorder(model, tmp_path / "new" / "snapshots", resumed=path, step=20)
    again.take(epoch=2, step=30)
    np.testing.assert_array_equal(rows(again.file), true[[0, 1, 2, 2]])
    np.testing.assert_array_equal(rows(SnapshotFile(path)), true)
    assert again.file.path == tmp_path / "new" / "snapshots"


@pytest.mark.parametrize("way", ["relative", "through a link"])
def test_one_folder_by_two_names_is_no_copy_of_itself(path, tmp_path, monkeypatch, way):
    model = make()
    _, true = walk(model, path, 3)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(path.parent)
    other = Path("weight_trajectory/snapshots") if way == "relative" else tmp_path / "link" / "snapshots"
    np.testing.assert_array_equal(rows(recorder(model, path, resumed=other, step=20).file), true)


def test_path_of_a_later_step_is_cut_to_the_present_one(path):
    model = make()
    _, true = walk(model, path, 3)
    torch.manual_seed(0)
    model = Reader()
    move(model, 1)
    again = recorder(model, path, resumed=path, step=10)
    np.testing.assert_array_equal(rows(again.file), true[:2])
    again = recorder(model, path, resumed=path, step=15)  # between two snapshots
    np.testing.assert_array_equal(rows(again.file), true[:2])


@pytest.mark.parametrize("name", ["not there", "garbage", "without numbers"])
def test_path_that_is_lost_is_begun_anew(path, name):
    model = make()
    walk(model, path, 3)
    if name == "garbage":
        path.with_name("snapshots.jsonl").write_text("garbage\n")
    elif name == "without numbers":
        path.with_name("snapshots.bin").unlink()
    else:
        path.with_name("snapshots.jsonl").unlink()
    again = recorder(model, path, resumed=path.with_name("elsewhere"), step=20)
    assert len(again.file) == 0
    again.take(epoch=1, step=20)
    np.testing.assert_array_equal(rows(SnapshotFile(path)), [weights(model)])


def test_snapshot_of_this_step_but_of_another_branch_is_dropped(path):
    model = make()
    walk(model, path, 2)
    at_10 = {name: values.clone() for name, values in model.state_dict().items()}
    move(model, 2)
    at_20 = {name: values.clone() for name, values in model.state_dict().items()}
    model.load_state_dict(at_10)
    other = recorder(model, path, resumed=path, step=10)
    move(model, 77)
    other.take(epoch=1, step=20)
    model.load_state_dict(at_20)
    assert steps_of(recorder(model, path, resumed=path, step=20).file) == [0, 10]
    assert steps_of(SnapshotFile(path)) == [0, 10]


@pytest.mark.parametrize("late", [True, False])
def test_all_snapshots_of_this_step_are_dropped_when_they_are_another_branchs(path, late):
    model = make()
    model.head.requires_grad_(False)
    found, _ = walk(model, path, 2)
    model.head.requires_grad_(True)
    admitted(found)
    if late:
        found.take(epoch=0, step=10)
    assert steps_of(recorder(model, path, step=10).file) == [0, 10, *[10] * late]
    move(model, 77)
    assert steps_of(recorder(model, path, step=10).file) == [0]


def test_path_none_of_whose_snapshots_led_here_is_begun_anew(path):
    model = make()
    found = recorder(model, path)
    found.take(epoch=0, step=20)
    other = make(seed=1)
    other.head.requires_grad_(False)
    again = recorder(other, path, step=20)
    assert len(again.file) == 0
    assert again.file.facts["frozen"] == ["head.weight", "head.bias"]
    assert {column.parameter for column in again.file.columns} == again.trainable


def test_weights_that_are_not_finite_are_of_another_branch(path):
    model = make()
    walk(model, path, 3)
    with torch.no_grad():
        model.head.bias[0] = np.nan
    assert steps_of(recorder(model, path, step=20).file) == [0, 10]


@pytest.mark.parametrize(
    "other",
    [
        {"units": 4},
        {"units": 6},
        {"kind": Wide},
        {"bias": False},
    ],
)
def test_path_of_another_architecture_is_not_gone_on_with(path, other):
    walk(make(), path, 3)
    model = make(**other)
    again = recorder(model, path, resumed=path, step=20)
    assert len(again.file) == 0
    again.take(epoch=1, step=20)
    np.testing.assert_array_equal(rows(SnapshotFile(path)), [weights(model)])


def test_path_of_complex_weights_is_gone_on_with(path):
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([[1 + 2j, 3 - 4j]]))
    recorder(model, path).take(epoch=0, step=10)
    assert steps_of(recorder(model, path, step=10).file) == [10]


def test_path_that_is_stored_otherwise_than_asked_for_is_not_gone_on_with(path):
    model = make(Wide)
    walk(model, path, 3, storage="sketch")
    assert len(recorder(model, path, step=20, storage="exact").file) == 0


def test_sketch_with_other_signs_is_not_gone_on_with(path):
    model = make(Wide)
    walk(model, path, 3, storage="sketch", seed=1)
    assert len(recorder(model, path, step=20, storage="sketch", seed=1).file) == 3
    assert len(recorder(model, path, step=20, storage="sketch", seed=2).file) == 0


def test_path_that_had_outgrown_its_room_goes_on_as_a_sketch(path):
    model = make(Wide)
    found, _ = walk(model, path, 4, max_megabytes=0.15)
    assert not found.exact
    again = recorder(model, path, step=30, max_megabytes=0.15, expected=2)
    assert (len(again.file), again.exact) == (4, False)
    again.take(epoch=3, step=40)
    np.testing.assert_array_equal(again.file.row(4), again.file.row(3))


def test_parameters_that_were_thawed_meanwhile_join_after_resumption(path):
    model = make()
    model.head.requires_grad_(False)
    walk(model, path, 2)
    model.head.requires_grad_(True)
    again = recorder(model, path, step=10)
    assert steps_of(again.file) == [0, 10]
    assert admitted(again) == ["head.weight", "head.bias"]
    again.take(epoch=0, step=10)
    np.testing.assert_array_equal(again.file.row(2), weights(model))


def test_what_a_sketch_would_not_make_smaller_stays_exact(path):
    model = make()
    found, true = walk(model, path, 3, max_megabytes=1e-6, expected=9)
    late, _ = walk(make(), path.with_name("late"), 3, max_megabytes=1e-6)
    assert found.exact
    assert late.exact
    np.testing.assert_array_equal(rows(found.file), true)


def test_a_sketch_that_folds_nothing_has_no_error(path):
    assert recorder(make(), path, storage="sketch").distance_error == 0
    assert recorder(make(Wide), path, storage="sketch").distance_error == CountSketch().distance_error
