"""The 3-bit flip-flop (Sussillo & Barak 2013): networks whose fixed points are known to be 8 + 12 + 6 + 1."""

import torch
from torch import nn
from torch.nn import functional as F

from examples.flip_flop import BITS, flip_flop

BATCH = 64
STEPS = 24
UPDATES = 25  # per epoch
LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class FlipFlop(nn.Module):
    """One recurrent layer and a linear readout: (B, T, 3) -> (B, T, 3)."""

    def __init__(self, family, units):
        super().__init__()
        self.rnn = LAYERS[family](BITS, units, batch_first=True)
        self.readout = nn.Linear(units, BITS)

    def forward(self, x, state=None):
        return self.readout(self.rnn(x, state)[0])


def train(family, units, seed, *, epochs=24, after_epoch=None):
    """A trained network; after_epoch(epoch, model) is called with epochs counted from 0, global seeds stay as they are.

    Short sequences with many pulses teach the task in 600 updates of 1 to 3 ms. Sequences start anywhere in the box
    (in an LSTM c does too), not at 0: from 0 a GRU may keep its bits in slow drifts, with 4 attractors at 64 units.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FlipFlop(family, units)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * UPDATES)
    for epoch in range(epochs):
        for _ in range(UPDATES):
            x, y = flip_flop(BATCH, STEPS, generator)
            h = 2 * torch.rand(1, BATCH, units, generator=generator) - 1
            optimizer.zero_grad()
            F.mse_loss(model(x, (h, h) if family == "lstm" else h), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if after_epoch is not None:
            after_epoch(epoch, model)
    return model
