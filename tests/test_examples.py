"""The examples in a small size, run as a user runs them."""

import re
import runpy
import sys
from itertools import product
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

import rnn_callbacks
from examples import digits, flip_flop, memory
from examples._claims import Claim, command, end
from examples._run import metric
from rnn_callbacks import FixedPointTracker
from rnn_callbacks.report import Report, SavedReport, load

ROOT = Path(__file__).parent.parent


def test_a_claim_that_fails_sets_the_exit_status(capsys):
    kept, broken = Claim("two is even", "2 / 2 = 1", True), Claim("three is even", "3 / 2 = 1.5", False)
    assert end([kept, kept], "logs") == 0
    assert end([kept, broken], "logs") == 1
    assert "  holds  two is even\n         2 / 2 = 1\n  FAILS  three is even\n" in capsys.readouterr().out


def test_a_command_of_an_environment_that_is_not_active_is_named_in_full(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert Path(command("tensorboard")).exists()
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert command("tensorboard") == "tensorboard"


def test_a_metric_is_the_last_that_was_logged(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    for step in range(3):
        logger.log_metrics({"loss": 3.0 - step, "epoch": step}, step)
    logger.finalize("success")
    assert metric(pl.Trainer(logger=logger, accelerator="cpu"), "loss") == 1.0


def spared(module, monkeypatch, **settings):
    """The callbacks that an example's module uses, without pictures, which are drawn by tests of their own."""
    for name in rnn_callbacks.__all__:
        if hasattr(module, name):
            kind = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *, _kind=kind, **asked: _kind(**asked | settings))


def test_digits_says_what_is_known_of_three_networks_and_compares_them(tmp_path, capsys, monkeypatch):
    watch = digits.watch

    def sparing():
        callbacks = watch()
        for callback in callbacks:
            callback.figure_every_n_epochs = 99
        return callbacks

    monkeypatch.setattr(digits, "watch", sparing)
    cells = ["gru", "lstm", "rnn"]
    few = ["--epochs", "2", "--images", "300", "--logs", str(tmp_path)]
    assert digits.main(["--cells", *cells, *few]) == 1  # two epochs with few images are not enough
    said = capsys.readouterr().out
    assert re.findall(r"^(\w+): what was seen at the last look$", said, re.MULTILINE) == ["GRU", "LSTM", "RNN"]
    assert len(re.findall(r"accuracy on unseen images +\d+\.\d%", said)) == 3
    assert said.count("memory of the median unit") == 2  # an RNN has no gates to tell it
    assert len(re.findall(r"  (holds|FAILS)  \w+: a linear reader names over three quarters", said)) == 3
    assert "  FAILS  rnn: bits tell what is learned" in said
    assert "They differ in cell (gru, lstm, rnn)." in said
    assert re.search(r"  holds  an LSTM's units remember longer .*\n +median unit: \d\.\d steps", said)
    assert f"tensorboard --logdir {tmp_path / 'digits'}" in said


def test_flip_flop_finds_what_is_known(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        flip_flop,
        "FixedPointTracker",
        lambda **asked: FixedPointTracker(**asked | {"every_n_epochs": 3, "figure_every_n_epochs": 99}),
    )
    assert flip_flop.main(["--epochs", "9", "--logs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"epoch +\d+: .*appeared", said)
    assert said.count("  holds  ") == 4
    assert "8, 12, 6 and 1, 27 in all" in said
    assert f"tensorboard --logdir {tmp_path / 'flip_flop'}" in said


def test_flip_flop_says_when_what_is_known_does_not_hold(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        flip_flop, "FixedPointTracker", lambda **asked: FixedPointTracker(**asked | {"figure_every_n_epochs": 99})
    )
    assert flip_flop.main(["--epochs", "1", "--logs", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("  FAILS  ") >= 3


@pytest.mark.parametrize(
    ("bits", "gained", "score", "over", "holds"),
    [
        (3.0, 0.5, 0.95, 0.10, [True, True]),  # 2.5 of 3.2 bits before: five of seven tenths are closed
        (2.7, 0.2, 0.95, 0.10, [True, False]),
        (3.0, 0.5, 0.95, 0.25, [False, True]),
    ],
)
def test_what_is_claimed_of_digits_goes_by_bits(bits, gained, score, over, holds, monkeypatch):
    concept, probe = "probes/concepts/digit", "probes/reader.l0/hidden/digit"
    seen = {f"{concept}/v_information": bits, f"{concept}/share": bits / 3.2, f"{concept}/emergence_gain": gained}
    seen |= {f"{probe}/balanced_accuracy": score, f"{probe}/over_untrained": over}
    monkeypatch.setattr(digits, "last", lambda run: seen)
    assert [claim.holds for claim in digits.known("gru", None)] == holds


def look_at(points, *, entropy=3.0, returned=1.0, epoch=1):
    """A look that has found these points ``(N, 3)`` of the grid -1, 0, 1: unstable in each direction that is 0."""
    here = "fixed_points/store/zero"
    scalars = {f"{here}/basin_entropy": entropy, f"{here}/returned": returned}
    arrays = {f"{here}/states": points, f"{here}/unstable": (points == 0).sum(1)}
    return SavedReport(Report(scalars, arrays=arrays), epoch=epoch, step=epoch)


def test_what_is_claimed_of_a_flip_flop_goes_by_its_points():
    grid = np.array(list(product([-1.0, 0.0, 1.0], repeat=3)))
    first, whole = look_at(grid[13:14], epoch=0), look_at(grid)

    def held(*followed):
        return [claim.holds for claim in flip_flop.claims(list(followed))]

    assert held(first, whole) == [True] * 4
    assert held(whole, whole) == [True, True, False, True]  # they were there
    assert held(first, whole, look_at(grid[grid.any(1)])) == [False, True, False, True]  # the middle one is lost
    unlike = np.where(grid == [0, 0, 1], 0.5, grid)  # 27 points, of other kinds
    assert held(first, look_at(unlike))[0] is False
    assert held(first, look_at(grid, entropy=2.5)) == [True, True, True, False]
    assert held(first, look_at(grid, returned=0.5)) == [True, True, True, False]


def test_a_cube_is_known_from_other_graphs():
    corners = [(one, other) for one in range(8) for other in range(one) if bin(one ^ other).count("1") == 1]
    assert flip_flop.is_cube(set(corners))
    ring = {(corner, (corner + 1) % 8) for corner in range(8)}
    crossed = ring | {(0, 4), (1, 5), (2, 6), (3, 7)}  # of degree three too, with twelve edges
    assert not flip_flop.is_cube(crossed)
    assert not flip_flop.is_cube(set(corners[1:]))
    places = np.array([[corner >> bit & 1 for bit in range(3)] for corner in range(8)], dtype=float)
    middles = np.array([(places[one] + places[other]) / 2 for one, other in corners])
    unstable = np.array([0] * 8 + [1] * 12)
    found = flip_flop.edges_between(np.concatenate([places, middles + 0.1]), unstable)
    assert {tuple(sorted(edge)) for edge in found} == {tuple(sorted(edge)) for edge in corners}
    beside = np.concatenate([places, middles + 2])  # outside of the cube
    assert not flip_flop.edges_between(beside, unstable)
    assert not flip_flop.edges_between(places[:1], unstable[:1])  # no pair at all


def test_memory_tells_who_reaches_far_back_and_who_learns(tmp_path, capsys, monkeypatch):
    spared(memory, monkeypatch, figure_every_n_epochs=99)
    few = ["--epochs", "2", "--sequences", "256", "--logs", str(tmp_path)]
    assert memory.main(["--tasks", "copy", "--cells", "rnn", "chrono", *few]) == 1  # so soon no flag is raised
    said = capsys.readouterr().out
    rows = re.findall(r"^copy +(rnn|chrono) +\d\.\d+ +(\d+\.\d)", said, re.MULTILINE)
    horizons = {cell: float(first) for cell, first in rows}
    assert horizons["rnn"] < 6 < 30 < horizons["chrono"]
    assert "  FAILS  copy: rnn learns nothing" in said
    assert f"tensorboard --logdir {tmp_path / 'memory'}" in said


@pytest.mark.parametrize(
    ("task", "cell", "error", "horizon", "flagged", "holds"),
    [
        ("adding", "rnn", 0.95, 3.0, True, True),
        ("adding", "rnn", 0.95, 3.0, False, False),
        ("adding", "rnn", 0.5, 3.0, True, False),
        ("copy", "gru", 0.95, 30.0, True, False),
        ("copy", "chrono", 0.5, 40.0, False, True),
        ("copy", "chrono", 0.5, 20.0, False, False),
        ("adding", "gru", 0.05, 4.0, False, True),
        ("adding", "gru", 0.15, 4.0, False, False),
    ],
)
def test_a_claim_about_memory_goes_by_what_was_seen(task, cell, error, horizon, flagged, holds):
    tags = {"horizon": horizon, "flags/vanishing": float(flagged)}
    report = Report({f"gradient_flow/reader.l0/{tag}": value for tag, value in tags.items()})
    (claim,) = memory.known(task, cell, error, [SavedReport(report, epoch=0, step=1)])
    assert claim.holds == holds


def test_the_copy_problem_is_as_it_is_described():
    inputs, symbols = memory.copying(997, torch.Generator().manual_seed(0))
    assert inputs.sum((1, 2)).eq(2 * memory.SYMBOLS).all()
    assert torch.equal(inputs[:, : memory.SYMBOLS].argmax(2), symbols)
    assert inputs[:, -memory.SYMBOLS :, memory.KINDS].eq(1).all()
    shares = torch.bincount(symbols.flatten(), minlength=memory.KINDS) / symbols.numel()
    entropy = -(shares * shares.log()).sum().item()
    assert entropy == pytest.approx(memory.WITHOUT_MEMORY["copy"], rel=0.01)  # all kinds are as frequent


def test_the_adding_problem_is_as_it_is_described():
    sequences, sums = memory.adding(997, torch.Generator().manual_seed(0))
    numbers, marks = sequences.unbind(2)
    assert marks[:, : memory.STEPS // 2].sum(1).eq(1).all()
    assert marks[:, memory.STEPS // 2 :].sum(1).eq(1).all()
    assert torch.equal((numbers * marks).sum(1), sums)
    assert sums.var().item() == pytest.approx(memory.WITHOUT_MEMORY["adding"], rel=0.1)  # of 997 samples


# ---- by Lightning's command line -------------------------------------------------------------------------------------


def digits_was_watched(run):
    (look,) = run.rglob("gates/*.npz")
    assert len({path.parent.name for path in run.rglob("*.npz")}) == 6  # by every callback
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


def sentiment_was_watched(run):
    (look,) = run.rglob("fixed_points/*.npz")
    assert load(str(look)).report.arrays["fixed_points/reader/plain/inputs"].any()
    (look,) = run.rglob("probes/*.npz")
    scalars = load(str(look)).report.scalars
    assert "probes/reader.l0/hidden/running_sum/over_untrained" in scalars
    assert "probes/reader.l0/hidden/liked/balanced_accuracy" in scalars


def connect_four_was_watched(run):
    (probes,), (points,), (gates,) = (list(run.rglob(f"{noun}/*.npz")) for noun in ("probes", "fixed_points", "gates"))
    report = load(str(probes)).report
    assert "probes/reader.l0/hidden/immediate_win_current/over_untrained" in report.scalars
    assert "*" not in report.texts["probes/summary"].partition("|")[2]  # the untrained network is exact
    scalars = load(str(points)).report.scalars
    assert all(f"fixed_points/reader/{context}/attractors" in scalars for context in ("attack", "defend", "neutral"))
    assert 0 < load(str(gates)).report.scalars["gates/reader.l0/update/phase_eta_squared"] < 1


def debug_was_watched(run):
    flows = [load(str(path)).report.scalars for path in sorted(run.rglob("gradient_flow/*.npz"))]
    assert [flow["gradient_flow/reader.cell/reach"] < 1 for flow in flows] == [True, True]  # the state is detached
    last = load(str(max(run.rglob("probes/*.npz")))).report.scalars
    assert last["probes/concepts/answer/flags/missing"] == 1


SMALL = {
    "connect_four": ("--data.games=150", connect_four_was_watched),
    "debug": ("--data.sequences=128", debug_was_watched),
    "digits": ("--data.images=200", digits_was_watched),
    "flip_flop": ("--data.sequences=128", flip_flop_was_watched),
    "memory": ("--data.sequences=128", memory_was_watched),
    "sentiment": ("--data.sequences=256", sentiment_was_watched),
}


WITHOUT_YAML = {"checkpoint"}  # which needs no Lightning
EXAMPLES = {path.stem for path in (ROOT / "examples").glob("[a-z]*.py")}


@pytest.mark.parametrize("name", sorted(EXAMPLES - WITHOUT_YAML))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LightningCLI's own use of jsonargparse
@pytest.mark.filterwarnings("ignore:.*, flag missing")  # the network of `debug` is broken
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
