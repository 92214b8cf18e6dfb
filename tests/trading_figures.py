"""The figures of the acceptance tests of trading: kills, faults by kind, orders doubled or lost, ledger minus
venue, parity and memory. The tests write them with `record`; as a program it runs all tests of trading, the
slow ones too, and prints the table: `python tests/trading_figures.py [-k WORDS]`."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COLUMNS = (
    "run", "hours", "tickers", "kills", "faults", "orders", "doubled", "lost", "ledger - venue", "parity",
    "memory",
)


def record(run, **figures):
    "Print the figures of a run, and append them to the file that `CRYPTOLSTM_TRADING_FIGURES` names."
    print(run, figures)
    if path := os.environ.get("CRYPTOLSTM_TRADING_FIGURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"run": run, **figures}, default=str) + "\n")


def table(rows):
    "Rows as text, and below it the faults by kind."
    shown = [{**row, "faults": sum(row.get("faults", {}).values()) or ""} for row in rows]
    cells = [COLUMNS, *([str(row.get(name, "")) for name in COLUMNS] for row in shown)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(COLUMNS))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    kinds = sorted({kind for row in rows for kind in row.get("faults", {})})
    for kind in kinds: text.append(f"  {kind}: {sum(row.get('faults', {}).get(kind, 0) for row in rows)}")
    return "\n".join(text)


def main(arguments):
    tests = sorted(str(path) for path in Path(__file__).parent.glob("test_trading_*.py"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not live", *tests, *arguments]
        done = subprocess.run(command, env={**os.environ, "CRYPTOLSTM_TRADING_FIGURES": str(path)})
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    print(table([json.loads(line) for line in lines]))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
