"""Learned matrices that multiply the inner gradients (Park, Oliva, NeurIPS 2019, arXiv 1902.03356)."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_count
from lightning_meta.inner.names import key_of
from lightning_meta.inner.vectors import Vector

Mode = Literal["outputs", "inputs", "filter"]

# The product of a gradient and a mode's matrix: (G ×_n M)[..., j, ...] = Σ_i M[j, i] G[..., i, ...].
_PRODUCTS = {"outputs": "po,oif->pif", "inputs": "qi,oif->oqf", "filter": "gf,oif->oig"}
_SCALES = {"outputs": "o,oif->oif", "inputs": "i,oif->oif", "filter": "f,oif->oif"}


class CurvatureFactors(nn.Module):
    """A matrix for each mode of each adapted tensor, at first the identity.

    A tensor's modes are its first dimension (outputs), its second (inputs) and all others together (filter).

    Args:
        adapted: The adapted parameters by name, for shapes and dtypes.
        modes: Which of "outputs", "inputs" and "filter" have a matrix.
        largest_matrix: A mode of more entries has a diagonal matrix, one number for each entry.

    Raises:
        ValueError: If an argument is out of its range, or no tensor has one of the modes.
    """

    def __init__(self, adapted: Mapping[str, Tensor], modes: Sequence[Mode], largest_matrix: int) -> None:
        super().__init__()
        check_count("largest_matrix", largest_matrix)
        if isinstance(modes, str) or not modes or len(set(modes)) < len(modes):
            raise ValueError(f"modes={modes!r} must be a list of some of {list(get_args(Mode))}, each once")
        for chosen in modes:
            check_choice("modes", chosen, Mode)
        self.factors = nn.ParameterDict()
        for name, parameter in adapted.items():
            for mode, size in _sizes(parameter).items():
                if mode in modes:
                    one = parameter.new_ones(size)
                    self.factors[_key(name, mode)] = nn.Parameter(one if size > largest_matrix else one.diag())
        if not len(self.factors):
            raise ValueError(f"modes={list(modes)}: no adapted tensor has one of them")

    def transformed(self, gradients: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Vector:
        """Return ``G ×₃ M_f ×₂ M_i ×₁ M_o`` for each gradient G, same keys and shapes.

        Args:
            gradients: The gradients of the support loss.
            values: The current values of this module's parameters, named as in this module.
        """
        changed: Vector = {}
        for name, gradient in gradients.items():
            rows, columns, rest = _as_three(gradient)
            tensor = gradient.reshape(rows, columns, rest)
            for mode in reversed(_sizes(gradient)):
                factor = values.get(f"factors.{_key(name, mode)}")
                if factor is not None:
                    product = (_PRODUCTS if factor.ndim == 2 else _SCALES)[mode]
                    tensor = torch.einsum(product, factor, tensor)
            changed[name] = tensor.reshape(gradient.shape)
        return changed


def _key(name: str, mode: str) -> str:
    return f"{key_of(name)}/{mode}"


def _as_three(tensor: Tensor) -> tuple[int, int, int]:
    """Return the sizes of outputs, inputs and filter, 1 for those that a tensor lacks."""
    rows, columns = (*tensor.shape[:2], 1, 1)[:2]
    return rows, columns, tensor[0, 0].numel() if tensor.ndim > 2 else 1


def _sizes(tensor: Tensor) -> dict[str, int]:
    """Return the sizes of the modes that a tensor has; a number has one mode."""
    return dict(zip(get_args(Mode), _as_three(tensor)[: max(1, min(tensor.ndim, 3))], strict=False))
