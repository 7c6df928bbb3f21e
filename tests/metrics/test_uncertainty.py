"""Predictive distributions and their metrics against definitions written out, and against data with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_meta import AmortizedMAML, Episode
from lightning_meta.likelihoods.predictive import (
    Samples,
    cumulative,
    mean_output,
    mixture_log_likelihood,
    predict,
    quantile,
)
from lightning_meta.metrics.uncertainty import auroc, uncertainty_metrics
from tests.registry import LEARNERS, every

pytestmark = pytest.mark.usefixtures("float64")


def jackknifed(statistic, units):
    """``M f(all) − (M − 1) mean f(all but one)``, by a loop."""
    count = len(units)
    others = [torch.cat([units[:i], units[i + 1 :]]) for i in range(count)]
    return count * statistic(units) - (count - 1) * torch.stack([statistic(rest) for rest in others]).mean(0)


def entropy_of_mean(probabilities):
    return Categorical(probs=probabilities.flatten(0, -2).mean(0)).entropy()


def test_entropies_split_as_defined():
    logits = torch.randn(4, 6, 3)
    prediction = predict("categorical", Samples(logits))
    for i in range(6):
        draws = Categorical(logits=logits[:, i])
        total = jackknifed(entropy_of_mean, draws.probs)
        torch.testing.assert_close(prediction.mean[i], draws.probs.mean(0))
        torch.testing.assert_close(prediction.total[i], total)
        torch.testing.assert_close(prediction.aleatoric[i], draws.entropy().mean())
        torch.testing.assert_close(prediction.epistemic[i], total - draws.entropy().mean())
    torch.testing.assert_close(mean_output("categorical", Samples(logits)).exp(), prediction.mean)


def test_draws_that_share_a_part_are_left_out_together():
    logits = torch.randn(6, 5, 3)
    prediction = predict("categorical", Samples(logits), together=2)
    probabilities = logits.softmax(-1)
    for i in range(5):
        total = jackknifed(entropy_of_mean, probabilities[:, i].unflatten(0, (3, 2)))
        torch.testing.assert_close(prediction.total[i], total)
    alone = predict("categorical", Samples(logits[:2]), together=2)  # what they share was drawn once: nothing to tell
    torch.testing.assert_close(alone, predict("categorical", Samples(logits[:2])))


@pytest.mark.parametrize("count", [2, 4, 5, 10])
def test_the_variance_of_few_draws_is_right_on_average(count):
    means, within = 0.7 * torch.randn(count, 20_000, 1), 0.3
    samples = Samples(means, torch.full_like(means, 0.2), torch.full_like(means, within))
    prediction = predict("gaussian", samples)
    assert float(prediction.epistemic.mean()) == pytest.approx(0.49 + within, rel=0.03)
    assert float(prediction.total.mean()) == pytest.approx(0.49 + within + 0.2, rel=0.03)


def mutual_information(logits):
    """Of a target and what its logits ``[draws, classes]`` were drawn with."""
    draws = Categorical(logits=logits)
    return float(Categorical(probs=draws.probs.mean(0)).entropy() - draws.entropy().mean())


@pytest.mark.parametrize(("count", "together"), [(4, 1), (5, 1), (10, 1), (4, 8)])
def test_the_mutual_information_of_few_draws_is_right_on_average(count, together):
    """Plain estimates would be 0.71, 0.77, 0.89 and 0.81 of the truth."""
    queries, classes = 4000, 5

    def logits(units):
        shared = 1.5 * torch.randn(units, 1, queries, classes)
        return (shared + torch.randn(units, together, queries, classes)).flatten(0, 1)

    truth = mutual_information((1.5 * torch.randn(200_000, classes)) + torch.randn(200_000, classes))
    prediction = predict("categorical", Samples(logits(count)), together=together)
    assert float(prediction.epistemic.mean()) == pytest.approx(truth, rel=0.04)
    assert (prediction.epistemic >= 0).all()
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)


def test_amortized_heads_of_one_body_count_as_one_draw():
    learner = AmortizedMAML(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), initial_log_std=0.0).eval()
    task = learner.adapt(torch.randn(6, 4), torch.randint(3, (6,)))
    x = torch.randn(5, 4)
    torch.manual_seed(1)
    samples = task.samples(x)
    assert samples.outputs.shape == (4 * 8, 5, 3)
    torch.manual_seed(1)
    torch.testing.assert_close(task.predict(x), predict("categorical", samples, together=8))


def test_binary_entropies_are_those_of_two_classes():
    logits = torch.randn(4, 6, 1)
    binary = predict("bernoulli", Samples(logits))
    both = predict("categorical", Samples(torch.cat([logits, torch.zeros_like(logits)], dim=2)))
    torch.testing.assert_close(binary.mean[:, 0], both.mean[:, 0])
    torch.testing.assert_close(binary.total[:, 0], both.total)
    torch.testing.assert_close(binary.epistemic[:, 0], both.epistemic)
    torch.testing.assert_close(mean_output("bernoulli", Samples(logits)).sigmoid(), binary.mean)


def mixture(samples):
    """torch's own mixture of Gaussians for each query, ``[query]``."""
    deviations = (samples.noise + samples.spread).sqrt()[:, :, 0].T
    components = Normal(samples.outputs[:, :, 0].T, deviations)
    return MixtureSameFamily(Categorical(torch.ones_like(deviations)), components)


