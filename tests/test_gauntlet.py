"""Every exported callback in every situation that Lightning's users get into: it looks, says nothing, changes nothing.

One run with all callbacks and one without any serve all tests of a situation. ``python -m tests.test_gauntlet`` prints
the matrix of both as Markdown.
"""

import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
import torch._dynamo
from lightning.fabric.utilities.exceptions import MisconfigurationException

from . import gauntlet_models as models
from .gauntlet import CALLBACKS, Runs, Situation, run
from .gauntlet_ways import (
    Scaled,
    any_algorithm_afterwards,
    averaged,
    averaged_late,
    doubles,
    fail_beside,
    fail_in,
    find_rate_first,
    fit_data_module,
    fit_twice,
    fit_with_callbacks_of_the_model,
    nothing_compiled,
    other_trainer,
    press_control_c,
    two_loggers,
    validate_first,
)
from .models import Classifier

# ---- the situations --------------------------------------------------------------------------------------------------

PLAIN = "plain, last batch smaller"
ONCE = {"max_epochs": 1}  # where the second epoch would say what the first one says
CHANGED = {"ablate": "mean", "causal": True}  # what runs the validation once more, on a changed copy of the model
BAREBONES = dict.fromkeys(
    ("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
)

SITUATIONS = {
    PLAIN: Situation(),
    "bidirectional, packed": Situation(
        lambda: Classifier("lstm", packed=True, bidirectional=True),
        ONCE,
        refuses={"FixedPointTracker": "is bidirectional"},
        says={  # true: only the last state is used
            "GradientFlowMonitor": "flag dead: no step .* encoder.rnn.weight_hh_l0_reverse",
            "WeightTrajectoryLogger": "flag unmoved: .* encoder.rnn.weight_hh_l0_reverse",
        },
    ),
    "bf16-mixed": Situation(options={"precision": "bf16-mixed"}),
    "bf16-true": Situation(options={"precision": "bf16-true"} | ONCE),
    "64-true": Situation(options={"precision": "64-true"} | ONCE),
    "16-mixed with a scaler": Situation(options=Scaled(ONCE)),
    "16-mixed, infinite gradients": Situation(
        models.Overflowing, Scaled(ONCE), says={"GradientFlowMonitor": "flag non_finite: 33.3% of the epoch's steps"}
    ),
    "float64 by default": Situation(within=doubles, options=ONCE),
    "compiled submodule": Situation(lambda: models.compiled("submodule"), within=nothing_compiled, same_as=PLAIN),
    "compiled in place": Situation(lambda: models.compiled("in place"), ONCE, within=nothing_compiled, same_as=PLAIN),
    "compiled LightningModule": Situation(
        lambda: models.compiled("whole"), ONCE, within=nothing_compiled, same_as=PLAIN
    ),
    "EMA before": Situation(before=averaged, settings=CHANGED),
    "EMA after": Situation(after=averaged, settings=CHANGED, same_as="EMA before"),
    "SWA before": Situation(before=averaged_late),
    "SWA after": Situation(after=averaged_late, same_as="SWA before"),
    "SWA without an end": Situation(after=averaged_late, options={"max_epochs": -1, "max_steps": 6}),
    "accumulation, clipping by value": Situation(
        options={"accumulate_grad_batches": 2, "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"} | ONCE
    ),
    "two optimizers by hand": Situation(
        models.TwoOptimizers,
        ONCE,
        says={"GradientFlowMonitor": "in manual optimization gradients reach it after your own"},
    ),
    "LBFGS": Situation(models.Quasinewton, ONCE),
    "validation within an epoch": Situation(
        options={"val_check_interval": 0.5} | ONCE, train=models.split_in_batches_of_four(0)
    ),
    "validation every 2nd epoch": Situation(options={"check_val_every_n_epoch": 2}),
    "max_steps": Situation(options={"max_epochs": -1, "max_steps": 5}),
    "list of validation loaders": Situation(
        models.SeveralLoaders, ONCE, validate=lambda: [models.validation_data(), models.more_data()], settings=CHANGED
    ),
    "dict of validation loaders": Situation(
        models.SeveralLoaders,
        validate=lambda: {"a": models.validation_data(), "b": models.more_data()},
        settings=CHANGED,
        same_as="list of validation loaders",
    ),
    "streams": Situation(options=ONCE, train=models.streams(0), validate=models.streams(1)),
    "persistent workers": Situation(train=models.kept_workers(0), validate=models.kept_workers(1)),
    "data module, loaders made anew": Situation(options={"reload_dataloaders_every_n_epochs": 1}, fit=fit_data_module),
    "overfit_batches": Situation(options={"overfit_batches": 2} | ONCE),
    "detect_anomaly, deterministic, inference_mode=False, profiler": Situation(
        options={"detect_anomaly": True, "deterministic": True, "inference_mode": False, "profiler": "simple"} | ONCE,
        within=any_algorithm_afterwards,
        same_as=PLAIN,
    ),
    "gradient checkpointing": Situation(models.Recomputed, ONCE, same_as=PLAIN),
    "fast_dev_run": Situation(options={"fast_dev_run": True}, validate=models.one_batch, files=False),
    "barebones": Situation(models.Silent, options={"barebones": True} | BAREBONES | ONCE),
    "validate before fit": Situation(fit=validate_first, options=ONCE),
    "lr_find before fit": Situation(models.Tuned, ONCE, fit=find_rate_first),
    "fit twice": Situation(fit=fit_twice),
    "callbacks of the model": Situation(models.Brings, ONCE, fit=fit_with_callbacks_of_the_model, same_as=PLAIN),
    "no logger": Situation(options={"logger": False} | ONCE, same_as=PLAIN),
    "two loggers": Situation(options={"logger": two_loggers} | ONCE, same_as=PLAIN),
    "validation_step returns nothing": Situation(models.Silent, ONCE, same_as=PLAIN),
    "batches are dicts": Situation(
        models.Dicts,
        ONCE,
        train=models.dicts(0),
        validate=models.dicts(1),
        settings={"concepts": {"target": "target"}},
        same_as=PLAIN,
    ),
    "configure_model": Situation(models.MadeLate, ONCE),
    "frozen encoder below": Situation(models.FrozenBelow, ONCE),
    "frozen recurrent layer": Situation(
        models.FrozenRecurrence, ONCE, says={"GradientFlowMonitor": "encoder.rnn ran, but without gradients .frozen"}
    ),
    "interrupted by hand": Situation(fit=press_control_c),
    "error in training_step": Situation(models.Breaks, fit=fail_in("training_step")),
    "error in validation_step": Situation(models.Breaks, fit=fail_in("validation_step")),
    "error in another callback": Situation(fit=fail_beside),
}
if importlib.util.find_spec("pytorch_lightning"):
    SITUATIONS["pytorch_lightning"] = Situation(models.of_the_other_package, ONCE, trainer=other_trainer, same_as=PLAIN)

RUNS = Runs(SITUATIONS)
every_situation = pytest.mark.parametrize("situation", list(SITUATIONS))
every_callback = pytest.mark.parametrize("callback", list(CALLBACKS))


# ---- what holds in all of them ---------------------------------------------------------------------------------------


def warned(situation):
    """What is only said where somebody watches."""
    return [words for words in RUNS.watched(situation).warned if words not in RUNS.unwatched(situation).warned]


def numbers(situation, callback):
    """What was seen, look by look, without what it took."""
    noun = CALLBACKS[callback].noun
    own = {f"{noun}/seconds", f"{noun}/overhead"}
    return [
        {tag: value for tag, value in look.report.scalars.items() if tag not in own}
        for look in RUNS.watched(situation).looks[callback]
    ]


def check_callback(situation, callback):
    how, ended, noun = SITUATIONS[situation], RUNS.watched(situation), CALLBACKS[callback].noun
    looks, said = ended.looks[callback], warned(situation)
    passes = "validation" if getattr(CALLBACKS[callback](), "observe", "") == "validation" else "train"
    due = RUNS.unwatched(situation).ended[passes]
    assert due > 0
    assert len(looks) == (due if how.files else 0)
    assert callback not in ended.watching
    if callback in how.says:
        assert [words for words in said if re.search(how.says[callback], words)]
    else:
        assert [words for words in said if callback in words] == []
    seen = [look.report.scalars for look in looks]
    if not how.files:
        seen = [{tag: value for tag, value in ended.metrics.items() if tag.startswith(f"{noun}/")}]
    for scalars in seen:
        assert scalars[f"{noun}/failed_looks"] == 0
        main = [scalars[tag] for tag in ended.headlines[callback] if tag in scalars]
        assert main
        assert np.isfinite(main).all()
        assert not np.isnan(list(scalars.values())).any()
        assert [tag for tag in scalars if "_orig_mod" in tag] == []
    steps = [step for step, metrics in ended.logged if f"{noun}/seconds" in metrics]
    assert not steps or steps == [look.step for look in looks]
    if how.same_as:
        for one, other in zip(numbers(situation, callback), numbers(how.same_as, callback), strict=False):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def check_refusal(situation, callback):
    how = SITUATIONS[situation]
    with pytest.raises(MisconfigurationException, match=how.refuses[callback]):
        run(how, (callback,))


def check_twin(situation):
    ended, twin = RUNS.watched(situation), RUNS.unwatched(situation)
    assert ended.hooks == 0
    assert ended.facts == twin.facts
    assert len(ended.state) == len(twin.state)
    assert all(torch.equal(a, b) for a, b in zip(ended.state, twin.state, strict=True))
    right = SITUATIONS[situation].says.values()
    assert [words for words in warned(situation) if not any(re.search(one, words) for one in right)] == []


@pytest.mark.parametrize(
    ("situation", "callback"), [(situation, callback) for situation in SITUATIONS for callback in CALLBACKS]
)
def test_everyone_looks_as_often_as_it_should(situation, callback):
    if callback in SITUATIONS[situation].refuses:
        check_refusal(situation, callback)
    else:
        check_callback(situation, callback)


@every_situation
def test_the_run_ends_as_if_nobody_had_watched(situation):
    check_twin(situation)


# ---- the matrix ------------------------------------------------------------------------------------------------------


def matrix():
    """Callback by situation, as a table in Markdown."""

    def cell(situation, callback):
        how = SITUATIONS[situation]
        try:
            if callback in how.refuses:
                check_refusal(situation, callback)
                return f"refuses ({how.refuses[callback]})"
            check_callback(situation, callback)
            check_twin(situation)
        except Exception as error:
            return f"**{type(error).__name__}**: {str(error)[:150]!r}"
        except AssertionError as error:
            return f"**fails**: {str(error)[:80]!r}"
        looks = len(RUNS.watched(situation).looks[callback])
        return f"pass, {looks} looks" + (", says why" if callback in how.says else "")

    lines = ["| situation | " + " | ".join(CALLBACKS) + " |", "|---" * (len(CALLBACKS) + 1) + "|"]
    for situation in SITUATIONS:
        lines.append(f"| {situation} | " + " | ".join(cell(situation, callback) for callback in CALLBACKS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(matrix() + "\n")
