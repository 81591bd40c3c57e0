"""The table of names and the registry made of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.errors import InvalidValue
from butterfly_telemetry import metric_table as names
from butterfly_telemetry.metric_table import TABLE, Kind
from butterfly_telemetry.metrics import HttpMetrics, Metrics

STATES = ["COLD", "JOINING", "LOADING", "READY", "OPERATIONAL"]


def lines(metrics: Metrics) -> list[str]:
    return metrics.render().decode().splitlines()


def test_the_promised_names_are_there() -> None:
    promised = {
        "init_duration_seconds": ("phase",),
        "node_state": ("state",),
        "cluster_operational_nodes": (),
        "cluster_size": (),
        "model_bytes_downloaded_total": (),
    }

    assert {metric.name: metric.labels for metric in TABLE if metric.name in promised} == promised


def test_names_follow_prometheus_and_are_unique() -> None:
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    for metric in TABLE:
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM), metric.name
        assert metric.buckets == tuple(sorted(metric.buckets))


def test_every_metric_of_the_table_is_rendered_under_its_name() -> None:
    text = Metrics().render().decode()

    assert all(f"# TYPE {metric.name} {metric.kind.value}\n" in text for metric in TABLE)


def test_nothing_but_the_table_is_rendered() -> None:
    types = [line for line in lines(Metrics()) if line.startswith("# TYPE")]

    assert len(types) == len(TABLE)


def test_a_node_is_in_one_state() -> None:
    metrics = Metrics()

    metrics.one_of(names.NODE_STATE, "LOADING", STATES)
    metrics.one_of(names.NODE_STATE, "READY", STATES)

    seen = [line for line in lines(metrics) if line.startswith("node_state{")]
    assert [line for line in seen if line.endswith(" 1.0")] == ['node_state{state="READY"} 1.0']
    assert len(seen) == len(STATES)


def test_a_source_is_read_each_time_somebody_asks() -> None:
    metrics, sizes = Metrics(), iter([3, 4])
    metrics.before_render(lambda: metrics.set(names.CLUSTER_SIZE, next(sizes)))

    assert "cluster_size 3.0" in lines(metrics)
    assert "cluster_size 4.0" in lines(metrics)


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_a_counter_brought_to_rising_totals_shows_the_last(steps: list[int]) -> None:
    metrics, total = Metrics(), 0
    for step in steps:
        total += step
        metrics.count_up_to(names.BYTES_DOWNLOADED, total)

    assert f"model_bytes_downloaded_total {float(total)}" in lines(metrics)


def test_a_total_that_began_anew_is_counted_on() -> None:
    metrics = Metrics()
    for total in (100, 150, 20, 30):
        metrics.count_up_to(names.BYTES_DOWNLOADED, total)

    assert "model_bytes_downloaded_total 180.0" in lines(metrics)


def test_a_metric_is_used_as_what_it_is() -> None:
    metrics = Metrics()

    with pytest.raises(InvalidValue, match="is a counter"):
        metrics.set(names.BYTES_DOWNLOADED, 1)
    with pytest.raises(InvalidValue, match="is a gauge"):
        metrics.observe(names.CLUSTER_SIZE, 1)
    with pytest.raises(InvalidValue, match="is a histogram"):
        metrics.add(names.FIRST_TOKEN, 1)
    with pytest.raises(InvalidValue, match="has the labels"):
        metrics.set(names.NODE_STATE, 1)


def test_labels_that_are_gone_are_forgotten() -> None:
    metrics = Metrics()
    metrics.set(names.GPU_POWER, 300, "0")
    metrics.forget(names.GPU_POWER)
    metrics.set(names.GPU_POWER, 250, "1")

    assert [line for line in lines(metrics) if line.startswith("gpu_power_watts")] == [
        'gpu_power_watts{gpu="1"} 250.0'
    ]


def test_two_registries_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.set(names.CLUSTER_SIZE, 9)

    assert "cluster_size 0.0" in lines(other)


def test_answers_and_requests_are_counted() -> None:
    metrics = Metrics()
    http = HttpMetrics(metrics)
    http.answer_started()
    http.answer_started()
    http.first_token(0.3)
    http.answer_ended("stop", 8, 13)
    http.request_ended("/v1/chat/completions", "POST", 200, 0.9)

    seen = lines(metrics)
    assert "answers_open 1.0" in seen
    assert 'answers_total{finish="stop"} 1.0' in seen
    assert "prompt_tokens_total 8.0" in seen
    assert "generated_tokens_total 13.0" in seen
    assert 'time_to_first_token_seconds_bucket{le="0.5"} 1.0' in seen
    request = 'http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0'
    assert request in seen
