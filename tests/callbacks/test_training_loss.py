"""`TrainingLoss`: the mean of what training steps return."""

import pytest
import torch

from rnn_callbacks.callbacks.training_loss import WAITING, TrainingLoss


def test_the_mean_is_that_of_the_batches_that_gave_a_loss():
    loss = TrainingLoss()
    assert loss.mean is None
    losses = [torch.tensor(1.5, requires_grad=True), {"loss": torch.tensor([[2.5]])}, {"loss": torch.tensor(5)}]
    for outputs in [*losses, None, {}, {"loss": None}, torch.ones(2), 7.0]:
        loss.add(outputs)
    assert loss.mean == 3.0
    loss.clear()
    assert loss.mean is None


def test_many_small_losses_are_added_up_in_double_precision_and_not_kept():
    loss, step = TrainingLoss(), torch.tensor(0.1)
    for _ in range(2 * WAITING + 7):
        loss.add(step)
        assert len(loss._waiting) < WAITING
    assert loss.mean == pytest.approx(float(step.double()), rel=1e-12)


def test_a_loss_that_changes_in_place_counts_as_it_was():
    # Compiled steps may return one buffer again and again.
    loss, buffer = TrainingLoss(), torch.zeros(())
    for value in (1.0, 2.0, 6.0):
        loss.add(buffer.fill_(value))
    assert loss.mean == 3.0


def test_the_mean_goes_on_where_it_was():
    first = TrainingLoss()
    for value in (1.0, 2.0):
        first.add(torch.tensor(value))
    assert first.settled() == (3.0, 2)
    second = TrainingLoss(*first.settled())
    second.add(torch.tensor(6.0))
    assert second.mean == 3.0
