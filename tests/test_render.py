"""`jqmix render`: the episodes that are played, how each family is drawn, and the files."""

import base64
import io
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from PIL import Image

import jqmix
from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.envs.base import TimeLimit
from jqmix.envs.check import check_env
from jqmix.envs.errors import EnvError
from jqmix.envs.registry import make_env
from jqmix.envs.smax import DT, MARINE, NOBODY, SMAX, STOP, TABLE, WORLD_STEPS, SMAXState
from jqmix.learning.evaluation import evaluate, opening
from jqmix.learning.exploration import greedy
from jqmix.learning.learner import make_learner
from jqmix.learning.recording import record
from jqmix.learning.train import build_env
from jqmix.networks import normalise
from jqmix.rendering import film, overcooked
from jqmix.rendering.canvas import BLUE, ORANGE, PAPER, Canvas
from jqmix.rendering.episode import Episode
from jqmix.rendering.film import Film
from jqmix.rendering.plain import PlainScene
from jqmix.rendering.scenes import make_scene
from jqmix.rendering.smax import units_of
from jqmix.rendering.values import _cell
from jqmix.rendering.video import HOLD
from jqmix.runs.experiment import train
from jqmix.runs.policy import evaluate_run, load_policy, load_run_config
from jqmix.runs.render import _played, render, split_up

pytestmark = pytest.mark.usefixtures("shared_programs")
# The episodes


def recorded(env, mixer="vdn", moments=None):
    """What untrained agents do in E of an environment, and the key and the agents with which they did it."""
    cfg = load_config(None, **{"algo.mixer": mixer, "agent.hidden": 8})
    learner, key = make_learner(cfg, env.spec), jax.random.key(3)
    params = learner.init(jax.random.key(1))[0]
    play = jax.jit(partial(record, learner, params, moments or normalise.init(env.spec.state_size), cfg, env))
    return jax.device_get(play(key)), learner, params, key


def batched(env, size):
    return TimeLimit(env, env.spec.episode_limit, "bootstrap").batched(size)


def test_the_episodes_are_those_of_an_evaluation():
    env = batched(worlds.Ragged(), 6)
    found, learner, params, key = recorded(env)
    expected = jax.jit(partial(evaluate, learner.agent, params["agent"], env))(key)
    jax.tree.map(np.testing.assert_array_equal, found.episodes, jax.device_get(expected))
    episodes = split_up(found)
    assert [e.length for e in episodes] == found.episodes.length.tolist()
    assert len({e.length for e in episodes}) > 1
    for e in episodes:
        assert e.states[0].tolist() == list(range(e.length + 1))
        assert e.score.tolist() == list(range(1, e.length + 1))


def test_values_are_those_that_were_acted_on():
    found, *_ = recorded(batched(worlds.Counting(), 2))
    for e in split_up(found):
        np.testing.assert_array_equal(greedy(jnp.asarray(e.q), jnp.asarray(e.avail)), e.action)
        np.testing.assert_allclose(e.q_tot, e.q_taken.sum(axis=-1), rtol=1e-5, atol=1e-6)
        assert (e.won, e.score.tolist(), e.q.shape) == (True, [0, 1, 3], (3, 2, 3))
    assert recorded(batched(worlds.Counting(), 1), mixer="iql")[0].q_tot is None


def test_q_tot_is_what_the_mixer_makes_of_the_normalised_state():
    moments = normalise.Moments(jnp.float32(10.0), jnp.array([2.0]), jnp.array([40.0]))
    found, learner, params, _ = recorded(batched(worlds.Counting(), 1), "qmix", moments)
    (e,) = split_up(found)
    q = jnp.asarray(e.q_taken)
    state = jnp.array([[-1.0], [0.0], [1.0]]) / 2  # 1, 2, 3, with moments of mean 2 and deviation 2
    np.testing.assert_allclose(e.q_tot, learner.mixer.apply(params["mixer"], q, state), rtol=1e-4)
    assert np.abs(e.q_tot - learner.mixer.apply(params["mixer"], q, 2 * state)).max() > 1e-3


