"""Which weights belong together: every number once, gates in torch's order as the modules themselves show it."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as older_weight_norm

from rnn_callbacks.analysis.weight_parts import MOST_PLACES, Part, Piece, weight_pieces
from rnn_callbacks.capture import recurrent_modules

from ..test_own_cells import PeepholeCell
from .known_gates import FAMILIES, INPUTS, UNITS, make

GATES = {
    nn.RNN: ("hidden",),
    nn.LSTM: ("input", "forget", "cell", "output"),
    nn.GRU: ("reset", "update", "new"),
}


def named(model):
    return {name.replace("_orig_mod.", ""): parameter for name, parameter in model.named_parameters()}


def pieces_of(model, parameters=None, **options):
    """Pieces of a model of which every number is in exactly one."""
    parameters = named(model) if parameters is None else parameters
    found = weight_pieces(parameters, recurrent_modules(model), **options)
    covered = {name: [] for name in parameters}
    for piece in found:
        covered[piece.parameter] += range(piece.first, piece.last)
    for name, parameter in parameters.items():
        assert covered[name] == list(range(parameter.numel() * (1 + parameter.is_complex())))
    assert list(dict.fromkeys(piece.parameter for piece in found)) == list(parameters)
    return found


def places(model, **options):
    return {piece.parameter: piece.part.place for piece in pieces_of(model, **options)}


def model_of(**modules):
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


# ---- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_each_gate_of_each_cell_has_its_rows_of_all_its_weights(kind, bias):
    module = make(kind, 2, bidirectional=True, bias=bias)
    gates = GATES[FAMILIES[kind][0]]
    found = pieces_of(model_of(rnn=module))
    true = []
    for name, parameter in module.named_parameters():
        place = "rnn." + name.split("_", 2)[2]
        rows = parameter.numel() // len(gates)
        cuts = [(Part(place, gate), k * rows, (k + 1) * rows) for k, gate in enumerate(gates)]
        if name.startswith("weight_hr"):
            cuts = [(Part(place), 0, parameter.numel())]  # no gate's
        true += [Piece(part, f"rnn.{name}", first, last) for part, first, last in cuts]
    assert found == true
    suffixes = {piece.part.place for piece in found}
    assert suffixes == {"rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"}


OPEN = 50.0  # a bias with which a sigmoid, or tanh, is 1
LSTM_STATES = {  # of the bias that is set: memory and hidden state after a step from a memory of 3, all else zero
    "input": (1.5, 0.5 * math.tanh(1.5)),
    "forget": (3.0, 0.5 * math.tanh(3.0)),
    "cell": (2.0, 0.5 * math.tanh(2.0)),
    "output": (1.5, math.tanh(1.5)),
}
GRU_STATES = {  # from a state of 0.5, where the part of the new content that is reset has a bias of 1
    "reset": 0.5 * math.tanh(1.0) + 0.25,
    "update": 0.5,
    "new": 0.5 + 0.25,
}


def opened(module, gate):
    """The module with zero weights but for the first bias of one gate, set through the pieces that claim it."""
    name = "bias_ih_l0" if hasattr(module, "bias_ih_l0") else "bias_ih"
    (piece,) = [
        piece
        for piece in pieces_of(model_of(rnn=module))
        if piece.parameter == f"rnn.{name}" and piece.part.gate == gate
    ]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        getattr(module, name)[piece.first : piece.last] = OPEN
    return module


def state_of(value):
    return torch.full((1, UNITS), value)


@pytest.mark.parametrize("gate", LSTM_STATES)
def test_gates_of_an_lstm_do_what_their_names_say(gate):
    memory, hidden = LSTM_STATES[gate]
    _, found = opened(nn.LSTM(INPUTS, UNITS), gate)(torch.zeros(1, INPUTS), (state_of(0.7), state_of(3.0)))
    torch.testing.assert_close(found[::-1], (state_of(memory), state_of(hidden)))
    found = opened(nn.LSTMCell(INPUTS, UNITS), gate)(torch.zeros(1, INPUTS), (state_of(0.7), state_of(3.0)))
    torch.testing.assert_close(found[::-1], (state_of(memory), state_of(hidden)))


def test_input_gate_of_an_lstm_lets_new_content_in():
    module = opened(nn.LSTMCell(INPUTS, UNITS), "input")
    with torch.no_grad():
        module.bias_hh.copy_(opened(nn.LSTMCell(INPUTS, UNITS), "cell").bias_ih)
    _, memory = module(torch.zeros(1, INPUTS), (state_of(0.0), state_of(3.0)))
    torch.testing.assert_close(memory, state_of(1.5 + 1.0))


@pytest.mark.parametrize("gate", GRU_STATES)
@pytest.mark.parametrize("family", [nn.GRU, nn.GRUCell])
def test_gates_of_a_gru_do_what_their_names_say(gate, family):
    module = opened(family(INPUTS, UNITS), gate)
    bias = module.bias_hh_l0 if family is nn.GRU else module.bias_hh
    with torch.no_grad():
        if gate == "reset":
            bias[2 * UNITS :] = 1.0
    found = module(torch.zeros(1, INPUTS), state_of(0.5))
    torch.testing.assert_close(found[1] if family is nn.GRU else found, state_of(GRU_STATES[gate]))


@pytest.mark.parametrize("kind", ["gru", "lstm", "lstm_projected"])
def test_only_the_part_whose_rows_move_moves(kind):
    model = model_of(rnn=make(kind, 2, bidirectional=True), head=nn.Linear(UNITS, 3))
    before = {name: parameter.detach().clone() for name, parameter in named(model).items()}
    gates = GATES[FAMILIES[kind][0]]
    with torch.no_grad():
        model.rnn.weight_hh_l1_reverse.chunk(len(gates))[1].add_(1.0)
    moved = Counter()
    for piece in pieces_of(model):
        step = (named(model)[piece.parameter].detach() - before[piece.parameter]).flatten()[piece.first : piece.last]
        moved[piece.part.key] += step.abs().sum().item()
    assert [key for key, length in moved.items() if length] == [f"rnn.l1_reverse/{gates[1]}"]


@pytest.mark.parametrize("family", [nn.RNN, nn.LSTM, nn.GRU])
def test_single_step_cell_is_called_cell(family):
    cell = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}[family]
    found = pieces_of(model_of(step=cell(INPUTS, UNITS, bias=False)))
    assert [piece.part.key for piece in found] == [f"step.cell/{gate}" for gate in GATES[family]] * 2


WRAPPINGS = {
    "weight_norm": lambda rnn, name: parametrizations.weight_norm(rnn, name),
    "orthogonal": lambda rnn, name: parametrizations.orthogonal(rnn, name),
    "spectral_norm": lambda rnn, name: parametrizations.spectral_norm(rnn, name),
    "pruning": lambda rnn, name: prune.l1_unstructured(rnn, name, amount=0.3),
}


@pytest.mark.parametrize("way", [*WRAPPINGS, "older weight_norm"])
def test_gates_of_a_reparametrized_matrix_are_told_apart(way):
    rnn = nn.LSTM(INPUTS, UNITS, 2)
    if way == "older weight_norm":
        with pytest.warns(FutureWarning, match="weight_norm"):
            older_weight_norm(rnn, "weight_hh_l1")
    else:
        WRAPPINGS[way](rnn, "weight_hh_l1")
    found = pieces_of(model_of(rnn=rnn))
    assert {piece.part.place for piece in found} == {"rnn.l0", "rnn.l1"}
    own = [piece for piece in found if "weight_hh_l1" in piece.parameter]
    assert [piece.part.gate for piece in own] == list(GATES[nn.LSTM]) * (1 + ("weight_norm" in way))
    for piece in own:
        rows = named(model_of(rnn=rnn))[piece.parameter]
        width = rows.numel() // (4 * UNITS)
        assert (piece.first, piece.last) == tuple(
            width * UNITS * (GATES[nn.LSTM].index(piece.part.gate) + k) for k in (0, 1)
        )


def test_length_of_columns_is_no_gates():
    rnn = parametrizations.weight_norm(nn.GRU(INPUTS, UNITS), "weight_ih_l0", dim=1)
    (found,) = [piece for piece in pieces_of(model_of(rnn=rnn)) if piece.parameter.endswith("weight_ih_l0.original0")]
    assert found.part == Part("rnn.l0")


def test_parameter_without_axes_is_no_gates():
    rnn = parametrizations.weight_norm(nn.GRU(INPUTS, UNITS), "weight_ih_l0", dim=None)
    (found,) = [piece for piece in pieces_of(model_of(rnn=rnn)) if piece.parameter.endswith("weight_ih_l0.original0")]
    assert (found.part, found.first, found.last) == (Part("rnn.l0"), 0, 1)


def test_more_weights_in_a_recurrent_module_are_its_own():
    class Normalized(nn.LSTM):
        def __init__(self):
            super().__init__(INPUTS, UNITS)
            self.norm = nn.LayerNorm(UNITS)

    found = places(model_of(rnn=Normalized(), head=nn.Linear(2, 3)))
    assert found["rnn.norm.weight"] == "rnn"
    assert found["rnn.weight_ih_l0"] == "rnn.l0"


def test_cell_of_a_users_own_is_one_part():
    assert set(places(model_of(own=PeepholeCell(INPUTS))).values()) == {"own"}


def test_recurrent_module_inside_a_users_own_has_its_gates_in_either_order():
    model = model_of(own=PeepholeCell(INPUTS))
    model.own.inner = nn.GRU(INPUTS, UNITS)
    assert places(model)["own.inner.weight_hh_l0"] == "own.inner.l0"


def test_complex_weights_count_both_of_their_numbers_and_keep_their_gates():
    rnn = nn.GRUCell(INPUTS, UNITS, dtype=torch.complex64)
    found = pieces_of(model_of(rnn=rnn))
    assert found[1] == Piece(Part("rnn.cell", "update"), "rnn.weight_ih", 2 * UNITS * INPUTS, 4 * UNITS * INPUTS)


# ---- places ----------------------------------------------------------------------------------------------------------


def test_other_weights_belong_to_their_module_and_the_models_own_to_themselves():
    model = model_of(rnn=nn.GRU(2, 3), encoder=nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3)))
    model.scale = nn.Parameter(torch.ones(()))
    found = places(model)
    assert list(found.items())[:1] == [("scale", "scale")]
    assert {name: place for name, place in found.items() if name.startswith("enc")} == {
        "encoder.0.weight": "encoder.0",
        "encoder.0.bias": "encoder.0",
        "encoder.2.weight": "encoder.2",
        "encoder.2.bias": "encoder.2",
    }


class Scaled(nn.Module):
    """A parametrization with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, values):
        return self.scale * values


