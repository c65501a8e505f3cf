"""Lists the content of folders and text files of users, without hidden files and files of operating systems."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from pyro_metabayes.errors import UsageError, how_many

LEFT_BEHIND = {
    "__macosx", "icon\r",  # macOS, beside .DS_Store and ._NAME
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",  # Windows
    "lost+found",  # Linux
    "@eadir", "#recycle", "@recycle", "#snapshot",  # network storage
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or was created by an operating system."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def visible(folder: Path) -> list[Path]:
    """Return the sorted files and folders in a folder, except hidden ones; a broken link raises a UsageError."""
    paths = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    if broken := [path for path in paths if path.is_symlink() and not path.exists()]:
        raise UsageError(
            f"expected files and folders in {folder}, got {how_many(len(broken), 'broken link')}: {broken[0].name} "
            f"leads to {broken[0].readlink()}, which does not exist; fix or remove the links"
        )
    return paths


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, without hidden files and without files in hidden subfolders."""
    for path in visible(folder):
        if not path.is_dir():
            yield path
        elif not path.is_symlink():  # a linked folder may contain itself
            yield from visible_files(path)


def linked_folders(folder: Path) -> list[Path]:
    """Return the links to folders, at any depth below a folder; `visible_files` does not follow them."""
    found: list[Path] = []
    for path in filter(Path.is_dir, visible(folder)):
        found += [path] if path.is_symlink() else linked_folders(path)
    return found


def lines_of(file: Path) -> list[str]:
    """Return the non-blank lines of a text file.

    The file is read as UTF-16 if it begins with a byte order mark of UTF-16, and otherwise as UTF-8.
    """
    content = file.read_bytes()
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if utf_16 else "utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
