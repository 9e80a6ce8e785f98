"""What `ProbeTracker` costs: probes against scikit-learn's, against an epoch of training, and in a training run."""

import statistics
import tempfile
import time
import warnings

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from examples.digits import DigitReader, Digits, ink_so_far
from rnn_callbacks import ProbeTracker
from rnn_callbacks.analysis.concepts import read_concepts, split_sequences
from rnn_callbacks.analysis.discriminant import basis, fit_classes
from rnn_callbacks.analysis.logistic import fit_logistic
from rnn_callbacks.analysis.probe_fits import ProbeSettings
from rnn_callbacks.analysis.probes import probe
from rnn_callbacks.analysis.state_samples import StateSampler
from rnn_callbacks.analysis.unit_information import unit_information
from rnn_callbacks.capture import Recorder

TOKENS, STEPS, UNITS, LAYERS, BATCH = 12, 20, 128, 3, 64
TRAINED, FITTED, HELD = 10_000, 2000, 1000
STEPS_COMPARED = (3, 12, 19)
TASKS = ("mod4", "lag3", "runmax")  # what the network is trained for; the other concepts it is not


def concepts_of(tokens):
    """Five concepts of 2, 4, 12, 12 and 20 classes, one label for each step."""
    before = F.pad(tokens, (3, 0))[:, :-3]
    return {
        "up": (tokens > F.pad(tokens, (1, 0))[:, :-1]).long(),
        "mod4": tokens.cumsum(1) % 4,
        "lag3": before,
        "runmax": tokens.cummax(1).values,
        "pair": (tokens + 2 * F.pad(tokens, (1, 0))[:, :-1]) % 20,
    }


