"""The table of the runtime benchmark, and the figures in it."""

import statistics

import numpy as np

__all__ = ["agreement", "markdown", "summarize"]


def agreement(reference: np.ndarray, output: np.ndarray) -> dict:
    """Compare an output with the reference's.

    Returns
    -------
    dict
        ``cosine`` and ``snr_db``, None for what cannot be said: the same
        output has no noise. Or ``reason``, if shapes differ.

    Example
    -------
    >>> agreement(np.ones(4), np.full(4, 1.1))["snr_db"]
    20.0
    """
    if reference.shape != output.shape:
        return {"reason": f"shape {output.shape}, not {reference.shape}"}
    one, two = (x.astype(np.float64).ravel() for x in (reference, output))
    if not np.isfinite(two).all():
        return {"reason": "not finite"}
    signal, noise = float(one @ one), float(((one - two) ** 2).sum())
    norm = np.sqrt(signal * float(two @ two))
    return {
        "cosine": float(one @ two / norm) if norm else None,
        "snr_db": (
            round(float(10 * np.log10(signal / noise)), 2) if noise else None
        ),
    }


def summarize(row: dict, facts: dict) -> None:
    """Add medians and ranges to a row.

    Arguments
    ---------
    row : dict
        Row of a candidate, with all timings.
    facts : dict
        What is known of the inputs: their lengths and operations.
    """
    if row["status"] != "measured":
        return
    for batch, cell in row["batches"].items():
        units = sum(facts["batches"][batch]["units"])
        macs = sum(facts["batches"][batch]["macs"])
        totals = [sum(calls) for calls in cell["calls"]]
        references = [sum(calls) for calls in cell["reference_calls"]]
        ratios = [r / t for r, t in zip(references, totals)]
        cell["seconds_per_unit"] = _spread([t / units for t in totals])
        cell["ratio"] = _spread(ratios)
        cell["gmacs_per_second"] = macs / statistics.median(totals) / 1e9
    firsts = [calls[0] for calls in row["batches"]["1"]["calls"]]
    row["latency_seconds"] = _spread(firsts)


def _spread(values: list[float]) -> dict:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def markdown(results: dict) -> str:
    """Return the whole table: what it ran on, then a part for each model."""
    host = results["machine"]
    flags = [flag for flag, found in host["flags"].items() if found]
    packages = [f"{k} {v}" for k, v in host["packages"].items() if v]
    lines = [
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB; "
        f"{' '.join(flags)}; {host['date']}",
        f"Python {host['python']}, {', '.join(packages)}",
        f"`{results['command']}`",
        "",
        "Models have random weights: speed only. Time per second of real "
        "audio, or per real token, padding not counted; x: how many times as "
        "fast as PyTorch float32 in the same run, median (least–most) of "
        "repetitions. First: load from disk and first call; then: the same "
        "call later. Peak: of a process that only serves, and what its libraries take before the model is loaded. int8: layers that "
        "run in int8, of linear and convolution layers. SNR: against PyTorch "
        "float32 on the first input, random weights, so it says little about "
        "trained models.",
    ]
    for name, model in results["models"].items():
        lines += ["", f"**{name}, random weights**", ""]
        if not model["rows"]:
            lines.append(f"Not measured: {model.get('reason', 'interrupted')}")
            continue
        lengths = ", ".join(f"{length:g}" for length in model["lengths"])
        lines += [
            f"{model['num_parameters'] / 1e6:.1f} M parameters; "
            f"inputs of {lengths} {model['unit']}s",
            "",
            *_rows(model),
        ]
    return "\n".join(lines)


def _rows(model: dict) -> list[str]:
    """Return the lines of one model's table."""
    unit = "ms/s" if model["unit"] == "second" else "ms/token"
    columns = list(
        dict.fromkeys(
            (row["threads"], batch)
            for row in model["rows"]
            for batch in model["batches"]
        )
    )
    heads = [f"{unit}, {t} thr., batch {b}" for t, b in columns]
    heads += ["GMAC/s", "first s", "then ms", "peak MiB (libraries)", "disk MB"]
    heads += ["int8", "SNR dB"]
    lines = ["| candidate | " + " | ".join(heads) + " |"]
    lines += ["|---" + "|---:" * len(heads) + "|"]
    for name in dict.fromkeys(row["candidate"] for row in model["rows"]):
        rows = [r for r in model["rows"] if r["candidate"] == name]
        cells = [_speed(rows, threads, batch) for threads, batch in columns]
        measured = [r for r in rows if r["status"] == "measured"]
        cells += _once(measured[0]) if measured else [""] * 7
        lines.append(f"| {rows[0]['title']} | " + " | ".join(cells) + " |")
    return lines


def _speed(rows, threads, batch) -> str:
    row = next(r for r in rows if r["threads"] == threads)
    if row["status"] != "measured":
        # The reason once, not in every column.
        first = row is rows[0] and batch == "1"
        reason = row["reason"].replace("|", "/")
        return f"{row['status']}: {reason}" if first else "–"
    cell = row["batches"][batch]
    ratio = cell["ratio"]
    return (
        f"{1000 * cell['seconds_per_unit']['median']:.3g} "
        f"({ratio['median']:.2f}x, {ratio['min']:.2f}–{ratio['max']:.2f})"
    )


def _once(row: dict) -> list[str]:
    """Return what is said once: with the fewest threads, single inputs."""
    cell = row["batches"]["1"]
    layers, agree = row["facts"].get("int8_layers"), row["agreement"]
    snr = agree.get("snr_db")
    return [
        f"{cell['gmacs_per_second']:.0f}",
        f"{row['load_seconds'] + row['first_call_seconds']:.2f}",
        f"{1000 * row['latency_seconds']['median']:.0f}",
        f"{cell['peak_mib']:.0f} ({row['memory_before_mib']:.0f})",
        f"{row['num_bytes'] / 1e6:.1f}",
        f"{layers[0]}/{layers[1]}" if layers else "",
        agree.get("reason", "same" if snr is None else f"{snr:.1f}"),
    ]
