"""SMAX (2311.10090, §4.1) as whole-array operations: JaxMARL's dynamics, heuristic enemy, observations and masks.

It is the same environment as JaxMARL 0.2's ``HeuristicEnemySMAX``: equal states, actions and noise lead to equal
states, observations, rewards and masks (``tests/test_smax.py``, against the installed JaxMARL). What differs is the
shape of the computation. Inside, the environments are the *last* axis of every array, units come before it, and x and
y are apart: ``[n, E]`` for units. So every operation runs along full vector registers, where ``[E, n, n, 2]`` leaves it
an axis of 2. Of few units, what is asked of pairs is asked of all pairs at once, as with few environments operations
cost more than what they do; of many, each pair once, in a short loop. Noise is an argument of the dynamics, and one
call draws all that a step needs.
"""

import difflib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jqmix.kernels.platform import plain, platform
from jqmix.kernels.self_test import mismatch, trouble_with
from jqmix.types import Entities, EnvSpec, Seen, TimeStep

SIZE = 32.0  # the map is a square
WORLD_STEPS = 8  # in one environment step, of DT seconds each
DT = 1.0 / 16
MOVES = 5  # actions: up, right, down, left, stop; then one attack per enemy
STOP = MOVES - 1
NOBODY = -1  # in place of a unit's number
FAR = 1e4  # from everything on the map
AT_ONCE = 4  # how far loops over units are unrolled
FEW = 16  # units, of which everybody is compared with everybody at once: fewer and larger steps, if more work
UNIT_FEATURES, OWN_FEATURES = 13, 10
# A move's length in float32: JaxMARL turns a diagonal vector by 45 degrees, which rounds to a little under 1.
MOVE = float(np.float32(2) * np.float32(1 / np.sqrt(2)) ** 2)

MARINE, MARAUDER, STALKER, ZEALOT, ZERGLING, HYDRALISK = range(6)


class Attributes(NamedTuple):
    """What the type of a unit decides, as [n, 1] where the map fixes the types, else [n, E]."""

    velocity: Array | np.ndarray
    attack: Array | np.ndarray
    attack_range: Array | np.ndarray
    sight_range: Array | np.ndarray
    radius: Array | np.ndarray
    max_health: Array | np.ndarray
    max_cooldown: Array | np.ndarray


TABLE = Attributes(
    velocity=np.array([3.15, 2.25, 4.13, 3.15, 4.13, 3.15], np.float32),
    attack=np.array([9, 10, 13, 8, 5, 12], np.float32),
    attack_range=np.array([5, 6, 6, 2, 2, 5], np.float32),
    sight_range=np.array([9, 10, 10, 9, 8, 9], np.float32),
    radius=np.array([0.375, 0.5625, 0.625, 0.5, 0.375, 0.625], np.float32),
    max_health=np.array([45, 125, 160, 150, 35, 80], np.float32),
    max_cooldown=np.array([0.61, 1.07, 1.87, 0.86, 0.5, 0.59], np.float32),
)


class Scenario(NamedTuple):
    """The units of both teams, allies first; ``random``: types and positions drawn at every reset (SMACv2)."""

    allies: list[int]
    enemies: list[int]
    random: bool = False


SCENARIOS: dict[str, Scenario] = {
    "3m": Scenario([MARINE] * 3, [MARINE] * 3),
    "8m": Scenario([MARINE] * 8, [MARINE] * 8),
    "25m": Scenario([MARINE] * 25, [MARINE] * 25),
    "2s3z": Scenario([STALKER] * 2 + [ZEALOT] * 3, [STALKER] * 2 + [ZEALOT] * 3),
    "3s5z": Scenario([STALKER] * 3 + [ZEALOT] * 5, [STALKER] * 3 + [ZEALOT] * 5),
    "5m_vs_6m": Scenario([MARINE] * 5, [MARINE] * 6),
    "10m_vs_11m": Scenario([MARINE] * 10, [MARINE] * 11),
    "27m_vs_30m": Scenario([MARINE] * 27, [MARINE] * 30),
    "3s5z_vs_3s6z": Scenario([STALKER] * 3 + [ZEALOT] * 5, [STALKER] * 3 + [ZEALOT] * 6),
    "3s_vs_5z": Scenario([STALKER] * 3, [ZEALOT] * 5),
    "6h_vs_8z": Scenario([HYDRALISK] * 6, [ZEALOT] * 8),
    "smacv2_5_units": Scenario([MARINE] * 5, [MARINE] * 5, random=True),
    "smacv2_10_units": Scenario([MARINE] * 10, [MARINE] * 10, random=True),
    "smacv2_20_units": Scenario([MARINE] * 20, [MARINE] * 20, random=True),
}


class SMAXState(NamedTuple):
    """E environments: ``[E, n]`` outside, ``[n, E]`` inside. A unit lives while its health is above zero."""

    x: Float[Array, "E n"]
    y: Float[Array, "E n"]
    health: Float[Array, "E n"]
    cooldown: Float[Array, "E n"]  # seconds until the weapon may fire
    action: Int[Array, "E n"]  # the last one, which everybody near can see
    goal_x: Float[Array, "E M"]  # where an enemy that sees nobody walks to
    goal_y: Float[Array, "E M"]
    focus: Int[Array, "E M"]  # whom an enemy shoots at, counted from the last ally; or -1
    types: Int[Array, "E n"] | None  # None where the map fixes them


