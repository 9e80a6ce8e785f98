"""Where labels are found in a batch, in a real run of `ProbeTracker`, and what is said where there are none."""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rnn_callbacks import ProbeTracker
from rnn_callbacks.callbacks.concepts import ConceptLabels, read_source, read_sources
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load

from ..models import FEATURES, STEPS, Classifier, first_sign, loader, make_data, running_sum


def tracker(concepts=None, **options):
    light = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "steps": 3, "shuffles": 1, "on_error": "raise"}
    return ProbeTracker(concepts=concepts, **light | options)


def scalars(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return load(str(max((run / "rnn_callbacks" / "probes").glob("*.npz")))).report.scalars


def scores(fit, concept):
    """What was read of a concept: its headline's tags of one kind or the other."""
    tag = f"probes/encoder.rnn.l0/hidden/{concept}"
    return {
        kind: scalars(fit)[f"{tag}/{kind}"] for kind in ("balanced_accuracy", "r2") if f"{tag}/{kind}" in scalars(fit)
    }


def said_in(run):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in heard if issubclass(warning.category, RecurrentHealthWarning)]


# ---- the target of a pair --------------------------------------------------------------------------------------------


class Free(Classifier):
    """Its loss does not ask what the labels are."""

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch[0]).square().mean())


def batches(labels, sequences=96):
    """Pairs with labels that are a function of the inputs ``(N, T, I)``."""
    x = make_data(sequences, 1).tensors[0]
    return DataLoader(torch.utils.data.TensorDataset(x, labels(x)), 16)


TARGETS = {
    "classes of sequences": (lambda x: (x[:, -1, 0] > 0).long(), {"target": "balanced_accuracy"}),
    "booleans of sequences": (lambda x: x[:, -1, 0] > 0, {"target": "balanced_accuracy"}),
    "a quantity of sequences": (lambda x: x[:, -1, 0], {"target": "r2"}),
    "classes of steps": (lambda x: (x[..., 0] > 0).long(), {"target": "balanced_accuracy"}),
    "quantities of steps": (lambda x: x[..., :2], {"target_0": "r2", "target_1": "r2"}),
}


@pytest.mark.parametrize(("labels", "expected"), TARGETS.values(), ids=TARGETS.keys())
def test_the_target_is_probed_where_nothing_else_is_asked_for(fit, labels, expected):
    fit(tracker(), model=Free, train=loader(), validate=batches(labels), max_epochs=1)
    for concept, kind in expected.items():
        # An untrained state hands on its last input: far from chance, 0.5 of accuracy and 0 of R^2.
        assert scores(fit, concept).keys() == {kind}
        assert scores(fit, concept)[kind] > (0.65 if kind == "balanced_accuracy" else 0.3)
    assert {tag.split("/")[2] for tag in scalars(fit) if tag.startswith("probes/concepts/")} == set(expected)


def three(batch):
    return (*batch, torch.zeros(len(batch[0])))


class Wrapped(Classifier):
    """Its loaders' pairs come in some other shape."""

    wrap = staticmethod(three)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return self.wrap(batch)

    def parts(self, batch):
        return batch[0], batch[1]

    def training_step(self, batch, batch_idx):
        return super().training_step(self.parts(batch), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step(self.parts(batch), batch_idx)


def test_batches_that_are_no_pairs_are_said_and_training_goes_on(fit):
    trainers = []
    said = said_in(lambda: trainers.append(fit(tracker(on_error="warn"), model=Wrapped)))
    assert len(said) == 1
    assert "labels of target could not be read from a batch" in said[0]
    assert "there are no concepts to probe: batches are no (input, target) pairs; write concepts={" in said[0]
    assert trainers[0].current_epoch == 2
    assert trainers[0].callback_metrics["probes/failed_looks"] == 2
    with pytest.raises(ValueError, match="labels of target could not be read from a batch"):
        fit(tracker(), model=Wrapped)


# ---- where labels are ------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    x: torch.Tensor
    label: torch.Tensor


class Keyed(Wrapped):
    wrap = staticmethod(lambda batch: {"x": batch[0], "label": batch[1]})

    def parts(self, batch):
        return batch["x"], batch["label"]


class Named(Wrapped):
    wrap = staticmethod(lambda batch: Pair(*batch))


SOURCES = {
    "function": (Classifier, lambda batch: batch[1]),
    "index": (Classifier, 1),
    "index from the end": (Classifier, -1),
    "list": (Classifier, lambda batch: batch[1].tolist()),
    "array": (Classifier, lambda batch: batch[1].numpy()),
    "key": (Keyed, "label"),
    "attribute": (Named, "label"),
    "import path": (Classifier, "tests.callbacks.test_concepts.second"),
}


def second(batch):
    return batch[1]


@pytest.mark.parametrize(("model", "source"), SOURCES.values(), ids=SOURCES.keys())
def test_labels_are_the_same_wherever_they_are_found(fit, model, source):
    fit(tracker(), validate=loader(96, 16, seed=1), max_epochs=1)
    expected = scores(fit, "target")
    fit(tracker({"mine": source}), model=model, validate=loader(96, 16, seed=1), max_epochs=1)
    assert scores(fit, "mine") == expected


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        (Keyed, "colour", "the batch has no 'colour'; it is or has: keys x, label"),
        (Classifier, 2, "the batch has no 2; it is or has: list"),
        (Classifier, "colour", "the batch has no 'colour'; it is or has: list"),
        (Classifier, lambda batch: 3.0, "a concept must give one label for each sequence or step of the batch, got a"),
        (Classifier, lambda batch: None, "labels of mine could not be read"),
        (Classifier, lambda batch: ["a"] * len(batch[0]), "labels of mine could not be read"),
    ],
)
def test_labels_that_are_not_there_are_said_once_and_training_goes_on(fit, model, source, message):
    said = said_in(lambda: fit(tracker({"mine": source, "sum": running_of}, on_error="warn"), model=model))
    assert len(said) == 1
    assert message in said[0]
    assert scores(fit, "mine") == {}
    assert scores(fit, "sum")


