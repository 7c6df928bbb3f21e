"""Learners from learn2learn's wrappers, and back: the same module, inner rates and order of the meta-gradient."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from torch import nn

from lightning_meta.algorithms import ANIL, MAML, MetaSGD
from lightning_meta.arguments import check_module
from lightning_meta.inner import SGD, Checkpointed, FirstOrder, Unrolled
from lightning_meta.inner.names import key_of
from lightning_meta.interop.learn2learn.package import class_of, learn2learn
from lightning_meta.interop.learn2learn.rates import Rates, fixed, learned
from lightning_meta.interop.learn2learn.transforms import rates_of_transforms
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.batch_statistics import has_batch_statistics

_LIGHTNING_MODULES = {
    "LightningMAML": "pass module.model, module.loss and module.adaptation_steps",
    "LightningANIL": "pass module.classifier, module.loss, module.adaptation_steps and features=module.features",
}


class FeaturesAndHead(NamedTuple):
    """What learn2learn's users keep for ANIL.

    Attributes:
        features: A module that tasks share.
        head: The wrapped module that adapts.
    """

    features: nn.Module
    head: Any


def from_learn2learn(
    wrapper: Any,
    loss_fn: nn.Module | LossFunction | None = None,
    inner_steps: int = 1,
    *,
    features: nn.Module | None = None,
    **options: Any,
) -> MAML:
    """Return the learner that adapts as a wrapper of learn2learn does.

    Module and learned rates are not copied: the learner trains those that the wrapper holds. The factors of a ``GBML``
    wrapper's transform are the exception, as the learner's rates are their products with its ``lr``.

    Args:
        wrapper: ``learn2learn.algorithms.MAML``, ``MetaSGD``, or ``GBML`` without a transform or with
            ``learn2learn.nn.Scale``; not a clone of it.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_steps: How often a training loop would call ``adapt`` for each task.
        features: For ANIL, the module that computes what the wrapped head takes; it does not adapt. The learner's
            model is a sequence of the two.
        **options: As in `MAML`, except for what the wrapper determines.

    Returns:
        `MetaSGD` if each scalar parameter has a learned rate, otherwise `MAML`.

    Raises:
        TypeError: If the wrapper is of another kind or a class derived from these, or its rate is not a number.
        ValueError: If the wrapper is a clone, or has rates or a transform without a counterpart; if an option
            contradicts the wrapper; if features and head share parameters.

    Example:
        >>> learner = from_learn2learn(maml, nn.MSELoss(), inner_steps=5)  # doctest: +SKIP
    """
    rates = _rates_of(wrapper)
    determined = {"model", "inner_lr", "first_order"} | ({"learned_rates"} if rates.values else set())
    if given := sorted(determined & options.keys()):
        name, value = given[0], options[given[0]]
        raise ValueError(f"{name}={value!r}: the wrapper determines it; leave it out, or change the wrapper")
    model, prefix = wrapper.module, ""
    if features is not None:
        check_module("features", features)
        _check_untied(features, wrapper.module)
        model, prefix = nn.Sequential(OrderedDict(features=features, head=wrapper.module)), "head."
        options.setdefault("adapt", ["head.*"])
    if rates.learned == "tensor":
        options["learned_rates"] = "tensor"
    make = MetaSGD if rates.learned == "element" else MAML
    learner = make(
        model,
        loss_fn,
        inner_lr=rates.inner_lr,
        inner_steps=inner_steps,
        first_order=wrapper.first_order,
        **options,
    )
    if not all(name.startswith(prefix) for name in learner.adapted_names):
        raise ValueError(f"adapt={options['adapt']!r} adapts features, but only the head can adapt: leave out adapt")
    for name, rate in rates.values.items():
        if prefix + name in learner.adapted_names:
            learner.inner_rates.learned_rates[key_of(prefix + name)] = rate
    return learner


def to_learn2learn(learner: MAML) -> Any:
    """Return the wrapper of learn2learn that adapts as a learner does.

    Module and learned rates are not copied: the wrapper holds those of the learner. The loss, the number of inner steps
    and the optimizer are up to the loop that uses the wrapper. learn2learn's ``MetaSGD`` cannot adapt a model with
    parameters that it does not use: its first ``adapt`` fails.

    Args:
        learner: `MAML`, `MetaSGD`, or `ANIL` of an ``nn.Sequential``.

    Returns:
        ``learn2learn.algorithms.MAML`` or, for learned rates, ``MetaSGD``. If only the last modules of an
        ``nn.Sequential`` adapt, `FeaturesAndHead`.

    Raises:
        TypeError: If the learner is of another class.
        ValueError: If it has an option without a counterpart, or features and head share parameters.
        ImportError: If learn2learn is not installed.
    """
    _check_counterpart(learner)
    algorithms = learn2learn("to_learn2learn").algorithms
    features, module = _parts(learner)
    first_order = isinstance(learner.meta_gradient, FirstOrder)
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    if learner.inner_rates.learned == "none":
        # Our inner loop leaves parameters alone that are frozen or not used, where learn2learn needs permission.
        head = algorithms.MAML(
            module, lr=learner.inner_lr, first_order=first_order, allow_unused=True, allow_nograd=bool(frozen)
        )
    else:
        _check_meta_sgd(module)
        if frozen:
            raise ValueError(f"learn2learn's MetaSGD cannot adapt a module with frozen parameters, {frozen}: use MAML")
        # Both are in the order of the parameters.
        lrs = nn.ParameterList(learner.inner_rates.learned_rates.values())
        head = algorithms.MetaSGD(module, first_order=first_order, lrs=lrs)
    return head if features is None else FeaturesAndHead(features, head)


def _rates_of(wrapper: Any) -> Rates:
    kind = class_of(wrapper)
    if kind in _LIGHTNING_MODULES:
        raise TypeError(f"wrapper={kind} is a Lightning module and not a wrapper: {_LIGHTNING_MODULES[kind]}")
    if kind not in ("MAML", "MetaSGD", "GBML"):
        raise TypeError(
            f"wrapper={type(wrapper).__module__}.{type(wrapper).__qualname__} must be MAML, MetaSGD or GBML of "
            "learn2learn.algorithms, and not of a derived class, which may adapt otherwise"
        )
    parameters = dict(wrapper.module.named_parameters())
    if not all(p.is_leaf for p in parameters.values()):
        raise ValueError("wrapper is a clone, whose parameters are functions of others: pass the one it was made of")
    if kind == "MAML":
        return fixed(wrapper.lr)
    if kind == "MetaSGD":
        _check_meta_sgd(wrapper.module)
        return learned(list(wrapper.lrs), parameters)
    return rates_of_transforms(wrapper, parameters)


def _check_counterpart(learner: Any) -> None:
    if type(learner) not in (MAML, ANIL, MetaSGD):
        raise TypeError(
            f"learner={type(learner).__name__} has no counterpart in learn2learn: MAML, ANIL and MetaSGD have, but not "
            "classes derived from them, which may adapt otherwise"
        )
    reasons = {
        f"learned_rates={learner.inner_rates.learned!r}": learner.inner_rates.learned == "tensor_step",
        f"inner_optimizer={learner.inner_optimizer!r}": type(learner.inner_optimizer) is not SGD,
        f"meta_gradient={learner.meta_gradient!r}": learner.meta_gradient
        not in (Unrolled(), Checkpointed(), FirstOrder()),
        f"multi_step_loss_epochs={learner.multi_step_loss_epochs}": learner.multi_step_loss_epochs > 0,
        "batch_norm_per_step=True": learner.step_norms is not None,
        f"batch_statistics={learner.batch_statistics!r}": learner.batch_statistics != "batch"
        and has_batch_statistics(learner.model),
    }
    without = [reason for reason, holds in reasons.items() if holds]
    if without:
        raise ValueError(f"{', '.join(without)} has no counterpart in learn2learn: make the learner without it")


def _parts(learner: MAML) -> tuple[nn.Module | None, nn.Module]:
    """Return the modules that do not adapt, None if all are to adapt, and those that do."""
    trainable = [name for name, p in learner.model.named_parameters() if p.requires_grad]
    adapted = list(learner.adapted_names)
    children = list(learner.model.named_children()) if type(learner.model) is nn.Sequential else []
    first = next((i for i, (name, _) in enumerate(children) if adapted[0].startswith(f"{name}.")), 0)
    # If only the head is trainable, adapted names do not tell whether it was chosen.
    chosen = type(learner) is ANIL or learner.hparams.get("adapt", "all") != "all"
    if adapted == trainable and (first == 0 or not chosen):
        return None, learner.model
    head = tuple(f"{name}." for name, _ in children[first:])
    if first == 0 or [name for name in trainable if name.startswith(head)] != adapted:
        raise ValueError(
            f"adapt chooses {adapted} of {trainable}, but learn2learn adapts whole modules: make the model "
            "nn.Sequential(features, head) and adapt all of the head, or adapt everything"
        )
    modules = [module for _, module in children]
    features, module = _joined(modules[:first]), _joined(modules[first:])
    _check_untied(features, module)
    return features, module


def _joined(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _check_untied(features: nn.Module, head: nn.Module) -> None:
    """Check that features and head share no trainable parameter, which would have to adapt and not to adapt."""
    shared = {id(p) for p in features.parameters() if p.requires_grad}
    names = [name for name, p in head.named_parameters() if id(p) in shared]
    if names:
        raise ValueError(f"features and head share {names} of the head: untie them, or adapt the whole model")


def _check_meta_sgd(module: nn.Module) -> None:
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    twice = sorted(names - {name for name, _ in module.named_parameters()})
    if twice:
        raise ValueError(
            f"{twice} are other names of parameters that the model has already; learn2learn's MetaSGD adapts only one "
            "of the two and unties them: use MAML"
        )
