"""The model that ships with the package: a few million parameters, trained by the code in the repository's `demo/`."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Return the path of the demo model, a MediaPipe `.bin`."""
    return Path(__file__).with_name("model.bin")
