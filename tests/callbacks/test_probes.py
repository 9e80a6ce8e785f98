"""`ProbeTracker` in a real run: what is probed, against which controls, when, and how it is in nobody's way."""

import copy
import re
import time
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader

from rnn_callbacks import FixedPointTracker, GateMonitor, GradientFlowMonitor, ProbeTracker
from rnn_callbacks.analysis.concepts import Concept, split_sequences
from rnn_callbacks.analysis.probe_fits import ProbeSettings
from rnn_callbacks.analysis.probes import probe
from rnn_callbacks.analysis.state_samples import StateSamples
from rnn_callbacks.callbacks import probes as probes_file
from rnn_callbacks.callbacks import state_taking
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load

from ..models import FEATURES, STEPS, UNITS, Classifier, StepClassifier, first_sign, loader, make_data, running_sum

SITE = "probes/encoder.rnn.l0/hidden/target"
CONCEPT = "probes/concepts/target"
LIGHT = {"figure_every_n_epochs": 99, "steps": 3, "shuffles": 2}  # a picture costs five times as much as the numbers
MANY = 96  # sequences, so that a probe reads more than noise


def tracker(*args, **options):
    return ProbeTracker(*args, **LIGHT | {"every_n_epochs": 1, "on_error": "raise"} | options)


def many():
    return loader(MANY, 16, seed=1)


def looks(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return [load(str(path)) for path in sorted((run / "rnn_callbacks" / "probes").glob("*.npz"))]


def reports(fit):
    return [look.report for look in looks(fit)]


def epochs(fit):
    return [look.epoch for look in looks(fit)]


def said_in(run):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in heard if issubclass(warning.category, RecurrentHealthWarning)]


@pytest.fixture
def told(monkeypatch):
    """What the callback tells by Lightning's log, which warnings are too loud for."""
    words = []
    monkeypatch.setattr(probes_file, "rank_zero_info", words.append)
    return words


# ---- a second road to the states -------------------------------------------------------------------------------------

SINGLE = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}


@torch.no_grad()
def unroll(rnn, x, lengths):
    """States ``(B, T, D)`` of every layer and direction of a module, step by step through torch's single cells."""
    found, inputs = {}, x
    for layer in range(rnn.num_layers):
        ways = []
        for suffix in ["", "_reverse"][: 1 + rnn.bidirectional]:
            cell = SINGLE[type(rnn)](inputs.shape[2], UNITS).to(x.dtype)
            cell.load_state_dict({name: getattr(rnn, f"{name}_l{layer}{suffix}") for name in cell.state_dict()})
            states = x.new_zeros(1 + (type(rnn) is nn.LSTM), *x.shape[:2], UNITS)
            state = states.new_zeros(len(states), len(x), UNITS)
            for t in range(x.shape[1]):
                rows = (lengths > t).nonzero().squeeze(1)
                at = lengths[rows] - 1 - t if suffix else t
                before = tuple(state[:, rows]) if len(state) == 2 else state[0, rows]
                after = cell(inputs[rows, at], before)
                state[:, rows] = states[:, rows, at] = torch.stack(after) if len(state) == 2 else after[None]
            found |= {f"l{layer}{suffix}/{kind}": s for kind, s in zip(("hidden", "memory"), states, strict=False)}
            ways.append(states[0])
        inputs = torch.cat(ways, dim=2)
    return found


