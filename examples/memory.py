"""Which network can learn from 60 steps back? Two problems of known distance, and the gradient that decides them.

`adding` (Hochreiter and Schmidhuber 1997, task 4): each of 60 steps brings a number; two are marked, one in each half,
and at the end the network says their sum. Without memory an error of 1/6 is left, and credit for the first mark has to
travel back 30 to 59 steps. `copy` (the same authors, in the form of Arjovsky et al. 2016): three symbols are shown, and
to be repeated 57 steps later. `GradientFlowMonitor` says how far credit gets, and why the plain RNN learns neither.

Run ``python -m examples.memory`` from the root of the repository; ``--tasks copy --cells gru rnn`` for some only. With
Lightning's command line: ``python -m examples.memory fit --config configs/memory.yaml``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import GradientFlowMonitor
from rnn_callbacks.report import SavedReport

from ._claims import Claim, end
from ._run import looks, metric, parser, start, trainer

STEPS = 60
SYMBOLS, KINDS = 3, 4  # shown one after the other at the beginning of `copy`; of so many kinds
Batch = tuple[Tensor, Tensor]
CellName = Literal["rnn", "lstm", "chrono", "gru"]
TaskName = Literal["adding", "copy"]
WITHOUT_MEMORY = {"adding": 1 / 6, "copy": math.log(KINDS)}  # variance of the sum; entropy of a symbol, in nats


def adding(sequences: int, generator: torch.Generator) -> Batch:
    """Numbers and marks ``(B, T, 2)``, and the sum of the two marked numbers ``(B,)``."""
    numbers = torch.rand(sequences, STEPS, generator=generator)
    marks = torch.zeros(sequences, STEPS)
    for begin in (0, STEPS // 2):
        marked = torch.randint(begin, begin + STEPS // 2, (sequences, 1), generator=generator)
        marks.scatter_(1, marked, 1.0)
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1)


def copying(sequences: int, generator: torch.Generator) -> Batch:
    """Symbols, silence and then the signal to repeat them, ``(B, T, 5)`` one-hot; the symbols ``(B, 3)``."""
    symbols = torch.randint(KINDS, (sequences, SYMBOLS), generator=generator)
    inputs = torch.zeros(sequences, STEPS, KINDS + 1)
    inputs[:, :SYMBOLS, :KINDS] = F.one_hot(symbols, KINDS).float()
    inputs[:, -SYMBOLS:, KINDS] = 1.0
    return inputs, symbols


class Rememberer(pl.LightningModule):
    """A recurrent layer whose last states say the answer; `chrono` is an LSTM that starts with a long memory."""

    def __init__(self, cell: CellName = "gru", task: TaskName = "adding", units: int = 32, lr: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        family = {"rnn": nn.RNN, "gru": nn.GRU}.get(cell, nn.LSTM)
        self.reader = family(2 if task == "adding" else KINDS + 1, units, batch_first=True)
        self.readout = nn.Linear(units, 1 if task == "adding" else KINDS)
        self.task, self.lr = task, lr
        if cell == "chrono":  # Tallec and Ollivier 2018: timescales between 1 and T steps
            with torch.no_grad():
                forget = torch.log(torch.empty(units).uniform_(1, STEPS - 1))
                for bias, value in ((self.reader.bias_hh_l0, forget), (self.reader.bias_ih_l0, 0 * forget)):
                    bias[: 2 * units] = torch.cat([-value, value])

    def forward(self, sequences: Tensor) -> Tensor:
        """Sums ``(B,)``, or logits ``(B, 3, 4)`` of the symbols."""
        states = self.reader(sequences)[0]
        if self.task == "adding":
            return self.readout(states[:, -1])[:, 0]
        return self.readout(states[:, -SYMBOLS:])

    def loss(self, batch: Batch) -> Tensor:
        answers = self(batch[0])
        return F.mse_loss(answers, batch[1]) if self.task == "adding" else F.cross_entropy(answers.mT, batch[1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Problems(pl.LightningDataModule):
    """Sequences to learn from, and others to be tested with."""

    def __init__(self, task: TaskName = "adding", sequences: int = 4096, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.task, self.sequences, self.batch_size, self.seed = task, sequences, batch_size, seed

    def setup(self, stage: str) -> None:
        generator, problem = torch.Generator().manual_seed(self.seed), adding if self.task == "adding" else copying
        self.train, self.held = (TensorDataset(*problem(count, generator)) for count in (self.sequences, 512))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.held, 512)


def main(arguments: list[str] | None = None) -> int:
    """Train one after the other, and say who learned and how far back its gradient reached."""
    settings = parser(__doc__, epochs=12)
    settings.add_argument("--tasks", nargs="+", choices=get_args(TaskName), default=list(get_args(TaskName)))
    settings.add_argument("--cells", nargs="+", choices=get_args(CellName), default=list(get_args(CellName)))
    settings.add_argument("--sequences", type=int, default=4096)
    options = settings.parse_args(arguments)
    rows, claims = [], []
    for task in options.tasks:
        for cell in options.cells:
            print(f"{task}, {cell}: {options.epochs} epochs ...")
            run = trainer(
                options,
                "memory",
                [GradientFlowMonitor(every_n_epochs=1, figure_every_n_epochs=4, max_overhead=1.0, summary=False)],
                gradient_clip_val=1.0,
                enable_checkpointing=False,
            )
            run.fit(Rememberer(cell, task), Problems(task, options.sequences, seed=options.seed))
            followed = looks(run, "gradient_flow")
            error = metric(run, "val_loss") / WITHOUT_MEMORY[task]
            rows.append(row(task, cell, error, followed))
            claims += known(task, cell, error, followed)
    print("\n                          horizon: steps back in which credit falls by a factor e")
    print("task     network   error     first   longest      last")
    print("\n".join(rows))
    print("(error: as a fraction of the error without memory; `adding` asks for up to 59 steps back, `copy` for 57.)")
    return end(claims, Path(str(run.log_dir)).parent)


def horizons(followed: list[SavedReport]) -> list[float]:
    """Of every look."""
    return [look.report.scalars["gradient_flow/reader.l0/horizon"] for look in followed]


def named(followed: list[SavedReport]) -> list[int]:
    """The epochs in which the flag `vanishing` was raised."""
    return [look.epoch for look in followed if look.report.scalars["gradient_flow/reader.l0/flags/vanishing"]]


def row(task: str, cell: str, error: float, followed: list[SavedReport]) -> str:
    """One line of the table."""
    steps = horizons(followed)
    shown = "".join(f"{step:>10.1f}" if step < 590 else "   endless" for step in (steps[0], max(steps), steps[-1]))
    epochs = named(followed)
    flag = f"   `vanishing` at {len(epochs)} of {len(steps)} looks" if epochs else ""
    return f"{task:<9}{cell:<8}{error:>7.2f}{shown}{flag}"


def known(task: str, cell: str, error: float, followed: list[SavedReport]) -> list[Claim]:
    """Who must fail, because no credit arrives, and who must learn; of the LSTM that learns to add, seeds differ."""
    steps, epochs = horizons(followed), named(followed)
    seen = (
        f"error {error:.2f}; horizon {steps[0]:.1f} steps at first; `vanishing` in {len(epochs)} of {len(steps)} looks"
    )
    if cell == "rnn" or (task == "copy" and cell != "chrono"):
        says = f"{task}: {cell} learns nothing, its first horizon is below a tenth of the sequence, the flag says so"
        return [Claim(says, seen, error > 0.8 and steps[0] < STEPS / 10 and followed[-1].epoch in epochs)]
    if cell == "lstm":
        return []
    limit = {"adding": 0.1, "copy": 0.75}[task]
    begun = ", and has begun with a horizon of half the sequence" if cell == "chrono" else ""
    says = f"{task}: {cell} learns (error below {limit:g}){begun}"
    return [Claim(says, seen, error < limit and (cell != "chrono" or steps[0] > STEPS / 2))]


if __name__ == "__main__":
    start(main, Rememberer, Problems)
