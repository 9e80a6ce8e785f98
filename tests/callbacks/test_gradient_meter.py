"""Norms, sizes and updates of all parameters in a real run, against a callback that measures them on its own."""

import math
import re
import warnings
from contextlib import nullcontext

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from rnn_callbacks import GradientFlowMonitor
from rnn_callbacks.callbacks.gradient_meter import StepMeter
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load

from ..models import FEATURES, UNITS, Classifier, loader

ROUNDING = 1e-5  # norms are taken and logged in float32
NORM, CLIPPED = "gradient_flow/total/norm", "gradient_flow/total/norm_clipped"


def monitor(**options):
    """Without pictures, which would take most of the time."""
    return GradientFlowMonitor(**{"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"} | options)


def newest(fit):
    return sorted(fit.logs.glob("version_*"))[-1]


def reports(fit):
    return [load(str(path)).report for path in sorted((newest(fit) / "rnn_callbacks/gradient_flow").glob("*.npz"))]


def events(fit):
    return EventAccumulator(str(newest(fit)), size_guidance={"scalars": 0}).Reload()


def by_step(fit, tag):
    """What was logged at each step, without the values of looks, which come later at the same step."""
    found = {}
    for event in events(fit).Scalars(tag):
        found.setdefault(event.step, event.value)
    return found


def norm_of(tensors):
    squares = [tensor.detach().to_dense().double().square().sum().item() for tensor in tensors if tensor is not None]
    return math.sqrt(sum(squares))