def test_keys_in_a_state_are_no_obstacle():
    env = worlds.Keyed()
    episodes = split_up(recorded(batched(env, 1))[0])
    assert Film(make_scene(env, episodes), episodes, "").image(0).size[0] > 400


# The families


def played(name, count=2, limit=2, **kwargs):
    """An environment and ``count`` episodes of random play in it."""
    env = make_env(name, episode_limit=limit, **kwargs)
    many = env.batched(count)

    def step(carry, key):
        state, timestep = carry
        action = jax.random.categorical(key, jnp.where(timestep.avail, 0.0, -jnp.inf)).astype(jnp.int32)
        after = many.step(key, state, action)
        return after, (state, timestep.avail, action, after[1].info.get("score", after[1].reward))

    def play(key):
        (last, _), (states, *rest) = jax.lax.scan(step, many.reset(key), jax.random.split(key, limit))
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), states, last), *rest

    states, avail, action, reward = jax.device_get(jax.jit(play)(jax.random.key(0)))
    q = np.random.default_rng(0).normal(size=avail.shape)
    return env.inner, [
        Episode(
            states=jax.tree.map(lambda x, e=e: np.asarray(x[:, e]), states.inner),
            avail=avail[:, e],
            q=q[:, e],
            action=action[:, e],
            score=np.cumsum(reward[:, e]),
            q_tot=q[:, e].sum((1, 2)),
            won=[True, False, None][e % 3],
        )
        for e in range(count)
    ]


FAMILIES = {
    "smax_2s3z": {},
    "smax_smacv2_5_units": {},
    "jaxmarl/smax_3m": {},
    "mpe_simple_spread_v3": {},
    "mpe_simple_reference_v3": {},
    "mpe_simple_speaker_listener_v4": {},
    "predator_prey": {},
    "overcooked_cramped_room": {},
    "overcooked_v2_two_rooms": {},
    "matrix_game": {"limit": 1, "payoff": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]},
    "two_step_game": {},
    "hanabi": {},
    "switch_riddle": {},
    "chain_probe": {},
}


SLOW = ("jaxmarl/smax_3m", "mpe_simple_reference_v3")  # to compile


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FAMILIES]
)
def test_every_family_has_its_picture(name):
    env, episodes = played(name, **FAMILIES[name])
    scene = make_scene(env, episodes)
    assert isinstance(scene, PlainScene) == (name == "chain_probe")
    assert len(scene.actions()) == env.spec.n_actions
    made = Film(scene, episodes, name)
    assert len(made) == episodes[0].length * scene.frames + 1
    pictures = [np.asarray(image) for image in made.images()]
    assert all(p.dtype == np.uint8 and p.shape == pictures[0].shape for p in pictures)
    height, width, channels = pictures[0].shape
    assert 800 <= width <= 840 and height % 2 == width % 2 == 0 and channels == 3
    assert (pictures[0] != pictures[-1]).any()
    for index in range(2):
        canvas = Canvas(400, 400 * scene.aspect, PAPER)
        scene.draw(canvas, index, 1, 0.0)
        drawn = (np.asarray(canvas.image()) != PAPER).any(-1)
        assert 0.005 < drawn.mean() < 0.99


def test_a_table_that_no_one_could_read_is_plain():
    env, episodes = played("matrix_game", limit=1, payoff=np.zeros((11, 11)).tolist())
    assert isinstance(make_scene(env, episodes), PlainScene)


def battle():
    """Ally 1 shoots at enemy 1 at once, and it dies; enemy 1 had aimed at ally 3, who is alive."""
    x = np.array([10.0, 10.0, 10.0, 15.0, 20.0, 20.0], np.float32)
    y = np.array([12.0, 16.0, 20.0, 12.0, 16.0, 20.0], np.float32)
    health = np.array([[45.0] * 6, [45.0, 45.0, 45.0, 0.0, 45.0, 45.0]], np.float32)
    ready, waits = 0.0, TABLE.max_cooldown[MARINE] - (WORLD_STEPS - 1) * DT
    cooldown = np.array([[ready] * 6, [waits, *[-WORLD_STEPS * DT] * 5]], np.float32)
    action = np.array([[STOP] * 6, [5, STOP, STOP, 5, STOP, STOP]])
    state = SMAXState(np.stack([x, x]), np.stack([y, y]), health, cooldown, action, None, None, None, None)
    none = np.zeros((1, 3))
    avail = np.ones((1, 3, 8), bool)
    return Episode(state, avail, np.zeros((1, 3, 8)), action[1:, :3], none[:, 0], none[:, 0], True)


