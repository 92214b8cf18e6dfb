"""Build the site: `python docs/build_site.py site`.

Documentation and notebooks are staged under their addresses in the site, Sphinx turns them into pages with
warnings as errors, and the links of the result are checked. Notebooks are not executed; the pages show their
stored outputs."""
import argparse
import os
import re
import shutil
import subprocess
import sys
import warnings
from configparser import ConfigParser
from functools import cache, partial
from pathlib import Path
from posixpath import normpath, relpath

import nbformat
from check_site import problems

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ConfigParser(delimiters=["="], interpolation=None)
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
SOURCE_URL = f"{CONFIG['DEFAULT']['git_url']}/blob/main/"
MODULE_URL = f"{CONFIG['DEFAULT']['doc_host']}{CONFIG['DEFAULT']['doc_baseurl']}/"

# pages of the sections, in reading order; what is in docs/ and not named here is part of the reference
EXPLANATIONS = ["how_to_read_a_report", "why_no_skill_is_normal", "ideas", "findings",
                "what_leaks_look_like", "costs", "glossary", "proof", "published_traps", "size_and_power",
                "determinism", "first_design"]
REFERENCE = ["commands", "settings", "data", "models", "forecasts", "trading", "scale", "files",
             "performance"]
SECTIONS = {   # page → title, introduction
    "tutorials/index": ("Tutorials", "Notebooks to follow step by step, on simulated bars or on your own."),
    "explanations": ("Explanations", "What the results mean, and why they are computed in this way."),
    "reference": ("Reference", "Every command, setting, file and format."),
    "project": ("Project", "What changed, and how to contribute."),
}
PUBLISHED = {".html", ".csv", ".svg", ".xml"}   # files of reports that become part of the site
REPORTS = """# Reports

Every run writes one self-contained page. The <a href="reports/index.html">index of all reports</a> lists the
pages, newest first, with their verdicts; it can be sorted and searched. An <a href="reports/feed.xml">RSS
feed</a> announces new ones.
[How to read a report](how_to_read_a_report.md) explains the pages.
"""


# ---- addresses -------------------------------------------------------------------------------------------

def address(
    path: str,   # of a file of the repository, relative to its root
) -> str:        # of its source in the staged tree; nbs/core/00_errors.ipynb is core/errors.ipynb
    "Where a page is in the site: a module is at `package/module`, as nbdev's links expect."
    if path == "README.md": return "get_started.md"
    if path == "nbs/index.ipynb": return "course.ipynb"
    folder, _, rest = path.partition("/")
    if folder == "nbs": return re.sub(r"(^|/)\d\d_", r"\1", rest)
    return rest if folder == "docs" else path


def pages() -> list[str]:
    "The files that become pages, relative to the root of the repository."
    names = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    names += [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "docs").glob("*.md"))]
    found = [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "docs/tutorials").glob("*.ipynb")]
    kept = (path for path in found if ".ipynb_checkpoints" not in path.parts)
    return names + sorted(path.relative_to(ROOT).as_posix() for path in kept)


@cache
def homes() -> dict[str, list[str]]:
    "Name in lower case → where it is documented; some names are in several modules."
    from cryptolstm._modidx import d
    found = {}
    for names in d["syms"].values():
        for url, _ in names.values(): found.setdefault(url.partition("#")[2], []).append(url)
    return found


def documentation(
    url: str,    # from nbdev, below `MODULE_URL`
    page: str,   # file with the link
) -> str:        # below `MODULE_URL`
    """Where a name is documented. Of several modules with the name, nbdev takes any: the page's own module is
    more likely, then its package, and a command is least likely. A method is documented with its class."""
    own, name = address(page).removesuffix(".ipynb"), url.partition("#")[2]

    def distance(url):
        module = url.partition(".html")[0]
        return module != own, os.path.dirname(module) != os.path.dirname(own), module.startswith("cli/")
    module = min(homes().get(name, [url]), key=distance).partition("#")[0]
    return f"{module}#{name.partition('.')[0]}"


