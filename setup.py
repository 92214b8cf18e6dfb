"Packaging: everything comes from settings.ini, which nbdev reads too."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
setup(name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], license="Apache-2.0",
      long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
      author=cfg["author"], url=cfg["git_url"], keywords=cfg["keywords"], python_requires=f">={cfg['min_python']}",
      packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
      install_requires=shlex.split(cfg["requirements"]), extras_require={"dev": shlex.split(cfg["dev_requirements"])},
      entry_points={"console_scripts": [cfg["console_scripts"]], "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]})
