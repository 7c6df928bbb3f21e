"""The blocks of docs/how-to/coming-from-learn2learn.md run one after another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.interop.learn2learn.mini_imagenet_files import write_mini_imagenet

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "coming-from-learn2learn.md"
QUIET = 'fast_dev_run=True, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False'


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_the_blocks_of_the_page_run(l2l, tmp_path, monkeypatch):
    blocks = re.findall(r"```(?:\{code-block\} )?python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "data").mkdir()
    write_mini_imagenet(tmp_path / "data", examples=20)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("L.Trainer()", f"L.Trainer({QUIET})"), names)
    assert len(blocks) == 6
    assert names["adapting"].module is names["head"].module
    assert names["episode"].query_x.shape == names["episodes"][0].query_x.shape == torch.Size([75, 3, 84, 84])
    assert all(p.grad is not None for p in names["maml"].parameters())
