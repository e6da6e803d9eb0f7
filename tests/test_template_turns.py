"""Turns taken out of chat templates, and templates that take lists of parts."""

from __future__ import annotations

from typing import Any

import pytest
from test_chat_template import CHATML, GEMMA

from hearthlm.chat_template import ChatTemplate
from hearthlm.models.family import GEMMA_CHAT, PromptTemplate, PromptTemplates
from hearthlm.template_turns import template_for_parts, turns_of_template


def test_turns_are_taken_out_of_a_template() -> None:
    gemma = turns_of_template(GEMMA, {"bos_token": "<bos>"}, "<bos>")
    assert gemma is not None
    assert (gemma.user, gemma.model, gemma.session_prefix) == (GEMMA_CHAT.user, GEMMA_CHAT.model, "")
    chatml = turns_of_template(CHATML, {}, "")
    assert chatml == PromptTemplates(
        user=PromptTemplate("<|im_start|>user\n", "<|im_end|>\n"),
        model=PromptTemplate("<|im_start|>assistant\n", "<|im_end|>\n"),
        system=PromptTemplate("<|im_start|>system\n", "<|im_end|>\n"),
    )
    with_default = "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}" + CHATML
    turns = turns_of_template(with_default, {}, "")
    assert turns is not None
    assert (turns.session_prefix, turns.user) == ("<|im_start|>system\nBe kind.<|im_end|>\n", chatml.user)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages|length }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_without_turns_has_none(source: str) -> None:
    assert turns_of_template(source, {}, "") is None


def test_a_template_is_made_to_take_lists_of_parts() -> None:
    both = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"
    assert template_for_parts(both, {}) == both
    source = template_for_parts(CHATML, {})
    assert source.endswith(CHATML) and source != CHATML
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    parts = [
        {
            "role": m["role"],
            "content": [{"type": "text", "text": part} for part in (m["content"][:1], m["content"][1:])],
        }
        for m in messages
    ]
    expected = ChatTemplate(CHATML).render(messages, add_generation_prompt=True, variables={})
    for said in (messages, parts):
        assert ChatTemplate(source).render(said, add_generation_prompt=True, variables={}) == expected
