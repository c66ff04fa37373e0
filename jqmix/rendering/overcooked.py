"""Overcooked, both versions: counters, piles, pots that fill and cook, plates, and what the cooks carry.

States of the first version are read as those of the second, where an item is a number: bit 0 a plate, bit 1 cooked,
then two bits that count each ingredient.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jqmix.rendering.canvas import (
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PINK,
    SKY,
    WHITE,
    Canvas,
    Number,
    agent_colour,
    rgb,
)
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene

FLOOR, WALL, GOAL, POT, RECIPE, BUTTON, PLATES, PILE = 0, 1, 4, 5, 6, 7, 9, 10  # of the second version
PLATE, COOKED, INGREDIENT = 1, 2, 2  # two bits of an item, and where its ingredients begin
COOKING_TIME = 20
# The first version's objects, and how full a pot is: 23 empty … 20 full, then it cooks down to 0.
OF_FIRST = {2: WALL, 3: WALL, 4: PILE, 5: WALL, 6: PLATES, 7: GOAL, 8: POT, 9: WALL}
FIRST_ITEMS = {3: 1 << INGREDIENT, 5: PLATE, 9: PLATE | COOKED | 3 << INGREDIENT}
FIRST_EMPTY, FIRST_FULL = 23, 20

DIRECTIONS = ((0, -1), (0, 1), (1, 0), (-1, 0))  # north, south, east, west, as (x, y)
COUNTER, TILES = rgb("#d8cdbd"), rgb("#fbfaf7")
FOODS = (rgb("#f0e442"), PINK, SKY, ORANGE)


class Kitchen(NamedTuple):
    """One state. ``tile``, ``item`` and ``timer`` are grids, ``held`` is each cook's item."""

    tile: Int[np.ndarray, "H W"]
    item: Int[np.ndarray, "H W"]
    timer: Int[np.ndarray, "H W"]
    cook: Int[np.ndarray, "N 2"]
    facing: Int[np.ndarray, " N"]
    held: Int[np.ndarray, " N"]


def kitchen_of(states: Any, t: int) -> Kitchen:
    """The kitchen at a state of an episode, of either version."""
    if not hasattr(states, "maze_map"):
        grid, agents = states.grid[t], states.agents
        cook = np.stack([agents.pos.x[t], agents.pos.y[t]], axis=-1).astype(int)
        tile, item, timer = np.moveaxis(grid.astype(int), -1, 0)
        told = (tile == RECIPE) | ((tile == BUTTON) & (timer > 0))
        item = np.where(told, states.recipe[t], item)
        return Kitchen(tile, item, timer, cook, agents.dir[t], agents.inventory[t])
    height, width = states.wall_map.shape[1:]
    border = (states.maze_map.shape[1] - height) // 2
    inside = states.maze_map[t, border : border + height, border : border + width].astype(int)
    thing, status = inside[..., 0], inside[..., 2]
    tile = _mapped(OF_FIRST, thing)
    tile = np.where((tile == FLOOR) & states.wall_map[t], WALL, tile)
    is_pot = tile == POT
    foods = np.minimum(FIRST_EMPTY - status, 3)
    in_pot = foods << INGREDIENT | np.where(status == 0, COOKED, 0)
    timer = np.where(is_pot & (status <= FIRST_FULL), status, 0)
    item = np.where(is_pot, in_pot, _mapped(FIRST_ITEMS, thing))
    held = _mapped(FIRST_ITEMS, states.agent_inv[t].astype(int))
    return Kitchen(tile, item, timer, states.agent_pos[t].astype(int), states.agent_dir_idx[t], held)


def _mapped(table: dict[int, int], codes: Int[np.ndarray, "*k"]) -> Int[np.ndarray, "*k"]:
    found = np.zeros_like(codes)
    for code, value in table.items():
        found = np.where(codes == code, value, found)
    return found


def foods_in(item: int) -> list[int]:
    """The ingredients of an item, by number, each as often as it is in it."""
    return [k for k in range(len(FOODS)) for _ in range(item >> (INGREDIENT + 2 * k) & 3)]


