"""The command line as a process: what it prints where, and how it ends."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import random_models
from click.testing import CliRunner
from demo_checkpoint import write_demo_checkpoint
from litert_models import litert_model

import hearthlm
import hearthlm.cli
from hearthlm.cli import ExitCode, cli
from hearthlm.cli.exit_code import exit_code_of

GEMMA = Path(__file__).parent / "golden" / "outputs" / "0.10.14" / "gemma_2b_cpu_int8.bin"
LITERT = Path(__file__).parent / "golden" / "litert"
TOKENIZERS = Path(__file__).parent / "golden" / "tokenizers"


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
        (("run", GEMMA.parent), ExitCode.USAGE, "prompt is missing"),
        (("run", "no-such-file.bin"), ExitCode.USAGE, "prompt is missing"),
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


def test_litert_models_are_run_chatted_with_and_scored(tmp_path: Path) -> None:
    task, litertlm = (LITERT / f"gemma3_mask_transposed_q8_ekv128.{ending}" for ending in ("task", "litertlm"))
    documents = [
        json.loads(run("run", path, "a boat", "--json", "--max-output-tokens", "4").stdout) for path in (task, litertlm)
    ]
    assert documents[0]["token_ids"] == documents[1]["token_ids"]
    result = run("chat", litertlm, "--max-output-tokens", "3", stdin=b"a boat\nand a key\n")
    assert (result.returncode, result.stderr) == (0, b"")
    scored = json.loads(run("score", task, "--text", "a boat", "--json").stdout)
    assert scored["ids"][0] == 2
    assert len(scored["logprobs"]) == len(scored["ids"]) - 1
    result = run("run", task, "a boat", "--weights", "ram")
    assert result.returncode == ExitCode.USAGE
    assert b"weights='ram'" in result.stderr


def test_a_bare_graph_is_told_its_tokens_by_options(tmp_path: Path) -> None:
    graph, tokenizer = LITERT / "gemma3_q4_block32_ekv128.tflite", TOKENIZERS / "bpe_512_byte_fallback.model"
    options = ("--tokenizer", tokenizer, "--start-token", "<s>", "--stop-token", "1", "--stop-token", "<end_of_turn>")
    result = run("run", graph, "a boat", "--json", "--max-output-tokens", "4", *options, "--cache-dir", tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    assert [path.suffix for path in tmp_path.iterdir()] == [".xnnpack_cache"]
    lines = run("score", graph, "--ids", "2,5,7").stdout.decode().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["5", "7"]
    result = run("run", graph, "a boat")
    assert result.returncode == ExitCode.BAD_DATA
    assert b"--tokenizer" in result.stderr


def test_a_lone_argument_is_a_prompt_however_short_or_long() -> None:
    for prompt in ("", "abc" * 2000):
        assert run("run", prompt, "--max-tokens", "8192", "--max-output-tokens", "1").returncode == 0


def test_a_prompt_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"abc\xff")
    result = run("run", "--prompt-file", tmp_path / "prompt")
    assert result.returncode == ExitCode.BAD_DATA
    assert (
        result.stderr.decode() == f"hearthlm: {tmp_path / 'prompt'}: expected UTF-8, got invalid start byte at byte 3\n"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "No such file", "a"), ExitCode.NO_INPUT),
        (PermissionError(13, "Permission denied", "a"), ExitCode.NO_PERMISSION),
        (OSError(28, "No space left on device"), ExitCode.IO_ERROR),
        (MemoryError(), ExitCode.TRY_LATER),
        (NotImplementedError("preferred_backend"), ExitCode.UNAVAILABLE),
        (ImportError('pip install "hearthlm[litert]"'), ExitCode.UNAVAILABLE),
        (hearthlm.ContextLengthError(9, 5), ExitCode.BAD_DATA),
        (ValueError("top_k"), ExitCode.USAGE),
        (ZeroDivisionError(), ExitCode.INTERNAL),
    ],
)
def test_every_error_has_an_exit_code(error: BaseException, code: ExitCode) -> None:
    assert exit_code_of(error) is code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">/dev/full", ExitCode.IO_ERROR),
        (">&-", ExitCode.IO_ERROR),
        ("2>&-", ExitCode.OK),
        ("<&-", ExitCode.OK),
    ],
)
def test_only_answers_need_somewhere_to_go(redirection: str, code: ExitCode) -> None:
    command = f"{sys.executable} -m hearthlm run {GEMMA} - --max-tokens 20 {redirection}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    assert result.returncode == code
    assert b"Traceback" not in result.stderr


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_in_the_middle_of_an_answer(number: int, code: int) -> None:
    command = [sys.executable, "-m", "hearthlm", "run", "Tell me a story about a fox."]
    environment = {**os.environ, "HEARTHLM_KERNELS": "reference"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr == b""


@pytest.mark.parametrize("command", [[], *[[name] for name in cli.commands]])
def test_every_command_has_help_with_an_explanation(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert len(result.output.splitlines()) > 4


def test_version_is_that_of_the_package() -> None:
    assert hearthlm.__version__ in run("--version").stdout.decode()


def test_several_answers_are_told_apart() -> None:
    result = run("run", GEMMA, "abc", "--num-responses", "3", "--max-tokens", "30", "--temperature", "1.5")
    options = hearthlm.LlmInferenceOptions(GEMMA, max_tokens=30, num_responses=3, temperature=1.5)
    with hearthlm.LlmInference.create_from_options(options) as llm:
        assert result.stdout.decode() == "\n---\n".join(llm.generate_responses("abc")) + "\n"


def test_chat_answers_line_by_line_and_is_quiet_when_piped() -> None:
    result = run("chat", GEMMA, "--max-output-tokens", "8", stdin=b"abc\n\nba\n")
    assert result.returncode == 0
    assert result.stderr == b""
    call = hearthlm.LlmInferenceSessionOptions(max_output_tokens=8)
    with hearthlm.LlmInference.create_from_options(hearthlm.LlmInferenceOptions(GEMMA, max_tokens=8192)) as llm:
        with hearthlm.LlmInferenceSession(llm, call) as session:
            wanted = []
            for line in ("abc", "ba"):
                session.add_message("user", line)
                wanted.append(session.generate_response())
    assert result.stdout.decode() == "".join(answer + "\n" for answer in wanted)


def test_chat_saves_loads_resets_and_tells_what_it_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "talk.session"
    shared = ("chat", GEMMA, "--max-output-tokens", "6")
    first = run(*shared, stdin=f"abc\n/save {file}\nba\n".encode())
    assert first.stderr == b""
    again = run(*shared, "--session", file, stdin=b"ba\n")
    assert again.stdout == first.stdout.splitlines(keepends=True)[1]
    both = run(*shared, stdin=f"ba\n/load {file}\nba\n/reset\nba\n/exit\nabc\n".encode())
    lines = both.stdout.splitlines(keepends=True)
    assert lines[1] == again.stdout
    assert len(lines) == 3
    assert lines[0] == lines[2]
    wrong = run(*shared, stdin=b"/frobnicate\n/save\n/load nothing\nabc\n")
    assert wrong.returncode == 0
    assert wrong.stdout == first.stdout.splitlines(keepends=True)[0]
    says = wrong.stderr.decode().splitlines()
    assert len(says) == 3
    assert "expected /reset" in says[0]
    assert "nothing: No such file" in says[2]
    assert run(*shared, "--session", tmp_path / "none", stdin=b"").returncode == ExitCode.NO_INPUT


def test_chat_goes_on_after_a_turn_that_does_not_fit() -> None:
    text = ("abc" * 40 + "\nba\n").encode()
    result = run("chat", GEMMA, "--max-tokens", "60", "--max-output-tokens", "4", stdin=text)
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert "max_tokens is 60" in result.stderr.decode()
    environment = {**os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "hearthlm", "chat", str(GEMMA), "--max-output-tokens", "4"]
    wrong = subprocess.run(command, input=b"\xff\nba\n", capture_output=True, check=True, env=environment)
    assert wrong.stdout == result.stdout
    assert wrong.stderr.startswith(b"hearthlm: the text holds a lone surrogate")


class Terminal:
    """Run a command on a terminal of its own and type into it."""

    def __init__(self, command: str, **environment: str) -> None:
        import pty

        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.environ |= {"TERM": "dumb", **environment}
            os.execv("/bin/sh", ["sh", "-c", f"exec {sys.executable} -m hearthlm {command}"])
        self.seen = b""

    def read_until(self, wanted: bytes, count: int = 1) -> None:
        while self.seen.count(wanted) < count:
            assert select.select([self._terminal], [], [], 60)[0], self.seen
            self.seen += os.read(self._terminal, 4096)

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def end(self) -> int:
        """Wait for the end of the command and return its exit code."""
        with contextlib.suppress(OSError):  # Linux says so at the end
            while data := os.read(self._terminal, 4096):
                self.seen += data
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def test_on_a_terminal_ctrl_c_ends_the_answer_and_not_the_program() -> None:
    terminal = Terminal("chat --temperature 0", HEARTHLM_KERNELS="reference")  # slow enough to be interrupted
    terminal.read_until(b"> ")
    terminal.type(b"Tell me a story about a fox.\n")
    terminal.read_until(b" fox", 2)
    terminal.type(b"\x03")
    terminal.read_until(b"> ", 2)
    answer = terminal.seen.split(b"fox.", 1)[1]
    time.sleep(0.5)  # the line editor listens only some moments after its prompt is there
    terminal.type(b"\x03")  # drops what was typed
    terminal.read_until(b"> ", 3)
    terminal.type(b"/exit\n")
    assert terminal.end() == 0
    assert len(answer) < 600
    assert b"Traceback" not in terminal.seen


def test_on_a_terminal_only_answers_go_into_a_file(tmp_path: Path) -> None:
    terminal = Terminal(f"chat {GEMMA} --max-output-tokens 6 > {tmp_path / 'log'}")
    for number, line in enumerate((b"abc", f"/save {tmp_path / 'talk'}".encode(), b"/reset", b"abc"), start=1):
        terminal.read_until(b"> ", number)
        terminal.type(line + b"\n")
    terminal.read_until(b"> ", 5)
    terminal.type(b"\x04")
    assert terminal.end() == 0
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == second
    assert b"tokens saved" in terminal.seen
    assert b"the conversation is forgotten" in terminal.seen


def test_score_prints_each_token_and_the_perplexity(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcab")
    lines = run("score", GEMMA, "--text", "abcab").stdout.decode().splitlines()
    document = json.loads(run("score", GEMMA, "--file", tmp_path / "text", "--json").stdout)
    assert set(document) == {"ids", "logprobs", "perplexity"}
    assert len(document["ids"]) == len(document["logprobs"]) + 1 == len(lines)
    assert [float(line.split()[0]) for line in lines[:-1]] == [round(value, 4) for value in document["logprobs"]]
    assert lines[-1].startswith(f"perplexity {document['perplexity']:.4f}")
    ids = ",".join(map(str, document["ids"]))
    assert json.loads(run("score", GEMMA, "--ids", ids, "--json").stdout) == document
    assert json.loads(run("score", GEMMA, "--file", "-", "--json", stdin=b"abcab").stdout) == document


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("score", GEMMA), ExitCode.USAGE, "exactly one"),
        (("score", GEMMA, "--ids", "1,x"), ExitCode.USAGE, "whole numbers"),
        (("score", GEMMA, "--ids", "1,99999999"), ExitCode.USAGE, "99999999"),
        (("score", GEMMA, "--text", ""), ExitCode.USAGE, "at least two tokens"),
        (("score", "nothing", "--text", "abc"), ExitCode.NO_INPUT, "nothing"),
        (("chat", "nothing"), ExitCode.NO_INPUT, "nothing"),
        (("completion", "tcsh"), ExitCode.USAGE, "tcsh"),
    ],
)
def test_other_commands_fail_in_a_line_too(arguments: tuple[str | Path, ...], code: ExitCode, says: str) -> None:
    result = run(*arguments)
    assert result.returncode == code
    assert says in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


def test_a_command_is_imported_alone_and_each_can_be() -> None:
    code = (
        "import sys; from hearthlm.cli import cli; cli(['run', '--help'], standalone_mode=False); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "hearthlm.cli.run" in loaded
    assert not {"hearthlm.cli.serve", "hearthlm.cli.batch", "hearthlm.batch", "numpy"} & loaded
    for module in pkgutil.iter_modules(hearthlm.cli.__path__):
        importlib.import_module(f"hearthlm.cli.{module.name}")
    assert sorted(cli.commands) == cli.list_commands(click.Context(cli))


def test_a_shell_completes_commands_and_options() -> None:
    script = run("completion", "bash").stdout.decode()
    command = f"source /dev/stdin <<'EOF'\n{script}\nEOF\n"
    command += "COMP_WORDS=(hearthlm chat --sys); COMP_CWORD=2; _hearthlm_completion hearthlm; echo ${COMPREPLY[@]}"
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ["--system"]
    for shell in ("zsh", "fish"):
        assert "hearthlm" in run("completion", shell).stdout.decode()


def test_a_folder_that_cannot_be_made_ends_every_writer_alike(tmp_path: Path) -> None:
    task = Path(__file__).parent / "golden" / "litert" / "gemma3_q8_ekv128.task"
    parts = tmp_path / "parts"
    assert run("unbundle", task, "-o", parts).returncode == 0
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "folder"
    bundle = ("bundle", "--tflite-model", parts / "model.tflite", "--tokenizer-model", parts / "tokenizer.model")
    tokens = ("--start-token", "<s>", "--stop-token", "</s>", "-o", inside / "a.task")
    commands = (
        ("unbundle", task, "-o", inside),
        ("repack", task, inside / "a.litertlm"),
        (*bundle, *tokens),
    )
    for command in commands:
        result = run(*command)
        assert (result.returncode, result.stdout) == (ExitCode.CANNOT_CREATE, b""), command
        assert "the folder cannot be made" in result.stderr.decode()


def test_a_bundle_is_taken_apart_and_made_again(tmp_path: Path) -> None:
    original = Path(__file__).parent / "golden" / "litert" / "gemma3_q8_ekv128.task"
    parts = run("unbundle", original, "-o", tmp_path / "parts")
    assert (parts.returncode, parts.stderr) == (0, b"")
    model, tokenizer, _ = parts.stdout.decode().splitlines()
    again = run("unbundle", original, "-o", tmp_path / "parts")
    assert again.returncode == ExitCode.CANNOT_CREATE
    assert "the file is there already; overwrite (--force) replaces it" in again.stderr.decode()
    assert again.stdout == b""
    assert run("unbundle", original, "-o", tmp_path / "parts", "--force").returncode == 0

    bundle = ("bundle", "--tflite-model", model, "--tokenizer-model", tokenizer, "--start-token", "<s>")
    made = run(
        *bundle, "--stop-token", "</s>", "--stop-token", "a\\\\b\\n", "-o", tmp_path / "made",
        "--prompt-prefix-user", "<start_of_turn>user\\n", "--prompt-suffix-user", "<end_of_turn>\\n",
    )  # fmt: skip
    assert (made.returncode, made.stderr) == (0, b"")
    assert made.stdout.decode() == f"{tmp_path / 'made.task'}\n"
    document = json.loads(run("inspect", tmp_path / "made.task", "--json").stdout)
    assert document["templates"]["user"] == {"prefix": "<start_of_turn>user\n", "suffix": "<end_of_turn>\n"}
    assert document["metadata"]["stop_tokens"] == ["</s>", "a\\b\n"]
    assert document["metadata"]["kv_cache"]["num_tokens"] == 128

    refused = run(*bundle, "--stop-token", "<nothing>", "-o", tmp_path / "refused.task")
    assert refused.returncode == ExitCode.BAD_DATA
    assert "Failed to encode stop token <nothing> with tokenizer." in refused.stderr.decode()
    both = ("--prompt-prefix", "x", "--prompt-prefix-user", "y")
    assert run(*bundle, "--stop-token", "</s>", "-o", tmp_path / "refused", *both).returncode == ExitCode.USAGE
    assert run(*bundle, "-o", tmp_path / "refused").returncode == ExitCode.USAGE
    assert not list(tmp_path.glob("refused*"))


def test_inspect_describes_how_a_bundle_is_called() -> None:
    lines = run("inspect", GEMMA.parents[2] / "litert" / "gemma3_q8_ekv128.task").stdout.decode().splitlines()
    assert "signature    decode: input_pos INT32 [1], tokens INT32 [1, 1], KV cache (4) -> logits" in "\n".join(lines)
    assert "context      128 tokens (axis 1 of the keys, 1 of the values)" in lines
    assert "start        <s>" in lines
    assert r"model turn   '<start_of_turn>model\n' ... '<end_of_turn>\n'" in lines


def test_inspect_sends_no_escape_sequence_of_a_file_to_the_terminal(tmp_path: Path) -> None:
    inputs = {"\x1b[31mtokens": (2, [1, 8])}
    (tmp_path / "m").write_bytes(litert_model({"\x1b]0;x\x07": (inputs, {}), "decode": (inputs, {})}))
    result = run("inspect", tmp_path / "m")
    assert result.returncode == 0
    assert b"\x1b" not in result.stdout
    assert rb"'\x1b]0;x\x07': '\x1b[31mtokens' INT32 [1, 8]" in result.stdout


def test_inspect_describes_what_is_no_model_by_itself() -> None:
    folder = GEMMA.parent.parent
    lines = run("inspect", folder / "0.10.35" / "bundle_templates.task").stdout.decode().splitlines()
    assert lines[0].split(None, 1) == ["format", "MediaPipe .task bundle"]
    assert any(line.startswith("entry") and "METADATA" in line for line in lines)
    lines = run("inspect", folder / "0.10.14" / "gemma_2b_gpu_lora_lora.bin").stdout.decode().splitlines()
    assert lines[0].split(None, 1) == ["format", "MediaPipe .bin of a LoRA adapter"]


def test_an_adapter_changes_the_answer_and_one_that_does_not_fit_is_refused() -> None:
    adapter = GEMMA.parent / "gemma_2b_gpu_lora_lora.bin"
    shared = ("abcabc", "--max-tokens", "40", "--random-seed", "1", "--temperature", "1")
    model = GEMMA.parent / "gemma_2b_gpu_lora.bin"
    adapted = run("run", model, *shared, "--lora-path", adapter)
    assert (adapted.returncode, adapted.stderr) == (0, b"")
    assert adapted.stdout != run("run", model, *shared).stdout
    refused = run("run", "Hello", "--lora-path", adapter)
    assert refused.returncode == ExitCode.BAD_DATA
    assert "another type of model" in refused.stderr.decode()


# Conversion


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    random_models.write_checkpoint(folder, random_models.CONFIGS["gemma3_mqa"])
    shutil.copyfile(GEMMA.parents[2] / "inputs" / "spm64" / "tokenizer.model", folder / "tokenizer.model")
    return folder


def run_in(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hearthlm", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_convert_prints_the_path_of_what_it_wrote(small_checkpoint: Path, tmp_path: Path) -> None:
    result = run_in(tmp_path, "convert", small_checkpoint, "--bits", "4")
    assert (result.returncode, result.stdout, result.stderr) == (0, "small-cpu-int4.bin\n", "")
    document = json.loads(run_in(tmp_path, "inspect", "small-cpu-int4.bin", "--json").stdout)
    assert document["family"] == "gemma3"
    assert {tensor["dtype"] for tensor in document["tensors"]} == {"FLOAT32", "INT4"}


def test_a_dry_run_lists_every_tensor_and_writes_nothing(small_checkpoint: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    table = run_in(tmp_path, "convert", small_checkpoint, "--dry-run")
    document = json.loads(run_in(tmp_path, "convert", small_checkpoint, "--dry-run", "--json").stdout)
    assert sorted(tmp_path.iterdir()) == before
    for tensor in document["tensors"]:
        line = next(line for line in table.stdout.splitlines() if line.split()[0] == tensor["name"])
        assert line.split() == [
            tensor["name"],
            tensor["source"],
            "x".join(map(str, tensor["shape"])),
            tensor["dtype"],
            f"{tensor['num_bytes']:,}",
        ]
    assert "MB of memory" in table.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 66, "nothing: No such file"),
        (["small", "--bits", "5"], 2, "attention_quant_bits"),
        (["small", "--model-type", "PHI_2"], 65, "is of the family gemma3, not phi"),
        (["small", "-o", "small"], 73, "small: expected the name of a file, got a folder"),
        (["small", "-o", "small/config.json/x.bin"], 73, "config.json"),
        (["small", "--asymmetric"], 2, "is_symmetric: expected True for cpu"),
    ],
)
def test_a_conversion_that_fails_is_one_line_and_a_code(
    arguments: list[str], code: int, says: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    result = run_in(tmp_path, "convert", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_quantize_compares_methods(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc abd acd bcd " * 3)
    arguments: tuple[str | Path, ...] = ("quantize", small_checkpoint, "--compare", "--text", "text.txt", "--json")
    rows = json.loads(run_in(tmp_path, *arguments).stdout)["variants"]
    cost = {row["name"]: row["kl_divergence"] for row in rows}
    assert cost["float"] == 0
    assert 0 < cost["8/8/8 minmax"] < cost["4/4/8 minmax"] < cost["4/4/4 minmax"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "text.txt"]


def test_an_answer_is_held_to_a_form(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    properties = {"ok": {"type": "boolean"}}
    schema.write_text(
        json.dumps({"type": "object", "properties": properties, "required": ["ok"], "additionalProperties": False})
    )
    answer = run("run", "Hello", "--json-schema", schema, "--max-tokens", "400", "--temperature", "0").stdout
    assert json.loads(answer) in ({"ok": True}, {"ok": False})
    assert run("run", "Hello", "--regex", "(yes|no)[.]").stdout in (b"yes.\n", b"no.\n")
    schema.write_text("{")
    for wrong, says in (
        (("--json-schema", schema), b"expected JSON"),
        (("--regex", "("), b"cannot be enforced"),
        (("--regex", "a", "--json-schema", schema), b"got both"),
        (("--json-schema", tmp_path / "none.json"), b"none.json"),
    ):
        result = run("run", "Hello", *wrong)
        assert result.returncode in (ExitCode.USAGE, ExitCode.NO_INPUT)
        assert says in result.stderr
        assert result.stdout == b""


def test_export_writes_what_the_ending_says(tmp_path: Path) -> None:
    folder = write_demo_checkpoint(tmp_path / "checkpoint")
    options = ("--prefill-length", "8", "--cache-length", "64", "--quantization", "int4")
    planned = json.loads(run("export", folder, "-o", tmp_path / "m.tflite", *options, "--dry-run", "--json").stdout)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint"]
    assert planned["num_operators"].keys() == {"prefill_8", "decode"}
    described = run("export", folder, "-o", tmp_path / "m.tflite", *options, "--dry-run").stdout.decode()
    assert "family gemma3, int4" in described and "embedding" in described
    for ending in ("tflite", "task", "litertlm"):
        path = tmp_path / f"m.{ending}"
        result = run("export", folder, "-o", path, *options)
        assert result.stdout.decode().strip() == str(path), result.stderr
        assert json.loads(run("inspect", path, "--json").stdout)["format"] == ending
    assert (tmp_path / "m.tflite").stat().st_size == planned["num_bytes"]
    refused = run("export", folder, "-o", tmp_path / "m.task", "--kv-layout", "default")
    assert refused.returncode == ExitCode.USAGE and b"transposed" in refused.stderr
