"""What a model is: data only. One file per family; `params.py` is the vocabulary in which they speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hearthlm.errors import UnsupportedModelError
from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.falcon import FALCON
from hearthlm.models.family import Family
from hearthlm.models.gemma import GEMMA
from hearthlm.models.gemma2 import GEMMA2
from hearthlm.models.gemma3 import GEMMA3
from hearthlm.models.gpt2 import GPT2
from hearthlm.models.llama import LLAMA
from hearthlm.models.mistral import MISTRAL
from hearthlm.models.olmo2 import OLMO2
from hearthlm.models.params import Architecture
from hearthlm.models.phi import PHI
from hearthlm.models.phi3 import PHI3
from hearthlm.models.qwen import QWEN2, QWEN3
from hearthlm.models.smollm3 import SMOLLM3
from hearthlm.models.stablelm import STABLELM

_ALL = (FALCON, GEMMA, GEMMA2, GEMMA3, GPT2, LLAMA, MISTRAL, OLMO2, PHI, PHI3, QWEN2, QWEN3, SMOLLM3, STABLELM)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}

_BY_CONFIG_TYPE = {name: family for family in FAMILIES.values() for name in family.config_types}

# Models of text and images: their text part lies in `text_config`, its tensors under another prefix. The fields beside
# it say how images become tokens.
_TEXT_PARTS = {"gemma3": "gemma3_text"}
_OF_OTHER_PARTS = (
    "text_config",
    "vision_config",
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "mm_tokens_per_image",
)


def read_config(config: Mapping[str, Any]) -> tuple[Family, Architecture]:
    """Return family and architecture of a Hugging Face `config.json`.

    Raises UnsupportedModelError, naming the field, for what is not known or would change the result.
    """
    where = "config.json"
    model_type = str(config.get("model_type"))
    if model_type in _TEXT_PARTS:
        text_type, text = _TEXT_PARTS[model_type], config.get("text_config")
        if not isinstance(text, dict):
            raise UnsupportedModelError(f"{where}: text_config: expected an object, got {text!r:.80}")
        outer = ConfigFields(config, where)
        outer.require("tie_word_embeddings", text.get("tie_word_embeddings", True))
        for name in _OF_OTHER_PARTS:
            outer.get(name)
        outer.finish()
        config, where = {"model_type": text_type, **text}, f"{where}: text_config"
        ConfigFields(config, where).require("model_type", text_type)
        model_type = text_type
    family = _BY_CONFIG_TYPE.get(model_type)
    if family is None:
        known = ", ".join(sorted({*_BY_CONFIG_TYPE, *_TEXT_PARTS}))
        raise UnsupportedModelError(f"{where}: model_type {model_type!r} is not supported; known: {known}")
    fields = ConfigFields(config, where)
    architecture = family.read_config(fields)
    fields.finish()
    return family, architecture
