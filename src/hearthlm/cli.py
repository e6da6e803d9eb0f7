"""The command line: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import hearthlm

if TYPE_CHECKING:
    from hearthlm import LlmInference, ModelInfo


class ExitCode(IntEnum):
    """What the process answers; the numbers are those of sysexits.h and of the shell."""

    OK = 0
    OTHER = 1
    USAGE = 2
    BAD_DATA = 65
    NO_INPUT = 66
    INTERNAL = 70
    CANNOT_CREATE = 73
    IO_ERROR = 74
    NO_PERMISSION = 77
    INTERRUPTED = 130
    TERMINATED = 143


_F = TypeVar("_F", bound=Callable[..., Any])


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def apply(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


_sampling_options = _options(
    click.option("--max-tokens", type=click.IntRange(1), help="Tokens of prompt and answer together.  [default: 512]"),
    click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="1: greedy, 0: all tokens."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True),
    click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0: greedy."),
    click.option("--random-seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
)

_engine_options = _options(
    click.option("--threads", type=click.IntRange(1), help="[default: one per physical core]"),
    click.option("--weights", type=click.Choice(["auto", "mmap", "ram"]), default="auto", show_default=True),
    click.option(
        "--activation-data-type",
        type=click.Choice(["int8", "float32"]),
        help="How activations meet quantised weights.  [default: int8]",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(hearthlm.__version__, prog_name="hearthlm")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def cli(debug: bool) -> None:
    """Run large language models on your own device.

    \b
    hearthlm run "Tell me a story about a brave little boat."
    hearthlm run model.bin "Hello" --temperature 0
    hearthlm inspect model.bin
    """


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("--prompt-file", type=click.Path(dir_okay=False), help="Read the prompt from this file.")
@click.option("--raw", is_flag=True, help="Do not put the prompt into the model's own turns.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of streaming text.")
@_sampling_options
@_engine_options
def run(
    arguments: tuple[str, ...],
    prompt_file: str | None,
    raw: bool,
    as_json: bool,
    max_tokens: int | None,
    top_k: int,
    top_p: float,
    temperature: float,
    random_seed: int,
    stop: tuple[str, ...],
    threads: int | None,
    weights: Any,
    activation_data_type: Any,
) -> None:
    """Answer a prompt, streamed to stdout.

    MODEL is a MediaPipe .bin or a Hugging Face folder; without it the small model inside the package answers.
    PROMPT "-" reads stdin.

    \b
    hearthlm run "Write a short story about Mira and a lost key."
    hearthlm run gemma-2b-it-cpu-int4.bin "Why is the sky blue?"
    git log -5 | hearthlm run ./gemma-3-1b-it - --max-tokens 2048
    """
    model, prompt = _model_and_prompt(arguments, prompt_file)
    options = hearthlm.LlmInferenceOptions(
        model_path=model,
        max_tokens=max_tokens,
        num_threads=threads,
        weights=weights,
        activation_data_type=activation_data_type,
    )
    session_options = hearthlm.LlmInferenceSessionOptions(
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        random_seed=random_seed,
        stop=stop,
        prompt_templates=hearthlm.PromptTemplates() if raw else None,
    )
    with _load(options) as llm:
        if as_json:
            result = llm.generate(prompt, session_options)
            _print_json(
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
            return
        last = ""
        try:
            for last in llm.generate_stream(prompt, session_options):
                sys.stdout.write(last)
                sys.stdout.flush()
        finally:
            if sys.stdout.isatty() and not last.endswith("\n"):
                sys.stdout.write("\n")
        if not sys.stdout.isatty() and not last.endswith("\n"):
            sys.stdout.write("\n")


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Describe a model FILE (or folder) without reading its weights."""
    info = hearthlm.inspect_model(file)
    if as_json:
        _print_json(info.to_json())
    else:
        click.echo(_described(info))


