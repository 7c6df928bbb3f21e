"""Models of texts, against loops over words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from lightning_meta import MAML, AmortizedMAML, BagOfWords, Episode, ProtoNet, TextEncoder, collate_episodes
from lightning_meta.execution.example_independence import takes_texts_apart
from tests.reference import assert_same, loop_meta_gradient, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")
WORDS = 12


def texts(*shape, length=6):
    """Random ids with random numbers of words, the last text of a set without any."""
    mask = torch.arange(length) < torch.randint(1, length + 1, (*shape, 1))
    mask[..., -1, :] = False
    return {"input_ids": torch.randint(2, WORDS, (*shape, length)) * mask, "attention_mask": mask.long()}


def encoder(**options):
    model = TextEncoder(**{"num_classes": 3, "vocabulary_size": WORDS, "embedding_size": 5, "hidden": (7,), **options})
    nn.init.normal_(model.weights.weight)
    return model


def task(support, query):
    labels = [torch.arange(size) % 3 for size in (support, query)]
    return Episode(texts(support), labels[0], texts(query), labels[1])


def test_encoder_takes_a_weighted_mean_of_words_in_its_direction():
    model, x = encoder(), texts(4)
    for output, ids, mask in zip(model(x), x["input_ids"].tolist(), x["attention_mask"].tolist(), strict=True):
        mean, total = torch.zeros(5), 0.0
        for word in (i for i, real in zip(ids, mask, strict=True) if real):
            weight = math.exp(model.weights.weight[word].item())
            mean, total = mean + weight * model.embedding.weight[word], total + weight
        mean = mean / total if total else mean
        hidden = torch.relu(model.layers[0](mean / math.sqrt(mean.norm().item() ** 2 + 1e-6)))
        torch.testing.assert_close(output, model.head(hidden))


def test_all_words_weigh_the_same_at_first():
    model = TextEncoder(3, WORDS, 5)
    x = {"input_ids": torch.tensor([[2, 3, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    mean = (model.embedding.weight[2] + 2 * model.embedding.weight[3]) / 3
    torch.testing.assert_close(model(x), model.head(mean / (mean.norm() ** 2 + 1e-6).sqrt())[None])


def test_padding_does_not_count_whatever_it_is():
    x = texts(4)
    longer = {
        "input_ids": torch.cat([x["input_ids"], torch.randint(WORDS, (4, 3))], 1),
        "attention_mask": torch.cat([x["attention_mask"], torch.zeros(4, 3)], 1),
    }
    for model in (encoder(), BagOfWords(WORDS)):
        torch.testing.assert_close(model(longer), model(x))


def test_texts_without_words_have_finite_gradients():
    model, x = encoder(), {name: leaf[-1:] for name, leaf in texts(3).items()}
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not model.embedding.weight.grad.any()


def test_parameters_of_each_task():
    model, x = encoder(), texts(4, 3)
    own = {n: torch.stack([p + 0.1 * torch.randn_like(p) for _ in range(4)]) for n, p in model.named_parameters()}

    def gradient(parameters, one):
        return grad(lambda p: functional_call(model, p, (one,)).square().sum())(parameters)

    found = vmap(gradient)(own, x)
    each = [gradient({n: p[i] for n, p in own.items()}, {n: v[i] for n, v in x.items()}) for i in range(4)]
    assert_same(found, {n: torch.stack([one[n] for one in each]) for n in own})


def test_an_id_beyond_the_vocabulary_is_named():
    with pytest.raises(ValueError, match=r"not in \[0, 12\): set the model's vocabulary_size"):
        encoder()({"input_ids": torch.tensor([[12]]), "attention_mask": torch.tensor([[1]])})


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"vocabulary_size": 0}, {"hidden": [0]}])
def test_sizes_must_be_positive(arguments):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        TextEncoder(**arguments)


def test_bag_of_words_counts():
    model, x = BagOfWords(WORDS), texts(5)
    expected = torch.zeros(5, WORDS)
    for row, ids, mask in zip(expected, x["input_ids"].tolist(), x["attention_mask"].tolist(), strict=True):
        words = [i for i, real in zip(ids, mask, strict=True) if real]
        for word in words:
            row[word] = math.log(1 + words.count(word))
        row /= row.norm() if words else 1
    torch.testing.assert_close(model(x), expected)
    batched = texts(2, 3)
    each = [model({name: leaf[i] for name, leaf in batched.items()}) for i in range(2)]
    torch.testing.assert_close(vmap(model)(batched), torch.stack(each))


def test_maml_has_the_loops_meta_gradient():
    model = encoder()
    learner = MAML(model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=2)
    for _ in range(3):  # the third step is a captured one
        batch = collate_episodes([task(6, 5) for _ in range(3)])
        loss, found = meta_gradient(learner, batch)
        expected_loss, expected = loop_meta_gradient(model, nn.CrossEntropyLoss(), batch, 0.1, 2)
        torch.testing.assert_close(loss, expected_loss)
        assert_same(found, expected)


def test_steps_are_captured():
    learner = MAML(encoder(), nn.CrossEntropyLoss(), inner_lr=0.1)
    assert learner._mapping._world.state()


def test_amortized_maml_finds_the_head():
    learner = AmortizedMAML(encoder(), nn.CrossEntropyLoss())
    assert learner.head_name == "head"
    assert learner.training_step(collate_episodes([task(6, 5) for _ in range(2)]), 0).isfinite()


def test_tasks_of_different_sizes_are_computed_together_as_if_alone():
    model = encoder()
    learner = MAML(model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=2, compile=False)
    seen, own = [], learner._mapping._summed_gradients
    learner._mapping._summed_gradients = lambda meta, piece: seen.append(piece.num_tasks) or own(meta, piece)
    tasks = [task(*sizes) for sizes in [(4, 6), (7, 3), (5, 5)]]
    found = meta_gradient(learner, collate_episodes(tasks))[1]
    alone = [loop_meta_gradient(model, nn.CrossEntropyLoss(), collate_episodes([one]), 0.1, 2)[1] for one in tasks]
    assert seen == [3]
    assert_same(found, {n: sum(own[n] for own in alone) / 3 for n in found})


def test_changed_models_may_couple_examples():
    assert takes_texts_apart(BagOfWords(WORDS), "batch")
    changed = [encoder() for _ in range(4)]
    assert all(takes_texts_apart(model, "batch") for model in changed)
    changed[0].head.register_forward_hook(lambda module, inputs, output: output - output.mean(0))
    changed[1].layers.append(nn.BatchNorm1d(7))
    changed[2].forward = lambda texts: torch.zeros(3)
    changed[3].__class__ = type("Derived", (TextEncoder,), {})
    assert not any(takes_texts_apart(model, "batch") for model in [*changed, nn.Linear(3, 1)])


def test_nearest_prototypes_of_word_counts_need_no_training():
    x = {"input_ids": torch.tensor([[2, 3], [4, 5]]), "attention_mask": torch.ones(2, 2)}
    adapted = ProtoNet(BagOfWords(WORDS)).adapt(x, torch.arange(2))
    assert adapted({"input_ids": torch.tensor([[5, 6], [7, 2]]), "attention_mask": torch.ones(2, 2)}).argmax(
        1
    ).tolist() == [1, 0]
