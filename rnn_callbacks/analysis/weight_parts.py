"""To which part of the model each weight belongs: the gates of each recurrent layer, and every other module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from ..cells import GRUCell, LSTMCell, RNNCell
from .spectra import PARTS

MOST_PLACES = 8  # modules beside the recurrent ones that are told apart; more are one place, `rest`
REST = "rest"
TAKEN = ("total", REST)  # in tags they mean all weights, and those of many modules
GATES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.RNN: PARTS[RNNCell],
    nn.RNNCell: PARTS[RNNCell],
    nn.LSTM: PARTS[LSTMCell],
    nn.LSTMCell: PARTS[LSTMCell],
    nn.GRU: PARTS[GRUCell],
    nn.GRUCell: PARTS[GRUCell],
}
# As torch names them, also behind a parametrization, the older weight_norm or pruning.
_NAME = re.compile(
    r"(?:parametrizations\.)?(?:weight|bias)_(ih|hh|hr)(_l\d+(?:_reverse)?)?(?:\.original\d*|_[gv]|_orig)?"
)


@final
@dataclass(frozen=True)
class Part:
    """Some weights that belong together."""

    place: str  # a recurrent cell (module.l0), another module, or `rest`
    gate: str = ""  # of a recurrent cell; "" elsewhere and for what no gate owns

    @property
    def key(self) -> str:
        """``place/gate``, or the place."""
        return f"{self.place}/{self.gate}" if self.gate else self.place


@final
@dataclass(frozen=True)
class Piece:
    """Consecutive numbers of one parameter, all of one part."""

    part: Part
    parameter: str
    first: int
    last: int  # the first number after it


def weight_pieces(
    parameters: Mapping[str, Tensor], modules: Mapping[str, nn.Module], *, others: Mapping[str, Tensor] | None = None
) -> list[Piece]:
    """Cut parameters into the pieces that belong to each part, in their order.

    Args:
        parameters: by name, without what torch.compile puts into it.
        modules: recurrent modules whose layers and gates are told apart, by name.
        others: all parameters of the same model, where these are some: their modules count when modules are many.
    """
    owned = {
        id(parameter): (name, module, local)
        for name, module in modules.items()
        for local, parameter in module.named_parameters()
    }
    everything = {**parameters, **(others or {})}
    many = len({_owner(name) for name, p in everything.items() if id(p) not in owned}) > MOST_PLACES
    pieces: list[Piece] = []
    for name, parameter in parameters.items():
        numbers = parameter.numel() * (2 if parameter.is_complex() else 1)
        if id(parameter) not in owned:
            pieces.append(Piece(Part(REST if many else _place(_owner(name))), name, 0, numbers))
            continue
        module_name, module, local = owned[id(parameter)]
        place, gates = _cell(module_name, module, local, len(parameter) if parameter.dim() else 0)
        if gates:
            rows = numbers // len(gates)
            ends = [(k * rows, (k + 1) * rows) for k in range(len(gates))]
            pieces += [Piece(Part(place, gate), name, *end) for gate, end in zip(gates, ends, strict=True)]
        else:
            pieces.append(Piece(Part(place), name, 0, numbers))
    return pieces


def _owner(name: str) -> str:
    """The module that a parameter belongs to; one of the model itself stands for itself."""
    plain = re.sub(r"(^|\.)parametrizations\.([^.]+)\..+", r"\1\2", name)
    return plain.rpartition(".")[0] or plain


def _place(name: str) -> str:
    """A module's name as it stands in tags."""
    name = name.replace("/", "_")
    return f"{name}_" if name in TAKEN else name


def _cell(module_name: str, module: nn.Module, local: str, rows: int) -> tuple[str, tuple[str, ...]]:
    """The cell that a recurrent module's parameter belongs to, and the gates among which its rows fall."""
    known = next((gates for kind, gates in GATES.items() if isinstance(module, kind)), ())
    match = _NAME.fullmatch(local)
    if not known or match is None:
        return _place(module_name), ()
    place = _place(f"{module_name}.{match[2][1:] if match[2] else 'cell'}")
    whole = match[1] != "hr" and rows == len(known) * int(module.hidden_size)  # type: ignore[arg-type]
    return place, known if whole else ()
