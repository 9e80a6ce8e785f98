import numpy as np
import pytest

from rnn_callbacks.compare import compare
from rnn_callbacks.compare.flags import flags_seen
from rnn_callbacks.compare.runs import LookFile
from rnn_callbacks.report import Report, save

from .known_runs import run, series

TAG = "gates/m.l0/flags/dead"


def look(one, folder, texts, *, noun="gates", epoch=1, part=1):
    path = str(folder / f"epoch={epoch:04}-step={epoch:08}-part={part}.npz")
    save(Report({}, texts=texts), path, epoch=epoch, step=epoch)
    one.looks.setdefault(noun, []).append(LookFile(path, epoch, epoch, part))
    return one


def test_a_flag_is_told_when_and_by_whom():
    runs = [run("a", {TAG: [0, 1, 1]}), run("b", {TAG: [0, 0, 1]}), run("c", {TAG: [1, 0, 0]}), run("d", {TAG: [0, 0]})]
    (flag,) = flags_seen(compare(runs))
    assert (flag.noun, flag.place, flag.name) == ("gates", "m.l0", "dead")
    assert (flag.ever, flag.at_end, flag.first) == ((0, 1, 2), (0, 1), 0)


def test_flags_that_stand_come_first():
    runs = [run("a", {"gates/x.l0/flags/gone": [1, 0], "gates/x.l0/flags/stands": [0, 1]})]
    assert [flag.name for flag in flags_seen(compare(runs))] == ["stands", "gone"]


def test_a_flag_that_nobody_raised_is_none():
    assert flags_seen(compare([run("a", {TAG: [0, np.nan], "loss": [1]}), run("b")])) == []


def test_where_no_place_is_known_the_flag_still_is():
    (flag,) = flags_seen(compare([run("a", {TAG: series([1, 1], walls=False)})], axis="time"))
    assert np.isnan(flag.first)
    (flag,) = flags_seen(
        compare([run("a", {TAG: series([1], walls=False)}), run("b", {TAG: series([1, 1])})], axis="time")
    )
    assert flag.first == 0


def test_a_meaning_is_what_the_last_look_said(tmp_path):
    one = look(run("a", {TAG: [1, 1]}), tmp_path, {TAG: "old"}, epoch=1)
    look(one, tmp_path, {TAG: "new", "gates/other.l1/flags/dead": "other"}, epoch=2)
    assert flags_seen(compare([one]))[0].meaning == "new"


def test_a_meaning_is_found_under_the_name_that_the_layer_has_in_its_run(tmp_path):
    first = look(
        run("a", {"gates/lstm.l1/flags/dead": [1], "gates/lstm.l0/flags/dead": [0]}),
        tmp_path,
        {"gates/lstm.l0/flags/dead": "of l0", "gates/lstm.l1/flags/dead": "of l1"},
    )
    (flag,) = flags_seen(compare([first, run("b", {"gates/gru.l1/flags/dead": [0]})]))
    assert (flag.place, flag.meaning) == ("recurrent.l1", "of l1")


@pytest.mark.parametrize(
    "other", ["probes/concepts/digit/flags/forgotten", "probes/flags/forgotten", "odd", "probes/x"]
)
def test_a_meaning_is_never_that_of_another_place(tmp_path, other):
    tag = "probes/concepts/ink/flags/forgotten"
    one = look(run("a", {tag: [1]}), tmp_path, {other: "wrong"}, noun="probes")
    assert flags_seen(compare([one]))[0].meaning == ""


def test_two_callbacks_of_one_kind_are_both_asked(tmp_path):
    one = look(run("a", {TAG: [1]}), tmp_path, {TAG: "mine"}, part=1)
    look(one, tmp_path, {"gates/m.l1/flags/dead": "other"}, part=2)
    assert flags_seen(compare([one]))[0].meaning == "mine"


def test_a_damaged_look_costs_only_the_meaning(tmp_path):
    one = look(run("a", {TAG: [1]}, folder=tmp_path), tmp_path, {TAG: "words"})
    (tmp_path / "epoch=0001-step=00000001-part=1.npz").write_bytes(b"damaged")
    assert flags_seen(compare([one]))[0].meaning == ""
    assert len(one.problems) == 1


def test_the_words_of_one_run_are_not_put_into_the_mouth_of_others(tmp_path):
    runs = []
    for name in ("first", "second"):
        found = run(name, {"gates/a.l0/flags/frozen": [1]})
        path = str(tmp_path / f"{name}.npz")
        save(Report({}, texts={"gates/a.l0/flags/frozen": f"of {name}"}), path, epoch=0, step=9)
        found.looks["gates"] = [LookFile(path, 0, 9, 1)]
        runs.append(found)
    (seen,) = flags_seen(compare(runs))
    assert seen.meaning == "second: of second"
    (alone,) = flags_seen(compare(runs[:1]))
    assert alone.meaning == "of first"
