"""How well the texts of a page can be read, as a script for the browser."""

from pathlib import Path

# The contrast of each text with what is behind it, by WCAG 2.1; the least one, and its text.
CONTRAST = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
