"""Flattening of nested dictionaries, lists, tuples and named tuples of tensors.

As `torch.utils._pytree`, which handles all other kinds here and takes several times as long: too long for every step.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


class Form(NamedTuple):
    """The structure of a tree without its leaves; hashable. A leaf's form is None.

    Attributes:
        kind: The type of the root.
        names: A dictionary's keys, or torch's description of any other kind.
        parts: The forms of its children.
    """

    kind: type
    names: Any
    parts: tuple[Any, ...]


class _Registered:
    """A `TreeSpec` with a hash, and a text that is the same in every process."""

    def __init__(self, spec: TreeSpec) -> None:
        self.spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Registered) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return repr(self.spec)


def flatten(tree: Any, leaves: list[Any]) -> Form | None:
    """Append a tree's leaves, None among them, to a list, and return its form."""
    if tree is None or isinstance(tree, Tensor):
        leaves.append(tree)
        return None
    kind = type(tree)
    if kind is dict:
        return Form(kind, tuple(tree), tuple([flatten(part, leaves) for part in tree.values()]))
    if kind is tuple or kind is list or (isinstance(tree, tuple) and hasattr(tree, "_fields")):
        return Form(kind, None, tuple([flatten(part, leaves) for part in tree]))
    own, spec = tree_flatten(tree)
    leaves += own
    return None if spec.is_leaf() else Form(kind, _Registered(spec), ())


def unflatten(form: Form | None, leaves: Iterator[Any]) -> Any:
    """Return the tree of a form with the next of these leaves."""
    if form is None:
        return next(leaves)
    kind, names, parts = form
    if isinstance(names, _Registered):
        return tree_unflatten([next(leaves) for _ in range(names.spec.num_leaves)], names.spec)
    values = [unflatten(part, leaves) for part in parts]
    if kind is dict:
        return dict(zip(names, values, strict=True))
    return kind(values) if kind is tuple or kind is list else kind(*values)


def leaves_of(tree: Any) -> list[Any]:
    """Return a tree's leaves except None."""
    if isinstance(tree, Tensor):
        return [tree]
    leaves: list[Any] = []
    flatten(tree, leaves)
    return [leaf for leaf in leaves if leaf is not None]


def map_leaves(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the tree with the function applied to every leaf except None, and to the leaves of others of its form."""
    leaves: list[list[Any]] = [[] for _ in range(1 + len(others))]
    form, *_ = map(flatten, (tree, *others), leaves)
    results = [None if each[0] is None else function(*each) for each in zip(*leaves, strict=True)]
    return unflatten(form, iter(results))
