import numpy as np
import pytest

from rnn_callbacks.compare import compare
from rnn_callbacks.compare.quantities import quantity_of
from rnn_callbacks.compare.words import (
    differs,
    differs_not,
    headline,
    listed,
    mean_and_spread,
    number,
    place,
    run_names,
)

from .known_runs import run, seeds, series

PLAIN = quantity_of("m")


def said(runs, **options):
    return "\n".join(headline(compare(runs, **options)))


@pytest.mark.parametrize(
    "value, words",
    [
        (0.123456, "0.123"),
        (12345.0, "12345"),
        (1234567.0, "1234567"),
        (12345.6, "12346"),
        (999.5, "1e+03"),
        (1e9, "1e+09"),
        (-0.0, "-0"),
        (np.nan, "-"),
        (np.inf, "-"),
    ],
)
def test_numbers_have_three_digits_and_whole_ones_all(value, words):
    assert number(value) == words


def test_counts_are_whole():
    assert number(1e8, quantity_of("fixed_points/m/zero/saddles")) == "100000000"


@pytest.mark.parametrize(
    "mean, spread, words",
    [
        (0.6234, 0.0051, "0.623 ± 0.005"),
        (0.5, 1e-9, "0.5 ± 1e-09"),
        (123.4, 0.004, "123.400 ± 0.004"),
        (3.0, 0.0, "3"),
        (3.0, np.nan, "3"),
        (0.0, 0.02, "0.0000 ± 0.0200"),
        (1e8, 3e6, "1e+08 ± 3e+06"),
        (np.nan, 1.0, "-"),
    ],
)
def test_a_mean_has_as_many_decimals_as_its_spread(mean, spread, words):
    assert mean_and_spread(mean, spread, PLAIN) == words


def test_long_lists_tell_what_they_leave_out():
    assert listed("abc", 2) == "a, b and 1 more"
    assert listed("ab", 2) == "a, b"


def test_a_large_step_keeps_all_its_digits():
    runs = [run("a", {"loss": series([1], steps=[12345678], epochs=False)})]
    comparison = compare(runs)
    assert place(comparison, 12345678.0) == "step 12345678"
    assert headline(comparison)[0] == "One run, a, up to step 12345678."
    assert place(compare(runs, axis="time"), 123.4) == "123 s"
    assert place(compare(runs, axis="time"), 0.25) == "0.25 s"


def test_claims_are_lines_with_both_means():
    generator = np.random.default_rng(0)
    comparison = compare(seeds(5, generator, cell="gru") + seeds(5, generator, shift=(30,)))
    (line,) = [line for line in differs(comparison) if line.startswith("m0")]
    assert "(cell=gru) against" in line
    assert len(differs(comparison)) + len(differs_not(comparison)) == len(comparison.differences)
    assert "Beyond what seeds explain," in "\n".join(headline(comparison))


def test_nothing_is_claimed_where_nothing_differs():
    generator = np.random.default_rng(0)
    assert "No difference can be told from chance with these seeds." in said(
        seeds(5, generator, cell="gru") + seeds(5, generator)
    )


@pytest.mark.parametrize(
    "counts, words",
    [
        ((1, 1), "that takes 3 seeds of each configuration, here there is one."),
        ((2, 1), "here there are at most 2."),
        ((5, 1), "here only cell=c0 has as many."),
    ],
)
def test_too_few_seeds_tell_nothing(counts, words):
    generator = np.random.default_rng(0)
    runs = [one for place, count in enumerate(counts) for one in seeds(count, generator, cell=f"c{place}")]
    assert "Nothing can be told from chance" in said(runs)
    assert words in said(runs)


def test_a_group_with_too_few_seeds_is_named_beside_others():
    generator = np.random.default_rng(0)
    runs = seeds(3, generator, cell="a") + seeds(3, generator, cell="b") + seeds(2, generator, cell="c")
    assert "cell=c has fewer than 3 seeds, of which nothing can be told from chance." in said(runs)


def test_seeds_of_one_configuration_are_called_so():
    words = said(seeds(3, np.random.default_rng(0)))
    assert "3 runs of one configuration, up to epoch 2 (counted from 0)." in words
    assert "what differs between them is their seeds' doing" in words


def test_empty_runs_are_not_the_same_as_full_ones():
    """On an axis of which nothing is known all values are none, which once passed for the same number everywhere."""
    runs = [run("empty"), run("b", {"m": series([1, 2], walls=False)}), run("c", {"m": series([1, 3], walls=False)})]
    for axis in ("epoch", "step", "time"):
        assert "Nothing differs anywhere" not in said(runs, axis=axis)
    assert "No time of b, c is known, so nothing of theirs can be compared by it." in said(runs, axis="time")
    assert "No number of theirs is known" in said([run("a"), run("b")])


