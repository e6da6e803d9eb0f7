"""The bundler: MediaPipe's bytes and errors, what it accepts beyond, and bundles taken apart."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from litert_models import litert_model
from test_hugging_face_to_sentencepiece import LLAMA_CONFIG, llama_like

import hearthlm
from hearthlm import bundler
from hearthlm.errors import BundleError, CorruptFileError, UnsupportedModelError
from hearthlm.formats.task_bundle import MODEL, TOKENIZER_JSON, TaskBundle, write_task_bundle
from hearthlm.tokenizers import byte_alphabet, from_hugging_face, from_sentencepiece
from hearthlm.tokenizers.hugging_face_to_sentencepiece import to_sentencepiece

GOLDEN = Path(__file__).parent / "golden"
INPUTS = GOLDEN / "inputs"
SPM = INPUTS / "spm64" / "tokenizer.model"
HUGGING_FACE = INPUTS / "hf_bpe"

USER, MODEL_TURN, SYSTEM, END = (
    "<start_of_turn>user\n",
    "<start_of_turn>model\n",
    "<start_of_turn>system\n",
    "<end_of_turn>\n",
)
TURNS = {
    "prompt_prefix_user": USER,
    "prompt_suffix_user": END,
    "prompt_prefix_model": MODEL_TURN,
    "prompt_suffix_model": END,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "bundle_min": {},
    "bundle_b2u": {"enable_bytes_to_unicode_mapping": True},
    "bundle_prompt": {"system_prompt": "SYS", "prompt_prefix": USER, "prompt_suffix": END + MODEL_TURN},
    "bundle_templates": {**TURNS, "prompt_prefix_system": SYSTEM, "prompt_suffix_system": END},
    "bundle_system_prompt": {"system_prompt": "You are helpful.", **TURNS},
    "bundle_roles": {
        "user_role_token": "<u>", "system_role_token": "<s>", "model_role_token": "<m>", "end_role_token": "<e>",
    },
    "bundle_aux": {
        "tflite_embedder": INPUTS / "aux_embedder.bin", "tflite_per_layer_embedder": INPUTS / "aux_ple.bin",
        "tflite_vision_encoder": INPUTS / "aux_venc.bin", "tflite_vision_adapter": INPUTS / "aux_vadp.bin",
    },
}  # fmt: skip
GOLDENS = sorted(GOLDEN.glob("outputs/*/bundle_*.task"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(litert_model())
    return path


def config(folder: Path, **changes: Any) -> bundler.BundleConfig:
    """Return a config of the small tokenizer and a model in `folder`, with changes."""
    settings: dict[str, Any] = {
        "tflite_model": folder / "model.tflite", "tokenizer_model": SPM, "start_token": "<bos>",
        "stop_tokens": ["<eos>", "<end_of_turn>"], "output_filename": folder / "out.task",
    }  # fmt: skip
    return bundler.BundleConfig(**(settings | changes))


def times(path: Path) -> set[int]:
    """Return where the times of entries lie in an archive, which are the only bytes that may differ."""
    found: set[int] = set()
    with zipfile.ZipFile(path) as archive:
        position = archive.start_dir
        for info in archive.infolist():
            found |= set(range(info.header_offset + 10, info.header_offset + 14))
            found |= set(range(position + 12, position + 16))
            position += 46 + len(info.filename)
    return found


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_bytes_are_those_of_mediapipe(golden: Path, tmp_path: Path) -> None:
    stub = INPUTS / "stub_model.tflite"
    settings = config(tmp_path, tflite_model=stub, check_model=False, **SETTINGS[golden.stem])
    ours, theirs = bundler.create_bundle(settings).read_bytes(), golden.read_bytes()
    assert len(ours) == len(theirs)
    assert {i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b} <= times(golden)


def test_every_golden_bundle_is_compared() -> None:
    assert len(GOLDENS) == 9
    assert {path.stem for path in GOLDENS} == set(SETTINGS)


def test_the_fields_are_those_of_mediapipe_in_its_order() -> None:
    positional = [field.name for field in dataclasses.fields(bundler.BundleConfig) if not field.kw_only]
    assert positional == [
        "tflite_model", "tokenizer_model", "start_token", "stop_tokens", "output_filename",
        "enable_bytes_to_unicode_mapping", "system_prompt",
        "prompt_prefix_user", "prompt_suffix_user", "prompt_prefix_model", "prompt_suffix_model",
        "prompt_prefix_system", "prompt_suffix_system",
        "user_role_token", "system_role_token", "model_role_token", "end_role_token",
        "tflite_embedder", "tflite_per_layer_embedder", "tflite_vision_encoder", "tflite_vision_adapter",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_tokens": "<eos>"}, "stop_tokens must be a list of strings."),
        ({"stop_tokens": [1]}, "stop_tokens must be a list of strings."),
        ({"stop_tokens": []}, "stop_tokens must be non-empty."),
        ({"stop_tokens": ["<eos>", ""]}, "stop_tokens must be non-empty."),
        ({"start_token": ""}, "start_token must be a non-empty string, got ''"),
        ({"start_token": 2}, "start_token must be a non-empty string, got 2"),
        (
            {"system_prompt": "x", "prompt_prefix_system": "y"},
            "system_prompt and prompt_*_system are mutually exclusive.",
        ),
        (
            {"system_prompt": "x", "prompt_suffix_system": "y"},
            "system_prompt and prompt_*_system are mutually exclusive.",
        ),
        (
            {"prompt_prefix": "x", "prompt_suffix_model": "y", "prompt_suffix_user": "z"},
            "prompt_prefix (MediaPipe 0.10.18 to 0.10.21) and prompt_suffix_user, prompt_suffix_model are mutually "
            "exclusive: give the turns of each role, or one prefix and suffix",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_an_error_at_once(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        config(tmp_path, **changes)
    assert str(caught.value) == message


def test_a_config_reads_nothing(tmp_path: Path) -> None:
    assert config(tmp_path / "nowhere").start_token == "<bos>"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bundler.create_bundle(config(tmp_path, tokenizer_model=tmp_path / "nowhere"))


def test_a_tokenizer_that_is_none_is_an_error_in_mediapipe_s_words(model: Path, tmp_path: Path) -> None:
    stub = INPUTS / "stub_model.tflite"
    with pytest.raises(ValueError, match="Failed to load tokenizer model from .*Please ensure you are passing a valid"):
        bundler.create_bundle(config(tmp_path, tokenizer_model=stub))
    assert not (tmp_path / "out.task").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"start_token": "<boss>"},
            "Failed to encode start token <boss> with tokenizer. Expected one of the 64 tokens",
        ),
        ({"start_token": "the quick"}, "Failed to encode start token the quick"),
        ({"stop_tokens": ["<eos>", "<end_of_turm>"]}, "Failed to encode stop token <end_of_turm> with tokenizer."),
        ({"stop_tokens": ["漢"]}, "Failed to encode stop token 漢"),
    ],
)
def test_tokens_that_could_never_be_met_are_refused(
    changes: dict[str, Any], reason: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=reason):
        bundler.create_bundle(config(tmp_path, **changes))


def test_an_answer_may_end_at_a_text_of_several_tokens(model: Path, tmp_path: Path) -> None:
    path = bundler.create_bundle(config(tmp_path, stop_tokens=["<eos>", "the quick"]))
    with TaskBundle.open(path) as bundle:
        assert list(bundle.parameters.stop_tokens) == ["<eos>", "the quick"]


def test_the_name_gets_its_ending_and_an_old_file_is_replaced(model: Path, tmp_path: Path) -> None:
    first = bundler.create_bundle(config(tmp_path, output_filename=str(tmp_path / "new" / "a.b")))
    assert first == tmp_path / "new" / "a.b.task"
    before = first.read_bytes()
    assert bundler.create_bundle(config(tmp_path, output_filename=first)) == first
    assert first.read_bytes() == before
    assert {path.name for path in first.parent.iterdir()} == {"a.b.task"}


def test_a_model_must_be_one_that_runtimes_can_call(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(CorruptFileError, match="expected b'TFL3' at offset 4"):
        bundler.create_bundle(config(tmp_path))
    path.write_bytes((GOLDEN / "outputs/0.10.14/gemma_2b_cpu_int8.bin").read_bytes())
    with pytest.raises(UnsupportedModelError, match=r"a MediaPipe \.bin needs no bundle"):
        bundler.create_bundle(config(tmp_path))
    path.write_bytes(litert_model({"encode": ({}, {"x": (0, [1])})}))
    reason = r"expected signatures prefill\* and decode, got encode; check_model=False \(--no-check-model\) bundles it"
    with pytest.raises(UnsupportedModelError, match=reason):
        bundler.create_bundle(config(tmp_path))
    path.write_bytes(litert_model())
    with pytest.raises(CorruptFileError, match="aux_embedder"):
        bundler.create_bundle(config(tmp_path, tflite_embedder=INPUTS / "aux_embedder.bin", tflite_vision_encoder=path))
    assert bundler.create_bundle(config(tmp_path, tflite_embedder=path)).exists()


@pytest.mark.parametrize("name", ["gemma3_q8_ekv128", "gemma3_mask_transposed_q8_ekv128"])
def test_a_real_bundle_is_taken_apart_and_made_again(name: str, tmp_path: Path) -> None:
    original = GOLDEN / "litert" / f"{name}.task"
    extracted = bundler.extract_bundle(original, tmp_path / "parts")
    assert [path.name for path in extracted.files] == ["model.tflite", "tokenizer.model", "metadata.pb"]
    assert extracted.unknown_entries == ()
    model, tokenizer, _ = extracted.files
    stop, output = ["</s>", "<end_of_turn>"], tmp_path / "again"
    again = bundler.create_bundle(
        bundler.BundleConfig(model, tokenizer, "<s>", stop, output, False, None, *TURNS.values())
    )
    ours, theirs = again.read_bytes(), original.read_bytes()
    assert {i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b} <= times(original)


def test_a_hugging_face_tokenizer_travels_exactly_and_as_sentencepiece(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((HUGGING_FACE / name).read_bytes())
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokens = {"start_token": "<|endoftext|>", "stop_tokens": ["<|endoftext|>", "\n\n"]}
    by_folder = bundler.create_bundle(config(tmp_path, tokenizer_model=folder, **tokens))
    data = by_folder.read_bytes()
    bundler.create_bundle(config(tmp_path, tokenizer_model=folder / "tokenizer.json", **tokens))
    assert by_folder.read_bytes() == data
    with TaskBundle.open(by_folder) as bundle:
        assert bundle.tokenizer_json == (folder / "tokenizer.json").read_bytes()
        assert bundle.tokenizer_config == (folder / "tokenizer_config.json").read_bytes()
        assert bundle.chat_template == b"{{ messages }}"
        assert bundle.bytes_to_unicode
        ids = from_hugging_face(bundle.tokenizer_json).encode("the quick  box")
        library = from_sentencepiece(bundle.sentencepiece_model)  # as readers do that spell the text themselves
        assert library.encode(byte_alphabet.spell("the quick  box")) == ids
    info = hearthlm.inspect_file(by_folder)
    assert isinstance(info, hearthlm.FileInfo)
    assert info.tokenizer == {"kind": "hugging_face", "vocab_size": 298}
    assert info.metadata["has_chat_template"]
    parts = bundler.extract_bundle(by_folder, tmp_path / "parts").files
    assert [path.name for path in parts[3:]] == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def test_a_hugging_face_tokenizer_with_marked_spaces_needs_no_mapping(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(llama_like())
    (tmp_path / "tokenizer_config.json").write_bytes(LLAMA_CONFIG)
    settings = {"tokenizer_model": tmp_path, "start_token": "<s>", "stop_tokens": ["</s>", "<|turn|>"]}
    with TaskBundle.open(bundler.create_bundle(config(tmp_path, **settings))) as bundle:
        assert not bundle.bytes_to_unicode
        assert bundle.sentencepiece_model == to_sentencepiece(llama_like(), LLAMA_CONFIG)
    with pytest.raises(BundleError, match="enable_bytes_to_unicode_mapping: .* is not spelled in GPT-2's alphabet"):
        bundler.create_bundle(config(tmp_path, enable_bytes_to_unicode_mapping=True, **settings))


def test_the_original_sentencepiece_model_is_kept_where_it_has_the_same_pieces(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(llama_like())
    (tmp_path / "tokenizer_config.json").write_bytes(LLAMA_CONFIG)
    settings = {"tokenizer_model": tmp_path, "start_token": "<s>", "stop_tokens": ["</s>"]}
    original = to_sentencepiece(llama_like(), LLAMA_CONFIG) + b"\x1a\x02\x18\x00"  # without a space before a text
    for data, kept in ((original, True), (SPM.read_bytes(), False), (b"no model", False)):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with TaskBundle.open(bundler.create_bundle(config(tmp_path, **settings))) as bundle:
            assert (bundle.sentencepiece_model == data) == kept
            assert TOKENIZER_JSON in bundle.entries


def test_a_folder_may_hold_a_sentencepiece_model_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(SPM.read_bytes())
    with TaskBundle.open(bundler.create_bundle(config(tmp_path, tokenizer_model=tmp_path))) as bundle:
        assert bundle.sentencepiece_model == SPM.read_bytes()
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected tokenizer\.json or tokenizer\.model in this folder"):
        bundler.create_bundle(config(tmp_path, tokenizer_model=tmp_path))


@pytest.mark.parametrize("settings", ["[]", "{", '{"unk_token": NaN}'])
def test_a_tokenizer_config_that_is_none_is_refused(settings: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(llama_like())
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(BundleError, match=r"tokenizer_config\.json"):
        bundler.create_bundle(config(tmp_path, tokenizer_model=tmp_path))


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    bundle = GOLDENS[0]
    out = tmp_path / "a" / "b"
    bundler.extract_bundle(bundle, out)
    (out / "model.tflite").unlink()
    (out / "tokenizer.model").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"tokenizer\.model: the file is there already"):
        bundler.extract_bundle(bundle, out)
    assert not (out / "model.tflite").exists()
    assert (out / "tokenizer.model").read_bytes() == b"mine"
    bundler.extract_bundle(bundle, out, overwrite=True)
    assert (out / "tokenizer.model").read_bytes() == SPM.read_bytes()


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "tokenizer.model").symlink_to(tmp_path / "secret")
    with pytest.raises(FileExistsError):
        bundler.extract_bundle(GOLDENS[0], tmp_path)
    bundler.extract_bundle(GOLDENS[0], tmp_path, overwrite=True)
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert not (tmp_path / "tokenizer.model").is_symlink()


def test_entries_that_are_not_known_stay_in_the_bundle(tmp_path: Path) -> None:
    with TaskBundle.open(GOLDENS[0]) as bundle:
        parts = {name: bytes(bundle.entry(name)) for name in bundle.entries}
    write_task_bundle(tmp_path / "m.task", {**parts, "model.tflite": b"x", ".bashrc".strip("."): b"x"})
    extracted = bundler.extract_bundle(tmp_path / "m.task", tmp_path / "out")
    assert extracted.unknown_entries == ("model.tflite", "bashrc")
    assert (tmp_path / "out" / "model.tflite").read_bytes() == parts[MODEL]
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_no_framework_is_imported(tmp_path: Path) -> None:
    code = f"""
