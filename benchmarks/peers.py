"""Second-order MAML's meta-gradient as users of other libraries write it, for comparison.

Each function takes a module, a loss function, a batch of tasks, the inner rate and the number of inner steps, and
returns a step: a function without arguments that computes the mean query loss over the tasks and its gradient in the
module's parameters, in their order. The environment comes from ``install_peers.sh``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_meta import Episode

Step = Callable[[], tuple[float, list[Tensor]]]
LossFunction = Callable[[Tensor, Tensor], Tensor]


def learn2learn_step(model: nn.Module, loss_fn: LossFunction, batch: Episode, inner_lr: float, steps: int) -> Step:
    """learn2learn 0.2.0: ``clone``, ``adapt``, and a backward after each task, as its own Omniglot example does.

    One backward through the tasks' sum takes 7 to 20 % longer for convolutions, and as long for the sinusoids.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # gym advises to use its successor
        import learn2learn

    maml = learn2learn.algorithms.MAML(model, lr=inner_lr, first_order=False)
    tasks = [batch.select(i) for i in range(batch.num_tasks)]

    def step() -> tuple[float, list[Tensor]]:
        maml.zero_grad()
        value = 0.0
        for task in tasks:
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(loss_fn(learner(task.support_x), task.support_y))
            loss = loss_fn(learner(task.query_x), task.query_y) / len(tasks)
            loss.backward()
            value += float(loss.detach())
        return value, [p.grad for p in model.parameters()]

    return step


def higher_step(model: nn.Module, loss_fn: LossFunction, batch: Episode, inner_lr: float, steps: int) -> Step:
    """Higher 0.2.1: a functional copy and a differentiable SGD a task."""
    import higher

    optimizer = torch.optim.SGD(model.parameters(), lr=inner_lr)
    tasks = [batch.select(i) for i in range(batch.num_tasks)]

    def step() -> tuple[float, list[Tensor]]:
        model.zero_grad()
        value = 0.0
        for task in tasks:
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional, inner):
                for _ in range(steps):
                    inner.step(loss_fn(functional(task.support_x), task.support_y))
                loss = loss_fn(functional(task.query_x), task.query_y) / len(tasks)
                loss.backward()
                value += float(loss.detach())
        return value, [p.grad for p in model.parameters()]

    return step


def torchopt_step(model: nn.Module, loss_fn: LossFunction, batch: Episode, inner_lr: float, steps: int) -> Step:
    """TorchOpt 0.7.3: a differentiable SGD on the module itself, its state restored after each task."""
    import torchopt

    inner = torchopt.MetaSGD(model, lr=inner_lr)
    start = list(model.parameters())
    tasks = [batch.select(i) for i in range(batch.num_tasks)]

    def step() -> tuple[float, list[Tensor]]:
        for p in start:
            p.grad = None
        state = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        inner_state = torchopt.extract_state_dict(inner, by="reference")
        value = 0.0
        for task in tasks:
            for _ in range(steps):
                inner.step(loss_fn(model(task.support_x), task.support_y))
            loss = loss_fn(model(task.query_x), task.query_y) / len(tasks)
            loss.backward()
            value += float(loss.detach())
            torchopt.recover_state_dict(model, state)
            torchopt.recover_state_dict(inner, inner_state)
        return value, [p.grad for p in start]

    return step


def jax_step(model: nn.Module, loss_fn: LossFunction, batch: Episode, inner_lr: float, steps: int) -> Step:
    """JAX: ``jit`` of the mean of ``vmap`` of the task's loss; `Linear`, `Conv2d`, `BatchNorm2d`, `ReLU` layers."""
    import jax
    import jax.numpy as jnp

    layers = [module for module in model.modules() if not list(module.children())]

    def forward(parameters: list[jax.Array], x: jax.Array) -> jax.Array:
        rest = iter(parameters)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                x = x @ next(rest).T + next(rest)
            elif isinstance(layer, nn.ReLU):
                x = jax.nn.relu(x)
            elif isinstance(layer, nn.Conv2d):
                x = jax.lax.conv_general_dilated(x, next(rest), layer.stride, ((1, 1), (1, 1)))
                x = x + next(rest)[:, None, None]
            elif isinstance(layer, nn.BatchNorm2d):
                mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
                weight, bias = next(rest)[:, None, None], next(rest)[:, None, None]
                x = (x - mean) * jax.lax.rsqrt(variance + layer.eps) * weight + bias
            elif isinstance(layer, nn.AdaptiveAvgPool2d):
                x = x.mean((2, 3))
            elif not isinstance(layer, nn.Flatten):
                raise TypeError(f"no JAX form of {layer}")
        return x

    def loss(parameters: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        output = forward(parameters, x)
        if jnp.issubdtype(y.dtype, jnp.integer):
            return -jnp.take_along_axis(jax.nn.log_softmax(output), y[:, None], 1).mean()
        return jnp.square(output - y).mean()

    def task_loss(parameters: list[jax.Array], *task: jax.Array) -> jax.Array:
        adapted = parameters
        for _ in range(steps):
            slopes = jax.grad(loss)(adapted, task[0], task[1])
            adapted = [p - inner_lr * slope for p, slope in zip(adapted, slopes, strict=True)]
        return loss(adapted, task[2], task[3])

    def mean_loss(parameters: list[jax.Array], *tasks: jax.Array) -> jax.Array:
        return jax.vmap(task_loss, in_axes=(None, 0, 0, 0, 0))(parameters, *tasks).mean()

    compiled = jax.jit(jax.value_and_grad(mean_loss))
    parameters = [jnp.asarray(p.detach().numpy()) for p in model.parameters()]
    tasks = [jnp.asarray(t.numpy()) for t in (batch.support_x, batch.support_y, batch.query_x, batch.query_y)]

    def step() -> tuple[float, list[Tensor]]:
        value, gradient = jax.block_until_ready(compiled(parameters, *tasks))
        return float(value), [torch.from_dlpack(slope) for slope in gradient]

    return step


PEERS = {"learn2learn": learn2learn_step, "higher": higher_step, "torchopt": torchopt_step, "JAX": jax_step}
