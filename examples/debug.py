"""A network that does not learn, and why: four common faults, found by what the callbacks say of them, and mended.

A network reads letters aloud; where it reads a question mark, it must say the first letter of the sequence, seven steps
back or more; without a memory that is a guess. It is kept from that by gates that a bias holds shut, a learning rate
far too large, a state detached from its past, or labels shifted by a step. Four checks find them: of gates, gradients
(Bengio et al. 1994), probes (Alain and Bengio 2016), likeness to the untrained network (Kornblith et al. 2019).
Run ``python -m examples.debug`` from the root of the repository; ``--fault frozen_gates`` for one of them. With
Lightning's command line: ``python -m examples.debug fit --config configs/debug.yaml``.
"""

from __future__ import annotations

import argparse
import math
import warnings
from typing import Any, Literal, NamedTuple, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import GateMonitor, GradientFlowMonitor, ProbeTracker, RepresentationTracker, WeightTrajectoryLogger
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning

from ._claims import Claim, end
from ._run import looks, parser, start, trainer

STEPS, FIRST_QUESTION, LETTERS, UNLABELLED = 14, 7, 3, -100  # letters beside the question mark
Batch = tuple[Tensor, Tensor]
Fault = Literal["frozen_gates", "large_lr", "detached_state", "shifted_labels", "none"]
NO_WORRY = ("already_there", "in_the_input", "forgotten", "wandering")  # flags that describe, and worry nobody here
KEPT, REACH = "gates/reader.cell/timescale/q50", "gradient_flow/reader.cell/reach"
READ, BEFORE = (f"probes/reader.cell/hidden/{name}/balanced_accuracy" for name in ("answer", "answer_before"))
MOVED = "weight_trajectory/total/relative_distance"
TAGS = (KEPT, REACH, READ, BEFORE, "representation/reader.cell/hidden/cka_untrained")

# Of each fault the flag that tells it, a number, its bounds, and what it says.
SIGNS: dict[Fault, tuple[str, str, float, float, str]] = {
    "frozen_gates": ("frozen", KEPT, 2 * STEPS, 1e6, "the median unit keeps its state for {:,.0f} steps"),
    "large_lr": ("blown_up", MOVED, 100, 1e9, "the weights have moved by {:,.0f} times their size"),
    "detached_state": ("vanishing", REACH, 0, 1, "a hundredth of the credit is left {:.1f} steps back, 7 are needed"),
    "shifted_labels": ("missing", BEFORE, 0.9, 1, "a probe reads labels of the step before: {:.2f}, the given {:.2f}"),
}


def letters(sequences: int, generator: torch.Generator, *, shifted: bool = False) -> Batch:
    """Letters and question marks ``(B, T, 4)``, one-hot, and what is to be said ``(B, T)``; or one step later."""
    drawn = torch.randint(0, LETTERS, (sequences, STEPS), generator=generator)
    asked = torch.rand(sequences, STEPS, generator=generator) < 0.4
    asked[:, :FIRST_QUESTION] = False
    said = torch.where(asked, drawn[:, :1], drawn)
    said = F.pad(said[:, 1:], (0, 1), value=UNLABELLED) if shifted else said
    return F.one_hot(torch.where(asked, LETTERS, drawn), LETTERS + 1).float(), said


class Reader(pl.LightningModule):
    """A loop over a GRU cell, with or without a fault, and a readout at every step."""

    def __init__(self, fault: Fault = "none", units: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.reader = nn.GRUCell(LETTERS + 1, units)
        self.readout = nn.Linear(units, LETTERS)
        self.fault = fault
        if fault == "frozen_gates":  # torch's z keeps the old state: nothing gets in
            nn.init.constant_(self.reader.bias_ih[units : 2 * units], 20.0)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits ``(B, T, 3)``."""
        state, states = symbols.new_zeros(len(symbols), self.reader.hidden_size), []
        for symbol in symbols.unbind(1):
            state = self.reader(symbol, state.detach() if self.fault == "detached_state" else state)
            states.append(state)
        return torch.as_tensor(self.readout(torch.stack(states, 1)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return judge(self(batch[0]), batch)[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, right = judge(self(batch[0]), batch)
        self.log_dict({"val_loss": loss, "val_right": right}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=100.0 if self.fault == "large_lr" else 0.03)


class Letters(pl.LightningDataModule):
    """Sequences to learn from, and others to look at; with `shifted_labels` each step has that of the next."""

    def __init__(self, sequences: int = 2048, batch_size: int = 64, fault: Fault = "none", seed: int = 0) -> None:
        super().__init__()
        self.sequences, self.batch_size, self.fault, self.seed = sequences, batch_size, fault, seed

    def setup(self, stage: str) -> None:
        generator, shifted = torch.Generator().manual_seed(self.seed), self.fault == "shifted_labels"
        sets = (letters(count, generator, shifted=shifted) for count in (self.sequences, 768))
        self.train, self.held = (TensorDataset(*batch) for batch in sets)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.held, 256)


def answer(batch: Batch) -> Tensor:
    """The label wherever a question mark is read, ``(B, T)``; elsewhere none."""
    return batch[1].where(batch[0][..., LETTERS] > 0, UNLABELLED)


def answer_before(batch: Batch) -> Tensor:
    """The same with labels of the step before: if that is known and the answer is not, labels are one step early."""
    return answer((batch[0], batch[1].roll(1, dims=1)))  # the step that comes round is no question mark


def judge(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy per labelled step (a guess: 1.1), and the share of question marks answered as labelled (1/3)."""
    labels = answer(batch)
    right = (logits.argmax(2) == labels)[labels != UNLABELLED].float().mean()
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=UNLABELLED), right


