"""Measures this bundle: its components and networks, on the device that runs this file.

Needs Python 3.10 or newer, numpy and onnxruntime; nothing else of the project that wrote it:

    python run.py [--threads N] [--out results.json]

Every round visits all models in a new random order and times one run of each, so that the machine's
drift hits all of them alike. What was measured is saved every few seconds: run it again to continue
after an interruption. Take the results file back and read it with `nas profile import`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MOST_BYTES = 2**32  # of one file
PERCENTILE = 25
WARM_UP = 2
SAVE_SECONDS = 10.0
CHECKS_AGREE = 0.02
SUM_STANDS = 0.01
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NUMPY_TYPES = {"fp32": np.float32, "fp16": np.float16}


class BundleError(Exception):
    """Raised for what the user can fix; shown without a traceback."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=None, help="by default results.json here")
    parser.add_argument("--device", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument("--min-rounds", type=int, default=10)
    parser.add_argument("--max-rounds", type=int, default=40)
    parser.add_argument("--min-seconds", type=float, default=12.0, help="per portion")
    parser.add_argument(
        "--memory", type=int, default=None, help="MB of models at once, by default half of free"
    )
    options = parser.parse_args(arguments)
    folder = Path(__file__).resolve().parent
    try:
        measure(folder, options)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run it again to continue.", file=sys.stderr)
        return 130
    return 0


def measure(folder: Path, options: Any) -> None:
    """Measures all portions that are not finished, and leaves the results file complete."""
    out = options.out if options.out is not None else folder / "results.json"
    if options.threads < 1:
        raise BundleError(f"--threads {options.threads} must be at least 1.")
    manifest, digest = read_manifest(folder)
    if manifest["precision"] not in NUMPY_TYPES:
        raise BundleError(f"precision {manifest['precision']} is not known to this runner.")
    state = start(manifest, digest, options)
    earlier = read_results(out)
    if earlier is not None:
        for key in ("bundle", "device", "runtime_version", "threads"):
            if earlier.get(key) != state[key]:
                raise BundleError(
                    f"{out} holds results of another {key}: {earlier.get(key)}. Delete it or "
                    "choose another file with --out."
                )
        state = earlier
    if not state["portions"]:
        state["portions"] = plan_portions(manifest, options.memory)
    for number, portion in enumerate(state["portions"], 1):
        if not portion["stopped"]:
            title = f"portion {number} of {len(state['portions'])}"
            measure_portion(folder, manifest, state, portion, out, title, options)
    print(f"\ndone: {out}\nread it where the bundle was written: nas profile import")


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """Reads the manifest, and its SHA-256, and checks that no file is altered or missing."""
    try:
        raw = read_file(folder / "manifest.json")
        manifest = json.loads(raw)
        if manifest["format"] != FORMAT:
            raise BundleError(f"the bundle has format {manifest['format']!r:.40}, not {FORMAT}.")
        for name, expected in manifest["sha256"].items():
            if sha256(member(folder, name)) != expected:
                raise BundleError(f"{name:.120} was altered or cut short; copy the bundle again.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{folder} is no complete bundle ({error!r:.200}); copy it.") from None
    return manifest, hashlib.sha256(raw).hexdigest()


def member(folder: Path, name: str) -> Path:
    """Finds a file of the bundle by its name in the manifest."""
    parts = name.split("/")
    if len(name) > 200 or not all(part.strip(".") and part.isprintable() for part in parts):
        raise BundleError(f"{name!r:.120} is no name of a bundle's file; copy the bundle again.")
    return folder.joinpath(*parts)


def read_file(path: Path) -> bytes:
    """Reads a regular file: a device or a pipe would be read for ever."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise OSError(f"{path} is no file of a bundle")
    return path.read_bytes()


def sha256(path: Path) -> str:
    return hashlib.sha256(read_file(path)).hexdigest()


def start(manifest: dict[str, Any], digest: str, options: Any) -> dict[str, Any]:
    import onnxruntime

    if PROVIDERS[options.device] not in onnxruntime.get_available_providers():
        raise BundleError(f"this onnxruntime has no {PROVIDERS[options.device]}.")
    return {
        "format": FORMAT,
        "bundle": digest,
        "device": identify(options.device),
        "runtime_version": f"onnxruntime {onnxruntime.__version__}",
        "provider": PROVIDERS[options.device],
        "threads": options.threads,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "portions": [],
    }


def identify(kind: str) -> dict[str, Any]:
    """Identifies the device, as the project itself does."""
    if kind == "cuda":
        return identify_gpu()
    info = processor()
    flags = info.get("flags", info.get("Features", "")).split()
    known = {"avx512vl": "AVX512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}
    return {
        "kind": kind,
        "model": processor_name(info),
        "cores": physical_cores(),
        "capability": next((name for flag, name in known.items() if flag in flags), "DEFAULT"),
    }


def processor() -> dict[str, str]:
    """Reads what Linux says of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8").strip().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor_name(info: dict[str, str]) -> str:
    """Names a processor, with family, model and stepping where known, since names are vague."""
    name = info.get("model name") or platform.processor() or platform.machine()
    numbers = [info[key] for key in ("cpu family", "model", "stepping") if key in info]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def physical_cores() -> int:
    """Counts processors that are no second thread of another; all where the system is silent."""
    cores = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    try:
        return len({path.read_text("utf-8").strip() for path in cores}) or os.cpu_count() or 1
    except OSError:
        return os.cpu_count() or 1


def identify_gpu() -> dict[str, Any]:
    """Asks the CUDA driver for the identity of the first GPU."""
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BundleError(f"there is no CUDA driver ({error}).") from None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    if failed or cuda.cuDeviceGetName(name, len(name), device):
        raise BundleError("the CUDA driver finds no GPU.")

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    cores, major, minor = map(attribute, (16, 75, 76))  # numbers of CUdevice_attribute
    identity = {"kind": "cuda", "model": name.value.decode(), "cores": cores}
    return {**identity, "capability": f"sm_{major}{minor}"}


def plan_portions(manifest: dict[str, Any], memory_mb: int | None) -> list[dict[str, Any]]:
    """Splits the entries into portions that fit into memory beside all networks."""
    limit = memory_mb * 1e6 if memory_mb else free_memory() / 2
    networks = sum(check["weight_bytes"] for check in manifest["checks"])
    portions: list[list[int]] = [[]]
    used = float(networks)
    for index, entry in enumerate(manifest["entries"]):
        # a session needs its packed weights, and a few hundred kilobytes for itself
        size = 1.5 * entry["weight_bytes"] + 5e5
        if portions[-1] and used + size > limit:
            portions.append([])
            used = float(networks)
        portions[-1].append(index)
        used += size
    return [
        {"entries": entries, "samples_ms": [], "seconds": 0.0, "stopped": "", "warnings": []}
        for entries in portions
    ]


def free_memory() -> float:
    """Reads how many bytes are free; 2 GB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(1024.0 * float(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return 2e9


def load(path: Path, model: dict[str, Any], state: dict[str, Any], dtype: Any) -> Callable[[], Any]:
    """Makes a call that runs a model once, with input and output bound to fixed memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = state["threads"]
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[state["provider"]])
    device = state["device"]["kind"]
    images = np.random.default_rng(0).normal(0, 0.02, model["input_shape"]).astype(dtype)
    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(images, device, 0)
    binding.bind_ortvalue_input("images", value)
    output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        model["output_shape"], dtype, device, 0
    )
    binding.bind_ortvalue_output("output", output)

    def run() -> None:
        session.run_with_iobinding(binding)
        if device != "cpu":
            binding.synchronize_outputs()

    return run


