"""Choice of hyper-parameters."""

from lightning_meta.analysis.inner_rates import inner_rate_losses

__all__ = ["inner_rate_losses"]
