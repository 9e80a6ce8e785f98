"""Lightning's command line: every setting in YAML, functions by import path, and the presets on a file of one's own."""

import inspect
import json
import re
import runpy
import sys
import typing
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml

import rnn_callbacks
from rnn_callbacks.callbacks.base import EpochCallback
from rnn_callbacks.callbacks.schedule import Schedule

from .models import Classifier, first_inputs, first_sign, half_of_sequence, loader, running_sum

pytest.importorskip("jsonargparse")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # LightningCLI's own use of jsonargparse
    "ignore:LightningCLI's args parameter",  # pytest has arguments of its own
)

ROOT = Path(__file__).parent.parent
CALLBACKS = [getattr(rnn_callbacks, name) for name in rnn_callbacks.__all__]
PRESETS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if not (ROOT / "examples" / f"{p.stem}.py").exists())
called = set()


def remember_calls(name, function):
    return lambda batch: (called.add(name), function(batch))[1]


phases = remember_calls("phases", half_of_sequence)
held = remember_calls("held", first_inputs)
colours = remember_calls("colours", lambda batch: batch[1])
types = remember_calls("types", first_sign)
probed = remember_calls("probed", running_sum)
drawn = remember_calls("drawn", running_sum)

# What YAML can say of each parameter, in all its forms; the first is no callback's default.
FORMS = {
    "module": ["encoder.rnn", ["encoder.rnn"], ["encoder.rnn", "decoder"]],  # each another, or Lightning refuses them
    "phases": [f"{__name__}.phases"],
    "contexts": ["mean", ["zero", "mean"], {"silence": "zero", "held": [1.0, 0.5, -2.0], "first": f"{__name__}.held"}],
    "labels": [f"{__name__}.colours"],
    "concepts": [{"target": 1, "key": "digit", "sum": f"{__name__}.probed"}],
    "required": [{"target": 0.9}],
    "control_types": [f"{__name__}.types", 1, "digit"],
    "flags": [{"frozen": 3.5, "nonfinite": None}, {}],
    "ablate": ["mean", "zero", "one"],
    "slow_points": [True],
    "basins": [True],
    "max_starts": [17],
    "max_seconds": [2.5],
    "steps": [5, [0, 3, -1]],
    "engine": ["logistic", "discriminant"],
    "shuffles": [3],
    "description_length": [True],
    "causal": [True],
    "embedding": ["pca", "phate"],
    "embed_every_n_epochs": [13],
    "embed_states": [19],
    "snapshot_every_n_steps": [23],
    "monitor": ["val_loss"],
    "mode": ["max", "min"],
    "storage": ["sketch", "exact", "auto"],
    "loss_plane": [5],
    "loss_plane_batches": [2],
    "seed": [29],
    "max_megabytes": [31.5],
    "observe": ["train", "validation"],
    "every_n_epochs": [2],
    "figure_every_n_epochs": [11],
    "max_overhead": [0.25],
    "max_sequences": [37],
    "on_error": ["raise", "warn"],
    "summary": [False],
}

every_callback = pytest.mark.parametrize("callback", CALLBACKS, ids=lambda c: c.__name__)


class Pupil(Classifier):
    def __init__(self, family: str = "gru") -> None:
        super().__init__(family)


class Lessons(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(shuffle=True)

    def val_dataloader(self):
        return loader(seed=1)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """What `LightningCLI(Pupil, Lessons)` makes of files, each a dict or a path, and of options between them."""
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])

    def build(*given, run=False):
        arguments = ["fit"] if run else []
        for number, part in enumerate(given):
            if isinstance(part, dict):
                (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(part, sort_keys=False))
                part = tmp_path / f"{number}.yaml"
            arguments += [part] if isinstance(part, str) else ["--config", str(part)]
        return LightningCLI(Pupil, Lessons, seed_everything_default=False, args=arguments, run=run)

    return build


def watching(*entries, **options):
    """A configuration with callbacks, each a class and its settings."""
    callbacks = [{"class_path": f"rnn_callbacks.{kind.__name__}", "init_args": told} for kind, told in entries]
    return {"trainer": {"accelerator": "cpu", "logger": False, "callbacks": callbacks} | options}


