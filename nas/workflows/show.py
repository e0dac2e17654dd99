"""A network as plain data: its modules, what each costs, and the totals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from predictors.counts import count_architecture, count_entry
from search_space.architecture import Architecture
from search_space.components import Component, components
from search_space.metrics import LATENCY

if TYPE_CHECKING:
    from predictors.devices import Target


def describe(
    architecture: Architecture,
    num_classes: int,
    device: str | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Modules in order and totals of ``architecture``; with ``device`` its latency.

    The latency is measured now where the device is at hand, and predicted otherwise.
    ``conditions`` are options of ``find_device``, which may raise.
    """
    rows = []
    for component in components(architecture, num_classes):
        cost = count_entry(component.spec, component.in_size)
        rows.append(
            {
                "path": component.path,
                "what": _what(component),
                "input": f"{component.in_size}×{component.in_size}",
                "num_params": cost.num_params,
                "macs": cost.macs,
                "activations": cost.activations,
            }
        )
    result: dict[str, Any] = {
        "digest": architecture.digest,
        "resolution": architecture.resolution,
        "num_classes": num_classes,
        **count_architecture(architecture, num_classes),
    }
    if device is not None:
        from predictors.devices import find_device, provenance_of

        target = find_device(device, **(conditions or {}))
        result[LATENCY] = _latency_ms(target, architecture, num_classes)
        result["latency_provenance"] = (
            "measured now" if target.at_hand else f"predicted; {provenance_of(target)}"
        )
        result["latency_conditions"] = str(target.conditions)
    return {**result, "architecture": architecture.to_dict(), "components": rows}


def _latency_ms(target: Target, architecture: Architecture, num_classes: int) -> float:
    from predictors.estimates.calibrate import predict_network
    from predictors.measuring.remeasure import measure_network
    from predictors.tables.latency_table import LatencyTable

    if target.at_hand:
        return measure_network(architecture, num_classes, target.conditions).latency_ms
    table = LatencyTable(target.conditions, {}, {})
    if target.path.exists():
        table = LatencyTable.load(target.path)
    return predict_network(table, architecture, num_classes)


def _what(component: Component) -> str:
    options = component.spec.as_dict()
    match component.spec.kind:
        case "stem":
            return f"{options['kernel']}×{options['kernel']}/{options['stride']} → {options['dim']}"
        case "downsample":
            return f"{options['style']} {options['dim']} → {options['out_dim']}"
        case "head":
            last = options.get("width", options["dim"])
            conv = options.get("conv_width", last)
            before = f"conv {options['dim']} → {conv}, " if "width" in options else ""
            hidden = f"linear {conv} → {last}, " if "conv_width" in options else ""
            return f"{before}pool, {hidden}linear {last} → {options['num_classes']}"
    if "mixer" not in options:
        inside = f", {options['hidden']} inside" if "hidden" in options else ""
        kernel = f" {options['kernel']}×{options['kernel']}" if "kernel" in options else ""
        stride = f"/{options['stride']}" if options["stride"] > 1 else ""
        return f"{options['style']}{kernel}{stride} {options['dim']} → {options['out_dim']}{inside}"
    params = ", ".join(
        f"{key} {value}" for key, value in options["params"] if not isinstance(value, bool)
    )
    shifted = ", shifted" if dict(options["params"]).get("shifted") else ""
    return f"{options['mixer']} ({params}{shifted}), MLP {options['dim']}·{options['hidden']}"
