"""Messages of a conversation to prompt ids, without a special token ever being read out of what somebody said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hearthlm.errors import UnsupportedModelError
from hearthlm.models.family import PromptTemplate, PromptTemplates
from hearthlm.runtime.language_model import LanguageModel
from hearthlm.tokenizers import Tokenizer, encode_parts
from hearthlm.tool_calls import ToolSyntax, tool_syntax

Message = Mapping[str, Any]
_Role = Literal["system", "user", "assistant", "tool"]
_ROLES: Mapping[str, _Role] = {"system": "system", "user": "user", "assistant": "assistant", "model": "assistant"}
_TOOL_ROLES: Mapping[str, _Role] = {**_ROLES, "tool": "tool"}
_PRIVATE = range(0xE000, 0xF8FF)  # code points that stand for nothing


class ChatFormat:
    """Write a model's conversations; immutable, and safe to use from several threads.

    With `jinja_source` it is the model's own chat template that writes them, with `special_tokens` (bos_token, ...) as
    its variables; else `templates` put each message into a turn. Raises TemplateError for a source that is none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        start_id: int | None,
        templates: PromptTemplates,
        jinja_source: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._start_id = start_id
        self._templates = templates
        self._special_tokens = dict(special_tokens or {})
        self.tool_syntax: ToolSyntax | None = tool_syntax(jinja_source)
        self._jinja = None
        if jinja_source is not None:
            from hearthlm.chat_template import ChatTemplate  # jinja2 takes a while to import

            self._jinja = ChatTemplate(jinja_source)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Return the ids of a conversation, after the start token, up to where the model's answer begins.

        A message is a mapping with `role` ("system", "user", "assistant" or "model") and `content`: a str, or a list
        of parts {"type": "text", "text": str}. Where the model's template knows tools, a message of the assistant may
        have `tool_calls` ([{"function": {"name", "arguments"}}]), and one of the role "tool" holds what a call gave;
        `tools` are what `tool_calls.checked_tools` returned. Raises ValueError or TypeError, naming the message, for
        anything else, TemplateError for what the model's template refuses, and UnsupportedModelError for tools where
        it knows none.
        """
        if not messages:
            raise ValueError("messages: expected at least one")
        if tools and self.tool_syntax is None:
            raise UnsupportedModelError("tools: this model's chat template knows none, or a way that is not supported")
        checked = [_checked(message, i, self.tool_syntax is not None) for i, message in enumerate(messages)]
        if self._jinja is None:
            ids = encode_parts(self._tokenizer, self._without_second_start(self._in_turns(checked)))
        else:
            self._check_tools([*tools, *(message.get("tool_calls") for message in checked)])
            ids = self._rendered_ids(checked, tools, add_generation_prompt=add_generation_prompt)
        if self._start_id is not None and ids[:1] != [self._start_id]:
            ids = [self._start_id, *ids]
        return ids

    def _check_tools(self, described: Sequence[Any]) -> None:
        """Raise ValueError where a description of tools or calls, which templates write out, holds a special token."""
        text = json.dumps([part for part in described if part], ensure_ascii=False)
        special = [i for i in self._tokenizer.encode(text) if self._tokenizer.is_special(i)]
        if special:
            raise ValueError(f"tools: expected text, got the special token {self._tokenizer.piece(special[0])!r}")

    def _in_turns(self, messages: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
        """Return the conversation in parts, each with whether it may hold special tokens.

        What the system says goes before the next user's message where the templates have no turn for it.
        """
        turns = self._templates
        by_role = {"user": turns.user, "assistant": turns.model, "system": turns.system}
        parts = [(turns.session_prefix, True)]
        waiting = ""
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system" and turns.system == PromptTemplate() and turns.user != PromptTemplate():
                waiting += content + "\n\n"
                continue
            turn = by_role[role]
            if role == "user":
                waiting, content = "", waiting + content
            parts += [(turn.prefix, True), (content, False), (turn.suffix, True)]
        if waiting:
            parts += [(turns.user.prefix, True), (waiting.rstrip("\n"), False), (turns.user.suffix, True)]
        if messages[-1]["role"] != "assistant":
            parts.append((turns.model.prefix, True))
        return [part for part in parts if part[0]]

    def _rendered_ids(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
    ) -> list[int]:
        """Return the ids of what the model's template writes.

        It is written twice: once with what was said, and once with marks in its place. If the text holds just the
        special tokens of the template itself, it is taken as it is; else each part between the marks is encoded alone.
        """
        said = "".join(message["content"] for message in messages)
        free = [chr(code) for code in _PRIVATE if chr(code) not in said]
        if len(free) < 3:
            raise ValueError("messages: the private characters of Unicode are all in use")
        marked = []
        for i, message in enumerate(messages):
            content = message["content"]
            core = content.strip()
            if not core and "tool_calls" in message:  # templates ask whether something is said beside the calls
                marked.append(message)
                continue
            mark = free[0] + "".join(free[1 + int(bit)] for bit in f"{i:b}") + free[0]
            begin = content.find(core)
            # Space around it stays, as templates like to strip it.
            marked.append({**message, "content": content[:begin] + mark + content[begin + len(core) :]})
        skeleton = self._render(marked, add_generation_prompt, tools)
        parts: list[tuple[str, bool]] = []
        for j, piece in enumerate(skeleton.split(free[0])):
            if j % 2:
                index = int("".join("01"[free.index(bit) - 1] for bit in piece), 2)
                parts.append((messages[index]["content"].strip(), False))
            else:
                parts.append((piece, True))
        parts = self._without_second_start([part for part in parts if part[0]])
        text = self._render(messages, add_generation_prompt, tools)
        ((text, _),) = self._without_second_start([(text, True)])
        ids = self._tokenizer.encode(text)
        meant = [i for part, may in parts if may for i in self._tokenizer.encode(part) if self._tokenizer.is_special(i)]
        if [i for i in ids if self._tokenizer.is_special(i)] == meant:
            return ids
        return encode_parts(self._tokenizer, parts)

    def _render(
        self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        assert self._jinja is not None
        return self._jinja.render(
            messages, add_generation_prompt=add_generation_prompt, variables=self._special_tokens, tools=tools
        )

    def _without_second_start(self, parts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
        """Leave out a start token that the template has written: it is put before every prompt."""
        if self._start_id is None or not parts or not parts[0][1]:
            return list(parts)
        return [(parts[0][0].removeprefix(self._tokenizer.piece(self._start_id)), True), *parts[1:]]


def chat_format(model: LanguageModel) -> ChatFormat:
    """Return how a model's conversations are written: its own chat template, its file's turns, or its family's.

    Raises UnsupportedModelError where there is none of them.
    """
    templates = model.prompt_templates
    if templates == PromptTemplates() and model.chat_template is None:
        if model.default_chat is None:
            raise UnsupportedModelError(
                f"a {model.name} model without a chat template: nothing says how a conversation is written; "
                "pass text, or give prompt templates"
            )
        templates = model.default_chat
    return ChatFormat(
        model.tokenizer,
        start_id=model.start_id,
        templates=templates,
        jinja_source=model.chat_template,
        special_tokens=model.special_tokens,
    )


def _checked(message: object, index: int, may_call: bool) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise TypeError(f"{where}: expected a mapping with role and content, got {type(message).__name__}")
    roles = _TOOL_ROLES if may_call else _ROLES
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in roles:
        raise ValueError(f"{where}: role: expected {', '.join(roles)}, got {role!r}")
    more: dict[str, Any] = {}
    if may_call and role == "tool":
        more = {name: message[name] for name in ("name", "tool_call_id") if isinstance(message.get(name), str)}
    elif may_call and role in ("assistant", "model") and "tool_calls" in message:
        more = {"tool_calls": _checked_calls(message["tool_calls"], where)}
        content = "" if content is None else content
    unknown = set(message) - {"role", "content", *more}
    if unknown:
        raise ValueError(f"{where}: expected only role and content, got {', '.join(sorted(map(str, unknown)))}")
    if isinstance(content, (list, tuple)):
        content = "".join(_part_text(part, f"{where}: content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise TypeError(f"{where}: content: expected a str or a list of text parts, got {type(content).__name__}")
    return {"role": roles[role], "content": content, **more}


def _checked_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Return calls as templates take them: the arguments are an object, where OpenAI's API has it as JSON text."""
    if not isinstance(calls, (list, tuple)) or not calls:
        raise ValueError(f"{where}: tool_calls: expected a list of calls, got {calls!r:.80}")
    checked: list[dict[str, Any]] = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                raise ValueError(f"{where}: tool_calls[{i}]: expected arguments in JSON") from None
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ValueError(f'{where}: tool_calls[{i}]: expected {{"function": {{"name": str, "arguments": object}}}}')
        entry: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        if isinstance(call.get("id"), str):
            entry["id"] = call["id"]
        checked.append(entry)
    return checked


def _part_text(part: object, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ValueError(f'{where}: expected {{"type": "text", "text": str}}, got a part of type {kind!r}')
