import pytest

from rnn_callbacks.callbacks.schedule import NEVER, Schedule, fair_shares


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def simulate(schedule, clock, epochs, epoch_seconds, look_seconds, figure_seconds):
    """Epochs with a look and with a picture, of a run whose every part takes a known time."""
    looked, drawn = [], []
    for epoch in range(epochs):
        clock.now += epoch_seconds
        last = epoch == epochs - 1
        if schedule.look_is_due(epoch, last=last):
            looked.append(epoch)
            clock.now += look_seconds
            schedule.numbers.add(look_seconds)
            if schedule.figure_is_due(epoch, last=last):
                drawn.append(epoch)
                clock.now += figure_seconds
                schedule.figures.add(figure_seconds)
    return looked, drawn


def test_without_a_period_looks_take_their_share_of_the_time_and_no_more():
    clock = Clock()
    schedule = Schedule(None, None, 0.02, clock)
    looked, drawn = simulate(schedule, clock, 1000, 1.0, 0.1, 0.5)
    # 0.7 % of 1000 s is 70 looks of 0.1 s and 1 % is 20 pictures of 0.5 s; the first and the last come on top.
    assert 69 <= len(looked) <= 72
    assert 19 <= len(drawn) <= 22
    assert looked[0] == 0
    assert looked[-1] == drawn[-1] == 999
    assert 0.016 <= schedule.overhead() <= 0.02
    assert schedule.training_seconds == pytest.approx(1000.0)


def test_cheap_looks_come_at_every_epoch():
    clock = Clock()
    looked, _ = simulate(Schedule(None, None, 0.02, clock), clock, 50, 1.0, 0.001, 0.001)
    assert looked == list(range(50))


def test_a_dear_first_look_does_not_silence_a_short_run():
    clock = Clock()
    schedule = Schedule(None, None, 0.02, clock)
    clock.now += 1.0
    assert schedule.look_is_due(0, last=False)
    clock.now += 0.1
    schedule.numbers.add(0.1)
    later, _ = simulate(schedule, clock, 20, 1.0, 0.01, 0.0)
    assert (
        len(later) >= 10
    )  # 0.7 % of 20 s is 14 looks of 0.01 s, of which the cautious wait after the first costs some
    assert schedule.overhead() < 0.02


def test_a_fixed_period_ignores_the_budget():
    clock = Clock()
    looked, drawn = simulate(Schedule(3, 6, 1e-9, clock), clock, 12, 1.0, 50.0, 50.0)
    assert looked == [2, 5, 8, 11]
    assert drawn == [5, 11]


def test_the_spacing_it_says_is_the_spacing_it_keeps():
    clock = Clock()
    schedule = Schedule(None, None, 0.02, clock)
    clock.now += 1.0
    schedule.numbers.add(0.07)
    clock.now += 0.07
    assert schedule.spacing == 10
    assert Schedule(4, None, 0.02, clock).spacing == 4


def test_the_present_look_counts_as_looking_not_as_training():
    clock = Clock()
    schedule = Schedule(None, None, 0.02, clock)
    clock.now += 11.0  # ten of training, one of the look under way
    assert schedule.overhead(1.0) == pytest.approx(0.1)


# ---- several at once -------------------------------------------------------------------------------------------------


def together(clock, costs, *, epochs, epoch_seconds=1.0, max_overhead=0.05, period=None):
    """Schedules of one run, each with a look and a picture of known cost, and at which epochs each looked."""
    schedules = [Schedule(period, None, max_overhead, clock) for _ in costs]
    looked = [[] for _ in costs]
    for schedule in schedules:
        schedule.share_with(schedules)
    for epoch in range(epochs):
        clock.now += epoch_seconds
        last = epoch == epochs - 1
        for schedule, cost, mine in zip(schedules, costs, looked, strict=True):
            if schedule.look_is_due(epoch, last=last):
                mine.append(epoch)
                clock.now += cost
                schedule.numbers.add(cost)
                if schedule.figure_is_due(epoch, last=last):
                    clock.now += cost
                    schedule.figures.add(cost)
    return schedules, looked


def test_all_together_keep_to_one_share_of_the_time():
    schedules, looked = together(Clock(), [0.1, 0.3, 0.02], epochs=1000)
    assert sum(schedule.spent for schedule in schedules) <= 0.05 * schedules[0].training_seconds
    assert schedules[0].training_seconds == pytest.approx(1000.0)  # the others' looking is no training
    assert all(mine[0] == 0 and mine[-1] == 999 for mine in looked)
    assert (
        sum(schedule.overhead() for schedule in schedules) >= 0.035
    )  # and use it: 85 % of it are for looks between the first and the last


def test_what_a_cheap_one_does_not_need_goes_to_the_dear_one():
    alone, beside_cheap, beside_dear = (
        len(together(Clock(), costs, epochs=1000)[1][0]) for costs in ([0.5], [0.5, 1e-5], [0.5, 0.5])
    )
    assert beside_cheap == pytest.approx(alone, rel=0.02)
    assert beside_dear == pytest.approx(alone / 2, rel=0.1)


def test_what_is_spent_at_every_step_leaves_less_for_looks_and_the_spacing_says_so():
    clock = Clock()
    schedule = Schedule(None, None, 0.05, clock)
    clock.now += 10.0
    schedule.look_is_due(0, last=False)
    schedule.numbers.add(0.35)
    clock.now += 0.35
    assert schedule.spacing == 2  # 1.75 % of 10 s are half of it
    schedule.numbers.spent += 0.12
    clock.now += 0.12
    assert schedule.spacing == 6
    schedule.numbers.spent += 0.1
    clock.now += 0.1
    assert schedule.spacing == NEVER


def test_one_with_fixed_periods_takes_nothing_from_the_budget():
    clock = Clock()
    fixed, free = Schedule(1, 1, 0.05, clock), Schedule(None, None, 0.05, clock)
    for schedule in (fixed, free):
        schedule.share_with([fixed, free])
    clock.now += 10.0
    fixed.numbers.add(5.0)
    assert free.share == 0.05


def test_shares_are_what_each_can_use_and_what_is_left_is_divided():
    assert fair_shares(0.6, [1.0, 0.1, 1.0]) == pytest.approx([0.25, 0.1, 0.25])
    assert fair_shares(0.6, [0.1, 0.2]) == pytest.approx([0.25, 0.35])
    assert fair_shares(0.6, [float("inf")] * 2) == pytest.approx([0.3, 0.3])