class Witness(pl.Callback):
    """Measures on its own, one number after the other."""

    def __init__(self):
        self.before, self.after, self.parts, self.moved = [], [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine = {name: p for name, p in pl_module.named_parameters() if id(p) in own}
        self.before.append(norm_of(p.grad for p in mine.values()))
        self.parts.append({name: norm_of([p.grad]) for name, p in mine.items() if p.grad is not None})
        self.weights = {name: p.detach().clone() for name, p in mine.items()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        if len(self.after) < len(self.before):
            self.after.append(norm_of(p.grad for p in pl_module.parameters()))
            now = dict(pl_module.named_parameters())
            self.moved.append({n: norm_of([now[n] - w]) / (norm_of([w]) or math.inf) for n, w in self.weights.items()})


class Tells(Classifier):
    """Logs a number of its own at every step, as users do."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


# ---- every step ------------------------------------------------------------------------------------------------------


def test_norms_of_every_step_are_logged_at_lightnings_own_steps(fit):
    witness = Witness()
    fit(monitor(), witness, model=Tells, max_epochs=2)
    found = by_step(fit, NORM)
    assert list(found) == [event.step for event in events(fit).Scalars("train_loss")] == list(range(6))
    assert list(found.values()) == pytest.approx(witness.before, rel=ROUNDING)
    assert list(by_step(fit, CLIPPED).values()) == pytest.approx(witness.after, rel=ROUNDING)
    for name in witness.parts[0]:
        norms = by_step(fit, f"gradient_flow/parameters/{name}/norm")
        assert list(norms.values()) == pytest.approx([part[name] for part in witness.parts], rel=ROUNDING, abs=1e-9)
        ratios = by_step(fit, f"gradient_flow/parameters/{name}/update_ratio")
        assert list(ratios.values()) == pytest.approx([part[name] for part in witness.moved], rel=1e-4)


@pytest.mark.parametrize("every", [2, 3, 4])
def test_medians_are_logged_over_the_steps_since(fit, every):
    witness = Witness()
    fit(monitor(every_n_epochs=4), witness, model=Tells, max_epochs=4, log_every_n_steps=every)
    found = by_step(fit, NORM)
    steps = [event.step for event in events(fit).Scalars("train_loss")]
    assert steps == list(range(every - 1, 12, every))
    assert [step for step in found if step in steps] == steps
    for step in steps:
        since = witness.before[step + 1 - every : step + 1]
        assert found[step] == pytest.approx(np.median(since), rel=ROUNDING)
        assert by_step(fit, "gradient_flow/total/norm_max")[step] == pytest.approx(max(since), rel=ROUNDING)


def test_without_steps_to_log_only_looks_are_logged(fit):
    witness = Witness()
    fit(monitor(), witness, log_every_n_steps=0)
    logged = events(fit).Scalars(NORM)
    assert [event.step for event in logged] == [2, 5]
    medians = [np.median(witness.before[:3]), np.median(witness.before[3:])]
    assert [event.value for event in logged] == pytest.approx(medians, rel=ROUNDING)


@pytest.mark.parametrize("every", [0, 1, 2, 50])
def test_a_look_describes_the_steps_of_its_epoch(fit, every):
    witness = Witness()
    fit(monitor(), witness, max_epochs=3, log_every_n_steps=every)
    for epoch, report in enumerate(reports(fit)):
        steps = slice(3 * epoch, 3 * epoch + 3)
        assert report.arrays["gradient_flow/total/steps"].tolist() == list(range(9))[steps]
        assert report.arrays["gradient_flow/total/norms"] == pytest.approx(witness.before[steps], rel=ROUNDING)
        assert report.arrays["gradient_flow/total/norms_clipped"] == pytest.approx(witness.after[steps], rel=ROUNDING)
        assert report.scalars[NORM] == pytest.approx(np.median(witness.before[steps]), rel=ROUNDING)


@pytest.mark.parametrize("every", [0, 2, 50])
def test_a_look_after_epochs_without_one_describes_its_own_epoch_only(fit, every):
    witness = Witness()
    fit(monitor(every_n_epochs=3), witness, max_epochs=3, log_every_n_steps=every)
    (report,) = reports(fit)
    assert report.arrays["gradient_flow/total/steps"].tolist() == [6, 7, 8]
    assert report.scalars[NORM] == pytest.approx(np.median(witness.before[6:]), rel=ROUNDING)


def test_norms_of_gates_are_those_of_their_rows(fit):
    class Rows(pl.Callback):
        def __init__(self):
            self.found = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.found.append([norm_of([part]) for part in pl_module.encoder.rnn.weight_hh_l0.grad.split(UNITS)])

    rows = Rows()
    fit(monitor(), rows, model=Classifier("lstm"), max_epochs=1)
    report = reports(fit)[0]
    for column, gate in enumerate(["input", "forget", "cell", "output"]):
        median = np.median([row[column] for row in rows.found])
        assert report.scalars[f"gradient_flow/encoder.rnn.l0/{gate}/norm"] == pytest.approx(median, rel=ROUNDING)


def test_zeros_are_counted_at_the_latest_step_looked_at_closely(fit):
    class Half(Classifier):
        def on_after_backward(self):
            self.head.weight.grad[0] = 0
            self.head.weight.grad[1] = 1

    fit(monitor(), model=Half, max_epochs=1)
    report = reports(fit)[0]
    assert report.scalars["gradient_flow/parameters/head.weight/zeros"] == 0.5
    histogram = report.histograms["gradient_flow/total/log2_magnitude"]
    ones = histogram.counts[np.searchsorted(histogram.edges, 0.0)]
    assert ones >= 1 * UNITS
    sizes = sum(p.numel() for p in Half().parameters())
    assert histogram.counts.sum() <= sizes - UNITS


def test_a_frozen_parameter_is_left_out(fit):
    model = Classifier()
    model.head.bias.requires_grad_(False)
    trainer = fit(monitor(), model=model)
    assert not any("head.bias" in tag for tag in trainer.callback_metrics)
    assert not any("head.bias" in tag for tag in events(fit).Tags()["scalars"])


# ---- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("every", [1, 2])
def test_an_accumulated_batch_is_one_step(fit, parts, every):
    witness = Witness()
    options = {"accumulate_grad_batches": parts, "log_every_n_steps": every, "max_epochs": 2}
    trainer = fit(monitor(), witness, model=Tells, train=loader(8 * 5), **options)
    steps = 2 * math.ceil(5 / parts)
    assert len(witness.before) == trainer.global_step == steps
    rows = np.concatenate([report.arrays["gradient_flow/total/norms"] for report in reports(fit)])
    assert rows == pytest.approx(witness.before, rel=ROUNDING)
    assert all(report.scalars["gradient_flow/encoder.rnn.l0/gradient_error"] < 5e-6 for report in reports(fit))


def test_each_step_is_logged_once_however_many_batches_it_takes(fit):
    fit(monitor(), model=Tells, train=loader(8 * 8), accumulate_grad_batches=2, log_every_n_steps=2, max_epochs=1)
    # At step 3 the look follows; a batch that only accumulates logs nothing.
    assert [event.step for event in events(fit).Scalars(NORM)] == [1, 3, 3]


# ---- clipping --------------------------------------------------------------------------------------------------------


class OwnClipping(Classifier):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad *= 0.125


CLIPPINGS = {
    "by norm": (Classifier, {"gradient_clip_val": 0.05}),
    "by a norm that is seldom reached": (Classifier, {"gradient_clip_val": 1.1}),
    "by value": (Classifier, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "by a method of the model": (OwnClipping, {}),
    "by norm in accumulated batches": (Classifier, {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2}),
    "by value in accumulated batches": (
        Classifier,
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
    ),
    "not at all": (Classifier, {"gradient_clip_val": 0}),
}


@pytest.mark.parametrize("way", CLIPPINGS)
def test_norms_after_clipping_are_the_real_ones(fit, way):
    model, options = CLIPPINGS[way]
    witness = Witness()
    fit(monitor(), witness, model=model, **options)
    before = np.concatenate([report.arrays["gradient_flow/total/norms"] for report in reports(fit)])
    after = np.concatenate([report.arrays["gradient_flow/total/norms_clipped"] for report in reports(fit)])
    assert before == pytest.approx(witness.before, rel=ROUNDING)
    assert after == pytest.approx(witness.after, rel=ROUNDING)
    shrunk = np.array(witness.after[-len(before) // 2 :]) < 0.999 * np.array(witness.before[-len(before) // 2 :])
    assert reports(fit)[-1].scalars["gradient_flow/total/clipped"] == pytest.approx(shrunk.mean())
    assert {"by norm": 1, "not at all": 0}.get(way, shrunk.mean()) == shrunk.mean()


def test_clipping_of_most_steps_raises_a_flag_from_the_second_look_on(fit):
    fit(monitor(), gradient_clip_val=0.05, max_epochs=3)
    tag = "gradient_flow/total/flags/clipped"
    assert [report.scalars[tag] for report in reports(fit)] == [0, 1, 1]
    assert [tag in report.texts for report in reports(fit)] == [False, True, True]
    assert "100% of the epoch's steps were clipped" in reports(fit)[-1].texts[tag]


# ---- several optimizers ----------------------------------------------------------------------------------------------


class Gan(pl.LightningModule):
    """Two recurrent parts, trained in turns."""

    def __init__(self, clip=None):
        super().__init__()
        self.automatic_optimization = False
        self.clip = clip
        self.generator = nn.GRU(FEATURES, FEATURES, batch_first=True)
        self.critic = nn.GRU(FEATURES, UNITS, batch_first=True)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        x, _ = batch
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(self.critic(self.generator(x)[0])[0][:, -1].square().mean())
        if self.clip:
            self.clip_gradients(first, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        fake = self.generator(x)[0].detach()
        loss = (self.critic(x)[0][:, -1] - 1).square().mean() + self.critic(fake)[0][:, -1].square().mean()
        self.manual_backward(loss)
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        parts = (self.generator, self.critic)
        return [torch.optim.SGD(part.parameters(), 0.1) for part in parts]


def test_each_parameters_norm_is_that_of_its_own_optimizers_step(fit):
    witness = Witness()
    with pytest.warns(RecurrentHealthWarning, match="in manual optimization gradients reach it after your own") as said:
        fit(monitor(), witness, model=Gan, validate=[])
    assert len([w for w in said if w.category is RecurrentHealthWarning]) == 1
    assert len(witness.before) == 2 * 3 * 2
    report = reports(fit)[-1]
    assert report.arrays["gradient_flow/total/norms"] == pytest.approx(witness.before[6:], rel=ROUNDING)
    assert report.arrays["gradient_flow/total/steps"].tolist() == [3, 3, 4, 4, 5, 5]
    names = [str(name) for name in report.arrays["gradient_flow/parameters/names"]]
    assert names == [name for name, _ in Gan().named_parameters()]
    for name in names:
        own = [part[name] for part in witness.parts[6:] if name in part]
        assert len(own) == 3
        tag = f"gradient_flow/parameters/{name}"
        assert report.scalars[f"{tag}/norm"] == pytest.approx(np.median(own), rel=ROUNDING)
    assert report.scalars["gradient_flow/total/flags/dead"] == 0
    assert report.scalars["gradient_flow/total/clipped"] == 0


def test_norms_in_manual_optimization_are_those_after_the_users_clipping(fit):
    witness = Witness()
    with pytest.warns(RecurrentHealthWarning, match="in manual optimization"):
        fit(monitor(), witness, model=Gan(clip=0.01), validate=[], max_epochs=1)
    norms = reports(fit)[0].arrays["gradient_flow/total/norms"]
    assert norms == pytest.approx(witness.before, rel=ROUNDING)
    assert norms[::2] == pytest.approx(np.full(3, 0.01), rel=1e-3)


class ClippingGan(Gan):
    """Manual optimization never calls the method, and the user may have cleared gradients by the batch's end."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.zero_grad()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        raise AssertionError("not in manual optimization")


@pytest.mark.filterwarnings("ignore:GradientFlowMonitor. in manual optimization")
def test_gradients_cleared_after_a_manual_step_do_not_look_clipped(fit):
    fit(monitor(), model=ClippingGan, validate=[], max_epochs=1)
    (report,) = reports(fit)
    assert report.scalars["gradient_flow/total/clipped"] == 0
    norms = report.arrays["gradient_flow/total/norms"]
    assert report.arrays["gradient_flow/total/norms_clipped"].tolist() == norms.tolist()


@pytest.mark.filterwarnings("ignore:GradientFlowMonitor. in manual optimization")
@pytest.mark.parametrize("every", [1, 50])
def test_updates_and_zeros_of_every_optimizers_parameters_are_logged(fit, every):
    fit(monitor(), model=Gan, validate=[], max_epochs=1, log_every_n_steps=every)
    (report,) = reports(fit)
    for name, _ in Gan().named_parameters():
        assert 0 < report.scalars[f"gradient_flow/parameters/{name}/update_ratio"] < 1
        assert report.scalars[f"gradient_flow/parameters/{name}/zeros"] == 0


class AlternatingGan(Gan):
    """One part is trained by even batches, the other by odd ones."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()[batch_idx % 2]
        optimizer.zero_grad()
        self.manual_backward(self.critic(self.generator(batch[0])[0])[0][:, -1].square().mean())
        optimizer.step()


@pytest.mark.filterwarnings("ignore:GradientFlowMonitor. in manual optimization")
def test_updates_are_those_of_the_latest_batch_that_trained_a_parameter(fit):
    fit(monitor(), model=AlternatingGan, validate=[], max_epochs=1)
    (report,) = reports(fit)
    for name, _ in Gan().named_parameters():
        assert 0 < report.scalars[f"gradient_flow/parameters/{name}/update_ratio"] < 1


@pytest.mark.filterwarnings("ignore:GradientFlowMonitor. another GradientFlowMonitor watches encoder.rnn too")
def test_two_monitors_log_each_step_once(fit):
    fit(monitor(module="encoder.rnn"), monitor(module=["encoder.rnn"]), max_epochs=1)
    assert [event.step for event in events(fit).Scalars(NORM)] == [0, 1, 2, 2]  # the look follows the last step


class RawOptimizer(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        loss.backward()
        optimizer.step()
        return loss


def test_steps_that_lightning_does_not_tell_of_are_explained_once(fit):
    with pytest.warns(RecurrentHealthWarning) as said:
        trainer = fit(monitor(), model=RawOptimizer)
    words = [str(w.message) for w in said if w.category is RecurrentHealthWarning]
    assert len(words) == 1
    assert re.search(r"no optimizer step was heard.*self.optimizers\(\)", words[0])
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0
    assert NORM not in trainer.callback_metrics
    # Gradients through time come from the outputs themselves.
    assert trainer.callback_metrics["gradient_flow/encoder.rnn.l0/gradient_error"] < 5e-6
    assert trainer.callback_metrics["gradient_flow/encoder.rnn.l0/horizon"] > 0


class SeveralEvaluations(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


def test_an_optimizer_that_evaluates_the_loss_several_times_is_measured_at_each(fit):
    class First(pl.Callback):
        """Of the weights before the step's first evaluation."""

        def __init__(self):
            self.moved, self.before = [], None

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if self.before is None:
                self.before = pl_module.head.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, *args):
            change = norm_of([pl_module.head.weight - self.before])
            self.moved.append(change / norm_of([self.before]))
            self.before = None

    first, witness = First(), Witness()
    fit(monitor(), first, witness, model=SeveralEvaluations, max_epochs=1)
    (report,) = reports(fit)
    assert len(witness.before) == 3 * 3
    assert report.arrays["gradient_flow/total/norms"] == pytest.approx(witness.before, rel=ROUNDING)
    ratio = report.scalars["gradient_flow/parameters/head.weight/update_ratio"]
    assert ratio == pytest.approx(first.moved[-1], rel=1e-4)


class Unfreezes(Classifier):
    """The encoder gets into the optimizer in the second epoch, as in fine-tuning."""

    def on_train_epoch_start(self):
        if self.trainer.current_epoch == 1:
            self.trainer.optimizers[0].add_param_group({"params": list(self.encoder.parameters())})

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), 0.1)


