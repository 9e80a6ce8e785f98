"""What the loss loses with a concept: `ProbeTracker(causal=True)` in a real run, against the same done by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_callbacks import ProbeTracker
from rnn_callbacks.analysis.erasure import fit_erasure
from rnn_callbacks.callbacks import probes as probes_file
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning

from ..models import CLASSES, FEATURES, STEPS, UNITS, Classifier, StepClassifier, first_sign, loader

MANY = 96


def tracker(concepts=None, **options):
    light = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "steps": 3, "shuffles": 1, "on_error": "raise"}
    return ProbeTracker(concepts=concepts, causal=True, **light | options)


def many():
    return loader(MANY, 16, seed=1)


# ---- used or only there ----------------------------------------------------------------------------------------------


class Planted(Classifier):
    """Unit 0 holds the first feature and unit 1 the second; the readout looks at unit 1 alone."""

    def __init__(self):
        super().__init__()
        rnn = self.encoder.rnn
        with torch.no_grad():
            rows = slice(2 * UNITS, 3 * UNITS)  # the candidate
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                getattr(rnn, name)[: 2 * UNITS] = 0
            rnn.bias_ih_l0[UNITS : 2 * UNITS] = -3.0  # torch's z: most of the state is new
            rnn.weight_ih_l0[rows][:2] = rnn.weight_hh_l0[rows][:2] = rnn.bias_ih_l0[rows][:2] = 0
            rnn.weight_ih_l0[2 * UNITS, 0] = rnn.weight_ih_l0[2 * UNITS + 1, 1] = 1.0
            rnn.bias_hh_l0[rows] = 0
            self.head.weight.zero_(), self.head.bias.zero_()
            self.head.weight[:, 1] = torch.tensor([-8.0, 8.0])

    def forward(self, x):
        return self.head(self.encoder.rnn(x)[0][:, -1])

    def validation_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), used(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def used(batch):
    return (batch[0][:, -1, 1] > 0).long()


def unused(batch):
    return (batch[0][:, -1, 0] > 0).long()


def test_a_concept_that_is_used_costs_the_loss_far_more_than_one_that_is_only_there(fit):
    concepts = {"used": used, "unused": unused}
    trainer = fit(tracker(concepts), model=Planted, validate=loader(240, 48, seed=1), max_epochs=1)
    found = {tag.rpartition("hidden/")[2]: float(value) for tag, value in trainer.callback_metrics.items()}
    for concept in concepts:
        assert found[f"{concept}/balanced_accuracy"] > 0.9  # both can be read alike
    assert found["used/removal"] > 0.5  # of at most log 2 = 0.69 and what overconfidence costs
    assert found["used/removal"] > 3 * found["used/removal_random"]
    # With 240 sequences the two features correlate by chance, a little.
    assert abs(found["unused/removal"]) < 0.05 * found["used/removal"]


# ---- the same by hand ------------------------------------------------------------------------------------------------


class TimeFirst(Classifier):
    def __init__(self):
        super().__init__()
        self.encoder.rnn = nn.LSTM(FEATURES, UNITS, 2)

    def forward(self, x):
        return self.head(self.norm(self.encoder.rnn(x.transpose(0, 1))[0][-1]))


class ReadsLast(Classifier):
    """Takes the state that the module returns last, of both directions."""

    def __init__(self, family="lstm"):
        super().__init__(family, bidirectional=True)

    def last_of(self, rnn, x):
        last = rnn(x)[1]
        last = last[0] if isinstance(last, tuple) else last
        return torch.cat([last[-2], last[-1]], dim=1)

    def forward(self, x):
        return self.head(self.norm(self.last_of(self.encoder.rnn, x)))


class PackedBothWays(ReadsLast):
    def last_of(self, rnn, x):
        lengths = torch.arange(len(x)) % STEPS + 1
        states, _ = rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        states, _ = pad_packed_sequence(states, batch_first=True)
        return torch.cat([states[torch.arange(len(x)), lengths - 1, :UNITS], states[:, 0, UNITS:]], dim=1)


class Projected(Classifier):
    def __init__(self):
        super().__init__("lstm", proj_size=2)
        self.norm, self.head = nn.BatchNorm1d(2), nn.Linear(2, CLASSES)


@torch.no_grad()
def removal_by_hand(model, cell=None, batches=None):
    """Change of the loss with the target taken out of the last state, of one of two cells or of the only one."""
    model = copy.deepcopy(model).eval()
    norm, model.norm = model.norm, nn.Identity()
    head, model.head = model.head, nn.Identity()
    batches = list(many()) if batches is None else batches
    states = [model(x) for x, _ in batches]  # what the readout is given
    part = slice(None) if cell is None else slice(cell * UNITS, (cell + 1) * UNITS)
    erasure = fit_erasure(torch.cat(states)[:, part].numpy(), torch.cat([y for _, y in batches]).numpy())
    changes = []
    for state, (_, y) in zip(states, batches, strict=True):
        erased = state.clone()
        erased[:, part] = torch.from_numpy(erasure.erase(state[:, part].numpy())).float()
        losses = [F.cross_entropy(head(norm(s)), y).item() for s in (erased, state)]
        changes.append(losses[0] - losses[1])
    return np.mean(changes)


BY_HAND = {
    "gru": (Classifier, {"l0": None}),
    "packed": (lambda: Classifier(packed=True), {"l0": None}),
    "time first, stacked": (TimeFirst, {"l1": None}),
    "last of both ways": (ReadsLast, {"l0": 0, "l0_reverse": 1}),
    "gru, last of both ways": (lambda: ReadsLast("gru"), {"l0": 0, "l0_reverse": 1}),
    "packed both ways": (PackedBothWays, {"l0": 0, "l0_reverse": 1}),
    "projected": (Projected, {"l0": None}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(("make", "sites"), BY_HAND.values(), ids=BY_HAND.keys())
def test_removal_is_the_change_of_the_models_own_loss(fit, make, sites):
    trainer = fit(tracker(), model=make(), train=loader(), validate=many())
    for site, cell in sites.items():
        expected = removal_by_hand(trainer.lightning_module, cell)
        assert abs(expected) > 1e-4
        found = float(trainer.callback_metrics[f"probes/encoder.rnn.{site}/hidden/target/removal"])
        assert found == pytest.approx(expected, abs=2e-5)  # losses near 1 in single precision
    removed = {tag for tag in trainer.callback_metrics if tag.endswith("/removal")}
    assert len(removed) == len(sites)  # not of lower layers, nor of cell states


def test_in_a_loop_the_recurrence_goes_on_from_the_changed_state(fit):
    trainer = fit(tracker(), model=StepClassifier, train=loader(), validate=many())
    model = copy.deepcopy(trainer.lightning_module).eval()

    @torch.no_grad()
    def last(x, change=lambda h: h):
        state = None
        for step in x.unbind(1):
            h, c = model.encoder.rnn(step, state)
            state = change(h), c
        return state[0]

    batches = list(many())
    states = torch.cat([last(x) for x, _ in batches])
    erasure = fit_erasure(states.numpy(), torch.cat([y for _, y in batches]).numpy())

    def loss(x, y, **options):
        return F.cross_entropy(model.head(model.norm(last(x, **options))), y).item()

    def erase(h):
        return torch.from_numpy(erasure.erase(h.numpy())).float()

    expected = np.mean([loss(x, y, change=erase) - loss(x, y) for x, y in batches])
    found = float(trainer.callback_metrics["probes/encoder.rnn.cell/hidden/target/removal"])
    assert found == pytest.approx(expected, abs=2e-5)
    assert abs(expected) > 1e-4


class Pools(Classifier):
    """Its readout looks at every step."""

    def forward(self, x):
        return self.head(self.norm(self.encoder.rnn(x)[0].mean(1)))


def test_a_concept_of_steps_is_taken_out_of_every_step(fit):
    trainer = fit(tracker({"sign": first_sign}, steps=STEPS), model=Pools, train=loader(), validate=many())
    model = copy.deepcopy(trainer.lightning_module).eval()
    batches = list(many())
    with torch.no_grad():
        states = [model.encoder.rnn(x)[0] for x, _ in batches]
        labels = torch.cat([first_sign(batch) for batch in batches])
        erasure = fit_erasure(torch.cat(states).flatten(0, 1).numpy(), labels.flatten().numpy())

        def loss(state, y):
            return F.cross_entropy(model.head(model.norm(state.mean(1))), y).item()

        erased = [torch.from_numpy(erasure.erase(state.numpy())).float() for state in states]
        expected = np.mean([loss(e, y) - loss(s, y) for e, s, (_, y) in zip(erased, states, batches, strict=True)])
    found = float(trainer.callback_metrics["probes/encoder.rnn.l0/hidden/sign/removal"])
    assert found == pytest.approx(expected, abs=2e-5)
    assert abs(expected) > 1e-4


def test_a_concept_of_sequences_is_taken_out_of_the_last_state_only(fit):
    trainer = fit(tracker(), model=Pools, train=loader(), validate=many())
    model = copy.deepcopy(trainer.lightning_module).eval()
    batches, changes = list(many()), []
    with torch.no_grad():
        states = [model.encoder.rnn(x)[0] for x, _ in batches]
        target = torch.cat([y for _, y in batches]).numpy()
        erasure = fit_erasure(torch.cat(states)[:, -1].numpy(), target)
        for state, (_, y) in zip(states, batches, strict=True):
            erased = state.clone()
            erased[:, -1] = torch.from_numpy(erasure.erase(state[:, -1].numpy())).float()
            losses = [F.cross_entropy(model.head(model.norm(s.mean(1))), y).item() for s in (erased, state)]
            changes.append(losses[0] - losses[1])
    found = float(trainer.callback_metrics["probes/encoder.rnn.l0/hidden/target/removal"])
    assert found == pytest.approx(np.mean(changes), abs=2e-5)
    assert abs(np.mean(changes)) > 1e-4


def test_the_loss_is_computed_on_the_first_sequences_only(fit, monkeypatch):
    monkeypatch.setattr(probes_file, "CAUSAL_SEQUENCES", 20)
    batches = []

    class Counts(Classifier):
        def validation_step(self, batch, batch_idx):
            batches.append(batch_idx)
            return super().validation_step(batch, batch_idx)

    fit(tracker(), model=Counts, validate=many(), max_epochs=1, num_sanity_val_steps=0)
    # The validation itself, and then the loss as it is, without the concept, and four times without random directions.
    assert batches == [0, 1, 2, 3, 4, 5] + [0, 1] * 6


# ---- nobody's business -----------------------------------------------------------------------------------------------


def test_the_live_model_is_left_alone(fit):
    class Counts(Classifier):
        def __init__(self):
            super().__init__("lstm", layers=2)
            self.seen = 0

        def validation_step(self, batch, batch_idx):
            self.seen += 1
            self.log("seen", float(self.seen), reduce_fx="max")
            return super().validation_step(batch, batch_idx)

    models = []
    for callbacks in ([tracker()], []):
        torch.manual_seed(0)
        trainer = fit(*callbacks, model=Counts(), num_sanity_val_steps=0)
        models.append(trainer.lightning_module)
        assert trainer.callback_metrics["seen"] == 6
        assert not any(module._forward_hooks for module in models[-1].modules())
    watched, alone = (model.state_dict() for model in models)
    assert all(torch.equal(watched[name], value) for name, value in alone.items())


def test_without_any_loss_it_is_said_and_costs_only_itself(fit):
    class Silent(Classifier):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    with pytest.warns(
        RecurrentHealthWarning, match="causal needs a validation_step that returns its loss, or logs one"
    ):
        trainer = fit(tracker(on_error="warn"), model=Silent)
    assert trainer.callback_metrics["probes/failed_looks"] == 2
    assert "probes/encoder.rnn.l0/hidden/target/v_information" in trainer.callback_metrics
    assert not any("removal" in tag for tag in trainer.callback_metrics)


def test_a_concept_of_one_class_is_not_taken_out(fit):
    with pytest.warns(RecurrentHealthWarning, match="same cannot be probed in encoder.rnn"):
        trainer = fit(tracker({"same": lambda batch: torch.zeros(len(batch[0]), dtype=torch.long)}), max_epochs=1)
    assert not any("removal" in tag for tag in trainer.callback_metrics)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_are_erased(fit, precision):
    class Casting(Classifier):
        def forward(self, x):
            return super().forward(x.to(self.head.weight.dtype))

    trainer = fit(tracker(), model=Casting, validate=many(), precision=precision)
    assert np.isfinite(float(trainer.callback_metrics["probes/encoder.rnn.l0/hidden/target/removal"]))
