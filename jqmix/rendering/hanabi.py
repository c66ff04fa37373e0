"""Hanabi: fireworks, hands with what their holders were told, tokens and the deck."""

from collections.abc import Sequence
from typing import Any

from jqmix.rendering.canvas import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    INK,
    LINE,
    MUTED,
    ORANGE,
    PINK,
    WHITE,
    Canvas,
    Colour,
    Number,
    agent_colour,
    blend,
)
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene

SUITS: tuple[Colour, ...] = (ORANGE, AMBER, GREEN, FAINT, BLUE, PINK)  # red, yellow, green, white, blue, many-coloured
CARD = 0.72  # width over height


class HanabiScene(Scene):
    """A card's lower line shows what its holder was told of it: the colour, the rank."""

    aspect, pace = 0.8, 1.5

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        super().__init__(env, episodes)
        self._game = env.env

    def actions(self) -> list[str]:
        return [_short(self._game.action_encoding[a])[:2] for a in range(self.spec.n_actions)]

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        episode, rows = self.episodes[index], self.spec.n_agents + 1
        s = episode.states
        pitch = (canvas.height - 46) / rows
        left = {"hints": s.info_tokens[step].sum(), "lives": s.life_tokens[step].sum()}
        left["deck"] = s.deck[step].any((-1, -2)).sum()
        canvas.text((12, 16), "     ".join(f"{name} {int(count)}" for name, count in left.items()), 10, MUTED)
        self._fireworks(canvas, s.fireworks[step], 30.0, pitch)
        for player in range(self.spec.n_agents):
            self._hand(canvas, s, step, player, 30 + (player + 1) * pitch, pitch)
        self._told(canvas, episode, step)

    def _fireworks(self, canvas: Canvas, fireworks: Any, y: Number, pitch: Number) -> None:
        canvas.text((12, y + pitch / 2 - 4), "fireworks", 10, INK)
        for suit, cards in enumerate(fireworks):
            height = int(cards.sum())
            self._card(canvas, suit, y, pitch, suit if height else None, str(height) if height else "–", "")

    def _hand(self, canvas: Canvas, s: Any, step: int, player: int, y: Number, pitch: Number) -> None:
        plays = bool(s.cur_player_idx[step, player])
        canvas.text((12, y + pitch / 2 - 4), f"player {player + 1}", 10, agent_colour(player), bold=plays)
        for k, card in enumerate(s.player_hands[step, player]):
            if not card.any():
                continue
            suit, rank = divmod(int(card.argmax()), card.shape[-1])
            told_suit = s.colors_revealed[step, player, k]
            told_rank = s.ranks_revealed[step, player, k]
            told = self._game.color_map[int(told_suit.argmax())] if told_suit.any() else "·"
            told += str(int(told_rank.argmax()) + 1) if told_rank.any() else "·"
            self._card(canvas, k, y, pitch, suit, f"{self._game.color_map[suit]}{rank + 1}", told)

    def _card(
        self, canvas: Canvas, place: int, y: Number, pitch: Number, suit: int | None, text: str, told: str
    ) -> None:
        height, across = pitch - 10, (canvas.width - 88) / max(self._game.hand_size, self._game.num_colors)
        width, x = min(CARD * height, across - 6), 84 + place * min(CARD * height + 8, across)
        colour = LINE if suit is None else blend(SUITS[suit], WHITE, 0.55)
        canvas.rect(x, y, width, height, colour, LINE if suit is None else SUITS[suit], 1.5, radius=4)
        canvas.text((x + width / 2, y + height * (0.38 if told else 0.5)), text, 12, INK, "mm", bold=True)
        canvas.text((x + width / 2, y + height * 0.76), told, 10, INK, "mm")

    def _told(self, canvas: Canvas, episode: Episode, step: int) -> None:
        """Who did what to come here."""
        if step == 0:
            return
        player = int(episode.states.cur_player_idx[step - 1].argmax())
        move = _spelled(self._game.action_encoding[int(episode.action[step - 1, player])])
        canvas.text((12, canvas.height - 12), f"player {player + 1} {move}", 10, agent_colour(player), bold=True)


def _short(move: str) -> str:
    """``HR to P1 relative`` as ``HR``."""
    return move.split(" ")[0]


def _spelled(move: str) -> str:
    what, which = _short(move)[0], _short(move)[1:]
    if what in "DP":
        return f"{'discarded' if what == 'D' else 'played'} card {int(which) + 1}"
    return f"told of {which}" if what == "H" else "waited"