@torch.no_grad()
def samples_of(states, inputs, lengths, steps):
    """The columns of the probed steps, and of the step that each cell reads last."""
    steps, rows = torch.tensor(steps), torch.arange(len(inputs))

    def columns(source, end):
        at = torch.cat([steps.expand(len(rows), -1), end[:, None]], dim=1)
        return source[rows[:, None], at].float().numpy()

    last, first = lengths - 1, torch.zeros_like(lengths)
    picked = {site: columns(s, first if "_reverse" in site else last) for site, s in states.items()}
    picked |= {"input": columns(inputs, last), "input_reverse": columns(inputs, first)}
    numbers = np.stack([rows.numpy() // 16, rows.numpy() % 16], axis=1)
    return StateSamples(steps.numpy(), picked, lengths.numpy(), numbers, {}, 0.0)


def target_of(y):
    return Concept("target", np.array([0, 1]), False, y.double().numpy()[:, None])


def by_hand(states, inputs, y, *, lengths=None, steps=(0, 3, 6), sites=None, shuffles=2):
    """The analysis on states that were come by in another way."""
    lengths = torch.full((len(inputs),), STEPS) if lengths is None else lengths
    concept = target_of(y)
    fitted = split_sequences([concept], 2 / 3, seed=0)
    samples = samples_of(states, inputs, lengths, list(steps))
    settings = ProbeSettings(shuffles=shuffles)
    return {one.site: one for one in probe(samples, [concept], fitted, settings, sites=sites or list(states))}


def data_of(batches):
    return (torch.cat(parts) for parts in zip(*batches, strict=True))


def assert_read_alike(report, site, expected, rounding=1e-4):
    """Rounding: states differ by 1e-7, logits by some more where a covariance is ill conditioned.

    One of the 32 held-out sequences may lie so near a boundary that it is told otherwise.
    """
    where = f"probes/encoder.rnn.{site}/target"
    for quantity, allowed in (("score", 1.5 / 32), ("v_information", rounding), ("tested", 0)):
        known = np.nan_to_num(expected.column(quantity))
        assert report.arrays[f"{where}/{quantity}"] == pytest.approx(known, abs=allowed), quantity
    assert report.scalars[f"{where}/v_information"] == pytest.approx(expected.headline.v_information, abs=rounding)


# ---- what is probed --------------------------------------------------------------------------------------------------


def ragged():
    return torch.cat([torch.arange(16) % STEPS + 1] * (MANY // 16))


@pytest.mark.parametrize(
    ("make", "packed"),
    [
        (Classifier, False),
        (lambda: Classifier("lstm", layers=2, bidirectional=True), False),
        (lambda: Classifier("lstm", bidirectional=True, packed=True), True),
    ],
    ids=["gru", "stacked bidirectional lstm", "packed bidirectional lstm"],
)
def test_the_states_that_are_probed_are_the_models_at_that_moment(fit, make, packed):
    trainer = fit(tracker(), model=make(), validate=many(), train=loader())
    x, y = data_of(many())
    lengths = ragged() if packed else torch.full((MANY,), STEPS)
    with torch.no_grad():  # the last look came after the last optimizer step
        states = unroll(trainer.lightning_module.encoder.rnn, x, lengths)
    expected = by_hand(states, x, y, lengths=lengths)
    report = reports(fit)[-1]
    assert {tag.split("/encoder.rnn.")[1].rpartition("/target")[0] for tag in report.scalars if "/hid" in tag} == {
        site for site in states if site.endswith("hidden")
    }
    for site, one in expected.items():
        assert_read_alike(report, site, one)
    assert max(np.ptp(one.column("score")) for one in expected.values()) > 0.05  # there is something to be wrong about


def test_a_users_own_loop_over_a_cell_is_probed(fit):
    trainer = fit(tracker(), model=StepClassifier, validate=many(), train=loader())
    x, y = data_of(many())
    with torch.no_grad():
        cell, state, steps = trainer.lightning_module.encoder.rnn, None, []
        for step in x.unbind(1):
            state = cell(step, state)
            steps.append(torch.stack(state))
        hidden, memory = torch.stack(steps, dim=2)
    expected = by_hand({"cell/hidden": hidden, "cell/memory": memory}, x, y)
    for site, one in expected.items():
        assert_read_alike(reports(fit)[-1], site, one)


def test_double_precision_is_probed(fit):
    trainer = fit(tracker(), validate=many(), train=loader(), precision="64-true")
    x, y = data_of(many())
    with torch.no_grad():
        states = unroll(trainer.lightning_module.encoder.rnn, x.double(), torch.full((MANY,), STEPS))
    (expected,) = by_hand(states, x.double(), y).values()
    assert_read_alike(reports(fit)[-1], "l0/hidden", expected)
    assert reports(fit)[-1].scalars["probes/encoder.rnn.l0/rebuild_error"] < 1e-12


@pytest.mark.parametrize(("precision", "family"), [("bf16-mixed", "gru"), ("bf16-true", "lstm")])
def test_half_precision_is_probed(fit, precision, family):
    class Casting(Classifier):
        def forward(self, x):
            return super().forward(x.to(self.head.weight.dtype))

    fit(tracker(), model=Casting(family, layers=2), validate=many(), max_epochs=1, precision=precision)
    (report,) = reports(fit)
    assert report.scalars["probes/encoder.rnn.l1/rebuild_error"] < 3e-2
    for state in ("hidden", "memory") if family == "lstm" else ("hidden",):
        assert 0 < report.scalars[f"probes/encoder.rnn.l1/{state}/target/balanced_accuracy"] < 1
        assert -1 < report.scalars[f"probes/encoder.rnn.l1/{state}/target/over_untrained"] < 1


def test_training_batches_are_probed_where_asked_for(fit):
    fit(tracker(observe="train"), model=Classifier("lstm", layers=2, dropout=0.3), train=many(), validate=[])
    first, last = reports(fit)
    assert last.scalars["probes/sequences"] == MANY
    assert last.scalars["probes/encoder.rnn.l1/rebuild_error"] < 2e-6
    assert {"probes/encoder.rnn.l1/memory/target/over_untrained", f"{CONCEPT}/gain"} <= set(first.scalars)


def test_steps_can_be_chosen(fit):
    fit(tracker(steps=[-1, 2]), max_epochs=1)
    assert reports(fit)[0].arrays["probes/encoder.rnn/steps"].tolist() == [2, 6]


def test_no_more_sequences_are_probed_than_asked_for(fit, told):
    fit(tracker(max_sequences=30), validate=loader(64, 16, seed=1), train=loader(), num_sanity_val_steps=0)
    assert [report.scalars["probes/sequences"] for report in reports(fit)] == [30, 30]
    said, _, hint = told[0].partition("; ")
    assert said == "ProbeTracker fits probes of encoder.rnn to 20 sequences and holds 10 out"
    assert hint == "few for 5 units, so mind the intervals."
    assert reports(fit)[-1].arrays[f"{SITE}/tested"].tolist() == [10] * 4


def test_sequences_end_where_the_memory_that_was_allowed_is_full(fit, told):
    of_sequence = 4 * (3 + 1) * (FEATURES + UNITS)  # three steps and the last, in single precision
    megabytes = 40 * of_sequence / 2**20
    trainer = fit(tracker(max_megabytes=megabytes), validate=many(), max_epochs=1, num_sanity_val_steps=0)
    assert trainer.callback_metrics["probes/sequences"] == 40
    assert "3000 were wanted, and max_megabytes=0.00488281 were reached" in told[0]


def test_longer_sequences_than_those_of_the_first_batch_are_said(fit):
    class Growing(Classifier):
        def forward(self, x):
            return super().forward(x[:, : STEPS if self.seen else 4])

        def validation_step(self, batch, batch_idx):
            self.seen = batch_idx > 0
            super().validation_step(batch, batch_idx)

        seen = True

    with pytest.warns(RecurrentHealthWarning, match="up to 7 steps long, and the probed steps, .* end at 4"):
        fit(tracker(), model=Growing)


# ---- the untrained network -------------------------------------------------------------------------------------------


class Embeds(Classifier):
    """With something trainable in front of the recurrent layer."""

    def __init__(self):
        super().__init__()
        self.front = nn.Linear(FEATURES, FEATURES)

    def forward(self, x):
        return super().forward(self.front(x))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def untrained_and_trained(fit, **options):
    model = Embeds()
    before = copy.deepcopy(model)
    trainer = fit(tracker(), model=model, validate=many(), max_epochs=1, **options)
    return before, trainer.lightning_module, reports(fit)[0]


def assert_untrained(report, rnn, inputs, y):
    with torch.no_grad():
        (expected,) = by_hand(unroll(rnn, inputs, torch.full((MANY,), STEPS)), inputs, y, shuffles=0).values()
    assert report.arrays[f"{SITE}/untrained/score"] == pytest.approx(expected.column("score"), abs=1e-4)
    assert float(report.arrays[f"{SITE}/untrained/v_information"]) == pytest.approx(
        expected.headline.v_information, abs=1e-4
    )
    score = report.scalars[f"{SITE}/balanced_accuracy"]
    assert report.scalars[f"{SITE}/over_untrained"] == pytest.approx(score - expected.headline.score, abs=1e-6)


def test_the_untrained_network_as_a_whole_is_probed_where_the_sanity_check_hears_it(fit, told):
    before, after, report = untrained_and_trained(fit, num_sanity_val_steps=-1)
    x, y = data_of(many())
    assert not torch.equal(before.front.weight, after.front.weight)
    assert_untrained(report, before.encoder.rnn, before.front(x).detach(), y)
    assert len(told) == 1  # nothing about untrained layers


@pytest.mark.parametrize("checked", [0, 2])
def test_without_a_whole_sanity_check_untrained_layers_read_the_present_inputs(fit, told, checked):
    before, after, report = untrained_and_trained(fit, num_sanity_val_steps=checked)
    x, y = data_of(many())
    assert_untrained(report, before.encoder.rnn, after.front(x).detach(), y)
    assert "untrained, for encoder.rnn, are its untrained layers on the inputs of this look" in told[1]
    assert "*" in report.texts["probes/summary"].splitlines()[-1]
    assert len(told) == 2


def test_nothing_is_said_where_the_untrained_layers_read_what_the_untrained_network_read(fit, told):
    model = Classifier("lstm", layers=2, bidirectional=True)
    rnn = copy.deepcopy(model.encoder.rnn)
    fit(tracker(), model=model, validate=many(), train=loader())
    x, y = data_of(many())
    with torch.no_grad():
        states = unroll(rnn, x, torch.full((MANY,), STEPS))
    for site, expected in by_hand(states, x, y, shuffles=0).items():
        found = reports(fit)[-1].arrays[f"probes/encoder.rnn.{site}/target/untrained/score"]
        assert found == pytest.approx(expected.column("score"), abs=1e-4)
    assert len(told) == 1


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_other_sequences_than_those_of_the_sanity_check_are_not_taken_for_the_same(fit, told):
    model = Classifier()
    rnn = copy.deepcopy(model.encoder.rnn)
    heard = []

    class Keeps(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, *args):
            if not trainer.sanity_checking:
                heard.append(batch)

    shuffled = DataLoader(make_data(MANY, 1), 16, shuffle=True)
    fit(tracker(), Keeps(), model=model, validate=shuffled, max_epochs=1, num_sanity_val_steps=-1)
    x, y = data_of(heard)
    assert_untrained(reports(fit)[0], rnn, x, y)
    assert "untrained layers on the inputs of this look" in told[1]


def test_the_untrained_network_is_the_one_before_the_first_step_at_every_look(fit):
    fit(tracker(), validate=many(), train=loader(), max_epochs=3)
    controls = [report.arrays[f"{SITE}/untrained/score"].tolist() for report in reports(fit)]
    assert controls[0] == controls[1] == controls[2]


def test_the_input_alone_is_a_control(fit):
    fit(tracker(), validate=many(), max_epochs=1)
    x, y = data_of(many())
    (expected,) = by_hand({"input": x}, x, y, sites=["input"], shuffles=0).values()
    (report,) = reports(fit)
    assert report.arrays[f"{SITE}/input/score"] == pytest.approx(expected.column("score"), abs=1e-6)
    over = report.scalars[f"{SITE}/balanced_accuracy"] - expected.headline.score
    assert report.scalars[f"{SITE}/over_input"] == pytest.approx(over, abs=1e-6)


def test_a_reversed_cell_is_compared_with_the_input_that_it_reads_last(fit):
    fit(tracker(), model=Classifier(bidirectional=True), validate=many(), max_epochs=1)
    x, y = data_of(many())
    (expected,) = by_hand({"input_reverse": x}, x, y, sites=["input_reverse"], shuffles=0).values()
    found = reports(fit)[0].arrays["probes/encoder.rnn.l0_reverse/hidden/target/input/score"]
    assert found == pytest.approx(expected.column("score"), abs=1e-6)


def test_the_control_task_is_about_the_types_that_were_given(fit):
    # The type is where the state is, left or right: whatever labels the two are dealt, they are read without fault.
    def half(batch):
        return (batch[0][:, -1, 0] > 0).long()

    model = Classifier()
    with torch.no_grad():
        for parameter in model.encoder.rnn.parameters():
            parameter.zero_()
        model.encoder.rnn.weight_ih_l0[2 * UNITS :, 0] = 9.0  # n = tanh(9 x); h = n / 2 + h / 2
    model.encoder.rnn.requires_grad_(False)
    trainer = fit(tracker(control_types=half), model=model, validate=many(), max_epochs=1)
    found = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    assert found[f"{SITE}/control_task"] > 0.9
    assert found[f"{SITE}/balanced_accuracy"] < 0.7
    difference = found[f"{SITE}/balanced_accuracy"] - found[f"{SITE}/control_task"]
    assert found[f"{SITE}/selectivity"] == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (lambda batch: torch.zeros(2, dtype=torch.long), "a batch of which the layer read 8 sequences has labels of"),
        (lambda batch: first_sign(batch)[:, :3], "control_types: labels are for 3 steps, but the layer reads 7"),
        (lambda batch: batch[0], r"control_types: types must be \(B,\) or \(B, T\), got \[\(8, 7, 3\)"),
    ],
)
def test_types_that_do_not_fit_are_said_and_cost_only_themselves(fit, types, message):
    with pytest.warns(RecurrentHealthWarning, match=message):
        fit(tracker(control_types=types), max_epochs=1)
    (given,) = reports(fit)
    fit(tracker(), max_epochs=1)
    assert given.scalars[f"{SITE}/control_task"] == reports(fit)[0].scalars[f"{SITE}/control_task"]


def test_description_length_is_there_where_it_was_asked_for(fit):
    trainer = fit(tracker(description_length=True), validate=many(), max_epochs=1)
    assert 0.5 < trainer.callback_metrics[f"{SITE}/compression"] < 10
    trainer = fit(tracker(), max_epochs=1)
    assert f"{SITE}/compression" not in trainer.callback_metrics


def test_the_logistic_engine_is_another_one(fit):
    scores = []
    for engine in ("discriminant", "logistic"):
        trainer = fit(tracker(engine=engine), validate=many(), max_epochs=1)
        scores.append(float(trainer.callback_metrics[f"{SITE}/v_information"]))
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


# ---- flags -----------------------------------------------------------------------------------------------------------


def test_a_concept_that_is_required_and_missing_is_flagged_and_warned_of_at_the_last_epoch(fit):
    said = said_in(lambda: fit(tracker(required={"target": 1.0}), validate=many(), max_epochs=2))
    flags = [report.scalars[f"{CONCEPT}/flags/missing"] for report in reports(fit)]
    assert flags == [0, 1]
    assert len(said) == 1
    assert "target, flag missing: balanced accuracy is 0." in said[0]
    assert "1 was asked for" in said[0]


def test_a_missing_concept_is_spoken_of_from_the_fifth_epoch(fit):
    required = {"required": {"noise": 1.0}, "concepts": {"noise": noise}}
    said = said_in(lambda: fit(tracker(**required), validate=many(), train=loader(8), max_epochs=7))
    flags = [report.scalars["probes/concepts/noise/flags/missing"] for report in reports(fit)]
    assert flags == [0, 0, 0, 0, 1, 1, 1]
    assert len(said) == 1
    assert "noise, flag missing" in said[0]


def test_the_last_epoch_is_known_where_steps_end_the_run(fit):
    with pytest.warns(RecurrentHealthWarning, match="flag missing"):
        fit(tracker(required={"target": 1.0}), validate=many(), max_epochs=-1, max_steps=3)


def test_a_requirement_that_no_probe_can_meet_is_said(fit):
    said = said_in(lambda: fit(tracker(concepts={"x": lambda batch: batch[0]}, required={"x": 0.9}), max_epochs=2))
    assert said == ["ProbeTracker: required names x, which no probe reads; there are x_0, x_1, x_2."]


def noise(batch):
    """Labels that have nothing to do with the inputs, the same at every look."""
    return (batch[0].double().sum((1, 2)) * 1e4).long() % 2


def test_a_flag_can_be_switched_off(fit):
    trainer = fit(tracker(flags={"forgotten": None}), max_epochs=1)
    assert f"{CONCEPT}/flags/forgotten" not in trainer.callback_metrics
    assert f"{CONCEPT}/flags/in_the_input" in trainer.callback_metrics


# ---- when ------------------------------------------------------------------------------------------------------------


class Hooks(pl.Callback):
    """Counts the hooks on the recurrent layer in every validation batch, and while training."""

    def __init__(self):
        self.validation, self.training = [], []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking and batch_idx == 0:
            self.validation.append(len(pl_module.encoder.rnn._forward_hooks))

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.training.append(len(pl_module.encoder.rnn._forward_hooks))


def test_nothing_is_heard_in_epochs_that_are_not_due(fit):
    hooks = Hooks()
    fit(ProbeTracker(max_overhead=1e-9, **LIGHT), hooks, max_epochs=4)
    assert epochs(fit) == [0, 3]
    assert hooks.validation == [1, 0, 0, 1]


@pytest.mark.parametrize("checked", [0, 2, -1])
def test_training_is_not_heard_after_the_sanity_check(fit, checked):
    hooks = Hooks()
    fit(tracker(), hooks, num_sanity_val_steps=checked)
    assert set(hooks.training) == {0}


def test_a_period_of_epochs_is_kept(fit):
    hooks = Hooks()
    fit(tracker(every_n_epochs=2), hooks, max_epochs=5)
    assert epochs(fit) == [1, 3]
    assert hooks.validation == [0, 1, 0, 1, 0]


def test_the_last_validation_is_probed_where_the_last_epoch_has_none(fit):
    fit(ProbeTracker(max_overhead=1e-9, **LIGHT), max_epochs=7, check_val_every_n_epoch=2)
    assert epochs(fit) == [1, 5]


def test_a_run_that_another_stops_ends_with_the_looks_it_had(fit):
    # States are sampled only where a look is due, and that this epoch is the last was not known when it was validated.
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    said = said_in(lambda: fit(ProbeTracker(max_overhead=1e-9, **LIGHT), Stop(), max_epochs=9))
    assert epochs(fit) == [0]
    assert not said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": -1, "max_steps": 6}, [(0, 2), (1, 5)]),
        ({"max_epochs": 1, "val_check_interval": 0.5, "train": loader(32)}, [(0, 1), (0, 3)]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [(1, 5), (3, 11)]),
    ],
    ids=["max_steps", "within an epoch", "every second epoch"],
)
def test_a_look_follows_every_validation(fit, options, expected):
    fit(tracker(), **options)
    assert [(look.epoch, look.step) for look in looks(fit)] == expected
    assert reports(fit)[-1].scalars["probes/sequences"] == 24


