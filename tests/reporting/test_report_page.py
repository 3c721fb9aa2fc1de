"""The report: its text and numbers, escaping of user input, and its display in a browser."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chromium import open_chromium
from scipy import stats

import lmm_gpu
from lmm_gpu.reporting.model_text import fixed_effects, in_words, level_tables
from lmm_gpu.reporting.report_parts import MOST_DRAWN, Numbers, shown_contrasts

pytest.importorskip("jinja2", reason="the report needs: pip install '.[report]'")
pytest.importorskip("matplotlib", reason="the report needs: pip install '.[report]'")

RNG = np.random.default_rng(12)
N, J = 300, 10
DONOR = RNG.choice(J, N, p=np.arange(1, J + 1) / 55)
STATE = RNG.choice(list("abc"), N)
EVIL = [
    "<script>window.evil = 1</script>",
    'x" onmouseover="window.evil=1',
    "a&amp;b",
    "Ünï-基因",
    "${7*7}{{ 7*7 }}",
    "</script>",
]
GENES = [*EVIL, *(f"g{i}" for i in range(130))]
EFFECT = np.where(np.arange(len(GENES)) % 9 == 0, 4.0, 0.0)
EFFECT[0] = 9.0
Y = RNG.normal(size=(N, len(GENES))) + RNG.normal(size=(J, len(GENES)))[DONOR] + np.outer(STATE == "b", EFFECT) + 2
Y[:, 8] = 0
OBS = pd.DataFrame(
    {
        "arm<b>": np.where(DONOR < 5, "ctrl", "stim"),
        "state": STATE,
        "donor": [f"D{d} <i>" for d in DONOR],
        "age": RNG.uniform(20, 80, N),
    }
)
FORMULA = "~ `arm<b>` + state + age + (1 | donor)"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def fit():
    return lmm_gpu.fit((Y, OBS), FORMULA, features=GENES, progress=False)


@pytest.fixture(scope="module")
def table(fit):
    return fit.test()


@pytest.fixture(scope="module")
def path(fit, table, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "made" / "report.html"
    lmm_gpu.report(fit, table, page, df="generalized", progress=False)
    return page


class Seen(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def seen(path):
    return Seen(path.read_text(encoding="utf-8"))


def unpacked(packed):
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def listed(numbers):
    return np.array([float(text or "nan") for text in numbers.split(",")])


# --- what is in it --------------------------------------------------------------------------------


def test_page_is_self_contained(path, seen):
    assert {"link", "script", "style"} <= set(seen.tags) and seen.tags.count("script") == 2
    addresses = [value for name, value in seen.attributes if name in ("src", "href")]
    outside = {value for value in addresses if not value.startswith(("data:", "#"))}
    assert outside == {"https://doi.org/10.1038/s41467-026-69063-2"}
    code = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", code)
    assert [name.name for name in path.parent.iterdir()] == ["report.html"]


def test_user_input_is_escaped(seen):
    assert not {"i", "b>"} & set(seen.tags) and "onmouseover" not in dict(seen.attributes)
    said, alternatives = "".join(seen.text), [value for name, value in seen.attributes if name == "alt"]
    assert all(text in said for text in ("arm<b>[T.stim]", "D3 <i>", FORMULA))
    assert f"{EVIL[0]}: state[T.b]" in alternatives


def test_numbers_equal_the_table(fit, table):
    by_contrast = shown_contrasts(table)
    data = unpacked(Numbers.of(fit, by_contrast).packed)
    assert [one["name"] for one in data["contrasts"]] == [name for name in fit.coef.index if name != "Intercept"]
    assert data["genes"] == GENES and [data["words"][i] for i in data["status"]] == fit.status.tolist()
    np.testing.assert_allclose(listed(data["mean"]), Y.mean(axis=0), rtol=1e-3)
    for one in data["contrasts"]:
        rows = table[table["contrast"] == one["name"]].set_index("variable")
        rows = rows.loc[[GENES[i] for i in one["gene"]]]
        assert rows["log10_p_value"].dropna().is_monotonic_increasing and rows["log10_p_value"].isna().iloc[-1]
        for column in ("log_fc", "se", "statistic", "df"):
            np.testing.assert_allclose(listed(one["columns"][column]), rows[column], rtol=1e-3)
        np.testing.assert_allclose(listed(one["columns"]["log10_q"]), np.log10(rows["adj_p_value"]), rtol=1e-3)


def test_fdr_below_the_smallest_float(fit, table):
    rows = table[table["contrast"] == "age"].copy()
    rows["log10_p_value"] = np.r_[-800.0, -400.0, np.full(len(rows) - 2, -0.1)]
    rows["adj_p_value"] = np.r_[0.0, 0.0, np.full(len(rows) - 2, 0.9)]
    (one,) = unpacked(Numbers.of(fit, {"age": rows}).packed)["contrasts"]
    m = len(rows)
    np.testing.assert_allclose(
        listed(one["columns"]["log10_q"])[:2], [-800 + np.log10(m), -400 + np.log10(m / 2)], rtol=1e-4
    )


def test_large_tables_keep_the_smallest_p_values(fit, table, monkeypatch):
    monkeypatch.setattr("lmm_gpu.reporting.report_parts.MOST_ROWS", 240)
    by_contrast = shown_contrasts(table)
    numbers = Numbers.of(fit, by_contrast)
    assert numbers.kept == 60
    for one in unpacked(numbers.packed)["contrasts"]:
        rows = by_contrast[one["name"]].nsmallest(60, "log10_p_value")
        assert [GENES[i] for i in one["gene"]] == rows["variable"].tolist()
        np.testing.assert_allclose(
            listed(one["columns"]["log10_q"]), np.log10(rows["adj_p_value"]), rtol=1e-3, atol=1e-4
        )


def test_thirty_thousand_genes_take_two_megabytes(fit):
    m = 30_000
    rng = np.random.default_rng(1)
    t = rng.normal(size=m)
    names = tuple(f"ENSG{i:011d}" for i in range(m))
    log10_p = (stats.norm.logsf(abs(t)) + np.log(2)) / np.log(10)
    rows = pd.DataFrame(
        {"variable": names, "log_fc": t * 0.1, "se": rng.gamma(2, size=m), "statistic": t, "df": 30 * rng.random(m)}
    )
    rows = rows.assign(log10_p_value=log10_p, adj_p_value=stats.false_discovery_control(10**log10_p))
    summary = SimpleNamespace(features=names, mean=lambda: rng.gamma(2, size=m), m=m)
    many = SimpleNamespace(summary=summary, status=pd.Series(["converged"] * m))
    assert len(Numbers.of(many, dict.fromkeys("abc", rows)).packed) < 2_000_000


def test_only_the_first_contrasts_have_plots(fit, table, tmp_path, monkeypatch):
    monkeypatch.setattr("lmm_gpu.reporting.report_parts.MOST_DRAWN", 1)
    lmm_gpu.report(fit, table, tmp_path / "r.html", progress=False)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<article") == 4 and page.count("Volcano: ") == 1 and MOST_DRAWN > 1


def test_means_over_the_compared_groups_are_marked(fit, table, path):
    """Donors are of one arm each, and have cells of all states and ages."""
    page = path.read_text(encoding="utf-8")
    marked = re.findall(r"(\S+) varies within these groups, and", re.sub(r"\S{200,}", "", page))  # without pictures
    assert marked == ["state[T.b]", "state[T.c]", "age"]


def test_report_of_f_tests(fit, tmp_path):
    lmm_gpu.report(fit, fit.anova(), tmp_path / "r.html", df="generalized", progress=False)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Volcano" not in page and "QQ: state" in page and "<h3>state</h3>" in page


def test_contrasts_without_p_values(fit, table, tmp_path):
    rows = table[table["contrast"] == "age"].assign(log10_p_value=np.nan, adj_p_value=np.nan, p_value=np.nan)
    lmm_gpu.report(fit, rows, tmp_path / "r.html", progress=False)
    assert "Not available: age: no gene has a p-value, there is nothing to plot." in (tmp_path / "r.html").read_text(
        encoding="utf-8"
    )


def test_figures_are_closed(path):
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


# --- words and cells ------------------------------------------------------------------------------


def test_level_tables_equal_crosstabs(fit):
    (found,) = level_tables(fit.summary)
    frame = pd.DataFrame(found.cells, found.levels, ["cells", *found.columns])
    assert sorted(found.levels) == sorted(OBS["donor"].unique())
    pd.testing.assert_series_equal(
        frame["cells"].astype(int), OBS.groupby("donor").size()[found.levels], check_names=False
    )
    for factor, reference in (("arm<b>", "ctrl"), ("state", "a")):
        wanted = pd.crosstab(OBS["donor"], OBS[factor]).loc[found.levels]
        for level in wanted:
            column = f"{factor}: {reference}" if level == reference else f"{factor}[T.{level}]"
            np.testing.assert_allclose(frame[column], wanted[level], atol=1e-6)
    assert "age" not in frame


def test_kinds_of_fixed_effects(fit):
    found = {one.name: one for one in fixed_effects(fit.summary)}
    assert found["Intercept"].kind == "intercept" and found["Intercept"].cells == N
    assert found["age"].kind == "number" and found["age"].mean == pytest.approx(OBS["age"].mean())
    assert found["state[T.b]"].cells == (STATE == "b").sum()
    donors = OBS.groupby("donor")["arm<b>"].first()
    assert found["arm<b>[T.stim]"].levels == f"{(donors == 'stim').sum()} of {len(donors)}"


@pytest.mark.parametrize(
    ("method", "bounds", "transform", "wanted"),
    [
        ("REML", "auto", None, ["as stored in the data", "restricted maximum likelihood", "may be negative"]),
        ("ML", "nonnegative", "log1p", ["log(1 + value)", "by maximum likelihood", "are nonnegative"]),
    ],
)
def test_model_description(method, bounds, transform, wanted):
    values = np.abs(Y[:, :3])
    fit = lmm_gpu.fit((values, OBS), FORMULA, method=method, bounds=bounds, transform=transform, progress=False)
    said = " ".join(in_words(fit, "residual").values())
    assert all(text in said for text in [*wanted, "n - p", f"{OBS['donor'].nunique()} levels"])


# --- what is refused ------------------------------------------------------------------------------


def test_tables_of_other_fits_are_refused(fit, table, tmp_path):
    for wrong, message in [
        ([1], "the table has no column variable, contrast"),
        (table.drop(columns="df"), "the table has no column df: pass"),
        (table[:0], "the table has no rows"),
        (table.assign(variable="stranger"), "genes that the fit lacks (stranger)"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            lmm_gpu.report(fit, wrong, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_missing_jinja2_is_named(fit, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r'the report needs the package jinja2: pip install "lmm-gpu\[report\]"'):
        lmm_gpu.report(fit, None, tmp_path / "r.html")


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser, path):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(path.as_uri())
    WebDriverWait(browser, 20).until(lambda window: window.execute_script("return document.body.dataset.ready"))
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return window.evil") is None


def shown(window, column):
    """Texts of a column of the table."""
    script = (
        "return [...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[arguments[0]].textContent)"
    )
    return window.execute_script(script, column)


def head(window, title):
    heads = window.find_elements("css selector", "#table thead th")
    return next((i, one) for i, one in enumerate(heads) if one.text.strip("↑↓\u2009 ") == title)


def click(window, title):
    at, one = head(window, title)
    one.find_element("css selector", "button").click()
    return at


def number(text):
    return float(text.replace("−", "-"))


def rows_of(table, contrast="arm<b>[T.stim]"):
    return table[table["contrast"] == contrast].sort_values("log10_p_value", kind="stable")


def test_table_is_sorted_by_p_value(opened, table):
    rows = rows_of(table)
    assert shown(opened, 0) == rows["variable"][:50].tolist()
    at, one = head(opened, "p")
    assert one.get_attribute("aria-sort") == "ascending"
    np.testing.assert_allclose([number(p) for p in shown(opened, at)], rows["p_value"][:50], rtol=0.06)
    at, _ = head(opened, "FDR")
    np.testing.assert_allclose([number(p) for p in shown(opened, at)], rows["adj_p_value"][:50], rtol=0.06)
    align = opened.execute_script("return getComputedStyle(document.querySelector('#table tbody td')).textAlign")
    assert align == "right"


def test_clicks_sort_and_reverse(opened, table):
    rows = rows_of(table).dropna(subset="log_fc")
    at = click(opened, "effect")
    np.testing.assert_allclose([number(x) for x in shown(opened, at)], rows["log_fc"].nlargest(50), rtol=1e-3)
    click(opened, "effect")
    np.testing.assert_allclose([number(x) for x in shown(opened, at)], rows["log_fc"].nsmallest(50), rtol=1e-3)
    assert head(opened, "effect")[1].get_attribute("aria-sort") == "ascending"
    opened.find_element("id", "last").click()
    assert shown(opened, at)[-1] == ""  # missing values last in both directions


def test_keyboard_sorts_and_pages(opened, table):
    from selenium.webdriver.common.keys import Keys

    _, one = head(opened, "gene")
    one.find_element("css selector", "button").send_keys(Keys.ENTER)
    assert shown(opened, 0) == sorted(GENES, key=lambda name: [ord(c) for c in name.lower()])[:50]
    opened.find_element("id", "next").send_keys(Keys.SPACE)
    assert opened.find_element("id", "page").text == f"51 to 100 of {len(GENES)}"


def test_pager(opened):
    assert opened.find_element("id", "page").text == f"1 to 50 of {len(GENES)}"
    assert not opened.find_element("id", "previous").is_enabled()
    opened.find_element("id", "last").click()
    assert opened.find_element("id", "page").text == f"101 to {len(GENES)} of {len(GENES)}"
    assert not opened.find_element("id", "next").is_enabled() and len(shown(opened, 0)) == len(GENES) - 100


def test_search_finds_genes_with_special_characters(opened):
    field = opened.find_element("id", "search")
    for name in ["g77", *EVIL]:
        field.clear()
        field.send_keys(name.upper())
        assert name in shown(opened, 0), name
        wanted = sum(name.lower() in gene.lower() for gene in GENES)
        assert opened.find_element("id", "count").text == f"{wanted} of {len(GENES)} genes"
    field.clear()
    field.send_keys("no such gene")
    assert shown(opened, 0) == [] and opened.find_element("id", "page").text == "0 to 0 of 0"


def test_filter_significant_genes_of_another_contrast(opened, table):
    from selenium.webdriver.support.ui import Select

    Select(opened.find_element("id", "contrast")).select_by_visible_text("state[T.b]")
    opened.find_element("id", "significant").click()
    called = rows_of(table, "state[T.b]").query("adj_p_value <= 0.05")
    assert shown(opened, 0) == called["variable"].tolist() and len(called) >= 10
    articles = opened.find_elements("css selector", ".contrast")
    assert [one.is_displayed() for one in articles] == [False, True, False, False]
    assert opened.find_element("css selector", "#genes h2").text == "Genes: state[T.b]"


def test_every_plot_is_displayed(opened):
    script = "return [...document.images].map((one) => [one.alt, one.complete && one.naturalWidth > 0])"
    images = dict(opened.execute_script(script))
    assert all(images.values()) and {"Variance: all genes", "Variance partition: all genes", "QQ: state[T.c]"} <= set(
        images
    )


@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_the_window(opened, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_prints(opened):
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 4
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        articles = opened.find_elements("css selector", ".contrast")
        assert all(one.is_displayed() for one in articles)  # all contrasts are printed
        assert opened.find_element("css selector", "#table tbody tr").is_displayed()
        assert not opened.find_element("id", "search").is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_phone_shows_effect_p_value_and_fdr_without_scrolling(opened):
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for title in ("gene", "effect", "p", "FDR"):
            _, one = head(opened, title)
            box = opened.execute_script("return arguments[0].getBoundingClientRect().right", one)
            assert one.is_displayed() and box <= 360, title
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_download_has_the_rows_found(opened, table):
    script = "const made = URL.createObjectURL; const done = arguments[0];"
    script += "URL.createObjectURL = (blob) => { blob.text().then(done); return made(blob); };"
    text = opened.execute_async_script(script + "document.getElementById('download').click();")
    saved = pd.read_csv(io.StringIO(text))
    wanted = rows_of(table)
    assert saved["variable"].tolist() == wanted["variable"].tolist() and len(saved)
    np.testing.assert_allclose(saved["log_fc"], wanted["log_fc"], rtol=1e-3)
    np.testing.assert_allclose(saved["log10_p_value"], wanted["log10_p_value"], rtol=1e-3)


def test_methods_paragraph_names_model_and_software(fit, seen):
    text = " ".join("".join(seen.text).split())
    said = f"one linear mixed model per gene with the formula {FORMULA}, fitted to the expression values of {N} cells"
    assert said in text and f"lmm_gpu {lmm_gpu.__version__}" in text
