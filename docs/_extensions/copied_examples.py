"""Copies the examples to where sphinx-gallery runs them: in their own folder, to which they write pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def copy_examples(source: Path, target: Path, thumbnails: Mapping[str, str]) -> None:
    """Copy scripts, with the first line of each docstring as a heading, and the gallery's own heading.

    Args:
        source: The folder of the examples.
        target: The folder for the copies.
        thumbnails: Pictures for examples that are not run, by the example's name, relative to the documentation.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in (*source.glob("*.py"), *source.glob("GALLERY_HEADER.rst")):
        text = path.read_text()
        if path.suffix == ".py":
            first, rest = text.split("\n", 1)
            question = first.removeprefix('"""')
            text = f'"""\n{question}\n{"=" * len(question)}\n{rest}'
        if path.stem in thumbnails:
            text += f"\n# sphinx_gallery_thumbnail_path = {thumbnails[path.stem]!r}\n"
        if not (target / path.name).exists() or (target / path.name).read_text() != text:
            (target / path.name).write_text(text)


def draw_thumbnail(path: Path) -> None:
    """Draw the picture of the examples that are shown, but not run."""
    figure = Figure(figsize=(4, 2.8))
    figure.text(0.5, 0.5, "needs data\nto run", ha="center", va="center", size=24, color="gray")
    figure.savefig(path)


def written_pictures(block: tuple[Any, ...], block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Show the pictures that an example has written to ``outputs``; a scraper of sphinx-gallery."""
    written = sorted((Path(block_vars["src_file"]).parent / "outputs").glob("*.png"))
    shown = []
    for source in written:
        shown.append(next(block_vars["image_path_iterator"]))
        source.rename(shown[-1])
    return figure_rst(shown, gallery_conf["src_dir"])
