"""`hearthlm inspect`: what a file is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.terminal import columns, plain_text, print_json, short_number

if TYPE_CHECKING:
    from hearthlm import FileInfo, ModelInfo


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Describe a FILE (or folder) without reading its weights.

    Models (MediaPipe .bin, Hugging Face folders), adapters, .task bundles, saved sessions, bare weights, tokenizers.
    """
    info = hearthlm.inspect_file(file)
    if as_json:
        print_json(info.to_json())
    elif isinstance(info, hearthlm.ModelInfo):
        click.echo(_described(info))
    else:
        click.echo(_described_file(info))


def _described(info: ModelInfo) -> str:
    a = info.architecture
    windows = sorted({layer.window for layer in a.layers if layer.window is not None})
    num_local = sum(layer.window is not None for layer in a.layers)
    attention = f"{a.num_heads} heads, {a.num_kv_heads} for keys and values, of {a.head_dim}"
    if windows:
        attention += f"; {num_local} of {a.num_layers} layers see {windows[0]} tokens"
    tokenizer = "none" if info.tokenizer is None else f"{info.tokenizer['kind']}, {info.tokenizer['vocab_size']} pieces"
    lines = [
        ("format", {"weights_bin": "MediaPipe .bin", "checkpoint": "Hugging Face checkpoint"}[info.format]),
        ("model", f"{info.model_type} (family {info.family}), {short_number(info.num_parameters).rstrip()} parameters"),
        ("layers", f"{a.num_layers} of {a.embedding_dim}, hidden {a.hidden_dim}, {a.activation}"),
        ("attention", attention),
        ("vocabulary", f"{a.vocab_size} tokens"),
        ("context", f"{a.context_length} tokens"),
        ("tokenizer", tokenizer),
        ("start", f"token {info.start_id}" if info.start_id is not None else "none"),
        ("stop", ", ".join([*(f"token {i}" for i in info.stop_ids), *map(repr, info.stop_strings)]) or "none"),
        ("templates", "in the file" if info.prompt_templates.user.prefix else "none"),
    ]
    if info.metadata.get("backend"):
        lines.insert(1, ("layout", info.metadata["backend"]))
    return columns([*lines, *_tensor_lines(info)])


_FORMAT_NAMES = {
    "adapter": "PEFT adapter",
    "checkpoint": "Hugging Face checkpoint without config.json",
    "litertlm": "LiteRT-LM .litertlm",
    "lora_bin": "MediaPipe .bin of a LoRA adapter",
    "lora_tflite": "MediaPipe .tflite of a LoRA adapter",
    "safetensors": "safetensors without config.json",
    "session": "saved session",
    "task": "MediaPipe .task bundle",
    "tflite": "LiteRT .tflite",
    "tokenizer": "tokenizer",
    "torch_zip": "torch checkpoint without config.json",
}


def _described_file(info: FileInfo) -> str:
    lines = [("format", _FORMAT_NAMES.get(info.format, info.format))]
    if info.format in ("task", "tflite", "litertlm"):
        return columns([*lines, *_bundle_lines(info)])
    if info.tokenizer is not None:
        lines.append(("tokenizer", f"{info.tokenizer['kind']}, {info.tokenizer['vocab_size']} pieces"))
    for name, value in info.metadata.items():
        if value not in (None, "", []):
            lines.append(
                (
                    name.removeprefix("num_").replace("_", " "),
                    ", ".join(map(str, value)) if isinstance(value, list) else str(value),
                )
            )
    if info.templates is not None:
        lines.append(("templates", "in the file" if info.templates.user.prefix else "none"))
    return columns([*lines, *_tensor_lines(info)])


