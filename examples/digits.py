"""Real handwritten digits, read row by row: a GRU learns which digit it sees, and is watched.

`GateMonitor` says how its gates move and how long it remembers; `ProbeTracker` says what can be read of its state: the
digit, which it must learn, and the ink seen so far, which it does not need; `WeightTrajectoryLogger` draws the path of
its weights.

1797 images of 8 x 8 pixels (Alpaydin and Kaynak 1998, bundled with scikit-learn) become sequences of 8 steps with 8
features. Run ``python -m examples.digits`` from the root of the repository; ``--cell lstm`` or ``rnn`` to compare. With
Lightning's command line: ``python -m examples.digits fit --config configs/digits.yaml``.
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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import GateMonitor, ProbeTracker, WeightTrajectoryLogger

from ._quiet import quiet

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
Batch = tuple[Tensor, Tensor]


class DigitReader(pl.LightningModule):
    """A recurrent layer reads the rows of an image; its last hidden state says the digit."""

    def __init__(self, cell: Literal["gru", "lstm", "rnn"] = "gru", units: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.reader = CELLS[cell](8, units, batch_first=True)
        self.readout = nn.Linear(units, 10)
        self.lr = lr

    def forward(self, rows: Tensor) -> Tensor:
        """Logits ``(B, 10)`` of rows ``(B, 8, 8)``."""
        states, _ = self.reader(rows)
        return self.readout(states[:, -1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rows, digits = batch
        loss = F.cross_entropy(self(rows), digits)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rows, digits = batch
        logits = self(rows)
        loss = F.cross_entropy(logits, digits)
        self.log("val_loss", loss)
        self.log("val_accuracy", (logits.argmax(1) == digits).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Digits(pl.LightningDataModule):
    """Four fifths of the images to learn from, one fifth to look at."""

    def __init__(self, batch_size: int = 32, images: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.images, self.seed = batch_size, images, seed

    def setup(self, stage: str) -> None:
        images, digits = load_digits(return_X_y=True)
        rows = torch.tensor(images[: self.images] / 16.0, dtype=torch.float32).view(-1, 8, 8)
        labels = torch.tensor(digits[: self.images])
        seen, held = train_test_split(range(len(rows)), test_size=0.2, random_state=self.seed, stratify=labels)
        self.train, self.held = (TensorDataset(rows[part], labels[part]) for part in (seen, held))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.held, 128)


def part_of_image(batch: Batch) -> Tensor:
    """Task phase of every step: 0 in the upper half of the image, 1 in the lower half."""
    rows, _ = batch
    return (torch.arange(8) >= 4).long().repeat(len(rows), 1)


def ink_so_far(batch: Batch) -> Tensor:
    """A quantity for every step: how much of the image is black up to there."""
    rows, _ = batch
    return rows.sum(2).cumsum(1)


def main(arguments: list[str] | None = None) -> pl.Trainer:
    """Train, watch, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), default="gru")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, default=None, help="use only so many images")
    parser.add_argument("--logs", default=".", help="folder for lightning_logs")
    options = parser.parse_args(arguments)
    quiet(summary=False)
    pl.seed_everything(0, verbose=False)
    print(f"Training a {options.cell.upper()} on handwritten digits, row by row, for {options.epochs} epochs ...")
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(options.logs, name="lightning_logs"),
        # So short a training may spend more of its time on being watched than the default of 5 %. The story below says
        # what a summary would, in the terms of this task.
        callbacks=[
            GateMonitor(phases=part_of_image, max_sequences=360, max_overhead=0.2, summary=False),
            ProbeTracker(concepts={"digit": 1, "ink": ink_so_far}, max_overhead=0.2, summary=False),
            WeightTrajectoryLogger(max_overhead=0.2, summary=False),
        ],
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    begin = time.perf_counter()
    trainer.fit(DigitReader(options.cell), Digits(images=options.images))
    print(f"\nTrained in {time.perf_counter() - begin:.0f} s. What was seen at the last look:\n")
    for quantity, seen in story(trainer).items():
        print(f"  {quantity:<42}{seen}")
    folder = Path(str(trainer.log_dir))
    print(f"\nLogs, pictures and numbers lie in {folder}\nTo see them:  tensorboard --logdir {folder.parent}")
    print("  (Custom Scalars: the curated page; Images: gates, probes, the path of the weights; Text: tables in words)")
    return trainer


def story(trainer: pl.Trainer) -> dict[str, str]:
    """The last look in plain words."""
    seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
    lines = {"accuracy on unseen images": f"{seen['val_accuracy']:.1%}"}
    for name, value in seen.items():
        _, _, rest = name.partition("gates/reader.l0/")
        part, _, quantity = rest.partition("/")
        if quantity == "mean":
            shut, wide = seen[f"gates/reader.l0/{part}/closed"], seen[f"gates/reader.l0/{part}/open"]
            lines[f"{part} gate, mean opening"] = f"{value:.2f}   ({shut:.0%} closed, {wide:.0%} wide open)"
        elif quantity == "mean_abs":
            lines["size of the cell state" if part == "memory" else f"size of the {part} content"] = f"{value:.2f}"
        elif rest == "timescale/q50":
            low, high = seen["gates/reader.l0/timescale/q10"], seen["gates/reader.l0/timescale/q90"]
            lines["memory of the median unit"] = (
                f"{value:.1f} of 8 steps   (10 % below {low:.1f}, 10 % above {high:.1f})"
            )
    for concept, kind in (("digit", "balanced_accuracy"), ("ink", "r2")):
        places = [name for name in seen if name.startswith("probes/reader") and name.endswith(f"/{concept}/{kind}")]
        best = max(places, key=lambda name: seen[name]).rpartition("/")[0]
        score, bits = seen[f"{best}/{kind}"], seen[f"{best}/v_information"]
        before, source = score - seen[f"{best}/over_untrained"], score - seen[f"{best}/over_input"]
        lines[f"{concept}, read by a linear probe"] = (
            f"{score:.2f}   (untrained {before:.2f}, from one row {source:.2f}; {bits:.1f} bits)"
        )
    path = {name: seen[f"weight_trajectory/total/{name}"] for name in ("relative_distance", "explained", "turning")}
    by_chance = seen["weight_trajectory/total/explained_random"]
    lines["weights have moved by"] = f"{path['relative_distance']:.1f} times their size at the start"
    lines["their path, drawn in two directions"] = f"{path['explained']:.0%} of it   (of a random walk {by_chance:.0%})"
    raised = [name.rsplit("/", 1)[1] for name, value in seen.items() if "/flags/" in name and value]
    lines["flags raised"] = ", ".join(dict.fromkeys(raised)) or "none"
    watching = sum(seen[f"{noun}/overhead"] for noun in ("gates", "probes", "weight_trajectory"))
    lines["time spent watching"] = f"{watching:.0%} of the training time (5 % by default)"
    return lines


def command_line(arguments: list[str]) -> None:
    """The same by YAML: ``fit --config configs/digits.yaml`` (needs the extra ``cli``)."""
    from lightning.pytorch.cli import LightningCLI

    quiet(summary=True)
    LightningCLI(DigitReader, Digits, args=arguments)


if __name__ == "__main__":
    if "fit" in sys.argv[1:2]:
        command_line(sys.argv[1:])
    else:
        main()