class PackedState(NamedTuple):
    """What the observations, the global state and the masks follow from, a tenth of their size or less."""

    units: Float[Array, "*batch 4n"]  # x, y, health, cooldown of all, one after another: copied as one array
    action: Int[Array, "*batch n"]
    types: Int[Array, "*batch n"] | None


class Shown(NamedTuple):
    """A :class:`PackedState` laid apart again, [n, E]: as of a state, what is seen can be computed of it."""

    x: Float[Array, "n E"]
    y: Float[Array, "n E"]
    health: Float[Array, "n E"]
    cooldown: Float[Array, "n E"]
    action: Int[Array, "n E"]
    types: Int[Array, "n E"] | None


class Viewer(NamedTuple):
    """An agent that looks at the other units."""

    before: Bool[Array, " others"]  # which of the others have a number below its own
    x: Float[Array, " E"]
    y: Float[Array, " E"]
    sight: Float[Array, " E"]
    alive: Bool[Array, " E"]


class Noise(NamedTuple):
    """All the randomness of one step, uniform in [0, 1)."""

    cooldown: Float[Array, "W n E"]  # each world step's deviation of a weapon's next cooldown
    target: Float[Array, "M E"]  # which of the allies in sight an enemy follows


class Moving(NamedTuple):
    """What world steps change, [n, E]."""

    x: Float[Array, "n E"]
    y: Float[Array, "n E"]
    health: Float[Array, "n E"]
    cooldown: Float[Array, "n E"]


class Found(NamedTuple):
    """What the enemies know of the allies looked at so far, [M, E]."""

    closest: Float[Array, "M E"]  # distance, at most their reach
    nearest: Float[Array, "M E"]  # the number of that ally, or NOBODY
    seen: Float[Array, "M E"]  # how many are in sight


class Enemies(NamedTuple):
    """What enemies choose by, [M, E]. Allies are numbered from the last to the first."""

    x: Float[Array, "M E"]
    y: Float[Array, "M E"]
    sight: Float[Array, "M E"]  # 0: of the dead
    reach: Float[Array, "M E"]
    focus: Int[Array, "M E"]
    goal_x: Float[Array, "M E"]
    goal_y: Float[Array, "M E"]

    def none_found(self) -> Found:
        return Found(self.reach, jnp.full_like(self.x, NOBODY), jnp.zeros_like(self.x))

    def look(self, found: Found, number: Array, x: Float[Array, "... E"], y: Float[Array, "... E"]) -> Found:
        """At the next ally, which is there."""
        distance = _distance(x - self.x, y - self.y)
        nearest = jnp.where(distance < found.closest, number, found.nearest)
        seen = found.seen + jnp.where(distance < self.sight, 1.0, 0.0)
        return Found(jnp.minimum(distance, found.closest), nearest, seen)

    def decide(
        self, found: Found, followed: Int[Array, "M E"], at: Callable[[Array], tuple[Array, Array]]
    ) -> tuple[Int[Array, "M E"], Int[Array, "M E"]]:
        """Their actions, and whom they shoot at; ``at``: where allies with these numbers are."""
        focus_x, focus_y = at(self.focus)
        to_focus = _distance(focus_x - self.x, focus_y - self.y)
        keeps = (self.focus != NOBODY) & (to_focus < self.reach)
        focus = jnp.where(keeps, self.focus, found.nearest.astype(jnp.int32))
        can_see, (followed_x, followed_y) = found.seen > 0, at(followed)
        dx = jnp.where(can_see, followed_x, self.goal_x) - self.x
        dy = jnp.where(can_see, followed_y, self.goal_y) - self.y
        along_x, along_y = jnp.where(dx > 0, 1, 3), jnp.where(dy >= 0, 0, 2)
        move = jnp.where(jnp.abs(dx) > jnp.abs(dy), along_x, along_y)
        return jnp.where(focus == NOBODY, move, focus + MOVES), focus


class Pushed(NamedTuple):
    """Sums over pairs so far: what pushes unit i, and what pushes back unit i + k, at row i + k < 2n."""

    x: Float[Array, "n E"]
    y: Float[Array, "n E"]
    back_x: Float[Array, "2n E"]
    back_y: Float[Array, "2n E"]


def all_at_once() -> bool:
    """Whether what is asked of units, pairs and moments is asked of all at once, whatever their number: an accelerator
    wants few and large operations."""
    return platform() != "cpu"


def _distance(dx: Array, dy: Array) -> Array:
    return jnp.sqrt(dx * dx + dy * dy)


def _attributes(types: Array | np.ndarray) -> Attributes:
    if isinstance(types, np.ndarray):  # fixed by the map: constants of the program
        return Attributes(*(column[types] for column in TABLE))
    return Attributes(*(jnp.asarray(column)[types] for column in TABLE))


def _aside(x: Array, alive: Array) -> Array:
    """Takes the dead out of everybody's reach, which spares the loops over pairs their masks."""
    return jnp.where(alive, x, FAR)