def moved_link(
    target: str,    # of a link, as it is written in the repository
    page: str,      # file with the link, relative to the root of the repository
    staged: set,    # files that become pages
    source: Path,   # the staged tree, which gets files of docs/ that are no pages
) -> str:
    "The target of a link in the staged tree: a page, a copied file, or a file on GitHub."
    if target.startswith(MODULE_URL):
        path, _, anchor = documentation(target.removeprefix(MODULE_URL), page).partition("#")
        known = {address(p).removesuffix(".ipynb"): p for p in staged}
        if (file := known.get(path.removesuffix(".html"))) is None: return target
        path = relpath(file, os.path.dirname(page) or ".")
    elif "://" in target or target.startswith(("#", "mailto:")): return target
    else: path, _, anchor = target.partition("#")
    file = normpath(f"{os.path.dirname(page)}/{path}".lstrip("/"))
    if file not in staged:
        if not (ROOT / file).exists(): return target   # an error of Sphinx
        if not file.startswith("docs/"): return SOURCE_URL + file
        (source / address(file)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / address(file))
    new = relpath(address(file), os.path.dirname(address(page)) or ".")
    return f"{new}#{anchor}" if anchor else new


def moved_links(
    text: str,   # Markdown
    move,        # target → target
) -> str:
    "Markdown with other targets of its links; code blocks stay as they are."
    parts = re.split(r"(?ms)(^```.*?^```)", text)
    link = re.compile(r"\]\(([^)\s]+)\)")
    return "".join(p if p.startswith("```") else link.sub(lambda m: f"]({move(m[1])})", p) for p in parts)


# ---- notebooks -------------------------------------------------------------------------------------------

