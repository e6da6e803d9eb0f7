"""See what a model file holds, without reading its weights."""

import sys

import hearthlm
from hearthlm.demo import model_path

info = hearthlm.inspect_model(sys.argv[1] if len(sys.argv) > 1 else model_path())
print(info.format, info.model_type, f"{info.num_parameters:,} parameters, {len(info.tensors)} tensors")
print(info.architecture.num_layers, "layers,", info.architecture.context_length, "tokens of context")
print("starts with", info.start_id, "and stops at", info.stop_ids, info.stop_strings)
