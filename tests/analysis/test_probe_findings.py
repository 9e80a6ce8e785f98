from dataclasses import replace

import numpy as np
import pytest

from rnn_callbacks.analysis.concepts import split_sequences
from rnn_callbacks.analysis.probe_findings import (
    COURSE,
    Baseline,
    Course,
    arrays,
    best_site,
    correct,
    judge,
)
from rnn_callbacks.analysis.probe_scores import draws, interval, no_reading
from rnn_callbacks.analysis.unit_information import unit_information

from .known_labels import concept_of, read

SEQUENCES, UNITS = 301, 7


def planted(strength, *, seed=0, classes=3, quantity=False):
    """The probe of states with so much of a label in the first units; noise and labels depend on their own seeds."""
    labels = np.random.default_rng(1).integers(0, classes, SEQUENCES)
    values = np.random.default_rng(1).normal(size=SEQUENCES)
    states = np.random.default_rng(seed).normal(size=(SEQUENCES, UNITS))
    if quantity:
        states[:, 0] += strength * values
        return read(states, values)
    states[:, :classes] += strength * np.eye(classes)[labels]
    return read(states, labels)


def with_p_value(value):
    return replace(judge(planted(0.0), None, None), p_value=value)


@pytest.mark.parametrize("quantity", [False, True])
def test_same_sequences_make_the_difference_to_the_untrained_network_better_known(quantity):
    one = planted(2.0, quantity=quantity)
    # The untrained network reads nearly the same states.
    other = Baseline.of(planted(1.9, quantity=quantity))
    paired = judge(one, other, None)
    turned = other.tally.__class__(
        other.tally.right[::-1], other.tally.all[::-1], other.tally.bits, other.tally.samples,
        of_classes=other.tally.of_classes,
    )  # fmt: skip
    alone = judge(one, replace(other, tally=turned), None)
    width = paired.over_untrained_interval.high - paired.over_untrained_interval.low
    assert width < 0.5 * (alone.over_untrained_interval.high - alone.over_untrained_interval.low)
    assert paired.over_untrained_interval.low <= paired.over_untrained <= paired.over_untrained_interval.high
    assert paired.over_untrained == alone.over_untrained
    count = len(turned.samples)
    apart = one.headline.tally.scores(draws(count, 0)) - turned.scores(draws(count, 1))
    assert alone.over_untrained_interval.low == interval(apart, turned.counts).low


def test_difference_to_itself_is_nothing_for_certain():
    probed = planted(1.0)
    found = judge(probed, Baseline.of(probed), None)
    assert (found.over_untrained, found.over_untrained_interval.low, found.over_untrained_interval.high) == (0, 0, 0)


def test_paired_interval_is_that_of_sequences_drawn_for_both():
    one, other = planted(2.0), Baseline.of(planted(0.5, seed=3))
    found = judge(one, other, None)
    rng, tally, differences = np.random.default_rng(9), one.headline.tally, []
    for _ in range(2000):
        rows = rng.integers(0, len(tally.samples), len(tally.samples))
        scores = [(t.right[rows].sum(0) / t.all[rows].sum(0)).mean() for t in (tally, other.tally)]
        differences.append(scores[0] - scores[1])
    low, high = np.quantile(differences, [0.025, 0.975])
    # The interval is a little wider than the plain one, and of 400 draws.
    assert found.over_untrained_interval.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.over_untrained_interval.high == pytest.approx(high, abs=0.15 * (high - low))


def test_untrained_network_without_a_probe_leaves_its_difference_unknown():
    silent = Baseline.of(replace(planted(1.0), headline=no_reading("one class only")))
    found = judge(planted(1.0), silent, None)
    assert np.isnan(found.over_untrained)
    assert found.over_untrained_interval.low == -np.inf
    assert found.gain == found.over_shuffled


def test_gain_is_that_over_the_best_control():
    one, shuffled = planted(3.0), planted(3.0).shuffled.mean()
    strong, weak = Baseline.of(planted(1.5, seed=5)), Baseline.of(planted(0.5, seed=6))
    score = one.headline.score
    assert shuffled < weak.score < strong.score < score
    assert judge(one, strong, weak).gain == score - strong.score
    assert judge(one, weak, strong).gain == score - strong.score
    assert judge(one, weak, None).gain == score - weak.score
    assert judge(one, None, None).gain == pytest.approx(score - shuffled)
    assert judge(replace(one, shuffled=np.empty(0)), None, None).gain == pytest.approx(score - 1 / 3)


