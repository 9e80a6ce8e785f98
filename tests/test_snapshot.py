import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

from rnn_callbacks.capture import Recorder

from .hear import calls_of, rebuild_error

SEQUENCES, STEPS, INPUTS, UNITS = 3, 7, 2, 5
ROUNDING = 2e-6


def make(family, seed=0):
    torch.manual_seed(seed)
    return family(INPUTS, UNITS, batch_first=True)


def make_inputs(seed=1):
    return torch.randn(SEQUENCES, STEPS, INPUTS, generator=torch.Generator().manual_seed(seed))


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Jittered(nn.Module):
    """Draws numbers whenever the weight is read."""

    def forward(self, weight):
        return weight * (1 + torch.rand(()))


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "halved": lambda module, name: parametrize.register_parametrization(module, name, Halved()),
    "jittered": lambda module, name: parametrize.register_parametrization(module, name, Jittered()),
}
every_parametrization = pytest.mark.parametrize("kind", list(PARAMETRIZATIONS))
every_family = pytest.mark.parametrize("family", [nn.GRU, nn.LSTM, nn.RNN])


@every_parametrization
@every_family
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_parametrized_weights_are_read_as_they_acted(family, kind, training):
    module = make(family)
    PARAMETRIZATIONS[kind](module, "weight_hh_l0")
    module.train(training)
    with Recorder(module) as recorder:
        for seed in range(3):
            module(make_inputs(seed))
    calls = calls_of(recorder)
    assert len(calls) == 3
    errors = [rebuild_error(call) for call in calls]
    if kind == "jittered":
        assert min(errors) > 1e-3  # what was drawn cannot be drawn again, and that shows
    else:
        assert max(errors) < ROUNDING


@every_parametrization
@every_family
def test_reading_parametrized_weights_does_not_move_them(family, kind):
    def train(*, watched):
        module = make(family)
        PARAMETRIZATIONS[kind](module, "weight_hh_l0")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        with Recorder(module) as recorder:
            for seed in range(4):
                if not watched:
                    recorder.close()
                module(make_inputs(seed))[0].square().mean().backward()
                optimizer.step()
                recorder.next_batch()
        modes = [part.training for part in module.modules()]
        return [*module.state_dict().values(), torch.get_rng_state()], modes

    (alone, modes), (watched, watched_modes) = train(watched=False), train(watched=True)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    assert modes == watched_modes


def test_parametrization_that_moves_within_a_batch_is_followed():
    module = make(nn.GRU)
    PARAMETRIZATIONS["spectral_norm"](module, "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original.normal_()  # its norm is found over several passes
    with Recorder(module) as recorder:
        recorder.next_batch()
        module(make_inputs()), module(make_inputs())
    first, second = calls_of(recorder)
    assert (first.outputs - second.outputs).abs().max() > 1e-3
    assert max(map(rebuild_error, (first, second))) < ROUNDING


def test_weights_made_in_inference_mode_are_read():
    with torch.inference_mode():
        module = make(nn.LSTM)
        with Recorder(module) as recorder:
            module(make_inputs()), module(make_inputs())
    assert rebuild_error(calls_of(recorder)[0]) < ROUNDING


@every_family
def test_weights_of_another_optimizer_step_are_another_snapshot(family):
    module = make(family).eval()  # some fine-tune like this
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0)
    with Recorder(module) as recorder:
        for seed in range(3):
            optimizer.zero_grad()
            module(make_inputs(seed))[0].square().mean().backward()
            optimizer.step()
    calls = calls_of(recorder)
    assert len({id(call.cells) for call in calls}) == 3
    assert max(map(rebuild_error, calls)) < ROUNDING


def test_weights_that_stay_are_copied_once_in_evaluation_and_once_a_batch_in_training():
    # In training somebody may move weights past torch's own count, through .data.
    for training, copies in ((False, 1), (True, 3)):
        module = make(nn.GRU).train(training)
        with Recorder(module) as recorder, torch.no_grad():
            for seed in range(3):
                module(make_inputs(seed))
        assert len({id(call.cells) for call in calls_of(recorder)}) == copies


def test_weights_moved_through_data_between_training_batches_are_noticed():
    module = make(nn.LSTM)
    with Recorder(module) as recorder:
        for seed in range(2):
            module(make_inputs(seed))
            module.weight_hh_l0.data.mul_(2)
    assert max(map(rebuild_error, calls_of(recorder))) < ROUNDING


@every_family
def test_weights_given_by_functional_call_are_the_ones_that_count(family):
    module = make(family).eval()
    x = make_inputs()
    with Recorder(module) as recorder, torch.no_grad():
        for scale in (1.0, 2.0, 3.0):  # made and freed in turn, so that they may lie in the same place
            functional_call(module, {name: scale * p for name, p in module.named_parameters()}, (x,))
    calls = calls_of(recorder)
    assert len(calls) == 3
    assert max(map(rebuild_error, calls)) < ROUNDING
    assert not torch.equal(calls[0].outputs, calls[1].outputs)


def test_weights_set_as_plain_attributes_are_the_ones_that_count():
    # As weight dropping does: the parameter lives elsewhere, and every forward pass sets what acts.
    cell = nn.GRUCell(INPUTS, UNITS).eval()
    raw = cell.weight_hh.detach()
    del cell.weight_hh
    x = make_inputs()
    with Recorder(cell) as recorder, torch.no_grad():
        for drawn in range(3):
            cell.weight_hh = raw * drawn
            cell(x[:, 0], torch.ones(SEQUENCES, UNITS))
    calls = calls_of(recorder)
    assert len(calls) == 3
    assert max(map(rebuild_error, calls)) < ROUNDING


def test_copy_of_a_parametrized_module_is_heard_like_the_original():
    module = make(nn.GRU)
    parametrizations.weight_norm(module, "weight_hh_l0")
    twin = copy.deepcopy(module)
    with Recorder(twin) as recorder:
        twin(make_inputs())
    assert rebuild_error(calls_of(recorder)[0]) < ROUNDING
