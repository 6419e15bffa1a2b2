"""``stablequant report``: make the page of an experiment again."""

NAME = "report"
HELP = "Make ptq/report.html again from ptq/report.json."
EXAMPLES = """
stablequant report results/wav2vec2/1986
"""


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "experiment", help="output folder of the recipe, or its ptq folder"
    )


def run(arguments) -> dict:
    """Write the page."""
    from speechbrain_stablequant.artifacts.experiment import Experiment

    experiment = Experiment(arguments.experiment)
    experiment.report  # noqa: B018  # what is wrong with it is said here
    from speechbrain_stablequant.report import write_page

    return {"page": write_page(experiment.ptq)}


def lines(result: dict) -> list[str]:
    """Say where the page is."""
    return [f"wrote {result['page']}"]
