"""A model's chat template made fit for engines that run it otherwise than here, or cannot run it at all."""

from __future__ import annotations

from collections.abc import Mapping

from hearthlm.chat_template import ChatTemplate
from hearthlm.errors import TemplateError
from hearthlm.models.family import PromptTemplate, PromptTemplates


def turns_of_template(source: str, special_tokens: Mapping[str, str], start_token: str) -> PromptTemplates | None:
    """Return the turns that a chat template writes, for engines that cannot run it; None where it writes no turns.

    Conversations of marks are written and cut at the marks; the turns are taken only if they repeat, and put together
    give the same text. `start_token` is left out at the beginning. Raises TemplateError for a source that is none.
    """
    template = ChatTemplate(source)
    marks = [chr(code) for code in range(0xE000, 0xE004)]  # code points that stand for nothing

    def written(*roles: str, ask: bool = False) -> list[str]:
        """Return the pieces of text around the marks of a conversation."""
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=False)]
        text = template.render(messages, add_generation_prompt=ask, variables=special_tokens)
        pieces = []
        for mark in marks[: len(roles)]:
            before, found, text = text.partition(mark)
            if not found:
                raise TemplateError("a message is missing, or not in its place")
            pieces.append(before)
        return [pieces[0].removeprefix(start_token), *pieces[1:], text]

    try:
        first, user_suffix = written("user")
        asked = written("user", ask=True)
        _, to_model, to_user, last = written("user", "assistant", "user", ask=True)
    except TemplateError:
        return None
    model_prefix = asked[1].removeprefix(user_suffix)
    # Both speakers' turns mostly end alike; else the second turn of the user shares with the first what it can.
    user_prefix = to_user.removeprefix(user_suffix)
    if not first.endswith(user_prefix):
        user_prefix = next(to_user[i:] for i in range(len(to_user) + 1) if first.endswith(to_user[i:]))
    session_prefix = first.removesuffix(user_prefix)
    if not user_prefix or asked != [first, user_suffix + model_prefix]:
        return None
    if (to_model, last) != (user_suffix + model_prefix, user_suffix + model_prefix):
        return None
    system = PromptTemplate()
    try:
        before, between, _ = written("system", "user")
        if between.endswith(user_prefix) and before != user_prefix:
            system = PromptTemplate(before, between.removesuffix(user_prefix))
    except TemplateError:
        pass  # it has no system's turn
    return PromptTemplates(
        user=PromptTemplate(user_prefix, user_suffix),
        model=PromptTemplate(model_prefix, to_user.removesuffix(user_prefix)),
        system=system,
        session_prefix=session_prefix,
    )


def template_for_parts(source: str, special_tokens: Mapping[str, str]) -> str:
    """Return a chat template that takes what was said as a string or as a list of parts, as LiteRT-LM gives it.

    It is `source` itself where that does so already; else what joins the parts comes before it. Raises TemplateError
    for a source that is none.
    """
    template = ChatTemplate(source)
    said = "a message"
    as_text, as_parts = ([{"role": "user", "content": content}] for content in (said, [{"type": "text", "text": said}]))
    try:
        expected = template.render(as_text, add_generation_prompt=True, variables=special_tokens)
        if expected == template.render(as_parts, add_generation_prompt=True, variables=special_tokens):
            return source
    except TemplateError:
        pass
    return _JOIN_PARTS + source


# Written with what both jinja2 and LiteRT-LM's minijinja know.
_JOIN_PARTS = (
    "{%- set joined = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message.content is string or message.content is not iterable -%}"
    "{%- set joined.messages = joined.messages + [message] -%}{%- else -%}"
    "{%- set said = namespace(text='') -%}{%- for part in message.content -%}"
    "{%- if part.text -%}{%- set said.text = said.text + part.text -%}{%- endif -%}{%- endfor -%}"
    "{%- set joined.messages = joined.messages + [dict(message, content=said.text)] -%}{%- endif -%}{%- endfor -%}"
    "{%- set messages = joined.messages -%}"
)


__all__ = ["template_for_parts", "turns_of_template"]
