"""`GateMonitor` in a real run: phases, flags, ablation, settings."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F

from rnn_callbacks import GateMonitor
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load

from ..models import CLASSES, STEPS, UNITS, Classifier, StepClassifier, half_of_sequence, loader


def monitor(**options):
    """Without pictures, which would take most of the time."""
    return GateMonitor(**{"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"} | options)


def last_report(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return load(str(max((run / "rnn_callbacks" / "gates").glob("*.npz")))).report


# ---- phases ----------------------------------------------------------------------------------------------------------


class Sees(Classifier):
    """A GRU whose update gate is opened by the first feature alone, which in `phased` data is the phase."""

    def __init__(self):
        super().__init__()
        rnn = self.encoder.rnn
        with torch.no_grad():
            for parameter in rnn.parameters():
                parameter.zero_()
            rnn.weight_ih_l0[UNITS : 2 * UNITS, 0] = -6.0  # torch's z is 1 - update

    def forward(self, x):
        phase = (torch.arange(STEPS) >= 3).float()
        return super().forward(torch.cat([phase.repeat(len(x), 1)[..., None], x[..., 1:]], dim=2))

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), 0.1)


def test_a_gate_that_is_the_phase_is_explained_by_it(fit):
    trainer = fit(monitor(phases=half_of_sequence), model=Sees)
    report = last_report(fit)
    assert report.scalars["gates/encoder.rnn.l0/update/phase_eta_squared"] == pytest.approx(1.0, abs=1e-6)
    means = report.arrays["gates/encoder.rnn.l0/phase_mean"]
    assert means[:, 1] == pytest.approx(np.repeat([[0.5], [1 / (1 + np.exp(-6.0))]], UNITS, axis=1), abs=1e-6)
    assert report.arrays["gates/encoder.rnn.l0/phase_counts"].tolist() == [24 * 3, 24 * 4]
    assert trainer.callback_metrics["gates/encoder.rnn.l0/reset/phase_eta_squared"] == 0


def test_phases_can_be_named_by_import_path(fit):
    fit(monitor(phases="tests.models.half_of_sequence"), model=Sees)
    assert last_report(fit).scalars["gates/encoder.rnn.l0/update/phase_eta_squared"] == pytest.approx(1.0, abs=1e-6)


def test_labels_of_whole_sequences_are_phases_too(fit):
    fit(monitor(phases=lambda batch: batch[1]), max_epochs=1)
    assert last_report(fit).arrays["gates/encoder.rnn.l0/phase_counts"].sum() == 24 * STEPS


def test_phases_of_a_wrong_shape_are_said_and_the_run_goes_on(fit):
    with pytest.warns(RecurrentHealthWarning, match="phases must label every sequence and step"):
        trainer = fit(GateMonitor(phases=lambda batch: torch.zeros(2, 2, dtype=torch.long), every_n_epochs=1))
    assert trainer.current_epoch == 2
    assert trainer.callback_metrics["gates/failed_looks"] == 2
    assert 0 < trainer.callback_metrics["gates/encoder.rnn.l0/update/mean"] < 1  # phases cost only themselves
    assert not any("phase" in tag for tag in trainer.callback_metrics)


def test_a_phase_function_that_raises_is_said_and_the_run_goes_on(fit):
    with pytest.warns(RecurrentHealthWarning, match="ZeroDivisionError"):
        trainer = fit(GateMonitor(phases=lambda batch: 1 / 0, every_n_epochs=1))
    assert trainer.current_epoch == 2
    assert trainer.callback_metrics["gates/failed_looks"] == 2  # once per look, not per batch
    assert 0 < trainer.callback_metrics["gates/encoder.rnn.l0/update/mean"] < 1


def test_phases_that_fit_one_direction_only_cost_no_picture(fit, monkeypatch):
    from rnn_callbacks.callbacks import gates

    measure = gates.GateMonitor._measure

    def forward_only(self, traces):
        statistics, phases = measure(self, traces)
        return statistics, None if traces[0].cell.place.reverse else phases

    monkeypatch.setattr(gates.GateMonitor, "_measure", forward_only)
    trainer = fit(
        monitor(phases=half_of_sequence, figure_every_n_epochs=1), model=Classifier("gru", bidirectional=True)
    )
    assert trainer.callback_metrics["gates/failed_looks"] == 0
    run = sorted(fit.logs.glob("version_*"))[-1]
    assert len(list(run.rglob("*.png"))) == 2


# ---- flags -----------------------------------------------------------------------------------------------------------


def test_a_flag_is_a_scalar_a_text_and_one_warning(fit):
    model = Classifier()
    with torch.no_grad():
        model.encoder.rnn.bias_ih_l0[UNITS : 2 * UNITS] = 9.0  # torch's z: the state is kept
    with pytest.warns(RecurrentHealthWarning) as heard:
        trainer = fit(monitor(), model=model, max_epochs=3)
    said = [str(warning.message) for warning in heard if warning.category is RecurrentHealthWarning]
    assert len(said) == 1
    assert "encoder.rnn.l0, flag frozen: the median unit keeps its state for" in said[0]
    assert trainer.callback_metrics["gates/encoder.rnn.l0/flags/frozen"] == 1
    assert trainer.callback_metrics["gates/encoder.rnn.l0/flags/overwritten"] == 0
    assert last_report(fit).texts["gates/encoder.rnn.l0/flags/frozen"].startswith("**frozen** in `encoder.rnn.l0`")


def test_the_rule_of_the_handbook_can_be_set(fit):
    model = Classifier()
    with torch.no_grad():
        model.encoder.rnn.bias_ih_l0[UNITS : 2 * UNITS] = 4.0
    with pytest.warns(RecurrentHealthWarning, match=r"update_mean is 0\.0\d+, below the limit of 0\.1"):
        trainer = fit(monitor(flags={"update_mean_below": 0.1, "frozen": None}), model=model)
    assert trainer.callback_metrics["gates/encoder.rnn.l0/flags/update_mean_below"] == 1
    assert "gates/encoder.rnn.l0/flags/frozen" not in trainer.callback_metrics


# ---- ablation --------------------------------------------------------------------------------------------------------


def loss_by_hand(model, edit):
    """Mean validation loss over the batches, of a copy of the model that ``edit`` has changed."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        edit(model.encoder.rnn)
        return np.mean([F.cross_entropy(model(x), y).item() for x, y in loader(seed=1)])


