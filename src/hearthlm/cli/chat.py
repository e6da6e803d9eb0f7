"""`hearthlm chat`: a conversation, turn by turn."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

import hearthlm
from hearthlm.cli.exit_code import message_of
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, engine_options, litert_options, max_tokens_option, sampling_options
from hearthlm.cli.terminal import load_model, max_tokens_in_memory, print_stream

if TYPE_CHECKING:
    from hearthlm import LlmInference


@cli.command()
@click.argument("model", required=False, shell_complete=complete_file)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--session", type=click.Path(dir_okay=False), help="Go on with what /save has written.")
@max_tokens_option("the model's context, as far as memory allows")
@sampling_options
@engine_options
@litert_options
def chat(
    model: str | None,
    system: str | None,
    session: str | None,
    max_tokens: int | None,
    engine: dict[str, Any],
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
        max_tokens=max_tokens or max_tokens_in_memory(path),
        **engine,
    )
    with load_model(options) as llm:
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
            click.echo(f"hearthlm: {message_of(error)}{advice}", err=True)
            return
        with contextlib.suppress(KeyboardInterrupt):
            print_stream(self._session.generate_response_stream())

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
            note("the conversation is forgotten")
        elif name in ("/save", "/load") and argument:
            try:
                (self._session.save if name == "/save" else self._session.load)(argument)
                note(f"{argument}: {self._session.num_tokens} tokens {name[1:].rstrip('e')}ed")
            except (OSError, hearthlm.HearthLMError) as error:
                click.echo(f"hearthlm: {message_of(error)}", err=True)
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


def note(text: str) -> None:
    """Tell a person, and no program, that something was done."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        click.echo(text, err=True)
