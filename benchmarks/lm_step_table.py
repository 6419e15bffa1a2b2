"""Tables of the benchmark of language-model steps."""

import statistics

__all__ = ["overhead_table", "search_table"]


def overhead_table(results) -> str:
    """Return the first table."""
    lines = [
        "| size | rows | scorer, prefix | model | added parameters % "
        "| ms a step | times the trunk's (quartiles) |",
        "|---|---:|---|---|---:|---:|---|",
    ]
    for cell in results:
        for row in cell["overhead"]:
            low, middle, high = row["ratio"]
            where = f"{row['scorer']}, {row['length']}"
            if row["scorer"] == "with cache":
                where = f"{row['scorer']}, 2-{row['length']}"
            ratio = f"{middle:.3f} ({low:.3f}-{high:.3f})"
            lines.append(
                f"| {cell['size']} | {cell['rows']} | {where} "
                f"| {row['model']} | {cell['added'].get(row['model'], 0):.1f} "
                f"| {1e3 * statistics.median(row['seconds']):.2f} "
                f"| {'' if row['model'] == 'trunk' else ratio} |"
            )
    return "\n".join(lines)


def search_table(results) -> str:
    """Return the second table."""
    lines = [
        "| size | rows | tokens | SpeechBrain's scorer s | with cache s "
        "| times as fast | greatest difference of scores |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in results:
        for row in cell["searches"]:
            mark = " (from some steps)" if row["interpolated"] else ""
            lines.append(
                f"| {cell['size']} | {cell['rows']} | {row['length']} "
                f"| {row['stock_seconds']:.2f}{mark} "
                f"| {row['cached_seconds']:.2f} | {row['speed_up']:.1f} "
                f"| {cell['difference']:.1e} |"
            )
    return "\n".join(lines)
