"""The page: complete, self-contained, safe, and made again from its files."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from speechbrain_stablequant.report import Report, render_page, write_page
from speechbrain_stablequant.report.page import facts, pictures
from speechbrain_stablequant.report.page.render import fill_page
from tests.unit.report.helpers import (
    flagging_search,
    planned,
    search_report,
    with_statistics,
)
from tests.unit.report.test_report import result

EVIL = '<script>alert("x")</script>&$a$"\'><img src=x onerror=y>'
PICTURES = {
    "mixed": {"sizes", "front", "sensitivity", "bits", "histograms"},
    "stablequant": {"sizes", "sensitivity", "bits", "histograms"},
    "uniform": {"sizes", "bits", "histograms"},
}
SEARCHES = {
    "mixed": search_report,
    "stablequant": flagging_search,
    "uniform": dict,
}
VOID = {"meta", "input", "br", "img", "link"}


class Page(HTMLParser):
    """Reads a page, refusing tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.ids, self.texts, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "ptq", "stablequant")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "ptq")


@pytest.fixture
def report(made):
    return json.loads((made / "report.json").read_text())


def make(folder, method, name="test"):
    """Write the files of a report with one test."""
    report = Report(
        f"W8A8 {method}", with_statistics(planned(SEARCHES[method]()))
    )
    report.files = [
        {
            "name": "wav2vec2",
            "path": "/home/somebody/ptq/checkpoint/wav2vec2.ckpt",
            "num_bytes": 3000,
            "float_num_bytes": 15000,
            "float_measured_on": "checkpoint file",
        }
    ]
    report.add(result(name), seed=1)
    report.save(folder)
    return folder


@pytest.mark.parametrize("method", list(SEARCHES))
def test_page_has_the_figures_and_pictures(tmp_path, method):
    folder = make(tmp_path, method)
    page = Page(write_page(folder).read_text())
    saved = json.loads((folder / "report.json").read_text())
    wer = saved["tests"][0]["metrics"]["WER"]
    for value in (wer["float"], wer["quantized"]):
        assert f"{value:.2f}" in page.text
    assert f"{wer['low']:+.2f} to {wer['high']:+.2f}" in page.text
    assert "20.0 %" in page.text  # of the bytes on disk
    assert len(page.named("svg")) == len(PICTURES[method])
    for ending in ("png", "svg"):
        found = (folder / "plots").glob(f"*.{ending}")
        assert {path.stem for path in found} == PICTURES[method]
    for row in saved["coverage"]["parameters"]:
        assert row["name"] in page.text
    for row in saved["clipping"]:
        assert row["layer"] in page.text


def test_page_loads_nothing_and_names_no_folder(folder):
    text = write_page(folder).read_text()
    page = Page(text)
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(key, "#")
            assert value.startswith("#"), value
    assert not page.named("link")
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    policy = [m for m in page.named("meta") if "content" in m]
    assert any(m["content"].startswith("default-src 'none'") for m in policy)
    assert "/home/somebody" not in text
    assert str(folder) not in text


def test_page_is_accessible(folder):
    page = Page(write_page(folder).read_text())
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("h1")) == 1
    assert all(svg["role"] == "img" for svg in page.named("svg"))
    assert all(svg["aria-label"] for svg in page.named("svg"))
    assert all(th["scope"] in ("col", "row") for th in page.named("th"))
    assert len(page.ids) == len(set(page.ids))
    links = {a["href"][1:] for a in page.named("a") if "href" in a}
    assert links <= set(page.ids)


def test_pictures_follow_the_theme(folder):
    text = write_page(folder).read_text()
    svg = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "DejaVu" not in svg
    used = set(re.findall(r"var\((--plot-\w+)\)", svg))
    assert "--plot-red" in used
    style = text.split("</style>")[0]
    light, dark = style.split("prefers-color-scheme: dark")
    assert all(f"{name}:" in light for name in used)
    changed = used - {"--plot-on_light", "--plot-on_dark"}
    assert all(f"{name}:" in dark for name in changed)


