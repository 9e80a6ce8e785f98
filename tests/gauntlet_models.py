"""Models and data as Lightning's users have them, for `tests/test_gauntlet.py`."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from .models import CLASSES, FEATURES, UNITS, Classifier, loader, make_data

SEQUENCES = 20  # batches of 8, 8 and 4


def training_data():
    return loader(SEQUENCES, shuffle=True)


def validation_data():
    return loader(SEQUENCES, seed=1)


def more_data():
    return loader(SEQUENCES, seed=2)


def one_batch():
    return loader(SEQUENCES, SEQUENCES, seed=1)


class Stream(IterableDataset):
    """Of unknown length."""

    def __init__(self, seed):
        self.data = make_data(SEQUENCES, seed)

    def __iter__(self):
        return iter(self.data)


def named(batch):
    """What a dataset of dicts would be collated to."""
    inputs, targets = torch.utils.data.default_collate(batch)
    return {"inputs": inputs, "target": targets}


class Sequences(pl.LightningDataModule):
    def train_dataloader(self):
        return training_data()

    def val_dataloader(self):
        return validation_data()


class Silent(Classifier):
    """Logs nothing and gives nothing back from validation."""

    def validation_step(self, batch, batch_idx):
        self(batch[0])


class Dicts(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["inputs"], batch["target"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step((batch["inputs"], batch["target"]), batch_idx)


class SeveralLoaders(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx):
        return super().validation_step(batch, batch_idx)


class TwoOptimizers(Classifier):
    """Steps by hand, one optimizer for the recurrent layer and one for the rest."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        rest = [*self.norm.parameters(), *self.head.parameters()]
        return torch.optim.SGD(self.encoder.parameters(), 0.1), torch.optim.Adam(rest, 0.01)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


class Quasinewton(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Tuned(Classifier):
    lr = 1e-3

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Overflowing(Classifier):
    """One step of each epoch has infinite gradients, which a scaler of half precision leaves out."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx == 1 else loss


class Recomputed(Classifier):
    """Forgets the states of the forward pass and makes them again for the backward one."""

    def forward(self, x):
        states, _ = checkpoint(self.encoder.rnn, x, use_reentrant=False)
        return self.head(self.norm(states[:, -1]))


class MadeLate(Classifier):
    """Its layers are there when Lightning asks for them."""

    def __init__(self):
        super().__init__()
        del self.encoder.rnn

    def configure_model(self):
        if not hasattr(self.encoder, "rnn"):
            self.encoder.rnn = nn.GRU(FEATURES, UNITS, batch_first=True)


class FrozenBelow(Classifier):
    """Reads what a frozen encoder in evaluation mode makes of the inputs."""

    def __init__(self):
        super().__init__()
        self.below = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(7), nn.Dropout(0.5))
        self.below.requires_grad_(False).eval()

    def forward(self, x):
        return super().forward(self.below(x))


class FrozenRecurrence(Classifier):
    """Only the head learns."""

    def __init__(self):
        super().__init__()
        self.encoder.requires_grad_(False).eval()


class Brings(Classifier):
    """Brings its own callbacks."""

    callbacks = ()

    def configure_callbacks(self):
        return list(self.callbacks)


class Breaks(Classifier):
    """Fails once, in the second epoch; another instance goes on."""

    where = None

    def fails(self, where, batch_idx):
        if self.where == where and self.trainer.current_epoch == 1 and batch_idx == 2:
            raise ArithmeticError("the user's")

    def training_step(self, batch, batch_idx):
        self.fails("training_step", batch_idx)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.fails("validation_step", batch_idx)
        return super().validation_step(batch, batch_idx)


def compiled(how):
    """A classifier of which something is compiled."""
    model = Classifier() if how != "whole" else Silent()
    if how == "submodule":
        model.encoder.rnn = torch.compile(model.encoder.rnn, backend="eager")
    elif how == "in place":
        model.encoder.rnn.compile(backend="eager")
    return model if how != "whole" else torch.compile(model, backend="eager")


def of_the_other_package():
    """The same for a `pytorch_lightning` Trainer, which takes no module of `lightning.pytorch`."""
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Module()
            self.encoder.rnn = nn.GRU(FEATURES, UNITS, batch_first=True)
            self.norm = nn.BatchNorm1d(UNITS)
            self.head = nn.Linear(UNITS, CLASSES)

        def forward(self, x):
            return self.head(self.norm(self.encoder.rnn(x)[0][:, -1]))

        training_step = Classifier.training_step
        validation_step = Classifier.validation_step
        configure_optimizers = Classifier.configure_optimizers

    return Other()


def streams(seed):
    return lambda: DataLoader(Stream(seed), 8)


def dicts(seed):
    return lambda: DataLoader(make_data(SEQUENCES, seed), 8, shuffle=seed == 0, collate_fn=named)


def kept_workers(seed):
    return lambda: DataLoader(make_data(SEQUENCES, seed), 8, shuffle=seed == 0, num_workers=1, persistent_workers=True)


def split_in_batches_of_four(seed):
    return lambda: DataLoader(make_data(SEQUENCES, seed), 4, shuffle=seed == 0)
