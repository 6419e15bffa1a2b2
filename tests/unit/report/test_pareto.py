"""Which plans are on the Pareto front."""

from speechbrain_stablequant.report.pareto import FrontPoint, mark_efficient


def test_dominated_points_are_not_efficient():
    nan = float("nan")
    points = mark_efficient(
        [
            FrontPoint(0.25, 6.2),
            FrontPoint(0.25, 6.3),  # as small, worse
            FrontPoint(0.25, 6.2),  # the same twice: neither dominates
            FrontPoint(0.3, 6.2),  # larger, no better
            FrontPoint(0.2, 7.0),
            FrontPoint(0.1, nan),
            FrontPoint(1.0, 6.0),
        ]
    )
    assert [p.efficient for p in points] == [
        True, False, True, False, True, False, True,
    ]  # fmt: skip
