"Check the pages of a built site: links, anchors, and that nothing is loaded from elsewhere."
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("audio", "src"),
          ("video", "src"), ("embed", "src"), ("object", "data"), ("image", "href"), ("use", "href")}
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest"}


class Page(HTMLParser):
    "Ids, links and loaded files of a page."

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.ids, self.links, self.loaded, self._style = set(), [], [], False
        self.feed(text), self.close()

    def handle_starttag(self, tag, attrs):
        values = {k: v or "" for k, v in attrs}
        self.ids |= {values[k] for k in ("id", "name") if k in values and (k == "id" or tag == "a")}
        self._style = tag == "style"
        if tag == "a" and "href" in values: self.links.append(values["href"])
        self.loaded += [v for k, v in values.items() if (tag, k) in LOADED]
        if tag == "link" and LOADED_LINKS & set(values.get("rel", "").split()):
            self.loaded.append(values["href"])
        self.loaded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.split()]
        self.loaded += urls(values.get("style", ""))

    def handle_endtag(self, tag): self._style = False

    def handle_data(self, data):
        if self._style: self.loaded += urls(data)


def urls(css: str) -> list[str]:
    "What a style sheet loads."
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)", css) + re.findall(r"@import\s+['\"]([^'\"]+)", css)
    return [u.strip() for u in found]


def outside(url: str) -> bool: return bool(urlsplit(url).netloc) and not url.startswith("data:")


def problems(
    site: Path,   # folder of a built site
) -> list[str]:   # a sentence each, none for a good site
    "What is wrong with a site: dead links and anchors, and files that another server would have to send."
    texts = {p: p.read_text(encoding="utf-8") for p in sorted(site.rglob("*.html")) if not of_a_run(p, site)}
    parsed = {p: Page(text) for p, text in texts.items()}
    found = []
    for path, page in parsed.items():
        name = path.relative_to(site).as_posix()
        found += [f"{name} loads {u}" for u in page.loaded if outside(u)]
        inside = [u for u in [*page.links, *page.loaded] if not urlsplit(u).scheme and not outside(u)]
        for url in dict.fromkeys(inside):
            parts = urlsplit(url)
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file(): found.append(f"{name} links to {url}, which does not exist")
            elif parts.fragment and file in parsed and unquote(parts.fragment) not in parsed[file].ids:
                found.append(f"{name} links to {url}, but that page has no such anchor")
    for sheet in sorted(site.rglob("*.css")):
        name = sheet.relative_to(site).as_posix()
        for url in urls(sheet.read_text(encoding="utf-8")):
            if outside(url): found.append(f"{name} loads {url}")
            elif not url.startswith(("data:", "#")) and not (sheet.parent / urlsplit(url).path).is_file():
                found.append(f"{name} loads {url}, which does not exist")
    return found


def of_a_run(path: Path, site: Path) -> bool:
    "Whether a page is a report, which was checked when it was written and links to what was there then."
    parts = path.relative_to(site).parts
    return parts[0] == "reports" and len(parts) > 2
