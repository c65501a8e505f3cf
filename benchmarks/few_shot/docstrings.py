"""Docstrings of installed packages as short texts, with their module as class."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PACKAGES = {  # distribution (whose version is recorded): package
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sympy": "sympy",
    "torch": "torch",
}
MODULES, LEAST, MOST = 16, 40, 60  # modules per package; least and largest number of texts per module
SHORTEST, LONGEST = 40, 256  # least and largest number of characters of a text
SKIPPED = {"test", "tests", "testing", "_vendor", "distutils"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def versions() -> dict[str, str]:
    """Return the versions of the packages, on which the texts depend."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def texts_of_modules(packages: tuple[str, ...] = tuple(PACKAGES.values())) -> dict[str, list[str]]:
    """Return LEAST to MOST different texts of each module, for at most MODULES modules of a package.

    A text is the beginning of a docstring of a function, method or class, without line breaks. The modules of a package
    are evenly spaced among those with at least LEAST texts, in alphabetical order. A text of several modules belongs to
    the first of them.
    """
    seen: set[str] = set()
    chosen = {}
    for package in packages:
        modules = {name: texts for name, texts in _modules(package, seen) if len(texts) >= LEAST}
        names = sorted(modules)
        places = np.linspace(0, len(names) - 1, min(MODULES, len(names))).round().astype(int)
        chosen |= {names[place]: modules[names[place]][:MOST] for place in places}
    return chosen


def _modules(package: str, seen: set[str]) -> Iterator[tuple[str, list[str]]]:
    specification = importlib.util.find_spec(package)
    if specification is None or specification.origin is None:
        return
    root = Path(specification.origin).parent
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED.intersection(path.relative_to(root).parts):
            texts = [text for text in dict.fromkeys(_texts(path)) if text not in seen]
            seen.update(texts)
            yield str(path.relative_to(root.parent).with_suffix("")), texts


def _texts(path: Path) -> Iterator[str]:
    """Yield the texts of one file; none if the file cannot be parsed."""
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings about escapes in strings
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        text = " ".join((ast.get_docstring(node) or "").split()) if isinstance(node, DEFINITIONS) else ""
        if len(text) >= SHORTEST:
            yield text[:LONGEST]
