"""Whatever a store loses and in whatever order results come: after a sync, MLflow agrees with the
dvc.lock files, and a second sync writes nothing."""

import contextlib
import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow.exceptions import MlflowException
from world import World, copy_of, dead_process

NUMBER = itertools.count()


def machine(world_template, standing_in, folder) -> type[RuleBasedStateMachine]:
    class Mirror(RuleBasedStateMachine):
        world: World

        @initialize(plain=st.booleans())
        def enter(self, plain) -> None:
            self.stack = contextlib.ExitStack()
            patch = self.stack.enter_context(pytest.MonkeyPatch.context())
            made = copy_of(world_template, folder / str(next(NUMBER)))
            if plain:
                made.drop_the_model()
            self.world = self.stack.enter_context(made.entered(standing_in, patch))
            self.commits = [made.git("rev-parse", "HEAD")]
            self.world.sync_twice()
            self.world.keep_the_store()

        def teardown(self) -> None:
            if hasattr(self, "stack"):
                self.stack.close()

        @rule(rate=st.integers(4, 6), depth=st.integers(1, 2), committed=st.booleans())
        def another_state(self, rate, depth, committed) -> None:
            self.world.make(rate=rate, depth=depth)
            if committed:
                self.commits.append(self.world.commit())

        @rule(at=st.integers(0, 9))
        def lose_a_run(self, at) -> None:
            if runs := self.world.runs():
                self.world.client.delete_run(runs[at % len(runs)].info.run_id)

        @rule(at=st.integers(0, 30))
        def lose_a_file(self, at) -> None:
            if self.world.kept():
                self.world.lose_file(at)

        @rule(at=st.integers(0, 9))
        def lose_a_model(self, at) -> None:
            if models := self.world.models():
                self.world.client.delete_logged_model(models[at % len(models)].model_id)

        @rule(what=st.sampled_from(["alias", "version", "model"]), at=st.integers(0, 9))
        def lose_in_the_registry(self, what, at) -> None:
            client = self.world.client
            with contextlib.suppress(MlflowException):  # it is lost already
                if what == "alias":
                    client.delete_registered_model_alias("world", "champion")
                elif what == "model":
                    client.delete_registered_model("world")
                elif versions := self.world.versions():
                    client.delete_model_version("world", versions[at % len(versions)].version)

        @rule(stage=st.sampled_from(["train", "pipeline"]), by_sync=st.booleans())
        def die_while_a_run_is_written(self, stage, by_sync) -> None:
            tags = {"stage": stage, "project": ".", "process": dead_process()}
            tags |= {"backfilled": "true"} if by_sync else {}
            self.world.client.create_run("1", tags=tags)

        @rule(commits=st.integers(1, 60), every=st.booleans())
        def kill_a_sync(self, commits, every) -> None:
            self.world.killed_sync(commits, all=every)

        @rule()
        def restore_the_store_from_a_copy(self) -> None:
            self.world.restore_the_store()

        @rule()
        def sync_this_checkout(self) -> None:
            self.world.sync_twice()
            self.world.assert_whole()

        @precondition(lambda self: len(self.commits) > 1)
        @rule(at=st.integers(0, 9))
        def sync_a_commit(self, at) -> None:
            commit = self.commits[at % len(self.commits)]
            self.world.sync_twice(rev=commit)
            self.world.assert_whole(commit)

        @rule()
        def sync_everything(self) -> None:
            self.world.sync_twice(all=True)
            self.world.assert_whole(*self.commits)
            self.world.sync_twice()
            self.world.assert_whole(None, *self.commits)

    return Mirror


@pytest.mark.parametrize(
    ("examples", "steps"),
    [(4, 8), pytest.param(120, 20, marks=[pytest.mark.weekly, pytest.mark.slow])],
)
def test_mlflow_agrees_with_the_history_after_each_sync(
    world_template, standing_in, tmp_path, examples, steps
):
    run_state_machine_as_test(
        machine(world_template, standing_in, tmp_path),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
