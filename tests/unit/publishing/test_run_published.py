"""Tensors that no file fills are found wherever an interface hides them."""

from types import SimpleNamespace

import torch
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.nnet.linear import Linear
from speechbrain.processing.features import InputNormalization
from torch import nn

from speechbrain_stablequant.publishing.run_published import unloaded_parameters


def interface(modules, loadables, **hparams):
    pretrainer = SimpleNamespace(loadables=loadables)
    return SimpleNamespace(
        mods=nn.ModuleDict(modules),
        hparams=SimpleNamespace(pretrainer=pretrainer, **hparams),
    )


def test_all_is_loaded():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert unloaded_parameters(interface({"a": model}, {"a": model})) == []


def test_part_of_a_module_is_not():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    found = unloaded_parameters(interface({"a": model}, {"x": model[0]}))
    assert found == [
        *("a.1.weight", "a.1.bias", "a.1.running_mean", "a.1.running_var"),
        "a.1.num_batches_tracked",
    ]


def test_weights_in_a_scorer():
    """A scorer is no module, and neither is what builds it."""
    linear = Linear(n_neurons=5, input_size=3)
    scorer = CTCScorer(ctc_fc=linear, blank_index=0, eos_index=1)
    builder = ScorerBuilder(full_scorers=[scorer], weights={"ctc": 0.4})
    model = nn.Linear(2, 2)
    lacking = unloaded_parameters(
        interface({"a": model}, {"a": model}, search=[builder])
    )
    assert len(lacking) == 2
    assert all(name.startswith("search.") for name in lacking)
    both = {"a": model, "ctc": linear}
    assert unloaded_parameters(interface(both, both, search=builder)) == []


def test_normalization_without_statistics():
    norm = InputNormalization(norm_type="global")
    found = unloaded_parameters(interface({"n": norm}, {"n": norm}))
    assert found == ["n: no statistics of a corpus"]
    norm(torch.randn(2, 9, 4), torch.ones(2), epoch=0)
    assert unloaded_parameters(interface({"n": norm}, {"n": norm})) == []
    sentence = InputNormalization(norm_type="sentence")
    assert unloaded_parameters(interface({"n": sentence}, {})) == []
