from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.episodes.trees import flatten, leaves_of, map_leaves, unflatten


class Pair(NamedTuple):
    left: object
    right: object = None


def tensors(count):
    return [torch.tensor(float(i)) for i in range(count)]


def trees():
    a, b, c, d = tensors(4)
    return {
        "leaf": a,
        "none": None,
        "empty": {},
        "nested": Pair({"x": a, "y": (b, [c, None])}, d),
        "registered elsewhere": {"x": OrderedDict(p=a, q=Pair(b, c)), "y": d},
        "other leaves": Pair(1.5, ["name", a]),
    }


@pytest.mark.parametrize("name", trees())
def test_trees_are_flattened_in_the_order_of_torch_and_unflattened(name):
    tree = trees()[name]
    leaves = []
    form = flatten(tree, leaves)
    expected = tree_leaves(tree)
    assert len(leaves) == len(expected)
    assert all(own is other for own, other in zip(leaves, expected, strict=True))
    again = unflatten(form, iter(leaves))
    assert type(again) is type(tree)
    assert str(again) == str(tree)
    assert [leaf for leaf in leaves if leaf is not None] == leaves_of(tree)


def test_forms_tell_trees_apart_and_can_be_looked_up():
    forms = {name: flatten(tree, []) for name, tree in trees().items()}
    assert {flatten(tree, []): name for name, tree in trees().items() if name != "none"} == {
        form: name for name, form in forms.items() if name != "none"
    }
    a, b = tensors(2)
    alike = [{"x": a, "y": b}, {"x": a, "z": b}, {"y": a, "x": b}, OrderedDict(x=a, y=b), Pair(a, b), (a, b), [a, b]]
    assert len({flatten(tree, []) for tree in alike}) == len(alike)
    again = flatten(OrderedDict(x=b, y=a), [])
    assert again == flatten(alike[3], [])
    assert repr(again) == repr(flatten(alike[3], []))


def test_leaves_are_mapped_as_by_torch_and_none_stays():
    tree = Pair({"x": torch.arange(3.0), "y": None}, (torch.ones(2),))
    other = Pair({"x": torch.ones(3), "y": None}, (torch.ones(2),))
    found = map_leaves(torch.add, tree, other)
    expected = tree_map(lambda leaf: None if leaf is None else leaf + 1, tree)
    assert str(found) == str(expected)
    with pytest.raises(ValueError, match="argument"):
        map_leaves(torch.add, tree, Pair({"x": torch.ones(3)}, torch.ones(2)))
