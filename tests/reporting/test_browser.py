"""The pages in a real browser, from the disk and without a network: Debian's chromium, and axe-core from npm."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inat_job.evaluation.pictures import Picture
from inat_job.reporting import html
from inat_job.reporting.comparison import ComparedRun, compare
from inat_job.reporting.report_page import render_report
from inat_job.reporting.sweep_page import render_sweep
from tests.evaluation.made_predictions import drawn_table
from tests.harness.job_runs import report_of, run, settings_in
from tests.harness.made_images import tree, write_zip
from tests.reporting.made_reports import made_report
from tests.reporting.test_report_page import HOSTILE
from tests.reporting.test_sweep_page import made_report as sweep_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
NoAlertPresentException = pytest.importorskip("selenium.common").NoAlertPresentException
CHROMIUM, DRIVER, NPM = (shutil.which(name) for name in ("chromium", "chromedriver", "npm"))
AXE = "axe-core@4.14.1"
WIDTHS = {"wide": 1100, "phone": 400}

pytestmark = [
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser that finds no host."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{switch}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source."""
    if not NPM:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("axe")
    words = [NPM, "install", "--no-audit", "--no-fund", "--prefix", str(folder), AXE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install {AXE}: {done.stderr.strip().splitlines()[-1:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """The page of a run of each part with its report, of their comparison, and one of hostile names, by name."""
    folder = tmp_path_factory.mktemp("runs")
    archive = write_zip(folder / "x.zip", tree(train=30, test=10))
    made: dict[str, tuple[Path, Any]] = {}
    runs = []
    for part in "ab":
        settings = settings_in(folder, archive, part, run__run_id=f"part-{part}", run__pictures=True)
        run(settings)
        made[part] = (folder / "runs" / f"part-{part}" / "report.html", report_of(settings))
        runs.append(ComparedRun(f"/runs/part-{part}", made[part][1]))
    made["compare"] = (folder / "compare.html", None)
    made["compare"][0].write_text(html.render("compare", compare(runs)))
    made["hostile"] = hostile_page(folder)
    made["sweep"] = (folder / "sweep.html", None)
    made["sweep"][0].write_text(render_sweep(sweep_report(40, why=HOSTILE[0]), ["inat-job"]))
    return made


def hostile_page(folder: Path) -> tuple[Path, Any]:
    classes = (*HOSTILE, "<style>*{display:none}</style>", "</script><script>window.ran = 1</script>")
    table = drawn_table(0, 80, len(classes))
    ids = tuple(f"{classes[at % len(classes)]}/{at}" for at in range(80))
    table = replace(table, classes=classes, ids=ids)
    (folder / "x.png").write_bytes(b"no image")
    picture = Picture(HOSTILE[0], HOSTILE[1], HOSTILE[2], folder / "x.png")
    report = made_report(table, tracker={"mode": "online", "run_id": HOSTILE[0], "url": "javascript:window.ran = 1"})
    path = folder / "hostile.html"
    path.write_text(render_report(report, table, [picture], [HOSTILE[0]]))
    return path, report


def visit(browser: Any, path: Path, width: str = "wide", scheme: str = "light") -> None:
    """Open a page, and forget what the browser logged before."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": WIDTHS[width], "height": 900, "deviceScaleFactor": 1, "mobile": width == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())


def requests(browser: Any) -> list[str]:
    """The addresses that the browser has asked for since the last visit."""
    messages = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in sent]


NAMES = ("a", "b", "compare", "hostile", "sweep")


@pytest.mark.parametrize("name", NAMES)
def test_page_asks_for_nothing_and_logs_no_error(browser: Any, pages: Any, name: str) -> None:
    path, _ = pages[name]
    visit(browser, path)
    for element in browser.find_elements("css selector", "details > summary"):
        element.click()
    asked = [url for url in requests(browser) if not url.startswith("data:")]
    assert asked == [path.as_uri()]
    assert [each for each in browser.get_log("browser") if "no image" not in each["message"]] == []


@pytest.mark.parametrize("name", ["a", "b", "hostile"])
def test_headline_is_that_of_the_report(browser: Any, pages: Any, name: str) -> None:
    path, report = pages[name]
    visit(browser, path)
    figure = browser.find_element("id", "accuracy")
    assert figure.text == f"{100 * report['test']['accuracy']:.1f} %"
    assert float(figure.get_attribute("data-value")) == report["test"]["accuracy"]
    low, high = report["test"]["ci95"]
    text = browser.find_element("class name", "headline").text
    assert f"{report['test']['correct']} of {report['test']['n']} images" in text
    assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" in text


def press(browser: Any, key: str) -> None:
    webdriver.ActionChains(browser).send_keys(key).perform()


def tab_to(browser: Any, selector: str) -> Any:
    """Press Tab until the element has the focus."""
    wanted = browser.find_element("css selector", selector)
    for _ in range(60):
        press(browser, webdriver.Keys.TAB)
        if browser.switch_to.active_element == wanted:
            return wanted
    raise AssertionError(f"Tab does not reach {selector}")


@pytest.mark.parametrize("name", ["a", "b"])
def test_table_sorts_by_keyboard(browser: Any, pages: Any, name: str) -> None:
    path, report = pages[name]
    visit(browser, path)
    tab_to(browser, "#class-table th:nth-child(6) button")
    rows = report["test"]["per_class"]
    for key, order, reverse in ((webdriver.Keys.ENTER, "descending", True), (webdriver.Keys.SPACE, "ascending", False)):
        press(browser, key)
        head = browser.find_element("css selector", "#class-table th:nth-child(6)")
        assert head.get_attribute("aria-sort") == order
        shown = [each.text for each in browser.find_elements("css selector", "#class-table tbody td:nth-child(6)")]
        assert shown == [f"{each:.3f}" for each in sorted((row["f1"] for row in rows.values()), reverse=reverse)]
    others = browser.find_elements("css selector", "#class-table th[aria-sort=none]")
    assert len(others) == 6


def test_trials_of_a_sweep_sort(browser: Any, pages: Any) -> None:
    visit(browser, pages["sweep"][0])
    browser.find_element("css selector", "table.sortable th:nth-child(6) button").click()
    shown = [float(each.text) for each in browser.find_elements("css selector", "table.sortable td:nth-child(6)")]
    assert shown == sorted(shown, reverse=True)
    assert len(shown) == 40


@pytest.mark.parametrize("name", ["a", "b"])
def test_cell_opens_its_images_by_keyboard(browser: Any, pages: Any, name: str) -> None:
    visit(browser, pages[name][0])
    button = tab_to(browser, "table.confusion button")
    press(browser, webdriver.Keys.ENTER)
    cell = browser.find_element("id", button.get_attribute("popovertarget"))
    assert cell.is_displayed()
    count = int(button.text)
    shown = cell.find_elements("css selector", "li")
    assert len(shown) == min(count, 12)
    sheet = cell.find_element("css selector", "li svg use")
    size = browser.execute_script("return arguments[0].getBBox().width", sheet)
    assert size > 0, "the sheet of small images is drawn"
    press(browser, webdriver.Keys.ESCAPE)
    assert not cell.is_displayed()
    assert browser.switch_to.active_element == button


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_page_is_accessible(browser: Any, pages: Any, axe: str, name: str, scheme: str) -> None:
    """No serious violation, with a cell open and everything unfolded."""
    visit(browser, pages[name][0], scheme=scheme)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    for opened in (False, True):
        if opened:
            browser.execute_script("document.querySelector('[popover]')?.showPopover()")
        browser.execute_script(axe)
        result = browser.execute_async_script("axe.run().then(arguments[0])")
        serious = [each for each in result["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []
        assert len(result["passes"]) > 10
        assert [each["id"] for each in result["passes"] if each["id"] == "color-contrast"]


@pytest.mark.parametrize("name", NAMES)
def test_page_fits_a_phone(browser: Any, pages: Any, name: str) -> None:
    visit(browser, pages[name][0], width="phone")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= WIDTHS["phone"]


@pytest.mark.parametrize("name", ["a", "b", "compare"])
def test_dark_and_print(browser: Any, pages: Any, name: str) -> None:
    """Paper is white whichever the scheme, and what is folded away on a screen is printed."""
    grounds = {}
    for scheme in ("light", "dark"):
        visit(browser, pages[name][0], scheme=scheme)
        grounds[scheme] = ground(browser)
    assert grounds["light"] == "rgb(255, 255, 255)" != grounds["dark"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert ground(browser) == "rgb(255, 255, 255)"
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.find_elements("css selector", "details:not([open])") == []
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def ground(browser: Any) -> str:
    return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))


def test_hostile_names_run_nothing(browser: Any, pages: Any) -> None:
    visit(browser, pages["hostile"][0])
    time.sleep(0.5)  # for what an image's error or an animation would run
    assert browser.execute_script("return window.ran") is None
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.querySelectorAll('a[href^=javascript]').length") == 0
    names = [each.text for each in browser.find_elements("css selector", "#class-table tbody th")]
    assert names[0] == "<script>alert(1)</script>"


def test_pages_are_small(pages: Any) -> None:
    assert {name: path.stat().st_size < 3e6 for name, (path, _) in pages.items()} == dict.fromkeys(pages, True)
