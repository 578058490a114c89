"""Checks that links, paths, commands and names in the documentation exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PATH = re.compile(r"(?<![\w/.])((?:pvs_model|benchmarks|tests|docs|weights)/[\w/.-]*\w|process\.py|CHANGELOG\.md)")
MODULE = re.compile(r"python -m ((?:pvs_model|benchmarks|tests)[\w.]*)")
COMMAND = re.compile(r"(?:-m pvs_model|pvs-model) ([a-z]+)\b(?![-.])")
DOTTED = re.compile(r"(?<![\w/])pvs_model(?:\.\w+)+")
NAME = r"`[A-Za-z_][\w.]*`"
DEFINED = re.compile(rf"({NAME}(?:(?:, | and |, and ){NAME})*) (?:in|of)\s+`(pvs_model/[\w/]+\.py)`")


@cache
def definitions(path: Path) -> frozenset[str]:
    """Names that a module defines or imports, and ``Class.member`` of its classes."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                target = getattr(member, "target", None)
                names.add(f"{node.name}.{getattr(member, 'name', getattr(target, 'id', ''))}")
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
    return frozenset(names)


def module_file(dotted: str) -> Path | None:
    path = ROOT.joinpath(*dotted.split("."))
    files = (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def is_defined(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in a module."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:count])
        files = [file for file in (folder.with_suffix(".py"), folder / "__init__.py") if file.is_file()]
        if files:
            return count == len(parts) or ".".join(parts[count:]) in definitions(files[0])
    return False


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problems(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        linked = page.parent / target if target else page
        if not linked.exists():
            yield f"link to {target}"
        elif anchor and anchor not in anchors(linked):
            yield f"link to {target}#{anchor}"
    for path in PATH.findall(text):
        if not list(ROOT.glob(path + "*")):
            yield f"path {path}"
    for module in MODULE.findall(text):
        if module_file(module) is None:
            yield f"python -m {module}"
    for command in COMMAND.findall(text):
        if not (ROOT / "pvs_model" / "commands" / f"{command}.py").is_file():
            yield f"command {command}"
    for name in DOTTED.findall(text):
        if not is_defined(name):
            yield f"name {name}"
    for names, path in DEFINED.findall(text):
        if (ROOT / path).is_file():
            known = definitions(ROOT / path)
            yield from (f"{name} in {path}" for name in re.findall(r"[\w.]+", names) if name not in known | {"and"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path) -> None:
    assert list(problems(page)) == []


def test_a_page_that_names_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "[a](b.md) [b](#nothing) `pvs_model/nothing.py` `python -m benchmarks.nothing` `pvs-model nothing` "
        "`pvs_model.api.nothing` `nothing` in `pvs_model/api.py`",
        encoding="utf-8",
    )
    assert len(list(problems(page))) == 7
