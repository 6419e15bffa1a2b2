"""Exit codes, streams and messages, whatever the command."""

import os
import pydoc
import signal
import subprocess
import sys
import types

import pytest

import speechbrain_stablequant
from speechbrain_stablequant.cli import build_parser
from speechbrain_stablequant.cli import parser as registry
from speechbrain_stablequant.cli.parser import commands
from speechbrain_stablequant.errors import StableQuantError

MODULE = [sys.executable, "-m", "speechbrain_stablequant"]


def execute(*arguments, **kwargs):
    return subprocess.run(
        [*MODULE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


def test_help_lists_every_command(stablequant):
    result = stablequant("--help")
    assert result.code == 0
    for name, module in commands().items():
        assert name in result.out
        assert module.HELP.split()[0] in result.out


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_of_a_command_has_examples(stablequant, name):
    result = stablequant(name, "--help")
    assert result.code == 0
    assert "examples:" in result.out
    assert f"  stablequant {name} " in result.out
    assert "--json" in result.out


@pytest.mark.parametrize("name", sorted(commands()))
def test_examples_are_valid_arguments(name):
    for line in commands()[name].EXAMPLES.strip().splitlines():
        words = line.partition("#")[0].partition(">")[0].split()
        assert words[:2] == ["stablequant", name]
        assert build_parser().parse_args(words[1:]).command == name


def test_version(stablequant):
    result = stablequant("--version")
    assert result.code == 0
    assert result.out.split() == [
        "stablequant",
        speechbrain_stablequant.__version__,
    ]


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from speechbrain_stablequant.cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'speechbrain', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_no_command_shows_the_help(stablequant):
    result = stablequant()
    assert result.code == 2
    assert "commands:" in result.out


def test_unknown_command(stablequant):
    stablequant("inspct", "x").check_mistake("inspct", "'inspect'")


def test_unknown_option(stablequant):
    result = stablequant("inspect", "x", "--layer")
    result.check_mistake("--layer", "'--layers'")


def test_prefix_of_an_option_is_not_guessed(stablequant, plan_file):
    stablequant("inspect", plan_file, "--lay").check_mistake("'--layers'")


def test_missing_argument(stablequant):
    stablequant("inspect").check_mistake("source", "--help")


def test_argument_too_many(stablequant, plan_file):
    stablequant("inspect", plan_file, "more").check_mistake("'more'")


def test_error_is_json_too(stablequant):
    result = stablequant("inspect", "nowhere.ckpt", "--json")
    assert result.code == 2
    assert result.data["ok"] is False
    assert "nowhere.ckpt" in result.data["error"]
    assert result.data["error"] in result.err


def test_json_in_front_of_the_command(stablequant, plan_file):
    after = stablequant("inspect", plan_file, "--json")
    before = stablequant("--json", "inspect", plan_file)
    assert before.data == after.data
    assert stablequant("--json", "inspect", "no.json").data["ok"] is False


def test_mistake_through_the_executable(tmp_path):
    done = execute("inspect", tmp_path / "no.json", env=_environment())
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "no.json is not there" in done.stderr


def test_debug_shows_the_traceback(tmp_path):
    environment = _environment(STABLEQUANT_DEBUG="1")
    done = execute("inspect", tmp_path / "no.json", env=environment)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_interrupted(tmp_path):
    fifo = tmp_path / "endless.json"
    os.mkfifo(fifo)
    (tmp_path / "hyperparams.yaml").write_text("a: 1\n")
    command = ["apply", fifo, tmp_path, "--output", tmp_path / "out"]
    process = subprocess.Popen(
        [*MODULE, *map(str, command)],
        # A job in the background of a shell ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(fifo, "w"):  # waits until the command reads
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "stablequant: error: interrupted\n")


def test_reader_that_goes_away_is_no_error(plan, tmp_path):
    layer = plan.layers["enc.a"]
    layers = {f"layer{i}": layer for i in range(2000)}  # more than a pipe holds
    path = type(plan)(layers).save(tmp_path / "plan.json")
    process = subprocess.Popen(
        [*MODULE, "inspect", str(path), "--layers"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "plan" in process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert err == ""


@pytest.fixture
def command(monkeypatch):
    """Register a command whose `run` a test gives."""

    def register(run):
        module = types.ModuleType("speechbrain_stablequant.cli.try_out")
        module.NAME, module.HELP, module.EXAMPLES = "try-out", "Try.", "x"
        module.add_arguments = lambda parser: None
        module.run, module.lines = run, lambda result: [str(result)]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(registry, "COMMANDS", ("try_out",))

    return register


def test_interrupted_while_a_class_is_imported(stablequant, command):
    """SpeechBrain's YAML makes an error of what `pydoc` runs into."""

    def run(arguments):
        try:
            try:
                raise KeyboardInterrupt
            except BaseException:
                raise pydoc.ErrorDuringImport("x.py", sys.exc_info())  # noqa: B904
        except Exception as err:
            raise StableQuantError("cannot be made") from err

    command(run)
    result = stablequant("try-out")
    assert (result.code, result.err) == (
        130,
        "stablequant: error: interrupted\n",
    )


def test_error_of_ours_is_one_line(stablequant, command):
    command(lambda arguments: {"value": 1 / 0})
    result = stablequant("try-out")
    assert result.code == 3
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert "ZeroDivisionError" in result.err
    assert "STABLEQUANT_DEBUG=1" in result.err


def test_failed_check_is_code_1(stablequant, command):
    command(lambda arguments: {"ok": False})
    assert stablequant("try-out").code == 1
    assert stablequant("try-out", "--json").data == {"ok": False}


def test_libraries_that_print_stay_out_of_the_json(stablequant, command):
    def run(arguments):
        print("loading")
        return {"value": float("inf")}

    command(run)
    result = stablequant("try-out", "--json")
    assert result.code == 0
    assert result.data == {"value": None}
    assert result.err == "loading\n"


def _environment(**more):
    kept = {k: v for k, v in os.environ.items() if k != "STABLEQUANT_DEBUG"}
    return {**kept, **more}
