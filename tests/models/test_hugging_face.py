"""Transformers of Hugging Face, small ones with random weights."""

from __future__ import annotations

import socket
import sys

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_meta import (
    ANIL,
    MAML,
    AmortizedMAML,
    Episode,
    HuggingFaceEncoder,
    ProtoNet,
    TextDataModule,
    TextEncoder,
    add_low_rank_adapters,
    collate_episodes,
    pretrained_encoder,
)
from lightning_meta.cli import main
from tests.data.text.look_alikes import OPTIONS, write_requests
from tests.reference import assert_same, loop_meta_gradient, meta_gradient

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "embedding_size": 8,
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
}
DISTILBERT = {
    **{"vocab_size": 50, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 16},
    **{"dropout": 0.0, "attention_dropout": 0.0},
}
KINDS = ["bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def encoder(kind="bert", num_classes=3):
    return HuggingFaceEncoder({"model_type": kind, **(DISTILBERT if kind == "distilbert" else SIZES)}, num_classes)


def texts(*shape, length=6):
    mask = torch.arange(length) < torch.randint(1, length + 1, (*shape, 1))
    return {"input_ids": torch.randint(2, 50, (*shape, length)) * mask, "attention_mask": mask.long()}


def batch(tasks=2):
    labels = torch.arange(6) % 3
    return collate_episodes([Episode(texts(6), labels, texts(6), labels) for _ in range(tasks)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
def test_output_is_the_head_of_the_mean_of_the_transformers_outputs(kind):
    model, x = encoder(kind).eval(), texts(5)
    hidden = model.encoder(**x).last_hidden_state
    means = [h[: int(m.sum())].mean(0) for h, m in zip(hidden, x["attention_mask"], strict=True)]
    torch.testing.assert_close(model(x), model.head(torch.stack(means)))
    assert model.vocabulary_size == 50


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
def test_maml_has_the_loops_meta_gradient(kind):
    model, tasks = encoder(kind), batch()
    loss, found = meta_gradient(MAML(model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=2), tasks)
    with sdpa_kernel(SDPBackend.MATH):
        expected_loss, expected = loop_meta_gradient(model, nn.CrossEntropyLoss(), tasks, 0.1, 2)
    torch.testing.assert_close(loss, expected_loss)
    assert_same(found, expected, 1e-8)


@pytest.mark.usefixtures("float64")
def test_low_rank_adapters_have_the_loops_meta_gradient():
    model, tasks = encoder(), batch()
    add_low_rank_adapters(model, rank=2, targets=["*.query", "*.value"], trained="head.*")
    for name, parameter in model.named_parameters():
        if "low_rank" in name:
            nn.init.normal_(parameter)
    learner = MAML(model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=2)
    assert len(learner.adapted_names) == 2 * 2 * 2 + 2
    _, found = meta_gradient(learner, tasks)
    with sdpa_kernel(SDPBackend.MATH):
        _, expected = loop_meta_gradient(model, nn.CrossEntropyLoss(), tasks, 0.1, 2)
    assert_same(found, expected, 1e-8)


@pytest.mark.parametrize(
    "learner",
    [ANIL, ProtoNet, AmortizedMAML, lambda *arguments: MAML(*arguments, adapt=["*LayerNorm*", "head.*"])],
    ids=["ANIL", "ProtoNet", "AmortizedMAML", "norms and head"],
)
def test_learners_take_it(learner):
    loss = learner(encoder(), nn.CrossEntropyLoss()).training_step(batch(), 0)
    assert loss.isfinite()


def test_checkpoints_need_no_files_of_the_model(tmp_path):
    data = TextDataModule(write_requests(tmp_path / "r.csv"), vocabulary_size=50, hash_buckets=10, **OPTIONS)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
    learner = ANIL(encoder(num_classes=2), nn.CrossEntropyLoss())
    trainer.fit(learner, data)
    loaded = ANIL.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    x = texts(4)
    torch.testing.assert_close(loaded.model.eval()(x), learner.model.eval()(x))


def test_a_trained_model_is_read_from_a_folder(tmp_path):
    config = transformers.BertConfig(**{**SIZES, "num_labels": 7})
    trained = transformers.AutoModelForSequenceClassification.from_config(config)
    trained.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    model, x = pretrained_encoder(str(tmp_path), num_classes=4).eval(), texts(3)
    expected = trained.eval().bert(**x).last_hidden_state
    torch.testing.assert_close(model.encoder(**x).last_hidden_state, expected)
    assert model(x).shape == (3, 4)


def test_nothing_is_downloaded_unless_asked():
    with pytest.raises(FileNotFoundError, match="name='nobody/no-model'.*set download=True"):
        pretrained_encoder("nobody/no-model")


def test_pickled_weights_are_not_read(tmp_path):
    trained = transformers.BertModel(transformers.BertConfig(**SIZES))
    trained.config.save_pretrained(tmp_path)
    torch.save(trained.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="in the format safetensors"):
        pretrained_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' of the configuration is not one of bert"),
        ({}, "model_type=None"),
    ],
)
def test_other_models_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceEncoder(config)


def test_a_configuration_cannot_name_code():
    code = {"auto_map": {"AutoModel": "code.Model"}, "attn_implementation": "someone/kernel"}
    model = HuggingFaceEncoder({"model_type": "bert", **SIZES, **code, "_attn_implementation": "someone/kernel"})
    assert model.encoder.config._attn_implementation == "sdpa"
    assert not hasattr(model.encoder.config, "auto_map")


def test_other_learners_steps_are_still_captured():
    learner = MAML(TextEncoder(3, 50, 4), nn.CrossEntropyLoss())
    if hasattr(nn.Module, "smart_apply"):  # which transformers adds when it makes its first model
        del nn.Module.smart_apply
    before = learner._mapping._world.state()
    encoder()
    assert hasattr(nn.Module, "smart_apply")
    assert learner._mapping._world.state() == before
    another = MAML(TextEncoder(3, 50, 4), nn.CrossEntropyLoss())
    assert another._mapping._world.state()


def test_a_trained_model_through_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained("bert")
    file = write_requests(tmp_path / "r.csv")
    learner = ["--model=ANIL", "--model.loss_fn=torch.nn.CrossEntropyLoss"]
    model = ["--model.model=lightning_meta.models.pretrained_encoder", "--model.model.name=bert"]
    data = ["--data=TextDataModule", f"--data.file={file}", "--data.vocabulary_size=50", "--data.hash_buckets=10"]
    few = [f"--data.{name}={value}" for name, value in OPTIONS.items()]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    cli = main(["fit", *learner, *model, "--model.model.num_classes=2", *data, *few, "--trainer.max_epochs=1", *quiet])
    assert isinstance(cli.model.model, HuggingFaceEncoder)
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    with pytest.raises(ValueError, match="pass model=..."):  # files may have changed: nothing is read unless asked
        ANIL.load_from_checkpoint(checkpoint)
    loaded, x = ANIL.load_from_checkpoint(checkpoint, model=HuggingFaceEncoder(cli.model.model.config, 2)), texts(3)
    torch.testing.assert_close(loaded.model.eval()(x), cli.model.model.eval()(x))


def test_without_the_package_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for make in (encoder, lambda: pretrained_encoder("some/model")):
        with pytest.raises(ImportError, match=r"pip install 'lightning-meta\[text\]'"):
            make()
