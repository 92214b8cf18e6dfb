"""Imports follow the order of the packages and form no circle, and importing the package alone loads no
TensorFlow."""
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cryptolstm"
PICTURE = re.search(r"```text\n(core < .*)\n```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))[1]
LEVEL = {name: level for level, names in enumerate(PICTURE.split(" < ")) for name in names.split(", ")}


def modules(folder):
    """Dotted name of every module of a package → its file, without `__init__` and nbdev's index, which define
    nothing."""
    files = (p for p in folder.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
    return {".".join(("cryptolstm", *p.relative_to(folder).with_suffix("").parts)): p for p in files}


def arrows(folder):
    "Module → modules of the package that it imports, anywhere in its code."
    known, found = modules(folder), {}
    for name, path in known.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import): targets.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = (
                    ".".join(filter(None, [*name.split(".")[:-node.level], node.module]))
                    if node.level else node.module
                )
                targets.update((base, *(f"{base}.{alias.name}" for alias in node.names)))
        found[name] = sorted(targets & set(known) - {name})
    return found


def upward(found):
    "The imports that do not point to a lower level or to the same package."
    def package(module):
        return module.split(".")[1]
    return [
        f"{a} imports {b}"
        for a, targets in found.items()
        for b in targets
        if package(a) != package(b) and LEVEL[package(b)] >= LEVEL[package(a)]
    ]


def circle(found):
    "A circle of imports as the list of its modules; empty if there is none."
    done, path = set(), []

    def visit(module):
        if module in path: return path[path.index(module):]
        if module in done: return []
        path.append(module)
        for target in found[module]:
            if ring := visit(target): return ring
        done.add(path.pop())
        return []
    return next((ring for module in found if (ring := visit(module))), [])


def planted(folder, module, line):
    "The imports of a copy of the package in which one module has an additional line."
    shutil.copytree(PACKAGE, folder / "cryptolstm", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "cryptolstm" / module).open("a", encoding="utf-8") as file: file.write(line)
    return arrows(folder / "cryptolstm")


def test_every_package_has_its_place_in_the_order():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(LEVEL)
    assert all(name.count(".") == 2 for name in modules(PACKAGE))   # no module outside the sub-packages


def test_imports_point_down():
    found = arrows(PACKAGE)
    assert sum(map(len, found.values())) > 200 and upward(found) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(arrows(PACKAGE)) == []


@pytest.mark.parametrize("line", ["from cryptolstm.report.render import Report\n",
                                  "\ndef late():\n    from ..report import render\n    return render\n",
                                  "import cryptolstm.report.render\n"])
def test_an_import_that_points_up_is_found(tmp_path, line):
    assert upward(planted(tmp_path, "core/text.py", line)) == [
        "cryptolstm.core.text imports cryptolstm.report.render"
    ]


def test_an_import_of_a_package_beside_it_is_found(tmp_path):
    assert upward(planted(tmp_path, "stats/learners.py", "from ..data.demo import demo_market\n")) == [
        "cryptolstm.stats.learners imports cryptolstm.data.demo"
    ]


def test_a_circle_is_found_also_inside_a_function(tmp_path):
    found = planted(
        tmp_path,
        "data/store.py",
        "\ndef late():\n    from cryptolstm.data.client import market_bars\n    return market_bars\n",
    )
    assert {"cryptolstm.data.store", "cryptolstm.data.client"} <= set(circle(found)) and upward(found) == []


HELP = (
    "from cryptolstm.cli.main import main\nsys.argv = ['cryptolstm', '--help']\ntry: main()\nexcept"
    " SystemExit: pass"
)


@pytest.mark.parametrize("code", ["import cryptolstm", "from cryptolstm.cli.main import app", HELP])
def test_neither_the_package_nor_help_loads_tensorflow(code):
    code = f"import sys; {code}\nassert not {{'tensorflow', 'keras'}} & set(sys.modules), sorted(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
