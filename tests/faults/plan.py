"""What is played, in which form: `ci` within minutes, `full` for the record, `soak` for as long as asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.load import Mix
from tests.faults.matrix import budgets, clients, clocks, disk, hotrow, lost, postgres, redis, upstream
from tests.faults.rounds import (
    CALL_POINTS,
    RECOVERY_POINTS,
    Round,
    Storm,
    at_points,
    blind_kills,
    failing,
    in_recovery,
    random_kills,
    tree_kills,
)


@dataclass(frozen=True)
class Job:
    """One round to play. `turn` makes a fresh one each time."""

    name: str
    storm: Storm
    turn: Callable[[], Round]
    mix: Mix | None = None


def job(
    name: str, storm: Storm, *, kills: int, calls: int = 200, callers: int = 10, longest: float = 240.0,
    mix: Mix | None = None,
) -> Job:  # fmt: skip
    return Job(name, storm, lambda: Round(name, kills, callers, calls, longest=longest), mix)


def groups(points: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [points[start : start + size] for start in range(0, len(points), size)]


#: so many first tries fail that moving on to another target is common
MOVING = Mix(spoilt=0.7)
MOVES = ("before_failover", "before_move", "after_move")
STEPS = tuple(point for point in CALL_POINTS if point not in MOVES)


def fail_points(kills: int, size: int, longest: float) -> list[Job]:
    """Every named step, so many at a time in one round."""
    jobs = [
        job(f"fail points {number + 1}", at_points(*points), kills=kills, longest=longest)
        for number, points in enumerate(groups(STEPS, size))
    ]
    return [
        *jobs,
        job("fail points of moving on", at_points(*MOVES), kills=kills, longest=longest, mix=MOVING),
    ]


def guards() -> list[Job]:
    """What every mutant must fall to, each in the size that must do."""
    return [
        job("kills at random", random_kills, kills=60, calls=600),
        job("recovery_settled", in_recovery("recovery_settled"), kills=3),
        job("machine lost", lost.machine, kills=3),
        job("edge of a budget", budgets.edge, kills=8, callers=1, calls=1),
        job("answers of Postgres lost", postgres.lost_answers, kills=60),
    ]


def ci() -> list[Job]:
    """Within four minutes: a few kills at every place, and the rounds that catch the mutants."""
    return [
        job("kills at random", random_kills, kills=24, calls=600),
        *fail_points(2, 6, 120.0),
        job("kills unseen", blind_kills, kills=6),
        job("whole server", tree_kills, kills=2),
        *(job(point, in_recovery(point), kills=1) for point in RECOVERY_POINTS[:3]),
        job("exactly 100 of 500", budgets.exactly, kills=2, callers=1, calls=1),
        job("edge of a budget", budgets.edge, kills=4, callers=1, calls=1),
        job("limit lowered", budgets.lowered, kills=1, callers=1, calls=1),
        job("clients leave", clients.leave, kills=150, callers=1, calls=1),
        job("machine lost", lost.machine, kills=1),
        job("answers of Postgres lost", postgres.lost_answers, kills=12),
        job("Postgres restarted", postgres.restarted, kills=2),
        job("Redis killed", redis.killed, kills=2),
        job("disk full", disk.full, kills=3),
    ]


def full(scale: float = 1.0) -> list[Job]:
    """The whole matrix. `scale` multiplies kills and calls."""

    def times(number: int) -> int:
        return max(1, round(number * scale))

    return [
        *(
            job(f"kills at random {n + 1}", random_kills, kills=times(75), calls=times(6000), callers=14)
            for n in range(4)
        ),
        *fail_points(times(12), 4, 900.0),
        job("kills unseen", blind_kills, kills=times(60), calls=times(3000)),
        job("whole server", tree_kills, kills=times(12)),
        *(job(point, in_recovery(point), kills=times(4)) for point in RECOVERY_POINTS),
        job("replay killed", postgres.replay_killed, kills=times(4)),
        *(job(f"{point} fails", failing(point), kills=0, calls=times(400)) for point in STEPS),
        *_matrix(times),
    ]


def _matrix(times: Callable[[int], int]) -> list[Job]:
    return [
        job("exactly 100 of 500", budgets.exactly, kills=times(20), callers=1, calls=1),
        job("edge of a budget", budgets.edge, kills=times(15), callers=1, calls=1),
        job("limit lowered", budgets.lowered, kills=times(5), callers=2, calls=1),
        job("period turns", budgets.rollover, kills=times(3), callers=2, calls=1),
        job("price turns", budgets.price_change, kills=0, callers=0, calls=0),
        job("clients leave", clients.leave, kills=times(2000), callers=2),
        job("retry storm", clients.storm, kills=times(20), callers=2),
        job("clock of a replica", clocks.replica, kills=0, callers=4),
        job("clock of the database", clocks.database, kills=0, callers=4),
        job("start with a wrong clock", clocks.starts_refused, kills=0, callers=1, calls=1),
        job("disk full", disk.full, kills=times(12)),
        job("hot row", hotrow.hammered, kills=times(60), callers=1, calls=1),
        job("upstream in every class", upstream.classes, kills=0),
        job("upstream cut", upstream.cut, kills=times(60)),
        job("upstream unreachable", upstream.never_reached, kills=0),
        job("machine lost", lost.machine, kills=times(3)),
        job("zombies", lost.zombies, kills=times(3)),
        job("Redis killed", redis.killed, kills=times(30)),
        job("Redis frozen", redis.frozen, kills=times(8)),
        job("Redis emptied", redis.emptied, kills=times(20)),
        job("Postgres restarted", postgres.restarted, kills=times(20)),
        job("Postgres sessions ended", postgres.backends, kills=times(40)),
        job("Postgres frozen", postgres.frozen, kills=times(6)),
        job("Postgres gone", postgres.gone, kills=times(20)),
        job("answers of Postgres lost", postgres.lost_answers, kills=times(60)),
        job("Postgres slow", postgres.slow, kills=times(8)),
    ]


FORMS: dict[str, Callable[[], list[Job]]] = {"ci": ci, "full": full}
