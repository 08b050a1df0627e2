"""A report model of paragraphs, tables and pictures, written as one self-contained HTML page and as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jinja2

from rllib_envs.errors import InputError
from tuning.output.literal import markdown
from tuning.output.tables import markdown_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """Plain text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of cells, each as wide as the header."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1  # columns of text; the others, of numbers, are aligned to the right
    folded: bool = False  # the page shows the caption alone until it is clicked


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG file in the document's folder."""

    kind: ClassVar[str] = "picture"
    file: str
    caption: str


Block = Paragraph | Table | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part with a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The whole report."""

    title: str
    sections: Sequence[Section]


def to_html(document: Document, folder: Path) -> str:
    """Render one HTML page that needs no other file and no network.

    Args:
        document: its text may hold anything; it is escaped.
        folder: where its pictures are.

    Raises:
        InputError: a picture cannot be read.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tuning"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def data_uri(file: str) -> str:
        return _data_uri(folder / file)

    environment.filters["data_uri"] = data_uri
    return environment.get_template("report.html.j2").render(document=document)


def to_markdown(document: Document) -> str:
    """Render Markdown, with the pictures as links to their files."""
    parts = [f"# {markdown(document.title)}"]
    for section in document.sections:
        parts += [f"## {markdown(section.title)}", *(_block_markdown(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block_markdown(block: Block) -> str:
    match block:
        case Paragraph():
            return "\n".join(map(markdown, block.text.splitlines()))
        case Picture():
            return f"![{markdown(block.caption)}]({block.file})\n\n{markdown(block.caption)}"
        case Table():
            return f"**{markdown(block.caption)}**\n\n{markdown_table(block.header, block.rows, names=block.names)}"


def _data_uri(path: Path) -> str:
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