def test_gain_over_chance_knows_of_which_classes():
    labels = np.random.default_rng(0).permutation(np.append(np.arange(300) % 2, [2, 3, 4]))
    probed = read(np.random.default_rng(1).normal(size=(303, UNITS)), labels, shuffles=0)
    finding = judge(probed, None, None)
    # Of five classes, three have one member: a coin is right half of the time, not a fifth.
    assert finding.gain == probed.headline.score - 0.5
    assert abs(finding.gain) < 3 * 0.5 / 10


def test_share_is_of_the_entropy_or_of_the_variance():
    assert judge(planted(50.0), None, None).share == pytest.approx(1, abs=0.02)
    assert judge(planted(0.0), None, None).share == pytest.approx(0, abs=0.03)
    quantity = planted(2.0, quantity=True)
    assert judge(quantity, None, None).share == quantity.headline.score


def test_false_discovery_rate_is_that_of_the_worked_example():
    # Benjamini and Hochberg 1995: p times tests over rank, made monotone from above.
    found = correct([with_p_value(p) for p in (0.04, 0.01, 0.03, 0.5)])
    np.testing.assert_allclose([f.q_value for f in found], [4 / 3 * 0.04, 0.04, 4 / 3 * 0.04, 0.5])
    assert correct([]) == []


def test_of_a_hundred_concepts_of_noise_hardly_one_is_a_discovery():
    def finding(seed, strength):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 150)
        states = rng.normal(size=(150, UNITS)) + strength * labels[:, None]
        return judge(read(states, labels, seed=seed, shuffles=0), None, None)

    findings = correct([finding(seed, 0.0) for seed in range(100)] + [finding(200, 2.0)])
    assert sum(f.q_value < 0.05 for f in findings[:-1]) <= 1
    assert findings[-1].q_value < 0.05


def test_course_has_a_row_for_each_look_and_a_look_repeated_takes_its_own_place():
    course, one, other = Course(), judge(planted(1.0), None, None), judge(planted(2.0), None, Baseline.of(planted(0.0)))
    course.add(0, one)
    course.add(2, one)
    course.add(2, other)
    assert course.epochs == [0, 2]
    head = other.probed.headline
    wanted = {
        "score": head.score,
        "score_low": other.score.low,
        "score_high": other.score.high,
        "bits": head.v_information,
        "bits_low": other.bits.low,
        "bits_high": other.bits.high,
        "untrained": np.nan,
        "untrained_bits": np.nan,
        "shuffled_low": np.quantile(other.probed.shuffled, 0.025),
        "shuffled_high": np.quantile(other.probed.shuffled, 0.975),
        "input": other.input.score,
        "control": other.probed.control_headline,
    }
    assert set(wanted) == set(COURSE)
    for name, value in wanted.items():
        np.testing.assert_allclose(course[name][-1], value)
    assert course["score"][0] == one.probed.headline.score
    assert Course()["score"].shape == (0,)


def test_best_site_has_the_most_bits_and_one_without_a_probe_has_none():
    silent = judge(replace(planted(1.0), headline=no_reading("one class only")), None, None)
    found = {"l0": silent, "l1": judge(planted(0.5), None, None), "l2": judge(planted(3.0), None, None)}
    assert best_site(found) == "l2"
    assert best_site({"l0": silent}) == "l0"
    assert best_site({"l0": silent, "l1": judge(planted(0.0), None, None)}) == "l1"


def test_what_is_kept_has_no_nan_and_all_columns():
    labels = np.random.default_rng(0).integers(0, 3, (61, 4))
    states = np.random.default_rng(1).normal(size=(61, 5, UNITS))
    finding = judge(read(states, labels), None, Baseline.of(read(states + labels[:, [0, 1, 2, 3, 3], None], labels)))
    finding = replace(finding, information=unit_information(states[:, -1], labels[:, -1]))
    kept = arrays(finding)
    assert kept["score"].shape == kept["input/score"].shape == (5,)
    assert kept["headline/confusion"].shape == (3, 3)
    assert kept["units/bits"].shape == (UNITS,)
    assert all(np.isfinite(array).all() for array in kept.values())
    for probed in (planted(1.0, quantity=True), read(states[:, 0], np.full(61, 4))):
        assert all(np.isfinite(array).all() for array in arrays(judge(probed, None, None)).values())


def test_split_of_the_sequences_decides_what_is_held_out():
    labels = np.random.default_rng(0).integers(0, 2, 60)
    fitted = split_sequences([concept_of(labels)], 0.5)
    tally = read(np.random.default_rng(1).normal(size=(60, 3)), labels, fitted=fitted).headline.tally
    np.testing.assert_array_equal(tally.all, np.eye(2)[labels[~fitted]])
