"""Tools that a model may call: whether its template knows how, what an answer may then be, and how calls are read back.

A model writes its calls as it was trained to, which its chat template shows. Three ways are known: Hermes' (Qwen,
SmolLM3 and many others), a JSON object between `<tool_call>` tags; Mistral's, a JSON list after `[TOOL_CALLS]`; and
Llama 3's, a bare JSON object with `parameters`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOOLS = re.compile(r"\btools\b")
MAX_TOOLS = 128


@dataclass(frozen=True)
class ToolCall:
    """Hold one call that a model wants made: a tool's name and its arguments, a JSON object."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ToolSyntax:
    """Say how a model writes calls.

    `begin` and `end` are around each call, or around the list of all where `is_list`; `arguments` is what the object
    calls its arguments. Where `begin` is empty, a call is the whole answer.
    """

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    is_list: bool = False


HERMES = ToolSyntax("hermes", "<tool_call>", "</tool_call>")
MISTRAL = ToolSyntax("mistral", "[TOOL_CALLS]", "", is_list=True)
LLAMA = ToolSyntax("llama", "", "", arguments="parameters")


def tool_syntax(jinja_source: str | None) -> ToolSyntax | None:
    """Return how the model of a chat template writes calls, None where the template knows no tools, or another way."""
    if jinja_source is None or not _TOOLS.search(jinja_source):
        return None
    if HERMES.begin in jinja_source:
        return HERMES
    if MISTRAL.begin in jinja_source:
        return MISTRAL
    if '"parameters": ' in jinja_source or "<|python_tag|>" in jinja_source:
        return LLAMA
    return None


def checked_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tools in the form that templates take: {"type": "function", "function": {name, description, parameters}}.

    `strict` is kept: what of such a tool's parameters cannot be enforced is an error, rather than any object.
    Raises ValueError, naming the tool and the field, for what is none, and for two of one name.
    """
    if len(tools) > MAX_TOOLS:
        raise ValueError(f"tools: expected at most {MAX_TOOLS}, got {len(tools)}")
    checked: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise ValueError(f'tools[{i}]: expected {{"type": "function", "function": {{...}}}}')
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"tools[{i}].function.name: expected letters, digits, _ and -, got {name!r:.80}")
        if any(name == other["function"]["name"] for other in checked):
            raise ValueError(f"tools[{i}].function.name: there is another {name}")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        description = function.get("description") or ""
        if not isinstance(parameters, Mapping) or not isinstance(description, str):
            raise ValueError(f"tools[{i}].function: expected a text as description and a schema as parameters")
        entry: dict[str, Any] = {"name": name, "description": description, "parameters": dict(parameters)}
        if function.get("strict"):
            entry["strict"] = True
        checked.append({"type": "function", "function": entry})
    return checked


def checked_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """Return "auto", "none", "required" or a tool's name; raises ValueError for anything else."""
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        choice = choice["function"].get("name")
        if choice in names:
            return str(choice)
    elif choice in ("auto", "none", "required") or choice in names:
        return str(choice)
    raise ValueError(f"tool_choice: expected auto, none, required or one of {names}, got {choice!r:.80}")


def call_grammar(
    syntax: ToolSyntax,
    tools: Sequence[Mapping[str, Any]],
    choice: str,
    *,
    begin_id: int | None,
    end_id: int | None,
    parallel: bool,
    white_space: str,
) -> str | None:
    """Return the grammar (Lark, as llguidance reads it) of an answer with calls; None where any text is one.

    With "auto" an answer may be text, calls, or calls after text. `begin_id` and `end_id` are those of the tokens that
    the model has for `begin` and `end`; without the first, nothing tells a call from text, and "auto" is any text.
    """
    if choice == "auto" and begin_id is None:
        return None
    wanted = [tool["function"] for tool in tools if choice in ("auto", "required", tool["function"]["name"])]
    lines = []
    for i, function in enumerate(wanted):
        opening = json.dumps(f'{{"name": "{function["name"]}", "{syntax.arguments}": ')
        parameters = {**function["parameters"], "x-guidance": {"whitespace_pattern": white_space}}
        lines += [f'call_{i}: {opening} arguments_{i} "}}"', f"arguments_{i}: %json {json.dumps(parameters)}"]
    begin = f"<[{begin_id}]>" if begin_id is not None else json.dumps(syntax.begin)
    end = f"<[{end_id}]>" if end_id is not None else json.dumps(syntax.end)
    calls = "one"
    if syntax.is_list:
        more = ' (", " one)*' if parallel else ""
        calls = f'{begin} "[" one{more} "]"'
    elif syntax.begin:
        calls = f'{begin} "\\n" one "\\n" {end}'
        if parallel:
            calls = f'{calls} ("\\n" {calls})*'
    one = " | ".join(f"call_{i}" for i in range(len(wanted)))
    start = "TEXT | calls | TEXT calls\nTEXT: /(.|\\n)+/" if choice == "auto" else "calls"
    return "\n".join([f"start: {start}", f"calls: {calls}", f"one: {one}", *lines]) + "\n"


def relaxed_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tools whose arguments are any object, but for those that ask to be `strict`."""
    return [
        {**tool, "function": {**tool["function"], "parameters": {"type": "object"}}}
        if not tool["function"].get("strict")
        else dict(tool)
        for tool in tools
    ]


class ToolCallReader:
    """Part an answer into what it says and the calls that it makes; the text comes in pieces of any size."""

    def __init__(self, syntax: ToolSyntax, names: Sequence[str]) -> None:
        self._syntax = syntax
        self._names = frozenset(names)
        self._text = ""  # not given out yet
        self._is_call = False
        self._has_begun = False

    def push(self, text: str) -> str:
        """Return what is certainly not a part of a call."""
        self._text += text
        if self._is_call:
            return ""
        if self._syntax.begin:
            begin = self._text.find(self._syntax.begin)
            self._is_call = begin >= 0
            if not self._is_call:
                begin = len(self._text) - _overlap(self._text, self._syntax.begin)
            said, self._text = self._text[:begin], self._text[begin:]
            return said
        start = self._text.lstrip()
        if not self._has_begun and (not start or start[0] == "{"):
            return ""  # all of it may be calls, or none
        self._has_begun = True
        said, self._text = self._text, ""
        return said

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return what was held back and is no call, and the calls; what cannot be read as calls is text."""
        rest, self._text = self._text, ""
        calls = self._calls(rest)
        return ("", calls) if calls else (rest, [])

    def _calls(self, text: str) -> list[ToolCall]:
        syntax = self._syntax
        documents: list[Any] = []
        try:
            if syntax.end:
                documents += [json.loads(part.partition(syntax.end)[0]) for part in text.split(syntax.begin)[1:]]
            else:
                found = json.loads(text.strip().removeprefix(syntax.begin))
                documents += found if isinstance(found, list) else [found]
            calls = [self._call(document) for document in documents]
        except (ValueError, RecursionError):
            return []
        return [call for call in calls if call is not None] if None not in calls else []

    def _call(self, document: Any) -> ToolCall | None:
        if not isinstance(document, dict) or document.get("name") not in self._names:
            return None
        arguments = document.get(self._syntax.arguments, document.get("arguments", {}))
        return ToolCall(document["name"], arguments) if isinstance(arguments, dict) else None


def _overlap(text: str, begin: str) -> int:
    """Return how long a beginning of `begin` the text ends with."""
    return next((n for n in range(min(len(text), len(begin) - 1), 0, -1) if text.endswith(begin[:n])), 0)
