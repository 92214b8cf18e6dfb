"""Sources and labels of the traps that monte-neo publishes, as JSON.

Runs under the interpreter that CRYPTOLSTM_TRAPS_PYTHON names and imports nothing of ours. The strategies are
in the source distribution of monte-neo, unpacked in the folder of that environment (see CONTRIBUTING)."""
import ast
import json
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("monte-neo", "nullius", "alphaverdict")
TESTS = Path(sys.prefix, f"monte_neo-{version('monte-neo')}", "tests")


def suite():
    "The trap suite: one file per strategy; labels from the constants of its test."
    tree = ast.parse((TESTS / "traps" / "test_trap_suite.py").read_text(encoding="utf-8"))
    lists = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id in ("TRAPS", "HONEST")
    }
    markets = {name: market for name, market, *_ in lists["TRAPS"]}
    for path in sorted((TESTS / "traps" / "strategies").glob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.stem
        honest = name in lists["HONEST"] or name not in markets   # the two of a grid search
        what = ast.get_docstring(ast.parse(source)).partition("\n")[0]
        market = markets.get(name, "random_walk")
        yield "trap suite", name, honest, what.removeprefix("TRAP: ").removeprefix("HONEST: "), market, source


def zoo():
    "The hypothesis zoo: expressions over the bars, and signals that repaint."
    sys.path.insert(0, str(TESTS / "zoo"))
    from mechanisms import HONEST, LEAKS
    from repaint_cases import CASES
    from zoo_lib import build
    for honest, rows in ((False, LEAKS), (True, HONEST)):
        for name, group, expression, rule, *setup in rows:
            source = build(expression, rule, "direct", *map(tuple, setup))
            yield "zoo", name, honest, group, "hours", source
    for name, source, repaints, _ in CASES: yield "zoo", name, not repaints, "repaint", "hours", source


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "versions": {name: version(name) for name in PACKAGES},
                "folder": sysconfig.get_paths()["purelib"],
                "traps": [*suite(), *zoo()],
            }
        )
    )
