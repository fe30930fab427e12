import math
from dataclasses import replace

import pytest

from tests.tvmquant.report.page import parse, table_named, table_rows
from tvmquant.output_record import OutputEntry, OutputRecord, PartRecord
from tvmquant.report.content import read_content
from tvmquant.report.page import render
from tvmquant.report.timing import Timing

HOSTILE = "</script><script>alert('&amp;')</script><b>x</b>"
# Attributes with which an element loads something by itself.
LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction", "ping"}


@pytest.fixture
def page(manifest, record):
    return parse(render(read_content(manifest, record)))


def test_the_headline(page, record, manifest):
    text = page.all("main")[0].all("section")[0].text
    assert f"Measured at {record.chosen.measured_ms:.3f} ms" in text
    assert "the speed of uniform w8a8 (measured)" in text
    assert "no operator computes in float" in text
    assert "latency 3ms: kept size 0.99x: kept" in text
    assert "latency 3ms (3ms; the plan takes 2.768ms)" in page.by_id("frontier").text
    assert manifest.target["triple"] in page.all("header")[0].text
    assert manifest.target["config"] in page.by_id("origin").text


@pytest.mark.parametrize("pairs", ["bounded", "free"])
def test_the_rounding_of_pairs_is_told(manifest, record, pairs):
    layers = [replace(i, weight_pairs=pairs if i.choice else "") for i in manifest.layers]
    page = parse(render(read_content(replace(manifest, layers=layers), record)))
    count = sum(bool(layer.choice) for layer in layers)
    expected = {"bounded": f"bounded in {count} of {count} layers", "free": "free"}[pairs]
    assert f"pairs of weights {expected}" in page.all("main")[0].all("section")[0].text


def test_the_table_of_layers(page, manifest, record):
    rows = table_rows(table_named(page, "Layers in execution order"))
    content = read_content(manifest, record)
    assert len(rows) == len(content.rows) + 1
    for row, found in zip(content.rows, rows, strict=False):
        assert found["layer"] == row.id
        assert found["width"] == row.choice
        assert found["reason"] == (row.record.reason if row.record else "")
        for choice, value in row.perturbation.items():
            assert found[choice].startswith(f"{value:.3g}")
    assert rows[-1]["layer"].startswith("everything else")


def test_outputs_and_their_parts(manifest, record):
    parts = [
        PartRecord(name="boxes", sqnr_db=41.25),
        PartRecord(name=HOSTILE, sqnr_db=0.0, constant=0.0),
    ]
    entries = [
        OutputEntry(name="out", sqnr_db=40.0, parts=parts),
        OutputEntry(name="same", sqnr_db=math.inf),
    ]
    outputs = OutputRecord(library=manifest.library["sha256"], items=8, outputs=entries)
    content = read_content(manifest, record, outputs)
    (caveat,) = content.caveats
    assert "a part of output 'out': its values are all 0" in caveat
    page = parse(render(content))
    rows = table_rows(table_named(page, "Outputs and their parts"))
    assert [row["SQNR"] for row in rows] == ["40.0 dB", "41.2 dB", "0.0 dB", "equal"]
    assert [row["part"] for row in rows] == ["", "boxes", HOSTILE, ""]
    assert "8 of the calibration items" in page.by_id("outputs").text


def test_kernels_are_named(page, manifest):
    rows = table_rows(table_named(page, "Kernels, named by"))
    assert ", ".join(row["kernels"] for row in rows) == ", ".join(
        layer.kernel for layer in manifest.layers
    )


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ('{"kind": "llvm", "mcpu": "znver4"}', "znver4 (x86_64-linux-gnu)"),
        ('{"kind": "llvm"}', "x86_64-linux-gnu"),
        ("llvm -mcpu=haswell", "llvm -mcpu=haswell"),
    ],
)
def test_the_processor_is_named(manifest, config, shown):
    target = {**manifest.target, "config": config, "triple": "x86_64-linux-gnu"}
    page = parse(render(read_content(replace(manifest, target=target))))
    assert page.all("header")[0].text.startswith(f"mixture {shown}, 1 thread")


def test_predicted_against_measured(page, record):
    rows = table_rows(table_named(page, "Uniform plans and the chosen one"))
    assert [row["plan"] for row in rows] == ["w8a8", "w4a8", "w4a4", "chosen"]
    assert rows[-1]["prediction off by"] == "-2.0 %"
    assert rows[0]["prediction off by"] == "+3.1 %"
    frontier = table_rows(table_named(page, "Plans of the frontier"))
    assert len(frontier) == len(record.frontier)


