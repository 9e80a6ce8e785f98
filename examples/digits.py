"""Real handwritten digits, read row by row: what all six callbacks say of a network that learns which digit it sees.

1797 images of 8 x 8 pixels (Alpaydin and Kaynak 1998, bundled with scikit-learn) become sequences of 8 steps with 8
features. What is known: a linear reader names most digits from the states of a network that has *not* been trained, for
random recurrence hands on what comes in. Accuracy alone is no sign of learning; the gain over the untrained network is,
and bits (V-information) show it best.

Run ``python -m examples.digits`` from the root of the repository, ``--cells gru lstm rnn`` for all three side by side.
With Lightning's command line: ``python -m examples.digits fit --config configs/digits.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rnn_callbacks
from rnn_callbacks.compare import compare, load_runs
from rnn_callbacks.compare.words import headline

from ._claims import Claim, command, end
from ._run import looks, metric, parser, start, trainer

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
    return (torch.arange(8) >= 4).long().repeat(len(batch[0]), 1)


def ink_so_far(batch: Batch) -> Tensor:
    """A quantity for every step: how much of the image is black up to there."""
    return batch[0].sum(2).cumsum(1)


def watch() -> list[pl.Callback]:
    """All six. In so short a training the first and the last look alone take more than the default of 5 %."""
    share = {"max_overhead": 0.3, "summary": False}
    return [
        rnn_callbacks.GateMonitor(phases=part_of_image, max_sequences=360, **share),
        rnn_callbacks.GradientFlowMonitor(**share),
        # Rows change at every step, so where it would rest under the mean row is a skeleton, and no attractor no fault.
        rnn_callbacks.FixedPointTracker(contexts="mean", flags={"no_attractor": None}, max_seconds=3, **share),
        rnn_callbacks.ProbeTracker(concepts={"digit": 1, "ink": ink_so_far}, **share),
        rnn_callbacks.RepresentationTracker(concepts={"digit": 1}, **share),
        rnn_callbacks.WeightTrajectoryLogger(monitor="val_accuracy", mode="max", **share),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Train, watch, say what was seen and whether what is known holds; compare, where there are several networks."""
    settings = parser(__doc__, epochs=40)
    settings.add_argument("--cells", nargs="+", choices=list(CELLS), default=["gru"])
    settings.add_argument("--images", type=int, default=None, help="use only so many images")
    options = settings.parse_args(arguments)
    claims, runs = [], {}
    for cell in options.cells:
        print(f"{cell.upper()}: learns to read handwritten digits, row by row, in {options.epochs} epochs ...")
        run = trainer(options, "digits", watch())
        run.fit(DigitReader(cell), Digits(images=options.images, seed=options.seed))
        print(f"\n{cell.upper()}: what was seen at the last look\n")
        for quantity, seen in story(run).items():
            print(f"  {quantity:<42}{seen}")
        claims += known(cell, runs.setdefault(cell, run))
    folders = [str(run.log_dir) for run in runs.values()]
    if len(runs) > 1:
        print("\n" + "\n".join(headline(compare(load_runs(*folders)))))
        print(f"\nMore of it:  {command('rnn-callbacks')} compare {' '.join(folders)}")
    if {"gru", "lstm"} <= runs.keys():
        gru, lstm = (last(runs[cell])["gates/reader.l0/timescale/q50"] for cell in ("gru", "lstm"))
        seen = f"median unit: {lstm:.1f} steps, and {gru:.1f}"
        claims.append(Claim("an LSTM's units remember longer than a GRU's here", seen, lstm > gru))
    return end(claims, Path(folders[0]).parent)


def last(run: pl.Trainer) -> dict[str, float]:
    """All numbers of every callback's last look, and the last accuracy, from the run's files."""
    seen = {"val_accuracy": metric(run, "val_accuracy")}
    for noun in ("gates", "gradient_flow", "fixed_points", "probes", "representation", "weight_trajectory"):
        seen |= looks(run, noun)[-1].report.scalars
    return seen


def known(cell: str, run: pl.Trainer) -> list[Claim]:
    """What a digit's probe says of the untrained network, and what training adds."""
    seen = last(run)
    trained, gain = (seen[f"probes/reader.l0/hidden/digit/{name}"] for name in ("balanced_accuracy", "over_untrained"))
    bits, share, more = (seen[f"probes/concepts/digit/{name}"] for name in ("v_information", "share", "emergence_gain"))
    before, closed = bits - more, more / (bits / share - bits + more)
    return [
        Claim(
            f"{cell}: a linear reader names over three quarters of the digits from the untrained network",
            f"{trained - gain:.1%} of them; {trained:.1%} after training",
            trained - gain > 0.75,
        ),
        Claim(
            f"{cell}: bits tell what is learned: training closes over a third of what was missing",
            f"{before:.2f} of {bits / share:.2f} bits before, {bits:.2f} after: {closed:.0%} closed",
            closed > 1 / 3,
        ),
    ]


def story(run: pl.Trainer) -> dict[str, str]:
    """The last look in plain words."""
    seen = last(run)
    at = {tag.replace("/reader.l0", ""): value for tag, value in seen.items()}
    lines = {"accuracy on unseen images": f"{seen['val_accuracy']:.1%}"}
    for tag, value in at.items():
        gate, _, quantity = tag.removeprefix("gates/").partition("/")
        if tag.startswith("gates/") and quantity == "mean":
            lines[f"{gate} gate, mean opening"] = f"{value:.2f}   (closed {at[f'gates/{gate}/closed']:.0%} of the time)"
    if "gates/timescale/q50" in at:
        low, median, high = (at[f"gates/timescale/{which}"] for which in ("q10", "q50", "q90"))
        lines["memory of the median unit"] = f"{median:.1f} of 8 steps   (10 % to 90 %: {low:.1f} to {high:.1f})"
    horizon = at["gradient_flow/horizon"]
    lines["credit falls by a factor e in"] = f"{horizon:.1f} steps" if horizon < 70 else "over 70 steps: not at all"
    attractors, saddles = (at[f"fixed_points/reader/mean/{kind}"] for kind in ("attractors", "saddles"))
    lines["where it would rest on a mean row"] = f"{attractors:.0f} attractors, {saddles:.0f} saddles"
    for concept, score in (("digit", "balanced_accuracy"), ("ink", "r2")):
        read, more = (at[f"probes/hidden/{concept}/{name}"] for name in (score, "over_untrained"))
        lines[f"{concept}, read by a linear probe"] = f"{read:.2f}   (untrained {read - more:.2f})"
    alike, by_chance = (at[f"representation/hidden/{name}"] for name in ("cka_untrained", "cka_random"))
    lines["likeness to the untrained network (CKA)"] = f"{alike:.2f}   (two random networks {by_chance:.2f})"
    lines["the digit is settled after"] = f"{at['representation/hidden/digit/commitment']:.0f} of 8 steps (median)"
    lines["weights have moved by"] = f"{at['weight_trajectory/total/relative_distance']:.1f} times their first size"
    raised = (tag.split("/") for tag, value in seen.items() if "/flags/" in tag and value)
    lines["flags raised"] = ", ".join(f"{flag} ({place})" for *_, place, _, flag in raised) or "none"
    watching = sum(value for tag, value in seen.items() if tag.endswith("/overhead"))
    lines["time spent watching"] = f"{watching:.0%} of the training's (5 % by default, where it takes longer than this)"
    return lines


if __name__ == "__main__":
    start(main, DigitReader, Digits)
