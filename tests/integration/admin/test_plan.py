"""``plan`` of a real (small) checkpoint."""

import json
from pathlib import Path

import pytest

from butterfly.admin.main import main
from tests.integration.admin.conftest import free_port, write_config
from tests.support.checkpoints import Shape, write_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "tiny", Shape(layer_count=4))
    return tmp_path / "tiny"


def plan(*words: str) -> int:
    return main(["plan", *words])


def test_the_table_shows_every_machine_and_its_layers(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = plan("--model", str(model), "--node", "big=8GiB,900GB/s", "--node", "small=1GiB,50GB/s")
    shown = capsys.readouterr().out

    assert code == 0
    assert "tiny: 4 layers" in shown
    assert "big" in shown
    assert "small" in shown


def test_the_plan_can_be_read_by_programs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--model", str(model), "--node", "a=8GiB", "--json") == 0
    report = json.loads(capsys.readouterr().out)

    assert report["fits"] is True
    assert report["plan"]["stages"][0]["layers"] == {"start": 0, "stop": 4}


def test_what_does_not_fit_says_what_would_make_it_fit(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--model", str(model), "--node", "a=1MiB", "--node", "b=2MiB") == 1
    assert "does not fit" in capsys.readouterr().out


def test_model_and_budgets_come_from_the_configuration(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path, port=7000, http_port=8080, extra="[engine]\nkv_cache_tokens = 4096\n"
    )
    text = config.read_text().replace('"embedded"', '"filesystem"')
    config.write_text(text.replace('"toy-llama"', f'"{model}"'))

    assert plan("--config", str(config), "--node", "a=4GiB") == 0
    assert "4096 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "say which machines"),
        (("--node", "a"), "write NAME=MEMORY"),
        (("--node", "a=lots"), "24GiB"),
        (("--node", "a=1GiB", "--node", "a=2GiB"), "same name"),
        (("--node", "a=1GiB", "--url", "http://127.0.0.1:1"), "give one of them"),
        (("--node", "a=1GiB"), "say which model"),
    ],
)
def test_wrong_usage_is_told(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*words) == 2
    assert expected in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_told(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--model", str(model), "--url", f"http://127.0.0.1:{free_port()}") == 1
    assert "does not answer" in capsys.readouterr().err