def test_reparametrized_weights_belong_to_the_module_that_has_them():
    model = model_of(rnn=nn.GRU(2, 3), head=parametrizations.weight_norm(nn.Linear(3, 2)))
    model.head.weight_pair = nn.Parameter(torch.ones(2, 2))
    parametrizations.orthogonal(model.head, "weight_pair")
    nn.utils.parametrize.register_parametrization(model.head, "bias", Scaled())
    model.own = nn.Parameter(torch.ones(3))
    nn.utils.parametrize.register_parametrization(model, "own", Scaled())
    found = places(model)
    assert {place for name, place in found.items() if "head" in name} == {"head"}
    assert len([name for name in found if "head" in name]) == 5
    assert {place for name, place in found.items() if "own" in name} == {"own"}


def test_tied_weights_are_of_the_module_that_has_them_first():
    model = model_of(embedding=nn.Embedding(5, 3), rnn=nn.GRU(3, 3), head=nn.Linear(3, 5, bias=False))
    model.head.weight = model.embedding.weight
    assert [name for name in places(model) if not name.startswith("rnn")] == ["embedding.weight"]


@pytest.mark.parametrize("first", ["rnn", "head"])
def test_weights_that_are_tied_to_a_recurrent_modules_are_its_gates(first):
    modules = {"rnn": nn.RNN(3, 3, bias=False), "head": nn.Linear(3, 3, bias=False)}
    modules["head"].weight = modules["rnn"].weight_hh_l0
    model = model_of(**{first: modules.pop(first)}, **modules)
    found = pieces_of(model)
    assert len(found) == 2
    assert {piece.part.key for piece in found} == {"rnn.l0/hidden"}