def ours(cli):
    return [callback for callback in cli.trainer.callbacks if isinstance(callback, EpochCallback)]


def names(cli):
    """Of the callbacks in a configuration."""
    return [entry.class_path.rpartition(".")[2] for entry in cli.config.trainer.callbacks]


def settings(callback):
    """Names of a constructor's parameters with (default, whether None is allowed)."""
    hints = typing.get_type_hints(callback.__init__)
    parameters = inspect.signature(callback).parameters.values()
    return {p.name: (p.default, p.default is None or type(None) in typing.get_args(hints[p.name])) for p in parameters}


def strictly(value):
    """A value as text, in which 1, 1.0, true and "1" differ."""
    return json.dumps(value)


# ---- every setting of every callback ---------------------------------------------------------------------------------


@every_callback
def test_every_setting_can_be_said_in_yaml(cli, callback):
    known = settings(callback)
    unknown = sorted(known.keys() - FORMS.keys())
    assert not unknown, f"{callback.__name__}: say in FORMS what YAML can say of {', '.join(unknown)}"
    for name, (default, _) in known.items():
        assert strictly(FORMS[name][0]) != strictly(default), f"{name}: the first form is {callback.__name__}'s default"
    wanted = [
        {name: FORMS[name][min(number, len(FORMS[name]) - 1)] for name in known}
        for number in range(max(len(FORMS[name]) for name in known))
    ]
    wanted.append({name: None for name, (_, optional) in known.items() if optional})
    built = cli(watching(*((callback, told) for told in wanted)))
    heard = ours(built)
    assert [type(one) for one in heard] == [callback] * len(wanted)
    for one, told in zip(heard, wanted, strict=True):
        for name, value in told.items():
            assert strictly(getattr(one, name)) == strictly(value), name
        for name in known.keys() - told.keys():
            assert getattr(one, name) == known[name][0], name

    # What Lightning writes beside the run says all of it, and means the same when it is read again.
    written = yaml.safe_load(built.parser.dump(built.config, skip_none=False))
    for entry, told in zip(written["trainer"]["callbacks"], wanted, strict=True):
        assert entry["class_path"] == f"rnn_callbacks.{callback.__name__}"
        assert entry["init_args"] == {name: default for name, (default, _) in known.items()} | told
    again = cli(written)
    assert yaml.safe_load(again.parser.dump(again.config, skip_none=False)) == written


@every_callback
@pytest.mark.parametrize(
    ("mistake", "named"),
    [({"every_epoch": 1}, "Option 'every_epoch' is not accepted"), ({"on_error": "ignore"}, '"on_error"')],
    ids=["misspelt", "no such choice"],
)
def test_a_mistake_in_yaml_is_named(cli, capsys, callback, mistake, named):
    with pytest.raises(SystemExit):
        cli(watching((callback, mistake)))
    said = capsys.readouterr().err
    assert f"rnn_callbacks.{callback.__name__}" in said
    assert named in said
    if "on_error" in mistake:
        assert "'warn', 'raise'" in said


def test_help_shows_what_the_docstring_says(cli, capsys):
    for callback in CALLBACKS:
        with pytest.raises(SystemExit):
            cli(f"--trainer.callbacks.help=rnn_callbacks.{callback.__name__}")
        said = " ".join(capsys.readouterr().out.split())
        arguments = inspect.getdoc(callback).partition("Args:\n")[2].partition("\n\n")[0]
        told = dict(re.findall(r"^ {4}(\w+): (.{1,40})", arguments, re.MULTILINE))
        assert told.keys() == settings(callback).keys()
        for name, begins in told.items():
            assert f"--trainer.callbacks.{name} " in said
            assert begins in said, name


def test_short_names_are_understood_where_a_callback_was_imported(cli):
    from rnn_callbacks import GateMonitor

    (one,) = ours(cli({"trainer": {"accelerator": "cpu", "callbacks": [{"class_path": "GateMonitor"}]}}))
    assert type(one) is GateMonitor