def _bundle_lines(info: FileInfo) -> list[tuple[str, str]]:
    """Describe a .task or .litertlm, or the LiteRT model alone."""
    data = info.metadata
    lines = []
    for entry in data.get("entries", ()):
        kind = f" ({entry['kind']})" if entry["kind"] else ""
        lines.append(("entry", f"{plain_text(entry['name'])}, {short_number(entry['bytes'])}B{kind}"))
    for signature in data.get("signatures", ()):
        tensors = [_tensor_list(signature[side]) for side in ("inputs", "outputs")]
        lines.append(("signature", f"{plain_text(signature['name'])}: {' -> '.join(tensors)}"))
    if (cache := data.get("kv_cache")) is not None:
        shapes = f"{cache['num_layers']} layers, {cache['dtype']}, keys {list(cache['key_shape'])}"
        lines.append(("KV cache", f"{cache['name']}, {shapes}, values {list(cache['value_shape'])}"))
        if cache["num_tokens"] is not None:
            axes = f"axis {cache['key_axis']} of the keys, {cache['value_axis']} of the values"
            lines.append(("context", f"{cache['num_tokens']} tokens ({axes})"))
    if data.get("lora_ranks"):
        lines.append(("LoRA", f"rank {', '.join(map(str, data['lora_ranks']))}"))
    if "problem" in data:
        lines.append(("problem", data["problem"]))
    if info.tokenizer is not None:
        spelling = ", in GPT-2's alphabet" if data.get("bytes_to_unicode") else ""
        lines.append(("tokenizer", f"{info.tokenizer['kind']}, {info.tokenizer['vocab_size']} pieces{spelling}"))
    if "start_token" in data:
        start = data["start_token"]
        lines.append(("start", plain_text(start) if isinstance(start, str) and start else _token_ids(start)))
        stops = (repr(stop) if isinstance(stop, str) else _token_ids(stop) for stop in data["stop_tokens"])
        lines.append(("stop", ", ".join(stops) or "none"))
        lines += [(f"{role} role", plain_text(token)) for role, token in data.get("role_tokens", {}).items()]
        if data["has_chat_template"]:
            lines.append(("chat", "a template in the file"))
        if data.get("pad_token") is not None:
            pad = data["pad_token"]
            lines.append(("pad", plain_text(pad) if isinstance(pad, str) else _token_ids(pad)))
        if data.get("llm_model_type") is not None:
            lines.append(("model type", ", ".join([plain_text(data["llm_model_type"]), *data["modalities"]])))
        if data.get("other_fields"):
            lines.append(("not read", ", ".join(data["other_fields"])))
        if sampler := {k: v for k, v in (data.get("sampler") or {}).items() if v is not None}:
            lines.append(("sampling", ", ".join(f"{name} {value}" for name, value in sampler.items())))
    if (templates := info.templates) is not None:
        if templates.session_prefix:
            lines.append(("system prompt", repr(templates.session_prefix)))
        turns = [(f"{role} turn", getattr(templates, role)) for role in ("user", "model", "system")]
        lines += [(role, f"{turn.prefix!r} ... {turn.suffix!r}") for role, turn in turns if turn.prefix or turn.suffix]
    return lines


def _token_ids(token: object) -> str:
    return f"token {', '.join(map(str, token))}" if isinstance(token, (tuple, list)) and token else "none"


_CACHE, _ADAPTER = re.compile(r"kv_cache_|[kv]_cache_"), re.compile(r"lora_")


def _tensor_list(tensors: dict[str, Any]) -> str:
    """Name the tensors of a signature; those of the KV cache and of an adapter are only counted."""
    cache = [name for name in tensors if _CACHE.match(name)]
    adapter = [name for name in tensors if _ADAPTER.match(name)]
    parts = [
        f"{plain_text(name)} {t['dtype']} {t['shape']}" for name, t in tensors.items() if name not in (*cache, *adapter)
    ]
    parts += [f"KV cache ({len(cache)})"] if cache else []
    parts += [f"adapter ({len(adapter)})"] if adapter else []
    return ", ".join(parts)


def _tensor_lines(info: ModelInfo | FileInfo) -> list[tuple[str, str]]:
    kinds: dict[str, tuple[int, int]] = {}
    for t in info.tensors:
        count, num_bytes = kinds.get(t.dtype, (0, 0))
        kinds[t.dtype] = (count + 1, num_bytes + t.num_bytes)
    return [("tensors", f"{n} {kind}, {short_number(size)}B") for kind, (n, size) in sorted(kinds.items())]
