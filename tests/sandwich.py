"""A model with a recurrent module between two others, for the tests of listening."""

import torch
from torch import nn

SEQUENCES, STEPS, INPUTS, UNITS = 5, 7, 3, 11


def make_inputs(sequences=SEQUENCES, seed=1, steps=STEPS):
    return torch.randn(sequences, steps, INPUTS, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """A recurrent module between two others."""

    def __init__(self, family=nn.GRU, *, layers=1, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(INPUTS, INPUTS)
        self.rnn = family(INPUTS, UNITS, layers, batch_first=True, **options)
        self.head = nn.Linear(UNITS * (1 + self.rnn.bidirectional), 2)

    def forward(self, x):
        return self.head(self.rnn(self.first(x))[0])
