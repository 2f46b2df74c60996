"""The page in a real browser: no error, no request, every section, by keyboard, on a phone, in the dark."""

import json
import shutil
from pathlib import Path

import pytest
from written_runs import UNSAFE, write_competition, write_run

import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
)
COMMON = ["Leaderboard", "Cross-validation and leaderboard", "Learning curves", "Images to look at: baseline"]
COMMON += ["Weights and views", "Pseudo-labels", "Blends and stacks", "Data check", "Settings", "Environment"]
OF_TASK = {
    "multiclass": ["Confusion: baseline", "Calibration: baseline", "Scores of each class: baseline"],
    "binary": ["Labels and thresholds: baseline", "Calibration: baseline", "Scores of each class: baseline"],
    "multilabel": ["Labels and thresholds: baseline", "Calibration: baseline", "Scores of each class: baseline"],
    "regression": ["Residuals: baseline", "Scores of each target: baseline"],
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    folder = tmp_path_factory.mktemp("profile")
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={folder}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=OF_TASK)
def opened(request, browser, tmp_path_factory):
    """(task, browser at the report of that task, what it logged, the addresses it asked for)."""
    task = request.param
    root = write_competition(tmp_path_factory.mktemp(task), task, group=task == "multiclass")
    write_run(root, "baseline", 0.5)
    write_run(root, "second", 0.7, seed=1)
    report.main(runs=["baseline"], root=root)
    width(browser, 1200)
    logs, requests = open_page(browser, root / "report.html")
    return task, browser, logs, requests


def open_page(browser, path: Path):
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    return browser.get_log("browser"), [url for url in asked if not url.startswith("data:")]


def width(browser, pixels: int, scheme: str = "light") -> None:
    size = {"width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": pixels < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def test_it_opens_without_an_error_and_asks_for_nothing(opened):
    _, browser, logs, requests = opened
    assert logs == []  # a refused style, script or image would stand here
    assert requests == [browser.current_url]


def test_every_section_of_the_task_is_there_and_not_empty(opened):
    task, browser, *_ = opened
    script = "[s.querySelector('h2').textContent, s.innerText.length]"
    found = dict(browser.execute_script(f"return [...document.querySelectorAll('section')].map(s => {script})"))
    assert [title for title in (*COMMON, *OF_TASK[task]) if title not in found] == []
    assert all(length > 40 for length in found.values()), found


def test_hostile_labels_stay_text(opened):
    task, browser, *_ = opened
    assert browser.execute_script("return document.querySelectorAll('script').length") == 0
    assert (
        browser.execute_script(
            "return [...document.querySelectorAll('img')].filter(i => !i.src.startsWith('data:')).length"
        )
        == 0
    )
    text = browser.execute_script("return document.body.textContent")
    assert "<script>alert(4)</script>" in text  # the title
    if task in ("multiclass", "multilabel"):
        assert all(label in text for label in UNSAFE)
    handlers = (
        "return [...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    )
    assert browser.execute_script(handlers) == []


def test_every_image_and_drawing_is_drawn(opened):
    _, browser, *_ = opened
    broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
    assert browser.execute_script(broken) == 0
    assert browser.execute_script("return document.images.length") > 0
    boxes = "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)"
    widths = browser.execute_script(boxes)
    assert len(widths) >= 3
    assert min(widths) > 100


def test_every_link_and_table_is_reached_by_tab_with_a_visible_focus(opened):
    from selenium.webdriver import ActionChains, Keys

    _, browser, *_ = opened
    wanted = browser.execute_script("return document.querySelectorAll('a, [tabindex=\"0\"], summary').length")
    browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    seen, unseen = set(), "const s = getComputedStyle(document.activeElement); return s.outlineStyle === 'none'"
    for _ in range(wanted):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.add(browser.switch_to.active_element.id)
        assert not browser.execute_script(unseen)
    hidden = browser.execute_script("return document.querySelectorAll('details:not([open]) [tabindex=\"0\"]').length")
    assert len(seen) >= wanted - hidden


def test_on_a_phone_only_tables_and_wide_drawings_scroll_sideways(opened):
    _, browser, *_ = opened
    width(browser, 390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    outside = """return [...document.querySelectorAll('p, h1, h2, table, svg, img')].filter(e =>
        e.getBoundingClientRect().right > 391 && !e.closest('.scroll, .wide')).map(e => e.outerHTML.slice(0, 200))"""
    assert browser.execute_script(outside) == []
    width(browser, 1200)


def test_in_the_dark_letters_and_lines_are_bright_on_dark(opened):
    _, browser, *_ = opened
    width(browser, 1200, "dark")
    script = """const n = c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
        const t = [...document.querySelectorAll('p, td, svg text')].map(e =>
            n(e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color));
        const lines = [...document.querySelectorAll('svg path, svg use')].map(e => getComputedStyle(e).stroke);
        const s = lines.filter(c => c.startsWith('rgb')).map(n);
        return [n(getComputedStyle(document.body).backgroundColor), Math.min(...t), Math.min(...s)]"""
    background, darkest, darkest_line = browser.execute_script(script)
    width(browser, 1200)
    assert background < 40
    assert darkest > 100
    assert darkest_line > 60  # pure blue-green of the palette has 91, black 0
