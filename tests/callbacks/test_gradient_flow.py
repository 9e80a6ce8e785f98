"""`GradientFlowMonitor` in a real run: gradients through time, whether they are to be believed, and what is said."""

import math
import re
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import FixedPointTracker, GateMonitor, GradientFlowMonitor
from rnn_callbacks.analysis.gradient_flags import EPOCHS
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.report import load

from ..models import CLASSES, FEATURES, STEPS, UNITS, Classifier, StepClassifier, loader

CELL = "gradient_flow/encoder.rnn.l0"
ERROR = f"{CELL}/gradient_error"
ROUNDING = 1e-5  # of bias gradients summed over 24 sequences of 7 steps in float32


def monitor(**options):
    """Without pictures, which would take most of the time."""
    return GradientFlowMonitor(**{"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"} | options)


def reports(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return [load(str(path)).report for path in sorted((run / "rnn_callbacks/gradient_flow").glob("*.npz"))]


def watch(fit, *callbacks, **options):
    """A run, its trainer, and what was said in it."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer = fit(*callbacks, **options)
    return trainer, [str(w.message) for w in heard if issubclass(w.category, RecurrentHealthWarning)]


# ---- gradients through time ------------------------------------------------------------------------------------------


class Last(Classifier):
    """The last state is the logit: its direct gradient is known by hand."""

    def forward(self, x):
        return self.encoder.rnn(x)[0][:, -1, :CLASSES]


def by_hand(model, batches, parts=1):
    """Root mean square over sequences of |dL/dh_t|, ``(T,)``, one step at a time through autograd."""
    squares, count = torch.zeros(STEPS), 0
    rnn = model.encoder.rnn
    for x, y in batches:
        states, h = [], torch.zeros(1, len(x), UNITS)
        for step in x.split(1, dim=1):
            _, h = rnn(step, h)
            states.append(h)
        loss = F.cross_entropy(states[-1][0][:, :CLASSES], y) / parts
        found = torch.autograd.grad(loss, states)
        squares += torch.stack([gradient[0].square().sum() for gradient in found])
        count += len(x)
    return (squares / count).sqrt().numpy()


class Still(Last):
    """The weights do not move, so that the gradient can be computed again."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_of_every_state_is_that_of_autograd(fit, parts):
    trainer = fit(monitor(flags={"dead": None}), model=Still, train=loader(), accumulate_grad_batches=parts)
    if parts == 2:  # the epoch's last batch is a step of its own, and still divided by two
        assert trainer.global_step == 4
    expected = by_hand(trainer.lightning_module, loader(), parts)
    found = reports(fit)[-1].arrays[f"{CELL}/hidden"]
    assert found == pytest.approx(expected, rel=1e-4)
    ratio = reports(fit)[-1].scalars[f"{CELL}/first_over_last"]
    assert ratio == pytest.approx(expected[0] / expected[-1], rel=1e-4)


KINDS = {
    "gru stack": lambda: Classifier("gru", layers=2, dropout=0.3),
    "bidirectional lstm": lambda: Classifier("lstm", bidirectional=True),
    "packed rnn": lambda: Classifier("rnn", packed=True),
    "cell in a loop": StepClassifier,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}], ids=["", "3 parts"])
def test_rebuilt_bias_gradients_are_the_modules_own(fit, kind, options):
    _, said = watch(fit, monitor(flags={"dead": None}), model=KINDS[kind](), **options)
    assert said == []
    for report in reports(fit):
        errors = [v for tag, v in report.scalars.items() if tag.endswith("/gradient_error")]
        assert len(errors) == {"gru stack": 2, "bidirectional lstm": 2}.get(kind, 1)
        assert max(errors) < ROUNDING


class Twice(Classifier):
    """One module reads two inputs, as siamese networks do."""

    def forward(self, x):
        return super().forward(x) + super().forward(x.flip(1))


