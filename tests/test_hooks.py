import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch._dynamo
from torch import nn

from rnn_callbacks.capture import Recorder, recurrent_modules
from rnn_callbacks.hooks import uncompiled

from .hear import calls_of, rebuild_error

SEQUENCES, STEPS, INPUTS, UNITS = 3, 7, 2, 5
LOOKS = 20
ROUNDING = 2e-6


class Reader(nn.Module):
    """Something compiled before and after a recurrent module."""

    def __init__(self, family):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(INPUTS, INPUTS), nn.Linear(UNITS, 1)
        self.rnn = family(INPUTS, UNITS)

    def forward(self, x):
        x = self.first(x).tanh()
        if isinstance(getattr(self.rnn, "_orig_mod", self.rnn), nn.RNNBase):
            return self.last(self.rnn(x)[0]).sin()
        state = None
        for step in x.unbind(0):
            state = self.rnn(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state).sin()


class Counted:
    """A backend that runs graphs as they are, and counts."""

    def __init__(self):
        self.compiled = self.runs = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


WAYS = {
    "whole": lambda model, **o: torch.compile(model, **o),
    "full graph": lambda model, **o: torch.compile(model, fullgraph=True, **o),
    "method": lambda model, **o: model.compile(**o) or model,
    "part": lambda model, **o: setattr(model, "rnn", torch.compile(model.rnn, **o)) or model,
    "method of a part": lambda model, **o: model.rnn.compile(**o) or model,
}
CASES = [
    (family, way)
    for family in (nn.GRU, nn.LSTM, nn.GRUCell, nn.LSTMCell)
    for way in WAYS
    if way != "full graph" or issubclass(family, nn.RNNCellBase)  # torch cannot compile nn.GRU into a full graph
]


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Counted()
    torch._dynamo.reset()


