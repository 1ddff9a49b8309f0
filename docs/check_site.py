"""Look at every page of the built site in a browser, at the widths of a phone and of a desk, for ``make docs-check``.

It fails, and names the page and what is on it, where a page is wider than its window, something sticks out of it or is
cut off, a link or a picture leads nowhere, anything is fetched from another host, a script fails, or the search finds
nothing. The pages are opened as files: what works so, works from any server.

    python docs/check_site.py build/site                       # as `make docs-check`
    python docs/check_site.py build/site --screenshots look    # and keep a picture of every page at each width
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import unquote, urlsplit

WIDTHS = {390: 844, 1440: 900}  # and the heights of such windows
SEARCHED = {"lstm_forward": "api/recurrent.html", "beam search": "captioning_decoding.html"}
TIMEOUT_S = 20

# What a page says of itself. What scrolls inside itself may be wider than it is; what is hidden or has no size is not
# looked at, nor what stands in a drawer that is moved out of the window on purpose.
INSPECT = """
const name = (e) => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "")
  + [...e.classList].map((c) => "." + c).join("") + " " + JSON.stringify((e.textContent || "").trim().slice(0, 60));
const styles = (e) => getComputedStyle(e);
const scrolls = (e) => ["auto", "scroll"].includes(styles(e).overflowX);
const content = document.querySelector("[role=main]") || document.body;
const wide = [], cut = [];
for (const e of content.querySelectorAll("*")) {
  const box = e.getBoundingClientRect();
  if (box.width < 2 || box.height < 2 || styles(e).visibility === "hidden") continue;
  let inside = false;
  for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) if (scrolls(p)) { inside = true; break; }
  if (inside) continue;
  if (box.right > innerWidth + 1 || box.left < -1) wide.push(name(e));
  if (["hidden", "clip"].includes(styles(e).overflowX) && e.scrollWidth > e.clientWidth + 1) cut.push(name(e));
}
return {
  files: [...content.querySelectorAll("a[href*='.html']")]
    .filter((a) => a.textContent.trim().endsWith(".md")).map(name),
  messages: [...content.querySelectorAll(".highlight-pytb pre")]
    .filter((e) => e.scrollWidth > e.clientWidth + 1).map(name),
  width: document.documentElement.scrollWidth, inner: innerWidth, wide, cut,
  viewport: !!document.querySelector("meta[name=viewport][content*=device-width]"),
  title: document.title, headings: document.querySelectorAll("h1").length,
  links: [...document.querySelectorAll("a[href]")].map((a) => a.getAttribute("href")),
  ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
  images: [...document.images].map((i) =>
    [i.getAttribute("src"), i.complete && i.naturalWidth > 0, i.hasAttribute("alt")]),
  fetched: performance.getEntriesByType("resource").map((r) => r.name),
  formulas: document.querySelectorAll("math").length,
};
"""


@dataclass
class Found:
    """What was looked at, and the faults."""

    pages: int = 0
    views: int = 0
    links: int = 0
    elsewhere: set[str] = field(default_factory=set)
    images: int = 0
    formulas: int = 0
    searches: int = 0
    faults: list[str] = field(default_factory=list)


def installed() -> tuple[str, str] | None:
    """Chromium and its driver, by their paths."""
    binary = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = which("chromedriver")
    return (binary, driver) if binary and driver else None


def browser() -> Any:
    """A headless Chromium that is installed; nothing is downloaded."""
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        raise SystemExit("✗ selenium is not installed: pip install 'fastrnn[docs]'") from None
    paths = installed()
    if not paths:
        raise SystemExit("✗ Chromium and its driver are needed (Debian: apt-get install chromium chromium-driver)")
    binary, driver = paths
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Its sandbox does not start for root, as whom containers run; the pages are our own.
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))


def show(chrome: Any, url: str, width: int, height: int) -> None:
    """Open a page in a window of a size; the browser has none as narrow as a phone, but emulates it.

    Not as a phone, which widens the window to what does not fit: nothing would ever stick out.
    """
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chrome.get(url)


def photograph(chrome: Any, path: Path) -> None:
    """Keep a picture of the whole page."""
    taken = chrome.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(taken["data"]))


def view(chrome: Any, site: Path, page: Path, width: int, found: Found) -> dict[str, Any]:
    """Look at a page in a window of a width, and keep the faults of its layout."""
    show(chrome, page.as_uri(), width, WIDTHS[width])
    seen: dict[str, Any] = chrome.execute_script(INSPECT)
    where = f"{page.relative_to(site)} at {width} px"
    found.views += 1
    if seen["inner"] != width:
        raise RuntimeError(f"the window is {seen['inner']} px wide instead of {width}")
    if not seen["viewport"]:
        found.faults.append(f"{where}: no viewport is set, so that a phone shows the page as wide as a desk")
    if seen["width"] > width:
        found.faults.append(f"{where}: the page is {seen['width']} px wide")
    found.faults += [f"{where}: sticks out of the window: {element}" for element in seen["wide"]]
    found.faults += [f"{where}: is cut off: {element}" for element in seen["cut"]]
    found.faults += [f"{where}: a message does not wrap: {element}" for element in seen["messages"]]
    found.faults += [f"{where}: a link says a file's name instead of a title: {element}" for element in seen["files"]]
    for source, loaded, described in seen["images"]:
        if not loaded:
            found.faults.append(f"{where}: no picture at {source}")
        if not described:
            found.faults.append(f"{where}: a picture without a description: {source}")
    elsewhere = [url for url in seen["fetched"] if urlsplit(url).scheme not in ("file", "data")]
    found.faults += [f"{where}: fetches {url}" for url in elsewhere]
    for entry in chrome.get_log("browser"):
        if entry["level"] == "SEVERE":
            found.faults.append(f"{where}: {entry['message']}")
    return seen


def follow(site: Path, seen: dict[Path, dict[str, Any]], found: Found) -> None:
    """Check where the links of all pages lead, and whether each page can be reached from the first."""
    reached: set[Path] = {site / "index.html"}
    for page, about in seen.items():
        where = page.relative_to(site)
        for link in about["links"]:
            parts = urlsplit(link)
            found.links += 1
            if parts.scheme or parts.netloc:
                found.elsewhere.add(link)
                if parts.scheme not in ("https", "mailto"):
                    found.faults.append(f"{where}: a link to {link}")
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                found.faults.append(f"{where}: a dead link: {link}")
            elif target in seen:
                reached.add(target)
                if parts.fragment and unquote(parts.fragment) not in seen[target]["ids"]:
                    found.faults.append(f"{where}: no such place on the page: {link}")
    found.faults += [f"{page.relative_to(site)}: no link leads there" for page in seen if page not in reached]


def search(chrome: Any, site: Path, words: str, expected: str, found: Found) -> None:
    """Search for words, and expect a page among what is found."""
    show(chrome, f"{(site / 'search.html').as_uri()}?q={words.replace(' ', '+')}", 1440, WIDTHS[1440])
    script = "return [...document.querySelectorAll('#search-results li a')].map((a) => a.getAttribute('href'))"
    deadline = time.monotonic() + TIMEOUT_S
    results: list[str] = []
    while time.monotonic() < deadline:
        results = chrome.execute_script(script)
        if any(link.partition("#")[0].partition("?")[0] == expected for link in results):
            found.searches += 1
            return
        time.sleep(0.1)
    found.faults.append(f"search.html: {words!r} does not find {expected}, but {results[:5]}")


def check(site: Path, screenshots: Path | None = None, searched: Mapping[str, str] = SEARCHED) -> Found:
    """Look at all pages of a site.

    Parameters
    ----------
    site : Path
        The folder with index.html.
    screenshots : Path, optional
        Where pictures of all pages go.
    searched : mapping of str to str
        Words to search for, and pages that must be found.

    Returns
    -------
    Found
        Without faults, if all is well.
    """
    site = site.resolve()
    pages = sorted(site.rglob("*.html"))
    if site / "index.html" not in pages:
        raise SystemExit(f"✗ no site at {site}: make docs builds it")
    found, seen = Found(pages=len(pages)), {}
    chrome = browser()
    try:
        for width in WIDTHS:
            for page in pages:
                seen[page] = view(chrome, site, page, width, found)
                if screenshots:
                    name = "-".join(page.relative_to(site).with_suffix("").parts)
                    photograph(chrome, screenshots / f"{name}-{width}.png")
        for words, expected in searched.items():
            search(chrome, site, words, expected, found)
    finally:
        chrome.quit()
    for page, about in seen.items():
        found.images += len(about["images"])
        found.formulas += about["formulas"]
        if about["headings"] != (page.name != "search.html") or not about["title"]:  # a form, without a title
            found.faults.append(f"{page.relative_to(site)}: {about['headings']} titles")
    follow(site, seen, found)
    return found


def main() -> int:
    """Check, print the faults, and keep a record of a run that found none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path, help="folder of the built site")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="keep pictures of all pages")
    parser.add_argument("--record", action="store_true", help="keep what was found for docs/evidence.md")
    given = parser.parse_args()
    begun = time.monotonic()
    found = check(given.site, given.screenshots)
    for fault in found.faults:
        print(f"✗ {fault}")
    tried = (
        f"{found.pages} pages at {' and '.join(map(str, WIDTHS))} px, {found.links:,} links, {found.images} pictures, "
        f"{found.formulas} formulas, {found.searches} searches"
    )
    print(f"{'✗' if found.faults else '✓'} {tried}: {len(found.faults) or 'no'} faults")
    print(f"  {len(found.elsewhere)} addresses elsewhere were not tried; `make docs-links` does")
    if not found.faults and given.record:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from bench import evidence

        evidence.record("docs", tried, "no fault", time.monotonic() - begun)
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
