"""A plain torch network that reads digits, and its checkpoints: what the example `checkpoint` looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


class Reader(nn.Module):
    """A recurrent layer reads the rows of an image; its last hidden state says the digit."""

    def __init__(self, units: int = 64) -> None:
        super().__init__()
        self.reader = nn.GRU(8, units, batch_first=True)
        self.readout = nn.Linear(units, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits ``(B, 10)`` of rows ``(B, 8, 8)``."""
        logits: Tensor = self.readout(self.reader(rows)[0][:, -1])
        return logits


def digits(seed: int) -> tuple[Batch, Batch]:
    """Four fifths of the images to learn from, one fifth to look at."""
    images, labels = load_digits(return_X_y=True)
    rows, known = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 8, 8), torch.tensor(labels)
    seen, held = train_test_split(np.arange(len(rows)), test_size=0.2, random_state=seed, stratify=labels)
    return (rows[seen], known[seen]), (rows[held], known[held])


def train(batch: Batch, epochs: int, folder: Path, seed: int) -> None:
    """A loop as many have one, which saves what it leaves."""
    torch.manual_seed(seed)
    network, (rows, labels) = Reader(), batch
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(rows)).tensor_split(-(-len(rows) // 32)):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(rows[part]), labels[part]))
            optimizer.step()
    torch.save(network.state_dict(), folder / "trained.pt")


def restore(file: Path) -> Reader:
    """The network of a checkpoint."""
    state = torch.load(file, weights_only=True)
    network = Reader(state["readout.weight"].shape[1])
    network.load_state_dict(state)
    return network.eval()


def share_right(network: Reader, batch: Batch) -> float:
    """Share of images that the network answers rightly; a guess: 0.1."""
    return float((network(batch[0]).argmax(1) == batch[1]).float().mean())
