"""Which network can learn from 60 steps back? The adding problem, and the gradient that decides it.

Each of 60 steps brings a random number; two of them are marked, one in each half, and the network must give their sum
at the end (Hochreiter and Schmidhuber 1997, task 4). Whoever has no memory can only guess the mean and is left with an
error of 1/6. Credit for the first mark has to travel back 30 to 60 steps: `GradientFlowMonitor` says how far it gets.

Run ``python -m examples.memory`` from the root of the repository, ``--cells gru rnn`` for some of them only. With
Lightning's command line: ``python -m examples.memory fit --config configs/memory.yaml``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import GradientFlowMonitor
from rnn_callbacks.report import SavedReport, load

from ._quiet import quiet

STEPS = 60
NO_MEMORY = 1 / 6  # error of always guessing the mean: twice the variance of a uniform number
Batch = tuple[Tensor, Tensor]
CellName = Literal["rnn", "lstm", "chrono", "gru"]


def adding(sequences: int, generator: torch.Generator) -> Batch:
    """Numbers and marks ``(B, T, 2)``, and the sum of the two marked numbers ``(B,)``."""
    numbers = torch.rand(sequences, STEPS, generator=generator)
    marks = torch.zeros(sequences, STEPS)
    for begin in (0, STEPS // 2):
        marked = torch.randint(begin, begin + STEPS // 2, (sequences, 1), generator=generator)
        marks.scatter_(1, marked, 1.0)
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1)


class Adder(pl.LightningModule):
    """A recurrent layer whose last state says the sum; `chrono` is an LSTM that starts with a long memory."""

    def __init__(self, cell: CellName = "gru", units: int = 32, lr: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        family = {"rnn": nn.RNN, "gru": nn.GRU}.get(cell, nn.LSTM)
        self.reader = family(2, units, batch_first=True)
        self.readout = nn.Linear(units, 1)
        self.lr = lr
        if cell == "chrono":  # Tallec and Ollivier 2018: timescales between 1 and T steps
            with torch.no_grad():
                forget = torch.log(torch.empty(units).uniform_(1, STEPS - 1))
                for bias, value in ((self.reader.bias_hh_l0, forget), (self.reader.bias_ih_l0, 0 * forget)):
                    bias[: 2 * units] = torch.cat([-value, value])

    def forward(self, sequences: Tensor) -> Tensor:
        """Sums ``(B,)``."""
        return self.readout(self.reader(sequences)[0][:, -1])[:, 0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Sums(pl.LightningDataModule):
    """Sequences to learn from, and others to be tested with."""

    def __init__(self, sequences: int = 4096, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.sequences, self.batch_size, self.seed = sequences, batch_size, seed

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.train, self.held = (TensorDataset(*adding(count, generator)) for count in (self.sequences, 512))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.held, 512)


def main(arguments: list[str] | None = None) -> None:
    """Train one after the other, and say who learned to add and how far back its gradient reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=get_args(CellName), default=list(get_args(CellName)))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--sequences", type=int, default=4096)
    parser.add_argument("--logs", default=".", help="folder for lightning_logs")
    options = parser.parse_args(arguments)
    quiet(summary=False)
    rows = []
    for cell in options.cells:
        print(f"{cell} learns to add two of {STEPS} numbers, in {options.epochs} epochs ...")
        pl.seed_everything(0, verbose=False)
        trainer = pl.Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            logger=TensorBoardLogger(options.logs, name="lightning_logs", version=f"adding_{cell}"),
            callbacks=[GradientFlowMonitor(every_n_epochs=1, figure_every_n_epochs=5)],
            gradient_clip_val=1.0,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=10,
        )
        begin = time.perf_counter()
        trainer.fit(Adder(cell), Sums(options.sequences))
        files = sorted(Path(str(trainer.log_dir), "rnn_callbacks", "gradient_flow").glob("*.npz"))
        error = float(trainer.callback_metrics["val_loss"])
        rows.append(row(cell, error, [load(str(path)) for path in files], time.perf_counter() - begin))
    print("\n                  horizon: steps back in which credit falls by a factor e")
    print("network  error    first  longest     last     took")
    print("\n".join(rows))
    print(
        f"\n(An error of {NO_MEMORY:.3f} is that of a network without memory; the first mark lies 31 to 60 steps back.)"
    )
    print(f"To see why:  tensorboard --logdir {Path(options.logs, 'lightning_logs')}")
    print("  (Images: gradient_flow/reader; Custom Scalars: horizons side by side; Text: flags that were raised)")


def row(cell: str, error: float, looks: list[SavedReport], seconds: float) -> str:
    """One line of the table."""
    horizons = [look.report.scalars["gradient_flow/reader.l0/horizon"] for look in looks]
    flagged = [look.epoch for look in looks if look.report.scalars["gradient_flow/reader.l0/flags/vanishing"]]
    verdict = "adds" if error < NO_MEMORY / 2 else "does not add"
    ends = (horizons[0], max(horizons), horizons[-1])
    numbers = "".join(f"{horizon:>9.1f}" if horizon < 10 * (STEPS - 1) else "  endless" for horizon in ends)
    flag = f"flag `vanishing` in epochs {flagged[0]} to {flagged[-1]}" if flagged else ""
    return f"{cell:<8}{error:>7.4f}{numbers}{seconds:>7.0f} s   {verdict:<13} {flag}".rstrip()


def command_line(arguments: list[str]) -> None:
    """The same by YAML: ``fit --config configs/memory.yaml`` (needs the extra ``cli``)."""
    from lightning.pytorch.cli import LightningCLI

    quiet(summary=True)
    LightningCLI(Adder, Sums, args=arguments)


if __name__ == "__main__":
    if "fit" in sys.argv[1:2]:
        command_line(sys.argv[1:])
    else:
        main()
