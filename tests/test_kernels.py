"""Every fast path against its plain form, values and gradients; and what the compiled programs are made of."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import slow

from jqmix.kernels import gru as fast
from jqmix.kernels import gru_kernel, gru_triton, platform, products, self_test
from jqmix.kernels.gru_step import Gates, GRUParams
from jqmix.networks.agent import Agent
from jqmix.networks.cores import gru as plain
from jqmix.networks.cores.settings import GRUSettings
from jqmix.networks.layers import linear

SIZES = st.sampled_from([1, 3, 8, 64, 128])
# The platform


def test_the_platform_is_the_one_that_is_told():
    here = jax.default_backend()
    assert platform.platform() == here
    with platform.compiling_for("gpu"):
        assert platform.platform() == "gpu"
        with platform.compiling_for("tpu"):
            assert platform.platform() == "tpu"
        assert platform.platform() == "gpu"
    assert platform.platform() == here


def test_what_was_compiled_for_one_platform_or_form_is_not_taken_for_another():
    """The same function, jitted once."""

    @jax.jit
    def gradient(x, d):
        return products.weight_gradient(x, d)

    @jax.jit
    def product(x, w):
        return products.product(x, w)

    args = jnp.ones((40, 64)), jnp.ones((40, 10))

    def text(f, *args):
        f(*args)  # fills the caches of calls
        return f.lower(*args).as_text()

    barrier = "optimization_barrier"
    assert barrier in text(gradient, *args)
    with platform.compiling_for("gpu"):
        assert barrier not in text(gradient, *args)
    assert barrier in text(gradient, *args)

    x, w = jnp.ones((5, 4, 64)), jnp.ones((64, 10))
    assert not platform.plain("product")
    assert "reshape" in text(product, x, w)
    with platform.plain_forms():
        assert platform.plain("product")
        assert "reshape" not in text(product, x, w)
        with platform.plain_forms("gru"):
            assert platform.plain("gru") and not platform.plain("product")
            assert "reshape" in text(product, x, w)
    assert not platform.plain("product")


# Acting on accelerators


@pytest.mark.parametrize("settings", [{}, {"last_action": False}, {"agent_id": False, "layers": 2}])
def test_a_slot_takes_fewer_products_on_an_accelerator_and_gives_the_same(settings, rng, key):
    agent = Agent(n_agents=3, n_actions=5, obs_size=7, hidden=8, **settings)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), agent.init(key))
    obs, h = (jnp.asarray(rng.normal(size=(4, 3, size)), jnp.float32) for size in (7, 8))
    slot = h, obs, jnp.asarray(rng.integers(0, 5, (4, 3))), jnp.asarray([True, False, False, True])

    def products():
        return str(jax.make_jaxpr(agent.step)(params, *slot)).count("dot_general")

    on_a_cpu, counted = agent.step(params, *slot), products()
    with platform.compiling_for("tpu"):
        on_a_tpu = agent.step(params, *slot)
        assert products() == 2 + agent.layers < counted
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), on_a_tpu, on_a_cpu)


# Products


def assert_same(fast_form, plain_form, args, d, rtol=1e-4, atol=1e-4):
    """Values, and the gradients of all arguments from the result's gradient ``d``."""
    (out, pull), (expected, plain_pull) = (jax.vjp(f, *map(jnp.asarray, args)) for f in (fast_form, plain_form))
    np.testing.assert_allclose(out, expected, rtol=rtol, atol=atol)
    for a, b in zip(pull(jnp.asarray(d)), plain_pull(jnp.asarray(d)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@settings(deadline=None, max_examples=60)
@given(batch=st.lists(st.integers(0, 4), max_size=3), inputs=SIZES, outputs=SIZES, seed=st.integers(0, 99))
def test_product_and_its_gradients(batch, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x, w, d = (rng.normal(size=s).astype(np.float32) for s in ((*batch, inputs), (inputs, outputs), (*batch, outputs)))
    out, pull = jax.vjp(products.product, jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(out, x @ w, rtol=1e-4, atol=1e-4)
    d_x, d_w = pull(jnp.asarray(d))
    np.testing.assert_allclose(d_x, d @ w.T, rtol=1e-4, atol=1e-4)
    expected = x.reshape(int(np.prod(batch)), inputs).T @ d.reshape(int(np.prod(batch)), outputs)
    np.testing.assert_allclose(d_w, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (5,), (3, 4)])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 10), (10, 64), (5, 3)])
