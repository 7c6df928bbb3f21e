"""Copies the examples to where sphinx-gallery runs them: in their own folder, to which they write pictures."""

from pathlib import Path


def copy_examples(source: Path, target: Path) -> None:
    """Copy scripts, with the first line of each docstring as a heading, and the gallery's own heading."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (*source.glob("*.py"), *source.glob("GALLERY_HEADER.rst")):
        text = path.read_text()
        if path.suffix == ".py":
            first, rest = text.split("\n", 1)
            question = first.removeprefix('"""')
            text = f'"""\n{question}\n{"=" * len(question)}\n{rest}'
        if not (target / path.name).exists() or (target / path.name).read_text() != text:
            (target / path.name).write_text(text)
