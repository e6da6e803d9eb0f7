"""`hearthlm serve`: answer programs over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, compute_options, max_tokens_option
from hearthlm.cli.terminal import max_tokens_in_memory

if TYPE_CHECKING:
    from hearthlm.server import ServedModel

API_KEY_VARIABLE = "HEARTHLM_API_KEY"


@cli.command()
@click.argument("models", nargs=-1, metavar="[MODEL] ...", shell_complete=complete_file)
@click.option("--host", "address", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one.")
@click.option(
    "--lora-path",
    "lora_paths",
    multiple=True,
    metavar="[NAME=]PATH",
    help="A LoRA adapter, served as MODEL:NAME; may be repeated. With several models: MODEL:NAME=PATH.",
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False),
    help=f"Ask clients for the key in this file.  [default: the variable {API_KEY_VARIABLE}, if it is set]",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name that clients may call this machine.")
@click.option("--allow-origin", multiple=True, metavar="URL", help="A web page that may read answers (CORS).")
@max_tokens_option("the model's context, as far as memory allows")
@click.option("--parallel", type=click.IntRange(1, 256), default=8, show_default=True, help="Answers made together.")
@click.option("--queue", type=click.IntRange(0), default=64, show_default=True, help="Requests that may wait.")
@click.option("--read-timeout", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, metavar="S")
@click.option(
    "--grace",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds for answers to finish after SIGTERM or Ctrl-C.",
)
@click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="Where a request says nothing.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.8, show_default=True)
@click.option(
    "--prefix-cache-mb",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Memory for what later requests begin with, too.",
)
@compute_options
@click.option("--log-requests", is_flag=True, help="Say on stderr what is asked for, never what is said.")
def serve(
    models: tuple[str, ...],
    address: str,
    port: int,
    lora_paths: tuple[str, ...],
    api_key_file: str | None,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    max_tokens: int | None,
    parallel: int,
    queue: int,
    read_timeout: float,
    grace: float,
    top_k: int,
    top_p: float,
    temperature: float,
    prefix_cache_mb: int,
    engine: dict[str, Any],
    log_requests: bool,
) -> None:
    """Serve models to programs that speak OpenAI's API, and a chat page to people.

    Each MODEL is a MediaPipe .bin or a Hugging Face folder; without one the small model inside the package is served.
    Only this machine can reach it, unless --host says otherwise, which needs an API key. Every model computes with
    --threads of its own.

    \b
    hearthlm serve
    hearthlm serve gemma-3-1b-it.bin --lora-path poems=poems_lora.bin
    HEARTHLM_API_KEY=... hearthlm serve model.bin --host 0.0.0.0 --allow-host pi.local
    """
    from hearthlm.demo import model_path
    from hearthlm.server import ServedModel, ServerOptions, create_app
    from hearthlm.server.process import open_socket, run_server
    from hearthlm.server.served_model import model_name

    options = ServerOptions(
        address=address,
        api_key=_api_key(api_key_file),
        allowed_hosts=allow_host,
        allowed_origins=allow_origin,
        max_parallel_responses=parallel,
        max_waiting_requests=queue,
        read_timeout_s=read_timeout,
        grace_s=grace,
    )
    paths = [Path(model) for model in models] or [model_path()]
    names = [model_name(path) for path in paths]
    adapters = _adapters_by_model(lora_paths, names)

    def load() -> list[ServedModel]:
        served = []
        for path, name in zip(paths, names, strict=True):
            llm_options = hearthlm.LlmInferenceOptions(
                model_path=path,
                max_tokens=max_tokens or max_tokens_in_memory(path, num_sequences=parallel * len(paths)),
                top_k=top_k,
                top_p=top_p,
                temperature=temperature,
                prefix_cache_mb=prefix_cache_mb,
                **engine,
            )
            llm = hearthlm.LlmInference.create_from_options(llm_options)
            loras = {adapter: llm.load_lora(lora_path) for adapter, lora_path in adapters[name].items()}
            served.append(ServedModel(llm, name, loras))
        return served

    if log_requests:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    listener = open_socket(address, port)
    where = listener.getsockname()

    def say() -> None:
        host = f"[{where[0]}]" if ":" in where[0] else where[0]
        click.echo(f"serving {', '.join(names)} on http://{host}:{where[1]}", err=True)

    run_server(create_app(load, options), options, listener, on_started=say)


def _api_key(path: str | None) -> str | None:
    if path is not None:
        return Path(path).read_text(encoding="utf-8").strip()
    return os.environ.get(API_KEY_VARIABLE) or None


def _adapters_by_model(arguments: tuple[str, ...], models: list[str]) -> dict[str, dict[str, Path]]:
    """Return the adapters' paths by model and name, from [[MODEL:]NAME=]PATH."""
    from hearthlm.server.served_model import model_name

    adapters: dict[str, dict[str, Path]] = {model: {} for model in models}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals:
            name, path = model_name(Path(argument)), argument
        model, colon, name = name.rpartition(":")
        if not colon:
            model = models[0]
            if len(models) > 1:
                raise click.UsageError(f"--lora-path {argument}: expected MODEL:NAME=PATH, as there are several models")
        if model not in adapters:
            raise click.UsageError(f"--lora-path {argument}: expected a model of {', '.join(models)}, got {model}")
        if name in adapters[model]:
            raise click.UsageError(f"--lora-path {argument}: there is an adapter {name} already")
        adapters[model][name] = Path(path)
    return adapters