def test_product_is_its_plain_form(rng, batch, inputs, outputs):
    x, w, d = (rng.normal(size=s).astype(np.float32) for s in ((*batch, inputs), (inputs, outputs), (*batch, outputs)))
    assert_same(products.product, products.plain_product, (x, w), d)


@pytest.mark.parametrize(
    ("inputs", "outputs", "d_first"),
    [
        *((64, 10, True), (128, 96, True), (256, 64, True), (64, 1, True), (10, 64, False), (127, 64, False)),
        *((54, 256, False), (256, 320, False), (64, 64, False), (54, 32, False)),
    ],
)
def test_the_order_is_the_one_measured_as_faster(inputs, outputs, d_first):
    """And the compiled program has it: XLA does not exchange the operands again."""
    assert products.d_first(inputs, outputs) == d_first
    x, d = jnp.ones((40, inputs)), jnp.ones((40, outputs))
    program = jax.jit(products.weight_gradient).lower(x, d).compile().as_text()
    assert (f"f32[{outputs},{inputs}]" in program) == (d_first or inputs == outputs)
    with platform.compiling_for("gpu"):
        assert not products.d_first(inputs, outputs)


@pytest.mark.parametrize("rows", [1, 63, 64, 512, 520, 1009, 2 * 1009, 4128, 20640])
def test_a_gpu_sums_the_gradient_of_a_weight_in_parts(rng, rows):
    parts = products.parts_of(rows)
    assert parts == 1 or (rows % parts == 0 and 64 <= rows // parts <= 512)
    assert (parts > 1) == (rows in (520, 4128, 20640))
    x, d = (jnp.asarray(rng.normal(size=(rows, k)), jnp.float32) for k in (5, 3))
    with platform.compiling_for("gpu"):
        got = products.weight_gradient(x, d)
    np.testing.assert_allclose(got, np.asarray(x, np.float64).T @ np.asarray(d, np.float64), rtol=1e-4, atol=1e-3)


def test_a_layer_multiplies_by_it(rng, key):
    """Flax's layer with its leading axes, a bias, and the gradients of both."""
    layer, x = linear(64, 10), jnp.asarray(rng.normal(size=(5, 4, 64)).astype(np.float32))
    params = layer.init(key, x)["params"]
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), x @ params["kernel"] + params["bias"], rtol=1e-5, atol=1e-5
    )
    grads = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x) ** 2))(params)
    expected = jax.grad(lambda p: jnp.sum((x @ p["kernel"] + p["bias"]) ** 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), grads, expected)


def test_the_plain_form_takes_the_place_of_the_fast_one(rng):
    """Bit by bit."""
    args = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32), jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
    plain_form = str(jax.make_jaxpr(products.plain_product)(*args))
    assert str(jax.make_jaxpr(products.product)(*args)) != plain_form
    with platform.plain_forms():
        assert str(jax.make_jaxpr(products.product)(*args)) == plain_form


# The precision of products


def to_bfloat16(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)