def running_of(batch):
    return running_sum((batch["x"],) if isinstance(batch, dict) else batch)


def test_a_concept_that_raises_in_one_batch_costs_only_itself(fit):
    def fragile(batch):
        if torch.equal(batch[0], third):
            raise KeyError("no such square")
        return batch[1]

    third = list(loader(96, 16, seed=1))[2][0]
    said = said_in(
        lambda: fit(
            tracker({"fragile": fragile, "target": 1}, on_error="warn"), validate=loader(96, 16, seed=1), max_epochs=3
        )
    )
    assert len(said) == 1
    assert "labels of fragile could not be read from a batch" in said[0]
    assert "KeyError: 'no such square'" in said[0]
    assert scores(fit, "fragile") == {}
    assert scalars(fit)["probes/failed_looks"] == 3
    found = scores(fit, "target")
    fit(tracker({"target": 1}), validate=loader(96, 16, seed=1), max_epochs=3)
    assert scores(fit, "target") == found


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda batch: batch[1][:-1], "mine: a batch of which the layer read 8 sequences has labels of shape (7,)"),
        (lambda batch: first_sign(batch)[:, 1:], "mine: labels are for 6 steps, but the layer reads 7; give (B, T)"),
        (lambda batch: batch[0][..., None], "mine: labels must be (B,), (B, T) or (B, T, F), got (8, 7, 3, 1)"),
        (lambda batch: batch[0].repeat(1, 1, 6), "(B, T, F) must be the same F in all batches, up to 16, got {18}"),
        (lambda batch: (batch[0].sum((1, 2)) * 1e6).long(), "different whole numbers are too many classes (up to 64)"),
    ],
    ids=["too few", "other steps", "four dimensions", "too wide", "too many classes"],
)
def test_labels_of_a_wrong_shape_are_said_with_their_name(fit, labels, message):
    many = {"validate": loader(96, 8, seed=1)}
    said = said_in(lambda: fit(tracker({"mine": labels, "target": 1}), **many))
    assert len(said) == 1
    assert said[0].startswith("ProbeTracker: in encoder.rnn, mine: ")
    assert message in said[0]
    assert scores(fit, "mine") == {}
    assert scores(fit, "target")


def test_sequences_without_a_label_do_not_count(fit):
    def some(batch):
        return torch.where(torch.arange(len(batch[0])) % 2 == 0, batch[1], -1)

    fit(tracker({"some": some}), validate=loader(96, 16, seed=1), max_epochs=1)
    run = sorted(fit.logs.glob("version_*"))[-1]
    report = load(str(max((run / "rnn_callbacks" / "probes").glob("*.npz")))).report
    where = "probes/encoder.rnn.l0/hidden/some/headline"
    assert report.arrays[f"{where}/fitted"] + report.arrays[f"{where}/tested"] == 48


def test_labels_stay_as_they_were_when_the_batch_came(fit):
    class Writes(Classifier):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            batch[1].zero_()

    def fresh():
        return DataLoader([(x, y.clone()) for x, y in make_data(96, 1)], 16)

    fit(tracker(), validate=fresh(), max_epochs=1)
    expected = scores(fit, "target")
    fit(tracker(), model=Writes, validate=fresh(), max_epochs=1)
    assert scores(fit, "target") == expected


# ---- the collection --------------------------------------------------------------------------------------------------


def test_a_second_pass_over_the_batches_begins_anew():
    labels = ConceptLabels({"a": read_source("a", 0)})
    for number in (0, 1, 2):
        labels.hear(number, [torch.full((2,), number)])
    labels.begin()
    labels.hear(0, [torch.tensor([7, 8])])
    assert list(labels.labels["a"]) == [0]
    assert labels.labels["a"][0].tolist() == [7, 8]


def test_a_fault_is_forgotten_in_the_next_pass():
    labels = ConceptLabels({"a": read_source("a", "key")})
    labels.hear(0, {})
    assert "the batch has no 'key'" in str(labels.faults["a"])
    labels.hear(1, {"key": torch.zeros(2)})  # half of the labels are none
    assert labels.labels["a"] == {}
    labels.begin()
    labels.hear(0, {"key": torch.zeros(2)})
    assert labels.faults == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32, torch.bool])
def test_labels_of_any_type_become_arrays(dtype):
    labels = ConceptLabels({"a": read_source("a", 0)})
    labels.hear(0, [torch.tensor([0, 1, 1]).to(dtype).requires_grad_(dtype.is_floating_point)])
    assert labels.labels["a"][0].astype(float).tolist() == [0, 1, 1]
    assert labels.labels["a"][0].dtype.kind == ("f" if dtype.is_floating_point else np.dtype(str(dtype)[6:]).kind)


def test_what_is_no_source_is_refused():
    with pytest.raises(ValueError, match=r"concepts: a must be a function .* a key or an index, got True"):
        read_sources({"a": True})
    with pytest.raises(ValueError, match=r"concepts must be a dict: name -> function of the batch.* got 'target'"):
        read_sources("target")
    with pytest.raises(ValueError, match="concepts: 3 is no name"):
        read_sources({3: "a"})
    assert FEATURES != STEPS
