"""The layout of crossrec, held by walking its imports: who may import whom."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "crossrec").rglob("*.py"))
ALL_CODE = [*MODULES, *sorted((ROOT / "jobs").rglob("*.py"))]

STORAGE = {"storage", "storage_errors", "claims", "disk", "s3"}
"""Where files are read and written: the first is what others use, the others are behind it."""

CONFIG = {
    "config",
    "config_nightly",
    "config_notify",
    "config_score",
    "config_training",
    "config_tune",
    "configfile",
}
GROUND_FLOOR = {"schema", "errors", "runlog"} | CONFIG | STORAGE
ENCODE = {"encode", "encode_images", "vectorcache", "nodes"}
EVERY_STAGE = {
    "increment",
    "data",
    "model",
    "encode",
    "train",
    "score",
    "evaluate",
    "gate",
    "scored",
    "study",
    "publish",
}

MAY_IMPORT = {
    **{module: set[str]() for module in GROUND_FLOOR},
    "data": {"increment"},
    "model": {"data"},
    "nodes": set[str](),
    "heap": set[str](),
    "vectorcache": {"nodes"},
    "encode_images": {"data", "model", "vectorcache"},
    "encode": {"data", "model", "encode_images", "vectorcache"},
    "train": {"data", "model", "current", "published"} | ENCODE,
    "score": {"data", "model", "current", "increment", "heap"} | ENCODE,
    "evaluate": {"data", "model", "score", "published"} | ENCODE,
    "scored": {"data", "score", "evaluate"},
    "study": {"data", "train", "score", "evaluate"},
    "current": set[str](),
    "published": {"current"},
    "purge": {"current", "data", "evaluate", "lease"},
    "gate": {"data", "evaluate", "published"},
    "increment": {"current"},
    "lease": set[str](),
    "readers": {"data", "current"},
    "retention": {"current", "data", "increment", "lease", "runsummary"},
    "verify_lists": {"data"},
    "verify_records": set[str](),
    "verify_because": {"data", "verify_lists"},
    "verify_pins": {"verify_lists"},
    "verify": {"data", "verify_because", "verify_lists", "verify_pins", "verify_records"},
    "publish": {"current", "lease", "retention", "verify", "verify_records"},
    "tune": {"data", "model", "train"} | ENCODE,
    "notify": set[str](),
    "runmetrics": set[str](),
    "runsummary": {"current", "lease"},
    "status": {"current", "lease", "runsummary"},
    "job": {"data", "lease", "notify", "runmetrics", "runsummary"},
    "nightly": EVERY_STAGE,
    "bench": {"data", "job", "model", "train", "score", "evaluate", "publish"},
}
"""What each part may import beside itself and the ground floor: data flows one way."""

FILE_SYSTEMS = {"fsspec", "s3fs", "boto3", "botocore", "pyarrow.fs"}
MAX_LINES = 300


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(path: Path) -> str:
    """Return the part that a module belongs to: its folder in crossrec, or its own name there."""
    folders = path.relative_to(ROOT).parts
    return folders[1].removesuffix(".py") if folders[0] == "crossrec" else folders[0]


@cache
def imported(path: Path) -> frozenset[str]:
    """Return the dotted names that a module imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import; write it in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def imported_parts(path: Path) -> set[str]:
    dotted = (imported_name.split(".") for imported_name in imported(path))
    return {words[1] for words in dotted if words[0] == "crossrec" and len(words) > 1}


def uses(path: Path, library: str) -> bool:
    return any(f"{imported_name}.".startswith(f"{library}.") for imported_name in imported(path))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def reached(path: Path) -> set[Path]:
    """Return the module and all modules of crossrec that importing it loads."""
    found, to_read = set[Path](), [path]
    while to_read:
        module = to_read.pop()
        if module in found:
            continue
        found.add(module)
        names = imported(module) | {
            imported_name.rpartition(".")[0] for imported_name in imported(module)
        }
        to_read += [other for other in MODULES if dotted(other) in names]
    return found


def test_layout_knows_every_part() -> None:
    parts = {part(path) for path in MODULES} - {"__init__"}
    assert parts <= set(MAY_IMPORT), "a new part: say in MAY_IMPORT what it may import"


@pytest.mark.parametrize("path", [p for p in MODULES if part(p) != "__init__"], ids=name)
def test_module_imports_only_what_comes_before_it(path: Path) -> None:
    allowed = GROUND_FLOOR | {part(path), "__version__"} | MAY_IMPORT.get(part(path), set())
    assert imported_parts(path) <= allowed


@pytest.mark.parametrize("path", [p for p in MODULES if part(p) == "model"], ids=name)
def test_model_knows_no_ray_by_any_road(path: Path) -> None:
    assert not [name(module) for module in reached(path) if uses(module, "ray")]


def test_topk_is_pure_torch() -> None:
    libraries = {dotted.split(".")[0] for dotted in imported(ROOT / "crossrec/score/topk.py")}
    assert libraries - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("path", [p for p in ALL_CODE if part(p) not in STORAGE], ids=name)
def test_files_are_reached_through_storage_alone(path: Path) -> None:
    assert not [library for library in FILE_SYSTEMS if uses(path, library)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("pa", "fs"), ("pyarrow", "fs")}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open"


@pytest.mark.parametrize("path", ALL_CODE, ids=name)
def test_module_is_short_and_named_for_what_it_holds(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "common", "base", "helpers", "misc"}


def test_jobs_are_imported_by_nobody() -> None:
    assert not [name(path) for path in MODULES if uses(path, "jobs")]
