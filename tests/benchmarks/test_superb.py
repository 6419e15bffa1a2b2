"""The benchmark of frozen encoders: its table, what a later run adds."""

import pytest

from benchmarks import superb
from tests.recipes.superb import write_commands, write_voxceleb


def test_compares_and_resumes(tmp_path, monkeypatch):
    ran = []

    def fake_task(task, settings, source, folder, csv):
        ran.append((task, folder.parent.name))
        right = {"float": 8, "small": 6}[folder.parent.name]
        items = [[f"{n}", float(n >= right), 1.0] for n in range(10)]
        metric = {"KS": "accuracy", "ASR": "WER"}[task]
        value = 10.0 * (right if task == "KS" else 10 - right)
        return {
            "metric": metric,
            "value": value,
            "low": value - 5,
            "high": value + 5,
            "items": items,
            "seconds": 1.0,
        }

    monkeypatch.setattr(superb, "run_task", fake_task)
    encoders = {}
    for label, size in (("float", 4000), ("small", 1000)):
        encoders[label] = str(tmp_path / label)
        (tmp_path / label).mkdir()
        (tmp_path / label / "encoder.ckpt").write_bytes(bytes(size))
    path, tasks = tmp_path / "table.json", {"ASR": {"lr": 1}, "KS": {}}
    superb.run(path, {"float": encoders["float"]}, tasks)
    table = superb.run(path, encoders, tasks)
    assert len(ran) == len(set(ran)) == 4
    lines = superb.markdown(table).splitlines()
    assert "WER" in lines[0]
    assert "| float | 0.004 | 100.0 | 20.00 [15.00, 25.00] |" in lines[2]
    assert "40.00 (+20.00 [+0.00, +50.00])" in lines[3]
    assert "60.00 (-20.00 [-50.00, +0.00])" in lines[3]
    with pytest.raises(ValueError, match="other settings"):
        superb.run(path, encoders, {"ASR": {"lr": 2}})
    (tmp_path / "small" / "encoder.ckpt").write_bytes(bytes(3))
    with pytest.raises(ValueError, match="another label"):
        superb.run(path, encoders, tasks)

    pytest.importorskip("matplotlib")
    from benchmarks.superb_plot import draw, errors

    assert errors(table["rows"][1]["tasks"]["KS"]) == (40.0, 35.0, 45.0)
    titles = [axes.get_title("left") for axes in draw(table).axes]
    assert titles == ["ASR", "KS"]


def test_labels_are_counted(tmp_path):
    write_commands(tmp_path / "commands")
    write_voxceleb(tmp_path / "voxceleb")
    folders = {"KS": tmp_path / "commands", "SID": tmp_path / "voxceleb"}
    assert superb.count_classes(folders) == {"KS": 2, "SID": 5}
