"""A model's own chat template, written in Jinja by whoever made the file, run where it can do nothing but write text.

Only the filters, tests, functions and methods that chat templates use exist; every operation that could make a value
large is checked before it is done; and a deadline is looked at on every line.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from hearthlm.errors import TemplateError

MAX_SOURCE_CHARS = 64 << 10
MAX_OUTPUT_CHARS = 1 << 20
MAX_ITEMS = 100_000
MAX_INTEGER_BITS = 256
MAX_DEPTH = 32
MAX_SECONDS = 1.0

_FILTERS = """
abs capitalize count d default dictsort e escape first float int items last length lower map max min reject rejectattr
reverse safe select selectattr sort sum title trim unique upper
"""
_TESTS = """
boolean callable defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable le lessthan lower
lt mapping ne none number odd sameas sequence string true undefined upper == != < <= > >=
"""
_TEXT_METHODS = """
capitalize count endswith find index isalnum isalpha isdigit islower isnumeric isspace istitle isupper join lower lstrip
partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip
title upper
"""
_LOOP_NAMES = """
changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0
"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    LoopContext: frozenset(_LOOP_NAMES.split()),
}
_LONG_WIDTH = re.compile(r"\d{4}|\*")  # anywhere in a format: none that is needed has one


_Value = TypeVar("_Value")


class ChatTemplate:
    """Write conversations as one model's template says; immutable, and safe to use from several threads.

    Raises TemplateError where the source is not a template, is too long, or takes too long to compile.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"chat template: expected at most {MAX_SOURCE_CHARS} characters, got {len(source)}")
        self.source = source
        self._template = _guarded(lambda: _environment().from_string(source))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, str],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the text of a conversation; `variables` are names such as bos_token.

        Raises TemplateError for what the template itself refuses and for whatever fails or goes beyond a limit.
        """
        values = {
            **variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": [dict(tool) for tool in tools] or None,
            "documents": None,
        }
        text: str = _guarded(lambda: _concat(self._template.generate(values)))
        return text


# Where the code of templates, of jinja2 and of its helpers here comes from; a template has no file.
_TEMPLATE_CODE = ("<", str(Path(jinja2.__file__).parent), __file__)


def _guarded(work: Callable[[], Any]) -> Any:
    """Do some work with a deadline; whatever it raises becomes a TemplateError."""
    deadline = time.monotonic() + MAX_SECONDS

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        # What the garbage collector runs meanwhile, others' finalisers and generators, is not the template's.
        if time.monotonic() > deadline and frame.f_code.co_filename.startswith(_TEMPLATE_CODE):
            raise TemplateError(f"chat template: expected to be done within {MAX_SECONDS:g} s, and it was not")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return work()
    except TemplateError:
        raise
    except Exception as error:  # also RecursionError, MemoryError, SyntaxError of what jinja2 compiles
        raise TemplateError(f"chat template: {type(error).__name__}: {str(error)[:300]}") from None
    finally:
        sys.settrace(before)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        extensions=[loopcontrols, _Generation],
        finalize=_finalized,
        cache_size=0,
    )
    environment.filters = {
        **{name: _bounded(FILTERS[name]) for name in _FILTERS.split()},
        "checked": _checked,
        "concatenated": lambda values: _concat(map(_text, values)),
        "indent": _indent,
        "join": _join,
        "list": _items,
        "replace": lambda text, old, new, count=-1: _replace(_text(text), _text(old), _text(new), count),
        "string": _text,
        "tojson": _to_json,
    }
    environment.tests = {name: TESTS[name] for name in _TESTS.split()}
    environment.globals = {
        "dict": dict,
        "namespace": Namespace,
        "raise_exception": _raise_exception,
        "range": _range,
        "strftime_now": lambda form: datetime.datetime.now().strftime(_text(form)[:100]),
    }
    environment.concat = _concat  # type: ignore[method-assign]
    return environment


