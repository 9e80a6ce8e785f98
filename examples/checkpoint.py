"""What does a saved network know? Every number from a plain checkpoint, without Lightning.

A GRU reads 8 x 8 digits row by row (Alpaydin and Kaynak 1998); its training has left one file, written by
``torch.save(network.state_dict(), FILE)``. It is looked at in five steps: hidden states, laid out in a plane
(PHATE, Moon et al. 2019), probes, fixed points (Sussillo and Barak 2013), gates (Karpathy, Johnson and Fei-Fei 2015),
each held against torch's own ``nn.GRU``. Run ``python -m examples.checkpoint`` from the root of the repository: it
trains such a network in a few seconds, or takes yours with ``--checkpoint FILE`` (names as in `Reader`, any units).
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from rnn_callbacks.analysis.concepts import Concept, read_concepts, split_sequences
from rnn_callbacks.analysis.fixed_point_search import find_all_fixed_points
from rnn_callbacks.analysis.gates import GateStatistics, gate_statistics
from rnn_callbacks.analysis.probes import probe
from rnn_callbacks.analysis.state_embedding import embed_states
from rnn_callbacks.analysis.state_samples import StateSampler, StateSamples
from rnn_callbacks.capture import Recorder
from rnn_callbacks.figures.gates import draw_gates
from rnn_callbacks.figures.state_embedding import Colouring, draw_embedding
from rnn_callbacks.rebuild import traces_by_cell, unroll
from rnn_callbacks.tape import Tape

from ._claims import Claim, end
from ._digit_network import Batch, Reader, digits, restore, share_right, train

SHOWN = 100  # images in the picture of trajectories: 800 states; PHATE takes up to 1000
Floats = NDArray[Any]


def hear(network: Reader, rows: Tensor) -> tuple[Tape, StateSamples]:
    """Step 1: what passed through the recurrent layer, and its states at all steps."""
    with Recorder(network, max_sequences=len(rows)) as recorder, torch.no_grad():
        network(rows)
    sampler, tape = StateSampler(8, max_megabytes=100), recorder.tapes["reader"]
    sampler.hear(tape)
    samples = sampler.result()
    assert samples is not None
    return tape, samples


def draw(folder: Path, samples: StateSamples, concepts: list[Concept], gates: GateStatistics, title: str) -> None:
    """Step 2: pictures of the trajectories, in PHATE and in principal components, and of the gates."""
    look = [(0, samples.states["l0/hidden"][:SHOWN, :-1])]
    laid = {"hidden": [embed_states(look, "phate"), embed_states(look, "pca")]}
    labels = [one.at(samples, reverse=False)[:SHOWN, :-1] for one in concepts]
    colours = [Colouring(one.name, of, tuple(map(str, one.classes))) for one, of in zip(concepts, labels, strict=True)]
    paths = draw_embedding("reader.l0", laid, colours, steps=samples.steps, title=title)
    with SummaryWriter(str(folder)) as board:
        for name, picture in {"trajectories": paths, "gates": draw_gates("reader", [gates])}.items():
            picture.savefig(folder / f"{name}.png")
            board.add_figure(name, picture)


@torch.no_grad()
def timescales(layer: nn.GRU, rows: Tensor) -> Floats:
    """Steps in which each unit falls to 1/e ``(H,)``: torch's weights, and z from the states that torch returns."""
    weights, part = layer.state_dict(), slice(layer.hidden_size, 2 * layer.hidden_size)
    before = F.pad(layer(rows)[0][:, :-1], (0, 0, 1, 0))
    z = F.linear(rows, weights["weight_ih_l0"][part], weights["bias_ih_l0"][part])
    z = z + F.linear(before, weights["weight_hh_l0"][part], weights["bias_hh_l0"][part])
    return np.asarray(-1 / F.logsigmoid(z).double().mean((0, 1)))


@torch.no_grad()
def moved(layer: nn.GRU, held: Floats, states: Floats) -> Floats:
    """How far torch's own layer moves states ``(N, H)`` in one step of a held input ``(I,)``, ``(N,)``, in float64."""
    exact, start = copy.deepcopy(layer).double(), torch.tensor(states, dtype=torch.float64)
    after, _ = exact(torch.from_numpy(held).expand(len(start), 1, -1), start[None])
    return np.asarray((after[:, 0] - start).abs().amax(1))