class Reader(nn.Module):
    """A stack of GRUs reads tokens and says three things of them at every step."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 32)
        self.rnn = nn.GRU(32, UNITS, LAYERS, batch_first=True)
        self.heads = nn.ModuleDict({name: nn.Linear(UNITS, TOKENS) for name in TASKS})

    def forward(self, tokens):
        states = self.rnn(self.embed(tokens))[0]
        return {name: head(states) for name, head in self.heads.items()}


def cpu(function, *arguments, **options):
    begin = time.process_time()
    found = function(*arguments, **options)
    return time.process_time() - begin, found


def train(model, tokens, optimizer):
    """One epoch."""
    for batch in tokens.split(BATCH):
        labels, told = concepts_of(batch), model(batch)
        loss = sum(F.cross_entropy(told[name].flatten(0, 1), labels[name].flatten()) for name in TASKS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def sampled(model, tokens):
    """States of all layers at all steps, as the callback takes them batch by batch."""
    sampler = StateSampler(STEPS, max_megabytes=1000)
    with Recorder(model, max_sequences=len(tokens)) as recorder, torch.no_grad():
        for batch in tokens.split(128):
            recorder.next_batch()
            model(batch)
            sampler.hear(recorder.take()["rnn"])
    return sampler.result()


def compare(samples, concepts, fitted):
    """Seconds of each engine and of scikit-learn at some sites, and differences in accuracy, by concept."""
    seconds = {"scikit-learn": 0.0, "logistic": 0.0}
    gaps = {"discriminant": {}, "logistic": {}}
    for site in [site for site in samples.states if site != "input"]:
        for step in STEPS_COMPARED:
            states = samples.states[site][:, step]
            for concept in concepts:
                codes = concept.at(samples, reverse=False)[:, step].astype(int)
                known = np.isin(codes, np.flatnonzero(np.bincount(codes[fitted]) >= 2))
                fit, test = fitted & known, ~fitted & known
                taken, accuracy = cpu(by_scikit_learn, states, codes, fit, test)
                seconds["scikit-learn"] += taken
                dense = np.unique(codes[fit], return_inverse=True)[1]
                base = basis(states[fit])
                (start,) = fit_classes(base, [dense])
                taken, probe_found = cpu(fit_logistic, base, dense, start=start)
                seconds["logistic"] += taken
                answer = np.unique(codes[fit])
                for engine, found in (("discriminant", start), ("logistic", probe_found)):
                    logits = base.standardised(states[test]) @ found.weights + found.offsets + found.log_priors
                    gap = (answer[logits.argmax(1)] == codes[test]).mean() - accuracy
                    gaps[engine].setdefault(concept.name, []).append(100 * gap)
    return seconds, gaps


def by_scikit_learn(states, codes, fit, test):
    scaler = StandardScaler().fit(states[fit])
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(states[fit]), codes[fit])
    return (model.predict(scaler.transform(states[test])) == codes[test]).mean()


def digits(callbacks, folder):
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=60, accelerator="cpu", logger=TensorBoardLogger(folder), callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(DigitReader(), Digits())


def rows():
    """(what, measured, aim), one after the other."""
    torch.manual_seed(0)
    tokens = torch.randint(TOKENS, (TRAINED, STEPS))
    probed = torch.randint(TOKENS, (FITTED + HELD, STEPS), generator=torch.Generator().manual_seed(1))
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for epoch in (1, 2):
        epoch_seconds, _ = cpu(train, model, tokens, optimizer)
        taken, samples = cpu(sampled, model, probed)
        yield (
            f"epoch {epoch} of {epoch_seconds:.1f} s: states of 3000 sequences / epoch",
            f"{taken / epoch_seconds:.1%}",
            "",
        )
        labels = concepts_of(probed)
        concepts = [read_concepts(name, {n: part.numpy() for n, part in enumerate(label.split(128))}, samples.rows)[0]
                    for name, label in labels.items()]  # fmt: skip
        fitted = split_sequences(concepts, 2 / 3)
        none = [np.full(samples.present.shape, -1)] * 2
        sites = [site for site in samples.states if site != "input"]
        bare = ProbeSettings(shuffles=1)
        alone, with_control = [], []
        for _ in range(3):
            alone.append(cpu(columns_only, samples, concepts, fitted, bare, sites, none)[0])
            with_control.append(cpu(columns_only, samples, concepts, fitted, bare, sites, None)[0])
        full, _ = cpu(probe, samples, concepts, fitted, sites=sites)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds, gaps = compare(samples, concepts, fitted)
        every = LAYERS * STEPS * len(concepts)
        share = every / (LAYERS * len(STEPS_COMPARED) * len(concepts))
        theirs, closed = seconds["scikit-learn"] * share, statistics.median(alone)
        yield (
            f"  {every} probes in closed form, CPU ({theirs:.0f} s by scikit-learn's logistic regression)",
            f"{closed:.2f} s, {theirs / closed:.0f} times less",
            "100 times",
        )
        yield (
            "  accuracy minus scikit-learn's, points: mean of each concept; worst site",
            spread(gaps["discriminant"]),
            "-1.4..0.8; 4.1",
        )
        yield (
            "  the same with a control for each / epoch",
            f"{statistics.median(with_control) / epoch_seconds:.1%}",
            "5 %",
        )
        yield (
            "  all that ProbeTracker does: + all steps together, 10 shuffles each / epoch",
            f"{full / epoch_seconds:.1%}",
            "",
        )
        yield (
            "  logistic engine (start not counted), times less than scikit-learn",
            f"{seconds['scikit-learn'] / seconds['logistic']:.1f}",
            "10 times",
        )
        yield (
            "  accuracy minus scikit-learn's, points: mean of each concept; worst site",
            spread(gaps["logistic"]),
            "worst 1.6",
        )
    states = samples.states["l2/hidden"][:FITTED, -2]
    codes = concepts[2].at(samples, reverse=False)[:FITTED, -2].astype(int)
    ours, mine = cpu(unit_information, states, codes)
    theirs, true = cpu(mutual_info_classif, states, codes, random_state=0)
    yield (
        "information of 128 units with 12 classes, 10 shuffles: times less than mutual_info_classif",
        f"{theirs / ours:.0f}",
        "33",
    )
    yield "  correlation with it", f"{np.corrcoef(mine.bits, true)[0, 1]:.4f}", "0.997"
    with tempfile.TemporaryDirectory() as folder:
        digits([], folder)
        tracker = ProbeTracker(concepts={"digit": 1, "ink": ink_so_far})
        taken, _ = cpu(digits, [tracker], folder)
        schedule = tracker._schedule
        training = taken - schedule.numbers.spent - schedule.figures.spent
        what = f"default ProbeTracker on digits, {taken:.0f} s, {tracker._looks} looks: share of time, numbers"
        yield what, f"{schedule.numbers.spent / training:.1%}", ""
        yield "  the same: pictures", f"{schedule.figures.spent / training:.1%}", ""


def columns_only(samples, concepts, fitted, settings, sites, types):
    """Without the probes of all steps together, which the prototype did not have."""
    from rnn_callbacks.analysis import probes

    questions = probes._ask(samples, concepts, settings, types, reverse=False)
    for site in sites:
        one = probes._Site(samples, site, concepts, questions, fitted, settings)
        for column in range(STEPS):
            one._read_column(column)


def spread(gaps):
    """Means over sites by concept, and the worst site."""
    means = [np.mean(values) for values in gaps.values()]
    return f"{min(means):+.1f}..{max(means):+.1f}; {min(min(v) for v in gaps.values()):+.1f}"
