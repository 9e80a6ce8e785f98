"""`FixedPointTracker` in a real run: contexts, identities over training and resumes, bad input."""

import re
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rnn_callbacks import FixedPointTracker
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.cells import Activations, Cell, Place, cells
from rnn_callbacks.report import load

from ..flip_flop import FlipFlop, flip_flop
from ..models import FEATURES, UNITS, Classifier, StepClassifier, loader
from ..reference_dynamics import find_reference_points


def tracker(**options):
    """Without pictures, which would take most of the time."""
    return FixedPointTracker(**{"every_n_epochs": 1, "figure_every_n_epochs": 99, "on_error": "raise"} | options)


def reports(fit):
    run = sorted(fit.logs.glob("version_*"))[-1]
    return [load(str(path)).report for path in sorted((run / "rnn_callbacks" / "fixed_points").glob("*.npz"))]


def said_in(run):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in heard if issubclass(warning.category, RecurrentHealthWarning)]


# ---- what a user gets ------------------------------------------------------------------------------------------------


class Memory(pl.LightningModule):
    """The 3-bit flip-flop, trained from random states so that its attractors are real."""

    def __init__(self, family="gru"):
        super().__init__()
        self.net = FlipFlop(family, 16)

    def training_step(self, batch, batch_idx):
        start = 2 * torch.rand(1, len(batch[0]), 16, generator=self.noise) - 1
        return F.mse_loss(self.net(batch[0], start), batch[1])

    def on_train_start(self):
        self.noise = torch.Generator().manual_seed(0)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14)]


def bits(sequences, seed):
    return DataLoader(TensorDataset(*flip_flop(sequences, 24, torch.Generator().manual_seed(seed))), 64)


def test_the_attractors_of_a_memory_are_born_followed_and_reported(fit):
    watcher = tracker(basins=True, every_n_epochs=2)
    trainer = fit(
        watcher, model=Memory, train=bits(1600, 0), validate=bits(64, 1), max_epochs=14, gradient_clip_val=1.0
    )
    looks, tag = reports(fit), "fixed_points/net.rnn/zero"
    last = looks[-1].scalars
    assert [last[f"{tag}/{name}"] for name in ("attractors", "saddles", "repellers")] == [8, 19, 0]
    assert last[f"{tag}/index_sum"] == last[f"{tag}/complete"] == last[f"{tag}/returned"] == 1
    assert last[f"{tag}/basin_entropy"] == pytest.approx(3.0, abs=0.15)  # eight corners, visited about equally often
    counts = [len(look.arrays[f"{tag}/ids"]) for look in looks]
    births, deaths = (sum(look.scalars[f"{tag}/{name}"] for look in looks) for name in ("births", "deaths"))
    found_late = sum(look.scalars[f"{tag}/found_late"] for look in looks)
    assert counts[0] == 1
    assert births + found_late - deaths == counts[-1] - counts[0] == 26
    # A point that lives on keeps its number and stays near to where it was.
    for before, after in zip(looks[-3:-1], looks[-2:], strict=True):
        old = dict(zip(before.arrays[f"{tag}/ids"].tolist(), before.arrays[f"{tag}/states"], strict=True))
        for number, state in zip(after.arrays[f"{tag}/ids"].tolist(), after.arrays[f"{tag}/states"], strict=True):
            assert np.linalg.norm(state - old[number]) < 0.2
    first_birth = next(look for look in looks if look.scalars[f"{tag}/births"])
    assert "appeared" in first_birth.texts[f"{tag}/events"]
    assert first_birth.scalars[f"{tag}/flags/bifurcation"] == 1
    assert last[f"{tag}/flags/bifurcation"] == 0
    # The independent finder sees the same points in the trained module.
    truth = find_reference_points(trainer.lightning_module.net.rnn, torch.zeros(3))
    found = looks[-1].arrays[f"{tag}/states"]
    apart = np.linalg.norm(np.asarray(truth.states)[:, None] - found[None], axis=2)
    assert apart.min(0) == pytest.approx(0, abs=1e-4)  # the last look came before no further step
    assert apart.min(1) == pytest.approx(0, abs=1e-4)