def test_equal_ends_after_unlike_paths_are_no_equality():
    assert "Nothing differs anywhere" not in said([run("a", {"m": [1, 2]}), run("b", {"m": [0, 2]})])


def test_cost_is_no_difference():
    runs = [run(name, {"m": [1], "gates/overhead": [cost]}) for name, cost in (("a", 0.1), ("b", 0.2))]
    assert "Nothing differs anywhere" in said(runs)


def test_a_metric_that_ended_as_no_number_is_named():
    words = said([run("a", {"loss": [1, np.nan], "acc": [1, np.inf]}), run("b", {"loss": [1, 2], "acc": [1, np.nan]})])
    assert "At the end of a, loss, acc were no number (NaN or infinite)" in words
    assert "At the end of b, acc was no number" in words


def test_repeats_are_named():
    same = {"m": [1, 2]}
    runs = [run("a", same, {"x": 1}), run("b", same, {"x": 1}), run("c", {"m": [1, 3]}, {"x": 1})]
    assert "b repeats another run to the last digit (the same seed?) and does not count." in said(runs)


def test_settings_that_only_look_alike_are_quoted():
    runs = [run(str(n), {"m": [n]}, {"x": value}) for n, value in enumerate([1, "1", True])]
    assert "They differ in x (1, '1', True)." in said(runs)


def test_unlike_ends_are_told():
    words = said([run("a", {"val_loss": [1, 2, 3]}), run("b", {"val_loss": [1, 2]})])
    assert "up to epoch 1 (the shortest) or epoch 2 (the longest)" in words
    assert (
        "They are compared at epoch 1, the last that all of them reached, and where val_loss is best, for which"
        in words
    )


def test_standing_flags_are_told_and_their_absence_only_of_watched_runs():
    flag = "gates/m.l0/flags/dead"
    assert "Flags at the end: dead in m.l0 (a)." in said([run("a", {flag: [0, 1]})])
    assert "No flag stands at the end of any run." in said([run("a", {flag: [1, 0]})])
    assert "flag" not in said([run("a", {"loss": [1]})])


def test_runs_are_named_by_their_group_where_they_are_one():
    comparison = compare(seeds(2, np.random.default_rng(0), cell="a") + seeds(2, np.random.default_rng(1), cell="b"))
    assert run_names(comparison, (0, 1)) == "cell=a"
    assert run_names(comparison, (0, 1, 2, 3)) == "all runs"
    assert run_names(comparison, (0, 2)) == "a-0, b-0"
    assert run_names(compare(comparison.runs[:1]), (0,)) == "a-0"


def test_a_number_that_one_run_lacks_is_a_difference_and_none_at_all_is_no_equality():
    assert "Nothing differs anywhere" not in said([run("a", {"m": [1]}), run("b", {"m": [1], "n": [np.nan]})])
    assert "Nothing differs anywhere" not in said([run("a", {"m": [np.nan]}), run("b", {"m": [np.nan]})])


def test_probes_of_unlike_audiences_are_not_called_comparable():
    few, many = run("a", {"probes/sequences": [300, 300]}), run("b", {"probes/sequences": [3000]})
    said = headline(compare([few, many]))
    assert any("unlike numbers of sequences (300 to 3000), so scores of probes are not comparable" in w for w in said)
    assert not any(
        "unlike numbers" in words for words in headline(compare([few, run("b", {"probes/sequences": [300]})]))
    )


def test_runs_that_were_replayed_are_told_beside_others():
    one, other = run("a", {"loss": [1, 2]}), run("b", {"loss": [2, 3]})
    other.replayed = True
    assert any(words.startswith("Only from checkpoints known: b.") for words in headline(compare([one, other])))
    one.replayed = True
    assert not any("checkpoints" in words for words in headline(compare([one, other])))


def test_unlike_configurations_in_one_group_are_not_called_alike():
    runs = [run(name, {"loss": [1, end]}, {"lr": lr}) for name, end, lr in (("a", 2, 0.1), ("b", 3, 0.2))]
    runs[0].folder, runs[1].folder = "/logs/exp/a", "/logs/exp/b"
    words = "\n".join(headline(compare(runs, group_by=["experiment"])))
    assert "They were put into one group all the same" in words
    assert "seeds" not in words


def test_many_runs_are_counted_and_not_named():
    flags = [[1], [1], [1], [1], [1], [0], [0]]
    runs = [run(f"r{n}", {"loss": [n], "gates/a.l0/flags/frozen": flag}) for n, flag in enumerate(flags)]
    assert "frozen in a.l0 (5 of 7 runs)" in headline(compare(runs))[-1]