def train_and_look(model, recorder=None):
    """Twenty steps with a validation pass after each, which is listened to every second time."""
    x = torch.randn(STEPS, SEQUENCES, INPUTS, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results, heard = [], []
    for look in range(LOOKS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if recorder is not None and look % 2:
            recorder.open()
        with torch.no_grad():
            results.append(model(x))
        if recorder is not None and look % 2:
            recorder.close()
            heard.append(calls_of(recorder))
    return [*results, *model.state_dict().values()], heard


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
@pytest.mark.parametrize("family, way", CASES, ids=[f"{family.__name__}-{way}" for family, way in CASES])
def test_every_look_at_a_compiled_model_hears_and_compiles_nothing_more(family, way, backend):
    alone = Counted()
    expected, _ = train_and_look(WAYS[way](Reader(family), backend=alone))
    torch._dynamo.reset()
    model = WAYS[way](Reader(family), backend=backend)
    recorder = Recorder(model)
    assert list(recorder.modules) == ["rnn"]
    found, heard = train_and_look(model, recorder)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert backend.compiled == alone.compiled
    for calls in heard:
        (call,) = calls
        assert call.inputs.shape == (SEQUENCES, STEPS, INPUTS)
        assert rebuild_error(call) < ROUNDING
    # Of the 40 passes only the 10 that were listened to may run uncompiled, and those of nn.GRU and nn.LSTM need not.
    assert backend.runs == (alone.runs * 3 // 4 if issubclass(family, nn.RNNCellBase) else alone.runs)


@pytest.mark.parametrize("family", [nn.GRU, nn.GRUCell])
def test_first_pass_compiled_while_listening_is_as_good_as_any(family, backend):
    model = torch.compile(Reader(family), backend=backend)
    x = torch.randn(STEPS, SEQUENCES, INPUTS)
    with Recorder(model) as recorder, torch.no_grad():
        first = model(x)
    with torch.no_grad():
        compiled = backend.runs
        assert torch.equal(model(x), first)
    assert backend.runs > compiled
    assert len(calls_of(recorder)) == 1


def test_compiled_recurrent_module_has_the_name_of_what_it_wraps():
    assert list(recurrent_modules(torch.compile(nn.GRU(2, 3), backend="eager"))) == ["gru"]
    stack = nn.Sequential(nn.Sequential(torch.compile(nn.LSTM(2, 3), backend="eager")))
    assert list(recurrent_modules(torch.compile(stack, backend="eager"))) == ["0.0"]


def test_compiled_module_on_its_own_goes_on_from_call_to_call(backend):
    module = torch.compile(nn.GRU(INPUTS, UNITS), backend=backend)
    x, state = torch.randn(STEPS, SEQUENCES, INPUTS), None
    with Recorder(module) as recorder, torch.no_grad():
        for step in x:
            _, state = module(step[None], state)
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs.transpose(0, 1), x)


def compiled_runs(function, backend):
    before = backend.runs
    function(torch.ones(3))
    return backend.runs > before


def test_compiled_code_runs_as_written_until_the_last_listener_leaves(backend):
    function = torch.compile(lambda x: x + 1, backend=backend)
    one, other = Recorder(nn.GRUCell(2, 3)), Recorder(nn.LSTMCell(2, 3))
    assert compiled_runs(function, backend)
    one.open(), other.open()
    assert not compiled_runs(function, backend)
    one.close()
    assert not compiled_runs(function, backend)
    other.close(), other.close()
    assert compiled_runs(function, backend)


def test_users_own_stance_comes_back(backend):
    function = torch.compile(lambda x: x + 1, backend=backend)
    with torch.compiler.set_stance("force_eager"):
        with Recorder(nn.GRUCell(2, 3)):
            pass
        assert not compiled_runs(function, backend)
    assert compiled_runs(function, backend)


def test_modules_that_are_never_compiled_leave_compiled_code_alone(backend):
    function = torch.compile(lambda x: x + 1, backend=backend)
    with Recorder(nn.GRU(2, 3)):
        assert compiled_runs(function, backend)
    with torch._dynamo.config.patch(allow_rnn=True), Recorder(nn.GRU(2, 3)):
        assert not compiled_runs(function, backend)


def test_error_inside_lets_compiled_code_run_again(backend):
    function = torch.compile(lambda x: x + 1, backend=backend)
    with pytest.raises(ZeroDivisionError), uncompiled([nn.GRUCell(2, 3)]):
        raise ZeroDivisionError
    assert compiled_runs(function, backend)


# ---- copies and files ------------------------------------------------------------------------------------------------


def heard_so_far(recorder):
    return sum(tape.sequences for tape in recorder.tapes.values())


def through_file(model, path):
    torch.save(model, path)
    return torch.load(path, weights_only=False)


WAYS_TO_COPY = {
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "torch.save": through_file,
}


@pytest.mark.parametrize("way", list(WAYS_TO_COPY))
@pytest.mark.parametrize("when", ["during", "after"])
def test_copy_of_a_model_is_not_listened_to_and_works(way, when, tmp_path):
    model, x = Reader(nn.LSTM), torch.randn(STEPS, SEQUENCES, INPUTS)
    with Recorder(model) as recorder:
        expected = model(x)
        if when == "during":
            twin = WAYS_TO_COPY[way](model, tmp_path / "model.pt")
    if when == "after":
        twin = WAYS_TO_COPY[way](model, tmp_path / "model.pt")
    assert heard_so_far(recorder) == SEQUENCES
    assert torch.equal(twin(x), expected)
    assert heard_so_far(recorder) == SEQUENCES
    with Recorder(twin) as other:  # it can be listened to in its own right, and copied again
        assert torch.equal(copy.deepcopy(twin)(x), twin(x))
    assert heard_so_far(other) == SEQUENCES


def test_file_saved_while_listening_needs_nothing_of_ours(tmp_path):
    model = nn.Sequential(nn.Identity(), nn.GRU(INPUTS, UNITS))
    with Recorder(model):
        torch.save(model, tmp_path / "model.pt")
    code = (
        f"import sys, torch; model = torch.load(r'{tmp_path / 'model.pt'}', weights_only=False);"
        f"model(torch.ones(2, 3, {INPUTS})); sys.exit('rnn_callbacks' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