@pytest.mark.parametrize("many", [False, True])
def test_places_beside_the_recurrent_ones_are_told_apart_up_to_eight(many):
    others = {f"layer{k}": nn.Linear(1, 2) for k in range(MOST_PLACES + many)}
    recurrent = {f"rnn{k}": nn.GRU(1, 2) for k in range(3)}
    found = places(model_of(**others, **recurrent))
    assert {place for name, place in found.items() if name.startswith("layer")} == (
        {"rest"} if many else {f"layer{k}" for k in range(MOST_PLACES)}
    )
    assert {place for name, place in found.items() if name.startswith("rnn")} == {f"rnn{k}.l0" for k in range(3)}


@pytest.mark.parametrize("many", [False, True])
def test_places_are_the_same_when_some_parameters_are_asked_for(many):
    others = {f"layer{k}": nn.Linear(1, 2) for k in range(MOST_PLACES + many)}
    model = model_of(**others, rnn=nn.LSTM(1, 2))
    everything = named(model)
    some = {name: everything[name] for name in ("layer3.bias", "rnn.weight_hh_l0")}
    assert {piece.part.place for piece in pieces_of(model, some, others=everything)} == {
        "rest" if many else "layer3",
        "rnn.l0",
    }


@pytest.mark.parametrize("name", ["total", "rest"])
@pytest.mark.parametrize("many", [False, True])
def test_module_called_as_a_tag_that_means_more_gets_a_name_of_its_own(name, many):
    others = {f"layer{k}": nn.Linear(1, 2) for k in range(MOST_PLACES * many)}
    for module in (nn.Linear(1, 2), PeepholeCell(INPUTS)):
        found = places(model_of(rnn=nn.GRU(1, 2), **{name: module}, **others))
        own = {place for parameter, place in found.items() if parameter.startswith(f"{name}.")}
        in_rest = many and isinstance(module, nn.Linear)
        assert own == {"rest" if in_rest else f"{name}_"}
    model = model_of(rnn=nn.GRU(1, 2))
    model.register_parameter(name, nn.Parameter(torch.ones(3)))
    assert places(model)[name] == f"{name}_"
    assert set(places(model_of(**{name: nn.GRU(1, 2)})).values()) == {f"{name}.l0"}


