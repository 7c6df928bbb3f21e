"""Transformers, against torch's own layers with the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_meta import MAML, Episode, TextTransformer, VisionTransformer, collate_episodes
from lightning_meta.execution.capture import recorder
from lightning_meta.models import TaskLayerNorm
from lightning_meta.models.sequence_encoder import SelfAttention
from tests.models.naive import naive_meta_gradient
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")
WORDS, SIZE = 12, 8
OPTIONS = {"embedding_size": SIZE, "depth": 2, "heads": 2, "hidden": 10}

# What torch's layers call our parameters.
NAMES = {
    "self_attn.in_proj_weight": "attention.inputs.weight",
    "self_attn.in_proj_bias": "attention.inputs.bias",
    "self_attn.out_proj.weight": "attention.outputs.weight",
    "self_attn.out_proj.bias": "attention.outputs.bias",
    **{f"norm1.{kind}": f"attention_norm.{kind}" for kind in ("weight", "bias")},
    **{f"norm2.{kind}": f"linear_norm.{kind}" for kind in ("weight", "bias")},
    **{f"linear{n}.{kind}": f"linear{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")},
}


def torchs_encoder(depth):
    layer = nn.TransformerEncoderLayer(SIZE, 2, 10, 0.0, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, nn.LayerNorm(SIZE), enable_nested_tensor=False)


def encoded(p, x):
    """The outputs of torch's encoder with our parameters."""
    depth = sum(name.endswith("linear2.bias") for name in p)
    theirs = {f"layers.{i}.{t}": p[f"encoder.blocks.{i}.{o}"] for i in range(depth) for t, o in NAMES.items()}
    theirs |= {f"norm.{kind}": p[f"encoder.norm.{kind}"] for kind in ("weight", "bias")}
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(torchs_encoder(depth), theirs, (x,))


def text_outputs(p, x):
    """One text at a time, without its padding."""
    outputs = []
    for ids, mask in zip(x["input_ids"], x["attention_mask"] != 0, strict=True):
        words = ids[mask]
        embedded = p["embedding.weight"][words] + p["positions.weight"][: len(words)]
        mean = encoded(p, embedded[None])[0].mean(0) if len(words) else torch.zeros(SIZE)
        outputs.append(mean @ p["head.weight"].T + p["head.bias"])
    return torch.stack(outputs)


def image_outputs(p, x):
    patches = F.unfold(x, 3, stride=3).mT  # [examples, patches, channels * 9]
    embedded = patches @ p["patches.weight"].flatten(1).T + p["patches.bias"] + p["positions"]
    return encoded(p, embedded).mean(1) @ p["head.weight"].T + p["head.bias"]


def varied(model):
    for name, p in model.named_parameters():
        nn.init.normal_(p, mean="norm.weight" in name, std=0.4)
    return model


def texts(*shape, length=5, empty=True):
    mask = torch.arange(length) < torch.randint(1, length + 1, (*shape, 1))
    if empty:
        mask[..., -1, :] = False
    return {"input_ids": torch.randint(2, WORDS, (*shape, length)) * mask, "attention_mask": mask.long()}


def text_model(**options):
    return varied(TextTransformer(3, WORDS, max_length=9, **{**OPTIONS, **options}))


def image_model(**options):
    return varied(VisionTransformer(3, 2, 6, 3, **{**OPTIONS, **options}))


