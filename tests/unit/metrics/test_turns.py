"""Timing in turns: fair order, and as long as asked for."""

from speechbrain_stablequant.metrics.turns import in_turns, timed


def test_each_round_starts_where_the_last_one_ended():
    seen = []

    def timer(name):
        return lambda turn: seen.append((turn, name)) or 1.0

    found = in_turns({name: timer(name) for name in "abc"}, rounds=3)
    assert "".join(name for _, name in seen) == "abccbaabc"
    assert found == {name: [1.0] * 3 for name in "abc"}


def test_rounds_go_on_until_the_time_has_passed():
    found = in_turns({"a": lambda turn: float(turn)}, rounds=1, seconds=0.01)
    assert len(found["a"]) > 1
    assert found["a"] == [float(turn) for turn in range(len(found["a"]))]


def test_a_call_gives_its_result_too():
    seconds, result = timed(divmod, 7, 2)
    assert result == (3, 1)
    assert seconds >= 0
