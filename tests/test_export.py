"""Exported policies: the same values and actions from JAX, from NumPy without JAX, and from the StableHLO program."""

import hashlib
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file, save
from test_damage import WRONG, said

import jqmix
from jqmix import exported_policy
from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.envs.mpe import ACTIONS, DIRECTIONS
from jqmix.envs.predator_prey import MOVES
from jqmix.envs.smax import moves
from jqmix.learning.exploration import greedy
from jqmix.networks.agent import Agent
from jqmix.runs.export import _action_names, write_policy
from jqmix.runs.policy import Policy, Trained, evaluate_run
from jqmix.types import Entities

pytestmark = pytest.mark.usefixtures("shared_programs")
N, A, OBS = 3, 5, 7
AGENT = Agent(N, A, OBS, hidden=8)
SLOTS, BATCH = 48, 128
EXAMPLES = Path(__file__).parent.parent / "examples"

ENTITIES = Entities(((1, 2), (2, 2)), targets=1)
NORMS = {"layer_norm": True, "obs_norm": True}
APART = {"share_parameters": False}
AGENTS = {
    "gru": {},
    "lstm": {"core": "lstm"},
    "none": {"core": "none"},
    "lstm, apart": {"core": "lstm", **APART},
    "none, apart": {"core": "none", "last_action": False, **APART},
    "layers and norms": {"layers": 3, **NORMS},
    "layers and norms, lstm": {"core": "lstm", "layers": 2, "agent_id": False, **NORMS},
    "layers and norms, apart": {"layers": 2, **NORMS, **APART},
    "no last action": {"last_action": False},
    "entities": {"entities": ENTITIES, "entity_embed": 6, **NORMS},
    "entities, apart": {"entities": ENTITIES, "layers": 2, **APART},
}

# What runs in a process of its own, in which JAX cannot be imported, on the copy of the loader in each folder.
WITHOUT_JAX = """
import importlib.util, sys, pathlib
for name in ("jax", "jaxlib", "flax", "jqmix", "safetensors"):
    sys.modules[name] = None
import numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location("numpy_policy", folder / "numpy_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    policy, data = module.load(), np.load(folder.with_suffix(".npz"))
    team, alone = policy.initial_state(data["obs"].shape[1]), policy.initial_state(data["obs"].shape[1], agent=1)
    said = {"q": [], "action": [], "q_alone": []}
    for obs, avail, first, played in zip(data["obs"], data["avail"], data["first"], data["action"]):
        team, alone = team._replace(first=first), alone._replace(first=first)
        said["q"].append(policy.q_values(team, obs)[0])
        said["q_alone"].append(policy.q_values(alone, obs[:, 1], agent=1)[0])
        action, team = policy.act(team, obs, avail)
        said["action"].append(action)
        _, alone = policy.act(alone, obs[:, 1], avail[:, 1], agent=1)
        # From a tie on, two histories would part: both go on with what was played.
        team, alone = team._replace(last_action=played), alone._replace(last_action=played[:, 1])
    assert said["q"][0].dtype == np.float32
    np.savez(folder.with_suffix(".said.npz"), **said)
"""


@cache
def random_params(agent, seed=0):
    """Away from where parameters begin, and statistics as if of many observations."""
    rng = np.random.default_rng(seed)
    params = jax.jit(agent.init)(jax.random.key(seed))
    params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params)
    if agent.obs_norm:
        params["obs_norm"] = {
            "rows": jnp.float32(1000.0),
            "mean": jnp.asarray(rng.normal(size=OBS), jnp.float32),
            "m2": jnp.asarray(1000 * rng.uniform(0.1, 4, OBS), jnp.float32),
        }
    return params


def histories(seed=0):
    """Random observations and masks of BATCH parallel histories, with episodes that start in the middle."""
    rng = np.random.default_rng(seed)
    first = rng.random((SLOTS, BATCH)) < 0.1
    first[0] = True
    avail = rng.random((SLOTS, BATCH, N, A)) < 0.6
    avail[..., 0] |= ~avail.any(axis=-1)
    return {"obs": rng.normal(size=(SLOTS, BATCH, N, OBS)).astype(np.float32), "avail": avail, "first": first}


