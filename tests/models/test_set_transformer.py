"""Attention against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from lightning_meta.models.set_transformer import MultiheadAttention, SetTransformer, SetTransformerBlock

pytestmark = pytest.mark.usefixtures("float64")


def torch_attention(own: MultiheadAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(own.width, own.heads, batch_first=True)
    parts = own.query, own.key, own.value
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(own.mix.state_dict())
    return theirs


def torch_layer(own: SetTransformerBlock) -> nn.TransformerEncoderLayer:
    """The layer of torch with this block's weights, without dropout."""
    theirs = nn.TransformerEncoderLayer(own.width, own.heads, own.hidden, dropout=0.0, batch_first=True)
    theirs.self_attn = torch_attention(own.attention)
    theirs.linear1.load_state_dict(own.feed_forward.layers[0].state_dict())
    theirs.linear2.load_state_dict(own.feed_forward.layers[2].state_dict())
    theirs.norm1.load_state_dict(own.attention_norm.state_dict())
    theirs.norm2.load_state_dict(own.feed_forward_norm.state_dict())
    return theirs


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True, True, False])])
def test_attention_is_torchs(mask):
    own = MultiheadAttention(6, heads=3)
    queries, keys, values = torch.randn(4, 6), torch.randn(5, 6), torch.randn(5, 6)
    padding = None if mask is None else ~mask[None]
    expected, _ = torch_attention(own)(queries[None], keys[None], values[None], key_padding_mask=padding)
    torch.testing.assert_close(own(queries, keys, values, mask), expected[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False, True])])
def test_a_block_is_torchs_layer(mask):
    own, tokens = SetTransformerBlock(6, heads=2, hidden=10), torch.randn(4, 6)
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.1 * torch.randn_like(p))  # affine normalization too
    padding = None if mask is None else ~mask[None]
    expected = torch_layer(own)(tokens[None], src_key_padding_mask=padding)[0]
    torch.testing.assert_close(own(tokens, tokens, mask), expected, rtol=1e-10, atol=1e-12)


def test_elements_that_attend_to_a_set_do_not_change_it():
    """They get what they would get in one sequence with the set, where all attend to the set alone."""
    own, given, asked = SetTransformer(3, 6, 1, blocks=2, heads=2), torch.randn(5, 3), torch.randn(4, 3)
    mask = torch.tensor([True, True, False, True, True])
    tokens, contexts = own(given, mask)
    found, _ = own(asked, mask, contexts)
    together = own.embedding(torch.cat([given, asked]))
    hidden = torch.ones(9, 9, dtype=torch.bool)
    hidden[:, :5] = ~mask
    for block in own.blocks:
        together = torch_layer(block)(together[None], src_mask=hidden)[0]
    torch.testing.assert_close(torch.cat([tokens, found]), together, rtol=1e-10, atol=1e-12)


def test_second_derivatives_are_vectorized():
    own, sets = MultiheadAttention(4, heads=2), torch.randn(3, 5, 4)
    parameters = {name: p.detach() for name, p in own.named_parameters()}

    def curvature(tokens):
        def value(x):
            return functional_call(own, parameters, (x, tokens, tokens)).square().sum()

        return grad(lambda x: grad(value)(x).square().sum())(tokens)

    torch.testing.assert_close(vmap(curvature)(sets), torch.stack([curvature(one) for one in sets]))


@pytest.mark.parametrize("heads", [0, 4])
def test_wrong_heads_are_an_error(heads):
    with pytest.raises(ValueError, match=f"heads={heads}"):
        MultiheadAttention(6, heads)
