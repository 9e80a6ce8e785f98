"""Attention maps against closed forms, a loop, and torch's own module."""

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.attention import AttentionSums

BATCH, HEADS, QUERIES, KEYS = 5, 3, 7, 11


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(5)
    return (3 * torch.randn(BATCH, HEADS, QUERIES, KEYS, generator=generator, dtype=torch.float64)).softmax(-1)


def heard(*batches):
    sums = AttentionSums()
    for batch in batches:
        sums.add(*batch if isinstance(batch, tuple) else (batch,))
    return sums.result()


def test_uniform_attention_has_the_entropy_of_its_keys():
    found = heard(torch.full((BATCH, HEADS, QUERIES, KEYS), 1 / KEYS, dtype=torch.float64))
    np.testing.assert_allclose(found.entropy, np.log2(KEYS), rtol=1e-12)
    assert found.highest == pytest.approx(np.log2(KEYS), rel=1e-6)  # the product is single
    assert found.mean.shape == (HEADS, QUERIES, KEYS)
    np.testing.assert_allclose(found.mean, 1 / KEYS)


def test_attention_to_one_step_has_no_entropy():
    found = heard(torch.eye(KEYS)[None, None, :QUERIES].expand(BATCH, HEADS, -1, -1))
    assert found.entropy.tolist() == [0.0] * HEADS
    np.testing.assert_array_equal(found.mean, np.broadcast_to(np.eye(KEYS)[:QUERIES], (HEADS, QUERIES, KEYS)))


def test_each_head_has_its_own_entropy():
    rows = torch.zeros(1, 3, 2, 8)
    rows[:, 0, :, 3] = 1
    rows[:, 1, :, :4] = 1 / 4
    rows[:, 2, 0, :2] = 1 / 2
    rows[:, 2, 1] = 1 / 8
    np.testing.assert_allclose(heard(rows).entropy, [0, 2, 2])


def test_mean_and_entropy_are_those_of_a_loop(weights):
    found = heard(weights)
    rows = weights.numpy()
    entropy = [
        np.mean([-(row * np.log2(row)).sum() for row in rows[:, head].reshape(-1, KEYS)]) for head in range(HEADS)
    ]
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-12)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    assert (found.sequences, found.by_head) == (BATCH, True)


def test_division_into_batches_does_not_matter(weights):
    whole, parts = heard(weights), heard(weights[:2], weights[2:3], weights[3:3], weights[3:])
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.entropy, whole.entropy, rtol=1e-12)
    assert parts.highest == pytest.approx(whole.highest)
    assert parts.sequences == BATCH


def test_mean_over_heads_is_one_head(weights):
    found = heard(weights.mean(1))
    assert (found.by_head, found.mean.shape, found.entropy.shape) == (False, (1, QUERIES, KEYS), (1,))
    np.testing.assert_allclose(found.mean[0], weights.mean((0, 1)), rtol=1e-12)


def padded_weights(lengths, steps=KEYS):
    """Uniform over the steps there are; padded queries look there, too."""
    masked = torch.arange(steps) >= torch.tensor(lengths)[:, None]
    rows = (~masked).double() / torch.tensor(lengths)[:, None]
    return rows[:, None, None].expand(-1, HEADS, steps, -1), masked


def test_padded_queries_and_keys_do_not_count():
    lengths = [3, KEYS]
    found = heard(padded_weights(lengths))
    each = sum(length * np.log2(length) for length in lengths) / sum(lengths)
    np.testing.assert_allclose(found.entropy, each, rtol=1e-12)
    assert found.highest == pytest.approx(each, rel=1e-12)
    np.testing.assert_allclose(found.mean[:, 5], 1 / KEYS)  # only the longer one has such a step
    np.testing.assert_allclose(found.mean[:, 0, :3], (1 / 3 + 1 / KEYS) / 2)


def test_query_whose_keys_were_all_masked_does_not_count(weights):
    spoilt = weights.clone()
    spoilt[1, :, 4] = torch.nan
    kept = weights.numpy()[[0, 2, 3, 4]]
    found = heard(spoilt)
    np.testing.assert_allclose(found.mean[:, 4], kept[:, :, 4].mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.mean[:, 3], weights.numpy()[:, :, 3].mean(0), rtol=1e-12)
    rows = -(weights * weights.log2()).sum(-1).permute(1, 0, 2)
    entropy = (rows.sum((1, 2)) - rows[:, 1, 4]) / (BATCH * QUERIES - 1)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-12)


