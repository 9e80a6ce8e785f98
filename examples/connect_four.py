"""Connect Four: a concept emerges where a target asks for it, and not where none does; controls tell the two apart.

A GRU reads games move by move. From the next move alone it does not come to tell that there is a win on the board (the
untrained network shows that as well); only the threat that players answer to rises a little. Asked besides whether the
game ends with that move, it tells; the layers before the GRU do already, as the column of its input says. (Probes
beside an untrained network: Alain and Bengio 2016; concepts of a game over training: McGrath et al. 2022.)

Run ``python -m examples.connect_four`` from the root of the repository; ``--targets moves`` or ``moves+end`` for one of
the two networks. With Lightning's command line:
``python -m examples.connect_four fit --config configs/connect_four.yaml``.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_callbacks import FixedPointTracker, GateMonitor, ProbeTracker
from rnn_callbacks.report import SavedReport

from ._claims import Claim, end
from ._connect_four_games import CELLS, COLUMNS, Batch, Matches, attack, defend, game_phase, neutral, winner
from ._run import looks, metric, parser, start, trainer

CONCEPTS = [f"{what}_{side}" for what in ("immediate_win", "three_in_row") for side in ("current", "opponent")]
CONCEPTS += ["center_control_current", "game_phase", "current_player"]
WIN, THREAT = CONCEPTS[:2]
Targets = Literal["moves", "moves+end"]
GATES = ("reset", "update")
TARGETS: dict[Targets, str] = {
    "moves": "the next move alone",
    "moves+end": "the next move, and whether the game ends with it",
}
LEARNED = 0.18  # of moves guessed; legal columns alone give 0.16. Where nothing is learned, nothing is shown
CLEARLY = 0.06  # of balanced accuracy: the whole 95 % interval of a win, the rarest concept, is 0.04 to 0.06 wide


class Player(pl.LightningModule):
    """Sees each position (patterns anywhere, and where pieces lie), remembers (a GRU), says what comes next."""

    def __init__(self, targets: Targets = "moves+end", units: int = 64, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.patterns, self.places = nn.Conv2d(3, 32, 4), nn.Linear(3 * CELLS, 32)
        self.reader = nn.GRU(64, units, batch_first=True)
        self.move, self.ends = nn.Linear(units, COLUMNS), nn.Linear(units, 1)
        self.targets, self.lr = targets, lr

    def forward(self, boards: Tensor, lengths: Tensor) -> Tensor:
        """States ``(B, T, H)`` after the positions of ``boards`` ``(B, T, 3, 6, 7)``."""
        planes = boards.flatten(0, 1).float()
        patterns, places = self.patterns(planes).amax((2, 3)), self.places(planes.flatten(1))
        seen = torch.cat([patterns, places], 1).relu().view(*boards.shape[:2], -1)
        packed = pack_padded_sequence(seen, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states: Tensor = pad_packed_sequence(self.reader(packed)[0], batch_first=True, total_length=boards.shape[1])[0]
        return states

    def loss(self, batch: Batch, stage: str) -> Tensor:
        """Of the next move and, where that is a target, of the end; steps after the end of a game do not count."""
        played = batch["ends"] >= 0
        states, moves = self(batch["boards"], batch["lengths"])[played], batch["moves"][played]
        guessed = self.move(states)
        self.log(f"{stage}_moves_right", (guessed.argmax(1) == moves).float().mean(), batch_size=len(moves))
        loss = F.cross_entropy(guessed, moves)
        if self.targets == "moves+end":  # one move in 24 is the last one, and counts tenfold
            last = batch["ends"][played].float()
            loss = loss + F.binary_cross_entropy_with_logits(
                self.ends(states)[:, 0], last, pos_weight=last.new_tensor(10)
            )
        self.log(f"{stage}_loss", loss, batch_size=len(moves))
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(batch, "val")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        epochs = self.trainer.max_epochs or 1
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)}


STEPS = list(range(6, 34))  # nobody can win before, and few games last longer
CONTEXTS: dict[str, Any] = {"attack": attack, "defend": defend, "neutral": neutral}


def watchers(epochs: int) -> list[pl.Callback]:
    """What is read from the states, where they come to rest, and what the gates do; drawn at the last epoch."""
    often: dict[str, Any] = {"every_n_epochs": 1, "max_overhead": 1.0, "summary": False}
    often["figure_every_n_epochs"] = epochs
    return [
        ProbeTracker(concepts={name: name for name in CONCEPTS}, steps=STEPS, shuffles=5, **often),
        FixedPointTracker(contexts=CONTEXTS, labels=winner, **often),
        GateMonitor(phases=game_phase, max_sequences=500, **often),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Train on one target and on both, and say what emerged in each network."""
    settings = parser(__doc__, epochs=6)
    settings.add_argument("--targets", choices=list(TARGETS), help="train one of the two networks only")
    options = settings.parse_args(arguments)
    kept: list[Claim] = []
    for targets in [options.targets] if options.targets else list(TARGETS):
        print(f"\nA GRU reads Connect Four and learns {TARGETS[targets]}, in {options.epochs} epochs ...")
        # All of the sanity check: the layers before the GRU learn too, and the untrained network is heard there.
        run = trainer(options, f"connect_four/{targets}", watchers(options.epochs), num_sanity_val_steps=-1)
        run.fit(Player(targets), Matches(seed=options.seed))
        probes, points, gates = (looks(run, noun) for noun in ("probes", "fixed_points", "gates"))
        print("\n".join(table(probes)))
        reset, update = (gates[-1].report.scalars[f"gates/reader.l0/{gate}/phase_eta_squared"] for gate in GATES)
        print(
            f"\n  The phase of the game explains {reset:.0%} of the reset, {update:.0%} of the update gate's variance."
        )
        right = metric(run, "val_moves_right")
        kept += [emerged(probes) if targets == "moves+end" else stayed(probes, right), rests(points, targets)]
    return end(kept, f"{options.logs}/connect_four")


