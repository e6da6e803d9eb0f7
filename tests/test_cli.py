"""The command line as a process: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import hearthlm
from hearthlm.cli import ExitCode, cli

GEMMA = Path(__file__).parent / "golden" / "outputs" / "0.10.14" / "gemma_2b_cpu_int8.bin"


def run(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "hearthlm", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def test_run_prints_the_answer_and_nothing_else() -> None:
    result = run("run", GEMMA, "abc", "--max-tokens", "40", "--random-seed", "2")
    assert result.returncode == 0
    assert result.stderr == b""
    options = hearthlm.LlmInferenceOptions(GEMMA, max_tokens=40, random_seed=2)
    with hearthlm.LlmInference.create_from_options(options) as llm:
        assert result.stdout.decode() == llm.generate_response("abc") + "\n"


def test_the_prompt_may_come_from_stdin_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("abc")
    shared = ("--max-tokens", "30")
    wanted = run("run", GEMMA, "abc", *shared).stdout
    assert run("run", GEMMA, "-", *shared, stdin=b"abc").stdout == wanted
    assert run("run", GEMMA, "--prompt-file", tmp_path / "prompt.txt", *shared).stdout == wanted


def test_json_is_one_document_of_the_documented_shape() -> None:
    document = json.loads(run("run", GEMMA, "abc", "--json", "--max-tokens", "30").stdout)
    assert set(document) == {"texts", "token_ids", "finish_reason", "usage", "timings"}
    assert set(document["usage"]) == {"prompt_tokens", "cached_tokens", "completion_tokens"}
    assert set(document["timings"]) == {"load_s", "prefill_s", "decode_s"}
    assert document["usage"]["completion_tokens"] == len(document["token_ids"][0])


def test_inspect_describes_for_people_and_for_programs() -> None:
    text = run("inspect", GEMMA).stdout.decode()
    assert "MediaPipe .bin" in text
    assert "GEMMA_2B" in text
    document = json.loads(run("inspect", GEMMA, "--json").stdout)
    assert document["format"] == "weights_bin"
    assert document["tensors"][0].keys() == {"name", "dtype", "shape", "bytes"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "no-such-file.bin", "abc"), ExitCode.NO_INPUT, "no-such-file.bin"),
        (("run", GEMMA, "abc", "--top-p", "7"), ExitCode.USAGE, "top-p"),
        (("run", GEMMA, "abc", "--max-tokens", "100000"), ExitCode.USAGE, "max_tokens"),
        (("run", GEMMA, "abc" * 50, "--max-tokens", "20"), ExitCode.BAD_DATA, "max_tokens is 20"),
        (("run", __file__, "abc"), ExitCode.BAD_DATA, "test_cli.py"),
        (("run", "a", "b", "c"), ExitCode.USAGE, "got 3 arguments"),
        (("run", GEMMA), ExitCode.USAGE, "prompt is missing"),
        (("run",), ExitCode.USAGE, "got 0 arguments"),
        (("inspect", "nothing"), ExitCode.NO_INPUT, "nothing"),
        (("frobnicate",), ExitCode.USAGE, "frobnicate"),
    ],
)
def test_a_failure_is_a_line_on_stderr_and_an_exit_code(
    arguments: tuple[str | Path, ...], code: ExitCode, says: str
) -> None:
    result = run(*arguments)
    assert result.returncode == code
    assert result.stdout == b""
    assert says in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in run("--debug", "run", "no-such-file.bin", "abc").stderr.decode()


def test_a_reader_who_leaves_ends_the_process_quietly() -> None:
    command = f"{sys.executable} -m hearthlm run {GEMMA} abc --max-tokens 8000 | head -c 2"
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False, timeout=60)
    assert len(result.stdout) == 2
    assert result.stderr == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_with_the_code_of_the_shell(number: int, code: int, tmp_path: Path) -> None:
    fifo = tmp_path / "prompt"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "hearthlm", "run", str(GEMMA), "--prompt-file", str(fifo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(1.0)  # it waits for the prompt
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert b"Traceback" not in stderr


@pytest.mark.parametrize("command", [[], *[[name] for name in cli.commands]])
def test_every_command_has_help_with_an_explanation(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert len(result.output.splitlines()) > 4


def test_version_is_that_of_the_package() -> None:
    assert hearthlm.__version__ in run("--version").stdout.decode()
