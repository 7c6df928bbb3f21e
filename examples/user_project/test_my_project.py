"""The algorithm against medians by hand: ``pytest`` in this folder."""

import torch
from my_project.learner import MedianPrototypes
from torch import nn


def test_queries_go_to_the_class_with_the_nearest_median():
    """The outlier of the first class moves its mean, and not its median."""
    learner = MedianPrototypes(nn.Identity(), temperature=2.0)
    support = torch.tensor([[0.0], [1.0], [100.0], [9.0], [10.0], [11.0]])  # medians 1 and 10
    task = learner.adapt(support, torch.tensor([0, 0, 0, 1, 1, 1]))
    query = torch.tensor([[2.0], [8.0]])
    torch.testing.assert_close(task(query), torch.tensor([[-1.0, -64.0], [-49.0, -4.0]]) / 2)