def main() -> None:
    """Run the command line; the process ends with one of ExitCode."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `hearthlm run ... | head` ends quietly
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit:
        raise
    except BaseException as error:
        if "--debug" in sys.argv[1:]:
            raise
        if isinstance(error, click.ClickException):
            error.show()
            sys.exit(ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.OTHER)
        code = _exit_code(error)
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        if code is ExitCode.INTERNAL:
            message = f"internal error: {type(error).__name__}: {message} (run again with `hearthlm --debug ...`)"
        click.echo(f"hearthlm: {message}", err=True)
        sys.exit(code)


def _exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return ExitCode.NO_INPUT
    if isinstance(error, PermissionError):
        return ExitCode.NO_PERMISSION
    if isinstance(error, (hearthlm.HearthLMError, UnicodeDecodeError)):
        return ExitCode.BAD_DATA
    if isinstance(error, OSError):
        return ExitCode.IO_ERROR
    if isinstance(error, (ValueError, NotImplementedError)):
        return ExitCode.USAGE
    if isinstance(error, MemoryError):
        return ExitCode.OTHER
    return ExitCode.INTERNAL


def _terminate(*_: object) -> None:
    sys.exit(ExitCode.TERMINATED)


def _model_and_prompt(arguments: tuple[str, ...], prompt_file: str | None) -> tuple[str | Path, str]:
    """Return the model's path and the prompt's text from [MODEL] [PROMPT] and --prompt-file."""
    from hearthlm.demo import model_path

    num_models = len(arguments) - (prompt_file is None)
    if num_models not in (0, 1):
        wanted = "[MODEL]" if prompt_file is not None else "[MODEL] PROMPT"
        raise click.UsageError(f"expected {wanted}, got {len(arguments)} arguments; quote a prompt of several words")
    model: str | Path = arguments[0] if num_models == 1 else model_path()
    if prompt_file is not None:
        return model, Path(prompt_file).read_text(encoding="utf-8")
    prompt = arguments[-1]
    if prompt == "-":
        return model, sys.stdin.buffer.read().decode("utf-8")
    if num_models == 0 and Path(prompt).exists() and (Path(prompt).is_dir() or prompt.endswith((".bin", ".task"))):
        raise click.UsageError(f"{prompt} is a model, and the prompt is missing")
    return model, prompt


def _load(options: hearthlm.LlmInferenceOptions) -> LlmInference:
    """Load a model, with a progress bar where a person is watching."""
    if not sys.stderr.isatty() or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        return hearthlm.LlmInference.create_from_options(options)
    with click.progressbar(length=1000, label="loading", file=sys.stderr) as bar:

        def show(part: float) -> None:
            bar.update(int(part * 1000) - bar.pos)

        llm = hearthlm.LlmInference.create_from_options(options, show)
    sys.stderr.write("\x1b[1A\x1b[2K")  # the bar has done its work
    return llm


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def _described(info: ModelInfo) -> str:
    a = info.architecture
    windows = sorted({layer.window for layer in a.layers if layer.window is not None})
    num_local = sum(layer.window is not None for layer in a.layers)
    attention = f"{a.num_heads} heads, {a.num_kv_heads} for keys and values, of {a.head_dim}"
    if windows:
        attention += f"; {num_local} of {a.num_layers} layers see {windows[0]} tokens"
    tokenizer = "none" if info.tokenizer is None else f"{info.tokenizer['kind']}, {info.tokenizer['vocab_size']} pieces"
    kinds: dict[str, tuple[int, int]] = {}
    for t in info.tensors:
        count, num_bytes = kinds.get(t.dtype, (0, 0))
        kinds[t.dtype] = (count + 1, num_bytes + t.num_bytes)
    lines = [
        ("format", {"weights_bin": "MediaPipe .bin", "checkpoint": "Hugging Face checkpoint"}[info.format]),
        ("model", f"{info.model_type} (family {info.family}), {_short(info.num_parameters).rstrip()} parameters"),
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
    lines += [("tensors", f"{n} {kind}, {_short(size)}B") for kind, (n, size) in sorted(kinds.items())]
    return "\n".join(f"{name:12} {value}" for name, value in lines)


def _short(number: int) -> str:
    """Write a count in thousands, millions or billions, with one decimal."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:,.1f}{name}"
    return f"{number} "


if __name__ == "__main__":
    main()
