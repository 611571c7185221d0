# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compute, and that their load arrives whole through a real relay."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from wirekube.lab import bench_path, bench_relay, idle, relayload
from wirekube.wire import relay as wire

METRICS = """\
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",group="wirekube.io",resource="wirekubepeers",scope="resource",subresource="status",verb="APPLY"} 3
apiserver_request_total{code="409",group="wirekube.io",resource="wirekubepeers",scope="resource",subresource="status",verb="APPLY"} 1
apiserver_request_total{code="200",group="",resource="",scope="",subresource="/healthz",verb="GET"} 1.2e+02
apiserver_request_duration_seconds_count{resource="nodes",verb="LIST"} 9
"""


def test_requests_are_summed_over_codes_and_scopes() -> None:
    assert idle.requests(METRICS) == Counter({("APPLY", "wirekubepeers/status"): 4, ("GET", "//healthz"): 120})


def snapshot(at: float, cpu: float, requests: dict[tuple[str, str], int], version: str) -> idle.Snapshot:
    return idle.Snapshot(at, {"one": idle.Usage(cpu, 80.0, 60.0)}, Counter(requests), {"WireKubePeer one": version})


def test_a_cost_leaves_out_what_the_snapshots_ask_for() -> None:
    lists = {("LIST", resource): 1 for resource in idle.WATCHED}
    before = snapshot(100.0, 2.0, {("GET", "leases"): 5}, "7")
    after = snapshot(160.0, 2.6, {("GET", "leases"): 8, ("APPLY", "wirekubepeers/status"): 1, **lists}, "8")
    cost = idle.between(before, after)
    assert cost.requests_a_minute == 4
    assert cost.writes == 1
    assert cost.changed == ("WireKubePeer one",)
    assert cost.cpu["one"] == pytest.approx(0.01)
    assert idle.between(before, snapshot(160.0, 2.0, {}, "7")).changed == ()


def test_this_process_uses_memory_and_time() -> None:
    used = idle.usage(os.getpid())
    assert used.cpu > 0
    assert 5 < used.pss <= used.rss


@pytest.mark.parametrize(
    ("value", "most", "said"),
    [(0.9, False, "reached"), (0.8, False, "MISSED"), (0.9, True, "reached"), (1, True, "MISSED")],
)
def test_a_verdict_names_the_aim(value: float, most: bool, said: str) -> None:
    assert said in bench_path.verdict(value, 0.9, most=most)
    assert "0.9" in bench_path.verdict(value, 0.9, most=most)


@pytest.mark.parametrize("feed", [relayload.TRAINS, relayload.BATCHES, relayload.SINGLES])
def test_a_write_is_whole_frames_of_one_size(feed: relayload.Feed) -> None:
    reader, write = wire.Reader(), feed.write(bytes(32))
    reader.space()[: len(write)] = write
    reader.filled(len(write))
    frames = [(kind, len(body)) for kind, body in reader.frames()]
    assert frames == [(wire.DATA, feed.frame_bytes - wire.HEADER.size)] * feed.frames_a_write


def test_a_slow_load_arrives_whole_and_the_relay_is_gone_afterwards() -> None:
    with bench_relay.a_relay() as relay:
        rate = bench_relay.relay_rate(relay, relayload.BATCHES, 2, 0.3, gbit=0.05)
        there, back = bench_relay.round_trips(relay, 5)
    assert (rate.lost, rate.dropped_full, rate.dropped_absent) == (0, 0, 0)
    assert 0 < rate.gbit < 1
    assert len(there) == len(back) == 5
    assert all(0 < one < both for one, both in zip(there, back, strict=True))
    with pytest.raises(OSError, match="refused"):
        relayload.register(relay.address, relay.key)
