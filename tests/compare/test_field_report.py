import itertools
import re

import numpy as np

from rnn_callbacks.compare import compare
from rnn_callbacks.compare.field_report import field_report

from .known_runs import HOSTILE, run, seeds, series, write_snapshots
from .test_flags import look


def test_a_report_has_headline_tables_and_advice():
    generator = np.random.default_rng(0)
    text = field_report(compare(seeds(3, generator, cell="a") + seeds(3, generator, cell="b", shift=(40,))), "A title")
    assert text.startswith("# A title\n")
    assert "- m0: " in text
    assert "## Metrics\n\n|" in text
    assert "Values below are taken at the last place that all runs reached; ± is the spread between seeds." in text
    assert "No flags are known: none of our callbacks watched these runs." in text


def test_lists_stand_apart_from_paragraphs():
    lines = field_report(
        compare(seeds(3, np.random.default_rng(0)) + seeds(3, np.random.default_rng(1), cell="b"))
    ).split("\n")
    for before, line in itertools.pairwise(lines):
        if line.startswith("- ") and not before.startswith("- "):
            assert before == ""


def test_a_metric_that_was_best_before_its_end_is_told():
    text = field_report(compare([run("a", {"val_loss": [3, 1, 2]})]))
    assert "- a: val_loss was best at epoch 1, not at the end" in text


def test_a_metric_that_was_best_at_its_last_value_was_best_at_the_end():
    """Even where other numbers were logged after it."""
    numbers = {"val_loss": series([3, 2], steps=[10, 20]), "train_loss": series([1, 1, 1], steps=[10, 20, 25])}
    for axis in ("epoch", "step", "time"):
        assert "was best at" not in field_report(compare([run("a", numbers)], axis=axis))


def test_metrics_that_are_no_numbers_are_no_trouble():
    text = field_report(
        compare([run("a", {"val_loss": [np.nan, np.nan]}), run("b", {"val_loss": [1, np.nan]}), run("c")])
    )
    assert "was best at" not in text


def test_concepts_are_told_in_order():
    numbers = {f"probes/concepts/{name}/emergence_epoch": [at] for name, at in (("late", 3), ("early", 1))}
    text = field_report(compare([run("a", numbers)]))
    assert "a: concepts in the order in which half of their gain was there: early (epoch 1.0), late (epoch 3.0)" in text


def test_half_of_the_way_of_the_weights_is_told(tmp_path):
    write_snapshots(tmp_path, np.outer([0, 1, 6, 10], np.ones(4)))
    text = field_report(compare([run("a", {"loss": [1]}, folder=tmp_path)]))
    assert "## Path of the weights" in text
    assert "- a: half of the way to its last weights was done by epoch 2" in text


def test_flags_are_told_with_what_to_try(tmp_path):
    tag = "gates/m.l0/flags/dead"
    meaning = "**dead** in `m.l0`: see `moving`: [link](http://x) <b>"
    text = field_report(compare([look(run("a", {tag: [0, 1]}), tmp_path, {tag: meaning}), run("b", {tag: [1, 0]})]))
    assert r"- **dead** in `m.l0` (a, since epoch 0): see `moving`: \[link\](http://x) &lt;b>" in text


def test_a_flag_that_fell_is_told_with_its_time():
    text = field_report(compare([run("a", {"gates/m.l0/flags/dead": [0, 1, 0]})]))
    assert "- **dead** in `m.l0` (a, at epoch 1, not at the end)" in text


def test_no_flag_is_no_proof_of_health():
    assert "No flag was raised. That is no proof of health" in field_report(
        compare([run("a", {"gates/m.l0/flags/dead": [0]})])
    )


def test_what_could_not_be_read_is_told():
    one = run("a", {"loss": [1]})
    one.complain("metrics.csv", "row 3 [x](y)\x1b")
    assert "## What could not be read\n\n- a: metrics.csv: row 3 \\[x\\](y) \n" in field_report(compare([one]))


def test_nothing_that_a_run_says_is_markup(tmp_path):
    name = HOSTILE.replace("/", "")
    tag = f"gates/{name}/flags/{name}"
    one = look(run(HOSTILE, {tag: [1], HOSTILE: [2, 1]}, {HOSTILE: HOSTILE}), tmp_path, {tag: "`" + HOSTILE})
    text = field_report(compare([one, run("b", {HOSTILE: [1, 2]})], metric=HOSTILE), HOSTILE)
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    outside = re.sub(r"(?<!\\)`[^`]*`", "", text)
    assert "<b>" not in outside
    assert not re.search(r"(?<!\\)[`\[*]", outside.replace("**", ""))
    assert text.encode("utf-8")


def test_an_empty_run_has_a_report():
    assert "One run, a." in field_report(compare([run("a")]))
