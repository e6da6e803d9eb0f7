"""An answer has the form that was asked for, or there is none."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions, ResponseFormatError
from hearthlm.demo import model_path
from hearthlm.runtime.constraint import ConstraintCompiler, Matcher, ResponseFormat
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece

SUITE = Path(__file__).parent / "golden" / "json_schema_suite.json"
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def regex_format(pattern: str) -> dict[str, Any]:
    return {"type": "regex", "pattern": pattern}


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmInference]:
    with LlmInference.create_from_model_path(model_path()) as model:
        yield model


def options(response_format: Any, **changes: Any) -> LlmInferenceSessionOptions:
    defaults = {"temperature": 1.0, "top_k": 0, "max_output_tokens": 120}
    return LlmInferenceSessionOptions(**{**defaults, **changes}, response_format=response_format)


def compiler(llm: LlmInference) -> ConstraintCompiler:
    return ConstraintCompiler(llm.tokenizer, llm.vocab_size, llm.stop_ids)


def matcher(llm: LlmInference, response_format: Any, *, at_start: bool = False) -> Matcher:
    form = ResponseFormat.parse(response_format)
    assert form is not None
    return compiler(llm).compile(form).matcher(at_start=at_start)


def follow(tokenizer: Tokenizer, follower: Matcher, text: str) -> bool:
    """Take a text, byte by byte where need be; return whether all of it was allowed."""
    for token_id in tokenizer.encode(text, parse_special=False):
        if not follower.mask()[token_id]:
            return False
        follower.take(token_id)
    return True


@pytest.mark.parametrize("seed", range(6))
def test_every_finished_answer_has_the_form(llm: LlmInference, seed: int) -> None:
    result = llm.generate("Tell me a story.", options(schema_format(PERSON), random_seed=seed))
    if result.finish_reason == "stop":
        jsonschema.validate(json.loads(result.texts[0]), PERSON)
    else:
        assert result.finish_reason == "length"
        assert result.num_output_tokens == 120


def test_a_regular_expression_is_followed_to_its_end(llm: LlmInference) -> None:
    for seed in range(8):
        result = llm.generate("Hello", options(regex_format("(yes|no), [0-9]{3}"), random_seed=seed))
        assert result.finish_reason == "stop"
        assert re.fullmatch("(yes|no), [0-9]{3}", result.texts[0])


def test_an_answer_that_begins_a_text_keeps_its_form(llm: LlmInference) -> None:
    start = llm.start_id
    assert start is not None
    for pattern in ("[a-z]{3} [a-z]{3}!", " [0-9]{2}"):
        for seed in range(4):
            result = llm.generate([start], options(regex_format(pattern), random_seed=seed))
            assert result.finish_reason == "stop"
            assert re.fullmatch(pattern, result.texts[0]), result.texts[0]


def test_special_tokens_are_never_allowed_and_stop_tokens_exactly_where_it_may_end(llm: LlmInference) -> None:
    follower = matcher(llm, regex_format("a{1,3}"))
    special = [i for i in range(llm.tokenizer.vocab_size) if llm.tokenizer.is_special(i)]
    stops = list(llm.stop_ids)
    others = [i for i in special if i not in stops]
    assert stops
    assert others
    a = llm.tokenizer.encode("a", parse_special=False)
    assert len(a) == 1
    for taken in range(4):
        mask = follower.mask()
        assert not mask[others].any()
        assert mask[stops].all() == mask[stops].any() == follower.is_whole == (taken > 0)
        assert mask[a[0]] == (taken < 3)
        assert follower.is_over == (taken == 3)
        if taken < 3:
            follower.take(a[0])


def test_sampling_under_a_mask_is_the_renormalised_distribution(llm: LlmInference) -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=2048).astype(np.float32) * 3
    allowed = generator.random(2048) < 0.01
    sampler = LlmInferenceSessionOptions(top_k=0, temperature=1.0).sampler()
    alone = LlmInferenceSessionOptions(top_k=5, temperature=1.0).sampler()
    ids = np.flatnonzero(allowed)
    for position in range(200):
        chosen = sampler.sample(logits, position, allowed=allowed)
        assert chosen == ids[sampler.sample(logits[ids], position)]
        best = alone.sample(logits, position, allowed=allowed)
        assert best == ids[alone.sample(logits[ids], position)]


def test_the_same_seed_gives_the_same_answer_and_each_response_its_own(llm: LlmInference) -> None:
    wanted = options(regex_format("[a-z ]{10}"), random_seed=3)
    first, again = (llm.generate("Hello", wanted) for _ in range(2))
    assert first.texts == again.texts
    three = LlmInferenceOptions(model_path(), num_responses=3)
    with LlmInference.create_from_options(three) as several:
        texts = several.generate("Hello", wanted).texts
    assert texts[0] == first.texts[0]
    assert len(set(texts)) == 3
    assert all(re.fullmatch("[a-z ]{10}", text) for text in texts)


def test_without_a_form_nothing_changes(llm: LlmInference) -> None:
    plain = llm.generate("Hello", options(None, random_seed=5))
    assert llm.generate("Hello", options({"type": "text"}, random_seed=5)).texts == plain.texts


def tokenizers() -> dict[str, Tokenizer]:
    """Return vocabularies of every make: pieces with byte tokens, a dummy space, byte-level ones of both libraries."""
    golden = Path(__file__).parent / "golden"
    return {
        "sentencepiece": from_sentencepiece((golden / "tokenizers" / "bpe_512_byte_fallback.model").read_bytes()),
        "byte_level_sentencepiece": from_sentencepiece(
            (golden / "tokenizers" / "byte_bpe_converted.model").read_bytes(), bytes_to_unicode=True
        ),
        "hugging_face": from_hugging_face((golden / "inputs" / "hf_bpe" / "tokenizer.json").read_bytes()),
    }


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("name", ["sentencepiece", "byte_level_sentencepiece", "hugging_face"])
@pytest.mark.parametrize(
    "pattern", ["[a-z]{2} [a-z]{2},\n?[0-9]{3}", " *(h\u00e9|\u65e5\u672c|\U0001f600){1,3}", "true|false|null"]
)
def test_every_vocabulary_spells_the_form_byte_by_byte(name: str, pattern: str, at_start: bool) -> None:
    """Whatever is drawn from the masks, the text that is read out of the ids has the form."""
    tokenizer = tokenizers()[name]
    end = tokenizer.vocab_size
    form = ResponseFormat.parse(regex_format(pattern))
    assert form is not None
    constraint = ConstraintCompiler(tokenizer, end + 1, [end]).compile(form)
    generator = np.random.default_rng(4)
    for _ in range(12):
        follower, ids = constraint.matcher(at_start=at_start), list[int]()
        while (chosen := int(generator.choice(np.flatnonzero(follower.mask())))) != end:
            assert not tokenizer.is_special(chosen)
            follower.take(chosen)
            ids.append(chosen)
        text = tokenizer.decode(ids, at_start=at_start)
        assert re.fullmatch(pattern, text), (text, [tokenizer.piece(i) for i in ids])


def test_a_model_without_stop_tokens_ends_where_nothing_can_follow(llm: LlmInference) -> None:
    form = ResponseFormat.parse(regex_format("(ab|abc)"))
    assert form is not None
    follower = ConstraintCompiler(llm.tokenizer, 2048, ()).compile(form).matcher(at_start=False)
    assert follow(llm.tokenizer, follower, "ab")
    assert follower.is_whole
    assert not follower.is_over
    assert follow(llm.tokenizer, follower, "c")
    assert follower.is_over


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("json", "expected a mapping"),
        ({"type": "xml"}, "type: expected text"),
        ({"type": "json_schema"}, "json_schema: expected"),
        ({"type": "json_schema", "json_schema": {"schema": "string"}}, "json_schema: expected"),
        (schema_format({"const": object()}), "expected JSON"),
        (schema_format({"const": float("nan")}), "expected JSON"),
        (schema_format({"enum": ["x" * 70_000]}), "at most 65536 bytes"),
        ({"type": "regex"}, "pattern"),
        (regex_format("a" * 70_000), "at most 65536 bytes"),
    ],
)
def test_what_is_no_form_is_refused_by_its_field(value: Any, says: str) -> None:
    with pytest.raises(ResponseFormatError, match=says):
        LlmInferenceSessionOptions(response_format=value)


@pytest.mark.parametrize("depth", [64, 1000, 60_000])
def test_a_deep_schema_is_refused(depth: int) -> None:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    with pytest.raises(ResponseFormatError, match="at most 64 levels"):
        LlmInferenceSessionOptions(response_format=schema_format(schema))


@pytest.mark.parametrize(
    "form",
    [
        schema_format({"not": {"type": "string"}}),
        schema_format({"type": "array", "uniqueItems": True}),
        schema_format({"type": "array", "contains": {"type": "integer"}}),
        schema_format({"type": "object", "dependentRequired": {"a": ["b"]}}),
        schema_format({"if": {"type": "string"}, "then": {"maxLength": 3}}),
        schema_format({"oneOf": [{"type": "integer"}, {"minimum": 2}]}),
        schema_format({"type": "object", "unevaluatedProperties": False}),
        schema_format({"$ref": "http://localhost:1/schema.json"}),
        schema_format({"$ref": "file:///etc/passwd"}),
        schema_format({"type": "string", "format": "idn-email"}),
        schema_format({"type": "string", "pattern": "(?=a)b"}),
        schema_format(False),
        regex_format("(a"),
        regex_format("a(?<=b)"),
        regex_format(r"(a)\1"),
        regex_format("(((a{1,500}){1,500}){1,500}){1,500}"),
        regex_format("(a?){5000}a{5000}"),
        schema_format({"$ref": "#"}),
    ],
)
def test_what_cannot_be_enforced_is_an_error_before_the_first_token(llm: LlmInference, form: Any) -> None:
    begun = time.process_time()
    with pytest.raises(ResponseFormatError, match="cannot be"):
        llm.generate("Hello", options(form))
    assert time.process_time() - begun < 20  # of the processor's time: no form may keep it busy


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(24)]},
        {"allOf": [{"anyOf": [{"minimum": 2 * i}, {"maximum": -i}]} for i in range(40)]},
        {
            "$defs": {
                f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(40)
            }
            | {"d40": {"type": "integer"}},
            "$ref": "#/$defs/d0",
        },
    ],
)
def test_a_schema_that_is_slow_to_compile_is_given_up(llm: LlmInference, schema: Any) -> None:
    """Refused or compiled, but within the time of this process that a compilation may take."""
    begun = time.process_time()
    compiled_or_none(llm, schema)
    assert time.process_time() - begun < 12


def test_a_form_that_becomes_too_complex_ends_the_answer_with_an_error(llm: LlmInference) -> None:
    """Never with a text that has been let through unseen."""
    follower = matcher(llm, regex_format("[a-z]+"))
    broken = follower._handle
    assert not broken.consume_token(llm.tokenizer.encode("7", parse_special=False)[0])
    with pytest.raises(ResponseFormatError, match="cannot be followed"):
        follower.mask()


def suite(*files: str) -> list[Any]:
    cases = json.loads(SUITE.read_text(encoding="utf-8"), parse_float=Decimal)
    return [case for case in cases if not files or case["file"] in files]


def compiled_or_none(llm: LlmInference, schema: Any) -> Any:
    try:
        llm.prepare_response_format(options(schema_format(schema)))
    except ResponseFormatError:
        return None
    return schema_format(schema)


def test_the_schema_suites_instances_are_judged_rightly(llm: LlmInference) -> None:
    """What the suite calls invalid is never accepted, and most of what it calls valid is, where a schema is taken."""
    table = compiler(llm)
    num_taken = num_valid = num_accepted = 0
    for case in json.loads(SUITE.read_text(encoding="utf-8")):
        form = ResponseFormat.parse(schema_format(case["schema"]))
        assert form is not None
        try:
            constraint = table.compile(form)
        except ResponseFormatError:
            continue
        num_taken += 1
        for test in case["tests"]:
            follower = constraint.matcher(at_start=False)
            text = json.dumps(test["data"], ensure_ascii=False)
            accepted = follow(llm.tokenizer, follower, text) and follower.is_whole
            if test["valid"]:
                num_valid += 1
                num_accepted += accepted
            else:
                assert not accepted, (case["schema"], test["data"])
    assert num_taken > 140
    assert num_accepted > 0.5 * num_valid


def check_answers(llm: LlmInference, cases: list[Any], seeds: range) -> tuple[int, int, int]:
    num_refused = num_finished = num_valid = 0
    for case in cases:
        schema = json.loads(json.dumps(case["schema"], default=float))
        form = compiled_or_none(llm, schema)
        if form is None:
            num_refused += 1
            continue
        validator = jsonschema.Draft202012Validator(case["schema"])
        for seed in seeds:
            result = llm.generate("Tell me a story.", options(form, random_seed=seed, max_output_tokens=60))
            if result.finish_reason != "stop":
                assert result.finish_reason == "length"
                continue
            num_finished += 1
            # Decimal, for 0.3 is a multiple of 0.1.
            validator.validate(json.loads(result.texts[0], parse_float=Decimal))
            num_valid += 1
    return num_refused, num_finished, num_valid


def test_answers_to_schemas_of_the_suite_validate(llm: LlmInference) -> None:
    cases = suite("properties", "items", "enum", "pattern", "minimum", "anyOf")
    num_refused, num_finished, num_valid = check_answers(llm, cases, range(1))
    assert num_finished == num_valid > 15
    assert num_refused < 10


@pytest.mark.slow
def test_answers_to_every_schema_of_the_suite_validate(llm: LlmInference) -> None:
    num_refused, num_finished, num_valid = check_answers(llm, suite(), range(6))
    assert num_finished == num_valid > 500
    assert num_refused > 100