def played(agent, params, obs, avail, first):
    """Q-values [T, B, N, A] and greedy actions [T, B, N] by jqmix."""

    def step(carry, slot):
        memory, last_action = carry
        obs, avail, first = slot
        q, memory = agent.step(params, memory, obs, last_action, first)
        action = greedy(q, avail)
        return (memory, action), (q, action)

    carry = agent.initial_state(obs.shape[1]), jnp.zeros(obs.shape[1:3], jnp.int32)
    return jax.device_get(jax.jit(lambda *slots: jax.lax.scan(step, carry, slots)[1])(obs, avail, first))


def trained(agent, params):
    return Trained(agent, params, load_config("two_step_game"), 0, False, 10)


def write(agent, params, folder):
    return write_policy(trained(agent, params), {"environment": {"name": "random"}}, folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An exported folder for each kind of agent; beside it, what JAX says of random histories, and what NumPy does."""
    place, found = tmp_path_factory.mktemp("exported"), {}
    for i, (name, options) in enumerate(AGENTS.items()):
        agent, data = AGENT._replace(**options), histories(i)
        params, folder = random_params(agent, i), place / f"policy{i}"
        write(agent, params, folder)
        q, action = played(agent, params, **data)
        np.savez(folder.with_suffix(".npz"), **data, q=q, action=action)
        found[name] = folder
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, *found.values()], capture_output=True, text=True, check=False, cwd=place
    )
    assert done.returncode == 0, done.stderr
    return found


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def assert_same(q, action, expected, avail):
    """The values, and the actions but for ties."""
    np.testing.assert_allclose(q, expected["q"], rtol=1e-4, atol=1e-4)
    allowed = np.where(avail, expected["q"], -np.inf)
    chosen = np.take_along_axis(allowed, action[..., None], axis=-1)[..., 0]
    assert (chosen >= allowed.max(axis=-1) - 1e-4).all()
    assert (action == expected["action"]).mean() > 0.999


@pytest.mark.parametrize("name", AGENTS)
def test_numpy_acts_alike_without_jax(name, folders):
    data, said_there = (arrays(folders[name].with_suffix(suffix)) for suffix in (".npz", ".said.npz"))
    assert (data["first"].sum(), data["action"].size) > (500, 15_000)
    assert np.abs(np.diff(data["q"], axis=2)).max() > 0.01  # agents differ
    assert_same(said_there["q"], said_there["action"], data, data["avail"])
    np.testing.assert_allclose(said_there["q_alone"], data["q"][:, :, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", AGENTS)
def test_the_program_acts_alike_for_any_batch(name, folders):
    folder, data = folders[name], arrays(folders[name].with_suffix(".npz"))
    about = json.loads((folder / "policy.json").read_text())
    program = jax_export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert list(about["program"]["inputs"].values())[-2:] == [f"float32[batch, {N}, {OBS}]", f"bool[batch, {N}, {A}]"]
    call = jax.jit(program.call)
    memory = [n for n in about["program"]["inputs"] if n.startswith("state.memory")]
    for batch in (1, 7, 128) if name in ("lstm", "layers and norms, apart") else (7,):
        state = {
            "memory": [jnp.full((batch, N, 8), jnp.nan) for _ in memory],
            "last_action": jnp.zeros((batch, N), jnp.int32),
        }
        for t in range(12):
            obs, avail = data["obs"][t, :batch], data["avail"][t, :batch]
            action, q, state = call({**state, "first": data["first"][t, :batch]}, obs, avail)
            np.testing.assert_allclose(q, data["q"][t, :batch], rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(state["last_action"], action)
            assert (np.asarray(action) == data["action"][t, :batch]).mean() > 0.95
            state["last_action"] = jnp.asarray(data["action"][t, :batch])
            assert not state.pop("first").any()


@pytest.mark.parametrize("name", AGENTS)
def test_jqmix_reads_it_back_bit_for_bit(name, folders):
    agent = AGENT._replace(**AGENTS[name])
    policy = jqmix.load_policy(folders[name])
    assert policy.agent == agent
    jax.tree.map(np.testing.assert_array_equal, policy.params, random_params(agent, list(AGENTS).index(name)))
    weights = load_file(folders[name] / "policy.safetensors")  # by the format's own library
    assert sum(x.size for x in weights.values()) == sum(x.size for x in jax.tree.leaves(policy.params))
    np.testing.assert_array_equal(weights["head.kernel"], policy.params["head"]["kernel"])


def test_one_agent_alone_acts_as_in_the_team(folders):
    name = "lstm, apart"
    policy, data = jqmix.load_policy(folders[name]), histories(5)
    team, alone = policy.initial_state(7), [policy.initial_state(7, agent=i) for i in range(N)]
    for t in range(3):
        obs, avail = jnp.asarray(data["obs"][t, :7]), jnp.asarray(data["avail"][t, :7])
        first = jnp.asarray(data["first"][t, :7])
        actions, team = policy.act(team._replace(first=first), obs, avail)
        for i in range(N):
            action, alone[i] = policy.act(alone[i]._replace(first=first), obs[:, i], avail[:, i], agent=i)
            np.testing.assert_array_equal(action, actions[:, i])
    for i in range(N):
        for a, b in zip(jax.tree.leaves(alone[i].memory), jax.tree.leaves(team.memory), strict=True):
            np.testing.assert_allclose(a, b[:, i], rtol=1e-5, atol=1e-6)
    for act in (policy.initial_state, exported_policy.load(folders[name]).initial_state):
        assert act(7, agent=0).last_action.shape == (7,)
    with pytest.raises(ConfigError, match="agent: 3 is not one of 0 … 2"):
        policy.initial_state(1, agent=3)
    with pytest.raises(ValueError, match="agent: -1 is not one of 0 … 2"):
        numpy_policy = exported_policy.load(folders[name])
        numpy_policy.q_values(numpy_policy.initial_state(1, 0), np.zeros((1, OBS)), agent=-1)


def test_nothing_of_this_machine_is_in_it_and_it_comes_out_the_same(folders, tmp_path):
    name = "layers and norms"
    agent = AGENT._replace(**AGENTS[name])
    write(agent, random_params(agent, list(AGENTS).index(name)), tmp_path / "again")
    for file in sorted((tmp_path / "again").iterdir()):
        data = file.read_bytes()
        assert data == (folders[name] / file.name).read_bytes()
        assert b"site-packages" not in data and str(Path(jqmix.__file__).parent).encode() not in data
    assert (folders[name] / "numpy_policy.py").read_bytes() == Path(exported_policy.__file__).read_bytes()


# A core from outside


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A policy whose core is an example's, and its folder."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    agent = AGENT._replace(core="lstm_core:make")
    params = random_params(agent)
    cfg = load_config("two_step_game", **{"agent.core": "lstm_core:make"})
    about = write_policy(Trained(agent, params, cfg, 0, False, None), {"environment": {"name": "x"}}, tmp_path / "p")
    assert about["numpy"] is False
    yield Policy(agent, params), tmp_path / "p"
    sys.modules.pop("lstm_core", None)


def test_a_core_from_outside_is_a_program_alone(foreign):
    policy, folder = foreign
    assert sorted(path.name for path in folder.iterdir()) == ["policy.json", "policy.safetensors", "policy.stablehlo"]
    assert "core.w_x" in load_file(folder / "policy.safetensors")
    del sys.modules["lstm_core"]
    with pytest.raises(ConfigError, match="its core is code from outside, kept as a program; --trust runs it"):
        jqmix.load_policy(folder)
    again = jqmix.load_policy(folder, trust=True)
    assert "lstm_core" not in sys.modules
    with pytest.raises(ValueError, match="NumPy has no form of the core lstm_core:make; policy.stablehlo has it"):
        exported_policy.load(folder)
    data, states, alone = histories(3), [p.initial_state(4) for p in (policy, again)], again.initial_state(4, agent=2)
    for t in range(6):
        obs, avail = jnp.asarray(data["obs"][t, :4]), jnp.asarray(data["avail"][t, :4])
        actions = []
        for i, p in enumerate((policy, again)):
            state = states[i]._replace(first=jnp.asarray(data["first"][t, :4]))
            action, states[i] = p.act(state, obs, avail)
            actions.append(action)
        np.testing.assert_array_equal(*actions)
        first = jnp.asarray(data["first"][t, :4])
        action, alone = again.act(alone._replace(first=first), obs[:, 2], avail[:, 2], agent=2)
        np.testing.assert_array_equal(action, actions[0][:, 2])


def test_a_program_that_is_none_is_said(foreign):
    _, folder = foreign
    for data in (b"", b"x" * 100, (folder / "policy.stablehlo").read_bytes()[:-200]):
        replace_file(folder, "policy.stablehlo", data)
        with pytest.raises(ConfigError, match=r"policy\.stablehlo: JAX .* cannot read it") as raised:
            jqmix.load_policy(folder, trust=True)
        assert "\n" not in str(raised.value)


# Folders that are damaged, or somebody's


@pytest.fixture
def folder(folders, tmp_path):
    return Path(shutil.copytree(folders["layers and norms"], tmp_path / "policy"))


@pytest.mark.parametrize(
    "given",
    [
        3,
        [],
        {},
        {"groups": [[1, 2], [2, 2]], "targets": 2, "embed": 6},
        {"groups": [[1, 2], [3, 2]], "targets": 1, "embed": 6},  # nothing is left for the agent itself
        {"groups": [[1, 1], [5, 1]], "targets": 1, "embed": 6},  # of five actions
        {"groups": [[1, 2], [2]], "targets": 1, "embed": 6},
        {"groups": [1, 2], "targets": 1, "embed": 6},
        {"groups": [[1, 2], [2, 2.0]], "targets": 1, "embed": 6},
        {"groups": [[1, 2], [2, 2]], "targets": True, "embed": 6},
        {"groups": [[1, 2], [2, 2]], "targets": 1, "embed": 0},
        {"groups": [[1, 2], [2, 2]], "targets": 1, "embed": 5},
    ],
    ids=str,
)
def test_entities_that_are_none_are_said(given, folders, tmp_path):
    folder = Path(shutil.copytree(folders["entities"], tmp_path / "policy"))
    about = json.loads((folder / "policy.json").read_text())
    about["architecture"]["entities"] = given
    (folder / "policy.json").write_text(json.dumps(about))
    refused(folder, r"architecture\.entities|entities\.\w+\.\w+ is")


def test_an_export_from_before_there_were_entities_is_read(folder):
    about = json.loads((folder / "policy.json").read_text())
    assert about["architecture"].pop("entities") is None
    (folder / "policy.json").write_text(json.dumps(about))
    assert jqmix.load_policy(folder)


def replace_file(folder, name, data):
    """A file with another content, and its checksum where that belongs."""
    (folder / name).write_bytes(data)
    about = json.loads((folder / "policy.json").read_text())
    about["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "policy.json").write_text(json.dumps(about))


def refused(folder, match):
    with pytest.raises(ConfigError, match=match) as raised:
        jqmix.load_policy(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


FILES = ["policy.json", "policy.safetensors", "policy.stablehlo", "numpy_policy.py"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_checked(name, folder):
    path = folder / name
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    for spoilt in (b"", data[:-7], data + b" " if name != "policy.json" else b"[]", bytes(flipped), b"\0" * len(data)):
        path.write_bytes(spoilt)
        if name == "policy.json" and spoilt == bytes(flipped) and json_differs(data, spoilt):
            continue  # a letter of a text for people
        refused(folder, name.replace(".", r"\."))
    path.unlink()
    refused(folder, "is not a run directory" if name == "policy.json" else f"{name}: cannot be read: No such file")
    path.mkdir()
    refused(folder, "is not a run directory" if name == "policy.json" else f"{name}: cannot be read")


def json_differs(a, b):
    try:
        return json.loads(a).keys() == json.loads(b).keys()
    except ValueError:
        return False


def test_another_policys_weights_are_not_taken(folder, folders):
    shutil.copy(folders["no last action"] / "policy.safetensors", folder / "policy.safetensors")
    refused(folder, r"policy\.safetensors: not what was exported")
    with pytest.raises(ValueError, match=r"policy\.safetensors is not what was exported"):
        exported_policy.load(folder)
    replace_file(folder, "policy.safetensors", (folder / "policy.safetensors").read_bytes())
    refused(folder, r"policy\.safetensors: encoder.kernel is 10 × 8 there, 15 × 8 by policy\.json")


READ = {
    None: ("format", "version", "numpy", "files", "sizes", "preprocessing", "architecture"),
    "sizes": ("n_agents", "n_actions", "obs_size", "hidden"),
    "preprocessing": ("obs_norm", "last_action", "agent_id"),
    "architecture": ("layers", "core", "layer_norm", "share_parameters"),
    "files": tuple(FILES[1:]),
}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in READ.items() for name in names])
def test_every_field_that_is_read_is_checked(group, name, folder):
    path = folder / "policy.json"
    tree = json.loads(path.read_text())
    fields = tree if group is None else tree[group]
    before = fields.pop(name)
    path.write_text(json.dumps(tree))
    refused(folder, name)
    for value in (*WRONG, "gru\0", 2**12, 2**40):
        if (type(value) is type(before) and value == before) or (
            name == "version" and value is True
        ):  # 1 in JSON's eyes
            continue
        fields[name] = value
        path.write_text(json.dumps(tree))
        refused(folder, rf"policy\.json|{name}" if group else "policy")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"3",
        b"{",
        b'{"head.bias": 3}',
        b'{"head.bias": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}',
        b'{"head.bias": {"dtype": "F16", "shape": [5], "data_offsets": [0, 10]}}',
        b'{"head.bias": {"dtype": "F32", "shape": [99999999999999], "data_offsets": [0, 20]}}',
        b'{"head.bias": {"dtype": "F32", "shape": "x", "data_offsets": [0, 20]}}',
        b'{"head.bias": {"dtype": "F32", "shape": [5], "data_offsets": ["a", 20]}}',
        b'{"head.bias": {"dtype": ["F32"], "shape": [5], "data_offsets": [0, 20]}}',
        b"[" * 100_000,
    ],
)
def test_weights_that_are_none_are_said(header, folder):
    for length in (len(header), 2**60):
        replace_file(folder, "policy.safetensors", length.to_bytes(8, "little") + header + b"\0" * 20)
        refused(folder, r"policy\.safetensors: ")


def test_weights_of_another_shape_are_said(folder):
    weights = load_file(folder / "policy.safetensors")
    replace_file(folder, "policy.safetensors", save(weights | {"head.bias": np.zeros(4, np.float32)}))
    refused(folder, r"policy\.safetensors: head\.bias is 4 there, 5 by policy\.json")
    replace_file(folder, "policy.safetensors", save(weights | {"more": np.zeros(4, np.float32)}))
    refused(folder, r"policy\.safetensors: more is 4 there, absent by policy\.json")


def test_no_code_in_the_folder_is_executed(folder, tmp_path):
    replace_file(folder, "numpy_policy.py", f"open({str(tmp_path / 'executed')!r}, 'w')".encode())
    jqmix.load_policy(folder)
    assert not (tmp_path / "executed").exists()


# From a run, on the command line

# PQN, with what its presets have.
TINY = {
    "env.name": "two_step_game",
    "algo.name": "pqn",
    "algo.minibatches": 2,
    "rollouts": 4,
    "window": 16,
    "agent.hidden": 16,
    "agent.layers": 2,
    "agent.layer_norm": True,
    "agent.obs_norm": "running",
    "agent.last_action": False,
    "eval.every": 64,
    "eval.episodes": 4,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    jqmix.train(load_config(None, **TINY, seeds=2, seed=3, total_steps=192, run_dir=str(path)), quiet=True)
    return path


def test_export_from_the_command_line(run_dir, tmp_path, capsys):
    out = tmp_path / "a" / "policy"
    assert main(["export", str(run_dir), "--out", str(out), "--member", "1"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    steps = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["env_steps"]
    assert first == f"exported to {out}: 2 agents of two_step_game, seed 4 after {steps} environment steps"
    assert [line.split()[0] for line in lines] == [
        "policy.safetensors",
        "policy.json",
        "policy.stablehlo",
        "numpy_policy.py",
    ]
    about = json.loads((out / "policy.json").read_text())
    training = about["training"]
    assert (training["seed"], training["member"], training["parameters"]) == (4, 1, "newest")
    assert training["config"]["agent"]["hidden"] == 16 and "run_dir" not in training["config"]
    assert str(run_dir) not in (out / "policy.json").read_text()
    loaded, original = jqmix.load_policy(out), jqmix.load_policy(run_dir, 1)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, original.params)

    assert main(["export", str(run_dir), "--out", str(out)]) == 2
    assert said(capsys)[0].endswith("already exists and is not empty; nothing was overwritten (see --overwrite)")
    assert json.loads((out / "policy.json").read_text()) == about
    assert main(["export", str(run_dir), "--out", str(out), "--best", "--overwrite"]) == 0
    about = json.loads((out / "policy.json").read_text())
    assert (about["training"]["seed"], about["training"]["parameters"]) == (3, "best")
    evaluations = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in evaluations if line.get("seed") == 3 and "eval/return_mean" in line]
    best = max(evaluations, key=lambda line: line["eval/return_mean"])
    assert about["training"]["env_steps"] == best["env_steps"]
    best = jqmix.load_policy(run_dir, 0, best=True)
    jax.tree.map(np.testing.assert_array_equal, jqmix.load_policy(out).params, best.params)
    for options, field in (({"member": 1}, "member"), ({"best": True}, "best")):
        with pytest.raises(ConfigError, match=f"{field}: .* is an exported policy, which holds one alone"):
            jqmix.load_policy(out, **options)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["RUN"], "the following arguments are required: --out"),
        (["RUN", "--out", "p", "--member", "2"], "member: 2 is not one of 0 … 1"),
        (["RUN", "--out", "p", "--member", "x"], "--member: 'x' is not allowed; it takes a whole number"),
        (["RUN", "--out", "~/p"], "out: '~/p' is not allowed"),
        (["RUN", "--out", "p\n"], "out: 'p\\n' is not allowed"),
        (["RUN", "--out", "file"], "out: file already exists and is not a folder"),
        (["RUN", "--out", "file/p"], "out: file/p cannot be made: file is not a folder"),
        (["nowhere", "--out", "p"], "run_dir: nowhere is not a run directory"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(argv, says, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jqmix.runs.export.jax_export", None)  # nor traced
    Path("file").write_text("x")
    try:
        code = main(["export", *(str(run_dir) if word == "RUN" else word for word in argv)])
    except SystemExit as stop:
        code = stop.code
    (line,) = said(capsys)
    assert code == 2 and says in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_numpy_plays_what_the_evaluation_played(run_dir, tmp_path):
    jqmix.export(run_dir, tmp_path / "policy")
    policy = exported_policy.load(tmp_path / "policy")
    assert policy.weights["obs_norm.rows"] > 100
    env, state, total = jqmix.make_env("two_step_game", batch=1), policy.initial_state(1), 0.0
    world, seen = env.reset(jax.random.key(0))
    while not seen.last[0]:
        action, state = policy.act(state, np.asarray(seen.obs), np.asarray(seen.avail))
        world, seen = env.step(jax.random.key(0), world, jnp.asarray(action))
        total += float(seen.reward[0])
    assert total == evaluate_run(run_dir, episodes=1)[0]["return_mean"]


@pytest.mark.slow
def test_a_run_that_reads_entities(tmp_path):
    """Its metadata says how observations list them; without an environment, its policy is built and exported."""
    path = tmp_path / "run"
    changes = TINY | {"env.name": "smax_3m", "window": 101, "agent.encoder": "entities", "agent.entity_embed": 4}
    changes |= {"eval.every": 10_000, "eval.parallel": 2, "eval.episodes": 2}
    jqmix.train(load_config(None, **changes, total_steps=404, run_dir=str(path)), quiet=True)
    policy = jqmix.load_policy(path)
    about = jqmix.export(path, tmp_path / "policy")
    spec = jqmix.make_env("smax_3m").spec
    assert policy.agent.entities == spec.entities
    assert about["architecture"]["entities"] == spec.entities._asdict() | {"embed": 4}
    said = exported_policy.load(tmp_path / "policy")
    obs = np.random.default_rng(0).normal(size=(4, spec.n_agents, spec.obs_size)).astype(np.float32)
    state = policy.initial_state(4)
    q, _ = policy.agent.step(policy.params, state.memory, jnp.asarray(obs), state.last_action, state.first)
    np.testing.assert_allclose(said.q_values(said.initial_state(4), obs)[0], q, rtol=1e-4, atol=1e-5)
    metadata = json.loads((path / "metadata.json").read_text())
    for wrong in (3, {}, {"groups": [[2, 5]], "targets": 1}, [[[2, 5]], 0]):
        metadata["environment"]["entities"] = wrong
        (path / "metadata.json").write_text(json.dumps(metadata))
        with pytest.raises(ConfigError, match=r"metadata\.json: environment\.entities: .* is not allowed"):
            jqmix.load_policy(path)


def test_names_of_actions_are_right():
    """A move leads where its name says."""
    smax, prey = (jqmix.make_env(name).spec.action_names for name in ("smax_2s3z", "predator_prey"))
    for name, (x, y) in {"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}.items():
        assert tuple(np.sign(moves(jnp.int32(smax.index(name))))) == (x, y)
        assert tuple(DIRECTIONS[ACTIONS.index(name)]) == (x, y)
        assert MOVES[prey.index(name)] == (-y, x)  # (row, column)


def test_names_of_actions_are_exported_where_all_have_one():
    for names, exported in ((["a", "b"], ["a", "b"]), (["a"], None), ("ab", None), (None, None), ([1, 2], None)):
        assert _action_names({"name": "x", "action_names": names}, 2) == exported
    assert _action_names({"name": "of an earlier version"}, 2) is None