def test_parameters_that_an_optimizer_gets_later_are_measured_from_then_on(fit):
    witness = Witness()
    fit(monitor(flags={"dead": None}), witness, model=Unfreezes)
    norms = [report.arrays["gradient_flow/total/norms"] for report in reports(fit)]
    assert np.concatenate(norms) == pytest.approx(witness.before, rel=ROUNDING)
    name = "encoder.rnn.weight_hh_l0"
    median = np.median([part[name] for part in witness.parts[3:]])
    assert reports(fit)[-1].scalars[f"gradient_flow/parameters/{name}/norm"] == pytest.approx(median, rel=ROUNDING)


# ---- what a training step may return ---------------------------------------------------------------------------------


class ReturnsDict(Classifier):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "other": torch.ones(3)}


class SkipsSecond(Classifier):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


def test_a_dict_may_be_returned(fit):
    fit(monitor())
    expected = reports(fit)[-1].arrays["gradient_flow/total/norms"]
    fit(monitor(), model=ReturnsDict)
    assert reports(fit)[-1].arrays["gradient_flow/total/norms"].tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_a_loss_is_no_disturbance(fit):
    witness = Witness()
    trainer = fit(monitor(), witness, model=SkipsSecond)
    report = reports(fit)[-1]
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0
    # A step is announced although there is no gradient: it counts for nothing.
    real = [norm for norm in witness.before[len(witness.before) // 2 :] if norm > 0]
    assert 0 < len(real) < len(witness.before) // 2
    assert report.arrays["gradient_flow/total/norms"] == pytest.approx(real, rel=ROUNDING)


# ---- numbers that are none -------------------------------------------------------------------------------------------


class NanGradient(Classifier):
    """The gradient of two parameters is no number at one step, and is put right before the weights move."""

    value = math.nan

    def training_step(self, batch, batch_idx):
        self.now = self.trainer.current_epoch == 1 and batch_idx == 1
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        if self.now:
            self.head.bias.grad[1] = self.value
            self.norm.weight.grad[2] = self.value

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)


@pytest.mark.parametrize("every", [0, 1, 2, 50])
@pytest.mark.parametrize(("value", "what"), [(math.nan, "NaN"), (math.inf, r"infinite \(or above 1e19\)")])
def test_the_first_gradient_that_is_no_number_is_named_once_by_parameter_and_step(fit, every, value, what):
    model = NanGradient()
    model.value = value
    with pytest.warns(RecurrentHealthWarning) as heard:
        trainer = fit(monitor(), model=model, max_epochs=3, log_every_n_steps=every)
    said = [str(w.message) for w in heard if w.category is RecurrentHealthWarning]
    assert sum(bool(re.search(f"at step 4 the gradient of norm.weight, head.bias is {what}", w)) for w in said) == 1
    assert len(said) == 1  # the flag is logged, and says no more than that
    assert trainer.current_epoch == 3
    shares = [report.scalars["gradient_flow/total/non_finite"] for report in reports(fit)]
    assert shares == pytest.approx([0, 1 / 3, 0])
    for report in reports(fit):
        assert np.isfinite(list(report.scalars.values())).sum() >= len(report.scalars) - 1
        assert all(np.isfinite(array).all() for array in report.arrays.values() if array.dtype.kind == "f")


class NanLoss(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if self.trainer.current_epoch == 1 and batch_idx == 2 else loss


def test_a_loss_that_is_no_number_stops_nothing_and_is_never_logged_as_nan(fit):
    with pytest.warns(RecurrentHealthWarning) as heard:
        trainer = fit(monitor(on_error="warn"), model=NanLoss, max_epochs=3)
    said = [str(w.message) for w in heard if w.category is RecurrentHealthWarning]
    assert sum("at step 5 the gradient of encoder.rnn.weight_ih_l0" in words for words in said) == 1
    assert sum("and 3 more is NaN" in words for words in said) == 1  # eight parameters, five of them named
    assert trainer.current_epoch == 3
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0
    found = events(fit)
    for tag in found.Tags()["scalars"]:
        if tag.startswith("gradient_flow/"):
            assert not any(math.isnan(event.value) for event in found.Scalars(tag)), tag


def test_a_loss_that_is_no_number_is_not_laid_to_hooks_or_weight_penalties(fit):
    with pytest.warns(RecurrentHealthWarning) as heard:
        fit(monitor(), model=NanLoss, max_epochs=2)
    said = [str(w.message) for w in heard if w.category is RecurrentHealthWarning]
    assert not [words for words in said if "hook" in words or "penalty" in words]


class FromState(Classifier):
    """The loss gets the state that comes back last, and no output."""

    def forward(self, x):
        return self.head(self.norm(self.encoder.rnn(x)[1][-1]))


class NanLossFromState(FromState):
    training_step_of_numbers = Classifier.training_step

    def training_step(self, batch, batch_idx):
        loss = self.training_step_of_numbers(batch, batch_idx)
        return loss * math.nan if batch_idx == 1 else loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0)


class NanLossFromOutputs(NanLossFromState):
    forward = Classifier.forward


@pytest.mark.parametrize("model", [NanLossFromState, NanLossFromOutputs])
def test_calls_of_other_batches_are_analysed_where_one_loss_is_no_number(fit, model):
    with pytest.warns(RecurrentHealthWarning) as heard:
        fit(monitor(), model=model, max_epochs=1)
    assert not [w for w in heard if "is left out" in str(w.message)]
    (report,) = reports(fit)
    assert len(report.arrays["gradient_flow/encoder.rnn.l0/lengths"]) == 16  # of 24 sequences in three batches
    assert np.isfinite(report.arrays["gradient_flow/encoder.rnn.l0/hidden"]).all()


def test_a_parameter_that_the_loss_does_not_use_is_dead_and_a_frozen_one_is_not(fit):
    class Idle(Classifier):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 2)
            self.silenced = nn.Parameter(torch.ones(2))
            self.resting = nn.Parameter(torch.ones(2), requires_grad=False)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 0.0 * self.silenced.sum()

    with pytest.warns(RecurrentHealthWarning) as heard:
        trainer = fit(monitor(), model=Idle)
    said = [str(w.message) for w in heard if w.category is RecurrentHealthWarning]
    assert len(said) == 1
    assert (
        "total, flag dead: no step of the epoch gave a gradient other than zero to silenced, unused.weight" in said[0]
    )
    assert trainer.callback_metrics["gradient_flow/total/flags/dead"] == 1
    assert not any("resting" in tag for tag in trainer.callback_metrics)
    assert trainer.callback_metrics["gradient_flow/parameters/unused.weight/norm"] == 0


