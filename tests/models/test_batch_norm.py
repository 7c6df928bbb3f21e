from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from lightning_meta.models.batch_norm import batch_norm

pytestmark = pytest.mark.usefixtures("float64")


def inputs(*tasks):
    return [torch.randn(*tasks, *shape, requires_grad=not tasks) for shape in ((4, 3, 2, 2), (3,), (3,))]


def ours(x, weight, bias):
    return batch_norm(x, weight, bias, 1e-5)


def written_out(x, weight, bias):
    centred = x - x.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    return centred / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 2, 2)])
def test_output_is_torchs(shape):
    x, weight, bias = torch.randn(shape), torch.randn(3), torch.randn(3)
    torch.testing.assert_close(ours(x, weight, bias), F.batch_norm(x, None, None, weight, bias, training=True))


def test_derivatives_of_three_orders_are_finite_differences():
    slope = torch.randn(4, 3, 2, 2, requires_grad=True)

    def first(x, weight, bias, slope):
        return torch.autograd.grad(ours(x, weight, bias), (x, weight, bias), slope, create_graph=True)

    assert gradcheck(ours, inputs())
    assert gradcheck(first, [*inputs(), slope])
    assert gradgradcheck(first, [*inputs(), slope])


def test_derivatives_exist_where_the_weight_is_zero():
    x, weight, bias = inputs()
    weight = torch.zeros(3, requires_grad=True)
    assert gradgradcheck(ours, (x, weight, bias))


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (0, 0, None), (1, 0, 0)])
def test_vectorized_meta_gradient_is_that_of_normalization_written_out(in_dims):
    direction = torch.randn(4, 3, 2, 2)
    tensors = [
        tensor[0] if dim is None else tensor.movedim(0, dim) for tensor, dim in zip(inputs(5), in_dims, strict=True)
    ]

    def meta_gradient(normalize):
        def loss(*point):
            return (normalize(*point) * direction).sin().sum()

        def after_a_step(*point):
            slopes = grad(loss, argnums=(0, 1, 2))(*point)
            return loss(*[p - 0.1 * slope for p, slope in zip(point, slopes, strict=True)])

        return vmap(grad(after_a_step, argnums=(0, 1, 2)), in_dims=in_dims)(*tensors)

    torch.testing.assert_close(meta_gradient(ours), meta_gradient(written_out))


def test_one_value_a_channel_is_refused():
    with pytest.raises(ValueError, match="one value a channel"):
        ours(torch.randn(1, 3), torch.ones(3), torch.zeros(3))
