"""A LiteRT language model, its tokenizer and its prompt's turns put into one `.task` file, and taken out again.

`BundleConfig` and `create_bundle` have the names, the order and the errors of MediaPipe's bundler
(`mediapipe.tasks.python.genai.bundler`, 0.10.14 to 0.10.35), so that a script changes one import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hearthlm.errors import BundleError, HearthLMError, UnsupportedModelError
from hearthlm.formats import task_bundle
from hearthlm.formats.atomic_file import make_folder, replace_file
from hearthlm.formats.json_document import parse_json_object
from hearthlm.formats.litert_model import llm_signatures, read_litert_model
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.task_bundle import TaskBundle, write_task_bundle
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece
from hearthlm.tokenizers.hugging_face_to_sentencepiece import MAX_CONFIG_BYTES, is_byte_level, to_sentencepiece
from hearthlm.tokenizers.markup import is_markup
from hearthlm.tokenizers.sentencepiece_model import have_same_pieces

StrPath = str | os.PathLike[str]

_PROMPT_FIELDS = tuple(f"prompt_{part}_{role}" for role in ("user", "model", "system") for part in ("prefix", "suffix"))


@dataclass(frozen=True)
class BundleConfig:
    """Say what goes into a bundle; nothing is read before `create_bundle`. An empty text counts as none.

    tflite_model: a LiteRT model with signatures `prefill*` and `decode`.
    tokenizer_model: a SentencePiece model; or a Hugging Face `tokenizer.json`, or the folder with it. Such a tokenizer
        travels as it is, with its tokenizer_config.json and chat template, and beside it a SentencePiece model made
        from it, for readers that know nothing else.
    start_token: the token before every prompt, as the tokenizer spells it.
    stop_tokens: a list of the tokens, or texts, that end an answer.
    output_filename: `.task` is appended if it is missing.
    enable_bytes_to_unicode_mapping: the SentencePiece model is spelled in GPT-2's alphabet. A Hugging Face tokenizer
        tells so itself.
    system_prompt: text before the conversation; not together with prompt_prefix_system or prompt_suffix_system.
    prompt_prefix_user ... prompt_suffix_system: what begins and ends a turn of each role.
    user_role_token ... end_role_token: tokens that mark roles in a prompt.
    tflite_embedder, tflite_per_layer_embedder, tflite_vision_encoder, tflite_vision_adapter: further LiteRT models.

    prompt_prefix, prompt_suffix: what 0.10.18 to 0.10.21 call the text before and after a user's turn, up to the
        model's answer; not together with the turns of roles. By position their values land in prompt_prefix_user and
        prompt_suffix_user, which says the same.
    check_model: read the signatures of the LiteRT models and refuse those that no runtime would know how to call.
    """

    tflite_model: StrPath
    tokenizer_model: StrPath
    start_token: str
    stop_tokens: list[str]
    output_filename: StrPath
    enable_bytes_to_unicode_mapping: bool = False
    system_prompt: str | None = None
    prompt_prefix_user: str | None = None
    prompt_suffix_user: str | None = None
    prompt_prefix_model: str | None = None
    prompt_suffix_model: str | None = None
    prompt_prefix_system: str | None = None
    prompt_suffix_system: str | None = None
    user_role_token: str | None = None
    system_role_token: str | None = None
    model_role_token: str | None = None
    end_role_token: str | None = None
    tflite_embedder: StrPath | None = None
    tflite_per_layer_embedder: StrPath | None = None
    tflite_vision_encoder: StrPath | None = None
    tflite_vision_adapter: StrPath | None = None
    prompt_prefix: str | None = field(default=None, kw_only=True)
    prompt_suffix: str | None = field(default=None, kw_only=True)
    check_model: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Raise ValueError for fields that contradict each other."""
        if not isinstance(self.stop_tokens, list) or not all(isinstance(token, str) for token in self.stop_tokens):
            raise ValueError("stop_tokens must be a list of strings.")
        if not self.stop_tokens or not all(self.stop_tokens):
            raise ValueError("stop_tokens must be non-empty.")
        if not isinstance(self.start_token, str) or not self.start_token:
            raise ValueError(f"start_token must be a non-empty string, got {self.start_token!r}")
        if self.system_prompt and (self.prompt_prefix_system or self.prompt_suffix_system):
            raise ValueError("system_prompt and prompt_*_system are mutually exclusive.")
        new = [name for name in _PROMPT_FIELDS if getattr(self, name)]
        old = [name for name in ("prompt_prefix", "prompt_suffix") if getattr(self, name)]
        if old and new:
            raise ValueError(
                f"{' and '.join(old)} (MediaPipe 0.10.18 to 0.10.21) and {', '.join(new)} are mutually exclusive: "
                "give the turns of each role, or one prefix and suffix"
            )


