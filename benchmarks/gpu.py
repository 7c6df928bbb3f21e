"""Training steps on a GPU: Conv4-64 at 4 to 128 tasks in fp32 and bf16, beside learn2learn where it can be imported.

Run as ``python gpu.py``; without a GPU it measures nothing.
"""

from __future__ import annotations

import importlib.util

import peers
import timing
import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode
from training_step import images, our_step, plain_conv4

from lightning_meta import MAML, Conv4


def main() -> None:
    """Print a line for each number of tasks and precision."""
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return
    timing.record_at_once()
    has_peer = importlib.util.find_spec("learn2learn") is not None
    print(timing.machine())
    for tasks in (4, 16, 32, 128):
        batch = tree_map(lambda leaf: None if leaf is None else leaf.cuda(), images(tasks, 5))
        model = Conv4(5).cuda()
        plain, names = plain_conv4(model)
        step = our_step(MAML(model, inner_lr=0.5), batch, names)
        peer = peers.learn2learn_step(plain.cuda(), nn.CrossEntropyLoss(), batch, 0.5, 1) if has_peer else None
        counter = FlopCounterMode(display=False)
        with counter:
            step()
        for dtype in (torch.float32, torch.bfloat16):

            def synchronized(dtype: torch.dtype = dtype, step: peers.Step = step) -> None:
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    step()
                torch.cuda.synchronize()

            functions = {"ours": synchronized}
            if peer is not None and dtype == torch.float32:
                functions["learn2learn"] = peer
            for function in functions.values():
                function()
            times = timing.alternating_medians(functions, 7)
            share = counter.get_total_flops() / times["ours"] / timing.matrix_rate("cuda", dtype, 8192)
            line = f"{tasks:3d} tasks, {dtype}: {1e3 * times['ours']:.2f} ms, {100 * share:.1f} % of the matrix rate"
            if len(times) > 1:
                line += (
                    f", learn2learn {1e3 * times['learn2learn']:.1f} ms ({times['learn2learn'] / times['ours']:.1f} x)"
                )
            print(line, flush=True)


if __name__ == "__main__":
    main()
