"""Pictures: valid files, with all that is to be seen, always the same."""

from xml.etree import ElementTree

import pytest

from speechbrain_stablequant.report import plots
from speechbrain_stablequant.report.front import chosen_bits
from speechbrain_stablequant.report.points import Front, FrontPoint

from .helpers import planned, search_report, without_metric

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def search():
    return search_report()


def groups(path) -> dict:
    """Return how many marks each named group of an SVG has, and its texts."""
    root = ElementTree.parse(path).getroot()
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


def test_front(search, tmp_path):
    png, svg = plots.plot_front(Front.from_search(search), tmp_path / "front")
    check_png(png)
    found = groups(svg)
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
    _, svg = plots.plot_front(Front.from_search(search), tmp_path / "front")
    assert "budget: target_size 0.25" in groups(svg)["texts"]


def test_others_can_be_drawn_beside(search, tmp_path):
    extra = [
        FrontPoint(0.26, 3.3, 0.09, 0.0, 0.2, label="uniform mse"),
        FrontPoint(0.26, 3.35, label="uniform max"),
    ]
    front = Front.from_search(search, extra)
    _, svg = plots.plot_front(front, tmp_path / "front")
    found = groups(svg)
    assert found["extra-0"] == found["extra-1"] == 1
    texts = " ".join(found["texts"])
    assert "26.0 %, 3.30 (+0.09 [+0.00, +0.20])" in texts
    assert "uniform max" in texts
    assert "side by side" in texts


def test_front_of_distances(search, tmp_path):
    front = Front.from_search(without_metric(search))
    png, svg = plots.plot_front(front, tmp_path / "front")
    check_png(png)
    found = groups(svg)
    assert "float" not in found["ids"]
    assert "distance of the output (squared, relative)" in found["texts"]


def test_nothing_to_draw_is_drawn_too(search, tmp_path):
    for point in search["front"]:
        point["value"] = float("nan")
    for row in search["sensitivity"]:
        row["distance"] = float("nan")
    for path in plots.plot_front(Front.from_search(search), tmp_path / "f"):
        assert path.stat().st_size
    chosen = chosen_bits(planned(search).plan, search)
    check_png(plots.plot_sensitivity(search, chosen, tmp_path / "s")[0])


def test_sensitivity(search, tmp_path):
    chosen = chosen_bits(planned(search).plan, search)
    png, svg = plots.plot_sensitivity(search, chosen, tmp_path / "s")
    check_png(png)
    found = groups(svg)
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
    _, svg = plots.plot_sensitivity(search, chosen, tmp_path / "s")
    found = groups(svg)
    assert found["ids"].count("plan") == 90
    assert "119" in found["texts"]
    assert "29" not in found["texts"]
    assert any("90 most sensitive of 120" in t for t in found["texts"])


def test_the_same_data_gives_the_same_bytes(search, tmp_path):
    chosen = chosen_bits(planned(search).plan, search)
    files = []
    for name in ("a", "b"):
        files.append(
            [
                *plots.plot_front(Front.from_search(search), tmp_path / name),
                *plots.plot_sensitivity(search, chosen, tmp_path / f"s{name}"),
            ]
        )
    for first, second in zip(*files):
        assert first.read_bytes() == second.read_bytes()


def test_the_users_own_style_and_backend_stay(search, tmp_path):
    import matplotlib

    matplotlib.rcParams["font.size"] = 31
    before = dict(matplotlib.rcParams)
    front = Front.from_search(search)
    _, ours = plots.plot_front(front, tmp_path / "a")
    assert dict(matplotlib.rcParams) == before
    matplotlib.rcdefaults()
    _, again = plots.plot_front(front, tmp_path / "b")
    assert ours.read_bytes() == again.read_bytes()
