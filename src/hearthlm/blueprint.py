"""What model a checkpoint is, its family, its architecture and MediaPipe's type for it; and what it has beyond that."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hearthlm.errors import TensorMismatchError, UnsupportedModelError
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.llm_parameters import llm_parameters
from hearthlm.models import FAMILIES, read_config
from hearthlm.models.family import Family, TensorSpec
from hearthlm.models.model_types import MODEL_TYPES, ModelType
from hearthlm.models.params import Architecture
from hearthlm.runtime.checkpoint_source import CheckpointSource

_log = logging.getLogger("hearthlm")

# In a checkpoint, but of no use to the text model.
_OTHER_PARTS = re.compile(r"(^|\.)(vision_tower|vision_model|multi_modal_projector|audio_tower)\.")
_COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")
_IN_A_LAYER = re.compile(r"(^|\.)(layers|h)\.\d+\.")


def blueprint(
    checkpoint: Checkpoint,
    source: CheckpointSource,
    model_type: str | None,
    *,
    num_heads: int | None,
    head_dim: int | None,
) -> tuple[Family, Architecture, ModelType | None]:
    """Return a checkpoint's family, architecture and MediaPipe's type, None where it has none for such a model.

    `model_type` is MediaPipe's name, a family's in capitals, or None for what config.json says. Without config.json the
    sizes are those of the tensors; `num_heads` or `head_dim` then tell the heads apart. Raises TensorMismatchError for
    a checkpoint of another kind than `model_type`, UnsupportedModelError where nothing says what it is.
    """
    named = None if model_type is None else MODEL_TYPES.get(model_type)
    wanted_family = None
    if model_type is not None:
        wanted_family = model_type.lower() if named is None else named.family
    where = f"{source.path}: model_type {model_type}"
    if checkpoint.config is not None:
        family, architecture = read_config(checkpoint.config)
        if isinstance(checkpoint.config.get("text_config"), dict):
            _log.warning("%s: the model's vision part is left out; only the text part is converted", source.path)
        for name, given, value in (
            ("num_heads", num_heads, architecture.num_heads),
            ("head_dim", head_dim, architecture.head_dim),
        ):
            if given not in (None, value):
                raise TensorMismatchError(f"{source.path}: {name}: expected {value}, as config.json says, got {given}")
    elif named is not None:
        family, architecture = read_config(_config_from_shapes(source, named, num_heads, head_dim))
    else:
        raise UnsupportedModelError(
            f"{source.path}: there is no config.json beside the weights; model_type must be one of "
            f"{', '.join(MODEL_TYPES)}"
        )
    if wanted_family is not None and family.name != wanted_family:
        raise TensorMismatchError(f"{where}: the checkpoint is of the family {family.name}, not {wanted_family}")
    if named is None and model_type is not None:
        return family, architecture, None
    types = [model_type for model_type in MODEL_TYPES.values() if model_type.family == family.name]
    sizes = (architecture.embedding_dim, architecture.num_heads, architecture.num_layers, architecture.head_dim)
    published = [model_type for model_type in types if model_type.dimensions == sizes]
    if named is not None and published and named not in published:
        raise TensorMismatchError(
            f"{where}: the checkpoint has the dimensions of {published[0].name}; "
            f"pass model_type={published[0].name!r} or None"
        )
    if named is None:
        named = min(types, key=lambda t: (t not in published, abs(t.dimensions[0] - sizes[0])), default=None)
    if named is None:
        return family, architecture, None
    has_both = "embedding" in family.bin_names and "logits" in family.bin_names
    untied = replace(architecture, tied_embedding=False) if has_both else architecture  # as MediaPipe's files are
    try:
        llm_parameters(untied, family, named.number)
    except UnsupportedModelError as error:
        if model_type is not None:
            raise UnsupportedModelError(
                f"{where}: {error}; model_type={family.name.upper()!r} writes a file for hearthlm alone"
            ) from None
        return family, architecture, None
    return family, untied, named


def left_over(
    checkpoint: Checkpoint, specs: Iterable[TensorSpec], source: CheckpointSource, ignored: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return the checkpoint's tensors that are none of `specs`, nor `ignored`.

    Raises TensorMismatchError for one that belongs to the layers of the model.
    """
    used = {source.name_of(spec) for spec in specs} | set(ignored)
    names = [name for name in checkpoint.names if name not in used]
    for name in names:
        if _IN_A_LAYER.search(name) and not _OTHER_PARTS.search(name) and not _COMPUTED.search(name):
            raise TensorMismatchError(
                f"{source.path}: the model has no place for the tensor {name[:120]!r}, which would change its "
                "answers; is model_type right?"
            )
    return tuple(names)


def _config_from_shapes(
    source: CheckpointSource, named: ModelType, num_heads: int | None, head_dim: int | None
) -> dict[str, Any]:
    """Return the published model's config.json with the sizes that the tensors have."""
    published = dict(named.config)
    family = FAMILIES[named.family]
    heads, dim = published["num_attention_heads"], published["hidden_size"]
    published_head_dim = published.get("head_dim", dim // heads)

    def shape(role: str) -> tuple[int, ...]:
        stored = family.checkpoint_names[role]
        name = (stored if isinstance(stored, str) else stored.name).replace("{i}", "0")
        found = source.find(name)
        size = () if found is None else source.shape(found)
        if len(size) != 2:
            raise TensorMismatchError(
                f"{source.path}: model_type {named.name}: expected a matrix {name}, got "
                f"{'none' if found is None else list(size)}"
            )
        return size

    vocab_size, embedding_dim = shape("embedding")
    query, key = shape("layers.{i}.attention.query")[0], shape("layers.{i}.attention.key")[0]
    if not isinstance(family.checkpoint_names["layers.{i}.attention.query"], str) and (
        family.checkpoint_names["layers.{i}.attention.query"] == family.checkpoint_names["layers.{i}.attention.key"]
    ):
        query = key = query // 3  # one tensor for the three
    head_dim = head_dim or (query // num_heads if num_heads else published_head_dim)
    if query % head_dim or key % head_dim or (num_heads and query != num_heads * head_dim):
        raise TensorMismatchError(
            f"{source.path}: model_type {named.name}: {query} rows of the query and {key} of the key are no "
            f"heads of {head_dim}; say num_heads or head_dim"
        )
    norm = family.checkpoint_names["layers.{i}.attention_norm.scale"]
    assert isinstance(norm, str)  # no family joins its norms
    num_layers = 0
    while source.find(norm.replace("{i}", str(num_layers))) is not None:
        num_layers += 1
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": embedding_dim,
        "num_hidden_layers": num_layers,
        "num_attention_heads": query // head_dim,
        "intermediate_size": shape("layers.{i}.feed_forward.up")[0],
        "ffn_hidden_size": shape("layers.{i}.feed_forward.up")[0],
        "num_key_value_heads": key // head_dim,
        "head_dim": head_dim,
        # Either the head's length or what the embedding has for each head: see AttentionScaleType.
        "query_pre_attn_scalar": head_dim
        if published.get("query_pre_attn_scalar") == published_head_dim
        else embedding_dim // (query // head_dim),
        # MediaPipe's rotary channels come in pairs.
        "partial_rotary_factor": int(head_dim * published.get("partial_rotary_factor", 0)) // 2 * 2 / head_dim,
    }
    return published | {name: value for name, value in sizes.items() if name in published}