def test_a_parameter_that_no_optimizer_has_is_not_said_to_have_no_gradient(fit):
    class HeadOnly(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), 0.1)

    trainer = fit(monitor(), model=HeadOnly)  # a warning would raise
    assert trainer.callback_metrics["gradient_flow/total/flags/dead"] == 0


# ---- precision -------------------------------------------------------------------------------------------------------


class Scaled(MixedPrecision):
    """A gradient scaler without half precision, so that its effect can be seen alone."""

    def __init__(self, scale, **options):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, **options))

    def forward_context(self):
        return nullcontext()


@pytest.mark.parametrize("model", [Classifier, FromState], ids=["from outputs", "from the state"])
def test_a_gradient_scaler_is_not_seen_in_any_number(fit, model):
    fit(monitor(), model=model)
    plain = reports(fit)[-1]
    fit(monitor(), model=model, plugins=[Scaled(1024.0)])  # a power of two: nothing is rounded
    scaled = reports(fit)[-1]
    assert plain.arrays.keys() == scaled.arrays.keys()
    for tag, array in plain.arrays.items():
        if array.dtype.kind == "f":
            assert scaled.arrays[tag] == pytest.approx(array, rel=1e-5, abs=1e-8), tag
    assert scaled.scalars["gradient_flow/encoder.rnn.l0/gradient_error"] < 5e-6