def test_shots_are_lines_from_who_fires_to_whom():
    assert units_of(SMAX("3m"), battle()).target[1].tolist() == [3, NOBODY, NOBODY, 2, NOBODY, NOBODY]
    scene = make_scene(SMAX("3m"), [battle()])
    pixels = {}
    for phase in (0.0, 0.25, 0.75):
        canvas = Canvas(400, 400 * scene.aspect, PAPER)
        scene.draw(canvas, 0, 0, phase)
        pixels[phase] = np.asarray(canvas.image()).astype(int)
    shot = np.abs(pixels[0.25] - pixels[0.0]).sum(-1) > 60
    columns = np.flatnonzero(shot.any(0))
    assert np.ptp(columns) > 100  # as long as they are apart
    between = slice(columns[0] + 40, columns[-1] - 40)
    red, _, blue = pixels[0.25][:, between][shot[:, between]].mean(0)
    assert blue > red + 40  # in the allies' colour
    assert np.flatnonzero(shot.any(1)).max() > 0.7 * len(shot)  # where ally 1 stands, below: y is up
    gone = np.abs(pixels[0.75] - pixels[0.0]).sum(-1) > 60
    assert np.ptp(np.flatnonzero(gone.any(0))) < 60  # the shot is over, and the enemy fades


@pytest.mark.parametrize(
    ("won", "says", "colour"), [(True, "won", BLUE), (False, "lost", ORANGE), (None, "ended", None)]
)
def test_the_result_stands_above_an_episode_that_is_over(won, says, colour):
    episode = battle()._replace(won=won)
    made = Film(make_scene(SMAX("3m"), [episode]), [episode], "")
    assert film.result(episode)[0] == says
    before, after = (np.asarray(made.image(k)).astype(int)[film.TITLE : film.TITLE + 20] for k in (0, len(made) - 1))
    if colour is not None:
        near = [(np.abs(picture - colour).max(-1) < 25).sum() for picture in (before, after)]
        assert near[0] == 0 and near[1] > 200


def test_pots_of_the_first_overcooked_are_read_as_those_of_the_second():
    """Empty, two onions, full and about to cook, cooking with 7 left, ready."""
    maze = np.zeros((1, 9, 11, 3), np.uint8)
    maze[..., 0] = 1
    maze[0, 4, 3:8] = [[8, 7, status] for status in (23, 21, 20, 7, 0)]
    state = type("State", (), {})()
    state.maze_map, state.wall_map = maze, np.ones((1, 3, 5), bool)
    state.agent_pos, state.agent_dir_idx = np.array([[[0, 0], [4, 2]]]), np.array([[0, 1]])
    state.agent_inv = np.array([[3, 9]])
    kitchen = overcooked.kitchen_of(state, 0)
    assert (kitchen.tile[1] == overcooked.POT).all() and (kitchen.tile[0] == overcooked.WALL).all()
    assert [len(overcooked.foods_in(item)) for item in kitchen.item[1].tolist()] == [0, 2, 3, 3, 3]
    assert kitchen.timer[1].tolist() == [0, 0, 20, 7, 0]
    assert [bool(item & overcooked.COOKED) for item in kitchen.item[1].tolist()] == [False] * 4 + [True]
    assert overcooked.foods_in(int(kitchen.held[0])) == [0] and kitchen.held[1] & overcooked.PLATE


