"""Other runtimes and their own quantizers, for the runtime benchmark."""

import json
from pathlib import Path

from benchmarks.runtime_base import Candidate, Unavailable, need_bfloat16
from benchmarks.runtime_machine import cpu_flags

__all__ = ["PEERS"]

OPSET = 17


def _export_ready(case):
    """Return the float module as exporters take it."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    # Fused attention of PyTorch is one opaque operator that ONNX lacks.
    torch.backends.mha.set_fastpath_enabled(False)
    module = case.module()
    for layer in module.modules():
        # Weight normalization would stay a computation, and its convolution
        # would not be quantized.
        if isinstance(layer, nn.Conv1d) and parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
    return module


class OpenVINO(Candidate):
    """OpenVINO with the float model, or with NNCF's quantized one."""

    packages = ("openvino",)
    path = "model.xml"

    def __init__(self, title, artefact, precision, int8=False):
        super().__init__(title, artefact)
        self.precision, self.int8 = precision, int8
        if int8:
            self.tools = ("nncf",)

    def check(self, preparing):
        """Also ask for bfloat16 instructions, if it uses them."""
        super().check(preparing)
        if self.precision == "bf16":
            need_bfloat16()

    def prepare(self, case, threads):
        """Convert, quantize if so, and save."""
        import openvino
        import torch

        module = _export_ready(case)
        arrays = case.calibration()
        with torch.no_grad():
            model = openvino.convert_model(
                module, example_input=torch.from_numpy(arrays[0])
            )
        if self.int8:
            model = self._quantize(model, arrays, "attention" in str(module))
        # The default compresses floats to float16; only a row that says
        # float32 must not.
        openvino.save_model(
            model,
            case.artefact(self.artefact) / self.path,
            compress_to_fp16=self.int8 or self.precision == "bf16",
        )
        return {}

    def _quantize(self, model, arrays, transformer):
        import nncf

        return nncf.quantize(
            model,
            nncf.Dataset(arrays),
            subset_size=len(arrays),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )

    def load(self, case, threads):
        """Compile the saved model."""
        import openvino

        self.compiled = openvino.Core().compile_model(
            case.artefact(self.artefact) / self.path,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": self.precision,
            },
        )
        request = self.compiled.create_infer_request()

        def call(array):
            request.infer([array], share_inputs=True)
            return request.get_output_tensor(0).data.copy()

        return call

    def facts(self, case):
        """Read the execution graph: what the plug-in really runs."""
        kinds = ("FullyConnected", "Convolution")
        precisions = []
        for node in self.compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if "layerType" in info and info["layerType"].astype(str) in kinds:
                precisions.append(info["runtimePrecision"].astype(str))
        int8 = sum(p in ("i8", "u8") for p in precisions)
        return {"int8_layers": [int8, len(precisions)]}