class Several(Classifier):
    def __init__(self):
        super().__init__()
        self.second = nn.LSTM(UNITS, UNITS, batch_first=True)
        self.third = nn.GRUCell(UNITS, UNITS)

    def forward(self, x):
        return self.head(self.norm(self.third(self.second(self.encoder.rnn(x)[0])[0][:, -1])))


def test_a_module_that_is_called_twice_in_a_step_is_rebuilt_from_both(fit):
    _, said = watch(fit, monitor(), model=Twice)
    assert said == []
    assert reports(fit)[-1].scalars[ERROR] < ROUNDING


def test_every_module_is_described(fit):
    _, said = watch(fit, monitor(flags={"dead": None}), model=Several)
    assert said == []
    scalars = reports(fit)[-1].scalars
    for cell in ("encoder.rnn.l0", "second.l0", "third.cell"):
        assert scalars[f"gradient_flow/{cell}/gradient_error"] < ROUNDING
        assert scalars[f"gradient_flow/{cell}/rebuild_error"] < ROUNDING


def test_two_monitors_of_two_modules_share_what_they_hear_and_norms_are_measured_once(fit):
    first, second = (
        monitor(module=module, max_sequences=most, flags={"dead": None})
        for module, most in (("encoder.rnn", 5), ("second", 9))
    )
    trainer, said = watch(fit, first, second, model=Several)
    assert said == []
    assert not any("third" in tag and "parameters" not in tag for tag in trainer.callback_metrics)
    found = reports(fit)
    assert len(found) == 4  # the second monitor's look lies beside the first one's
    assert sum("gradient_flow/total/norms" in report.arrays for report in found) == 2
    for cell, most in (("encoder.rnn.l0", 5), ("second.l0", 9)):
        own = [report for report in found if f"gradient_flow/{cell}/lengths" in report.arrays]
        assert [len(report.arrays[f"gradient_flow/{cell}/lengths"]) for report in own] == [most] * 2
        assert all(report.scalars[f"gradient_flow/{cell}/gradient_error"] < ROUNDING for report in own)
    # Gates of both modules are told apart, though only one monitor measures norms.
    gates = {"gradient_flow/encoder.rnn.l0/new/norm", "gradient_flow/second.l0/forget/norm"}
    assert gates <= set(trainer.callback_metrics)


@pytest.mark.parametrize("sequences", [5, 8, 13])
def test_batches_larger_than_what_is_kept_are_checked_all_the_same(fit, sequences):
    # The first batch of 8 is whole from 8 sequences on; else torch's own pass over the kept ones is the referee.
    _, said = watch(fit, monitor(max_sequences=sequences))
    assert said == []
    report = reports(fit)[-1]
    assert len(report.arrays[f"{CELL}/lengths"]) == sequences
    assert 0 < report.scalars[ERROR] < ROUNDING


@pytest.mark.parametrize("sequences", [24, 30, 48])
def test_calls_beyond_what_is_analysed_are_not_missed_in_the_check(fit, sequences):
    # Two calls of 24: from 24 sequences on the first call alone is whole, and half of the batch's gradient.
    _, said = watch(fit, monitor(max_sequences=sequences), model=Twice, train=loader(24, 24))
    assert said == []
    assert reports(fit)[-1].scalars[ERROR] < ROUNDING


