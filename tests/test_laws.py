"""What holds for every exported callback; a new one joins by being exported."""

import ast
import copy
import inspect
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

import rnn_callbacks
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load

from .models import Attentive, Classifier, StepClassifier, first_inputs, first_sign, half_of_sequence, running_sum

PACKAGE = Path(rnn_callbacks.__file__).parent
CALLBACKS = [getattr(rnn_callbacks, name) for name in rnn_callbacks.__all__]
# Everything a callback can be asked to do, so that no tag and no side effect stays unseen.
FULL = {
    "GateMonitor": {"phases": half_of_sequence, "ablate": "mean", "flags": {"update_mean_below": 0.1}},
    "FixedPointTracker": {
        "contexts": {"mean": "mean", "first": first_inputs},
        "slow_points": True,
        "basins": True,
    },
    "GradientFlowMonitor": {"flags": {"vanishing": 0.2}},
    "ProbeTracker": {
        "concepts": {"target": 1, "sum": running_sum},
        "required": {"target": 0.0},
        "control_types": first_sign,
        "description_length": True,
        "causal": True,
    },
    "RepresentationTracker": {"concepts": {"target": 1, "sum": running_sum}, "embed_every_n_epochs": 1},
    "WeightTrajectoryLogger": {"snapshot_every_n_steps": 2, "loss_plane": 3, "flags": {"wandering": 0.9}},
}

every_callback = pytest.mark.parametrize("callback", CALLBACKS, ids=lambda c: c.__name__)


# Settings that do not fit every family or every kind of batch.
LEFT_OUT = {
    "GateMonitor": {"rnn": {"flags", "ablate"}, "lstm": {"flags"}, "any": {"flags"}, "train": {"ablate"}},
    "FixedPointTracker": {},
    "GradientFlowMonitor": {},
    "ProbeTracker": {"train": {"causal"}},
    "RepresentationTracker": {},
    "WeightTrajectoryLogger": {},
}
REFUSED = {"FixedPointTracker": {"packed bidirectional": "is bidirectional"}}


def chooses_batches(callback):
    """Whether a callback can listen to validation batches; gradients only come back in training."""
    return "observe" in inspect.signature(callback).parameters


def full(callback, *situations, pictures=False, **options):
    """A callback that does all it can at every epoch, pictures at every second if asked for: they take longest."""
    left_out = set().union(*(LEFT_OUT[callback.__name__].get(situation, ()) for situation in situations))
    settings = {key: value for key, value in FULL[callback.__name__].items() if key not in left_out}
    period = 2 if pictures else 1000
    return callback(every_n_epochs=1, figure_every_n_epochs=period, on_error="raise", **settings | options)


# ---- 1. watching does not disturb ------------------------------------------------------------------------------------