def test_a_scaled_accumulated_and_clipped_run_measures_what_the_optimizer_uses(fit):
    witness = Witness()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05, "max_epochs": 1}
    fit(monitor(), witness, plugins=[Scaled(512.0)], **options)
    (report,) = reports(fit)
    assert report.arrays["gradient_flow/total/norms"] == pytest.approx(witness.before, rel=ROUNDING)
    assert report.arrays["gradient_flow/total/norms_clipped"] == pytest.approx(witness.after, rel=ROUNDING)
    assert report.scalars["gradient_flow/encoder.rnn.l0/gradient_error"] < 5e-6


class Loud(Classifier):
    """A loss that the largest scale takes beyond all numbers."""

    def training_step(self, batch, batch_idx):
        return 100 * super().training_step(batch, batch_idx)


def test_steps_that_a_scaler_skips_while_it_finds_its_scale_are_no_fault(fit):
    witness = Witness()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        trainer = fit(
            monitor(), witness, model=Loud, plugins=[Scaled(2.0**127, backoff_factor=2.0**-40)], train=loader(160)
        )
    assert not np.isfinite(witness.before[0])
    assert np.isfinite(witness.before[1:]).all()
    first, second = reports(fit)
    assert first.scalars["gradient_flow/total/non_finite"] == pytest.approx(1 / 20)
    assert first.scalars["gradient_flow/total/flags/non_finite"] == 0
    assert second.scalars["gradient_flow/total/non_finite"] == 0
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0


