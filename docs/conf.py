"Sphinx settings of the site; `build_site.py` prepares its sources and runs Sphinx."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cryptolstm import __version__  # noqa: E402

project = "cryptolstm"
author = copyright = "the cryptolstm authors"
version = release = __version__
language = "en"

extensions = ["myst_nb"]
nb_execution_mode = "off"           # the stored outputs are shown
nb_ipywidgets_js = {}               # nothing comes from another server
nb_render_markdown_format = "myst"
myst_heading_anchors = 6            # anchors as on GitHub
myst_enable_extensions = ["deflist"]

html_theme = "pydata_sphinx_theme"
html_title = project
html_copy_source = html_show_sourcelink = False
html_last_updated_fmt = None
html_css_files = []
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"   # without one, a browser asks the server for one that does not exist
html_js_files = ["offline.js"]
html_theme_options = {
    "github_url": "https://github.com/cryptolstm/cryptolstm",
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "navigation_depth": 3,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_context = {"default_mode": "auto"}
