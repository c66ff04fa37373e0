"""``core.one_kernel``: what it takes, and what is said where a GPU gets the kernel wrong."""

import pytest
from test_damage import said

from jqmix.cli import main
from jqmix.config import ConfigError, build, dump, load_config, renamed
from jqmix.envs.registry import make_env
from jqmix.kernels import self_test
from jqmix.kernels.platform import compiling_for
from jqmix.learning import acting
from jqmix.networks.cores import gru
from jqmix.runs.jax_settings import check_kernels

ENV = make_env("two_step_game", batch=1)
WRONG = "the kernel's results are off by 0.5 of their size"


@pytest.fixture
def wrong_on_this_gpu(monkeypatch):
    """A GPU that gets the kernel wrong. What follows is computed on the CPU: the scan is what is left."""
    asked = []
    monkeypatch.setattr(gru, "platform", lambda: "gpu")
    for module in (self_test, gru):
        monkeypatch.setattr(module, "trouble", lambda hidden: asked.append(hidden) or WRONG)
    return asked


@pytest.mark.parametrize(
    ("given", "means"), [("auto", "auto"), (True, "true"), ("True", "true"), (False, "false"), ("false", "false")]
)
def test_what_it_takes(tmp_path, given, means):
    """It was true or false in earlier versions' files, flags and checkpoints."""
    cfg = build({"core.one_kernel": given})
    assert cfg.core.one_kernel == means
    (tmp_path / "c.yaml").write_text(dump(cfg))
    assert load_config(tmp_path / "c.yaml") == cfg
    assert renamed({"agent.one_kernel": given}) == {"core.one_kernel": means}


def test_it_is_on_where_it_proves_right():
    assert build({}).core.one_kernel == "auto"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"core.one_kernel": "maybe"}, "core.one_kernel: 'maybe' is not allowed; it takes one of auto, true, false"),
        ({"core.one_kernel": "true", "agent.hidden": 256}, "core.one_kernel: true takes agent.hidden ≤ 128, not 256"),
    ],
)
def test_what_it_does_not_take(values, says):
    with pytest.raises(ConfigError) as error:
        build(values)
    assert str(error.value) == says


def test_a_kernel_that_proves_wrong_is_told_or_refused(wrong_on_this_gpu):
    told = []
    check_kernels(build({"agent.core": "lstm"}), ENV, told.append)
    check_kernels(build({"core.one_kernel": "false"}), ENV, told.append)
    check_kernels(build({"agent.hidden": 256}), ENV, told.append)  # too wide: nothing to be told of
    assert told == wrong_on_this_gpu == []
    check_kernels(build({}), ENV, told.append)
    assert told == [f"core.one_kernel: a scan takes the kernel's place on this GPU ({WRONG})"]
    with pytest.raises(ConfigError, match="core.one_kernel: true can't be had on this GPU") as error:
        check_kernels(build({"core.one_kernel": "true"}), ENV, told.append)
    assert WRONG in str(error.value) and len(told) == 1


def test_acting_without_its_kernel_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(acting, "trouble_with", lambda kernel, proof: WRONG)
    with compiling_for("gpu"):
        check_kernels(build({"agent.share_parameters": False}), ENV, told.append)
        assert told == []
        check_kernels(build({}), ENV, told.append)
    assert told == [f"acting: its operations one by one take the kernel's place on this GPU ({WRONG})"]


def test_nothing_is_asked_of_a_cpu(monkeypatch):
    monkeypatch.setattr(self_test, "trouble", pytest.fail)
    check_kernels(build({"core.one_kernel": "true"}), ENV, pytest.fail)


FLAGS = "--env.name two_step_game --rollouts 2 --replay.capacity 4 --replay.batch 2 --total-steps 20 --eval.episodes 2"


def test_training_goes_on_with_a_scan(wrong_on_this_gpu, tmp_path, capfd):
    """And says so in one line; ``true`` ends in one, before anything is written."""
    command = ["train", *FLAGS.split(), "--log", "none", "--quiet", "--run-dir"]
    assert main([*command, str(tmp_path / "a"), "--core.one-kernel", "true"]) == 2
    (line,) = said(capfd)
    assert "core.one_kernel: true can't be had" in line
    assert not (tmp_path / "a").exists()
    assert main([*command, str(tmp_path / "b")]) == 0
    (line,) = [line for line in said(capfd) if "kernel" in line]
    assert WRONG in line
