"""Docstrings are English sentences or noun phrases, which a reader understands without the code beside them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("gradosr", "jobs") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN = ("Of ", "By ", "As ", "What ", "The same", "See ", "How ", "Which ", "Where ", "Why ", "That ")
IN_FUNCTIONS = ("Whether ",)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, bool, str]]:
    """Yield line, whether of a function that is no property, and text: a body's first, or one after an assignment."""
    for node in ast.walk(tree):
        for number, statement in enumerate(node.body if isinstance(node, DOCUMENTED) else ()):
            value = statement.value if isinstance(statement, ast.Expr) else None
            if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                continue
            if number == 0:
                yield value.lineno, isinstance(node, FUNCTIONS) and not is_property(node), value.value
            elif isinstance(node.body[number - 1], ast.Assign | ast.AnnAssign):
                yield value.lineno, False, value.value


def faults(source: str) -> list[str]:
    return [
        f"{line}: {text.strip().splitlines()[0]}"
        for line, of_function, text in docstrings(ast.parse(source))
        if text.strip().startswith(FORBIDDEN + IN_FUNCTIONS * of_function)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_like_a_telegram(path):
    assert not faults(path.read_text(encoding="utf-8"))


def test_every_kind_of_docstring_is_looked_at():
    source = '''
"""Of a module."""
a = 1
"""By name."""
class C:
    """What it is."""
    b: int = 2
    """Whether it is used; allowed for an attribute."""
    c: int
    """As it was."""
    @property
    def p(self):
        """Whether it is used; allowed for a property."""
    async def f(self):
        """Whether it is used."""
        """See above: no docstring."""
def g():
    """The same."""
'''
    assert {fault.partition(": ")[2] for fault in faults(source)} == {
        "Of a module.",
        "By name.",
        "What it is.",
        "As it was.",
        "Whether it is used.",
        "The same.",
    }
