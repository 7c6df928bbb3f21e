"""Changes of training pictures are a function of the task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_meta.data.vision.augmentation import crop_flip
from tests.data.vision.pictures import files, module, write


def jitter(picture: torch.Tensor) -> torch.Tensor:
    """Draws from torch's generator, as torchvision's transforms do."""
    assert picture.dtype == torch.uint8
    if torch.rand(1).item() < 0.5:
        picture = picture.flip(-1)
    return (picture * torch.empty(1).uniform_(0.5, 1.0)).to(torch.uint8)


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, files(each=5))


@pytest.mark.parametrize("augment", ["crop_flip", jitter])
class TestPurity:
    def test_the_same_index_gives_the_same_task(self, root, augment):
        episodes = module(root, augment=augment).episodes("train")
        batch = episodes.__getitems__([5, 900, 17])
        torch.rand(3)
        before = torch.get_rng_state()
        alone = [episodes[index] for index in (17, 5, 900)]
        assert torch.equal(torch.get_rng_state(), before)
        for task, row in zip(alone, (2, 0, 1), strict=True):
            assert torch.equal(task.support_x, batch.support_x[row])
            assert torch.equal(task.query_x, batch.query_x[row])
        other = module(root, augment=augment, seed=1).episodes("train")[5]
        assert not torch.equal(other.query_x, batch.query_x[0])

    def test_workers_make_the_same_tasks(self, root, augment):
        alone = list(module(root, augment=augment, train_tasks=8).train_dataloader())
        with_workers = list(module(root, augment=augment, train_tasks=8, num_workers=2).train_dataloader())
        for a, b in zip(alone, with_workers, strict=True):
            assert torch.equal(a.support_x, b.support_x)
            assert torch.equal(a.query_x, b.query_x)

    def test_a_draw_changes_pictures_anew(self, root, augment):
        episodes = module(root, augment=augment).episodes("train")
        indices, ones = np.arange(4), np.ones(4, np.int64)
        batch, again = episodes.redrawn(indices, 7 * ones), episodes.redrawn(indices, 7 * ones)
        assert torch.equal(batch.query_x, again.query_x)
        assert not torch.equal(batch.query_x, episodes.redrawn(indices, 8 * ones).query_x)
        assert torch.equal(episodes.redrawn(indices, 0 * ones).query_x, episodes.make(indices).query_x)
        seeds = [episodes._seeds(indices, (4, 2, 3), draw * ones) for draw in (0, 7, 8)]
        assert len(np.unique(seeds)) == 3 * 4 * 2 * 3

    def test_only_training_pictures_change(self, root, augment):
        plain, changed = module(root), module(root, augment=augment)
        assert not torch.equal(changed.episodes("train")[0].query_x, plain.episodes("train")[0].query_x)
        for split in ("val", "test"):
            assert torch.equal(changed.episodes(split)[0].query_x, plain.episodes(split)[0].query_x)

    def test_a_picture_changes_from_task_to_task(self, root, augment):
        # Two classes of three, five pictures each: tasks share pictures, and hardly any picture twice alike.
        episodes = module(root, augment=augment, image_size=32).episodes("train")
        batch = episodes.make(np.arange(40))
        pictures = torch.cat([batch.support_x, batch.query_x], 1).flatten(0, 1).flatten(1)
        assert len(pictures.unique(dim=0)) > 60


def test_crop_flip_shifts_and_mirrors_within_its_range():
    size, pad = 16, 2
    rows, columns = np.meshgrid(np.arange(1, size + 1), np.arange(1, size + 1), indexing="ij")
    picture = np.stack([rows, columns]).astype(np.uint8)  # each pixel holds its own place
    changed = crop_flip(np.broadcast_to(picture, (600, 2, size, size)), np.arange(600))
    known = {}
    for top in range(-pad, pad + 1):
        for left in range(-pad, pad + 1):
            shifted = np.zeros_like(picture)
            inside = [slice(max(0, shift), size + min(0, shift)) for shift in (top, left)]
            outside = [slice(max(0, -shift), size + min(0, -shift)) for shift in (top, left)]
            shifted[:, outside[0], outside[1]] = picture[:, inside[0], inside[1]]
            known[shifted.tobytes()] = (top, left, False)
            known[np.ascontiguousarray(shifted[:, :, ::-1]).tobytes()] = (top, left, True)
    seen = [known[each.tobytes()] for each in changed]
    assert len(set(seen)) == 50  # all 5 × 5 shifts, mirrored and not
    assert 240 < sum(mirrored for *_, mirrored in seen) < 360


@pytest.mark.parametrize(
    ("returned", "found"),
    [(lambda x: x / 255, r"torch.float32 \[3, 8, 8\]"), (lambda x: x[:, 1:], r"\[3, 7, 8\]"), (lambda x: None, "None")],
)
def test_what_a_function_returns_is_checked(root, returned, found):
    episodes = module(root, augment=returned).episodes("train")
    with pytest.raises(ValueError, match=f"augment=.* returned .*{found}.* leave out conversion to float"):
        episodes[0]
