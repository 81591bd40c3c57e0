"""Every metric of Butterfly, named once. Pure.

The first five names are promised in the quick-start guide and never change.
"""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Prometheus' kinds that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One name. ``buckets`` (seconds) are for histograms only."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_REQUEST_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
_LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)

C, G, H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

INIT_DURATION = Metric(
    G, "init_duration_seconds", "Seconds spent in each phase of the start; total is all", ("phase",)
)
NODE_STATE = Metric(G, "node_state", "1 for the state this node is in, 0 for the rest", ("state",))
OPERATIONAL_NODES = Metric(G, "cluster_operational_nodes", "Members that are OPERATIONAL")
CLUSTER_SIZE = Metric(G, "cluster_size", "Members of the cluster")
BYTES_DOWNLOADED = Metric(
    C, "model_bytes_downloaded_total", "Weight bytes fetched from the model source by this node"
)

BYTES_FROM_CACHE = Metric(
    C, "model_bytes_from_cache_total", "Weight bytes read from the disk cache by this node"
)
BYTES_FROM_PEERS = Metric(
    C, "model_bytes_from_peers_total", "Weight bytes that other nodes gave to this node"
)
CACHE_BYTES = Metric(G, "model_cache_bytes", "Bytes the weight cache holds on disk")
CACHE_SCRUBBED = Metric(
    C, "model_cache_scrubbed_bytes_total", "Bytes of the weight cache read again to find rot"
)
CACHE_ROTTEN = Metric(
    C, "model_cache_rotten_total", "Cached tensors that the scrub found damaged and dropped"
)
LOAD_PROGRESS = Metric(G, "model_load_progress_ratio", "Share of this node's bytes loaded, 0 to 1")
LOAD_BYTES_DONE = Metric(G, "model_load_bytes_done", "Proven bytes of the present load")
LOAD_BYTES_TOTAL = Metric(G, "model_load_bytes", "Bytes of the present load")
LOAD_RATE = Metric(
    G, "model_load_bytes_per_second", "Proven bytes a second, over the last 10 seconds"
)
LOAD_ETA = Metric(
    G, "model_load_eta_seconds", "Until the present load ends at that rate; NaN when unknown"
)
VERIFICATION_FAILURES = Metric(
    C, "model_verification_failures_total", "Weight pieces that did not match their digest"
)

HTTP_REQUESTS = Metric(C, "http_requests_total", "HTTP requests", ("route", "method", "status"))
HTTP_DURATION = Metric(
    H, "http_request_duration_seconds", "From head to last byte", ("route",), _REQUEST_BUCKETS
)
FIRST_TOKEN = Metric(
    H, "time_to_first_token_seconds", "From request to first token", (), _FIRST_TOKEN_BUCKETS
)
ANSWERS = Metric(C, "answers_total", "Answers by how they ended", ("finish",))
ANSWERS_OPEN = Metric(G, "answers_open", "Answers under way with clients of this node")
PROMPT_TOKENS = Metric(C, "prompt_tokens_total", "Tokens of prompts answered")
GENERATED_TOKENS = Metric(C, "generated_tokens_total", "Tokens generated for clients of this node")
REQUESTS_RUNNING = Metric(G, "requests_running", "Sequences in the head's batches")
REQUESTS_WAITING = Metric(G, "requests_waiting", "Sequences in the head's queue")
KV_BLOCKS_USED = Metric(G, "kv_blocks_used", "Blocks of the KV cache in use")
KV_BLOCKS = Metric(G, "kv_blocks", "Blocks of the KV cache")

EPOCH = Metric(G, "cluster_epoch", "Number of the assignment in force")
RAFT_TERM = Metric(G, "raft_term", "Current term")
RAFT_COMMIT_INDEX = Metric(G, "raft_commit_index", "Last committed log entry")
RAFT_IS_LEADER = Metric(G, "raft_is_leader", "1 when this node believes to lead")
LEADER_CHANGES = Metric(C, "raft_leader_changes_total", "Leaders this node has seen come")
LOG_ENTRIES_REJECTED = Metric(
    C, "log_entries_rejected_total", "Committed entries that changed nothing, as of an old leader"
)
RAFT_DROPPED = Metric(
    C, "raft_messages_dropped_total", "Messages that a rule of the log's guard dropped", ("rule",)
)
RAFT_CHANNELS = Metric(
    C, "raft_channel_events_total", "What became of channels for the log", ("event",)
)
RAFT_SLIPS = Metric(C, "raft_slips_total", "Messages and ticks that confused this node's log")
APPLY_FAILURES = Metric(
    C, "log_apply_failures_total", "Committed entries that could not be applied"
)
JOURNAL_SYNCS = Metric(C, "journal_syncs_total", "Times the log was forced to the disk")
DISK_FAILED = Metric(
    G, "journal_failed", "1 when the log cannot be written: no vote until a restart"
)
PEER_FRAMES = Metric(
    C, "peer_frames_total", "Frames on connections between nodes, activations not counted", ("way",)
)
PEER_BYTES = Metric(C, "peer_bytes_total", "Bytes of these frames", ("way",))
PEER_CONNECTIONS = Metric(G, "peer_connections", "Connections that other nodes hold to this one")
PEER_REFUSED = Metric(
    C, "peer_connections_refused_total", "Connections to the peer port that were refused", ("why",)
)
ENGINE_RESTARTS = Metric(C, "engine_restarts_total", "Engine processes started again")
LOOP_LAG = Metric(
    H, "event_loop_lag_seconds", "How late the node's event loop woke up", (), _LAG_BUCKETS
)

GPU_MEMORY_USED = Metric(G, "gpu_memory_used_bytes", "Memory in use on a GPU", ("gpu",))
GPU_MEMORY_TOTAL = Metric(G, "gpu_memory_total_bytes", "Memory of a GPU", ("gpu",))
GPU_UTILIZATION = Metric(G, "gpu_utilization_ratio", "Share of time a kernel ran, 0 to 1", ("gpu",))
GPU_TEMPERATURE = Metric(G, "gpu_temperature_celsius", "Temperature of a GPU", ("gpu",))
GPU_POWER = Metric(G, "gpu_power_watts", "Power drawn by a GPU", ("gpu",))

TABLE: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
"""All of them, in the order above."""
