"""Labels of sequences, batch by batch."""

from types import SimpleNamespace

import torch

from rnn_callbacks.callbacks.labels import SequenceLabels


def test_a_new_look_forgets_the_labels_of_the_last_one():
    labels = SequenceLabels(None)
    heard = SimpleNamespace(sequences=((0, 0), (1, 2)))
    labels.hear(0, (torch.zeros(3, 5, 2), torch.tensor([4, 5, 6])))
    assert labels.of(heard) is None  # of the second batch nothing is known yet
    labels.hear(1, (torch.zeros(3, 5, 2), torch.tensor([7, 8, 9])))
    assert labels.of(heard).tolist() == [4, 9]
    labels.begin()
    labels.hear(0, (torch.zeros(3, 5, 2), torch.tensor([4, 5, 6])))
    assert labels.of(heard) is None


def test_targets_that_are_no_classes_of_sequences_are_no_labels():
    for target in (torch.rand(3), torch.zeros(3, 5, dtype=torch.long), "text"):
        labels = SequenceLabels(None)
        labels.hear(0, (torch.zeros(3, 5, 2), target))
        assert labels.of(SimpleNamespace(sequences=((0, 0),))) is None
        assert labels.fault is None