CASES = {
    "texts": (text_model, text_outputs, lambda *shape: texts(*shape)),
    "images": (image_model, image_outputs, lambda *shape: torch.randn(*shape, 2, 6, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_torchs_layers(name):
    make, function, inputs = CASES[name]
    model, x = make(), inputs(6)
    torch.testing.assert_close(model(x), function(dict(model.named_parameters()), x))


@pytest.mark.parametrize(("name", "compile"), [("texts", None), ("images", False)])
def test_maml_has_the_naive_meta_gradient(name, compile, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)
    make, function, inputs = CASES[name]
    model, labels = make(depth=1), torch.tensor([[0, 1, 2, 1], [2, 1, 0, 0]])
    learner = MAML(model, inner_lr=0.1, inner_steps=2, compile=compile)
    for _ in range(2):  # in Python, and recorded in the same call where steps are; then the recording alone
        batch = Episode(inputs(2, 4), labels, inputs(2, 4), labels)
        expected = naive_meta_gradient(function, model, batch, 0.1, 2)
        loss, found = meta_gradient(learner, batch)
        torch.testing.assert_close(loss, expected[0])
        assert_same(found, expected[1])
    assert compile is False or learner._mapping._recorder.recordings()


def test_attention_has_second_derivatives_under_torchs_own_settings():
    layer, x = SelfAttention(4, 2), torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    assert torch.autograd.gradgradcheck(lambda y, w: _with(layer, w)(y, mask), (x, layer.inputs.weight))


def _with(layer, weight):
    return lambda *arguments: functional_call(layer, {"inputs.weight": weight}, arguments)


def test_layer_norm_is_torchs():
    ours, theirs = TaskLayerNorm(5), nn.LayerNorm(5)
    with torch.no_grad():
        ours.weight.normal_()
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def padded(x, places):
    """The same words with padding of any content at some places."""
    length, rows = x["input_ids"].shape[1] + len(places), len(x["input_ids"])
    kept = [i for i in range(length) if i not in places]
    ids, mask = torch.randint(WORDS, (rows, length)), torch.zeros(rows, length, dtype=torch.long)
    ids[:, kept], mask[:, kept] = x["input_ids"], x["attention_mask"]
    return {"input_ids": torch.where(mask != 0, ids, torch.randint(WORDS, (rows, length))), "attention_mask": mask}


@pytest.mark.parametrize("places", [(5, 6, 7), (0, 1), (0, 2, 5), ()])
def test_padding_does_not_count_whatever_and_wherever_it_is(places):
    model, x = text_model(), texts(6)
    found, expected = [], []
    for one, results in ((padded(x, places), found), (x, expected)):
        results.append(model(one))
        results += torch.autograd.grad(results[0].square().sum(), list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_order_and_company_of_words_count():
    model, mask = text_model(), torch.ones(1, 3)
    first, swapped, other = (
        model({"input_ids": torch.tensor([ids]), "attention_mask": mask}) for ids in ([2, 3, 4], [3, 2, 4], [2, 3, 5])
    )
    assert (first - swapped).abs().max() > 1e-3
    assert (first - other).abs().max() > 1e-3


def test_texts_without_words_have_the_vector_0_and_finite_gradients():
    model, x = text_model(), {"input_ids": torch.randint(WORDS, (2, 4)), "attention_mask": torch.zeros(2, 4)}
    assert torch.equal(model(x), model.head.bias.expand(2, 3))
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not model.embedding.weight.grad.any()


@pytest.mark.parametrize("name", CASES)
def test_tasks_of_different_sizes_are_computed_together_as_if_alone(name):
    make, function, inputs = CASES[name]
    model = make()
    learner = MAML(model, inner_lr=0.1, compile=False)
    seen, own = [], learner._mapping._summed_gradients
    learner._mapping._summed_gradients = lambda meta, piece: seen.append(piece.num_tasks) or own(meta, piece)
    tasks = [
        Episode(inputs(support), torch.arange(support) % 3, inputs(query), torch.arange(query) % 3)
        for support, query in [(4, 6), (7, 3), (5, 5)]
    ]
    found = meta_gradient(learner, collate_episodes(tasks))[1]
    alone = [naive_meta_gradient(function, model, collate_episodes([one]), 0.1, 1)[1] for one in tasks]
    assert_same(found, {n: sum(own[n] for own in alone) / 3 for n in found})
    assert seen == [3]


@pytest.mark.parametrize("name", CASES)
def test_dropout_is_for_training_alone(name):
    make, _, inputs = CASES[name]
    model, x = make(drop_rate=0.5), inputs(4)
    assert not torch.equal(model(x), model(x))
    model.eval()
    plain = make()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TextTransformer(heads=3), "heads=3 must divide embedding_size=128"),
        (lambda: TextTransformer(max_length=0), "max_length=0"),
        (lambda: TextTransformer(num_classes=0), "num_classes=0 must be an integer of at least 1"),
        (lambda: TextTransformer(hidden=0), "hidden=0 must be an integer of at least 1"),
        (lambda: text_model()(texts(2, length=10)), "10 places for words and max_length=9"),
        (
            lambda: text_model()({"input_ids": torch.tensor([[12]]), "attention_mask": torch.tensor([[1]])}),
            r"not in \[0, 12\): set the model's vocabulary_size",
        ),
        (lambda: VisionTransformer(image_size=30, patch_size=4), "patch_size=4 must divide image_size=30"),
        (lambda: VisionTransformer(drop_rate=-0.1), "drop_rate=-0.1 must lie in"),
        (lambda: VisionTransformer(num_classes=-1), "num_classes=-1 must be an integer of at least 1"),
        (lambda: image_model()(torch.randn(2, 2, 9, 6)), "images of 9 × 6 pixels, and image_size=6"),
    ],
)
def test_wrong_arguments_and_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sizes():
    model = TextTransformer(None, vocabulary_size=WORDS, embedding_size=8)
    assert model(texts(3)).shape == (3, 8)
    assert model.encoder.blocks[0].linear1.out_features == 32
    assert VisionTransformer(None, embedding_size=8)(torch.randn(3, 3, 32, 32)).shape == (3, 8)