def _at_unit(v: Array, unit: Int[Array, "k E"]) -> Array:
    """``v`` [n, E] of the units with these numbers; of the first one for NOBODY, of the last beyond it."""
    if all_at_once():
        is_it = jnp.clip(unit, 0, len(v) - 1) == jnp.arange(len(v))[:, None, None]  # [n, k, E]
        return jnp.sum(v[:, None], axis=0, where=is_it).astype(v.dtype)
    if len(v) > FEW:
        return jnp.take_along_axis(v, jnp.maximum(unit, 0), axis=0, mode="clip")
    reached = unit >= jnp.arange(1, len(v))[:, None, None]  # [n - 1, k, E]
    found = jnp.broadcast_to(v[0], unit.shape)
    for its, at_least in zip(v[1:], reached, strict=True):
        found = jnp.where(at_least, its, found)
    return found


def _received(v: Array | np.ndarray, unit: Int[Array, "n E"]) -> Array:
    """What units [n, E] receive where each one gives its ``v`` [n, E or 1] to the unit with this number, if any."""
    if all_at_once():
        gifts = jnp.broadcast_to(v, unit.shape)[:, None]
        return jnp.sum(gifts, axis=0, where=unit[:, None] == jnp.arange(len(v))[:, None])
    if len(v) > FEW:
        at = jnp.where(unit == NOBODY, len(v), unit), jnp.arange(unit.shape[1])
        return jnp.zeros(unit.shape).at[at].add(jnp.broadcast_to(v, unit.shape), mode="drop")
    numbers = jnp.arange(len(v))[:, None]
    return sum(jnp.where(to == numbers, gift, 0.0) for to, gift in zip(unit, v, strict=True))  # type: ignore[return-value]


def moves(action: Array) -> tuple[Array, Array]:
    """Where actions lead, along x and y; attacking and stopping lead nowhere."""
    x = (action == 1).astype(jnp.float32) - (action == 3)
    y = (action == 0).astype(jnp.float32) - (action == 2)
    return MOVE * x, MOVE * y


def smax_actions(enemies: int) -> tuple[str, ...]:
    """What an ally's actions are called."""
    return "up", "right", "down", "left", "stop", *(f"attack enemy {i}" for i in range(enemies))


