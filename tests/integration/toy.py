"""A CTC recipe in small, written the way SpeechBrain's recipes are.

Words of the alphabet ``abcdef`` are spelled in tones with some noise. Run as a
script it takes the arguments of any recipe: ``toy.py toy.yaml --key value``.
"""

import sys
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset

HERE = Path(__file__).parent
YAML = HERE / "toy.yaml"
ALPHABET = "abcdef"
WORDS = ("abe", "bad", "cab", "dec", "face", "fed", "be", "ad", "deaf", "cafe")
RATE, TONE = 16000, 1280  # 80 ms a letter
TEST_SETS = ("test-clean", "test-other")
BLOCK = """
ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
    checkpointer: !ref <checkpointer>
    plots: False
"""


def sound(text: str, seed: int, noise: float) -> torch.Tensor:
    """Return a text in tones; silence stands for a space."""
    rng = np.random.default_rng(seed)
    time = np.arange(TONE) / RATE
    window = np.hanning(TONE)
    parts = [np.zeros(TONE // 2)]
    for letter in text:
        wave = np.zeros(TONE)
        if letter != " ":
            pitch = 300.0 * 1.45 ** ALPHABET.index(letter)
            wave = np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6.28))
        parts.append(0.3 * window * wave * rng.uniform(0.6, 1.4))
    signal = np.concatenate([*parts, np.zeros(TONE // 2)])
    signal = signal + noise * rng.standard_normal(len(signal))
    return torch.from_numpy(signal.astype(np.float32))


def dataset(name: str, size: int, noise: float, encoder) -> DynamicItemDataset:
    """Return utterances of one to three words, shortest first."""
    rng = np.random.default_rng(sum(map(ord, name)))
    texts = [
        " ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(size)
    ]
    data = {
        f"{name}-{i}": {"wrd": text, "seed": i + 1000 * len(name)}
        for i, text in enumerate(sorted(texts, key=len))
    }
    items = DynamicItemDataset(data)
    items.add_dynamic_item(
        lambda wrd, seed: sound(wrd, seed, noise), ["wrd", "seed"], "sig"
    )
    items.add_dynamic_item(
        lambda wrd: torch.LongTensor(encoder.encode_sequence(list(wrd))),
        "wrd",
        "tokens",
    )
    items.add_dynamic_item(lambda wrd: wrd.split(" "), "wrd", "words")
    items.set_output_keys(["id", "sig", "words", "tokens"])
    return items


def datasets(hparams) -> dict[str, DynamicItemDataset]:
    """Return all sets by name."""
    encoder = hparams["label_encoder"]
    encoder.load_or_create(
        path=Path(hparams["save_folder"]) / "label_encoder.txt",
        from_iterables=[list(ALPHABET + " ")],
        special_labels={"blank_label": 0},
    )
    return {
        "train": dataset("train", 192, 0.03, encoder),
        "valid": dataset("valid", 18, 0.05, encoder),
        "test-clean": dataset("test-clean", 16, 0.05, encoder),
        "test-other": dataset("test-other", 12, 0.12, encoder),
    }


class ToyASR(sb.Brain):
    """Greedy CTC, with the hooks that recipes have."""

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        x = self.modules.wav2vec2(wavs, lens)
        x = self.modules.ctc_lin(self.modules.enc(x))
        return self.hparams.log_softmax(x), lens

    def decode(self, log_probs, lens):
        """Return the words of each utterance."""
        ids = sb.decoders.ctc_greedy_decode(log_probs, lens, blank_id=0)
        letters = self.hparams.label_encoder.decode_ndim(ids)
        return ["".join(word).split(" ") for word in letters]

    def compute_objectives(self, predictions, batch, stage):
        log_probs, lens = predictions
        tokens, token_lens = batch.tokens
        loss = self.hparams.ctc_cost(log_probs, tokens, lens, token_lens)
        if stage != sb.Stage.TRAIN:
            words = self.decode(log_probs, lens)
            self.wer_metric.append(batch.id, words, batch.words)
            self.cer_metric.append(batch.id, words, batch.words)
        return loss

    def on_stage_start(self, stage, epoch=None):
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()
            self.cer_metric = self.hparams.cer_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["CER"] = self.cer_metric.summarize("error_rate")
        stats["WER"] = self.wer_metric.summarize("error_rate")
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch}, self.train_stats, stats
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"]}, min_keys=["WER"], num_to_keep=2
            )
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        with open(self.hparams.test_wer_file, "w", encoding="utf-8") as file:
            self.wer_metric.write_stats(file)


def load(output_folder, overrides="", block=BLOCK) -> dict:
    """Load the hparams with a block appended.

    Arguments
    ---------
    output_folder : Path
        The experiment folder.
    overrides : str
        YAML, as the command line gives it.
    block : str
        The ``ptq`` block; empty for a run without the plugin.
    """
    text = YAML.read_text(encoding="utf-8") + block
    return load_hyperpyyaml(
        text, f"output_folder: {output_folder}\n{overrides}"
    )


def build(hparams, brain_class=ToyASR, run_opts=None):
    """Create the experiment folder and the Brain."""
    Path(hparams["save_folder"]).mkdir(parents=True, exist_ok=True)
    return brain_class(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
        checkpointer=hparams["checkpointer"],
    )


def run(hparams, brain_class=ToyASR, run_opts=None, tests=TEST_SETS):
    """Do what ``train.py`` does: fit, then evaluate each test set.

    Returns
    -------
    The Brain, and what ``evaluate`` has returned for each test set.
    """
    data = datasets(hparams)
    brain = build(hparams, brain_class, run_opts)
    brain.fit(
        brain.hparams.epoch_counter,
        data["train"],
        data["valid"],
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    return brain, [evaluate(brain, hparams, data, name) for name in tests]


def evaluate(brain, hparams, data, name):
    """Evaluate a test set as SpeechBrain's CTC recipe does."""
    brain.hparams.test_wer_file = f"{hparams['output_folder']}/wer_{name}.txt"
    return brain.evaluate(
        data[name],
        test_loader_kwargs=dict(hparams["test_dataloader_opts"]),
        min_key="WER",
    )


def main(arguments):
    """Run as a script."""
    path, run_opts, overrides = sb.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    text = Path(path).read_text(encoding="utf-8")
    hparams = load_hyperpyyaml(text, overrides)
    run(hparams, run_opts=run_opts)
    if torch.distributed.is_initialized():
        # Threads of gloo that still run at exit may abort the interpreter.
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
