"""DropBlock, against counts of all blocks that can cover a pixel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from lightning_meta import MAML, BayesianMAML, Episode
from lightning_meta.execution.capture import recorder
from lightning_meta.execution.plan import drops
from lightning_meta.models import DropBlock2d, ResNet12
from lightning_meta.models.drop_block import dropout
from tests.reference import meta_gradient

RATE, SIZE, HEIGHT, WIDTH = 0.2, 3, 10, 8
MAPS = 20_000


@pytest.fixture(scope="module")
def output():
    torch.manual_seed(0)
    return DropBlock2d(RATE, SIZE).train()(torch.ones(MAPS // 50, 50, HEIGHT, WIDTH))


def test_each_pixel_is_kept_as_often_as_no_block_covers_it(output):
    places = (HEIGHT - SIZE + 1) * (WIDTH - SIZE + 1)
    gamma = RATE / SIZE**2 * HEIGHT * WIDTH / places  # the paper's equation (1)
    found = (output != 0).double().mean((0, 1))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            blocks = sum(
                top <= row < top + SIZE and left <= column < left + SIZE
                for top in range(HEIGHT - SIZE + 1)
                for left in range(WIDTH - SIZE + 1)
            )
            expected = (1 - gamma) ** blocks
            assert abs(found[row, column] - expected) < 5 * math.sqrt(expected * (1 - expected) / MAPS)
    assert 1 - RATE < found.mean() < 1 - RATE + 0.03  # overlapping blocks drop less than the rate


def test_what_is_dropped_are_whole_blocks(output):
    dropped = (output == 0).flatten(0, 1)
    whole = dropped.unfold(1, SIZE, 1).unfold(2, SIZE, 1).all(-1).all(-1)  # [maps, places], True at a block's corner
    covered = torch.zeros_like(dropped)
    for down in range(SIZE):
        for right in range(SIZE):
            covered[:, down : down + whole.shape[1], right : right + whole.shape[2]] |= whole
    assert torch.equal(covered, dropped)
    assert dropped.any()


def test_the_mean_stays(output):
    kept = output[output != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, output.numel() / len(kept)))
    x = torch.randn(4, 3, HEIGHT, WIDTH)
    torch.manual_seed(1)
    mask = DropBlock2d(RATE, SIZE)(torch.ones_like(x))
    torch.manual_seed(1)
    torch.testing.assert_close(DropBlock2d(RATE, SIZE)(x), mask * x)


def test_channels_and_examples_have_masks_of_their_own(output):
    kept = (output[:100] != 0).flatten(2).double()
    first, second = kept[:, 0].mean(1), kept[:, 1].mean(1)  # shares kept of two channels
    assert (kept[:, 0] != kept[:, 1]).any(1).double().mean() > 0.9
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.4
    assert first.unique().numel() > 3


def test_nothing_happens_in_evaluation_or_at_rate_0():
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(DropBlock2d(0.5, 3).eval()(x), x)
    assert torch.equal(DropBlock2d(0.0, 3).train()(x), x)


def test_small_pictures_lose_whole_channels():
    output = DropBlock2d(RATE, 5)(torch.ones(400, 50, 2, 2))
    assert torch.equal((output == 0).all(-1).all(-1), (output == 0).any(-1).any(-1))
    share = (output[..., 0, 0] != 0).double().mean()
    assert abs(share - (1 - RATE)) < 5 * math.sqrt(RATE * (1 - RATE) / 20_000)


def test_all_dropped_is_0_and_finite():
    output = DropBlock2d(0.999, 2)(torch.ones(1, 1, 2, 2))
    assert torch.equal(output, torch.zeros_like(output))


def test_tasks_have_masks_of_their_own_and_each_its_mean():
    layer, x = DropBlock2d(RATE, SIZE), torch.ones(6, 4, 5, HEIGHT, WIDTH)
    output = vmap(layer, randomness="different")(x)
    assert len({tuple(task.flatten().tolist()) for task in output}) == 6
    torch.testing.assert_close(output.mean((1, 2, 3, 4)), torch.ones(6))
    # The parameters are the same for all tasks, and so not mapped.
    weighted = vmap(lambda one: layer(one * 0 + x[0]), randomness="different")(torch.zeros(6))
    assert len({tuple(task.flatten().tolist()) for task in weighted}) == 6


def test_derivatives_are_those_of_the_mask_that_was_drawn():
    layer, x = DropBlock2d(RATE, SIZE).double(), torch.randn(5, 4, 3, HEIGHT, WIDTH, dtype=torch.float64)

    def gradient(one):
        def value(y):
            output = layer(y)
            return output.square().sum() / 2, output

        return grad(value, has_aux=True)(one)

    slopes, outputs = vmap(gradient, randomness="different")(x)
    scale = outputs / x  # of each value, 0 where it is dropped
    torch.testing.assert_close(slopes, scale * outputs)
    assert (outputs == 0).any()


def test_recorded_steps_draw_what_they_would_and_anew_in_each(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), DropBlock2d(0.3, 2), nn.Flatten(), nn.Linear(48, 3))
    labels = torch.arange(3).expand(2, 3)
    batch = Episode(torch.randn(2, 3, 1, 6, 6), labels, torch.randn(2, 3, 1, 6, 6), labels)
    losses = []
    for choice in (None, False):
        learner = MAML(model, compile=choice, inner_lr=0.1).train()
        torch.manual_seed(1)
        losses.append([float(meta_gradient(learner, batch)[0]) for _ in range(4)])
        assert choice is False or learner._mapping._recorder.recordings()[0].draws
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(set(losses[0])) == 4


def test_half_precision_has_the_same_mask():
    x = torch.ones(8, 16, HEIGHT, WIDTH)
    torch.manual_seed(1)
    expected = DropBlock2d(RATE, SIZE)(x)
    torch.manual_seed(1)
    found = DropBlock2d(RATE, SIZE)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0)


def test_learners_know_it_as_dropout():
    assert drops(ResNet12(widths=(2, 2, 2, 2), drop_rate=0.1))
    assert not drops(ResNet12(widths=(2, 2, 2, 2)))
    with pytest.raises(ValueError, match="model has dropout"):
        BayesianMAML(nn.Sequential(DropBlock2d(0.1), nn.Flatten(), nn.Linear(8, 2)))


@pytest.mark.parametrize(("arguments", "message"), [((1.0,), r"p=1.0 must lie in"), ((0.1, 0), "block_size=0")])
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DropBlock2d(*arguments)


def test_without_a_rate_no_layer_draws():
    assert isinstance(dropout(0.0, 3), nn.Identity)
    assert isinstance(dropout(0.5), nn.Dropout)
    assert isinstance(dropout(0.5, 3), DropBlock2d)
