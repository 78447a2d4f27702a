"""The built book: links, pictures, and its pages in a browser that can reach nothing else."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    yaml.safe_load((ROOT / "_toc.yml").read_text())["root"],
    *(
        chapter["file"]
        for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
        for chapter in part["chapters"]
    ),
]
NOTEBOOK_PAGES = [page for page in PAGES if (ROOT / f"{page}.ipynb").exists()]
PHONE_WIDTH, DESKTOP_WIDTH = 390, 1280
BUILD_SECONDS, WAIT_SECONDS = 300, 30
# Sphinx 7 and sphinx-thebe both declare this constant; the page works all the same.
HARMLESS_ERROR = "THEBE_JS_URL"

pytestmark = pytest.mark.slow


# -------------------------------------------------------------------------- the built site


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """Build the book beside the repository; return the site and how the build went."""
    target = tmp_path_factory.mktemp("site")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(ROOT)]
    run = subprocess.run(
        [*command, "-W", "-n", "--keep-going", "--path-output", str(target)],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    return target / "_build" / "html", run


@pytest.fixture(scope="module")
def site(build: tuple[Path, subprocess.CompletedProcess]) -> Path:
    assert (build[0] / "index.html").is_file(), build[1].stdout[-3000:] + build[1].stderr[-3000:]
    return build[0]


class Page(HTMLParser):
    """What the tests ask of a page: its links, its pictures, its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "img":
            self.images.append(values)
        for key in ("href", "src"):
            if values.get(key):
                self.links.append(values[key])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {
        path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    }


