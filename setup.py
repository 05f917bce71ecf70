"""The long description of the package: the README without what only a checkout has.

A package index shows pictures and links of absolute addresses alone, so pictures with their captions are left out, and
links to files of the checkout become their words. All else about the package is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def long_description(readme: str) -> str:
    """Return a README without the pictures and links that have no absolute address."""
    kept: list[str] = []
    caption_follows = False
    for paragraph in re.split(r"\n{2,}", readme):
        pictured = re.search(r"!\[[^]]*\]\((?!https?://)", paragraph) is not None
        captioned = caption_follows and re.fullmatch(r"\*[^*].*\*\s*", paragraph, re.S) is not None
        if not pictured and not captioned:
            kept.append(paragraph)
        caption_follows = pictured
    return re.sub(r"\[([^]]+)\]\((?!https?://)[^)]+\)", r"\1", "\n\n".join(kept))


if __name__ == "__main__":
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(long_description=long_description(readme), long_description_content_type="text/markdown")
