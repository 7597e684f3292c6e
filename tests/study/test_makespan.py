"""List scheduling: known cases by hand, and bounds that hold for any jobs."""

import random

import pytest

from upcycle.errors import UserError
from upcycle.study.makespan import PlannedJob, list_schedule


def test_a_chain_takes_its_sum_and_independent_jobs_share_the_nodes():
    chain = {"a": PlannedJob(3), "b": PlannedJob(4, needs=("a",)), "c": PlannedJob(5, needs=("b", "finished before"))}
    assert list_schedule(chain, 4, 8).makespan == list_schedule(chain, 1, 1).longest_chain == 12
    six = {str(number): PlannedJob(2.0) for number in range(6)}
    assert [list_schedule(six, nodes, 1).makespan for nodes in (1, 2, 3, 6, 9)] == [12, 6, 4, 2, 2]
    assert list_schedule({}, 1, 1).makespan == 0


def test_the_longest_chain_starts_first():
    """With two devices: the chain of 6 beside the four single jobs, not behind them."""
    jobs = {f"single {number}": PlannedJob(1.5) for number in range(4)} | {
        "x": PlannedJob(3),
        "y": PlannedJob(3, needs=("x",)),
    }
    schedule = list_schedule(jobs, 1, 2)
    assert schedule.starts["x"] == 0
    assert schedule.makespan == schedule.longest_chain == 6


def test_a_priority_comes_before_a_chain():
    jobs = {"a": PlannedJob(1, priority=1), "x": PlannedJob(3), "y": PlannedJob(3, needs=("x",))}
    assert list_schedule(jobs, 1, 1).starts == {"a": 0, "x": 1, "y": 4}


def test_small_jobs_share_a_node_and_large_ones_take_whole_nodes():
    eight = {str(number): PlannedJob(1.0, devices=2) for number in range(4)}
    assert list_schedule(eight, 1, 8).makespan == 1
    wide = eight | {"wide": PlannedJob(1.0, devices=16, nodes=2)}
    assert list_schedule(wide, 2, 8).makespan == 2
    assert list_schedule(wide, 3, 8).makespan == 1


@pytest.mark.parametrize("job", [PlannedJob(1, devices=9), PlannedJob(1, devices=32, nodes=4)])
def test_a_job_that_fits_nowhere_is_named(job):
    with pytest.raises(UserError, match=r"big takes .* it would never start"):
        list_schedule({"small": PlannedJob(1), "big": job}, 3, 8)


@pytest.mark.parametrize("seed", range(20))
def test_any_schedule_is_legal_and_within_grahams_bound(seed):
    """Needs are met, no node has more than its devices, and the time is at most work / devices + the longest chain."""
    rng = random.Random(seed)
    names = [str(number) for number in range(60)]
    jobs = {
        name: PlannedJob(
            rng.uniform(0.1, 9), devices=1, needs=tuple(rng.sample(names[:place], min(place, rng.randrange(3))))
        )
        for place, name in enumerate(names)
    }
    nodes, devices = rng.choice([(1, 1), (1, 4), (3, 2)])
    schedule = list_schedule(jobs, nodes, devices)
    assert set(schedule.ends) == set(jobs)
    for name, job in jobs.items():
        assert schedule.ends[name] == pytest.approx(schedule.starts[name] + job.seconds)
        assert all(schedule.ends[need] <= schedule.starts[name] for need in job.needs)
    for moment in schedule.starts.values():
        running = sum(schedule.starts[name] <= moment < schedule.ends[name] for name in jobs)
        assert running <= nodes * devices
    work = sum(job.seconds for job in jobs.values())
    bound = work / (nodes * devices) + schedule.longest_chain
    assert max(schedule.longest_chain, work / (nodes * devices)) <= schedule.makespan + 1e-9 <= bound + 1e-6
