"""The parts of `EpisodeDashboard`: what is recorded of an evaluation, how it is drawn, and where it goes."""
