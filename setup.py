"Packaging: everything comes from settings.ini, which nbdev reads too."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
name = cfg["lib_name"]
# The report notebooks and parameter files of the checkout, which report.render finds in an installed package.
notebooks = ["backtest.ipynb", "signal.ipynb", "universe.ipynb", "universe_rank.ipynb", "volatility.ipynb"]
project = {f"{name}.project.nbs": notebooks, f"{name}.project.params": ["*.yaml"]}
setup(
    name=name,
    version=cfg["version"],
    description=cfg["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=[*find_packages(include=[name, f"{name}.*"]), *project],
    package_dir={package: package.rpartition(".")[2] for package in project},
    package_data={**project, f"{name}.report": ["assets/*"]},
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={
        extra: shlex.split(cfg[f"{extra}_requirements"]) for extra in ["dev", *cfg["extras"].split()]
    },
    entry_points={
        "console_scripts": [cfg["console_scripts"]],
        "nbdev": [f"{name}={name}._modidx:d"],
    },
)
