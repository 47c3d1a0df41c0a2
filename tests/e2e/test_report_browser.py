"""The report in a real browser: nothing hostile runs, nothing is loaded, it reads well at every size.

Driven by Playwright, in Debian's Chromium (``apt-get install chromium``).
"""

import pytest

from reports import HOSTILE, write_run
from snugtune.report.page import write_report

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1440, 900)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("run"), classes=46, rows=800))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("hostile"), hostile=True, classes=len(HOSTILE) + 9))


class Seen:
    """What an opened page complained of, and what it would have fetched (nothing is let through)."""

    def __init__(self, context, page):
        self.fetched, self.complaints = [], []
        context.route(lambda url: not url.startswith("file:"), self._refuse)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))

    def _refuse(self, route):
        self.fetched.append(route.request.url)
        route.abort()


@pytest.fixture
def look(browser):
    """Opens a page: ``look(path, size, scheme)`` gives it and what it does."""
    contexts = []

    def open_page(path, size="desktop", scheme="light", **options):
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        seen = Seen(context, page)
        page.goto(path.as_uri())
        return page, seen

    yield open_page
    for context in contexts:
        context.close()


# Nothing hostile runs, nothing leaves


def test_hostile_labels_and_texts_do_nothing(look, hostile):
    page, seen = look(hostile)
    assert page.evaluate("window.pwned") is None
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    for selector in ("#class-table bdi", ".errors bdi", ".confused bdi", ".matrix bdi"):
        for place in page.locator(selector).all()[:6]:
            place.hover(force=True)
    page.locator("#class-table th button").first.click()
    for label in HOSTILE[:3]:
        page.fill("#class-find", label)
    page.fill("#class-find", "")
    page.focus("#map")
    for _ in range(30):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert page.evaluate("document.querySelectorAll('iframe, img, object, embed, form, base').length") == 0
    assert page.evaluate("[...document.links].every((a) => a.getAttribute('href').startsWith('#'))")
    assert page.url == hostile.as_uri()
    assert seen.fetched == []
    assert seen.complaints == []


def test_the_policy_stops_what_would_be_put_in(look, report):
    page, seen = look(report)
    page.evaluate(
        """() => {
          window.stopped = [];
          document.addEventListener("securitypolicyviolation", (one) => {
            window.stopped.push(one.effectiveDirective);
          });
          const script = document.createElement("script");
          script.textContent = "window.pwned = 1";
          const image = document.createElement("img");
          image.src = "https://elsewhere.invalid/a.png";
          const frame = document.createElement("iframe");
          frame.src = "https://elsewhere.invalid/";
          document.body.append(script, image, frame);
          document.body.insertAdjacentHTML("beforeend", "<b id='bait' onclick='window.pwned = 1'>bait</b>");
          document.getElementById("bait").click();
          fetch("https://elsewhere.invalid/").catch(() => {});
        }"""
    )
    page.wait_for_function("window.stopped.length >= 5")
    kinds = {"script-src-elem", "script-src-attr", "img-src", "frame-src", "connect-src"}
    assert set(page.evaluate("window.stopped")) == kinds
    assert page.evaluate("window.pwned") is None
    assert seen.fetched == []


# What a reader does


def rows(page):
    return page.evaluate(
        """() => [...document.querySelector("#class-table").tBodies[0].rows].filter((row) => !row.hidden)
             .map((row) => [...row.cells].map((cell) => cell.textContent.trim()))"""
    )


def test_headings_sort_and_tell_in_which_direction(look, report):
    page, seen = look(report)
    names = page.locator("#class-table thead th").all_text_contents()
    for heading, first, sign in (("F1", "descending", -1), ("Class", "ascending", 1)):
        place = names.index(heading)
        button = page.locator("#class-table thead th").nth(place).locator("button")
        for direction, order in ((first, sign), ({"ascending": "descending"}.get(first, "ascending"), -sign)):
            button.click()
            th = page.locator("#class-table thead th").nth(place)
            assert th.get_attribute("aria-sort") == direction
            values = [row[place] for row in rows(page)]
            if heading == "F1":
                values = [-1.0 if value == "\N{EN DASH}" else float(value.split()[0]) for value in values]
            assert len(set(values)) > 5
            assert values == sorted(values, reverse=order < 0)
    assert page.locator("#class-table thead th[aria-sort]").count() == 1
    assert seen.complaints == []