class OnnxRuntime(Candidate):
    """ONNX Runtime with the float model, or with its own static int8."""

    packages = ("onnxruntime",)
    tools = ("onnx",)
    integer = (
        "QLinearConv QLinearMatMul QGemm MatMulInteger ConvInteger "
        "MatMulIntegerToFloat DynamicQuantizeMatMul"
    ).split()
    floating = "Conv FusedConv MatMul FusedMatMul Gemm FusedGemm".split()

    def __init__(self, title, artefact, int8=False):
        super().__init__(title, artefact)
        self.int8 = int8

    def prepare(self, case, threads):
        """Export, and quantize if so."""
        import torch

        module = _export_ready(case)
        arrays = case.calibration()
        path = case.artefact(self.artefact) / "model.onnx"
        # The exporter that PyTorch now prefers fails on lengths that change.
        torch.onnx.export(
            module,
            (torch.from_numpy(arrays[0]),),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={
                n: {0: "batch", 1: "time"} for n in ("input", "output")
            },
            opset_version=OPSET,
            dynamo=False,
        )
        if self.int8:
            self._quantize(path, arrays)
        return {}

    def _quantize(self, path: Path, arrays):
        """Quantize in place: weights by channel, activations unsigned."""
        from onnxruntime.quantization import QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        ready = path.with_name("ready.onnx")
        quant_pre_process(path, ready, skip_symbolic_shape=True)
        path.unlink()
        quantize_static(
            ready,
            path,
            _Reader(arrays),
            # All other operators in int8 make it slower and less accurate.
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Pairs of 8-bit products overflow 16 bits without VNNI.
            reduce_range=not cpu_flags() & {"avx512_vnni", "avx_vnni"},
        )
        ready.unlink()

    def load(self, case, threads):
        """Make a session."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            case.artefact(self.artefact) / "model.onnx",
            options,
            providers=["CPUExecutionProvider"],
        )

        def call(array):
            return session.run(None, {"input": array})[0]

        return call

    def facts(self, case):
        """Count operators with weights in the graph as optimized."""
        import tempfile

        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = f"{folder}/optimized.onnx"
            onnxruntime.InferenceSession(
                case.artefact(self.artefact) / "model.onnx",
                options,
                providers=["CPUExecutionProvider"],
            )
            graph = onnx.load(options.optimized_model_filepath).graph
        # An input with at least two dimensions among the weights: not an
        # attention product, whose scales are weights, too.
        weights = {t.name for t in graph.initializer if len(t.dims) > 1}
        found = [n for n in graph.node if weights & set(n.input)]
        integer = sum(n.op_type in self.integer for n in found)
        floating = sum(n.op_type in self.floating for n in found)
        return {"int8_layers": [integer, integer + floating]}


class _Reader:
    """Calibration data as ONNX Runtime asks for it."""

    def __init__(self, arrays):
        self.arrays = iter(arrays)

    def get_next(self):
        """Return the next input, or None."""
        array = next(self.arrays, None)
        return None if array is None else {"input": array}


class CTranslate2(Candidate):
    """CTranslate2 in int8, for encoders of the wav2vec 2.0 shape."""

    packages = ("ctranslate2",)

    def prepare(self, case, threads):
        """Save as a folder of `transformers` and convert that."""
        import tempfile

        from ctranslate2.converters import TransformersConverter

        encoder = getattr(case.module(), "encoder", None)
        config = getattr(encoder, "config", None)
        kind = getattr(config, "model_type", None)
        if kind not in ("wav2vec2", "hubert") or not (
            config.do_stable_layer_norm and config.feat_extract_norm == "layer"
        ):
            raise Unavailable(
                "CTranslate2 has only the layer-norm variant of wav2vec 2.0"
            )
        with tempfile.TemporaryDirectory() as folder:
            self._save(encoder, folder)
            TransformersConverter(folder).convert(
                str(case.artefact(self.artefact)),
                quantization="int8",
                force=True,
            )
        return {}

    def _save(self, encoder, folder):
        """Save an encoder as a wav2vec 2.0 recognizer without head."""
        import transformers

        settings = encoder.config.to_dict()
        settings = {
            key: settings[key]
            for key in transformers.Wav2Vec2Config().to_dict()
            if key in settings and key not in ("architectures", "model_type")
        }
        config = transformers.Wav2Vec2Config(**settings, return_hidden=True)
        model = transformers.Wav2Vec2ForCTC(config)
        loaded = model.wav2vec2.load_state_dict(encoder.state_dict())
        assert not loaded.missing_keys
        model.save_pretrained(folder)
        path = Path(folder) / "vocabulary.json"
        names = ["<pad>", "<s>", "</s>", "<unk>", "|"]
        names += [f"<{i}>" for i in range(len(names), config.vocab_size)]
        path.write_text(json.dumps({n: i for i, n in enumerate(names)}))
        transformers.Wav2Vec2CTCTokenizer(str(path)).save_pretrained(folder)

    def load(self, case, threads):
        """Load the converted folder."""
        import ctranslate2
        import numpy as np

        model = ctranslate2.models.Wav2Vec2(
            str(case.artefact(self.artefact)),
            device="cpu",
            compute_type="int8",
            intra_threads=threads,
        )

        def call(array):
            view = ctranslate2.StorageView.from_array(array[:, None])
            return np.array(model.encode(view, to_cpu=True))

        return call


PEERS = {
    "openvino_f32": OpenVINO("OpenVINO float32", "openvino_f32", "f32"),
    "openvino_bf16": OpenVINO("OpenVINO bfloat16", "openvino_bf16", "bf16"),
    "nncf_int8_f32": OpenVINO(
        "OpenVINO, NNCF int8, rest float32", "nncf_int8", "f32", True
    ),
    "nncf_int8_bf16": OpenVINO(
        "OpenVINO, NNCF int8, rest bfloat16", "nncf_int8", "bf16", True
    ),
    "onnxruntime_f32": OnnxRuntime("ONNX Runtime float32", "onnxruntime_f32"),
    "onnxruntime_int8": OnnxRuntime(
        "ONNX Runtime QDQ int8", "onnxruntime_int8", True
    ),
    "ctranslate2_int8": CTranslate2("CTranslate2 int8", "ctranslate2_int8"),
}