def test_a_picture_of_the_landscape_is_kept_for_every_look_that_draws(fit):
    fit(tracker(figure_every_n_epochs=1))
    assert len(list(fit.logs.rglob("figures/encoder.rnn.zero-*.png"))) == 2


def test_default_settings_look_at_the_first_and_the_last_epoch(fit):
    trainer = fit(FixedPointTracker(on_error="raise"))
    assert trainer.callback_metrics["fixed_points/encoder.rnn/zero/attractors"] == 1
    assert trainer.callback_metrics["fixed_points/encoder.rnn/zero/complete"] == 1


def test_two_trackers_keep_their_files_apart(fit):
    class Two(Classifier):
        def __init__(self):
            super().__init__()
            self.other = nn.GRU(FEATURES, UNITS, batch_first=True)

        def forward(self, x):
            return super().forward(x) + self.other(x)[0].mean()

    fit(tracker(module="encoder.rnn"), tracker(module="other"), model=Two, max_epochs=1)
    seen = [{tag.split("/")[1] for tag in report.arrays} for report in reports(fit)]
    assert sorted(map(sorted, seen)) == [["encoder.rnn"], ["other"]]


@pytest.mark.parametrize("family", ["gru", "lstm"])
def test_a_stack_is_searched_as_one_system(fit, family):
    trainer = fit(tracker(), model=Classifier(family, layers=2))
    report, tag = reports(fit)[-1], "fixed_points/encoder.rnn/zero"
    module = trainer.lightning_module.encoder.rnn.double()
    parts = torch.tensor(report.arrays[f"{tag}/states"]).split(UNITS, dim=1)  # h (and c) of one layer after another
    hidden = torch.stack(parts[:: len(parts) // 2])
    state = (hidden, torch.stack(parts[1::2])) if family == "lstm" else hidden
    after = module(torch.zeros(len(parts[0]), 1, FEATURES, dtype=torch.float64), state)[1]
    for before, now in zip(*[(s if isinstance(s, tuple) else (s,)) for s in (state, after)], strict=True):
        torch.testing.assert_close(now, before, atol=1e-6, rtol=0)  # weights are those after the last step
    assert report.scalars[f"{tag}/index_sum"] == 1


def test_a_loop_over_a_cell_is_tracked(fit):
    fit(tracker(), model=StepClassifier)
    assert reports(fit)[-1].scalars["fixed_points/encoder.rnn/zero/complete"] == 1


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_other_precisions_are_tracked(fit, precision):
    fit(tracker(), precision=precision)
    scalars = reports(fit)[-1].scalars
    assert scalars["fixed_points/encoder.rnn/zero/complete"] == 1


# ---- contexts --------------------------------------------------------------------------------------------------------


class Embedded(Classifier):
    """Something between the raw inputs and the recurrent layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(FEATURES, FEATURES)

    def forward(self, x):
        return super().forward(self.embed(x).tanh())


def second_sequence(batch):
    return batch[0][1:2]


def second_sequence_by_name(batch):
    return {"x": batch[0][1:2]}


def test_contexts_hold_what_they_say(fit):
    vector = [0.1, -0.2, 0.3]
    given = {"nothing": "zero", "typical": "mean", "given": vector, "second": second_sequence}
    given |= {"named": f"{__name__}.second_sequence_by_name"}
    trainer = fit(tracker(contexts=given), model=Embedded)
    arrays, model = reports(fit)[-1].arrays, trainer.lightning_module
    raw = torch.cat([batch[0] for batch in loader(seed=1)])
    with torch.no_grad():
        heard = model.embed(raw).tanh()
    expected = {"nothing": torch.zeros(FEATURES), "typical": heard.mean((0, 1)), "given": torch.tensor(vector)}
    expected |= {"second": heard[1].mean(0), "named": heard[1].mean(0)}
    for name, held in expected.items():
        # Rounding of float32 sums over 168 steps.
        assert arrays[f"fixed_points/encoder.rnn/{name}/inputs"] == pytest.approx(held.numpy(), abs=1e-6)


class Logs(Embedded):
    def forward(self, x):
        self.log("sequences", float(len(x)), batch_size=len(x), reduce_fx="min")
        return super().forward(x)


def test_what_a_context_makes_the_model_log_goes_nowhere(fit):
    trainer = fit(tracker(contexts={"second": second_sequence}), model=Logs)
    assert trainer.callback_metrics["sequences"] == 8  # whole batches; the context ran on a single sequence


def test_a_name_is_enough(fit):
    fit(tracker(contexts="mean"))
    assert {tag.split("/")[2] for tag in reports(fit)[-1].scalars if tag.endswith("/births")} == {"mean"}


def test_a_list_of_names_is_enough(fit):
    fit(tracker(contexts=["zero", "mean"]))
    assert {tag.split("/")[2] for tag in reports(fit)[-1].scalars if tag.endswith("/births")} == {"zero", "mean"}


def broken(batch):
    raise KeyError("no such square")


def test_a_context_that_raises_is_said_once_and_costs_only_itself(fit):
    watcher = tracker(contexts={"zero": "zero", "attack": broken}, on_error="warn")
    said = said_in(lambda: fit(watcher, max_epochs=3))
    assert len(said) == 1
    assert "context 'attack' could not be made for encoder.rnn (KeyError: 'no such square')" in said[0]
    assert "\n" not in said[0]
    scalars = reports(fit)[-1].scalars
    assert "fixed_points/encoder.rnn/zero/attractors" in scalars
    assert scalars["fixed_points/failed_looks"] == 3


def elsewhere(batch):
    return batch[0].new_zeros(1, 0, FEATURES)


class Skips(Classifier):
    def forward(self, x):
        return super().forward(x) if x.shape[1] else self.head(x.new_zeros(len(x), UNITS))


def test_a_context_that_does_not_reach_the_layer_is_said(fit):
    said = said_in(lambda: fit(tracker(contexts={"lost": elsewhere}, on_error="warn"), model=Skips))
    assert any("did not reach encoder.rnn" in words for words in said)


MISUSE = {
    "unknown name": ({"contexts": "middle"}, "'middle' is none of 'zero', 'mean', nor the import path of a function"),
    "no name": ({"contexts": {"a/b": "zero"}}, "contexts: 'a/b' is no name"),
    "empty": ({"contexts": []}, "contexts must be names or a dict of inputs by name, got []"),
    "wrong size": ({"contexts": {"here": [1.0]}}, "'here' has 1 numbers, but encoder.rnn takes inputs of 3"),
    "not finite": ({"contexts": {"here": [1.0, 2.0, float("nan")]}}, "'here' must be one vector of finite numbers"),
    "no numbers": ({"contexts": {"here": ["a", "b"]}}, "'here' must hold numbers"),
    "no such function": ({"contexts": {"f": "nowhere.f"}}, "contexts: cannot import 'nowhere.f'"),
    "no function": ({"contexts": {"f": "math.pi"}}, "contexts: 'math.pi' is no function but float"),
    "a number": ({"contexts": {"f": 3}}, "contexts must be a function of a batch or its import path, got int"),
    "labels": ({"labels": "nowhere.f"}, "labels: cannot import 'nowhere.f'"),
    "flag": ({"flags": {"stuck": 1.0}}, "flags: 'stuck' is none of no_attractor"),
    "threshold": ({"flags": {"explosion": "many"}}, "the threshold of 'explosion' must be a number or null"),
    "flags": ({"flags": ["explosion"]}, "flags must be a dict of thresholds by name"),
    "a word": ({"basins": "yes"}, "basins must be true or false, got 'yes'"),
    "seconds": ({"max_seconds": 0}, "max_seconds must be a number above 0, got 0"),
    "starts": ({"max_starts": 0.5}, "max_starts must be a whole number from 1, got 0.5"),
}


@pytest.mark.parametrize(("settings", "message"), MISUSE.values(), ids=MISUSE.keys())
def test_wrong_settings_are_refused_before_training(fit, settings, message):
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        fit(tracker(**settings))


# ---- modules without an answer ---------------------------------------------------------------------------------------


def test_a_bidirectional_module_is_refused_with_the_reason(fit):
    with pytest.raises(
        MisconfigurationException, match=r"encoder.rnn is bidirectional: its reverse cells read the future"
    ):
        fit(tracker(), model=Classifier(bidirectional=True))


class TwoReaders(Classifier):
    def __init__(self):
        super().__init__()
        self.both = nn.GRU(FEATURES, UNITS, batch_first=True, bidirectional=True)

    def forward(self, x):
        return super().forward(x) + self.both(x)[0].mean()


def test_beside_another_module_a_bidirectional_one_is_named_and_left_out(fit):
    said = said_in(lambda: fit(tracker(), model=TwoReaders))
    assert len(said) == 1
    assert said[0].startswith(
        "FixedPointTracker leaves out both, which is bidirectional: its reverse cells read the future"
    )
    assert not any("/both/" in tag for tag in reports(fit)[-1].scalars)


class Poisoned(Classifier):
    """Weights that become NaN in the middle of training, in the recurrent layer that is not asked for its output."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            with torch.no_grad():
                self.encoder.rnn.weight_hh_l0.fill_(float("nan"))

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def test_nan_weights_are_said_once_and_nothing_is_made_up(fit):
    said = said_in(lambda: fit(tracker(), model=Poisoned, max_epochs=3))
    assert len(said) == 1
    assert "the weights of encoder.rnn hold NaN" in said[0]
    assert "fixed_points/encoder.rnn/zero/attractors" in reports(fit)[0].scalars
    assert not any(tag.endswith("attractors") for tag in reports(fit)[-1].scalars)


def test_a_frozen_layer_has_points_that_do_not_move(fit):
    model = Classifier()
    model.encoder.rnn.requires_grad_(False)
    fit(tracker(), model=model)
    first, last = reports(fit)
    tag = "fixed_points/encoder.rnn/zero"
    assert last.scalars[f"{tag}/drift"] == pytest.approx(0, abs=1e-12)
    assert np.array_equal(first.arrays[f"{tag}/eigenvalues"], last.arrays[f"{tag}/eigenvalues"])


def test_a_look_that_runs_out_of_time_says_so(fit):
    said = said_in(lambda: fit(tracker(max_seconds=1e-6)))
    assert any("stopped early (out of seconds)" in words for words in said)
    assert all(look.scalars["fixed_points/encoder.rnn/zero/stopped_early"] == 1 for look in reports(fit))
    assert all(look.scalars["fixed_points/encoder.rnn/zero/complete"] == 0 for look in reports(fit))


class Growing(Classifier):
    """A relu network whose state doubles at every step."""

    def __init__(self):
        super().__init__()
        self.encoder.rnn = nn.RNN(FEATURES, UNITS, batch_first=True, nonlinearity="relu")
        with torch.no_grad():
            self.encoder.rnn.weight_hh_l0.copy_(2 * torch.eye(UNITS))
            self.encoder.rnn.bias_ih_l0.fill_(0.1)
        self.encoder.rnn.requires_grad_(False)


def test_a_network_that_grows_without_end_is_described_as_such(fit):
    said = said_in(lambda: fit(tracker(), model=Growing))
    scalars = reports(fit)[-1].scalars
    assert scalars["fixed_points/encoder.rnn/zero/attractors"] == 0
    assert scalars["fixed_points/encoder.rnn/zero/diverging"] == 1
    assert scalars["fixed_points/encoder.rnn/zero/index_sum"] == 0  # there is no such law for relu
    assert any("flag no_attractor" in words for words in said)


# ---- colours ---------------------------------------------------------------------------------------------------------


def sign_of_first(batch):
    return (batch[0][:, 0, 0] > 0).float()


@pytest.mark.parametrize(
    ("labels", "expected"), [(None, lambda x, y: y), (f"{__name__}.sign_of_first", lambda x, y: x[:, 0, 0] > 0)]
)
def test_trajectories_are_coloured_by_label(fit, monkeypatch, labels, expected):
    scenes = []
    drawn = FixedPointTracker._scene

    def kept(self, *arguments):
        scenes.append(drawn(self, *arguments))
        return scenes[-1]

    monkeypatch.setattr(FixedPointTracker, "_scene", kept)
    fit(tracker(labels=labels, figure_every_n_epochs=2))
    x, y = (torch.cat(parts) for parts in zip(*loader(seed=1), strict=True))
    count = len(scenes[0].labels)
    assert count == len(scenes[0].landscape.trajectories) == 16
    assert scenes[0].labels.tolist() == expected(x, y)[:count].double().tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda batch: batch[0], "labels must give one number per sequence, (B,), got shape (8, 7, 3)"),
        (broken, "KeyError: 'no such square'"),
    ],
)
def test_labels_that_are_none_are_said_once(fit, labels, message):
    said = said_in(lambda: fit(tracker(labels=labels, on_error="warn", figure_every_n_epochs=1)))
    assert len(said) == 1
    assert message in said[0]
    assert "fixed_points/encoder.rnn/zero/attractors" in reports(fit)[-1].scalars
    with pytest.raises(RuntimeError, match="labels raised on a batch"):
        fit(tracker(labels=labels))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class OwnRNN(nn.Module):
    """tanh(W x + U h), of a type that torch does not have."""

    batch_first = True

    def __init__(self):
        super().__init__()
        self.ih, self.hh = nn.Linear(FEATURES, UNITS), nn.Linear(UNITS, UNITS)

    def forward(self, x, hx=None):
        h = x.new_zeros(len(x), UNITS) if hx is None else hx[0]
        states = []
        for step in x.unbind(1):
            h = torch.tanh(self.ih(step) + self.hh(h))
            states.append(h)
        return torch.stack(states, 1), h[None]