class TakesTurns(Classifier):
    """A first pass trains the head alone, a second one all, as `toggle_optimizer` does for adversaries."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.encoder.rnn.requires_grad_(False)
        x = batch[0].clone().requires_grad_()
        self.manual_backward(F.cross_entropy(self(x), batch[1]))
        self.encoder.rnn.requires_grad_(True)
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


@pytest.mark.filterwarnings("ignore:GradientFlowMonitor. in manual optimization")
def test_a_pass_during_which_the_bias_is_not_trained_is_no_fault(fit):
    _, said = watch(fit, monitor(), model=TakesTurns)
    assert [words for words in said if "in manual optimization" not in words] == []
    assert reports(fit)[-1].scalars[ERROR] < ROUNDING


class TakesTurnsAtFirst(Classifier):
    """As above in the first epoch; in the second one a penalty is in the loss, of which outputs know nothing."""

    training_step_of_turns = TakesTurns.training_step

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        if self.trainer.current_epoch == 0:
            self.training_step_of_turns(batch, batch_idx)
            return
        optimizer = self.optimizers()
        optimizer.zero_grad()
        penalty = 0.1 * sum(parameter.square().sum() for parameter in self.parameters())
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]) + penalty)
        optimizer.step()


def test_a_bias_that_rested_in_one_epoch_is_checked_in_the_next(fit):
    _, said = watch(fit, monitor(), model=TakesTurnsAtFirst)
    first, second = (report.scalars[ERROR] for report in reports(fit))
    assert first < ROUNDING
    assert second > 1e-3
    assert sum("is not only what comes back through its outputs" in words for words in said) == 1


class LeavesEarly(StepClassifier):
    """Half of the sequences end after four steps, and the loop goes on with the others."""

    def forward(self, x):
        state, half = None, len(x) // 2
        for t, step in enumerate(x.unbind(1)):
            if t == 4:
                ended, state = state[0][half:], tuple(part[:half].contiguous() for part in state)
            state = self.encoder.rnn(step[: len(step) if t < 4 else half], state)
        return self.head(self.norm(torch.cat([state[0], ended])))


@pytest.mark.parametrize("sequences", [5, 13])
def test_a_loop_that_was_whole_only_at_its_end_is_not_held_against_the_whole_gradient(fit, sequences):
    # Of a batch of 8 the first 5 are kept: all of those that run on after four steps, and not all before.
    _, said = watch(fit, monitor(max_sequences=sequences, flags={"dead": None}), model=LeavesEarly)
    assert said == []
    assert reports(fit)[-1].scalars["gradient_flow/encoder.rnn.cell/gradient_error"] < ROUNDING


@pytest.mark.parametrize("kind", ["frozen", "none"])
def test_without_a_trained_recurrent_bias_gradients_are_checked_all_the_same(fit, kind):
    model = Classifier("lstm", bias=kind == "frozen")
    if kind == "frozen":
        model.encoder.rnn.bias_hh_l0.requires_grad_(False)
    _, said = watch(fit, monitor(), model=model)
    assert said == []
    assert 0 < reports(fit)[-1].scalars[ERROR] < ROUNDING


class Truncated(Classifier):
    """Truncated back-propagation: two steps of the optimizer per sequence, the state handed on."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        state, optimizer = None, self.optimizers()
        for part in (x[:, :3], x[:, 3:]):
            out, state = self.encoder.rnn(part, state)
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.head(out[:, -1]), y))
            optimizer.step()
            state = state.detach()

    def configure_optimizers(self):
        return torch.optim.SGD([*self.encoder.parameters(), *self.head.parameters()], 0.1)


def test_truncated_back_propagation_is_followed_within_its_parts(fit):
    trainer, said = watch(fit, monitor(flags={"dead": None}), model=Truncated)
    assert len(said) == 1
    assert "in manual optimization" in said[0]
    report = reports(fit)[-1]
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0
    assert len(report.arrays["gradient_flow/total/norms"]) == 2 * 3
    assert report.scalars[ERROR] < ROUNDING
    assert len(report.arrays[f"{CELL}/credit"]) == 4  # parts of 3 and 4 steps, on weights of their own


# ---- what can be believed --------------------------------------------------------------------------------------------


