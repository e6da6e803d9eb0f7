"""The command line: data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from click.shell_completion import CompletionItem, get_completion_class

import hearthlm

if TYPE_CHECKING:
    from hearthlm import FileInfo, LlmInference, ModelInfo
    from hearthlm.converter import ConversionConfig, ConversionPlan


class ExitCode(IntEnum):
    """What the process answers; the numbers are those of sysexits.h and of the shell."""

    OK = 0
    OTHER = 1
    USAGE = 2
    BAD_DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    CANNOT_CREATE = 73
    IO_ERROR = 74
    TRY_LATER = 75
    NO_PERMISSION = 77
    INTERRUPTED = 130
    TERMINATED = 143


_COMPLETE_VARIABLE = "_HEARTHLM_COMPLETE"

_F = TypeVar("_F", bound=Callable[..., Any])


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def apply(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


_sampling_options = _options(
    click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="1: greedy, 0: all tokens."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True),
    click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0: greedy."),
    click.option("--min-p", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True),
    click.option("--random-seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True),
    click.option("--presence-penalty", type=click.FloatRange(-2, 2), default=0.0, show_default=True),
    click.option("--frequency-penalty", type=click.FloatRange(-2, 2), default=0.0, show_default=True),
    click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True),
    click.option("--max-output-tokens", type=click.IntRange(1), help="Tokens of the answer alone."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
)


def _max_tokens_option(default: str) -> Callable[[_F], _F]:
    return click.option(
        "--max-tokens", type=click.IntRange(1), help=f"Tokens of prompt and answer together.  [default: {default}]"
    )


_engine_options = _options(
    click.option("--threads", type=click.IntRange(1), help="[default: one per physical core]"),
    click.option("--weights", type=click.Choice(["auto", "mmap", "ram"]), default="auto", show_default=True),
    click.option(
        "--activation-data-type",
        type=click.Choice(["int8", "float32"]),
        help="How activations meet quantised weights.  [default: int8]",
    ),
    click.option("--lora-path", type=click.Path(), help="A LoRA adapter: MediaPipe's _lora.bin or a PEFT folder."),
)


class _Commands(click.Group):
    """End with the shell's exit code after Ctrl-C, where click would write a line first."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(ExitCode.INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(hearthlm.__version__, prog_name="hearthlm")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def cli(debug: bool) -> None:
    """Run large language models on your own device.

    \b
    hearthlm run "Tell me a story about a brave little boat."
    hearthlm run model.bin "Hello" --temperature 0
    hearthlm chat model.bin
    hearthlm inspect model.bin
    """