class Casting(Classifier):
    def forward(self, x):
        return super().forward(x.to(self.head.weight.dtype))


@pytest.mark.parametrize(
    ("precision", "error", "rounding"),
    [("bf16-mixed", 3e-2, 1e-5), ("64-true", 1e-12, 1e-12), ("bf16-true", 0.2, 1e-2)],
)
def test_other_precisions_are_measured(fit, precision, error, rounding):
    witness = Witness()
    trainer = fit(monitor(), witness, model=Casting, precision=precision)
    assert reports(fit)[-1].arrays["gradient_flow/total/norms"] == pytest.approx(witness.before[3:], rel=rounding)
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0
    assert trainer.callback_metrics["gradient_flow/encoder.rnn.l0/gradient_error"] < error


# ---- parameters of unusual kinds -------------------------------------------------------------------------------------


def test_sparse_and_complex_gradients_are_measured_in_a_run(fit):
    class Unusual(Classifier):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, FEATURES, sparse=True)
            self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))

        def training_step(self, batch, batch_idx):
            x, y = batch
            x = x + self.table((x[..., 0] > 0).long() + 3)
            return F.cross_entropy(self(x), y) + (self.phase.conj() - 2j).abs().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    class Seen(pl.Callback):
        found = None

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradient = pl_module.phase.grad.resolve_conj()
            self.found = (norm_of([pl_module.table.weight.grad]), norm_of([torch.view_as_real(gradient)]))

    seen = Seen()
    fit(monitor(), seen, model=Unusual, max_epochs=1, limit_train_batches=1)
    scalars = reports(fit)[0].scalars
    assert scalars["gradient_flow/parameters/table.weight/norm"] == pytest.approx(seen.found[0], rel=ROUNDING)
    assert scalars["gradient_flow/parameters/phase/norm"] == pytest.approx(seen.found[1], rel=ROUNDING)