class OwnCell(Cell):
    gates, candidate = (), "hidden"

    def __init__(self, module):
        super().__init__(Place("l0"), input_size=FEATURES, units=UNITS)
        self.weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}

    def activations(self, inputs, hidden, memory=None):
        w = self.weights
        new = torch.tanh(inputs @ w["ih.weight"].T + w["ih.bias"] + hidden @ w["hh.weight"].T + w["hh.bias"])
        return Activations(new[:, None])

    def follow(self, inside, hidden, memory):
        return inside.candidate, hidden.new_zeros(*hidden.shape[:2], 0)


@cells.register
def _(module: OwnRNN):
    return (OwnCell(module),)


class Own(Classifier):
    def __init__(self):
        super().__init__()
        self.encoder.rnn = OwnRNN()


COSTS = ("seconds", "overhead")


@pytest.mark.parametrize("model", [Classifier, lambda: Classifier("lstm", layers=2), Own], ids=["gru", "lstm", "own"])
def test_a_resumed_run_tells_the_same_life(fit, tmp_path, model):
    def whole(**options):
        torch.manual_seed(1)
        trainer = fit(tracker(contexts=["zero", "mean"]), model=model(), train=loader(), **options)
        return trainer, reports(fit)

    _, straight = whole(max_epochs=4)
    half, _ = whole(max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    _, resumed = whole(max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert len(resumed) == 2
    for before, after in zip(straight[2:], resumed, strict=True):
        for tag, value in before.scalars.items():
            if not tag.endswith(COSTS) and not (model is Own and tag.endswith("starts")):
                assert after.scalars[tag] == pytest.approx(value, rel=1e-6, abs=1e-9), tag
        for tag, array in before.arrays.items():
            if tag.endswith("/ids"):
                assert sorted(after.arrays[tag].tolist()) == sorted(array.tolist())


def test_a_checkpoint_written_before_the_first_look_after_a_resume_keeps_the_life(fit):
    first = tracker()
    fit(first)
    second = tracker()
    second.load_state_dict(first.state_dict())
    kept = second.state_dict()["memory"]
    assert list(kept["histories"]) == ["encoder.rnn/zero"]
    assert kept["story"] == first.state_dict()["memory"]["story"]
    assert len(kept["story"]["encoder.rnn/zero"]) == 2


def test_a_checkpoint_of_another_network_begins_a_new_life(fit):
    watcher = tracker()
    fit(watcher)
    state = watcher.state_dict()

    class Restores(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            other.load_state_dict(state)

    other = tracker()
    model = Classifier()
    model.encoder.rnn = nn.GRU(FEATURES, UNITS + 2, batch_first=True)
    model.norm, model.head = nn.BatchNorm1d(UNITS + 2), nn.Linear(UNITS + 2, 2)
    fit(other, Restores(), model=model)
    first = reports(fit)[0]
    assert first.arrays["fixed_points/encoder.rnn/zero/ids"].tolist() == list(
        range(len(first.arrays["fixed_points/encoder.rnn/zero/ids"]))
    )
