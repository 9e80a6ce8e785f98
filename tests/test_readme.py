"""Every block of code in the two pages for users is run, in order, as a reader would paste them."""

import inspect
import re
import subprocess
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import rnn_callbacks
from rnn_callbacks.analysis import (
    fixed_point_flags,
    gate_flags,
    gradient_flags,
    probe_flags,
    representation_flags,
    trajectory_flags,
)
from rnn_callbacks.callbacks.schedule import Schedule

from .models import FEATURES, STEPS, UNITS, Classifier, loader

ROOT = Path(__file__).parent.parent
README, DETAILS = (ROOT / "README.md").read_text(), (ROOT / "examples" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README + DETAILS, re.MULTILINE | re.DOTALL)


def test_every_block_is_of_a_kind_that_is_run():
    assert {language for language, _ in BLOCKS} <= {"python", "sh", ""}
    assert sum(language == "python" for language, _ in BLOCKS) >= 4


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.setattr(Schedule, "figure_is_due", lambda self, epoch, *, last: False)  # drawn by tests of their own
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"model": Classifier(), "train_loader": loader(shuffle=True), "val_loader": loader(seed=1)}
    names["batch"] = next(iter(loader()))[0]
    for number, (language, code) in enumerate(BLOCKS):
        if language == "python":
            exec(compile(code, f"README block {number}", "exec"), names)
    assert isinstance(names["trainer"], pl.Trainer)
    assert "gates/encoder.rnn.l0/update/mean" in names["trainer"].callback_metrics
    assert "fixed_points/encoder.rnn/zero/attractors" in names["trainer"].callback_metrics
    assert "gradient_flow/encoder.rnn.l0/horizon" in names["trainer"].callback_metrics
    assert "probes/encoder.rnn.l0/hidden/target/v_information" in names["trainer"].callback_metrics
    assert "representation/encoder.rnn.l0/hidden/cka_untrained" in names["trainer"].callback_metrics
    said = capsys.readouterr().out
    assert "encoder.rnn l0 {'reset/mean': 0." in said
    assert re.search(r"^\d+ \[.*'attractor'.* 1 True$", said, re.MULTILINE)
    assert re.search(rf"^l0 torch.Size\(\[{STEPS}, \d+, {UNITS}\]\) {{'horizon': \d", said, re.MULTILINE)

    # The cell and the callback that the last blocks define do what they say, in a run.
    model = Classifier()
    model.encoder.rnn = names["LeakyRNN"](FEATURES, UNITS)
    options = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"}
    dimension, monitor = names["DimensionMonitor"](**options), rnn_callbacks.GateMonitor(**options)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[monitor, dimension], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, loader(), loader(seed=1))
    seen = trainer.callback_metrics
    leak = model.encoder.rnn.leak.sigmoid()
    assert float(seen["gates/encoder.rnn.l0/update/mean"]) == pytest.approx(float(leak.mean()), abs=1e-6)
    tau = (-1 / torch.log1p(-leak)).median()
    assert float(seen["gates/encoder.rnn.l0/timescale/q50"]) == pytest.approx(float(tau), rel=1e-4)
    assert seen["gates/encoder.rnn.l0/rebuild_error"] < 1e-6
    assert 1 <= seen["dimension/encoder.rnn.l0/participation_ratio"] <= min(UNITS, 24 * STEPS)


def test_shell_blocks_name_targets_that_exist():
    commands = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
    assert {"make demo", "make test", "pip install ."} <= set(commands)
    for command in commands:
        if command.startswith("make "):
            subprocess.run([*command.split(), "--dry-run", "--silent"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_links_and_pictures_exist(page):
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text()):
        there = (ROOT / page).parent / target if target else ROOT / page
        assert there.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}, heading


def test_every_picture_is_shown():
    for picture in (ROOT / "examples" / "pictures").iterdir():
        assert f"examples/pictures/{picture.name}" in README or f"(pictures/{picture.name})" in DETAILS, picture.name


every_callback = pytest.mark.parametrize("name", rnn_callbacks.__all__)


def section(name):
    """What is said of one callback."""
    return (DETAILS + "\n## ").partition(f"\n## {name}\n")[2].partition("\n## ")[0]


@every_callback
def test_the_tag_table_names_every_documented_tag(name):
    tags = re.findall(r"^\s*- `([^`]+)`:", getattr(rnn_callbacks, name).__doc__, re.MULTILINE)
    table = section(name)
    for tag in tags:
        tag = tag.replace("{candidate}/phase", "{gate}/phase")  # one row for both
        stem, _, last = tag.rpartition("/")
        assert f"`{tag}`" in table or (f"`{stem}/" in table and f"`/{last}`" in table), tag


@every_callback
def test_the_settings_tables_name_every_setting_and_its_default(name):
    parameters = inspect.signature(getattr(rnn_callbacks, name)).parameters
    common = README[README.index("| setting |") : README.index("\n## ", README.index("| setting |"))]
    assert set(parameters) <= set(re.findall(r"`(\w+)`", common + section(name)))
    for setting in {"max_overhead", "max_sequences"} & set(parameters):
        default = parameters[setting].default
        assert re.search(rf"^\| `{setting}` .*(`{name}`: {default}\).*|\| {default} )\|$", common, re.MULTILINE)
    for setting in ("max_starts", "max_seconds"):
        if setting in parameters:
            assert f"{parameters[setting].default:g}" in section(name)
    for setting in ("steps", "shuffles", "seed", "max_megabytes"):
        if setting in parameters:
            default = parameters[setting].default
            assert re.search(rf"^\| `{setting}` .*\| {default:g} \|$", section(name), re.MULTILINE)


@every_callback
def test_every_section_says_what_is_measured_and_when_not_to_trust_it(name):
    assert re.search(r"^\*\*What it measures\.\*\* .*\d{4}", section(name), re.MULTILINE | re.DOTALL)  # with a source
    assert "**When not to trust it.**" in section(name) or "**What the numbers are.**" in section(name)


@every_callback
def test_every_flag_is_in_the_table(name):
    module = {
        "GateMonitor": gate_flags,
        "FixedPointTracker": fixed_point_flags,
        "GradientFlowMonitor": gradient_flags,
        "ProbeTracker": probe_flags,
        "RepresentationTracker": representation_flags,
        "WeightTrajectoryLogger": trajectory_flags,
    }[name]
    for flag in module.RULES:
        assert f"| `{flag}` |" in section(name)
