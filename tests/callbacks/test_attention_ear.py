"""`AttentionEar`: it hears the weights that a model computes anyway, and changes none of what it computes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnn_callbacks.callbacks.attention_ear import AttentionEar

WIDTH, HEADS, SEQUENCES, STEPS, KEYS = 6, 2, 5, 7, 11


def states(steps=STEPS, sequences=SEQUENCES, seed=0):
    return torch.randn(sequences, steps, WIDTH, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """Attention that is called with whatever a test says."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=options.pop("batch_first", True))
        self.options = {"average_attn_weights": False} | options

    def forward(self, query, key=None, **more):
        key = query if key is None else key
        return self.attention(query, key, key, **self.options | more)


def heard(model, *calls, most=1000, **more):
    ear = AttentionEar(model, most)
    ear.open()
    for call in calls:
        model(*call, **more)
    ear.close()
    assert not ear.faults
    return ear


def by_hand(model, query, key):
    """Weights ``(B, A, Q, K)`` from the projections, in double precision."""
    attention = model.attention
    q_weight, k_weight, _ = attention.in_proj_weight.double().chunk(3)
    q_bias, k_bias, _ = attention.in_proj_bias.double().chunk(3)
    q, k = query.double() @ q_weight.T + q_bias, key.double() @ k_weight.T + k_bias
    q, k = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(2, 3) / (WIDTH / HEADS) ** 0.5).softmax(-1).detach()


def bits(weights):
    return -(weights * weights.log2()).sum(-1)


def assert_maps(maps, weights, by_head=True):
    """Rounding of single precision."""
    assert maps.by_head is by_head
    assert maps.sequences == len(weights)
    assert maps.mean == pytest.approx(weights.mean(0).numpy(), abs=1e-6)
    assert maps.entropy == pytest.approx(bits(weights).mean((0, 2)).numpy(), abs=1e-5)


def test_each_head_is_heard():
    model, x = Model(), states()
    maps = heard(model, (x,)).sums["attention"].result()
    weights = by_hand(model, x, x)
    assert_maps(maps, weights)
    assert not torch.allclose(weights[:, 0], weights[:, 1], atol=1e-3)
    assert maps.highest == pytest.approx(torch.tensor(float(STEPS)).log2())


def test_averaged_weights_are_one_mean_head():
    model, x = Model(average_attn_weights=True), states()
    maps = heard(model, (x,)).sums["attention"].result()
    assert_maps(maps, by_hand(model, x, x).mean(1, keepdim=True), by_head=False)


def test_other_keys_than_queries_are_heard():
    model = Model()
    x, y = states(), states(KEYS, seed=1)
    maps = heard(model, (x, y)).sums["attention"].result()
    assert maps.mean.shape == (HEADS, STEPS, KEYS)
    assert_maps(maps, by_hand(model, x, y))


def test_batches_add_up():
    model, x, y = Model(), states(), states(sequences=3, seed=1)
    maps = heard(model, (x,), (y,)).sums["attention"].result()
    assert_maps(maps, by_hand(model, torch.cat([x, y]), torch.cat([x, y])))


def test_time_may_come_first():
    model, x = Model(batch_first=False), states()
    maps = heard(model, (x.transpose(0, 1),)).sums["attention"].result()
    assert_maps(maps, by_hand(model, x, x))


@pytest.mark.parametrize("average", [False, True])
def test_one_sequence_without_a_dimension_for_it_is_heard(average):
    model, x = Model(average_attn_weights=average), states(sequences=1)
    maps = heard(model, (x[0],)).sums["attention"].result()
    weights = by_hand(model, x, x)
    assert_maps(maps, weights.mean(1, keepdim=True) if average else weights, by_head=not average)


def test_half_precision_is_heard():
    model, x = Model().bfloat16(), states().bfloat16()
    maps = heard(model, (x,)).sums["attention"].result()
    assert maps.mean == pytest.approx(by_hand(model, x, x).mean(0).numpy(), abs=0.02)  # of eight bits


def test_inference_mode_is_heard():
    model, x = Model(), states()
    with torch.inference_mode():
        ear = heard(model, (x,))
    ear.open()
    model(x)
    ear.close()
    assert not ear.faults
    assert_maps(ear.sums["attention"].result(), by_hand(model, torch.cat([x, x]), torch.cat([x, x])))


def test_only_so_many_sequences_are_heard_as_asked_for():
    model, x = Model(), states()
    ear = heard(model, (x,), (states(seed=1),), most=3)
    assert_maps(ear.sums["attention"].result(), by_hand(model, x, x)[:3])
    ear = heard(model, (x,), (states(seed=1),), most=7)
    assert ear.sums["attention"].sequences == 7


