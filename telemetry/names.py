# SPDX-License-Identifier: Apache-2.0
"""The names of all metrics, in one place, and the buckets of histograms.

The names are those of OpenTelemetry instruments. The Prometheus exporter appends `_total` to counters (unless it stands
there already) and `_seconds` to histograms of the unit `s` (likewise), so the names here leave both out. With them, the
series of work queues and controllers carry the names of client-go and controller-runtime, and existing dashboards work.
"""

from typing import Final

# Events that were not written, by reason (`queue`, `spam`, `api`).
EVENTS_DROPPED: Final = "wirekube_events_dropped"

# Peers of a node by the state of their path, and WireGuard's bytes over all of them.
PEERS: Final = "wirekube_peers"
RECEIVED: Final = "wirekube_wireguard_received_bytes"
SENT: Final = "wirekube_wireguard_sent_bytes"

# Changes of a peer's path, by old state, new state and reason.
PATH_TRANSITIONS: Final = "wirekube_path_transitions"
# Seconds from the start of the search for a direct path to its end.
PATH_SEARCH: Final = "wirekube_path_search"

# 1 for the process that leads, 0 for one that waits, by the `name` of the Lease.
LEADER: Final = "leader_election_master_status"

# Full STUN discoveries, by what was found about UDP.
STUN_DISCOVERIES: Final = "wirekube_stun_discoveries"

# Reconciles by `controller` and `result` (success, error, requeue, requeue_after).
RECONCILE_TOTAL: Final = "controller_runtime_reconcile"
RECONCILE_ERRORS: Final = "controller_runtime_reconcile_errors"
RECONCILE_TERMINAL_ERRORS: Final = "controller_runtime_terminal_reconcile_errors"
RECONCILE_TIME: Final = "controller_runtime_reconcile_time"
RECONCILE_ACTIVE_WORKERS: Final = "controller_runtime_active_workers"
RECONCILE_MAX_WORKERS: Final = "controller_runtime_max_concurrent_reconciles"

# Reflectors, by `kind`: complete lists, watches that were opened, and failures by `reason`.
REFLECTOR_LISTS: Final = "reflector_lists"
REFLECTOR_WATCHES: Final = "reflector_watches"
REFLECTOR_ERRORS: Final = "reflector_errors"

# Requests to the Kubernetes API, by `method` and `code` (`<error>` when there was no answer).
REST_REQUESTS: Final = "rest_client_requests"

# Work queues, by `name` and, where client-go has it, `controller`.
WORKQUEUE_DEPTH: Final = "workqueue_depth"
WORKQUEUE_ADDS: Final = "workqueue_adds"
WORKQUEUE_RETRIES: Final = "workqueue_retries"
WORKQUEUE_QUEUE_DURATION: Final = "workqueue_queue_duration"
WORKQUEUE_WORK_DURATION: Final = "workqueue_work_duration"
WORKQUEUE_UNFINISHED: Final = "workqueue_unfinished_work_seconds"
WORKQUEUE_LONGEST_RUNNING: Final = "workqueue_longest_running_processor_seconds"

# Upper bounds of histogram buckets, in seconds: from a reconcile that only compares to a stuck one.
SECONDS_BUCKETS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    1000.0,
)
