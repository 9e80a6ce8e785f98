"""A sum of moods: watch a line attractor come into being while a network learns to judge reviews.

A review is made of words of known valence: 20 good and 20 bad ones, from weak to strong, and 60 that say nothing. It is
liked if the sum of its valences, and some chance, is above zero. The network should find what Maheswaranathan et al.
(2019) describe: a line on which its state can rest, with one eigenvalue near 1; the place on it is the sum so far, and
words that say nothing leave it there.

Run ``python -m examples.sentiment`` from the root of the repository; ``--cell lstm`` or ``rnn`` to compare (their lines
are worse: one claim fails, and two), ``--text FILE`` for reviews of your own: in each line 1 (liked) or 0, then the
words. With Lightning's command line: ``python -m examples.sentiment fit --config configs/sentiment.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks import FixedPointTracker, ProbeTracker
from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.flow import Flow
from rnn_callbacks.cells import cells
from rnn_callbacks.report import Report

from ._claims import Claim, end
from ._run import looks, metric, parser, start, trainer
from ._sentiment_reviews import LONGEST, VALENCES, VOCABULARY, WORDS, Batch, Reviews, plain_words, running_sum

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class Reader(pl.LightningModule):
    """An embedding, a recurrent layer that reads word by word, and a readout of its last state."""

    def __init__(self, cell: Literal["gru", "lstm", "rnn"] = "gru", units: int = 16, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.meaning = nn.Embedding(VOCABULARY + 1, 8, padding_idx=0)
        nn.init.normal_(self.meaning.weight, std=0.1)  # a word says little until it has to
        self.reader = CELLS[cell](8, units, batch_first=True)
        self.readout = nn.Linear(units, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_accuracy", ((self(batch[0]) > 0) == batch[1]).float().mean(), prog_bar=True)

    def forward(self, words: Tensor) -> Tensor:
        """How much a review is liked, a logit ``(B,)``."""
        packed = pack_padded_sequence(self.meaning(words), (words > 0).sum(1).cpu(), True, enforce_sorted=False)
        ends = self.reader(packed)[1]
        logits: Tensor = self.readout(ends[0] if isinstance(ends, tuple) else ends)[0, :, 0]
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams["lr"], weight_decay=0.05)  # the unused fades
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or 1)]


class Walk(NamedTuple):
    """What the saved network does on unseen reviews of B by up to T words, projected on the line on which it rests."""

    rests: Tensor  # (B, D): where states lie after as many more words that say nothing
    spread: float  # how far ends lie from their mean, root mean square
    place: NDArray[np.float64]  # (B, T + 1): of every state on the line, the first before any word
    last: NDArray[np.int64]  # (B,): at which the review ends


@torch.no_grad()
def walk(model: Reader, words: Tensor, held: Tensor) -> Walk:
    """Read the reviews, and then hold the input of words that say nothing until nothing but the slowest is left."""
    (cell,) = cells(model.reader)
    states = [torch.zeros(len(words), cell.state_size)]
    for word in model.meaning(words).unbind(1):
        states.append(cell.step(word, states[-1]))
    walked, last = torch.stack(states, 1).double(), (words > 0).sum(1)
    ends = walked[torch.arange(len(words)), last]
    rests = Flow((equation_of(cell),), held).run(ends, LONGEST)
    axis = torch.linalg.svd(rests - rests.mean(0), full_matrices=False).Vh[0]
    return Walk(rests, _spread(ends), ((walked - rests.mean(0)) @ axis).numpy(), last.numpy())


def _spread(states: Tensor) -> float:
    return float((states - states.mean(0)).square().sum(1).mean().sqrt())


def one_slow(values: NDArray[np.complex128]) -> Claim:
    """Of the eigenvalues at all fixed points found, ``(N, D)``."""
    sizes = np.abs(np.take_along_axis(values, np.abs(values - 1).argsort(1), 1))  # the one nearest to 1 comes first
    low, high, other = sizes[:, 0].min(initial=2), sizes[:, 0].max(initial=0), sizes[:, 1:].max(initial=0)
    lasts = -1 / np.log(min(max(other, 1e-9), 1 - 1e-9))
    return Claim(
        f"at rest one eigenvalue is near 1 ({LONGEST} words or longer), the others fade in half of that",
        f"{low:.3f} to {high:.3f} at {len(values)} fixed points; the others at most {other:.3f}, or {lasts:.0f} words",
        bool(np.exp(-1 / LONGEST) < low <= high < np.exp(1 / LONGEST) and other < np.exp(-2 / LONGEST)),
    )


def a_line(walked: Walk) -> Claim:
    """A plane would fill two dimensions, and what lasts a review's length keeps 1/e of its extent."""
    sizes = torch.linalg.svdvals(walked.rests - walked.rests.mean(0)).square()
    dimensions, extent = float(sizes.sum() ** 2 / sizes.square().sum()), _spread(walked.rests) / walked.spread
    return Claim(
        f"after {LONGEST} more words that say nothing, its states lie along a line",
        f"they fill {dimensions:.2f} dimensions (a line: 1), and lie {extent:.0%} as far apart as before",
        dimensions < 1.5 and extent > 1 / np.e,
    )


