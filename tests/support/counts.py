"""Count what the house is measured by: `python tests/support/counts.py [FOLDER]` (a checkout; this one by default).

Lines of code are those that a token other than a comment or a docstring touches.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

KNOBS = ("fusion_order", "keep_layers", "answer_all", "sync_every")
NAMES = {
    "standalone",
    "self_refine",
    "self_consistency",
    "ensemble",
    "route",
    "t2t",
    "specfed",
    "fedattn",
    "c2c",
    "mlp",
}
# Rooms that may say a protocol's or a fuser's name: those of its settings, its exchange, its work, its figure.
ROOMS = ("protocols/", "methods/", "member/", "fusion/", "evaluation/figures/", "registry/c2c_checkpoint")


def code_lines(text: str) -> int:
    """Count the lines of a file without comments, docstrings and blank ones."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docs |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docs)


def comparisons(tree: ast.AST) -> list[int]:
    """Find the lines that compare something with a protocol's or a fuser's name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            sides += [e for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for e in side.elts]
            if any(isinstance(side, ast.Constant) and side.value in NAMES for side in sides):
                found.append(node.lineno)
    return found


def copies(tree: ast.AST) -> int:
    """Count keyword arguments that copy an attribute of the same name."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    keywords = (keyword for call in calls for keyword in call.keywords)
    return sum(isinstance(k.value, ast.Attribute) and k.value.attr == k.arg for k in keywords)


def main(root: Path) -> None:
    texts = {str(path.relative_to(root / "fedray")): path.read_text() for path in (root / "fedray").rglob("*.py")}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    print(f"lines of code: {sum(map(code_lines, texts.values())):,} in {len(texts)} files")
    for knob in KNOBS:
        files = sorted(name for name, text in texts.items() if knob in text)
        print(f"files that spell {knob}: {len(files)}")
    outside = {n: found for n, tree in trees.items() if not n.startswith(ROOMS) and (found := comparisons(tree))}
    print(
        f"comparisons with a protocol's or fuser's name: {sum(len(comparisons(tree)) for tree in trees.values())}, ",
        end="",
    )
    print(f"outside their rooms {sum(map(len, outside.values()))}")
    for name, lines in sorted(outside.items()):
        print(f"    {name}: {', '.join(map(str, lines))}")
    print(f"keywords that copy an attribute of the same name: {sum(map(copies, trees.values()))}")
    classes = Counter(node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    print(f"class names used twice: {sum(count > 1 for count in classes.values())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