def test_long_episodes_make_films_of_bounded_length():
    episode = battle()
    long = 2500
    many = [np.repeat(x, long, axis=0) for x in (episode.avail, episode.q, episode.action, episode.score)]
    plain = Episode(np.zeros(long + 1), *many, None, None)
    drawn = []

    class Telling(PlainScene):
        def draw(self, canvas, index, step, phase):
            drawn.append(step)

    made = Film(Telling(SMAX("3m"), [plain]), [plain], "")
    assert len(made) <= film.MOST_FRAMES + 1 and "a frame for 5 steps" in made.title
    for frame in (0, 1, len(made) - 2, len(made) - 1):
        made.image(frame)
    assert drawn == [0, 5, long - 5, long]


def test_many_actions_take_less_than_half_of_the_width():
    for n_actions in (5, 30, 500):
        assert n_actions * _cell(3, n_actions, film.WIDTHS[4])[0] < film.WIDTHS[4] / 2


# One's own picture


class Grey(worlds.Painted):
    def render(self, state):
        return np.zeros((3, 3))


class Failing(worlds.Painted):
    def render(self, state):
        raise RuntimeError("no brush")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (Grey(), r"Grey.render \(.*test_render.py:\d+\): returns float64\[3, 3\]; it must be uint8\[H, W, 3\]"),
        (Failing(), r"Failing.render \(.*test_render.py:\d+\): raised RuntimeError: no brush"),
    ],
)
def test_a_picture_that_is_none(env, says):
    with pytest.raises(EnvError, match=says):
        check_env(env, steps=8)
    episodes = split_up(recorded(batched(worlds.Counting(), 1))[0])
    with pytest.raises(EnvError, match=says):
        make_scene(env, episodes)


# A run, and the files


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("render") / "run"
    values = {
        "env.factory": "worlds:Painted",
        "agent.hidden": 8,
        "replay.capacity": 32,
        "replay.batch": 4,
        "eval.every": 64,
        "eval.episodes": 2,
    }
    train(load_config(None, total_steps=128, seeds=2, run_dir=str(run_dir), **values), quiet=True)
    return run_dir


@pytest.mark.slow
def test_what_is_asked_for_is_what_is_played(run_dir):
    """The member, its newest or best parameters, and the seed, whose keys are in the states of another environment."""
    cfg = load_run_config(run_dir, trust=True)
    keyed = replace(cfg, env=replace(cfg.env, factory="worlds:Keyed"))
    values = []
    for member, best, seed in ((0, False, 5), (1, False, 5), (1, True, 6)):
        (episode,) = _played(run_dir, keyed, 1, seed, member, best)
        policy = load_policy(run_dir, member, best, trust=True)
        (actor, _), start = opening(policy.agent, build_env(keyed, 1), jax.random.key(seed)), policy.initial_state(1)
        assert (episode.states[1][0] == actor.env_state.inner[1][0]).all()
        obs = jnp.ones((1, 2, 1))
        q, _ = policy.agent.step(policy.params, start.memory, obs, start.last_action, start.first)
        np.testing.assert_allclose(episode.q[0], q[0], rtol=1e-4, atol=1e-6)
        assert (episode.q_tot is None) == best
        values.append(episode.q[0])
    assert min(np.abs(values[i] - values[j]).max() for i, j in ((0, 1), (1, 2))) > 1e-4


def frames_in(path):
    """The frames of a GIF, and for how long each is shown, in milliseconds."""
    with Image.open(path) as image:
        shown = []
        for k in range(image.n_frames):
            image.seek(k)
            shown.append((np.asarray(image.convert("RGB")), image.info["duration"]))
        return shown