def test_products_of_rounded_numbers_on_a_cpu(rng):
    """Operands are rounded, sums are not; in the gradient as well, in every form."""
    x, w, d = (rng.normal(size=s).astype(np.float32) for s in ((40, 64), (64, 10), (40, 10)))
    a, b, c = (to_bfloat16(v) for v in (x, w, d))
    exact = x.astype(np.float64) @ w
    for form in (products.product, products.plain_product, products.matmul):
        with products.products_in("bfloat16"):
            out, pull = jax.vjp(form, jnp.asarray(x), jnp.asarray(w))
            d_x, d_w = pull(jnp.asarray(d))
        for got, expected in ((out, a @ b), (d_x, c @ b.T), (d_w, a.T @ c)):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert np.abs(out - exact).max() > 1e-2
        with products.products_in("float32"):
            np.testing.assert_allclose(form(jnp.asarray(x), jnp.asarray(w)), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("core", slow(["gru", "lstm"]))
def test_a_window_of_products_of_rounded_numbers(rng, key, core):
    """All products of an agent are: the hand-written backward pass rounds as the plain form does."""
    agent = Agent(2, 3, 5, hidden=32, core=core)
    params = agent.init(key)
    obs, action = jnp.asarray(rng.normal(size=(6, 40, 2, 5)), jnp.float32), jnp.zeros((6, 40, 2), jnp.int32)

    def gradient(params):
        return jax.grad(lambda p: jnp.mean(agent.unroll(p, obs, action, jnp.zeros((6, 40), bool)).q ** 2))(params)

    exact = gradient(params)
    with products.products_in("bfloat16"):
        text = str(jax.make_jaxpr(gradient)(params))
        got = gradient(params)
        with platform.plain_forms():
            expected = gradient(params)
    assert text.count("reduce_precision[") >= text.count("dot_general[")
    leaves = list(zip(*map(jax.tree.leaves, (got, expected, exact)), strict=True))
    for x, y, z in leaves:
        size = float(jnp.max(jnp.abs(z)))
        np.testing.assert_allclose(x, y, atol=1e-2 * size)
        np.testing.assert_allclose(x, z, atol=0.1 * size)
    assert any(
        not np.allclose(x, z, rtol=1e-3, atol=0) for x, z in zip(*map(jax.tree.leaves, (got, exact)), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "precision", "said"),
    [
        ("cpu", "default", None),
        ("tpu", "default", None),
        ("tpu", "bfloat16", None),  # as it is by default
        ("gpu", "bfloat16", "rhs_precision_type = bf16"),
        ("gpu", "float32", "HIGHEST"),
        ("tpu", "float32", "HIGHEST"),
    ],
)
def test_accelerators_are_told_the_precision(name, precision, said):
    args = jnp.ones((4, 3)), jnp.ones((3, 2))
    with platform.compiling_for(name), products.products_in(precision):
        traced = jax.jit(lambda x, w: products.product(x, w)).trace(*args)
        text = traced.lower(lowering_platforms=("cuda" if name == "gpu" else name,)).as_text()
    assert "reduce_precision" not in text
    assert said in text if said else "HIGHEST" not in text and "precision_type" not in text


# The GRU


def gru_window(rng, T, *batch, H, inputs=None):
    """(params, h, x, first)."""
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    i = inputs or H
    params = GRUParams(*(Gates(*draw(3, *shape)) for shape in ((i, H), (H,), (H, H), (H,))))
    return params, draw(*batch, H), draw(T, *batch, i), jnp.asarray(rng.random((T, *batch)) < 0.3)


def step_after_step(params, h, x, first):
    """The cell in a loop of Python's."""
    hs = []
    for t in range(len(x)):
        gates = Gates(*(x[t] @ w for w in params.w_i))
        h = plain.cell(params, jnp.where(first[t][..., None], 0.0, h), gates)
        hs.append(h)
    return jnp.stack(hs)


@pytest.mark.parametrize(("form", "inputs"), [("after", 4), ("after", 5), ("within", 5), ("kernel", 4), ("kernel", 5)])
def test_gru_gradients_are_those_of_the_plain_loop(rng, monkeypatch, form, inputs):
    """The hand-written backward pass, in all of its forms, against automatic differentiation of step after step, and of
    the plain scan."""
    monkeypatch.setattr(fast, "sums_within", lambda *_: form == "within")
    params, h, x, first = gru_window(rng, 9, 6, H=5, inputs=inputs)
    weight = jnp.asarray(rng.normal(size=(9, 6, 5)), jnp.float32)

    def both(unroll):
        return jax.value_and_grad(lambda p, x, h: jnp.sum(unroll(p, h, x, first) * weight), (0, 1, 2))(params, x, h)

    got = both(fast.unroll_in_kernel if form == "kernel" else fast.unroll)
    for oracle in (step_after_step, plain.unroll):
        for a, b in zip(jax.tree.leaves(both(oracle)), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [35, *slow([1, 16])])
def test_the_kernel_and_the_scan_are_the_plain_form(rng, rows):
    """However many rows its programs have to share, along whatever axes; for one member as under ``vmap``."""
    args = gru_window(rng, 7, rows, 2, H=16)
    weight = jnp.asarray(rng.normal(size=(7, rows, 2, 16)), jnp.float32)
    forms = [plain.unroll, fast.unroll, fast.unroll_in_kernel]

    def both_passes(form, params, h, x, first):
        return jax.value_and_grad(lambda *p: jnp.sum(weight * form(*p, first)), (0, 1, 2))(params, h, x)

    expected, *acting = (form(*args) for form in forms)  # with no backward pass to come
    for got in acting:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    two = jax.tree.map(lambda v: jnp.stack([v, v[::-1]]), args)
    for mapped, given_args in ((lambda f: f, args), (jax.vmap, two)):
        expected, *others = (mapped(partial(both_passes, form))(*given_args) for form in forms)
        for got in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


@pytest.mark.parametrize("options", [{}, {"share_parameters": False}], ids=str)
def test_an_agent_in_plain_forms_is_the_agent(rng, key, options):
    """Values and gradients of a window that goes on."""
    agent = Agent(3, 5, 7, hidden=64, **options)
    params = agent.init(key)
    obs = jnp.asarray(rng.normal(size=(9, 12, 3, 7)), jnp.float32)
    action, first = jnp.asarray(rng.integers(0, 5, (9, 12, 3))), jnp.asarray(rng.random((9, 12)) < 0.2)

    def loss(params):
        out = agent.unroll(params, obs, action.astype(jnp.int32), first)
        return jnp.mean(out.q**2), out

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    got = gradient(params)
    with platform.plain_forms():
        assert "custom_vjp" not in str(jax.make_jaxpr(lambda p: agent.unroll(p, obs, action, first))(params))
        expected = gradient(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


MOSAIC = jax.__version_info__ >= (0, 11, 2)
NEITHER = (0, 11) <= jax.__version_info__ < (0, 11, 2)


@pytest.mark.skipif(NEITHER, reason="with this jax a kernel is lowered by Triton, and only where a GPU is")
@pytest.mark.parametrize("hidden", [16, 64, 100, 128])
def test_a_gpu_is_given_two_kernels_and_no_loop(rng, hidden):
    """XLA compiles them for a GPU; what it is given needs none."""
    args = gru_window(rng, 5, 24, H=hidden)
    agent = Agent(2, 3, 4, hidden=hidden, core_settings=GRUSettings())
    params, (obs, action, first) = agent.init(jax.random.key(0)), (args[2][..., :4], args[3].astype(int), args[3])
    obs, action = (jnp.stack([v, v], axis=2) for v in (obs, action))

    def loss(params):
        return jnp.sum(agent.unroll(params, obs, action, first).q)

    several = jax.tree.map(lambda v: jnp.stack([v] * 3), params)
    with platform.compiling_for("gpu"):
        for gradient, given_params in ((jax.grad(loss), params), (jax.vmap(jax.grad(loss)), several)):
            program = jax.jit(gradient).trace(given_params).lower(lowering_platforms=("cuda",)).as_text()
            assert program.count("@mosaic_gpu_v2" if MOSAIC else "__gpu$xla.gpu.triton") == 2
            assert "stablehlo.while" not in program


def test_where_a_kernel_is_asked_for():
    auto, yes, no = (GRUSettings(wanted) for wanted in ("auto", "true", "false"))
    assert not any(plain.asks_for_kernel(settings, 64) for settings in (auto, yes, no))  # on a CPU
    with platform.compiling_for("gpu"):
        assert plain.asks_for_kernel(auto, 64) and plain.asks_for_kernel(yes, 1) and plain.asks_for_kernel(auto, 128)
        assert not plain.asks_for_kernel(no, 64) and not plain.asks_for_kernel(auto, 129)
    with platform.compiling_for("tpu"):
        assert not plain.asks_for_kernel(yes, 64)


@pytest.mark.skipif(not MOSAIC, reason="earlier versions of Mosaic lack its product")
@pytest.mark.parametrize("batch", [(3,), (4, 5)])
def test_the_programs_for_mosaic_are_the_plain_form(rng, monkeypatch, batch):
    """All of them but the tensor core's product and its layouts, which the interpreter does not know: indices, weights
    in two parts, the exchange through shared memory, members as an axis of the grid. Under two ``vmap``, too."""
    from jax.experimental.pallas import mosaic_gpu

    from jqmix.kernels import gru_mosaic

    def product(sum_, left, right):
        return sum_ + jnp.dot(left, right, preferred_element_type=jnp.float32)

    monkeypatch.setattr(gru_kernel, "lowering", lambda: gru_mosaic)
    monkeypatch.setattr(mosaic_gpu, "mma", product, raising=False)
    monkeypatch.setattr(mosaic_gpu, "layout_cast", lambda x, layout: x)
    args = gru_window(rng, 3, *batch, H=40)
    weight = jnp.asarray(rng.normal(size=args[2].shape), jnp.float32)

    def both_passes(form, params, h, x, first):
        return jax.value_and_grad(lambda *p: jnp.sum(weight * form(*p, first)), (0, 1, 2))(params, h, x)

    def check(mapped, args):
        expected = mapped(partial(both_passes, plain.unroll))(*args)
        with mosaic_gpu.force_gpu_interpret_mode():
            got = jax.jit(mapped(partial(both_passes, fast.unroll_in_kernel)))(*args)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * jnp.max(jnp.abs(b)))

    check(lambda f: f, args)
    two = jax.tree.map(lambda v: jnp.stack([v, v[::-1]]), args)
    check(jax.vmap, two)
    if len(batch) == 1:
        check(lambda f: jax.vmap(jax.vmap(f)), jax.tree.map(lambda v: v[None], two))


# Whether a GPU gets the kernel right


def not_a_number(forward, *args):
    hs, residuals = forward(*args)
    return hs.at[0, 0, -1].set(jnp.nan), residuals


def wrong_numbers(forward, params, *args):
    """With one gate's weights transposed."""
    return forward(params._replace(w_h=params.w_h._replace(z=params.w_h.z.T)), *args)


def wrong_gradient(backward, *args):
    return jax.tree.map(lambda d: 1.1 * d, backward(*args))


def refuses_to_lower(forward, *args):
    raise NotImplementedError("no such instruction\nand a long explanation")


def fails_while_running(forward, *args):
    def fail(hs):
        raise RuntimeError("launch failed")

    hs, residuals = forward(*args)
    return jax.pure_callback(fail, jax.ShapeDtypeStruct(hs.shape, hs.dtype), hs, vmap_method="sequential"), residuals


def test_a_sound_kernel_passes():
    assert self_test.disagreement(16) is None


@pytest.mark.parametrize(
    ("which", "broken", "says"),
    [
        ("forward", not_a_number, "off by nan"),
        ("forward", wrong_numbers, "off by 0."),
        ("backward", wrong_gradient, "off by 0.1"),
        ("forward", refuses_to_lower, "NotImplementedError: no such instruction"),
        ("forward", fails_while_running, "JaxRuntimeError: "),
    ],
)
def test_a_broken_kernel_is_found_out(monkeypatch, which, broken, says):
    monkeypatch.setattr(gru_kernel, which, partial(broken, getattr(gru_kernel, which)))
    found = self_test.disagreement(16)
    assert found is not None and says in found and "\n" not in found


def test_an_old_gpu_is_not_asked(monkeypatch):
    old = SimpleNamespace(platform="gpu", compute_capability="7.5", device_kind="Tesla T4")
    monkeypatch.setattr(jax, "local_devices", lambda: [old])
    monkeypatch.setattr(self_test, "disagreement", pytest.fail)
    assert self_test.trouble(64) == "Tesla T4 is of a generation before Ampere"


def test_a_broken_kernel_is_not_taken(rng, monkeypatch):
    """It is tested once, outside the program that is being traced."""
    calls = []
    monkeypatch.setattr(self_test, "_gpu", lambda: SimpleNamespace(compute_capability="9.0"))
    monkeypatch.setattr(self_test, "_found", {})
    monkeypatch.setattr(gru_kernel, "lowering", lambda: gru_triton)
    monkeypatch.setattr(plain, "platform", lambda: "gpu")
    monkeypatch.setattr(gru_kernel, "forward", partial(wrong_numbers, gru_kernel.forward))
    real = self_test.disagreement
    monkeypatch.setattr(self_test, "disagreement", lambda hidden: calls.append(hidden) or real(hidden))
    agent = Agent(2, 3, 4, hidden=16)
    params, obs = agent.init(jax.random.key(0)), jnp.ones((5, 7, 2, 4))
    args = params, obs, jnp.zeros((5, 7, 2), jnp.int32), jnp.zeros((5, 7), bool)
    for _ in range(2):
        program = str(jax.make_jaxpr(lambda *args: agent.unroll(*args).q)(*args))
        assert "scan" in program and "pallas" not in program
    assert calls == [16]
    monkeypatch.setattr(self_test, "_found", {"the GRU of width 16": None})
    assert "pallas" in str(jax.make_jaxpr(lambda *args: agent.unroll(*args).q)(*args))


def test_no_step_of_the_gru_copies_a_window():
    """Neither loop may: they write a window in place, which a read at the wrong moment turns into a copy per step."""
    T, M, H = 33, 40, 64
    gates = lambda *shape: Gates(*jnp.ones((3, *shape)))  # noqa: E731
    params = GRUParams(gates(H, H), gates(H), gates(H, H), gates(H))
    assert fast.sums_within(M, H, H)  # else another loop would be looked at

    def loss(params, x):
        return jnp.sum(fast.unroll(params, jnp.zeros((M, H)), x, jnp.zeros((T, M), bool)) ** 2)

    program = jax.jit(jax.grad(loss, (0, 1))).lower(params, jnp.ones((T, M, H))).compile().as_text()
    loops, entry = program.split("ENTRY")
    window = rf"= f32\[{T},{M},{H}\]\S* "
    assert re.search(window + r"\S+\(", loops)  # windows are in the loops
    assert not re.search(window + r"copy\(", loops)
