"""Runs made of known numbers, without training: what a page must show is known to the last digit."""

import numpy as np

from rnn_callbacks.compare import Run, compare
from rnn_callbacks.compare.embeddings import JointEmbedding
from rnn_callbacks.compare.runs import LookFile
from rnn_callbacks.compare.series import Series
from rnn_callbacks.report import Report, save

PLACE = "reader.l0"
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1$ _{^ & &amp; 'quoted'",
    "right\u202eto left\u200f \x07\x1b[31m line\nbreak \ud800 lone",
    "https://evil.example/x.js " + "endless" * 700,
    "",
)


def series(values, *, per_epoch=1, first=0):
    """Values of epoch after epoch."""
    values = np.asarray(values, float)
    steps = first + np.arange(len(values)) * 5
    return Series(
        steps.astype(np.int64), values, 1e9 + steps.astype(float), (np.arange(len(values)) // per_epoch) * 1.0
    )


def run(name, folder="/nowhere", *, seed=0, cell="gru", level=0.0, epochs=6, **tags):
    noise = np.random.default_rng(seed).normal(size=epochs) * 0.01
    fall = np.exp(-np.arange(epochs) / 2)
    found = {
        "val_loss": series(fall + 0.2 + level + noise),
        f"gates/{PLACE}/retention/mean": series(0.4 + level + noise),
        f"gates/{PLACE}/timescale/q50": series(2.0 * np.exp(level + noise + np.linspace(0, 2, epochs))),
        f"gates/{PLACE}/flags/frozen": series(np.arange(epochs) >= epochs - 2),
        f"gates/{PLACE}/flags/blown_up": series(np.zeros(epochs)),
        "gradient_flow/total/clipped": series(np.zeros(epochs)),
    }
    return Run(name, str(folder), found | tags, {"cell": cell, "seed": seed})


def runs_of(seeds=3, cells=("gru", "lstm"), **options):
    return [
        run(f"{cell}_{seed}", seed=seed + 100 * place, cell=cell, level=0.3 * place, **options)
        for seed in range(seeds)
        for place, cell in enumerate(cells)
    ]


def comparison_of(runs, **options):
    return compare(runs, **options)


def add_looks(found, folder, epochs, *, shift=0.0, kinds=("attractor", "saddle"), units=5, place="reader"):
    """Looks at fixed points, on disk as a callback leaves them."""
    for number, epoch in enumerate(epochs):
        eigenvalues = np.linspace(0.1, 0.9 + shift, len(kinds) * units).reshape(len(kinds), units) + 0.1j * number
        states = np.random.default_rng(number).normal(size=(len(kinds), units))
        base = f"fixed_points/{place}/zero"
        arrays = {
            f"{base}/states": states,
            f"{base}/eigenvalues": eigenvalues,
            f"{base}/kind": np.array(kinds, dtype="<U9"),
            f"{base}/ids": np.arange(len(kinds)),
        }
        path = str(folder / f"{len(found.looks)}-{epoch}-{shift}.npz")
        save(Report({}, arrays), path, epoch=epoch, step=epoch * 5)
        found.looks.setdefault("fixed_points", []).append(LookFile(path, epoch, epoch * 5, 1))
    return found


def embedding_of(count, points=4, *, phate=True):
    rng = np.random.default_rng(3)
    where = rng.normal(size=(count * points, 2))
    runs, epochs = np.repeat(np.arange(count), points), np.tile(np.arange(points) - 1.0, count)
    nothing = np.zeros((0, 2))
    return JointEmbedding(
        "weights", runs, epochs, where, np.array([0.6, 0.2]), 2 * where if phate else nothing,
        "" if phate else "too few points", {},
    )  # fmt: skip