def test_the_filter_finds_classes_by_name_and_by_weakness(look, report):
    page, _ = look(report)
    total = len(rows(page))
    page.fill("#class-find", "LOAN")
    found = rows(page)
    assert 0 < len(found) < total
    assert all("loan" in row[0].lower() for row in found)
    assert page.inner_text("#class-count") == f"{len(found)} of {total}"
    page.fill("#class-find", "")
    page.select_option("#class-which", "weak")
    place = page.locator("#class-table thead th").all_text_contents().index("F1")
    weak = [row[place] for row in rows(page)]
    assert all(float(value.split()[0]) < 50 for value in weak)
    page.select_option("#class-which", "all")
    assert len(rows(page)) == total


def test_the_threshold_and_the_map_are_read_off(look, report):
    page, _ = look(report)
    assert "(the chosen threshold)" in page.inner_text("#threshold-says")
    page.focus("#threshold")
    page.keyboard.press("End")
    assert "(the chosen threshold)" not in page.inner_text("#threshold-says")
    page.focus("#map")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "recognised:" in page.inner_text("#map-says")


# How it looks

OVERHANGING = """() => [...document.querySelectorAll("body *")].filter((one) => {
  const inside = one.closest("svg");
  if (one.closest(".scroll, nav, .skip, .quiet") || (inside && inside !== one)) return false;
  const box = one.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).map((one) => one.outerHTML.slice(0, 120))"""

CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const color = channels(getComputedStyle(one).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const kinds = "p, li, td, th, dt, dd b, dd span, h2, h3, caption, summary, code";
  return Math.min(...[...document.querySelectorAll(kinds)]
    .filter((one) => one.textContent.trim() && one.getClientRects().length).map((one) => {
      const [a, b] = [light(channels(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    }));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_every_size_in_light_and_dark(look, report, size, scheme):
    page, seen = look(report, size, scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.evaluate(OVERHANGING) == []
    # WCAG 2.1, success criterion 1.4.3: 4.5 to 1 for text of usual size.
    assert page.evaluate(CONTRAST) >= 4.5
    charts = page.evaluate(
        "[...document.querySelectorAll('.chart, .map')].map((one) => one.getBoundingClientRect().width)"
    )
    assert len(charts) >= 10
    assert min(charts) > 250
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 150) == (scheme == "dark")
    assert seen.complaints == []


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_hostile_words_break_no_layout(look, hostile, size):
    page, _ = look(hostile, size)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.evaluate(OVERHANGING) == []


CROSSING = """() => [...document.querySelectorAll(".chart")].flatMap((chart) => {
  const words = [...chart.querySelectorAll("text")].map((one) => ({
    says: one.textContent, box: one.getBoundingClientRect(),
  }));
  const meet = (p, q) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3;
  return words.flatMap((one, i) =>
    words.slice(i + 1).filter((two) => meet(one.box, two.box)).map((two) => `${one.says} | ${two.says}`));
})"""


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_words_on_charts_do_not_run_into_each_other(look, report, size):
    page, _ = look(report, size)
    assert page.evaluate(CROSSING) == []


def test_it_prints_whole(look, report):
    page, _ = look(report)
    page.evaluate(
        """() => window.addEventListener("beforeprint", () => {
          window.opened = document.querySelectorAll("details[open]").length;
        })"""
    )
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("window.opened") == page.evaluate("document.querySelectorAll('details').length") > 0
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    # On paper nothing scrolls, so nothing may be hidden in a box.
    hidden = "(one) => one.scrollHeight - one.clientHeight"
    assert page.evaluate(f"Math.max(...[...document.querySelectorAll('.scroll')].map({hidden}))") <= 1


def test_without_its_script_it_is_all_there(look, report):
    page, _ = look(report, java_script_enabled=False)
    assert page.locator("#class-find").is_hidden()
    assert page.locator("#class-table tbody tr").count() == 46
    assert page.locator("#verdict").is_visible()