@pytest.mark.parametrize("kind", ["boolean", "added", "positional", "unbatched"])
def test_padding_does_not_count(kind):
    model, x = Model(), states()
    lengths = [STEPS, 4, 2, STEPS, 5]
    mask = torch.arange(STEPS) >= torch.tensor(lengths)[:, None]
    ear = AttentionEar(model, 1000)
    ear.open()
    if kind == "positional":
        model.attention(x, x, x, mask, average_attn_weights=False)
    elif kind == "unbatched":
        for sequence, padding in zip(x, mask, strict=True):
            model(sequence, key_padding_mask=padding)
    else:
        model(x, key_padding_mask=mask if kind == "boolean" else torch.zeros(mask.shape).masked_fill(mask, -torch.inf))
    ear.close()
    maps = ear.sums["attention"].result()
    alone = [by_hand(model, x[i : i + 1, :n], x[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
    entropy = sum(bits(weights).sum(1) for weights in alone) / sum(lengths)
    assert maps.entropy == pytest.approx(entropy.numpy(), abs=1e-5)
    whole = torch.zeros(HEADS, STEPS, STEPS, dtype=torch.float64)
    counts = torch.zeros(STEPS, 1)
    for weights, n in zip(alone, lengths, strict=True):
        whole[:, :n, :n] += weights
        counts[:n] += 1
    assert maps.mean == pytest.approx((whole / counts).numpy(), abs=1e-6)
    known = sum(n * torch.tensor(float(n)).log2() for n in lengths) / sum(lengths)
    assert maps.highest == pytest.approx(float(known), abs=1e-5)


def test_without_weights_it_says_why():
    ear = heard(Model(need_weights=False, average_attn_weights=True), (states(),))
    assert ear.sums == {}
    assert ear.silent == {"attention": "it was called with need_weights=False, so torch's fused path computes none"}


def test_a_module_that_hands_weights_out_later_is_not_silent():
    model = Model()
    ear = AttentionEar(model, 1000)
    ear.open()
    model(states(), need_weights=False)
    model(states())
    ear.close()
    assert ear.silent == {}
    assert ear.sums["attention"].sequences == SEQUENCES


@pytest.mark.parametrize("kind", ["encoder", "decoder", "stack"])
def test_torchs_own_transformer_layers_are_left_alone(kind):
    torch.manual_seed(0)
    options = {"dim_feedforward": 8, "batch_first": True, "dropout": 0.0}
    layer = {
        "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, **options),
        "decoder": lambda: nn.TransformerDecoderLayer(WIDTH, HEADS, **options),
        "stack": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, **options), 2),
    }[kind]().eval()
    x = states()
    inputs = (x, states(KEYS)) if kind == "decoder" else (x,)
    with torch.no_grad():
        before = layer(*inputs)
        ear = AttentionEar(layer, 1000)
        ear.open()
        assert not any(module._forward_hooks for module in layer.modules())
        assert torch.equal(layer(*inputs), before)
        ear.close()
    names = {name for name, module in layer.named_modules() if isinstance(module, nn.MultiheadAttention)}
    assert len(names) == (1 if kind == "encoder" else 2)
    assert ear.silent == dict.fromkeys(names, "torch's transformer layers run it without computing weights")
    assert ear.sums == ear.modules == {}


def test_what_the_model_computes_stays_bit_identical():
    model, x = Model(), states().requires_grad_()
    before, weights = model(x)
    before.sum().backward()
    gradient, x.grad = x.grad, None
    ear = AttentionEar(model, 3)
    ear.open()
    after, same = model(x)
    after.sum().backward()
    ear.close()
    assert torch.equal(before, after)
    assert torch.equal(weights, same)
    assert torch.equal(gradient, x.grad)


def test_what_is_heard_is_not_changed_by_whoever_writes_to_the_weights():
    class Writing(Model):
        def forward(self, query):
            output, weights = super().forward(query)
            weights.zero_()
            return output

    model, x = Writing(), states()
    with torch.no_grad():
        maps = heard(model, (x,)).sums["attention"].result()
    assert_maps(maps, by_hand(model, x, x))


def test_hooks_hang_only_while_it_is_open():
    model = Model()
    ear = AttentionEar(model, 1000)
    assert not model.attention._forward_hooks
    ear.open()
    ear.open()  # again, as at every batch
    assert len(model.attention._forward_hooks) == 1
    ear.close()
    ear.close()
    assert not model.attention._forward_hooks
    model(states())
    assert ear.sums == {}


def test_copies_of_the_model_can_be_made_while_it_listens():
    model, x = Model(), states()
    ear = AttentionEar(model, 1000)
    ear.open()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x)[0], model(x)[0])
    ear.close()
    assert ear.sums["attention"].sequences == 2 * SEQUENCES  # the model's own calls


def test_beginning_anew_forgets():
    ear = heard(Model(), (states(),))
    ear.begin()
    assert ear.sums == {}


def test_every_module_is_heard_under_its_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Model(), Model(average_attn_weights=True)

        def forward(self, x):
            return self.two(self.one(x)[0])

    ear = heard(Two(), (states(),))
    assert {name: sums.by_head for name, sums in ear.sums.items()} == {
        "one.attention": True,
        "two.attention": False,
    }


def test_an_attention_of_a_users_own_that_cannot_be_read_is_no_fault_of_the_pass():
    class Odd(nn.MultiheadAttention):
        def forward(self, x):
            return F.relu(x)[0, 0, 0]  # no weights, and nothing to index

    model = nn.Sequential(Odd(WIDTH, HEADS))
    ear = AttentionEar(model, 1000)
    ear.open()
    assert model(states()).shape == ()
    model(states())
    ear.close()
    assert list(ear.faults) == ["0"]
    assert isinstance(ear.faults["0"], IndexError)


def test_weights_that_dropout_changes_are_not_taken():
    model = nn.Module()
    model.attention = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
    ear = AttentionEar(model, 100)
    ear.open()
    x = torch.randn(2, 5, 6)
    model.attention(x, x, x, average_attn_weights=False)
    assert not ear.sums
    assert "listen to validation" in ear.silent["attention"]
    model.attention.eval()(x, x, x, average_attn_weights=False)
    ear.close()
    assert ear.sums["attention"].sequences == 2
    assert not ear.silent