@pytest.fixture
def regression():
    return Samples(torch.randn(5, 8, 1), torch.rand(5, 8, 1) + 0.1, torch.rand(5, 8, 1))


def test_variances_split_by_the_law_of_total_variance(regression):
    prediction, exact = predict("gaussian", regression), mixture(regression)
    torch.testing.assert_close(prediction.mean[:, 0], exact.mean)
    # Its variance is that of a mixture of 5 draws; the posterior's is larger by what 5 draws cannot show.
    missing = regression.outputs.var(0, correction=0)[:, 0] / 4
    torch.testing.assert_close(prediction.total[:, 0], exact.variance + missing)
    torch.testing.assert_close(prediction.aleatoric, regression.noise.mean(0))
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)


def test_densities_and_quantiles_are_the_mixtures(regression):
    y, exact = torch.randn(8, 1), mixture(regression)
    torch.testing.assert_close(mixture_log_likelihood("gaussian", regression, y), exact.log_prob(y[:, 0]))
    torch.testing.assert_close(cumulative(regression, y)[:, 0], exact.cdf(y[:, 0]))
    for level in (0.05, 0.5, 0.95):
        found = quantile(regression, level)
        torch.testing.assert_close(exact.cdf(found[:, 0]), torch.full((8,), level), rtol=0, atol=1e-9)


@pytest.mark.parametrize("level", [1e-6, 0.001, 0.999, 1 - 1e-6])
def test_quantiles_far_out_are_the_normal_distributions(level):
    samples = Samples(torch.randn(1, 4, 1), torch.rand(1, 4, 1) + 0.1)
    exact = Normal(samples.outputs[0], samples.noise[0].sqrt()).icdf(torch.tensor(level))
    torch.testing.assert_close(quantile(samples, level), exact, rtol=1e-8, atol=1e-8)


def test_a_targets_parts_count_jointly():
    samples, y = Samples(torch.randn(3, 4, 2), torch.ones(3, 4, 2)), torch.randn(4, 2)
    joint = Normal(samples.outputs, 1.0).log_prob(y).sum(2).exp().mean(0).log()
    torch.testing.assert_close(mixture_log_likelihood("gaussian", samples, y), joint)