class Battle(NamedTuple):
    """The rules of one map, on ``[n, E]`` arrays."""

    allies: int
    enemies: int
    types: Int[np.ndarray, "n 1"]  # where the state brings none
    see_enemy_actions: bool
    walls_cause_death: bool

    def attributes(self, s: SMAXState | Shown) -> Attributes:
        return _attributes(self._types(s))

    def step(
        self, s: SMAXState, actions: Int[Array, "N E"], noise: Noise
    ) -> tuple[SMAXState, Float[Array, " E"], Bool[Array, " E"]]:
        """One environment step: the state, the allies' reward, and whether they won."""
        a, na, before = self.attributes(s), self.allies, s.health
        turn = self.turn_in_one_kernel if self.has_a_kernel() else self.turn
        s = turn(a, s, actions, noise)
        damage = jnp.sum(((before - s.health) / a.max_health)[na:], axis=0) / self.enemies
        alive = s.health > 0
        won = jnp.any(alive[:na], axis=0) & ~jnp.any(alive[na:], axis=0)
        return s, damage + won, won

    def has_a_kernel(self) -> bool:
        """Whether a turn is one kernel: on a GPU that gets it right (:mod:`jqmix.kernels.self_test`)."""
        return platform() == "gpu" and not plain("world_steps") and self.kernel_trouble() is None

    def kernel_trouble(self) -> str | None:
        """What is wrong with it on the GPU that is there."""
        units = self.allies + self.enemies
        return trouble_with(f"SMAX with {units} units", lambda: mismatch(self._both_forms, self._crowd))

    def _both_forms(self, *battle: Any) -> tuple[Any, Any]:
        a = _attributes(self.types)
        return self.turn_in_one_kernel(a, *battle), self.turn(a, *battle)

    def _crowd(self) -> tuple[SMAXState, Array, Noise]:
        """Some battles: units near one another, some of them dead, some about to shoot. Of several columns."""
        rng, shape = np.random.default_rng(0), (self.allies + self.enemies, 5)
        m = self.enemies, shape[1]
        x, y = (jnp.asarray(rng.uniform(10, 16, shape), jnp.float32) for _ in range(2))
        health = jnp.asarray(80.0 * (rng.random(shape) < 0.8), jnp.float32)
        cooldown = jnp.asarray(np.maximum(rng.uniform(-1, 1, shape), 0), jnp.float32)
        goal_x, goal_y = (jnp.asarray(rng.uniform(0, SIZE, m), jnp.float32) for _ in range(2))
        focus = jnp.asarray(rng.integers(NOBODY, self.allies, m), jnp.int32)
        actions = jnp.asarray(rng.integers(0, MOVES + self.enemies, (self.allies, shape[1])), jnp.int32)
        s = SMAXState(x, y, health, cooldown, jnp.zeros(shape, jnp.int32), goal_x, goal_y, focus, None)
        noise = Noise(*(jnp.asarray(rng.random(some), jnp.float32) for some in ((WORLD_STEPS, *shape), m)))
        return s, actions, noise

    def turn(self, a: Attributes, s: SMAXState, actions: Int[Array, "N E"], noise: Noise) -> SMAXState:
        """The enemies choose their actions, and with everybody's the world goes on."""
        na = self.allies
        enemy_actions, focus = self.enemy_policy(a, s, noise.target)
        joint = jnp.concatenate([actions, enemy_actions])
        # Whom everybody aims at: enemies number the allies from the last to the first.
        aim = jnp.concatenate([actions + (na - MOVES), (na - 1 + MOVES) - enemy_actions])
        aim = jnp.where(joint >= MOVES, aim, NOBODY)
        return self.world_steps(a, s._replace(action=joint, focus=focus), aim, noise.cooldown)

    def world_steps(self, a: Attributes, s: SMAXState, aim: Int[Array, "n E"], u: Float[Array, "W n E"]) -> SMAXState:
        def world_step(s: SMAXState, u: Array) -> tuple[SMAXState, None]:
            return self.world_step(a, s, aim, u), None

        # On a GPU a loop's turns are launches that are not fused with one another.
        return jax.lax.scan(world_step, s, u, unroll=WORLD_STEPS if platform() == "gpu" else 1)[0]

    def turn_in_one_kernel(self, a: Attributes, s: SMAXState, actions: Int[Array, "N E"], noise: Noise) -> SMAXState:
        """The same. Within, what is the enemies' stands at their numbers among all units. Units that are added, as the
        kernel's arrays need some more, have no health, and do nothing."""
        from jqmix.kernels.columns import over_columns, power_of_two  # where it is asked for: Pallas takes a while

        n, na = len(s.x), self.allies

        def run(changing: Any, given: Any) -> tuple[Moving, Array, Array]:
            moving, action, focus = jax.tree.map(lambda part: part[...], changing)
            places, (u, *given) = changing[0], given
            a, *theirs = jax.tree.map(lambda part: part[...], given)
            chosen, focus = self._enemy_policy_by_loops(a, moving, places, focus, *theirs)
            is_ally = jnp.arange(len(action))[:, None] < na
            joint, nobody = jnp.where(is_ally, action, chosen), jnp.zeros((), jnp.int32)
            aim = jnp.where(is_ally, action + (na - MOVES), (na - 1 + MOVES) - chosen)
            aim = jnp.where(joint >= MOVES, aim, NOBODY)

            def world_step(i: Array, moving: Moving) -> Moving:
                s = self.world_step(a, SMAXState(*moving, joint, nobody, nobody, nobody, None), aim, u[i])
                return Moving(s.x, s.y, s.health, s.cooldown)

            return jax.lax.fori_loop(0, WORLD_STEPS, world_step, moving), joint, focus

        def among_all(v: Array, before: int) -> Array:
            return jnp.pad(v, [(before, n - before - len(v)), (0, 0)])

        moving, attributes = Moving(s.x, s.y, s.health, s.cooldown), jax.tree.map(jnp.asarray, a)
        theirs = [among_all(v, na) for v in (noise.target, s.goal_x, s.goal_y)]
        changing = moving, among_all(actions, 0), among_all(s.focus, na)
        moved, joint, focus = over_columns(run, changing, (noise.cooldown, attributes, *theirs), power_of_two(n) ** 2)
        return s._replace(**moved._asdict(), action=joint, focus=focus[na:])

    def world_step(self, a: Attributes, s: SMAXState, aim: Int[Array, "n E"], u: Float[Array, "n E"]) -> SMAXState:
        """DT seconds: everybody shoots and moves at once; then walls kill, and units that overlap are pushed apart.

        ``aim``: the unit that each one shoots at, or ``NOBODY``.
        """
        alive = s.health > 0
        ready = alive & (s.cooldown <= 0.0)
        distance = _distance(s.x - _at_unit(s.x, aim), s.y - _at_unit(s.y, aim))
        fired = ready & (aim != NOBODY) & _at_unit(alive, aim) & (distance < a.attack_range)
        # Sums of whole numbers: exact in any order.
        damage = _received(a.attack, jnp.where(fired, aim, NOBODY))
        recharge = a.max_cooldown + (3 * DT * u - DT)
        move_x, move_y = moves(s.action)
        x = jnp.where(alive, jnp.clip(s.x + move_x * a.velocity * DT, 0.0, SIZE), s.x)
        y = jnp.where(alive, jnp.clip(s.y + move_y * a.velocity * DT, 0.0, SIZE), s.y)
        health = jnp.maximum(s.health - damage, 0.0)
        if self.walls_cause_death:
            inside = (x > 0.0) & (x < SIZE) & (y > 0.0) & (y < SIZE)
            health = jnp.where(inside, health, 0.0)
        x, y = push_apart(x, y, health > 0, a.radius)
        cooldown = s.cooldown + jnp.where(fired, recharge - s.cooldown, -DT)
        return s._replace(x=x, y=y, health=health, cooldown=cooldown)

    def enemy_policy(self, a: Attributes, s: SMAXState, u: Float[Array, "M E"]) -> tuple[Array, Array]:
        """Shoot at the same ally while it can be hit, else at the closest; else follow one in sight, else walk on.

        Returns the enemies' actions and whom they shoot at, both [M, E].
        """
        na = self.allies
        alive = s.health > 0
        ally_x, ally_y = _aside(s.x, alive)[:na][::-1], s.y[:na][::-1]  # from the last to the first
        sight = jnp.where(alive[na:], a.sight_range[na:], 0.0)
        reach = jnp.minimum(sight, a.attack_range[na:])
        enemies = Enemies(s.x[na:], s.y[na:], sight, reach, s.focus, s.goal_x, s.goal_y)

        def look(found: Found, ally: tuple[Array, Array, Array]) -> tuple[Found, Array]:
            found = enemies.look(found, *ally)
            return found, found.seen

        allies = jnp.arange(na, dtype=jnp.float32), ally_x, ally_y
        found, seen_so_far = jax.lax.scan(look, enemies.none_found(), allies, unroll=AT_ONCE)
        # Of those in sight, the one before whom a uniformly drawn number of them comes.
        drawn = (1.0 - u) * found.seen

        def passed_by(count: Array, seen: Array) -> tuple[Array, None]:
            return count + jnp.where(seen < drawn, 1.0, 0.0), None

        followed = jax.lax.scan(passed_by, jnp.zeros_like(u), seen_so_far, unroll=AT_ONCE)[0].astype(jnp.int32)
        return enemies.decide(found, followed, lambda number: (_at_unit(ally_x, number), _at_unit(ally_y, number)))

    def _enemy_policy_by_loops(
        self, a: Attributes, s: Moving, places: Any, focus: Array, u: Array, goal_x: Array, goal_y: Array
    ) -> tuple[Array, Array]:
        """The same in a kernel, as if all units were enemies, [n, E]; ``places.x[i]`` is unit i's x."""
        na = self.allies
        alive = s.health > 0
        sight = jnp.where(alive, a.sight_range, 0.0)
        enemies = Enemies(s.x, s.y, sight, jnp.minimum(sight, a.attack_range), focus, goal_x, goal_y)

        def look(number: Array, found: Found) -> Found:
            i = na - 1 - number
            x, y, health = (part.row(i) for part in (places.x, places.y, places.health))
            return enemies.look(found, number.astype(jnp.float32), _aside(x, health > 0), y)

        def pass_by(number: Array, carry: tuple[Found, Array]) -> tuple[Found, Array]:
            found, count = look(number, carry[0]), carry[1]
            return found, count + jnp.where(found.seen < drawn, 1.0, 0.0)

        def at(number: Array) -> tuple[Array, Array]:
            unit = na - 1 - jnp.maximum(number, 0)
            return _at_unit(_aside(s.x, alive), unit), _at_unit(s.y, unit)

        found = jax.lax.fori_loop(0, na, look, enemies.none_found())
        drawn = (1.0 - u) * found.seen
        _, followed = jax.lax.fori_loop(0, na, pass_by, (enemies.none_found(), jnp.zeros_like(u)))
        return enemies.decide(found, followed.astype(jnp.int32), at)

    # What is seen. All of it follows from what :class:`Shown` holds.

    def show(self, s: SMAXState | Shown) -> Seen:
        return Seen(self.observe(s), self.global_state(s), self.available(s))

    def observe(self, s: SMAXState | Shown) -> Float[Array, "E N O"]:
        """Of every other unit in sight: health, relative position, last move and attack, cooldown, type; then one's
        own health, position, cooldown and type. Allies come first; a dead agent sees nothing."""
        a, na, n = self.attributes(s), self.allies, self.allies + self.enemies
        alive = s.health > 0
        acts = np.concatenate([np.full(na, self.enemies + MOVES - 1), np.full(self.enemies, na + MOVES - 1)])
        told = np.ones(n, bool) if self.see_enemy_actions else np.arange(n) < na
        attack = jnp.where(s.action >= MOVES, s.action, 0) / acts[:, None].astype(np.float32)
        cooldown = jnp.clip(s.cooldown / a.max_cooldown, 0.0, 1.0)
        kinds = self._kinds(s)
        told_of = [jnp.where(told[:, None], v, 0.0) for v in (*moves(s.action), attack)]
        nothing = jnp.zeros_like(s.x)  # in place of where a unit is, which depends on who looks
        features = [s.health / a.max_health, nothing, nothing, *told_of, cooldown, *kinds]
        shown, feature = jnp.stack(features, axis=1), np.arange(UNIT_FEATURES)[:, None]  # [n, 13, E]

        def seen_by(viewer: Viewer) -> Float[Array, "others 13 E"]:
            def others(v: Shaped[Array, "n *rest"]) -> Shaped[Array, "others *rest"]:
                return jnp.where(viewer.before.reshape(n - 1, *(1,) * (v.ndim - 1)), v[:-1], v[1:])

            dx, dy = others(s.x) - viewer.x, others(s.y) - viewer.y
            seen = (_distance(dx, dy) < viewer.sight) & viewer.alive & others(alive)
            place = dx / viewer.sight, dy / viewer.sight
            if platform() == "gpu":  # where to have all features in one array would be a launch
                seen_of_them = jnp.stack([others(features[0]), *place, *map(others, features[3:])], axis=1)
            else:
                x, y = (v[:, None] for v in place)
                seen_of_them = jnp.where(feature == 1, x, jnp.where(feature == 2, y, others(shown)))
            return jnp.where(seen[:, None], seen_of_them, 0.0)

        # The m-th other unit of agent i is m, or m + 1 from i itself on.
        before = jnp.asarray(np.arange(n - 1)[None] < np.arange(na)[:, None])
        viewers = Viewer(before, s.x[:na], s.y[:na], jnp.broadcast_to(a.sight_range, s.x.shape)[:na], alive[:na])
        # [N, n - 1, 13, E]: next to one another along the unit as in the rows, which leaves one plain transposition.
        seen_of_others = _over_viewers(seen_by, viewers)
        own = [f[None] for f in (s.health / a.max_health, s.x / SIZE, s.y / SIZE, cooldown)] + [kinds]
        of_self = jnp.concatenate([jnp.where(alive, f, 0.0)[:, :na] for f in own])  # [10, N, E]
        rows = jnp.moveaxis(seen_of_others, -1, 0).reshape(s.x.shape[1], na, UNIT_FEATURES * (n - 1))
        return jnp.concatenate([rows, of_self.transpose(2, 1, 0)], axis=-1)

    def global_state(self, s: SMAXState | Shown) -> Float[Array, "E S"]:
        """Of every living unit: health, position, cooldown, type; then all teams and types. Not normalised."""
        a, n = self.attributes(s), self.allies + self.enemies
        alive = s.health > 0
        features = [f[None] for f in (s.health / a.max_health, s.x, s.y, s.cooldown)] + [self._kinds(s)]
        units = jnp.concatenate([jnp.where(alive, f, 0.0) for f in features])  # [10, n, E]
        e = s.x.shape[1]
        teams = jnp.broadcast_to((np.arange(n) >= self.allies).astype(np.float32), (e, n))
        types = jnp.broadcast_to(jnp.asarray(self._types(s), jnp.float32).T, (e, n))
        return jnp.concatenate([units.transpose(2, 1, 0).reshape(e, -1), teams, types], axis=-1)

    def available(self, s: SMAXState | Shown) -> Bool[Array, "E N A"]:
        """The living move, and attack the enemies in range; the dead stop."""
        a, na = self.attributes(s), self.allies
        alive = s.health > 0
        distance = _distance(s.x[None, na:] - s.x[:na, None], s.y[None, na:] - s.y[:na, None])
        attacks = (distance < a.attack_range[:na, None]) & alive[None, na:] & alive[:na, None]
        walk = jnp.broadcast_to(alive[:na, None], (na, MOVES - 1, s.x.shape[1]))
        return jnp.concatenate([walk, jnp.ones_like(walk[:, :1]), attacks], axis=1).transpose(2, 0, 1)

    def _types(self, s: SMAXState | Shown) -> Array | np.ndarray:
        return self.types if s.types is None else s.types

    def _kinds(self, s: SMAXState | Shown) -> Float[Array, "6 n E"]:
        """One-hot types."""
        kinds = (self._types(s) == np.arange(6)[:, None, None]).astype(np.float32)
        return jnp.broadcast_to(kinds, (6, *s.x.shape))