class Penalised(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.1 * sum(p.square().sum() for p in self.parameters())


def test_a_weight_penalty_in_the_loss_is_said_once_and_costs_nothing(fit):
    _, said = watch(fit, monitor(), model=Penalised, max_epochs=3)
    assert len(said) == 1
    assert re.search(r"the gradient of encoder.rnn's bias is not only what comes back .*A penalty on weights", said[0])
    for report in reports(fit):
        assert report.scalars[ERROR] > 1e-3
        assert f"{CELL}/horizon" in report.scalars
    fit(monitor())
    assert reports(fit)[0].scalars.keys() == report.scalars.keys()


class PenalisedParts(Classifier):
    """Reads a sequence in two parts, which torch cannot run again at once, and keeps one layer's bias small."""

    def forward(self, x):
        _, state = self.encoder.rnn(x[:, :3])
        return self.head(self.norm(self.encoder.rnn(x[:, 3:], state)[0][:, -1]))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.encoder.rnn.bias_hh_l0.square().sum()


def test_a_module_with_one_layer_that_nothing_confirms_is_left_out_with_all_layers(fit):
    _, said = watch(fit, monitor(flags={"dead": None}), model=PenalisedParts(layers=2))
    assert len(said) == 1
    assert re.search(r"encoder.rnn is left out, because the gradient of its bias cannot be rebuilt \(cell l0", said[0])
    for report in reports(fit):
        assert report.scalars[ERROR] > 1e-3
        # Behind a batch norm sequences' gradients all but cancel: rounding is larger beside what is left.
        assert report.scalars["gradient_flow/encoder.rnn.l1/gradient_error"] < 20 * ROUNDING
        assert not any(tag.endswith("/horizon") for tag in report.scalars)


class Doubled(Classifier):
    """A user's hook changes the gradient after it was heard."""

    def forward(self, x):
        outputs, _ = self.encoder.rnn(x)
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: 2 * gradient)
        return self.head(self.norm(outputs[:, -1]))


def test_a_hook_that_changes_gradients_is_suspected(fit):
    _, said = watch(fit, monitor(), model=Doubled)
    assert len(said) == 1
    assert "a hook that changes gradients would make the profile through time wrong" in said[0]
    assert reports(fit)[-1].scalars[ERROR] == pytest.approx(0.5, rel=1e-4)  # of the true one, half is not explained


class Meddles(pl.Callback):
    """The weights change between forward and backward pass, and are put back: the states are right, the rest is not."""

    def on_before_backward(self, trainer, pl_module, loss):
        pl_module.encoder.rnn.weight_hh_l0.data *= 3

    def on_after_backward(self, trainer, pl_module):
        pl_module.encoder.rnn.weight_hh_l0.data /= 3


def test_weights_that_change_within_a_step_are_noticed(fit):
    _, said = watch(fit, monitor(), Meddles())
    assert len(said) == 1
    assert "encoder.rnn" in said[0]
    assert reports(fit)[-1].scalars[ERROR] > 1e-3


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_one_batch_that_was_meddled_with_is_enough(fit, batch):
    class Once(Meddles):
        def on_before_backward(self, trainer, pl_module, loss):
            self.now = trainer.fit_loop.batch_idx == batch
            if self.now:
                super().on_before_backward(trainer, pl_module, loss)

        def on_after_backward(self, trainer, pl_module):
            if self.now:
                super().on_after_backward(trainer, pl_module)

    watch(fit, monitor(), Once(), max_epochs=1)
    assert reports(fit)[-1].scalars[ERROR] > 1e-3


class Unheard(Classifier):
    """The recurrent outputs do not reach the loss."""

    def forward(self, x):
        return self.head(self.norm(self.encoder.rnn(x)[0][:, -1].detach()))


def test_outputs_that_do_not_reach_the_loss_are_said_and_norms_are_still_logged(fit):
    trainer, said = watch(fit, monitor(flags={"dead": None}), model=Unheard)
    assert len(said) == 1
    assert "no gradient came back to encoder.rnn: its outputs do not reach the loss" in said[0]
    assert "gradient_flow/total/norm" in trainer.callback_metrics
    assert not any(tag.startswith(CELL) and not tag.endswith("/norm") for tag in trainer.callback_metrics)


# ---- flags -----------------------------------------------------------------------------------------------------------

LONG = 60