def test_mask_of_other_steps_than_the_queries_hides_no_query(weights):
    masked = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    masked[:, KEYS - 3 :] = True
    weights[..., KEYS - 3 :] = 0.0
    found = heard((weights, masked))
    np.testing.assert_allclose(found.mean, weights.numpy().mean(0), rtol=1e-12)
    assert found.highest == pytest.approx(np.log2(KEYS - 3))


@pytest.mark.parametrize("order", [1, -1])
def test_batches_of_unlike_lengths_share_a_map(order):
    short, long = (torch.full((count, 1, steps, steps), 1 / steps).double() for count, steps in ((2, 3), (1, 5)))
    found = heard(*[short, long][::order])
    assert found.mean.shape == (1, 5, 5)
    np.testing.assert_allclose(found.mean[0, 0, 0], (2 / 3 + 1 / 5) / 3)
    np.testing.assert_allclose(found.mean[0, 4], 1 / 5)
    highest = (6 * np.log2(3) + 5 * np.log2(5)) / 11
    assert found.highest == pytest.approx(highest, rel=1e-6)
    np.testing.assert_allclose(found.entropy, highest, rtol=1e-6)
    assert found.sequences == 3
    np.testing.assert_allclose(found.mean.sum(-1), 1)


def test_keys_that_a_causal_mask_hides_are_none_to_spread_over():
    rows = torch.tril(torch.ones(8, 8)) / torch.arange(1, 9)[:, None]
    found = heard(rows.expand(2, 3, 8, 8).double())
    assert found.highest == pytest.approx(np.log2(np.arange(1, 9)).mean())
    np.testing.assert_allclose(found.entropy, found.highest)


def test_weights_are_those_of_a_module_of_torch():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(6, HEADS, batch_first=True).eval()
    x, masked = torch.randn(BATCH, QUERIES, 6), torch.arange(QUERIES) >= torch.tensor([7, 3, 7, 5, 7])[:, None]
    with torch.no_grad():
        rows = module(x, x, x, key_padding_mask=masked, average_attn_weights=False)[1]
    found = heard((rows, masked))
    assert (found.entropy < found.highest).all()
    np.testing.assert_allclose(found.mean[:, :3].sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.mean[:, 6], rows[[0, 2, 4], :, 6].double().mean(0))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_lower_precision_are_added_up_in_double(weights, kind):
    found = heard(weights.to(kind))
    assert (found.mean.dtype, found.entropy.dtype) == (np.float64, np.float64)
    np.testing.assert_allclose(found.entropy, heard(weights).entropy, rtol=0.02)


def test_weights_are_neither_written_to_nor_kept(weights):
    before = weights.clone()
    spoilt = weights.clone().requires_grad_()
    sums = AttentionSums()
    sums.add(spoilt)
    kept = sums.result().mean.copy()
    with torch.no_grad():
        spoilt.zero_()
    np.testing.assert_array_equal(sums.result().mean, kept)
    sums = AttentionSums()
    sums.add(weights)
    assert torch.equal(weights, before)


def test_nothing_that_counts_is_no_result():
    assert AttentionSums().result() is None
    assert heard(torch.full((BATCH, HEADS, QUERIES, KEYS), torch.nan)) is None
    assert heard((torch.ones(1, 1, 3, 3) / 3, torch.ones(1, 3, dtype=torch.bool))) is None
    assert heard(torch.zeros(0, HEADS, QUERIES, KEYS)) is None


@pytest.mark.parametrize("heads", [1, HEADS - 1])
def test_number_of_heads_must_stay(weights, heads):
    with pytest.raises(ValueError, match=f"attention weights must have 3 heads in each batch, got {heads}"):
        heard(weights, weights[:, :heads])


def test_heads_must_stay_apart(weights):
    with pytest.raises(ValueError, match="attention weights must have 1 heads in each batch, got 1"):
        heard(weights[:, :1], weights[:, 0])
