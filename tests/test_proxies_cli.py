"""``nas proxies``: what is listed, what is scored, and what wrong names are answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from proxy_cases import small
from tiny_job import fresh_job, nas

from predictors.proxies import Network, ScoreSettings, proxy, proxy_names
from search_space import dump_architecture

USAGE, FAILED = 2, 1


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = fresh_job(tmp_path, monkeypatch)
    (folder / "mine.yaml").write_text(dump_architecture(small("gnconv")))
    return folder


def test_list_says_kind_direction_and_what_norms_do() -> None:
    printed = nas("proxies", "list").out
    lines = {line.split()[0]: line for line in printed.splitlines() if line[0] != " "}
    assert list(lines) == proxy_names()
    for name in proxy_names():
        assert proxy(name).applies in " ".join(printed.split())
    assert "sampled" in lines["ntk_condition"]
    assert "smaller is better" in " ".join(lines["ntk_condition"].split())
    assert "closed form" in lines["deepmad"]
    data = {item["name"]: item for item in json.loads(nas("proxies", "list", "--json").out)}
    assert list(data) == proxy_names()
    assert data["synflow"]["closed_form"] is False
    assert "softmax" in data["synflow"]["applies"]


def test_score_of_a_file_is_the_proxys() -> None:
    options = ("--proxy", "zico", "--proxy", "naswot", "--seed", 3, "--repeats", 2)
    ran = nas("proxies", "score", "mine.yaml", *options, "--batch-size", 2, "--json")
    assert ran.code == 0
    (row,) = json.loads(ran.out)
    assert (row["network"], row["image_size"]) == ("mine.yaml", 32)
    settings = ScoreSettings(seed=3, repeats=2, batch_size=2)
    expected = proxy("zico").score(Network.of_architecture(small("gnconv")), settings)
    assert list(row["scores"]) == ["zico", "naswot"]
    assert row["scores"]["zico"]["value"] == pytest.approx(expected.value, rel=1e-5)
    assert row["scores"]["zico"]["spread"] == pytest.approx(expected.spread, rel=1e-3)


def test_the_device_that_latencies_are_for_is_not_where_networks_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAS_DEVICE", "a100")
    assert nas("proxies", "score", "mine.yaml", "--proxy", "deepmad").code == 0


def test_closed_forms_are_the_default_and_every_network_gets_a_block() -> None:
    ran = nas("proxies", "score", "mine.yaml", "test_convnext", "--image-size", 64, "-q")
    assert ran.code == 0
    assert ran.err == ""
    closed = [name for name in proxy_names() if proxy(name).closed_form]
    names = [line.split()[0] for line in ran.out.splitlines()]
    assert names == ["mine.yaml,", *closed, "test_convnext,", *closed]
    assert "64 px" in ran.out


def test_reasons_are_shown() -> None:
    options = ("--proxy", "ntk_condition", "--batch-size", 1, "--repeats", 1)
    ran = nas("proxies", "score", "mine.yaml", *options)
    assert ran.code == 0
    assert "undefined: a condition number needs two images" in ran.out


def test_models_of_one_size_are_built_for_another() -> None:
    options = ("--image-size", 64, "--proxy", "naswot", "--repeats", 1, "--batch-size", 2)
    ran = nas("proxies", "score", "test_vit", *options)
    assert ran.code == 0
    assert "test_vit, 64 px" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["swin_tt"], USAGE, ["unknown network 'swin_tt'", "Did you mean 'swin_t'", "a YAML"]),
        (["resnet19"], USAGE, ["unknown network 'resnet19'", "Did you mean 'resnet1"]),
        (["no.yaml"], FAILED, ["no.yaml does not exist"]),
        (["mine.yaml", "--proxy", "zicco"], USAGE, ["unknown proxy 'zicco'", "mean 'zico'"]),
        (["mine.yaml", "--device", "cudda"], USAGE, ["--device 'cudda' cannot be used"]),
        (["mine.yaml", "--image-size", "2"], USAGE, ["resolution=2", "too small"]),
        (["test_vit", "--image-size", "65"], USAGE, ["takes no images of 65 px"]),
        (["mine.yaml", "--repeats", "0"], USAGE, ["--repeats", "x>=1"]),
        ([], USAGE, ["Missing argument", "ARCH_OR_TIMM_MODEL"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_answered(arguments: list[str], code: int, expected: list[str]) -> None:
    ran = nas("proxies", "score", *arguments)
    assert ran.code == code
    assert ran.out == ""
    for text in expected:
        assert text in ran.err
