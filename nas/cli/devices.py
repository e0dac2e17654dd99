"""``nas profile``, ``nas devices`` and ``nas calibrate``: where latencies come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas.cli import options as opt
from search_space.errors import UsageError
from search_space.precision import MIXED, SEARCHED, check_offered, with_precisions
from search_space.registry import INT8
from search_space.units import format_duration, format_latency

if TYPE_CHECKING:
    from search_space import SearchSpace

COSTS = ("energy", "mpc")

classes_option = opt.option(
    "--num-classes", type=opt.NUM_CLASSES, default=1000, show_default=True, help="Of the head."
)
interpolate_option = click.option(
    "--interpolate", is_flag=True, help="Fill a table's gaps from its measured shapes."
)


@click.group(invoke_without_command=True)
@opt.space_option
@opt.option("--device", default="cpu", show_default=True, help="Device of this machine.")
@classes_option
@opt.latency_options
@click.option("--name", help="Call this device so, here and where the table is carried to.")
@click.option("--fresh", is_flag=True, help="Forget what was measured and measure again.")
@opt.json_option
@opt.quiet_option
@click.pass_context
def profile(context: click.Context, **options: Any) -> None:
    """Measure the latency table of a space on this machine; only what is missing is measured.

    For a device that cannot run this program: `nas profile bundle` writes a folder to carry
    there, `nas profile import` reads back what was measured.
    """
    if context.invoked_subcommand is None:
        _profile(**options)
    else:
        opt.options_after(context)


def _in_precisions(space: SearchSpace, text: str | None) -> tuple[list[SearchSpace], str]:
    """What ``--precision`` asks for: spaces to measure, and the float format of inputs.

    Raises:
        UnknownNameError: There is no such precision.
        UsageError: Two float formats are asked for at once.
    """
    names = (text or "fp32").split(",")
    for name in names:
        check_offered(name)
    formats = [name for name in names if name not in SEARCHED]
    if len(formats) > 1:
        raise UsageError(
            f"--precision {text}: a table holds one float format, and int8 beside it; give "
            f"{formats[0]},int8, and {formats[1]} in a command of its own."
        )
    spaces = [space] if formats else []
    if searched := [name for name in names if name in SEARCHED]:
        both = MIXED in searched or bool(formats)
        spaces.insert(0, with_precisions(space, MIXED if both else INT8))
    return spaces, formats[0] if formats else "fp32"


def _profile(name: str | None, **options: Any) -> None:
    from dataclasses import replace

    from predictors.devices import check_name
    from predictors.measuring.profile import profile as measure
    from predictors.measuring.this_machine import local_conditions
    from predictors.tables.additive import entries
    from predictors.tables.folder import table_path
    from predictors.tables.int8_gains import int8_warnings
    from search_space import load_space

    given = opt.conditions_given(options)
    named = load_space(options["space"] or "digits")
    (chosen, *others), given["precision"] = _in_precisions(named, given.get("precision"))
    if chosen is not named:
        given["runtime"] = given.get("runtime") or "onnxruntime"
    conditions = local_conditions(options["device"], **given)
    if name is not None:
        check_name(name, conditions.device)
    path = table_path(conditions)
    screen = opt.console(options)
    for number, each in enumerate((*others, chosen)):
        with screen.phase(f"measuring {each.name}") as progress:
            table = measure(
                each,
                options["num_classes"],
                conditions,
                progress=progress.rounds,
                fresh=options["fresh"] and number == 0,
            )
    correction = table.correction(chosen)
    warnings = [
        *correction.warnings,
        *int8_warnings(table, entries(chosen, options["num_classes"])),
    ]
    for warning in warnings:
        screen.warn(warning)
    if name is not None and table.name != name:
        if table.name:
            screen.warn(f"this table was called {table.name!r}; from now on it is {name!r}.")
        table = replace(table, name=name)
        table.save(path)
    data = {
        "name": table.name,
        "device": conditions.to_dict(),
        "space": chosen.name,
        "entries": len(table.entries),
        "expected_error": correction.expected_error,
        "path": str(path),
        "warnings": warnings,
    }
    lines = (
        f"{len(table.entries)} entries for {conditions}",
        f"error on whole networks left out: {correction.expected_error:.1%} "
        f"({len(correction.checks)} networks, {correction.rounds} rounds, "
        f"{format_duration(correction.seconds)})",
        f"table: {path}",
    )
    opt.answer(options["as_json"], data, lines)


@profile.command()
@click.argument("folder", type=opt.PATH)
@opt.space_option
@classes_option
@opt.option("--batch-size", type=opt.BATCH_SIZE, default=1, show_default=True)
@opt.option("--precision", metavar="fp32|fp16", default="fp32", show_default=True)
@opt.quiet_option
def bundle(folder: Path, space: str | None, num_classes: int, **options: Any) -> None:
    """Write FOLDER with everything to measure a space on a device without this program.

    The device needs Python, numpy and onnxruntime: run `python run.py` in the folder there, carry
    results.json back, and read it with `nas profile import`.
    """
    from predictors.bundles.bundle import write_bundle
    from search_space import load_space

    chosen = load_space(space or "digits")
    with opt.console(options).phase(f"writing the bundle of {chosen.name}") as progress:
        write_bundle(
            folder,
            chosen,
            num_classes,
            batch_size=options["batch_size"],
            precision=options["precision"],
            progress=lambda done, total: progress(done, total, "files"),
        )
    click.echo(
        f"{folder}: carry it to the device and run there: python run.py\n"
        "then, with the results.json that it wrote: "
        f"nas profile import results.json --bundle {folder} --name DEVICE"
    )


@profile.command()
@click.argument("name", type=click.Choice(COSTS))
@click.argument("file", type=opt.PATH)
@opt.space_option
@classes_option
@click.option(
    "--network",
    type=click.Choice(("lan", "wan")),
    help="Of mpc: echoes in 0.3 ms, 384 MB/s; or in 40 ms, 44 MB/s (default).",
)
@click.option("--modelled", is_flag=True, help="Of energy: do not measure, even where one could.")
@opt.json_option
@opt.quiet_option
def cost(name: str, file: Path, space: str | None, num_classes: int, **options: Any) -> None:
    """Write FILE, a table of another cost than latency, for `nas search --cost NAME=FILE`.

    `energy`, joules of an image, is measured where the processor's counters can be read, else
    modelled from operations and bytes. `mpc` is the time of secure computation by two parties, from
    a model of its rounds and bytes.
    """
    from nas.workflows.cost_tables import write_costs
    from search_space import load_space

    if options["network"] and name != "mpc":
        raise UsageError(f"--network is of mpc, not of {name}; leave it out.")
    if options["modelled"] and name == "mpc":
        raise UsageError("--modelled is of energy, mpc is always modelled; leave it out.")
    chosen = load_space(space or "digits")
    with opt.console(options).phase(f"{name} of {chosen.name}") as progress:
        written = write_costs(
            *(name, file, chosen, num_classes),
            network=options["network"] or "wan",
            modelled=options["modelled"],
            progress=lambda done, total, _: progress(done, total, "components"),
        )
    data = {"name": name, "path": str(file), "entries": written.entries, "source": written.source}
    lines = (
        f"{written.entries} entries, {written.source}",
        f"from {written.least} to {written.most} a network",
        f"use it with: nas search --cost {name}={file} --max {name}={written.middle}",
    )
    opt.answer(options["as_json"], data, lines)


@profile.command(name="import")
@click.argument("file", type=opt.PATH)
@click.option("--bundle", "folder", type=opt.PATH, help="Its bundle's folder.")
@click.option("--name", required=True, help="What the device is called from now on.")
@opt.json_option
def import_(file: Path, folder: Path | None, name: str, as_json: bool) -> None:
    """Take in what was measured elsewhere: a bundle's results, or a table's Parquet file."""
    from predictors.bundles.bundle_import import import_bundle
    from predictors.devices import take_in
    from predictors.tables.latency_table import LatencyTable

    if not file.exists():
        raise UsageError(f"{file}: there is no such file.")
    if file.suffix == ".parquet":
        table = LatencyTable.load(file, "Give a table that `nas profile` printed the path of.")
    elif folder is None:
        raise UsageError(
            f"{file} is no table; if it is what a bundle's run.py wrote, give the bundle's folder "
            "too, by --bundle FOLDER."
        )
    else:
        table = import_bundle(file, folder, name)
    path, notes = take_in(table, name)
    for note in notes:
        click.echo(f"warning: {note}", err=True)
    table = LatencyTable.load(path)
    errors = {c.space: c.expected_error for c in table.corrections.values()}
    entries = len(table.entries)
    data = {"name": name, "path": str(path), "entries": entries, "expected_error": errors}
    lines = (
        f"{name}: {table.conditions}, {entries} entries",
        f"use it with: nas search --device {name}",
    )
    opt.answer(as_json, data, lines)


@click.group(invoke_without_command=True)
@opt.json_option
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """Devices that latencies are known or estimated for, and their tables."""
    if context.invoked_subcommand is not None:
        opt.options_after(context)
        return
    from nas.cli.printing import devices_lines
    from nas.workflows.known_devices import overview

    known = overview()
    for problem in known["problems"]:
        click.echo(f"warning: {problem}", err=True)
    opt.answer(as_json, known, devices_lines(known))


@devices.command(name="show")
@click.argument("name")
@opt.latency_options
@opt.json_option
def show_device(name: str, as_json: bool, **options: Any) -> None:
    """All that is known about the latencies of a device, and how sure it is."""
    from nas.cli.printing import device_lines
    from nas.workflows.known_devices import describe_device

    described = describe_device(name, opt.conditions_given(options))
    opt.answer(as_json, described, device_lines(described))


@devices.command()
@click.argument("first")
@click.argument("second")
@opt.space_option
@classes_option
@opt.latency_options
@interpolate_option
@click.option("--output", type=opt.PATH, help="Also write the scatter as HTML.")
@opt.json_option
@opt.quiet_option
def compare(first: str, second: str, output: Path | None, **options: Any) -> None:
    """How differently two devices rank the same architectures: why one searches per device."""
    from nas.workflows.comparing import compare_devices, write_scatter
    from predictors.devices import find_device
    from results.files import check_parents
    from search_space import load_space

    if output is not None:
        check_parents(output, "choose another --output.")
        if output.exists():
            raise UsageError(f"{output} exists; choose another --output, or delete it.")
    chosen = load_space(options["space"] or "digits")
    conditions = opt.conditions_given(options)
    one, other = (find_device(name, **conditions) for name in (first, second))
    settings = (options["num_classes"], options["interpolate"], opt.console(options))
    compared = compare_devices(one, other, chosen, *settings)
    if output is not None:
        write_scatter(output, compared)
    lines = [
        f"{first} and {second} on {compared.count} architectures of {chosen.name}: "
        f"Kendall τ {compared.tau}",
        f"of the fastest tenth on {first}, {compared.shared_tenth:.0%} are in the fastest tenth "
        f"on {second}",
    ]
    for name, low, high in compared.ranges:
        lines.append(f"{name}: {format_latency(low)} to {format_latency(high)}")
    lines += [] if output is None else [f"scatter: {output}"]
    opt.answer(options["as_json"], compared.to_dict(), lines)


@click.command()
@opt.option("--device", required=True, metavar="NAME", help="Whose latencies are corrected.")
@click.option(
    "--measured",
    required=True,
    type=opt.PATH,
    help="CSV with the columns network and latency_ms (or latency_us, latency_s).",
)
@classes_option
@opt.latency_options
@click.option("--dry-run", is_flag=True, help="Show the errors and change nothing.")
@opt.json_option
def calibrate(device: str, measured: Path, dry_run: bool, **options: Any) -> None:
    """Correct a device's latencies by a handful of your own whole-network measurements."""
    from dataclasses import asdict

    from nas.workflows.known_devices import calibrate_device

    conditions = opt.conditions_given(options)
    calibration, path = calibrate_device(
        device, measured, options["num_classes"], conditions, dry_run
    )
    lines = (
        f"error on {len(calibration.networks)} networks: {calibration.error_before:.1%} before, "
        f"{calibration.error_after:.1%} after (each predicted from the others)",
        f"latency = {calibration.offset_ms:.4g} ms + {calibration.scale:.4g} × prediction",
        "nothing was changed (--dry-run)" if dry_run else f"stored in {path}",
    )
    opt.answer(
        options["as_json"], {"device": device, "path": str(path), **asdict(calibration)}, lines
    )