def _over_viewers(seen_by: Callable[[Viewer], Array], viewers: Viewer) -> Float[Array, "N others 13 E"]:
    """What each sees. On a CPU one viewer after another: all at once, XLA's compiler makes one operation of it and of
    the transposition that follows, which places the numbers one by one and takes about twice as long."""
    if not all_at_once():
        return jax.lax.map(seen_by, viewers)
    seen = jax.vmap(seen_by)(viewers)
    # On a TPU the transposition that follows would be made of everything that goes into it, again and again.
    return jax.lax.optimization_barrier(seen) if platform() == "tpu" else seen


def push_apart(x: Array, y: Array, alive: Array, radius: Array | np.ndarray) -> tuple[Array, Array]:
    """Moves every living unit half of its overlaps with the living away from them; all [n, E]."""
    x_here = _aside(x, alive)
    pushed = _pushed_by_all if len(x) <= FEW or all_at_once() else _pushed_in_pairs
    push_x, push_y = pushed(x_here, y, radius)
    return jnp.where(alive, x + push_x / 2, x), jnp.where(alive, y + push_y / 2, y)


def _overlap(dx: Array, dy: Array, reach: Array | np.ndarray) -> Array:
    """Of two units with this sum of radii, as a multiple of their distance."""
    return jnp.maximum(reach / (_distance(dx, dy) + 1e-6) - 1.0, 0.0)


