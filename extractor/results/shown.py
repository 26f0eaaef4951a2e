"""What a result shows outside of Python: its picture, its page in a browser, and no bars of libraries in a notebook."""

from __future__ import annotations

import io
import os
import sys
import warnings
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import ExtractorError, NotFound

_WIDTH, _COLOURS = 1600, 64


@dataclass(frozen=True)
class CircuitPicture:
    """The picture of a circuit, which a notebook shows. path: of the PNG; the SVG lies beside it."""

    path: Path

    def _repr_png_(self) -> bytes:
        """At most 1,600 pixels wide, in 64 colours: a notebook stores what it shows."""
        from PIL import Image

        with Image.open(self.path) as picture:
            small, stored = picture.convert("RGB"), io.BytesIO()
        small.thumbnail((_WIDTH, small.height))
        small.quantize(_COLOURS, dither=Image.Dither.NONE).save(stored, "PNG", optimize=True)
        return stored.getvalue()


def open_browser(address: str) -> bool:
    """Open an address in a browser; False where there is none. Without a screen, `webbrowser` would start one of text in this terminal."""
    has_screen = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return has_screen and webbrowser.open(address)


def open_page(page: Path) -> None:
    """Open an HTML file in a browser. Raises NotFound without the file, ExtractorError without a browser."""
    if not page.is_file():
        raise NotFound(f"there is no page {page}; copy the complete result")
    if not open_browser(page.absolute().as_uri()):
        raise ExtractorError(f"there is no browser here; the report is one file, copy it to where one is: {page.absolute()}")


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers loads models without a bar, and without warnings of what will change in it."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
