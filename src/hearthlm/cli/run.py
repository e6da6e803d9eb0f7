"""`hearthlm run`: answer one prompt."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, engine_options, litert_options, max_tokens_option, sampling_options
from hearthlm.cli.terminal import load_model, print_json, print_stream, read_text


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[MODEL] [PROMPT]", shell_complete=complete_file)
@click.option("--prompt-file", type=click.Path(dir_okay=False), help="Read the prompt from this file.")
@click.option("--raw", is_flag=True, help="Do not put the prompt into the model's own turns.")
@click.option("--num-responses", type=click.IntRange(1), default=1, show_default=True, help="Answers to make.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of streaming text.")
@click.option("--json-schema", type=click.Path(dir_okay=False), help="Answer with JSON of this schema, from a file.")
@click.option("--regex", metavar="PATTERN", help="Answer with text that this regular expression matches.")
@max_tokens_option("512, or what a LiteRT model was built for")
@sampling_options
@engine_options
@litert_options
def run(
    arguments: tuple[str, ...],
    prompt_file: str | None,
    raw: bool,
    num_responses: int,
    as_json: bool,
    json_schema: str | None,
    regex: str | None,
    max_tokens: int | None,
    engine: dict[str, Any],
    **sampling: Any,
) -> None:
    """Answer a prompt, streamed to stdout.

    MODEL is a MediaPipe .bin or .task, a .litertlm or .tflite, or a Hugging Face folder; without it the small model
    inside the package answers. PROMPT "-" reads stdin. Several answers are printed one after the other, with a line
    "---" between them.

    \b
    hearthlm run "Write a short story about Mira and a lost key."
    hearthlm run gemma-2b-it-cpu-int4.bin "Why is the sky blue?"
    git log -5 | hearthlm run ./gemma-3-1b-it - --max-tokens 2048
    hearthlm run "Tell me a story about a boat." --regex "Once [a-z ,]{20,200}\\."
    """
    model, prompt = _model_and_prompt(arguments, prompt_file)
    options = hearthlm.LlmInferenceOptions(
        model_path=model,
        max_tokens=max_tokens,
        num_responses=num_responses,
        prefix_cache_mb=0,
        **engine,
    )
    session_options = hearthlm.LlmInferenceSessionOptions(
        prompt_templates=hearthlm.PromptTemplates() if raw else None,
        response_format=_response_format(json_schema, regex),
        **sampling,
    )
    with load_model(options) as llm:
        if as_json:
            result = llm.generate(prompt, session_options)
            print_json(
                {
                    "texts": list(result.texts),
                    "token_ids": [list(ids) for ids in result.token_ids],
                    "finish_reason": result.finish_reason,
                    "usage": {
                        "prompt_tokens": result.num_prompt_tokens,
                        "cached_tokens": result.num_cached_tokens,
                        "completion_tokens": result.num_output_tokens,
                    },
                    "timings": {
                        "load_s": round(llm.load_s, 6),
                        "prefill_s": round(result.prefill_s, 6),
                        "decode_s": round(result.decode_s, 6),
                    },
                }
            )
        elif num_responses > 1:
            texts = llm.generate(prompt, session_options).texts
            click.echo("\n---\n".join(texts))
        else:
            print_stream(llm.generate_stream(prompt, session_options))


def _response_format(json_schema: str | None, regex: str | None) -> dict[str, Any] | None:
    """Return the form of the answer that --json-schema or --regex ask for."""
    if json_schema is not None and regex is not None:
        raise click.UsageError("expected --json-schema or --regex, got both")
    if json_schema is not None:
        try:
            schema = json.loads(read_text(json_schema))
        except (ValueError, RecursionError) as error:
            raise click.UsageError(f"--json-schema {json_schema}: expected JSON: {error}") from None
        return {"type": "json_schema", "json_schema": {"schema": schema}}
    return None if regex is None else {"type": "regex", "pattern": regex}


def _model_and_prompt(arguments: tuple[str, ...], prompt_file: str | None) -> tuple[str | Path, str]:
    """Return the model's path and the prompt's text from [MODEL] [PROMPT] and --prompt-file."""
    from hearthlm.demo import model_path

    num_models = len(arguments) - (prompt_file is None)
    if num_models not in (0, 1):
        wanted = "[MODEL]" if prompt_file is not None else "[MODEL] PROMPT"
        raise click.UsageError(f"expected {wanted}, got {len(arguments)} arguments; quote a prompt of several words")
    model: str | Path = arguments[0] if num_models == 1 else model_path()
    if prompt_file is not None:
        return model, read_text(prompt_file)
    prompt = arguments[-1]
    if prompt == "-":
        return model, read_text("-")
    if num_models == 0 and _is_model(prompt):
        raise click.UsageError(f"{prompt} is a model, and the prompt is missing")
    return model, prompt


def _is_model(argument: str) -> bool:
    """Say whether a lone argument is rather a model than a prompt."""
    if " " not in argument and argument.endswith((".bin", ".task", ".litertlm", ".tflite")):
        return True
    with contextlib.suppress(OSError):  # a long prompt is no name of a folder
        return argument != "" and Path(argument).is_dir()
    return False
