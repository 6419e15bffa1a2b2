"""The candidates of the runtime benchmark: peers and this package."""

from dataclasses import asdict

import numpy as np

from benchmarks.runtime_base import (
    Candidate,
    module_caller,
    need_bfloat16,
    num_layers,
)
from benchmarks.runtime_peers import PEERS
from benchmarks.runtime_torch import TORCH

__all__ = ["CANDIDATES"]


SERVING = ("benchmarks.runtime_models", "speechbrain_stablequant.runtime")


class Ours(Candidate):
    """This package: quantize, save, load, accelerate."""

    def __init__(self, title, bits, runtime="openvino", precision="auto"):
        super().__init__(title, f"ours_{bits}_{runtime}_{precision}".lower())
        self.bits, self.runtime, self.precision = bits, runtime, precision
        package = {"onnx": "onnxruntime"}.get(runtime, runtime)
        self.packages = (*SERVING, package)

    def check(self, preparing):
        """Also ask for bfloat16 instructions, as other candidates do."""
        super().check(preparing)
        if self.precision == "bf16":
            need_bfloat16()

    def prepare(self, case, threads):
        """Quantize and save, and fill the cache of compiled models."""
        import torch

        from speechbrain_stablequant import quantize, save_quantized

        module = case.module()
        arrays = case.calibration()
        tensors = [torch.from_numpy(array) for array in arrays]
        result = quantize(module, tensors, bits=self.bits, progress=False)
        folder = case.artefact(self.artefact)
        save_quantized(module, folder / "model.ckpt", result.plan)
        # A new shape is compared with plain torch once, and the cache notes
        # that: two lengths and two batch sizes, short ones.
        arrays = sorted(case.inputs(1), key=lambda array: array.shape[1])
        arrays = [*arrays[:2], np.repeat(arrays[0], 2, axis=0)]
        for number in threads:  # a compiled model is for one number
            call = self.load(case, number)
            for array in arrays:
                call(array)
        return {"coverage": result.coverage.fraction}

    def load(self, case, threads):
        """Load the checkpoint and hand it to the runtime."""
        import torch

        from speechbrain_stablequant import load_quantized
        from speechbrain_stablequant.runtime import accelerate

        torch.set_num_threads(threads)
        folder = case.artefact(self.artefact)
        module = case.skeleton().to_empty(device="cpu").requires_grad_(False)
        load_quantized(module, folder / "model.ckpt")
        self.loaded = accelerate(
            module,
            runtime=self.runtime,
            threads=threads,
            precision=self.precision,
            cache_folder=folder / "cache",
        )
        return module_caller(self.loaded)

    def facts(self, case):
        """Return what the runtime reports about itself."""
        from speechbrain_stablequant.runtime import runtime_report

        report = runtime_report(self.loaded)
        return {
            "int8_layers": [report.num_int8, num_layers(case)],
            "summary": report.summary(),
            "settings": report.settings,
            "units": [asdict(unit) for unit in report.units],
            "notes": report.notes,
        }

    def files(self, case):
        """Return the checkpoint; the cache can be made again from it."""
        return [case.artefact(self.artefact) / "model.ckpt"]


# The reference first.
CANDIDATES: dict[str, Candidate] = {
    **TORCH,
    **PEERS,
    "ours_w8a8_f32": Ours("ours W8A8, rest float32", "W8A8", precision="f32"),
    "ours_w8a8_bf16": Ours(
        "ours W8A8, rest bfloat16", "W8A8", precision="bf16"
    ),
    "ours_w4a8": Ours("ours W4A8", "W4A8"),
    "ours_w8a8_onnx": Ours("ours W8A8 on ONNX Runtime", "W8A8", "onnx"),
}
