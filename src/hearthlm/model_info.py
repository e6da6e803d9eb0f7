"""What a model file holds, told without reading its weights."""

from __future__ import annotations

from os import PathLike

from hearthlm.runtime.model import Model, ModelInfo, TensorInfo

__all__ = ["ModelInfo", "TensorInfo", "inspect_model"]


def inspect_model(path: str | PathLike[str]) -> ModelInfo:
    """Describe the MediaPipe `.bin` or Hugging Face folder at `path`.

    Raises FileNotFoundError, ModelFormatError or UnsupportedModelError, as loading it would.
    """
    with Model.open(path) as model:
        return model.info
