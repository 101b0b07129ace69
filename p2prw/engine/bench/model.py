"""What a measurement is asked for and what it says; data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from p2prw.engine.bench.sizes import walk_places
from p2prw.engine.model import Operation, Outcome, TransferRequest

TESTS = ("bw", "lat")
DEFAULT_SIZE_BYTES = {"bw": 65536, "lat": 2}
"""perftest's."""
ITERATIONS = {("bw", Operation.WRITE): 5000, ("bw", Operation.READ): 1000}
"""perftest's; every latency test has 1000."""
LATENCY_ITERATIONS = 1000
PERCENTILES = {"p50": "lat_p50_us", "p90": "lat_p90_us", "p99": "lat_p99_us", "p99.9": "lat_p999_us"}
"""How a percentile is asked for, and its name in a row."""
LATENCY_FIGURES = {**PERCENTILES, "min": "lat_min_us", "avg": "lat_avg_us", "max": "lat_max_us"}
"""What `--max-lat` may bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """Everything `bench` needs.

    `connection` is a transfer request as a whole: peer, region, device, queue pair, waits. Its operation, size and
    chunk are set for each test; its memory too, where it is `host` without a size.
    """

    connection: TransferRequest
    operations: tuple[Operation, ...] = (Operation.WRITE,)
    tests: tuple[str, ...] = ("bw",)
    sizes: tuple[int, ...] | None = None
    """None: the default size of each test, or every size where `sweep`."""
    sweep: bool = False
    """2 bytes to 8 MiB by powers of two, as far as the region goes."""
    iterations: int | None = None
    """Messages of each queue pair and size; None: perftest's number."""
    duration_s: float | None = None
    """Instead of a number of messages."""
    warm_up: int | None = None
    """Messages before the clock starts; None: a tenth of the iterations, at most 100 and at most 64 MiB."""
    queue_pairs: int = 1
    walk_bytes: int | None = None
    """Each queue pair goes round this much of both ends; None: every message has the same bytes."""
    post_list: int | None = None
    """Work requests that leave together; None: as many as there is room for."""
    lat_by: str = "completion"
    """How the latency of WRITEs is measured: `completion` or `ping-pong`."""
    both_ways: bool = False
    """The server posts the same towards us at the same time."""
    verify: bool = False
    min_bw_bytes_per_s: float | None = None
    max_latency_us: Mapping[str, float] = field(default_factory=dict)
    """One of `LATENCY_FIGURES` -> most microseconds."""

    @property
    def depth(self) -> int:
        """Work requests outstanding at most on each queue pair."""
        return self.connection.queue_pair.depth

    def walk_places(self, size_bytes: int) -> int | None:
        """Return how many messages one round of a walk has; None without one."""
        return None if self.walk_bytes is None else walk_places(self.walk_bytes, size_bytes, self.queue_pairs)

    def messages_for(self, test: str, operation: Operation, size_bytes: int) -> int | None:
        """Return how many messages each queue pair sends, of a walk at least a round; None where the time decides."""
        if self.duration_s is not None:
            return None
        usual = ITERATIONS.get((test, operation), LATENCY_ITERATIONS)
        return self.iterations or max(usual, self.walk_places(size_bytes) or 0)


@dataclass(frozen=True, slots=True)
class BenchProgress:
    """One sample of a running test, taken by time."""

    test: str
    operation: str
    size_bytes: int
    step: int
    """1 .. steps: which test and size of all."""
    steps: int
    messages_done: int
    messages_total: int | None
    """None where the time decides."""
    elapsed_s: float
    duration_s: float | None
    bw_bytes_per_s: float
    """Since the first post."""
    wqes_in_flight: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Samples in [from_us, to_us)."""

    from_us: float
    to_us: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One row of `results`: one test of one operation at one size. What the test does not measure is None."""

    test: str
    """`bw` or `lat`."""
    operation: str
    size_bytes: int
    complete: bool
    """False: it was cut short, and the figures are of what was done."""
    queue_pairs: int
    tx_depth: int
    """Work requests outstanding at most on each queue pair; 1 message for latency."""
    signal_every: int
    post_list: int | None
    walk_bytes: int | None = None
    """What each queue pair went round; None: every message had the same bytes."""
    walk_places: int | None = None
    """Messages of one round, evenly apart."""
    wqes_per_message: int
    warm_up_messages: int
    messages: int
    """Completed, warm-up not counted, all queue pairs together; of both directions where `both_ways`."""
    bytes: int
    elapsed_s: float
    """First post to last completion; of our direction."""
    msg_rate_per_s: float | None
    bw_bytes_per_s: float | None
    """Bytes / elapsed_s; where `both_ways`, the sum of the two directions, each over its own time."""
    bw_min_bytes_per_s: float | None = None
    bw_median_bytes_per_s: float | None = None
    bw_max_bytes_per_s: float | None = None
    """Of the intervals that the run was cut into."""
    intervals: int = 0
    lat_by: str | None = None
    """`completion`: from posting to seeing the completion, one round trip. `ping-pong`: half of one, by memory."""
    lat_min_us: float | None = None
    lat_avg_us: float | None = None
    lat_p50_us: float | None = None
    lat_p90_us: float | None = None
    lat_p99_us: float | None = None
    lat_p999_us: float | None = None
    lat_max_us: float | None = None
    lat_stdev_us: float | None = None
    histogram: tuple[Bucket, ...] = ()
    wqes_posted: int = 0
    wqes_signalled: int = 0
    retransmitted_packets: int = 0
    verify: str = "unverified"
    rate_limit_bytes_per_s: float | None = None
    """The lower one of `--rate-limit` and the server's `--client-rate-limit`."""
    rate_limit_by: str | None = None
    """Whose that is: `client` or `server`."""
    both_ways: bool = False
    """The server posted the same towards us meanwhile."""
    out_messages: int | None = None
    """What we posted."""
    out_bw_bytes_per_s: float | None = None
    in_messages: int | None = None
    """What the server posted, and had completed when our direction was done."""
    in_elapsed_s: float | None = None
    """By the server's clock."""
    in_bw_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison, run by run: rates, or medians of latency. What is not measured is empty."""

    bw_bytes_per_s: tuple[float, ...] = ()
    bw_median_bytes_per_s: float | None = None
    lat_us: tuple[float, ...] = ()
    lat_median_us: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], *, latency: bool) -> Side:
        """Return the side that measured `values`."""
        if latency:
            return cls(lat_us=tuple(values), lat_median_us=median(values))
        return cls(bw_bytes_per_s=tuple(values), bw_median_bytes_per_s=median(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """p2prw and another tool, measured by turns on one host."""

    tool: str
    test: str
    operation: str
    size_bytes: int
    environ: Mapping[str, str]
    """Set for the other tool."""
    server: str
    client: str
    """Its command lines, as they last ran."""
    pairs: int
    p2prw: Side
    other: Side
    ratio: float
    """Median of ours / median of theirs; of latencies, too, where below 1 is the better one."""
    ratio_low: float
    ratio_high: float
    """95 % bootstrap interval over pairs."""
    differs: tuple[str, ...]
    """What the two do not have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult(Outcome[BenchRow]):
    """The whole outcome of a measurement."""

    command: str = "bench"
    against: Against | None = None
