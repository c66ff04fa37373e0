"""The training of one group of members: call after call, logged, saved, and stopped where nothing is lost."""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqmix.config import Config
from jqmix.interrupts import Stop
from jqmix.learning.count import numbers
from jqmix.learning.state import Member, Rounds, Shared
from jqmix.learning.train import iterations_per_chunk, rounds_for, window_length
from jqmix.runs import checkpoint
from jqmix.runs.checkpoint import Manifest
from jqmix.runs.groups import Group, Part, settings_of
from jqmix.runs.log import Log
from jqmix.runs.population import Population, Starts
from jqmix.runs.run_dir import RunError
from jqmix.runs.saver import Saver, Share
from jqmix.runs.schedule import Call, Pace, Schedule


class Training:
    """The training of one group, from its beginning or a checkpoint to its end."""

    def __init__(
        self, cfg: Config, stop: Stop, group: Group, population: Population, starts: Starts, log: Log, saver: Saver
    ):
        self.cfg, self.stop, self.terminal = cfg, stop, log.terminal
        self.group, self.population, self.log, self.saver = group, population, log, saver
        self.members, self.shared = self._load() if group.sources else population.begin(starts)
        self.pending: deque[tuple[Call, Any, Any]] = deque()
        self.pace = Pace()
        spec = self.population.spec
        env_steps = log.begin(group, jax.device_get(self.members.env_steps), jax.device_get(self.members.fault.code))
        self.schedule = Schedule(
            total=self.cfg.total_steps,
            interval=iterations_per_chunk(self.cfg, spec),
            evaluation=rounds_for(self.cfg.eval.episodes, self.cfg),
            per_iteration=self.cfg.rollouts * window_length(self.cfg, spec),
            steps=env_steps,
            since=int(self.shared.since_evaluation),
        )
        self.saved_at = int(self.shared.iteration) if group.sources else -1
        saver.begin(env_steps)

    def _load(self) -> tuple[Member, Shared]:
        """The states of the checkpoints that the group goes on from, on the devices that there are."""
        group, population = self.group, self.population
        population.forget_start()
        trees = []
        for part, saved, about in group.sources:
            self.terminal.say(f"going on from {saved.path}, {min(about.env_steps):,} steps")
            tree = checkpoint.load_state(saved.path, about.with_replay)
            some = slice(part.members.start - saved.first, part.members.stop - saved.first)
            trees.append((jax.tree.map(lambda x, some=some: x[some], tree["member"]), tree["shared"]))
        members = _joined([tree for tree, _ in trees])
        like = population.members
        shared = checkpoint.fill(population.shared, trees[0][1])
        if like.buffer is None or all(source.about.with_replay for source in group.sources):
            return population.place(checkpoint.fill(like, members), shared)
        self.terminal.warn("the checkpoint has no replay: it begins empty, and the run is not what it would have been")
        filled = checkpoint.fill(like._replace(buffer=None), members)._replace(buffer=population.empty_buffer())
        counters = population.shared.counters  # of a buffer that holds nothing
        return population.place(filled, shared._replace(counters=jax.tree.map(np.zeros_like, counters)))

    def run(self) -> None:
        group = self.group
        total, steps = self.cfg.total_steps, self.schedule.steps
        some = f"members {group.first + 1}–{group.last} of {self.cfg.seeds}" if group.size < self.cfg.seeds else ""
        self.terminal.start(some, total, steps, self.log.members(group), self.log.history(group))
        self._train()
        self._save()
        self._evaluate()
        self._finish()
        self.log.raise_if_raised()

    # Calls

    def _call(self, call: Call, absolute: bool = False) -> None:
        """Begins a call; of the absolute evaluation, which the schedule knows nothing of, or of training."""
        if not self.pending:
            self.pace.begin()
        if not absolute:
            self.schedule.begun(call)
        if call.iterations:
            made = self.population.train(self.members, self.shared, call.iterations)
        else:
            if not self.population.evaluation.done():
                self.terminal.note("compiling the evaluation")
            episodes = self.cfg.eval.episodes * (self.cfg.eval.absolute if absolute else 1)
            rounds = Rounds(call.rounds, call.first, episodes, call.complete and not absolute, absolute)
            made = self.population.evaluate(self.members, self.shared, rounds)
        self.members, self.shared, metrics = made
        self.pending.append((call, metrics, self.shared.updates))

    def _wait(self, best: list[int] | None = None) -> None:
        """For the oldest call under way; logs it."""
        call, metrics, updates = self.pending.popleft()
        host = jax.device_get(metrics)
        self.pace.ended(call)
        steps = self.log.call(self.group, host, int(updates), call.complete, best)
        if best is None:
            self.schedule.ended(call, self.cfg.total_steps if steps is None else steps)

    def _train(self) -> None:
        """Calls until the slowest member made its steps. While one runs, the host logs the one before."""
        while True:
            self._leave_if_asked()
            if self.saver.due(self.schedule.steps):
                self._save()
            call = self.schedule.next(self.pace)
            if call is not None:
                self._call(call)
            elif not self.pending:
                return
            if call is None or len(self.pending) > 1:
                self._wait()

    def _evaluate(self) -> None:
        """The evaluation that a run ends with, if the last iterations were not followed by one."""
        while not self.log.all_frozen(self.group):
            call = self.schedule.last_evaluation(self.pace)
            if call is None:
                return
            self._leave_if_asked()
            self._call(call)
            self._wait()

    def _finish(self) -> None:
        """Saves what the run ends with, after the parameters that played best played on their own."""
        members, shared = checkpoint.snapshot(self.members._replace(buffer=None), self.shared)
        if self.cfg.eval.absolute and not self.log.all_frozen(self.group):
            self._play_best(numbers(members.best.env_steps))
        self.log.sync()
        self.saver.save(members, shared, self._shares(final=True), self.schedule.steps)
        error = self.saver.wait()
        if error:
            raise RunError(f"the end of the run could not be saved ({error.strerror})")

    def _play_best(self, made_at: list[int]) -> None:
        """The absolute metric (Gorsane et al. 2022): as many episodes as make it certain, and none that chose them."""
        learner = self.members.learner
        best = jax.tree.map(jnp.copy, self.members.best.params)
        self.members = self.members._replace(learner=learner._replace(params=learner.params | {"agent": best}))
        total = rounds_for(self.cfg.eval.episodes * self.cfg.eval.absolute, self.cfg)
        played = 0
        while played < total:
            self._leave_if_asked()
            rounds = min(self.pace.rounds, total - played)
            self.terminal.note("replaying the best")
            self._call(Call(0, rounds, played, played + rounds == total), absolute=True)
            self._wait(made_at)
            played += rounds

    # Saving

    def _save(self) -> None:
        """Everything, once all calls under way were logged."""
        while self.pending:
            self._wait()
        iteration = int(self.shared.iteration)
        if iteration == self.saved_at:
            return
        self.log.sync()
        self.saver.save(self.members, self.shared, self._shares(final=False), self.schedule.steps)
        self.saved_at = iteration

    def _leave_if_asked(self) -> None:
        """Saves and stops where a signal came, a callback raised something, or a member's numbers are not finite and
        that is to stop the run."""
        if not self.stop and self.log.raised is None and not self.log.must_stop:
            return
        self._save()
        error = self.saver.wait()
        if error:
            raise RunError(f"stopped, but what came last could not be saved ({error.strerror})")
        self.stop.raise_if_asked()
        self.log.raise_if_raised()
        raise RunError(f"stopped, as on_nan says: {'; '.join(self.log.faults.values())}")

    def _shares(self, final: bool) -> list[Share]:
        return [self._share(part, final) for part in self.group.parts]

    def _share(self, part: Part, final: bool) -> Share:
        run, members = part.run, part.members
        some = slice(run.first + members.start - self.group.first, run.first + members.stop - self.group.first)
        about = Manifest(
            iteration=int(self.shared.iteration),
            env_steps=self.log.env_steps[self.group.first :][some],
            lines=[self.log.files[run.path].counts[m] for m in members],
            elapsed_s=self.log.wall_s(),
            total_steps=run.cfg.total_steps,
            with_replay=self.cfg.checkpoint.replay and not final and self.population.members.buffer is not None,
            final=final,
            settings=settings_of(run.cfg),
        )
        return Share(checkpoint.folder_of(run.path, run.cfg.seeds, members.start, members.stop), some, about)


def _joined(trees: list[Any]) -> Any:
    """Members of several parts as those of one; of one part without a copy."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: np.concatenate(x), *trees)
