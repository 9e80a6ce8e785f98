"""Small real models for tests of the glue."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

FEATURES, UNITS, STEPS, CLASSES = 3, 5, 7, 2
FAMILIES = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


def make_data(sequences=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sequences, STEPS, FEATURES, generator=generator)
    return TensorDataset(x, (x[:, 1, 0] > 0).long())


def loader(sequences=24, batch_size=8, *, shuffle=False, seed=0):
    return DataLoader(make_data(sequences, seed), batch_size, shuffle=shuffle)


def half_of_sequence(batch):
    """Phases for tests that name them by import path."""
    return (torch.arange(STEPS) >= 3).long().repeat(len(batch[0]), 1)


def first_inputs(batch):
    """A context for tests that name it by import path: what the model makes of the batch's first sequence."""
    return batch[0][:1]


def running_sum(batch):
    """A quantity for every step."""
    return batch[0].sum(2).cumsum(1)


def first_sign(batch):
    """A type for every step."""
    return (batch[0][..., 0] > 0).long()


class Classifier(pl.LightningModule):
    """Reads a sequence and says its class from the last state."""

    def __init__(self, family="gru", *, layers=1, dropout=0.0, packed=False, **options):
        super().__init__()
        self.packed = packed
        self.encoder = nn.Module()
        self.encoder.rnn = FAMILIES[family](FEATURES, UNITS, layers, batch_first=True, dropout=dropout, **options)
        ways = 2 if options.get("bidirectional") else 1
        self.drop = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(UNITS * ways)
        self.head = nn.Linear(UNITS * ways, CLASSES)

    def forward(self, x):
        if self.packed:
            lengths = torch.arange(len(x)) % STEPS + 1
            states, _ = self.encoder.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            states, _ = pad_packed_sequence(states, batch_first=True)
            last = states[torch.arange(len(x)), lengths - 1]
        else:
            last = self.encoder.rnn(x)[0][:, -1]
        return self.head(self.norm(self.drop(last)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("val_loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Attentive(Classifier):
    """Two layers, and attention over their states that hands out its weights."""

    def __init__(self):
        super().__init__(layers=2)
        self.attention = nn.MultiheadAttention(UNITS + 1, 2, batch_first=True)
        self.widen = nn.Linear(UNITS, UNITS + 1)
        self.narrow = nn.Linear(UNITS + 1, UNITS)

    def forward(self, x):
        states = self.widen(self.encoder.rnn(x)[0])
        seen, _ = self.attention(states, states, states, need_weights=True, average_attn_weights=False)
        return self.head(self.norm(self.narrow(seen[:, -1])))


class StepClassifier(Classifier):
    """The same with a loop over a cell, as users write it."""

    def __init__(self):
        super().__init__()
        self.encoder.rnn = nn.LSTMCell(FEATURES, UNITS)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.encoder.rnn(step, state)
        return self.head(self.norm(state[0]))
