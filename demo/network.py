"""The demo model's network: Gemma 3 (text) as Hugging Face transformers defines it, in plain torch, for training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.models import read_config
from hearthlm.quantization import dequantize


@dataclass(frozen=True)
class NetworkConfig:
    """The architecture's sizes; the defaults are the shipped demo model's."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 640
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    sliding_window: int = 512
    max_positions: int = 1024
    global_every: int = 6
    local_rope_base: float = 10_000.0
    global_rope_base: float = 1_000_000.0
    rms_norm_eps: float = 1e-6

    def is_global(self, layer: int) -> bool:
        """Say whether a layer attends to the whole context (every sixth does) or to the sliding window."""
        return (layer + 1) % self.global_every == 0


class RMSNorm(nn.Module):
    """Normalise by the root mean square, times (1 + weight)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x32 * (1.0 + self.weight)).type_as(x)


def rope_tables(positions: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines, each [positions, head_dim], for the half-split rotation."""
    frequencies = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [batch, heads, positions, head_dim] by the tables' angles."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with a norm on every query and key head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        head_dim = self.config.head_dim
        q = self.q_norm(self.q_proj(x).view(batch, length, -1, head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, -1, head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeats = self.config.num_heads // self.config.num_kv_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        y = F.scaled_dot_product_attention(q, k.type_as(q), v.type_as(q), attn_mask=mask.type_as(q))
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        return out


class MLP(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x))."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One block: a norm before and after attention, a norm before and after the MLP."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), cos, sin, mask))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Body(nn.Module):
    """Embedding, layers and the last norm: ids [batch, positions] -> hidden [batch, positions, hidden_size]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        for name, base in (("local", config.local_rope_base), ("global", config.global_rope_base)):
            cos, sin = rope_tables(config.max_positions, config.head_dim, base)
            self.register_buffer(f"{name}_cos", cos, persistent=False)
            self.register_buffer(f"{name}_sin", sin, persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.embed_tokens(ids) * self.config.hidden_size**0.5
        for index, layer in enumerate(self.layers):
            name = "global" if self.config.is_global(index) else "local"
            x = layer(x, getattr(self, f"{name}_cos")[:length], getattr(self, f"{name}_sin")[:length], mask)
        out: Tensor = self.norm(x)
        return out


class Network(nn.Module):
    """The language model; the output matrix is the embedding. Parameters are named as Gemma3ForCausalLM names them."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=config.hidden_size**-0.5 * (1.0 if "embed" in name else 0.7))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute logits [batch, positions, vocab_size]; mask is additive, [batch or 1, 1, positions, positions]."""
        return F.linear(self.model(ids, mask), self.model.embed_tokens.weight)


def causal_mask(length: int) -> Tensor:
    """Build the additive mask [1, 1, length, length] of one undivided text no longer than the sliding window."""
    return torch.full((length, length), float("-inf")).triu(1)[None, None]


def packed_mask(documents: Tensor) -> Tensor:
    """Build the additive mask [batch, 1, length, length] of rows of several texts, from each token's text number."""
    length = documents.shape[1]
    allowed = (documents[:, :, None] == documents[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))[:, None]


def hugging_face_config(config: NetworkConfig) -> dict[str, object]:
    """Describe the network in the schema of transformers 4's `Gemma3TextConfig`."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.global_rope_base,
        "rope_local_base_freq": config.local_rope_base,
        "rope_scaling": None,
        "sliding_window": config.sliding_window,
        "sliding_window_pattern": config.global_every,
        "layer_types": [
            "full_attention" if config.is_global(layer) else "sliding_attention" for layer in range(config.num_layers)
        ],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "torch_dtype": "float32",
    }


def save_hugging_face(network: Network, tokenizer: bytes, folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hugging_face_config(network.config), indent=2) + "\n")
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.model").write_bytes(tokenizer)


def load_hugging_face(folder: Path) -> Network:
    """Read back what `save_hugging_face` wrote."""
    described = json.loads((folder / "config.json").read_text())
    network = Network(
        NetworkConfig(
            vocab_size=described["vocab_size"],
            hidden_size=described["hidden_size"],
            intermediate_size=described["intermediate_size"],
            num_layers=described["num_hidden_layers"],
            num_heads=described["num_attention_heads"],
            num_kv_heads=described["num_key_value_heads"],
            head_dim=described["head_dim"],
            sliding_window=described["sliding_window"],
            max_positions=described["max_position_embeddings"],
        )
    )
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.eval()
    return network


def load_model_bin(path: Path) -> tuple[Network, bytes]:
    """Read a demo model in MediaPipe's `.bin` format, of the default sizes, and its tokenizer."""
    network, tensors = Network(NetworkConfig()), {}
    with WeightsBin.open(path) as file:
        family, architecture = read_config(hugging_face_config(network.config))
        for spec in family.tensors(architecture):
            name, size = spec.bin_names[0], spec.shape[0]
            is_matrix = len(spec.shape) == 2
            values = dequantize(file.matrix(name, (size, spec.shape[1]))) if is_matrix else file.vector(name, size)
            tensors[spec.checkpoint_name] = torch.from_numpy(np.array(values))
        network.load_state_dict(tensors)
        return network, file.tokenizer or b""
