"""Pictures: valid files, with all that is to be seen, always the same."""

from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from speechbrain_stablequant.report import plots
from speechbrain_stablequant.report.data import layer_rows
from speechbrain_stablequant.report.mixed_precision import (
    chosen_bits,
    layer_type,
)
from speechbrain_stablequant.report.pareto import Front, FrontPoint
from tests.unit.report.helpers import (
    flagging_search,
    planned,
    search_report,
    without_metric,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def search():
    return search_report()


def groups(svg: str) -> dict:
    """Return how many marks each named group of an SVG has, and its texts."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    found = {}
    for group in root.iter(f"{SVG}g"):
        name = group.get("id", "")
        found[name] = found.get(name, 0) + len(list(group.iter(f"{SVG}use")))
    found["texts"] = ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    found["ids"] = [g.get("id") for g in root.iter(f"{SVG}g")]
    return found


def check_png(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") > 600  # pixels wide
    assert b"IEND" in data[-12:]
    assert b"Software" not in data


def drawn(figure, tmp_path) -> dict:
    """Write a figure; return the marks and texts of its SVG."""
    png, svg = plots.save_figure(figure, tmp_path / "plots" / "figure")
    check_png(png)
    return groups(svg.read_text(encoding="utf-8"))


def test_front(search, tmp_path):
    found = drawn(plots.front_figure(Front.from_search(search)), tmp_path)
    assert found["measured"] == 1  # the one that is nan cannot be drawn
    assert found["efficient"] == 2
    assert found["efficient-beyond"] == 1
    assert found["chosen"] == 1
    assert {"staircase", "float", "budget"} <= set(found["ids"])
    texts = found["texts"]
    assert "float: EER 3.21" in texts
    assert "budget: max_drop 0.07" in texts
    assert "chosen: 20.0 %, EER 3.26" in texts
    assert "45" in texts  # what lies beyond says how far


def test_a_budget_of_size_is_drawn(search, tmp_path):
    search["budget"] = {"target_size": 0.25}
    svg = plots.svg_text(plots.front_figure(Front.from_search(search)))
    assert "budget: target_size 0.25" in groups(svg)["texts"]


def test_others_can_be_drawn_beside(search, tmp_path):
    extra = [
        FrontPoint(0.26, 3.3, 0.09, 0.0, 0.2, label="uniform mse"),
        FrontPoint(0.26, 3.35, label="uniform max"),
    ]
    front = Front.from_search(search, extra)
    svg = plots.svg_text(plots.front_figure(front))
    found = groups(svg)
    assert found["extra-0"] == found["extra-1"] == 1
    texts = " ".join(found["texts"])
    assert "26.0 %, 3.30 (+0.09 [+0.00, +0.20])" in texts
    assert "uniform max" in texts
    assert "side by side" in texts


def test_front_of_distances(search, tmp_path):
    front = Front.from_search(without_metric(search))
    found = groups(plots.svg_text(plots.front_figure(front)))
    assert "float" not in found["ids"]
    assert "distance of the output (squared, relative)" in found["texts"]


def test_nothing_to_draw_is_drawn_too(search, tmp_path):
    for point in search["front"]:
        point["value"] = float("nan")
    for row in search["sensitivity"]:
        row["distance"] = float("nan")
    assert plots.svg_text(plots.front_figure(Front.from_search(search)))
    chosen = chosen_bits(planned(search).plan, search)
    rows = layer_rows(planned(search))
    drawn(plots.sensitivity_figure(search, chosen, rows), tmp_path)


def test_sensitivity(search, tmp_path):
    chosen = chosen_bits(planned(search).plan, search)
    rows = layer_rows(planned(search))
    found = drawn(plots.sensitivity_figure(search, chosen, rows), tmp_path)
    assert found["ids"].count("plan") == 4
    # The common beginning of names is left out.
    assert {"conv1", "conv2", "embed", "fc"} <= set(found["texts"])
    assert {"W4A8", "W8A8", "W32"} <= set(found["texts"])
    # Only where the interval excludes zero
    assert found["texts"].count("+0.30") == 2
    assert "+0.01" not in found["texts"]


def test_a_large_model_shows_its_most_sensitive_layers(search, tmp_path):
    row = search["sensitivity"][0]
    search["sensitivity"] = [
        {**row, "layer": f"enc.{i}", "distance": (i + 1) * 1e-6}
        for i in range(120)
    ]
    chosen = {f"enc.{i}": "W4A8" for i in range(120)}
    svg = plots.svg_text(plots.sensitivity_figure(search, chosen, []))
    found = groups(svg)
    assert found["ids"].count("plan") == 90
    assert "119" in found["texts"]
    assert "29" not in found["texts"]
    assert any("90 most sensitive of 120" in t for t in found["texts"])


def test_the_same_data_gives_the_same_bytes(search, tmp_path):
    front = Front.from_search(search)
    first, second = (
        plots.save_figure(plots.front_figure(front), tmp_path / name)
        for name in "ab"
    )
    for path, other in zip(first, second):
        assert path.read_bytes() == other.read_bytes()


def test_the_users_own_style_and_backend_stay(search, tmp_path):
    import matplotlib

    matplotlib.rcParams["font.size"] = 31
    before = dict(matplotlib.rcParams)
    front = Front.from_search(search)
    ours = plots.svg_text(plots.front_figure(front))
    assert dict(matplotlib.rcParams) == before
    matplotlib.rcdefaults()
    again = plots.svg_text(plots.front_figure(front))
    assert ours == again


def test_units_show_what_was_flagged(tmp_path):
    search = flagging_search()
    found = drawn(plots.units_figure(search, 0.25), tmp_path)
    assert found["ids"].count("flagged") == 1
    assert found["ids"].count("unit") == 2
    assert found["ids"].count("interval") == 3
    assert "threshold" in found["ids"]
    texts = found["texts"]
    # Far beyond the others: drawn to the end, with its number
    assert "+12.50 ▸, cut at 99.9 %" in texts
    assert "+0.10" in texts
    assert any("flagged above 0.25" in text for text in texts)


def test_units_without_a_number_say_so(tmp_path):
    search = flagging_search()
    row = search["sensitivity"]["model.conv1"]
    row.update(change=None, low=None, high=None)
    found = drawn(plots.units_figure(search, 0.25), tmp_path)
    assert "not a number, cut at 99.9 %" in found["texts"]
    assert found["ids"].count("flagged") == 0


def test_of_many_units_the_most_sensitive_are_drawn(tmp_path):
    found = drawn(plots.units_figure(flagging_search(100), 0.25), tmp_path)
    assert found["ids"].count("unit") + found["ids"].count("flagged") == 60
    assert any("60 most sensitive of 100" in t for t in found["texts"])


def test_histograms_mark_what_is_clipped(tmp_path):
    row = {
        "layer": "a", "input": "x", "low": -4.0, "bin_width": 1.0,
        "counts": [1, 5, 50, 90, 80, 40, 6, 1], "range": [-2.0, 2.0],
        "percentile": 99.9, "clipped": 0.05,
    }  # fmt: skip
    whole = {**row, "layer": "b$c$", "range": [-4.0, 4.0], "percentile": 100.0}
    figure = plots.histograms_figure([row, {**whole, "same": 2}], "Inputs")
    kept, clipped = (
        next(c for c in figure.axes[0].collections if c.get_gid() == gid)
        for gid in ("kept", "clipped")
    )
    assert len(kept.get_paths()) == 2
    assert len(clipped.get_paths()) == 1
    found = drawn(figure, tmp_path)
    assert {"-2 to 2, cut at 99.9 %", "-4 to 4"} <= set(found["texts"])
    assert "b$c$ +2" in found["texts"]  # no formula


@pytest.mark.parametrize("count", [3, 60])
def test_bits_of_layers_and_of_types(tmp_path, count):
    rows = [
        {
            "layer": f"enc.{i}.conv",
            "bits": "W8A8" if i else "W32",
            "float_num_bytes": 4000,
            "num_bytes": 1000 if i else 4000,
        }
        for i in range(count)
    ]
    figure = plots.bits_figure(rows, layer_type)
    found = drawn(figure, tmp_path)
    assert {"W8A8", "W32"} <= set(found["texts"])
    if count == 3:
        assert {"0.conv", "1.conv", "2.conv"} <= set(found["texts"])
        assert "count" not in found["ids"]
    else:
        assert "enc.*.conv" in found["texts"]
        assert {"1", "59"} <= set(found["texts"])


def test_sizes_add_up(tmp_path):
    sizes = {
        "float": {
            "weights in float": 4_000_000,
            "biases, norms, gains": 10_000,
        },
        "quantized": {"integers": 1_000_000, "scales": 5_000},
    }
    found = drawn(plots.sizes_figure(sizes), tmp_path)
    assert {"4.010 MB", "1.005 MB"} <= set(found["texts"])
    assert {"integers", "scales"} <= set(found["texts"])
    assert "MB, tensors of all modules" in found["texts"]


def test_sizes_of_files(tmp_path):
    rest = {"buffers and header": 2_000_000}
    sizes = {
        "float": {"weights in float": 4_000_000, **rest},
        "quantized": {"integers": 1_000_000, **rest},
    }
    found = drawn(plots.sizes_figure(sizes), tmp_path)
    assert {"6.000 MB", "3.000 MB", "MB, files"} <= set(found["texts"])
    assert "buffers and header" in found["texts"]


def test_both_pictures_of_layers_have_the_same_bytes(search):
    rows = layer_rows(planned(search))
    chosen = chosen_bits(planned(search).plan, search)

    def widths(figure):
        (bars,) = (
            a for a in figure.axes if a.get_title(loc="left")[:2] == "MB"
        )
        return [bar.get_width() for bar in bars.patches]

    first = widths(plots.bits_figure(rows, str))
    assert first == widths(plots.sensitivity_figure(search, chosen, rows))
    floats = [row["float_num_bytes"] / 1e6 for row in rows]
    assert first[: len(rows)] == floats
    assert all(width > 0 for width in first)


@pytest.mark.parametrize("candidates", [["W8A8"], ["W4A8", "W8A8", "W32"]])
def test_titles_do_not_overlap(search, candidates):
    search["sensitivity"] = [
        row for row in search["sensitivity"] if row["bits"] in candidates
    ]
    chosen = {row["layer"]: "W8A8" for row in search["sensitivity"]}
    figure = plots.sensitivity_figure(search, chosen, [])
    FigureCanvasAgg(figure).draw()
    title, *others = (
        text.get_window_extent()
        for text in (figure._suptitle, *(a._left_title for a in figure.axes))
        if text.get_text()
    )
    assert others
    assert not any(title.overlaps(other) for other in others)


def test_speed_without_a_float_pass(tmp_path):
    rows = [("clean", 0.5, 0.25), ("other", None, 0.3)]
    found = drawn(plots.speed_figure("real-time factor", rows), tmp_path)
    assert {"0.5", "0.25, 2.00 times as fast", "0.3"} <= set(found["texts"])
    assert {"clean", "other"} <= set(found["texts"])


def test_logarithmic_scales_have_plain_labels(search, tmp_path):
    chosen = chosen_bits(planned(search).plan, search)
    svg = plots.svg_text(plots.sensitivity_figure(search, chosen, []))
    front = Front.from_search(without_metric(search))
    other = plots.svg_text(plots.front_figure(front))
    texts = groups(svg)["texts"] + groups(other)["texts"]
    assert any(text.startswith("10⁻") for text in texts)
    assert not any("$" in text for text in texts)
