"""The page of a run in a real browser: it loads in silence, judges as the library, and sorts."""

import time

import numpy as np
import pytest

from jaxstab import report, store
from jaxstab.stability import margins

N = 100
HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def records():
    """Minima all over the plane: of every batch size, and one whose interval is wide."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        size = (4, 25, N)[i % 3]
        row = {"batch_size": size, "learning_rate": (0.5, 2.0)[i % 2], "init_scale": 1.0, "seed": i}
        row |= {"status": "converged", "steps": 100, "loss": 1e-5, "gradient_norm": 1e-4}
        for name in ("sharpness", "nonuniformity"):
            value = float(rng.uniform(0.05, 6))
            wide = 1.5 if i == 7 else 1 + 1e-3
            row |= {name: value, f"{name}_lower": value, f"{name}_upper": wide * value}
            row |= {f"{name}_residual": 0.0, f"{name}_matvecs": 9}
            row |= {f"{name}_converged": i != 7}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def page(browser, records, tmp_path_factory):
    out = tmp_path_factory.mktemp(HOSTILE.replace("/", "\N{DIVISION SLASH}"))
    folder = store.Store(out, {"n": N, "name": HOSTILE, "config": {"loss": "squared"}})
    for i, row in enumerate(records):
        folder.write(f"run{i}", row, {"w": np.zeros(2)}, {"steps": [0], "loss": [1.0]})
    path = report.write(out)
    assert path.stat().st_size < 5e6
    browser.get(path.as_uri())
    for _ in range(200):
        if browser.execute_script("return document.documentElement.dataset.ready") == "true":
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"the diagram did not start: {browser.get_log('browser')}")
    return browser


def counts(page):
    words = page.find_element("id", "counts").text.replace(",", "").split()
    return [int(words[i]) for i in (0, 2, 4)]


def sides(records, eta, batch_size):
    """Inside, undecided and outside, by `margins` at both ends of every interval."""
    places = {"learning_rate": eta, "batch_size": batch_size, "n": N}
    ends = [
        margins(*([row[q + end] for row in records] for q in ("sharpness", "nonuniformity")),
                **places)
        for end in ("_lower", "_upper")
    ]  # fmt: skip
    outside = ~ends[0].inside
    certain = np.array([row["sharpness_converged"] for row in records])
    inside = ends[1].inside & certain
    return [int(inside.sum()), int((~outside & ~inside).sum()), int(outside.sum())]


def test_the_page_loads_in_silence_and_asks_nobody(page):
    assert [line for line in page.get_log("browser") if line["level"] != "INFO"] == []
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert page.find_element("id", "diagram").size["height"] > 300


def test_names_are_text(page):
    assert page.title.startswith("Sweep ") and page.title != "taken"
    assert page.find_elements("css selector", "img[src=x]") == []
    assert HOSTILE in page.find_element("tag name", "body").text


def test_minima_are_first_judged_as_they_were_run(page, records):
    own = [sides([row], row["learning_rate"], row["batch_size"]) for row in records]
    assert counts(page) == np.sum(own, axis=0).tolist()


def move(page, name, keys):
    from selenium.webdriver.common.keys import Keys

    slider = page.find_element("id", name)
    for key in keys:
        slider.send_keys(getattr(Keys, key))


def test_a_moved_slider_counts_what_the_library_counts(page, records):
    seen = set()
    for slider, keys in (
        ("eta-slider", ["HOME"]),
        ("eta-slider", ["PAGE_UP"] * 5),
        ("batch-slider", ["HOME"]),
        ("batch-slider", ["PAGE_UP"] * 4),
        ("batch-slider", ["END"]),
        ("eta-slider", ["END"]),
        ("eta-slider", ["PAGE_DOWN"] * 3),
    ):
        move(page, slider, keys)
        eta = float(page.find_element("id", "eta").get_property("value"))
        size = int(page.find_element("id", "batch").get_property("value"))
        assert counts(page) == sides(records, eta, size), (eta, size)
        seen.add(tuple(counts(page)))
        colors = page.execute_script("""
            const model = Bokeh.documents[0].roots()[0];
            return model.renderers.filter((one) => one.name.startsWith("group"))
              .flatMap((one) => Array.from(one.data_source.data.fill));""")
        fills = [report.diagram.FILLS[side] for side in ("inside", "undecided", "outside")]
        assert [colors.count(fill) for fill in fills] == counts(page)
    assert len(seen) >= 4 and any(undecided for _, undecided, _ in seen)
    before = counts(page)
    page.find_element("id", "as-run").click()
    test_minima_are_first_judged_as_they_were_run(page, records)
    assert counts(page) != before


def test_a_typed_learning_rate_moves_the_bounds(page, records):
    box = page.find_element("id", "eta")
    page.execute_script("arguments[0].value = ''", box)
    box.send_keys("0.37")
    size = int(page.find_element("id", "batch").get_property("value"))
    assert counts(page) == sides(records, 0.37, size)
    edge = page.execute_script("""
        const model = Bokeh.documents[0].roots()[0];
        return model.renderers.find((one) => one.name === "chosen").data_source.data.x[0][1];""")
    assert edge == 2 / 0.37


def test_a_hidden_group_is_not_counted(page, records):
    page.find_element("id", "as-run").click()
    page.execute_script("""
        const model = Bokeh.documents[0].roots()[0];
        model.renderers.find((one) => one.name === "group 0").visible = false;""")
    rest = [row for row in records if row["batch_size"] != 4]
    assert sum(counts(page)) == len(rest)
    page.execute_script("""
        const model = Bokeh.documents[0].roots()[0];
        model.renderers.find((one) => one.name === "group 0").visible = true;""")
    assert sum(counts(page)) == len(records)


def results(page):
    """The table of all rows, its frame's filter line, and the column of the sharpness."""
    for table in page.find_elements("css selector", ".wide table"):
        heads = [head.text for head in table.find_elements("css selector", "th")]
        if "sharpness" in heads:
            line = table.find_element("xpath", "../preceding-sibling::p[@class='filter'][1]")
            return table, line, heads.index("sharpness")
    raise AssertionError("no table of results")


