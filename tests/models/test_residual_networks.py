"""Residual networks, against the same networks written out in functions of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import MAML, Episode, ResNet12, WideResNet
from lightning_meta.execution.capture import recorder
from lightning_meta.models import DropBlock2d, RunningBatchNorm2d
from tests.models.naive import naive_meta_gradient
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")
WIDTHS = (2, 3, 4, 3)


def parameters_of(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def on_meta_device():
    with torch.device("meta"):  # without memory or time for values
        yield


@pytest.mark.usefixtures("on_meta_device")
def test_parameters_are_as_many_as_published():
    # 12.4 and 8.0 million: Lee et al. (2019) and Oreshkin et al. (2018). By hand: three 3 x 3 convolutions, a 1 x 1
    # convolution and four pairs of scale and shift in each block.
    for widths, millions in [((64, 160, 320, 640), 12.4), ((64, 128, 256, 512), 8.0)]:
        counts = [9 * (i * o + 2 * o * o) + i * o + 8 * o for i, o in zip((3, *widths), widths, strict=False)]
        found = parameters_of(ResNet12(None, widths=widths))
        assert found == sum(counts)
        assert round(found / 1e6, 1) == millions
        assert parameters_of(ResNet12(5, widths=widths)) == found + 5 * (widths[-1] + 1)
        assert parameters_of(ResNet12(5, widths=widths, pooling="flatten")) == found + 5 * (25 * widths[-1] + 1)
    # Table 4 of Zagoruyko and Komodakis (2016).
    for depth, factor, millions in [(28, 10, 36.5), (40, 4, 8.9), (16, 8, 11.0), (22, 8, 17.2)]:
        assert round(parameters_of(WideResNet(10, depth=depth, width_factor=factor)) / 1e6, 1) == millions


def normalized(p, name, x):
    """By stored statistics if the parameters have them, else by the batch's."""
    if f"{name}.running_mean" in p:
        mean, variance = p[f"{name}.running_mean"][:, None, None], p[f"{name}.running_var"][:, None, None]
    else:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    unit = (x - mean) / (variance + 1e-5).sqrt()
    return unit * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def resnet12(p, x, pooling="average"):
    for block in (f"blocks.{number}" for number in range(4)):
        added = normalized(p, f"{block}.shortcut_norm", F.conv2d(x, p[f"{block}.shortcut.weight"]))
        for number in range(3):
            x = F.conv2d(x, p[f"{block}.convolutions.{number}.weight"], padding=1)
            x = normalized(p, f"{block}.norms.{number}", x)
            x = x + added if number == 2 else x
            x = torch.where(x > 0, x, 0.1 * x)
        x = F.max_pool2d(x, 2)
    features = x.mean((2, 3)) if pooling == "average" else x.flatten(1)
    return features @ p["head.weight"].T + p["head.bias"]


def wide_resnet(p, x, per_group=1):
    x = F.conv2d(x, p["stem.weight"], padding=1)
    for number in range(3 * per_group):
        block, stride = f"blocks.{number}", 2 if number in (per_group, 2 * per_group) else 1
        active = normalized(p, f"{block}.norm1", x).clamp(min=0)
        change = F.conv2d(active, p[f"{block}.convolution1.weight"], stride=stride, padding=1)
        change = normalized(p, f"{block}.norm2", change).clamp(min=0)
        change = F.conv2d(change, p[f"{block}.convolution2.weight"], padding=1)
        shortcut = p.get(f"{block}.shortcut.weight")
        x = change + (x if shortcut is None else F.conv2d(active, shortcut, stride=stride))
    features = normalized(p, "norm", x).clamp(min=0).mean((2, 3))
    return features @ p["head.weight"].T + p["head.bias"]


def varied(model):
    """A model whose scales, shifts and stored statistics are not those of the start."""
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            (tensor.uniform_ if "var" in name or "weight" in name else tensor.normal_)(*(0.5, 1.5))
    return model


CASES = {
    "resnet12": (lambda **o: ResNet12(3, 2, WIDTHS, image_size=16, **o), resnet12),
    "wide": (lambda **o: WideResNet(3, 2, depth=10, width_factor=1, **o), wide_resnet),
}


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_network_written_out(name, running):
    make, function = CASES[name]
    model, x = varied(make(running_statistics=running)).eval(), torch.randn(4, 2, 18, 20)
    torch.testing.assert_close(model(x), function(model.state_dict(), x))