def create_bundle(config: BundleConfig, progress: Callable[[float], None] | None = None) -> Path:
    """Write the bundle and return its path; `progress` is called with the part that is written, 0 to 1.

    Models are copied in pieces and never held in memory. The file appears whole or not at all, in place of an older
    one, and its folder is created; the same input gives the same bytes.

    Raises FileNotFoundError, BundleError (also a ValueError) for a tokenizer that cannot be loaded and for tokens that
    it does not have, ModelFormatError or UnsupportedModelError for a model that is not what `check_model` demands.
    """
    tokenizer = _read_tokenizer(config)
    _check_tokens(config, tokenizer)
    models = {
        task_bundle.MODEL: config.tflite_model,
        task_bundle.EMBEDDER: config.tflite_embedder,
        task_bundle.PER_LAYER_EMBEDDER: config.tflite_per_layer_embedder,
        task_bundle.VISION_ENCODER: config.tflite_vision_encoder,
        task_bundle.VISION_ADAPTER: config.tflite_vision_adapter,
    }
    given = {name: path for name, path in models.items() if path}
    if config.check_model:
        for name, path in given.items():
            _check_model(path, is_language_model=name == task_bundle.MODEL)
    entries: dict[str, bytes | StrPath] = {
        task_bundle.MODEL: given.pop(task_bundle.MODEL, config.tflite_model),
        task_bundle.TOKENIZER: tokenizer.sentencepiece_model,
        task_bundle.METADATA: _metadata(config, tokenizer.bytes_to_unicode).SerializeToString(deterministic=True),
        **given,
        **tokenizer.hugging_face_entries,
    }
    output = os.fspath(config.output_filename)
    path = Path(output if output.endswith(".task") else output + ".task")
    make_folder(path.parent)
    write_task_bundle(path, entries, progress)
    return path


@dataclass(frozen=True)
class ExtractedBundle:
    """Say what `extract_bundle` wrote, and which entries it passed over because their names are not known."""

    files: tuple[Path, ...]
    unknown_entries: tuple[str, ...]


def extract_bundle(path: StrPath, output_dir: StrPath, *, overwrite: bool = False) -> ExtractedBundle:
    """Write the entries of the `.task` at `path` into a folder, which is created.

    The files have names of this package's choice (`model.tflite`, `tokenizer.model`, `metadata.pb` ...), never one from
    the bundle. Raises FileExistsError, before anything is written, if one is there and `overwrite` is false; and what
    `TaskBundle.open` raises.
    """
    folder = Path(output_dir)
    with TaskBundle.open(path) as bundle:
        targets = {name: folder / file for name, file in task_bundle.FILE_NAMES.items() if name in bundle.entries}
        if not overwrite:
            for target in targets.values():
                if os.path.lexists(target):
                    raise FileExistsError(f"{target}: the file is there already; overwrite (--force) replaces it")
        make_folder(folder)
        for name, target in targets.items():
            with replace_file(target) as file:
                bundle.copy_entry(name, file)
        return ExtractedBundle(tuple(targets.values()), tuple(name for name in bundle.entries if name not in targets))


@dataclass(frozen=True)
class _BundledTokenizer:
    """The tokenizer in every form in which it travels; `exact` is the form that this package reads."""

    exact: Tokenizer
    sentencepiece_model: bytes
    bytes_to_unicode: bool
    hugging_face_entries: dict[str, bytes]