def test_metrics_of_classes_are_their_definitions():
    logits, targets = torch.randn(3, 2, 40, 5), torch.randint(5, (3, 40))
    mask = torch.rand(3, 40) < 0.7
    found = uncertainty_metrics("categorical", Samples(logits), targets, mask)
    for task in range(3):
        p = logits[task].softmax(-1).mean(0)[mask[task]]
        y = targets[task][mask[task]]
        torch.testing.assert_close(found["nll"][task], -p[torch.arange(len(y)), y].log().mean())
        one_hot = nn.functional.one_hot(y, 5)
        torch.testing.assert_close(found["brier"][task], ((p - one_hot) ** 2).sum(1).mean())
        confidence, guess = p.max(1)
        expected = 0.0
        for low in torch.arange(15) / 15:
            inside = (confidence > low) & (confidence <= low + 1 / 15)
            if inside.any():
                gap = (confidence[inside].mean() - (guess == y)[inside].double().mean()).abs()
                expected += float(inside.double().mean() * gap)
        assert float(found["ece"][task]) == pytest.approx(expected, abs=1e-6)
        assert float(found["ece"][task]) == pytest.approx(float(multiclass_calibration_error(p, y, 5)), abs=1e-6)


def test_metrics_of_a_right_and_a_wrong_noise_model():
    truth = torch.randn(6, 4000, 1)
    y = truth + 0.5 * torch.randn(6, 4000, 1)

    def metrics(std):
        samples = Samples(truth[:, None], torch.full((6, 1, 4000, 1), std**2))
        return {n: v.mean() for n, v in uncertainty_metrics("gaussian", samples, y, None).items()}

    right, sharp = metrics(0.5), metrics(0.25)
    assert float(right["coverage_90"]) == pytest.approx(0.9, abs=0.01)
    assert float(right["width_90"]) == pytest.approx(2 * 1.644854 * 0.5, abs=1e-4)
    assert float(right["quantile_ce"]) < 0.01
    assert float(right["nll"]) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25), abs=0.02)
    assert float(sharp["coverage_90"]) < 0.65
    assert float(sharp["quantile_ce"]) > 0.08
    assert float(sharp["nll"]) > float(right["nll"])


def test_calibration_is_the_mean_distance_over_nineteen_levels():
    outputs, noise, y = torch.randn(3, 1, 7, 1), torch.rand(3, 1, 7, 1) + 0.1, torch.randn(3, 7, 1)
    found = uncertainty_metrics("gaussian", Samples(outputs, noise), y, None)["quantile_ce"]
    for task in range(3):
        distances = []
        for level in range(1, 20):
            below = Normal(outputs[task, 0], noise[task, 0].sqrt()).icdf(torch.tensor(level / 20)) >= y[task]
            distances.append(abs(float(below.double().mean()) - level / 20))
        assert float(found[task]) == pytest.approx(sum(distances) / 19)


def test_binary_metrics_are_those_of_two_classes():
    logits, y = torch.randn(3, 4, 9, 1), torch.randint(2, (3, 9))
    mask = torch.rand(3, 9) < 0.7
    binary = uncertainty_metrics("bernoulli", Samples(logits), y[..., None].double(), mask)
    both = Samples(torch.cat([torch.zeros_like(logits), logits], dim=3))
    two = uncertainty_metrics("categorical", both, y, mask)
    for name in ("nll", "brier"):
        torch.testing.assert_close(binary[name], two[name])


def test_targets_that_allow_no_metric_have_none():
    scores, real = Samples(torch.randn(2, 3, 9, 4)), Samples(torch.randn(2, 3, 9, 1), torch.ones(2, 3, 9, 1))
    labels = torch.randint(4, (2, 9))
    for targets in ({"boxes": labels}, torch.rand(2, 9, 4), torch.rand(2, 9), labels[..., None].expand(2, 9, 5)):
        assert uncertainty_metrics("categorical", scores, targets, None) == {}
    assert uncertainty_metrics(None, scores, labels, None) == {}
    assert uncertainty_metrics("gaussian", real, {"boxes": labels}, None) == {}
    assert uncertainty_metrics("gaussian", real._replace(noise=None), torch.randn(2, 9, 1), None) == {}
    assert uncertainty_metrics("bernoulli", real, labels[..., None], None) == {}