@pytest.mark.parametrize(("hold", "bias"), [("zero", -50.0), ("one", 50.0)])
def test_ablation_is_the_change_of_the_models_own_loss(fit, hold, bias):
    trainer = fit(monitor(ablate=hold), model=Classifier("lstm"), max_epochs=3)
    model = trainer.lightning_module

    def close_forget(rnn):
        rows = slice(UNITS, 2 * UNITS)
        rnn.weight_ih_l0[rows] = rnn.weight_hh_l0[rows] = 0
        rnn.bias_ih_l0[rows], rnn.bias_hh_l0[rows] = bias, 0

    expected = loss_by_hand(model, close_forget) - loss_by_hand(model, lambda rnn: None)
    assert expected != 0
    found = trainer.callback_metrics["gates/encoder.rnn.l0/forget/ablation"]
    assert float(found) == pytest.approx(expected, abs=1e-6)  # float32 losses near 1


def test_holding_a_gate_that_never_moves_changes_nothing(fit):
    trainer = fit(monitor(ablate="mean"), model=Sees)
    assert float(trainer.callback_metrics["gates/encoder.rnn.l0/reset/ablation"]) == pytest.approx(0.0, abs=1e-7)


class Logs(Classifier):
    """Returns no loss but logs one."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Classifier("gru", layers=2, bidirectional=True, packed=True),
        lambda: Classifier("lstm", bias=False),
        lambda: Classifier("gru", bias=False, layers=2),
        StepClassifier,
        Logs,
    ],
    ids=["packed stack", "lstm without bias", "gru stack without bias", "cell in a loop", "loss is only logged"],
)
def test_ablation_works_on_every_kind_of_layer(fit, make):
    trainer = fit(monitor(ablate="mean"), model=make())
    changes = [float(v) for tag, v in trainer.callback_metrics.items() if tag.endswith("/ablation")]
    assert changes
    assert np.isfinite(changes).all()
    assert any(changes)


def test_ablation_leaves_the_users_metrics_alone(fit):
    class Counts(Classifier):
        def __init__(self):
            super().__init__()
            self.seen = 0

        def validation_step(self, batch, batch_idx):
            self.seen += 1
            self.log("seen", float(self.seen), reduce_fx="max")
            return super().validation_step(batch, batch_idx)

    trainer = fit(monitor(ablate="mean"), model=Counts, num_sanity_val_steps=0)
    assert trainer.lightning_module.seen == 6
    assert trainer.callback_metrics["seen"] == 6


def test_ablation_without_any_loss_is_said(fit):
    class Silent(Classifier):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    with pytest.warns(RecurrentHealthWarning, match="ablate needs a validation_step that returns its loss"):
        trainer = fit(GateMonitor(ablate="mean", every_n_epochs=1, figure_every_n_epochs=99), model=Silent)
    assert 0 < trainer.callback_metrics["gates/encoder.rnn.l0/update/mean"] < 1  # it costs only itself


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flags": {"updat_mean_below": 0.1}}, "flags: 'updat_mean_below' is none of overwritten"),
        ({"flags": {"forget_mean_below": 0.1}}, "the quantities are new_mean_abs"),  # a GRU has no forget gate
        ({"flags": {"frozen": "much"}}, "the threshold of 'frozen' must be a number or null, got 'much'"),
        ({"phases": "tests.models.no_such"}, "phases: cannot import 'tests.models.no_such'"),
        ({"flags": ["frozen"]}, "flags must be a dict of thresholds by name, got ['frozen']"),
        ({"phases": torch.zeros(3)}, "phases must be a function of a batch or its import path, got Tensor"),
        ({"module": []}, "module must be a name, a list of names or None, got []"),
        ({"phases": "half"}, "expected 'package.module.function'"),
        ({"phases": "tests.models.UNITS"}, "phases: 'tests.models.UNITS' is no function but int"),
        ({"ablate": "half"}, "ablate must be 'mean', 'zero', 'one' or None, got 'half'"),
    ],
)
def test_wrong_settings_are_said_before_training_starts(fit, settings, message):
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        fit(GateMonitor(**settings))


def test_ablation_without_gates_is_refused(fit):
    with pytest.raises(MisconfigurationException, match="no watched module is one"):
        fit(GateMonitor(ablate="mean"), model=Classifier("rnn"))


def test_what_cannot_be_listened_to_is_said(fit):
    class Scripted(Classifier):
        def __init__(self):
            super().__init__()
            self.scripted = torch.jit.script(nn.LSTM(3, CLASSES))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of scripting; only from some versions on
        model = Scripted()
    with pytest.warns(RecurrentHealthWarning, match="scripted: a TorchScript LSTM runs outside Python"):
        fit(monitor(), model=model)
