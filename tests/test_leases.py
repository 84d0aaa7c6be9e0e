"""Holding a lease for a body, and giving back what a cancelled caller took."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pytest

from metastore import LeaseLost, MetadataStore, StoreBusy, StoreFull
from metastore.codec import new_id
from metastore.leasing import limits
from metastore.leasing import queue as queue_module
from metastore.leasing.holding import held_lease
from metastore.leasing.queue import background_work, finish_in_background, give_back
from tests.patience import PATIENCE
from tests.repositories.queues import ONE_OF_EACH, REFUSED, Queue, pair

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from metastore.testing import Faults
    from tests.conftest import Clock

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)

# --- the renewer, on a clock that only its own sleeps move --------------------------------------


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once: nothing but waiting takes any."""

    class _Selector(selectors.SelectSelector):
        passed = 0.0
        turns = 0

        def select(self, timeout: float | None = None) -> list[Any]:
            assert timeout is not None, "everything waits for something that never comes"
            self.passed += timeout
            self.turns += 1
            assert self.turns < 100_000, "it goes on for ever"
            return super().select(0)

    def __init__(self) -> None:
        self._simulated = self._Selector()
        super().__init__(self._simulated)

    def time(self) -> float:
        """Return the seconds that were waited so far."""
        # Timers are due slightly early on a real loop as well, never late.
        return round(self._simulated.passed, 6)


