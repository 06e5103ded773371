"""The package order, read from the code: imports go one way, and torch-free packages load no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "towpath"
ORDER = [
    {"errors", "terminal"},
    {"records", "metrics", "progress", "interrupt", "network", "hashing", "reasoning"},
    {"recipe"},
    {"store"},
    {"data"},
    {"models"},
    {"algos", "rewards", "feedback", "evals", "health"},
    {"planning"},
    {"runtime"},
    {"rollout"},
    {"arena"},
    {"judges"},
    {"stages"},
    {"run"},
    {"sweep"},
    {"view"},
    {"web"},
    {"cli"},
    {"__main__"},
]
"""A package imports only from earlier rows, not from its own row; imports inside functions count."""
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
TORCH_FREE = {
    "errors", "terminal", "records", "metrics", "progress", "interrupt", "network", "hashing", "reasoning",
    "recipe", "store", "data", "feedback", "evals", "health", "planning", "judges", "arena", "run", "sweep", "view",
    "web", "cli",
}  # fmt: skip
NEEDS_TORCH = {"towpath.run.training", "towpath.sweep.search", "towpath.sweep.trial", "towpath.view.callback"}
"""Modules of torch-free packages that are loaded only for training in the same process."""
HEAVY = {"torch", "transformers", "peft"}
ONLY_IN = {
    "sqlalchemy": {"towpath.store"},
    "alembic": {"towpath.store"},
    "sqlite3": {"towpath.store"},
    "ray": {"towpath.runtime"},
    "torch.distributed": {"towpath.runtime", "towpath.rollout.vllm_process.network"},
    "vllm": {"towpath.rollout.vllm_process"},
}

Import = tuple[str, int]


def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Path and syntax tree of every module by dotted name."""
    return {_dotted(path): (path, ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST, in_functions: bool = True) -> Iterator[Import]:
    """(imported name, line) of every import; without `in_functions` only those that run when the module is loaded."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, in_functions)


def graph(in_functions: bool) -> dict[str, set[str]]:
    """The modules of the package that each module imports."""
    known = modules()

    def named(target: str) -> str:
        return target if target in known else target.rpartition(".")[0]

    return {
        name: ({named(t) for t, _ in imports(tree, in_functions)} & set(known)) - {name, "towpath"}
        for name, (_, tree) in known.items()
    }


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "towpath" and len(parts) > 1 else ""


def within(target: str, package: str) -> bool:
    return f"{target}.".startswith(f"{package}.")


def test_every_package_has_a_place_in_the_order():
    rooms = {room(name) for name in modules()} - {""}
    assert rooms <= set(RANK), f"give these a place in ORDER: {rooms - set(RANK)}"


def test_imports_go_one_way():
    wrong = []
    for name, (path, tree) in modules().items():
        here = room(name)
        for target, line in imports(tree):
            there = room(target)
            if here and there in RANK and there != here and RANK[there] >= RANK[here]:
                wrong.append(f"{path.relative_to(ROOT.parent)}:{line} {here} imports {there}")
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_cycle():
    edges = graph(in_functions=True)
    done = set()
    path = []

    def walk(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(edges[name]):
            walk(target)
        path.pop()
        done.add(name)

    for name in edges:
        walk(name)


def test_torch_free_packages_load_no_torch():
    """Transitive imports count: a torch-free module does not load a module that loads torch."""
    edges = graph(in_functions=False)
    known = modules()
    wrong = []
    heavy = {
        name: [(t, line) for t, line in imports(tree, in_functions=False) if t.split(".")[0] in HEAVY]
        for name, (_, tree) in known.items()
    }
    for start in (name for name in known if room(name) in TORCH_FREE and name not in NEEDS_TORCH):
        visited = {start}
        todo = [start]
        while todo:
            name = todo.pop()
            wrong += [f"{start} loads {known[name][0].relative_to(ROOT.parent)}:{line} {t}" for t, line in heavy[name]]
            more = edges[name] - visited
            visited |= more
            todo += more
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_libraries_are_imported_in_their_packages_only():
    wrong = []
    for name, (path, tree) in modules().items():
        for target, line in imports(tree):
            for library, places in ONLY_IN.items():
                if within(target, library) and not any(within(name, package) for package in places):
                    wrong.append(f"{path.relative_to(ROOT.parent)}:{line} {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "loaded", "all_"),
    [
        ("import a\ndef f():\n    import b", ["a"], ["a", "b"]),
        ("try:\n    import a\nexcept ImportError:\n    import b", ["a", "b"], ["a", "b"]),
        ("class C:\n    from a import b\n    def f(self):\n        from c import d", ["a.b"], ["a.b", "c.d"]),
    ],
)
def test_import_scanner(code, loaded, all_):
    assert [t for t, _ in imports(ast.parse(code), in_functions=False)] == loaded
    assert [t for t, _ in imports(ast.parse(code))] == all_


def test_help_loads_few_modules():
    """The start time of `towpath --help` is that of typer and rich: no other dependency is loaded."""
    script = """
import sys
sys.argv = ["towpath", "--help"]
from towpath.cli.app import main
try:
    main()
finally:
    print("\\n".join(sorted(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules = done.stderr.split()
    slow = {"numpy", "scipy", "pyarrow", "pydantic", "sqlalchemy", "alembic", "fastapi", "uvicorn", "httpx", "jinja2"}
    assert not (HEAVY | slow) & set(modules)
    assert "towpath.cli.app" in modules
    assert sum(name.startswith("towpath") for name in modules) < 20
