"""Second-order MAML's training step beside its peers', on sinusoids and on images of Omniglot's size.

Run as ``python training_step.py [--quick]`` in the environment that ``install_peers.sh`` makes. Ours is the whole
``training_step`` and ``backward`` of the LightningModule, its checks included. A peer's time is set beside ours only
after its loss and gradient have been found equal, on images in float64.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable

import peers
import timing
import torch
from torch import Tensor, nn

from lightning_meta import MAML, MLP, Conv4, Episode, SinusoidDataModule

OTHERS = ("learn2learn", "higher", "torchopt", "JAX")


def sinusoids(tasks: int) -> Episode:
    """A batch of 10-shot sinusoids with 10 queries."""
    data = SinusoidDataModule(shots=10, query_shots=10, tasks_per_batch=tasks, train_tasks=tasks)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def images(tasks: int, ways: int, dtype: torch.dtype = torch.float32) -> Episode:
    """Random 28 × 28 images as 1-shot tasks with 5 queries a class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ways)
    support, query = labels.expand(tasks, ways), labels.repeat(5).expand(tasks, 5 * ways)
    support_x, query_x = (torch.rand(*y.shape, 1, 28, 28, generator=generator).to(dtype) for y in (support, query))
    return Episode(support_x, support, query_x, query)


def plain_conv4(model: Conv4) -> tuple[nn.Module, list[str]]:
    """Return the same network of torch's own layers, as the peers' users write it; and our parameters' names."""
    layers: list[nn.Module] = []
    names = []
    for i in range(4):
        layers += [model.convolutions[i], nn.BatchNorm2d(model.filters, track_running_stats=False), nn.ReLU()]
        names += [f"{part}.{i}.{kind}" for part in ("convolutions", "norms") for kind in ("weight", "bias")]
    plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head).to(model.head.weight)
    own = dict(model.named_parameters())
    names += ["head.weight", "head.bias"]
    plain.load_state_dict(dict(zip(plain.state_dict(), [own[name] for name in names], strict=True)))
    return plain, names


def our_step(learner: MAML, batch: Episode, names: Iterable[str]) -> peers.Step:
    """Return a function that computes the learner's meta-loss and the gradient that its optimizer gets."""
    parameters = dict(learner.model.named_parameters())

    def step() -> tuple[float, list[Tensor]]:
        for parameter in parameters.values():
            parameter.grad = None
        loss = learner.training_step(batch, 0)
        loss.backward()
        return float(loss.detach()), [parameters[name].grad for name in names]

    return step


def agreeing(steps: dict[str, peers.Step], of_loss: float, of_slopes: float) -> set[str]:
    """Return the names of the steps whose loss and gradient equal the first one's, within these relative tolerances."""
    names = set()
    reference: tuple[float, list[Tensor]] | None = None
    for name, step in steps.items():
        loss, gradient = step()
        reference = reference or (loss, [slope.clone() for slope in gradient])
        largest = max(float(slope.abs().max()) for slope in reference[1])
        worst = max(float((a - b).abs().max()) for a, b in zip(gradient, reference[1], strict=True))
        if abs(loss - reference[0]) <= of_loss * abs(reference[0]) and worst <= of_slopes * largest:
            names.add(name)
    return names


def row(label: str, steps: dict[str, peers.Step], same: set[str], repeats: int) -> None:
    """Time the steps found the same, the first among them, and print a line."""
    first = next(iter(steps))
    times = timing.alternating_times({name: steps[name] for name in steps if name in same}, repeats)
    cells = []
    for name in steps:
        if name not in same:
            cells.append(f"{name} DIFFERS, no ratio")
        elif name == first:
            cells.append(f"{name} {1e3 * statistics.median(times[name]):8.2f} ms")
        else:
            ratio = timing.median_ratio(times[name], times[first])
            cells.append(f"{name} {1e3 * statistics.median(times[name]):8.2f} ms ({ratio:5.2f} x)")
    print(f"{label:34s} " + "   ".join(cells), flush=True)