def test_deeper_and_flattened_networks_too():
    deeper = varied(WideResNet(3, 2, depth=22, width_factor=2))
    x = torch.randn(3, 2, 8, 12)
    torch.testing.assert_close(deeper(x), wide_resnet(deeper.state_dict(), x, per_group=3))
    flat, x = varied(ResNet12(3, 2, WIDTHS, pooling="flatten", image_size=34)), torch.randn(3, 2, 34, 34)
    torch.testing.assert_close(flat(x), resnet12(flat.state_dict(), x, pooling="flatten"))
    embedding = ResNet12(None, 2, WIDTHS)
    embedding.load_state_dict(flat.state_dict(), strict=False)
    assert embedding(x).shape == (3, WIDTHS[-1])


@pytest.mark.parametrize(("name", "running"), [("resnet12", False), ("wide", False), ("resnet12", True)])
def test_maml_has_the_naive_meta_gradient(name, running, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)
    make, function = CASES[name]
    model = varied(make(running_statistics=running))
    recorded = (name, running) == ("resnet12", False)  # the others are of the same parts, and tracing takes seconds
    statistics = "running" if running else "batch"
    learner = MAML(model, inner_lr=0.1, compile=None if recorded else False, batch_statistics=statistics)
    stored = dict(model.named_buffers())
    labels = torch.tensor([[0, 1, 2], [2, 1, 0]])
    batch = Episode(torch.randn(2, 3, 2, 16, 16), labels, torch.randn(2, 3, 2, 16, 16), labels)
    expected = naive_meta_gradient(lambda p, x: function({**p, **stored}, x), model, batch, 0.1, 1)
    for _ in range(2 if recorded else 1):  # in Python, and recorded in the same call; then the recording alone
        loss, found = meta_gradient(learner, batch)
        torch.testing.assert_close(loss, expected[0])
        assert_same(found, expected[1], 1e-8)
    assert not recorded or learner._mapping._recorder.recordings()


def test_kept_statistics_are_as_torchs_and_put_aside_on_request():
    model, x = ResNet12(3, 2, WIDTHS, running_statistics=True), torch.randn(4, 2, 16, 16)
    plain = ResNet12(3, 2, WIDTHS)
    plain.load_state_dict(model.state_dict(), strict=False)
    norm, own = nn.BatchNorm2d(2), RunningBatchNorm2d(2)
    for batch in x.split(2):  # ordinary training
        torch.testing.assert_close(own(batch), norm(batch))
    assert_same(dict(own.state_dict()), dict(norm.state_dict()))
    learner = MAML(model, batch_statistics="batch")
    before = {name: value.clone() for name, value in model.named_buffers()}
    torch.testing.assert_close(learner.call_model(dict(model.named_parameters()), x), plain(x))
    assert_same(dict(model.named_buffers()), before)


def test_dropout_is_of_values_in_the_first_blocks_and_of_squares_in_the_last():
    model, x = ResNet12(3, 2, WIDTHS, drop_rate=0.3, block_size=2), torch.randn(4, 2, 32, 32)
    kinds = [[type(module) for module in block.modules()] for block in model.blocks]
    assert [nn.Dropout in own for own in kinds] == [True, True, False, False]
    assert [DropBlock2d in own for own in kinds] == [False, False, True, True]
    assert not torch.equal(model(x), model(x))
    torch.testing.assert_close(model.eval()(x), resnet12(model.state_dict(), x))


def test_initial_weights_have_the_documented_spread():
    model = ResNet12(5, widths=(8, 16, 32, 64))
    for block in model.blocks:
        for convolution in [*block.convolutions, block.shortcut]:
            expected = 2 / (1 + 0.1**2) / (convolution.out_channels * convolution.kernel_size[0] ** 2)
            count = convolution.weight.numel()
            assert float(convolution.weight.detach().var()) == pytest.approx(expected, rel=6 * (2 / count) ** 0.5)
    wide = WideResNet(5, depth=10, width_factor=2)
    convolution = wide.blocks[2].convolution1
    assert float(convolution.weight.detach().var()) == pytest.approx(2 / (128 * 9), rel=0.05)
    assert not wide.head.bias.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet12(widths=(64, 64)), r"widths=\[64, 64\] must be four numbers"),
        (lambda: ResNet12(drop_rate=1.0), "drop_rate=1.0 must lie in"),
        (lambda: ResNet12(pooling="max"), "pooling='max' is not one of"),
        (lambda: ResNet12(image_size=8), "image_size=8 must be an integer of at least 16"),
        (lambda: WideResNet(depth=27), "depth=27 must be 6n"),
        (lambda: WideResNet(depth=10, width_factor=1, num_classes=0), "num_classes=0"),
        (lambda: WideResNet(depth=10, width_factor=1, drop_rate=1.0), "drop_rate=1.0 must lie in"),
        (lambda: ResNet12(widths=(2, 2, 2, 2), num_classes=0), "num_classes=0"),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
