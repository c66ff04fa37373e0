"""The switch riddle: who is in the room, whether the bulb is on, and who has been there."""

from jqmix.rendering.canvas import AMBER, FAINT, GREEN, INK, LINE, MUTED, WHITE, Canvas, Number, agent_colour, blend
from jqmix.rendering.scene import Scene

MOVES = ("waits", "switches the light", "tells that all have been here")


class SwitchRiddleScene(Scene):
    """The room above, the prisoners below; a tick stands under those who have been in the room."""

    aspect, pace = 0.6, 1.0

    def actions(self) -> list[str]:
        return ["·", "⇄", "!"]

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        episode, middle = self.episodes[index], canvas.width / 2
        s = episode.states
        inside, on = int(s.agent_in_room[step]), bool(s.bulb_state[step])
        canvas.rect(middle - 80, 16, 160, canvas.height * 0.45, blend(AMBER, WHITE, 0.8) if on else WHITE, FAINT, 1.5)
        canvas.line([(middle - 50, 16), (middle - 50, 32)], MUTED, 1.0)
        canvas.circle((middle - 50, 40), 9, AMBER if on else LINE, MUTED, 1.0)
        canvas.text((middle - 50, 60), "on" if on else "off", 10, MUTED, "mm")
        self._prisoner(canvas, middle + 25, 16 + canvas.height * 0.25, 17, inside)
        if step < episode.length:
            told = f"prisoner {inside + 1} {MOVES[int(episode.action[step, inside])]}"
            canvas.text((middle, canvas.height * 0.45 + 32), told, 11, INK, "mm")
        gap = min(60.0, (canvas.width - 40) / self.spec.n_agents)
        for i in range(self.spec.n_agents):
            x, y = middle + (i - (self.spec.n_agents - 1) / 2) * gap, canvas.height - 50
            self._prisoner(canvas, x, y, 12, i)
            if s.has_been[step, i] or (i == inside and step < episode.length):
                canvas.text((x, y + 24), "✓", 13, GREEN, "mm", bold=True)

    def _prisoner(self, canvas: Canvas, x: Number, y: Number, r: Number, number: int) -> None:
        canvas.circle((x, y), r, agent_colour(number), WHITE, 1.0)
        canvas.text((x, y), str(number + 1), 0.9 * r, WHITE, "mm", bold=True)
