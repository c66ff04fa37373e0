"""SMAX: units by type and size, their health, weapons that reload, shots; ours and JaxMARL's own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jqmix.envs.smax import DT, MOVES, NOBODY, TABLE, WORLD_STEPS
from jqmix.rendering.canvas import BLUE, FAINT, LINE, ORANGE, PAPER, WHITE, Canvas, Colour, Number, Point, blend
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene

# Of a type's shape: corners (0: a circle), where the first one points, in degrees from the right, and how far out.
SHAPES = {0: (0, 0, 1.0), 1: (6, 0, 1.1), 2: (4, 90, 1.25), 3: (4, 45, 1.25), 4: (3, 90, 1.5), 5: (5, 90, 1.15)}
MARGIN = 1.5  # of the map around all that happens, in its own units
LEAST = 12.0  # of the map's width that is shown
ENLARGED, CROWD = 0.5, 12  # units are drawn so much larger, to be seen; of more than so many, less
SHOT = 0.4  # of a step that a shot can be seen


class Units(NamedTuple):
    """Both teams at every state of an episode, allies first. ``target``: the unit that each aimed at while going there,
    or ``NOBODY``."""

    x: Float[np.ndarray, "T1 n"]
    y: Float[np.ndarray, "T1 n"]
    health: Float[np.ndarray, "T1 n"]
    cooldown: Float[np.ndarray, "T1 n"]
    target: Int[np.ndarray, "T1 n"]
    types: Int[np.ndarray, " n"]

    @property
    def alive(self) -> Bool[np.ndarray, "T1 n"]:
        return self.health > 0


def units_of(env: Any, episode: Episode) -> Units:
    """The units of an episode in our SMAX, or in JaxMARL's."""
    states, allies = episode.states, env.spec.n_agents
    if hasattr(states, "state"):  # JaxMARL's
        s = states.state
        x, y = s.unit_positions[..., 0], s.unit_positions[..., 1]
        health = np.where(s.unit_alive, s.unit_health, 0.0)
        cooldown, action, types = s.unit_weapon_cooldowns, s.prev_attack_actions, s.unit_types[0]
    else:
        x, y, health, cooldown, action = states.x, states.y, states.health, states.cooldown, states.action
        types = env.battle.types[:, 0] if states.types is None else states.types[0]
    number = np.arange(x.shape[1])
    # Enemies number the allies from the last to the first.
    aim = np.where(number < allies, action - MOVES + allies, allies - 1 + MOVES - action)
    return Units(x, y, health, cooldown, np.where(action >= MOVES, aim, NOBODY), types)