import json, sys
from hearthlm import bundler
model, tokenizer = {os.fspath(INPUTS / "stub_model.tflite")!r}, {os.fspath(SPM)!r}
bundler.create_bundle(bundler.BundleConfig(model, tokenizer, "<bos>", ["<eos>"], "out", check_model=False))
print(json.dumps(sorted({{"torch", "jax", "tensorflow", "mediapipe", "ai_edge_litert"}} & set(sys.modules))))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
    assert (tmp_path / "out.task").exists()
    assert hearthlm.bundler is bundler


def test_a_model_of_any_size_needs_no_memory(tmp_path: Path) -> None:
    code = """
import resource, sys
from hearthlm import bundler
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
settings = bundler.BundleConfig("model.tflite", sys.argv[1], "<bos>", ["<eos>"], "small.task")
bundler.extract_bundle(bundler.create_bundle(settings), "small")
before = peak()
with open("model.tflite", "ab") as file:
    file.truncate(64 << 20)
bundler.extract_bundle(bundler.create_bundle(settings), "large")
print(peak() - before)
"""
    (tmp_path / "model.tflite").write_bytes(litert_model())
    command = [sys.executable, "-c", code, os.fspath(SPM)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 16 << 10  # KiB
    assert (tmp_path / "large" / "model.tflite").read_bytes() == (tmp_path / "model.tflite").read_bytes()
