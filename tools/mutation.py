"""Changes the code in small ways, one at a time, and tells which changes no test notices.

    make mutation                                  # a sample of 300 changes, about an hour on one core
    python tools/mutation.py --limit 40 --seed 2   # another sample, smaller
    python tools/mutation.py --only 3fa2 91bc      # the changes of those names again, after writing tests

A change is made in a temporary copy of the package, never in the tree, and tested in a process forked from one that
has already imported torch. Not changed are docstrings, annotations, error messages, and defaults of arguments.
`equivalent_mutants.txt` lists changes that cannot matter, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_meta"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
FILES = ["algorithms/*.py", "inner/*.py", "metrics/*.py", "predictive.py", "task_mapping.py", "task_batches.py"]

# Tests by file, those that are most likely to notice a change first; then those that concern all files.
MAML = ["quadratic_oracles", "maml_family", "meta_gradients", "checkpointed_inner_loop", "bad_input"]
BAYES = ["fixed_noise", "abml", "bayesian_maml", "amortized_maml"]
MAPPING = ["task_mapping", "meta_gradients", "randomness", "parallel_recording", "inputs", "recording", "resume"]
TESTS = {
    "abml": BAYES[:2], "amortized_maml": ["fixed_noise", "amortized_maml"], "anil": MAML, "bayesian_maml": BAYES[2:3],
    "implicit_maml": ["implicit_maml"], "maml": MAML, "meta_sgd": MAML, "reptile": ["reptile"], "adapted": MAML,
    "checkpoint": MAML[3:], "conjugate_gradient": ["implicit_maml"], "kept_state": ["reptile", "ddp"],
    "multi_step": MAML[1:], "noise": BAYES, "proximal": ["implicit_maml"], "proximal_strength": ["implicit_maml"],
    "rates": MAML, "ridge": BAYES[3:], "svgd": BAYES[2:3], "update_rules": ["update_rules", "reptile"],
    "variational": BAYES, "vectors": ["implicit_maml", *BAYES], "task_metrics": ["metrics"],
    "uncertainty": ["uncertainty"], "predictive": ["uncertainty"], "task_batches": MAPPING, "task_mapping": MAPPING,
}  # fmt: skip
FALLBACK = ["constructors", "uncertainty", "step_logging", "lightning"]

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
    line: int
    function: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from others, whatever else is in the file."""
        return self.file, self.function, self.before, self.after

    @property
    def name(self) -> str:
        """A short form of the key."""
        return hashlib.sha1("\0".join(self.key).encode()).hexdigest()[:8]


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
            operator = "and" if isinstance(node.op, ast.And) else "or"
            values = [f"({text(value)})" for value in node.values]
            yield node, "(" + f" {OPERATORS[type(node.op)]} ".join(values) + ")"
            yield from ((node, "(" + f" {operator} ".join(v for v in values if v != one) + ")") for one in values)
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield node, f"({text(node.operand)})"
        case ast.Constant(value=bool()):
            yield node, str(not node.value)
        case ast.Constant(value=int() | float()):
            yield node, repr(node.value + 1 if isinstance(node.value, int) or node.value == 0 else 2 * node.value)
        case ast.AugAssign() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.Expr() if not isinstance(node.value, ast.Constant):
            yield node, "pass"
        case ast.If(body=[*_, ast.Raise()], orelse=[]):
            yield node, "pass"
        case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)):
            owner = f"{text(node.func.value)}." if isinstance(node.func, ast.Attribute) else ""
            if called in RENAMED:
                yield node.func, owner + RENAMED[called]
            if owner and called in REMOVED:
                yield node, owner.removesuffix(".")
            for one in node.keywords:
                if one.arg != "strict":  # of zip: an assertion
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
        case ast.keyword(arg="strict"):
            return [node.value]
    return [node] if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert) else []


