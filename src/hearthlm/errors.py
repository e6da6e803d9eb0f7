"""The exceptions that hearthlm raises beside Python's own.

A caller's mistake (an option out of range, a wrong type) is a `ValueError` or `TypeError`. The rest is this tree:

    HearthLMError
    ├── ModelFormatError            the bytes of a file are not what its format says
    │   ├── TruncatedFileError      the file ends before what it declares
    │   ├── CorruptFileError        a size, an offset or a field contradicts the file or itself
    │   ├── UnsafeFileError         the file asks for something that is never done, such as running code
    │   ├── SessionFileError        a saved session is none, or of another model or version
    │   ├── TemplateError           a chat template cannot be run, goes beyond a limit, or refuses the conversation
    │   ├── TensorMismatchError     a tensor is missing, or has another shape or type than the model needs
    │   └── TokenizerFormatError    the tokenizer inside or beside a model cannot be read
    ├── UnsupportedModelError       the file is sound, but holds a model, a format or a field that is not understood
    ├── BundleError                 the parts of a bundle do not fit together; also a ValueError
    ├── ContextLengthError          the tokens do not fit into the context; also a ValueError
    ├── ResponseFormatError         an answer's form cannot be enforced; also a ValueError
    ├── SessionBusyError            the session is still answering an earlier call
    └── EngineClosedError           the model was closed while the call was under way, or before it
"""

from __future__ import annotations


class HearthLMError(Exception):
    """The root of every error that hearthlm defines."""


class ModelFormatError(HearthLMError):
    """The bytes of a file are not what its format says."""


class TruncatedFileError(ModelFormatError):
    """The file ends before what it declares."""


class CorruptFileError(ModelFormatError):
    """A size, an offset or a field contradicts the file or itself."""


class UnsafeFileError(ModelFormatError):
    """The file asks for something that is never done, such as running code."""


class SessionFileError(ModelFormatError):
    """A saved session is none, or of another model or version."""


class TemplateError(ModelFormatError):
    """A chat template cannot be run, goes beyond a limit, or refuses the conversation."""


class TensorMismatchError(ModelFormatError):
    """A tensor is missing, or has another shape or type than the model needs."""


class TokenizerFormatError(ModelFormatError):
    """The tokenizer inside or beside a model cannot be read."""


class UnsupportedModelError(HearthLMError):
    """The file is sound, but holds a model, a format or a field that is not understood."""


class BundleError(HearthLMError, ValueError):
    """The parts of a bundle do not fit together: its tokenizer cannot be loaded, or lacks a token that is named."""


class ContextLengthError(HearthLMError, ValueError):
    """The tokens do not fit into the context."""

    def __init__(self, num_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"the prompt has {num_tokens} tokens, but max_tokens is {max_tokens} for prompt and answer together; "
            f"shorten the prompt or raise max_tokens to at least {num_tokens + 1}"
        )
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens

    def __reduce__(self) -> tuple[type[ContextLengthError], tuple[int, int]]:
        return type(self), (self.num_tokens, self.max_tokens)


class ResponseFormatError(HearthLMError, ValueError):
    """An answer's form is none, cannot be enforced, or is too complex."""


class SessionBusyError(HearthLMError):
    """The session is still answering an earlier call."""


class EngineClosedError(HearthLMError):
    """The model was closed while the call was under way, or before it."""