def test_every_plot_has_text_in_its_place(page):
    plots = [e for e in page.all("div") if e.attrs.get("class") == "plot"]
    assert [plot.attrs["id"].removeprefix("plot-") for plot in plots] == [
        "sensitivity", "frontier", "prediction", "time", "memory",
    ]  # fmt: skip
    for plot in plots:
        assert plot.attrs["role"] == "img"
        assert len(plot.attrs["aria-label"]) > 40
        assert "needs JavaScript" in plot.text
        assert page.by_id(f"{plot.attrs['id']}-data").attrs["type"] == "application/json"


def test_structure(page):
    ids = [e.attrs["id"] for e in page.all() if "id" in e.attrs]
    assert len(ids) == len(set(ids))
    links = [link.attrs["href"] for link in page.all("a")]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert page.all("html")[0].attrs["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("title")) == 1
    for table in page.all("table"):
        for cell in table.all("th"):
            assert cell.attrs["scope"] in ("col", "row")


def test_the_page_loads_nothing(page):
    assert not page.all("link", "img", "iframe", "object", "embed", "base", "form")
    assert not [e for e in page.all() if LOADS & e.attrs.keys()]
    (policy,) = [e for e in page.all("meta") if "http-equiv" in e.attrs]
    assert policy.attrs["content"].startswith("default-src 'none'")
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text


def test_without_a_record(manifest):
    page = parse(render(read_content(manifest)))
    assert not page.has("frontier")
    assert not page.has("prediction")
    assert "--latency" in page.by_id("tradeoff").text
    assert "--profile" in page.by_id("time").text
    assert not [e for e in page.all("div") if e.attrs.get("class") == "plot"]
    assert not page.has("plotly")
    rows = table_rows(table_named(page, "Layers in execution order"))
    assert [row["width"] for row in rows] == [row.choice for row in read_content(manifest).rows]


def test_profiled_without_a_record(manifest):
    times = tuple(0.001 * (i + 1) for i in range(len(manifest.layers)))
    page = parse(render(read_content(manifest).with_timing(Timing(times, 12.345, 1))))
    rows = table_rows(table_named(page, "Layers in execution order"))
    assert [float(row["measured ms"].split()[0]) for row in rows] == pytest.approx(times)
    assert "12.345 ms" in page.all("main")[0].all("section")[0].text
    assert page.has("plot-time")
    assert page.has("plotly")


def test_float_operators_are_listed_with_their_reasons(manifest):
    audit = [{"op": "softmax", "node": "last", "reason": "no <integer> form"}]
    page = parse(render(read_content(replace(manifest, float_audit=audit))))
    (row,) = table_rows(page.by_id("float").all("table")[0])
    assert row == {"node": "last", "operator": "softmax", "reason": "no <integer> form"}
    assert "1 operator computes in float" in page.all("main")[0].text


def test_a_float_library(manifest):
    layers = [replace(layer, choice="") for layer in manifest.layers]
    page = parse(render(read_content(replace(manifest, layers=layers))))
    assert "in float throughout" in page.all("main")[0].text
    assert "float library" in page.by_id("float").text


def test_names_are_text_not_markup(manifest, record):
    name = f"{HOSTILE}{'long' * 60}"
    ids = {manifest.layers[1].id: name}
    layers = [replace(layer, id=ids.get(layer.id, layer.id)) for layer in manifest.layers]
    records = [
        layer.model_copy(update={"id": ids.get(layer.id, layer.id), "reason": HOSTILE})
        for layer in record.layers
    ]
    hostile = replace(manifest, layers=layers, model={"name": HOSTILE, "path": HOSTILE})
    plain = parse(render(read_content(manifest, record)))
    content = read_content(hostile, record.model_copy(update={"layers": records}))
    page = parse(render(content))
    assert len(page.all("script")) == len(plain.all("script"))
    assert (
        page.all("h1")[0].text
        == page.all("title")[0].text.removesuffix(": tvmquant report")
        == HOSTILE
    )
    rows = table_rows(table_named(page, "Layers in execution order"))
    assert rows[1]["layer"] == name
    assert HOSTILE in [row["reason"] for row in rows]


def test_the_same_content_is_the_same_page(manifest, record):
    assert render(read_content(manifest, record)) == render(read_content(manifest, record))