def _complete_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[MODEL] [PROMPT]", shell_complete=_complete_file)
@click.option("--prompt-file", type=click.Path(dir_okay=False), help="Read the prompt from this file.")
@click.option("--raw", is_flag=True, help="Do not put the prompt into the model's own turns.")
@click.option("--num-responses", type=click.IntRange(1), default=1, show_default=True, help="Answers to make.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of streaming text.")
@_max_tokens_option("512")
@_sampling_options
@_engine_options
def run(
    arguments: tuple[str, ...],
    prompt_file: str | None,
    raw: bool,
    num_responses: int,
    as_json: bool,
    max_tokens: int | None,
    threads: int | None,
    weights: Any,
    activation_data_type: Any,
    lora_path: str | None,
    **sampling: Any,
) -> None:
    """Answer a prompt, streamed to stdout.

    MODEL is a MediaPipe .bin or a Hugging Face folder; without it the small model inside the package answers.
    PROMPT "-" reads stdin. Several answers are printed one after the other, with a line "---" between them.

    \b
    hearthlm run "Write a short story about Mira and a lost key."
    hearthlm run gemma-2b-it-cpu-int4.bin "Why is the sky blue?"
    git log -5 | hearthlm run ./gemma-3-1b-it - --max-tokens 2048
    """
    model, prompt = _model_and_prompt(arguments, prompt_file)
    options = hearthlm.LlmInferenceOptions(
        model_path=model,
        max_tokens=max_tokens,
        num_responses=num_responses,
        num_threads=threads,
        weights=weights,
        activation_data_type=activation_data_type,
        lora_path=lora_path,
        prefix_cache_mb=0,
    )
    session_options = hearthlm.LlmInferenceSessionOptions(
        prompt_templates=hearthlm.PromptTemplates() if raw else None, **sampling
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
        elif num_responses > 1:
            texts = llm.generate(prompt, session_options).texts
            click.echo("\n---\n".join(texts))
        else:
            _print_stream(llm.generate_stream(prompt, session_options))


@cli.command()
@click.argument("model", required=False, shell_complete=_complete_file)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--session", type=click.Path(dir_okay=False), help="Go on with what /save has written.")
@_max_tokens_option("the model's context, as far as memory allows")
@_sampling_options
@_engine_options
def chat(
    model: str | None,
    system: str | None,
    session: str | None,
    max_tokens: int | None,
    threads: int | None,
    weights: Any,
    activation_data_type: Any,
    lora_path: str | None,
    **sampling: Any,
) -> None:
    """Talk with a model, turn by turn.

    Every line of stdin is a turn, and the answers are streamed to stdout. Ctrl-C ends an answer, not the program.
    Lines that begin with a slash are commands: /reset forgets the conversation, /save FILE writes it with everything
    computed for it, /load FILE goes on with it, /help lists them, /exit (or the end of stdin) leaves.

    \b
    hearthlm chat
    hearthlm chat ./gemma-3-1b-it --system "Answer in one sentence."
    hearthlm chat gemma-2b-it-cpu-int4.bin --session talk.session
    """
    from hearthlm.demo import model_path

    path = model or model_path()
    options = hearthlm.LlmInferenceOptions(
        model_path=path,
        max_tokens=max_tokens or _max_tokens_in_memory(hearthlm.inspect_model(path)),
        num_threads=threads,
        weights=weights,
        activation_data_type=activation_data_type,
        lora_path=lora_path,
    )
    with _load(options) as llm:
        conversation = _Conversation(llm, hearthlm.LlmInferenceSessionOptions(**sampling), system)
        if session is not None:
            conversation.load(session)
        if sys.stdin.isatty():
            click.echo("/help lists the commands, Ctrl-C ends an answer, Ctrl-D leaves", err=True)
        while (line := _read_line()) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                if conversation.command(line):
                    break
            else:
                conversation.answer(line)


class _Conversation:
    """Hold the session of `hearthlm chat`, and what its commands do."""

    def __init__(self, llm: LlmInference, options: hearthlm.LlmInferenceSessionOptions, system: str | None) -> None:
        self._llm = llm
        self._options = options
        self._system = system
        self._by_messages = True
        try:
            llm.chat_format  # noqa: B018 -- asked whether there is one
        except hearthlm.UnsupportedModelError as error:
            if system is not None:
                raise
            self._by_messages = False
            click.echo(f"hearthlm: {error}; what you type is continued as it is", err=True)
        self._session = self._begin()

    def _begin(self) -> hearthlm.LlmInferenceSession:
        session = hearthlm.LlmInferenceSession.create_from_options(self._llm, self._options)
        if self._system is not None:
            session.add_message("system", self._system)
        return session

    def answer(self, text: str) -> None:
        try:
            if self._by_messages:
                self._session.add_message("user", text)
            else:
                self._session.add_query_chunk(text)
        except (hearthlm.HearthLMError, ValueError) as error:
            advice = "; /reset begins anew" if isinstance(error, hearthlm.ContextLengthError) else ""
            click.echo(f"hearthlm: {_message(error)}{advice}", err=True)
            return
        with contextlib.suppress(KeyboardInterrupt):
            _print_stream(self._session.generate_response_stream())

    def load(self, path: str) -> None:
        self._session.load(path)

    def command(self, line: str) -> bool:
        """Do what a line that begins with a slash says; return True to leave."""
        name, _, argument = line.strip().partition(" ")
        argument = argument.strip()
        if name == "/exit":
            return True
        if name == "/reset":
            self._session.close()
            self._session = self._begin()
            _note("the conversation is forgotten")
        elif name in ("/save", "/load") and argument:
            try:
                (self._session.save if name == "/save" else self._session.load)(argument)
                _note(f"{argument}: {self._session.num_tokens} tokens {name[1:].rstrip('e')}ed")
            except (OSError, hearthlm.HearthLMError) as error:
                click.echo(f"hearthlm: {_message(error)}", err=True)
        elif name == "/help":
            click.echo("/reset  forget the conversation\n/save FILE  /load FILE\n/exit  leave", err=True)
        else:
            click.echo(f"hearthlm: {line.strip()}: expected /reset, /save FILE, /load FILE, /help or /exit", err=True)
        return False


def _read_line() -> str | None:
    """Return the next line of stdin, None at its end; a Ctrl-C while a line is typed drops the line."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 -- line editing for input()
    while True:
        try:
            if sys.stdout.isatty():
                return input("> ")
            click.echo("> ", nl=False, err=True)  # input() would write it between the answers
            if line := sys.stdin.readline():
                return line.rstrip("\n")
            raise EOFError
        except EOFError:
            click.echo(err=True)
            return None
        except KeyboardInterrupt:
            click.echo(err=True)


def _note(text: str) -> None:
    """Tell a person, and no program, that something was done."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        click.echo(text, err=True)


def _max_tokens_in_memory(info: ModelInfo) -> int:
    """Return the model's context, or what of it half of the free memory can hold."""
    available = 4 << 30
    with contextlib.suppress(OSError, ValueError, AttributeError):
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):  # with what the system would give back from its caches
                available = int(line.split()[1]) << 10
    bytes_per_token = 4 * info.architecture.num_layers * 2 * info.architecture.kv_dim
    return max(1, min(info.architecture.context_length, available // 2 // bytes_per_token))


@cli.command()
@click.argument("model", shell_complete=_complete_file)
@click.option("--text", help="Score this text, after the start token.")
@click.option("--ids", metavar="1,2,3", help="Score these token ids as they are.")
@click.option("--file", "text_file", type=click.Path(dir_okay=False), help='Score the text of this file; "-" is stdin.')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_engine_options
def score(
    model: str,
    text: str | None,
    ids: str | None,
    text_file: str | None,
    as_json: bool,
    threads: int | None,
    weights: Any,
    activation_data_type: Any,
    lora_path: str | None,
) -> None:
    """Say how likely a text is: the log-probability of each token given those before it, and the perplexity.

    Prints a line per token, the natural logarithm and the token, and last the perplexity.

    \b
    hearthlm score model.bin --text "The sky is blue."
    hearthlm score ./gemma-3-1b-it --file letter.txt --json
    """
    if sum(given is not None for given in (text, ids, text_file)) != 1:
        raise click.UsageError("expected exactly one of --text, --ids and --file")
    info = hearthlm.inspect_model(model)
    options = hearthlm.LlmInferenceOptions(
        model_path=model,
        max_tokens=info.architecture.context_length,
        num_threads=threads,
        weights=weights,
        activation_data_type=activation_data_type,
        lora_path=lora_path,
    )
    with _load(options) as llm:
        if ids is not None:
            token_ids = _parsed_ids(ids)
        else:
            token_ids = llm.tokenizer.encode(_read_text(text_file) if text_file is not None else text or "")
            if info.start_id is not None and token_ids[:1] != [info.start_id]:
                token_ids = [info.start_id, *token_ids]
        if len(token_ids) < 2:
            raise click.UsageError("expected a text of at least two tokens: the first is only looked at")
        logprobs = [float(value) for value in llm.token_logprobs(token_ids)]
        perplexity = math.exp(-math.fsum(logprobs) / len(logprobs))
        if as_json:
            _print_json({"ids": token_ids, "logprobs": logprobs, "perplexity": perplexity})
            return
        for token_id, logprob in zip(token_ids[1:], logprobs, strict=True):
            piece = json.dumps(llm.tokenizer.piece(token_id), ensure_ascii=False) if info.tokenizer else token_id
            click.echo(f"{logprob:10.4f}  {piece}")
        click.echo(f"perplexity {perplexity:.4f} over {len(logprobs)} tokens")


_BITS = click.IntRange(4, 32)
_METHODS = click.Choice(["minmax", "mediapipe_mse", "mse", "gptq"])

_conversion_options = _options(
    click.option("-o", "--output", type=click.Path(), help="[default: NAME-BACKEND-intBITS.bin in this folder]"),
    click.option("--model-type", help="MediaPipe's name (GEMMA_2B, ...); needed only without config.json."),
    click.option(
        "--backend", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True, help="gpu: phones, Web."
    ),
    click.option("--attention-quant-bits", type=_BITS, help="[default: --bits]"),
    click.option("--feedforward-quant-bits", type=_BITS, help="[default: --bits]"),
    click.option("--embedding-quant-bits", type=_BITS, help="[default: --bits]"),
    click.option("--vocab-model-file", type=click.Path(), default="", help="[default: the tokenizer by the weights]"),
    click.option("--num-heads", type=click.IntRange(1), help="For a checkpoint without config.json."),
    click.option("--head-dim", type=click.IntRange(1), help="For a checkpoint without config.json."),
    click.option("--threads", type=click.IntRange(1), help="[default: one per physical core]"),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
)


@cli.command()
@click.argument("checkpoint", shell_complete=_complete_file)
@click.option("--bits", type=_BITS, default=8, show_default=True, help="8, 4, or 32 (on gpu also 16) to keep floats.")
@click.option(
    "--quantization-method", type=_METHODS, help="minmax is MediaPipe's, gptq nearest to float.  [default: minmax]"
)
@click.option("--asymmetric", is_flag=True, help="With zero points; gpu only.")
@click.option("--lora-ckpt", type=click.Path(), help="A PEFT adapter to convert along.")
@click.option("--lora-rank", type=click.IntRange(1), help="[default: the adapter's]")
@click.option("--lora-alpha", type=float, help="For an adapter without adapter_config.json.")
@click.option("--lora-output", type=click.Path(), help="[default: the output with _lora before its ending]")
@click.option(
    "--mediapipe-compatible", is_flag=True, help="Repeat what MediaPipe's converter does wrong, byte for byte."
)
@click.option("--use-fake-weights", is_flag=True, help="Write zeros, for tests of size and speed.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be written, and write nothing.")
@_conversion_options
def convert(
    checkpoint: str, asymmetric: bool, lora_output: str | None, dry_run: bool, as_json: bool, **settings: Any
) -> None:
    """Convert a Hugging Face CHECKPOINT to MediaPipe's .bin, for this machine (cpu) or for phones and the Web (gpu).

    CHECKPOINT is a folder, a file of weights or a pattern. The path of what was written is printed to stdout.

    \b
    hearthlm convert ./gemma-3-1b-it --bits 4
    hearthlm convert ./gemma-2b-it --backend gpu -o gemma-2b-it-gpu-int8.bin
    hearthlm convert ./gemma-2b-it --lora-ckpt ./adapter --dry-run
    """
    from hearthlm.converter import plan_conversion

    threads = settings.pop("threads")
    config = _conversion_config(
        checkpoint, is_symmetric=not asymmetric, lora_output_tflite_file=lora_output, **settings
    )
    if not dry_run:
        _convert(config, threads, as_json=as_json)
    elif as_json:
        _print_json(plan_conversion(config).to_json())
    else:
        click.echo(_described_plan(plan_conversion(config)))


@cli.command()
@click.argument("checkpoint", shell_complete=_complete_file)
@click.option("--bits", type=_BITS, default=4, show_default=True, help="8 or 4.")
@click.option("--quantization-method", type=_METHODS, default="gptq", show_default=True)
@click.option("--compare", is_flag=True, help="Write nothing; try every method and say what each costs.")
@click.option("--text", type=click.Path(dir_okay=False), help="Compare on this text.  [default: one that ships]")
@_conversion_options
def quantize(checkpoint: str, compare: bool, text: str | None, as_json: bool, **settings: Any) -> None:
    """Convert a Hugging Face CHECKPOINT to 4 bits, as near to the float model as the format allows.

    It is `convert` with other defaults: the values of a layer are rounded so that their errors cancel on a text that
    ships with the package. --compare measures on another text how far the model's predictions move, in nats per token,
    by each method and at each size.

    \b
    hearthlm quantize ./gemma-3-1b-it
    hearthlm quantize ./gemma-3-1b-it --compare --text letters.txt
    """
    threads = settings.pop("threads")
    config = _conversion_config(checkpoint, **settings)
    if not compare:
        _convert(config, threads, as_json=as_json)
        return
    from hearthlm.quantization_comparison import compare_quantization

    rows = []
    if not as_json:
        click.echo(f"{'method':20} {'file MB':>10} {'seconds':>8} {'KL nats/token':>14} {'perplexity':>11}")
    for row in compare_quantization(config, None if text is None else _read_text(text), num_threads=threads):
        rows.append(dataclasses.asdict(row))
        if not as_json:
            cost = f"{row.file_mb:10,.1f} {row.seconds:8.1f} {row.kl_divergence:14.5f} {row.perplexity:11.3f}"
            click.echo(f"{row.name:20} {cost}")
    if as_json:
        _print_json({"variants": rows})


def _conversion_config(
    checkpoint: str,
    *,
    output: str | None,
    model_type: str | None,
    backend: Any,
    bits: int,
    attention_quant_bits: int | None,
    feedforward_quant_bits: int | None,
    embedding_quant_bits: int | None,
    **settings: Any,
) -> ConversionConfig:
    from hearthlm.converter import ConversionConfig

    name = Path(checkpoint).resolve().name.partition(".")[0].partition("*")[0]
    return ConversionConfig(
        checkpoint,
        None,
        model_type,
        backend,
        str(Path(output or ".").parent),
        attention_quant_bits=attention_quant_bits or bits,
        feedforward_quant_bits=feedforward_quant_bits or bits,
        embedding_quant_bits=embedding_quant_bits or bits,
        output_tflite_file=output or f"{name}-{backend}-{'int' if bits < 16 else 'float'}{bits}.bin",
        **settings,
    )


def _convert(config: ConversionConfig, num_threads: int | None, *, as_json: bool) -> None:
    """Convert with a progress bar, where a person is watching, and print what was written."""
    from hearthlm.converter import convert_checkpoint

    started = time.perf_counter()
    with _progress("converting") as show:
        plan = convert_checkpoint(config, show, num_threads=num_threads)
    if as_json:
        _print_json({**plan.to_json(), "seconds": round(time.perf_counter() - started, 3)})
    else:
        click.echo("\n".join(path for path in (plan.output_file, plan.lora_output_file) if path is not None))


def _described_plan(plan: ConversionPlan) -> str:
    rows = [(t.name, t.source, "x".join(map(str, t.shape)), t.dtype, f"{t.num_bytes:,}") for t in plan.tensors]
    rows.insert(0, ("tensor", "from", "shape", "type", "bytes"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    lines += [f"left over: {name}" for name in plan.left_over]
    outputs = " and ".join(path for path in (plan.output_file, plan.lora_output_file) if path is not None)
    lines.append(
        f"{plan.model_type if plan.model_type != 'none' else 'family ' + plan.family}: {len(plan.tensors)} tensors, "
        f"{plan.num_bytes / 1e6:,.1f} MB to {outputs}, within {plan.peak_rss_mb} MB of memory"
    )
    return "\n".join(lines)


def _parsed_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--ids: expected whole numbers with commas between them, got {text!r}") from None


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that teaches a SHELL to complete hearthlm's commands, options and files.

    \b
    eval "$(hearthlm completion bash)"                                   # in ~/.bashrc
    hearthlm completion fish > ~/.config/fish/completions/hearthlm.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None  # a choice that click knows
    click.echo(complete(cli, {}, "hearthlm", _COMPLETE_VARIABLE).source())


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(file: str, as_json: bool) -> None:
    """Describe a FILE (or folder) without reading its weights.

    Models (MediaPipe .bin, Hugging Face folders), adapters, .task bundles, saved sessions, bare weights, tokenizers.
    """
    info = hearthlm.inspect_file(file)
    if as_json:
        _print_json(info.to_json())
    elif isinstance(info, hearthlm.ModelInfo):
        click.echo(_described(info))
    else:
        click.echo(_described_file(info))


@cli.command()
@click.option("--tflite-model", required=True, type=click.Path(), help="A LiteRT model, prefill and decode.")
@click.option(
    "--tokenizer-model",
    required=True,
    type=click.Path(),
    help="A SentencePiece model, or a Hugging Face tokenizer.json or the folder with it.",
)
@click.option("--start-token", required=True, metavar="TOKEN", help="What begins every prompt.")
@click.option("--stop-token", "stop_tokens", required=True, multiple=True, metavar="TOKEN", help="May be repeated.")
@click.option("-o", "--output", "output_filename", required=True, type=click.Path(), help="The .task to write.")
@click.option(
    "--bytes-to-unicode",
    "enable_bytes_to_unicode_mapping",
    is_flag=True,
    help="The SentencePiece model is spelled in GPT-2's alphabet.",
)
@click.option("--system-prompt", metavar="TEXT", help="What comes before the conversation.")
@_options(
    *(
        click.option(f"--prompt-{part}-{role}", metavar="TEXT", help=f"What {verb} a turn of the {role}.")
        for role in ("user", "model", "system")
        for part, verb in (("prefix", "begins"), ("suffix", "ends"))
    )
)
@click.option("--prompt-prefix", metavar="TEXT", help="Instead of turns: what comes before what the user says.")
@click.option("--prompt-suffix", metavar="TEXT", help="Instead of turns: what comes between it and the answer.")
@_options(*(click.option(f"--{role}-role-token", metavar="TOKEN") for role in ("user", "system", "model", "end")))
@_options(
    *(
        click.option(f"--tflite-{part}", type=click.Path(), help="A further LiteRT model.")
        for part in ("embedder", "per-layer-embedder", "vision-encoder", "vision-adapter")
    )
)
@click.option("--check-model/--no-check-model", default=True, show_default=True, help="Look at the models' signatures.")
def bundle(stop_tokens: tuple[str, ...], **fields: Any) -> None:
    """Put a LiteRT model, its tokenizer and the turns of a prompt into a .task file.

    In a TEXT or TOKEN, \\n stands for a line break, \\t for a tab and \\\\ for a backslash. Prints the bundle's path.

    \b
    hearthlm bundle --tflite-model gemma3.tflite --tokenizer-model tokenizer.model -o gemma3.task \\
        --start-token "<bos>" --stop-token "<eos>" --stop-token "<end_of_turn>" \\
        --prompt-prefix-user "<start_of_turn>user\\n" --prompt-suffix-user "<end_of_turn>\\n" \\
        --prompt-prefix-model "<start_of_turn>model\\n" --prompt-suffix-model "<end_of_turn>\\n"
    """
    for name, value in fields.items():
        if value is not None and name.startswith(("prompt_", "system_prompt", *_TOKENS)):
            fields[name] = _unescaped(value)
    config = hearthlm.bundler.BundleConfig(stop_tokens=[_unescaped(token) for token in stop_tokens], **fields)
    with _progress("writing") as show:
        path = hearthlm.bundler.create_bundle(config, show)
    click.echo(path)


@cli.command()
@click.argument("file", type=click.Path(), shell_complete=_complete_file)
@click.option("-o", "--output-dir", required=True, type=click.Path(), help="The folder to write to; it is created.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def unbundle(file: str, output_dir: str, force: bool) -> None:
    """Take a .task FILE apart: its model, its tokenizer and its metadata become files with fixed names.

    Prints the path of each file. What the FILE holds beyond the known entries is left in it, and named on stderr.

    \b
    hearthlm unbundle gemma3.task -o parts
    """
    extracted = hearthlm.bundler.extract_bundle(file, output_dir, overwrite=force)
    for path in extracted.files:
        click.echo(path)
    for name in extracted.unknown_entries:
        click.echo(f"hearthlm: the entry {name} is not known, and left in the bundle", err=True)


_TOKENS = ("start_token", "user_role", "system_role", "model_role", "end_role")
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def _unescaped(text: str) -> str:
    """Return `text` with the line breaks, tabs and backslashes that a shell makes hard to type."""
    return re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], text)


def main() -> None:
    """Run the command line; the process ends with one of ExitCode."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `hearthlm run ... | head` ends quietly
    if sys.stdin is None:  # `hearthlm ... <&-`
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 -- until the process ends
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        if sys.stdout is None:  # `hearthlm ... >&-`
            raise OSError(errno.EBADF, "it is closed, and nowhere else can the answer go", "stdout")
        cli.main(prog_name="hearthlm", complete_var=_COMPLETE_VARIABLE, standalone_mode=False)
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
        message = _message(error)
        if code is ExitCode.INTERNAL:
            message = f"internal error: {type(error).__name__}: {message} (run again with `hearthlm --debug ...`)"
        click.echo(f"hearthlm: {message}", err=True)
        sys.exit(code)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return ExitCode.NO_INPUT
    if isinstance(error, FileExistsError):
        return ExitCode.CANNOT_CREATE
    if isinstance(error, PermissionError):
        return ExitCode.NO_PERMISSION
    if isinstance(error, (hearthlm.HearthLMError, UnicodeError)):
        return ExitCode.BAD_DATA
    if isinstance(error, OSError):
        return ExitCode.IO_ERROR
    if isinstance(error, ValueError):
        return ExitCode.USAGE
    if isinstance(error, NotImplementedError):
        return ExitCode.UNAVAILABLE
    if isinstance(error, MemoryError):
        return ExitCode.TRY_LATER
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
        return model, _read_text(prompt_file)
    prompt = arguments[-1]
    if prompt == "-":
        return model, _read_text("-")
    if num_models == 0 and _is_model(prompt):
        raise click.UsageError(f"{prompt} is a model, and the prompt is missing")
    return model, prompt


def _is_model(argument: str) -> bool:
    """Say whether a lone argument is rather a model than a prompt."""
    if " " not in argument and argument.endswith((".bin", ".task", ".litertlm")):
        return True
    with contextlib.suppress(OSError):  # a long prompt is no name of a folder
        return argument != "" and Path(argument).is_dir()
    return False


def _load(options: hearthlm.LlmInferenceOptions) -> LlmInference:
    """Load a model, with a progress bar where a person is watching."""
    with _progress("loading") as show:
        return hearthlm.LlmInference.create_from_options(options, show)


class _Show(Protocol):
    def __call__(self, part: float, name: str | None = None) -> None: ...


@contextlib.contextmanager
def _progress(label: str) -> Iterator[_Show | None]:
    """Yield what draws a progress bar, from 0 to 1 and with the name of what is done, None where nobody is watching."""
    if not sys.stderr.isatty() or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        yield None
        return
    with click.progressbar(length=1000, label=label, file=sys.stderr, item_show_func=lambda name: name) as bar:

        def show(part: float, name: str | None = None) -> None:
            bar.update(int(part * 1000) - bar.pos, name)

        yield show
    sys.stderr.write("\x1b[1A\x1b[2K")  # the bar has done its work


def _print_stream(increments: Iterator[str]) -> None:
    """Print an answer as it comes, and a line break after it."""
    last = ""
    try:
        for last in increments:
            sys.stdout.write(last)
            sys.stdout.flush()
    finally:
        increments.close()  # type: ignore[attr-defined]
        if not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def _read_text(path: str) -> str:
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = "stdin" if path == "-" else path
        raise UnicodeError(f"{where}: expected UTF-8, got {error.reason} at byte {error.start}") from None


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
    return _columns([*lines, *_tensor_lines(info)])


_FORMAT_NAMES = {
    "adapter": "PEFT adapter",
    "checkpoint": "Hugging Face checkpoint without config.json",
    "litertlm": "LiteRT-LM .litertlm",
    "lora_bin": "MediaPipe .bin of a LoRA adapter",
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
        return _columns([*lines, *_bundle_lines(info)])
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
    return _columns([*lines, *_tensor_lines(info)])


def _bundle_lines(info: FileInfo) -> list[tuple[str, str]]:
    """Describe a .task or .litertlm, or the LiteRT model alone."""
    data = info.metadata
    lines = []
    for entry in data.get("entries", ()):
        kind = f" ({entry['kind']})" if entry["kind"] else ""
        lines.append(("entry", f"{_plain(entry['name'])}, {_short(entry['bytes'])}B{kind}"))
    for signature in data.get("signatures", ()):
        tensors = [_tensor_list(signature[side]) for side in ("inputs", "outputs")]
        lines.append(("signature", f"{_plain(signature['name'])}: {' -> '.join(tensors)}"))
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
    if info.format == "task":
        lines.append(("start", _plain(data["start_token"]) or "none"))
        lines.append(("stop", ", ".join(map(repr, data["stop_tokens"])) or "none"))
        lines += [(f"{role} role", _plain(token)) for role, token in data["role_tokens"].items()]
        if data["has_chat_template"]:
            lines.append(("chat", "a template in the file"))
    if (templates := info.templates) is not None:
        if templates.session_prefix:
            lines.append(("system prompt", repr(templates.session_prefix)))
        turns = [(f"{role} turn", getattr(templates, role)) for role in ("user", "model", "system")]
        lines += [(role, f"{turn.prefix!r} ... {turn.suffix!r}") for role, turn in turns if turn.prefix or turn.suffix]
    return lines


def _plain(text: str) -> str:
    """Return a text of a file as it is, or quoted where a terminal would obey it."""
    return text if text.isprintable() else repr(text)


_CACHE, _ADAPTER = re.compile(r"kv_cache_|[kv]_cache_"), re.compile(r"lora_")


def _tensor_list(tensors: dict[str, Any]) -> str:
    """Name the tensors of a signature; those of the KV cache and of an adapter are only counted."""
    cache = [name for name in tensors if _CACHE.match(name)]
    adapter = [name for name in tensors if _ADAPTER.match(name)]
    parts = [
        f"{_plain(name)} {t['dtype']} {t['shape']}" for name, t in tensors.items() if name not in (*cache, *adapter)
    ]
    parts += [f"KV cache ({len(cache)})"] if cache else []
    parts += [f"adapter ({len(adapter)})"] if adapter else []
    return ", ".join(parts)


def _tensor_lines(info: ModelInfo | FileInfo) -> list[tuple[str, str]]:
    kinds: dict[str, tuple[int, int]] = {}
    for t in info.tensors:
        count, num_bytes = kinds.get(t.dtype, (0, 0))
        kinds[t.dtype] = (count + 1, num_bytes + t.num_bytes)
    return [("tensors", f"{n} {kind}, {_short(size)}B") for kind, (n, size) in sorted(kinds.items())]


def _columns(lines: list[tuple[str, str]]) -> str:
    width = max(12, *(len(name) for name, _ in lines))
    return "\n".join(f"{name:{width}} {value}" for name, value in lines)


def _short(number: int) -> str:
    """Write a count in thousands, millions or billions, with one decimal."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:,.1f}{name}"
    return f"{number} "


if __name__ == "__main__":
    main()
