"""The house's order, read from the code: imports go one way, and what must stay light stays light."""

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent / "towpath"
ORDER = [
    {"errors", "records", "config", "progress"},
    {"recipe"},
    {"store"},
    {"data"},
    {"models", "rewards", "algos", "feedback", "evals", "health"},
    {"rollout"},
    {"runtime"},
    {"stages"},
    {"gates", "pipeline", "preflight", "report", "reporting", "starting", "export"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
TORCH_FREE = {"cli", "pipeline", "preflight", "gates", "report", "reporting", "starting", "store", "records", "config", "recipe"} | {
    "errors", "progress", "feedback", "evals", "health", "data",
}  # fmt: skip
OWN_RANK_ALLOWED = {"pipeline", "report", "preflight", "export", "cli", "records", "config", "progress", "errors", "__main__"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        yield name, path, ast.parse(path.read_text())


def imports(tree, top_only=False):
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_room_has_its_place():
    rooms = {room(name) for name, _, _ in modules()} - {""}
    assert rooms <= set(RANK), rooms - set(RANK)


def test_imports_go_one_way():
    wrong = []
    for name, path, tree in modules():
        here = room(name)
        for target, line in imports(tree):
            there = room(target) if target.startswith("towpath.") else ""
            if not there or there not in RANK or there == here or not here:
                continue
            if RANK[there] > RANK[here] or (RANK[there] == RANK[here] and here not in OWN_RANK_ALLOWED):
                wrong.append(f"{path.relative_to(ROOT)}:{line} {here} imports {there}")
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_cycle():
    known = {name for name, _, _ in modules()}
    graph = {}
    for name, _, tree in modules():
        targets = {t if t in known else t.rpartition(".")[0] for t, _ in imports(tree, top_only=True) if t.startswith("towpath")}
        graph[name] = (targets & known) - {name, "towpath"}
    done, path = set(), []

    def walk(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in graph[name]:
            walk(target)
        path.pop()
        done.add(name)

    for name in graph:
        walk(name)


def test_heavy_things_stay_where_they_belong():
    wrong = []
    for name, path, tree in modules():
        where = f"{path.relative_to(ROOT)}"
        for target, line in imports(tree):
            top = target.split(".")[0]
            if top in ("sqlalchemy", "alembic") and room(name) != "store":
                wrong.append(f"{where}:{line} {target}")
            if (top == "ray" or target.startswith("torch.distributed")) and room(name) != "runtime":
                wrong.append(f"{where}:{line} {target}")
            if top == "vllm" and name != "towpath.rollout.vllm":
                wrong.append(f"{where}:{line} {target}")
        if room(name) in TORCH_FREE:
            wrong += [f"{where}:{line} {t}" for t, line in imports(tree, top_only=True) if t.split(".")[0] in ("torch", "transformers", "peft")]
    assert not wrong, "\n".join(wrong)


def test_help_is_quick_and_loads_no_torch():
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "towpath", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begun)
    assert statistics.median(seconds) < 0.5
    script = "import sys, towpath.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
