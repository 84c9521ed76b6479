"""What is shipped, who may import whom, and what is imported when."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
PACKAGES = ("fl_audit", "attacks", "strategies", "simulations")  # each may import those before it
MODULES = sorted(path for package in PACKAGES for path in (HOME / package).rglob("*.py"))
ENGINE = HOME / "simulations" / "engines" / "local.py"  # the one file that touches Flower's insides
FLOWER_PRIVATE = ("flwr.common", "flwr.supercore")


def name_of(path: Path) -> str:
    return path.relative_to(HOME).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


# -- what is shipped -----------------------------------------------------------------------------


def setuptools_table() -> dict[str, object]:
    with (HOME / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)["tool"]["setuptools"]
    assert isinstance(table, dict)
    return table


def test_the_list_of_packages_equals_the_tree() -> None:
    """A package that is not in the list is missing from the wheel, and from nowhere else."""
    found = {
        ".".join(path.parent.relative_to(HOME).parts)
        for path in MODULES
        if path.name == "__init__.py"
    }
    assert setuptools_table()["packages"] == sorted(
        found, key=lambda name: (PACKAGES.index(name.partition(".")[0]), name)
    )


def test_every_module_is_in_a_package() -> None:
    strays = [name_of(p) for p in MODULES if not (p.parent / "__init__.py").exists()]
    assert strays == []


def test_every_data_file_is_shipped() -> None:
    """Templates and scenarios are found in a checkout whether or not they are in the wheel."""
    declared = setuptools_table()["package-data"]
    assert isinstance(declared, dict)
    shipped = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in declared.items()
        for pattern in patterns
    ]
    found = [
        name_of(path)
        for package in PACKAGES
        for path in (HOME / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert len(found) > 4
    assert [n for n in found if not any(fnmatch.fnmatch(n, p) for p in shipped)] == []


# -- who imports whom ----------------------------------------------------------------------------


def imports(node: ast.AST, *, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names that a module imports when it runs, and whether a function does it."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, in_function) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from ((f"{node.module}.{alias.name}", in_function) for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for otherwise in node.orelse:
            yield from imports(otherwise, in_function=in_function)
    else:
        inside = in_function or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in ast.iter_child_nodes(node):
            yield from imports(child, in_function=inside)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """simulations -> strategies -> attacks -> fl_audit. Commands reach up when they are called."""
    level = PACKAGES.index(path.relative_to(HOME).parts[0])
    is_command = path.parent == HOME / "fl_audit" / "cli"
    above = PACKAGES[level + 1 :]
    upward = [
        name
        for name, in_function in imports(tree_of(path))
        if name.partition(".")[0] in above and not (is_command and in_function)
    ]
    assert upward == []


@pytest.mark.parametrize("path", [p for p in MODULES if p != ENGINE], ids=name_of)
def test_flowers_insides_are_touched_in_one_file(path: Path) -> None:
    """They change without notice: one file to mend, and no more."""
    tree = tree_of(path)
    flower = {name for name, _ in imports(tree) if name.partition(".")[0] == "flwr"}
    private = [
        name
        for name in flower
        if f"{name}.".startswith(tuple(f"{module}." for module in FLOWER_PRIVATE))
        or any(part.startswith("_") for part in name.split("."))
    ]
    bound = _names_bound_to_flower(tree)
    private += [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node).partition(".")[0] in bound
    ]
    assert private == []


def _names_bound_to_flower(tree: ast.Module) -> set[str]:
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flwr":
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            bound |= {
                alias.asname or "flwr"
                for alias in node.names
                if alias.name.partition(".")[0] == "flwr"
            }
    return bound


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import attacks.audit", [("attacks.audit", False)]),
        ("from attacks import audit", [("attacks.audit", False)]),
        ("def f():\n import attacks", [("attacks", True)]),
        ("class A:\n import attacks", [("attacks", False)]),
        ("try:\n import attacks\nexcept ImportError: pass", [("attacks", False)]),
        ("if TYPE_CHECKING:\n import attacks\nelse:\n import a", [("a", False)]),
        ("if True:\n import attacks", [("attacks", False)]),
    ],
)
def test_the_walk_sees_every_import(source: str, found: list[tuple[str, bool]]) -> None:
    assert list(imports(ast.parse(source))) == found


# -- what is imported when -------------------------------------------------------------------------

HELP = (
    "sys.argv = ['fl-audit', '--help']\n"
    "from fl_audit.cli.main import main\n"
    "try:\n    main()\nexcept SystemExit as left:\n    assert left.code == 0, left.code\n"
)


@pytest.mark.parametrize("code", ["import fl_audit\n", HELP], ids=["import", "--help"])
def test_neither_torch_nor_flower_is_imported_unasked(code: str) -> None:
    """They take seconds."""
    program = f"import sys\n{code}print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "fl_audit" in loaded
    assert not loaded & {"torch", "flwr", "ray", "matplotlib", "sklearn", "attacks", "simulations"}
    assert code != HELP or "Usage: fl-audit" in done.stdout