def test_functions_that_yaml_names_are_called(cli):
    named = {
        "GateMonitor": {"phases": "phases"},
        "FixedPointTracker": {"contexts": {"first": "held"}, "labels": "colours"},
        "ProbeTracker": {"concepts": {"sum": "probed"}, "control_types": "types"},
        "RepresentationTracker": {"concepts": {"sum": "drawn"}},
    }

    def path(told):
        return {name: path(value) for name, value in told.items()} if isinstance(told, dict) else f"{__name__}.{told}"

    often = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"}
    quiet = dict.fromkeys(["enable_progress_bar", "enable_model_summary", "enable_checkpointing"], False)
    called.clear()
    told = [(getattr(rnn_callbacks, kind), path(functions) | often) for kind, functions in named.items()]
    cli(watching(*told, max_epochs=1, limit_train_batches=1, log_every_n_steps=1, **quiet), run=True)
    assert called == {"phases", "held", "colours", "probed", "types", "drawn"}


# ---- presets ---------------------------------------------------------------------------------------------------------

OWN = {
    "trainer": {
        "accelerator": "cpu",
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "val_loss"}},
            {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "patience": 7}},
        ],
    }
}
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)


def test_what_is_no_example_is_a_preset():
    assert [path.stem for path in PRESETS] == ["default", "economy", "full"]


@every_preset
def test_a_preset_adds_to_the_callbacks_of_the_file_before_it(cli, preset):
    told = yaml.safe_load(preset.read_text())
    assert list(told) == ["trainer"]
    assert list(told["trainer"]) == ["callbacks+"]  # nothing else of a user's run is touched
    wanted = [entry["class_path"].removeprefix("rnn_callbacks.") for entry in told["trainer"]["callbacks+"]]
    assert set(wanted) <= set(rnn_callbacks.__all__)
    if preset.stem != "economy":
        assert sorted(wanted) == rnn_callbacks.__all__

    own = ["ModelCheckpoint", "EarlyStopping"]
    built = cli(OWN, preset)
    assert names(built) == [*own, *wanted]
    assert built.trainer.early_stopping_callback.patience == 7


def test_the_default_preset_has_no_settings_and_the_economical_one_a_single_budget():
    default, economy, _ = (yaml.safe_load(preset.read_text())["trainer"]["callbacks+"] for preset in PRESETS)
    assert all(entry.keys() == {"class_path"} for entry in default)
    assert [entry["init_args"]["max_overhead"] for entry in economy] == [0.01] * 3


@every_preset
@pytest.mark.filterwarnings("ignore:.*, flag no_attractor")  # true of some networks that have learned nothing
def test_a_preset_runs_in_the_place_of_an_example_s_callbacks(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which Lightning leaves behind
    monkeypatch.delitem(sys.modules, "examples.memory", raising=False)  # or runpy warns of a second one
    if preset.stem == "default":  # its pictures are drawn by what draws those of the full one
        monkeypatch.setattr(Schedule, "figure_is_due", lambda self, epoch, *, last: False)
    stacked = ["--config", str(ROOT / "configs" / "memory.yaml"), "--trainer.callbacks=null", "--config", str(preset)]
    small = ["--trainer.max_epochs=1", "--data.sequences=64", "--model.units=3", "--trainer.enable_progress_bar=false"]
    monkeypatch.setattr(sys, "argv", ["memory", "fit", *stacked, *small])
    runpy.run_module("examples.memory", run_name="__main__", alter_sys=True)
    nouns = {entry["class_path"] for entry in yaml.safe_load(preset.read_text())["trainer"]["callbacks+"]}
    nouns = {getattr(rnn_callbacks, path.rpartition(".")[2]).noun for path in nouns}
    (folder,) = tmp_path.rglob("rnn_callbacks")
    assert {path.name for path in folder.iterdir()} == nouns
    for noun in nouns:
        assert len(list((folder / noun).glob("*.npz"))) == 1, noun
        drawn = preset.stem == "full" and noun != "weight_trajectory"  # one snapshot is no path
        assert bool(list((folder / noun).rglob("*.png"))) == drawn, noun