class Constructed(pl.LightningModule):
    """A relu network whose recurrent matrix is a scaled permutation: gradients change by the scale at every step."""

    def __init__(self, scale, lr=0.0, steps=LONG, family=nn.RNN):
        super().__init__()
        self.lr = lr
        self.rnn = family(FEATURES, UNITS, batch_first=True, nonlinearity="relu")
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(scale * torch.eye(UNITS).roll(1, 0))
            self.rnn.weight_ih_l0.fill_(0.1)
            self.rnn.bias_ih_l0.fill_(0.1)
            self.rnn.bias_hh_l0.fill_(0.1)

    def training_step(self, batch, batch_idx):
        return self.rnn(batch[0])[0][:, -1].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def positive(steps=LONG):
    x = torch.rand(8, steps, FEATURES, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), 4)


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0")
def test_a_gradient_that_grows_at_every_step_is_flagged_with_its_growth(fit):
    trainer, said = watch(fit, monitor(), model=Constructed(1.2), train=positive(), validate=[])
    grown = 1.2 ** (LONG - 1)
    assert len(said) == 1
    assert f"rnn.l0, flag exploding: the gradient of a single step grows {grown:.3g} times" in said[0]
    scalars = reports(fit)[-1].scalars
    assert scalars["gradient_flow/rnn.l0/flags/exploding"] == 1
    assert scalars["gradient_flow/rnn.l0/flags/vanishing"] == 0
    assert scalars["gradient_flow/rnn.l0/gain"] == pytest.approx(1.2, rel=1e-5)
    assert scalars["gradient_flow/rnn.l0/lyapunov"] == pytest.approx(math.log(1.2), rel=1e-4)
    assert scalars["gradient_flow/rnn.l0/horizon"] == 10 * (LONG - 1)  # no further can be told
    assert scalars["gradient_flow/rnn.l0/first_over_last"] == pytest.approx(grown, rel=1e-4)
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0


def test_a_gradient_that_shrinks_at_every_step_is_flagged_once_it_had_time(fit):
    _, said = watch(fit, monitor(), model=Constructed(0.3), train=positive(), validate=[], max_epochs=EPOCHS + 1)
    tag = "gradient_flow/rnn.l0/flags/vanishing"
    assert [report.scalars[tag] for report in reports(fit)] == [0] * (EPOCHS - 1) + [1, 1]
    assert len(said) == 1
    horizon = -1 / math.log(0.3)
    assert f"credit fell by a factor e every {horizon:.1f} of {LONG} time steps" in said[0]
    assert reports(fit)[0].scalars["gradient_flow/rnn.l0/horizon"] == pytest.approx(horizon, rel=1e-4)
    assert reports(fit)[0].scalars["gradient_flow/rnn.l0/reach"] == pytest.approx(
        math.log(0.01) / math.log(0.3), rel=1e-4
    )


class LearnsNear(Classifier):
    """Two contracting networks; the last input decides, so that the loss falls although nothing is remembered."""

    def __init__(self):
        super().__init__("rnn")
        self.second = nn.RNN(FEATURES, UNITS, batch_first=True)
        with torch.no_grad():
            for rnn in (self.encoder.rnn, self.second):
                rnn.weight_hh_l0.mul_(0.1)

    def forward(self, x):
        return self.head(self.encoder.rnn(x)[0][:, -1] + self.second(x)[0][:, -1])

    def configure_optimizers(self):
        return torch.optim.Adam([*self.head.parameters(), self.encoder.rnn.weight_ih_l0], 0.1)


def near(steps=23):
    x = torch.randn(64, steps, FEATURES, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, -1, 0] > 0).long()), 16)


@pytest.mark.parametrize("modules", [[None], ["encoder.rnn", "second"]])
def test_a_short_horizon_is_no_fault_while_the_loss_falls(fit, modules):
    watchers = [monitor(module=module, flags={"dead": None, "vanishing": 0.2}) for module in modules]
    trainer, said = watch(fit, *watchers, model=LearnsNear, train=near(), validate=[], max_epochs=6)
    assert said == []
    for module in ("encoder.rnn", "second"):
        assert trainer.callback_metrics[f"gradient_flow/{module}.l0/horizon"] < 0.2 * 23
        assert trainer.callback_metrics[f"gradient_flow/{module}.l0/flags/vanishing"] == 0


