"""Batches of rows: the same answers whatever is beside them, before them or in the way."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hearthlm
from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions, batch
from hearthlm.batch import BatchConfig, BatchProgress, BatchSummary, answer_rows, row_seed, run_batch
from hearthlm.formats import row_file

GEMMA = Path(__file__).parent / "golden" / "outputs" / "0.10.14" / "gemma_2b_cpu_int8.bin"
SHORT = LlmInferenceSessionOptions(max_output_tokens=12, random_seed=7)


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmInference]:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=64)) as llm:
        yield llm


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def some_rows(number: int) -> list[dict[str, Any]]:
    lengths = random.Random(5)
    return [
        {"prompt": "abc" * lengths.randrange(1, 6), "key": f"row {i}", "max_output_tokens": lengths.randrange(1, 40)}
        for i in range(number)
    ]


def config(source: Path, target: Path, **changes: Any) -> BatchConfig:
    options = LlmInferenceOptions(GEMMA, max_tokens=64)
    fields: dict[str, Any] = {"input_file": source, "output_file": target, "model": options, "options": SHORT}
    return BatchConfig(**fields | changes)


def results_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "hearthlm", "batch", *map(str, arguments)]


def test_a_row_is_answered_as_it_would_be_alone_with_its_seed(llm: LlmInference, tmp_path: Path) -> None:
    rows = some_rows(20)
    summary = run_batch(config(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"))
    results = results_of(tmp_path / "out.jsonl")
    assert [result["key"] for result in results] == [row["key"] for row in rows]
    for row, result in zip(rows, results, strict=True):
        options = LlmInferenceSessionOptions(
            max_output_tokens=row["max_output_tokens"], random_seed=row_seed(7, row["key"])
        )
        alone = llm.generate(row["prompt"], options)
        assert result == {
            "key": row["key"],
            "text": alone.texts[0],
            "finish_reason": alone.finish_reason,
            "usage": {"prompt_tokens": alone.num_prompt_tokens, "completion_tokens": alone.num_output_tokens},
            "seed": row_seed(7, row["key"]),
            "error": None,
        }
    tokens = [sum(result["usage"][name] for result in results) for name in ("prompt_tokens", "completion_tokens")]
    assert summary == BatchSummary(20, 0, 0, *tokens)


def test_how_many_are_decoded_together_and_shards_change_nothing(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", some_rows(11))
    whole = tmp_path / "whole.jsonl"
    run_batch(config(source, whole))
    for at_once in (1, 3):
        run_batch(config(source, tmp_path / f"{at_once}.jsonl", max_at_once=at_once))
        assert (tmp_path / f"{at_once}.jsonl").read_bytes() == whole.read_bytes()
    parts = []
    for i in (1, 2, 3):
        run_batch(config(source, tmp_path / f"part{i}.jsonl", shard=(i, 3)))
        parts.append((tmp_path / f"part{i}.jsonl").read_text().splitlines())
    assert [len(part) for part in parts] == [4, 4, 3]
    assert [parts[i % 3][i // 3] for i in range(11)] == whole.read_text().splitlines()


def test_the_seed_of_a_row_is_that_of_its_documentation() -> None:
    digest = hashlib.blake2b(b"a", digest_size=8, key=(3).to_bytes(8, "little")).digest()
    assert row_seed(3, "a") == int.from_bytes(digest, "little")
    assert row_seed(0, 12) == row_seed(0, "12")
    assert row_seed(0, "a") != row_seed(1, "a") != row_seed(1, "b")
    assert 0 <= row_seed(2**64 - 1, "\ud800") < 2**64


def test_a_row_may_have_every_option_that_a_file_can_say() -> None:
    options = {option.name for option in dataclasses.fields(LlmInferenceSessionOptions)}
    # Adapters and templates are the command's; nothing here would read a call of a tool out of an answer.
    others = {"lora", "prompt_templates", "tools", "tool_choice", "parallel_tool_calls"}
    assert set(batch._ROW_OPTIONS) == options - others


BAD_LINES = {
    b"not json": "line 2: not valid JSON",
    b"[1, 2]": "expected a JSON object, got list",
    b'{"prompt": "a", "prompt": "b"}': "'prompt' appears twice",
    b'{"prompt": "\xff"}': "utf-8",
    b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}": "nested more than 32 deep",
    b"{}": "expected either prompt or messages, got neither",
    b'{"prompt": "a", "messages": []}': "got both",
    b'{"messages": []}': "messages: expected at least one",
    b'{"messages": [1]}': "messages: expected a list of objects",
    b'{"messages": [{"role": "king", "content": "a"}]}': "messages[0]: role",
    b'{"prompt": 5}': "prompt: expected a string or token ids, got 5",
    b'{"prompt": [1, "2"]}': "expected integers, got '2'",
    b'{"prompt": [1, 99999999]}': "expected 0 to",
    b'{"prompt": []}': "empty",
    b'{"prompt": "a", "temprature": 1}': "unknown field 'temprature'",
    b'{"prompt": "a", "temperature": -1}': "temperature must be at least 0",
    b'{"prompt": "a", "temperature": 1e999}': "temperature must be at least 0 and finite",
    b'{"prompt": "a", "temperature": NaN}': "NaN is not a JSON number",
    b'{"prompt": "a", "top_k": "many"}': "top_k: expected an integer, got 'many'",
    b'{"prompt": "a", "top_k": 1.5}': "top_k: expected an integer, got 1.5",
    b'{"prompt": "a", "stop": [""]}': "stop: expected a tuple of non-empty strings",
    b'{"prompt": "a", "logit_bias": {"x": 1}}': "invalid literal",
    b'{"prompt": "a", "logit_bias": {"99999999": 1}}': "logit_bias: expected token ids below",
    b'{"prompt": "a", "max_output_tokens": 0}': "max_output_tokens: expected an integer of at least 1",
    b'{"prompt": "a", "random_seed": -1}': "random_seed",
    b'{"prompt": "a", "key": [1]}': "key: expected a string or an integer, got [1]",
    b'{"prompt": "a", "response_format": {"type": "prose"}}': "prose",
    b'{"prompt": "' + b"abc" * 100 + b'"}': "max_tokens is 64",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:30].decode(errors="replace"))
def test_one_bad_line_loses_nothing(line: bytes, llm: LlmInference, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "abc"}\n' + line + b'\n\n{"prompt": "abcabc"}\n')
    summary = run_batch(config(source, tmp_path / "out.jsonl"))
    assert (summary.num_rows, summary.num_errors) == (3, 1)
    first, bad, last = results_of(tmp_path / "out.jsonl")
    assert (first["key"], bad["key"], last["key"]) == (1, 2, 4)
    assert first["error"] is last["error"] is None
    assert BAD_LINES[line] in bad["error"]
    assert bad["text"] is bad["finish_reason"] is bad["usage"] is None
    # One that is alone in its file does not even need the model to be asked.
    assert bad.keys() == first.keys()


def test_a_line_longer_than_a_row_may_be_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(row_file, "MAX_ROW_BYTES", 100)
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "' + b"a" * 1000 + b'"}\n{"prompt": "abc"}\n{"prompt": "' + b"a" * 300)
    run_batch(config(source, tmp_path / "out.jsonl"))
    errors = [result["error"] for result in results_of(tmp_path / "out.jsonl")]
    assert [error is None for error in errors] == [False, True, False]
    assert "in a row" in errors[0]


def test_text_that_is_no_unicode_is_an_error_and_its_key_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "a\\ud800b", "key": "\\udfff"}\n')
    run_batch(config(source, tmp_path / "out.jsonl"))
    (result,) = results_of(tmp_path / "out.jsonl")
    assert result["key"] == "\udfff"
    assert (result["error"] is None) == (result["text"] is not None)


def test_csv_and_text_give_what_jsonl_gives(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": 'say "abc",\nthen', "key": "1", "temperature": 0.5},
        {"prompt": "abc", "key": "2"},
    ]
    run_batch(config(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "1.jsonl"))
    (tmp_path / "in.csv").write_text(
        'key,prompt,temperature,title\r\n1,"say ""abc"",\nthen",0.5,\r\n\r\n2,abc,,A b\r\n'
    )
    run_batch(config(tmp_path / "in.csv", tmp_path / "2.jsonl"))
    wanted, got = results_of(tmp_path / "1.jsonl"), results_of(tmp_path / "2.jsonl")
    assert got[1].pop("metadata") == {"title": "A b"}
    assert got == wanted
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfabc\r\n\r\nabcabc")
    run_batch(config(tmp_path / "in.txt", tmp_path / "3.jsonl"))
    write_rows(tmp_path / "again.jsonl", [{"prompt": "abc", "key": 1}, {"prompt": "abcabc", "key": 3}])
    run_batch(config(tmp_path / "again.jsonl", tmp_path / "4.jsonl"))
    assert (tmp_path / "3.jsonl").read_bytes() == (tmp_path / "4.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"abc", "record 1: expected 2 values, as the header has, got 1"),
        (b"abc,0.5,7", "record 1: expected 2 values, as the header has, got 3"),
        (b"\xff,0.5", "record 1: expected UTF-8"),
        (b"abc,much", "temperature: expected a number, got 'much'"),
        (b",0.5", "expected either prompt or messages, got neither"),
    ],
)
def test_one_bad_record_of_a_table_loses_nothing(line: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"prompt,temperature\n" + line + b"\nabc,0\n")
    run_batch(config(tmp_path / "in.csv", tmp_path / "out.jsonl"))
    bad, good = results_of(tmp_path / "out.jsonl")
    assert says in bad["error"]
    assert good["error"] is None


@pytest.mark.parametrize(
    ("header", "says"), [(b"a,a", "'a' appears twice"), (b"a,,b", "column 2 has no name"), (b"\xff", "expected UTF-8")]
)
def test_a_header_that_names_no_columns_is_refused(header: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(header + b"\n1,2\n")
    with pytest.raises(hearthlm.CorruptFileError, match=says):
        run_batch(config(tmp_path / "in.csv", tmp_path / "out.jsonl"))


def test_metadata_and_logprobs_come_along(llm: LlmInference) -> None:
    metadata = {"title": "ä", "tags": [1, None]}
    row = {"prompt": "abc", "logprobs": 2, "metadata": metadata, "stop": "\n", "logit_bias": {"5": 1.5}}
    (result,) = answer_rows(llm, [row], SHORT)
    document = result.to_json()
    assert document["metadata"] == metadata
    assert len(document["logprobs"]) == result.num_output_tokens
    assert all(len(token["top"]) == 2 for token in document["logprobs"])
    assert result.seed == row_seed(7, 1)


@pytest.mark.parametrize("cut", range(0, 600, 41))
def test_a_torn_last_line_is_repaired_wherever_it_was_torn(cut: int, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "abc"}, {"prompt": 5}, {"prompt": "abcabc", "key": "x"}])
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    run_batch(config(source, whole))
    content = whole.read_bytes()
    torn.write_bytes(content[:cut])
    summary = run_batch(config(source, torn, resume=True))
    assert torn.read_bytes() == content
    assert summary.num_rows_before == content[:cut].count(b"\n")
    assert summary.num_rows == 3 - summary.num_rows_before


def test_a_tail_that_a_power_cut_left_is_cut_off(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", some_rows(3))
    run_batch(config(source, tmp_path / "out.jsonl"))
    content = (tmp_path / "out.jsonl").read_bytes()
    for tail in (bytes(100), bytes(100) + b"\n", b'{"key": "row 1"\n'):
        (tmp_path / "out.jsonl").write_bytes(content[: content.index(b"\n") + 1] + tail)
        run_batch(config(source, tmp_path / "out.jsonl", resume=True))
        assert (tmp_path / "out.jsonl").read_bytes() == content


def test_another_inputs_output_is_not_gone_on_with(tmp_path: Path) -> None:
    rows = some_rows(4)
    source, target = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run_batch(config(source, target))
    content = target.read_bytes()
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        (rows[1:], {}, "line 1: expected the result of the row 'row 1', got that of 'row 0'"),
        (rows[:2], {}, "line 3: the input has no row for it"),
        (rows, {"options": LlmInferenceSessionOptions(random_seed=8)}, "another random seed"),
        (rows, {"shard": (2, 2)}, "another shard's"),
    ]
    for other, changes, says in cases:
        with pytest.raises(hearthlm.CorruptFileError, match=says):
            run_batch(config(write_rows(tmp_path / "other.jsonl", other), target, resume=True, **changes))
        assert target.read_bytes() == content
    target.write_bytes(content.replace(b'{"key": "row 1"', b"[", 1))
    with pytest.raises(hearthlm.CorruptFileError, match="line 2: not valid JSON"):
        run_batch(config(source, target, resume=True))


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    source, target = write_rows(tmp_path / "in.jsonl", some_rows(2)), tmp_path / "out.jsonl"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        run_batch(config(source, target))
    with pytest.raises(ValueError, match="is the input"):
        run_batch(config(source, source, overwrite=True))
    assert target.read_text() == "mine"
    run_batch(config(source, target, overwrite=True))
    assert len(results_of(target)) == 2
    assert run_batch(config(source, target, resume=True)) == BatchSummary(0, 2, 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shard": (0, 2)}, "shard"),
        ({"shard": (3, 2)}, "shard"),
        ({"max_at_once": 0}, "max_at_once"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"input_format": "xml"}, "input_format"),
        ({"output_file": "-", "resume": True}, "stdout"),
        ({"model": LlmInferenceOptions(GEMMA, num_responses=2)}, "num_responses"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        config(tmp_path / "in.jsonl", tmp_path / "out.jsonl", **changes)


def test_rows_are_read_as_answers_get_ready_and_may_be_endless(llm: LlmInference) -> None:
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for taken in count(1):
            # One long answer at the front, wrong ones behind it: what waits must stay bounded.
            yield {"prompt": "abc", "max_output_tokens": 40} if taken == 1 else {"prompt": taken}

    results = answer_rows(llm, rows(), SHORT, max_at_once=2)
    assert next(results).error is None
    assert taken <= 8
    assert [result.error is None for result in islice(results, 100)] == [False] * 100
    assert taken <= 101 + 8
    results.close()


def test_a_failing_request_leaves_the_others_alone(llm: LlmInference) -> None:
    given = ValueError("mine")
    outcomes = list(
        llm.generate_each(
            [("abc", SHORT), ("abc" * 100, SHORT), given, ("abc", LlmInferenceSessionOptions(logit_bias={10**8: 1}))]
        )
    )
    assert isinstance(outcomes[0], hearthlm.GenerationResult)
    assert isinstance(outcomes[1], hearthlm.ContextLengthError)
    assert outcomes[2] is given
    assert isinstance(outcomes[3], ValueError)
    with pytest.raises(ValueError, match="max_at_once"):
        llm.generate_each([], max_at_once=0)


def test_progress_counts_and_foretells(tmp_path: Path) -> None:
    source, target = write_rows(tmp_path / "in.jsonl", [*some_rows(6), {"prompt": 7}]), tmp_path / "out.jsonl"
    seen: list[BatchProgress] = []
    run_batch(config(source, target), seen.append)
    assert [progress.num_rows for progress in seen] == list(range(1, 8))
    assert seen[-1].num_errors == 1
    assert [progress.part for progress in seen] == sorted(progress.part or 0 for progress in seen)
    assert seen[-1].part == 1
    assert seen[-1].remaining_s == 0
    assert seen[0].remaining_s is not None
    content = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(content[:4]))
    again: list[BatchProgress] = []
    run_batch(config(source, target, resume=True), again.append)
    assert [progress.num_rows for progress in again] == [1, 2, 3]
    assert again[0].part_before == seen[3].part


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*some_rows(150), {"prompt": 1}, *some_rows(150)])
    shared = ("--max-tokens", "64", "--at-once", "4")
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert subprocess.run(command(GEMMA, source, whole, *shared), capture_output=True, check=False).returncode == 65
    moments = random.Random(9)
    num_kills = 0
    while True:
        process = subprocess.Popen(command(GEMMA, source, target, "--resume", *shared), stderr=subprocess.DEVNULL)
        begin = target.stat().st_size if target.exists() else 0
        wanted = begin + moments.randrange(1, whole.stat().st_size // 4)
        while process.poll() is None and (target.stat().st_size if target.exists() else 0) < wanted:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        num_kills += 1
        assert whole.read_bytes().startswith(target.read_bytes())
    assert process.returncode in (0, 65)
    assert num_kills >= 3
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_lines(number: signal.Signals, code: int, tmp_path: Path) -> None:
    source, target = write_rows(tmp_path / "in.jsonl", some_rows(400)), tmp_path / "out.jsonl"
    process = subprocess.Popen(command(GEMMA, source, target, "--max-tokens", "64"), stderr=subprocess.PIPE)
    while not (target.exists() and target.stat().st_size):
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors == b""
    assert target.read_bytes().endswith(b"\n")
    assert 0 < len(results_of(target)) < 400


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    source, target = write_rows(tmp_path / "in.jsonl", some_rows(2)), tmp_path / "out.jsonl"
    with target.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process is writing it"):
            run_batch(config(source, target, resume=True))
    run_batch(config(source, target, resume=True))


def test_stdin_and_stdout_are_files_too(tmp_path: Path) -> None:
    lines = b'{"prompt": "abc"}\n{"prompt": "abcabc"}\n'
    process = subprocess.run(
        command(GEMMA, "-", "-", "--input-format", "jsonl", "--max-tokens", "64"), input=lines, capture_output=True
    )
    assert process.returncode == 0
    assert process.stderr == b""
    assert [json.loads(line)["key"] for line in process.stdout.splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("none.jsonl", "out.jsonl"), 66, "none.jsonl"),
        (("in.jsonl",), 2, "got 1 arguments"),
        (("in.jsonl", "out.jsonl", "--shard", "3/2"), 2, "expected i/n"),
        (("in.jsonl", "out.jsonl", "--shard", "half"), 2, "expected i/n"),
        (("in.data", "out.jsonl"), 2, "does not say"),
        (("in.jsonl", "there.jsonl"), 73, "--force"),
        (("in.jsonl", "nowhere/out.jsonl"), 66, "nowhere"),
        (("in.jsonl", "out.jsonl", "--resume", "--force"), 2, "exclude each other"),
    ],
)
def test_a_failure_is_one_line_and_a_code(arguments: tuple[str, ...], code: int, says: str, tmp_path: Path) -> None:
    for name in ("in.jsonl", "in.data", "there.jsonl"):
        write_rows(tmp_path / name, some_rows(1))
    process = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == code, process.stderr
    assert says in process.stderr
    assert process.stdout == ""


def test_a_person_sees_how_far_it_is(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*some_rows(120), {"prompt": 1}])
    main, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        command(GEMMA, source, tmp_path / "out.jsonl", "--max-tokens", "64"), stderr=terminal, env=environment
    )
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal is gone with its last process
        while data := os.read(main, 4096):
            seen += data
    os.close(main)
    assert process.wait() == 65
    assert b"tokens/s" in seen
    assert b" left" in seen
    assert b"121 rows, " in seen.splitlines()[-2]
    assert b"1 of 121 rows have an error" in seen.splitlines()[-1]


def test_a_row_may_ask_for_a_form(llm: LlmInference) -> None:
    pytest.importorskip("llguidance")
    forms = [{"type": "regex", "pattern": "[ab]{3}"}, '{"type": "regex", "pattern": "[ab]{3}"}']
    rows = [{"prompt": "abc", "key": 1, "response_format": form} for form in forms]
    first, second = answer_rows(llm, rows, SHORT)
    assert first == second
    assert re.fullmatch("[ab]{3}", first.text or ""), first


_LINES = st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), max_size=8)


@given(lines=_LINES, first=st.sampled_from([b"", b"prompt,key\n", b'{"prompt": "a"}\n']))
def test_whatever_the_bytes_every_row_has_its_place(lines: list[bytes], first: bytes) -> None:
    data = first + b"\n".join(lines)
    for kind in row_file.ROW_FORMATS:
        try:
            rows = list(row_file.read_rows(io.BytesIO(data), kind, "in"))
        except hearthlm.CorruptFileError as error:
            assert kind == "csv"
            assert str(error).startswith("in: the header: ")
            continue
        assert all((row.fields is None) != (row.error is None) for row in rows)
        numbers = [row.number for row in rows]
        assert numbers == sorted(set(numbers))
        assert [row.end for row in rows] == sorted(row.end for row in rows)
        assert all(0 < row.end <= len(data) for row in rows)
        if kind != "csv":
            filled = [i for i, line in enumerate(data.split(b"\n"), 1) if line.removeprefix(b"\xef\xbb\xbf").strip()]
            assert numbers == filled or data.startswith(b"\xef\xbb\xbf")


@given(data=st.binary(max_size=200), cut=st.integers(0, 300))
def test_results_are_read_up_to_what_was_cut_off(data: bytes, cut: int) -> None:
    whole = row_file.result_line({"key": 1, "text": "ä\n"}) + row_file.result_line({"key": "\ud800"})
    found = list(row_file.read_results(io.BytesIO(whole[:cut]), "out"))
    assert [end for end, _ in found] == [end for end in (len(whole.splitlines(True)[0]), len(whole)) if end <= cut]
    try:
        list(row_file.read_results(io.BytesIO(data), "out"))
    except hearthlm.CorruptFileError as error:
        assert str(error).startswith("out: line ")
