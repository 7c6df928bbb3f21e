"""The part of ``lightning-meta analyze curvature`` that is about implicit MAML's linear system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import torch

from lightning_meta.analysis.adjoint import AdjointErrors
from lightning_meta.analysis.hessians import cg_error_bound, cg_steps_for
from lightning_meta.cli.analyze.quantiles import quantile, quantile_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOLERANCE = 0.01
_SHOWN_STEPS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)


def adjoint_tables(found: AdjointErrors) -> dict[str, pl.DataFrame]:
    """Return the tables of the system and of the error after each number of steps."""
    own, most = found.own_steps, found.errors.shape[1]
    bound = torch.tensor([_steps_by_bound(float(value)) for value in found.condition])
    rows = {
        "condition number": found.condition,
        f"residual after cg_steps={own}": found.own_residual,
        f"error after cg_steps={own}": found.own_error,
        "its bound by the residual": found.solver_bound,
        "bound, inner solver's error": found.inner_bound,
        f"steps to {_TOLERANCE} (inf: over {most})": found.steps_for(_TOLERANCE),
        f"steps to {_TOLERANCE} by the bound": bound,
    }
    system = pl.DataFrame([{"quantiles over tasks": name, **quantile_row(values)} for name, values in rows.items()])
    shown = [step for step in _SHOWN_STEPS if step <= most]
    errors = pl.DataFrame([{"steps": step, **quantile_row(found.errors[:, step - 1])} for step in shown])
    return {
        "Linear system (H + Λ) u = ∇L_Q of the meta-gradient Λu, where the inner solver stops": system,
        "Relative error of u after conjugate-gradient steps": errors,
    }


def adjoint_advice(found: AdjointErrors) -> list[str]:
    """Return what the measured errors say."""
    definite = float(found.positive_definite.double().mean())
    said = [
        f"H + Λ is positive definite in {100 * definite:.0f} % of the tasks. Errors, condition numbers and bounds are "
        "those of these tasks; in the others the inner solver's point is no strict minimum, and the implicit gradient "
        "has no meaning that conjugate gradients could approximate."
    ]
    shortfall = -quantile(found.smallest, 0.05)
    if shortfall > 0:
        said.append(
            f"With cg_damping above about {shortfall:.2g} the damped system is positive definite in 95 % of the tasks. "
            "Its solution is another, but no direction of negative curvature enters the meta-gradient."
        )
    if definite == 0:
        return [*said, "No error can be told. A larger prox_lambda makes more tasks positive definite."]
    missing = int((found.positive_definite & ~found.solved).sum())
    if missing:
        said.append(f"In {missing} of them the reference did not converge: they have no errors.")
    if bool(found.solved.any()):
        error, needed = quantile(found.own_error, 0.5), quantile(found.steps_for(_TOLERANCE), 0.95)
        steps = f"more than {found.errors.shape[1]}" if needed == float("inf") else f"{needed:.0f}"
        said.append(
            f"With cg_steps={found.own_steps} the meta-gradient's relative error is {error:.2g} in the median task. In "
            f"95 % of these tasks u has a relative error of at most {_TOLERANCE} after {steps} steps."
        )
    return [
        *said,
        "The bound by the residual is a theorem for a positive definite system. The bound on the inner solver's error "
        "assumes that support and query loss are quadratic between its point and the solution. A bound above 1 says "
        "nothing.",
    ]


def draw_adjoint(found: AdjointErrors) -> Figure:
    """Draw the error over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axis = figure.subplots()
    steps = list(range(1, found.errors.shape[1] + 1))
    errors = found.errors[found.solved]
    if len(errors):
        low, middle, high = ([quantile(column, q) for column in errors.T] for q in (0.05, 0.5, 0.95))
        axis.fill_between(steps, low, high, alpha=0.25, linewidth=0, label="90 % of tasks")
        axis.plot(steps, middle, label="median task")
        condition = quantile(found.condition, 0.5)
        bound = [cg_error_bound(condition, step) for step in steps]
        axis.plot(steps, bound, "--", color="0.5", label=f"bound for condition {condition:.3g}, energy norm")
        axis.set_yscale("log")
        axis.set_ylim(max(1e-8, 0.5 * min(low)), 3)
    axis.axvline(found.own_steps, color="C3", label=f"cg_steps = {found.own_steps}")
    axis.set(xlabel="conjugate-gradient steps", ylabel="relative error of u")
    axis.set_title(f"{len(errors)} of {len(found.errors)} tasks, those with H + Λ positive definite", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _steps_by_bound(condition: float) -> float:
    return float("nan") if condition != condition else float(cg_steps_for(condition, _TOLERANCE))