def measure_portion(
    folder: Path,
    manifest: dict[str, Any],
    state: dict[str, Any],
    portion: dict[str, Any],
    out: Path,
    title: str,
    options: Any,
) -> None:
    """Rounds over the portion's entries, an empty network and all networks, until they stand."""
    models = [manifest["entries"][i] for i in portion["entries"]]
    models += [manifest["empty"], *manifest["checks"]]
    networks = len(manifest["checks"])
    dtype = NUMPY_TYPES[manifest["precision"]]
    runs = []
    for done, model in enumerate(models, 1):
        print(f"\r{title}: loading {done} of {len(models)}  ", end="", file=sys.stderr)
        run = load(member(folder, model["file"]), model, state, dtype)
        for _ in range(WARM_UP):
            run()
        runs.append(run)
    samples = portion["samples_ms"] = portion["samples_ms"] or [[] for _ in models]
    rng = np.random.default_rng(len(samples[0]))
    clock: list[float] = []
    before, begin = portion["seconds"], time.monotonic()
    saved = shown = begin
    gc.collect()
    gc.disable()
    try:
        while not portion["stopped"]:
            fresh = [0.0] * len(models)
            for i in rng.permutation(len(models)).tolist():
                if i >= len(models) - networks:
                    for _ in range(manifest["settle"]):
                        runs[i]()
                start_ns = time.perf_counter_ns()
                runs[i]()
                fresh[i] = max(time.perf_counter_ns() - start_ns, 1) / 1e6
            for values, value in zip(samples, fresh, strict=True):
                values.append(value)
            now = time.monotonic()
            portion["seconds"] = before + now - begin
            rounds = len(samples[0])
            waited = portion["seconds"] / max(options.min_seconds, 1e-9)
            if rounds >= options.max_rounds and waited >= 2:
                portion["stopped"] = "rounds"
            elif rounds >= options.min_rounds and waited >= 1 and stable(samples, networks):
                portion["stopped"] = "converged"
            if now - shown > 1:
                shown = now
                clock += clock_mhz()
                text = f"round {rounds}, {portion['seconds']:.0f} s"
                print(f"\r{title}: {text}          ", end="", file=sys.stderr)
            if now - saved > SAVE_SECONDS:
                saved = now
                write_results(out, state)
        portion["warnings"] = warnings(clock)
    finally:  # also what an interruption leaves
        gc.enable()
        write_results(out, state)