def everything_after(trainer):
    """Weights, buffers, optimizer state, random states, modes and hooks, as one comparable list."""
    model = trainer.lightning_module
    state = [t.clone() for t in model.state_dict().values()]
    for optimizer in trainer.optimizers:
        for slots in optimizer.state.values():
            state += [slot.clone() for slot in slots.values() if isinstance(slot, torch.Tensor)]
    state += [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))]  # noqa: NPY002
    state.append(torch.tensor(random.getstate()[1], dtype=torch.int64))
    facts = [np.random.get_state()[2]]  # noqa: NPY002 (the state changes with every 624th number, the place in it with each)
    facts += [(p.requires_grad, p.grad is None) for p in model.parameters()]
    facts += [m.training for m in model.modules()]
    facts += [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    facts += [sorted(m.__dict__) for m in model.modules()]
    return state, facts


class Draws(pl.Callback):
    """Uses the global generators as a user's code may, so that a disturbed one changes the run."""

    def on_train_epoch_end(self, trainer, pl_module):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002


SITUATIONS = {
    "plain": {"max_epochs": 3},  # drawn after the second, between two that train
    "dropout": {"model": lambda: Classifier("lstm", layers=2, dropout=0.3)},
    "accumulation and clipping": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "packed bidirectional": {"model": lambda: Classifier("gru", packed=True, bidirectional=True)},
    "cell loop": {"model": StepClassifier},
    "frozen part": {"model": lambda: frozen()},
}


unwatched = {}  # runs, by situation


def frozen():
    model = Classifier()
    model.norm.eval().requires_grad_(False)
    return model


# Each callback alone; all together, listening to validation, meet many more in the gauntlet.
ALONE = {
    "validation": ("plain", "cell loop"),
    "train": ("accumulation and clipping", "dropout", "packed bidirectional", "frozen part"),
    None: ("plain", "dropout", "cell loop"),
}


@pytest.mark.parametrize(
    ("name", "callback", "observe"),
    [
        (name, c, observe)
        for c in CALLBACKS
        for observe in (["validation", "train"] if chooses_batches(c) else [None])
        for name in ALONE[observe]
    ],
)
@pytest.mark.filterwarnings(
    "ignore:total, flag (dead|unmoved).* encoder.rnn.weight_hh_l0_reverse"
)  # true: see `Classifier`
def test_a_watched_run_ends_bit_identical_to_an_unwatched_one(fit, callback, observe, name):
    situation = SITUATIONS[name]
    options = {key: value for key, value in situation.items() if key != "model"}
    make = situation.get("model", Classifier)

    def run(*callbacks):
        pl.seed_everything(3, verbose=False)
        return everything_after(fit(*callbacks, Draws(), model=make(), **options))

    drawn = name == "plain"  # the loader shuffles, so that a picture that draws lots would show in the weights
    watcher = full(callback, "any", observe, pictures=drawn, **({"observe": observe} if observe else {}))
    if name in REFUSED.get(callback.__name__, {}):
        with pytest.raises(MisconfigurationException, match=REFUSED[callback.__name__][name]):
            run(watcher)
        return
    if name not in unwatched:  # the same for every callback
        unwatched[name] = run()
    state, facts = unwatched[name]
    watched_state, watched_facts = run(watcher)
    assert facts == watched_facts
    assert len(state) == len(watched_state)
    assert all(torch.equal(a, b) for a, b in zip(state, watched_state, strict=True))


@every_callback
def test_the_model_can_be_copied_and_saved_at_every_moment_of_a_watched_run(fit, callback, tmp_path):
    class Copies(pl.Callback):
        copies = 0

        def keep(self, trainer, pl_module):
            copy.deepcopy(pl_module)
            trainer.save_checkpoint(tmp_path / "any.ckpt")
            torch.load(tmp_path / "any.ckpt", weights_only=True)
            self.copies += 1

        def on_validation_batch_end(self, trainer, pl_module, *args):
            copy.deepcopy(pl_module)

        on_validation_end = on_train_epoch_end = keep

    copies = Copies()
    fit(full(callback), copies)
    assert copies.copies >= 4


# ---- 2. imports go down ----------------------------------------------------------------------------------------------

# Within the ground floor there is an order too: equations, then what was heard, who listens, and what is rebuilt.
GROUND = ["cells", "tape", "crossing", "boundary", "hooks", "snapshot", "capture", "rebuild"]
FLOORS = dict.fromkeys(GROUND, 0) | {"analysis": 1, "figures": 2, "report": 2, "weight_snapshots": 2}
FLOORS |= {"sinks": 3, "compare": 3, "callbacks": 4, "replay": 5}
OUTSIDE = {  # what each floor may import of others, beside the standard library
    0: {"torch"},
    1: {"torch", "numpy", "scipy", "sklearn", "phate"},
    2: {"numpy", "matplotlib", "fsspec"},
    3: {"lightning", "numpy", "matplotlib", "fsspec", "PIL", "tensorboard", "scipy", "torch", "yaml", "rich", "wandb"},
    4: {"lightning", "torch", "numpy", "fsspec"},
    5: {"lightning", "torch", "jsonargparse", "yaml"},
}


def imported(source, depth):
    """(own top-level names, foreign top-level names) that a module imports, ``depth`` folders below the package."""
    own, foreign = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            foreign |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            foreign.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return own, foreign - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if home in ("__init__", "__main__"):
        return
    own, foreign = imported(path.read_text(), len(path.relative_to(PACKAGE).parts))
    assert foreign <= OUTSIDE[FLOORS[home]]
    if home in GROUND:
        assert all(other in GROUND[: GROUND.index(home)] for other in own)
    else:
        assert all(FLOORS[other] < FLOORS[home] or other == home for other in own)


def test_the_reader_of_imports_sees_every_form():
    source = (
        "import lightning.x\nfrom .callbacks import base\nfrom . import sinks\ndef f():\n    from numpy import array"
    )
    assert imported(source, depth=1) == ({"callbacks", "sinks"}, {"lightning", "numpy"})
    assert imported("from ..report import save\nfrom .style import say", depth=2) == ({"report"}, set())


def test_numbers_and_pictures_import_without_lightning():
    names = ["cells", "capture", "rebuild", "report", "weight_snapshots"]
    names += [
        f"{floor}.{p.stem}" for floor in ("analysis", "figures", "compare") for p in (PACKAGE / floor).glob("[a-z]*.py")
    ]
    code = "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
    code += "".join(f"import rnn_callbacks.{name}\n" for name in names)
    code += "import examples.checkpoint\n"  # the example of what can be done so
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


# ---- 3. tags in the docstring are the tags that are logged -----------------------------------------------------------


BESIDE = {"RepresentationTracker": {"attentive": Attentive}}  # what single layers do not show


def documented(callback):
    """Patterns of the tags in a callback's docstring."""
    tags = re.findall(r"^\s*- `([^`]+)`:", callback.__doc__, re.MULTILINE)
    assert tags
    holes = {"module": r"[\w.]+", "cell": r"(?:l\d+(?:_reverse)?|cell)", "flag": r"\w+"}
    holes |= {"context": "(?:mean|first)", "place": r"[\w.]+"}
    holes |= {"state": "(?:hidden|memory)", "concept": "(?:target|sum)"}
    holes |= {"parameter": r"[\w.]+", "part": "(?:input|forget|output|reset|update|cell|new|hidden)"}
    holes |= {"gate": "(?:input|forget|output|reset|update)", "candidate": "(?:cell|new|hidden)"}
    holes |= {"attention": "attention", "head": r"head\d"}
    return {tag: re.compile(re.sub(r"\\\{(\w+)\\\}", lambda m: holes[m[1]], re.escape(tag))) for tag in tags}


@every_callback
def test_documented_tags_are_logged_and_logged_tags_are_documented(fit, callback):
    logged = set()
    for family, model in {
        **dict.fromkeys(("gru", "lstm", "rnn"), Classifier),
        **BESIDE.get(callback.__name__, {}),
    }.items():
        trainer = fit(full(callback, family), model=model(family) if model is Classifier else model())
        logged |= {tag for tag in trainer.callback_metrics if tag.startswith(callback.noun)}
    patterns = documented(callback)
    for tag in logged:
        assert any(pattern.fullmatch(tag) for pattern in patterns.values()), f"{tag} is not documented"
    for tag, pattern in patterns.items():
        assert any(map(pattern.fullmatch, logged)), f"{tag} is documented and never logged"


@every_callback
def test_every_look_logs_the_same_tags(fit, callback):
    fit(full(callback), max_epochs=3)
    looks = saved_looks(fit, callback)
    assert len(looks) == 3
    assert len({frozenset(look.report.scalars) for look in looks}) == 1


# ---- 4. what is saved loads back equal -------------------------------------------------------------------------------


def saved_looks(fit, callback):
    """Every look of the latest run, oldest first."""
    run = sorted(fit.logs.glob("version_*"))[-1]
    return [load(str(path)) for path in sorted((run / "rnn_callbacks" / callback.noun).glob("*.npz"))]


@every_callback
def test_what_is_saved_loads_back_equal_to_what_was_logged(fit, callback):
    trainer = fit(full(callback))
    last = saved_looks(fit, callback)[-1]
    logged = {tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith(callback.noun)}
    # Lightning keeps metrics in float32.
    assert last.report.scalars == pytest.approx(logged, rel=1e-6, abs=1e-12)
    assert (last.epoch, last.step) == (1, trainer.global_step - 1)
    assert last.report.arrays
    assert all(np.isfinite(array).all() for array in last.report.arrays.values() if array.dtype.kind == "f")


# ---- 5. misuse is said before training starts ------------------------------------------------------------------------


class Feedforward(Classifier):
    def __init__(self):
        super().__init__()
        self.encoder.rnn = nn.Identity()


MISUSE = {
    "unknown module": ({"module": "encoder.lstm"}, {}, "'encoder.lstm'; this model has: encoder.rnn"),
    "one of two unknown": ({"module": ["encoder.rnn", "no"]}, {}, "is called 'no'"),
    "no recurrent module": ({}, {"model": Feedforward}, "found no recurrent module in Feedforward"),
    "no validation loader": ({}, {"validate": []}, 'observe="train"'),
    "no validation batches": ({}, {"limit_val_batches": 0}, "limit_val_batches above 0"),
    "period of zero": ({"every_n_epochs": 0}, {}, "every_n_epochs must be a whole number from 1 or None, got 0"),
    "half a sequence": ({"max_sequences": 0.5}, {}, "max_sequences must be a whole number from 1, got 0.5"),
    "pictures never": ({"figure_every_n_epochs": -1}, {}, "figure_every_n_epochs must be"),
    "more than all the time": ({"max_overhead": 5}, {}, "max_overhead must be a share"),
    "true is no number": ({"max_overhead": True}, {}, "max_overhead must be a share"),
    "unknown observation": ({"observe": "test"}, {}, "observe must be one of 'validation', 'train', got 'test'"),
    "half a summary": ({"summary": "yes"}, {}, "summary must be one of True, False, got 'yes'"),
    "unknown reaction": ({"on_error": "ignore"}, {}, "on_error must be one of 'warn', 'raise', got 'ignore'"),
}


NEEDS_VALIDATION = ("no validation loader", "no validation batches", "unknown observation")


@pytest.mark.parametrize(
    ("callback", "mistake"),
    [(c, m) for c in CALLBACKS for m in MISUSE if set(MISUSE[m][0]) <= set(inspect.signature(c).parameters)
     and (chooses_batches(c) or m not in NEEDS_VALIDATION)],
)  # fmt: skip
def test_misuse_is_said_before_training_starts(fit, callback, mistake):
    settings, run, message = MISUSE[mistake]

    class NoStep(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            raise AssertionError("training started")

    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        fit(callback(**settings), NoStep(), **run)


# ---- 6. an analysis that raises leaves the run intact ----------------------------------------------------------------


@every_callback
def test_a_failing_analysis_is_said_once_counted_and_changes_nothing(fit, callback, monkeypatch):
    calls, analyse = [], callback.analyse

    def broken(self, look):
        calls.append(look.epoch)
        torch.rand(1)
        return analyse(self, look) if look.epoch < 1 else 1 / 0

    state, _ = everything_after(fit(max_epochs=4))
    monkeypatch.setattr(callback, "analyse", broken)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer = fit(callback(every_n_epochs=1, figure_every_n_epochs=1000), max_epochs=4)
    said = [str(w.message) for w in heard if issubclass(w.category, RecurrentHealthWarning)]
    assert calls == [0, 1, 2, 3]
    assert len(said) == 1
    assert "ZeroDivisionError" in said[0]
    assert "in broken" in said[0]  # the traceback names where it happened
    assert trainer.callback_metrics[f"{callback.noun}/failed_looks"] == 3
    assert all(torch.equal(a, b) for a, b in zip(state, everything_after(trainer)[0], strict=True))


@every_callback
def test_a_failing_analysis_stops_the_run_where_that_was_asked_for(fit, callback, monkeypatch):
    monkeypatch.setattr(callback, "analyse", lambda self, look: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(callback(on_error="raise"))
