"""Environment → scene: the one place to add one."""

from collections.abc import Sequence
from typing import Any

from jqmix.envs import jaxmarl
from jqmix.envs.games import MatrixGame, TwoStepGame
from jqmix.envs.mpe import SimpleSpread
from jqmix.envs.predator_prey import PredatorPrey
from jqmix.envs.smax import SMAX
from jqmix.rendering import games
from jqmix.rendering.episode import Episode
from jqmix.rendering.hanabi import HanabiScene
from jqmix.rendering.mpe import MPEScene
from jqmix.rendering.overcooked import OvercookedScene
from jqmix.rendering.own import OwnScene
from jqmix.rendering.plain import PlainScene
from jqmix.rendering.predator_prey import PredatorPreyScene
from jqmix.rendering.scene import Scene
from jqmix.rendering.smax import SMAXScene
from jqmix.rendering.switch_riddle import SwitchRiddleScene

SCENES: dict[type, type[Scene]] = {
    SMAX: SMAXScene,
    jaxmarl.SMAXEnv: SMAXScene,
    SimpleSpread: MPEScene,
    jaxmarl.MPEEnv: MPEScene,
    PredatorPrey: PredatorPreyScene,
    jaxmarl.OvercookedEnv: OvercookedScene,
    jaxmarl.HanabiEnv: HanabiScene,
    jaxmarl.SwitchRiddleEnv: SwitchRiddleScene,
    TwoStepGame: games.TwoStepScene,
}


def make_scene(env: Any, episodes: Sequence[Episode]) -> Scene:
    """The scene for episodes of an environment (without its time limit): its own picture if it has one, else that of
    its family, else numbers."""
    if hasattr(env, "render"):
        return OwnScene(env, episodes)
    if isinstance(env, MatrixGame):
        return (games.MatrixGameScene if games.fits(env.payoff) else PlainScene)(env, episodes)
    scene = next((scene for family, scene in SCENES.items() if isinstance(env, family)), PlainScene)
    return scene(env, episodes)
