"""Exchange with learn2learn 0.2.0, which is imported only by what needs it."""

from lightning_meta.interop.learn2learn.wrappers import FeaturesAndHead, from_learn2learn, to_learn2learn

__all__ = ["FeaturesAndHead", "from_learn2learn", "to_learn2learn"]