def test_an_epoch_that_is_looked_at_twice_has_one_place_in_the_course(fit):
    callback = tracker()
    fit(callback, max_epochs=2, val_check_interval=0.5, train=loader(32))
    (course,) = callback.state_dict()["memory"]["courses"].values()
    assert course["epochs"] == [0, 1]
    assert len(course["rows"]) == 2


def test_limited_validation_is_all_there_is(fit):
    trainer = fit(tracker(), limit_val_batches=2, max_epochs=1)
    assert trainer.callback_metrics["probes/sequences"] == 16


def test_several_validation_loaders_are_heard_one_after_the_other(fit):
    class Several(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    validate = [loader(32, 16, seed=1), loader(64, 16, seed=2)]
    fit(tracker(), model=Several, validate=validate, train=loader())
    x, y = data_of([*validate[0], *validate[1]])
    assert reports(fit)[-1].scalars["probes/sequences"] == 96
    (expected,) = by_hand({"input": x}, x, y, sites=["input"], shuffles=0).values()
    assert reports(fit)[-1].arrays[f"{SITE}/input/score"] == pytest.approx(expected.column("score"), abs=1e-6)


def test_fast_dev_run_looks_and_leaves_no_file(fit, tmp_path):
    trainer = fit(tracker(figure_every_n_epochs=None), validate=many(), fast_dev_run=True)
    assert trainer.callback_metrics["probes/sequences"] == 16
    assert not list(tmp_path.rglob("*.npz"))


def test_without_a_logger_numbers_go_to_the_root_folder(fit, tmp_path):
    trainer = fit(tracker(figure_every_n_epochs=1), logger=False, max_epochs=1)
    assert SITE + "/v_information" in trainer.callback_metrics
    assert len(list(tmp_path.rglob("rnn_callbacks/probes/*.npz"))) == 1
    assert len(list(tmp_path.rglob("rnn_callbacks/probes/figures/*.png"))) == 2


def test_early_stopping_can_monitor_a_concept(fit):
    stop = EarlyStopping(f"{CONCEPT}/v_information", mode="max", patience=1, min_delta=10.0)
    trainer = fit(ProbeTracker(max_overhead=1e-9, **LIGHT), stop, validate=many(), train=loader(), max_epochs=9)
    assert trainer.current_epoch == 2
    assert epochs(fit) == [0, 1]
    assert stop.best_score == pytest.approx(reports(fit)[0].scalars[f"{CONCEPT}/v_information"])


def test_what_it_takes_to_read_labels_is_part_of_the_cost(fit):
    def slow(batch):
        time.sleep(0.1)
        return batch[1]

    taken = []

    class Watch(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            taken.append(watcher._taken_seconds)

    watcher = tracker(concepts={"slow": slow})
    trainer = fit(Watch(), watcher, max_epochs=1, limit_val_batches=2, num_sanity_val_steps=2)
    assert taken[0] == 0  # the sanity check is no part of training
    assert taken[1] > 0.2
    assert trainer.callback_metrics["probes/seconds"] > taken[1]


# ---- beside others ---------------------------------------------------------------------------------------------------

COSTS = ("seconds", "overhead")


def numbers(scalars, noun):
    """Scalars of one callback, without what they cost."""
    own = {tag: float(value) for tag, value in scalars.items() if tag.startswith(f"{noun}/")}
    return {tag: value for tag, value in own.items() if not tag.endswith(COSTS)}


def test_callbacks_do_not_change_each_others_numbers(fit):
    looking = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"}
    makers = {
        "gates": lambda: GateMonitor(**looking),
        "gradient_flow": lambda: GradientFlowMonitor(**looking),
        "fixed_points": lambda: FixedPointTracker(**looking),
        "probes": lambda: tracker(concepts={"target": 1, "sum": running_sum}),
    }
    together = fit(*(make() for make in makers.values())).callback_metrics
    reversed_ = fit(*(make() for make in reversed(makers.values()))).callback_metrics
    for noun, make in makers.items():
        alone = numbers(fit(make()).callback_metrics, noun)
        assert alone
        assert numbers(together, noun) == alone
        assert numbers(reversed_, noun) == alone


class TwoLayers(Classifier):
    """Two recurrent modules, one after the other."""

    def __init__(self):
        super().__init__()
        self.second = nn.LSTM(UNITS, UNITS, batch_first=True)

    def forward(self, x):
        return self.head(self.norm(self.second(self.encoder.rnn(x)[0])[0][:, -1]))


def test_each_of_two_trackers_finds_what_it_would_find_alone(fit):
    first = {"module": "encoder.rnn", "concepts": {"target": 1}, "max_sequences": 40}
    second = {"module": "second", "concepts": {"sign": first_sign}, "every_n_epochs": 2}
    trained = {"model": TwoLayers, "validate": many(), "train": loader()}
    together = fit(tracker(**first), tracker(**second), **trained).callback_metrics
    found = numbers(together, "probes")
    for options, shared in ((first, 40), (second, MANY)):
        alone = numbers(fit(tracker(**options), **trained).callback_metrics, "probes")
        assert alone.pop("probes/sequences") == shared
        assert len(alone) > 10
        assert alone.items() <= found.items()


def test_of_two_trackers_that_read_one_concept_the_first_says_where_in_the_model(fit):
    trained = {"model": TwoLayers, "validate": many(), "max_epochs": 1}
    alone = fit(tracker("encoder.rnn"), **trained).callback_metrics
    with pytest.warns(RecurrentHealthWarning, match="another one reads target too, and probes/concepts/target is what"):
        found = fit(tracker("encoder.rnn"), tracker("second"), **trained).callback_metrics
    for quantity in ("v_information", "gain", "share"):  # Lightning averages what is logged twice
        assert found[f"{CONCEPT}/{quantity}"] == alone[f"{CONCEPT}/{quantity}"]
    assert "probes/second.l0/memory/target/v_information" in found


def test_a_module_that_is_never_called_is_named(fit):
    class Spare(Classifier):
        def __init__(self):
            super().__init__()
            self.spare = nn.LSTM(FEATURES, UNITS)

    with pytest.warns(RecurrentHealthWarning, match="spare is left out; it was not called"):
        trainer = fit(tracker(), model=Spare)
    assert SITE + "/v_information" in trainer.callback_metrics


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_nothing_large_is_held_while_training_goes_on(fit):
    held = []

    class Weighs(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            held.append(states_in(watcher) > 0)

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                assert states_in(watcher) == 0
                assert not watcher._batches

    watcher = tracker(causal=True)
    fit(Weighs(), watcher, num_sanity_val_steps=-1)
    assert held == [True, True, True]  # what the sanity check heard, and what each validation did
    assert states_in(watcher) == 0


def states_in(watcher):
    untrained = watcher._untrained
    samplers = [*watcher._taking.now.values(), *untrained.heard.values(), *untrained.rerun.values()]
    return sum(sampler.count for sampler in samplers)


def test_batches_of_the_sanity_check_are_not_kept(fit):
    class Looks(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            assert not watcher._batches

    watcher = tracker(causal=True)
    fit(watcher, Looks(), num_sanity_val_steps=-1, max_epochs=1)
    assert watcher.watched == {}


def test_the_recorder_holds_no_more_than_a_batch(fit):
    most = []

    class Weighs(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            most.append(sum(tape.sequences for tape in watcher._recorder.tapes.values()))

    watcher = tracker()
    fit(Weighs(), watcher, validate=many(), num_sanity_val_steps=0, max_epochs=1)
    assert most == [16] * 6


# ---- runs that go on -------------------------------------------------------------------------------------------------


def assert_same_life(straight, resumed):
    for tag, value in numbers(straight.scalars, "probes").items():
        assert resumed.scalars[tag] == pytest.approx(value, rel=1e-6, abs=1e-9), tag
    for tag, array in straight.arrays.items():
        assert resumed.arrays[tag] == pytest.approx(array, rel=1e-6, abs=1e-9), tag


def test_a_run_resumed_from_a_checkpoint_without_a_tracker_says_so_and_leaves_the_untrained_out(fit, tmp_path):
    fit(max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    said = said_in(lambda: fit(tracker(), max_epochs=3, ckpt_path=tmp_path / "one.ckpt"))
    assert len(said) == 1
    assert "goes on from a checkpoint in which no ProbeTracker has kept what the untrained network reads" in said[0]
    for report in reports(fit):
        assert f"{SITE}/over_untrained" not in report.scalars
        assert f"{SITE}/over_input" in report.scalars
        assert f"{SITE}/untrained/score" not in report.arrays


def test_a_module_of_any_name_can_be_resumed(fit, tmp_path):
    class Named(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleDict({"a|b": self.encoder.rnn})

        def forward(self, x):
            return self.head(self.norm(self.encoder["a|b"](x)[0][:, -1]))

    fit(tracker(), model=Named, max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    fit(tracker(), model=Named, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert "probes/encoder.a|b.l0/hidden/target/over_untrained" in reports(fit)[-1].scalars


def test_one_tracker_can_watch_two_runs_and_begins_anew(fit):
    watcher = tracker()
    fit(watcher, model=Classifier("lstm"))
    torch.manual_seed(3)
    model = Classifier()
    fit(watcher, model=copy.deepcopy(model))
    again = reports(fit)
    fit(tracker(), model=model)
    for first, second in zip(reports(fit), again, strict=True):
        assert_same_life(first, second)
    assert {key.split("|")[1] for key in watcher.state_dict()["memory"]["courses"]} == {"l0/hidden"}


# ---- bad input -------------------------------------------------------------------------------------------------------


class Poisoned(Classifier):
    """Weights that are NaN in the second epoch."""

    def on_validation_epoch_start(self):
        if self.current_epoch == 1:
            nn.init.constant_(self.encoder.rnn.weight_hh_l0, float("nan"))


def test_states_of_nan_are_said_once_and_never_logged(fit):
    concepts = {"target": 1, "sum": running_sum}
    said = said_in(lambda: fit(tracker(concepts=concepts), model=Poisoned("lstm", layers=2), max_epochs=3))
    assert len(said) == 1
    assert said[0].startswith("ProbeTracker: target, sum cannot be probed in encoder.rnn (l0/hidden, l0/memory, l1/hid")
    assert "too few sequences. States with NaN" in said[0]
    first, *others = reports(fit)
    assert "probes/encoder.rnn.l0/hidden/sum/r2" in first.scalars
    for report in (first, *others):
        assert np.isfinite(list(report.scalars.values())).all()
    assert not any(tag.endswith(("r2", "v_information")) for report in others for tag in report.scalars)


def test_states_that_do_not_follow_from_the_weights_are_refused(fit):
    class Scaled(nn.GRU):
        def forward(self, x, hx=None):
            out, last = super().forward(x, hx)
            return 0.9 * out, last

    class Odd(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder.rnn = Scaled(FEATURES, UNITS, batch_first=True)

    with pytest.warns(RecurrentHealthWarning, match="cannot be rebuilt from its weights"):
        trainer = fit(tracker(), model=Odd)
    assert trainer.callback_metrics["probes/encoder.rnn.l0/rebuild_error"] > 1e-3
    assert not any("target" in tag for tag in trainer.callback_metrics)


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_too_few_sequences_are_said(fit, sequences):
    with pytest.warns(
        RecurrentHealthWarning, match=r"target cannot be probed in encoder.rnn \(l0/hidden\): (too|one|held)"
    ):
        trainer = fit(tracker(max_sequences=sequences))
    assert trainer.callback_metrics["probes/sequences"] == sequences
    assert f"{SITE}/v_information" not in trainer.callback_metrics


def test_a_fault_while_states_are_taken_is_said_and_the_run_goes_on(fit, monkeypatch):
    def fails(self, tape, cells=None):
        raise KeyError("in the sampler")

    monkeypatch.setattr(state_taking.StateSampler, "hear", fails)
    said = said_in(lambda: fit(tracker(on_error="warn"), max_epochs=2))
    assert len(said) == 1
    assert "taking samples of the states failed" in said[0]
    assert "KeyError: 'in the sampler'" in said[0]
    with pytest.raises(RuntimeError, match="taking samples of the states failed"):
        fit(tracker())


# ---- settings --------------------------------------------------------------------------------------------------------

MISUSE = {
    "concepts": ({"concepts": [1]}, "concepts must be a dict: name -> function of the batch, import path, key or in"),
    "no concepts": ({"concepts": {}}, "import path, key or index, got {}"),
    "name": ({"concepts": {"a/b": 1}}, "concepts: 'a/b' is no name; expected letters, digits, '_', '-' and '.'"),
    "name of a setting": ({"concepts": {"control_types": 1}}, "concepts: 'control_types' is the name of a setting"),
    "source": (
        {"concepts": {"a": 2.5}},
        "concepts: a must be a function of the batch, its import path, a key or an index, got 2.5",
    ),
    "path": ({"concepts": {"a": "nowhere.f"}}, "concepts: a: cannot import 'nowhere.f'"),
    "types": ({"control_types": []}, "control_types must be a function of the batch, its import path, a key or an"),
    "required": ({"required": ["target"]}, "required must be a dict of scores up to 1 by concept, got ['target']"),
    "required score": ({"required": {"target": 90}}, "required must be a dict of scores up to 1 by concept"),
    "required name": ({"required": {"color": 0.5}}, "required names 'color'; the concepts are target"),
    "steps": ({"steps": 0}, "steps must be a whole number from 1 or a list of time steps, got 0"),
    "no steps": ({"steps": []}, "steps must be a whole number from 1 or a list of time steps, got []"),
    "half steps": ({"steps": [0.5]}, "or a list of time steps, got [0.5]"),
    "engine": ({"engine": "svm"}, "engine must be 'discriminant' or 'logistic', got 'svm'"),
    "shuffles": ({"shuffles": 0}, "ProbeTracker: shuffles must be a whole number from 1, got 0"),
    "a word": ({"description_length": "yes"}, "description_length must be true or false, got 'yes'"),
    "causal": ({"causal": 1}, "causal must be true or false, got 1"),
    "seed": ({"seed": -1}, "seed must be a whole number from 0, got -1"),
    "megabytes": ({"max_megabytes": 0}, "max_megabytes must be a number above 0, got 0"),
    "flags": ({"flags": ["missing"]}, "flags must be a dict of thresholds by name, got ['missing']"),
    "flag": ({"flags": {"lost": 1.0}}, "flags: 'lost' is none of missing, forgotten, already_there, in_the_input"),
    "threshold": ({"flags": {"missing": "much"}}, "the threshold of 'missing' must be a number or null, got 'much'"),
    "causal in training": ({"causal": True, "observe": "train"}, 'causal computes the validation loss and so needs'),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), MISUSE.values(), ids=MISUSE.keys())
def test_wrong_settings_are_refused_before_training(fit, settings, message):
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        fit(tracker(**settings))


# ---- what is easily meant otherwise ----------------------------------------------------------------------------------


def scores_around_zero(batch):
    return torch.arange(len(batch[0])) % 5 - 2


def test_minus_one_among_negative_labels_is_spoken_of(fit):
    with pytest.warns(RecurrentHealthWarning, match="score has whole-number labels of -1 beside other negative ones"):
        fit(tracker(concepts={"score": scores_around_zero}), validate=many(), max_epochs=1)
    assert reports(fit)[-1].arrays["probes/encoder.rnn.l0/hidden/score/classes"].tolist() == [-2, 0, 1, 2]


def ignored_as_torch_does(batch):
    return torch.where(torch.arange(len(batch[0])) % 3 == 0, -100, batch[1])


def test_torchs_own_number_for_no_label_is_none(fit):
    fit(tracker(concepts={"label": ignored_as_torch_does}), validate=many(), max_epochs=1)
    assert reports(fit)[-1].arrays["probes/encoder.rnn.l0/hidden/label/classes"].tolist() == [0, 1]


def test_steps_that_no_sequence_reaches_are_spoken_of(fit):
    with pytest.warns(RecurrentHealthWarning, match=f"reaches step 100 .they have up to {STEPS}, counted from 0"):
        fit(tracker(steps=[0, 100]), max_epochs=1)


def test_untrained_layers_behind_a_trained_encoder_are_marked_in_a_checkpoint_too(fit):
    watcher = tracker()
    fit(watcher, model=Embeds(), validate=many(), max_epochs=1, num_sanity_val_steps=0)
    kept = watcher.memory()["untrained"].values()
    assert [baseline["whole"] for baseline in kept] == [False] * len(kept)
