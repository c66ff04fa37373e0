"""The command line as a user meets it: outputs, exit codes, the run directory."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jqmix
from jqmix.cli import main
from jqmix.config import load_config

pytestmark = pytest.mark.usefixtures("shared_programs")
SMALL = [
    *("--env.name", "two_step_game", "--agent.hidden", "16", "--replay.capacity", "64", "--replay.batch", "16"),
    *("--eval.every", "64", "--eval.episodes", "4", "--total-steps", "128"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", *SMALL, "--seeds", "2", "--seed", "3", "--run-dir", str(path)]) == 0
    return path


def test_run_directory(run_dir):
    assert load_config(run_dir / "config.yaml").seed == 3
    meta = json.loads((run_dir / "metadata.json").read_text())
    assert meta["seeds"] == [3, 4]
    assert {"jqmix", "jax", "jaxlib", "jaxmarl", "python"} <= meta["versions"].keys()
    assert {"device", "commit", "replay_ratio", "parameter_count", "memory_plan"} <= meta.keys()
    # One update of 16 windows follows every 8 windows of 2 steps.
    assert meta["replay_ratio"] == {"updates_per_1000_steps": 62.5, "windows_drawn_per_window": 2.0}
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(x["member"], x["seed"]) for x in lines[:2]] == [(0, 3), (1, 4)]
    assert [x["env_steps"] for x in lines] == [64, 64, 128, 128, 128, 128]
    assert all({"absolute/return_mean", "absolute/env_steps"} <= line.keys() for line in lines[4:])
    for line in lines[:4]:
        assert {
            "env_steps",
            "updates",
            "wall_s",
            "eval/return_mean",
            "eval/episodes",
            "train/return_mean",
        } <= line.keys()
        assert line["eval/episodes"] == 4
    assert list((run_dir / "checkpoints").iterdir())


def test_train_says_where_first_and_what_last(tmp_path, capsys):
    assert main(["train", *SMALL, "--run-dir", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"run directory: {tmp_path / 'r'}"
    assert any("steps/s" in line and "return" in line for line in out)
    assert "steps/s" in out[-6] and out[-5] == "next:"
    assert all(line.startswith("  jqmix ") for line in out[-4:])


def test_what_to_do_next_can_be_done(run_dir):
    """Every command that a run ends with is one, and takes what it is given."""
    from jqmix.cli import _parse
    from jqmix.runs.experiment import _next_commands
    from jqmix.runs.groups import Run
    from jqmix.runs.run_dir import RunDir

    lock = RunDir(run_dir, made=False)
    commands = [line.split("#")[0].split() for line in _next_commands(Run(load_config(run_dir), lock, 0))[1:]]
    lock.close()
    assert [words[:3] for words in commands] == [
        ["jqmix", name, str(run_dir)] for name in ("evaluate", "report", "render", "resume")
    ]
    for _, *words in commands:
        assert _parse(words)[1] == []


def test_json_is_all_that_stdout_gets(tmp_path, capsys, own_programs):
    path = tmp_path / "run"
    assert main(["train", *SMALL, "--seeds", "2", "--run-dir", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["run_dir"], told["seeds"], told["env_steps"]) == (str(path), [0, 1], 256)
    assert told["steps_per_s"] == pytest.approx(256 / told["train_s"])
    assert told["startup_s"] > told["trace_s"] + told["compile_s"] > 0
    assert [(row["seed"], row["env_steps"]) for row in told["results"]] == [(0, 128), (1, 128)]
    assert {"eval/return_mean", "absolute/return_mean"} <= told["results"][0].keys()
    assert err.startswith(f"run directory: {path}\n") and "steps/s" in err


@pytest.mark.slow
def test_a_sweep_says_where_it_is(tmp_path, capsys):
    assert main(["sweep", *SMALL, "--grid", "algo.td_lambda=0,0.6", "--out", str(tmp_path / "study")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"study: {tmp_path / 'study'}"
    assert out[1] == "algo.td_lambda=0.0; algo.td_lambda=0.6"
    assert any(line.startswith(" 64 steps  return ") and " steps/s × 2 members" in line for line in out)
    assert not any("next:" in line or "run directory:" in line for line in out)


def test_a_runs_config_repeats_it(run_dir, tmp_path):
    again = tmp_path / "again"
    assert main(["train", str(run_dir / "config.yaml"), "--run-dir", str(again)]) == 0

    def numbers(path):
        rows = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]

    assert numbers(again) == numbers(run_dir)


def test_nothing_is_overwritten(run_dir, capsys):
    before = (run_dir / "metrics.jsonl").read_bytes()
    assert main(["train", *SMALL, "--run-dir", str(run_dir)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    # Its own config.yaml names the folder it was written to: that is refused too.
    assert main(["train", str(run_dir / "config.yaml")]) == 2


def test_evaluate(run_dir, capsys):
    assert main(["evaluate", str(run_dir), "--episodes", "5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["member"], r["seed"], r["episodes"]) for r in rows] == [(0, 3, 5.0), (1, 4, 5.0)]
    assert main(["evaluate", str(run_dir), "--episodes", "5"]) == 0
    out, err = capsys.readouterr()
    assert "return_mean" in out
    assert f"evaluating {run_dir}\n" in err and "playing 5 episodes for each of 2 seeds …\n" in err


def test_report(run_dir, tmp_path, capsys):
    assert main(["report", str(run_dir), "--out", str(tmp_path / "report"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    finals = [line["eval/return_mean"] for line in lines if "eval/return_mean" in line and line["env_steps"] == 128]
    assert (row["group"], row["metric"], row["seeds"]) == ("two_step_game, qmix", "eval/return_mean", 2)
    assert (row["env_steps"], row["min"], row["max"]) == (128, min(finals), max(finals))
    assert row["iqm"] == pytest.approx(sum(finals) / 2)


def test_a_loaded_policy_plays_what_the_evaluation_played(run_dir, capsys):
    main(["evaluate", str(run_dir), "--episodes", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)
    env = jqmix.make_env("two_step_game", batch=1)
    for member in range(2):
        policy = jqmix.load_policy(run_dir, member)
        import jax

        env_state, ts = env.reset(jax.random.key(0))
        state, total = policy.initial_state(1), 0.0
        while not ts.last[0]:
            action, state = policy.act(state, ts.obs, ts.avail)
            env_state, ts = env.step(jax.random.key(0), env_state, action)
            total += float(ts.reward[0])
        assert total == rows[member]["return_mean"]
    with pytest.raises(jqmix.ConfigError, match="member: 2 is not one of"):
        jqmix.load_policy(run_dir, 2)


def test_envs(capsys):
    assert main(["envs", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["smax_2s3z"]["n_actions"] == 10
    assert {
        "mpe_simple_spread_v3",
        "overcooked_cramped_room",
        "hanabi",
        "switch_riddle",
        "predator_prey",
    } <= rows.keys()


def test_bench(capsys):
    assert main(["bench", *SMALL, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["env_only"]["steps_per_s"] > 0
    assert out["training"]["steps_per_s"] > 0
    assert out["training"]["compile_s"] > 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train", "--env.name", "smax_2s3"], "env.name: no environment 'smax_2s3'; did you mean smax_2s3z"),
        (["train", "--algo.mixer", "x"], "algo.mixer: 'x' is not allowed; it takes one of iql, vdn, qmix"),
        (["train", "--algo.mixr", "x"], "--algo.mixr: no such argument; did you mean --algo.mixer"),
        (["train", "--mixer.embd", "8"], "mixer.embd: no such field; did you mean mixer.embed"),
        (["train", "--mixer.embed", "0"], "mixer.embed: 0 is out of range; it must be ≥ 1 and ≤ 16384"),
        (["train", "--algo.embed", "0"], "mixer.embed: 0 is out of range; it must be ≥ 1 and ≤ 16384"),
        (["train", "--algo.embed", "8", "--mixer.embed", "8"], "mixer.embed: given twice"),
        (["train", "--agent.core", "gruu"], "agent.core: 'gruu' is not allowed; it takes one of gru, lstm, none, or"),
        (["train", "--agent.recurrent", "no"], "agent.recurrent: 'no' is not allowed; it takes true or false"),
        (["train", "--algo.mixer", "no.module:f"], "algo.mixer: cannot load 'no.module:f': ModuleNotFoundError"),
        (
            ["train", "two_step_game", "--agent.encoder", "entities"],
            "agent.encoder: entities needs an environment that",
        ),
        (
            ["train", "smax_3m_dense", "--agent.entity-embed", "8"],
            "agent.entity_embed: has no effect with agent.encoder dense",
        ),
        (["train", "nope"], "config: no file or preset 'nope'"),
        (["train", "--replay.batch", "99999"], "replay.batch: 99999 windows do not fit"),
        (["train", "--env.name", "matrix_game", "--env.kwargs", "{payoff: q}"], "env.kwargs.payoff: 'q' is not one of"),
        (["train", "--env.name", "matrix_game", "--env.kwargs", "{pay: 1}"], "env.kwargs: "),
        (["train", "--env.factory", "no.module:f"], "env.factory: cannot load"),
        (["train", "--env.factory", "worlds:Counting", "--window", "2"], "window: 2 does not cover an episode"),
        (["evaluate", "x", "--episods", "4"], "--episods: no such argument; did you mean --episodes"),
        (["evaluate", "x", "--eval.every", "4"], "--eval.every: no such argument (see --help)"),
        (["report", "x", "--mixer.embed", "4"], "--mixer.embed: no such argument (see --help)"),
        (["evaluate", "nowhere"], "run_dir: nowhere is not a run directory"),
        (["evaluate", "x", "--episodes", "0"], "--episodes: '0' is not allowed; it takes a whole number ≥ 1"),
        (
            ["sweep", "--grid", "optim.lr=0.1,0.2", "--run-dir", "x"],
            "run_dir: a study's configurations have folders of",
        ),
        (["ablate", "--group", "1"], "group: a study trains as many members at once as fit"),
        (["ablate", "--grid", "rollouts=0"], "grid: rollouts: 0 is out of range; it must be ≥ 1"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_and_errors_need_no_jax():
    code = "\n".join(
        [
            "import sys; from jqmix.cli import main",
            "try: main(sys.argv[1:])",
            "except SystemExit: pass",
            "assert 'jax' not in sys.modules",
        ]
    )
    for argv in (["train", "--help"], ["envs"], ["train", "--algo.mixer", "x"]):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_reader_may_leave_early():
    """As `jqmix envs | head` does: no word about it."""
    with subprocess.Popen(
        [sys.executable, "-m", "jqmix.cli", "envs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--algo.td-lambda", "--env.name", "--total-steps", "--seeds", "--run-dir", "--explore.eps-steps"):
        assert flag in out
    assert "--mixer.alpha" in out and "cw_qmix, ow_qmix: weight α" in " ".join(out.split())
    assert "--algo.embed" not in out  # an earlier version's: taken, and not shown


def test_public_api(tmp_path):
    """The contract's names, used as its text uses them."""
    import jax

    cfg = jqmix.load_config(
        None, **{k.removeprefix("--").replace("-", "_"): v for k, v in zip(SMALL[::2], SMALL[1::2], strict=True)}
    )
    init, chunk = jqmix.make_train(cfg)
    member, shared = jax.vmap(init, out_axes=(0, None))(jnp.arange(2))
    _, shared, metrics = jax.jit(jax.vmap(chunk, in_axes=(0, None), out_axes=(0, None, 0)))(member, shared)
    assert metrics["eval/return_mean"].shape == (2,)
    returns = jqmix.learning.returns.lambda_returns(
        jnp.ones((3, 1)), jnp.ones((3, 1)), jnp.zeros((3, 1)), jnp.zeros((3, 1), bool), 1.0
    )
    np.testing.assert_allclose(returns[:, 0], [2, 1, 0])
    mixer = jqmix.networks.mixers.make_mixer("qmix", n_agents=2, state_size=4)
    assert mixer.apply(mixer.init(jax.random.key(0)), jnp.ones((7, 2)), jnp.ones((7, 4))).shape == (7,)
    assert jqmix.make_env("matrix_game").spec.n_agents == 2
