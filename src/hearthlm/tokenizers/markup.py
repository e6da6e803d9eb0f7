"""Which vocabulary entries mark up a prompt, and are therefore never read out of a user's text."""

from __future__ import annotations

import re

# Some vocabularies (Gemma's among them) hold HTML tags as whole pieces. They are ordinary text: a page pasted into a
# chat should be tokenised as the model saw pages in training. <s> is left out: in most vocabularies it starts a text.
_HTML = re.compile(
    r"</?(?:a|b|blockquote|body|br|caption|code|dd|div|dl|dt|em|h[1-6]|head|hr|html|i|img|li|ol|p|pre|small|span"
    r"|strong|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|u|ul)/?>"
)
_MARKUP = re.compile(r"<[^<>\s](?:[^<>\n]*[^<>\s])?>|\[[^\[\]\s](?:[^\[\]\n]*[^\[\]\s])?\]")


def is_markup(piece: str) -> bool:
    """Tell whether a piece is shaped like a prompt's markup: `<...>` or `[...]`, except for HTML tags.

    Some families write other characters inside the brackets, such as fullwidth bars: `<｜User｜>` is markup as well.
    """
    return _MARKUP.fullmatch(piece) is not None and _HTML.fullmatch(piece) is None


def alternation(pieces: list[str]) -> re.Pattern[str]:
    """Return a pattern with one group that matches any of `pieces`, the longest first."""
    return re.compile("(" + "|".join(map(re.escape, sorted(pieces, key=len, reverse=True))) + ")")