def test_build_has_no_warning(build: tuple[Path, subprocess.CompletedProcess]) -> None:
    _, run = build
    warnings = [line for line in run.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert run.returncode == 0 and not warnings, "\n".join(warnings) or run.stderr[-3000:]


def test_every_page_of_the_toc_is_built(site: Path) -> None:
    missing = [page for page in PAGES if not (site / f"{page}.html").is_file()]
    assert not missing, f"in _toc.yml but not built: {missing}"


def test_links_between_pages_are_alive(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            fragment = urllib.parse.unquote(parts.fragment)
            if not target.is_file():
                dead.append(f"{path.relative_to(site)}: {link}")
            elif fragment and target in pages and fragment not in pages[target].ids:
                dead.append(f"{path.relative_to(site)}: {link} (no such anchor)")
    assert not dead, "dead links:\n" + "\n".join(dead)


def test_every_image_says_what_it_shows(site: Path, pages: dict[Path, Page]) -> None:
    silent = [
        f"{path.relative_to(site)}: {image.get('src')}: {image.get('alt')!r}"
        for path, page in pages.items()
        for image in page.images
        if "/_static/images/" not in f"/{image.get('src')}"  # the theme's own icons
        and (len(image.get("alt") or "") < 25 or re.search(r"[0-9a-f]{32}", image["alt"] or ""))
    ]
    assert not silent, "images without 25 characters of alt text:\n" + "\n".join(silent)


@pytest.mark.parametrize("page", NOTEBOOK_PAGES)
def test_colab_opens_this_chapter(page: str, site: Path, pages: dict[Path, Page]) -> None:
    links = {link for link in pages[site / f"{page}.html"].links if "colab.research" in link}
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    repository = config["url"].removeprefix("https://github.com/")
    expected = (
        "https://colab.research.google.com/github/"
        f"{repository}/blob/{config['branch']}/{page}.ipynb"
    )
    assert links == {expected}, f"expected {expected}, got {links}"
    assert (ROOT / f"{page}.ipynb").is_file()


# ------------------------------------------------------------------------------- a browser


class Browser:
    """A headless Chromium for which no host but this machine exists, driven by chromedriver."""

    def __init__(self, binary: str, driver: str, profile: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.address = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
        ]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": binary, "args": arguments},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        try:
            self._wait_for_driver()
            answer = self.send("/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.session = f"/session/{answer['sessionId']}"

    def _wait_for_driver(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                urllib.request.urlopen(self.address + "/status", timeout=WAIT_SECONDS).close()
                return
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def send(self, path: str, body: dict, method: str = "POST") -> object:
        request = urllib.request.Request(
            self.address + path,
            data=json.dumps(body).encode() if method == "POST" else None,
            headers={"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=4 * WAIT_SECONDS) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def command(self, name: str, **parameters: object) -> object:
        """Send a command of the DevTools protocol."""
        return self.send(self.session + "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def ask(self, script: str) -> object:
        """Return what a piece of JavaScript returns."""
        return self.send(self.session + "/execute/sync", {"script": script, "args": []})

    def wait(self, script: str, what: str) -> None:
        """Wait until a piece of JavaScript returns something true."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.ask(script):
            assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for {what}"
            time.sleep(0.1)

    def log(self, kind: str) -> list[dict]:
        """Return what was logged since the last call."""
        return self.send(self.session + "/se/log", {"type": kind})

    def resize(self, width: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=850,
            deviceScaleFactor=2 if width == PHONE_WIDTH else 1,
            mobile=width == PHONE_WIDTH,
        )

    def open(self, url: str, width: int = DESKTOP_WIDTH) -> None:
        """Open a page, wait until formulas and widgets are drawn, and scroll it to its end."""
        self.resize(width)
        self.log("performance")
        self.log("browser")
        self.send(self.session + "/url", {"url": url})
        self.wait("return document.readyState === 'complete'", "the page")
        self.wait(
            "if (!document.querySelector('.math') || window.formulasAreDrawn) return true;"
            "if (window.MathJax && MathJax.startup && MathJax.startup.promise)"
            "  MathJax.startup.promise.then(() => { window.formulasAreDrawn = true; });",
            "MathJax",
        )
        self.wait(
            "return [...document.querySelectorAll("
            "'script[type=\"application/vnd.jupyter.widget-view+json\"]')]"
            ".every(s => [...s.parentElement.querySelectorAll('.jupyter-widgets')].length)",
            "the widgets",
        )
        self.ask("window.scrollTo(0, document.body.scrollHeight)")
        self.wait(
            "return [...document.images].every(image => image.complete)",
            "the images",
        )

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        try:
            self.send(self.session, {}, method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait(timeout=WAIT_SECONDS)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    driver = shutil.which("chromedriver")
    names = ("chromium", "google-chrome", "chromium-browser")
    binaries = [path for path in map(shutil.which, names) if path]
    if not driver or not binaries:
        pytest.skip("no browser: the packages chromium and chromium-driver are not installed")
    for binary in binaries:
        try:
            found = Browser(binary, driver, tmp_path_factory.mktemp("profile"))
        except RuntimeError as error:  # a browser of another version than the driver's
            problem = error
            continue
        yield found
        found.close()
        return
    raise problem


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> str:
    """Serve the site under a base path, as Pages does."""
    handler = functools.partial(QuietHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def foreign(requests: list[str], origin: str) -> list[str]:
    # What a browser asks of itself, such as the tab that it opens with, has schemes of its own.
    own = (origin, "data:", "blob:", "about:", "chrome:", "chrome-", "devtools:")
    return sorted({url for url in requests if not url.startswith(own)})


def test_what_is_foreign() -> None:
    asked = ["chrome-untrusted://new-tab-page/x", "chrome://a", "data:,", "http://here/a"]
    assert foreign([*asked, "https://there/b"], "http://here/") == ["https://there/b"]


def console_errors(browser: Browser) -> list[str]:
    return [
        entry["message"]
        for entry in browser.log("browser")
        if entry["level"] == "SEVERE" and HARMLESS_ERROR not in entry["message"]
    ]


@pytest.mark.parametrize("page", PAGES)
def test_page_in_a_browser(page: str, browser: Browser, address: str) -> None:
    browser.open(f"{address}/{page}.html")
    assert not foreign(browser.requests(), address + "/"), "the page asks other hosts"
    errors = console_errors(browser)
    assert not errors, "errors in the console:\n" + "\n".join(errors)
    broken = browser.ask("return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert not broken, f"images that do not load: {broken}"
    formulas = browser.ask("return document.querySelectorAll('.math').length")
    drawn = browser.ask("return document.querySelectorAll('.math mjx-container mjx-math').length")
    wrong = browser.ask(
        "return [...document.querySelectorAll('mjx-merror')].map(e => e.title || e.textContent)"
    )
    assert drawn >= formulas, f"{formulas} formulas, {drawn} drawn"
    assert not wrong, f"formulas that MathJax refuses: {wrong}"
    undrawn = browser.ask(
        "return [...document.querySelectorAll('.jupyter-error-widget, .jp-OutputArea-error')]"
        ".map(e => e.textContent)"
    )
    assert not undrawn, f"widgets that do not draw: {undrawn}"
    listings = browser.ask("return document.querySelectorAll('div.highlight pre').length")
    buttons = browser.ask("return document.querySelectorAll('div.highlight button.copybtn').length")
    assert listings == 0 or buttons > 0, f"{listings} listings, no copy button"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_page_on_a_phone(page: str, theme: str, browser: Browser, address: str) -> None:
    browser.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}]
    )
    browser.open(f"{address}/{page}.html", width=PHONE_WIDTH)
    assert browser.ask("return document.documentElement.dataset.theme") == theme
    width = browser.ask("return document.documentElement.scrollWidth")
    culprits = browser.ask(
        "const w = document.documentElement.clientWidth;"
        "return [...document.querySelectorAll('main *')]"
        ".filter(e => e.getBoundingClientRect().right > w + 1).slice(0, 5)"
        ".map(e => e.tagName + '.' + e.className)"
    )
    assert width <= PHONE_WIDTH, f"{width} px wide on a phone of {PHONE_WIDTH}: {culprits}"
    cut = browser.ask(
        "return [...document.querySelectorAll('mjx-container[display=\"true\"]')]"
        ".filter(e => e.getBoundingClientRect().left < 0).length"
    )
    assert not cut, f"{cut} formulas begin left of the page, where nobody can scroll"
    lost = browser.ask(
        "return [...document.querySelectorAll('main span.math')].filter(e => {"
        "const m = e.querySelector('mjx-math');"
        "return m && getComputedStyle(e).overflowX === 'hidden' &&"
        "m.getBoundingClientRect().right > e.getBoundingClientRect().right + 1}).length"
    )
    assert not lost, f"{lost} formulas in a line are cut off, and nobody can scroll them"


def test_search_finds_a_chapter(browser: Browser, address: str) -> None:
    browser.open(f"{address}/search.html?q=autoencoder")
    browser.wait("return document.querySelector('#search-results ul.search li a')", "a result")
    hits = browser.ask(
        "return [...document.querySelectorAll('#search-results ul.search li a')].map(a => a.href)"
    )
    assert any("02_autoencoder" in hit for hit in hits), f"not among the results: {hits}"
    assert not foreign(browser.requests(), address + "/")


def test_copy_button_copies(browser: Browser, address: str) -> None:
    browser.open(f"{address}/{NOTEBOOK_PAGES[0]}.html")
    source, x, y = browser.ask(
        "const b = document.querySelector('div.cell_input button.copybtn');"
        "window.copied = null;"
        "document.addEventListener('copy', () => {"
        "  window.copied = document.activeElement.value || document.getSelection().toString();"
        "});"
        "b.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const r = b.getBoundingClientRect();"
        "const text = document.querySelector(b.dataset.clipboardTarget).textContent;"
        "return [text, r.x + r.width / 2, r.y + r.height / 2]"
    )
    for kind in (
        "mouseMoved",
        "mousePressed",
        "mouseReleased",
    ):  # a script may not copy, a hand may
        browser.command(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
        )
    browser.wait("return window.copied !== null", "the copy")
    copied = browser.ask("return window.copied")
    assert copied.strip() == source.strip(), f"expected {source!r}, got {copied!r}"


def test_pages_work_without_a_server(browser: Browser, site: Path) -> None:
    for page in (PAGES[0], NOTEBOOK_PAGES[0]):
        browser.open((site / f"{page}.html").as_uri())
        assert not foreign(browser.requests(), "file://"), "the page asks other hosts"
        assert not console_errors(browser)
        formulas = browser.ask("return document.querySelectorAll('.math').length")
        drawn = browser.ask("return document.querySelectorAll('.math mjx-math').length")
        assert drawn >= formulas, f"{formulas} formulas, {drawn} drawn"