def simulate(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


class Holding:
    """A lease of 30 s whose renewals do as they are told; notes when what happened.

    Attributes:
        renewals: what each renewal does: how long it takes, and what it raises.
        log: what happened when.
    """

    resource: ClassVar[str] = "worktrees"
    resource_id = "id"
    fencing_number = 1

    def __init__(self, *renewals: tuple[float, BaseException | None]) -> None:
        self.renewals = list(renewals)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.expires_at = self.now + 30 * SECOND
        self.log: list[tuple[float, str]] = []

    def note(self, what: str) -> None:
        self.log.append((asyncio.get_running_loop().time(), what))

    async def renew(self) -> Holding:
        """Renew as the statements do: behind the grant, a clock leaves the expiry where it is."""
        self.note("renew")
        takes, error = self.renewals.pop(0) if len(self.renewals) > 1 else self.renewals[0]
        if takes:
            await asyncio.sleep(takes)
        if error is not None:
            raise error
        if self.now >= datetime(2026, 1, 1, tzinfo=UTC):
            self.expires_at = self.now + 30 * SECOND
        return self

    async def end(self, error: BaseException | None) -> None:
        self.note(f"end {type(error).__name__}")

    def hold(self, remaining: float = 30) -> contextlib.AbstractAsyncContextManager[Holding]:
        self.expires_at = self.now + remaining * SECOND
        return held_lease(
            self,
            backend=self,
            ttl=30 * SECOND,
            renew=self.renew,
            now=lambda: self.now,
            end=self.end,
        )

    async def body(self, seconds: float = 3600) -> None:
        """Do nothing for so long, and note a cancellation."""
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.note("cancelled")
            raise


def test_renewer__renews_every_third_of_the_ttl() -> None:
    async def main() -> None:
        holding = Holding((0, None))
        async with holding.hold():
            await holding.body(35)
        assert holding.log == [(10, "renew"), (20, "renew"), (30, "renew"), (35, "end NoneType")]

    simulate(main)


@pytest.mark.parametrize("takes", [0, 0.05])
@pytest.mark.parametrize("error", [StoreBusy, StoreFull])
def test_renewer__a_slow_renewal_and_then_failures(takes: float, error: Any) -> None:
    """The deadline of the lease counts from the moment that its expiry was worked out."""

    async def main() -> None:
        # Begun after 10 s, it takes 15: the lease then ends at 40, not at 55.
        holding = Holding((15, None), (takes, error("not now")))
        with pytest.raises(LeaseLost):
            async with holding.hold():
                await holding.body()
        times = Counter(what for _, what in holding.log)
        assert times["renew"] > 3, "it was tried again"
        [ended] = [when for when, what in holding.log if what == "cancelled"]
        assert ended == pytest.approx(40, abs=0.001)

    simulate(main)


@pytest.mark.parametrize("back", [timedelta(milliseconds=1), 10 * SECOND, timedelta(days=1)])
def test_renewer__of_a_clock_behind_the_grant_ends_with_the_expiry_that_others_see(
    back: timedelta,
) -> None:
    async def main() -> None:
        holding = Holding((0, None))

        async def jump() -> None:
            await asyncio.sleep(15)
            holding.now -= back

        jumping = asyncio.ensure_future(jump())
        with pytest.raises(LeaseLost):
            async with holding.hold():
                await holding.body()
        await jumping
        [ended] = [when for when, what in holding.log if what == "cancelled"]
        # The renewal after 10 s still counted; the later ones changed nothing.
        assert ended == pytest.approx(40, abs=0.001)
        assert [when for when, what in holding.log if what == "renew"] == [10, 20, 30, 40]

    simulate(main)


def test_renewer__after_a_slow_renewal_the_next_is_due_at_once() -> None:
    async def main() -> None:
        holding = Holding((19, None), (0, None))
        async with holding.hold():
            await holding.body(42)
        # Begun at 10 and back at 29: a third after the end of it would be 39, one before it is up.
        assert [when for when, what in holding.log if what == "renew"] == [10, 29, 39]

    simulate(main)


def test_renewer__a_slow_acquisition_counts_too() -> None:
    async def main() -> None:
        holding = Holding((0, StoreBusy("not now")))

        async def hold() -> None:
            async with holding.hold(remaining=12):
                await holding.body()

        with pytest.raises(LeaseLost):
            await hold()
        assert min(when for when, _ in holding.log) == 4
        [ended] = [when for when, what in holding.log if what == "cancelled"]
        assert ended == pytest.approx(12, abs=0.001)

    simulate(main)


class UnexpectedError(Exception):
    """What no renewal raises, unless there is a fault in it."""


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize(
    "error", [UnexpectedError("a bug"), RecursionError(), OSError(5), asyncio.CancelledError()]
)
def test_renewer__any_unexpected_end_counts_as_lost(error: BaseException, swallowed: bool) -> None:
    async def main() -> None:
        holding = Holding((0, error))
        with pytest.raises(LeaseLost) as lost:
            async with holding.hold():
                with contextlib.suppress(*[asyncio.CancelledError] * swallowed):
                    await holding.body()
        expected = None if isinstance(error, asyncio.CancelledError) else error
        assert lost.value.__cause__ is expected
        # What was held may still be, so it is given back.
        assert holding.log == [(10, "renew"), (10, "cancelled"), (10, "end CancelledError")]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    simulate(main)


def test_renewer__an_error_of_the_body_comes_before_a_lost_lease() -> None:
    async def main() -> None:
        for error in (UnexpectedError("a bug"), LeaseLost("worktrees", "id", 1)):
            holding = Holding((0, error))
            with pytest.raises(ZeroDivisionError):
                async with holding.hold():
                    try:
                        await holding.body()
                    finally:
                        raise ZeroDivisionError
            assert holding.log[-1][1] == "end ZeroDivisionError"
            await asyncio.sleep(1)

    simulate(main)


@pytest.mark.parametrize("swallowed", [False, True])
def test_renewer__a_cancellation_from_outside_beside_a_loss_is_not_lost(swallowed: bool) -> None:
    async def main() -> None:
        holding = Holding((0, LeaseLost("worktrees", "id", 1)))

        async def hold() -> None:
            async with holding.hold():
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    # A second one arrives before the first has ended the body.
                    asyncio.get_running_loop().call_soon(task.cancel)
                    if not swallowed:
                        raise

        task = asyncio.ensure_future(hold())
        await asyncio.wait([task])
        assert task.cancelled()

    simulate(main)


def test_renewer__a_loss_after_a_cancellation_from_outside_is_that_cancellation() -> None:
    async def main() -> None:
        holding = Holding((0, LeaseLost("worktrees", "id", 1)))

        async def hold() -> None:
            async with holding.hold():
                try:
                    await asyncio.sleep(3600)
                finally:
                    # Cleaning up takes longer than the lease lasts.
                    await asyncio.sleep(3600)

        task = asyncio.ensure_future(hold())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert holding.log == [(10, "renew"), (10, "end CancelledError")]

    simulate(main)


def test_renewer__a_loss_inside_a_body_that_is_being_cancelled_already() -> None:
    """A clean-up that holds a lease is told of its loss, as anybody is."""

    async def main() -> None:
        holding = Holding((0, LeaseLost("worktrees", "id", 1)))

        async def clean_up() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                async with holding.hold():
                    await holding.body()

        task = asyncio.ensure_future(clean_up())
        await asyncio.sleep(1)
        task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(result, LeaseLost)

    simulate(main)


# --- the end of a body --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("how", ["error", "cancelled"])
async def test_hold__is_released_before_the_error_of_its_body_goes_on(
    store: MetadataStore, kind: str, how: str
) -> None:
    queue, other = await pair(kind, store)
    held_too = await other.take("holder")
    for n in range(20):
        if kind == "task of types" and how == "error" and n:
            # A task whose run failed is not handed out again.
            await store.tasks.create(title="next", task_type="own")
        error = ZeroDivisionError if how == "error" else asyncio.CancelledError
        with pytest.raises(error):
            async with queue.hold("a"):
                raise error
        if kind == "task of types" and how == "error":
            failed = (await store.tasks.list_by_status("failed")).items
            assert len(failed) == n + 1
            continue
        await queue.release(await queue.take("b"))
    await other.release(held_too)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
async def test_hold__a_real_cancellation_releases_first(store: MetadataStore, kind: str) -> None:
    queue, _ = await pair(kind, store)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                async with queue.hold("a"):
                    await asyncio.sleep(PATIENCE)
        await queue.release(await queue.take("b"))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("fault", ["busy", "full", "lost", "unexpected"])
@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_hold__an_error_of_the_release_never_replaces_that_of_the_body(
    store: MetadataStore,
    faults: Faults,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    fault: str,
    error: type[BaseException],
) -> None:
    queue, _ = await pair(kind, store)
    with contextlib.ExitStack() as planted, pytest.raises(error) as raised:
        async with queue.hold("a"):
            match fault:
                case "busy":
                    planted.enter_context(faults.busy())
                case "full":
                    planted.enter_context(faults.full())
                case "lost":
                    clock.advance(10 * MINUTE)
                case "unexpected":
                    # A lease is ended by one statement or another; all of them break.
                    monkeypatch.setattr(type(store.tasks), "_unless_lost", _broken)
                    monkeypatch.setattr(type(store.worktrees), "_unless_lost", _broken)
                    monkeypatch.setattr(type(store.project_locks), "_unless_lost", _broken)
            raise error
    assert raised.value.__cause__ is None
    unexpected = [record for record in caplog.records if record.name == "metastore.leasing"]
    unexpected = [record for record in unexpected if record.levelno >= logging.ERROR]
    assert len(unexpected) == (fault == "unexpected")


async def _broken(*_: object) -> NoReturn:
    raise UnexpectedError("a bug")


@pytest.mark.parametrize("kind", ONE_OF_EACH)
async def test_hold__a_store_that_does_not_answer_delays_the_error_within_a_bound(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The writer is taken for longer than the error waits; the release follows when it is free."""
    monkeypatch.setattr(queue_module, "RELEASE_PATIENCE", 0.05)
    queue, _ = await pair(kind, store)
    taken, free = asyncio.Event(), asyncio.Event()

    async def keep_the_writer() -> None:
        async with store.transaction():
            taken.set()
            await free.wait()

    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(PATIENCE), queue.hold("a"):
            writer = asyncio.ensure_future(keep_the_writer())
            await taken.wait()
            raise ZeroDivisionError
    assert await queue.holder() is not None
    free.set()
    await writer
    await background_work()
    assert await queue.holder() is None


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("end", ["well", "cancelled"])
async def test_hold__a_cancellation_during_the_release_does_not_lose_it(
    store: MetadataStore, kind: str, end: str
) -> None:
    queue, _ = await pair(kind, store)
    cancelled = Counter[bool]()
    for point in range(100):
        if kind == "task of types" and end == "well" and point:
            await store.tasks.create(title="next", task_type="own")
        inside = asyncio.Event()

        async def body(inside: asyncio.Event = inside) -> None:
            async with queue.hold("a"):
                inside.set()
                if end == "cancelled":
                    await asyncio.sleep(PATIENCE)

        task = asyncio.ensure_future(body())
        await inside.wait()
        if end == "cancelled":
            task.cancel()
        for _ in range(point):
            await asyncio.sleep(0)
        hit = task.cancel()
        await asyncio.wait([task])
        await background_work()
        assert await queue.holder() is None
        cancelled[hit] += 1
        if not hit:
            break
    assert cancelled[True] > 1, "the release was cancelled"
    assert cancelled[False], "it also came to its end"


# --- waiting, cancelled at every point ----------------------------------------------------------


async def _outcome(task: asyncio.Task[Any]) -> Any:
    try:
        return await task
    except BaseException as error:
        return error


class CancelledAt:
    """Runs a coroutine as a task, and cancels that the n-th time it suspends.

    Whatever the threads of the database take, a coroutine suspends at the same points each time.

    Attributes:
        points: how often it suspended.
    """

    def __init__(self, point: int, *, answered: bool, again: bool) -> None:
        self.points = 0
        self._point = point
        self._answered = answered
        self._again = again
        self._task: asyncio.Task[Any] | None = None

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what `work` returns, or what it raises."""
        self._task = asyncio.ensure_future(_driven(work, self._suspended))
        await asyncio.wait([self._task])
        return await _outcome(self._task)

    def _suspended(self, awaited: asyncio.Future[Any] | None) -> None:
        assert self._task is not None
        self.points += 1
        if self.points == self._point or (self._again and self.points == self._point + 1):
            if self._answered and awaited is not None:
                # The answer is there, and the coroutine does not know it yet.
                awaited.add_done_callback(lambda _: self._task and self._task.cancel())
            else:
                asyncio.get_running_loop().call_soon(self._task.cancel)


class _driven:  # noqa: N801 - an awaitable that reads as a function
    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        suspended: Callable[[asyncio.Future[Any] | None], None],
    ) -> None:
        self._work = work
        self._suspended = suspended

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                awaited = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self._suspended(awaited)
            try:
                yield awaited
                error = None
            except BaseException as thrown:
                error = thrown


async def _cancelled_wait(
    queue: Queue, point: int, *, answered: bool, again: bool, wait: timedelta
) -> tuple[Any, bool]:
    """Cancel a wait at one point; return what it came to, and whether it had drawn its ticket."""
    position = (await queue.draw("probe")).position
    await queue.store._backend.run(
        queue.store.lease_waiters._sql.delete_expired_lease_waiters(
            resource=queue.resource,
            resource_id=queue.resource_id,
            now=limits.LONG_AGO.replace(year=9999),
            latest_credible_ticket=limits.LONG_AGO.replace(year=9999),
        )
    )
    result = await CancelledAt(point, answered=answered, again=again).run(
        queue.take("a", wait=wait)
    )
    if again:
        await background_work()
    # Cancelled while it leaves, the waiter is gone before its ticket is; no later write sees that.
    barrier = await queue._replace(resource_id=new_id()).draw("barrier")
    assert await queue.rows() == [], "a ticket was left"
    return result, barrier.position > position + 1


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("answered", [False, True], ids=["in flight", "answered"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("ending", ["refused", "granted"])
async def test_wait__cancelled_at_any_point_leaves_nothing(
    store: MetadataStore,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    answered: bool,
    again: bool,
    ending: str,
) -> None:
    queue, other = await pair(kind, store)
    monkeypatch.setattr(queue_module, "KEEP_INTERVAL", 0)
    before_and_after_the_draw = Counter[bool]()
    finished = 0
    for point in range(1, 100):
        bystander = await other.draw("b")
        held = await queue.take("holder")
        holder = await queue.holder()
        # With each reading of the clock the holder's time is nearer to its end: it has ended when
        # the waiter looks the first time after its draw.
        clock.tick = 25 * SECOND if ending == "granted" else timedelta(milliseconds=1)
        wait = MINUTE if ending == "granted" else 20 * timedelta(milliseconds=1)
        result, drawn = await _cancelled_wait(
            queue, point, answered=answered, again=again, wait=wait
        )
        clock.tick = timedelta(milliseconds=1)
        assert bystander.owner in await other.rows()
        if isinstance(result, asyncio.CancelledError):
            before_and_after_the_draw[drawn] += 1
            assert await queue.holder() in (None, holder), "a lease was left"
            if ending == "refused":
                await queue.release(held)
            else:
                clock.advance(MINUTE)
            # At once, without waiting.
            await queue.release(await queue.take("b"))
            continue
        finished += 1
        if ending == "refused":
            assert isinstance(result, REFUSED)
        else:
            await queue.release(result)
        break
    assert finished, "it was never left alone for long enough"
    assert before_and_after_the_draw[False] >= 1
    assert before_and_after_the_draw[True] >= 2


@pytest.mark.parametrize("kind", ONE_OF_EACH)
async def test_wait__cancelled_while_the_database_is_locked(
    store: MetadataStore, faults: Faults, kind: str
) -> None:
    queue, _ = await pair(kind, store)
    await queue.take("holder")
    waiting: asyncio.Task[Any] = asyncio.ensure_future(queue.take("a", wait=MINUTE))
    async with asyncio.timeout(PATIENCE):
        while not await queue.tickets():
            await asyncio.sleep(0.005)
    with faults.busy():
        waiting.cancel()
        await asyncio.wait([waiting])
    assert waiting.cancelled()


@pytest.mark.parametrize("kind", ONE_OF_EACH)
async def test_wait__cancelled_while_the_store_is_closed(store: MetadataStore, kind: str) -> None:
    queue, _ = await pair(kind, store)
    await queue.take("holder")
    waiting: asyncio.Task[Any] = asyncio.ensure_future(queue.take("a", wait=MINUTE))
    async with asyncio.timeout(PATIENCE):
        while not await queue.tickets():
            await asyncio.sleep(0.005)
    closing = asyncio.ensure_future(store.close())
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await closing


@pytest.mark.parametrize("kind", ONE_OF_EACH)
async def test_wait__whose_time_is_up_while_the_database_is_locked_is_refused(
    store: MetadataStore, faults: Faults, clock: Clock, kind: str
) -> None:
    queue, _ = await pair(kind, store)
    await queue.take("holder")
    waiting: asyncio.Task[Any] = asyncio.ensure_future(
        queue.take("a", wait=timedelta(milliseconds=300))
    )
    async with asyncio.timeout(PATIENCE):
        while not await queue.tickets():
            await asyncio.sleep(0.005)
    with faults.busy():
        assert isinstance(await _outcome(waiting), REFUSED)


# --- in the background --------------------------------------------------------------------------


async def _fail(error: BaseException) -> NoReturn:
    raise error


async def test_background__an_unexpected_error_is_logged_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    caplog.set_level(logging.DEBUG, "metastore.leasing")
    finished = asyncio.Event()

    async def finish() -> None:
        finished.set()

    for work in (_fail(UnexpectedError("a bug")), _fail(StoreBusy("busy")), finish()):
        finish_in_background(work, backend=None)
    await background_work()
    assert finished.is_set()
    assert unhandled == []
    [unexpected, expected] = [each for each in caplog.records if each.name == "metastore.leasing"]
    assert (unexpected.levelname, expected.levelname) == ("ERROR", "DEBUG")
    assert unexpected.exc_info is not None
    assert isinstance(unexpected.exc_info[1], UnexpectedError)


def test_background__is_waited_for_within_a_bound_and_of_one_backend() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: list[str] = []

        async def work(name: str, seconds: float) -> None:
            try:
                await asyncio.sleep(seconds)
                ended.append(name)
            except asyncio.CancelledError:
                ended.append(f"{name} was cancelled")
                raise

        mine, others = object(), object()
        for backend, whose in ((mine, "mine"), (others, "others'")):
            finish_in_background(work(f"{whose}, short", 2), backend=backend)
            finish_in_background(work(f"{whose}, long", 60), backend=backend)
        await background_work(mine, timeout=5)
        assert loop.time() == 5
        assert sorted(ended) == ["mine, long was cancelled", "mine, short", "others', short"]
        await background_work()
        assert loop.time() == 60
        assert ended[-1] == "others', long"
        await background_work(timeout=5)
        assert loop.time() == 60, "there was nothing to wait for"

    simulate(main)


def test_background__what_resists_its_cancellation_is_left_behind() -> None:
    async def main() -> None:
        async def stubborn() -> None:
            for _ in range(100):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)

        finish_in_background(stubborn(), backend=None)
        await background_work(timeout=5)
        assert asyncio.get_running_loop().time() <= 5 + queue_module.RELEASE_PATIENCE + 0.001
        await background_work()

    simulate(main)


def test_give_back__waits_for_so_long_and_no_longer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await give_back(asyncio.sleep(0.5), backend=None)
        assert loop.time() == 0.5
        await give_back(asyncio.sleep(60), backend=None)
        assert loop.time() == 0.5 + queue_module.RELEASE_PATIENCE
        task = asyncio.ensure_future(give_back(asyncio.sleep(60), backend=None))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert loop.time() == 0.5 + queue_module.RELEASE_PATIENCE
        await background_work()
        assert loop.time() == 61.5

    simulate(main)