def column(page, table, index):
    cells = f"tbody tr:not([hidden]) td:nth-child({index + 1})"
    return [cell.text for cell in table.find_elements("css selector", cells)]


def test_a_click_on_a_head_sorts_by_value_and_back(page, records):
    table, _, index = results(page)
    button = table.find_elements("css selector", "th button")[index]
    values = sorted(f"{row['sharpness']:.5g}" for row in records)
    for reverse, word in ((False, "ascending"), (True, "descending")):
        page.execute_script("arguments[0].click()", button)
        shown = column(page, table, index)
        assert sorted(shown) == values
        assert [float(x) for x in shown] == sorted(map(float, values), reverse=reverse)
        head = table.find_elements("css selector", "th")[index]
        assert head.get_attribute("aria-sort") == word


def test_a_filter_keeps_the_rows_with_all_words(page, records):
    table, line, _ = results(page)
    box = line.find_element("css selector", "input")
    box.send_keys("converged outside")  # every row holds the first word
    rows = table.find_elements("css selector", "tbody tr:not([hidden])")
    assert 0 < len(rows) < len(records) and f"{len(rows)} of {len(records)} rows" in line.text
    assert all("outside" in row.text and "converged" in row.text for row in rows)
    box.clear()


def test_the_page_is_whole_without_scripts(page, browser):
    """Everything but controls and diagram is there before a script ran."""
    source = browser.current_url
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(source)
        assert not browser.find_element("id", "interactive").is_displayed()
        assert len(browser.find_elements("css selector", "img")) >= 1
        rows = browser.find_elements("css selector", ".wide table tbody tr")
        assert len(rows) >= 60 and rows[-1].is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
