"""The page in a real browser: Debian's Chromium, driven by selenium. ``make test-browser`` installs it."""

import json
import shutil
from pathlib import Path

import pytest

from geexp.report.page import write_page
from geexp.report.report import make_report
from tests.support.made_runs import paper_identity, write_run, write_some_of_each

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
INK = "const c = getComputedStyle(document.body); return [c.backgroundColor, c.color]"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    root = write_some_of_each(tmp_path_factory.mktemp("runs"))
    for row in range(5):
        for column in range(6):
            for seed in (0, 1):
                error = 4 + 3.3 * column + row / 10 + seed / 5
                folder = root / f"cifar-{row}-{column}-{seed}"
                write_run(folder, paper_identity(5, row, column), error, seed=seed, epochs=60)
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(make_report(root, ["1", "2", "3", "4", "5", "6", "detection"]), path)
    return path


@pytest.fixture
def browser(tmp_path):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail("no chromium or chromedriver here: make test-browser installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    yield found
    found.quit()


def opened(browser, file: Path, scheme: str = "light"):
    prefers = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}  # a click waits for no scrolling
    features = [{"name": name, "value": value} for name, value in prefers.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(file.as_uri())
    return browser


def until(browser, condition: str):
    return WebDriverWait(browser, 20).until(lambda b: b.execute_script(f"return {condition}"))


def column(browser, number: int) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#table-2 .results tbody tr")
    return [row.find_elements(By.CSS_SELECTOR, "th, td")[number].text for row in rows]


def test_opens_from_disk_without_network_and_without_errors(browser, file):
    opened(browser, file)
    browser.execute_script("document.querySelector('.plot').scrollIntoView({behavior: 'instant'})")
    assert until(browser, "document.querySelectorAll('.plot .scatterlayer .trace').length > 0")
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [entry["params"]["request"]["url"] for entry in asked if entry["method"] == "Network.requestWillBeSent"]
    assert file.as_uri() in urls
    assert not [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))]
    labels = browser.execute_script("return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert not [label for label in labels if label and "hare" in label]  # plotly offers to send charts to its makers


@pytest.mark.parametrize("width", [1280, 700])
def test_does_not_scroll_sideways(browser, file, width):
    opened(browser, file)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert until(browser, "document.documentElement.scrollWidth <= innerWidth")
    if width == 1280:
        wide = "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth).length"
        assert browser.execute_script(f"return {wide}") == 0


def test_sorts_by_click_and_by_keyboard(browser, file):
    opened(browser, file)
    first = column(browser, 0)
    assert first[0] == "ResNet-101"
    head = browser.find_element(By.CSS_SELECTOR, "#table-2 th[data-column='1']")
    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(browser, 1) == ["21.88", "22.00", "22.12", "22.14", "22.20", "23.30"]
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert column(browser, 1) == ["23.30", "22.20", "22.14", "22.12", "22.00", "21.88"]
    button.send_keys(Keys.SPACE)
    assert head.get_attribute("aria-sort") == "none"
    assert column(browser, 0) == first
    for _ in range(2):  # what was not run stays last, up and down
        browser.find_element(By.CSS_SELECTOR, "#table-2 th[data-column='2'] button").click()
        assert [text.startswith("not run") for text in column(browser, 2)] == [False, False, True, True, True, True]


def test_the_keyboard_alone_gets_there(browser, file):
    opened(browser, file)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the report"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) != "none"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert until(browser, "document.activeElement.id === 'main'")


def test_details_open_by_keyboard_and_by_their_links(browser, file):
    opened(browser, file)
    commands = browser.find_element(By.CSS_SELECTOR, "#table-2-commands")
    commands.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert commands.get_property("open")
    browser.find_element(By.CSS_SELECTOR, "#all-runs a[href='#run-3']").send_keys(Keys.ENTER)
    assert until(browser, "document.getElementById('run-3').open")


def test_copies_a_command(browser, file):
    opened(browser, file)
    browser.execute_script("navigator.clipboard.writeText = async text => { window.copied = text }")
    button = browser.find_element(By.CSS_SELECTOR, "#table-3 .copy")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    assert until(browser, "window.copied") == button.get_attribute("data-copy")
    assert until(browser, "document.getElementById('said').textContent") == "copied"


def test_filters_runs(browser, file):
    opened(browser, file)
    browser.find_element(By.ID, "filter").send_keys("theta_plus cifar100")
    assert browser.find_element(By.ID, "shown").text == "6 of 66"


def test_the_legend_hides_curves(browser, file):
    opened(browser, file)
    browser.execute_script("document.querySelector('.plot').scrollIntoView({behavior: 'instant'})")
    visible = "document.querySelector('.plot').querySelectorAll('.scatterlayer .trace').length"
    before = until(browser, visible)
    button = browser.find_element(By.CSS_SELECTOR, ".toggle")
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-pressed") == "false"
    assert until(browser, f"{visible} < {before}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser, file, scheme, tmp_path):
    opened(browser, file, scheme)
    browser.execute_script("document.querySelector('.plot').scrollIntoView({behavior: 'instant'})")
    line = "return document.querySelector('.plot .scatterlayer .trace .lines path')?.style.stroke"
    stroke = WebDriverWait(browser, 20).until(lambda b: b.execute_script(line))
    before = browser.execute_script(INK)
    browser.save_screenshot(str(tmp_path / f"{scheme}.png"))
    dark = browser.find_element(By.ID, "theme")
    assert dark.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    dark.click()
    assert browser.execute_script(INK) != before
    assert dark.get_attribute("aria-pressed") == str(scheme == "light").lower()
    assert browser.execute_script(line) != stroke  # the baseline's black line
    browser.refresh()
    assert browser.find_element(By.ID, "theme").get_attribute("aria-pressed") == str(scheme == "light").lower()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(browser, file, theme):
    """WCAG's contrast of 4.5 for all text colours against the page and the raised areas."""
    opened(browser, file, theme)
    colours = browser.execute_script(
        """const probe = document.createElement("span"); document.body.append(probe);
        return Object.fromEntries(arguments[0].map(name => {
            probe.style.color = `var(--${name})`;
            return [name, getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number)];
        }))""",
        ["page", "raised", "text", "quiet", "link", "good", "bad", "black"],
    )

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for paper in ("page", "raised"):
        for ink in ("text", "quiet", "link", "good", "bad", "black"):
            low, high = sorted((luminance(colours[paper]), luminance(colours[ink])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {paper}, {theme}"
