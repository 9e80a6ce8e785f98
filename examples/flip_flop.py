"""A memory of three bits: watch eight attractors come into being while a network learns to store them.

Three inputs are mostly silent; now and then one of them says +1 or -1, and the network must show the last sign of each
(Sussillo and Barak 2013, section 4). What it should find is known: 8 attractors, one for each content of the memory,
and between them 12 + 6 + 1 saddles with one, two and three unstable directions. Run ``python -m examples.flip_flop``
from the root of the repository; ``--cell lstm`` or ``rnn`` to compare. With Lightning's command line:
``python -m examples.flip_flop fit --config configs/flip_flop.yaml``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import FixedPointTracker
from rnn_callbacks.report import Report, load

from ._quiet import quiet

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


def main(arguments: list[str] | None = None) -> pl.Trainer:
    """Train, follow the fixed points, and compare them with what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), default="gru")
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--logs", default=".", help="folder for lightning_logs")
    options = parser.parse_args(arguments)
    quiet(summary=False)
    pl.seed_everything(0, verbose=False)
    print(f"A {options.cell.upper()} learns to store three bits, in {options.epochs} epochs ...")
    tracker = FixedPointTracker(labels=content, basins=True, every_n_epochs=1, figure_every_n_epochs=1)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(options.logs, name="lightning_logs"),
        callbacks=[tracker],
        gradient_clip_val=1.0,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    begin = time.perf_counter()
    trainer.fit(Memory(options.cell, options.units), Pulses())
    folder = Path(str(trainer.log_dir))
    print(f"\nTrained and followed in {time.perf_counter() - begin:.0f} s. The life of its fixed points:\n")
    looks = [load(str(path)) for path in sorted((folder / "rnn_callbacks" / "fixed_points").glob("*.npz"))]
    for look in looks:
        if (events := look.report.texts.get("fixed_points/store/zero/events")) is not None:
            print(f"  epoch {look.epoch:>2}: " + events.replace("- ", "").replace("\n", "; "))
    verdict(looks[-1].report)
    print(f"\nLogs, pictures and numbers lie in {folder}\nTo see them:  tensorboard --logdir {folder.parent}")
    print("  (Custom Scalars: the curated page; Images: the landscape at every epoch)")
    return trainer


def verdict(report: Report) -> None:
    """Say what was found beside what is known."""
    unstable = report.arrays["fixed_points/store/zero/unstable"].tolist()
    counts = [unstable.count(directions) for directions in range(4)]
    print("\n  unstable directions      0   1   2   3")
    print("  known                    8  12   6   1")
    print("  found               " + "".join(f"{count:>4}" for count in counts))
    scalars = report.scalars
    entropy = scalars["fixed_points/store/zero/basin_entropy"]
    print(f"\n  evenness of the attractors' use   {entropy:.2f} bits (eight alike: 3)")
    print(f"  small kicks survived              {scalars['fixed_points/store/zero/returned']:.0%}")
    print(
        "  => as known" if counts == [8, 12, 6, 1] else "  => not yet what is known: train longer, or with more units"
    )


def command_line(arguments: list[str]) -> None:
    """The same by YAML: ``fit --config configs/flip_flop.yaml`` (needs the extra ``cli``)."""
    from lightning.pytorch.cli import LightningCLI

    quiet(summary=True)
    LightningCLI(Memory, Pulses, args=arguments)


if __name__ == "__main__":
    if "fit" in sys.argv[1:2]:
        command_line(sys.argv[1:])
    else:
        main()
