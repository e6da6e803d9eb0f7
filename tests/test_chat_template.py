"""Chat templates write what transformers would, and nothing else can be made of them."""

from __future__ import annotations

import contextlib
import random
import time
import tracemalloc
from typing import Any

import pytest

from hearthlm import TemplateError, chat_template
from hearthlm.chat_template import MAX_SOURCE_CHARS, ChatTemplate

MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi & <b>hello</b>\n"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Tell me 'more'."},
]
VARIABLES = {"bos_token": "<bos>", "eos_token": "<eos>"}

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}
{%- set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
LLAMA = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' ~
message['role'] ~ '<|end_header_id|>\n\n' ~ message['content'] | trim ~ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set
content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{
'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
CHATML = """{%- if tools %}{{ '# Tools\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MISTRAL = """{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set ns = namespace(index=0) %}{{ bos_token }}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'user' %}
        {%- if loop.last and system is not none and system is defined %}
            {{- '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}
        {%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{% endif %}
    {%- else %}{{- ' ' + message.content | trim + eos_token }}{% endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}"""
PHI = """{% for message in messages %}{% if message['role'] in ['user', 'system'] %}{{ '<|' + message['role'] + '|>' }}
{{ message['content'] }}<|end|>
{% else %}
<|assistant|>
{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
QWEN_THINKING = """{%- macro line(role, text) %}{{ '<|im_start|>' ~ role ~ '\n' ~ text ~ '<|im_end|>\n' }}{% endmacro %}
{%- set ns = namespace(last=messages|length - 1, seen=[]) %}
{%- for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == 'user' and not message.content.startswith('<tool>') %}{% set ns.last = index %}{% break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
    {%- if loop.index0 > ns.last %}{% continue %}{% endif %}
    {{- line(message.role, content) }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
MISCELLANEOUS = """{% for k, v in {'a': 1, 'b': [1, 2.5, none, true]}.items() %}{{ k }}={{ v | tojson }};{% endfor %}
{{ messages | map(attribute='role') | join(',') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ (messages | last).content | upper | replace('MORE', 'LESS') | indent(2) }} {{ {'x': '<&>'} | tojson(indent=2) }}
{{ messages[0]['content'].strip().split(' ')[0] if messages else 'none' }} {{ missing is defined }}
{{ missing | default('d') }} {{ 7 // 2 * 2 ** 3 % 5 - 1 }}
{%- for i in range(3) %}{% if loop.changed(i // 2) %}*{% endif %}{{ loop.cycle('a', 'b') }}{% endfor %}"""
TEMPLATES = {
    "gemma": GEMMA,
    "llama": LLAMA,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "phi": PHI,
    "qwen_thinking": QWEN_THINKING,
    "miscellaneous": MISCELLANEOUS,
}
WRITTEN = {
    "gemma": "<bos><start_of_turn>user\n Be brief. \n\nHi & <b>hello</b><end_of_turn>\n<start_of_turn>model\nHello!"
    "<end_of_turn>\n<start_of_turn>user\nTell me 'more'.<end_of_turn>\n<start_of_turn>model\n",
    "chatml": "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi & <b>hello</b>\n<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nTell me 'more'.<|im_end|>\n<|im_start|>assistant\n",
}


def render(source: str, messages: list[dict[str, Any]] | None = None) -> str:
    return ChatTemplate(source).render(messages or MESSAGES, add_generation_prompt=True, variables=VARIABLES)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_template_writes_the_conversation(name: str) -> None:
    assert render(TEMPLATES[name]) == WRITTEN[name]


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_a_template_writes_what_transformers_writes(name: str, generation_prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    wanted, _ = render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=generation_prompt, **VARIABLES
    )
    got = ChatTemplate(TEMPLATES[name]).render(MESSAGES, add_generation_prompt=generation_prompt, variables=VARIABLES)
    assert got == wanted[0]


def test_what_a_template_refuses_is_told_in_its_own_words() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(GEMMA, [{"role": "assistant", "content": "Hi"}])


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ messages[0].__class__.__base__ }}",
    "{{ ().__class__ }}",
    "{{ [].append.__self__ }}",
    "{{ {}.__class__ }}",
    "{{ (1).__class__ }}",
    "{{ (1).real }}{{ (1).to_bytes(2, 'big') }}",
    "{{ true.__class__ }}",
    "{{ range.__class__ }}",
    "{{ range.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__.co_consts }}",
    "{{ strftime_now.__globals__['sys'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace().__class__ }}",
    "{{ namespace(x=1)._Namespace__attrs }}",
    "{{ dict.__mro__ }}",
    "{{ dict.fromkeys([1]) }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.x() }}",
    "{{ caller() }}",
    "{{ varargs }}{{ kwargs.x() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ cycler('a').next() }}",
    "{{ joiner()() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ lipsum(5) }}",
    "{{ config.items() }}",
    "{{ request.application }}{{ request.x.y }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages|attr('append') }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ messages|map(attribute='__class__')|map('string')|list|first|length / 0 }}",
    "{{ messages|map('tojson_')|list }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__}'|format(1)) }}",
    "{{ '%s'|format(1) }}",
    "{{ 'a'.encode('utf8') }}",
    "{{ 'a'.translate({}) }}",
    "{{ 'a'.maketrans('a', 'b') }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages.pop() }}",
    "{{ messages.sort() }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('a', 1) }}",
    "{{ messages[0].clear() }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'os' import system %}",
    "{% extends 'x' %}",
    "{% include '/etc/passwd' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ __import__('os').system('id') }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ loop.x() }}",
    "{% for i in [1] %}{{ loop._iterator }}{{ loop.__class__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._environment.filters() }}",
    "{{ messages|xmlattr }}",
    "{{ messages|pprint }}",
    "{{ messages|groupby('role') }}",
    "{{ 'x'|filesizeformat }}{{ 'x'|urlize }}",
    "{% debug %}",
    "{% do messages.append(1) %}",
    "{% trans %}x{% endtrans %}",
    "{% autoescape true %}{{ ''.__class__ }}{% endautoescape %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_can_be_reached_or_changed(source: str) -> None:
    messages = [dict(message) for message in MESSAGES]
    try:
        text = render(source, messages)
    except TemplateError:
        text = ""
    assert not any(word in text for word in ("class", "object", "module", "function", "root:", "uid=", "<built-in"))
    assert messages == MESSAGES


NINES = "9" * 9
BOMBS = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{% set a = [0] * 10**9 %}",
    "{{ 9**9**9 }}",
    "{% set ns = namespace(x=9) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "b" * 30000 + "{% endfor %}{% endset %}",
    "{% macro m() %}{% for i in range(99999) %}" + "b" * 30000 + "{% endfor %}{% endmacro %}{% set x = m() %}",
    "{{ range(10**12)|list|length }}",
    "{{ range(10**12)|sum }}",
    "{{ range(0, 10**12, 2)|max }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%(a)1000000000s' % {'a': 1} }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.rjust(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'|indent(10**9) }}",
    "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "{{ ('a' * 9999)|replace('a', 'b' * 9999) }}",
    "{{ ('a' * 9999).replace('', 'b' * 9999) }}",
    "{{ ('a' * 9999).join('b' * 9999) }}",
    "{{ ('b' * 9999)|join('a' * 9999) }}",
    "{{ range(99999)|map('string')|join('a' * 999) }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ 1.5|round(10**9, 'ceil') }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ 'a'|wordwrap(1)|truncate(10**9) }}",
    "{{ 'a'|float + 1e308 * 10|int }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "{% for i in [1] %}" * 200 + "{% endfor %}" * 200,
    "{{ 1" + "+1" * 20000 + " }}",
    "{{ " + "not " * 10000 + "1 }}",
    "x" * (MAX_SOURCE_CHARS + 1),
    "{{ strftime_now('%' * 10**6) }}",
    f"{{{{ ({NINES} ** 20) ** 20 }}}}",
]


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_no_template_takes_long_or_writes_much(number: int) -> None:
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(TemplateError):
            text = render(BOMBS[number])
            assert len(text) < 1000  # cheap after all: nothing was exploited
            raise TemplateError("harmless")
        assert time.monotonic() - began < 8  # 1 s each for compiling and writing, on a machine that is busy and traced
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


def test_only_the_template_is_stopped_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", -1)

    def finaliser() -> int:  # as the garbage collector may run one in the middle of a template
        return sum(1 for _ in range(3))

    assert chat_template._guarded(finaliser) == 3
    with pytest.raises(TemplateError, match="expected to be done within"):
        render("{% for i in range(10) %}{{ i }}{% endfor %}")


def test_a_source_that_is_no_template_is_refused() -> None:
    for source in ("{% for %}", "{{", "{% if %}", "{{ 1 | unknown }}", "{{ 1 is unknown }}", "{% unknown %}"):
        with pytest.raises(TemplateError, match="chat template"):
            ChatTemplate(source)


def test_mutated_templates_write_or_are_refused() -> None:
    rng = random.Random(11)
    alphabet = "{}%|()[]'\"~+-*/.,:_ \nabcdefor0129"
    for _ in range(1500):
        text = list(rng.choice(list(TEMPLATES.values())))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(text))
            kind = rng.random()
            if kind < 0.4:
                text[at] = rng.choice(alphabet)
            elif kind < 0.7:
                del text[at : at + rng.randint(1, 12)]
            else:
                other = rng.randrange(len(text))
                text[at:at] = text[other : other + rng.randint(1, 30)]
            text = text or ["x"]
        with contextlib.suppress(TemplateError):
            assert isinstance(render("".join(text)), str)


def test_tracing_is_as_it_was_before() -> None:
    import sys

    before = sys.gettrace()
    render(CHATML)
    with pytest.raises(TemplateError):
        render("{{ 1 // 0 }}")
    assert sys.gettrace() is before
