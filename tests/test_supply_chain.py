"""What is installed is named exactly: versions, hashes of files, commits of actions."""
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def plain_name(name: str) -> str: return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def pins(text: str) -> dict[str, str]:
    "Package → version."
    return {plain_name(name): version for name, version in re.findall(r"(?m)^([\w.\[\]-]+)==([^\s;]+)", text)}


def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_of_every_file():
    locked, tested = pins(LOCK), pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {name: version for name, version in locked.items() if tested.get(name, version) != version} == {}
    entries = re.split(r"(?m)^(?=[\w.\[\]-]+==)", LOCK)[1:]
    assert len(entries) == len(locked) > 150
    assert [e.split()[0] for e in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", e)] == []


def test_every_requirement_is_locked():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = " ".join(text for key, text in config["DEFAULT"].items() if key.endswith("requirements"))
    names = {plain_name(re.match(r"[\w.-]+", text)[0]) for text in re.findall(r'"([^"]+)"', wanted)}
    assert {"apprise", "keyring", "prometheus-client"} < names and names <= pins(LOCK).keys()


def test_tests_run_with_all_extras():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    extras = ["dev", *config["DEFAULT"]["extras"].split()]
    assert all(f"{extra}_requirements" in config["DEFAULT"] for extra in extras)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"-e '.[{','.join(extras)}]'" in makefile


def test_actions_are_pinned_by_commit_and_build_tools_by_version():
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        uses = re.findall(r"uses: (.*)", file.read_text(encoding="utf-8"))
        assert uses and [x for x in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", x)] == []
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert build and all(re.fullmatch(r"[\w-]+==[\d.]+", x) for x in build)
