from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_packed_sequence

from rnn_callbacks.analysis.state_samples import CHECKED, StateSampler, choose_steps, is_reversed
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import cells

from .known_gates import FAMILIES, INPUTS, UNITS, make, pack, random_inputs

LENGTHS = (4, 11, 1, 7)
STEPS = [0, 3, 6, 10]
ROUNDING = 2e-6  # of a few dozen additions in float32
WIDE = 64.0  # megabytes, more than any of these needs


def record(module, *inputs, **kwargs):
    """A tape of calls with these inputs, each a batch of its own."""
    with Recorder(module) as recorder, torch.no_grad():
        for given in inputs:
            module(given, **kwargs)
            recorder.next_batch()
    assert not recorder.faults
    (tape,) = recorder.tapes.values()
    return tape


def sample(tape, *, steps=STEPS, max_megabytes=WIDE, with_cells=None):
    sampler = StateSampler(steps, max_megabytes=max_megabytes)
    sampler.hear(tape, with_cells)
    return sampler.result()


def with_other_cells(tape, module):
    """What was heard, as if it had been of this module."""
    return replace(tape, calls=tuple(replace(call, cells=cells(module)) for call in tape.calls))


def own_outputs(module, x, lengths):
    """What the module itself returns, padded, ``(B, T, directions * P)``."""
    with torch.no_grad():
        outputs, _ = module(pack(x, lengths))
    return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0].numpy()


def at_columns(sequences, lengths, *, reverse=False):
    """A sequence's values at the steps that it reaches and where it is read last; NaN elsewhere."""
    found = np.full((len(lengths), len(STEPS) + 1, sequences.shape[2]), np.nan)
    for row, length in enumerate(lengths):
        for column, step in enumerate([*STEPS, 0 if reverse else length - 1]):
            if step < length:
                found[row, column] = sequences[row, step]
    return found


def where_present(samples, site):
    return np.where(samples.present[:, :, None], samples.states[site], np.nan)


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_states_are_those_that_the_module_returns(kind):
    module, x = make(kind, 2, bidirectional=True), random_inputs(len(LENGTHS), 11)
    samples = sample(record(module, pack(x, LENGTHS)))
    outputs = own_outputs(module, x, LENGTHS)
    width = outputs.shape[2] // 2
    # One layer alone, on the weights of the lower one.
    lower = make(kind, bidirectional=True)
    lower.load_state_dict({name: value for name, value in module.state_dict().items() if "_l0" in name})
    below = own_outputs(lower, x, LENGTHS)
    for layer, sequences in enumerate([below, outputs]):
        for suffix, part in (("", slice(width)), ("_reverse", slice(width, None))):
            wanted = at_columns(sequences[..., part], LENGTHS, reverse=bool(suffix))
            np.testing.assert_allclose(where_present(samples, f"l{layer}{suffix}/hidden"), wanted, atol=ROUNDING)
    np.testing.assert_array_equal(where_present(samples, "input"), at_columns(x.numpy(), LENGTHS))
    np.testing.assert_array_equal(where_present(samples, "input_reverse"), at_columns(x.numpy(), LENGTHS, reverse=True))
    assert samples.lengths.tolist() == list(LENGTHS)
    assert max(samples.rebuild_error.values()) < ROUNDING
    assert set(samples.rebuild_error) == {"l0", "l0_reverse", "l1", "l1_reverse"}


def test_memory_is_that_of_a_loop_over_the_cell():
    module, x = make("lstm", bidirectional=True), random_inputs(len(LENGTHS), 11)
    samples = sample(record(module, pack(x, LENGTHS)))
    for suffix in ("", "_reverse"):
        single = nn.LSTMCell(INPUTS, UNITS)
        weights = {name: getattr(module, f"{name}_l0{suffix}") for name in dict(single.named_parameters())}
        single.load_state_dict(weights)
        memory = np.full((len(LENGTHS), 11, UNITS), np.nan)
        for row, length in enumerate(LENGTHS):
            state = None
            for step in reversed(range(length)) if suffix else range(length):
                with torch.no_grad():
                    state = single(x[row : row + 1, step], state)
                memory[row, step] = state[1][0]
        wanted = at_columns(memory, LENGTHS, reverse=bool(suffix))
        np.testing.assert_allclose(where_present(samples, f"l0{suffix}/memory"), wanted, atol=ROUNDING)