def _read_tokenizer(config: BundleConfig) -> _BundledTokenizer:
    """Return the tokenizer; raises BundleError in MediaPipe's words if it cannot be loaded."""
    path = Path(config.tokenizer_model)
    folder = path.parent
    if path.is_dir():
        folder = path
        names = [name for name in ("tokenizer.json", "tokenizer.model") if (folder / name).is_file()]
        if not names:
            raise FileNotFoundError(f"{folder}: expected tokenizer.json or tokenizer.model in this folder")
        path = folder / names[0]
    data = _read(path, task_bundle.MAX_TOKENIZER_BYTES)
    try:
        if data.lstrip()[:1] != b"{":
            exact = from_sentencepiece(data, bytes_to_unicode=config.enable_bytes_to_unicode_mapping)
            return _BundledTokenizer(exact, data, config.enable_bytes_to_unicode_mapping, {})
        beside = {
            entry: _read(folder / name, MAX_CONFIG_BYTES)
            for entry, name in task_bundle.FILE_NAMES.items()
            if entry in (task_bundle.TOKENIZER_CONFIG, task_bundle.CHAT_TEMPLATE) and (folder / name).is_file()
        }
        settings = beside.get(task_bundle.TOKENIZER_CONFIG, b"")
        model = to_sentencepiece(data, settings)
        if (original := folder / "tokenizer.model").is_file():
            found = _read(original, task_bundle.MAX_TOKENIZER_BYTES)
            model = found if have_same_pieces(found, model) else model
        byte_level = is_byte_level(data)
        exact = from_hugging_face(data, parse_json_object(settings or b"{}", "tokenizer_config.json", MAX_CONFIG_BYTES))
    except HearthLMError as error:
        raise BundleError(
            f"Failed to load tokenizer model from {path}. Please ensure you are passing a valid SentencePiece model. "
            f"({error})"
        ) from error
    if config.enable_bytes_to_unicode_mapping and not byte_level:
        raise BundleError(
            f"enable_bytes_to_unicode_mapping: {path} is not spelled in GPT-2's alphabet; leave the field out, since a "
            "tokenizer.json tells by itself"
        )
    return _BundledTokenizer(exact, model, byte_level, {task_bundle.TOKENIZER_JSON: data, **beside})


def _read(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a small file."""
    with MappedFile(path) as file:
        if file.size > max_bytes:
            raise BundleError(f"{path}: expected a tokenizer file of at most {max_bytes} bytes, got {file.size}")
        return bytes(file.read(0, file.size, "tokenizer"))


def _check_tokens(config: BundleConfig, tokenizer: _BundledTokenizer) -> None:
    """Raise BundleError for a start or stop token that could never be met."""
    readers = [tokenizer.exact]
    if tokenizer.hugging_face_entries:
        readers.append(from_sentencepiece(tokenizer.sentencepiece_model, bytes_to_unicode=tokenizer.bytes_to_unicode))
    for reader in readers:
        if reader.token_id(config.start_token) is None:
            raise BundleError(
                f"Failed to encode start token {config.start_token} with tokenizer. "
                f"Expected one of the {reader.vocab_size} tokens of {config.tokenizer_model}"
            )
        for token in config.stop_tokens:
            if reader.token_id(token) is not None:
                continue
            # Runtimes also end an answer at a text of several tokens; what looks like a special token has to be one.
            if is_markup(token) or reader.decode(reader.encode(token, parse_special=False)).strip() != token.strip():
                raise BundleError(
                    f"Failed to encode stop token {token} with tokenizer. "
                    f"Expected one of the {reader.vocab_size} tokens of {config.tokenizer_model}, or a text of them"
                )


def _check_model(path: StrPath, *, is_language_model: bool) -> None:
    """Raise unless the file is a LiteRT model; a language model must have signatures that runtimes know."""
    with MappedFile(path) as file, file.read(0, file.size, "model") as data:
        try:
            model = read_litert_model(data, str(file.path))
            if is_language_model:
                llm_signatures(model, str(file.path))
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{error}; check_model=False (--no-check-model) bundles it unseen") from None


def _metadata(config: BundleConfig, bytes_to_unicode: bool) -> LlmParameters:
    """Return the message that MediaPipe writes for these fields."""
    message = LlmParameters(start_token=config.start_token, stop_tokens=config.stop_tokens)
    if bytes_to_unicode:
        message.input_output_normalizations.append(LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE)
    old = message.prompt_template
    for name, value in (
        ("session_prefix", config.system_prompt),
        ("prompt_prefix", config.prompt_prefix_user or config.prompt_prefix),
        ("prompt_suffix", config.prompt_suffix),
    ):
        if value:
            setattr(old, name, value)
    if config.prompt_suffix_user:
        old.prompt_suffix = config.prompt_suffix_user + (config.prompt_prefix_model or "")
    for role in ("user", "model", "system"):
        template = getattr(message.prompt_templates, f"{role}_template")
        for part in ("prefix", "suffix"):
            if value := getattr(config, f"prompt_{part}_{role}"):
                setattr(template, f"prompt_{part}", value)
    for name in ("user_role_token", "system_role_token", "model_role_token", "end_role_token"):
        if value := getattr(config, name):
            setattr(message, name, value)
    return message


__all__ = ["BundleConfig", "ExtractedBundle", "create_bundle", "extract_bundle"]
