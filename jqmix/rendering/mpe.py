"""MPE: agents, landmarks, whose goal is which, and what is said; our simple_spread and JaxMARL's scenarios."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jqmix.envs.mpe import AGENT_RADIUS
from jqmix.rendering.canvas import FAINT, GREEN, INK, LINE, MUTED, PAPER, WHITE, Canvas, Number, agent_colour, blend
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene

FARTHEST = 2.0  # from the middle, that is shown
MARGIN = 0.25
TRAIL = 6  # steps that an agent's way is seen


class World(NamedTuple):
    """An episode. ``goal``: each agent's landmark, or -1; ``said``: the message that each has sent, or -1."""

    agent: Float[np.ndarray, "T1 N 2"]
    landmark: Float[np.ndarray, "L 2"]
    goal: Int[np.ndarray, " N"]
    said: Int[np.ndarray, "T1 N"]


def world_of(n_agents: int, states: Any) -> World:
    nothing = np.full(n_agents, -1)
    if hasattr(states, "landmark"):
        said = np.broadcast_to(nothing, states.position.shape[:2])
        return World(states.position, states.landmark[0], nothing, said)
    agent, landmark = states.p_pos[:, :n_agents], states.p_pos[0, n_agents:]
    messages = states.c if states.c.shape[-1] else np.zeros((*agent.shape[:2], 1))
    said = np.where(messages.any(-1), messages.argmax(-1), -1)
    if states.goal is None:
        return World(agent, landmark, nothing, said)
    goal = states.goal[0]
    # A speaker knows the listener's goal, and has none.
    return World(agent, landmark, goal if goal.ndim else np.array([-1] * (n_agents - 1) + [int(goal)]), said)


class MPEScene(Scene):
    """A square of the plane. Landmarks are rings: green where an agent covers them, or of the agent they are meant
    for."""

    aspect, frames, pace = 0.8, 3, 6.0

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        super().__init__(env, episodes)
        self._worlds = [world_of(env.spec.n_agents, e.states) for e in episodes]
        far = max(np.abs(np.concatenate([w.agent.reshape(-1, 2), w.landmark])).max() for w in self._worlds)
        self._half = float(np.clip(far + MARGIN, 1.0 + MARGIN, FARTHEST))

    def actions(self) -> list[str]:
        return ["·", "←", "→", "↓", "↑"] if self.spec.n_actions == 5 else super().actions()

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        world, scale = self._worlds[index], canvas.height / (2 * self._half)

        def place(p: Float[np.ndarray, "*k 2"]) -> Float[np.ndarray, "*k 2"]:
            return np.stack([canvas.width / 2 + p[..., 0] * scale, canvas.height / 2 - p[..., 1] * scale], axis=-1)

        after = min(step + 1, self.episodes[index].length)
        now = world.agent[step] + phase * (world.agent[after] - world.agent[step])
        (left, top), (right, bottom) = place(np.array([[-1.0, 1.0], [1.0, -1.0]]))
        canvas.rect(left, top, right - left, bottom - top, None, LINE, 0.5)
        r = AGENT_RADIUS * scale
        for j, landmark in enumerate(world.landmark):
            self._landmark(canvas, place(landmark), r, world, j, bool(_near(now, landmark) < AGENT_RADIUS))
        way = np.concatenate([world.agent[max(0, step - TRAIL) : step + 1], now[None]])
        for i, at in enumerate(place(now)):
            canvas.line(list(place(way[:, i])), blend(agent_colour(i), PAPER, 0.6), 1.5)
            canvas.circle(at, 0.62 * r, agent_colour(i), WHITE, 1.0)
            canvas.text(at, str(i + 1), min(0.7 * r, 11.0), WHITE, "mm", bold=True)
        for (x, y), said in zip(place(now), world.said[step], strict=True):
            if said >= 0:
                _bubble(canvas, float(x), float(y), 0.62 * r, str(said))

    def _landmark(
        self, canvas: Canvas, at: Float[np.ndarray, "2"], r: Number, world: World, number: int, covered: bool
    ) -> None:
        meant = np.flatnonzero(world.goal == number).tolist()
        colour = GREEN if covered and (world.goal < 0).all() else FAINT
        canvas.circle(at, r, blend(colour, PAPER, 0.7), colour, 1.5)
        for k, agent in enumerate(meant):
            canvas.circle(at, r - 3 * k, None, agent_colour(agent), 2.0)
        canvas.text(at, "abcdefghij"[number % 10], min(0.7 * r, 11.0), MUTED, "mm")


def _near(agents: Float[np.ndarray, "N 2"], landmark: Float[np.ndarray, "2"]) -> float:
    return float(np.linalg.norm(agents - landmark, axis=-1).min())


def _bubble(canvas: Canvas, x: Number, y: Number, r: Number, text: str) -> None:
    """What an agent says, at its upper right."""
    x, y = x + r + 9, y - r - 7
    canvas.rect(x - 8, y - 8, 16, 15, WHITE, FAINT, 0.8, radius=4)
    canvas.text((x, y), text, 9, INK, "mm", bold=True)
