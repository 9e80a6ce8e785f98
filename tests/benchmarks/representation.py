"""What `RepresentationTracker` costs: CKA, clusters, PHATE, and in a training run."""

import statistics
import tempfile
import time

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from scipy.spatial.distance import pdist, squareform

from examples.digits import DigitReader, Digits
from rnn_callbacks import RepresentationTracker
from rnn_callbacks.analysis.cka import cka, fingerprint, geometry
from rnn_callbacks.analysis.phate_embedding import phate_embedding
from rnn_callbacks.analysis.step_clusters import step_clusters
from rnn_callbacks.callbacks.representation_history import SiteHistory

SEQUENCES, STEPS, UNITS = 256, 16, 512


def cpu(function, *arguments, **options):
    begin = time.process_time()
    function(*arguments, **options)
    return time.process_time() - begin


def median(make, function, repeats=5):
    """CPU seconds of a function of something that is made anew each time."""
    return statistics.median(cpu(function, *make()) for _ in range(repeats))


def gram_cka(one, other):
    """The same from N x N matrices."""

    def centred(states):
        products = states @ states.T
        np.fill_diagonal(products, 0.0)
        n, sums = len(states), products.sum(0)
        products -= sums[:, None] / (n - 2) + sums[None, :] / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(products, 0.0)
        return products

    a, b = centred(one), centred(other)
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def walks(count, steps, units, generator):
    """States of sequences that go four ways."""
    ways = generator.normal(size=(4, units))
    moves = 0.3 * generator.normal(size=(count, steps, units)) + 0.1 * ways[np.arange(count) % 4][:, None]
    return np.tanh(0.3 * moves.cumsum(1)).reshape(-1, units)


def training(**options):
    """Seconds of a run of the demo, and the callback's own count of what it spent."""
    with tempfile.TemporaryDirectory() as folder:
        pl.seed_everything(0, verbose=False)
        callback = RepresentationTracker(**options)
        trainer = pl.Trainer(
            max_epochs=60, accelerator="cpu", logger=TensorBoardLogger(folder), callbacks=[callback],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(DigitReader("gru"), Digits())
        schedule = callback._schedule
        return schedule.training_seconds, schedule.numbers.spent, schedule.figures.spent, callback._looks


def rows():
    generator = np.random.default_rng(0)
    many = [generator.normal(size=(5000, UNITS)).astype(np.float32) for _ in range(2)]
    known = geometry(many[1])
    cka(known, known)
    ours = median(lambda: (geometry(many[0]), known), cka)
    theirs = cpu(gram_cka, *many)
    yield f"CKA of 5000 states with known others, {UNITS} units, CPU", f"{ours:.3f} s", "<= 0.1 s"
    yield "the same from N x N matrices / ours", f"{theirs / ours:.0f} times", ""

    states = generator.normal(size=(SEQUENCES, STEPS, UNITS)).astype(np.float32)
    taken = median(lambda: (geometry(states),), fingerprint)
    yield f"fingerprint of {SEQUENCES * STEPS} states, from which all comparisons follow", f"{taken:.3f} s", "<= 0.1 s"

    history, print_ = SiteHistory({}), fingerprint(geometry(states))
    history.untrained = history.latest = print_.astype(np.float16)
    for epoch in range(100):
        history.add_print(epoch, print_)
        history.add_scene(epoch, np.zeros((10, STEPS, UNITS), np.float16))
    yield "memory of 100 looks at one layer of 512 units", f"{history.nbytes / 2**20:.1f} MB", "<= 50 MB"

    for count in (480, 1000):
        distances = squareform(pdist(walks(count // 20, 20, 64, generator)))
        phate_embedding(distances)
        taken = statistics.median(cpu(phate_embedding, distances) for _ in range(3))
        yield f"PHATE of {count} states, CPU", f"{taken:.2f} s", "<= 3 s" if count == 1000 else ""

    clouds = generator.normal(size=(SEQUENCES, 9, 64))
    step_clusters(clouds, np.ones(clouds.shape[:2], bool))
    taken = statistics.median(cpu(step_clusters, clouds, np.ones(clouds.shape[:2], bool)) for _ in range(3))
    yield "clusters at 9 steps, CPU", f"{taken:.2f} s", ""

    spent, numbers, figures, looks = training(embedding=None)
    yield (
        f"default callback, {looks} looks in a training of {spent:.0f} s, without figures",
        f"{numbers / spent:.1%}",
        "<= 1 %",
    )
    yield "its figures without embeddings", f"{figures / spent:.1%} ({figures:.1f} s)", ""
    spent, _, figures, _ = training()
    yield "its figures with PHATE, the import included", f"{figures / spent:.1%} ({figures:.1f} s)", ""
