"""A memory of three bits: watch eight attractors come into being while a network learns to store them.

Three inputs are mostly silent; now and then one of them says +1 or -1, and the network must show the last sign of each
(Sussillo and Barak 2013, section 4). What it should find is known: 8 attractors, one for each content of the memory,
and between them 12 + 6 + 1 saddles with one, two and three unstable directions. Run ``python -m examples.flip_flop``
from the root of the repository; ``--cell lstm`` or ``rnn`` to compare. With Lightning's command line:
``python -m examples.flip_flop fit --config configs/flip_flop.yaml``.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import FixedPointTracker
from rnn_callbacks.report import SavedReport

from ._claims import Claim, end
from ._run import looks, parser, start, trainer

BITS = 3
CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
Batch = tuple[Tensor, Tensor]


def flip_flop(sequences: int, steps: int, generator: torch.Generator, *, pulse: float = 0.2) -> Batch:
    """Pulses ``(B, T, 3)``, each with that chance, and the last sign of every bit ``(B, T, 3)``; first all are set."""
    shape = (sequences, steps, BITS)
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
    pulsed = torch.rand(shape, generator=generator) < pulse
    pulsed[:, 0] = True
    latest = torch.where(pulsed, torch.arange(steps).view(1, -1, 1), 0).cummax(dim=1).values
    return signs * pulsed, signs.gather(1, latest)


class Memory(pl.LightningModule):
    """A recurrent layer that stores, and a readout that shows."""

    def __init__(self, cell: Literal["gru", "lstm", "rnn"] = "gru", units: int = 16, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.store = CELLS[cell](BITS, units, batch_first=True)
        self.readout = nn.Linear(units, BITS)
        self.lr = lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        pulses, bits = batch
        # From anywhere: a network that always starts at zero may store with slow drift instead of attractors.
        hidden = 2 * torch.rand(1, len(pulses), self.store.hidden_size, device=self.device) - 1
        states, _ = self.store(pulses, (hidden, hidden) if isinstance(self.store, nn.LSTM) else hidden)
        return F.mse_loss(self.readout(states), bits)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pulses, bits = batch
        shown = self(pulses)
        self.log("val_loss", F.mse_loss(shown, bits))
        self.log("val_accuracy", (shown.sign() == bits).float().mean(), prog_bar=True)

    def forward(self, pulses: Tensor) -> Tensor:
        """What the memory shows, ``(B, T, 3)``."""
        shown: Tensor = self.readout(self.store(pulses)[0])
        return shown

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        epochs = self.trainer.max_epochs or 1
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)}


class Pulses(pl.LightningDataModule):
    """Sequences of 24 steps to learn from, and others to look at."""

    def __init__(self, sequences: int = 1600, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.sequences, self.batch_size, self.seed = sequences, batch_size, seed

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.train, self.held = (TensorDataset(*flip_flop(count, 24, generator)) for count in (self.sequences, 64))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.held, 64)


def content(batch: Batch) -> Tensor:
    """What the memory holds at the end, 0 to 7: the colour of a trajectory."""
    return (batch[1][:, -1] > 0).long() @ torch.tensor([1, 2, 4])


def first_pulses(batch: Batch) -> Tensor:
    """A context: the pulses with which the first sequence begins."""
    return batch[0][:1, :1]


def main(arguments: list[str] | None = None) -> int:
    """Train, follow the fixed points, and compare them with what is known."""
    settings = parser(__doc__, epochs=24)
    settings.add_argument("--cell", choices=list(CELLS), default="gru")
    settings.add_argument("--units", type=int, default=16)
    options = settings.parse_args(arguments)
    print(f"{options.cell.upper()}: learns to store three bits, in {options.epochs} epochs ...")
    tracker = FixedPointTracker(
        labels=content, basins=True, every_n_epochs=1, figure_every_n_epochs=1, max_overhead=1.0, summary=False
    )
    run = trainer(options, "flip_flop", [tracker], gradient_clip_val=1.0)
    run.fit(Memory(options.cell, options.units), Pulses(seed=options.seed))
    followed = looks(run, "fixed_points")
    print("\nThe life of its fixed points:\n")
    for look in followed:
        if (events := look.report.texts.get("fixed_points/store/zero/events")) is not None:
            print(f"  epoch {look.epoch:>2}: " + events.replace("- ", "").replace("\n", "; "))
    print(f"\nIts landscape at every epoch: {run.log_dir}/rnn_callbacks/fixed_points/figures")
    return end(claims(followed), str(run.log_dir))


def claims(followed: list[SavedReport]) -> list[Claim]:
    """The points, their arrangement and their coming about, from the files of all looks."""
    counts = [Counter(look.report.arrays["fixed_points/store/zero/unstable"].tolist()) for look in followed]
    numbers = [len(look.report.arrays["fixed_points/store/zero/unstable"]) for look in followed]
    found = [counts[-1][directions] for directions in range(4)]
    points, scalars = followed[-1].report.arrays, followed[-1].report.scalars
    edges = edges_between(points["fixed_points/store/zero/states"], points["fixed_points/store/zero/unstable"])
    others = [look.epoch for look, number in zip(followed, numbers, strict=True) if number != 27]
    since = min((look.epoch for look in followed if look.epoch > max(others, default=-1)), default=None)
    entropy = scalars["fixed_points/store/zero/basin_entropy"]
    return [
        Claim(
            "8 attractors, and 12, 6 and 1 saddles with one, two and three unstable directions: 27 points",
            f"{found[0]}, {found[1]}, {found[2]} and {found[3]}, {numbers[-1]} in all",
            found == [8, 12, 6, 1] and numbers[-1] == 27,
        ),
        Claim(
            "a cube: the 8 attractors are its corners, 12 saddles lie on its edges, one near the middle of each",
            f"{len(edges)} edges, that {'make' if is_cube(edges) else 'do not make'} a cube",
            is_cube(edges),
        ),
        Claim(
            "they appear during training",
            f"{numbers[0]} at the first look"
            + (", never 27 to the end" if since is None else f", 27 since epoch {since}"),
            numbers[0] < 27 and since is not None,
        ),
        Claim(
            "all eight are used alike (3 bits), and small kicks do not change what is stored",
            f"{entropy:.2f} bits; after {scalars['fixed_points/store/zero/returned']:.0%} of small kicks it comes back",
            entropy > 2.8 and scalars["fixed_points/store/zero/returned"] > 0.9,
        ),
    ]


def edges_between(states: NDArray[np.float64], unstable: NDArray[np.int64]) -> set[tuple[int, int]]:
    """The pairs of attractors near whose midpoint, within a third of their distance, one of the 12 saddles lies."""
    attractors, saddles = states[unstable == 0], states[unstable == 1]
    pairs = list(combinations(range(len(attractors)), 2))
    ends = np.array([(attractors[one], attractors[other]) for one, other in pairs]).reshape(-1, 2, states.shape[1])
    middles, lengths = ends.mean(1), np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    near = (np.linalg.norm(middles - saddle, axis=1) / lengths for saddle in saddles)
    return {pairs[away.argmin()] for away in near if away.min(initial=np.inf) < 1 / 3}


def is_cube(edges: set[tuple[int, int]]) -> bool:
    """From each of 8 corners 3 others are one edge away, 3 are two and 1 is three."""
    away = np.full((8, 8), np.inf)
    np.fill_diagonal(away, 0)
    for one, other in edges:
        if max(one, other) < 8:
            away[one, other] = away[other, one] = 1
    for through in range(8):  # Floyd and Warshall: the shortest way
        away = np.minimum(away, away[:, [through]] + away[[through]])
    return all(sorted(row) == [0, 1, 1, 1, 2, 2, 2, 3] for row in away.tolist())


if __name__ == "__main__":
    start(main, Memory, Pulses)
