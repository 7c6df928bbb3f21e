"""Choice of hyper-parameters, and comparison with baselines."""

from lightning_meta.analysis.comparison import compare_with_baselines
from lightning_meta.analysis.inner_rates import inner_rate_losses

__all__ = ["compare_with_baselines", "inner_rate_losses"]
