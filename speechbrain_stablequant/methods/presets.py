"""Presets: options of published systems, by name."""

from typing import Any, Optional

from speechbrain_stablequant.core.options import check_choice

__all__ = ["PRESETS", "preset_options"]

PRESETS: dict[str, dict[str, Any]] = {
    # Hong, Chung, Kang, "Optimization of DNN-based speaker verification model
    # through efficient quantization technique", 2024 (arXiv 2407.08991): each
    # layer has 8 or 32 bits. Which layers have 8 is a reconstruction: the six
    # 1x1 convolutions of the blocks and that of the multi-layer aggregation
    # give the size that is reported, for the model that is likely.
    "ecapa_tdnn_2024": {
        "method": "uniform",
        "bits": "W32",
        "layer_bits": {
            "*blocks.[1-9].tdnn[12].conv.conv": "W8A8",
            "*mfa.conv.conv": "W8A8",
        },
    },
}


def preset_options(name: Optional[str]) -> dict[str, Any]:
    """Return the options that a preset stands for.

    Arguments
    ---------
    name : str, optional
        ``ecapa_tdnn_2024``: the ECAPA-TDNN framework's selection of layers.
        None stands for no options.

    Returns
    -------
    dict
        Values by option.

    Raises
    ------
    KnobError
        If there is no such preset.

    Example
    -------
    >>> preset_options("ecapa_tdnn_2024")["bits"]
    'W32'
    """
    if name is None:
        return {}
    check_choice("preset", name, PRESETS)
    return dict(PRESETS[name])
