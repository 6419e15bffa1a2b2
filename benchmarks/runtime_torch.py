"""PyTorch's own ways to be faster, for the runtime benchmark."""

import json
import time

from benchmarks.runtime_base import Candidate, module_caller, num_layers

__all__ = ["TORCH", "Torch"]


class Torch(Candidate):
    """Float32 as it comes, or through ``torch.compile``."""

    packages = ("torch", "benchmarks.runtime_models")

    def __init__(self, title, artefact="torch", compiled=False):
        super().__init__(title, artefact)
        self.compiled = compiled

    def module(self, case):
        """Return the module that serves."""
        return case.module()

    def load(self, case, threads):
        """Load the module."""
        import torch

        torch.set_num_threads(threads)
        self.loaded = module = self.module(case)
        if self.compiled:
            # Every length is new: without this the first ones are compiled
            # for themselves.
            module = torch.compile(module, dynamic=True)
        return module_caller(module)

    def files(self, case):
        """Return the float weights, or what `prepare` wrote."""
        return super().files(case) or [case.weights]


class TorchBfloat16(Torch):
    """bfloat16 weights or autocast, whichever is quicker on this machine."""

    def prepare(self, case, threads):
        """Time both, and write the weights if they win."""
        import torch

        module = case.module().to(torch.bfloat16)
        seconds, reason = {}, None
        try:
            seconds["weights"] = _seconds(module, case)
        except RuntimeError as err:  # masks made in float32, for example
            reason = str(err).splitlines()[0]
        seconds["autocast"] = _seconds(self._autocast(case.module()), case)
        chosen = min(seconds, key=seconds.get)
        if chosen == "weights":
            path = case.artefact(self.artefact) / "bfloat16.pt"
            torch.save(module.state_dict(), path)
        return {"chosen": chosen, "seconds": seconds, "weights_fail": reason}

    def module(self, case):
        """Return the module in the way that was chosen."""
        import torch

        path = case.artefact(self.artefact) / "bfloat16.pt"
        if not path.is_file():
            return self._autocast(case.module())
        module = case.skeleton()
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False)

    def _autocast(self, module):
        import torch

        automatic = torch.autocast("cpu", dtype=torch.bfloat16)
        module.forward = automatic(module.forward)
        return module


class TorchDynamic(Torch):
    """``quantize_dynamic`` of ``nn.Linear``, with the quickest engine."""

    def prepare(self, case, threads):
        """Time all engines and write the weights of the quickest."""
        import torch

        names = _called_layers(case)
        seconds, states = {}, {}
        for engine in torch.backends.quantized.supported_engines:
            if engine in ("none", "qnnpack"):  # qnnpack is for ARM
                continue
            torch.backends.quantized.engine = engine
            module = self._convert(case.module(), names)
            seconds[engine] = _seconds(module, case)
            states[engine] = module.state_dict()
        chosen = min(seconds, key=seconds.get)
        folder = case.artefact(self.artefact)
        torch.save(states[chosen], folder / "int8.pt")
        settings = {"engine": chosen, "layers": names}
        (folder / "settings.json").write_text(json.dumps(settings))
        return {"chosen": chosen, "seconds": seconds}

    def module(self, case):
        """Return the module with the packed weights."""
        import torch

        folder = case.artefact(self.artefact)
        settings = json.loads((folder / "settings.json").read_text())
        torch.backends.quantized.engine = settings["engine"]
        module = case.skeleton().to_empty(device="cpu")
        module = self._convert(module, settings["layers"])
        # Packed weights are pickled objects; the file is our own.
        state = torch.load(folder / "int8.pt", weights_only=False)
        module.load_state_dict(state)
        return module.requires_grad_(False)

    def _convert(self, module, names):
        import torch

        config = torch.ao.quantization.default_dynamic_qconfig
        return torch.ao.quantization.quantize_dynamic(
            module, dict.fromkeys(names, config), inplace=True
        )

    def facts(self, case):
        """Count the converted modules."""
        import torch

        kind = torch.ao.nn.quantized.dynamic.Linear
        found = sum(isinstance(m, kind) for m in self.loaded.modules())
        return {"int8_layers": [found, num_layers(case)]}


class TorchAO(Torch):
    """``Int8DynamicActivationInt8Weight`` of torchao, compiled."""

    packages = (*Torch.packages, "torchao")

    def prepare(self, case, threads):
        """Quantize and write the weights."""
        import torch
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            quantize_,
        )

        module = case.module()
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        path = case.artefact(self.artefact) / "int8.pt"
        torch.save(module.state_dict(), path)
        return {}

    def module(self, case):
        """Return the module with the weights."""
        import torch

        path = case.artefact(self.artefact) / "int8.pt"
        module = case.skeleton()
        state = torch.load(path, weights_only=False)
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False)

    def facts(self, case):
        """Count weights of torchao's type."""
        found = sum(
            type(p.data).__module__.startswith("torchao")
            for p in self.loaded.parameters()
        )
        return {"int8_layers": [found, num_layers(case)]}


def _called_layers(case) -> list[str]:
    """Return names of the linear layers that are called.

    Of others only the weight is read (WavLM's attention, PyTorch's own), and
    converted they make the model fail.
    """
    import torch

    module, called = case.module(), []
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(
                lambda *_, name=name: called.append(name)
            )
    module_caller(module)(case.inputs(1)[0])
    return sorted(set(called))


def _seconds(module, case) -> float:
    """Return the time of the second call, of the first input."""
    call, array = module_caller(module), case.inputs(1)[0]
    call(array)
    start = time.perf_counter()
    call(array)
    return time.perf_counter() - start


TORCH = {
    "eager": Torch("PyTorch float32"),
    "torch_bf16": TorchBfloat16("PyTorch bfloat16", "torch_bf16"),
    "torch_compile": Torch("torch.compile float32", compiled=True),
    "torch_dynamic_int8": TorchDynamic(
        "torch.ao dynamic int8", "torch_dynamic_int8"
    ),
    "torchao_int8": TorchAO(
        "torchao dynamic int8, compiled", "torchao_int8", compiled=True
    ),
}
