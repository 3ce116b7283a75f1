"""Content hashes of code: what a function uses of the packages that are hashed, comments left out.

A value that was measured and kept counts as long as the code that made it is the same. Nothing is imported
or run to find that out: files are parsed, and names are followed from definition to definition. Standard
library only.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
WHOLE = ""
"""In place of a name: everything that a module defines."""
LOOSE = "<loose>"
"""In place of a name: what a module runs when it is imported."""
SCANNING = "pkgutil"
"""What names this looks for modules at run time, so that all of its package counts."""
KEEPING = tuple(
    f"{PACKAGE}.{name}"
    for name in ("claims", "files", "records", "source", "statistics", "watching")
)
"""Modules that write results down and never make one: what they do does not count."""

Place = tuple[str, str]
"""A module and a name in it."""


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module. definitions: top-level name → its statements; loose: statements that run on import
    and define nothing, or whose decorators belong to a hashed package, which count with every name;
    imports: name → where it was taken from."""

    name: str
    package: bool
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, Place] = field(default_factory=dict)


def code_hash(function: Callable[..., Any] | str) -> str | None:
    """SHA-256 of a function and of everything that it uses of its own package and of this one.

    function: a function, a method, a ``functools.partial``, or ``module:name``. What is defined inside
    another function or a class counts as the whole of that function or class. Comments, docstrings and
    layout do not count. None for what has no source file, a function that was typed in a console for one,
    and where a file was written since this process began: what runs may not be what the file says.
    """
    if isinstance(function, str):
        module, _, name = function.partition(":")
    else:
        while isinstance(function, partial):
            function = function.func
        module = getattr(function, "__module__", None) or ""
        name = getattr(function, "__qualname__", "")
    start = (module, name.partition(".")[0])
    found = parsed(start[0])
    return None if found is None or start[1] not in found.definitions else _hash_of(start)


def modules_of(function: str) -> frozenset[str]:
    """Names of the modules that the hash of ``module:name`` covers."""
    module, _, name = function.partition(":")
    return frozenset(place[0] for place in _reached((module, name)))


def forget() -> None:
    """Read every file again: of use where modules are loaded again while a process runs."""
    for cached in (_hash_of, _text, _used_by, parsed, _file, _began):
        cached.cache_clear()
    _began()


@cache
def _began() -> float:
    """When modules were read first, in seconds since the epoch."""
    return time.time()


@cache
def _hash_of(start: Place) -> str | None:
    digest = hashlib.sha256()
    reached = sorted(_reached(start))
    files = {path for module, _ in reached if (path := _file(module)) is not None}
    if max(path.stat().st_mtime for path in files) > _began():
        return None
    for place in reached:
        digest.update(f"{place}:{_text(place)}\n".encode())
    return digest.hexdigest()


@cache
def _text(place: Place) -> str:
    """The statements behind a name as text, without what does not count."""
    module = parsed(place[0])
    return "" if module is None else "\n".join(map(_dump, _statements(module, place[1])))


def _reached(start: Place) -> set[Place]:
    """Every definition that a definition uses, itself included, and the loose statements of their modules."""
    hashed = frozenset({PACKAGE, start[0].partition(".")[0]})
    seen: set[Place] = set()
    left = [start]
    while left:
        if (place := left.pop()) not in seen:
            seen.add(place)
            left += _used_by(place, hashed)
    return seen


@cache
def _used_by(place: Place, hashed: frozenset[str]) -> frozenset[Place]:
    """What the statements behind one name use."""
    module = parsed(place[0])
    if module is None:
        return frozenset()
    uses = (_uses(module, statement, hashed) for statement in _statements(module, place[1]))
    return frozenset(use for each in uses for use in each) | {(module.name, LOOSE)}


def _statements(module: Module, name: str) -> list[ast.stmt]:
    if name == LOOSE:
        return module.loose
    if name == WHOLE:
        return [statement for each in module.definitions.values() for statement in each]
    return module.definitions.get(name, [])


def _uses(module: Module, statement: ast.stmt, hashed: frozenset[str]) -> Iterator[Place]:
    """Where the names in a statement lead, as far as the hashed packages go."""
    nodes = list(ast.walk(statement))
    local = dict(module.imports)
    for node in nodes:
        local |= dict(_imported(node, module))
    of_modules: set[ast.AST] = set()  # names that are there for one attribute alone
    for node in nodes:
        if isinstance(node, ast.Attribute) and (words := _dotted(node)):
            root, *rest = words
            if (source := _module_of(local.get(root.id))) and source != SCANNING:
                of_modules.add(root)
                while rest[1:] and parsed(f"{source}.{rest[0]}") is not None:
                    source = f"{source}.{rest.pop(0)}"
                yield from _found((source, rest[0]), hashed)
    for node in nodes:
        if isinstance(node, ast.Name) and node not in of_modules:
            yield from _led(node.id, module, local, hashed)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # ``package.module:name``, imported by that text
            source, _, name = node.value.partition(":")
            if source.partition(".")[0] in hashed and "." in source and parsed(source) is not None:
                yield from _found((source, name), hashed)


