"""What is read from compiled programs, the model on top, and what is compiled for chips that are not here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqmix.chips import hlo
from jqmix.chips.catalogue import CHIPS, Chip, chip_named
from jqmix.chips.forecast import forecast
from jqmix.cli import main
from jqmix.inputs import ConfigError
from jqmix.runs.target import compiled_for, target_summary

# A program with one of each: a loop whose turns are noted and one whose condition tells, a branch, a part that is
# written in place, a part that is read, a product, a sum over devices, an array in tiles and one beside the cores.
TEXT = """\
HloModule jit_f, is_scheduled=true

%cond (c: (s32[], f32[8,4])) -> pred[] {
  %c = (s32[], f32[8,4]{1,0}) parameter(0)
  %limit = s32[] constant(7)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (b: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %b = (s32[], f32[8,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%b), index=1
  %copied = f32[8,4]{1,0} copy(%x), metadata={op_name="jit(f)/collecting/while/body/copy"}
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%j, %copied)
}

%ask (a: (s32[])) -> pred[] {
  %a = (s32[]) parameter(0)
  %k = s32[] get-tuple-element(%a), index=0
  ROOT %eq = pred[] compare(%k, %k), direction=EQ
}

%again (g: (s32[])) -> (s32[]) {
  %g = (s32[]) parameter(0)
  %l = s32[] get-tuple-element(%g), index=0
  %m = s32[] add(%l, %l)
  ROOT %n = (s32[]) tuple(%m)
}

%short (s: f32[8,4]) -> f32[8,4] {
  ROOT %s = f32[8,4]{1,0} parameter(0)
}

%long (t: f32[8,4]) -> f32[8,4] {
  %t = f32[8,4]{1,0} parameter(0)
  ROOT %abs = f32[8,4]{1,0} abs(%t)
}

%write (param_0: f32[100,4], param_1: f32[8,4], param_2: s32[]) -> f32[100,4] {
  %param_0 = f32[100,4]{1,0} parameter(0)
  %param_1 = f32[8,4]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %row = f32[1,4]{1,0} dynamic-slice(%param_1, %param_2, %param_2), dynamic_slice_sizes={1,4}
  ROOT %put = f32[100,4]{1,0} dynamic-update-slice(%param_0, %row, %param_2, %param_2)
}

%sum (p: f32[], q: f32[]) -> f32[] {
  %p = f32[] parameter(0)
  %q = f32[] parameter(1)
  ROOT %added = f32[] add(%p, %q)
}

ENTRY %main (in: f32[8,4], all: f32[100,4], at: s32[], weights: f32[4,16]) -> f32[8,16] {
  %in = f32[8,4]{1,0} parameter(0)
  %all = f32[100,4]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %weights = f32[4,16]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[8,4]{1,0}) tuple(%zero, %in)
  %told = (s32[], f32[8,4]{1,0}) while(%begin), condition=%cond, body=%body, \
metadata={op_name="jit(f)/collecting/while"}
  %noted = (s32[], f32[8,4]{1,0}) while(%begin), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %alone = (s32[]) tuple(%zero)
  %unknown = (s32[]) while(%alone), condition=%ask, body=%again
  %y = f32[8,4]{1,0} get-tuple-element(%told), index=1
  %chosen = f32[8,4]{1,0} conditional(%at, %y, %y), branch_computations={%short, %long}
  %written = f32[100,4]{1,0} fusion(%all, %chosen, %at), kind=kLoop, calls=%write
  %tiled = f32[8,16]{1,0:T(8,128)} dot(%chosen, %weights), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(f)/learning/dot"}
  %near = f32[8,16]{1,0:T(8,128)S(1)} copy(%tiled)
  ROOT %every = f32[8,16]{1,0} all-reduce(%near), replica_groups={{0,1}}, to_apply=%sum
}
"""
SLOW = Chip("slow", "gpu", 10**9, 100.0, 10.0, 1000.0, launch_s=1.0, sync_s=5.0)


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


def by_name(module, name):
    return next(launch for launch in hlo.launches(module) if launch.operation.name == name)


def test_launches_are_counted_as_often_as_loops_turn(module):
    times = [(launch.operation.name, launch.times) for launch in hlo.launches(module)]
    once = ["told", "noted", "unknown", "m", "chosen", "abs", "written", "tiled", "near", "every"]
    assert sorted(times) == sorted([("copied", 7), ("copied", 3), *((name, 1) for name in once)])


def test_bytes_are_those_of_what_is_read_and_written(module):
    small = 8 * 4 * 4
    assert hlo.bytes_moved(module, by_name(module, "copied")) == 2 * small
    # A row of one array, and the counter, are read; a row of the other one is written in place.
    assert hlo.bytes_moved(module, by_name(module, "written")) == 16 + 4 + 16
    # 16 columns take the room of 128; and what is beside the cores is not in the device's memory.
    assert hlo.bytes_moved(module, by_name(module, "tiled")) == small + 4 * 16 * 4 + 8 * 128 * 4
    assert hlo.bytes_moved(module, by_name(module, "near")) == 8 * 128 * 4


def test_the_model_takes_the_longest_of_launch_bytes_and_products(module):
    found = forecast(module, SLOW, ("collecting", "learning"))
    assert {name: part.launches for name, part in found.parts.items()} == {"collecting": 10, "other": 6, "learning": 1}
    flops = 2 * 8 * 16 * 4
    assert found.total.flops == flops and found.collectives == {"all-reduce": 1}
    assert found.unknown_loops == 1 and found.collective_bytes == 8 * 16 * 4
    moved = 2 * 8 * 4 * 4
    assert found.parts["collecting"].seconds == pytest.approx(10 * moved / 100)
    product = max(hlo.bytes_moved(module, by_name(module, "tiled")) / 100, flops / 1000)
    assert found.parts["learning"].seconds == pytest.approx(product)
    # abs, the loop that the host asks about with its addition, the branch with its launch, and the rest.
    near, every = 8 * 128 * 4 / 100, 8 * 16 * 4 / 100 + 8 * 16 * 4 / 10
    rest = moved / 100 + 5 + 1 + 5 + 1 + near + every
    assert found.parts["other"].seconds == pytest.approx(rest)
    half = forecast(module, SLOW, iterations=2).total
    assert half.seconds == pytest.approx(found.total.seconds / 2) and half.flops == flops / 2


@pytest.mark.parametrize("kind, text, size", [("tuple", "(f32[2,3]{1,0}, pred[5]{0})", 29), ("none", "token[]", 0)])
def test_sizes_of_types(kind, text, size):
    assert sum(a.bytes for a in hlo.arrays(text)) == size


def test_programs_as_xla_writes_them():
    """The real text of a compiled program: its loop, its products, its branch."""

    def f(x, w, flag):
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=6)[0]
        return jax.lax.cond(flag, lambda: x @ w, lambda: x)

    shapes = jnp.zeros((5, 64)), jnp.zeros((64, 64)), True
    module = hlo.parse(jax.jit(f).lower(*shapes).compile().as_text())
    loops = [op for launch in hlo.launches(module) if (op := launch.operation).opcode == "while"]
    assert [module.turns(op) for op in loops] == [6]
    assert forecast(module, CHIPS["h100"]).total.flops == 7 * 2 * 5 * 64 * 64


def test_chips_have_names():
    assert chip_named("v5e").platform == "tpu"
    with pytest.raises(ConfigError, match="target: 'b200' is not allowed; one of h100, a100, v5e, v6e"):
        chip_named("b200")


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--target", "tpu"], "target: 'tpu' is not allowed; one of h100, a100, v5e, v6e"),
        (["--devices", "2"], "devices: has no effect without --target"),
        (["--target", "h100", "--devices", "0"], "--devices: '0' is not allowed; it takes a whole number"),
    ],
)
def test_bad_flags_are_one_line(flags, says, capsys):
    try:
        code = main(["bench", "two_step_game", *flags])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and says in err and err.count("\n") == 1


def test_what_is_not_installed_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["bench", "two_step_game", "--target", "v5e"]) == 2
    assert 'to compile for v5e, pip install "jqmix[target-tpu]"' in capsys.readouterr().err


def test_what_a_compiler_of_another_time_made_is_one_line():
    class Program:
        def compile(self, options):
            return self

        def as_text(self):
            raise RuntimeError("async-update should have 1 operands\nbut sees 3")

    with pytest.raises(ConfigError) as refused:
        compiled_for(CHIPS["v6e"], Program)
    said = str(refused.value)
    assert "\n" not in said and "but sees 3" in said and 'pip install "jqmix[target-tpu]" has the one that fits' in said


def test_the_summary_names_everything(module):
    found = forecast(module, SLOW, ("collecting", "learning")).as_dict()
    memory = {"state": 10**6, "temporary": 2 * 10**6, "reserved": 3 * 10**6, "available": 10**9}
    about = {"target": "slow", "devices": 2, "members_per_device": 1, "jax": "0", "trace_s": 1.0, "compile_s": 2.0}
    result = {**about, **found, "memory": memory, "predicted_steps_per_s": 1234.5}
    text = target_summary(result)
    for told in ("2 × slow", "collecting", "1 all-reduce", "1 MB of state", "1,234", "counted with one turn: 1"):
        assert told in text
    json.dumps(result)


@pytest.mark.slow
@pytest.mark.parametrize("chip, package", [("h100", "jax_plugins.xla_cuda13"), ("a100", "jax_plugins.xla_cuda13"),
                                           ("v5e", "libtpu"), ("v6e", "libtpu")])  # fmt: skip
@pytest.mark.parametrize("devices", [1, 8])  # four share a member
def test_compiles_for_chips_that_are_not_here(chip, package, devices, capsys, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    flags = ["--window", "16", "--rollouts", "4", "--seeds", "2", "--json", "--target", chip, "--devices", str(devices)]
    assert main(["bench", "two_step_game", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["devices"] == devices
    assert result["parts"]["collecting"]["launches"] > 16 and result["memory"]["reserved"] > 10**5
    assert np.isfinite(result["predicted_steps_per_s"])