def a_sum(walked: Walk, words: Tensor, untrained: float) -> list[Claim]:
    """What a place on the line means, and how single words move it; ``untrained`` is the R2 of that network's units."""
    ends, known = walked.place[np.arange(len(words)), walked.last], VALENCES[words].sum(1).numpy()
    decoded = np.corrcoef(ends, known)[0, 1] ** 2
    moves, word = np.diff(np.polyval(np.polyfit(ends, known, 1), walked.place)), words.numpy()  # in units of valence
    plain, telling = np.abs(moves[word > 40]).mean(), np.abs(moves[(word > 0) & (word <= 40)]).mean()
    push = np.array([moves[word == number].mean() for number in range(1, 101)])
    alike = np.corrcoef(push, VALENCES[1:])[0, 1]
    some = (
        f"{WORDS.split()[which]} {push[which - 1]:+.2f} (valence {VALENCES[which]:+.2f})" for which in (20, 1, 21, 40)
    )
    return [
        Claim(
            "the place on that line tells the sum of the valences",
            f"R2 at the ends of unseen reviews {decoded:.2f}; from all units of the untrained network {untrained:.2f}",
            bool(decoded > 0.9 and decoded > untrained + 0.3),
        ),
        Claim(
            "words that say nothing hardly move it: less than a fifth as far as others",
            f"one that says nothing moves it by {plain:.3f}, one with a valence by {telling:.3f} (mean sizes)",
            bool(plain < telling / 5),
        ),
        Claim(
            "how far a word moves it goes with its valence",
            f"correlation of its move and its valence {alike:.3f}; {', '.join(some)}",
            bool(alike > 0.95),
        ),
    ]


def claims(model: Reader, words: Tensor, fixed: Report, probed: Report) -> list[Claim]:
    """What is known, beside the fixed points that were found and what the saved network does with unseen reviews."""
    here, score = "fixed_points/reader/plain", "probes/reader.l0/hidden/running_sum"
    walked = walk(model, words, torch.as_tensor(fixed.arrays[f"{here}/inputs"]))
    found = [one_slow(fixed.arrays[f"{here}/eigenvalues"]), a_line(walked)]
    if f"{score}/r2" not in probed.scalars:  # a text, whose valences nobody knows
        return found
    return found + a_sum(walked, words, probed.scalars[f"{score}/r2"] - probed.scalars[f"{score}/over_untrained"])


def main(arguments: list[str] | None = None) -> int:
    """Train, follow the fixed points, and hold what was found against what is known."""
    settings = parser(__doc__, epochs=12)
    settings.add_argument("--cell", choices=list(CELLS), default="gru")
    settings.add_argument("--sequences", type=int, default=12800, help="reviews in an epoch (%(default)s)")
    settings.add_argument("--text", help="a file of your own reviews, 1 or 0 and a sentence in each line")
    options = settings.parse_args(arguments)
    data = Reviews(options.sequences, options.text, options.seed)
    try:
        data.setup("fit")
    except (OSError, ValueError) as fault:
        settings.error(str(fault))
    what = f"{options.text} (valences unknown: no claims about them)" if options.text else "reviews"
    print(f"{options.cell.upper()}: learns to judge {what}, in {options.epochs} epochs ...")
    rarely: dict[str, Any] = {"every_n_epochs": int(np.gcd(options.epochs, 4)), "figure_every_n_epochs": options.epochs}
    rarely |= {"max_overhead": 1.0, "summary": False}
    context, labels = ("mean", None) if options.text else (plain_words, lambda batch: VALENCES[batch[0]].sum(1))
    tracker = FixedPointTracker(contexts={"plain": context}, labels=labels, **rarely)
    prober = ProbeTracker(concepts={"liked": 1} | ({} if options.text else {"running_sum": running_sum}), **rarely)
    fresh: dict[str, Any] = {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": -1}
    run = trainer(options, "sentiment", [tracker, prober], gradient_clip_val=1.0, **fresh)
    run.fit(Reader(options.cell), data)
    (saved,) = Path(str(run.log_dir), "checkpoints").glob("*.ckpt")
    print(f"\nUnseen reviews judged right: {metric(run, 'val_accuracy'):.1%}")
    fixed, probed = (looks(run, noun)[-1].report for noun in ("fixed_points", "probes"))
    return end(claims(Reader.load_from_checkpoint(saved), data.held[0], fixed, probed), str(run.log_dir))


if __name__ == "__main__":
    start(main, Reader, Reviews)