def _pushed_by_all(x: Array, y: Array, radius: Array | np.ndarray) -> tuple[Array, Array]:
    """Sums of the overlaps, along x and y: everybody with everybody, oneself at a distance of nothing included."""
    overlap = _overlap(x - x[:, None], y - y[:, None], radius + radius[:, None])  # [n, n, E]

    def along(v: Array) -> Array:
        if all_at_once():
            return jnp.sum((v - v[:, None]) * overlap, axis=0)
        return sum((v - other) * by for other, by in zip(v, overlap, strict=True))  # type: ignore[return-value]

    return along(x), along(y)


def _pushed_in_pairs(x: Array, y: Array, radius: Array | np.ndarray) -> tuple[Array, Array]:
    """The same, pair by pair: unit i meets unit i + k (mod n), for k = 1 … n/2. What i is pushed by, i + k is pushed
    back by; an [n, n, E] array would hold every pair twice."""
    n = len(x)
    shifts = jnp.arange(1, n // 2 + 1)
    share = jnp.where(2 * shifts == n, 0.5, 1.0)  # of an even number of units, the last shift meets every pair twice
    xs, ys, radii = (jnp.tile(jnp.broadcast_to(v, x.shape), (2, 1)) for v in (x, y, radius))

    def meet(pushed: Pushed, shift: tuple[Array, Array]) -> tuple[Pushed, None]:
        k, share = shift

        def other(v: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(v, k, n)

        def pushed_back(v: Array, push: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(v, other(v) - push, k, axis=0)

        dx, dy = x - other(xs), y - other(ys)
        overlap = share * _overlap(dx, dy, radius + other(radii))
        push_x, push_y = dx * overlap, dy * overlap
        return Pushed(
            pushed.x + push_x,
            pushed.y + push_y,
            pushed_back(pushed.back_x, push_x),
            pushed_back(pushed.back_y, push_y),
        ), None

    still, back = jnp.zeros_like(x), jnp.zeros_like(xs)
    pushed, _ = jax.lax.scan(meet, Pushed(still, still, back, back), (shifts, share), unroll=AT_ONCE)
    return pushed.x + pushed.back_x[:n] + pushed.back_x[n:], pushed.y + pushed.back_y[:n] + pushed.back_y[n:]


# Where a battle begins.


def initial_state(scenario: Scenario, key: Array, size: int) -> SMAXState:
    """``size`` = E fresh battles, [n, E]."""
    na, m = len(scenario.allies), len(scenario.enemies)
    fixed = np.array([*scenario.allies, *scenario.enemies])[:, None]
    if scenario.random:
        key_position, key_type = jax.random.split(key)
        x, y = _random_positions(key_position, na, m, size)
        allies = jax.random.randint(key_type, (na, size), 0, 6)
        # The enemy mirrors the allies; enemies beyond their number are marines, as in JaxMARL.
        types = jnp.concatenate([allies, allies, jnp.zeros((m, size), allies.dtype)])[: na + m]
        types = types if m >= na else jnp.concatenate([allies, allies[:m]])
    else:
        noise = jax.random.uniform(key, (2, na + m, size), minval=-2.0, maxval=2.0)
        home = np.where(np.arange(na + m) < na, SIZE / 4, 3 * SIZE / 4).astype(np.float32)
        x, y, types = jnp.asarray(home)[:, None] + noise[0], SIZE / 2 + noise[1], None
    a = _attributes(fixed if types is None else types)
    x, y = push_apart(x, y, jnp.ones(x.shape, bool), a.radius)
    zeros = jnp.zeros(x.shape)
    return SMAXState(
        x=x,
        y=y,
        health=jnp.broadcast_to(a.max_health, x.shape),
        cooldown=zeros,
        action=jnp.full(x.shape, STOP, jnp.int32),
        goal_x=SIZE - x[na:],
        goal_y=SIZE - y[na:],
        focus=jnp.full((m, size), -1, jnp.int32),
        types=types,
    )


def _random_positions(key: Array, na: int, m: int, size: int) -> tuple[Array, Array]:
    """SMACv2's: half of the battles mirror the allies, in the others one team surrounds the other."""
    n = na + m
    keys = iter(jax.random.split(key, 6))
    uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
    # Mirrored: allies anywhere in the left half, enemies opposite; more enemies than allies: anywhere on the right.
    left_x, left_y = uniform(next(keys), (2, n, size)) * jnp.array([SIZE / 2, SIZE])[:, None, None]
    paired = min(na, m)
    reflect_x = jnp.concatenate([left_x[:na], SIZE - left_x[:paired], SIZE / 2 + left_x[na : na + m - paired]])
    reflect_y = jnp.concatenate([left_y[:na], left_y[:paired], left_y[na : na + m - paired]])
    # Surrounded: one team in the middle, the other in four groups between the middle and the corners.
    corner = jax.random.randint(next(keys), (n, size), 0, 4)
    along = jnp.take_along_axis(uniform(next(keys), (4, size)), corner, axis=0)
    group_x = along * SIZE / 2 + (1 - along) * SIZE * (corner >= 2)
    group_y = along * SIZE / 2 + (1 - along) * SIZE * (corner % 2)
    allies_inside = jax.random.bernoulli(next(keys), shape=(size,))
    inside = (jnp.arange(n) < na)[:, None] == allies_inside
    noise = uniform(next(keys), (2, n, size), minval=-2.0, maxval=2.0)
    surround_x = jnp.where(inside, SIZE / 2, group_x) + noise[0]
    surround_y = jnp.where(inside, SIZE / 2, group_y) + noise[1]
    surround = jax.random.bernoulli(next(keys), shape=(size,))
    return jnp.where(surround, surround_x, reflect_x), jnp.where(surround, surround_y, reflect_y)


class SMAX:
    """SMAX against the heuristic enemy, in the setting of JaxMARL's baselines. Wins are in ``info``.

    ``batched(E)`` is E environments at once; the environment itself is one of them.
    """

    def __init__(
        self,
        map_name: str,
        see_enemy_actions: bool = True,
        walls_cause_death: bool = True,
        max_steps: int = 100,
    ):
        if map_name not in SCENARIOS:
            near = difflib.get_close_matches(map_name, SCENARIOS, n=3, cutoff=0.0)
            raise ValueError(f"env.kwargs.map_name: no map {map_name!r}; did you mean {', '.join(near)}?")
        self.scenario = SCENARIOS[map_name]
        na, m = len(self.scenario.allies), len(self.scenario.enemies)
        fixed = np.array([*self.scenario.allies, *self.scenario.enemies])[:, None]
        self.battle = Battle(na, m, fixed, see_enemy_actions, walls_cause_death)
        obs_size, state_size = UNIT_FEATURES * (na + m - 1) + OWN_FEATURES, (OWN_FEATURES + 2) * (na + m)
        groups = tuple((units, UNIT_FEATURES) for units in (na - 1, m) if units)
        # JaxMARL compares its step counter before raising it: an episode has one step more than ``max_steps``.
        self.spec = EnvSpec(
            f"smax_{map_name}",
            na,
            MOVES + m,
            obs_size,
            state_size,
            max_steps + 1,
            reward_range=(0.0, 2.0),
            action_names=smax_actions(m),
            entities=Entities(groups, targets=len(groups) - 1),
        )

    def batched(self, size: int) -> "BatchedSMAX":
        return BatchedSMAX(self, size)

    def reset(self, key: Array) -> tuple[SMAXState, TimeStep]:
        return jax.tree.map(lambda v: v[0], self.batched(1).reset(key))

    def step(self, key: Array, state: SMAXState, actions: Int[Array, " N"]) -> tuple[SMAXState, TimeStep]:
        one = jax.tree.map(lambda v: v[None], state)
        return jax.tree.map(lambda v: v[0], self.batched(1).step(key, one, actions[None]))


class BatchedSMAX:
    """E battles at once."""

    def __init__(self, env: SMAX, size: int):
        self.spec, self.size = env.spec, size
        self._battle, self._scenario = env.battle, env.scenario

    def reset(self, key: Array) -> tuple[SMAXState, TimeStep]:
        s = initial_state(self._scenario, key, self.size)
        return _transposed(s), self.timestep(s, jnp.zeros((self.size,)), jnp.zeros((self.size,), bool))

    def noise(self, key: Array) -> Noise:
        """One step's for all environments, in one draw: numbers of 16 bits, which are fine enough."""
        n, m = self._battle.allies + self._battle.enemies, self._battle.enemies
        count = WORLD_STEPS * n + m
        bits = jax.random.bits(key, (-(-count // 2), self.size))
        u = jnp.concatenate([bits >> 16, bits & 0xFFFF])[:count].astype(jnp.float32) / 2**16
        return Noise(u[m:].reshape(WORLD_STEPS, n, self.size), u[:m])

    def kernel_trouble(self) -> str | None:
        """Why a GPU that is there plays without a kernel of ours, in a few words; None where it does not."""
        return self._battle.kernel_trouble()

    def step(self, key: Array, state: SMAXState, actions: Int[Array, "E N"]) -> tuple[SMAXState, TimeStep]:
        return self.step_with(self.noise(key), state, actions)

    def step_with(self, noise: Noise, state: SMAXState, actions: Int[Array, "E N"]) -> tuple[SMAXState, TimeStep]:
        s, reward, won = self._battle.step(_transposed(state), actions.T, noise)
        return _transposed(s), self.timestep(s, reward, won)

    def pack(self, state: SMAXState, timestep: TimeStep) -> PackedState:
        del timestep
        units = jnp.concatenate([state.x, state.y, state.health, state.cooldown], axis=-1)
        types = None if state.types is None else state.types.astype(jnp.int8)
        return PackedState(units, state.action.astype(jnp.int8), types)

    def unpack(self, packed: PackedState) -> Seen:
        *batch, _ = packed.action.shape
        units, action, types = jax.tree.map(lambda v: v.reshape(-1, v.shape[-1]).T, packed)
        x, y, health, cooldown = jnp.split(units, 4)
        seen = self._battle.show(Shown(x, y, health, cooldown, action.astype(jnp.int32), types))
        return jax.tree.map(lambda v: v.reshape(*batch, *v.shape[1:]), seen)

    def timestep(self, s: SMAXState, reward: Float[Array, " E"], won: Bool[Array, " E"]) -> TimeStep:
        alive = s.health > 0
        na = self._battle.allies
        over = ~(jnp.any(alive[:na], axis=0) & jnp.any(alive[na:], axis=0))
        return TimeStep(
            **self._battle.show(s)._asdict(),
            reward=reward,
            discount=1.0 - over.astype(jnp.float32),
            last=over,
            info={"won": won, "score": reward},
        )


def _transposed(s: SMAXState) -> SMAXState:
    return jax.tree.map(lambda v: v.T, s)
