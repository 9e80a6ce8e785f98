"""Flags of representations: raised on one side of each threshold, silent on the other, and never out of place."""

from dataclasses import replace

import pytest

from rnn_callbacks.analysis.representation_flags import FALLEN, FIRST, RULES, Shape, check_thresholds, find_flags

HEALTHY = Shape(untrained=0.3, random=0.2, loss=0.1, epochs=FIRST, between=0.4, dead=0.1)
LAZY = replace(HEALTHY, untrained=0.9)


def raised(shape, thresholds=None):
    return {flag.name for flag in find_flags(shape, thresholds) if flag.raised}


def test_healthy_network_raises_nothing_and_every_rule_is_told():
    assert not raised(HEALTHY)
    assert [flag.name for flag in find_flags(HEALTHY)] == list(RULES) == ["lazy", "collapsed", "dead_units"]


@pytest.mark.parametrize(
    "name, over, under",
    [
        ("lazy", {"untrained": 0.501, "random": 0.0}, {"untrained": 0.5, "random": 0.0}),
        ("collapsed", {"between": 0.00099}, {"between": 0.001}),
        ("dead_units", {"dead": 0.501}, {"dead": 0.5}),
    ],
)
def test_flag_is_raised_beyond_its_threshold_only(name, over, under):
    assert raised(replace(HEALTHY, **over)) == {name}
    assert not raised(replace(HEALTHY, **under))
    (flag,) = [flag for flag in find_flags(replace(HEALTHY, **over)) if flag.name == name]
    assert flag.value == next(iter(over.values()))
    assert flag.threshold == RULES[name].threshold


@pytest.mark.parametrize(
    "changes",
    [
        {"random": 0.81},  # has moved more than half of the way
        {"random": 0.9},
        {"random": 0.95},
        {"loss": FALLEN},
        {"loss": 1.3},
        {"loss": float("nan")},
        {"epochs": FIRST - 1},
        {"epochs": 0},
        {"untrained": None},
        {"random": None},
        {"loss": None},
    ],
)
def test_network_is_not_lazy(changes):
    """Hardly more alike than random ones, before it has learned, too early, or where something is not known."""
    assert raised(LAZY) == {"lazy"}
    assert not raised(replace(LAZY, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"random": 0.79}, {"random": -0.01}, {"loss": 0.499}, {"epochs": FIRST + 1}, {"untrained": 1.0, "random": 1.0}],
)
def test_network_is_lazy(changes):
    assert raised(replace(LAZY, **changes)) == {"lazy"}


def test_unknown_is_not_raised_and_has_no_value():
    nothing = Shape(untrained=None, random=None, loss=None, epochs=9, between=None, dead=0.0)
    flags = find_flags(nothing)
    assert [flag.value for flag in flags] == [0.0] * len(RULES)
    assert not raised(nothing)


def test_states_that_are_exactly_alike_are_collapsed():
    assert raised(replace(HEALTHY, between=0.0)) == {"collapsed"}


def test_thresholds_can_be_set_and_switched_off():
    bad = replace(LAZY, between=0.0, dead=1.0)
    assert raised(bad) == set(RULES)
    for name in RULES:
        assert raised(bad, {name: None}) == set(RULES) - {name}
        assert name not in [flag.name for flag in find_flags(bad, {name: None})]
    assert raised(bad, {"lazy": 0.95, "collapsed": 0.0, "dead_units": 1.0}) == set()
    assert raised(replace(HEALTHY, untrained=0.7), {"lazy": 0.25, "collapsed": 0.5, "dead_units": 0.05}) == set(RULES)


def test_meaning_says_the_numbers():
    flags = {flag.name: flag.meaning for flag in find_flags(replace(LAZY, between=0.00042, dead=0.625))}
    assert "down to 10% of its start" in flags["lazy"]
    assert "CKA 0.90; two random networks have up to 0.20" in flags["lazy"]
    assert "only 4.2e-04 of the mean square" in flags["collapsed"]
    assert flags["dead_units"].startswith("62% of the units")
    assert not any("{" in meaning for meaning in flags.values())


def test_unknown_flag_and_what_is_no_number_are_refused():
    check_thresholds({"lazy": 0.3, "dead_units": None, "collapsed": 1})
    with pytest.raises(ValueError, match="flags: 'lasy' is none of lazy, collapsed, dead_units"):
        check_thresholds({"lasy": 0.3})
    for value in ("0.3", True, float("nan")):
        with pytest.raises(ValueError, match="flags: the threshold of 'lazy' must be a number or null"):
            check_thresholds({"lazy": value})
