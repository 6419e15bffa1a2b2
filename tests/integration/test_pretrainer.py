"""Scripts without a Brain: the block quantizes what a pretrainer loads."""

import json

import pytest
import torch
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from speechbrain_stablequant import PostTrainingQuantizer, QuantizationPlan
from speechbrain_stablequant.errors import (
    CalibrationError,
    CoverageError,
    KnobError,
    PlanError,
)
from speechbrain_stablequant.layers import QuantizedModule

SIZE = 16


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(SIZE, SIZE), nn.BatchNorm1d(SIZE), nn.Linear(SIZE, SIZE)
    )


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [torch.randn(4, SIZE) for _ in range(8)]


@pytest.fixture
def load(tmp_path):
    """Return a function that loads modules through a pretrainer and a block."""

    def run(names=("encoder",), **knobs):
        paths = {}
        for name in names:
            paths[name] = f"{tmp_path}/{name}.ckpt"
            torch.save(network(len(name)).state_dict(), paths[name])
        loadables = {name: network() for name in names}
        pretrainer = Pretrainer(loadables=loadables, paths=paths)
        block = PostTrainingQuantizer(pretrainer=pretrainer, **knobs)
        pretrainer.collect_files()
        pretrainer.load_collected()
        return loadables, block

    return run


def quantized(module):
    return [
        n for n, m in module.named_modules() if isinstance(m, QuantizedModule)
    ]


def floats(name="encoder"):
    return network(len(name)).eval()


def check_close(module, data, name="encoder"):
    with torch.no_grad():
        wanted, found = floats(name)(data[0]), module.eval()(data[0])
    assert not torch.equal(wanted, found)
    assert float((wanted - found).norm() / wanted.norm()) < 0.03


@pytest.mark.parametrize("as_tuple", [False, True])
def test_what_is_loaded_is_quantized(load, data, as_tuple):
    batches = [(batch,) for batch in data] if as_tuple else data
    loaded, block = load(calibration_batches=batches)
    assert quantized(loaded["encoder"]) == ["0", "2"]
    norm = floats()[1]
    assert torch.equal(loaded["encoder"][1].running_mean, norm.running_mean)
    assert loaded["encoder"][1].training  # as it was
    check_close(loaded["encoder"], data)
    assert block.report.table().startswith("PTQ W8A8 uniform")


def test_results_are_written_where_the_block_says(load, data, tmp_path):
    folder = tmp_path / "ptq"
    load(calibration_batches=data, output_folder=str(folder), bits="W4A8")
    report = json.loads((folder / "report.json").read_text())
    assert report["coverage"]["fraction"] == 1.0
    assert report["runtime"] is None
    plan = QuantizationPlan.load(folder / "plan.json")
    assert set(plan.layers) == {"encoder.0", "encoder.2"}
    assert (folder / "checkpoint" / "encoder.ckpt").is_file()


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_integer_kernels_are_reported(load, data, tmp_path, caplog, runtime):
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    folder = tmp_path / "ptq"
    loaded, block = load(
        calibration_batches=data, output_folder=str(folder), runtime=runtime
    )
    assert "executed in int8" not in caplog.text  # nothing has run yet
    check_close(loaded["encoder"], data)
    assert caplog.text.count("2 of 2 layers executed in int8") == 1
    loaded["encoder"](data[1])
    assert caplog.text.count("2 of 2 layers executed in int8") == 1
    report = json.loads((folder / "report.json").read_text())
    assert report["runtime"]["num_int8"] == 2
    assert report["runtime"]["runtime"] == runtime
    assert block.execution.report is block.report


def test_model_that_leaves_the_cpu_is_noticed(load, data):
    loaded, _ = load(calibration_batches=data, runtime="openvino")
    model = loaded["encoder"].eval().to("meta")
    with pytest.raises(KnobError, match="is on meta.*--device cpu"):
        model(data[0])


# -- plans ---------------------------------------------------------------------


@pytest.fixture
def plan(load, data, tmp_path):
    """Return a plan for two modules."""
    folder = tmp_path / "first"
    load(
        ("encoder", "classifier"),
        calibration_batches=data,
        calibration_forward=lambda m, x: m["classifier"](m["encoder"](x)),
        output_folder=str(folder),
    )
    return folder / "plan.json"


def test_plan_of_more_modules_applies(load, data, plan, caplog):
    loaded, block = load(plan=plan)
    assert quantized(loaded["encoder"]) == ["0", "2"]
    check_close(loaded["encoder"], data)
    assert "left out 2 layers of classifier" in caplog.text
    assert block.report.table().startswith("PTQ plan plan.json")


def test_plan_of_other_modules_is_an_error(load, plan):
    with pytest.raises(
        PlanError, match=r"classifier, encoder.*has model.*!ref"
    ):
        load(("model",), plan=plan)


def test_layer_missing_within_a_module_is_an_error(load, plan):
    text = plan.read_text().replace("encoder.2", "encoder.3")
    plan.write_text(text)
    with pytest.raises(PlanError, match=r"'encoder\.3'.*mean 'encoder\.\d'"):
        load(plan=plan)


def test_module_that_the_plan_leaves_out_is_not_covered(load, plan):
    """Coverage counts all that is there: nothing stays float unnoticed."""
    text = json.loads(plan.read_text())
    text["layers"].pop("classifier.0")
    text["layers"].pop("classifier.2")
    plan.write_text(json.dumps(text))
    with pytest.raises(CoverageError, match="min_coverage"):
        load(("encoder", "classifier"), plan=plan)


# -- what cannot be done --------------------------------------------------------


def test_a_search_needs_a_metric(load, data):
    with pytest.raises(KnobError, match="neither a metric.*method: uniform"):
        load(calibration_batches=data, method="stablequant")


def test_activations_need_data(load):
    with pytest.raises(CalibrationError, match="needs calibration data"):
        load()


def test_several_modules_need_to_be_called(load, data):
    with pytest.raises(KnobError, match="calibration_forward.*encoder, head"):
        load(("encoder", "head"), calibration_batches=data)


def test_one_of_several_modules(load, data):
    loaded, _ = load(
        ("encoder", "head"), calibration_batches=data, modules=["head"]
    )
    assert quantized(loaded["encoder"]) == []
    check_close(loaded["head"], data, "head")


def test_unknown_module_names_the_nearest(load, data):
    with pytest.raises(KnobError, match="'encodr'.*Did you mean 'encoder'"):
        load(calibration_batches=data, modules=["encodr"])


def test_float_model_comes_back_after_an_error(load):
    def broken():
        yield torch.randn(4, SIZE)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        load(calibration_batches=broken())


def test_widths_within_a_size_go_by_the_output(load, data):
    knobs = {"method": "mixed_precision", "calibration_batches": data}
    loaded, block = load(target_size=0.95, **knobs)
    found = block.report.planned.search
    assert found["metric"] is None
    assert found["chosen"]["ratio"] <= 0.95
    inside = [row for row in found["front"] if row["ratio"] <= 0.95]
    least = min(row["distance"] for row in inside)
    assert found["chosen"]["distance"] == least
    assert quantized(loaded["encoder"])
    table = block.report.table()
    assert table.startswith("PTQ mixed_precision, target_size 0.95")


def test_a_drop_cannot_be_measured_here(load, data):
    with pytest.raises(KnobError, match="max_drop needs a metric"):
        load(method="mixed_precision", max_drop=0.1, calibration_batches=data)
    with pytest.raises(CalibrationError, match="calibration data"):
        load(method="mixed_precision", target_size=0.5)
