"""Checkpoints that are damaged, endless, or hold other content are refused."""

from __future__ import annotations

import io
import pickle
import random
import warnings
import zipfile

import lightning as L
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, SinusoidDataModule
from lightning_meta.checkpoints import content as checkpoint_content
from tests.checkpoints.saved import QUIET, changed, deep, save


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_told(tmp_path, kept):
    path = save(MAML(MLP(8, 3)), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(RuntimeError, match="learner.ckpt cannot be read: it was cut short or is no checkpoint"):
        MAML.load_from_checkpoint(path)
    with pytest.raises(RuntimeError, match="cannot be read: it was cut short"):
        MAML.load_from_checkpoint(io.BytesIO(path.read_bytes()))


def test_a_flipped_bit_never_loads_as_something_else(tmp_path):
    """Flips that load anyway, in names of archive members' padding and the like, leave every value as it is."""
    path = save(MAML(MLP(hidden=(8,)), nn.MSELoss(), inner_lr=0.02), tmp_path)
    whole, content = torch.load(path), path.read_bytes()
    draw, refused = random.Random(0), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            flipped = bytearray(content)
            flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            try:
                loaded = MAML.load_from_checkpoint(io.BytesIO(bytes(flipped)))
            except (RuntimeError, pickle.UnpicklingError):
                refused += 1
                continue
            assert loaded.inner_lr == 0.02
            assert all(torch.equal(value, whole["state_dict"][key]) for key, value in loaded.state_dict().items())
    assert refused > 10


def test_flipped_weights_are_refused_by_the_trainer_too(tmp_path):
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    content, weights = path.read_bytes(), torch.load(path)["state_dict"]["model.layers.0.weight"].numpy().tobytes()
    assert content.count(weights) == 1
    path.write_bytes(content.replace(weights, bytes([weights[0] ^ 1]) + weights[1:]))
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    with pytest.raises(RuntimeError, match="it is damaged, .* differs from its checksum; take an earlier one"):
        trainer.test(MAML(MLP(), nn.MSELoss()), SinusoidDataModule(test_tasks=5), ckpt_path=path)
    torch.load(path)  # torch does not see it


def test_a_compressed_file_is_refused_unread(tmp_path):
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    with pytest.raises(RuntimeError, match="it is compressed, as no checkpoint is"):
        MAML.load_from_checkpoint(tmp_path / "bomb.ckpt")


def test_other_content_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(RuntimeError, match="holds a list and is no checkpoint"):
        MAML.load_from_checkpoint(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="not saved by a TaskLearner"):
        MAML.load_from_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(FileNotFoundError):
        MAML.load_from_checkpoint(tmp_path / "nowhere.ckpt")


def doubled(levels):
    value = ["a"]
    for _ in range(levels):
        value = [value, value]
    return value


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "entries",
    [
        {"inner_lr": doubled(60)},
        {"inner_lr": deep(200)},
        {"inner_lr": endless()},
        {"__meta_learner_class": doubled(60)},
        {"__meta_learner_arguments": {"loss_fn": doubled(60)}},
        {"__more": {"in": {"a dictionary": doubled(60)}}},
        {"__more": torch.zeros(1).expand(100_000, 100_000)},
    ],
)
def test_content_without_end_is_refused(tmp_path, entries, monkeypatch):
    monkeypatch.setattr(checkpoint_content, "MOST_VALUES", 20_000)  # to reach it sooner
    path = changed(save(MAML(MLP(8, 3)), tmp_path), **entries)
    with pytest.raises(RuntimeError, match="changed.ckpt is refused: it"):
        MAML.load_from_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state_dict", None),
        ("state_dict", {1: torch.ones(1)}),
        ("hyper_parameters", [1]),
        ("callbacks", [1]),
        ("meta_learner_class", ["a"]),
        ("meta_learner_left_out", {"model": 3}),
        ("meta_learner_arguments", 5),
        ("meta_learner_random_seed", "%99999999999d"),
        ("meta_learner_random_seed", True),
        ("meta_learner_gradients", "lost"),
        ("meta_learner_recordings", [1]),
    ],
)
def test_entries_of_other_types_are_told(tmp_path, name, value):
    path = changed(save(MAML(MLP(8, 3)), tmp_path), **{f"__{name}": value})
    with pytest.raises(ValueError, match=f"the checkpoint's {name} "):
        MAML.load_from_checkpoint(path)


@pytest.mark.parametrize("gradients", [{}, {"gradients": 3}, {"gradients": {"model.layers.0.weight": torch.ones(3)}}])
def test_gradients_of_other_shapes_are_told(tmp_path, gradients):
    path = changed(save(MAML(MLP(), nn.MSELoss()), tmp_path), __meta_learner_gradients=gradients)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="meta_learner_gradients are no tensors"):
        trainer.fit(MAML(MLP(), nn.MSELoss()), SinusoidDataModule(train_tasks=25, val_tasks=5), ckpt_path=path)


@pytest.mark.parametrize(
    "model",
    [
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 10**8, "out_features": 10**8}},
        {"class_path": "lightning_meta.MLP", "init_args": {"hidden": [10**8, 10**8]}},
    ],
)
def test_a_model_larger_than_the_file_is_not_built(tmp_path, model):
    path = changed(save(MAML(MLP(8, 3)), tmp_path), model=model)
    with pytest.raises(ValueError, match="has more weights than the checkpoint holds: pass model=..."):
        MAML.load_from_checkpoint(path)


def test_a_file_that_readers_could_read_differently_is_refused(tmp_path):
    path = save(MAML(MLP(8, 3)), tmp_path)
    whole, old = path.read_bytes(), io.BytesIO()
    torch.save(torch.load(path), old, _use_new_zipfile_serialization=False)
    comment = whole[:-2] + b"\4\0junk"
    for content in (old.getvalue() + whole, whole + b"junk", whole + whole, b"junk" + whole, comment):
        with pytest.raises(RuntimeError, match="it was cut short or is no checkpoint"):
            MAML.load_from_checkpoint(io.BytesIO(content))
    stream = io.BytesIO(b"junk" + whole)
    stream.seek(4)
    assert isinstance(MAML.load_from_checkpoint(stream), MAML)


def test_a_bytearray_is_refused_unbuilt(tmp_path):
    pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R."
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "bytes.ckpt"))
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_end_of_file()
    with pytest.raises(RuntimeError, match="it holds a bytearray"):
        MAML.load_from_checkpoint(tmp_path / "bytes.ckpt")
