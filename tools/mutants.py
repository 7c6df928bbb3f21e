"""Small changes of a Python file's meaning, one at a time.

Not changed are docstrings, annotations, error messages, defaults of arguments, assertions, and on which device a tensor
is made, as the tests have but one.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

OPERATORS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
    ast.FloorDiv: "*", ast.Pow: "*", ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or", ast.Or: "and",
}  # fmt: skip
RENAMED = {"mean": "sum", "sum": "mean", "min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all"}
RENAMED |= {"all": "any", "zeros_like": "ones_like", "new_zeros": "new_ones", "isfinite": "isnan"}
REMOVED = ("detach", "clone", "abs", "square", "sqrt", "exp", "log", "clamp")


class Mutant(NamedTuple):
    """One change: where it is, its lines before and after, and the whole file after it."""

    file: str
    function: str
    before: str
    after: str
    line: int
    source: str

    @property
    def name(self) -> str:
        """A short form of what tells it from others, whatever else is in the file."""
        return hashlib.sha1("\0".join(self[:4]).encode()).hexdigest()[:8]


def changes(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield parts of the tree at a node, with what to write in their place."""
    text = ast.unparse
    match node:
        case ast.Compare(ops=[op]):
            yield node, f"({text(node.left)} {OPERATORS[type(op)]} {text(node.comparators[0])})"
        case ast.BinOp() if type(node.op) in OPERATORS and not isinstance(getattr(node.left, "value", None), str):
            yield node, f"({text(node.left)} {OPERATORS[type(node.op)]} {text(node.right)})"
            if isinstance(node.op, ast.Add | ast.Sub):
                yield from ((node, f"({text(term)})") for term in (node.left, node.right))
        case ast.BoolOp():
            same, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            values = [f"({text(value)})" for value in node.values]
            yield node, "(" + f" {other} ".join(values) + ")"
            yield from ((node, "(" + f" {same} ".join(v for v in values if v != one) + ")") for one in values)
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield node, f"({text(node.operand)})"
        case ast.Constant(value=bool()):
            yield node, str(not node.value)
        case ast.Constant(value=int() | float()):
            yield node, repr(node.value + 1 if isinstance(node.value, int) or node.value == 0 else 2 * node.value)
        case ast.AugAssign() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.If(body=[*_, ast.Raise()]):
            yield node, "pass"
        case ast.Expr() if not isinstance(node.value, ast.Constant):
            yield node, "pass"
        case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)):
            owner = f"{text(node.func.value)}." if isinstance(node.func, ast.Attribute) else ""
            if called in RENAMED:
                yield node.func, owner + RENAMED[called]
            if owner and called in REMOVED:
                yield node, owner.removesuffix(".")
            for one in node.keywords:
                if one.arg not in ("strict", "device"):
                    yield node, text(ast.Call(node.func, node.args, [k for k in node.keywords if k is not one]))
            if [type(argument) for argument in node.args] == [ast.Name] * 2 and called not in ("isinstance", "getattr"):
                yield node, text(ast.Call(node.func, node.args[::-1], node.keywords))
    if isinstance(node, ast.If | ast.IfExp) and isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
        yield node.test, f"(not {text(node.test)})"


def left_alone(node: ast.AST) -> list[ast.AST | None]:
    """What is no part of the semantics, or a choice rather than a computation."""
    match node:
        case ast.arguments():
            return [*node.defaults, *node.kw_defaults]
        case ast.arg() | ast.AnnAssign():
            return [node.annotation]
        case ast.FunctionDef():
            return [node.returns]
        case ast.keyword(arg="strict"):  # of zip: an assertion
            return [node.value]
    return [node] if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert) else []


def mutants_of(package: Path, file: str) -> list[Mutant]:
    """Every change of a file in a package."""
    raw = (package / file).read_bytes()
    lines = raw.splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]

    def visit(node: ast.AST, function: str) -> Iterator[Mutant]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
        for part, text in changes(node):
            first, last = starts[part.lineno - 1], starts[part.end_lineno]
            begin, end = first + part.col_offset, starts[part.end_lineno - 1] + part.end_col_offset
            versions = raw[first:last], raw[first:begin] + text.encode() + raw[end:last]
            before, after = (" ".join(version.decode().split()) for version in versions)
            source = raw[:begin] + text.encode() + raw[end:]
            yield Mutant(file, function, before, after, part.lineno, source.decode())
        for child in ast.iter_child_nodes(node):
            if child not in (*left_alone(node), *left_alone(child)):
                yield from visit(child, function)

    found = {mutant[:4]: mutant for mutant in visit(ast.parse(raw), "") if mutant.before != mutant.after}
    return list(found.values())