class _Sandbox(ImmutableSandboxedEnvironment):
    """Check every operation, attribute and call of a template."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _ChecksAdded().visit(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            bits = _bits(left) * abs(right) if isinstance(left, int) and isinstance(right, int) else 0
            _check("number", bits, MAX_INTEGER_BITS)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    _check("repetition", _size(value) * max(0, times), MAX_OUTPUT_CHARS)
            if isinstance(left, int) and isinstance(right, int):
                _check("number", _bits(left) + _bits(right), MAX_INTEGER_BITS)
        elif operator == "%" and isinstance(left, str):
            if _LONG_WIDTH.search(left):
                raise TemplateError("chat template: a format with so long a field is refused")
            _size(right)
        elif operator == "+":
            if isinstance(left, str) and isinstance(right, str):
                _check("text", len(left) + len(right), MAX_OUTPUT_CHARS)
            elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
                _check("list", _size(left) + _size(right), MAX_OUTPUT_CHARS)
            elif isinstance(left, int) and isinstance(right, int):
                _check("number", max(_bits(left), _bits(right)), MAX_INTEGER_BITS)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        if isinstance(obj, Namespace):
            return True
        return any(attr in names for kind, names in _METHODS.items() if isinstance(obj, kind))

    def is_safe_callable(self, obj: Any) -> bool:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, tuple(_METHODS)):
            return True
        return isinstance(obj, (Macro, LoopContext)) or any(obj is known for known in self.globals.values())

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "join" and len(args) == 1:
            return _join(args[0], owner)
        if isinstance(owner, str) and name == "replace" and len(args) in (2, 3):
            return _replace(owner, _text(args[0]), _text(args[1]), args[2] if len(args) == 3 else -1)
        if isinstance(owner, str) and name in ("join", "replace"):
            raise TemplateError(f"chat template: {name}: expected other arguments")
        if obj is dict:
            _size(kwargs)
        return super().call(context, obj, *args, **kwargs)


class _ChecksAdded(NodeTransformer):
    """Put filters of this file where jinja2 would join texts or build lists unseen."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "concatenated")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "checked")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "checked")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered(node, "checked")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """Accept `{% generation %}`, which marks the model's own words for training and writes nothing."""

    tags = {"generation"}  # noqa: RUF012 -- as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(f"chat template: {_text(message)[:300]}")


def _check(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise TemplateError(f"chat template: expected a {what} of at most {limit}, got {min(size, 1 << 60)}")


def _bits(number: int) -> int:
    return number.bit_length()


def _size(value: Any, depth: int = 0) -> int:
    """Return about how many characters a value takes when it is written; raises TemplateError beyond the limits."""
    if depth > MAX_DEPTH:
        raise TemplateError(f"chat template: a value is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        size = len(value)
    elif isinstance(value, Mapping):
        size = 2
        for key, item in value.items():
            size += _size(key, depth + 1) + _size(item, depth + 1) + 4
            _check("value", size, MAX_OUTPUT_CHARS)
    elif isinstance(value, (list, tuple, set, frozenset)):
        size = 2
        for item in value:
            size += _size(item, depth + 1) + 2
            _check("value", size, MAX_OUTPUT_CHARS)
    elif isinstance(value, int):
        _check("number", _bits(value), MAX_INTEGER_BITS)
        size = 80
    else:
        size = 80
    _check("value", size, MAX_OUTPUT_CHARS)
    return size


def _text(value: Any) -> str:
    """Return a value as it is written into the output."""
    if isinstance(value, str):
        return value
    _size(value)
    return str(value)


def _finalized(value: Any) -> Any:
    """Check what an expression writes; jinja2 turns it into text."""
    if not isinstance(value, Undefined):
        _size(value)
    return value


def _concat(parts: Iterable[str]) -> str:
    """Join parts of the output, none of which is long, while their sum is not."""
    kept, size = [], 0
    for part in parts:
        size += len(part)
        _check("text", size, MAX_OUTPUT_CHARS)
        kept.append(part)
        _check("list of parts", len(kept), MAX_OUTPUT_CHARS)
    return "".join(kept)


def _items(values: Iterable[Any]) -> list[Any]:
    kept = []
    for value in values:
        kept.append(value)
        _check("list", len(kept), MAX_ITEMS)
    return _checked(kept)


def _checked(value: _Value) -> _Value:
    """Bound what a list holds when it is made: comparing, sorting and writing it are then bounded too."""
    _size(value)
    return value


def _range(*bounds: Any) -> range:
    numbers = range(*bounds)
    _check("range", abs(numbers.stop - numbers.start) // abs(numbers.step), MAX_ITEMS)
    return numbers


def _join(values: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise TemplateError("chat template: join with an attribute is not supported")
    between = _text(d)

    def parts() -> Iterator[str]:
        for i, value in enumerate(values):
            if i:
                yield between
            yield _text(value)

    return _concat(parts())


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    _check("text", len(text) + text.count(old) * len(new), MAX_OUTPUT_CHARS)
    return text.replace(old, new, count if isinstance(count, int) else -1)


def _indent(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    _check("text", len(_text(width)) if isinstance(width, str) else width, 200)
    before = width if isinstance(width, str) else " " * width
    lines = _text(text).split("\n")
    return _concat(
        part
        for i, line in enumerate(lines)
        for part in ("\n" if i else "", before if (first if i == 0 else blank or line) else "", line)
    )


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as transformers does: no escapes for HTML."""
    _size(value)
    if indent is not None:
        _check("indentation", indent if isinstance(indent, int) else len(_text(indent)), 16)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    _check("text", len(text), MAX_OUTPUT_CHARS)
    return text


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter whose arguments and whose result are checked."""

    def bounded(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            if isinstance(value, (str, list, tuple, dict, int)):
                _size(value)
        result = function(*args, **kwargs)
        if isinstance(result, (str, list, tuple, dict, int)):
            _size(result)
        return result

    if hasattr(function, "jinja_pass_arg"):  # whether it wants the environment first
        bounded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return bounded