def processed(work: Path) -> Path:
    """The notebooks as nbdev prepares them for a site: no hidden cells, the documentation of every export.

    `nbdev_proc_nbs` calls the same function, but first tries to install Quarto, which is not needed here."""
    from nbdev.serve import proc_nbs
    os.environ["IPYTHONDIR"] = str(work / "ipython")   # nothing of this is the user's history
    shutil.copy(ROOT / "settings.ini", work)
    names = [n for n in pages() if n.endswith(".ipynb")]
    for name in names:
        copy = work / "nbs" / (name.removeprefix("nbs/") if name.startswith("nbs/") else name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    before = Path.cwd()
    os.chdir(work)
    try:
        with warnings.catch_warnings():   # a module that must import Keras quietly
            warnings.filterwarnings("ignore", "Found cells containing imports")
            proc_nbs(n_workers=0)
    finally: os.chdir(before)
    return work / "_proc"


def opening(name: str) -> str:
    """The first text of a notebook, of which nbdev keeps only title and description. A module is titled
    `package.module`."""
    cells = nbformat.read(ROOT / name, as_version=4).cells
    text = next(cell.source for cell in cells if cell.cell_type == "markdown")
    module = address(name).removesuffix(".ipynb").replace("/", ".")
    if name.startswith("nbs/") and "." in module: text = re.sub(r"\A# .*", f"# {module}", text)
    return re.sub(r"(?m)^> ", "", text)


def documented(cell, level: int) -> str:
    "The output of `show_doc` as Markdown: heading, signature, docstring, link to the source."
    text = "".join(cell.outputs[0].data["text/markdown"]).removeprefix("---").strip()
    link, _, rest = text.partition("\n") if text.startswith("[source]") else ("", "", text)
    rest = re.sub(r"^### ", "#" * level + " ", rest.strip())
    rest = re.sub(r"(?m)^def (?=[A-Z])", "class ", rest)
    head, signature, tail = re.fullmatch(r"(?s)(.*?```python\n)(.*?)(\n```.*)", rest).groups()
    signature = re.sub(r"\[(`[^`]+`)\]\([^)]*\)", r"\1", signature)   # code has no links
    first, *lines = signature.split("\n")   # what a comment continues on the next line is a comment, too
    lines = [line if line.startswith((" ", ")")) or not line else f"# {line}" for line in lines]
    rest = "\n".join([head + first, *lines]) + tail
    return f"{rest}\n\n{re.sub(r'{target=.*', '', link)}".strip()


def plain_code(cell) -> None:
    "Remove what only nbdev or this package reads: directives, and outputs for programs."
    cell.source = re.sub(r"(?m)^#\|.*\n?", "", cell.source)
    for output in cell.get("outputs", []):
        for kind in [k for k in output.get("data", {}) if k.startswith("application/vnd.cryptolstm")]:
            del output.data[kind]
        if "text/html" in output.get("data", {}):   # the links of an example lead nowhere here
            markup = "".join(output.data["text/html"])
            output.data["text/html"] = re.sub(r'<a href="(?!https?:|#)[^"]*">', "<a>", markup)


def plain_notebook(nb, name: str, move) -> None:
    "Make a processed notebook one that any builder can show, in place."
    nb.metadata = {"kernelspec": nb.metadata.get("kernelspec", {}),
                   "language_info": {"name": "python", "pygments_lexer": "ipython3"}}   # knows !commands
    cells, level = [], 2
    for cell in nb.cells:
        if cell.cell_type == "raw" and cell.source.startswith("---"):
            cell = nbformat.v4.new_markdown_cell(opening(name))
        elif cell.cell_type == "code" and re.search(r"(?m)^show_doc\(", cell.source):
            cell = nbformat.v4.new_markdown_cell(documented(cell, level))
        elif cell.cell_type == "markdown" and cell.source.startswith("## "): level = 3
        if cell.cell_type == "markdown":
            source = re.sub(r"\[(`_[^`]*`)\]\([^)]*\)", r"\1", cell.source)   # private: not documented
            cell.source = moved_links(source, move)
        else: plain_code(cell)
        if cell.source.strip() and "WARNING: THIS FILE WAS AUTOGENERATED" not in cell.source:
            cells.append(cell)
    nb.cells = cells


# ---- sections --------------------------------------------------------------------------------------------

def toctree(entries: list, *options: str) -> str:
    "A table of contents of the site's navigation."
    return "\n".join(["", "```{toctree}", *options, *entries, "```", ""])


def packages(source: Path, staged: set) -> str:
    "Write a page for each package, as the course introduces it; their table of contents for the course."
    course = nbformat.read(source / "course.ipynb", as_version=4)
    names = []
    for cell in course.cells:
        links = re.findall(r"(?m)^- \[\w+\]\((\w+)/(\w+)\.ipynb\)", cell.source)
        head, _, text = cell.source.partition("\n")
        if not links or not head.startswith("## "): continue
        folder, modules = links[0][0], [m for f, m in links if (source / f / f"{m}.ipynb").is_file()]
        if not modules: continue
        text = text.replace(f"]({folder}/", "](")
        page = f"# {head[3:]}\n{text}\n{toctree(modules, ':hidden:')}"
        (source / folder / "index.md").write_text(page, "utf-8")
        names.append(f"{folder}/index")
    alone = [address(p).removesuffix(".ipynb") for p in staged if re.fullmatch(r"nbs/(?!index)\w+\.ipynb", p)]
    return toctree([*names, *sorted(set(alone) - {"explore"})], ":hidden:")


def sections(source: Path, staged: set) -> None:
    "Write the pages of the sections, and add the navigation to the first page and to the course."
    docs = [address(p).removesuffix(".md") for p in staged if p.startswith("docs/") and p.endswith(".md")]
    rest = sorted({*docs} - {*EXPLANATIONS, *REFERENCE, "index"})
    tutorials = sorted(Path(p).stem for p in staged if p.startswith("docs/tutorials/"))
    if "nbs/explore.ipynb" in staged: tutorials.append("/explore")
    entries = {
        "tutorials/index": tutorials,
        "explanations": [n for n in EXPLANATIONS if n in docs],
        "reference": [n for n in REFERENCE if n in docs] + rest,
        "project": ["CHANGELOG", "CONTRIBUTING"],
    }
    for name, (title, text) in SECTIONS.items():
        found = toctree(entries[name], ":maxdepth: 1") if entries[name] else "\nThere is none yet.\n"
        (source / name).parent.mkdir(exist_ok=True)
        (source / f"{name}.md").write_text(f"# {title}\n\n{text}\n{found}", "utf-8")
    (source / "reports.md").write_text(REPORTS, "utf-8")
    order = ["get_started", "tutorials/index", "explanations", "reference", "course", "reports", "project"]
    titles = {"course": "Modules <course>"}
    with (source / "index.md").open("a", encoding="utf-8") as file:
        file.write(toctree([titles.get(n, n) for n in order], ":hidden:"))


def stage(
    source: Path,   # an empty folder for the sources of Sphinx
    work: Path,     # an empty folder for nbdev
) -> None:
    "Lay out all pages under their addresses."
    staged, ready = set(pages()), processed(work)
    for name in sorted(staged):
        move = partial(moved_link, page=name, staged=staged, source=source)
        file = source / address(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            text = moved_links((ROOT / name).read_text(encoding="utf-8"), move)
            if name == "README.md": text = re.sub(r"\A# .*", "# Get started", text)
            file.write_text(text, encoding="utf-8")
            continue
        nb = nbformat.read(ready / name.removeprefix("nbs/"), as_version=4)
        plain_notebook(nb, name, move)
        nbformat.write(nb, file)
    course = nbformat.read(source / "course.ipynb", as_version=4)
    course.cells.append(nbformat.v4.new_markdown_cell(packages(source, staged)))
    nbformat.write(course, source / "course.ipynb")
    sections(source, staged)


# ---- reports ---------------------------------------------------------------------------------------------

def publish_reports(reports: Path, target: Path) -> None:
    """Copy the pages of all runs and the newest page of each ticker, and write their index.

    Notebooks, and the page of trading accounts, which is nobody else's business, stay here."""
    from cryptolstm.report.site import reports_index
    for path in sorted(p for pattern in ("*/*", "*/*/*") for p in reports.glob(pattern) if p.is_file()):
        parts = path.relative_to(reports).parts
        private = parts[0] == "trading" or any(part.startswith(".") for part in parts)
        if private or path.suffix not in PUBLISHED: continue
        (target / Path(*parts)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / Path(*parts))
    reports_index(target, f"{MODULE_URL}reports/")


# ---- the site --------------------------------------------------------------------------------------------

def name_toggles(target: Path) -> None:
    "Name the buttons that unfold the navigation for readers who only hear it; the theme leaves them without."
    toggle = '<summary><span class="toctree-toggle"'
    named = toggle.replace("<summary>", '<summary aria-label="Pages of this section">')
    for path in target.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if toggle in text: path.write_text(text.replace(toggle, named), encoding="utf-8")


def build(
    target: Path,       # folder of the site; what is in it is removed
    work: Path = ROOT / "build" / "site",   # folder of intermediate files; what is in it is removed
    reports: Path = ROOT / "reports",       # folder of the reports
) -> int:               # exit code
    "Build the site and check its links."
    for folder in (target, work): shutil.rmtree(folder, ignore_errors=True)
    (source := work / "source").mkdir(parents=True)
    stage(source, work)
    strict = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--jobs", "auto"]
    made = work / "html"   # MyST-NB leaves a folder beside the one it writes to
    places = ["-c", str(ROOT / "docs"), "-d", str(work / "doctrees"), str(source), str(made)]
    # in a process of its own: this one has loaded every module of the package
    if subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", *strict, *places]).returncode: return 1
    shutil.move(made, target)
    (target / ".nojekyll").touch()   # folders that begin with _ are part of the site
    for name in (".buildinfo", "_static/webpack-macros.html"): (target / name).unlink(missing_ok=True)
    name_toggles(target)
    publish_reports(reports, target / "reports")
    found = problems(target)
    for line in found: print(line, file=sys.stderr)
    print(target if not found else f"{len(found)} problems in {target}")
    return bool(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    folder = {"type": Path, "metavar": "FOLDER"}
    parser.add_argument("--work", default=ROOT / "build" / "site", **folder, help="for intermediate files")
    reports = os.environ.get("CRYPTOLSTM_REPORTS", ROOT / "reports")
    parser.add_argument("--reports", default=reports, **folder, help="of the reports")
    options = parser.parse_args()
    places = (path.resolve() for path in (options.work, options.reports))
    code = build(options.target.resolve(), *places)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)   # nbdev leaves a shell of IPython for each notebook; closing all of them takes a minute