def test_hostile_names_are_text(tmp_path):
    folder = make(tmp_path, "stablequant", name=EVIL)
    data = json.loads((folder / "report.json").read_text())
    text = json.dumps(data).replace("model.conv1", json.dumps(EVIL)[1:-1])
    (folder / "report.json").write_text(text)
    rows = (folder / "histograms.json").read_text()
    rows = rows.replace("model.conv1", json.dumps(EVIL)[1:-1])
    (folder / "histograms.json").write_text(rows)
    page = Page(write_page(folder).read_text())
    assert len(page.named("script")) == 1
    assert page.named("img") == []
    assert not any(key.startswith("on") for _, a in page.tags for key in a)
    assert page.text.count(EVIL) >= 3


def test_the_same_files_give_the_same_page(folder):
    first = write_page(folder).read_bytes()
    pictures_before = {
        p.name: p.read_bytes() for p in (folder / "plots").iterdir()
    }
    assert write_page(folder).read_bytes() == first
    for path in (folder / "plots").iterdir():
        assert path.read_bytes() == pictures_before[path.name]


def test_page_needs_no_histograms_and_no_test(tmp_path):
    report = Report("W8 given", planned({}))
    report.save(tmp_path)
    text = write_page(tmp_path).read_text()
    page = Page(text)
    assert "No quantized test pass has finished" in page.text
    assert "there are no histograms" in page.text
    data = json.loads((tmp_path / "report.json").read_text())
    assert render_page(data) == text


def test_many_layers_are_folded(tmp_path):
    report = json.loads((make(tmp_path, "uniform") / "report.json").read_text())
    rows = json.loads((tmp_path / "histograms.json").read_text())
    plan = next(c for c in report["clipping"] if c["layer"] == "model.conv1")
    names = [f"enc.{i}.{part}" for i in range(50) for part in "ab"]
    report["clipping"] = [
        {
            **plan,
            "layer": name,
            "unit": name.rpartition(".")[0],
            "clipped": i / 1e4,
        }
        for i, name in enumerate(names)
    ]
    histograms = [
        {**rows[0], "layer": n, "low": -i} for i, n in enumerate(names)
    ]
    page = Page(render_page(report, histograms))
    assert "30 of 100, clipped most first" in page.text
    # Ten folds of five units; then the tables of ranges and parameters.
    assert len(page.named("details")) >= 12
    assert "enc.0 … enc.4" in page.text
    assert all(f"{n} " in f"{page.text} " for n in names)


def test_layers_that_share_an_input_share_a_row(tmp_path):
    report = json.loads((make(tmp_path, "uniform") / "report.json").read_text())
    row = json.loads((tmp_path / "histograms.json").read_text())[0]
    plan = report["clipping"][0]
    names = ("q", "k", "v")
    report["clipping"] = [{**plan, "layer": n, "unit": "att"} for n in names]
    page = Page(render_page(report, [{**row, "layer": n} for n in names]))
    assert "q +2" in page.text