@pytest.mark.parametrize("single", [nn.GRUCell, nn.LSTMCell])
def test_loop_of_the_users_is_sampled_as_the_states_it_went_through(single):
    torch.manual_seed(0)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = single(INPUTS, UNITS)

        def forward(self, x):
            state, found = None, []
            for step in x.unbind(1):
                state = self.cell(step, state)
                found.append(torch.cat(state, 1) if isinstance(state, tuple) else state)
            return torch.stack(found, 1)

    model, x = Loop(), random_inputs(5, 11)
    samples = sample(record(model, x))
    with torch.no_grad():
        states = model(x).numpy()
    sites = ["cell/hidden", "cell/memory"] if single is nn.LSTMCell else ["cell/hidden"]
    assert set(samples.states) == {*sites, "input"}
    for place, site in enumerate(sites):
        wanted = at_columns(states[..., place * UNITS : (place + 1) * UNITS], [11] * 5)
        np.testing.assert_allclose(samples.states[site], wanted, atol=ROUNDING)


def test_layout_of_the_users_inputs_does_not_matter():
    module, x = make("gru"), random_inputs(5, 11)
    turned = nn.GRU(INPUTS, UNITS)
    turned.load_state_dict(module.state_dict())
    one, other = sample(record(module, x)), sample(record(turned, x.transpose(0, 1)))
    for site, states in one.states.items():
        np.testing.assert_allclose(states, other.states[site], atol=ROUNDING)


def test_only_the_first_call_of_a_batch_is_taken():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make("gru")

        def forward(self, x):
            return self.rnn(x)[0], self.rnn(-x)[0]

    model, x = Twice(), random_inputs(5, 11)
    samples = sample(record(model, x[:2], x[2:]))
    assert samples.rows.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    np.testing.assert_array_equal(samples.states["input"][:, 0], x[:, 0])


def test_calls_heard_one_by_one_give_the_same_samples():
    module, x = make("lstm"), random_inputs(7, 11)
    tape = record(module, x[:2], x[2:5], x[5:])
    sampler = StateSampler(STEPS, max_megabytes=WIDE)
    for call in tape.calls:
        sampler.hear(type(tape)(tape.name, (call,)))
    whole = sample(tape)
    assert sampler.count == 7
    for site, states in sampler.result().states.items():
        np.testing.assert_array_equal(states, whole.states[site])


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh"])
def test_weights_that_are_not_the_ones_that_ran_are_noticed(kind):
    module, x = make(kind, 2), random_inputs(5, 11)
    tape = record(module, x)
    assert max(sample(tape).rebuild_error.values()) < ROUNDING
    with torch.no_grad():
        module.weight_hh_l1 *= 1.5
    found = sample(with_other_cells(tape, module))
    assert found.rebuild_error["l1"] > 10 * found.tolerance
    assert found.rebuild_error["l0"] < ROUNDING


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_rebuilt_states_that_are_no_numbers_are_noticed(kind):
    module = make(kind)
    tape = record(module, random_inputs(5, 11))
    with torch.no_grad():
        module.weight_hh_l0[0, 0] = torch.nan
    assert sample(with_other_cells(tape, module)).rebuild_error["l0"] == np.inf


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_weights_give_what_a_module_of_these_weights_gives(kind, packed):
    trained, untrained = make(kind, 2, bidirectional=True), make(kind, 2, bidirectional=True, seed=7)
    x = random_inputs(len(LENGTHS), 11)
    given = pack(x, LENGTHS) if packed else x
    rerun = sample(record(trained, given), with_cells=cells(untrained))
    itself = sample(record(untrained, given))
    assert rerun.rebuild_error == {}
    for site in itself.states:
        np.testing.assert_allclose(where_present(rerun, site), where_present(itself, site), atol=ROUNDING)