def test_tied_weights_are_one_parameter(fit):
    class Tied(Classifier):
        def __init__(self):
            super().__init__()
            self.second = nn.GRU(UNITS, UNITS, batch_first=True)
            self.second.weight_hh_l0 = self.encoder.rnn.weight_hh_l0
            self.second.bias_hh_l0 = self.encoder.rnn.bias_hh_l0

        def forward(self, x):
            return self.head(self.norm(self.second(self.encoder.rnn(x)[0])[0][:, -1]))

    trainer = fit(monitor(), model=Tied)
    for module in ("encoder.rnn", "second"):
        assert trainer.callback_metrics[f"gradient_flow/{module}.l0/gradient_error"] < 5e-6
    names = [str(name) for name in reports(fit)[-1].arrays["gradient_flow/parameters/names"]]
    assert "encoder.rnn.weight_hh_l0" in names
    assert "second.weight_hh_l0" not in names


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_an_epoch_is_remembered_by_its_last_steps_only(fit, monkeypatch):
    from rnn_callbacks.callbacks import gradient_meter

    monkeypatch.setattr(gradient_meter, "KEPT", 5)
    monkeypatch.setattr(gradient_meter, "CAPACITY", 2)
    fit(monitor(), train=loader(8 * 13), max_epochs=1, log_every_n_steps=0)
    steps = reports(fit)[0].arrays["gradient_flow/total/steps"].tolist()
    assert steps == list(range(13))[-len(steps) :]
    assert 5 <= len(steps) <= 6


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_of_an_epoch_is_the_mean_of_its_batches(fit, parts):
    class Sees(pl.Callback):
        def __init__(self):
            self.losses, self.found = [], []

        def on_train_batch_end(self, trainer, pl_module, outputs, *args):
            self.losses.append(float(outputs["loss"]))

        def on_train_epoch_end(self, trainer, pl_module):
            (watcher,) = (c for c in trainer.callbacks if isinstance(c, GradientFlowMonitor))
            assert isinstance(watcher._meter, StepMeter)
            watcher._meter.fetch()
            self.found.append(watcher._meter.loss)

    sees = Sees()
    options = {"max_epochs": 3, "log_every_n_steps": 50, "accumulate_grad_batches": parts}
    fit(monitor(every_n_epochs=3), sees, **options)
    # Losses are listened to from the batch of the run's first optimizer step on.
    epochs = [slice(parts - 1, 3), slice(3, 6), slice(6, 9)]
    assert sees.found == pytest.approx([np.mean(sees.losses[epoch]) for epoch in epochs], rel=1e-6)


