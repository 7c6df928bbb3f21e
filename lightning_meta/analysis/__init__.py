"""Choice of hyper-parameters, bounds for new tasks, curvature and noise, and comparison with baselines."""

from lightning_meta.analysis.adjoint import AdjointErrors, adjoint_errors
from lightning_meta.analysis.bounds import pac_bayes_bound, quantile_bound, upper_bound
from lightning_meta.analysis.certificate import Certificate, certify
from lightning_meta.analysis.comparison import compare_with_baselines
from lightning_meta.analysis.conformal import ConformalPredictor, ConformalTask
from lightning_meta.analysis.diagnosis.diagnose import Diagnosis, diagnose
from lightning_meta.analysis.gradient_noise import (
    GradientVariance,
    NoiseIntervals,
    gradient_variance,
    noise_intervals,
    noise_scale,
    variance_of_products,
)
from lightning_meta.analysis.held_out import HeldOutLosses, held_out_losses
from lightning_meta.analysis.hessians import Curvature, cg_error_bound, cg_steps_for, curvature
from lightning_meta.analysis.inner_rates import inner_rate_losses
from lightning_meta.analysis.meta_gradients import meta_gradient_products
from lightning_meta.analysis.one_step_rate import OneStepRate, one_step_rate
from lightning_meta.analysis.rate_search import RateSearch, search_rate
from lightning_meta.analysis.step_gains import StepGains, step_gains

__all__ = [
    "AdjointErrors",
    "Certificate",
    "ConformalPredictor",
    "ConformalTask",
    "Curvature",
    "Diagnosis",
    "GradientVariance",
    "HeldOutLosses",
    "NoiseIntervals",
    "OneStepRate",
    "RateSearch",
    "StepGains",
    "adjoint_errors",
    "certify",
    "cg_error_bound",
    "cg_steps_for",
    "compare_with_baselines",
    "curvature",
    "diagnose",
    "gradient_variance",
    "held_out_losses",
    "inner_rate_losses",
    "meta_gradient_products",
    "noise_intervals",
    "noise_scale",
    "one_step_rate",
    "pac_bayes_bound",
    "quantile_bound",
    "search_rate",
    "step_gains",
    "upper_bound",
    "variance_of_products",
]