def test_other_weights_are_run_without_the_dropout_of_training():
    trained, untrained = make("gru", 2, dropout=0.5), make("gru", 2, seed=7)
    x = random_inputs(5, 11)
    rerun = sample(record(trained.train(), x), with_cells=cells(untrained))
    for site, states in sample(record(untrained, x)).states.items():
        np.testing.assert_allclose(rerun.states[site], states, atol=ROUNDING)


def test_memory_is_not_exceeded():
    tape = record(make("lstm"), random_inputs(40, 11))
    whole = sample(tape)
    size = sum(states[0].nbytes for states in whole.states.values())
    sampler = StateSampler(STEPS, max_megabytes=17.5 * size / 2**20)
    sampler.hear(tape)
    assert sampler.full
    few = sampler.result()
    assert len(few.lengths) == len(few.rows) == 17
    assert sum(states.nbytes for states in few.states.values()) == 17 * size
    for site, states in few.states.items():
        np.testing.assert_array_equal(states, whole.states[site][:17])
    sampler.begin()
    assert not sampler.full
    assert sampler.result() is None


def test_memory_is_not_exceeded_by_several_batches():
    x = random_inputs(40, 11)
    tape = record(make("gru"), x[:13], x[13:26], x[26:])
    size = sum(states[0].nbytes for states in sample(tape).states.values())
    few = sample(tape, max_megabytes=17.5 * size / 2**20)
    assert few.rows.tolist() == [[0, row] for row in range(13)] + [[1, row] for row in range(4)]


def test_two_sequences_are_taken_however_little_memory_there_is():
    assert len(sample(record(make("gru"), random_inputs(5, 11)), max_megabytes=1e-9).rows) == 2


def test_nothing_heard_is_no_samples():
    assert StateSampler(3, max_megabytes=WIDE).result() is None


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_state_that_is_no_number_is_handed_on_and_not_compared(kind):
    module, x = make(kind), random_inputs(5, 11)
    x[2, 4:] = torch.nan
    samples = sample(record(module, x))
    reached = np.isfinite(samples.states["l0/hidden"]).all(2)
    assert reached.tolist() == [[True] * 5] * 2 + [[True, True, False, False, False]] + [[True] * 5] * 2
    assert samples.rebuild_error["l0"] < ROUNDING


def test_only_some_sequences_are_compared_where_nothing_needs_to_be_rebuilt():
    module, x = make("gru"), random_inputs(CHECKED + 3, 11)
    tape = record(module, x)
    tape.calls[0].outputs[CHECKED:] += 1.0
    assert sample(tape).rebuild_error["l0"] < ROUNDING
    tape.calls[0].outputs[CHECKED - 1] += 1.0
    assert sample(tape).rebuild_error["l0"] > 0.1


@pytest.mark.parametrize(
    ("wanted", "longest", "steps"),
    [
        (3, 11, [0, 5, 10]),
        (20, 4, [0, 1, 2, 3]),
        (1, 4, [0]),
        ([2, 0, 2], 4, [0, 2]),
        ([-1, 0], 4, [0, 3]),
        ([-9], 4, [0]),
        ([7], 4, [7]),
    ],
)
def test_steps_are_spread_or_chosen(wanted, longest, steps):
    assert choose_steps(wanted, longest).tolist() == steps


def test_steps_stay_those_of_the_first_batch():
    module = make("gru")
    sampler = StateSampler(3, max_megabytes=WIDE)
    for length in (5, 9, 3):
        sampler.begin()
        sampler.hear(record(module, random_inputs(2, length)))
        assert sampler.steps.tolist() == [0, 2, 4]
    assert sampler.longest == 9
    assert sampler.result().present.tolist() == [[True, True, False, True]] * 2


def test_column_of_the_end_is_the_step_that_is_read_last():
    samples = sample(record(make("gru"), pack(random_inputs(len(LENGTHS), 11), LENGTHS)))
    assert samples.positions(reverse=False).tolist() == [[*STEPS, length - 1] for length in LENGTHS]
    assert samples.positions(reverse=True).tolist() == [[*STEPS, 0]] * len(LENGTHS)


@pytest.mark.parametrize(
    ("site", "reverse"), [("l0/hidden", False), ("l1_reverse/memory", True), ("input", False), ("input_reverse", True)]
)
def test_site_tells_its_direction(site, reverse):
    assert is_reversed(site) is reverse
