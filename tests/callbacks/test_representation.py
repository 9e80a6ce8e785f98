"""`RepresentationTracker` in a real run: what is compared with what, when, and how it is in nobody's way."""

import copy
import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import GateMonitor, RepresentationTracker
from rnn_callbacks.analysis.cka import cka, geometry
from rnn_callbacks.analysis.class_geometry import class_geometry
from rnn_callbacks.analysis.representation import representation
from rnn_callbacks.callbacks import representation as representation_file
from rnn_callbacks.callbacks import state_taking
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.callbacks.random_twins import random_twin
from rnn_callbacks.report import load

from ..models import FEATURES, STEPS, UNITS, Attentive, Classifier, StepClassifier, first_sign, loader, running_sum
from .test_probes import MANY, Embeds, data_of, many, ragged, said_in, unroll

SITE = "representation/encoder.rnn.l0/hidden"
ROUNDING = 1e-3  # fingerprints are in half precision: 2^-11 of each of some thousand numbers
FOLDED = 0.02  # two and a half standard errors of what folding to 16381 numbers adds


def tracker(*args, **options):
    settings = {"figure_every_n_epochs": 1000, "every_n_epochs": 1, "on_error": "raise", "embedding": None}
    return RepresentationTracker(*args, **settings | options)


def looks(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return [load(str(path)) for path in sorted((run / "rnn_callbacks" / "representation").glob("*.npz"))]


def reports(fit):
    return [look.report for look in looks(fit)]


def numbers(scalars):
    """All but seconds."""
    every = {tag: float(value) for tag, value in scalars.items() if tag.startswith("representation/")}
    return {tag: value for tag, value in every.items() if not tag.endswith(("/seconds", "/overhead"))}


@pytest.fixture(autouse=True)
def seeded():
    """Models that a test makes itself are the same in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture
def told(monkeypatch):
    """What the callback tells by Lightning's log, which warnings are too loud for."""
    words = []
    monkeypatch.setattr(representation_file, "rank_zero_info", words.append)
    return words


class Frozen(Classifier):
    """Only what follows the recurrent layer learns."""

    def __init__(self, *args, frozen=True, **options):
        super().__init__(*args, **options)
        self.encoder.rnn.requires_grad_(not frozen)

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Lasting(Frozen):
    """The first unit tells the input of the last step, so that the loss comes down far whatever is frozen."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        with torch.no_grad():
            self.encoder.rnn.weight_ih_l0[0] = torch.tensor([2.0, 0.0, 0.0])
            self.encoder.rnn.weight_hh_l0[0] = 0.0

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return F.cross_entropy(self(x), (x[:, -1, 0] > 0).long())


# ---- the untrained network -------------------------------------------------------------------------------------------


def test_a_frozen_layer_stays_like_its_untrained_self_and_is_called_lazy_once(fit):
    said = said_in(lambda: fit(tracker(), model=Lasting("rnn"), train=loader(64, 8), validate=many(), max_epochs=7))
    lazy = []
    for report in reports(fit):
        for name in ("cka_untrained", "cka_untrained_end", "cka_previous"):
            assert report.scalars[f"{SITE}/{name}"] == pytest.approx(1, abs=1e-6), name
        assert report.scalars[f"{SITE}/settled_epoch"] == -1
        assert report.scalars[f"{SITE}/cka_random"] < 1
        lazy.append(report.scalars[f"{SITE}/flags/lazy"])
    assert lazy[:4] == [0, 0, 0, 0]  # too early to tell
    assert lazy[4:] == [1, 1, 1]
    (words,) = said
    assert words.startswith("encoder.rnn.l0/hidden, flag lazy: the loss has come down to ")
    assert "CKA 1.00" in words


def test_a_layer_whose_loss_has_not_come_down_is_not_called_lazy(fit):
    class Still(Frozen):
        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=1e-6)

    assert said_in(lambda: fit(tracker(), model=Still(), validate=many(), max_epochs=6)) == []
    assert reports(fit)[-1].scalars[f"{SITE}/flags/lazy"] == 0


def test_a_layer_that_learns_is_not_called_lazy(fit):
    model = Lasting("rnn", frozen=False)
    assert said_in(lambda: fit(tracker(), model=model, train=loader(64, 8), validate=many(), max_epochs=7)) == []
    last = reports(fit)[-1]
    assert last.scalars[f"{SITE}/flags/lazy"] == 0
    assert last.scalars[f"{SITE}/cka_untrained"] < 0.9


def test_a_flag_can_be_switched_off(fit):
    model = Lasting("rnn")
    watcher = tracker(flags={"lazy": None})
    assert said_in(lambda: fit(watcher, model=model, train=loader(64, 8), validate=many(), max_epochs=6)) == []
    assert f"{SITE}/flags/lazy" not in reports(fit)[-1].scalars
    assert f"{SITE}/flags/collapsed" in reports(fit)[-1].scalars


def columns(site, states, lengths):
    """States ``(N, T, H)``, which of them count, and those at the step that the cell reads last."""
    counted = (torch.arange(STEPS) < lengths[:, None]).numpy()
    end = torch.zeros_like(lengths) if "_reverse" in site else lengths - 1
    return states.float().numpy(), counted, states[torch.arange(len(states)), end].float().numpy()


def in_reading_order(found, lengths, y, *, reverse):
    """Distances between classes, step by step as a cell reads, and at its end."""
    order = np.arange(STEPS)[::-1] if reverse else np.arange(STEPS)
    states = np.concatenate([found[0][:, order], found[2][:, None]], 1)
    labels, length = y.double().numpy()[:, None], lengths.numpy()[:, None]
    labels = np.concatenate([np.where(found[1], labels, np.nan)[:, order], labels], 1)
    read = np.concatenate([length - order if reverse else np.tile(order + 1, (MANY, 1)), length], 1)
    return class_geometry(states, labels, read)


def likeness(one, other):
    return cka(geometry(one[0], one[1]), geometry(other[0], other[1])).cka


def below(site):
    cell, _, state = site.partition("/")
    return f"l{int(cell[1]) - 1}{cell[2:]}/{state}"


CASES = {
    "gru": (Classifier, {}, False),
    "stacked": (lambda: Classifier("rnn", layers=3), {}, False),
    "stacked bidirectional lstm": (lambda: Classifier("lstm", layers=2, bidirectional=True), {}, False),
    "packed bidirectional lstm": (lambda: Classifier("lstm", bidirectional=True, packed=True), {}, True),
    "double": (Classifier, {"precision": "64-true"}, False),
}


class Weights(pl.Callback):
    """Weights as they were before training and after every epoch."""

    def __init__(self):
        self.weights = []

    def on_fit_start(self, trainer, pl_module):
        self.weights = [copy.deepcopy(pl_module.encoder.rnn)]

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.weights.append(copy.deepcopy(pl_module.encoder.rnn))


def unrolled(rnn, x, lengths):
    if isinstance(rnn, nn.RNN):  # torch has no single cell of that name in the helper
        found, inputs = {}, x
        for layer in range(rnn.num_layers):
            cell = nn.RNNCell(inputs.shape[2], UNITS)
            cell.load_state_dict({name: getattr(rnn, f"{name}_l{layer}") for name in cell.state_dict()})
            state, steps = torch.zeros(len(x), UNITS), []
            with torch.no_grad():
                for step in inputs.unbind(1):
                    state = cell(step, state)
                    steps.append(state)
            inputs = found[f"l{layer}/hidden"] = torch.stack(steps, 1)
        return found
    return unroll(rnn, x, lengths)


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_states_that_were_come_by_in_another_way(fit, case):
    make, options, packed = CASES[case]
    kept = Weights()
    fit(tracker(), kept, model=make(), train=loader(64), validate=many(), **options)
    x, y = data_of(many())
    x = x.double() if options else x
    lengths = ragged() if packed else torch.full((MANY,), STEPS)
    before, *trained = (
        {site: columns(site, s, lengths) for site, s in unrolled(rnn, x, lengths).items()} for rnn in kept.weights
    )
    for look, report in enumerate(reports(fit)):
        now, past = trained[look], [before, *trained][look]
        for site, found in now.items():
            tag = f"representation/encoder.rnn.{site}"
            expected = {
                "cka_untrained": likeness(found, before[site]),
                "cka_untrained_end": cka(geometry(found[2]), geometry(before[site][2])).cka,
                "cka_previous": likeness(found, past[site]),
                **representation(geometry(found[0], found[1])).scalars(),
            }
            if below(site) in now:
                expected["cka_below"] = likeness(found, now[below(site)])
            else:
                assert f"{tag}/cka_below" not in report.scalars
            for name, value in expected.items():
                assert report.scalars[f"{tag}/{name}"] == pytest.approx(value, rel=ROUNDING, abs=ROUNDING), (site, name)
            by_step = cka(geometry(found[0], found[1]), geometry(before[site][0], before[site][1])).by_step
            assert report.arrays[f"{tag}/cka_untrained_by_step"] == pytest.approx(by_step, abs=3 * ROUNDING)
            classes = in_reading_order(found, lengths, y, reverse="_reverse" in site)
            assert report.scalars[f"{tag}/target/commitment"] == pytest.approx(classes.commitment), site
            for name in ("separation", "nearest_mean"):
                known = float(getattr(classes, name)[-1])
                assert report.scalars[f"{tag}/target/{name}"] == pytest.approx(known, abs=1.5 / MANY), (site, name)
        layers = [likeness(one, other) for one in now.values() for other in now.values()]
        assert report.arrays["representation/encoder.rnn/cka_layers"].ravel() == pytest.approx(layers, abs=2e-3)
    assert report.scalars["representation/sequences"] == MANY
    tops = {tag.split(".")[2].split("/")[0] for tag in report.scalars if tag.endswith("/clusters")}
    top = max(site[:2] for site in before)
    assert tops == {site.partition("/")[0] for site in before if site.startswith(top)}


def test_the_likeness_of_random_networks_is_that_of_three_twins(fit):
    kept = Weights()
    fit(tracker(seed=5), kept, validate=many(), max_epochs=2)
    x, _ = data_of(many())
    found = []
    for seed in (5, 6, 7):
        rnn = copy.deepcopy(kept.weights[0])
        (cell,) = random_twin(rnn, seed=seed)
        with torch.no_grad():
            for name in ("ih", "hh"):
                rnn.get_parameter(f"weight_{name}_l0").copy_(getattr(cell.weights, name))
                rnn.get_parameter(f"bias_{name}_l0").copy_(getattr(cell.weights, f"bias_{name}"))
            found.append(geometry(rnn(x)[0].numpy()))
    known = np.mean([cka(found[0], found[1]).cka, cka(found[0], found[2]).cka, cka(found[1], found[2]).cka])
    for report in reports(fit):
        assert report.scalars[f"{SITE}/cka_random"] == pytest.approx(known, abs=ROUNDING)


def test_a_users_own_loop_over_a_cell_is_measured(fit):
    kept = Weights()
    fit(tracker(), kept, model=StepClassifier, validate=many())
    x, _ = data_of(many())
    found = []
    for cell in kept.weights:
        state, steps = None, []
        with torch.no_grad():
            for step in x.unbind(1):
                state = cell(step, state)
                steps.append(torch.stack(state))
        found.append(torch.stack(steps, 2).numpy())
    for look, report in enumerate(reports(fit)):
        for place, state in enumerate(("hidden", "memory")):
            tag = f"representation/encoder.rnn.cell/{state}"
            now, first, past = (geometry(found[at][place]) for at in (look + 1, 0, look))
            assert report.scalars[f"{tag}/cka_untrained"] == pytest.approx(cka(now, first).cka, abs=ROUNDING)
            assert report.scalars[f"{tag}/cka_previous"] == pytest.approx(cka(now, past).cka, abs=ROUNDING)
            assert f"{tag}/cka_below" not in report.scalars


@pytest.mark.parametrize(("precision", "family"), [("bf16-mixed", "gru"), ("bf16-true", "lstm")])
def test_half_precision_is_measured(fit, precision, family):
    class Casting(Classifier):
        def forward(self, x):
            return super().forward(x.to(self.head.weight.dtype))

    fit(tracker(), model=Casting(family, layers=2), validate=many(), precision=precision)
    for report in reports(fit):
        for site in ("l0/hidden", "l1/hidden", *(("l0/memory", "l1/memory") if family == "lstm" else ())):
            tag = f"representation/encoder.rnn.{site}"
            assert 0.5 < report.scalars[f"{tag}/cka_untrained"] <= 1
            assert 1 <= report.scalars[f"{tag}/participation_ratio"] <= UNITS


def test_looks_are_compared_with_each_other_and_with_the_untrained_network_first(fit):
    fit(tracker(), model=Frozen(frozen=False), validate=many(), max_epochs=4)
    for look, report in enumerate(reports(fit)):
        matrix, when = report.arrays[f"{SITE}/cka_matrix"], report.arrays[f"{SITE}/cka_epochs"]
        assert when.tolist() == list(range(-1, look + 1))
        assert np.array_equal(matrix, matrix.T)
        assert matrix.diagonal() == pytest.approx(1)
        assert matrix[0, -1] == pytest.approx(report.scalars[f"{SITE}/cka_untrained"], abs=FOLDED)
        assert matrix[-2, -1] == pytest.approx(report.scalars[f"{SITE}/cka_previous"], abs=FOLDED)
        like = [bool((matrix[-1, at:] >= 0.95).all()) for at in range(len(when))]
        assert report.scalars[f"{SITE}/settled_epoch"] == when[like.index(True)]
    assert matrix[0, -1] < 0.95
    first = reports(fit)[0].scalars
    assert first[f"{SITE}/cka_previous"] == first[f"{SITE}/cka_untrained"]


@pytest.mark.parametrize("checked", [0, 2, -1])
def test_the_untrained_network_is_known_however_long_the_sanity_check_is(fit, told, checked):
    kept = Weights()
    fit(tracker(), kept, validate=many(), max_epochs=1, num_sanity_val_steps=checked)
    x, _ = data_of(many())
    with torch.no_grad():
        before, after = (geometry(rnn(x)[0].numpy()) for rnn in kept.weights)
    assert reports(fit)[0].scalars[f"{SITE}/cka_untrained"] == pytest.approx(cka(before, after).cka, abs=ROUNDING)
    assert len(told) == (checked == 0)


@pytest.mark.parametrize("checked", [0, 2, -1])
def test_what_learns_in_front_is_untrained_too_where_the_sanity_check_hears_everything(fit, told, checked):
    model = Embeds()
    before = copy.deepcopy(model)
    trainer = fit(tracker(), model=model, validate=many(), max_epochs=1, num_sanity_val_steps=checked)
    x, _ = data_of(many())
    after = trainer.lightning_module
    with torch.no_grad():
        front = before.front if checked == -1 else after.front
        now, untrained = after.encoder.rnn(after.front(x))[0], before.encoder.rnn(front(x))[0]
        other = before.encoder.rnn((after.front if checked == -1 else before.front)(x))[0]
    known, wrong = (cka(geometry(now.numpy()), geometry(states.numpy())).cka for states in (untrained, other))
    assert abs(known - wrong) > 3 * ROUNDING
    assert reports(fit)[0].scalars[f"{SITE}/cka_untrained"] == pytest.approx(known, abs=ROUNDING)
    if checked == -1:
        assert told == []
    else:
        assert len(told) == 1
        assert told[0].startswith("RepresentationTracker: untrained, for encoder.rnn, are its untrained layers on the")
        assert "Trainer(num_sanity_val_steps=-1)" in told[0]


# ---- other sequences -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_a_validation_loader_that_shuffles_is_said_once_and_nothing_is_compared(fit):
    shuffled = loader(MANY, 16, shuffle=True)
    said = said_in(lambda: fit(tracker(), validate=shuffled, max_epochs=4))
    (words,) = said
    assert "the first validation batches hold other sequences than at the first look" in words
    assert "should not shuffle" in words
    first, *others = reports(fit)
    assert f"{SITE}/cka_untrained" in first.scalars
    for report in others:
        assert not any(tag.endswith(("cka_untrained", "cka_untrained_end", "cka_previous")) for tag in report.scalars)
        assert 1 <= report.scalars[f"{SITE}/participation_ratio"] <= UNITS
        assert report.scalars["representation/sequences"] == MANY


def test_training_batches_that_shuffle_are_told_and_not_warned_of(fit, told):
    watcher = tracker(observe="train")
    assert said_in(lambda: fit(watcher, train=loader(shuffle=True), validate=[], max_epochs=3)) == []
    assert len([words for words in told if "the first train batches hold other sequences" in words]) == 1
    assert f"{SITE}/cka_untrained" in reports(fit)[0].scalars
    assert f"{SITE}/cka_untrained" not in reports(fit)[1].scalars


def test_training_batches_in_order_are_compared(fit, told):
    fit(tracker(observe="train"), train=loader(), validate=[], max_epochs=3)
    assert all(f"{SITE}/cka_previous" in report.scalars for report in reports(fit))


def test_no_more_sequences_are_looked_at_than_asked_for(fit):
    fit(tracker(max_sequences=30), validate=many())
    assert [report.scalars["representation/sequences"] for report in reports(fit)] == [30, 30]


def test_sequences_end_where_the_memory_that_was_allowed_is_full(fit):
    of_sequence = 4 * (3 + 1) * (FEATURES + UNITS)  # three steps and the last, in single precision
    watcher = tracker(steps=3, max_megabytes=40 * of_sequence / 2**20)
    fit(watcher, validate=many())
    for report in reports(fit):
        assert report.scalars["representation/sequences"] == 40
        assert f"{SITE}/cka_untrained" in report.scalars


def test_steps_can_be_chosen(fit):
    fit(tracker(steps=[-1, 2]), max_epochs=1)
    assert reports(fit)[0].arrays["representation/encoder.rnn/steps"].tolist() == [2, 6]


@pytest.mark.parametrize("sequences", [1, 2, 3])
def test_fewer_than_four_sequences_are_said_and_not_compared(fit, sequences):
    said = said_in(lambda: fit(tracker(max_sequences=sequences)))
    (words,) = said
    assert "there are fewer than four sequences" in words
    for report in reports(fit):
        assert report.scalars["representation/sequences"] == sequences
        assert f"{SITE}/participation_ratio" in report.scalars
        assert not any("cka_" in tag for tag in report.scalars)


# ---- concepts --------------------------------------------------------------------------------------------------------


class Unlabelled(Classifier):
    """Batches of any kind; the loss asks for nothing."""

    def training_step(self, batch, batch_idx):
        return self(batch["x"] if isinstance(batch, dict) else batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self(batch["x"] if isinstance(batch, dict) else batch[0])


def three(batch):
    x = torch.stack([item[0] for item in batch])
    return x, x[:, 0, 0], torch.arange(len(x))


KINDS = {
    "one": lambda batch: (torch.stack([item[0] for item in batch]),),
    "three": three,
    "dict": lambda batch: {"x": torch.stack([item[0] for item in batch]), "y": torch.arange(len(batch))},
    "words": lambda batch: (torch.stack([item[0] for item in batch]), ["a"] * len(batch)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_without_a_target_are_measured_without_concepts_and_without_words(fit, kind):
    def batches():
        data = loader(24, 8, seed=1).dataset
        return DataLoader(data, 8, collate_fn=KINDS[kind])

    assert said_in(lambda: fit(tracker(), model=Unlabelled, train=batches(), validate=batches())) == []
    for report in reports(fit):
        assert f"{SITE}/cka_untrained" in report.scalars
        assert not any(tag.endswith(("separation", "commitment")) for tag in report.scalars)


def test_labels_that_were_asked_for_and_are_not_there_are_said(fit):
    with pytest.warns(RecurrentHealthWarning, match="labels of color could not be read from a batch: the batch has no"):
        fit(tracker(concepts={"color": "color"}, on_error="warn"))
    assert reports(fit)[-1].scalars["representation/failed_looks"] == 2
    assert f"{SITE}/cka_untrained" in reports(fit)[-1].scalars
    with pytest.raises(ValueError, match="labels of color could not be read"):
        fit(tracker(concepts={"color": "color"}))


def mean_of_input(batch):
    return batch[0].mean((1, 2))


def test_a_quantity_colours_pictures_and_is_not_measured(fit):
    assert said_in(lambda: fit(tracker(concepts={"mean": mean_of_input, "sum": running_sum}))) == []
    assert not any("/mean/" in tag or "/sum/" in tag for tag in reports(fit)[-1].scalars)


def test_labels_of_steps_are_measured_at_each_step(fit):
    trainer = fit(tracker(concepts={"sign": first_sign}), validate=many())
    x, _ = data_of(many())
    with torch.no_grad():
        states = trainer.lightning_module.encoder.rnn(x)[0].numpy()
    labels = (x[..., 0] > 0).double().numpy()
    known = class_geometry(states, labels, np.tile(np.arange(1, STEPS + 1), (MANY, 1)))
    report = reports(fit)[-1]
    for name in ("separation", "nearest_mean"):
        found = report.arrays[f"{SITE}/sign/{name}_by_step"]
        assert found[:-1] == pytest.approx(getattr(known, name), abs=1e-4)
        assert found[-1] == pytest.approx(found[-2])  # all end at the last step
    assert f"{SITE}/sign/commitment" not in report.scalars  # of a class that changes


def test_labels_for_other_steps_than_the_layers_are_said(fit):
    message = "in encoder.rnn, sign: labels are for 5 steps, but the layer reads 7"
    with pytest.warns(RecurrentHealthWarning, match=message):
        fit(tracker(concepts={"sign": lambda batch: first_sign(batch)[:, :5]}))


# ---- resumed runs ----------------------------------------------------------------------------------------------------


FLAGS = {"lazy": 0.999}  # so that none is raised


def test_a_run_that_goes_on_with_other_sequences_says_so_and_compares_nothing(fit, tmp_path):
    fit(tracker(), validate=many(), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    others = loader(MANY, 16, seed=2)
    said = said_in(lambda: fit(tracker(), validate=others, max_epochs=3, ckpt_path=tmp_path / "one.ckpt"))
    (words,) = said
    assert "hold other sequences than at the first look" in words
    for report in reports(fit):
        assert not any(tag.endswith(("cka_untrained", "cka_previous")) for tag in report.scalars)


def test_a_lazy_layer_is_called_so_after_a_resume_by_the_loss_of_the_first_look(fit, tmp_path):
    def part(**options):
        torch.manual_seed(0)
        return fit(tracker(), model=Lasting("rnn"), train=loader(64, 8), validate=many(), **options)

    (words,) = said_in(lambda: part(max_epochs=6).save_checkpoint(tmp_path / "six.ckpt"))
    assert "flag lazy" in words
    said = said_in(lambda: part(max_epochs=9, ckpt_path=tmp_path / "six.ckpt"))
    assert said == []  # once in a life
    assert [report.scalars[f"{SITE}/flags/lazy"] for report in reports(fit)] == [1, 1, 1]


def test_a_run_resumed_from_a_checkpoint_without_a_tracker_says_so_and_leaves_the_untrained_out(fit, tmp_path):
    fit(max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    said = said_in(lambda: fit(tracker(), max_epochs=3, ckpt_path=tmp_path / "one.ckpt"))
    (words,) = said
    assert "goes on from a checkpoint in which no RepresentationTracker has kept the untrained network" in words
    first, second = reports(fit)
    for report in (first, second):
        assert f"{SITE}/cka_untrained" not in report.scalars
        assert f"{SITE}/cka_random" not in report.scalars
    assert f"{SITE}/cka_previous" not in first.scalars
    assert f"{SITE}/cka_previous" in second.scalars
    assert second.arrays[f"{SITE}/cka_epochs"].tolist() == [1, 2]


def test_one_tracker_can_watch_two_runs_and_begins_anew(fit):
    watcher = tracker()
    fit(watcher, model=Classifier("lstm"))
    torch.manual_seed(3)
    model = Classifier()
    fit(watcher, model=copy.deepcopy(model))
    again = reports(fit)
    fit(tracker(), model=model)
    for first, second in zip(reports(fit), again, strict=True):
        assert numbers(first.scalars) == numbers(second.scalars)


# ---- attention, pictures, overhead -----------------------------------------------------------------------------------


def test_attention_is_measured_head_by_head_and_no_hook_is_left(fit):
    trainer = fit(tracker(), model=Attentive, validate=many())
    model = trainer.lightning_module
    x, _ = data_of(many())
    with torch.no_grad():
        states = model.widen(model.encoder.rnn(x)[0])
        _, weights = model.attention(states, states, states, average_attn_weights=False)
    bits = -(weights * weights.log2()).sum(3).mean((0, 2))
    report = reports(fit)[-1]
    for head, known in enumerate(bits):
        assert report.scalars[f"representation/attention/head{head}/entropy"] == pytest.approx(float(known), abs=1e-5)
    assert report.arrays["representation/attention/attention"] == pytest.approx(weights.mean(0).numpy(), abs=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


class Mixed(Attentive):
    def __init__(self, *, fused=False, **options):
        super().__init__()
        self.options = options
        self.layer = nn.TransformerEncoderLayer(UNITS + 1, 2, 8, 0.0, batch_first=True) if fused else None

    def forward(self, x):
        states = self.widen(self.encoder.rnn(x)[0])
        seen = self.layer(states) if self.layer else self.attention(states, states, states, **self.options)[0]
        return self.head(self.norm(self.narrow(seen[:, -1])))


@pytest.mark.parametrize(("model", "charts"), [(Classifier, 8), (Attentive, 9)])
def test_the_curated_page_has_a_chart_of_attention_where_there_is_any(fit, model, charts):
    watcher = tracker()
    fit(watcher, model=model, max_epochs=1)
    page = watcher.layout()["Representation"]
    assert len(page) == charts
    assert any("attention" in chart for chart in page) == (charts == 9)


def test_averaged_attention_is_called_mean(fit):
    trainer = fit(tracker(), model=Mixed())
    assert "representation/attention/mean/entropy" in trainer.callback_metrics
    assert "representation/attention/head0/entropy" not in trainer.callback_metrics


def test_attention_that_computes_no_weights_is_said_once(fit):
    said = said_in(lambda: fit(tracker(), model=Mixed(need_weights=False)))
    (words,) = said
    assert "the attention of attention cannot be shown: it was called with need_weights=False" in words
    assert "write need_weights=True, average_attn_weights=False" in words


def test_attention_inside_torchs_layers_is_said_once(fit):
    said = said_in(lambda: fit(tracker(), model=Mixed(fused=True)))
    (words,) = said
    assert "the attention of layer.self_attn cannot be shown: torch's transformer layers run it without" in words


def test_attention_that_cannot_be_read_is_said_and_the_rest_is_measured(fit):
    class Odd(nn.MultiheadAttention):
        def forward(self, query, key, value, **options):
            return (super().forward(query, key, value, **options)[0],)

    class Oddly(Mixed):
        def __init__(self):
            super().__init__()
            self.attention = Odd(UNITS + 1, 2, batch_first=True)

    with pytest.warns(RecurrentHealthWarning, match="listening to attention failed"):
        fit(tracker(on_error="warn"), model=Oddly)
    assert f"{SITE}/cka_untrained" in reports(fit)[-1].scalars
    with pytest.raises(RuntimeError, match="listening to attention failed"):
        fit(tracker(), model=Oddly)


def drawn(fit):
    """Epochs of the pictures of trajectories."""
    run = sorted(fit.logs.glob("version_*"))[-1]
    folder = run / "rnn_callbacks" / "representation" / "figures"
    found = [re.fullmatch(r"encoder\.rnn\.l0\.trajectories-epoch=(\d+).*", path.stem) for path in folder.iterdir()]
    return sorted(int(match[1]) for match in found if match)


@pytest.mark.parametrize(("embedding", "every", "epochs"), [("pca", 2, [0, 2]), (None, None, [])])
def test_trajectories_are_drawn_at_most_so_often_as_asked_for(fit, embedding, every, epochs):
    watcher = tracker(embedding=embedding, embed_every_n_epochs=every, figure_every_n_epochs=1)
    fit(watcher, max_epochs=3 if embedding else 1)
    assert drawn(fit) == epochs


@pytest.mark.parametrize("pair", [0, 1])
def test_pictures_show_sequences_of_every_class_that_are_the_same_at_every_look(fit, pair):
    watcher = tracker(embedding="pca", embed_states=12, steps=2, concepts={"kind": kind_of} if pair else None)
    fit(watcher, validate=many())
    memory = watcher.state_dict()["memory"]
    _, y = data_of(many())
    labels = (torch.arange(MANY) % 16 == 5).long() if pair else y
    firsts = sorted(int(np.flatnonzero(labels.numpy() == label)[0]) for label in (0, 1))
    assert memory["rows"] == {"encoder.rnn": firsts}  # a third of twelve states, of two steps
    scenes = memory["sites"]["encoder.rnn|l0/hidden"]["scenes"]
    assert [tuple(states.shape) for states in scenes.values()] == [(2, 2, UNITS)] * 3


def kind_of(batch):
    return (torch.arange(len(batch[0])) == 5).long()


def test_phate_is_turned_to_lie_as_the_picture_before(fit):
    class Mirror(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                for points in history().drawn["phate"].values():
                    points[..., 0] *= -1
                mirrored.append(history().drawn["phate"][0].copy())

    def history():
        return watcher._histories["encoder.rnn", "l0/hidden"]

    mirrored = []
    watcher = tracker(embedding="phate", figure_every_n_epochs=1)
    fit(watcher, Mirror(), model=Frozen(), validate=many())
    kept = history().drawn
    assert set(kept) == {"phate", "pca"}
    assert list(kept["pca"]) == [-1, 0, 1]
    assert np.allclose(kept["pca"][0], kept["pca"][1])  # frozen
    now = kept["phate"][0]
    assert np.corrcoef(now[..., 0].ravel(), mirrored[0][..., 0].ravel())[0, 1] > 0.5


def test_nothing_large_is_kept_between_looks(fit):
    class Ask(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                taking = watcher._taking
                assert not taking.now and not taking.twins and not taking.twin_cells  # noqa: PT018
                assert not watcher._untrained.cells and not watcher._untrained.heard  # noqa: PT018
                assert not watcher._untrained.rerun

    watcher = tracker()
    fit(watcher, Ask(), max_epochs=3)


def test_left_alone_it_looks_at_the_first_and_the_last_epoch_of_a_short_run(fit):
    fit(RepresentationTracker(figure_every_n_epochs=1000, on_error="raise", max_overhead=1e-4), max_epochs=6)
    assert [look.epoch for look in looks(fit)] == [0, 5]
    assert RepresentationTracker().max_overhead == 0.05


def test_it_shares_what_is_heard_with_others(fit):
    alone = fit(tracker(), model=Classifier, validate=many())
    beside = fit(GateMonitor(every_n_epochs=1, figure_every_n_epochs=1000), tracker(), validate=many())
    assert numbers(alone.callback_metrics) == numbers(beside.callback_metrics)


# ---- bad input -------------------------------------------------------------------------------------------------------


class Poisoned(Classifier):
    """The states of some sequences are NaN in the second epoch."""

    def forward(self, x):
        if not self.training and not self.trainer.sanity_checking and self.current_epoch == 1:
            x = x.clone()
            x[::5] = float("nan")
        return super().forward(x)


def test_states_of_nan_are_said_once_and_other_numbers_stay(fit):
    said = said_in(lambda: fit(tracker(concepts={"sign": first_sign}), model=Poisoned(), validate=many(), max_epochs=3))
    nonfinite = [words for words in said if "states of encoder.rnn hold NaN or infinity" in words]
    assert len(nonfinite) == 1
    for report in reports(fit):
        assert np.isfinite(list(report.scalars.values())).all()
        assert 1 <= report.scalars[f"{SITE}/participation_ratio"] <= UNITS
    middle, last = reports(fit)[1:]
    assert not any(tag.endswith(("cka_untrained", "cka_previous")) for tag in middle.scalars)
    assert f"{SITE}/cka_untrained" in last.scalars or len(said) == 2  # the input is another, which is said too


def test_sequences_that_are_all_in_one_state_are_called_collapsed_once(fit):
    class Closed(Classifier):
        def on_fit_start(self):
            nn.init.zeros_(self.encoder.rnn.weight_ih_l0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=1e-2)

    said = said_in(lambda: fit(tracker(), model=Closed("lstm"), validate=many(), max_epochs=3))
    assert sorted(words.partition(":")[0] for words in said) == [
        "encoder.rnn.l0/hidden, flag collapsed",
        "encoder.rnn.l0/memory, flag collapsed",
    ]
    for report in reports(fit):
        assert report.scalars[f"{SITE}/flags/collapsed"] == 1
        assert report.scalars[f"{SITE}/between_sequences"] == pytest.approx(0, abs=1e-9)
        assert f"{SITE}/cka_untrained" not in report.scalars
        assert "flags/collapsed" in " ".join(report.texts)


def test_units_that_do_not_move_are_flagged_without_a_warning(fit):
    class Dead(Classifier):
        def on_fit_start(self):
            with torch.no_grad():
                self.encoder.rnn.bias_ih_l0.copy_(torch.tensor([-100.0] * 3 + [2.0] * (UNITS - 3)))

    model = Dead("rnn", nonlinearity="relu")
    assert said_in(lambda: fit(tracker(), model=model, validate=many())) == []
    assert reports(fit)[-1].scalars[f"{SITE}/dead_units"] == pytest.approx(3 / UNITS)
    assert reports(fit)[-1].scalars[f"{SITE}/flags/dead_units"] == 1


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
    assert trainer.callback_metrics["representation/encoder.rnn.l0/rebuild_error"] > 1e-3
    assert not any("hidden" in tag for tag in trainer.callback_metrics)


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
    "steps": ({"steps": 0}, "steps must be a whole number from 1 or a list of time steps, got 0"),
    "seed": ({"seed": -1}, "seed must be a whole number from 0, got -1"),
    "megabytes": ({"max_megabytes": 0}, "max_megabytes must be a number above 0, got 0"),
    "embedding": ({"embedding": "umap"}, "embedding must be 'phate', 'pca' or None, got 'umap'"),
    "embedding period": (
        {"embed_every_n_epochs": 0},
        "RepresentationTracker: embed_every_n_epochs must be a whole number from 1 or None, got 0",
    ),
    "few states": ({"embed_states": 11}, "embed_states must be a whole number from 12 to 1000, got 11"),
    "many states": ({"embed_states": 1001}, "embed_states must be a whole number from 12 to 1000, got 1001"),
    "half states": ({"embed_states": 20.0}, "embed_states must be a whole number from 12 to 1000, got 20.0"),
    "flags": ({"flags": ["lazy"]}, "flags must be a dict of thresholds by name, got ['lazy']"),
    "flag": ({"flags": {"lost": 1.0}}, "flags: 'lost' is none of lazy, collapsed, dead_units"),
    "threshold": ({"flags": {"lazy": "much"}}, "the threshold of 'lazy' must be a number or null, got 'much'"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_what_cannot_be_meant_is_refused_before_training(fit, case):
    settings, message = MISUSE[case]
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        fit(RepresentationTracker(**settings))


def test_a_tensor_dataset_of_integers_can_stand_in_front_of_an_embedding(fit):
    class Words(Classifier):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, FEATURES)

        def forward(self, x):
            return super().forward(self.embedding(x))

    generator = torch.Generator().manual_seed(0)
    x = torch.randint(11, (24, STEPS), generator=generator)
    batches = DataLoader(TensorDataset(x, x[:, 0] % 2), 8)
    assert said_in(lambda: fit(tracker(), model=Words, train=batches, validate=batches)) == []
    assert f"{SITE}/target/separation" in reports(fit)[-1].scalars


# ---- what an adversary found -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal])
def test_parametrized_weights_are_compared_with_random_ones_too(fit, way):
    model = Classifier()
    way(model.encoder.rnn, "weight_hh_l0")
    fit(tracker(), model=model)
    assert 0 < reports(fit)[-1].scalars[f"{SITE}/cka_random"] < 1


def test_a_look_at_other_sequences_is_not_the_look_before_of_a_later_one(fit):
    class Turns(Frozen):
        def val_dataloader(self):
            return loader(MANY, 16, seed=1 + self.current_epoch % 2)

    with pytest.warns(RecurrentHealthWarning, match="other sequences than at the first look"):
        fit(tracker(), model=Turns(), validate=[], max_epochs=3, reload_dataloaders_every_n_epochs=1)
    first, other, again = reports(fit)
    assert first.scalars[f"{SITE}/cka_previous"] == pytest.approx(1, abs=1e-6)
    assert again.scalars[f"{SITE}/cka_previous"] == pytest.approx(1, abs=1e-6)
    assert f"{SITE}/settled_epoch" not in other.scalars
    assert f"{SITE}/fingerprint" not in other.arrays


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_makes_no_layer_lazy(fit, value):
    class Odd(Frozen):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + (value if self.current_epoch % 2 == 0 else 1.0)

    assert said_in(lambda: fit(tracker(), model=Odd(), validate=many(), max_epochs=6)) == []
    assert reports(fit)[-1].scalars[f"{SITE}/flags/lazy"] == 0


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_is_left_by_a_validation_that_breaks_off(fit):
    class Breaks(Attentive):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch:
                raise RuntimeError("broken off")

    model = Breaks()
    with pytest.raises(RuntimeError, match="broken off"):
        fit(tracker(), model=model)
    assert hooks_of(model) == 0


def test_attention_is_not_listened_to_after_its_batch_where_the_layer_is_not_called(fit):
    class Skips(Attentive):
        def forward(self, x):
            if self.training:
                assert hooks_of(self.attention) == 0
                return super().forward(x)
            return self.head(
                self.norm(self.narrow(self.attention(*[self.widen(x[..., :1].expand(-1, -1, UNITS))] * 3)[0][:, -1]))
            )

    model = Skips()
    with pytest.warns(RecurrentHealthWarning, match="heard nothing"):
        fit(tracker(), model=model)
    assert hooks_of(model) == 0


def test_states_that_are_all_nan_are_said_and_cost_no_other_layer(fit):
    class Spoiled(Classifier):
        def __init__(self):
            super().__init__()
            self.other = nn.GRU(FEATURES, UNITS, batch_first=True)

        def forward(self, x):
            return super().forward(x) + 0 * self.other(x)[0].nan_to_num().sum()

        def on_train_epoch_end(self):
            with torch.no_grad():
                self.other.weight_hh_l0.fill_(float("nan"))

    said = said_in(lambda: fit(tracker(), model=Spoiled(), validate=many(), max_epochs=3))
    assert any("NaN or infin" in words for words in said)
    assert not any("Traceback" in words for words in said)
    last = reports(fit)[-1]
    assert f"{SITE}/cka_untrained" in last.scalars
    assert last.scalars["representation/failed_looks"] == 0


def test_states_too_large_for_half_precision_are_drawn(fit):
    class Huge(Classifier):
        def forward(self, x):
            return super().forward(1e7 * x)

    model = Huge("rnn", nonlinearity="relu")
    fit(tracker(embedding="pca", figure_every_n_epochs=1), model=model, max_epochs=1)
    assert drawn(fit) == [0]


def test_the_last_look_is_drawn_whatever_period_trajectories_have(fit):
    watcher = tracker(embedding="pca", embed_every_n_epochs=2, figure_every_n_epochs=3)
    fit(watcher, max_epochs=6)
    assert drawn(fit) == [2, 5]


@pytest.mark.parametrize(
    "target", [torch.randn(MANY, 10), torch.arange(MANY * STEPS).view(MANY, STEPS)], ids=["10 numbers", "tokens"]
)
def test_targets_that_nobody_asked_to_be_measured_are_passed_over(fit, target):
    class Silent(Classifier):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self(batch[0]).square().mean())

    data = DataLoader(TensorDataset(torch.randn(MANY, STEPS, FEATURES), target), 16)
    assert said_in(lambda: fit(tracker(), model=Silent(), train=data, validate=data)) == []
    assert f"{SITE}/cka_untrained" in reports(fit)[-1].scalars