@torch.no_grad()
def look(network: Reader, untrained: Reader, batch: Batch, folder: Path, title: str) -> list[Claim]:
    """The five steps of the workflow, and what of them must be so."""
    rows, labels = batch
    (_, before), (tape, after) = hear(untrained, rows), hear(network, rows)
    (trace,) = traces_by_cell(tape)["l0"]
    own, _ = network.reader(rows)
    rebuilt = float((unroll(trace.cell, trace.inputs, trace.initial) - own).abs().max())
    print(f"1 Hidden states   {tuple(own.shape)}: images, rows, units; rebuilt step by step to {rebuilt:.0e}")
    gates = gate_statistics([trace])
    concepts = read_concepts("digit", {0: labels.numpy()}, after.rows)
    concepts += read_concepts("ink", {0: rows.sum(2).cumsum(1).numpy()}, after.rows)
    draw(folder, after, concepts, gates, title)
    print(f"2 Trajectories    {folder / 'trajectories.png'} (PHATE and principal components)")
    learned = learned_digit(before, after, concepts, share_right(untrained, batch))
    held = {"an empty row": torch.zeros(8), "the mean row": rows.mean((0, 1))}
    points = {name: find_all_fixed_points(trace.cell, own.flatten(0, 1), row).points for name, row in held.items()}
    for name, found in points.items():
        told = ", ".join(f"{kind}s {found.kind.tolist().count(kind)}" for kind in ("attractor", "saddle", "repeller"))
        print(f"4 Fixed points    {told} while {name} is held")
    opened, kept = (gates.scalars()[name] for name in ("update/mean", "timescale/q50"))
    print(f"5 Gates           update open by {opened:.2f}; the median unit falls to 1/e in {kept:.1f} of 8 rows")
    layer, worst = network.reader, np.abs(gates.timescale / timescales(network.reader, rows) - 1).max()
    rest = max(moved(layer, found.inputs, found.states).max() for found in points.values())
    passing = min(moved(layer, found.inputs, own[:, -1].numpy()).min() for found in points.values())
    return [
        Claim("rebuilt states are those of torch's own layer, to 1e-5", f"{rebuilt:.1e} apart", rebuilt < 1e-5),
        learned,
        Claim("torch's own layer leaves fixed points in their place, to 1e-9", f"moved by {rest:.0e}", rest < 1e-9),
        Claim("but moves every image's last state", f"by {passing:.2f} or more (asked for: 0.01)", passing > 0.01),
        Claim("units' memory follows from torch's weights, to 0.1%", f"{worst:.0e} apart", worst < 1e-3),
    ]


def learned_digit(before: StateSamples, after: StateSamples, concepts: list[Concept], guessed: float) -> Claim:
    """Step 3: probes of the untrained and the trained network; ``guessed``: what the untrained one answers rightly."""
    fitted = split_sequences(concepts, 2 / 3)
    first, last = (probe(samples, concepts, fitted, sites=["l0/hidden"]) for samples in (before, after))
    for old, new in zip(first, last, strict=True):
        score = f"{new.headline.score:.2f} (untrained {old.headline.score:.2f}, shuffled {new.shuffled.mean():.2f})"
        bits = f"{new.headline.v_information:.2f} bits (untrained {old.headline.v_information:.2f})"
        print(f"3 Probe, {new.concept.name:<9}score {score}; {bits}")
    then, now = first[0].headline, last[0].headline
    more = now.v_information - then.v_information
    return Claim(
        "untrained it answers 25% at most, yet a probe reads 75% or more; training adds a fifth of a bit or more",
        f"answers {guessed:.0%}, a probe reads {then.score:.0%}; trained {now.score:.0%}, {more:+.2f} bits",
        guessed <= 0.25 and then.score >= 0.75 and more >= 0.2,
    )


def main(arguments: list[str] | None = None) -> int:
    """Look at a checkpoint, say what is seen, and hold it against torch's own layer."""
    settings = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_argument("--checkpoint", type=Path, help="a state_dict that torch.save wrote; one is trained without")
    settings.add_argument("--epochs", type=int, default=20, help="of that training (%(default)s)")
    settings.add_argument("--seed", type=int, default=0)
    settings.add_argument("--logs", type=Path, default=Path("lightning_logs"), help="folder for what is left")
    options = settings.parse_args(arguments)
    folder = options.logs / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    learned, held = digits(options.seed)
    if options.checkpoint is None:
        train(learned, options.epochs, folder, options.seed)
    file = options.checkpoint or folder / "trained.pt"
    try:
        network = restore(file)
    except (OSError, KeyError, RuntimeError, UnpicklingError) as fault:
        settings.error(f"{file} is no state_dict of {Reader.__name__} (reader: nn.GRU(8, units); readout): {fault}")
    torch.manual_seed(options.seed)
    fresh = Reader(network.reader.hidden_size).eval()  # the one that `train` began with, if it was trained here
    print(f"{file}: answers {share_right(network, held):.1%} of {len(held[1])} images")
    return end(look(network, fresh, held, folder, file.name), folder)


if __name__ == "__main__":
    sys.exit(main())
