"""Give the model of a `.task` other turns: take it apart, make it again, see what it holds: `bundle.py [BUNDLE]`."""

import sys
import tempfile
from pathlib import Path

import hearthlm
from hearthlm import bundler

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "litert"  # a toy that MediaPipe's bundler wrote
source = sys.argv[1] if sys.argv[1:] else GOLDEN / "gemma3_q8_ekv128.task"
with tempfile.TemporaryDirectory() as folder:
    model, tokenizer, *_ = bundler.extract_bundle(source, folder).files
    old = hearthlm.inspect_file(source)
    config = bundler.BundleConfig(
        tflite_model=model,
        tokenizer_model=tokenizer,  # or a Hugging Face tokenizer.json, or the folder with it
        start_token=old.metadata["start_token"],
        stop_tokens=old.metadata["stop_tokens"],
        output_filename=Path(folder) / "again.task",
        system_prompt="You are brief.",
        prompt_prefix_user="<start_of_turn>user\n",
        prompt_suffix_user="<end_of_turn>\n",
        prompt_prefix_model="<start_of_turn>model\n",
        prompt_suffix_model="<end_of_turn>\n",
    )
    new = hearthlm.inspect_file(bundler.create_bundle(config))
    print("signatures:", *(signature["name"] for signature in new.metadata["signatures"]))
    print("context:", new.metadata["kv_cache"]["num_tokens"], "tokens")
    print("before the conversation:", repr(new.templates.session_prefix))
