#!/usr/bin/env python3
"""Makes a folder that stock SpeechBrain loads with WaveformEncoder.

> python publish_encoder.py EXPERIMENT OUT
> python publish_encoder.py EXPERIMENT/ptq/checkpoint OUT

EXPERIMENT is the output folder of a recipe that trained a wav2vec 2.0, HuBERT
or WavLM encoder: this one, or an ASR recipe such as SpeechCommands. OUT gets
``hyperparams.yaml``, with the architecture in it, and ``encoder.ckpt``:

>>> WaveformEncoder.from_hparams(source="OUT")  # doctest: +SKIP

where a quantized encoder needs speechbrain_stablequant to be installed.
"""

import argparse
import json
import shutil
from pathlib import Path

import yaml
from downstream import wrapper_name
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.artifacts.experiment import is_quantized
from speechbrain_stablequant.artifacts.hyperparams import (
    Definitions,
    arguments,
    plain,
)
from speechbrain_stablequant.publishing.interfaces.encoder import config_of

logger = get_logger(__name__)

MODULES = ("encoder", "wav2vec2", "hubert", "wavlm")
CONFIG_FILE = "encoder_config.json"
HEADER = """\
# ################################
# Self-supervised encoder: {name}, {kind} weights
# > WaveformEncoder.from_hparams(source="this folder")
# ################################

"""
TAIL = """
modules:
   encoder: !ref <encoder>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
   loadables:
      encoder: !ref <encoder>
"""
HOOK = """\
   custom_hooks:
      encoder: !name:speechbrain_stablequant.load_quantized
"""


def write_encoder(config, weights, out):
    """Writes the folder.

    Arguments
    ---------
    config : dict
        What ``config_of`` returns.
    weights : str
        Checkpoint of the wrapper, float or quantized.
    out : str
        The folder, made where it is not there.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    quantized = is_quantized(weights)
    name = wrapper_name(config["model_type"], weights)
    block = yaml.safe_dump({"source": config}, sort_keys=False)
    text = HEADER.format(name=name, kind="quantized" if quantized else "float")
    text += f"encoder: !new:speechbrain_stablequant.models.{name}\n"
    text += "".join(f"   {line}\n" for line in block.splitlines())
    text += TAIL + (HOOK if quantized else "")
    shutil.copyfile(weights, out / "encoder.ckpt")
    # Last, so that a folder with it is complete
    (out / "hyperparams.yaml").write_text(text, encoding="utf-8")
    logger.info(f"{out}: {name}, {(out / 'encoder.ckpt').stat().st_size} bytes")


def read_config(experiment, module):
    """Finds the architecture of an experiment's encoder.

    Arguments
    ---------
    experiment : pathlib.Path
        Its output folder.
    module : str
        Name of the encoder in its YAML.

    Returns
    -------
    config : dict
        As ``config_of`` returns it.
    """
    if (experiment / CONFIG_FILE).is_file():
        return json.loads((experiment / CONFIG_FILE).read_text())
    path = experiment / "hyperparams.yaml"
    node = Definitions.load(path).get(module)
    given = {} if node is None else arguments(node)
    source = plain(given["source"]) if "source" in given else None
    if isinstance(source, dict):
        return source
    if source is None:
        raise ValueError(
            f"{path} has no {module} with a source: name the module of the "
            "encoder with --module."
        )
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers import AutoConfig

    from speechbrain_stablequant.models import huggingface

    name = wrapper_name(AutoConfig.from_pretrained(source).model_type, source)
    return config_of(getattr(huggingface, name)(source, HF_HUB_CACHE))


def find_weights(folder, module=None):
    """Finds the checkpoint of the encoder and the experiment it is of.

    Arguments
    ---------
    folder : str
        An experiment, whose newest checkpoint counts, or one of its
        checkpoint folders.
    module : str, optional
        Name of the encoder; by default the first known one.

    Returns
    -------
    weights : pathlib.Path
    experiment : pathlib.Path
    module : str
    """
    folder = Path(folder).resolve()
    checkpoint = folder
    if (folder / "save").is_dir():
        newest = Checkpointer(folder / "save").find_checkpoint()
        if newest is None:
            raise FileNotFoundError(f"{folder}/save has no checkpoint.")
        checkpoint = Path(newest.path)
    names = MODULES if module is None else (module,)
    found = [n for n in names if (checkpoint / f"{n}.ckpt").is_file()]
    if not found:
        raise FileNotFoundError(
            f"{checkpoint} has none of {', '.join(names)} (.ckpt). Give an "
            "experiment, save/CKPT+..., or ptq/checkpoint of one."
        )
    experiment = next(
        (p for p in checkpoint.parents if (p / "hyperparams.yaml").is_file()),
        None,
    )
    if experiment is None:
        raise FileNotFoundError(
            f"No hyperparams.yaml above {checkpoint}: the architecture is "
            "read from that of the experiment."
        )
    return checkpoint / f"{found[0]}.ckpt", experiment, found[0]


def publish_encoder(folder, out, module=None):
    """Makes the folder from an experiment.

    Arguments
    ---------
    folder : str
        An experiment or one of its checkpoint folders.
    out : str
        The folder to make.
    module : str, optional
        Name of the encoder in the experiment.
    """
    weights, experiment, module = find_weights(folder, module)
    write_encoder(read_config(experiment, module), weights, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="an experiment or a checkpoint folder")
    parser.add_argument("out", help="the folder to make")
    parser.add_argument("--module", help="name of the encoder in the YAML")
    given = parser.parse_args()
    publish_encoder(given.folder, given.out, given.module)
