"""Tokenizers of Hugging Face, made here."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from pathlib import Path

import pytest
import torch

from lightning_meta import TextDataModule
from lightning_meta.data.text.preparation import TextPreparation
from lightning_meta.data.text.tokenizer import Tokenizer
from tests.data.text.look_alikes import OPTIONS, write_requests

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
WORDS = ["[UNK]", "[CLS]", "[SEP]", "please", "do", "now", "[PAD]"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path):
    """A folder with a tokenizer whose padding has the id 6, and which cuts texts off by itself."""
    fast = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    fast.enable_truncation(3)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]")
    wrapped.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_ids_are_the_tokenizers(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.size == 7
    assert tokenizer.lengths(["please do", "now now now now"]) == [4, 6]
    for _ in range(2):  # what one call sets does not stay
        found = tokenizer.encode(["please fly now", "do"], max_length=4)
        assert found["input_ids"].tolist() == [[1, 3, 0, 2], [1, 4, 2, 6]]
        assert found["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
        assert tokenizer.lengths(["now now now now"]) == [6]


def test_a_data_module_keeps_the_whole_tokenizer(folder, tmp_path):
    data = TextDataModule(write_requests(tmp_path / "r.csv"), tokenizer=folder, **OPTIONS)
    data.setup("fit")
    task = data.episodes("train")[0]
    assert task.support_x["input_ids"][:, :4].tolist() == [[1, 3, 4, 0]] * 2
    assert data.preparation.max_length == 7  # five words, and the two around them
    state = data.preparation.state()
    (tmp_path / "tokenizer").rename(tmp_path / "away")
    torch.save(state, tmp_path / "state.pt")
    again = TextPreparation.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state() == state
    assert again.vocabulary_size == 7
    expected = data.episodes("test").dataset.tensors
    for name, leaf in again.inputs(data.texts()["test"]).items():
        assert torch.equal(leaf, expected[name])


def test_nothing_is_downloaded_unless_asked(tmp_path):
    data = TextDataModule(write_requests(tmp_path / "r.csv"), tokenizer="nobody/no-model", **OPTIONS)
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match="tokenizer='nobody/no-model' is neither.*set download=True"):
        data.setup("fit")


def test_code_beside_a_tokenizer_is_not_run(folder, tmp_path):
    path = Path(folder, "tokenizer_config.json")
    own = {"auto_map": {"AutoTokenizer": ["code.Own", "code.Own"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    Path(folder, "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\nclass Own: pass\n")
    with contextlib.suppress(ValueError, FileNotFoundError):
        Tokenizer.load(folder)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("download", [False, True])
def test_only_preparation_of_data_downloads(tmp_path, monkeypatch, download):
    calls = []

    def load(name, **options):
        calls.append((name, options["local_files_only"], options["trust_remote_code"]))
        raise OSError

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    data = TextDataModule(write_requests(tmp_path / "r.csv"), tokenizer="some/model", download=download, **OPTIONS)
    for stage in (data.prepare_data, lambda: data.setup("fit")):
        with contextlib.suppress(FileNotFoundError):
            stage()
    assert calls == [("some/model", False, False)] * download + [("some/model", True, False)]


def test_without_the_packages_the_cure_is_named(monkeypatch):
    for package in ("tokenizers", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-meta\[text\]'"):
        Tokenizer.load("some/model")
    with pytest.raises(ImportError, match=r"pip install 'lightning-meta\[text\]'"):
        Tokenizer("{}")
