"""The command line: data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem, get_completion_class

import hearthlm

if TYPE_CHECKING:
    from hearthlm import FileInfo, LlmInference, ModelInfo


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
    if not sys.stderr.isatty() or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        return hearthlm.LlmInference.create_from_options(options)
    with click.progressbar(length=1000, label="loading", file=sys.stderr) as bar:

        def show(part: float) -> None:
            bar.update(int(part * 1000) - bar.pos)

        llm = hearthlm.LlmInference.create_from_options(options, show)
    sys.stderr.write("\x1b[1A\x1b[2K")  # the bar has done its work
    return llm


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
    if info.tokenizer is not None:
        lines.append(("tokenizer", f"{info.tokenizer['kind']}, {info.tokenizer['vocab_size']} pieces"))
    for name, value in info.metadata.items():
        if name == "entries":
            for entry in value:
                kind = f" ({entry['kind']})" if entry["kind"] else ""
                lines.append(("entry", f"{entry['name']}, {_short(entry['bytes'])}B{kind}"))
        elif value not in (None, "", []):
            lines.append(
                (
                    name.removeprefix("num_").replace("_", " "),
                    ", ".join(map(str, value)) if isinstance(value, list) else str(value),
                )
            )
    if info.templates is not None:
        lines.append(("templates", "in the file" if info.templates.user.prefix else "none"))
    return _columns([*lines, *_tensor_lines(info)])


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
