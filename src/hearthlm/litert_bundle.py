"""A LiteRT model and what its checkpoint says beside the weights, in one file: a `.task` or a `.litertlm`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hearthlm.bundler import BundleConfig, create_bundle
from hearthlm.carried_tokenizer import CarriedTokenizer
from hearthlm.errors import BundleError
from hearthlm.formats.litert_model import llm_signatures, read_litert_model
from hearthlm.formats.litertlm import (
    LANGUAGE_MODEL,
    MODEL_TYPE,
    OWN_LABEL,
    NewSection,
    packed_tokenizer,
    write_litertlm,
)
from hearthlm.formats.llm_metadata import LlmMetadata, write_executor_metadata, write_llm_metadata
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.task_bundle import TOKENIZER_CONFIG
from hearthlm.models.family import PromptTemplates
from hearthlm.runtime.model import Model
from hearthlm.template_turns import template_for_parts, turns_of_template

StrPath = str | PathLike[str]
ENDINGS = (".task", ".litertlm")


@dataclass(frozen=True)
class LiteRtBundle:
    """Hold what goes into a bundle beside the model, read from a checkpoint.

    `turns` are those of the checkpoint's chat template where it can be taken apart, else its family's; `start_token`
    is None where a text has none.
    """

    folder: Path
    tokenizer: CarriedTokenizer
    start_id: int | None
    start_token: str | None
    stop_ids: tuple[int, ...]
    stop_tokens: tuple[str, ...]
    turns: PromptTemplates | None
    chat_template: str | None
    model_type: str

    @classmethod
    def read(cls, checkpoint: StrPath) -> LiteRtBundle:
        """Read a checkpoint's tokenizer, tokens and turns.

        Raises FileNotFoundError where there is no tokenizer, BundleError for one that has more tokens than the model
        and for a checkpoint that does not say what ends an answer, and the errors of the files.
        """
        path = Path(checkpoint)
        folder = path if path.is_dir() else path.parent
        with Model.open(checkpoint) as model:
            carried = CarriedTokenizer.find(
                folder,
                mediapipe_compatible=False,
                needs_sentencepiece=False,
                parsed=None if model.info.tokenizer is None else model.tokenizer,
            )
            tokenizer = carried.tokenizer
            if tokenizer.vocab_size > model.architecture.vocab_size:
                raise BundleError(
                    f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but the model "
                    f"{model.architecture.vocab_size}"
                )
            stop_ids = tuple(sorted(model.stop_ids))
            if not stop_ids:
                raise BundleError(
                    f"{folder}: nothing says what ends an answer; set eos_token_id in generation_config.json"
                )
            start_piece = None if model.start_id is None else tokenizer.piece(model.start_id)
            turns, template = model.family.chat, model.chat_template
            if template is not None:
                derived = turns_of_template(template, model.special_tokens, start_piece or "")
                turns = derived if derived is not None else turns
                template = template_for_parts(template, model.special_tokens)
            return cls(
                folder=folder,
                tokenizer=carried,
                start_id=model.start_id,
                start_token=start_piece,
                stop_ids=stop_ids,
                stop_tokens=tuple(tokenizer.piece(i) for i in stop_ids if tokenizer.is_special(i)),
                turns=turns,
                chat_template=template,
                model_type=model.family.litert_lm_type,
            )

    def check(self, output: StrPath) -> None:
        """Raise BundleError, before anything is written, for what the kind of file at `output` cannot say."""
        if os.fspath(output).endswith(".task"):
            self._task_config(Path(output), Path(output))

    def write(self, output: StrPath, model: StrPath, progress: Callable[[float], None] | None = None) -> None:
        """Write the bundle of the LiteRT model at `model`; the ending of `output` says which kind."""
        if os.fspath(output).endswith(".task"):
            create_bundle(self._task_config(Path(output), Path(model)), progress)
        else:
            self._write_litertlm(Path(output), Path(model), progress)

    def _task_config(self, output: Path, model: Path) -> BundleConfig:
        if not self.start_token or not self.stop_tokens:
            what = "stop token, spelled as a special token" if self.start_token else "start token"
            raise BundleError(f"{self.folder}: a .task needs a {what}, and the checkpoint has none; write a .litertlm")
        turns = self.turns or PromptTemplates()
        fields: dict[str, Any] = {
            f"prompt_{part}_{role}": getattr(getattr(turns, role), part) or None
            for role in ("user", "model", "system")
            for part in ("prefix", "suffix")
        }
        if turns.session_prefix:  # MediaPipe's message has either a system's turn or a fixed text
            fields |= {
                "prompt_prefix_system": None,
                "prompt_suffix_system": None,
                "system_prompt": turns.session_prefix,
            }
        return BundleConfig(model, self.folder, self.start_token, list(self.stop_tokens), output, **fields)

    def _write_litertlm(self, output: Path, model: Path, progress: Callable[[float], None] | None) -> None:
        with MappedFile(model) as file, file.read(0, file.size, "model") as data:
            signatures = llm_signatures(read_litert_model(data, str(model)), str(model))
        assert signatures.kv_cache is not None  # it was written so
        # The message has no field for what precedes the first turn; there the chat template alone says it.
        turns = self.turns if self.turns is not None and not self.turns.session_prefix else None
        metadata = LlmMetadata(
            start_token=None if self.start_id is None else (self.start_id,),
            stop_tokens=tuple((i,) for i in self.stop_ids),
            templates=turns,
            chat_template=self.chat_template,
            max_num_tokens=signatures.kv_cache.num_tokens,
            model_type=self.model_type,
        )
        if self.tokenizer.tokenizer_json is not None:
            tokenizer = NewSection("tokenizer.json", packed_tokenizer(self.tokenizer.tokenizer_json))
        else:
            tokenizer = NewSection("sentencepiece", self.tokenizer.sentencepiece or b"")
        sections = [
            NewSection("LlmMetadata", write_llm_metadata(metadata)),
            tokenizer,
            NewSection("tflite", model, {MODEL_TYPE: LANGUAGE_MODEL}),
            NewSection("ExecutorMetadata", write_executor_metadata(signatures.kv_cache)),
        ]
        if config := self.tokenizer.entry().get("tokenizer_config"):  # what of it changes ids
            fields = json.dumps(config, ensure_ascii=False, sort_keys=True).encode()
            sections.append(NewSection("binary", fields, {OWN_LABEL: TOKENIZER_CONFIG}))
        write_litertlm(output, sections, {}, progress)


__all__ = ["ENDINGS", "LiteRtBundle"]