def sinusoid_rows(grid: Iterable[tuple[int, int]], repeats: int) -> None:
    """The MLP of the MAML paper; ours with and without compilation, peers with all threads and with one."""
    everything = torch.get_num_threads()
    for inner_steps, tasks in grid:
        batch, model, loss_fn = sinusoids(tasks), MLP(), nn.MSELoss()
        names = [name for name, _ in model.named_parameters()]
        ours: dict[str, peers.Step] = {
            "ours": our_step(MAML(model, loss_fn, inner_steps=inner_steps), batch, names),
            "ours, compiled": our_step(MAML(model, loss_fn, inner_steps=inner_steps, compile=True), batch, names),
        }
        theirs = {name: peers.PEERS[name](model, loss_fn, batch, 0.01, inner_steps) for name in OTHERS}
        torch.compiler.reset()
        for count in sorted({everything, 1}, reverse=True):
            with timing.threads(count):
                steps = ours | theirs
                row(
                    f"{tasks:2d} tasks, {inner_steps} steps, {count} threads",
                    steps,
                    agreeing(steps, 1e-4, 1e-3),
                    repeats,
                )


def image_steps(
    inner_steps: int, tasks: int, ways: int, others: Iterable[str], dtype: torch.dtype
) -> dict[str, peers.Step]:
    """A training step of Conv4 with 64 filters and strides, ours first.

    The inner rate is 0.5, and for several steps 0.05: with more, rounding alone makes gradients differ.
    """
    torch.manual_seed(0)
    batch, model, loss_fn = images(tasks, ways, dtype), Conv4(ways).to(dtype), nn.CrossEntropyLoss()
    rate = 0.5 if inner_steps == 1 else 0.05
    plain, names = plain_conv4(model)
    ours = {"ours": our_step(MAML(model, loss_fn, inner_lr=rate, inner_steps=inner_steps), batch, names)}
    return ours | {name: peers.PEERS[name](plain, loss_fn, batch, rate, inner_steps) for name in others}


def image_rows(
    grid: Iterable[tuple[int, int, int]], others: Callable[[int, int, int], tuple[str, ...]], n: int
) -> None:
    """Conv4's rows, with the machine's arithmetic floor.

    Gradients are compared in float64: in float32 one activation that changes its sign by rounding changes them by
    more than a thousandth, in either library. JAX, which has no float64 as configured, is compared in float32.
    """
    from torch.utils.flop_counter import FlopCounterMode

    rate = timing.matrix_rate()
    print(f"the machine multiplies matrices at {rate / 1e9:.0f} GFLOP/s")
    for inner_steps, tasks, ways in grid:
        chosen = others(inner_steps, tasks, ways)
        with_torch = [name for name in chosen if name != "JAX"]
        same = agreeing(image_steps(inner_steps, tasks, ways, with_torch, torch.float64), 1e-12, 1e-9)
        steps = image_steps(inner_steps, tasks, ways, chosen, torch.float32)
        same &= agreeing({name: step for name, step in steps.items() if name != "JAX"}, 1e-4, float("inf"))
        if "JAX" in steps:
            same |= agreeing({name: steps[name] for name in ("ours", "JAX")}, 1e-4, 1e-3)
        counter = FlopCounterMode(display=False)
        with counter:
            steps["learn2learn"]()
        label = f"{ways:2d}-way, {tasks:2d} tasks, {inner_steps} steps"
        row(f"{label}, floor {1e3 * counter.get_total_flops() / rate:5.0f} ms", steps, same, n)


def main() -> None:
    """Print the grid; with ``--quick`` the default configurations alone."""
    timing.record_at_once()
    quick = "--quick" in sys.argv[1:]
    print("Sinusoids, MLP 1-40-40-1, 10 shots, 10 queries: time of a training step, times ours in brackets")
    sinusoid_rows([(5, 25)] if quick else [(k, t) for k in (1, 5) for t in (4, 16, 25, 32)], repeats=9)
    print("\nOmniglot's size, Conv4-64, 1 shot, 5 queries a class")
    default = (1, 16, 5)
    grid = [default] if quick else [(k, t, w) for w in (5, 20) for k in (1, 5) for t in (4, 16, 32)]
    image_rows(grid, lambda *cell: OTHERS if cell == default else OTHERS[:1], 5 if quick else 9)


if __name__ == "__main__":
    main()