def test_a_picture_that_fails_is_left_out(folder, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("no bytes")

    monkeypatch.setattr(pictures.plots, "sizes_figure", fail)
    page = Page(write_page(folder).read_text())
    assert "'sizes' could not be drawn (ZeroDivisionError: no" in caplog.text
    assert len(page.named("svg")) == len(PICTURES["stablequant"]) - 1


def test_interrupts_pass_through(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures.plots, "sizes_figure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_page(folder)
    assert not (folder / "report.html").exists()


def test_a_lost_file_of_histograms_costs_their_pictures(folder):
    (folder / "histograms.json").unlink()
    page = Page(write_page(folder).read_text())
    assert "histograms.json ) are not beside report.json" in page.text
    assert len(page.named("svg")) == len(PICTURES["stablequant"]) - 1


def test_page_of_a_published_folder_names_no_other_files(folder, tmp_path):
    target = tmp_path / "hub"
    target.mkdir()
    shutil.copy(folder / "report.json", target)
    page = Page(write_page(target, published=True).read_text())
    assert {p.name for p in target.iterdir()} == {"report.json", "report.html"}
    for name in ("checkpoint/", "plots/", "items.json", "stablequant report"):
        assert name not in page.text
    assert "wav2vec2.ckpt" in page.text
    assert "{plan: plan.json}" in page.text
    report = json.loads((folder / "report.json").read_text())
    rows = json.loads((folder / "histograms.json").read_text())
    page = Page(render_page(report, rows, published=True))
    assert len(page.named("svg")) == len(PICTURES["stablequant"])
    assert "histograms.json" not in page.text


def test_trained_integers_are_not_given_again_by_the_plan(report):
    assert (
        "{plan: <output_folder>/ptq/plan.json}"
        in Page(fill_page(report, [])).text
    )
    report["plan"]["method"] = "quantization_aware"
    report["histograms"] = None
    page = Page(fill_page(report, []))
    assert "were trained: plan.json alone does not" in page.text
    assert "--ptq" not in page.text
    assert "The ranges were trained with the model" in page.text
    assert "plan was given" not in page.text
    report["plan"]["method"] = "uniform"
    report["layers"][0]["rounding"] = "gptq"
    page = Page(fill_page(report, []))
    assert "fitted to calibration data: plan.json alone" in page.text


def test_metrics_without_a_known_direction_have_no_verdict(report):
    row = {"float": 3.1, "quantized": 2.9, "change": -0.2, "low": -0.3}
    row.update(high=-0.1, items=3, unit="", lower_is_better=None)
    report["tests"][0]["metrics"] = {"pesq": row}
    page = Page(fill_page(report, []))
    assert "-0.20 -0.30 to -0.10" in page.text
    assert "Whether pesq should rise or fall is not known" in page.text
    assert "Lower is better" not in page.text
    assert "badge better" not in {a.get("class") for a in page.named("span")}
    row["lower_is_better"] = False
    page = Page(fill_page(report, []))
    assert "badge worse" in {a.get("class") for a in page.named("span")}
    assert "Higher is better for pesq." in page.text
    assert "not known" not in page.text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"quantized": None, "change": None}, "12.00 % not a number worse"),
        ({"float": None, "change": None}, "float is not a number"),
        ({"float": None, "change": ...}, "- 13.00 % float was not scored"),
    ],
)
def test_what_is_no_number_is_not_unscored(report, change, text):
    row = report["tests"][0]["metrics"]["WER"]
    row.update({"float": 12.0, "quantized": 13.0, "low": None, "high": None})
    row.update(change)
    row = {key: value for key, value in row.items() if value is not ...}
    report["tests"][0]["metrics"]["WER"] = row
    assert text in Page(fill_page(report, [])).text


def test_the_headline_is_what_a_search_would_go_by(folder):
    report = json.loads((folder / "report.json").read_text())
    report["search"] = {}
    metrics = report["tests"][0]["metrics"]
    report["tests"][0]["metrics"] = {
        "loss": metrics["loss"],
        "pesq": {**metrics["WER"], "unit": "", "lower_is_better": None},
        "CER": metrics["WER"],
        "WER": metrics["WER"],
    }
    assert [row["metric"] for row in facts.result_rows(report)] == [
        "WER", "CER", "pesq", "loss",
    ]  # fmt: skip
    assert facts.verdict(report).startswith("WER ")


def test_sizes_add_up_to_the_files(report):
    sizes = facts.size_parts(report)
    assert "buffers and header" not in sizes["float"]  # tensors in no file
    report["files"][0].update(float_num_bytes=40_000, num_bytes=30_000)
    sizes = facts.size_parts(report)
    assert sum(sizes["float"].values()) == 40_000
    assert sum(sizes["quantized"].values()) == 30_000
    assert "buffers and header" in Page(render_page(report)).text


def test_a_unit_that_was_not_cut_is_said_to_be_so(report):
    (cut,) = report["search"]["percentiles"].values()
    cut.update(chosen=100.0, confirmed={"100.0": {"change": 0.1}})
    text = Page(fill_page(report, [])).text
    assert "not cut +0.10" in text
    assert "100 %" not in text


def test_huge_values_have_a_power_of_ten(report):
    row = report["tests"][0]["metrics"]["WER"]
    row.update(quantized=1e300, change=1e300, low=1e299, high=1e301)
    text = Page(fill_page(report, [])).text
    assert "+1e+300 points" in text
    assert "+1e+299 to +1e+301" in text
    assert "0000000" not in text
