"""A member's functions, each traced once: the memory plan reads what was traced, and what is compiled repeats it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jqmix.chips.traced import read_steps
from jqmix.config import Config
from jqmix.learning.hyper import hyper_of
from jqmix.learning.state import Iterations, Member, Rounds, Shared
from jqmix.learning.train import make_program, whole_evaluation
from jqmix.types import EnvSpec


class TracedFunction:
    """``f``, traced for arguments of these shapes. Called, it does what was traced, under ``vmap`` or a mesh, too.

    Raises ``ValueError`` for arguments of another structure; shapes are the caller's to keep.
    """

    def __init__(self, f: Callable[..., Any], *examples: Any):
        self.given = jax.tree.structure(examples)
        self._closed, self.results = jax.make_jaxpr(f, return_shape=True)(*examples)

    @property
    def jaxpr(self) -> Any:
        return self._closed.jaxpr

    def __call__(self, *arguments: Any) -> Any:
        leaves, given = jax.tree.flatten(arguments)
        if given != self.given:
            raise ValueError(f"it was traced for {self.given}, not for {given}")
        return jax.tree.unflatten(jax.tree.structure(self.results), jaxpr_as_fun(self._closed)(*leaves))


class MemberPrograms:
    """What a run does with one member. Builds the environment, so it also checks sizes.

    A function is traced when it is first asked for, for the platform that programs are written for at that time.
    """

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self._program = make_program(cfg)

    @property
    def spec(self) -> EnvSpec:
        return self._program.env.spec

    @property
    def member(self) -> Member:
        """The shapes of its state."""
        return self.init.results[0]

    @property
    def shared(self) -> Shared:
        """The shapes of the counters."""
        return self.init.results[1]

    @cached_property
    def init(self) -> TracedFunction:
        """(seed, hyper) -> (member, shared)"""
        return TracedFunction(self._program.init, jnp.int32(0), hyper_of(self.cfg))

    @cached_property
    def train(self) -> TracedFunction:
        """(member, shared, iterations) -> (member, shared, metrics)"""
        return TracedFunction(self._program.train, self.member, self.shared, on_host(Iterations(1), self.cfg))

    @property
    def iteration(self) -> Any:
        """The jaxpr of what training repeats."""
        (loop,) = (step for step in read_steps(self.train.jaxpr).steps if step.name == "while")
        (body,) = loop.bodies
        return body

    @cached_property
    def evaluate(self) -> TracedFunction:
        """(member without rollouts, shared, rounds) -> (member, shared, metrics)"""
        rounds = on_host(whole_evaluation(self.cfg), self.cfg)
        return TracedFunction(self._program.evaluate, without_rollouts(self.member), self.shared, rounds)


def without_rollouts(members: Member) -> Member:
    """What an evaluation reads."""
    return members._replace(buffer=None, ongoing=None)


Task = TypeVar("Task", Iterations, Rounds)


def on_host(task: Task, cfg: Config) -> Task:
    """Its numbers as a compiled program takes them, with the configuration's steps: a run of more steps, or fewer, is
    the same program."""
    numbers = (np.asarray(x, np.bool_ if isinstance(x, bool) else np.int32) for x in task[:-1])
    return type(task)(*numbers, total_steps=np.float32(cfg.total_steps))