def mutants_of(file: str) -> Iterator[Mutant]:
    """Yield every change of a file in the package."""
    raw, found = (PACKAGE / file).read_bytes(), set()
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
            if before != after and (function, before, after) not in found:
                found.add((function, before, after))
                source = raw[:begin] + text.encode() + raw[end:]
                yield Mutant(file, part.lineno, function, before, after, source.decode())
        for child in ast.iter_child_nodes(node):
            if child not in (*left_alone(node), *left_alone(child)):
                yield from visit(child, function)

    return visit(ast.parse(raw), "")


def notice(file: str, source: str | None, seconds: int) -> bool:
    """Whether the tests of a file fail where it reads so, or take longer than so many seconds."""
    names = dict.fromkeys([*TESTS.get(Path(file).stem, []), *FALLBACK])
    tests = [path for path in (f"tests/test_{name}.py" for name in names) if (ROOT / path).exists()]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "lightning_meta")
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if source is not None:
            (copy / file).write_text(source)
        process = os.fork()
        if process == 0:
            os._exit(run(folder, tests, seconds))
        return os.waitpid(process, 0)[1] != 0


def run(folder: str, tests: list[str], seconds: int) -> int:
    """Run tests with the package in a folder; for a process of its own, which ends after so many seconds."""
    signal.alarm(seconds)
    with open(Path(folder, "output"), "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["PYTHONPATH"] = folder  # for processes that tests start
    sys.path.insert(0, folder)
    try:
        import lightning_meta
        import pytest

        assert Path(lightning_meta.__file__).is_relative_to(folder)
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/pytest", *tests]))
    except BaseException:
        return 1


def equivalent() -> set[tuple[str, ...]]:
    """The keys of those that are listed: file and function, what stands there, what would; a reason follows."""
    blocks = [block.splitlines() for block in EQUIVALENT.read_text().split("\n\n") if not block.startswith("#")]
    return {(*(where + " ").split(" ")[:2], old.removeprefix("- "), new.removeprefix("+ ")) for where, old, new, _ in blocks}


def main() -> None:
    """Run a sample, print the survivors, and the numbers by file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=300, help="how many changes to try")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--seconds", type=int, default=240, help="how long the tests of a change may take")
    parser.add_argument("--files", nargs="+", default=FILES, help="patterns of files in the package")
    parser.add_argument("--only", nargs="+", help="beginnings of names of changes, as printed")
    options = parser.parse_args()
    files = [path for pattern in options.files for path in sorted(PACKAGE.glob(pattern))]
    mutants = [mutant for path in files for mutant in mutants_of(str(path.relative_to(PACKAGE)))]
    sample = random.Random(options.seed).sample(mutants, min(options.limit, len(mutants)))
    if options.only:
        sample = [mutant for mutant in mutants if mutant.name.startswith(tuple(options.only))]

    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    import lightning.pytorch.cli
    import torch._dynamo
    import torchmetrics.functional.classification
    import wandb  # noqa: F401

    torch.set_num_threads(1)
    for file in sorted({mutant.file for mutant in sample}):
        if notice(file, None, options.seconds):
            sys.exit(f"the tests of {file} fail, or take more than {options.seconds} seconds, as it is")
    listed, numbers = equivalent(), Counter[tuple[str, str]]()
    for mutant in sorted(sample):
        if mutant.key in listed:
            outcome = "equivalent"
        else:
            outcome = "killed" if notice(mutant.file, mutant.source, options.seconds) else "survived"
        numbers[mutant.file, outcome] += 1
        if outcome == "survived":
            print(f"{mutant.name} line {mutant.line}\n{mutant.file} {mutant.function}", flush=True)
            print(f"- {mutant.before}\n+ {mutant.after}\n", flush=True)
    outcomes = ("killed", "survived", "equivalent")
    for file in sorted({mutant.file for mutant in sample}):
        print(f"{file:32}" + "".join(f"{numbers[file, outcome]:5} {outcome}" for outcome in outcomes))
    killed, survived, same = (sum(n for (_, kind), n in numbers.items() if kind == outcome) for outcome in outcomes)
    print(f"{len(sample)} changes: {killed} killed, {survived} survived, {same} equivalent")


if __name__ == "__main__":
    main()