def test_widths_and_coverage_are_means_over_the_parts_of_a_target():
    deviations = torch.tensor([0.5, 2.0])
    samples = Samples(torch.zeros(1, 1, 6, 2), deviations.square().expand(1, 1, 6, 2))
    y = torch.tensor([0.0, 10.0]).expand(1, 6, 2)  # the first part is inside its interval, the second is not
    found = uncertainty_metrics("gaussian", samples, y, None)
    assert float(found["width_90"]) == pytest.approx(2 * 1.6448536 * 1.25, rel=1e-6)
    assert float(found["coverage_90"]) == 0.5


def test_calibration_counts_the_parts_of_a_target_alike():
    outputs, y = torch.zeros(1, 1, 4, 2), torch.tensor([[[-2.0, 2.0], [0.1, -0.1], [0.5, 3.0], [-1.0, 1.0]]])
    found = uncertainty_metrics("gaussian", Samples(outputs, torch.ones(1, 1, 4, 2)), y, None)["quantile_ce"]
    below = [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in y.flatten().tolist()]
    levels = [0.05 * i for i in range(1, 20)]
    shares = [sum(value <= level for value in below) / len(below) for level in levels]
    expected = sum(abs(share - level) for share, level in zip(shares, levels, strict=True)) / 19
    torch.testing.assert_close(float(found), expected, rtol=1e-5, atol=1e-6)


def test_one_draw_with_a_spread_has_epistemic_uncertainty():
    samples = Samples(torch.randn(1, 4, 1), torch.rand(1, 4, 1), torch.rand(1, 4, 1))
    prediction = predict("gaussian", samples)
    torch.testing.assert_close(prediction.epistemic, samples.spread[0])
    torch.testing.assert_close(prediction.total, samples.noise[0] + samples.spread[0])
    assert predict("gaussian", samples._replace(spread=None)).epistemic is None


def test_binary_parts_count_alike():
    logits, y = torch.randn(2, 3, 30, 2), torch.randint(2, (2, 30, 2)).double()
    found = uncertainty_metrics("bernoulli", Samples(logits), y, None)
    parts = [uncertainty_metrics("bernoulli", Samples(logits[..., [i]]), y[..., [i]], None) for i in range(2)]
    torch.testing.assert_close(found["brier"], (parts[0]["brier"] + parts[1]["brier"]) / 2)
    p, labels = logits.sigmoid().mean(1).flatten(1), y.flatten(1)
    for task in range(2):
        expected = 0.0
        for low in torch.arange(15) / 15:
            inside = (p[task] > low) & (p[task] <= low + 1 / 15)
            if inside.any():
                gap = (p[task][inside].mean() - labels[task][inside].mean()).abs()
                expected += float(inside.double().mean() * gap)
        assert float(found["ece"][task]) == pytest.approx(expected, abs=1e-6)


def test_the_likelihood_of_labels_is_that_of_the_mean_probabilities():
    logits, y = torch.randn(4, 6, 1), torch.randint(2, (6, 1)).double()
    p = logits.sigmoid().mean(0)
    expected = torch.distributions.Bernoulli(p).log_prob(y)[:, 0]
    torch.testing.assert_close(mixture_log_likelihood("bernoulli", Samples(logits), y), expected)
    scores, labels = torch.randn(4, 6, 3), torch.randint(3, (6,))
    expected = Categorical(probs=scores.softmax(2).mean(0)).log_prob(labels)
    torch.testing.assert_close(mixture_log_likelihood("categorical", Samples(scores), labels), expected)


def test_a_gaussian_without_noise_has_no_likelihood():
    with pytest.raises(ValueError, match="these samples have no noise"):
        mixture_log_likelihood("gaussian", Samples(torch.randn(2, 3, 1)), torch.randn(3, 1))
    samples = Samples(torch.randn(5, 3, 1))
    torch.testing.assert_close(mean_output("gaussian", samples), samples.outputs.mean(0))
    assert predict("gaussian", samples)[1:] == (None, None, None)


def test_predictions_of_half_precision_are_told_in_single():
    outputs = torch.randn(3, 4, 5).bfloat16()
    prediction = predict("categorical", Samples(outputs))
    assert prediction.mean.dtype == prediction.total.dtype == torch.float32
    torch.testing.assert_close(prediction.mean, outputs.float().softmax(2).mean(0))