class ZeroLoss(Classifier):
    """The value of the loss says nothing, as with objectives of which only the gradient counts."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss - loss.detach()


def test_a_loss_that_is_zero_from_the_start_says_nothing_of_progress(fit):
    trainer, said = watch(fit, monitor(), model=ZeroLoss, max_epochs=3)
    assert said == []
    assert trainer.callback_metrics["gradient_flow/failed_looks"] == 0


def test_a_healthy_run_is_silent(fit):
    trainer, said = watch(fit, monitor(), model=Classifier("lstm", layers=2), max_epochs=4)
    assert said == []
    flags = {tag: float(v) for tag, v in trainer.callback_metrics.items() if "/flags/" in tag}
    assert {tag.rsplit("/", 1)[1] for tag in flags} == {"vanishing", "exploding", "clipped", "non_finite", "dead"}
    assert not any(flags.values())


def test_flags_can_be_switched_off_and_moved(fit):
    options = {"vanishing": None, "dead": None, "exploding": 1e9, "clipped": 0.999, "non_finite": None}
    _, said = watch(fit, monitor(flags=options), model=Constructed(1.2), train=positive(), validate=[])
    assert said == []
    flags = {tag for tag in reports(fit)[-1].scalars if "/flags/" in tag}
    assert flags == {"gradient_flow/rnn.l0/flags/exploding", "gradient_flow/total/flags/clipped"}


WRONG = {
    "not a dict": (["dead"], "flags must be a dict of thresholds by name, got ['dead']"),
    "unknown": ({"ded": 1.0}, "flags: 'ded' is none of vanishing, exploding, clipped, non_finite, dead"),
    "text": ({"dead": "yes"}, "the threshold of 'dead' must be a number or null, got 'yes'"),
    "true": ({"dead": True}, "must be a number or null, got True"),
    "nan": ({"dead": math.nan}, "must be a number or null, got nan"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_flags_are_refused_before_training(fit, mistake):
    flags, message = WRONG[mistake]
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        fit(monitor(flags=flags))


# ---- who else is there -----------------------------------------------------------------------------------------------


def test_early_stopping_can_monitor_the_norm(fit):
    stop = EarlyStopping("gradient_flow/total/norm", mode="max", patience=1, min_delta=10.0)
    trainer = fit(GradientFlowMonitor(max_overhead=1e-9, on_error="raise"), stop, max_epochs=9)
    assert trainer.current_epoch == 2
    assert stop.best_score == pytest.approx(reports(fit)[0].scalars["gradient_flow/total/norm"])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_two_ranks_agree(fit):
    class Check(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in pl_module.parameters()))

        def on_train_end(self, trainer, pl_module):
            for tag in ("gradient_flow/total/norm", f"{CELL}/horizon", ERROR):
                mine = trainer.callback_metrics[tag]
                assert mine == trainer.strategy.broadcast(mine, src=0)
            assert trainer.callback_metrics[ERROR] < ROUNDING  # gradients of ranks are averaged; torch's pass is not
            if trainer.is_global_zero:
                norms = reports(fit)[-1].arrays["gradient_flow/total/norms"]
                assert norms[-1] == pytest.approx(self.norm, rel=1e-5)

    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    fit(monitor(), Check(), strategy=strategy, devices=2, max_epochs=2)
    assert len(reports(fit)) == 2


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
def test_a_resumed_run_remembers_the_longest_horizon_and_the_first_loss(fit, tmp_path):
    watcher = monitor()
    fit(watcher, ModelCheckpoint(tmp_path / "kept"), max_epochs=2, enable_checkpointing=True)
    (path,) = (tmp_path / "kept").glob("*.ckpt")
    state = torch.load(path, weights_only=True)["callbacks"]
    (own,) = (value for key, value in state.items() if "GradientFlowMonitor" in key)
    horizons = [report.scalars[f"{CELL}/horizon"] for report in reports(fit)]
    assert own["memory"]["horizons"] == {CELL: max(horizons)}
    assert 0.1 < own["memory"]["first_loss"] < 2
    again = monitor()
    fit(again, max_epochs=4, ckpt_path=path)
    later = [report.scalars[f"{CELL}/horizon"] for report in reports(fit)]
    assert len(later) == 2
    remembered = again.state_dict()["memory"]
    assert remembered["first_loss"] == own["memory"]["first_loss"]
    assert remembered["horizons"][CELL] == max(horizons + later)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_resumed_within_an_epoch_describes_the_rest_of_it(fit, tmp_path):
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    options = {"train": loader(32), "validate": [], "max_epochs": 2}
    fit(monitor(), Saves(), **options)
    fit(monitor(), ckpt_path=tmp_path / "middle.ckpt", **options)
    assert [report.arrays["gradient_flow/total/steps"].tolist() for report in reports(fit)] == [[5, 6, 7]]


def test_one_callback_can_watch_two_runs(fit):
    watcher = monitor()
    fit(watcher)
    first = reports(fit)[-1].arrays["gradient_flow/total/norms"]
    fit(watcher)
    assert len(reports(fit)) == 2
    assert reports(fit)[-1].arrays["gradient_flow/total/norms"].tolist() == first.tolist()


def test_three_watchers_together_leave_a_run_bit_identical(fit):
    def run(*callbacks):
        pl.seed_everything(3, verbose=False)
        model = Classifier("lstm", layers=2, dropout=0.3)
        options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
        trainer = fit(*callbacks, model=model, train=loader(40, shuffle=True), **options)
        slots = [s for optimizer in trainer.optimizers for state in optimizer.state.values() for s in state.values()]
        return [*model.state_dict().values(), *slots, torch.get_rng_state()]

    plain = run()
    options = {"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"}  # drawn in tests/test_laws.py
    watched = run(GradientFlowMonitor(**options), GateMonitor(**options, ablate="mean"), FixedPointTracker(**options))
    assert len(plain) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_pictures_are_of_the_parameters_and_of_every_module(fit):
    fit(monitor(figure_every_n_epochs=1, flags={"dead": None}), model=Several, max_epochs=1)
    (run,) = fit.logs.glob("version_*")
    names = {path.name.split("-epoch")[0] for path in (run / "rnn_callbacks/gradient_flow/figures").iterdir()}
    assert names == {"parameters", "encoder.rnn", "second", "third"}


def test_credit_is_followed_within_the_sequence(fit):
    fit(monitor(), max_epochs=1)
    (report,) = reports(fit)
    assert np.isfinite(report.arrays[f"{CELL}/credit"]).all()
    assert len(report.arrays[f"{CELL}/credit"]) <= STEPS
    assert len(report.arrays[f"{CELL}/hidden"]) == STEPS


# ---- what users do with gradients beside training --------------------------------------------------------------------


class Saliency(Still):
    """Asks for a gradient of its own, to look at; nothing of it trains."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        states = self.encoder.rnn(x.requires_grad_())[0]
        torch.autograd.grad(10 * states.sum(), x, retain_graph=True)
        return F.cross_entropy(states[:, -1, :CLASSES], y)