class Seen(NamedTuple):
    """What a run has left: its last numbers, the flags of all looks, and what its checkpoint can do."""

    numbers: dict[str, float]
    raised: tuple[str, ...]  # once each, without those that are no cause for worry
    right: float
    error: float


def watch(options: argparse.Namespace, fault: Fault) -> Seen:
    """Train one network with five callbacks, and read what that has left."""
    each: dict[str, Any] = {"figure_every_n_epochs": options.epochs, "max_overhead": 1.0, "summary": False}
    flow = GradientFlowMonitor(every_n_epochs=1, **each)  # `vanishing` asks how the loss fell since the first look
    each["every_n_epochs"] = 2
    probes = ProbeTracker(concepts={"answer": answer, "answer_before": answer_before}, required={"answer": 0.9}, **each)
    others = [kind(**each) for kind in (GateMonitor, RepresentationTracker, WeightTrajectoryLogger)]
    callbacks = [flow, probes, *others, keep := ModelCheckpoint()]
    run = trainer(options, f"debug/{fault}", callbacks)
    run.fit(Reader(fault), data := Letters(options.sequences, fault=fault, seed=options.seed))
    reports = [look.report.scalars for kind in (flow, probes, *others) for look in looks(run, kind.noun)]
    numbers = {tag: value for scalars in reports for tag, value in scalars.items()}
    flags = (tag for scalars in reports for tag, value in scalars.items() if "/flags/" in tag and value)
    batch, saved = data.held[:], Reader.load_from_checkpoint(keep.best_model_path)
    with torch.no_grad():
        error, right = judge(saved(batch[0]), batch)
    raised = dict.fromkeys(flag for tag in flags if (flag := tag.rpartition("/")[2]) not in NO_WORRY)
    return Seen(numbers, tuple(raised), float(right), float(error))


def main(arguments: list[str] | None = None) -> int:
    """Train each network, follow the workflow, and compare with what is known of its fault."""
    settings = parser(__doc__, epochs=8)
    settings.add_argument("--fault", choices=get_args(Fault), help="this one and the mended network; all by default")
    settings.add_argument("--sequences", type=int, default=2048)
    options = settings.parse_args(arguments)
    warnings.filterwarnings("ignore", category=RecurrentHealthWarning)  # the flags are told below
    seen: dict[Fault, Seen] = {}
    for fault in get_args(Fault):
        if options.fault in (None, fault) or fault == "none":
            print(f"{'mended' if fault == 'none' else fault}: learns for {options.epochs} epochs ...")
            seen[fault] = watch(options, fault)
    print("\n                 gates keep for  credit goes  probes read,before  like untrained   right   flags raised")
    print("\n".join(row("mended" if fault == "none" else fault, one) for fault, one in seen.items()))
    return end(claims(seen), f"{options.logs}/debug")


def row(name: str, seen: Seen) -> str:
    """One line of the table."""
    kept, reach, read, before, alike = (seen.numbers.get(tag, math.nan) for tag in TAGS)
    numbers = f"{kept:>11.2g} steps{reach:>8.1f} steps{read:>10.2f}, {before:.2f}{alike:>17.2f}{seen.right:>9.0%}"
    numbers = numbers.replace("nan", "  -").replace("1e+06 steps", "    endless")
    return f"{name:<15}{numbers}   {', '.join(seen.raised) or 'none'}"


def claims(seen: dict[Fault, Seen]) -> list[Claim]:
    """Each fault does harm and shows its sign; the mended network shows none and has learned."""
    mended, found = seen["none"], []
    for fault, (flag, tag, low, high, words) in SIGNS.items():
        if fault in seen:
            number = (one := seen[fault]).numbers.get(tag, math.nan)
            shown = flag in one.raised and flag not in mended.raised and low <= number <= high
            read = one.numbers.get(READ, math.nan)
            shown &= tag != BEFORE or read < low  # a network that reads both has no trouble with its labels
            known = f"{fault}: raises `{flag}`, which the mended network does not, and errs ten times as much"
            told = f"{words.format(number, read)}; error {one.error:.2g} against {mended.error:.2g}"
            found.append(Claim(known, told, shown and one.error > 10 * mended.error))
    known = "mended: no worrying flag, at least 95% right (a guess: 33%), and credit reaches the first letter"
    told = f"{', '.join(mended.raised) or 'none'}; {mended.right:.1%}; {mended.numbers[REACH]:.1f} steps back"
    holds = not mended.raised and mended.right >= 0.95 and mended.numbers[REACH] >= FIRST_QUESTION
    return [*found, Claim(known, told, holds)]


if __name__ == "__main__":
    start(main, Reader, Letters)
