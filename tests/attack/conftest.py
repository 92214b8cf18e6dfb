"""Attacks: inputs damaged on purpose. `python -m pytest -m slow tests/attack` prints a table of them.

An attack takes the fixture `tally` and counts each attempt: `tally("files: no price").count(unharmed)`."""
from dataclasses import dataclass

import pytest


@dataclass
class Tally:
    "A row of the table."
    tried: int = 0
    wrong: int = 0

    def count(self, unharmed: bool) -> None:
        self.tried += 1
        self.wrong += not unharmed


TALLIES: dict[str, Tally] = {}


@pytest.fixture(scope="session")
def tally():
    "`tally(name)`: the row of an attack in the table at the end of the run."
    return lambda name: TALLIES.setdefault(name, Tally())


def pytest_terminal_summary(terminalreporter, config):
    "Print the table after a run of the slow tests."
    if not TALLIES or "not slow" in config.option.markexpr: return
    terminalreporter.section("attacks")
    line = "{:<60}{:>8}{:>10}{:>7}".format
    terminalreporter.write_line(line("", "tried", "survived", "wrong"))
    total = Tally(sum(t.tried for t in TALLIES.values()), sum(t.wrong for t in TALLIES.values()))
    for name, t in [*sorted(TALLIES.items()), ("all", total)]:
        terminalreporter.write_line(line(name[:60], t.tried, t.tried - t.wrong, t.wrong))
