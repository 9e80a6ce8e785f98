"""`Audience`: the same batches have the same digest, and whatever changes in them is seen."""

import copy
import enum
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from rnn_callbacks.callbacks.audience import MOST, Audience


class Graph:
    def __init__(self, nodes, label):
        self.nodes, self.label = nodes, label


@dataclass
class Item:
    x: torch.Tensor
    name: str = "a"
    more: list = field(default_factory=list)


def digest(*batches):
    audience = Audience()
    for number, batch in enumerate(batches):
        audience.hear(number, batch)
    return audience.digest


def numbers(*shape, changed=None, dtype=torch.float32):
    found = torch.arange(float(np.prod(shape))).reshape(shape)
    if changed is not None:
        found[changed] += 0.5 if dtype.is_floating_point else 1
    return found.to(dtype)


PAIRS = {
    "a tensor": (lambda: numbers(3, 5), lambda: numbers(3, 5, changed=(2, 4))),
    "a shape": (lambda: numbers(3, 5), lambda: numbers(5, 3)),
    "a pair": (lambda: (numbers(3, 5), numbers(3)), lambda: (numbers(3, 5), numbers(3, changed=(1,)))),
    "a list": (lambda: [numbers(3), numbers(2)], lambda: [numbers(3), numbers(2, changed=(0,))]),
    "a dict": (lambda: {"x": numbers(3)}, lambda: {"x": numbers(3, changed=(2,))}),
    "a key": (lambda: {"x": numbers(3)}, lambda: {"y": numbers(3)}),
    "an ordered dict": (lambda: OrderedDict(x=numbers(3)), lambda: OrderedDict(x=numbers(3, changed=(2,)))),
    "a nested value": (lambda: {"x": [{"y": (numbers(2), 3)}]}, lambda: {"x": [{"y": (numbers(2), 4)}]}),
    "strings": (lambda: (numbers(2), ["a", "b"]), lambda: (numbers(2), ["b", "a"])),
    "whole numbers": (lambda: [1, 2, 3], lambda: [1, 2, 4]),
    "a whole tensor": (lambda: numbers(4, dtype=torch.int64), lambda: numbers(4, changed=(3,), dtype=torch.int64)),
    "booleans": (lambda: (True, numbers(2)), lambda: (False, numbers(2))),
    "a boolean tensor": (lambda: torch.tensor([True, False]), lambda: torch.tensor([True, True])),
    "a real number": (lambda: [0.1], lambda: [0.1 + 1e-15]),
    "an array": (lambda: np.arange(6.0).reshape(2, 3), lambda: np.array([[0.0, 1, 2], [3, 4, 6]])),
    "half precision": (
        lambda: numbers(4, dtype=torch.float16),
        lambda: numbers(4, changed=(3,), dtype=torch.float16),
    ),
    "brain floats": (lambda: numbers(4, dtype=torch.bfloat16), lambda: numbers(4, changed=(1,), dtype=torch.bfloat16)),
    "an object": (lambda: Graph(numbers(3), "a"), lambda: Graph(numbers(3, changed=(0,)), "a")),
    "an object's name": (lambda: Graph(numbers(3), "a"), lambda: Graph(numbers(3), "b")),
    "a dataclass": (lambda: Item(numbers(3), more=[1]), lambda: Item(numbers(3), more=[2])),
    "a packed sequence": (
        lambda: pack_sequence([numbers(3, 2), numbers(2, 2)]),
        lambda: pack_sequence([numbers(3, 2), numbers(2, 2, changed=(1, 1))]),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_equal_batches_have_equal_digests(kind):
    make, _ = PAIRS[kind]
    assert digest(make()) == digest(make()) == digest(copy.deepcopy(make()))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_changed_value_changes_the_digest(kind):
    make, change = PAIRS[kind]
    assert digest(make()) != digest(change())


def test_views_and_gradients_make_no_difference():
    x = numbers(4, 6)
    assert digest(x.T.contiguous().T) == digest(x) == digest(x.clone().requires_grad_())


def test_batches_count_in_their_order():
    one, other = numbers(3), numbers(3, changed=(1,))
    assert digest(one, other) != digest(other, one)
    assert digest(one, other) != digest(one)


def test_a_second_pass_over_the_batches_begins_anew():
    audience = Audience()
    for number in range(2):
        audience.hear(number, numbers(3, changed=(number,)))
    audience.begin()
    audience.hear(0, numbers(3))
    assert audience.digest == digest(numbers(3))


def test_each_batch_has_a_digest_of_its_own():
    audience = Audience()
    for number, changed in enumerate((0, 1, 0)):
        audience.hear(number, numbers(3, changed=(changed,)))
    first, second, third = (audience.batches[number] for number in range(3))
    assert first.shape == (16,)
    assert np.array_equal(first, third)
    assert not np.array_equal(first, second)


def test_no_more_than_the_first_numbers_of_a_large_tensor_are_read():
    large = torch.zeros(2, MOST)
    seen, unseen = large.clone(), large.clone()
    seen[0, -1], unseen[1, 0] = 1, 1
    assert digest(large) == digest(unseen) != digest(seen)


@pytest.mark.parametrize("batch", [None, {1, 2}, [], {}, torch.empty(0, 3)], ids=str)
def test_what_holds_nothing_to_read_is_taken_in(batch):
    assert digest(batch) == digest(copy.copy(batch))


def test_a_batch_is_not_changed():
    batch = (numbers(3, 5, dtype=torch.bfloat16), {"x": numbers(2)})
    before = copy.deepcopy(batch)
    digest(batch)
    assert torch.equal(batch[0], before[0])
    assert batch[0].dtype is torch.bfloat16
    assert torch.equal(batch[1]["x"], before[1]["x"])


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


class Node:
    def __init__(self, value):
        self.value, self.parent = value, self


def strings(*values):
    return np.array(values, dtype=object)


@pytest.mark.parametrize(
    ("one", "alike", "other"),
    [
        (Kind.ONE, Kind.ONE, Kind.TWO),
        (Node(1), Node(1), Node(2)),
        (torch.eye(3).to_sparse(), torch.eye(3).to_sparse(), torch.ones(3, 3).to_sparse()),
        (strings("a", "b"), strings("a", "".join(["b"])), strings("a", "c")),
        (b"one", bytes(bytearray(b"one")), b"two"),
        (np.int64(1), np.int64(1), np.int64(2)),
    ],
    ids=["enumeration", "parent pointer", "sparse", "objects", "bytes", "numpy scalar"],
)
def test_unusual_batches_are_told_apart(one, alike, other):
    assert digest(one) == digest(alike) != digest(other)