def stable(samples: list[list[float]], networks: int) -> bool:
    """Decides whether the networks' halves agree and the entries' sum moved little of late."""
    values = np.array(samples)
    middle = values.shape[1] // 2
    checks = values[-networks:]
    first = np.percentile(checks[:, :middle], PERCENTILE, axis=1)
    second = np.percentile(checks[:, middle:], PERCENTILE, axis=1)
    if (np.abs(first - second) > CHECKS_AGREE * np.minimum(first, second)).any():
        return False
    late = max(5, values.shape[1] // 4)
    if values.shape[1] <= late:
        return True
    total = np.percentile(values, PERCENTILE, axis=1).sum()
    then = np.percentile(values[:, :-late], PERCENTILE, axis=1).sum()
    return bool(abs(total - then) < SUM_STANDS * total)


def clock_mhz() -> list[float]:
    """Reads the fastest core's clock, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return [max(float(x.partition(":")[2]) for x in lines if x.startswith("cpu MHz"))]
    except (OSError, ValueError):
        return []


def warnings(clock: list[float]) -> list[str]:
    notes = []
    if len(clock) >= 3 and sorted(clock)[len(clock) // 4] < 0.9 * max(clock):
        low = sorted(clock)[len(clock) // 4]
        notes.append(f"the clock was throttled, from {max(clock):.0f} to {low:.0f} MHz.")
    cores, load, quota = os.cpu_count() or 1, os.getloadavg()[0], cpu_quota()
    if quota < cores:
        notes.append(f"a CPU quota of {quota:.3g} of {cores} processors held.")
    elif load > cores + 0.5:
        notes.append(f"other work ran: the load was {load:.1f} on {cores} cores.")
    return notes


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Reads how many processors a container may keep busy; infinity where nothing is said."""
    try:
        most, period = (root / "cpu.max").read_text("utf-8").split()
        return int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # ``max`` is no number
        return float("inf")


def checksum(state: dict[str, Any]) -> str:
    """Computes the SHA-256 of the canonical JSON of all but the checksum itself."""
    state = {key: value for key, value in state.items() if key != "sha256"}
    text = json.dumps(state, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_results(path: Path, state: dict[str, Any]) -> None:
    """Replaces the file by one rename: an interruption leaves the old one or the new one."""
    state["sha256"] = checksum(state)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_results(path: Path) -> dict[str, Any] | None:
    """Reads an earlier, possibly unfinished, measurement, if there is one."""
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text("utf-8"))
        if state["sha256"] != checksum(state):
            raise ValueError("its checksum does not fit")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be continued ({error}); delete it.") from None
    return dict(state)


if __name__ == "__main__":
    sys.exit(main())