def test_ignored_labels_count_in_no_metric():
    samples, targets = Samples(torch.randn(2, 3, 9, 4)), torch.randint(4, (2, 9))
    targets[:, 5:] = -100
    found = uncertainty_metrics("categorical", samples, targets, None)
    cut = uncertainty_metrics("categorical", Samples(samples.outputs[:, :, :5]), targets[:, :5], None)
    for name, value in cut.items():
        torch.testing.assert_close(found[name], value)


def test_padding_counts_in_no_metric():
    samples = Samples(torch.randn(2, 3, 9, 1), torch.rand(2, 3, 9, 1) + 0.1)
    y, mask = torch.randn(2, 9, 1), torch.arange(9) < torch.tensor([[9], [4]])
    found = uncertainty_metrics("gaussian", samples, y, mask)
    cut = Samples(samples.outputs[1:, :, :4], samples.noise[1:, :, :4])
    alone = uncertainty_metrics("gaussian", cut, y[1:, :4], None)
    for name, value in alone.items():
        torch.testing.assert_close(found[name][1], value[0])


def test_the_area_under_the_curve_counts_pairs():
    inside, outside, mask = torch.randn(2, 12), torch.randn(2, 9) + 0.5, torch.rand(2, 12) < 0.8
    inside[0, 0] = outside[0, 0]  # a tie counts half
    found = auroc(inside, outside, mask)
    for task in range(2):
        own = inside[task][mask[task]]
        wins = (outside[task][:, None] > own).double() + 0.5 * (outside[task][:, None] == own).double()
        torch.testing.assert_close(found[task].double(), wins.mean(), rtol=1e-6, atol=1e-6)
    tiny = auroc(1e-12 * inside, 1e-12 * outside, mask)  # scores that a sigmoid would round together
    torch.testing.assert_close(tiny, found)


KINDS = [(entry, "classes") for entry in LEARNERS if not entry.numbers_only]
KINDS += [(entry, "numbers") for entry in LEARNERS if not entry.classes_only]


@pytest.mark.parametrize(("entry", "kind"), KINDS, ids=[f"{entry.name}-{kind}" for entry, kind in KINDS])
def test_one_interface_for_all(entry, kind):
    outputs = 3 if kind == "classes" else 2
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))
    learner = entry.learner(model, nn.CrossEntropyLoss() if kind == "classes" else nn.MSELoss(), inner_lr=0.01).eval()
    y = torch.arange(3).repeat(2) if kind == "classes" else torch.randn(6, 2)
    with torch.inference_mode():
        task = learner.adapt(torch.randn(6, 4), y)
        x = torch.randn(5, 4)
        torch.manual_seed(1)
        output = task(x)
        torch.manual_seed(1)
        prediction = task.predict(x)
    assert output.shape == (5, outputs)
    expected = output.softmax(1) if kind == "classes" else output
    torch.testing.assert_close(prediction.mean, expected)
    if not entry.is_bayesian:
        assert prediction.epistemic is None
    else:
        shape = (5,) if kind == "classes" else (5, 2)
        assert prediction.epistemic.shape == prediction.aleatoric.shape == shape
        assert (prediction.epistemic > 0).any()
        torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)


@every(lambda entry: not entry.numbers_only)
@pytest.mark.parametrize("batch_statistics", ["batch", "support"])
def test_other_classes_are_scored_in_evaluation(entry, batch_statistics):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    learner = entry.learner(model, nn.CrossEntropyLoss(), inner_lr=0.01, batch_statistics=batch_statistics).eval()
    labels = torch.arange(3).repeat(3, 2)
    batch = Episode(torch.randn(3, 6, 4), labels, torch.randn(3, 5, 4), torch.randint(3, (3, 5)))
    result = learner.evaluate(batch._replace(ood_x=torch.randn(3, 7, 4)))
    kinds = {"total", "epistemic"} if entry.is_bayesian else {"total"}
    assert set(result.novelty) == kinds
    for inside, outside in result.novelty.values():
        assert inside.shape == (3, 5)
        assert outside.shape == (3, 7)
