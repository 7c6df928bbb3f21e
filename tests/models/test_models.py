from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from lightning_meta.models import MLP, Conv4, TaskBatchNorm2d


@pytest.mark.parametrize(("downsampling", "features"), [("stride", 64), ("max_pool", 64)])
def test_conv4_has_the_published_shape(downsampling, features):
    model = Conv4(5, downsampling=downsampling)
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 5)
    assert model.head.in_features == features
    # Four convolutions with biases, four pairs of scale and shift, one head: 28x28 Omniglot's 112,005 parameters.
    assert sum(p.numel() for p in model.parameters()) == (9 + 1) * 64 + 3 * (9 * 64 + 1) * 64 + 8 * 64 + 65 * 5


def test_conv4_max_pool_sizes_its_head_by_the_image():
    model = Conv4(5, in_channels=3, filters=32, downsampling="max_pool", image_size=84)
    assert model.head.in_features == 800
    assert model(torch.rand(2, 3, 84, 84)).shape == (2, 5)


def test_task_batch_norm_is_batch_norm_without_memory():
    ours, theirs = TaskBatchNorm2d(3).double(), nn.BatchNorm2d(3, track_running_stats=False).double()
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([0.5, 2, -1]))
        ours.bias.copy_(torch.tensor([1.0, 0, 3]))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs(x))


def test_mlp_is_the_papers_network():
    sizes = [tuple(layer.weight.shape) for layer in MLP().layers if isinstance(layer, nn.Linear)]
    assert sizes == [(40, 1), (40, 40), (1, 40)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.parametrize(
    "make", [MLP, lambda: Conv4(3, filters=8), lambda: Conv4(3, filters=8, downsampling="max_pool")]
)
def test_models_compile_vectorized_and_differentiated(make):
    model = make()
    is_mlp = isinstance(model, MLP)
    x = torch.randn(2, 6, 1) if is_mlp else torch.rand(2, 6, 1, 28, 28)

    def task(parameters, x):
        def loss(p):
            return functional_call(model, p, (x,)).square().mean()

        gradient, _ = grad_and_value(loss)(parameters)
        return loss({n: p - 0.1 * gradient[n] for n, p in parameters.items()})

    parameters = {n: p.detach() for n, p in model.named_parameters()}
    eager = vmap(grad_and_value(task), in_dims=(None, 0))
    expected, _ = eager(parameters, x)
    found, _ = torch.compile(eager, fullgraph=True)(parameters, x)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