def test_the_command_writes_a_gif(run_dir, tmp_path, capsys):
    out = tmp_path / "episode.gif"
    argv = ["render", str(run_dir), "--trust", "--episodes", "2", "--fps", "10", "--out", str(out)]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 2 episodes, 4 frames, ")
    frames = frames_in(out)
    assert [ms for _, ms in frames] == [100, 100, 100, 2000]
    (row, _) = evaluate_run(run_dir, 2, trust=True)
    assert (row["length_mean"], row["win_rate"]) == (len(frames) - 1, 1.0)
    middle = [frame[film.TITLE + film.HEADER + 60, 200].tolist() for frame, _ in frames]
    np.testing.assert_allclose(middle, [[50 * t] * 3 for t in range(4)], atol=4)  # its own picture

    assert main(argv) == 2
    assert "already exists; --overwrite replaces it" in capsys.readouterr().err
    assert main([*argv, "--overwrite", "--best", "--member", "1"]) == 0
    assert main(["render", str(run_dir), "--trust", "--episodes", "1"]) == 0
    assert len(frames_in(run_dir / "episode.gif")) == 4


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--out", "film.avi"], "out: 'film.avi' is not allowed; it takes a file that ends with .gif or .mp4"),
        (["--out", "film"], "ends with .gif or .mp4"),
        (["--out", "nowhere/film.gif"], "out: nowhere/film.gif cannot be"),
        (["--episodes", "17"], "takes a whole number ≥ 1 and ≤ 16"),
        (["--fps", "0"], "takes a whole number ≥ 1 and ≤ 50"),
        (["--out", "film.gif", "--member", "2", "--trust"], "member: 2 is not one of 0 … 1"),
        (["--out", "film.gif"], "env.factory: this run names code of its own (worlds:Painted); --trust runs it"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(run_dir, flags, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["render", str(run_dir), *flags])
    except SystemExit as error:
        code = error.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and says in line
    assert not list(tmp_path.iterdir())


def test_an_ending_is_refused_without_jax(run_dir):
    code = f"import sys; from jqmix.cli import main; code = main(['render', {str(run_dir)!r}, '--out', 'film.avi']); "
    code += "print(code, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_what_is_missing_for_mp4_is_said(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["render", str(run_dir), "--out", str(tmp_path / "film.mp4")]) == 2
    assert 'pip install "jqmix[video]"; GIF does not' in capsys.readouterr().err


def test_a_notebook_shows_it(run_dir, tmp_path):
    video = jqmix.render(run_dir, episodes=1, trust=True)
    assert repr(video).startswith("Video(not written: 1 episode, 4 frames, ") and len(repr(video)) < 100
    page = video._repr_mimebundle_()["text/html"]
    shown = base64.b64decode(page.partition("base64,")[2].partition('"')[0])
    assert shown == video.data and Image.open(io.BytesIO(shown)).n_frames == 4
    path = video.save(tmp_path / "saved.gif")
    assert path.read_bytes() == video.data
    with pytest.raises(ConfigError, match="already exists"):
        video.save(path)
    long = tmp_path / ("x" * 250 + ".gif")  # with no room for a temporary file's ending
    with pytest.raises(ConfigError, match="out: .* cannot be written: File name too long"):
        video.save(long)
    for wrong in ({"episodes": 0}, {"fps": 60}, {"seed": -1}):
        with pytest.raises(ConfigError, match="out of range"):
            render(run_dir, trust=True, **wrong)


def test_mp4(run_dir, tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    gif, mp4 = (render(run_dir, tmp_path / f"film.{end}", 2, trust=True, fps=5) for end in ("gif", "mp4"))
    command = [ffmpeg, "-v", "error", "-i", str(mp4.path), *["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]]
    done = subprocess.run(command, capture_output=True, check=True)
    pictures = frames_in(gif.path)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, *pictures[0][0].shape)
    assert (len(pictures), len(frames)) == (4, 4 + round(HOLD * 5))
    assert np.abs(frames[-1].astype(int) - pictures[-1][0]).mean() < 5
    assert "video/mp4" in mp4._repr_mimebundle_()["text/html"]
    with pytest.raises(ConfigError, match="this video is a gif"):
        gif.save(tmp_path / "saved.mp4")

    monkeypatch.setattr(film.Film, "image", lambda self, frame: Image.new("RGB", (3, 3)))  # odd, which H.264 is not
    with pytest.raises(RuntimeError, match="ffmpeg: .*not divisible by 2"):
        render(run_dir, tmp_path / "odd.mp4", 1, trust=True)
    assert not (tmp_path / "odd.mp4").exists()