class SMAXScene(Scene):
    """Allies are blue, enemies orange; the numbers of enemies are those of the attacks."""

    frames, pace = 4, 5.0

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        super().__init__(env, episodes)
        self._units = [units_of(env, e) for e in episodes]
        shown = [(u.x[u.alive], u.y[u.alive]) for u in self._units]
        x, y = (np.concatenate(v) for v in zip(*shown, strict=True))
        self._middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
        width, height = np.ptp(x) + 2 * MARGIN, np.ptp(y) + 2 * MARGIN
        self.aspect = float(np.clip(height / width, 0.45, 0.85))
        self._shown = max(width, height / self.aspect, LEAST)  # of the map's width

    def actions(self) -> list[str]:
        return ["↑", "→", "↓", "←", "■", *(str(j + 1) for j in range(self.spec.n_actions - MOVES))]

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        u, scale = self._units[index], canvas.width / self._shown
        after = min(step + 1, self.episodes[index].length)
        x, y, health = (v[step] + phase * (v[after] - v[step]) for v in (u.x, u.y, np.where(u.alive, u.health, 0.0)))
        place = np.stack(
            [canvas.width / 2 + (x - self._middle[0]) * scale, canvas.height / 2 - (y - self._middle[1]) * scale], -1
        )
        self._ground(canvas, scale)
        alive = u.alive[step]
        radius = np.maximum(TABLE.radius[u.types] * scale * (1 + ENLARGED * min(1.0, CROWD / len(alive))), 4.0)
        for i in _numbers(~alive):
            _cross(canvas, place[i], radius[i] * 0.45, blend(self._colour(i), PAPER, 0.6))
        for i in _numbers(alive & (phase > 0) & _fires(u, step, after, phase)):
            self._shot(canvas, place[i], place[u.target[after, i]], self._colour(i))
        for i in _numbers(alive):
            colour = blend(self._colour(i), PAPER, 0.0 if u.alive[after, i] else 0.75 * phase)
            self._unit(canvas, i, place[i], radius[i], int(u.types[i]), colour)
            _bar(canvas, place[i], radius[i], health[i] / TABLE.max_health[u.types[i]], self._colour(i))

    def _colour(self, unit: int) -> Colour:
        return BLUE if unit < self.spec.n_agents else ORANGE

    def _ground(self, canvas: Canvas, scale: Number) -> None:
        """Lines every four units of length, and the map's edge where it can be seen."""
        for edge in range(0, 33, 4):
            x = canvas.width / 2 + (edge - self._middle[0]) * scale
            y = canvas.height / 2 - (edge - self._middle[1]) * scale
            colour = FAINT if edge in (0, 32) else LINE
            canvas.line([(x, 0), (x, canvas.height)], colour, 0.5)
            canvas.line([(0, y), (canvas.width, y)], colour, 0.5)

    def _shot(self, canvas: Canvas, start: Point, end: Point, colour: Colour) -> None:
        canvas.line([start, end], blend(colour, WHITE, 0.25), 2.0)
        canvas.circle(end, 3.5, blend(colour, WHITE, 0.25))

    def _unit(self, canvas: Canvas, i: int, at: Point, r: Number, kind: int, colour: Colour) -> None:
        corners, turn, out = SHAPES[kind]
        if corners:
            canvas.polygon(_corners(at, out * r, corners, turn), colour, WHITE, 1.0)
        else:
            canvas.circle(at, r, colour, WHITE, 1.0)
        if r >= 6:
            number = i + 1 if i < self.spec.n_agents else i + 1 - self.spec.n_agents
            canvas.text(at, str(number), min(r * 1.1, 12.0), WHITE, "mm", bold=True)


def _numbers(units: Bool[np.ndarray, " n"]) -> list[int]:
    return np.flatnonzero(units).tolist()


def _fires(u: Units, step: int, after: int, phase: Number) -> Bool[np.ndarray, " n"]:
    """Whose shot is to be seen now. Whoever fired has more to wait than it had: then it fired when that began."""
    fired = (u.target[after] != NOBODY) & (u.cooldown[after] > u.cooldown[step] - (WORLD_STEPS - 1) * DT)
    since = (TABLE.max_cooldown[u.types] - u.cooldown[after]) / (WORLD_STEPS * DT)
    at = np.clip(1 - since, 0.0, 1 - SHOT)
    return fired & (at <= phase) & (phase <= at + SHOT)


def _corners(at: Point, r: Number, count: int, turn: Number) -> list[Point]:
    angles = np.deg2rad(turn + 360 / count * np.arange(count))
    return [(at[0] + r * np.cos(a), at[1] - r * np.sin(a)) for a in angles]


def _bar(canvas: Canvas, at: Point, r: Number, share: Number, colour: Colour) -> None:
    """Health, above a unit."""
    width, x, y = 2.2 * r, at[0] - 1.1 * r, at[1] - 1.35 * r - 4
    canvas.rect(x, y, width, 3, blend(colour, WHITE, 0.75))
    if share > 0:
        canvas.rect(x, y, max(1.0, width * share), 3, colour)


def _cross(canvas: Canvas, at: Point, r: Number, colour: Colour) -> None:
    x, y = at
    for sign in (-1, 1):
        canvas.line([(x - r, y - sign * r), (x + r, y + sign * r)], colour, 1.5)