class OvercookedScene(Scene):
    """Rings in a pot are ingredients; the arc around it is the time that it has cooked, and green once it is ready."""

    pace = 6.0

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        super().__init__(env, episodes)
        height, width = kitchen_of(episodes[0].states, 0).tile.shape
        self.aspect = float(np.clip((height + 0.4) / (width + 0.4), 0.45, 0.85))

    def actions(self) -> list[str]:
        return ["↑", "↓", "→", "←", "·", "!"]

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        kitchen = kitchen_of(self.episodes[index].states, step)
        height, width = kitchen.tile.shape
        cell = min((canvas.width - 12) / width, (canvas.height - 12) / height)
        left, top = (canvas.width - cell * width) / 2, (canvas.height - cell * height) / 2
        for row in range(height):
            for column in range(width):
                x, y = left + column * cell, top + row * cell
                self._tile(canvas, x, y, cell, *(int(g[row, column]) for g in kitchen[:3]))
        for i, (x, y) in enumerate(kitchen.cook):
            at = left + (float(x) + 0.5) * cell, top + (float(y) + 0.5) * cell
            _cook(canvas, at, cell, i, DIRECTIONS[int(kitchen.facing[i])], int(kitchen.held[i]))

    def _tile(self, canvas: Canvas, x: Number, y: Number, cell: Number, tile: int, item: int, timer: int) -> None:
        canvas.rect(x, y, cell, cell, TILES if tile == FLOOR else COUNTER, WHITE, 0.5)
        x, y = x + cell / 2, y + cell / 2
        if tile == POT:
            _pot(canvas, x, y, cell, item, timer)
        elif tile >= PILE:
            for dx, dy in ((0, -0.16), (-0.17, 0.13), (0.17, 0.13)):
                canvas.circle(
                    (x + dx * cell, y + dy * cell), 0.15 * cell, FOODS[(tile - PILE) % len(FOODS)], WHITE, 0.8
                )
        elif tile == PLATES:
            for dy in (0.1, 0.0, -0.1):
                canvas.circle((x, y + dy * cell), 0.27 * cell, WHITE, FAINT, 1.0)
        elif tile == GOAL:
            canvas.rect(x - 0.4 * cell, y - 0.4 * cell, 0.8 * cell, 0.8 * cell, GREEN, radius=3)
            canvas.text((x, y), "serve", cell * 0.2, WHITE, "mm", bold=True)
        elif tile in (RECIPE, BUTTON):
            canvas.rect(x - 0.36 * cell, y - 0.36 * cell, 0.72 * cell, 0.72 * cell, WHITE, FAINT, 1.0, radius=3)
            if item:
                _foods(canvas, x, y, 0.18 * cell, item)
            else:
                canvas.text((x, y), "?", cell * 0.4, MUTED, "mm", bold=True)
        elif item:
            _item(canvas, x, y, 0.3 * cell, item)


def _pot(canvas: Canvas, x: Number, y: Number, cell: Number, item: int, timer: int) -> None:
    r, ready = 0.36 * cell, bool(item & COOKED)
    canvas.circle((x, y), r, INK)
    _foods(canvas, x, y, 0.55 * r, item)
    if ready or timer:
        share = 1.0 if ready else 1 - timer / COOKING_TIME
        canvas.arc((x, y), r + 3, share, GREEN if ready else ORANGE, 2.5)


def _foods(canvas: Canvas, x: Number, y: Number, r: Number, item: int) -> None:
    foods = foods_in(item)
    for k, food in enumerate(foods):
        angle = 2 * np.pi * k / len(foods) - np.pi / 2
        away = r if len(foods) > 1 else 0.0
        canvas.circle((x + away * np.cos(angle), y + away * np.sin(angle)), 0.7 * r, FOODS[food], WHITE, 0.6)


def _item(canvas: Canvas, x: Number, y: Number, r: Number, item: int) -> None:
    """An ingredient, a plate, or a plate with a soup on it."""
    if item & PLATE:
        canvas.circle((x, y), r, WHITE, MUTED, 1.0)
    _foods(canvas, x, y, 0.5 * r if item & PLATE else 0.6 * r, item)


def _cook(
    canvas: Canvas, at: tuple[float, float], cell: Number, number: int, facing: tuple[int, int], held: int
) -> None:
    (x, y), (dx, dy), colour = at, facing, agent_colour(number)
    tip, side = 0.47 * cell, 0.2 * cell
    nose = [(x + tip * dx, y + tip * dy)] + [
        (x + side * dx + sign * side * dy, y + side * dy + sign * side * dx) for sign in (-1, 1)
    ]
    canvas.polygon(nose, colour)
    canvas.circle((x, y), 0.33 * cell, colour, WHITE, 1.0)
    if held:
        _item(canvas, x, y, 0.22 * cell, held)
    else:
        canvas.text((x, y), str(number + 1), min(0.3 * cell, 12.0), WHITE, "mm", bold=True)
