"""Text encoders of Hugging Face's transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_count

# Their attention takes a mask as it is. Other kinds look into its values, which cannot be vectorized over tasks.
_KINDS = ("bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta")
_NEEDS = "models of Hugging Face need: pip install 'lightning-meta[text]'"


class HuggingFaceEncoder(nn.Module):
    """A transformer of Hugging Face, the mean of its outputs over a text's words, and a linear head.

    Weights are random; `pretrained_encoder` loads trained ones. Checkpoints keep the configuration and all weights, so
    that a learner can be loaded without the model's files.

    Dropout is active in training only. Few-shot learners often do better with the configuration's dropout at 0.

    Args:
        config: The transformer's configuration, as in ``config.json``: ``model_type`` and its values.
        num_classes: Outputs; the ways of the episodes, or for metric learners the size of the embedding.

    Raises:
        ValueError: If the model is of a kind that is not known to work, or a value of the configuration is wrong.
        ImportError: If the package ``transformers`` is not installed.
    """

    def __init__(self, config: dict[str, Any], num_classes: int = 5) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.config = _plain(config)
        self.num_classes = num_classes
        kind = self.config.pop("model_type", None)
        if kind not in _KINDS:
            raise ValueError(f"model_type={kind!r} of the configuration is not one of {', '.join(_KINDS)}")
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise ImportError(_NEEDS) from error
        described = AutoConfig.for_model(kind, **self.config)
        # The attention is named here, since a configuration could name code to download.
        self.encoder: Any = AutoModel.from_config(described, attn_implementation="sdpa", trust_remote_code=False)
        self.config["model_type"] = kind
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None  # its output is not used
        for module in self.encoder.modules():  # so that checkpoints hold all values, and describe the rest
            module._non_persistent_buffers_set.clear()
            vars(module).pop("_is_hf_initialized", None)
        self.head = nn.Linear(described.hidden_size, num_classes)

    @property
    def vocabulary_size(self) -> int:
        """The number of ids."""
        return self.encoder.get_input_embeddings().num_embeddings

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        """Return outputs ``[examples, num_classes]`` for texts ``[examples, length]``."""
        real = (texts["attention_mask"] != 0).to(self.head.weight.dtype)
        lowest = torch.finfo(real.dtype).min
        hidden = self.encoder(
            input_ids=texts["input_ids"], attention_mask=((1 - real) * lowest)[:, None, None, :]
        ).last_hidden_state  # [examples, length, hidden]
        mean = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        return self.head(mean)


def pretrained_encoder(name: str, num_classes: int = 5, download: bool = False) -> HuggingFaceEncoder:
    """Load a trained transformer of Hugging Face, with a new head.

    Only weights in the format safetensors are read; code beside them is never run.

    Args:
        name: A folder, or a name on Hugging Face's hub, such as ``"distilbert/distilbert-base-uncased"``. Give the
            data module the same name as its ``tokenizer``.
        num_classes: Outputs, as in `HuggingFaceEncoder`.
        download: Whether to download what this computer lacks.

    Raises:
        FileNotFoundError: If this computer lacks the model and ``download`` is False, or it has no safetensors.
        ValueError: If the model is of a kind that is not known to work.
        ImportError: If the package ``transformers`` is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    options = {"local_files_only": not download, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        model = HuggingFaceEncoder(config.to_dict(), num_classes)
        trained = AutoModel.from_pretrained(
            name, use_safetensors=True, attn_implementation="sdpa", dtype=torch.get_default_dtype(), **options
        )
    except OSError as error:
        raise FileNotFoundError(
            f"name={name!r} is neither a folder with a model of Hugging Face, in the format safetensors, nor "
            f"downloaded: correct it, or set download=True ({error})"
        ) from error
    model.encoder.load_state_dict(trained.state_dict(), strict=False)
    return model


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers and texts of a configuration, without those about code, files and number formats."""
    apart = ("auto_map", "attn_implementation", "dtype", "torch_dtype", "transformers_version", "name_or_path")
    return {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in apart and isinstance(value, int | float | str)
    }
