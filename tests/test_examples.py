"""The examples in a small size, run as a user runs them."""

import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from examples import digits, flip_flop, memory
from rnn_callbacks import FixedPointTracker
from rnn_callbacks.report import load

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_digits_trains_and_tells_what_was_seen(cell, tmp_path, capsys, monkeypatch):
    if cell == "rnn":  # its pictures are drawn by what draws those of the other
        for callback in (digits.GateMonitor, digits.ProbeTracker, digits.WeightTrajectoryLogger):
            monkeypatch.setattr(digits, callback.__name__, partial(callback, figure_every_n_epochs=99))
    trainer = digits.main(["--cell", cell, "--epochs", "3", "--images", "300", "--logs", str(tmp_path)])
    said = capsys.readouterr().out
    assert re.search(r"accuracy on unseen images +\d+\.\d%", said)
    assert re.search(r"time spent watching +\d+% of the training time", said)
    assert ("memory of the median unit" in said) == (cell != "rnn")
    assert f"tensorboard --logdir {tmp_path / 'lightning_logs'}" in said
    files = sorted(Path(trainer.log_dir, "rnn_callbacks", "gates").glob("*.npz"))
    assert {load(str(path)).epoch for path in files} >= {0, 2}


def test_flip_flop_finds_what_is_known(tmp_path, capsys, monkeypatch):
    def sparing(**asked):
        assert asked["every_n_epochs"] == asked["figure_every_n_epochs"] == 1  # which takes a test too long
        return FixedPointTracker(**asked | {"every_n_epochs": 4, "figure_every_n_epochs": 8})

    monkeypatch.setattr(flip_flop, "FixedPointTracker", sparing)
    trainer = flip_flop.main(["--epochs", "16", "--logs", str(tmp_path)])
    said = capsys.readouterr().out
    assert re.search(r"epoch +\d+: .*appeared", said)
    assert re.search(r"found +8 +12 +6 +1\n", said)
    assert "=> as known" in said
    assert f"tensorboard --logdir {tmp_path / 'lightning_logs'}" in said
    assert len(list(Path(trainer.log_dir, "rnn_callbacks", "fixed_points", "figures").glob("*.png"))) == 2


def test_memory_tells_who_reaches_far_back(tmp_path, capsys):
    memory.main(["--cells", "rnn", "chrono", "--epochs", "2", "--sequences", "256", "--logs", str(tmp_path)])
    said = capsys.readouterr().out
    horizons = {row[0]: float(row[1]) for row in re.findall(r"^(rnn|chrono) +\d\.\d+ +(\d+\.\d)", said, re.MULTILINE)}
    assert horizons["rnn"] < 5 < 20 < horizons["chrono"]
    assert f"tensorboard --logdir {tmp_path / 'lightning_logs'}" in said
    assert len(list(tmp_path.rglob("gradient_flow/figures/reader-*.png"))) == 0  # drawn every fifth epoch


def test_the_adding_problem_is_as_it_is_described():
    sequences, sums = memory.adding(997, torch.Generator().manual_seed(0))
    numbers, marks = sequences.unbind(2)
    assert marks[:, : memory.STEPS // 2].sum(1).eq(1).all()
    assert marks[:, memory.STEPS // 2 :].sum(1).eq(1).all()
    assert torch.equal((numbers * marks).sum(1), sums)
    assert sums.var().item() == pytest.approx(memory.NO_MEMORY, rel=0.1)  # of 997 samples


# ---- by Lightning's command line -------------------------------------------------------------------------------------


def digits_was_watched(run):
    (look,) = run.rglob("gates/*.npz")
    report = load(str(look)).report
    assert report.scalars["gates/reader.l0/flags/update_mean_below"] == 0
    assert "gates/reader.l0/update/phase_eta_squared" in report.scalars


def flip_flop_was_watched(run):
    (look,) = run.rglob("*.npz")
    arrays = load(str(look)).report.arrays
    assert arrays["fixed_points/store/first_bit_up/inputs"].tolist() == [1, 0, 0]
    assert set(abs(arrays["fixed_points/store/first_pulses/inputs"])) == {1.0}  # every bit is set at the first step
    assert "fixed_points/store/silence/basin_shares" in arrays


def memory_was_watched(run):
    looks = list(run.rglob("*.npz"))
    assert len(looks) == 2
    report = load(str(looks[-1])).report
    assert "gradient_flow/total/flags/clipped" not in report.scalars  # switched off there
    assert report.scalars["gradient_flow/reader.l0/gradient_error"] < 1e-4


SMALL = {
    "digits": ("--data.images=200", digits_was_watched),
    "flip_flop": ("--data.sequences=128", flip_flop_was_watched),
    "memory": ("--data.sequences=128", memory_was_watched),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("[a-z]*.py")))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LightningCLI's own use of jsonargparse
def test_an_example_runs_from_its_yaml(name, tmp_path, monkeypatch):
    """As ``python -m examples.<name> fit --config configs/<name>.yaml``, in a small size."""
    pytest.importorskip("jsonargparse")
    assert name in SMALL, f"say in SMALL how {name} is made small, and what is to be seen then"
    small, was_watched = SMALL[name]
    config = ROOT / "configs" / f"{name}.yaml"
    assert config.read_text().startswith(f"# python -m examples.{name} fit --config configs/{name}.yaml\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which Lightning leaves behind
    monkeypatch.delitem(sys.modules, f"examples.{name}", raising=False)  # or runpy warns of a second one
    short = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", small]
    monkeypatch.setattr(sys, "argv", [name, "fit", "--config", str(config), *short])
    runpy.run_module(f"examples.{name}", run_name="__main__", alter_sys=True)
    was_watched(tmp_path)