def test_a_gradient_that_a_training_step_asks_for_itself_is_not_taken_for_what_trains(fit):
    found = []
    for model in (Still, Saliency):
        _, said = watch(fit, monitor(), model=model, max_epochs=1)
        assert all("flag dead" in words for words in said)  # the readout is not used
        found.append(reports(fit)[-1])
    plain, asked = found
    np.testing.assert_allclose(asked.arrays[f"{CELL}/hidden"], plain.arrays[f"{CELL}/hidden"], rtol=ROUNDING)
    assert asked.scalars[ERROR] < ROUNDING


class NormedLoop(StepClassifier):
    """Normalises the state between two steps."""

    def __init__(self):
        super().__init__()
        self.encoder.rnn = nn.GRUCell(FEATURES, UNITS)
        self.between = nn.LayerNorm(UNITS)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.between(self.encoder.rnn(step, state))
        return self.head(self.norm(state))


def test_a_state_that_is_changed_between_steps_is_said_and_gets_no_horizon(fit):
    _, said = watch(fit, monitor(), model=NormedLoop, max_epochs=6)
    assert len(said) == 1
    assert "how far back credit reaches in encoder.rnn.cell cannot be told" in said[0]
    scalars = reports(fit)[-1].scalars
    where = "gradient_flow/encoder.rnn.cell"
    assert {f"{where}/{tag}" for tag in ("horizon", "reach", "lyapunov")}.isdisjoint(scalars)
    assert scalars[f"{where}/flags/vanishing"] == 0
    assert scalars[f"{where}/gradient_error"] < ROUNDING  # the total gradient is right all the same