def test_losses_of_epochs_that_nobody_asked_about_are_not_in_a_later_one(fit):
    class Sees(pl.Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, *args):
            self.losses.append(float(outputs["loss"]))

    sees, watcher = Sees(), monitor(every_n_epochs=3)
    fit(watcher, sees, max_epochs=3, log_every_n_steps=50)
    assert watcher.state_dict()["memory"]["first_loss"] == pytest.approx(np.mean(sees.losses[6:]), rel=1e-6)


def test_updates_are_measured_of_no_more_weights_than_may_be_copied(fit, monkeypatch):
    from rnn_callbacks.callbacks import gradient_meter

    sizes = {name: parameter.nbytes for name, parameter in Classifier().named_parameters()}
    first, *_, last = sizes
    monkeypatch.setattr(gradient_meter, "COPIED", sizes[first] + sizes[last])
    fit(monitor(), max_epochs=1)
    measured = {tag.split("/")[2] for tag in reports(fit)[0].scalars if tag.endswith("/update_ratio")}
    left, expected = sizes[first] + sizes[last], set()
    for name, size in sizes.items():
        if size <= left:
            expected.add(name)
            left -= size
    assert measured == expected
    assert 0 < len(expected) < len(sizes)


# ---- not in the way --------------------------------------------------------------------------------------------------


def test_what_is_done_at_every_step_counts_as_time_spent(fit):
    class Sees(pl.Callback):
        def __init__(self):
            self.spent = []

        def on_train_batch_start(self, *args):
            self.spent.append(watcher._schedule.numbers.spent)

    sees, watcher = Sees(), monitor()
    fit(watcher, sees, max_epochs=1)
    assert sees.spent[0] == 0
    assert (np.diff(sees.spent) > 0).all()


class FullAtFirst(TensorBoardLogger):
    """A disk that is full when the first norm is to be written, and then no more."""

    full = True

    def log_metrics(self, metrics, step=None):
        if self.full and NORM in metrics:
            self.full = False
            raise OSError("no space left")
        super().log_metrics(metrics, step)


def test_a_fault_at_a_step_is_said_and_counted_and_stops_nothing(fit, tmp_path):
    with pytest.warns(RecurrentHealthWarning, match="no space left. Training goes on, and every look tries again"):
        trainer = fit(monitor(on_error="warn"), logger=FullAtFirst(tmp_path, name="logs"))
    assert trainer.current_epoch == 2
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 1
    assert list(by_step(fit, NORM)) == [1, 2, 3, 4, 5]
    assert reports(fit)[0].arrays["gradient_flow/total/steps"].tolist() == [0, 1, 2]


def test_a_fault_at_a_step_is_raised_where_that_was_asked_for(fit, tmp_path):
    with pytest.raises(OSError, match="no space left"):
        fit(monitor(on_error="raise"), logger=FullAtFirst(tmp_path, name="logs"))