def score(look: SavedReport, concept: str, quantity: str) -> float:
    """A number of the probe of that concept."""
    return look.report.scalars[f"probes/reader.l0/hidden/{concept}/{quantity}"]


def since(look: SavedReport, concept: str) -> float:
    """The epoch at which half of what is gained in bits was passed; infinite where nothing was."""
    epoch = look.report.scalars[f"probes/concepts/{concept}/emergence_epoch"]
    return epoch if epoch >= 0 else float("inf")


def table(probes: list[SavedReport]) -> list[str]:
    """What is read at the last look beside its controls, in the order of emergence."""
    last = probes[-1]
    lines = ["", "  balanced accuracy of        trained  untrained  GRU's input  shuffled   emerged (in bits)"]
    order = {concept: (since(last, concept), -score(last, concept, "over_untrained")) for concept in CONCEPTS}
    for concept in sorted(CONCEPTS, key=order.__getitem__):
        read = score(last, concept, "balanced_accuracy")
        controls = [read - score(last, concept, f"over_{control}") for control in ("untrained", "input", "shuffled")]
        gained = last.report.scalars[f"probes/concepts/{concept}/emergence_gain"]
        epoch = since(last, concept)
        when = f"epoch {epoch:.1f}, by {gained:+.2f}" if epoch < float("inf") else "never"
        lines.append(
            f"  {concept:<26}{read:>9.2f}{controls[0]:>11.2f}{controls[1]:>13.2f}{controls[2]:>10.2f}   {when}"
        )
    return lines


def stayed(probes: list[SavedReport], right: float) -> Claim:
    """Of the network that learned the next move alone."""
    last = probes[-1]
    rise = score(last, WIN, "over_untrained")
    others = [concept for concept in CONCEPTS if concept != WIN and since(last, concept) < float("inf")]
    bits = [last.report.scalars[f"probes/concepts/{concept}/emergence_gain"] for concept in others]
    told = ", ".join(f"{concept} ({gain:+.2f} bits)" for concept, gain in zip(others, bits, strict=True))
    return Claim(
        f"next move alone: moves are learned; {WIN} does not emerge, nor any concept but the threat to be answered",
        f"{right:.0%} of moves guessed; {WIN} {rise:+.2f} over the untrained network; emerged: {told or 'none'}",
        right > LEARNED and since(last, WIN) == float("inf") and rise < CLEARLY / 2 and set(others) <= {THREAT},
    )


def emerged(probes: list[SavedReport]) -> Claim:
    """Of the network that was asked for the end as well."""
    last = probes[-1]
    read, rise, own = (score(last, WIN, name) for name in ("balanced_accuracy", "over_untrained", "over_input"))
    gained = last.report.scalars[f"probes/concepts/{WIN}/emergence_gain"]
    return Claim(
        f"with the end of the game: {WIN} emerges, by more than {CLEARLY} over the untrained network",
        f"{read - rise:.2f} untrained, {read:.2f} now ({read - own:.2f} before the GRU); {gained:+.2f} bits",
        rise > CLEARLY and since(last, WIN) < float("inf"),
    )


def rests(points: list[SavedReport], targets: str) -> Claim:
    """Of the fixed points of a network, in the three contexts at all looks."""
    tags = {context: f"fixed_points/reader/{context}" for context in CONTEXTS}
    found = {context: [look.report.scalars[f"{tag}/attractors"] for look in points] for context, tag in tags.items()}
    said = "; ".join(
        f"{name} {', '.join(f'{count:.0f}' for count in sorted(set(counts)))}" for name, counts in found.items()
    )
    away = max(points[-1].report.scalars[f"{tag}/end_distance"] for tag in tags.values())
    return Claim(
        f"{targets}: one attractor in each context, to win, to block or neither, at every look",
        f"{said} in {len(points)} looks (games end up to {away:.1f} spreads away: they do not live there)",
        all(count == 1 for counts in found.values() for count in counts),
    )


if __name__ == "__main__":
    start(main, Player, Matches)
