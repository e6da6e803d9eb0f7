"""`hearthlm score`: how likely a text is."""

from __future__ import annotations

import json
import math
from typing import Any

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, engine_options, litert_options
from hearthlm.cli.terminal import load_model, print_json, read_text


@cli.command()
@click.argument("model", shell_complete=complete_file)
@click.option("--text", help="Score this text, after the start token.")
@click.option("--ids", metavar="1,2,3", help="Score these token ids as they are.")
@click.option("--file", "text_file", type=click.Path(dir_okay=False), help='Score the text of this file; "-" is stdin.')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@engine_options
@litert_options
def score(
    model: str,
    text: str | None,
    ids: str | None,
    text_file: str | None,
    as_json: bool,
    engine: dict[str, Any],
) -> None:
    """Say how likely a text is: the log-probability of each token given those before it, and the perplexity.

    Prints a line per token, the natural logarithm and the token, and last the perplexity.

    \b
    hearthlm score model.bin --text "The sky is blue."
    hearthlm score ./gemma-3-1b-it --file letter.txt --json
    """
    if sum(given is not None for given in (text, ids, text_file)) != 1:
        raise click.UsageError("expected exactly one of --text, --ids and --file")
    info = hearthlm.inspect_file(model)
    has_tokenizer = info.tokenizer is not None or engine["tokenizer_path"] is not None
    options = hearthlm.LlmInferenceOptions(
        model_path=model,
        max_tokens=info.architecture.context_length if isinstance(info, hearthlm.ModelInfo) else None,
        **engine,
    )
    with load_model(options) as llm:
        if ids is not None:
            token_ids = _parsed_ids(ids)
        else:
            token_ids = llm.tokenizer.encode(read_text(text_file) if text_file is not None else text or "")
            if llm.start_id is not None and token_ids[:1] != [llm.start_id]:
                token_ids = [llm.start_id, *token_ids]
        if len(token_ids) < 2:
            raise click.UsageError("expected a text of at least two tokens: the first is only looked at")
        logprobs = [float(value) for value in llm.token_logprobs(token_ids)]
        perplexity = math.exp(-math.fsum(logprobs) / len(logprobs))
        if as_json:
            print_json({"ids": token_ids, "logprobs": logprobs, "perplexity": perplexity})
            return
        for token_id, logprob in zip(token_ids[1:], logprobs, strict=True):
            piece = json.dumps(llm.tokenizer.piece(token_id), ensure_ascii=False) if has_tokenizer else token_id
            click.echo(f"{logprob:10.4f}  {piece}")
        click.echo(f"perplexity {perplexity:.4f} over {len(logprobs)} tokens")


def _parsed_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--ids: expected whole numbers with commas between them, got {text!r}") from None
