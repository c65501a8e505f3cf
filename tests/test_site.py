"""Does the site show what the pages say: every page in its navigation, tables, plots and formulae as meant?"""

from __future__ import annotations

import re

import pytest

from docs.site.page_hooks import on_page_content, on_page_markdown
from tests.commands import ROOT

NAVIGATION = re.compile(r": (\S+\.md)$", re.MULTILINE)
PACKAGES = ("pyro_metabayes", "models", "guides")


def packages() -> list[str]:
    """The packages of the reference by their installed names."""
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py") if "__pycache__" not in file.parts]
    names = {".".join(file.relative_to(ROOT).parent.parts) for file in files}
    return sorted(name if name.startswith("pyro_metabayes") else f"pyro_metabayes.{name}" for name in names)


def test_every_page_is_in_the_navigation_once() -> None:
    found = NAVIGATION.findall((ROOT / "mkdocs.yml").read_text())
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    pages += [f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.py")]
    pages += [f"reference/{name}.md" for name in packages()]
    assert sorted(found) == sorted([*pages, "README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md"])


def test_a_warning_of_mkdocs_is_an_error() -> None:
    (command,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "mkdocs build" in line)
    assert "--strict" in command and "--quiet" not in command  # a warning that is not logged is not counted


def test_bars_in_the_code_of_a_table_need_no_backslash() -> None:
    assert on_page_markdown(r"| `(1 \| a)` | x \| y |") == r"| `(1 | a)` | x \| y |"
    assert on_page_markdown(r"`a \| b`") == r"`a \| b`"


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<td>0.5 +- 0.1, better</td>", '<td><span class="number">0.5 +- 0.1</span>, better</td>'),
        ("<td>1.2 (-0.1 to +0.4)</td>", '<td>1.2 (<span class="number">-0.1 to +0.4</span>)</td>'),
        ("<td>steps 10 to the end</td>", "<td>steps 10 to the end</td>"),
        ("<p>0.5 +- 0.1</p>", "<p>0.5 +- 0.1</p>"),
        (f"<td><code>{'a' * 31}</code></td>", f'<td class="long"><code>{"a" * 31}</code></td>'),
        ('<img alt="x" src="a/b.png">', '<a href="a/b.png" title="Open in full size"><img alt="x" src="a/b.png"></a>'),
        ('<span class="doc-module-name">a.b_c</span>', '<span class="doc-module-name">a.<wbr>b_c</span>'),
        ("<code>build/package/a/b.py</code>", "<code>a/b.py</code>"),
    ],
)
def test_html_of_a_page(html: str, shown: str) -> None:
    assert on_page_content(html) == shown


def test_operators_of_a_formula_are_set_apart() -> None:
    formulae = pytest.importorskip("docs.site.formulae", reason="an extra of the site")
    assert formulae.spaced(r"\frac{1}{Q} \sum_{i \in S_{c}} x") == r"\frac{1}{Q}\, \sum_{i \in S_{c}}\, x"
    assert formulae.spaced(r"E\log p = \int f") == r"E\, \log p = \int\, f"
    assert formulae.spaced(r"w \in C, \logit") == r"w \in C, \logit"


def test_a_formula_brings_no_text_but_its_own() -> None:
    formulae = pytest.importorskip("docs.site.formulae", reason="an extra of the site")
    drawn = formulae.as_svg("\\sum_i x_i < 1\n")
    assert drawn.startswith('<div class="formula"><svg role="img" aria-label="\\sum_i x_i &lt; 1"')
    assert "metadata" not in drawn and "Matplotlib" not in drawn and drawn.endswith("</svg>\n</div>")
