"""docs/published_traps.md shows what the leak checks find in the traps of other packages today."""
import re
from collections import Counter

import published_traps as traps
import pytest

installed = pytest.mark.skipif(
    not traps.PYTHON,
    reason="CRYPTOLSTM_TRAPS_PYTHON names no interpreter; CONTRIBUTING shows how to install the traps",
)


@pytest.mark.slow
@installed
def test_the_page_is_what_the_checks_find():
    assert traps.page() == traps.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@installed
def test_one_leak_is_missed_and_no_honest_control_is_accused():
    found = Counter(result for _, result, _ in traps.results())
    assert [t.name for t, result, _ in traps.results() if result == "missed"] == ["kmeans_regime_full"]
    assert found["false alarm"] == 0 and found["caught"] > 180 and found["passed"] + found["start only"] > 120


def test_the_totals_of_the_page_are_those_of_its_rows():
    "Without the packages, too."
    text = traps.PAGE.read_text(encoding="utf-8")
    rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in text.splitlines() if line.startswith("| ")]
    results = Counter((row[0], row[1], row[4], row[5]) for row in rows if len(row) == 7)
    names = next(row for row in rows if row[0] == "package")[3:]
    totals = [row for row in rows if len(row) == 8 and row[2] in ("leak", "honest")]
    assert len(totals) == 8
    for package, group, truth, *numbers in totals:
        for name, number in zip(names, numbers, strict=True):
            assert int(number.strip() or 0) == results[package, group, truth, name], (group, truth, name)
    leaks, controls = (
        sum((Counter({k[3]: n}) for k, n in results.items() if k[2] == truth), Counter())
        for truth in ("leak", "honest")
    )
    assert (
        f"**{leaks['caught']} of {leaks.total()} leaks are caught and {leaks['missed']} is missed;"
        f" {controls['false alarm']} of {controls.total()} controls are accused"
    ) in " ".join(text.split())
