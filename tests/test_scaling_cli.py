"""``nas scale``: what it writes, shows and refuses, and the report of a family."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sample_report import Page
from test_scaling import SEEDS, network
from tiny_job import FAILED, INFEASIBLE, USAGE, Ran, nas, quick_measurements

from predictors.proxies import Network, ScoreSettings
from predictors.proxies.base import SampledProxy
from results.report.family_report import growth_curves, path_chart, render_family_report
from search_space import Architecture, dump_architecture, load_architecture


@pytest.fixture
def seed(job: Path) -> Architecture:
    Path("seed.yaml").write_text(dump_architecture(SEEDS["conv"]))
    return SEEDS["conv"]


def scale(*more: object) -> Ran:
    return nas("scale", "--seed", "seed.yaml", "--num-classes", 10, *more)


def scaled(*more: object) -> dict[str, Any]:
    ran = scale("--json", "--out", "family", *more)
    assert ran.code == 0, ran.err
    result: dict[str, Any] = json.loads(ran.out)
    return result


def test_a_family_is_written_and_each_member_shown(seed: Architecture) -> None:
    result = scaled("--to", "80k,40k", "--max-latency", "2ms@a100", "--device", "h100")
    assert [m["name"] for m in result["members"]] == ["40k", "80k"]
    assert (result["method"], result["by"], result["notes"]) == ("compound", "num_params", [])
    for member in result["members"]:
        assert member["file"] == f"family/members/{member['name']}.yaml"
        architecture = load_architecture(member["file"])
        assert architecture.digest == member["digest"]
        assert architecture.to_dict() == member["architecture"]
        args = ("--json", "--num-classes", 10, "--device", "a100")
        shown = json.loads(nas("show", member["file"], *args).out)
        assert {k: shown[k] for k in ("num_params", "macs", "activations")} == {
            k: member["costs"][k] for k in ("num_params", "macs", "activations")
        }
        assert member["costs"]["latency_ms@a100"] == pytest.approx(shown["latency_ms"])
        assert member["costs"]["num_params"] <= member["budget"]
    assert set(result["latencies"]) == {"a100", "h100"}
    assert "estimated" in result["latencies"]["h100"]["predicted"]
    stored = json.loads(Path("family/family.json").read_text())
    assert len(stored["path"]) == result["steps"] + 1
    assert stored["path"][0]["digest"] == seed.digest
    assert stored["members"] == result["members"]


def test_the_table_names_every_member(seed: Architecture) -> None:
    ran = scale("--to", "40k,80k", "--device", "a100", "--method", "fast", "--out", "family")
    assert ran.code == 0, ran.err
    head, first, second, *_ = ran.out.splitlines()
    assert all(word in head for word in ("parameters", "MACs", "activations", "latency on a100"))
    assert first.split()[0] == "40k"
    assert second.split()[0] == "80k"
    digest = load_architecture("family/members/80k.yaml").digest
    assert digest in second
    assert len(head) > 60
    assert "expected error ±" in ran.out
    assert "report: family/report.html" in ran.out


def test_the_same_command_again_gives_the_same_and_another_is_refused(seed: Architecture) -> None:
    first = scaled("--to", "40k")
    assert scaled("--to", "40k") == first
    ran = scale("--to", "80k", "--out", "family")
    assert ran.code == FAILED
    assert "family holds another family (budgets ['40k'], now ['80k'])" in ran.err
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    ran = scale("--to", "80k", "--out", "other")
    assert ran.code == FAILED
    assert "other exists and holds no family; choose another --out" in ran.err
    assert scale("--to", "80k").code == 0
    assert Path("runs/seed-compound-params-80k/report.html").exists()


def test_latencies_of_budgets_have_units_of_time(seed: Architecture) -> None:
    result = scaled("--by", "latency@a100", "--to", "400us,0.35ms", "--method", "fast")
    assert [m["name"] for m in result["members"]] == ["0.35ms", "0.4ms"]
    for member in result["members"]:
        assert member["costs"]["latency_ms@a100"] <= member["budget"]


def test_members_are_measured_where_the_device_is_at_hand(seed: Architecture) -> None:
    from unittest import mock

    from predictors.measuring.remeasure import Measurement

    with (
        quick_measurements(),
        mock.patch("nas.workflows.scaling.measure_networks") as measure,
    ):
        measure.side_effect = lambda networks, *more, **options: [
            Measurement(float(sum(a.depths)), 1.0, 9.0, 5, 0.0) for a in networks
        ]
        result = scaled("--to", "40k,80k", "--device", "cpu")
        for member in result["members"]:
            blocks = sum(len(stage["blocks"]) for stage in member["architecture"]["stages"])
            assert member["measured_ms"] == {"cpu": blocks}
        page = Path("family/report.html").read_text()
        assert "latency on cpu, measured" in page
        calls = measure.call_count
        assert scale("--to", "40k", "--device", "cpu", "--no-measure").code == 0
        assert measure.call_count == calls


def test_scores_are_kept_when_a_growth_is_interrupted(
    seed: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def score(self: SampledProxy, network: Network, settings: ScoreSettings) -> Any:
        from predictors.proxies import Score

        asked.append(network.name)
        if len(asked) == limit:
            raise KeyboardInterrupt
        return Score(1.0 + int(network.name, 16) % 91)

    monkeypatch.setattr(SampledProxy, "score", score)
    command = ("--to", "120k", "--method", "as-vit", "--out", "family")
    limit = 0
    whole = scale("--json", *command[:-1], "whole")
    assert whole.code == 0, whole.err
    needed, limit = len(asked), 30
    asked.clear()
    assert scale(*command).code == 130
    assert not Path("family/family.json").exists()
    scored, limit = len(set(asked)) - 1, 0
    asked.clear()
    ran = scale("--json", *command)
    assert f"{scored} scores are known already" in ran.err
    assert (
        json.loads(ran.out)["members"][0]["digest"] == json.loads(whole.out)["members"][0]["digest"]
    )
    assert len(asked) == needed - 2 * scored


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--to", "1k"], USAGE, ["budget 1k is below the seed's own", "--method contract"]),
        (["--to", "1M", "--method", "contract"], USAGE, ["budget 1M is above the seed's own"]),
        (["--to", "50k", "--max-latency", "1us@a100"], INFEASIBLE, ["latency on a100", "1.00 µs"]),
        (["--to", "50k,50k"], USAGE, ["budget 50k is there twice"]),
        (["--to", "50k,,60k"], USAGE, ["--to '50k,,60k' has an empty entry"]),
        (["--to", "9 knots"], USAGE, ["unknown unit 'knots'"]),
        (["--to", "5ms"], USAGE, ["'5ms': unknown unit 'ms'", "a count takes"]),
        (["--to", "-5k"], USAGE, ["'-5k'", "must be positive"]),
        (["--to", "5", "--by", "latency@a100"], USAGE, ["'5' has no unit", "write 5ms"]),
        (["--to", "5M", "--by", "latency@a100"], USAGE, ["unknown unit 'M'"]),
        (["--to", "5ms", "--by", "latency"], USAGE, ["'latency' names no device", "@a100"]),
        (["--to", "5ms", "--by", "latency@a1000"], USAGE, ["'a1000'", "Did you mean 'a100'"]),
        (["--to", "50k", "--by", "parms"], USAGE, ["'parms'", "Did you mean 'params'"]),
        (["--to", "50k", "--by", "macs@a100"], USAGE, ["unknown metric 'macs@a100'"]),
        (["--to", "50k", "--max-latency", "5ms"], USAGE, ["'5ms' names no device", "5ms@a100"]),
        (["--to", "50k", "--max-latency", "5@a100"], USAGE, ["'5' has no unit"]),
        (
            ["--to", "50k", "--max-latency", "5ms@a100", "--max-latency", "6ms@a100"],
            USAGE,
            ["--max-latency '6ms@a100'", "twice"],
        ),
        (["--to", "50k", "--method", "compond"], USAGE, ["'compond'", "Did you mean 'compound'"]),
        (["--to", "50k", "--device", "a1000"], USAGE, ["'a1000'", "Did you mean 'a100'"]),
        (
            ["--to", "9ms", "--by", "latency@cpu"],
            FAILED,
            ["'cpu' has no latency table", "nas profile"],
        ),
        (["--to", "50k", "--score", "depmad", "--method", "contract"], USAGE, ["mean 'deepmad'"]),
        (["--to", "50k", "--seed", "none.yaml"], FAILED, ["none.yaml does not exist"]),
        (["--to", "50k", "--seed", "swin_x"], USAGE, ["'swin_x'", "Did you mean 'swin_t'"]),
        (["--to", "50k", "--out", "seed.yaml"], FAILED, ["seed.yaml is a file", "another --out"]),
        (["--to", "50k", "--out", "seed.yaml/x"], FAILED, ["seed.yaml is a file", "another --out"]),
        ([], USAGE, ["Missing option '--to'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "--to" in value[:1] else "",
)
def test_wrong_wishes_are_answered(
    seed: Architecture, options: list[str], code: int, expected: list[str]
) -> None:
    ran = scale(*options)
    assert ran.code == code, ran.err
    assert all(text in ran.err for text in expected), ran.err
    assert "Traceback" not in ran.err
    assert not Path("runs").exists()


# The report -------------------------------------------------------------------------------


def sample(**changes: Any) -> dict[str, Any]:
    """A growth by hand: three steps, two members, a limit."""
    path = [
        {
            "digest": f"{i:012d}",
            "change": "" if i == 0 else f"change <{i}>",
            "costs": {"num_params": 1e6 * 2**i, "macs": 5e6 * 3**i, "latency_ms@a100": 1.0 + i},
            "scores": {} if i == 0 else {"ntk_condition": 9.0 - i},
            "architecture": network(depths=(1, 1, 2 + i, 1)).to_dict(),
        }
        for i in range(4)
    ]
    members = [
        {"name": name, "budget": budget, "index": i, "file": f"members/{name}.yaml", **path[i]}
        for name, budget, i in (("2M", 2e6, 1), ("9M", 9e6, 3))
    ]
    return {
        "name": "toy <b>",
        "created": "",
        "summary": {},
        "settings": {},
        "rule": "Doubles.",
        "by": "num_params",
        "limits": {"latency_ms@a100": 5.0},
        "members": members,
        "path": path,
        "latencies": {"a100": {"predicted": "estimated"}},
        "notes": ("A note & more.",),
        "command": "nas scale --seed 'x'",
        **changes,
    }


def test_the_path_is_drawn_where_the_data_says() -> None:
    chart = path_chart(sample())
    assert chart["axes"] == ["step", "macs", "latency_ms@a100"]
    xs = [point["x"]["step"] for point in chart["points"]]
    assert xs == pytest.approx([xs[0] + i * (xs[1] - xs[0]) for i in range(4)], abs=0.02)
    ys = [point["y"] for point in chart["points"]]
    assert ys == sorted(ys, reverse=True)
    assert [point["member"] for point in chart["points"]] == ["", "2M", "", "9M"]
    assert chart["budgets"][0]["y"] == ys[1]  # its member is exactly as large
    assert chart["budgets"][1]["y"] < ys[3]  # the second is larger than its member: above it
    latency = chart["views"][2]
    assert latency["limit"]["x"] > max(point["x"]["latency_ms@a100"] for point in chart["points"])
    assert [label.text for label in latency["labels"]] == ["2M", "9M"]


def test_only_what_changes_has_a_curve() -> None:
    curves = growth_curves(sample())
    assert [curve["title"] for curve in curves] == ["Blocks", "NTK condition number κ"]
    third = curves[0]["lines"][2]
    assert third["name"] == "stage 3"
    assert third["path"].count("L") == 3
    assert curves[1]["lines"][0]["path"].count("L") == 2  # the seed has no score
    places = sorted(line["label_y"] for line in curves[0]["lines"])
    assert all(b - a >= 14 for a, b in itertools.pairwise(places))


def test_the_page_is_whole_escaped_and_offline() -> None:
    page = render_family_report(sample())
    parsed = Page(page)
    assert not parsed.open
    assert len([a for a in parsed.classed("point") if "data-i" in a]) == 4
    marked = [a for a in parsed.classed("chosen-point") if "data-i" in a]
    assert [a["data-digest"] for a in marked] == ["000000000001", "000000000003"]
    assert "toy &lt;b&gt;" in page
    assert "toy <b>" not in page
    assert "change \\u003c1\\u003e" in page
    assert "A note &amp; more." in page
    assert not re.findall(r"(?:https?:)?//[a-z]", page.replace("http://www.w3.org", ""))
    assert "default-src 'none'" in page
    assert "88.9\u00a0%" in page  # of its budget: 8 M of 9 M
    assert "nas show members/9M.yaml" in page


def test_a_family_without_steps_is_drawn_too() -> None:
    data = sample()
    alone = dict(data["members"][0], index=0, **data["path"][0])
    page = render_family_report(sample(path=data["path"][:1], members=[alone], limits={}, notes=()))
    assert not Page(page).open
    assert "What changed on the way" not in page


def test_options_that_a_method_would_ignore_are_refused(job: Path) -> None:
    for option, value in (("--planned-epochs", 5), ("--score", "zico"), ("--repeats", 9)):
        ran = nas("scale", "--seed", "swin_t", "--to", "50M", option, value)
        assert ran.code == USAGE
        assert f"{option} does nothing with --method compound" in ran.err
    assert not Path("runs").exists()