class ManyStreams(StepClassifier):
    """Sixteen sequences of states through one cell, in turn."""

    def __init__(self):
        super().__init__()
        self.encoder.rnn = nn.GRUCell(FEATURES, UNITS)

    def forward(self, x):
        states = [torch.zeros(len(x), UNITS) for _ in range(16)]
        for step in x.unbind(1):
            states = [self.encoder.rnn(step + number / 16, state) for number, state in enumerate(states)]
        return self.head(self.norm(torch.stack(states).mean(0)))


def test_many_streams_through_one_cell_are_told_apart(fit):
    _, said = watch(fit, monitor(max_sequences=1000), model=ManyStreams, max_epochs=1)
    assert not said
    report = reports(fit)[-1]
    assert set(report.arrays["gradient_flow/encoder.rnn.cell/lengths"]) == {STEPS}
    assert report.scalars["gradient_flow/encoder.rnn.cell/horizon"] > 1


class FrozenRecurrence(Classifier):
    def __init__(self):
        super().__init__()
        self.encoder.rnn.requires_grad_(False)


def test_a_frozen_layer_is_said_to_be_so_and_norms_are_reported_all_the_same(fit):
    _, said = watch(fit, monitor(), model=FrozenRecurrence)
    assert len(said) == 1
    assert "encoder.rnn ran, but without gradients (frozen with all below it" in said[0]
    scalars = reports(fit)[-1].scalars
    assert scalars["gradient_flow/parameters/head.weight/norm"] > 0
    assert not any("encoder" in tag for tag in scalars)


class ClipsInAHook(Classifier):
    def on_before_optimizer_step(self, optimizer):
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)


def test_clipping_in_the_models_own_hook_is_measured(fit):
    watch(fit, monitor(), model=ClipsInAHook)
    scalars = reports(fit)[-1].scalars
    assert scalars["gradient_flow/total/norm_clipped"] == pytest.approx(0.01, rel=1e-3)
    assert scalars["gradient_flow/total/clipped"] == 1
    assert scalars["gradient_flow/total/norm"] > 0.02


class SpikesOnce(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return 1000 * loss if self.trainer.global_step == 1 else loss


def test_a_spike_before_a_look_is_in_the_next_numbers_of_the_loggers(fit):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch(fit, monitor(), model=SpikesOnce, log_every_n_steps=5)  # a look after step 2, numbers after step 4
    (run,) = fit.logs.glob("version_*")
    events = EventAccumulator(str(run))
    events.Reload()
    largest = {event.step: event.value for event in events.Scalars("gradient_flow/total/norm_max")}
    assert largest[4] == pytest.approx(largest[2])
    assert largest[4] > 50 * largest[5]


def test_a_tiny_gradient_is_not_dead(fit):
    class Faint(Classifier):
        def __init__(self):
            super().__init__()
            self.faint = nn.Parameter(torch.ones(2))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 1e-30 * self.faint.sum()  # its square is 0 in float32

    _, said = watch(fit, monitor(), model=Faint)
    assert not said
    assert reports(fit)[-1].scalars["gradient_flow/total/flags/dead"] == 0