def test_place_holds_no_slash_since_that_parts_it_from_its_gates():
    model = model_of(heads=nn.ModuleDict({"a/b": nn.Linear(1, 2), "c/d": nn.GRU(1, 2)}))
    assert [piece.part.key.count("/") for piece in pieces_of(model)] == [0, 0, *[1] * 12]
    assert set(places(model).values()) == {"heads.a_b", "heads.c_d.l0"}


def test_compiled_modules_have_the_names_that_they_have_uncompiled():
    plain = model_of(rnn=nn.GRU(1, 2), head=nn.Sequential(nn.Linear(1, 2)))
    true = pieces_of(plain)
    inside = model_of(rnn=torch.compile(plain.rnn, backend="eager"), head=torch.compile(plain.head, backend="eager"))
    assert pieces_of(inside) == true
    assert pieces_of(torch.compile(plain, backend="eager")) == true


def test_model_that_is_a_recurrent_module_itself_is_called_by_its_kind():
    found = pieces_of(nn.GRU(INPUTS, UNITS))
    assert {piece.part.place for piece in found} == {"gru.l0"}
    assert found[0].parameter == "weight_ih_l0"


def test_no_parameters_are_no_pieces():
    assert weight_pieces({}, {}) == []


def test_parts_are_read_without_touching_them():
    model = model_of(rnn=make("lstm"), head=nn.Linear(2, 3))
    before = {name: parameter.detach().numpy().copy() for name, parameter in named(model).items()}
    pieces_of(model)
    for name, parameter in named(model).items():
        np.testing.assert_array_equal(parameter.detach().numpy(), before[name])
        assert parameter.requires_grad
