"""SpeechBrain's models through ``quantize``: all covered, all reached."""

import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.attention import RelPosEncXL

from speechbrain_stablequant import quantize
from tests.integration import folders


class Conformer(torch.nn.Module):
    """A Conformer encoder with its positions, as TransformerASR has it."""

    def __init__(self, attention_type="RelPosMHAXL"):
        super().__init__()
        self.positions = RelPosEncXL(64)
        self.encoder = ConformerEncoder(
            num_layers=1,
            d_model=64,
            d_ffn=128,
            nhead=4,
            kernel_size=7,
            attention_type=attention_type,
        )

    def forward(self, x):
        return self.encoder(x, pos_embs=self.positions(x))[0]


def models():
    """Return models with a batch each."""
    torch.manual_seed(5)
    lm = TransformerLM(
        vocab=200, d_model=64, nhead=4, num_encoder_layers=2, d_ffn=128
    )
    ecapa = ECAPA_TDNN(
        24,
        channels=[32] * 4 + [96],
        attention_channels=16,
        se_channels=16,
        res2net_scale=4,
        lin_neurons=32,
    )
    return {
        "ecapa": (ecapa, torch.randn(3, 40, 24)),
        "lm": (lm, torch.randint(1, 200, (2, 15))),
        "conformer": (Conformer(), torch.randn(2, 30, 64)),
    }


@pytest.mark.parametrize("name", ["ecapa", "lm", "conformer"])
@pytest.mark.parametrize("bits", ["W8A8", "W4A8"])
def test_everything_is_quantized(name, bits):
    model, batch = models()[name]
    model.eval()
    snapshot = folders.Snapshot(model)
    count = len(list(model.parameters()))
    with torch.no_grad():
        before = model(batch)
        result = quantize(model, [batch], bits=bits, progress=False)
        after = model(batch)
    assert result.coverage.fraction >= 0.95
    assert len(result.coverage.rows) == count
    # Every layer with inputs was reached by calibration.
    bare = {n for n, p in result.plan.layers.items() if not p.inputs}
    kinds = {result.plan.layers[n].kind for n in bare}
    assert kinds <= {"Embedding"}
    error = (after - before).norm() / before.norm()
    assert 0 < error < (0.1 if bits == "W8A8" else 0.6)
    result.restore()
    snapshot.check()
    with torch.no_grad():
        assert torch.equal(model(batch), before)


def test_no_weight_escapes(tmp_path):
    """Every matrix of the language model is integers, attention's too."""
    model, batch = models()["lm"]
    model.eval()
    result = quantize(model, [batch], bits="W4A8", progress=False)
    big = {n for n, p in model.named_parameters() if p.numel() >= 1024}
    assert not big
    names = {r.name for r in result.coverage.rows if r.status == "quantized"}
    assert sum(name.endswith("in_proj_weight") for name in names) == 2
    assert sum(name.endswith("out_proj.weight") for name in names) == 2
    # TransformerLMScorer asks the model for its first parameter.
    assert next(model.parameters()).dtype == torch.float32


def test_search_with_a_score(tmp_path):
    """StableQuant on a plain module: flags, cuts, and says what it cost."""
    model, batch = models()["ecapa"]
    model.eval()
    with torch.no_grad():
        reference = model(batch)

    def score(quantized):
        return float((quantized(batch) - reference).norm() / reference.norm())

    result = quantize(
        model,
        [batch],
        score=score,
        bits="W8A4",
        flag_threshold=0.01,
        percentiles=[100, 99.9, 99],
        output_folder=tmp_path,
        progress=False,
    )
    assert result.metrics["float"] == 0
    assert result.metrics["quantized"] > 0
    flagged = result.search["flagged"]
    assert flagged
    rows = result.search["sensitivity"]
    assert all(rows[u]["change"] > 0.01 for u in flagged)
    quiet = set(rows) - set(flagged)
    assert all(rows[u]["change"] <= 0.01 for u in quiet)
    for unit in flagged:
        assert result.search["percentiles"][unit]["chosen"] in (100, 99.9, 99)
    joint = result.search["joint"]
    assert joint["quantized"] == result.metrics["quantized"]