def _module_of(place: Place | None) -> str:
    """The module that a name stands for, empty where it stands for something else."""
    if place is None:
        return ""
    if place[1] == WHOLE:
        return place[0]
    name = f"{place[0]}.{place[1]}"
    return name if parsed(name) is not None else ""


def _led(
    name: str, module: Module, local: dict[str, Place], hashed: frozenset[str]
) -> Iterator[Place]:
    if name == SCANNING:
        yield from ((sibling, WHOLE) for sibling in _siblings(module))
    if name in module.definitions:
        yield module.name, name
    elif place := local.get(name):
        yield from _found(place, hashed)


def _dotted(node: ast.Attribute) -> tuple[Any, ...]:
    """``a.b.c`` as the name ``a`` and the words after it; empty for an attribute of anything else."""
    words = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        words.append(value.attr)
        value = value.value
    return (value, *reversed(words)) if isinstance(value, ast.Name) else ()


def _found(place: Place, hashed: frozenset[str]) -> Iterator[Place]:
    """Where something is defined, through packages that only pass it on."""
    module, name = place
    if module.partition(".")[0] not in hashed or module.startswith(KEEPING):
        return
    if name and parsed(f"{module}.{name}") is not None:
        yield from _found((f"{module}.{name}", WHOLE), hashed)
        return
    found = parsed(module)
    if found is None:
        return
    if not name or name in found.definitions:
        yield module, name
    elif name in found.imports and found.imports[name] != place:
        yield from _found(found.imports[name], hashed)
    elif "__getattr__" in found.definitions:
        yield module, WHOLE


def _imported(node: ast.AST, module: Module) -> Iterator[tuple[str, Place]]:
    """Names that an import statement gives, and where they come from."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            whole = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or whole, (whole, WHOLE)
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            parent = module.name.split(".")
            parent = parent[: len(parent) - node.level + module.package]
            source = ".".join([*parent, *([source] if source else [])])
        for alias in node.names:
            yield alias.asname or alias.name, (source, alias.name)


@cache
def parsed(name: str) -> Module | None:
    """A module's definitions; None where there is no such file."""
    path = _file(name)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    found = Module(name, path.name == "__init__.py")
    for statement in tree.body:
        _sort_in(found, statement)
    return found


def _sort_in(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        module.imports.update(_imported(statement, module))
    elif isinstance(statement, ast.If) and _only_types(statement.test):
        for inner in statement.body:
            _sort_in(module, inner)
    elif names := _defined(statement):
        for name in names:
            module.definitions.setdefault(name, []).append(statement)
        if any(_root(each) in module.imports and _is_ours(module, each) for each in
               getattr(statement, "decorator_list", ())):  # fmt: skip
            module.loose.append(statement)  # registered when the module is imported
    elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
        module.loose.append(statement)


def _only_types(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _defined(statement: ast.stmt) -> list[str]:
    """Names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        nodes = (node for target in statement.targets for node in ast.walk(target))
        return [node.id for node in nodes if isinstance(node, ast.Name)]
    if isinstance(statement, ast.AnnAssign | ast.AugAssign) and isinstance(
        statement.target, ast.Name
    ):
        return [statement.target.id]
    return []


def _root(node: ast.expr) -> str:
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, ast.Attribute):
            node = node.value
        else:
            return ""
    return node.id


def _is_ours(module: Module, decorator: ast.expr) -> bool:
    """Whether a decorator comes from a hashed package: it may register what it decorates."""
    source = module.imports[_root(decorator)][0].partition(".")[0]
    return source in (PACKAGE, module.name.partition(".")[0])


def _siblings(module: Module) -> list[str]:
    """Every module of the package that a module lies in."""
    path = _file(module.name)
    if path is None:
        return []
    package = module.name if module.package else module.name.rpartition(".")[0]
    names = (file.stem for file in sorted(path.parent.glob("*.py")))
    return [f"{package}.{name}" for name in names if name != "__init__"]


@cache
def _file(name: str) -> Path | None:
    """The source file of a module, found without importing it."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if (spec.origin or "").endswith(".py") else None
    if spec.submodule_search_locations is None:
        return None
    for folder in spec.submodule_search_locations:
        stem = Path(folder, *rest)
        for path in (stem.parent / f"{stem.name}.py", stem / "__init__.py"):
            if path.is_file():
                return path
    return None


def _dump(statement: ast.stmt) -> str:
    """A statement's syntax tree as text, without docstrings, positions and strings that stand alone."""
    return ast.dump(_Bare().visit(ast.parse(ast.unparse(statement))))


class _Bare(ast.NodeTransformer):
    """Leaves out strings that stand alone: docstrings, and descriptions of constants."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else node


_began()
